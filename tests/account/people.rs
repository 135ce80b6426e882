//! People at the portal: log-in, sessions, lists, deletion, notices.

use std::time::Duration;

use axum::body::Bytes;
use http::{Method, Request};
use serde_json::{Value, json};

use opcert::base::encoding::hex;

use super::scene::*;

/// Somebody who is logged in.
pub(crate) struct Browser<'a> {
    scene: &'a Scene,
    pub(crate) cookie: String,
    pub(crate) csrf: String,
}

impl<'a> Browser<'a> {
    pub(crate) async fn log_in(scene: &'a Scene, operator: &str) -> Self {
        let body = json!({"account": "acme", "operator": operator, "password": PASSWORD});
        Self::with(scene, body).await
    }

    pub(crate) async fn with(scene: &'a Scene, body: Value) -> Self {
        let answer = scene
            .post("/v1/sessions", JSON, body.to_string())
            .await
            .done(201);
        let set = answer.headers["set-cookie"].to_str().unwrap();
        let cookie = set.split(';').next().unwrap().to_owned();
        for attribute in ["Secure", "HttpOnly", "SameSite=Strict", "Path=/"] {
            assert!(set.contains(attribute), "{set}");
        }
        Self {
            scene,
            cookie,
            csrf: answer.text("csrf_token"),
        }
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("cookie", format!("other=1; {}", self.cookie))
            .header("x-csrf-token", &self.csrf)
            .header("content-type", JSON);
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.scene.send(request.body(body.into()).unwrap()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_by_itself_and_a_forged_request_is_refused() {
    let scene = Scene::new().await;
    let alice = Browser::log_in(&scene, "alice").await;
    let seen = alice.get("/v1/session").await.done(200);
    assert_eq!(seen.json["operator"], "alice");
    assert_eq!(seen.json["role"], "operator");
    assert_eq!(seen.json["representative"], false);
    assert_eq!(seen.text("csrf_token"), alice.csrf);

    // Nothing in the state directory holds the token.
    let token = alice.cookie.split_once('=').unwrap().1.as_bytes();
    for entry in walk(&scene.made.state()) {
        let bytes = std::fs::read(&entry).unwrap();
        let found = bytes.windows(token.len()).any(|window| window == token);
        assert!(!found, "{} holds the token", entry.display());
    }

    // A change needs the other token, too.
    for csrf in ["", "wrong"] {
        let forged = Request::delete("/v1/session")
            .header("cookie", &alice.cookie)
            .header("x-csrf-token", csrf);
        let answer = scene.send(forged.body(Bytes::new()).unwrap()).await;
        answer.refused(403, "csrf-refused");
    }

    // A session lasts a quarter of an hour without use, and eight hours at most.
    for _ in 0..3 {
        scene.hand.advance(Duration::from_secs(14 * 60));
        alice.get("/v1/session").await.done(200);
    }
    scene.hand.advance(Duration::from_secs(15 * 60));
    alice.get("/v1/session").await.refused(401, "session-ended");
    let alice = Browser::log_in(&scene, "alice").await;
    for _ in 0..33 {
        scene.hand.advance(Duration::from_secs(14 * 60));
        alice.get("/v1/session").await.done(200);
    }
    scene.hand.advance(Duration::from_secs(18 * 60));
    alice.get("/v1/session").await.refused(401, "session-ended");

    // Logging out ends this one and no other; a new password ends all.
    let one = Browser::log_in(&scene, "alice").await;
    let two = Browser::log_in(&scene, "alice").await;
    one.send(Method::DELETE, "/v1/session", None)
        .await
        .done(204);
    one.get("/v1/session").await.refused(401, "session-ended");
    two.get("/v1/session").await.done(200);
    let mut set = scene.made.command();
    set.args(["operator", "set", "alice", "--account", "acme"])
        .args(["--password-file", "-"]);
    succeed_with(&mut set, "another horse");
    two.get("/v1/session").await.refused(401, "session-ended");
    scene.get("/v1/session").await.refused(401, "session-ended");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slow_and_locks_nobody_out() {
    let scene = Scene::new().await;
    let try_password = async |operator: &str, password: &str| {
        let body = json!({"account": "acme", "operator": operator, "password": password});
        scene.post("/v1/sessions", JSON, body.to_string()).await
    };
    // Somebody who exists and somebody who does not get the same answers.
    for operator in ["alice", "nobody"] {
        for _ in 0..6 {
            try_password(operator, "wrong horse")
                .await
                .refused(401, "login-failed");
        }
        let answer = try_password(operator, PASSWORD).await;
        answer.refused(429, "login-throttled");
        assert_eq!(answer.headers["retry-after"], "1");
        // It counts for SMS codes, too: there is one count for one password.
        scene
            .ask_code(operator, "c1", PASSWORD)
            .await
            .refused(429, "login-throttled");
    }
    // The right password is taken once the wait is over, and clears the count.
    scene.hand.advance(Duration::from_secs(1));
    try_password("alice", PASSWORD).await.done(201);
    for _ in 0..5 {
        try_password("alice", "wrong horse")
            .await
            .refused(401, "login-failed");
    }
    try_password("alice", PASSWORD).await.done(201);

    // However long somebody guesses, the wait stays bounded.
    let mut waits = Vec::new();
    for _ in 0..20 {
        let answer = try_password("bob", "wrong horse").await;
        if answer.status == 429 {
            let wait = answer.json["retry_after"].as_u64().unwrap();
            waits.push(wait);
            scene.hand.advance(Duration::from_secs(wait));
        }
    }
    assert!(waits.windows(2).all(|pair| pair[0] < pair[1]), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= 900), "{waits:?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_login_takes_its_codes_tickets_and_sessions_along() {
    let scene = Scene::new().await;
    let installed = scene.installed("bob", "c1").await;
    let session = Browser::log_in(&scene, "bob").await;
    let ticket = scene.ticket("bob", "c2").await;
    scene.hand.advance(Duration::from_secs(61));
    let (code_id, code) = scene.code("bob", "c3").await;
    scene.hand.advance(Duration::from_secs(61));
    let (other_id, other_code) = scene.code("alice", "c4").await;
    let created = scene.withdrawal("bob").await;

    let disable = ["operator", "disable", "bob", "--account", "acme"];
    succeed(scene.made.command().args(disable));
    scene
        .redeem(&code_id, &code)
        .await
        .refused(422, "sms-code-spent");
    let csr = SoftKey::new().csr();
    scene
        .enrol(&ticket, &csr)
        .await
        .refused(422, "ticket-invalid");
    let short = ticket.rsplit('.').next().unwrap();
    scene
        .enrol(short, &csr)
        .await
        .refused(422, "ticket-invalid");
    session
        .get("/v1/session")
        .await
        .refused(401, "session-ended");
    let approval = scene.approval(&installed, &created.text("challenge"));
    scene
        .post_approval(&created, &approval)
        .await
        .refused(422, "statement-invalid");

    // Nobody else's are touched; a new password ends one's own.
    let answer = scene.redeem(&other_id, &other_code).await.done(201);
    let ticket = answer.text("ticket");
    let mut set = scene.made.command();
    set.args(["operator", "set", "alice", "--account", "acme"])
        .args(["--password-file", "-"]);
    succeed_with(&mut set, "another horse");
    scene
        .enrol(&ticket, &csr)
        .await
        .refused(422, "ticket-invalid");
    scene.end().await;
}

fn administrator(scene: &Scene, operator: &str, role: &str) {
    let set = [
        "operator",
        "set",
        operator,
        "--account",
        "acme",
        "--role",
        role,
    ];
    succeed(scene.made.command().args(set));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_listed_searched_and_deleted_by_those_who_may() {
    let scene = Scene::new().await;
    administrator(&scene, "bob", "administrator");
    let one = scene.installed("alice", "c1").await;
    let two = scene.installed("alice", "c2").await;
    let bobs = scene.installed("bob", "c2").await;
    let serial = |installed: &Installed| hex(installed.certificate.serial());
    // The administrator got a text with each, his code aside.
    let mut texts = scene.news.lock().unwrap().clone();
    texts.extend(scene.texts.try_iter().map(|text| text.expose().to_owned()));
    assert_eq!(texts.len(), 3);
    assert!(
        texts
            .iter()
            .all(|text| text.starts_with("SMS to +8613800000002: ")
                && text.contains("was installed on computer")),
        "{texts:?}"
    );

    // Newest first, in pages; found by any part, in any case; nothing is a pattern.
    let alice = Browser::log_in(&scene, "alice").await;
    let list = alice.get("/v1/certificates").await.done(200).json;
    let serials: Vec<&str> = list["certificates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["serial"].as_str().unwrap())
        .collect();
    assert_eq!(serials, [serial(&bobs), serial(&two), serial(&one)]);
    assert_eq!(list["certificates"][2]["computer_name"], "the c1");
    assert_eq!(list["certificates"][2]["state"], "active");
    assert_eq!(list["quota"]["computers"], 2);
    assert_eq!(list["quota"]["certificates"], 3);
    assert_eq!(list["quota"]["computers_limit"], 10);
    let found = async |query: &str| {
        let answer = alice
            .get(&format!("/v1/certificates?{query}"))
            .await
            .done(200);
        answer.json["certificates"].as_array().unwrap().len()
    };
    assert_eq!(found("search=THE%20C2").await, 2);
    assert_eq!(found("search=ALI").await, 2);
    assert_eq!(found(&format!("search={}", &serial(&one)[4..20])).await, 1);
    assert_eq!(found("search=%25").await, 0);
    assert_eq!(found("search=_").await, 0);
    assert_eq!(found("computer=c2&operator=bob").await, 1);
    assert_eq!(found("limit=1").await, 1);
    assert_eq!(found(&format!("after={}", serial(&two))).await, 1);
    alice
        .get("/v1/certificates?colour=red")
        .await
        .refused(400, "malformed");
    let computers = alice.get("/v1/computers").await.done(200).json;
    assert_eq!(computers["computers"][1]["name"], "the c2");
    assert_eq!(computers["computers"][1]["active_certificates"], 2);

    // Nobody sees another account.
    succeed(
        scene
            .made
            .command()
            .args(["account", "create", "other", "--name", "Other"]),
    );
    let mut create = scene.made.command();
    create
        .args(["operator", "create", "eve", "--account", "other"])
        .args(["--mobile", "+8613800000009", "--role", "administrator"])
        .args(["--password-file", "-"]);
    succeed_with(&mut create, PASSWORD);
    let eve = json!({"account": "other", "operator": "eve", "password": PASSWORD});
    let eve = Browser::with(&scene, eve).await;
    let seen = eve.get("/v1/certificates").await.done(200).json;
    assert_eq!(seen["certificates"], json!([]));
    let path = |installed: &Installed| format!("/v1/certificates/{}", serial(installed));
    eve.send(Method::DELETE, &path(&one), None)
        .await
        .refused(404, "not-found");

    // One's own is gone at once; another's is not an operator's to delete.
    alice
        .send(Method::DELETE, &path(&bobs), None)
        .await
        .refused(403, "forbidden");
    let deleted = alice
        .send(Method::DELETE, &path(&one), None)
        .await
        .done(200);
    assert_eq!(deleted.json["revoked"], json!([serial(&one)]));
    alice
        .send(Method::DELETE, &path(&one), None)
        .await
        .refused(422, "certificate-revoked");
    assert_eq!(found("active=true").await, 2);

    // An administrator deletes another's with a certificate's approval, and not without.
    let bob = Browser::log_in(&scene, "bob").await;
    let asked = bob.send(Method::DELETE, &path(&two), None).await.done(202);
    assert_eq!(asked.json["revoked"], json!([]));
    assert_eq!(found("active=true").await, 2);
    let challenge = asked.json["approval"]["challenge"].as_str().unwrap();
    let approval = scene.approval(&bobs, challenge);
    let operation = asked.json["approval"]["operation"]["id"].as_str().unwrap();
    let approvals = format!("/v1/operations/{operation}/approvals");
    scene.post(&approvals, JOSE, approval).await.done(200);
    assert_eq!(found("active=true").await, 1);
    let created = scene.withdrawal("alice").await;
    let late = scene.approval(&two, &created.text("challenge"));
    scene
        .post_approval(&created, &late)
        .await
        .refused(422, "certificate-revoked");

    // Break-glass: for administrators, with the password again, and everybody is told.
    let mut create = scene.made.command();
    create
        .args(["representative", "create", "rita", "--name", "Rita"])
        .args(["--password-file", "-"]);
    succeed_with(&mut create, PASSWORD);
    let body = |password: &str| {
        Some(json!({"computer": "c2", "password": password, "reason": "key-compromise"}))
    };
    let path = "/v1/break-glass";
    alice
        .send(Method::POST, path, body(PASSWORD))
        .await
        .refused(403, "forbidden");
    bob.send(Method::POST, path, body("wrong horse"))
        .await
        .refused(401, "login-failed");
    let cut = bob.send(Method::POST, path, body(PASSWORD)).await.done(200);
    assert_eq!(cut.json["revoked"], json!([serial(&bobs)]));
    let rita = json!({"operator": "rita", "password": PASSWORD});
    let rita = Browser::with(&scene, rita).await;
    let told = rita.get("/v1/notices").await.done(200).json;
    assert_eq!(told["notices"][0]["kind"], "break-glass-revocation");
    assert_eq!(told["notices"][0]["facts"]["by"], "bob");
    assert_eq!(told["notices"].as_array().unwrap().len(), 1);
    rita.get("/v1/certificates").await.refused(403, "forbidden");

    // The administrators read all of it, each marks what he has read; operators do not.
    alice.get("/v1/notices").await.refused(403, "forbidden");
    alice.get("/v1/events").await.refused(403, "forbidden");
    let notices = bob.get("/v1/notices").await.done(200).json;
    let kinds: Vec<&str> = notices["notices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|notice| notice["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds
            .iter()
            .filter(|kind| **kind == "certificate-issued")
            .count(),
        3
    );
    assert_eq!(
        kinds
            .iter()
            .filter(|kind| **kind == "certificate-revoked")
            .count(),
        2
    );
    let id = notices["notices"][0]["id"].as_str().unwrap();
    assert_eq!(notices["notices"][0]["read"], false);
    let read = format!("/v1/notices/{id}/read");
    eve.send(Method::POST, &read, None)
        .await
        .refused(404, "not-found");
    bob.send(Method::POST, &read, None).await.done(204);
    let notices = bob.get("/v1/notices").await.done(200).json;
    assert_eq!(notices["notices"][0]["read"], true);
    let first = bob.get("/v1/events?limit=5").await.done(200).json;
    let next = first["next"].as_str().unwrap();
    let second = bob.get(&format!("/v1/events?after={next}")).await.done(200);
    assert_eq!(first["events"].as_array().unwrap().len(), 5);
    assert_ne!(second.json["events"][0]["id"], first["events"][4]["id"]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_installation_waits_for_an_administrator_where_the_account_wants_that() {
    let scene = Scene::new().await;
    administrator(&scene, "bob", "administrator");
    let set = ["account", "set", "acme", "--later-installs", "approval"];
    succeed(scene.made.command().args(set));

    // The first of the account needs nobody.
    let bobs = scene.installed("bob", "c1").await;
    scene.hand.advance(Duration::from_secs(61));
    let _ = scene.texts.try_iter().count();
    let (id, code) = scene.code("alice", "c2").await;
    let answer = scene.redeem(&id, &code).await.done(201);
    assert_eq!(answer.json["held"], true);
    let ticket = answer.text("ticket");
    let csr = SoftKey::new().csr();
    // RFC 7030 section 4.2.3: 202, and when to ask again.
    let waits = scene.enrol(&ticket, &csr).await.done(202);
    assert_eq!(waits.headers["retry-after"], "60");

    let alice = Browser::log_in(&scene, "alice").await;
    let bob = Browser::log_in(&scene, "bob").await;
    let held = bob.get("/v1/installations").await.done(200).json;
    assert_eq!(held["installations"][0]["operator"], "alice");
    assert_eq!(held["installations"][0]["computer_name"], "the c2");
    let id = held["installations"][0]["id"].as_str().unwrap();
    let path = format!("/v1/installations/{id}/approval");
    alice
        .send(Method::POST, &path, None)
        .await
        .refused(403, "forbidden");
    let asked = bob.send(Method::POST, &path, None).await.done(201);
    assert_eq!(
        asked.json["operation"]["statement"]["payee"],
        "alice on the c2 (c2)"
    );
    let approval = scene.approval(&bobs, &asked.text("challenge"));
    let operation = asked.json["operation"]["id"].as_str().unwrap();
    let approvals = format!("/v1/operations/{operation}/approvals");
    scene.post(&approvals, JOSE, approval).await.done(200);
    certificate_in(&scene.enrol(&ticket, &csr).await.done(200));
    let held = bob.get("/v1/installations").await.done(200).json;
    assert_eq!(held["installations"], json!([]));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_different_people_approve_as_the_account_wants() {
    let scene = Scene::new().await;
    for operator in ["carol", "dave"] {
        let mut create = scene.made.command();
        create
            .args(["operator", "create", operator, "--account", "acme"])
            .args(["--mobile", "+8613800000004", "--password-file", "-"]);
        succeed_with(&mut create, PASSWORD);
    }
    for (from, approvals) in [("0", "1"), ("100000", "2")] {
        let more = ["--currency", "CNY", "--from", from];
        succeed(&mut scene.made.approval_rule("withdrawal", approvals, &more));
    }
    let alice = scene.installed("alice", "c1").await;
    let bob = scene.installed("bob", "c2").await;
    let mut body = withdrawal("alice");
    body["maker"] = json!("carol");
    let create = async |body: &Value| {
        scene
            .platform(Method::POST, "/v1/operations", Some(body.clone()))
            .await
    };

    // Below the amount one is enough; the maker is never one of them.
    let mut small = body.clone();
    small["amount"] = json!(99_999);
    let one = create(&small).await.done(201);
    assert_eq!(one.json["operation"]["approvals_needed"], 1);
    let mut own = body.clone();
    own["maker"] = json!("alice");
    create(&own).await.refused(403, "forbidden");

    let two = create(&body).await.done(201);
    assert_eq!(two.json["operation"]["approvals_needed"], 2);
    let first = scene.approval(&alice, &two.text("challenge"));
    let answer = scene.post_approval(&two, &first).await.done(200);
    assert_eq!(answer.json["operation"]["state"], "created");
    // Nobody counts twice, and the maker gets no challenge.
    let id = two.json["operation"]["id"].as_str().unwrap();
    let path = format!("/v1/operations/{id}/challenges");
    let ask = async |operator: &str| {
        let body = Some(json!({ "operator": operator }));
        scene.platform(Method::POST, &path, body).await
    };
    ask("alice").await.refused(403, "forbidden");
    ask("carol").await.refused(403, "forbidden");
    let challenge = ask("bob").await.done(201).text("challenge");
    let second = scene.approval(&bob, &challenge);
    let answer = scene.post_approval(&two, &second).await.done(200);
    assert_eq!(answer.json["operation"]["state"], "approved");
    let path = format!("/v1/operations/{id}");
    let seen = scene.platform(Method::GET, &path, None).await.done(200);
    let approvals = seen.json["operation"]["approvals"].as_array().unwrap();
    assert_eq!(approvals.len(), 2);

    // The list shows what there is, by state, in pages.
    let list = async |query: &str| {
        let path = format!("/v1/operations?{query}");
        scene
            .platform(Method::GET, &path, None)
            .await
            .done(200)
            .json
    };
    let all = list("limit=1").await;
    let next = all["next"].as_str().unwrap();
    assert_eq!(
        list(&format!("after={next}")).await["operations"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(list("state=approved").await["operations"][0]["id"], id);
    assert_eq!(list("account=other").await["operations"], json!([]));
    scene.hand.advance(Duration::from_secs(3600));
    assert_eq!(
        list("state=expired").await["operations"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    scene.end().await;
}

/// Waits until a statement of another process waits for a lock, which only PostgreSQL lets it do;
/// with SQLite it waits before it has read anything.
async fn until_somebody_waits(url: &str) {
    if !url.starts_with("postgres") {
        return;
    }
    let waiting = "SELECT COUNT(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let begin = std::time::Instant::now();
    while succeed(std::process::Command::new("psql").args([url, "-At", "-c", waiting])).trim()
        == "0"
    {
        assert!(begin.elapsed() < Duration::from_secs(10), "nobody waits");
        // The database tells nobody that somebody waits: it is asked again.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_different_things_at_the_same_time_all_last() {
    use opcert::account::store::StoreError;
    use opcert::account::store::accounts::{self, AccountChange, OperatorChange, Role};

    let scene = Scene::new().await;
    let (account, alice) = (&"acme".parse().unwrap(), &"alice".parse().unwrap());
    let made = &scene.made;
    let start = &move |arguments: &[&str]| made.command().args(arguments).spawn().unwrap();
    let config = opcert::account::config::Config::load(&scene.made.config).unwrap();
    let url = &config.database().unwrap();
    for command in [
        [
            "operator",
            "set",
            "alice",
            "--account",
            "acme",
            "--language",
            "zh",
        ]
        .as_slice(),
        ["account", "set", "acme", "--quorum", "2"].as_slice(),
    ] {
        let mut child = scene
            .service
            .store()
            .transaction("test", move |tx| {
                Box::pin(async move {
                    let change = OperatorChange {
                        role: Some(Role::Administrator),
                        ..OperatorChange::default()
                    };
                    assert!(accounts::update_operator(tx, account, alice, change).await?);
                    let change = AccountChange {
                        later_installs_held: Some(true),
                        ..AccountChange::default()
                    };
                    assert!(accounts::update_account(tx, account, change).await?);
                    let child = start(command);
                    until_somebody_waits(url).await;
                    Ok::<_, StoreError>(child)
                })
            })
            .await
            .unwrap();
        assert!(child.wait().unwrap().success());
    }
    let (operator, account) = scene
        .service
        .store()
        .read("test", move |tx| {
            Box::pin(async move {
                Ok::<_, StoreError>((
                    accounts::operator(tx, account, alice).await?.unwrap(),
                    accounts::account(tx, account).await?.unwrap(),
                ))
            })
        })
        .await
        .unwrap();
    assert_eq!(operator.role, Role::Administrator);
    assert_eq!(operator.language, accounts::Language::Zh);
    assert!(account.later_installs_held);
    assert_eq!((account.name.as_str(), account.quorum), ("Acme Ltd", 2));
    scene.end().await;
}
