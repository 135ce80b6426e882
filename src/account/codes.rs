//! SMS codes: sent to the number of an operator who knows the password, handed in once.
//!
//! A code has six digits, so everything around it is counted: how often one may be asked for, how
//! often it may be tried, how long it lasts. Each count is kept in the database and changed by the
//! statement that checks it, so parallel requests and several instances gain nothing. What is
//! stored is an HMAC with a key that is not in the database: whoever reads the database cannot
//! try a million codes against it.

use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::hmac;
use jiff::Timestamp;
use serde_json::json;

use super::config::Sms;
use super::logins::{LoginError, Logins};
use super::records::Records;
use super::sms::{self, SmsError, Texts};
use super::store::accounts::{self, Operator};
use super::store::codes::{self, Code, CodeUse};
use super::store::{Store, StoreError};
use crate::audit::AuditError;
use crate::base::Clock;
use crate::base::encoding::base64url;
use crate::base::ids::{AccountId, OperatorId, RequestId, random};
use crate::base::secret::{SecretBytes, SecretText};

/// The window of the daily cap.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Begins what the HMAC is over.
const DOMAIN: &[u8] = b"opcert-sms-code\0";

/// Why a code was not sent or not taken.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// The log-in failed.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// Another code went to this number a moment ago, or too many did in a day.
    #[error("no code can be sent to this number for {} s", retry_after.as_secs())]
    TooSoon {
        /// When one can.
        retry_after: Duration,
    },
    /// The code is not the one that was sent.
    #[error("the code is wrong; {tries_left} tries are left")]
    Wrong {
        /// Tries that are left.
        tries_left: i64,
    },
    /// The code's time is over.
    #[error("the code expired at {at}")]
    Expired {
        /// When.
        at: Timestamp,
    },
    /// The code was used, tried too often, or ended with the login it was sent for.
    #[error("the code is used up")]
    Spent,
    /// The gateway failed.
    #[error("the code could not be sent")]
    Sms(#[from] SmsError),
    /// The audit record could not be written, so no code was sent.
    #[error("the audit record could not be written")]
    Audit(#[from] AuditError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A code that is on its way.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Its id.
    pub id: String,
    /// When it stops working.
    pub expires_at: Timestamp,
    /// Where it went, masked.
    pub sent_to: String,
}

/// Sends and checks codes.
#[derive(Clone)]
pub struct Codes {
    store: Store,
    clock: Clock,
    logins: Logins,
    records: Records,
    key: hmac::Key,
    texts: Texts,
    rules: Sms,
}

impl Codes {
    /// `key` is the HMAC key of the state directory.
    pub fn new(
        store: Store,
        clock: Clock,
        logins: Logins,
        records: Records,
        key: &SecretBytes,
        texts: Texts,
        rules: Sms,
    ) -> Self {
        Self {
            store,
            clock,
            logins,
            records,
            key: hmac::Key::new(hmac::HMAC_SHA256, key.expose()),
            texts,
            rules,
        }
    }

    /// Checks the log-in and sends a code to the operator's number.
    pub async fn send(
        &self,
        account: &AccountId,
        operator: &OperatorId,
        password: SecretText,
        purpose: CodeUse,
        source: IpAddr,
        request: &RequestId,
    ) -> Result<Sent, CodeError> {
        let operator = self
            .logins
            .operator(account, operator, password, source)
            .await?;
        self.send_to(&operator, purpose, request).await
    }

    /// Sends a code to an operator whose password was checked.
    pub async fn send_to(
        &self,
        operator: &Operator,
        purpose: CodeUse,
        request: &RequestId,
    ) -> Result<Sent, CodeError> {
        let now = self.clock.now();
        let secret = &six_digits();
        let id = base64url(&random::<16>());
        let code = &Code {
            mac: self.mac(&id, secret).as_ref().to_vec(),
            id,
            account: operator.account.clone(),
            operator: operator.id.clone(),
            purpose,
            mobile: operator.mobile.clone(),
            created_at: now,
            expires_at: now + self.rules.lifetime(),
            tries_left: self.rules.tries.into(),
            spent_at: None,
        };
        let minutes = self.rules.lifetime_seconds.div_ceil(60);
        let outgoing = self
            .store
            .transaction("keep code", move |tx| {
                Box::pin(async move {
                    codes::take_turn(tx, &code.mobile).await?;
                    self.check_rate(tx, code).await?;
                    codes::insert(tx, code).await?;
                    let text = sms::code_text(
                        secret,
                        &code.purpose,
                        &code.account,
                        operator.language,
                        minutes,
                    );
                    let outgoing = self
                        .texts
                        .prepare(tx, &code.mobile, code.purpose.name(), text, code.expires_at)
                        .await?;
                    let mut body = json!({
                        "operator": code.operator,
                        "purpose": code.purpose.name(),
                        "sent_to": code.mobile.masked(),
                        "code_id": code.id,
                    });
                    if let CodeUse::Install { computer, .. } = &code.purpose {
                        body["computer"] = json!(computer);
                    }
                    self.records
                        .note::<CodeError>(tx, &code.account, "code-sent", request, body)
                        .await?;
                    Ok::<_, CodeError>(outgoing)
                })
            })
            .await?;
        self.texts.send(outgoing).await?;
        Ok(Sent {
            id: code.id.clone(),
            expires_at: code.expires_at,
            sent_to: code.mobile.masked(),
        })
    }

    /// Takes one try of the code `id`: what it was sent for, if `secret` is right.
    ///
    /// The code is not spent yet: [`codes::spend`] does that together with what it is spent on.
    pub async fn check(&self, id: &str, secret: &SecretText) -> Result<Code, CodeError> {
        let now = self.clock.now();
        self.store
            .transaction("try code", move |tx| {
                Box::pin(async move {
                    let Some(code) = codes::find(tx, id).await? else {
                        // Ids are random, so this tells nobody anything; it looks like a wrong code.
                        return Ok(Err(CodeError::Wrong { tries_left: 0 }));
                    };
                    // With the login closed the code is void, whatever its row says.
                    let login = accounts::operator(tx, &code.account, &code.operator).await?;
                    if code.spent_at.is_some() || login.is_none() {
                        return Ok(Err(CodeError::Spent));
                    }
                    if code.expires_at <= now {
                        return Ok(Err(CodeError::Expired {
                            at: code.expires_at,
                        }));
                    }
                    if !codes::take_try(tx, id).await? {
                        return Ok(Err(CodeError::Spent));
                    }
                    let message = message(id, secret);
                    Ok(match hmac::verify(&self.key, &message, &code.mac) {
                        Ok(()) => Ok(code),
                        Err(_) => Err(CodeError::Wrong {
                            tries_left: code.tries_left - 1,
                        }),
                    })
                })
            })
            .await
            .map_err(|error: StoreError| error)?
    }

    async fn check_rate(
        &self,
        tx: &mut super::store::Tx<'_>,
        code: &Code,
    ) -> Result<(), CodeError> {
        let now = code.created_at;
        let (in_a_day, first, latest) =
            codes::sent(tx, &code.mobile, code.purpose.name(), now - DAY).await?;
        let wait = |since: Timestamp, span: Duration| {
            let elapsed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            span.saturating_sub(elapsed)
        };
        let after_latest = latest.map(|at| wait(at, self.rules.interval()));
        let after_day = first
            .filter(|_| in_a_day >= i64::from(self.rules.daily))
            .map(|at| wait(at, DAY));
        let retry_after = after_latest.max(after_day).unwrap_or_default();
        if retry_after.is_zero() {
            Ok(())
        } else {
            Err(CodeError::TooSoon { retry_after })
        }
    }

    fn mac(&self, id: &str, secret: &SecretText) -> hmac::Tag {
        hmac::sign(&self.key, &message(id, secret))
    }
}

fn message(id: &str, secret: &SecretText) -> Vec<u8> {
    [DOMAIN, id.as_bytes(), b"\0", secret.expose().as_bytes()].concat()
}

/// Six digits, each code as likely as any other.
fn six_digits() -> SecretText {
    const CODES: u32 = 1_000_000;
    // The largest multiple of CODES that fits, so that the remainder favours none.
    const FAIR: u32 = u32::MAX - u32::MAX % CODES;
    loop {
        let number = u32::from_be_bytes(random());
        if number < FAIR {
            return SecretText::new(format!("{:06}", number % CODES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_six_digits() {
        for _ in 0..100 {
            let code = six_digits();
            assert_eq!(code.expose().len(), 6);
            assert!(code.expose().bytes().all(|byte| byte.is_ascii_digit()));
        }
    }
}
