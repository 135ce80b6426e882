//! Sensitive fields (names, card numbers): RSAES-OAEP with SHA-1, MGF1 with SHA-1, no label.
//!
//! Upwards a field is encrypted for a platform key, whose name travels as `Wechatpay-Serial`.
//! Downwards it is encrypted for the merchant's certificate, and the private key is on the token:
//! [`Field::parse`] gives the ciphertext to decrypt there (`CKM_RSA_PKCS_OAEP` with `CKM_SHA_1`
//! and `CKG_MGF1_SHA1`), [`FieldCiphertext::finish`] takes what the token answered. An empty
//! field is empty both ways, without any cryptography.

use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use zeroize::Zeroizing;

use super::platform::PlatformKey;
use crate::base::encoding::base64;
use crate::base::secret::{SecretBytes, SecretText};
use crate::wechatpay::from_base64;

/// Why a field was not encrypted or decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// Longer than the key can take.
    #[error("the field is longer than {max} bytes")]
    TooLong {
        /// The longest, in bytes of UTF-8.
        max: usize,
    },
    /// The key would not encrypt.
    #[error("the field could not be encrypted")]
    Encrypt,
    /// Not base64 of a ciphertext of the key's length.
    #[error("the encrypted field is malformed")]
    Ciphertext,
    /// What came out is no text that could have gone in.
    #[error("the encrypted field does not decrypt to text")]
    Plaintext,
}

/// Bytes of an RSA-2048 ciphertext.
const CIPHERTEXT: usize = 256;
/// Longest plaintext: the modulus less two hashes and two bytes (RFC 8017 section 7.1.1).
const MAX: usize = CIPHERTEXT - 2 * 20 - 2;

impl PlatformKey {
    /// Encrypts a field for the platform; base64. At most 214 bytes.
    pub fn encrypt_field(&self, plaintext: &SecretText) -> Result<String, FieldError> {
        let plaintext = plaintext.expose().as_bytes();
        if plaintext.is_empty() {
            return Ok(String::new());
        }
        if plaintext.len() > MAX {
            return Err(FieldError::TooLong { max: MAX });
        }
        let key = PublicEncryptingKey::from_der(self.public_key().spki())
            .map_err(|_| FieldError::Encrypt)?;
        let key = OaepPublicEncryptingKey::new(key).map_err(|_| FieldError::Encrypt)?;
        let mut buffer = [0; CIPHERTEXT];
        let ciphertext = key
            .encrypt(&OAEP_SHA1_MGF1SHA1, plaintext, &mut buffer, None)
            .map_err(|_| FieldError::Encrypt)?;
        Ok(base64(ciphertext))
    }
}

/// An encrypted field as it came.
#[derive(Debug)]
pub enum Field {
    /// An empty text, which stands for itself.
    Empty,
    /// A ciphertext for the merchant's key.
    Sealed(FieldCiphertext),
}

impl Field {
    /// From base64.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        if text.is_empty() {
            return Ok(Self::Empty);
        }
        if text.len() > 2 * CIPHERTEXT {
            return Err(FieldError::Ciphertext);
        }
        from_base64(text)
            .filter(|bytes| bytes.len() == CIPHERTEXT)
            .map(|bytes| Self::Sealed(FieldCiphertext(bytes)))
            .ok_or(FieldError::Ciphertext)
    }
}

/// What the token is to decrypt.
#[derive(Debug)]
pub struct FieldCiphertext(Vec<u8>);

impl FieldCiphertext {
    /// The ciphertext, 256 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The field, from what the token answered to this ciphertext.
    pub fn finish(self, plaintext: &SecretBytes) -> Result<SecretText, FieldError> {
        let bytes = plaintext.expose();
        if bytes.len() > MAX {
            return Err(FieldError::Plaintext);
        }
        String::from_utf8(bytes.to_vec())
            .map(SecretText::new)
            .map_err(|error| {
                drop(Zeroizing::new(error.into_bytes()));
                FieldError::Plaintext
            })
    }
}
