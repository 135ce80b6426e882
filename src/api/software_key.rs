//! P-256 keys in files: for the local authority, the doors and client certificates.
//!
//! These identify programs to each other on one computer. Nothing of an account hangs on them:
//! operating keys never leave their token.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use der::Encode;
use der::pem::LineEnding;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use x509_cert::builder::Builder;
use zeroize::Zeroizing;

use crate::base::key::{Curve, PublicKey, Signature};
use crate::base::x509::{self, Draft, RemoteKey, X509Error};

/// A P-256 private key in memory.
pub struct SoftwareKey {
    pair: EcdsaKeyPair,
    public: PublicKey,
}

/// Why there is no such key.
#[derive(Debug, thiserror::Error)]
pub enum SoftwareKeyError {
    /// The text is no PEM of an unencrypted PKCS#8 P-256 key (RFC 5958).
    #[error("the file holds no PKCS#8 P-256 key")]
    Malformed,
    /// The cryptographic library failed.
    #[error("the key cannot be made or used")]
    Failed,
    /// The structure to sign cannot be built.
    #[error("the structure to sign cannot be built")]
    Build {
        /// Why.
        #[from]
        source: X509Error,
    },
}

impl SoftwareKey {
    /// A new one.
    pub fn generate() -> Result<Self, SoftwareKeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| SoftwareKeyError::Failed)?;
        Self::new(pair)
    }

    /// From PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Self, SoftwareKeyError> {
        let Ok(PrivateKeyDer::Pkcs8(der)) = PrivateKeyDer::from_pem_slice(pem) else {
            return Err(SoftwareKeyError::Malformed);
        };
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
                .map_err(|_| SoftwareKeyError::Malformed)?;
        Self::new(pair)
    }

    fn new(pair: EcdsaKeyPair) -> Result<Self, SoftwareKeyError> {
        let public = PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref())
            .map_err(|_| SoftwareKeyError::Failed)?;
        Ok(Self { pair, public })
    }

    /// As PEM of PKCS#8.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, SoftwareKeyError> {
        let der = self
            .pair
            .to_pkcs8v1()
            .map_err(|_| SoftwareKeyError::Failed)?;
        der::pem::encode_string("PRIVATE KEY", LineEnding::LF, der.as_ref())
            .map(Zeroizing::new)
            .map_err(|_| SoftwareKeyError::Failed)
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs an X.509 structure with it and gives the DER.
    pub fn sign<B: Builder<Output: Encode>>(
        &self,
        builder: B,
    ) -> Result<Vec<u8>, SoftwareKeyError> {
        let draft = Draft::new(builder, RemoteKey::new(self.public.clone()))?;
        self.sign_draft(draft)
    }

    /// A certificate request for it (PKCS#10, DER). The authority sets the names itself, so the
    /// subject only helps whoever reads the request.
    pub fn request(&self, common_name: &str) -> Result<Vec<u8>, SoftwareKeyError> {
        let subject = x509::common_name(common_name)?;
        let draft = x509::request_draft(subject, Vec::new(), RemoteKey::new(self.public.clone()))?;
        self.sign_draft(draft)
    }

    fn sign_draft<B: Builder<Output: Encode>>(
        &self,
        draft: Draft<B>,
    ) -> Result<Vec<u8>, SoftwareKeyError> {
        let signature = self
            .pair
            .sign(&SystemRandom::new(), draft.to_sign())
            .map_err(|_| SoftwareKeyError::Failed)?;
        Ok(draft.assemble(&Signature::from_jose(signature.as_ref().to_vec()))?)
    }
}

impl std::fmt::Debug for SoftwareKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SoftwareKey({:?})", self.public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::x509::CertificateRequest;

    #[test]
    fn a_key_survives_its_file_and_its_request_verifies() {
        let key = SoftwareKey::generate().unwrap();
        let again = SoftwareKey::from_pem(key.to_pem().unwrap().as_bytes()).unwrap();
        assert_eq!(key.public(), again.public());
        let request = CertificateRequest::from_der(&again.request("erp").unwrap()).unwrap();
        assert_eq!(request.public_key(), key.public());
        assert!(SoftwareKey::from_pem(b"garbage").is_err());
    }
}
