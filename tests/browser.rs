//! Pages in real Chromium and Firefox at the real daemon: the main job by clicking, and what other
//! pages, requests and browsers do not get. What happens in the browser is in tests/browser/door.
//!
//! The portal here is the smallest page that does the job, with an account service in software
//! behind it. Both hosts of it count as public ones, so that browsers ask for leave to reach this
//! computer. `opcert browser setup` makes the browsers fit, as it does for people.

mod support;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use opcert::base::encoding::{base64, from_base64};
use opcert::base::x509::{Certificate, CertificateRequest, OperatingIdentity};
use opcert::http::{Door, Limits, Listener, Server, tls};
use opcert::statement::Approval;
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::service::{Service, withdrawal};
use support::softhsm::TestToken;

#[test]
#[ignore = "needs Chromium and Node.js; tests/run installs them"]
fn chromium() {
    let place = Place::new();
    place.drive("chromium.mjs");
}

#[test]
#[ignore = "needs Firefox ESR and Node.js; tests/run installs them"]
fn firefox() {
    let place = Place::new();
    place.drive("firefox.mjs");
}

/// The portal, the daemon, and the homes of people whose browsers are more or less fit.
struct Place {
    daemon: Daemon,
    token: TestToken,
    portal: SocketAddr,
    authority: PathBuf,
    // The server runs as long as these.
    _server: Server,
    _runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new() -> Self {
        let token = TestToken::new("opcert-test");
        let directory = token.directory().to_owned();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _guard = runtime.enter();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let portal = listener.local_addr().unwrap();
        let shop = Arc::new(Shop {
            service: Service::new(&origin("portal", portal)),
            enrolling: Mutex::default(),
        });
        let authority = make_portal_certificate(&directory);
        let identity = tls::Identity::from_pem(
            &std::fs::read(directory.join("portal.pem")).unwrap(),
            &std::fs::read(directory.join("portal-key.pem")).unwrap(),
        )
        .unwrap();
        let server = Server::start(vec![Door {
            name: "portal",
            listener: Listener::Tcp {
                listener: tokio::net::TcpListener::from_std(listener).unwrap(),
                tls: Some(tls::public(identity).unwrap()),
            },
            limits: Limits::default(),
            router: portal_router(shop),
        }]);
        let pinentry = pinentry(&directory);
        let daemon = Daemon::start_with(
            &token,
            &format!(
                "[browser]\norigins = [\"{}\"]\naddresses = [\"127.0.0.1:0\"]\n\
                 [consent]\npinentry = \"{}\"\n",
                origin("portal", portal),
                pinentry.display()
            ),
        );
        Self {
            daemon,
            token,
            portal,
            authority,
            _server: server,
            _runtime: runtime,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.token.directory().join(name)
    }

    fn drive(&self, script: &str) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let status = self
            .daemon
            .control(http::Method::GET, "/v1/status", &Value::Null)
            .ok();
        let door: SocketAddr = status["addresses"]["browser"][0]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let client = "browser-full";
        let full = self.home("full");
        self.opcert(&full, &["browser", "setup", "--policies", "skip"]);
        // The same person's, who has used the browser before.
        let extension = self.home("extension");
        let own = full.join(".config/opcert/browser");
        self.opcert(
            &extension,
            &[
                "browser",
                "setup",
                "--policies",
                "skip",
                "--client",
                own.to_str().unwrap(),
            ],
        );
        let ca = own.join("server-ca.pem");
        let no_client = self.home("no-client");
        let untrusted = self.home("untrusted");
        for home in [&full, &extension, &no_client, &untrusted] {
            for database in [chromium_database(home), firefox_profile(home)] {
                trust(&database, "portal", &self.authority);
            }
        }
        for database in [chromium_database(&no_client), firefox_profile(&no_client)] {
            trust(&database, "opcert", &ca);
        }
        let firefox = |home: &Path| json!({ "home": home, "profile": firefox_profile(home) });
        // Held, so that nobody else takes it: it refuses connections all the same.
        let unused = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let place = json!({
            "directory": self.token.directory(),
            "portal": origin("portal", self.portal),
            "evil": origin("evil", self.portal),
            "port": door.port(),
            "unused": unused.local_addr().unwrap().port(),
            "client": client,
            "log": self.path("opcertd.log"),
            "wait": self.path("wait"),
            "asking": self.path("asking"),
            "extension": root.join("web/extension"),
            "artefacts": root.join("target/browser/door"),
            "homes": {
                "full": full,
                "extension": extension,
                "noClient": no_client,
                "untrusted": untrusted,
            },
            "firefox": {
                "full": firefox(&full),
                "noClient": firefox(&no_client),
                "untrusted": firefox(&untrusted),
            },
        });
        let status = Command::new("node")
            .arg(root.join("tests/browser/door").join(script))
            .env("OPCERT_BROWSER_TEST", place.to_string())
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{}", self.daemon.log());

        let doctor = self.opcert(&full, &["browser", "doctor"]);
        assert!(!doctor.contains("FAIL"), "{doctor}");
        self.opcert(&full, &["browser", "remove"]);
        assert!(!own.exists());
        let left = Command::new("certutil")
            .arg("-L")
            .arg("-d")
            .arg(format!("sql:{}", chromium_database(&full).display()))
            .output()
            .unwrap();
        let left = String::from_utf8_lossy(&left.stdout).into_owned();
        assert!(
            left.contains("portal") && !left.contains("opcert"),
            "{left}"
        );
        let clients = self
            .daemon
            .control(http::Method::GET, "/v1/clients", &Value::Null)
            .ok();
        assert_eq!(clients["clients"], json!([]));
    }

