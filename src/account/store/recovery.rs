//! Requests that a person decides, and the papers sent in with them.

use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::accounts::Mobile;
use super::{Record, StoreError, Tx, millis};
use crate::base::ids::{AccountId, OperatorId};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Codes are to go to this number from now on: the old one is lost.
    MobileChange(Mobile),
    /// The computers of an administrator are lost: its certificates are to be revoked, and it is
    /// to install on a new one without the approval of others.
    ComputerRecovery,
}

impl Ask {
    /// The stable name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MobileChange(_) => "mobile-change",
            Self::ComputerRecovery => "computer-recovery",
        }
    }
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RequestState {
    /// It was made; papers may be added.
    Open,
    /// A business representative is to decide.
    Submitted,
    /// It was granted and takes effect after a delay.
    Granted,
    /// It was refused.
    Refused,
    /// It was taken back.
    Withdrawn,
    /// It has taken effect.
    Done,
}

impl RequestState {
    const ALL: [Self; 6] = [
        Self::Open,
        Self::Submitted,
        Self::Granted,
        Self::Refused,
        Self::Withdrawn,
        Self::Done,
    ];

    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Submitted => "submitted",
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Withdrawn => "withdrawn",
            Self::Done => "done",
        }
    }
}

impl FromStr for RequestState {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or(())
    }
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its id.
    pub id: String,
    /// What is asked.
    pub ask: Ask,
    /// For whom.
    pub account: AccountId,
    /// For whom.
    pub operator: OperatorId,
    /// The mobile number when it was made.
    pub old_mobile: Mobile,
    /// Where it stands.
    pub state: RequestState,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was decided, by whom, and why.
    pub decision: Option<(Timestamp, String, Option<String>)>,
    /// When a grant takes effect.
    pub effective_at: Option<Timestamp>,
    /// When it took effect.
    pub done_at: Option<Timestamp>,
}

const SELECT: &str =
    "SELECT id, kind, account, operator, new_mobile, old_mobile, state, created_at,
                             decided_at, decided_by, reason, effective_at, done_at
                      FROM requests ";

fn request(row: &Record) -> Result<Request, StoreError> {
    let ask = match row.get::<Option<String>>(4)? {
        Some(_) => Ask::MobileChange(row.parsed(4, "requests.new_mobile")?),
        None => Ask::ComputerRecovery,
    };
    let decision = match (row.optional_time(8)?, row.get::<Option<String>>(9)?) {
        (Some(at), Some(by)) => Some((at, by, row.get(10)?)),
        _ => None,
    };
    Ok(Request {
        id: row.get(0)?,
        ask,
        account: row.parsed(2, "requests.account")?,
        operator: row.parsed(3, "requests.operator")?,
        old_mobile: row.parsed(5, "requests.old_mobile")?,
        state: row.parsed(6, "requests.state")?,
        created_at: row.time(7)?,
        decision,
        effective_at: row.optional_time(11)?,
        done_at: row.optional_time(12)?,
    })
}

/// Adds a request; the database refuses a second one of its kind that is not decided.
pub async fn insert(tx: &mut Tx<'_>, request: &Request) -> Result<(), StoreError> {
    let new_mobile = match &request.ask {
        Ask::MobileChange(mobile) => Some(mobile.as_str().to_owned()),
        Ask::ComputerRecovery => None,
    };
    tx.execute(
        sqlx::query(
            "INSERT INTO requests (id, kind, account, operator, new_mobile, old_mobile, state,
                                   created_at)
             VALUES ($1, $2, $3, $4, $5, $6, 'open', $7)",
        )
        .bind(request.id.as_str())
        .bind(request.ask.name())
        .bind(request.account.as_str())
        .bind(request.operator.as_str())
        .bind(new_mobile)
        .bind(request.old_mobile.as_str())
        .bind(millis(request.created_at)),
    )
    .await?;
    Ok(())
}

