//! The parts that work, put together from the state and the configuration: tokens, enrolments,
//! approvals, merchants.
//!
//! What was approved before is read back here, before a request can come. Nothing is served yet.

use std::sync::Arc;

use super::failure::Failure;
use super::state::State;
use crate::audit::Event;
use crate::base::Clock;
use crate::config::daemon::Config;
use crate::consent::Asker;
use crate::device::Devices;
use crate::enrol::Enroller;
use crate::merchants::Merchants;
use crate::policy::{Policies, PolicySet};
use crate::signing::Pipeline;

/// The working parts.
pub struct Assembly {
    /// The tokens; their workers are being started.
    pub devices: Devices,
    /// Enrolments.
    pub enroller: Arc<Enroller>,
    /// Asks the person.
    pub asker: Asker,
    /// Approvals, and the policy they are decided by.
    pub pipeline: Pipeline,
    /// WeChat Pay merchants.
    pub merchants: Merchants,
    /// How many challenges of before are remembered.
    remembered: usize,
}

impl Assembly {
    /// Starts the tokens' workers, and reads back what was approved before.
    pub async fn build(
        config: &Config,
        policy: PolicySet,
        state: &State,
        clock: &Clock,
    ) -> Result<Self, Failure> {
        let directory = &config.state_directory;
        let (audit, registry) = (&state.audit, &state.registry);
        let devices = Devices::start(config.devices(), directory, clock.clone())
            .await
            .map_err(Failure::device)?;
        let enroller = Enroller::new(
            directory,
            devices.clone(),
            registry.clone(),
            audit.clone(),
            clock.clone(),
        )
        .map_err(Failure::state)?;
        let asker = Asker::start(config.consent.clone());
        devices.ask_with(asker.clone());
        let pipeline = Pipeline::new(
            devices.clone(),
            registry.clone(),
            audit.clone(),
            asker.clone(),
            Policies::new(policy),
            clock.clone(),
            crate::api::problem::code_of,
        );
        // Without the memory of what was approved, a challenge could be approved twice.
        let remembered = pipeline.restore(&state.recovered).map_err(Failure::state)?;
        let merchants = Merchants::open(
            directory,
            devices.clone(),
            registry.clone(),
            audit.clone(),
            pipeline.policies().clone(),
            clock.clone(),
            crate::api::problem::code_of_merchant,
        )
        .map_err(Failure::state)?;
        merchants
            .restore(&state.recovered)
            .map_err(Failure::state)?;
        Ok(Self {
            devices,
            enroller: Arc::new(enroller),
            asker,
            pipeline,
            merchants,
            remembered,
        })
    }

    /// Records that the daemon starts, and waits until that is durable.
    pub async fn record_start(&self, state: &State) -> Result<(), Failure> {
        let body = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "computer": state.registry.computer(),
            "remembered": self.remembered,
            "policy": self.pipeline.policies().current().digest(),
        });
        let event = Event::new("start", None, &body).map_err(Failure::audit)?;
        let pending = state.audit.append(event).map_err(Failure::audit)?;
        pending.durable().await.map_err(Failure::audit)?;
        Ok(())
    }
}
