//! What was used of the limits.
//!
//! WHAT IS KEPT. [`Usage`] counts approvals by day, caller, certificate and kind. That table is
//! the source: budgets are sums over it, kept up to date so that a request costs the same however
//! many clients there are, and made anew when limits change. A day is a calendar day of the
//! configured time zone. Rates are kept apart, one point in time for each budget (the virtual
//! scheduling form of a token bucket: GCRA, ITU-T I.371).
//!
//! HOW IT CHANGES. [`Usage::reserve`] checks and counts under one lock, so that no two requests
//! take the same last place. A [`Reservation`] that is dropped gives its place back; one that was
//! kept stays until it is given back by name.
//!
//! WHAT A RESTART DOES. Nothing is on disk here. Whoever reads the audit log back tells
//! [`Usage::restore`] each approval it holds; there is no second store that could say otherwise.
//!
//! BOUNDS. At most [`MOST_ROWS`] rows are kept, of two days: today's and the nearest other one,
//! so that a clock that is set back over midnight finds what it had counted. Past that, whoever
//! has no row yet is refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::limits::{Budget, Limit, minor_units};
use super::{Caller, Refusal, RefusalCause};
use crate::base::ids::AccountId;
use crate::statement::{Kind, Money};

/// Most rows of [`Usage`], and most budgets with a rate.
pub const MOST_ROWS: usize = 65_536;

/// One approval, as far as it is counted.
#[derive(Debug, Clone, Copy)]
pub struct Use<'a> {
    /// Who asked.
    pub caller: &'a Caller,
    /// The certificate that signs, by the hexadecimal SHA-256 of its DER.
    pub certificate: &'a str,
    /// Its account.
    pub account: &'a AccountId,
    /// The operation's kind.
    pub kind: Kind,
    /// Its amount.
    pub amount: Option<Money>,
}

/// How often and how much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Approvals.
    pub count: u64,
    /// Minor units of one currency.
    pub sum: u64,
}

/// What was approved, and what is left of each budget.
#[derive(Debug, Default)]
pub struct Usage(Mutex<State>);

