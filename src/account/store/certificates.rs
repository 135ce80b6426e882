//! Certificates, computers, and revocation lists.

use jiff::Timestamp;

use super::{Record, StoreError, Tx, millis};
use crate::base::ids::{AccountId, ComputerId, Jti, OperatorId};

/// An operating certificate.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// Whose it is.
    pub account: AccountId,
    /// Whose it is.
    pub operator: OperatorId,
    /// Where its key lives.
    pub computer: ComputerId,
    /// The serial number of the token that holds the key, where its daemon told it.
    pub token_serial: Option<String>,
    /// The certificate it takes the place of.
    pub replaces: Option<String>,
    /// SHA-256 of the SubjectPublicKeyInfo, hexadecimal.
    pub key_fingerprint: String,
    /// The authority's key that signed it, as [`super::keys`] names keys.
    pub issuer: String,
    /// The certificate.
    pub der: Vec<u8>,
    /// First instant of its validity.
    pub not_before: Timestamp,
    /// Last instant of its validity.
    pub not_after: Timestamp,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When an approval was last accepted from it.
    pub last_used_at: Option<Timestamp>,
    /// When and why it was revoked.
    pub revoked: Option<(Timestamp, String)>,
    /// Who revoked it.
    pub revoked_by: Option<String>,
}

/// What a certificate is issued for.
#[derive(Debug, Clone, Copy)]
pub enum Ground<'a> {
    /// A ticket.
    Ticket(&'a Jti),
    /// The certificate it replaces and the SHA-256 of the request, hexadecimal.
    Predecessor(&'a str),
}

impl Certificate {
    /// Where it stands at `now`: `active`, `expired` or `revoked`.
    pub fn state(&self, now: Timestamp) -> &'static str {
        if self.revoked.is_some() {
            "revoked"
        } else if self.not_after < now {
            "expired"
        } else {
            "active"
        }
    }
}

/// A query over certificates with the columns that [`certificate`] reads.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT serial, account, operator, computer, key_fingerprint, der, not_before,
                    not_after, issued_at, last_used_at, revoked_at, revocation_reason,
                    token_serial, replaces, revoked_by, issuer
             FROM certificates ",
            $rest
        )
    };
}

/// Waits for whoever issues in this account, and lets nobody issue until the transaction ends.
pub async fn hold_issuing(tx: &mut Tx<'_>, account: &AccountId) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query("UPDATE accounts SET issued = issued WHERE id = $1").bind(account.as_str()),
    )
    .await?;
    Ok(())
}

/// Takes this account's turn to issue: until the transaction ends nobody else counts its quota.
pub async fn take_turn(tx: &mut Tx<'_>, account: &AccountId) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query("UPDATE accounts SET issued = issued + 1 WHERE id = $1").bind(account.as_str()),
    )
    .await?;
    Ok(())
}

/// Certificates in force in this account, those with a successor left out, and computers other than `computer` that hold one.
pub async fn active(
    tx: &mut Tx<'_>,
    account: &AccountId,
    computer: &ComputerId,
    now: Timestamp,
) -> Result<(i64, i64), StoreError> {
    let row = tx
        .one(
            sqlx::query(
                "SELECT COUNT(*), COUNT(DISTINCT CASE WHEN computer <> $2 THEN computer END)
                 FROM certificates c
                 WHERE account = $1 AND revoked_at IS NULL AND not_after >= $3
                   AND NOT EXISTS (SELECT 1 FROM certificates s
                                   WHERE s.replaces = c.serial AND s.revoked_at IS NULL)",
            )
            .bind(account.as_str())
            .bind(computer.as_str())
            .bind(millis(now)),
        )
        .await?;
    Ok((row.get(0)?, row.get(1)?))
}

/// Certificates in force in this account, those with a successor left out, and computers that hold
/// one.
pub async fn counts(
    tx: &mut Tx<'_>,
    account: &AccountId,
    now: Timestamp,
) -> Result<(i64, i64), StoreError> {
    let row = tx
        .one(
            sqlx::query(
                "SELECT COUNT(*), COUNT(DISTINCT computer)
                 FROM certificates c
                 WHERE account = $1 AND revoked_at IS NULL AND not_after >= $2
                   AND NOT EXISTS (SELECT 1 FROM certificates s
                                   WHERE s.replaces = c.serial AND s.revoked_at IS NULL)",
            )
            .bind(account.as_str())
            .bind(millis(now)),
        )
        .await?;
    Ok((row.get(0)?, row.get(1)?))
}

