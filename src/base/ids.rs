//! Identifiers, each its own type, and random values.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::encoding::base64url;

/// A value that is not an identifier of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 1 to {max} characters of letters, digits, '.', '_' and '-'")]
pub struct InvalidId {
    /// Which identifier was meant.
    pub what: &'static str,
    /// The longest allowed length, in bytes.
    pub max: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, pattern = "^[A-Za-z0-9._-]{1,64}$")]
        pub struct $name(Box<str>);

        impl $name {
            /// Longest allowed length, in bytes.
            pub const MAX: usize = 64;

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// A new one, of more than 128 random bits. Never begins with `-`.
            pub fn random() -> Self {
                Self(random_text())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if is_id(text, Self::MAX) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidId { what: $what, max: Self::MAX })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A merchant account.
    AccountId, "account"
);
id!(
    /// A person with a login in an account.
    OperatorId, "operator"
);
id!(
    /// One installed daemon.
    ComputerId, "computer"
);
id!(
    /// A program allowed to talk to the daemon.
    ClientName, "client name"
);
id!(
    /// One request, from the door to the audit trail.
    RequestId, "request id"
);
id!(
    /// One enrolment on one daemon.
    EnrolmentId, "enrolment id"
);
id!(
    /// One sensitive operation at the account service.
    OperationId, "operation id"
);

/// The `jti` of a JWS: 128 random bits or more (RFC 7519 section 4.1.7).
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[A-Za-z0-9_-]{22,64}$")]
pub struct Jti(Box<str>);

impl Jti {
    /// A new one, of more than 128 random bits. Never begins with `-`.
    pub fn random() -> Self {
        Self(random_text())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Jti {
    type Err = InvalidJti;
    fn from_str(text: &str) -> Result<Self, InvalidJti> {
        let long_enough = (22..=64).contains(&text.len());
        let clean = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if long_enough && clean {
            Ok(Self(text.into()))
        } else {
            Err(InvalidJti)
        }
    }
}

impl TryFrom<String> for Jti {
    type Error = InvalidJti;
    fn try_from(text: String) -> Result<Self, InvalidJti> {
        text.parse()
    }
}

impl From<Jti> for String {
    fn from(jti: Jti) -> String {
        jti.0.into()
    }
}

impl fmt::Display for Jti {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A `jti` that is too short, too long or not base64url.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("jti must be 22 to 64 base64url characters (128 random bits or more)")]
pub struct InvalidJti;

/// `N` bytes from the operating system's generator.
///
/// A machine whose generator fails cannot do cryptography: the process aborts, as no caller
/// could go on safely.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        std::process::abort();
    }
    bytes
}

/// 136 random bits as base64url, drawn again while it begins with `-`: on a command line that
/// would be an option. What is left is more than 135 bits.
fn random_text() -> Box<str> {
    loop {
        let text = base64url(&random::<17>());
        if !text.starts_with('-') {
            return text.into();
        }
    }
}

fn is_id(text: &str, max: usize) -> bool {
    !text.is_empty()
        && text.len() <= max
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_refuse_what_could_confuse_a_path_or_a_log() {
        assert!("acme-1.shop_2".parse::<AccountId>().is_ok());
        for bad in ["", "a/b", "a b", "é", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<AccountId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn no_id_looks_like_an_option() {
        // One in 64 would, if nobody looked.
        assert!((0..2_000).all(|_| !OperationId::random().as_str().starts_with('-')));
        assert!((0..2_000).all(|_| !Jti::random().as_str().starts_with('-')));
    }

    #[test]
    fn a_jti_has_128_bits() {
        assert!(Jti::random().as_str().parse::<Jti>().is_ok());
        assert!("short".parse::<Jti>().is_err());
    }
}
