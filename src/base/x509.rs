//! X.509 certificates, requests and revocation lists (RFC 5280, RFC 2986), signed by keys that
//! are elsewhere.
//!
//! A [`Draft`] gives the bytes to sign and, once the signature is there, the DER structure: the
//! private key never has to be a value of this program. Reading gives [`Certificate`],
//! [`CertificateRequest`] and [`Crl`], each existing only with its own checks passed.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use const_oid::db::{rfc4519, rfc5912};
use const_oid::{AssociatedOid, ObjectIdentifier};
use der::asn1::{Any, BitString, Ia5String, Utf8StringRef};
use der::{Decode, DecodePem, Encode, EncodePem, EncodeValue, FixedTag, Length, Tag, Writer};
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};
use signature::Keypair;
use spki::{
    AlgorithmIdentifierOwned, Document, DynSignatureAlgorithmIdentifier, EncodePublicKey,
    SubjectPublicKeyInfoRef,
};
use x509_cert::TbsCertificate;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{self, Builder, CertificateBuilder, CrlBuilder};
use x509_cert::crl::{CertificateList, RevokedCert};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, CrlNumber, CrlReason, SubjectAltName, SubjectKeyIdentifier,
};
use x509_cert::ext::{Extension, ToExtension};
use x509_cert::name::{Name, RdnSequence, RelativeDistinguishedName};
use x509_cert::request::attributes::AsAttribute;
use x509_cert::request::{CertReq, RequestBuilder};
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::{Time, Validity};

use super::ids::{AccountId, ComputerId, OperatorId};
use super::key::{PublicKey, Scheme, Signature};

/// The extended key usage of operating certificates: document signing (RFC 9336).
pub const DOCUMENT_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.36");

/// Why an X.509 structure cannot be built or was refused.
#[derive(Debug, thiserror::Error)]
pub enum X509Error {
    /// It cannot be encoded.
    #[error("cannot build the X.509 structure: {0}")]
    Build(String),
    /// It is not DER of the expected kind.
    #[error("malformed {what}")]
    Malformed {
        /// What was expected.
        what: &'static str,
    },
    /// The key in it is of a kind we do not support.
    #[error("the key in the {what} is not supported")]
    Key {
        /// Where the key is.
        what: &'static str,
    },
    /// Its signature does not verify.
    #[error("the signature of the {what} does not verify")]
    Signature {
        /// What was signed.
        what: &'static str,
    },
    /// Its issuer is not the expected one.
    #[error("the {what} is by another issuer")]
    Issuer {
        /// What was issued.
        what: &'static str,
    },
    /// No trusted path, or the certificate must not be used for this.
    #[error("the certificate is not valid: {0}")]
    Path(PathError),
}

/// Why a certificate has no valid path to a trust anchor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Past its notAfter.
    #[error("it has expired")]
    Expired,
    /// Before its notBefore.
    #[error("it is not valid yet")]
    NotYetValid,
    /// On a revocation list.
    #[error("it is revoked")]
    Revoked,
    /// The revocation list is older than it may be.
    #[error("the revocation list has expired")]
    StaleCrl,
    /// The revocation list is another authority's.
    #[error("the revocation list is not of its issuer")]
    OtherList,
    /// Not issued by a trusted authority.
    #[error("its issuer is not trusted")]
    UnknownIssuer,
    /// Anything else, in the words of the checker.
    #[error("{0}")]
    Other(String),
}

fn build(error: impl std::fmt::Display) -> X509Error {
    X509Error::Build(error.to_string())
}

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
/// the caller adds the other extensions and closes it with [`Draft::new`].
pub fn certificate_builder(
    fields: CertificateFields,
) -> Result<CertificateBuilder<impl BuilderProfile>, X509Error> {
    let validity = Validity::new(time(fields.not_before)?, time(fields.not_after)?);
    let spki = fields.subject_key.spki().to_vec();
    let subject_key = x509_cert::spki::SubjectPublicKeyInfoOwned::from_der(&spki).map_err(build)?;
    let mut serial = super::ids::random::<16>();
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

/// A certification request for `key`, with optional subject alternative names.
pub fn request_draft(
    subject: Name,
    alternative_names: Vec<GeneralName>,
    key: RemoteKey,
) -> Result<Draft<RequestBuilder>, X509Error> {
    request_draft_about(subject, alternative_names, AboutKey::default(), key)
}

/// What a request says of its key to whoever decides on it.
#[derive(Debug, Clone, Copy, Default)]
pub struct AboutKey<'a> {
    /// A note, as PKCS #9 unstructuredName (RFC 2985).
    pub note: Option<&'a str>,
    /// Certificates of others over the key, DER, each the issuer of the one before it; as the
    /// attribute pkiPath of X.509 (2.5.4.70). Empty for none.
    pub path: &'a [Vec<u8>],
}

