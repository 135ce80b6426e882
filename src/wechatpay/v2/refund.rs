//! The content of a refund notification, `req_info`: AES-256-ECB with PKCS#7 padding, the key
//! being the lower-case hexadecimal of the secret's MD5.
//!
//! There is no integrity in it and no signature around it: whoever can reach the address of the
//! callback can send one that decrypts. What comes out says which refund to ask the platform
//! about, and nothing more.

use aws_lc_rs::cipher::{AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey};
use md5::{Digest, Md5};
use zeroize::Zeroizing;

use super::fields::Fields;
use crate::base::encoding::{from_base64, hex};
use crate::wechatpay::secret::ApiV2Secret;

/// Why a refund's content stays closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RefundError {
    /// Not base64, no whole blocks, or too large.
    #[error("the encrypted refund content is malformed")]
    Ciphertext,
    /// It does not decrypt to the XML of a refund: another secret, or made up. Padding and
    /// content are not told apart.
    #[error("the encrypted refund content does not open with the API secret")]
    Closed,
}

/// Decrypts `req_info` and reads the fields in it. Ask the platform for the refund before acting
/// on what this says.
pub fn open_refund(req_info: &str, secret: &ApiV2Secret) -> Result<Fields, RefundError> {
    if req_info.len() > Fields::MAX_XML {
        return Err(RefundError::Ciphertext);
    }
    let ciphertext = from_base64(req_info.as_bytes())
        .filter(|bytes| !bytes.is_empty() && bytes.len().is_multiple_of(16))
        .ok_or(RefundError::Ciphertext)?;
    decrypt(&key(secret), &ciphertext)
        .and_then(|xml| Fields::from_xml(&xml).ok())
        .ok_or(RefundError::Closed)
}

/// 32 hexadecimal digits, leading zeros kept.
fn key(secret: &ApiV2Secret) -> Zeroizing<String> {
    let digest = Zeroizing::new(<[u8; 16]>::from(Md5::digest(secret.expose().as_bytes())));
    Zeroizing::new(hex(&*digest))
}

fn decrypt(key: &str, ciphertext: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let key = UnboundCipherKey::new(&AES_256, key.as_bytes()).ok()?;
    let key = PaddedBlockDecryptingKey::ecb_pkcs7(key).ok()?;
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    let length = key
        .decrypt(&mut buffer, DecryptionContext::None)
        .ok()?
        .len();
    buffer.truncate(length);
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::encoding::from_base64;

    /// Sample `aes-256-ecb-php`: a key as it is, and a plaintext that is no XML.
    #[test]
    fn the_ecb_sample_of_the_php_library() {
        let ciphertext = from_base64(b"pZwJZBLuy3mDACEQT4YTBw==").unwrap();
        let key = "0123456789abcdef0123456789abcdef";
        assert_eq!(decrypt(key, &ciphertext).unwrap().as_slice(), b"hello");
        assert!(decrypt("0123456789abcdef", &ciphertext).is_none());
    }

    /// `BigInteger.toString(16)` and its like drop the zero, and the key is wrong.
    #[test]
    fn the_derived_key_keeps_its_leading_zero() {
        let (secret, digest) = (0..)
            .map(|i| format!("{i:032}"))
            .map(|text| {
                let digest = hex(&Md5::digest(text.as_bytes()));
                (text, digest)
            })
            .find(|(_, digest)| digest.starts_with('0'))
            .unwrap();
        assert_eq!(*key(&ApiV2Secret::unchecked(&secret)), digest);
        assert_eq!(digest.len(), 32);
    }
}
