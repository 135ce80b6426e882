//! Telling the platform of approvals.
//!
//! A notice is a row written in the transaction that approves, so none is lost and none is sent
//! for an approval that did not happen. This task takes due rows, posts each, and notes what came
//! of it. A try is counted before it is made and the row is held meanwhile, for longer than a try
//! can last; one cut short by a crash is made again when the hold is over. What comes of a try is
//! noted only while the row is still that try's, so an instance that was suspended in between
//! spoils nothing. The receiver sees a notice at least once and knows a repetition by its id.
//!
//! Up to [`TRIES_AT_ONCE`] tries go out side by side, [`TRIES_PER_RECEIVER`] of them to one
//! receiver, so one that does not answer holds up nobody else.
//!
//! Receivers are the address in the configuration and the subscriptions of the platform. Notices of
//! one operation go to one receiver in order: the next waits until the one before it was taken or
//! given up. The requests are those of [`super::outgoing`].
//!
//! Any 2xx answer settles it. Otherwise it is tried again after 5 s, then twice as long each
//! time, at most an hour; after [`TRIES`] tries it is given up and stays in the table.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{self, JoinSet};

use super::config::Webhook;
use super::outgoing::{self, Endpoint, EndpointError};
use super::seal::Sealer;
use super::service::Service;
use super::store::outbox::{self, Notice, Outcome, Subscription};
use super::store::{Store, StoreError};
use crate::base::backoff::doubling;

/// Tries before a notice is given up: with the delays below, a little more than ten hours.
pub const TRIES: i64 = 20;

/// The first delay, doubled after each try.
const FIRST_DELAY: Duration = Duration::from_secs(5);

/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(60 * 60);

/// How long a try may take, from the look-up of the receiver to its answer.
const TRY: Duration = Duration::from_secs(30);

/// How long a notice is held for one try; longer than [`TRY`], so that nobody else takes it while
/// the try lasts and what came of it is noted.
const HOLD: Duration = Duration::from_secs(90);

/// Tries that are made side by side.
pub const TRIES_AT_ONCE: usize = 32;

/// Tries that are made side by side to one receiver.
pub const TRIES_PER_RECEIVER: usize = 8;

/// How long to wait after the database failed.
const STORE_DELAY: Duration = Duration::from_secs(5);

/// Begins what seals the secret of a subscription.
pub const SECRET_DOMAIN: &str = "subscription";

/// Delivers notices.
pub struct Courier {
    service: Service,
    configured: Option<Endpoint>,
    trust: Arc<rustls::ClientConfig>,
}

/// Whom a notice is for, as the database names it: a subscription, or the address in the
/// configuration, whose name is empty.
type Receiver = String;

/// Tries that are being made.
#[derive(Default)]
struct Tries {
    tasks: JoinSet<()>,
    /// The notice of each, and whom it is for.
    notices: HashMap<task::Id, (String, Receiver)>,
}

impl Tries {
    /// How many more may begin.
    fn room(&self) -> usize {
        TRIES_AT_ONCE.saturating_sub(self.tasks.len())
    }

    /// Whether this notice is under way. Its hold says so to other instances; here nothing is left
    /// to the clock.
    fn has(&self, notice: &str) -> bool {
        self.notices.values().any(|(id, _)| id == notice)
    }

    /// How many go to this receiver.
    fn to(&self, receiver: &str) -> usize {
        let receivers = self.notices.values().map(|(_, receiver)| receiver);
        receivers.filter(|one| *one == receiver).count()
    }

    /// Of these receivers, those that may get more, and how many more; who gets least comes first,
    /// so that a few slow ones leave room for the others.
    fn open(&self, receivers: Vec<Receiver>) -> Vec<(Receiver, usize)> {
        let mut open: Vec<_> = receivers
            .into_iter()
            .map(|receiver| {
                let more = TRIES_PER_RECEIVER.saturating_sub(self.to(&receiver));
                (receiver, more)
            })
            .filter(|(_, more)| *more > 0)
            .collect();
        open.sort_by_key(|(_, more)| std::cmp::Reverse(*more));
        open
    }

