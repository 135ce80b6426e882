//! Rules through the real daemon: what they decide, how they change, what survives a restart.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use http::Method;
use serde_json::{Value, json};
use support::daemon::{Answer, ClientIdentity, Daemon};
use support::service::{Service, withdrawal};
use support::softhsm::TestToken;
use support::wait::until;

const ORIGIN: &str = "https://pay.example";

fn write(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

struct Site {
    token: TestToken,
    rules: PathBuf,
    service: Service,
}

impl Site {
    fn new(rules: &str) -> Self {
        let token = TestToken::new("opcert-test");
        let directory = token.directory().join("policy");
        std::fs::create_dir(&directory).unwrap();
        let file = directory.join("site.cedar");
        write(&file, rules);
        Self {
            token,
            rules: file,
            service: Service::new(ORIGIN),
        }
    }

    fn daemon(&self, limits: &str) -> Daemon {
        let table = format!(
            "[policy]\ndirectory = \"{}\"\ntime-zone = \"UTC\"\n{limits}\n",
            self.rules.parent().unwrap().display()
        );
        Daemon::start_with(&self.token, &table)
    }

    fn approve(&self, daemon: &Daemon, client: &ClientIdentity, minor: i64) -> Answer {
        let challenge = self.service.challenge(&withdrawal("alice"), |claims| {
            claims.statement["amount"] = minor.into();
        });
        daemon.native(
            client,
            Method::POST,
            "/v1/approvals",
            &json!({ "challenge": challenge }),
        )
    }
}

fn reload(daemon: &Daemon) -> Answer {
    daemon.control(Method::POST, "/v1/policy/reload", &Value::Null)
}

fn refused(answer: Answer) -> (String, String) {
    let rule = answer.body["rule"].as_str().unwrap_or("none").to_owned();
    (answer.code(), rule)
}

fn pair(code: &str, rule: &str) -> (String, String) {
    (code.to_owned(), rule.to_owned())
}

#[test]
fn site_rules_decide_and_say_so_everywhere() {
    let site = Site::new(
        r#"
        @id("small")
        @reason("small withdrawals need nobody")
        permit (principal == Client::"till", action == Action::"withdrawal", resource in Account::"acme")
        when { context.amount <= 5000 && context.currency == "CNY" };

        @id("huge")
        @reason("nobody withdraws that much here")
        forbid (principal, action == Action::"withdrawal", resource)
        when { context.amount > 1000000 };
        "#,
    );
    let daemon = site.daemon("");
    let client = daemon.add_client("till", &json!({}));
    daemon.enrol(&site.service, "alice", "p256");

    site.approve(&daemon, &client, 5_000).ok();
    // More needs a person, and there is none.
    assert_eq!(
        site.approve(&daemon, &client, 5_001).code(),
        "consent-unavailable"
    );
    let answer = site.approve(&daemon, &client, 1_000_001);
    assert!(
        answer.body["detail"]
            .as_str()
            .unwrap()
            .contains("nobody withdraws that much"),
        "{}",
        answer.body
    );
    let request = answer.body["request_id"].as_str().unwrap().to_owned();
    assert_eq!(refused(answer), pair("policy-refused", "huge"));

    let explain = |amount: i64| {
        let body =
            json!({ "client": "till", "kind": "withdrawal", "amount": amount, "currency": "CNY" });
        daemon
            .control(Method::POST, "/v1/policy/explain", &body)
            .ok()
    };
    let small = explain(5_000);
    assert_eq!(small["consent"], "none");
    assert_eq!(small["rule"], "small");
    assert_eq!(small["account"], "acme");
    let more = explain(5_001);
    assert_eq!(more["consent"], "confirm");
    let why = more["rules"]
        .as_array()
        .unwrap()
        .iter()
        .find(|rule| rule["id"] == "small")
        .unwrap()["why_not"]
        .as_str()
        .unwrap();
    assert!(why.contains("context.amount"), "{why}");
    let huge = explain(1_000_001);
    assert_eq!(
        (&huge["allowed"], &huge["rule"]),
        (&json!(false), &json!("huge"))
    );

    // Clients of the native door neither explain nor reload.
    let body = json!({ "kind": "password-reset" });
    for path in ["/v1/policy/explain", "/v1/policy/reload"] {
        assert_eq!(
            daemon.native(&client, Method::POST, path, &body).code(),
            "not-permitted"
        );
    }

    // The audit trail names the rules, under the ids that the answers had.
    // Nobody waits for the record of a refusal, so it may come after the answer.
    let rules = until("both records", || {
        let rules: Vec<_> = opcert::audit::read::all(&daemon.audit_directory())
            .unwrap()
            .map(Result::unwrap)
            .filter_map(|record| {
                let body: Value = serde_json::from_str(record.body.get()).unwrap();
                let rule = body["rule"].as_str()?.to_owned();
                let id = record.request.map(|id| id.to_string()).unwrap_or_default();
                Some((record.kind, rule, id))
            })
            .collect();
        (rules.len() >= 2).then_some(rules)
    });
    assert_eq!(rules[0].0, "approval");
    assert_eq!(rules[0].1, "small");
    assert_eq!(
        rules[1],
        (
            "approval-refused".to_owned(),
            "huge".to_owned(),
            request.clone()
        )
    );

    // And so does the command line.
    let audit = daemon.audit_directory();
    let (code, story) = opcert(&["why", &request, "--audit", audit.to_str().unwrap()]);
    assert_eq!(code, 0, "{story}");
    assert!(
        story.contains("client:till was refused by rule huge: policy refuses: nobody withdraws"),
        "{story}"
    );
    let (code, said) = opcert(&["why", "no-such-request", "--audit", audit.to_str().unwrap()]);
    assert!(code == 1 && said.contains("[request-unknown]"), "{said}");
    let socket = daemon.socket();
    let explain = [
        "policy",
        "explain",
        "--client",
        "till",
        "--kind",
        "withdrawal",
    ];
    let (code, said) = opcert(
        &[
            &["--socket", socket.to_str().unwrap()],
            &explain[..],
            &["--amount", "5001", "--currency", "CNY"],
        ]
        .concat(),
    );
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("Allowed once a person confirms it."),
        "{said}"
    );
    // The same rules without a daemon.
    let rules = site.rules.parent().unwrap().to_str().unwrap();
    let (code, said) = opcert(
        &[
            &explain[..],
            &[
                "--amount",
                "5000",
                "--currency",
                "CNY",
                "--account",
                "acme",
                "--policy",
                rules,
            ],
        ]
        .concat(),
    );
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("Allowed; nobody is asked."), "{said}");
    assert_eq!(opcert(&["policy", "check", rules]).0, 0);
    write(
        &site.rules,
        "permit (principal, action, resource) when { context.nothing };",
    );
    let (code, said) = opcert(&["policy", "check", rules]);
    assert!(code == 1 && said.contains("site.cedar:1:"), "{said}");
}

