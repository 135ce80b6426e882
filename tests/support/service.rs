//! The other side of the daemon, with keys in software: whatever an account service could sign,
//! right or wrong, for any time. The real service has its own tests; this one exists because no
//! real service signs an expired challenge or a certificate for somebody else's key.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use jiff::Timestamp;
use opcert::base::encoding::base64;
use opcert::base::jose::{Jwk, JwkSet, compact};
use opcert::base::key::{Curve, PublicKey, Signature};
use opcert::base::x509::{
    Certificate, CertificateFields, CertificateRequest, DOCUMENT_SIGNING, Draft, OperatingIdentity,
    RemoteKey, Revocation, certificate_builder, common_name, crl_draft,
};
use opcert::statement::{ChallengeClaims, Facts, Origin, Statement, TicketClaims, TicketPurpose};
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
};

/// A P-256 key in software.
pub struct SoftKey {
    pair: EcdsaKeyPair,
    pub public: PublicKey,
}

impl SoftKey {
    pub fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let public = PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref()).unwrap();
        Self { pair, public }
    }

    pub fn sign(&self, message: &[u8]) -> Signature {
        let signature = self.pair.sign(&SystemRandom::new(), message).unwrap();
        Signature::from_jose(signature.as_ref().to_vec())
    }

    pub fn kid(&self) -> String {
        Jwk::from_public_key(&self.public).unwrap().kid
    }
}

/// An account service in software.
pub struct Service {
    pub origin: Origin,
    pub challenge_key: SoftKey,
    pub ca_key: SoftKey,
    pub ca: Certificate,
}

impl Service {
    pub fn new(origin: &str) -> Self {
        let ca_key = SoftKey::new();
        Self {
            origin: origin.parse().unwrap(),
            challenge_key: SoftKey::new(),
            ca: authority(&ca_key),
            ca_key,
        }
    }

    pub fn keys(&self) -> JwkSet {
        JwkSet {
            keys: vec![Jwk::from_public_key(&self.challenge_key.public).unwrap()],
        }
    }

    /// The `service` member of `POST /v1/enrolments`.
    pub fn description(&self) -> serde_json::Value {
        serde_json::json!({
            "origin": self.origin,
            "keys": self.keys(),
            "ca": [base64(self.ca.der())],
        })
    }

    pub fn ticket(
        &self,
        identity: &OperatingIdentity,
        change: impl FnOnce(&mut TicketClaims),
    ) -> String {
        let mut claims = TicketClaims::new(
            self.origin.clone(),
            identity,
            TicketPurpose::Install,
            Timestamp::now(),
            600,
        );
        change(&mut claims);
        self.compact(claims.signing_input(&self.challenge_key.kid()).unwrap())
    }

    pub fn challenge(
        &self,
        statement: &Statement,
        change: impl FnOnce(&mut ChallengeClaims),
    ) -> String {
        let mut claims =
            ChallengeClaims::new(self.origin.clone(), statement, None, Timestamp::now(), 120);
        change(&mut claims);
        self.compact(claims.signing_input(&self.challenge_key.kid()).unwrap())
    }

    fn compact(&self, input: String) -> String {
        let signature = self.challenge_key.sign(input.as_bytes());
        compact(input, &signature)
    }

    /// Issues a certificate for the key of a request, DER.
    pub fn issue(
        &self,
        request: &CertificateRequest,
        identity: &OperatingIdentity,
        days: i64,
    ) -> Vec<u8> {
        let now = Timestamp::now().as_second();
        let mut builder = certificate_builder(CertificateFields {
            issuer: self.ca.subject().clone(),
            issuer_key: self.ca_key.public.clone(),
            subject: identity.subject().unwrap(),
            subject_key: request.public_key().clone(),
            not_before: Timestamp::from_second(now - 86_400 * 2).unwrap(),
            not_after: Timestamp::from_second(now + 86_400 * days).unwrap(),
        })
        .unwrap();
        builder
            .add_extension(&KeyUsage(
                KeyUsages::DigitalSignature | KeyUsages::NonRepudiation,
            ))
            .unwrap();
        builder
            .add_extension(&ExtendedKeyUsage(vec![
                DOCUMENT_SIGNING,
                const_oid::db::rfc5280::ID_KP_EMAIL_PROTECTION,
            ]))
            .unwrap();
        builder
            .add_extension(&SubjectAltName(vec![identity.alternative_name().unwrap()]))
            .unwrap();
        let draft = Draft::new(builder, RemoteKey::new(self.ca_key.public.clone())).unwrap();
        let signature = self.ca_key.sign(draft.to_sign());
        draft.assemble(&signature).unwrap()
    }

    /// A revocation list with these serial numbers.
    pub fn crl(&self, number: u64, serials: &[&[u8]]) -> Vec<u8> {
        let now = Timestamp::now().as_second();
        let at = |second| Timestamp::from_second(second).unwrap();
        let revocations: Vec<Revocation> = serials
            .iter()
            .map(|serial| Revocation {
                serial: serial.to_vec(),
                at: at(now - 60),
                reason: None,
            })
            .collect();
        let draft = crl_draft(
            &self.ca,
            number,
            at(now - 60),
            at(now + 86_400),
            &revocations,
        )
        .unwrap();
        let signature = self.ca_key.sign(draft.to_sign());
        draft.assemble(&signature).unwrap()
    }
}

fn authority(key: &SoftKey) -> Certificate {
    let name = common_name("opcert test authority").unwrap();
    let now = Timestamp::now().as_second();
    let mut builder = certificate_builder(CertificateFields {
        issuer: name.clone(),
        issuer_key: key.public.clone(),
        subject: name,
        subject_key: key.public.clone(),
        not_before: Timestamp::from_second(now - 86_400 * 3).unwrap(),
        not_after: Timestamp::from_second(now + 86_400 * 3_650).unwrap(),
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

/// A withdrawal of CNY 1,000.00 by `operator` of account `acme`.
pub fn withdrawal(operator: &str) -> Statement {
    Statement::new(
        "withdrawal".parse().unwrap(),
        "acme".parse().unwrap(),
        operator.parse().unwrap(),
        Facts {
            amount: Some((100_000, "CNY".into())),
            payee: Some("Acme Ltd, ICBC 6222 **** 1234".into()),
            reference: Some("W-2026-0001".into()),
            ..Facts::default()
        },
    )
    .unwrap()
}
