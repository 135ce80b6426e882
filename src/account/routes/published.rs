//! What anybody may read: keys, the revocation list, health.

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Refused;
use crate::account::ocsp::QUESTION_MAX;
use crate::account::service::Service;
use crate::api::extract::{Json, MediaType, Path, Raw};
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::encoding::from_base64;
use crate::base::jose::JwkSet;
use crate::http::media_type;

/// The key set that challenges and tickets are signed with.
#[utoipa::path(
    get,
    path = "/.well-known/jwks.json",
    tag = "published",
    responses((status = 200, body = JwkSet, content_type = "application/jwk-set+json"))
)]
pub async fn jwks(State(service): State<Service>) -> Response {
    let mut response = Json(service.challenge_key().set()).into_response();
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        axum::http::HeaderValue::from_static(media_type::JWK_SET),
    );
    headers.insert(
        CACHE_CONTROL,
        axum::http::HeaderValue::from_static("public, max-age=300"),
    );
    response
}

/// Key sets that the service's own keys vouch for.
#[derive(Debug, Serialize, ToSchema)]
pub struct VouchedKeys {
    /// The present set once for each key that signs or did, as compact JWS of type
    /// `opcert-keys+jwt`; a daemon takes the one signed by a key that it has pinned. It names the
    /// issuing authorities as well.
    pub sets: Vec<String>,
}

/// The key set and the issuing authorities, for those who have pinned older ones.
#[utoipa::path(
    get,
    path = "/.well-known/opcert-keys",
    tag = "published",
    responses(
        (status = 200, body = VouchedKeys),
        (status = 503, description = "token-down, busy, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn vouched_keys(State(service): State<Service>) -> Result<Json<VouchedKeys>, Refused> {
    let sets = service.vouched_keys().await?;
    Ok(Json(VouchedKeys { sets }))
}

/// The current revocation list, DER, signed by the key that certificates are signed with now.
#[utoipa::path(
    get,
    path = "/pki/issuing.crl",
    tag = "published",
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/pkix-crl"),
        (status = 304, description = "The list is still the one that `if-none-match` names."),
        (status = 503, description = "token-down, busy, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn crl(State(service): State<Service>, headers: HeaderMap) -> Result<Response, Refused> {
    revocation_list(&service, None, &headers).await
}

/// The same list signed by the key with this name, which is in each certificate it signed. Each
/// list is about the certificates of all keys.
#[utoipa::path(
    get,
    path = "/pki/{list}",
    tag = "published",
    params(("list" = String, Path, description = "SHA-256 of the key (SubjectPublicKeyInfo), hexadecimal, and `.crl`")),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/pkix-crl"),
        (status = 304, description = "The list is still the one that `if-none-match` names."),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "token-down, busy, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn crl_of_key(
    State(service): State<Service>,
    Path(list): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let key = list.strip_suffix(".crl").unwrap_or_default();
    revocation_list(&service, Some(key), &headers).await
}

async fn revocation_list(
    service: &Service,
    key: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, Refused> {
    let found = service.issuer().crl(key).await?;
    let list = found.ok_or_else(|| {
        Problem::new(
            Code::NotFound,
            "no key of the issuing authority has this name",
        )
    })?;
    let tag = format!("\"{}\"", list.tag);
    // A revocation must be seen at once, so nobody keeps a list without asking.
    let caching = [(CACHE_CONTROL, "no-cache"), (ETAG, &tag)];
    if has(headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, caching).into_response());
    }
    let kind = [(CONTENT_TYPE, media_type::CRL)];
    Ok((caching, kind, list.der).into_response())
}

/// Whether who asks has what this entity tag names (RFC 9110 section 13.1.2).
fn has(headers: &HeaderMap, tag: &str) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|one| one.trim().trim_start_matches("W/"))
        .any(|one| one == tag || one == "*")
}

/// A question to OCSP.
#[derive(Debug)]
pub struct OcspRequest;

impl MediaType for OcspRequest {
    const NAME: &'static str = media_type::OCSP_REQUEST;
}

/// Whether certificates are good: OCSP by POST (RFC 6960 appendix A.1).
#[utoipa::path(
    post,
    path = "/ocsp",
    tag = "published",
    request_body(content = Vec<u8>, content_type = "application/ocsp-request"),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/ocsp-response"),
        (status = 415, description = "unsupported-media-type", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn ocsp(
    State(service): State<Service>,
    body: Raw<OcspRequest>,
) -> Result<Response, Refused> {
    Ok(ocsp_response(&service, &body.bytes).await)
}

/// Whether certificates are good: OCSP by GET, the question in base64 as the last part of the path
/// (RFC 6960 appendix A.1, RFC 5019 section 5).
#[utoipa::path(
    get,
    path = "/ocsp/{question}",
    tag = "published",
    params(("question" = String, Path, description = "base64, percent-encoded")),
    responses((status = 200, body = Vec<u8>, content_type = "application/ocsp-response"))
)]
pub async fn ocsp_get(
    State(service): State<Service>,
    Path(question): Path<String>,
) -> Result<Response, Refused> {
    // What is no base64 is no question either, and is answered as such.
    let question = from_base64(question.as_bytes()).unwrap_or_default();
    Ok(ocsp_response(&service, &question).await)
}

async fn ocsp_response(service: &Service, question: &[u8]) -> Response {
    let question = if question.len() > QUESTION_MAX {
        &[]
    } else {
        question
    };
    let answer = service.responder().answer(question).await;
    let headers = [
        (CONTENT_TYPE, media_type::OCSP_RESPONSE),
        // A revocation must be seen at once, so nobody keeps an answer without asking.
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, answer.to_vec()).into_response()
}

/// Whether the service can do its work.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// Always `ok`; anything else is a problem document.
    pub status: &'static str,
}

/// Checks the database and the audit trail.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "published",
    responses(
        (status = 200, body = Health),
        (status = 503, description = "token-down, busy, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn health(State(service): State<Service>) -> Result<Json<Health>, Refused> {
    service.store().ping().await?;
    service.audit().ready().map_err(|error| {
        tracing::error!(%error, "the audit trail cannot be written");
        Problem::new(Code::AuditUnavailable, "the audit trail cannot be written")
    })?;
    Ok(Json(Health { status: "ok" }))
}