/// The same with more about the key.
pub fn request_draft_about(
    subject: Name,
    alternative_names: Vec<GeneralName>,
    about: AboutKey<'_>,
    key: RemoteKey,
) -> Result<Draft<RequestBuilder>, X509Error> {
    let mut builder = RequestBuilder::new(subject).map_err(build)?;
    if !alternative_names.is_empty() {
        builder
            .add_extension(&SubjectAltName(alternative_names))
            .map_err(build)?;
    }
    if let Some(note) = about.note {
        let note = UnstructuredName(Utf8StringRef::new(note).map_err(build)?);
        builder.add_attribute(&note).map_err(build)?;
    }
    if !about.path.is_empty() {
        // The key's own certificate comes last.
        let path = about.path.iter().rev().map(|der| Any::from_der(der));
        let path = PkiPath(path.collect::<Result<_, _>>().map_err(build)?);
        builder.add_attribute(&path).map_err(build)?;
    }
    Draft::new(builder, key)
}

/// PKCS #9 unstructuredName: text about the subject of a request that no standard gives a meaning.
struct UnstructuredName<'a>(Utf8StringRef<'a>);

impl AssociatedOid for UnstructuredName<'_> {
    const OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.2");
}

impl FixedTag for UnstructuredName<'_> {
    const TAG: Tag = Tag::Utf8String;
}

impl EncodeValue for UnstructuredName<'_> {
    fn value_len(&self) -> der::Result<Length> {
        self.0.value_len()
    }

    fn encode_value(&self, writer: &mut impl Writer) -> der::Result<()> {
        self.0.encode_value(writer)
    }
}

impl AsAttribute for UnstructuredName<'_> {}

/// PkiPath of X.509 section 7.6: a sequence of certificates.
struct PkiPath(Vec<Any>);

impl AssociatedOid for PkiPath {
    const OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.70");
}

impl FixedTag for PkiPath {
    const TAG: Tag = Tag::Sequence;
}

impl EncodeValue for PkiPath {
    fn value_len(&self) -> der::Result<Length> {
        self.0.value_len()
    }

    fn encode_value(&self, writer: &mut impl Writer) -> der::Result<()> {
        self.0.encode_value(writer)
    }
}

impl AsAttribute for PkiPath {}

/// One entry of a revocation list.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// The serial number, as [`Certificate::serial`] gives it.
    pub serial: Vec<u8>,
    /// When it was revoked.
    pub at: Timestamp,
    /// Why, where that is said (RFC 5280 section 5.3.1).
    pub reason: Option<CrlReason>,
}

/// A full revocation list of the authority `issuer`.
pub fn crl_draft(
    issuer: &Certificate,
    number: u64,
    this_update: Timestamp,
    next_update: Timestamp,
    revocations: &[Revocation],
) -> Result<Draft<CrlBuilder>, X509Error> {
    let number = CrlNumber::try_from(number).map_err(build)?;
    let mut builder: CrlBuilder =
        CrlBuilder::new_with_this_update(&issuer.inner, number, time(this_update)?)
            .map_err(build)?
            .with_next_update(Some(time(next_update)?));
    // RFC 5280 section 5.1.2.6: with nothing revoked the list must be absent, not empty.
    if !revocations.is_empty() {
        let entries = revocations
            .iter()
            .map(|revocation| {
                let extensions = revocation
                    .reason
                    .map(|reason| reason.to_extension(&Name::default(), &[]))
                    .transpose()
                    .map_err(build)?
                    .map(|extension| vec![extension]);
                Ok(RevokedCert {
                    serial_number: SerialNumber::new(&revocation.serial).map_err(build)?,
                    revocation_date: time(revocation.at)?,
                    crl_entry_extensions: extensions,
                })
            })
            .collect::<Result<Vec<_>, X509Error>>()?;
        builder = builder.with_certificates(entries.into_iter());
    }
    Draft::new(builder, RemoteKey::new(issuer.public_key.clone()))
}

