//! Why the daemon did not start, as its exit code and the line on standard error.

use std::error::Error;
use std::process::ExitCode;

use crate::api::problem::{Code, Problem};
use crate::audit::AuditError;
use crate::base::sysexits::{EX_CANTCREAT, EX_SOFTWARE};

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
            Problem::new(Code::StateUnusable, chain(&error)),
        )
    }

    /// The audit trail cannot be used.
    pub fn audit(error: AuditError) -> Self {
        Self::new(
            EX_CANTCREAT,
            Problem::new(Code::AuditUnavailable, chain(&error)),
        )
    }

    /// The operating system refused something basic.
    pub fn system(exit: u8, what: &'static str, error: &dyn Error) -> Self {
        Self::new(
            exit,
            Problem::new(Code::Internal, format!("{what}: {}", chain(error)))
                .with_action("Check the limits and permissions that the daemon runs with."),
        )
    }

    /// Says it on standard error.
    pub fn report(&self) -> ExitCode {
        eprintln!("opcertd: {}", self.problem);
        ExitCode::from(if self.exit == 0 {
            EX_SOFTWARE
        } else {
            self.exit
        })
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        // Some errors repeat their source in their own text.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}
