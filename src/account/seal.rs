//! Sealing what the service must be able to read again, with the key in the state directory.
//!
//! AES-256-GCM with a key derived by HKDF-SHA-256 for each use and each row, so a sealed value
//! opens only where it was put. The stored form is the nonce (12 bytes) and the ciphertext with its
//! tag. Whoever reads only the database learns nothing.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};

use crate::base::ids::random;
use crate::base::secret::SecretBytes;

/// A value that cannot be sealed, or was not sealed for this place with this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sealed value cannot be opened with the key of this service")]
pub struct Unsealable;

/// Seals and opens; holds the key.
pub struct Sealer {
    key: SecretBytes,
}

impl Sealer {
    /// With the key of the state directory.
    pub fn new(key: &SecretBytes) -> Self {
        Self {
            key: SecretBytes::new(key.expose().to_vec()),
        }
    }

    /// Seals `value` for the row `id` of the use `domain`.
    pub fn seal(&self, domain: &str, id: &str, value: &[u8]) -> Result<Vec<u8>, Unsealable> {
        let nonce = random::<NONCE_LEN>();
        let mut sealed = value.to_vec();
        self.derived(domain, id)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::empty(),
                &mut sealed,
            )
            .map_err(|_| Unsealable)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Opens what [`Sealer::seal`] made for the same place.
    pub fn open(&self, domain: &str, id: &str, sealed: &[u8]) -> Result<SecretBytes, Unsealable> {
        let (nonce, ciphertext) = sealed.split_at_checked(NONCE_LEN).ok_or(Unsealable)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unsealable)?;
        let mut buffer = ciphertext.to_vec();
        let length = self
            .derived(domain, id)?
            .open_in_place(nonce, Aad::empty(), &mut buffer)
            .map_err(|_| Unsealable)?
            .len();
        buffer.truncate(length);
        Ok(SecretBytes::new(buffer))
    }

    fn derived(&self, domain: &str, id: &str) -> Result<LessSafeKey, Unsealable> {
        let info = [b"opcert-seal\0", domain.as_bytes(), b"\0", id.as_bytes()];
        let key = Salt::new(HKDF_SHA256, &[])
            .extract(self.key.expose())
            .expand(&info, &AES_256_GCM)
            .map(UnboundKey::from)
            .map_err(|_| Unsealable)?;
        Ok(LessSafeKey::new(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_only_where_it_was_put() {
        let sealer = Sealer::new(&SecretBytes::new(vec![7; 32]));
        let sealed = sealer.seal("subscription", "a", b"secret").unwrap();
        let opened = sealer.open("subscription", "a", &sealed).unwrap();
        assert_eq!(opened.expose(), b"secret");
        assert!(sealer.open("subscription", "b", &sealed).is_err());
        assert!(sealer.open("other", "a", &sealed).is_err());
        assert!(sealer.open("subscription", "a", &sealed[1..]).is_err());
        assert!(sealer.open("subscription", "a", &[]).is_err());
        let other = Sealer::new(&SecretBytes::new(vec![8; 32]));
        assert!(other.open("subscription", "a", &sealed).is_err());
    }
}
