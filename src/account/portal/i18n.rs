//! What the portal says, in English and Chinese.
//!
//! One catalogue: each text stands here once with both languages side by side, and is a method of
//! [`Texts`]. A text that lacks a language, or whose languages take different values, does not
//! compile. Nothing else in the portal holds words that people read.

use std::fmt::Display;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT_LANGUAGE;

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

/// The language a browser asks for: the first of ours in its `Accept-Language` by weight
/// (RFC 9110 section 12.5.4); English where it names none of them.
pub fn preferred(headers: &HeaderMap) -> Language {
    let wanted = headers
        .get(ACCEPT_LANGUAGE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    let mut best: Option<(f32, Language)> = None;
    for entry in wanted.split(',').take(32) {
        let (tag, parameters) = entry.split_once(';').unwrap_or((entry, ""));
        let primary = tag.trim().split('-').next().unwrap_or("");
        let Some(language) = parse(primary) else {
            continue;
        };
        let weight = match parameters.trim().strip_prefix("q=") {
            Some(weight) => weight.parse().unwrap_or(0.0),
            None => 1.0,
        };
        if weight > best.map_or(0.0, |(heaviest, _)| heaviest) {
            best = Some((weight, language));
        }
    }
    best.map(|(_, language)| language).unwrap_or_default()
}

/// The language of a tag (`en`, `zh`).
pub fn parse(tag: &str) -> Option<Language> {
    if tag.eq_ignore_ascii_case("en") {
        Some(Language::English)
    } else if tag.eq_ignore_ascii_case("zh") {
        Some(Language::Chinese)
    } else {
        None
    }
}

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
    fn the_heaviest_language_of_ours_is_taken() {
        for (wanted, language) in [
            ("", Language::English),
            ("de, fr;q=0.9", Language::English),
            ("zh", Language::Chinese),
            ("zh-CN,zh;q=0.9,en;q=0.8", Language::Chinese),
            ("de, en;q=0.4, zh-TW;q=0.7", Language::Chinese),
            ("en-GB, zh", Language::English),
            ("zh;q=0, en;q=0.1", Language::English),
            ("zh;q=x", Language::English),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_LANGUAGE, wanted.parse().unwrap());
            assert_eq!(preferred(&headers), language, "{wanted}");
        }
    }

    #[test]
    fn values_stand_in_both_languages() {
        for language in [Language::English, Language::Chinese] {
            let text = Texts(language).computers_of(3, 10);
            assert!(text.contains('3') && text.contains("10"), "{text}");
        }
    }
}
