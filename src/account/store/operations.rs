//! Operations, challenges, approvals, and answers kept for repeated requests.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Record, StoreError, Tx, millis};
use crate::base::ids::{AccountId, ComputerId, Jti, OperationId, OperatorId};
use crate::statement::strict::Object;
use crate::statement::{Origin, Statement};

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It waits for its approval.
    Created,
    /// It was approved.
    Approved,
    /// The platform took it back.
    Cancelled,
    /// Nobody approved it in time.
    Expired,
}

impl State {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Approved => "approved",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [
            Self::Created,
            Self::Approved,
            Self::Cancelled,
            Self::Expired,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or(())
    }
}

/// What the service itself does once an operation is approved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Revokes a certificate, by its serial number.
    DeleteCertificate,
    /// Gives a ticket for the successor of a certificate, by its serial number.
    RenewCertificate,
    /// Lets a held ticket be spent, by its `jti`.
    ReleaseTicket,
    /// Grants a request, by its id.
    DecideRequest,
    /// Makes a secret that waits the current one, by its id.
    SetSecret,
}

impl Effect {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DeleteCertificate => "delete-certificate",
            Self::RenewCertificate => "renew-certificate",
            Self::ReleaseTicket => "release-ticket",
            Self::DecideRequest => "decide-request",
            Self::SetSecret => "set-secret",
        }
    }

    /// Whether only administrators may approve it.
    pub fn is_for_administrators(self) -> bool {
        self != Self::RenewCertificate
    }

    /// Whether any administrator may approve it, not only the one whom the operation names.
    pub fn is_shared(self) -> bool {
        matches!(self, Self::DecideRequest | Self::SetSecret)
    }
}

impl FromStr for Effect {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [
            Self::DeleteCertificate,
            Self::RenewCertificate,
            Self::ReleaseTicket,
            Self::DecideRequest,
            Self::SetSecret,
        ]
        .into_iter()
        .find(|effect| effect.as_str() == text)
        .ok_or(())
    }
}

/// Who created an operation, and to what end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Creator {
    /// The platform, with the key of this name; it acts on the approval itself.
    Platform(String),
    /// The service, which does this to that once it is approved.
    Service(Effect, String),
}

/// An operation.
#[derive(Debug, Clone)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What is to be approved.
    pub statement: Statement,
    /// The page that may relay the challenge.
    pub origin: Option<Origin>,
    /// Where it stands.
    pub state: State,
    /// Who created it.
    pub creator: Creator,
    /// Who entered it, where that is known: never one of those who approve.
    pub maker: Option<OperatorId>,
    /// Distinct operators that must approve.
    pub needed: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it can no longer be approved.
    pub expires_at: Timestamp,
    /// When it left [`State::Created`].
    pub closed_at: Option<Timestamp>,
}

/// Adds an operation in [`State::Created`].
pub async fn insert(tx: &mut Tx<'_>, operation: &Operation) -> Result<(), StoreError> {
    let (platform_key, effect, effect_on) = match &operation.creator {
        Creator::Platform(key) => (Some(key.clone()), None, None),
        Creator::Service(effect, on) => (None, Some(effect.as_str().to_owned()), Some(on.clone())),
    };
    tx.execute(
        sqlx::query(
            "INSERT INTO operations (id, account, operator, statement, origin, state, maker, needed,
                                     platform_key, effect, effect_on, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, 'created', $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(operation.id.as_str())
        .bind(operation.statement.account().as_str())
        .bind(operation.statement.operator().as_str())
        .bind(operation.statement.to_json().to_string())
        .bind(operation.origin.as_ref().map(ToString::to_string))
        .bind(operation.maker.as_ref().map(ToString::to_string))
        .bind(operation.needed)
        .bind(platform_key)
        .bind(effect)
        .bind(effect_on)
        .bind(millis(operation.created_at))
        .bind(millis(operation.expires_at)),
    )
    .await?;
    Ok(())
}

/// The operation with this id.
pub async fn find(tx: &mut Tx<'_>, id: &OperationId) -> Result<Option<Operation>, StoreError> {
    let sql = format!("{SELECT} WHERE id = $1");
    tx.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.as_str()))
        .await?
        .map(|row| operation(&row))
        .transpose()
}

