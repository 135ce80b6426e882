//! Asks the person at this computer whether something may be signed.
//!
//! The window is pinentry's, the program that asks for PINs everywhere else: a child process that
//! speaks the Assuan protocol on its standard input and output. It is shown a question and two
//! buttons; where policy wants the token's PIN for this very operation, the same window asks for
//! it, and whoever asked hands it to the token.
//!
//! The window says who asks: a registered program by its name, and the page it speaks for; a local
//! user by number, with the program behind the connection and those that started it.
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
mod process;
mod text;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::base::secret::Pin;
use crate::policy::ConsentMethod;
use crate::statement::{Language, Payees, Statement};
use crate::telemetry::metrics::Entered;
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
    /// The language of the window: `en` or `zh`. Default `en`.
    pub language: Language,
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
            language: Language::English,
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
    pub asked_by: AskedBy,
    /// What the person agrees to: label and value, top to bottom. All of it is shown.
    pub lines: Vec<(String, String)>,
    /// A list that the lines stand for, such as the payees of a batch: its first entries are shown
    /// as far as the window has room, and how many more there are.
    pub list: Vec<String>,
    /// What the person has to do on the token after this.
    pub on_token: Option<OnToken>,
    /// The language of the words around the values.
    pub language: Language,
}

impl Prompt {
    /// Asks about all that `statement` says, and the list of payees that it names. What is signed
    /// is written from the same value ([`Statement::to_json`]).
    pub fn of_statement(
        statement: &Statement,
        payees: Option<&Payees>,
        asked_by: AskedBy,
        language: Language,
    ) -> Self {
        let lines = statement.lines(language).into_iter();
        let list = payees.into_iter().flat_map(Payees::iter);
        Self {
            title: statement.kind().title(language).to_owned(),
            asked_by,
            lines: lines
                .map(|(label, value)| (label.to_owned(), value))
                .collect(),
            list: list
                .map(|(payee, money)| format!("{payee}  {money}"))
                .collect(),
            on_token: None,
            language,
        }
    }
}

/// A question for the PIN of a token that something needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPin {
    /// Its label.
    pub label: String,
    /// Its serial number.
    pub serial: String,
    /// Why the PIN before was not taken, where a person asks once more.
    pub before: Option<String>,
}

/// Who asks, as its door knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskedBy {
    /// A registered program.
    Client {
        /// The name in its certificate.
        name: String,
        /// The page that it speaks for.
        page: Option<String>,
    },
    /// A local user.
    User {
        /// Its number.
        uid: u32,
        /// The process that connected, where the kernel tells.
        pid: Option<i32>,
    },
    /// The program itself.
    Itself,
}

/// What a person has to do on a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnToken {
    /// Touch it.
    Touch {
        /// Its label.
        label: String,
    },
    /// Type its PIN on it.
    Pin {
        /// Its label.
        label: String,
    },
}

/// Why there is no consent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsentError {
    /// The person said no, or closed the window.
    #[error("the person at this computer declined")]
    Denied,
    /// The person did not answer in time.
    #[error("nobody answered within {seconds} seconds")]
    TimedOut {
        /// The limit.
        seconds: u32,
    },
    /// As many questions wait as may.
    #[error("other questions wait for the person's answer")]
    Busy,
    /// Nobody can be asked.
    #[error("no person can be asked: {reason}")]
    Unavailable {
        /// What is missing or failed.
        reason: String,
        /// What to do about it, where there is more to say than to configure pinentry.
        action: Option<&'static str>,
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

    /// The language a person is asked in.
    pub fn language(&self) -> Language {
        self.0.config.load().language
    }

    /// How long a question stays on the screen.
    pub fn patience(&self) -> Duration {
        self.0.config.load().timeout()
    }

    /// Shows the question and waits for the answer.
    ///
    /// Takes at most twice the configured time: once for its turn, once on the screen.
    pub async fn ask(&self, prompt: &Prompt) -> Result<ConsentMethod, ConsentError> {
        self.turn().await?.confirm(prompt).await
    }

    /// Asks for the PIN of a token, which is not yet tried. Takes as long as [`Asker::ask`].
    pub async fn token_pin(&self, question: &TokenPin) -> Result<Pin, ConsentError> {
        self.turn().await?.token_pin(question).await
    }

    /// Tells the person to type a token's PIN on the token itself once they agree here.
    pub async fn token_by_hand(&self, question: &TokenPin) -> Result<(), ConsentError> {
        self.turn().await?.token_by_hand(question).await
    }

    /// Waits for the screen, at most the configured time. Whoever has it may ask several questions
    /// in a row.
    pub async fn turn(&self) -> Result<Turn<'_>, ConsentError> {
        let begun = Instant::now();
        let turn = self.wait(begun).await;
        if let Err(error) = &turn {
            count(outcome(error));
        }
        turn
    }

    async fn wait(&self, begun: Instant) -> Result<Turn<'_>, ConsentError> {
        let waiting = metrics().prompts_waiting.enter();
        let config = self.0.config.load_full();
        let Some(program) = config.pinentry.clone() else {
            return Err(ConsentError::Unavailable {
                reason: "no pinentry is configured".into(),
                action: None,
            });
        };
        let place = self.0.places.clone();
        // One reference is the asker's own, one the question's on the screen.
        if Arc::strong_count(&place) > config.queue.saturating_add(2) {
            return Err(ConsentError::Busy);
        }
        let shown = Waiting::begin(&self.0.waiting);
        let Ok(screen) = tokio::time::timeout(config.timeout(), self.0.screen.lock()).await else {
            return Err(ConsentError::Busy);
        };
        Ok(Turn {
            config,
            program,
            begun,
            _waiting: (waiting, shown),
            _place: place,
            _screen: screen,
        })
    }
}

