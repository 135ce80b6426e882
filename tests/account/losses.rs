//! Ways back in after a loss, and what the platform and people are told on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use opcert::account::config::Webhook;
use opcert::account::outgoing::{Endpoint, secret, trust};
use opcert::account::sms::Gateway;
use opcert::account::store::messages;
use opcert::account::webhooks::{Courier, TRIES_PER_RECEIVER};
use opcert::base::encoding::base64;
use opcert::base::files;
use opcert::http::tls::{self, Identity};
use opcert::http::{Door, Limits, Listener, Server};

use super::people::Browser;
use super::scene::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes operators with roles, and a business representative.
fn people(scene: &Scene) {
    for (operator, mobile) in [("carol", "+8613800000003"), ("dave", "+8613800000004")] {
        let mut create = scene.made.command();
        create
            .args(["operator", "create", operator, "--account", "acme"])
            .args(["--mobile", mobile, "--role", "administrator"])
            .args(["--password-file", "-"]);
        succeed_with(&mut create, PASSWORD);
    }
    let mut create = scene.made.command();
    create
        .args(["representative", "create", "rita", "--name", "Rita"])
        .args(["--password-file", "-"]);
    succeed_with(&mut create, PASSWORD);
}

async fn put(browser: &Browser<'_>, scene: &Scene, path: &str, content: Vec<u8>) -> Answer {
    let request = Request::put(path)
        .header("cookie", &browser.cookie)
        .header("x-csrf-token", &browser.csrf);
    scene.send(request.body(content.into()).unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_number_is_changed_on_paper_after_a_delay() {
    let scene = Scene::new().await;
    people(&scene);
    let alice = Browser::log_in(&scene, "alice").await;
    let rita = Browser::with(&scene, json!({"operator": "rita", "password": PASSWORD})).await;
    let ask = |mobile: &str, password: &str| {
        Some(json!({"kind": "mobile-change", "new_mobile": mobile, "password": password}))
    };
    let path = "/v1/requests";
    alice
        .send(Method::POST, path, ask("+8613900000001", "wrong horse"))
        .await
        .refused(401, "login-failed");
    alice
        .send(Method::POST, path, ask("+8613800000001", PASSWORD))
        .await
        .refused(400, "malformed");
    let made = alice
        .send(Method::POST, path, ask("+8613900000001", PASSWORD))
        .await
        .done(201);
    assert_eq!(made.text("new_mobile"), "+86*******0001");
    alice
        .send(Method::POST, path, ask("+8613900000002", PASSWORD))
        .await
        .refused(409, "request-state");
    let path = format!("/v1/requests/{}", made.text("id"));

    // The form, filled in, in both formats, as other programs read them.
    let directory = scene.made.token.directory().to_owned();
    for format in ["pdf", "docx"] {
        let answer = alice.get(&format!("{path}/form/{format}")).await.done(200);
        let shown = answer.headers["content-disposition"].to_str().unwrap();
        assert_eq!(shown, format!("attachment; filename=\"request.{format}\""));
        std::fs::write(directory.join(format!("form.{format}")), &answer.bytes).unwrap();
    }
    let read = "import sys, zipfile, xml.dom.minidom as m\n\
                z = zipfile.ZipFile(sys.argv[1])\n\
                assert z.testzip() is None\n\
                t = m.parseString(z.read('word/document.xml')).documentElement\n\
                print(''.join(n.firstChild.data for n in t.getElementsByTagName('w:t') if n.firstChild))";
    let docx = directory.join("form.docx");
    let text = succeed(
        std::process::Command::new("python3")
            .args(["-c", read])
            .arg(&docx)
            .env("PYTHONIOENCODING", "utf-8"),
    );
    for expected in [
        "更换手机号申请",
        "Acme Ltd",
        "+8613900000001",
        "+86*******0001",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }

    // Papers are what they are, not what they are called.
    let picture = [&b"\xff\xd8\xff\xe0"[..], &[7; 200_000], b"\xff\xd9"].concat();
    let document = std::fs::read(&docx).unwrap();
    let photocopy = format!("{path}/papers/photocopy");
    for bad in [b"MZ program".to_vec(), document.clone()] {
        put(&alice, &scene, &photocopy, bad)
            .await
            .refused(422, "paper-refused");
    }
    put(&alice, &scene, &photocopy, vec![b' '; 5 * 1024 * 1024 + 1])
        .await
        .refused(413, "too-large");
    let submission = format!("{path}/submission");
    alice
        .send(Method::POST, &submission, None)
        .await
        .refused(409, "request-state");
    put(&alice, &scene, &photocopy, picture.clone())
        .await
        .done(200);
    put(&alice, &scene, &format!("{path}/papers/document"), document)
        .await
        .done(200);
    alice.send(Method::POST, &submission, None).await.done(200);
    for entry in walk(&scene.made.state()) {
        let bytes = std::fs::read(&entry).unwrap();
        let found = bytes.windows(64).any(|window| window == [7; 64]);
        assert!(!found, "{} holds the paper in the open", entry.display());
    }

    // The representative looks and decides; nobody else can.
    alice.get(&photocopy).await.refused(403, "forbidden");
    let seen = rita.get(&photocopy).await.done(200);
    assert_eq!(seen.bytes[..], picture[..]);
    assert_eq!(seen.headers["x-content-type-options"], "nosniff");
    let decision = |granted: bool| {
        Some(json!({"granted": granted, "reason": "papers match", "password": PASSWORD}))
    };
    let decide = format!("{path}/decision");
    alice
        .send(Method::POST, &decide, decision(true))
        .await
        .refused(403, "forbidden");
    let _ = scene.texts.try_iter().count();
    let granted = rita
        .send(Method::POST, &decide, decision(true))
        .await
        .done(200);
    assert_eq!(granted.text("state"), "granted");
    let told: Vec<String> = scene
        .texts
        .try_iter()
        .map(|text| text.expose().to_owned())
        .collect();
    for number in ["+8613800000001", "+8613800000003", "+8613800000004"] {
        assert!(told.iter().any(|text| text.contains(number)), "{told:?}");
    }

    // Nothing happens before the delay is over; then codes go to the new number.
    scene.hand.advance(DAY * 3 - Duration::from_secs(1));
    assert_eq!(scene.service.requests().carry_out().await.unwrap(), 0);
    scene.hand.advance(Duration::from_secs(1));
    assert_eq!(scene.service.requests().carry_out().await.unwrap(), 1);
    let _ = scene.texts.try_iter().count();
    scene.ask_code("alice", "c1", PASSWORD).await.done(202);
    let text = scene.texts.try_recv().unwrap();
    assert!(text.expose().starts_with("SMS to +8613900000001: "));

    // Papers go half a year after they came, and a request that nobody decides lapses with them.
    let alice = Browser::log_in(&scene, "alice").await;
    let left = alice
        .send(
            Method::POST,
            "/v1/requests",
            ask("+8613900000009", PASSWORD),
        )
        .await
        .done(201);
    let left = format!("/v1/requests/{}", left.text("id"));
    scene.hand.advance(DAY * 176);
    assert_eq!(scene.service.requests().purge().await.unwrap(), 0);
    scene.hand.advance(DAY * 10);
    assert_eq!(scene.service.requests().purge().await.unwrap(), 2);
    let rita = Browser::with(&scene, json!({"operator": "rita", "password": PASSWORD})).await;
    rita.get(&photocopy).await.refused(404, "not-found");
    let lapsed = rita.get(&left).await.done(200);
    assert_eq!(lapsed.text("state"), "withdrawn");

    // Who read what, and what became of it, is on record.
    let carol = Browser::log_in(&scene, "carol").await;
    let events = carol.get("/v1/events?limit=200").await.done(200).json;
    let count = |kind: &str| {
        let events = events["events"].as_array().unwrap();
        events.iter().filter(|event| event["kind"] == kind).count()
    };
    for (kind, expected) in [
        ("form-read", 2),
        ("paper-sent-in", 2),
        ("paper-read", 1),
        ("papers-purged", 2),
        ("request-lapsed", 1),
    ] {
        assert_eq!(count(kind), expected, "{kind}: {events}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_together_give_a_lost_computer_back_and_can_stop_it() {
    let scene = Scene::new().await;
    people(&scene);
    let set = ["account", "set", "acme", "--later-installs", "approval"];
    let carol_lost = scene.installed("carol", "c1").await;
    let dave_has = scene.installed("dave", "c2").await;
    let erin = [
        "operator",
        "set",
        "bob",
        "--account",
        "acme",
        "--role",
        "administrator",
    ];
    succeed(scene.made.command().args(erin));
    let bob_has = scene.installed("bob", "c3").await;
    succeed(scene.made.command().args(set));
    let alice = Browser::log_in(&scene, "alice").await;
    let carol = Browser::log_in(&scene, "carol").await;
    let body = || Some(json!({"kind": "computer-recovery", "password": PASSWORD}));
    alice
        .send(Method::POST, "/v1/requests", body())
        .await
        .refused(403, "forbidden");
    let approve = async |id: &str| {
        let path = format!("/v1/requests/{id}/approval");
        // However many ask at once, they approve one operation.
        let (dave, bob) = (
            Browser::log_in(&scene, "dave").await,
            Browser::log_in(&scene, "bob").await,
        );
        let ask = || async {
            let (one, two) = tokio::join!(
                dave.send(Method::POST, &path, None),
                bob.send(Method::POST, &path, None)
            );
            [one, two].map(|asked| asked.done(201).json["operation"]["id"].clone())
        };
        let (one, two, three) = tokio::join!(ask(), ask(), ask());
        let asked: std::collections::HashSet<_> = [one, two, three].concat().into_iter().collect();
        assert_eq!(asked.len(), 1, "{asked:?}");
        carol
            .send(Method::POST, &path, None)
            .await
            .refused(403, "forbidden");
        for (operator, installed) in [("dave", &dave_has), ("bob", &bob_has)] {
            let browser = Browser::log_in(&scene, operator).await;
            let asked = browser.send(Method::POST, &path, None).await.done(201);
            assert_eq!(asked.json["operation"]["approvals_needed"], 2);
            let approval = scene.approval(installed, &asked.text("challenge"));
            let operation = asked.json["operation"]["id"].as_str().unwrap();
            let approvals = format!("/v1/operations/{operation}/approvals");
            scene.post(&approvals, JOSE, approval).await.done(200);
        }
        let path = format!("/v1/requests/{id}");
        let seen = carol.get(&path).await.done(200);
        assert_eq!(seen.text("state"), "granted");
    };

    // Granted, and stopped by another administrator before it takes effect.
    let made = carol
        .send(Method::POST, "/v1/requests", body())
        .await
        .done(201);
    approve(&made.text("id")).await;
    let withdraw = format!("/v1/requests/{}/withdrawal", made.text("id"));
    let dave = Browser::log_in(&scene, "dave").await;
    dave.send(Method::POST, &withdraw, None).await.done(200);
    scene.hand.advance(DAY * 4);
    assert_eq!(scene.service.requests().carry_out().await.unwrap(), 0);

    // Granted and let be: the lost certificates are gone, and one installation waits for nobody.
    let carol = Browser::log_in(&scene, "carol").await;
    let made = carol
        .send(Method::POST, "/v1/requests", body())
        .await
        .done(201);
    let path = format!("/v1/requests/{}/approval", made.text("id"));
    for (operator, installed) in [("bob", &bob_has), ("dave", &dave_has)] {
        let browser = Browser::log_in(&scene, operator).await;
        let asked = browser.send(Method::POST, &path, None).await.done(201);
        let approval = scene.approval(installed, &asked.text("challenge"));
        let operation = asked.json["operation"]["id"].as_str().unwrap();
        let approvals = format!("/v1/operations/{operation}/approvals");
        scene.post(&approvals, JOSE, approval).await.done(200);
    }
    scene.hand.advance(DAY * 3);
    assert_eq!(scene.service.requests().carry_out().await.unwrap(), 1);
    let created = scene.withdrawal("carol").await;
    let late = scene.approval(&carol_lost, &created.text("challenge"));
    scene
        .post_approval(&created, &late)
        .await
        .refused(422, "certificate-revoked");
    for (computer, held) in [("c4", false), ("c5", true)] {
        scene.hand.advance(Duration::from_secs(61));
        let (id, code) = scene.code("carol", computer).await;
        let answer = scene.redeem(&id, &code).await.done(201);
        assert_eq!(answer.json["held"], held, "{computer}");
        if !held {
            let csr = SoftKey::new().csr();
            scene.enrol(&answer.text("ticket"), &csr).await.done(200);
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_together_change_a_lost_number_without_papers() {
    let scene = Scene::new().await;
    people(&scene);
    let dave_has = scene.installed("dave", "c2").await;
    let carol_has = scene.installed("carol", "c3").await;
    let bob = Browser::log_in(&scene, "bob").await;
    let body = json!({
        "kind": "mobile-change", "new_mobile": "+8613900000007", "password": PASSWORD,
    });
    let made = bob
        .send(Method::POST, "/v1/requests", Some(body))
        .await
        .done(201);
    let request = format!("/v1/requests/{}", made.text("id"));
    let approval = format!("{request}/approval");
    bob.send(Method::POST, &approval, None)
        .await
        .refused(403, "forbidden");
    for (operator, installed, state) in [
        ("dave", &dave_has, "open"),
        ("carol", &carol_has, "granted"),
    ] {
        let browser = Browser::log_in(&scene, operator).await;
        let asked = browser.send(Method::POST, &approval, None).await.done(201);
        let statement = &asked.json["operation"]["statement"];
        assert_eq!(statement["payee"], "+8613900000007 for bob");
        let approval = scene.approval(installed, &asked.text("challenge"));
        let operation = asked.json["operation"]["id"].as_str().unwrap();
        let approvals = format!("/v1/operations/{operation}/approvals");
        scene.post(&approvals, JOSE, approval).await.done(200);
        assert_eq!(bob.get(&request).await.done(200).text("state"), state);
    }

    // As with papers: told, and not at once.
    let told: Vec<String> = scene
        .texts
        .try_iter()
        .map(|text| text.expose().to_owned())
        .collect();
    assert!(
        told.iter().any(|text| text.contains("+8613800000002")),
        "{told:?}"
    );
    assert_eq!(scene.service.requests().carry_out().await.unwrap(), 0);
    scene.hand.advance(DAY * 3);
    assert_eq!(scene.service.requests().carry_out().await.unwrap(), 1);
    let _ = scene.texts.try_iter().count();
    scene.ask_code("bob", "c1", PASSWORD).await.done(202);
    let text = scene.texts.try_recv().unwrap();
    assert!(text.expose().starts_with("SMS to +8613900000007: "));
    scene.end().await;
}

/// Somebody else's server: what it was sent, and it fails the first `failures` times.
struct Receiver {
    port: u16,
    server: Server,
    got: tokio::sync::mpsc::UnboundedReceiver<(http::HeaderMap, String)>,
}

impl Receiver {
    async fn start(state: &std::path::Path, failures: usize) -> Self {
        let (sender, got) = tokio::sync::mpsc::unbounded_channel();
        let calls = Arc::new(AtomicUsize::new(0));
        let router = axum::Router::new().route(
            "/in",
            axum::routing::post(move |headers: http::HeaderMap, body: String| {
                let fails = calls.fetch_add(1, Ordering::SeqCst) < failures;
                sender.send((headers, body)).unwrap();
                async move {
                    if fails {
                        StatusCode::SERVICE_UNAVAILABLE
                    } else {
                        StatusCode::OK
                    }
                }
            }),
        );
        Self::with(state, router, got).await
    }

    async fn with(
        state: &std::path::Path,
        router: axum::Router,
        got: tokio::sync::mpsc::UnboundedReceiver<(http::HeaderMap, String)>,
    ) -> Self {
        let read = |name: &str| std::fs::read(state.join(name)).unwrap();
        let identity = Identity::from_pem(&read("server.pem"), &read("server-key.pem")).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server::start(vec![Door {
            name: "receiver",
            listener: Listener::Tcp {
                listener,
                tls: Some(tls::public(identity).unwrap()),
            },
            limits: Limits::default(),
            router,
        }]);
        Self { port, server, got }
    }
}

fn signature(secret: &[u8], headers: &http::HeaderMap, body: &str) -> String {
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    let signed = format!(
        "{}.{}.{body}",
        header("webhook-id"),
        header("webhook-timestamp")
    );
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
    format!("v1,{}", base64(tag.as_ref()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_gets_a_text_until_it_takes_it() {
    let scene = Scene::new().await;
    let state = scene.made.state();
    let mut receiver = Receiver::start(&state, 2).await;
    let secret_file = scene.made.token.directory().join("gateway-secret");
    files::write_new(&secret_file, &[b's'; 40], 0o600).unwrap();
    let endpoint = Endpoint::new(
        &format!("https://127.0.0.1:{}/in", receiver.port),
        trust(Some(&state.join("server-ca.pem"))).unwrap(),
        &secret(&secret_file).unwrap(),
    )
    .unwrap();
    let texts = opcert::account::sms::Texts::new(
        scene.service.store().clone(),
        scene.clock.clone(),
        Gateway::Webhook(Arc::new(endpoint)),
    );
    let until = scene.clock.now() + DAY;
    let (mobile, texts) = (&"+8613800000001".parse().unwrap(), &texts);
    let outgoing = scene
        .service
        .store()
        .transaction("test", move |tx| {
            Box::pin(async move {
                let text = opcert::base::secret::SecretText::new("hello".into());
                texts.prepare(tx, mobile, "news", text, until).await
            })
        })
        .await
        .unwrap_or_else(|error: opcert::account::store::StoreError| panic!("{error:?}"));
    texts.send(outgoing).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let (headers, body) = receiver.got.recv().await.unwrap();
        assert_eq!(
            headers["webhook-signature"],
            signature(&[b's'; 40], &headers, &body)
        );
        assert_eq!(headers["webhook-id"], headers["idempotency-key"]);
        let said: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(said["to"], "+8613800000001");
        assert_eq!(said["text"], "hello");
        ids.push(headers["webhook-id"].clone());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    // The row comes to say so; there is no event to wait for but the row itself.
    let sent = loop {
        let sent = scene
            .service
            .store()
            .read("test", |tx| Box::pin(messages::list(tx, 10)))
            .await
            .unwrap_or_else(|error: opcert::account::store::StoreError| panic!("{error:?}"));
        if sent[0].state != "sending" {
            break sent;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((sent[0].state.as_str(), sent[0].attempts), ("accepted", 3));
    let _ = receiver.server.drain(Duration::from_secs(5)).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_is_told_in_order_and_asks_again_for_what_was_given_up() {
    let scene = Scene::new().await;
    let state = scene.made.state();
    let mut receiver = Receiver::start(&state, 20).await;
    let url = format!("https://127.0.0.1:{}/in", receiver.port);
    let body = || Some(json!({ "url": url }));
    let path = "/v1/webhooks";
    let post = async |body, key| scene.platform_with(Method::POST, path, body, key).await;
    post(Some(json!({"url": "http://shop.example/"})), None)
        .await
        .refused(400, "malformed");
    let made = post(body(), Some("k-1")).await.done(201);
    let again = post(body(), Some("k-1")).await.done(201);
    assert_eq!(made.bytes, again.bytes);
    post(Some(json!({"url": format!("{url}/other")})), Some("k-1"))
        .await
        .refused(409, "idempotency-conflict");
    let shared = made.text("secret");
    let id = made.json["subscription"]["id"].as_str().unwrap().to_owned();

    // A key without the scope sees nothing of it.
    let create = [
        "platform-key",
        "create",
        "reader",
        "--scope",
        "operations:read",
    ];
    let reader = succeed(scene.made.command().args(create));
    let request = Request::get(path).header("authorization", format!("Bearer {}", reader.trim()));
    let answer = scene.send(request.body(Bytes::new()).unwrap()).await;
    answer.refused(403, "forbidden");

    // The first event fails until it is given up; the second waits behind it, and then comes.
    let currency = ["--currency", "CNY"];
    succeed(&mut scene.made.approval_rule("withdrawal", "2", &currency));
    let alice = scene.installed("alice", "c1").await;
    let created = scene.withdrawal("alice").await;
    let operation = created.json["operation"]["id"].as_str().unwrap();
    let approval = scene.approval(&alice, &created.text("challenge"));
    scene.post_approval(&created, &approval).await.done(200);
    let cancel = format!("/v1/operations/{operation}/cancellation");
    scene.platform(Method::POST, &cancel, None).await.done(200);
    let trusting = Webhook {
        url: url.clone(),
        secret_file: scene.made.token.directory().join("hook-secret"),
        ca_file: Some(state.join("server-ca.pem")),
    };
    files::write_new(&trusting.secret_file, &[b's'; 40], 0o600).unwrap();
    let courier = Courier::new(Some(&trusting), scene.service.clone()).unwrap();
    let task = tokio::spawn(courier.run());
    let mut events = Vec::new();
    while events.len() < 21 {
        scene.hand.advance(Duration::from_secs(3600));
        scene.service.outbox_changed();
        let wait = tokio::time::timeout(Duration::from_millis(200), receiver.got.recv());
        if let Ok(Some((headers, body))) = wait.await {
            assert_eq!(
                headers["webhook-signature"],
                signature(shared.as_bytes(), &headers, &body)
            );
            let said: Value = serde_json::from_str(&body).unwrap();
            events.push((
                said["event"].as_str().unwrap().to_owned(),
                said["place"].clone(),
            ));
        }
    }
    assert!(
        events[..20]
            .iter()
            .all(|event| event.0 == "operation.approval"),
        "{events:?}"
    );
    assert_eq!(events[20], ("operation.cancelled".into(), json!(2)));

    // The one that was given up can be seen, and asked for again.
    let deliveries = format!("{path}/{id}/deliveries");
    let dead = scene
        .platform(Method::GET, &format!("{deliveries}?dead=true"), None)
        .await
        .done(200)
        .json;
    assert_eq!(dead["deliveries"].as_array().unwrap().len(), 1);
    assert_eq!(dead["deliveries"][0]["state"], "dead");
    assert_eq!(dead["deliveries"][0]["attempts"], 20);
    let delivery = dead["deliveries"][0]["id"].as_str().unwrap();
    let replay = format!("{deliveries}/{delivery}/replay");
    let again = async |path: &str| {
        scene
            .platform_with(Method::POST, path, None, Some("r-1"))
            .await
    };
    again(&replay).await.done(202);
    let (_, told) = receiver.got.recv().await.unwrap();
    assert!(told.contains("operation.approval"), "{told}");
    again(&replay).await.done(202);
    again(&format!("{deliveries}/other/replay"))
        .await
        .refused(409, "idempotency-conflict");
    assert!(receiver.got.try_recv().is_err());
    let ended = format!("{path}/{id}");
    scene.platform(Method::DELETE, &ended, None).await.done(204);
    scene
        .platform(Method::DELETE, &ended, None)
        .await
        .refused(404, "not-found");
    // The key stands for the one that is over; it makes no other.
    post(body(), Some("k-1"))
        .await
        .refused(409, "idempotency-conflict");
    task.abort();
    let _ = receiver.server.drain(Duration::from_secs(5)).await;
    scene.end().await;
}

/// A server that answers nothing until so many requests are there at once.
async fn gathering(state: &std::path::Path, together: usize) -> (Receiver, Arc<AtomicUsize>) {
    let (sender, got) = tokio::sync::mpsc::unbounded_channel();
    let barrier = Arc::new(tokio::sync::Barrier::new(together));
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let router = axum::Router::new().route(
        "/in",
        axum::routing::post(move |headers: http::HeaderMap, body: String| {
            seen.fetch_add(1, Ordering::SeqCst);
            let (barrier, sender) = (barrier.clone(), sender.clone());
            async move {
                barrier.wait().await;
                sender.send((headers, body)).unwrap();
                StatusCode::OK
            }
        }),
    );
    (Receiver::with(state, router, got).await, calls)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_slow_holds_up_nobody_and_gets_nothing_twice() {
    let scene = Scene::new().await;
    let state = scene.made.state();
    // The slow one answers eight at a time: less than that side by side, and it never answers.
    let (mut slow, slow_calls) = gathering(&state, TRIES_PER_RECEIVER).await;
    let mut quick = Receiver::start(&state, 0).await;
    for receiver in [&slow, &quick] {
        let body = json!({"url": format!("https://127.0.0.1:{}/in", receiver.port)});
        scene
            .platform(Method::POST, "/v1/webhooks", Some(body))
            .await
            .done(201);
    }
    let trusting = Webhook {
        url: format!("https://127.0.0.1:{}/in", quick.port),
        secret_file: scene.made.token.directory().join("hook-secret"),
        ca_file: Some(state.join("server-ca.pem")),
    };
    files::write_new(&trusting.secret_file, &[b's'; 40], 0o600).unwrap();
    let courier = Courier::new(Some(&trusting), scene.service.clone()).unwrap();
    let task = tokio::spawn(courier.run());

    // One short of what the slow one waits for: it holds them all, and the quick one has them.
    let cancel = async || {
        let created = scene.withdrawal("alice").await;
        let operation = created.json["operation"]["id"].as_str().unwrap();
        let path = format!("/v1/operations/{operation}/cancellation");
        scene.platform(Method::POST, &path, None).await.done(200);
    };
    for _ in 1..TRIES_PER_RECEIVER {
        cancel().await;
    }
    for _ in 1..TRIES_PER_RECEIVER {
        quick.got.recv().await.unwrap();
    }
    assert!(slow.got.try_recv().is_err());

    // The hold of what is under way ends by the clock; nothing is sent again for that.
    scene.hand.advance(Duration::from_secs(3600));
    cancel().await;
    let mut events = Vec::new();
    for _ in 0..TRIES_PER_RECEIVER {
        let (headers, _) = slow.got.recv().await.unwrap();
        events.push(headers["webhook-id"].to_str().unwrap().to_owned());
    }
    quick.got.recv().await.unwrap();
    events.sort_unstable();
    events.dedup();
    assert_eq!(events.len(), TRIES_PER_RECEIVER);
    assert_eq!(slow_calls.load(Ordering::SeqCst), TRIES_PER_RECEIVER);
    task.abort();
    for receiver in [slow, quick] {
        let _ = receiver.server.drain(Duration::from_secs(5)).await;
    }
    scene.end().await;
}
