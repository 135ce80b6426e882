//! Logging tokens in: on our own, and with a PIN that a person gives.
//!
//! What may be tried is the guard's to say (`pins::guard`); what comes of a try is recorded there and
//! shown in the view. A login that belongs to one operation never lives here: see `pins::per_use`.

use std::time::Duration;

use tokio::time::Instant;

use super::Supervisor;
use super::presence::Noticed;
use super::view::{Reason, TokenView};
use crate::base::pkcs11::TokenId;
use crate::base::secret::Pin;
use crate::device::config::{LoginPolicy, PinSource, TokenConfig};
use crate::device::error::{DeviceError, call_error, unexpected};
use crate::device::frames::{Answer, LastTry, LoginOutcome, PinBytes, UnlockOutcome, Verb};
use crate::device::link::{CallError, Link};
use crate::device::pins::BY_HAND;
use crate::device::pins::guard::{self, PinOrigin, Settled};
use crate::device::tokens::TokenState;
use crate::telemetry::Chain;

/// After a login that failed without a try being spent, the next one is made no sooner.
const LOG_IN_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How long a login waits for one that is under way elsewhere.
const TURN_WITHIN: Duration = Duration::from_secs(1);

impl Supervisor {
    /// A call's failure, where no key is meant.
    pub fn call_error(
        &self,
        error: CallError,
        token: &str,
        function: &'static str,
        after: Duration,
    ) -> DeviceError {
        call_error(&self.config.name, error, token, token, function, after)
    }

    /// Logs in without a person: with the PIN that worked before, or from the source. Only the
    /// end of the worker is an error; everything else is a state of the token.
    pub async fn log_in_on_our_own(
        &mut self,
        link: &Link,
        token: &mut TokenView,
    ) -> Result<(), DeviceError> {
        let Some(info) = &token.found else {
            return Ok(());
        };
        let (number, flags) = (info.number, info.flags);
        let settle = |token: &mut TokenView, state, reason: Option<Reason>| {
            token.state = state;
            token.reason = reason;
        };
        let other = |text: &str| Some(Reason::Other(text.to_owned()));
        if self.released.contains(&token.id) {
            settle(token, TokenState::Released, other(super::release::REASON));
            return Ok(());
        }
        if !flags.login_required {
            settle(token, TokenState::Ready, None);
            return Ok(());
        }
        if flags.pin_locked {
            let why = other("too many wrong PINs");
            settle(token, TokenState::LockedOut, why);
            return Ok(());
        }
        if flags.pin_final_try {
            let why = other("it is kept for a person who is sure of the PIN");
            settle(token, TokenState::FinalTry, why);
            return Ok(());
        }
        if !flags.pin_initialized {
            let why = other("no user PIN is set; set one with `opcert token pin unblock`");
            settle(token, TokenState::Degraded, why);
            return Ok(());
        }
        if flags.protected_path {
            let why = other("it is typed on the device");
            settle(token, TokenState::PinNeeded, why);
            return Ok(());
        }
        let kept = self.pins.get(&token.id);
        let source = self.source_of(token);
        let (pin, origin) = match (kept, source) {
            (Some(pin), _) => (Ok(pin), PinOrigin::Kept),
            (None, Some(source)) => (guard::read_pin(&source), PinOrigin::Source),
            (None, None) => {
                // A window appears when a request needs the token, not because it is there.
                let why = match self.configured_source(token) {
                    Some(_) => other("it is asked for when it is needed"),
                    None => other("no PIN source is configured"),
                };
                settle(token, TokenState::PinNeeded, why);
                return Ok(());
            }
        };
        // A PIN of this token that is being given elsewhere has an entry of its own. A person may
        // take long over it, and other tokens of the module do not wait for that.
        let guard = self.guard.clone();
        let turn = tokio::time::timeout(TURN_WITHIN, guard.turn(&token.id)).await;
        let Ok(_turn) = turn else {
            let error = DeviceError::PinUnderWay {
                token: token.id.to_string(),
            };
            let why = Some(Reason::LoginFailed(error));
            settle(token, TokenState::PinNeeded, why);
            return Ok(());
        };
        if let Some(reason) = self.guard.blocked(&token.id, origin).await {
            settle(
                token,
                TokenState::PinNeeded,
                Some(Reason::PinBlocked(reason)),
            );
            return Ok(());
        }
        let tried = match pin {
            Ok(pin) => {
                let given = Given {
                    pin: Some(pin),
                    origin: Some(origin),
                    source: None,
                    last_try: LastTry::Keep,
                };
                self.try_pin(link, &token.id, number, given).await
            }
            Err(error) => Err(error),
        };
        match tried {
            Ok(_) => {
                self.log_out_again(link, token).await;
                settle(token, TokenState::Ready, None);
            }
            Err(error) => {
                if link.end().is_some() || !link.is_open() {
                    return Err(error);
                }
                tracing::warn!(
                    module = self.config.name,
                    token = %token.id,
                    reason = Chain(&error).to_string(),
                    "not logged in"
                );
                self.note_login_failure(token, &error);
            }
        }
        Ok(())
    }

