//! What is on disk, opened bottom up: the audit trail, who is registered, what is installed, and the
//! local authority with the doors' certificate.
//!
//! No port is bound and no token is touched here; what is made of it is in `assembly`.

use std::sync::Arc;

use super::certificate::DoorCertificate;
use super::failure::Failure;
use crate::api::clients::Clients;
use crate::api::local_ca::LocalCa;
use crate::audit::{Audit, Recovered};
use crate::base::Clock;
use crate::base::files;
use crate::config::daemon::Config;
use crate::enrol::Registry;

/// The open state directory.
pub struct State {
    /// The audit trail.
    pub audit: Audit,
    /// What was in it when it was opened.
    pub recovered: Recovered,
    /// The registered clients.
    pub clients: Clients,
    /// What is installed, and what this computer is.
    pub registry: Registry,
    /// The authority that certifies clients.
    pub local_ca: Arc<LocalCa>,
    /// What the doors show.
    pub certificate: DoorCertificate,
}

impl State {
    /// Opens all of it; the directory and what is missing in it are made.
    pub fn open(config: &Config, clock: &Clock) -> Result<Self, Failure> {
        let directory = &config.state_directory;
        files::private_directory(directory).map_err(Failure::state)?;
        let trail = directory.join("audit");
        let (audit, recovered) =
            Audit::open(&trail, config.audit.clone(), clock.clone()).map_err(Failure::audit)?;
        if recovered.beyond_head > 0 || recovered.torn.is_some() {
            tracing::warn!(
                records = recovered.beyond_head,
                torn_bytes = recovered.torn,
                "the audit trail was repaired after a crash"
            );
        }
        let clients = Clients::open(&directory.join("clients.json")).map_err(Failure::state)?;
        let registry = Registry::open(directory).map_err(Failure::state)?;
        let local_ca = LocalCa::open(&directory.join("local-ca"), clock.now())
            .map(Arc::new)
            .map_err(Failure::state)?;
        let certificate =
            DoorCertificate::new(local_ca.clone(), clock.clone()).map_err(Failure::state)?;
        Ok(Self {
            audit,
            recovered,
            clients,
            registry,
            local_ca,
            certificate,
        })
    }
}