/// A distinguished name of UTF-8 attributes, one to an RDN, most general first.
pub fn name(attributes: &[(ObjectIdentifier, &str)]) -> Result<Name, X509Error> {
    let mut sequence = RdnSequence::default();
    for (oid, value) in attributes {
        let value = Any::encode_from(&Utf8StringRef::new(value).map_err(build)?).map_err(build)?;
        let attribute = AttributeTypeAndValue { oid: *oid, value };
        sequence.push(RelativeDistinguishedName::try_from(vec![attribute]).map_err(build)?);
    }
    Name::from_der(&sequence.to_der().map_err(build)?).map_err(build)
}

/// A name with only a common name.
pub fn common_name(text: &str) -> Result<Name, X509Error> {
    name(&[(rfc4519::CN, text)])
}

/// Whom an operating certificate speaks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OperatingIdentity {
    /// The account.
    pub account: AccountId,
    /// The operator.
    pub operator: OperatorId,
    /// The computer.
    pub computer: ComputerId,
}

impl OperatingIdentity {
    /// The subject: organisation is the account, organisational unit the computer, common name
    /// the operator.
    pub fn subject(&self) -> Result<Name, X509Error> {
        name(&[
            (rfc4519::O, self.account.as_str()),
            (rfc4519::OU, self.computer.as_str()),
            (rfc4519::CN, self.operator.as_str()),
        ])
    }

    /// The same as URI for the subject alternative name.
    pub fn uri(&self) -> String {
        format!(
            "urn:opcert:account:{}:operator:{}:computer:{}",
            self.account, self.operator, self.computer
        )
    }

    /// The subject alternative name.
    pub fn alternative_name(&self) -> Result<GeneralName, X509Error> {
        Ok(GeneralName::UniformResourceIdentifier(
            Ia5String::new(&self.uri()).map_err(build)?,
        ))
    }

    fn from_subject(subject: &Name) -> Option<Self> {
        let mut attributes = subject.iter();
        let mut next = |oid: ObjectIdentifier| -> Option<String> {
            let attribute = attributes.next().filter(|attribute| attribute.oid == oid)?;
            let text: Utf8StringRef<'_> = attribute.value.decode_as().ok()?;
            Some(text.as_str().to_owned())
        };
        let account = next(rfc4519::O)?.parse().ok()?;
        let computer = next(rfc4519::OU)?.parse().ok()?;
        let operator = next(rfc4519::CN)?.parse().ok()?;
        attributes.next().is_none().then_some(Self {
            account,
            operator,
            computer,
        })
    }
}

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
        super::encoding::sha256(&self.der)
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

/// A certification request whose proof of possession verified.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    der: Vec<u8>,
    subject: Name,
    public_key: PublicKey,
    note: Option<String>,
    path: Vec<Vec<u8>>,
}

impl CertificateRequest {
    /// Largest request we read, in bytes.
    pub const MAX: usize = 16 * 1024;

    /// From DER; the signature must be by the key in the request.
    pub fn from_der(der: &[u8]) -> Result<Self, X509Error> {
        const WHAT: &str = "certificate request";
        if der.len() > Self::MAX {
            return Err(X509Error::Malformed { what: WHAT });
        }
        let request = CertReq::from_der(der).map_err(|_| X509Error::Malformed { what: WHAT })?;
        let spki = request.info.public_key.to_der().map_err(build)?;
        let public_key = PublicKey::from_spki(&spki).map_err(|_| X509Error::Key { what: WHAT })?;
        let signed = request.info.to_der().map_err(build)?;
        verify(
            &public_key,
            &request.algorithm,
            &signed,
            &request.signature,
            WHAT,
        )?;
        let attribute = |oid| {
            let mut attributes = request.info.attributes.iter();
            let attribute = attributes.find(|attribute| attribute.oid == oid)?;
            attribute.values.get(0)
        };
        let note = attribute(UnstructuredName::OID)
            .and_then(|value| value.decode_as::<Utf8StringRef<'_>>().ok())
            .map(|text| text.as_str().to_owned());
        let path = attribute(PkiPath::OID)
            .and_then(|value| value.decode_as::<Vec<Any>>().ok())
            .unwrap_or_default();
        let path = path.iter().rev().map(Any::to_der);
        let path = path.collect::<Result<_, _>>().map_err(build)?;
        Ok(Self {
            der: der.to_vec(),
            subject: request.info.subject,
            public_key,
            note,
            path,
        })
    }

    /// From PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Self, X509Error> {
        let request = CertReq::from_pem(pem).map_err(|_| X509Error::Malformed {
            what: "certificate request",
        })?;
        Self::from_der(&request.to_der().map_err(build)?)
    }

