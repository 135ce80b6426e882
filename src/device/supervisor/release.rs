//! Leaving a token to other programs.
//!
//! Closing the sessions of a token is not enough: libraries hold on to readers and connections until
//! they are finalized, and finalizing crashes some. So the worker ends, after the calls under way
//! are done. What the supervisor knows stays: a PIN that worked is kept, and the request that takes
//! the token up again is logged in with it, guarded as ever. A token that was taken out meanwhile is
//! not released any more when it comes back.
//!
//! A person asks for it, or nobody has used the token for a while (`idle-release-seconds`).

use tokio::sync::{oneshot, watch};

use super::administer::PinSettled;
use super::command::{Command, next};
use super::view::{Phase, Reason, TokenView};
use super::{Pause, Supervisor, stopped};
use crate::base::pkcs11::TokenId;
use crate::device::link::Link;
use crate::device::tokens::TokenState;

/// What a list says of a released token.
pub const REASON: &str = "released to other programs; the next request takes it up again";

impl Supervisor {
    /// The worker has ended for a release. Returns once another one is needed: at once for other
    /// tokens that are there, otherwise when somebody asks for something.
    pub async fn rest(
        &mut self,
        done: oneshot::Sender<()>,
        stop: &mut watch::Receiver<bool>,
    ) -> Pause {
        let mut tokens = self.view.borrow().tokens.clone();
        for token in &mut tokens {
            if self.released.contains(&token.id) {
                token.state = TokenState::Released;
                token.reason = Some(Reason::Other(REASON.into()));
            }
        }
        let others = tokens
            .iter()
            .any(|token| token.found.is_some() && token.state != TokenState::Released);
        self.publish_tokens(tokens);
        if !others {
            self.publish_phase(Phase::AtRest);
        }
        tracing::info!(module = self.config.name, "released");
        let _gone = done.send(());
        if others {
            return Pause::Over;
        }
        loop {
            let command = tokio::select! {
                () = stopped(stop) => return Pause::Stop,
                command = next(&mut self.postponed, &mut self.commands) => command,
            };
            match command {
                None => return Pause::Stop,
                // Already so, or about a worker that is gone.
                Some(Command::Release { token, done }) => {
                    self.released.insert(token);
                    let _gone = done.send(());
                }
                Some(Command::Replace { .. } | Command::Renew) => {}
                Some(Command::PinSettled(PinSettled { token, pin, .. })) => {
                    if let Some(pin) = pin {
                        self.pins.insert(token, pin);
                    }
                }
                Some(Command::TakeUp { token, done }) => {
                    self.released.remove(&token);
                    self.looking.push(done);
                    return Pause::Over;
                }
                Some(command) => {
                    self.postponed = Some(command);
                    return Pause::Over;
                }
            }
        }
    }

    /// Takes up a released token while the worker is up for the sake of others.
    pub async fn take_up_again(&mut self, link: &Link, id: &TokenId) {
        if !self.released.remove(id) {
            return;
        }
        let mut tokens = self.view.borrow().tokens.clone();
        for token in tokens.iter_mut().filter(|token| token.id == *id) {
            if let Err(error) = self.log_in_on_our_own(link, token).await {
                self.note_login_failure(token, &error);
            }
        }
        self.publish_tokens(tokens);
    }

    /// A token that is not there is not released when it comes back.
    pub fn forget_releases_of_absent(&mut self, tokens: &[TokenView]) {
        self.released.retain(|id| {
            let mut present = tokens.iter().filter(|token| token.found.is_some());
            present.any(|token| token.id == *id)
        });
    }

    /// Marks the tokens that were idle for as long as the configuration says as released. `Some` if
    /// there are any: the worker is to end.
    pub fn release_idle(&mut self, link: &Link) -> Option<oneshot::Sender<()>> {
        let view = self.view.borrow().clone();
        let mut is_any = false;
        for (token, config) in view.tokens.iter().zip(&self.config.token) {
            let (Some(info), Some(limit)) = (&token.found, config.idle_release) else {
                continue;
            };
            if token.state == TokenState::Ready && link.idle_for(info.number) >= limit {
                tracing::info!(module = self.config.name, token = %token.id, "idle");
                self.released.insert(token.id.clone());
                is_any = true;
            }
        }
        // Nobody waits for it.
        is_any.then(|| oneshot::channel().0)
    }
}
