//! Why the daemon did not start, as its exit code and the line on standard error.
//!
//! What fails while the daemon serves never comes here: that is a problem document.

use std::error::Error;
use std::process::ExitCode;

use crate::api::problem::{Code, Problem};
use crate::audit::AuditError;
use crate::base::sysexits::{EX_CANTCREAT, EX_CONFIG};
use crate::device::DeviceError;
use crate::telemetry::Chain;

/// A start or a stop that failed.
#[derive(Debug)]
pub struct Failure {
    exit: u8,
    problem: Problem,
}

impl Failure {
    /// With a code of `sysexits.h`.
    pub fn new(exit: u8, problem: Problem) -> Self {
        Self { exit, problem }
    }

    /// The state directory or something in it cannot be used.
    pub fn state(error: impl Error) -> Self {
        Self::new(
            EX_CANTCREAT,
            Problem::new(Code::StateUnusable, Chain(&error).to_string()),
        )
    }

    /// The audit trail cannot be used.
    pub fn audit(error: AuditError) -> Self {
        Self::new(
            EX_CANTCREAT,
            Problem::new(Code::AuditUnavailable, Chain(&error).to_string()),
        )
    }

    /// The tokens cannot be served at all.
    pub fn device(error: DeviceError) -> Self {
        let exit = match error {
            DeviceError::ModuleTwice { .. } => {
                let problem = Problem::new(Code::ConfigValue, error.to_string());
                return Self::new(EX_CONFIG, problem);
            }
            _ => EX_CANTCREAT,
        };
        let text = Chain(&error).to_string();
        Self::new(exit, Problem::new(Code::StateUnusable, text))
    }

    /// The operating system refused something basic.
    pub fn system(exit: u8, what: &'static str, error: &dyn Error) -> Self {
        Self::new(
            exit,
            Problem::new(Code::Internal, format!("{what}: {}", Chain(error)))
                .with_action("Check the limits and permissions that the daemon runs with."),
        )
    }

    /// Says it on standard error.
    pub fn report(&self) -> ExitCode {
        eprintln!("opcertd: {}", self.problem);
        ExitCode::from(self.exit)
    }
}
