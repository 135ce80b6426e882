//! Notices to the platform that wait for delivery, and the addresses that asked for them.

use std::time::Duration;

use jiff::Timestamp;

use super::{Record, StoreError, Tx, millis};
use crate::base::ids::OperationId;

/// An address of the platform that is told of operations.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Its id.
    pub id: String,
    /// The platform key that made it.
    pub platform_key: String,
    /// Where to.
    pub url: String,
    /// The secret of its signatures, sealed.
    pub secret: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Adds a subscription.
pub async fn subscribe(tx: &mut Tx<'_>, subscription: &Subscription) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO subscriptions (id, platform_key, url, secret, created_at)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(subscription.id.as_str())
        .bind(subscription.platform_key.as_str())
        .bind(subscription.url.as_str())
        .bind(subscription.secret.clone())
        .bind(millis(subscription.created_at)),
    )
    .await?;
    Ok(())
}

/// The subscriptions that were not ended.
pub async fn subscriptions(tx: &mut Tx<'_>) -> Result<Vec<Subscription>, StoreError> {
    tx.all(sqlx::query(
        "SELECT id, platform_key, url, secret, created_at FROM subscriptions
         WHERE ended_at IS NULL ORDER BY created_at, id",
    ))
    .await?
    .iter()
    .map(subscription)
    .collect()
}

/// The subscription with this id, unless it was ended.
pub async fn find_subscription(
    tx: &mut Tx<'_>,
    id: &str,
) -> Result<Option<Subscription>, StoreError> {
    tx.optional(
        sqlx::query(
            "SELECT id, platform_key, url, secret, created_at FROM subscriptions
             WHERE id = $1 AND ended_at IS NULL",
        )
        .bind(id),
    )
    .await?
    .map(|row| subscription(&row))
    .transpose()
}

/// The subscription with this id, and when it was ended, if it was.
pub async fn subscription_ever(
    tx: &mut Tx<'_>,
    id: &str,
) -> Result<Option<(Subscription, Option<Timestamp>)>, StoreError> {
    tx.optional(
        sqlx::query(
            "SELECT id, platform_key, url, secret, created_at, ended_at FROM subscriptions
             WHERE id = $1",
        )
        .bind(id),
    )
    .await?
    .map(|row| Ok((subscription(&row)?, row.optional_time(5)?)))
    .transpose()
}

/// Ends a subscription and what still waits for it; `false` where there is none.
pub async fn unsubscribe(tx: &mut Tx<'_>, id: &str, now: Timestamp) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE subscriptions SET ended_at = $2 WHERE id = $1 AND ended_at IS NULL",
            )
            .bind(id)
            .bind(millis(now)),
        )
        .await?;
    if changed == 1 {
        tx.execute(
            sqlx::query(
                "UPDATE outbox SET abandoned_at = $2, error = 'the subscription was ended'
                 WHERE subscription = $1 AND delivered_at IS NULL AND abandoned_at IS NULL",
            )
            .bind(id)
            .bind(millis(now)),
        )
        .await?;
    }
    Ok(changed == 1)
}

fn subscription(row: &Record) -> Result<Subscription, StoreError> {
    Ok(Subscription {
        id: row.get(0)?,
        platform_key: row.get(1)?,
        url: row.get(2)?,
        secret: row.get(3)?,
        created_at: row.time(4)?,
    })
}

/// A notice on its way to one receiver.
#[derive(Debug, Clone)]
pub struct Notice {
    /// The key of this delivery.
    pub id: String,
    /// The event, by which the receiver knows a repetition.
    pub event: String,
    /// To whom; none is the address in the configuration.
    pub subscription: Option<String>,
    /// The operation it tells of.
    pub operation: OperationId,
    /// Its place among the events of that operation.
    pub place: i64,
    /// The body, JSON.
    pub body: String,
    /// Tries so far.
    pub attempts: i64,
}

/// Adds a notice, due at once.
pub async fn insert(tx: &mut Tx<'_>, notice: &Notice, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO outbox (id, event, subscription, operation, place, body, created_at,
                                 next_attempt_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
        )
        .bind(notice.id.as_str())
        .bind(notice.event.as_str())
        .bind(notice.subscription.clone())
        .bind(notice.operation.as_str())
        .bind(notice.place)
        .bind(notice.body.as_str())
        .bind(millis(now)),
    )
    .await?;
    Ok(())
}

