//! Why nothing was signed, and why what was signed before cannot be read back.
//!
//! Stable codes and texts for people never live here: `api` has them.

use super::MAX_ENTRIES;
use crate::audit::AuditError;
use crate::audit::verify::VerifyError;
use crate::base::cms::CmsError;
use crate::consent::ConsentError;
use crate::device::DeviceError;
use crate::enrol::Standing;
use crate::policy::Refusal;
use crate::statement::strict::FieldError;
use crate::statement::{Origin, ServiceError};

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The challenge is refused.
    #[error("the challenge is refused: {0}")]
    Challenge(ServiceError),
    /// The list of payees beside it is not the one of its statement.
    #[error("the list of payees is refused: {0}")]
    Payees(FieldError),
    /// It expires no later than challenges that were forgotten, so it may have been answered. The
    /// clock was set back.
    #[error("the challenge has expired: later ones have been forgotten here")]
    Forgotten,
    /// The page that relayed it is not the one the challenge names.
    #[error("the challenge may not be relayed by {}", origin)]
    Origin {
        /// Who relayed.
        origin: Origin,
    },
    /// No operator of the account has a certificate on this computer.
    #[error("no certificate for account {account} is installed on this computer")]
    OtherAccount {
        /// The account.
        account: String,
    },
    /// The operator has no certificate on this computer.
    #[error(
        "no certificate of operator {operator} for account {account} is installed on this computer"
    )]
    NoCertificate {
        /// The account.
        account: String,
        /// The operator.
        operator: String,
    },
    /// The certificate must not sign.
    #[error("the certificate must not sign: it is {}", standing_text(*standing))]
    Standing {
        /// How it stands.
        standing: Standing,
    },
    /// Somebody else has had the answer to this challenge, or it was another challenge of the
    /// same id.
    #[error("the challenge was used before")]
    Used,
    /// A person has refused this challenge before.
    #[error("a person refused this operation")]
    Denied,
    /// Policy says no.
    #[error("policy refuses: {0}")]
    Policy(#[from] Refusal),
    /// Nobody could be asked, or the person did not agree.
    #[error(transparent)]
    Consent(#[from] ConsentError),
    /// Too many challenges are remembered.
    #[error("{MAX_ENTRIES} challenges are under way, which is the limit")]
    Busy,
    /// The record cannot be written, so nothing is signed.
    #[error("the audit record cannot be written, so nothing was signed")]
    Audit(#[from] AuditError),
    /// What became of the challenge before cannot be read back.
    #[error("the answer that was given before cannot be read back")]
    ReadBack(#[from] RestoreError),
    /// The token did not sign.
    #[error("the token did not sign")]
    Device(#[from] DeviceError),
    /// The CMS structure cannot be built.
    #[error(transparent)]
    Cms(#[from] CmsError),
    /// The approval cannot be written as JSON.
    #[error("the approval cannot be written")]
    Encode(#[from] serde_json::Error),
}

impl SigningError {
    /// The policy rule that refused, where one did.
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::Policy(refusal) => Some(&refusal.rule),
            _ => None,
        }
    }
}

/// Why the memory of answered challenges cannot be read back. Without it nothing may be signed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The audit log cannot be read.
    #[error("the audit log cannot be read back")]
    Log(#[from] VerifyError),
    /// A record does not have the form it was written in.
    #[error("audit record {seq} does not have the form of its kind")]
    Record {
        /// Its number.
        seq: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The record is not where it was written.
    #[error("audit record {seq} is not an approval")]
    Missing {
        /// Its number.
        seq: u64,
    },
    /// The program failed.
    #[error("the audit log was not read")]
    Task(#[from] tokio::task::JoinError),
}

fn standing_text(standing: Standing) -> &'static str {
    match standing {
        Standing::Active => "active",
        Standing::NotYetValid => "not valid yet",
        Standing::Expired => "expired",
        Standing::Revoked => "revoked",
        Standing::Superseded => "superseded by a newer one",
    }
}
