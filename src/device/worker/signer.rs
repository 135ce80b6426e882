//! Signing, and decrypting: a session of one's own, key handles kept, one call each.
//!
//! A signature is not verified here: the daemon does that, which trusts no library.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use zeroize::Zeroizing;

use super::codes;
use super::login::{self, OneTry, Turn};
use super::mechanism::Offer;
use super::module::Module;
use super::objects;
use super::raw::SIGNATURE_MAX;
use crate::base::encoding::sha256;
use crate::base::key::Scheme;
use crate::device::config::LoginPolicy;
use crate::device::frames::{
    Answer, Class, Failure, Input, LoginOutcome, PinBytes, PlainBytes, Verb, WHOLE_MESSAGE_MAX,
};

/// The most key handles one thread keeps per token; past it all are found anew.
const HANDLES_MAX: usize = 4096;

/// How long a thread that got no session leaves its work to the keeper before it asks again.
const SESSION_REFUSED_FOR: Duration = Duration::from_secs(30);

/// Something that a private key does.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    token: u16,
    key: &'a [u8],
    what: What<'a>,
    login: Login<'a>,
}

/// Whether a job may log in.
#[derive(Clone, Copy)]
enum Login<'a> {
    No,
    /// For the one use of its key, with this PIN or by what the token asks itself; and the user,
    /// where the policy is one login for each operation.
    With(Option<&'a PinBytes>, LoginPolicy),
}

#[derive(Clone, Copy)]
enum What<'a> {
    Sign {
        scheme: Scheme,
        input: Input,
        data: &'a [u8],
    },
    Decrypt {
        input: &'a [u8],
    },
}

impl<'a> Job<'a> {
    /// A signature.
    pub fn sign(token: u16, key: &'a [u8], scheme: Scheme, input: Input, data: &'a [u8]) -> Self {
        let what = What::Sign {
            scheme,
            input,
            data,
        };
        Self::new(token, key, what)
    }

    /// A decryption.
    pub fn decrypt(token: u16, key: &'a [u8], input: &'a [u8]) -> Self {
        let what = What::Decrypt { input };
        Self::new(token, key, what)
    }

    fn new(token: u16, key: &'a [u8], what: What<'a>) -> Self {
        Self {
            token,
            key,
            what,
            login: Login::No,
        }
    }

    /// The same with leave to log in for this one use of the key, and the user for as long where
    /// the policy wants that.
    pub fn with_pin(self, pin: Option<&'a PinBytes>, policy: LoginPolicy) -> Self {
        Self {
            login: Login::With(pin, policy),
            ..self
        }
    }

    /// The one that a call asks for; `None` if it asks for something else.
    pub fn of(verb: &'a Verb) -> Option<Self> {
        match verb {
            Verb::Sign {
                token,
                key,
                scheme,
                input,
                data,
            } => Some(Self::sign(*token, key, *scheme, *input, data)),
            Verb::Decrypt { token, key, input } => Some(Self::decrypt(*token, key, input)),
            Verb::WithPin { pin, login, verb } => {
                Some(Self::of(verb)?.with_pin(pin.as_ref(), *login))
            }
            _ => None,
        }
    }

    /// The token that is to do it.
    pub fn token(&self) -> u16 {
        self.token
    }
}

/// What one thread needs to sign.
pub struct Signer {
    module: &'static Module,
    seats: HashMap<u16, Seat>,
}

/// A thread's place at one token.
struct Seat {
    slot: Slot,
    turn: Turn,
    session: Option<Session>,
    /// When the token last had no session for us.
    refused: Option<Instant>,
    keys: Keys,
}

/// What is known of the keys of one token, as one session sees them.
#[derive(Default)]
pub struct Keys(HashMap<Vec<u8>, Key>);

/// What is known of a key. Its handle may have become invalid; who it is must not change.
struct Key {
    handle: Option<ObjectHandle>,
    kind: objects::Kind,
    /// `CKA_ALWAYS_AUTHENTICATE`.
    always_authenticate: bool,
    /// Its size; not known of an RSA key of which only a certificate is there.
    bits: Option<usize>,
    fingerprint: Option<[u8; 32]>,
}

/// A key as it is used.
#[derive(Clone, Copy)]
struct Found {
    handle: ObjectHandle,
    kind: objects::Kind,
    always_authenticate: bool,
    bits: Option<usize>,
}

impl Signer {
    /// Opens nothing yet.
    pub fn new(module: &'static Module) -> Self {
        Self {
            module,
            seats: HashMap::new(),
        }
    }