    /// As DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The note of [`AboutKey`]. It is text of whoever made the request.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The path of [`AboutKey`], DER and not verified.
    pub fn path(&self) -> &[Vec<u8>] {
        &self.path
    }

    /// The subject it asks for; an authority decides itself.
    pub fn subject(&self) -> &Name {
        &self.subject
    }

    /// The key.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }
}

/// A revocation list whose signature verified against its issuer.
#[derive(Clone, Debug)]
pub struct Crl {
    der: Vec<u8>,
    issuer: Name,
    number: u64,
    this_update: Timestamp,
    next_update: Timestamp,
    revoked: HashMap<Vec<u8>, Timestamp>,
}

impl Crl {
    /// Largest list we read, in bytes: about 400,000 entries.
    pub const MAX: usize = 16 * 1024 * 1024;

    /// From DER, checked against the authority that must have signed it. A list without number
    /// or next update is refused, so is one with a critical extension we do not know.
    pub fn from_der(der: &[u8], issuer: &Certificate) -> Result<Self, X509Error> {
        const WHAT: &str = "revocation list";
        let malformed = || X509Error::Malformed { what: WHAT };
        if der.len() > Self::MAX {
            return Err(malformed());
        }
        let list: CertificateList = CertificateList::from_der(der).map_err(|_| malformed())?;
        if list.tbs_cert_list.issuer != *issuer.subject() {
            return Err(X509Error::Issuer { what: WHAT });
        }
        let signed = list.tbs_cert_list.to_der().map_err(build)?;
        verify(
            &issuer.public_key,
            &list.signature_algorithm,
            &signed,
            &list.signature,
            WHAT,
        )?;
        let extensions = list.tbs_cert_list.crl_extensions.unwrap_or_default();
        let number_oid = rfc5912::ID_CE_CRL_NUMBER;
        if extensions
            .iter()
            .any(|extension| extension.critical && extension.extn_id != number_oid)
        {
            return Err(malformed());
        }
        let number = extensions
            .iter()
            .find(|extension| extension.extn_id == number_oid)
            .and_then(|extension| CrlNumber::from_der(extension.extn_value.as_bytes()).ok())
            .and_then(|number| {
                let bytes = number.0.as_bytes();
                (bytes.len() <= 8).then(|| {
                    bytes
                        .iter()
                        .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
                })
            })
            .ok_or_else(malformed)?;
        let revoked = list
            .tbs_cert_list
            .revoked_certificates
            .unwrap_or_default()
            .into_iter()
            .map(|entry| {
                (
                    entry.serial_number.as_bytes().to_vec(),
                    timestamp(entry.revocation_date),
                )
            })
            .collect();
        Ok(Self {
            der: der.to_vec(),
            issuer: list.tbs_cert_list.issuer,
            number,
            this_update: timestamp(list.tbs_cert_list.this_update),
            next_update: timestamp(list.tbs_cert_list.next_update.ok_or_else(malformed)?),
            revoked,
        })
    }

    /// As DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The name of the authority. One authority may sign with several keys, which all have this
    /// name; each of its lists is about the certificates of all of them.
    pub fn issuer(&self) -> &Name {
        &self.issuer
    }

    /// The CRL number: a later list has a higher one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When it was made.
    pub fn this_update(&self) -> Timestamp {
        self.this_update
    }

    /// When the next one is due.
    pub fn next_update(&self) -> Timestamp {
        self.next_update
    }

