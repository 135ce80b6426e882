//! The structures of RFC 6960, as far as a responder that signs for itself needs them.

use const_oid::ObjectIdentifier;
use const_oid::db::rfc6960::{ID_PKIX_OCSP_BASIC, ID_PKIX_OCSP_NONCE};
use der::asn1::{Any, BitString, ContextSpecific, GeneralizedTime, Null, OctetString};
use der::{Choice, Decode, Encode, Enumerated, Sequence, TagMode, TagNumber};
use jiff::Timestamp;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::CrlReason;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;

/// Longest nonce (RFC 9654 section 2.1), in bytes.
const NONCE_MAX: usize = 128;

/// `CertID`: which certificate is asked about.
#[derive(Clone, Debug, Eq, PartialEq, Sequence)]
pub(super) struct CertId {
    pub(super) hash_algorithm: AlgorithmIdentifierOwned,
    pub(super) issuer_name_hash: OctetString,
    pub(super) issuer_key_hash: OctetString,
    pub(super) serial_number: SerialNumber,
}

/// `Request`.
#[derive(Clone, Debug, Sequence)]
pub(super) struct Request {
    pub(super) req_cert: CertId,
    #[asn1(context_specific = "0", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) extensions: Option<Vec<Extension>>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Enumerated)]
#[asn1(type = "INTEGER")]
#[repr(u8)]
enum Version {
    #[default]
    V1 = 0,
}

#[derive(Clone, Debug, Sequence)]
struct TbsRequest {
    #[asn1(
        context_specific = "0",
        default = "Default::default",
        tag_mode = "EXPLICIT"
    )]
    version: Version,
    #[asn1(context_specific = "1", optional = "true", tag_mode = "EXPLICIT")]
    requestor_name: Option<GeneralName>,
    request_list: Vec<Request>,
    #[asn1(context_specific = "2", optional = "true", tag_mode = "EXPLICIT")]
    extensions: Option<Vec<Extension>>,
}

/// `OCSPRequest`; a signature is allowed and of no consequence, as everybody is answered.
#[derive(Clone, Debug, Sequence)]
struct OcspRequest {
    tbs_request: TbsRequest,
    #[asn1(context_specific = "0", optional = "true", tag_mode = "EXPLICIT")]
    signature: Option<Any>,
}

/// A question.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) requests: Vec<Request>,
    pub(super) nonce: Option<Extension>,
}

impl Question {
    /// Reads a question, DER.
    pub(super) fn parse(der: &[u8]) -> Option<Self> {
        let TbsRequest {
            request_list,
            extensions,
            ..
        } = OcspRequest::from_der(der).ok()?.tbs_request;
        let mut nonce = None;
        for extension in extensions.unwrap_or_default() {
            if extension.extn_id == ID_PKIX_OCSP_NONCE {
                let value = OctetString::from_der(extension.extn_value.as_bytes()).ok()?;
                if !(1..=NONCE_MAX).contains(&value.as_bytes().len()) {
                    return None;
                }
                nonce = Some(extension);
            } else if extension.critical {
                return None;
            }
        }
        Some(Self {
            requests: request_list,
            nonce,
        })
    }
}

/// `RevokedInfo`.
#[derive(Clone, Debug, Eq, PartialEq, Sequence)]
pub(super) struct RevokedInfo {
    pub(super) revocation_time: GeneralizedTime,
    #[asn1(context_specific = "0", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) revocation_reason: Option<CrlReason>,
}

/// `CertStatus`.
#[derive(Clone, Debug, Eq, PartialEq, Choice)]
pub(super) enum CertStatus {
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT")]
    Good(Null),
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", constructed = "true")]
    Revoked(RevokedInfo),
    #[asn1(context_specific = "2", tag_mode = "IMPLICIT")]
    Unknown(Null),
}

/// `SingleResponse`.
#[derive(Clone, Debug, Sequence)]
pub(super) struct SingleResponse {
    pub(super) cert_id: CertId,
    pub(super) cert_status: CertStatus,
    pub(super) this_update: GeneralizedTime,
    #[asn1(context_specific = "0", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) next_update: Option<GeneralizedTime>,
}

/// `ResponseData`, with the responder named by its key.
#[derive(Clone, Debug, Sequence)]
pub(super) struct ResponseData {
    pub(super) responder_id: ContextSpecific<OctetString>,
    pub(super) produced_at: GeneralizedTime,
    pub(super) responses: Vec<SingleResponse>,
    #[asn1(context_specific = "1", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) extensions: Option<Vec<Extension>>,
}

#[derive(Clone, Debug, Sequence)]
struct BasicOcspResponse {
    data: Any,
    signature_algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

#[derive(Clone, Debug, Sequence)]
struct ResponseBytes {
    response_type: ObjectIdentifier,
    response: OctetString,
}

/// `OCSPResponseStatus`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Enumerated)]
#[asn1(type = "ENUMERATED")]
#[repr(u8)]
pub(super) enum Status {
    Successful = 0,
    MalformedRequest = 1,
    InternalError = 2,
    TryLater = 3,
}

#[derive(Clone, Debug, Sequence)]
struct OcspResponse {
    status: Status,
    #[asn1(context_specific = "0", optional = "true", tag_mode = "EXPLICIT")]
    bytes: Option<ResponseBytes>,
}

/// The name of a responder by its key.
pub(super) fn by_key(key_hash: &[u8]) -> der::Result<ContextSpecific<OctetString>> {
    Ok(ContextSpecific {
        tag_number: TagNumber(2),
        tag_mode: TagMode::Explicit,
        value: OctetString::new(key_hash)?,
    })
}

/// A time, in whole seconds.
pub(super) fn time(at: Timestamp) -> der::Result<GeneralizedTime> {
    let seconds = u64::try_from(at.as_second()).map_err(|_| der::ErrorKind::DateTime)?;
    GeneralizedTime::from_unix_duration(std::time::Duration::from_secs(seconds))
}

/// The whole answer around signed data.
pub(super) fn signed(
    data: &[u8],
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
) -> der::Result<Vec<u8>> {
    let basic = BasicOcspResponse {
        data: Any::from_der(data)?,
        signature_algorithm: algorithm,
        signature,
    };
    OcspResponse {
        status: Status::Successful,
        bytes: Some(ResponseBytes {
            response_type: ID_PKIX_OCSP_BASIC,
            response: OctetString::new(basic.to_der()?)?,
        }),
    }
    .to_der()
}

/// An answer that says only why there is none; it is not signed (RFC 6960 section 4.2.1).
pub(super) fn refusal(status: Status) -> Vec<u8> {
    // SEQUENCE { ENUMERATED status }
    vec![0x30, 0x03, 0x0a, 0x01, status as u8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_ocsp_response() {
        for status in [
            Status::MalformedRequest,
            Status::InternalError,
            Status::TryLater,
        ] {
            let response = OcspResponse::from_der(&refusal(status)).unwrap();
            assert_eq!(response.status, status);
            assert!(response.bytes.is_none());
        }
    }

    #[test]
    fn garbage_is_no_question() {
        for garbage in [&b""[..], b"\x30\x00", b"\x30\x80", &[0x30; 64]] {
            assert!(Question::parse(garbage).is_none());
        }
    }
}
