//! API secrets on their whole way: set at the real account service, carried by the real courier,
//! opened by the real daemon on its token, used for what a platform encrypted.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use axum::body::Bytes;
use http::{Method, Request};
use jiff::Timestamp;
use opcert::base::encoding::base64;
use opcert::http::client::Target;
use opcert::http::tls;
use serde_json::{Value, json};

use super::platform::{Platform, SECRET, sealed};
use super::scene::{
    Answer as ServiceAnswer, JOSE, JSON, Made, PASSWORD, Running, at_fixed_address, send, succeed,
    succeed_with, walk,
};
use super::support::daemon::{Answer, Daemon};
use super::support::softhsm::TestToken;

const MCHID: &str = "1900007291";
const SECOND: &str = "b7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb";
const THIRD: &str = "c7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb";

/// `opcert-accountd` on a token of its own: account acme with three super administrators, so that
/// none has to wait for the next code.
struct Accounts {
    made: Made,
    running: Running,
    target: Target,
    runtime: tokio::runtime::Runtime,
}

impl Accounts {
    fn start() -> Self {
        let made = Made::bare();
        let origin = at_fixed_address(&made);
        succeed(
            made.command()
                .args(["account", "create", "acme", "--name", "Acme"]),
        );
        for (number, operator) in ["alice", "bob", "dora"].into_iter().enumerate() {
            let mobile = format!("+861380000000{number}");
            let mut create = made.command();
            create
                .args(["operator", "create", operator, "--account", "acme"])
                .args(["--mobile", &mobile, "--role", "super-administrator"])
                .args(["--password-file", "-"]);
            succeed_with(&mut create, PASSWORD);
        }
        let running = Running::start(&made);
        assert_eq!(running.origin, origin);
        let ca = std::fs::read(made.state().join("server-ca.pem")).unwrap();
        let roots = tls::roots(tls::certificates(&ca).unwrap()).unwrap();
        let (_, port) = origin.rsplit_once(':').unwrap();
        Self {
            target: Target::Tls {
                host: "127.0.0.1".into(),
                port: port.parse().unwrap(),
                config: tls::client(roots, None).unwrap(),
            },
            made,
            running,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    /// The next code that a text brings.
    fn code(&self) -> String {
        loop {
            let line = self.running.lines.recv_timeout(Duration::from_secs(60));
            let line = line.expect("a text with a code");
            if let Some((_, rest)) = line.split_once("opcert code ") {
                return rest[..6].to_owned();
            }
        }
    }

    fn send(&self, request: Request<Bytes>) -> ServiceAnswer {
        self.runtime.block_on(send(&self.target, request))
    }

    fn log_in(&self, operator: &str) -> Person<'_> {
        let body = json!({ "account": "acme", "operator": operator, "password": PASSWORD });
        let request = Request::post("/v1/sessions").header("content-type", JSON);
        let answer = self
            .send(request.body(body.to_string().into()).unwrap())
            .done(201);
        let cookie = answer.headers["set-cookie"].to_str().unwrap();
        Person {
            accounts: self,
            cookie: cookie.split(';').next().unwrap().to_owned(),
            csrf: answer.text("csrf_token"),
        }
    }

    /// Sets the APIv3 secret, with the code that comes for it.
    fn set(&self, operator: &str, secret: &str, overlap: u32) {
        let person = self.log_in(operator);
        let sent = person.ok(Method::POST, "/v1/secrets/apiv3/codes", Value::Null);
        let body = json!({
            "secret": secret, "code_id": sent["code_id"], "code": self.code(),
            "password": PASSWORD, "overlap_seconds": overlap,
        });
        person.ok(Method::PUT, "/v1/secrets/apiv3", body);
    }

    /// What a courier gets for a daemon's request.
    fn give(&self, request: &str) -> Value {
        let post = Request::post("/v1/secrets/requests").header("content-type", JOSE);
        let answer = self.send(post.body(request.to_owned().into()).unwrap());
        answer.done(200).json
    }
}

/// Somebody who is logged in.
struct Person<'a> {
    accounts: &'a Accounts,
    cookie: String,
    csrf: String,
}

