//! The typed, displayable facts of one sensitive operation.
//!
//! A [`Statement`] exists only if it passed every rule of its [`Kind`]; what is shown
//! ([`Statement::lines`]) and what is signed ([`Statement::to_json`]) come from the same value.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::kinds::{self, Batch, KindSpec, Presence};
use super::money::Money;
use super::payees::{InvalidDigest, PayeesDigest};
use super::strict::{FieldError, Object};
use super::text::Text;
use crate::base::ids::{AccountId, OperatorId};

/// A kind of sensitive operation; the known ones are listed in [`kinds`].
#[derive(Clone, Copy, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct Kind(&'static KindSpec);

impl Kind {
    /// All kinds, in the order a list shows them.
    pub fn all() -> impl Iterator<Item = Self> {
        kinds::ALL.iter().map(|spec| Self(spec))
    }

    /// The stable name in formats, policies and records.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// The title a person reads.
    pub fn title(self, language: Language) -> &'static str {
        language.pick(self.0.title)
    }

    /// Whether its statements have an amount and a currency.
    pub fn amount(self) -> Presence {
        self.0.amount
    }

    /// Whether they have a payee or other target.
    pub fn payee(self) -> Presence {
        self.0.payee
    }

    /// Whether a list of payees may take the place of the payee.
    pub fn batch(self) -> Batch {
        self.0.batch
    }

    /// Whether they have a count.
    pub fn count(self) -> Presence {
        self.0.count
    }

    /// Whether they have a reference.
    pub fn reference(self) -> Presence {
        self.0.reference
    }

    /// Whether they have a memo.
    pub fn memo(self) -> Presence {
        self.0.memo
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Kind {}

impl std::hash::Hash for Kind {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

/// A name that is no [`Kind`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a known operation kind")]
pub struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;
    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        Self::all()
            .find(|kind| kind.name() == name)
            .ok_or(UnknownKind)
    }
}

impl TryFrom<String> for Kind {
    type Error = UnknownKind;
    fn try_from(name: String) -> Result<Self, UnknownKind> {
        name.parse()
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> String {
        kind.name().to_owned()
    }
}

/// A language that statements are shown in.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
    schemars::JsonSchema,
)]
pub enum Language {
    /// English.
    #[default]
    #[serde(rename = "en")]
    English,
    /// Simplified Chinese.
    #[serde(rename = "zh")]
    Chinese,
}

impl Language {
    /// Its tag (BCP 47).
    pub fn tag(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh",
        }
    }

    /// Of an English and a Chinese text, the one in this language.
    pub fn pick<'a>(self, (english, chinese): (&'a str, &'a str)) -> &'a str {
        match self {
            Self::English => english,
            Self::Chinese => chinese,
        }
    }
}

/// The facts of one operation, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    kind: Kind,
    account: AccountId,
    operator: OperatorId,
    amount: Option<Money>,
    payee: Option<Text>,
    payees: Option<PayeesDigest>,
    count: Option<u32>,
    reference: Option<Text>,
    memo: Option<Text>,
}

/// The facts as they come in, before the rules of the kind are applied.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Amount in minor units and ISO 4217 code.
    pub amount: Option<(i64, String)>,
    /// Who receives.
    pub payee: Option<String>,
    /// The digest of the list of those who receive; see [`super::payees`].
    pub payees: Option<String>,
    /// How many pieces.
    pub count: Option<i64>,
    /// The merchant's or platform's own number.
    pub reference: Option<String>,
    /// A remark.
    pub memo: Option<String>,
}

