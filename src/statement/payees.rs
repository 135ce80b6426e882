//! The payees of a batch: one statement, many who receive.
//!
//! A statement names its list by digest, so that it stays small enough to be shown and signed as
//! a whole; the list travels beside the challenge. [`Payees`] exists only for a list that fits its
//! statement: its digest, its length (`count`) and its sum (`amount`).
//!
//! The digest is the base64url SHA-256 of UTF-8 text: the line `opcert-payees-v1`, then a line for
//! each payee in order, the amount in minor units, a tab and the payee. Each line ends with a line
//! feed. No payee can hold a tab or a line feed, so no two lists have the same text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::money::Money;
use super::operation::Statement;
use super::strict::FieldError;
use super::text::Text;
use crate::base::encoding::{base64url, from_base64url, sha256};

/// Separates these digests from all others.
const DOMAIN: &str = "opcert-payees-v1\n";

/// One payee of a list, as it comes in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Payee {
    /// Who receives.
    pub payee: String,
    /// How much, in minor units of the statement's currency.
    pub amount: i64,
}

/// What a statement says of its list: the SHA-256 of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PayeesDigest([u8; 32]);

/// A text that is no [`PayeesDigest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a SHA-256 in base64url, 43 characters")]
pub struct InvalidDigest;

impl FromStr for PayeesDigest {
    type Err = InvalidDigest;
    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let bytes = from_base64url(text).ok_or(InvalidDigest)?;
        bytes.try_into().map(Self).map_err(|_| InvalidDigest)
    }
}

impl fmt::Display for PayeesDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64url(&self.0))
    }
}

/// A checked list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayeeList {
    entries: Vec<(Text, Money)>,
    digest: PayeesDigest,
    sum: i64,
}

impl PayeeList {
    /// Most payees of one list.
    pub const MAX: usize = 1_000;

    /// Checks each payee and amount; an error names `payees[INDEX].payee` or `….amount`.
    pub fn new(list: &[Payee], currency: &str) -> Result<Self, FieldError> {
        if list.is_empty() || list.len() > Self::MAX {
            return Err(FieldError::at("payees", "must have 1 to 1000 entries"));
        }
        let mut text = String::from(DOMAIN);
        let mut entries = Vec::with_capacity(list.len());
        let mut sum = 0_i64;
        for (index, one) in list.iter().enumerate() {
            let within = |error: FieldError| error.within(&format!("payees[{index}]"));
            let money = Money::new(one.amount, currency).map_err(|error| match &*error.field {
                "currency" => error,
                _ => within(error),
            })?;
            let payee: Text = one.payee.parse().map_err(|error: super::text::TextError| {
                within(FieldError::at("payee", error.to_string()))
            })?;
            sum = sum
                .checked_add(one.amount)
                .filter(|sum| *sum <= Money::MAX)
                .ok_or_else(|| FieldError::at("payees", "sum up to more than an amount may be"))?;
            text.push_str(&format!("{}\t{}\n", one.amount, payee));
            entries.push((payee, money));
        }
        Ok(Self {
            entries,
            digest: PayeesDigest(sha256(text.as_bytes())),
            sum,
        })
    }

    /// Its digest.
    pub fn digest(&self) -> PayeesDigest {
        self.digest
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The sum, in minor units.
    pub fn sum(&self) -> i64 {
        self.sum
    }
}

/// The list that a statement names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payees(PayeeList);

impl Payees {
    /// The list of `statement`, as it was handed in beside it: `None` for a statement without one.
    /// A list that is missing, not asked for, or another one is an error at `payees`.
    pub fn of(statement: &Statement, list: Option<&[Payee]>) -> Result<Option<Self>, FieldError> {
        let (digest, list) = match (statement.payees(), list) {
            (None, None) => return Ok(None),
            (None, Some(_)) => {
                return Err(FieldError::at("payees", "are not known for this statement"));
            }
            (Some(_), None) => {
                return Err(FieldError::at(
                    "payees",
                    "are missing: the statement is of a list, which has to come beside it",
                ));
            }
            (Some(digest), Some(list)) => (digest, list),
        };
        let currency = statement.amount().map_or("", Money::currency);
        let list = PayeeList::new(list, currency)?;
        if list.digest() != digest {
            return Err(FieldError::at("payees", "are not those of the statement"));
        }
        let says = |what: &str| {
            FieldError::at("payees", format!("do not have the {what} of the statement"))
        };
        if usize::try_from(statement.count().unwrap_or(0)) != Ok(list.count()) {
            return Err(says("count"));
        }
        if statement.amount().map(Money::minor_units) != Some(list.sum()) {
            return Err(says("amount"));
        }
        Ok(Some(Self(list)))
    }

