//! Ways back in after a loss: requests, forms, papers, decisions.

use axum::Extension;
use axum::extract::{Request as HttpRequest, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::approval::{Asked, ToApprove};
use super::problem::Refused;
use super::sessions::{SignedIn, source};
use crate::account::service::Service;
use crate::account::sessions::{Person, Session};
use crate::account::store::accounts::{Mobile, Operator};
use crate::account::store::recovery::{Ask, Attachment, Request, RequestState};
use crate::api::extract::{Json, Path, Query, read};
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::ids::{AccountId, OperatorId, RequestId};
use crate::base::secret::SecretText;
use crate::http::{Peer, media_type};
use crate::statement::text::Text;

/// A request for a way back in.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRequest {
    /// What is lost.
    pub kind: RequestKind,
    /// The new number, like +8613800000001; for `mobile-change`.
    #[serde(default)]
    pub new_mobile: Option<String>,
    /// The operator's password, once more.
    #[schema(value_type = String, format = Password)]
    pub password: SecretText,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RequestKind {
    /// The registered mobile number is lost.
    MobileChange,
    /// The only computers of an administrator are lost.
    ComputerRecovery,
}

/// A paper that was sent in.
#[derive(Debug, Serialize, ToSchema)]
pub struct PaperView {
    /// `photocopy` or `document`.
    pub kind: String,
    /// Found in its content.
    pub media_type: String,
    /// Bytes.
    pub size: i64,
    /// SHA-256 of the content, hexadecimal.
    pub sha256: String,
}

impl From<Attachment> for PaperView {
    fn from(paper: Attachment) -> Self {
        Self {
            kind: paper.kind,
            media_type: paper.media_type,
            size: paper.size,
            sha256: paper.sha256,
        }
    }
}

/// A request.
#[derive(Debug, Serialize, ToSchema)]
pub struct RequestView {
    /// Its id.
    pub id: String,
    /// `mobile-change` or `computer-recovery`.
    pub kind: &'static str,
    /// For whom.
    pub account: AccountId,
    /// For whom.
    pub operator: OperatorId,
    /// The new number, with its middle hidden.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_mobile: Option<String>,
    /// The registered number, with its middle hidden.
    pub old_mobile: String,
    /// Where it stands.
    pub state: RequestState,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// When it was decided, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_at: Option<String>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When a grant takes effect; until then it can be withdrawn. RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_at: Option<String>,
    /// When it took effect, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_at: Option<String>,
    /// The papers that were sent in; absent in lists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub papers: Vec<PaperView>,
}

impl RequestView {
    fn new(request: Request, papers: Vec<Attachment>) -> Self {
        let kind = request.ask.name();
        let new_mobile = match &request.ask {
            Ask::MobileChange(mobile) => Some(mobile.masked()),
            Ask::ComputerRecovery => None,
        };
        let (decided_at, decided_by, reason) = match request.decision {
            Some((at, by, reason)) => (Some(at.to_string()), Some(by), reason),
            None => (None, None, None),
        };
        Self {
            id: request.id,
            kind,
            account: request.account,
            operator: request.operator,
            new_mobile,
            old_mobile: request.old_mobile.masked(),
            state: request.state,
            created_at: request.created_at.to_string(),
            decided_at,
            decided_by,
            reason,
            effective_at: request.effective_at.map(|at| at.to_string()),
            done_at: request.done_at.map(|at| at.to_string()),
            papers: papers.into_iter().map(Into::into).collect(),
        }
    }
}

fn operator(session: &Session) -> Result<&Operator, Problem> {
    session
        .person
        .operator()
        .ok_or_else(|| Problem::new(Code::Forbidden, "this is for operators of an account"))
}

/// Which account's requests somebody sees; representatives see all.
fn scope(session: &Session) -> Option<&AccountId> {
    session.person.operator().map(|operator| &operator.account)
}

/// Makes a request.
#[utoipa::path(
    post,
    path = "/v1/requests",
    tag = "people",
    security(("session" = [])),
    request_body = NewRequest,
    responses(
        (status = 201, body = RequestView),
        (status = 400, description = "malformed", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 401, description = "session-ended, login-failed", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "request-state", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn make(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Extension(peer): Extension<Peer>,
    SignedIn(session): SignedIn,
    Json(body): Json<NewRequest>,
) -> Result<(StatusCode, Json<RequestView>), Refused> {
    let by = operator(&session)?;
    let ask = match (body.kind, body.new_mobile) {
        (RequestKind::MobileChange, Some(mobile)) => {
            let mobile = mobile
                .parse::<Mobile>()
                .map_err(|error| Problem::new(Code::Malformed, format!("new_mobile: {error}")))?;
            Ask::MobileChange(mobile)
        }
        (RequestKind::ComputerRecovery, None) => Ask::ComputerRecovery,
        _ => {
            return Err(Problem::new(
                Code::Malformed,
                "new_mobile goes with mobile-change, and only with that",
            )
            .into());
        }
    };
    service
        .sessions()
        .confirm(&session, body.password, source(&peer))
        .await?;
    let made = service.requests().make(by, ask, &request_id).await?;
    Ok((
        StatusCode::CREATED,
        Json(RequestView::new(made, Vec::new())),
    ))
}

/// Which requests a list shows.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RequestQuery {
    /// In this state only.
    #[serde(default)]
    pub state: Option<RequestState>,
}

/// Requests.
#[derive(Debug, Serialize, ToSchema)]
pub struct RequestsAnswer {
    /// Newest first.
    pub requests: Vec<RequestView>,
}

/// Requests of the account; a business representative sees those of all.
#[utoipa::path(
    get,
    path = "/v1/requests",
    tag = "people",
    security(("session" = [])),
    params(RequestQuery),
    responses(
        (status = 200, body = RequestsAnswer),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(service): State<Service>,
    SignedIn(session): SignedIn,
    Query(query): Query<RequestQuery>,
) -> Result<Json<RequestsAnswer>, Refused> {
    let found = service
        .requests()
        .list(scope(&session), query.state)
        .await?;
    Ok(Json(RequestsAnswer {
        requests: found
            .into_iter()
            .map(|request| RequestView::new(request, Vec::new()))
            .collect(),
    }))
}

/// A request with its papers.
#[utoipa::path(
    get,
    path = "/v1/requests/{id}",
    tag = "people",
    security(("session" = [])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = RequestView),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn show(
    State(service): State<Service>,
    SignedIn(session): SignedIn,
    Path(id): Path<String>,
) -> Result<Json<RequestView>, Refused> {
    let (request, papers) = service.requests().find(&id, scope(&session)).await?;
    Ok(Json(RequestView::new(request, papers)))
}

/// A file of ours or of a stranger's: to be saved, never shown in place.
fn download(name: &str, media_type: &str, content: Vec<u8>) -> Result<Response, Problem> {
    let header = |text: &str| {
        HeaderValue::from_str(text)
            .map_err(|_| Problem::new(Code::Internal, "the file could not be named"))
    };
    let headers = [
        (CONTENT_TYPE, header(media_type)?),
        (
            CONTENT_DISPOSITION,
            header(&format!("attachment; filename=\"{name}\""))?,
        ),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (
            CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; sandbox"),
        ),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, content).into_response())
}

/// The form, filled in, to be printed, signed and stamped: `pdf` or `docx`.
#[utoipa::path(
    get,
    path = "/v1/requests/{id}/form/{format}",
    tag = "people",
    security(("session" = [])),
    params(("id" = String, Path), ("format" = String, Path, description = "pdf or docx")),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/pdf"),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn form(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    SignedIn(session): SignedIn,
    Path((id, format)): Path<(String, String)>,
) -> Result<Response, Refused> {
    let requests = service.requests();
    let (request, _) = requests.find(&id, scope(&session)).await?;
    let form = requests
        .form(&request, &session.person, &request_id)
        .await?;
    let (name, media_type, content) = match format.as_str() {
        "pdf" => ("request.pdf", media_type::PDF, form.pdf()),
        "docx" => ("request.docx", media_type::DOCX, form.docx()),
        _ => return Err(Problem::new(Code::NotFound, "a form is pdf or docx").into()),
    };
    Ok(download(name, media_type, content)?)
}

