//! What was delivered already: notification ids and fingerprints of verified messages.
//!
//! The platform repeats a notification until it is answered with success, up to fifteen times in
//! a day, each time signed anew; and whoever saw a delivery may repeat it as it was. A memory
//! says "again" to both. It is bounded in time and in number: when it is full of entries that are
//! not yet old enough to go, it says so, and the callback is to be answered as failed; the
//! platform comes again.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;

use crate::base::encoding::sha256;

/// Whether something was there before.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Not within the memory's time.
    First,
    /// It was there.
    Again {
        /// When it was first there.
        first: Timestamp,
    },
}

/// The memory is full of entries that may not be forgotten yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{capacity} deliveries are remembered already, none of them old enough to be forgotten")]
pub struct SeenFull {
    /// The most that are remembered.
    pub capacity: usize,
}

/// A bounded memory of what was delivered. Entries are kept as SHA-256, so a long id costs no more.
#[derive(Debug)]
pub struct Seen {
    capacity: usize,
    retention: Duration,
    times: HashMap<[u8; 32], Timestamp>,
    order: VecDeque<[u8; 32]>,
}

impl Seen {
    /// The shortest retention: twice the window in which a signature is accepted.
    pub const MIN_RETENTION: Duration =
        Duration::from_secs(2 * super::WINDOW_SECONDS.unsigned_abs());

    /// Remembers at most `capacity` deliveries, each for `retention` (at least
    /// [`Seen::MIN_RETENTION`], which is used where less is asked for).
    pub fn new(capacity: usize, retention: Duration) -> Self {
        Self {
            capacity,
            retention: retention.max(Self::MIN_RETENTION),
            times: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Remembers `id` from `now` on, unless it is remembered already.
    pub fn observe(&mut self, id: &[u8], now: Timestamp) -> Result<Delivery, SeenFull> {
        self.observe_digest(sha256(id), now)
    }

    /// The same by the SHA-256 of an id, under which it may be kept elsewhere too.
    pub fn observe_digest(&mut self, id: [u8; 32], now: Timestamp) -> Result<Delivery, SeenFull> {
        self.expire(now);
        if let Some(&first) = self.times.get(&id) {
            return Ok(Delivery::Again { first });
        }
        if self.times.len() >= self.capacity {
            return Err(SeenFull {
                capacity: self.capacity,
            });
        }
        self.times.insert(id, now);
        self.order.push_back(id);
        Ok(Delivery::First)
    }

    /// Forgets `id`, where handling it failed and the platform is to deliver it again.
    pub fn forget(&mut self, id: &[u8]) {
        self.forget_digest(sha256(id));
    }

    /// The same by the SHA-256 of an id.
    pub fn forget_digest(&mut self, id: [u8; 32]) {
        if self.times.remove(&id).is_some() {
            self.order.retain(|known| *known != id);
        }
    }

    fn expire(&mut self, now: Timestamp) {
        while let Some(oldest) = self.order.front() {
            let kept = self.times.get(oldest).is_some_and(|first| {
                now.duration_since(*first).unsigned_abs() < self.retention || now < *first
            });
            if kept {
                break;
            }
            self.times.remove(oldest);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_delivery_is_first_once_until_it_is_forgotten() {
        let mut seen = Seen::new(2, Duration::from_secs(600));
        assert_eq!(seen.observe(b"a", at(0)), Ok(Delivery::First));
        assert_eq!(
            seen.observe(b"a", at(599)),
            Ok(Delivery::Again { first: at(0) })
        );
        assert_eq!(seen.observe(b"b", at(10)), Ok(Delivery::First));
        assert_eq!(seen.observe(b"c", at(20)), Err(SeenFull { capacity: 2 }));
        assert_eq!(seen.observe(b"a", at(600)), Ok(Delivery::First));
        seen.forget(b"b");
        assert_eq!(seen.observe(b"b", at(601)), Ok(Delivery::First));
        assert_eq!((seen.times.len(), seen.order.len()), (2, 2));
    }

    #[test]
    fn a_clock_that_steps_back_forgets_nothing() {
        let mut seen = Seen::new(8, Duration::ZERO);
        assert_eq!(seen.observe(b"a", at(10_000)), Ok(Delivery::First));
        assert_eq!(
            seen.observe(b"a", at(0)),
            Ok(Delivery::Again { first: at(10_000) })
        );
    }
}
