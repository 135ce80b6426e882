//! What the daemon and a worker say to each other.
//!
//! Both ends hold one end of a private `SOCK_SEQPACKET` socket pair. A packet holds one or more
//! frames, each behind its length as a little-endian `u32`; a frame is one value in postcard's
//! encoding. Many frames may share a packet in both directions, so that one system call and one
//! wake-up serve many signatures.
//!
//! The first packet each way begins with a [`ToWorker::Hello`] and its answer. Their first field is
//! the protocol number, so that two builds that do not fit say so instead of misreading each other.
//! Behind it, in the same packet, the daemon says how the worker is to be confined, and the worker
//! how it is.
//! A call carries a number that its reply repeats; replies come in any order. Lists come in
//! pages.
//!
//! Here are the words; how they are packed is in `packet`, what wipes itself in `wiped`. Nothing here
//! sends or reads.
//!
//! Every length is bounded: a packet by [`PACKET_MAX`], what is inside it by the constants beside
//! it. The daemon treats a frame it cannot read as a broken worker.

mod administer;
mod packet;
mod wiped;

use serde::{Deserialize, Serialize};

pub use self::administer::{
    Administer, AdministerRefusal, Administered, HELD_MAX, HeldKeys, HeldObject, Target, Whose,
    Work,
};
pub use self::packet::{FrameError, PACKET_MAX, Split, append, decode, split};
use self::wiped::bytes;
pub use self::wiped::{PinBytes, PlainBytes};
use super::config::{LoginPolicy, Waiver};
use super::sandbox::{Confinement, SandboxStatus};
use crate::base::key::{KeySpec, Scheme};

/// Changes whenever a frame changes.
pub const PROTOCOL: u32 = 9;

/// The most bytes of a DER certificate.
pub const CERTIFICATE_MAX: usize = 16 * 1024;

/// The most bytes of a message that a token signs whole (Ed25519, or where it hashes by itself).
pub const WHOLE_MESSAGE_MAX: usize = 32 * 1024;

/// The most bytes of a PIN (PKCS#11 leaves it to the token; no known token takes more).
pub const PIN_MAX: usize = 255;

/// The most bytes of a label that is read or written.
pub const LABEL_MAX: usize = 255;

/// The most items of one page of a list.
pub const PAGE_ITEMS: usize = 32;

/// A page is full once it holds this many bytes; the item that fills it fits in a packet.
pub const PAGE_BYTES: usize = 40 * 1024;

/// The most tokens one module may show.
pub const TOKENS_MAX: usize = 64;

/// Daemon to worker.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The first frame.
    Hello {
        /// [`PROTOCOL`] of the daemon.
        protocol: u32,
        /// Path of the PKCS#11 library.
        module: String,
        /// How many signing threads to run.
        threads: u16,
    },
    /// Something to do.
    Call(Call),
    /// What comes before the library is loaded; the second frame of the first packet.
    Prepare {
        /// How the worker is to be confined.
        confinement: Confinement,
        /// What `C_Initialize` is given for the library itself.
        parameters: Option<String>,
        /// Whether the library is asked to tell of tokens that come and leave.
        slot_events: bool,
    },
}

/// Worker to daemon.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The library is loaded.
    Hello {
        /// [`PROTOCOL`] of the worker.
        protocol: u32,
        /// What `C_GetInfo` says.
        module: ModuleInfo,
    },
    /// The library is not loaded; the worker ends.
    LoadFailed {
        /// [`PROTOCOL`] of the worker.
        protocol: u32,
        /// Why.
        failure: LoadFailure,
    },
    /// The answer to a call.
    Reply(Reply),
    /// How the worker is confined; the second frame of its first packet, unless loading failed.
    Confined(SandboxStatus),
    /// What the library says of its slots without being called for it; any time after the hello.
    Slots(SlotNews),
}

/// What `C_WaitForSlotEvent` brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotNews {
    /// The library has it, and is waited for.
    Watched,
    /// A token came or left. The next one is told after the slots were looked at.
    Changed,
    /// The library lacks it, or it failed; the CKR name.
    Unwatched(String),
}

/// `CK_INFO`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// `manufacturerID`.
    pub manufacturer: String,
    /// `libraryDescription`.
    pub description: String,
    /// `libraryVersion`.
    pub version: String,
    /// `cryptokiVersion`.
    pub interface: String,
}

