//! What the daemon shows of itself: metrics, health, logs and traces; and reading its
//! configuration again.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use http::{Method, Request, StatusCode};
use hyper::body::Bytes;
use opcert::telemetry::metrics::{ALL, Kind};
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::service::Service;
use support::softhsm::TestToken;
use support::wait::until;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// The value of a sample, by the beginning of its line.
#[track_caller]
fn sample(text: &str, name: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

/// A whole answer over plain TCP, as a scraper gets it.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn append(daemon: &Daemon, text: &str) {
    let old = std::fs::read_to_string(daemon.config()).unwrap();
    std::fs::write(daemon.config(), old + text).unwrap();
}

#[test]
fn metrics_and_health_tell_what_happens() {
    let token = TestToken::new("observe");
    let daemon = Daemon::start_with(
        &token,
        "[metrics]\naddress = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n",
    );
    let service = Service::new("https://service.example");
    daemon.enrol(&service, "alice", "p256");
    let client = daemon.add_client("erp", &json!({ "consent": "none" }));

    // A request of a trace, refused: log and metrics know it.
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/approvals")
        .header("content-type", "application/json")
        .header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01"))
        .body(Bytes::from(
            json!({ "challenge": "no challenge" }).to_string(),
        ))
        .unwrap();
    let answer = daemon.control_request(request);
    let id = answer.body["request_id"].as_str().unwrap().to_owned();
    assert_eq!(answer.code(), "challenge-malformed");
    let log = daemon.log();
    let line: Value = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["message"] == "refused")
        .unwrap_or_else(|| panic!("{log}"));
    assert_eq!(line["span"]["request"], id, "{line}");
    assert_eq!(line["span"]["trace"], TRACE, "{line}");
    // The client does not wait for the record of a refusal, so it may come after the answer.
    let recorded = until("the record of the refusal", || {
        opcert::audit::read::all(&daemon.audit_directory())
            .unwrap()
            .map(Result::unwrap)
            .find(|record| {
                record
                    .request
                    .as_ref()
                    .is_some_and(|request| request.as_str() == id)
            })
    });
    assert_eq!(recorded.trace.unwrap().as_str(), TRACE);

    // The native door shows no metrics, and a certificate nobody knows is refused there.
    let answer = daemon.native(&client, Method::GET, "/metrics", &Value::Null);
    assert_eq!(answer.code(), "not-found");

    let (status, text) = daemon.control_text("/metrics");
    assert_eq!(status, StatusCode::OK);
    assert!(text.ends_with("# EOF\n"));
    assert!(
        sample(
            &text,
            "opcert_signatures_total{purpose=\"certificate-request\"}"
        ) >= 1.0
    );
    assert_eq!(
        sample(&text, "opcert_refusals_total{code=\"challenge-malformed\"}"),
        1.0
    );
    assert!(
        sample(
            &text,
            "opcert_http_requests_total{door=\"native\",status=\"4xx\"}"
        ) >= 1.0
    );
    let module = "test";
    let calls = format!(
        "opcert_pkcs11_call_seconds_count{{module=\"{module}\",function=\"C_GenerateKeyPair\"}}"
    );
    assert_eq!(sample(&text, &calls), 1.0);
    assert_eq!(
        sample(&text, &format!("opcert_module_up{{module=\"{module}\"}}")),
        1.0
    );
    assert_eq!(sample(&text, "opcert_audit_writable"), 1.0);
    assert!(sample(&text, "opcert_audit_records_total") >= 4.0);
    assert!(text.contains("state=\"ready\"} 1"), "{text}");
    assert!(
        text.contains("opcert_certificate_expiry_time_seconds{account=\"acme\",operator=\"alice\"")
    );
    assert!(text.contains("opcert_client_expiry_time_seconds{client=\"erp\"}"));

    // Every name that is shown is listed, and every one that is listed and can be is shown.
    let shown: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let rare = [
        "opcert_signature_failures",
        "opcert_prompts",
        "opcert_config_reloads",
        "opcert_token_changes",
    ];
    let listed: BTreeSet<&str> = ALL
        .iter()
        .map(|metric| metric.name)
        .filter(|name| !rare.contains(name))
        .collect();
    assert_eq!(shown, listed);
    for metric in ALL.iter().filter(|metric| metric.kind == Kind::Counter) {
        assert!(
            !text.contains(&format!("\n{} ", metric.name)),
            "{}",
            metric.name
        );
    }

    // The same on the port that was asked for, and nothing else there.
    let status = daemon.control(Method::GET, "/v1/status", &Value::Null).ok();
    let port = status["addresses"]["metrics"][0].as_str().unwrap();
    assert!(get(port, "/metrics").contains("opcert_build_info{"));
    let live = get(port, "/healthz/live");
    assert!(
        live.starts_with("HTTP/1.1 200 ") && live.ends_with("live\n"),
        "{live}"
    );
    assert!(get(port, "/v1/status").starts_with("HTTP/1.1 404 "));

    let (status, text) = daemon.control_text("/healthz/ready");
    let ready: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (status, &ready["ready"]),
        (StatusCode::OK, &json!(true)),
        "{ready}"
    );
    assert_eq!(ready["tokens"][0]["state"], "ready");
}

