//! One answer per challenge: what was approved, for whom, until when.
//!
//! An [`Entry`] belongs to one challenge id. Its lock makes two requests for the same challenge
//! take turns; its progress says what the second one gets. Nothing is kept on disk here: the
//! audit log is the store. An `approval` record is durable before a signature leaves, so after a
//! restart [`Memory::restore`] finds every challenge that may have been answered.
//!
//! BOUNDS. An entry is forgotten once its challenge has been expired for [`GRACE`], by the
//! monotonic clock, so that no step of the wall clock makes room for a second answer early. At
//! most [`MAX_ENTRIES`] are kept; past that, new challenges are refused until old ones expire.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::RestoreError;
use crate::audit::Record;
use crate::audit::verify::VerifyError;
use crate::base::encoding::{base64url, from_base64, from_base64url};
use crate::base::ids::Jti;
use crate::base::key::Signature;
use crate::enrol::{Installed, Snapshot};
use crate::policy::Caller;
use crate::statement::{ApprovalDraft, Origin};

/// How long an answer outlives its challenge.
pub const GRACE: Duration = Duration::from_secs(60);

/// Most challenges remembered at once.
pub const MAX_ENTRIES: usize = 131_072;

/// What one challenge has come to.
#[derive(Debug, Default)]
pub enum Progress {
    /// Nothing durable came of it yet.
    #[default]
    Fresh,
    /// A person said no: that is final.
    Denied,
    /// It was approved with a certificate that is not here any more.
    Spent,
    /// The record is durable, and no signature has left.
    Recorded(Recorded),
    /// The approval was made.
    Approved(Recorded, Answer),
}

/// What was decided, so that the same payload can be signed again if the first try was lost.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Who asked; nobody else gets an answer.
    pub owner: Caller,
    /// SHA-256 of the compact challenge, base64url.
    pub challenge: String,
    /// The approval without its signature.
    pub draft: ApprovalDraft,
    /// The certificate it was made for.
    pub installed: Arc<Installed>,
}

/// What was signed: all that a payload lacks to be an approval again.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The signature of the JWS.
    pub signature: Signature,
    /// The CMS signature, where one was asked for.
    pub cms: Option<Arc<[u8]>>,
}

impl Answer {
    /// The compact JWS, to the byte as it was given out.
    pub fn approval(&self, recorded: &Recorded) -> String {
        let input = recorded.draft.signing_input(&recorded.installed.header);
        ApprovalDraft::assemble(input, &self.signature)
    }
}

/// One challenge's place: lock it, read its progress, move it on.
#[derive(Debug, Default)]
pub struct Entry(tokio::sync::Mutex<Progress>);

impl Entry {
    /// Waits for its turn. A holder that goes away leaves the progress as it was.
    pub async fn lock(&self) -> tokio::sync::MutexGuard<'_, Progress> {
        self.0.lock().await
    }
}

/// Every challenge that is not long expired.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Jti, (Arc<Entry>, Instant)>,
    by_end: BTreeSet<(Instant, Jti)>,
}

/// There is no room for another challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom;

