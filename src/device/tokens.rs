//! Which modules and tokens there are, how they stand, and which token a URI selects.
//!
//! Only looks: the one thing that is done here is to have an absent token looked for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Devices;
use super::config::AttestationConfig;
use super::error::DeviceError;
use super::frames::TokenFlags;
use super::sandbox::SandboxStatus;
use super::supervisor::handle::Module;
use super::supervisor::view::{Phase, overlap, selects};
use crate::base::key::{KeySpec, Scheme};
use crate::base::pkcs11::{TokenId, TokenUri};

/// How long a question about the state of things waits for a worker's first start.
const FIRST_START: Duration = Duration::from_secs(1);

/// A configured token, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenStatus {
    /// The token. While it is absent, what the configured URI says of label and serial.
    pub id: TokenId,
    /// The configured URI.
    pub uri: String,
    /// `manufacturerID`; empty while absent, like the next two.
    pub manufacturer: String,
    /// `model`.
    pub model: String,
    /// `firmwareVersion`.
    pub firmware: String,
    /// Whether it can be used.
    pub state: TokenState,
    /// Why not, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its flags when they were last read.
    pub flags: TokenFlags,
    /// The kinds of key it can generate.
    pub generates: Vec<KeySpec>,
    /// The schemes it can sign with.
    pub signs: Vec<Scheme>,
}

/// Whether a token can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TokenState {
    /// It is not there.
    Absent,
    /// Too many wrong PINs.
    LockedOut,
    /// It waits for its PIN.
    PinNeeded,
    /// One PIN try is left, which is never used from here.
    FinalTry,
    /// It signs.
    Ready,
    /// It was left to other programs; the next request takes it up again.
    Released,
    /// It is there, but the configuration or its state prevents its use.
    Degraded,
    /// Its worker is being started.
    Respawning,
    /// Its worker cannot be started, or fails again and again.
    Down,
}

/// A configured module, as it is now.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModuleStatus {
    /// The configured name.
    pub name: String,
    /// The configured path.
    pub path: String,
    /// Whether its workers are up: one for each token, unless its tokens share one.
    pub up: bool,
    /// Why not; absent too where its tokens were released and nothing is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Workers that were killed and have not ended: the kernel waits for a device on their behalf.
    /// Above a limit no new one is started.
    #[serde(default)]
    pub stuck_workers: usize,
    /// `manufacturerID`, `libraryDescription` and `libraryVersion`, once it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// How its worker is confined, once it was up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxStatus>,
    /// Whether its library tells of tokens that come and leave; otherwise its slots are looked at
    /// every second.
    #[serde(default)]
    pub slot_events: bool,
}

impl ModuleStatus {
    /// Takes in another worker of the same module: it is up where all are.
    fn add(&mut self, part: Self) {
        self.up &= part.up;
        self.reason = self.reason.take().or(part.reason);
        self.library = self.library.take().or(part.library);
        self.sandbox = self.sandbox.take().or(part.sandbox);
        self.slot_events &= part.slot_events;
    }
}

/// What a person has to do on a token itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByHand {
    /// Its PIN is typed on the device (`CKF_PROTECTED_AUTHENTICATION_PATH`).
    pub protected_path: bool,
    /// It waits for a touch before it signs, as the configuration says.
    pub touch: bool,
}

/// Waits for tokens to come, leave, or change their state.
pub struct Changes {
    devices: Devices,
    seen: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
}

impl Devices {
    /// The configured tokens as they are now, in the order of the configuration.
    pub async fn tokens(&self) -> Vec<TokenStatus> {
        let mut list = Vec::new();
        let patience = Instant::now() + FIRST_START;
        for module in self.0.modules.load_full().iter() {
            let view = module.settled(patience).await;
            let reason = match &view.phase {
                Phase::Up(_) | Phase::AtRest => None,
                Phase::Starting => Some((
                    TokenState::Respawning,
                    "the module's worker is being started".to_owned(),
                )),
                Phase::Down { reason, .. } => Some((TokenState::Down, reason.to_string())),
                Phase::Stopped => Some((TokenState::Down, DeviceError::Stopped.to_string())),
            };
            let outage = reason.as_ref().map(|(state, text)| (*state, text.as_str()));
            list.extend(view.tokens.iter().map(|token| token.status(outage)));
        }
        list
    }

    /// Tells of every change of [`Devices::tokens`] from now on.
    pub fn changes(&self) -> Changes {
        Changes {
            seen: self.0.changed.subscribe(),
            stop: self.0.stop.subscribe(),
            devices: self.clone(),
        }
    }

