//! SMS codes and tickets.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Refused;
use crate::account::service::Service;
use crate::account::store::codes::Binding;
use crate::api::extract::Json;
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::ids::{AccountId, ComputerId, OperatorId, RequestId};
use crate::base::secret::SecretText;
use crate::statement::text::Text;

/// A request for an SMS code.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CodeRequest {
    /// The account.
    pub account: AccountId,
    /// The operator.
    pub operator: OperatorId,
    /// The operator's password.
    #[schema(value_type = String, format = Password)]
    pub password: SecretText,
    /// What the code is for.
    pub purpose: Purpose,
    /// The computer the certificate is for.
    pub computer: Computer,
}

/// What an SMS code is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Installing an operating certificate.
    Install,
}

/// A computer.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Computer {
    /// The daemon's own identifier.
    pub id: ComputerId,
    /// What the operator calls it; 1 to 120 characters that can be seen.
    pub name: String,
}

/// A code is on its way.
#[derive(Debug, Serialize, ToSchema)]
pub struct CodeAnswer {
    /// Names the code when it is handed in.
    pub code_id: String,
    /// When the code stops working, RFC 3339.
    pub expires_at: String,
    /// Where it went, with the middle hidden.
    #[schema(example = "+86*******0001")]
    pub sent_to: String,
}

/// Sends an SMS code to the operator's registered number.
#[utoipa::path(
    post,
    path = "/v1/enrolment/codes",
    tag = "enrolment",
    request_body = CodeRequest,
    responses(
        (status = 202, body = CodeAnswer),
        (status = 401, description = "login-failed", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, description = "sms-too-soon", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "sms-unavailable, busy, audit-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn send_code(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Json(body): Json<CodeRequest>,
) -> Result<(StatusCode, Json<CodeAnswer>), Refused> {
    let Purpose::Install = body.purpose;
    let name: Text = body
        .computer
        .name
        .parse()
        .map_err(|error| Problem::new(Code::Malformed, format!("computer.name {error}")))?;
    let binding = Binding {
        account: body.account,
        operator: body.operator,
        computer: body.computer.id,
        computer_name: name.to_string(),
    };
    let sent = service
        .codes()
        .send(binding, body.password, &request_id)
        .await
        .map_err(Problem::from)?;
    let answer = CodeAnswer {
        code_id: sent.id,
        expires_at: sent.expires_at.to_string(),
        sent_to: sent.sent_to,
    };
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

/// A code to be exchanged for a ticket.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TicketRequest {
    /// The id of the code.
    pub code_id: String,
    /// The six digits.
    #[schema(value_type = String, format = Password)]
    pub code: SecretText,
}

/// An enrolment ticket.
#[derive(Debug, Serialize, ToSchema)]
pub struct TicketAnswer {
    /// The ticket, JWS compact (`typ: opcert-ticket+jwt`); good for one certificate.
    pub ticket: String,
    /// When it stops working, RFC 3339.
    pub expires_at: String,
}

/// Exchanges a right code for an enrolment ticket.
#[utoipa::path(
    post,
    path = "/v1/enrolment/tickets",
    tag = "enrolment",
    request_body = TicketRequest,
    responses(
        (status = 201, body = TicketAnswer),
        (status = 422, description = "sms-code-wrong, sms-code-expired, sms-code-spent", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "token-down, busy, audit-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn give_ticket(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Json(body): Json<TicketRequest>,
) -> Result<(StatusCode, Json<TicketAnswer>), Refused> {
    let issued = service
        .enrolment()
        .ticket(&body.code_id, &body.code, &request_id)
        .await
        .map_err(Problem::from)?;
    let answer = TicketAnswer {
        ticket: issued.ticket.expose().to_owned(),
        expires_at: issued.expires_at.to_string(),
    };
    Ok((StatusCode::CREATED, Json(answer)))
}
