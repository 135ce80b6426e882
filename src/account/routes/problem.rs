//! What each domain error is to the outside: stable code, sentence, status.
//!
//! Faults of this service and of its token are logged with their whole chain and answered with
//! one sentence, as their details are nobody else's business.

use axum::http::HeaderValue;
use axum::http::header::WWW_AUTHENTICATE;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use crate::account::codes::CodeError;
use crate::account::enrolment::{Candidate, EnrolmentError};
use crate::account::idempotency::IdempotencyConflict;
use crate::account::issuing::IssuingError;
use crate::account::logins::LoginError;
use crate::account::manage::ManageError;
use crate::account::operations::OperationError;
use crate::account::passwords::PasswordError;
use crate::account::recovery::RequestError;
use crate::account::secrets::SecretError;
use crate::account::sessions::SessionError;
use crate::account::signer::SignError;
use crate::account::store::StoreError;
use crate::account::vault::VaultError;
use crate::api::problem::{Code, Problem};
use crate::audit::AuditError;
use crate::base::x509::{PathError, X509Error};
use crate::device::DeviceError;
use crate::statement::SecretRequestError;
use crate::statement::certified::CertifiedError;

/// A refusal: a problem and, where credentials are missing, what to send.
#[derive(Debug)]
pub struct Refused {
    problem: Problem,
    scheme: Option<&'static str>,
}

impl Refused {
    /// Credentials are missing or wrong; `scheme` is the `WWW-Authenticate` value.
    pub fn unauthenticated(scheme: &'static str, detail: &'static str) -> Self {
        Self {
            problem: Problem::new(Code::Unauthenticated, detail),
            scheme: Some(scheme),
        }
    }
}

impl<E: Into<Problem>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self {
            problem: error.into(),
            scheme: None,
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = self.problem.into_response();
        if let Some(scheme) = self.scheme {
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        response
    }
}

/// After so many seconds it makes sense to ask a database again that did not answer.
const DATABASE_RETRY: u32 = 2;

/// Logs a fault of ours and gives what the outside learns of it.
fn fault(code: Code, detail: &'static str, error: &(dyn std::error::Error + 'static)) -> Problem {
    let mut chain = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        chain.push_str(": ");
        chain.push_str(&source.to_string());
        next = source.source();
    }
    tracing::error!(code = code.as_str(), error = %chain, "{detail}");
    Problem::new(code, detail)
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        if error.may_pass() {
            let problem = fault(
                Code::DatabaseUnavailable,
                "the database did not answer",
                &error,
            );
            return problem.with_retry_after(DATABASE_RETRY);
        }
        fault(
            Code::Internal,
            "the database answered what it should not",
            &error,
        )
    }
}

impl From<PasswordError> for Problem {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => {
                Self::new(Code::Busy, "too many log-ins are being checked").with_retry_after(2)
            }
            PasswordError::Length => Self::new(Code::LoginFailed, error.to_string()),
            PasswordError::Hash { .. } => {
                fault(Code::Internal, "the password could not be checked", &error)
            }
        }
    }
}

/// What a fault of the service's token is to the outside.
fn device_code(error: &DeviceError) -> Code {
    match error {
        DeviceError::Busy { .. } => Code::Busy,
        DeviceError::Timeout { .. } => Code::TokenTimeout,
        DeviceError::BadSignature { .. } => Code::SignatureInvalid,
        _ => Code::TokenDown,
    }
}

