//! What unit tests of formats work with: a key in software, an authority, a certificate.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use jiff::Timestamp;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages};

use super::*;
use crate::base::key::Curve;

/// A P-256 key in software, for tests of formats.
pub(crate) struct SoftKey {
    pair: EcdsaKeyPair,
    pub(crate) public: PublicKey,
}

impl SoftKey {
    pub(crate) fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let public = PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref()).unwrap();
        Self { pair, public }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Signature {
        let signature = self.pair.sign(&SystemRandom::new(), message).unwrap();
        Signature::from_jose(signature.as_ref().to_vec())
    }
}

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(crate) fn authority(key: &SoftKey) -> Certificate {
    let ca_name = common_name("Test CA").unwrap();
    let mut builder = certificate_builder(CertificateFields {
        issuer: ca_name.clone(),
        issuer_key: key.public.clone(),
        subject: ca_name,
        subject_key: key.public.clone(),
        not_before: at(1_000_000),
        not_after: at(2_000_000_000),
    })
    .unwrap();
    builder
        .add_extension(&BasicConstraints {
            ca: true,
            path_len_constraint: Some(0),
        })
        .unwrap();
    builder
        .add_extension(&KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign))
        .unwrap();
    let draft = Draft::new(builder, RemoteKey::new(key.public.clone())).unwrap();
    let signature = key.sign(draft.to_sign());
    Certificate::from_der(&draft.assemble(&signature).unwrap()).unwrap()
}

pub(crate) fn operating_certificate(
    ca: &Certificate,
    ca_key: &SoftKey,
    key: &PublicKey,
) -> Certificate {
    let identity = identity();
    let mut builder = certificate_builder(CertificateFields {
        issuer: ca.subject().clone(),
        issuer_key: ca_key.public.clone(),
        subject: identity.subject().unwrap(),
        subject_key: key.clone(),
        not_before: at(1_000_000),
        not_after: at(1_900_000_000),
    })
    .unwrap();
    builder
        .add_extension(&ExtendedKeyUsage(vec![DOCUMENT_SIGNING]))
        .unwrap();
    let draft = Draft::new(builder, RemoteKey::new(ca_key.public.clone())).unwrap();
    let signature = ca_key.sign(draft.to_sign());
    Certificate::from_der(&draft.assemble(&signature).unwrap()).unwrap()
}

pub(crate) fn identity() -> OperatingIdentity {
    OperatingIdentity {
        account: "acme".parse().unwrap(),
        operator: "alice".parse().unwrap(),
        computer: "desk-1".parse().unwrap(),
    }
}