/// Takes an operation's turn: until the transaction ends nobody else approves or closes it.
pub async fn take_turn(tx: &mut Tx<'_>, id: &OperationId) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query("UPDATE operations SET events = events WHERE id = $1").bind(id.as_str()),
    )
    .await?;
    Ok(())
}

/// The next place among the events of an operation.
pub async fn next_place(tx: &mut Tx<'_>, id: &OperationId) -> Result<i64, StoreError> {
    tx.execute(
        sqlx::query("UPDATE operations SET events = events + 1 WHERE id = $1").bind(id.as_str()),
    )
    .await?;
    tx.one(sqlx::query("SELECT events FROM operations WHERE id = $1").bind(id.as_str()))
        .await?
        .get(0)
}

/// Which operations a list shows.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// Only those that the platform created.
    pub of_platform: bool,
    /// Of this account only.
    pub account: Option<AccountId>,
    /// In this state only; those whose time is over count as expired.
    pub state: Option<State>,
    /// Behind this one in the list.
    pub after: Option<OperationId>,
}

/// Operations, newest first; at most `limit`.
pub async fn list(
    tx: &mut Tx<'_>,
    search: &Search,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Operation>, StoreError> {
    let start = match &search.after {
        Some(id) => tx
            .optional(
                sqlx::query("SELECT created_at FROM operations WHERE id = $1").bind(id.as_str()),
            )
            .await?
            .map(|row| row.get::<i64>(0))
            .transpose()?
            .map(|at| (at, id.to_string())),
        None => None,
    };
    let (before, behind) = start.unwrap_or((i64::MAX, String::new()));
    // Only what is asked for stands in the query, so that each has an index that answers it,
    // whatever values are bound.
    let of_platform = if search.of_platform {
        "AND platform_key IS NOT NULL"
    } else {
        ""
    };
    let state = match search.state {
        None => "",
        Some(State::Created) => "AND state = 'created' AND expires_at > $4",
        Some(State::Expired) => {
            "AND (state = 'expired' OR (state = 'created' AND expires_at <= $4))"
        }
        Some(State::Approved) => "AND state = 'approved'",
        Some(State::Cancelled) => "AND state = 'cancelled'",
    };
    let account = match (&search.account, search.state) {
        (None, _) => "",
        (Some(_), Some(State::Created | State::Expired)) => "AND account = $5",
        (Some(_), _) => "AND account = $4",
    };
    let sql = format!(
        "{SELECT}
         WHERE created_at <= $1 AND (created_at < $1 OR id > $2) {of_platform} {state} {account}
         ORDER BY created_at DESC, id LIMIT $3"
    );
    let mut query = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(before)
        .bind(behind)
        .bind(limit);
    if let Some(State::Created | State::Expired) = search.state {
        query = query.bind(millis(now));
    }
    if let Some(account) = &search.account {
        query = query.bind(account.to_string());
    }
    tx.all(query).await?.iter().map(operation).collect()
}

/// Open operations whose time is over, oldest first.
pub async fn overdue(
    tx: &mut Tx<'_>,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Operation>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE state = 'created' AND expires_at <= $1 ORDER BY expires_at LIMIT $2"
    );
    tx.all(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(millis(now))
            .bind(limit),
    )
    .await?
    .iter()
    .map(operation)
    .collect()
}

/// An operation of the service that still waits, if there is one to this end.
pub async fn open_effect(
    tx: &mut Tx<'_>,
    effect: Effect,
    on: &str,
    now: Timestamp,
) -> Result<Option<Operation>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE state = 'created' AND effect = $1 AND effect_on = $2
         AND expires_at > $3 ORDER BY created_at DESC, id LIMIT 1"
    );
    tx.optional(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(effect.as_str())
            .bind(on)
            .bind(millis(now)),
    )
    .await?
    .map(|row| operation(&row))
    .transpose()
}

const SELECT: &str = "SELECT statement, origin, state, platform_key, created_at, expires_at,
                             closed_at, id, maker, needed, effect, effect_on
                      FROM operations ";

