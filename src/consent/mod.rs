//! Asks the person at this computer whether something may be signed.
//!
//! The window is pinentry's, the program that asks for PINs everywhere else: a child process that
//! speaks the Assuan protocol on its standard input and output. It is shown a question and two
//! buttons, and never asked for a secret.
//!
//! One question is on the screen at a time; a bounded number wait for their turn, in order, and one
//! more is [`ConsentError::Busy`] at once. A question is taken back by dropping the future of
//! [`Asker::ask`]: its pinentry is killed and the next question appears. Nothing is kept; after a
//! crash whoever asked asks again.
//!
//! What does not fit the window is refused, never shortened: a person agrees to all of it or to
//! nothing.

mod assuan;
mod notice;
mod pinentry;
mod text;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::policy::ConsentMethod;
use crate::statement::Language;
use crate::telemetry::metrics::metrics;

/// The `[consent]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// The pinentry program; without one nobody can be asked.
    pub pinentry: Option<PathBuf>,
    /// A program that tells the person's desktop that a question waits: `notify-send`, or one that
    /// takes its arguments. None by default.
    pub notice: Option<PathBuf>,
    /// How long a question stays on the screen, and how long it waits for its turn. Default 60.
    pub timeout_seconds: NonZeroU32,
    /// How many questions may wait behind the one on the screen. Default 8.
    pub queue: usize,
    /// The terminal to ask on, such as `/dev/pts/1`; default `$GPG_TTY`.
    pub tty: Option<String>,
    /// The X display to ask on, such as `:0`; default `$DISPLAY`.
    pub display: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        const MINUTE: NonZeroU32 = NonZeroU32::MIN.saturating_add(59);
        Self {
            pinentry: None,
            notice: None,
            timeout_seconds: MINUTE,
            queue: 8,
            tty: None,
            display: None,
        }
    }
}

impl Config {
    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.get().into())
    }
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The title of the window: what is to be approved, in a few words.
    pub title: String,
    /// Who asks.
    pub client: String,
    /// What the person agrees to: label and value, top to bottom.
    pub lines: Vec<(String, String)>,
    /// The language of the words around the values.
    pub language: Language,
}

/// Why there is no consent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsentError {
    /// The person said no, or closed the window.
    #[error("the person at this computer declined. Ask them before trying again")]
    Denied,
    /// The person did not answer in time.
    #[error(
        "nobody answered within {seconds} seconds. Try again while somebody is at this computer"
    )]
    TimedOut {
        /// The limit.
        seconds: u32,
    },
    /// As many questions wait as may.
    #[error("other questions wait for the person's answer. Try again when they are answered")]
    Busy,
    /// Nobody can be asked.
    #[error("no person can be asked: {reason}")]
    Unavailable {
        /// What is missing or failed, and what to do.
        reason: String,
    },
}

/// Asks; clones share the one screen and its queue.
#[derive(Debug, Clone)]
pub struct Asker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: ArcSwap<Config>,
    /// Held by the question on the screen and by those that wait; its references are counted.
    places: Arc<()>,
    /// Held by the question on the screen; given on in the order of arrival.
    screen: Mutex<()>,
    /// How many questions are on the screen or wait for it.
    waiting: watch::Sender<usize>,
}

/// Counts a question as long as it is not answered.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn begin(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Asker {
    /// Makes an asker. Pinentry is started for each question, so a missing one shows only then.
    pub fn start(config: Config) -> Self {
        Self(Arc::new(Shared {
            config: ArcSwap::from_pointee(config),
            places: Arc::new(()),
            screen: Mutex::new(()),
            waiting: watch::Sender::new(0),
        }))
    }

    /// Asks by other settings from the next question on.
    pub fn reconfigure(&self, config: Config) {
        self.0.config.store(Arc::new(config));
    }

    /// Tells how many questions are on the screen or wait for it.
    pub fn watch(&self) -> watch::Receiver<usize> {
        self.0.waiting.subscribe()
    }

    /// Shows the question and waits for the answer.
    ///
    /// Takes at most twice the configured time: once for its turn, once on the screen.
    pub async fn ask(&self, prompt: Prompt) -> Result<ConsentMethod, ConsentError> {
        let _waiting = metrics().prompts_waiting.enter();
        let begun = std::time::Instant::now();
        let answer = self.ask_in_turn(prompt).await;
        let outcome = match &answer {
            Ok(_) => "agreed",
            Err(ConsentError::Denied) => "declined",
            Err(ConsentError::TimedOut { .. }) => "timed-out",
            Err(ConsentError::Busy) => "busy",
            Err(ConsentError::Unavailable { .. }) => "unavailable",
        };
        metrics().prompts.of(outcome).increment();
        if let Ok(_) | Err(ConsentError::Denied) = answer {
            metrics().prompt_seconds.observe(begun.elapsed());
        }
        answer
    }

    async fn ask_in_turn(&self, prompt: Prompt) -> Result<ConsentMethod, ConsentError> {
        let Shared {
            config,
            places,
            screen,
            waiting,
        } = &*self.0;
        let config = &*config.load_full();
        let Some(program) = &config.pinentry else {
            return Err(ConsentError::Unavailable {
                reason: "no pinentry is configured. Install pinentry and set `pinentry` under \
                         `[consent]`, or give the client a policy without consent"
                    .into(),
            });
        };
        let question = text::Question::new(&prompt)?;
        let _place = places.clone();
        // One reference is the asker's own, one the question's on the screen.
        if Arc::strong_count(places) > config.queue.saturating_add(2) {
            return Err(ConsentError::Busy);
        }
        let _waiting = Waiting::begin(waiting);
        let Ok(_screen) = tokio::time::timeout(config.timeout(), screen.lock()).await else {
            return Err(ConsentError::Busy);
        };
        if let Some(notice) = &config.notice {
            notice::show(notice, config, &prompt);
        }
        pinentry::ask(program, config, &question).await
    }
}
