//! The fields of one message, and the string they are signed as.

use std::collections::BTreeMap;
use std::fmt;

use zeroize::Zeroizing;

/// Why fields do not make a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldsError {
    /// A name that is no XML element name of the interface.
    #[error(
        "a field name must be 1 to 64 letters, digits, '_', '-' and '.', not beginning with a digit, '-' or '.'"
    )]
    Name,
    /// A value with a character that XML cannot carry.
    #[error("field {name} has a character that XML cannot carry")]
    Value {
        /// The field.
        name: String,
    },
    /// Two fields of one name.
    #[error("field {name} appears twice")]
    Twice {
        /// The field.
        name: String,
    },
    /// More fields than any message has.
    #[error("a message has at most {max} fields")]
    TooMany {
        /// The most allowed.
        max: usize,
    },
}

/// The fields of one message, in the order they are signed in: by name, byte by byte.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Fields(BTreeMap<String, String>);

impl Fields {
    /// The most fields of one message.
    pub const MAX: usize = 512;

    /// From names and values.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, FieldsError> {
        let mut fields = Self::default();
        for (name, value) in pairs {
            fields.insert(name, value)?;
        }
        Ok(fields)
    }

    /// Adds one field.
    pub fn insert(&mut self, name: String, value: String) -> Result<(), FieldsError> {
        if !is_name(&name) {
            return Err(FieldsError::Name);
        }
        if !value.chars().all(is_xml) {
            return Err(FieldsError::Value { name });
        }
        if self.0.contains_key(&name) {
            return Err(FieldsError::Twice { name });
        }
        if self.0.len() == Self::MAX {
            return Err(FieldsError::TooMany { max: Self::MAX });
        }
        self.0.insert(name, value);
        Ok(())
    }

    /// The value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All fields, in signing order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// `k1=v1&k2=v2…` over all fields but `sign` and empty ones, values as they are.
    pub fn canonical(&self) -> Zeroizing<String> {
        // Room for a suffix too, so that the secret is not left behind by a growing buffer.
        let length: usize = self
            .signed()
            .map(|(name, value)| name.len() + value.len() + 2)
            .sum();
        let mut text = Zeroizing::new(String::with_capacity(length + 64));
        for (name, value) in self.signed() {
            if !text.is_empty() {
                text.push('&');
            }
            text.push_str(name);
            text.push('=');
            text.push_str(value);
        }
        text
    }

    /// The first field whose value could be read as further fields: it has `&NAME=` in it, with a
    /// name that sorts after the field's own. Of all messages with one canonical string, at most
    /// one has no such field: where two readings part, one begins a field that the other has
    /// inside an earlier field's value, under a name that sorts later.
    pub fn embedded(&self) -> Option<&str> {
        self.signed()
            .find(|(name, value)| {
                value.split('&').skip(1).any(|part| {
                    part.split_once('=')
                        .is_some_and(|(inner, _)| is_name(inner) && inner > *name)
                })
            })
            .map(|(name, _)| name)
    }

    fn signed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter()
            .filter(|(name, value)| *name != SIGN && !value.is_empty())
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

pub(super) const SIGN: &str = "sign";

pub(super) fn is_name(text: &str) -> bool {
    let first = text.bytes().next();
    text.len() <= 64
        && first.is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Char of XML 1.0 section 2.2.
pub(super) fn is_xml(char: char) -> bool {
    matches!(char, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        Fields::new(pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()))).unwrap()
    }

    #[test]
    fn of_the_readings_of_one_string_one_is_accepted() {
        let whole = fields(&[("a", "1&b=2")]);
        let split = fields(&[("a", "1"), ("b", "2")]);
        assert_eq!(*whole.canonical(), *split.canonical());
        assert_eq!((whole.embedded(), split.embedded()), (Some("a"), None));
        let one = fields(&[("a", "0"), ("c", "1&b=2"), ("d", "3")]);
        let other = fields(&[("a", "0&c=1"), ("b", "2"), ("d", "3")]);
        assert_eq!(*one.canonical(), *other.canonical());
        assert_eq!((one.embedded(), other.embedded()), (None, Some("a")));
        for harmless in ["1&2", "a=b", "&=x", "x & y=z", "&amp;", "1&a=2"] {
            assert_eq!(fields(&[("a", harmless)]).embedded(), None, "{harmless}");
        }
    }

    #[test]
    fn names_and_values_are_those_of_xml() {
        for bad in ["", "1a", "-a", "a b", "é", "a\n", &"x".repeat(65)] {
            assert_eq!(
                Fields::default().insert(bad.into(), "x".into()),
                Err(FieldsError::Name),
                "{bad:?}"
            );
        }
        for bad in ["\0", "\u{1b}", "\u{ffff}"] {
            assert!(Fields::default().insert("a".into(), bad.into()).is_err());
        }
    }
}