#[derive(Debug)]
struct State {
    limits: Vec<Limit>,
    time_zone: TimeZone,
    days: BTreeMap<Date, Day>,
    /// When the next approval of each budget would be due, were they spread evenly.
    due: HashMap<Budget, Timestamp>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            limits: Vec::new(),
            time_zone: TimeZone::UTC,
            days: BTreeMap::new(),
            due: HashMap::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Day {
    rows: HashMap<Row, Counts>,
    budgets: HashMap<Budget, Tally>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Row {
    caller: Caller,
    certificate: Box<str>,
    account: AccountId,
    kind: Kind,
}

impl Row {
    fn new(used: &Use<'_>) -> Self {
        Self {
            caller: used.caller.clone(),
            certificate: used.certificate.into(),
            account: used.account.clone(),
            kind: used.kind,
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    count: u64,
    /// By currency; an operation has one of few.
    sums: Vec<(&'static str, u64)>,
}

impl Counts {
    fn add(&mut self, amount: Option<Money>) {
        self.count = self.count.saturating_add(1);
        if let Some(amount) = amount {
            let units = minor_units(amount);
            match self
                .sums
                .iter_mut()
                .find(|(currency, _)| *currency == amount.currency())
            {
                Some((_, sum)) => *sum = sum.saturating_add(units),
                None => self.sums.push((amount.currency(), units)),
            }
        }
    }

    fn subtract(&mut self, amount: Option<Money>) {
        self.count = self.count.saturating_sub(1);
        if let Some(amount) = amount {
            for (currency, sum) in &mut self.sums {
                if *currency == amount.currency() {
                    *sum = sum.saturating_sub(minor_units(amount));
                }
            }
        }
    }

    fn sum(&self, currency: &str) -> u64 {
        self.sums
            .iter()
            .find(|(one, _)| *one == currency)
            .map_or(0, |(_, sum)| *sum)
    }
}

/// A place that was taken under every limit. Dropped, it is given back.
#[must_use]
#[derive(Debug)]
pub struct Reservation<'a> {
    usage: &'a Usage,
    taken: Option<Taken>,
}

/// A place that stays taken.
#[derive(Debug)]
pub struct Kept<'a> {
    usage: &'a Usage,
    taken: Option<Taken>,
}

#[derive(Debug)]
struct Taken {
    day: Date,
    row: Row,
    amount: Option<Money>,
}

impl<'a> Reservation<'a> {
    /// The approval is on record: it counts, whoever goes away from here on.
    pub fn keep(mut self) -> Kept<'a> {
        Kept {
            usage: self.usage,
            taken: self.taken.take(),
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(taken) = self.taken.take() {
            self.usage.lock().give_back(&taken);
        }
    }
}

impl Kept<'_> {
    /// The record did not come about after all.
    pub fn give_back(self) {
        if let Some(taken) = self.taken {
            self.usage.lock().give_back(&taken);
        }
    }
}

/// What is left of one limit for one caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Left {
    /// The limit's name.
    pub limit: String,
    /// Approvals left today, where they are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Minor units left today, where they are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum: Option<u64>,
    /// Why this very approval would be refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reached: Option<String>,
    /// Seconds until it would not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

impl Usage {
    /// Puts other limits, and another time zone, in force. What was counted counts for them too.
    /// Rates go on for limits that are as they were, and start anew for the others.
    pub fn set_limits(&self, limits: &[Limit], time_zone: &TimeZone) {
        self.lock().set_limits(limits, time_zone);
    }

    /// What was approved today by the caller of `used`, with its certificate, of its kind, in its
    /// currency; without `used` itself.
    pub fn today(&self, used: &Use<'_>, now: Timestamp) -> Tally {
        let state = self.lock();
        let day = state.day(now);
        let counts = state
            .days
            .get(&day)
            .and_then(|day| day.rows.get(&Row::new(used)));
        counts.map_or_else(Tally::default, |counts| Tally {
            count: counts.count,
            sum: used
                .amount
                .map_or(0, |amount| counts.sum(amount.currency())),
        })
    }

    /// Whether `used` would be within every limit, without taking a place.
    pub fn check(&self, used: &Use<'_>, now: Timestamp) -> Result<(), Refusal> {
        self.lock().check(used, now)
    }

    /// What is left of every limit that applies to `used`.
    pub fn left(&self, used: &Use<'_>, now: Timestamp) -> Vec<Left> {
        self.lock().left(used, now)
    }

    /// Takes a place under every limit, or says which is reached.
    pub fn reserve(&self, used: &Use<'_>, now: Timestamp) -> Result<Reservation<'_>, Refusal> {
        let mut state = self.lock();
        state.check(used, now)?;
        let taken = state.add(used, now);
        drop(state);
        Ok(Reservation {
            usage: self,
            taken: Some(taken),
        })
    }

    /// Counts an approval of before, within limits or not.
    pub fn restore(&self, used: &Use<'_>, at: Timestamp) {
        let _ = self.lock().add(used, at);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before the lock is given back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn day(&self, now: Timestamp) -> Date {
        self.time_zone.to_datetime(now).date()
    }

    fn set_limits(&mut self, limits: &[Limit], time_zone: &TimeZone) {
        let before = std::mem::replace(&mut self.limits, limits.to_vec());
        self.time_zone = time_zone.clone();
        let due = std::mem::take(&mut self.due);
        self.due = due
            .into_iter()
            .filter_map(|(mut budget, at)| {
                let old = before.get(budget.limit)?;
                budget.limit = limits.iter().position(|limit| limit == old)?;
                Some((budget, at))
            })
            .collect();
        for day in self.days.values_mut() {
            day.budgets.clear();
            for (row, counts) in &day.rows {
                let used = Use {
                    caller: &row.caller,
                    certificate: &row.certificate,
                    account: &row.account,
                    kind: row.kind,
                    amount: None,
                };
                for (index, limit) in self.limits.iter().enumerate() {
                    if limit.applies_to(&used) {
                        let tally = day.budgets.entry(limit.budget(index, &used)).or_default();
                        let sum = limit
                            .currency
                            .as_deref()
                            .map_or(0, |currency| counts.sum(currency));
                        tally.count = tally.count.saturating_add(counts.count);
                        tally.sum = tally.sum.saturating_add(sum);
                    }
                }
            }
        }
    }

    fn check(&mut self, used: &Use<'_>, now: Timestamp) -> Result<(), Refusal> {
        self.follow_clock(used, now);
        let day = self.days.get(&self.day(now));
        for (index, limit) in self.limits.iter().enumerate() {
            if !limit.applies_to(used) {
                continue;
            }
            if let Some((reason, retry_after)) = self.reached(index, limit, day, used, now) {
                return Err(Refusal {
                    rule: format!("limit:{}", limit.name).into(),
                    reason,
                    cause: RefusalCause::Limit { retry_after },
                });
            }
        }
        let rows: usize = self.days.values().map(|day| day.rows.len()).sum();
        let known = day.is_some_and(|day| day.rows.contains_key(&Row::new(used)));
        if rows >= MOST_ROWS && !known {
            return Err(Refusal {
                rule: "usage-full".into(),
                reason: format!(
                    "{MOST_ROWS} callers, certificates and kinds are counted today, which is the limit"
                ),
                cause: RefusalCause::Limit {
                    retry_after: self.until_tomorrow(now),
                },
            });
        }
        Ok(())
    }

    /// Brings rates that a clock that was set back left in the far future to within their time.
    fn follow_clock(&mut self, used: &Use<'_>, now: Timestamp) {
        for (index, limit) in self.limits.iter().enumerate() {
            if let Some(rate) = limit.rate
                && limit.applies_to(used)
                && let Some(due) = self.due.get_mut(&limit.budget(index, used))
            {
                *due = rate.clamp(Some(*due), now);
            }
        }
    }

    fn reached(
        &self,
        index: usize,
        limit: &Limit,
        day: Option<&Day>,
        used: &Use<'_>,
        now: Timestamp,
    ) -> Option<(String, u32)> {
        let budget = limit.budget(index, used);
        let tally = day
            .and_then(|day| day.budgets.get(&budget))
            .copied()
            .unwrap_or_default();
        if let Some(most) = limit.count_per_day
            && tally.count >= most.get()
        {
            let reason = format!("{} approvals a day is the limit {}", most, limit.name);
            return Some((reason, self.until_tomorrow(now)));
        }
        if let (Some(most), Some(currency)) = (limit.sum_per_day, &limit.currency) {
            let counted = limit.counted(used.amount);
            if counted > 0 && tally.sum.saturating_add(counted) > most.get() {
                let left = most.get().saturating_sub(tally.sum);
                let reason = format!(
                    "{} a day is the limit {}; {} is left today",
                    shown(most.get(), currency),
                    limit.name,
                    shown(left, currency),
                );
                return Some((reason, self.until_tomorrow(now)));
            }
        }
        if let Some(rate) = limit.rate {
            let due = rate.clamp(self.due.get(&budget).copied(), now);
            let wait = due.duration_since(now) - rate.slack();
            if wait > SignedDuration::ZERO {
                let seconds = wait.as_millis().unsigned_abs().div_ceil(1_000);
                let reason = format!(
                    "{} approvals in {} s is the limit {}",
                    rate.count, rate.seconds, limit.name
                );
                return Some((reason, u32::try_from(seconds).unwrap_or(u32::MAX)));
            }
        }
        None
    }

    fn left(&self, used: &Use<'_>, now: Timestamp) -> Vec<Left> {
        let day = self.days.get(&self.day(now));
        let mut all = Vec::new();
        for (index, limit) in self.limits.iter().enumerate() {
            if !limit.applies_to(used) {
                continue;
            }
            let budget = limit.budget(index, used);
            let tally = day
                .and_then(|day| day.budgets.get(&budget))
                .copied()
                .unwrap_or_default();
            let reached = self.reached(index, limit, day, used, now);
            all.push(Left {
                limit: limit.name.clone(),
                count: limit
                    .count_per_day
                    .map(|most| most.get().saturating_sub(tally.count)),
                sum: limit
                    .sum_per_day
                    .map(|most| most.get().saturating_sub(tally.sum)),
                retry_after: reached.as_ref().map(|(_, seconds)| *seconds),
                reached: reached.map(|(reason, _)| reason),
            });
        }
        all
    }

    fn add(&mut self, used: &Use<'_>, now: Timestamp) -> Taken {
        let date = self.day(now);
        self.make_day(date, now);
        let row = Row::new(used);
        let day = self.days.entry(date).or_default();
        day.rows.entry(row.clone()).or_default().add(used.amount);
        for (index, limit) in self.limits.iter().enumerate() {
            if !limit.applies_to(used) {
                continue;
            }
            let budget = limit.budget(index, used);
            if let Some(rate) = limit.rate {
                let due = rate.clamp(self.due.get(&budget).copied(), now);
                let next = due.checked_add(rate.interval()).unwrap_or(due);
                self.due.insert(budget.clone(), next);
            }
            let tally = day.budgets.entry(budget).or_default();
            tally.count = tally.count.saturating_add(1);
            tally.sum = tally.sum.saturating_add(limit.counted(used.amount));
        }
        Taken {
            day: date,
            row,
            amount: used.amount,
        }
    }

    fn give_back(&mut self, taken: &Taken) {
        let Some(day) = self.days.get_mut(&taken.day) else {
            return;
        };
        if let Some(counts) = day.rows.get_mut(&taken.row) {
            counts.subtract(taken.amount);
        }
        let used = Use {
            caller: &taken.row.caller,
            certificate: &taken.row.certificate,
            account: &taken.row.account,
            kind: taken.row.kind,
            amount: taken.amount,
        };
        for (index, limit) in self.limits.iter().enumerate() {
            if !limit.applies_to(&used) {
                continue;
            }
            let budget = limit.budget(index, &used);
            if let Some(tally) = day.budgets.get_mut(&budget) {
                tally.count = tally.count.saturating_sub(1);
                tally.sum = tally.sum.saturating_sub(limit.counted(taken.amount));
            }
            if let (Some(rate), Some(due)) = (limit.rate, self.due.get_mut(&budget)) {
                *due = due.checked_sub(rate.interval()).unwrap_or(*due);
            }
        }
    }

    /// Room for `date`: forgets the day farthest from it once there would be three, and, as
    /// seldom, the rates that have recovered.
    fn make_day(&mut self, date: Date, now: Timestamp) {
        if self.days.contains_key(&date) {
            if self.due.len() >= MOST_ROWS {
                self.due.retain(|_, due| *due > now);
            }
            return;
        }
        self.due.retain(|_, due| *due > now);
        if self.days.len() >= 2 {
            let farthest = self
                .days
                .keys()
                .copied()
                .max_by_key(|day| date.duration_since(*day).abs());
            if let Some(day) = farthest {
                self.days.remove(&day);
            }
        }
    }

    fn until_tomorrow(&self, now: Timestamp) -> u32 {
        let tomorrow = self
            .day(now)
            .tomorrow()
            .ok()
            .and_then(|day| day.to_zoned_datetime(self.time_zone.clone()).ok())
            .map(|midnight| midnight.timestamp());
        let seconds = tomorrow.map_or(86_400, |at| at.as_second() - now.as_second());
        u32::try_from(seconds.max(1)).unwrap_or(u32::MAX)
    }
}

/// An amount as people read it; zero is no [`Money`].
fn shown(minor: u64, currency: &str) -> String {
    i64::try_from(minor)
        .ok()
        .and_then(|minor| Money::new(minor, currency).ok())
        .map_or_else(|| format!("{currency} {minor}"), |money| money.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOON: i64 = 1_767_268_800; // 2026-01-01T12:00:00Z

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn limit(text: &str) -> Limit {
        toml::from_str(&format!("name = \"l\"\n{text}")).unwrap()
    }

    struct Scene {
        caller: Caller,
        account: AccountId,
    }

    impl Scene {
        fn new(name: &str) -> Self {
            Self {
                caller: Caller::Client(name.parse().unwrap()),
                account: "acme".parse().unwrap(),
            }
        }

        fn used(&self, minor: i64) -> Use<'_> {
            Use {
                caller: &self.caller,
                certificate: "aa",
                account: &self.account,
                kind: "withdrawal".parse().unwrap(),
                amount: Some(Money::new(minor, "CNY").unwrap()),
            }
        }
    }

    fn usage(limits: &[Limit]) -> Usage {
        Limit::check(limits).unwrap();
        let usage = Usage::default();
        usage.set_limits(limits, &TimeZone::UTC);
        usage
    }

    fn take(usage: &Usage, used: &Use<'_>, now: i64) -> Result<(), u32> {
        match usage.reserve(used, at(now)) {
            Ok(place) => {
                let _ = place.keep();
                Ok(())
            }
            Err(Refusal {
                cause: RefusalCause::Limit { retry_after },
                ..
            }) => Err(retry_after),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_client_has_a_day_of_its_own() {
        let (till, other) = (Scene::new("till"), Scene::new("other"));
        let usage = usage(&[limit("count-per-day = 2")]);
        take(&usage, &till.used(1), NOON).unwrap();
        take(&usage, &till.used(1), NOON).unwrap();
        assert_eq!(take(&usage, &till.used(1), NOON), Err(43_200));
        take(&usage, &other.used(1), NOON).unwrap();
        take(&usage, &till.used(1), NOON + 43_200).unwrap();
        // The clock is set back over midnight: yesterday is still full.
        assert!(take(&usage, &till.used(1), NOON).is_err());
    }

    #[test]
    fn a_sum_is_of_one_currency_and_says_what_is_left() {
        let till = Scene::new("till");
        let usage = usage(&[limit("per = []\nsum-per-day = 1000\ncurrency = \"CNY\"")]);
        take(&usage, &till.used(700), NOON).unwrap();
        let refusal = usage.check(&till.used(301), at(NOON)).unwrap_err();
        assert_eq!(refusal.rule, "limit:l");
        assert!(refusal.reason.contains("CNY 3.00"), "{}", refusal.reason);
        let dollars = Use {
            amount: Some(Money::new(5_000, "USD").unwrap()),
            ..till.used(1)
        };
        take(&usage, &dollars, NOON).unwrap();
        take(&usage, &till.used(300), NOON).unwrap();
        assert_eq!(
            usage.today(&till.used(1), at(NOON)),
            Tally {
                count: 3,
                sum: 1000
            }
        );
        assert_eq!(usage.left(&till.used(1), at(NOON))[0].sum, Some(0));
    }

    #[test]
    fn a_rate_lets_a_burst_through_and_recovers() {
        let till = Scene::new("till");
        let usage = usage(&[limit("rate = { count = 3, seconds = 60 }")]);
        for _ in 0..3 {
            take(&usage, &till.used(1), NOON).unwrap();
        }
        assert_eq!(take(&usage, &till.used(1), NOON), Err(20));
        assert_eq!(take(&usage, &till.used(1), NOON + 19), Err(1));
        take(&usage, &till.used(1), NOON + 20).unwrap();
        // Set back by a year: blocked for a minute at the most.
        let past = NOON - 31_536_000;
        assert!(take(&usage, &till.used(1), past).unwrap_err() <= 60);
        take(&usage, &till.used(1), past + 60).unwrap();
    }

    #[test]
    fn a_place_that_is_dropped_is_free_again() {
        let till = Scene::new("till");
        let usage = usage(&[limit(
            "count-per-day = 1\nrate = { count = 1, seconds = 5 }",
        )]);
        drop(usage.reserve(&till.used(1), at(NOON)).unwrap());
        let kept = usage.reserve(&till.used(1), at(NOON)).unwrap().keep();
        kept.give_back();
        assert_eq!(usage.today(&till.used(1), at(NOON)), Tally::default());
        take(&usage, &till.used(1), NOON).unwrap();
        assert!(take(&usage, &till.used(1), NOON).is_err());
    }

    #[test]
    fn a_limit_applies_to_what_it_names() {
        let (till, other) = (Scene::new("till"), Scene::new("other"));
        let person = Scene {
            caller: Caller::Unix { uid: 7 },
            account: "acme".parse().unwrap(),
        };
        let rival = Scene {
            account: "rival".parse().unwrap(),
            ..Scene::new("till")
        };
        let packet = |scene| Use {
            kind: "red-packet".parse().unwrap(),
            ..Scene::used(scene, 1)
        };
        for (filter, limited, free) in [
            (
                "client = \"till\"",
                vec![till.used(1), rival.used(1), packet(&till)],
                vec![other.used(1), person.used(1)],
            ),
            (
                "account = \"acme\"",
                vec![till.used(1), other.used(1), person.used(1)],
                vec![rival.used(1)],
            ),
            (
                "kinds = [\"red-packet\"]",
                vec![packet(&till), packet(&rival)],
                vec![till.used(1), rival.used(1)],
            ),
        ] {
            let usage = usage(&[limit(&format!("per = []\ncount-per-day = 1\n{filter}"))]);
            for used in &free {
                take(&usage, used, NOON).unwrap();
                take(&usage, used, NOON).unwrap();
                assert_eq!(usage.left(used, at(NOON)), []);
            }
            let first = &limited[0];
            take(&usage, first, NOON).unwrap();
            for used in &free {
                drop(usage.reserve(used, at(NOON)).unwrap());
            }
            for used in &limited {
                assert!(take(&usage, used, NOON).is_err(), "{filter}: {used:?}");
                assert_eq!(usage.left(used, at(NOON))[0].count, Some(0));
            }
        }
    }

    #[test]
    fn a_budget_is_shared_by_all_that_are_not_told_apart() {
        let (till, other) = (Scene::new("till"), Scene::new("other"));
        let one = till.used(1);
        let client = Use {
            caller: &other.caller,
            ..one
        };
        let certificate = Use {
            certificate: "bb",
            ..one
        };
        let kind = Use {
            kind: "red-packet".parse().unwrap(),
            ..one
        };
        for (per, own) in [
            ("[]", [false, false, false]),
            ("[\"client\"]", [true, false, false]),
            ("[\"certificate\"]", [false, true, false]),
            ("[\"kind\"]", [false, false, true]),
            (
                "[\"client\", \"certificate\", \"kind\"]",
                [true, true, true],
            ),
        ] {
            let usage = usage(&[limit(&format!("per = {per}\ncount-per-day = 1"))]);
            take(&usage, &one, NOON).unwrap();
            for (used, has_its_own) in [client, certificate, kind].iter().zip(own) {
                assert_eq!(
                    usage.check(used, at(NOON)).is_ok(),
                    has_its_own,
                    "{per}: {used:?}"
                );
            }
        }
    }

    #[test]
    fn a_rate_lets_its_count_through_at_once_and_no_more() {
        let till = Scene::new("till");
        for (count, seconds) in [(1, 1), (7, 60), (300, 1), (600, 7), (2_000, 1)] {
            let usage = usage(&[limit(&format!(
                "rate = {{ count = {count}, seconds = {seconds} }}"
            ))]);
            let through = (0..count + 5)
                .filter(|_| take(&usage, &till.used(1), NOON).is_ok())
                .count();
            assert_eq!(through, count, "in {seconds} s");
            assert_eq!(take(&usage, &till.used(1), NOON + seconds), Ok(()));
        }
    }

    #[test]
    fn a_rate_goes_on_for_a_limit_that_stays_and_begins_anew_for_another() {
        let till = Scene::new("till");
        let rate = limit("rate = { count = 1, seconds = 60 }");
        let more = Limit {
            name: "more".into(),
            ..limit("count-per-day = 100")
        };
        let usage = usage(std::slice::from_ref(&rate));
        take(&usage, &till.used(1), NOON).unwrap();
        // In another place of the list it is the same limit.
        usage.set_limits(&[more.clone(), rate.clone()], &TimeZone::UTC);
        assert_eq!(take(&usage, &till.used(1), NOON), Err(60));
        let wider = limit("rate = { count = 2, seconds = 60 }");
        usage.set_limits(&[wider, more], &TimeZone::UTC);
        take(&usage, &till.used(1), NOON).unwrap();
        take(&usage, &till.used(1), NOON).unwrap();
        assert!(take(&usage, &till.used(1), NOON).is_err());
    }

    #[test]
    fn a_day_begins_at_midnight_of_the_time_zone() {
        let till = Scene::new("till");
        let usage = Usage::default();
        // Midnight there is 16:00 UTC.
        let shanghai = TimeZone::fixed(jiff::tz::offset(8));
        usage.set_limits(&[limit("count-per-day = 1")], &shanghai);
        take(&usage, &till.used(1), NOON).unwrap();
        assert_eq!(take(&usage, &till.used(1), NOON), Err(4 * 3_600));
        assert_eq!(take(&usage, &till.used(1), NOON + 4 * 3_600 - 1), Err(1));
        take(&usage, &till.used(1), NOON + 4 * 3_600).unwrap();
    }

    #[test]
    fn two_days_are_remembered_and_the_farthest_is_forgotten() {
        const DAY: i64 = 86_400;
        let till = Scene::new("till");
        let usage = usage(&[limit("count-per-day = 1")]);
        for day in 0..3 {
            take(&usage, &till.used(1), NOON + day * DAY).unwrap();
        }
        assert!(take(&usage, &till.used(1), NOON + 2 * DAY).is_err());
        assert!(take(&usage, &till.used(1), NOON + DAY).is_err());
        assert_eq!(usage.today(&till.used(1), at(NOON)), Tally::default());
    }

    #[test]
    fn what_is_left_says_what_is_reached_and_until_when() {
        let till = Scene::new("till");
        let usage = usage(&[limit(
            "count-per-day = 2\nsum-per-day = 500\ncurrency = \"CNY\"\nrate = { count = 5, seconds = 60 }",
        )]);
        take(&usage, &till.used(200), NOON).unwrap();
        let left = |minor| usage.left(&till.used(minor), at(NOON)).remove(0);
        assert_eq!((left(1).count, left(1).sum), (Some(1), Some(300)));
        assert_eq!((left(300).reached, left(300).retry_after), (None, None));
        let reached = left(301);
        assert!(reached.reached.unwrap().contains("CNY 3.00"));
        assert_eq!(reached.retry_after, Some(43_200));
    }

    #[test]
    fn what_was_approved_before_counts_though_it_is_beyond_a_limit() {
        let till = Scene::new("till");
        let usage = usage(&[limit("count-per-day = 1")]);
        for _ in 0..3 {
            usage.restore(&till.used(5), at(NOON));
        }
        let counted = Tally { count: 3, sum: 15 };
        assert_eq!(usage.today(&till.used(1), at(NOON)), counted);
        assert!(take(&usage, &till.used(1), NOON).is_err());
        // A sum that was exceeded stops its currency and no other.
        let sum = limit("sum-per-day = 10\ncurrency = \"CNY\"");
        for _ in 0..2 {
            // The same limits again count the same.
            usage.set_limits(std::slice::from_ref(&sum), &TimeZone::UTC);
        }
        let dollars = Use {
            amount: Some(Money::new(5_000, "USD").unwrap()),
            ..till.used(1)
        };
        assert!(usage.check(&till.used(1), at(NOON)).is_err());
        assert_eq!(usage.check(&dollars, at(NOON)), Ok(()));
        let wide = limit("sum-per-day = 16\ncurrency = \"CNY\"");
        for _ in 0..2 {
            usage.set_limits(std::slice::from_ref(&wide), &TimeZone::UTC);
        }
        assert_eq!(usage.left(&till.used(1), at(NOON))[0].sum, Some(1));
    }

    #[test]
    fn a_rate_goes_on_over_midnight() {
        let till = Scene::new("till");
        let usage = usage(&[limit("rate = { count = 1, seconds = 60 }")]);
        let midnight = NOON + 43_200;
        take(&usage, &till.used(1), midnight - 1).unwrap();
        let other = Scene::new("other");
        take(&usage, &other.used(1), midnight).unwrap();
        assert_eq!(take(&usage, &till.used(1), midnight), Err(59));
    }

    #[test]
    fn rates_that_have_recovered_are_forgotten() {
        let usage = usage(&[limit("rate = { count = 1, seconds = 1 }")]);
        let restore = |uid, at_second| {
            let scene = Scene {
                caller: Caller::Unix { uid },
                account: "acme".parse().unwrap(),
            };
            usage.restore(&scene.used(1), at(at_second));
            usage.lock().due.len()
        };
        let most = u32::try_from(MOST_ROWS).unwrap();
        for uid in 0..most {
            restore(uid, NOON);
        }
        assert_eq!(restore(most, NOON + 10), 1);
        // And with each day.
        assert_eq!(restore(1, NOON + 86_400), 1);
    }

    #[test]
    fn a_caller_too_many_is_refused_and_those_that_are_counted_are_not() {
        let usage = usage(&[]);
        let scene = |uid| Scene {
            caller: Caller::Unix { uid },
            account: "acme".parse().unwrap(),
        };
        for uid in 0..u32::try_from(MOST_ROWS).unwrap() {
            usage.restore(&scene(uid).used(1), at(NOON));
        }
        take(&usage, &scene(0).used(1), NOON).unwrap();
        let stranger = scene(u32::MAX);
        let refusal = usage.check(&stranger.used(1), at(NOON)).unwrap_err();
        assert_eq!(refusal.rule, "usage-full");
        assert_eq!(take(&usage, &stranger.used(1), NOON), Err(43_200));
    }

    proptest! {
        /// What was counted before limits changed counts after, as if they had been there.
        #[test]
        fn new_limits_find_what_was_counted(
            uses in proptest::collection::vec((0..3_usize, 0..2_usize, 1..500_i64), 0..40),
            most in 1..20_u64,
        ) {
            let scenes = ["a", "b", "c"].map(Scene::new);
            let certificates = ["aa", "bb"];
            let limits = [
                limit(&format!("count-per-day = {most}")),
                Limit { name: "m".into(), ..limit(&format!("per = [\"certificate\"]\nsum-per-day = {}\ncurrency = \"CNY\"", most * 100)) },
            ];
            let (early, late) = (usage(&limits), usage(&[]));
            for (scene, certificate, minor) in &uses {
                let used = Use { certificate: certificates[*certificate], ..scenes[*scene].used(*minor) };
                early.restore(&used, at(NOON));
                late.restore(&used, at(NOON));
            }
            late.set_limits(&limits, &TimeZone::UTC);
            for scene in &scenes {
                for certificate in certificates {
                    let used = Use { certificate, ..scene.used(1) };
                    prop_assert_eq!(early.left(&used, at(NOON)), late.left(&used, at(NOON)));
                }
            }
        }

        /// However many ask, no more than the limit get a place.
        #[test]
        fn nobody_gets_past_a_limit(minors in proptest::collection::vec(1..400_i64, 1..60)) {
            let till = Scene::new("till");
            let usage = usage(&[limit("count-per-day = 7\nsum-per-day = 1000\ncurrency = \"CNY\"")]);
            for minor in minors {
                let _ = take(&usage, &till.used(minor), NOON);
            }
            let today = usage.today(&till.used(1), at(NOON));
            prop_assert!(today.count <= 7 && today.sum <= 1000, "{:?}", today);
        }
    }
}
