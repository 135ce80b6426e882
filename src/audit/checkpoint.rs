//! Signed statements of how far the log reaches: what holds its owner to one history.
//!
//! At intervals and at the end a key on a token signs a checkpoint: the numbers of the first and
//! the last record that it covers, the hash of the last one, and the root of the Merkle tree over
//! the hashes of all of them. It is a JWS of type `opcert-checkpoint+jwt`, so no other key use can
//! make one, and it is itself a record (kind `checkpoint`, with the public key beside it), covered
//! by the next one. Checkpoints follow each other without a gap.
//!
//! A checkpoint is made beside the work: it asks the token for one signature, like any other call,
//! and nothing waits for it. Where it fails the next one covers more.
//!
//! Whoever keeps the key's thumbprint and the last checkpoint elsewhere can tell later whether the
//! log was rewritten, and can be shown a single record with a proof ([`super::proof`]).

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::OwnedMutexGuard;
use tokio::time::MissedTickBehavior;

use super::merkle::Frontier;
use super::read::{last_of_kind, range};
use super::record::{Hash, Record, RecordRef, has_next};
use super::verify::VerifyError;
use super::{Audit, AuditError, Event};
use crate::base::Clock;
use crate::base::jose::{self, Jwk, Jws, KidHeader};
use crate::base::key::{KeySpec, Scheme};
use crate::base::pkcs11::{KeyId, KeyRef, TokenUri};
use crate::device::{DeviceError, Devices};
use crate::policy::{self, Purpose, Refusal};
use crate::telemetry::Chain;
use crate::telemetry::metrics::metrics;

/// The kind of record that holds one.
pub const KIND: &str = "checkpoint";

/// The `typ` of one.
const TYPE: &str = "opcert-checkpoint+jwt";

/// The longest compact form that is read, in bytes.
const LIMIT: usize = 8 * 1024;

/// `CKA_ID` of the key that is made for checkpoints.
const KEY_ID: &[u8] = b"opcert-audit";

/// Its label.
const KEY_LABEL: &str = "opcert audit checkpoints";

/// The `[audit.checkpoint]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CheckpointConfig {
    /// The token that signs, as PKCS#11 URI. With `id=` the URI names a P-256 key that is there;
    /// without, the key with the id `opcert-audit` is used, and made if it is missing.
    #[schemars(with = "String")]
    pub token: TokenUri,
    /// Time between checkpoints; one is signed at the end too. Nothing is signed where nothing was
    /// recorded. Default 3600.
    #[serde(default = "hour")]
    pub interval_seconds: NonZeroU32,
}

fn hour() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(3599)
}

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Whose log it is: the computer's id, or the account service's origin.
    pub issuer: String,
    /// When it was signed, RFC 3339.
    pub time: String,
    /// The first record it covers.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// The hash of the last one, and by the chain of all before it.
    pub hash: Hash,
    /// The root of the tree over the hashes from `first` to `last`.
    pub root: Hash,
}

/// The body of a checkpoint's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// The claims, signed: a compact JWS.
    pub checkpoint: String,
    /// The key that signed.
    pub key: Jwk,
}

/// Why a checkpoint is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCheckpoint {
    /// It cannot be read.
    #[error("it is not a checkpoint")]
    Malformed,
    /// The key that stands beside it is not the one it names, or not one.
    #[error("the key beside it is not the one it is signed with")]
    Key,
    /// The signature is wrong.
    #[error("its signature does not verify")]
    Signature,
}

impl Checkpoint {
    /// The checkpoint in a record, if it is one's.
    pub fn of(record: &Record) -> Option<Result<Self, InvalidCheckpoint>> {
        (record.kind == KIND).then(|| {
            serde_json::from_str(record.body.get()).map_err(|_| InvalidCheckpoint::Malformed)
        })
    }

    /// What it says, if its signature is that of the key beside it.
    pub fn open(&self) -> Result<Claims, InvalidCheckpoint> {
        let malformed = |_| InvalidCheckpoint::Malformed;
        let jws = Jws::parse(&self.checkpoint, LIMIT).map_err(malformed)?;
        let header: KidHeader = jws.header(TYPE).map_err(malformed)?;
        if header.alg != Scheme::Es256 || header.kid != self.key.kid {
            return Err(InvalidCheckpoint::Key);
        }
        let key = self
            .key
            .to_public_key()
            .map_err(|_| InvalidCheckpoint::Key)?;
        key.verify(Scheme::Es256, jws.signing_input.as_bytes(), &jws.signature)
            .map_err(|_| InvalidCheckpoint::Signature)?;
        let claims: Claims =
            serde_json::from_slice(&jws.payload).map_err(|_| InvalidCheckpoint::Malformed)?;
        if claims.first == 0 || claims.first > claims.last || !has_next(claims.last) {
            return Err(InvalidCheckpoint::Malformed);
        }
        Ok(claims)
    }
}

