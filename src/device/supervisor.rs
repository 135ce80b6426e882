//! The life of one module: its worker is started, logged in, watched, and replaced.
//!
//! One task per module owns the worker. It publishes a [`View`] of what it has; those who sign
//! read the view and call the worker through its link directly, so no signature passes through
//! this task. What changes the life of the worker (unlock, look again, replace) comes in as a
//! [`Command`].
//!
//! A worker that ends is replaced at once if it had been of use, otherwise after a delay that
//! doubles from 0.1 s to 30 s, with jitter so that several modules do not start in step: a library
//! that crashes at every start must not eat the machine, and a pcscd that restarts is back within
//! a second. A new worker gets the PINs that worked before, through the [`PinGuard`].
//!
//! A token that came is logged in, one that left is absent, one that lost its login gets it back,
//! before anybody calls: the slots are looked at when the library tells of a change
//! (`C_WaitForSlotEvent`, in a thread of the worker's own), and every second where it does not. As
//! libraries tell of a change once, or of slots of their start only, those that tell are looked at
//! every five seconds as well. Some block everything else while they wait: after a worker that told
//! of its slots was killed over a hung call, the next one is not asked to.
//!
//! SoftHSM2, and smart-card stacks too, see new tokens only after a restart of the library. So a
//! call that names an absent token has the slots looked at, and then, at most once in 5 s, the
//! worker replaced after the calls under way are done. Without a call the worker is replaced for
//! an absent token as long as no other token is there to be disturbed, at growing intervals.
//!
//! A token that a person releases is left alone: its worker ends, which is the only way in which
//! every library lets go of a device. Another is started at once where other tokens need it, and
//! touches the released one no more than to see that it is there; otherwise none is, until a
//! request names the token. See `release`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use tokio::io::AsyncReadExt;
use tokio::net::UnixDatagram;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command as Process};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::administer::{Order, PinSettled};
use super::catalogue::{Reason, TokenState, TokenView, overlap};
use super::config::{LoginPolicy, ModuleConfig, PinSource, TokenConfig};
use super::error::DeviceError;
use super::frames::{
    self, Answer, Class, Failure, FromWorker, LastTry, LoadFailure, LoginOutcome, ModuleInfo,
    PACKET_MAX, PROTOCOL, PinBytes, ToWorker, UnlockOutcome, Verb,
};
use super::keepalive::Keepalives;
use super::link::{CallError, End, Link, receive};
use super::pin_check::PinCheck;
use super::pin_guard::{self, PinGuard, PinOrigin, Settled};
use super::pins::Pins;
use super::release;
use super::sandbox::{Confinement, SandboxLevel, SandboxStatus};
use crate::base::backoff::doubling;
use crate::base::pkcs11::{TokenId, TokenUri};
use crate::base::secret::Pin;
use crate::telemetry::metrics::metrics;

/// A running worker is replaced at most this often for the sake of an absent token, and so for a
/// return value that means an unwell library: some libraries answer a caller's mistake with one.
pub(super) const RENEW_EVERY: Duration = Duration::from_secs(5);

/// How often the slots are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often where the library tells of changes.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// However often a library tells of changes, there is this much between two looks.
const LOOKS_APART: Duration = Duration::from_millis(100);

/// The longest time between two workers that are started only to look for absent tokens.
const SEARCH_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// After a login that failed without a try being spent, the next one is made no sooner.
const LOG_IN_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How long a login waits for one that is under way elsewhere.
const TURN_WITHIN: Duration = Duration::from_secs(1);

/// The first and the longest delay before a worker that was of no use is replaced.
const DELAYS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Callers wait through a delay up to this; past it they are told to come back.
const DELAY_WAITED_OUT: Duration = Duration::from_millis(250);

/// How long a person may take to type a PIN on a device.
pub(super) const BY_HAND: Duration = Duration::from_secs(60);

/// How long the exit status of a killed worker is waited for. A process stuck in the kernel ends
/// when the kernel lets go of it, and nobody waits for that.
const REAP_WITHIN: Duration = Duration::from_secs(1);

/// So many workers of one module may be stuck in the kernel before no more is started: each holds
/// the library's memory, and the next would get stuck as well.
const STUCK_MAX: usize = 4;

/// How long the output of a worker that ended is waited for.
const OUTPUT_WITHIN: Duration = Duration::from_millis(100);

/// A worker that lived this long was of use, even if nobody called.
const LIVED: Duration = Duration::from_secs(5);

/// The most bytes of a line of a library's output that are logged.
const LINE_MAX: usize = 1024;

/// How many lines of a library's output are kept as last words.
const LAST_WORDS: usize = 4;

/// What there is of a module now.
#[derive(Clone)]
pub(super) struct View {
    pub phase: Phase,
    /// What the library said of itself, when it was last loaded.
    pub library: Option<ModuleInfo>,
    /// How its worker is confined.
    pub sandbox: Option<SandboxStatus>,
    /// In the order of the configuration.
    pub tokens: Vec<TokenView>,
}

#[derive(Clone)]
pub(super) enum Phase {
    /// A worker is being started.
    Starting,
    /// It is up.
    Up(Arc<Link>),
    /// All its tokens are released, and nobody needs it.
    AtRest,
    /// It could not be started, or was of no use.
    Down { reason: DeviceError, until: Instant },
    /// Nothing is started any more.
    Stopped,
}

/// What the supervisor can be asked.
pub(super) enum Command {
    /// Look whether an absent token that `wanted` may select has come.
    LookAgain {
        wanted: TokenUri,
        done: oneshot::Sender<()>,
    },
    /// Log in with the PIN that worked before, unless that happened after `seen`, when the token
    /// was seen logged out.
    LogInAgain {
        token: TokenId,
        seen: Instant,
        done: oneshot::Sender<()>,
    },
    /// Log in with a PIN that a person gave, or types on the device.
    Unlock {
        token: TokenId,
        pin: Option<Pin>,
        last_try: LastTry,
        done: oneshot::Sender<Result<UnlockOutcome, DeviceError>>,
    },
    /// Ask the token whether a PIN is its own, without touching the login that is there.
    CheckPin {
        check: PinCheck,
        done: oneshot::Sender<Result<(), DeviceError>>,
    },
    /// A PIN was refused outside this task, or is not tried any more.
    PinRefused { token: TokenId, error: DeviceError },
    /// Make a token, or set a PIN.
    Administer(Box<Order>),
    /// How that ended for the PIN.
    PinSettled(PinSettled),
    /// Replace the worker once the calls under way are done: a token was made.
    Renew,
    /// Let go of a token until somebody needs it.
    Release {
        token: TokenId,
        done: oneshot::Sender<()>,
    },
    /// Take up a released token: somebody needs it.
    TakeUp {
        token: TokenId,
        done: oneshot::Sender<()>,
    },
    /// The module answered that it is unwell: replace the worker behind `link`.
    Replace { link: Arc<Link>, why: String },
}

