//! JWE in compact form (RFC 7516) to an RSA key on a token: `RSA-OAEP` and `A256GCM`.
//!
//! `RSA-OAEP` is RSAES-OAEP with SHA-1 and MGF1 with SHA-1 (RFC 7518 section 4.3). It is what
//! PKCS#11 tokens can do: SoftHSM2 and many devices know OAEP with SHA-1 only. What is broken in
//! SHA-1 are collisions, on which OAEP does not rest. Nothing else is read or written here, so
//! there is nothing to negotiate down.
//!
//! Opening takes two steps, as the private key is elsewhere: [`Jwe::encrypted_key`] goes to the
//! token, and [`Jwe::open`] takes what came back.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::encoding::{base64url, from_base64url, sha256};
use super::ids::random;
use super::key::PublicKey;
use super::secret::SecretBytes;

/// Why a JWE was not made or not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JweError {
    /// The key is no RSA key that can be encrypted for, or its `kid` is not its thumbprint.
    #[error("the key is no RSA encryption key named by its RFC 7638 thumbprint")]
    Key,
    /// Too long, not five parts, or another header than ours.
    #[error("it is not a JWE of this format")]
    Malformed,
    /// It does not open: another key, or it was changed. Which of these is not said.
    #[error("it does not open")]
    Closed,
}

const ALG: &str = "RSA-OAEP";
const ENC: &str = "A256GCM";
const CEK: usize = 32;
const IV: usize = 12;
const TAG: usize = 16;

/// The public half of an RSA key to encrypt for, as JWK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RsaJwk {
    /// `RSA`.
    pub kty: String,
    /// The modulus, base64url.
    pub n: String,
    /// The public exponent, base64url.
    pub e: String,
    /// RFC 7638 thumbprint.
    pub kid: String,
    /// `RSA-OAEP`.
    pub alg: String,
    /// `enc`.
    #[serde(rename = "use")]
    pub key_use: String,
}

impl RsaJwk {
    /// The JWK of an RSA key.
    pub fn from_public_key(key: &PublicKey) -> Result<Self, JweError> {
        let (modulus, exponent) = key.rsa_numbers().ok_or(JweError::Key)?;
        let (n, e) = (base64url(&modulus), base64url(&exponent));
        Ok(Self {
            kid: thumbprint(&n, &e),
            kty: "RSA".into(),
            n,
            e,
            alg: ALG.into(),
            key_use: "enc".into(),
        })
    }

    /// The key, if the JWK is sound and named by its own thumbprint.
    pub fn to_public_key(&self) -> Result<PublicKey, JweError> {
        let sound = self.kty == "RSA"
            && self.alg == ALG
            && self.key_use == "enc"
            && self.kid == thumbprint(&self.n, &self.e);
        let (Some(n), Some(e), true) = (from_base64url(&self.n), from_base64url(&self.e), sound)
        else {
            return Err(JweError::Key);
        };
        PublicKey::from_rsa(&n, &e).map_err(|_| JweError::Key)
    }
}

/// RFC 7638 section 3: SHA-256 over the required members in lexicographic order.
fn thumbprint(n: &str, e: &str) -> String {
    let json = format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#);
    base64url(&sha256(json.as_bytes()))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    typ: String,
    alg: String,
    enc: String,
    kid: String,
}

/// Encrypts `plaintext` for `key`, as a JWE of type `typ`.
pub fn seal(key: &RsaJwk, typ: &str, plaintext: &[u8]) -> Result<String, JweError> {
    let public = key.to_public_key()?;
    let header = Header {
        typ: typ.to_owned(),
        alg: ALG.into(),
        enc: ENC.into(),
        kid: key.kid.clone(),
    };
    let header = base64url(&serde_json::to_vec(&header).map_err(|_| JweError::Malformed)?);
    let cek = Zeroizing::new(random::<CEK>());
    let iv = random::<IV>();

    let encrypting = PublicEncryptingKey::from_der(public.spki()).map_err(|_| JweError::Key)?;
    let encrypting = OaepPublicEncryptingKey::new(encrypting).map_err(|_| JweError::Key)?;
    let mut wrapped = vec![0; encrypting.ciphertext_size()];
    let wrapped = encrypting
        .encrypt(&OAEP_SHA1_MGF1SHA1, &*cek, &mut wrapped, None)
        .map_err(|_| JweError::Key)?;

    let content = UnboundKey::new(&AES_256_GCM, &*cek).map_err(|_| JweError::Key)?;
    let mut buffer = Zeroizing::new(Vec::with_capacity(plaintext.len() + TAG));
    buffer.extend_from_slice(plaintext);
    let tag = LessSafeKey::new(content)
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(iv),
            Aad::from(header.as_bytes()),
            buffer.as_mut_slice(),
        )
        .map_err(|_| JweError::Key)?;
    Ok([
        header,
        base64url(wrapped),
        base64url(&iv),
        base64url(&buffer),
        base64url(tag.as_ref()),
    ]
    .join("."))
}