/// The request with this id.
pub async fn find(tx: &mut Tx<'_>, id: &str) -> Result<Option<Request>, StoreError> {
    let sql = format!("{SELECT} WHERE id = $1");
    tx.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id))
        .await?
        .map(|row| request(&row))
        .transpose()
}

/// Whether the operator has a request of this kind that is not over.
pub async fn is_open(
    tx: &mut Tx<'_>,
    account: &AccountId,
    operator: &OperatorId,
    kind: &str,
) -> Result<bool, StoreError> {
    Ok(tx
        .optional(
            sqlx::query(
                "SELECT id FROM requests WHERE account = $1 AND operator = $2 AND kind = $3
                 AND state IN ('open', 'submitted', 'granted')",
            )
            .bind(account.as_str())
            .bind(operator.as_str())
            .bind(kind),
        )
        .await?
        .is_some())
}

/// When a recovery of this operator's computers last took effect.
pub async fn recovered_at(
    tx: &mut Tx<'_>,
    account: &AccountId,
    operator: &OperatorId,
) -> Result<Option<Timestamp>, StoreError> {
    tx.one(
        sqlx::query(
            "SELECT MAX(done_at) FROM requests
             WHERE account = $1 AND operator = $2 AND kind = 'computer-recovery' AND state = 'done'",
        )
        .bind(account.as_str())
        .bind(operator.as_str()),
    )
    .await?
    .optional_time(0)
}

/// Requests, newest first: of one account, or in one state, where that is given.
pub async fn list(
    tx: &mut Tx<'_>,
    account: Option<&AccountId>,
    state: Option<RequestState>,
    limit: i64,
) -> Result<Vec<Request>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE ($1 = '' OR account = $1) AND ($2 = '' OR state = $2)
         ORDER BY created_at DESC, id LIMIT $3"
    );
    tx.all(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(account.map_or("", AccountId::as_str))
            .bind(state.map_or("", RequestState::as_str))
            .bind(limit),
    )
    .await?
    .iter()
    .map(request)
    .collect()
}

/// Granted requests whose delay is over.
pub async fn due(tx: &mut Tx<'_>, now: Timestamp) -> Result<Vec<Request>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE state = 'granted' AND effective_at <= $1 ORDER BY effective_at LIMIT 100"
    );
    tx.all(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(millis(now)))
        .await?
        .iter()
        .map(request)
        .collect()
}

/// Moves a request from one of `from` to `to`; `false` where it is in another state.
pub async fn advance(
    tx: &mut Tx<'_>,
    id: &str,
    from: &[RequestState],
    to: RequestState,
    now: Timestamp,
) -> Result<bool, StoreError> {
    for state in from {
        let changed = tx
            .execute(
                sqlx::query(
                    "UPDATE requests
                     SET state = $3,
                         submitted_at = CASE WHEN $3 = 'submitted' THEN $4 ELSE submitted_at END,
                         done_at = CASE WHEN $3 = 'done' THEN $4 ELSE done_at END
                     WHERE id = $1 AND state = $2",
                )
                .bind(id)
                .bind(state.as_str())
                .bind(to.as_str())
                .bind(millis(now)),
            )
            .await?;
        if changed == 1 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A decision.
#[derive(Debug, Clone)]
pub struct Decision<'a> {
    /// [`RequestState::Granted`] or [`RequestState::Refused`].
    pub state: RequestState,
    /// Who.
    pub by: &'a str,
    /// Why.
    pub reason: Option<&'a str>,
    /// When a grant takes effect.
    pub effective_at: Option<Timestamp>,
}

/// Decides a request that is open or submitted; `false` where it is in another state.
pub async fn decide(
    tx: &mut Tx<'_>,
    id: &str,
    decision: &Decision<'_>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE requests SET state = $2, decided_at = $3, decided_by = $4, reason = $5,
                                     effective_at = $6
                 WHERE id = $1 AND state IN ('open', 'submitted')",
            )
            .bind(id)
            .bind(decision.state.as_str())
            .bind(millis(now))
            .bind(decision.by)
            .bind(decision.reason.map(ToOwned::to_owned))
            .bind(decision.effective_at.map(millis)),
        )
        .await?;
    Ok(changed == 1)
}