/// Sends in a paper: the `photocopy` of the signed and stamped form, or the `document` itself. At
/// most 5 MiB of JPEG, PNG, PDF or (the document) DOCX; what it is is found in its content.
#[utoipa::path(
    put,
    path = "/v1/requests/{id}/papers/{kind}",
    tag = "people",
    security(("session" = [])),
    params(("id" = String, Path), ("kind" = String, Path, description = "photocopy or document")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = PaperView),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "request-state", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, description = "too-large", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "paper-refused", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn attach(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    SignedIn(session): SignedIn,
    Path((id, kind)): Path<(String, String)>,
    request: HttpRequest,
) -> Result<Json<PaperView>, Refused> {
    let by = operator(&session)?;
    let kind = match kind.as_str() {
        "photocopy" => "photocopy",
        "document" => "document",
        _ => return Err(Problem::new(Code::NotFound, "a paper is photocopy or document").into()),
    };
    let content = read(request).await?;
    let kept = service
        .requests()
        .attach(by, &id, kind, &content, &request_id)
        .await?;
    Ok(Json(kept.into()))
}

/// A paper, for business representatives.
#[utoipa::path(
    get,
    path = "/v1/requests/{id}/papers/{kind}",
    tag = "people",
    security(("session" = [])),
    params(("id" = String, Path), ("kind" = String, Path, description = "photocopy or document")),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/pdf"),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn paper(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    SignedIn(session): SignedIn,
    Path((id, kind)): Path<(String, String)>,
) -> Result<Response, Refused> {
    let by = representative(&session)?;
    let (paper, content) = service
        .requests()
        .paper(by, &id, &kind, &request_id)
        .await?;
    let name = format!("{}-{}", paper.kind, &paper.sha256[..8]);
    Ok(download(
        &name,
        &paper.media_type,
        content.expose().to_vec(),
    )?)
}

