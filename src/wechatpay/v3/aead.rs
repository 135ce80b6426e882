//! AEAD_AES_256_GCM (RFC 5116 section 5.2) with the APIv3 secret: resources of callbacks and
//! platform certificates.
//!
//! The key is 32 bytes, the nonce 12, the tag 16 at the end of the ciphertext; nothing else is
//! decrypted. The nonce here has nothing to do with the nonce of a signature.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::base::secret::SecretBytes;
use crate::wechatpay::from_base64;
use crate::wechatpay::secret::ApiV3Key;

/// Why an envelope stays closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another algorithm than `AEAD_AES_256_GCM`.
    #[error("the content is not encrypted with {ALGORITHM}")]
    Algorithm,
    /// The nonce is not 12 bytes.
    #[error("the nonce of the content is not 12 bytes")]
    Nonce,
    /// Not base64, shorter than a tag, or too large.
    #[error("the encrypted content is malformed")]
    Ciphertext,
    /// Another key or other associated data, or it was changed on its way. Which of these it
    /// was is not known and not said.
    #[error("the encrypted content does not open with the APIv3 secret")]
    Unauthentic,
}

const ALGORITHM: &str = "AEAD_AES_256_GCM";
const TAG: usize = 16;

/// Encrypted content as it stands in an answer or callback.
#[derive(Clone, Deserialize, utoipa::ToSchema)]
pub struct Envelope {
    /// Must be `AEAD_AES_256_GCM`.
    pub algorithm: String,
    /// Standard base64 of ciphertext and tag.
    pub ciphertext: String,
    /// 12 characters, taken as they are.
    pub nonce: String,
    /// Taken as it is; absent means empty.
    #[serde(default)]
    pub associated_data: Option<String>,
}

impl Envelope {
    /// Largest ciphertext read, in characters of base64.
    pub const MAX: usize = 1024 * 1024;

    /// Decrypts.
    pub fn open(&self, key: &ApiV3Key) -> Result<SecretBytes, OpenError> {
        if self.algorithm != ALGORITHM {
            return Err(OpenError::Algorithm);
        }
        let nonce: [u8; 12] = self
            .nonce
            .as_bytes()
            .try_into()
            .map_err(|_| OpenError::Nonce)?;
        if self.ciphertext.len() > Self::MAX {
            return Err(OpenError::Ciphertext);
        }
        let sealed = from_base64(&self.ciphertext)
            .filter(|sealed| sealed.len() >= TAG)
            .ok_or(OpenError::Ciphertext)?;
        let associated = self.associated_data.as_deref().unwrap_or_default();
        decrypt(key, nonce, associated.as_bytes(), &sealed).ok_or(OpenError::Unauthentic)
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({} characters)", self.ciphertext.len())
    }
}

fn decrypt(
    key: &ApiV3Key,
    nonce: [u8; 12],
    associated: &[u8],
    sealed: &[u8],
) -> Option<SecretBytes> {
    let key = UnboundKey::new(&AES_256_GCM, key.expose().as_bytes()).ok()?;
    let mut buffer = Zeroizing::new(sealed.to_vec());
    let length = LessSafeKey::new(key)
        .open_in_place(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(associated),
            &mut buffer,
        )
        .ok()?
        .len();
    buffer.truncate(length);
    Some(SecretBytes::new(std::mem::take(&mut *buffer)))
}