/// Adds the computer, or takes over its new name.
pub async fn upsert_computer(
    tx: &mut Tx<'_>,
    account: &AccountId,
    computer: &ComputerId,
    name: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO computers (account, id, name, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (account, id) DO UPDATE SET name = excluded.name",
        )
        .bind(account.as_str())
        .bind(computer.as_str())
        .bind(name)
        .bind(millis(now)),
    )
    .await?;
    Ok(())
}

/// Whether a certificate was ever issued for this key.
pub async fn key_known(tx: &mut Tx<'_>, key_fingerprint: &str) -> Result<bool, StoreError> {
    Ok(tx
        .optional(
            sqlx::query("SELECT serial FROM certificates WHERE key_fingerprint = $1")
                .bind(key_fingerprint),
        )
        .await?
        .is_some())
}

/// Adds a certificate.
pub async fn insert(
    tx: &mut Tx<'_>,
    certificate: &Certificate,
    ground: Ground<'_>,
) -> Result<(), StoreError> {
    let (ticket, request_hash) = match ground {
        Ground::Ticket(jti) => (Some(jti.to_string()), None),
        Ground::Predecessor(request_hash) => (None, Some(request_hash.to_owned())),
    };
    tx.execute(
        sqlx::query(
            "INSERT INTO certificates (serial, account, operator, computer, ticket,
                                       key_fingerprint, der, not_before, not_after, issued_at,
                                       token_serial, replaces, request_hash, issuer)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        )
        .bind(certificate.serial.as_str())
        .bind(certificate.account.as_str())
        .bind(certificate.operator.as_str())
        .bind(certificate.computer.as_str())
        .bind(ticket)
        .bind(certificate.key_fingerprint.as_str())
        .bind(certificate.der.clone())
        .bind(millis(certificate.not_before))
        .bind(millis(certificate.not_after))
        .bind(millis(certificate.issued_at))
        .bind(certificate.token_serial.clone())
        .bind(certificate.replaces.clone())
        .bind(request_hash)
        .bind(certificate.issuer.as_str()),
    )
    .await?;
    Ok(())
}

/// The certificate issued for a ticket.
pub async fn for_ticket(tx: &mut Tx<'_>, ticket: &Jti) -> Result<Option<Certificate>, StoreError> {
    tx.optional(sqlx::query(select!("WHERE ticket = $1")).bind(ticket.as_str()))
        .await?
        .map(|row| certificate(&row))
        .transpose()
}

/// The certificate with this serial number.
pub async fn find(tx: &mut Tx<'_>, serial: &str) -> Result<Option<Certificate>, StoreError> {
    tx.optional(sqlx::query(select!("WHERE serial = $1")).bind(serial))
        .await?
        .map(|row| certificate(&row))
        .transpose()
}

/// The successor of a certificate, with the SHA-256 of the request it was issued for where it was
/// issued without a ticket.
pub async fn successor(
    tx: &mut Tx<'_>,
    serial: &str,
) -> Result<Option<(Certificate, Option<String>)>, StoreError> {
    let Some(certificate) = tx
        .optional(sqlx::query(select!("WHERE replaces = $1")).bind(serial))
        .await?
        .map(|row| certificate(&row))
        .transpose()?
    else {
        return Ok(None);
    };
    let request_hash = tx
        .one(
            sqlx::query("SELECT request_hash FROM certificates WHERE serial = $1")
                .bind(certificate.serial.as_str()),
        )
        .await?
        .get(0)?;
    Ok(Some((certificate, request_hash)))
}

/// Which certificates a list shows.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// Part of an operator, computer, its name, or a serial number; any case.
    pub text: Option<String>,
    /// Of this operator only.
    pub operator: Option<OperatorId>,
    /// On this computer only.
    pub computer: Option<ComputerId>,
    /// Only those in force.
    pub active: bool,
    /// Behind this one in the list.
    pub after: Option<String>,
}