    /// Does a job in a session of this thread. One that became invalid is replaced once. A failure
    /// of [`Class::Shrink`] means that there is no session to be had.
    pub fn perform(&mut self, job: Job<'_>) -> Result<Answer, Failure> {
        let module = self.module;
        let seat = self.seat(job.token)?;
        match seat.perform(module, job) {
            Err(failure) if is_session(&failure) => {
                seat.stand_up();
                seat.perform(module, job)
            }
            result => result,
        }
    }

    fn seat(&mut self, token: u16) -> Result<&mut Seat, Failure> {
        let module = self.module;
        let slot = module.slot(token)?;
        let seat = self.seats.entry(token).or_insert_with(|| Seat {
            slot,
            turn: module.turn(token),
            session: None,
            refused: None,
            keys: Keys::default(),
        });
        if seat.slot != slot {
            seat.stand_up();
            seat.slot = slot;
        }
        Ok(seat)
    }

    /// Uses the session at a token, if there is one. One that has ended is given up.
    pub fn keep_alive(&mut self, token: u16) {
        if let Some(seat) = self.seats.get_mut(&token)
            && let Some(session) = &seat.session
            && keep_alive(session).is_err()
        {
            seat.stand_up();
        }
    }

    /// Closes the session at a token, for somebody who needs it more.
    pub fn let_go(&mut self, token: u16) {
        if let Some(seat) = self.seats.get_mut(&token) {
            seat.stand_up();
            seat.refused = Some(Instant::now());
        }
    }
}

impl Seat {
    fn perform(&mut self, module: &Module, job: Job<'_>) -> Result<Answer, Failure> {
        let turn = self.turn.clone();
        let (_with_others, _alone) = match job.login {
            Login::No => (Some(turn.with_others()), None),
            Login::With(..) => (None, Some(turn.alone())),
        };
        self.open(module)?;
        let session = self.session.as_ref().ok_or_else(no_session)?;
        let result = match job.login {
            Login::With(pin, LoginPolicy::PerOperation) => {
                match login::log_in(module, self.slot, session, pin)? {
                    LoginOutcome::Ok => {
                        let result = perform(module, session, &mut self.keys, job);
                        // A session that ended, or a token that left, is logged out just as well.
                        let _ended = session.logout();
                        self.keys.forget_handles();
                        result
                    }
                    outcome => Ok(Answer::Login(outcome)),
                }
            }
            Login::No | Login::With(..) => perform(module, session, &mut self.keys, job),
        };
        if is_refused(&result) {
            // The operation that waits for its login ends with the session.
            self.stand_up();
        }
        result
    }

    /// Makes sure that there is a session.
    fn open(&mut self, module: &Module) -> Result<(), Failure> {
        if self.session.is_some() {
            return Ok(());
        }
        if self
            .refused
            .is_some_and(|when| when.elapsed() < SESSION_REFUSED_FOR)
        {
            return Err(no_session());
        }
        let opened = module.pkcs11.open_ro_session(self.slot);
        let opened = opened.map_err(|error| codes::failure(&error));
        self.refused = is_shrink(&opened).then(Instant::now);
        self.session = Some(opened?);
        Ok(())
    }

    /// Gives up the session. Handles of before it may mean other keys in the next one.
    fn stand_up(&mut self) {
        self.session = None;
        self.keys.forget_handles();
    }
}

impl Keys {
    /// Forgets the handles, but not who the keys are.
    pub fn forget_handles(&mut self) {
        for key in self.0.values_mut() {
            key.handle = None;
        }
    }

    fn get(
        &mut self,
        module: &Module,
        token: u16,
        session: &Session,
        id: &[u8],
    ) -> Result<Found, Failure> {
        if let Some(Key {
            handle: Some(handle),
            kind,
            always_authenticate,
            bits,
            ..
        }) = self.0.get(id)
        {
            return Ok(Found {
                handle: *handle,
                kind: *kind,
                always_authenticate: *always_authenticate,
                bits: *bits,
            });
        }
        let handle = match objects::find_private(session, id)? {
            Some(handle) => handle,
            None => {
                module.check_login(token, session)?;
                // The search may have come just before the login.
                objects::find_private(session, id)?.ok_or(Failure::KeyMissing)?
            }
        };
        let (kind, always_authenticate) = objects::kind(session, handle)?;
        let parts = match objects::public_parts(session, id) {
            Ok(parts) => Some(parts),
            Err(Failure::KeyMissing) => None,
            Err(failure) => return Err(failure),
        };
        let bits = objects::bits(kind, parts.as_ref());
        let encoded = parts.and_then(|parts| postcard::to_stdvec(&parts).ok());
        let fingerprint = encoded.map(|bytes| sha256(&bytes));
        if let Some(known) = self.0.get(id)
            && (known.kind != kind || known.fingerprint != fingerprint)
        {
            self.0.remove(id);
            return Err(Failure::KeyChanged);
        }
        if self.0.len() >= HANDLES_MAX {
            self.0.clear();
        }
        let key = Key {
            handle: Some(handle),
            kind,
            always_authenticate,
            bits,
            fingerprint,
        };
        self.0.insert(id.to_vec(), key);
        Ok(Found {
            handle,
            kind,
            always_authenticate,
            bits,
        })
    }
}

