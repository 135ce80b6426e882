//! What callers hold of a supervisor: the view it publishes, the turns at its module, and what it
//! can be asked.
//!
//! Nothing here calls the worker: who is [`ready`](Module::ready) gets its link.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Supervisor;
use super::command::Command;
use super::view::{Phase, Reason, TokenView, View};
use crate::base::key::Scheme;
use crate::base::pkcs11::{TokenId, TokenUri};
use crate::base::secret::Pin;
use crate::device::config::{LoginPolicy, ModuleConfig, TokenConfig};
use crate::device::error::DeviceError;
use crate::device::fair::Gate;
use crate::device::frames::{Input, LastTry, UnlockOutcome};
use crate::device::link::Link;
use crate::device::pins::check::PinCheck;
use crate::device::pins::guard::PinGuard;
use crate::device::pins::{BY_HAND, Pins};
use crate::device::tokens::TokenState;

/// The most commands that wait for one supervisor.
const COMMANDS_MAX: usize = 64;

/// The most lists that one module reads at a time.
pub const LISTS_MAX: usize = 4;

/// One module, as callers have it.
pub struct Module {
    pub config: ModuleConfig,
    pub view: Arc<watch::Sender<Arc<View>>>,
    pub commands: mpsc::Sender<Command>,
    /// Ends its supervisor.
    pub stop: watch::Sender<bool>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    /// Shared with the supervisor.
    pub pins: Pins,
    /// For operations that need a login of their own: one at a time for each token.
    gates: std::sync::Mutex<HashMap<TokenId, Arc<Gate>>>,
    /// Workers that were killed and have not ended.
    pub stuck: Arc<AtomicUsize>,
    /// A turn for each list, as the worker keeps only so many half read.
    pub lists: Semaphore,
    /// A turn for each write, so that its deadline begins when the worker can begin.
    pub writes: Semaphore,
}

/// What every supervisor is started with.
pub struct Start {
    /// The worker's executable.
    pub worker: PathBuf,
    pub guard: Arc<PinGuard>,
    /// Counts what callers can see.
    pub changed: watch::Sender<u64>,
}

/// What a call needs of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// It is there; public objects are all that is asked for.
    Presence,
    /// It is logged in; a person may be asked for its PIN.
    Login,
    /// It is logged in, and nobody is asked: the daemon does it on its own, or only looks.
    QuietLogin,
}

impl Start {
    /// Starts a module's supervisor. In place of another, it waits for that one's end.
    pub fn module(
        &self,
        config: ModuleConfig,
        instead_of: Option<Arc<Module>>,
        stuck: &Arc<AtomicUsize>,
    ) -> Arc<Module> {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let tokens = config
            .token
            .iter()
            .map(|token| TokenView::absent(&config.name, &token.uri))
            .collect();
        let view = Arc::new(watch::Sender::new(Arc::new(View {
            phase: Phase::Starting,
            library: None,
            sandbox: None,
            tokens,
        })));
        let stop = watch::Sender::new(false);
        let pins = Pins::default();
        let supervisor = Supervisor::new(
            config.clone(),
            self,
            view.clone(),
            inbox,
            stop.subscribe(),
            pins.clone(),
            stuck.clone(),
        );
        let running = tokio::spawn(async move {
            if let Some(old) = instead_of {
                old.stop.send_replace(true);
                old.ended().await;
                if old.config.path == supervisor.config.path {
                    supervisor.inherit(&old.pins);
                }
            }
            supervisor.run().await;
        });
        Arc::new(Module {
            config,
            view,
            commands,
            stop,
            supervisor: Mutex::new(Some(running)),
            pins,
            gates: std::sync::Mutex::default(),
            stuck: stuck.clone(),
            lists: Semaphore::new(LISTS_MAX),
            writes: Semaphore::new(1),
        })
    }
}

impl Module {
    /// Waits for the supervisor's end.
    pub async fn ended(&self) {
        if let Some(running) = self.supervisor.lock().await.take()
            && let Err(error) = running.await
        {
            tracing::error!(module = self.config.name, %error, "a supervisor failed");
        }
    }

    /// The view, once the worker is not being started any more, or at `patience`.
    pub async fn settled(&self, patience: Instant) -> Arc<View> {
        let mut view = self.view.subscribe();
        let settled = view.wait_for(|view| !matches!(view.phase, Phase::Starting));
        match tokio::time::timeout_at(patience, settled).await {
            Ok(Ok(view)) => view.clone(),
            Ok(Err(_)) | Err(_) => self.view.borrow().clone(),
        }
    }

    /// Whether it has a token.
    pub fn shows(&self, token: &TokenId) -> bool {
        let view = self.view.borrow().clone();
        let mut found = view.tokens.iter().filter(|known| known.found.is_some());
        found.any(|known| known.id == *token)
    }

