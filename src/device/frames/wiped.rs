//! Byte strings inside frames: plain ones, and those that are wiped when dropped.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::base::secret::SecretBytes;

macro_rules! wiped_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(PartialEq)]
        pub struct $name(Zeroizing<Vec<u8>>);

        impl $name {
            /// The bytes.
            pub fn expose(&self) -> &[u8] {
                &self.0
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self(Zeroizing::new(bytes::deserialize(deserializer)?)))
            }
        }
    };
}

wiped_bytes!(
    /// A PIN inside a frame; wiped when dropped.
    PinBytes
);
wiped_bytes!(
    /// A plaintext inside a frame; wiped when dropped.
    PlainBytes
);

impl PinBytes {
    /// Copies a PIN into a buffer of its own.
    pub fn new(pin: &str) -> Self {
        Self(Zeroizing::new(pin.as_bytes().to_vec()))
    }
}

impl PlainBytes {
    /// Gives the plaintext away, so that no copy of it stays.
    pub fn into_secret(mut self) -> SecretBytes {
        SecretBytes::new(std::mem::take(&mut *self.0))
    }

    /// Takes over a plaintext.
    pub fn new(plaintext: Zeroizing<Vec<u8>>) -> Self {
        Self(plaintext)
    }
}

/// Byte strings as such rather than as sequences of numbers: one copy instead of a loop.
pub mod bytes {
    use serde::de::{Deserializer, Visitor};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a byte string")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
