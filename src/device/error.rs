//! What can go wrong with a token, and what a failed call means for whoever made it.
//!
//! Status codes and stable codes never live here: `api` has them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::frames::{Class, Failure, HeldObject, PACKET_MAX, WHOLE_MESSAGE_MAX};
use super::link::{CALLS_MAX, CallError, End};
use super::supervisor::handle::LISTS_MAX;
use crate::base::files::FileError;
use crate::base::key::{KeyError, Scheme};
use crate::policy::Purpose;

/// Why a device did not do what was asked.
///
/// The text says what happened and, where a person can do something, what. Tokens and keys are
/// named by their RFC 7512 URI.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// A PKCS#11 function failed. What it was to do did not happen.
    #[error("{function} on {token} failed with {code}")]
    Pkcs11 {
        /// The token.
        token: String,
        /// The function, `C_Sign` for instance.
        function: String,
        /// The return value's name, `CKR_DEVICE_ERROR` for instance.
        code: String,
    },
    /// No token is there that the name or URI selects.
    #[error("token {token} is not present")]
    TokenAbsent {
        /// The token or URI.
        token: String,
    },
    /// No configured token is selected by the URI.
    #[error("no token that {uri} selects is configured")]
    TokenUnknown {
        /// The URI.
        uri: String,
    },
    /// A URI selects several tokens.
    #[error("{uri} selects {count} tokens; add serial=… to select one")]
    TokenAmbiguous {
        /// The URI.
        uri: String,
        /// How many.
        count: usize,
    },
    /// No module of that name is configured.
    #[error("no module {module:?} is configured")]
    ModuleUnknown {
        /// The name.
        module: String,
    },
    /// The library's file is not there.
    #[error("module {module}: there is no file {}; install the vendor's library or correct the path", path.display())]
    ModuleMissing {
        /// The name.
        module: String,
        /// The path.
        path: PathBuf,
    },
    /// The library cannot be loaded or does not initialize.
    #[error("module {module} cannot be used: {reason}")]
    ModuleUnusable {
        /// The name.
        module: String,
        /// The dynamic linker's words, or function and return value.
        reason: String,
    },
    /// The worker of the module is not up; calls fail at once until the next try.
    #[error("module {module} is down: {reason}; the next try is in {} ms", retry_after.as_millis())]
    ModuleDown {
        /// The name.
        module: String,
        /// Why the last start failed.
        reason: String,
        /// When it is tried again.
        retry_after: Duration,
    },
    /// The worker ended during the call. Whether the token did the work is not known, and it is
    /// not tried again.
    #[error(
        "the worker of module {module} ended during {function}: {last_words}; the outcome is not known"
    )]
    WorkerDied {
        /// The module.
        module: String,
        /// The function.
        function: &'static str,
        /// Exit status and last output.
        last_words: String,
    },
    /// The token did not answer in time; its worker is replaced. Whether the token did the work
    /// is not known, and it is not tried again.
    #[error("{function} on {token} did not answer within {} ms; the outcome is not known", after.as_millis())]
    Timeout {
        /// The token.
        token: String,
        /// The function.
        function: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// Too many calls wait for the module already.
    #[error("module {module} has {limit} calls waiting already; try again later")]
    Busy {
        /// The module.
        module: String,
        /// The limit.
        limit: usize,
    },
    /// Two modules have the same name.
    #[error("two modules are named {module:?}; names must differ")]
    ModuleTwice {
        /// The name.
        module: String,
    },
    /// The worker executable cannot be started.
    #[error("cannot start {}", path.display())]
    WorkerStart {
        /// The executable.
        path: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// The worker said something that is no frame, or speaks another protocol.
    #[error("the worker of module {module} broke the protocol: {reason}")]
    Protocol {
        /// The module.
        module: String,
        /// What it did.
        reason: String,
    },
    /// Nobody has unlocked the token.
    #[error("token {token} needs its PIN")]
    PinNeeded {
        /// The token.
        token: String,
    },
    /// The token was left to other programs, and again while a request took it up.
    #[error("token {token} was released to other programs while the request waited; try again")]
    Released {
        /// The token.
        token: String,
    },
    /// The token lost its login, and once more after it was logged in again: something logs it out, or
    /// it came and left.
    #[error("token {token} was logged out again while the request waited; try again")]
    LoggedOut {
        /// The token.
        token: String,
    },
    /// The token's state or the configuration prevents its use.
    #[error("token {token} cannot be used: {reason}")]
    Unusable {
        /// The token.
        token: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A PIN was refused before, or whether it was is not known. It is not tried again on its own.
    #[error("token {token} waits for the right PIN: {reason}")]
    PinBlocked {
        /// The token.
        token: String,
        /// What happened.
        reason: String,
    },
    /// The token refused the PIN just given.
    #[error("{token} refused the PIN ({code}); it is not tried again")]
    PinWrong {
        /// The token.
        token: String,
        /// The return value's name.
        code: String,
    },
    /// The token is locked.
    #[error("{token} is locked after too many wrong PINs")]
    PinLocked {
        /// The token.
        token: String,
    },
    /// One try is left; it is not ours to spend.
    #[error("{token} has one PIN try left, which is kept for a person who is sure of the PIN")]
    PinFinalTry {
        /// The token.
        token: String,
    },
    /// A PIN of the token is being given or changed elsewhere.
    #[error("a PIN of {token} is just being given; try again when that is done")]
    PinUnderWay {
        /// The token.
        token: String,
    },
    /// A person was asked for the PIN and did not give it.
    #[error("token {token} needs its PIN, and nobody gave it: {reason}")]
    PinDeclined {
        /// The token.
        token: String,
        /// Why not.
        reason: String,
    },
    /// The token refused the security officer's PIN.
    #[error("{token} refused the security officer's PIN ({code})")]
    SoPinWrong {
        /// The token.
        token: String,
        /// The return value's name.
        code: String,
    },
    /// The security officer's PIN is locked.
    #[error("the security officer's PIN of {token} is locked")]
    SoPinLocked {
        /// The token.
        token: String,
    },
    /// One try of the security officer's PIN is left.
    #[error("the security officer's PIN of {token} has one try left")]
    SoPinFinalTry {
        /// The token.
        token: String,
    },
    /// A PIN is shorter or longer than the token takes.
    #[error("PINs of {token} have {min} to {max} bytes")]
    PinUnfit {
        /// The token.
        token: String,
        /// The shortest.
        min: u32,
        /// The longest.
        max: u32,
    },
    /// A token to be initialized holds keys, or may hold some.
    #[error("{token} {}", held(*seen, objects))]
    TokenHoldsKeys {
        /// The token.
        token: String,
        /// How many keys and certificates show without a login.
        seen: u32,
        /// The first of them.
        objects: Vec<HeldObject>,
    },
    /// A token to be initialized is in use.
    #[error("{token} is in use by {by}")]
    TokenInUse {
        /// The token.
        token: String,
        /// By whom, and what to do.
        by: &'static str,
    },
    /// A token was initialized and did not get a PIN for its user.
    #[error("{token} was initialized, and its user has no PIN: {function} failed with {code}")]
    HalfMade {
        /// The token.
        token: String,
        /// The function.
        function: String,
        /// The return value's name.
        code: String,
    },
    /// The label of a token to be made.
    #[error(
        "a token's label has 1 to {limit} bytes, none of them control characters, and no blank at either end"
    )]
    LabelUnfit {
        /// The limit.
        limit: usize,
    },
    /// No module was named, and there is not exactly one.
    #[error("{count} modules are configured; name one")]
    ModuleAmbiguous {
        /// How many.
        count: usize,
    },
    /// The PIN is empty or too long.
    #[error("a PIN has 1 to {limit} bytes")]
    PinLength {
        /// The limit.
        limit: usize,
    },
    /// The file that holds a PIN is open to others, or belongs to somebody else.
    #[error("PIN file {} is not private: {problem}", path.display())]
    PinFileNotPrivate {
        /// The file.
        path: PathBuf,
        /// What to change.
        problem: String,
    },
    /// The file that holds a PIN cannot be read.
    #[error("cannot read the PIN's file")]
    PinFileUnreadable {
        /// Which, and why.
        source: Arc<FileError>,
    },
    /// The record of refused PINs cannot be kept; without it no PIN is tried.
    #[error("cannot keep the record of refused PINs, and no PIN is tried without it")]
    PinRecord {
        /// Which file, and why.
        source: Arc<FileError>,
    },
    /// There is no private key with that id.
    #[error("there is no key {key}")]
    KeyMissing {
        /// The key.
        key: String,
    },
    /// Several private keys share the id.
    #[error("several private keys are named {key}; remove all but one")]
    KeyAmbiguous {
        /// The key.
        key: String,
    },
    /// The id of a key to be generated is taken.
    #[error("there is a key {key} already")]
    KeyExists {
        /// The key.
        key: String,
    },
    /// The key with the id is another one than before.
    #[error("{key} is another key than it was")]
    KeyChanged {
        /// The key.
        key: String,
    },
    /// The public key with the id cannot be read or is of no supported type.
    #[error("the public key of {key} cannot be used")]
    KeyUnusable {
        /// The key.
        key: String,
        /// Why.
        source: KeyError,
    },
    /// A generated key lacks an attribute that proves it cannot leave the token; it was destroyed.
    #[error("{token} did not prove {attribute} of the key it generated; the key was destroyed")]
    KeyNotProven {
        /// The token.
        token: String,
        /// The attribute.
        attribute: String,
    },
    /// The permit is for another purpose than the message.
    #[error("the message is none of purpose {purpose:?}")]
    WrongPurpose {
        /// The permit's purpose.
        purpose: Purpose,
    },
    /// The key cannot sign with the scheme.
    #[error("{key} cannot sign with {scheme}")]
    SchemeUnsupported {
        /// The key.
        key: String,
        /// The scheme.
        scheme: Scheme,
    },
    /// The token lacks a mechanism.
    #[error("{token} cannot do {what}")]
    Unsupported {
        /// The token.
        token: String,
        /// What it lacks.
        what: String,
    },
    /// The token returned a signature that does not verify. It was thrown away.
    #[error("{key} returned a signature that does not verify; it was thrown away")]
    BadSignature {
        /// The key.
        key: String,
    },
    /// The ciphertext is not one for this key.
    #[error("the ciphertext does not decrypt with {key}")]
    Undecryptable {
        /// The key.
        key: String,
    },
    /// Longer than allowed.
    #[error("{what} too large: at most {limit} bytes are allowed")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The bytes to be stored are no X.509 certificate.
    #[error("malformed certificate")]
    MalformedCertificate,
    /// The devices are shut down.
    #[error("the devices are shut down")]
    Stopped,
}

