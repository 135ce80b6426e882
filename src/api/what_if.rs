//! What the policy would say to a request that nobody makes, and why: for the daemon that has the
//! registrations and for the command line that has only files.
//!
//! Here the request is put together of what was said of it; how rules are asked and their answer is
//! explained is [`crate::policy::explain`]'s, and nothing here permits anything.
//!
//! What is asked is checked by what checks the real thing: a statement is a [`Statement`], a list of
//! payees fits it, and rules are asked the very question that the pipeline would ask.

use jiff::Timestamp;

use super::problem::{Code, Problem};
use super::types::{ExplainPolicy, PolicyExplained};
use crate::base::ids::ComputerId;
use crate::base::pkcs11::{KeyId, KeyRef, TokenId};
use crate::enrol::Installed;
use crate::policy::explain::{Supposed, SupposedApproval, What, explain, reading_order};
use crate::policy::{Administration, Caller, ClientPolicy, PolicySet, Tally, Usage, WechatPayUse};
use crate::statement::kinds::Presence;
use crate::statement::{Facts, Kind, Origin, PayeeList, Payees, Statement};
use crate::wechatpay::MerchantId;

/// What a daemon adds to the request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    /// What the client is registered for, where it is.
    pub policy: Option<&'a ClientPolicy>,
    /// The certificate that would sign, where one fits.
    pub installed: Option<&'a Installed>,
    /// The token of the merchant's keys, where it is installed.
    pub merchant_token: Option<&'a TokenId>,
    /// This computer.
    pub computer: Option<&'a ComputerId>,
}

/// Puts the request together and explains it.
pub fn explained(
    set: &PolicySet,
    usage: &Usage,
    asked: &ExplainPolicy,
    known: Known<'_>,
    own_uid: u32,
    now: Timestamp,
) -> Result<PolicyExplained, Problem> {
    let supposed = suppose(asked, known, own_uid, now)?;
    let mut explanation = explain(set, usage, &supposed);
    reading_order(&mut explanation.rules);
    let answer = PolicyExplained {
        caller: supposed.caller.to_string(),
        action: supposed.what.action().to_owned(),
        account: None,
        operator: None,
        certificate: None,
        merchant: None,
        token: None,
        computer: None,
        explanation,
    };
    let token = Some(supposed.key.token.to_string());
    Ok(match supposed.what {
        What::Approve(approval) => PolicyExplained {
            account: Some(approval.statement.account().clone()),
            operator: Some(approval.statement.operator().clone()),
            certificate: Some(approval.certificate),
            token,
            ..answer
        },
        What::WechatPay(merchant, _) => PolicyExplained {
            merchant: Some(merchant),
            token,
            ..answer
        },
        What::Administer(_, computer) => PolicyExplained {
            computer: Some(computer),
            ..answer
        },
    })
}

/// What is asked about, by the fields that say so.
enum Subject<'a> {
    Approval(Kind),
    WechatPay(&'a MerchantId, WechatPayUse),
    Administration(Administration),
}

