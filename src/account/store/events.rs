//! What happened in an account, for its administrators to read.

use jiff::Timestamp;

use super::{StoreError, Tx, millis};
use crate::base::ids::{AccountId, Jti};

/// An event.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its id.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// What, as the audit trail calls it.
    pub kind: String,
    /// In which request.
    pub request: String,
    /// The facts.
    pub body: serde_json::Value,
}

/// Adds an event.
pub async fn insert(
    tx: &mut Tx<'_>,
    account: &AccountId,
    kind: &str,
    request: &str,
    body: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO events (id, account, at, kind, request, body)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(Jti::random().as_str())
        .bind(account.as_str())
        .bind(millis(now))
        .bind(kind)
        .bind(request)
        .bind(body),
    )
    .await?;
    Ok(())
}

/// Events of an account, newest first, behind the event `after`; at most `limit`.
pub async fn list(
    tx: &mut Tx<'_>,
    account: &AccountId,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    let start = match after {
        Some(id) => tx
            .optional(
                sqlx::query("SELECT at FROM events WHERE id = $1 AND account = $2")
                    .bind(id)
                    .bind(account.as_str()),
            )
            .await?
            .map(|row| row.get::<i64>(0))
            .transpose()?
            .map(|at| (at, id)),
        None => None,
    };
    let (before, behind) = start.unwrap_or((i64::MAX, ""));
    tx.all(
        sqlx::query(
            "SELECT id, at, kind, request, body FROM events
             WHERE account = $1 AND at <= $2 AND (at < $2 OR id > $3)
             ORDER BY at DESC, id LIMIT $4",
        )
        .bind(account.as_str())
        .bind(before)
        .bind(behind)
        .bind(limit),
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Event {
            id: row.get(0)?,
            at: row.time(1)?,
            kind: row.get(2)?,
            request: row.get(3)?,
            body: serde_json::from_str(&row.get::<String>(4)?).map_err(|_| {
                StoreError::Malformed {
                    column: "events.body",
                }
            })?,
        })
    })
    .collect()
}