    fn begin(&mut self, courier: Arc<Courier>, notice: Notice) {
        let receiver = notice.subscription.clone().unwrap_or_default();
        let entry = (notice.id.clone(), receiver);
        let task = self.tasks.spawn(async move {
            if let Err(error) = courier.deliver(&notice).await {
                // The hold ends by itself, and then it is tried again.
                tracing::error!(notice = notice.id, %error, "cannot note a delivery");
            }
        });
        self.notices.insert(task.id(), entry);
    }

    /// Waits until one of them has ended; `false` where there is none.
    async fn ended(&mut self) -> bool {
        let id = match self.tasks.join_next_with_id().await {
            None => return false,
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => {
                tracing::error!(%error, "a delivery failed");
                error.id()
            }
        };
        self.notices.remove(&id);
        true
    }
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

    /// Delivers until the task is ended; tries under way end with it and are made again later.
    pub async fn run(self) {
        let courier = Arc::new(self);
        let mut tries = Tries::default();
        loop {
            let wait = match courier.clone().begin_due(&mut tries).await {
                Ok(wait) => wait,
                Err(error) => {
                    tracing::error!(%error, "cannot read the outbox");
                    Some(STORE_DELAY)
                }
            };
            // A new notice, the next due time, or room for another try, whichever comes first.
            let due = async {
                match wait {
                    // When it is due is known, and nobody else tells.
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                true = tries.ended() => (),
                () = courier.service.wait_for_outbox() => (),
                () = due => (),
            }
        }
    }

    /// Begins a try of whatever is due and has room, and gives the time until more is.
    async fn begin_due(self: Arc<Self>, tries: &mut Tries) -> Result<Option<Duration>, StoreError> {
        let store = self.service.store();
        loop {
            let room = tries.room();
            if room == 0 {
                return Ok(None);
            }
            let now = self.service.clock().now();
            let under_way = &*tries;
            let notices = store
                .transaction("take notices", move |tx| {
                    Box::pin(async move {
                        let mut taken = Vec::new();
                        for (receiver, mut more) in under_way.open(outbox::receivers(tx).await?) {
                            // Those under way may be among them, where their hold is over.
                            for due in outbox::due(tx, now, &receiver, TRIES_PER_RECEIVER).await? {
                                if more == 0 || taken.len() == room {
                                    break;
                                }
                                if !under_way.has(&due.notice.id)
                                    && let Some(notice) = outbox::claim(tx, due, now, HOLD).await?
                                {
                                    taken.push(notice);
                                    more -= 1;
                                }
                            }
                        }
                        Ok::<_, StoreError>(taken)
                    })
                })
                .await?;
            if notices.is_empty() {
                break;
            }
            for notice in notices {
                tries.begin(self.clone(), notice);
            }
        }
        let under_way = &*tries;
        let next = store
            .read("find next notice", move |tx| {
                Box::pin(async move {
                    let mut next = None;
                    for (receiver, _) in under_way.open(outbox::receivers(tx).await?) {
                        let due = outbox::next_due(tx, &receiver).await?;
                        next = next.into_iter().chain(due).min();
                    }
                    Ok::<_, StoreError>(next)
                })
            })
            .await?;
        let now = self.service.clock().now();
        // What is due and was not begun is under way: the end of a try is what to wait for.
        Ok(next
            .map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default())
            .filter(|wait| !wait.is_zero() || tries.tasks.is_empty()))
    }

    async fn deliver(&self, notice: &Notice) -> Result<(), StoreError> {
        let tried = match tokio::time::timeout(TRY, self.post(notice)).await {
            Ok(tried) => tried?,
            Err(_) => Err(format!("no answer within {} s", TRY.as_secs())),
        };
        let now = self.service.clock().now();
        let (outcome, error) = match tried {
            Ok(()) => (Outcome::Delivered, None),
            Err(error) => {
                tracing::warn!(notice = notice.id, attempt = notice.attempts, %error, "notice not delivered");
                let outcome = if notice.attempts >= TRIES {
                    Outcome::Abandoned
                } else {
                    let wait = doubling(notice.attempts, FIRST_DELAY, LONGEST_DELAY);
                    Outcome::Retry(now + wait)
                };
                (outcome, Some(error))
            }
        };
        let error = error.as_deref();
        self.service
            .store()
            .transaction("settle notice", move |tx| {
                Box::pin(outbox::settle(tx, notice, outcome, error, now))
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
