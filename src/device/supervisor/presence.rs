//! Tokens that come and leave: what a look at the slots finds, and what follows from it.
//!
//! When to look is the supervisor's own; how a token that came is logged in is in `login`.

use std::time::Duration;

use super::process::Worker;
use super::view::{Reason, TokenView, overlap};
use super::{Leave, RENEW_EVERY, Supervisor};
use crate::base::pkcs11::{TokenId, TokenUri};
use crate::device::error::{DeviceError, unexpected};
use crate::device::frames::{Answer, Verb};
use crate::device::link::{End, Link};
use crate::device::tokens::TokenState;
use crate::telemetry::metrics::metrics;

/// The longest time between two workers that are started only to look for absent tokens.
const SEARCH_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

impl Supervisor {
    /// The configured tokens as the worker sees them now, before any login.
    pub async fn find_tokens(&self, link: &Link) -> Result<Vec<TokenView>, DeviceError> {
        let name = &self.config.name;
        match link.call(Verb::Tokens, self.config.call_timeout).await {
            Ok(Answer::Tokens(present)) => Ok(self
                .config
                .token
                .iter()
                .map(|token| TokenView::find(name, &token.uri, &present).with_login(token.login))
                .collect()),
            Ok(_) => Err(unexpected(name)),
            Err(error) => Err(self.call_error(
                error,
                &format!("module {name}"),
                "C_GetTokenInfo",
                self.config.call_timeout,
            )),
        }
    }

    /// A call hung while the library was waited for: perhaps it waits with a lock held, so the next
    /// worker does without. Where one without hangs as well, that was not why.
    pub fn doubt_slot_events(&mut self, link: &Link) {
        if !self.config.slot_events || link.end() != Some(End::Expired) {
            return;
        }
        self.slot_events = !link.watches_slots();
        if !self.slot_events {
            tracing::warn!(
                module = self.config.name,
                "a call hung while the library watched its slots; they are polled from now on"
            );
        }
    }

    /// Looks at the slots though nobody called.
    pub async fn look_around(&mut self, worker: &Worker, noticed: Noticed) -> Option<Leave> {
        match self.look_again(worker.link(), None, noticed).await {
            Ok(Found::Yes) => {
                self.search = RENEW_EVERY;
                None
            }
            Ok(Found::No) => {
                let view = self.view.borrow().clone();
                let disturbs = view.tokens.iter().any(|token| token.found.is_some());
                if disturbs || worker.started.elapsed() < self.search {
                    return None;
                }
                self.search = (self.search * 2).min(SEARCH_AT_LEAST_EVERY);
                Some(Leave::LookAgain)
            }
            Err(error @ DeviceError::Pkcs11 { .. }) if self.may_renew() => {
                Some(Leave::Ended(error.to_string()))
            }
            // The next look may bring more.
            Err(_) => None,
        }
    }

    /// Looks at the slots again; tokens that were logged in stay so. Whether all that are `wanted`
    /// are there: to find others is not worth a new worker.
    pub async fn look_again(
        &mut self,
        link: &Link,
        wanted: Option<&TokenUri>,
        noticed: Noticed,
    ) -> Result<Found, DeviceError> {
        let before = self.view.borrow().tokens.clone();
        let mut tokens = self.find_tokens(link).await?;
        self.forget_releases_of_absent(&tokens);
        for token in &mut tokens {
            let known = before
                .iter()
                .find(|known| known.id == token.id && known.found.is_some());
            if token.found.is_some() && known.is_none() {
                self.note_change(&token.id, "token came", noticed);
            }
            match known {
                Some(known) if known.is_settled(token) => {
                    token.state = known.state;
                    token.reason = known.reason.clone();
                }
                _ => {
                    self.log_in_on_our_own(link, token).await?;
                    // A refusal changes the flags itself, and nobody has given another PIN since.
                    let refused = known.map(|known| &known.reason);
                    let is_told = matches!(token.reason, Some(Reason::Other(_)));
                    if let Some(Some(Reason::PinBlocked(reason))) = refused
                        && token.state == TokenState::PinNeeded
                        && is_told
                    {
                        token.reason = Some(Reason::PinBlocked(reason.clone()));
                    }
                }
            }
        }
        for gone in before.iter().filter(|known| known.found.is_some()) {
            let mut still = tokens.iter().filter(|token| token.found.is_some());
            if !still.any(|token| token.id == gone.id) {
                self.note_change(&gone.id, "token left", noticed);
            }
        }
        let missing = tokens
            .iter()
            .filter(|token| token.found.is_none())
            .any(|token| wanted.is_none_or(|wanted| overlap(wanted, &token.uri)));
        self.publish_tokens(tokens);
        Ok(if missing { Found::No } else { Found::Yes })
    }

    fn note_change(&self, token: &TokenId, what: &str, noticed: Noticed) {
        let noticed = noticed.name();
        tracing::info!(module = self.config.name, %token, noticed, "{what}");
        let cells = metrics().module(&self.config.name);
        cells.token_changes.of(noticed).increment();
    }
}

/// Whether every wanted token is there.
pub enum Found {
    Yes,
    No,
}

/// What made the slots be looked at.
#[derive(Clone, Copy)]
pub enum Noticed {
    /// The library told of a change.
    Event,
    /// It was time.
    Poll,
    /// Somebody named a token that was not there.
    Request,
}

impl Noticed {
    /// As metrics and logs call it.
    fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Poll => "poll",
            Self::Request => "request",
        }
    }
}
