//! Sessions of people at the portal, by cookie: log-in, log-out, and who is asking.
//!
//! A session is a cookie that only this service gets (`__Host-`, `Secure`, `HttpOnly`,
//! `SameSite=Strict`). What changes anything needs the header `x-csrf-token` as well, whose value
//! the log-in answers with; a page of another site cannot know it. The pages use the same cookie
//! and have a token in each form.

use std::net::{IpAddr, Ipv6Addr};

use axum::Extension;
use axum::extract::{FromRequestParts, State};
use axum::http::header::{CACHE_CONTROL, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Refused;
use crate::account::cookies;
use crate::account::service::Service;
use crate::account::sessions::{Person, Session};
use crate::account::store::accounts::{Operator, Role};
use crate::api::extract::Json;
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::ids::{AccountId, OperatorId, RequestId};
use crate::base::secret::SecretText;
use crate::http::Peer;

/// The header that proves that a change was asked for by a page of this service.
pub const CSRF_HEADER: HeaderName = HeaderName::from_static("x-csrf-token");

/// The address a request came from.
pub fn source(peer: &Peer) -> IpAddr {
    match peer {
        Peer::Tls { address, .. } | Peer::Plain { address } => address.ip(),
        Peer::Unix { .. } => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Whoever is logged in. For methods that change something the CSRF header must be there too.
#[derive(Debug)]
pub struct SignedIn(pub Session);

impl FromRequestParts<Service> for SignedIn {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<Self, Refused> {
        let ended = || Problem::new(Code::SessionEnded, "no session is open here");
        let token = cookies::session_token(&parts.headers).ok_or_else(ended)?;
        let session = service.sessions().find(&token).await?;
        if !parts.method.is_safe() {
            let presented = parts
                .headers
                .get(CSRF_HEADER)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            service.sessions().check_csrf(&token, presented)?;
        }
        Ok(Self(session))
    }
}

impl SignedIn {
    /// The operator; a business representative has no account.
    pub(super) fn operator(&self) -> Result<&Operator, Problem> {
        self.0
            .person
            .operator()
            .ok_or_else(|| Problem::new(Code::Forbidden, "this is for operators of an account"))
    }
}

/// A log-in: of an operator with an account, of a business representative without.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// The account; absent for a business representative.
    #[serde(default)]
    pub account: Option<AccountId>,
    /// The operator or representative.
    pub operator: OperatorId,
    /// The password.
    #[schema(value_type = String, format = Password)]
    pub password: SecretText,
}

/// Who is logged in.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionView {
    /// The account; absent for a business representative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The operator or representative.
    pub operator: OperatorId,
    /// The role in the account; absent for a business representative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Whether it is a business representative.
    pub representative: bool,
    /// When the session ends at the latest, RFC 3339.
    pub expires_at: String,
    /// For the header `x-csrf-token`.
    pub csrf_token: String,
}

impl SessionView {
    fn new(session: &Session, csrf_token: String) -> Self {
        let operator = session.person.operator();
        Self {
            account: operator.map(|operator| operator.account.clone()),
            operator: session.person.id().clone(),
            role: session.person.role(),
            representative: matches!(session.person, Person::Representative(_)),
            expires_at: session.expires_at.to_string(),
            csrf_token,
        }
    }
}

/// Logs in.
#[utoipa::path(
    post,
    path = "/v1/sessions",
    tag = "people",
    request_body = LoginRequest,
    responses(
        (status = 201, body = SessionView),
        (status = 401, description = "login-failed", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, description = "login-throttled", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "busy, audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn log_in(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Extension(peer): Extension<Peer>,
    Json(body): Json<LoginRequest>,
) -> Result<Response, Refused> {
    let sessions = service.sessions();
    let source = source(&peer);
    let opened = match &body.account {
        Some(account) => {
            sessions
                .log_in(account, &body.operator, body.password, source, &request_id)
                .await
        }
        None => {
            sessions
                .log_in_representative(&body.operator, body.password, source, &request_id)
                .await
        }
    }?;
    let headers = [
        (SET_COOKIE, cookies::begin_session(&opened.token)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    let view = SessionView::new(&opened.session, opened.csrf);
    Ok((StatusCode::CREATED, headers, Json(view)).into_response())
}

/// Who is logged in.
#[utoipa::path(
    get,
    path = "/v1/session",
    tag = "people",
    security(("session" = [])),
    responses(
        (status = 200, body = SessionView),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn session(
    State(service): State<Service>,
    headers: HeaderMap,
    SignedIn(session): SignedIn,
) -> Result<Json<SessionView>, Refused> {
    let csrf = cookies::session_token(&headers).map(|token| service.sessions().csrf(&token));
    Ok(Json(SessionView::new(&session, csrf.unwrap_or_default())))
}

/// Logs out.
#[utoipa::path(
    delete,
    path = "/v1/session",
    tag = "people",
    security(("session" = [])),
    responses(
        (status = 204),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn log_out(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    SignedIn(session): SignedIn,
) -> Result<Response, Refused> {
    service.sessions().end(&session, &request_id).await?;
    Ok((
        StatusCode::NO_CONTENT,
        [(SET_COOKIE, cookies::end_session())],
    )
        .into_response())
}