/// Certificates of an account with the names of their computers, newest first; at most `limit`.
pub async fn search(
    tx: &mut Tx<'_>,
    account: &AccountId,
    search: &Search,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<(Certificate, String)>, StoreError> {
    let start = match &search.after {
        Some(serial) => tx
            .optional(
                sqlx::query(
                    "SELECT issued_at FROM certificates WHERE serial = $1 AND account = $2",
                )
                .bind(serial.as_str())
                .bind(account.as_str()),
            )
            .await?
            .map(|row| row.get::<i64>(0))
            .transpose()?
            .map(|at| (at, serial.clone())),
        None => None,
    };
    let (before, behind) = start.unwrap_or((i64::MAX, String::new()));
    let text = search.text.as_deref().map(like);
    tx.all(
        sqlx::query(
            "SELECT c.serial, c.account, c.operator, c.computer, c.key_fingerprint, c.der,
                    c.not_before, c.not_after, c.issued_at, c.last_used_at, c.revoked_at,
                    c.revocation_reason, c.token_serial, c.replaces, c.revoked_by, c.issuer, k.name
             FROM certificates c
             JOIN computers k ON k.account = c.account AND k.id = c.computer
             WHERE c.account = $1
               AND c.issued_at <= $2 AND (c.issued_at < $2 OR c.serial > $3)
               AND ($4 = '' OR c.operator = $4)
               AND ($5 = '' OR c.computer = $5)
               AND ($6 = 0 OR (c.revoked_at IS NULL AND c.not_after >= $7))
               AND ($8 = '' OR LOWER(c.operator) LIKE $8 ESCAPE '!'
                            OR LOWER(c.computer) LIKE $8 ESCAPE '!'
                            OR LOWER(k.name) LIKE $8 ESCAPE '!'
                            OR c.serial LIKE $8 ESCAPE '!')
             ORDER BY c.issued_at DESC, c.serial LIMIT $9",
        )
        .bind(account.as_str())
        .bind(before)
        .bind(behind)
        .bind(search.operator.as_ref().map_or("", OperatorId::as_str))
        .bind(search.computer.as_ref().map_or("", ComputerId::as_str))
        .bind(i64::from(search.active))
        .bind(millis(now))
        .bind(text.unwrap_or_default())
        .bind(limit),
    )
    .await?
    .iter()
    .map(|row| Ok((certificate(row)?, row.get(16)?)))
    .collect()
}

/// A pattern that finds `text` anywhere, in any case.
fn like(text: &str) -> String {
    let mut pattern = String::from("%");
    for character in text.to_lowercase().chars() {
        if matches!(character, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}

/// Certificates in force of one operator on one computer.
pub async fn active_of(
    tx: &mut Tx<'_>,
    account: &AccountId,
    operator: &OperatorId,
    computer: Option<&ComputerId>,
    now: Timestamp,
) -> Result<Vec<Certificate>, StoreError> {
    tx.all(
        sqlx::query(select!(
            "WHERE account = $1 AND operator = $2 AND ($3 = '' OR computer = $3)
               AND revoked_at IS NULL AND not_after >= $4
             ORDER BY issued_at, serial LIMIT 1000"
        ))
        .bind(account.as_str())
        .bind(operator.as_str())
        .bind(computer.map_or("", ComputerId::as_str))
        .bind(millis(now)),
    )
    .await?
    .iter()
    .map(certificate)
    .collect()
}

/// Certificates in force on one computer.
pub async fn active_on(
    tx: &mut Tx<'_>,
    account: &AccountId,
    computer: &ComputerId,
    now: Timestamp,
) -> Result<Vec<Certificate>, StoreError> {
    tx.all(
        sqlx::query(select!(
            "WHERE account = $1 AND computer = $2 AND revoked_at IS NULL AND not_after >= $3
             ORDER BY issued_at, serial LIMIT 1000"
        ))
        .bind(account.as_str())
        .bind(computer.as_str())
        .bind(millis(now)),
    )
    .await?
    .iter()
    .map(certificate)
    .collect()
}

/// A computer of an account.
#[derive(Debug, Clone)]
pub struct Computer {
    /// Its id.
    pub id: ComputerId,
    /// What its operator calls it.
    pub name: String,
    /// When its first certificate was issued.
    pub created_at: Timestamp,
    /// Certificates on it that are in force.
    pub active: i64,
    /// When an approval was last accepted from it.
    pub last_used_at: Option<Timestamp>,
}

/// The computers of an account, by name; at most 1000.
pub async fn computers(
    tx: &mut Tx<'_>,
    account: &AccountId,
    now: Timestamp,
) -> Result<Vec<Computer>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT k.id, k.name, k.created_at,
                    COUNT(CASE WHEN c.revoked_at IS NULL AND c.not_after >= $2 THEN 1 END),
                    MAX(c.last_used_at)
             FROM computers k
             LEFT JOIN certificates c ON c.account = k.account AND c.computer = k.id
             WHERE k.account = $1
             GROUP BY k.id, k.name, k.created_at ORDER BY k.name, k.id LIMIT 1000",
        )
        .bind(account.as_str())
        .bind(millis(now)),
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Computer {
            id: row.parsed(0, "computers.id")?,
            name: row.get(1)?,
            created_at: row.time(2)?,
            active: row.get(3)?,
            last_used_at: row.optional_time(4)?,
        })
    })
    .collect()
}

