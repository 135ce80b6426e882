//! Checks a whole log from its files alone: no daemon, no lock, nothing is written.
//!
//! The head is read before the records, so a log can be checked while a daemon writes to it:
//! everything the head names must be there, and what was added since may be there.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::checkpoint::{Checkpoint, Claims};
use super::directory::{HEAD, read_head, segments};
use super::merkle::Frontier;
use super::record::{Hash, Record, RecordRef};
use super::walk::{Step, Walk};

/// A sound log.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// How many records there are.
    pub records: u64,
    /// In how many segments.
    pub segments: usize,
    /// The oldest record.
    pub first: Option<Mark>,
    /// The newest record.
    pub last: Option<Mark>,
    /// How many complete records lie beyond the head: 0 unless the writer is running or was
    /// stopped in the middle of a commit.
    pub beyond_head: u64,
    /// An incomplete last line beyond the head, in bytes: what a commit under way, or one that a
    /// crash cut short, leaves. Nobody was told that it is durable.
    pub torn: Option<u64>,
    /// Whether the newest record is the closing one, so the writer ended in good order.
    pub closed: bool,
    /// How many checkpoints it has; each was checked.
    pub checkpoints: u64,
    /// The last of them.
    pub checkpoint: Option<CheckpointMark>,
}

/// A checkpoint of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckpointMark {
    /// The last record it covers.
    pub last: u64,
    /// When it was signed.
    pub time: String,
    /// The RFC 7638 thumbprint of the key that signed.
    pub key: String,
}

/// Where a log begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The record's number.
    pub seq: u64,
    /// Its time.
    #[serde(serialize_with = "rfc3339")]
    pub time: Timestamp,
    /// Its hash.
    pub hash: Hash,
}

/// The first thing wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{}{}{}: {what}", file.display(), line_text(*line), seq_text(*seq))]
pub struct Broken {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 where it is about the file as a whole.
    pub line: u64,
    /// The record that was due there.
    pub seq: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// Why [`verify`] did not answer with a summary.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The log is not what was written.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The log could not be read.
    #[error(
        "cannot read {}. Check the path, and run the command as a user who may read it",
        path.display()
    )]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Checks the log in `dir`: every record, the chain through all segments, and that the log
/// reaches its head.
pub fn verify(dir: &Path) -> Result<Summary, VerifyError> {
    let head = read_head(dir)?;
    let segments = segments(dir)?;
    let Some(head) = head else {
        return Err(no_head(dir).into());
    };
    let mut summary = Summary {
        records: 0,
        segments: segments.len(),
        first: None,
        last: None,
        beyond_head: 0,
        torn: None,
        closed: false,
        checkpoints: 0,
        checkpoint: None,
    };
    let mut covering = Covering::default();
    let against = AgainstHead::new(dir, head)?;
    let mut walk = Walk::new(segments, 0)?;
    let torn_file = loop {
        let (record, json) = match walk.next()? {
            Step::Record { record, json } => (record, json),
            Step::Torn(torn) => {
                summary.torn = Some(torn.bytes);
                break Some((torn.file, torn.line));
            }
            Step::End => break None,
        };
        against.see(&record)?;
        let parsed = Record::parse(json, record.hash);
        let broken = |what: String| {
            let (file, line) = match walk.position() {
                Some((file, line, _)) => (file.clone(), line),
                None => (dir.to_owned(), 0),
            };
            VerifyError::Broken(Broken {
                file,
                line,
                seq: Some(record.seq),
                what,
            })
        };
        let Some(parsed) = parsed else {
            return Err(broken("the line fits the chain but is not a record".into()));
        };
        if let Some(mark) = covering.take(&parsed).map_err(broken)? {
            summary.checkpoints += 1;
            summary.checkpoint = Some(mark);
        }
        let mark = Mark {
            seq: record.seq,
            time: parsed.time,
            hash: record.hash,
        };
        summary.records += 1;
        summary.first.get_or_insert(mark);
        summary.last = Some(mark);
        summary.closed = parsed.kind == super::CLOSED;
    };
    let end = torn_file.or_else(|| walk.position().map(|(file, line, _)| (file.clone(), line)));
    summary.beyond_head = against.finish(&walk.newest(), end)?;
    Ok(summary)
}

/// How many records may lie between what a checkpoint covers and its own record: those that were
/// written while the token signed.
const WINDOW: usize = 65_536;

/// Follows the checkpoints of a log; memory does not grow with it.
#[derive(Default)]
struct Covering {
    /// Over the records since the last checkpoint's, but for those that wait.
    frontier: Frontier,
    /// The newest records, which the next checkpoint may or may not cover.
    waiting: VecDeque<Hash>,
    /// The last record that is covered.
    covered: u64,
    /// The newest record in the frontier.
    folded: u64,
}

