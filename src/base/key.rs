//! Public keys, signature schemes and signatures, as one set of types for tokens, JOSE and X.509.
//!
//! A [`Signature`] is in JOSE form (RFC 7515; for ECDSA the fixed-length `r || s` of RFC 7518
//! section 3.4, which is also what PKCS#11 returns); [`Signature::to_x509`] gives the DER form
//! that certificates and CMS use.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, VerificationAlgorithm,
};
use const_oid::ObjectIdentifier;
use const_oid::db::{rfc5912, rfc8410};
use der::asn1::{AnyRef, BitString, BitStringRef, UintRef};
use der::{Any, Decode, Encode, Sequence};
use serde::{Deserialize, Serialize};
use spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoRef};

/// What kind of key to generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeySpec {
    /// RSA with a modulus of 2048 bits and public exponent 65537.
    Rsa2048,
    /// RSA with a modulus of 3072 bits and public exponent 65537.
    Rsa3072,
    /// ECDSA on NIST P-256 (secp256r1).
    P256,
    /// ECDSA on NIST P-384 (secp384r1).
    P384,
    /// Ed25519 (RFC 8032).
    Ed25519,
}

impl KeySpec {
    /// All of them, in the order a list shows them.
    pub const ALL: [Self; 5] = [
        Self::Rsa2048,
        Self::Rsa3072,
        Self::P256,
        Self::P384,
        Self::Ed25519,
    ];

    /// The name in files and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rsa2048 => "rsa2048",
            Self::Rsa3072 => "rsa3072",
            Self::P256 => "p256",
            Self::P384 => "p384",
            Self::Ed25519 => "ed25519",
        }
    }
}

impl fmt::Display for KeySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KeySpec {
    type Err = UnknownKeySpec;
    fn from_str(text: &str) -> Result<Self, UnknownKeySpec> {
        Self::ALL
            .into_iter()
            .find(|spec| spec.as_str() == text)
            .ok_or(UnknownKeySpec)
    }
}

/// A name that is no [`KeySpec`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key type must be one of rsa2048, rsa3072, p256, p384, ed25519")]
pub struct UnknownKeySpec;

/// A signature scheme, by its JOSE name (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Scheme {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
    /// RSASSA-PSS with SHA-256, MGF1 with SHA-256 and a salt of 32 bytes.
    #[serde(rename = "PS256")]
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// ECDSA on P-384 with SHA-384.
    #[serde(rename = "ES384")]
    Es384,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Scheme {
    /// The JOSE `alg` value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The X.509 signature algorithm (RFC 4055, RFC 5758, RFC 8410).
    pub fn x509_algorithm(self) -> AlgorithmIdentifierOwned {
        let (oid, parameters) = match self {
            Self::Rs256 => (rfc5912::SHA_256_WITH_RSA_ENCRYPTION, Some(Any::null())),
            Self::Ps256 => (rfc5912::ID_RSASSA_PSS, pss_sha256_parameters()),
            Self::Es256 => (rfc5912::ECDSA_WITH_SHA_256, None),
            Self::Es384 => (rfc5912::ECDSA_WITH_SHA_384, None),
            Self::EdDsa => (rfc8410::ID_ED_25519, None),
        };
        AlgorithmIdentifierOwned { oid, parameters }
    }

    /// The scheme of an X.509 signature algorithm; `None` for any other.
    pub fn from_x509(algorithm: &AlgorithmIdentifierOwned) -> Option<Self> {
        [
            Self::Rs256,
            Self::Ps256,
            Self::Es256,
            Self::Es384,
            Self::EdDsa,
        ]
        .into_iter()
        .find(|scheme| scheme.x509_algorithm() == *algorithm)
    }

    fn algorithm(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Ps256 => &RSA_PSS_2048_8192_SHA256,
            Self::Es256 => &ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &ECDSA_P384_SHA384_FIXED,
            Self::EdDsa => &ED25519,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scheme {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text {
            "RS256" => Ok(Self::Rs256),
            "PS256" => Ok(Self::Ps256),
            "ES256" => Ok(Self::Es256),
            "ES384" => Ok(Self::Es384),
            "EdDSA" => Ok(Self::EdDsa),
            _ => Err(KeyError::Unsupported),
        }
    }
}

/// Why a public key was refused or a signature did not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are no SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).
    #[error("the public key is malformed")]
    Malformed,
    /// Another algorithm or size than [`KeySpec`] lists (any RSA modulus of 2048 to 8192 bits is read).
    #[error("the key type is not supported")]
    Unsupported,
    /// The signature is not of this key over these bytes.
    #[error("the signature does not verify")]
    BadSignature,
}

