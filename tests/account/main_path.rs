//! From an SMS code to an approved operation, and what must not work on the way.

use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use opcert::account::config::Config;
use opcert::account::service::Service;
use opcert::account::sms::Gateway;
use opcert::base::encoding::{base64, from_base64, hex};
use opcert::base::files;
use opcert::base::ids::RequestId;
use opcert::base::secret::SecretText;
use opcert::base::x509::{Certificate, RemoteKey, common_name, request_draft};
use opcert::http::tls::{self, Identity};
use opcert::http::{Door, Limits, Listener, Server};

use super::scene::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_counted_timed_and_used_once() {
    let scene = Scene::new().await;

    // One answer for a wrong password, an unknown operator, an unknown account.
    let mut answers = Vec::new();
    for (operator, password) in [("alice", "wrong horse"), ("nobody", PASSWORD)] {
        let answer = scene.ask_code(operator, "c1", password).await;
        answer.refused(401, "login-failed");
        answers.push((answer.text("detail"), answer.text("action")));
    }
    let body = json!({
        "account": "other", "operator": "alice", "password": PASSWORD, "purpose": "install",
        "computer": {"id": "c1", "name": "x"},
    });
    let answer = scene
        .post("/v1/enrolment/codes", JSON, body.to_string())
        .await;
    answer.refused(401, "login-failed");
    answers.push((answer.text("detail"), answer.text("action")));
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(scene.texts.try_recv().is_err(), "no text was sent");

    // The text says what it is for; the answer hides the number; nothing stores the code.
    let answer = scene.ask_code("alice", "c1", PASSWORD).await.done(202);
    assert_eq!(answer.text("sent_to"), "+86*******0001");
    let text = scene.texts.try_recv().unwrap().expose().to_owned();
    assert!(
        text.starts_with("SMS to +8613800000001: opcert code "),
        "{text}"
    );
    assert!(text.contains("computer \"the c1\" for account acme. Valid 5 minutes."));
    let digits = text.split("opcert code ").nth(1).unwrap()[..6].to_owned();
    for entry in walk(&scene.made.state()) {
        let bytes = std::fs::read(&entry).unwrap();
        let found = bytes.windows(6).any(|window| window == digits.as_bytes());
        assert!(!found, "{} holds the code", entry.display());
    }

    // Not again within the minute; retry-after says when.
    scene.hand.advance(Duration::from_secs(20));
    let soon = scene.ask_code("alice", "c1", PASSWORD).await;
    soon.refused(429, "sms-too-soon");
    assert_eq!(soon.headers["retry-after"], "40");
    assert_eq!(soon.json["retry_after"], 40);

    // Three wrong tries use it up, for the right code too.
    let id = answer.text("code_id");
    let wrong = if digits == "000000" {
        "000001"
    } else {
        "000000"
    };
    for _ in 0..3 {
        scene
            .redeem(&id, wrong)
            .await
            .refused(422, "sms-code-wrong");
    }
    scene
        .redeem(&id, &digits)
        .await
        .refused(422, "sms-code-spent");
    scene
        .redeem("unknown", wrong)
        .await
        .refused(422, "sms-code-wrong");

    // Five minutes, then it is over.
    scene.hand.advance(Duration::from_secs(61));
    let (id, code) = scene.code("alice", "c1").await;
    scene.hand.advance(Duration::from_secs(300));
    scene
        .redeem(&id, &code)
        .await
        .refused(422, "sms-code-expired");

    // A right code works once, however many hand it in at the same time.
    let (id, code) = scene.code("alice", "c1").await;
    let (one, two, three) = tokio::join!(
        scene.redeem(&id, &code),
        scene.redeem(&id, &code),
        scene.redeem(&id, &code)
    );
    let given = [&one, &two, &three]
        .iter()
        .filter(|answer| answer.status == StatusCode::CREATED)
        .count();
    assert_eq!(given, 1, "{one:?} {two:?} {three:?}");
    scene
        .redeem(&id, &code)
        .await
        .refused(422, "sms-code-spent");

    // Ten a day for a number (three were sent above); another number has its own count.
    for _ in 0..7 {
        scene.hand.advance(Duration::from_secs(61));
        scene.code("alice", "c1").await;
    }
    scene.hand.advance(Duration::from_secs(61));
    scene
        .ask_code("alice", "c1", PASSWORD)
        .await
        .refused(429, "sms-too-soon");
    scene.code("bob", "c2").await;
    scene.hand.advance(Duration::from_secs(24 * 60 * 60));
    scene.code("alice", "c1").await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_good_for_one_request() {
    let scene = Scene::new().await;
    let ticket = scene.ticket("alice", "c1").await;
    let key = SoftKey::new();
    let csr = key.csr();

    // Credentials first, then the request.
    let answer = scene
        .post("/.well-known/est/simpleenroll", PKCS10, base64(&csr))
        .await;
    answer.refused(401, "unauthenticated");
    assert!(
        answer.headers["www-authenticate"]
            .to_str()
            .unwrap()
            .starts_with("Basic ")
    );
    scene
        .enrol("no.ticket.here", &csr)
        .await
        .refused(422, "ticket-invalid");
    let mut tampered = ticket.clone();
    tampered.replace_range(tampered.len() - 2..tampered.len() - 1, "A");
    if tampered != ticket {
        scene
            .enrol(&tampered, &csr)
            .await
            .refused(422, "ticket-invalid");
    }
    for bad in [&b""[..], b"\x30\x03\x02\x01\x00", &csr[..csr.len() - 1]] {
        scene.enrol(&ticket, bad).await.refused(422, "csr-invalid");
    }
    let forged = {
        let subject = common_name("x").unwrap();
        let draft = request_draft(subject, vec![], RemoteKey::new(key.public.clone())).unwrap();
        let signature = SoftKey::new().sign(draft.to_sign());
        draft.assemble(&signature).unwrap()
    };
    scene
        .enrol(&ticket, &forged)
        .await
        .refused(422, "csr-invalid");

    // Names come from the ticket. The same request again gets the same certificate, and another
    // one gets nothing; also when they arrive together.
    let (one, two) = tokio::join!(scene.enrol(&ticket, &csr), scene.enrol(&ticket, &csr));
    let certificate = certificate_in(&one.done(200));
    assert_eq!(certificate_in(&two.done(200)).der(), certificate.der());
    let identity = certificate.identity().unwrap();
    assert_eq!(identity.account.as_str(), "acme");
    assert_eq!(identity.operator.as_str(), "alice");
    assert_eq!(identity.computer.as_str(), "c1");
    assert!(certificate.serial().len() <= 20 && certificate.serial()[0] & 0x80 == 0);
    let again = scene.enrol(&ticket, &csr).await.done(200);
    assert_eq!(certificate_in(&again).der(), certificate.der());
    let other = scene.enrol(&ticket, &SoftKey::new().csr()).await;
    other.refused(409, "ticket-spent");

    // A key is certified once.
    let ticket = scene.ticket("alice", "c1").await;
    scene.enrol(&ticket, &csr).await.refused(422, "csr-invalid");
    // Ten minutes, then the ticket is over.
    scene.hand.advance(Duration::from_secs(600));
    scene
        .enrol(&ticket, &SoftKey::new().csr())
        .await
        .refused(422, "ticket-invalid");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_hold_when_everybody_enrols_at_once() {
    let scene = Scene::with(|config| {
        config.quotas.computers = 3;
        config.quotas.certificates = 5;
        config.sms.daily = 100;
    })
    .await;

    // Six computers race for three places.
    let mut racers = Vec::new();
    for index in 0..6 {
        racers.push(scene.ticket("alice", &format!("c{index}")).await);
    }
    let tasks: Vec<_> = racers
        .into_iter()
        .map(|ticket| {
            let target = scene.target.clone();
            tokio::spawn(async move { enrol(&target, &ticket, &SoftKey::new().csr()).await })
        })
        .collect();
    let mut won = Vec::new();
    for task in tasks {
        let answer = task.await.unwrap();
        if answer.status == StatusCode::OK {
            won.push(certificate_in(&answer));
        } else {
            answer.refused(409, "quota-computers");
            // The answer names what could go.
            assert!(
                answer.text("action").contains("of alice on \""),
                "{answer:?}"
            );
        }
    }
    assert_eq!(won.len(), 3);

    // On a computer that has its place: two more certificates, of four that race.
    let home = won[0].identity().unwrap().computer.to_string();
    let mut racers = Vec::new();
    for _ in 0..4 {
        racers.push(scene.ticket("alice", &home).await);
    }
    let tasks: Vec<_> = racers
        .into_iter()
        .map(|ticket| {
            let target = scene.target.clone();
            tokio::spawn(async move { enrol(&target, &ticket, &SoftKey::new().csr()).await })
        })
        .collect();
    let mut more = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        if answer.status == StatusCode::OK {
            more += 1;
        } else {
            answer.refused(409, "quota-certificates");
        }
    }
    assert_eq!(more, 2);

    // A revoked certificate makes room.
    let serial = hex(won[1].serial());
    succeed(
        scene
            .made
            .command()
            .args(["certificate", "revoke", &serial]),
    );
    let ticket = scene.ticket("alice", "c9").await;
    scene.enrol(&ticket, &SoftKey::new().csr()).await.done(200);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_is_approved_once_by_the_right_certificate() {
    let scene = Scene::new().await;
    let alice = scene.installed("alice", "c1").await;
    let bob = scene.installed("bob", "c2").await;

    let created = scene.withdrawal("alice").await;
    let challenge = created.text("challenge");
    let approval = scene.approval(&alice, &challenge);

    // Tampered with, by another operator, garbage, of another operation.
    let middle = approval.len() / 2;
    let mut tampered = approval.clone();
    let replacement = if &approval[middle..=middle] == "A" {
        "B"
    } else {
        "A"
    };
    tampered.replace_range(middle..=middle, replacement);
    for bad in [tampered.as_str(), "garbage", "", "a.b.c"] {
        scene
            .post_approval(&created, bad)
            .await
            .refused(422, "approval-invalid");
    }
    let by_bob = scene.approval(&bob, &challenge);
    scene
        .post_approval(&created, &by_bob)
        .await
        .refused(422, "approval-invalid");
    let other = scene.withdrawal("alice").await;
    scene
        .post_approval(&other, &approval)
        .await
        .refused(422, "approval-invalid");
    let id = created.json["operation"]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/operations/{id}");
    scene
        .post(&format!("{path}/approvals"), JSON, approval.clone())
        .await
        .refused(415, "unsupported-media-type");
    scene
        .post("/v1/operations/unknown/approvals", JOSE, approval.clone())
        .await
        .refused(404, "not-found");

    // A second approval by the same certificate differs in its jti. Handed in together, one wins.
    let second = scene.approval(&alice, &challenge);
    assert_ne!(approval, second);
    let (one, two) = tokio::join!(
        scene.post_approval(&created, &approval),
        scene.post_approval(&created, &second)
    );
    let (won, lost, winner) = if one.status == StatusCode::OK {
        (one, two, &approval)
    } else {
        (two, one, &second)
    };
    assert_eq!(won.done(200).json["operation"]["state"], "approved");
    lost.refused(409, "operation-state");
    // The very same again is the same answer; the platform sees who approved with what.
    scene.post_approval(&created, winner).await.done(200);
    let seen = scene.platform(Method::GET, &path, None).await.done(200);
    let approvals = seen.json["operation"]["approvals"].as_array().unwrap();
    assert_eq!(approvals.len(), 1);
    assert_eq!(approvals[0]["certificate"], hex(alice.certificate.serial()));
    assert_eq!(approvals[0]["approval"], winner.as_str());
    scene
        .platform(Method::POST, &format!("{path}/cancellation"), None)
        .await
        .refused(409, "operation-state");

    // A challenge lasts two minutes, with a little time to travel; then a fresh one is to be had.
    let created = scene.withdrawal("alice").await;
    let late = scene.approval(&alice, &created.text("challenge"));
    scene.hand.advance(Duration::from_secs(151));
    scene
        .post_approval(&created, &late)
        .await
        .refused(422, "challenge-expired");
    let id = created.json["operation"]["id"].as_str().unwrap();
    let path = format!("/v1/operations/{id}/challenges");
    let for_bob = Some(json!({"operator": "bob"}));
    scene
        .platform(Method::POST, &path, for_bob)
        .await
        .refused(403, "forbidden");
    let for_alice = Some(json!({"operator": "alice"}));
    let fresh = scene
        .platform(Method::POST, &path, for_alice.clone())
        .await
        .done(201);
    let approval = scene.approval(&alice, &fresh.text("challenge"));
    scene.hand.advance(Duration::from_secs(140));
    scene.post_approval(&created, &approval).await.done(200);
    scene
        .platform(Method::POST, &path, for_alice)
        .await
        .refused(409, "operation-state");

    // Revocation bites at once, without a new list.
    let created = scene.withdrawal("alice").await;
    let approval = scene.approval(&alice, &created.text("challenge"));
    let serial = hex(alice.certificate.serial());
    let revoke = [
        "certificate",
        "revoke",
        &serial,
        "--reason",
        "key-compromise",
    ];
    succeed(scene.made.command().args(revoke));
    scene
        .post_approval(&created, &approval)
        .await
        .refused(422, "certificate-revoked");
    let (code, _, error) = run(scene.made.command().args(revoke), "");
    assert_eq!(code, 1, "{error}");

    // What is cancelled or too old is not approved.
    let created = scene.withdrawal("bob").await;
    let approval = scene.approval(&bob, &created.text("challenge"));
    let id = created.json["operation"]["id"].as_str().unwrap();
    let path = format!("/v1/operations/{id}/cancellation");
    for _ in 0..2 {
        let answer = scene.platform(Method::POST, &path, None).await.done(200);
        assert_eq!(answer.json["operation"]["state"], "cancelled");
    }
    scene
        .post_approval(&created, &approval)
        .await
        .refused(409, "operation-state");
    let created = scene.withdrawal("bob").await;
    let approval = scene.approval(&bob, &created.text("challenge"));
    scene.hand.advance(Duration::from_secs(3600));
    scene
        .post_approval(&created, &approval)
        .await
        .refused(409, "operation-state");

    // A year later the certificate is over.
    scene.hand.advance(Duration::from_secs(365 * 24 * 60 * 60));
    let created = scene.withdrawal("bob").await;
    let approval = scene.approval(&bob, &created.text("challenge"));
    scene
        .post_approval(&created, &approval)
        .await
        .refused(422, "certificate-expired");

    let made = scene.end().await;
    let trail = made.state().join("audit");
    let kinds: Vec<String> = opcert::audit::read::since(&trail, Timestamp::UNIX_EPOCH)
        .unwrap()
        .map(|record| record.unwrap().kind.to_string())
        .collect();
    let count = |kind: &str| kinds.iter().filter(|known| *known == kind).count();
    assert_eq!(count("code-sent"), 2);
    assert_eq!(count("certificate-issued"), 2);
    assert_eq!(count("operation-approved"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_request_is_known_by_its_keys() {
    let scene = Scene::new().await;
    let create = |body: Value, key: Option<&'static str>| {
        scene.platform_with(Method::POST, "/v1/operations", Some(body), key)
    };

    // The same key and request, however it is written: the same answer, and one operation.
    let first = create(withdrawal("alice"), Some("a-1")).await.done(201);
    scene.hand.advance(Duration::from_secs(10));
    let mut reordered = serde_json::Map::new();
    for (name, value) in withdrawal("alice").as_object().unwrap().iter().rev() {
        reordered.insert(name.clone(), value.clone());
    }
    let (again, parallel) = tokio::join!(
        create(reordered.into(), Some("a-1")),
        create(withdrawal("alice"), Some("a-1"))
    );
    assert_eq!(again.done(201).bytes, first.bytes);
    assert_eq!(parallel.done(201).bytes, first.bytes);
    let mut other = withdrawal("alice");
    other["amount"] = json!(100_001);
    create(other, Some("a-1"))
        .await
        .refused(409, "idempotency-conflict");
    let second = create(withdrawal("alice"), Some("a-2")).await.done(201);
    assert_ne!(second.bytes, first.bytes);
    create(withdrawal("alice"), Some("with blank"))
        .await
        .refused(400, "malformed");

    // So it is for every other POST.
    let id = first.json["operation"]["id"].as_str().unwrap();
    let path = format!("/v1/operations/{id}/challenges");
    let ask = async |operator: &str| {
        let body = Some(json!({ "operator": operator }));
        scene
            .platform_with(Method::POST, &path, body, Some("c-1"))
            .await
    };
    let asked = ask("alice").await.done(201);
    assert_ne!(asked.json["challenge"], first.json["challenge"]);
    assert_eq!(ask("alice").await.done(201).bytes, asked.bytes);
    ask("bob").await.refused(409, "idempotency-conflict");
    let second_id = second.json["operation"]["id"].as_str().unwrap();
    let cancel = async |id: &str| {
        let path = format!("/v1/operations/{id}/cancellation");
        scene
            .platform_with(Method::POST, &path, None, Some("x-1"))
            .await
    };
    let cancelled = cancel(second_id).await.done(200);
    assert_eq!(cancelled.json["operation"]["state"], "cancelled");
    assert_eq!(cancel(second_id).await.done(200).bytes, cancelled.bytes);
    cancel(id).await.refused(409, "idempotency-conflict");

    // Each bad statement names its field.
    for (member, value, field) in [
        ("amount", json!(0), "amount"),
        ("currency", json!("ZZZ"), "currency"),
        ("payee", json!("a\u{202e}b"), "payee"),
        ("kind", json!("theft"), "kind"),
        ("count", json!(3), "count"),
        ("origin", json!("http://shop.example"), "origin"),
        ("operator", json!("nobody"), "operator"),
    ] {
        let mut body = withdrawal("alice");
        body[member] = value;
        let answer = create(body, None).await;
        answer.refused(422, "statement-invalid");
        assert!(answer.text("detail").contains(field), "{answer:?}");
    }
    let mut body = withdrawal("alice");
    body.as_object_mut().unwrap().remove("currency");
    create(body, None).await.refused(422, "statement-invalid");
    for (member, value) in [
        ("amount", json!(1.5)),
        ("operator", json!("a/b")),
        ("colour", json!("red")),
    ] {
        let mut body = withdrawal("alice");
        body[member] = value;
        create(body, None).await.refused(400, "malformed");
    }

    // No key, a wrong key.
    let body = withdrawal("alice").to_string();
    let path = "/v1/operations";
    let answer = scene.post(path, JSON, body.clone()).await;
    answer.refused(401, "unauthenticated");
    assert!(answer.headers.contains_key("www-authenticate"));
    let request = Request::post(path)
        .header("content-type", JSON)
        .header("authorization", "Bearer opk_wrong");
    let answer = scene.send(request.body(body.into()).unwrap()).await;
    answer.refused(401, "unauthenticated");
    scene
        .get("/v1/operations/x")
        .await
        .refused(401, "unauthenticated");
    scene
        .platform(Method::GET, "/v1/operations/unknown", None)
        .await
        .refused(404, "not-found");

    // Whatever else can be wrong with a request.
    let codes = "/v1/enrolment/codes";
    scene.post(codes, JSON, "{").await.refused(400, "malformed");
    scene
        .post(codes, JSON, &b"\xff\x00"[..])
        .await
        .refused(400, "malformed");
    scene
        .post(codes, "text/plain", "{}")
        .await
        .refused(415, "unsupported-media-type");
    scene
        .post(codes, JSON, vec![b' '; 65_537])
        .await
        .refused(413, "too-large");
    let hidden = json!({
        "account": "acme", "operator": "alice", "password": PASSWORD, "purpose": "install",
        "computer": {"id": "c1", "name": "a\nb"},
    });
    scene
        .post(codes, JSON, hidden.to_string())
        .await
        .refused(400, "malformed");
    scene.get("/nowhere").await.refused(404, "not-found");
    scene.get(codes).await.refused(405, "method-not-allowed");

    // What anybody may read.
    assert_eq!(scene.get("/healthz").await.done(200).json["status"], "ok");
    let document = scene.get("/v1/openapi.json").await.done(200).json;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let keys = scene.get("/.well-known/jwks.json").await.done(200).json;
    assert_eq!(keys["keys"][0]["crv"], "P-256");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_revocation_list_is_numbered_and_never_stale() {
    let scene = Scene::new().await;
    let authority = scene.made.authority();
    let installed = scene.installed("alice", "c1").await;
    let list = async || {
        let answer = scene.get("/pki/issuing.crl").await.done(200);
        assert_eq!(answer.headers["content-type"], "application/pkix-crl");
        opcert::base::x509::Crl::from_der(&answer.bytes, &authority).unwrap()
    };

    // Asked for by several at once, one list is made.
    let (one, two) = tokio::join!(list(), list());
    assert_eq!((one.number(), two.number()), (1, 1));
    assert!(one.is_empty());
    scene.hand.advance(Duration::from_secs(12 * 60 * 60 - 1));
    assert_eq!(list().await.number(), 1);
    scene.hand.advance(Duration::from_secs(1));
    let next = list().await;
    assert_eq!(next.number(), 2, "half its time is over");
    assert!(next.next_update() > scene.clock.now());

    // Who has the list need not be sent it again.
    let known = scene.get("/pki/issuing.crl").await.done(200).headers["etag"].clone();
    let unless = async |tags: &[u8]| {
        let request = Request::get("/pki/issuing.crl").header("if-none-match", tags);
        scene.send(request.body(Bytes::new()).unwrap()).await
    };
    let tags = [b"\"other\", W/", known.as_bytes()].concat();
    let unchanged = unless(&tags).await.done(304);
    assert_eq!(unchanged.headers["etag"], known);
    assert!(unchanged.bytes.is_empty());
    unless(b"\"other\"").await.done(200);

    let serial = hex(installed.certificate.serial());
    succeed(
        scene
            .made
            .command()
            .args(["certificate", "revoke", &serial]),
    );
    let after = list().await;
    assert_eq!((after.number(), after.len()), (3, 1));
    let changed = unless(known.as_bytes()).await.done(200);
    assert_ne!(changed.headers["etag"], known);
    assert!(after.revoked_at(installed.certificate.serial()).is_some());
    assert_eq!(list().await.number(), 3);

    let text = succeed(scene.made.command().args(["--json", "certificate", "list"]));
    let listed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(listed[0]["serial"], serial);
    assert_eq!(listed[0]["state"], "revoked");
    scene.end().await;
}

/// The program itself, as an operator of it runs it.
#[test]
fn curl_and_openssl_enrol_with_the_program_itself() {
    let made = Made::new();
    let running = Running::start(&made);
    let directory = made.token.directory().to_owned();
    let path = |name: &str| directory.join(name).display().to_string();
    let trust = made.state().join("server-ca.pem").display().to_string();
    let authority = made.state().join("ca.pem").display().to_string();
    let curl = |arguments: &[&str], address: &str| {
        let url = format!("{}{address}", running.origin);
        let mut command = Command::new("curl");
        command
            .args(["-sS", "--fail-with-body", "--cacert", &trust])
            .args(arguments)
            .arg(url);
        succeed(&mut command)
    };
    let openssl = |arguments: &[&str]| succeed(Command::new("openssl").args(arguments));

    // The authority, as a PKCS#7 that openssl reads.
    let cacerts = curl(&[], "/.well-known/est/cacerts");
    std::fs::write(path("ca.p7"), from_base64(cacerts.as_bytes()).unwrap()).unwrap();
    let printed = openssl(&[
        "pkcs7",
        "-inform",
        "DER",
        "-in",
        &path("ca.p7"),
        "-print_certs",
    ]);
    assert!(printed.contains("opcert issuing authority"), "{printed}");
    let attributes = curl(&[], "/.well-known/est/csrattrs");
    std::fs::write(path("attrs"), from_base64(attributes.as_bytes()).unwrap()).unwrap();
    let printed = openssl(&["asn1parse", "-inform", "DER", "-in", &path("attrs")]);
    assert!(printed.contains("ecdsa-with-SHA256"), "{printed}");

    // Code, ticket, request, certificate.
    let body = json!({
        "account": "acme", "operator": "alice", "password": PASSWORD, "purpose": "install",
        "computer": {"id": "c1", "name": "demo"},
    });
    let json_header = "content-type: application/json";
    let answer = curl(
        &["-H", json_header, "-d", &body.to_string()],
        "/v1/enrolment/codes",
    );
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let text = running.lines.recv_timeout(Duration::from_secs(10)).unwrap();
    let code = text.split("opcert code ").nth(1).unwrap()[..6].to_owned();
    assert_eq!(
        text.replace(&code, "123456"),
        "SMS to +8613800000001: opcert code 123456. Install an operating certificate on computer \
         \"demo\" for account acme. Valid 5 minutes. Tell nobody."
    );
    let body = json!({"code_id": answer["code_id"], "code": code}).to_string();
    let answer = curl(&["-H", json_header, "-d", &body], "/v1/enrolment/tickets");
    let ticket: Value = serde_json::from_str(&answer).unwrap();
    let credential = format!("alice:{}", ticket["ticket"].as_str().unwrap());
    openssl(&[
        "req",
        "-new",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-subj",
        "/CN=mallory",
        "-keyout",
        &path("key.pem"),
        "-outform",
        "DER",
        "-out",
        &path("csr.der"),
    ]);
    openssl(&["base64", "-in", &path("csr.der"), "-out", &path("csr.b64")]);
    let data = format!("@{}", path("csr.b64"));
    let enrolled = curl(
        &[
            "-u",
            &credential,
            "-H",
            "content-type: application/pkcs10",
            "--data-binary",
            &data,
        ],
        "/.well-known/est/simpleenroll",
    );
    std::fs::write(path("c.p7"), from_base64(enrolled.as_bytes()).unwrap()).unwrap();
    let pem = openssl(&[
        "pkcs7",
        "-inform",
        "DER",
        "-in",
        &path("c.p7"),
        "-print_certs",
    ]);
    std::fs::write(path("c.pem"), pem).unwrap();
    let shown = openssl(&["x509", "-in", &path("c.pem"), "-noout", "-text"]);
    let key = made.authority().public_key().fingerprint();
    let list = format!("/pki/{}.crl", hex(&key));
    for expected in [
        "Subject: O = acme, OU = c1, CN = alice",
        "CA:FALSE",
        "Digital Signature, Non Repudiation",
        "1.3.6.1.5.5.7.3.36, E-mail Protection",
        "URI:urn:opcert:account:acme:operator:alice:computer:c1",
        &format!("URI:https://127.0.0.1:18443{list}"),
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }

    // The list verifies, and openssl checks the certificate against it.
    curl(&["-o", &path("list.der")], &list);
    openssl(&[
        "crl",
        "-inform",
        "DER",
        "-in",
        &path("list.der"),
        "-out",
        &path("list.pem"),
        "-CAfile",
        &authority,
    ]);
    let verify = [
        "verify",
        "-crl_check",
        "-CAfile",
        &authority,
        "-CRLfile",
        &path("list.pem"),
        &path("c.pem"),
    ];
    assert!(openssl(&verify).contains("OK"));
    running.stop();
    let summary = opcert::audit::verify::verify(&made.state().join("audit")).unwrap();
    assert!(summary.records >= 4);
}

#[test]
fn commands_say_what_is_wrong_and_change_nothing() {
    let made = Made::new();

    // Nothing that exists is replaced.
    let before = std::fs::read(&made.config).unwrap();
    let pin = made.token.pin_file(&made.token.pin);
    let (code, _, error) = run(
        made.command()
            .arg("init")
            .arg("--state-directory")
            .arg(made.state())
            .args([
                "--origin",
                "https://127.0.0.1:18443",
                "--token",
                "pkcs11:token=accounts",
            ])
            .arg("--module")
            .arg(&made.token.module)
            .args(["--pin-source", &format!("file:{}", pin.display())]),
        "",
    );
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(std::fs::read(&made.config).unwrap(), before);

    for (arguments, input, exit, words) in [
        (
            &["account", "create", "acme", "--name", "Again"][..],
            "",
            1,
            "exists already",
        ),
        (
            &[
                "operator",
                "create",
                "carol",
                "--account",
                "other",
                "--mobile",
                "+8613800000003",
                "--password-file",
                "-",
            ],
            PASSWORD,
            1,
            "no account other",
        ),
        (
            &[
                "operator",
                "create",
                "carol",
                "--account",
                "acme",
                "--mobile",
                "+8613800000003",
                "--password-file",
                "-",
            ],
            "short",
            65,
            "8 characters",
        ),
        (
            &[
                "operator",
                "create",
                "carol",
                "--account",
                "acme",
                "--mobile",
                "138",
                "--password-file",
                "-",
            ],
            PASSWORD,
            64,
            "like +8613800000001",
        ),
        (
            &[
                "operator",
                "create",
                "Administration",
                "--account",
                "acme",
                "--mobile",
                "+8613800000003",
                "--password-file",
                "-",
            ],
            PASSWORD,
            65,
            "would read in records as the command line or the service",
        ),
        (
            &[
                "representative",
                "create",
                "service",
                "--name",
                "Rita",
                "--password-file",
                "-",
            ],
            PASSWORD,
            65,
            "would read in records as the command line or the service",
        ),
        (&["platform-key", "create", "shop"], "", 1, "exists already"),
        (&["certificate", "revoke", "0123"], "", 1, "no certificate"),
        (&["migrate"], "", 0, ""),
    ] {
        let (code, _, error) = run(made.command().args(arguments), input);
        assert_eq!(code, exit, "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }

    // Rules that no operation could fall under.
    for (kind, more, words) in [
        ("withdrawal", &[][..], "--currency is missing"),
        ("withdrawal", &["--currency", "cny"], "ISO 4217"),
        ("password-reset", &["--currency", "CNY"], "has no meaning"),
        ("password-reset", &["--from", "1"], "--from needs"),
    ] {
        let (code, _, error) = run(&mut made.approval_rule(kind, "2", more), "");
        assert_eq!(code, 65, "{kind} {more:?}: {error}");
        assert!(error.contains(words), "{kind} {more:?}: {error}");
    }

    // A configuration that others may change, with an unknown key, or none.
    let text = String::from_utf8(before).unwrap();
    let other = made.token.directory().join("other.toml");
    for (text, mode, code) in [
        (text.clone(), 0o666, "config-permissions"),
        (format!("colour = 1\n{text}"), 0o600, "config-unknown-key"),
        (text.replace("https://", "http://"), 0o600, "config-value"),
        ("[".to_owned(), 0o600, "config-syntax"),
    ] {
        files::write_atomic(&other, text.as_bytes(), mode).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_opcert-accountd"));
        command
            .arg("--config")
            .arg(&other)
            .args(["serve", "--allow-root"]);
        let (exit, _, error) = run(&mut command, "");
        assert_eq!(exit, 78, "{error}");
        assert!(error.contains(code), "{error}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_opcert-accountd"));
    command
        .arg("--config")
        .arg(made.token.directory().join("none"))
        .args(["serve", "--allow-root"]);
    let (exit, _, error) = run(&mut command, "");
    assert!(exit == 78 && error.contains("config-unreadable"), "{error}");

    // A taken port.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let changed = text.replace("127.0.0.1:0", &address);
    files::write_atomic(&other, changed.as_bytes(), 0o600).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_opcert-accountd"));
    command
        .arg("--config")
        .arg(&other)
        .args(["serve", "--allow-root"]);
    let (exit, _, error) = run(&mut command, "");
    assert!(exit == 69 && error.contains("port-in-use"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_on_one_database_share_every_limit() {
    let limits = |config: &mut Config| {
        config.quotas.computers = 2;
        config.quotas.certificates = 3;
    };
    let scene = Scene::with(limits).await;
    // A second instance: its own state directory and audit trail, the same database and token.
    let state = scene.made.token.directory().join("second");
    files::private_directory(&state).unwrap();
    let code_key = std::fs::read(scene.made.state().join("code-key")).unwrap();
    files::write_new(&state.join("code-key"), &code_key, 0o600).unwrap();
    let mut config = Config::load(&scene.made.config).unwrap();
    config.database = Some(config.database().unwrap());
    config.state_directory = state;
    limits(&mut config);
    let (handset, _texts) = mpsc::channel();
    let second = Service::open(&config, scene.clock.clone(), Gateway::Handset(handset))
        .await
        .unwrap();
    let instances = [&scene.service, &second];
    let request: RequestId = "test".parse().unwrap();

    // One code, handed in at both at once: one ticket.
    for _ in 0..3 {
        scene.hand.advance(Duration::from_secs(61));
        let (id, code) = scene.code("alice", "c0").await;
        let code = SecretText::new(code);
        let (one, two) = tokio::join!(
            instances[0].enrolment().ticket(&id, &code, &request),
            instances[1].enrolment().ticket(&id, &code, &request)
        );
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    }

    // One ticket, spent at both at once on two requests: one certificate.
    let ticket = SecretText::new(scene.ticket("alice", "c0").await);
    let (first, other) = (SoftKey::new(), SoftKey::new());
    let (csr_one, csr_two) = (first.csr(), other.csr());
    let (one, two) = tokio::join!(
        instances[0].enrolment().enrol(&ticket, &csr_one, &request),
        instances[1].enrolment().enrol(&ticket, &csr_two, &request)
    );
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    let (der, key) = match one {
        Ok(der) => (der, first),
        Err(_) => (two.unwrap(), other),
    };
    let alice = Installed {
        certificate: Certificate::from_der(&der).unwrap(),
        computer: "c0".into(),
        key,
    };

    // One place for a computer is left; four race for it, two at each. Then one for a certificate
    // on a computer that is there.
    for places in [["c1", "c2", "c3", "c4"], ["c0"; 4]] {
        let mut racers = tokio::task::JoinSet::new();
        for (index, computer) in places.into_iter().enumerate() {
            let ticket = SecretText::new(scene.ticket("bob", computer).await);
            let enrolment = instances[index % 2].enrolment().clone();
            let request = request.clone();
            racers.spawn(async move {
                let csr = SoftKey::new().csr();
                enrolment.enrol(&ticket, &csr, &request).await.is_ok()
            });
        }
        let won = racers.join_all().await.into_iter().filter(|won| *won);
        assert_eq!(won.count(), 1, "{places:?}");
    }

    // One operation, approved at both at once by two approvals: one counts.
    let created = scene.withdrawal("alice").await;
    let id = created.json["operation"]["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let approvals = [
        scene.approval(&alice, &created.text("challenge")),
        scene.approval(&alice, &created.text("challenge")),
    ];
    let (one, two) = tokio::join!(
        instances[0]
            .operations()
            .approve(&id, &approvals[0], &request),
        instances[1]
            .operations()
            .approve(&id, &approvals[1], &request)
    );
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");

    // Both make the next revocation list at once: both serve the same.
    let (one, two) = tokio::join!(
        instances[0].issuer().crl(None),
        instances[1].issuer().crl(None)
    );
    assert_eq!(one.unwrap().unwrap(), two.unwrap().unwrap());
    second.close().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_is_told_of_an_approval_by_a_signed_notice() {
    use opcert::account::config::Webhook;
    use opcert::account::webhooks::Courier;

    // The platform: it fails once, then takes the notice.
    let (sender, mut notices) = tokio::sync::mpsc::unbounded_channel();
    let calls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let router = axum::Router::new().route(
        "/hook",
        axum::routing::post(move |headers: http::HeaderMap, body: String| {
            let first = calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            let sender = sender.clone();
            async move {
                sender.send((headers, body)).unwrap();
                if first {
                    StatusCode::SERVICE_UNAVAILABLE
                } else {
                    StatusCode::OK
                }
            }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let directory = tempfile::tempdir().unwrap();
    let secret_file = directory.path().join("secret");
    let secret = "0123456789abcdef0123456789abcdef";
    files::write_new(&secret_file, secret.as_bytes(), 0o600).unwrap();
    let webhook = |ca_file| Webhook {
        url: format!("https://127.0.0.1:{port}/hook"),
        secret_file: secret_file.clone(),
        ca_file,
    };
    let scene = Scene::with(|config| config.webhook = Some(webhook(None))).await;
    let state = scene.made.state();
    let read = |name: &str| std::fs::read(state.join(name)).unwrap();
    let identity = Identity::from_pem(&read("server.pem"), &read("server-key.pem")).unwrap();
    let platform = Server::start(vec![Door {
        name: "platform",
        listener: Listener::Tcp {
            listener,
            tls: Some(tls::public(identity).unwrap()),
        },
        limits: Limits::default(),
        router,
    }]);
    let trust = webhook(Some(state.join("server-ca.pem")));
    let courier = Courier::new(Some(&trust), scene.service.clone()).unwrap();
    let task = tokio::spawn(courier.run());

    let alice = scene.installed("alice", "c1").await;
    let created = scene.withdrawal("alice").await;
    let approval = scene.approval(&alice, &created.text("challenge"));
    scene.post_approval(&created, &approval).await.done(200);

    let (first, first_body) = notices.recv().await.unwrap();
    // The retry is due five seconds later; the clock is ours, so it is woken by hand.
    let second = loop {
        scene.hand.advance(Duration::from_secs(6));
        scene.service.outbox_changed();
        let wait = tokio::time::timeout(Duration::from_millis(200), notices.recv());
        if let Ok(Some(notice)) = wait.await {
            break notice;
        }
    };
    assert_eq!(first["webhook-id"], second.0["webhook-id"]);
    assert_eq!(first_body, second.1);
    let body: Value = serde_json::from_str(&second.1).unwrap();
    assert_eq!(body["event"], "operation.approved");
    assert_eq!(body["operation"], created.json["operation"]["id"]);
    assert_eq!(body["approval"], approval.as_str());
    let header = |name: &str| second.0[name].to_str().unwrap();
    let signed = format!(
        "{}.{}.{}",
        header("webhook-id"),
        header("webhook-timestamp"),
        second.1
    );
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    let expected = base64(aws_lc_rs::hmac::sign(&key, signed.as_bytes()).as_ref());
    assert_eq!(header("webhook-signature"), format!("v1,{expected}"));

    task.abort();
    let _ = platform.drain(Duration::from_secs(5)).await;
    scene.end().await;
}
