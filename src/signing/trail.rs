//! The records of approvals: what the audit log holds of a challenge, and what it says of it later.
//!
//! The first, `approval`, is durable before a signature leaves; `approval-signed` says what was
//! given out, `approval-denied` that a person said no. A field that is added is one that may be
//! missing: records of before are read for as long as challenges live. Who is remembered without
//! reading the log never lives here: see `memory`.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::RestoreError;
use super::memory::{Answer, Progress, Recorded, Seq};
use crate::audit::Record;
use crate::audit::read::Records;
use crate::base::encoding::{base64, base64url, from_base64, from_base64url};
use crate::base::ids::Jti;
use crate::base::key::Signature;
use crate::enrol::Snapshot;
use crate::policy::{Caller, ConsentRule};
use crate::statement::{ApprovalDraft, Origin};

/// Body of the `approval` record: durable before the signature leaves.
#[derive(Debug, Serialize, Deserialize)]
pub struct ApprovalRecord {
    /// Who asked.
    pub owner: Caller,
    /// The issuing service.
    pub service: Origin,
    /// The challenge's id.
    pub challenge_jti: Jti,
    /// SHA-256 of the compact challenge, base64url.
    pub challenge: String,
    /// When the challenge expires, Unix seconds.
    pub expires: i64,
    /// The approval's id.
    pub jti: Jti,
    /// Fingerprint of the certificate.
    pub certificate: String,
    /// The key that signs.
    pub key: String,
    /// The consent that was given; records of the first version do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<ConsentRule>,
    /// The policy rule that allowed it; records of the first version have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The approval's payload, byte for byte.
    pub payload: Box<RawValue>,
}

impl ApprovalRecord {
    /// Its kind in the log.
    pub const KIND: &'static str = "approval";
}

/// Body of the `approval-signed` record: what was given out.
#[derive(Debug, Serialize, Deserialize)]
pub struct SignedRecord {
    /// The challenge's id.
    pub challenge_jti: Jti,
    /// The signature, base64url.
    pub signature: String,
    /// The CMS signature, base64 DER, where one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cms: Option<String>,
}

impl SignedRecord {
    /// Its kind in the log.
    pub const KIND: &'static str = "approval-signed";

    /// For a signature that was just made.
    pub fn new(challenge_jti: Jti, signature: &Signature, cms: Option<&[u8]>) -> Self {
        Self {
            challenge_jti,
            signature: base64url(signature.as_bytes()),
            cms: cms.map(base64),
        }
    }

    fn answer(&self) -> Option<Answer> {
        Some(Answer {
            signature: Signature::from_jose(from_base64url(&self.signature)?),
            cms: match &self.cms {
                None => None,
                Some(text) => Some(from_base64(text.as_bytes())?.into()),
            },
        })
    }
}

/// Body of the `approval-denied` record: a person said no.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeniedRecord {
    /// Who asked.
    pub owner: Caller,
    /// The challenge's id.
    pub challenge_jti: Jti,
    /// When the challenge expires, Unix seconds.
    pub expires: i64,
}

impl DeniedRecord {
    /// Its kind in the log.
    pub const KIND: &'static str = "approval-denied";
}

/// Reads back what a challenge came to, from its record on: the answer follows it in the log.
pub fn read_back(
    seq: Seq,
    records: Records,
    snapshot: &Snapshot,
) -> Result<Progress, RestoreError> {
    let mut recorded: Option<(Jti, Recorded)> = None;
    for record in records {
        let record = record?;
        match (&recorded, record.kind.as_str()) {
            (None, ApprovalRecord::KIND) if record.seq == seq => {
                let body: ApprovalRecord = read(&record)?;
                let Some(installed) = snapshot.by_fingerprint(&body.certificate) else {
                    return Ok(Progress::Spent(seq));
                };
                let draft =
                    ApprovalDraft::from_payload(body.jti, body.payload.get().as_bytes().to_vec());
                let unsound = |source| RestoreError::Record { seq, source };
                let origin = draft.origin().map_err(unsound)?;
                let given = match body.given {
                    Some(given) => given,
                    // Records of the first version do not say it.
                    None => ConsentRule::of_method(draft.consent().map_err(unsound)?.method),
                };
                let found = Recorded {
                    seq,
                    owner: body.owner,
                    origin,
                    challenge: body.challenge,
                    draft,
                    given,
                    installed: installed.clone(),
                };
                recorded = Some((body.challenge_jti, found));
            }
            (Some((jti, found)), SignedRecord::KIND) => {
                let body: SignedRecord = read(&record)?;
                if body.challenge_jti == *jti
                    && let Some(answer) = body.answer()
                {
                    return Ok(Progress::Approved(found.clone(), answer));
                }
            }
            (None, _) => return Err(RestoreError::Missing { seq }),
            _ => {}
        }
    }
    match recorded {
        Some((_, recorded)) => Ok(Progress::Recorded(recorded)),
        None => Err(RestoreError::Missing { seq }),
    }
}

/// The body of a record of a known kind.
pub fn read<T: for<'de> Deserialize<'de>>(record: &Record) -> Result<T, RestoreError> {
    serde_json::from_str(record.body.get()).map_err(|source| RestoreError::Record {
        seq: record.seq,
        source,
    })
}
