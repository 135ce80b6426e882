//! Reads records back, in order, without holding the log in memory.

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
    until: u64,
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
        until,
    })
}

/// The newest segment that begins before `time`, or the first.
fn first_needed(segments: &[Segment], time: Timestamp) -> Result<usize, VerifyError> {
    for index in (1..segments.len()).rev() {
        let mut walk = Walk::new(segments.to_vec(), index)?;
        if let Step::Record { json, .. } = walk.next()?
            && let Some(record) = Record::parse(json)
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
                Ok(Step::Record { record, json }) if record.seq <= self.until => {
                    Record::parse(json)
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
                Some(record) if record.time < self.not_before => {}
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