/// A notice that still waits.
const WAITS: &str = "o.delivered_at IS NULL AND o.abandoned_at IS NULL";

/// Nothing before it of the same operation still waits for the same receiver. A notice that was
/// given up holds nothing back.
const FIRST: &str = "NOT EXISTS (
        SELECT 1 FROM outbox e
        WHERE e.operation = o.operation AND e.place < o.place
          AND COALESCE(e.subscription, '') = COALESCE(o.subscription, '')
          AND e.delivered_at IS NULL AND e.abandoned_at IS NULL)";

/// Whom notices wait for, as the database names them: a subscription, or the address in the
/// configuration, whose name is empty. Each is one step through an index, however many wait for it.
pub async fn receivers(tx: &mut Tx<'_>) -> Result<Vec<String>, StoreError> {
    let least = format!("SELECT MIN(COALESCE(o.subscription, '')) FROM outbox o WHERE {WAITS}");
    let sql = format!(
        "WITH RECURSIVE found (receiver) AS (
             {least}
             UNION ALL
             SELECT ({least} AND COALESCE(o.subscription, '') > found.receiver)
             FROM found WHERE found.receiver IS NOT NULL)
         SELECT receiver FROM found WHERE receiver IS NOT NULL"
    );
    tx.all(sqlx::query(sqlx::AssertSqlSafe(sql)))
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// A notice that is due.
#[derive(Debug, Clone)]
pub struct Due {
    /// The notice.
    pub notice: Notice,
    /// Since when.
    pub since: Timestamp,
}

/// Up to `limit` notices for this receiver that are due, longest due first.
pub async fn due(
    tx: &mut Tx<'_>,
    now: Timestamp,
    receiver: &str,
    limit: usize,
) -> Result<Vec<Due>, StoreError> {
    let sql = format!(
        "SELECT o.id, o.event, o.subscription, o.operation, o.place, o.body, o.attempts,
                o.next_attempt_at
         FROM outbox o
         WHERE COALESCE(o.subscription, '') = $2 AND o.next_attempt_at <= $1 AND {WAITS} AND {FIRST}
         ORDER BY o.next_attempt_at LIMIT $3"
    );
    tx.all(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(millis(now))
            .bind(receiver.to_owned())
            .bind(i64::try_from(limit).unwrap_or(i64::MAX)),
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Due {
            notice: notice(row)?,
            since: row.time(7)?,
        })
    })
    .collect()
}

/// The notice in the first seven columns of a row.
fn notice(row: &Record) -> Result<Notice, StoreError> {
    Ok(Notice {
        id: row.get(0)?,
        event: row.get(1)?,
        subscription: row.get(2)?,
        operation: row.parsed(3, "outbox.operation")?,
        place: row.get(4)?,
        body: row.get(5)?,
        attempts: row.get(6)?,
    })
}

/// Takes a due notice for one try: its next is put off by `hold`, so that no other instance takes
/// it meanwhile. Gives it with the try counted, or nothing where another instance was faster.
pub async fn claim(
    tx: &mut Tx<'_>,
    due: Due,
    now: Timestamp,
    hold: Duration,
) -> Result<Option<Notice>, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE outbox SET next_attempt_at = $2, attempts = attempts + 1
                 WHERE id = $1 AND next_attempt_at = $3 AND delivered_at IS NULL
                   AND abandoned_at IS NULL",
            )
            .bind(due.notice.id.as_str())
            .bind(millis(now + hold))
            .bind(millis(due.since)),
        )
        .await?;
    Ok((changed == 1).then(|| Notice {
        attempts: due.notice.attempts + 1,
        ..due.notice
    }))
}

/// What came of a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver took it.
    Delivered,
    /// It will be tried again at this time.
    Retry(Timestamp),
    /// It was given up.
    Abandoned,
}

