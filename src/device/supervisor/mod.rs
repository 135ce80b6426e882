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
//!
//! The parts: `handle` is what callers hold, `command` what can be asked, `view` what is published;
//! `process` starts and ends workers, `output` keeps what they print; `presence` looks at the slots,
//! `login` logs in, `release` lets go, `keepalive` and `administer` do as they are called. PKCS#11
//! itself never lives here, nor does a signature come through.

pub mod administer;
pub mod command;
pub mod handle;
mod keepalive;
mod login;
mod output;
mod presence;
pub mod process;
mod release;
pub mod view;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};

use self::command::{Command, next};
use self::handle::Start;
use self::keepalive::Keepalives;
use self::presence::Noticed;
use self::process::{Greeting, Worker};
use self::view::{Phase, TokenView, View, overlap, uri_of};
use super::config::ModuleConfig;
use super::error::DeviceError;
use super::link::{End, Link};
use super::pins::Pins;
use super::pins::guard::PinGuard;
use super::sandbox::SandboxLevel;
use crate::base::backoff::doubling;
use crate::base::pkcs11::TokenId;
use crate::telemetry::Chain;
use crate::telemetry::metrics::metrics;

/// A running worker is replaced at most this often for the sake of an absent token, and so for a
/// return value that means an unwell library: some libraries answer a caller's mistake with one.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// How often the slots are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often where the library tells of changes.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// However often a library tells of changes, there is this much between two looks.
const LOOKS_APART: Duration = Duration::from_millis(100);

/// The first and the longest delay before a worker that was of no use is replaced.
const DELAYS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Callers wait through a delay up to this; past it they are told to come back.
const DELAY_WAITED_OUT: Duration = Duration::from_millis(250);

/// So many workers of one module may be stuck in the kernel before no more is started: each holds
/// the library's memory, and the next would get stuck as well.
const STUCK_MAX: usize = 4;

/// A worker that lived this long was of use, even if nobody called.
const LIVED: Duration = Duration::from_secs(5);

/// The task's state.
pub struct Supervisor {
    config: ModuleConfig,
    worker: PathBuf,
    guard: Arc<PinGuard>,
    view: Arc<watch::Sender<Arc<View>>>,
    commands: mpsc::Receiver<Command>,
    stop: watch::Receiver<bool>,
    /// Counts what callers can see.
    changed: watch::Sender<u64>,
    /// PINs that worked in this process, for the next worker.
    pins: Pins,
    logged_in: HashMap<TokenId, Instant>,
    login_failed: HashMap<TokenId, Instant>,
    looked_again: Option<Instant>,
    /// How long the next worker that looks for absent tokens may search in vain.
    search: Duration,
    renewed: Option<Instant>,
    /// Whether the next worker asks the library to tell of tokens that come and leave.
    slot_events: bool,
    /// Those who wait for a token, until the next worker is up.
    looking: Vec<oneshot::Sender<()>>,
    /// Workers that were killed and have not ended.
    stuck: Arc<AtomicUsize>,
    /// Tokens that are left to other programs.
    released: HashSet<TokenId>,
    /// A command that came while there was no worker to serve it.
    postponed: Option<Command>,
}

/// Why a worker is given up.
pub enum Leave {
    Stop,
    LookAgain,
    /// A token is released; whoever asked is told once it is.
    Release(oneshot::Sender<()>),
    Ended(String),
}

/// How a pause ended.
#[derive(Clone, Copy)]
pub enum Pause {
    Over,
    Stop,
}

impl Pause {
    fn is_stop(&self) -> bool {
        matches!(self, Self::Stop)
    }
}