/// The name of a computer.
pub async fn computer_name(
    tx: &mut Tx<'_>,
    account: &AccountId,
    computer: &ComputerId,
) -> Result<Option<String>, StoreError> {
    tx.optional(
        sqlx::query("SELECT name FROM computers WHERE account = $1 AND id = $2")
            .bind(account.as_str())
            .bind(computer.as_str()),
    )
    .await?
    .map(|row| row.get(0))
    .transpose()
}

/// The newest certificates, of one account where it is given; at most `limit`.
pub async fn list(
    tx: &mut Tx<'_>,
    account: Option<&AccountId>,
    limit: i64,
) -> Result<Vec<Certificate>, StoreError> {
    let query = match account {
        Some(account) => sqlx::query(select!(
            "WHERE account = $1 ORDER BY issued_at DESC, serial LIMIT $2"
        ))
        .bind(account.as_str())
        .bind(limit),
        None => sqlx::query(select!("ORDER BY issued_at DESC, serial LIMIT $1")).bind(limit),
    };
    tx.all(query).await?.iter().map(certificate).collect()
}

/// Those in force in an account, the one least recently used first; at most `limit`.
pub async fn candidates(
    tx: &mut Tx<'_>,
    account: &AccountId,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Certificate>, StoreError> {
    tx.all(
        sqlx::query(select!(
            "WHERE account = $1 AND revoked_at IS NULL AND not_after >= $2
             ORDER BY COALESCE(last_used_at, issued_at), serial LIMIT $3"
        ))
        .bind(account.as_str())
        .bind(millis(now))
        .bind(limit),
    )
    .await?
    .iter()
    .map(certificate)
    .collect()
}

/// Revokes a certificate; `false` where there is none or it was revoked before.
pub async fn revoke(
    tx: &mut Tx<'_>,
    serial: &str,
    reason: &str,
    by: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE certificates SET revoked_at = $2, revocation_reason = $3, revoked_by = $4
                 WHERE serial = $1 AND revoked_at IS NULL",
            )
            .bind(serial)
            .bind(millis(now))
            .bind(reason)
            .bind(by),
        )
        .await?;
    Ok(changed == 1)
}

/// Notes that an approval by this certificate was accepted; `false` where it is revoked, also by
/// a transaction that ended a moment ago.
pub async fn used(tx: &mut Tx<'_>, serial: &str, now: Timestamp) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE certificates SET last_used_at = $2 WHERE serial = $1 AND revoked_at IS NULL",
            )
            .bind(serial)
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

/// A revoked certificate, as a revocation list names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

/// Revoked certificates that have not expired, as RFC 5280 section 3.3 wants them listed.
pub async fn revoked(tx: &mut Tx<'_>, now: Timestamp) -> Result<Vec<Revoked>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT serial, revoked_at, revocation_reason FROM certificates
             WHERE revoked_at IS NOT NULL AND not_after >= $1 ORDER BY serial",
        )
        .bind(millis(now)),
    )
    .await?
    .iter()
    .map(|row| {
        Ok(Revoked {
            serial: row.get(0)?,
            at: row.time(1)?,
            reason: row.get(2)?,
        })
    })
    .collect()
}

/// How many certificates were ever revoked.
pub async fn revocations(tx: &mut Tx<'_>) -> Result<i64, StoreError> {
    tx.one(sqlx::query(
        "SELECT COUNT(*) FROM certificates WHERE revoked_at IS NOT NULL",
    ))
    .await?
    .get(0)
}

/// When the newest certificate was issued.
pub async fn newest_issue(tx: &mut Tx<'_>) -> Result<Option<Timestamp>, StoreError> {
    tx.one(sqlx::query("SELECT MAX(issued_at) FROM certificates"))
        .await?
        .optional_time(0)
}

/// Certificates in force that a key of the authority signed.
pub async fn in_force_by(tx: &mut Tx<'_>, issuer: &str, now: Timestamp) -> Result<i64, StoreError> {
    tx.one(
        sqlx::query(
            "SELECT COUNT(*) FROM certificates
             WHERE issuer = $1 AND revoked_at IS NULL AND not_after >= $2",
        )
        .bind(issuer)
        .bind(millis(now)),
    )
    .await?
    .get(0)
}

