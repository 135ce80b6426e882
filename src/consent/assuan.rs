//! The Assuan protocol's lines (<https://www.gnupg.org/documentation/manuals/assuan/>), as far as
//! a client of pinentry needs them.

use zeroize::Zeroizing;

/// The longest line of the protocol, its line break included (section "Client requests").
pub(super) const LINE_LIMIT: usize = 1000;

/// The line of a command with one argument; `None` if it would be longer than the protocol allows.
///
/// Control characters and `%` in the argument are escaped, so no value can end the line and
/// begin another.
pub(super) fn command(name: &str, argument: &str) -> Option<Vec<u8>> {
    let mut line = Vec::with_capacity(name.len() + argument.len() + 2);
    line.extend_from_slice(name.as_bytes());
    if !argument.is_empty() {
        line.push(b' ');
    }
    for byte in argument.bytes() {
        if byte == b'%' || byte.is_ascii_control() {
            line.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            line.push(byte);
        }
    }
    line.push(b'\n');
    (line.len() <= LINE_LIMIT).then_some(line)
}

/// A line from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// Done.
    Ok,
    /// Not done.
    Err {
        /// The code of libgpg-error, without its source.
        code: u16,
        /// The server's words.
        text: String,
    },
    /// Data: what a person typed. The rest of the line, still escaped, is for [`unescape`].
    Data,
    /// A status line or comment, after which the reply still comes.
    Interim,
}

/// libgpg-error's `GPG_ERR_TIMEOUT`.
pub(super) const TIMEOUT: u16 = 62;
/// libgpg-error's `GPG_ERR_CANCELED`.
pub(super) const CANCELED: u16 = 99;
/// libgpg-error's `GPG_ERR_NOT_CONFIRMED`.
pub(super) const NOT_CONFIRMED: u16 = 114;
/// libgpg-error's `GPG_ERR_FULLY_CANCELED`.
pub(super) const FULLY_CANCELED: u16 = 198;

impl Reply {
    /// Reads a line without its line break; `None` if it is not one of the protocol, or one that
    /// a server of ours has no reason to send.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "OK" => Some(Self::Ok),
            "ERR" => {
                let (code, text) = rest.split_once(' ').unwrap_or((rest, ""));
                let code: u32 = code.parse().ok()?;
                Some(Self::Err {
                    // The low 16 bits are the code, the high ones say which library it is from.
                    code: (code & 0xffff) as u16,
                    text: text.chars().filter(|c| !c.is_control()).collect(),
                })
            }
            "D" => Some(Self::Data),
            "S" | "#" => Some(Self::Interim),
            _ if word.starts_with('#') => Some(Self::Interim),
            _ => None,
        }
    }
}

/// The data of a line of [`Reply::Data`]; `None` where an escape is not one. Appends to a buffer
/// that was made large enough, so that nothing is left behind by its growing.
pub(super) fn unescape(line: &[u8], into: &mut Zeroizing<Vec<u8>>) -> Option<()> {
    let mut rest = line.strip_prefix(b"D ").unwrap_or_default();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        let byte = if byte == b'%' {
            let (digits, behind) = rest.split_at_checked(2)?;
            rest = behind;
            u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
        } else {
            byte
        };
        if into.len() == into.capacity() {
            return None;
        }
        into.push(byte);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_argument_can_begin_another_line() {
        let line = command("SETDESC", "100%\nCONFIRM\r\n\0 元").unwrap();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "SETDESC 100%25%0ACONFIRM%0D%0A%00 元\n"
        );
        assert_eq!(command("CONFIRM", "").unwrap(), b"CONFIRM\n");
        assert!(command("A", &"x".repeat(LINE_LIMIT - 3)).is_some());
        assert!(command("A", &"x".repeat(LINE_LIMIT - 2)).is_none());
        assert!(command("A", &"\n".repeat(LINE_LIMIT / 3)).is_none());
    }

    #[test]
    fn replies_are_read_strictly() {
        assert_eq!(Reply::parse(b"OK"), Some(Reply::Ok));
        assert_eq!(Reply::parse(b"OK Pleased to meet you"), Some(Reply::Ok));
        assert_eq!(
            Reply::parse(b"ERR 83886179 Operation cancelled <Pinentry>"),
            Some(Reply::Err {
                code: CANCELED,
                text: "Operation cancelled <Pinentry>".into()
            })
        );
        assert_eq!(Reply::parse(b"S BUTTON_INFO close"), Some(Reply::Interim));
        assert_eq!(Reply::parse(b"# note"), Some(Reply::Interim));
        for garbage in [
            &b""[..],
            b"OKAY",
            b"ok",
            b"ERR",
            b"ERR x",
            b"INQUIRE PIN",
            b"\xff",
        ] {
            assert_eq!(Reply::parse(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn data_is_unescaped_and_bounded() {
        let read = |line: &[u8]| {
            let mut buffer = Zeroizing::new(Vec::with_capacity(8));
            unescape(line, &mut buffer).map(|()| buffer.to_vec())
        };
        assert_eq!(Reply::parse(b"D 12%2534"), Some(Reply::Data));
        assert_eq!(read(b"D 12%2534").unwrap(), b"12%34");
        assert_eq!(read(b"D").unwrap(), b"");
        for bad in [&b"D %"[..], b"D %2", b"D %zz", b"D 123456789"] {
            assert_eq!(read(bad), None);
        }
    }
}
