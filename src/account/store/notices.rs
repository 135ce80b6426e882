//! What administrators and business representatives are told.

use jiff::Timestamp;

use super::{StoreError, Tx, millis};
use crate::base::ids::{AccountId, Jti};

/// Who reads a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The administrators of the account.
    Administrators,
    /// The business representatives.
    Representatives,
}

impl Audience {
    fn as_str(self) -> &'static str {
        match self {
            Self::Administrators => "administrators",
            Self::Representatives => "representatives",
        }
    }
}

/// A notice.
#[derive(Debug, Clone)]
pub struct Notice {
    /// Its id.
    pub id: String,
    /// The account it is about.
    pub account: AccountId,
    /// What it tells: the kind of an audit record.
    pub kind: String,
    /// The facts.
    pub body: serde_json::Value,
    /// When it was written.
    pub created_at: Timestamp,
    /// Whether this reader has read it.
    pub read: bool,
}

/// Adds a notice.
pub async fn insert(
    tx: &mut Tx<'_>,
    account: &AccountId,
    audience: Audience,
    kind: &str,
    body: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO notices (id, account, audience, kind, body, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(Jti::random().as_str())
        .bind(account.as_str())
        .bind(audience.as_str())
        .bind(kind)
        .bind(body)
        .bind(millis(now)),
    )
    .await?;
    Ok(())
}

/// The newest notices for an audience, of one account where it is given; `reader` is who asks.
pub async fn list(
    tx: &mut Tx<'_>,
    audience: Audience,
    account: Option<&AccountId>,
    reader: &str,
    limit: i64,
) -> Result<Vec<Notice>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT n.id, n.account, n.kind, n.body, n.created_at, r.read_at
             FROM notices n
             LEFT JOIN notice_readers r ON r.notice = n.id AND r.reader = $3
             WHERE n.audience = $1 AND ($2 = '' OR n.account = $2)
             ORDER BY n.created_at DESC, n.id LIMIT $4",
        )
        .bind(audience.as_str())
        .bind(account.map_or("", AccountId::as_str))
        .bind(reader)
        .bind(limit),
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Notice {
            id: row.get(0)?,
            account: row.parsed(1, "notices.account")?,
            kind: row.get(2)?,
            body: serde_json::from_str(&row.get::<String>(3)?).map_err(|_| {
                StoreError::Malformed {
                    column: "notices.body",
                }
            })?,
            created_at: row.time(4)?,
            read: row.optional_time(5)?.is_some(),
        })
    })
    .collect()
}

/// Notes that `reader` has read a notice of this audience; `false` where there is no such notice.
pub async fn read(
    tx: &mut Tx<'_>,
    id: &str,
    audience: Audience,
    account: Option<&AccountId>,
    reader: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let there = tx
        .optional(
            sqlx::query(
                "SELECT id FROM notices
                 WHERE id = $1 AND audience = $2 AND ($3 = '' OR account = $3)",
            )
            .bind(id)
            .bind(audience.as_str())
            .bind(account.map_or("", AccountId::as_str)),
        )
        .await?
        .is_some();
    if there {
        tx.execute(
            sqlx::query(
                "INSERT INTO notice_readers (notice, reader, read_at) VALUES ($1, $2, $3)
                 ON CONFLICT (notice, reader) DO NOTHING",
            )
            .bind(id)
            .bind(reader)
            .bind(millis(now)),
        )
        .await?;
    }
    Ok(there)
}