/// Does a job in `session`. An invalid handle is found again, once.
pub fn perform(
    module: &Module,
    session: &Session,
    keys: &mut Keys,
    job: Job<'_>,
) -> Result<Answer, Failure> {
    let attempt = |keys: &mut Keys| {
        let key = keys.get(module, job.token, session, job.key)?;
        let one_try = match (key.always_authenticate, job.login) {
            (false, _) => None,
            (true, Login::No) => return Err(Failure::PinWanted),
            (true, Login::With(pin, _)) => {
                match OneTry::at(module, module.slot(job.token)?, pin)? {
                    Ok(one_try) => Some(one_try),
                    Err(outcome) => return Ok(Answer::Login(outcome)),
                }
            }
        };
        match job.what {
            What::Sign {
                scheme,
                input,
                data,
            } => {
                let (mechanism, data) = prepare(module, job.token, key, scheme, input, data)?;
                try_sign(module, session, key, &mechanism, &data, one_try)
            }
            What::Decrypt { input } => try_decrypt(module, session, key, input, one_try),
        }
    };
    match attempt(keys) {
        Err(Failure::Pkcs11 {
            class: Class::Handle,
            ..
        }) => {
            if let Some(known) = keys.0.get_mut(job.key) {
                known.handle = None;
            }
            attempt(keys)
        }
        result => result,
    }
}

/// How the token is to sign, and what it is to be given.
fn prepare(
    module: &Module,
    token: u16,
    key: Found,
    scheme: Scheme,
    input: Input,
    data: &[u8],
) -> Result<(Mechanism<'static>, Vec<u8>), Failure> {
    check(key.kind, scheme, input, data)?;
    let offer = module.offer(token);
    Offer::prepare(offer.as_deref(), scheme, key.bits, input, data)
}

fn try_sign(
    module: &Module,
    session: &Session,
    key: Found,
    mechanism: &Mechanism<'_>,
    data: &[u8],
    one_try: Option<OneTry>,
) -> Result<Answer, Failure> {
    let failure = |error: Error| codes::failure(&error);
    let mut signature = [0; SIGNATURE_MAX];
    session.sign_init(mechanism, key.handle).map_err(failure)?;
    if let Some(refused) = log_in(module, session, one_try) {
        return Ok(refused);
    }
    let length = module
        .raw
        .sign(session, data, &mut signature)
        .map_err(failure)?;
    Ok(Answer::Signature(signature[..length].to_vec()))
}

/// Logs in for the operation that has just begun, where it needs that. Nothing may come in between
/// here and there. What it returns ends the job.
fn log_in(module: &Module, session: &Session, one_try: Option<OneTry>) -> Option<Answer> {
    match one_try?.for_this_use(module, session) {
        LoginOutcome::Ok => None,
        refused => Some(Answer::Login(refused)),
    }
}