/// A paper.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// Its id.
    pub id: String,
    /// `photocopy` or `document`.
    pub kind: String,
    /// Found in its content.
    pub media_type: String,
    /// Bytes.
    pub size: i64,
    /// SHA-256 of the content, hexadecimal.
    pub sha256: String,
}

/// The papers of a request.
pub async fn attachments(tx: &mut Tx<'_>, request: &str) -> Result<Vec<Attachment>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT id, kind, media_type, size, sha256 FROM attachments
             WHERE request = $1 ORDER BY kind",
        )
        .bind(request),
    )
    .await?
    .iter()
    .map(attachment)
    .collect()
}

/// Adds a paper, in place of one of its kind.
pub async fn attach(
    tx: &mut Tx<'_>,
    request: &str,
    attachment: &Attachment,
    sealed: &[u8],
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query("DELETE FROM attachments WHERE request = $1 AND kind = $2")
            .bind(request)
            .bind(attachment.kind.as_str()),
    )
    .await?;
    tx.execute(
        sqlx::query(
            "INSERT INTO attachments (id, request, kind, media_type, size, sha256, content, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(attachment.id.as_str())
        .bind(request)
        .bind(attachment.kind.as_str())
        .bind(attachment.media_type.as_str())
        .bind(attachment.size)
        .bind(attachment.sha256.as_str())
        .bind(sealed.to_vec())
        .bind(millis(now)),
    )
    .await?;
    Ok(())
}

/// Requests made before `before` that wait for papers or a decision, oldest first.
pub async fn undecided(
    tx: &mut Tx<'_>,
    before: Timestamp,
    limit: i64,
) -> Result<Vec<Request>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE state IN ('open', 'submitted') AND created_at < $1
         ORDER BY created_at LIMIT $2"
    );
    tx.all(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(millis(before))
            .bind(limit),
    )
    .await?
    .iter()
    .map(request)
    .collect()
}

/// Papers sent in before `before` whose requests are over, oldest first: account, request, paper.
pub async fn papers_before(
    tx: &mut Tx<'_>,
    before: Timestamp,
    limit: i64,
) -> Result<Vec<(AccountId, String, Attachment)>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT a.id, a.kind, a.media_type, a.size, a.sha256, r.account, r.id
             FROM attachments a JOIN requests r ON r.id = a.request
             WHERE a.created_at < $1 AND r.state IN ('refused', 'withdrawn', 'done')
             ORDER BY a.created_at, a.id LIMIT $2",
        )
        .bind(millis(before))
        .bind(limit),
    )
    .await?
    .iter()
    .map(|row| {
        Ok((
            row.parsed(5, "requests.account")?,
            row.get(6)?,
            attachment(row)?,
        ))
    })
    .collect()
}

/// Removes a paper.
pub async fn destroy(tx: &mut Tx<'_>, attachment: &str) -> Result<(), StoreError> {
    tx.execute(sqlx::query("DELETE FROM attachments WHERE id = $1").bind(attachment))
        .await?;
    Ok(())
}

fn attachment(row: &Record) -> Result<Attachment, StoreError> {
    Ok(Attachment {
        id: row.get(0)?,
        kind: row.get(1)?,
        media_type: row.get(2)?,
        size: row.get(3)?,
        sha256: row.get(4)?,
    })
}

/// The sealed content of a paper.
pub async fn content(tx: &mut Tx<'_>, attachment: &str) -> Result<Option<Vec<u8>>, StoreError> {
    tx.optional(sqlx::query("SELECT content FROM attachments WHERE id = $1").bind(attachment))
        .await?
        .map(|row| row.get(0))
        .transpose()
}
