//! Operations: for the platform's backend, which presents its key; approvals vouch for themselves.

use axum::Extension;
use axum::extract::{FromRequestParts, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Refused;
use crate::account::idempotency::{self, Idempotency};
use crate::account::operations::{Canceller, NewOperation, OperationError};
use crate::account::service::Service;
use crate::account::store::accounts::PlatformProof;
use crate::account::store::operations::{
    Approval, Challenge, Creator, Operation, Search, State as OperationState,
};
use crate::account::store::{StoreError, accounts};
use crate::api::extract::{Jose, Json, Path, Query, Raw};
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::encoding::{hex, sha256};
use crate::base::ids::{AccountId, OperationId, OperatorId, RequestId};
use crate::base::x509::Certificate;
use crate::http::{Peer, media_type};
use crate::statement::{Facts, Origin, Payee, PayeeList};

const SCHEME: &str = "Bearer realm=\"opcert platform\"";

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Longest `Idempotency-Key`, in bytes.
const IDEMPOTENCY_KEY_MAX: usize = 128;

/// What a platform key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// Create, challenge and cancel operations.
    #[value(name = "operations:write")]
    OperationsWrite,
    /// Read and list operations.
    #[value(name = "operations:read")]
    OperationsRead,
    /// See, make and end webhook subscriptions, and replay deliveries.
    #[value(name = "webhooks")]
    Webhooks,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::OperationsWrite, Self::OperationsRead, Self::Webhooks];

    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OperationsWrite => "operations:write",
            Self::OperationsRead => "operations:read",
            Self::Webhooks => "webhooks",
        }
    }
}

/// The platform, known by its key or its TLS client certificate.
#[derive(Debug)]
pub struct Platform {
    /// The name of the key.
    pub key: String,
    scopes: String,
}

impl Platform {
    /// Refuses what the key may not do.
    pub fn may(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.split(' ').any(|held| held == scope.as_str()) {
            return Ok(());
        }
        Err(Problem::new(
            Code::Forbidden,
            format!("platform key {} has no scope {}", self.key, scope.as_str()),
        ))
    }
}

impl FromRequestParts<Service> for Platform {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<Self, Refused> {
        let presented = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| hex(&sha256(key.trim().as_bytes())));
        let certificate = match parts.extensions.get::<Peer>() {
            Some(Peer::Tls {
                certificate: Some(certificate),
                ..
            }) if in_time(&certificate.der, service.clock().now()) => {
                Some(hex(&certificate.sha256))
            }
            _ => None,
        };
        // Keys are looked up by their hash, so the time this takes tells nothing about other keys.
        let proof = match (&presented, &certificate) {
            (Some(hash), _) => PlatformProof::Key(hash),
            (None, Some(hash)) => PlatformProof::Certificate(hash),
            (None, None) => {
                return Err(Refused::unauthenticated(
                    SCHEME,
                    "a platform key must be sent",
                ));
            }
        };
        let found = service
            .store()
            .read("find platform key", move |tx| {
                Box::pin(accounts::platform_key(tx, proof))
            })
            .await
            .map_err(|error: StoreError| error)?;
        found
            .map(|key| Self {
                key: key.name,
                scopes: key.scopes,
            })
            .ok_or_else(|| Refused::unauthenticated(SCHEME, "the platform key is not known"))
    }
}

/// Whether a certificate says that it is valid at `now`.
fn in_time(der: &[u8], now: jiff::Timestamp) -> bool {
    Certificate::from_der(der).is_ok_and(|certificate| {
        (certificate.not_before()..=certificate.not_after()).contains(&now)
    })
}

/// A new operation. Which facts it has depends on its kind.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OperationRequest {
    /// Whose money or rights.
    pub account: AccountId,
    /// Who is to approve.
    pub operator: OperatorId,
    /// The kind, for instance `withdrawal`.
    pub kind: String,
    /// The amount in minor units.
    #[serde(default)]
    pub amount: Option<i64>,
    /// The currency, ISO 4217.
    #[serde(default)]
    pub currency: Option<String>,
    /// Who receives.
    #[serde(default)]
    pub payee: Option<String>,
    /// Who receive how much, for a batch: in place of `payee`. The statement names the list by its
    /// digest; hand the list to the daemon beside the challenge.
    #[serde(default)]
    pub payees: Option<Vec<Payee>>,
    /// How many pieces; for a batch, the number of payees.
    #[serde(default)]
    pub count: Option<i64>,
    /// The platform's own number.
    #[serde(default)]
    pub reference: Option<String>,
    /// A remark.
    #[serde(default)]
    pub memo: Option<String>,
    /// The page that may relay the challenge; none when absent.
    #[serde(default)]
    pub origin: Option<String>,
    /// Who entered the operation; never one of those who approve it.
    #[serde(default)]
    pub maker: Option<OperatorId>,
}