    /// The PIN is known to be right; a token that is logged in for each operation needs no more
    /// now. One that stays logged in is logged out by its next operation.
    async fn log_out_again(&self, link: &Link, token: &TokenView) {
        let Some(info) = &token.found else { return };
        if token.login == LoginPolicy::Session {
            return;
        }
        let verb = Verb::Logout { token: info.number };
        if let Err(error) = link.call(verb, self.config.call_timeout).await {
            tracing::warn!(
                module = self.config.name,
                token = %token.id,
                ?error,
                "not logged out"
            );
        }
    }

    /// Shows in a token why it is not logged in.
    pub fn note_login_failure(&self, token: &mut TokenView, error: &DeviceError) {
        let text = Chain(error).to_string();
        (token.state, token.reason) = match error {
            DeviceError::PinLocked { .. } => (TokenState::LockedOut, Some(Reason::Other(text))),
            DeviceError::PinFinalTry { .. } => (TokenState::FinalTry, Some(Reason::Other(text))),
            DeviceError::PinWrong { .. } => (TokenState::PinNeeded, Some(Reason::PinBlocked(text))),
            DeviceError::PinBlocked { reason, .. } => (
                TokenState::PinNeeded,
                Some(Reason::PinBlocked(reason.clone())),
            ),
            DeviceError::Pkcs11 { .. }
            | DeviceError::TokenAbsent { .. }
            | DeviceError::Busy { .. }
            | DeviceError::PinRecord { .. } => (
                TokenState::Degraded,
                Some(Reason::LoginFailed(error.clone())),
            ),
            _ => (TokenState::PinNeeded, Some(Reason::Other(text))),
        };
    }

    /// Shows that a PIN of a token was refused.
    pub fn note_refusal(&self, id: &TokenId, error: &DeviceError) {
        let mut tokens = self.view.borrow().tokens.clone();
        for token in tokens.iter_mut().filter(|token| token.id == *id) {
            self.note_login_failure(token, error);
        }
        self.publish_tokens(tokens);
    }

    /// Where the machine reads a token's PIN; `None` where a person gives it.
    pub fn source_of(&self, token: &TokenView) -> Option<PinSource> {
        let source = self.configured_source(token);
        source.filter(|source| *source != PinSource::Pinentry)
    }

    fn configured_source(&self, token: &TokenView) -> Option<PinSource> {
        let configured = self.config.token_of(&token.uri);
        configured.and_then(TokenConfig::source)
    }

