//! SMS codes and tickets.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::approval::{Asked, ToApprove};
use super::problem::Refused;
use super::sessions::source;
use crate::account::enrolment::IssuedTicket;
use crate::account::service::Service;
use crate::account::store::codes::CodeUse;
use crate::api::extract::{Jose, Json, Path, Raw};
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::ids::{AccountId, ComputerId, OperationId, OperatorId, RequestId};
use crate::base::secret::SecretText;
use crate::http::Peer;
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
    /// The serial number of the token that will hold the key; 1 to 120 characters.
    #[serde(default)]
    pub token_serial: Option<String>,
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
        (status = 429, description = "sms-too-soon, login-throttled", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "sms-unavailable, busy, audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn send_code(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Extension(peer): Extension<Peer>,
    Json(body): Json<CodeRequest>,
) -> Result<(StatusCode, Json<CodeAnswer>), Refused> {
    let Purpose::Install = body.purpose;
    let name: Text = body
        .computer
        .name
        .parse()
        .map_err(|error| Problem::new(Code::Malformed, format!("computer.name {error}")))?;
    let token_serial = body
        .computer
        .token_serial
        .map(|serial| serial.parse::<Text>())
        .transpose()
        .map_err(|error| Problem::new(Code::Malformed, format!("computer.token_serial {error}")))?;
    let purpose = CodeUse::Install {
        computer: body.computer.id,
        computer_name: name.to_string(),
        token_serial: token_serial.map(|serial| serial.to_string()),
    };
    let sent = service
        .codes()
        .send(
            &body.account,
            &body.operator,
            body.password,
            purpose,
            source(&peer),
            &request_id,
        )
        .await?;
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
    /// Whether an administrator of the account has to approve the installation first.
    pub held: bool,
}

impl From<IssuedTicket> for TicketAnswer {
    fn from(issued: IssuedTicket) -> Self {
        Self {
            ticket: issued.ticket.expose().to_owned(),
            expires_at: issued.expires_at.to_string(),
            held: issued.held,
        }
    }
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
        (status = 503, description = "token-down, busy, audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
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
        .await?;
    Ok((StatusCode::CREATED, Json(issued.into())))
}

/// A certificate to be renewed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewalRequest {
    /// Its serial number, hexadecimal.
    pub certificate: String,
}

/// Asks for the renewal of a certificate in the last third of its validity. Whoever has its key
/// proves that with the approval of the challenge; to anybody else the answer is of no use.
#[utoipa::path(
    post,
    path = "/v1/enrolment/renewals",
    tag = "enrolment",
    request_body = RenewalRequest,
    responses(
        (status = 201, body = ToApprove),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "renewal-too-early, operation-state", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "token-down, busy, audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn begin_renewal(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Json(body): Json<RenewalRequest>,
) -> Result<Asked, Refused> {
    let serial = body.certificate.to_ascii_lowercase();
    let asked = service
        .enrolment()
        .begin_renewal(&serial, &request_id)
        .await?;
    Ok(ToApprove::asked(asked))
}

/// Takes the approval of a renewal and gives the ticket for the successor.
#[utoipa::path(
    post,
    path = "/v1/enrolment/renewals/{id}/ticket",
    tag = "enrolment",
    params(("id" = OperationId, Path)),
    request_body(content = String, description = "the approval, JWS compact", content_type = "application/jose"),
    responses(
        (status = 201, body = TicketAnswer),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "operation-state, ticket-spent", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "approval-invalid, challenge-expired, certificate-expired, certificate-revoked", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "token-down, busy, audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn finish_renewal(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Path(id): Path<OperationId>,
    body: Raw<Jose>,
) -> Result<(StatusCode, Json<TicketAnswer>), Refused> {
    let compact = std::str::from_utf8(&body.bytes)
        .map_err(|_| Problem::new(Code::ApprovalInvalid, "the approval is not text"))?;
    let issued = service
        .enrolment()
        .finish_renewal(&id, compact.trim_ascii_end(), &request_id)
        .await?;
    Ok((StatusCode::CREATED, Json(issued.into())))
}
