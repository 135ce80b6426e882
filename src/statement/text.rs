//! Text that is shown to a person before it is signed.
//!
//! What is refused, and why:
//! - characters that do not show as themselves: control characters, line breaks, bidi overrides,
//!   zero-width and other invisible ones, blanks that are no space, white space at either end
//!   (Unicode UAX #9 section 2, UTS #39 section 3.1);
//! - another spelling of the same text: what is not in normalisation form C (UAX #15), so that one
//!   text has one sequence of bytes;
//! - letters made to look like others: compatibility forms such as mathematical letters, and more
//!   than two marks on one letter;
//! - words that mix scripts which are not written together, such as a Cyrillic letter among Latin
//!   ones (UTS #39 section 5.1; Latin beside Chinese, Japanese or Korean is fine);
//! - words of another script that look like Latin as a whole (UTS #39 section 4), unless the rest
//!   of the text shows plainly that it is not Latin.
//!
//! The data is that of the `unicode-security` crate, which follows UTS #39.

use std::fmt;
use std::str::FromStr;

use unicode_normalization::char::is_combining_mark;
use unicode_normalization::is_nfc;
use unicode_script::{Script, UnicodeScript as _};
use unicode_security::GeneralSecurityProfile as _;
use unicode_security::confusable_detection::skeleton;
use unicode_security::mixed_script::AugmentedScriptSet;

/// One line of displayable text, 1 to [`Text::MAX`] characters. Whoever reads it on a screen reads
/// what is signed.
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
    /// The same text can be written with other characters.
    #[error("must be in Unicode normalisation form C")]
    NotNormal,
    /// A character that looks like another one, or like none that is in use.
    #[error("must not contain U+{0:04X}, which looks like another character")]
    LookAlike(u32),
    /// Marks piled on a letter.
    #[error("must not have more than two marks on one letter")]
    Marks,
    /// A word with letters of scripts that are not written together.
    #[error("must not mix scripts within the word {0:?}")]
    MixedScripts(String),
    /// A word that looks like Latin letters and is not.
    #[error("must not contain {0:?}, which looks like Latin letters and is not")]
    Confusable(String),
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
        // What follows is about characters that ASCII does not have.
        if !text.is_ascii() {
            check_look(text)?;
        }
        Ok(Self(text.into()))
    }
}

/// Characters of the general categories Cc, Cf, Zl, Zp, Co and Cs, noncharacters, and the blanks
/// and fillers that look like nothing or like an ordinary space.
fn invisible(c: char) -> bool {
    c.is_control()
        || matches!(u32::from(c),
            0x00A0 | 0x00AD | 0x034F | 0x0600..=0x0605 | 0x061C | 0x06DD | 0x070F | 0x0890..=0x0891
            | 0x08E2 | 0x115F..=0x1160 | 0x1680 | 0x17B4..=0x17B5 | 0x180B..=0x180F
            | 0x2000..=0x200F | 0x2028..=0x202F | 0x205F..=0x206F | 0x2800 | 0x3164
            | 0xE000..=0xF8FF | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFB
            | 0xFFFE..=0xFFFF | 0x110BD | 0x110CD | 0x13430..=0x1343F | 0x1BCA0..=0x1BCA3
            | 0x1D173..=0x1D17A | 0xE0000..=0x10FFFF)
}

/// Most marks that one letter bears, Vietnamese and Hebrew included.
const MOST_MARKS: usize = 2;

fn check_look(text: &str) -> Result<(), TextError> {
    if !is_nfc(text) {
        return Err(TextError::NotNormal);
    }
    let mut marks = MOST_MARKS;
    for c in text.chars() {
        if is_combining_mark(c) {
            // A mark at the beginning would sit on the label before it.
            if marks == MOST_MARKS {
                return Err(TextError::Marks);
            }
            marks += 1;
        } else {
            marks = if c.is_alphanumeric() { 0 } else { MOST_MARKS };
            if looks_like_another(c) {
                return Err(TextError::LookAlike(u32::from(c)));
            }
        }
    }
    let words = || {
        text.split(|c: char| !c.is_alphanumeric() && !is_combining_mark(c))
            .filter(|word| !word.is_ascii())
    };
    for word in words() {
        if !scripts_go_together(word) {
            return Err(TextError::MixedScripts(word.to_owned()));
        }
    }
    let is_confusable = |word: &&str| is_all_look_alikes(word);
    let plainly_other = !text.bytes().any(|b| b.is_ascii_alphabetic())
        && words().any(|word| !is_all_look_alikes(word));
    match words().find(is_confusable) {
        Some(word) if !plainly_other => Err(TextError::Confusable(word.to_owned())),
        _ => Ok(()),
    }
}

/// Compatibility forms of letters (UTS #39 calls them not recommended), and digits of other
/// scripts that look like ASCII. Rare Chinese characters are letters of people's names.
fn looks_like_another(c: char) -> bool {
    if c.is_ascii() || c.script() == Script::Han {
        return false;
    }
    if c.is_alphabetic() {
        return !c.identifier_allowed();
    }
    c.is_numeric() && skeleton(c.encode_utf8(&mut [0; 4])).all(|c| c.is_ascii_alphanumeric())
}

/// One script, or Latin beside those that are written with Latin (UTS #39's highly restrictive
/// level).
fn scripts_go_together(word: &str) -> bool {
    if !AugmentedScriptSet::for_str(word).is_empty() {
        return true;
    }
    let mut others = AugmentedScriptSet::default();
    for c in word.chars().filter(|c| c.script() != Script::Latin) {
        others.intersect_with(AugmentedScriptSet::for_char(c));
    }
    others.kore || others.hanb || others.jpan
}

/// Whether every letter is of another script than Latin, and all of them look like ASCII.
fn is_all_look_alikes(word: &str) -> bool {
    word.chars().any(|c| c.is_alphabetic())
        && word.chars().all(|c| c.script() != Script::Latin)
        && skeleton(word).all(|c| c.is_ascii_alphanumeric())
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
            "ООО Ромашка",
            "ABC科技（上海）有限公司 №12",
            "東京タワーTV",
            "한국 KT주식회사",
            "Công ty Điện lực",
            "Ωμέγα ΑΕ",
            "①第一期，共3笔",
            "𠮷野家",
            "שָׁלוֹם",
            // Latin letters that look like others of Latin.
            "Kadı",
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

    #[test]
    fn what_looks_like_something_else_is_refused() {
        for (bad, why) in [
            ("p\u{430}ypal", "MixedScripts"),
            ("\u{440}\u{430}\u{443}\u{440}\u{430}", "Confusable"),
            ("Acme \u{441}\u{43e}", "Confusable"),
            ("\u{399}\u{3a7} Bank", "Confusable"),
            ("\u{1d400}cme", "LookAlike"),
            ("\u{ff21}cme", "LookAlike"),
            ("o\u{fb01}ce", "LookAlike"),
            ("1\u{1d7ce}0", "LookAlike"),
            ("e\u{301}", "NotNormal"),
            ("\u{212b}", "NotNormal"),
            ("x\u{336}\u{337}\u{338}", "Marks"),
            ("\u{338}x", "Marks"),
            ("汉а字", "MixedScripts"),
        ] {
            let error = format!("{:?}", bad.parse::<Text>().unwrap_err());
            assert!(error.starts_with(why), "{bad}: {error}");
        }
    }
}