    /// Tries one PIN once.
    async fn try_pin(
        &mut self,
        link: &Link,
        token: &TokenId,
        number: u16,
        given: Given,
    ) -> Result<UnlockOutcome, DeviceError> {
        let Given {
            pin,
            origin,
            source,
            last_try,
        } = given;
        let attempt = self.guard.begin(token, origin).await?;
        let verb = Verb::Login {
            token: number,
            pin: PinBytes::new(pin.as_ref().map_or("", Pin::expose)),
            last_try,
        };
        let name = token.to_string();
        let budget = match &pin {
            Some(_) => self.config.call_timeout,
            None => self.config.call_timeout.max(BY_HAND),
        };
        let outcome = match link.call(verb, budget).await {
            Ok(Answer::Login(outcome)) => outcome,
            Ok(_) => return Err(unexpected(&self.config.name)),
            // The worker answered before it called C_Login, or was not asked: no try is spent.
            Err(
                error @ (CallError::Failed(_)
                | CallError::NotSent
                | CallError::Busy
                | CallError::TooLarge),
            ) => {
                self.guard.settle(attempt, Settled::NotTried).await?;
                return Err(self.call_error(error, &name, "C_Login", budget));
            }
            // Not known: the entry stays.
            Err(error @ CallError::Ended(_)) => {
                self.pins.remove(token);
                return Err(self.call_error(error, &name, "C_Login", budget));
            }
        };
        let (settled, result) = match outcome {
            LoginOutcome::Ok => {
                let settled = match (source, &pin) {
                    (Some(source), Some(pin)) if guard::same(&source, pin) => {
                        Settled::TakenFromSource
                    }
                    (Some(_), Some(_)) => Settled::TakenNotFromSource,
                    _ => Settled::Taken,
                };
                (settled, Ok((UnlockOutcome::Taken, pin)))
            }
            // Whether the PIN is right is not known, so it is not kept.
            LoginOutcome::Already => (
                Settled::NotTried,
                Ok((UnlockOutcome::AlreadyUnlocked, None)),
            ),
            LoginOutcome::Wrong { code } => (
                Settled::Refused(code.clone()),
                Err(DeviceError::PinWrong { token: name, code }),
            ),
            LoginOutcome::Locked => (
                Settled::Refused("CKR_PIN_LOCKED".into()),
                Err(DeviceError::PinLocked { token: name }),
            ),
            LoginOutcome::FinalTry => (
                Settled::NotTried,
                Err(DeviceError::PinFinalTry { token: name }),
            ),
            LoginOutcome::NotTried { code } => (
                Settled::NotTried,
                Err(DeviceError::Pkcs11 {
                    token: name,
                    function: "C_Login".into(),
                    code,
                }),
            ),
            LoginOutcome::Uncertain { code } => (
                Settled::Refused(code.clone()),
                Err(DeviceError::PinWrong { token: name, code }),
            ),
        };
        let result = match result {
            Ok((outcome, taken)) => {
                self.logged_in.insert(token.clone(), Instant::now());
                if let Some(pin) = taken {
                    self.pins.insert(token.clone(), pin);
                }
                Ok(outcome)
            }
            Err(error) => {
                if let Settled::Refused(_) = settled {
                    self.pins.remove(token);
                }
                Err(error)
            }
        };
        self.guard.settle(attempt, settled).await?;
        result
    }

    /// Logs in after the login was lost. Says why if the library failed before the PIN reached
    /// the token: another worker may do better.
    pub async fn log_in_again(&mut self, link: &Link, id: &TokenId) -> Option<String> {
        let just_failed = self
            .login_failed
            .get(id)
            .is_some_and(|last| last.elapsed() < LOG_IN_AGAIN_AFTER);
        if just_failed {
            return None;
        }
        let mut tokens = self.view.borrow().tokens.clone();
        let mut failed = None;
        for token in tokens.iter_mut().filter(|token| token.id == *id) {
            if let Err(error) = self.log_in_on_our_own(link, token).await {
                // The worker ended in the middle of it. Whether the PIN is for a person to give now
                // is on record; where it is not, the next worker goes on.
                let blocked = self.guard.blocked(&token.id, PinOrigin::Kept).await;
                (token.state, token.reason) = match blocked {
                    Some(reason) => (TokenState::PinNeeded, Some(Reason::PinBlocked(reason))),
                    None => (TokenState::Degraded, Some(Reason::LoginFailed(error))),
                };
            }
            match &token.reason {
                // Another worker would wait as well.
                Some(Reason::LoginFailed(DeviceError::PinUnderWay { .. })) | None => {}
                Some(Reason::LoginFailed(error)) => {
                    self.login_failed.insert(id.clone(), Instant::now());
                    failed = Some(format!("login failed: {error}"));
                }
                Some(Reason::PinBlocked(_) | Reason::Other(_)) => {}
            }
        }
        self.publish_tokens(tokens);
        failed
    }

