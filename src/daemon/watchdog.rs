//! The service manager's watchdog, fed only while the tokens sign.
//!
//! Three times in each period that the manager allows, every token that says it is ready signs a
//! self-test with a key of a certificate in force; the signature is verified and thrown away. The
//! manager is told that all is well if one of them signed, or if there was nothing to try: no
//! token, none ready, no certificate yet. So a daemon whose event loop or device layer hangs is
//! restarted, and a token that is missing, locked or slow stops nothing but itself: its worker is
//! replaced by its supervisor, without a restart that would cut off the others.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::manager::{self, Notice};
use crate::base::Clock;
use crate::base::ids::random;
use crate::base::key::Scheme;
use crate::base::pkcs11::{KeyRef, TokenId};
use crate::device::{DeviceError, Devices, TokenState};
use crate::enrol::Registry;
use crate::enrol::Standing;
use crate::policy::{self, Purpose, SELF_TEST_PREFIX};
use crate::telemetry::Chain;

/// How a token did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Signed,
    Failed,
}

/// Feeds the watchdog.
pub struct Watchdog {
    period: Duration,
    devices: Devices,
    registry: Registry,
    clock: Clock,
}

impl Watchdog {
    /// `None` where the service manager did not ask for it (`$WATCHDOG_USEC`).
    pub fn wanted(devices: &Devices, registry: &Registry, clock: &Clock) -> Option<Self> {
        Some(Self {
            period: sd_notify::watchdog_enabled()? / 3,
            devices: devices.clone(),
            registry: registry.clone(),
            clock: clock.clone(),
        })
    }

    /// Runs until it is aborted.
    pub async fn run(self) {
        let mut turns = tokio::time::interval(self.period);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            if let Ok(true) = tokio::time::timeout(self.period, self.is_well()).await {
                manager::tell(Notice::Alive);
            } else {
                tracing::error!("no token signs its self-test; the watchdog is not fed");
            }
        }
    }

    async fn is_well(&self) -> bool {
        let mut tests = JoinSet::new();
        for (token, (key, scheme)) in self.candidates().await {
            let devices = self.devices.clone();
            tests.spawn(async move { self_test(&devices, token, &key, scheme).await });
        }
        let mut outcomes = Vec::new();
        while let Some(ended) = tests.join_next().await {
            match ended {
                Ok(outcome) => outcomes.extend(outcome),
                Err(error) => {
                    tracing::error!(%error, "a self-test broke off");
                    outcomes.push(Outcome::Failed);
                }
            }
        }
        well(&outcomes)
    }

    /// For each token that is ready, a key of a certificate in force.
    async fn candidates(&self) -> HashMap<TokenId, (KeyRef, Scheme)> {
        let now = self.clock.now();
        let snapshot = self.registry.snapshot();
        let mut candidates = HashMap::new();
        for token in self.devices.tokens().await {
            if token.state != TokenState::Ready {
                continue;
            }
            let key = snapshot.certificates().iter().find(|installed| {
                installed.key.token == token.id
                    && snapshot.standing(installed, now) == Standing::Active
            });
            if let Some(installed) = key {
                candidates.insert(token.id, (installed.key.clone(), installed.scheme));
            }
        }
        candidates
    }
}

/// One token's self-test; `None` where it says nothing about the token.
async fn self_test(
    devices: &Devices,
    token: TokenId,
    key: &KeyRef,
    scheme: Scheme,
) -> Option<Outcome> {
    let mut message = SELF_TEST_PREFIX.to_vec();
    message.extend_from_slice(&random::<32>());
    let permit = match policy::own(key, Purpose::SelfTest) {
        Ok(permit) => permit,
        Err(refusal) => {
            tracing::error!(?refusal, "the self-test is not permitted");
            return Some(Outcome::Failed);
        }
    };
    match devices.sign(permit, scheme, &message).await {
        Ok(_) => Some(Outcome::Signed),
        // It has more work than it can take, and does it.
        Err(DeviceError::Busy { .. }) => Some(Outcome::Signed),
        Err(error) => {
            tracing::warn!(%token, error = %Chain(&error), "a token failed its self-test");
            // Taken out, locked, or its worker being replaced: then it is not ready any more.
            let ready = devices
                .tokens()
                .await
                .iter()
                .any(|status| status.id == token && status.state == TokenState::Ready);
            ready.then_some(Outcome::Failed)
        }
    }
}

/// Whether the outcomes are those of a daemon that works.
fn well(outcomes: &[Outcome]) -> bool {
    outcomes.is_empty() || outcomes.contains(&Outcome::Signed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_that_signs_is_enough_and_so_is_none_to_try() {
        assert!(well(&[]));
        assert!(well(&[Outcome::Failed, Outcome::Signed]));
        assert!(!well(&[Outcome::Failed, Outcome::Failed]));
    }
}
