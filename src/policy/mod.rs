//! May this caller do this with this key? [`decide`] answers with a value.
//!
//! A yes is a [`Grant`]; it becomes a [`Permit`] once the consent it asks for was given. Every
//! private-key operation of `device` consumes a `Permit`, and only this module can make one:
//! that is how "nothing is signed that policy did not allow" is held by the compiler.
//!
//! WHO DECIDES. Approvals are decided by rules in Cedar: those that ship ([`PolicySet::shipped`])
//! and those of the site. What a program signs on its own account (requests, challenges,
//! certificates) is decided here in Rust and can be widened by no rule. What was not allowed is
//! refused; a `forbid` beats every `permit`; a rule that cannot be evaluated refuses.
//!
//! CONSENT BY EVALUATION. Rules read `context.consent`. The same request is asked about with
//! `none`, then `confirm`, then `confirm-with-pin`, and the first that is allowed is what the
//! grant asks for. So a rule says which consent is enough, not how to ask for it: a request that
//! is allowed without consent prompts nobody, and one that no consent can allow prompts nobody
//! either.
//!
//! LIMITS. How often and how much is said in [`limits`] and counted in [`usage`]; see there for
//! what a restart does.
//!
//! WHY. Each decision carries the name of the rule that made it, in the grant or the refusal, and
//! from there in the audit record and the problem document. [`explain`] answers for every rule.
//!
//! Nothing here does input or output; time is an argument; rules come as texts.

mod client;
pub mod explain;
pub mod limits;
mod live;
mod purpose;
mod question;
mod remembered;
pub mod rules;
pub mod schema;
pub mod usage;

use std::borrow::Cow;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::ids::{ClientName, ComputerId};
use crate::base::pkcs11::KeyRef;
pub use crate::statement::{Consent, ConsentMethod};
use crate::statement::{Origin, Payees, Statement};
use crate::wechatpay::MerchantId;

pub use client::{
    ClientPolicy, ConsentRule, UnknownConsent, UnknownUse, WechatPayRule, WechatPayUse,
};
pub use limits::{Limit, LimitError};
pub use live::Policies;
pub use purpose::{Purpose, SELF_TEST_PREFIX, TOKEN_TEST_MESSAGE};
use question::{Question, Unfit, Verdict, View};
use remembered::{Asked, Outcome};
pub use rules::{Changes, Defaults, Finding, PolicyErrors, PolicySet, Settings, Source};
pub use usage::{Kept, Tally, Usage, Use};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Caller {
    /// A registered client, by the certificate it presented.
    Client(ClientName),
    /// A local user on the control socket, by peer credentials.
    Unix {
        /// Effective user id of the peer process.
        uid: u32,
    },
    /// The program that owns the key, for what it signs on its own account.
    Itself,
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Client(name) => write!(f, "client:{name}"),
            Self::Unix { uid } => write!(f, "uid:{uid}"),
            Self::Itself => f.write_str("self"),
        }
    }
}

/// What is asked.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// What that caller was registered for; `None` where it is not registered.
    pub policy: Option<&'a ClientPolicy>,
    /// The key to use.
    pub key: &'a KeyRef,
    /// What for.
    pub action: Action<'a>,
    /// When.
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub enum Action<'a> {
    /// Sign an approval.
    Approve(Approving<'a>),
    /// Use the key of this WeChat Pay merchant.
    WechatPay(&'a MerchantId, WechatPayUse),
    /// Anything a program signs on its own account.
    Own(Purpose),
}

/// An approval that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Approving<'a> {
    /// Of what.
    pub statement: &'a Statement,
    /// The list of payees that the statement names, for a batch.
    pub payees: Option<&'a Payees>,
    /// The account service that issued the challenge.
    pub service: &'a Origin,
    /// The page that relayed it, where one did.
    pub origin: Option<&'a Origin>,
    /// The certificate that would sign, by the hexadecimal SHA-256 of its DER.
    pub certificate: &'a str,
    /// What was approved today, without this.
    pub today: Tally,
}