/// Some of them; at most `limit`.
pub async fn active_by(
    tx: &mut Tx<'_>,
    issuer: &str,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Certificate>, StoreError> {
    tx.all(
        sqlx::query(select!(
            "WHERE issuer = $1 AND revoked_at IS NULL AND not_after >= $2
             ORDER BY not_after, serial LIMIT $3"
        ))
        .bind(issuer)
        .bind(millis(now))
        .bind(limit),
    )
    .await?
    .iter()
    .map(certificate)
    .collect()
}

/// A revocation list that was signed.
#[derive(Debug, Clone)]
pub struct StoredCrl {
    /// The authority's key that signed it.
    pub issuer: String,
    /// CRL number.
    pub number: i64,
    /// The list.
    pub der: Vec<u8>,
    /// [`revocations`] when it was made.
    pub revocations: i64,
    /// When it was made.
    pub this_update: Timestamp,
    /// When the next one is due at the latest.
    pub next_update: Timestamp,
}

/// The newest list that this key of the authority signed.
pub async fn newest_crl(tx: &mut Tx<'_>, issuer: &str) -> Result<Option<StoredCrl>, StoreError> {
    tx.optional(
        sqlx::query(
            "SELECT number, der, revocations, this_update, next_update, issuer FROM crls
             WHERE issuer = $1 ORDER BY number DESC LIMIT 1",
        )
        .bind(issuer),
    )
    .await?
    .map(|row| {
        Ok(StoredCrl {
            number: row.get(0)?,
            der: row.get(1)?,
            revocations: row.get(2)?,
            this_update: row.time(3)?,
            next_update: row.time(4)?,
            issuer: row.get(5)?,
        })
    })
    .transpose()
}

/// What makes a list fresh, without the list.
#[derive(Debug, Clone)]
pub struct CrlState {
    /// CRL number.
    pub number: i64,
    /// [`revocations`] when it was made.
    pub revocations: i64,
    /// When it was made.
    pub this_update: Timestamp,
}

/// The state of the newest list that this key of the authority signed.
pub async fn crl_state(tx: &mut Tx<'_>, issuer: &str) -> Result<Option<CrlState>, StoreError> {
    tx.optional(
        sqlx::query(
            "SELECT number, revocations, this_update FROM crls
             WHERE issuer = $1 ORDER BY number DESC LIMIT 1",
        )
        .bind(issuer),
    )
    .await?
    .map(|row| {
        Ok(CrlState {
            number: row.get(0)?,
            revocations: row.get(1)?,
            this_update: row.time(2)?,
        })
    })
    .transpose()
}

/// The list with this number, DER.
pub async fn crl(tx: &mut Tx<'_>, number: i64) -> Result<Vec<u8>, StoreError> {
    tx.one(sqlx::query("SELECT der FROM crls WHERE number = $1").bind(number))
        .await?
        .get(0)
}

/// The number of the next list. All lists are numbered in one sequence, whichever key signs them.
pub async fn next_crl_number(tx: &mut Tx<'_>) -> Result<i64, StoreError> {
    tx.one(sqlx::query("SELECT COALESCE(MAX(number), 0) + 1 FROM crls"))
        .await?
        .get(0)
}

/// Keeps a list, and none before it that the same key signed; `false` where another instance used
/// its number first.
pub async fn insert_crl(tx: &mut Tx<'_>, crl: &StoredCrl) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "INSERT INTO crls (number, der, revocations, this_update, next_update, issuer)
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (number) DO NOTHING",
            )
            .bind(crl.number)
            .bind(crl.der.clone())
            .bind(crl.revocations)
            .bind(millis(crl.this_update))
            .bind(millis(crl.next_update))
            .bind(crl.issuer.as_str()),
        )
        .await?;
    if changed == 0 {
        return Ok(false);
    }
    tx.execute(
        sqlx::query("DELETE FROM crls WHERE issuer = $1 AND number < $2")
            .bind(crl.issuer.as_str())
            .bind(crl.number),
    )
    .await?;
    Ok(true)
}

fn certificate(row: &Record) -> Result<Certificate, StoreError> {
    let revoked = match (row.optional_time(10)?, row.get::<Option<String>>(11)?) {
        (Some(at), Some(reason)) => Some((at, reason)),
        (None, None) => None,
        _ => {
            return Err(StoreError::Malformed {
                column: "certificates.revoked_at",
            });
        }
    };
    Ok(Certificate {
        serial: row.get(0)?,
        account: row.parsed(1, "certificates.account")?,
        operator: row.parsed(2, "certificates.operator")?,
        computer: row.parsed(3, "certificates.computer")?,
        key_fingerprint: row.get(4)?,
        der: row.get(5)?,
        not_before: row.time(6)?,
        not_after: row.time(7)?,
        issued_at: row.time(8)?,
        last_used_at: row.optional_time(9)?,
        revoked,
        token_serial: row.get(12)?,
        replaces: row.get(13)?,
        revoked_by: row.get(14)?,
        issuer: row.get(15)?,
    })
}
