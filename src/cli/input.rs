//! Reading secrets and files that a command was pointed to.
//!
//! A secret comes from a person at the terminal (not echoed), from a file only its owner can read,
//! or from standard input as `-`; never from an argument or the environment.

use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::Error;
use crate::base::files::{FileError, Readers, read_checked};
use crate::base::memory::{lock_all, undumpable};

/// No secret is longer, in bytes.
const SECRET_LIMIT: u64 = 4096;

/// A file, or standard input as `-`.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// Standard input.
    Stdin,
    /// A file.
    File(PathBuf),
}

impl From<std::ffi::OsString> for Source {
    fn from(text: std::ffi::OsString) -> Self {
        if text == "-" {
            Self::Stdin
        } else {
            Self::File(text.into())
        }
    }
}

impl Source {
    /// Everything in it, at most `limit` bytes.
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>, Error> {
        match self {
            Self::File(path) => read_file(path, limit),
            Self::Stdin => {
                let mut bytes = Vec::new();
                io::stdin()
                    .lock()
                    .take(limit + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|source| Error::Stream {
                        stream: "standard input",
                        source,
                    })?;
                if bytes.len() as u64 > limit {
                    return Err(FileError::TooLarge {
                        path: "standard input".into(),
                        limit,
                    }
                    .into());
                }
                Ok(bytes)
            }
        }
    }
}

/// Reads a file of at most `limit` bytes that holds no secret.
pub(super) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let unreadable = |source| FileError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        }
        .into());
    }
    Ok(bytes)
}

/// What is asked for, and the option that names a file instead.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    /// As in "`what` is needed", such as "a PIN".
    pub(super) what: &'static str,
    /// The option.
    pub(super) option: &'static str,
}

/// A secret from `source`, or typed after `prompt`.
pub(super) fn secret(
    question: Question,
    prompt: &str,
    source: Option<&Source>,
) -> Result<String, Error> {
    // From here on no core dump and no other program of the user's shows it, and no swap where this
    // process may lock its memory.
    undumpable().map_err(|errno| Error::Stream {
        stream: "memory that cannot be dumped",
        source: errno.into(),
    })?;
    if let Err(error) = lock_all() {
        tracing::debug!(%error, "memory is not locked");
    }
    let text = match source {
        Some(Source::Stdin) => first_line_of_stdin()?,
        Some(Source::File(path)) => {
            let bytes = Zeroizing::new(read_checked(path, Readers::Owner, SECRET_LIMIT)?);
            let text = std::str::from_utf8(&bytes).map_err(|_| Error::Input {
                what: format!("{} holds no text", path.display()),
                action: "Check that it is the right file.".into(),
            })?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        None if io::stdin().is_terminal() => {
            rpassword::prompt_password(prompt).map_err(|source| Error::Stream {
                stream: "the terminal",
                source,
            })?
        }
        None => {
            return Err(Error::NoTerminal {
                what: question.what,
                option: question.option,
            });
        }
    };
    if text.is_empty() {
        return Err(Error::Usage {
            what: format!("{} is needed, and nothing was given", question.what),
            action: "Run the command again.".into(),
        });
    }
    Ok(text)
}

/// A new secret from `source`, or typed twice after `prompt`.
pub(super) fn new_secret(
    question: Question,
    prompt: &str,
    source: Option<&Source>,
) -> Result<String, Error> {
    let text = secret(question, prompt, source)?;
    if source.is_none() {
        let again = Zeroizing::new(secret(question, "Again: ", None)?);
        if *again != text {
            drop(Zeroizing::new(text));
            return Err(Error::Usage {
                what: format!("{} was typed differently the second time", question.what),
                action: "Run the command again; nothing was changed.".into(),
            });
        }
    }
    Ok(text)
}

fn first_line_of_stdin() -> Result<String, Error> {
    let mut line = String::new();
    io::stdin()
        .lock()
        .take(SECRET_LIMIT)
        .read_line(&mut line)
        .map_err(|source| Error::Stream {
            stream: "standard input",
            source,
        })?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const PIN: Question = Question {
        what: "a PIN",
        option: "--pin-file",
    };

    #[test]
    fn a_secret_file_has_one_line_and_one_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pin");
        std::fs::write(&path, "4711\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let source = Source::File(path.clone());
        assert_eq!(secret(PIN, "", Some(&source)).unwrap(), "4711");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            secret(PIN, "", Some(&source)),
            Err(Error::File(FileError::Permissions { .. }))
        ));
    }

    #[test]
    fn a_file_past_its_limit_is_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "12345").unwrap();
        assert!(read_file(&path, 5).is_ok());
        assert!(matches!(
            read_file(&path, 4),
            Err(Error::File(FileError::TooLarge { limit: 4, .. }))
        ));
    }
}
