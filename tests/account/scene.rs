//! The account service with a real token, a real database and real TLS; only the clock and the
//! operator's handset are ours.
//!
//! The database is SQLite. With `OPCERT_TEST_POSTGRES` set, the address of a PostgreSQL server
//! whose user may create databases, every scene has one of its own there, and the same tests run.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use axum::body::Bytes;
use http::{Method, Request, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::support::softhsm::TestToken;
use opcert::account::config::Config;
use opcert::account::routes;
use opcert::account::service::Service;
use opcert::account::sms::Gateway;
use opcert::base::clock::{Clock, ClockHand};
use opcert::base::cms;
use opcert::base::encoding::{base64, from_base64, hex};
use opcert::base::key::{Curve, PublicKey, Scheme, Signature};
use opcert::base::secret::SecretText;
use opcert::base::x509::{Certificate, RemoteKey, common_name, request_draft};
use opcert::http::client::{ClientLimits, Target};
use opcert::http::tls::{self, Identity};
use opcert::http::{Client, Door, Listener, Server};
use opcert::statement::{ApprovalDraft, ApprovalHeader, Challenge, Consent, ConsentMethod};

pub(crate) const PASSWORD: &str = "correct horse";
pub(crate) const JSON: &str = "application/json";
pub(crate) const PKCS10: &str = "application/pkcs10";
pub(crate) const JOSE: &str = "application/jose";

/// A service made by `opcert-accountd init`, with account acme, operators alice and bob, and a
/// platform key.
pub(crate) struct Made {
    pub(crate) token: TestToken,
    pub(crate) config: PathBuf,
    pub(crate) platform_key: String,
}

impl Made {
    pub(crate) fn new() -> Self {
        Self::bare().with_people()
    }

    /// A service that `init` made, and nothing more.
    pub(crate) fn bare() -> Self {
        let token = TestToken::new("accounts");
        let directory = token.directory().to_owned();
        let made = Self {
            config: directory.join("accountd.toml"),
            platform_key: String::new(),
            token,
        };
        let pin = made.token.pin_file(&made.token.pin);
        let mut init = made.command();
        init.arg("init")
            .arg("--state-directory")
            .arg(directory.join("state"))
            .args(["--origin", "https://127.0.0.1:18443"])
            .args(["--listen", "127.0.0.1:0"])
            .arg("--module")
            .arg(&made.token.module)
            .args(["--token", &made.token.uri().to_string()])
            .args(["--pin-source", &format!("file:{}", pin.display())])
            .args(["--worker", env!("CARGO_BIN_EXE_opcert-worker")]);
        if let Some(url) = database() {
            init.args(["--database", &url]);
        }
        for (name, value) in &made.token.environment {
            init.arg("--module-environment")
                .arg(format!("{name}={value}"));
        }
        succeed(&mut init);
        made
    }

    pub(crate) fn with_people(self) -> Self {
        let made = self;
        let account = ["account", "create", "acme", "--name", "Acme Ltd"];
        succeed(made.command().args(account));
        for (operator, mobile) in [("alice", "+8613800000001"), ("bob", "+8613800000002")] {
            let mut create = made.command();
            create
                .args(["operator", "create", operator, "--account", "acme"])
                .args(["--mobile", mobile, "--password-file", "-"]);
            succeed_with(&mut create, PASSWORD);
        }
        let key = succeed(made.command().args(["platform-key", "create", "shop"]));
        Self {
            platform_key: key.trim().to_owned(),
            ..made
        }
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_opcert-accountd"));
        command.arg("--config").arg(&self.config);
        command
    }

    /// `approval-rule set` of account acme.
    pub(crate) fn approval_rule(&self, kind: &str, approvals: &str, more: &[&str]) -> Command {
        let mut command = self.command();
        command
            .args(["approval-rule", "set", "--account", "acme"])
            .args(["--kind", kind, "--approvals", approvals])
            .args(more);
        command
    }

    /// State and fingerprint of the service's keys for this purpose.
    pub(crate) fn keys(&self, purpose: &str) -> Vec<(String, String)> {
        let list = succeed(self.command().args(["--json", "key", "list"]));
        let list: Value = serde_json::from_str(&list).unwrap();
        let keys = list.as_array().unwrap().iter();
        keys.filter(|key| key["purpose"] == purpose)
            .map(|key| {
                let text = |name: &str| key[name].as_str().unwrap().to_owned();
                (text("state"), text("fingerprint"))
            })
            .collect()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.token.directory().join("state")
    }

    pub(crate) fn authority(&self) -> Certificate {
        Certificate::from_pem(&std::fs::read(self.state().join("ca.pem")).unwrap()).unwrap()
    }
}

pub(crate) fn succeed(command: &mut Command) -> String {
    succeed_with(command, "")
}

pub(crate) fn succeed_with(command: &mut Command, input: &str) -> String {
    let (code, out, error) = run(command, input);
    assert_eq!(code, 0, "{command:?}: {error}");
    out
}

pub(crate) fn run(command: &mut Command, input: &str) -> (i32, String, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// The service running in this process, with a clock that stands still.
pub(crate) struct Scene {
    pub(crate) made: Made,
    pub(crate) service: Service,
    pub(crate) hand: ClockHand,
    pub(crate) clock: Clock,
    pub(crate) texts: mpsc::Receiver<SecretText>,
    pub(crate) server: Server,
    /// Texts without a code that were passed over.
    pub(crate) news: std::sync::Mutex<Vec<String>>,
    /// Where clients may present a certificate.
    pub(crate) certificate_port: u16,
    pub(crate) target: Target,
}

/// An answer: status, JSON body (null where there is none), raw body, `retry-after`.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) json: Value,
    pub(crate) bytes: Bytes,
    pub(crate) headers: http::HeaderMap,
}

impl Answer {
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) {
        assert_eq!(self.json["code"], code, "{self:?}");
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json");
        for member in ["type", "title", "detail", "action", "request_id"] {
            assert!(self.json[member].is_string(), "{member}: {self:?}");
        }
    }

    #[track_caller]
    pub(crate) fn done(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    pub(crate) fn text(&self, member: &str) -> String {
        self.json[member]
            .as_str()
            .unwrap_or_else(|| panic!("{member}: {self:?}"))
            .to_owned()
    }
}

impl Scene {
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let made = tokio::task::spawn_blocking(Made::new).await.unwrap();
        Self::of(made, change, Timestamp::now()).await
    }

    /// The same service, started again at the time it is there.
    pub(crate) async fn again(self) -> Self {
        let now = self.clock.now();
        Self::of(self.end().await, |_| (), now).await
    }

    pub(crate) async fn of(made: Made, change: impl FnOnce(&mut Config), now: Timestamp) -> Self {
        let mut config = Config::load(&made.config).unwrap();
        change(&mut config);
        let (clock, hand) = Clock::manual(now);
        let (handset, texts) = mpsc::channel();
        let service = Service::open(&config, clock.clone(), Gateway::Handset(handset))
            .await
            .unwrap();
        let state = made.state();
        let read = |name: &str| std::fs::read(state.join(name)).unwrap();
        let identity = Identity::from_pem(&read("server.pem"), &read("server-key.pem")).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let offered = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let certificate_port = offered.local_addr().unwrap().port();
        let door = |listener, settings| Door {
            name: "account",
            listener: Listener::Tcp {
                listener,
                tls: Some(settings),
            },
            limits: config.limits(),
            router: routes::router(service.clone()),
        };
        let server = Server::start(vec![
            door(offered, tls::offered(identity.duplicate()).unwrap()),
            door(listener, tls::public(identity).unwrap()),
        ]);
        let roots = tls::roots(tls::certificates(&read("server-ca.pem")).unwrap()).unwrap();
        Self {
            made,
            service,
            hand,
            clock,
            texts,
            server,
            certificate_port,
            news: std::sync::Mutex::default(),
            target: Target::Tls {
                host: "127.0.0.1".into(),
                port,
                config: tls::client(roots, None).unwrap(),
            },
        }
    }

    /// Where they may not.
    pub(crate) fn port(&self) -> u16 {
        match self.target {
            Target::Tls { port, .. } => port,
            _ => unreachable!("the service speaks TLS"),
        }
    }

    /// Ends the service; what it leaves on disk is there until the answer is dropped.
    pub(crate) async fn end(self) -> Made {
        let _ = self.server.drain(Duration::from_secs(10)).await;
        self.service.close().await;
        self.made
    }

    pub(crate) async fn send(&self, request: Request<Bytes>) -> Answer {
        send(&self.target, request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Bytes::new()).unwrap())
            .await
    }

    pub(crate) async fn post(&self, path: &str, kind: &str, body: impl Into<Bytes>) -> Answer {
        let request = Request::post(path).header("content-type", kind);
        self.send(request.body(body.into()).unwrap()).await
    }

    pub(crate) async fn platform(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.platform_with(method, path, body, None).await
    }

    pub(crate) async fn platform_with(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        idempotency_key: Option<&str>,
    ) -> Answer {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", JSON)
            .header(
                "authorization",
                format!("Bearer {}", self.made.platform_key),
            );
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.send(request.body(body.into()).unwrap()).await
    }

    pub(crate) async fn ask_code(&self, operator: &str, computer: &str, password: &str) -> Answer {
        let body = json!({
            "account": "acme", "operator": operator, "password": password, "purpose": "install",
            "computer": {"id": computer, "name": format!("the {computer}")},
        });
        self.post("/v1/enrolment/codes", JSON, body.to_string())
            .await
    }

    /// A code that was sent: its id and the six digits.
    pub(crate) async fn code(&self, operator: &str, computer: &str) -> (String, String) {
        let answer = self.ask_code(operator, computer, PASSWORD).await.done(202);
        // Administrators are told of what others do, too.
        let text = loop {
            let text = self.texts.try_recv().expect("a text");
            if text.expose().contains("opcert code ") {
                break text;
            }
            self.news.lock().unwrap().push(text.expose().to_owned());
        };
        let digits = text
            .expose()
            .split("opcert code ")
            .nth(1)
            .and_then(|rest| rest.get(..6))
            .expect("six digits")
            .to_owned();
        (answer.text("code_id"), digits)
    }

    pub(crate) async fn redeem(&self, id: &str, code: &str) -> Answer {
        let body = json!({"code_id": id, "code": code}).to_string();
        self.post("/v1/enrolment/tickets", JSON, body).await
    }

    /// A ticket, won at a time when a code may be sent.
    pub(crate) async fn ticket(&self, operator: &str, computer: &str) -> String {
        self.hand.advance(Duration::from_secs(61));
        let (id, code) = self.code(operator, computer).await;
        self.redeem(&id, &code).await.done(201).text("ticket")
    }

    pub(crate) async fn enrol(&self, ticket: &str, csr: &[u8]) -> Answer {
        enrol(&self.target, ticket, csr).await
    }

    pub(crate) async fn installed(&self, operator: &str, computer: &str) -> Installed {
        let key = SoftKey::new();
        let ticket = self.ticket(operator, computer).await;
        let answer = self.enrol(&ticket, &key.csr()).await.done(200);
        Installed {
            certificate: certificate_in(&answer),
            computer: computer.to_owned(),
            key,
        }
    }

    pub(crate) async fn withdrawal(&self, operator: &str) -> Answer {
        self.platform(Method::POST, "/v1/operations", Some(withdrawal(operator)))
            .await
            .done(201)
    }

    pub(crate) fn approval(&self, by: &Installed, challenge: &str) -> String {
        let keys = self.service.challenge_key().set().keys;
        by.approve(
            challenge,
            self.clock.now(),
            keys[0].to_public_key().unwrap(),
        )
    }

    pub(crate) async fn post_approval(&self, operation: &Answer, approval: &str) -> Answer {
        let id = operation.json["operation"]["id"].as_str().unwrap();
        let path = format!("/v1/operations/{id}/approvals");
        self.post(&path, JOSE, approval.to_owned()).await
    }
}

