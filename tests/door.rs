//! The real daemon behind its real doors: what gets in, what is refused, and how it starts and
//! ends.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};
use hyper::body::Bytes;
use opcert::api::local_ca::LocalCa;
use opcert::api::problem::ProblemDocument;
use opcert::api::software_key::SoftwareKey;
use opcert::api::types::{AddedClient, ClientList, Status};
use opcert::base::encoding::base64;
use opcert::base::x509::{Certificate, CertificateRequest};
use opcert::http::client::{Client, ClientError, ClientLimits, Pieces, Target};
use opcert::http::tls::{self, Identity};
use serde_json::json;
use support::softhsm::TestToken;
use support::wait;
use support::wall_clock::{Timers, WallClock};

/// A daemon in a directory of its own, on free ports.
struct Daemon {
    directory: tempfile::TempDir,
    process: Child,
}

/// A place for a daemon to run in.
fn place(extra: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let config = format!(
        "state-directory = \"{0}/state\"\nruntime-directory = \"{0}/run\"\n\
         [native]\naddresses = [\"127.0.0.1:0\"]\n{extra}",
        directory.path().display()
    );
    write(&directory.path().join("opcertd.toml"), &config, 0o600);
    directory
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opcertd"));
    command
        .arg("--allow-root")
        .arg("--config")
        .arg(directory.join("opcertd.toml"))
        .stdin(Stdio::null());
    command
}

impl Daemon {
    fn start() -> Self {
        Self::start_in(place(""))
    }

    /// Starts it and waits until it says that it is ready.
    fn start_in(directory: tempfile::TempDir) -> Self {
        let command = command(directory.path());
        Self::spawn(directory, command)
    }

