//! The scene of a benchmark: a token, the daemon on it, one enrolled operator for each kind of key.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use opcert::base::encoding::{base64, from_base64};
use opcert::base::key::{KeySpec, PublicKey};
use opcert::base::pkcs11::TokenUri;
use opcert::base::x509::Certificate;
use serde_json::{Value, json};

use crate::support::daemon::{ClientIdentity, Daemon};
use crate::support::service::{Service, withdrawal};
use crate::support::softhsm::TestToken;

/// Everything a measurement needs.
pub struct Scene {
    token: TestToken,
    daemon: Daemon,
    service: Service,
    client: ClientIdentity,
    keys: HashMap<KeySpec, Key>,
    address: SocketAddr,
}

struct Key {
    id: Vec<u8>,
    public: PublicKey,
    header: String,
}

impl Scene {
    /// Makes the token, starts the release daemon and enrols an operator for each kind of key.
    pub fn start(specs: &[KeySpec]) -> Self {
        // Inherited by the daemon: a thousand connections are two thousand descriptors.
        let mut most = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        most.current = most.maximum;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
        let token = TestToken::new("opcert-bench");
        let daemon = Daemon::start_with(&token, "[native.limits]\nconnections = 1100\n");
        let service = Service::new("https://bench.example");
        let client = daemon.add_client("bench", &json!({ "consent": "none" }));
        let keys = specs
            .iter()
            .map(|&spec| {
                let installed = daemon.enrol(&service, spec.as_str(), spec.as_str());
                (spec, Key::of(&installed))
            })
            .collect();
        let address = daemon.address();
        // The module finds its tokens by its environment, in this process for the bare work.
        for (name, value) in &token.environment {
            // SAFETY: no other thread runs yet; the daemon's runtime is single-threaded.
            unsafe { std::env::set_var(name, value) };
        }
        Self {
            token,
            daemon,
            service,
            client,
            keys,
            address,
        }
    }

    /// The daemon, and a client that is registered with it.
    pub fn door(&self) -> (&Daemon, &ClientIdentity) {
        (&self.daemon, &self.client)
    }

    pub fn state_directory(&self) -> PathBuf {
        self.daemon.directory.join("state")
    }

    /// Stops the daemon and waits for its end.
    pub fn stop_daemon(&mut self) {
        assert_eq!(self.daemon.stop(), 0, "{}", self.daemon.log());
    }

    /// Starts it again and waits until it answers.
    pub fn start_daemon(&mut self) {
        self.daemon.restart();
        self.address = self.daemon.address();
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn client_config(&self) -> rustls::ClientConfig {
        self.client.tls()
    }

    pub fn module_path(&self) -> &Path {
        &self.token.module
    }

    pub fn token_label(&self) -> &str {
        &self.token.label
    }

    pub fn pin(&self) -> &str {
        &self.token.pin
    }

    /// The kinds of keys that are enrolled.
    pub fn specs(&self) -> impl Iterator<Item = KeySpec> {
        self.keys.keys().copied()
    }

    pub fn key_id(&self, spec: KeySpec) -> Vec<u8> {
        self.keys[&spec].id.clone()
    }

    pub fn public_key(&self, spec: KeySpec) -> &PublicKey {
        &self.keys[&spec].public
    }

    /// As long as the header of an approval.
    pub fn header(&self, spec: KeySpec) -> &str {
        &self.keys[&spec].header
    }

    pub fn challenge_key(&self) -> &PublicKey {
        &self.service.challenge_key.public
    }

    /// Fresh challenges. They live for 60 s, so that the daemon need not remember them for long.
    pub fn challenges(&self, spec: KeySpec, count: usize) -> Vec<String> {
        let statement = withdrawal(spec.as_str());
        (0..count)
            .map(|_| {
                self.service
                    .challenge(&statement, |claims| claims.exp = claims.iat + 60)
            })
            .collect()
    }

    /// One approval over a connection of its own.
    pub fn approve_once(&self, spec: KeySpec) {
        let body = json!({ "challenge": self.challenges(spec, 1)[0] });
        let answer = self
            .daemon
            .native(&self.client, http::Method::POST, "/v1/approvals", &body);
        answer.ok();
    }

    /// User and system time of daemon and worker.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.daemon.pid()) + cpu_of(self.worker_pid())
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn worker_pid(&self) -> u32 {
        worker_of(self.daemon.pid())
    }

    /// Stops the daemon; panics if it does not end well or its audit trail does not verify.
    pub fn stop(mut self) {
        assert_eq!(self.daemon.stop(), 0, "{}", self.daemon.log());
        let audit: PathBuf = self.daemon.audit_directory();
        let summary = opcert::audit::verify::verify(&audit).unwrap();
        assert!(summary.closed);
    }
}

impl Key {
    fn of(installed: &Value) -> Self {
        let uri: TokenUri = installed["key"].as_str().unwrap().parse().unwrap();
        let der = from_base64(installed["certificate"].as_str().unwrap().as_bytes()).unwrap();
        let certificate = Certificate::from_der(&der).unwrap();
        Self {
            id: uri.id.unwrap().as_bytes().to_vec(),
            public: certificate.public_key().clone(),
            header: base64(base64(&der).as_bytes()),
        }
    }
}

/// User and system time of a process that its living threads took, in nanoseconds
/// (`/proc/PID/task/TID/schedstat`, first field).
pub fn cpu_of(pid: u32) -> Duration {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = task.unwrap().path().join("schedstat");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let first = text.split_whitespace().next().unwrap_or("0");
        nanos += first.parse::<u64>().unwrap();
    }
    Duration::from_nanos(nanos)
}

fn worker_of(daemon: u32) -> u32 {
    children_of(daemon)[0]
}

/// The processes that a process started and that still run.
pub fn children_of(pid: u32) -> Vec<u32> {
    let mut children = String::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
    {
        let path = entry.unwrap().path().join("children");
        children.push_str(&std::fs::read_to_string(path).unwrap_or_default());
    }
    children
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}
