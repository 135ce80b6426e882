//! Problems in words for people at a page: what happened and what to do, in their language.
//!
//! The sentences beside each code in `api::problem` speak to programs and to people at a command
//! line; these speak to somebody who filled in a form. A code that no page can meet falls back to
//! those.
//!
//! A [`Fault`] is a problem with a form that was sent: the form is shown again, begins with the
//! problem, and its fields that are wrong say so and refer to it.

use maud::{Markup, html};

use super::i18n::Texts;
use super::parts::marked;
use crate::api::problem::{Code, Problem};
use crate::base::ids::RequestId;

/// What is wrong with a form that was sent.
#[derive(Debug)]
pub struct Fault {
    problem: Box<Problem>,
    /// The fields it is about, by name; the first gets the focus.
    fields: Vec<String>,
    /// What happened and what to do, where the code says less.
    words: Option<(&'static str, &'static str)>,
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Self {
        let field = match problem.code() {
            Code::SmsCodeWrong => Some("code"),
            Code::SecretInvalid => Some("secret"),
            _ => None,
        };
        Self {
            problem: Box::new(problem),
            fields: field.into_iter().map(str::to_owned).collect(),
            words: None,
        }
    }
}

impl Fault {
    /// A problem with these fields.
    pub fn in_fields(problem: Problem, fields: &[&str]) -> Self {
        Self {
            fields: owned(fields),
            words: None,
            problem: Box::new(problem),
        }
    }

    /// A form that cannot have been meant so: what is wrong with it, and what to do.
    pub fn of_form(what: &'static str, remedy: &'static str, fields: &[&str]) -> Self {
        Self {
            problem: Box::new(Problem::new(
                Code::Malformed,
                "the form was not filled in as it asks",
            )),
            fields: owned(fields),
            words: Some((what, remedy)),
        }
    }

    /// What came of asking somebody who is logged in for the password once more.
    pub fn of_password(t: Texts, problem: Problem) -> Self {
        let fault = Self::from(problem);
        if fault.problem.code() != Code::LoginFailed {
            return fault;
        }
        Self {
            fields: owned(&["password"]),
            words: Some((t.error_password(), t.error_password_remedy())),
            ..fault
        }
    }

    /// The problem.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Whether it is about the field `name`, and if so, whether that is where to begin.
    pub fn concerns(&self, name: &str) -> Option<Begins> {
        let place = self.fields.iter().position(|field| *field == name)?;
        Some(if place == 0 {
            Begins::Here
        } else {
            Begins::Elsewhere
        })
    }
}

fn owned(fields: &[&str]) -> Vec<String> {
    fields.iter().map(|&field| field.to_owned()).collect()
}

/// Which field of several wrong ones gets the focus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// This one.
    Here,
    /// Another one.
    Elsewhere,
}

/// The id of what [`note`] shows.
pub const NOTE: &str = "problem";

/// What happened, and what to do.
pub fn explain(t: Texts, code: Code) -> (&'static str, &'static str) {
    match code {
        Code::LoginFailed => (t.error_login(), t.error_login_remedy()),
        Code::SessionEnded => (t.session_over(), t.error_session_remedy()),
        Code::CsrfRefused => (t.error_csrf(), t.error_csrf_remedy()),
        Code::LoginThrottled => (t.error_throttled(), t.error_throttled_remedy()),
        Code::InstallationHeld => (t.held_title(), t.held_lead()),
        Code::Forbidden | Code::NotPermitted => (t.error_forbidden(), t.error_forbidden_remedy()),
        Code::NotFound => (t.error_not_found(), t.error_not_found_remedy()),
        Code::MethodNotAllowed => (t.error_method(), t.error_not_found_remedy()),
        Code::Busy | Code::TokenTimeout | Code::TokenDown | Code::TooSlow => {
            (t.error_busy(), t.error_busy_remedy())
        }
        Code::TooLarge => (t.error_too_large(), t.error_too_large_remedy()),
        Code::Malformed | Code::UnsupportedMediaType => {
            (t.error_malformed(), t.error_malformed_remedy())
        }
        Code::StatementInvalid => (t.error_statement(), t.error_malformed_remedy()),
        Code::SmsCodeWrong => (t.error_code_wrong(), t.error_code_wrong_remedy()),
        Code::SmsCodeExpired => (t.error_code_expired(), t.error_new_code_remedy()),
        Code::SmsCodeSpent => (t.error_code_spent(), t.error_new_code_remedy()),
        Code::SmsTooSoon => (t.error_too_soon(), t.error_too_soon_remedy()),
        Code::SmsUnavailable => (t.error_sms(), t.error_busy_remedy()),
        Code::QuotaComputers => (t.error_quota_computers(), t.error_quota_remedy()),
        Code::QuotaCertificates => (t.error_quota_certificates(), t.error_quota_remedy()),
        Code::TicketInvalid | Code::TicketSpent => (t.error_ticket(), t.error_ticket_remedy()),
        Code::CsrInvalid => (t.error_csr(), t.error_csr_remedy()),
        Code::SecretInvalid => (t.error_secret(), t.error_secret_remedy()),
        Code::RequestState => (t.error_request_state(), t.error_operation_state_remedy()),
        Code::PaperRefused => (t.error_paper(), t.error_paper_remedy()),
        Code::ApprovalInvalid => (t.error_approval(), t.error_approval_remedy()),
        Code::OperationState => (t.error_operation_state(), t.error_operation_state_remedy()),
        Code::ChallengeExpired => (
            t.error_challenge_expired(),
            t.error_challenge_expired_remedy(),
        ),
        Code::CertificateExpired | Code::CertificateRevoked => {
            (t.error_certificate(), t.error_certificate_remedy())
        }
        Code::DatabaseUnavailable => (t.error_database(), t.error_database_remedy()),
        Code::Internal | Code::AuditUnavailable => (t.error_internal(), t.error_internal_remedy()),
        other => other.texts(t.0),
    }
}

/// Whether the problem's own sentence says more than [`explain`] and is safe to show: it names a
/// field or a rule, never what is inside the service.
pub fn detail_helps(code: Code) -> bool {
    matches!(
        code,
        Code::Malformed | Code::StatementInvalid | Code::ApprovalInvalid | Code::PaperRefused
    )
}

/// A problem on a page.
pub fn note(t: Texts, fault: &Fault, request: &RequestId) -> Markup {
    let problem = &fault.problem;
    let (what, remedy) = fault.words.unwrap_or_else(|| explain(t, problem.code()));
    html! {
        div.note.bad id=(NOTE) role="alert" {
            p { strong { (marked(what)) } }
            @if fault.words.is_none() && detail_helps(problem.code()) {
                p lang="en" { (problem.detail()) }
            }
            p { (marked(remedy)) }
            @if let Some(seconds) = problem.retry_after() {
                p { (t.error_wait(seconds)) }
            }
            // For whoever looks into the service's log.
            @if problem.code().status() >= 500 {
                p.small { (t.request_id()) " " code { (request) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::portal::i18n::Language;

    #[test]
    fn both_languages_explain_the_same_codes() {
        for &code in Code::ALL {
            let english = explain(Texts(Language::English), code);
            let chinese = explain(Texts(Language::Chinese), code);
            let falls_back = |said, language| said == code.texts(language);
            assert_eq!(
                falls_back(english, Language::English),
                falls_back(chinese, Language::Chinese),
                "{code}"
            );
            assert_ne!(english, chinese, "{code}");
            assert!(!english.0.is_empty() && !english.1.is_empty());
        }
    }
}
