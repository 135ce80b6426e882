//! A client over one connection: a Unix socket, or TLS to a host.
//!
//! It keeps the connection for further requests, gives each a deadline and limits the answer.
//! The command line uses it as the courier between daemon and account service; the daemon itself
//! uses it nowhere, as it opens no connection.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// Where to connect.
#[derive(Debug, Clone)]
pub enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TLS server.
    Tls {
        /// A DNS name or an IP address (without brackets); the certificate must name it.
        host: String,
        /// TCP port.
        port: u16,
        /// Trust and, where asked for, the client's certificate; see [`super::tls::client`].
        config: Arc<ClientConfig>,
    },
}

impl Target {
    /// The server of an `https` URL; its path is not used.
    pub fn from_url(url: &str, config: Arc<ClientConfig>) -> Result<Self, ClientError> {
        let wrong = || ClientError::Url {
            url: url.to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("https") {
            return Err(wrong());
        }
        let host = uri.host().ok_or_else(wrong)?;
        Ok(Self::Tls {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(443),
            config,
        })
    }

    fn name(&self) -> String {
        match self {
            Self::Unix(path) => path.display().to_string(),
            Self::Tls { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tls { host, port, .. } => format!("{host}:{port}"),
        }
    }

    fn host_header(&self) -> Result<HeaderValue, ClientError> {
        let host = match self {
            Self::Unix(_) => "localhost".to_owned(),
            Self::Tls {
                port: 443, host, ..
            } if !host.contains(':') => host.clone(),
            Self::Tls { .. } => self.name(),
        };
        HeaderValue::try_from(&host).map_err(|_| ClientError::Url { url: host })
    }
}

/// Limits of a [`Client`].
#[derive(Debug, Clone, Copy)]
pub struct ClientLimits {
    /// For connect and handshake together.
    pub connect: Duration,
    /// For a request until the whole answer is there.
    pub request: Duration,
    /// Bytes of an answer's body.
    pub body_bytes: usize,
}

impl Default for ClientLimits {
    /// 10 s, 30 s, 4 MiB.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            request: Duration::from_secs(30),
            body_bytes: 4 * 1024 * 1024,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an `https` URL with a host.
    #[error("{url:?} is not an https URL with a host")]
    Url {
        /// As given.
        url: String,
    },
    /// The host is neither a DNS name nor an IP address.
    #[error("{host:?} is no host name")]
    HostName {
        /// As given.
        host: String,
    },
    /// Nobody listens, or the socket may not be used.
    #[error("cannot connect to {target}")]
    Connect {
        /// Where to.
        target: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// TLS was refused by one side.
    #[error("TLS with {target} failed")]
    Tls {
        /// Where to.
        target: String,
        /// What TLS said.
        #[source]
        source: io::Error,
    },
    /// The other side does not speak HTTP, or broke off.
    #[error("HTTP with {target} failed")]
    Http {
        /// Where to.
        target: String,
        /// What hyper said.
        #[source]
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("{target} gave no answer within {} s", limit.as_secs())]
    Timeout {
        /// Where to.
        target: String,
        /// The limit.
        limit: Duration,
    },
    /// More bytes than asked for.
    #[error("the answer of {target} is larger than {limit} bytes")]
    TooLarge {
        /// Where to.
        target: String,
        /// The limit.
        limit: usize,
    },
    /// The answer's body could not be read.
    #[error("the answer of {target} broke off")]
    Broken {
        /// Where to.
        target: String,
        /// What was seen.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// One connection. Dropping it closes it.
#[derive(Debug)]
pub struct Client {
    target: String,
    host: HeaderValue,
    limits: ClientLimits,
    sender: http1::SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
}

impl Client {
    /// Connects.
    pub async fn connect(target: &Target, limits: ClientLimits) -> Result<Self, ClientError> {
        let name = target.name();
        let connecting = async {
            match target {
                Target::Unix(path) => {
                    let stream =
                        UnixStream::connect(path)
                            .await
                            .map_err(|source| ClientError::Connect {
                                target: name.clone(),
                                source,
                            })?;
                    handshake(&name, stream).await
                }
                Target::Tls { host, port, config } => {
                    let server = ServerName::try_from(host.clone())
                        .map_err(|_| ClientError::HostName { host: host.clone() })?;
                    let stream = TcpStream::connect((host.as_str(), *port))
                        .await
                        .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
                        .map_err(|source| ClientError::Connect {
                            target: name.clone(),
                            source,
                        })?;
                    let stream = TlsConnector::from(config.clone())
                        .connect(server, stream)
                        .await
                        .map_err(|source| ClientError::Tls {
                            target: name.clone(),
                            source,
                        })?;
                    handshake(&name, stream).await
                }
            }
        };
        let (sender, driver) = tokio::time::timeout(limits.connect, connecting)
            .await
            .map_err(|_| ClientError::Timeout {
                target: name.clone(),
                limit: limits.connect,
            })??;
        Ok(Self {
            host: target.host_header()?,
            target: name,
            limits,
            sender,
            driver,
        })
    }

    /// Sends a request, whose URI is a path and query, and reads the whole answer. `Host` is set
    /// unless it is there.
    pub async fn send(&mut self, request: Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
        let limit = self.limits.request;
        tokio::time::timeout(limit, self.exchange(request))
            .await
            .map_err(|_| ClientError::Timeout {
                target: self.target.clone(),
                limit,
            })?
    }

    /// Sends a request and reads the head of its answer; the body comes piece by piece, without a
    /// deadline, as long as the connection is kept.
    pub async fn stream(
        &mut self,
        request: Request<Bytes>,
    ) -> Result<Response<Pieces>, ClientError> {
        let limit = self.limits.request;
        let response = tokio::time::timeout(limit, self.begin(request))
            .await
            .map_err(|_| ClientError::Timeout {
                target: self.target.clone(),
                limit,
            })??;
        Ok(response.map(|body| Pieces {
            target: self.target.clone(),
            limit: self.limits.body_bytes,
            body,
        }))
    }

    /// Whether the other side has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    async fn begin(&mut self, request: Request<Bytes>) -> Result<Response<Incoming>, ClientError> {
        let mut request = request.map(Full::new);
        request
            .headers_mut()
            .entry(HOST)
            .or_insert_with(|| self.host.clone());
        let failed = |source| ClientError::Http {
            target: self.target.clone(),
            source,
        };
        self.sender.ready().await.map_err(failed)?;
        self.sender.send_request(request).await.map_err(failed)
    }

    async fn exchange(&mut self, request: Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
        let (head, body) = self.begin(request).await?.into_parts();
        let pieces = Pieces {
            target: self.target.clone(),
            limit: self.limits.body_bytes,
            body,
        };
        Ok(Response::from_parts(head, pieces.whole().await?))
    }
}

/// The body of an answer, as it comes.
#[derive(Debug)]
pub struct Pieces {
    target: String,
    limit: usize,
    body: Incoming,
}

impl Pieces {
    /// All of it, within the client's limit.
    pub async fn whole(self) -> Result<Bytes, ClientError> {
        let Self {
            target,
            limit,
            body,
        } = self;
        match Limited::new(body, limit).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(source) if source.is::<LengthLimitError>() => {
                Err(ClientError::TooLarge { target, limit })
            }
            Err(source) => Err(ClientError::Broken { target, source }),
        }
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| ClientError::Broken {
                target: self.target.clone(),
                source: source.into(),
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn handshake<S>(
    target: &str,
    stream: S,
) -> Result<(http1::SendRequest<Full<Bytes>>, JoinHandle<()>), ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| ClientError::Http {
            target: target.to_owned(),
            source,
        })?;
    let driver = tokio::spawn(async move {
        // The request in flight gets the same error through its sender.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "client connection ended");
        }
    });
    Ok((sender, driver))
}
