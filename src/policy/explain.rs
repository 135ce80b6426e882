//! Which rule decides, at each kind of consent, and why the others do not.
//!
//! Cedar tells which rules decided, not why another did not. That is found out by asking again:
//! each rule alone, then the parts of its scope alone, then its conditions one after the other
//! until the first that does not hold. This is slow and only ever done for a person who asks.
//!
//! Nothing is decided here: an explanation permits nothing.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::question::Question;
use super::rules::{Effect, PolicySet, Rule};
use super::usage::{Left, Tally, Use};
use super::{
    Action, Administration, Approving, CLIENT_UNKNOWN, CONTROL_SOCKET_ONLY, Caller, ClientPolicy,
    ConsentRule, Decision, NO_PAGES, NOT_ALLOWED, Purpose, Refusal, Request, Usage, Verdict,
    WechatPayUse, pose, refusal, without_rules,
};
use crate::base::ids::ComputerId;
use crate::base::pkcs11::KeyRef;
use crate::statement::{Origin, Payees, Statement};
use crate::wechatpay::MerchantId;

/// A request that somebody wonders about; no challenge is behind it.
#[derive(Debug, Clone)]
pub struct Supposed {
    /// Who would ask.
    pub caller: Caller,
    /// What it is registered for.
    pub policy: Option<ClientPolicy>,
    /// The page that would relay, or that the browser would speak for.
    pub page: Option<Origin>,
    /// What would be asked.
    pub what: What,
    /// The key that would be used.
    pub key: KeyRef,
    /// When.
    pub now: Timestamp,
}

/// What would be asked.
#[derive(Debug, Clone)]
pub enum What {
    /// An approval.
    Approve(Box<SupposedApproval>),
    /// The use of a merchant's key.
    WechatPay(MerchantId, WechatPayUse),
    /// A change of this computer's daemon.
    Administer(Administration, ComputerId),
}

/// An approval that would be asked for.
#[derive(Debug, Clone)]
pub struct SupposedApproval {
    /// Of what.
    pub statement: Statement,
    /// The list of payees that the statement names, for a batch.
    pub payees: Option<Payees>,
    /// The account service.
    pub service: Origin,
    /// The certificate, by the hexadecimal SHA-256 of its DER.
    pub certificate: String,
    /// What was approved before on that day; what [`Usage`] has counted where this is absent.
    pub today: Option<Tally>,
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
    /// Every rule about such requests, at the last kind of consent that was tried.
    pub rules: Vec<Considered>,
    /// What is left of the limits that apply.
    pub limits: Vec<Left>,
}

/// What rules say at one kind of consent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Level {
    /// The consent, were it given; absent where rules are not asked about consent: only approvals
    /// have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<ConsentRule>,
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

impl What {
    /// The Cedar action.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Approve(approval) => approval.statement.kind().name(),
            Self::WechatPay(_, r#use) => r#use.action(),
            Self::Administer(what, _) => what.name(),
        }
    }

    fn group(&self) -> Group {
        match self {
            Self::Approve(_) => Group::Approve,
            Self::WechatPay(..) => Group::WechatPay,
            Self::Administer(..) => Group::Administer,
        }
    }
}