    /// Who receives and how much, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Text, Money)> {
        self.0.entries.iter().map(|(payee, money)| (payee, *money))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::{Facts, Kind};

    fn payee(payee: &str, amount: i64) -> Payee {
        Payee {
            payee: payee.into(),
            amount,
        }
    }

    fn batch(list: &[Payee], change: impl FnOnce(&mut Facts)) -> Result<Statement, FieldError> {
        let checked = PayeeList::new(list, "CNY").unwrap();
        let mut facts = Facts {
            amount: Some((checked.sum(), "CNY".into())),
            payees: Some(checked.digest().to_string()),
            count: i64::try_from(list.len()).ok(),
            reference: Some("R-1".into()),
            memo: Some("新年快乐".into()),
            ..Facts::default()
        };
        change(&mut facts);
        Statement::new(
            "red-packet".parse::<Kind>().unwrap(),
            "acme".parse().unwrap(),
            "alice".parse().unwrap(),
            facts,
        )
    }

    #[test]
    fn a_list_fits_only_the_statement_made_of_it() {
        let list = [payee("张三", 100), payee("李四", 250)];
        let statement = batch(&list, |_| ()).unwrap();
        let payees = Payees::of(&statement, Some(&list)).unwrap().unwrap();
        assert_eq!(payees.count(), 2);
        assert_eq!(payees.iter().nth(1).unwrap().1.to_string(), "CNY 2.50");
        let field = |statement: &Statement, list: Option<&[Payee]>| {
            Payees::of(statement, list).unwrap_err().field
        };
        assert_eq!(field(&statement, None), "payees");
        let other = [payee("张三", 250), payee("李四", 100)];
        assert_eq!(field(&statement, Some(&other)), "payees");
        let swapped = [payee("李四", 250), payee("张三", 100)];
        assert_eq!(field(&statement, Some(&swapped)), "payees");
        let wrong_count = batch(&list, |facts| facts.count = Some(3)).unwrap();
        assert_eq!(field(&wrong_count, Some(&list)), "payees");
        let wrong_sum = batch(&list, |facts| facts.amount = Some((351, "CNY".into()))).unwrap();
        assert_eq!(field(&wrong_sum, Some(&list)), "payees");
        let single = batch(&list, |facts| {
            facts.payees = None;
            facts.payee = Some("张三".into());
        })
        .unwrap();
        assert_eq!(field(&single, Some(&list)), "payees");
        assert_eq!(Payees::of(&single, None), Ok(None));
    }

    #[test]
    fn a_batch_has_a_list_in_place_of_a_payee() {
        let list = [payee("张三", 100)];
        let field = |change: fn(&mut Facts)| batch(&list, change).unwrap_err().field;
        assert_eq!(field(|facts| facts.payee = Some("x".into())), "payee");
        assert_eq!(field(|facts| facts.payees = None), "payee");
        assert_eq!(field(|facts| facts.payees = Some("x".into())), "payees");
        assert_eq!(field(|facts| facts.count = None), "count");
    }

    #[test]
    fn the_entry_at_fault_is_named() {
        let error = |list: &[Payee]| PayeeList::new(list, "CNY").unwrap_err().field;
        assert_eq!(error(&[]), "payees");
        assert_eq!(error(&vec![payee("x", 1); 1_001]), "payees");
        assert_eq!(error(&[payee("x", 1), payee("a\tb", 1)]), "payees[1].payee");
        assert_eq!(error(&[payee("x", 0)]), "payees[0].amount");
        assert_eq!(error(&[payee("x", Money::MAX), payee("x", 1)]), "payees");
        let currency = PayeeList::new(&[payee("x", 1)], "XYZ").unwrap_err();
        assert_eq!(currency.field, "currency");
    }

    #[test]
    fn a_list_may_be_as_long_and_as_large_as_documented() {
        let longest = PayeeList::new(&vec![payee("x", 1); 1_000], "CNY").unwrap();
        assert_eq!((longest.count(), longest.sum()), (1_000, 1_000));
        let largest = [payee("x", Money::MAX - 1), payee("x", 1)];
        assert_eq!(PayeeList::new(&largest, "CNY").unwrap().sum(), Money::MAX);
    }

    #[test]
    fn the_digest_is_that_of_the_documented_text() {
        let list = PayeeList::new(&[payee("Bank", 1)], "CNY").unwrap();
        let text = "opcert-payees-v1\n1\tBank\n";
        assert_eq!(
            list.digest().to_string(),
            base64url(&sha256(text.as_bytes()))
        );
    }
}
