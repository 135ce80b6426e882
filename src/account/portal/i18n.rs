//! What the portal says, in English and Chinese.
//!
//! One catalogue: each text stands here once with both languages side by side, and is a method of
//! [`Texts`]. A text that lacks a language, or whose languages take different values, does not
//! compile. Nothing else in the portal holds words that people read.

use std::fmt::Display;

pub use crate::api::language::{language as parse, preferred};
pub use crate::statement::Language;

/// The catalogue in one language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Texts(pub Language);

macro_rules! texts {
    ($($name:ident $(($($value:ident),+))? : $english:literal, $chinese:literal;)*) => {
        impl Texts {
            $(texts!(@ $name $(($($value),+))? $english, $chinese);)*
        }
    };
    (@ $name:ident $english:literal, $chinese:literal) => {
        #[doc = $english]
        pub fn $name(self) -> &'static str {
            match self.0 {
                Language::English => $english,
                Language::Chinese => $chinese,
            }
        }
    };
    (@ $name:ident ($($value:ident),+) $english:literal, $chinese:literal) => {
        #[doc = $english]
        pub fn $name(self, $($value: impl Display),+) -> String {
            match self.0 {
                Language::English => format!($english),
                Language::Chinese => format!($chinese),
            }
        }
    };
}

mod catalogue;
mod events;

impl Texts {
    /// The language tag of pages (RFC 5646).
    pub fn tag(self) -> &'static str {
        match self.0 {
            Language::English => "en",
            Language::Chinese => "zh-Hans",
        }
    }

    /// The tag of the other language, as [`parse`] reads it.
    pub fn other_tag(self) -> &'static str {
        match self.0 {
            Language::English => "zh",
            Language::Chinese => "en",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_both_languages() {
        for language in [Language::English, Language::Chinese] {
            let text = Texts(language).computers_of(3, 10);
            assert!(text.contains('3') && text.contains("10"), "{text}");
        }
    }
}
