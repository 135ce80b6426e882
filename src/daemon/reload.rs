//! Reading the configuration again while the daemon runs, on SIGHUP.
//!
//! Files that are refused change nothing, nor do those whose policy rules are: the reason is
//! logged and shown by `opcert status`, and the daemon goes on with what it had. Of good files,
//! what can change while requests are served changes at once: policy, modules and tokens, limits of
//! doors, consent, the audit trail's sizes, copy and checkpoints, the group of the control socket, the
//! level of the log, the registered clients. A copy is opened anew each time, so that its file may be
//! moved away. What takes a restart is named: directories, addresses and the worker, as a daemon at
//! other places is another daemon, and the format of the log, as a request that is being served has
//! its fields in the old one.
//!
//! An administrator who reloads policy over the control socket gets that part alone.

use std::path::PathBuf;

use jiff::Timestamp;

use super::bind::{ControlDoor, check_group};
use super::checkpoints::Checkpoints;
use crate::api::configuration::Configuration;
use crate::api::routes::{App, LoadPolicy};
use crate::audit::{Audit, AuditError, Event, Prepared};
use crate::base::ids::RequestId;
use crate::config::Loaded;
use crate::config::daemon::Config;
use crate::consent::Asker;
use crate::device::Devices;
use crate::http::Server;
use crate::telemetry::{self, Chain};

/// The configuration that is in force, and what it can be changed through.
pub struct Reload {
    path: PathBuf,
    /// What it was read from.
    files: Vec<String>,
    running: Config,
    log: telemetry::Handle,
}

/// What runs by it.
pub struct Live<'a> {
    pub app: &'a App,
    pub server: &'a Server,
    pub asker: &'a Asker,
    pub audit: &'a Audit,
    pub devices: &'a Devices,
    pub checkpoints: &'a Checkpoints,
    pub control: &'a ControlDoor,
    pub configuration: &'a Configuration,
}

/// The names of the files that were read.
pub fn files(loaded: &Loaded<Config>) -> Vec<String> {
    loaded
        .files()
        .map(|file| file.display().to_string())
        .collect()
}

impl Reload {
    /// `running` was read from `path` and what is laid over it at the start.
    pub fn new(path: PathBuf, files: Vec<String>, running: Config, log: telemetry::Handle) -> Self {
        Self {
            path,
            files,
            running,
            log,
        }
    }

    /// What is shown of it, before it is read again.
    pub fn state(&self, now: Timestamp) -> Configuration {
        Configuration::new(self.files.clone(), now)
    }

