//! What several test programs share.
//!
//! Each test program compiles this for itself and uses only some of it.
#![allow(dead_code)]

pub mod attach;
pub mod daemon;
pub mod devices;
pub mod dice;
pub mod disk;
pub mod faulty;
pub mod maker;
pub mod service;
pub mod softhsm;
pub mod wait;
pub mod wall_clock;
