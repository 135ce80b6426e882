//! Log-ins: sessions, and the counts that slow down whoever guesses passwords.

use std::time::Duration;

use jiff::Timestamp;

use super::{StoreError, Tx, millis};
use crate::base::ids::{AccountId, OperatorId};

/// Whose a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// An operator of an account.
    Operator(AccountId, OperatorId),
    /// A business representative.
    Representative(OperatorId),
}

/// A session.
#[derive(Debug, Clone)]
pub struct Session {
    /// SHA-256 of its token, hexadecimal.
    pub token_hash: String,
    /// Whose.
    pub owner: Owner,
    /// When it began.
    pub created_at: Timestamp,
    /// When it was last used, to the minute.
    pub last_seen_at: Timestamp,
    /// When it ends at the latest.
    pub expires_at: Timestamp,
}

/// Adds a session.
pub async fn insert(tx: &mut Tx<'_>, session: &Session) -> Result<(), StoreError> {
    let (account, operator, representative) = match &session.owner {
        Owner::Operator(account, operator) => {
            (Some(account.to_string()), Some(operator.to_string()), None)
        }
        Owner::Representative(id) => (None, None, Some(id.to_string())),
    };
    tx.execute(
        sqlx::query(
            "INSERT INTO sessions (token_hash, account, operator, representative, created_at,
                                   last_seen_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(session.token_hash.as_str())
        .bind(account)
        .bind(operator)
        .bind(representative)
        .bind(millis(session.created_at))
        .bind(millis(session.last_seen_at))
        .bind(millis(session.expires_at)),
    )
    .await?;
    Ok(())
}

/// The session with this token hash, unless it was ended; its times are for the caller to check.
pub async fn find(tx: &mut Tx<'_>, token_hash: &str) -> Result<Option<Session>, StoreError> {
    let Some(row) = tx
        .optional(
            sqlx::query(
                "SELECT account, operator, representative, created_at, last_seen_at, expires_at
                 FROM sessions WHERE token_hash = $1 AND ended_at IS NULL",
            )
            .bind(token_hash),
        )
        .await?
    else {
        return Ok(None);
    };
    let owner = match row.get::<Option<String>>(0)? {
        Some(_) => Owner::Operator(
            row.parsed(0, "sessions.account")?,
            row.parsed(1, "sessions.operator")?,
        ),
        None => Owner::Representative(row.parsed(2, "sessions.representative")?),
    };
    Ok(Some(Session {
        token_hash: token_hash.to_owned(),
        owner,
        created_at: row.time(3)?,
        last_seen_at: row.time(4)?,
        expires_at: row.time(5)?,
    }))
}

/// Notes that a session was used.
pub async fn touch(tx: &mut Tx<'_>, token_hash: &str, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query("UPDATE sessions SET last_seen_at = $2 WHERE token_hash = $1")
            .bind(token_hash)
            .bind(millis(now)),
    )
    .await?;
    Ok(())
}

/// Ends a session; `false` where it had ended.
pub async fn end(tx: &mut Tx<'_>, token_hash: &str, now: Timestamp) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE sessions SET ended_at = $2 WHERE token_hash = $1 AND ended_at IS NULL",
            )
            .bind(token_hash)
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

/// Ends all sessions of an operator; gives their number.
pub async fn end_all(
    tx: &mut Tx<'_>,
    account: &AccountId,
    operator: &OperatorId,
    now: Timestamp,
) -> Result<u64, StoreError> {
    tx.execute(
        sqlx::query(
            "UPDATE sessions SET ended_at = $3
             WHERE account = $1 AND operator = $2 AND ended_at IS NULL",
        )
        .bind(account.as_str())
        .bind(operator.as_str())
        .bind(millis(now)),
    )
    .await
}

/// Counts a try as failed before it is looked at, unless its time has not come: then until when
/// it has to wait. [`forgive`] takes the count back after a success.
///
/// `delay` is the wait after the failure of this number.
pub async fn count_try(
    tx: &mut Tx<'_>,
    subject: &str,
    now: Timestamp,
    delay: impl Fn(i64) -> Duration,
) -> Result<Option<Timestamp>, StoreError> {
    // Takes the row's lock, so that parallel tries are counted one after the other.
    tx.execute(
        sqlx::query(
            "INSERT INTO login_failures (subject, failures, failed_at, next_at)
             VALUES ($1, 0, $2, $2)
             ON CONFLICT (subject) DO UPDATE SET failures = login_failures.failures",
        )
        .bind(subject)
        .bind(millis(now)),
    )
    .await?;
    let row = tx
        .one(
            sqlx::query("SELECT failures, next_at FROM login_failures WHERE subject = $1")
                .bind(subject),
        )
        .await?;
    let (failures, next_at) = (row.get::<i64>(0)?, row.time(1)?);
    if next_at > now {
        return Ok(Some(next_at));
    }
    let failures = failures.saturating_add(1);
    tx.execute(
        sqlx::query(
            "UPDATE login_failures SET failures = $2, failed_at = $3, next_at = $4
             WHERE subject = $1",
        )
        .bind(subject)
        .bind(failures)
        .bind(millis(now))
        .bind(millis(now + delay(failures))),
    )
    .await?;
    Ok(None)
}

/// Forgets the failures of a subject.
pub async fn forgive(tx: &mut Tx<'_>, subject: &str) -> Result<(), StoreError> {
    tx.execute(sqlx::query("DELETE FROM login_failures WHERE subject = $1").bind(subject))
        .await?;
    Ok(())
}

/// Whether a person logged in from this source after `since`.
pub async fn source_known(
    tx: &mut Tx<'_>,
    subject: &str,
    since: Timestamp,
) -> Result<bool, StoreError> {
    Ok(tx
        .optional(
            sqlx::query("SELECT 1 FROM login_sources WHERE subject = $1 AND seen_at > $2")
                .bind(subject)
                .bind(millis(since)),
        )
        .await?
        .is_some())
}

/// Notes that a person logged in from this source.
pub async fn remember_source(
    tx: &mut Tx<'_>,
    subject: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO login_sources (subject, seen_at) VALUES ($1, $2)
             ON CONFLICT (subject) DO UPDATE SET seen_at = excluded.seen_at",
        )
        .bind(subject)
        .bind(millis(now)),
    )
    .await?;
    Ok(())
}

/// Drops what is too old to count; gives the number of rows.
pub async fn forget(
    tx: &mut Tx<'_>,
    sessions_before: Timestamp,
    failures_before: Timestamp,
    sources_before: Timestamp,
) -> Result<u64, StoreError> {
    let mut dropped = 0;
    for (sql, before) in [
        (
            "DELETE FROM sessions WHERE expires_at < $1",
            sessions_before,
        ),
        (
            "DELETE FROM login_failures WHERE failed_at < $1",
            failures_before,
        ),
        (
            "DELETE FROM login_sources WHERE seen_at < $1",
            sources_before,
        ),
    ] {
        dropped += tx.execute(sqlx::query(sql).bind(millis(before))).await?;
    }
    Ok(dropped)
}
