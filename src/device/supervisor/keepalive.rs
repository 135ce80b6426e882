//! When tokens that nobody uses are to be asked for something.
//!
//! Some devices close what was not used for half a minute, firewalls forget connections to others
//! after an hour, and the first call after that fails or hangs. Who knows of such a device gives it
//! an interval (`keepalive-seconds`).

use std::time::Duration;

use tokio::time::Instant;

use super::Supervisor;
use crate::device::config::TokenConfig;
use crate::device::frames::Verb;
use crate::device::link::Link;
use crate::device::tokens::TokenState;

/// The tokens with an interval.
pub struct Keepalives(Vec<Keepalive>);

struct Keepalive {
    index: usize,
    every: Duration,
    next: Instant,
}

impl Keepalives {
    /// Of the tokens of one module; the first is due after its interval.
    pub fn of(tokens: &[TokenConfig]) -> Self {
        let now = Instant::now();
        let kept = tokens.iter().enumerate().filter_map(|(index, token)| {
            let every = token.keepalive?;
            Some(Keepalive {
                index,
                every,
                next: now + every,
            })
        });
        Self(kept.collect())
    }

    /// Returns when a token is due, with its index in the configuration; never where none has an
    /// interval. May be dropped and asked again.
    pub async fn due(&mut self) -> usize {
        let Some(first) = self.0.iter_mut().min_by_key(|kept| kept.next) else {
            return std::future::pending().await;
        };
        // The interval itself: that nothing happens for so long is what a connection ends of.
        tokio::time::sleep_until(first.next).await;
        first.next = Instant::now() + first.every;
        first.index
    }
}

impl Supervisor {
    /// Has a token do something. What is wrong with it shows at the next look, or the next call.
    pub async fn keep_alive(&self, link: &Link, index: usize) {
        let view = self.view.borrow().clone();
        let token = view.tokens.get(index);
        let found = token.filter(|token| token.state == TokenState::Ready);
        let Some(info) = found.and_then(|token| token.found.as_ref()) else {
            return;
        };
        if link.is_occupied() {
            return;
        }
        let verb = Verb::KeepAlive { token: info.number };
        if let Err(error) = link.call(verb, self.config.call_timeout).await {
            tracing::debug!(module = self.config.name, ?error, "not kept alive");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_token_is_due_at_its_own_interval() {
        let token = |keepalive| TokenConfig {
            uri: "pkcs11:".parse().unwrap(),
            pin_source: None,
            touch: false,
            login: crate::device::LoginPolicy::Session,
            keepalive,
            idle_release: None,
            waive: Vec::new(),
            attestation: None,
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let tokens = [token(None), token(seconds(20)), token(seconds(30))];
        let mut keepalives = Keepalives::of(&tokens);
        let begun = Instant::now();
        let mut due = Vec::new();
        for _ in 0..4 {
            // Somebody who has other things to do in between misses nothing.
            let early = tokio::time::timeout(Duration::from_secs(1), keepalives.due()).await;
            assert!(early.is_err());
            let index = keepalives.due().await;
            due.push((index, begun.elapsed().as_secs()));
        }
        assert_eq!(due, [(1, 20), (2, 30), (1, 40), (1, 60)]);
        let mut none = Keepalives::of(&tokens[..1]);
        let never = tokio::time::timeout(Duration::from_secs(3600), none.due()).await;
        assert!(never.is_err());
    }
}