    /// Reads the files again.
    pub async fn run(&mut self, live: &Live<'_>) {
        let now = live.app.clock().now();
        let refuse = |error: &dyn std::error::Error| {
            let reason = Chain(error).to_string();
            tracing::error!(
                error = reason,
                "the configuration was refused; nothing changed"
            );
            live.configuration.refused(reason, now);
        };
        let loaded = match Config::load_layers(&self.path) {
            Ok(loaded) => loaded,
            Err(error) => return refuse(&error),
        };
        let read = &loaded.config;
        if let Err(error) = Devices::check(&read.module) {
            return refuse(&error);
        }
        if let Err(error) = check_group(read.control.group.as_deref()) {
            return refuse(&error);
        }
        let audit = match tokio::task::block_in_place(|| live.audit.prepare(read.audit.clone())) {
            Ok(audit) => audit,
            Err(error) => return refuse(&error),
        };
        let by = serde_json::json!({ "signal": "SIGHUP" });
        match live.app.reload(RequestId::random(), by).await {
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
                self.files = files(&loaded);
                self.adopt(read, audit, live).await;
            }
            Err(problem) => {
                tracing::error!(%problem, "the policy was refused; nothing changed");
                live.configuration.refused(problem.to_string(), now);
            }
        }
    }

    /// What reads the policy of the files, and nothing else of them.
    pub fn policy_loader(&self) -> LoadPolicy {
        let path = self.path.clone();
        Box::new(move || {
            let config = Config::load(&path)?;
            Ok(config.policy.load()?)
        })
    }

    /// Takes over what can change now.
    async fn adopt(&mut self, read: &Config, audit: Prepared, live: &Live<'_>) {
        let running = &mut self.running;
        if read.log.level != running.log.level {
            self.log.set_level(read.log.level);
            running.log.level = read.log.level;
        }
        for (door, now, then) in [
            ("native", &mut running.native.limits, &read.native.limits),
            ("browser", &mut running.browser.limits, &read.browser.limits),
            ("control", &mut running.control.limits, &read.control.limits),
            ("metrics", &mut running.metrics.limits, &read.metrics.limits),
        ] {
            if now != then {
                live.server.set_limits(door, then);
                now.clone_from(then);
            }
        }
        // The door is bound at the start, or not at all.
        let (was_open, is_open) = (
            !running.browser.origins.is_empty(),
            !read.browser.origins.is_empty(),
        );
        if was_open && is_open && read.browser.origins != running.browser.origins {
            live.app.set_origins(read.browser.origins.clone());
            running.browser.origins.clone_from(&read.browser.origins);
        }
        if read.consent != running.consent {
            live.asker.reconfigure(read.consent.clone());
            running.consent.clone_from(&read.consent);
        }
        if read.module != running.module {
            match live.devices.reconfigure(read.module.clone()).await {
                Ok(changes) => {
                    tracing::info!(
                        added = ?changes.added,
                        removed = ?changes.removed,
                        changed = ?changes.changed,
                        "modules read again"
                    );
                    running.module.clone_from(&read.module);
                }
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "the modules stay as they were");
                }
            }
        }
        if read.control.group != running.control.group {
            match live.control.set_group(read.control.group.as_deref()) {
                Ok(()) => running.control.group.clone_from(&read.control.group),
                Err(error) => {
                    tracing::error!(error = %Chain(&error), "the control socket stays as it was");
                }
            }
        }
        match record_copy(live.audit, &running.audit, &read.audit).await {
            Ok(()) => {
                live.audit.reconfigure(audit);
                if read.audit.checkpoint != running.audit.checkpoint {
                    live.checkpoints.set(read.audit.checkpoint.clone()).await;
                }
                running.audit.clone_from(&read.audit);
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the audit trail's settings stay as they were");
            }
        }
        // Somebody may have put back an older file.
        match tokio::task::block_in_place(|| live.app.clients().reload()) {
            Ok(clients) => tracing::debug!(clients, "clients read again"),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "the registered clients stay as they were");
            }
        }
        let later = takes_a_restart(running, read);
        if later.is_empty() {
            tracing::info!("configuration read again");
        } else {
            tracing::warn!(
                changed = later.join(", "),
                "configuration read again; restart the daemon for what changed here"
            );
        }
        let later = later.into_iter().map(str::to_owned).collect();
        let now = live.app.clock().now();
        live.configuration.adopted(self.files.clone(), later, now);
    }
}

/// Puts a change of the second place on record, the last that the old place gets.
async fn record_copy(
    audit: &Audit,
    running: &crate::audit::Config,
    read: &crate::audit::Config,
) -> Result<(), AuditError> {
    if running.copy == read.copy {
        return Ok(());
    }
    let body = serde_json::json!({ "from": running.copy, "to": read.copy });
    let event = Event::new("audit-copy", None, &body)?;
    audit.append(event)?.durable().await?;
    Ok(())
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
        (
            "native.addresses",
            running.native.addresses == read.native.addresses,
        ),
        (
            "browser.addresses",
            running.browser.addresses == read.browser.addresses,
        ),
        (
            "browser.origins",
            running.browser.origins == read.browser.origins,
        ),
        ("control.group", running.control.group == read.control.group),
        ("audit", running.audit == read.audit),
        (
            "metrics.address",
            running.metrics.address == read.metrics.address,
        ),
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
             [audit]\ncopy = \"syslog\"\n[log]\nformat = \"json\"",
        );
        assert_eq!(
            takes_a_restart(&running, &read),
            ["state-directory", "control.group", "audit", "log.format"]
        );
    }
}