#[test]
fn not_ready_says_which_token_and_why() {
    let token = TestToken::new("observe");
    let daemon = Daemon::start_with(
        &token,
        "[[module]]\nname = \"gone\"\npath = \"/nonexistent/module.so\"\n\
         [[module.token]]\nuri = \"pkcs11:token=other\"\n",
    );
    let (_, text) = daemon.control_text("/healthz/ready");
    let ready: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        ready["ready"], true,
        "one token that signs is enough: {ready}"
    );
    let tokens = ready["tokens"].as_array().unwrap();
    let other = tokens
        .iter()
        .find(|one| one["uri"] == "pkcs11:token=other")
        .unwrap();
    assert_eq!(other["state"], "down");
    assert!(
        other["reason"]
            .as_str()
            .unwrap()
            .contains("/nonexistent/module.so"),
        "{other}"
    );
}

#[test]
fn a_reload_takes_over_what_it_can_and_tells_the_rest() {
    let token = TestToken::new("observe");
    let daemon = Daemon::start_with(
        &token,
        "[browser]\naddresses = [\"127.0.0.1:0\"]\norigins = [\"https://one.example\"]\n",
    );
    let directory = daemon.directory.join("opcertd.toml.d");
    std::fs::create_dir(&directory).unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let drop_in = directory.join("50-site.toml");
    let write = |text: &str| {
        std::fs::write(&drop_in, text).unwrap();
        std::fs::set_permissions(&drop_in, std::fs::Permissions::from_mode(0o600)).unwrap();
    };

    // A limit bites on the next connection: this one is let in, the two after the change are not.
    write(
        "[metrics]\naddress = \"127.0.0.1:9\"\n[control.limits]\nbody-bytes = 1024\n[log]\nlevel = \"debug\"\n",
    );
    let status = daemon.reload();
    assert_eq!(
        status["needs_restart"],
        json!(["metrics.address"]),
        "{status}"
    );
    assert_eq!(status["files"].as_array().unwrap().len(), 2, "{status}");
    assert!(status["refused"].is_null());
    let large = json!({ "challenge": "x".repeat(2000) });
    let answer = daemon.control(Method::POST, "/v1/approvals", &large);
    assert_eq!(answer.code(), "too-large");

    // Pages of other origins are served at once.
    write("[browser]\norigins = [\"https://two.example\"]\n");
    let status = daemon.reload();
    assert!(status["needs_restart"].is_null(), "{status}");
    let status = daemon.control(Method::GET, "/v1/status", &Value::Null).ok();
    assert_eq!(
        status["addresses"]["origins"],
        json!(["https://two.example"])
    );
    write("[control.limits]\nbody-bytes = 1024\n");
    daemon.reload();

    // A bad one changes nothing and says why.
    write("[control.limits]\nbody-bytes = 1\n");
    let status = daemon.reload();
    let reason = status["refused"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("50-site.toml:2: control.limits.body-bytes"),
        "{reason}"
    );
    let answer = daemon.control(Method::POST, "/v1/approvals", &large);
    assert_eq!(answer.code(), "too-large");

    // Clients that somebody put back are there again.
    daemon.add_client("erp", &json!({ "consent": "none" }));
    let clients = daemon.directory.join("state/clients.json");
    let saved = std::fs::read(&clients).unwrap();
    assert!(
        daemon
            .control(Method::DELETE, "/v1/clients/erp", &Value::Null)
            .status
            .is_success()
    );
    std::fs::write(&clients, saved).unwrap();
    std::fs::remove_file(&drop_in).unwrap();
    let status = daemon.reload();
    assert!(
        status["refused"].is_null() && status["needs_restart"].is_null(),
        "{status}"
    );
    let list = daemon
        .control(Method::GET, "/v1/clients", &Value::Null)
        .ok();
    assert_eq!(list["clients"][0]["name"], "erp");
    append(&daemon, "\n[native]\n");
    assert!(
        daemon.reload()["refused"]["reason"]
            .as_str()
            .unwrap()
            .contains("opcertd.toml:")
    );
}

