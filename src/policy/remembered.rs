//! Decisions that a set made before, so that the same question is not weighed twice.
//!
//! WHAT A DECISION DEPENDS ON. On the rules, and on what they can read: who asks and how it was
//! registered, the action, the resource, and of the context what some rule names ([`Reads`]). All
//! of that is the question here, byte for byte; what no rule names (a payee, the time, what was
//! approved today) is left out, as it can change nothing. The rules of a set never change, so each
//! set has a memory of its own, and other rules begin with an empty one.
//!
//! Where it cannot be told what a rule reads (it takes the context as a whole, or names something
//! that is not listed here) nothing is remembered at all, and each question is weighed.
//!
//! Weighing the rules that ship takes some 30 to 50 µs, as much as a signature of a fast token;
//! looking an answer up takes one or two.
//!
//! BOUNDS. [`MOST`] answers, each under the SHA-256 of its question; past that all are forgotten.
//! Rules that read what differs with each request gain nothing, and lose the time of a look-up.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cedar_policy as cedar;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::question::{Moment, View};
use super::rules::PolicySet;
use super::{Action, Caller, ClientPolicy, ConsentRule, Refusal, Request};
use crate::base::encoding::sha256;
use crate::base::pkcs11::TokenId;

/// Most answers of one set. Each takes some 200 bytes.
const MOST: usize = 1_024;

/// What the context of a request has that is in every question: the kind is the action too, and the
/// consent is what is asked for.
const ALWAYS: [&str; 2] = ["kind", "consent"];

/// What else it may have, as the schema says.
const CONTEXT: [&str; 14] = [
    "service",
    "origin",
    "time",
    "date",
    "hour",
    "minute",
    "weekday",
    "today",
    "amount",
    "currency",
    "payee",
    "payees",
    "count",
    "reference",
];

/// What of the context some rule of a set may read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Reads(u32);

impl Reads {
    /// All there is and may ever be; whoever reads it gets no answer that was remembered.
    const EVERYTHING: Self = Self(u32::MAX);

    /// What this rule may read, by its syntax tree. In doubt, everything: that costs time only.
    pub fn of(policy: &cedar::Policy) -> Self {
        policy
            .to_json()
            .map_or(Self::EVERYTHING, |tree| Self::in_tree(&tree))
    }

    fn in_tree(tree: &Value) -> Self {
        match tree {
            Value::Array(items) => items.iter().map(Self::in_tree).collect(),
            Value::Object(members) => members
                .iter()
                .map(|(name, member)| match (name.as_str(), member) {
                    // An attribute of the context: its name is beside it.
                    ("." | "has", Value::Object(access))
                        if access.get("left").is_some_and(is_context) =>
                    {
                        access
                            .get("attr")
                            .and_then(Value::as_str)
                            .map_or(Self::EVERYTHING, Self::attribute)
                    }
                    // The context as a whole, to be compared or put into something.
                    ("Var", Value::String(variable)) if variable == "context" => Self::EVERYTHING,
                    (_, member) => Self::in_tree(member),
                })
                .collect(),
            _ => Self::default(),
        }
    }

    /// An attribute of the context; one that is not listed may be anything.
    fn attribute(name: &str) -> Self {
        if ALWAYS.contains(&name) {
            return Self::default();
        }
        let place = CONTEXT.iter().position(|known| *known == name);
        place.map_or(Self::EVERYTHING, |place| Self(1 << place))
    }

    /// Whether some rule may read this.
    pub fn has(self, name: &str) -> bool {
        self.0 & Self::attribute(name).0 != 0
    }

    /// Whether it is known what rules read, so that an answer can be good for another request.
    fn is_known(self) -> bool {
        self != Self::EVERYTHING
    }

    /// Both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<Self> for Reads {
    fn from_iter<I: IntoIterator<Item = Self>>(all: I) -> Self {
        all.into_iter().fold(Self::default(), Self::and)
    }
}

fn is_context(tree: &Value) -> bool {
    tree.get("Var").and_then(Value::as_str) == Some("context")
}

/// The SHA-256 of all that a decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Asked([u8; 32]);