/// Why a library could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadFailure {
    /// No such file.
    Missing,
    /// The dynamic linker's words.
    Unloadable(String),
    /// A PKCS#11 function refused.
    Refused {
        /// Its name.
        function: String,
        /// The CKR name.
        code: String,
    },
    /// The worker speaks another protocol.
    Protocol(u32),
}

/// One call.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Repeated by the reply.
    pub id: u64,
    /// What to do.
    pub verb: Verb,
}

/// What a worker can do. Tokens go by the number the worker gave them in [`Answer::Tokens`].
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Verb {
    /// `C_Sign` of a digest (of the scheme's hash), or of the message for Ed25519 and for tokens
    /// that hash by themselves.
    Sign {
        /// Token number.
        token: u16,
        /// `CKA_ID`.
        key: Vec<u8>,
        /// How.
        scheme: Scheme,
        /// What `data` is.
        input: Input,
        /// Digest or message.
        #[serde(with = "bytes")]
        data: Vec<u8>,
    },
    /// `C_Decrypt` with RSAES-OAEP, SHA-1, MGF1 with SHA-1 and no label.
    Decrypt {
        /// Token number.
        token: u16,
        /// `CKA_ID`.
        key: Vec<u8>,
        /// The ciphertext.
        #[serde(with = "bytes")]
        input: Vec<u8>,
    },
    /// Look at the slots again.
    Tokens,
    /// `C_Login`, unless the token's flags advise against it.
    Login {
        /// Token number.
        token: u16,
        /// The PIN.
        pin: PinBytes,
        /// Whether the last try may be used.
        last_try: LastTry,
    },
    /// Read the public key with this `CKA_ID`.
    PublicKey {
        /// Token number.
        token: u16,
        /// `CKA_ID`.
        key: Vec<u8>,
    },
    /// Generate a key pair and prove it.
    Generate {
        /// Token number.
        token: u16,
        /// `CKA_ID`.
        key: Vec<u8>,
        /// `CKA_LABEL`.
        label: String,
        /// What to generate.
        spec: KeySpec,
        /// What the key may do.
        r#use: KeyUse,
        /// What it need not prove.
        waived: Vec<Waiver>,
    },
    /// Put an RSA key pair that was made elsewhere on the token (`C_CreateObject`).
    Import {
        /// Token number.
        token: u16,
        /// `CKA_ID`.
        key: Vec<u8>,
        /// `CKA_LABEL`.
        label: String,
        /// The key.
        private: Box<RsaPrivateParts>,
        /// What the key may do.
        r#use: KeyUse,
    },
    /// A page of private keys.
    Keys {
        /// Token number.
        token: u16,
        /// What the page before said; `None` for the first.
        cursor: Option<u32>,
    },
    /// A page of X.509 certificates.
    Certificates {
        /// Token number.
        token: u16,
        /// What the page before said; `None` for the first.
        cursor: Option<u32>,
    },
    /// Store a certificate in place of those with the same `CKA_ID`.
    WriteCertificate {
        /// Token number.
        token: u16,
        /// The certificate.
        certificate: CertificateParts,
    },
    /// Destroy private key, public key and certificates with this `CKA_ID`.
    Delete {
        /// Token number.
        token: u16,
        /// `CKA_ID`.
        key: Vec<u8>,
    },
    /// `C_Logout`: private keys cannot be used any more, until somebody logs in.
    Logout {
        /// Token number.
        token: u16,
    },
    /// Use every session at the token, so that none ends for want of use.
    KeepAlive {
        /// Token number.
        token: u16,
    },
    /// Do something with a login of its own, as the key wants one for each use
    /// (`CKA_ALWAYS_AUTHENTICATE`), or the policy one for each operation. The answer is
    /// [`Answer::Login`] where the login failed.
    WithPin {
        /// The PIN; `None` where it is typed on the device.
        pin: Option<PinBytes>,
        /// Whether the user is to be logged in before and out after.
        login: LoginPolicy,
        /// What to do.
        verb: Box<Verb>,
    },
    /// Make a token, or set a PIN.
    Administer(Box<Administer>),
}

