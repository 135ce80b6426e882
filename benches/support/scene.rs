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
    worker: u32,
}

struct Key {
    id: Vec<u8>,
    public: PublicKey,
    header: String,
}

impl Scene {
    /// Makes the token, starts the release daemon and enrols an operator for each kind of key.
    pub fn start(specs: &[KeySpec]) -> Self {
        let token = TestToken::new("opcert-bench");
        let daemon = Daemon::start(&token);
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
        let worker = worker_of(daemon.pid());
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
            worker,
        }
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

    /// Fresh challenges. They live for 30 s, so that the daemon need not remember them for long.
    pub fn challenges(&self, spec: KeySpec, count: usize) -> Vec<String> {
        let statement = withdrawal(spec.as_str());
        (0..count)
            .map(|_| {
                self.service
                    .challenge(&statement, |claims| claims.exp = claims.iat + 30)
            })
            .collect()
    }

    /// User and system time of daemon and worker.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.daemon.pid()) + cpu_of(self.worker)
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn worker_pid(&self) -> u32 {
        self.worker
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

/// Resident memory of a process that has been idle for a moment, in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}

/// User and system time of a process, from `/proc/PID/stat` (proc(5), fields 14 and 15).
pub fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

fn worker_of(daemon: u32) -> u32 {
    let mut children = String::new();
    for entry in std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap() {
        let path = entry.unwrap().path().join("children");
        children.push_str(&std::fs::read_to_string(path).unwrap_or_default());
    }
    children.split_whitespace().next().unwrap().parse().unwrap()
}