impl Asked {
    /// About a request; `None` where nothing may be remembered of it.
    pub fn about(set: &PolicySet, request: &Request<'_>) -> Option<Self> {
        let mut asked = Parts::begin(set.reads, request.caller, request.policy)?;
        match request.action {
            Action::Approve(approving) => asked.approval(set.reads, &approving.view(request.key)),
            Action::WechatPay(merchant, r#use) => {
                asked.part(r#use.action().as_bytes());
                asked.part(merchant.as_str().as_bytes());
                asked.token(&request.key.token);
            }
            Action::Own(_) => return None,
        }
        asked.moment(set.reads, request.now, &set.time_zone);
        Some(Self(sha256(&asked.0)))
    }
}

/// All that a decision depends on, each part behind its length.
struct Parts(Vec<u8>);

impl Parts {
    /// Who asks. `None` where that cannot be written, or where it is not known what else counts:
    /// then nothing is remembered.
    fn begin(reads: Reads, caller: &Caller, policy: Option<&ClientPolicy>) -> Option<Self> {
        if !reads.is_known() {
            return None;
        }
        let mut asked = Self(Vec::with_capacity(512));
        asked.part(&serde_json::to_vec(caller).ok()?);
        asked.part(&serde_json::to_vec(&policy).ok()?);
        Some(asked)
    }

    fn approval(&mut self, reads: Reads, view: &View<'_>) {
        // Taken apart whole, so that a new fact cannot be forgotten here.
        let View {
            kind,
            account,
            operator,
            amount,
            payee,
            payees,
            count,
            reference,
            service,
            origin,
            token,
            certificate,
            today,
        } = view;
        self.part(kind.name().as_bytes());
        self.part(account.as_str().as_bytes());
        self.part(operator.as_str().as_bytes());
        self.token(token);
        self.part(certificate.as_bytes());
        let (minor, currency) = amount.unzip();
        self.number(reads.has("amount"), minor);
        self.text(reads.has("currency"), currency);
        // Whether it has an amount is of the kind, as is what else it must or must not have; what
        // it may have is told apart by `has`, which names it.
        self.text(reads.has("payee"), *payee);
        if reads.has("payees") {
            self.part(&[u8::from(payees.is_some())]);
            for (payee, _) in payees.iter().flat_map(|payees| payees.iter()) {
                self.part(payee.as_str().as_bytes());
            }
            // Where the list ends: no part before it is so long.
            self.0.extend_from_slice(&u64::MAX.to_le_bytes());
        }
        self.number(reads.has("count"), count.map(i64::from));
        self.text(reads.has("reference"), *reference);
        self.text(reads.has("service"), Some(service));
        self.text(reads.has("origin"), *origin);
        if reads.has("today") {
            self.part(&today.count.to_le_bytes());
            self.part(&today.sum.to_le_bytes());
        }
    }

    fn part(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&bytes.len().to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, is_read: bool, text: Option<&str>) {
        if is_read {
            self.part(&[u8::from(text.is_some())]);
            self.part(text.unwrap_or_default().as_bytes());
        }
    }

    fn number(&mut self, is_read: bool, number: Option<i64>) {
        if is_read {
            self.part(&[u8::from(number.is_some())]);
            self.part(&number.unwrap_or_default().to_le_bytes());
        }
    }

    fn token(&mut self, token: &TokenId) {
        let TokenId {
            module,
            label,
            serial,
        } = token;
        for text in [module, label, serial] {
            self.part(text.as_bytes());
        }
    }

    fn moment(&mut self, reads: Reads, now: Timestamp, time_zone: &TimeZone) {
        if !Moment::NAMES.iter().any(|name| reads.has(name)) {
            return;
        }
        for (name, value) in Moment::at(now, time_zone).facts() {
            self.number(reads.has(name), Some(value));
        }
    }
}

/// An answer without the key it is about.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// Yes, with this consent, by this rule.
    Granted(ConsentRule, String),
    /// No.
    Refused(Refusal),
}

/// The answers of one set.
#[derive(Debug, Default)]
pub(super) struct Remembered(Mutex<HashMap<Asked, Outcome>>);

impl Remembered {
    /// The answer to a question, asked for by `weigh` where it is not remembered.
    pub fn or_weigh(&self, asked: Option<Asked>, weigh: impl FnOnce() -> Outcome) -> Outcome {
        let Some(asked) = asked else {
            return weigh();
        };
        if let Some(known) = self.lock().get(&asked) {
            return known.clone();
        }
        let outcome = weigh();
        let mut answers = self.lock();
        if answers.len() >= MOST {
            answers.clear();
        }
        answers.insert(asked, outcome.clone());
        outcome
    }

    /// Forgets all.
    #[cfg(test)]
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Asked, Outcome>> {
        // Every change is complete before the lock is given back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn of(condition: &str) -> Reads {
        let text = format!("permit (principal, action, resource) when {{ {condition} }};");
        Reads::of(&text.parse().unwrap())
    }