/// The family of a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyFamily {
    /// RSA, with the length of its modulus in bits.
    Rsa(u32),
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

impl KeyFamily {
    /// The scheme a key of this family signs with unless told otherwise.
    pub fn default_scheme(self) -> Scheme {
        match self {
            Self::Rsa(_) => Scheme::Rs256,
            Self::P256 => Scheme::Es256,
            Self::P384 => Scheme::Es384,
            Self::Ed25519 => Scheme::EdDsa,
        }
    }

    /// Whether a key of this family can sign with `scheme`.
    pub fn supports(self, scheme: Scheme) -> bool {
        scheme == self.default_scheme() || (matches!(self, Self::Rsa(_)) && scheme == Scheme::Ps256)
    }
}

/// A parsed public key; cloning shares it.
#[derive(Clone)]
pub struct PublicKey(Arc<Inner>);

struct Inner {
    family: KeyFamily,
    spki: Vec<u8>,
    verifiers: Vec<(Scheme, ParsedPublicKey)>,
}

impl PublicKey {
    /// Parses a DER SubjectPublicKeyInfo.
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        let spki = SubjectPublicKeyInfoRef::from_der(der).map_err(|_| KeyError::Malformed)?;
        let key = spki
            .subject_public_key
            .as_bytes()
            .ok_or(KeyError::Malformed)?;
        let family = family(&spki.algorithm, key)?;
        let mut schemes = vec![family.default_scheme()];
        if let KeyFamily::Rsa(_) = family {
            schemes.push(Scheme::Ps256);
        }
        let verifiers = schemes
            .into_iter()
            .map(|scheme| {
                ParsedPublicKey::new(scheme.algorithm(), key)
                    .map(|parsed| (scheme, parsed))
                    .map_err(|_| KeyError::Malformed)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Inner {
            family,
            spki: der.to_vec(),
            verifiers,
        })))
    }

    /// From the modulus and public exponent, big-endian (PKCS#11 `CKA_MODULUS`, `CKA_PUBLIC_EXPONENT`).
    pub fn from_rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, KeyError> {
        let key = RsaPublicKey {
            modulus: UintRef::new(modulus).map_err(|_| KeyError::Malformed)?,
            exponent: UintRef::new(exponent).map_err(|_| KeyError::Malformed)?,
        }
        .to_der()
        .map_err(|_| KeyError::Malformed)?;
        Self::from_parts(rfc5912::RSA_ENCRYPTION, Some(AnyRef::NULL), &key)
    }

    /// From a DER `RSAPublicKey` (PKCS#1, RFC 8017 appendix A.1.1).
    pub fn from_pkcs1(der: &[u8]) -> Result<Self, KeyError> {
        Self::from_parts(rfc5912::RSA_ENCRYPTION, Some(AnyRef::NULL), der)
    }

    /// Modulus and public exponent, big-endian without leading zeros; `None` if it is no RSA key.
    pub fn rsa_numbers(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let spki = SubjectPublicKeyInfoRef::from_der(self.spki()).ok()?;
        if spki.algorithm.oid != rfc5912::RSA_ENCRYPTION {
            return None;
        }
        let key = RsaPublicKey::from_der(spki.subject_public_key.as_bytes()?).ok()?;
        Some((
            key.modulus.as_bytes().to_vec(),
            key.exponent.as_bytes().to_vec(),
        ))
    }

    /// From a curve and an uncompressed point `04 || x || y` (SEC 1 section 2.3.3).
    pub fn from_ec_point(curve: Curve, point: &[u8]) -> Result<Self, KeyError> {
        let oid = match curve {
            Curve::P256 => rfc5912::SECP_256_R_1,
            Curve::P384 => rfc5912::SECP_384_R_1,
        };
        Self::from_parts(rfc5912::ID_EC_PUBLIC_KEY, Some(AnyRef::from(&oid)), point)
    }

    /// From the 32 bytes of an Ed25519 public key.
    pub fn from_ed25519(key: &[u8]) -> Result<Self, KeyError> {
        if key.len() != 32 {
            return Err(KeyError::Malformed);
        }
        Self::from_parts(rfc8410::ID_ED_25519, None, key)
    }

    fn from_parts(
        oid: ObjectIdentifier,
        parameters: Option<AnyRef<'_>>,
        key: &[u8],
    ) -> Result<Self, KeyError> {
        let spki = SubjectPublicKeyInfoRef {
            algorithm: spki::AlgorithmIdentifier { oid, parameters },
            subject_public_key: BitStringRef::from_bytes(key).map_err(|_| KeyError::Malformed)?,
        }
        .to_der()
        .map_err(|_| KeyError::Malformed)?;
        Self::from_spki(&spki)
    }

    /// The DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.0.spki
    }

    /// The family.
    pub fn family(&self) -> KeyFamily {
        self.0.family
    }

    /// The scheme this key signs with unless told otherwise.
    pub fn default_scheme(&self) -> Scheme {
        self.0.family.default_scheme()
    }

    /// SHA-256 of the SubjectPublicKeyInfo: the name of the key in records and comparisons.
    pub fn fingerprint(&self) -> [u8; 32] {
        super::encoding::sha256(&self.0.spki)
    }

    /// Checks `signature` over `message`.
    pub fn verify(
        &self,
        scheme: Scheme,
        message: &[u8],
        signature: &Signature,
    ) -> Result<(), KeyError> {
        let (_, key) = self
            .0
            .verifiers
            .iter()
            .find(|(known, _)| *known == scheme)
            .ok_or(KeyError::Unsupported)?;
        key.verify_sig(message, signature.as_bytes())
            .map_err(|_| KeyError::BadSignature)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.spki == other.0.spki
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PublicKey({:?} {})",
            self.0.family,
            super::encoding::hex(&self.fingerprint()[..8])
        )
    }
}

