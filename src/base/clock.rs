//! The only source of wall-clock time.
//!
//! Everything that compares, records or shows a time asks a [`Clock`] it was handed; tests hand
//! in one they set themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;

/// A cloneable source of the current time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The clock of the operating system.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still until its [`ClockHand`] moves it.
    pub fn manual(start: Timestamp) -> (Self, ClockHand) {
        let millis = Arc::new(AtomicI64::new(start.as_millisecond()));
        (Self(Source::Manual(millis.clone())), ClockHand(millis))
    }

    /// The current time, in whole milliseconds.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => {
                let now = Timestamp::now();
                Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
            }
            Source::Manual(millis) => Timestamp::from_millisecond(millis.load(Ordering::SeqCst))
                .unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }
}

/// Moves the clock it was made with, in either direction.
#[derive(Clone, Debug)]
pub struct ClockHand(Arc<AtomicI64>);

impl ClockHand {
    /// Moves forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as i64, Ordering::SeqCst);
    }

    /// Moves to `at`, backwards too.
    pub fn set(&self, at: Timestamp) {
        self.0.store(at.as_millisecond(), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let (clock, hand) = Clock::manual(Timestamp::from_second(1_000).unwrap());
        assert_eq!(clock.now().as_second(), 1_000);
        hand.advance(Duration::from_secs(5));
        assert_eq!(clock.now().as_second(), 1_005);
        hand.set(Timestamp::from_second(10).unwrap());
        assert_eq!(clock.clone().now().as_second(), 10);
    }
}