    /// The same once the slots were looked at: a PIN has changed, and perhaps flags.
    pub async fn look_and_log_in(&mut self, link: &Link, id: &TokenId) -> Result<(), DeviceError> {
        self.look_again(link, None, Noticed::Request).await?;
        self.log_in_again(link, id).await;
        Ok(())
    }

    /// Tries a person's PIN, once, whatever happened before.
    pub async fn unlock(
        &mut self,
        link: &Link,
        id: &TokenId,
        pin: Option<Pin>,
        last_try: LastTry,
    ) -> Result<UnlockOutcome, DeviceError> {
        let pin = pin.map(guard::checked).transpose()?;
        let absent = || DeviceError::TokenAbsent {
            token: id.to_string(),
        };
        self.released.remove(id);
        // The flags as they are now: somebody else may have spent tries.
        self.look_again(link, None, Noticed::Request).await?;
        let mut tokens = self.view.borrow().tokens.clone();
        let token = tokens
            .iter_mut()
            .find(|token| token.id == *id)
            .ok_or_else(absent)?;
        let info = token.found.as_ref().ok_or_else(absent)?;
        let number = info.number;
        let pin = match pin {
            // The device asks, whatever was typed elsewhere.
            _ if info.flags.protected_path => None,
            Some(pin) => Some(pin),
            None => {
                return Err(DeviceError::PinNeeded {
                    token: id.to_string(),
                });
            }
        };
        // A source that cannot be read is not known to be stale.
        let source = self
            .source_of(token)
            .and_then(|source| guard::read_pin(&source).ok());
        let given = Given {
            pin,
            origin: None,
            source,
            last_try,
        };
        let guard = self.guard.clone();
        let turn = guard.turn(id).await;
        let result = self.try_pin(link, id, number, given).await;
        match &result {
            Ok(_) => {
                self.log_out_again(link, token).await;
                token.state = TokenState::Ready;
                token.reason = None;
            }
            Err(error) => self.note_login_failure(token, error),
        }
        self.publish_tokens(tokens);
        drop(turn);
        match result {
            // That was a try: the flags tell how many are left.
            Err(error @ DeviceError::PinWrong { .. }) => Err(self.wrong(link, id, error).await),
            result => result,
        }
    }

    /// What a refused PIN means for the token: that it is locked, if that was the last try.
    async fn wrong(&mut self, link: &Link, id: &TokenId, error: DeviceError) -> DeviceError {
        // What cannot be looked at now is looked at soon.
        let _later = self.look_again(link, None, Noticed::Request).await;
        let view = self.view.borrow().clone();
        let mut same = view.tokens.iter().filter(|token| token.id == *id);
        match same.any(|token| token.state == TokenState::LockedOut) {
            true => DeviceError::PinLocked {
                token: id.to_string(),
            },
            false => error,
        }
    }
}

/// A PIN to be tried.
struct Given {
    /// `None` where it is typed on the device.
    pin: Option<Pin>,
    /// Where it comes from; `None` for a person.
    origin: Option<PinOrigin>,
    /// The PIN of the configured source, where a person gave the other.
    source: Option<Pin>,
    last_try: LastTry,
}