impl<'a> Approving<'a> {
    fn view(&self, key: &'a KeyRef) -> View<'a> {
        let statement = self.statement;
        View {
            kind: statement.kind(),
            account: statement.account(),
            operator: statement.operator(),
            amount: statement
                .amount()
                .map(|money| (money.minor_units(), money.currency())),
            payee: statement.payee().map(|text| text.as_str()),
            payees: self.payees,
            count: statement.count(),
            reference: statement.reference().map(|text| text.as_str()),
            service: self.service.as_str(),
            origin: self.origin.map(Origin::as_str),
            token: &key.token,
            certificate: self.certificate,
            today: self.today,
        }
    }
}

/// What a local user may do to the daemon; each is a Cedar action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Administration {
    /// Registers and removes clients.
    Client,
    /// Begins, completes and cancels enrolments.
    Enrol,
    /// Adds and removes WeChat Pay merchants, their certificates, secrets and platform keys.
    Merchant,
    /// Reloads policy.
    Policy,
    /// Hands in what an account service signs: its key sets.
    Service,
    /// Unlocks tokens.
    Token,
}

impl Administration {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Client,
        Self::Enrol,
        Self::Merchant,
        Self::Policy,
        Self::Service,
        Self::Token,
    ];

    /// Its name in rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Enrol => "enrol",
            Self::Merchant => "merchant",
            Self::Policy => "policy",
            Self::Service => "service",
            Self::Token => "token",
        }
    }
}

impl FromStr for Administration {
    type Err = UnknownAdministration;
    fn from_str(text: &str) -> Result<Self, UnknownAdministration> {
        Self::ALL
            .into_iter()
            .find(|what| what.name() == text)
            .ok_or(UnknownAdministration)
    }
}

/// A text that names no [`Administration`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be client, enrol, merchant, policy, service or token")]
pub struct UnknownAdministration;

/// The answer.
#[must_use]
#[derive(Debug)]
pub enum Decision {
    /// Yes, if the consent the grant asks for is given.
    Granted(Grant),
    /// No.
    Refused(Refusal),
}

/// Which rule said no, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The stable name of the rule.
    pub rule: Cow<'static, str>,
    /// A sentence for people.
    pub reason: String,
    /// What kind of no it is.
    pub cause: RefusalCause,
}

/// Whether a no is for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalCause {
    /// As long as the rules are as they are.
    Rule,
    /// Until the limit recovers.
    Limit {
        /// Seconds until then.
        retry_after: u32,
    },
}

/// A yes that may still need a person.
#[must_use]
#[derive(Debug)]
pub struct Grant {
    caller: Caller,
    key: KeyRef,
    purpose: Purpose,
    consent: ConsentRule,
    rule: Cow<'static, str>,
}

impl Grant {
    /// Whether a person must agree first, and how.
    pub fn consent(&self) -> ConsentRule {
        self.consent
    }

    /// The stable name of the rule that said yes.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// The permit, once consent is there. `given` must be [`Grant::consent`] or more.
    pub fn permit(self, given: ConsentRule) -> Result<Permit, Refusal> {
        if given >= self.consent {
            Ok(Permit {
                caller: self.caller,
                key: self.key,
                purpose: self.purpose,
            })
        } else {
            Err(Refusal {
                rule: "consent".into(),
                reason: match self.consent {
                    ConsentRule::ConfirmWithPin => {
                        "a person must confirm this operation with the token's PIN".into()
                    }
                    _ => "a person must confirm this operation".into(),
                },
                cause: RefusalCause::Rule,
            })
        }
    }
}

/// Leave for one private-key operation. Spending it consumes it.
///
/// Nobody but [`decide`], [`decide_own`] and [`own`] can make one:
///
/// ```compile_fail,E0451
/// # use opcert::policy::{Caller, Permit, Purpose};
/// fn forge(caller: Caller, key: opcert::base::pkcs11::KeyRef) -> Permit {
///     Permit { caller, key, purpose: Purpose::Approval }
/// }
/// ```
///
/// and nobody can spend one twice:
///
/// ```compile_fail,E0382
/// # use opcert::{device::Devices, base::key::Scheme, policy::Permit};
/// async fn twice(devices: &Devices, permit: Permit) {
///     let _ = devices.sign(permit, Scheme::Es256, b"one").await;
///     let _ = devices.sign(permit, Scheme::Es256, b"two").await;
/// }
/// ```
#[must_use]
#[derive(Debug)]
pub struct Permit {
    caller: Caller,
    key: KeyRef,
    purpose: Purpose,
}

impl Permit {
    /// Who asked. Operations of different callers take turns.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The one key it is good for.
    pub fn key(&self) -> &KeyRef {
        &self.key
    }

