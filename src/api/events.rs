//! What happens to tokens and certificates, for those who listen: `GET /v1/events`.
//!
//! One task watches the devices and tells every listener what differs; what handlers change is
//! told through [`Events::tell`]. Nothing here is the truth: that is in `/v1/tokens` and
//! `/v1/certificates`, and an event only says that a look is worth it, and what it would show.
//!
//! Events carry ids of the form `BOOT-NUMBER`, where `BOOT` differs at each start of the daemon. The
//! last [`KEPT`] are kept. A listener that comes back with `Last-Event-ID` gets what it missed if
//! all of it is kept still; otherwise, and always at the first time, it gets a `snapshot` first.
//!
//! A listener has a queue of [`KEPT`] events. One that reads too slowly gets `lagged`, which
//! says how many it missed, and its stream ends; it comes back for a snapshot.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, broadcast, watch};
use utoipa::ToSchema;

use crate::base::encoding::hex;
use crate::base::ids::random;
use crate::device::{Devices, TokenStatus};

/// How many events are kept for listeners that come back, and how many a slow one may be behind.
pub const KEPT: usize = 256;

/// How many may listen at a time.
pub const LISTENERS: usize = 32;

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happening {
    /// All tokens as they are: the first event, unless what was missed could be sent.
    Snapshot {
        /// In the order of the configuration.
        tokens: Vec<TokenStatus>,
    },
    /// A token came, left, or changed its state.
    Token {
        /// As it is now.
        token: Box<TokenStatus>,
    },
    /// A certificate was installed.
    CertificateInstalled {
        /// Its SHA-256 fingerprint, hexadecimal.
        fingerprint: String,
    },
    /// A revocation list came into force.
    CertificatesRevoked {
        /// The origin of the service whose list it is.
        service: String,
        /// How many certificates it revokes.
        revoked: usize,
    },
    /// An enrolment began or was cancelled: `/v1/enrolments` shows which are left.
    Enrolments {},
    /// How many questions wait for the person at this computer, the one on the screen included.
    Prompts {
        /// So many.
        waiting: usize,
    },
    /// The listener was too slow; the stream ends.
    Lagged {
        /// How many events it missed.
        missed: u64,
    },
    /// The daemon stops; the stream ends.
    Stopping {},
}

impl Happening {
    /// The name of the event, as in its `event:` line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "snapshot",
            Self::Token { .. } => "token",
            Self::CertificateInstalled { .. } => "certificate-installed",
            Self::CertificatesRevoked { .. } => "certificates-revoked",
            Self::Enrolments {} => "enrolments",
            Self::Prompts { .. } => "prompts",
            Self::Lagged { .. } => "lagged",
            Self::Stopping {} => "stopping",
        }
    }
}

/// An event with its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// `BOOT-NUMBER`.
    pub id: String,
    /// What happened.
    pub what: Happening,
}

/// Tells listeners; clones share them.
#[derive(Debug, Clone)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    boot: String,
    state: Mutex<State>,
    sender: broadcast::Sender<Told>,
    places: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    kept: VecDeque<Told>,
    stopped: bool,
}

/// One listener's end. Dropping it leaves.
#[derive(Debug)]
pub struct Listener {
    /// What it missed, oldest first; `None` where it needs a snapshot.
    pub missed: Option<Vec<Told>>,
    /// The id that a snapshot taken now has.
    pub id: String,
    receiver: broadcast::Receiver<Told>,
    _place: tokio::sync::OwnedSemaphorePermit,
}

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Shared {
            boot: hex(&random::<6>()),
            state: Mutex::default(),
            sender: broadcast::Sender::new(KEPT),
            places: Arc::new(Semaphore::new(LISTENERS)),
        }))
    }
}

impl Events {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody.
    pub fn tell(&self, what: Happening) {
        let mut state = self.state();
        if state.stopped {
            return;
        }
        state.stopped = what == Happening::Stopping {};
        state.last += 1;
        let told = Told {
            id: format!("{}-{}", self.0.boot, state.last),
            what,
        };
        if state.kept.len() == KEPT {
            state.kept.pop_front();
        }
        state.kept.push_back(told.clone());
        // Sent while the lock is held, so that a listener gets each event once: kept or sent.
        let _nobody_listens = self.0.sender.send(told);
    }

