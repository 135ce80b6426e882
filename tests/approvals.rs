//! Enrolment and approvals through the real daemon, a real worker and a real token.

mod support;

use std::process::Command;

use http::{Method, Request};
use hyper::body::Bytes;
use jiff::Timestamp;
use opcert::base::encoding::from_base64;
use opcert::base::jose::Jws;
use opcert::base::x509::{Certificate, CertificateRequest};
use opcert::http::client::{Client, ClientLimits, Target};
use opcert::statement::Approval;
use serde_json::{Value, json};
use support::daemon::{Answer, ClientIdentity, Daemon, csr, drop_in};
use support::faulty::Faulty;
use support::service::{Service, withdrawal};
use support::softhsm::TestToken;
use support::wait::{eventually, until};

const ORIGIN: &str = "https://pay.example";

fn silent() -> Value {
    json!({ "consent": "none" })
}

fn approve(daemon: &Daemon, client: &ClientIdentity, challenge: &str) -> Answer {
    daemon.native(
        client,
        Method::POST,
        "/v1/approvals",
        &json!({ "challenge": challenge }),
    )
}

#[test]
fn every_key_type_makes_approvals_that_strangers_accept() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let client = daemon.add_client("till", &silent());
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name);
    let ca_pem = service.ca.to_pem().unwrap();
    std::fs::write(path("ca.pem"), &ca_pem).unwrap();
    for key_type in ["rsa2048", "rsa3072", "p256", "p384", "ed25519"] {
        let begun = daemon.begin(&service, key_type, key_type);
        if begun.status == 501 {
            println!("skipped {key_type}: the module cannot generate it");
            continue;
        }
        let begun = begun.ok();
        let certificate = service.issue(&csr(&begun), &daemon.identity(key_type), 365);
        daemon.complete(&begun, &certificate).ok();

        let challenge = service.challenge(&withdrawal(key_type), |_| ());
        let body = json!({ "challenge": challenge, "cms": true });
        let answer = daemon
            .native(&client, Method::POST, "/v1/approvals", &body)
            .ok();
        let compact = answer["approval"].as_str().unwrap();
        let approval = Approval::verify(
            compact,
            std::slice::from_ref(&service.ca),
            None,
            Timestamp::now(),
        )
        .unwrap();
        assert!(approval.is_for(&challenge));
        assert_eq!(approval.statement, withdrawal(key_type));
        // tests/run has a JOSE library that nobody here wrote look at these afterwards.
        if let Some(kept) = std::env::var_os("OPCERT_TEST_KEEP") {
            let kept = std::path::PathBuf::from(kept);
            std::fs::create_dir_all(&kept).unwrap();
            std::fs::write(kept.join(format!("{key_type}.jws")), compact).unwrap();
        }
        assert_eq!(approval.client, "client:till");

        // OpenSSL checks the CMS signature over the same payload with its default purpose.
        let cms = from_base64(answer["cms"].as_str().unwrap().as_bytes()).unwrap();
        std::fs::write(path("approval.p7s"), cms).unwrap();
        std::fs::write(
            path("payload"),
            Jws::parse(compact, Approval::MAX).unwrap().payload,
        )
        .unwrap();
        let openssl = Command::new("openssl")
            .args(["cms", "-verify", "-binary", "-inform", "DER", "-in"])
            .arg(path("approval.p7s"))
            .arg("-content")
            .arg(path("payload"))
            .arg("-CAfile")
            .arg(path("ca.pem"))
            .args(["-out", "/dev/null"])
            .output()
            .unwrap();
        let message = String::from_utf8_lossy(&openssl.stderr).into_owned();
        if key_type == "ed25519" && message.contains("eddsa_digest_signverify_init:invalid digest")
        {
            println!("skipped CMS for ed25519: this OpenSSL has no RFC 8419");
            continue;
        }
        assert!(openssl.status.success(), "{key_type}: {message}");
    }
}

#[test]
fn a_challenge_yields_one_approval_for_one_client_also_after_a_crash() {
    let token = TestToken::new("opcert-test");
    let mut daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let till = daemon.add_client("till", &silent());
    let other = daemon.add_client("other", &silent());
    daemon.enrol(&service, "alice", "p256");
    let challenge = service.challenge(&withdrawal("alice"), |_| ());

    let first = approve(&daemon, &till, &challenge).ok();
    assert_eq!(approve(&daemon, &till, &challenge).ok(), first);
    assert_eq!(
        approve(&daemon, &other, &challenge).code(),
        "challenge-used"
    );

    daemon.crash_and_restart();
    assert_eq!(
        approve(&daemon, &till, &challenge).ok()["jti"],
        first["jti"]
    );
    assert_eq!(
        approve(&daemon, &other, &challenge).code(),
        "challenge-used"
    );

    assert_eq!(daemon.stop(), 0, "{}", daemon.log());
    let summary = opcert::audit::verify::verify(&daemon.audit_directory()).unwrap();
    assert!(summary.records > 5);
}

