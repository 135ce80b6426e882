//! Everything but signing: logins, generation, lists, certificates.
//!
//! One thread does it all, one call after the other. Modules fail when two sessions write at the
//! same time, and logins must not race. It holds one read-write session per token for good, the
//! anchor: closing the last session of a token logs everybody out. Where a token has no session
//! left for a signing thread, the keeper signs in the anchor; where it has none left for the
//! anchor, the signing threads give up theirs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use cryptoki::error::{Error, RvError};
use cryptoki::object::{ObjectClass, ObjectHandle};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use super::administer;
use super::codes;
use super::generation::{self, Wanted};
use super::login;
use super::module::Module;
use super::objects;
use super::signer::{self, Job, Keys, Signer};
use crate::device::config::LoginPolicy;
use crate::device::frames::{
    Answer, Failure, KeyEntry, LastTry, LoginOutcome, PAGE_BYTES, PAGE_ITEMS, PinBytes, TokenInfo,
    Verb,
};

/// The most lists that can be half read at a time; past it the oldest is dropped.
const CURSORS_MAX: usize = 8;

/// The thread's state.
pub struct Keeper {
    module: &'static Module,
    anchors: HashMap<u16, Anchor>,
    cursors: BTreeMap<u32, Cursor>,
    /// Lists of keys half shown, the next one last, and their token.
    key_lists: BTreeMap<u32, (u16, Vec<KeyEntry>)>,
    next_cursor: u32,
    signers: &'static [Mutex<Signer>],
}

struct Anchor {
    slot: Slot,
    session: Session,
    keys: Keys,
}

/// A list half read: the handles found at its begin and not yet shown.
struct Cursor {
    token: u16,
    rest: Vec<ObjectHandle>,
}

impl Keeper {
    /// Opens nothing yet.
    pub fn new(module: &'static Module, signers: &'static [Mutex<Signer>]) -> Self {
        Self {
            module,
            anchors: HashMap::new(),
            cursors: BTreeMap::new(),
            key_lists: BTreeMap::new(),
            next_cursor: 0,
            signers,
        }
    }

    /// Does one thing. A session that became invalid is replaced once.
    pub fn answer(&mut self, verb: Verb) -> Result<Answer, Failure> {
        let turn = verb.token().map(|token| self.module.turn(token));
        match (&turn, verb) {
            (Some(turn), Verb::WithPin { pin, login, verb }) => {
                let _alone = turn.alone();
                self.with_pin(pin.as_ref(), login, *verb)
            }
            // Somebody uses it right now, which is as good.
            (Some(turn), Verb::KeepAlive { .. }) if turn.share().is_none() => Ok(Answer::Done),
            (Some(turn), verb @ Verb::Logout { .. }) => {
                let _alone = turn.alone();
                self.do_one(verb)
            }
            (Some(turn), verb) => {
                let _with_others = turn.with_others();
                self.do_one(verb)
            }
            (None, verb) => self.do_one(verb),
        }
    }

    /// Does what needs a login of its own; nobody else uses the token meanwhile.
    fn with_pin(
        &mut self,
        pin: Option<&PinBytes>,
        policy: LoginPolicy,
        verb: Verb,
    ) -> Result<Answer, Failure> {
        let Some(token) = verb.token() else {
            return self.do_one(verb);
        };
        if policy == LoginPolicy::Session {
            return self.with_leave(pin, policy, verb);
        }
        let module = self.module;
        let outcome = self.with(token, |anchor| {
            login::log_in(module, anchor.slot, &anchor.session, pin)
        })?;
        if outcome != LoginOutcome::Ok {
            return Ok(Answer::Login(outcome));
        }
        let result = match verb {
            Verb::Keys { token, cursor } => self.keys_at_once(token, cursor),
            verb => self.with_leave(pin, policy, verb),
        };
        if let Some(anchor) = self.anchors.get_mut(&token) {
            // A session that ended, or a token that left, is logged out just as well.
            let _ended = anchor.session.logout();
            anchor.keys.forget_handles();
        }
        result
    }