/// A curve that ECDSA keys lie on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Curve {
    /// secp256r1.
    P256,
    /// secp384r1.
    P384,
}

/// A signature in JOSE form.
#[derive(Clone, PartialEq, Eq)]
pub struct Signature(Vec<u8>);

impl Signature {
    /// Wraps the bytes of a JOSE signature or of `C_Sign`.
    pub fn from_jose(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// From the form that X.509 and CMS use; `None` where an ECDSA signature is malformed.
    pub fn from_x509(scheme: Scheme, bytes: &[u8]) -> Option<Self> {
        let half = match scheme {
            Scheme::Es256 => 32,
            Scheme::Es384 => 48,
            Scheme::Rs256 | Scheme::Ps256 | Scheme::EdDsa => return Some(Self(bytes.to_vec())),
        };
        let value = EcdsaSigValue::from_der(bytes).ok()?;
        let mut fixed = vec![0; half * 2];
        for (part, range) in [(value.r, 0..half), (value.s, half..half * 2)] {
            let number = part.as_bytes();
            let slot = fixed.get_mut(range)?;
            let start = slot.len().checked_sub(number.len())?;
            slot[start..].copy_from_slice(number);
        }
        Some(Self(fixed))
    }

    /// The JOSE form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The form that X.509 and CMS use: ECDSA as a DER `ECDSA-Sig-Value` (RFC 3279 section 2.2.3).
    pub fn to_x509(&self, scheme: Scheme) -> Result<BitString, der::Error> {
        let bytes = match scheme {
            Scheme::Es256 | Scheme::Es384 => {
                let (r, s) = self.0.split_at(self.0.len() / 2);
                EcdsaSigValue {
                    r: UintRef::new(r)?,
                    s: UintRef::new(s)?,
                }
                .to_der()?
            }
            Scheme::Rs256 | Scheme::Ps256 | Scheme::EdDsa => self.0.clone(),
        };
        BitString::from_bytes(&bytes)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({} bytes)", self.0.len())
    }
}

#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

#[derive(Sequence)]
struct EcdsaSigValue<'a> {
    r: UintRef<'a>,
    s: UintRef<'a>,
}