#[test]
fn every_fault_of_a_challenge_has_its_code() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let client = daemon.add_client("till", &silent());
    daemon.enrol(&service, "alice", "p256");
    let statement = withdrawal("alice");
    let code = |challenge: &str| approve(&daemon, &client, challenge).code();

    let past = |claims: &mut opcert::statement::ChallengeClaims| {
        claims.iat -= 300;
        claims.exp -= 300;
    };
    assert_eq!(
        code(&service.challenge(&statement, past)),
        "challenge-expired"
    );
    let future = |claims: &mut opcert::statement::ChallengeClaims| {
        claims.iat += 90;
        claims.exp += 90;
    };
    assert_eq!(
        code(&service.challenge(&statement, future)),
        "challenge-not-yet-valid"
    );
    let audience = |claims: &mut opcert::statement::ChallengeClaims| claims.aud = "bank";
    assert_eq!(
        code(&service.challenge(&statement, audience)),
        "challenge-audience"
    );

    let good = service.challenge(&statement, |_| ());
    let (body, signature) = good.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    assert_eq!(
        code(&format!("{body}.{flipped}{}", &signature[1..])),
        "challenge-signature"
    );
    assert_eq!(code("garbage"), "challenge-malformed");
    assert_eq!(code(&"x".repeat(9_000)), "challenge-malformed");

    let stranger = Service::new("https://stranger.example");
    assert_eq!(
        code(&stranger.challenge(&statement, |_| ())),
        "challenge-issuer-unknown"
    );
    let impostor = Service::new(ORIGIN);
    assert_eq!(
        code(&impostor.challenge(&statement, |_| ())),
        "challenge-key-unknown"
    );

    let account = |claims: &mut opcert::statement::ChallengeClaims| {
        claims.sub = "rival".parse().unwrap();
        claims.statement["account"] = "rival".into();
    };
    assert_eq!(
        code(&service.challenge(&statement, account)),
        "challenge-account"
    );
    assert_eq!(
        code(&service.challenge(&withdrawal("bob"), |_| ())),
        "certificate-missing"
    );
    let amount =
        |claims: &mut opcert::statement::ChallengeClaims| claims.statement["amount"] = 0.into();
    assert_eq!(
        code(&service.challenge(&statement, amount)),
        "statement-invalid"
    );
}

#[test]
fn consent_is_asked_by_default_and_its_absence_is_an_error() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let client = daemon.add_client("till", &json!({}));
    let narrow = daemon.add_client(
        "narrow",
        &json!({ "consent": "none", "kinds": ["red-packet"] }),
    );
    daemon.enrol(&service, "alice", "p256");
    let challenge = service.challenge(&withdrawal("alice"), |_| ());
    assert_eq!(
        approve(&daemon, &client, &challenge).code(),
        "consent-unavailable"
    );
    assert_eq!(
        approve(&daemon, &narrow, &challenge).code(),
        "policy-refused"
    );
}

#[test]
fn a_person_is_shown_what_is_signed() {
    use std::os::unix::fs::PermissionsExt;
    let token = TestToken::new("opcert-test");
    let pinentry = token.directory().join("pinentry");
    let shown = token.directory().join("shown");
    // Stands in for the person: agrees when the amount is right, refuses otherwise.
    let script = format!(
        "#!/bin/sh\necho 'OK ready'\nwhile read -r line; do\n  case \"$line\" in\n    SETDESC*) printf '%s\\n' \"$line\" > {0} ;;\n  esac\n  case \"$line\" in\n    CONFIRM*) if grep -q '1,000.00' {0}; then echo OK; else echo 'ERR 83886179 cancelled'; fi ;;\n    BYE*) echo OK; exit 0 ;;\n    *) echo OK ;;\n  esac\ndone\n",
        shown.display()
    );
    std::fs::write(&pinentry, script).unwrap();
    std::fs::set_permissions(&pinentry, std::fs::Permissions::from_mode(0o755)).unwrap();
    let consent = format!("[consent]\npinentry = \"{}\"\n", pinentry.display());
    let mut daemon = Daemon::start_with(&token, &consent);
    let service = Service::new(ORIGIN);
    let client = daemon.add_client("till", &json!({}));
    daemon.enrol(&service, "alice", "p256");

    let challenge = service.challenge(&withdrawal("alice"), |_| ());
    let answer = approve(&daemon, &client, &challenge).ok();
    let approval = Approval::verify(
        answer["approval"].as_str().unwrap(),
        std::slice::from_ref(&service.ca),
        None,
        Timestamp::now(),
    )
    .unwrap();
    assert_eq!(
        approval.consent.method,
        opcert::statement::ConsentMethod::Pinentry
    );
    let text = std::fs::read_to_string(&shown).unwrap();
    for expected in ["CNY 1,000.00", "ICBC 6222", "acme", "alice", "till"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }

    let cheaper =
        |claims: &mut opcert::statement::ChallengeClaims| claims.statement["amount"] = 5.into();
    let challenge = service.challenge(&withdrawal("alice"), cheaper);
    assert_eq!(
        approve(&daemon, &client, &challenge).code(),
        "consent-denied"
    );
    // A no is final for that challenge, also after a crash.
    assert_eq!(
        approve(&daemon, &client, &challenge).code(),
        "consent-denied"
    );
    std::fs::remove_file(&shown).unwrap();
    daemon.crash_and_restart();
    assert_eq!(
        approve(&daemon, &client, &challenge).code(),
        "consent-denied"
    );
    assert!(!shown.exists(), "the person was asked again");
}