impl Verb {
    /// The PKCS#11 function that a person would connect with the verb.
    pub fn function(&self) -> &'static str {
        match self {
            Self::Sign { .. } => "C_Sign",
            Self::Decrypt { .. } => "C_Decrypt",
            Self::Tokens => "C_GetTokenInfo",
            Self::Login { .. } => "C_Login",
            Self::Logout { .. } => "C_Logout",
            Self::KeepAlive { .. } => "C_GenerateRandom",
            Self::PublicKey { .. } => "C_GetAttributeValue",
            Self::Generate { .. } => "C_GenerateKeyPair",
            Self::Keys { .. } | Self::Certificates { .. } => "C_FindObjects",
            Self::Import { .. } | Self::WriteCertificate { .. } => "C_CreateObject",
            Self::Delete { .. } => "C_DestroyObject",
            Self::WithPin { verb, .. } => verb.function(),
            Self::Administer(asked) => asked.work.function(),
        }
    }

    /// The number of the token that it is about; `None` where it is about all.
    pub fn token(&self) -> Option<u16> {
        match self {
            // It has a worker of its own.
            Self::Tokens | Self::Administer(_) => None,
            Self::Sign { token, .. }
            | Self::Decrypt { token, .. }
            | Self::Login { token, .. }
            | Self::Logout { token }
            | Self::KeepAlive { token }
            | Self::PublicKey { token, .. }
            | Self::Generate { token, .. }
            | Self::Import { token, .. }
            | Self::Keys { token, .. }
            | Self::Certificates { token, .. }
            | Self::WriteCertificate { token, .. }
            | Self::Delete { token, .. } => Some(*token),
            Self::WithPin { verb, .. } => verb.token(),
        }
    }
}

/// What a token is given to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// The digest of the message, by the hash of the scheme.
    Digest,
    /// The message.
    Message,
}

/// Whether the last try before a token locks may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LastTry {
    /// It is kept for a person.
    Keep,
    /// A person said to use it.
    Use,
}

/// What came of a PIN that a person gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UnlockOutcome {
    /// The token took it.
    Taken,
    /// The token was unlocked already, so it did not look at the PIN, which may be wrong.
    AlreadyUnlocked,
}

/// What a generated private key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyUse {
    /// Sign.
    Sign,
    /// Sign and decrypt (RSA): for a merchant's WeChat Pay key, whose certificate the platform
    /// encrypts for.
    SignAndDecrypt,
    /// Decrypt only (RSA): for a key that secrets are sealed to.
    Decrypt,
}

/// The numbers of an RSA private key (RFC 8017 appendix A.1.2), big-endian.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct RsaPrivateParts {
    /// `CKA_MODULUS`.
    #[serde(with = "bytes")]
    pub modulus: Vec<u8>,
    /// `CKA_PUBLIC_EXPONENT`.
    #[serde(with = "bytes")]
    pub public_exponent: Vec<u8>,
    /// `CKA_PRIVATE_EXPONENT`, `CKA_PRIME_1`, `CKA_PRIME_2`, `CKA_EXPONENT_1`, `CKA_EXPONENT_2`,
    /// `CKA_COEFFICIENT`.
    pub secret: [PlainBytes; 6],
}

/// A certificate as `C_CreateObject` wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateParts {
    /// `CKA_ID`.
    pub id: Vec<u8>,
    /// `CKA_LABEL`.
    pub label: String,
    /// `CKA_VALUE`: the DER certificate.
    #[serde(with = "bytes")]
    pub der: Vec<u8>,
    /// `CKA_SUBJECT`: the DER name.
    #[serde(with = "bytes")]
    pub subject: Vec<u8>,
    /// `CKA_ISSUER`: the DER name.
    #[serde(with = "bytes")]
    pub issuer: Vec<u8>,
    /// `CKA_SERIAL_NUMBER`: the DER INTEGER.
    #[serde(with = "bytes")]
    pub serial: Vec<u8>,
}

/// The answer to one call.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The call's number.
    pub id: u64,
    /// What came of it.
    pub result: Result<Answer, Failure>,
}

/// What a call brought.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// The bytes of `C_Sign`.
    Signature(#[serde(with = "bytes")] Vec<u8>),
    /// What `C_Decrypt` brought.
    Plaintext(PlainBytes),
    /// The tokens present.
    Tokens(Vec<TokenInfo>),
    /// What came of a login.
    Login(LoginOutcome),
    /// A public key.
    PublicKey(PublicParts),
    /// A key pair generated and proven, but for what was waived and had to be.
    Generated(PublicParts, Vec<Waiver>),
    /// A key pair stored, which the token will not show again.
    Imported(PublicParts),
    /// A page of keys, and the cursor of the next.
    Keys(Vec<KeyEntry>, Option<u32>),
    /// A page of certificates, and the cursor of the next.
    Certificates(Vec<CertificateEntry>, Option<u32>),
    /// What came of [`Verb::Administer`].
    Administered(Administered),
    /// Done.
    Done,
}