/// Why no checkpoint was made.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The token cannot be used.
    #[error("the token for checkpoints cannot be used")]
    Device(#[from] DeviceError),
    /// Its key is not P-256.
    #[error("the key for checkpoints is not a P-256 key")]
    Key,
    /// Policy forbids it; a fault of the program.
    #[error("a checkpoint may not be signed")]
    Refused(#[from] Refusal),
    /// The log cannot be read.
    #[error("the log cannot be read back")]
    Log(#[from] VerifyError),
    /// The log cannot be written.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// It cannot be written as JSON.
    #[error("the checkpoint cannot be written")]
    Encode(#[from] serde_json::Error),
    /// The thread that reads the log failed, or the task that writes to it.
    #[error("reading or writing the log broke off")]
    Broken(#[from] tokio::task::JoinError),
}

/// Makes checkpoints of one log.
#[derive(Clone)]
pub struct Checkpointer(Arc<Inner>);

struct Inner {
    audit: Audit,
    devices: Devices,
    clock: Clock,
    issuer: String,
    config: CheckpointConfig,
    /// One at a time; the first record that the next one covers, once it is known.
    next: Arc<tokio::sync::Mutex<Option<u64>>>,
    key: Mutex<Option<(KeyRef, Jwk)>>,
}

/// What is to be signed.
struct Covered {
    first: u64,
    last: u64,
    hash: Hash,
    root: Hash,
}

impl Checkpointer {
    /// Signs for `issuer`; see [`Claims::issuer`].
    pub fn new(
        audit: Audit,
        devices: Devices,
        clock: Clock,
        issuer: String,
        config: CheckpointConfig,
    ) -> Self {
        Self(Arc::new(Inner {
            audit,
            devices,
            clock,
            issuer,
            config,
            next: Arc::default(),
            key: Mutex::default(),
        }))
    }

    /// Makes one at each interval, until it is aborted.
    pub async fn run(self) {
        let period = Duration::from_secs(self.0.config.interval_seconds.get().into());
        let mut turns = tokio::time::interval(period);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first turn is at once: what a crash left uncovered is covered.
        loop {
            turns.tick().await;
            match self.make().await {
                Ok(Some(claims)) => {
                    tracing::debug!(first = claims.first, last = claims.last, "checkpoint");
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "no checkpoint was signed; the next one covers more");
                }
            }
        }
    }

    /// Makes the last one before the end; a token that does not sign within `patience` does not
    /// hold up the end, and the next start covers the rest.
    pub async fn make_last(&self, patience: Duration) {
        match tokio::time::timeout(patience, self.make()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), "no last checkpoint; the next start makes one");
            }
            Err(_) => tracing::warn!("no last checkpoint in time; the next start makes one"),
        }
    }

    /// Waits until nothing that it began is under way. Once [`Checkpointer::run`] is aborted,
    /// another one may follow only then, or both would cover the same records.
    pub async fn settled(&self) {
        drop(self.0.next.lock().await);
    }

    /// Makes one of all that is durable now; `None` where that is nothing new.
    pub async fn make(&self) -> Result<Option<Claims>, CheckpointError> {
        let inner = &self.0;
        let next = inner.next.clone().lock_owned().await;
        let (key, jwk) = self.key().await?;
        let (dir, known, durable) = (
            inner.audit.directory().to_owned(),
            *next,
            inner.audit.records(),
        );
        let covered = tokio::task::spawn_blocking(move || cover(&dir, known, durable)).await??;
        let Some(covered) = covered else {
            return Ok(None);
        };
        let now = inner.clock.now();
        let claims = Claims {
            issuer: inner.issuer.clone(),
            time: format!("{now:.3}"),
            first: covered.first,
            last: covered.last,
            hash: covered.hash,
            root: covered.root,
        };
        let header = KidHeader {
            typ: TYPE.into(),
            alg: Scheme::Es256,
            kid: jwk.kid.clone(),
        };
        let input = jose::signing_input(&header, &serde_json::to_vec(&claims)?)?;
        let permit = policy::own(&key, Purpose::AuditCheckpoint)?;
        let signature = inner
            .devices
            .sign(permit, Scheme::Es256, input.as_bytes())
            .await?;
        let body = Checkpoint {
            checkpoint: jose::compact(input, &signature),
            key: jwk,
        };
        let event = Event::new(KIND, None, &body)?;
        write(&inner.audit, event, next, covered.last + 1).await?;
        metrics().checkpoints.increment();
        metrics().checkpoint_time.set(now.as_second());
        Ok(Some(claims))
    }

    /// The key, found or made.
    async fn key(&self) -> Result<(KeyRef, Jwk), CheckpointError> {
        let cached = self
            .0
            .key
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(known) = cached {
            return Ok(known);
        }
        let devices = &self.0.devices;
        let wanted = &self.0.config.token;
        // The id names a key on the token, not the token.
        let token = TokenUri {
            id: None,
            object: None,
            object_type: None,
            ..wanted.clone()
        };
        let own = KeyId::from_bytes(KEY_ID.to_vec()).map_err(|_| CheckpointError::Key)?;
        let key = KeyRef {
            token: devices.select(&token).await?,
            id: wanted.id.clone().unwrap_or(own),
        };
        let public_key = match devices.public_key(&key).await {
            Err(DeviceError::KeyMissing { .. }) if wanted.id.is_none() => {
                let made = devices
                    .generate(&key.token, KeySpec::P256, &key.id, KEY_LABEL)
                    .await?;
                tracing::info!(key = %key, "a key for checkpoints was made");
                if !made.proof.waived.is_empty() {
                    let body = json!({
                        "key": key.to_string(),
                        "waived": made.proof.waived,
                    });
                    let event = Event::new("key-proof-waived", None, &body)?;
                    self.0.audit.append(event)?.durable().await?;
                }
                made.public_key
            }
            found => found?,
        };
        let jwk = Jwk::from_public_key(&public_key).map_err(|_| CheckpointError::Key)?;
        let known = (key, jwk);
        *self.0.key.lock().unwrap_or_else(PoisonError::into_inner) = Some(known.clone());
        Ok(known)
    }
}

