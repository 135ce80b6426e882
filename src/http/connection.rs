//! One connection from accept to close: handshake, requests, time limits, graceful end.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower_service::Service;
use tracing::{debug, trace};

use super::server::Phase;
use super::{Limits, Peer, PeerCertificate, RequestBody};
use crate::telemetry::Chain;
use crate::telemetry::metrics::DoorCells;

/// The smallest buffer hyper accepts for HTTP/1.1.
const MINIMUM_BUFFER: usize = 8_192;

/// What a connection needs from its door.
#[derive(Clone)]
pub(super) struct Setting {
    pub router: Router,
    pub limits: Arc<Limits>,
    pub phase: watch::Receiver<Phase>,
    /// Where the door's numbers are kept.
    pub cells: Arc<DoorCells>,
}

/// The protocol both ends agreed on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// The first byte of a TLS connection: a handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// The answer to whoever speaks HTTP without TLS. It is the same for everybody and does nothing. A
/// page that cannot read it, but can tell it from no answer, knows that the daemon runs and its
/// certificate is what its browser does not trust.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n\
    content-length: 24\r\nconnection: close\r\n\r\nThis port speaks HTTPS.\n";

/// What becomes of a peer of a TLS door that speaks no TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutTls {
    /// It gets an alert and the end of the connection.
    Close,
    /// It gets [`SPEAK_TLS`].
    Explain,
}

async fn accept_tls(
    mut stream: TcpStream,
    acceptor: TlsAcceptor,
    without_tls: WithoutTls,
) -> io::Result<TlsStream<TcpStream>> {
    if without_tls == WithoutTls::Close {
        return acceptor.accept(stream).await;
    }
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first != [TLS_HANDSHAKE] {
        // Unread bytes at the close would make the kernel reset the connection and lose the answer.
        let mut head = [0; 1024];
        let _ = stream.read(&mut head).await?;
        stream.write_all(SPEAK_TLS).await?;
        stream.shutdown().await?;
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the peer does not speak TLS",
        ));
    }
    acceptor.accept(stream).await
}

/// Serves a TLS connection.
pub(super) async fn serve_tls(
    stream: TcpStream,
    address: std::net::SocketAddr,
    acceptor: TlsAcceptor,
    without_tls: WithoutTls,
    mut setting: Setting,
) {
    let handshake = timeout(
        setting.limits.handshake_timeout(),
        accept_tls(stream, acceptor, without_tls),
    );
    let stream = tokio::select! {
        outcome = handshake => match outcome {
            Ok(Ok(stream)) => stream,
            // A browser opens and aborts connections when it sees a certificate request, so this
            // is no sign of an attack.
            Ok(Err(error)) => {
                setting.cells.handshake_failures.increment();
                debug!(%address, %error, "TLS handshake failed");
                return;
            }
            Err(_) => {
                setting.cells.handshake_failures.increment();
                debug!(%address, "TLS handshake took too long");
                return;
            }
        },
        // A handshake has no request yet that a drain should wait for.
        _ = setting.phase.wait_for(|phase| *phase != Phase::Serving) => return,
    };
    let (_, session) = stream.get_ref();
    let certificate = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|der| Arc::new(PeerCertificate::new(der.clone().into_owned())));
    let protocol = match session.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        _ => Protocol::Http1,
    };
    let peer = Peer::Tls {
        certificate,
        address,
    };
    serve(stream, protocol, peer, setting).await;
}

/// Serves a connection without TLS.
pub(super) async fn serve_plain<S>(stream: S, peer: Peer, setting: Setting)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    serve(stream, Protocol::Http1, peer, setting).await;
}

