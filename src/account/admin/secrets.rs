//! Passwords from a file, from standard input or from a terminal; never from arguments or the
//! environment, which others can read.

use std::io::{IsTerminal, Read};
use std::path::Path;

use zeroize::Zeroizing;

use super::AdminError;
use crate::account::passwords::MAX_BYTES;
use crate::base::files::{Readers, read_checked};
use crate::base::secret::SecretText;

/// Reads a password: from `file` (`-` is standard input), or twice from the terminal.
pub(super) fn password(file: Option<&Path>) -> Result<SecretText, AdminError> {
    // One byte more than allowed, and a line end, so that too long is told from cut off.
    let limit = MAX_BYTES as u64 + 3;
    match file {
        Some(path) if path == Path::new("-") => {
            let mut bytes = Zeroizing::new(Vec::new());
            std::io::stdin().take(limit).read_to_end(&mut bytes)?;
            from_bytes(&bytes)
        }
        Some(path) => from_bytes(&Zeroizing::new(read_checked(path, Readers::Owner, limit)?)),
        None if std::io::stdin().is_terminal() => {
            let first = Zeroizing::new(rpassword::prompt_password("Password: ")?);
            let second = Zeroizing::new(rpassword::prompt_password("Again: ")?);
            if first == second {
                Ok(SecretText::new(first.as_str().to_owned()))
            } else {
                Err(AdminError::Input {
                    what: "the second password",
                    problem: "is not the first one".into(),
                })
            }
        }
        None => Err(AdminError::Input {
            what: "--password-file",
            problem: "is needed where there is no terminal".into(),
        }),
    }
}

/// One line; its end is not part of the password.
fn from_bytes(bytes: &[u8]) -> Result<SecretText, AdminError> {
    let text = std::str::from_utf8(bytes).map_err(|_| AdminError::Input {
        what: "the password",
        problem: "is not UTF-8".into(),
    })?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.contains(['\n', '\r']) {
        return Err(AdminError::Input {
            what: "the password",
            problem: "has more than one line".into(),
        });
    }
    Ok(SecretText::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_line() {
        let read = |text: &[u8]| from_bytes(text).map(|secret| secret.expose().to_owned());
        assert_eq!(read(b"correct horse\n").unwrap(), "correct horse");
        assert_eq!(read(b" spaces stay \r\n").unwrap(), " spaces stay ");
        assert!(read(b"one\ntwo\n").is_err());
        assert!(read(&[0xff]).is_err());
    }
}
