//! Doors over real sockets. Time is tokio's paused clock where a limit in time is tested.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Extension;
use axum::routing::{get, post};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::client::{ClientLimits, Target};
use super::{BodyError, Client, ClientError, Door, Drained, Limits, Listener, Peer, Server};

struct Bench {
    directory: tempfile::TempDir,
    server: Server,
}

impl Bench {
    fn start(limits: Limits, router: Router) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let server = Server::start(vec![Door {
            name: "test",
            listener: Listener::Unix { listener },
            limits,
            router,
        }]);
        Self { directory, server }
    }

    fn target(&self) -> Target {
        Target::Unix(self.directory.path().join("s"))
    }

    async fn client(&self) -> Client {
        Client::connect(&self.target(), ClientLimits::default())
            .await
            .unwrap()
    }

    async fn stream(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("s"))
            .await
            .unwrap()
    }
}

fn echo() -> Router {
    Router::new().route(
        "/echo",
        post(|body: Body| async move {
            match body.collect().await {
                Ok(bytes) => Ok(bytes.to_bytes()),
                Err(error) => Err(match *error.into_inner().downcast().unwrap() {
                    BodyError::TooLarge { .. } => "too large",
                    BodyError::TooSlow { .. } => "too slow",
                    BodyError::Broken { .. } => "broken",
                }),
            }
        }),
    )
}

fn post_echo(body: impl Into<Bytes>) -> Request<Bytes> {
    Request::post("/echo").body(body.into()).unwrap()
}

async fn read_to_end(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    // A server that closes before it has read everything resets the connection: an end as well.
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_knows_its_peer() {
    let router = echo().route(
        "/peer",
        get(|Extension(peer): Extension<Peer>| async move { format!("{peer:?}") }),
    );
    let bench = Bench::start(Limits::default(), router);
    let mut client = bench.client().await;
    for round in 0..3 {
        let body = format!("round {round}");
        let answer = client.send(post_echo(body.clone())).await.unwrap();
        assert_eq!(answer.body(), body.as_bytes());
    }
    let request = Request::get("/peer").body(Bytes::new()).unwrap();
    let answer = client.send(request).await.unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let text = String::from_utf8_lossy(answer.body()).into_owned();
    assert!(text.contains(&format!("uid: {uid}")), "{text}");
}

#[tokio::test]
async fn a_body_past_the_limit_is_an_error_of_the_reader() {
    let limits = Limits {
        body_bytes: 1_024,
        ..Limits::default()
    };
    let bench = Bench::start(limits, echo());
    let answer = bench
        .client()
        .await
        .send(post_echo(vec![b'x'; 1_024]))
        .await
        .unwrap();
    assert_eq!(answer.body().len(), 1_024);
    let answer = bench
        .client()
        .await
        .send(post_echo(vec![b'x'; 1_025]))
        .await
        .unwrap();
    assert_eq!(answer.body(), "too large");

    let mut stream = bench.stream().await;
    let chunked = format!(
        "POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n800\r\n{}",
        "x".repeat(0x800)
    );
    stream.write_all(chunked.as_bytes()).await.unwrap();
    assert!(read_to_end(&mut stream).await.contains("too large"));
}

#[tokio::test]
async fn an_oversize_head_and_garbage_get_an_answer_and_the_door() {
    let limits = Limits {
        header_bytes: 1_024,
        ..Limits::default()
    };
    let bench = Bench::start(limits, echo());
    for (sent, status) in [
        (
            format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "x".repeat(2_000)),
            "431",
        ),
        (format!("GET / HTTP/1.1\r\na: {}", "x".repeat(9_000)), "431"),
        ("\u{1}\u{2}\u{3}garbage\r\n\r\n".to_owned(), "400"),
    ] {
        let mut stream = bench.stream().await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let answer = read_to_end(&mut stream).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn one_connection_past_the_limit_is_closed_at_once() {
    let limits = Limits {
        connections: 1,
        ..Limits::default()
    };
    let bench = Bench::start(limits, echo());
    let mut client = bench.client().await;
    client.send(post_echo("first")).await.unwrap();
    let mut second = bench.stream().await;
    assert_eq!(read_to_end(&mut second).await, "");
    drop(client);
    // The place is free as soon as the server has seen the close.
    loop {
        let mut third = bench.client().await;
        match third.send(post_echo("third")).await {
            Ok(answer) => break assert_eq!(answer.body(), "third"),
            Err(ClientError::Http { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_a_silent_start_and_an_idle_connection_are_closed() {
    let bench = Bench::start(Limits::default(), echo());
    let begun = tokio::time::Instant::now();
    let mut silent = bench.stream().await;
    assert_eq!(read_to_end(&mut silent).await, "");
    assert!(begun.elapsed() <= Duration::from_secs(11));

    let mut slow = bench.stream().await;
    slow.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
    assert_eq!(read_to_end(&mut slow).await, "");

    let begun = tokio::time::Instant::now();
    let mut idle = bench.stream().await;
    idle.write_all(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        .await
        .unwrap();
    assert!(read_to_end(&mut idle).await.starts_with("HTTP/1.1 200"));
    let open = begun.elapsed().as_secs();
    assert!((120..=140).contains(&open), "{open} s");

    let mut body = bench.stream().await;
    body.write_all(
        b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9\r\n\r\nx",
    )
    .await
    .unwrap();
    assert!(read_to_end(&mut body).await.contains("too slow"));
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_requests_and_cuts_them_at_the_deadline() {
    for (work, outcome) in [(1, Drained::Complete), (60, Drained::Cut)] {
        let (started, mut wait) = tokio::sync::mpsc::channel(1);
        let router = Router::new().route(
            "/work",
            get(move || async move {
                started.send(()).await.unwrap();
                // Work that takes time, by the paused clock: nobody waits for it.
                tokio::time::sleep(Duration::from_secs(work)).await;
                "done"
            }),
        );
        let bench = Bench::start(Limits::default(), router);
        let mut client = bench.client().await;
        let request = Request::get("/work").body(Bytes::new()).unwrap();
        let request = tokio::spawn(async move { client.send(request).await });
        wait.recv().await.unwrap();
        assert_eq!(bench.server.drain(Duration::from_secs(10)).await, outcome);
        let answer = request.await.unwrap();
        assert_eq!(answer.is_ok(), outcome == Drained::Complete);
        assert!(
            UnixStream::connect(bench.directory.path().join("s"))
                .await
                .is_err()
        );
    }
}

#[test]
fn default_limits_can_work_and_a_zero_cannot() {
    Limits::default().check().unwrap();
    let limits = Limits {
        connections: 0,
        ..Limits::default()
    };
    assert_eq!(limits.check().unwrap_err().key, "connections");
}
