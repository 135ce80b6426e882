//! Waiting for what another process, thread or the kernel brings about and tells nobody: it is
//! looked at again and again. Where there is an event to wait for, tests wait for that.

use std::time::{Duration, Instant};

/// How long things may take where no fault makes them slow.
const LIMIT: Duration = Duration::from_secs(10);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// Tries until there is a result; fails after ten seconds.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(begin.elapsed() < LIMIT, "not in time: {what}");
        std::thread::sleep(LOOK);
    }
}

/// Calls `check` until it says yes; fails after ten seconds.
pub async fn eventually(what: &str, check: impl AsyncFnMut() -> bool) {
    within(LIMIT, what, check).await;
}

/// Calls `check` until it says yes; fails after `limit`.
pub async fn within(limit: Duration, what: &str, mut check: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !check().await {
        assert!(begin.elapsed() < limit, "not in time: {what}");
        tokio::time::sleep(LOOK).await;
    }
}
