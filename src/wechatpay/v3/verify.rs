//! Answers and callbacks of the platform: is this body from it, and from now?
//!
//! Three lines, LF after each: timestamp, nonce, body. The platform now and then sends signatures
//! that are wrong on purpose (they begin `WECHATPAY/SIGNTEST/`), to see that they are refused:
//! there is no rule for them here, they fail as any other wrong signature does.

use std::fmt;

use jiff::Timestamp;

use super::platform::PlatformKeys;
use super::{SCHEME, WINDOW_SECONDS, within_window};
use crate::base::encoding::sha256;
use crate::base::key::{Scheme, Signature};
use crate::wechatpay::from_base64;
use crate::wechatpay::names::PlatformKeyId;

/// Why a body is not known to be the platform's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// A header is not there; proxies strip `Wechatpay-*` headers sometimes.
    #[error("header {name} is missing")]
    HeaderMissing {
        /// The header.
        name: &'static str,
    },
    /// A header appears twice.
    #[error("header {name} appears twice")]
    HeaderTwice {
        /// The header.
        name: &'static str,
    },
    /// A header's value cannot be one of the platform's.
    #[error("header {name} is malformed")]
    HeaderMalformed {
        /// The header.
        name: &'static str,
    },
    /// Another signature type than [`SCHEME`].
    #[error("the signature type is not {SCHEME}")]
    SignatureType,
    /// Five minutes old or more, or as far ahead: a replay, or a wrong clock.
    #[error("the message is {WINDOW_SECONDS} seconds or more away from now")]
    Window,
    /// No key of that exact name is held. No other key is tried.
    #[error("no platform key {id} is held")]
    KeyUnknown {
        /// The `Wechatpay-Serial` that was named.
        id: PlatformKeyId,
    },
    /// The key's time is over.
    #[error("platform key {id} has ended")]
    KeyEnded {
        /// The `Wechatpay-Serial` that was named.
        id: PlatformKeyId,
    },
    /// The signature is not of that key over this body.
    #[error("the signature does not verify")]
    Signature,
}

const TIMESTAMP: &str = "Wechatpay-Timestamp";
const NONCE: &str = "Wechatpay-Nonce";
const SIGNATURE: &str = "Wechatpay-Signature";
const SERIAL: &str = "Wechatpay-Serial";
const SIGNATURE_TYPE: &str = "Wechatpay-Signature-Type";

/// The five headers that carry a signature of the platform, read strictly.
#[derive(Clone)]
pub struct SignatureHeaders {
    timestamp: i64,
    nonce: Box<str>,
    signature: Vec<u8>,
    key: PlatformKeyId,
}

impl SignatureHeaders {
    /// From the headers of an answer or callback; others than the five are passed over. Names
    /// are compared without case. A missing signature type means [`SCHEME`].
    pub fn new<'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, VerifyError> {
        let names = [TIMESTAMP, NONCE, SIGNATURE, SERIAL, SIGNATURE_TYPE];
        let mut found = [None; 5];
        for (name, value) in headers {
            for (slot, known) in found.iter_mut().zip(names) {
                if known.eq_ignore_ascii_case(name) && slot.replace(value).is_some() {
                    return Err(VerifyError::HeaderTwice { name: known });
                }
            }
        }
        let [timestamp, nonce, signature, serial, signature_type] = found;
        if signature_type.is_some_and(|value| value != SCHEME) {
            return Err(VerifyError::SignatureType);
        }
        let there = |value: Option<&'a str>, name| value.ok_or(VerifyError::HeaderMissing { name });
        let malformed = |name| VerifyError::HeaderMalformed { name };
        let nonce = there(nonce, NONCE)?;
        if nonce.is_empty() || nonce.len() > 128 || !nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(malformed(NONCE));
        }
        Ok(Self {
            timestamp: seconds(there(timestamp, TIMESTAMP)?).ok_or(malformed(TIMESTAMP))?,
            nonce: nonce.into(),
            signature: Some(there(signature, SIGNATURE)?)
                .filter(|text| text.len() <= 2048)
                .and_then(from_base64)
                .ok_or(malformed(SIGNATURE))?,
            key: there(serial, SERIAL)?
                .parse()
                .map_err(|_| malformed(SERIAL))?,
        })
    }

    /// The key that is said to have signed.
    pub fn key(&self) -> &PlatformKeyId {
        &self.key
    }

    fn message(&self, body: &[u8]) -> Vec<u8> {
        let head = format!("{}\n{}\n", self.timestamp, self.nonce);
        [head.as_bytes(), body, b"\n"].concat()
    }
}

