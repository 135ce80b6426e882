//! Renewal, and what other people's programs make of the authority: EST by strongSwan, OCSP by
//! openssl.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use http::Method;
use serde_json::json;

use opcert::base::encoding::{base64, hex};
use opcert::base::x509::Certificate;

use super::people::Browser;
use super::scene::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_once_by_whoever_has_its_key() {
    let scene = Scene::with(|config| {
        config.quotas.certificates = 2;
        config.quotas.computers = 2;
    })
    .await;
    let alice = scene.installed("alice", "c1").await;
    let bob = scene.installed("bob", "c2").await;
    let serial = hex(alice.certificate.serial());
    let begin = async |serial: &str| {
        let body = json!({ "certificate": serial }).to_string();
        scene.post("/v1/enrolment/renewals", JSON, body).await
    };
    begin("0123").await.refused(404, "not-found");
    begin(&serial).await.refused(409, "renewal-too-early");

    // The quota is full, and the last third of the year has begun: a successor needs no place.
    scene.hand.advance(DAY * 250);
    let asked = begin(&serial).await.done(201);
    assert_eq!(
        asked.json["operation"]["statement"]["kind"],
        "certificate-renewal"
    );
    assert_eq!(asked.json["operation"]["statement"]["payee"], serial);
    let again = begin(&serial).await.done(201);
    assert_eq!(again.json["operation"]["id"], asked.json["operation"]["id"]);
    assert_eq!(again.text("challenge"), asked.text("challenge"));
    let id = asked.json["operation"]["id"].as_str().unwrap();

    // What the service asks for is none of the platform's business.
    let list = scene
        .platform(Method::GET, "/v1/operations", None)
        .await
        .done(200);
    assert_eq!(list.json["operations"], json!([]));
    let own = format!("/v1/operations/{id}");
    let body = Some(json!({ "operator": "alice" }));
    for (method, path, body) in [
        (Method::GET, own.clone(), None),
        (Method::POST, format!("{own}/challenges"), body),
        (Method::POST, format!("{own}/cancellation"), None),
    ] {
        scene
            .platform(method, &path, body)
            .await
            .refused(404, "not-found");
    }

    let path = format!("/v1/enrolment/renewals/{id}/ticket");
    let by_bob = scene.approval(&bob, &asked.text("challenge"));
    scene
        .post(&path, JOSE, by_bob)
        .await
        .refused(422, "approval-invalid");
    let approval = scene.approval(&alice, &asked.text("challenge"));
    let ticket = scene
        .post(&path, JOSE, approval.clone())
        .await
        .done(201)
        .text("ticket");
    scene
        .post(&path, JOSE, approval)
        .await
        .refused(409, "ticket-spent");

    // A new key; the names are those of the old certificate, and both are good for a while.
    let reenrol = async |ticket: &str, csr: &[u8]| {
        let request = http::Request::post("/.well-known/est/simplereenroll")
            .header("content-type", PKCS10)
            .header("authorization", format!("Bearer {ticket}"));
        scene.send(request.body(base64(csr).into()).unwrap()).await
    };
    reenrol(&ticket, &alice.key.csr())
        .await
        .refused(422, "csr-invalid");
    let key = SoftKey::new();
    let csr = key.csr();
    let successor = certificate_in(&reenrol(&ticket, &csr).await.done(200));
    assert_eq!(successor.identity(), alice.certificate.identity());
    assert!(successor.not_after() > alice.certificate.not_after());
    let again = certificate_in(&reenrol(&ticket, &csr).await.done(200));
    assert_eq!(again.der(), successor.der());
    let successor = Installed {
        certificate: successor,
        computer: "c1".into(),
        key,
    };
    for by in [&alice, &successor] {
        let created = scene.withdrawal("alice").await;
        let approval = scene.approval(by, &created.text("challenge"));
        scene.post_approval(&created, &approval).await.done(200);
    }
    begin(&serial).await.refused(409, "operation-state");
    let seen = Browser::log_in(&scene, "alice")
        .await
        .get("/v1/certificates?active=true")
        .await
        .done(200)
        .json;
    assert_eq!(seen["quota"]["certificates"], 2);
    assert_eq!(seen["certificates"].as_array().unwrap().len(), 3);
    assert_eq!(seen["certificates"][0]["replaces"], serial);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_ask_for_a_renewal_again_and_again_keep_nobody_from_it() {
    let scene = Scene::with(|config| config.operations.challenge_lifetime_seconds = 10).await;
    let alice = scene.installed("alice", "c1").await;
    let serial = hex(alice.certificate.serial());
    scene.hand.advance(DAY * 250);
    let begin = async || {
        let body = json!({ "certificate": serial }).to_string();
        let answer = scene.post("/v1/enrolment/renewals", JSON, body).await;
        answer.done(201)
    };
    // While a challenge is good, whoever asks gets it, and nothing is signed.
    let first = begin().await.text("challenge");
    for _ in 0..120 {
        assert_eq!(begin().await.text("challenge"), first);
    }
    // With little of its life left there is another one: more of them than one operation may have.
    let mut challenges = std::collections::BTreeSet::new();
    for _ in 0..110 {
        scene.hand.advance(Duration::from_secs(6));
        assert!(challenges.insert(begin().await.text("challenge")));
    }
    let asked = begin().await;
    assert!(challenges.contains(&asked.text("challenge")));
    let id = asked.json["operation"]["id"].as_str().unwrap();
    let approval = scene.approval(&alice, &asked.text("challenge"));
    scene
        .post(
            &format!("/v1/enrolment/renewals/{id}/ticket"),
            JOSE,
            approval,
        )
        .await
        .done(201);
    scene.end().await;
}

fn write(path: &Path, bytes: impl AsRef<[u8]>) -> String {
    std::fs::write(path, bytes).unwrap();
    path.display().to_string()
}

/// strongSwan's `pki`: an EST client over its own TLS.
fn pki(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("pki").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn strongswan_enrols_with_a_ticket_and_renews_with_its_certificate() {
    let scene = Scene::new().await;
    let directory = scene.made.token.directory().to_owned();
    let file = |name: &str| directory.join(name);
    let tls = scene
        .made
        .state()
        .join("server-ca.pem")
        .display()
        .to_string();
    let authority = scene.made.state().join("ca.pem").display().to_string();
    let key = write(
        &file("key.der"),
        pki(&["--gen", "--type", "ecdsa", "--size", "256"]),
    );
    let request = ["--req", "--type", "priv", "--dn", "CN=mallory", "--in"];
    let csr = write(&file("csr.der"), pki(&[&request[..], &[&key]].concat()));

    let ticket = scene.ticket("alice", "c1").await;
    let url = |port: u16| format!("https://127.0.0.1:{port}");
    // It has room for 170 bytes of password: the last part of the ticket is enough.
    let password = format!("alice:{}", ticket.rsplit('.').next().unwrap());
    let (public, offered) = (url(scene.port()), url(scene.certificate_port));
    let trust = ["--cacert", &tls, "--cacert", &authority];
    let arguments = [
        &[
            "--est",
            "--url",
            &public,
            "--in",
            &csr,
            "--userpass",
            &password,
        ][..],
        &trust,
    ]
    .concat();
    let enrolled = tokio::task::block_in_place(|| pki(&arguments));
    let first = Certificate::from_der(&enrolled).unwrap();
    assert_eq!(first.identity().unwrap().operator.as_str(), "alice");
    let first_file = write(&file("first.der"), &enrolled);

    // 250 days later its TLS client certificate is enough for a successor, where those are taken.
    scene.hand.advance(DAY * 250);
    let next_key = write(
        &file("next.der"),
        pki(&["--gen", "--type", "ecdsa", "--size", "256"]),
    );
    let next_csr = write(
        &file("next-csr.der"),
        pki(&[&request[..], &[&next_key]].concat()),
    );
    let arguments = [
        &["--est", "--url", &offered, "--in", &next_csr][..],
        &["--cert", &first_file, "--key", &key],
        &trust,
    ]
    .concat();
    let renewed = tokio::task::block_in_place(|| pki(&arguments));
    let second = Certificate::from_der(&renewed).unwrap();
    assert_eq!(second.identity(), first.identity());
    assert_ne!(second.serial(), first.serial());
    let second_file = write(&file("second.der"), &renewed);

    // The authority has another key by the time of the third: the second one, by the old key, is
    // enough to get it.
    let scene = rotated(scene).await;
    scene.hand.advance(DAY * 250);
    let last_key = write(
        &file("last.der"),
        pki(&["--gen", "--type", "ecdsa", "--size", "256"]),
    );
    let last_csr = write(
        &file("last-csr.der"),
        pki(&[&request[..], &[&last_key]].concat()),
    );
    let offered = url(scene.certificate_port);
    let [_, next_root] = roots(&scene).await;
    let next_root = write(&file("next-root.pem"), next_root.to_pem().unwrap());
    let arguments = [
        &["--est", "--url", &offered, "--in", &last_csr][..],
        &["--cert", &second_file, "--key", &next_key],
        &trust,
        &["--cacert", &next_root],
    ]
    .concat();
    let renewed = tokio::task::block_in_place(|| pki(&arguments));
    let third = Certificate::from_der(&renewed).unwrap();
    assert_eq!(third.identity(), first.identity());
    assert_ne!(third.serial(), second.serial());
    scene.end().await;
}

/// The service with a new key of its authority, which signs.
async fn rotated(scene: Scene) -> Scene {
    succeed(scene.made.command().args(["key", "rotate", "issuing"]));
    let scene = scene.again().await;
    succeed(scene.made.command().args(["key", "activate", "issuing"]));
    scene.again().await
}

/// What `cacerts` gives.
async fn cacerts(scene: &Scene) -> Vec<Certificate> {
    let answer = scene.get("/.well-known/est/cacerts").await.done(200);
    let message = opcert::base::encoding::from_base64(&answer.bytes).unwrap();
    let found = opcert::base::cms::certificates(&message).unwrap();
    let parsed = found.iter().map(|der| Certificate::from_der(der).unwrap());
    parsed.collect()
}

/// The self-signed ones: of the first key, and of the next.
async fn roots(scene: &Scene) -> [Certificate; 2] {
    let first = scene.made.authority();
    let mut all = cacerts(scene).await;
    all.retain(|one| one.is_self_signed() && one.der() != first.der());
    [first, all.remove(0)]
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_takes_what_either_key_of_the_authority_signed() {
    let scene = Scene::new().await;
    let directory = scene.made.token.directory().to_owned();
    let file = |name: &str| directory.join(name);
    let old = scene.installed("alice", "c1").await;
    let scene = rotated(scene).await;
    let new = scene.installed("bob", "c2").await;
    let [first, next] = roots(&scene).await;
    assert_eq!(first.subject(), next.subject());
    let key = |certificate: &Certificate| hex(&certificate.public_key().fingerprint());

    // Both roots, and what each says of the other.
    let all = cacerts(&scene).await;
    assert_eq!(all.len(), 4);
    let link = |of: &Certificate, from: &Certificate| {
        let mut links = all.iter().filter(|one| !one.is_self_signed());
        let found = links.find(|one| one.public_key() == of.public_key());
        let found = found.unwrap_or_else(|| panic!("a link of {}", key(of)));
        assert_eq!(found.issuer(), from.subject());
        found.to_pem().unwrap()
    };
    let root_files = [
        write(&file("first.pem"), first.to_pem().unwrap()),
        write(&file("next.pem"), next.to_pem().unwrap()),
    ];
    let links = [
        write(&file("old-with-new.pem"), link(&first, &next)),
        write(&file("new-with-old.pem"), link(&next, &first)),
    ];
    let leaves = [
        write(&file("old.pem"), old.certificate.to_pem().unwrap()),
        write(&file("new.pem"), new.certificate.to_pem().unwrap()),
    ];
    let openssl = |arguments: &[&str]| {
        let (code, out, error) = run(Command::new("openssl").args(arguments), "");
        (code, out + &error)
    };
    // The clock of the service has gone ahead of the machine's.
    let time = scene.clock.now().as_second().to_string();
    let verify = |arguments: &[&str]| {
        let all = [&["verify", "-x509_strict", "-attime", &time], arguments].concat();
        openssl(&all)
    };
    for (root, leaf) in root_files.iter().zip(&leaves) {
        let (code, said) = verify(&["-CAfile", root, leaf]);
        assert_eq!(code, 0, "{said}");
    }
    // Whoever trusts one key only gets to the other by its word.
    for (root, leaf, link) in [
        (&root_files[1], &leaves[0], &links[0]),
        (&root_files[0], &leaves[1], &links[1]),
    ] {
        let (code, _) = verify(&["-CAfile", root, leaf]);
        assert_ne!(code, 0);
        let (code, said) = verify(&["-CAfile", root, "-untrusted", link, leaf]);
        assert_eq!(code, 0, "{said}");
    }

    // Each certificate names the list of its key, and openssl asks no more.
    let revoked = |list: &[u8], root: &Certificate| {
        let list = opcert::base::x509::Crl::from_der(list, root).unwrap();
        [&old, &new].map(|one| list.revoked_at(one.certificate.serial()).is_some())
    };
    let lists = async || {
        let mut lists = Vec::new();
        for root in [&first, &next] {
            let path = format!("/pki/{}.crl", key(root));
            lists.push(scene.get(&path).await.done(200).bytes);
        }
        lists
    };
    for (index, list) in lists().await.iter().enumerate() {
        let der = write(&file("list.der"), list);
        let list = file("list.pem").display().to_string();
        openssl(&["crl", "-inform", "DER", "-in", &der, "-out", &list]);
        let (root, leaf) = (&root_files[index], &leaves[index]);
        let (_, shown) = openssl(&["x509", "-in", leaf, "-noout", "-text"]);
        let named = format!("/pki/{}.crl", key([&first, &next][index]));
        assert!(shown.contains(&named), "{named}: {shown}");
        let (code, said) = verify(&["-crl_check", "-CAfile", root, "-CRLfile", &list, leaf]);
        assert_eq!(code, 0, "{said}");
    }
    scene
        .get(&format!("/pki/{}.crl", "0".repeat(64)))
        .await
        .refused(404, "not-found");
    let plain = scene.get("/pki/issuing.crl").await.done(200).bytes;
    assert_eq!(plain, lists().await[1], "the key that signs");

    // OCSP: each certificate is answered for by its own key.
    let question = file("question.der").display().to_string();
    let answer = file("answer.der").display().to_string();
    let ask = async |arguments: &[&str]| {
        let all = [&["ocsp", "-no_nonce", "-reqout", &question], arguments].concat();
        openssl(&all);
        let asked = std::fs::read(&question).unwrap();
        let given = scene.post("/ocsp", "application/ocsp-request", asked).await;
        write(Path::new(&answer), &given.done(200).bytes);
    };
    for index in 0..2 {
        let (root, leaf) = (&root_files[index], &leaves[index]);
        ask(&["-issuer", root, "-cert", leaf]).await;
        let (code, said) = openssl(&[
            "ocsp",
            "-issuer",
            root,
            "-CAfile",
            root,
            "-respin",
            &answer,
            "-no_nonce",
            "-cert",
            leaf,
        ]);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("Response verify OK"), "{said}");
        assert!(said.contains(": good"), "{said}");
        // Of the other key it is none.
        let other = &root_files[1 - index];
        ask(&["-issuer", other, "-cert", leaf]).await;
        let (_, said) = openssl(&["ocsp", "-respin", &answer, "-noverify", "-resp_text"]);
        assert!(said.contains("Cert Status: unknown"), "{said}");
    }
    // One answer has one signature: it says nothing about certificates of another key.
    ask(&[
        "-issuer",
        &root_files[0],
        "-cert",
        &leaves[0],
        "-issuer",
        &root_files[1],
        "-cert",
        &leaves[1],
    ])
    .await;
    let (_, said) = openssl(&["ocsp", "-respin", &answer, "-noverify", "-resp_text"]);
    assert!(said.contains("Cert Status: good"), "{said}");
    assert!(said.contains("Cert Status: unknown"), "{said}");

    // Both approve; one that is revoked is on every list, and approves no more.
    let approve = async |by: &Installed, operator: &str| {
        let created = scene.withdrawal(operator).await;
        let approval = scene.approval(by, &created.text("challenge"));
        scene.post_approval(&created, &approval).await
    };
    approve(&old, "alice").await.done(200);
    approve(&new, "bob").await.done(200);
    let serial = hex(old.certificate.serial());
    succeed(
        scene
            .made
            .command()
            .args(["certificate", "revoke", &serial]),
    );
    for (list, root) in lists().await.iter().zip([&first, &next]) {
        assert_eq!(revoked(list, root), [true, false]);
    }
    approve(&old, "alice")
        .await
        .refused(422, "certificate-revoked");

    // Nothing of the old key is left, so it may go; what it signed is another authority's then.
    let retire = |key: &str, more: &[&str]| {
        let mut retire = scene.made.command();
        run(retire.args(["key", "retire", key]).args(more), "")
    };
    let (code, _, error) = retire(&key(&next), &[]);
    assert_eq!(code, 1, "the key that signs: {error}");
    let (code, _, error) = retire(&key(&first), &[]);
    assert_eq!(code, 0, "{error}");
    let scene = scene.again().await;
    assert_eq!(cacerts(&scene).await.len(), 1);
    scene
        .get(&format!("/pki/{}.crl", key(&first)))
        .await
        .refused(404, "not-found");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_learns_of_a_revocation_at_once() {
    let scene = Scene::new().await;
    let directory = scene.made.token.directory().to_owned();
    let file = |name: &str| directory.join(name);
    let authority = scene.made.state().join("ca.pem").display().to_string();
    let installed = scene.installed("alice", "c1").await;
    let pem = installed.certificate.to_pem().unwrap();
    let certificate = write(&file("c.pem"), pem);

    // openssl makes the question and reads the answer; the way there is ours, as it would have to
    // trust the TLS certificate of the trial.
    let question = file("question.der").display().to_string();
    let answer = file("answer.der").display().to_string();
    let ask = |extra: &[&str]| {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["ocsp", "-issuer", &authority, "-reqout", &question])
            .args(extra);
        run(&mut openssl, "");
        std::fs::read(&question).unwrap()
    };
    let read = |bytes: &[u8], extra: &[&str]| {
        write(Path::new(&answer), bytes);
        let mut openssl = Command::new("openssl");
        openssl
            .args(["ocsp", "-issuer", &authority, "-CAfile", &authority])
            .args(["-respin", &answer, "-reqin", &question])
            .args(extra);
        let (code, out, error) = run(&mut openssl, "");
        assert_eq!(code, 0, "{error}");
        assert!(error.contains("Response verify OK"), "{error}");
        out + &error
    };
    let post = async |question: Vec<u8>| {
        let answer = scene
            .post("/ocsp", "application/ocsp-request", question)
            .await;
        assert_eq!(answer.headers["content-type"], "application/ocsp-response");
        answer.done(200).bytes
    };

    // Without a nonce the answer is signed once and given again; GET gives the same.
    let plain = ask(&["-no_nonce", "-cert", &certificate]);
    let first = post(plain.clone()).await;
    assert_eq!(post(plain.clone()).await, first);
    let encoded = base64(&plain)
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    let by_get = scene.get(&format!("/ocsp/{encoded}")).await.done(200);
    assert_eq!(by_get.bytes, first);
    let said = read(&first, &["-no_nonce", "-cert", &certificate]);
    assert!(said.contains(": good"), "{said}");
    let sha256 = ask(&["-no_nonce", "-sha256", "-cert", &certificate]);
    let said = read(
        &post(sha256).await,
        &["-no_nonce", "-sha256", "-cert", &certificate],
    );
    assert!(said.contains(": good"), "{said}");

    // With one, each answer is for its question.
    let nonced = ask(&["-cert", &certificate]);
    let one = post(nonced.clone()).await;
    // The nonce is in the question that was kept; `-no_nonce` keeps openssl from making another.
    let said = read(&one, &["-no_nonce", "-cert", &certificate]);
    assert!(said.contains(": good") && !said.contains("nonce"), "{said}");
    let other = ask(&["-cert", &certificate]);
    assert_ne!(other, nonced);
    assert_ne!(post(other).await, one);

    // A number that was never issued, and half the time of an answer later.
    let unknown = ask(&["-no_nonce", "-serial", "0x1234"]);
    let said = read(&post(unknown).await, &["-no_nonce", "-serial", "0x1234"]);
    assert!(said.contains(": unknown"), "{said}");
    scene.hand.advance(Duration::from_secs(30 * 60));
    assert_ne!(post(plain.clone()).await, first);

    // Revoked: the next answer says so, and why.
    let alice = Browser::log_in(&scene, "alice").await;
    let path = format!("/v1/certificates/{}", hex(installed.certificate.serial()));
    alice.send(Method::DELETE, &path, None).await.done(200);
    let revoked = post(plain.clone()).await;
    // openssl compares with the clock of the machine, ours has gone ahead of it.
    std::fs::write(&question, &plain).unwrap();
    let said = {
        write(Path::new(&answer), &revoked);
        let mut openssl = Command::new("openssl");
        openssl.args(["ocsp", "-respin", &answer, "-noverify", "-resp_text"]);
        let (_, out, error) = run(&mut openssl, "");
        out + &error
    };
    assert!(said.contains("Cert Status: revoked"), "{said}");
    assert!(
        said.contains("Revocation Reason: cessationOfOperation"),
        "{said}"
    );

    // What is no question gets an answer that says so.
    assert_eq!(post(b"garbage".to_vec()).await[..], [0x30, 3, 0x0a, 1, 1]);
    assert_eq!(
        scene.get("/ocsp/garbage").await.done(200).bytes[..],
        [0x30, 3, 0x0a, 1, 1]
    );
    scene
        .post("/ocsp", JSON, "{}")
        .await
        .refused(415, "unsupported-media-type");
    scene.end().await;
}
