//! Passwords of operators: Argon2id, off the request threads, a bounded number at a time.
//!
//! Hashing is meant to be slow and to need memory (19 MiB each), so it runs in tokio's blocking
//! pool, at most as many at once as there are cores. A few more may wait; past that the answer is
//! [`PasswordError::Busy`] at once, so that a flood of log-ins cannot exhaust the machine.
//!
//! A log-in of an operator who does not exist is checked against a hash of a random password:
//! both answers take the same time.

use std::sync::Arc;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::Semaphore;

use crate::base::encoding::base64url;
use crate::base::ids::random;
use crate::base::secret::SecretText;

/// Shortest password an operator may have, in characters (NIST SP 800-63B section 5.1.1.2).
pub const MIN_CHARACTERS: usize = 8;

/// Longest password that is read at all, in bytes.
pub const MAX_BYTES: usize = 256;

/// How many checks may wait for each that runs.
const WAITING_PER_SLOT: usize = 16;

/// Why a password could not be hashed or checked.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Shorter or longer than allowed.
    #[error("a password has {MIN_CHARACTERS} characters to {MAX_BYTES} bytes")]
    Length,
    /// Too many checks at once.
    #[error("too many log-ins are being checked")]
    Busy,
    /// The hash is malformed or Argon2 failed.
    #[error("cannot hash a password: {reason}")]
    Hash {
        /// Why.
        reason: String,
    },
}

/// Hashes and checks passwords; cloning shares the limits.
#[derive(Clone)]
pub struct Passwords {
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
    nobody: Arc<str>,
}

impl Passwords {
    /// Prepares the hash that unknown operators are checked against.
    pub fn new() -> Result<Self, PasswordError> {
        let slots = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Ok(Self {
            running: Arc::new(Semaphore::new(slots)),
            admitted: Arc::new(Semaphore::new(slots * (1 + WAITING_PER_SLOT))),
            nobody: hash(&base64url(&random::<16>()))?.into(),
        })
    }

    /// Hashes a new password, as a PHC string with a salt of its own.
    pub async fn hash(&self, password: SecretText) -> Result<String, PasswordError> {
        let text = password.expose();
        if text.chars().count() < MIN_CHARACTERS || text.len() > MAX_BYTES {
            return Err(PasswordError::Length);
        }
        self.run(move || hash(password.expose())).await
    }

    /// Whether `password` is the one that was hashed to `stored`; `None` stands for an operator
    /// who does not exist and never matches.
    pub async fn verify(
        &self,
        password: SecretText,
        stored: Option<String>,
    ) -> Result<bool, PasswordError> {
        if password.expose().len() > MAX_BYTES {
            return Ok(false);
        }
        let nobody = self.nobody.clone();
        self.run(move || {
            let known = stored.is_some();
            let text = stored.as_deref().unwrap_or(&nobody);
            let parsed = PasswordHash::new(text).map_err(|error| PasswordError::Hash {
                reason: error.to_string(),
            })?;
            let matches = Argon2::default()
                .verify_password(password.expose().as_bytes(), &parsed)
                .is_ok();
            Ok(matches && known)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let admitted = self.admitted.clone().try_acquire_owned();
        let _admitted = admitted.map_err(|_| PasswordError::Busy)?;
        let running = self.running.clone().acquire_owned().await;
        let slot = running.map_err(|_| PasswordError::Busy)?;
        tokio::task::spawn_blocking(move || {
            // The slot is taken until the work ends, even if the caller has gone away.
            let _slot = slot;
            work()
        })
        .await
        .map_err(|error| PasswordError::Hash {
            reason: error.to_string(),
        })?
    }
}

/// Argon2id with 19 MiB, two passes and one lane: the first choice of the OWASP Password Storage
/// Cheat Sheet.
fn hash(password: &str) -> Result<String, PasswordError> {
    let failed = |reason: String| PasswordError::Hash { reason };
    let params = Params::new(19 * 1024, 2, 1, None).map_err(|error| failed(error.to_string()))?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_of_a_known_operator_matches() {
        let passwords = Passwords::new().unwrap();
        let secret = |text: &str| SecretText::new(text.into());
        let stored = passwords.hash(secret("correct horse")).await.unwrap();
        assert!(
            stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{stored}"
        );
        assert!(
            passwords
                .verify(secret("correct horse"), Some(stored.clone()))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify(secret("correct hors"), Some(stored))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify(secret("correct horse"), None)
                .await
                .unwrap()
        );
        assert!(matches!(
            passwords.hash(secret("short")).await,
            Err(PasswordError::Length)
        ));
        assert!(
            !passwords
                .verify(secret(&"x".repeat(300)), None)
                .await
                .unwrap()
        );
    }
}
