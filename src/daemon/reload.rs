//! Reading the configuration again while the daemon runs, on SIGHUP.
//!
//! A file that is refused changes nothing: the reason is logged, and the daemon goes on with what
//! it had. Of a good file, what can change while requests are served changes at once; the log
//! names what takes a restart, which is everything that is opened or bound at the start.

use std::path::PathBuf;

use crate::config::daemon::Config;
use crate::telemetry;

/// The configuration that is in force, and what it can be changed through.
pub struct Reload {
    path: PathBuf,
    running: Config,
    log: telemetry::Handle,
}

impl Reload {
    /// `running` was read from `path` at the start.
    pub fn new(path: PathBuf, running: Config, log: telemetry::Handle) -> Self {
        Self { path, running, log }
    }

    /// Reads the file again.
    pub fn run(&mut self) {
        match Config::load(&self.path) {
            Ok(read) => self.adopt(&read),
            Err(error) => {
                tracing::error!(%error, "the configuration was refused; nothing changed");
            }
        }
    }

    fn adopt(&mut self, read: &Config) {
        if read.log.level != self.running.log.level {
            self.log.set_level(read.log.level);
            self.running.log.level = read.log.level;
        }
        let later = takes_a_restart(&self.running, read);
        if later.is_empty() {
            tracing::info!("configuration read again");
        } else {
            tracing::warn!(
                changed = later.join(", "),
                "configuration read again; restart the daemon for what changed here"
            );
        }
    }
}

/// The keys and tables that differ and cannot change while the daemon runs.
fn takes_a_restart(running: &Config, read: &Config) -> Vec<&'static str> {
    [
        (
            "state-directory",
            running.state_directory == read.state_directory,
        ),
        (
            "runtime-directory",
            running.runtime_directory == read.runtime_directory,
        ),
        ("native", running.native == read.native),
        ("control", running.control == read.control),
        ("audit", running.audit == read.audit),
        ("consent", running.consent == read.consent),
        ("log.format", running.log.format == read.log.format),
        ("worker", running.worker == read.worker),
        ("module", running.module == read.module),
    ]
    .into_iter()
    .filter_map(|(key, same)| (!same).then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_takes_a_restart_is_named() {
        let running = config("");
        assert!(takes_a_restart(&running, &config("[log]\nlevel = \"debug\"")).is_empty());
        let read = config(
            "state-directory = \"/elsewhere\"\n[control]\ngroup = \"opcert\"\n\
             [[module]]\nname = \"a\"\npath = \"/b\"",
        );
        assert_eq!(
            takes_a_restart(&running, &read),
            ["state-directory", "control", "module"]
        );
    }
}
