//! How often and how much: what a limit says. What was used of it is in [`super::usage`].
//!
//! A [`Limit`] applies to approvals that fit its filters. Its `per` says who has a budget of its
//! own: with `per = ["client"]` each client has one, with `per = []` all share one.
//!
//! Nothing is counted here.

use std::num::{NonZeroU32, NonZeroU64};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Caller;
use super::usage::Use;
use crate::base::ids::{AccountId, ClientName};
use crate::statement::{Kind, Money};

/// Most limits: each is looked at for each approval.
pub const MOST_LIMITS: usize = 256;

/// One `[[policy.limit]]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Limit {
    /// Its name: refusals say it as rule `limit:NAME`.
    pub name: String,
    /// Applies to this client only; to every caller when absent.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub client: Option<ClientName>,
    /// Applies to this account only; to every account when absent.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub account: Option<AccountId>,
    /// Applies to these kinds only; to all when absent.
    #[serde(default)]
    #[schemars(with = "Option<Vec<String>>")]
    pub kinds: Option<Vec<Kind>>,
    /// Who has a budget of its own. Default `["client"]`.
    #[serde(default = "per_client")]
    pub per: Vec<Share>,
    /// Approvals a day.
    #[serde(default)]
    pub count_per_day: Option<NonZeroU64>,
    /// Minor units of `currency` a day. Amounts in other currencies are not counted.
    #[serde(default)]
    pub sum_per_day: Option<NonZeroU64>,
    /// The currency of `sum-per-day`, ISO 4217.
    #[serde(default)]
    pub currency: Option<String>,
    /// Approvals in a short time.
    #[serde(default)]
    pub rate: Option<Rate>,
}

fn per_client() -> Vec<Share> {
    vec![Share::Client]
}

/// What budgets are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Share {
    /// Each client, and each local user.
    Client,
    /// Each operating certificate.
    Certificate,
    /// Each operation kind.
    Kind,
}

/// At most `count` approvals at once, and no more than `count` in any `seconds` on average.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In which time.
    pub seconds: NonZeroU32,
}

/// Why a limit cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The name is empty, too long or has characters it may not have.
    #[error("its name must be 1 to 64 letters, digits, and any of . _ -")]
    Name,
    /// It limits nothing.
    #[error("it limits nothing: set count-per-day, sum-per-day with currency, or rate")]
    Empty,
    /// A sum without a currency, or a currency without a sum.
    #[error("sum-per-day and currency go together")]
    Currency,
    /// No ISO 4217 code.
    #[error("its currency must be an ISO 4217 code such as CNY")]
    UnknownCurrency,
    /// An empty list of kinds would limit nothing.
    #[error("its kinds are an empty list; leave the key out to mean all")]
    NoKinds,
    /// Two limits of one name.
    #[error("another limit has its name")]
    Duplicate,
    /// Too many.
    #[error("there are more than {MOST_LIMITS} limits")]
    TooMany,
}

impl Limit {
    /// Checks a list of limits; the error comes with the name of the one that is wrong.
    pub fn check(limits: &[Self]) -> Result<(), (String, LimitError)> {
        for (index, limit) in limits.iter().enumerate() {
            let earlier = limits.get(..index).unwrap_or_default();
            let problem = if index >= MOST_LIMITS {
                Some(LimitError::TooMany)
            } else if earlier.iter().any(|other| other.name == limit.name) {
                Some(LimitError::Duplicate)
            } else {
                limit.problem()
            };
            if let Some(problem) = problem {
                return Err((limit.name.clone(), problem));
            }
        }
        Ok(())
    }

    fn problem(&self) -> Option<LimitError> {
        let name_is_sound = (1..=64).contains(&self.name.len())
            && self
                .name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !name_is_sound {
            return Some(LimitError::Name);
        }
        if self.kinds.as_ref().is_some_and(Vec::is_empty) {
            return Some(LimitError::NoKinds);
        }
        if self.sum_per_day.is_some() != self.currency.is_some() {
            return Some(LimitError::Currency);
        }
        if let Some(currency) = &self.currency
            && Money::new(1, currency).is_err()
        {
            return Some(LimitError::UnknownCurrency);
        }
        let empty =
            self.count_per_day.is_none() && self.sum_per_day.is_none() && self.rate.is_none();
        empty.then_some(LimitError::Empty)
    }

    pub(super) fn applies_to(&self, used: &Use<'_>) -> bool {
        let client = self
            .client
            .as_ref()
            .is_none_or(|name| matches!(used.caller, Caller::Client(caller) if caller == name));
        client
            && self.account.as_ref().is_none_or(|one| one == used.account)
            && self
                .kinds
                .as_ref()
                .is_none_or(|kinds| kinds.contains(&used.kind))
    }

