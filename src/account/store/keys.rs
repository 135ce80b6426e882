//! Where the keys of the service are.

use jiff::Timestamp;

use super::{Record, StoreError, Tx, millis};
use crate::base::key::PublicKey;
use crate::base::pkcs11::{KeyId, KeyRef, TokenId};

/// What a key of the service is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPurpose {
    /// Certificates and revocation lists.
    Issuing,
    /// Challenges and tickets.
    Challenge,
    /// Nothing: secrets are sealed to it.
    Sealing,
}

impl KeyPurpose {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Issuing => "issuing",
            Self::Challenge => "challenge",
            Self::Sealing => "sealing",
        }
    }
}

/// What a key is named by: SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
pub fn name(key: &PublicKey) -> String {
    crate::base::encoding::hex(&key.fingerprint())
}

/// A key of the service.
#[derive(Debug, Clone)]
pub struct ServiceKey {
    /// Where it is.
    pub key: KeyRef,
    /// Its public half.
    pub public_key: PublicKey,
    /// The certificate of an issuing key.
    pub certificate: Option<Vec<u8>>,
    /// When it was generated.
    pub created_at: Timestamp,
}

/// What a new key does first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It signs.
    Now,
    /// It is published, and signs once [`activate`] says so.
    Next,
}

/// Adds a key.
pub async fn insert(
    tx: &mut Tx<'_>,
    purpose: KeyPurpose,
    key: &ServiceKey,
    turn: Turn,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO service_keys (fingerprint, purpose, module, label, serial, key_id, spki,
                                       certificate, created_at, waits)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(name(&key.public_key))
        .bind(purpose.as_str())
        .bind(key.key.token.module.as_str())
        .bind(key.key.token.label.as_str())
        .bind(key.key.token.serial.as_str())
        .bind(key.key.id.to_string())
        .bind(key.public_key.spki().to_vec())
        .bind(key.certificate.clone())
        .bind(millis(key.created_at))
        .bind(i64::from(turn == Turn::Next)),
    )
    .await?;
    Ok(())
}

/// The key that waits to sign for this purpose.
pub async fn next(tx: &mut Tx<'_>, purpose: KeyPurpose) -> Result<Option<ServiceKey>, StoreError> {
    let sql = format!("{SELECT} WHERE purpose = $1 AND waits = 1");
    tx.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(purpose.as_str()))
        .await?
        .map(|row| key(&row))
        .transpose()
}

/// Lets the key that waits sign from now on; `false` where none waits. The one before it stays
/// published until `until`.
pub async fn activate(
    tx: &mut Tx<'_>,
    purpose: KeyPurpose,
    until: Timestamp,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if next(tx, purpose).await?.is_none() {
        return Ok(false);
    }
    retire(tx, purpose, until, now).await?;
    let changed = tx
        .execute(
            sqlx::query("UPDATE service_keys SET waits = 0 WHERE purpose = $1 AND waits = 1")
                .bind(purpose.as_str()),
        )
        .await?;
    Ok(changed == 1)
}

/// The key that signs for this purpose now.
pub async fn current(
    tx: &mut Tx<'_>,
    purpose: KeyPurpose,
) -> Result<Option<ServiceKey>, StoreError> {
    let sql = format!("{SELECT} WHERE purpose = $1 AND retired_at IS NULL AND waits = 0");
    tx.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(purpose.as_str()))
        .await?
        .map(|row| key(&row))
        .transpose()
}

/// Keys of this purpose that sign no more but are still published at `now`, newest first.
pub async fn retired(
    tx: &mut Tx<'_>,
    purpose: KeyPurpose,
    now: Timestamp,
) -> Result<Vec<ServiceKey>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE purpose = $1 AND retired_at IS NOT NULL AND published_until > $2
         ORDER BY retired_at DESC"
    );
    tx.all(
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(purpose.as_str())
            .bind(millis(now)),
    )
    .await?
    .iter()
    .map(key)
    .collect()
}

/// Takes a key that signs no more out of what is published; `false` where there is none such.
pub async fn withdraw(
    tx: &mut Tx<'_>,
    purpose: KeyPurpose,
    fingerprint: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE service_keys SET published_until = $3
                 WHERE purpose = $1 AND fingerprint = $2 AND retired_at IS NOT NULL
                   AND published_until > $3",
            )
            .bind(purpose.as_str())
            .bind(fingerprint)
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

/// A certificate by which one key of the authority vouches for another.
#[derive(Debug, Clone)]
pub struct Link {
    /// The key that is certified.
    pub subject: String,
    /// The key that certifies it.
    pub issuer: String,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
}

/// Keeps a link.
pub async fn insert_link(tx: &mut Tx<'_>, link: &Link) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO link_certificates (subject, issuer, certificate) VALUES ($1, $2, $3)",
        )
        .bind(link.subject.as_str())
        .bind(link.issuer.as_str())
        .bind(link.certificate.clone()),
    )
    .await?;
    Ok(())
}

/// All links.
pub async fn links(tx: &mut Tx<'_>) -> Result<Vec<Link>, StoreError> {
    tx.all(sqlx::query(
        "SELECT subject, issuer, certificate FROM link_certificates ORDER BY subject, issuer",
    ))
    .await?
    .iter()
    .map(|row| {
        Ok(Link {
            subject: row.get(0)?,
            issuer: row.get(1)?,
            certificate: row.get(2)?,
        })
    })
    .collect()
}

/// Ends the turn of the key that signs now; it stays published until `until`.
async fn retire(
    tx: &mut Tx<'_>,
    purpose: KeyPurpose,
    until: Timestamp,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "UPDATE service_keys SET retired_at = $2, published_until = $3
             WHERE purpose = $1 AND retired_at IS NULL AND waits = 0",
        )
        .bind(purpose.as_str())
        .bind(millis(now))
        .bind(millis(until)),
    )
    .await?;
    Ok(())
}

const SELECT: &str = "SELECT module, label, serial, key_id, spki, certificate, created_at
                      FROM service_keys ";

fn key(row: &Record) -> Result<ServiceKey, StoreError> {
    let id = KeyId::try_from(row.get::<String>(3)?).map_err(|_| StoreError::Malformed {
        column: "service_keys.key_id",
    })?;
    let public_key =
        PublicKey::from_spki(&row.get::<Vec<u8>>(4)?).map_err(|_| StoreError::Malformed {
            column: "service_keys.spki",
        })?;
    Ok(ServiceKey {
        key: KeyRef {
            token: TokenId {
                module: row.get(0)?,
                label: row.get(1)?,
                serial: row.get(2)?,
            },
            id,
        },
        public_key,
        certificate: row.get(5)?,
        created_at: row.time(6)?,
    })
}