impl Memory {
    /// The entry of a challenge that expires at `expires_at`; made if there is none.
    pub fn entry(
        &self,
        jti: &Jti,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Arc<Entry>, NoRoom> {
        let instant = Instant::now();
        let mut state = self.lock();
        state.forget(instant);
        if let Some((entry, _)) = state.entries.get(jti) {
            return Ok(entry.clone());
        }
        if state.entries.len() >= MAX_ENTRIES {
            return Err(NoRoom);
        }
        Ok(state.insert(jti.clone(), Entry::default(), instant, expires_at, now))
    }

    /// The entry of a challenge, if it is remembered.
    pub fn find(&self, jti: &Jti) -> Option<Arc<Entry>> {
        let mut state = self.lock();
        state.forget(Instant::now());
        state.entries.get(jti).map(|(entry, _)| entry.clone())
    }

    /// Takes over the records of the audit log that a restart must not forget. Records of other
    /// kinds are passed over; `snapshot` gives the certificates whose headers approvals carry.
    pub fn restore(
        &self,
        records: impl Iterator<Item = Result<Record, VerifyError>>,
        snapshot: &Snapshot,
        now: Timestamp,
    ) -> Result<usize, RestoreError> {
        let instant = Instant::now();
        let mut restored: HashMap<Jti, (Progress, Timestamp)> = HashMap::new();
        for record in records {
            let record = record?;
            match record.kind.as_str() {
                ApprovalRecord::KIND => {
                    let body: ApprovalRecord = read(&record)?;
                    let end = Timestamp::from_second(body.expires).unwrap_or(now);
                    let progress = match snapshot.by_fingerprint(&body.certificate) {
                        None => Progress::Spent,
                        Some(installed) => Progress::Recorded(Recorded {
                            owner: body.owner,
                            challenge: body.challenge,
                            draft: ApprovalDraft::from_payload(
                                body.jti,
                                body.payload.get().as_bytes().to_vec(),
                            ),
                            installed: installed.clone(),
                        }),
                    };
                    restored.insert(body.challenge_jti, (progress, end));
                }
                SignedRecord::KIND => {
                    let body: SignedRecord = read(&record)?;
                    if let Some((progress, _)) = restored.get_mut(&body.challenge_jti)
                        && let Progress::Recorded(recorded) = progress
                        && let Some(answer) = body.answer()
                    {
                        *progress = Progress::Approved(recorded.clone(), answer);
                    }
                }
                DeniedRecord::KIND => {
                    let body: DeniedRecord = read(&record)?;
                    let end = Timestamp::from_second(body.expires).unwrap_or(now);
                    restored.insert(body.challenge_jti, (Progress::Denied, end));
                }
                _ => {}
            }
        }
        let count = restored.len();
        let mut state = self.lock();
        for (jti, (progress, end)) in restored {
            let entry = Entry(tokio::sync::Mutex::new(progress));
            state.insert(jti, entry, instant, end, now);
        }
        Ok(count)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Every change of the state is complete before the lock is given back.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn insert(
        &mut self,
        jti: Jti,
        entry: Entry,
        instant: Instant,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Arc<Entry> {
        let left = u64::try_from(expires_at.as_second() - now.as_second()).unwrap_or(0);
        let end = instant + Duration::from_secs(left) + GRACE;
        let entry = Arc::new(entry);
        self.by_end.insert((end, jti.clone()));
        self.entries.insert(jti, (entry.clone(), end));
        entry
    }

    fn forget(&mut self, instant: Instant) {
        while let Some((end, _)) = self.by_end.first() {
            if *end > instant {
                break;
            }
            if let Some((_, jti)) = self.by_end.pop_first() {
                self.entries.remove(&jti);
            }
        }
    }
}

pub(super) fn read<T: for<'de> Deserialize<'de>>(record: &Record) -> Result<T, RestoreError> {
    serde_json::from_str(record.body.get()).map_err(|source| RestoreError::Record {
        seq: record.seq,
        source,
    })
}

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
            cms: cms.map(crate::base::encoding::base64),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_same_challenge_has_one_entry() {
        let memory = Memory::default();
        let jti = Jti::random();
        let first = memory.entry(&jti, at(100), at(0)).unwrap();
        let second = memory.entry(&jti, at(100), at(0)).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert!(memory.find(&Jti::random()).is_none());
    }

    #[test]
    fn an_entry_is_forgotten_only_after_its_grace() {
        let mut state = State::default();
        let start = Instant::now();
        let jti = Jti::random();
        state.insert(jti.clone(), Entry::default(), start, at(10), at(0));
        state.forget(start + Duration::from_secs(69));
        assert!(state.entries.contains_key(&jti));
        state.forget(start + Duration::from_secs(70));
        assert!(state.entries.is_empty() && state.by_end.is_empty());
    }
}
