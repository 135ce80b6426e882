//! The doors: each bound socket with its encryption, its limits and what it serves.
//!
//! Who may pass a door, and what is behind it, never lives here: see `api`.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::bind::{Bound, ControlDoor, SocketFile};
use super::certificate::DoorCertificate;
use super::failure::Failure;
use crate::api::caller::ControlAccess;
use crate::api::doors;
use crate::api::local_ca::{LocalCa, LocalCaError};
use crate::api::routes::App;
use crate::base::sysexits::EX_OSERR;
use crate::config::daemon::Config;
use crate::http::tls::TlsError;
use crate::http::{Door, Listener, Server, tls};

/// Where the doors on the network are.
#[derive(Clone)]
pub struct Addresses {
    /// Of the native door.
    pub native: Vec<SocketAddr>,
    /// Of the browser door.
    pub browser: Vec<SocketAddr>,
    /// For metrics besides the control socket.
    pub metrics: Vec<SocketAddr>,
}

impl Addresses {
    /// Where `bound` is bound.
    pub fn of(bound: &Bound) -> Result<Self, Failure> {
        let of = |listeners: &[TcpListener]| {
            listeners
                .iter()
                .map(TcpListener::local_addr)
                .collect::<Result<_, _>>()
                .map_err(|error| Failure::system(EX_OSERR, "a socket has no address", &error))
        };
        Ok(Self {
            native: of(&bound.native)?,
            browser: of(&bound.browser)?,
            metrics: of(&bound.metrics)?,
        })
    }
}

/// What the doors on the network speak.
pub struct Encryption {
    native: Arc<rustls::ServerConfig>,
    browser: Arc<rustls::ServerConfig>,
}

impl Encryption {
    /// With the doors' certificate; clients show one of the local authority.
    pub fn new(certificate: &DoorCertificate, local_ca: &LocalCa) -> Result<Self, Failure> {
        let failure = |error: TlsError| Failure::state(LocalCaError::from(error));
        let roots = tls::roots([local_ca.certificate().der().to_vec().into()]).map_err(failure)?;
        Ok(Self {
            native: tls::mutual(certificate.presented(), roots.clone()).map_err(failure)?,
            browser: tls::browser(certificate.presented(), roots).map_err(failure)?,
        })
    }
}

/// The open doors.
pub struct Serving {
    /// All of them.
    pub server: Server,
    /// Whom the control socket lets in.
    pub control: ControlDoor,
    /// Removes the control socket's file when dropped.
    pub file: SocketFile,
}

impl Serving {
    /// Opens every door; requests are served from here on.
    pub fn start(
        bound: Bound,
        addresses: &Addresses,
        encryption: Encryption,
        config: &Config,
        app: &App,
    ) -> Self {
        let mut doors: Vec<Door> = bound
            .native
            .into_iter()
            .zip(&addresses.native)
            .map(|(listener, address)| Door {
                name: "native",
                listener: Listener::Tcp {
                    listener,
                    tls: Some(encryption.native.clone()),
                },
                limits: config.native.limits.clone(),
                router: doors::native(app.clone(), address.port()),
            })
            .collect();
        doors.extend(bound.metrics.into_iter().map(|listener| Door {
            name: "metrics",
            listener: Listener::Tcp {
                listener,
                tls: None,
            },
            limits: config.metrics.limits.clone(),
            router: doors::monitoring(app.clone()),
        }));
        doors.extend(bound.browser.into_iter().zip(&addresses.browser).map(
            |(listener, address)| Door {
                name: "browser",
                listener: Listener::Pages {
                    listener,
                    tls: encryption.browser.clone(),
                },
                limits: config.browser.limits.clone(),
                router: doors::browser(app.clone(), address.port()),
            },
        ));
        let access = ControlAccess::new(bound.users);
        let control = bound.control.door(access.clone());
        let (listener, file) = bound.control.into_parts();
        doors.push(Door {
            name: "control",
            listener: Listener::Unix { listener },
            limits: config.control.limits.clone(),
            router: doors::control(app.clone(), access),
        });
        Self {
            server: Server::start(doors),
            control,
            file,
        }
    }
}
