//! Requests that may be repeated: an `Idempotency-Key` and the answer it got.
//!
//! The answer is kept in the transaction that does what was asked, so there is never the one
//! without the other. The same request with the same key gets the same answer for
//! [`ANSWERS_KEPT`]; another request with that key is refused.

use std::time::Duration;

use jiff::Timestamp;

use super::store::operations::{self, KeptAnswer};
use super::store::{StoreError, Tx};

/// How long the answer to a request with an idempotency key is kept for its repetition.
pub const ANSWERS_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The key was used for another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the idempotency key was used for another request")]
pub struct IdempotencyConflict;

/// Where a repeatable request keeps its answer.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// Whose key it is.
    pub principal: String,
    /// The `Idempotency-Key`.
    pub key: String,
    /// SHA-256 of the request, hexadecimal.
    pub request_hash: String,
}

/// The answer that was given to the same request before, if there was one.
pub async fn kept<E>(tx: &mut Tx<'_>, key: Option<&Idempotency>) -> Result<Option<String>, E>
where
    E: From<StoreError> + From<IdempotencyConflict>,
{
    let Some(key) = key else {
        return Ok(None);
    };
    match operations::kept_answer(tx, &key.principal, &key.key).await? {
        None => Ok(None),
        Some(kept) if kept.request_hash == key.request_hash => Ok(Some(kept.body)),
        Some(_) => Err(IdempotencyConflict.into()),
    }
}

/// Keeps an answer for the repetition of its request.
pub async fn keep(
    tx: &mut Tx<'_>,
    key: Option<&Idempotency>,
    status: u16,
    body: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(key) = key else {
        return Ok(());
    };
    let answer = KeptAnswer {
        request_hash: key.request_hash.clone(),
        status: i64::from(status),
        body: body.to_owned(),
    };
    operations::keep_answer(tx, &key.principal, &key.key, &answer, now).await
}