    /// A page of keys of a list that is read whole at its begin: the handles of private keys end
    /// with the login.
    fn keys_at_once(&mut self, token: u16, cursor: Option<u32>) -> Result<Answer, Failure> {
        let mut rest = match cursor {
            None => self.with(token, |anchor| {
                let handles = objects::all(&anchor.session, ObjectClass::PRIVATE_KEY)?;
                let mut entries = Vec::with_capacity(handles.len());
                for handle in handles.into_iter().rev() {
                    entries.extend(objects::key_entry(&anchor.session, handle)?);
                }
                Ok(entries)
            })?,
            Some(cursor) => match self.key_lists.remove(&cursor) {
                Some((known, rest)) if known == token => rest,
                Some(_) | None => return Err(Failure::CursorExpired),
            },
        };
        let page = rest.split_off(rest.len().saturating_sub(PAGE_ITEMS));
        let entries = page.into_iter().rev().collect();
        if rest.is_empty() {
            return Ok(Answer::Keys(entries, None));
        }
        if self.key_lists.len() >= CURSORS_MAX {
            self.key_lists.pop_first();
        }
        self.next_cursor = self.next_cursor.wrapping_add(1);
        self.key_lists.insert(self.next_cursor, (token, rest));
        Ok(Answer::Keys(entries, Some(self.next_cursor)))
    }

    fn with_leave(
        &mut self,
        pin: Option<&PinBytes>,
        policy: LoginPolicy,
        verb: Verb,
    ) -> Result<Answer, Failure> {
        match Job::of(&verb) {
            Some(job) => self.perform(job.with_pin(pin, policy)),
            None => self.do_one(verb),
        }
    }