/// Exit code and everything said.
fn opcert(arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_opcert"))
        .args(arguments)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(said).unwrap(),
    )
}

/// The records of the request that was answered by `answer`: kind and body.
fn records_of(daemon: &Daemon, answer: &Value) -> Vec<(String, Value)> {
    opcert::audit::read::all(&daemon.audit_directory())
        .unwrap()
        .map(Result::unwrap)
        .filter(|record| {
            let request = record.request.as_ref();
            request.is_some_and(|request| answer["request_id"] == request.as_str())
        })
        .map(|record| {
            (
                record.kind,
                serde_json::from_str(record.body.get()).unwrap(),
            )
        })
        .collect()
}

#[test]
fn every_refusal_is_on_record_with_its_code_rule_and_request() {
    let site = Site::new("// nothing yet\n");
    let mut daemon = site.daemon("");
    let till = daemon.add_client(
        "till",
        &json!({ "consent": "none", "kinds": ["red-packet"] }),
    );
    daemon.enrol(&site.service, "alice", "p256");
    write(
        &site.rules,
        "@id(\"frozen\")\n@reason(\"clients are registered by the installer only\")\nforbid (principal, action == Action::\"client\", resource);\n",
    );
    reload(&daemon).ok();

    let sign = json!({ "merchant": "1900000001", "method": "GET", "target": "/v3/certificates" });
    let withdrawal = json!({ "challenge": site.service.challenge(&withdrawal("alice"), |_| ()) });
    let by_till =
        |method: Method, path: &str, body: &Value| daemon.native(&till, method, path, body);
    let by_user = |method: Method, path: &str, body: &Value| daemon.control(method, path, body);
    let refusals = [
        // What policy says of administration, messages of merchants, and approvals.
        (
            by_user(
                Method::POST,
                "/v1/clients",
                &json!({ "name": "x", "csr": "" }),
            ),
            ("request-refused", "policy-refused", Some("frozen")),
        ),
        (
            by_user(Method::DELETE, "/v1/clients/till", &Value::Null),
            ("request-refused", "policy-refused", Some("frozen")),
        ),
        (
            by_till(Method::POST, "/v1/wechatpay/v3/authorization", &sign),
            ("wechatpay-refused", "policy-refused", Some("not-allowed")),
        ),
        (
            by_till(Method::POST, "/v1/approvals", &withdrawal),
            (
                "approval-refused",
                "policy-refused",
                Some("registered-kinds"),
            ),
        ),
        // What is for the control socket only, to look at and to change.
        (
            by_till(Method::POST, "/v1/policy/reload", &Value::Null),
            (
                "request-refused",
                "not-permitted",
                Some("control-socket-only"),
            ),
        ),
        (
            by_till(Method::GET, "/v1/clients", &Value::Null),
            (
                "request-refused",
                "not-permitted",
                Some("control-socket-only"),
            ),
        ),
        // What is wrong with the request itself, whatever is asked.
        (
            by_user(Method::POST, "/v1/wechatpay/v3/authorization", &sign),
            ("wechatpay-refused", "merchant-unknown", None),
        ),
        (
            by_till(
                Method::POST,
                "/v1/approvals",
                &json!({ "challenge": "garbage" }),
            ),
            ("approval-refused", "challenge-malformed", None),
        ),
        (
            by_till(
                Method::POST,
                "/v1/approvals",
                &json!({ "chalenge": "garbage" }),
            ),
            ("request-refused", "malformed", None),
        ),
        (
            by_user(
                Method::POST,
                "/v1/tokens/unlock",
                &json!({ "uri": "x", "pin": "1234" }),
            ),
            ("request-refused", "malformed", None),
        ),
        (
            by_user(Method::POST, "/v1/enrolments", &json!({})),
            ("request-refused", "malformed", None),
        ),
        (
            by_user(Method::POST, "/v1/services/keys", &json!({})),
            ("request-refused", "not-found", None),
        ),
    ];
    let looked = by_till(
        Method::GET,
        "/v1/approvals/AAAAAAAAAAAAAAAAAAAAAA",
        &Value::Null,
    )
    .body;
    assert_eq!(looked["code"], "approval-unknown");
    let asked = by_user(Method::POST, "/v1/policy/explain", &json!({})).body;
    assert_eq!(asked["code"], "malformed");
    write(&site.rules, "forbid (\n");
    let reloaded = reload(&daemon).body;

    // Nobody waits for the record of a refusal; the end of the daemon does.
    daemon.stop();
    let audit = daemon.audit_directory();
    let why = |request: &Value| {
        let request = request["request_id"].as_str().unwrap();
        opcert(&["why", request, "--audit", audit.to_str().unwrap()])
    };
    for (answer, (kind, code, rule)) in refusals {
        let problem = answer.body;
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["rule"].as_str(), rule, "{problem}");
        let records = records_of(&daemon, &problem);
        let [(of, body)] = records.as_slice() else {
            panic!("{problem} {records:?}");
        };
        assert_eq!(of, kind, "{body}");
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["rule"].as_str(), rule, "{body}");
        let (exit, story) = why(&problem);
        assert_eq!(exit, 0, "{story}");
        assert!(story.contains(&format!("[{code}]")), "{story}");
        if let Some(rule) = rule {
            assert!(story.contains(&format!("by rule {rule}:")), "{story}");
        }
    }
    let [(kind, body)] = &records_of(&daemon, &reloaded)[..] else {
        panic!("{reloaded}");
    };
    assert_eq!(
        (kind.as_str(), &body["code"]),
        ("policy-reload-refused", &json!("policy-invalid"))
    );
    assert!(why(&reloaded).1.contains("[policy-invalid]"));
    // To look or to ask in vain is no refusal.
    for vain in [looked, asked] {
        assert!(records_of(&daemon, &vain).is_empty(), "{vain}");
    }
}