impl Statement {
    /// Applies the rules of `kind` to the facts.
    pub fn new(
        kind: Kind,
        account: AccountId,
        operator: OperatorId,
        facts: Facts,
    ) -> Result<Self, FieldError> {
        let spec = kind.0;
        spec.amount.check("amount", facts.amount.is_some())?;
        if facts.payees.is_some() {
            if spec.batch == Batch::Forbidden {
                return Err(FieldError::at("payees", "is not known for this kind"));
            }
            Presence::Forbidden.check("payee", facts.payee.is_some())?;
            Presence::Required.check("count", facts.count.is_some())?;
            Presence::Required.check("amount", facts.amount.is_some())?;
        } else {
            spec.payee.check("payee", facts.payee.is_some())?;
        }
        spec.count.check("count", facts.count.is_some())?;
        spec.reference
            .check("reference", facts.reference.is_some())?;
        spec.memo.check("memo", facts.memo.is_some())?;
        let count = facts
            .count
            .map(|count| {
                u32::try_from(count)
                    .ok()
                    .filter(|count| (1..=1_000_000).contains(count))
                    .ok_or_else(|| FieldError::at("count", "must be between 1 and 1000000"))
            })
            .transpose()?;
        Ok(Self {
            kind,
            account,
            operator,
            amount: facts
                .amount
                .map(|(minor, currency)| Money::new(minor, &currency))
                .transpose()?,
            payee: text("payee", facts.payee)?,
            payees: facts
                .payees
                .map(|digest| {
                    digest
                        .parse()
                        .map_err(|error: InvalidDigest| FieldError::at("payees", error.to_string()))
                })
                .transpose()?,
            count,
            reference: text("reference", facts.reference)?,
            memo: text("memo", facts.memo)?,
        })
    }

    /// Reads a statement object of a challenge or approval; every field must be known and right.
    pub fn from_object(mut object: Object) -> Result<Self, FieldError> {
        let kind = object.parsed("kind")?;
        let account = object.parsed("account")?;
        let operator = object.parsed("operator")?;
        let amount = match (
            object.optional_integer("amount")?,
            object.optional_text("currency")?,
        ) {
            (Some(minor), Some(currency)) => Some((minor, currency)),
            (None, None) => None,
            (Some(_), None) => return Err(FieldError::at("currency", "is missing")),
            (None, Some(_)) => return Err(FieldError::at("amount", "is missing")),
        };
        let facts = Facts {
            amount,
            payee: object.optional_text("payee")?,
            payees: object.optional_text("payees")?,
            count: object.optional_integer("count")?,
            reference: object.optional_text("reference")?,
            memo: object.optional_text("memo")?,
        };
        object.finish()?;
        Self::new(kind, account, operator, facts)
    }

    /// The JSON object: fields in fixed order, absent ones left out.
    pub fn to_json(&self) -> serde_json::Value {
        let mut map = serde_json::Map::new();
        map.insert("kind".into(), self.kind.name().into());
        map.insert("account".into(), self.account.as_str().into());
        map.insert("operator".into(), self.operator.as_str().into());
        if let Some(money) = self.amount {
            map.insert("amount".into(), money.minor_units().into());
            map.insert("currency".into(), money.currency().into());
        }
        if let Some(payee) = &self.payee {
            map.insert("payee".into(), payee.as_str().into());
        }
        if let Some(payees) = self.payees {
            map.insert("payees".into(), payees.to_string().into());
        }
        if let Some(count) = self.count {
            map.insert("count".into(), count.into());
        }
        if let Some(reference) = &self.reference {
            map.insert("reference".into(), reference.as_str().into());
        }
        if let Some(memo) = &self.memo {
            map.insert("memo".into(), memo.as_str().into());
        }
        serde_json::Value::Object(map)
    }

    /// What a person is shown: label and value, top to bottom.
    pub fn lines(&self, language: Language) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            (
                language.pick(("Operation", "操作")),
                self.kind.title(language).to_owned(),
            ),
            (
                language.pick(("Account", "商户号")),
                self.account.to_string(),
            ),
            (
                language.pick(("Operator", "操作员")),
                self.operator.to_string(),
            ),
        ];
        if let Some(amount) = self.amount {
            lines.push((language.pick(("Amount", "金额")), amount.to_string()));
        }
        if let Some(payee) = &self.payee {
            lines.push((language.pick(self.kind.0.payee_label), payee.to_string()));
        }
        if let Some(count) = self.count {
            lines.push((language.pick(("Count", "数量")), count.to_string()));
        }
        if let Some(payees) = self.payees {
            lines.push((
                language.pick(("Payee list", "收款名单")),
                payees.to_string(),
            ));
        }
        if let Some(reference) = &self.reference {
            lines.push((language.pick(("Reference", "单号")), reference.to_string()));
        }
        if let Some(memo) = &self.memo {
            lines.push((language.pick(self.kind.0.memo_label), memo.to_string()));
        }
        lines
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same facts, for another operator to approve.
    #[must_use]
    pub fn for_operator(&self, operator: OperatorId) -> Self {
        Self {
            operator,
            ..self.clone()
        }
    }

    /// The account whose money or rights it is about.
    pub fn account(&self) -> &AccountId {
        &self.account
    }

    /// The operator who is to approve.
    pub fn operator(&self) -> &OperatorId {
        &self.operator
    }

    /// The amount, for kinds that move money.
    pub fn amount(&self) -> Option<Money> {
        self.amount
    }

    /// The payee or other target.
    pub fn payee(&self) -> Option<&Text> {
        self.payee.as_ref()
    }

    /// The digest of the list of payees, for a batch.
    pub fn payees(&self) -> Option<PayeesDigest> {
        self.payees
    }

    /// How many pieces.
    pub fn count(&self) -> Option<u32> {
        self.count
    }

    /// The merchant's or platform's own number.
    pub fn reference(&self) -> Option<&Text> {
        self.reference.as_ref()
    }
}