    fn do_one(&mut self, verb: Verb) -> Result<Answer, Failure> {
        match verb {
            // A signing thread that found no session left hands its work over.
            Verb::Sign {
                token,
                key,
                scheme,
                input,
                data,
            } => self.perform(Job::sign(token, &key, scheme, input, &data)),
            Verb::Decrypt { token, key, input } => self.perform(Job::decrypt(token, &key, &input)),
            Verb::Tokens => self.tokens().map(Answer::Tokens),
            Verb::Login {
                token,
                pin,
                last_try,
            } => self.login(token, &pin, last_try).map(Answer::Login),
            Verb::Logout { token } => self
                .with(token, |anchor| {
                    anchor.keys.forget_handles();
                    let logout = anchor.session.logout();
                    logout.map_err(|error| codes::failure(&error))
                })
                .map(|()| Answer::Done),
            Verb::KeepAlive { token } => {
                // A thread that is busy keeps its session alive itself.
                for signer in self.signers {
                    if let Ok(mut signer) = signer.try_lock() {
                        signer.keep_alive(token);
                    }
                }
                self.with(token, |anchor| signer::keep_alive(&anchor.session))
                    .map(|()| Answer::Done)
            }
            Verb::PublicKey { token, key } => self
                .with(token, |anchor| objects::public_parts(&anchor.session, &key))
                .map(Answer::PublicKey),
            Verb::Generate {
                token,
                key,
                label,
                spec,
                r#use,
                waived,
            } => {
                let wanted = Wanted {
                    spec,
                    r#use,
                    id: &key,
                    label: &label,
                    waived: &waived,
                };
                self.logged_in(token, |session| generation::generate(session, &wanted))
                    .map(|(parts, waived)| Answer::Generated(parts, waived))
            }
            Verb::Import {
                token,
                key,
                label,
                private,
                r#use,
            } => self
                .logged_in(token, |session| {
                    objects::import(session, &private, r#use, &key, &label)
                })
                .map(Answer::Imported),
            Verb::Keys { token, cursor } => {
                let (entries, next) = self.page(
                    token,
                    cursor,
                    ObjectClass::PRIVATE_KEY,
                    objects::key_entry,
                    |entry| entry.id.len() + entry.label.len(),
                )?;
                Ok(Answer::Keys(entries, next))
            }
            Verb::Certificates { token, cursor } => {
                let (entries, next) = self.page(
                    token,
                    cursor,
                    ObjectClass::CERTIFICATE,
                    objects::certificate_entry,
                    |entry| entry.id.len() + entry.der.len(),
                )?;
                Ok(Answer::Certificates(entries, next))
            }
            Verb::WriteCertificate { token, certificate } => self
                .logged_in(token, |session| {
                    objects::write_certificate(session, certificate.clone())
                })
                .map(|()| Answer::Done),
            Verb::Delete { token, key } => self
                .logged_in(token, |session| objects::delete(session, &key))
                .map(|()| Answer::Done),
            Verb::WithPin { .. } => Err(Failure::Unsupported {
                what: "a login within a login".into(),
            }),
            Verb::Administer(asked) => {
                administer::administer(self.module, &asked).map(Answer::Administered)
            }
        }
    }

    fn perform(&mut self, job: Job<'_>) -> Result<Answer, Failure> {
        let module = self.module;
        let token = job.token();
        let result = self.with(token, |anchor| {
            signer::perform(module, &anchor.session, &mut anchor.keys, job)
        });
        if signer::is_refused(&result) {
            // The operation that waits for its login ends with the session.
            self.anchors.remove(&token);
        }
        result
    }

    /// Looks at the slots, lets go of anchors whose token left, and sees who is logged in.
    fn tokens(&mut self) -> Result<Vec<TokenInfo>, Failure> {
        let mut tokens = self.module.rescan()?;
        let module = self.module;
        self.anchors.retain(|number, anchor| {
            let turn = module.turn(*number);
            let turn = turn.share();
            module.slot(*number) == Ok(anchor.slot)
                && (turn.is_none() || anchor.session.get_session_info().is_ok())
        });
        for token in &mut tokens {
            let turn = module.turn(token.number);
            let turn = turn.share();
            // Whoever has it alone has logged in.
            token.logged_in = turn.is_none()
                || self.anchors.get(&token.number).is_some_and(|anchor| {
                    module.check_login(token.number, &anchor.session).is_ok()
                });
        }
        Ok(tokens)
    }

    /// Logs in, unless the token's flags say that the try could be the last and nobody said to use it.
    fn login(
        &mut self,
        token: u16,
        pin: &PinBytes,
        last_try: LastTry,
    ) -> Result<LoginOutcome, Failure> {
        let slot = self.module.slot(token)?;
        let info = self
            .module
            .pkcs11
            .get_token_info(slot)
            .map_err(|error| codes::failure(&error))?;
        if info.user_pin_locked() {
            return Ok(LoginOutcome::Locked);
        }
        if info.user_pin_final_try() && last_try == LastTry::Keep {
            return Ok(LoginOutcome::FinalTry);
        }
        let Ok(text) = std::str::from_utf8(pin.expose()) else {
            return Ok(LoginOutcome::NotTried {
                code: "a PIN that is not UTF-8".into(),
            });
        };
        let pin = AuthPin::from(text.to_owned());
        let given = (!info.protected_authentication_path()).then_some(&pin);
        // A token that was taken out and put back left a dead session behind, which would fail
        // the login after the PIN left our hands.
        if let Some(anchor) = self.anchors.get(&token)
            && anchor.session.get_session_info().is_err()
        {
            self.anchors.remove(&token);
        }
        let module = self.module;
        let session = &self.anchor(token)?.session;
        let Err(error) = session.login(UserType::User, given) else {
            return Ok(LoginOutcome::Ok);
        };
        Ok(match error {
            Error::Pkcs11(code, _) => login_failure(&code, &aftermath(module, slot, session)),
            other => LoginOutcome::NotTried {
                code: other.to_string(),
            },
        })
    }

    /// The anchor of a token; opened if need be.
    fn anchor(&mut self, token: u16) -> Result<&mut Anchor, Failure> {
        let slot = self.module.slot(token)?;
        if self
            .anchors
            .get(&token)
            .is_some_and(|anchor| anchor.slot != slot)
        {
            self.anchors.remove(&token);
        }
        if !self.anchors.contains_key(&token) {
            let mut session = self.open(slot);
            if signer::is_shrink(&session) {
                // A thread that is busy signing keeps its session, and is waited for by nobody.
                for signer in self.signers {
                    if let Ok(mut signer) = signer.try_lock() {
                        signer.let_go(token);
                    }
                }
                session = self.open(slot);
            }
            let anchor = Anchor {
                slot,
                session: session?,
                keys: Keys::default(),
            };
            self.anchors.insert(token, anchor);
        }
        self.anchors.get_mut(&token).ok_or(Failure::TokenGone)
    }

    fn open(&self, slot: Slot) -> Result<Session, Failure> {
        let pkcs11 = self.module.pkcs11;
        let session = pkcs11.open_rw_session(slot).or_else(|error| match error {
            Error::Pkcs11(RvError::TokenWriteProtected, _) => pkcs11.open_ro_session(slot),
            error => Err(error),
        });
        session.map_err(|error| codes::failure(&error))
    }

    /// Works with the anchor of a token. One that became invalid is replaced once.
    fn with<T>(
        &mut self,
        token: u16,
        mut work: impl FnMut(&mut Anchor) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match work(self.anchor(token)?) {
            Err(failure) if signer::is_session(&failure) => {
                self.anchors.remove(&token);
                work(self.anchor(token)?)
            }
            result => result,
        }
    }

    /// The same for what needs a login: without one, private keys seem not to exist.
    fn logged_in<T>(
        &mut self,
        token: u16,
        work: impl Fn(&Session) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let module = self.module;
        self.with(token, |anchor| {
            module.check_login(token, &anchor.session)?;
            work(&anchor.session)
        })
    }

    fn page<T>(
        &mut self,
        token: u16,
        cursor: Option<u32>,
        class: ObjectClass,
        entry: impl Fn(&Session, ObjectHandle) -> Result<Option<T>, Failure>,
        size: impl Fn(&T) -> usize,
    ) -> Result<(Vec<T>, Option<u32>), Failure> {
        let mut rest = match cursor {
            None => {
                let mut handles = match class {
                    ObjectClass::PRIVATE_KEY => {
                        self.logged_in(token, |session| objects::all(session, class))
                    }
                    _ => self.with(token, |anchor| objects::all(&anchor.session, class)),
                }?;
                handles.reverse();
                handles
            }
            Some(cursor) => match self.cursors.remove(&cursor) {
                Some(known) if known.token == token => known.rest,
                Some(_) | None => return Err(Failure::CursorExpired),
            },
        };
        let session = &self.anchor(token)?.session;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < PAGE_ITEMS && bytes < PAGE_BYTES {
            let Some(handle) = rest.pop() else {
                return Ok((entries, None));
            };
            if let Some(found) = entry(session, handle)? {
                bytes += size(&found);
                entries.push(found);
            }
        }
        if rest.is_empty() {
            return Ok((entries, None));
        }
        if self.cursors.len() >= CURSORS_MAX {
            self.cursors.pop_first();
        }
        self.next_cursor = self.next_cursor.wrapping_add(1);
        self.cursors
            .insert(self.next_cursor, Cursor { token, rest });
        Ok((entries, Some(self.next_cursor)))
    }
}

/// What is seen right after a login failed.
pub struct Aftermath {
    /// The state of its session; `None` if the session is gone.
    session: Option<SessionState>,
    /// Whether the token is still in its slot.
    present: bool,
}

/// Looks at what a failed login left.
pub fn aftermath(module: &Module, slot: Slot, session: &Session) -> Aftermath {
    let info = session.get_session_info();
    Aftermath {
        session: info.ok().map(|info| info.session_state()),
        present: module.pkcs11.get_token_info(slot).is_ok(),
    }
}

/// Whether a failed `C_Login` spent a try. Only a code that means by the specification that the
/// call ended before it began (PKCS#11 v3.0 section 5.1: "at the time that the function was
/// invoked") says that none was spent, and it is believed only if what it says is seen to be true:
/// the session and the token were looked at right before the login, and some modules report a
/// wrong PIN by whatever code is at hand. CKR_SESSION_CLOSED and CKR_DEVICE_REMOVED mean "during
/// the execution", so the PIN may have reached the token.
pub fn login_failure(code: &RvError, after: &Aftermath) -> LoginOutcome {
    use SessionState::{RoPublic, RoUser, RwPublic, RwSecurityOfficer, RwUser};
    let name = codes::name(code);
    let begun = match code {
        RvError::PinLocked => return LoginOutcome::Locked,
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired => return LoginOutcome::Wrong { code: name },
        RvError::UserAlreadyLoggedIn => match after.session {
            Some(RoUser | RwUser) => return LoginOutcome::Already,
            Some(RoPublic | RwPublic | RwSecurityOfficer) | None => true,
        },
        RvError::SessionHandleInvalid | RvError::CryptokiNotInitialized => after.session.is_some(),
        RvError::TokenNotPresent => after.present || after.session.is_some(),
        RvError::UserAnotherAlreadyLoggedIn => after.session != Some(RwSecurityOfficer),
        _ => true,
    };
    match begun {
        true => LoginOutcome::Uncertain { code: name },
        false => LoginOutcome::NotTried { code: name },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(code: RvError, session: Option<SessionState>, present: bool) -> LoginOutcome {
        login_failure(&code, &Aftermath { session, present })
    }

    #[test]
    fn a_login_that_failed_may_have_spent_a_try_unless_it_is_seen_that_it_cannot() {
        let public = Some(SessionState::RwPublic);
        let user = Some(SessionState::RwUser);
        for code in [
            RvError::GeneralError,
            RvError::FunctionFailed,
            RvError::SessionClosed,
            RvError::DeviceRemoved,
            RvError::FunctionCanceled,
            RvError::VendorDefined(7),
        ] {
            for session in [None, public, user] {
                let outcome = outcome(code, session, false);
                assert!(
                    matches!(outcome, LoginOutcome::Uncertain { .. }),
                    "{outcome:?}"
                );
            }
        }
        assert!(matches!(
            outcome(RvError::PinIncorrect, None, false),
            LoginOutcome::Wrong { .. }
        ));
        for (code, session, present, tried) in [
            (RvError::SessionHandleInvalid, None, true, false),
            (RvError::SessionHandleInvalid, public, true, true),
            (RvError::SessionHandleInvalid, user, true, true),
            (RvError::CryptokiNotInitialized, None, false, false),
            (RvError::CryptokiNotInitialized, public, true, true),
            (RvError::TokenNotPresent, None, false, false),
            (RvError::TokenNotPresent, None, true, true),
            (RvError::TokenNotPresent, public, false, true),
            (RvError::UserAnotherAlreadyLoggedIn, public, true, true),
            (
                RvError::UserAnotherAlreadyLoggedIn,
                Some(SessionState::RwSecurityOfficer),
                true,
                false,
            ),
            (RvError::UserAlreadyLoggedIn, public, true, true),
        ] {
            let outcome = outcome(code, session, present);
            assert_eq!(
                matches!(outcome, LoginOutcome::Uncertain { .. }),
                tried,
                "{outcome:?}"
            );
            assert_eq!(
                matches!(outcome, LoginOutcome::NotTried { .. }),
                !tried,
                "{outcome:?}"
            );
        }
        assert_eq!(
            outcome(RvError::UserAlreadyLoggedIn, user, true),
            LoginOutcome::Already
        );
    }
}
