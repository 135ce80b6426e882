//! Notices to the platform that wait for delivery.

use std::time::Duration;

use jiff::Timestamp;

use super::{StoreError, Tx, millis};
use crate::base::ids::OperationId;

/// A notice.
#[derive(Debug, Clone)]
pub struct Notice {
    /// Its id, by which the receiver knows a repetition.
    pub id: String,
    /// The operation it tells of.
    pub operation: OperationId,
    /// The body, JSON.
    pub body: String,
    /// Tries so far.
    pub attempts: i64,
}

/// Adds a notice, due at once.
pub async fn insert(tx: &mut Tx<'_>, notice: &Notice, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO outbox (id, operation, body, created_at, next_attempt_at)
             VALUES ($1, $2, $3, $4, $4)",
        )
        .bind(notice.id.as_str())
        .bind(notice.operation.as_str())
        .bind(notice.body.as_str())
        .bind(millis(now)),
    )
    .await?;
    Ok(())
}

/// Takes up to `limit` due notices and puts their next try off by `hold`, so that no other
/// instance takes them meanwhile.
pub async fn claim(
    tx: &mut Tx<'_>,
    now: Timestamp,
    hold: Duration,
    limit: i64,
) -> Result<Vec<Notice>, StoreError> {
    let due = tx
        .all(
            sqlx::query(
                "SELECT id, operation, body, attempts, next_attempt_at FROM outbox
                 WHERE delivered_at IS NULL AND abandoned_at IS NULL AND next_attempt_at <= $1
                 ORDER BY created_at, id LIMIT $2",
            )
            .bind(millis(now))
            .bind(limit),
        )
        .await?;
    let mut claimed = Vec::with_capacity(due.len());
    for row in &due {
        let id: String = row.get(0)?;
        let until = i64::try_from(hold.as_millis())
            .unwrap_or(i64::MAX)
            .saturating_add(millis(now));
        let changed = tx
            .execute(
                sqlx::query(
                    "UPDATE outbox SET next_attempt_at = $2, attempts = attempts + 1
                     WHERE id = $1 AND next_attempt_at = $3 AND delivered_at IS NULL",
                )
                .bind(id.as_str())
                .bind(until)
                .bind(row.get::<i64>(4)?),
            )
            .await?;
        if changed == 1 {
            claimed.push(Notice {
                id,
                operation: row.parsed(1, "outbox.operation")?,
                body: row.get(2)?,
                attempts: row.get::<i64>(3)? + 1,
            });
        }
    }
    Ok(claimed)
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

/// Notes what came of a try.
pub async fn settle(
    tx: &mut Tx<'_>,
    id: &str,
    outcome: Outcome,
    now: Timestamp,
) -> Result<(), StoreError> {
    let query = match outcome {
        Outcome::Delivered => sqlx::query("UPDATE outbox SET delivered_at = $2 WHERE id = $1")
            .bind(id)
            .bind(millis(now)),
        Outcome::Retry(at) => sqlx::query("UPDATE outbox SET next_attempt_at = $2 WHERE id = $1")
            .bind(id)
            .bind(millis(at)),
        Outcome::Abandoned => sqlx::query("UPDATE outbox SET abandoned_at = $2 WHERE id = $1")
            .bind(id)
            .bind(millis(now)),
    };
    tx.execute(query).await?;
    Ok(())
}

/// When the next undelivered notice is due.
pub async fn next_due(tx: &mut Tx<'_>) -> Result<Option<Timestamp>, StoreError> {
    tx.one(sqlx::query(
        "SELECT MIN(next_attempt_at) FROM outbox
         WHERE delivered_at IS NULL AND abandoned_at IS NULL",
    ))
    .await?
    .optional_time(0)
}
