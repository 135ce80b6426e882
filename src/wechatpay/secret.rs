//! The two API secrets of a merchant.
//!
//! Both are exactly 32 characters, used as they are: no derivation, no shorter key. A key of 16
//! bytes would silently make AES-128 of what is called AES-256; it is refused here, once.

use std::fmt;

use crate::base::secret::SecretText;

/// A secret that cannot be one of the platform's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// Not 32 bytes long.
    #[error("an API secret has exactly 32 characters")]
    Length,
    /// A space, a control character or one outside ASCII: most often a line end from a file.
    #[error("an API secret has visible ASCII characters only")]
    Characters,
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name(SecretText);

        impl $name {
            /// Takes over `text`, which must be 32 visible ASCII characters.
            pub fn new(text: SecretText) -> Result<Self, InvalidSecret> {
                if text.expose().len() != 32 {
                    return Err(InvalidSecret::Length);
                }
                if !text.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(InvalidSecret::Characters);
                }
                Ok(Self(text))
            }

            pub(super) fn expose(&self) -> &str {
                self.0.expose()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    };
}

secret!(
    /// The API secret of interface version 2, the `key` of its signatures.
    ApiV2Secret
);
secret!(
    /// The APIv3 secret, the AES-256 key of what the platform encrypts.
    ApiV3Key
);

#[cfg(test)]
impl ApiV2Secret {
    /// Past the length check, for published samples that use shorter mock secrets.
    pub(super) fn unchecked(text: &str) -> Self {
        Self(SecretText::new(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Result<ApiV3Key, InvalidSecret> {
        ApiV3Key::new(SecretText::new(text.into()))
    }

    #[test]
    fn only_32_visible_characters_are_a_secret() {
        assert!(key("a7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb").is_ok());
        for length in [0, 16, 24, 31, 33, 64] {
            assert_eq!(
                key(&"a".repeat(length)).unwrap_err(),
                InvalidSecret::Length,
                "{length}"
            );
        }
        assert_eq!(
            key("a7cde1ZJB1kG2e7VfTs3jQzaWizur8G\n").unwrap_err(),
            InvalidSecret::Characters
        );
        assert_eq!(
            format!("{:?}", key(&"a".repeat(32)).unwrap()),
            "ApiV3Key(…)"
        );
    }
}
