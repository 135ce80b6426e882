//! Log-in by password, and what slows down guessing.
//!
//! Failures are counted twice. Per person and source (an IPv4 address, or an IPv6 network of 64
//! bits), [`FREE_TRIES`] are free and each further one doubles the wait, up to a quarter of an
//! hour. Per person over all sources, [`FREE_TRIES_ANYWHERE`] are free and the wait grows to
//! [`LONGEST_ANYWHERE`]; sources the person has logged in from within [`SOURCE_KEPT`] are not held
//! to that second count. So guessing is slow from one place and from many, nobody is ever locked
//! out for good, and a person at the usual place does not notice an attack from elsewhere.
//!
//! A try is counted as failed before the password is looked at, in the transaction that reads the
//! count, so parallel tries gain nothing. People who do not exist are counted by the same rules
//! and take the same time: the answer tells nobody who exists.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::passwords::{PasswordError, Passwords};
use super::store::accounts::{self, Operator, Representative};
use super::store::{Store, StoreError, sessions};
use crate::base::Clock;
use crate::base::backoff::doubling;
use crate::base::encoding::{hex, sha256};
use crate::base::ids::{AccountId, OperatorId};
use crate::base::secret::SecretText;

/// Failures of one person from one source that have no wait.
pub const FREE_TRIES: i64 = 5;

/// The first wait, doubled with each further failure.
const FIRST: Duration = Duration::from_secs(1);

/// Longest wait for one person from one source.
pub const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Failures of one person from all unknown sources together that have no wait.
pub const FREE_TRIES_ANYWHERE: i64 = 20;

/// Longest wait for one person from an unknown source.
pub const LONGEST_ANYWHERE: Duration = Duration::from_secs(30);

/// How long a source is known after a log-in.
pub const SOURCE_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Why a log-in failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Account, operator or password is wrong; which of them is not said.
    #[error("account, operator or password is wrong")]
    Wrong,
    /// Too many failures; the password was not looked at.
    #[error("too many log-ins failed; the next is looked at in {} s", retry_after.as_secs() + 1)]
    Throttled {
        /// When it makes sense to try again.
        retry_after: Duration,
    },
    /// The password could not be checked.
    #[error("the password could not be checked")]
    Password(#[from] PasswordError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks passwords; cloning shares the limits.
#[derive(Clone)]
pub struct Logins {
    store: Store,
    clock: Clock,
    passwords: Passwords,
}

impl Logins {
    /// Over the people in `store`.
    pub fn new(store: Store, clock: Clock, passwords: Passwords) -> Self {
        Self {
            store,
            clock,
            passwords,
        }
    }

    /// The operator whose password this is.
    pub async fn operator(
        &self,
        account: &AccountId,
        operator: &OperatorId,
        password: SecretText,
        source: IpAddr,
    ) -> Result<Operator, LoginError> {
        let person = &format!("operator\0{account}\0{operator}");
        self.admit(person, source).await?;
        let found = self
            .store
            .read("find operator", move |tx| {
                Box::pin(accounts::operator(tx, account, operator))
            })
            .await
            .map_err(|error: StoreError| error)?;
        let hash = found.as_ref().map(|known| known.password_hash.clone());
        let matches = self.passwords.verify(password, hash).await?;
        let known = found.filter(|_| matches).ok_or(LoginError::Wrong)?;
        self.settle(person, source).await?;
        Ok(known)
    }

    /// The business representative whose password this is.
    pub async fn representative(
        &self,
        id: &OperatorId,
        password: SecretText,
        source: IpAddr,
    ) -> Result<Representative, LoginError> {
        let person = &format!("representative\0{id}");
        self.admit(person, source).await?;
        let found = self
            .store
            .read("find representative", move |tx| {
                Box::pin(accounts::representative(tx, id))
            })
            .await
            .map_err(|error: StoreError| error)?;
        let hash = found.as_ref().map(|known| known.password_hash.clone());
        let matches = self.passwords.verify(password, hash).await?;
        let known = found.filter(|_| matches).ok_or(LoginError::Wrong)?;
        self.settle(person, source).await?;
        Ok(known)
    }

    /// Counts the try, or says how long to wait.
    async fn admit(&self, person: &str, source: IpAddr) -> Result<(), LoginError> {
        let now = self.clock.now();
        let (here, anywhere) = (&from_source(person, source), &from_anywhere(person));
        let wait = self
            .store
            .transaction("count log-in", move |tx| {
                Box::pin(async move {
                    if let Some(until) = sessions::count_try(tx, here, now, delay_here).await? {
                        return Ok(Some(until));
                    }
                    if sessions::source_known(tx, here, now - SOURCE_KEPT).await? {
                        return Ok(None);
                    }
                    sessions::count_try(tx, anywhere, now, delay_anywhere).await
                })
            })
            .await
            .map_err(|error: StoreError| error)?;
        match wait {
            None => Ok(()),
            Some(until) => Err(LoginError::Throttled {
                retry_after: Duration::try_from(until.duration_since(now)).unwrap_or_default(),
            }),
        }
    }

    /// Takes back the count of a try that was right, and remembers where it came from.
    async fn settle(&self, person: &str, source: IpAddr) -> Result<(), StoreError> {
        let now = self.clock.now();
        let (here, anywhere) = (&from_source(person, source), &from_anywhere(person));
        self.store
            .transaction("settle log-in", move |tx| {
                Box::pin(async move {
                    sessions::forgive(tx, here).await?;
                    sessions::forgive(tx, anywhere).await?;
                    sessions::remember_source(tx, here, now).await
                })
            })
            .await
    }
}

/// What [`sessions::forget`] may drop at `now`: failures and sources that no longer count.
pub fn forgettable(now: Timestamp) -> (Timestamp, Timestamp) {
    (now - Duration::from_secs(24 * 60 * 60), now - SOURCE_KEPT)
}

fn from_source(person: &str, source: IpAddr) -> String {
    let source = match source.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => hex(&address.octets()[..8]),
    };
    hex(&sha256(format!("source\0{person}\0{source}").as_bytes()))
}

fn from_anywhere(person: &str) -> String {
    hex(&sha256(format!("anywhere\0{person}").as_bytes()))
}

fn delay_here(failures: i64) -> Duration {
    doubling(failures - FREE_TRIES, FIRST, LONGEST)
}

fn delay_anywhere(failures: i64) -> Duration {
    doubling(failures - FREE_TRIES_ANYWHERE, FIRST, LONGEST_ANYWHERE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_end() {
        let seconds = |failures| delay_here(failures).as_secs();
        assert_eq!([5, 6, 7, 8].map(seconds), [0, 1, 2, 4]);
        assert_eq!(seconds(1000), 900);
        assert_eq!(delay_anywhere(20), Duration::ZERO);
        assert_eq!(delay_anywhere(1000), LONGEST_ANYWHERE);
    }

    #[test]
    fn a_source_is_an_address_or_a_network() {
        let hash = |address: &str| from_source("p", address.parse().unwrap());
        assert_eq!(hash("2001:db8::1"), hash("2001:db8::2"));
        assert_ne!(hash("2001:db8::1"), hash("2001:db8:0:1::1"));
        assert_ne!(hash("192.0.2.1"), hash("192.0.2.2"));
        assert_eq!(hash("192.0.2.1"), hash("::ffff:192.0.2.1"));
    }
}
