//! Delays that double: how long to wait after the first failure, the second, and so on.

use std::time::Duration;

/// The delay after failure number `nth`, from 1: `first`, doubled each time, at most `longest`.
/// None where nothing has failed yet.
pub fn doubling(nth: i64, first: Duration, longest: Duration) -> Duration {
    match u32::try_from(nth.clamp(0, 17)) {
        // After 17 it is 65,536 times the first, which is past every longest that anybody waits.
        Ok(nth @ 1..) => first.saturating_mul(1 << (nth - 1)).min(longest),
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let (first, longest) = (Duration::from_secs(5), Duration::from_secs(3600));
        let seconds = |nth| doubling(nth, first, longest).as_secs();
        assert_eq!(
            [i64::MIN, -1, 0, 1, 2, 10, 11, 20, i64::MAX].map(seconds),
            [0, 0, 0, 5, 10, 2560, 3600, 3600, 3600]
        );
        assert_eq!(doubling(3, Duration::MAX, longest), longest);
    }
}
