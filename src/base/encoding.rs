//! Base64, hexadecimal and percent-encoding as the formats need them: strict, one spelling for each
//! value.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

/// Base64url without padding (RFC 4648 section 5, RFC 7515 section 2).
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Decodes base64url without padding; padding, white space and non-zero trailing bits are refused.
pub fn from_base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Standard base64 with padding (RFC 4648 section 4).
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Decodes standard base64; ASCII white space between characters is allowed, as RFC 7030
/// section 4 and PEM bodies have it.
pub fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let compact: Vec<u8> = text
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    STANDARD.decode(compact).ok()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

/// Decodes hexadecimal of either case; `None` on odd length or another character.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| {
            let high = (pair[0] as char).to_digit(16)?;
            let low = (pair[1] as char).to_digit(16)?;
            u8::try_from(high * 16 + low).ok()
        })
        .collect()
}

/// All but what stands for itself in any part of a URI: letters, digits, `-`, `.`, `_` and `~`
/// (RFC 3986 section 2.3).
pub const URI_PART: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The same where `/` stands for itself too, as in a query.
pub const URI_PATH: &AsciiSet = &URI_PART.remove(b'/');

/// Percent-encodes the bytes in `set` and those that are not ASCII, with upper-case digits.
pub fn percent(bytes: &[u8], set: &'static AsciiSet) -> String {
    percent_encoding::percent_encode(bytes, set).to_string()
}

/// Every byte percent-encoded, letters too.
pub fn percent_all(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| percent_encoding::percent_encode_byte(*byte))
        .collect()
}

/// Decodes percent-encoding; `None` where two hexadecimal digits do not follow a `%`, which the
/// crate would let pass as it stands.
pub fn from_percent(text: &str) -> Option<Vec<u8>> {
    let digits = |part: &str| {
        let digits = part.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    text.split('%')
        .skip(1)
        .all(digits)
        .then(|| percent_encoding::percent_decode_str(text).collect())
}

/// SHA-256 (FIPS 180-4).
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_has_one_spelling() {
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
        assert_eq!(from_base64url("-_8"), Some(vec![0xfb, 0xff]));
        assert_eq!(from_base64url("-_8="), None, "padding");
        assert_eq!(from_base64url("-_9"), None, "trailing bits");
        assert_eq!(from_base64url("-_ 8"), None, "white space");
    }

    #[test]
    fn hex_round_trips_and_refuses_the_rest() {
        assert_eq!(from_hex(&hex(&[0, 0x9f, 0xff])), Some(vec![0, 0x9f, 0xff]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("0g"), None);
        assert_eq!(from_hex("é"), None);
    }

    #[test]
    fn percent_encoding_is_strict_and_round_trips() {
        assert_eq!(percent("a b/c~é".as_bytes(), URI_PART), "a%20b%2Fc~%C3%A9");
        assert_eq!(percent(b"a/b:c", URI_PATH), "a/b%3Ac");
        assert_eq!(percent_all(b"A\xff"), "%41%FF");
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_percent(&percent(&bytes, URI_PATH)), Some(bytes));
        assert_eq!(from_percent("a%2fb"), Some(b"a/b".to_vec()));
        for bad in ["%", "%4", "a%4g", "%%41", "%é", "%+1"] {
            assert_eq!(from_percent(bad), None, "{bad}");
        }
    }
}
