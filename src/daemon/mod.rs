//! The life of `opcertd`: read, assemble, bind, notify, serve, drain.
//!
//! 1. The configuration is read and checked before anything is touched.
//! 2. The process makes itself hard to look into: no core dumps, not dumpable, files private.
//! 3. The parts are opened bottom up: audit trail, registries, local authority. What was approved
//!    before is read back from the trail, so that no challenge is approved twice.
//! 4. Every door is bound before a token is touched or a request served, so a taken port never
//!    leaves half a daemon.
//! 5. The service manager is told, and requests are served until SIGTERM or SIGINT. Meanwhile SIGHUP
//!    has the configuration read again, the doors' certificate is renewed in time, and the service
//!    manager's watchdog is fed while tokens sign.
//! 6. Requests in flight get ten seconds; then tokens are logged out and the audit trail is closed
//!    by its last record.
//!
//! Nothing is printed on standard output. A start that fails prints two sentences and a stable
//! code on standard error and exits with a code of `sysexits.h`, by which a service manager knows
//! whether trying again can help.
//!
//! What never lives here: what a request does. The parts know nothing of each other's beginning or
//! end; this module knows nothing of their work.

mod assembly;
mod bind;
mod certificate;
mod checkpoints;
mod failure;
mod harden;
mod manager;
mod reload;
mod serving;
mod signals;
mod state;
mod watchdog;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::{CommandFactory, Parser};
use tokio::task::JoinSet;

use self::assembly::Assembly;
use self::checkpoints::Checkpoints;
use self::failure::Failure;
use self::manager::Notice;
use self::reload::{Live, Reload};
use self::serving::{Addresses, Encryption, Serving};
use self::signals::{Signal, Signals};
use self::state::State;
use self::watchdog::Watchdog;
use crate::api::events::{Events, Happening};
use crate::api::routes::{App, Parts};
use crate::api::throttle::Failures;
use crate::base::Clock;
use crate::base::sysexits::{EX_CONFIG, EX_OSERR, EX_SOFTWARE, EX_USAGE};
use crate::config::daemon::Config;
use crate::config::places;
use crate::enrol::Enroller;
use crate::http::Drained;
use crate::policy::PolicySet;
use crate::telemetry::{self, Chain};

/// How long requests in flight may take once the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the last checkpoint may take.
const LAST_CHECKPOINT: Duration = Duration::from_secs(3);

/// More threads gain nothing: a request waits for a token or a disk, not for a processor.
const MOST_THREADS: usize = 4;

/// Holds operating keys on PKCS#11 tokens and approves sensitive operations with them.
#[derive(Debug, Parser)]
#[command(name = "opcertd", version, max_term_width = 100)]
struct Arguments {
    /// The configuration file. [default: ~/.config/opcert/opcertd.toml if there is one, else
    /// /etc/opcert/opcertd.toml]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Read and check the configuration, start nothing.
    #[arg(long)]
    check: bool,
    /// Run as root, which is refused otherwise: nothing here needs it.
    #[arg(long)]
    allow_root: bool,
}

/// The command line, for the manual.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done about a standard stream that is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn start(arguments: &Arguments) -> Result<(), Failure> {
    let config_file = arguments.config.clone().unwrap_or_else(places::config_file);
    let loaded =
        Config::load_layers(&config_file).map_err(|error| Failure::new(EX_CONFIG, error.into()))?;
    let files = reload::files(&loaded);
    let config = loaded.config;
    // The rules too: a daemon with other rules than were meant must not start.
    let policy = config
        .policy
        .load()
        .map_err(|error| Failure::new(EX_CONFIG, error.into()))?;
    if arguments.check {
        return Ok(());
    }
    harden::privileges(arguments.allow_root)?;
    let log = telemetry::start(config.log)
        .map_err(|error| Failure::system(EX_SOFTWARE, "logging cannot be set up", &error))?;
    // Inherited sockets are taken while the process has one thread: taking them clears the
    // variables that announce them.
    let inherited = bind::Inherited::take()?;
    harden::process()?;
    harden::memory();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.min(MOST_THREADS))
        .enable_all()
        .build()
        .map_err(|error| Failure::system(EX_OSERR, "the runtime cannot be started", &error))?;
    let reload = Reload::new(config_file, files, config.clone(), log);
    runtime.block_on(run(config, policy, reload, inherited))
}

