//! One conversation with one pinentry process.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::termios::{QueueSelector, tcflush};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::assuan::{self, CANCELED, FULLY_CANCELED, LINE_LIMIT, NOT_CONFIRMED, Reply, TIMEOUT};
use super::text::Question;
use super::{Config, ConsentError};
use crate::base::secret::Pin;

/// How long pinentry may take to start and to accept the text.
const SETUP_LIMIT: Duration = Duration::from_secs(10);

/// How much longer than it was told the window may stay before it is killed.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// How long pinentry may take to leave, putting its terminal in order.
const EXIT_LIMIT: Duration = Duration::from_secs(1);

/// How much of what pinentry prints as its last words is kept, in bytes.
const LAST_WORDS: usize = 512;

/// Status lines before a reply that are put up with.
const INTERIM_LIMIT: usize = 64;

/// The environment pinentry gets: what finds the screen, and nothing else of ours.
const ENVIRONMENT: &[&str] = &[
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "GPG_TTY",
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "PATH",
    "TERM",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
];

/// What finds the person's screen.
pub(super) fn environment(config: &Config) -> impl Iterator<Item = (&'static str, OsString)> {
    let inherited = ENVIRONMENT
        .iter()
        .filter_map(|name| Some((*name, std::env::var_os(name)?)));
    // Window pinentries fall back to a terminal without this one.
    let display = config.display.iter();
    inherited.chain(display.map(|display| ("DISPLAY", display.into())))
}

/// Asks `question` in a window of `program`. When the future is dropped the process is killed.
pub(super) async fn confirm(
    program: &Path,
    config: &Config,
    question: &Question,
) -> Result<(), ConsentError> {
    converse(
        program,
        config,
        question,
        async |pinentry: &mut Pinentry| pinentry.confirm(config).await,
    )
    .await
}

/// Asks for a PIN in the same way.
pub(super) async fn pin(
    program: &Path,
    config: &Config,
    question: &Question,
) -> Result<Pin, ConsentError> {
    converse(
        program,
        config,
        question,
        async |pinentry: &mut Pinentry| pinentry.pin(config).await,
    )
    .await
}

async fn converse<T>(
    program: &Path,
    config: &Config,
    question: &Question,
    ask: impl AsyncFnOnce(&mut Pinentry) -> Result<T, Failure>,
) -> Result<T, ConsentError> {
    let mut pinentry = Pinentry::start(program, config)?;
    let set_up = timeout(SETUP_LIMIT, pinentry.set_up(config, question)).await;
    let answer = match set_up {
        Ok(Ok(())) => ask(&mut pinentry).await,
        Ok(Err(failure)) => Err(Failure::Talk(failure)),
        Err(_) => Err(Failure::Talk("it did not answer in time".into())),
    };
    match answer {
        Ok(answer) => {
            pinentry.leave().await;
            Ok(answer)
        }
        Err(Failure::Answer(error)) => {
            pinentry.leave().await;
            Err(error)
        }
        Err(Failure::Talk(failure)) => {
            let last_words = pinentry.last_words().await;
            Err(ConsentError::Unavailable {
                reason: format!("{} failed: {failure}{last_words}", program.display()),
                action: Some(
                    "Run it by hand to see that it can open a window for the service's user.",
                ),
            })
        }
    }
}

/// Why there is no yes.
enum Failure {
    /// The person's answer, or none in time.
    Answer(ConsentError),
    /// The conversation failed.
    Talk(String),
}

struct Pinentry {
    child: Child,
    input: ChildStdin,
    output: Lines,
    complaints: JoinHandle<Vec<u8>>,
}

