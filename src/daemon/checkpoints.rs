//! The checkpoints of the daemon's audit log, as the configuration wants them now.
//!
//! What a checkpoint says, and how it is signed, is in `audit`.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::audit::{Audit, CheckpointConfig, Checkpointer};
use crate::base::Clock;
use crate::device::Devices;

/// Makes checkpoints, or none.
pub struct Checkpoints {
    audit: Audit,
    devices: Devices,
    clock: Clock,
    issuer: String,
    running: Mutex<Option<(Checkpointer, JoinHandle<()>)>>,
}

impl Checkpoints {
    /// None yet. `issuer` is who signs them.
    pub fn new(audit: Audit, devices: Devices, clock: Clock, issuer: String) -> Self {
        Self {
            audit,
            devices,
            clock,
            issuer,
            running: Mutex::default(),
        }
    }

    /// Makes them as `wanted` from now on.
    pub async fn set(&self, wanted: Option<CheckpointConfig>) {
        let mut running = self.running.lock().await;
        if let Some((checkpointer, task)) = running.take() {
            task.abort();
            checkpointer.settled().await;
        }
        *running = wanted.map(|wanted| {
            let checkpointer = Checkpointer::new(
                self.audit.clone(),
                self.devices.clone(),
                self.clock.clone(),
                self.issuer.clone(),
                wanted,
            );
            let task = tokio::spawn(checkpointer.clone().run());
            (checkpointer, task)
        });
    }

    /// Makes the last one, unless the token takes longer than `patience`.
    pub async fn end(&self, patience: Duration) {
        if let Some((checkpointer, task)) = self.running.lock().await.take() {
            task.abort();
            checkpointer.make_last(patience).await;
        }
    }
}
