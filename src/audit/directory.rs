//! The names in a log directory, and the head file.
//!
//! What is in a record never matters here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::record::{HASH_TEXT, Hash, RecordRef, has_next};
use super::verify::{Broken, VerifyError};

/// The file that names the newest durable record.
pub(super) const HEAD: &str = "head";

/// The file whose lock keeps other writers out.
pub(super) const LOCK: &str = "lock";

/// Digits of a sequence number, enough for any `u64`.
const DIGITS: usize = 20;

/// Length of the head file.
pub(super) const HEAD_LENGTH: usize = DIGITS + 1 + HASH_TEXT + 1;

/// One segment file.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    /// The number of its first record.
    pub first: u64,
    /// Where it is.
    pub path: PathBuf,
}

/// The path of the segment that begins with record `first`.
pub(super) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:0DIGITS$}.log"))
}

/// All segments, oldest first. Files of other names are left alone, but nothing else may end
/// in `.log`.
pub(super) fn segments(dir: &Path) -> Result<Vec<Segment>, VerifyError> {
    let unreadable = |source| VerifyError::Unreadable {
        path: dir.to_owned(),
        source,
    };
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let first = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .filter(|stem| stem.len() == DIGITS && stem.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|stem| stem.parse().ok())
            .ok_or_else(|| Broken {
                file: path.clone(),
                line: 0,
                seq: None,
                what: "the file has not the name of a segment".into(),
            })?;
        segments.push(Segment { first, path });
    }
    segments.sort_unstable_by_key(|segment| segment.first);
    Ok(segments)
}

/// The contents of the head file that names `newest`.
pub(super) fn head_line(newest: &RecordRef) -> String {
    format!("{:0DIGITS$} {}\n", newest.seq, newest.hash)
}

/// Reads the head file. `Ok(None)` where there is none.
pub(super) fn read_head(dir: &Path) -> Result<Option<RecordRef>, VerifyError> {
    let path = dir.join(HEAD);
    let unreadable = |source| VerifyError::Unreadable {
        path: path.clone(),
        source,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    // A daemon may be overwriting the line, and not every file system makes a read see either
    // the old or the new one: two equal reads in a row are one of them.
    let mut line = read_start(&file).map_err(unreadable)?;
    for _ in 0..64 {
        let again = read_start(&file).map_err(unreadable)?;
        if again == line {
            break;
        }
        line = again;
    }
    match parse_head(&line) {
        Some(head) => Ok(Some(head)),
        None => Err(Broken {
            file: path,
            line: 1,
            seq: None,
            what: "the head is not a sequence number and a hash".into(),
        }
        .into()),
    }
}

/// The first bytes of a head file, one more than it should have.
fn read_start(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEAD_LENGTH + 1];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn parse_head(line: &[u8]) -> Option<RecordRef> {
    let text = line.strip_suffix(b"\n")?;
    if line.len() != HEAD_LENGTH || text[DIGITS] != b' ' {
        return None;
    }
    let digits = &text[..DIGITS];
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seq = std::str::from_utf8(digits).ok()?.parse().ok()?;
    let hash = Hash::parse(&text[DIGITS + 1..])?;
    has_next(seq).then_some(RecordRef { seq, hash })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_round_trips_and_nothing_else_is_one() {
        let head = RecordRef {
            seq: 42,
            hash: Hash([7; 32]),
        };
        let line = head_line(&head);
        assert_eq!(line.len(), HEAD_LENGTH);
        assert_eq!(parse_head(line.as_bytes()), Some(head));
        assert_eq!(parse_head(format!("{line}x").as_bytes()), None);
        assert_eq!(parse_head(line.trim_end().as_bytes()), None);
        assert_eq!(parse_head(line.replace("0042", "+042").as_bytes()), None);
        assert_eq!(parse_head(b""), None);
        // The last number that fits has no next one, so it is never given.
        let last = |seq| head_line(&RecordRef { seq, ..head });
        assert!(parse_head(last(u64::MAX - 1).as_bytes()).is_some());
        assert_eq!(parse_head(last(u64::MAX).as_bytes()), None);
    }

    #[test]
    fn a_head_is_of_one_form_and_its_absence_is_no_fault() {
        let head = RecordRef {
            seq: 42,
            hash: Hash([7; 32]),
        };
        let line = head_line(&head);
        for bad in [
            "\n".to_owned(),
            line.replacen(' ', "-", 1),
            line.replacen("00", "+0", 1),
            line.replacen(' ', "  ", 1),
        ] {
            assert_eq!(parse_head(bad.as_bytes()), None, "{bad:?}");
        }
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(read_head(directory.path()), Ok(None)));
        let path = directory.path().join(HEAD);
        std::fs::write(&path, &line).unwrap();
        assert_eq!(read_head(directory.path()).unwrap(), Some(head));
        // What cannot be looked for is not absent.
        assert!(matches!(
            read_head(&path),
            Err(VerifyError::Unreadable { .. })
        ));
    }

    #[test]
    fn a_segment_has_a_name_of_twenty_digits() {
        for (name, good) in [
            ("00000000000000000007.log", true),
            ("7.log", false),
            ("+0000000000000000007.log", false),
            ("99999999999999999999.log", false),
            ("notes.txt", true),
        ] {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join(name), "").unwrap();
            assert_eq!(segments(directory.path()).is_ok(), good, "{name}");
        }
    }
}