    /// Whether it has it once it comes.
    pub fn may_show(&self, token: &TokenId) -> bool {
        let mut configured = self.config.token.iter();
        configured.any(|config| config.uri.matches(token))
    }

    /// Why the module takes no calls now, if so.
    pub fn outage(&self) -> Option<DeviceError> {
        let view = self.view.borrow().clone();
        match &view.phase {
            Phase::Up(_) | Phase::AtRest => None,
            Phase::Starting => Some(self.down("its worker is being started", Instant::now())),
            Phase::Down { reason, until } => Some(match reason {
                missing @ DeviceError::ModuleMissing { .. } => missing.clone(),
                reason => self.down(&reason.to_string(), *until),
            }),
            Phase::Stopped => Some(DeviceError::Stopped),
        }
    }

    /// The link to the worker, if it is up.
    pub fn link(&self) -> Option<Arc<Link>> {
        match &self.view.borrow().phase {
            Phase::Up(link) => Some(link.clone()),
            Phase::Starting | Phase::AtRest | Phase::Down { .. } | Phase::Stopped => None,
        }
    }

    /// Whether the last login failed in a way that is worth another.
    pub fn login_failed(&self, token: &TokenId) -> bool {
        let view = self.view.borrow();
        let mut known = view.tokens.iter().filter(|known| known.id == *token);
        known.any(|known| matches!(known.reason, Some(Reason::LoginFailed(_))))
    }

    /// What the configuration says of a token.
    pub fn configured(&self, token: &TokenId) -> Option<&TokenConfig> {
        let uri = self.view.borrow().token(token)?.uri.clone();
        self.config.token_of(&uri)
    }

    /// Whether a token asks for its PIN itself (`CKF_PROTECTED_AUTHENTICATION_PATH`), as far as it
    /// is known now.
    pub fn protected_path(&self, token: &TokenId) -> bool {
        let view = self.view.borrow();
        let found = view.token(token).and_then(|known| known.found.as_ref());
        found.is_some_and(|info| info.flags.protected_path)
    }

