//! `opcert-accountd serve`: open everything, bind, tell, serve, drain.

use std::net::SocketAddr;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use super::config::Config;
use super::idempotency::ANSWERS_KEPT;
use super::logins;
use super::operations::OperationError;
use super::outgoing::EndpointError;
use super::service::{Service, StartError};
use super::sms::Gateway;
use super::store::{StoreError, messages, operations, secrets, sessions};
use super::{routes, webhooks};
use crate::base::Clock;
use crate::base::files::{FileError, Readers, read_checked};
use crate::http::tls::{self, Identity, TlsError};
use crate::http::{Door, Drained, Listener, Server};

/// How long requests in flight may take once the service is told to stop.
const DRAIN: Duration = Duration::from_secs(20);

/// How often operations and kept answers whose time is over are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// How long the last checkpoint of the audit trail may take.
const LAST_CHECKPOINT: Duration = Duration::from_secs(3);

/// Largest TLS file that is read, in bytes.
const TLS_LIMIT: u64 = 256 * 1024;

/// Why the service does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Something could not be opened.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A TLS file cannot be used.
    #[error("cannot use a TLS file")]
    File(#[from] FileError),
    /// Certificate and key do not make a TLS server.
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    /// A webhook or the SMS gateway cannot be set up.
    #[error("cannot set up a webhook")]
    Webhook(#[from] EndpointError),
    /// An address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals {
        /// Why.
        source: std::io::Error,
    },
}

/// Runs the service until it is told to stop.
pub async fn serve(config: &Config) -> Result<(), ServeError> {
    let gateway = Gateway::open(&config.sms)?;
    let service = Service::open(config, Clock::system(), gateway).await?;
    let result = run(config, &service).await;
    service.close().await;
    result
}

async fn run(config: &Config, service: &Service) -> Result<(), ServeError> {
    let certificate = config.path(&config.tls.certificate);
    let key = config.path(&config.tls.key);
    let identity = Identity::from_pem(
        &read_checked(&certificate, Readers::Anybody, TLS_LIMIT)?,
        &read_checked(&key, Readers::Owner, TLS_LIMIT)?,
    )?;
    let with_certificates = tls::offered(identity.duplicate())?;
    let settings = tls::public(identity)?;
    let courier = webhooks::Courier::new(config.webhook.as_ref(), service.clone())?;
    let signals = |source| ServeError::Signals { source };
    let mut stop = signal(SignalKind::terminate()).map_err(signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;

    let mut doors = Vec::new();
    let mut addresses = Vec::new();
    let public = config.listen.iter().map(|address| (address, &settings));
    let offered = config
        .certificate_listen
        .iter()
        .map(|address| (address, &with_certificates));
    for (&address, settings) in public.chain(offered) {
        let bind = |source| ServeError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        addresses.push(listener.local_addr().map_err(bind)?);
        doors.push(Door {
            name: "account",
            listener: Listener::Tcp {
                listener,
                tls: Some(settings.clone()),
            },
            limits: config.limits(),
            router: routes::router(service.clone()),
        });
    }
    let server = Server::start(doors);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(sweep(service.clone()));
    tasks.spawn(courier.run());
    let checkpointer = service.checkpointer(config);
    if let Some(checkpointer) = &checkpointer {
        tasks.spawn(checkpointer.clone().run());
    }
    for address in &addresses {
        announce(address);
    }
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        warn!(%error, "cannot tell the service manager");
    }

    wait(&mut stop, &mut interrupt).await;
    info!("stopping");
    if let Err(error) = sd_notify::notify(&[NotifyState::Stopping]) {
        warn!(%error, "cannot tell the service manager");
    }
    if server.drain(DRAIN).await == Drained::Cut {
        warn!("requests were cut at the deadline");
    }
    tasks.shutdown().await;
    if let Some(checkpointer) = checkpointer {
        checkpointer.make_last(LAST_CHECKPOINT).await;
    }
    Ok(())
}

/// One line on standard output for each address, so that scripts find a port the system chose.
fn announce(address: &SocketAddr) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "listening on https://{address}").and_then(|()| out.flush()) {
        warn!(%error, "cannot write to standard output");
    }
    info!(%address, "listening");
}

async fn wait(stop: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = stop.recv() => (),
        _ = interrupt.recv() => (),
    }
}

/// How long rows of texts are kept.
const TEXTS_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long keys of computers are kept that another key took the place of.
const KEYS_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Marks operations whose time is over, and drops what is too old to matter: kept answers, ended
/// sessions, counts of failed log-ins, rows of texts, secrets whose overlap is over.
async fn sweep(service: Service) {
    let mut turns = tokio::time::interval(SWEEP);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        match sweep_once(&service).await {
            Ok((0, 0)) => (),
            Ok((expired, forgotten)) => info!(expired, forgotten, "swept"),
            Err(error) => error!(error = %crate::telemetry::Chain(&error), "cannot sweep"),
        }
    }
}

async fn sweep_once(service: &Service) -> Result<(u64, u64), OperationError> {
    let now = service.clock().now();
    let expired = service.operations().expire().await?;
    if expired > 0 {
        service.outbox_changed();
    }
    match service.requests().carry_out().await {
        Ok(0) => (),
        Ok(done) => info!(done, "granted requests took effect"),
        Err(error) => {
            error!(error = %crate::telemetry::Chain(&error), "cannot carry out granted requests");
        }
    }
    match service.requests().purge().await {
        Ok(0) => (),
        Ok(papers) => info!(papers, "papers destroyed"),
        Err(error) => {
            error!(error = %crate::telemetry::Chain(&error), "cannot destroy old papers");
        }
    }
    match service.secrets().destroy_ended().await {
        Ok(0) => (),
        Ok(destroyed) => info!(destroyed, "secrets whose overlap is over were destroyed"),
        Err(error) => {
            error!(error = %crate::telemetry::Chain(&error), "cannot destroy old secrets");
        }
    }
    let (failures, sources) = logins::forgettable(now);
    let forgotten = service
        .store()
        .transaction("sweep", move |tx| {
            Box::pin(async move {
                let answers = operations::forget_answers(tx, now - ANSWERS_KEPT).await?;
                let people = sessions::forget(tx, now, failures, sources).await?;
                let texts = messages::forget(tx, now - TEXTS_KEPT).await?;
                let keys = secrets::forget_recipients(tx, now - KEYS_KEPT).await?;
                Ok::<_, StoreError>(answers + people + texts + keys)
            })
        })
        .await?;
    Ok((expired, forgotten))
}