/// The task's state.
pub(super) struct Supervisor {
    pub config: ModuleConfig,
    pub worker: PathBuf,
    pub guard: Arc<PinGuard>,
    pub view: Arc<watch::Sender<Arc<View>>>,
    pub commands: mpsc::Receiver<Command>,
    pub stop: watch::Receiver<bool>,
    /// Counts what callers can see.
    pub changed: watch::Sender<u64>,
    /// PINs that worked in this process, for the next worker.
    pub pins: Pins,
    pub logged_in: HashMap<TokenId, Instant>,
    pub login_failed: HashMap<TokenId, Instant>,
    pub looked_again: Option<Instant>,
    /// How long the next worker that looks for absent tokens may search in vain.
    pub search: Duration,
    pub renewed: Option<Instant>,
    /// Whether the next worker asks the library to tell of tokens that come and leave.
    pub slot_events: bool,
    /// Those who wait for a token, until the next worker is up.
    pub looking: Vec<oneshot::Sender<()>>,
    /// Workers that were killed and have not ended.
    pub stuck: Arc<AtomicUsize>,
    /// Tokens that are left to other programs.
    pub released: HashSet<TokenId>,
    /// A command that came while there was no worker to serve it.
    pub postponed: Option<Command>,
}

/// What a worker says first: what the library is, and how the worker is confined.
type Greeting = (ModuleInfo, SandboxStatus);

/// A running worker, and the tasks that serve it.
pub(super) struct Worker {
    link: Arc<Link>,
    started: Instant,
    tasks: JoinSet<()>,
}

/// Why a worker is given up.
enum Leave {
    Stop,
    LookAgain,
    /// A token is released; whoever asked is told once it is.
    Release(oneshot::Sender<()>),
    Ended(String),
}

impl Supervisor {
    /// Takes over the PINs that worked with the same library, of tokens that are still used.
    pub fn inherit(&self, pins: &Pins) {
        self.pins.take_over(pins, |token| {
            let uri = super::uri_of(token);
            let mut configured = self.config.token.iter();
            configured.any(|config| overlap(&config.uri, &uri))
        });
    }

    /// Runs until told to stop.
    pub async fn run(mut self) {
        let mut useless = 0_u32;
        let mut stop = self.stop.clone();
        loop {
            self.publish_phase(Phase::Starting);
            let Some(started) = self.start(&mut stop).await else {
                break;
            };
            let reason = match started {
                Ok(mut worker) => {
                    for waiting in self.looking.drain(..) {
                        let _gone = waiting.send(());
                    }
                    let leave = self.serve(&worker, &mut stop).await;
                    let sessions = &metrics().module(&self.config.name).sessions;
                    sessions.add(-i64::from(self.config.thread_count()));
                    // Nobody may find the old link in the view once it takes no calls.
                    self.publish_phase(Phase::Starting);
                    let of_use = worker.link.served() || worker.started.elapsed() >= LIVED;
                    let reason = match leave {
                        Leave::Stop => {
                            worker.retire().await;
                            break;
                        }
                        Leave::LookAgain => {
                            metrics().module(&self.config.name).respawns.increment();
                            worker.retire().await;
                            continue;
                        }
                        Leave::Release(done) => {
                            worker.retire().await;
                            if self.rest(done, &mut stop).await.is_stop() {
                                break;
                            }
                            continue;
                        }
                        Leave::Ended(reason) => reason,
                    };
                    worker.retire().await;
                    metrics().module(&self.config.name).respawns.increment();
                    tracing::warn!(module = self.config.name, reason, "worker replaced");
                    if of_use {
                        useless = 0;
                        continue;
                    }
                    DeviceError::ModuleUnusable {
                        module: self.config.name.clone(),
                        reason,
                    }
                }
                Err(reason) => {
                    tracing::warn!(
                        module = self.config.name,
                        reason = chain(&reason),
                        "worker not started"
                    );
                    reason
                }
            };
            useless = useless.saturating_add(1);
            for waiting in self.looking.drain(..) {
                let _gone = waiting.send(());
            }
            if self.pause(useless, reason, &mut stop).await.is_stop() {
                break;
            }
        }
        self.publish_phase(Phase::Stopped);
    }

    /// Waits before the next start; commands are answered meanwhile.
    async fn pause(
        &mut self,
        useless: u32,
        reason: DeviceError,
        stop: &mut watch::Receiver<bool>,
    ) -> Pause {
        let delay = delay(
            useless,
            f64::from(u16::from_le_bytes(crate::base::ids::random())) / 65536.0,
        );
        let until = Instant::now() + delay;
        if delay > DELAY_WAITED_OUT {
            self.publish_phase(Phase::Down {
                reason: reason.clone(),
                until,
            });
        }
        loop {
            tokio::select! {
                // Back-off with jitter: nothing tells when a module would start again.
                () = tokio::time::sleep_until(until) => return Pause::Over,
                () = stopped(stop) => return Pause::Stop,
                command = next(&mut self.postponed, &mut self.commands) => match command {
                    Some(Command::Unlock { done, .. }) => {
                        let _gone = done.send(Err(reason.clone()));
                    }
                    Some(Command::CheckPin { done, .. }) => {
                        let _gone = done.send(Err(reason.clone()));
                    }
                    Some(
                        Command::LookAgain { done, .. }
                        | Command::LogInAgain { done, .. }
                        // Without a worker there is nothing to let go of.
                        | Command::Release { done, .. },
                    ) => {
                        let _gone = done.send(());
                    }
                    Some(Command::TakeUp { token, done }) => {
                        self.released.remove(&token);
                        let _gone = done.send(());
                    }
                    Some(Command::Administer(order)) => order.refuse(reason.clone()),
                    Some(Command::PinSettled(PinSettled { token, pin })) => {
                        // The next worker logs in with it.
                        if let Some(pin) = pin {
                            self.pins.insert(token, pin);
                        }
                    }
                    // The next worker is a new one.
                    Some(
                        Command::Renew | Command::Replace { .. } | Command::PinRefused { .. },
                    ) => {}
                    None => return Pause::Stop,
                }
            }
        }
    }

    pub(super) fn publish_phase(&self, phase: Phase) {
        self.view.send_modify(|view| {
            let mut next = View::clone(view);
            next.phase = phase;
            *view = Arc::new(next);
        });
        self.count_change();
    }

    pub(super) fn publish_tokens(&self, tokens: Vec<TokenView>) {
        let changed = self.view.send_if_modified(|view| {
            let same = view.tokens.len() == tokens.len()
                && tokens
                    .iter()
                    .zip(&view.tokens)
                    .all(|(new, old)| new.looks_like(old));
            if !same {
                let mut next = View::clone(view);
                next.tokens = tokens;
                *view = Arc::new(next);
            }
            !same
        });
        if changed {
            self.count_change();
        }
    }

