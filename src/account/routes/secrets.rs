//! API secrets: people set them and see where they are; computers ask for them.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::approval::{Asked, ToApprove};
use super::enrolment::CodeAnswer;
use super::problem::Refused;
use super::sessions::{SignedIn, source};
use crate::account::secrets::{
    Arrival, KindView, NewSecret, OVERLAP, Overview, RecipientView, Set,
};
use crate::account::service::Service;
use crate::account::store::secrets::{RecipientState, Secret};
use crate::api::extract::{Jose, Json, Path, Raw};
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::ids::{ComputerId, OperatorId, RequestId};
use crate::base::secret::SecretText;
use crate::http::Peer;
use crate::statement::{SecretKind, secret_request};
use crate::wechatpay::MerchantId;

/// A secret that took effect.
#[derive(Debug, Serialize, ToSchema)]
pub struct SecretVersion {
    /// Counts up for each kind.
    pub version: u64,
    /// Who set it.
    pub set_by: OperatorId,
    /// When it took effect, RFC 3339.
    pub set_at: String,
    /// When it is destroyed, for one that was replaced, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<String>,
}

impl SecretVersion {
    fn of(secret: &Secret) -> Self {
        Self {
            version: secret.version.unwrap_or_default(),
            set_by: secret.set_by.clone(),
            set_at: secret.effective_at.unwrap_or(secret.set_at).to_string(),
            ends_at: secret.ends_at.map(|at| at.to_string()),
        }
    }
}

/// A secret that waits for approvals.
#[derive(Debug, Serialize, ToSchema)]
pub struct WaitingSecret {
    /// Who set it.
    pub set_by: OperatorId,
    /// When, RFC 3339.
    pub set_at: String,
    /// When it is destroyed unless it is approved, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_at: Option<String>,
}

/// One kind of secret: that it is there, never what it is.
#[derive(Debug, Serialize, ToSchema)]
pub struct SecretKindView {
    /// Which.
    pub kind: SecretKind,
    /// The current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<SecretVersion>,
    /// The one before, while it is still read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<SecretVersion>,
    /// One that waits for approvals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<WaitingSecret>,
}

impl From<KindView> for SecretKindView {
    fn from(view: KindView) -> Self {
        Self {
            kind: view.kind,
            current: view.current.as_ref().map(SecretVersion::of),
            before: view.before.as_ref().map(SecretVersion::of),
            waiting: view.waiting.map(|secret| WaitingSecret {
                set_by: secret.set_by,
                set_at: secret.set_at.to_string(),
                ends_at: secret.ends_at.map(|at| at.to_string()),
            }),
        }
    }
}

/// How far the current secret of a kind has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArrivalState {
    /// No secret is set.
    None,
    /// The computer may not have it.
    Withheld,
    /// The computer has not asked since it was set.
    Pending,
    /// It was given to a courier.
    Sealed,
    /// The computer has it.
    Held,
}

impl From<Arrival> for ArrivalState {
    fn from(arrival: Arrival) -> Self {
        match arrival {
            Arrival::None => Self::None,
            Arrival::Withheld => Self::Withheld,
            Arrival::Pending => Self::Pending,
            Arrival::Sealed { .. } => Self::Sealed,
            Arrival::Held => Self::Held,
        }
    }
}

/// A key of a computer that asks for secrets.
#[derive(Debug, Serialize, ToSchema)]
pub struct SecretRecipient {
    /// The key's RFC 7638 thumbprint; names it here.
    pub key: String,
    /// The computer.
    pub computer: ComputerId,
    /// What its operators call it.
    pub computer_name: String,
    /// The merchant on it.
    pub merchant: MerchantId,
    /// The operator whose certificate vouched for it.
    pub operator: OperatorId,
    /// Whether it gets secrets.
    pub state: RecipientState,
    /// When it first asked, RFC 3339.
    pub asked_at: String,
    /// When it was last heard of, RFC 3339.
    pub seen_at: String,
    /// Who let it have secrets, or ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// How far the current API secret has come.
    pub api: ArrivalState,
    /// How far the current APIv3 secret has come.
    pub apiv3: ArrivalState,
}

impl From<RecipientView> for SecretRecipient {
    fn from(view: RecipientView) -> Self {
        let recipient = view.recipient;
        Self {
            key: recipient.kid,
            computer: recipient.computer,
            computer_name: view.computer_name,
            merchant: recipient.merchant,
            operator: recipient.operator,
            state: recipient.state,
            asked_at: recipient.asked_at.to_string(),
            seen_at: recipient.seen_at.to_string(),
            decided_by: recipient.decided.and_then(|(_, by)| by),
            api: view.api.into(),
            apiv3: view.apiv3.into(),
        }
    }
}

