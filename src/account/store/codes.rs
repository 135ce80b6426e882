//! SMS codes, and enrolment tickets.

use jiff::Timestamp;

use super::accounts::Mobile;
use super::{Record, StoreError, Tx, millis};
use crate::base::ids::{AccountId, ComputerId, Jti, OperationId, OperatorId};

/// Who may enrol, and where: what an installation code and a ticket are bound to.
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
    /// The serial number of its token, where the courier told it.
    pub token_serial: Option<String>,
}

/// What a code is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CodeUse {
    /// Installing an operating certificate on a computer.
    Install {
        /// The computer.
        computer: ComputerId,
        /// What the operator calls it.
        computer_name: String,
        /// Its token.
        token_serial: Option<String>,
    },
    /// Changing the secret of this name.
    SecretChange {
        /// `api` or `apiv3`.
        subject: String,
    },
    /// Asking for a way back in after a loss.
    Recovery {
        /// The kind of request.
        subject: String,
    },
}

impl CodeUse {
    /// The stable name of the purpose.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Install { .. } => "install",
            Self::SecretChange { .. } => "secret-change",
            Self::Recovery { .. } => "recovery",
        }
    }
}

/// A code that was sent.
#[derive(Debug, Clone)]
pub struct Code {
    /// Its id, which is public.
    pub id: String,
    /// Whose.
    pub account: AccountId,
    /// Whose.
    pub operator: OperatorId,
    /// What it is good for.
    pub purpose: CodeUse,
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
    purpose: &str,
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
                .bind(purpose),
        )
        .await?;
    Ok((day.get(0)?, day.optional_time(1)?, latest.optional_time(0)?))
}

/// Adds a code.
pub async fn insert(tx: &mut Tx<'_>, code: &Code) -> Result<(), StoreError> {
    let (computer, computer_name, token_serial, subject) = match &code.purpose {
        CodeUse::Install {
            computer,
            computer_name,
            token_serial,
        } => (
            Some(computer.to_string()),
            Some(computer_name.clone()),
            token_serial.clone(),
            None,
        ),
        CodeUse::SecretChange { subject } | CodeUse::Recovery { subject } => {
            (None, None, None, Some(subject.clone()))
        }
    };
    tx.execute(
        sqlx::query(
            "INSERT INTO sms_codes (id, account, operator, purpose, computer, computer_name,
                                    token_serial, subject, mobile, mac, created_at, expires_at,
                                    tries_left)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        )
        .bind(code.id.as_str())
        .bind(code.account.as_str())
        .bind(code.operator.as_str())
        .bind(code.purpose.name())
        .bind(computer)
        .bind(computer_name)
        .bind(token_serial)
        .bind(subject)
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
                "SELECT account, operator, purpose, computer, computer_name, token_serial, subject,
                        mobile, mac, created_at, expires_at, tries_left, spent_at
                 FROM sms_codes WHERE id = $1",
            )
            .bind(id),
        )
        .await?
    else {
        return Ok(None);
    };
    let malformed = || StoreError::Malformed {
        column: "sms_codes.purpose",
    };
    let subject = || row.get::<Option<String>>(6)?.ok_or_else(malformed);
    let purpose = match row.get::<String>(2)?.as_str() {
        "install" => CodeUse::Install {
            computer: row.parsed(3, "sms_codes.computer")?,
            computer_name: row.get(4)?,
            token_serial: row.get(5)?,
        },
        "secret-change" => CodeUse::SecretChange {
            subject: subject()?,
        },
        "recovery" => CodeUse::Recovery {
            subject: subject()?,
        },
        _ => return Err(malformed()),
    };
    Ok(Some(Code {
        id: id.to_owned(),
        account: row.parsed(0, "sms_codes.account")?,
        operator: row.parsed(1, "sms_codes.operator")?,
        purpose,
        mobile: row.parsed(7, "sms_codes.mobile")?,
        mac: row.get(8)?,
        created_at: row.time(9)?,
        expires_at: row.time(10)?,
        tries_left: row.get(11)?,
        spent_at: row.optional_time(12)?,
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

/// Ends every code and ticket of an operator that was not used yet.
pub async fn void(
    tx: &mut Tx<'_>,
    account: &AccountId,
    operator: &OperatorId,
    now: Timestamp,
) -> Result<(), StoreError> {
    for sql in [
        "UPDATE sms_codes SET spent_at = $3
         WHERE account = $1 AND operator = $2 AND spent_at IS NULL AND expires_at > $3",
        "UPDATE tickets SET expires_at = $3
         WHERE account = $1 AND operator = $2 AND spent_at IS NULL AND expires_at > $3",
    ] {
        tx.execute(
            sqlx::query(sql)
                .bind(account.as_str())
                .bind(operator.as_str())
                .bind(millis(now)),
        )
        .await?;
    }
    Ok(())
}

/// What a ticket was given for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TicketGround {
    /// An SMS code: a first certificate on a computer.
    Code(String),
    /// An approved renewal: a successor.
    Operation(OperationId),
}

/// A ticket that was given.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// The token's id.
    pub jti: Jti,
    /// SHA-256 of the last part of the token, hexadecimal.
    pub short_hash: String,
    /// What it was given for.
    pub ground: TicketGround,
    /// What it is good for.
    pub binding: Binding,
    /// Whether an administrator has to release it first, and has not.
    pub held: bool,
    /// When it was given.
    pub created_at: Timestamp,
    /// When it stops working: as the token says, or earlier where it was ended.
    pub expires_at: Timestamp,
    /// SHA-256 of the request it was spent on, hexadecimal.
    pub request_hash: Option<String>,
}

/// Adds a ticket.
pub async fn insert_ticket(tx: &mut Tx<'_>, ticket: &Ticket) -> Result<(), StoreError> {
    let (purpose, code, operation) = match &ticket.ground {
        TicketGround::Code(code) => ("install", Some(code.clone()), None),
        TicketGround::Operation(operation) => ("renew", None, Some(operation.to_string())),
    };
    tx.execute(
        sqlx::query(
            "INSERT INTO tickets (jti, purpose, code, operation, account, operator, computer,
                                  computer_name, token_serial, held, created_at, expires_at,
                                  short_hash)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        )
        .bind(ticket.jti.as_str())
        .bind(purpose)
        .bind(code)
        .bind(operation)
        .bind(ticket.binding.account.as_str())
        .bind(ticket.binding.operator.as_str())
        .bind(ticket.binding.computer.as_str())
        .bind(ticket.binding.computer_name.as_str())
        .bind(ticket.binding.token_serial.clone())
        .bind(i64::from(ticket.held))
        .bind(millis(ticket.created_at))
        .bind(millis(ticket.expires_at))
        .bind(ticket.short_hash.as_str()),
    )
    .await?;
    Ok(())
}