impl Person<'_> {
    #[track_caller]
    fn ok(&self, method: Method, path: &str, body: Value) -> Value {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("cookie", &self.cookie)
            .header("x-csrf-token", &self.csrf)
            .header("content-type", JSON);
        let body = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        let answer = self.accounts.send(request.body(body).unwrap());
        assert!(answer.status.is_success(), "{answer:?}");
        answer.json
    }
}

/// A merchant's computer with an operating certificate, whose daemon takes the account's secrets.
struct Computer<'a> {
    accounts: &'a Accounts,
    daemon: Daemon,
    token: TestToken,
    platform: Platform,
}

impl<'a> Computer<'a> {
    fn new(accounts: &'a Accounts, operator: &str, name: &str) -> Self {
        let token = TestToken::new("opcert-test");
        let daemon = Daemon::start(&token);
        let computer = Self {
            accounts,
            daemon,
            token,
            platform: Platform::with_validity(now() - 86_400, now() + 864_000),
        };
        let password = computer.token.directory().join("password");
        opcert::base::files::write_new(&password, PASSWORD.as_bytes(), 0o600).unwrap();
        let mut install = computer.opcert(&["install"]);
        install
            .args(["--account", "acme", "--operator", operator])
            .args(["--computer-name", name, "--code-file", "-"])
            .arg("--password-file")
            .arg(&password);
        let mut child = install
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{}", accounts.code()).unwrap();
        drop(stdin);
        succeeded(&child.wait_with_output().unwrap());

        let merchant = json!({
            "merchant": MCHID,
            "rules": { "sign-type": "MD5" },
            "service": accounts.running.origin,
            "account": "acme",
        });
        computer.post("merchants", &merchant).ok();
        let pin = json!({ "certificate": computer.platform.certificate.to_pem().unwrap() });
        let keys = format!("merchants/{MCHID}/platform-keys");
        computer.post(&keys, &pin).ok();
        computer
    }

    /// A command of whoever administers the computer.
    fn local(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_opcert"));
        command
            .env("OPCERT_SOCKET", self.daemon.socket())
            .args(arguments);
        command
    }

    /// A command of the courier.
    fn opcert(&self, arguments: &[&str]) -> Command {
        let mut command = self.local(arguments);
        command
            .args(["--service", &self.accounts.running.origin])
            .arg("--service-ca")
            .arg(self.accounts.made.state().join("server-ca.pem"));
        command
    }

    fn sync(&self) -> Value {
        let output = succeed(&mut self.opcert(&["sync", "--json"]));
        serde_json::from_str(&output).unwrap()
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.daemon
            .control(Method::POST, &format!("/v1/wechatpay/{path}"), body)
    }

    /// The daemon's request for secrets, as a courier carries it.
    fn request(&self) -> String {
        let body = json!({ "service": self.accounts.running.origin });
        let made = self.post("secrets/requests", &body).ok();
        assert_eq!(made["without_certificate"], json!([]));
        made["requests"][0]["request"].as_str().unwrap().to_owned()
    }

    /// Has a callback opened whose content was encrypted with `secret`.
    fn opens(&self, secret: &str, content: &str) -> Answer {
        let callback = json!({
            "id": format!("EV-{content}"),
            "create_time": "2015-05-20T13:29:35+08:00",
            "resource_type": "encrypt-resource",
            "event_type": "TRANSACTION.SUCCESS",
            "summary": "paid",
            "resource": sealed(secret, "transaction", content.as_bytes()),
        });
        let body = serde_json::to_vec(&callback).unwrap();
        let headers: BTreeMap<_, _> = self
            .platform
            .headers(&self.platform.serial, now(), &body)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let received =
            json!({ "merchant": MCHID, "headers": headers, "body_base64": base64(&body) });
        self.post("v3/decrypt", &received)
    }

