//! The `/v1` interface of the daemon.

pub mod clients;
pub mod extract;
pub mod local_ca;
pub mod problem;
pub mod software_key;

pub use problem::{Code, Problem, ProblemDocument};
