//! Certification requests (PKCS #10, RFC 2986): made for a key, and read with their proof of
//! possession.

use const_oid::{AssociatedOid, ObjectIdentifier};
use der::asn1::{Any, Utf8StringRef};
use der::{Decode, DecodePem, Encode, EncodeValue, FixedTag, Length, Tag, Writer};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::name::Name;
use x509_cert::request::attributes::AsAttribute;
use x509_cert::request::{CertReq, RequestBuilder};

use super::{Draft, RemoteKey, X509Error, build, verify};
use crate::base::key::PublicKey;

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

#[cfg(test)]
mod tests {
    use super::super::common_name;
    use super::super::tests::SoftKey;
    use super::*;

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
}