fn representative(session: &Session) -> Result<&OperatorId, Problem> {
    match &session.person {
        Person::Representative(representative) => Ok(&representative.id),
        Person::Operator(_) => Err(Problem::new(
            Code::Forbidden,
            "this is for business representatives",
        )),
    }
}

/// Hands a request with its papers to the business representatives.
#[utoipa::path(
    post,
    path = "/v1/requests/{id}/submission",
    tag = "people",
    security(("session" = [])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = RequestView),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "request-state", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn submit(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    SignedIn(session): SignedIn,
    Path(id): Path<String>,
) -> Result<Json<RequestView>, Refused> {
    let by = operator(&session)?;
    let submitted = service.requests().submit(by, &id, &request_id).await?;
    Ok(Json(RequestView::new(submitted, Vec::new())))
}

/// A decision.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecisionRequest {
    /// Whether it is granted.
    pub granted: bool,
    /// Why; 1 to 120 characters that can be seen.
    pub reason: String,
    /// The representative's password, once more.
    #[schema(value_type = String, format = Password)]
    pub password: SecretText,
}

/// A business representative decides. A grant takes effect after the delay.
#[utoipa::path(
    post,
    path = "/v1/requests/{id}/decision",
    tag = "people",
    security(("session" = [])),
    params(("id" = String, Path)),
    request_body = DecisionRequest,
    responses(
        (status = 200, body = RequestView),
        (status = 401, description = "session-ended, login-failed", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "request-state", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn decide(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Extension(peer): Extension<Peer>,
    SignedIn(session): SignedIn,
    Path(id): Path<String>,
    Json(body): Json<DecisionRequest>,
) -> Result<Json<RequestView>, Refused> {
    let by = representative(&session)?;
    let reason: Text = body
        .reason
        .parse()
        .map_err(|error| Problem::new(Code::Malformed, format!("reason {error}")))?;
    service
        .sessions()
        .confirm(&session, body.password, source(&peer))
        .await?;
    let decided = service
        .requests()
        .decide(by, &id, body.granted, reason.as_str(), &request_id)
        .await?;
    Ok(Json(RequestView::new(decided, Vec::new())))
}

/// Asks the administrator who is logged in to approve a request with a certificate, as one of as
/// many as the account wants.
#[utoipa::path(
    post,
    path = "/v1/requests/{id}/approval",
    tag = "people",
    security(("session" = [])),
    params(("id" = String, Path)),
    responses(
        (status = 201, body = ToApprove),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "request-state", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn ask_administrators(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    SignedIn(session): SignedIn,
    Path(id): Path<String>,
) -> Result<Asked, Refused> {
    let by = operator(&session)?;
    let asked = service
        .requests()
        .ask_administrators(by, &id, &request_id)
        .await?;
    Ok(ToApprove::asked(asked))
}

/// Takes a request back: the operator it is for, or any administrator of the account.
#[utoipa::path(
    post,
    path = "/v1/requests/{id}/withdrawal",
    tag = "people",
    security(("session" = [])),
    params(("id" = String, Path)),
    responses(
        (status = 200, body = RequestView),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "request-state", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn withdraw(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    SignedIn(session): SignedIn,
    Path(id): Path<String>,
) -> Result<Json<RequestView>, Refused> {
    let by = operator(&session)?;
    let withdrawn = service.requests().withdraw(by, &id, &request_id).await?;
    Ok(Json(RequestView::new(withdrawn, Vec::new())))
}
