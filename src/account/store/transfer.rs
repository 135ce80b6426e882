//! An account as a whole, to be taken to another database: everything that is true of it, closed
//! logins and revoked certificates included, and nothing that is under way.

use serde::{Deserialize, Serialize};

use super::{Record, StoreError, Tx};
use crate::base::ids::AccountId;

/// One row, as its table has it; times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Row {
    /// The account; first.
    Account {
        /// What people call it.
        name: String,
        /// When it was created.
        created_at: i64,
        /// Certificates ever issued.
        issued: i64,
        /// `free` or `approval`.
        later_installs: String,
        /// Administrators who together replace the business representative.
        quorum: i64,
    },
    /// How many must approve.
    ApprovalRule {
        /// The kind of operation.
        kind: String,
        /// The currency, or nothing.
        currency: String,
        /// From this amount on.
        amount: i64,
        /// Distinct operators.
        approvals: i64,
    },
    /// An operator.
    Operator {
        /// Its id.
        id: String,
        /// Its role.
        role: String,
        /// Where codes go, E.164.
        mobile: String,
        /// The language of texts.
        language: String,
        /// The Argon2id hash, sealed, base64; while it is in the database, as it is.
        password: String,
        /// When it was created.
        created_at: i64,
        /// When the login was closed.
        disabled_at: Option<i64>,
    },
    /// A computer.
    Computer {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// When its first certificate was issued.
        created_at: i64,
    },
    /// An operating certificate; its predecessor comes before it.
    Certificate {
        /// Serial number, hexadecimal.
        serial: String,
        /// Whose.
        operator: String,
        /// Where.
        computer: String,
        /// The token's serial number.
        token_serial: Option<String>,
        /// The certificate it takes the place of.
        replaces: Option<String>,
        /// SHA-256 of its key, hexadecimal.
        key_fingerprint: String,
        /// SHA-256 of the authority's key that signed it, hexadecimal.
        issuer: String,
        /// The certificate, hexadecimal of DER.
        der: String,
        /// First instant of its validity.
        not_before: i64,
        /// Last instant of its validity.
        not_after: i64,
        /// When it was issued.
        issued_at: i64,
        /// When an approval was last accepted from it.
        last_used_at: Option<i64>,
        /// When it was revoked.
        revoked_at: Option<i64>,
        /// Why.
        revocation_reason: Option<String>,
        /// By whom.
        revoked_by: Option<String>,
    },
    /// How the key of a certificate was proven.
    KeyProof {
        /// Its serial number, hexadecimal.
        certificate: String,
        /// JSON.
        proof: String,
    },
    /// What happened, for the administrators.
    Event {
        /// Its id.
        id: String,
        /// When.
        at: i64,
        /// What.
        kind: String,
        /// In which request.
        request: String,
        /// The facts, JSON.
        body: String,
    },
}

type Reader = fn(&Record) -> Result<Row, StoreError>;

/// Each table's query and how its rows are read, in the order that [`insert`] needs.
const TABLES: [(&str, Reader); 7] = [
    (
        "SELECT name, created_at, issued, later_installs, quorum FROM accounts WHERE id = $1",
        |row| {
            Ok(Row::Account {
                name: row.get(0)?,
                created_at: row.get(1)?,
                issued: row.get(2)?,
                later_installs: row.get(3)?,
                quorum: row.get(4)?,
            })
        },
    ),
    (
        "SELECT kind, currency, amount, approvals FROM approval_rules WHERE account = $1
         ORDER BY kind, currency, amount",
        |row| {
            Ok(Row::ApprovalRule {
                kind: row.get(0)?,
                currency: row.get(1)?,
                amount: row.get(2)?,
                approvals: row.get(3)?,
            })
        },
    ),
    (
        "SELECT id, role, mobile, language, password_hash, created_at, disabled_at FROM operators
         WHERE account = $1 ORDER BY id",
        |row| {
            Ok(Row::Operator {
                id: row.get(0)?,
                role: row.get(1)?,
                mobile: row.get(2)?,
                language: row.get(3)?,
                password: row.get(4)?,
                created_at: row.get(5)?,
                disabled_at: row.get(6)?,
            })
        },
    ),
    (
        "SELECT id, name, created_at FROM computers WHERE account = $1 ORDER BY id",
        |row| {
            Ok(Row::Computer {
                id: row.get(0)?,
                name: row.get(1)?,
                created_at: row.get(2)?,
            })
        },
    ),
    (
        "SELECT serial, operator, computer, token_serial, replaces, key_fingerprint, der,
                not_before, not_after, issued_at, last_used_at, revoked_at, revocation_reason,
                revoked_by, issuer
         FROM certificates WHERE account = $1 ORDER BY issued_at, serial",
        |row| {
            Ok(Row::Certificate {
                serial: row.get(0)?,
                operator: row.get(1)?,
                computer: row.get(2)?,
                token_serial: row.get(3)?,
                replaces: row.get(4)?,
                key_fingerprint: row.get(5)?,
                der: crate::base::encoding::hex(&row.get::<Vec<u8>>(6)?),
                not_before: row.get(7)?,
                not_after: row.get(8)?,
                issued_at: row.get(9)?,
                last_used_at: row.get(10)?,
                revoked_at: row.get(11)?,
                revocation_reason: row.get(12)?,
                revoked_by: row.get(13)?,
                issuer: row.get(14)?,
            })
        },
    ),
    (
        "SELECT p.certificate, p.proof FROM key_proofs p
         JOIN certificates c ON c.serial = p.certificate
         WHERE c.account = $1 ORDER BY p.certificate",
        |row| {
            Ok(Row::KeyProof {
                certificate: row.get(0)?,
                proof: row.get(1)?,
            })
        },
    ),
    (
        "SELECT id, at, kind, request, body FROM events WHERE account = $1 ORDER BY at, id",
        |row| {
            Ok(Row::Event {
                id: row.get(0)?,
                at: row.get(1)?,
                kind: row.get(2)?,
                request: row.get(3)?,
                body: row.get(4)?,
            })
        },
    ),
];

