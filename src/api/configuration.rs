//! What is in force of the configuration, for whoever asks the daemon.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::types::{ConfigurationStatus, RefusedConfiguration};
use crate::telemetry::metrics::metrics;

/// A handle on the state; the part of the program that reads the files writes it.
#[derive(Debug, Clone)]
pub struct Configuration(Arc<Mutex<ConfigurationStatus>>);

impl Configuration {
    /// As it was read at the start.
    pub fn new(files: Vec<String>, now: Timestamp) -> Self {
        metrics().config_time.set(now.as_second());
        Self(Arc::new(Mutex::new(ConfigurationStatus {
            files,
            read: time(now),
            needs_restart: Vec::new(),
            refused: None,
        })))
    }

    /// It was read again; `needs_restart` are the keys that changed and cannot change now.
    pub fn adopted(&self, files: Vec<String>, needs_restart: Vec<String>, now: Timestamp) {
        metrics().reloads.of("adopted").increment();
        metrics().config_time.set(now.as_second());
        *self.lock() = ConfigurationStatus {
            files,
            read: time(now),
            needs_restart,
            refused: None,
        };
    }

    /// It was read again and changed nothing, for this reason.
    pub fn refused(&self, reason: String, now: Timestamp) {
        metrics().reloads.of("refused").increment();
        self.lock().refused = Some(RefusedConfiguration {
            at: time(now),
            reason,
        });
    }

    /// As it is now.
    pub fn status(&self) -> ConfigurationStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ConfigurationStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn time(at: Timestamp) -> String {
    format!("{at:.0}")
}