fn operation(row: &Record) -> Result<Operation, StoreError> {
    let statement = Object::parse(row.get::<String>(0)?.as_bytes())
        .and_then(Statement::from_object)
        .map_err(|_| StoreError::Malformed {
            column: "operations.statement",
        })?;
    let creator = match (
        row.get::<Option<String>>(3)?,
        row.get::<Option<String>>(10)?,
        row.get::<Option<String>>(11)?,
    ) {
        (Some(key), None, None) => Creator::Platform(key),
        (None, Some(_), Some(on)) => Creator::Service(row.parsed(10, "operations.effect")?, on),
        _ => {
            return Err(StoreError::Malformed {
                column: "operations.effect",
            });
        }
    };
    Ok(Operation {
        id: row.parsed(7, "operations.id")?,
        statement,
        origin: row.optional_parsed(1, "operations.origin")?,
        state: row.parsed(2, "operations.state")?,
        creator,
        maker: row.optional_parsed(8, "operations.maker")?,
        needed: row.get(9)?,
        created_at: row.time(4)?,
        expires_at: row.time(5)?,
        closed_at: row.optional_time(6)?,
    })
}

/// Moves an operation out of [`State::Created`]; `false` where it had left it before.
pub async fn close(
    tx: &mut Tx<'_>,
    id: &OperationId,
    state: State,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE operations SET state = $2, closed_at = $3
                 WHERE id = $1 AND state = 'created'",
            )
            .bind(id.as_str())
            .bind(state.as_str())
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

/// A challenge that was signed.
#[derive(Debug, Clone)]
pub struct Challenge {
    /// The token's id.
    pub jti: Jti,
    /// The operation.
    pub operation: OperationId,
    /// The operator asked.
    pub operator: OperatorId,
    /// The challenge, JWS compact.
    pub challenge: String,
    /// When it was signed.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Timestamp,
}

/// Adds a challenge.
pub async fn insert_challenge(tx: &mut Tx<'_>, challenge: &Challenge) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO challenges (jti, operation, operator, challenge, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(challenge.jti.as_str())
        .bind(challenge.operation.as_str())
        .bind(challenge.operator.as_str())
        .bind(challenge.challenge.as_str())
        .bind(millis(challenge.created_at))
        .bind(millis(challenge.expires_at)),
    )
    .await?;
    Ok(())
}

/// How many challenges an operation has had.
pub async fn challenges(tx: &mut Tx<'_>, operation: &OperationId) -> Result<i64, StoreError> {
    tx.one(
        sqlx::query("SELECT COUNT(*) FROM challenges WHERE operation = $1")
            .bind(operation.as_str()),
    )
    .await?
    .get(0)
}

/// The challenge of this operation for `operator` that expires last, if it is good until `until`.
pub async fn good_challenge(
    tx: &mut Tx<'_>,
    operation: &OperationId,
    operator: &OperatorId,
    until: Timestamp,
) -> Result<Option<Challenge>, StoreError> {
    tx.optional(
        sqlx::query(
            "SELECT jti, challenge, created_at, expires_at FROM challenges
             WHERE operation = $1 AND operator = $2 AND expires_at >= $3
             ORDER BY expires_at DESC, jti LIMIT 1",
        )
        .bind(operation.as_str())
        .bind(operator.as_str())
        .bind(millis(until)),
    )
    .await?
    .map(|row| {
        Ok(Challenge {
            jti: row.parsed(0, "challenges.jti")?,
            operation: operation.clone(),
            operator: operator.clone(),
            challenge: row.get(1)?,
            created_at: row.time(2)?,
            expires_at: row.time(3)?,
        })
    })
    .transpose()
}

/// The challenge with this `jti`, if it belongs to this operation.
pub async fn challenge(
    tx: &mut Tx<'_>,
    operation: &OperationId,
    jti: &Jti,
) -> Result<Option<Challenge>, StoreError> {
    let Some(row) = tx
        .optional(
            sqlx::query(
                "SELECT operator, challenge, created_at, expires_at FROM challenges
                 WHERE jti = $1 AND operation = $2",
            )
            .bind(jti.as_str())
            .bind(operation.as_str()),
        )
        .await?
    else {
        return Ok(None);
    };
    Ok(Some(Challenge {
        jti: jti.clone(),
        operation: operation.clone(),
        operator: row.parsed(0, "challenges.operator")?,
        challenge: row.get(1)?,
        created_at: row.time(2)?,
        expires_at: row.time(3)?,
    }))
}

