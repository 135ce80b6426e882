//! The browser door of the real daemon, by raw requests: each gate in its order, and what a page
//! that is let in can and cannot do. What real browsers make of it is tested in tests/browser.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Bytes;
use jiff::Timestamp;
use opcert::http::client::{Client, ClientLimits, Target};
use opcert::http::tls;
use opcert::statement::Approval;
use serde_json::{Value, json};
use support::daemon::{ClientIdentity, Daemon, csr};
use support::service::{Service, withdrawal};
use support::softhsm::TestToken;
use support::wait::until;

const PORTAL: &str = "https://accounts.example";
/// Another page that is listed.
const SECOND: &str = "https://tools.example";
const OTHER: &str = "https://accounts.example.evil.example";

/// A daemon with a browser door for [`PORTAL`], and a person before its screen.
struct Place {
    daemon: Daemon,
    /// What the person was shown.
    shown: PathBuf,
    _token: TestToken,
}

impl Place {
    /// `answer` is what pinentry says when it is asked to confirm.
    fn new(answer: &str) -> Self {
        Self::with_rules(answer, "")
    }

    /// The same with Cedar rules of the site.
    fn with_rules(answer: &str, rules: &str) -> Self {
        let token = TestToken::new("opcert-test");
        let shown = token.directory().join("shown");
        let pinentry = token.directory().join("pinentry");
        let script = format!(
            "#!/bin/sh\necho OK\nwhile IFS= read -r line; do\n\
             printf '%s\\n' \"$line\" >>'{}'\n\
             case $line in CONFIRM) echo '{answer}' ;; BYE) echo OK; exit 0 ;; *) echo OK ;; esac\n\
             done\n",
            shown.display()
        );
        std::fs::write(&pinentry, script).unwrap();
        std::fs::set_permissions(&pinentry, std::fs::Permissions::from_mode(0o755)).unwrap();
        let policy = token.directory().join("policy");
        std::fs::create_dir(&policy).unwrap();
        std::fs::set_permissions(&policy, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(policy.join("site.cedar"), rules).unwrap();
        let daemon = Daemon::start_with(
            &token,
            &format!(
                "[policy]\ndirectory = \"{}\"\n[browser]\norigins = [\"{PORTAL}\", \"{SECOND}\"]\naddresses = [\"127.0.0.1:0\"]\n\
                 limits = {{ body-bytes = 65536 }}\n\
                 [consent]\npinentry = \"{}\"\n",
                policy.display(),
                pinentry.display()
            ),
        );
        Self {
            daemon,
            shown,
            _token: token,
        }
    }

    fn agreeing() -> Self {
        Self::new("OK")
    }

    fn address(&self) -> SocketAddr {
        let status = self.daemon.control(Method::GET, "/v1/status", &Value::Null);
        let text = status.ok()["addresses"]["browser"][0].clone();
        text.as_str().unwrap().parse().unwrap()
    }

    fn port(&self) -> u16 {
        self.address().port()
    }

    fn shown(&self) -> String {
        std::fs::read_to_string(&self.shown).unwrap_or_default()
    }

    /// One request on a connection of its own.
    fn send(
        &self,
        trust: &ClientIdentity,
        with_certificate: bool,
        request: Request<Bytes>,
    ) -> Response<Bytes> {
        let config = if with_certificate {
            Arc::new(trust.tls())
        } else {
            tls::client(tls::roots([trust.ca.clone()]).unwrap(), None).unwrap()
        };
        let target = Target::Tls {
            host: "localhost".into(),
            port: self.port(),
            config,
        };
        runtime().block_on(async {
            let limits = ClientLimits {
                request: Duration::from_secs(120),
                ..ClientLimits::default()
            };
            let mut client = Client::connect(&target, limits).await.unwrap();
            client.send(request).await.unwrap()
        })
    }

    /// What a page of [`PORTAL`] sends.
    fn page(
        &self,
        browser: &ClientIdentity,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Response<Bytes> {
        self.page_of(PORTAL, browser, method, path, body)
    }

    /// What a page of `origin` sends.
    fn page_of(
        &self,
        origin: &str,
        browser: &ClientIdentity,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Response<Bytes> {
        let mut builder = Request::builder()
            .method(method)
            .uri(path)
            .header("origin", origin)
            .header("sec-fetch-mode", "cors")
            .header("sec-fetch-site", "cross-site");
        let body = if body.is_null() {
            Bytes::new()
        } else {
            builder = builder.header("content-type", "application/json");
            serde_json::to_vec(body).unwrap().into()
        };
        self.send(browser, true, builder.body(body).unwrap())
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn document(answer: &Response<Bytes>) -> Value {
    serde_json::from_slice(answer.body()).unwrap_or_else(|_| panic!("{answer:?}"))
}

#[track_caller]
fn good(answer: &Response<Bytes>) -> Value {
    assert!(answer.status().is_success(), "{answer:?}");
    document(answer)
}

fn code(answer: &Response<Bytes>) -> String {
    assert!(!answer.status().is_success(), "{answer:?}");
    document(answer)["code"].as_str().unwrap().to_owned()
}

fn header<'a>(answer: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
    answer
        .headers()
        .get(name)
        .map(|value| value.to_str().unwrap())
}

/// A page may read the answer only if it carries this.
fn is_readable(answer: &Response<Bytes>) -> bool {
    header(answer, "access-control-allow-origin") == Some(PORTAL)
        && header(answer, "access-control-allow-credentials") == Some("true")
}

#[test]
fn the_gates_answer_in_their_order() {
    let place = Place::agreeing();
    let browser = place.daemon.add_browser("browser", &json!({}));
    let own = format!("localhost:{}", place.port());
    // Each request fails at its gate and at all that follow; the next one mends the first failure.
    struct Try<'a> {
        host: &'a str,
        origin: Option<&'a str>,
        certificate: bool,
        mode: &'a str,
        method: &'a str,
        media_type: &'a str,
        bytes: usize,
    }
    let mut attempt = Try {
        host: "accounts.example:7444",
        origin: Some(OTHER),
        certificate: false,
        mode: "no-cors",
        method: "PATCH",
        media_type: "text/plain",
        // The sender of a large body that is refused unread does not always hear why.
        bytes: 17,
    };
    let send = |attempt: &Try| {
        let mut builder = Request::builder()
            .method(attempt.method)
            .uri("/v1/approvals")
            .header("host", attempt.host)
            .header("sec-fetch-mode", attempt.mode)
            .header("content-type", attempt.media_type);
        if let Some(origin) = attempt.origin {
            builder = builder.header("origin", origin);
        }
        let mut body = br#"{"challenge":"x"}"#.to_vec();
        body.resize(attempt.bytes, b' ');
        place.send(
            &browser,
            attempt.certificate,
            builder.body(body.into()).unwrap(),
        )
    };

    let answer = send(&attempt);
    assert_eq!(code(&answer), "host-refused");
    assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(header(&answer, "access-control-allow-origin"), None);

    attempt.host = &own;
    for origin in [
        Some(OTHER),
        Some("null"),
        Some("http://accounts.example"),
        Some("https://accounts.example:443"),
        Some("https://ACCOUNTS.example"),
        Some("https://accounts.example "),
        Some("https://localhost:7444"),
        None,
    ] {
        attempt.origin = origin;
        let answer = send(&attempt);
        // A page can tell that it was refused, and nothing more.
        if code(&answer) == "origin-refused" {
            let policy = header(&answer, "cross-origin-resource-policy");
            assert_eq!(policy, Some("cross-origin"));
        }
        // A blank at the end is no part of a header's value (RFC 9110 section 5.5).
        if origin.is_some_and(|origin| origin.ends_with(' ')) {
            assert_eq!(code(&answer), "client-certificate-missing");
            continue;
        }
        assert_eq!(code(&answer), "origin-refused", "{origin:?}");
        assert_eq!(header(&answer, "access-control-allow-origin"), None);
    }

    attempt.origin = Some(PORTAL);
    let answer = send(&attempt);
    assert_eq!(code(&answer), "client-certificate-missing");
    assert!(is_readable(&answer), "a page can tell why");

    attempt.certificate = true;
    for mode in ["no-cors", "navigate", "same-origin", "websocket"] {
        attempt.mode = mode;
        assert_eq!(code(&send(&attempt)), "fetch-refused", "{mode}");
    }

    attempt.mode = "cors";
    for method in ["PATCH", "HEAD", "TRACE", "OPTIONS"] {
        attempt.method = method;
        let answer = send(&attempt);
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
    }

    attempt.method = "POST";
    for media_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/json",
        "",
    ] {
        attempt.media_type = media_type;
        let answer = send(&attempt);
        assert_eq!(code(&answer), "unsupported-media-type", "{media_type}");
    }

    attempt.media_type = "application/json";
    attempt.bytes = 65_537;
    let answer = send(&attempt);
    assert_eq!(code(&answer), "too-large");
    assert!(is_readable(&answer));

    attempt.bytes = 17;
    let answer = send(&attempt);
    assert_eq!(code(&answer), "challenge-malformed", "past all gates");
    assert!(is_readable(&answer));
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("cross-origin-resource-policy", "same-origin"),
        ("vary", "origin"),
    ] {
        assert_eq!(header(&answer, name), Some(value));
    }
    assert_eq!(header(&answer, "set-cookie"), None);
}

#[test]
fn a_preflight_needs_an_origin_and_no_certificate() {
    let place = Place::agreeing();
    let browser = place.daemon.add_browser("browser", &json!({}));
    let preflight = |origin: &str, asks: &[(&str, &str)]| {
        let mut builder = Request::builder()
            .method("OPTIONS")
            .uri("/v1/approvals")
            .header("origin", origin)
            .header("access-control-request-method", "POST");
        for (name, value) in asks {
            builder = builder.header(*name, *value);
        }
        place.send(&browser, false, builder.body(Bytes::new()).unwrap())
    };
    let answer = preflight(
        PORTAL,
        &[("access-control-request-headers", "content-type")],
    );
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    assert!(is_readable(&answer) && answer.body().is_empty());
    for (name, value) in [
        ("access-control-allow-methods", "GET, POST, PUT, DELETE"),
        ("access-control-allow-headers", "content-type"),
        ("access-control-max-age", "600"),
        ("vary", "origin"),
    ] {
        assert_eq!(header(&answer, name), Some(value));
    }
    assert_eq!(
        header(&answer, "access-control-allow-private-network"),
        None
    );

    let answer = preflight(
        PORTAL,
        &[("access-control-request-private-network", "true")],
    );
    assert_eq!(
        header(&answer, "access-control-allow-private-network"),
        Some("true")
    );

    let answer = preflight(OTHER, &[("access-control-request-private-network", "true")]);
    assert_eq!(code(&answer), "origin-refused");
    assert_eq!(header(&answer, "access-control-allow-origin"), None);
    assert_eq!(
        header(&answer, "access-control-allow-private-network"),
        None
    );
}

#[test]
fn a_page_enrols_and_approves_and_its_origin_goes_all_the_way() {
    let place = Place::agreeing();
    let daemon = &place.daemon;
    let browser = daemon.add_browser("alices-browser", &json!({}));
    let service = Service::new(PORTAL);

    let body = json!({
        "ticket": service.ticket(&daemon.identity("alice"), |_| ()),
        "key_type": "p256",
        "service": service.description(),
    });
    let begun = good(&place.page(&browser, Method::POST, "/v1/enrolments", &body));
    let shown = place.shown();
    for word in [
        "Install an operating certificate",
        "alice",
        PORTAL,
        "alices-browser",
    ] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    // The same ticket again finds the same enrolment, and asks nobody.
    let again = good(&place.page(&browser, Method::POST, "/v1/enrolments", &body));
    assert_eq!(again["id"], begun["id"]);
    assert_eq!(place.shown(), shown);
    assert_eq!(again["ticket"], Value::Null, "tickets are for local users");

    let certificate = service.issue(&csr(&begun), &daemon.identity("alice"), 365);
    let path = format!(
        "/v1/enrolments/{}/certificate",
        begun["id"].as_str().unwrap()
    );
    let body = json!({ "certificates": [opcert::base::encoding::base64(&certificate)] });
    let installed = good(&place.page(&browser, Method::PUT, &path, &body));
    assert_eq!(installed["standing"], "active");
    let listed = good(&place.page(&browser, Method::GET, "/v1/certificates", &Value::Null));
    assert_eq!(
        listed["certificates"][0]["fingerprint"],
        installed["fingerprint"]
    );

    let approve = |challenge: &str| {
        let body = json!({ "challenge": challenge });
        place.page(&browser, Method::POST, "/v1/approvals", &body)
    };
    let challenge = service.challenge(&withdrawal("alice"), |claims| {
        claims.origin = Some(PORTAL.parse().unwrap());
    });
    let answer = good(&approve(&challenge));
    let approval = Approval::verify(
        answer["approval"].as_str().unwrap(),
        std::slice::from_ref(&service.ca),
        None,
        Timestamp::now(),
    )
    .unwrap();
    assert_eq!(approval.origin, Some(PORTAL.parse().unwrap()));
    assert_eq!(approval.client, "client:alices-browser");
    let shown = place.shown();
    assert!(shown.contains("1,000.00"), "{shown}");
    assert!(
        shown[shown.rfind("1,000.00").unwrap()..].contains(PORTAL),
        "{shown}"
    );

    // A challenge for another page, or for none, is not this page's to relay.
    for origin in [Some("https://other.example"), None] {
        let challenge = service.challenge(&withdrawal("alice"), |claims| {
            claims.origin = origin.map(|origin| origin.parse().unwrap());
        });
        assert_eq!(code(&approve(&challenge)), "challenge-origin", "{origin:?}");
    }
}

#[test]
fn an_approval_is_given_again_to_its_own_page_only() {
    let mut place = Place::agreeing();
    let browser = place.daemon.add_browser("browser", &json!({}));
    let program = place.daemon.add_client("program", &json!({}));
    let service = Service::new(PORTAL);
    place.daemon.enrol(&service, "alice", "p256");
    let challenge = service.challenge(&withdrawal("alice"), |claims| {
        claims.origin = Some(PORTAL.parse().unwrap());
    });
    let body = json!({ "challenge": challenge });
    let given = good(&place.page(&browser, Method::POST, "/v1/approvals", &body));
    let path = format!("/v1/approvals/{}", given["challenge_jti"].as_str().unwrap());
    for _ in 0..2 {
        let ask = |origin, method, path: &str, body: &Value| {
            place.page_of(origin, &browser, method, path, body)
        };
        let answer = ask(SECOND, Method::GET, &path, &Value::Null);
        assert_eq!(code(&answer), "approval-unknown");
        let answer = ask(SECOND, Method::POST, "/v1/approvals", &body);
        assert_eq!(code(&answer), "challenge-origin");
        let answer = place
            .daemon
            .native(&program, Method::GET, &path, &Value::Null);
        assert_eq!(answer.code(), "approval-unknown");
        for answer in [
            ask(PORTAL, Method::GET, &path, &Value::Null),
            ask(PORTAL, Method::POST, "/v1/approvals", &body),
        ] {
            assert_eq!(good(&answer), given);
        }
        // Also where it is read back from the records.
        place.daemon.crash_and_restart();
    }
}

#[test]
fn policy_sees_the_page() {
    let place = Place::with_rules(
        "OK",
        &format!(
            "@id(\"not-from-the-portal\")\n@reason(\"this computer approves in programs only\")\n\
             forbid (principal, action in Action::\"approve\", resource)\n\
             when {{ context has origin && context.origin == \"{PORTAL}\" }};\n"
        ),
    );
    let daemon = &place.daemon;
    let service = Service::new(PORTAL);
    daemon.enrol(&service, "alice", "p256");
    let challenge = service.challenge(&withdrawal("alice"), |claims| {
        claims.origin = Some(PORTAL.parse().unwrap());
    });
    let body = json!({ "challenge": challenge });
    let browser = daemon.add_browser("browser", &json!({}));
    let answer = place.page(&browser, Method::POST, "/v1/approvals", &body);
    assert_eq!(code(&answer), "policy-refused");
    assert_eq!(document(&answer)["rule"], "not-from-the-portal");
    assert_eq!(place.shown(), "", "nobody is asked in vain");

    let program = daemon.add_client("program", &json!({}));
    daemon
        .native(&program, Method::POST, "/v1/approvals", &body)
        .ok();
}

#[test]
fn a_page_may_not_do_what_is_not_its_own() {
    let place = Place::new("ERR 83886179 Operation cancelled <Pinentry>");
    let daemon = &place.daemon;
    let browser = daemon.add_browser("browser", &json!({}));
    let service = Service::new(PORTAL);
    let enrol = |service: &Service| {
        let body = json!({
            "ticket": service.ticket(&daemon.identity("alice"), |_| ()),
            "key_type": "p256",
            "service": service.description(),
        });
        code(&place.page(&browser, Method::POST, "/v1/enrolments", &body))
    };
    assert_eq!(enrol(&service), "consent-denied");
    let stranger = Service::new("https://accounts.stranger.example");
    assert_eq!(enrol(&stranger), "not-permitted");
    let left = daemon.control(Method::GET, "/v1/enrolments", &Value::Null);
    assert_eq!(left.ok()["enrolments"], json!([]));

    // Enrolments with other services are neither seen nor touched.
    let begun = daemon.begin(&stranger, "bob", "p256").ok();
    let seen = good(&place.page(&browser, Method::GET, "/v1/enrolments", &Value::Null));
    assert_eq!(seen["enrolments"], json!([]));
    let path = format!("/v1/enrolments/{}", begun["id"].as_str().unwrap());
    let answer = place.page(&browser, Method::DELETE, &path, &Value::Null);
    assert_eq!(code(&answer), "enrolment-unknown");

    for (method, path, body) in [
        (Method::GET, "/v1/clients", Value::Null),
        (
            Method::POST,
            "/v1/clients",
            json!({ "name": "x", "csr": "" }),
        ),
        (Method::DELETE, "/v1/clients/browser", Value::Null),
        (
            Method::POST,
            "/v1/tokens/unlock",
            json!({ "uri": "pkcs11:", "pin": "1234" }),
        ),
        (Method::GET, "/v1/policy", Value::Null),
    ] {
        let answer = place.page(&browser, method, path, &body);
        assert_eq!(code(&answer), "not-permitted", "{path}");
    }
    let answer = place.page(&browser, Method::GET, "/favicon.ico", &Value::Null);
    assert_eq!(code(&answer), "not-found");
    let message = json!({ "merchant": "1900000001", "req_info": "AAAA" });
    let answer = place.page(
        &browser,
        Method::POST,
        "/v1/wechatpay/v2/refund/decrypt",
        &message,
    );
    let refused = document(&answer);
    assert_eq!(refused["code"], "not-permitted");
    assert_eq!(refused["rule"], "no-pages");

    // Each of them is on record, with the page.
    let body = until("the record", || {
        opcert::audit::read::all(&daemon.audit_directory())
            .unwrap()
            .map(Result::unwrap)
            .filter(|record| {
                let request = record.request.as_ref();
                request.is_some_and(|request| refused["request_id"] == request.as_str())
            })
            .map(|record| serde_json::from_str::<Value>(record.body.get()).unwrap())
            .next()
    });
    assert_eq!(
        body,
        json!({
            "caller": "client:browser", "origin": PORTAL, "method": "POST",
            "path": "/v1/wechatpay/v2/refund/decrypt", "code": "not-permitted", "rule": "no-pages",
            "reason": refused["detail"],
        })
    );
}

#[test]
fn a_page_is_answered_in_the_language_of_its_reader() {
    let place = Place::agreeing();
    let browser = place.daemon.add_browser("browser", &json!({}));
    let ask = |origin: &str, language: &str| {
        let request = Request::builder()
            .method(Method::GET)
            .uri("/v1/nothing")
            .header("origin", origin)
            .header("accept-language", language)
            .body(Bytes::new())
            .unwrap();
        place.send(&browser, true, request)
    };
    for (language, tag, title) in [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh", "该地址没有内容"),
        ("fr,en;q=0.3", "en", "There is nothing at this address"),
    ] {
        let answer = ask(PORTAL, language);
        assert_eq!(document(&answer)["title"], title);
        assert_eq!(header(&answer, "content-language"), Some(tag));
        let vary: Vec<_> = answer.headers().get_all("vary").iter().collect();
        assert_eq!(vary, ["origin", "accept-language"]);
    }
    // What a gate refuses, too.
    let answer = ask(OTHER, "zh");
    assert_eq!(code(&answer), "origin-refused");
    assert_eq!(document(&answer)["title"], "不服务该来源的网页");
}

#[test]
fn a_certificate_is_good_for_its_own_use_only() {
    let place = Place::agreeing();
    let daemon = &place.daemon;
    let browser = daemon.add_browser("browser", &json!({}));
    let program = daemon.add_client("program", &json!({}));

    let answer = place.page(&program, Method::GET, "/v1/status", &Value::Null);
    assert_eq!(code(&answer), "client-kind");
    let answer = daemon.native(&browser, Method::GET, "/v1/status", &Value::Null);
    assert_eq!(answer.code(), "client-kind");

    // The native-messaging host names the page that its browser vouches for.
    let native = |identity: &ClientIdentity, origins: &[&str]| {
        let target = Target::Tls {
            host: "localhost".into(),
            port: daemon.address().port(),
            config: Arc::new(identity.tls()),
        };
        let mut builder = Request::builder().uri("/v1/status");
        for origin in origins {
            builder = builder.header("opcert-page-origin", *origin);
        }
        runtime().block_on(async {
            let mut client = Client::connect(&target, ClientLimits::default())
                .await
                .unwrap();
            client
                .send(builder.body(Bytes::new()).unwrap())
                .await
                .unwrap()
        })
    };
    good(&native(&browser, &[PORTAL]));
    assert_eq!(code(&native(&browser, &[OTHER])), "origin-refused");
    assert_eq!(code(&native(&browser, &[PORTAL, PORTAL])), "origin-refused");
    assert_eq!(code(&native(&program, &[PORTAL])), "client-kind");

    good(&place.page(&browser, Method::GET, "/v1/status", &Value::Null));
    daemon
        .control(Method::DELETE, "/v1/clients/browser", &Value::Null)
        .ok();
    let answer = place.page(&browser, Method::GET, "/v1/status", &Value::Null);
    assert_eq!(code(&answer), "client-unknown", "a removal bites at once");
}

#[test]
fn without_an_origin_the_door_is_shut() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start_with(&token, "[browser]\naddresses = [\"127.0.0.1:0\"]\n");
    let status = daemon.control(Method::GET, "/v1/status", &Value::Null).ok();
    assert_eq!(status["addresses"]["browser"], json!([]));
}

#[test]
fn who_speaks_no_tls_is_told_so() {
    let place = Place::agreeing();
    let mut stream = TcpStream::connect(place.address()).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())));
    assert!(!head.to_lowercase().contains("access-control"));
}
