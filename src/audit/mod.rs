//! The durable, hash-chained record of what the program did.
//!
//! # What is kept
//! A directory (mode 0700, its files 0600) of
//! - **segments** `00000000000000000001.log`: records, one a line, appended and never changed. The
//!   name is the number of the segment's first record; a new segment begins once the last one has
//!   reached the configured size.
//! - **`head`**: number and hash of the newest record known to be durable, one line of fixed length,
//!   overwritten in place. It is what makes a cut-off tail visible.
//! - **`lock`**: held by the one process that writes.
//!
//! A line is `<hash> <JSON>\n`. The hash is the base64url SHA-256 of the constant
//! `"opcert-audit\0"`, the previous record's hash (32 zero bytes before the first) and the bytes of
//! the JSON; so each record vouches for all before it. The JSON is
//! `{"seq":7,"time":"2026-01-02T03:04:05.678Z","kind":"approval","request":"…","trace":"…",
//! "body":{…}}`, in that order and on one line, `request` and `trace` left out where there is none.
//! Records are numbered from 1 without gaps. Times are those of the clock at the moment of
//! [`Audit::append`] and step back when the clock does.
//!
//! # How it changes
//! One thread owns the files. Appenders put records into a bounded queue; the thread takes all that
//! wait, chains them, writes them with one call, makes them durable with one `fdatasync`, moves the
//! head, and only then completes the waiting [`Pending`]s. Callers never touch the disk. A record that
//! nobody waits for ([`Audit::note`]) is left for a moment to share the write and the sync of one that
//! somebody does.
//!
//! # What a crash does
//! The head is written after the records it names are durable, and is not itself synchronised each
//! time: after a crash the log may reach beyond the head, never the other way round. [`Audit::open`]
//! checks the chain from the beginning of the head's segment, takes over complete records beyond
//! the head (writing them once more, since a page the kernel once failed to write can look clean in
//! its cache) and cuts an incomplete last line beyond the head, which nobody was ever told of.
//! Anything else is [`AuditError::Broken`]: the log is evidence, and no program repairs evidence.
//!
//! # What a failed write does
//! Everyone who waits gets [`AuditError::Unwritable`], and so does every later append: without a
//! record nothing is signed. The thread cuts the segment back to its last durable length and never
//! uses the failed descriptor again. Where the cause was a full disk or quota, it opens the segment
//! anew for the first append at least [`RETRY_DELAY`] later; any other cause needs a restart, which
//! checks the log first.
//!
//! # What is not promised
//! The chain has no key: whoever can write the directory can write another history from any point
//! on, or delete all of it. What holds him to one history are checkpoints that a token signs
//! ([`checkpoint`]) and copies elsewhere ([`copy`]): neither lets him take back what was covered or
//! copied. What came after the last of them is his word alone.

pub mod checkpoint;
pub mod copy;
pub mod proof;
pub mod read;
pub mod snapshot;
pub mod verify;

mod directory;
mod merkle;
mod open;
mod record;
mod refusals;
mod walk;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use self::copy::Copier;
use self::refusals::{Place, Refusals};
use crate::base::Clock;
use crate::base::ids::RequestId;
use crate::telemetry::trace::{self, TraceId};

pub use checkpoint::{CheckpointConfig, Checkpointer};
pub use copy::CopyTo;
pub use open::Recovered;
pub use record::{Hash, Record, RecordRef};
pub use verify::Broken;

/// The longest body of a record, in bytes of JSON.
pub const BODY_LIMIT: usize = 64 * 1024;

/// How long the log refuses appends after a full disk before it tries again.
pub const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How often refusals that have no record of their own are summed up.
const SUM_UP: Duration = Duration::from_secs(60);

/// The longest kind, in bytes.
const KIND_LIMIT: usize = 64;

/// The kind of the record that [`Audit::close`] writes.
const CLOSED: &str = "closed";

/// The `[audit]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// A new segment begins once the last one has this many bytes. Default 16 MiB.
    pub segment_bytes: u64,
    /// Records that may wait to be written; one more is [`AuditError::Full`]. Default 4096.
    pub queue_records: usize,
    /// Bytes of bodies that may wait to be written. Default 16 MiB.
    pub queue_bytes: usize,
    /// A second place for every record: `syslog`, `journal` or `file:/absolute/path`. Records are
    /// copied once they are durable, and nothing waits for the copy. None by default.
    #[schemars(with = "Option<String>")]
    pub copy: Option<CopyTo>,
    /// Signed checkpoints, which hold the owner of this computer to one history. None by default.
    pub checkpoint: Option<CheckpointConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 16 * 1024 * 1024,
            queue_records: 4096,
            queue_bytes: 16 * 1024 * 1024,
            copy: None,
            checkpoint: None,
        }
    }
}

