//! Text that is shown to a person before it is signed.

use std::fmt;
use std::str::FromStr;

/// One line of displayable text, 1 to [`Text::MAX`] characters.
///
/// Whoever reads it on a screen reads what is signed: control characters, line breaks, bidi
/// overrides, zero-width and other invisible characters are refused (Unicode UAX #9 section 2,
/// UTS #39 section 3.1), and so is white space at either end.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Text(Box<str>);

impl Text {
    /// Longest allowed length, in Unicode scalar values.
    pub const MAX: usize = 120;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// No characters.
    #[error("must not be empty")]
    Empty,
    /// More than [`Text::MAX`] characters.
    #[error("must have at most 120 characters")]
    TooLong,
    /// White space at the beginning or the end.
    #[error("must not begin or end with white space")]
    Untrimmed,
    /// A character that would not show as itself.
    #[error("must not contain the invisible or control character U+{0:04X}")]
    Invisible(u32),
}

impl FromStr for Text {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        if text.is_empty() {
            return Err(TextError::Empty);
        }
        if text.chars().count() > Self::MAX {
            return Err(TextError::TooLong);
        }
        if let Some(hidden) = text.chars().find(|&c| invisible(c)) {
            return Err(TextError::Invisible(u32::from(hidden)));
        }
        if text.trim() != text {
            return Err(TextError::Untrimmed);
        }
        Ok(Self(text.into()))
    }
}

/// Characters of the general categories Cc, Cf, Zl, Zp, Co and Cs, noncharacters, and the blanks
/// and fillers that look like nothing or like an ordinary space.
fn invisible(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0x00AD | 0x034F | 0x0600..=0x0605 | 0x061C | 0x06DD | 0x070F | 0x0890..=0x0891
            | 0x08E2 | 0x115F..=0x1160 | 0x1680 | 0x17B4..=0x17B5 | 0x180B..=0x180F
            | 0x2000..=0x200F | 0x2028..=0x202F | 0x205F..=0x206F | 0x2800 | 0x3164
            | 0xE000..=0xF8FF | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFB
            | 0xFFFE..=0xFFFF | 0x110BD | 0x110CD | 0x13430..=0x1343F | 0x1BCA0..=0x1BCA3
            | 0x1D173..=0x1D17A | 0xE0000..=0x10FFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_in_any_script_passes() {
        for good in [
            "Zhang San",
            "张三（北京）有限公司",
            "Ünïcödé",
            "日本 東京",
            "a",
        ] {
            assert_eq!(good.parse::<Text>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn what_would_not_show_as_itself_is_refused() {
        for bad in [
            "a\nb",
            "a\u{202e}b",
            "a\u{200b}b",
            "a\u{2066}b",
            "a\u{85}b",
            "a\u{2028}b",
            "\u{feff}a",
            "a\u{e0041}",
            "a\u{3164}b",
            "a\u{ad}b",
            "a\u{2003}b",
        ] {
            assert!(
                matches!(bad.parse::<Text>(), Err(TextError::Invisible(_))),
                "{bad:?}"
            );
        }
        assert_eq!(" a".parse::<Text>(), Err(TextError::Untrimmed));
        assert_eq!("".parse::<Text>(), Err(TextError::Empty));
        assert_eq!("x".repeat(121).parse::<Text>(), Err(TextError::TooLong));
        assert!("汉".repeat(120).parse::<Text>().is_ok());
    }
}
