//! A second place for every durable record: syslog, the journal, or a file elsewhere.
//!
//! A copy is for whoever watches from outside: a rewritten log no longer fits what syslog sent to
//! another machine. It never holds the log up: a thread of its own takes the lines that are durable,
//! and where it falls behind or the receiver takes none, they are counted
//! (`opcert_audit_sink_failures_total`) and logged. Each copied line has the record's hash before its
//! JSON, as in the log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::record::{HASH_TEXT, seq_of};
use crate::telemetry::metrics::metrics;

/// Groups of records that may wait to be copied.
const QUEUE: usize = 256;

/// Facility `authpriv`, severity `notice` (RFC 5424 section 6.2.1).
const SYSLOG_PRIORITY: u8 = 10 * 8 + 5;

/// Where syslog and the journal listen.
const SYSLOG: &str = "/dev/log";
const JOURNAL: &str = "/run/systemd/journal/socket";

/// The value of `copy` in the `[audit]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyTo {
    /// `syslog`: the local syslog socket.
    Syslog,
    /// `journal`: the journal, with fields.
    Journal,
    /// `file:PATH`: appended to a file, which should be on another disk.
    File(PathBuf),
}

/// A value of `copy` that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be \"syslog\", \"journal\" or \"file:/absolute/path\"")]
pub struct InvalidCopy;

impl FromStr for CopyTo {
    type Err = InvalidCopy;

    fn from_str(text: &str) -> Result<Self, InvalidCopy> {
        match (text, text.strip_prefix("file:").map(PathBuf::from)) {
            ("syslog", _) => Ok(Self::Syslog),
            ("journal", _) => Ok(Self::Journal),
            (_, Some(path)) if path.is_absolute() => Ok(Self::File(path)),
            _ => Err(InvalidCopy),
        }
    }
}

impl std::fmt::Display for CopyTo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Syslog => f.write_str("syslog"),
            Self::Journal => f.write_str("journal"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for CopyTo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for CopyTo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The writer's end. When it is dropped its thread copies what waits, and ends.
#[derive(Debug)]
pub(super) struct Copier {
    lines: SyncSender<Vec<u8>>,
    thread: JoinHandle<()>,
}

impl Copier {
    /// Opens the place and starts the thread.
    pub fn start(to: &CopyTo) -> io::Result<Self> {
        let sink = Sink::open(to)?;
        let (lines, receiver) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("audit-copy".into())
            .spawn(move || copy(sink, &receiver))?;
        Ok(Self { lines, thread })
    }

    /// Hands over durable lines; never waits.
    pub fn push(&self, lines: &[u8]) {
        if let Err(TrySendError::Full(lost) | TrySendError::Disconnected(lost)) =
            self.lines.try_send(lines.to_vec())
        {
            failed(&lost, &io::Error::other("it falls behind"));
        }
    }

    /// Waits until what waits is copied.
    pub fn finish(self) {
        drop(self.lines);
        // It panics nowhere; if it did there is nothing left to copy with.
        let _ = self.thread.join();
    }
}

enum Sink {
    File(File),
    Socket {
        socket: UnixDatagram,
        to: &'static Path,
        form: Form,
    },
}

#[derive(Clone, Copy)]
enum Form {
    Syslog,
    Journal,
}

impl Sink {
    fn open(to: &CopyTo) -> io::Result<Self> {
        let socket = |path: &'static str, form| {
            let socket = UnixDatagram::unbound()?;
            Ok(Self::Socket {
                socket,
                to: Path::new(path),
                form,
            })
        };
        match to {
            CopyTo::Syslog => socket(SYSLOG, Form::Syslog),
            CopyTo::Journal => socket(JOURNAL, Form::Journal),
            CopyTo::File(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .map(Self::File),
        }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => {
                file.write_all(lines)?;
                file.sync_data()
            }
            Self::Socket { socket, to, form } => {
                let to: &Path = to;
                for line in lines
                    .split(|byte| *byte == b'\n')
                    .filter(|line| !line.is_empty())
                {
                    socket.send_to(&form.packet(line), to)?;
                }
                Ok(())
            }
        }
    }
}

