//! Certificates and computers of the account of whoever is logged in: lists, deletion, break-glass.

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::approval::ToApprove;
use super::problem::Refused;
use super::sessions::{SignedIn, source};
use crate::account::issuing::RevocationReason;
use crate::account::key_proof::KeyProof;
use crate::account::manage::{BreakGlass, Deletion, Entry};
use crate::account::service::Service;
use crate::account::store::certificates::{Certificate, Search};
use crate::api::extract::{Json, Path, Query};
use crate::api::problem::{Code, Problem, ProblemDocument};
use crate::base::ids::{ComputerId, OperatorId, RequestId};
use crate::base::secret::SecretText;
use crate::http::Peer;

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
    Query(query): Query<CertificateQuery>,
) -> Result<Json<CertificatesAnswer>, Refused> {
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
        .await?;
    Ok(match deletion {
        Deletion::Done(revoked) => (
            StatusCode::OK,
            Json(DeletionAnswer {
                revoked,
                approval: None,
            }),
        ),
        Deletion::ToApprove(asked) => (
            StatusCode::ACCEPTED,
            Json(DeletionAnswer {
                revoked: Vec::new(),
                approval: Some(ToApprove::new(*asked)),
            }),
        ),
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
        .await?;
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
        .await?;
    let revoked = service
        .manage()
        .break_glass(operator, &target, reason, &request_id)
        .await?;
    Ok(Json(DeletionAnswer {
        revoked,
        approval: None,
    }))
}
