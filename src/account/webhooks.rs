//! Telling the platform of approvals.
//!
//! A notice is a row written in the transaction that approves, so none is lost and none is sent
//! for an approval that did not happen. This task takes due rows, posts each, and notes what came
//! of it. A try is counted before it is made; one cut short by a crash is made again after
//! one minute. The receiver sees a notice at least once and knows a repetition by its id.
//!
//! Receivers are the address in the configuration and the subscriptions of the platform. Notices of
//! one operation go to one receiver in order: the next waits until the one before it was taken or
//! given up. The requests are those of [`super::outgoing`].
//!
//! Any 2xx answer settles it. Otherwise it is tried again after 5 s, then twice as long each
//! time, at most an hour; after [`TRIES`] tries it is given up and stays in the table.

use std::time::Duration;

use super::config::Webhook;
use super::outgoing::{self, Endpoint, EndpointError};
use super::seal::Sealer;
use super::service::Service;
use super::store::outbox::{self, Notice, Outcome, Subscription};
use super::store::{Store, StoreError};

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

/// Begins what seals the secret of a subscription.
pub const SECRET_DOMAIN: &str = "subscription";

/// Delivers notices.
pub struct Courier {
    service: Service,
    configured: Option<Endpoint>,
    trust: std::sync::Arc<rustls::ClientConfig>,
}

impl Courier {
    /// Reads secret and trust. `ca_file` of the configured address counts for subscriptions too.
    pub fn new(config: Option<&Webhook>, service: Service) -> Result<Self, EndpointError> {
        let trust = outgoing::trust(config.and_then(|config| config.ca_file.as_deref()))?;
        let configured = match config {
            Some(config) => {
                let secret = outgoing::secret(&config.secret_file)?;
                Some(Endpoint::new(&config.url, trust.clone(), &secret)?)
            }
            None => None,
        };
        Ok(Self {
            service,
            configured,
            trust,
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
        let tried = self.post(notice).await?;
        let now = self.service.clock().now();
        let (outcome, error) = match tried {
            Ok(()) => (Outcome::Delivered, None),
            Err(error) => {
                tracing::warn!(notice = notice.id, attempt = notice.attempts, %error, "notice not delivered");
                let outcome = if notice.attempts >= TRIES {
                    Outcome::Abandoned
                } else {
                    let wait = outgoing::delay(notice.attempts, FIRST_DELAY, LONGEST_DELAY);
                    Outcome::Retry(now + wait)
                };
                (outcome, Some(error))
            }
        };
        let (id, error) = (notice.id.as_str(), error.as_deref());
        self.service
            .store()
            .transaction("settle notice", move |tx| {
                Box::pin(outbox::settle(tx, id, outcome, error, now))
            })
            .await
    }

    /// One try; what went wrong with it, in words.
    async fn post(&self, notice: &Notice) -> Result<Result<(), String>, StoreError> {
        let now = self.service.clock().now();
        let made;
        let endpoint = match (&notice.subscription, &self.configured) {
            (None, Some(configured)) => configured,
            (None, None) => return Ok(Err("no [webhook] is configured".into())),
            (Some(id), _) => {
                let found = find(self.service.store(), id).await?;
                let Some(subscription) = found else {
                    return Ok(Err("the subscription was ended".into()));
                };
                match self.endpoint(&subscription, self.service.sealer()) {
                    Ok(endpoint) => {
                        made = endpoint;
                        &made
                    }
                    Err(reason) => return Ok(Err(reason)),
                }
            }
        };
        let posted = endpoint.post(&notice.event, &notice.body, now).await;
        Ok(posted.map_err(|error| crate::telemetry::Chain(&error).to_string()))
    }

    fn endpoint(&self, subscription: &Subscription, sealer: &Sealer) -> Result<Endpoint, String> {
        let secret = sealer
            .open(SECRET_DOMAIN, &subscription.id, &subscription.secret)
            .map_err(|error| error.to_string())?;
        Endpoint::new(&subscription.url, self.trust.clone(), secret.expose())
            .map_err(|error| crate::telemetry::Chain(&error).to_string())
    }
}

async fn find(store: &Store, id: &str) -> Result<Option<Subscription>, StoreError> {
    store
        .read("find subscription", move |tx| {
            Box::pin(outbox::find_subscription(tx, id))
        })
        .await
}
