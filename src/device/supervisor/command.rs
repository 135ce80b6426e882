//! What a supervisor can be asked, and what it does about it: with a worker, and while there is none.
//!
//! Each command carries the way back to whoever asked; they may have left.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::administer::{Order, PinSettled};
use super::presence::{Found, Noticed};
use super::process::Worker;
use super::{Leave, RENEW_EVERY, Supervisor};
use crate::base::pkcs11::{TokenId, TokenUri};
use crate::base::secret::Pin;
use crate::device::error::DeviceError;
use crate::device::frames::{LastTry, UnlockOutcome};
use crate::device::link::Link;
use crate::device::pins::check::PinCheck;

/// What the supervisor can be asked.
pub enum Command {
    /// Look whether an absent token that `wanted` may select has come.
    LookAgain {
        wanted: TokenUri,
        done: oneshot::Sender<()>,
    },
    /// Log in with the PIN that worked before, unless that happened after `seen`, when the token
    /// was seen logged out.
    LogInAgain {
        token: TokenId,
        seen: Instant,
        done: oneshot::Sender<()>,
    },
    /// Log in with a PIN that a person gave, or types on the device.
    Unlock {
        token: TokenId,
        pin: Option<Pin>,
        last_try: LastTry,
        done: oneshot::Sender<Result<UnlockOutcome, DeviceError>>,
    },
    /// Ask the token whether a PIN is its own, without touching the login that is there.
    CheckPin {
        check: PinCheck,
        done: oneshot::Sender<Result<(), DeviceError>>,
    },
    /// A PIN was refused outside this task, or is not tried any more.
    PinRefused { token: TokenId, error: DeviceError },
    /// Make a token, or set a PIN.
    Administer(Box<Order>),
    /// How that ended for the PIN.
    PinSettled(PinSettled),
    /// Replace the worker once the calls under way are done: a token was made.
    Renew,
    /// Let go of a token until somebody needs it.
    Release {
        token: TokenId,
        done: oneshot::Sender<()>,
    },
    /// Take up a released token: somebody needs it.
    TakeUp {
        token: TokenId,
        done: oneshot::Sender<()>,
    },
    /// The module answered that it is unwell: replace the worker behind `link`.
    Replace { link: Arc<Link>, why: String },
}

impl Supervisor {
    /// Does what is asked, with a worker that is up. `Some` if that one is to be given up.
    pub async fn obey(&mut self, command: Command, worker: &Worker) -> Option<Leave> {
        let link = worker.link();
        match command {
            Command::Replace { link: failed, why } => {
                (Arc::ptr_eq(&failed, link) && self.may_renew()).then_some(Leave::Ended(why))
            }
            Command::PinRefused { token, error } => {
                self.note_refusal(&token, &error);
                None
            }
            Command::LookAgain { wanted, done } => self.look_for(link, wanted, done).await,
            Command::LogInAgain { token, seen, done } => {
                let fresh = self.logged_in.get(&token).is_some_and(|last| *last > seen);
                let failed = match fresh {
                    true => None,
                    false => self.log_in_again(link, &token).await,
                };
                match failed {
                    Some(why) if self.may_renew() => {
                        self.looking.push(done);
                        Some(Leave::Ended(why))
                    }
                    Some(_) | None => answer(done, ()),
                }
            }
            Command::Unlock {
                token,
                pin,
                last_try,
                done,
            } => answer(done, self.unlock(link, &token, pin, last_try).await),
            Command::Administer(order) => {
                self.administer(*order).await;
                None
            }
            Command::PinSettled(settled) => self.pin_settled(link, settled).await,
            Command::Renew => Some(Leave::LookAgain),
            Command::Release { token, done } => {
                self.released.insert(token);
                Some(Leave::Release(done))
            }
            Command::TakeUp { token, done } => {
                self.take_up_again(link, &token).await;
                answer(done, ())
            }
            Command::CheckPin { check, done } => {
                self.check_pin(check, done).await;
                None
            }
        }
    }

    /// Answers while there is no worker, because of `reason`.
    pub fn decline(&mut self, command: Command, reason: &DeviceError) {
        match command {
            Command::Unlock { done, .. } => {
                let _gone = done.send(Err(reason.clone()));
            }
            Command::CheckPin { done, .. } => {
                let _gone = done.send(Err(reason.clone()));
            }
            Command::LookAgain { done, .. }
            | Command::LogInAgain { done, .. }
            // Without a worker there is nothing to let go of.
            | Command::Release { done, .. } => {
                let _gone = done.send(());
            }
            Command::TakeUp { token, done } => {
                self.released.remove(&token);
                let _gone = done.send(());
            }
            Command::Administer(order) => order.refuse(reason.clone()),
            Command::PinSettled(PinSettled { token, pin, .. }) => {
                // The next worker logs in with it.
                if let Some(pin) = pin {
                    self.pins.insert(token, pin);
                }
            }
            // The next worker is a new one.
            Command::Renew | Command::Replace { .. } | Command::PinRefused { .. } => {}
        }
    }

    /// Looks for an absent token; where it is not found, another worker may find it.
    async fn look_for(
        &mut self,
        link: &Link,
        wanted: TokenUri,
        done: oneshot::Sender<()>,
    ) -> Option<Leave> {
        let due = self
            .looked_again
            .is_none_or(|last| last.elapsed() >= RENEW_EVERY);
        match self.look_again(link, Some(&wanted), Noticed::Request).await {
            Ok(Found::No) if due => {
                self.looked_again = Some(Instant::now());
                self.looking.push(done);
                Some(Leave::LookAgain)
            }
            Ok(Found::Yes | Found::No) | Err(_) => answer(done, ()),
        }
    }

    /// Checks a PIN through a worker of its own, beside this task: a person may have to type on the
    /// device.
    async fn check_pin(
        &mut self,
        check: PinCheck,
        mut done: oneshot::Sender<Result<(), DeviceError>>,
    ) {
        if done.is_closed() {
            // Whoever asked has left: no worker, and no try, for nobody.
            return;
        }
        match self.spawn().await {
            Ok((mut other, _)) => {
                let (guard, limit) = (self.guard.clone(), self.config.call_timeout);
                tokio::spawn(async move {
                    let gone = done.closed();
                    let result = check.run(other.link(), &guard, limit, gone).await;
                    let _gone = done.send(result);
                    other.retire().await;
                });
            }
            Err(error) => {
                let _gone = done.send(Err(error));
            }
        }
    }
}

/// Tells whoever asked, if they still wait; the worker goes on.
fn answer<T>(done: oneshot::Sender<T>, answer: T) -> Option<Leave> {
    let _gone = done.send(answer);
    None
}

/// The next command, one that was postponed first.
pub async fn next(
    postponed: &mut Option<Command>,
    commands: &mut mpsc::Receiver<Command>,
) -> Option<Command> {
    match postponed.take() {
        Some(command) => Some(command),
        None => commands.recv().await,
    }
}