    fn count_change(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Starts a worker, logs in where it can, and publishes the result. `None`: told to stop.
    ///
    /// A login that was begun is seen to its end, which its deadline bounds: one left half way
    /// would block the PIN until a person comes.
    async fn start(
        &mut self,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Result<Worker, DeviceError>> {
        let arrived = tokio::select! {
            arrived = self.arrive() => arrived,
            () = stopped(stop) => return None,
        };
        let (worker, greeting, tokens) = match arrived {
            Ok(arrived) => arrived,
            Err(error) => return Some(Err(error)),
        };
        Some(self.take_up(worker, greeting, tokens).await)
    }

    /// A worker that has loaded the library, and the tokens it sees.
    async fn arrive(&mut self) -> Result<(Worker, Greeting, Vec<TokenView>), DeviceError> {
        super::hygiene::check(&self.config).map_err(|reason| DeviceError::ModuleUnusable {
            module: self.config.name.clone(),
            reason,
        })?;
        let stuck = self.stuck.load(Ordering::Relaxed);
        if stuck >= STUCK_MAX {
            return Err(DeviceError::ModuleUnusable {
                module: self.config.name.clone(),
                reason: format!(
                    "{stuck} killed workers are stuck in the kernel; unplug the device, or restart \
                     the computer"
                ),
            });
        }
        let (worker, greeting) = self.spawn().await?;
        let tokens = self.find_tokens(&worker.link).await;
        self.doubt_slot_events(&worker.link);
        Ok((worker, greeting, tokens?))
    }

    async fn take_up(
        &mut self,
        worker: Worker,
        (library, sandbox): Greeting,
        mut tokens: Vec<TokenView>,
    ) -> Result<Worker, DeviceError> {
        let link = worker.link.clone();
        self.forget_releases_of_absent(&tokens);
        for token in &mut tokens {
            self.log_in_on_our_own(&link, token).await?;
        }
        metrics()
            .module(&self.config.name)
            .sessions
            .add(self.config.thread_count().into());
        tracing::info!(
            module = self.config.name,
            library = library.description,
            version = library.version,
            sandbox = sandbox.profile.name(),
            "worker up"
        );
        if sandbox.level == SandboxLevel::Degraded {
            tracing::warn!(
                module = self.config.name,
                sandbox = sandbox.profile.name(),
                missing = sandbox.missing.join("; "),
                "the worker is not confined as it should be"
            );
        }
        link.count_from_here();
        self.view.send_replace(Arc::new(View {
            phase: Phase::Up(link),
            library: Some(library),
            sandbox: Some(sandbox),
            tokens,
        }));
        self.count_change();
        Ok(worker)
    }

    pub(super) async fn spawn(&self) -> Result<(Worker, Greeting), DeviceError> {
        let (socket, child, output) = self.exec().map_err(|error| DeviceError::WorkerStart {
            path: self.worker.clone(),
            source: Arc::new(error),
        })?;
        let words = Arc::new(Mutex::new(VecDeque::new()));
        let mut tasks = JoinSet::new();
        let log = tokio::spawn(log_output(self.config.name.clone(), output, words.clone()));
        let greeted = tokio::time::timeout(self.config.call_timeout, self.greet(&socket)).await;
        let threads = usize::from(self.config.thread_count());
        let link = Link::new(socket, threads, metrics().module(&self.config.name));
        tokio::spawn(reap(child, link.clone(), log, words, self.stuck.clone()));
        let failed = match greeted {
            Ok(Ok(Some(greeting))) => {
                tasks.spawn(link.clone().write());
                tasks.spawn(link.clone().read());
                tasks.spawn(link.clone().watch_deadlines());
                let worker = Worker {
                    link,
                    started: Instant::now(),
                    tasks,
                };
                return Ok((worker, greeting));
            }
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(DeviceError::Timeout {
                token: format!("module {}", self.config.name),
                function: "C_Initialize",
                after: self.config.call_timeout,
            }),
        };
        // Without a hello the worker is of no use. If it ended on its own, its words say why.
        if failed.is_some() {
            link.close(End::Retired);
        }
        let end = tokio::time::timeout(REAP_WITHIN, link.ended()).await;
        Err(failed.unwrap_or_else(|| DeviceError::WorkerDied {
            module: self.config.name.clone(),
            function: "C_Initialize",
            last_words: match end {
                Ok(End::Died(words)) => words,
                Ok(_) | Err(_) => "it said nothing".into(),
            },
        }))
    }

    /// Starts the process with the socket as descriptor 0 and its output in a pipe.
    fn exec(&self) -> std::io::Result<(UnixDatagram, Child, pipe::Receiver)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let (output, input) = std::io::pipe()?;
        let child = Process::new(&self.worker)
            .arg(&self.config.name)
            .env_clear()
            // A provider of OpenSSL that is itself a PKCS#11 client would enter the module again.
            .env("OPENSSL_CONF", "/dev/null")
            .envs(&self.config.environment)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::from(input.try_clone()?))
            .stderr(Stdio::from(input))
            .kill_on_drop(true)
            .spawn()?;
        let output = pipe::Receiver::from_owned_fd(output.into())?;
        // A type for datagram sockets does for SEQPACKET: both send and receive whole packets.
        let ours = UnixDatagram::from_std(ours.into())?;
        Ok((ours, child, output))
    }

    /// Says hello. `None`: the worker hung up.
    async fn greet(&self, socket: &UnixDatagram) -> Result<Option<Greeting>, DeviceError> {
        let broken = |reason: String| DeviceError::Protocol {
            module: self.config.name.clone(),
            reason,
        };
        let mut packet = Vec::new();
        let hello = ToWorker::Hello {
            protocol: PROTOCOL,
            module: self.config.path.to_string_lossy().into_owned(),
            threads: self.config.thread_count(),
        };
        let prepare = ToWorker::Prepare {
            confinement: Confinement::of(&self.config),
            parameters: self.config.init_args.clone(),
            slot_events: self.slot_events,
        };
        for frame in [hello, prepare] {
            frames::append(&mut packet, &frame).map_err(|error| broken(error.to_string()))?;
        }
        if send(socket, &packet, SendFlags::NOSIGNAL).is_err() {
            return Ok(None);
        }
        let mut buffer = vec![0; PACKET_MAX];
        let received = receive(socket, &mut buffer).await;
        let Some(length) = received.map_err(|error| broken(error.to_string()))? else {
            return Ok(None);
        };
        let mut frames = frames::split(&buffer[..length]);
        let mut next = || {
            frames
                .next()
                .unwrap_or(Err(frames::FrameError::Truncated))
                .and_then(frames::decode)
                .map_err(|error| broken(error.to_string()))
        };
        match next()? {
            FromWorker::Hello {
                protocol: PROTOCOL,
                module,
            } => match next()? {
                FromWorker::Confined(sandbox) => Ok(Some((module, sandbox))),
                _ => Err(broken("it does not say how it is confined".into())),
            },
            FromWorker::Hello { protocol, .. } => Err(broken(format!(
                "it speaks protocol {protocol}, not {PROTOCOL}"
            ))),
            FromWorker::LoadFailed { failure, .. } => Err(self.load_error(failure)),
            FromWorker::Reply(_) | FromWorker::Confined(_) | FromWorker::Slots(_) => {
                Err(broken("it speaks before its hello".into()))
            }
        }
    }