/// Notes what came of a try, and why it failed; nothing where the notice has been taken for
/// another try since, or is settled.
///
/// Those that come after it for the same receiver go with it: they are put off as long, so that
/// who looks for what is due need not pass them by, and are due once it is settled.
pub async fn settle(
    tx: &mut Tx<'_>,
    notice: &Notice,
    outcome: Outcome,
    error: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (column, at) = match outcome {
        Outcome::Delivered => ("delivered_at", now),
        Outcome::Retry(at) => ("next_attempt_at", at),
        Outcome::Abandoned => ("abandoned_at", now),
    };
    let sql = format!(
        "UPDATE outbox SET {column} = $2, error = $3
         WHERE id = $1 AND attempts = $4 AND delivered_at IS NULL AND abandoned_at IS NULL"
    );
    let changed = tx
        .execute(
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(notice.id.as_str())
                .bind(millis(at))
                .bind(error.map(ToOwned::to_owned))
                .bind(notice.attempts),
        )
        .await?;
    if changed == 1 {
        tx.execute(
            sqlx::query(
                "UPDATE outbox SET next_attempt_at = $1
                 WHERE operation = $2 AND place > $3 AND COALESCE(subscription, '') = $4
                   AND delivered_at IS NULL AND abandoned_at IS NULL AND attempts = 0",
            )
            .bind(millis(at))
            .bind(notice.operation.as_str())
            .bind(notice.place)
            .bind(notice.subscription.clone().unwrap_or_default()),
        )
        .await?;
    }
    Ok(())
}

/// When the next notice for this receiver is due.
pub async fn next_due(tx: &mut Tx<'_>, receiver: &str) -> Result<Option<Timestamp>, StoreError> {
    let sql = format!(
        "SELECT o.next_attempt_at FROM outbox o
         WHERE COALESCE(o.subscription, '') = $1 AND {WAITS} AND {FIRST}
         ORDER BY o.next_attempt_at LIMIT 1"
    );
    tx.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(receiver.to_owned()))
        .await?
        .map(|row| row.time(0))
        .transpose()
}

/// How many deliveries were given up, those of ended subscriptions left out.
pub async fn abandoned(tx: &mut Tx<'_>) -> Result<i64, StoreError> {
    tx.one(sqlx::query(
        "SELECT COUNT(*) FROM outbox o WHERE abandoned_at IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM subscriptions s
                         WHERE s.id = o.subscription AND s.ended_at IS NOT NULL)",
    ))
    .await?
    .get(0)
}

/// Where a delivery stands.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The notice.
    pub notice: Notice,
    /// When it was written.
    pub created_at: Timestamp,
    /// When the next try is due.
    pub next_attempt_at: Timestamp,
    /// Why the last try failed.
    pub error: Option<String>,
    /// When the receiver took it.
    pub delivered_at: Option<Timestamp>,
    /// When it was given up.
    pub abandoned_at: Option<Timestamp>,
}

/// Deliveries of a subscription, newest first; those given up only, where that is asked.
pub async fn deliveries(
    tx: &mut Tx<'_>,
    subscription: &str,
    dead_only: bool,
    limit: i64,
) -> Result<Vec<Delivery>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT id, event, subscription, operation, place, body, attempts, created_at,
                    next_attempt_at, error, delivered_at, abandoned_at
             FROM outbox
             WHERE subscription = $1 AND ($2 = 0 OR abandoned_at IS NOT NULL)
             ORDER BY created_at DESC, place DESC, id LIMIT $3",
        )
        .bind(subscription)
        .bind(i64::from(dead_only))
        .bind(limit),
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Delivery {
            notice: notice(row)?,
            created_at: row.time(7)?,
            next_attempt_at: row.time(8)?,
            error: row.get(9)?,
            delivered_at: row.optional_time(10)?,
            abandoned_at: row.optional_time(11)?,
        })
    })
    .collect()
}

/// Makes a delivery of this subscription due again, whatever came of it; `false` where there is
/// none.
pub async fn replay(
    tx: &mut Tx<'_>,
    subscription: &str,
    id: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE outbox SET attempts = 0, next_attempt_at = $3, delivered_at = NULL,
                                   abandoned_at = NULL
                 WHERE id = $2 AND subscription = $1",
            )
            .bind(subscription)
            .bind(id)
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}