    pub(super) fn budget(&self, index: usize, used: &Use<'_>) -> Budget {
        let shares = |share| self.per.contains(&share);
        Budget {
            limit: index,
            caller: shares(Share::Client).then(|| used.caller.clone()),
            certificate: shares(Share::Certificate).then(|| used.certificate.into()),
            kind: shares(Share::Kind).then_some(used.kind),
        }
    }

    /// What of an approval's amount counts here.
    pub(super) fn counted(&self, amount: Option<Money>) -> u64 {
        match (&self.currency, amount) {
            (Some(currency), Some(amount)) if amount.currency() == currency => minor_units(amount),
            _ => 0,
        }
    }
}

/// Whose budget under which limit, by its place in the list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub limit: usize,
    pub caller: Option<Caller>,
    pub certificate: Option<Box<str>>,
    pub kind: Option<Kind>,
}

impl Rate {
    /// From one approval to the next, were they spread evenly; rounded up to a nanosecond, so that
    /// no rate is faster than it says.
    fn nanos(self) -> i64 {
        let (seconds, count) = (u64::from(self.seconds.get()), u64::from(self.count.get()));
        // Below 2^63: 2^32 seconds are 4.3 * 10^18 nanoseconds.
        i64::try_from((seconds * 1_000_000_000).div_ceil(count)).unwrap_or(i64::MAX)
    }

    /// From one approval to the next.
    pub(super) fn interval(self) -> SignedDuration {
        SignedDuration::from_nanos(self.nanos())
    }

    /// How far ahead of an even spread approvals may be: all but one of `count`.
    pub(super) fn slack(self) -> SignedDuration {
        let others = i64::from(self.count.get()) - 1;
        SignedDuration::from_nanos(self.nanos().saturating_mul(others))
    }

    /// When the next approval is due: not before now, and never farther ahead than a full bucket,
    /// so that a clock that was set back blocks nobody for longer than `seconds`.
    pub(super) fn clamp(self, due: Option<Timestamp>, now: Timestamp) -> Timestamp {
        let latest = now
            .checked_add(SignedDuration::from_secs(self.seconds.get().into()))
            .unwrap_or(now);
        due.unwrap_or(now).clamp(now, latest)
    }
}

pub(super) fn minor_units(amount: Money) -> u64 {
    u64::try_from(amount.minor_units()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(text: &str) -> Limit {
        toml::from_str(&format!("name = \"l\"\n{text}")).unwrap()
    }

    #[test]
    fn limits_are_checked() {
        for (text, error) in [
            ("", LimitError::Empty),
            ("sum-per-day = 5", LimitError::Currency),
            (
                "sum-per-day = 5\ncurrency = \"QQQ\"",
                LimitError::UnknownCurrency,
            ),
            ("count-per-day = 5\nkinds = []", LimitError::NoKinds),
        ] {
            assert_eq!(Limit::check(&[limit(text)]).unwrap_err().1, error, "{text}");
        }
        let one = limit("count-per-day = 5");
        assert_eq!(
            Limit::check(&[one.clone(), one]).unwrap_err().1,
            LimitError::Duplicate
        );
        assert!(toml::from_str::<Limit>("name = \"l\"\ncount-per-dya = 5").is_err());
        assert_eq!(Limit::check(&[limit("count-per-day = 5")]), Ok(()));
    }

    #[test]
    fn a_currency_without_a_sum_is_no_limit_of_a_sum() {
        let limit = limit("count-per-day = 5\ncurrency = \"CNY\"");
        assert_eq!(Limit::check(&[limit]).unwrap_err().1, LimitError::Currency);
    }

    #[test]
    fn names_and_lists_of_limits_have_bounds() {
        let named = |name: &str| Limit {
            name: name.into(),
            ..limit("count-per-day = 5")
        };
        for good in ["a", "a.b_c-9", &"x".repeat(64)] {
            assert_eq!(Limit::check(&[named(good)]), Ok(()), "{good}");
        }
        for bad in ["", "a b", "a/b", "名", &"x".repeat(65)] {
            let error = Limit::check(&[named(bad)]).unwrap_err();
            assert_eq!(error, (bad.to_owned(), LimitError::Name));
        }
        let mut many: Vec<Limit> = (0..MOST_LIMITS).map(|n| named(&n.to_string())).collect();
        assert_eq!(Limit::check(&many), Ok(()));
        many.push(named("more"));
        let error = Limit::check(&many).unwrap_err();
        assert_eq!(error, ("more".to_owned(), LimitError::TooMany));
    }
}