    fn load_error(&self, failure: LoadFailure) -> DeviceError {
        let module = self.config.name.clone();
        match failure {
            LoadFailure::Missing => DeviceError::ModuleMissing {
                module,
                path: self.config.path.clone(),
            },
            LoadFailure::Unloadable(reason) => DeviceError::ModuleUnusable { module, reason },
            LoadFailure::Refused { function, code } => DeviceError::ModuleUnusable {
                module,
                reason: format!("{function} failed with {code}"),
            },
            LoadFailure::Protocol(protocol) => DeviceError::Protocol {
                module,
                reason: format!("it speaks protocol {protocol}, not {PROTOCOL}"),
            },
        }
    }

    /// The configured tokens as the worker sees them now, before any login.
    async fn find_tokens(&self, link: &Link) -> Result<Vec<TokenView>, DeviceError> {
        let name = &self.config.name;
        match link.call(Verb::Tokens, self.config.call_timeout).await {
            Ok(Answer::Tokens(present)) => Ok(self
                .config
                .token
                .iter()
                .map(|token| TokenView::find(name, &token.uri, &present).with_login(token.login))
                .collect()),
            Ok(_) => Err(unexpected(name)),
            Err(error) => Err(self.call_error(
                error,
                &format!("module {name}"),
                "C_GetTokenInfo",
                self.config.call_timeout,
            )),
        }
    }

    fn call_error(
        &self,
        error: CallError,
        token: &str,
        function: &'static str,
        after: Duration,
    ) -> DeviceError {
        call_error(&self.config.name, error, token, token, function, after)
    }

    /// Logs in without a person: with the PIN that worked before, or from the source. Only the
    /// end of the worker is an error; everything else is a state of the token.
    pub(super) async fn log_in_on_our_own(
        &mut self,
        link: &Link,
        token: &mut TokenView,
    ) -> Result<(), DeviceError> {
        let Some(info) = &token.found else {
            return Ok(());
        };
        let (number, flags) = (info.number, info.flags);
        let settle = |token: &mut TokenView, state, reason: Option<Reason>| {
            token.state = state;
            token.reason = reason;
        };
        let other = |text: &str| Some(Reason::Other(text.to_owned()));
        if self.released.contains(&token.id) {
            settle(token, TokenState::Released, other(release::REASON));
            return Ok(());
        }
        if !flags.login_required {
            settle(token, TokenState::Ready, None);
            return Ok(());
        }
        if flags.pin_locked {
            let why = other("too many wrong PINs; set another with `opcert token pin unblock`");
            settle(token, TokenState::LockedOut, why);
            return Ok(());
        }
        if flags.pin_final_try {
            let why = other(
                "one PIN try is left, which is kept for a person: `opcert token unlock --last-try`",
            );
            settle(token, TokenState::FinalTry, why);
            return Ok(());
        }
        if !flags.pin_initialized {
            let why = other("no user PIN is set; set one with `opcert token pin unblock`");
            settle(token, TokenState::Degraded, why);
            return Ok(());
        }
        if flags.protected_path {
            let why = other("its PIN is typed on the device; run `opcert token unlock` first");
            settle(token, TokenState::PinNeeded, why);
            return Ok(());
        }
        let kept = self.pins.get(&token.id);
        let source = self.source_of(token);
        let (pin, origin) = match (kept, source) {
            (Some(pin), _) => (Ok(pin), PinOrigin::Kept),
            (None, Some(source)) => (pin_guard::read_pin(&source), PinOrigin::Source),
            (None, None) => {
                // A window appears when a request needs the token, not because it is there.
                let why = match self.asks(token) {
                    true => other("its PIN is asked for when it is needed"),
                    false => other("no PIN source is configured; run `opcert token unlock`"),
                };
                settle(token, TokenState::PinNeeded, why);
                return Ok(());
            }
        };
        // A PIN of this token that is being given elsewhere has an entry of its own. A person may
        // take long over it, and other tokens of the module do not wait for that.
        let guard = self.guard.clone();
        let turn = tokio::time::timeout(TURN_WITHIN, guard.turn(&token.id)).await;
        let Ok(_turn) = turn else {
            let error = DeviceError::PinUnderWay {
                token: token.id.to_string(),
            };
            let why = Some(Reason::LoginFailed(error));
            settle(token, TokenState::PinNeeded, why);
            return Ok(());
        };
        if let Some(reason) = self.guard.blocked(&token.id, origin).await {
            settle(
                token,
                TokenState::PinNeeded,
                Some(Reason::PinBlocked(reason)),
            );
            return Ok(());
        }
        let tried = match pin {
            Ok(pin) => {
                let given = Given {
                    pin: Some(pin),
                    origin: Some(origin),
                    source: None,
                    last_try: LastTry::Keep,
                };
                self.try_pin(link, &token.id, number, given).await
            }
            Err(error) => Err(error),
        };
        match tried {
            Ok(_) => {
                self.log_out_again(link, token).await;
                settle(token, TokenState::Ready, None);
            }
            Err(error) => {
                if link.end().is_some() || !link.is_open() {
                    return Err(error);
                }
                tracing::warn!(
                    module = self.config.name,
                    token = %token.id,
                    reason = chain(&error),
                    "not logged in"
                );
                self.note_login_failure(token, &error);
            }
        }
        Ok(())
    }

    /// The PIN is known to be right; a token that is logged in for each operation needs no more
    /// now. One that stays logged in is logged out by its next operation.
    async fn log_out_again(&self, link: &Link, token: &TokenView) {
        let Some(info) = &token.found else { return };
        if token.login == LoginPolicy::Session {
            return;
        }
        let verb = Verb::Logout { token: info.number };
        if let Err(error) = link.call(verb, self.config.call_timeout).await {
            tracing::warn!(
                module = self.config.name,
                token = %token.id,
                ?error,
                "not logged out"
            );
        }
    }

