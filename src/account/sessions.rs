//! Sessions of people at the portal.
//!
//! A session is 256 random bits in a cookie; the store has their SHA-256, so who reads the store
//! cannot take a session over. It ends after some time without use, at a fixed time in any case,
//! when the person logs out, and when the login is closed or its password changes.
//!
//! The token against forged requests (CSRF) is an HMAC over the session's token, or before log-in
//! over the random value of a visit, with the key of the state directory: it needs no place in the
//! store, is bound to the cookie, and a page of another site, which cannot read the cookie, cannot
//! make it.

use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::{constant_time, hmac};
use jiff::Timestamp;
use serde_json::json;

use super::config;
use super::logins::{LoginError, Logins};
use super::records::Records;
use super::store::accounts::{self, Operator, Representative, Role};
use super::store::sessions::{self, Owner};
use super::store::{Store, StoreError};
use crate::audit::AuditError;
use crate::base::Clock;
use crate::base::encoding::{base64url, hex, sha256};
use crate::base::ids::{AccountId, OperatorId, RequestId, random};
use crate::base::secret::{SecretBytes, SecretText};

/// Begins what the CSRF token is over.
const CSRF_DOMAIN: &[u8] = b"opcert-csrf\0";

/// How exactly the last use is noted.
const TOUCH: Duration = Duration::from_secs(60);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The log-in failed.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// There is no session of this token, or it has ended.
    #[error("the session has ended")]
    Ended,
    /// The request does not prove that it comes from a page of this service.
    #[error("the CSRF token is missing or wrong")]
    Csrf,
    /// The audit record could not be written, so nothing was done.
    #[error("the audit record could not be written")]
    Audit(#[from] AuditError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who is logged in.
#[derive(Debug, Clone)]
pub enum Person {
    /// An operator of an account.
    Operator(Operator),
    /// A business representative.
    Representative(Representative),
}

impl Person {
    /// The operator's or representative's id.
    pub fn id(&self) -> &OperatorId {
        match self {
            Self::Operator(operator) => &operator.id,
            Self::Representative(representative) => &representative.id,
        }
    }

    /// The operator, unless it is a representative.
    pub fn operator(&self) -> Option<&Operator> {
        match self {
            Self::Operator(operator) => Some(operator),
            Self::Representative(_) => None,
        }
    }

    /// The role in the account.
    pub fn role(&self) -> Option<Role> {
        self.operator().map(|operator| operator.role)
    }
}

/// A session in force.
#[derive(Debug, Clone)]
pub struct Session {
    /// Who.
    pub person: Person,
    /// When it began.
    pub created_at: Timestamp,
    /// When it ends at the latest.
    pub expires_at: Timestamp,
    token_hash: String,
}

/// A session that has just begun.
#[derive(Debug)]
pub struct Opened {
    /// For the cookie; shown to nobody else.
    pub token: SecretText,
    /// For forms and the `x-csrf-token` header.
    pub csrf: String,
    /// The session.
    pub session: Session,
}

/// Opens, finds and ends sessions.
#[derive(Clone)]
pub struct Sessions {
    store: Store,
    clock: Clock,
    logins: Logins,
    records: Records,
    key: hmac::Key,
    rules: config::Sessions,
}

impl Sessions {
    /// `key` is the key of the state directory.
    pub fn new(
        store: Store,
        clock: Clock,
        logins: Logins,
        records: Records,
        key: &SecretBytes,
        rules: config::Sessions,
    ) -> Self {
        Self {
            store,
            clock,
            logins,
            records,
            key: hmac::Key::new(hmac::HMAC_SHA256, key.expose()),
            rules,
        }
    }

    /// Logs an operator in.
    pub async fn log_in(
        &self,
        account: &AccountId,
        operator: &OperatorId,
        password: SecretText,
        source: IpAddr,
        request: &RequestId,
    ) -> Result<Opened, SessionError> {
        let known = self
            .logins
            .operator(account, operator, password, source)
            .await?;
        let owner = Owner::Operator(known.account.clone(), known.id.clone());
        self.open(Person::Operator(known), owner, source, request)
            .await
    }

    /// Logs a business representative in.
    pub async fn log_in_representative(
        &self,
        id: &OperatorId,
        password: SecretText,
        source: IpAddr,
        request: &RequestId,
    ) -> Result<Opened, SessionError> {
        let known = self.logins.representative(id, password, source).await?;
        let owner = Owner::Representative(known.id.clone());
        self.open(Person::Representative(known), owner, source, request)
            .await
    }

    async fn open(
        &self,
        person: Person,
        owner: Owner,
        source: IpAddr,
        request: &RequestId,
    ) -> Result<Opened, SessionError> {
        let now = self.clock.now();
        let token = SecretText::new(base64url(&random::<32>()));
        let row = &sessions::Session {
            token_hash: hash(&token),
            owner,
            created_at: now,
            last_seen_at: now,
            expires_at: now + Duration::from_secs(self.rules.absolute_seconds),
        };
        self.store
            .transaction("open session", move |tx| {
                Box::pin(async move {
                    sessions::insert(tx, row).await?;
                    match &row.owner {
                        Owner::Operator(account, operator) => {
                            let body = json!({ "operator": operator, "source": source });
                            self.records
                                .note::<SessionError>(tx, account, "logged-in", request, body)
                                .await
                        }
                        Owner::Representative(id) => {
                            let body = json!({ "representative": id, "source": source });
                            Ok(self.records.write("logged-in", request, &body).await?)
                        }
                    }
                })
            })
            .await?;
        Ok(Opened {
            csrf: self.csrf(&token),
            token,
            session: Session {
                person,
                created_at: now,
                expires_at: row.expires_at,
                token_hash: row.token_hash.clone(),
            },
        })
    }

    /// The session of this token, which counts as used now.
    pub async fn find(&self, token: &SecretText) -> Result<Session, SessionError> {
        let now = self.clock.now();
        let hash = &hash(token);
        let idle = Duration::from_secs(self.rules.idle_seconds);
        let (row, person) = self
            .store
            .read("find session", move |tx| {
                Box::pin(async move {
                    let Some(row) = sessions::find(tx, hash).await? else {
                        return Ok(None);
                    };
                    if row.expires_at <= now || row.last_seen_at + idle <= now {
                        return Ok(None);
                    }
                    let person = match &row.owner {
                        Owner::Operator(account, operator) => {
                            accounts::operator(tx, account, operator)
                                .await?
                                .map(Person::Operator)
                        }
                        Owner::Representative(id) => accounts::representative(tx, id)
                            .await?
                            .map(Person::Representative),
                    };
                    Ok::<_, StoreError>(person.map(|person| (row, person)))
                })
            })
            .await?
            .ok_or(SessionError::Ended)?;
        if row.last_seen_at + TOUCH <= now {
            self.store
                .transaction("use session", move |tx| {
                    Box::pin(sessions::touch(tx, hash, now))
                })
                .await
                .map_err(|error: StoreError| error)?;
        }
        Ok(Session {
            person,
            created_at: row.created_at,
            expires_at: row.expires_at,
            token_hash: row.token_hash,
        })
    }

    /// Ends a session.
    pub async fn end(&self, session: &Session, request: &RequestId) -> Result<(), SessionError> {
        let now = self.clock.now();
        self.store
            .transaction("end session", move |tx| {
                Box::pin(async move {
                    if !sessions::end(tx, &session.token_hash, now).await? {
                        return Ok(());
                    }
                    match &session.person {
                        Person::Operator(operator) => {
                            let body = json!({ "operator": operator.id });
                            self.records
                                .note::<SessionError>(
                                    tx,
                                    &operator.account,
                                    "logged-out",
                                    request,
                                    body,
                                )
                                .await
                        }
                        Person::Representative(representative) => {
                            let body = json!({ "representative": representative.id });
                            Ok(self.records.write("logged-out", request, &body).await?)
                        }
                    }
                })
            })
            .await
    }

    /// Checks the password of whoever is logged in once more, by the rules of log-in.
    pub async fn confirm(
        &self,
        session: &Session,
        password: SecretText,
        source: IpAddr,
    ) -> Result<(), LoginError> {
        match &session.person {
            Person::Operator(operator) => {
                self.logins
                    .operator(&operator.account, &operator.id, password, source)
                    .await?;
            }
            Person::Representative(representative) => {
                self.logins
                    .representative(&representative.id, password, source)
                    .await?;
            }
        }
        Ok(())
    }

    /// The CSRF token that goes with a session's token, or with the value of a visit.
    pub fn csrf(&self, secret: &SecretText) -> String {
        csrf(&self.key, secret)
    }

    /// Whether `presented` is the CSRF token that goes with `secret`.
    pub fn check_csrf(&self, secret: &SecretText, presented: &str) -> Result<(), SessionError> {
        same_csrf(&self.csrf(secret), presented)
    }
}

/// Refuses a CSRF token that is not the expected one; takes the same time wherever they differ.
pub fn same_csrf(expected: &str, presented: &str) -> Result<(), SessionError> {
    constant_time::verify_slices_are_equal(expected.as_bytes(), presented.as_bytes())
        .map_err(|_| SessionError::Csrf)
}

fn csrf(key: &hmac::Key, secret: &SecretText) -> String {
    let message = [CSRF_DOMAIN, secret.expose().as_bytes()].concat();
    base64url(hmac::sign(key, &message).as_ref())
}

fn hash(token: &SecretText) -> String {
    hex(&sha256(token.expose().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csrf_tokens_differ_with_the_secret_and_the_key() {
        let [ours, theirs] = [[1; 32], [2; 32]].map(|key| hmac::Key::new(hmac::HMAC_SHA256, &key));
        let [one, two] = ["one", "two"].map(|secret| SecretText::new(secret.to_owned()));
        let token = csrf(&ours, &one);
        assert!(same_csrf(&token, &csrf(&ours, &one)).is_ok());
        for other in [
            csrf(&ours, &two),
            csrf(&theirs, &one),
            String::new(),
            token[1..].to_owned(),
        ] {
            assert!(matches!(same_csrf(&token, &other), Err(SessionError::Csrf)));
        }
    }
}
