//! Approvals of before the start, as far as policy counts them.
//!
//! Most rule sets do not look at what was approved before, and reading a day's records back takes
//! time in proportion to them. So the records are read once, when the first set that looks at
//! them is put in force: at the start, or at a later reload. What came after the start is counted
//! as it happens; the log as it was at the start has the rest, so nothing is counted twice.

use std::sync::{Mutex, PoisonError};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::RestoreError;
use super::trail::{ApprovalRecord, read};
use crate::audit::{Record, Recovered};
use crate::base::ids::AccountId;
use crate::policy::{Caller, Usage, Use};
use crate::statement::{Kind, Money};

/// A step back of the clock that is survived: records up to this much before midnight are read.
const SLACK: SignedDuration = SignedDuration::from_hours(1);

/// The log as it was at the start, until it was read.
#[derive(Default)]
pub struct CountedBefore(Mutex<Option<Recovered>>);

impl CountedBefore {
    /// Remembers where the records are.
    pub fn hold(&self, log: Recovered) {
        *self.lock() = Some(log);
    }

    /// Counts the approvals of today that were recorded before the start, unless that was done.
    pub fn read(
        &self,
        usage: &Usage,
        time_zone: &TimeZone,
        now: Timestamp,
    ) -> Result<(), RestoreError> {
        // Held while reading: another reload waits, and does not count the same records.
        let mut held = self.lock();
        let Some(log) = held.as_ref() else {
            return Ok(());
        };
        let midnight = time_zone
            .to_datetime(now)
            .date()
            .to_zoned_datetime(time_zone.clone())
            .map_or(now, |midnight| midnight.timestamp());
        let since = midnight.checked_sub(SLACK).unwrap_or(midnight);
        // Counted once all could be read: a set that is refused for a broken log leaves no half.
        for record in log.since(since)? {
            Counted::of(&record?)?;
        }
        for record in log.since(since)? {
            let record = record?;
            if let Some(counted) = Counted::of(&record)? {
                usage.restore(&counted.used(), record.time);
            }
        }
        *held = None;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Recovered>> {
        // It is changed in one step each time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of an `approval` record is counted.
struct Counted {
    owner: Caller,
    certificate: String,
    statement: Statement,
}

#[derive(Deserialize)]
struct Payload {
    statement: Statement,
}

#[derive(Deserialize)]
struct Statement {
    kind: Kind,
    account: AccountId,
    amount: Option<i64>,
    currency: Option<String>,
}

impl Counted {
    fn of(record: &Record) -> Result<Option<Self>, RestoreError> {
        if record.kind != ApprovalRecord::KIND {
            return Ok(None);
        }
        let body: ApprovalRecord = read(record)?;
        let payload: Payload =
            serde_json::from_str(body.payload.get()).map_err(|source| RestoreError::Record {
                seq: record.seq,
                source,
            })?;
        Ok(Some(Self {
            owner: body.owner,
            certificate: body.certificate,
            statement: payload.statement,
        }))
    }

    fn used(&self) -> Use<'_> {
        let statement = &self.statement;
        Use {
            caller: &self.owner,
            certificate: &self.certificate,
            account: &statement.account,
            kind: statement.kind,
            amount: match (statement.amount, &statement.currency) {
                (Some(minor), Some(currency)) => Money::new(minor, currency).ok(),
                _ => None,
            },
        }
    }
}
