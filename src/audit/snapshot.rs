//! A copy of a log that may be growing, and whether anybody writes it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::directory::{HEAD, LOCK, head_line, read_head, segments};
use super::open::sync_directory;
use super::verify::{VerifyError, no_head};

/// Copies the log in `from` to `to`, which must not exist. The head is read first, so the copy
/// reaches at least as far as it says; a record that was being written is cut when the copy is
/// opened, as after a crash.
pub fn copy(from: &Path, to: &Path) -> Result<(), VerifyError> {
    let head = read_head(from)?.ok_or_else(|| no_head(from))?;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| VerifyError::Unreadable { path, source }
    };
    DirBuilder::new().mode(0o700).create(to).map_err(at(to))?;
    for segment in segments(from)? {
        let Some(name) = segment.path.file_name() else {
            continue;
        };
        copy_file(&segment.path, &to.join(name)).map_err(at(&segment.path))?;
    }
    let path = to.join(HEAD);
    let write = || {
        let mut file = create(&path)?;
        file.write_all(head_line(&head).as_bytes())?;
        file.sync_all()?;
        sync_directory(to)
    };
    write().map_err(at(&path))
}

/// Whether a process writes the log in `dir` now.
pub fn in_use(dir: &Path) -> io::Result<bool> {
    let file = match File::open(dir.join(LOCK)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut target = create(to)?;
    io::copy(&mut File::open(from)?, &mut target)?;
    target.sync_all()
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}