    /// Splits an approval's permit into one for the JWS and one for the CMS signature over the
    /// same payload; any other permit has no second half.
    pub fn with_cms(self) -> (Self, Option<Self>) {
        let cms = (self.purpose == Purpose::Approval).then(|| Self {
            caller: self.caller.clone(),
            key: self.key.clone(),
            purpose: Purpose::ApprovalCms,
        });
        (self, cms)
    }

    /// The one purpose it is good for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }
}

/// The name of the rule that refuses what no rule allows.
pub const NOT_ALLOWED: &str = "not-allowed";

/// The name of the rule that refuses clients that are not registered.
pub const CLIENT_UNKNOWN: &str = "client-unknown";

/// The name of the rule that keeps the administration of the daemon to the control socket.
pub const CONTROL_SOCKET_ONLY: &str = "control-socket-only";

/// The name of the rule that keeps the keys and secrets of merchants from pages.
pub const NO_PAGES: &str = "no-pages";

/// Decides one request by `set`.
pub fn decide(set: &PolicySet, request: &Request<'_>) -> Decision {
    if let Some(decision) = without_rules(request) {
        return decision;
    }
    let asked = Asked::about(set, request);
    let outcome = set.remembered.or_weigh(asked, || match pose(set, request) {
        Ok(question) => match request.action {
            Action::Approve(_) => approve(set, &question),
            Action::WechatPay(..) | Action::Own(_) => {
                conclude(set, question.plain(set), ConsentRule::None)
            }
        },
        Err(error) => unfit(&error),
    });
    let purpose = match request.action {
        Action::Approve(_) => Purpose::Approval,
        Action::WechatPay(_, r#use) => r#use.purpose(),
        Action::Own(purpose) => purpose,
    };
    decided(request.caller, request.key, purpose, outcome)
}

/// What is decided before any rule is asked; `None` where rules decide.
fn without_rules(request: &Request<'_>) -> Option<Decision> {
    match (request.action, request.caller) {
        (Action::Own(purpose), caller) => Some(decide_own(caller, request.key, purpose)),
        (Action::Approve(_), Caller::Itself) => Some(refuse(
            "no-self-approval",
            "the daemon approves nothing on its own account",
        )),
        (Action::WechatPay(..), Caller::Itself) => Some(refuse(
            "wechatpay-needs-merchant",
            "a WeChat Pay key is used only for a client that may use it",
        )),
        (_, Caller::Client(name)) if request.policy.is_none() => Some(refuse(
            CLIENT_UNKNOWN,
            format!("client {name} is not registered"),
        )),
        (Action::Approve(_) | Action::WechatPay(..), _) => None,
    }
}

/// The request as rules are asked about it: the one way from a request to a question, for whoever
/// decides and for whoever explains.
fn pose(set: &PolicySet, request: &Request<'_>) -> Result<Question, Unfit> {
    let (caller, policy, now) = (request.caller, request.policy, request.now);
    match request.action {
        Action::Approve(approving) => {
            Question::approval(set, caller, policy, &approving.view(request.key), now)
        }
        Action::WechatPay(merchant, r#use) => {
            let token = &request.key.token;
            Question::merchant(set, caller, policy, merchant, r#use, token, now)
        }
        Action::Own(_) => Err(Unfit::no_rules()),
    }
}

/// What was found out, about this key.
fn decided(caller: &Caller, key: &KeyRef, purpose: Purpose, outcome: Outcome) -> Decision {
    match outcome {
        Outcome::Granted(consent, rule) => Decision::Granted(Grant {
            caller: caller.clone(),
            key: key.clone(),
            purpose,
            consent,
            rule: rule.into(),
        }),
        Outcome::Refused(refusal) => Decision::Refused(refusal),
    }
}

fn approve(set: &PolicySet, question: &Question) -> Outcome {
    let mut last = None;
    for consent in ConsentRule::ALL {
        let verdict = question.with_consent(set, consent);
        if verdict.allowed {
            return conclude(set, verdict, consent);
        }
        last = Some((verdict, consent));
    }
    match last {
        Some((verdict, consent)) => conclude(set, verdict, consent),
        None => refused(NOT_ALLOWED, "no rule allows this"),
    }
}

fn conclude(set: &PolicySet, verdict: Verdict, consent: ConsentRule) -> Outcome {
    if verdict.allowed {
        let rule = verdict.decided.into_iter().next().unwrap_or_default();
        Outcome::Granted(consent, rule)
    } else {
        Outcome::Refused(refusal(set, verdict))
    }
}

fn unfit(error: &Unfit) -> Outcome {
    refused("request", error.to_string())
}

fn refused(rule: &'static str, reason: impl Into<String>) -> Outcome {
    Outcome::Refused(Refusal {
        rule: rule.into(),
        reason: reason.into(),
        cause: RefusalCause::Rule,
    })
}

/// The rule behind a no: one that failed, else one that forbids, else the absence of any.
fn refusal(set: &PolicySet, verdict: Verdict) -> Refusal {
    let (rule, reason) = if let Some((rule, error)) = verdict.failed.into_iter().next() {
        let reason = format!("rule {rule} cannot be evaluated, so nothing is allowed: {error}");
        (rule, reason)
    } else if let Some(rule) = verdict.decided.into_iter().next() {
        let reason = set
            .rule(&rule)
            .and_then(|known| known.reason.clone())
            .unwrap_or_else(|| format!("rule {rule} forbids this"));
        (rule, reason)
    } else {
        (NOT_ALLOWED.to_owned(), "no rule allows this".to_owned())
    };
    Refusal {
        rule: rule.into(),
        reason,
        cause: RefusalCause::Rule,
    }
}

/// Whether `caller` may administer this computer's daemon; the name of the rule that says so.
pub fn decide_administration(
    set: &PolicySet,
    caller: &Caller,
    what: Administration,
    computer: &ComputerId,
    now: Timestamp,
) -> Result<String, Refusal> {
    let question = match Question::administration(set, caller, what.name(), computer, now) {
        Ok(question) => question,
        Err(error) => {
            return Err(Refusal {
                rule: "request".into(),
                reason: error.to_string(),
                cause: RefusalCause::Rule,
            });
        }
    };
    let verdict = question.plain(set);
    if verdict.allowed {
        Ok(verdict.decided.into_iter().next().unwrap_or_default())
    } else {
        Err(refusal(set, verdict))
    }
}

/// Decides what a program signs on its own account; no rule can widen it.
pub fn decide_own(caller: &Caller, key: &KeyRef, purpose: Purpose) -> Decision {
    let granted = |rule: &'static str| {
        Decision::Granted(Grant {
            caller: caller.clone(),
            key: key.clone(),
            purpose,
            consent: ConsentRule::None,
            rule: rule.into(),
        })
    };
    match (purpose, caller) {
        (Purpose::Approval | Purpose::ApprovalCms, _) => refuse(
            "approval-needs-statement",
            "an approval is signed only for a statement",
        ),
        (
            Purpose::WechatPayRequest
            | Purpose::WechatPayStart
            | Purpose::WechatPayDecrypt
            | Purpose::WechatPayCheck,
            _,
        ) => refuse(
            "wechatpay-needs-merchant",
            "a WeChat Pay key is used only for a client that may use it",
        ),
        (_, Caller::Itself) => granted("own"),
        (
            Purpose::CertificateRequest | Purpose::SelfTest | Purpose::TokenTest,
            Caller::Unix { .. },
        ) => granted("administrator"),
        // A page asks through its browser; the person before the screen decides.
        (Purpose::CertificateRequest, Caller::Client(_)) => Decision::Granted(Grant {
            caller: caller.clone(),
            key: key.clone(),
            purpose,
            consent: ConsentRule::Confirm,
            rule: "page".into(),
        }),
        _ => refuse("not-yours", "only the program itself signs this"),
    }
}

fn refuse(rule: &'static str, reason: impl Into<String>) -> Decision {
    Decision::Refused(Refusal {
        rule: rule.into(),
        reason: reason.into(),
        cause: RefusalCause::Rule,
    })
}

/// Leave for the program to sign on its own account with its own key; refused for anything that
/// needs a statement.
pub fn own(key: &KeyRef, purpose: Purpose) -> Result<Permit, Refusal> {
    match decide_own(&Caller::Itself, key, purpose) {
        Decision::Granted(grant) => grant.permit(ConsentRule::None),
        Decision::Refused(refusal) => Err(refusal),
    }
}

#[cfg(test)]
mod tests;
