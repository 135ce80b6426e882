//! API secrets, the keys of computers they are sealed to, and what was sealed for each.

use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Record, StoreError, Tx, millis};
use crate::base::ids::{AccountId, ComputerId, OperatorId};
use crate::statement::SecretKind;
use crate::statement::secret_request::Held;
use crate::wechatpay::MerchantId;

/// A secret, without what it is.
#[derive(Debug, Clone)]
pub struct Secret {
    /// Its id.
    pub id: String,
    /// Whose.
    pub account: AccountId,
    /// Which.
    pub kind: SecretKind,
    /// Its version; none while it waits for approvals.
    pub version: Option<u64>,
    /// Who set it.
    pub set_by: OperatorId,
    /// When.
    pub set_at: Timestamp,
    /// For how many seconds the one before it is still read.
    pub overlap_seconds: i64,
    /// When it took effect.
    pub effective_at: Option<Timestamp>,
    /// When it is to be destroyed.
    pub ends_at: Option<Timestamp>,
}

impl Secret {
    /// Until when the one before it is read.
    pub fn overlap_until(&self) -> Option<Timestamp> {
        let from = self.effective_at?;
        Some(from + jiff::SignedDuration::from_secs(self.overlap_seconds))
    }
}

/// Whether a key gets secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RecipientState {
    /// The super administrator has not let it.
    Waiting,
    /// It does.
    Active,
    /// It does no more.
    Ended,
}

impl RecipientState {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Active => "active",
            Self::Ended => "ended",
        }
    }
}

impl FromStr for RecipientState {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Waiting, Self::Active, Self::Ended]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or(())
    }
}

/// A key of a computer.
#[derive(Debug, Clone)]
pub struct Recipient {
    /// Whose secrets it asks for.
    pub account: AccountId,
    /// Its RFC 7638 thumbprint.
    pub kid: String,
    /// Where it is.
    pub computer: ComputerId,
    /// The merchant there.
    pub merchant: MerchantId,
    /// The operator whose certificate vouched for it first.
    pub operator: OperatorId,
    /// Whether it gets secrets.
    pub state: RecipientState,
    /// When it first asked.
    pub asked_at: Timestamp,
    /// When its newest request was signed.
    pub seen_at: Timestamp,
    /// Who decided about it, and when.
    pub decided: Option<(Timestamp, Option<String>)>,
    /// The highest versions it said to have.
    pub held: Held,
}

impl Recipient {
    /// Whether another key took its place.
    pub fn replaced(&self) -> bool {
        self.state == RecipientState::Ended && matches!(self.decided, Some((_, None)))
    }
}

/// What was sealed for a recipient.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The secret.
    pub secret: String,
    /// The recipient.
    pub kid: String,
    /// The signed statement.
    pub statement: String,
    /// The key that signed it.
    pub signed_by: String,
    /// When it was made.
    pub sealed_at: Timestamp,
    /// When the computer said that it has it.
    pub acknowledged_at: Option<Timestamp>,
}

/// Takes this account's turn: until the transaction ends nobody else changes its secrets.
pub async fn take_turn(tx: &mut Tx<'_>, account: &AccountId) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query("UPDATE accounts SET issued = issued WHERE id = $1").bind(account.as_str()),
    )
    .await?;
    Ok(())
}

const SECRET: &str = "SELECT id, account, kind, version, set_by, set_at, overlap_seconds,
                             effective_at, ends_at
                      FROM secrets ";

fn secret(row: &Record) -> Result<Secret, StoreError> {
    Ok(Secret {
        id: row.get(0)?,
        account: row.parsed(1, "secrets.account")?,
        kind: row.parsed(2, "secrets.kind")?,
        version: row.get::<Option<i64>>(3)?.map(i64::cast_unsigned),
        set_by: row.parsed(4, "secrets.set_by")?,
        set_at: row.time(5)?,
        overlap_seconds: row.get(6)?,
        effective_at: row.optional_time(7)?,
        ends_at: row.optional_time(8)?,
    })
}

/// Adds a secret that waits.
pub async fn insert(tx: &mut Tx<'_>, secret: &Secret, sealed: &[u8]) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO secrets (id, account, kind, sealed, set_by, set_at, overlap_seconds,
                                  ends_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(secret.id.as_str())
        .bind(secret.account.as_str())
        .bind(secret.kind.as_str())
        .bind(sealed.to_vec())
        .bind(secret.set_by.as_str())
        .bind(millis(secret.set_at))
        .bind(secret.overlap_seconds)
        .bind(secret.ends_at.map(millis)),
    )
    .await?;
    Ok(())
}