/// What came of a login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginOutcome {
    /// The token took the PIN.
    Ok,
    /// Logged in before, so the PIN was not looked at.
    Already,
    /// The token refused the PIN: one try is spent.
    Wrong {
        /// The CKR name.
        code: String,
    },
    /// The token is locked. Nothing was tried, or the try locked it.
    Locked,
    /// One try is left. Nothing was tried.
    FinalTry,
    /// It failed before the PIN reached the token.
    NotTried {
        /// The CKR name.
        code: String,
    },
    /// It failed, and whether a try was spent is not known.
    Uncertain {
        /// The CKR name.
        code: String,
    },
}

/// A token as `C_GetTokenInfo` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// How calls name it, as long as this worker lives.
    pub number: u16,
    /// `label`.
    pub label: String,
    /// `serialNumber`.
    pub serial: String,
    /// `manufacturerID`.
    pub manufacturer: String,
    /// `model`.
    pub model: String,
    /// `firmwareVersion`.
    pub firmware: String,
    /// The flags.
    pub flags: TokenFlags,
    /// Whether this worker is logged in.
    pub logged_in: bool,
    /// What it can generate.
    pub generates: Vec<KeySpec>,
    /// How it can sign.
    pub signs: Vec<Scheme>,
    /// For which of these it has to be given the message, as it hashes by itself only.
    pub hashes: Vec<Scheme>,
}

/// The flags of a token that matter here (PKCS#11 v3.0 section 3.2, `CK_TOKEN_INFO`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenFlags {
    /// `CKF_LOGIN_REQUIRED`.
    pub login_required: bool,
    /// `CKF_USER_PIN_INITIALIZED`.
    pub pin_initialized: bool,
    /// `CKF_PROTECTED_AUTHENTICATION_PATH`: the PIN is typed on the device.
    pub protected_path: bool,
    /// `CKF_USER_PIN_COUNT_LOW`: a wrong PIN was given since the last right one.
    pub pin_count_low: bool,
    /// `CKF_USER_PIN_FINAL_TRY`.
    pub pin_final_try: bool,
    /// `CKF_USER_PIN_LOCKED`.
    pub pin_locked: bool,
    /// `CKF_WRITE_PROTECTED`.
    pub write_protected: bool,
}

/// A public key as the token gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PublicParts {
    /// `CKK_RSA`.
    Rsa {
        /// `CKA_MODULUS`.
        #[serde(with = "bytes")]
        modulus: Vec<u8>,
        /// `CKA_PUBLIC_EXPONENT`.
        #[serde(with = "bytes")]
        exponent: Vec<u8>,
    },
    /// `CKK_EC` or `CKK_EC_EDWARDS`.
    Ec {
        /// `CKA_EC_PARAMS`.
        #[serde(with = "bytes")]
        parameters: Vec<u8>,
        /// `CKA_EC_POINT`.
        #[serde(with = "bytes")]
        point: Vec<u8>,
    },
    /// No public key object, but a certificate with the same `CKA_ID`.
    Certificate(#[serde(with = "bytes")] Vec<u8>),
}

/// A private key in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEntry {
    /// `CKA_ID`; may be empty.
    pub id: Vec<u8>,
    /// `CKA_LABEL`, cut at [`LABEL_MAX`].
    pub label: String,
    /// What it is, where it is something we know.
    pub spec: Option<KeySpec>,
    /// `CKA_ALWAYS_AUTHENTICATE`: each use needs a login of its own.
    pub always_authenticate: bool,
}

/// A certificate in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateEntry {
    /// `CKA_ID`; may be empty.
    pub id: Vec<u8>,
    /// `CKA_VALUE`.
    #[serde(with = "bytes")]
    pub der: Vec<u8>,
}