    pub(super) fn note_login_failure(&self, token: &mut TokenView, error: &DeviceError) {
        let text = chain(error);
        (token.state, token.reason) = match error {
            DeviceError::PinLocked { .. } => (TokenState::LockedOut, Some(Reason::Other(text))),
            DeviceError::PinFinalTry { .. } => (TokenState::FinalTry, Some(Reason::Other(text))),
            DeviceError::PinWrong { .. } => (TokenState::PinNeeded, Some(Reason::PinBlocked(text))),
            DeviceError::PinBlocked { reason, .. } => (
                TokenState::PinNeeded,
                Some(Reason::PinBlocked(reason.clone())),
            ),
            DeviceError::Pkcs11 { .. }
            | DeviceError::TokenAbsent { .. }
            | DeviceError::Busy { .. }
            | DeviceError::PinRecord { .. } => (
                TokenState::Degraded,
                Some(Reason::LoginFailed(error.clone())),
            ),
            _ => (TokenState::PinNeeded, Some(Reason::Other(text))),
        };
    }

    /// Shows that a PIN of a token was refused.
    fn note_refusal(&self, id: &TokenId, error: &DeviceError) {
        let mut tokens = self.view.borrow().tokens.clone();
        for token in tokens.iter_mut().filter(|token| token.id == *id) {
            self.note_login_failure(token, error);
        }
        self.publish_tokens(tokens);
    }

    /// Where the machine reads a token's PIN; `None` where a person gives it.
    pub(super) fn source_of(&self, token: &TokenView) -> Option<PinSource> {
        let mut configured = self.config.token.iter();
        configured
            .find(|config: &&TokenConfig| config.uri == token.uri)
            .and_then(TokenConfig::source)
            .filter(|source| *source != PinSource::Pinentry)
    }

    fn asks(&self, token: &TokenView) -> bool {
        asks(&self.config, token)
    }

    /// Tries one PIN once.
    async fn try_pin(
        &mut self,
        link: &Link,
        token: &TokenId,
        number: u16,
        given: Given,
    ) -> Result<UnlockOutcome, DeviceError> {
        let Given {
            pin,
            origin,
            source,
            last_try,
        } = given;
        let attempt = self.guard.begin(token, origin).await?;
        let verb = Verb::Login {
            token: number,
            pin: PinBytes::new(pin.as_ref().map_or("", Pin::expose)),
            last_try,
        };
        let name = token.to_string();
        let budget = match &pin {
            Some(_) => self.config.call_timeout,
            None => self.config.call_timeout.max(BY_HAND),
        };
        let outcome = match link.call(verb, budget).await {
            Ok(Answer::Login(outcome)) => outcome,
            Ok(_) => return Err(unexpected(&self.config.name)),
            // The worker answered before it called C_Login, or was not asked: no try is spent.
            Err(
                error @ (CallError::Failed(_)
                | CallError::NotSent
                | CallError::Busy
                | CallError::TooLarge),
            ) => {
                self.guard.settle(attempt, Settled::NotTried).await?;
                return Err(self.call_error(error, &name, "C_Login", budget));
            }
            // Not known: the entry stays.
            Err(error @ CallError::Ended(_)) => {
                self.pins.remove(token);
                return Err(self.call_error(error, &name, "C_Login", budget));
            }
        };
        let (settled, result) = match outcome {
            LoginOutcome::Ok => {
                let settled = match (source, &pin) {
                    (Some(source), Some(pin)) if pin_guard::same(&source, pin) => {
                        Settled::TakenFromSource
                    }
                    (Some(_), Some(_)) => Settled::TakenNotFromSource,
                    _ => Settled::Taken,
                };
                (settled, Ok((UnlockOutcome::Taken, pin)))
            }
            // Whether the PIN is right is not known, so it is not kept.
            LoginOutcome::Already => (
                Settled::NotTried,
                Ok((UnlockOutcome::AlreadyUnlocked, None)),
            ),
            LoginOutcome::Wrong { code } => (
                Settled::Refused(code.clone()),
                Err(DeviceError::PinWrong { token: name, code }),
            ),
            LoginOutcome::Locked => (
                Settled::Refused("CKR_PIN_LOCKED".into()),
                Err(DeviceError::PinLocked { token: name }),
            ),
            LoginOutcome::FinalTry => (
                Settled::NotTried,
                Err(DeviceError::PinFinalTry { token: name }),
            ),
            LoginOutcome::NotTried { code } => (
                Settled::NotTried,
                Err(DeviceError::Pkcs11 {
                    token: name,
                    function: "C_Login".into(),
                    code,
                }),
            ),
            LoginOutcome::Uncertain { code } => (
                Settled::Refused(code.clone()),
                Err(DeviceError::PinWrong { token: name, code }),
            ),
        };
        let result = match result {
            Ok((outcome, taken)) => {
                self.logged_in.insert(token.clone(), Instant::now());
                if let Some(pin) = taken {
                    self.pins.insert(token.clone(), pin);
                }
                Ok(outcome)
            }
            Err(error) => {
                if let Settled::Refused(_) = settled {
                    self.pins.remove(token);
                }
                Err(error)
            }
        };
        self.guard.settle(attempt, settled).await?;
        result
    }

