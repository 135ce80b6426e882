//! The login that belongs to one use of a key (`CKA_ALWAYS_AUTHENTICATE`), or to one operation.
//!
//! Between `C_SignInit`, `C_Login` and `C_Sign` nothing may come in between: cards forget the PIN at
//! whatever else is asked of them, also in another session. So whoever holds such a login has the
//! token to itself ([`Turn`]), and what can be asked before is asked before: the flags of the PIN.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use super::codes;
use super::keeper::{aftermath, login_failure};
use super::module::Module;
use crate::device::frames::{Failure, LoginOutcome, PinBytes};

/// Who may use a token now: everybody, or one that needs it alone.
#[derive(Clone, Default)]
pub struct Turn(Arc<RwLock<()>>);

impl Turn {
    /// Waits while somebody has the token alone.
    pub fn with_others(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody uses the token, and keeps others away.
    pub fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody has the token alone.
    pub fn is_taken(&self) -> bool {
        self.0.try_read().is_err()
    }
}

/// A PIN that may be tried once at a token, whose flags do not advise against it.
pub struct OneTry {
    slot: Slot,
    /// `None` where the token asks for it itself.
    pin: Option<AuthPin>,
}

impl OneTry {
    /// Looks at the flags of the token. What it returns in place of a try says why there is none.
    pub fn at(
        module: &Module,
        slot: Slot,
        pin: Option<&PinBytes>,
    ) -> Result<Result<Self, LoginOutcome>, Failure> {
        let info = module
            .pkcs11
            .get_token_info(slot)
            .map_err(|error| codes::failure(&error))?;
        if info.user_pin_locked() {
            return Ok(Err(LoginOutcome::Locked));
        }
        if info.user_pin_final_try() {
            return Ok(Err(LoginOutcome::FinalTry));
        }
        let not_tried = |code: &str| Ok(Err(LoginOutcome::NotTried { code: code.into() }));
        if info.protected_authentication_path() {
            return Ok(Ok(Self { slot, pin: None }));
        }
        let Some(pin) = pin else {
            return not_tried("no PIN");
        };
        match std::str::from_utf8(pin.expose()) {
            Ok(text) => Ok(Ok(Self {
                slot,
                pin: Some(AuthPin::from(text.to_owned())),
            })),
            Err(_) => not_tried("a PIN that is not UTF-8"),
        }
    }

    /// Logs the user in for what is about to be done. That somebody is logged in already is as
    /// good: whatever is done then, the logout follows.
    pub fn for_the_user(self, module: &Module, session: &Session) -> LoginOutcome {
        match session.login(UserType::User, self.pin.as_ref()) {
            Ok(()) => LoginOutcome::Ok,
            Err(Error::Pkcs11(code, _)) => {
                match login_failure(&code, &aftermath(module, self.slot, session)) {
                    LoginOutcome::Already => LoginOutcome::Ok,
                    outcome => outcome,
                }
            }
            Err(other) => LoginOutcome::NotTried {
                code: other.to_string(),
            },
        }
    }

    /// Logs in for the operation that has just begun in `session`.
    ///
    /// After a refusal the user is logged out, so that the next PIN of a person is looked at again
    /// rather than answered with CKR_USER_ALREADY_LOGGED_IN; where the token asks for the PIN
    /// itself, nobody holds one that could have become wrong.
    pub fn for_this_use(self, module: &Module, session: &Session) -> LoginOutcome {
        let error = match session.login(UserType::ContextSpecific, self.pin.as_ref()) {
            Ok(()) => return LoginOutcome::Ok,
            Err(Error::Pkcs11(code, _)) => code,
            Err(other) => {
                return LoginOutcome::NotTried {
                    code: other.to_string(),
                };
            }
        };
        let outcome = refusal(
            &error,
            login_failure(&error, &aftermath(module, self.slot, session)),
        );
        let is_refused = matches!(
            outcome,
            LoginOutcome::Wrong { .. } | LoginOutcome::Uncertain { .. } | LoginOutcome::Locked
        );
        if is_refused && self.pin.is_some() {
            // A session that does not end here ends with the worker.
            let _ended = session.logout();
        }
        outcome
    }
}

/// Logs the user in to the token in `slot`, for one operation; `session.logout` is to follow.
pub fn log_in(
    module: &Module,
    slot: Slot,
    session: &Session,
    pin: Option<&PinBytes>,
) -> Result<LoginOutcome, Failure> {
    Ok(match OneTry::at(module, slot, pin)? {
        Ok(one_try) => one_try.for_the_user(module, session),
        Err(outcome) => outcome,
    })
}

/// That the user is logged in already says nothing here: this login comes on top of that one, and
/// the token looks at its PIN.
fn refusal(code: &RvError, outcome: LoginOutcome) -> LoginOutcome {
    match outcome {
        LoginOutcome::Already => LoginOutcome::Uncertain {
            code: codes::name(code),
        },
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn being_logged_in_already_proves_nothing_about_this_login() {
        let already = refusal(&RvError::UserAlreadyLoggedIn, LoginOutcome::Already);
        assert!(
            matches!(already, LoginOutcome::Uncertain { .. }),
            "{already:?}"
        );
        let wrong = LoginOutcome::Wrong { code: "x".into() };
        assert_eq!(refusal(&RvError::PinIncorrect, wrong.clone()), wrong);
    }

    #[test]
    fn a_turn_alone_waits_for_others_and_keeps_them_away() {
        let turn = Turn::default();
        let (one, two) = (turn.with_others(), turn.with_others());
        assert!(!turn.is_taken());
        drop((one, two));
        let alone = turn.alone();
        assert!(turn.clone().is_taken());
        drop(alone);
        assert!(!turn.is_taken());
    }
}
