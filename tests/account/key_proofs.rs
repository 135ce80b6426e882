//! What an enrolment says of its key goes all the way: from the device through daemon, certification
//! request and account service to the administrators.

use std::process::Command;

use http::Method;
use opcert::base::key::PublicKey;
use opcert::device::AttestationConfig;
use serde_json::{Value, json};

use super::people::{Browser, administrator};
use super::scene::*;
use super::support::daemon::{Daemon, csr};
use super::support::faulty::Faulty;
use super::support::maker::Maker;
use super::support::softhsm::TestToken;
use super::support::wait::{until, within};

/// The public key on a token that has one, read past the worker.
fn public_key(token: &TestToken) -> Option<PublicKey> {
    let output = Command::new("pkcs11-tool")
        .arg("--module")
        .arg(&token.module)
        .args(["--token-label", &token.label, "--read-object"])
        .args(["--type", "pubkey", "--label", "opcert acme alice"])
        .envs(&token.environment)
        .output()
        .unwrap();
    PublicKey::from_spki(&output.stdout).ok()
}

/// A token whose device attests the key that is made next, and whose library misreports where it
/// was made; and the daemon on it.
fn computer(maker: &Maker, token: &TestToken) -> (Daemon, Faulty) {
    let faulty = Faulty::new(token);
    faulty.misreport(cryptoki_sys::CKA_LOCAL, &[0]);
    let mut behind = token.config();
    faulty.configure(&mut behind);
    behind.module[0].token[0].waive = vec![opcert::device::Waiver::Local];
    behind.module[0].token[0].attestation = Some(AttestationConfig {
        authorities: vec![maker.path("root.pem")],
        required: true,
    });
    let module = toml::to_string(&behind).unwrap();
    (Daemon::start_on(token, &module, ""), faulty)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attested_key_and_what_is_waived_are_shown_to_the_administrators() {
    let Some(token) = TestToken::softhsm("attested") else {
        return;
    };
    let maker = Maker::new();
    maker.put_device(&token);
    let authorities = vec![maker.path("root.pem")];
    let scene = Scene::with(move |config| {
        config.attestation = Some(AttestationConfig {
            authorities,
            required: true,
        });
    })
    .await;
    administrator(&scene, "bob", "administrator");
    let keys = scene.get("/.well-known/jwks.json").await.done(200).json;
    let description = json!({
        "origin": scene.service.challenge_key().origin(),
        "keys": keys,
        "ca": [opcert::base::encoding::base64(scene.made.authority().der())],
    });
    let (daemon, faulty) = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| scope.spawn(|| computer(&maker, &token)).join().unwrap())
    });
    let name = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| scope.spawn(|| daemon.computer()).join().unwrap())
    });

    // The device gives its word while the library still reads the new key back.
    let (id, code) = scene.code("alice", &name).await;
    let ticket = scene.redeem(&id, &code).await.done(201).text("ticket");
    let hang = faulty.on("C_GetAttributeValue").times(1).hangs();
    let begin = json!({"ticket": ticket, "key_type": "p256", "service": description});
    let begun = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let begun = scope.spawn(|| {
                let answer = daemon.control(Method::POST, "/v1/enrolments", &begin);
                answer.ok()
            });
            let key = until("the key", || public_key(&token));
            assert!(!begun.is_finished(), "the key was read back at once");
            maker.put_attestation(&token, &key);
            faulty.lift(&hang);
            begun.join().unwrap()
        })
    });
    assert_eq!(begun["attestation"]["device"]["serial"], "12345678");
    // The device's word is younger than the service's clock, which stands still.
    scene.hand.advance(std::time::Duration::from_secs(60));
    let issued = scene.enrol(&ticket, csr(&begun).der()).await.done(200);
    let certificate = certificate_in(&issued);
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let complete = || daemon.complete(&begun, certificate.der()).ok();
            scope.spawn(complete).join().unwrap()
        })
    });

    // In the list, in what the administrators are told, and on the page of the certificate.
    let alice = Browser::log_in(&scene, "alice").await;
    let list = alice.get("/v1/certificates").await.done(200).json;
    let shown = &list["certificates"][0];
    let is_told = |proof: &Value| {
        assert_eq!(proof["attested"]["device"]["serial"], "12345678", "{proof}");
        assert_eq!(proof["attested"]["device"]["firmware"], "5.4.3", "{proof}");
        let maker = proof["attested"]["maker"].as_str().unwrap();
        assert!(maker.contains("Maker_PIV_Root"), "{maker}");
        let waived = proof["waived"].as_str().unwrap();
        assert!(waived.contains("CKA_LOCAL"), "{waived}");
    };
    is_told(&shown["key_proof"]);
    let bob = Browser::log_in(&scene, "bob").await;
    within(std::time::Duration::from_secs(10), "a notice", async || {
        let notices = bob.get("/v1/notices").await.done(200).json;
        let all = notices["notices"].as_array().unwrap();
        let notice = all
            .iter()
            .find(|notice| notice["kind"] == "certificate-issued");
        if let Some(notice) = notice {
            is_told(&notice["facts"]["key_proof"]);
        }
        notice.is_some()
    })
    .await;
    let page = format!("/certificates/{}", shown["serial"].as_str().unwrap());
    let page = alice.get(&page).await.done(200);
    let page = String::from_utf8(page.bytes.to_vec()).unwrap();
    for part in ["Maker_PIV_Root", "12345678", "5.4.3", "CKA_LOCAL"] {
        assert!(page.contains(part), "{part}: {page}");
    }

    // A key without a device's word gets no certificate, and no ticket is spent on it.
    let ticket = scene.ticket("alice", "c2").await;
    for _ in 0..2 {
        scene
            .enrol(&ticket, &SoftKey::new().csr())
            .await
            .refused(422, "key-not-attested");
    }
    tokio::task::block_in_place(|| drop(daemon));
    scene.end().await;
}
