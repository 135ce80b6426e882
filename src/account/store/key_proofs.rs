//! How the keys of certificates were proven; a row only where that is more or less than usual.

use std::collections::HashMap;

use super::{StoreError, Tx};
use crate::account::key_proof::KeyProof;
use crate::base::ids::AccountId;

/// Adds that of a certificate.
pub async fn insert(tx: &mut Tx<'_>, serial: &str, proof: &KeyProof) -> Result<(), StoreError> {
    let malformed = |_| StoreError::Malformed {
        column: "key_proofs.proof",
    };
    let proof = serde_json::to_string(proof).map_err(malformed)?;
    tx.execute(
        sqlx::query("INSERT INTO key_proofs (certificate, proof) VALUES ($1, $2)")
            .bind(serial)
            .bind(proof),
    )
    .await?;
    Ok(())
}

/// Those of an account's certificates, by serial number.
pub async fn of_account(
    tx: &mut Tx<'_>,
    account: &AccountId,
) -> Result<HashMap<String, KeyProof>, StoreError> {
    let rows = tx
        .all(
            sqlx::query(
                "SELECT p.certificate, p.proof FROM key_proofs p
                 JOIN certificates c ON c.serial = p.certificate WHERE c.account = $1",
            )
            .bind(account.as_str()),
        )
        .await?;
    rows.iter()
        .map(|row| {
            let proof: String = row.get(1)?;
            let proof = serde_json::from_str(&proof).map_err(|_| StoreError::Malformed {
                column: "key_proofs.proof",
            })?;
            Ok((row.get(0)?, proof))
        })
        .collect()
}
