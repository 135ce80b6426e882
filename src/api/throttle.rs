//! Failed authentication, limited for each source.
//!
//! Who is let in is never limited here, and a TLS handshake that breaks off is no failure: browsers
//! abort the first one when they are asked for a certificate. What is limited is how often one
//! source may be refused: past [`BURST`] it is answered `too-many-failures`, without a log line of
//! its own, until [`PER_MINUTE`] have let it recover. So a program that knocks with a wrong
//! certificate fills no log, and one that gets the right one comes in at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use super::problem::{Code, Problem};
use crate::telemetry::metrics::metrics;

/// Refusals at once.
pub const BURST: f64 = 20.0;

/// Refusals in a minute on average.
pub const PER_MINUTE: f64 = 10.0;

/// Most sources that are remembered; past it those that have recovered are forgotten, and if there
/// is none, all.
const MOST_SOURCES: usize = 4096;

/// Who failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// A certificate that is not registered, by its SHA-256.
    Certificate([u8; 32]),
    /// An address, where nothing else is known.
    Address(IpAddr),
    /// A local user.
    User(u32),
}

/// Counts failures.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<Source, Bucket>>);

/// How many refusals a source has left.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Timestamp,
}

impl Bucket {
    /// As it is at `now`.
    fn at(self, now: Timestamp) -> Self {
        let minutes = now.duration_since(self.at).as_secs_f64().max(0.0) / 60.0;
        Self {
            left: (self.left + minutes * PER_MINUTE).min(BURST),
            at: now,
        }
    }
}

impl Failures {
    /// What `source` is answered that was refused for `problem` at `now`.
    pub fn refuse(&self, source: Source, problem: Problem, now: Timestamp) -> Problem {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.len() >= MOST_SOURCES && !sources.contains_key(&source) {
            sources.retain(|_, bucket| bucket.at(now).left < BURST);
            if sources.len() >= MOST_SOURCES {
                sources.clear();
            }
        }
        let full = Bucket {
            left: BURST,
            at: now,
        };
        let bucket = sources.entry(source).or_insert(full);
        *bucket = bucket.at(now);
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return problem;
        }
        metrics().throttled.increment();
        let wait = (1.0 - bucket.left) * 60.0 / PER_MINUTE;
        // A few seconds, so the cast loses nothing.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let wait = wait.ceil() as u32;
        Problem::new(
            Code::TooManyFailures,
            format!("{}, too often", problem.detail()),
        )
        .with_retry_after(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn refuse(failures: &Failures, source: Source, now: Timestamp) -> Code {
        let problem = Problem::new(Code::ClientUnknown, "no such client");
        failures.refuse(source, problem, now).code()
    }

    #[test]
    fn a_source_that_fails_again_and_again_waits_and_others_do_not() {
        let failures = Failures::default();
        let now = Timestamp::UNIX_EPOCH;
        let (one, other) = (Source::User(1), Source::Certificate([1; 32]));
        for _ in 0..20 {
            assert_eq!(refuse(&failures, one, now), Code::ClientUnknown);
        }
        assert_eq!(refuse(&failures, one, now), Code::TooManyFailures);
        assert_eq!(refuse(&failures, other, now), Code::ClientUnknown);
        let soon = now + Duration::from_secs(6);
        assert_eq!(refuse(&failures, one, soon), Code::ClientUnknown);
        assert_eq!(refuse(&failures, one, soon), Code::TooManyFailures);
        // A clock that steps back gives nothing and takes nothing.
        assert_eq!(refuse(&failures, one, now), Code::TooManyFailures);
    }

    #[test]
    fn memory_is_bounded() {
        let failures = Failures::default();
        for user in 0..10_000 {
            refuse(&failures, Source::User(user), Timestamp::UNIX_EPOCH);
        }
        assert!(failures.0.lock().unwrap().len() <= MOST_SOURCES);
    }
}