/// The secrets of the account, and where they are.
#[derive(Debug, Serialize, ToSchema)]
pub struct SecretsAnswer {
    /// The API secret, then the APIv3 secret.
    pub secrets: Vec<SecretKindView>,
    /// Computers that ask for them.
    pub recipients: Vec<SecretRecipient>,
}

impl From<Overview> for SecretsAnswer {
    fn from(overview: Overview) -> Self {
        Self {
            secrets: overview.kinds.into_iter().map(Into::into).collect(),
            recipients: overview.recipients.into_iter().map(Into::into).collect(),
        }
    }
}

/// The secrets of the account: when they were set, by whom, and which computers have them. For its
/// administrators.
#[utoipa::path(
    get,
    path = "/v1/secrets",
    tag = "secrets",
    security(("session" = [])),
    responses(
        (status = 200, body = SecretsAnswer),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn show(
    State(service): State<Service>,
    signed_in: SignedIn,
) -> Result<Json<SecretsAnswer>, Refused> {
    let overview = service.secrets().overview(signed_in.operator()?).await?;
    Ok(Json(overview.into()))
}

/// Sends the super administrator an SMS code for setting a secret of this kind.
#[utoipa::path(
    post,
    path = "/v1/secrets/{kind}/codes",
    tag = "secrets",
    security(("session" = [])),
    params(("kind" = SecretKind, Path)),
    responses(
        (status = 202, body = CodeAnswer),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, description = "sms-too-soon", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "sms-unavailable, audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn send_code(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    signed_in: SignedIn,
    Path(kind): Path<SecretKind>,
) -> Result<(StatusCode, Json<CodeAnswer>), Refused> {
    let sent = service
        .secrets()
        .send_code(signed_in.operator()?, kind, &request_id)
        .await?;
    let answer = CodeAnswer {
        code_id: sent.id,
        expires_at: sent.expires_at.to_string(),
        sent_to: sent.sent_to,
    };
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

/// A secret to be set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSecret {
    /// Exactly 32 characters: digits and letters of ASCII.
    #[schema(value_type = String, format = Password, min_length = 32, max_length = 32)]
    pub secret: SecretText,
    /// The id of the SMS code.
    pub code_id: String,
    /// Its six digits.
    #[schema(value_type = String, format = Password)]
    pub code: SecretText,
    /// The login password, once more.
    #[schema(value_type = String, format = Password)]
    pub password: SecretText,
    /// For how many seconds the secret before is still read: 0 to 604,800. Default: 86,400.
    #[serde(default)]
    pub overlap_seconds: Option<i64>,
}

/// What became of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct SecretOutcome {
    /// Its version, once it is the current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// How many administrators have to approve it first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals_needed: Option<i64>,
}

