//! Records of refusals, one by one as far as a caller has not too many of them.
//!
//! Whoever may ask may ask in vain, as often as it likes, and a full disk stops all signing. So each
//! caller has [`BURST`] records of its own at once and [`PER_MINUTE`] on average. What comes beyond
//! is counted by its code, and the count is a record too, of the kind [`KIND`]: once a minute, and
//! when the log is closed. A crash loses the count of the last minute.
//!
//! Callers are registered clients and local users whom a door knows by name: there are as many
//! as were registered, and one that has been quiet for some minutes is forgotten.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

/// Refusals of one caller that are recorded one by one at once.
pub const BURST: f64 = 60.0;

/// Refusals of one caller that are recorded one by one in a minute on average.
pub const PER_MINUTE: f64 = 10.0;

/// The kind of the records that sum up.
pub const KIND: &str = "more-refusals";

/// Who has how many left.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<Box<str>, Bucket>>);

/// Whether a refusal has a record of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It has.
    Own,
    /// It is counted.
    Counted,
}

/// Refusals of one caller that have no records of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    caller: Box<str>,
    count: u64,
    /// How many there were of each code.
    codes: BTreeMap<&'static str, u64>,
    from: Timestamp,
    to: Timestamp,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Timestamp,
    beyond: Option<Summary>,
}

impl Bucket {
    fn refill(&mut self, now: Timestamp) {
        let minutes = now.duration_since(self.at).as_secs_f64().max(0.0) / 60.0;
        self.left = (self.left + minutes * PER_MINUTE).min(BURST);
        self.at = now;
    }
}

impl Refusals {
    /// Takes the place of a refusal of `caller`.
    pub fn take(&self, caller: &str, code: &'static str, now: Timestamp) -> Place {
        let mut callers = self.lock();
        if !callers.contains_key(caller) {
            callers.insert(
                caller.into(),
                Bucket {
                    left: BURST,
                    at: now,
                    beyond: None,
                },
            );
        }
        let Some(bucket) = callers.get_mut(caller) else {
            return Place::Own;
        };
        bucket.refill(now);
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Place::Own;
        }
        let beyond = bucket.beyond.get_or_insert_with(|| Summary {
            caller: caller.into(),
            count: 0,
            codes: BTreeMap::new(),
            from: now,
            to: now,
        });
        beyond.count += 1;
        *beyond.codes.entry(code).or_default() += 1;
        beyond.to = now;
        Place::Counted
    }

    /// What was counted since the last time; forgets who has been quiet.
    pub fn sum_up(&self, now: Timestamp) -> Vec<Summary> {
        let mut callers = self.lock();
        let sums = callers
            .values_mut()
            .filter_map(|bucket| bucket.beyond.take())
            .collect();
        callers.retain(|_, bucket| {
            bucket.refill(now);
            bucket.left < BURST
        });
        sums
    }

    /// Counts again what could not be written.
    pub fn put_back(&self, sum: Summary) {
        let mut callers = self.lock();
        let bucket = callers.entry(sum.caller.clone()).or_insert(Bucket {
            left: 0.0,
            at: sum.to,
            beyond: None,
        });
        match &mut bucket.beyond {
            None => bucket.beyond = Some(sum),
            Some(beyond) => {
                beyond.count += sum.count;
                for (code, count) in sum.codes {
                    *beyond.codes.entry(code).or_default() += count;
                }
                beyond.from = sum.from;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Bucket>> {
        // Each change is complete before the lock is given back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn past_its_places_a_callers_refusals_are_counted_by_code_and_others_are_not_touched() {
        let refusals = Refusals::default();
        let now = Timestamp::UNIX_EPOCH;
        let mut places = [0, 0];
        for _ in 0..100 {
            match refusals.take("client:erp", "policy-refused", now) {
                Place::Own => places[0] += 1,
                Place::Counted => places[1] += 1,
            }
        }
        assert_eq!(places, [60, 40]);
        assert_eq!(refusals.take("client:till", "busy", now), Place::Own);

        let later = now + Duration::from_secs(6);
        let place = |code| refusals.take("client:erp", code, later);
        assert_eq!(place("busy"), Place::Own);
        assert_eq!(place("busy"), Place::Counted);
        let sums = refusals.sum_up(later);
        let expected = Summary {
            caller: "client:erp".into(),
            count: 41,
            codes: [("policy-refused", 40), ("busy", 1)].into(),
            from: now,
            to: later,
        };
        assert_eq!(sums, std::slice::from_ref(&expected));
        assert_eq!(refusals.sum_up(later), []);

        // What the log did not take is not lost.
        assert_eq!(place("busy"), Place::Counted);
        refusals.put_back(expected);
        let sums = refusals.sum_up(later);
        assert_eq!((sums[0].count, sums[0].from), (42, now));
        assert_eq!(sums[0].codes["busy"], 2);
    }

    #[test]
    fn who_has_been_quiet_is_forgotten_and_a_clock_that_steps_back_gives_nothing() {
        let refusals = Refusals::default();
        let now = Timestamp::UNIX_EPOCH + Duration::from_secs(3_600);
        for _ in 0..=60 {
            refusals.take("uid:7", "busy", now);
        }
        assert_eq!(refusals.sum_up(now).len(), 1);
        let before = now - Duration::from_secs(600);
        assert_eq!(refusals.take("uid:7", "busy", before), Place::Counted);
        assert_eq!(refusals.sum_up(before).len(), 1);
        assert_eq!(refusals.lock().len(), 1);
        assert_eq!(refusals.sum_up(now + Duration::from_secs(600)), []);
        assert!(refusals.lock().is_empty());
    }

    #[test]
    fn quiet_gives_back_a_full_burst_and_no_more() {
        let refusals = Refusals::default();
        let own = |now, tries| {
            (0..tries)
                .filter(|_| refusals.take("uid:7", "busy", now) == Place::Own)
                .count()
        };
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(own(now, 59), 59);
        // A day is worth no more than a burst.
        let later = now + Duration::from_secs(86_400);
        assert_eq!(own(later, 100), 60);
        assert_eq!(own(later + Duration::from_secs(60), 100), 10);
    }

    #[test]
    fn what_could_not_be_written_is_kept_though_its_caller_was_forgotten() {
        let refusals = Refusals::default();
        let now = Timestamp::UNIX_EPOCH;
        for _ in 0..=60 {
            refusals.take("uid:7", "busy", now);
        }
        let sum = refusals.sum_up(now).remove(0);
        assert_eq!(refusals.sum_up(now + Duration::from_secs(600)), []);
        assert!(refusals.lock().is_empty());
        refusals.put_back(sum.clone());
        assert_eq!(refusals.sum_up(now), [sum]);
    }
}
