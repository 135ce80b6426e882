//! Certificates: read, and made.

use der::{Decode, DecodePem, Encode, EncodePem};
use jiff::Timestamp;
use spki::SubjectPublicKeyInfoRef;
use x509_cert::TbsCertificate;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{self, CertificateBuilder};
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, SubjectKeyIdentifier};
use x509_cert::ext::{Extension, ToExtension};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::Validity;

use super::{OperatingIdentity, X509Error, build, time, timestamp, verify};
use crate::base::encoding::sha256;
use crate::base::ids::random;
use crate::base::key::PublicKey;

/// A parsed certificate; who issued it is not checked by parsing.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: Vec<u8>,
    inner: x509_cert::Certificate,
    public_key: PublicKey,
}

impl Certificate {
    /// Largest certificate we read, in bytes.
    pub const MAX: usize = 16 * 1024;

    /// From DER.
    pub fn from_der(der: &[u8]) -> Result<Self, X509Error> {
        let malformed = X509Error::Malformed {
            what: "certificate",
        };
        if der.len() > Self::MAX {
            return Err(malformed);
        }
        let inner = x509_cert::Certificate::from_der(der).map_err(|_| malformed)?;
        let spki = inner
            .tbs_certificate()
            .subject_public_key_info()
            .to_der()
            .map_err(build)?;
        let public_key = PublicKey::from_spki(&spki).map_err(|_| X509Error::Key {
            what: "certificate",
        })?;
        Ok(Self {
            der: der.to_vec(),
            inner,
            public_key,
        })
    }

    /// From PEM (RFC 7468) with one certificate.
    pub fn from_pem(pem: &[u8]) -> Result<Self, X509Error> {
        let inner = x509_cert::Certificate::from_pem(pem).map_err(|_| X509Error::Malformed {
            what: "certificate",
        })?;
        Self::from_der(&inner.to_der().map_err(build)?)
    }

    /// From PEM with one certificate or more.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, X509Error> {
        x509_cert::Certificate::load_pem_chain(pem)
            .map_err(|_| X509Error::Malformed {
                what: "certificate",
            })?
            .iter()
            .map(|certificate| Self::from_der(&certificate.to_der().map_err(build)?))
            .collect()
    }

    /// As PEM.
    pub fn to_pem(&self) -> Result<String, X509Error> {
        self.inner.to_pem(der::pem::LineEnding::LF).map_err(build)
    }

    /// As DER, to the byte what was parsed.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The subject's public key.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// The subject.
    pub fn subject(&self) -> &Name {
        self.inner.tbs_certificate().subject()
    }

    /// The issuer.
    pub fn issuer(&self) -> &Name {
        self.inner.tbs_certificate().issuer()
    }

    /// The serial number, big-endian, as encoded.
    pub fn serial(&self) -> &[u8] {
        self.inner.tbs_certificate().serial_number().as_bytes()
    }

    /// First instant of validity.
    pub fn not_before(&self) -> Timestamp {
        timestamp(self.inner.tbs_certificate().validity().not_before)
    }

    /// Last instant of validity.
    pub fn not_after(&self) -> Timestamp {
        timestamp(self.inner.tbs_certificate().validity().not_after)
    }

    /// SHA-256 over the DER.
    pub fn fingerprint(&self) -> [u8; 32] {
        sha256(&self.der)
    }

    /// Whether it is issued by its own subject and signed with its own key.
    pub fn is_self_signed(&self) -> bool {
        let signed = self.inner.tbs_certificate().to_der();
        let algorithm = self.inner.signature_algorithm();
        let signature = self.inner.signature();
        self.issuer() == self.subject()
            && signed.is_ok_and(|signed| {
                let key = &self.public_key;
                verify(key, algorithm, &signed, signature, "certificate").is_ok()
            })
    }

    /// Whom it speaks for, if it is an operating certificate.
    pub fn identity(&self) -> Option<OperatingIdentity> {
        OperatingIdentity::from_subject(self.subject())
    }

    /// The parsed structure, for readers of other extensions.
    pub fn inner(&self) -> &x509_cert::Certificate {
        &self.inner
    }
}

/// What a new certificate says besides its extensions.
pub struct CertificateFields {
    /// The issuer's name.
    pub issuer: Name,
    /// The issuer's public key, for the authority key identifier.
    pub issuer_key: PublicKey,
    /// The subject's name.
    pub subject: Name,
    /// The subject's public key.
    pub subject_key: PublicKey,
    /// First instant of validity.
    pub not_before: Timestamp,
    /// Last instant of validity, whole seconds.
    pub not_after: Timestamp,
}

/// A builder for a certificate with a random 127-bit serial number (RFC 5280 section 4.1.2.2)
/// and both key identifiers (RFC 7093 is not used: SHA-1 identifiers are what software expects);
/// the caller adds the other extensions and closes it with [`super::Draft::new`].
pub fn certificate_builder(
    fields: CertificateFields,
) -> Result<CertificateBuilder<impl BuilderProfile>, X509Error> {
    let validity = Validity::new(time(fields.not_before)?, time(fields.not_after)?);
    let spki = fields.subject_key.spki().to_vec();
    let subject_key = x509_cert::spki::SubjectPublicKeyInfoOwned::from_der(&spki).map_err(build)?;
    let mut serial = random::<16>();
    serial[0] = serial[0] & 0x7f | 0x40;
    let serial = SerialNumber::new(&serial).map_err(build)?;
    CertificateBuilder::new(Fixed(fields), serial, validity, subject_key).map_err(build)
}

struct Fixed(CertificateFields);

impl BuilderProfile for Fixed {
    fn get_issuer(&self, _subject: &Name) -> Name {
        self.0.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        self.0.subject.clone()
    }

    fn build_extensions(
        &self,
        spk: SubjectPublicKeyInfoRef<'_>,
        _issuer_spk: SubjectPublicKeyInfoRef<'_>,
        tbs: &TbsCertificate,
    ) -> builder::Result<Vec<Extension>> {
        let mut extensions = Vec::new();
        let subject_id = SubjectKeyIdentifier::try_from(spk)?;
        extensions.push(subject_id.to_extension(tbs.subject(), &extensions)?);
        let issuer_spki = SubjectPublicKeyInfoRef::from_der(self.0.issuer_key.spki())?;
        let authority_id = AuthorityKeyIdentifier {
            key_identifier: Some(SubjectKeyIdentifier::try_from(issuer_spki)?.0),
            ..Default::default()
        };
        extensions.push(authority_id.to_extension(tbs.subject(), &extensions)?);
        Ok(extensions)
    }
}
