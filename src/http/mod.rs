//! Accept loops, TLS, limits and drain for every program that serves HTTP; a small client.
//!
//! A [`Door`] is one listener with its TLS settings, its [`Limits`] and the `axum::Router` behind
//! it. [`Server::start`] runs one accept task per door and one task per connection; nothing is
//! queued: a connection past the limit is closed at once, a body past its limit is an error of the
//! reader, and every phase of a connection has a time limit:
//!
//! | phase | limit | what happens past it |
//! | --- | --- | --- |
//! | TLS handshake | `handshake-timeout-seconds` | closed |
//! | request head, and silence before the first | `header-timeout-seconds` | closed |
//! | request body | `body-timeout-seconds` | [`BodyError::TooSlow`] to the handler |
//! | between requests | `idle-timeout-seconds` | closed gracefully |
//! | drain | the deadline given to [`Server::drain`] | cut |
//!
//! One timer per connection watches head and idle time together, so that a request costs no timer
//! of its own. A head that begins just after the timer looked is found at its next look: a limit
//! may be overstepped by as much again.
//!
//! HTTP/1.1 and HTTP/2 are chosen by ALPN on TLS; a plain listener speaks HTTP/1.1. Each request
//! carries its [`Peer`] as an extension. TLS sessions are not resumed by native doors, so that a
//! client removed from the registry is checked by a full handshake as well as by each request.
//!
//! What never lives here: paths, what a body means, and who may do what. Those are the router's.

pub mod body;
pub mod client;
mod connection;
pub mod media_type;
pub mod server;
#[cfg(test)]
mod tests;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

pub use body::{BodyError, RequestBody};
pub use client::{Client, ClientError};
pub use server::{Door, Drained, Listener, Server};

/// Who is at the other end of a connection; a request extension.
#[derive(Debug, Clone)]
pub enum Peer {
    /// A TLS connection.
    Tls {
        /// The verified certificate it presented, if the door asks for one.
        certificate: Option<Arc<PeerCertificate>>,
        /// Its address.
        address: SocketAddr,
    },
    /// A TCP connection without TLS.
    Plain {
        /// Its address.
        address: SocketAddr,
    },
    /// A Unix socket, with the credentials at the time of `connect` (`SO_PEERCRED`, unix(7)).
    Unix {
        /// Effective user.
        uid: u32,
        /// Effective group.
        gid: u32,
        /// Process, where the kernel tells.
        pid: Option<i32>,
    },
}

/// The end-entity certificate of a TLS peer.
#[derive(Debug)]
pub struct PeerCertificate {
    /// As presented; TLS has verified its chain and that the peer holds the key.
    pub der: CertificateDer<'static>,
    /// SHA-256 of the DER: what a registry looks up.
    pub sha256: [u8; 32],
}

impl PeerCertificate {
    /// Takes a certificate and computes its fingerprint.
    pub fn new(der: CertificateDer<'static>) -> Self {
        let sha256 = crate::base::encoding::sha256(&der);
        Self { der, sha256 }
    }
}

/// The limits of one door.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections; one more is closed at once. Default 256.
    pub connections: usize,
    /// Requests in flight on one HTTP/2 connection (HTTP/1.1 has one). Default 64.
    pub requests_per_connection: u32,
    /// Bytes of a request head, 1,024 to 65,536. Default 16,384.
    pub header_bytes: u32,
    /// Bytes of a request body. Default 262,144.
    pub body_bytes: u32,
    /// Time for the TLS handshake. Default 10.
    pub handshake_timeout_seconds: u64,
    /// Time for a request head. Default 10.
    pub header_timeout_seconds: u64,
    /// Time for a request body. Default 20.
    pub body_timeout_seconds: u64,
    /// Time a connection may stay open without a request. Default 120.
    pub idle_timeout_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            requests_per_connection: 64,
            header_bytes: 16 * 1024,
            body_bytes: 256 * 1024,
            handshake_timeout_seconds: 10,
            header_timeout_seconds: 10,
            body_timeout_seconds: 20,
            idle_timeout_seconds: 120,
        }
    }
}

/// A limit that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} must be {allowed}")]
pub struct InvalidLimit {
    /// Its key in a configuration file.
    pub key: &'static str,
    /// What is allowed.
    pub allowed: &'static str,
}

impl Limits {
    /// Checks each limit for a value that can work.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let rules = [
            (
                (1..=65_536).contains(&self.connections),
                "connections",
                "1 to 65536",
            ),
            (
                (1..=1_024).contains(&self.requests_per_connection),
                "requests-per-connection",
                "1 to 1024",
            ),
            (
                (1_024..=65_536).contains(&self.header_bytes),
                "header-bytes",
                "1024 to 65536",
            ),
            (
                (1_024..=67_108_864).contains(&self.body_bytes),
                "body-bytes",
                "1024 to 67108864",
            ),
            (
                seconds(self.handshake_timeout_seconds),
                "handshake-timeout-seconds",
                "1 to 3600",
            ),
            (
                seconds(self.header_timeout_seconds),
                "header-timeout-seconds",
                "1 to 3600",
            ),
            (
                seconds(self.body_timeout_seconds),
                "body-timeout-seconds",
                "1 to 3600",
            ),
            (
                seconds(self.idle_timeout_seconds),
                "idle-timeout-seconds",
                "1 to 3600",
            ),
        ];
        match rules.into_iter().find(|(holds, _, _)| !holds) {
            Some((_, key, allowed)) => Err(InvalidLimit { key, allowed }),
            None => Ok(()),
        }
    }

    fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_timeout_seconds)
    }

    fn header_timeout(&self) -> Duration {
        Duration::from_secs(self.header_timeout_seconds)
    }

    fn body_timeout(&self) -> Duration {
        Duration::from_secs(self.body_timeout_seconds)
    }

    fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_seconds)
    }
}

fn seconds(value: u64) -> bool {
    (1..=3_600).contains(&value)
}
