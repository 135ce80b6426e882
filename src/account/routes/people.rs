//! People at the portal: sessions by cookie, and what they see and delete.
//!
//! A session is a cookie that only this service gets (`__Host-`, `Secure`, `HttpOnly`,
//! `SameSite=Strict`). What changes anything needs the header `x-csrf-token` as well, whose value
//! the log-in answers with; a page of another site cannot know it.

use std::net::{IpAddr, Ipv6Addr};

use axum::Extension;
use axum::extract::{FromRequestParts, Query, State};
use axum::http::header::{CACHE_CONTROL, COOKIE, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::operations::OperationView;
use super::problem::Refused;
use crate::account::issuing::RevocationReason;
use crate::account::key_proof::KeyProof;
use crate::account::manage::{BreakGlass, Deletion, Entry, ManageError};
use crate::account::service::Service;
use crate::account::sessions::{self, Person, Session};
use crate::account::store::accounts::{Operator, Role};
use crate::account::store::certificates::{Certificate, Search};
use crate::account::store::operations::{Challenge, Operation};
use crate::api::extract::{Json, Path};
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::ids::{AccountId, ComputerId, Jti, OperatorId, RequestId};
use crate::base::secret::SecretText;
use crate::http::Peer;

/// The header that proves that a change was asked for by a page of this service.
pub const CSRF_HEADER: HeaderName = HeaderName::from_static("x-csrf-token");

/// The session's token among the cookies of a request.
pub fn token(headers: &HeaderMap) -> Option<SecretText> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, value)| *name == sessions::COOKIE && !value.is_empty())
        .map(|(_, value)| SecretText::new(value.to_owned()))
}