#[test]
fn a_stranger_is_on_record_as_far_as_it_is_told_why() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let gone = daemon.add_client("gone", &json!({}));
    daemon
        .control(Method::DELETE, "/v1/clients/gone", &Value::Null)
        .ok();
    let body = json!({ "challenge": "x" });
    let mut told = Vec::new();
    loop {
        let answer = daemon
            .native(&gone, Method::POST, "/v1/approvals", &body)
            .body;
        if answer["code"] == "too-many-failures" {
            assert!(records_of(&daemon, &answer).is_empty());
            break;
        }
        assert_eq!(answer["code"], "client-unknown");
        told.push(answer);
    }
    assert!(!told.is_empty());
    for answer in &told {
        let records = until("its record", || {
            let records = records_of(&daemon, answer);
            (!records.is_empty()).then_some(records)
        });
        let caller = records[0].1["caller"].as_str().unwrap();
        assert!(caller.starts_with("certificate:"), "{caller}");
        assert_eq!(records[0].1["code"], "client-unknown");
    }
}

#[test]
fn messages_and_administration_are_explained() {
    let site = Site::new(
        r#"
        @id("frozen")
        @reason("clients are registered by the installer only")
        forbid (principal, action == Action::"client", resource)
        when { principal.uid == 4711 };

        @id("family")
        @reason("red packets go to the family")
        forbid (principal, action == Action::"red-packet", resource)
        when { context has payees && !["A", "B"].containsAll(context.payees) };
        "#,
    );
    let daemon = site.daemon("");
    let merchants = json!([{ "merchant": "1900000001", "uses": ["request"] }]);
    daemon.add_client(
        "shop",
        &json!({ "consent": "none", "wechatpay": merchants }),
    );
    daemon.add_browser("browser", &json!({}));
    let explain = |body: Value| daemon.control(Method::POST, "/v1/policy/explain", &body);
    let said = |body: Value| {
        let answer = explain(body).ok();
        (
            answer["allowed"].as_bool().unwrap(),
            answer["rule"].as_str().unwrap().to_owned(),
        )
    };
    let yes = |rule: &str| (true, rule.to_owned());
    let no = |rule: &str| (false, rule.to_owned());
    let message = |client: &str, merchant: &str, r#use: &str| json!({ "client": client, "merchant": merchant, "use": r#use });
    for (body, expected) in [
        (
            message("shop", "1900000001", "request"),
            yes("registered-merchants-request"),
        ),
        (message("shop", "1900000001", "start"), no("not-allowed")),
        (message("shop", "1900000002", "request"), no("not-allowed")),
        (
            message("nobody", "1900000001", "request"),
            no("client-unknown"),
        ),
        (
            json!({ "merchant": "1900000001", "use": "v2-sign" }),
            yes("control-socket-merchants"),
        ),
        (
            json!({ "client": "shop", "merchant": "1900000002", "use": "request",
                    "wechatpay": [{ "merchant": "1900000002", "uses": ["request"] }] }),
            yes("registered-merchants-request"),
        ),
        (
            json!({ "client": "browser", "origin": ORIGIN, "merchant": "1900000001", "use": "check" }),
            no("no-pages"),
        ),
        (
            json!({ "uid": 4711, "administration": "client" }),
            no("frozen"),
        ),
        (
            json!({ "uid": 4711, "administration": "token" }),
            yes("control-socket"),
        ),
        (
            json!({ "client": "shop", "administration": "policy" }),
            no("control-socket-only"),
        ),
        (
            json!({ "client": "browser", "origin": ORIGIN, "administration": "enrol" }),
            yes("page"),
        ),
        (
            json!({ "client": "shop", "kind": "red-packet", "currency": "CNY",
                    "payees": [{ "payee": "A", "amount": 5 }, { "payee": "C", "amount": 6 }] }),
            no("family"),
        ),
        (
            json!({ "client": "shop", "kind": "red-packet", "currency": "CNY",
                    "payees": [{ "payee": "A", "amount": 5 }, { "payee": "B", "amount": 6 }] }),
            yes("registered-without-consent"),
        ),
    ] {
        assert_eq!(said(body.clone()), expected, "{body}");
    }
    let why = explain(json!({ "uid": 7, "administration": "client" })).ok();
    let frozen = why["rules"]
        .as_array()
        .unwrap()
        .iter()
        .find(|rule| rule["id"] == "frozen");
    assert_eq!(
        frozen.unwrap()["why_not"],
        "when { principal.uid == 4711 } is not so"
    );

    // What is asked is read as strictly as the real thing.
    for (body, part) in [
        (json!({}), "one of kind, use and administration"),
        (
            json!({ "kind": "withdrawal", "administration": "token" }),
            "one of kind",
        ),
        (json!({ "use": "request" }), "merchant: is missing"),
        (
            json!({ "use": "request", "merchant": "1", "amount": 5 }),
            "amount: is not known",
        ),
        (
            json!({ "administration": "token", "merchant": "1" }),
            "merchant: is not known",
        ),
        (
            json!({ "kind": "withdrawal", "amount": 5, "currency": "XXZ" }),
            "currency",
        ),
        (
            json!({ "kind": "withdrawal", "amount": 5, "currency": "CNY", "payee": "a\u{202e}b" }),
            "payee: must not contain the invisible",
        ),
        (
            json!({ "kind": "withdrawal", "amount": 5, "currency": "CNY", "count": 3 }),
            "count: is not known for this kind",
        ),
        (
            json!({ "kind": "red-packet", "amount": 12, "currency": "CNY",
                    "payees": [{ "payee": "A", "amount": 5 }] }),
            "payees: do not have the amount",
        ),
        (
            json!({ "administration": "everything" }),
            "wrong type or form",
        ),
        (
            json!({ "administration": "token", "nonsense": 1 }),
            "unknown field",
        ),
    ] {
        let answer = explain(body);
        let detail = answer.body["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(part), "{part}: {detail}");
        assert_eq!(answer.code(), "malformed");
    }

    // The command line, by options and by a file, with a daemon and without.
    let socket = daemon.socket();
    let socket = ["--socket", socket.to_str().unwrap(), "policy", "explain"];
    let ask = |arguments: &[&str]| opcert(&[&socket[..], arguments].concat());
    let shop = ["--client", "shop", "--merchant", "1900000001", "--use"];
    let (code, said) = ask(&[&shop[..], &["request"]].concat());
    assert!(
        code == 0 && said.contains("Allowed; nobody is asked."),
        "{said}"
    );
    assert!(said.contains("registered-merchants-request"), "{said}");
    let (code, said) = ask(&[&shop[..], &["start"]].concat());
    assert!(code == 0 && said.contains("Refused."), "{said}");
    let (code, said) = ask(&["--uid", "4711", "--administration", "client"]);
    assert!(
        code == 0 && said.contains("clients are registered by the installer"),
        "{said}"
    );
    let file = site.token.directory().join("request.json");
    let page = json!({ "client": "browser", "origin": ORIGIN, "administration": "enrol" });
    std::fs::write(&file, page.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let (code, said) = ask(&["--request", file]);
    assert!(
        code == 0 && said.contains("Allowed once a person confirms it."),
        "{said}"
    );
    let rules = site.rules.parent().unwrap().to_str().unwrap();
    let (code, said) = opcert(&["policy", "explain", "--policy", rules, "--request", file]);
    assert!(
        code == 0 && said.contains("Allowed once a person confirms it."),
        "{said}"
    );
    assert_eq!(ask(&["--request", file, "--uid", "1"]).0, 64);
    assert_eq!(ask(&["--uid", "1"]).0, 64);
    std::fs::write(file, "{\"kind\":\"theft\"}").unwrap();
    let (code, said) = ask(&["--request", file]);
    assert!(
        code == 65 && said.contains("not a known operation kind"),
        "{said}"
    );
}

#[test]
fn a_bad_reload_changes_nothing() {
    let site = Site::new("// nothing yet\n");
    let daemon = site.daemon("");
    let client = daemon.add_client("till", &json!({ "consent": "none" }));
    daemon.enrol(&site.service, "alice", "p256");
    let before = daemon.control(Method::GET, "/v1/policy", &Value::Null).ok();

    write(
        &site.rules,
        "@id(\"stop\")\nforbid (principal, action == Action::\"withdrawal\", resource)\nwhen { context.amonut > 1 };\n",
    );
    let answer = reload(&daemon);
    let detail = answer.body["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("site.cedar:3:"), "{detail}");
    assert_eq!(answer.code(), "policy-invalid");
    let after = daemon.control(Method::GET, "/v1/policy", &Value::Null).ok();
    assert_eq!(before, after);
    site.approve(&daemon, &client, 100).ok();

    write(
        &site.rules,
        "@id(\"stop\")\nforbid (principal, action == Action::\"withdrawal\", resource)\nwhen { context.amount > 1 };\n",
    );
    let answer = reload(&daemon).ok();
    assert_eq!(answer["changes"]["added"], json!(["stop"]));
    assert_eq!(
        refused(site.approve(&daemon, &client, 100)),
        pair("policy-refused", "stop")
    );

    // The signal does the same.
    write(&site.rules, "// nothing again\n");
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while daemon.control(Method::GET, "/v1/policy", &Value::Null).ok() != before {
        assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
    }
    site.approve(&daemon, &client, 100).ok();
}

#[test]
fn a_daemon_with_bad_rules_does_not_start() {
    let site = Site::new("permit (principal, action == Action::\"theft\", resource);\n");
    let config = site.token.directory().join("opcertd.toml");
    let text = format!(
        "state-directory = \"{0}/state\"\nruntime-directory = \"{0}/run\"\n[policy]\ndirectory = \"{1}\"\n",
        site.token.directory().display(),
        site.rules.parent().unwrap().display()
    );
    std::fs::write(&config, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&config, mode).unwrap();
    for check in [&["--check"][..], &[]] {
        let output = Command::new(env!("CARGO_BIN_EXE_opcertd"))
            .arg("--config")
            .arg(&config)
            .args(check)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("site.cedar:1:") && said.contains("[policy-invalid]"),
            "{said}"
        );
    }
}

#[test]
fn limits_hold_across_a_restart_and_a_reload() {
    let site = Site::new("");
    let limits = "[[policy.limit]]\nname = \"day\"\ncount-per-day = 3\nsum-per-day = 1000\ncurrency = \"CNY\"\n";
    let mut daemon = site.daemon(limits);
    let till = daemon.add_client("till", &json!({ "consent": "none" }));
    let other = daemon.add_client("other", &json!({ "consent": "none" }));
    daemon.enrol(&site.service, "alice", "p256");

    site.approve(&daemon, &till, 600).ok();
    let answer = site.approve(&daemon, &till, 401);
    assert!(answer.body["retry_after"].as_u64().unwrap() > 0);
    assert!(answer.body["detail"].as_str().unwrap().contains("CNY 4.00"));
    assert_eq!(refused(answer), pair("limit-reached", "limit:day"));

    daemon.crash_and_restart();
    assert_eq!(
        refused(site.approve(&daemon, &till, 401)),
        pair("limit-reached", "limit:day")
    );
    site.approve(&daemon, &till, 200).ok();
    site.approve(&daemon, &till, 200).ok();
    assert_eq!(
        refused(site.approve(&daemon, &till, 1)),
        pair("limit-reached", "limit:day")
    );
    site.approve(&daemon, &other, 1_000).ok();

    // A rule that looks at the day finds what was counted before it came, and before the start.
    write(
        &site.rules,
        "@id(\"once\")\nforbid (principal == Client::\"other\", action in Action::\"approve\", resource)\nwhen { context.today.count >= 1 };\n",
    );
    daemon.crash_and_restart();
    assert_eq!(
        refused(site.approve(&daemon, &other, 1)),
        pair("policy-refused", "once")
    );
}

#[test]
fn the_day_is_read_back_when_a_reload_first_asks_for_it() {
    let site = Site::new("");
    let mut daemon = site.daemon("");
    let till = daemon.add_client("till", &json!({ "consent": "none" }));
    daemon.enrol(&site.service, "alice", "p256");
    site.approve(&daemon, &till, 10).ok();
    daemon.crash_and_restart();
    site.approve(&daemon, &till, 10).ok();
    write(
        &site.rules,
        "@id(\"twice\")\nforbid (principal, action in Action::\"approve\", resource)\nwhen { context.today.count >= 3 };\n",
    );
    reload(&daemon).ok();
    site.approve(&daemon, &till, 10).ok();
    assert_eq!(
        refused(site.approve(&daemon, &till, 10)),
        pair("policy-refused", "twice")
    );
    reload(&daemon).ok();
    assert_eq!(
        refused(site.approve(&daemon, &till, 10)),
        pair("policy-refused", "twice")
    );
}

#[test]
fn rules_can_take_administration_from_users() {
    let site = Site::new(
        "@id(\"frozen\")\n@reason(\"clients are registered by the installer only\")\nforbid (principal, action == Action::\"client\", resource);\n",
    );
    let daemon = site.daemon("");
    let body = json!({ "name": "till", "csr": "" });
    assert_eq!(
        refused(daemon.control(Method::POST, "/v1/clients", &body)),
        pair("policy-refused", "frozen")
    );
    daemon
        .control(Method::GET, "/v1/clients", &Value::Null)
        .ok();
    write(&site.rules, "");
    reload(&daemon).ok();
    daemon.add_client("till", &json!({}));
}