const TICKET: &str = "SELECT account, operator, computer, computer_name, token_serial, jti, code,
                             operation, held, released_at, created_at, expires_at, request_hash,
                             short_hash
                      FROM tickets ";

fn ticket(row: &Record) -> Result<Ticket, StoreError> {
    let ground = match (row.get::<Option<String>>(6)?, row.get::<Option<String>>(7)?) {
        (Some(code), None) => TicketGround::Code(code),
        (None, Some(_)) => TicketGround::Operation(row.parsed(7, "tickets.operation")?),
        _ => {
            return Err(StoreError::Malformed {
                column: "tickets.code",
            });
        }
    };
    Ok(Ticket {
        jti: row.parsed(5, "tickets.jti")?,
        ground,
        binding: binding(row)?,
        held: row.get::<i64>(8)? == 1 && row.optional_time(9)?.is_none(),
        created_at: row.time(10)?,
        expires_at: row.time(11)?,
        request_hash: row.get(12)?,
        short_hash: row.get(13)?,
    })
}

/// The ticket with this id.
pub async fn find_ticket(tx: &mut Tx<'_>, jti: &Jti) -> Result<Option<Ticket>, StoreError> {
    let sql = format!("{TICKET} WHERE jti = $1");
    tx.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(jti.as_str()))
        .await?
        .map(|row| ticket(&row))
        .transpose()
}

/// The ticket whose last part has this SHA-256, hexadecimal.
pub async fn ticket_by_hash(tx: &mut Tx<'_>, hash: &str) -> Result<Option<Ticket>, StoreError> {
    let sql = format!("{TICKET} WHERE short_hash = $1");
    tx.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(hash))
        .await?
        .map(|row| ticket(&row))
        .transpose()
}

/// The ticket given for an operation.
pub async fn ticket_of_operation(
    tx: &mut Tx<'_>,
    operation: &OperationId,
) -> Result<Option<Ticket>, StoreError> {
    let sql = format!("{TICKET} WHERE operation = $1");
    tx.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(operation.as_str()))
        .await?
        .map(|row| ticket(&row))
        .transpose()
}

/// Tickets of an account that wait for an administrator at `now`, oldest first.
pub async fn held_tickets(
    tx: &mut Tx<'_>,
    account: &AccountId,
    now: Timestamp,
) -> Result<Vec<Ticket>, StoreError> {
    let sql = format!(
        "{TICKET} WHERE account = $1 AND held = 1 AND released_at IS NULL AND spent_at IS NULL
         AND expires_at > $2 ORDER BY created_at, jti LIMIT 100"
    );
    tx.all(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(account.as_str())
            .bind(millis(now)),
    )
    .await?
    .iter()
    .map(ticket)
    .collect()
}

/// Releases a held ticket; `false` where there is none.
pub async fn release_ticket(
    tx: &mut Tx<'_>,
    jti: &Jti,
    by: &OperatorId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE tickets SET released_at = $2, released_by = $3
                 WHERE jti = $1 AND held = 1 AND released_at IS NULL AND expires_at > $2",
            )
            .bind(jti.as_str())
            .bind(millis(now))
            .bind(by.as_str()),
        )
        .await?;
    Ok(changed == 1)
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

/// The binding in the first five columns.
fn binding(row: &Record) -> Result<Binding, StoreError> {
    Ok(Binding {
        account: row.parsed(0, "account")?,
        operator: row.parsed(1, "operator")?,
        computer: row.parsed(2, "computer")?,
        computer_name: row.get(3)?,
        token_serial: row.get(4)?,
    })
}
