//! Goes through the records of a log in order and checks the chain between them.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use super::directory::Segment;
use super::record::{
    HASH_TEXT, Hash, LINE_LIMIT, LineFault, RecordRef, check_line, is_torn, seq_of,
};
use super::verify::{Broken, VerifyError};

/// Reads one line at a time; memory does not grow with the log.
pub(super) struct Walk {
    segments: std::vec::IntoIter<Segment>,
    current: Option<Open>,
    newest: RecordRef,
    line: Vec<u8>,
}

struct Open {
    path: PathBuf,
    reader: BufReader<File>,
    line: u64,
    end: u64,
}

/// What comes next.
pub(super) enum Step<'a> {
    /// A record whose hash fits.
    Record {
        /// Its name.
        record: RecordRef,
        /// Its JSON.
        json: &'a [u8],
    },
    /// The last segment ends in a line cut short.
    Torn(Torn),
    /// There is no more.
    End,
}

/// A line cut short at the end of the log.
pub(super) struct Torn {
    /// The segment.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
    /// Where the line begins, in bytes.
    pub offset: u64,
    /// How many bytes of it are there.
    pub bytes: u64,
}

impl Walk {
    /// Starts at the beginning of `segments[start]`. For a start behind the first segment the
    /// hash before it is taken from the last line of the segment before.
    pub fn new(segments: Vec<Segment>, start: usize) -> Result<Self, VerifyError> {
        let newest = match start.checked_sub(1).and_then(|index| segments.get(index)) {
            None => RecordRef::NONE,
            Some(before) => last_line(before)?,
        };
        let mut segments = segments.into_iter();
        segments.by_ref().take(start).for_each(drop);
        Ok(Self {
            segments,
            current: None,
            newest,
            line: Vec::new(),
        })
    }

    /// The newest record seen.
    pub fn newest(&self) -> RecordRef {
        self.newest
    }

    /// The segment being read: its path, the number of the last line read, and where that line
    /// ended, in bytes.
    pub fn position(&self) -> Option<(&PathBuf, u64, u64)> {
        self.current
            .as_ref()
            .map(|open| (&open.path, open.line, open.end))
    }

    /// The next record.
    pub fn next(&mut self) -> Result<Step<'_>, VerifyError> {
        loop {
            if self.current.is_none() && !self.open_next()? {
                return Ok(Step::End);
            }
            let Some(open) = &mut self.current else {
                return Ok(Step::End);
            };
            self.line.clear();
            // One byte more than a line may have tells a long line from a torn one.
            let limit = LINE_LIMIT as u64 + 1;
            let count = open
                .reader
                .by_ref()
                .take(limit)
                .read_until(b'\n', &mut self.line)
                .map_err(|source| VerifyError::Unreadable {
                    path: open.path.clone(),
                    source,
                })? as u64;
            if count == 0 {
                if self.segments.as_slice().is_empty() {
                    return Ok(Step::End);
                }
                self.current = None;
                continue;
            }
            open.line += 1;
            let offset = open.end;
            open.end += count;
            if self.line.last() != Some(&b'\n') || count == limit {
                return self.unfinished(offset, count);
            }
            break;
        }
        let line = &self.line[..self.line.len() - 1];
        match check_line(line, &self.newest) {
            Ok((record, json)) => {
                self.newest = record;
                Ok(Step::Record { record, json })
            }
            Err(fault) => {
                let due = self.newest.seq + 1;
                let what = match fault {
                    LineFault::Malformed => "the line is not a record".into(),
                    LineFault::Seq { found } => format!(
                        "the line holds record {found} where record {due} is due: records were \
                         dropped, moved or repeated"
                    ),
                    LineFault::Hash => {
                        "the hash does not fit: the record, or one before it, was changed".into()
                    }
                };
                Err(self.broken(what))
            }
        }
    }

    /// A fault at the line read last.
    pub fn broken(&self, what: String) -> VerifyError {
        let (file, line) = match &self.current {
            Some(open) => (open.path.clone(), open.line),
            None => (PathBuf::new(), 0),
        };
        VerifyError::Broken(Broken {
            file,
            line,
            seq: Some(self.newest.seq + 1),
            what,
        })
    }

    fn open_next(&mut self) -> Result<bool, VerifyError> {
        let Some(segment) = self.segments.next() else {
            return Ok(false);
        };
        let due = self.newest.seq + 1;
        if segment.first != due {
            return Err(VerifyError::Broken(Broken {
                file: segment.path,
                line: 0,
                seq: Some(due),
                what: format!(
                    "the segment begins with record {}, but record {due} is due: a segment or its \
                     end is missing, or this one is extra",
                    segment.first
                ),
            }));
        }
        let file = File::open(&segment.path).map_err(|source| VerifyError::Unreadable {
            path: segment.path.clone(),
            source,
        })?;
        self.current = Some(Open {
            path: segment.path,
            reader: BufReader::with_capacity(LINE_LIMIT, file),
            line: 0,
            end: 0,
        });
        Ok(true)
    }

    /// The line read last has no line break within the limit.
    fn unfinished(&self, offset: u64, bytes: u64) -> Result<Step<'_>, VerifyError> {
        if bytes > LINE_LIMIT as u64 {
            return Err(self.broken(format!("the line is longer than {LINE_LIMIT} bytes")));
        }
        if !self.segments.as_slice().is_empty() {
            return Err(self.broken("the segment ends in the middle of a record".into()));
        }
        if !is_torn(&self.line, self.newest.seq + 1) {
            return Err(self.broken("the log ends in bytes that are not a record".into()));
        }
        let Some(open) = &self.current else {
            return Ok(Step::End);
        };
        Ok(Step::Torn(Torn {
            file: open.path.clone(),
            line: open.line,
            offset,
            bytes,
        }))
    }
}

/// The name of the last record of a segment that is followed by another, from its last line.
fn last_line(segment: &Segment) -> Result<RecordRef, VerifyError> {
    let tail = read_tail(segment).map_err(|source| VerifyError::Unreadable {
        path: segment.path.clone(),
        source,
    })?;
    let line = tail
        .strip_suffix(b"\n")
        .and_then(|lines| lines.rsplit(|byte| *byte == b'\n').next());
    line.and_then(|line| line.split_at_checked(HASH_TEXT))
        .and_then(|(hash, rest)| {
            Some(RecordRef {
                seq: seq_of(rest.strip_prefix(b" ")?)?,
                hash: Hash::parse(hash)?,
            })
        })
        .ok_or_else(|| {
            VerifyError::Broken(Broken {
                file: segment.path.clone(),
                line: 0,
                seq: None,
                what: "the segment does not end in a record".into(),
            })
        })
}

fn read_tail(segment: &Segment) -> io::Result<Vec<u8>> {
    let mut file = File::open(&segment.path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LINE_LIMIT as u64)))?;
    let mut tail = Vec::new();
    file.take(LINE_LIMIT as u64).read_to_end(&mut tail)?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::super::directory::{segment_path, segments};
    use super::*;

    #[test]
    fn a_segment_that_says_it_ends_in_the_last_number_of_all_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let hash = Hash::ZERO;
        let line = format!("{hash} {{\"seq\":{},\"time\":\"\n", u64::MAX);
        std::fs::write(segment_path(dir.path(), 1), line).unwrap();
        std::fs::write(segment_path(dir.path(), 2), "").unwrap();
        let walk = Walk::new(segments(dir.path()).unwrap(), 1);
        assert!(matches!(walk, Err(VerifyError::Broken(_))));
    }
}