/// Why a record was not taken, or the log not opened.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A file operation failed while the log was opened.
    #[error(
        "cannot {action} {}. Check that the service user owns the directory and the disk is sound",
        path.display()
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The second place cannot be opened.
    #[error(
        "cannot open {to}, the second place of the audit log {}. Correct audit.copy, or make the \
         directory and let the service user write there",
        dir.display()
    )]
    Copy {
        /// The log.
        dir: PathBuf,
        /// The place.
        to: CopyTo,
        /// Why not.
        source: io::Error,
    },
    /// Another process writes this log.
    #[error(
        "the audit log {} is in use by another process. Stop the other daemon, or give this one a \
         state directory of its own",
        dir.display()
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// Others than the owner can write to the directory.
    #[error(
        "the audit directory {} can be written by others (mode {mode:03o}). Run chmod 700 on it",
        dir.display()
    )]
    Permissions {
        /// The directory.
        dir: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The log is not what this program wrote. Nothing was changed.
    #[error(
        "the audit log is damaged: {0}. Keep a copy of the directory as evidence, find out what \
         changed it, then move it away so that a new log can begin"
    )]
    Broken(Broken),
    /// The record is larger than [`BODY_LIMIT`]: the caller's fault.
    #[error("the audit record body has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Size of the body, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The kind is not 1 to 64 lower-case letters, digits and `-`: the caller's fault.
    #[error("{kind:?} cannot name a kind of audit record")]
    Kind {
        /// What was given.
        kind: &'static str,
    },
    /// The body could not be made JSON: the caller's fault.
    #[error("the audit record body cannot be written as JSON")]
    Unserialisable {
        /// Why not.
        source: serde_json::Error,
    },
    /// More records wait than the limits allow: the disk does not keep up.
    #[error("{records} audit records wait to be written, which is the limit. Try again shortly")]
    Full {
        /// How many wait.
        records: usize,
    },
    /// The record could not be made durable, and does not count.
    #[error(
        "the audit log cannot be written, so nothing may be signed. Free disk space or repair the \
         disk, then restart the daemon if the log does not recover by itself"
    )]
    Unwritable {
        /// The first failure.
        source: Arc<io::Error>,
    },
    /// The log was closed.
    #[error("the audit log is closed: the program is stopping")]
    Closed,
}

/// What is to be recorded.
#[derive(Debug)]
pub struct Event {
    /// What happened: 1 to 64 lower-case letters, digits and `-`.
    pub kind: &'static str,
    /// The request that caused it.
    pub request: Option<RequestId>,
    /// The trace that the request belongs to.
    pub trace: Option<TraceId>,
    /// The facts, at most [`BODY_LIMIT`] bytes; line breaks between tokens become spaces.
    pub body: Box<RawValue>,
}

impl Event {
    /// An event whose body is `body` as JSON, in the trace of the running task.
    pub fn new(
        kind: &'static str,
        request: Option<RequestId>,
        body: &impl Serialize,
    ) -> Result<Self, AuditError> {
        let body = serde_json::value::to_raw_value(body)
            .map_err(|source| AuditError::Unserialisable { source })?;
        Ok(Self {
            kind,
            request,
            trace: trace::current(),
            body,
        })
    }

    fn check(&self) -> Result<(), AuditError> {
        let size = self.body.get().len();
        if size > BODY_LIMIT {
            return Err(AuditError::TooLarge {
                size,
                limit: BODY_LIMIT,
            });
        }
        if !is_kind(self.kind) {
            return Err(AuditError::Kind { kind: self.kind });
        }
        Ok(())
    }
}

/// A handle on an open log. Clones write to the same log; when the last one is gone the log
/// writes what waits and lets go of its files, without a closing record.
#[derive(Clone, Debug)]
pub struct Audit {
    writer: Arc<writer::Handle>,
    directory: Arc<Path>,
    clock: Clock,
    refusals: Arc<Refusals>,
}

impl Audit {
    /// Opens the log in `dir`, making it if there is none, and starts its thread.
    ///
    /// Reads the newest segment; the cost does not grow with the log.
    pub fn open(dir: &Path, config: Config, clock: Clock) -> Result<(Self, Recovered), AuditError> {
        let copier = open_copy(&config, dir)?;
        let (files, recovered) = open::open(dir)?;
        let handle = writer::start(files, config, copier).map_err(|source| AuditError::Io {
            action: "start the writer thread of",
            path: dir.to_owned(),
            source,
        })?;
        let audit = Self {
            writer: Arc::new(handle),
            directory: dir.into(),
            clock,
            refusals: Arc::default(),
        };
        Ok((audit, recovered))
    }

