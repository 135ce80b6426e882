//! The `/v1` interface of the daemon.

pub mod caller;
pub mod clients;
pub mod doors;
pub mod extract;
pub mod local_ca;
pub mod problem;
pub mod routes;
pub mod software_key;
pub mod types;

pub use problem::{Code, Problem, ProblemDocument};