impl OperationRequest {
    fn parse(self, platform_key: String) -> Result<NewOperation, Problem> {
        let invalid = |field: &str, problem: &dyn std::fmt::Display| {
            Problem::new(Code::StatementInvalid, format!("{field}: {problem}"))
                .with_action("Correct the field that is named and create the operation again.")
        };
        let amount = match (self.amount, self.currency) {
            (Some(amount), Some(currency)) => Some((amount, currency)),
            (None, None) => None,
            (Some(_), None) => return Err(invalid("currency", &"is missing")),
            (None, Some(_)) => return Err(invalid("amount", &"is missing")),
        };
        let mut count = self.count;
        let payees = match (&self.payees, &amount) {
            (None, _) => None,
            (Some(_), None) => return Err(invalid("amount", &"is missing")),
            (Some(list), Some((minor, currency))) => {
                let list = PayeeList::new(list, currency)
                    .map_err(|error| invalid(&error.field, &error.problem))?;
                if list.sum() != *minor {
                    return Err(invalid("amount", &"is not the sum of the payees"));
                }
                let many = i64::try_from(list.count()).unwrap_or(i64::MAX);
                if *count.get_or_insert(many) != many {
                    return Err(invalid("count", &"is not the number of the payees"));
                }
                Some(list.digest().to_string())
            }
        };
        let origin = self
            .origin
            .map(|origin| origin.parse::<Origin>())
            .transpose()
            .map_err(|error| invalid("origin", &error))?;
        Ok(NewOperation {
            kind: self.kind.parse().map_err(|error| invalid("kind", &error))?,
            account: self.account,
            operator: self.operator,
            facts: Facts {
                amount,
                payee: self.payee,
                payees,
                count,
                reference: self.reference,
                memo: self.memo,
            },
            origin,
            maker: self.maker,
            creator: Creator::Platform(platform_key),
        })
    }
}

/// An operation.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationView {
    /// Its id.
    pub id: OperationId,
    /// Where it stands.
    pub state: OperationState,
    /// What is to be approved: kind, account, operator and the facts of the kind.
    #[schema(value_type = Object)]
    pub statement: serde_json::Value,
    /// The page that may relay the challenge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Distinct operators that must approve.
    pub approvals_needed: i64,
    /// Who entered it; never one of those who approve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maker: Option<OperatorId>,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// When it can no longer be approved, RFC 3339.
    pub expires_at: String,
    /// When it left the state `created`, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<String>,
    /// The approvals that were accepted; absent where they are not asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<ApprovalView>,
}

impl OperationView {
    pub(super) fn new(operation: &Operation) -> Self {
        Self {
            id: operation.id.clone(),
            state: operation.state,
            statement: operation.statement.to_json(),
            origin: operation.origin.as_ref().map(ToString::to_string),
            approvals_needed: operation.needed,
            maker: operation.maker.clone(),
            created_at: operation.created_at.to_string(),
            expires_at: operation.expires_at.to_string(),
            closed_at: operation.closed_at.map(|at| at.to_string()),
            approvals: Vec::new(),
        }
    }
}

/// An approval that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct ApprovalView {
    /// Who approved.
    pub operator: OperatorId,
    /// Serial number of the operating certificate, hexadecimal.
    pub certificate: String,
    /// When it was accepted, RFC 3339.
    pub accepted_at: String,
    /// The approval, JWS compact; anybody can verify it with the authority's certificate.
    pub approval: String,
}

impl From<Approval> for ApprovalView {
    fn from(approval: Approval) -> Self {
        Self {
            operator: approval.operator,
            certificate: approval.certificate,
            accepted_at: approval.accepted_at.to_string(),
            approval: approval.approval,
        }
    }
}

/// An operation and its first challenge.
#[derive(Debug, Serialize, ToSchema)]
pub struct CreatedAnswer {
    /// The operation.
    pub operation: OperationView,
    /// The challenge for the daemon, JWS compact (`typ: opcert-challenge+jwt`).
    pub challenge: String,
    /// When the challenge expires, RFC 3339.
    pub expires_at: String,
}

/// An operation.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationAnswer {
    /// The operation.
    pub operation: OperationView,
}

