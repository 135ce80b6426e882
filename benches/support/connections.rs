//! Connections: full handshakes a second against a server that does nothing else, and what an idle
//! one costs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use opcert::api::local_ca::LocalCa;
use opcert::http::tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::memory;
use crate::scene::Scene;

/// Handshakes under way at a time.
const AT_A_TIME: usize = 8;

/// Full mutual handshakes a second with the daemon, each with one refused request behind it that
/// shows that the daemon took the client's certificate.
pub fn handshakes(bench: &Scene, count: usize) -> f64 {
    shake_hands(bench, bench.address(), count)
}

/// The same with a server of hyper and rustls alone, under the same authority, in this process.
pub fn bare_handshakes(bench: &Scene, count: usize) -> f64 {
    let now = opcert::base::Clock::system().now();
    let ca = LocalCa::open(&bench.state_directory().join("local-ca"), now).unwrap();
    let roots = tls::roots([ca.certificate().der().to_vec().into()]).unwrap();
    let presented = tls::Presented::new(ca.server_identity(now).unwrap()).unwrap();
    let config = tls::mutual(presented.into(), roots).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        let acceptor = TlsAcceptor::from(config);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = hyper::service::service_fn(|_| async {
                    let answer = http::Response::builder().status(421);
                    answer.body(Full::new(Bytes::from_static(b"{}")))
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    let rate = shake_hands(bench, address, count);
    runtime.shutdown_background();
    rate
}

fn shake_hands(bench: &Scene, address: SocketAddr, count: usize) -> f64 {
    let runtime = client_runtime();
    let config = Arc::new(config(bench));
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let start = Instant::now();
        let tasks: Vec<_> = (0..AT_A_TIME)
            .map(|_| {
                let config = config.clone();
                tokio::task::spawn_local(async move {
                    for _ in 0..count / AT_A_TIME {
                        let mut stream = connect(&config, address).await;
                        stream.write_all(REFUSED).await.unwrap();
                        let mut answer = [0; 1024];
                        assert_ne!(stream.read(&mut answer).await.unwrap(), 0);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        (count / AT_A_TIME * AT_A_TIME) as f64 / start.elapsed().as_secs_f64()
    })
}

/// Resident memory of the daemon for each of `count` connections that have had a request and are
/// idle now, in KiB.
pub fn idle_kib(bench: &Scene, count: usize) -> f64 {
    let runtime = client_runtime();
    let config = Arc::new(config(bench));
    runtime.block_on(async {
        // What the first ones make the daemon allocate for good is not theirs.
        drop(open(&config, bench.address(), 50).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = memory::resident_mib(bench.daemon_pid());
        let connections = open(&config, bench.address(), count).await;
        let after = memory::resident_mib(bench.daemon_pid());
        drop(connections);
        (after - before) * 1024.0 / count as f64
    })
}

async fn open(
    config: &Arc<rustls::ClientConfig>,
    address: SocketAddr,
    count: usize,
) -> Vec<TlsStream<TcpStream>> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = connect(config, address).await;
        stream.write_all(REFUSED).await.unwrap();
        let mut answer = [0; 1024];
        assert_ne!(stream.read(&mut answer).await.unwrap(), 0);
        all.push(stream);
    }
    all
}

/// A request that is answered at the gate.
const REFUSED: &[u8] = b"GET / HTTP/1.1\r\nhost: nowhere\r\n\r\n";

fn client_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn config(bench: &Scene) -> rustls::ClientConfig {
    let mut config = bench.client_config();
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

async fn connect(config: &Arc<rustls::ClientConfig>, address: SocketAddr) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let name = "localhost".try_into().unwrap();
    TlsConnector::from(config.clone())
        .connect(name, stream)
        .await
        .unwrap()
}