/// Decrypts with RSAES-OAEP (SHA-1, MGF1 with SHA-1, no label). A ciphertext that is not for this
/// key is [`Failure::Undecryptable`], whatever the module calls it.
fn try_decrypt(
    module: &Module,
    session: &Session,
    key: Found,
    input: &[u8],
    one_try: Option<OneTry>,
) -> Result<Answer, Failure> {
    if key.kind != objects::Kind::Rsa {
        return Err(Failure::KeyType);
    }
    if input.len() > SIGNATURE_MAX {
        return Err(Failure::InputLength);
    }
    let mechanism = Mechanism::RsaPkcsOaep(PkcsOaepParams::new(
        MechanismType::SHA1,
        PkcsMgfType::MGF1_SHA1,
        PkcsOaepSource::empty(),
    ));
    session
        .decrypt_init(&mechanism, key.handle)
        .map_err(|error| codes::failure(&error))?;
    if let Some(refused) = log_in(module, session, one_try) {
        return Ok(refused);
    }
    let mut plaintext = Zeroizing::new([0; SIGNATURE_MAX]);
    match module.raw.decrypt(session, input, &mut plaintext) {
        Ok(length) => {
            let plaintext = Zeroizing::new(plaintext[..length].to_vec());
            Ok(Answer::Plaintext(PlainBytes::new(plaintext)))
        }
        // Bad padding has many names, and a hostile ciphertext must not look like an unwell
        // module. One that is unwell will show it when it signs.
        Err(Error::Pkcs11(
            RvError::EncryptedDataInvalid
            | RvError::EncryptedDataLenRange
            | RvError::DataInvalid
            | RvError::DataLenRange
            | RvError::GeneralError
            | RvError::FunctionFailed
            // NSS, of a number that is not below the modulus.
            | RvError::ArgumentsBad,
            Function::Decrypt,
        )) => Err(Failure::Undecryptable),
        Err(error) => Err(codes::failure(&error)),
    }
}

/// Has the token do something in a session. Asking for the session's state would not do: many
/// libraries answer that by themselves.
pub fn keep_alive(session: &Session) -> Result<(), Failure> {
    match session.generate_random_slice(&mut [0; 1]) {
        Err(Error::Pkcs11(RvError::FunctionNotSupported | RvError::RandomNoRng, _)) => {
            session.get_session_info().map(drop)
        }
        result => result,
    }
    .map_err(|error| codes::failure(&error))
}

/// Whether a failure means that the session is of no use any more.
pub fn is_session(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Pkcs11 {
            class: Class::Session,
            ..
        }
    )
}

/// Whether a result means that there are too many sessions.
pub fn is_shrink<T>(result: &Result<T, Failure>) -> bool {
    matches!(
        result,
        Err(Failure::Pkcs11 {
            class: Class::Shrink,
            ..
        })
    )
}

/// Whether a login for the one use of a key was refused, so that its operation still waits.
pub fn is_refused(result: &Result<Answer, Failure>) -> bool {
    matches!(result, Ok(Answer::Login(_)))
}

/// What a token without a session for us answered a while ago.
fn no_session() -> Failure {
    codes::failure(&Error::Pkcs11(RvError::SessionCount, Function::OpenSession))
}

/// Modules answer caller's mistakes with CKR_GENERAL_ERROR, or cut an over-long digest and sign
/// the rest; so type and length are checked before the call.
fn check(kind: objects::Kind, scheme: Scheme, input: Input, data: &[u8]) -> Result<(), Failure> {
    use objects::Kind;
    match (scheme, kind) {
        (Scheme::Rs256 | Scheme::Ps256, Kind::Rsa)
        | (Scheme::Es256, Kind::P256)
        | (Scheme::Es384, Kind::P384)
        | (Scheme::EdDsa, Kind::Ed25519) => {}
        _ => return Err(Failure::KeyType),
    }
    let fits = match (input, scheme) {
        (Input::Digest, Scheme::Rs256 | Scheme::Ps256 | Scheme::Es256) => data.len() == 32,
        (Input::Digest, Scheme::Es384) => data.len() == 48,
        (Input::Digest, Scheme::EdDsa) => false,
        (Input::Message, _) => data.len() <= WHOLE_MESSAGE_MAX,
    };
    if fits {
        Ok(())
    } else {
        Err(Failure::InputLength)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use objects::Kind;

    #[test]
    fn type_and_length_are_checked_before_the_module_sees_them() {
        let digest = |kind, scheme, length| check(kind, scheme, Input::Digest, &vec![0; length]);
        assert_eq!(digest(Kind::P256, Scheme::Es256, 32), Ok(()));
        assert_eq!(
            digest(Kind::P256, Scheme::Es256, 64),
            Err(Failure::InputLength)
        );
        assert_eq!(
            digest(Kind::P384, Scheme::Es384, 32),
            Err(Failure::InputLength)
        );
        assert_eq!(digest(Kind::Rsa, Scheme::Es256, 32), Err(Failure::KeyType));
        let message = [0; WHOLE_MESSAGE_MAX + 1];
        for (kind, scheme) in [(Kind::Ed25519, Scheme::EdDsa), (Kind::Rsa, Scheme::Rs256)] {
            let check = |length| check(kind, scheme, Input::Message, &message[..length]);
            assert_eq!(check(WHOLE_MESSAGE_MAX), Ok(()));
            assert_eq!(check(WHOLE_MESSAGE_MAX + 1), Err(Failure::InputLength));
        }
    }
}