impl fmt::Debug for SignatureHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignatureHeaders({} at {})", self.key, self.timestamp)
    }
}

/// A body that the platform signed, within the window.
#[must_use]
#[derive(Clone, Copy)]
pub struct Verified<'a> {
    body: &'a [u8],
    fingerprint: [u8; 32],
}

impl<'a> Verified<'a> {
    /// The body, as it came.
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// Names this very message, for [`super::Seen`]: a second one with the same fingerprint is a
    /// replay, as the platform signs each delivery with a new timestamp and nonce.
    pub fn fingerprint(&self) -> &[u8] {
        &self.fingerprint
    }
}

impl fmt::Debug for Verified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verified({} bytes)", self.body.len())
    }
}

#[cfg(fuzzing)]
impl<'a> Verified<'a> {
    /// For the fuzz target of what stands behind the signature.
    pub fn assumed(body: &'a [u8]) -> Self {
        Self {
            body,
            fingerprint: sha256(body),
        }
    }
}

impl PlatformKeys {
    /// Checks one answer or callback. `body` is the raw bytes; an empty body (204) is signed too.
    ///
    /// The timestamp first, then the key by its exact name, then the signature.
    pub fn verify<'a>(
        &self,
        headers: &SignatureHeaders,
        body: &'a [u8],
        now: Timestamp,
    ) -> Result<Verified<'a>, VerifyError> {
        if !within_window(headers.timestamp, now) {
            return Err(VerifyError::Window);
        }
        let id = &headers.key;
        let key = self
            .get(id)
            .ok_or_else(|| VerifyError::KeyUnknown { id: id.clone() })?;
        // When the platform begins to sign with a key is its own affair; when it ends is ours.
        if key.until() <= now {
            return Err(VerifyError::KeyEnded { id: id.clone() });
        }
        let message = headers.message(body);
        let signature = Signature::from_jose(headers.signature.clone());
        key.public_key()
            .verify(Scheme::Rs256, &message, &signature)
            .map_err(|_| VerifyError::Signature)?;
        Ok(Verified {
            body,
            fingerprint: sha256(&message),
        })
    }
}

/// Decimal seconds as the platform writes them: digits, no sign, no leading zero.
fn seconds(text: &str) -> Option<i64> {
    let second: i64 = text.parse().ok()?;
    (second > 0 && second.to_string() == text).then_some(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers<'a>(
        changes: &[(&'a str, Option<&'a str>)],
    ) -> Result<SignatureHeaders, VerifyError> {
        let mut list = vec![
            ("wechatpay-timestamp", "1554208460"),
            ("WECHATPAY-NONCE", "n"),
            ("Wechatpay-Signature", "AAAA"),
            ("Wechatpay-Serial", "AB"),
            ("Content-Type", "application/json"),
        ];
        for (name, value) in changes {
            list.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            list.extend(value.map(|value| (*name, value)));
        }
        SignatureHeaders::new(list)
    }

    #[test]
    fn each_header_must_be_there_once_and_well_formed() {
        assert!(headers(&[]).is_ok());
        for name in [TIMESTAMP, NONCE, SIGNATURE, SERIAL] {
            assert_eq!(
                headers(&[(name, None)]).unwrap_err(),
                VerifyError::HeaderMissing { name }
            );
            for bad in ["", " ", "a\nb"] {
                if (name, bad) != (SIGNATURE, "") {
                    assert_eq!(
                        headers(&[(name, Some(bad))]).unwrap_err(),
                        VerifyError::HeaderMalformed { name },
                        "{bad:?}"
                    );
                }
            }
        }
        for bad in [
            "01554208460",
            "+1554208460",
            "-1",
            "0",
            "1e9",
            "99999999999999999999",
        ] {
            assert_eq!(
                headers(&[(TIMESTAMP, Some(bad))]).unwrap_err(),
                VerifyError::HeaderMalformed { name: TIMESTAMP }
            );
        }
        let twice = [("Wechatpay-Nonce", "a"), ("wechatpay-nonce", "a")];
        assert_eq!(
            SignatureHeaders::new(twice).unwrap_err(),
            VerifyError::HeaderTwice { name: NONCE }
        );
        for other in ["WECHATPAY2-SM2-WITH-SM3", "", "wechatpay2-sha256-rsa2048"] {
            assert_eq!(
                headers(&[(SIGNATURE_TYPE, Some(other))]).unwrap_err(),
                VerifyError::SignatureType
            );
        }
        assert!(headers(&[(SIGNATURE_TYPE, Some(SCHEME))]).is_ok());
    }
}
