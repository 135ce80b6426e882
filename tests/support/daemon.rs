//! The real `opcertd` on port 0 in a temporary directory, and what a courier and a client do.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};
use hyper::body::Bytes;
use opcert::base::encoding::{base64, from_base64};
use opcert::base::x509::{
    CertificateRequest, OperatingIdentity, RemoteKey, common_name, request_draft,
};
use opcert::http::client::{Client, ClientLimits, Target};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

use super::service::Service;
use super::softhsm::TestToken;

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pub directory: PathBuf,
    config: PathBuf,
    environment: Vec<(String, String)>,
    runtime: tokio::runtime::Runtime,
}

/// A client with a certificate for the native door.
#[derive(Clone)]
pub struct ClientIdentity {
    pub certificate: CertificateDer<'static>,
    pub key: Vec<u8>,
    pub ca: CertificateDer<'static>,
    pub certificate_pem: String,
    pub ca_pem: String,
}

/// Status and JSON body of an answer.
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

impl Answer {
    /// The body of a good answer.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert!(self.status.is_success(), "{} {}", self.status, self.body);
        self.body
    }

    /// The code of a problem document.
    #[track_caller]
    pub fn code(self) -> String {
        assert!(!self.status.is_success(), "{} {}", self.status, self.body);
        for member in ["title", "detail", "action", "request_id"] {
            assert!(self.body[member].is_string(), "{member}: {}", self.body);
        }
        self.body["code"].as_str().unwrap().to_owned()
    }
}

impl Daemon {
    /// Starts the daemon on `token`, its state beside the token.
    pub fn start(token: &TestToken) -> Self {
        Self::start_with(token, "")
    }

    /// The same with more tables in the configuration.
    pub fn start_with(token: &TestToken, more: &str) -> Self {
        Self::start_in(token, more, &[])
    }

    /// The same with variables in its environment.
    pub fn start_in(token: &TestToken, more: &str, environment: &[(&str, String)]) -> Self {
        Self::start_by(token, &token.config_toml(), more, environment)
    }

    /// The same with another `[[module]]`.
    pub fn start_on(token: &TestToken, module: &str, more: &str) -> Self {
        Self::start_by(token, module, more, &[])
    }

