//! A lean load generator over mutual TLS: one thread, as little work a request as possible.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::scene::Scene;

#[derive(Clone, Copy, PartialEq)]
pub enum Protocol {
    Http1,
    Http2,
}

pub struct Run {
    pub rate: f64,
    pub p50: Duration,
}

/// Sends every challenge once, `in_flight` at a time: HTTP/1.1 with a connection each, HTTP/2
/// over two connections.
pub fn run(bench: &Scene, protocol: Protocol, in_flight: usize, challenges: Vec<String>) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bodies: Vec<Bytes> = challenges
        .into_iter()
        .map(|challenge| Bytes::from(format!("{{\"challenge\":\"{challenge}\"}}")))
        .collect();
    let count = bodies.len();
    let queue = Arc::new(std::sync::Mutex::new(bodies));
    let local = tokio::task::LocalSet::new();
    let (elapsed, mut latencies) = local.block_on(&runtime, async {
        let mut senders = Vec::new();
        if protocol == Protocol::Http2 {
            for _ in 0..in_flight.min(2) {
                let stream = connect(bench, b"h2").await;
                let (sender, connection) = hyper::client::conn::http2::handshake(
                    TokioExecutor::new(),
                    TokioIo::new(stream),
                )
                .await
                .unwrap();
                tokio::task::spawn_local(connection);
                senders.push(sender);
            }
        }
        let mut streams = Vec::new();
        if protocol == Protocol::Http1 {
            for _ in 0..in_flight {
                streams.push(connect(bench, b"http/1.1").await);
            }
        }
        let host = format!("localhost:{}", bench.address().port());
        let start = Instant::now();
        let mut tasks = Vec::new();
        for slot in 0..in_flight {
            let queue = queue.clone();
            let host = host.clone();
            if protocol == Protocol::Http2 {
                let sender = senders[slot % senders.len()].clone();
                tasks.push(tokio::task::spawn_local(over_http2(sender, host, queue)));
            } else {
                let stream = streams.pop().unwrap();
                tasks.push(tokio::task::spawn_local(over_http1(stream, host, queue)));
            }
        }
        let mut latencies = Vec::with_capacity(count);
        for task in tasks {
            latencies.extend(task.await.unwrap());
        }
        (start.elapsed(), latencies)
    });
    assert_eq!(latencies.len(), count, "every request is answered");
    latencies.sort();
    Run {
        rate: count as f64 / elapsed.as_secs_f64(),
        p50: latencies[count / 2],
    }
}

type Queue = Arc<std::sync::Mutex<Vec<Bytes>>>;

fn next(queue: &Queue) -> Option<Bytes> {
    queue.lock().unwrap().pop()
}

async fn over_http2(
    mut sender: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    host: String,
    queue: Queue,
) -> Vec<Duration> {
    let mut latencies = Vec::new();
    while let Some(body) = next(&queue) {
        let start = Instant::now();
        let request = http::Request::post(format!("https://{host}/v1/approvals"))
            .header("content-type", "application/json")
            .body(Full::new(body))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        latencies.push(start.elapsed());
    }
    latencies
}

async fn over_http1(mut stream: TlsStream<TcpStream>, host: String, queue: Queue) -> Vec<Duration> {
    let mut latencies = Vec::new();
    let mut buffer = Vec::with_capacity(16 * 1024);
    while let Some(body) = next(&queue) {
        let start = Instant::now();
        let mut request = format!(
            "POST /v1/approvals HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(&body);
        stream.write_all(&request).await.unwrap();
        stream.flush().await.unwrap();
        buffer.clear();
        loop {
            let read = stream.read_buf(&mut buffer).await.unwrap();
            assert_ne!(
                read,
                0,
                "connection closed: {}",
                String::from_utf8_lossy(&buffer)
            );
            if complete(&buffer) {
                break;
            }
        }
        assert!(
            buffer.starts_with(b"HTTP/1.1 200 "),
            "{}",
            String::from_utf8_lossy(&buffer)
        );
        latencies.push(start.elapsed());
    }
    latencies
}

fn complete(buffer: &[u8]) -> bool {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let head = std::str::from_utf8(&buffer[..end])
        .unwrap()
        .to_ascii_lowercase();
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .expect("a content-length")
        .parse()
        .unwrap();
    buffer.len() >= end + 4 + length
}

async fn connect(bench: &Scene, alpn: &[u8]) -> TlsStream<TcpStream> {
    let mut config = bench.client_config();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(bench.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect("localhost".try_into().unwrap(), stream)
        .await
        .unwrap()
}