/// An approval that was accepted.
#[derive(Debug, Clone)]
pub struct Approval {
    /// The operation.
    pub operation: OperationId,
    /// Who approved.
    pub operator: OperatorId,
    /// The challenge it answers.
    pub challenge: Jti,
    /// Serial number of the certificate it was signed with, hexadecimal.
    pub certificate: String,
    /// The computer that holds the key of that certificate.
    pub computer: ComputerId,
    /// The approval, JWS compact.
    pub approval: String,
    /// When it was accepted.
    pub accepted_at: Timestamp,
}

/// Adds an approval.
pub async fn insert_approval(tx: &mut Tx<'_>, approval: &Approval) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO approvals (operation, operator, challenge, certificate, computer,
                                    approval, accepted_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(approval.operation.as_str())
        .bind(approval.operator.as_str())
        .bind(approval.challenge.as_str())
        .bind(approval.certificate.as_str())
        .bind(approval.computer.as_str())
        .bind(approval.approval.as_str())
        .bind(millis(approval.accepted_at)),
    )
    .await?;
    Ok(())
}

/// The approvals of an operation, in the order they came.
pub async fn approvals(
    tx: &mut Tx<'_>,
    operation: &OperationId,
) -> Result<Vec<Approval>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT operator, challenge, certificate, computer, approval, accepted_at
             FROM approvals WHERE operation = $1 ORDER BY accepted_at, operator",
        )
        .bind(operation.as_str()),
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Approval {
            operation: operation.clone(),
            operator: row.parsed(0, "approvals.operator")?,
            challenge: row.parsed(1, "approvals.challenge")?,
            certificate: row.get(2)?,
            computer: row.parsed(3, "approvals.computer")?,
            approval: row.get(4)?,
            accepted_at: row.time(5)?,
        })
    })
    .collect()
}

/// An answer kept for the repetition of its request.
#[derive(Debug, Clone)]
pub struct KeptAnswer {
    /// SHA-256 of the request, hexadecimal.
    pub request_hash: String,
    /// HTTP status.
    pub status: i64,
    /// The body.
    pub body: String,
}

/// The answer kept under somebody's idempotency key.
pub async fn kept_answer(
    tx: &mut Tx<'_>,
    principal: &str,
    key: &str,
) -> Result<Option<KeptAnswer>, StoreError> {
    tx.optional(
        sqlx::query(
            "SELECT request_hash, status, body FROM idempotency
             WHERE principal = $1 AND key = $2",
        )
        .bind(principal)
        .bind(key),
    )
    .await?
    .map(|row| {
        Ok(KeptAnswer {
            request_hash: row.get(0)?,
            status: row.get(1)?,
            body: row.get(2)?,
        })
    })
    .transpose()
}

/// Keeps an answer.
pub async fn keep_answer(
    tx: &mut Tx<'_>,
    principal: &str,
    key: &str,
    answer: &KeptAnswer,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO idempotency (principal, key, request_hash, status, body, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(principal)
        .bind(key)
        .bind(answer.request_hash.as_str())
        .bind(answer.status)
        .bind(answer.body.as_str())
        .bind(millis(now)),
    )
    .await?;
    Ok(())
}

/// Drops answers kept before `since`; gives their number.
pub async fn forget_answers(tx: &mut Tx<'_>, since: Timestamp) -> Result<u64, StoreError> {
    tx.execute(sqlx::query("DELETE FROM idempotency WHERE created_at < $1").bind(millis(since)))
        .await
}

/// An account and operator that a platform names, if such a login exists.
pub async fn operator_exists(
    tx: &mut Tx<'_>,
    account: &AccountId,
    operator: &OperatorId,
) -> Result<bool, StoreError> {
    Ok(super::accounts::operator(tx, account, operator)
        .await?
        .is_some())
}