    /// How many certificates it lists.
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether it lists none.
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    /// When the certificate with this serial number was revoked, if it was.
    pub fn revoked_at(&self, serial: &[u8]) -> Option<Timestamp> {
        self.revoked.get(serial).copied()
    }
}

/// Whether an expired revocation list is still an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaleCrl {
    /// A list past its next update fails the check.
    Refuse,
    /// It is used all the same: what it lists stays revoked.
    Accept,
}

/// Checks an operating certificate: path to one of `anchors`, validity at `now`, document-signing
/// usage and, where a list is given, that it is not on it (RFC 5280 section 6).
///
/// The list must have the name of the certificate's issuer. It need not be signed with the same
/// key: an authority that changes its key lists with either what it issued with both.
pub fn verify_operating_certificate(
    leaf: &Certificate,
    intermediates: &[Certificate],
    anchors: &[Certificate],
    crl: Option<(&Crl, StaleCrl)>,
    now: Timestamp,
) -> Result<(), X509Error> {
    static USAGE: ObjectIdentifier = DOCUMENT_SIGNING;
    let usage = webpki::KeyUsage::required(USAGE.as_bytes());
    verify_path(leaf, intermediates, anchors, usage, now)?;
    let Some((list, stale)) = crl else {
        return Ok(());
    };
    let refused = if list.issuer != *leaf.issuer() {
        PathError::OtherList
    } else if stale == StaleCrl::Refuse && now >= list.next_update {
        PathError::StaleCrl
    } else if list.revoked_at(leaf.serial()).is_some() {
        PathError::Revoked
    } else {
        return Ok(());
    };
    Err(X509Error::Path(refused))
}

/// Checks a certificate that is not one of ours: path to one of `anchors` and validity at `now`.
/// An anchor is trusted as it is, by name and key, whoever issued it.
pub fn verify_chain(
    leaf: &Certificate,
    intermediates: &[Certificate],
    anchors: &[Certificate],
    now: Timestamp,
) -> Result<(), X509Error> {
    verify_path(leaf, intermediates, anchors, AnyUsage, now)
}

/// Others name no extended key usage for signed messages, or one that has no bearing on them.
struct AnyUsage;

impl webpki::ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: webpki::KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn verify_path(
    leaf: &Certificate,
    intermediates: &[Certificate],
    anchors: &[Certificate],
    usage: impl webpki::ExtendedKeyUsageValidator,
    now: Timestamp,
) -> Result<(), X509Error> {
    let other =
        |error: &dyn std::fmt::Display| X509Error::Path(PathError::Other(error.to_string()));
    let leaf_der = CertificateDer::from(leaf.der());
    let end_entity = webpki::EndEntityCert::try_from(&leaf_der).map_err(|error| other(&error))?;
    let anchor_ders: Vec<CertificateDer<'_>> = anchors
        .iter()
        .map(|anchor| CertificateDer::from(anchor.der()))
        .collect();
    let trust: Vec<_> = anchor_ders
        .iter()
        .map(webpki::anchor_from_trusted_cert)
        .collect::<Result<_, _>>()
        .map_err(|error| other(&error))?;
    let chain: Vec<CertificateDer<'_>> = intermediates
        .iter()
        .map(|certificate| CertificateDer::from(certificate.der()))
        .collect();
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &trust,
            &chain,
            UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
            usage,
            None,
            None,
        )
        .map(|_| ())
        .map_err(|error| {
            X509Error::Path(match error {
                webpki::Error::CertExpired { .. } => PathError::Expired,
                webpki::Error::CertNotValidYet { .. } => PathError::NotYetValid,
                webpki::Error::UnknownIssuer => PathError::UnknownIssuer,
                error => PathError::Other(error.to_string()),
            })
        })
}

fn verify(
    key: &PublicKey,
    algorithm: &AlgorithmIdentifierOwned,
    signed: &[u8],
    signature: &BitString,
    what: &'static str,
) -> Result<(), X509Error> {
    let scheme = Scheme::from_x509(algorithm).ok_or(X509Error::Key { what })?;
    signature
        .as_bytes()
        .and_then(|bytes| Signature::from_x509(scheme, bytes))
        .and_then(|signature| key.verify(scheme, signed, &signature).ok())
        .ok_or(X509Error::Signature { what })
}