/// The secret with this id that waits and whose time is not over.
pub async fn waiting(
    tx: &mut Tx<'_>,
    id: &str,
    now: Timestamp,
) -> Result<Option<Secret>, StoreError> {
    let sql = format!(
        "{SECRET} WHERE id = $1 AND version IS NULL AND destroyed_at IS NULL AND ends_at > $2"
    );
    tx.optional(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(id)
            .bind(millis(now)),
    )
    .await?
    .map(|row| secret(&row))
    .transpose()
}

/// The secret of a kind that waits, its time over or not.
pub async fn waiting_of(
    tx: &mut Tx<'_>,
    account: &AccountId,
    kind: SecretKind,
) -> Result<Option<Secret>, StoreError> {
    let sql = format!(
        "{SECRET} WHERE account = $1 AND kind = $2 AND version IS NULL AND destroyed_at IS NULL"
    );
    tx.optional(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(account.as_str())
            .bind(kind.as_str()),
    )
    .await?
    .map(|row| secret(&row))
    .transpose()
}

/// All secrets of an account that are not destroyed and whose time is not over at `now`, by kind
/// and version; those that wait come last.
pub async fn alive(
    tx: &mut Tx<'_>,
    account: &AccountId,
    now: Timestamp,
) -> Result<Vec<Secret>, StoreError> {
    let sql = format!(
        "{SECRET} WHERE account = $1 AND destroyed_at IS NULL AND (ends_at IS NULL OR ends_at > $2)
         ORDER BY kind, CASE WHEN version IS NULL THEN 1 ELSE 0 END, version"
    );
    tx.all(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(account.as_str())
            .bind(millis(now)),
    )
    .await?
    .iter()
    .map(secret)
    .collect()
}

/// Every secret that was not destroyed, of all accounts; nobody changes one until the transaction
/// ends.
pub async fn hold_all(tx: &mut Tx<'_>) -> Result<Vec<Secret>, StoreError> {
    tx.execute(sqlx::query(
        "UPDATE secrets SET sealed = sealed WHERE destroyed_at IS NULL",
    ))
    .await?;
    let sql = format!("{SECRET} WHERE destroyed_at IS NULL ORDER BY id");
    tx.all(sqlx::query(sqlx::AssertSqlSafe(sql)))
        .await?
        .iter()
        .map(secret)
        .collect()
}

/// Puts what was sealed anew in the place of what was sealed.
pub async fn reseal(tx: &mut Tx<'_>, id: &str, sealed: &[u8]) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query("UPDATE secrets SET sealed = $2 WHERE id = $1 AND destroyed_at IS NULL")
            .bind(id)
            .bind(sealed.to_vec()),
    )
    .await?;
    Ok(())
}

/// The sealed form of a secret, unless it was destroyed.
pub async fn sealed(tx: &mut Tx<'_>, id: &str) -> Result<Option<Vec<u8>>, StoreError> {
    match tx
        .optional(sqlx::query("SELECT sealed FROM secrets WHERE id = $1").bind(id))
        .await?
    {
        Some(row) => row.get(0),
        None => Ok(None),
    }
}

/// The highest version of a kind that ever took effect, or that a computer in use said to have; 0
/// where there is none.
pub async fn last_version(
    tx: &mut Tx<'_>,
    account: &AccountId,
    kind: SecretKind,
) -> Result<u64, StoreError> {
    let set = tx
        .one(
            sqlx::query(
                "SELECT COALESCE(MAX(version), 0) FROM secrets WHERE account = $1 AND kind = $2",
            )
            .bind(account.as_str())
            .bind(kind.as_str()),
        )
        .await?
        .get::<i64>(0)?;
    let column = match kind {
        SecretKind::Api => "held_api",
        SecretKind::ApiV3 => "held_apiv3",
    };
    let sql =
        format!("SELECT COALESCE(MAX({column}), 0) FROM secret_recipients WHERE account = $1");
    let held = tx
        .one(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_str()))
        .await?
        .get::<i64>(0)?;
    Ok(set.max(held).max(0).cast_unsigned())
}

/// Gives a waiting secret its version: it is the current one from `now` on. The one that was
/// current ends at `overlap_until`. `false` where it does not wait.
pub async fn activate(
    tx: &mut Tx<'_>,
    secret: &Secret,
    version: u64,
    overlap_until: Timestamp,
    now: Timestamp,
) -> Result<bool, StoreError> {
    tx.execute(
        sqlx::query(
            "UPDATE secrets SET ends_at = $3
             WHERE account = $1 AND kind = $2 AND version IS NOT NULL AND ends_at IS NULL",
        )
        .bind(secret.account.as_str())
        .bind(secret.kind.as_str())
        .bind(millis(overlap_until)),
    )
    .await?;
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE secrets SET version = $2, effective_at = $3, ends_at = NULL
                 WHERE id = $1 AND version IS NULL AND destroyed_at IS NULL",
            )
            .bind(secret.id.as_str())
            .bind(version.cast_signed())
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

