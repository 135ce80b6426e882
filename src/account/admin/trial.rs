//! A TLS server certificate for a trial, by an authority whose key is forgotten at once.

use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use const_oid::db::rfc5280::ID_KP_SERVER_AUTH;
use der::asn1::{Ia5String, OctetString};
use der::pem::LineEnding;
use jiff::Timestamp;
use x509_cert::builder::CertificateBuilder;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
};
use zeroize::Zeroizing;

use crate::base::key::{Curve, PublicKey, Signature};
use crate::base::x509::{
    Certificate, CertificateFields, Draft, RemoteKey, X509Error, certificate_builder, common_name,
};

/// Validity, in days: the longest that browsers take.
const DAYS: u64 = 397;

/// What a trial needs.
pub(super) struct Trial {
    /// The authority to trust, PEM.
    pub(super) authority: String,
    /// The server's certificate, PEM.
    pub(super) certificate: String,
    /// Its private key, PKCS#8 PEM.
    pub(super) key: Zeroizing<String>,
}

/// Makes a certificate for `host`, a DNS name or an IP address.
///
/// The authority signs this one certificate and its key is gone when this returns, so trusting it
/// means trusting this server and nothing else.
pub(super) fn make(host: &str, now: Timestamp) -> Result<Trial, X509Error> {
    let authority_key = SoftwareKey::generate()?;
    let server_key = SoftwareKey::generate()?;
    let authority_name = common_name(&format!("opcert trial TLS for {host}"))?;
    let fields = |subject, subject_key: &SoftwareKey| CertificateFields {
        issuer: authority_name.clone(),
        issuer_key: authority_key.public.clone(),
        subject,
        subject_key: subject_key.public.clone(),
        not_before: now - Duration::from_secs(5 * 60),
        not_after: now + Duration::from_secs(DAYS * 24 * 60 * 60),
    };

    let mut builder = certificate_builder(fields(authority_name.clone(), &authority_key))?;
    let constraints = BasicConstraints {
        ca: true,
        path_len_constraint: Some(0),
    };
    builder.add_extension(&constraints).map_err(build)?;
    builder
        .add_extension(&KeyUsage(KeyUsages::KeyCertSign.into()))
        .map_err(build)?;
    let authority = sign(builder, &authority_key)?;

    let mut builder = certificate_builder(fields(common_name(host)?, &server_key))?;
    let constraints = BasicConstraints {
        ca: false,
        path_len_constraint: None,
    };
    builder.add_extension(&constraints).map_err(build)?;
    builder
        .add_extension(&KeyUsage(KeyUsages::DigitalSignature.into()))
        .map_err(build)?;
    builder
        .add_extension(&ExtendedKeyUsage(vec![ID_KP_SERVER_AUTH]))
        .map_err(build)?;
    builder
        .add_extension(&SubjectAltName(names(host)?))
        .map_err(build)?;
    let certificate = sign(builder, &authority_key)?;
    Ok(Trial {
        authority: authority.to_pem()?,
        certificate: certificate.to_pem()?,
        key: server_key.to_pem()?,
    })
}

/// The host, and for a loopback address all the ways to name this computer.
fn names(host: &str) -> Result<Vec<GeneralName>, X509Error> {
    let address: Option<IpAddr> = host.parse().ok();
    let mut names = vec![name(host)?];
    if address.is_some_and(|address| address.is_loopback()) || host == "localhost" {
        for other in ["localhost", "127.0.0.1", "::1"] {
            if other != host {
                names.push(name(other)?);
            }
        }
    }
    Ok(names)
}

fn name(host: &str) -> Result<GeneralName, X509Error> {
    let octets = match host.parse() {
        Ok(IpAddr::V4(address)) => address.octets().to_vec(),
        Ok(IpAddr::V6(address)) => address.octets().to_vec(),
        Err(_) => return Ok(GeneralName::DnsName(Ia5String::new(host).map_err(build)?)),
    };
    Ok(GeneralName::IpAddress(
        OctetString::new(octets).map_err(build)?,
    ))
}

/// A P-256 key in memory.
struct SoftwareKey {
    document: Zeroizing<Vec<u8>>,
    pair: EcdsaKeyPair,
    public: PublicKey,
}

impl SoftwareKey {
    fn generate() -> Result<Self, X509Error> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(build)?;
        let document = Zeroizing::new(pair.to_pkcs8v1().map_err(build)?.as_ref().to_vec());
        let public = PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref())
            .map_err(|_| X509Error::Key { what: "TLS key" })?;
        Ok(Self {
            document,
            pair,
            public,
        })
    }

    fn to_pem(&self) -> Result<Zeroizing<String>, X509Error> {
        der::pem::encode_string("PRIVATE KEY", LineEnding::LF, &self.document)
            .map(Zeroizing::new)
            .map_err(build)
    }
}

fn sign(
    builder: CertificateBuilder<impl BuilderProfile>,
    key: &SoftwareKey,
) -> Result<Certificate, X509Error> {
    let draft = Draft::new(builder, RemoteKey::new(key.public.clone()))?;
    let signature = key
        .pair
        .sign(&SystemRandom::new(), draft.to_sign())
        .map_err(build)?;
    let signature = Signature::from_jose(signature.as_ref().to_vec());
    Certificate::from_der(&draft.assemble(&signature)?)
}

fn build(error: impl std::fmt::Display) -> X509Error {
    X509Error::Build(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tls::{Identity, certificates, public, roots};

    #[test]
    fn a_trial_certificate_serves_tls() {
        let trial = make("127.0.0.1", Timestamp::now()).unwrap();
        let identity =
            Identity::from_pem(trial.certificate.as_bytes(), trial.key.as_bytes()).unwrap();
        public(identity).unwrap();
        roots(certificates(trial.authority.as_bytes()).unwrap()).unwrap();
    }
}