/// A fault of the service's token that may be over soon.
fn token_fault(
    code: Code,
    detail: &'static str,
    error: &(dyn std::error::Error + 'static),
) -> Problem {
    fault(code, detail, error)
        .with_action("Try again shortly; the operator of the service finds the cause in its log.")
        .with_retry_after(5)
}

impl From<SignError> for Problem {
    fn from(error: SignError) -> Self {
        let code = match &error {
            SignError::Device { source } => device_code(source),
            SignError::Refused { .. } | SignError::Encode { .. } => Code::Internal,
        };
        token_fault(code, "the service could not sign", &error)
    }
}

impl From<VaultError> for Problem {
    fn from(error: VaultError) -> Self {
        let code = match &error {
            VaultError::Device(source) => device_code(source),
            VaultError::Refused(_) | VaultError::Jwe(_) | VaultError::Row(_) => Code::Internal,
        };
        token_fault(code, "the service could not open a secret", &error)
    }
}

impl From<IssuingError> for Problem {
    fn from(error: IssuingError) -> Self {
        match error {
            IssuingError::Sign(error) => error.into(),
            IssuingError::Store(error) => error.into(),
            error => fault(Code::Internal, "the authority could not issue", &error),
        }
    }
}

fn audit(error: &AuditError) -> Problem {
    fault(
        Code::AuditUnavailable,
        "the audit record could not be written, so nothing was done",
        error,
    )
    .with_action("Try again later; the operator of the service finds the cause in its log.")
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        let text = error.to_string();
        match error {
            LoginError::Wrong => Self::new(Code::LoginFailed, text),
            LoginError::Throttled { retry_after } => {
                Self::new(Code::LoginThrottled, text).with_retry_after(whole_seconds(retry_after))
            }
            LoginError::Password(error) => error.into(),
            LoginError::Store(error) => error.into(),
        }
    }
}

impl From<SessionError> for Problem {
    fn from(error: SessionError) -> Self {
        let text = error.to_string();
        match error {
            SessionError::Login(error) => error.into(),
            SessionError::Ended => Self::new(Code::SessionEnded, text),
            SessionError::Csrf => Self::new(Code::CsrfRefused, text),
            SessionError::Audit(error) => audit(&error),
            SessionError::Store(error) => error.into(),
        }
    }
}

impl From<ManageError> for Problem {
    fn from(error: ManageError) -> Self {
        let text = error.to_string();
        match error {
            ManageError::CertificateUnknown { .. }
            | ManageError::NothingOnComputer { .. }
            | ManageError::NoticeUnknown
            | ManageError::InstallationUnknown => Self::new(Code::NotFound, text)
                .with_action("See what there is in the list of the account."),
            ManageError::RevokedAlready { .. } => {
                Self::new(Code::CertificateRevoked, text).with_action("Nothing is left to do.")
            }
            ManageError::NotYours { .. } | ManageError::NotAdministrator => {
                Self::new(Code::Forbidden, text).with_action("Ask an administrator of the account.")
            }
            ManageError::Operation(error) => error.into(),
            ManageError::Audit(error) => audit(&error),
            ManageError::Store(error) => error.into(),
        }
    }
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        let text = error.to_string();
        match error {
            RequestError::Unknown => Self::new(Code::NotFound, text)
                .with_action("See what there is with GET /v1/requests."),
            RequestError::Open | RequestError::State { .. } => Self::new(Code::RequestState, text),
            RequestError::PaperMissing { .. } => Self::new(Code::RequestState, text)
                .with_action("Send in the photocopy and the document first."),
            RequestError::SameNumber => Self::new(Code::Malformed, text)
                .with_action("Name the number that codes are to go to."),
            RequestError::Paper { .. } => Self::new(Code::PaperRefused, text),
            RequestError::Forbidden { .. } => {
                Self::new(Code::Forbidden, text).with_action("Ask an administrator of the account.")
            }
            RequestError::Seal(error) => fault(Code::Internal, "a paper cannot be read", &error),
            RequestError::Operation(error) => error.into(),
            RequestError::Audit(error) => audit(&error),
            RequestError::Store(error) => error.into(),
        }
    }
}