impl Supervisor {
    /// A supervisor of a module that has not been started.
    pub fn new(
        config: ModuleConfig,
        start: &Start,
        view: Arc<watch::Sender<Arc<View>>>,
        commands: mpsc::Receiver<Command>,
        stop: watch::Receiver<bool>,
        pins: Pins,
        stuck: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            worker: start.worker.clone(),
            guard: start.guard.clone(),
            view,
            commands,
            stop,
            changed: start.changed.clone(),
            pins,
            logged_in: HashMap::new(),
            login_failed: HashMap::new(),
            looked_again: None,
            search: RENEW_EVERY,
            renewed: None,
            slot_events: config.slot_events,
            released: HashSet::new(),
            postponed: None,
            looking: Vec::new(),
            stuck,
            config,
        }
    }

    /// Takes over the PINs that worked with the same library, of tokens that are still used.
    pub fn inherit(&self, pins: &Pins) {
        self.pins.take_over(pins, |token| {
            let uri = uri_of(token);
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
                    self.answer_waiting();
                    let leave = self.serve(&worker, &mut stop).await;
                    let sessions = &metrics().module(&self.config.name).sessions;
                    sessions.add(-i64::from(self.config.thread_count()));
                    // Nobody may find the old link in the view once it takes no calls.
                    self.publish_phase(Phase::Starting);
                    let of_use = worker.link().served() || worker.started.elapsed() >= LIVED;
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
                        reason = Chain(&reason).to_string(),
                        "worker not started"
                    );
                    reason
                }
            };
            useless = useless.saturating_add(1);
            self.answer_waiting();
            if self.pause(useless, reason, &mut stop).await.is_stop() {
                break;
            }
        }
        self.publish_phase(Phase::Stopped);
    }

    fn answer_waiting(&mut self) {
        for waiting in self.looking.drain(..) {
            let _gone = waiting.send(());
        }
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
                    Some(command) => self.decline(command, &reason),
                    None => return Pause::Stop,
                }
            }
        }
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
        let tokens = self.find_tokens(worker.link()).await;
        self.doubt_slot_events(worker.link());
        Ok((worker, greeting, tokens?))
    }

    async fn take_up(
        &mut self,
        worker: Worker,
        (library, sandbox): Greeting,
        mut tokens: Vec<TokenView>,
    ) -> Result<Worker, DeviceError> {
        let link = worker.link().clone();
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

    /// Serves commands until the worker ends or is to be replaced.
    async fn serve(&mut self, worker: &Worker, stop: &mut watch::Receiver<bool>) -> Leave {
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        let mut told = false;
        let mut keepalives = Keepalives::of(&self.config.token);
        loop {
            let command = tokio::select! {
                () = worker.link().closed() => return self.post_mortem(worker.link()).await,
                () = stopped(stop) => return Leave::Stop,
                command = next(&mut self.postponed, &mut self.commands) => command,
                index = keepalives.due() => {
                    self.keep_alive(worker.link(), index).await;
                    continue;
                }
                () = worker.link().slots_changed() => {
                    told = true;
                    look.reset_after(LOOKS_APART.saturating_sub(looked.elapsed()));
                    continue;
                }
                _ = look.tick() => {
                    // The worker looks when it is done with what occupies it.
                    if worker.link().is_occupied() {
                        continue;
                    }
                    if let Some(done) = self.release_idle(worker.link()) {
                        return Leave::Release(done);
                    }
                    let is_due = looked.elapsed() >= LOOK_AT_LEAST_EVERY;
                    if !told && !is_due && worker.link().watches_slots() {
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
            let leave = match command {
                Some(command) => self.obey(command, worker).await,
                None => Some(Leave::Stop),
            };
            if let Some(leave) = leave {
                return leave;
            }
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
}

/// Returns once there is to be an end.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the handle is gone, and with it everybody who could call.
    let _gone = stop.wait_for(|stop| *stop).await;
}

/// The delay before a start after `useless` workers in a row; `random` is in 0 to 1.
fn delay(useless: u32, random: f64) -> Duration {
    doubling(i64::from(useless.max(1)), DELAYS.0, DELAYS.1).mul_f64(0.75 + random / 2.0)
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
}