fn text(field: &'static str, value: Option<String>) -> Result<Option<Text>, FieldError> {
    value
        .map(|value| {
            value
                .parse()
                .map_err(|error: super::text::TextError| FieldError::at(field, error.to_string()))
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Statement, FieldError> {
        Statement::from_object(Object::parse(json.as_bytes())?)
    }

    const WITHDRAWAL: &str = r#"{"kind":"withdrawal","account":"acme","operator":"alice","amount":100000,"currency":"CNY","payee":"Acme Ltd, ICBC 6222 **** 1234","reference":"W-1"}"#;

    #[test]
    fn a_statement_round_trips_and_shows_what_it_says() {
        let statement = parse(WITHDRAWAL).unwrap();
        assert_eq!(statement.to_json().to_string(), WITHDRAWAL);
        let lines = statement.lines(Language::English);
        assert!(lines.contains(&("Amount", "CNY 1,000.00".to_owned())));
        assert_eq!(
            statement.lines(Language::Chinese)[0],
            ("操作", "提现".to_owned())
        );
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (from, to, field) in [
            ("100000", "0", "amount"),
            ("100000", "\"100000\"", "amount"),
            ("CNY", "XXZ", "currency"),
            ("\"currency\":\"CNY\",", "", "currency"),
            ("withdrawal", "theft", "kind"),
            ("alice", "a/b", "operator"),
            ("W-1", "W\\u202e1", "reference"),
            ("\"reference\"", "\"count\":3,\"reference\"", "count"),
            ("\"reference\"", "\"extra\":\"x\",\"reference\"", "extra"),
            ("\"payee\":\"Acme Ltd, ICBC 6222 **** 1234\",", "", "payee"),
        ] {
            let json = WITHDRAWAL.replace(from, to);
            assert_eq!(parse(&json).unwrap_err().field, field, "{json}");
        }
    }

    #[test]
    fn kind_names_are_unique() {
        let mut names: Vec<_> = Kind::all().map(Kind::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::all().count());
        for kind in Kind::all() {
            assert_eq!(Kind::all().filter(|other| *other == kind).count(), 1);
            let name = serde_json::to_value(kind).unwrap();
            assert_eq!(name, kind.name());
            assert_eq!(serde_json::from_value::<Kind>(name).unwrap(), kind);
        }
    }

    #[test]
    fn a_language_goes_by_its_tag() {
        for (language, tag) in [(Language::English, "en"), (Language::Chinese, "zh")] {
            assert_eq!(language.tag(), tag);
            assert_eq!(serde_json::to_value(language).unwrap(), tag);
        }
    }

    fn facts(kind: Kind) -> Facts {
        let given = |presence| presence != Presence::Forbidden;
        Facts {
            amount: given(kind.amount()).then(|| (123_456, "CNY".into())),
            payee: given(kind.payee()).then(|| "Zhang San".into()),
            payees: None,
            count: given(kind.count()).then_some(42),
            reference: given(kind.reference()).then(|| "W-7".into()),
            memo: given(kind.memo()).then(|| "for tea".into()),
        }
    }

    fn make(kind: Kind, facts: Facts) -> Result<Statement, FieldError> {
        Statement::new(
            kind,
            "acme".parse().unwrap(),
            "alice".parse().unwrap(),
            facts,
        )
    }

    #[test]
    fn a_person_is_shown_every_fact_that_is_signed() {
        for kind in Kind::all() {
            let statement = make(kind, facts(kind)).unwrap();
            let again = parse(&statement.to_json().to_string()).unwrap();
            assert_eq!(again, statement);
            for language in [Language::English, Language::Chinese] {
                let lines = statement.lines(language);
                let shown: Vec<&str> = lines.iter().map(|(_, value)| value.as_str()).collect();
                let mut expected = vec![kind.title(language), "acme", "alice"];
                for (has, value) in [
                    (statement.amount().is_some(), "CNY 1,234.56"),
                    (statement.payee().is_some(), "Zhang San"),
                    (statement.count().is_some(), "42"),
                    (statement.reference().is_some(), "W-7"),
                    (statement.memo.is_some(), "for tea"),
                ] {
                    expected.extend(has.then_some(value));
                }
                assert_eq!(shown, expected, "{kind}");
                assert!(lines.iter().all(|(label, _)| !label.is_empty()));
            }
        }
    }

    #[test]
    fn every_kind_has_what_it_must_and_nothing_that_it_must_not_have() {
        type Field = (&'static str, fn(Kind) -> Presence, fn(&mut Facts, bool));
        let fields: [Field; 5] = [
            ("amount", Kind::amount, |facts, on| {
                facts.amount = on.then(|| (1, "CNY".into()))
            }),
            ("payee", Kind::payee, |facts, on| {
                facts.payee = on.then(|| "x".into())
            }),
            ("count", Kind::count, |facts, on| {
                facts.count = on.then_some(1)
            }),
            ("reference", Kind::reference, |facts, on| {
                facts.reference = on.then(|| "x".into());
            }),
            ("memo", Kind::memo, |facts, on| {
                facts.memo = on.then(|| "x".into())
            }),
        ];
        for kind in Kind::all() {
            for (name, presence, set) in &fields {
                for on in [false, true] {
                    let mut facts = facts(kind);
                    set(&mut facts, on);
                    let wrong = match presence(kind) {
                        Presence::Required => !on,
                        Presence::Forbidden => on,
                        Presence::Optional => false,
                    };
                    let field = make(kind, facts).err().map(|error| error.field);
                    assert_eq!(field.as_deref(), wrong.then_some(*name), "{kind} {on}");
                }
            }
        }
    }

    #[test]
    fn a_count_is_one_to_a_million() {
        let kind: Kind = "red-packet".parse().unwrap();
        let count = |count| {
            make(
                kind,
                Facts {
                    count: Some(count),
                    ..facts(kind)
                },
            )
            .map(|made| made.count())
        };
        assert_eq!(count(1), Ok(Some(1)));
        assert_eq!(count(1_000_000), Ok(Some(1_000_000)));
        for bad in [0, -1, 1_000_001, i64::MAX] {
            assert_eq!(count(bad).unwrap_err().field, "count");
        }
    }

    #[test]
    fn a_batch_is_for_kinds_that_have_one_and_needs_count_and_amount() {
        let digest = super::super::PayeeList::new(
            &[super::super::Payee {
                payee: "x".into(),
                amount: 1,
            }],
            "CNY",
        )
        .unwrap()
        .digest();
        for kind in Kind::all() {
            let batch = Facts {
                payee: None,
                payees: Some(digest.to_string()),
                ..facts(kind)
            };
            let made = make(kind, batch);
            match kind.batch() {
                Batch::Allowed => {
                    let made = made.unwrap();
                    assert_eq!(made.payees(), Some(digest));
                    assert_eq!(parse(&made.to_json().to_string()), Ok(made.clone()));
                    let lines = made.lines(Language::English);
                    assert!(lines.contains(&("Payee list", digest.to_string())));
                }
                Batch::Forbidden => assert_eq!(made.unwrap_err().field, "payees"),
            }
        }
    }

    #[test]
    fn the_same_facts_can_be_anothers_to_approve() {
        let statement = parse(WITHDRAWAL).unwrap();
        let bobs = statement.for_operator("bob".parse().unwrap());
        assert_eq!(bobs.operator().as_str(), "bob");
        let json = WITHDRAWAL.replace("alice", "bob");
        assert_eq!(bobs.to_json().to_string(), json);
    }
}