impl Form {
    fn packet(self, line: &[u8]) -> Vec<u8> {
        let mut packet = match self {
            Self::Syslog => {
                format!("<{SYSLOG_PRIORITY}>opcert-audit[{}]: ", std::process::id()).into_bytes()
            }
            Self::Journal => {
                let (hash, json) = line.split_at_checked(HASH_TEXT + 1).unwrap_or((line, b""));
                let seq = seq_of(json).unwrap_or_default();
                let hash = String::from_utf8_lossy(hash);
                format!(
                    "PRIORITY=5\nSYSLOG_IDENTIFIER=opcert-audit\nOPCERT_SEQ={seq}\n\
                     OPCERT_HASH={}\nMESSAGE=",
                    hash.trim_end()
                )
                .into_bytes()
            }
        };
        packet.extend_from_slice(line);
        if let Self::Journal = self {
            packet.push(b'\n');
        }
        packet
    }
}

fn copy(mut sink: Sink, lines: &Receiver<Vec<u8>>) {
    while let Ok(batch) = lines.recv() {
        if let Err(error) = sink.write(&batch) {
            failed(&batch, &error);
        }
    }
}

fn failed(lines: &[u8], error: &io::Error) {
    let count = lines.iter().filter(|byte| **byte == b'\n').count();
    for _ in 0..count {
        metrics().sink_failures.increment();
    }
    tracing::error!(%error, records = count, "the second place of the audit trail took no record");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_strictly() {
        for text in ["syslog", "journal", "file:/var/log/opcert.log"] {
            assert_eq!(text.parse::<CopyTo>().unwrap().to_string(), text);
        }
        for bad in ["", "file:", "file:log", "tcp:host", "Syslog"] {
            assert_eq!(bad.parse::<CopyTo>(), Err(InvalidCopy), "{bad}");
        }
    }

    #[test]
    fn packets_have_the_form_of_their_receiver() {
        let line = format!("{} {{\"seq\":7,\"time\":\"t\"}}", "A".repeat(HASH_TEXT));
        let syslog = String::from_utf8(Form::Syslog.packet(line.as_bytes())).unwrap();
        assert!(
            syslog.starts_with("<85>opcert-audit[") && syslog.ends_with(&line),
            "{syslog}"
        );
        let journal = String::from_utf8(Form::Journal.packet(line.as_bytes())).unwrap();
        assert!(journal.contains("\nOPCERT_SEQ=7\n"), "{journal}");
        assert!(journal.contains(&format!("\nOPCERT_HASH={}\n", "A".repeat(HASH_TEXT))));
        assert!(
            journal.ends_with(&format!("\nMESSAGE={line}\n")),
            "{journal}"
        );
    }

    #[test]
    fn a_copy_has_every_line_in_order_behind_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("copy.log");
        for (lines, expected) in [
            ("one\ntwo\n", "one\ntwo\n"),
            ("three\n", "one\ntwo\nthree\n"),
        ] {
            let copier = Copier::start(&CopyTo::File(path.clone())).unwrap();
            for line in lines.split_inclusive('\n') {
                copier.push(line.as_bytes());
            }
            copier.finish();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        }
        let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap());
        assert_eq!(mode & 0o777, 0o600);
        let nowhere = CopyTo::File(directory.path().join("none/copy.log"));
        assert!(Copier::start(&nowhere).is_err());
    }

    #[test]
    fn records_that_a_second_place_does_not_take_are_counted() {
        let before = metrics().sink_failures.get();
        let copier = Copier::start(&CopyTo::File("/dev/full".into())).unwrap();
        copier.push(b"one\ntwo\n");
        copier.finish();
        assert_eq!(metrics().sink_failures.get(), before + 2);
    }
}