    fn spawn(directory: tempfile::TempDir, mut command: Command) -> Self {
        let path = directory.path().join("notify");
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let process = command.env("NOTIFY_SOCKET", &path).spawn().unwrap();
        let mut message = [0; 256];
        let length = socket.recv(&mut message).expect("the daemon gets ready");
        assert!(message[..length].starts_with(b"READY=1"));
        Self { directory, process }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn control(&self) -> Client {
        let target = Target::Unix(self.path("run/control.sock"));
        Client::connect(&target, ClientLimits::default())
            .await
            .unwrap()
    }

    async fn address(&self) -> SocketAddr {
        let answer = send(&mut self.control().await, Method::GET, "/v1/status", None).await;
        let status: Status = serde_json::from_slice(answer.body()).unwrap();
        status.addresses.native[0].parse().unwrap()
    }

    /// Registers a client and gives what it connects with.
    async fn add_client(&self, name: &str) -> NativeClient {
        let key = SoftwareKey::generate().unwrap();
        let body = json!({ "name": name, "csr": base64(&key.request(name).unwrap()) });
        let answer = send(
            &mut self.control().await,
            Method::POST,
            "/v1/clients",
            Some(body),
        )
        .await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let added: AddedClient = serde_json::from_slice(answer.body()).unwrap();
        let client = NativeClient {
            certificate: added.certificate,
            key: key.to_pem().unwrap().to_string(),
            ca: added.ca,
            address: self.address().await,
        };
        write(&self.path("client.pem"), &client.certificate, 0o600);
        write(&self.path("client-key.pem"), &client.key, 0o600);
        write(&self.path("server-ca.pem"), &client.ca, 0o600);
        client
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .args([signal, &self.process.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn stop(&mut self) -> ExitStatus {
        self.signal("-TERM");
        self.process.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct NativeClient {
    certificate: String,
    key: String,
    ca: String,
    address: SocketAddr,
}

impl NativeClient {
    fn target(&self, identity: Option<&Identity>) -> Target {
        let roots = tls::roots(tls::certificates(self.ca.as_bytes()).unwrap()).unwrap();
        Target::Tls {
            host: "127.0.0.1".into(),
            port: self.address.port(),
            config: tls::client(roots, identity).unwrap(),
        }
    }

    fn identity(&self) -> Identity {
        Identity::from_pem(self.certificate.as_bytes(), self.key.as_bytes()).unwrap()
    }

    async fn connect(&self) -> Client {
        self.connect_as(Some(&self.identity())).await.unwrap()
    }

    async fn connect_as(&self, identity: Option<&Identity>) -> Result<Client, ClientError> {
        Client::connect(&self.target(identity), ClientLimits::default()).await
    }
}

fn request(method: Method, path: &str) -> Request<Bytes> {
    Request::builder()
        .method(method)
        .uri(path)
        .body(Bytes::new())
        .unwrap()
}

async fn send(
    client: &mut Client,
    method: Method,
    path: &str,
    body: Option<serde_json::Value>,
) -> http::Response<Bytes> {
    let mut request = request(method, path);
    if let Some(body) = body {
        request
            .headers_mut()
            .insert("content-type", "application/json".parse().unwrap());
        *request.body_mut() = serde_json::to_vec(&body).unwrap().into();
    }
    client.send(request).await.unwrap()
}

/// Checks that an answer is a whole problem document of this code.
fn assert_problem(answer: &http::Response<Bytes>, code: &str) {
    let text = String::from_utf8_lossy(answer.body());
    assert_eq!(
        answer.headers().get("content-type").unwrap(),
        "application/problem+json",
        "{text}"
    );
    let problem: ProblemDocument = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(problem.code, code, "{text}");
    assert_eq!(problem.kind, format!("urn:opcert:problem:{code}"));
    assert_eq!(problem.status, answer.status().as_u16());
    assert!(!problem.detail.is_empty() && problem.action.ends_with('.'));
    assert_eq!(
        answer.headers().get("request-id").unwrap(),
        problem.request_id.as_str()
    );
}

#[tokio::test]
async fn a_registered_client_gets_in_by_http_1_and_http_2() {
    let daemon = Daemon::start();
    let client = daemon.add_client("erp").await;
    let mut connection = client.connect().await;
    let answer = send(&mut connection, Method::GET, "/v1/status", None).await;
    assert_eq!(answer.status(), StatusCode::OK);

    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        for host in ["localhost", "127.0.0.1"] {
            let output = Command::new("curl")
                .args([
                    "-sS",
                    flag,
                    "--tlsv1.3",
                    "-w",
                    "%{http_version} %{http_code}",
                ])
                .args(["-o", "/dev/null", "--cacert"])
                .arg(daemon.path("server-ca.pem"))
                .arg("--cert")
                .arg(daemon.path("client.pem"))
                .arg("--key")
                .arg(daemon.path("client-key.pem"))
                .arg(format!(
                    "https://{host}:{}/v1/status",
                    client.address.port()
                ))
                .output()
                .unwrap();
            assert_eq!(
                String::from_utf8_lossy(&output.stdout),
                format!("{version} 200"),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    let old = Command::new("curl")
        .args(["-sS", "--tls-max", "1.2", "-k"])
        .arg(format!("https://127.0.0.1:{}/", client.address.port()))
        .output()
        .unwrap();
    assert!(!old.status.success(), "TLS 1.2 is refused");
}

#[tokio::test]
async fn only_certificates_of_the_local_authority_pass_the_handshake() {
    let daemon = Daemon::start();
    let client = daemon.add_client("erp").await;
    let elsewhere = tempfile::tempdir().unwrap();
    let now = opcert::base::Clock::system().now();
    let other_ca = LocalCa::open(elsewhere.path(), now).unwrap();
    let key = SoftwareKey::generate().unwrap();
    let csr = CertificateRequest::from_der(&key.request("erp").unwrap()).unwrap();
    let forged = other_ca
        .issue_client(&"erp".parse().unwrap(), &csr, now)
        .unwrap();
    let forged = Identity::from_pem(
        forged.to_pem().unwrap().as_bytes(),
        key.to_pem().unwrap().as_bytes(),
    )
    .unwrap();
    for identity in [None, Some(&forged)] {
        // A TLS 1.3 client learns of the refusal from its first read.
        let outcome = match client.connect_as(identity).await {
            Ok(mut connection) => connection
                .send(request(Method::GET, "/v1/status"))
                .await
                .map(|answer| answer.status()),
            Err(error) => Err(error),
        };
        assert!(outcome.is_err(), "{outcome:?}");
    }
    // The daemon's server certificate is no client certificate.
    let server = Identity::from_pem(
        &std::fs::read(daemon.path("state/local-ca/server.pem")).unwrap(),
        &std::fs::read(daemon.path("state/local-ca/server-key.pem")).unwrap(),
    )
    .unwrap();
    if let Ok(mut connection) = client.connect_as(Some(&server)).await {
        assert!(
            connection
                .send(request(Method::GET, "/v1/status"))
                .await
                .is_err()
        );
    }
}

/// The certificate that whoever connects gets to see, whatever the time there.
fn presented(address: SocketAddr) -> String {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let end = "-----END CERTIFICATE-----";
    let begins = text.find("-----BEGIN CERTIFICATE-----").expect("one");
    let ends = text.find(end).expect("one") + end.len();
    text[begins..ends].to_owned()
}

#[tokio::test]
async fn a_daemon_that_runs_on_presents_a_new_certificate_in_time() {
    if WallClock::is_missing() {
        return;
    }
    let directory = place("");
    let clock = WallClock::new(directory.path(), Timers::Step);
    let mut command = command(directory.path());
    command.envs(clock.environment());
    let daemon = Daemon::spawn(directory, command);
    let address = daemon.address().await;
    let kept = || std::fs::read_to_string(daemon.path("state/local-ca/server.pem")).unwrap();
    let first = presented(address);
    assert_eq!(first, kept().trim_end());
    // In the last third of its 90 days, and an hour after the daemon last looked.
    clock.set(61 * 24 * 3600);
    let second = wait::until("a new certificate", || {
        Some(presented(address)).filter(|now| *now != first)
    });
    assert_eq!(second, kept().trim_end());
    let renewed = Certificate::from_pem(second.as_bytes()).unwrap();
    let before = Certificate::from_pem(first.as_bytes()).unwrap();
    assert!(renewed.not_after() > before.not_after());
}

#[tokio::test]
async fn a_removed_client_is_refused_on_the_next_request_of_an_open_connection() {
    let daemon = Daemon::start();
    let client = daemon.add_client("erp").await;
    let mut connection = client.connect().await;
    let answer = send(&mut connection, Method::GET, "/v1/status", None).await;
    assert_eq!(answer.status(), StatusCode::OK);

    let mut control = daemon.control().await;
    let again = json!({ "name": "erp", "csr": "" });
    let answer = send(&mut control, Method::POST, "/v1/clients", Some(again)).await;
    assert_problem(&answer, "csr-invalid");
    let listed = send(&mut control, Method::GET, "/v1/clients", None).await;
    let listed: ClientList = serde_json::from_slice(listed.body()).unwrap();
    assert_eq!(listed.clients.len(), 1);
    let answer = send(&mut control, Method::DELETE, "/v1/clients/erp", None).await;
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    let answer = send(&mut control, Method::DELETE, "/v1/clients/erp", None).await;
    assert_problem(&answer, "not-found");

    let answer = send(&mut connection, Method::GET, "/v1/status", None).await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_problem(&answer, "client-unknown");
    let mut anew = client.connect().await;
    let answer = send(&mut anew, Method::GET, "/v1/status", None).await;
    assert_problem(&answer, "client-unknown");
}

#[tokio::test]
async fn each_wrong_request_has_its_own_code() {
    let daemon = Daemon::start_in(place("[native.limits]\nbody-bytes = 4096\n"));
    let client = daemon.add_client("erp").await;
    let mut connection = client.connect().await;

    for header in [("origin", "https://localhost"), ("sec-fetch-mode", "cors")] {
        let mut browser = request(Method::GET, "/v1/status");
        browser
            .headers_mut()
            .insert(header.0, header.1.parse().unwrap());
        assert_problem(&connection.send(browser).await.unwrap(), "browser-refused");
    }
    let mut rebound = request(Method::GET, "/v1/status");
    rebound
        .headers_mut()
        .insert("host", "evil.example".parse().unwrap());
    let answer = connection.send(rebound).await.unwrap();
    assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
    assert_problem(&answer, "host-refused");

    let answer = send(&mut connection, Method::GET, "/favicon.ico", None).await;
    assert_problem(&answer, "not-found");
    let answer = send(&mut connection, Method::DELETE, "/v1/status", None).await;
    assert_problem(&answer, "method-not-allowed");
    assert!(answer.headers().contains_key("allow"));
    let answer = send(&mut connection, Method::GET, "/v1/clients", None).await;
    assert_problem(&answer, "not-permitted");

    let mut control = daemon.control().await;
    let mut typed = request(Method::POST, "/v1/clients");
    typed
        .headers_mut()
        .insert("content-type", "text/plain".parse().unwrap());
    *typed.body_mut() = "{}".into();
    let answer = control.send(typed).await.unwrap();
    assert_problem(&answer, "unsupported-media-type");
    for body in [json!({}), json!({ "name": "a", "csr": "", "colour": 1 })] {
        let answer = send(&mut control, Method::POST, "/v1/clients", Some(body)).await;
        assert_problem(&answer, "malformed");
    }
    let key = SoftwareKey::generate().unwrap();
    let csr = base64(&key.request("x").unwrap());
    let body = json!({ "name": "Not.A.Label", "csr": csr });
    let answer = send(&mut control, Method::POST, "/v1/clients", Some(body)).await;
    assert_problem(&answer, "client-name-invalid");
    let body = json!({ "name": "erp", "csr": csr });
    let answer = send(&mut control, Method::POST, "/v1/clients", Some(body)).await;
    assert_problem(&answer, "client-exists");
}

#[tokio::test]
async fn oversize_and_garbage_do_no_harm() {
    let daemon = Daemon::start_in(place(
        "[control.limits]\nbody-bytes = 4096\nheader-bytes = 2048\n[native.limits]\nheader-bytes = 2048\n",
    ));
    let client = daemon.add_client("erp").await;

    let mut control = daemon.control().await;
    let body = json!({ "name": "big", "csr": "x".repeat(5_000) });
    let answer = send(&mut control, Method::POST, "/v1/clients", Some(body)).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_problem(&answer, "too-large");

    let mut connection = client.connect().await;
    let mut wide = request(Method::GET, "/v1/status");
    wide.headers_mut()
        .insert("x-wide", "x".repeat(4_000).parse().unwrap());
    let answer = connection.send(wide).await.unwrap();
    assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);

    let garbage: Vec<u8> = (0..10_000_u32).map(|i| ((i * 7919) >> 3) as u8).collect();
    let mut stream = UnixStream::connect(daemon.path("run/control.sock")).unwrap();
    let _ = stream.write_all(&garbage);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 400"));

    let mut stream = TcpStream::connect(client.address).unwrap();
    let _ = stream.write_all(&garbage);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"));

    let answer = send(&mut client.connect().await, Method::GET, "/v1/status", None).await;
    assert_eq!(answer.status(), StatusCode::OK, "it still serves");
}

#[tokio::test]
async fn a_client_that_dribbles_is_cut_off() {
    let daemon = Daemon::start_in(place(
        "[native.limits]\nhandshake-timeout-seconds = 1\n[control.limits]\nheader-timeout-seconds = 1\n",
    ));
    let address = daemon.address().await;
    let begun = Instant::now();
    let mut silent = TcpStream::connect(address).unwrap();
    let mut slow = UnixStream::connect(daemon.path("run/control.sock")).unwrap();
    slow.write_all(b"GET /v1/status HTTP/1.1\r\nx-slow: ")
        .unwrap();
    let mut answer = Vec::new();
    let _ = silent.read_to_end(&mut answer);
    let _ = slow.read_to_end(&mut answer);
    assert!(answer.is_empty());
    assert!(begun.elapsed() < Duration::from_secs(9));
}

#[tokio::test]
async fn connections_past_the_limit_are_closed_at_once() {
    let daemon = Daemon::start_in(place("[native.limits]\nconnections = 2\n"));
    let client = daemon.add_client("erp").await;
    let _first = client.connect().await;
    let _second = client.connect().await;
    assert!(client.connect_as(Some(&client.identity())).await.is_err());
}

#[tokio::test]
async fn it_stops_cleanly_and_starts_again_with_what_it_knew() {
    let daemon = Daemon::start();
    let client = daemon.add_client("erp").await;
    let socket = daemon.path("run/control.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for (name, mode) in [
        ("state", 0o700),
        ("state/clients.json", 0o600),
        ("state/local-ca/ca-key.pem", 0o600),
        ("state/local-ca/server-key.pem", 0o600),
    ] {
        let found = std::fs::metadata(daemon.path(name)).unwrap().permissions();
        assert_eq!(found.mode() & 0o777, mode, "{name}");
    }

    // A daemon that is killed leaves its socket; the next one takes it over.
    daemon.signal("-KILL");
    let mut daemon = daemon;
    daemon.process.wait().unwrap();
    assert!(socket.exists());
    let directory = std::mem::replace(&mut daemon.directory, tempfile::tempdir().unwrap());
    let mut daemon = Daemon::start_in(directory);
    let client = NativeClient {
        address: daemon.address().await,
        ..client
    };
    let mut connection = client.connect().await;
    let answer = send(&mut connection, Method::GET, "/v1/status", None).await;
    assert_eq!(answer.status(), StatusCode::OK);

    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_second_daemon_does_not_disturb_the_first() {
    let mut daemon = Daemon::start();
    let output = command(daemon.directory.path()).output().unwrap();
    assert!(!output.status.success());
    assert!(daemon.path("run/control.sock").exists());
    // Another state directory, but the same runtime directory.
    let config = format!(
        "state-directory = \"{0}/other\"\nruntime-directory = \"{0}/run\"\n[native]\naddresses = [\"127.0.0.1:0\"]\n",
        daemon.directory.path().display()
    );
    write(&daemon.path("opcertd.toml"), &config, 0o600);
    let output = command(daemon.directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("[port-in-use]"), "{text}");
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn a_taken_port_is_said_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let directory = place("");
    let config = std::fs::read_to_string(directory.path().join("opcertd.toml")).unwrap();
    let config = config.replace("127.0.0.1:0", &address.to_string());
    write(&directory.path().join("opcertd.toml"), &config, 0o600);
    let output = command(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains("[port-in-use]"), "{text}");
    assert!(!directory.path().join("run/control.sock").exists());
}

#[tokio::test]
async fn sockets_of_the_service_manager_are_used_by_name() {
    let directory = place("");
    let socket = directory.path().join("handed.sock");
    // Control first: the order is not fixed, only the names count.
    let script = r#"
import os, socket, sys
control = socket.socket(socket.AF_UNIX); control.bind(sys.argv[1]); control.listen()
native = socket.socket(); native.bind(("127.0.0.1", 0)); native.listen()
fds = [os.dup(control.fileno()), os.dup(native.fileno())]
for number, fd in enumerate(fds): os.dup2(os.dup(fd), 30 + number)
os.dup2(30, 3); os.dup2(31, 4)
os.environ.update(LISTEN_FDS="2", LISTEN_FDNAMES="control:native", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"#;
    let mut command = Command::new("python3");
    command
        .args(["-c", script])
        .arg(&socket)
        .arg(env!("CARGO_BIN_EXE_opcertd"))
        .arg("--allow-root")
        .arg("--config")
        .arg(directory.path().join("opcertd.toml"));
    let mut daemon = Daemon::spawn(directory, command);
    let target = Target::Unix(socket.clone());
    let mut control = Client::connect(&target, ClientLimits::default())
        .await
        .unwrap();
    let answer = send(&mut control, Method::GET, "/v1/status", None).await;
    let status: Status = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(status.addresses.native.len(), 1);
    assert!(!daemon.path("run/control.sock").exists());
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(socket.exists(), "the service manager's socket stays");
}

#[test]
fn the_service_manager_hears_of_reloads_and_that_all_is_well() {
    let directory = place("");
    let path = directory.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut process = command(directory.path())
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "300000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Skips what else is said meanwhile.
    let hear = |wanted: &str| {
        let mut message = [0; 256];
        loop {
            let length = socket.recv(&mut message).expect(wanted);
            let text = std::str::from_utf8(&message[..length]).unwrap();
            if text.starts_with(wanted) {
                return text.to_owned();
            }
        }
    };
    hear("READY=1");
    hear("WATCHDOG=1");
    hear("WATCHDOG=1");
    let pid = rustix::process::Pid::from_child(&process);
    let config = directory.path().join("opcertd.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    for text in [
        good.clone() + "[log]\nlevel = \"debug\"\n",
        good + "colour = 1\n",
    ] {
        write(&config, &text, 0o600);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        // systemd from 253 on takes a reload without the time for a failure.
        assert!(hear("RELOADING=1").contains("MONOTONIC_USEC="));
        hear("READY=1");
    }
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    hear("STOPPING=1");
    assert_eq!(process.wait().unwrap().code(), Some(0));
}

#[test]
fn root_is_refused_unless_told() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: not root");
        return;
    }
    let directory = place("");
    let output = Command::new(env!("CARGO_BIN_EXE_opcertd"))
        .arg("--config")
        .arg(directory.path().join("opcertd.toml"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{text}");
    assert!(
        text.contains("--allow-root") && text.contains("[not-permitted]"),
        "{text}"
    );
    assert!(!directory.path().join("state").exists());
}

#[tokio::test]
async fn the_document_says_what_is_served() {
    let daemon = Daemon::start();
    let mut control = daemon.control().await;
    let answer = send(&mut control, Method::GET, "/v1/openapi.json", None).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let document: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    let built = opcert::api::routes::openapi::document().to_json().unwrap();
    assert_eq!(
        document,
        serde_json::from_str::<serde_json::Value>(&built).unwrap()
    );
    let codes = document["components"]["schemas"]["Code"]["enum"]
        .as_array()
        .unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path
            .replace("{challenge_jti}", "AAAAAAAAAAAAAAAAAAAAAA")
            .replace("{id}", "none")
            .replace("{name}", "none");
        for method in ["get", "put", "post", "delete", "patch"] {
            let documented = item.get(method).is_some();
            let verb: Method = method.to_uppercase().parse().unwrap();
            let answer = control.stream(request(verb, &path)).await.unwrap();
            let what = format!("{method} {path}: {}", answer.status());
            let (head, pieces) = answer.into_parts();
            if head.status.is_success() {
                let status = head.status.as_u16().to_string();
                assert!(item[method]["responses"].get(status).is_some(), "{what}");
                if head.headers["content-type"] == "text/event-stream" {
                    // It has no end, so it takes the connection with it.
                    control = daemon.control().await;
                } else {
                    pieces.whole().await.unwrap();
                }
                continue;
            }
            let answer = http::Response::new(pieces.whole().await.unwrap());
            let problem: ProblemDocument = serde_json::from_slice(answer.body()).unwrap();
            assert!(codes.contains(&problem.code.as_str().into()), "{what}");
            let refused_by_router = problem.code == "method-not-allowed"
                || problem.detail.starts_with("there is nothing at");
            assert_eq!(refused_by_router, !documented, "{what}");
        }
    }
}

/// The `[[module]]` of a token that waits for its PIN.
fn locked(token: &TestToken, path: &Path) -> String {
    let environment: Vec<String> = token
        .environment
        .iter()
        .map(|(name, value)| format!("{name} = {value:?}"))
        .collect();
    format!(
        "[[module]]\nname = \"test\"\npath = {path:?}\nenvironment = {{ {} }}\n\
         [[module.token]]\nuri = \"{}\"\n",
        environment.join(", "),
        token.uri()
    )
}

async fn token_state(connection: &mut Client) -> String {
    let answer = send(connection, Method::GET, "/v1/tokens", None).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let list: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    list["tokens"][0]["state"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_pin_is_tried_once_and_only_from_the_control_socket() {
    let Some(token) = TestToken::softhsm("door") else {
        return;
    };
    let daemon = Daemon::start_in(place(&locked(&token, &token.module)));
    let client = daemon.add_client("erp").await;
    let mut native = client.connect().await;
    let mut control = daemon.control().await;
    assert_eq!(token_state(&mut native).await, "pin-needed");

    let unlock = |uri: String, pin: &str| json!({ "uri": uri, "pin": pin });
    let right = unlock(token.uri().to_string(), &token.pin);
    let path = "/v1/tokens/unlock";
    let answer = send(&mut native, Method::POST, path, Some(right.clone())).await;
    assert_problem(&answer, "not-permitted");
    let body = unlock("token=door".into(), &token.pin);
    let answer = send(&mut control, Method::POST, path, Some(body)).await;
    assert_problem(&answer, "malformed");
    let body = unlock("pkcs11:token=elsewhere".into(), &token.pin);
    let answer = send(&mut control, Method::POST, path, Some(body)).await;
    assert_problem(&answer, "token-absent");
    let body = unlock(token.uri().to_string(), "not-the-pin");
    let answer = send(&mut control, Method::POST, path, Some(body)).await;
    assert_problem(&answer, "pin-wrong");
    assert_eq!(token_state(&mut control).await, "pin-needed");
    let answer = send(&mut control, Method::POST, path, Some(right)).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let outcome: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(outcome["outcome"], "taken");
    assert_eq!(token_state(&mut native).await, "ready");
    // The token does not look at a PIN while somebody is logged in, and nobody says it did.
    let wrong = unlock(token.uri().to_string(), "not-the-pin");
    let answer = send(&mut control, Method::POST, path, Some(wrong)).await;
    let outcome: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(outcome["outcome"], "already-unlocked");
}

/// The next event of a stream: id, name, data.
async fn next_event(pieces: &mut Pieces, text: &mut String) -> (String, String, serde_json::Value) {
    loop {
        if let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                let line = event.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().to_owned()
            };
            let (id, name, data) = (field("id: "), field("event: "), field("data: "));
            *text = rest.to_owned();
            // A comment that keeps the connection alive has no data.
            if let Ok(data) = serde_json::from_str(&data) {
                return (id, name, data);
            }
            continue;
        }
        let piece = tokio::time::timeout(Duration::from_secs(30), pieces.next()).await;
        let piece = piece.expect("an event in time").unwrap().expect("more");
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
}

#[tokio::test]
async fn what_happens_is_told_on_every_door_and_once() {
    let Some(token) = TestToken::softhsm("door") else {
        return;
    };
    let mut daemon = Daemon::start_in(place(&locked(&token, &token.module)));
    let client = daemon.add_client("erp").await;
    let mut native = client.connect().await;
    assert_eq!(token_state(&mut native).await, "pin-needed");
    let answer = native.stream(request(Method::GET, "/v1/events")).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let (mut pieces, mut text) = (answer.into_body(), String::new());
    let (first, name, data) = next_event(&mut pieces, &mut text).await;
    assert_eq!(name, "snapshot");
    assert_eq!(data["tokens"][0]["state"], "pin-needed");

    // A person's terminal shows the same.
    let mut watch = Command::new(env!("CARGO_BIN_EXE_opcert"))
        .args(["token", "list", "--watch", "--json", "--socket"])
        .arg(daemon.path("run/control.sock"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()));
    let mut next_shown = || {
        let line = shown.next().unwrap().unwrap();
        serde_json::from_str::<serde_json::Value>(&line).unwrap()
    };
    assert_eq!(next_shown()["event"], "snapshot");

    let body = json!({ "uri": token.uri().to_string(), "pin": token.pin });
    let mut control = daemon.control().await;
    let answer = send(&mut control, Method::POST, "/v1/tokens/unlock", Some(body)).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let (_, name, data) = next_event(&mut pieces, &mut text).await;
    assert_eq!(name, "token");
    assert_eq!(data["event"], "token");
    assert_eq!(data["token"]["state"], "ready");
    assert_eq!(next_shown()["token"]["state"], "ready");

    // Whoever comes back gets what was missed, and only that.
    let mut again = request(Method::GET, "/v1/events");
    again
        .headers_mut()
        .insert("last-event-id", first.parse().unwrap());
    let answer = control.stream(again).await.unwrap();
    let (mut resumed, mut more) = (answer.into_body(), String::new());
    let (_, name, data) = next_event(&mut resumed, &mut more).await;
    assert_eq!(name, "token");
    assert_eq!(data["token"]["state"], "ready");

    assert_eq!(daemon.stop().code(), Some(0));
    assert_eq!(next_event(&mut pieces, &mut text).await.1, "stopping");
    assert_eq!(next_event(&mut resumed, &mut more).await.1, "stopping");
    assert_eq!(next_shown()["event"], "stopping");
    assert!(watch.wait().unwrap().success());
}

#[tokio::test]
async fn a_missing_module_stops_nothing_but_itself() {
    let Some(token) = TestToken::softhsm("door") else {
        return;
    };
    let module = locked(&token, Path::new("/nonexistent/module.so"));
    let daemon = Daemon::start_in(place(&module));
    let mut control = daemon.control().await;
    let answer = send(&mut control, Method::GET, "/v1/tokens", None).await;
    let list: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(list["modules"][0]["up"], false);
    let body = json!({ "uri": token.uri().to_string(), "pin": token.pin });
    let answer = send(&mut control, Method::POST, "/v1/tokens/unlock", Some(body)).await;
    assert_problem(&answer, "module-missing");
    let answer = send(&mut control, Method::GET, "/v1/status", None).await;
    let status: Status = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(status.tokens, 0);
}

#[tokio::test]
async fn the_native_door_reads_and_approves_and_does_not_administer() {
    let daemon = Daemon::start();
    let client = daemon.add_client("erp").await;
    let mut native = client.connect().await;
    for path in [
        "/v1/status",
        "/v1/tokens",
        "/v1/certificates",
        "/v1/enrolments",
        "/v1/openapi.json",
    ] {
        let answer = send(&mut native, Method::GET, path, None).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
    let challenge = json!({ "challenge": "not.a.challenge" });
    let answer = send(&mut native, Method::POST, "/v1/approvals", Some(challenge)).await;
    assert_problem(&answer, "challenge-malformed");
    let mut crl = request(Method::POST, "/v1/crls");
    crl.headers_mut()
        .insert("content-type", "application/pkix-crl".parse().unwrap());
    *crl.body_mut() = "garbage".into();
    assert_problem(&native.send(crl).await.unwrap(), "crl-invalid");
    for (method, path) in [
        (Method::POST, "/v1/tokens/unlock"),
        (Method::POST, "/v1/enrolments"),
        (Method::DELETE, "/v1/enrolments/x"),
        (Method::PUT, "/v1/enrolments/x/certificate"),
        (Method::POST, "/v1/keys"),
        (Method::GET, "/v1/clients"),
        (Method::POST, "/v1/clients"),
        (Method::DELETE, "/v1/clients/erp"),
    ] {
        let what = format!("{method} {path}");
        let answer = send(&mut native, method, path, Some(json!({}))).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{what}");
        assert_problem(&answer, "not-permitted");
    }
}
