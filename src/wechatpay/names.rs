//! The platform's identifiers, each its own type.
//!
//! All of them become lines of a signed message or parts of a header, so none can hold a line
//! end, a quote or a space. They are compared as text, to the character: a serial keeps its
//! leading zeros because it never becomes a number.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::ids::random;
use crate::base::x509::Certificate;

/// A text that is no identifier of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {rule}")]
pub struct InvalidName {
    /// Which identifier was meant.
    pub what: &'static str,
    /// What one looks like.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $pattern:literal, $accepts:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, pattern = $pattern)]
        pub struct $name(Box<str>);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            pub(super) fn accepts(text: &str) -> bool {
                let accepts: fn(&str) -> bool = $accepts;
                accepts(text)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if Self::accepts(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidName { what: $what, rule: $rule })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A merchant number, `mchid`.
    MerchantId, "mchid", "1 to 32 digits", "^[0-9]{1,32}$",
    |text| each(text, 1, 32, |b| b.is_ascii_digit())
);
name!(
    /// The id of an official account, mini program or app (`wx…`), or of a corporation (`ww…`).
    AppId, "appid", "'wx' or 'ww' and letters and digits, at most 32", "^w[wx][A-Za-z0-9]{1,30}$",
    |text| each(text, 3, 32, |b| b.is_ascii_alphanumeric())
        && (text.starts_with("wx") || text.starts_with("ww"))
);
name!(
    /// The random text of one message, `nonce_str`.
    Nonce, "nonce", "1 to 64 letters, digits, '-' and '_'", "^[A-Za-z0-9_-]{1,64}$",
    |text| each(text, 1, 64, is_word)
);
name!(
    /// What an order is prepared under, `prepay_id`; lives two hours.
    PrepayId, "prepay_id", "1 to 128 letters, digits, '-' and '_'", "^[A-Za-z0-9_-]{1,128}$",
    |text| each(text, 1, 128, is_word)
);
name!(
    /// The serial number of a certificate as upper-case hexadecimal of its bytes, with leading
    /// zeros: `serial_no`, and `Wechatpay-Serial` where a certificate is meant.
    CertificateSerial, "certificate serial", "1 to 40 upper-case hexadecimal digits", "^[0-9A-F]{1,40}$",
    |text| each(text, 1, 40, is_upper_hex)
);
name!(
    /// Names a key of the platform, `Wechatpay-Serial`: a certificate's serial, or `PUB_KEY_ID_`
    /// and digits for a WeChat Pay public key. The number of digits is not fixed.
    PlatformKeyId, "Wechatpay-Serial", "PUB_KEY_ID_ and digits, or a certificate serial",
    "^(PUB_KEY_ID_[0-9]{1,64}|[0-9A-F]{1,40})$",
    |text| match text.strip_prefix(PUBLIC_KEY_ID) {
        Some(digits) => each(digits, 1, 64, |b| b.is_ascii_digit()),
        None => CertificateSerial::accepts(text),
    }
);

const PUBLIC_KEY_ID: &str = "PUB_KEY_ID_";

impl Nonce {
    /// A new one from 128 random bits, as 32 upper-case hexadecimal digits.
    pub fn random() -> Self {
        Self(upper_hex(&random::<16>()).into())
    }
}

impl CertificateSerial {
    /// The serial of a certificate. The zero byte that DER puts before a high bit is not part of it.
    pub fn of(certificate: &Certificate) -> Result<Self, InvalidName> {
        let bytes = match certificate.serial() {
            [0, rest @ ..] if !rest.is_empty() => rest,
            bytes => bytes,
        };
        upper_hex(bytes).parse()
    }
}

impl PlatformKeyId {
    /// Whether it names a WeChat Pay public key rather than a certificate.
    pub fn is_public_key(&self) -> bool {
        self.0.starts_with(PUBLIC_KEY_ID)
    }
}

impl From<CertificateSerial> for PlatformKeyId {
    fn from(serial: CertificateSerial) -> Self {
        Self(serial.0)
    }
}

/// Upper-case hexadecimal, as serials and v2 signatures are written.
pub(super) fn upper_hex(bytes: &[u8]) -> String {
    let mut text = crate::base::encoding::hex(bytes);
    text.make_ascii_uppercase();
    text
}

fn each(text: &str, min: usize, max: usize, accepts: fn(u8) -> bool) -> bool {
    (min..=max).contains(&text.len()) && text.bytes().all(accepts)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn is_upper_hex(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_nothing_that_could_end_a_line_or_a_quote() {
        for bad in ["", "a\nb", "a\"b", "a b", "é", "a,b"] {
            assert!(bad.parse::<Nonce>().is_err(), "{bad:?}");
            assert!(bad.parse::<MerchantId>().is_err(), "{bad:?}");
            assert!(bad.parse::<AppId>().is_err(), "{bad:?}");
            assert!(bad.parse::<PrepayId>().is_err(), "{bad:?}");
            assert!(bad.parse::<CertificateSerial>().is_err(), "{bad:?}");
            assert!(bad.parse::<PlatformKeyId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_public_key_id_is_text_not_a_number() {
        let id: PlatformKeyId = "PUB_KEY_ID_0000000000000024101100397200000006"
            .parse()
            .unwrap();
        assert!(id.is_public_key());
        let serial: PlatformKeyId = "0C4AEF34B89340881BB2B25226393DC2E47F094B".parse().unwrap();
        assert!(!serial.is_public_key());
        for bad in ["PUB_KEY_ID_", "PUB_KEY_ID_1A", "0c4a", "XYZ"] {
            assert!(bad.parse::<PlatformKeyId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_random_nonce_is_a_nonce() {
        assert!(Nonce::accepts(Nonce::random().as_str()));
        assert_ne!(Nonce::random(), Nonce::random());
    }
}