/// Explains what `set` would decide, with `usage` behind its limits.
pub fn explain(set: &PolicySet, usage: &Usage, supposed: &Supposed) -> Explanation {
    let Supposed {
        caller,
        policy,
        page,
        what,
        key,
        now,
    } = supposed;
    if let (Caller::Client(name), None) = (caller, policy) {
        return refused(CLIENT_UNKNOWN, format!("client {name} is not registered"));
    }
    match (what, page) {
        (What::Approve(approval), _) => {
            let counted = approval.counted(caller);
            let today = approval
                .today
                .unwrap_or_else(|| usage.today(&counted, *now));
            let action = Action::Approve(approval.approving(page.as_ref(), today));
            let request = Request {
                caller,
                policy: policy.as_ref(),
                key,
                action,
                now: *now,
            };
            limited(by_rules(set, what, &request), usage.left(&counted, *now))
        }
        (What::WechatPay(..), Some(_)) => refused(
            NO_PAGES,
            "keys and secrets of merchants are for programs, not for pages",
        ),
        (What::WechatPay(merchant, r#use), None) => {
            let request = Request {
                caller,
                policy: policy.as_ref(),
                key,
                action: Action::WechatPay(merchant, *r#use),
                now: *now,
            };
            by_rules(set, what, &request)
        }
        (What::Administer(Administration::Enrol, _), Some(_))
            if matches!(caller, Caller::Client(_)) =>
        {
            let request = Request {
                caller,
                policy: policy.as_ref(),
                key,
                action: Action::Own(Purpose::CertificateRequest),
                now: *now,
            };
            by_rules(set, what, &request)
        }
        (What::Administer(administration, computer), _) => match caller {
            Caller::Unix { .. } => {
                match Question::administration(set, caller, administration.name(), computer, *now) {
                    Ok(question) => by_question(set, what, &question),
                    Err(error) => refused("request", error.to_string()),
                }
            }
            Caller::Client(_) | Caller::Itself => refused(
                CONTROL_SOCKET_ONLY,
                "only users of the control socket administer the daemon",
            ),
        },
    }
}

impl SupposedApproval {
    fn counted<'a>(&'a self, caller: &'a Caller) -> Use<'a> {
        Use {
            caller,
            certificate: &self.certificate,
            account: self.statement.account(),
            kind: self.statement.kind(),
            amount: self.statement.amount(),
        }
    }

    fn approving<'a>(&'a self, page: Option<&'a Origin>, today: Tally) -> Approving<'a> {
        Approving {
            statement: &self.statement,
            payees: self.payees.as_ref(),
            service: &self.service,
            origin: page,
            certificate: &self.certificate,
            today,
        }
    }
}

/// What is decided without rules, or by them.
fn by_rules(set: &PolicySet, what: &What, request: &Request<'_>) -> Explanation {
    match without_rules(request) {
        Some(Decision::Granted(grant)) => Explanation {
            allowed: true,
            consent: Some(grant.consent()),
            rule: grant.rule().to_owned(),
            reason: "a page may have a key made where the person at this computer agrees".into(),
            levels: Vec::new(),
            rules: Vec::new(),
            limits: Vec::new(),
        },
        Some(Decision::Refused(refusal)) => of_refusal(refusal),
        None => match pose(set, request) {
            Ok(question) => by_question(set, what, &question),
            Err(error) => refused("request", error.to_string()),
        },
    }
}

fn by_question(set: &PolicySet, what: &What, question: &Question) -> Explanation {
    let tried: Vec<Option<ConsentRule>> = match what {
        What::Approve(_) => ConsentRule::ALL.into_iter().map(Some).collect(),
        What::WechatPay(..) | What::Administer(..) => vec![None],
    };
    let mut levels = Vec::new();
    let mut last = None;
    for consent in tried {
        let verdict = question.ask(set, &set.policies, consent);
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
        last = Some((consent, verdict));
        if allowed {
            break;
        }
    }
    let Some((consent, verdict)) = last else {
        return refused(NOT_ALLOWED, "no rule allows this");
    };
    let asked = Asked {
        set,
        question,
        group: what.group(),
        consent,
    };
    let rules = set
        .rules()
        .map(|rule| asked.consider(rule))
        .filter(|one| one.applies || asked.is_about(&one.rule))
        .collect();
    let allowed = verdict.allowed;
    let (rule, reason) = outcome(set, what, verdict);
    Explanation {
        allowed,
        consent: allowed.then_some(consent.unwrap_or(ConsentRule::None)),
        rule,
        reason,
        levels,
        rules,
        limits: Vec::new(),
    }
}

/// With what is left of the limits, which refuse what rules allow.
fn limited(explanation: Explanation, limits: Vec<Left>) -> Explanation {
    let reached = limits
        .iter()
        .find_map(|left| Some((format!("limit:{}", left.limit), left.reached.clone()?)));
    match reached {
        Some((rule, reason)) if explanation.allowed => Explanation {
            allowed: false,
            rule,
            reason,
            limits,
            ..explanation
        },
        _ => Explanation {
            limits,
            ..explanation
        },
    }
}

fn refused(rule: &str, reason: impl Into<String>) -> Explanation {
    Explanation {
        allowed: false,
        consent: None,
        rule: rule.to_owned(),
        reason: reason.into(),
        levels: Vec::new(),
        rules: Vec::new(),
        limits: Vec::new(),
    }
}

fn of_refusal(refusal: Refusal) -> Explanation {
    refused(&refusal.rule, refusal.reason)
}

fn outcome(set: &PolicySet, what: &What, verdict: Verdict) -> (String, String) {
    if verdict.allowed {
        let rule = verdict.decided.into_iter().next().unwrap_or_default();
        let reason = set
            .rule(&rule)
            .and_then(|known| known.reason.clone())
            .unwrap_or_else(|| format!("rule {rule} permits this"));
        return (rule, reason);
    }
    let refused = refusal(set, verdict);
    let reason = match what {
        What::Approve(_) if refused.rule == NOT_ALLOWED => {
            "no rule allows this, whatever consent is given".to_owned()
        }
        _ => refused.reason,
    };
    (refused.rule.into_owned(), reason)
}

/// A question, and the consent that it was last asked with.
struct Asked<'a> {
    set: &'a PolicySet,
    question: &'a Question,
    group: Group,
    consent: Option<ConsentRule>,
}

/// The groups of actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Approve,
    WechatPay,
    Administer,
}

