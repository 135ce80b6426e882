//! From a request that somebody wonders about to an explanation, for the daemon that has the
//! registrations and for the command line that has only files.

use jiff::Timestamp;

use super::problem::{Code, Problem};
use super::types::{ExplainPolicy, PolicyExplained};
use crate::base::pkcs11::TokenId;
use crate::enrol::Installed;
use crate::policy::explain::{Supposed, explain, reading_order};
use crate::policy::{Caller, ClientPolicy, PolicySet, Tally, Usage};
use crate::statement::Origin;
use crate::statement::kinds::Presence;

/// What a daemon adds to the request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    /// What the client is registered for, where it is.
    pub policy: Option<&'a ClientPolicy>,
    /// The certificate that would sign, where one fits.
    pub installed: Option<&'a Installed>,
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
    supposed
        .check()
        .map_err(|error| Problem::new(Code::Malformed, error.to_string()))?;
    let mut explanation = explain(set, usage, &supposed);
    reading_order(&mut explanation.rules);
    Ok(PolicyExplained {
        caller: supposed.caller.to_string(),
        account: supposed.account,
        operator: supposed.operator,
        token: supposed.token.to_string(),
        certificate: supposed.certificate,
        explanation,
    })
}

fn suppose(
    asked: &ExplainPolicy,
    known: Known<'_>,
    own_uid: u32,
    now: Timestamp,
) -> Result<Supposed, Problem> {
    let wrong = |field: &str, problem: &dyn std::fmt::Display| {
        Problem::new(Code::Malformed, format!("{field}: {problem}"))
    };
    let caller = match &asked.client {
        Some(name) => Caller::Client(name.clone()),
        None => Caller::Unix {
            uid: asked.uid.unwrap_or(own_uid),
        },
    };
    let as_if = asked.consent.is_some() || asked.kinds.is_some();
    let policy = match known.policy {
        None if !as_if => None,
        registered => {
            let registered = registered.cloned().unwrap_or_default();
            Some(ClientPolicy {
                consent: asked.consent.unwrap_or(registered.consent),
                kinds: asked.kinds.clone().or(registered.kinds),
                wechatpay: registered.wechatpay,
            })
        }
    };
    let origin = |field: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => text
            .parse::<Origin>()
            .map(Some)
            .map_err(|error| wrong(field, &error)),
    };
    let example = |field: &str| format!("example-{field}");
    let fill = |given: &Option<String>, presence: Presence, field: &str| {
        given
            .clone()
            .or_else(|| (presence == Presence::Required).then(|| example(field)))
    };
    let amount = match (asked.amount, &asked.currency) {
        (Some(minor), Some(currency)) => Some((minor, currency.clone())),
        (None, None) => None,
        (Some(_), None) => return Err(wrong("currency", &"is missing")),
        (None, Some(_)) => return Err(wrong("amount", &"is missing")),
    };
    let today = (asked.count_today.is_some() || asked.sum_today.is_some()).then(|| Tally {
        count: asked.count_today.unwrap_or(0),
        sum: asked.sum_today.unwrap_or(0),
    });
    let identity = known.installed.map(|installed| &installed.identity);
    let parsed = |text: &str| Problem::new(Code::Internal, format!("{text} is no example"));
    Ok(Supposed {
        caller,
        policy,
        kind: asked.kind,
        account: match (&asked.account, identity) {
            (Some(account), _) => account.clone(),
            (None, Some(identity)) => identity.account.clone(),
            (None, None) => "example".parse().map_err(|_| parsed("account"))?,
        },
        operator: match (&asked.operator, identity) {
            (Some(operator), _) => operator.clone(),
            (None, Some(identity)) => identity.operator.clone(),
            (None, None) => "example".parse().map_err(|_| parsed("operator"))?,
        },
        amount,
        payee: fill(&asked.payee, asked.kind.payee(), "payee"),
        count: asked
            .count
            .or((asked.kind.count() == Presence::Required).then_some(1)),
        reference: fill(&asked.reference, asked.kind.reference(), "reference"),
        service: match (origin("service", &asked.service)?, known.installed) {
            (Some(service), _) => service,
            (None, Some(installed)) => installed.service.clone(),
            (None, None) => "https://service.example"
                .parse()
                .map_err(|_| parsed("service"))?,
        },
        origin: origin("origin", &asked.origin)?,
        token: known.installed.map_or_else(
            || TokenId {
                module: "example".into(),
                label: "example".into(),
                serial: "0".into(),
            },
            |installed| installed.key.token.clone(),
        ),
        certificate: known.installed.map_or_else(
            || "0".repeat(64),
            |installed| installed.fingerprint().to_owned(),
        ),
        today,
        now: match &asked.at {
            None => now,
            Some(text) => text
                .parse()
                .map_err(|error: jiff::Error| wrong("at", &error))?,
        },
    })
}
