//! What anybody may read: keys, the revocation list, health.

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Refused;
use crate::account::service::Service;
use crate::api::extract::Json;
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::jose::JwkSet;

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
        axum::http::HeaderValue::from_static("application/jwk-set+json"),
    );
    headers.insert(
        CACHE_CONTROL,
        axum::http::HeaderValue::from_static("public, max-age=300"),
    );
    response
}

/// The current revocation list, DER.
#[utoipa::path(
    get,
    path = "/pki/issuing.crl",
    tag = "published",
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/pkix-crl"),
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn crl(State(service): State<Service>) -> Result<Response, Refused> {
    let der = service.issuer().crl().await.map_err(Problem::from)?;
    let headers = [
        (CONTENT_TYPE, "application/pkix-crl"),
        // A revocation must be seen at once, so nobody keeps a list without asking.
        (CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, der).into_response())
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
        (status = 503, body = ProblemDocument, content_type = "application/problem+json"),
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
