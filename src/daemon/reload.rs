//! Reading the configuration again while the daemon runs, on SIGHUP.
//!
//! A file that is refused changes nothing, nor does one whose policy rules are: the reason is
//! logged, and the daemon goes on with what it had. Of a good file, what can change while requests
//! are served changes at once: policy and the level of the log. The log names what takes a restart,
//! which is everything that is opened or bound at the start.
//!
//! An administrator who reloads policy over the control socket gets that part alone.

use std::path::PathBuf;

use crate::api::routes::{App, LoadPolicy};
use crate::base::ids::RequestId;
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
    pub async fn run(&mut self, app: &App) {
        let read = match Config::load(&self.path) {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "the configuration was refused; nothing changed");
                return;
            }
        };
        let by = serde_json::json!({ "signal": "SIGHUP" });
        match app.reload(RequestId::random(), by).await {
            Ok(answer) => {
                let changes = &answer.changes;
                tracing::info!(
                    added = ?changes.added,
                    removed = ?changes.removed,
                    changed = ?changes.changed,
                    limits_changed = changes.limits_changed,
                    "policy read again"
                );
                for warning in &answer.policy.warnings {
                    tracing::warn!(%warning, "policy");
                }
                self.adopt(&read);
            }
            Err(problem) => tracing::error!(%problem, "the policy was refused; nothing changed"),
        }
    }

    /// What reads the policy of the file, and nothing else of it.
    pub fn policy_loader(&self) -> LoadPolicy {
        let path = self.path.clone();
        Box::new(move || {
            let config = Config::load(&path)?;
            Ok(config.policy.load()?)
        })
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
