//! `opcert audit …`: the records of the daemon and of the account service, read without either.

use std::path::{Path, PathBuf};

use jiff::{Span, Timestamp, civil, tz::TimeZone};
use serde::Serialize;
use serde_json::value::RawValue;

use super::error::Error;
use super::output::{Format, Mood, Output, local_time};
use super::{Global, why};
use crate::audit::checkpoint::{Checkpoint, Claims};
use crate::audit::proof::{self, InvalidProof, Proof};
use crate::audit::read;
use crate::audit::verify::{VerifyError, verify};
use crate::audit::{Hash, Record};
use crate::base::Clock;
use crate::base::files::{FileError, Readers, read_checked};
use crate::base::ids::RequestId;
use crate::base::jose::Jwk;
use crate::base::sysexits::EX_OK;
use crate::telemetry::trace::TraceId;

/// The largest file of proofs, in bytes.
const PROOF_LIMIT: u64 = 4 * 1024 * 1024;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Check that no record was changed, cut, moved or dropped.
    #[command(
        long_about = "Checks the chain of all records and every checkpoint from the files alone. \
                      Ends with 0 and the number of records, or with 1 and the first bad one.",
        after_help = "Example:\n  opcert audit verify /var/lib/opcert/audit"
    )]
    Verify {
        /// The directory of the records. [default: audit in the state directory of --config]
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Show records.
    #[command(after_help = "Examples:\n  \
        opcert audit show --since 2h\n  \
        opcert audit show --kind approval --since 2026-01-31")]
    Show(Filter),
    /// Write records as JSON lines, for a SIEM.
    #[command(
        long_about = "Writes one JSON object a line: time, seq, kind, request, trace, hash, body. \
                      With --after, only what came since: keep the last seq and ask again.",
        after_help = "Example:\n  opcert audit export --after 1200 >>records.jsonl"
    )]
    Export(Filter),
    /// Prove to others that the records of a request are in the log.
    #[command(
        long_about = "Prints one proof a line for each record of the request: the record, and its \
                      path to a checkpoint that a token signed. No other record is shown. Check a \
                      proof with `opcert audit verify-proof`.",
        after_help = "Example:\n  opcert audit prove u5XQ0vQkq2Yl8m0bDdOYSw >proof.json"
    )]
    Prove {
        /// Id of the request.
        #[arg(value_name = "REQUEST-ID", allow_hyphen_values = true)]
        request: RequestId,
        /// The directory of the records. [default: audit in the state directory of --config]
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Check proofs, with nothing but the thumbprint of the key.
    #[command(
        long_about = "Checks each proof of the file. Ends with 0 and the records that are proved, \
                      or with 1 and why a proof proves nothing.",
        after_help = "Example:\n  opcert audit verify-proof --key THUMBPRINT proof.json"
    )]
    VerifyProof {
        /// The thumbprint (RFC 7638) of the key that is trusted, as `opcert audit key` shows it.
        #[arg(long, value_name = "THUMBPRINT", allow_hyphen_values = true)]
        key: String,
        /// The proofs, one a line.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Show the keys that signed checkpoints; keep their thumbprints elsewhere.
    Key {
        /// The directory of the records. [default: audit in the state directory of --config]
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

/// Which records.
#[derive(Debug, clap::Args)]
pub(super) struct Filter {
    /// The directory of the records. [default: audit in the state directory of --config]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Only records of this kind; may be repeated.
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Only records of this request.
    #[arg(long, value_name = "REQUEST-ID", allow_hyphen_values = true)]
    request: Option<RequestId>,
    /// Only records of this W3C trace.
    #[arg(long, value_name = "TRACE-ID")]
    trace: Option<TraceId>,
    /// Only records from then on: an RFC 3339 time, a date, or a time ago such as 2h or 3days.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Only records before then.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// Only records with a higher number.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,
    /// Only so many, the newest.
    #[arg(long, value_name = "COUNT")]
    last: Option<usize>,
}

impl Filter {
    fn admits(&self, record: &Record) -> bool {
        record.seq > self.after
            && (self.kind.is_empty() || self.kind.contains(&record.kind))
            && (self.request.is_none() || record.request == self.request)
            && (self.trace.is_none() || record.trace == self.trace)
            && self.since.is_none_or(|since| record.time >= since)
            && self.until.is_none_or(|until| record.time < until)
    }

    /// Hands each record to `take`, in order.
    fn each(
        &self,
        global: &Global,
        mut take: impl FnMut(Record) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let directory = directory(self.directory.as_deref(), global);
        // An hour for a clock that stepped back across the beginning of a segment.
        let from = self
            .since
            .and_then(|since| since.checked_sub(jiff::SignedDuration::from_hours(1)).ok())
            .unwrap_or(Timestamp::MIN);
        let mut newest = std::collections::VecDeque::new();
        for record in read::since(&directory, from).map_err(refused)? {
            let record = record.map_err(refused)?;
            if !self.admits(&record) {
                continue;
            }
            match self.last {
                None => take(record)?,
                Some(most) => {
                    newest.push_back(record);
                    if newest.len() > most {
                        newest.pop_front();
                    }
                }
            }
        }
        newest.into_iter().try_for_each(take)
    }
}

/// A record as programs read it.
#[derive(Debug, Serialize)]
struct Exported {
    time: String,
    seq: u64,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<RequestId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<String>,
    hash: Hash,
    body: Box<RawValue>,
}

impl From<Record> for Exported {
    fn from(record: Record) -> Self {
        Self {
            time: format!("{:.3}", record.time),
            seq: record.seq,
            kind: record.kind,
            request: record.request,
            trace: record.trace.map(|trace| trace.to_string()),
            hash: record.hash,
            body: record.body,
        }
    }
}

/// A record that a proof proves.
#[derive(Debug, Serialize)]
struct Shown {
    record: Exported,
    checkpoint: Claims,
}

/// A key that signed checkpoints.
#[derive(Debug, Serialize)]
struct Key {
    thumbprint: String,
    key: Jwk,
    checkpoints: u64,
    last_record: u64,
    last_time: String,
}

pub(super) fn run(command: &Command, global: &Global, output: &Output) -> Result<u8, Error> {
    match command {
        Command::Verify { directory: given } => {
            verify_log(&directory(given.as_deref(), global), output)?;
        }
        Command::Show(filter) => show(filter, global, output)?,
        Command::Export(filter) => filter.each(global, |record| {
            output.print(&json(&Exported::from(record))?)
        })?,
        Command::Prove {
            request,
            directory: given,
        } => prove(request, &directory(given.as_deref(), global), output)?,
        Command::VerifyProof { key, file } => verify_proofs(key, file, output)?,
        Command::Key { directory: given } => keys(&directory(given.as_deref(), global), output)?,
    }
    Ok(EX_OK)
}

fn directory(given: Option<&Path>, global: &Global) -> PathBuf {
    match given {
        Some(directory) => directory.to_owned(),
        None => why::state_directory(&global.config()).join("audit"),
    }
}

fn verify_log(directory: &Path, output: &Output) -> Result<(), Error> {
    let summary = {
        let _progress = output.progress("Checking every record");
        verify(directory).map_err(refused)?
    };
    output.result(&summary, |output| {
        let records = match summary.records {
            1 => "1 record".to_owned(),
            count => format!("{count} records"),
        };
        let mut facts = vec![("Segments", summary.segments.to_string())];
        for (name, mark) in [("First", &summary.first), ("Last", &summary.last)] {
            if let Some(mark) = mark {
                facts.push((name, format!("{}, {}", mark.seq, local_time(mark.time))));
            }
        }
        if let Some(checkpoint) = &summary.checkpoint {
            facts.push((
                "Checkpoints",
                format!(
                    "{}; the last covers record {}, signed {} by {}",
                    summary.checkpoints,
                    checkpoint.last,
                    super::output::time(&checkpoint.time),
                    checkpoint.key
                ),
            ));
        }
        if let Some(bytes) = summary.torn {
            facts.push((
                "Unfinished",
                format!("{bytes} bytes of a record being written"),
            ));
        }
        format!(
            "{}\n{}",
            output.paint(&format!("{records}, all sound."), Mood::Good),
            output.facts(&facts)
        )
    })
}

fn show(filter: &Filter, global: &Global, output: &Output) -> Result<(), Error> {
    let mut records = Vec::new();
    filter.each(global, |record| {
        match output.format() {
            // A line at a time: the log may be long.
            Format::Human => output.print(&line(&record, output)),
            Format::Json => {
                records.push(Exported::from(record));
                Ok(())
            }
        }
    })?;
    match output.format() {
        Format::Human => Ok(()),
        Format::Json => output.result(&records, |_| String::new()),
    }
}

/// A record for a person: when, which, what, by whom asked.
fn line(record: &Record, output: &Output) -> String {
    let request = record
        .request
        .as_ref()
        .map(|request| format!("  {request}"))
        .unwrap_or_default();
    let body = serde_json::from_str(record.body.get()).unwrap_or_default();
    format!(
        "{:>6}  {}  {}{}",
        record.seq,
        local_time(record.time),
        why::sentence(&record.kind, &body),
        output.paint(&request, Mood::Dim)
    )
}

fn prove(request: &RequestId, directory: &Path, output: &Output) -> Result<(), Error> {
    let found = proof::prove(directory, request).map_err(refused)?;
    if let (true, Some(seq)) = (found.proofs.is_empty(), found.uncovered.first()) {
        return Err(Error::State {
            code: "audit-uncovered",
            what: format!("no checkpoint covers record {seq} yet"),
            action: "Checkpoints are signed at the interval of [audit.checkpoint] and when the \
                     daemon stops; where that table is missing there are none."
                .into(),
        });
    }
    if found.proofs.is_empty() {
        return Err(Error::No {
            code: "request-unknown",
            what: format!(
                "no record in {} is of request {request}",
                directory.display()
            ),
            action: "Check the id.".into(),
        });
    }
    for proof in &found.proofs {
        output.print(&json(proof)?)?;
    }
    for seq in &found.uncovered {
        output.note(&format!("Record {seq} is not covered by a checkpoint yet."));
    }
    Ok(())
}

fn verify_proofs(key: &str, file: &Path, output: &Output) -> Result<(), Error> {
    let bytes = read_checked(file, Readers::Anybody, PROOF_LIMIT)?;
    let malformed = |what: String| Error::Input {
        what: format!("{} {what}", file.display()),
        action: "Give the file that `opcert audit prove` wrote.".into(),
    };
    let text = String::from_utf8(bytes).map_err(|_| malformed("is not text".into()))?;
    let mut shown = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let proof: Proof = serde_json::from_str(line)
            .map_err(|error| malformed(format!("is no proof: {error}")))?;
        let proven = proof.check(key).map_err(|error| Error::No {
            code: "proof-invalid",
            action: match error {
                InvalidProof::OtherKey { .. } => {
                    "Ask whoever runs that computer for the thumbprint by another way.".into()
                }
                _ => "Do not rely on the record.".into(),
            },
            what: format!("the proof proves nothing: {error}"),
        })?;
        shown.push(Shown {
            record: proven.record.into(),
            checkpoint: proven.claims,
        });
    }
    if shown.is_empty() {
        return Err(malformed("holds no proof".into()));
    }
    output.result(&shown, |output| {
        shown
            .iter()
            .map(|one| {
                format!(
                    "{}\n{}",
                    output.paint("The record is proved.", Mood::Good),
                    output.facts(&[
                        ("Record", one.record.seq.to_string()),
                        ("Kind", one.record.kind.clone()),
                        ("Time", super::output::time(&one.record.time)),
                        ("Log of", one.checkpoint.issuer.clone()),
                        ("Signed", super::output::time(&one.checkpoint.time)),
                        ("Body", one.record.body.get().to_owned()),
                    ])
                )
            })
            .collect::<Vec<_>>()
            .join("\n\n")
    })
}

fn keys(directory: &Path, output: &Output) -> Result<(), Error> {
    let mut keys: Vec<Key> = Vec::new();
    for record in read::all(directory).map_err(refused)? {
        let record = record.map_err(refused)?;
        let Some(Ok(checkpoint)) = Checkpoint::of(&record) else {
            continue;
        };
        let Ok(claims) = checkpoint.open() else {
            continue;
        };
        let known = keys
            .iter_mut()
            .find(|key| key.thumbprint == checkpoint.key.kid);
        match known {
            Some(key) => {
                key.checkpoints += 1;
                key.last_record = claims.last;
                key.last_time = claims.time;
            }
            None => keys.push(Key {
                thumbprint: checkpoint.key.kid.clone(),
                key: checkpoint.key,
                checkpoints: 1,
                last_record: claims.last,
                last_time: claims.time,
            }),
        }
    }
    output.result(&keys, |output| {
        let rows = keys
            .iter()
            .map(|key| {
                vec![
                    key.thumbprint.clone(),
                    key.checkpoints.to_string(),
                    key.last_record.to_string(),
                    super::output::time(&key.last_time),
                ]
            })
            .collect();
        output.table(
            &["thumbprint", "checkpoints", "up to record", "signed"],
            rows,
            "No checkpoint was signed yet; [audit.checkpoint] in the configuration asks for them.",
        )
    })
}

fn json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Input {
        what: format!("a record cannot be written as JSON: {error}"),
        action: "Check the log with `opcert audit verify`.".into(),
    })
}

/// A log that cannot be read, or is not sound.
pub(super) fn refused(error: VerifyError) -> Error {
    match error {
        VerifyError::Broken(broken) => Error::No {
            code: "audit-broken",
            what: broken.to_string(),
            action: "Keep the directory as it is, and compare it with a backup.".into(),
        },
        VerifyError::Unreadable { path, source } => {
            Error::File(FileError::Unreadable { path, source })
        }
    }
}

/// A time as people write it.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    if let Ok(date) = text.parse::<civil::Date>() {
        return date
            .to_zoned_datetime(TimeZone::system())
            .map(|zoned| zoned.timestamp())
            .map_err(|error| error.to_string());
    }
    let ago: Span = text.parse().map_err(|_| {
        "give an RFC 3339 time, a date, or a time ago such as 2h or 3days".to_owned()
    })?;
    Clock::system()
        .now()
        .to_zoned_datetime(TimeZone::system())
        .checked_sub(ago)
        .map(|zoned| zoned.timestamp())
        .map_err(|error| error.to_string())
}
