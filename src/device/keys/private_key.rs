//! RSA private keys that were made elsewhere and are to be put on a token.

use std::fmt;

use aws_lc_rs::rsa::KeyPair;
use der::asn1::{AnyRef, ObjectIdentifier, OctetStringRef, UintRef};
use der::{Decode, Reader, SliceReader};
use zeroize::Zeroizing;

use crate::base::secret::SecretText;
use crate::device::frames::{PlainBytes, RsaPrivateParts};

/// Largest PEM read, in bytes.
const PEM_MAX: usize = 16 * 1024;

/// `rsaEncryption` (RFC 8017 appendix A.1).
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A text that holds no RSA private key we can use. What exactly is wrong is not said: the text is
/// a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not one RSA private key of 2048 bits in PEM, PKCS#8 or PKCS#1, without a password")]
pub struct InvalidPrivateKey;

/// An RSA private key with 2048 bits; wiped when dropped.
pub struct RsaPrivateKey {
    modulus: Vec<u8>,
    public_exponent: Vec<u8>,
    secret: [Zeroizing<Vec<u8>>; 6],
}

impl RsaPrivateKey {
    /// From PEM: `PRIVATE KEY` (RFC 5958) or `RSA PRIVATE KEY` (RFC 8017 appendix A.1.2). The
    /// numbers are checked to fit each other.
    pub fn from_pem(pem: &SecretText) -> Result<Self, InvalidPrivateKey> {
        if pem.expose().len() > PEM_MAX {
            return Err(InvalidPrivateKey);
        }
        let (label, der) =
            der::pem::decode_vec(pem.expose().trim().as_bytes()).map_err(|_| InvalidPrivateKey)?;
        let der = Zeroizing::new(der);
        let pkcs1 = match label {
            "PRIVATE KEY" => unwrap_pkcs8(&der).ok_or(InvalidPrivateKey)?,
            "RSA PRIVATE KEY" => &der,
            _ => return Err(InvalidPrivateKey),
        };
        let pair = KeyPair::from_der(pkcs1).map_err(|_| InvalidPrivateKey)?;
        if pair.public_modulus_len() != 256 {
            return Err(InvalidPrivateKey);
        }
        numbers(pkcs1).ok_or(InvalidPrivateKey)
    }

    pub(in crate::device) fn parts(&self) -> RsaPrivateParts {
        RsaPrivateParts {
            modulus: self.modulus.clone(),
            public_exponent: self.public_exponent.clone(),
            secret: self
                .secret
                .each_ref()
                .map(|part| PlainBytes::new(part.clone())),
        }
    }
}

impl fmt::Debug for RsaPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RsaPrivateKey(…)")
    }
}

/// The `privateKey` of a PKCS#8 structure for RSA.
fn unwrap_pkcs8(der: &[u8]) -> Option<&[u8]> {
    let mut reader = SliceReader::new(der).ok()?;
    let inner = reader
        .sequence(|reader| {
            let _version = u8::decode(reader)?;
            let algorithm = reader.sequence(|reader| {
                let algorithm = ObjectIdentifier::decode(reader)?;
                let _parameters = Option::<AnyRef<'_>>::decode(reader)?;
                Ok::<_, der::Error>(algorithm)
            })?;
            let key: &OctetStringRef = <&OctetStringRef>::decode(reader)?;
            // Attributes may follow; they say nothing about the key.
            while !reader.is_finished() {
                let _attribute = AnyRef::decode(reader)?;
            }
            Ok::<_, der::Error>((algorithm, key))
        })
        .ok()?;
    (inner.0 == RSA_ENCRYPTION).then(|| inner.1.as_bytes())
}

/// `RSAPrivateKey` with two primes.
fn numbers(der: &[u8]) -> Option<RsaPrivateKey> {
    let mut reader = SliceReader::new(der).ok()?;
    reader
        .sequence(|reader| {
            let _version = u8::decode(reader)?;
            let mut next = || UintRef::decode(reader).map(|number| number.as_bytes().to_vec());
            let (modulus, public_exponent) = (next()?, next()?);
            let mut secret = || next().map(Zeroizing::new);
            Ok::<_, der::Error>(RsaPrivateKey {
                modulus,
                public_exponent,
                secret: [
                    secret()?,
                    secret()?,
                    secret()?,
                    secret()?,
                    secret()?,
                    secret()?,
                ],
            })
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pem: &str) -> Result<RsaPrivateKey, InvalidPrivateKey> {
        RsaPrivateKey::from_pem(&SecretText::new(pem.to_owned()))
    }

    #[test]
    fn both_forms_give_the_same_numbers_and_nothing_else_is_taken() {
        let samples: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/wechatpay.json")).unwrap();
        let pem = samples["keys"]["java_sdk_merchant"]["private_key_pkcs8_pem"]
            .as_str()
            .unwrap();
        let parsed = key(pem).unwrap();
        assert_eq!(parsed.modulus.len(), 256);
        let (_, der) = der::pem::decode_vec(pem.as_bytes()).unwrap();
        let pkcs1 = unwrap_pkcs8(&der).unwrap();
        let again =
            der::pem::encode_string("RSA PRIVATE KEY", der::pem::LineEnding::LF, pkcs1).unwrap();
        assert_eq!(key(&again).unwrap().secret, parsed.secret);
        for wrong in ["", "x", &pem.replace("PRIVATE", "PUBLIC"), &pem[..200]] {
            assert!(key(wrong).is_err());
        }
        let mut broken = pkcs1.to_vec();
        let last = broken.len() - 300;
        broken[last] ^= 1;
        let broken =
            der::pem::encode_string("RSA PRIVATE KEY", der::pem::LineEnding::LF, &broken).unwrap();
        assert!(key(&broken).is_err());
        assert_eq!(format!("{parsed:?}"), "RsaPrivateKey(…)");
    }
}
