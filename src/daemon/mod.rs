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

mod bind;
mod certificate;
mod checkpoints;
mod failure;
mod harden;
mod manager;
mod reload;
mod signals;
mod watchdog;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use clap::{CommandFactory, Parser};

use self::bind::Bound;
use self::certificate::DoorCertificate;
use self::checkpoints::Checkpoints;
use self::failure::Failure;
use self::manager::Notice;
use self::reload::{Live, Reload};
use self::signals::{Signal, Signals};
use self::watchdog::Watchdog;
use crate::api::caller::ControlAccess;
use crate::api::clients::Clients;
use crate::api::doors;
use crate::api::events::{Events, Happening};
use crate::api::local_ca::LocalCa;
use crate::api::routes::{App, Parts};
use crate::api::throttle::Failures;
use crate::audit::{Audit, Event};
use crate::base::Clock;
use crate::base::files;
use crate::base::sysexits::{EX_CONFIG, EX_OSERR, EX_SOFTWARE, EX_USAGE};
use crate::config::daemon::{Config, DEFAULT_PATH};
use crate::consent::Asker;
use crate::device::Devices;
use crate::enrol::{Enroller, Registry};
use crate::http::{Door, Drained, Listener, Server, tls};
use crate::merchants::Merchants;
use crate::policy::{Policies, PolicySet};
use crate::signing::Pipeline;
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
    /// The configuration file.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH)]
    config: PathBuf,
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
    let loaded = Config::load_layers(&arguments.config)
        .map_err(|error| Failure::new(EX_CONFIG, error.into()))?;
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
    let reload = Reload::new(arguments.config.clone(), files, config.clone(), log);
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

    files::private_directory(&config.state_directory).map_err(Failure::state)?;
    let (audit, recovered) = Audit::open(
        &config.state_directory.join("audit"),
        config.audit.clone(),
        clock.clone(),
    )
    .map_err(Failure::audit)?;
    if recovered.beyond_head > 0 || recovered.torn.is_some() {
        tracing::warn!(
            records = recovered.beyond_head,
            torn_bytes = recovered.torn,
            "the audit trail was repaired after a crash"
        );
    }
    let clients =
        Clients::open(&config.state_directory.join("clients.json")).map_err(Failure::state)?;
    let registry = Registry::open(&config.state_directory).map_err(Failure::state)?;
    let local_ca = LocalCa::open(&config.state_directory.join("local-ca"), clock.now())
        .map(Arc::new)
        .map_err(Failure::state)?;
    let certificate =
        DoorCertificate::new(local_ca.clone(), clock.clone()).map_err(Failure::state)?;

    let Bound {
        native,
        metrics,
        browser,
        control,
        users,
    } = bind::all(&config, inherited).await?;
    let native_addresses = addresses(&native)?;
    let metrics_addresses = addresses(&metrics)?;
    let browser_addresses = addresses(&browser)?;

    let devices = Devices::start(config.devices(), &config.state_directory, clock.clone())
        .await
        .map_err(Failure::device)?;
    let enroller = Enroller::new(
        &config.state_directory,
        devices.clone(),
        registry.clone(),
        audit.clone(),
        clock.clone(),
    )
    .map_err(Failure::state)?;
    let enroller = Arc::new(enroller);
    let asker = Asker::start(config.consent.clone());
    devices.ask_with(asker.clone());
    let pipeline = Pipeline::new(
        devices.clone(),
        registry.clone(),
        audit.clone(),
        asker.clone(),
        Policies::new(policy),
        clock.clone(),
        crate::api::problem::code_of,
    );
    // Without the memory of what was approved, a challenge could be approved twice.
    let remembered = pipeline.restore(&recovered).map_err(Failure::state)?;
    let merchants = Merchants::open(
        &config.state_directory,
        devices.clone(),
        registry.clone(),
        audit.clone(),
        pipeline.policies().clone(),
        clock.clone(),
        crate::api::problem::code_of_merchant,
    )
    .map_err(Failure::state)?;
    merchants.restore(&recovered).map_err(Failure::state)?;

    let body = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "computer": registry.computer(),
        "remembered": remembered,
        "policy": pipeline.policies().current().digest(),
    });
    record(&audit, "start", &body).await?;

    let roots = tls::roots([local_ca.certificate().der().to_vec().into()])
        .map_err(|error| Failure::state(crate::api::local_ca::LocalCaError::from(error)))?;
    let tls = tls::mutual(certificate.presented(), roots.clone())
        .map_err(|error| Failure::state(crate::api::local_ca::LocalCaError::from(error)))?;
    let browser_tls = tls::browser(certificate.presented(), roots)
        .map_err(|error| Failure::state(crate::api::local_ca::LocalCaError::from(error)))?;
    let watchdog = Watchdog::wanted(&devices, &registry, &clock);
    let checkpoints = Checkpoints::new(
        audit.clone(),
        devices.clone(),
        clock.clone(),
        registry.computer().to_string(),
    );
    let configuration = reload.state(clock.now());
    telemetry::metrics::metrics()
        .start_time
        .set(clock.now().as_second());
    let events = Events::default();
    let watching = tokio::spawn(events.clone().watch(devices.clone()));
    let questions = pipeline.asker().watch();
    let telling = tokio::spawn(events.clone().watch_prompts(questions));
    let app = App::new(Parts {
        clock,
        audit: audit.clone(),
        clients,
        local_ca,
        devices: devices.clone(),
        registry,
        events: events.clone(),
        enroller: enroller.clone(),
        pipeline,
        merchants,
        load_policy: reload.policy_loader(),
        reloading: tokio::sync::Mutex::default(),
        native: native_addresses.clone(),
        metrics: metrics_addresses.clone(),
        configuration: configuration.clone(),
        failures: Failures::default(),
        browser: browser_addresses.clone(),
        origins: ArcSwap::from_pointee(config.browser.origins.clone()),
        asker: asker.clone(),
    });
    for warning in app.policy().warnings() {
        tracing::warn!(%warning, "policy");
    }

    let mut doors: Vec<Door> = native
        .into_iter()
        .zip(&native_addresses)
        .map(|(listener, address)| Door {
            name: "native",
            listener: Listener::Tcp {
                listener,
                tls: Some(tls.clone()),
            },
            limits: config.native.limits.clone(),
            router: doors::native(app.clone(), address.port()),
        })
        .collect();
    doors.extend(metrics.into_iter().map(|listener| Door {
        name: "metrics",
        listener: Listener::Tcp {
            listener,
            tls: None,
        },
        limits: config.metrics.limits.clone(),
        router: doors::monitoring(app.clone()),
    }));
    doors.extend(
        browser
            .into_iter()
            .zip(&browser_addresses)
            .map(|(listener, address)| Door {
                name: "browser",
                listener: Listener::Pages {
                    listener,
                    tls: browser_tls.clone(),
                },
                limits: config.browser.limits.clone(),
                router: doors::browser(app.clone(), address.port()),
            }),
    );
    let access = ControlAccess::new(users);
    let control_door = control.door(access.clone());
    let (control, guard) = control.into_parts();
    doors.push(Door {
        name: "control",
        listener: Listener::Unix { listener: control },
        limits: config.control.limits.clone(),
        router: doors::control(app.clone(), access),
    });
    let server = Server::start(doors);
    tracing::info!(native = ?native_addresses, browser = ?browser_addresses, metrics = ?metrics_addresses, control = %config.control_socket().display(), "ready");
    manager::tell(Notice::Ready);
    let watchdog = watchdog.map(|watchdog| tokio::spawn(watchdog.run()));
    let renewing = tokio::spawn(certificate.renew_in_time());
    let summing_up = tokio::spawn(audit.clone().sum_up_refusals());
    checkpoints.set(config.audit.checkpoint.clone()).await;

    // What a crash left half enrolled is mended beside the serving: its token may be slow.
    let reclaim = tokio::spawn(async move {
        if let Err(error) = enroller.reclaim().await {
            tracing::warn!(error = %Chain(&error), "an unfinished enrolment is left for the next start");
        }
    });

    let live = Live {
        app: &app,
        server: &server,
        asker: &asker,
        audit: &audit,
        devices: &devices,
        checkpoints: &checkpoints,
        control: &control_door,
        configuration: &configuration,
    };
    let signal = loop {
        match signals.next().await {
            Signal::Stop(name) => break name,
            Signal::Reload => {
                manager::tell(Notice::Reloading);
                reload.run(&live).await;
                manager::tell(Notice::Ready);
            }
        }
    };
    tracing::info!(signal, "stopping");
    manager::tell(Notice::Stopping);
    // Whoever connects from now on finds nobody, rather than a daemon that does not answer.
    drop(guard);
    events.tell(Happening::Stopping {});
    if server.drain(DRAIN).await == Drained::Cut {
        tracing::warn!(
            "requests that took longer than {} s were cut",
            DRAIN.as_secs()
        );
    }
    reclaim.abort();
    watching.abort();
    telling.abort();
    renewing.abort();
    summing_up.abort();
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    checkpoints.end(LAST_CHECKPOINT).await;
    devices.shutdown().await;
    audit.close().await.map_err(Failure::audit)?;
    Ok(())
}

/// Where sockets are bound.
fn addresses(listeners: &[tokio::net::TcpListener]) -> Result<Vec<SocketAddr>, Failure> {
    listeners
        .iter()
        .map(tokio::net::TcpListener::local_addr)
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::system(EX_OSERR, "a socket has no address", &error))
}

/// Writes an event of the daemon's own life and waits until it is durable.
async fn record(
    audit: &Audit,
    kind: &'static str,
    body: &serde_json::Value,
) -> Result<(), Failure> {
    let event = Event::new(kind, None, body).map_err(Failure::audit)?;
    let pending = audit.append(event).map_err(Failure::audit)?;
    pending.durable().await.map_err(Failure::audit)?;
    Ok(())
}
