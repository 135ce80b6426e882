//! Which rule decides, at each kind of consent, and why the others do not.
//!
//! Cedar tells which rules decided, not why another did not. That is found out by asking again:
//! each rule alone, then the parts of its scope alone, then its conditions one after the other
//! until the first that does not hold. This is slow and only ever done for a person who asks.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::question::{Question, View};
use super::rules::{Effect, PolicySet, Rule};
use super::usage::{Left, Tally, Use};
use super::{
    Administration, Caller, ClientPolicy, ConsentRule, NOT_ALLOWED, Usage, Verdict, WechatPayUse,
    refusal,
};
use crate::base::ids::{AccountId, OperatorId};
use crate::base::pkcs11::TokenId;
use crate::statement::kinds::Presence;
use crate::statement::strict::FieldError;
use crate::statement::{Kind, Money, Origin};

/// A request that somebody wonders about; no statement and no challenge is behind it.
#[derive(Debug, Clone)]
pub struct Supposed {
    /// Who would ask.
    pub caller: Caller,
    /// What it is registered for.
    pub policy: Option<ClientPolicy>,
    /// The kind of operation.
    pub kind: Kind,
    /// Of which account.
    pub account: AccountId,
    /// To be approved by which operator.
    pub operator: OperatorId,
    /// Amount in minor units and ISO 4217 code.
    pub amount: Option<(i64, String)>,
    /// Who receives.
    pub payee: Option<String>,
    /// How many pieces.
    pub count: Option<u32>,
    /// The merchant's own number.
    pub reference: Option<String>,
    /// The account service.
    pub service: Origin,
    /// The page that relays.
    pub origin: Option<Origin>,
    /// Where the key is.
    pub token: TokenId,
    /// The certificate, by the hexadecimal SHA-256 of its DER.
    pub certificate: String,
    /// What was approved before on that day; what [`Usage`] has counted where this is absent.
    pub today: Option<Tally>,
    /// When.
    pub now: Timestamp,
}

/// Why a request would be allowed or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Explanation {
    /// Whether it would be allowed, limits included.
    pub allowed: bool,
    /// The consent that would be asked for, where rules allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consent: Option<ConsentRule>,
    /// The rule that decides.
    pub rule: String,
    /// Its reason, a sentence.
    pub reason: String,
    /// What rules say at each kind of consent that was tried.
    pub levels: Vec<Level>,
    /// Every rule about approvals, at the last kind of consent that was tried.
    pub rules: Vec<Considered>,
    /// What is left of the limits that apply.
    pub limits: Vec<Left>,
}

/// What rules say at one kind of consent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Level {
    /// The consent, were it given.
    pub consent: ConsentRule,
    /// Whether that would be enough.
    pub allowed: bool,
    /// The rules that decide; none where no rule allows.
    pub decided: Vec<String>,
    /// Rules that cannot be evaluated.
    pub failed: Vec<String>,
}

/// One rule, and whether it applies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Considered {
    /// The rule.
    #[serde(flatten)]
    pub rule: Rule,
    /// Whether it applies.
    pub applies: bool,
    /// If not, why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

