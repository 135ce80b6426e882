//! In which language texts for people are answered: `Accept-Language`.
//!
//! English unless the request prefers Chinese. What programs compare (codes, names, values) has no
//! language. The window that asks a person is not of this: it speaks the language that the
//! configuration of the person's computer names, whoever asks.

use axum::extract::FromRequestParts;
use axum::http::header::ACCEPT_LANGUAGE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};

use super::problem::Problem;
use crate::statement::Language;

/// Ranges that are looked at; no browser sends so many.
const MOST_RANGES: usize = 32;

/// The language a request names, if it names any; an extractor for handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted(pub Option<Language>);

impl<S: Sync> FromRequestParts<S> for Accepted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let named = parts.headers.contains_key(ACCEPT_LANGUAGE);
        Ok(Self(named.then(|| preferred(&parts.headers))))
    }
}

/// The language to answer in: of ours, the one with the highest weight (RFC 9110 sections 12.4.2
/// and 12.5.4); the one named first where weights are equal, English where none is named.
///
/// A range fits by its primary subtag: `zh-TW` asks for Chinese, and gets the one there is. `*` is
/// whatever no other range names. Ranges that are malformed are passed over.
pub fn preferred(headers: &HeaderMap) -> Language {
    let mut best: Option<(u16, usize)> = None;
    let (mut named, mut others) = ([None::<(u16, usize)>; 2], None::<(u16, usize)>);
    let ranges = headers
        .get_all(ACCEPT_LANGUAGE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .take(MOST_RANGES);
    for (place, range) in ranges.enumerate() {
        let Some((primary, weight)) = parse(range) else {
            continue;
        };
        let slot = match language(primary) {
            Some(Language::English) => &mut named[0],
            Some(Language::Chinese) => &mut named[1],
            None if primary == "*" => &mut others,
            None => continue,
        };
        if slot.is_none_or(|(heaviest, _)| weight > heaviest) {
            *slot = Some((weight, place));
        }
    }
    let mut answer = Language::default();
    for (language, slot) in [(Language::English, named[0]), (Language::Chinese, named[1])] {
        let Some((weight, place)) = slot.or(others).filter(|(weight, _)| *weight > 0) else {
            continue;
        };
        let beats = best.is_none_or(|(heaviest, first)| {
            weight > heaviest || (weight == heaviest && place < first)
        });
        if beats {
            best = Some((weight, place));
            answer = language;
        }
    }
    answer
}

/// The language of a primary subtag (RFC 5646 section 2.2.1), or of a whole tag without others.
pub fn language(primary: &str) -> Option<Language> {
    if primary.eq_ignore_ascii_case("en") {
        Some(Language::English)
    } else if primary.eq_ignore_ascii_case("zh") {
        Some(Language::Chinese)
    } else {
        None
    }
}

/// The value of `Content-Language` for texts in that language.
pub(super) fn content_language(language: Language) -> HeaderValue {
    HeaderValue::from_static(language.tag())
}

/// One range and its weight in thousandths, as RFC 4647 section 2.1 and RFC 9110 section 12.4.2
/// write them: the primary subtag, or `*`.
fn parse(range: &str) -> Option<(&str, u16)> {
    let (tag, weight) = match range.split_once(';') {
        None => (range, 1_000),
        Some((tag, parameter)) => {
            let (name, value) = parameter.trim_matches([' ', '\t']).split_once('=')?;
            if !name.eq_ignore_ascii_case("q") {
                return None;
            }
            (tag, thousandths(value)?)
        }
    };
    let tag = tag.trim_matches([' ', '\t']);
    if tag == "*" {
        return Some((tag, weight));
    }
    let mut subtags = tag.split('-');
    let primary = subtags.next()?;
    let is_subtag = |text: &str, is_fit: fn(&u8) -> bool| {
        (1..=8).contains(&text.len()) && text.as_bytes().iter().all(is_fit)
    };
    let is_tag = is_subtag(primary, u8::is_ascii_alphabetic)
        && subtags.all(|subtag| is_subtag(subtag, u8::is_ascii_alphanumeric));
    is_tag.then_some((primary, weight))
}

/// `0`, `0.5`, `1.000`: at most three decimals, at most one.
fn thousandths(value: &str) -> Option<u16> {
    let (whole, decimals) = value.split_once('.').unwrap_or((value, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let part: u16 = format!("{decimals:0<3}").parse().ok()?;
    match whole {
        "0" => Some(part),
        "1" if part == 0 => Some(1_000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Language {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT_LANGUAGE, value.parse().unwrap());
        }
        preferred(&headers)
    }

    #[test]
    fn the_heaviest_language_of_ours_is_taken() {
        for (wanted, language) in [
            ("", Language::English),
            ("de, fr;q=0.9", Language::English),
            ("zh", Language::Chinese),
            ("ZH-hans-CN", Language::Chinese),
            ("zh-CN,zh;q=0.9,en;q=0.8", Language::Chinese),
            ("en-US,en;q=0.9,zh-CN;q=0.8,zh;q=0.7", Language::English),
            ("de, en;q=0.4, zh-TW;q=0.7", Language::Chinese),
            ("en;q=0.4, zh ; q=0.401", Language::Chinese),
            ("en-GB, zh", Language::English),
            ("zh, en", Language::Chinese),
            ("zh;q=0.5, en;q=0.5", Language::Chinese),
            ("zh;q=0, en;q=0.1", Language::English),
            ("*", Language::English),
            ("zh;q=0.5, *", Language::English),
            ("en;q=0, *;q=0.1", Language::Chinese),
            ("zh;q=0, *", Language::English),
            ("en;q=0, zh;q=0", Language::English),
            ("zh-TW;q=0, zh;q=0.3", Language::Chinese),
        ] {
            assert_eq!(of(&[wanted]), language, "{wanted}");
        }
        assert_eq!(of(&["en;q=0.2", "zh;q=0.3"]), Language::Chinese);
        assert_eq!(of(&[]), Language::English);
    }

    #[test]
    fn what_is_malformed_is_passed_over() {
        for wanted in [
            "zh;q=x",
            "zh;q=1.5",
            "zh;q=2",
            "zh;q=-1",
            "zh;q=0.1234",
            "zh;q=1.001",
            "zh;q",
            "zh;q=",
            "zh;level=1",
            "zh q=1",
            "zh_CN",
            "zhhhhhhhh",
            "zh-",
            "-zh",
            "z h",
            ";q=1",
            "zh;q=0.5;q=0.9",
        ] {
            assert_eq!(of(&[wanted]), Language::English, "{wanted}");
            assert_eq!(of(&[&format!("{wanted}, zh;q=0.1")]), Language::Chinese);
        }
        let many = vec!["de"; MOST_RANGES].join(",");
        assert_eq!(of(&[&format!("{many},zh")]), Language::English);
    }
}