fn subject(asked: &ExplainPolicy) -> Result<Subject<'_>, Problem> {
    let needed = |what: &'static str| Problem::new(Code::Malformed, what);
    let subject = match (asked.kind, asked.r#use, asked.administration) {
        (Some(kind), None, None) => Subject::Approval(kind),
        (None, Some(r#use), None) => match &asked.merchant {
            Some(merchant) => Subject::WechatPay(merchant, r#use),
            None => return Err(needed("merchant: is missing")),
        },
        (None, None, Some(administration)) => Subject::Administration(administration),
        _ => return Err(needed("one of kind, use and administration is needed")),
    };
    if !matches!(subject, Subject::WechatPay(..)) && asked.merchant.is_some() {
        return Err(foreign("merchant"));
    }
    if !matches!(subject, Subject::Approval(_)) {
        for (field, there) in [
            ("amount", asked.amount.is_some()),
            ("currency", asked.currency.is_some()),
            ("payee", asked.payee.is_some()),
            ("payees", asked.payees.is_some()),
            ("count", asked.count.is_some()),
            ("reference", asked.reference.is_some()),
            ("account", asked.account.is_some()),
            ("operator", asked.operator.is_some()),
            ("service", asked.service.is_some()),
            ("count_today", asked.count_today.is_some()),
            ("sum_today", asked.sum_today.is_some()),
        ] {
            if there {
                return Err(foreign(field));
            }
        }
    }
    Ok(subject)
}

fn foreign(field: &str) -> Problem {
    Problem::new(
        Code::Malformed,
        format!("{field}: is not known for such a request"),
    )
}

fn wrong(field: &str, problem: &dyn std::fmt::Display) -> Problem {
    Problem::new(Code::Malformed, format!("{field}: {problem}"))
}

/// A value that stands for whatever would be there.
fn example<T: std::str::FromStr>(text: &str) -> Result<T, Problem> {
    text.parse()
        .map_err(|_| Problem::new(Code::Internal, format!("{text} is no example")))
}

fn suppose(
    asked: &ExplainPolicy,
    known: Known<'_>,
    own_uid: u32,
    now: Timestamp,
) -> Result<Supposed, Problem> {
    let caller = match &asked.client {
        Some(name) => Caller::Client(name.clone()),
        None => Caller::Unix {
            uid: asked.uid.unwrap_or(own_uid),
        },
    };
    let as_if = asked.consent.is_some() || asked.kinds.is_some() || asked.wechatpay.is_some();
    let policy = match known.policy {
        None if !as_if => None,
        registered => {
            let registered = registered.cloned().unwrap_or_default();
            Some(ClientPolicy {
                consent: asked.consent.unwrap_or(registered.consent),
                kinds: asked.kinds.clone().or(registered.kinds),
                wechatpay: asked.wechatpay.clone().unwrap_or(registered.wechatpay),
            })
        }
    };
    let (what, key) = match subject(asked)? {
        Subject::Approval(kind) => (
            What::Approve(Box::new(approval(asked, kind, known)?)),
            known.installed.map(|installed| installed.key.clone()),
        ),
        Subject::WechatPay(merchant, r#use) => (
            What::WechatPay(merchant.clone(), r#use),
            known.merchant_token.cloned().map(of_token),
        ),
        Subject::Administration(administration) => {
            let computer = match known.computer {
                Some(computer) => computer.clone(),
                None => example("example")?,
            };
            (What::Administer(administration, computer), None)
        }
    };
    Ok(Supposed {
        caller,
        policy,
        page: origin("origin", &asked.origin)?,
        what,
        key: key.unwrap_or_else(|| {
            of_token(TokenId {
                module: "example".into(),
                label: "example".into(),
                serial: "0".into(),
            })
        }),
        now: match &asked.at {
            None => now,
            Some(text) => text
                .parse()
                .map_err(|error: jiff::Error| wrong("at", &error))?,
        },
    })
}

/// Rules see the token of a key, and no more of it.
fn of_token(token: TokenId) -> KeyRef {
    KeyRef {
        token,
        id: KeyId::random(),
    }
}

fn origin(field: &str, text: &Option<String>) -> Result<Option<Origin>, Problem> {
    text.as_ref()
        .map(|text| text.parse().map_err(|error| wrong(field, &error)))
        .transpose()
}

fn approval(
    asked: &ExplainPolicy,
    kind: Kind,
    known: Known<'_>,
) -> Result<SupposedApproval, Problem> {
    let identity = known.installed.map(|installed| &installed.identity);
    let refused = |error: crate::statement::strict::FieldError| {
        Problem::new(Code::Malformed, error.to_string())
    };
    let list = match (&asked.payees, &asked.currency) {
        (None, _) => None,
        (Some(_), None) => return Err(wrong("currency", &"is missing")),
        (Some(payees), Some(currency)) => Some(PayeeList::new(payees, currency).map_err(refused)?),
    };
    let amount = match (
        asked.amount.or(list.as_ref().map(PayeeList::sum)),
        &asked.currency,
    ) {
        (Some(minor), Some(currency)) => Some((minor, currency.clone())),
        (None, None) => None,
        (Some(_), None) => return Err(wrong("currency", &"is missing")),
        (None, Some(_)) => return Err(wrong("amount", &"is missing")),
    };
    let fill = |given: &Option<String>, presence: Presence, field: &str| {
        given
            .clone()
            .or_else(|| (presence == Presence::Required).then(|| format!("example-{field}")))
    };
    let count = match (asked.count, &list) {
        (Some(count), _) => Some(i64::from(count)),
        (None, Some(list)) => i64::try_from(list.count()).ok(),
        (None, None) => (kind.count() == Presence::Required).then_some(1),
    };
    let facts = Facts {
        amount,
        payee: match list {
            Some(_) => asked.payee.clone(),
            None => fill(&asked.payee, kind.payee(), "payee"),
        },
        payees: list.as_ref().map(|list| list.digest().to_string()),
        count,
        reference: fill(&asked.reference, kind.reference(), "reference"),
        memo: fill(&None, kind.memo(), "memo"),
    };
    let account = match (&asked.account, identity) {
        (Some(account), _) => account.clone(),
        (None, Some(identity)) => identity.account.clone(),
        (None, None) => example("example")?,
    };
    let operator = match (&asked.operator, identity) {
        (Some(operator), _) => operator.clone(),
        (None, Some(identity)) => identity.operator.clone(),
        (None, None) => example("example")?,
    };
    let statement = Statement::new(kind, account, operator, facts).map_err(refused)?;
    let payees = Payees::of(&statement, asked.payees.as_deref()).map_err(refused)?;
    let today = (asked.count_today.is_some() || asked.sum_today.is_some()).then(|| Tally {
        count: asked.count_today.unwrap_or(0),
        sum: asked.sum_today.unwrap_or(0),
    });
    Ok(SupposedApproval {
        statement,
        payees,
        service: match (origin("service", &asked.service)?, known.installed) {
            (Some(service), _) => service,
            (None, Some(installed)) => installed.service.clone(),
            (None, None) => example("https://service.example")?,
        },
        certificate: known.installed.map_or_else(
            || "0".repeat(64),
            |installed| installed.fingerprint().to_owned(),
        ),
        today,
    })
}