async fn run(
    config: Config,
    policy: PolicySet,
    mut reload: Reload,
    inherited: bind::Inherited,
) -> Result<(), Failure> {
    // Signals first: one that comes during the start must not kill a daemon that has begun to
    // write.
    let mut signals = Signals::new()?;
    let clock = Clock::system();
    let state = State::open(&config, &clock)?;
    let bound = bind::all(&config, inherited).await?;
    let addresses = Addresses::of(&bound)?;
    let assembly = Assembly::build(&config, policy, &state, &clock).await?;
    assembly.record_start(&state).await?;

    let encryption = Encryption::new(&state.certificate, &state.local_ca)?;
    let certificate = state.certificate;
    let (audit, devices) = (state.audit, assembly.devices);
    let (asker, enroller) = (assembly.asker, assembly.enroller);
    let watchdog = Watchdog::wanted(&devices, &state.registry, &clock);
    let issuer = state.registry.computer().to_string();
    let checkpoints = Checkpoints::new(audit.clone(), devices.clone(), clock.clone(), issuer);
    let configuration = reload.state(clock.now());
    telemetry::metrics::metrics()
        .start_time
        .set(clock.now().as_second());
    let events = Events::default();
    let mut beside = JoinSet::new();
    beside.spawn(events.clone().watch(devices.clone()));
    beside.spawn(events.clone().watch_prompts(asker.watch()));
    let app = App::new(Parts {
        clock,
        audit: audit.clone(),
        clients: state.clients,
        local_ca: state.local_ca,
        devices: devices.clone(),
        registry: state.registry,
        events: events.clone(),
        enroller: enroller.clone(),
        pipeline: assembly.pipeline,
        merchants: assembly.merchants,
        load_policy: reload.policy_loader(),
        reloading: tokio::sync::Mutex::default(),
        native: addresses.native.clone(),
        metrics: addresses.metrics.clone(),
        configuration: configuration.clone(),
        failures: Failures::default(),
        browser: addresses.browser.clone(),
        origins: ArcSwap::from_pointee(config.browser.origins.clone()),
        asker: asker.clone(),
    });
    for warning in app.policy().warnings() {
        tracing::warn!(%warning, "policy");
    }

    let Serving {
        server,
        control,
        file,
    } = Serving::start(bound, &addresses, encryption, &config, &app);
    tracing::info!(native = ?addresses.native, browser = ?addresses.browser, metrics = ?addresses.metrics, control = %config.control_socket().display(), "ready");
    manager::tell(Notice::Ready);
    if let Some(watchdog) = watchdog {
        beside.spawn(watchdog.run());
    }
    beside.spawn(certificate.renew_in_time());
    beside.spawn(audit.clone().sum_up_refusals());
    checkpoints.set(config.audit.checkpoint.clone()).await;
    beside.spawn(reclaim(enroller));

    let live = Live {
        app: &app,
        server: &server,
        asker: &asker,
        audit: &audit,
        devices: &devices,
        checkpoints: &checkpoints,
        control: &control,
        configuration: &configuration,
    };
    let signal = told_to_stop(&mut signals, &mut reload, &live).await;

    tracing::info!(signal, "stopping");
    manager::tell(Notice::Stopping);
    // Whoever connects from now on finds nobody, rather than a daemon that does not answer.
    drop(file);
    events.tell(Happening::Stopping {});
    if server.drain(DRAIN).await == Drained::Cut {
        tracing::warn!(
            "requests that took longer than {} s were cut",
            DRAIN.as_secs()
        );
    }
    beside.abort_all();
    checkpoints.end(LAST_CHECKPOINT).await;
    devices.shutdown().await;
    audit.close().await.map_err(Failure::audit)?;
    Ok(())
}

/// What a crash left half enrolled is mended beside the serving: its token may be slow.
async fn reclaim(enroller: Arc<Enroller>) {
    if let Err(error) = enroller.reclaim().await {
        tracing::warn!(error = %Chain(&error), "an unfinished enrolment is left for the next start");
    }
}

/// Has the configuration read again as often as that is asked; returns the signal to stop.
async fn told_to_stop(signals: &mut Signals, reload: &mut Reload, live: &Live<'_>) -> &'static str {
    loop {
        match signals.next().await {
            Signal::Stop(name) => return name,
            Signal::Reload => {
                manager::tell(Notice::Reloading);
                reload.run(live).await;
                manager::tell(Notice::Ready);
            }
        }
    }
}