impl From<SecretError> for Problem {
    fn from(error: SecretError) -> Self {
        let text = error.to_string();
        match error {
            SecretError::NotSuperAdministrator => Self::new(Code::Forbidden, text)
                .with_action("Ask the super administrator of the account."),
            SecretError::NotAdministrator => {
                Self::new(Code::Forbidden, text).with_action("Ask an administrator of the account.")
            }
            SecretError::Form => Self::new(Code::SecretInvalid, text).with_action(
                "Give the 32 digits and letters that are set on the merchant platform.",
            ),
            SecretError::Overlap => Self::new(Code::Malformed, text),
            SecretError::Code(error) => error.into(),
            SecretError::NothingWaits { .. } | SecretError::RecipientState { .. } => {
                Self::new(Code::OperationState, text)
                    .with_action("See how things stand with GET /v1/secrets.")
            }
            SecretError::RecipientUnknown => Self::new(Code::NotFound, text)
                .with_action("See what there is with GET /v1/secrets."),
            SecretError::Request(SecretRequestError::Certified(CertifiedError::Certificate(
                X509Error::Path(PathError::Expired),
            ))) => Self::new(Code::CertificateExpired, text),
            SecretError::CertificateRevoked { .. } => Self::new(Code::CertificateRevoked, text),
            SecretError::Request(_)
            | SecretError::Audience
            | SecretError::CertificateUnknown
            | SecretError::Stale
            | SecretError::OtherRecipient
            | SecretError::Version { .. } => Self::new(Code::SecretRequestInvalid, text),
            SecretError::TooMany { .. } => Self::new(Code::LimitReached, text)
                .with_action("Remove merchants that are not used on that computer, or wait.")
                .with_retry_after(3600),
            SecretError::Seal(error) => {
                fault(Code::Internal, "the secret could not be sealed", &error)
            }
            SecretError::Vault(error) => error.into(),
            SecretError::Sign(error) => error.into(),
            SecretError::Operation(error) => error.into(),
            SecretError::Audit(error) => audit(&error),
            SecretError::Store(error) => error.into(),
        }
    }
}

impl From<CodeError> for Problem {
    fn from(error: CodeError) -> Self {
        let text = error.to_string();
        match error {
            CodeError::Login(error) => error.into(),
            CodeError::TooSoon { retry_after } => {
                Self::new(Code::SmsTooSoon, text).with_retry_after(whole_seconds(retry_after))
            }
            CodeError::Wrong { .. } => Self::new(Code::SmsCodeWrong, text),
            CodeError::Expired { .. } => Self::new(Code::SmsCodeExpired, text),
            CodeError::Spent => Self::new(Code::SmsCodeSpent, text),
            CodeError::Sms(error) => fault(Code::SmsUnavailable, "the SMS cannot be sent", &error),
            CodeError::Audit(error) => audit(&error),
            CodeError::Store(error) => error.into(),
        }
    }
}

