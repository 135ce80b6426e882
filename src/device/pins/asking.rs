//! Asking the person for a token's PIN when it is needed.
//!
//! A window appears because a request needs the token, or because a person asked for it with
//! `opcert token unlock --ask`; never because a token is there, and never for what the daemon does
//! on its own. What is typed goes to the token once. A PIN that was refused blocks, so the requests
//! that follow end without a window, until a person asks: that window says what the token said.
//! Somebody who closes the window is left in peace for a minute.
//!
//! One window for a token: others who need it wait for its end, and only for that. Whoever asked
//! and goes away takes the window along.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::base::pkcs11::TokenId;
use crate::consent::{Asker, ConsentError, TokenPin};
use crate::device::Devices;
use crate::device::config::{PinSource, TokenConfig};
use crate::device::error::DeviceError;
use crate::device::frames::{LastTry, UnlockOutcome};
use crate::device::supervisor::handle::Module;
use crate::device::supervisor::view::{Reason, TokenView};
use crate::device::tokens::TokenState;

/// After a person closed the window no request opens another for so long.
const PEACE: Duration = Duration::from_secs(60);

/// Who may be asked, and who is being.
#[derive(Default)]
pub struct Asking {
    asker: OnceLock<Asker>,
    tokens: Mutex<HashMap<TokenId, Arc<tokio::sync::Mutex<Asked>>>>,
}

/// What is known of the windows for one token; held while one is open.
#[derive(Default)]
struct Asked {
    declined: Option<Instant>,
}

impl Devices {
    /// Has people asked by `asker` where a token's `pin-source` says so. Only the first counts.
    pub fn ask_with(&self, asker: Asker) {
        let _second = self.0.asking.asker.set(asker).is_err();
    }

    /// Asks for the PIN of a token because a person wants that, whatever its source. The window
    /// says why the last PIN was not taken.
    pub async fn unlock_by_asking(
        &self,
        token: &TokenId,
        last_try: LastTry,
    ) -> Result<UnlockOutcome, DeviceError> {
        let module = self.module_of(token)?;
        let turn = self.0.asking.of(token);
        let mut asked = turn.lock().await;
        asked.declined = None;
        let view = view(&module, token);
        let state = view.as_ref().map(|view| view.state);
        let name = || token.to_string();
        match (state, last_try) {
            (Some(TokenState::FinalTry), LastTry::Keep) => {
                return Err(DeviceError::PinFinalTry { token: name() });
            }
            (Some(TokenState::LockedOut), _) => {
                return Err(DeviceError::PinLocked { token: name() });
            }
            _ => {}
        }
        if self.by_hand(token)?.protected_path {
            // Whoever wants it is before the device.
            return self.unlock_by_hand(token, last_try).await;
        }
        let before = view.and_then(|view| match view.reason {
            Some(Reason::PinBlocked(reason)) => Some(reason),
            _ => None,
        });
        self.ask(token, before, last_try, &mut asked).await
    }

    /// Asks for the PIN of a token that a request needs, if its source says so; whether that was
    /// of use shows in the view.
    pub(in crate::device) async fn ask_if_configured(
        &self,
        token: &TokenId,
    ) -> Result<(), DeviceError> {
        let module = self.module_of(token)?;
        let turn = self.0.asking.of(token);
        let mut asked = turn.lock().await;
        // Somebody else's window may have brought the PIN, or its refusal.
        let waits = view(&module, token).is_some_and(|view| {
            let blocked = matches!(view.reason, Some(Reason::PinBlocked(_)));
            view.state == TokenState::PinNeeded && !blocked
        });
        if !waits {
            return Ok(());
        }
        if asked.declined.is_some_and(|when| when.elapsed() < PEACE) {
            return Err(DeviceError::PinDeclined {
                token: token.to_string(),
                reason: "a person closed the window that asked for it".into(),
            });
        }
        self.ask(token, None, LastTry::Keep, &mut asked)
            .await
            .map(drop)
    }

    async fn ask(
        &self,
        token: &TokenId,
        before: Option<String>,
        last_try: LastTry,
        asked: &mut Asked,
    ) -> Result<UnlockOutcome, DeviceError> {
        let declined = |error: &ConsentError| DeviceError::PinDeclined {
            token: token.to_string(),
            reason: error.to_string(),
        };
        let Some(asker) = self.0.asking.asker.get() else {
            return Err(DeviceError::PinNeeded {
                token: token.to_string(),
            });
        };
        let question = TokenPin {
            label: token.label.clone(),
            serial: token.serial.clone(),
            before,
        };
        if self.by_hand(token)?.protected_path {
            return match asker.token_by_hand(&question).await {
                Ok(()) => self.unlock_by_hand(token, last_try).await,
                Err(error) => {
                    asked.note(&error);
                    Err(declined(&error))
                }
            };
        }
        match asker.token_pin(&question).await {
            Ok(pin) => self.unlock(token, pin, last_try).await,
            Err(error) => {
                asked.note(&error);
                Err(declined(&error))
            }
        }
    }
}

impl Asked {
    fn note(&mut self, error: &ConsentError) {
        if *error == ConsentError::Denied {
            self.declined = Some(Instant::now());
        }
    }
}

impl Asking {
    /// Whether a window could be opened for a token of this module.
    pub fn is_for(&self, module: &Module, token: &TokenId) -> bool {
        let source = module.configured(token).and_then(TokenConfig::source);
        self.asker.get().is_some() && source == Some(PinSource::Pinentry)
    }

    fn of(&self, token: &TokenId) -> Arc<tokio::sync::Mutex<Asked>> {
        self.tokens
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(token.clone())
            .or_default()
            .clone()
    }
}

fn view(module: &Module, token: &TokenId) -> Option<TokenView> {
    module.view.borrow().token(token).cloned()
}