pub(crate) async fn send(target: &Target, request: Request<Bytes>) -> Answer {
    let mut client = Client::connect(target, ClientLimits::default())
        .await
        .unwrap();
    let (head, bytes) = client.send(request).await.unwrap().into_parts();
    Answer {
        status: head.status,
        json: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        bytes,
        headers: head.headers,
    }
}

pub(crate) async fn enrol(target: &Target, ticket: &str, csr: &[u8]) -> Answer {
    let credential = base64(format!("alice:{ticket}").as_bytes());
    let request = Request::post("/.well-known/est/simpleenroll")
        .header("content-type", PKCS10)
        .header("authorization", format!("Basic {credential}"))
        .body(base64(csr).into())
        .unwrap();
    send(target, request).await
}

pub(crate) fn withdrawal(operator: &str) -> Value {
    json!({
        "account": "acme", "operator": operator, "kind": "withdrawal",
        "amount": 100_000, "currency": "CNY", "payee": "ICBC 6222 **** 1234", "reference": "W-1",
    })
}

pub(crate) fn certificate_in(answer: &Answer) -> Certificate {
    let message = from_base64(&answer.bytes).unwrap();
    let certificates = cms::certificates(&message).unwrap();
    assert_eq!(certificates.len(), 1);
    Certificate::from_der(&certificates[0]).unwrap()
}

