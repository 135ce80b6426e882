//! API secrets: who sets them, what is kept of them, which computers get them.

use std::time::Duration;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeySize, OAEP_SHA1_MGF1SHA1, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use http::Method;
use serde_json::{Value, json};

use opcert::account::config::Config;
use opcert::base::encoding::hex;
use opcert::base::jwe::{Jwe, RsaJwk};
use opcert::base::key::{PublicKey, Scheme};
use opcert::base::secret::SecretBytes;
use opcert::statement::sealed_secret::{MAX, Plain, SEALED_TYPE};
use opcert::statement::secret_request::Held;
use opcert::statement::{SealedSecret, SecretKind, SecretRequestClaims};

use super::people::{Browser, administrator};
use super::scene::*;

const FIRST: &str = "a7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb";
const SECOND: &str = "b7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb";
const THIRD: &str = "c7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb";
const WEEK: i64 = 7 * 86_400;

/// More codes than a day's work needs.
fn many_codes(config: &mut Config) {
    config.sms.daily = 100;
}

/// Alice is the super administrator, bob an administrator, eve neither.
async fn scene() -> Scene {
    let scene = Scene::with(many_codes).await;
    administrator(&scene, "alice", "super-administrator");
    administrator(&scene, "bob", "administrator");
    create(&scene, "eve", "+8613800000003", "operator");
    scene
}

fn create(scene: &Scene, operator: &str, mobile: &str, role: &str) {
    let mut command = scene.made.command();
    command
        .args(["operator", "create", operator, "--account", "acme"])
        .args(["--mobile", mobile, "--role", role, "--password-file", "-"]);
    succeed_with(&mut command, PASSWORD);
}

/// The newest code that was sent.
fn digits(scene: &Scene) -> String {
    let texts = scene.texts.try_iter().map(|text| text.expose().to_owned());
    let text = texts.filter(|text| text.contains("opcert code ")).last();
    text.expect("a code").split("opcert code ").nth(1).unwrap()[..6].to_owned()
}

/// A code for setting a secret, won at a time when one may be sent.
async fn code(scene: &Scene, kind: &str) -> (String, String) {
    scene.hand.advance(Duration::from_secs(61));
    let alice = Browser::log_in(scene, "alice").await;
    let answer = alice
        .send(Method::POST, &format!("/v1/secrets/{kind}/codes"), None)
        .await
        .done(202);
    assert_eq!(answer.text("sent_to"), "+86*******0001");
    (answer.text("code_id"), digits(scene))
}

