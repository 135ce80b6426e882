//! CMS SignedData (RFC 5652): detached signatures over an approval, and the certs-only form that
//! EST answers with (RFC 7030 section 4.1.3).

use const_oid::ObjectIdentifier;
use const_oid::db::{rfc5911, rfc5912};
use der::asn1::{Any, Int, OctetString, SetOfVec};
use der::{Decode, Encode, Sequence, ValueOrd};
use spki::AlgorithmIdentifierOwned;
use x509_cert::Certificate;
use x509_cert::attr::Attribute;
use x509_cert::name::Name;

use super::encoding::sha256;
use super::key::{Scheme, Signature};

/// A CMS structure that cannot be built or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed CMS structure: {0}")]
pub struct CmsError(der::Error);

impl From<der::Error> for CmsError {
    fn from(error: der::Error) -> Self {
        Self(error)
    }
}

impl From<der::ErrorKind> for CmsError {
    fn from(kind: der::ErrorKind) -> Self {
        Self(kind.into())
    }
}

#[derive(Sequence)]
struct ContentInfo {
    content_type: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    content: Any,
}

#[derive(Sequence)]
struct SignedData {
    version: u8,
    digest_algorithms: SetOfVec<AlgorithmIdentifierOwned>,
    encapsulated: EncapsulatedContentInfo,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", optional = "true")]
    certificates: Option<SetOfVec<Any>>,
    signer_infos: SetOfVec<SignerInfo>,
}

#[derive(Sequence)]
struct EncapsulatedContentInfo {
    content_type: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    content: Option<Any>,
}

#[derive(Sequence, ValueOrd, Clone)]
struct IssuerAndSerialNumber {
    issuer: Name,
    serial_number: Int,
}

#[derive(Sequence, ValueOrd)]
struct SignerInfo {
    version: u8,
    sid: IssuerAndSerialNumber,
    digest_algorithm: AlgorithmIdentifierOwned,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT")]
    signed_attributes: SetOfVec<Attribute>,
    signature_algorithm: AlgorithmIdentifierOwned,
    signature: OctetString,
}

/// A detached signature in the making: [`DetachedDraft::to_sign`] goes to the key,
/// [`DetachedDraft::assemble`] makes the structure.
pub struct DetachedDraft {
    scheme: Scheme,
    chain: Vec<Vec<u8>>,
    attributes: SetOfVec<Attribute>,
    to_sign: Vec<u8>,
}

impl DetachedDraft {
    /// A draft over `content`, to be signed by the first certificate of `chain`.
    ///
    /// The signed attributes are content type, message digest and the signing certificate
    /// (RFC 5035), so that the signature holds for that certificate alone.
    pub fn new(content: &[u8], scheme: Scheme, chain: &[Vec<u8>]) -> Result<Self, CmsError> {
        let leaf = chain.first().ok_or(der::ErrorKind::Failed)?;
        let signing_certificate = SigningCertificateV2 {
            certs: vec![EssCertIdV2 {
                hash: OctetString::new(sha256(leaf))?,
            }],
        };
        let attributes = SetOfVec::try_from(vec![
            attribute(
                rfc5911::ID_CONTENT_TYPE,
                Any::encode_from(&rfc5911::ID_DATA)?,
            )?,
            attribute(
                rfc5911::ID_MESSAGE_DIGEST,
                Any::encode_from(&OctetString::new(digest(scheme, content))?)?,
            )?,
            attribute(
                rfc5911::ID_AA_SIGNING_CERTIFICATE_V_2,
                Any::encode_from(&signing_certificate)?,
            )?,
        ])?;
        Ok(Self {
            scheme,
            chain: chain.to_vec(),
            to_sign: attributes.to_der()?,
            attributes,
        })
    }

    /// The bytes to sign: the DER SET of the signed attributes (RFC 5652 section 5.4).
    pub fn to_sign(&self) -> &[u8] {
        &self.to_sign
    }

