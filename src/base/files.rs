//! Files that matter: read with checks on owner and mode, written whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why a file was refused or not written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Owner or mode let somebody else read or change it.
    #[error("{} {problem}", path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// More bytes than allowed.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// It cannot be written.
    #[error("cannot write {}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// Who may read a file besides its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// Nobody: the file holds a secret.
    Owner,
    /// The owner's group: the file decides what the program does.
    Group,
    /// Anybody: the file is public, but only its owner may change it.
    Anybody,
}

/// Reads a file of at most `limit` bytes whose owner is root or the user this process runs as,
/// which nobody else can change, and which only `readers` can read.
pub fn read_checked(path: &Path, readers: Readers, limit: u64) -> Result<Vec<u8>, FileError> {
    let unreadable = |source| FileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let problem = if !metadata.is_file() {
        Some("is not a regular file".to_owned())
    } else if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
        Some(format!(
            "is owned by uid {}, neither root nor this program's user",
            metadata.uid()
        ))
    } else {
        let allowed = match readers {
            Readers::Owner => 0o700,
            Readers::Group => 0o750,
            Readers::Anybody => 0o755,
        };
        let mode = metadata.mode() & 0o777;
        (mode & !allowed != 0).then(|| {
            let who = match readers {
                Readers::Owner => "only its owner may have access",
                Readers::Group => "others must have no access and its group must not write",
                Readers::Anybody => "only its owner may write",
            };
            format!("has mode {mode:04o}; {who}")
        })
    };
    if let Some(problem) = problem {
        return Err(FileError::Permissions {
            path: path.to_owned(),
            problem,
        });
    }
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        super::secret::wipe(&mut bytes);
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(bytes)
}

/// Checks that a directory's owner is root or the user this process runs as, and that nobody else
/// can add, replace or remove its files.
pub fn check_directory(path: &Path) -> Result<(), FileError> {
    let metadata = std::fs::metadata(path).map_err(|source| FileError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.mode() & 0o777;
    let problem = if !metadata.is_dir() {
        "is not a directory".to_owned()
    } else if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
        format!(
            "is owned by uid {}, neither root nor this program's user",
            metadata.uid()
        )
    } else if mode & 0o022 != 0 {
        format!("has mode {mode:04o}; only its owner may write")
    } else {
        return Ok(());
    };
    Err(FileError::Permissions {
        path: path.to_owned(),
        problem,
    })
}

/// Replaces `path` by `bytes` so that after a crash at any instant the old or the new content is
/// there, whole: temporary file beside it, fsync, rename, fsync of the directory.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let unwritable = |source| FileError::Unwritable {
        path: path.to_owned(),
        source,
    };
    let directory = parent(path);
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(directory)
        .map_err(unwritable)?;
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.as_file().sync_all())
        .map_err(unwritable)?;
    file.persist(path)
        .map_err(|error| unwritable(error.error))?;
    sync_directory(directory).map_err(unwritable)
}

/// Creates `path` with `bytes`; an existing file is an error and stays as it is.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let unwritable = |source| FileError::Unwritable {
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(unwritable)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(unwritable)?;
    sync_directory(parent(path)).map_err(unwritable)
}

/// Creates a directory and its parents, the last one with mode 0700 unless it exists.
pub fn private_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| FileError::Unwritable {
            path: path.to_owned(),
            source,
        })
}

/// Makes a created, renamed or removed entry of `directory` durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_others_can_read_is_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        write_atomic(&path, b"1234", 0o600).unwrap();
        assert_eq!(read_checked(&path, Readers::Owner, 16).unwrap(), b"1234");
        assert!(matches!(
            read_checked(&path, Readers::Owner, 3),
            Err(FileError::TooLarge { limit: 3, .. })
        ));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read_checked(&path, Readers::Group, 16).is_ok());
        assert!(matches!(
            read_checked(&path, Readers::Owner, 16),
            Err(FileError::Permissions { .. })
        ));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).unwrap();
        assert!(read_checked(&path, Readers::Group, 16).is_err());
    }

    #[test]
    fn a_new_file_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_new(&path, b"one", 0o600).unwrap();
        assert!(write_new(&path, b"two", 0o600).is_err());
        write_atomic(&path, b"three", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