    /// Listens from now on, or from after the event that the listener saw last. `None`: there are
    /// too many listeners.
    pub fn listen(&self, last_seen: Option<&str>) -> Option<Listener> {
        let place = self.0.places.clone().try_acquire_owned().ok()?;
        let state = self.state();
        let missed = last_seen
            .and_then(|id| {
                id.strip_prefix(&*self.0.boot)?
                    .strip_prefix('-')?
                    .parse()
                    .ok()
            })
            .and_then(|seen: u64| {
                let behind = usize::try_from(state.last.checked_sub(seen)?).ok()?;
                let begin = state.kept.len().checked_sub(behind)?;
                Some(state.kept.iter().skip(begin).cloned().collect())
            });
        Some(Listener {
            missed,
            id: format!("{}-{}", self.0.boot, state.last),
            receiver: self.0.sender.subscribe(),
            _place: place,
        })
    }

    /// Tells of tokens that change, until the devices are shut down; for a task of its own.
    pub async fn watch(self, devices: Devices) {
        let mut changes = devices.changes();
        let mut before = devices.tokens().await;
        while let Some(now) = changes.next().await {
            for (token, old) in now.iter().zip(&before) {
                if token != old {
                    self.tell(Happening::Token {
                        token: Box::new(token.clone()),
                    });
                }
            }
            before = now;
        }
    }

    /// Tells how many questions wait for the person, for a task of its own.
    pub async fn watch_prompts(self, mut questions: watch::Receiver<usize>) {
        while questions.changed().await.is_ok() {
            let waiting = *questions.borrow_and_update();
            self.tell(Happening::Prompts { waiting });
        }
    }
}

impl Listener {
    /// The next event; the last of a stream is `Lagged` or `Stopping`. `None` after that.
    pub async fn next(&mut self) -> Option<Told> {
        match self.receiver.recv().await {
            Ok(told) => Some(told),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Told {
                // Not an event that a listener could come back from.
                id: String::new(),
                what: Happening::Lagged { missed },
            }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(waiting: usize) -> Happening {
        Happening::Prompts { waiting }
    }

    #[tokio::test]
    async fn a_listener_that_comes_back_gets_what_it_missed_once() {
        let events = Events::default();
        events.tell(prompts(1));
        let mut first = events.listen(None).unwrap();
        assert_eq!(first.missed, None);
        events.tell(prompts(2));
        let seen = first.next().await.unwrap();
        assert_eq!(seen.what, prompts(2));
        drop(first);
        events.tell(prompts(3));
        events.tell(prompts(4));
        let mut again = events.listen(Some(&seen.id)).unwrap();
        let missed: Vec<_> = again.missed.take().unwrap();
        assert_eq!(
            missed.into_iter().map(|told| told.what).collect::<Vec<_>>(),
            [prompts(3), prompts(4)]
        );
        events.tell(prompts(5));
        assert_eq!(again.next().await.unwrap().what, prompts(5));
        for strange in ["", "x-1", "1", &format!("{}9", seen.id)] {
            assert_eq!(
                events.listen(Some(strange)).unwrap().missed,
                None,
                "{strange}"
            );
        }
        for number in 0..KEPT {
            events.tell(prompts(number));
        }
        assert_eq!(events.listen(Some(&seen.id)).unwrap().missed, None);
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_so() {
        let events = Events::default();
        let mut listener = events.listen(None).unwrap();
        for number in 0..KEPT + 3 {
            events.tell(prompts(number));
        }
        let told = listener.next().await.unwrap();
        assert_eq!(told.what, Happening::Lagged { missed: 3 });
    }

    #[test]
    fn listeners_are_counted() {
        let events = Events::default();
        let listeners: Vec<_> = (0..LISTENERS)
            .map(|_| events.listen(None).unwrap())
            .collect();
        assert!(events.listen(None).is_none());
        drop(listeners);
        assert!(events.listen(None).is_some());
    }
}