#[test]
fn a_question_goes_when_its_client_leaves_and_the_next_one_says_what_to_do_on_the_token() {
    use std::os::unix::fs::PermissionsExt;
    let token = TestToken::new("opcert-test");
    let directory = token.directory();
    let (pinentry, pids, go) = (
        directory.join("pinentry"),
        directory.join("pids"),
        directory.join("go"),
    );
    // The person thinks until the file is there.
    let script = format!(
        "#!/bin/sh\ncd '{}'\necho 'OK ready'\nwhile read -r line; do\n  printf '%s\\n' \"$line\" >> shown\n  case \"$line\" in\n    CONFIRM*) if [ -e go ]; then echo OK; else echo $$ > pids; exec sleep 600; fi ;;\n    BYE*) echo OK; exit 0 ;;\n    *) echo OK ;;\n  esac\ndone\n",
        directory.display()
    );
    std::fs::write(&pinentry, script).unwrap();
    std::fs::set_permissions(&pinentry, std::fs::Permissions::from_mode(0o755)).unwrap();
    let consent = format!("[consent]\npinentry = \"{}\"\n", pinentry.display());
    let mut daemon = Daemon::start_with(&token, &consent);
    let service = Service::new(ORIGIN);
    let client = daemon.add_client("till", &json!({}));
    daemon.enrol(&service, "alice", "p256");
    let challenge = service.challenge(&withdrawal("alice"), |_| ());

    let target = Target::Tls {
        host: "localhost".into(),
        port: daemon.address().port(),
        config: std::sync::Arc::new(client.tls()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut impatient = Client::connect(&target, ClientLimits::default())
            .await
            .unwrap();
        let body = json!({ "challenge": challenge });
        let request = in_language(Method::POST, "/v1/approvals", "en", &body);
        tokio::select! {
            answer = impatient.send(request) => panic!("{answer:?}"),
            () = eventually("the question", async || pids.exists()) => {}
        }
    });
    let pid = until("its process", || {
        let pid = std::fs::read_to_string(&pids).unwrap();
        (!pid.trim().is_empty()).then(|| pid.trim().to_owned())
    });
    drop(runtime);
    until("the window is gone", || {
        // Not there, or merely waiting to be collected.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });

    // Nothing is left of it: the same challenge is asked about again, on a token to be touched now.
    let text = std::fs::read_to_string(daemon.config()).unwrap();
    let touched = text.replace("\npin-source", "\ntouch = true\npin-source");
    assert_ne!(text, touched);
    std::fs::write(daemon.config(), touched).unwrap();
    daemon.crash_and_restart();
    std::fs::write(&go, "").unwrap();
    assert!(!shown(&token).contains("touch the token"));
    approve(&daemon, &client, &challenge).ok();
    let window = shown(&token);
    assert!(
        window.contains("After you approve, touch the token: opcert-test"),
        "{window}"
    );
}

#[test]
fn a_pin_for_one_approval_is_typed_on_a_device_that_has_keys() {
    let token = TestToken::new("opcert-test");
    let faulty = Faulty::new(&token);
    let consent = person(&token, &[]);
    let mut daemon = Daemon::start_with(&token, &consent);
    let service = Service::new(ORIGIN);
    let careful = daemon.add_client("careful", &json!({ "consent": "confirm-with-pin" }));
    let silent = daemon.add_client("silent", &silent());
    daemon.enrol(&service, "alice", "p256");

    // The same token, behind a library that says it has a key pad.
    let module = format!("path = {:?}\n", token.module);
    let environment: Vec<String> = faulty
        .environment
        .iter()
        .map(|(name, value)| format!("{name} = {value:?}"))
        .collect();
    let text = std::fs::read_to_string(daemon.config()).unwrap();
    let start = text.find("environment = {").unwrap();
    let end = start + text[start..].find('\n').unwrap();
    let with_keypad = format!(
        "{}allow = [\"writable-path\"]\nenvironment = {{ {} }}{}",
        &text[..start],
        environment.join(", "),
        &text[end..]
    )
    .replace(&module, &format!("path = {:?}\n", Faulty::module()));
    assert!(with_keypad.contains("libfaulty_module.so"), "{with_keypad}");
    std::fs::write(daemon.config(), with_keypad).unwrap();
    faulty.keypad(&token.pin);
    daemon.crash_and_restart();
    // It is never logged in without a person, who is asked to type on it.
    let unlock = json!({ "uri": token.uri().to_string() });
    daemon
        .control(Method::POST, "/v1/tokens/unlock", &unlock)
        .ok();

    let challenge = service.challenge(&withdrawal("alice"), |_| ());
    let answer = approve(&daemon, &careful, &challenge).ok();
    let payload = Jws::parse(answer["approval"].as_str().unwrap(), Approval::MAX).unwrap();
    let claims: Value = serde_json::from_slice(&payload.payload).unwrap();
    assert_eq!(claims["consent"]["method"], "protected-path");
    let window = shown(&token);
    assert!(
        window.contains("%0A%0AAfter you approve, enter the PIN on the token: opc"),
        "{window}"
    );
    assert!(!window.contains("GETPIN"), "{window}");

    // A wrong one is no consent, and changes nothing for others.
    faulty.keypad("wrong-one");
    let challenge = service.challenge(&withdrawal("alice"), |_| ());
    assert_eq!(approve(&daemon, &careful, &challenge).code(), "pin-wrong");
    approve(&daemon, &silent, &challenge).ok();
}

/// A request of a client that reads this language.
fn in_language(method: Method, path: &str, language: &str, body: &Value) -> Request<Bytes> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("accept-language", language)
        .header("content-type", "application/json")
        .body(serde_json::to_vec(body).unwrap().into())
        .unwrap()
}

#[test]
fn texts_are_in_the_language_that_the_request_prefers_and_the_window_in_the_persons() {
    let token = TestToken::new("opcert-test");
    let pinentry = person(&token, &[]);
    let daemon = Daemon::start_with(&token, &pinentry);
    let service = Service::new(ORIGIN);
    let client = daemon.add_client("till", &json!({}));
    daemon.enrol(&service, "alice", "p256");
    let challenge = service.challenge(&withdrawal("alice"), |_| ());
    let body = json!({ "challenge": challenge });
    let ask = |method: Method, path: &str, language: &str, body: &Value| {
        daemon.native_request(&client, in_language(method, path, language, body))
    };

    let zh = "zh-CN,zh;q=0.9,en;q=0.8";
    let chinese = ask(Method::POST, "/v1/approvals", zh, &body).ok();
    assert_eq!(chinese["shown"]["language"], "zh");
    assert_eq!(chinese["shown"]["title"], "提现");
    let lines = chinese["shown"]["lines"].as_array().unwrap();
    assert!(
        lines.contains(&json!({ "label": "金额", "value": "CNY 1,000.00" })),
        "{lines:?}"
    );
    // The person reads what the computer is set to, whoever asks.
    let window = shown(&token);
    assert!(
        window.contains("Amount: CNY 1,000.00") && !window.contains("金额"),
        "{window}"
    );

    let path = format!(
        "/v1/approvals/{}",
        chinese["challenge_jti"].as_str().unwrap()
    );
    let english = ask(Method::GET, &path, "de, en;q=0.5, zh;q=0.4", &Value::Null).ok();
    assert_eq!(english["shown"]["title"], "Withdrawal");
    assert_eq!(english["approval"], chinese["approval"]);
    // What is shown is what is signed.
    let approval = Approval::verify(
        english["approval"].as_str().unwrap(),
        std::slice::from_ref(&service.ca),
        None,
        Timestamp::now(),
    )
    .unwrap();
    for (answer, language) in [
        (&chinese, opcert::statement::Language::Chinese),
        (&english, opcert::statement::Language::English),
    ] {
        let lines: Vec<Value> = approval
            .statement
            .lines(language)
            .into_iter()
            .map(|(label, value)| json!({ "label": label, "value": value }))
            .collect();
        assert_eq!(answer["shown"]["lines"], json!(lines));
    }
    // Whoever names no language gets no words.
    assert!(
        approve(&daemon, &client, &challenge)
            .ok()
            .get("shown")
            .is_none()
    );

    let bad = json!({ "challenge": "garbage" });
    let chinese = ask(Method::POST, "/v1/approvals", zh, &bad).body;
    let english = ask(Method::POST, "/v1/approvals", "fr", &bad).body;
    assert_eq!(chinese["title"], "质询格式错误");
    assert_eq!(english["title"], "The challenge is malformed");
    assert_ne!(chinese["action"], english["action"]);
    for same in ["code", "detail", "status", "type"] {
        assert_eq!(chinese[same], english[same], "{same}");
    }
    let nothing = daemon
        .control_request(in_language(Method::GET, "/v1/nothing", "zh", &Value::Null))
        .body;
    assert_eq!(
        (&nothing["code"], &nothing["title"]),
        (&json!("not-found"), &json!("该地址没有内容"))
    );
}

#[test]
fn a_revoked_superseded_or_foreign_certificate_signs_nothing() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let client = daemon.add_client("till", &silent());
    let first = daemon.enrol(&service, "alice", "p256");
    let second = daemon.enrol(&service, "alice", "p256");
    assert_ne!(first["fingerprint"], second["fingerprint"]);
    let listed = daemon
        .control(Method::GET, "/v1/certificates", &Value::Null)
        .ok();
    let standing: Vec<&str> = listed["certificates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["standing"].as_str().unwrap())
        .collect();
    assert_eq!(standing, ["superseded", "active"]);

    let challenge = || service.challenge(&withdrawal("alice"), |_| ());
    let answer = approve(&daemon, &client, &challenge()).ok();
    let approval = Approval::verify(
        answer["approval"].as_str().unwrap(),
        std::slice::from_ref(&service.ca),
        None,
        Timestamp::now(),
    )
    .unwrap();
    let der = from_base64(second["certificate"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(approval.certificate.der(), der);

    let crl = |der: Vec<u8>| daemon.control_bytes("/v1/crls", "application/pkix-crl", der);
    assert_eq!(crl(vec![0x30, 0]).code(), "crl-invalid");
    let impostor = Service::new(ORIGIN);
    assert_eq!(crl(impostor.crl(9, &[])).code(), "crl-invalid");
    let serial = Certificate::from_der(&der).unwrap().serial().to_vec();
    crl(service.crl(7, &[&serial])).ok();
    assert_eq!(
        approve(&daemon, &client, &challenge()).code(),
        "certificate-revoked"
    );
    // An older list cannot bring it back.
    assert_eq!(crl(service.crl(6, &[])).code(), "crl-invalid");
    assert_eq!(
        approve(&daemon, &client, &challenge()).code(),
        "certificate-revoked"
    );
}

/// A program in pinentry's place that writes what it is told to `shown`, and answers CONFIRM with
/// OK and GETPIN with the PINs in `pins`, one after the other.
fn person(token: &TestToken, pins: &[&str]) -> String {
    use std::os::unix::fs::PermissionsExt;
    let directory = token.directory();
    let pinentry = directory.join("pinentry");
    std::fs::write(directory.join("pins"), pins.join("\n") + "\n").unwrap();
    let script = format!(
        "#!/bin/sh\ncd '{}'\necho 'OK ready'\nwhile read -r line; do\n  printf '%s\\n' \"$line\" >> shown\n  case \"$line\" in\n    GETPIN) echo \"D $(head -n 1 pins)\"; sed -i 1d pins; echo OK ;;\n    BYE*) echo OK; exit 0 ;;\n    *) echo OK ;;\n  esac\ndone\n",
        directory.display()
    );
    std::fs::write(&pinentry, script).unwrap();
    std::fs::set_permissions(&pinentry, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("[consent]\npinentry = \"{}\"\n", pinentry.display())
}

fn shown(token: &TestToken) -> String {
    std::fs::read_to_string(token.directory().join("shown")).unwrap_or_default()
}

#[test]
fn a_pin_for_one_approval_is_checked_by_the_token() {
    let token = TestToken::new("opcert-test");
    let consent = person(
        &token,
        &[
            "wrong-one",
            "",
            &token.pin,
            "wrong-two",
            "wrong-three",
            "wrong-four",
        ],
    );
    let mut daemon = Daemon::start_with(&token, &consent);
    let service = Service::new(ORIGIN);
    let careful = daemon.add_client("careful", &json!({ "consent": "confirm-with-pin" }));
    daemon.enrol(&service, "alice", "p256");

    // Two that are wrong, one of them too short to be tried, then the right one.
    let challenge = service.challenge(&withdrawal("alice"), |_| ());
    let answer = approve(&daemon, &careful, &challenge).ok();
    let compact = answer["approval"].as_str().unwrap();
    let payload = Jws::parse(compact, Approval::MAX).unwrap().payload;
    let claims: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(claims["consent"]["method"], "pinentry");
    let text = shown(&token);
    assert!(text.contains("SETPROMPT PIN of opcert-test:\n"), "{text}");
    assert_eq!(text.matches("SETERROR ").count(), 2, "{text}");
    assert!(!text.contains(&*token.pin), "{text}");

    // Three that are wrong are enough; the daemon's own login is untouched.
    let challenge = service.challenge(&withdrawal("alice"), |_| ());
    assert_eq!(approve(&daemon, &careful, &challenge).code(), "pin-wrong");
    let silent = daemon.add_client("till", &silent());
    let challenge = service.challenge(&withdrawal("alice"), |_| ());
    approve(&daemon, &silent, &challenge).ok();
    daemon.crash_and_restart();
    let challenge = service.challenge(&withdrawal("alice"), |_| ());
    approve(&daemon, &silent, &challenge).ok();
    for pin in [
        "wrong-one",
        "wrong-two",
        "wrong-three",
        "wrong-four",
        &token.pin,
    ] {
        assert!(!daemon.log().contains(pin), "{}", daemon.log());
    }
}

#[test]
fn a_batch_is_approved_with_its_list_and_not_with_another() {
    use opcert::statement::{Facts, Payee, PayeeList, Statement};
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start_with(&token, &person(&token, &[]));
    let service = Service::new(ORIGIN);
    let client = daemon.add_client("till", &json!({}));
    daemon.enrol(&service, "alice", "p256");
    let list: Vec<Payee> = (1..=1_000)
        .map(|number| Payee {
            payee: format!("收款人 {number}"),
            amount: 188,
        })
        .collect();
    let checked = PayeeList::new(&list, "CNY").unwrap();
    let statement = Statement::new(
        "red-packet".parse().unwrap(),
        "acme".parse().unwrap(),
        "alice".parse().unwrap(),
        Facts {
            amount: Some((checked.sum(), "CNY".into())),
            payees: Some(checked.digest().to_string()),
            count: Some(1_000),
            reference: Some("R-2026-1".into()),
            memo: Some("新年快乐".into()),
            ..Facts::default()
        },
    )
    .unwrap();
    let challenge = service.challenge(&statement, |_| ());
    let with = |list: &[Payee]| {
        let body = json!({ "challenge": challenge, "payees": list });
        daemon.native(&client, Method::POST, "/v1/approvals", &body)
    };
    assert_eq!(
        approve(&daemon, &client, &challenge).code(),
        "payees-invalid"
    );
    let mut other = list.clone();
    other[999].payee = "Mallory".into();
    assert_eq!(with(&other).code(), "payees-invalid");
    assert_eq!(with(&list[..999]).code(), "payees-invalid");
    assert_eq!(shown(&token), "", "nobody was asked");

    let answer = with(&list).ok();
    let approval = Approval::verify(
        answer["approval"].as_str().unwrap(),
        std::slice::from_ref(&service.ca),
        None,
        Timestamp::now(),
    )
    .unwrap();
    assert_eq!(approval.statement, statement);
    let text = shown(&token);
    for part in [
        "%0AAmount: CNY 1,880.00%0A",
        "%0ACount: 1000%0A",
        "%0A1. 收款人 1  CNY 1.88%0A2. 收款人 2  CNY 1.88%0A",
        " more%0AAsked by: till",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_refusal_is_recorded_with_its_code_rule_and_request() {
    let token = TestToken::new("opcert-test");
    let mut daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let narrow = daemon.add_client(
        "narrow",
        &json!({ "consent": "none", "kinds": ["red-packet"] }),
    );
    daemon.enrol(&service, "alice", "p256");
    let refused = |challenge: &str| {
        let answer = approve(&daemon, &narrow, challenge);
        assert!(!answer.status.is_success());
        answer.body
    };
    let by_rule = refused(&service.challenge(&withdrawal("alice"), |_| ()));
    let malformed = refused("garbage");
    assert_eq!(by_rule["rule"], "registered-kinds");
    daemon.stop();
    let records: Vec<_> = opcert::audit::read::all(&daemon.audit_directory())
        .unwrap()
        .map(Result::unwrap)
        .filter(|record| record.kind == "approval-refused")
        .collect();
    for (problem, code, rule) in [
        (&by_rule, "policy-refused", json!("registered-kinds")),
        (&malformed, "challenge-malformed", Value::Null),
    ] {
        assert_eq!(problem["code"], code);
        let record = records
            .iter()
            .find(|record| record.request.as_ref().unwrap().as_str() == problem["request_id"])
            .unwrap();
        let body: Value = serde_json::from_str(record.body.get()).unwrap();
        assert_eq!((&body["code"], &body["rule"]), (&json!(code), &rule));
    }
}

#[test]
fn an_enrolment_is_checked_at_every_step() {
    let token = TestToken::new("opcert-test");
    let mut daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let begin = |daemon: &Daemon, ticket: String, service: &Service| {
        let body =
            json!({ "ticket": ticket, "key_type": "p256", "service": service.description() });
        daemon.control(Method::POST, "/v1/enrolments", &body)
    };
    let mut elsewhere = daemon.identity("alice");
    elsewhere.computer = "other-computer".parse().unwrap();
    assert_eq!(
        begin(&daemon, service.ticket(&elsewhere, |_| ()), &service).code(),
        "ticket-invalid"
    );
    let late = service.ticket(&daemon.identity("alice"), |claims| {
        claims.iat -= 1_000;
        claims.exp -= 1_000;
    });
    assert_eq!(begin(&daemon, late, &service).code(), "ticket-invalid");

    let ticket = service.ticket(&daemon.identity("alice"), |_| ());
    let begun = begin(&daemon, ticket.clone(), &service).ok();
    // The same ticket leads to the same enrolment, also after a crash.
    daemon.crash_and_restart();
    assert_eq!(begin(&daemon, ticket, &service).ok()["csr"], begun["csr"]);

    let request = csr(&begun);
    let wrong_person = service.issue(&request, &daemon.identity("mallory"), 365);
    assert_eq!(
        daemon.complete(&begun, &wrong_person).code(),
        "certificate-mismatch"
    );
    let wrong_authority = Service::new(ORIGIN).issue(&request, &daemon.identity("alice"), 365);
    assert_eq!(
        daemon.complete(&begun, &wrong_authority).code(),
        "certificate-mismatch"
    );
    let expired = service.issue(&request, &daemon.identity("alice"), -1);
    assert_eq!(
        daemon.complete(&begun, &expired).code(),
        "certificate-mismatch"
    );
    let second = daemon.begin(&service, "bob", "p256").ok();
    let other_key = service.issue(&csr(&second), &daemon.identity("alice"), 365);
    assert_eq!(
        daemon.complete(&begun, &other_key).code(),
        "certificate-mismatch"
    );

    let good = service.issue(&request, &daemon.identity("alice"), 365);
    daemon.complete(&begun, &good).ok();
    assert_eq!(daemon.complete(&begun, &good).code(), "enrolment-unknown");

    let path = format!("/v1/enrolments/{}", second["id"].as_str().unwrap());
    daemon.control(Method::DELETE, &path, &Value::Null).ok();
    let left = daemon
        .control(Method::GET, "/v1/enrolments", &Value::Null)
        .ok();
    assert_eq!(left["enrolments"], json!([]));

    // The pinned keys stand: another key set for the same origin is refused.
    let impostor = Service::new(ORIGIN);
    let ticket = impostor.ticket(&daemon.identity("carol"), |_| ());
    assert_eq!(begin(&daemon, ticket, &impostor).code(), "keys-invalid");
}

/// A crash while the key is generated leaves a key that nobody asks for, and the file that says so.
#[test]
fn a_key_that_a_crash_left_half_enrolled_goes_at_the_next_start() {
    let token = TestToken::new("opcert-test");
    let mut daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let kept = daemon.begin(&service, "alice", "p256").ok();
    let left = daemon.begin(&service, "bob", "p256").ok();
    let key_of = |enrolment: &Value| {
        let path = token.directory().join(format!(
            "state/enrolments/{}.json",
            enrolment["id"].as_str().unwrap()
        ));
        let state = std::fs::read(&path).unwrap();
        let state: Value = serde_json::from_slice(&state).unwrap();
        (path, state["key"]["id"].as_str().unwrap().to_owned(), state)
    };
    let (_, kept_key, _) = key_of(&kept);
    let (path, left_key, mut state) = key_of(&left);
    assert!(keys_on(&token).contains(&kept_key) && keys_on(&token).contains(&left_key));

    daemon.crash();
    state["step"] = json!("generating");
    state.as_object_mut().unwrap().remove("request");
    std::fs::write(&path, serde_json::to_vec(&state).unwrap()).unwrap();
    daemon.restart();
    until("its file is gone", || (!path.exists()).then_some(()));
    let keys = keys_on(&token);
    assert!(!keys.contains(&left_key), "{keys:?}");
    assert!(keys.contains(&kept_key), "{keys:?}");

    // The other enrolment goes on where it was.
    let certificate = service.issue(&csr(&kept), &daemon.identity("alice"), 365);
    daemon.complete(&kept, &certificate).ok();
}

/// The ids of the private keys on a token, hexadecimal.
fn keys_on(token: &TestToken) -> Vec<String> {
    let listed = token
        .pkcs11_tool()
        .args(["--list-objects", "--type", "privkey"])
        .output()
        .expect("pkcs11-tool is needed: apt-get install opensc");
    assert!(listed.status.success(), "{listed:?}");
    String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ID:"))
        .map(|id| id.trim().to_lowercase())
        .collect()
}

/// What a key did not prove is in the request, in the state of its enrolment and in the records.
#[test]
fn an_enrolment_tells_what_was_waived() {
    let Some(mut token) = TestToken::softhsm("waived") else {
        return;
    };
    let faulty = Faulty::new(&token);
    faulty.misreport(cryptoki_sys::CKA_LOCAL, &[0]);
    token.environment = faulty.environment.clone();
    token.module = Faulty::module().to_owned();
    let configure = |waive: &str| {
        let text = format!(
            "[[module]]\nname = \"test\"\nallow = [\"writable-path\"]\n\
             [[module.token]]\nuri = \"{0}\"\nwaive = {waive}\n\
             [audit.checkpoint]\ntoken = \"{0}\"\n",
            token.uri()
        );
        drop_in(token.directory(), "waive.toml", &text);
    };
    configure("[]");
    let mut daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    assert_eq!(
        daemon.begin(&service, "alice", "p256").code(),
        "key-not-proven"
    );
    configure("[\"local\"]");
    daemon.crash_and_restart();
    let begun = daemon.begin(&service, "alice", "p256").ok();
    let request = csr(&begun);
    assert!(request.note().unwrap().contains("CKA_LOCAL"));
    let state = token.directory().join("state/enrolments");
    let state = state.join(format!("{}.json", begun["id"].as_str().unwrap()));
    let state: Value = serde_json::from_slice(&std::fs::read(state).unwrap()).unwrap();
    assert_eq!(state["waived"], json!(["local"]));
    let certificate = service.issue(&request, &daemon.identity("alice"), 365);
    daemon.complete(&begun, &certificate).ok();
    // So it is with the keys of a merchant: one for its messages, one for its secrets.
    let merchant = json!({ "merchant": "1900009191", "rules": { "sign-type": "MD5" } });
    let merchant = daemon
        .control(Method::POST, "/v1/wechatpay/merchants", &merchant)
        .ok();
    let request = merchant["keys"][0]["request"].as_str().unwrap();
    let request = from_base64(request.as_bytes()).unwrap();
    let request = CertificateRequest::from_der(&request).unwrap();
    assert!(request.note().unwrap().contains("CKA_LOCAL"));
    let state = std::fs::read(token.directory().join("state/merchants.json")).unwrap();
    let state = String::from_utf8(state).unwrap();
    assert_eq!(state.matches("\"waived\": [").count(), 2, "{state}");
    assert_eq!(daemon.stop(), 0);
    let records: Vec<_> = opcert::audit::read::all(&daemon.audit_directory())
        .unwrap()
        .map(|record| record.unwrap())
        .collect();
    for kind in ["key-proof-waived", "certificate-installed"] {
        let record = records.iter().find(|record| record.kind == kind).unwrap();
        let body: Value = serde_json::from_str(record.body.get()).unwrap();
        assert_eq!(body["waived"], json!(["local"]), "{kind}");
    }
    // And with the key of the checkpoints.
    let waived = records
        .iter()
        .filter(|record| record.kind == "key-proof-waived");
    let keys: std::collections::BTreeSet<String> = waived
        .map(|record| {
            let body: Value = serde_json::from_str(record.body.get()).unwrap();
            assert_eq!(body["waived"], json!(["local"]));
            body["key"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    let checkpoint = |key: &String| key.contains("id=%6F%70%63%65%72%74%2D%61%75%64%69%74");
    assert!(keys.iter().any(checkpoint), "{keys:?}");
}

#[test]
fn a_killed_worker_comes_back_by_itself() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let client = daemon.add_client("till", &silent());
    daemon.enrol(&service, "alice", "p256");
    let challenge = || service.challenge(&withdrawal("alice"), |_| ());
    approve(&daemon, &client, &challenge()).ok();
    let kill = Command::new("pkill")
        .args(["-9", "-P", &daemon.pid().to_string(), "opcert-worker"])
        .status()
        .unwrap();
    assert!(kill.success());
    // The first request may meet the dying worker: a typed error, never a hang; then it signs.
    let answer = approve(&daemon, &client, &challenge());
    if !answer.status.is_success() {
        let code = answer.code();
        assert!(
            ["token-error", "token-down", "token-timeout"].contains(&code.as_str()),
            "{code}"
        );
    }
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !approve(&daemon, &client, &challenge()).status.is_success() {
        assert!(std::time::Instant::now() < deadline, "{}", daemon.log());
    }
}
