//! Proof that a record is in the log, for somebody who has neither the log nor trust in its owner.
//!
//! A proof holds the record, the hash before it, the path from its hash to the root of a
//! checkpoint, and that checkpoint. Whoever knows the thumbprint of the key checks it with nothing
//! else: `hash = SHA-256("opcert-audit\0" || previous || record)`, then the path (RFC 9162 section
//! 2.1.3.2, leaves being those hashes), then the checkpoint's signature. No other record is shown.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, Claims, InvalidCheckpoint};
use super::directory::segments;
use super::merkle;
use super::record::{Hash, Record, RecordRef, seq_of};
use super::verify::VerifyError;
use super::walk::{Step, Walk};
use crate::base::ids::RequestId;

/// A proof, to be kept or sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The record as it stands in the log, JSON in a text.
    pub record: String,
    /// The hash of the record before it.
    pub previous: Hash,
    /// From its hash to the checkpoint's root, lowest first.
    pub path: Vec<Hash>,
    /// The checkpoint and its key.
    #[serde(flatten)]
    pub checkpoint: Checkpoint,
}

/// What a proof proves.
#[derive(Debug, Clone)]
pub struct Proven {
    /// The record.
    pub record: Record,
    /// The checkpoint that covers it.
    pub claims: Claims,
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProof {
    /// Its record is none.
    #[error("it holds no record")]
    Record,
    /// Its checkpoint is none.
    #[error("its checkpoint is refused: {0}")]
    Checkpoint(#[from] InvalidCheckpoint),
    /// The checkpoint is signed by another key than the one that is trusted.
    #[error("its checkpoint is signed by key {found}")]
    OtherKey {
        /// The thumbprint of the key.
        found: String,
    },
    /// The checkpoint does not cover the record.
    #[error("its checkpoint covers records {first} to {last}, not record {seq}")]
    NotCovered {
        /// The record.
        seq: u64,
        /// The first that is covered.
        first: u64,
        /// The last.
        last: u64,
    },
    /// The path does not lead from the record to the root.
    #[error("the record is not the one that was in the log")]
    Path,
}

impl Proof {
    /// What it proves to whoever trusts the key with this thumbprint (RFC 7638).
    pub fn check(&self, trusted: &str) -> Result<Proven, InvalidProof> {
        let json = self.record.as_bytes();
        let seq = seq_of(json).ok_or(InvalidProof::Record)?;
        let hash = self.previous.next(json);
        let record = Record::parse(json, hash).ok_or(InvalidProof::Record)?;
        let claims = self.checkpoint.open()?;
        if self.checkpoint.key.kid != trusted {
            return Err(InvalidProof::OtherKey {
                found: self.checkpoint.key.kid.clone(),
            });
        }
        if !(claims.first..=claims.last).contains(&seq) {
            return Err(InvalidProof::NotCovered {
                seq,
                first: claims.first,
                last: claims.last,
            });
        }
        let (index, count) = (seq - claims.first, claims.last - claims.first + 1);
        match merkle::climb(&hash, index, count, &self.path) {
            Some(root) if root == claims.root => Ok(Proven { record, claims }),
            _ => Err(InvalidProof::Path),
        }
    }
}

/// The proofs for a request, and its records that no checkpoint covers yet.
#[derive(Debug, Default)]
pub struct Proofs {
    /// For each record that is covered.
    pub proofs: Vec<Proof>,
    /// The numbers of those that are not.
    pub uncovered: Vec<u64>,
}

/// A record that is to be proved, until its checkpoint comes.
struct Wanted {
    seq: u64,
    json: String,
    previous: Hash,
}

/// Proves every record of `request` in the log in `dir`, which is checked on the way.
pub fn prove(dir: &Path, request: &RequestId) -> Result<Proofs, VerifyError> {
    let mut walk = Walk::new(segments(dir)?, 0)?;
    let mut found = Proofs::default();
    let mut wanted: Vec<Wanted> = Vec::new();
    // The hashes from `first` on.
    let (mut first, mut hashes) = (1_u64, Vec::new());
    let mut previous = RecordRef::NONE.hash;
    while let Step::Record { record, json } = walk.next()? {
        let text = String::from_utf8_lossy(json).into_owned();
        let record = Record::parse(json, record.hash);
        let Some(record) = record else {
            return Err(walk.broken("the line fits the chain but is not a record".into()));
        };
        if let Some(checkpoint) = Checkpoint::of(&record).and_then(Result::ok)
            && let Ok(claims) = checkpoint.open()
            && claims.first == first
        {
            let count = usize::try_from(claims.last - claims.first + 1).unwrap_or(usize::MAX);
            let covered = hashes.get(..count).unwrap_or_default();
            for one in wanted.extract_if(.., |one| one.seq <= claims.last) {
                let index = usize::try_from(one.seq - first).unwrap_or(usize::MAX);
                match merkle::path(covered, index) {
                    Some(path) => found.proofs.push(Proof {
                        record: one.json,
                        previous: one.previous,
                        path,
                        checkpoint: checkpoint.clone(),
                    }),
                    None => found.uncovered.push(one.seq),
                }
            }
            hashes.drain(..covered.len());
            first = claims.last + 1;
        }
        if record.request.as_ref() == Some(request) {
            wanted.push(Wanted {
                seq: record.seq,
                json: text,
                previous,
            });
        }
        hashes.push(record.hash);
        previous = record.hash;
    }
    found.uncovered.extend(wanted.iter().map(|one| one.seq));
    Ok(found)
}