/// Creates an operation and its first challenge.
#[utoipa::path(
    post,
    path = "/v1/operations",
    tag = "operations",
    security(("platform-key" = [])),
    params(("idempotency-key" = Option<String>, Header, description = "1 to 128 visible ASCII characters; the same request with it gets the same answer for seven days")),
    request_body = OperationRequest,
    responses(
        (status = 201, body = CreatedAnswer),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "idempotency-conflict", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "statement-invalid", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "token-down, busy, audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn create(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    platform: Platform,
    headers: HeaderMap,
    Json(body): Json<OperationRequest>,
) -> Result<Response, Refused> {
    platform.may(Scope::OperationsWrite)?;
    let idempotency = idempotency(&platform.key, &headers, "POST /v1/operations", &body)?;
    let answer = service
        .operations()
        .create(
            body.parse(platform.key)?,
            idempotency,
            &request_id,
            |operation, challenge| {
                serde_json::to_string(&CreatedAnswer {
                    operation: OperationView::new(operation),
                    challenge: challenge.challenge.clone(),
                    expires_at: challenge.expires_at.to_string(),
                })
            },
        )
        .await?;
    Ok(json_answer(StatusCode::CREATED, answer))
}

/// An answer that was written, now or for the first of several equal requests.
fn json_answer(status: StatusCode, body: String) -> Response {
    (status, [(CONTENT_TYPE, media_type::JSON)], body).into_response()
}

/// Does what may be done twice, and keeps its answer under the idempotency key where there is one:
/// repeated by its key, it is not done again, and the key is good for nothing else.
pub(super) async fn once<F>(
    service: &Service,
    key: Option<Idempotency>,
    status: StatusCode,
    work: F,
) -> Result<String, Problem>
where
    F: Future<Output = Result<String, Problem>>,
{
    let (key, now) = (key.as_ref(), service.clock().now());
    if key.is_some()
        && let Some(kept) = service
            .store()
            .read("find kept answer", move |tx| {
                Box::pin(idempotency::kept::<OperationError>(tx, key))
            })
            .await?
    {
        return Ok(kept);
    }
    let body = work.await?;
    let answer = body.as_str();
    let kept = service
        .store()
        .transaction("keep answer", move |tx| {
            Box::pin(async move {
                let kept = idempotency::kept::<OperationError>(tx, key).await?;
                if kept.is_none() {
                    idempotency::keep(tx, key, status.as_u16(), answer, now).await?;
                }
                Ok::<_, OperationError>(kept)
            })
        })
        .await?;
    Ok(kept.unwrap_or(body))
}

/// The key and what it stands for: the request as it was understood, so that a repetition may
/// order and space its fields in another way.
pub(super) fn idempotency(
    principal: &str,
    headers: &HeaderMap,
    line: &str,
    body: &impl Serialize,
) -> Result<Option<Idempotency>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let key = value
        .to_str()
        .ok()
        .filter(|key| {
            (1..=IDEMPOTENCY_KEY_MAX).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_graphic())
        })
        .ok_or_else(|| {
            Problem::new(
                Code::Malformed,
                "the idempotency-key header must be 1 to 128 visible ASCII characters",
            )
        })?;
    let mut request = format!("{line}\n").into_bytes();
    serde_json::to_writer(&mut request, body).map_err(|error| {
        tracing::error!(%error, "cannot encode a request");
        Problem::new(Code::Internal, "the request could not be encoded")
    })?;
    Ok(Some(Idempotency {
        principal: principal.to_owned(),
        key: key.to_owned(),
        request_hash: hex(&sha256(&request)),
    }))
}

/// An operation, where it stands, and its approvals.
#[utoipa::path(
    get,
    path = "/v1/operations/{id}",
    tag = "operations",
    security(("platform-key" = [])),
    params(("id" = OperationId, Path)),
    responses(
        (status = 200, body = OperationAnswer),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn read(
    State(service): State<Service>,
    platform: Platform,
    Path(id): Path<OperationId>,
) -> Result<Json<OperationAnswer>, Refused> {
    platform.may(Scope::OperationsRead)?;
    let (operation, approvals) = service.operations().find_for_platform(&id).await?;
    let mut view = OperationView::new(&operation);
    view.approvals = approvals.into_iter().map(ApprovalView::from).collect();
    Ok(Json(OperationAnswer { operation: view }))
}

/// Which operations a list shows.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OperationQuery {
    /// Of this account only.
    #[serde(default)]
    pub account: Option<AccountId>,
    /// In this state only.
    #[serde(default)]
    pub state: Option<OperationState>,
    /// `next` of the page before.
    #[serde(default)]
    pub after: Option<OperationId>,
    /// How many at most, 1 to 200. Default: 50.
    #[serde(default)]
    pub limit: Option<i64>,
}

/// A page of operations.
#[derive(Debug, Serialize, ToSchema)]
pub struct OperationsAnswer {
    /// Newest first.
    pub operations: Vec<OperationView>,
    /// For `after`, where there may be more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<OperationId>,
}