    /// The same with both.
    pub fn start_by(
        token: &TestToken,
        module: &str,
        more: &str,
        environment: &[(&str, String)],
    ) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let directory = token.directory();
        let config = directory.join("opcertd.toml");
        let text = format!(
            "state-directory = \"{0}/state\"\nruntime-directory = \"{0}/run\"\n{1}\n\
             [native]\naddresses = [\"127.0.0.1:0\"]\n\n{more}\n",
            directory.display(),
            module,
        );
        std::fs::write(&config, text).unwrap();
        std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let environment: Vec<(String, String)> = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect();
        let child = spawn(&config, directory, &environment);
        let mut daemon = Self {
            child,
            directory: directory.to_owned(),
            config,
            environment,
            runtime,
        };
        daemon.wait_ready();
        daemon
    }

    /// Waits until the control socket answers.
    fn wait_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let socket = self.socket();
            let connected = self.runtime.block_on(Client::connect(
                &Target::Unix(socket),
                ClientLimits::default(),
            ));
            if connected.is_ok() {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("opcertd ended with {status}: {}", self.log());
            }
            assert!(
                Instant::now() < deadline,
                "opcertd is not ready: {}",
                self.log()
            );
            // The daemon offers no event to a process that is not its service manager.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("opcertd.log")).unwrap_or_default()
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("run/control.sock")
    }

    pub fn audit_directory(&self) -> PathBuf {
        self.directory.join("state/audit")
    }

    /// Kills it at once, as a crash would, and starts it again.
    pub fn crash_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(&self.config, &self.directory, &self.environment);
        self.wait_ready();
    }

    /// Kills it at once, as a crash would.
    pub fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after it ended.
    pub fn restart(&mut self) {
        self.child = spawn(&self.config, &self.directory, &self.environment);
        self.wait_ready();
    }

    /// Asks it to stop and waits; returns its exit code.
    pub fn stop(&mut self) -> i32 {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code().unwrap_or(-1)
    }

    /// A request on the control socket.
    pub fn control(&self, method: Method, path: &str, body: &Value) -> Answer {
        let request = request(
            method,
            path,
            "application/json",
            serde_json::to_vec(body).unwrap(),
        );
        self.send(&Target::Unix(self.socket()), request)
    }

    /// Status and text of an answer on the control socket that need not be JSON.
    pub fn control_text(&self, path: &str) -> (StatusCode, String) {
        self.runtime.block_on(async {
            let target = Target::Unix(self.socket());
            let mut client = Client::connect(&target, ClientLimits::default())
                .await
                .unwrap();
            let request = request(Method::GET, path, "", vec![]);
            let response = client.send(request).await.unwrap();
            let status = response.status();
            let text = String::from_utf8(response.into_body().to_vec()).unwrap();
            (status, text)
        })
    }

    /// A request of the caller's own making on the control socket.
    pub fn control_request(&self, request: Request<Bytes>) -> Answer {
        self.send(&Target::Unix(self.socket()), request)
    }

    /// Has it read its configuration again, and waits until it says what came of it.
    pub fn reload(&self) -> Value {
        let count = |daemon: &Self| {
            daemon
                .control_text("/metrics")
                .1
                .lines()
                .filter_map(|line| {
                    let (_, value) = line
                        .strip_prefix("opcert_config_reloads_total{")?
                        .rsplit_once(' ')?;
                    value.parse::<u64>().ok()
                })
                .sum::<u64>()
        };
        let before = count(self);
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while count(self) == before {
            assert!(Instant::now() < deadline, "not read again: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.control(Method::GET, "/v1/status", &Value::Null).ok()["configuration"].clone()
    }

    /// Writes a drop-in of its configuration.
    pub fn drop_in(&self, name: &str, text: &str) {
        drop_in(&self.directory, name, text);
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Bytes on the control socket.
    pub fn control_bytes(&self, path: &str, media_type: &str, body: Vec<u8>) -> Answer {
        self.send(
            &Target::Unix(self.socket()),
            request(Method::POST, path, media_type, body),
        )
    }

    /// A request on the native door.
    pub fn native(
        &self,
        client: &ClientIdentity,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Answer {
        let body = if body.is_null() {
            vec![]
        } else {
            serde_json::to_vec(body).unwrap()
        };
        self.native_request(client, request(method, path, "application/json", body))
    }

    /// A request of the caller's own making on the native door.
    pub fn native_request(&self, client: &ClientIdentity, request: Request<Bytes>) -> Answer {
        let target = Target::Tls {
            host: "localhost".into(),
            port: self.address().port(),
            config: Arc::new(client.tls()),
        };
        self.send(&target, request)
    }

    fn send(&self, target: &Target, request: Request<Bytes>) -> Answer {
        self.runtime.block_on(async {
            let limits = ClientLimits {
                request: Duration::from_secs(120),
                ..ClientLimits::default()
            };
            let mut client = Client::connect(target, limits).await.unwrap();
            let response = client.send(request).await.unwrap();
            let status = response.status();
            let bytes = response.into_body();
            let body = if bytes.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("{bytes:?}"))
            };
            Answer { status, body }
        })
    }

    /// Where the native door listens.
    pub fn address(&self) -> SocketAddr {
        let status = self.control(Method::GET, "/v1/status", &Value::Null).ok();
        status["addresses"]["native"][0]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// The computer's id.
    pub fn computer(&self) -> String {
        let status = self.control(Method::GET, "/v1/status", &Value::Null).ok();
        status["computer"].as_str().unwrap().to_owned()
    }

    /// Registers a program with `policy`.
    pub fn add_client(&self, name: &str, policy: &Value) -> ClientIdentity {
        self.register(name, "program", policy)
    }

    /// Registers a browser with `policy`.
    pub fn add_browser(&self, name: &str, policy: &Value) -> ClientIdentity {
        self.register(name, "browser", policy)
    }

    fn register(&self, name: &str, kind: &str, policy: &Value) -> ClientIdentity {
        let pkcs8 = aws_lc_rs::signature::EcdsaKeyPair::generate_pkcs8(
            &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            &aws_lc_rs::rand::SystemRandom::new(),
        )
        .unwrap();
        let pair = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(
            &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            pkcs8.as_ref(),
        )
        .unwrap();
        let point = aws_lc_rs::signature::KeyPair::public_key(&pair)
            .as_ref()
            .to_vec();
        let key =
            opcert::base::key::PublicKey::from_ec_point(opcert::base::key::Curve::P256, &point)
                .unwrap();
        let draft = request_draft(common_name(name).unwrap(), vec![], RemoteKey::new(key)).unwrap();
        let raw = pair
            .sign(&aws_lc_rs::rand::SystemRandom::new(), draft.to_sign())
            .unwrap();
        let signature = opcert::base::key::Signature::from_jose(raw.as_ref().to_vec());
        let csr = base64(&draft.assemble(&signature).unwrap());
        let body = json!({ "name": name, "csr": csr, "kind": kind, "policy": policy });
        let answer = self.control(Method::POST, "/v1/clients", &body).ok();
        let pem = |member: &str| answer[member].as_str().unwrap().to_owned();
        ClientIdentity {
            certificate: CertificateDer::from_pem_slice(pem("certificate").as_bytes()).unwrap(),
            ca: CertificateDer::from_pem_slice(pem("ca").as_bytes()).unwrap(),
            certificate_pem: pem("certificate"),
            ca_pem: pem("ca"),
            key: pkcs8.as_ref().to_vec(),
        }
    }

    /// Whom a certificate of `operator` of account `acme` on this computer speaks for.
    pub fn identity(&self, operator: &str) -> OperatingIdentity {
        OperatingIdentity {
            account: "acme".parse().unwrap(),
            operator: operator.parse().unwrap(),
            computer: self.computer().parse().unwrap(),
        }
    }

    /// Begins an enrolment for `operator`.
    pub fn begin(&self, service: &Service, operator: &str, key_type: &str) -> Answer {
        let ticket = service.ticket(&self.identity(operator), |_| ());
        let body = json!({
            "ticket": ticket,
            "key_type": key_type,
            "service": service.description(),
        });
        self.control(Method::POST, "/v1/enrolments", &body)
    }

    /// Brings the certificate for an enrolment that [`Daemon::begin`] began.
    pub fn complete(&self, begun: &Value, certificate: &[u8]) -> Answer {
        let path = format!(
            "/v1/enrolments/{}/certificate",
            begun["id"].as_str().unwrap()
        );
        let body = json!({ "certificates": [base64(certificate)] });
        self.control(Method::PUT, &path, &body)
    }

    /// The whole enrolment; returns the installed certificate as the API shows it.
    pub fn enrol(&self, service: &Service, operator: &str, key_type: &str) -> Value {
        let begun = self.begin(service, operator, key_type).ok();
        let certificate = service.issue(&csr(&begun), &self.identity(operator), 365);
        self.complete(&begun, &certificate).ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl ClientIdentity {
    /// TLS settings of this client.
    pub fn tls(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()));
        rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![self.certificate.clone()], key)
            .unwrap()
    }
}

/// The request in the answer to [`Daemon::begin`].
pub fn csr(begun: &Value) -> CertificateRequest {
    let der = from_base64(begun["csr"].as_str().unwrap().as_bytes()).unwrap();
    CertificateRequest::from_der(&der).unwrap()
}

fn request(method: Method, path: &str, media_type: &str, body: Vec<u8>) -> Request<Bytes> {
    let mut builder = Request::builder().method(method).uri(path);
    if !body.is_empty() {
        builder = builder.header("content-type", media_type);
    }
    builder.body(Bytes::from(body)).unwrap()
}

fn spawn(config: &Path, directory: &Path, environment: &[(String, String)]) -> Child {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("opcertd.log"))
        .unwrap();
    Command::new(env!("CARGO_BIN_EXE_opcertd"))
        .arg("--allow-root")
        .arg("--config")
        .arg(config)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Writes a drop-in of the configuration of a daemon whose files are in `directory`.
pub fn drop_in(directory: &Path, name: &str, text: &str) {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let directory = directory.join("opcertd.toml.d");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(directory.join(name))
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .unwrap();
}

/// Reads a whole file; for files a test knows to exist.
pub fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}