/// The `Set-Cookie` value that begins a session; it lasts until the browser is closed.
pub fn cookie(token: &SecretText) -> Result<HeaderValue, Problem> {
    let text = format!(
        "{}={}; Path=/; Secure; HttpOnly; SameSite=Strict",
        sessions::COOKIE,
        token.expose()
    );
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| Problem::new(Code::Internal, "the cookie could not be made"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The `Set-Cookie` value that ends a session.
pub fn no_cookie() -> HeaderValue {
    HeaderValue::from_static(
        "__Host-opcert-session=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0",
    )
}

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
        let token = token(&parts.headers).ok_or_else(ended)?;
        let session = service
            .sessions()
            .find(&token)
            .await
            .map_err(Problem::from)?;
        if !parts.method.is_safe() {
            let presented = parts
                .headers
                .get(CSRF_HEADER)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default();
            service
                .sessions()
                .check_csrf(&token, presented)
                .map_err(Problem::from)?;
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
        (status = 503, description = "busy, audit-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
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
    }
    .map_err(Problem::from)?;
    let headers = [
        (SET_COOKIE, cookie(&opened.token)?),
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
    let csrf = token(&headers).map(|token| service.sessions().csrf(&token));
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
    service
        .sessions()
        .end(&session, &request_id)
        .await
        .map_err(Problem::from)?;
    Ok((StatusCode::NO_CONTENT, [(SET_COOKIE, no_cookie())]).into_response())
}

/// Which certificates a list shows.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CertificateQuery {
    /// Part of an operator, computer, its name, or a serial number; any case, at most 120 characters.
    #[serde(default)]
    pub search: Option<String>,
    /// Of this operator only.
    #[serde(default)]
    pub operator: Option<OperatorId>,
    /// On this computer only.
    #[serde(default)]
    pub computer: Option<ComputerId>,
    /// Only those in force.
    #[serde(default)]
    pub active: bool,
    /// `next` of the page before.
    #[serde(default)]
    pub after: Option<String>,
    /// How many at most, 1 to 200. Default: 50.
    #[serde(default)]
    pub limit: Option<i64>,
}

/// An operating certificate.
#[derive(Debug, Serialize, ToSchema)]
pub struct CertificateView {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Whose it is.
    pub operator: OperatorId,
    /// Where its key lives.
    pub computer: ComputerId,
    /// What the operator calls the computer; absent where only the id matters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub computer_name: Option<String>,
    /// The serial number of the token with the key, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_serial: Option<String>,
    /// `active`, `expired` or `revoked`; absent where only those in force are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
    /// When it was issued, RFC 3339.
    pub issued_at: String,
    /// When it expires, RFC 3339.
    pub expires_at: String,
    /// When an approval was last accepted from it, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
    /// From when on it can be renewed, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewable_from: Option<String>,
    /// The certificate it takes the place of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
    /// When it was revoked, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    /// Why (RFC 5280 section 5.3.1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revocation_reason: Option<String>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_by: Option<String>,
    /// How its key was proven, where that is more or less than usual; in lists of an account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_proof: Option<KeyProof>,
}

impl From<Certificate> for CertificateView {
    fn from(certificate: Certificate) -> Self {
        let (revoked_at, revocation_reason) = match certificate.revoked {
            Some((at, reason)) => (Some(at.to_string()), Some(reason)),
            None => (None, None),
        };
        Self {
            serial: certificate.serial,
            operator: certificate.operator,
            computer: certificate.computer,
            computer_name: None,
            token_serial: certificate.token_serial,
            state: None,
            issued_at: certificate.issued_at.to_string(),
            expires_at: certificate.not_after.to_string(),
            last_used_at: certificate.last_used_at.map(|at| at.to_string()),
            renewable_from: None,
            replaces: certificate.replaces,
            revoked_at,
            revocation_reason,
            revoked_by: certificate.revoked_by,
            key_proof: None,
        }
    }
}

impl From<Entry> for CertificateView {
    fn from(entry: Entry) -> Self {
        Self {
            computer_name: Some(entry.computer_name),
            state: Some(entry.state),
            renewable_from: Some(entry.renewable_from.to_string()),
            key_proof: entry.key_proof,
            ..entry.certificate.into()
        }
    }
}

/// How much of its quota the account uses.
#[derive(Debug, Serialize, ToSchema)]
pub struct QuotaView {
    /// Computers with a certificate in force.
    pub computers: i64,
    /// How many there may be.
    pub computers_limit: u32,
    /// Certificates in force.
    pub certificates: i64,
    /// How many there may be.
    pub certificates_limit: u32,
    /// Certificates that could go, least recently used first.
    pub could_go: Vec<CertificateView>,
}

/// A page of certificates.
#[derive(Debug, Serialize, ToSchema)]
pub struct CertificatesAnswer {
    /// Newest first.
    pub certificates: Vec<CertificateView>,
    /// For `after`, where there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How much of its quota the account uses.
    pub quota: QuotaView,
}

/// The certificates of the account.
#[utoipa::path(
    get,
    path = "/v1/certificates",
    tag = "people",
    security(("session" = [])),
    params(CertificateQuery),
    responses(
        (status = 200, body = CertificatesAnswer),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn certificates(
    State(service): State<Service>,
    signed_in: SignedIn,
    query: Result<Query<CertificateQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<CertificatesAnswer>, Refused> {
    let Query(query) = query.map_err(malformed_query)?;
    if query
        .search
        .as_ref()
        .is_some_and(|text| text.chars().count() > 120)
    {
        return Err(Problem::new(Code::Malformed, "search has more than 120 characters").into());
    }
    let account = &signed_in.operator()?.account;
    let search = Search {
        text: query.search.filter(|text| !text.is_empty()),
        operator: query.operator,
        computer: query.computer,
        active: query.active,
        after: query.after,
    };
    let manage = service.manage();
    let page = manage
        .certificates(account, &search, query.limit.unwrap_or(50))
        .await?;
    let usage = manage.usage(account).await?;
    Ok(Json(CertificatesAnswer {
        certificates: page.entries.into_iter().map(Into::into).collect(),
        next: page.next,
        quota: QuotaView {
            computers: usage.computers,
            computers_limit: usage.computers_limit,
            certificates: usage.certificates,
            certificates_limit: usage.certificates_limit,
            could_go: usage.could_go.into_iter().map(Into::into).collect(),
        },
    }))
}

pub(super) fn malformed_query(error: axum::extract::rejection::QueryRejection) -> Problem {
    Problem::new(Code::Malformed, format!("the query is malformed: {error}"))
}

/// A computer of the account.
#[derive(Debug, Serialize, ToSchema)]
pub struct ComputerView {
    /// Its id.
    pub id: ComputerId,
    /// What its operator calls it.
    pub name: String,
    /// When its first certificate was issued, RFC 3339.
    pub created_at: String,
    /// Certificates on it that are in force.
    pub active_certificates: i64,
    /// When an approval was last accepted from it, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<String>,
}

/// The computers of the account.
#[derive(Debug, Serialize, ToSchema)]
pub struct ComputersAnswer {
    /// By name.
    pub computers: Vec<ComputerView>,
}

/// The computers of the account.
#[utoipa::path(
    get,
    path = "/v1/computers",
    tag = "people",
    security(("session" = [])),
    responses(
        (status = 200, body = ComputersAnswer),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn computers(
    State(service): State<Service>,
    signed_in: SignedIn,
) -> Result<Json<ComputersAnswer>, Refused> {
    let account = &signed_in.operator()?.account;
    let computers = service.manage().computers(account).await?;
    let computers = computers
        .into_iter()
        .map(|computer| ComputerView {
            id: computer.id,
            name: computer.name,
            created_at: computer.created_at.to_string(),
            active_certificates: computer.active,
            last_used_at: computer.last_used_at.map(|at| at.to_string()),
        })
        .collect();
    Ok(Json(ComputersAnswer { computers }))
}

/// What came of a request that may need an approval.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletionAnswer {
    /// Serial numbers of the certificates that were revoked.
    pub revoked: Vec<String>,
    /// What has to be approved first, with a certificate of the administrator who asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<ToApprove>,
}

/// An operation of the service that an administrator has to approve.
#[derive(Debug, Serialize, ToSchema)]
pub struct ToApprove {
    /// The operation.
    pub operation: OperationView,
    /// The challenge for the daemon, JWS compact.
    pub challenge: String,
    /// When the challenge expires, RFC 3339.
    pub expires_at: String,
}

impl ToApprove {
    pub(super) fn new(operation: &Operation, challenge: Challenge) -> Self {
        Self {
            operation: OperationView::new(operation),
            challenge: challenge.challenge,
            expires_at: challenge.expires_at.to_string(),
        }
    }
}

/// Deletes a certificate: one's own at once; an administrator those of others with an approval.
#[utoipa::path(
    delete,
    path = "/v1/certificates/{serial}",
    tag = "people",
    security(("session" = [])),
    params(("serial" = String, Path)),
    responses(
        (status = 200, description = "it is revoked", body = DeletionAnswer),
        (status = 202, description = "an approval is needed first", body = DeletionAnswer),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn delete_certificate(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    signed_in: SignedIn,
    Path(serial): Path<String>,
) -> Result<(StatusCode, Json<DeletionAnswer>), Refused> {
    let deletion = service
        .manage()
        .delete_certificate(signed_in.operator()?, &serial, &request_id)
        .await
        .map_err(Problem::from)?;
    Ok(match deletion {
        Deletion::Done(revoked) => (
            StatusCode::OK,
            Json(DeletionAnswer {
                revoked,
                approval: None,
            }),
        ),
        Deletion::ToApprove(asked) => {
            let (operation, challenge) = *asked;
            (
                StatusCode::ACCEPTED,
                Json(DeletionAnswer {
                    revoked: Vec::new(),
                    approval: Some(ToApprove::new(&operation, challenge)),
                }),
            )
        }
    })
}

/// Deletes one's own certificates on a computer.
#[utoipa::path(
    delete,
    path = "/v1/computers/{id}/certificates",
    tag = "people",
    security(("session" = [])),
    params(("id" = ComputerId, Path)),
    responses(
        (status = 200, body = DeletionAnswer),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn delete_own_on(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    signed_in: SignedIn,
    Path(computer): Path<ComputerId>,
) -> Result<Json<DeletionAnswer>, Refused> {
    let revoked = service
        .manage()
        .delete_own_on(signed_in.operator()?, &computer, &request_id)
        .await
        .map_err(Problem::from)?;
    Ok(Json(DeletionAnswer {
        revoked,
        approval: None,
    }))
}

/// A revocation that cannot wait for a certificate. Exactly one target.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BreakGlassRequest {
    /// One certificate, by its serial number.
    #[serde(default)]
    pub certificate: Option<String>,
    /// All on one computer.
    #[serde(default)]
    pub computer: Option<ComputerId>,
    /// All of one operator.
    #[serde(default)]
    pub operator: Option<OperatorId>,
    /// The administrator's password, once more.
    #[schema(value_type = String, format = Password)]
    pub password: SecretText,
    /// Why: `key-compromise`, `affiliation-changed`, `superseded`, `cessation-of-operation` or
    /// `unspecified`.
    pub reason: String,
}

/// Revokes at once, without an approval: for administrators whose certificates are out of reach.
/// It only takes rights away, and everybody who should know is told.
#[utoipa::path(
    post,
    path = "/v1/break-glass",
    tag = "people",
    security(("session" = [])),
    request_body = BreakGlassRequest,
    responses(
        (status = 200, body = DeletionAnswer),
        (status = 401, description = "session-ended, login-failed", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn break_glass(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Extension(peer): Extension<Peer>,
    signed_in: SignedIn,
    Json(body): Json<BreakGlassRequest>,
) -> Result<Json<DeletionAnswer>, Refused> {
    let operator = signed_in.operator()?;
    let target = match (body.certificate, body.computer, body.operator) {
        (Some(serial), None, None) => BreakGlass::Certificate(serial),
        (None, Some(computer), None) => BreakGlass::Computer(computer),
        (None, None, Some(operator)) => BreakGlass::Operator(operator),
        _ => {
            return Err(Problem::new(
                Code::Malformed,
                "exactly one of certificate, computer and operator must be named",
            )
            .into());
        }
    };
    let reason: RevocationReason = body
        .reason
        .parse()
        .map_err(|()| Problem::new(Code::Malformed, "reason is not one of those known"))?;
    service
        .sessions()
        .confirm(&signed_in.0, body.password, source(&peer))
        .await
        .map_err(Problem::from)?;
    let revoked = service
        .manage()
        .break_glass(operator, &target, reason, &request_id)
        .await
        .map_err(Problem::from)?;
    Ok(Json(DeletionAnswer {
        revoked,
        approval: None,
    }))
}

/// An installation that waits for an administrator.
#[derive(Debug, Serialize, ToSchema)]
pub struct InstallationView {
    /// Its id.
    pub id: Jti,
    /// Who wants to install.
    pub operator: OperatorId,
    /// Where.
    pub computer: ComputerId,
    /// What the operator calls the computer.
    pub computer_name: String,
    /// When it was asked for, RFC 3339.
    pub created_at: String,
    /// When it is too late, RFC 3339.
    pub expires_at: String,
}

/// Installations that wait for an administrator.
#[derive(Debug, Serialize, ToSchema)]
pub struct InstallationsAnswer {
    /// Oldest first.
    pub installations: Vec<InstallationView>,
}

/// Installations that wait for an administrator.
#[utoipa::path(
    get,
    path = "/v1/installations",
    tag = "people",
    security(("session" = [])),
    responses(
        (status = 200, body = InstallationsAnswer),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn installations(
    State(service): State<Service>,
    signed_in: SignedIn,
) -> Result<Json<InstallationsAnswer>, Refused> {
    let account = &signed_in.operator()?.account;
    let held = service.manage().held_installations(account).await?;
    let installations = held
        .into_iter()
        .map(|ticket| InstallationView {
            id: ticket.jti,
            operator: ticket.binding.operator,
            computer: ticket.binding.computer,
            computer_name: ticket.binding.computer_name,
            created_at: ticket.created_at.to_string(),
            expires_at: ticket.expires_at.to_string(),
        })
        .collect();
    Ok(Json(InstallationsAnswer { installations }))
}

/// Asks the administrator who is logged in to approve an installation.
#[utoipa::path(
    post,
    path = "/v1/installations/{id}/approval",
    tag = "people",
    security(("session" = [])),
    params(("id" = Jti, Path)),
    responses(
        (status = 201, body = ToApprove),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn release_installation(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    signed_in: SignedIn,
    Path(id): Path<Jti>,
) -> Result<(StatusCode, Json<ToApprove>), Refused> {
    let (operation, challenge) = service
        .manage()
        .release_installation(signed_in.operator()?, &id, &request_id)
        .await
        .map_err(Problem::from)?;
    Ok((
        StatusCode::CREATED,
        Json(ToApprove::new(&operation, challenge)),
    ))
}

/// A notice.
#[derive(Debug, Serialize, ToSchema)]
pub struct NoticeView {
    /// Its id.
    pub id: String,
    /// The account it is about.
    pub account: AccountId,
    /// What it tells: `certificate-issued`, `certificate-revoked`, …
    pub kind: String,
    /// The facts.
    #[schema(value_type = Object)]
    pub facts: serde_json::Value,
    /// When it was written, RFC 3339.
    pub created_at: String,
    /// Whether whoever is logged in has read it.
    pub read: bool,
}

/// Notices.
#[derive(Debug, Serialize, ToSchema)]
pub struct NoticesAnswer {
    /// Newest first.
    pub notices: Vec<NoticeView>,
}

/// The newest notices.
#[utoipa::path(
    get,
    path = "/v1/notices",
    tag = "people",
    security(("session" = [])),
    responses(
        (status = 200, body = NoticesAnswer),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn notices(
    State(service): State<Service>,
    SignedIn(session): SignedIn,
) -> Result<Json<NoticesAnswer>, Refused> {
    let found = service.manage().notices(&session.person).await?;
    let notices = found
        .into_iter()
        .map(|notice| NoticeView {
            id: notice.id,
            account: notice.account,
            kind: notice.kind,
            facts: notice.body,
            created_at: notice.created_at.to_string(),
            read: notice.read,
        })
        .collect();
    Ok(Json(NoticesAnswer { notices }))
}

/// Notes that a notice was read.
#[utoipa::path(
    post,
    path = "/v1/notices/{id}/read",
    tag = "people",
    security(("session" = [])),
    params(("id" = String, Path)),
    responses(
        (status = 204),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn read_notice(
    State(service): State<Service>,
    SignedIn(session): SignedIn,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    service
        .manage()
        .read_notice(&id, &session.person)
        .await
        .map_err(Problem::from)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// `next` of the page before.
    #[serde(default)]
    pub after: Option<String>,
    /// How many at most, 1 to 200. Default: 50.
    #[serde(default)]
    pub limit: Option<i64>,
}

/// An event.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventView {
    /// Its id.
    pub id: String,
    /// When, RFC 3339.
    pub at: String,
    /// What, as the audit trail calls it.
    pub kind: String,
    /// In which request.
    pub request: String,
    /// The facts.
    #[schema(value_type = Object)]
    pub facts: serde_json::Value,
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventsAnswer {
    /// Newest first.
    pub events: Vec<EventView>,
    /// For `after`, where there are more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What happened in the account, for its administrators.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "people",
    security(("session" = [])),
    params(PageQuery),
    responses(
        (status = 200, body = EventsAnswer),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn events(
    State(service): State<Service>,
    signed_in: SignedIn,
    query: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<EventsAnswer>, Refused> {
    let Query(query) = query.map_err(malformed_query)?;
    let operator = signed_in.operator()?;
    if !operator.role.manages() {
        return Err(Problem::from(ManageError::NotAdministrator).into());
    }
    let page = service
        .manage()
        .events(
            &operator.account,
            query.after.as_deref(),
            query.limit.unwrap_or(50),
        )
        .await?;
    let events = page
        .entries
        .into_iter()
        .map(|event| EventView {
            id: event.id,
            at: event.at.to_string(),
            kind: event.kind,
            request: event.request,
            facts: event.body,
        })
        .collect();
    Ok(Json(EventsAnswer {
        events,
        next: page.next,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_among_cookies() {
        let found = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, HeaderValue::from_static(text));
            token(&headers).map(|token| token.expose().to_owned())
        };
        assert_eq!(
            found("a=b; __Host-opcert-session=tok; c=d").as_deref(),
            Some("tok")
        );
        assert_eq!(found("__Host-opcert-session="), None);
        assert_eq!(found("opcert-session=tok"), None);
    }

    #[test]
    fn a_cookie_is_for_this_host_and_no_script() {
        let value = cookie(&SecretText::new("tok".into())).unwrap();
        assert_eq!(
            value.to_str().unwrap(),
            "__Host-opcert-session=tok; Path=/; Secure; HttpOnly; SameSite=Strict"
        );
        assert!(no_cookie().to_str().unwrap().starts_with(sessions::COOKIE));
    }
}