impl Supposed {
    /// Checks that what the kind requires is there, so that no rule fails for want of it.
    pub fn check(&self) -> Result<(), FieldError> {
        if let Some((minor, currency)) = &self.amount {
            Money::new(*minor, currency)?;
        }
        for (field, presence, there) in [
            ("amount", self.kind.amount(), self.amount.is_some()),
            ("payee", self.kind.payee(), self.payee.is_some()),
            ("count", self.kind.count(), self.count.is_some()),
            ("reference", self.kind.reference(), self.reference.is_some()),
        ] {
            match (presence, there) {
                (Presence::Required, false) => return Err(FieldError::at(field, "is missing")),
                (Presence::Forbidden, true) => {
                    return Err(FieldError::at(field, "is not known for this kind"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn counted(&self) -> Use<'_> {
        Use {
            caller: &self.caller,
            certificate: &self.certificate,
            account: &self.account,
            kind: self.kind,
            amount: self
                .amount
                .as_ref()
                .and_then(|(minor, currency)| Money::new(*minor, currency).ok()),
        }
    }
}

/// Explains what `set` would decide, with `usage` behind its limits.
pub fn explain(set: &PolicySet, usage: &Usage, supposed: &Supposed) -> Explanation {
    let counted = supposed.counted();
    let today = supposed
        .today
        .unwrap_or_else(|| usage.today(&counted, supposed.now));
    let view = View {
        kind: supposed.kind,
        account: &supposed.account,
        operator: &supposed.operator,
        amount: supposed
            .amount
            .as_ref()
            .map(|(minor, currency)| (*minor, currency.as_str())),
        payee: supposed.payee.as_deref(),
        payees: None,
        count: supposed.count,
        reference: supposed.reference.as_deref(),
        service: supposed.service.as_str(),
        origin: supposed.origin.as_ref().map(Origin::as_str),
        token: &supposed.token,
        certificate: &supposed.certificate,
        today,
    };
    let question = Question::approval(
        set,
        &supposed.caller,
        supposed.policy.as_ref(),
        &view,
        supposed.now,
    );
    let question = match question {
        Ok(question) => question,
        Err(error) => {
            return Explanation {
                allowed: false,
                consent: None,
                rule: "client-unknown".into(),
                reason: error.to_string(),
                levels: Vec::new(),
                rules: Vec::new(),
                limits: Vec::new(),
            };
        }
    };
    let mut levels = Vec::new();
    let mut last = (
        ConsentRule::None,
        question.with_consent(set, ConsentRule::None),
    );
    for consent in ConsentRule::ALL {
        let verdict = question.with_consent(set, consent);
        levels.push(Level {
            consent,
            allowed: verdict.allowed,
            decided: verdict.decided.clone(),
            failed: verdict
                .failed
                .iter()
                .map(|(rule, error)| format!("{rule}: {error}"))
                .collect(),
        });
        let allowed = verdict.allowed;
        last = (consent, verdict);
        if allowed {
            break;
        }
    }
    let (consent, verdict) = last;
    let rules = set
        .rules()
        .map(|rule| consider(set, &question, rule, consent))
        .filter(|one| one.applies || !is_about_other_things(set, &one.rule))
        .collect();
    let limits = usage.left(&counted, supposed.now);
    let by_rules = verdict.allowed;
    let (rule, reason) = outcome(set, verdict);
    let reached = limits
        .iter()
        .find_map(|left| Some((format!("limit:{}", left.limit), left.reached.clone()?)));
    let (allowed, rule, reason) = match reached {
        Some((rule, reason)) if by_rules => (false, rule, reason),
        _ => (by_rules, rule, reason),
    };
    Explanation {
        allowed,
        consent: by_rules.then_some(consent),
        rule,
        reason,
        levels,
        rules,
        limits,
    }
}

fn outcome(set: &PolicySet, verdict: Verdict) -> (String, String) {
    if verdict.allowed {
        let rule = verdict.decided.into_iter().next().unwrap_or_default();
        let reason = set
            .rule(&rule)
            .and_then(|known| known.reason.clone())
            .unwrap_or_else(|| format!("rule {rule} permits this"));
        return (rule, reason);
    }
    let refused = refusal(set, verdict);
    let reason = if refused.rule == NOT_ALLOWED {
        "no rule allows this, whatever consent is given".to_owned()
    } else {
        refused.reason
    };
    (refused.rule.into_owned(), reason)
}

fn consider(set: &PolicySet, question: &Question, rule: &Rule, consent: ConsentRule) -> Considered {
    let why_not = why_not(set, question, rule, consent);
    Considered {
        rule: rule.clone(),
        applies: why_not.is_none(),
        why_not,
    }
}

/// Why a rule does not apply; `None` where it does.
fn why_not(
    set: &PolicySet,
    question: &Question,
    rule: &Rule,
    consent: ConsentRule,
) -> Option<String> {
    let Some(tree) = tree(set, rule) else {
        return Some("it cannot be taken apart".to_owned());
    };
    let holds = |tree: &Value| holds(set, question, tree, consent);
    for (part, what) in [
        ("principal", "who asks"),
        ("action", "the kind of operation"),
        ("resource", "the certificate"),
    ] {
        let mut scope = bare();
        scope[part] = tree[part].clone();
        if holds(&scope) != Holds::Yes {
            return Some(format!("its scope does not cover {what}"));
        }
    }
    let mut so_far = bare();
    let mut conditions: Vec<Value> = Vec::new();
    for condition in tree["conditions"].as_array().into_iter().flatten() {
        let kind = condition["kind"].as_str().unwrap_or("when");
        let parts = if kind == "when" {
            conjuncts(&condition["body"])
        } else {
            vec![condition["body"].clone()]
        };
        for body in parts {
            let one = json!({ "kind": kind, "body": body });
            conditions.push(one.clone());
            so_far["conditions"] = Value::Array(conditions.clone());
            match holds(&so_far) {
                Holds::Yes => {}
                Holds::No => {
                    let text = text_of(&one);
                    let verdict = if kind == "when" { "is not so" } else { "is so" };
                    return Some(format!("{kind} {text} {verdict}"));
                }
                Holds::Fails(error) => {
                    return Some(format!("{kind} {} fails: {error}", text_of(&one)));
                }
            }
        }
    }
    None
}

#[derive(PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Fails(String),
}

fn holds(set: &PolicySet, question: &Question, tree: &Value, consent: ConsentRule) -> Holds {
    let policy = match cedar_policy::Policy::from_json(None, tree.clone()) {
        Ok(policy) => policy,
        Err(error) => return Holds::Fails(error.to_string()),
    };
    let alone = match cedar_policy::PolicySet::from_policies([policy]) {
        Ok(alone) => alone,
        Err(error) => return Holds::Fails(error.to_string()),
    };
    let verdict = question.alone(set, &alone, consent);
    match verdict.failed.into_iter().next() {
        Some((_, error)) => Holds::Fails(error),
        None if verdict.allowed => Holds::Yes,
        None => Holds::No,
    }
}

fn tree(set: &PolicySet, rule: &Rule) -> Option<Value> {
    let id = cedar_policy::PolicyId::new(&rule.id);
    set.policies.policy(&id)?.to_json().ok()
}

/// A permit for everything.
fn bare() -> Value {
    json!({
        "effect": "permit",
        "principal": { "op": "All" },
        "action": { "op": "All" },
        "resource": { "op": "All" },
        "conditions": [],
    })
}

fn conjuncts(body: &Value) -> Vec<Value> {
    match body.get("&&") {
        Some(and) => {
            let mut all = conjuncts(&and["left"]);
            all.extend(conjuncts(&and["right"]));
            all
        }
        None => vec![body.clone()],
    }
}

/// A condition as Cedar writes it.
fn text_of(condition: &Value) -> String {
    let mut tree = bare();
    tree["conditions"] = json!([condition]);
    let text = cedar_policy::Policy::from_json(None, tree)
        .ok()
        .and_then(|policy| policy.to_cedar());
    let inner = text.as_deref().and_then(|text| {
        let (start, end) = (text.find('{')?, text.rfind('}')?);
        text.get(start..=end)
    });
    inner
        .unwrap_or("{ … }")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether a rule's scope names actions that are no approvals: such a rule is no news to who asks
/// about one.
fn is_about_other_things(set: &PolicySet, rule: &Rule) -> bool {
    let others = Administration::ALL
        .iter()
        .map(|what| what.name())
        .chain(WechatPayUse::ALL.iter().map(|(r#use, _)| r#use.action()))
        .chain(["administer", "wechatpay"]);
    tree(set, rule).is_some_and(|tree| {
        let scope = tree["action"].to_string();
        others
            .into_iter()
            .any(|name| scope.contains(&format!("{name:?}")))
    })
}

/// In what order a person reads rules: what decides first.
pub fn reading_order(rules: &mut [Considered]) {
    rules.sort_by_key(|one| {
        (
            !one.applies,
            one.rule.effect == Effect::Permit,
            one.rule.id.clone(),
        )
    });
}
