//! What the daemon shows of itself: metrics, health, logs and traces; and reading its
//! configuration again.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Bytes;
use opcert::telemetry::metrics::{ALL, Kind};
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::faulty::Faulty;
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
    let write = |text: &str| daemon.drop_in("50-site.toml", text);

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
    std::fs::remove_file(daemon.directory.join("opcertd.toml.d/50-site.toml")).unwrap();
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
fn handshakes_that_break_off_keep_nobody_out() {
    let token = TestToken::new("observe");
    let daemon = Daemon::start_with(
        &token,
        "[browser]\naddresses = [\"127.0.0.1:0\"]\norigins = [\"https://pay.example\"]\n",
    );
    let client = daemon.add_client("erp", &json!({ "consent": "none" }));
    let status = daemon.control(Method::GET, "/v1/status", &Value::Null).ok();
    let config = Arc::new(client.tls());
    for door in ["native", "browser"] {
        let address = status["addresses"][door][0].as_str().unwrap();
        for round in 0..80 {
            let mut stream = TcpStream::connect(address).unwrap();
            // As browsers do: away once a certificate is asked for; or before anything is said.
            if round % 4 != 0 {
                let name = "localhost".try_into().unwrap();
                let mut tls = rustls::ClientConnection::new(config.clone(), name).unwrap();
                tls.write_tls(&mut stream).unwrap();
                assert!(tls.read_tls(&mut stream).unwrap() > 0);
            }
        }
        until("the failures are counted", || {
            let (_, text) = daemon.control_text("/metrics");
            let name = format!("opcert_tls_handshake_failures_total{{door=\"{door}\"}}");
            (sample(&text, &name) >= 60.0).then_some(())
        });
    }
    daemon
        .native(&client, Method::GET, "/v1/status", &Value::Null)
        .ok();
    let (_, text) = daemon.control_text("/metrics");
    assert_eq!(
        sample(&text, "opcert_authentication_throttled_total"),
        0.0,
        "{text}"
    );
}

/// The tables of a configuration whose module is in front of the real one.
#[derive(serde::Serialize)]
struct Modules {
    worker: std::path::PathBuf,
    module: Vec<opcert::device::ModuleConfig>,
}

#[test]
fn the_watchdog_is_fed_only_while_a_token_signs() {
    let token = TestToken::new("observe");
    let faulty = Faulty::new(&token);
    let mut config = token.config();
    faulty.configure(&mut config);
    let modules = toml::to_string(&Modules {
        worker: env!("CARGO_BIN_EXE_opcert-worker").into(),
        module: config.module,
    })
    .unwrap();
    let path = token.directory().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let fed = Arc::new(AtomicUsize::new(0));
    let counted = fed.clone();
    // Reads on to the end, so that the daemon can always tell.
    std::thread::spawn(move || {
        let mut message = [0; 256];
        while let Ok(length) = manager.recv(&mut message) {
            if message[..length].starts_with(b"WATCHDOG=1") {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let daemon = Daemon::start_by(
        &token,
        &modules,
        "",
        &[
            ("NOTIFY_SOCKET", path.display().to_string()),
            ("WATCHDOG_USEC", "900000".into()),
        ],
    );
    let more_than = |count: usize| (fed.load(Ordering::Relaxed) > count).then_some(());
    daemon.enrol(&Service::new("https://service.example"), "alice", "p256");
    let before = fed.load(Ordering::Relaxed);
    until("it is fed", || more_than(before));

    // It signs, and what it signs is wrong: it looks alive and is of no use.
    faulty.on("C_Sign").flips(3);
    until("the daemon notices", || {
        daemon
            .log()
            .contains("the watchdog is not fed")
            .then_some(())
    });
    let before = fed.load(Ordering::Relaxed);
    // Two of the manager's periods, after which it would have restarted the daemon.
    std::thread::sleep(Duration::from_millis(1800));
    assert!(more_than(before).is_none(), "{}", daemon.log());
    let (status, text) = daemon.control_text("/healthz/live");
    assert_eq!(status, StatusCode::OK, "{text}");

    faulty.heal();
    until("it is fed again", || more_than(before));
}

#[test]
fn a_reload_takes_modules_in_changes_them_and_lets_them_go() {
    let (token, second) = (TestToken::new("observe"), TestToken::new("second"));
    let daemon = Daemon::start(&token);
    let pin_file = daemon.directory.join("pin");
    let write = |text: &str| daemon.drop_in("50-site.toml", text);
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

#[test]
fn a_reload_moves_the_copy_of_the_records_and_the_group_of_the_control_socket() {
    let token = TestToken::new("observe");
    let (first, second) = (
        token.directory().join("first.log"),
        token.directory().join("second.log"),
    );
    let daemon = Daemon::start_with(
        &token,
        &format!("[audit]\ncopy = \"file:{}\"\n", first.display()),
    );
    let write = |text: &str| daemon.drop_in("50-site.toml", text);
    let adopted = || {
        let status = daemon.reload();
        assert!(
            status["needs_restart"].is_null() && status["refused"].is_null(),
            "{status}"
        );
    };
    // Nothing waits for a copy, so it may come later than what it is of.
    let copied = |path: &std::path::Path, words: &str| {
        until(words, || {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.contains(words).then_some(text)
        })
    };

    write(&format!("[audit]\ncopy = \"file:{}\"\n", second.display()));
    adopted();
    let old = copied(&first, "\"kind\":\"audit-copy\"");
    assert!(old.lines().last().unwrap().contains("\"audit-copy\""));
    daemon.add_client("erp", &json!({ "consent": "none" }));
    copied(&second, "\"erp\"");
    assert!(!std::fs::read_to_string(&first).unwrap().contains("\"erp\""));

    // One that cannot be opened is refused with all of the file, and the old one goes on.
    write("[audit]\ncopy = \"file:/proc/no/such.log\"\n[log]\nlevel = \"trace\"\n");
    let status = daemon.reload();
    let reason = status["refused"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("file:/proc/no/such.log") && reason.contains("No such file"),
        "{reason}"
    );
    daemon.add_client("till", &json!({ "consent": "none" }));
    copied(&second, "\"till\"");

    // The file was moved away: a reload makes it anew.
    let moved = token.directory().join("moved.log");
    std::fs::rename(&second, &moved).unwrap();
    let kept = format!("[audit]\ncopy = \"file:{}\"\n", second.display());
    write(&kept);
    adopted();
    daemon.add_client("shop", &json!({ "consent": "none" }));
    copied(&second, "\"shop\"");
    assert!(
        !std::fs::read_to_string(&moved)
            .unwrap()
            .contains("\"shop\"")
    );

    // The socket is its owner's, then a group's, then its owner's.
    let mode = || {
        let socket = daemon.directory.join("run/control.sock");
        std::fs::metadata(socket).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(), 0o600);
    let group = rustix::process::getgid().as_raw();
    write(&format!("{kept}[control]\ngroup = \"{group}\"\n"));
    adopted();
    assert_eq!(mode(), 0o660);
    write(&format!("{kept}[control]\ngroup = \"no-such-group\"\n"));
    let status = daemon.reload();
    let reason = status["refused"]["reason"].as_str().unwrap();
    assert!(reason.contains("no-such-group"), "{reason}");
    assert_eq!(mode(), 0o660);
    write(&kept);
    adopted();
    assert_eq!(mode(), 0o600);
}
