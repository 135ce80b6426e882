//! Telling the platform of approvals.
//!
//! A notice is a row written in the transaction that approves, so none is lost and none is sent
//! for an approval that did not happen. This task takes due rows, posts each, and notes what came
//! of it. A try is counted before it is made; one cut short by a crash is made again after
//! one minute. The receiver sees a notice at least once and knows a repetition by its id.
//!
//! A request is `POST`, `application/json`, with
//! - `webhook-id`: the notice's id,
//! - `webhook-timestamp`: Unix seconds of this try,
//! - `webhook-signature`: `v1,` and the base64 HMAC-SHA-256, with the shared secret, over
//!   `ID.TIMESTAMP.BODY` (the form of the Standard Webhooks specification).
//!
//! Any 2xx answer settles it. Otherwise it is tried again after 5 s, then twice as long each
//! time, at most an hour; after [`TRIES`] tries it is given up and stays in the table.

use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::body::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Uri};

use super::config::Webhook;
use super::service::Service;
use super::store::StoreError;
use super::store::outbox::{self, Notice, Outcome};
use crate::base::encoding::base64;
use crate::base::files::{FileError, Readers, read_checked};
use crate::http::client::{ClientLimits, Target};
use crate::http::tls::{self, TlsError};
use crate::http::{Client, ClientError};

/// Tries before a notice is given up: with the delays below, a little more than ten hours.
pub const TRIES: i64 = 20;

/// The first delay, doubled after each try.
const FIRST_DELAY: Duration = Duration::from_secs(5);

/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(60 * 60);

/// How long a try may take before the notice is anybody's again.
const HOLD: Duration = Duration::from_secs(60);

/// Notices taken at once.
const BATCH: i64 = 16;

/// How long to wait after the database failed.
const STORE_DELAY: Duration = Duration::from_secs(5);

/// Why webhooks cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The secret or the certificates cannot be read.
    #[error("cannot read a file")]
    File(#[from] FileError),
    /// The secret is too short.
    #[error("{} must hold a secret of at least 32 bytes", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
    },
    /// No certificate to trust.
    #[error("cannot trust any certificate")]
    Tls(#[from] TlsError),
    /// The URL is none, or not https.
    #[error("the URL cannot be used")]
    Url(#[from] ClientError),
}

/// Why one try failed.
#[derive(Debug, thiserror::Error)]
enum TryError {
    #[error("no answer")]
    Client(#[from] ClientError),
    #[error("the request cannot be built")]
    Request(#[from] http::Error),
    #[error("the receiver answered {0}")]
    Status(http::StatusCode),
}

/// Delivers notices.
pub struct Courier {
    service: Service,
    target: Target,
    path: String,
    key: hmac::Key,
}

impl Courier {
    /// Reads secret and trust.
    pub fn new(config: &Webhook, service: Service) -> Result<Self, WebhookError> {
        let secret = read_checked(&config.secret_file, Readers::Owner, 256)?;
        let secret = secret.trim_ascii();
        if secret.len() < 32 {
            return Err(WebhookError::Secret {
                path: config.secret_file.clone(),
            });
        }
        let roots = match &config.ca_file {
            Some(path) => {
                let pem = read_checked(path, Readers::Anybody, 1024 * 1024)?;
                tls::roots(tls::certificates(&pem)?)?
            }
            None => tls::system_roots()?,
        };
        let target = Target::from_url(&config.url, tls::client(roots, None)?)?;
        let path = config
            .url
            .parse::<Uri>()
            .ok()
            .and_then(|uri| uri.path_and_query().map(ToString::to_string))
            .unwrap_or_else(|| "/".into());
        Ok(Self {
            service,
            target,
            path,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
        })
    }

    /// Delivers until the task is ended.
    pub async fn run(self) {
        loop {
            let wait = match self.deliver_due().await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(%error, "cannot read the outbox");
                    Some(STORE_DELAY)
                }
            };
            match wait {
                // A new notice or the next due time, whichever comes first.
                Some(wait) => {
                    let _ = tokio::time::timeout(wait, self.service.wait_for_outbox()).await;
                }
                None => self.service.wait_for_outbox().await,
            }
        }
    }

    /// Delivers what is due and gives the time until more is.
    async fn deliver_due(&self) -> Result<Option<Duration>, StoreError> {
        let store = self.service.store();
        loop {
            let now = self.service.clock().now();
            let notices = store
                .transaction("take notices", move |tx| {
                    Box::pin(outbox::claim(tx, now, HOLD, BATCH))
                })
                .await?;
            if notices.is_empty() {
                break;
            }
            for notice in notices {
                self.deliver(&notice).await?;
            }
        }
        let next = store
            .read("find next notice", |tx| Box::pin(outbox::next_due(tx)))
            .await?;
        let now = self.service.clock().now();
        Ok(next.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default()))
    }

    async fn deliver(&self, notice: &Notice) -> Result<(), StoreError> {
        let tried = self.post(notice).await;
        let now = self.service.clock().now();
        let outcome = match tried {
            Ok(()) => Outcome::Delivered,
            Err(error) => {
                tracing::warn!(notice = notice.id, attempt = notice.attempts, %error, "notice not delivered");
                if notice.attempts >= TRIES {
                    Outcome::Abandoned
                } else {
                    Outcome::Retry(now + delay(notice.attempts))
                }
            }
        };
        let id = notice.id.as_str();
        self.service
            .store()
            .transaction("settle notice", move |tx| {
                Box::pin(outbox::settle(tx, id, outcome, now))
            })
            .await
    }

    async fn post(&self, notice: &Notice) -> Result<(), TryError> {
        let timestamp = self.service.clock().now().as_second();
        let signed = format!("{}.{timestamp}.{}", notice.id, notice.body);
        let signature = hmac::sign(&self.key, signed.as_bytes());
        let request = Request::post(&self.path)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &notice.id)
            .header("webhook-timestamp", timestamp)
            .header(
                "webhook-signature",
                format!("v1,{}", base64(signature.as_ref())),
            )
            .body(Bytes::from(notice.body.clone()))?;
        let limits = ClientLimits {
            connect: Duration::from_secs(10),
            request: Duration::from_secs(20),
            body_bytes: 64 * 1024,
        };
        let mut client = Client::connect(&self.target, limits).await?;
        let status = client.send(request).await?.status();
        if status.is_success() {
            Ok(())
        } else {
            Err(TryError::Status(status))
        }
    }
}

/// The delay after the try of this number, from 1.
fn delay(attempt: i64) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1))
        .unwrap_or(0)
        .min(16);
    (FIRST_DELAY * 2_u32.pow(doublings)).min(LONGEST_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_an_hour() {
        assert_eq!(delay(1), Duration::from_secs(5));
        assert_eq!(delay(2), Duration::from_secs(10));
        assert_eq!(delay(10), Duration::from_secs(2560));
        assert_eq!(delay(11), LONGEST_DELAY);
        assert_eq!(delay(TRIES), LONGEST_DELAY);
    }
}
