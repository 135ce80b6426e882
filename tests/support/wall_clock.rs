//! A wall clock of its own for the programs that a test starts, by libfaketime.

use std::path::{Path, PathBuf};

/// Where Debian's libfaketime is.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// Whether timers step with the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timers {
    /// Only the wall clock steps, as when somebody sets it.
    Real,
    /// Both step. A program sees that its timers have run out when something wakes it.
    Step,
}

/// A wall clock that programs started with it share, and that is set by hand.
pub struct WallClock {
    offset: PathBuf,
    timers: Timers,
}

impl WallClock {
    /// Whether libfaketime is missing; says so.
    pub fn is_missing() -> bool {
        let is_missing = !Path::new(FAKETIME).exists();
        if is_missing {
            println!("skipped: {FAKETIME} is not installed");
        }
        is_missing
    }

    /// A clock that is right; its file is in `directory`.
    pub fn new(directory: &Path, timers: Timers) -> Self {
        let clock = Self {
            offset: directory.join("offset"),
            timers,
        };
        clock.set(0);
        clock
    }

    /// Sets it to so many seconds from now.
    pub fn set(&self, seconds: i64) {
        // Whole or not at all: programs read it at any time.
        let next = self.offset.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}\n")).unwrap();
        std::fs::rename(&next, &self.offset).unwrap();
    }

    /// What a program has to have in its environment.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let mut environment = vec![
            ("LD_PRELOAD", FAKETIME.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.offset.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
        ];
        if self.timers == Timers::Real {
            environment.push(("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()));
        }
        environment
    }
}
