//! Installations that wait for an administrator.

use axum::Extension;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::approval::{Asked, ToApprove};
use super::problem::Refused;
use super::sessions::SignedIn;
use crate::account::service::Service;
use crate::api::extract::{Json, Path};
use crate::api::problem::ProblemDocument;
use crate::base::ids::{ComputerId, Jti, OperatorId, RequestId};

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
) -> Result<Asked, Refused> {
    let asked = service
        .manage()
        .release_installation(signed_in.operator()?, &id, &request_id)
        .await?;
    Ok(ToApprove::asked(asked))
}