fn held(seen: u32, objects: &[HeldObject]) -> String {
    if seen == 0 {
        return "is initialized, and may hold keys that show only after a login".into();
    }
    let named: Vec<String> = objects.iter().map(ToString::to_string).collect();
    let rest = usize::try_from(seen)
        .unwrap_or(usize::MAX)
        .saturating_sub(named.len());
    let rest = match rest {
        0 => String::new(),
        rest => format!(", and {rest} more"),
    };
    format!(
        "holds {seen} keys and certificates, and perhaps some that show only after a login: {}{rest}",
        named.join(", ")
    )
}

/// A call's failure as callers see it. `subject` is what a missing or taken key is called.
pub(super) fn call_error(
    module: &str,
    error: CallError,
    token: &str,
    subject: &str,
    function: &'static str,
    after: Duration,
) -> DeviceError {
    let (module, token, key) = (module.to_owned(), token.to_owned(), subject.to_owned());
    match error {
        CallError::Failed(failure) => match failure {
            Failure::Pkcs11 {
                class: Class::Gone, ..
            }
            | Failure::TokenGone => DeviceError::TokenAbsent { token },
            Failure::Pkcs11 { function, code, .. } => DeviceError::Pkcs11 {
                token,
                function,
                code,
            },
            Failure::LoggedOut => DeviceError::LoggedOut { token },
            Failure::PinWanted => DeviceError::PinNeeded { token },
            Failure::KeyMissing => DeviceError::KeyMissing { key },
            Failure::KeyAmbiguous => DeviceError::KeyAmbiguous { key },
            Failure::KeyExists => DeviceError::KeyExists { key },
            Failure::KeyChanged => DeviceError::KeyChanged { key },
            Failure::KeyType => DeviceError::Unsupported {
                token,
                what: format!("this with {key}, which is of another type"),
            },
            Failure::Undecryptable => DeviceError::Undecryptable { key },
            Failure::InputLength => DeviceError::TooLarge {
                what: "message that the token hashes itself",
                limit: WHOLE_MESSAGE_MAX,
            },
            Failure::KeyNotProven { attribute } => DeviceError::KeyNotProven { token, attribute },
            Failure::Unsupported { what } => DeviceError::Unsupported { token, what },
            Failure::CursorExpired => DeviceError::Busy {
                module,
                limit: LISTS_MAX,
            },
        },
        CallError::Ended(End::Died(last_words)) => DeviceError::WorkerDied {
            module,
            function,
            last_words,
        },
        CallError::Ended(End::Expired) => DeviceError::Timeout {
            token,
            function,
            after,
        },
        CallError::Ended(End::Protocol(reason)) => DeviceError::Protocol { module, reason },
        CallError::Ended(End::Retired) | CallError::NotSent => DeviceError::Stopped,
        CallError::Busy => DeviceError::Busy {
            module,
            limit: CALLS_MAX,
        },
        CallError::TooLarge => DeviceError::TooLarge {
            what: "request",
            limit: PACKET_MAX,
        },
    }
}

/// The worker answered something else than it was asked.
pub(super) fn unexpected(module: &str) -> DeviceError {
    DeviceError::Protocol {
        module: module.to_owned(),
        reason: "an answer to another question".into(),
    }
}