fn count(outcome: &'static str) {
    metrics().prompts.of(outcome).increment();
}

fn outcome(error: &ConsentError) -> &'static str {
    match error {
        ConsentError::Denied => "declined",
        ConsentError::TimedOut { .. } => "timed-out",
        ConsentError::Busy => "busy",
        ConsentError::Unavailable { .. } => "unavailable",
    }
}

/// The screen, for one who asks.
#[must_use]
pub struct Turn<'a> {
    config: Arc<Config>,
    program: PathBuf,
    begun: Instant,
    _waiting: (Entered<'static>, Waiting<'a>),
    _place: Arc<()>,
    _screen: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    /// Has the person press one of two buttons.
    pub async fn confirm(&self, prompt: &Prompt) -> Result<ConsentMethod, ConsentError> {
        let question = text::Question::confirm(prompt)?;
        self.notice(prompt);
        let answer = pinentry::confirm(&self.program, &self.config, &question).await;
        self.counted(answer).map(|()| ConsentMethod::Pinentry)
    }

    /// Has the person enter the PIN of the token `label`, or refuse. `again` says what was wrong
    /// with the one before. Whether it is right is for the token to say.
    pub async fn pin(
        &self,
        prompt: &Prompt,
        label: &str,
        again: Option<PinProblem>,
    ) -> Result<Pin, ConsentError> {
        let question = text::Question::pin(prompt, label, again)?;
        self.notice(prompt);
        let answer = pinentry::pin(&self.program, &self.config, &question).await;
        self.counted(answer)
    }

    async fn token_pin(&self, asked: &TokenPin) -> Result<Pin, ConsentError> {
        let prompt = text::token_pin(asked, self.config.language);
        let question = text::Question::token_pin(&prompt, asked)?;
        self.notice(&prompt);
        let answer = pinentry::pin(&self.program, &self.config, &question).await;
        self.counted(answer)
    }

    async fn token_by_hand(&self, asked: &TokenPin) -> Result<(), ConsentError> {
        let prompt = text::token_pin(asked, self.config.language);
        let question = text::Question::token_by_hand(&prompt, asked)?;
        self.notice(&prompt);
        let answer = pinentry::confirm(&self.program, &self.config, &question).await;
        self.counted(answer)
    }

    fn notice(&self, prompt: &Prompt) {
        if let Some(program) = &self.config.notice {
            notice::show(program, &self.config, prompt);
        }
    }

    fn counted<T>(&self, answer: Result<T, ConsentError>) -> Result<T, ConsentError> {
        count(answer.as_ref().map_or_else(outcome, |_| "agreed"));
        if let Ok(_) | Err(ConsentError::Denied) = answer {
            metrics().prompt_seconds.observe(self.begun.elapsed());
        }
        answer
    }
}

/// For the fuzz target of pinentry's lines.
#[cfg(fuzzing)]
pub fn fuzz_line(line: &[u8]) {
    if let Some(assuan::Reply::Data) = assuan::Reply::parse(line) {
        let mut typed = zeroize::Zeroizing::new(Vec::with_capacity(assuan::LINE_LIMIT));
        let _ = assuan::unescape(line, &mut typed);
        assert!(typed.len() <= line.len());
    }
    if let Ok(text) = std::str::from_utf8(line)
        && let Some(command) = assuan::command("SETDESC", text)
    {
        // Whatever the argument is, it ends where the line does.
        assert!(command.iter().position(|byte| *byte == b'\n') == Some(command.len() - 1));
    }
}

/// What was wrong with a PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinProblem {
    /// The token refused it.
    Wrong,
    /// No token has such a PIN; it was not tried.
    Length,
}