/// Secrets whose time is over but which are not destroyed, at most a thousand.
pub async fn ended(tx: &mut Tx<'_>, now: Timestamp) -> Result<Vec<Secret>, StoreError> {
    let sql = format!(
        "{SECRET} WHERE destroyed_at IS NULL AND ends_at <= $1 ORDER BY ends_at, id LIMIT 1000"
    );
    tx.all(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(millis(now)))
        .await?
        .iter()
        .map(secret)
        .collect()
}

/// Destroys a secret and all that was sealed of it; `false` where that was done before.
pub async fn destroy(tx: &mut Tx<'_>, id: &str, now: Timestamp) -> Result<bool, StoreError> {
    tx.execute(sqlx::query("DELETE FROM secret_deliveries WHERE secret = $1").bind(id))
        .await?;
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE secrets SET sealed = NULL, destroyed_at = $2, ends_at = $2
                 WHERE id = $1 AND destroyed_at IS NULL",
            )
            .bind(id)
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

const RECIPIENT: &str = "SELECT account, kid, computer, merchant, operator, state, asked_at,
                                seen_at, decided_at, decided_by, held_api, held_apiv3
                         FROM secret_recipients ";

fn recipient(row: &Record) -> Result<Recipient, StoreError> {
    let decided = match row.optional_time(8)? {
        Some(at) => Some((at, row.get(9)?)),
        None => None,
    };
    Ok(Recipient {
        account: row.parsed(0, "secret_recipients.account")?,
        kid: row.get(1)?,
        computer: row.parsed(2, "secret_recipients.computer")?,
        merchant: row.parsed(3, "secret_recipients.merchant")?,
        operator: row.parsed(4, "secret_recipients.operator")?,
        state: row.parsed(5, "secret_recipients.state")?,
        asked_at: row.time(6)?,
        seen_at: row.time(7)?,
        decided,
        held: Held {
            api: row.get::<i64>(10)?.cast_unsigned(),
            apiv3: row.get::<i64>(11)?.cast_unsigned(),
        },
    })
}

/// The recipient with this key.
pub async fn find_recipient(
    tx: &mut Tx<'_>,
    account: &AccountId,
    kid: &str,
) -> Result<Option<Recipient>, StoreError> {
    let sql = format!("{RECIPIENT} WHERE account = $1 AND kid = $2");
    tx.optional(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(account.as_str())
            .bind(kid),
    )
    .await?
    .map(|row| recipient(&row))
    .transpose()
}

/// Recipients of an account that are not ended, and those that a person ended.
pub async fn recipients(
    tx: &mut Tx<'_>,
    account: &AccountId,
) -> Result<Vec<Recipient>, StoreError> {
    let sql = format!(
        "{RECIPIENT} WHERE account = $1 AND (state <> 'ended' OR decided_by IS NOT NULL)
         ORDER BY computer, merchant, asked_at LIMIT 500"
    );
    tx.all(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(account.as_str()))
        .await?
        .iter()
        .map(recipient)
        .collect()
}

/// How many keys of a computer first asked after `since`, and how many of all of them are in use.
pub async fn count_recipients(
    tx: &mut Tx<'_>,
    account: &AccountId,
    computer: &ComputerId,
    since: Timestamp,
) -> Result<(i64, i64), StoreError> {
    let row = tx
        .one(
            sqlx::query(
                "SELECT COALESCE(SUM(CASE WHEN asked_at > $3 THEN 1 ELSE 0 END), 0),
                        COALESCE(SUM(CASE WHEN state <> 'ended' THEN 1 ELSE 0 END), 0)
                 FROM secret_recipients WHERE account = $1 AND computer = $2",
            )
            .bind(account.as_str())
            .bind(computer.as_str())
            .bind(millis(since)),
        )
        .await?;
    Ok((row.get(0)?, row.get(1)?))
}