/// Operations, newest first.
#[utoipa::path(
    get,
    path = "/v1/operations",
    tag = "operations",
    security(("platform-key" = [])),
    params(OperationQuery),
    responses(
        (status = 200, body = OperationsAnswer),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn list(
    State(service): State<Service>,
    platform: Platform,
    query: Result<Query<OperationQuery>, Problem>,
) -> Result<Json<OperationsAnswer>, Refused> {
    platform.may(Scope::OperationsRead)?;
    let Query(query) = query?;
    let limit = query.limit.unwrap_or(50).clamp(1, 200);
    let search = Search {
        account: query.account,
        state: query.state,
        after: query.after,
        of_platform: true,
    };
    let mut found = service.operations().list(&search, limit + 1).await?;
    let page = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = found.len() > page;
    found.truncate(page);
    let next = found
        .last()
        .filter(|_| more)
        .map(|operation| operation.id.clone());
    Ok(Json(OperationsAnswer {
        operations: found.iter().map(OperationView::new).collect(),
        next,
    }))
}

/// A request for a further challenge.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChallengeRequest {
    /// Who is to approve.
    pub operator: OperatorId,
}

/// A challenge.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChallengeAnswer {
    /// The challenge for the daemon, JWS compact.
    pub challenge: String,
    /// When it expires, RFC 3339.
    pub expires_at: String,
}

impl From<Challenge> for ChallengeAnswer {
    fn from(challenge: Challenge) -> Self {
        Self {
            challenge: challenge.challenge,
            expires_at: challenge.expires_at.to_string(),
        }
    }
}

/// A fresh challenge for an operation that still waits, where the last one expired.
#[utoipa::path(
    post,
    path = "/v1/operations/{id}/challenges",
    tag = "operations",
    security(("platform-key" = [])),
    params(("id" = OperationId, Path), ("idempotency-key" = Option<String>, Header, description = "1 to 128 visible ASCII characters; the same request with it gets the same challenge for seven days")),
    request_body = ChallengeRequest,
    responses(
        (status = 201, body = ChallengeAnswer),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "operation-state, idempotency-conflict", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn challenge(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    platform: Platform,
    Path(id): Path<OperationId>,
    headers: HeaderMap,
    Json(body): Json<ChallengeRequest>,
) -> Result<Response, Refused> {
    platform.may(Scope::OperationsWrite)?;
    let line = format!("POST /v1/operations/{id}/challenges");
    let key = idempotency(&platform.key, &headers, &line, &body)?;
    let answer = service
        .operations()
        .challenge_for_platform(&id, &body.operator, key, &request_id, |challenge| {
            serde_json::to_string(&ChallengeAnswer::from(challenge.clone()))
        })
        .await?;
    Ok(json_answer(StatusCode::CREATED, answer))
}

/// Takes an approval. It needs no credentials beside its own signature.
#[utoipa::path(
    post,
    path = "/v1/operations/{id}/approvals",
    tag = "operations",
    params(("id" = OperationId, Path)),
    request_body(content = String, description = "the approval, JWS compact", content_type = "application/jose"),
    responses(
        (status = 200, body = OperationAnswer),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "operation-state", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "unsupported-media-type", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "approval-invalid, challenge-expired, certificate-expired, certificate-revoked", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn approve(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Path(id): Path<OperationId>,
    body: Raw<Jose>,
) -> Result<Json<OperationAnswer>, Refused> {
    let compact = std::str::from_utf8(&body.bytes)
        .map_err(|_| Problem::new(Code::ApprovalInvalid, "the approval is not text"))?;
    let operation = service
        .operations()
        .approve(&id, compact.trim_ascii_end(), &request_id)
        .await?;
    service.outbox_changed();
    Ok(Json(OperationAnswer {
        operation: OperationView::new(&operation),
    }))
}

/// Takes an operation back before it is approved.
#[utoipa::path(
    post,
    path = "/v1/operations/{id}/cancellation",
    tag = "operations",
    security(("platform-key" = [])),
    params(("id" = OperationId, Path), ("idempotency-key" = Option<String>, Header, description = "1 to 128 visible ASCII characters; without it a repetition changes nothing either")),
    responses(
        (status = 200, body = OperationAnswer),
        (status = 401, description = "unauthenticated", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "operation-state, idempotency-conflict", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn cancel(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    platform: Platform,
    Path(id): Path<OperationId>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    platform.may(Scope::OperationsWrite)?;
    let line = format!("POST /v1/operations/{id}/cancellation");
    let key = idempotency(&platform.key, &headers, &line, &())?;
    let cancelled = once(&service, key, StatusCode::OK, async {
        let by = Canceller::Platform(&platform.key);
        let operation = service.operations().cancel(&id, by, &request_id).await?;
        let answer = OperationAnswer {
            operation: OperationView::new(&operation),
        };
        Ok(serde_json::to_string(&answer).map_err(OperationError::Encode)?)
    });
    let answer = cancelled.await?;
    service.outbox_changed();
    Ok(json_answer(StatusCode::OK, answer))
}
