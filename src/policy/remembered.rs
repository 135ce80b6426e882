//! Decisions that a set made before, so that the same question is not weighed twice.
//!
//! WHAT A DECISION DEPENDS ON. On the rules, and on what they can read: who asks and how it was
//! registered, the action, the resource, and of the context what some rule names ([`Reads`]). All
//! of that is the question here, byte for byte; what no rule names (a payee, the time, what was
//! approved today) is left out, as it can change nothing. The rules of a set never change, so each
//! set has a memory of its own, and other rules begin with an empty one.
//!
//! Weighing the rules that ship takes some 30 to 50 µs, as much as a signature of a fast token;
//! looking an answer up takes one or two.
//!
//! BOUNDS. [`MOST`] answers; past that all are forgotten. Rules that read what differs with each
//! request gain nothing, and lose the time of a look-up.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cedar_policy as cedar;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::question::{Moment, View};
use super::rules::PolicySet;
use super::{Caller, ClientPolicy, ConsentRule, Refusal, WechatPayUse};
use crate::base::pkcs11::TokenId;
use crate::wechatpay::MerchantId;

/// Most answers of one set. Each takes some 500 bytes.
const MOST: usize = 1_024;

/// What the context of a request may have besides the kind, which is the action too, and the
/// consent, which is what is asked for.
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
    const EVERYTHING: Self = Self(u32::MAX);

    /// What this rule may read, by its syntax tree. In doubt, everything: that costs time only.
    pub fn of(policy: &cedar::Policy) -> Self {
        policy
            .to_json()
            .map_or(Self::EVERYTHING, |tree| Self::in_tree(&tree))
    }

    fn in_tree(tree: &Value) -> Self {
        match tree {
            Value::String(text) => Self::named(text),
            Value::Array(items) => items.iter().map(Self::in_tree).collect(),
            Value::Object(members) => members
                .iter()
                .map(|(name, member)| match (name.as_str(), member) {
                    // An attribute of the context: its name is beside it.
                    ("." | "has", Value::Object(access))
                        if access.get("left").is_some_and(is_context) =>
                    {
                        access.get("attr").map_or(Self::EVERYTHING, Self::in_tree)
                    }
                    // The context as a whole, to be compared or put into something.
                    ("Var", Value::String(variable)) if variable == "context" => Self::EVERYTHING,
                    (_, member) => Self::in_tree(member),
                })
                .collect(),
            _ => Self::default(),
        }
    }

    fn named(name: &str) -> Self {
        let place = CONTEXT.iter().position(|known| *known == name);
        Self(place.map_or(0, |place| 1 << place))
    }

    /// Whether some rule may read this.
    pub fn has(self, name: &str) -> bool {
        let wanted = Self::named(name).0;
        debug_assert_ne!(wanted, 0, "{name} is missing in the list");
        self.0 & wanted != 0
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

/// All that a decision depends on, each part behind its length.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Asked(Vec<u8>);

impl Asked {
    /// About an approval.
    pub fn approval(
        set: &PolicySet,
        caller: &Caller,
        policy: Option<&ClientPolicy>,
        view: &View<'_>,
        now: Timestamp,
    ) -> Option<Self> {
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
        let reads = set.reads;
        let mut asked = Self::begin(caller, policy)?;
        asked.part(kind.name().as_bytes());
        asked.part(account.as_str().as_bytes());
        asked.part(operator.as_str().as_bytes());
        asked.token(token);
        asked.part(certificate.as_bytes());
        let (minor, currency) = amount.unzip();
        asked.number(reads.has("amount"), minor);
        asked.text(reads.has("currency"), currency);
        // Whether it has an amount is of the kind, as is what else it must or must not have; what
        // it may have is told apart by `has`, which names it.
        asked.text(reads.has("payee"), *payee);
        if reads.has("payees") {
            asked.part(&[u8::from(payees.is_some())]);
            for (payee, _) in payees.iter().flat_map(|payees| payees.iter()) {
                asked.part(payee.as_str().as_bytes());
            }
            // Where the list ends: no part before it is so long.
            asked.0.extend_from_slice(&u64::MAX.to_le_bytes());
        }
        asked.number(reads.has("count"), count.map(i64::from));
        asked.text(reads.has("reference"), *reference);
        asked.text(reads.has("service"), Some(service));
        asked.text(reads.has("origin"), *origin);
        if reads.has("today") {
            asked.part(&today.count.to_le_bytes());
            asked.part(&today.sum.to_le_bytes());
        }
        asked.moment(set.reads, now, &set.time_zone);
        Some(asked)
    }

    /// About the use of a merchant's key.
    pub fn merchant(
        set: &PolicySet,
        caller: &Caller,
        policy: Option<&ClientPolicy>,
        merchant: &MerchantId,
        r#use: WechatPayUse,
        token: &TokenId,
        now: Timestamp,
    ) -> Option<Self> {
        let mut asked = Self::begin(caller, policy)?;
        asked.part(r#use.action().as_bytes());
        asked.part(merchant.as_str().as_bytes());
        asked.token(token);
        asked.moment(set.reads, now, &set.time_zone);
        Some(asked)
    }

    /// Who asks. `None` where that cannot be written: then nothing is remembered.
    fn begin(caller: &Caller, policy: Option<&ClientPolicy>) -> Option<Self> {
        let mut asked = Self(Vec::with_capacity(512));
        asked.part(&serde_json::to_vec(caller).ok()?);
        asked.part(&serde_json::to_vec(&policy).ok()?);
        Some(asked)
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
    use super::*;

    fn reads(condition: &str) -> Vec<&'static str> {
        let text = format!("permit (principal, action, resource) when {{ {condition} }};");
        let reads = Reads::of(&text.parse().unwrap());
        let all = CONTEXT.iter().copied();
        all.filter(|name| reads.has(name)).collect()
    }

    #[test]
    fn what_a_rule_names_it_reads() {
        assert_eq!(reads("context.consent != Consent::\"none\""), [""; 0]);
        assert_eq!(reads("context has amount"), ["amount"]);
        assert_eq!(
            reads("context.today.sum + context.amount < 5 && context[\"hour\"] > 8"),
            ["hour", "today", "amount"]
        );
        assert_eq!(
            reads("if context has origin then context.origin == \"x\" else context.minute == 1"),
            ["origin", "minute"]
        );
    }

    #[test]
    fn a_rule_that_takes_the_context_as_a_whole_reads_all_of_it() {
        for condition in [
            "context == {\"a\": 1}",
            "[context].contains({\"a\": 1})",
            "{\"all\": context}.all.amount > 5",
            "(if true then context else context).amount > 5",
        ] {
            assert_eq!(reads(condition), CONTEXT, "{condition}");
        }
    }
}