/// Adds a recipient that waits, in place of an earlier key of the same merchant on the same
/// computer.
pub async fn insert_recipient(
    tx: &mut Tx<'_>,
    recipient: &Recipient,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "UPDATE secret_recipients SET state = 'ended', decided_at = $4, decided_by = NULL
             WHERE account = $1 AND computer = $2 AND merchant = $3 AND state <> 'ended'",
        )
        .bind(recipient.account.as_str())
        .bind(recipient.computer.as_str())
        .bind(recipient.merchant.as_str())
        .bind(millis(now)),
    )
    .await?;
    tx.execute(
        sqlx::query(
            "INSERT INTO secret_recipients (account, kid, computer, merchant, operator, state,
                                            asked_at, seen_at)
             VALUES ($1, $2, $3, $4, $5, 'waiting', $6, $7)",
        )
        .bind(recipient.account.as_str())
        .bind(recipient.kid.as_str())
        .bind(recipient.computer.as_str())
        .bind(recipient.merchant.as_str())
        .bind(recipient.operator.as_str())
        .bind(millis(now))
        .bind(millis(recipient.seen_at)),
    )
    .await?;
    Ok(())
}

/// Notes that a recipient was heard of, and what it has.
pub async fn heard(
    tx: &mut Tx<'_>,
    account: &AccountId,
    kid: &str,
    signed_at: Timestamp,
    held: Held,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "UPDATE secret_recipients
             SET seen_at = $3,
                 held_api = CASE WHEN held_api < $4 THEN $4 ELSE held_api END,
                 held_apiv3 = CASE WHEN held_apiv3 < $5 THEN $5 ELSE held_apiv3 END
             WHERE account = $1 AND kid = $2",
        )
        .bind(account.as_str())
        .bind(kid)
        .bind(millis(signed_at))
        .bind(held.api.cast_signed())
        .bind(held.apiv3.cast_signed()),
    )
    .await?;
    Ok(())
}

/// Lets a recipient have secrets, or ends it; `false` where it is in that state already.
pub async fn decide_recipient(
    tx: &mut Tx<'_>,
    account: &AccountId,
    kid: &str,
    state: RecipientState,
    by: &OperatorId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE secret_recipients SET state = $3, decided_by = $4, decided_at = $5
                 WHERE account = $1 AND kid = $2 AND state <> $3",
            )
            .bind(account.as_str())
            .bind(kid)
            .bind(state.as_str())
            .bind(by.as_str())
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

/// Drops keys that ended before `before` and that nothing names any more; gives their number.
pub async fn forget_recipients(tx: &mut Tx<'_>, before: Timestamp) -> Result<u64, StoreError> {
    tx.execute(
        sqlx::query(
            "DELETE FROM secret_recipients
             WHERE state = 'ended' AND decided_by IS NULL AND decided_at < $1
               AND NOT EXISTS (SELECT 1 FROM secret_deliveries d
                               WHERE d.account = secret_recipients.account
                                 AND d.kid = secret_recipients.kid)",
        )
        .bind(millis(before)),
    )
    .await
}

/// All that was sealed for the recipients of an account, or for one of them.
pub async fn deliveries(
    tx: &mut Tx<'_>,
    account: &AccountId,
    kid: Option<&str>,
) -> Result<Vec<Delivery>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT secret, kid, statement, signed_by, sealed_at, acknowledged_at
             FROM secret_deliveries WHERE account = $1 AND ($2 = '' OR kid = $2)",
        )
        .bind(account.as_str())
        .bind(kid.unwrap_or_default()),
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Delivery {
            secret: row.get(0)?,
            kid: row.get(1)?,
            statement: row.get(2)?,
            signed_by: row.get(3)?,
            sealed_at: row.time(4)?,
            acknowledged_at: row.optional_time(5)?,
        })
    })
    .collect()
}

/// Keeps what was sealed for a recipient, in place of what an earlier key of the service signed.
pub async fn keep_delivery(
    tx: &mut Tx<'_>,
    account: &AccountId,
    delivery: &Delivery,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO secret_deliveries (secret, account, kid, statement, signed_by, sealed_at)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (secret, kid) DO UPDATE
             SET statement = excluded.statement, signed_by = excluded.signed_by",
        )
        .bind(delivery.secret.as_str())
        .bind(account.as_str())
        .bind(delivery.kid.as_str())
        .bind(delivery.statement.as_str())
        .bind(delivery.signed_by.as_str())
        .bind(millis(delivery.sealed_at)),
    )
    .await?;
    Ok(())
}

/// Notes that a recipient has a secret; `false` where that was known.
pub async fn acknowledge(
    tx: &mut Tx<'_>,
    secret: &str,
    kid: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE secret_deliveries SET acknowledged_at = $3
                 WHERE secret = $1 AND kid = $2 AND acknowledged_at IS NULL",
            )
            .bind(secret)
            .bind(kid)
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}