async fn serve<S>(stream: S, protocol: Protocol, peer: Peer, setting: Setting)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Setting {
        router,
        limits,
        phase,
        cells,
    } = setting;
    let activity = Arc::new(Activity::new());
    let service = {
        let activity = activity.clone();
        let (limit, body_timeout) = (limits.body_bytes, limits.body_timeout());
        service_fn(move |request: hyper::Request<Incoming>| {
            let in_flight = InFlight::enter(&activity);
            let begun = std::time::Instant::now();
            let mut request = request.map(|body| RequestBody::new(body, limit, body_timeout));
            request.extensions_mut().insert(peer.clone());
            let mut router = router.clone();
            let cells = cells.clone();
            async move {
                let Ok(response) = router.call(request).await;
                drop(in_flight);
                cells.seconds.observe(begun.elapsed());
                let class = usize::from(response.status().as_u16() / 100).wrapping_sub(1);
                if let Some(count) = cells.requests.get(class) {
                    count.increment();
                }
                Ok::<_, Infallible>(response)
            }
        })
    };
    let header_bytes = limits.header_bytes as usize;
    let outcome = match protocol {
        Protocol::Http1 => {
            let io = TokioIo::new(Observed {
                stream,
                activity: activity.clone(),
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                // The watch below covers the head; hyper's own timer would also end idle
                // connections, and is made anew for each request.
                .header_read_timeout(None)
                .max_header_size(header_bytes)
                .max_buf_size(header_bytes.max(MINIMUM_BUFFER))
                // Head and body in one buffer make one TLS record and one write.
                .writev(false)
                .serve_connection(io, service);
            drive(connection, &activity, &limits, phase).await
        }
        Protocol::Http2 => {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits.requests_per_connection)
                .max_header_list_size(limits.header_bytes)
                .serve_connection(TokioIo::new(stream), service);
            drive(connection, &activity, &limits, phase).await
        }
    };
    match outcome {
        Ended::Closed => trace!("connection closed"),
        Ended::Failed(reason) => debug!(%reason, "connection failed"),
        Ended::Stalled => debug!("connection closed: it sent no whole request head in time"),
        Ended::Cut => debug!("connection cut"),
    }
}

enum Ended {
    Closed,
    Failed(String),
    Stalled,
    Cut,
}

async fn drive<C>(
    connection: C,
    activity: &Activity,
    limits: &Limits,
    mut phase: watch::Receiver<Phase>,
) -> Ended
where
    C: GracefulConnection,
    C::Error: std::error::Error,
{
    let mut connection = pin!(connection);
    let mut alarm = pin!(sleep_until(activity.begun + limits.header_timeout()));
    let mut closing = false;
    loop {
        tokio::select! {
            biased;
            outcome = connection.as_mut() => return match outcome {
                Ok(()) => Ended::Closed,
                Err(error) => Ended::Failed(Chain(&error).to_string()),
            },
            changed = phase.changed() => {
                let cut = changed.is_err() || *phase.borrow_and_update() == Phase::Cut;
                if cut {
                    return Ended::Cut;
                }
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
            () = alarm.as_mut() => match activity.judge(limits) {
                Verdict::Wait(until) => alarm.as_mut().reset(until),
                Verdict::Stalled => return Ended::Stalled,
                // Asked to close already: it does not read what it is sent.
                Verdict::Idle if closing => return Ended::Cut,
                Verdict::Idle => {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                    alarm.as_mut().reset(Instant::now() + limits.header_timeout());
                }
            },
        }
    }
}

/// What a connection is doing, in milliseconds since it began. Written by its reader and its
/// requests, read by its timer.
struct Activity {
    begun: Instant,
    in_flight: AtomicU32,
    /// When the first byte of the head now being read arrived; [`NEVER`] between requests.
    head_since: AtomicU64,
    idle_since: AtomicU64,
}

const NEVER: u64 = u64::MAX;

enum Verdict {
    Wait(Instant),
    Stalled,
    Idle,
}

impl Activity {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            in_flight: AtomicU32::new(0),
            // The first head is due from the start.
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    fn bytes_arrived(&self) {
        if self.in_flight.load(Ordering::Relaxed) == 0
            && self.head_since.load(Ordering::Relaxed) == NEVER
        {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    fn judge(&self, limits: &Limits) -> Verdict {
        let now = Instant::now();
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            return Verdict::Wait(now + limits.header_timeout());
        }
        let head_since = self.head_since.load(Ordering::Relaxed);
        if head_since != NEVER {
            let due = self.at(head_since) + limits.header_timeout();
            return if due <= now {
                Verdict::Stalled
            } else {
                Verdict::Wait(due)
            };
        }
        let due = self.at(self.idle_since.load(Ordering::Relaxed)) + limits.idle_timeout();
        if due <= now {
            Verdict::Idle
        } else {
            Verdict::Wait(due.min(now + limits.header_timeout()))
        }
    }

    fn at(&self, millis: u64) -> Instant {
        self.begun + std::time::Duration::from_millis(millis)
    }
}

/// Counts one request for as long as it lives.
struct InFlight(Arc<Activity>);

impl InFlight {
    fn enter(activity: &Arc<Activity>) -> Self {
        activity.in_flight.fetch_add(1, Ordering::Relaxed);
        activity.head_since.store(NEVER, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream whose reads are noted.
struct Observed<S> {
    stream: S,
    activity: Arc<Activity>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.bytes_arrived();
        }
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