    fn key(&self) -> String {
        let printed = succeed(&mut self.local(&["wechatpay", "secret", "key", MCHID]));
        let key: Value = serde_json::from_str(&printed).unwrap();
        key["kid"].as_str().unwrap().to_owned()
    }
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

#[test]
fn a_secret_travels_sealed_from_the_super_administrator_to_the_token() {
    let accounts = Accounts::start();
    let till = Computer::new(&accounts, "alice", "till");
    let other = Computer::new(&accounts, "bob", "other");
    accounts.set("alice", SECRET, 0);

    // An operating certificate alone gets nothing: the super administrator decides.
    let said = succeeded(&till.opcert(&["sync"]).output().unwrap());
    assert!(said.contains("API Security"), "{said}");
    let carried = other.sync();
    assert_eq!(carried["secrets"], json!([]), "{carried}");
    assert_eq!(till.opens(SECRET, "1").code(), "merchant-not-ready");
    let dora = accounts.log_in("dora");
    for computer in [&till, &other] {
        let path = format!("/v1/secrets/recipients/{}/admission", computer.key());
        dora.ok(Method::POST, &path, json!({ "password": PASSWORD }));
    }

    // The statement for the one computer does not open at the other.
    let given = accounts.give(&till.request());
    let first = given["secrets"][0].as_str().unwrap().to_owned();
    let signed = json!({ "signed": first });
    assert_eq!(other.post("secrets", &signed).code(), "secret-invalid");
    assert_eq!(other.opens(SECRET, "2").code(), "merchant-not-ready");

    // The courier brings it; what the platform encrypted opens; and the service knows it arrived.
    for computer in [&till, &other] {
        let carried = computer.sync();
        assert_eq!(carried["secrets"][0]["merchant"], MCHID, "{carried}");
        assert_eq!(carried["secrets"][0]["secret"]["kind"], "apiv3");
        assert_eq!(carried["secrets"][0]["secret"]["version"], 1);
        assert_eq!(computer.opens(SECRET, "3").ok()["resource"], "3");
    }
    let seen = dora.ok(Method::GET, "/v1/secrets", Value::Null);
    for recipient in seen["recipients"].as_array().unwrap() {
        assert_eq!(recipient["apiv3"], "held", "{seen}");
    }
    let carried = till.sync();
    assert_eq!(carried["secrets"], json!([]), "nothing is carried twice");

    // The next one: while they overlap the old one is read too, and cannot be brought back.
    accounts.set("bob", SECOND, 3_600);
    let given = accounts.give(&till.request());
    let second = given["secrets"][0].as_str().unwrap().to_owned();
    let carried = till.sync();
    assert_eq!(carried["secrets"][0]["secret"]["version"], 2, "{carried}");
    assert_eq!(till.opens(SECOND, "4").ok()["resource"], "4");
    assert_eq!(till.opens(SECRET, "5").ok()["resource"], "5");
    for old in [&first, &second] {
        let answer = till.post("secrets", &json!({ "signed": old }));
        assert_eq!(answer.code(), "secret-invalid");
    }
    // One that was not carried there yet still has the old one only.
    assert_eq!(other.opens(SECOND, "6").code(), "wechatpay-content");

    // Without an overlap the old one is gone with the new one. This time a person carries it.
    accounts.set("dora", THIRD, 0);
    let given = accounts.give(&till.request());
    let third = given["secrets"][0].as_str().unwrap();
    succeed_with(
        &mut till.local(&["wechatpay", "secret", "take", "-"]),
        third,
    );
    assert_eq!(till.opens(THIRD, "7").ok()["resource"], "7");
    for gone in [SECRET, SECOND] {
        assert_eq!(till.opens(gone, "8").code(), "wechatpay-content");
    }
    // Who was away meanwhile gets the newest.
    let carried = other.sync();
    assert_eq!(carried["secrets"][0]["secret"]["version"], 3, "{carried}");
    assert_eq!(other.opens(THIRD, "9").ok()["resource"], "9");

    // The way is on record at both ends, and no secret is anywhere on it.
    let records = walk(&till.daemon.audit_directory());
    let records: String = records.iter().map(|path| text(path)).collect();
    for kind in [r#""kind":"secret-request""#, r#""kind":"merchant-secret""#] {
        assert!(records.contains(kind), "{kind}");
    }
    let mut files = walk(accounts.made.token.directory());
    files.extend(walk(till.token.directory()));
    files.extend(walk(other.token.directory()));
    for path in files {
        let content = text(&path);
        for secret in [SECRET, SECOND, THIRD] {
            assert!(!content.contains(secret), "{} holds one", path.display());
        }
    }
}

/// What was said on standard error by a command that succeeded.
fn succeeded(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}