    /// Serves commands until the worker ends or is to be replaced.
    async fn serve(&mut self, worker: &Worker, stop: &mut watch::Receiver<bool>) -> Leave {
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        let mut told = false;
        let mut keepalives = Keepalives::of(&self.config.token);
        loop {
            let command = tokio::select! {
                () = worker.link.closed() => return self.post_mortem(&worker.link).await,
                () = stopped(stop) => return Leave::Stop,
                command = next(&mut self.postponed, &mut self.commands) => command,
                index = keepalives.due() => {
                    self.keep_alive(&worker.link, index).await;
                    continue;
                }
                () = worker.link.slots_changed() => {
                    told = true;
                    look.reset_after(LOOKS_APART.saturating_sub(looked.elapsed()));
                    continue;
                }
                _ = look.tick() => {
                    // The worker looks when it is done with what occupies it.
                    if worker.link.is_occupied() {
                        continue;
                    }
                    if let Some(done) = self.release_idle(&worker.link) {
                        return Leave::Release(done);
                    }
                    let is_due = looked.elapsed() >= LOOK_AT_LEAST_EVERY;
                    if !told && !is_due && worker.link.watches_slots() {
                        continue;
                    }
                    let noticed = match std::mem::take(&mut told) {
                        true => Noticed::Event,
                        false => Noticed::Poll,
                    };
                    looked = Instant::now();
                    match self.look_around(worker, noticed).await {
                        Some(leave) => return leave,
                        None => continue,
                    }
                }
            };
            match command {
                None => return Leave::Stop,
                Some(Command::Replace { link, why }) => {
                    if Arc::ptr_eq(&link, &worker.link) && self.may_renew() {
                        return Leave::Ended(why);
                    }
                }
                Some(Command::PinRefused { token, error }) => self.note_refusal(&token, &error),
                Some(Command::LookAgain { wanted, done }) => {
                    let due = self
                        .looked_again
                        .is_none_or(|last| last.elapsed() >= RENEW_EVERY);
                    let found = self.look_again(&worker.link, Some(&wanted), Noticed::Request);
                    match found.await {
                        Ok(Found::No) if due => {
                            self.looked_again = Some(Instant::now());
                            self.looking.push(done);
                            return Leave::LookAgain;
                        }
                        Ok(Found::Yes | Found::No) | Err(_) => {
                            let _gone = done.send(());
                        }
                    }
                }
                Some(Command::LogInAgain { token, seen, done }) => {
                    let fresh = self.logged_in.get(&token).is_some_and(|last| *last > seen);
                    let failed = match fresh {
                        true => None,
                        false => self.log_in_again(&worker.link, &token).await,
                    };
                    match failed {
                        Some(why) if self.may_renew() => {
                            self.looking.push(done);
                            return Leave::Ended(why);
                        }
                        Some(_) | None => {
                            let _gone = done.send(());
                        }
                    }
                }
                Some(Command::Unlock {
                    token,
                    pin,
                    last_try,
                    done,
                }) => {
                    let link = &worker.link;
                    let result = self.unlock(link, &token, pin, last_try).await;
                    let _gone = done.send(result);
                }
                Some(Command::Administer(order)) => self.administer(*order).await,
                Some(Command::PinSettled(settled)) => {
                    self.pin_settled(&worker.link, settled).await;
                }
                Some(Command::Renew) => return Leave::LookAgain,
                Some(Command::Release { token, done }) => {
                    self.released.insert(token);
                    return Leave::Release(done);
                }
                Some(Command::TakeUp { token, done }) => {
                    self.take_up_again(&worker.link, &token).await;
                    let _gone = done.send(());
                }
                // Whoever asked has left: no worker, and no try, for nobody.
                Some(Command::CheckPin { done, .. }) if done.is_closed() => {}
                Some(Command::CheckPin { check, mut done }) => match self.spawn().await {
                    // Beside this task: a person may have to type on the device.
                    Ok((mut other, _)) => {
                        let (guard, limit) = (self.guard.clone(), self.config.call_timeout);
                        tokio::spawn(async move {
                            let gone = done.closed();
                            let result = check.run(&other.link, &guard, limit, gone).await;
                            let _gone = done.send(result);
                            other.retire().await;
                        });
                    }
                    Err(error) => {
                        let _gone = done.send(Err(error));
                    }
                },
            }
        }
    }

    /// Has a token do something. What is wrong with it shows at the next look, or the next call.
    async fn keep_alive(&self, link: &Link, index: usize) {
        let view = self.view.borrow().clone();
        let token = view.tokens.get(index);
        let found = token.filter(|token| token.state == TokenState::Ready);
        let Some(info) = found.and_then(|token| token.found.as_ref()) else {
            return;
        };
        if link.is_occupied() {
            return;
        }
        let verb = Verb::KeepAlive { token: info.number };
        if let Err(error) = link.call(verb, self.config.call_timeout).await {
            tracing::debug!(module = self.config.name, ?error, "not kept alive");
        }
    }

    /// Why a link is closed. Its worker's exit status comes a moment later than its hang-up.
    async fn post_mortem(&mut self, link: &Link) -> Leave {
        let end = link.ended().await;
        self.doubt_slot_events(link);
        Leave::Ended(match end {
            End::Died(words) => words,
            End::Expired => "a call did not return in time".into(),
            End::Protocol(reason) => format!("it broke the protocol: {reason}"),
            End::Retired => "it was retired".into(),
        })
    }

    /// A call hung while the library was waited for: perhaps it waits with a lock held, so the next
    /// worker does without. Where one without hangs as well, that was not why.
    fn doubt_slot_events(&mut self, link: &Link) {
        if !self.config.slot_events || link.end() != Some(End::Expired) {
            return;
        }
        self.slot_events = !link.watches_slots();
        if !self.slot_events {
            tracing::warn!(
                module = self.config.name,
                "a call hung while the library watched its slots; they are polled from now on"
            );
        }
    }

    /// Looks at the slots though nobody called.
    async fn look_around(&mut self, worker: &Worker, noticed: Noticed) -> Option<Leave> {
        match self.look_again(&worker.link, None, noticed).await {
            Ok(Found::Yes) => {
                self.search = RENEW_EVERY;
                None
            }
            Ok(Found::No) => {
                let view = self.view.borrow().clone();
                let disturbs = view.tokens.iter().any(|token| token.found.is_some());
                if disturbs || worker.started.elapsed() < self.search {
                    return None;
                }
                self.search = (self.search * 2).min(SEARCH_AT_LEAST_EVERY);
                Some(Leave::LookAgain)
            }
            Err(error @ DeviceError::Pkcs11 { .. }) if self.may_renew() => {
                Some(Leave::Ended(error.to_string()))
            }
            // The next look may bring more.
            Err(_) => None,
        }
    }

    /// Looks at the slots again; tokens that were logged in stay so. Whether all that are `wanted`
    /// are there: to find others is not worth a new worker.
    async fn look_again(
        &mut self,
        link: &Link,
        wanted: Option<&TokenUri>,
        noticed: Noticed,
    ) -> Result<Found, DeviceError> {
        let before = self.view.borrow().tokens.clone();
        let mut tokens = self.find_tokens(link).await?;
        self.forget_releases_of_absent(&tokens);
        for token in &mut tokens {
            let known = before
                .iter()
                .find(|known| known.id == token.id && known.found.is_some());
            if token.found.is_some() && known.is_none() {
                self.note_change(&token.id, "token came", noticed);
            }
            match known {
                Some(known) if known.is_settled(token) => {
                    token.state = known.state;
                    token.reason = known.reason.clone();
                }
                _ => {
                    self.log_in_on_our_own(link, token).await?;
                    // A refusal changes the flags itself, and nobody has given another PIN since.
                    let refused = known.map(|known| &known.reason);
                    let is_told = matches!(token.reason, Some(Reason::Other(_)));
                    if let Some(Some(Reason::PinBlocked(reason))) = refused
                        && token.state == TokenState::PinNeeded
                        && is_told
                    {
                        token.reason = Some(Reason::PinBlocked(reason.clone()));
                    }
                }
            }
        }
        for gone in before.iter().filter(|known| known.found.is_some()) {
            let mut still = tokens.iter().filter(|token| token.found.is_some());
            if !still.any(|token| token.id == gone.id) {
                self.note_change(&gone.id, "token left", noticed);
            }
        }
        let missing = tokens
            .iter()
            .filter(|token| token.found.is_none())
            .any(|token| wanted.is_none_or(|wanted| overlap(wanted, &token.uri)));
        self.publish_tokens(tokens);
        Ok(if missing { Found::No } else { Found::Yes })
    }