    /// Queues a record at once, without waiting. The order of calls is the order of records.
    pub fn append(&self, event: Event) -> Result<Pending, AuditError> {
        event.check()?;
        let receiver = self.writer.push(event, self.clock.now())?;
        Ok(Pending { receiver })
    }

    /// Where the log is.
    pub fn directory(&self) -> &Arc<Path> {
        &self.directory
    }

    /// Queues a record that nobody waits for, in its order with the others. It is written with the
    /// next one that somebody waits for, or by itself a few milliseconds later.
    pub fn note(&self, event: Event) -> Result<(), AuditError> {
        event.check()?;
        self.writer.note(event, self.clock.now())
    }

    /// Queues the record of a refusal, that nobody waits for. Where `caller` has had too many lately
    /// it is counted by its `code` instead, and the count is recorded within a minute.
    pub fn refused(
        &self,
        caller: &str,
        code: &'static str,
        event: Event,
    ) -> Result<(), AuditError> {
        match self.refusals.take(caller, code, self.clock.now()) {
            Place::Own => self.note(event),
            Place::Counted => Ok(()),
        }
    }

    /// Records what was counted of refusals, once a minute until it is aborted.
    pub async fn sum_up_refusals(self) {
        let mut turns = tokio::time::interval(SUM_UP);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            self.sum_up();
        }
    }

    fn sum_up(&self) {
        for sum in self.refusals.sum_up(self.clock.now()) {
            let noted = Event::new(refusals::KIND, None, &sum).and_then(|event| self.note(event));
            if let Err(error) = noted {
                tracing::warn!(%error, "refusals could not be recorded; they are counted on");
                self.refusals.put_back(sum);
            }
        }
    }

    /// How many durable records the log has.
    pub fn records(&self) -> u64 {
        self.writer.records()
    }

    /// How many records wait to be durable.
    pub fn waiting(&self) -> u64 {
        self.writer.waiting()
    }

    /// Opens what other settings name, for [`Audit::reconfigure`]. Nothing changes yet.
    pub fn prepare(&self, config: Config) -> Result<Prepared, AuditError> {
        let copier = open_copy(&config, &self.directory)?;
        Ok(Prepared { config, copier })
    }

    /// Writes by other settings, and copies to where they say, from the next record on.
    pub fn reconfigure(&self, prepared: Prepared) {
        self.writer.reconfigure(prepared.config, prepared.copier);
    }

    /// Whether an append would be taken now; the error is the one it would get.
    pub fn ready(&self) -> Result<(), AuditError> {
        self.writer.ready()
    }

    /// Sums up refusals, appends the closing record, makes everything durable (the head too) and lets go of the
    /// files. Appends through other clones fail from now on.
    pub async fn close(&self) -> Result<RecordRef, AuditError> {
        self.sum_up();
        let event = Event::new(CLOSED, None, &serde_json::Map::new())?;
        let (receiver, ended) = self.writer.close(event, self.clock.now())?;
        let record = Pending { receiver }.durable().await;
        // The sender is dropped when the thread has let go of its files; either way it has ended.
        let _ = ended.await;
        record
    }
}

/// Settings whose second place is open.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    copier: Option<Copier>,
}

/// Opens the second place of the log in `dir`, where there is to be one.
fn open_copy(config: &Config, dir: &Path) -> Result<Option<Copier>, AuditError> {
    let Some(to) = &config.copy else {
        return Ok(None);
    };
    let copier = Copier::start(to).map_err(|source| AuditError::Copy {
        dir: dir.to_owned(),
        to: to.clone(),
        source,
    })?;
    Ok(Some(copier))
}

/// A record on its way to the disk. Dropping it changes nothing: the record is written all the same.
#[must_use = "the record is not durable before `durable` says so"]
#[derive(Debug)]
pub struct Pending {
    receiver: oneshot::Receiver<Result<RecordRef, AuditError>>,
}

impl Pending {
    /// Waits until the record is durable. An error means that the record does not count.
    pub async fn durable(self) -> Result<RecordRef, AuditError> {
        self.receiver.await.unwrap_or(Err(AuditError::Closed))
    }
}

fn is_kind(kind: &str) -> bool {
    (1..=KIND_LIMIT).contains(&kind.len())
        && kind
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
pub(crate) mod tests;