    /// The DER ContentInfo.
    pub fn assemble(self, signature: &Signature) -> Result<Vec<u8>, CmsError> {
        let leaf = self.chain.first().ok_or(der::ErrorKind::Failed)?;
        let leaf = Certificate::from_der(leaf)?;
        let digest_algorithm = digest_algorithm(self.scheme);
        let signature_bits = signature.to_x509(self.scheme)?;
        let signer = SignerInfo {
            version: 1,
            sid: IssuerAndSerialNumber {
                issuer: leaf.tbs_certificate().issuer().clone(),
                serial_number: Int::new(leaf.tbs_certificate().serial_number().as_bytes())?,
            },
            digest_algorithm: digest_algorithm.clone(),
            signed_attributes: self.attributes,
            signature_algorithm: self.scheme.x509_algorithm(),
            signature: OctetString::new(signature_bits.raw_bytes())?,
        };
        encode(SignedData {
            version: 1,
            digest_algorithms: SetOfVec::try_from(vec![digest_algorithm])?,
            encapsulated: EncapsulatedContentInfo {
                content_type: rfc5911::ID_DATA,
                content: None,
            },
            certificates: Some(certificate_set(&self.chain)?),
            signer_infos: SetOfVec::try_from(vec![signer])?,
        })
    }
}

/// Certificates and nothing else, as EST answers.
pub fn certs_only(certificates: &[Vec<u8>]) -> Result<Vec<u8>, CmsError> {
    encode(SignedData {
        version: 1,
        digest_algorithms: SetOfVec::default(),
        encapsulated: EncapsulatedContentInfo {
            content_type: rfc5911::ID_DATA,
            content: None,
        },
        certificates: Some(certificate_set(certificates)?),
        signer_infos: SetOfVec::default(),
    })
}

/// The certificates of a certs-only message, in DER order, which is not chain order.
pub fn certificates(message: &[u8]) -> Result<Vec<Vec<u8>>, CmsError> {
    let info = ContentInfo::from_der(message)?;
    if info.content_type != rfc5911::ID_SIGNED_DATA {
        return Err(der::ErrorKind::OidUnknown {
            oid: info.content_type,
        }
        .into());
    }
    let data: SignedData = info.content.decode_as()?;
    data.certificates
        .unwrap_or_default()
        .iter()
        .map(|certificate| Ok(certificate.to_der()?))
        .collect()
}

#[derive(Sequence)]
struct SigningCertificateV2 {
    certs: Vec<EssCertIdV2>,
}

/// The hash algorithm is absent: SHA-256 is its default.
#[derive(Sequence)]
struct EssCertIdV2 {
    hash: OctetString,
}

fn encode(data: SignedData) -> Result<Vec<u8>, CmsError> {
    Ok(ContentInfo {
        content_type: rfc5911::ID_SIGNED_DATA,
        content: Any::encode_from(&data)?,
    }
    .to_der()?)
}

fn certificate_set(certificates: &[Vec<u8>]) -> Result<SetOfVec<Any>, CmsError> {
    let certificates = certificates
        .iter()
        .map(|der| Any::from_der(der))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(SetOfVec::try_from(certificates)?)
}

fn attribute(oid: ObjectIdentifier, value: Any) -> Result<Attribute, CmsError> {
    Ok(Attribute {
        oid,
        values: SetOfVec::try_from(vec![value])?,
    })
}

/// The digest that goes with a scheme: SHA-512 for Ed25519 (RFC 8419 section 3.1).
fn digest(scheme: Scheme, content: &[u8]) -> Vec<u8> {
    use aws_lc_rs::digest::{SHA256, SHA384, SHA512, digest};
    let algorithm = match scheme {
        Scheme::Rs256 | Scheme::Ps256 | Scheme::Es256 => &SHA256,
        Scheme::Es384 => &SHA384,
        Scheme::EdDsa => &SHA512,
    };
    digest(algorithm, content).as_ref().to_vec()
}

fn digest_algorithm(scheme: Scheme) -> AlgorithmIdentifierOwned {
    let oid = match scheme {
        Scheme::Rs256 | Scheme::Ps256 | Scheme::Es256 => rfc5912::ID_SHA_256,
        Scheme::Es384 => rfc5912::ID_SHA_384,
        Scheme::EdDsa => rfc5912::ID_SHA_512,
    };
    AlgorithmIdentifierOwned {
        oid,
        parameters: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::x509::tests::{SoftKey, authority};

    #[test]
    fn certs_only_gives_back_what_it_took() {
        let ca = authority(&SoftKey::new());
        let message = certs_only(&[ca.der().to_vec()]).unwrap();
        assert_eq!(certificates(&message).unwrap(), [ca.der().to_vec()]);
        assert!(certificates(&message[1..]).is_err());
    }
}