/// A P-256 key in software, in place of a daemon's token.
pub(crate) struct SoftKey {
    pub(crate) pair: EcdsaKeyPair,
    pub(crate) public: PublicKey,
}

impl SoftKey {
    pub(crate) fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let public = PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref()).unwrap();
        Self { pair, public }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Signature {
        let signature = self.pair.sign(&SystemRandom::new(), message).unwrap();
        Signature::from_jose(signature.as_ref().to_vec())
    }

    /// A request that asks for a name the service must not give.
    pub(crate) fn csr(&self) -> Vec<u8> {
        let subject = common_name("mallory").unwrap();
        let draft = request_draft(subject, vec![], RemoteKey::new(self.public.clone())).unwrap();
        let signature = self.sign(draft.to_sign());
        draft.assemble(&signature).unwrap()
    }
}

/// An operating certificate and its key.
pub(crate) struct Installed {
    pub(crate) certificate: Certificate,
    pub(crate) computer: String,
    pub(crate) key: SoftKey,
}

impl Installed {
    pub(crate) fn approve(
        &self,
        challenge: &str,
        now: Timestamp,
        service_key: PublicKey,
    ) -> String {
        let opened = Challenge::open(challenge, now, |_, _| Ok(service_key)).unwrap();
        let consent = Consent {
            method: ConsentMethod::Pinentry,
            at: now.as_second(),
        };
        let computer = self.computer.parse().unwrap();
        let draft = ApprovalDraft::new(&opened, "till", None, &computer, &consent, now).unwrap();
        let chain = std::slice::from_ref(&self.certificate);
        let input = draft.signing_input(&ApprovalHeader::new(Scheme::Es256, chain).unwrap());
        let signature = self.key.sign(input.as_bytes());
        ApprovalDraft::assemble(input, &signature)
    }
}