/// Everything of an account; nothing where there is none.
pub async fn rows(tx: &mut Tx<'_>, account: &AccountId) -> Result<Vec<Row>, StoreError> {
    let mut rows = Vec::new();
    for (sql, read) in TABLES {
        let found = tx.all(sqlx::query(sql).bind(account.as_str())).await?;
        for row in &found {
            rows.push(read(row)?);
        }
    }
    Ok(rows)
}

/// Adds a row to an account that is being taken over.
pub async fn insert(tx: &mut Tx<'_>, account: &AccountId, row: &Row) -> Result<(), StoreError> {
    let account = account.as_str();
    let query = match row.clone() {
        Row::Account {
            name,
            created_at,
            issued,
            later_installs,
            quorum,
        } => sqlx::query(
            "INSERT INTO accounts (id, name, created_at, issued, later_installs, quorum)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(account)
        .bind(name)
        .bind(created_at)
        .bind(issued)
        .bind(later_installs)
        .bind(quorum),
        Row::ApprovalRule {
            kind,
            currency,
            amount,
            approvals,
        } => sqlx::query(
            "INSERT INTO approval_rules (account, kind, currency, amount, approvals)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(account)
        .bind(kind)
        .bind(currency)
        .bind(amount)
        .bind(approvals),
        Row::Operator {
            id,
            role,
            mobile,
            language,
            password,
            created_at,
            disabled_at,
        } => sqlx::query(
            "INSERT INTO operators (account, id, role, mobile, language, password_hash, created_at,
                                    disabled_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(account)
        .bind(id)
        .bind(role)
        .bind(mobile)
        .bind(language)
        .bind(password)
        .bind(created_at)
        .bind(disabled_at),
        Row::Computer {
            id,
            name,
            created_at,
        } => sqlx::query(
            "INSERT INTO computers (account, id, name, created_at) VALUES ($1, $2, $3, $4)",
        )
        .bind(account)
        .bind(id)
        .bind(name)
        .bind(created_at),
        Row::Certificate {
            serial,
            operator,
            computer,
            token_serial,
            replaces,
            key_fingerprint,
            issuer,
            der,
            not_before,
            not_after,
            issued_at,
            last_used_at,
            revoked_at,
            revocation_reason,
            revoked_by,
        } => {
            let der = crate::base::encoding::from_hex(&der).ok_or(StoreError::Malformed {
                column: "certificates.der",
            })?;
            // Its ticket stays behind; where there is none a certificate names its request.
            sqlx::query(
                "INSERT INTO certificates (serial, account, operator, computer, token_serial,
                                           replaces, request_hash, key_fingerprint, der, not_before,
                                           not_after, issued_at, last_used_at, revoked_at,
                                           revocation_reason, revoked_by, issuer)
                 VALUES ($1, $2, $3, $4, $5, $6, 'imported', $7, $8, $9, $10, $11, $12, $13, $14,
                         $15, $16)",
            )
            .bind(serial)
            .bind(account)
            .bind(operator)
            .bind(computer)
            .bind(token_serial)
            .bind(replaces)
            .bind(key_fingerprint)
            .bind(der)
            .bind(not_before)
            .bind(not_after)
            .bind(issued_at)
            .bind(last_used_at)
            .bind(revoked_at)
            .bind(revocation_reason)
            .bind(revoked_by)
            .bind(issuer)
        }
        Row::KeyProof { certificate, proof } => {
            sqlx::query("INSERT INTO key_proofs (certificate, proof) VALUES ($1, $2)")
                .bind(certificate)
                .bind(proof)
        }
        Row::Event {
            id,
            at,
            kind,
            request,
            body,
        } => sqlx::query(
            "INSERT INTO events (id, account, at, kind, request, body)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(id)
        .bind(account)
        .bind(at)
        .bind(kind)
        .bind(request)
        .bind(body),
    };
    tx.execute(query).await?;
    Ok(())
}