/// Why a call brought nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// A PKCS#11 function failed.
    Pkcs11 {
        /// Its name.
        function: String,
        /// The CKR name.
        code: String,
        /// What to do about it.
        class: Class,
    },
    /// No such token number, or the token left its slot.
    TokenGone,
    /// Nobody is logged in, so private keys do not show.
    LoggedOut,
    /// The key wants a login for each use, and there was no PIN with the call. Nothing was done.
    PinWanted,
    /// No private key has this `CKA_ID`.
    KeyMissing,
    /// More than one private key has this `CKA_ID`.
    KeyAmbiguous,
    /// The `CKA_ID` is taken.
    KeyExists,
    /// The key found under a known `CKA_ID` is another key now.
    KeyChanged,
    /// The key is not of the type that the scheme needs.
    KeyType,
    /// The ciphertext is not one for this key. Why is not said: it would help to find plaintexts.
    Undecryptable,
    /// The digest has the wrong length for the scheme, or the message is too long.
    InputLength,
    /// A generated key lacks an attribute; it was destroyed.
    KeyNotProven {
        /// The attribute.
        attribute: String,
    },
    /// The token cannot do it.
    Unsupported {
        /// What it lacks.
        what: String,
    },
    /// The cursor of a list is too old.
    CursorExpired,
}

/// What to do about a return value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// The request was wrong: tell the caller.
    Caller,
    /// Log in again, guarded, once.
    Login,
    /// Find the key again, once.
    Handle,
    /// Open another session, once.
    Session,
    /// Too many sessions or too little memory: use fewer.
    Shrink,
    /// A PIN was refused: stop, a person is needed.
    Pin,
    /// The token left, or moved to another slot: look at the slots again, once.
    Gone,
    /// The library or the token is unwell: replace the worker.
    Respawn,
}

