//! Doors, accept loops and drain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use rustix::io::Errno;
use rustls::ServerConfig;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::connection::{self, Setting, WithoutTls};
use super::{Limits, Peer};
use crate::telemetry::metrics::{DoorCells, metrics};

/// How long an accept loop rests when file descriptors or memory have run out: `accept` would
/// fail again at once, and no event tells when it would not.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Where connections come from; bound by the caller, so that nothing starts unless all are.
#[derive(Debug)]
pub enum Listener {
    /// TCP, with TLS if settings are given.
    Tcp {
        /// The bound socket.
        listener: TcpListener,
        /// TLS settings; none for a plain listener.
        tls: Option<Arc<ServerConfig>>,
    },
    /// TCP with TLS, for pages in browsers: who speaks no TLS is told so, as a page can tell no
    /// answer from one it does not trust by that alone.
    Pages {
        /// The bound socket.
        listener: TcpListener,
        /// TLS settings.
        tls: Arc<ServerConfig>,
    },
    /// A Unix socket.
    Unix {
        /// The bound socket.
        listener: UnixListener,
    },
}

/// One listener and what stands behind it.
#[derive(Debug)]
pub struct Door {
    /// The name in logs and metrics.
    pub name: &'static str,
    /// Where connections come from.
    pub listener: Listener,
    /// Its limits, the connection limit included.
    pub limits: Limits,
    /// What answers.
    pub router: Router,
}

/// Running doors. Dropping it cuts every connection; [`Server::drain`] lets requests finish.
#[derive(Debug)]
pub struct Server {
    phase: watch::Sender<Phase>,
    limits: Vec<(&'static str, Arc<ArcSwap<Limits>>)>,
}

/// Where a server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    /// No new connections; each open one ends after the request it is at.
    Draining,
    /// Each connection ends now.
    Cut,
}

/// How a drain went.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// All requests were answered.
    Complete,
    /// The deadline passed with requests in flight; they were cut.
    Cut,
}

impl Server {
    /// Starts to serve all doors.
    pub fn start(doors: Vec<Door>) -> Self {
        let (phase, receiver) = watch::channel(Phase::Serving);
        let mut limits = Vec::with_capacity(doors.len());
        for door in doors {
            let current = Arc::new(ArcSwap::from_pointee(door.limits.clone()));
            limits.push((door.name, current.clone()));
            tokio::spawn(accept(door, current, receiver.clone()));
        }
        Self { phase, limits }
    }

    /// Gives the doors of this name other limits, for connections from now on.
    pub fn set_limits(&self, name: &str, limits: &Limits) {
        for (_, current) in self.limits.iter().filter(|(door, _)| *door == name) {
            current.store(Arc::new(limits.clone()));
        }
    }

    /// Stops accepting, lets requests in flight finish, and cuts them at the deadline.
    pub async fn drain(self, deadline: Duration) -> Drained {
        self.phase.send_replace(Phase::Draining);
        // Every accept loop and connection holds a receiver.
        match tokio::time::timeout(deadline, self.phase.closed()).await {
            Ok(()) => Drained::Complete,
            Err(_) => {
                self.phase.send_replace(Phase::Cut);
                self.phase.closed().await;
                Drained::Cut
            }
        }
    }
}

/// One connection's place among those that a door may have.
struct Place {
    _open: Arc<()>,
    cells: Arc<DoorCells>,
}

impl Place {
    /// A place, if there is one.
    fn take(open: &Arc<()>, most: usize, cells: &Arc<DoorCells>) -> Option<Self> {
        // The door holds one reference; only this task makes more.
        if Arc::strong_count(open) > most {
            return None;
        }
        cells.connections.add(1);
        Some(Self {
            _open: open.clone(),
            cells: cells.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.cells.connections.add(-1);
    }
}

async fn accept(door: Door, limits: Arc<ArcSwap<Limits>>, mut phase: watch::Receiver<Phase>) {
    let Door {
        name,
        listener,
        limits: _,
        router,
    } = door;
    let cells = metrics().door(name);
    let open = Arc::new(());
    let mut setting = Setting {
        router,
        limits: limits.load_full(),
        phase: phase.clone(),
        cells: cells.clone(),
    };
    let acceptor = match &listener {
        Listener::Tcp { tls, .. } => tls.clone().map(TlsAcceptor::from),
        Listener::Pages { tls, .. } => Some(TlsAcceptor::from(tls.clone())),
        Listener::Unix { .. } => None,
    };
    let without_tls = match &listener {
        Listener::Pages { .. } => WithoutTls::Explain,
        Listener::Tcp { .. } | Listener::Unix { .. } => WithoutTls::Close,
    };
    loop {
        let accepted = tokio::select! {
            accepted = next(&listener) => accepted,
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_exhaustion(&error) => {
                warn!(door = name, %error, "cannot accept connections");
                // Descriptors come free elsewhere in the system, which tells nobody; without a rest
                // this loop would spin.
                tokio::time::sleep(ACCEPT_REST).await;
                continue;
            }
            // The peer was gone again before it was accepted.
            Err(error) => {
                debug!(door = name, %error, "a connection was not accepted");
                continue;
            }
        };
        setting.limits = limits.load_full();
        let Some(place) = Place::take(&open, setting.limits.connections, &cells) else {
            debug!(door = name, "connection limit reached, closing a new one");
            cells.refused.increment();
            continue;
        };
        let setting = setting.clone();
        match (accepted, &acceptor) {
            (Accepted::Tcp(stream, address), Some(acceptor)) => {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    connection::serve_tls(stream, address, acceptor, without_tls, setting).await;
                    drop(place);
                });
            }
            (Accepted::Tcp(stream, address), None) => {
                tokio::spawn(async move {
                    connection::serve_plain(stream, Peer::Plain { address }, setting).await;
                    drop(place);
                });
            }
            (Accepted::Unix(stream, peer), _) => {
                tokio::spawn(async move {
                    connection::serve_plain(stream, peer, setting).await;
                    drop(place);
                });
            }
        }
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno))
}

enum Accepted {
    Tcp(tokio::net::TcpStream, SocketAddr),
    Unix(tokio::net::UnixStream, Peer),
}

async fn next(listener: &Listener) -> io::Result<Accepted> {
    match listener {
        Listener::Tcp { listener, .. } | Listener::Pages { listener, .. } => {
            let (stream, address) = listener.accept().await?;
            // Answers are one small write each; waiting to merge them only adds delay.
            stream.set_nodelay(true)?;
            Ok(Accepted::Tcp(stream, address))
        }
        Listener::Unix { listener } => {
            let (stream, _) = listener.accept().await?;
            let credentials = stream.peer_cred()?;
            let peer = Peer::Unix {
                uid: credentials.uid(),
                gid: credentials.gid(),
                pid: credentials.pid(),
            };
            Ok(Accepted::Unix(stream, peer))
        }
    }
}
