//! Texts that were handed to the SMS gateway, and what became of them.

use jiff::Timestamp;

use super::accounts::Mobile;
use super::{StoreError, Tx, millis};

/// A text. What it says is not kept.
#[derive(Debug, Clone)]
pub struct Message {
    /// The gateway's key against duplicates.
    pub id: String,
    /// Where it goes.
    pub mobile: Mobile,
    /// What it is about.
    pub purpose: String,
    /// When it was written.
    pub created_at: Timestamp,
}

/// Adds a text that is being sent.
pub async fn insert(tx: &mut Tx<'_>, message: &Message) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO sms_messages (id, mobile, purpose, state, attempts, created_at, changed_at)
             VALUES ($1, $2, $3, 'sending', 0, $4, $4)",
        )
        .bind(message.id.as_str())
        .bind(message.mobile.as_str())
        .bind(message.purpose.as_str())
        .bind(millis(message.created_at)),
    )
    .await?;
    Ok(())
}

/// Notes what a try came to.
pub async fn settle(
    tx: &mut Tx<'_>,
    id: &str,
    state: &str,
    attempts: i64,
    error: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "UPDATE sms_messages SET state = $2, attempts = $3, error = $4, changed_at = $5
             WHERE id = $1",
        )
        .bind(id)
        .bind(state)
        .bind(attempts)
        .bind(error.map(ToOwned::to_owned))
        .bind(millis(now)),
    )
    .await?;
    Ok(())
}

/// A text and what became of it.
#[derive(Debug, Clone)]
pub struct Sent {
    /// The text.
    pub message: Message,
    /// `sending`, `accepted` or `failed`.
    pub state: String,
    /// Tries so far.
    pub attempts: i64,
    /// Why the last try failed.
    pub error: Option<String>,
}

/// The newest texts.
pub async fn list(tx: &mut Tx<'_>, limit: i64) -> Result<Vec<Sent>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT id, mobile, purpose, created_at, state, attempts, error FROM sms_messages
             ORDER BY created_at DESC, id LIMIT $1",
        )
        .bind(limit),
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Sent {
            message: Message {
                id: row.get(0)?,
                mobile: row.parsed(1, "sms_messages.mobile")?,
                purpose: row.get(2)?,
                created_at: row.time(3)?,
            },
            state: row.get(4)?,
            attempts: row.get(5)?,
            error: row.get(6)?,
        })
    })
    .collect()
}

/// Drops texts written before `since`; gives their number.
pub async fn forget(tx: &mut Tx<'_>, since: Timestamp) -> Result<u64, StoreError> {
    tx.execute(sqlx::query("DELETE FROM sms_messages WHERE created_at < $1").bind(millis(since)))
        .await
}

/// How many texts the gateway did not take.
pub async fn failed(tx: &mut Tx<'_>) -> Result<i64, StoreError> {
    tx.one(sqlx::query(
        "SELECT COUNT(*) FROM sms_messages WHERE state = 'failed'",
    ))
    .await?
    .get(0)
}