/// Seconds to wait, never too few.
fn whole_seconds(wait: std::time::Duration) -> u32 {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

impl From<EnrolmentError> for Problem {
    fn from(error: EnrolmentError) -> Self {
        let text = error.to_string();
        match error {
            EnrolmentError::Code(error) => error.into(),
            EnrolmentError::Ticket(_)
            | EnrolmentError::TicketUnknown
            | EnrolmentError::TicketEnded
            | EnrolmentError::LoginClosed => Self::new(Code::TicketInvalid, text),
            EnrolmentError::TicketSpent => Self::new(Code::TicketSpent, text),
            EnrolmentError::Held => Self::new(Code::InstallationHeld, text).with_retry_after(60),
            EnrolmentError::CodePurpose => Self::new(Code::SmsCodeWrong, text)
                .with_action("Ask for a code for an installation."),
            EnrolmentError::NotInForce { .. } => Self::new(Code::NotFound, text)
                .with_action("Install a new certificate with `opcert install`."),
            EnrolmentError::TooEarly { .. } => Self::new(Code::RenewalTooEarly, text),
            EnrolmentError::Renewed => Self::new(Code::OperationState, text)
                .with_action("Use the successor; `opcert list` shows it."),
            EnrolmentError::Operation(error) => (*error).into(),
            EnrolmentError::Request(_) | EnrolmentError::RequestKey => {
                Self::new(Code::CsrInvalid, text)
            }
            EnrolmentError::NotAttested => Self::new(Code::KeyNotAttested, text),
            EnrolmentError::KeyReused => Self::new(Code::CsrInvalid, text)
                .with_action("Generate a new key; no key is certified twice."),
            EnrolmentError::Computers { candidates, .. } => Self::new(Code::QuotaComputers, text)
                .with_action(could_go(
                    "Delete the certificates of a computer",
                    &candidates,
                )),
            EnrolmentError::Certificates { candidates, .. } => {
                Self::new(Code::QuotaCertificates, text)
                    .with_action(could_go("Delete a certificate", &candidates))
            }
            EnrolmentError::Sign(error) => error.into(),
            EnrolmentError::Issuing(error) => error.into(),
            EnrolmentError::Audit(error) => audit(&error),
            EnrolmentError::Store(error) => error.into(),
        }
    }
}

/// Names what could go at the quota: owner, computer, last use.
fn could_go(what: &str, candidates: &[Candidate]) -> String {
    let day = |at: Timestamp| at.strftime("%Y-%m-%d");
    let named: Vec<String> = candidates
        .iter()
        .map(
            |Candidate {
                 certificate,
                 computer,
             }| {
                let used = match certificate.last_used_at {
                    Some(at) => format!("last used {}", day(at)),
                    None => format!("not used since {}", day(certificate.issued_at)),
                };
                format!(
                    "{} of {} on \"{computer}\", {used}",
                    certificate.serial, certificate.operator
                )
            },
        )
        .collect();
    format!(
        "{what} that is no longer used, in the portal under Operating Certificate. Least recently \
         used first: {}.",
        named.join("; ")
    )
}

impl From<IdempotencyConflict> for Problem {
    fn from(error: IdempotencyConflict) -> Self {
        Self::new(Code::IdempotencyConflict, error.to_string())
    }
}

impl From<OperationError> for Problem {
    fn from(error: OperationError) -> Self {
        let text = error.to_string();
        match error {
            OperationError::OperatorUnknown { .. } => Self::new(Code::StatementInvalid, text)
                .with_action("Name an account and an operator that exist."),
            OperationError::Statement(_) => Self::new(Code::StatementInvalid, text)
                .with_action("Correct the field that is named and create the operation again."),
            OperationError::IdempotencyConflict(error) => error.into(),
            OperationError::Unknown { .. } => Self::new(Code::NotFound, text),
            OperationError::State { .. } | OperationError::TooManyChallenges => {
                Self::new(Code::OperationState, text)
            }
            OperationError::NotYours => {
                Self::new(Code::Forbidden, text).with_action("Ask an administrator of the account.")
            }
            OperationError::OtherOperator => Self::new(Code::Forbidden, text)
                .with_action("Ask the operator whom the operation names."),
            OperationError::Maker { .. }
            | OperationError::NotAdministrator { .. }
            | OperationError::ApprovedAlready { .. } => {
                Self::new(Code::Forbidden, text).with_action("Ask another operator of the account.")
            }
            OperationError::SameComputer { .. } => Self::new(Code::Forbidden, text)
                .with_action("Have it approved with a certificate on another computer."),
            OperationError::Effect { .. } => Self::new(Code::OperationState, text)
                .with_action("Begin again with what you wanted to do."),
            OperationError::Approval(_)
            | OperationError::Mismatch { .. }
            | OperationError::ChallengeUnknown
            | OperationError::CertificateUnknown => Self::new(Code::ApprovalInvalid, text),
            OperationError::ChallengeExpired { .. } => Self::new(Code::ChallengeExpired, text),
            OperationError::CertificateRevoked { .. } => Self::new(Code::CertificateRevoked, text),
            OperationError::CertificateExpired => Self::new(Code::CertificateExpired, text),
            OperationError::Sign(error) => error.into(),
            OperationError::Audit(error) => audit(&error),
            OperationError::Encode(error) => fault(Code::Internal, "the answer failed", &error),
            OperationError::Store(error) => error.into(),
        }
    }
}