/// Appends a checkpoint; once it is durable, the one after it covers records from `due` on.
///
/// A queued record is written whoever waits for it. So this goes on where its caller is aborted:
/// else the checkpoint at the end would cover the same records again, and the log not verify.
async fn write(
    audit: &Audit,
    event: Event,
    mut next: OwnedMutexGuard<Option<u64>>,
    due: u64,
) -> Result<(), CheckpointError> {
    let pending = audit.append(event)?;
    let written = tokio::spawn(async move {
        let _: RecordRef = pending.durable().await?;
        *next = Some(due);
        Ok::<_, AuditError>(())
    });
    Ok(written.await??)
}

/// What the next checkpoint covers: from the record after the last one's, to `durable`.
fn cover(dir: &Path, known: Option<u64>, durable: u64) -> Result<Option<Covered>, VerifyError> {
    let first = match known {
        Some(first) => first,
        None => match last_of_kind(dir, KIND, durable)? {
            Some(record) => Checkpoint::of(&record)
                .and_then(Result::ok)
                .and_then(|checkpoint| checkpoint.open().ok())
                .map_or(1, |claims| claims.last + 1),
            None => 1,
        },
    };
    let mut frontier = Frontier::default();
    let mut last = None;
    let mut anything = false;
    for record in range(dir, first, durable)? {
        let record = record?;
        frontier.push(&record.hash);
        // A log in which only its own checkpoint is new says nothing new.
        anything |= record.kind != KIND;
        last = Some((record.seq, record.hash));
    }
    Ok(match (last, frontier.root()) {
        (Some((last, hash)), Some(root)) if anything => Some(Covered {
            first,
            last,
            hash,
            root,
        }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Config;
    use crate::audit::tests::Log;

    #[test]
    fn a_checkpoint_covers_what_is_durable_and_no_earlier_one_covers() {
        let mut log = Log::new();
        log.several(3);
        log.next_segment();
        log.several(3);
        let covered = |log: &Log, known, durable| {
            let covered = cover(log.path(), known, durable).unwrap()?;
            let claims = log.claims(covered.first, covered.last);
            assert_eq!((covered.hash, covered.root), (claims.hash, claims.root));
            Some((covered.first, covered.last))
        };
        assert_eq!(covered(&log, None, 0), None);
        assert_eq!(covered(&log, None, 4), Some((1, 4)));
        assert_eq!(covered(&log, Some(3), 6), Some((3, 6)));
        log.checkpoint(&log.claims(1, 4));
        // After a restart too the next one begins where the last one ended.
        assert_eq!(covered(&log, None, 7), Some((5, 7)));
        log.checkpoint(&log.claims(5, 7));
        assert_eq!(covered(&log, None, 8), None, "only a checkpoint is new");
        log.several(1);
        assert_eq!(covered(&log, None, 9), Some((8, 9)));
    }

    #[tokio::test]
    async fn an_abort_does_not_forget_a_checkpoint_that_is_being_written() {
        let dir = tempfile::tempdir().unwrap();
        let (audit, _) = Audit::open(dir.path(), Config::default(), Clock::system()).unwrap();
        let next = Arc::new(tokio::sync::Mutex::new(Some(1)));
        let event = Event::new(KIND, None, &serde_json::Map::new()).unwrap();
        let guard = next.clone().lock_owned().await;
        let before = audit.records();
        // Polled once: the record is queued, and its writer is gone.
        let mut writing = Box::pin(write(&audit, event, guard, 7));
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(writing.as_mut().poll(cx)));
        assert!(polled.await.is_pending());
        drop(writing);
        assert_eq!(*next.lock().await, Some(7));
        assert_eq!(audit.records(), before + 1);
        audit.close().await.unwrap();
    }
}
