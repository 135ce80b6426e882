//! Directories of files as a whole: copies for a backup, and whether one is as it was made.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::encoding::{hex, sha256};
use super::files::{FileError, write_new};

/// SHA-256 of every file below `directory` but `but`, hexadecimal, by its path there.
pub fn digests(directory: &Path, but: &str) -> Result<BTreeMap<String, String>, FileError> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(place) = open.pop() {
        for path in entries(&place)? {
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(directory).unwrap_or(&path);
            if name != Path::new(but) {
                let bytes = fs::read(&path).map_err(unreadable(&path))?;
                found.insert(name.display().to_string(), hex(&sha256(&bytes)));
            }
        }
    }
    Ok(found)
}

/// In what way the files that are `found` are not those that were `listed`; `None` where they are.
pub fn difference(
    listed: &BTreeMap<String, String>,
    found: &BTreeMap<String, String>,
) -> Option<String> {
    for (name, digest) in listed {
        match found.get(name) {
            None => return Some(format!("{name} is missing from the backup")),
            Some(other) if other != digest => {
                return Some(format!("{name} of the backup was changed"));
            }
            Some(_) => {}
        }
    }
    found
        .keys()
        .find(|name| !listed.contains_key(*name))
        .map(|extra| format!("{extra} was not in the backup when it was made"))
}

/// Gives everything below `directory` to the owner of `like`; only root can, and only root needs to.
pub fn own_as(directory: &Path, like: &Path) -> Result<(), FileError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let owner = fs::metadata(like).map_err(unreadable(like))?;
    let mut open = vec![directory.to_owned()];
    while let Some(place) = open.pop() {
        for path in entries(&place)? {
            std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))
                .map_err(unwritable(&path))?;
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    Ok(())
}

/// What is in a directory, in the order of the names.
pub fn entries(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut paths = fs::read_dir(directory)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<io::Result<Vec<_>>>()
        })
        .map_err(unreadable(directory))?;
    paths.sort_unstable();
    Ok(paths)
}

/// Makes a directory that is closed to others; one that exists is an error.
pub fn make(directory: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .map_err(unwritable(directory))
}

/// Copies a file to a place where there is none, closed to others, with the directories above it.
pub fn copy(from: &Path, to: &Path) -> Result<(), FileError> {
    let bytes = fs::read(from).map_err(unreadable(from))?;
    if let Some(parent) = to.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(unwritable(parent))?;
    }
    write_new(to, &bytes, 0o600)
}

/// An error of reading `path`.
pub fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Unreadable { path, source }
}

/// An error of writing `path`.
pub fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Unwritable { path, source }
}
