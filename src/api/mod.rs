//! The `/v1` interface of the daemon.

pub mod extract;
pub mod problem;

pub use problem::{Code, Problem, ProblemDocument};