    fn reads(condition: &str) -> Vec<&'static str> {
        let reads = of(condition);
        assert!(reads.is_known(), "{condition}");
        let all = CONTEXT.iter().copied();
        all.filter(|name| reads.has(name)).collect()
    }

    #[test]
    fn what_a_rule_names_it_reads() {
        assert_eq!(reads("context.consent != Consent::\"none\""), [""; 0]);
        assert_eq!(reads("principal.kinds.contains(context.kind)"), [""; 0]);
        assert_eq!(reads("context has amount"), ["amount"]);
        assert_eq!(
            reads("context.today.sum + context.amount < 5 && context[\"hour\"] > 8"),
            ["hour", "today", "amount"]
        );
        assert_eq!(
            reads("if context has origin then context.origin == \"x\" else context.minute == 1"),
            ["origin", "minute"]
        );
        // What only looks like an attribute of the context.
        assert_eq!(
            reads("principal.amount == \"payee\" && {\"count\": 1}.count == 1"),
            [""; 0]
        );
    }

    #[test]
    fn what_a_rule_reads_and_is_not_listed_makes_it_depend_on_everything() {
        for condition in [
            "context == {\"a\": 1}",
            "[context].contains({\"a\": 1})",
            "{\"all\": context}.all.amount > 5",
            "(if true then context else context).amount > 5",
            "context.weather == \"fine\"",
            "context has weather",
            "context has weather.wind",
            "context.amount > 5 && context[\"weather\"] == \"fine\"",
        ] {
            let reads = of(condition);
            assert!(!reads.is_known(), "{condition}");
            assert!(CONTEXT.iter().all(|name| reads.has(name)), "{condition}");
            let caller = Caller::Unix { uid: 0 };
            assert!(Parts::begin(reads, &caller, None).is_none(), "{condition}");
        }
        assert!(of("context.amount > 5").has("weather"));
    }

    #[test]
    fn an_answer_is_weighed_once_for_each_question_and_memory_has_a_bound() {
        let memory = Remembered::default();
        let question = |number: usize| Some(Asked(sha256(&number.to_le_bytes())));
        let mut weighed = 0;
        let mut ask = |asked, rule: &str| {
            let outcome = memory.or_weigh(asked, || {
                weighed += 1;
                Outcome::Granted(ConsentRule::None, rule.to_owned())
            });
            match outcome {
                Outcome::Granted(_, rule) => rule,
                Outcome::Refused(refusal) => panic!("{refusal}"),
            }
        };
        assert_eq!(ask(question(0), "first"), "first");
        assert_eq!(ask(question(0), "second"), "first");
        assert_eq!(ask(question(1), "third"), "third");
        // What may not be remembered is not.
        assert_eq!(ask(None, "fourth"), "fourth");
        assert_eq!(ask(None, "fifth"), "fifth");
        for number in 2..MOST {
            ask(question(number), "more");
        }
        assert_eq!(ask(question(0), "late"), "first");
        ask(question(MOST), "one too many");
        assert_eq!(ask(question(0), "anew"), "anew");
        assert_eq!(weighed, MOST + 4);
        assert_eq!(memory.lock().len(), 2);
    }

    /// The context of every action in the schema that rules are checked against.
    #[test]
    fn what_is_listed_is_what_the_schema_has() {
        let text = crate::policy::schema::text();
        let (fragment, _) = cedar::SchemaFragment::from_cedarschema_str(&text).unwrap();
        let schema = fragment.to_json_value().unwrap();
        let types = &schema[""]["commonTypes"];
        let mut names = BTreeSet::new();
        for (action, of) in schema[""]["actions"].as_object().unwrap() {
            let context = &of["appliesTo"]["context"];
            if ["approve", "administer", "wechatpay"].contains(&action.as_str()) {
                assert!(context.is_null(), "{action}: {context}");
                continue;
            }
            let context = context["type"].as_str().map_or(context, |name| match name {
                "Record" => context,
                "EntityOrCommon" => &types[context["name"].as_str().unwrap()],
                common => &types[common],
            });
            let attributes = context["attributes"].as_object();
            let attributes = attributes.unwrap_or_else(|| panic!("{action}: {context}"));
            assert!(!attributes.is_empty(), "{action}");
            names.extend(attributes.keys().map(String::as_str));
        }
        let listed: BTreeSet<&str> = CONTEXT.into_iter().chain(ALWAYS).collect();
        assert_eq!(names, listed);
        assert_eq!(listed.len(), CONTEXT.len() + ALWAYS.len());
    }
}
