//! SMS codes: sent to the number of an operator who knows his password, handed in once.
//!
//! A code has six digits, so everything around it is counted: how often one may be asked for, how
//! often it may be tried, how long it lasts. Each count is kept in the database and changed by the
//! statement that checks it, so parallel requests and several instances gain nothing. What is
//! stored is an HMAC with a key that is not in the database: whoever reads the database cannot
//! try a million codes against it.

use std::time::Duration;

use aws_lc_rs::hmac;
use jiff::Timestamp;
use serde_json::json;

use super::config::Sms;
use super::passwords::{PasswordError, Passwords};
use super::records::Records;
use super::sms::{self, Gateway, SmsError};
use super::store::codes::{self, Binding, Code};
use super::store::{Store, StoreError, accounts};
use crate::audit::AuditError;
use crate::base::Clock;
use crate::base::encoding::base64url;
use crate::base::ids::{RequestId, random};
use crate::base::secret::{SecretBytes, SecretText};

/// The window of the daily cap.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Begins what the HMAC is over.
const DOMAIN: &[u8] = b"opcert-sms-code\0";

/// Why a code was not sent or not taken.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// Account, operator or password is wrong; which of them is not said.
    #[error("account, operator or password is wrong")]
    Login,
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
    /// The code was used, or tried too often.
    #[error("the code is used up")]
    Spent,
    /// The password could not be checked.
    #[error("the password could not be checked")]
    Password(#[from] PasswordError),
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
    passwords: Passwords,
    records: Records,
    key: hmac::Key,
    gateway: Gateway,
    rules: Sms,
}

impl Codes {
    /// `key` is the HMAC key of the state directory.
    pub fn new(
        store: Store,
        clock: Clock,
        passwords: Passwords,
        records: Records,
        key: &SecretBytes,
        gateway: Gateway,
        rules: Sms,
    ) -> Self {
        Self {
            store,
            clock,
            passwords,
            records,
            key: hmac::Key::new(hmac::HMAC_SHA256, key.expose()),
            gateway,
            rules,
        }
    }

    /// Checks the log-in and sends a code for an installation to the operator's number.
    pub async fn send(
        &self,
        binding: Binding,
        password: SecretText,
        request: &RequestId,
    ) -> Result<Sent, CodeError> {
        let who = &binding;
        let operator = self
            .store
            .read("find operator", move |tx| {
                Box::pin(async move { accounts::operator(tx, &who.account, &who.operator).await })
            })
            .await
            .map_err(|error: StoreError| error)?;
        let stored = operator.as_ref().map(|known| known.password_hash.clone());
        let matches = self.passwords.verify(password, stored).await?;
        let Some(operator) = operator.filter(|_| matches) else {
            return Err(CodeError::Login);
        };

        let now = self.clock.now();
        let secret = six_digits();
        let id = base64url(&random::<16>());
        let code = Code {
            mac: self.mac(&id, &secret).as_ref().to_vec(),
            id,
            binding,
            mobile: operator.mobile,
            created_at: now,
            expires_at: now + self.rules.lifetime(),
            tries_left: self.rules.tries.into(),
            spent_at: None,
        };
        let row = &code;
        self.store
            .transaction("keep code", move |tx| {
                Box::pin(async move {
                    codes::take_turn(tx, &row.mobile).await?;
                    self.check_rate(tx, row).await?;
                    codes::insert(tx, row).await?;
                    self.records
                        .write(
                            "code-sent",
                            request,
                            &json!({
                                "account": row.binding.account,
                                "operator": row.binding.operator,
                                "computer": row.binding.computer,
                                "purpose": "install",
                                "sent_to": row.mobile.masked(),
                                "code_id": row.id,
                            }),
                        )
                        .await?;
                    Ok::<_, CodeError>(())
                })
            })
            .await?;
        let minutes = self.rules.lifetime_seconds.div_ceil(60);
        let text = sms::text(&secret, &code.binding, minutes);
        self.gateway.send(&code.mobile, &text)?;
        Ok(Sent {
            id: code.id,
            expires_at: code.expires_at,
            sent_to: code.mobile.masked(),
        })
    }

    /// Takes one try of the code `id`: what it was sent for, if `secret` is right.
    ///
    /// The code is not spent yet: [`codes::spend`] does that together with what it is spent on.
    pub async fn check(&self, id: &str, secret: &SecretText) -> Result<Binding, CodeError> {
        let now = self.clock.now();
        self.store
            .transaction("try code", move |tx| {
                Box::pin(async move {
                    let Some(code) = codes::find(tx, id).await? else {
                        // Ids are random, so this tells nobody anything; it looks like a wrong code.
                        return Ok(Err(CodeError::Wrong { tries_left: 0 }));
                    };
                    if code.spent_at.is_some() {
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
                        Ok(()) => Ok(code.binding),
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
        let (in_a_day, first, latest) = codes::sent(tx, &code.mobile, now - DAY).await?;
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
