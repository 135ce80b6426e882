//! Whether a PIN that a person typed for one approval is the token's.
//!
//! A library that is logged in does not look at another PIN (`CKR_USER_ALREADY_LOGGED_IN`), and
//! logging out would take the keys from every signature under way. So the question goes to the
//! token through a worker of its own, which loads the library, logs in once, and is gone: the token
//! itself says yes or no and counts the try. On a token with a protected authentication path the
//! library asks for the PIN on the device.
//!
//! The PIN goes through the [`PinGuard`] like any other: flags first, never on the final try, one
//! try, and a crash in the middle blocks. A wrong PIN says nothing about the one that the machine
//! may try on its own, so the guard's entry is left as it was.

use std::sync::Arc;
use std::time::Duration;

use super::guard::{PinGuard, Settled};
use crate::base::pkcs11::TokenId;
use crate::base::secret::Pin;
use crate::device::error::{DeviceError, call_error, unexpected};
use crate::device::frames::{Answer, LastTry, LoginOutcome, PinBytes, Verb};
use crate::device::link::{CallError, Link};
use crate::device::supervisor::view::token_id;

/// One check, with what it needs.
pub struct PinCheck {
    /// The token.
    pub token: TokenId,
    /// What was typed; `None` where the device asks.
    pub pin: Option<Pin>,
    /// How long the login may take, and how long it waits for another one to end: a person may have
    /// to type on the device.
    pub patience: Duration,
}

impl PinCheck {
    /// Asks the token behind `link`, a worker nobody else uses. A try is not begun for somebody
    /// who is `gone`; one that has begun is ended all the same.
    pub async fn run(
        self,
        link: &Arc<Link>,
        guard: &PinGuard,
        call_timeout: Duration,
        gone: impl Future<Output = ()>,
    ) -> Result<(), DeviceError> {
        let Self {
            token,
            pin,
            patience,
        } = self;
        let name = token.to_string();
        let failed = |error, function, after| {
            call_error(&token.module, error, &name, &name, function, after)
        };
        let present = match link.call(Verb::Tokens, call_timeout).await {
            Ok(Answer::Tokens(present)) => present,
            Ok(_) => return Err(unexpected(&token.module)),
            Err(error) => return Err(failed(error, "C_GetTokenInfo", call_timeout)),
        };
        let number = present
            .iter()
            .find(|info| token_id(&token.module, info) == token)
            .map(|info| info.number)
            .ok_or_else(|| DeviceError::TokenAbsent {
                token: name.clone(),
            })?;
        // Nobody else logs in to this token meanwhile, or finds the entry of this attempt.
        let turn = tokio::time::timeout(patience, guard.turn(&token));
        let _turn = tokio::select! {
            biased;
            () = gone => return Err(DeviceError::Stopped),
            turn = turn => turn.map_err(|_| DeviceError::PinUnderWay { token: name.clone() })?,
        };
        let attempt = guard.begin(&token, None).await?;
        let verb = Verb::Login {
            token: number,
            pin: PinBytes::new(pin.as_ref().map_or("", |pin| pin.expose())),
            last_try: LastTry::Keep,
        };
        let outcome = match link.call(verb, patience).await {
            Ok(Answer::Login(outcome)) => outcome,
            Ok(_) => return Err(unexpected(&token.module)),
            // Not known whether a try was spent: the entry stays.
            Err(error @ CallError::Ended(_)) => return Err(failed(error, "C_Login", patience)),
            Err(error) => {
                guard.settle(attempt, Settled::NotTried).await?;
                return Err(failed(error, "C_Login", patience));
            }
        };
        let result = match outcome {
            LoginOutcome::Ok => Ok(()),
            LoginOutcome::Wrong { code } | LoginOutcome::Uncertain { code } => {
                Err(DeviceError::PinWrong { token: name, code })
            }
            LoginOutcome::Locked => Err(DeviceError::PinLocked { token: name }),
            LoginOutcome::FinalTry => Err(DeviceError::PinFinalTry { token: name }),
            // A worker that nobody else uses has not logged in before.
            LoginOutcome::Already => Err(unexpected(&token.module)),
            LoginOutcome::NotTried { code } => Err(DeviceError::Pkcs11 {
                token: name,
                function: "C_Login".into(),
                code,
            }),
        };
        guard.settle(attempt, Settled::NotTried).await?;
        result
    }
}
