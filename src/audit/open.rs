//! Opens a log for writing: makes it, or checks its end and takes over from where it stands.
//!
//! Nothing is ever cut off that was known to be durable.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use super::AuditError;
use super::directory::{HEAD, LOCK, head_line, read_head, segment_path, segments};
use super::read::{Records, up_to};
use super::record::RecordRef;
use super::verify::{AgainstHead, VerifyError, no_head};
use super::walk::{Step, Walk};

/// The first head is written here, then renamed.
const NEW_HEAD: &str = "head.new";

/// What [`super::Audit::open`] found.
#[derive(Debug, Clone)]
pub struct Recovered {
    dir: PathBuf,
    /// How many records there were.
    pub records: u64,
    /// Complete records beyond the head, taken over: a crash came between writing them and
    /// moving the head.
    pub beyond_head: u64,
    /// Bytes of an incomplete last line that were cut off: a crash came in the middle of a write
    /// that nobody was told of.
    pub torn: Option<u64>,
}

impl Recovered {
    /// The records of `time` or later that were there at opening; for what is skipped see
    /// [`super::read::since`].
    pub fn since(&self, time: Timestamp) -> Result<Records, VerifyError> {
        up_to(&self.dir, time, self.records)
    }
}

/// The files of an open log.
pub(super) struct Files {
    /// The directory.
    pub dir: PathBuf,
    /// Keeps other writers out as long as it is open.
    pub _lock: File,
    /// The head file.
    pub head: File,
    /// The newest segment.
    pub segment: File,
    /// Where it is.
    pub segment_path: PathBuf,
    /// Its durable length, in bytes.
    pub length: u64,
    /// The newest durable record.
    pub newest: RecordRef,
}

impl From<VerifyError> for AuditError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Broken(broken) => Self::Broken(broken),
            VerifyError::Unreadable { path, source } => Self::Io {
                action: "read",
                path,
                source,
            },
        }
    }
}

pub(super) fn open(dir: &Path) -> Result<(Files, Recovered), AuditError> {
    make_directory(dir)?;
    let lock = lock(dir)?;
    let found = segments(dir)?;
    let head = match read_head(dir)? {
        Some(head) => head,
        None if found.is_empty() => make_head(dir)?,
        None => return Err(AuditError::Broken(no_head(dir))),
    };
    let end = check_end(dir, found, head)?;

    if let Some((path, length, _)) = &end.torn {
        truncate(path, *length).map_err(at("cut the torn end of", path))?;
    }
    for (path, from) in &end.rewrite {
        rewrite(path, *from).map_err(at("write again the end of", path))?;
    }
    let segment_path = match end.segment {
        Some(path) => path,
        None => segment_path(dir, end.newest.seq + 1),
    };
    let segment = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&segment_path)
        .map_err(at("open", &segment_path))?;
    sync_directory(dir).map_err(at("synchronise", dir))?;
    let head_path = dir.join(HEAD);
    let head = OpenOptions::new()
        .write(true)
        .open(&head_path)
        .map_err(at("open", &head_path))?;
    head.write_all_at(head_line(&end.newest).as_bytes(), 0)
        .and_then(|()| head.sync_all())
        .map_err(at("write", &head_path))?;

    let recovered = Recovered {
        dir: dir.to_owned(),
        records: end.newest.seq,
        beyond_head: end.beyond_head,
        torn: end.torn.map(|(_, _, bytes)| bytes),
    };
    let files = Files {
        dir: dir.to_owned(),
        _lock: lock,
        head,
        segment,
        segment_path,
        length: end.length,
        newest: end.newest,
    };
    Ok((files, recovered))
}

/// Makes sure that a file's name outlives a power cut.
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Where the log ends.
struct End {
    newest: RecordRef,
    /// The newest segment, and the length of its complete records.
    segment: Option<PathBuf>,
    length: u64,
    beyond_head: u64,
    /// A torn line: its file, where it begins, its bytes.
    torn: Option<(PathBuf, u64, u64)>,
    /// Segments with records beyond the head, and where those begin.
    rewrite: Vec<(PathBuf, u64)>,
}

/// Checks the chain from the beginning of the segment that holds the head's record.
fn check_end(
    dir: &Path,
    found: Vec<super::directory::Segment>,
    head: RecordRef,
) -> Result<End, AuditError> {
    let against = AgainstHead::new(dir, head).map_err(AuditError::Broken)?;
    let start = found
        .partition_point(|segment| segment.first <= head.seq)
        .saturating_sub(1);
    let mut walk = Walk::new(found, start)?;
    let mut torn = None;
    let mut rewrite: Vec<(PathBuf, u64)> = Vec::new();
    let mut before: (PathBuf, u64) = Default::default();
    loop {
        let record = match walk.next()? {
            Step::Record { record, .. } => record,
            Step::Torn(line) => {
                torn = Some((line.file, line.offset, line.bytes));
                break;
            }
            Step::End => break,
        };
        against.see(&record).map_err(AuditError::Broken)?;
        let Some((path, _, end)) = walk.position() else {
            break;
        };
        if before.0 != *path {
            before = (path.clone(), 0);
        }
        let known = rewrite.last().is_some_and(|(last, _)| last == path);
        if record.seq > head.seq && !known {
            rewrite.push(before.clone());
        }
        before.1 = end;
    }
    let last = walk
        .position()
        .map(|(path, line, end)| (path.clone(), line, end));
    let beyond_head = against
        .finish(
            &walk.newest(),
            last.as_ref().map(|(path, line, _)| (path.clone(), *line)),
        )
        .map_err(AuditError::Broken)?;
    let length = match (&torn, &last) {
        (Some((_, offset, _)), _) => *offset,
        (None, Some((_, _, end))) => *end,
        (None, None) => 0,
    };
    Ok(End {
        newest: walk.newest(),
        segment: last.map(|(path, _, _)| path),
        length,
        beyond_head,
        torn,
        rewrite,
    })
}

fn make_directory(dir: &Path) -> Result<(), AuditError> {
    if let Ok(metadata) = std::fs::metadata(dir) {
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(AuditError::Permissions {
                dir: dir.to_owned(),
                mode,
            });
        }
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(at("make", dir))?;
    match dir.parent() {
        Some(parent) if parent != Path::new("") => {
            sync_directory(parent).map_err(at("synchronise", parent))
        }
        _ => Ok(()),
    }
}

fn lock(dir: &Path) -> Result<File, AuditError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(at("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AuditError::Locked {
            dir: dir.to_owned(),
        }),
        Err(errno) => Err(at("lock", &path)(errno.into())),
    }
}

/// Begins a log: its head comes into being whole, before any segment does.
fn make_head(dir: &Path) -> Result<RecordRef, AuditError> {
    let path = dir.join(NEW_HEAD);
    let write = || {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all_at(head_line(&RecordRef::NONE).as_bytes(), 0)?;
        file.sync_all()?;
        std::fs::rename(&path, dir.join(HEAD))?;
        sync_directory(dir)
    };
    write().map_err(at("write", &path))?;
    Ok(RecordRef::NONE)
}

fn truncate(path: &Path, length: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(length)?;
    file.sync_all()
}

/// Writes what is behind `from` once more, so that it is dirty in the cache, and synchronises it.
fn rewrite(path: &Path, from: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut offset = from;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match file.read_at(&mut buffer, offset) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        file.write_all_at(&buffer[..count], offset)?;
        offset += count as u64;
    }
    file.sync_all()
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuditError {
    let path = path.to_owned();
    move |source| AuditError::Io {
        action,
        path,
        source,
    }
}