    /// The configured modules as they are now.
    pub async fn modules(&self) -> Vec<ModuleStatus> {
        let mut list: Vec<ModuleStatus> = Vec::new();
        let patience = Instant::now() + FIRST_START;
        for module in self.0.modules.load_full().iter() {
            let view = module.settled(patience).await;
            let reason = match &view.phase {
                Phase::Up(_) | Phase::AtRest => None,
                Phase::Starting => Some("its worker is being started".to_owned()),
                Phase::Down { reason, .. } => Some(reason.to_string()),
                Phase::Stopped => Some(DeviceError::Stopped.to_string()),
            };
            let part = ModuleStatus {
                name: module.config.name.clone(),
                path: module.config.path.display().to_string(),
                up: matches!(view.phase, Phase::Up(_)),
                reason,
                stuck_workers: module.stuck.load(Ordering::Relaxed),
                library: view.library.as_ref().map(|library| {
                    format!(
                        "{} ({}) {}",
                        library.description, library.manufacturer, library.version
                    )
                }),
                sandbox: view.sandbox.clone(),
                slot_events: match &view.phase {
                    Phase::Up(link) => link.watches_slots(),
                    Phase::Starting | Phase::AtRest | Phase::Down { .. } | Phase::Stopped => false,
                },
            };
            match list.last_mut().filter(|module| module.name == part.name) {
                Some(module) => module.add(part),
                None => list.push(part),
            }
        }
        list
    }

    /// The one configured token that `uri` selects. An absent one is looked for first.
    pub async fn select(&self, uri: &TokenUri) -> Result<TokenId, DeviceError> {
        let (mut found, mut missing) = self.matching(uri).await;
        if found.is_empty() && !missing.is_empty() {
            for module in &missing {
                module.look_again(uri.clone()).await?;
            }
            (found, missing) = self.matching(uri).await;
        }
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => match missing.first() {
                Some(module) => Err(module.outage().unwrap_or(DeviceError::TokenAbsent {
                    token: uri.to_string(),
                })),
                None => Err(DeviceError::TokenUnknown {
                    uri: uri.to_string(),
                }),
            },
            several => Err(DeviceError::TokenAmbiguous {
                uri: uri.to_string(),
                count: several.len(),
            }),
        }
    }

    /// What a person has to do on the token itself, as far as it is known now.
    pub fn by_hand(&self, token: &TokenId) -> Result<ByHand, DeviceError> {
        let module = self.module_of(token)?;
        Ok(ByHand {
            protected_path: module.protected_path(token),
            touch: module.configured(token).is_some_and(|config| config.touch),
        })
    }

    /// Whose attestation of its keys counts for a token, as the configuration says.
    pub fn attestation(&self, token: &TokenId) -> Result<Option<AttestationConfig>, DeviceError> {
        let module = self.module_of(token)?;
        let configured = module.configured(token);
        Ok(configured.and_then(|config| config.attestation.clone()))
    }

    /// Tokens present that `uri` selects, and modules with an absent one that it may select.
    async fn matching(&self, uri: &TokenUri) -> (Vec<TokenId>, Vec<Arc<Module>>) {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for module in self.0.modules.load_full().iter() {
            let path = module.config.path.to_string_lossy();
            if uri
                .module_path
                .as_ref()
                .is_some_and(|wanted| *wanted != path)
            {
                continue;
            }
            let view = module
                .settled(Instant::now() + module.config.call_timeout)
                .await;
            let mut may_come = false;
            for token in &view.tokens {
                match &token.found {
                    Some(info) if selects(uri, &module.config.name, info) => {
                        found.push(token.id.clone());
                    }
                    Some(_) => {}
                    None => may_come |= overlap(uri, &token.uri),
                }
            }
            if may_come {
                missing.push(module.clone());
            }
        }
        (found, missing)
    }
}

impl Changes {
    /// Returns the tokens after the next change; several quick ones count as one. `None` once the
    /// devices are shut down.
    pub async fn next(&mut self) -> Option<Vec<TokenStatus>> {
        let stop = &mut self.stop;
        let stopped = async {
            // An error means that the devices are gone.
            let _gone = stop.wait_for(|stop| *stop).await.is_err();
        };
        let is_changed = tokio::select! {
            // The last changes are those of the shutdown.
            biased;
            () = stopped => false,
            changed = self.seen.changed() => changed.is_ok(),
        };
        match is_changed {
            true => Some(self.devices.tokens().await),
            false => None,
        }
    }
}
