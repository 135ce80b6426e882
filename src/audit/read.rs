//! Reads records back, in order, without holding the log in memory.
//!
//! The chain is followed; whether it is the one that its owner signed is for
//! [`verify`](super::verify).

use std::path::Path;

use jiff::Timestamp;

use super::directory::{Segment, segments};
use super::record::Record;
use super::verify::VerifyError;
use super::walk::{Step, Walk};

/// Records in order; stops after the first error, and quietly before a line cut short.
pub struct Records {
    walk: Option<Walk>,
    not_before: Timestamp,
    from: u64,
    until: u64,
    passed_over: Option<Timestamp>,
}

impl Records {
    /// The latest time of a record that was passed over as too early, among those that were looked
    /// at. Where some are older than was asked for, the newest of them is.
    pub fn passed_over(&self) -> Option<Timestamp> {
        self.passed_over
    }
}

/// All records of the log in `dir`.
pub fn all(dir: &Path) -> Result<Records, VerifyError> {
    since(dir, Timestamp::MIN)
}

/// The records of `time` or later.
///
/// Segments are skipped from the front while the next one begins before `time`. Where the clock
/// stepped back across the beginning of a segment, older segments can hold records of a later
/// time, which are then not found: ask for a time that is earlier by the step you must survive.
pub fn since(dir: &Path, time: Timestamp) -> Result<Records, VerifyError> {
    up_to(dir, time, u64::MAX)
}

/// As [`since`], but nothing behind record `until`.
pub(super) fn up_to(dir: &Path, time: Timestamp, until: u64) -> Result<Records, VerifyError> {
    let segments = segments(dir)?;
    let start = first_needed(&segments, time)?;
    Ok(Records {
        walk: Some(Walk::new(segments, start)?),
        not_before: time,
        from: 0,
        until,
        passed_over: None,
    })
}

/// The records from number `seq` on. Reads its segment from the beginning, to check the chain.
pub fn from(dir: &Path, seq: u64) -> Result<Records, VerifyError> {
    let segments = segments(dir)?;
    let start = segments
        .partition_point(|segment| segment.first <= seq)
        .saturating_sub(1);
    Ok(Records {
        walk: Some(Walk::new(segments, start)?),
        not_before: Timestamp::MIN,
        from: seq,
        until: u64::MAX,
        passed_over: None,
    })
}

/// The records from number `first` to number `last`.
pub(super) fn range(dir: &Path, first: u64, last: u64) -> Result<Records, VerifyError> {
    let segments = segments(dir)?;
    let start = segments
        .partition_point(|segment| segment.first <= first)
        .saturating_sub(1);
    Ok(Records {
        walk: Some(Walk::new(segments, start)?),
        not_before: Timestamp::MIN,
        from: first,
        until: last,
        passed_over: None,
    })
}

/// The newest record of this kind up to number `until`. Segments are read from the newest on.
pub(super) fn last_of_kind(
    dir: &Path,
    kind: &str,
    until: u64,
) -> Result<Option<Record>, VerifyError> {
    let segments = segments(dir)?;
    for index in (0..segments.len()).rev() {
        let upto = segments.get(..=index).unwrap_or_default().to_vec();
        let records = Records {
            walk: Some(Walk::new(upto, index)?),
            not_before: Timestamp::MIN,
            from: 0,
            until,
            passed_over: None,
        };
        let mut found = None;
        for record in records {
            let record = record?;
            if record.kind == kind {
                found = Some(record);
            }
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The newest segment that begins before `time`, or the first.
fn first_needed(segments: &[Segment], time: Timestamp) -> Result<usize, VerifyError> {
    for index in (1..segments.len()).rev() {
        let mut walk = Walk::new(segments.to_vec(), index)?;
        if let Step::Record { record, json } = walk.next()?
            && let Some(record) = Record::parse(json, record.hash)
            && record.time < time
        {
            return Ok(index);
        }
    }
    Ok(0)
}

impl Iterator for Records {
    type Item = Result<Record, VerifyError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let walk = self.walk.as_mut()?;
            let found = match walk.next() {
                Ok(Step::Record { record, .. }) if record.seq < self.from => continue,
                Ok(Step::Record { record, json }) if record.seq <= self.until => {
                    Record::parse(json, record.hash)
                }
                Ok(_) => {
                    self.walk = None;
                    return None;
                }
                Err(error) => {
                    self.walk = None;
                    return Some(Err(error));
                }
            };
            match found {
                Some(record) if record.time < self.not_before => {
                    self.passed_over = self.passed_over.max(Some(record.time));
                }
                Some(record) => return Some(Ok(record)),
                None => {
                    let error = walk.broken("the line fits the chain but is not a record".into());
                    self.walk = None;
                    return Some(Err(error));
                }
            }
        }
    }
}
