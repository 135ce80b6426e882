//! Signed requests to addresses of others: the platform's webhooks and the SMS gateway.
//!
//! A request is `POST`, `application/json`, with
//! - `webhook-id`: what the receiver knows a repetition by,
//! - `webhook-timestamp`: Unix seconds of this try,
//! - `webhook-signature`: `v1,` and the base64 HMAC-SHA-256, with the shared secret, over
//!   `ID.TIMESTAMP.BODY` (the form of the Standard Webhooks specification).
//!
//! Any 2xx answer settles it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::hmac;
use axum::body::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Uri};
use jiff::Timestamp;
use tracing::warn;

use crate::base::encoding::base64;
use crate::base::files::{FileError, Readers, read_checked};
use crate::http::client::{ClientLimits, Target};
use crate::http::tls::{self, TlsError};
use crate::http::{Client, ClientError, media_type};

/// Shortest shared secret, in bytes.
pub const SECRET_MIN: usize = 32;

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The secret or the certificates cannot be read.
    #[error("cannot read a file")]
    File(#[from] FileError),
    /// The secret is too short.
    #[error("{} must hold a secret of at least {SECRET_MIN} bytes", path.display())]
    Secret {
        /// The file.
        path: PathBuf,
    },
    /// No certificate to trust.
    #[error("cannot trust any certificate")]
    Tls(#[from] TlsError),
    /// The URL is none, or not https.
    #[error("the URL cannot be used")]
    Url(#[from] ClientError),
}

/// Why one try failed.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// There was no answer.
    #[error("no answer")]
    Client(#[from] ClientError),
    /// The request cannot be built.
    #[error("the request cannot be built")]
    Request(#[from] http::Error),
    /// The receiver did not take it.
    #[error("the receiver answered {0}")]
    Status(http::StatusCode),
}

/// Whom to trust: the operating system's authorities, or those in a PEM file. Where the system has
/// none nobody is trusted, and what cannot be delivered says so: the service works all the same.
pub fn trust(
    ca_file: Option<&Path>,
) -> Result<std::sync::Arc<rustls::ClientConfig>, EndpointError> {
    let roots = match ca_file {
        Some(path) => {
            let pem = read_checked(path, Readers::Anybody, 1024 * 1024)?;
            tls::roots(tls::certificates(&pem)?)?
        }
        None => match tls::system_roots() {
            Err(TlsError::NoRoots) => {
                warn!(
                    "the system trusts no certificate authority, so nothing can be delivered by \
                     HTTPS: install ca-certificates or set `ca-file`"
                );
                rustls::RootCertStore::empty()
            }
            roots => roots?,
        },
    };
    Ok(tls::client(roots, None)?)
}

/// Reads a shared secret from a file.
pub fn secret(path: &Path) -> Result<Vec<u8>, EndpointError> {
    let secret = read_checked(path, Readers::Owner, 256)?;
    let secret = secret.trim_ascii();
    if secret.len() < SECRET_MIN {
        return Err(EndpointError::Secret { path: path.into() });
    }
    Ok(secret.to_vec())
}

/// An address and the secret shared with whoever is there.
pub struct Endpoint {
    target: Target,
    path: String,
    key: hmac::Key,
}

impl Endpoint {
    /// The address `url`, reached with `config`.
    pub fn new(
        url: &str,
        config: std::sync::Arc<rustls::ClientConfig>,
        secret: &[u8],
    ) -> Result<Self, EndpointError> {
        let target = Target::from_url(url, config)?;
        let path = url
            .parse::<Uri>()
            .ok()
            .and_then(|uri| uri.path_and_query().map(ToString::to_string))
            .unwrap_or_else(|| "/".into());
        Ok(Self {
            target,
            path,
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
        })
    }

    /// Sends `body` once.
    pub async fn post(&self, id: &str, body: &str, now: Timestamp) -> Result<(), PostError> {
        let timestamp = now.as_second();
        let signed = format!("{id}.{timestamp}.{body}");
        let signature = hmac::sign(&self.key, signed.as_bytes());
        let request = Request::post(&self.path)
            .header(CONTENT_TYPE, media_type::JSON)
            .header("webhook-id", id)
            .header("idempotency-key", id)
            .header("webhook-timestamp", timestamp)
            .header(
                "webhook-signature",
                format!("v1,{}", base64(signature.as_ref())),
            )
            .body(Bytes::from(body.to_owned()))?;
        let limits = ClientLimits {
            connect: Duration::from_secs(10),
            request: Duration::from_secs(20),
            body_bytes: 64 * 1024,
        };
        let mut client = Client::connect(&self.target, limits).await?;
        let status = client.send(request).await?.status();
        if status.is_success() {
            Ok(())
        } else {
            Err(PostError::Status(status))
        }
    }
}
