//! Numbers that many threads write and one scrape reads, without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets of every histogram, in seconds: from a signature in software to a
/// person who thinks.
pub const BUCKETS: [f64; 18] = [
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
];

/// Only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds to it; negative to take away.
    pub fn add(&self, difference: i64) {
        self.0.fetch_add(difference, Ordering::Relaxed);
    }

    /// One more, until the guard is dropped.
    pub fn enter(&self) -> Entered<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Entered(self)
    }
}

/// Counts in a [`Gauge`] as long as it lives.
#[must_use]
#[derive(Debug)]
pub struct Entered<'a>(&'a Gauge);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long something took, by [`BUCKETS`].
#[derive(Debug, Default)]
pub struct Histogram {
    /// How many fell into each bucket alone; the last is for what is above all bounds.
    counts: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.partition_point(|bound| *bound < seconds);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// The sum in seconds, and how many fell into each bucket alone.
    pub fn read(&self) -> (f64, Vec<u64>) {
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        let sum = Duration::from_nanos(self.nanos.load(Ordering::Relaxed));
        (sum.as_secs_f64(), counts)
    }
}

/// One `T` for each value of a label that only the code chooses, so that they are few: at most
/// `N`. Finding one is a walk over a few words; nothing is ever removed.
#[derive(Debug)]
pub struct Labelled<T, const N: usize> {
    slots: [Slot<T>; N],
    /// For values beyond the limit, which a release should not have.
    other: T,
}

#[derive(Debug, Default)]
struct Slot<T> {
    label: OnceLock<&'static str>,
    cell: T,
}

impl<T: Default, const N: usize> Default for Labelled<T, N> {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot {
                label: OnceLock::new(),
                cell: T::default(),
            }),
            other: T::default(),
        }
    }
}

impl<T, const N: usize> Labelled<T, N> {
    /// The cell of this label.
    pub fn of(&self, label: &'static str) -> &T {
        for slot in &self.slots {
            if *slot.label.get_or_init(|| label) == label {
                return &slot.cell;
            }
        }
        &self.other
    }

    /// Those that were used, by label.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &T)> {
        self.slots
            .iter()
            .map_while(|slot| Some((*slot.label.get()?, &slot.cell)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(100));
        histogram.observe(Duration::from_micros(101));
        histogram.observe(Duration::from_secs(3600));
        let (sum, counts) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[BUCKETS.len()]), (1, 1, 1));
        assert!((sum - 3_600.000_201).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn labels_keep_their_cells() {
        let cells: Labelled<Counter, 2> = Labelled::default();
        for label in ["a", "b", "a", "c", "c", "a"] {
            cells.of(label).increment();
        }
        let seen: Vec<_> = cells
            .iter()
            .map(|(label, cell)| (label, cell.get()))
            .collect();
        assert_eq!(seen, [("a", 3), ("b", 1)]);
        assert_eq!(cells.other.get(), 2);
    }

    #[test]
    fn a_gauge_counts_guards() {
        let gauge = Gauge::default();
        let one = gauge.enter();
        let two = gauge.enter();
        assert_eq!(gauge.get(), 2);
        drop((one, two));
        assert_eq!(gauge.get(), 0);
    }
}
