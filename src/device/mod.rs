//! device: being written.

pub mod worker;
