//! Values that must not reach a log, an error or a dump.
//!
//! Each is wiped when dropped, prints as its name, and shows its content only through `expose`.

use std::fmt;

use serde::{Deserialize, Deserializer};
use zeroize::{Zeroize, Zeroizing};

use super::memory::Locked;

/// A token PIN as typed by a person or read from its source. It is kept for the life of a login, so
/// it lies in locked pages.
pub struct Pin(Kept);

enum Kept {
    Locked(Locked),
    /// There was no page to be had.
    Heap(Zeroizing<String>),
}

impl Pin {
    /// Takes over `text`; the caller's buffer is wiped.
    pub fn new(text: String) -> Self {
        let text = Zeroizing::new(text);
        Self(match Locked::copy(text.as_bytes()) {
            Ok(locked) => Kept::Locked(locked),
            Err(_) => Kept::Heap(text),
        })
    }

    /// The PIN itself, for the call that needs it.
    pub fn expose(&self) -> &str {
        match &self.0 {
            // It was text when it was copied.
            Kept::Locked(locked) => std::str::from_utf8(locked.expose()).unwrap_or_default(),
            Kept::Heap(text) => text,
        }
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        Self::new(self.expose().to_owned())
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(…)")
    }
}

impl<'de> Deserialize<'de> for Pin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// A password, SMS code or API secret in text form.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes over `text`.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself, for the call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// Secret bytes: a private key in software, a MAC key.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes over `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves, for the call that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(…)")
    }
}

/// Wipes a buffer that held a secret on its way in.
pub fn wipe(buffer: &mut [u8]) {
    buffer.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Pin::new("123456".into())), "Pin(…)");
        assert_eq!(
            format!("{:?}", SecretText::new("x".into())),
            "SecretText(…)"
        );
        assert_eq!(format!("{:?}", SecretBytes::new(vec![1])), "SecretBytes(…)");
    }
}
