//! What people are told, and what happened in their account.

use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Refused;
use super::sessions::SignedIn;
use crate::account::manage::ManageError;
use crate::account::service::Service;
use crate::api::extract::{Json, Path, Query};
use crate::api::problem::{Problem, ProblemDocument};
use crate::base::ids::AccountId;

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
    service.manage().read_notice(&id, &session.person).await?;
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
    Query(query): Query<PageQuery>,
) -> Result<Json<EventsAnswer>, Refused> {
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
