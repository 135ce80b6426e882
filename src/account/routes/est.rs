//! Enrolment over Secure Transport (RFC 7030): the authority, attributes, enrolment with a ticket.
//!
//! Bodies are base64 in both directions, whatever `Content-Transfer-Encoding` says (RFC 8951).
//! The ticket is the HTTP Basic password (any user name) or the Bearer token.

use axum::Extension;
use axum::extract::{FromRequestParts, State};
use axum::http::HeaderName;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use const_oid::ObjectIdentifier;
use const_oid::db::{rfc5912, rfc8410};
use der::Encode;
use der::asn1::{Any, SetOfVec};
use x509_cert::attr::Attribute;

use super::problem::Refused;
use crate::account::service::Service;
use crate::api::extract::{MediaType, Raw};
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::cms::certs_only;
use crate::base::encoding::{base64, from_base64};
use crate::base::ids::RequestId;
use crate::base::secret::SecretText;

/// What is asked of a client without credentials (RFC 7030 section 3.2.3).
const SCHEMES: &str = "Basic realm=\"opcert enrolment\", charset=\"UTF-8\", Bearer";

const TRANSFER_ENCODING: HeaderName = HeaderName::from_static("content-transfer-encoding");

/// `application/pkcs10`.
#[derive(Debug)]
pub struct Pkcs10;

impl MediaType for Pkcs10 {
    const NAME: &'static str = "application/pkcs10";
}

/// The ticket in the `Authorization` header.
#[derive(Debug)]
pub struct TicketCredential(SecretText);

impl<S: Sync> FromRequestParts<S> for TicketCredential {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(ticket)
            .map(Self)
            .ok_or_else(|| Refused::unauthenticated(SCHEMES, "an enrolment ticket must be sent"))
    }
}

fn ticket(authorization: &str) -> Option<SecretText> {
    let (scheme, rest) = authorization.split_once(' ')?;
    let rest = rest.trim_start();
    let text = if scheme.eq_ignore_ascii_case("bearer") {
        rest.to_owned()
    } else if scheme.eq_ignore_ascii_case("basic") {
        let decoded = String::from_utf8(from_base64(rest.as_bytes())?).ok()?;
        decoded.split_once(':')?.1.to_owned()
    } else {
        return None;
    };
    (!text.is_empty()).then(|| SecretText::new(text))
}

/// The certificate of the issuing authority.
#[utoipa::path(
    get,
    path = "/.well-known/est/cacerts",
    tag = "est",
    responses((status = 200, description = "certs-only, base64", body = String, content_type = "application/pkcs7-mime"))
)]
pub async fn cacerts(State(service): State<Service>) -> Result<Response, Refused> {
    pkcs7(service.issuer().certificate().der().to_vec())
}

/// The kinds of keys and signatures that a request may have (RFC 7030 section 4.5).
#[utoipa::path(
    get,
    path = "/.well-known/est/csrattrs",
    tag = "est",
    responses((status = 200, description = "CsrAttrs, base64", body = String, content_type = "application/csrattrs"))
)]
pub async fn csrattrs() -> Result<Response, Refused> {
    let der = csr_attributes().map_err(|error| {
        tracing::error!(%error, "cannot encode the CSR attributes");
        Problem::new(Code::Internal, "the attributes could not be encoded")
    })?;
    let headers = [
        (CONTENT_TYPE, "application/csrattrs"),
        (TRANSFER_ENCODING, "base64"),
    ];
    Ok((headers, wrapped(&der)).into_response())
}

/// Issues a certificate for the key of the request. Its names come from the ticket.
#[utoipa::path(
    post,
    path = "/.well-known/est/simpleenroll",
    tag = "est",
    security(("ticket-as-password" = []), ("ticket" = [])),
    request_body(content = String, description = "PKCS#10, base64", content_type = "application/pkcs10"),
    responses(
        (status = 200, description = "the certificate, certs-only, base64", body = String, content_type = "application/pkcs7-mime"),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "ticket-spent, quota-computers, quota-certificates", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "unsupported-media-type", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "ticket-invalid, csr-invalid", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "token-down, busy, audit-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn simpleenroll(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    TicketCredential(ticket): TicketCredential,
    body: Raw<Pkcs10>,
) -> Result<Response, Refused> {
    let csr = from_base64(&body.bytes)
        .ok_or_else(|| Problem::new(Code::CsrInvalid, "the body is not base64"))?;
    let certificate = service
        .enrolment()
        .enrol(&ticket, &csr, &request_id)
        .await
        .map_err(Problem::from)?;
    pkcs7(certificate)
}

fn pkcs7(certificate: Vec<u8>) -> Result<Response, Refused> {
    let message = certs_only(&[certificate]).map_err(|error| {
        tracing::error!(%error, "cannot encode a certs-only message");
        Problem::new(Code::Internal, "the answer could not be encoded")
    })?;
    let headers = [
        (
            CONTENT_TYPE,
            "application/pkcs7-mime; smime-type=certs-only",
        ),
        (TRANSFER_ENCODING, "base64"),
    ];
    Ok((headers, wrapped(&message)).into_response())
}

/// Base64 in lines of 76 characters, which every decoder takes.
fn wrapped(bytes: &[u8]) -> String {
    let text = base64(bytes);
    let mut lines = String::with_capacity(text.len() + text.len() / 76 + 1);
    for (index, character) in text.chars().enumerate() {
        if index > 0 && index % 76 == 0 {
            lines.push('\n');
        }
        lines.push(character);
    }
    lines.push('\n');
    lines
}

/// `CsrAttrs`: signature algorithms as OIDs, key types as attributes with their curves.
fn csr_attributes() -> Result<Vec<u8>, der::Error> {
    let mut attributes = Vec::new();
    for oid in [
        rfc5912::ECDSA_WITH_SHA_256,
        rfc5912::ECDSA_WITH_SHA_384,
        rfc5912::SHA_256_WITH_RSA_ENCRYPTION,
        rfc5912::RSA_ENCRYPTION,
        rfc8410::ID_ED_25519,
    ] {
        attributes.push(Any::encode_from(&oid)?);
    }
    let curves: &[ObjectIdentifier] = &[rfc5912::SECP_256_R_1, rfc5912::SECP_384_R_1];
    for curve in curves {
        let values = SetOfVec::try_from(vec![Any::encode_from(curve)?])?;
        attributes.push(Any::encode_from(&Attribute {
            oid: rfc5912::ID_EC_PUBLIC_KEY,
            values,
        })?);
    }
    attributes.to_der()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_a_password_or_a_bearer_token() {
        let found = |text: &str| ticket(text).map(|ticket| ticket.expose().to_owned());
        assert_eq!(found("Bearer a.b.c").as_deref(), Some("a.b.c"));
        // "x:a.b.c" and ":a:b"
        assert_eq!(found("basic eDphLmIuYw==").as_deref(), Some("a.b.c"));
        assert_eq!(found("Basic OmE6Yg==").as_deref(), Some("a:b"));
        for bad in ["", "Basic", "Basic !", "Basic eA==", "Digest x", "Bearer "] {
            assert_eq!(found(bad), None, "{bad}");
        }
    }

    #[test]
    fn lines_have_76_characters() {
        let text = wrapped(&[0; 100]);
        assert!(text.ends_with('\n'));
        assert!(text.lines().all(|line| line.len() <= 76));
        assert_eq!(from_base64(text.as_bytes()).unwrap(), [0; 100]);
    }
}