#[test]
fn a_caller_that_is_refused_again_and_again_is_throttled_and_comes_in_once_it_may() {
    let token = TestToken::new("observe");
    let daemon = Daemon::start(&token);
    let client = daemon.add_client("erp", &json!({ "consent": "none" }));
    let clients = daemon.directory.join("state/clients.json");
    let saved = std::fs::read(&clients).unwrap();
    assert!(
        daemon
            .control(Method::DELETE, "/v1/clients/erp", &Value::Null)
            .status
            .is_success()
    );
    let codes: Vec<_> = (0..30)
        .map(|_| {
            daemon
                .native(&client, Method::GET, "/v1/status", &Value::Null)
                .code()
        })
        .collect();
    assert!(
        codes.iter().take(20).all(|code| code == "client-unknown"),
        "{codes:?}"
    );
    assert!(
        codes.iter().any(|code| code == "too-many-failures"),
        "{codes:?}"
    );
    std::fs::write(&clients, saved).unwrap();
    daemon.reload();
    daemon
        .native(&client, Method::GET, "/v1/status", &Value::Null)
        .ok();
}

#[test]
fn a_reload_takes_modules_in_changes_them_and_lets_them_go() {
    let (token, second) = (TestToken::new("observe"), TestToken::new("second"));
    let daemon = Daemon::start(&token);
    let pin_file = daemon.directory.join("pin");
    let directory = daemon.directory.join("opcertd.toml.d");
    std::fs::create_dir(&directory).unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let drop_in = directory.join("50-site.toml");
    let write = |text: &str| {
        std::fs::write(&drop_in, text).unwrap();
        std::fs::set_permissions(&drop_in, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let states = || -> Vec<(String, String)> {
        let list = daemon.control(Method::GET, "/v1/tokens", &Value::Null).ok();
        let text = |one: &Value, name: &str| one[name].as_str().unwrap().to_owned();
        list["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (text(one, "uri"), text(one, "state")))
            .collect()
    };
    let until_ready = |count: usize| {
        until("the tokens are ready", || {
            let now = states();
            (now.len() == count && now.iter().all(|(_, state)| state == "ready")).then_some(())
        });
    };
    until_ready(1);
    // Whichever thread of the daemon started them.
    let workers = |daemon: &Daemon| -> BTreeSet<u32> {
        std::fs::read_dir(format!("/proc/{}/task", daemon.pid()))
            .unwrap()
            .flat_map(|task| {
                let children = task.unwrap().path().join("children");
                let list = std::fs::read_to_string(children).unwrap_or_default();
                list.split_whitespace()
                    .map(|pid| pid.parse().unwrap())
                    .collect::<Vec<u32>>()
            })
            .collect()
    };
    let first = workers(&daemon);
    assert_eq!(first.len(), 1);

    // One more, with a token of its own; the one that is there goes on.
    write(
        &second
            .config_toml()
            .replace("name = \"test\"", "name = \"second\""),
    );
    let status = daemon.reload();
    assert!(
        status["needs_restart"].is_null() && status["refused"].is_null(),
        "{status}"
    );
    until_ready(2);
    assert!(workers(&daemon).is_superset(&first));

    // Its entry changes: it is started anew with the PIN that worked, as there is no source any more.
    std::fs::remove_file(&pin_file).unwrap();
    write("[[module]]\nname = \"test\"\nthreads = 1\n");
    let status = daemon.reload();
    assert!(
        status["needs_restart"].is_null() && status["refused"].is_null(),
        "{status}"
    );
    until_ready(1);
    assert!(workers(&daemon).is_disjoint(&first));

    // Two of one name are none.
    append(&daemon, "\n[[module]]\nname = \"test\"\npath = \"/x.so\"\n");
    let status = daemon.reload();
    let reason = status["refused"]["reason"].as_str().unwrap();
    assert!(reason.contains("test"), "{reason}");
    until_ready(1);
}
