//! One call to a token, and what is tried where it fails.
//!
//! Whoever wants something of a token comes through here: it says what the call needs, and gets the
//! worker's answer or an error for callers. A call is sent again only where it was surely not done,
//! and once for each reason. What a worker does by itself never lives here: see `supervisor`.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Devices;
use super::config::LoginPolicy;
use super::error::{DeviceError, call_error};
use super::fair::Party;
use super::frames::{Answer, Class, Failure, Verb};
use super::link::{CallError, Link};
use super::pins::per_use::PerUse;
use super::supervisor::handle::{Module, Need};
use super::supervisor::view::uri_of;
use crate::base::pkcs11::{KeyRef, TokenId};

impl Devices {
    /// The same as [`Devices::call_for`], on our own account.
    pub(super) async fn call(
        &self,
        token: &TokenId,
        key: Option<&KeyRef>,
        need: Need,
        budget: Duration,
        verb: impl Fn(u16) -> Verb,
    ) -> Result<Answer, DeviceError> {
        self.call_for(Party::default(), token, key, need, budget, verb)
            .await
    }

    /// Has the worker of a token do something for `party`. What was surely not done is done once
    /// more after its hindrance was removed: a lost login, a token that had left, a worker being
    /// replaced.
    pub(super) async fn call_for(
        &self,
        party: Party,
        token: &TokenId,
        key: Option<&KeyRef>,
        need: Need,
        budget: Duration,
        verb: impl Fn(u16) -> Verb,
    ) -> Result<Answer, DeviceError> {
        let mut module = self.module_of(token)?;
        let mut deadline = Instant::now() + module.config.call_timeout;
        let (mut logged_in_again, mut looked_again, mut taken_up) = (false, false, false);
        let mut asked = need != Need::Login;
        let mut wants_login = false;
        loop {
            if self.is_replaced(&module) {
                module = self.module_of(token)?;
            }
            let (link, number, login) = match module.ready(token, need, deadline).await {
                Err(DeviceError::Stopped) if self.is_replaced(&module) => continue,
                Err(DeviceError::Released { .. }) if !taken_up => {
                    taken_up = true;
                    self.module_of(token)?.take_up(token).await?;
                    continue;
                }
                Err(DeviceError::TokenAbsent { .. }) if !looked_again => {
                    looked_again = true;
                    module.look_again(uri_of(token)).await?;
                    continue;
                }
                Err(DeviceError::PinNeeded { .. })
                    if !asked && self.0.asking.is_for(&module, token) =>
                {
                    asked = true;
                    self.ask_if_configured(token).await?;
                    // A person's time is not the token's.
                    deadline = Instant::now() + module.config.call_timeout;
                    continue;
                }
                Err(_) if !logged_in_again && module.login_failed(token) => {
                    logged_in_again = true;
                    module.log_in_again(token, Instant::now()).await?;
                    continue;
                }
                ready => ready?,
            };
            let verb = verb(number);
            let function = verb.function();
            if party != Party::SELF_TEST {
                link.note_use(number);
            }
            wants_login |= login == LoginPolicy::PerOperation && need != Need::Presence;
            let result = if wants_login {
                let per_use = self.per_use(&module, token, link.clone(), login);
                per_use.run(party, verb, budget).await?
            } else {
                link.call_for(party, verb, budget).await
            };
            let error = match result {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match &error {
                CallError::NotSent => continue,
                CallError::Failed(Failure::PinWanted) if !wants_login => {
                    wants_login = true;
                    continue;
                }
                CallError::Failed(
                    Failure::LoggedOut
                    | Failure::Pkcs11 {
                        class: Class::Login,
                        ..
                    },
                ) if !logged_in_again => {
                    logged_in_again = true;
                    module.log_in_again(token, Instant::now()).await?;
                    continue;
                }
                CallError::Failed(
                    Failure::KeyMissing
                    | Failure::TokenGone
                    | Failure::Pkcs11 {
                        class: Class::Gone, ..
                    },
                ) if !looked_again => {
                    looked_again = true;
                    module.look_again(uri_of(token)).await?;
                    continue;
                }
                // What should have healed it did not.
                CallError::Failed(Failure::Pkcs11 {
                    class:
                        Class::Respawn | Class::Session | Class::Handle | Class::Login | Class::Gone,
                    function,
                    code,
                }) => {
                    let why = format!("{function} failed with {code}");
                    module.replace(link, why).await?;
                }
                CallError::Failed(Failure::LoggedOut) => {
                    let why = "its token does not stay logged in".to_owned();
                    module.replace(link, why).await?;
                }
                CallError::Failed(Failure::KeyChanged) => {
                    if let Some(key) = key {
                        self.0.public_keys.forget(key);
                    }
                }
                _ => {}
            }
            let name = token.to_string();
            let subject = key.map_or_else(|| name.clone(), ToString::to_string);
            return Err(call_error(
                &module.config.name,
                error,
                &name,
                &subject,
                function,
                budget,
            ));
        }
    }

    fn per_use(
        &self,
        module: &Module,
        token: &TokenId,
        link: Arc<Link>,
        login: LoginPolicy,
    ) -> PerUse {
        PerUse {
            token: token.clone(),
            link,
            guard: self.0.start.guard.clone(),
            pins: module.pins.clone(),
            supervisor: module.commands.clone(),
            gate: module.gate(token),
            login,
            protected_path: module.protected_path(token),
        }
    }
}