/// Sets a secret: super administrator only. It can never be read again.
#[utoipa::path(
    put,
    path = "/v1/secrets/{kind}",
    tag = "secrets",
    security(("session" = [])),
    params(("kind" = SecretKind, Path)),
    request_body = SetSecret,
    responses(
        (status = 200, description = "it is the current one", body = SecretOutcome),
        (status = 202, description = "administrators have to approve it first", body = SecretOutcome),
        (status = 401, description = "session-ended, login-failed", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "secret-invalid, sms-code-wrong, sms-code-expired, sms-code-spent", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, description = "login-throttled", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn set(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Extension(peer): Extension<Peer>,
    signed_in: SignedIn,
    Path(kind): Path<SecretKind>,
    Json(body): Json<SetSecret>,
) -> Result<(StatusCode, Json<SecretOutcome>), Refused> {
    let operator = signed_in.operator()?;
    let new = NewSecret {
        kind,
        secret: body.secret,
        overlap_seconds: body.overlap_seconds.unwrap_or(OVERLAP),
    };
    let secrets = service.secrets();
    secrets.check(operator, &new)?;
    service
        .sessions()
        .confirm(&signed_in.0, body.password, source(&peer))
        .await?;
    let set = secrets
        .set(operator, new, &body.code_id, &body.code, &request_id)
        .await?;
    Ok(match set {
        Set::Current { version } => (
            StatusCode::OK,
            Json(SecretOutcome {
                version: Some(version),
                approvals_needed: None,
            }),
        ),
        Set::Waits { approvals } => (
            StatusCode::ACCEPTED,
            Json(SecretOutcome {
                version: None,
                approvals_needed: Some(approvals),
            }),
        ),
    })
}

/// Asks the administrator who is logged in to approve the secret that waits; not the one who set
/// it.
#[utoipa::path(
    post,
    path = "/v1/secrets/{kind}/approval",
    tag = "secrets",
    security(("session" = [])),
    params(("kind" = SecretKind, Path)),
    responses(
        (status = 201, body = ToApprove),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "operation-state", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn ask_administrators(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    signed_in: SignedIn,
    Path(kind): Path<SecretKind>,
) -> Result<Asked, Refused> {
    let asked = service
        .secrets()
        .ask_administrators(signed_in.operator()?, kind, &request_id)
        .await?;
    Ok(ToApprove::asked(asked))
}

/// Takes back a secret that waits for approvals. For administrators.
#[utoipa::path(
    delete,
    path = "/v1/secrets/{kind}/waiting",
    tag = "secrets",
    security(("session" = [])),
    params(("kind" = SecretKind, Path)),
    responses(
        (status = 204),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "operation-state", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn withdraw(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    signed_in: SignedIn,
    Path(kind): Path<SecretKind>,
) -> Result<StatusCode, Refused> {
    service
        .secrets()
        .withdraw(signed_in.operator()?, kind, &request_id)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The password, once more.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordAgain {
    /// The login password.
    #[schema(value_type = String, format = Password)]
    pub password: SecretText,
}

/// Lets a computer's key have the secrets: super administrator only.
#[utoipa::path(
    post,
    path = "/v1/secrets/recipients/{key}/admission",
    tag = "secrets",
    security(("session" = [])),
    params(("key" = String, Path)),
    request_body = PasswordAgain,
    responses(
        (status = 204),
        (status = 401, description = "session-ended, login-failed", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "operation-state", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn admit(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    Extension(peer): Extension<Peer>,
    signed_in: SignedIn,
    Path(key): Path<String>,
    Json(body): Json<PasswordAgain>,
) -> Result<StatusCode, Refused> {
    let operator = signed_in.operator()?;
    service
        .sessions()
        .confirm(&signed_in.0, body.password, source(&peer))
        .await?;
    service.secrets().admit(operator, &key, &request_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends a computer's key: it gets no secret any more. Super administrator only.
#[utoipa::path(
    delete,
    path = "/v1/secrets/recipients/{key}",
    tag = "secrets",
    security(("session" = [])),
    params(("key" = String, Path)),
    responses(
        (status = 204),
        (status = 401, description = "session-ended", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "forbidden, csrf-refused", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "not-found", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "operation-state", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn dismiss(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    signed_in: SignedIn,
    Path(key): Path<String>,
) -> Result<StatusCode, Refused> {
    service
        .secrets()
        .dismiss(signed_in.operator()?, &key, &request_id)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a computer gets.
#[derive(Debug, Serialize, ToSchema)]
pub struct GivenSecrets {
    /// Whether it gets any: `waiting` until the super administrator has let it.
    pub state: RecipientState,
    /// Sealed to its key and signed, oldest first: JWS compact of type `opcert-secret+jwt`.
    pub secrets: Vec<String>,
}

/// Takes a computer's request for the secrets of an account, and gives what it does not have yet.
///
/// The request is signed by an operating certificate of the computer and needs no other
/// credential.
#[utoipa::path(
    post,
    path = "/v1/secrets/requests",
    tag = "secrets",
    request_body(
        content = String,
        content_type = "application/jose",
        description = "The request as compact JWS of type opcert-secret-request+jwt."
    ),
    responses(
        (status = 200, body = GivenSecrets),
        (status = 422, description = "secret-request-invalid, certificate-revoked, certificate-expired", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, description = "limit-reached", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "token-down, busy, audit-unavailable, database-unavailable", body = ProblemDocument, content_type = "application/problem+json"),
    )
)]
pub async fn give(
    State(service): State<Service>,
    Extension(request_id): Extension<RequestId>,
    body: Raw<Jose>,
) -> Result<Json<GivenSecrets>, Refused> {
    let compact = std::str::from_utf8(&body.bytes)
        .ok()
        .map(str::trim)
        .filter(|text| text.len() <= secret_request::MAX)
        .ok_or_else(|| Problem::new(Code::SecretRequestInvalid, "the request is no compact JWS"))?;
    let given = service.secrets().give(compact, &request_id).await?;
    Ok(Json(GivenSecrets {
        state: given.state,
        secrets: given.secrets,
    }))
}