impl Group {
    /// That of an action, or of a group by its own name.
    fn of(action: &str) -> Self {
        let is_use = |(r#use, _): (WechatPayUse, _)| r#use.action() == action;
        let is_administration = |what: Administration| what.name() == action;
        if action == "wechatpay" || WechatPayUse::ALL.into_iter().any(is_use) {
            Self::WechatPay
        } else if action == "administer" || Administration::ALL.into_iter().any(is_administration) {
            Self::Administer
        } else {
            Self::Approve
        }
    }

    /// What its actions are called.
    fn action(self) -> &'static str {
        match self {
            Self::Approve => "the kind of operation",
            Self::WechatPay => "the use of the key",
            Self::Administer => "what is to be changed",
        }
    }

    /// What its resources are called.
    fn resource(self) -> &'static str {
        match self {
            Self::Approve => "the certificate",
            Self::WechatPay => "the merchant",
            Self::Administer => "this computer",
        }
    }
}

impl Asked<'_> {
    fn consider(&self, rule: &Rule) -> Considered {
        let why_not = self.why_not(rule);
        Considered {
            rule: rule.clone(),
            applies: why_not.is_none(),
            why_not,
        }
    }

    /// Why a rule does not apply; `None` where it does.
    fn why_not(&self, rule: &Rule) -> Option<String> {
        let Some(tree) = tree(self.set, rule) else {
            return Some("it cannot be taken apart".to_owned());
        };
        for (part, what) in [
            ("principal", "who asks"),
            ("action", self.group.action()),
            ("resource", self.group.resource()),
        ] {
            let mut scope = bare();
            scope[part] = tree[part].clone();
            if self.holds(&scope) != Holds::Yes {
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
                match self.holds(&so_far) {
                    Holds::Yes => {}
                    Holds::No => {
                        let text = text_of(&one["body"]);
                        let verdict = if kind == "when" { "is not so" } else { "is so" };
                        return Some(format!("{kind} {text} {verdict}"));
                    }
                    Holds::Fails(error) => {
                        return Some(format!("{kind} {} fails: {error}", text_of(&one["body"])));
                    }
                }
            }
        }
        None
    }

    fn holds(&self, tree: &Value) -> Holds {
        let policy = match cedar_policy::Policy::from_json(None, tree.clone()) {
            Ok(policy) => policy,
            Err(error) => return Holds::Fails(error.to_string()),
        };
        let alone = match cedar_policy::PolicySet::from_policies([policy]) {
            Ok(alone) => alone,
            Err(error) => return Holds::Fails(error.to_string()),
        };
        let verdict = self.question.ask(self.set, &alone, self.consent);
        match verdict.failed.into_iter().next() {
            Some((_, error)) => Holds::Fails(error),
            None if verdict.allowed => Holds::Yes,
            None => Holds::No,
        }
    }

    /// Whether a rule's scope names no action, or one of the group that is asked about: others are
    /// no news to who asks.
    fn is_about(&self, rule: &Rule) -> bool {
        let mut named = Vec::new();
        if let Some(tree) = tree(self.set, rule) {
            ids(&tree["action"], &mut named);
        }
        named.is_empty() || named.iter().any(|action| Group::of(action) == self.group)
    }
}

/// The ids of entities in a scope.
fn ids(scope: &Value, found: &mut Vec<String>) {
    match scope {
        Value::Array(items) => items.iter().for_each(|item| ids(item, found)),
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(id) if name == "id" => found.push(id.clone()),
                    member => ids(member, found),
                }
            }
        }
        _ => {}
    }
}

#[derive(PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Fails(String),
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
fn text_of(body: &Value) -> String {
    let mut tree = bare();
    // As `when` whatever it is: Cedar writes `unless` as the opposite.
    tree["conditions"] = json!([{ "kind": "when", "body": body }]);
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
