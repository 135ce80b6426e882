//! Enrolment over Secure Transport (RFC 7030): the authority, attributes, enrolment with a ticket.
//!
//! Bodies are base64 in both directions, whatever `Content-Transfer-Encoding` says, and ours are one
//! line (RFC 8951 section 3.2): some clients take no others.
//! The ticket is the HTTP Basic password (any user name) or the Bearer token; for clients with
//! little room its last part, behind the second dot, is enough.

use axum::Extension;
use axum::extract::{FromRequestParts, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use const_oid::ObjectIdentifier;
use const_oid::db::{rfc5912, rfc8410};
use der::Encode;
use der::asn1::{Any, SetOfVec};
use x509_cert::attr::Attribute;

use super::problem::Refused;
use crate::account::enrolment::EnrolmentError;
use crate::account::service::Service;
use crate::api::extract::{MediaType, Raw};
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::cms::certs_only;
use crate::base::encoding::{base64, from_base64};
use crate::base::ids::RequestId;
use crate::base::secret::SecretText;
use crate::http::{Peer, media_type};

/// What is asked of a client without credentials (RFC 7030 section 3.2.3).
const SCHEMES: &str = "Basic realm=\"opcert enrolment\", charset=\"UTF-8\", Bearer";

const TRANSFER_ENCODING: HeaderName = HeaderName::from_static("content-transfer-encoding");

/// A certification request.
#[derive(Debug)]
pub struct Pkcs10;

impl MediaType for Pkcs10 {
    const NAME: &'static str = media_type::PKCS10;
}

/// The ticket in the `Authorization` header.
#[derive(Debug)]
pub struct TicketCredential(SecretText);

impl<S: Sync> FromRequestParts<S> for TicketCredential {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        ticket_in(&parts.headers)
            .map(Self)
            .ok_or_else(|| Refused::unauthenticated(SCHEMES, "an enrolment ticket must be sent"))
    }
}

fn ticket_in(headers: &HeaderMap) -> Option<SecretText> {
    headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(ticket)
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

/// The certificates of the issuing authority: of the key that signs and of others that are
/// published, and by which the keys vouch for each other (RFC 7030 section 4.1.3).
#[utoipa::path(
    get,
    path = "/.well-known/est/cacerts",
    tag = "est",
    responses((status = 200, description = "certs-only, base64", body = String, content_type = "application/pkcs7-mime"))
)]
pub async fn cacerts(State(service): State<Service>) -> Result<Response, Refused> {
    pkcs7(&service.issuer().chain())
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
        (CONTENT_TYPE, media_type::CSR_ATTRIBUTES),
        (TRANSFER_ENCODING, "base64"),
    ];
    Ok((headers, base64(&der)).into_response())
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
        (status = 202, description = "an administrator has to approve first; ask again after `retry-after`", body = String, content_type = "text/plain"),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "ticket-spent, quota-computers, quota-certificates", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "unsupported-media-type", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "ticket-invalid, csr-invalid, key-not-attested", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "token-down, busy, audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn simpleenroll(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    TicketCredential(ticket): TicketCredential,
    body: Raw<Pkcs10>,
) -> Result<Response, Refused> {
    answer(
        service
            .enrolment()
            .enrol(&ticket, &csr(&body)?, &request_id)
            .await,
    )
}

/// Issues the successor of a certificate: for a ticket that an approved renewal won, or for the
/// TLS client certificate that is to be renewed.
#[utoipa::path(
    post,
    path = "/.well-known/est/simplereenroll",
    tag = "est",
    security(("ticket-as-password" = []), ("ticket" = []), ("client-certificate" = [])),
    request_body(content = String, description = "PKCS#10, base64", content_type = "application/pkcs10"),
    responses(
        (status = 200, description = "the certificate, certs-only, base64", body = String, content_type = "application/pkcs7-mime"),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "ticket-spent, renewal-too-early, operation-state", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "unsupported-media-type", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "ticket-invalid, csr-invalid, key-not-attested", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "token-down, busy, audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn simplereenroll(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Raw<Pkcs10>,
) -> Result<Response, Refused> {
    let csr = csr(&body)?;
    let enrolment = service.enrolment();
    if let Some(ticket) = ticket_in(&headers) {
        return answer(enrolment.enrol(&ticket, &csr, &request_id).await);
    }
    let Peer::Tls {
        certificate: Some(certificate),
        ..
    } = peer
    else {
        return Err(Refused::unauthenticated(
            SCHEMES,
            "a ticket or the certificate to be renewed must be presented",
        ));
    };
    answer(enrolment.reenrol(&certificate.der, &csr, &request_id).await)
}

fn csr(body: &Raw<Pkcs10>) -> Result<Vec<u8>, Problem> {
    from_base64(&body.bytes).ok_or_else(|| Problem::new(Code::CsrInvalid, "the body is not base64"))
}

/// The certificate; or 202 where a person has to agree first and the client is to ask again
/// (RFC 7030 section 4.2.3).
fn answer(result: Result<Vec<u8>, EnrolmentError>) -> Result<Response, Refused> {
    match result {
        Ok(certificate) => pkcs7(&[certificate]),
        Err(EnrolmentError::Held) => {
            let headers = [(RETRY_AFTER, "60"), (CONTENT_TYPE, media_type::TEXT)];
            let text = "The installation waits for an administrator of the account. Ask again later \
                        with the same ticket and request.\n";
            Ok((StatusCode::ACCEPTED, headers, text).into_response())
        }
        Err(error) => Err(Problem::from(error).into()),
    }
}

fn pkcs7(certificates: &[Vec<u8>]) -> Result<Response, Refused> {
    let message = certs_only(certificates).map_err(|error| {
        tracing::error!(%error, "cannot encode a certs-only message");
        Problem::new(Code::Internal, "the answer could not be encoded")
    })?;
    let headers = [
        (CONTENT_TYPE, media_type::CERTS_ONLY),
        (TRANSFER_ENCODING, "base64"),
    ];
    Ok((headers, base64(&message)).into_response())
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
}