/// For the fuzz target of the frames: each frame that is read is written back as it was.
#[cfg(fuzzing)]
pub fn fuzz_packet(packet: &[u8]) {
    fn round_trip<T: serde::Serialize + for<'a> serde::Deserialize<'a>>(frame: &[u8]) {
        if let Ok(value) = decode::<T>(frame) {
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            if append(&mut once, &value).is_ok() {
                for frame in split(&once).flatten() {
                    let again = decode::<T>(frame);
                    let _ = again.map(|again| append(&mut twice, &again));
                }
                assert!(once == twice, "a frame is not read as it was written");
            }
        }
    }
    for frame in split(packet).flatten() {
        round_trip::<ToWorker>(frame);
        round_trip::<FromWorker>(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::super::sandbox::{Sandbox, SandboxLevel};
    use super::*;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    fn samples() -> Vec<Verb> {
        vec![
            Verb::Sign {
                token: 3,
                key: vec![1; 16],
                scheme: Scheme::Es256,
                input: Input::Digest,
                data: vec![7; 32],
            },
            Verb::Decrypt {
                token: 3,
                key: vec![1; 16],
                input: vec![7; 256],
            },
            Verb::Tokens,
            Verb::Login {
                token: 0,
                pin: PinBytes::new("123456"),
                last_try: LastTry::Keep,
            },
            Verb::PublicKey {
                token: 1,
                key: vec![0xff],
            },
            Verb::Generate {
                token: 1,
                key: vec![2; 64],
                label: "é".into(),
                spec: KeySpec::Ed25519,
                r#use: KeyUse::Sign,
                waived: vec![Waiver::NeverExtractable],
            },
            Verb::Keys {
                token: 0,
                cursor: Some(9),
            },
            Verb::Certificates {
                token: 0,
                cursor: None,
            },
            Verb::WriteCertificate {
                token: 0,
                certificate: CertificateParts {
                    id: vec![1],
                    label: "l".into(),
                    der: vec![0x30; CERTIFICATE_MAX],
                    subject: vec![0x30],
                    issuer: vec![],
                    serial: vec![2, 1, 1],
                },
            },
            Verb::Delete {
                token: 65535,
                key: vec![],
            },
            Verb::WithPin {
                pin: Some(PinBytes::new("123456")),
                login: LoginPolicy::PerOperation,
                verb: Box::new(Verb::Delete {
                    token: 1,
                    key: vec![3],
                }),
            },
            Verb::Administer(Box::new(Administer {
                target: Target::Named {
                    label: Some("pay".into()),
                    serial: None,
                },
                work: Work::ChangePin {
                    old: Some(PinBytes::new("1234")),
                    new: None,
                },
                last_try: LastTry::Use,
            })),
        ]
    }

    #[test]
    fn calls_round_trip_many_to_a_packet() {
        let mut packet = Vec::new();
        let calls: Vec<_> = samples()
            .into_iter()
            .enumerate()
            .map(|(id, verb)| {
                ToWorker::Call(Call {
                    id: id as u64,
                    verb,
                })
            })
            .collect();
        for call in &calls {
            append(&mut packet, call).unwrap();
        }
        let read: Vec<ToWorker> = split(&packet)
            .map(|frame| decode(frame.unwrap()).unwrap())
            .collect();
        assert_eq!(read, calls);
    }

    #[test]
    fn replies_round_trip() {
        for result in [
            Ok(Answer::Signature(vec![1; 384])),
            Ok(Answer::Plaintext(PlainBytes::new(Zeroizing::new(
                b"name".to_vec(),
            )))),
            Ok(Answer::Login(LoginOutcome::Wrong {
                code: "CKR_PIN_INCORRECT".into(),
            })),
            Ok(Answer::PublicKey(PublicParts::Rsa {
                modulus: vec![0xc0; 512],
                exponent: vec![1, 0, 1],
            })),
            Err(Failure::Pkcs11 {
                function: "C_Sign".into(),
                code: "CKR_DEVICE_ERROR".into(),
                class: Class::Respawn,
            }),
        ] {
            let reply = FromWorker::Reply(Reply {
                id: 1 << 40,
                result,
            });
            let mut packet = Vec::new();
            append(&mut packet, &reply).unwrap();
            let frame = split(&packet).next().unwrap().unwrap();
            assert_eq!(decode::<FromWorker>(frame).unwrap(), reply);
        }
    }

    #[test]
    fn what_goes_with_the_hello_round_trips() {
        let prepare = ToWorker::Prepare {
            confinement: Confinement {
                sandbox: Sandbox::Pcscd,
                readable: vec!["/etc/vendor.conf".into()],
                writable: Vec::new(),
            },
            parameters: Some("flags=".into()),
            slot_events: true,
        };
        let confined = |missing| {
            FromWorker::Confined(SandboxStatus {
                profile: Sandbox::Pcscd,
                level: SandboxLevel::On,
                missing,
            })
        };
        let mut packet = Vec::new();
        append(&mut packet, &prepare).unwrap();
        let frame = split(&packet).next().unwrap().unwrap();
        assert_eq!(decode::<ToWorker>(frame).unwrap(), prepare);
        for confined in [confined(Vec::new()), confined(vec!["signals".into()])] {
            let mut packet = Vec::new();
            append(&mut packet, &confined).unwrap();
            let frame = split(&packet).next().unwrap().unwrap();
            assert_eq!(decode::<FromWorker>(frame).unwrap(), confined);
        }
    }

    /// The bytes of the two first frames never change, or builds could not tell that they differ.
    #[test]
    fn the_hello_is_fixed() {
        let mut packet = Vec::new();
        let hello = ToWorker::Hello {
            protocol: 1,
            module: "/m".into(),
            threads: 2,
        };
        append(&mut packet, &hello).unwrap();
        assert_eq!(packet, [6, 0, 0, 0, 0, 1, 2, b'/', b'm', 2]);
    }

    #[test]
    fn what_is_too_large_is_refused_and_leaves_the_packet_alone() {
        let mut packet = vec![1, 2, 3];
        let call = ToWorker::Call(Call {
            id: 1,
            verb: Verb::Sign {
                token: 0,
                key: vec![],
                scheme: Scheme::EdDsa,
                input: Input::Message,
                data: vec![0; PACKET_MAX],
            },
        });
        assert!(matches!(
            append(&mut packet, &call),
            Err(FrameError::TooLarge { .. })
        ));
        assert_eq!(packet, [1, 2, 3]);
    }

    #[test]
    fn trailing_bytes_are_malformed() {
        let mut packet = Vec::new();
        append(
            &mut packet,
            &FromWorker::Reply(Reply {
                id: 1,
                result: Ok(Answer::Done),
            }),
        )
        .unwrap();
        let mut frame = split(&packet).next().unwrap().unwrap().to_vec();
        frame.push(0);
        assert_eq!(decode::<FromWorker>(&frame), Err(FrameError::Malformed));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            for frame in split(&bytes).flatten() {
                let _ = decode::<ToWorker>(frame);
                let _ = decode::<FromWorker>(frame);
            }
            let _ = decode::<ToWorker>(&bytes);
            let _ = decode::<FromWorker>(&bytes);
        }
    }
}