    fn note_change(&self, token: &TokenId, what: &str, noticed: Noticed) {
        let noticed = noticed.name();
        tracing::info!(module = self.config.name, %token, noticed, "{what}");
        let cells = metrics().module(&self.config.name);
        cells.token_changes.of(noticed).increment();
    }

    /// Whether a running worker may be replaced now; if so, not again for a while.
    fn may_renew(&mut self) -> bool {
        let due = self
            .renewed
            .is_none_or(|last| last.elapsed() >= RENEW_EVERY);
        if due {
            self.renewed = Some(Instant::now());
        }
        due
    }

    /// Logs in after the login was lost. Says why if the library failed before the PIN reached
    /// the token: another worker may do better.
    async fn log_in_again(&mut self, link: &Link, id: &TokenId) -> Option<String> {
        let just_failed = self
            .login_failed
            .get(id)
            .is_some_and(|last| last.elapsed() < LOG_IN_AGAIN_AFTER);
        if just_failed {
            return None;
        }
        let mut tokens = self.view.borrow().tokens.clone();
        let mut failed = None;
        for token in tokens.iter_mut().filter(|token| token.id == *id) {
            if let Err(error) = self.log_in_on_our_own(link, token).await {
                self.note_login_failure(token, &error);
            }
            match &token.reason {
                // Another worker would wait as well.
                Some(Reason::LoginFailed(DeviceError::PinUnderWay { .. })) | None => {}
                Some(Reason::LoginFailed(error)) => {
                    self.login_failed.insert(id.clone(), Instant::now());
                    failed = Some(format!("login failed: {error}"));
                }
                Some(Reason::PinBlocked(_) | Reason::Other(_)) => {}
            }
        }
        self.publish_tokens(tokens);
        failed
    }

    /// The same once the slots were looked at: a PIN has changed, and perhaps flags.
    pub(super) async fn look_and_log_in(
        &mut self,
        link: &Link,
        id: &TokenId,
    ) -> Result<(), DeviceError> {
        self.look_again(link, None, Noticed::Request).await?;
        self.log_in_again(link, id).await;
        Ok(())
    }

    /// Tries a person's PIN, once, whatever happened before.
    async fn unlock(
        &mut self,
        link: &Link,
        id: &TokenId,
        pin: Option<Pin>,
        last_try: LastTry,
    ) -> Result<UnlockOutcome, DeviceError> {
        let pin = pin.map(pin_guard::checked).transpose()?;
        let absent = || DeviceError::TokenAbsent {
            token: id.to_string(),
        };
        self.released.remove(id);
        // The flags as they are now: somebody else may have spent tries.
        self.look_again(link, None, Noticed::Request).await?;
        let mut tokens = self.view.borrow().tokens.clone();
        let token = tokens
            .iter_mut()
            .find(|token| token.id == *id)
            .ok_or_else(absent)?;
        let info = token.found.as_ref().ok_or_else(absent)?;
        let number = info.number;
        let pin = match pin {
            // The device asks, whatever was typed elsewhere.
            _ if info.flags.protected_path => None,
            Some(pin) => Some(pin),
            None => {
                return Err(DeviceError::PinNeeded {
                    token: id.to_string(),
                });
            }
        };
        // A source that cannot be read is not known to be stale.
        let source = self
            .source_of(token)
            .and_then(|source| pin_guard::read_pin(&source).ok());
        let given = Given {
            pin,
            origin: None,
            source,
            last_try,
        };
        let guard = self.guard.clone();
        let _turn = guard.turn(id).await;
        let result = self.try_pin(link, id, number, given).await;
        match &result {
            Ok(_) => {
                self.log_out_again(link, token).await;
                token.state = TokenState::Ready;
                token.reason = None;
            }
            Err(error) => self.note_login_failure(token, error),
        }
        self.publish_tokens(tokens);
        result
    }
}

/// A PIN to be tried.
struct Given {
    /// `None` where it is typed on the device.
    pin: Option<Pin>,
    /// Where it comes from; `None` for a person.
    origin: Option<PinOrigin>,
    /// The PIN of the configured source, where a person gave the other.
    source: Option<Pin>,
    last_try: LastTry,
}

/// Whether every wanted token is there.
enum Found {
    Yes,
    No,
}

/// What made the slots be looked at.
#[derive(Clone, Copy)]
enum Noticed {
    /// The library told of a change.
    Event,
    /// It was time.
    Poll,
    /// Somebody named a token that was not there.
    Request,
}

impl Noticed {
    fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Poll => "poll",
            Self::Request => "request",
        }
    }
}

/// How a pause ended.
#[derive(Clone, Copy)]
pub(super) enum Pause {
    Over,
    Stop,
}

impl Pause {
    fn is_stop(&self) -> bool {
        matches!(self, Self::Stop)
    }
}

impl Drop for Worker {
    /// Ends the process, also where a start was given up half way.
    fn drop(&mut self) {
        self.link.close(End::Retired);
    }
}

impl Worker {
    /// Its socket.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Lets the calls under way finish, then ends the worker.
    pub async fn retire(&mut self) {
        self.link.drain().await;
        self.link.close(End::Retired);
        self.tasks.shutdown().await;
    }
}

/// The next command, one that was postponed first.
pub(super) async fn next(
    postponed: &mut Option<Command>,
    commands: &mut mpsc::Receiver<Command>,
) -> Option<Command> {
    match postponed.take() {
        Some(command) => Some(command),
        None => commands.recv().await,
    }
}

/// Returns once there is to be an end.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the handle is gone, and with it everybody who could call.
    let _gone = stop.wait_for(|stop| *stop).await;
}

/// Whether a person is asked for the token's PIN when it is needed.
pub(super) fn asks(config: &ModuleConfig, token: &TokenView) -> bool {
    config
        .token
        .iter()
        .any(|known| known.uri == token.uri && known.source() == Some(PinSource::Pinentry))
}

/// The delay before a start after `useless` workers in a row; `random` is in 0 to 1.
fn delay(useless: u32, random: f64) -> Duration {
    doubling(i64::from(useless.max(1)), DELAYS.0, DELAYS.1).mul_f64(0.75 + random / 2.0)
}

/// Ends a worker whose link is closed and waits for it, without ever holding up anybody.
async fn reap(
    mut child: Child,
    link: Arc<Link>,
    log: JoinHandle<()>,
    words: Arc<Mutex<VecDeque<String>>>,
    stuck: Arc<AtomicUsize>,
) {
    let ended = tokio::select! {
        status = child.wait() => Some(status),
        () = link.closed() => {
            // An error means that it has ended by itself.
            let _ended = child.start_kill();
            tokio::time::timeout(REAP_WITHIN, child.wait()).await.ok()
        }
    };
    // The output ends with the process, unless a child of the library's holds on to it.
    let _last_lines = tokio::time::timeout(OUTPUT_WITHIN, log).await;
    let status = match &ended {
        Some(Ok(status)) => describe(*status),
        Some(Err(error)) => format!("its exit status is not known: {error}"),
        None => "it does not end, it is stuck in the kernel".into(),
    };
    let output: Vec<String> = words
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .cloned()
        .collect();
    link.close(End::Died(if output.is_empty() {
        status
    } else {
        format!("{status}; its last output: {}", output.join(" / "))
    }));
    if ended.is_none() {
        stuck.fetch_add(1, Ordering::Relaxed);
        // Whatever comes of it, the process must not stay a zombie.
        let _status = child.wait().await;
        stuck.fetch_sub(1, Ordering::Relaxed);
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with status {code}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => "it ended".into(),
    }
}