fn time(at: Timestamp) -> Result<Time, X509Error> {
    let seconds = u64::try_from(at.as_second()).map_err(build)?;
    Time::try_from(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).map_err(build)
}

fn timestamp(time: Time) -> Timestamp {
    i64::try_from(time.to_unix_duration().as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::base::key::Curve;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages};

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

    fn path(result: Result<(), X509Error>) -> PathError {
        match result.unwrap_err() {
            X509Error::Path(error) => error,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_path_is_checked_for_issuer_time_and_revocation() {
        let (ca_key, key) = (SoftKey::new(), SoftKey::new());
        let ca = authority(&ca_key);
        let leaf = operating_certificate(&ca, &ca_key, &key.public);
        assert_eq!(leaf.identity(), Some(identity()));
        let check = |anchors: &[Certificate], crl, now| {
            verify_operating_certificate(&leaf, &[], anchors, crl, at(now))
        };
        check(std::slice::from_ref(&ca), None, 1_700_000_000).unwrap();
        assert_eq!(
            path(check(std::slice::from_ref(&ca), None, 1_900_000_001)),
            PathError::Expired
        );
        assert_eq!(
            path(check(std::slice::from_ref(&ca), None, 999_999)),
            PathError::NotYetValid
        );
        let stranger = authority(&SoftKey::new());
        assert!(check(std::slice::from_ref(&stranger), None, 1_700_000_000).is_err());

        let crl = |number, revoked: &[Revocation]| {
            let draft =
                crl_draft(&ca, number, at(1_699_999_000), at(1_700_001_000), revoked).unwrap();
            let signature = ca_key.sign(draft.to_sign());
            draft.assemble(&signature).unwrap()
        };
        let clean = Crl::from_der(&crl(1, &[]), &ca).unwrap();
        check(
            std::slice::from_ref(&ca),
            Some((&clean, StaleCrl::Refuse)),
            1_700_000_000,
        )
        .unwrap();
        assert_eq!(
            path(check(
                std::slice::from_ref(&ca),
                Some((&clean, StaleCrl::Refuse)),
                1_700_002_000
            )),
            PathError::StaleCrl
        );
        check(
            std::slice::from_ref(&ca),
            Some((&clean, StaleCrl::Accept)),
            1_700_002_000,
        )
        .unwrap();
        let revocation = Revocation {
            serial: leaf.serial().to_vec(),
            at: at(1_699_999_500),
            reason: Some(CrlReason::KeyCompromise),
        };
        let der = crl(300, &[revocation]);
        let revoked = Crl::from_der(&der, &ca).unwrap();
        assert_eq!((revoked.number(), revoked.len()), (300, 1));
        assert!(revoked.revoked_at(leaf.serial()).is_some());
        assert_eq!(
            path(check(
                std::slice::from_ref(&ca),
                Some((&revoked, StaleCrl::Refuse)),
                1_700_000_000
            )),
            PathError::Revoked
        );
        assert!(matches!(
            Crl::from_der(&der, &stranger),
            Err(X509Error::Signature { .. })
        ));
    }

    #[test]
    fn a_request_proves_possession() {
        let key = SoftKey::new();
        let draft = request_draft(
            common_name("x").unwrap(),
            vec![],
            RemoteKey::new(key.public.clone()),
        )
        .unwrap();
        let good = key.sign(draft.to_sign());
        let other = SoftKey::new().sign(draft.to_sign());
        let der = draft.assemble(&good).unwrap();
        assert_eq!(
            CertificateRequest::from_der(&der).unwrap().public_key(),
            &key.public
        );
        let draft = request_draft(
            common_name("x").unwrap(),
            vec![],
            RemoteKey::new(key.public.clone()),
        )
        .unwrap();
        let forged = draft.assemble(&other).unwrap();
        assert!(matches!(
            CertificateRequest::from_der(&forged),
            Err(X509Error::Signature { .. })
        ));
    }

    #[test]
    fn certs_only_gives_back_what_it_took() {
        let key = SoftKey::new();
        let ca = authority(&key);
        let message = crate::base::cms::certs_only(&[ca.der().to_vec()]).unwrap();
        assert_eq!(
            crate::base::cms::certificates(&message).unwrap(),
            [ca.der().to_vec()]
        );
        assert!(crate::base::cms::certificates(&message[1..]).is_err());
    }
}