impl Covering {
    /// The next record; what is wrong with it if it is a checkpoint that does not fit the log.
    fn take(&mut self, record: &Record) -> Result<Option<CheckpointMark>, String> {
        let mark = match Checkpoint::of(record) {
            None => None,
            Some(checkpoint) => {
                let checkpoint = checkpoint.map_err(|error| error.to_string())?;
                let claims = checkpoint.open().map_err(|error| error.to_string())?;
                self.check(&claims)?;
                Some(CheckpointMark {
                    last: claims.last,
                    time: claims.time,
                    key: checkpoint.key.kid,
                })
            }
        };
        self.waiting.push_back(record.hash);
        if self.waiting.len() > WINDOW {
            self.fold();
        }
        Ok(mark)
    }

    fn fold(&mut self) -> Option<Hash> {
        let hash = self.waiting.pop_front()?;
        self.frontier.push(&hash);
        self.folded += 1;
        Some(hash)
    }

    fn check(&mut self, claims: &Claims) -> Result<(), String> {
        let due = self.covered + 1;
        if claims.first != due {
            return Err(format!(
                "the checkpoint covers records from {} on, but {due} is due: checkpoints are \
                 missing, or from another log",
                claims.first
            ));
        }
        if claims.last <= self.folded {
            return Err("the checkpoint comes too long after the records it covers".into());
        }
        let mut last = None;
        while self.folded < claims.last {
            last = self.fold();
            if last.is_none() {
                return Err("the checkpoint covers records that come after it".into());
            }
        }
        if last != Some(claims.hash) || self.frontier.root() != Some(claims.root) {
            return Err("the checkpoint was signed over other records than these".into());
        }
        self.covered = claims.last;
        self.frontier = Frontier::default();
        Ok(())
    }
}

/// The fault of a directory without a head.
pub(super) fn no_head(dir: &Path) -> Broken {
    Broken {
        file: dir.join(HEAD),
        line: 0,
        seq: None,
        what: "the head is missing, so the end of the log cannot be checked".into(),
    }
}

/// Holds the records against the head.
pub(super) struct AgainstHead {
    path: PathBuf,
    head: RecordRef,
}

impl AgainstHead {
    /// Checks what can be checked of the head alone.
    pub fn new(dir: &Path, head: RecordRef) -> Result<Self, Broken> {
        let this = Self {
            path: dir.join(HEAD),
            head,
        };
        if head.seq == 0 {
            this.see(&RecordRef::NONE)?;
        }
        Ok(this)
    }

    /// Checks the record that the head names.
    pub fn see(&self, record: &RecordRef) -> Result<(), Broken> {
        if record.seq == self.head.seq && record.hash != self.head.hash {
            return Err(Broken {
                file: self.path.clone(),
                line: 1,
                seq: Some(record.seq),
                what: "the head's hash is not that of its record: the head or the log was replaced"
                    .into(),
            });
        }
        Ok(())
    }

    /// Checks that the log reaches the head; returns how many records lie beyond it. `end` is
    /// the last line of the log.
    pub fn finish(self, newest: &RecordRef, end: Option<(PathBuf, u64)>) -> Result<u64, Broken> {
        newest.seq.checked_sub(self.head.seq).ok_or_else(|| {
            let (file, line) = end.unwrap_or((self.path, 0));
            Broken {
                file,
                line,
                seq: Some(newest.seq + 1),
                what: format!(
                    "the log ends after record {}, but the head says that record {} was durable: \
                     the end was cut off",
                    newest.seq, self.head.seq
                ),
            }
        })
    }
}

fn line_text(line: u64) -> String {
    if line == 0 {
        String::new()
    } else {
        format!(", line {line}")
    }
}

fn seq_text(seq: Option<u64>) -> String {
    seq.map(|seq| format!(", record {seq}")).unwrap_or_default()
}

fn rfc3339<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_may_come_so_late_and_no_later() {
        let hash = |seq: u64| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&seq.to_be_bytes());
            Hash(hash)
        };
        let mut covering = Covering::default();
        for seq in 1..=WINDOW as u64 + 1 {
            let record = Record {
                seq,
                hash: hash(seq),
                time: Timestamp::UNIX_EPOCH,
                kind: "test".into(),
                request: None,
                trace: None,
                body: serde_json::value::RawValue::from_string("{}".into()).unwrap(),
            };
            assert_eq!(covering.take(&record), Ok(None));
            assert!(covering.waiting.len() <= WINDOW);
        }
        let claims = |last| {
            let mut frontier = Frontier::default();
            (1..=last).for_each(|seq| frontier.push(&hash(seq)));
            Claims {
                issuer: "desk-1".into(),
                time: String::new(),
                first: 1,
                last,
                hash: hash(last),
                root: frontier.root().unwrap(),
            }
        };
        let late = covering.check(&claims(1)).unwrap_err();
        assert!(late.contains("too long after"), "{late}");
        assert_eq!(covering.check(&claims(2)), Ok(()));
    }
}