impl Pinentry {
    fn start(program: &Path, config: &Config) -> Result<Self, ConsentError> {
        let failed = |why: &dyn std::fmt::Display| ConsentError::Unavailable {
            reason: format!("cannot start {}: {why}", program.display()),
            action: Some("Install pinentry, or correct `pinentry` under `[consent]`."),
        };
        let mut child = Command::new(program)
            .env_clear()
            .envs(environment(config))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(&error))?;
        match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(input), Some(output), Some(complaints)) => Ok(Self {
                child,
                input,
                output: Lines::new(output),
                complaints: tokio::spawn(drain(complaints)),
            }),
            _ => Err(failed(&"its pipes are missing")),
        }
    }

    /// Greets and sets the text. Options that this pinentry does not know are left out.
    async fn set_up(&mut self, config: &Config, question: &Question) -> Result<(), String> {
        self.expect_ok().await?;
        for option in options(config) {
            let Some(line) = assuan::command("OPTION", &option) else {
                continue;
            };
            self.request(&line).await?;
        }
        let seconds = config.timeout_seconds.to_string();
        let line = assuan::command("SETTIMEOUT", &seconds).unwrap_or_default();
        for line in std::iter::once(line.as_slice()).chain(question.commands()) {
            match self.request(line).await? {
                Reply::Err { text, .. } => return Err(format!("it refused the text: {text}")),
                Reply::Ok | Reply::Interim | Reply::Data => {}
            }
        }
        Ok(())
    }

    /// Opens the window and waits for the person.
    async fn confirm(&mut self, config: &Config) -> Result<(), Failure> {
        match self.person(config, b"CONFIRM\n").await? {
            None => Ok(()),
            Some(_) => Err(Failure::Talk("it sent data nobody asked for".into())),
        }
    }

    /// The same with a field for a PIN.
    async fn pin(&mut self, config: &Config) -> Result<Pin, Failure> {
        let typed = self.person(config, b"GETPIN\n").await?.unwrap_or_default();
        // A PIN of the token is UTF-8 (PKCS#11 section 2.5).
        match std::str::from_utf8(&typed) {
            Ok(text) => Ok(Pin::new(text.to_owned())),
            Err(_) => Err(Failure::Talk("what was typed is not UTF-8".into())),
        }
    }

    /// Waits for the person after `command`.
    async fn person(
        &mut self,
        config: &Config,
        command: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        let timed_out = || {
            Failure::Answer(ConsentError::TimedOut {
                seconds: config.timeout_seconds.get(),
            })
        };
        forget_typed(config);
        let limit = config.timeout() + ANSWER_GRACE;
        let mut data = None;
        let reply = timeout(limit, self.exchange(command, &mut data))
            .await
            .map_err(|_| timed_out())?;
        match reply.map_err(Failure::Talk)? {
            Reply::Ok => Ok(data),
            Reply::Err { code, .. }
                if [CANCELED, NOT_CONFIRMED, FULLY_CANCELED].contains(&code) =>
            {
                Err(Failure::Answer(ConsentError::Denied))
            }
            Reply::Err { code: TIMEOUT, .. } => Err(timed_out()),
            Reply::Err { text, .. } => Err(Failure::Talk(text)),
            Reply::Interim | Reply::Data => Err(Failure::Talk("it gave no answer".into())),
        }
    }

    /// Lets the process end by itself, and kills it if it does not.
    async fn leave(mut self) {
        // It may have ended already; either way it is waited for or killed.
        let _ = self.input.write_all(b"BYE\n").await;
        drop(self.input);
        if timeout(EXIT_LIMIT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }

    /// Ends the process and returns what it complained of, in brackets.
    async fn last_words(mut self) -> String {
        drop(self.input);
        if timeout(EXIT_LIMIT, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
        let words = match timeout(EXIT_LIMIT, self.complaints).await {
            Ok(Ok(words)) => words,
            _ => return String::new(),
        };
        let words: String = String::from_utf8_lossy(&words)
            .trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        if words.is_empty() {
            words
        } else {
            format!(" ({words})")
        }
    }

    async fn request(&mut self, line: &[u8]) -> Result<Reply, String> {
        let mut data = None;
        let reply = self.exchange(line, &mut data).await?;
        match data {
            None => Ok(reply),
            Some(_) => Err("it sent data nobody asked for".into()),
        }
    }

    async fn exchange(
        &mut self,
        line: &[u8],
        data: &mut Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Reply, String> {
        self.input
            .write_all(line)
            .await
            .map_err(|error| format!("it does not read: {error}"))?;
        self.reply(data).await
    }

    async fn expect_ok(&mut self) -> Result<(), String> {
        match self.reply(&mut None).await? {
            Reply::Ok => Ok(()),
            Reply::Err { text, .. } => Err(text),
            Reply::Interim | Reply::Data => Err("it does not greet".into()),
        }
    }

    /// The next reply, past a few status lines; what it sent as data goes to `data`.
    async fn reply(&mut self, data: &mut Option<Zeroizing<Vec<u8>>>) -> Result<Reply, String> {
        for _ in 0..INTERIM_LIMIT {
            let line = self.output.next().await?;
            match Reply::parse(line) {
                Some(Reply::Interim) => {}
                Some(Reply::Data) => {
                    let typed =
                        data.get_or_insert_with(|| Zeroizing::new(Vec::with_capacity(LINE_LIMIT)));
                    assuan::unescape(line, typed).ok_or("it sent data that is none")?;
                }
                Some(reply) => return Ok(reply),
                None => return Err("it does not speak the pinentry protocol".into()),
            }
        }
        Err("it sent too many status lines".into())
    }
}

/// Lines from pinentry. One of them may be a PIN, so the buffer never moves and is wiped.
struct Lines {
    from: ChildStdout,
    buffer: Zeroizing<Vec<u8>>,
    filled: usize,
    /// The length of the line given out last, its end included.
    given: usize,
}

impl Lines {
    fn new(from: ChildStdout) -> Self {
        Self {
            from,
            buffer: Zeroizing::new(vec![0; LINE_LIMIT]),
            filled: 0,
            given: 0,
        }
    }

    /// The next line, without its end.
    async fn next(&mut self) -> Result<&[u8], String> {
        self.buffer.copy_within(self.given..self.filled, 0);
        self.filled -= self.given;
        self.given = 0;
        loop {
            let line = self.buffer[..self.filled].iter().position(|b| *b == b'\n');
            if let Some(end) = line {
                self.given = end + 1;
                return Ok(&self.buffer[..end]);
            }
            if self.filled == self.buffer.len() {
                return Err("it sent a line that is too long".into());
            }
            let count = self
                .from
                .read(&mut self.buffer[self.filled..])
                .await
                .map_err(|error| format!("it cannot be read: {error}"))?;
            if count == 0 {
                return Err("it ended without an answer".into());
            }
            self.filled += count;
        }
    }
}

/// What was typed at the terminal before the question stood there is no answer to it.
fn forget_typed(config: &Config) {
    let Some(terminal) = terminal(config) else {
        return;
    };
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let forgotten = rustix::fs::open(&terminal, flags, Mode::empty())
        .and_then(|opened| tcflush(opened, QueueSelector::IFlush));
    if let Err(error) = forgotten {
        // Pinentry says so itself if it cannot use it.
        tracing::debug!(terminal, %error, "what was typed is not forgotten");
    }
}

/// The terminal to ask on.
fn terminal(config: &Config) -> Option<String> {
    config.tty.clone().or_else(|| environment_of("GPG_TTY"))
}

fn environment_of(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What pinentry is told of the screen. The texts are UTF-8, so a locale that is not must not
/// reach it.
fn options(config: &Config) -> Vec<String> {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(environment_of)
        .filter(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.ends_with("utf-8") || locale.ends_with("utf8")
        })
        .unwrap_or_else(|| "C.UTF-8".into());
    let display = config.display.clone().or_else(|| environment_of("DISPLAY"));
    let mut options = vec!["grab".to_owned()];
    options.extend(terminal(config).map(|tty| format!("ttyname={tty}")));
    options.extend(environment_of("TERM").map(|term| format!("ttytype={term}")));
    options.push(format!("lc-ctype={locale}"));
    options.extend(display.map(|display| format!("display={display}")));
    options
}

/// Reads to the end, so that the writer never blocks, and keeps the beginning.
async fn drain(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let room = LAST_WORDS - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    kept
}
