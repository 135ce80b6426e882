//! Operations that need a login of their own: of keys that want one for each use
//! (`CKA_ALWAYS_AUTHENTICATE`), and of tokens that are logged in per operation only.
//!
//! Each is a try of the PIN like any other and goes through the [`PinGuard`]: nothing is tried
//! that is blocked, the try is made durable before, the flags are read by the worker right before,
//! and a PIN that was refused is forgotten and never tried again by the machine. That costs two
//! writes to the disk for each such operation, and one at a time for each token, callers in turns.
//!
//! Whoever asked may go away while waiting for the turn; what has begun is seen to its end, as an
//! attempt left half way would block the PIN until a person comes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, mpsc};

use super::guard::{PinGuard, PinOrigin, Settled};
use super::{BY_HAND, Pins};
use crate::base::pkcs11::TokenId;
use crate::device::config::LoginPolicy;
use crate::device::error::{DeviceError, unexpected};
use crate::device::fair::{Gate, Party, Pass};
use crate::device::frames::{Answer, LoginOutcome, PinBytes, Verb};
use crate::device::link::{CallError, Link};
use crate::device::supervisor::command::Command;

/// One operation with its login.
pub struct PerUse {
    pub token: TokenId,
    pub link: Arc<Link>,
    pub guard: Arc<PinGuard>,
    pub pins: Pins,
    /// The supervisor, to be told of a refusal.
    pub supervisor: mpsc::Sender<Command>,
    /// Where those wait who want to use this token in this way.
    pub gate: Arc<Gate>,
    /// Whether the user is logged in before and out after.
    pub login: LoginPolicy,
    /// Whether the token asks for its PIN itself (`CKF_PROTECTED_AUTHENTICATION_PATH`).
    pub protected_path: bool,
}

impl PerUse {
    /// Has the worker do `verb` for `party` with a login of its own. The wait for its turn takes at
    /// most `budget`; the operation itself then has `budget`, or the time that a person needs.
    pub async fn run(
        self,
        party: Party,
        verb: Verb,
        budget: Duration,
    ) -> Result<Result<Answer, CallError>, DeviceError> {
        let turn = async {
            let pass = self.gate.clone().enter(party).await?;
            Some((pass, self.guard.turn(&self.token).await))
        };
        let Ok(Some(turn)) = tokio::time::timeout(budget, turn).await else {
            return Ok(Err(CallError::Busy));
        };
        tokio::spawn(self.in_turn(turn, verb, budget))
            .await
            // The runtime ends, or the task panicked; the guard's entry stays.
            .unwrap_or(Err(DeviceError::Stopped))
    }

    async fn in_turn(
        self,
        _turn: (Pass, OwnedMutexGuard<()>),
        verb: Verb,
        budget: Duration,
    ) -> Result<Result<Answer, CallError>, DeviceError> {
        let name = self.token.to_string();
        let (pin, origin, budget) = match self.protected_path {
            // A person supplies it.
            true => (None, None, budget.max(BY_HAND)),
            false => match self.pins.get(&self.token) {
                Some(pin) => (Some(pin), Some(PinOrigin::Kept), budget),
                None => {
                    let blocked = self.guard.blocked(&self.token, PinOrigin::Kept).await;
                    return Err(match blocked {
                        Some(reason) => DeviceError::PinBlocked {
                            token: name,
                            reason,
                        },
                        None => DeviceError::PinNeeded { token: name },
                    });
                }
            },
        };
        let attempt = self.guard.begin(&self.token, origin).await?;
        let verb = Verb::WithPin {
            pin: pin.as_ref().map(|pin| PinBytes::new(pin.expose())),
            login: self.login,
            verb: Box::new(verb),
        };
        let outcome = match self.link.call(verb, budget).await {
            Ok(Answer::Login(outcome)) => outcome,
            // Not known whether a try was spent: the entry stays.
            Err(error @ CallError::Ended(_)) => {
                self.pins.remove(&self.token);
                return Ok(Err(error));
            }
            // The login succeeded, or there was none.
            done => {
                self.guard.settle(attempt, Settled::NotTried).await?;
                return Ok(done);
            }
        };
        let (settled, error) = self.refused(outcome);
        if let Settled::Refused(_) = settled {
            self.pins.remove(&self.token);
        }
        self.guard.settle(attempt, settled.clone()).await?;
        if settled != Settled::NotTried || matches!(error, DeviceError::PinFinalTry { .. }) {
            self.tell(&error);
        }
        Err(error)
    }

    /// What a login that did not succeed means.
    fn refused(&self, outcome: LoginOutcome) -> (Settled, DeviceError) {
        let token = self.token.to_string();
        let (code, error) = match outcome {
            LoginOutcome::Wrong { code } | LoginOutcome::Uncertain { code } => {
                (code.clone(), DeviceError::PinWrong { token, code })
            }
            LoginOutcome::Locked => (
                "CKR_PIN_LOCKED".to_owned(),
                DeviceError::PinLocked { token },
            ),
            LoginOutcome::FinalTry => {
                return (Settled::NotTried, DeviceError::PinFinalTry { token });
            }
            LoginOutcome::NotTried { code } => {
                let function = "C_Login".to_owned();
                let error = DeviceError::Pkcs11 {
                    token,
                    function,
                    code,
                };
                return (Settled::NotTried, error);
            }
            // Only a login that did not succeed is an answer.
            LoginOutcome::Ok | LoginOutcome::Already => {
                return (Settled::NotTried, unexpected(&self.token.module));
            }
        };
        if self.protected_path {
            // What somebody mistyped on the device says nothing about what the machine may try.
            return (Settled::NotTried, error);
        }
        (Settled::Refused(code), error)
    }

    /// A supervisor with a full inbox learns of it from the token's flags and the guard.
    fn tell(&self, error: &DeviceError) {
        let (token, error) = (self.token.clone(), error.clone());
        let _full = self
            .supervisor
            .try_send(Command::PinRefused { token, error });
    }
}