    /// Where operations of a token wait that need a login of their own.
    pub fn gate(&self, token: &TokenId) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        match gates.get(token) {
            Some(gate) => gate.clone(),
            None => gates.entry(token.clone()).or_default().clone(),
        }
    }

    /// What a token is to be given for a signature, as far as it is known now.
    pub fn sign_input(&self, token: &TokenId, scheme: Scheme) -> Input {
        let hashes_itself = scheme == Scheme::EdDsa || {
            let view = self.view.borrow();
            let found = view.token(token).and_then(|known| known.found.as_ref());
            found.is_some_and(|info| info.hashes.contains(&scheme))
        };
        if hashes_itself {
            Input::Message
        } else {
            Input::Digest
        }
    }

    fn down(&self, reason: &str, until: Instant) -> DeviceError {
        DeviceError::ModuleDown {
            module: self.config.name.clone(),
            reason: reason.to_owned(),
            retry_after: until.saturating_duration_since(Instant::now()),
        }
    }

    /// The link to the worker, the number of the token and its login policy, waiting for a worker
    /// that is being started, up to `deadline`.
    pub async fn ready(
        &self,
        token: &TokenId,
        need: Need,
        deadline: Instant,
    ) -> Result<(Arc<Link>, u16, LoginPolicy), DeviceError> {
        let usable = |view: &Arc<View>| match &view.phase {
            Phase::Starting => false,
            Phase::Up(link) => link.is_open(),
            Phase::AtRest | Phase::Down { .. } | Phase::Stopped => true,
        };
        let now = self.view.borrow().clone();
        let view = if usable(&now) {
            now
        } else {
            let mut changes = self.view.subscribe();
            match tokio::time::timeout_at(deadline, changes.wait_for(usable)).await {
                Ok(Ok(view)) => view.clone(),
                Ok(Err(_)) => return Err(DeviceError::Stopped),
                Err(_) => return Err(self.down("its worker is being started", Instant::now())),
            }
        };
        let name = || token.to_string();
        let absent = || DeviceError::TokenAbsent { token: name() };
        if let Phase::AtRest = view.phase {
            let found = |known: &&TokenView| known.id == *token && known.found.is_some();
            return Err(match view.tokens.iter().find(found) {
                Some(_) => DeviceError::Released { token: name() },
                None => absent(),
            });
        }
        let Phase::Up(link) = &view.phase else {
            return Err(self.outage().unwrap_or(DeviceError::Stopped));
        };
        let known = view.token(token).ok_or_else(absent)?;
        let number = known.found.as_ref().ok_or_else(absent)?.number;
        match (known.state, need) {
            (TokenState::Released, _) => Err(DeviceError::Released { token: name() }),
            (TokenState::Ready, _) | (_, Need::Presence) => Ok((link.clone(), number, known.login)),
            (TokenState::LockedOut, _) => Err(DeviceError::PinLocked { token: name() }),
            (TokenState::FinalTry, _) => Err(DeviceError::PinFinalTry { token: name() }),
            _ => Err(match &known.reason {
                Some(Reason::PinBlocked(reason)) => DeviceError::PinBlocked {
                    token: name(),
                    reason: reason.clone(),
                },
                Some(Reason::LoginFailed(error)) => error.clone(),
                Some(Reason::Other(reason)) if known.state == TokenState::Degraded => {
                    DeviceError::Unusable {
                        token: name(),
                        reason: reason.clone(),
                    }
                }
                Some(Reason::Other(_)) | None => DeviceError::PinNeeded { token: name() },
            }),
        }
    }

    /// Has absent tokens looked for that `wanted` may select.
    pub async fn look_again(&self, wanted: TokenUri) -> Result<(), DeviceError> {
        self.ask(|done| Command::LookAgain { wanted, done }).await
    }

    /// Has a token logged in again that was seen logged out at `seen`.
    pub async fn log_in_again(&self, token: &TokenId, seen: Instant) -> Result<(), DeviceError> {
        let token = token.clone();
        self.ask(|done| Command::LogInAgain { token, seen, done })
            .await
    }

    /// Has a released token taken up because somebody needs it.
    pub async fn take_up(&self, token: &TokenId) -> Result<(), DeviceError> {
        let token = token.clone();
        self.ask(|done| Command::TakeUp { token, done }).await
    }

    /// Has the worker behind `link` replaced.
    pub async fn replace(&self, link: Arc<Link>, why: String) -> Result<(), DeviceError> {
        self.command(Command::Replace { link, why }).await
    }

    /// See [`Devices::release`](crate::device::Devices::release).
    pub async fn release(&self, token: &TokenId) -> Result<(), DeviceError> {
        let (done, released) = oneshot::channel();
        let token = token.clone();
        self.command(Command::Release { token, done }).await?;
        // Their deadlines bound the calls under way.
        released.await.map_err(|_| DeviceError::Stopped)
    }

    /// See [`Devices::check_pin`](crate::device::Devices::check_pin). The PIN has a PIN's length.
    pub async fn check_pin(
        &self,
        token: &TokenId,
        pin: Option<Pin>,
        patience: Duration,
    ) -> Result<(), DeviceError> {
        let limit = self.config.call_timeout;
        let (done, result) = oneshot::channel();
        let check = PinCheck {
            token: token.clone(),
            patience: match pin {
                Some(_) => limit,
                None => patience.max(limit),
            },
            pin,
        };
        // Loading the library and looking at the slots have a deadline each, as has another login
        // that is under way.
        let in_all = limit * 3 + check.patience * 2;
        self.command(Command::CheckPin { check, done }).await?;
        self.login_result(token, result, in_all).await
    }

    /// See [`Devices::unlock`](crate::device::Devices::unlock); `None` where the PIN is typed on
    /// the device.
    pub async fn unlock(
        &self,
        token: &TokenId,
        pin: Option<Pin>,
        last_try: LastTry,
    ) -> Result<UnlockOutcome, DeviceError> {
        let (done, result) = oneshot::channel();
        let unlock = Command::Unlock {
            token: token.clone(),
            pin,
            last_try,
            done,
        };
        self.command(unlock).await?;
        // Looking at the slots and logging in each have a deadline; a start may come before.
        let in_all = self.config.call_timeout * 3 + BY_HAND;
        self.login_result(token, result, in_all).await
    }

    /// Asks the supervisor for something. Whatever comes of it shows in the view.
    async fn ask(
        &self,
        command: impl FnOnce(oneshot::Sender<()>) -> Command,
    ) -> Result<(), DeviceError> {
        let (done, ended) = oneshot::channel();
        self.command(command(done)).await?;
        let _ended = tokio::time::timeout(self.config.call_timeout, ended).await;
        Ok(())
    }

    async fn login_result<T>(
        &self,
        token: &TokenId,
        result: oneshot::Receiver<Result<T, DeviceError>>,
        in_all: Duration,
    ) -> Result<T, DeviceError> {
        match tokio::time::timeout(in_all, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(self.outage().unwrap_or(DeviceError::Stopped)),
            Err(_) => Err(DeviceError::Timeout {
                token: token.to_string(),
                function: "C_Login",
                after: in_all,
            }),
        }
    }

    /// Sends a command; its answer comes by the channel in it.
    pub async fn command(&self, command: Command) -> Result<(), DeviceError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| DeviceError::Stopped)
    }
}

/// Waits for a turn.
pub async fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>, DeviceError> {
    // Nobody closes them.
    turns.acquire().await.map_err(|_| DeviceError::Stopped)
}
