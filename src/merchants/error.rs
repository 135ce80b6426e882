//! Why something was not done for a merchant.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::audit::AuditError;
use crate::audit::verify::VerifyError as LogError;
use crate::base::files::FileError;
use crate::base::jwe::JweError;
use crate::base::x509::X509Error;
use crate::device::{DeviceError, InvalidPrivateKey};
use crate::policy::Refusal;
use crate::statement::{SecretKind, ServiceError};
use crate::wechatpay::v2::{FieldsError, SignError, XmlError};
use crate::wechatpay::v3::{MessageError, PlatformError, VerifyError};
use crate::wechatpay::{InvalidSecret, MerchantId};

/// What a merchant lacks, as in "has …".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It was never certified.
    Certificate,
    /// Its certificates have ended or not begun.
    ValidCertificate,
    /// No issuer of platform certificates is trusted.
    Authority,
    /// No platform key is in its time.
    EncryptionKey,
    /// There is no API key of that id, or it is the only one.
    RemovableKey,
    /// There is no platform key of that name.
    PlatformKey,
}

impl Missing {
    /// What to do about it.
    pub fn action(self) -> &'static str {
        match self {
            Self::Certificate => {
                "Install the certificate that the merchant platform issued, with `opcert wechatpay merchant certificate`."
            }
            Self::ValidCertificate => {
                "See its dates with `opcert wechatpay merchant list`; `merchant renew` makes a key for the next one."
            }
            Self::Authority => {
                "Name the issuers of platform certificates with `opcert wechatpay platform trust`."
            }
            Self::EncryptionKey => {
                "Fetch the platform's certificates with `opcert wechatpay platform fetch`, or pin its public key with `opcert wechatpay platform pin`."
            }
            Self::RemovableKey => {
                "See the keys and their ids with `opcert wechatpay merchant list`; the last one goes with the merchant."
            }
            Self::PlatformKey => "See the names with `opcert wechatpay merchant list`.",
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "no API certificate yet",
            Self::ValidCertificate => "no API certificate that is valid now",
            Self::Authority => "no authority to trust for platform certificates",
            Self::EncryptionKey => "no platform key to encrypt for",
            Self::RemovableKey => "no other key of that id to remove",
            Self::PlatformKey => "no platform key of that name",
        })
    }
}

/// Why something was not done for a merchant. No variant carries a secret or part of a plaintext.
#[derive(Debug, thiserror::Error)]
pub enum MerchantError {
    /// There is no such merchant here.
    #[error("merchant {merchant} is not installed here")]
    Unknown {
        /// The merchant.
        merchant: MerchantId,
    },
    /// There is one already.
    #[error("merchant {merchant} is installed already")]
    Exists {
        /// The merchant.
        merchant: MerchantId,
    },
    /// There is no room for more.
    #[error("there are {max} {what} already")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most there can be.
        max: usize,
    },
    /// Something has to be installed first.
    #[error("merchant {merchant} has {missing}")]
    NotReady {
        /// The merchant.
        merchant: MerchantId,
        /// What it lacks.
        missing: Missing,
    },
    /// A secret that the call needs was never set.
    #[error("merchant {merchant} has no {kind} secret")]
    NoSecret {
        /// The merchant.
        merchant: MerchantId,
        /// Which.
        kind: SecretKind,
    },
    /// Policy.
    #[error(transparent)]
    Policy(#[from] Refusal),
    /// The token.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The audit trail.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The audit trail cannot be read back.
    #[error("the audit log cannot be read back")]
    Log(#[source] LogError),
    /// There is nothing to sign.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The body is not the platform's.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// What was to be read is malformed; which part, the text says.
    #[error("{what}")]
    Malformed {
        /// A sentence without a full stop.
        what: &'static str,
    },
    /// Encrypted content does not open. For all reasons the same.
    #[error("the encrypted content does not open")]
    Closed,
    /// A field is too long to be encrypted.
    #[error("a field is longer than {max} bytes")]
    FieldTooLong {
        /// The longest, in bytes of UTF-8.
        max: usize,
    },
    /// This very message was opened before.
    #[error("this message was opened before, at {first}")]
    Replayed {
        /// When.
        first: Timestamp,
    },
    /// Too many deliveries are remembered.
    #[error("too many callbacks are remembered, none of them old enough to be forgotten")]
    MemoryFull,
    /// XML of version 2.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// Fields of version 2.
    #[error(transparent)]
    Fields(#[from] FieldsError),
    /// A message of version 2 was not signed, or does not verify.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// A platform key was not taken.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The certificate does not fit the merchant's key.
    #[error("the certificate {problem}")]
    Certificate {
        /// As in "the certificate …".
        problem: &'static str,
    },
    /// A structure cannot be read or made.
    #[error("the certificate or request cannot be read or made")]
    X509(#[from] X509Error),
    /// The private key to import is none.
    #[error("the private key cannot be imported")]
    PrivateKey(#[from] InvalidPrivateKey),
    /// The secret cannot be one.
    #[error(transparent)]
    Secret(#[from] InvalidSecret),
    /// A sealed secret is for none of the sealing keys here, or does not open.
    #[error("the sealed secret cannot be used")]
    Sealed(#[from] JweError),
    /// A sealed secret is of another kind than was said around it.
    #[error("the sealed secret is of another kind than the message around it says")]
    OtherKind,
    /// What the account service signed.
    #[error("the sealed secret is refused")]
    Service(#[from] ServiceError),
    /// It is of an account that the merchant is not linked to.
    #[error("merchant {merchant} takes no secrets from account {account} of {service}")]
    NotLinked {
        /// The merchant.
        merchant: MerchantId,
        /// The account.
        account: String,
        /// The service.
        service: String,
    },
    /// An older one than is known.
    #[error("the sealed secret has version {version}, and version {known} is here already")]
    Old {
        /// Its version.
        version: u64,
        /// The version here.
        known: u64,
    },
    /// The state file cannot be read or written.
    #[error("the merchants' state cannot be kept")]
    File(#[from] FileError),
    /// The state file does not hold what we wrote.
    #[error("{} is damaged: {problem}; restore it from a backup, or move it away and add the merchants again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The work was cut off.
    #[error("a task failed: {problem}")]
    Task {
        /// What is known.
        problem: String,
    },
}