/// RSASSA-PSS-params for SHA-256, MGF1 with SHA-256, salt 32 (RFC 4055 section 3.1).
fn pss_sha256_parameters() -> Option<Any> {
    const DER: &[u8] = &[
        0x30, 0x34, 0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04,
        0x02, 0x01, 0x05, 0x00, 0xa1, 0x1c, 0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7,
        0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04,
        0x02, 0x01, 0x05, 0x00, 0xa2, 0x03, 0x02, 0x01, 0x20,
    ];
    Any::from_der(DER).ok()
}

fn family(algorithm: &spki::AlgorithmIdentifierRef<'_>, key: &[u8]) -> Result<KeyFamily, KeyError> {
    match algorithm.oid {
        rfc5912::RSA_ENCRYPTION => {
            let rsa = RsaPublicKey::from_der(key).map_err(|_| KeyError::Malformed)?;
            let modulus = rsa.modulus.as_bytes();
            let leading = modulus.first().map_or(0, |byte| byte.leading_zeros());
            let bits =
                u32::try_from(modulus.len() * 8).map_err(|_| KeyError::Unsupported)? - leading;
            if (2048..=8192).contains(&bits) {
                Ok(KeyFamily::Rsa(bits))
            } else {
                Err(KeyError::Unsupported)
            }
        }
        rfc5912::ID_EC_PUBLIC_KEY => {
            let curve = algorithm
                .parameters
                .and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
            match curve {
                Some(rfc5912::SECP_256_R_1) => Ok(KeyFamily::P256),
                Some(rfc5912::SECP_384_R_1) => Ok(KeyFamily::P384),
                _ => Err(KeyError::Unsupported),
            }
        }
        rfc8410::ID_ED_25519 if algorithm.parameters.is_none() => Ok(KeyFamily::Ed25519),
        _ => Err(KeyError::Unsupported),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

    #[test]
    fn an_ecdsa_signature_survives_the_way_to_der_and_back() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let key = PublicKey::from_ec_point(Curve::P384, pair.public_key().as_ref()).unwrap();
        for round in 0u8..32 {
            let raw = pair.sign(&SystemRandom::new(), &[round]).unwrap();
            let signature = Signature::from_jose(raw.as_ref().to_vec());
            key.verify(Scheme::Es384, &[round], &signature).unwrap();
            let der = signature.to_x509(Scheme::Es384).unwrap();
            let back = Signature::from_x509(Scheme::Es384, der.as_bytes().unwrap()).unwrap();
            assert_eq!(back, signature);
        }
    }

    #[test]
    fn a_key_verifies_only_with_its_own_schemes() {
        let key = PublicKey::from_ed25519(&[7; 32]);
        if let Ok(key) = key {
            let signature = Signature::from_jose(vec![0; 64]);
            assert_eq!(
                key.verify(Scheme::Rs256, b"", &signature),
                Err(KeyError::Unsupported)
            );
        }
        assert_eq!(
            PublicKey::from_ed25519(&[7; 31]).unwrap_err(),
            KeyError::Malformed
        );
    }

    #[test]
    fn every_scheme_has_its_own_x509_algorithm() {
        for scheme in [
            Scheme::Rs256,
            Scheme::Ps256,
            Scheme::Es256,
            Scheme::Es384,
            Scheme::EdDsa,
        ] {
            assert_eq!(Scheme::from_x509(&scheme.x509_algorithm()), Some(scheme));
            assert_eq!(scheme.as_str().parse(), Ok(scheme));
        }
    }
}