/// Logs what a library prints, line by line, and keeps the last lines.
async fn log_output(
    module: String,
    mut output: pipe::Receiver,
    words: Arc<Mutex<VecDeque<String>>>,
) {
    let mut line = Vec::new();
    let mut buffer = [0; 1024];
    // An error ends the output just as its end does.
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        for &byte in &buffer[..length] {
            if byte == b'\n' {
                keep_line(&module, &mut line, &words);
            } else if line.len() < LINE_MAX {
                line.push(byte);
            }
        }
    }
    keep_line(&module, &mut line, &words);
}

fn keep_line(module: &str, line: &mut Vec<u8>, words: &Mutex<VecDeque<String>>) {
    let text = scrub(line);
    line.clear();
    if text.is_empty() {
        return;
    }
    tracing::info!(module, line = text, "library output");
    let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
    if words.len() == LAST_WORDS {
        words.pop_front();
    }
    words.push_back(text);
}

/// Vendor output as text that cannot move a cursor or fake a log line.
fn scrub(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .trim_end()
        .chars()
        .map(|letter| {
            if letter.is_control() {
                '\u{fffd}'
            } else {
                letter
            }
        })
        .collect()
}

/// A call's failure as callers see it. `subject` is what a missing or taken key is called.
pub(super) fn call_error(
    module: &str,
    error: CallError,
    token: &str,
    subject: &str,
    function: &'static str,
    after: Duration,
) -> DeviceError {
    let (module, token, key) = (module.to_owned(), token.to_owned(), subject.to_owned());
    match error {
        CallError::Failed(failure) => match failure {
            Failure::Pkcs11 {
                class: Class::Gone, ..
            }
            | Failure::TokenGone => DeviceError::TokenAbsent { token },
            Failure::Pkcs11 { function, code, .. } => DeviceError::Pkcs11 {
                token,
                function,
                code,
            },
            Failure::LoggedOut | Failure::PinWanted => DeviceError::PinNeeded { token },
            Failure::KeyMissing => DeviceError::KeyMissing { key },
            Failure::KeyAmbiguous => DeviceError::KeyAmbiguous { key },
            Failure::KeyExists => DeviceError::KeyExists { key },
            Failure::KeyChanged => DeviceError::KeyChanged { key },
            Failure::KeyType => DeviceError::Unsupported {
                token,
                what: format!("this with {key}, which is of another type"),
            },
            Failure::Undecryptable => DeviceError::Undecryptable { key },
            Failure::InputLength => DeviceError::TooLarge {
                what: "message that the token hashes itself",
                limit: frames::WHOLE_MESSAGE_MAX,
            },
            Failure::KeyNotProven { attribute } => DeviceError::KeyNotProven { token, attribute },
            Failure::Unsupported { what } => DeviceError::Unsupported { token, what },
            Failure::CursorExpired => DeviceError::Busy {
                module,
                limit: super::LISTS_MAX,
            },
        },
        CallError::Ended(End::Died(last_words)) => DeviceError::WorkerDied {
            module,
            function,
            last_words,
        },
        CallError::Ended(End::Expired) => DeviceError::Timeout {
            token,
            function,
            after,
        },
        CallError::Ended(End::Protocol(reason)) => DeviceError::Protocol { module, reason },
        CallError::Ended(End::Retired) | CallError::NotSent => DeviceError::Stopped,
        CallError::Busy => DeviceError::Busy {
            module,
            limit: super::link::CALLS_MAX,
        },
        CallError::TooLarge => DeviceError::TooLarge {
            what: "request",
            limit: PACKET_MAX,
        },
    }
}

/// The worker answered something else than it was asked.
pub(super) fn unexpected(module: &str) -> DeviceError {
    DeviceError::Protocol {
        module: module.to_owned(),
        reason: "an answer to another question".into(),
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Where the worker executable is: as configured, else beside the running program, else one
/// directory up, which is where cargo puts it for tests, else in the program's own directory of
/// `libexec`, where a package puts it: `/usr/libexec/opcertd` for `/usr/sbin/opcertd`.
pub(super) fn find_worker(configured: Option<&Path>) -> PathBuf {
    const NAME: &str = "opcert-worker";
    if let Some(path) = configured {
        return path.to_owned();
    }
    let Ok(program) = std::env::current_exe() else {
        return PathBuf::from(NAME);
    };
    let packaged = program.ancestors().nth(2).zip(program.file_name());
    program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(NAME))
        .chain(packaged.map(|(prefix, program)| prefix.join("libexec").join(program).join(NAME)))
        .find(|path| path.is_file())
        .unwrap_or_else(|| program.with_file_name(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_limit() {
        assert_eq!(delay(1, 0.5), Duration::from_millis(100));
        assert_eq!(delay(2, 0.5), Duration::from_millis(200));
        assert_eq!(delay(9, 0.5), Duration::from_millis(25_600));
        assert_eq!(delay(10, 0.5), Duration::from_secs(30));
        assert_eq!(delay(u32::MAX, 0.5), Duration::from_secs(30));
        assert!(delay(1, 0.0) >= Duration::from_millis(75));
        assert!(delay(u32::MAX, 1.0) <= Duration::from_millis(37_500));
    }

    #[test]
    fn vendor_output_is_scrubbed() {
        assert_eq!(scrub(b"\x1b[2Jhello\r"), "\u{fffd}[2Jhello");
        assert_eq!(scrub(b"bad \xff utf-8"), "bad \u{fffd} utf-8");
    }

    #[tokio::test]
    async fn long_lines_are_cut_and_the_last_ones_kept() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let words = Arc::new(Mutex::new(VecDeque::new()));
        std::io::Write::write_all(&mut writer, format!("{}\n", "x".repeat(3000)).as_bytes())
            .unwrap();
        std::io::Write::write_all(&mut writer, b"a\nb\nc\n\nlast").unwrap();
        drop(writer);
        let output = pipe::Receiver::from_owned_fd(reader.into()).unwrap();
        log_output("m".into(), output, words.clone()).await;
        let words = words.lock().unwrap();
        assert_eq!(*words, ["a", "b", "c", "last"]);
    }
}
