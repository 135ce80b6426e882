//! Structures that lack only their signature, and the key elsewhere that makes it.

use der::asn1::BitString;
use der::{Decode, Encode};
use signature::Keypair;
use spki::{AlgorithmIdentifierOwned, Document, DynSignatureAlgorithmIdentifier, EncodePublicKey};
use x509_cert::builder::Builder;

use super::{X509Error, build};
use crate::base::key::{PublicKey, Scheme, Signature};

/// The public half of a signing key whose private half is elsewhere.
#[derive(Clone, Debug)]
pub struct RemoteKey {
    /// The public key.
    pub key: PublicKey,
    /// The scheme it signs with.
    pub scheme: Scheme,
}

impl RemoteKey {
    /// With the key's default scheme.
    pub fn new(key: PublicKey) -> Self {
        let scheme = key.default_scheme();
        Self { key, scheme }
    }
}

impl Keypair for RemoteKey {
    type VerifyingKey = PublicKey;
    fn verifying_key(&self) -> PublicKey {
        self.key.clone()
    }
}

impl EncodePublicKey for PublicKey {
    fn to_public_key_der(&self) -> spki::Result<Document> {
        Ok(Document::from_der(self.spki())?)
    }
}

impl DynSignatureAlgorithmIdentifier for RemoteKey {
    fn signature_algorithm_identifier(&self) -> spki::Result<AlgorithmIdentifierOwned> {
        Ok(self.scheme.x509_algorithm())
    }
}

/// An X.509 structure that lacks only its signature.
pub struct Draft<B> {
    builder: B,
    signer: RemoteKey,
    to_sign: Vec<u8>,
}

impl<B: Builder<Output: Encode>> Draft<B> {
    /// Closes `builder`; `signer` is the issuer's key, or the subject's own for a request.
    pub fn new(mut builder: B, signer: RemoteKey) -> Result<Self, X509Error> {
        let to_sign = builder.finalize(&signer).map_err(build)?;
        Ok(Self {
            builder,
            signer,
            to_sign,
        })
    }

    /// The bytes to sign.
    pub fn to_sign(&self) -> &[u8] {
        &self.to_sign
    }

    /// The scheme to sign with.
    pub fn scheme(&self) -> Scheme {
        self.signer.scheme
    }

    /// The DER structure with `signature` in it.
    pub fn assemble(self, signature: &Signature) -> Result<Vec<u8>, X509Error> {
        let bits: BitString = signature.to_x509(self.signer.scheme).map_err(build)?;
        self.builder
            .assemble(bits, &self.signer)
            .map_err(build)?
            .to_der()
            .map_err(build)
    }
}