/// A compact JWE, taken apart; nothing is decrypted yet.
pub struct Jwe<'a> {
    kid: String,
    encrypted_key: Vec<u8>,
    header: &'a str,
    iv: [u8; IV],
    sealed: Vec<u8>,
}

impl<'a> Jwe<'a> {
    /// Takes `compact` apart, which must be of type `typ` and have at most `limit` bytes.
    pub fn parse(compact: &'a str, typ: &str, limit: usize) -> Result<Self, JweError> {
        if compact.len() > limit {
            return Err(JweError::Malformed);
        }
        let parts: Vec<&str> = compact.split('.').collect();
        let [header, wrapped, iv, ciphertext, tag] = parts[..] else {
            return Err(JweError::Malformed);
        };
        let decode = |part| from_base64url(part).ok_or(JweError::Malformed);
        let read: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| JweError::Malformed)?;
        if read.typ != typ || read.alg != ALG || read.enc != ENC {
            return Err(JweError::Malformed);
        }
        let tag = decode(tag)?;
        if tag.len() != TAG {
            return Err(JweError::Malformed);
        }
        let mut sealed = decode(ciphertext)?;
        sealed.extend_from_slice(&tag);
        Ok(Self {
            kid: read.kid,
            encrypted_key: decode(wrapped)?,
            header,
            iv: decode(iv)?.try_into().map_err(|_| JweError::Malformed)?,
            sealed,
        })
    }

    /// The thumbprint of the key it is for.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What the token is to decrypt.
    pub fn encrypted_key(&self) -> &[u8] {
        &self.encrypted_key
    }

    /// The plaintext, from what the token answered.
    pub fn open(mut self, content_key: &SecretBytes) -> Result<SecretBytes, JweError> {
        if content_key.expose().len() != CEK {
            return Err(JweError::Closed);
        }
        let key =
            UnboundKey::new(&AES_256_GCM, content_key.expose()).map_err(|_| JweError::Closed)?;
        let mut buffer = Zeroizing::new(std::mem::take(&mut self.sealed));
        let length = LessSafeKey::new(key)
            .open_in_place(
                Nonce::assume_unique_for_key(self.iv),
                Aad::from(self.header.as_bytes()),
                &mut buffer,
            )
            .map_err(|_| JweError::Closed)?
            .len();
        buffer.truncate(length);
        Ok(SecretBytes::new(std::mem::take(&mut *buffer)))
    }
}

impl fmt::Debug for Jwe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jwe(for {})", self.kid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};

    fn opened(key: &PrivateDecryptingKey, compact: &str) -> Result<Vec<u8>, JweError> {
        let jwe = Jwe::parse(compact, "test", 4096)?;
        let decrypting = OaepPrivateDecryptingKey::new(key.clone()).unwrap();
        let mut buffer = vec![0; decrypting.min_output_size()];
        let cek = decrypting
            .decrypt(&OAEP_SHA1_MGF1SHA1, jwe.encrypted_key(), &mut buffer, None)
            .map_err(|_| JweError::Closed)?;
        let cek = SecretBytes::new(cek.to_vec());
        jwe.open(&cek).map(|plain| plain.expose().to_vec())
    }

    #[test]
    fn what_is_sealed_opens_whole_or_not_at_all() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let spki = private.public_key().as_der().unwrap();
        let public = PublicKey::from_spki(spki.as_ref()).unwrap();
        let jwk = RsaJwk::from_public_key(&public).unwrap();
        assert_eq!(jwk.to_public_key().unwrap(), public);
        let compact = seal(&jwk, "test", b"secret").unwrap();
        assert_eq!(opened(&private, &compact).unwrap(), b"secret");
        let parts: Vec<&str> = compact.split('.').collect();
        for changed in 0..parts.len() {
            let mut bytes = from_base64url(parts[changed]).unwrap();
            bytes[0] ^= 1;
            let mut parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            parts[changed] = base64url(&bytes);
            assert!(
                opened(&private, &parts.join(".")).is_err(),
                "part {changed}"
            );
        }
        // A short tag is no tag, and another type is another format.
        let cut = [&parts[..4], &[&base64url(&[0; 12])[..]]]
            .concat()
            .join(".");
        assert_eq!(opened(&private, &cut), Err(JweError::Malformed));
        assert_eq!(
            Jwe::parse(&compact, "other", 4096).unwrap_err(),
            JweError::Malformed
        );
    }
}
