//! SMS codes and the tickets they are exchanged for.

use jiff::Timestamp;

use super::accounts::Mobile;
use super::{Record, StoreError, Tx, millis};
use crate::base::ids::{AccountId, ComputerId, Jti, OperatorId};

/// Who may enrol, and where: what a code and its ticket are bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The account.
    pub account: AccountId,
    /// The operator.
    pub operator: OperatorId,
    /// The computer.
    pub computer: ComputerId,
    /// The name the operator gave the computer.
    pub computer_name: String,
}

/// A code that was sent.
#[derive(Debug, Clone)]
pub struct Code {
    /// Its id, which is public.
    pub id: String,
    /// What it is good for.
    pub binding: Binding,
    /// Where it went.
    pub mobile: Mobile,
    /// Keyed hash of id and code.
    pub mac: Vec<u8>,
    /// When it was sent.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Timestamp,
    /// Wrong tries still allowed.
    pub tries_left: i64,
    /// When it was used.
    pub spent_at: Option<Timestamp>,
}

/// What a purpose is called in the table. Enrolment is the only one yet.
const PURPOSE: &str = "install";

/// Takes this number's turn: until the transaction ends nobody else sends to it.
pub async fn take_turn(tx: &mut Tx<'_>, mobile: &Mobile) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO mobiles (mobile, sent) VALUES ($1, 1)
             ON CONFLICT (mobile) DO UPDATE SET sent = mobiles.sent + 1",
        )
        .bind(mobile.as_str()),
    )
    .await?;
    Ok(())
}

/// How many codes went to this number after `since`, when the first of them did, and when the
/// latest code ever for this purpose did.
pub async fn sent(
    tx: &mut Tx<'_>,
    mobile: &Mobile,
    since: Timestamp,
) -> Result<(i64, Option<Timestamp>, Option<Timestamp>), StoreError> {
    let day = tx
        .one(
            sqlx::query(
                "SELECT COUNT(*), MIN(created_at) FROM sms_codes
                 WHERE mobile = $1 AND created_at > $2",
            )
            .bind(mobile.as_str())
            .bind(millis(since)),
        )
        .await?;
    let latest = tx
        .one(
            sqlx::query("SELECT MAX(created_at) FROM sms_codes WHERE mobile = $1 AND purpose = $2")
                .bind(mobile.as_str())
                .bind(PURPOSE),
        )
        .await?;
    Ok((day.get(0)?, day.optional_time(1)?, latest.optional_time(0)?))
}

/// Adds a code.
pub async fn insert(tx: &mut Tx<'_>, code: &Code) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO sms_codes (id, account, operator, purpose, computer, computer_name,
                                    mobile, mac, created_at, expires_at, tries_left)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        )
        .bind(code.id.as_str())
        .bind(code.binding.account.as_str())
        .bind(code.binding.operator.as_str())
        .bind(PURPOSE)
        .bind(code.binding.computer.as_str())
        .bind(code.binding.computer_name.as_str())
        .bind(code.mobile.as_str())
        .bind(code.mac.clone())
        .bind(millis(code.created_at))
        .bind(millis(code.expires_at))
        .bind(code.tries_left),
    )
    .await?;
    Ok(())
}

/// The code with this id.
pub async fn find(tx: &mut Tx<'_>, id: &str) -> Result<Option<Code>, StoreError> {
    let Some(row) = tx
        .optional(
            sqlx::query(
                "SELECT account, operator, computer, computer_name, mobile, mac, created_at,
                        expires_at, tries_left, spent_at
                 FROM sms_codes WHERE id = $1",
            )
            .bind(id),
        )
        .await?
    else {
        return Ok(None);
    };
    Ok(Some(Code {
        id: id.to_owned(),
        binding: binding(&row)?,
        mobile: row.parsed(4, "sms_codes.mobile")?,
        mac: row.get(5)?,
        created_at: row.time(6)?,
        expires_at: row.time(7)?,
        tries_left: row.get(8)?,
        spent_at: row.optional_time(9)?,
    }))
}

/// Takes one of the tries that are left; `false` where none is.
pub async fn take_try(tx: &mut Tx<'_>, id: &str) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE sms_codes SET tries_left = tries_left - 1
                 WHERE id = $1 AND tries_left > 0 AND spent_at IS NULL",
            )
            .bind(id),
        )
        .await?;
    Ok(changed == 1)
}

/// Spends the code; `false` where it was spent before.
pub async fn spend(tx: &mut Tx<'_>, id: &str, now: Timestamp) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query("UPDATE sms_codes SET spent_at = $2 WHERE id = $1 AND spent_at IS NULL")
                .bind(id)
                .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

/// A ticket that was given.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// The token's id.
    pub jti: Jti,
    /// What it is good for.
    pub binding: Binding,
    /// When it was given.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Timestamp,
    /// SHA-256 of the request it was spent on, hexadecimal.
    pub request_hash: Option<String>,
}

/// Adds the ticket given for a code.
pub async fn insert_ticket(tx: &mut Tx<'_>, ticket: &Ticket, code: &str) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO tickets (jti, code, account, operator, computer, computer_name,
                                  created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(ticket.jti.as_str())
        .bind(code)
        .bind(ticket.binding.account.as_str())
        .bind(ticket.binding.operator.as_str())
        .bind(ticket.binding.computer.as_str())
        .bind(ticket.binding.computer_name.as_str())
        .bind(millis(ticket.created_at))
        .bind(millis(ticket.expires_at)),
    )
    .await?;
    Ok(())
}

/// The ticket with this id.
pub async fn find_ticket(tx: &mut Tx<'_>, jti: &Jti) -> Result<Option<Ticket>, StoreError> {
    let Some(row) = tx
        .optional(
            sqlx::query(
                "SELECT account, operator, computer, computer_name, created_at, expires_at,
                        request_hash
                 FROM tickets WHERE jti = $1",
            )
            .bind(jti.as_str()),
        )
        .await?
    else {
        return Ok(None);
    };
    Ok(Some(Ticket {
        jti: jti.clone(),
        binding: binding(&row)?,
        created_at: row.time(4)?,
        expires_at: row.time(5)?,
        request_hash: row.get(6)?,
    }))
}

/// Spends the ticket on a request; `false` where it was spent before.
pub async fn spend_ticket(
    tx: &mut Tx<'_>,
    jti: &Jti,
    request_hash: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE tickets SET spent_at = $2, request_hash = $3
                 WHERE jti = $1 AND spent_at IS NULL",
            )
            .bind(jti.as_str())
            .bind(millis(now))
            .bind(request_hash),
        )
        .await?;
    Ok(changed == 1)
}

/// The binding in the first four columns.
fn binding(row: &Record) -> Result<Binding, StoreError> {
    Ok(Binding {
        account: row.parsed(0, "account")?,
        operator: row.parsed(1, "operator")?,
        computer: row.parsed(2, "computer")?,
        computer_name: row.get(3)?,
    })
}