fn body(secret: &str, (code_id, code): &(String, String), more: Value) -> Value {
    let mut body =
        json!({ "secret": secret, "code_id": code_id, "code": code, "password": PASSWORD });
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

/// Alice sets a secret.
async fn set(scene: &Scene, kind: &str, secret: &str, overlap: i64) -> Answer {
    let code = code(scene, kind).await;
    let alice = Browser::log_in(scene, "alice").await;
    let body = body(secret, &code, json!({ "overlap_seconds": overlap }));
    alice
        .send(Method::PUT, &format!("/v1/secrets/{kind}"), Some(body))
        .await
}

async fn overview(scene: &Scene) -> Value {
    let bob = Browser::log_in(scene, "bob").await;
    bob.get("/v1/secrets").await.done(200).json
}

/// A computer: an operating certificate, and an RSA key in place of the one on its token.
struct Computer {
    installed: Installed,
    merchant: &'static str,
    private: PrivateDecryptingKey,
}

impl Computer {
    async fn new(scene: &Scene, operator: &str, name: &str) -> Self {
        Self {
            installed: scene.installed(operator, name).await,
            merchant: "1900007291",
            private: PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap(),
        }
    }

    fn jwk(&self) -> RsaJwk {
        let spki = self.private.public_key().as_der().unwrap();
        RsaJwk::from_public_key(&PublicKey::from_spki(spki.as_ref()).unwrap()).unwrap()
    }

    fn request(&self, scene: &Scene, change: impl FnOnce(&mut SecretRequestClaims)) -> String {
        let mut claims = SecretRequestClaims {
            aud: scene.service.challenge_key().origin().clone(),
            iat: scene.clock.now().as_second(),
            account: "acme".parse().unwrap(),
            computer: self.installed.computer.parse().unwrap(),
            merchant: self.merchant.parse().unwrap(),
            sealing_key: self.jwk(),
            held: Held::default(),
        };
        change(&mut claims);
        let chain = std::slice::from_ref(&self.installed.certificate);
        let input = claims.signing_input(Scheme::Es256, chain).unwrap();
        let signature = self.installed.key.sign(input.as_bytes());
        SecretRequestClaims::assemble(input, &signature)
    }

    async fn ask(&self, scene: &Scene, held: Held) -> Answer {
        let request = self.request(scene, |claims| claims.held = held);
        scene.post("/v1/secrets/requests", JOSE, request).await
    }

    /// What it gets: version and secret of each, opened with its key.
    async fn fetch(&self, scene: &Scene, held: Held) -> Vec<(SecretKind, u64, String)> {
        let answer = self.ask(scene, held).await.done(200);
        assert_eq!(answer.json["state"], "active", "{answer:?}");
        let statements = answer.json["secrets"].as_array().unwrap().clone();
        statements
            .iter()
            .map(|statement| {
                let claims = open(scene, statement.as_str().unwrap());
                let secret = self.unseal(&claims.jwe).expect("it opens");
                (claims.kind, claims.version, secret)
            })
            .collect()
    }

    fn unseal(&self, jwe: &str) -> Option<String> {
        let jwe = Jwe::parse(jwe, SEALED_TYPE, MAX).unwrap();
        let key = OaepPrivateDecryptingKey::new(self.private.clone()).unwrap();
        let mut buffer = vec![0; key.min_output_size()];
        let content_key = key
            .decrypt(&OAEP_SHA1_MGF1SHA1, jwe.encrypted_key(), &mut buffer, None)
            .ok()?;
        let opened = jwe.open(&SecretBytes::new(content_key.to_vec())).ok()?;
        Some(Plain::parse(&opened).ok()?.secret.expose().to_owned())
    }

    fn path(&self) -> String {
        format!("/v1/secrets/recipients/{}", self.jwk().kid)
    }

    /// The super administrator lets it have the secrets.
    async fn admit(&self, scene: &Scene) {
        self.ask(scene, Held::default()).await.done(200);
        let alice = Browser::log_in(scene, "alice").await;
        let password = json!({ "password": PASSWORD });
        alice
            .send(
                Method::POST,
                &format!("{}/admission", self.path()),
                Some(password),
            )
            .await
            .done(204);
    }

    async fn arrival(&self, scene: &Scene, kind: &str) -> String {
        let seen = overview(scene).await;
        let kid = self.jwk().kid;
        let mut entries = seen["recipients"].as_array().unwrap().iter();
        let entry = entries.find(|entry| entry["key"] == kid.as_str()).unwrap();
        entry[kind].as_str().unwrap().to_owned()
    }
}

fn open(scene: &Scene, statement: &str) -> SealedSecret {
    let keys = scene.service.challenge_key().set().keys;
    SealedSecret::open(statement, scene.clock.now(), |_, _| {
        Ok(keys[0].to_public_key().unwrap())
    })
    .unwrap()
}

fn held(api: u64, apiv3: u64) -> Held {
    Held { api, apiv3 }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_super_administrator_sets_a_secret_and_nobody_reads_it() {
    let scene = scene().await;
    let alice = Browser::log_in(&scene, "alice").await;
    let bob = Browser::log_in(&scene, "bob").await;
    let eve = Browser::log_in(&scene, "eve").await;

    // Administrators see how things stand; the others see nothing, and set nothing.
    let empty = bob.get("/v1/secrets").await.done(200).json;
    assert_eq!(
        empty,
        json!({ "secrets": [{ "kind": "api" }, { "kind": "apiv3" }], "recipients": [] })
    );
    eve.get("/v1/secrets").await.refused(403, "forbidden");
    scene.get("/v1/secrets").await.refused(401, "session-ended");
    let path = "/v1/secrets/apiv3";
    let codes = "/v1/secrets/apiv3/codes";
    let unknown = ("unknown".to_owned(), "123456".to_owned());
    for other in [&bob, &eve] {
        let answer = other.send(Method::POST, codes, None).await;
        answer.refused(403, "forbidden");
        let set = body(FIRST, &unknown, json!({}));
        let answer = other.send(Method::PUT, path, Some(set)).await;
        answer.refused(403, "forbidden");
    }
    assert!(scene.texts.try_recv().is_err(), "no text was sent");

    // The code names what it is for, and goes out once a minute.
    let answer = alice.send(Method::POST, codes, None).await.done(202);
    let text = scene.texts.try_recv().unwrap().expose().to_owned();
    assert!(
        text.contains("Change the APIv3 secret of account acme."),
        "{text}"
    );
    let good = (
        answer.text("code_id"),
        text.split("opcert code ").nth(1).unwrap()[..6].to_owned(),
    );
    let again = alice.send(Method::POST, codes, None).await;
    again.refused(429, "sms-too-soon");

    // A slip of the hand costs no try of the code.
    for bad in [
        &FIRST[1..],
        &format!("{FIRST}x"),
        &FIRST.replace('a', " "),
        &FIRST.replace('a', "-"),
        "密密密密密密密密密密aa",
    ] {
        let answer = alice
            .send(Method::PUT, path, Some(body(bad, &good, json!({}))))
            .await;
        answer.refused(422, "secret-invalid");
        assert!(!String::from_utf8_lossy(&answer.bytes).contains(bad));
    }
    for overlap in [-1, WEEK + 1] {
        let wrong = body(FIRST, &good, json!({ "overlap_seconds": overlap }));
        let answer = alice.send(Method::PUT, path, Some(wrong)).await;
        answer.refused(400, "malformed");
    }
    let wrong = body(FIRST, &good, json!({ "password": "wrong horse" }));
    let answer = alice.send(Method::PUT, path, Some(wrong)).await;
    answer.refused(401, "login-failed");
    // A code counts for the kind it was sent for, and only right.
    let elsewhere = Some(body(FIRST, &good, json!({})));
    let answer = alice.send(Method::PUT, "/v1/secrets/api", elsewhere).await;
    answer.refused(422, "sms-code-wrong");
    let wrong = if good.1 == "000000" {
        "111111"
    } else {
        "000000"
    };
    let wrong = body(FIRST, &good, json!({ "code": wrong }));
    let answer = alice.send(Method::PUT, path, Some(wrong)).await;
    answer.refused(422, "sms-code-wrong");
    let answer = alice
        .send(Method::PUT, path, Some(body(FIRST, &unknown, json!({}))))
        .await;
    answer.refused(422, "sms-code-wrong");

    // Two at once with the last try: one is taken.
    let (one, other) = tokio::join!(
        alice.send(Method::PUT, path, Some(body(FIRST, &good, json!({})))),
        alice.send(Method::PUT, path, Some(body(FIRST, &good, json!({})))),
    );
    let (taken, refused) = if one.status == 200 {
        (one, other)
    } else {
        (other, one)
    };
    assert_eq!(taken.done(200).json, json!({ "version": 1 }));
    refused.refused(422, "sms-code-spent");

    // Who and when is shown, and told to the administrators.
    let seen = overview(&scene).await;
    let current = &seen["secrets"][1]["current"];
    assert_eq!(current["version"], 1);
    assert_eq!(current["set_by"], "alice");
    assert_eq!(seen["secrets"][0], json!({ "kind": "api" }));
    let texts: Vec<String> = scene
        .texts
        .try_iter()
        .map(|text| text.expose().to_owned())
        .collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(
        texts
            .iter()
            .all(|text| text.contains("the APIv3 secret of account acme was changed")),
        "{texts:?}"
    );
    let notices = bob.get("/v1/notices").await.done(200).json;
    assert_eq!(notices["notices"][0]["kind"], "secret-set");
    assert_eq!(notices["notices"][0]["facts"]["kind"], "apiv3");

    // A second one has the next version; the first is read until the overlap is over.
    let answer = set(&scene, "apiv3", SECOND, 3600).await.done(200);
    assert_eq!(answer.json["version"], 2);
    let seen = overview(&scene).await;
    assert_eq!(seen["secrets"][1]["current"]["version"], 2);
    assert_eq!(seen["secrets"][1]["before"]["version"], 1);
    // The other kind counts by itself.
    let answer = set(&scene, "api", THIRD, 0).await.done(200);
    assert_eq!(answer.json["version"], 1);

    // A third replaces the second, and the first is gone at once: there are never more than two.
    set(&scene, "apiv3", THIRD, 3600).await.done(200);
    let seen = overview(&scene).await;
    assert_eq!(seen["secrets"][1]["before"]["version"], 2);
    let destroyed = async |scene: &Scene| {
        let bob = Browser::log_in(scene, "bob").await;
        let events = bob.get("/v1/events?limit=200").await.done(200).json;
        let mut gone: Vec<u64> = events["events"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["kind"] == "secret-destroyed")
            .filter_map(|event| event["facts"]["version"].as_u64())
            .collect();
        gone.sort_unstable();
        gone
    };
    assert_eq!(destroyed(&scene).await, [1]);
    scene.hand.advance(Duration::from_secs(3600));
    let seen = overview(&scene).await;
    assert!(seen["secrets"][1].get("before").is_none(), "{seen}");
    assert_eq!(scene.service.secrets().destroy_ended().await.unwrap(), 1);
    assert_eq!(scene.service.secrets().destroy_ended().await.unwrap(), 0);
    assert_eq!(destroyed(&scene).await, [1, 2]);

    // No file holds one.
    let made = scene.end().await;
    for entry in walk(&made.state()) {
        let bytes = std::fs::read(&entry).unwrap();
        for secret in [FIRST, SECOND, THIRD] {
            let found = bytes.windows(32).any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds a secret", entry.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_computer_gets_what_the_super_administrator_lets_it_have() {
    let scene = scene().await;
    set(&scene, "apiv3", FIRST, 0).await.done(200);
    let till = Computer::new(&scene, "eve", "c1").await;

    // A certificate alone is not enough: it waits, and the administrators are told.
    let answer = till.ask(&scene, Held::default()).await.done(200);
    assert_eq!(answer.json, json!({ "state": "waiting", "secrets": [] }));
    assert_eq!(till.arrival(&scene, "apiv3").await, "withheld");
    let seen = overview(&scene).await;
    let entry = &seen["recipients"][0];
    assert_eq!(entry["computer"], "c1");
    assert_eq!(entry["computer_name"], "the c1");
    assert_eq!(entry["merchant"], "1900007291");
    assert_eq!(entry["operator"], "eve");
    let bob = Browser::log_in(&scene, "bob").await;
    let notices = bob.get("/v1/notices").await.done(200).json;
    let mut notices = notices["notices"].as_array().unwrap().iter();
    assert!(notices.any(|notice| notice["kind"] == "recipient-added"));
    let texts: Vec<String> = scene
        .texts
        .try_iter()
        .map(|text| text.expose().to_owned())
        .collect();
    assert!(
        texts
            .iter()
            .any(|text| text.contains("\"the c1\" asks for the API secrets")),
        "{texts:?}"
    );
    let admission = format!("{}/admission", till.path());
    let password = json!({ "password": PASSWORD });
    let answer = bob
        .send(Method::POST, &admission, Some(password.clone()))
        .await;
    answer.refused(403, "forbidden");
    let alice = Browser::log_in(&scene, "alice").await;
    let wrong = json!({ "password": "wrong horse" });
    let answer = alice.send(Method::POST, &admission, Some(wrong)).await;
    answer.refused(401, "login-failed");
    let nowhere = "/v1/secrets/recipients/nobody/admission";
    let answer = alice
        .send(Method::POST, nowhere, Some(password.clone()))
        .await;
    answer.refused(404, "not-found");
    till.admit(&scene).await;
    let answer = alice.send(Method::POST, &admission, Some(password)).await;
    answer.refused(409, "operation-state");
    assert_eq!(till.arrival(&scene, "apiv3").await, "pending");

    // Then it gets what nobody else can open, the same whenever it asks, until it says it has it.
    let first = till.ask(&scene, Held::default()).await.done(200);
    let second = till.ask(&scene, Held::default()).await.done(200);
    assert_eq!(first.json, second.json);
    assert_eq!(till.arrival(&scene, "apiv3").await, "sealed");
    let fetched = till.fetch(&scene, Held::default()).await;
    assert_eq!(fetched, [(SecretKind::ApiV3, 1, FIRST.to_owned())]);
    let claims = open(&scene, first.json["secrets"][0].as_str().unwrap());
    assert_eq!(claims.sub.as_str(), "acme");
    let other = Computer::new(&scene, "bob", "c2").await;
    assert_eq!(other.unseal(&claims.jwe), None);
    assert_eq!(till.fetch(&scene, held(0, 1)).await, []);
    assert_eq!(till.arrival(&scene, "apiv3").await, "held");
    assert_eq!(till.arrival(&scene, "api").await, "none");
    till.fetch(&scene, held(0, 1)).await;
    let events = bob.get("/v1/events?limit=200").await.done(200).json;
    let arrived = events["events"].as_array().unwrap().iter();
    let arrived = arrived.filter(|event| event["kind"] == "secret-fetched");
    assert_eq!(arrived.count(), 1);

    // What is new comes with the next version. One who is let in later gets old and new while both
    // are read, in this order, and then the new one alone.
    set(&scene, "apiv3", SECOND, 3600).await.done(200);
    let fetched = till.fetch(&scene, held(0, 1)).await;
    assert_eq!(fetched, [(SecretKind::ApiV3, 2, SECOND.to_owned())]);
    set(&scene, "api", THIRD, 0).await.done(200);
    other.admit(&scene).await;
    let fetched = other.fetch(&scene, Held::default()).await;
    assert_eq!(
        fetched,
        [
            (SecretKind::Api, 1, THIRD.to_owned()),
            (SecretKind::ApiV3, 1, FIRST.to_owned()),
            (SecretKind::ApiV3, 2, SECOND.to_owned()),
        ]
    );
    scene.hand.advance(Duration::from_secs(3600));
    for swept in [false, true] {
        if swept {
            scene.service.secrets().destroy_ended().await.unwrap();
        }
        let fetched = other.fetch(&scene, held(1, 0)).await;
        assert_eq!(fetched, [(SecretKind::ApiV3, 2, SECOND.to_owned())]);
    }

    // One that is ended gets no more, until it is let again.
    let alice = Browser::log_in(&scene, "alice").await;
    alice
        .send(Method::DELETE, &other.path(), None)
        .await
        .done(204);
    let answer = other.ask(&scene, Held::default()).await.done(200);
    assert_eq!(answer.json, json!({ "state": "ended", "secrets": [] }));
    let bob = Browser::log_in(&scene, "bob").await;
    let answer = bob.send(Method::DELETE, &till.path(), None).await;
    answer.refused(403, "forbidden");
    other.admit(&scene).await;
    assert_eq!(other.fetch(&scene, held(1, 2)).await, []);

    // Another key of the same merchant takes the place of the first, and has to be let in anew.
    let renewed = Computer {
        private: PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap(),
        installed: other.installed,
        merchant: other.merchant,
    };
    let answer = renewed.ask(&scene, Held::default()).await.done(200);
    assert_eq!(answer.json["state"], "waiting");
    let seen = overview(&scene).await;
    assert_eq!(seen["recipients"].as_array().unwrap().len(), 2, "{seen}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_secrets_vouches_for_itself_or_is_refused() {
    let scene = scene().await;
    set(&scene, "apiv3", FIRST, 0).await.done(200);
    let till = Computer::new(&scene, "eve", "c1").await;
    till.admit(&scene).await;
    let post = async |request: String| scene.post("/v1/secrets/requests", JOSE, request).await;
    let invalid = "secret-request-invalid";

    for wrong in [
        String::new(),
        "a.b.c".to_owned(),
        "x".repeat(40_000),
        till.request(&scene, |claims| claims.account = "other".parse().unwrap()),
        till.request(&scene, |claims| claims.computer = "c2".parse().unwrap()),
        till.request(&scene, |claims| claims.iat -= 301),
        till.request(&scene, |claims| claims.iat += 31),
        till.request(&scene, |claims| {
            claims.aud = "https://elsewhere.example".parse().unwrap();
        }),
        till.request(&scene, |claims| claims.sealing_key.kid = "mine".into()),
        till.request(&scene, |claims| claims.held.apiv3 = u64::MAX),
        till.request(&scene, |claims| claims.merchant = "1".parse().unwrap()),
    ] {
        post(wrong).await.refused(422, invalid);
    }
    let good = till.request(&scene, |_| ());
    let middle = good.len() / 2;
    let changed = if &good[middle..=middle] == "A" {
        "B"
    } else {
        "A"
    };
    let mut spoilt = good.clone();
    spoilt.replace_range(middle..=middle, changed);
    post(spoilt).await.refused(422, invalid);
    // Another computer's certificate does not vouch for this key.
    let other = Computer::new(&scene, "bob", "c2").await;
    let stolen = other.request(&scene, |claims| claims.sealing_key = till.jwk());
    post(stolen).await.refused(422, invalid);
    // An earlier request after a later one is a repetition of something old.
    scene.hand.advance(Duration::from_secs(2));
    till.fetch(&scene, Held::default()).await;
    post(good).await.refused(422, invalid);

    // A computer that has more than this database knows of makes it count on from there: it may
    // have been restored.
    assert_eq!(till.fetch(&scene, held(0, 7)).await, []);
    let answer = set(&scene, "apiv3", SECOND, 0).await.done(200);
    assert_eq!(answer.json["version"], 8);
    let fetched = till.fetch(&scene, held(0, 7)).await;
    assert_eq!(fetched, [(SecretKind::ApiV3, 8, SECOND.to_owned())]);

    // Revocation bites at once.
    let eve = Browser::log_in(&scene, "eve").await;
    let serial = hex(till.installed.certificate.serial());
    eve.send(Method::DELETE, &format!("/v1/certificates/{serial}"), None)
        .await
        .done(200);
    let answer = till.ask(&scene, Held::default()).await;
    answer.refused(422, "certificate-revoked");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_rule_makes_a_secret_wait_for_other_administrators() {
    let scene = scene().await;
    create(&scene, "dan", "+8613800000004", "administrator");
    let installed = [
        scene.installed("bob", "c1").await,
        scene.installed("dan", "c2").await,
    ];
    let alices = scene.installed("alice", "c3").await;
    succeed(&mut scene.made.approval_rule("secret-change", "2", &[]));

    let answer = set(&scene, "api", FIRST, 0).await;
    assert_eq!(answer.done(202).json, json!({ "approvals_needed": 2 }));
    let seen = overview(&scene).await;
    let waiting = &seen["secrets"][0];
    assert!(waiting.get("current").is_none(), "{seen}");
    assert_eq!(waiting["waiting"]["set_by"], "alice");

    // Who set it does not approve it, and who manages nothing does not either.
    let path = "/v1/secrets/api/approval";
    for who in ["alice", "eve"] {
        let browser = Browser::log_in(&scene, who).await;
        let answer = browser.send(Method::POST, path, None).await;
        answer.refused(403, "forbidden");
    }
    for (who, installed) in ["bob", "dan"].into_iter().zip(&installed) {
        let browser = Browser::log_in(&scene, who).await;
        let asked = browser.send(Method::POST, path, None).await.done(201);
        let challenge = asked.text("challenge");
        let statement = &asked.json["operation"]["statement"];
        assert_eq!(statement["kind"], "secret-change");
        assert_eq!(statement["payee"], "API secret by alice");
        let approval = scene.approval(installed, &challenge);
        scene.post_approval(&asked, &approval).await.done(200);
    }
    let seen = overview(&scene).await;
    assert_eq!(seen["secrets"][0]["current"]["version"], 1, "{seen}");
    assert!(seen["secrets"][0].get("waiting").is_none(), "{seen}");

    // One that is taken back, or replaced, or waits too long never takes effect.
    set(&scene, "api", SECOND, 0).await.done(202);
    let bob = Browser::log_in(&scene, "bob").await;
    let asked = bob.send(Method::POST, path, None).await.done(201);
    bob.send(Method::DELETE, "/v1/secrets/api/waiting", None)
        .await
        .done(204);
    let approval = scene.approval(&installed[0], &asked.text("challenge"));
    let answer = scene.post_approval(&asked, &approval).await;
    answer.refused(409, "operation-state");
    let answer = bob
        .send(Method::DELETE, "/v1/secrets/api/waiting", None)
        .await;
    answer.refused(409, "operation-state");
    set(&scene, "api", SECOND, 0).await.done(202);
    scene.hand.advance(Duration::from_secs(24 * 60 * 60));
    let bob = Browser::log_in(&scene, "bob").await;
    let answer = bob.send(Method::POST, path, None).await;
    answer.refused(409, "operation-state");
    assert_eq!(scene.service.secrets().destroy_ended().await.unwrap(), 1);
    set(&scene, "api", SECOND, 0).await.done(202);
    set(&scene, "api", THIRD, 0).await.done(202);
    let seen = overview(&scene).await;
    assert_eq!(seen["secrets"][0]["current"]["version"], 1, "{seen}");
    drop(alices);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sealing_key_changes_and_secrets_stay() {
    let scene = scene().await;
    let desk = Computer::new(&scene, "alice", "desk").await;
    set(&scene, "api", FIRST, 0).await.done(200);
    desk.admit(&scene).await;
    let sealing = |scene: &Scene| scene.made.keys("sealing");
    let first = sealing(&scene)[0].1.clone();
    succeed(scene.made.command().args(["key", "rotate", "sealing"]));
    let scene = scene.again().await;

    // What the running service seals after the change goes to the key it knows.
    succeed(scene.made.command().args(["key", "activate", "sealing"]));
    set(&scene, "apiv3", SECOND, 0).await.done(200);
    let both = |found: Vec<(SecretKind, u64, String)>| {
        let mut found: Vec<String> = found.into_iter().map(|(_, _, secret)| secret).collect();
        found.sort();
        found
    };
    assert_eq!(
        both(desk.fetch(&scene, Held::default()).await),
        [FIRST, SECOND]
    );
    let scene = scene.again().await;
    let states: Vec<String> = sealing(&scene).into_iter().map(|key| key.0).collect();
    assert_eq!(states, ["seals", "still published"]);
    let (code, _, error) = run(scene.made.command().args(["key", "retire", &first]), "");
    assert_eq!(code, 0, "{error}");
    let scene = scene.again().await;
    assert_eq!(sealing(&scene).len(), 1);
    // One that has had nothing yet: it takes the key to give it.
    let till = Computer::new(&scene, "bob", "till").await;
    till.admit(&scene).await;
    assert_eq!(
        both(till.fetch(&scene, Held::default()).await),
        [FIRST, SECOND]
    );
    scene.end().await;
}
