//! OCSP answers per second, ours and those of `openssl ocsp`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use http::Request;
use opcert::base::encoding::hex;
use opcert::http::Client;
use opcert::http::client::ClientLimits;

use crate::report::report;
use crate::scene::{Scene, run, succeed};
use crate::{IN_FLIGHT, ROUNDS};

/// Answers a round.
const ANSWERS: usize = 800;

/// `openssl ocsp` with two processes, as the service has two cores.
struct Peer {
    child: Child,
    port: u16,
}

impl Peer {
    fn start(directory: &Path, serial: &str) -> Self {
        let path = |name: &str| directory.join(name).display().to_string();
        let (key, root, index) = (path("peer-key.pem"), path("peer.pem"), path("index.txt"));
        let mut request = Command::new("openssl");
        request
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args([
                "-nodes", "-keyout", &key, "-out", &root, "-subj", "/CN=peer", "-days", "30",
            ]);
        succeed(&mut request);
        let line = format!("V\t391231235959Z\t\t{serial}\tunknown\t/CN=one\n");
        std::fs::write(&index, line).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let child = Command::new("openssl")
            .args([
                "ocsp",
                "-port",
                &port.to_string(),
                "-index",
                &index,
                "-CA",
                &root,
            ])
            .args([
                "-rsigner", &root, "-rkey", &key, "-nmin", "30", "-multi", "2",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "openssl ocsp does not listen");
            std::thread::yield_now();
        }
        Self { child, port }
    }

    /// Asks one question on a connection of its own: the responder closes it.
    fn ask(port: u16, question: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let head = format!(
            "POST / HTTP/1.0\r\ncontent-type: application/ocsp-request\r\ncontent-length: {}\r\n\r\n",
            question.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(question).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    }

    fn rate(&self, question: &[u8]) -> f64 {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..IN_FLIGHT {
                scope.spawn(|| {
                    for _ in 0..ANSWERS / IN_FLIGHT {
                        let answer = Self::ask(self.port, question);
                        assert!(answer.starts_with(b"HTTP/1.0 200"), "{answer:?}");
                    }
                });
            }
        });
        ANSWERS as f64 / begun.elapsed().as_secs_f64()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It waits for its processes, whatever it is told: all of them go.
        let group = format!("-{}", self.child.id());
        run(Command::new("kill").args(["-KILL", "--", &group]), "");
        let _ = self.child.wait();
    }
}

/// Answers over HTTPS, on connections that stay.
async fn rate(scene: &Scene, question: &[u8]) -> f64 {
    let question = Bytes::copy_from_slice(question);
    let target = Arc::new(scene.target.clone());
    let mut clients = Vec::new();
    for _ in 0..IN_FLIGHT {
        let limits = ClientLimits::default();
        clients.push(Client::connect(&target, limits).await.unwrap());
    }
    let begun = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for mut client in clients {
        let question = question.clone();
        workers.spawn(async move {
            for _ in 0..ANSWERS / IN_FLIGHT {
                let request = Request::post("/ocsp")
                    .header("content-type", "application/ocsp-request")
                    .body(question.clone())
                    .unwrap();
                let answer = client.send(request).await.unwrap();
                assert!(answer.status().is_success());
            }
        });
    }
    workers.join_all().await;
    ANSWERS as f64 / begun.elapsed().as_secs_f64()
}

pub async fn answers(kind: &str) {
    let scene = Scene::new().await;
    let directory = scene.made.token.directory().to_owned();
    let installed = scene.installed("alice", "c1").await;
    let serial = hex(installed.certificate.serial());
    let peer = Peer::start(&directory, &serial.to_uppercase());
    let question = |issuer: &str, nonce: &[&str]| {
        let out = directory.join("question.der").display().to_string();
        let serial = format!("0x{serial}");
        let mut openssl = Command::new("openssl");
        openssl
            .args([
                "ocsp", "-issuer", issuer, "-serial", &serial, "-reqout", &out,
            ])
            .args(nonce);
        run(&mut openssl, "");
        std::fs::read(&out).unwrap()
    };
    let own = scene.made.state().join("ca.pem").display().to_string();
    let other = directory.join("peer.pem").display().to_string();
    for (what, nonce) in [("kept", &["-no_nonce"][..]), ("signed", &[])] {
        let (ours, theirs) = (question(&own, nonce), question(&other, nonce));
        let (mut our_rates, mut their_rates) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            our_rates.push(rate(&scene, &ours).await);
            their_rates.push(tokio::task::block_in_place(|| peer.rate(&theirs)));
        }
        let name = format!("account-ocsp-{kind}-{what}");
        report(&name, "answers/s", &our_rates, &their_rates);
    }
    drop(peer);
    scene.end().await;
}
