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
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use super::codes;
use super::module::Module;
use super::objects;
use super::signer::{self, Job, Keys, Signer};
use crate::device::frames::{
    Answer, Failure, LastTry, LoginOutcome, PAGE_BYTES, PAGE_ITEMS, PinBytes, TokenInfo, Verb,
};

/// The most lists that can be half read at a time; past it the oldest is dropped.
const CURSORS_MAX: usize = 8;

/// The thread's state.
pub struct Keeper {
    module: &'static Module,
    anchors: HashMap<u16, Anchor>,
    cursors: BTreeMap<u32, Cursor>,
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
            next_cursor: 0,
            signers,
        }
    }

    /// Does one thing. A session that became invalid is replaced once.
    pub fn answer(&mut self, verb: Verb) -> Result<Answer, Failure> {
        match verb {
            // A signing thread that found no session left hands its work over.
            Verb::Sign {
                token,
                key,
                scheme,
                input,
            } => self.perform(Job::sign(token, &key, scheme, &input)),
            Verb::Decrypt { token, key, input } => self.perform(Job::decrypt(token, &key, &input)),
            Verb::Tokens => self.tokens().map(Answer::Tokens),
            Verb::Login {
                token,
                pin,
                last_try,
            } => self.login(token, &pin, last_try).map(Answer::Login),
            Verb::PublicKey { token, key } => self
                .with(token, |anchor| objects::public_parts(&anchor.session, &key))
                .map(Answer::PublicKey),
            Verb::Generate {
                token,
                key,
                label,
                spec,
                r#use,
            } => self
                .logged_in(token, |session| {
                    objects::generate(session, spec, r#use, &key, &label)
                })
                .map(Answer::Generated),
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
        }
    }

    fn perform(&mut self, job: Job<'_>) -> Result<Answer, Failure> {
        let module = self.module;
        self.with(job.token(), |anchor| {
            signer::perform(module, &anchor.session, &mut anchor.keys, job)
        })
    }

    /// Looks at the slots, lets go of anchors whose token left, and sees who is logged in.
    fn tokens(&mut self) -> Result<Vec<TokenInfo>, Failure> {
        let mut tokens = self.module.rescan()?;
        let module = self.module;
        self.anchors.retain(|number, anchor| {
            module.slot(*number) == Ok(anchor.slot) && anchor.session.get_session_info().is_ok()
        });
        for token in &mut tokens {
            token.logged_in = self
                .anchors
                .get(&token.number)
                .is_some_and(|anchor| module.check_login(token.number, &anchor.session).is_ok());
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
        // A token that was taken out and put back left a dead session behind.
        if let Some(anchor) = self.anchors.get(&token)
            && anchor.session.get_session_info().is_err()
        {
            self.anchors.remove(&token);
        }
        // A session that died would fail the login, after the PIN left our hands.
        if let Some(anchor) = self.anchors.get(&token)
            && anchor.session.get_session_info().is_err()
        {
            self.anchors.remove(&token);
        }
        let session = &self.anchor(token)?.session;
        Ok(match session.login(UserType::User, given) {
            Ok(()) => LoginOutcome::Ok,
            Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => LoginOutcome::Already,
            Err(Error::Pkcs11(RvError::PinLocked, _)) => LoginOutcome::Locked,
            Err(Error::Pkcs11(code, _)) => login_failure(&code),
            Err(other) => LoginOutcome::NotTried {
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

/// Whether a failed `C_Login` spent a try. Codes that a module may return after the PIN reached
/// the token count as uncertain: some report a wrong PIN as CKR_GENERAL_ERROR.
fn login_failure(code: &RvError) -> LoginOutcome {
    let name = codes::name(code);
    match code {
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired => LoginOutcome::Wrong { code: name },
        RvError::CryptokiNotInitialized
        | RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::SessionReadOnlyExists
        | RvError::TokenNotPresent
        | RvError::UserPinNotInitialized
        | RvError::UserAnotherAlreadyLoggedIn
        | RvError::UserTooManyTypes
        | RvError::FunctionCanceled => LoginOutcome::NotTried { code: name },
        _ => LoginOutcome::Uncertain { code: name },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_general_error_at_login_may_have_spent_a_try() {
        assert!(matches!(
            login_failure(&RvError::GeneralError),
            LoginOutcome::Uncertain { .. }
        ));
        assert!(matches!(
            login_failure(&RvError::PinIncorrect),
            LoginOutcome::Wrong { .. }
        ));
        assert!(matches!(
            login_failure(&RvError::TokenNotPresent),
            LoginOutcome::NotTried { .. }
        ));
    }
}