    /// The home of a person with one Firefox profile, and Chromium where it looks today.
    fn home(&self, name: &str) -> PathBuf {
        let home = self.path(name);
        let firefox = home.join(".mozilla/firefox");
        std::fs::create_dir_all(firefox.join("test")).unwrap();
        std::fs::write(
            firefox.join("profiles.ini"),
            "[Profile0]\nName=test\nIsRelative=1\nPath=test\n",
        )
        .unwrap();
        home
    }

    fn opcert(&self, home: &Path, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_opcert"))
            .args(arguments)
            .arg("--socket")
            .arg(self.daemon.socket())
            .env("HOME", home)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    }
}

fn origin(host: &str, portal: SocketAddr) -> String {
    format!("https://{host}.test:{}", portal.port())
}

fn chromium_database(home: &Path) -> PathBuf {
    home.join(".local/share/pki/nssdb")
}

fn firefox_profile(home: &Path) -> PathBuf {
    home.join(".mozilla/firefox/test")
}

/// Has an NSS database trust an authority; makes the database where there is none.
fn trust(database: &Path, name: &str, authority: &Path) {
    std::fs::create_dir_all(database).unwrap();
    let certutil = |arguments: &[&str]| {
        let output = Command::new("certutil")
            .arg("-d")
            .arg(format!("sql:{}", database.display()))
            .args(arguments)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    if !database.join("cert9.db").exists() {
        certutil(&["-N", "--empty-password"]);
    }
    let file = authority.to_str().unwrap();
    certutil(&["-A", "-n", name, "-t", "C,,", "-i", file]);
}

/// An authority for the portal, and its certificate for both hosts.
fn make_portal_certificate(directory: &Path) -> PathBuf {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(directory)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    openssl(
        &[
            &[
                "req",
                "-x509",
                "-subj",
                "/CN=portal test authority",
                "-days",
                "2",
            ],
            &key[..],
            &["-keyout", "portal-ca-key.pem", "-out", "portal-ca.pem"],
        ]
        .concat(),
    );
    openssl(
        &[
            &["req", "-x509", "-subj", "/CN=portal.test", "-days", "2"],
            &key[..],
            &["-CA", "portal-ca.pem", "-CAkey", "portal-ca-key.pem"],
            &["-addext", "subjectAltName=DNS:portal.test,DNS:evil.test"],
            &["-addext", "basicConstraints=critical,CA:false"],
            &["-addext", "extendedKeyUsage=serverAuth"],
            &["-keyout", "portal-key.pem", "-out", "portal.pem"],
        ]
        .concat(),
    );
    directory.join("portal-ca.pem")
}

/// A person who agrees; while there is a pipe named `wait`, one who does not answer. `asking` is the
/// process that waits.
fn pinentry(directory: &Path) -> PathBuf {
    let path = directory.join("pinentry");
    let script = format!(
        "#!/bin/sh\ncd '{}' || exit 1\necho OK\nwhile IFS= read -r line; do\n\
         case $line in\n\
         CONFIRM) if [ -p wait ]; then echo $$ >asking.new; mv asking.new asking; cat wait; fi; echo OK ;;\n\
         BYE) echo OK; exit 0 ;;\n*) echo OK ;;\nesac\ndone\n",
        directory.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// What is behind the portal.
struct Shop {
    service: Service,
    /// Whom the last ticket was for: the page sends its request right after.
    enrolling: Mutex<Option<OperatingIdentity>>,
}

fn portal_router(shop: Arc<Shop>) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(move || async move {
            (
                [
                    (CONTENT_TYPE, kind),
                    (CONTENT_SECURITY_POLICY, "treat-as-public-address"),
                ],
                text,
            )
        })
    };
    Router::new()
        .route(
            "/",
            file("text/html", include_str!("browser/door/page.html")),
        )
        .route(
            "/page.js",
            file("text/javascript", include_str!("browser/door/page.js")),
        )
        .route(
            "/opcert.js",
            file("text/javascript", include_str!("../web/opcert.js")),
        )
        .route("/ticket", post(ticket))
        .route("/challenge", post(challenge))
        .route("/approval", post(approval))
        .route(
            "/.well-known/jwks.json",
            get(|State(shop): State<Arc<Shop>>| async move { Json(shop.service.keys()) }),
        )
        .route(
            "/.well-known/est/cacerts",
            get(|State(shop): State<Arc<Shop>>| async move {
                certs_only(&shop.service.ca.to_pem().unwrap())
            }),
        )
        .route("/.well-known/est/simpleenroll", post(enroll))
        .with_state(shop)
}

fn identity(computer: &str) -> OperatingIdentity {
    OperatingIdentity {
        account: "acme".parse().unwrap(),
        operator: "alice".parse().unwrap(),
        computer: computer.parse().unwrap(),
    }
}

async fn ticket(State(shop): State<Arc<Shop>>, Json(body): Json<Value>) -> Json<Value> {
    let identity = identity(body["computer"].as_str().unwrap());
    let ticket = shop.service.ticket(&identity, |_| ());
    *shop.enrolling.lock().unwrap() = Some(identity);
    Json(json!({ "ticket": ticket }))
}

async fn challenge(State(shop): State<Arc<Shop>>) -> Json<Value> {
    let page = shop.service.origin.clone();
    let challenge = shop
        .service
        .challenge(&withdrawal("alice"), |claims| claims.origin = Some(page));
    Json(json!({ "challenge": challenge }))
}

async fn approval(State(shop): State<Arc<Shop>>, Json(body): Json<Value>) -> Json<Value> {
    let approval = Approval::verify(
        body["approval"].as_str().unwrap(),
        std::slice::from_ref(&shop.service.ca),
        None,
        Timestamp::now(),
    )
    .unwrap();
    assert!(approval.is_for(body["challenge"].as_str().unwrap()));
    Json(json!({ "client": approval.client, "origin": approval.origin }))
}

async fn enroll(State(shop): State<Arc<Shop>>, body: Bytes) -> Response {
    let text: Vec<u8> = body
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    let request = CertificateRequest::from_der(&from_base64(&text).unwrap()).unwrap();
    let identity = shop.enrolling.lock().unwrap().clone().unwrap();
    let certificate = shop.service.issue(&request, &identity, 365);
    certs_only(
        &Certificate::from_der(&certificate)
            .unwrap()
            .to_pem()
            .unwrap(),
    )
}

/// A certs-only CMS message in base64 (RFC 7030 section 4.1.3), by OpenSSL.
fn certs_only(pem: &str) -> Response {
    use std::io::Write;
    let mut openssl = Command::new("openssl")
        .args([
            "crl2pkcs7",
            "-nocrl",
            "-certfile",
            "/dev/stdin",
            "-outform",
            "DER",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = openssl.stdin.take().unwrap();
    input.write_all(pem.as_bytes()).unwrap();
    drop(input);
    let output = openssl.wait_with_output().unwrap();
    assert!(output.status.success());
    (
        [(
            CONTENT_TYPE,
            "application/pkcs7-mime; smime-type=certs-only",
        )],
        base64(&output.stdout),
    )
        .into_response()
}