/// Gives the service an address that stays the same when it is started again, and its origin.
pub(crate) fn at_fixed_address(made: &Made) -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let text = std::fs::read_to_string(&made.config).unwrap();
    let text = text
        .replace("https://127.0.0.1:18443", &format!("https://{address}"))
        .replace("[\"127.0.0.1:0\"]", &format!("[\"{address}\"]"));
    std::fs::write(&made.config, text).unwrap();
    format!("https://{address}")
}

pub(crate) fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else if path.is_file() {
            files.push(path);
        }
    }
    files
}

/// `opcert-accountd serve`. Its log is `accountd.log` in the token's directory, where searches for
/// what must not be there find it; a test that fails shows it.
pub(crate) struct Running {
    pub(crate) child: Child,
    log: PathBuf,
    pub(crate) lines: mpsc::Receiver<String>,
    pub(crate) origin: String,
}

impl Running {
    pub(crate) fn start(made: &Made) -> Self {
        Self::start_in(made, &[])
    }

    /// With variables in its environment.
    pub(crate) fn start_in(made: &Made, environment: &[(&'static str, String)]) -> Self {
        let log = made.token.directory().join("accountd.log");
        let mut file = std::fs::OpenOptions::new();
        let file = file.create(true).append(true).open(&log).unwrap();
        let mut child = made
            .command()
            .args(["serve", "--allow-root"])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let line = lines.recv_timeout(Duration::from_secs(60)).expect("a line");
        let origin = line
            .strip_prefix("listening on ")
            .expect("an address")
            .to_owned();
        Self {
            child,
            log,
            lines,
            origin,
        }
    }

    pub(crate) fn stop(mut self) {
        let pid = self.child.id().to_string();
        succeed(Command::new("kill").args(["-TERM", &pid]));
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// The address of a new, empty database on the PostgreSQL server of this run, if there is one.
pub(crate) fn database() -> Option<String> {
    let server = std::env::var("OPCERT_TEST_POSTGRES").ok()?;
    let (address, options) = server.split_once('?').unwrap_or((&server, ""));
    let (host, _) = address
        .rsplit_once('/')
        .expect("postgres://USER@HOST/DATABASE");
    let name = format!("t{}", hex(&opcert::base::ids::random::<8>()));
    let create = format!("CREATE DATABASE {name}");
    succeed(Command::new("psql").args([&server, "--quiet", "--command", &create]));
    Some(format!("{host}/{name}?{options}"))
}
