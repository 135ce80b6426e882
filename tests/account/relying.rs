//! The platform as the service knows it by its certificate, and as it verifies what it is given.

use std::path::Path;
use std::process::Command;

use axum::body::Bytes;
use http::{Method, Request};
use serde_json::Value;

use opcert::http::client::Target;
use opcert::http::tls::{self, Identity};

use super::scene::*;

/// A self-signed TLS client certificate, as openssl makes one; the names of its files.
fn client_certificate(directory: &Path, name: &str, days: &str) -> (String, String) {
    let path = |what: &str| {
        directory
            .join(format!("{name}-{what}.pem"))
            .display()
            .to_string()
    };
    let (certificate, key) = (path("cert"), path("key"));
    let subject = format!("/CN={name}");
    succeed(Command::new("openssl").args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        &subject,
        "-days",
        days,
        "-keyout",
        &key,
        "-out",
        &certificate,
    ]));
    (certificate, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_is_known_by_its_tls_certificate_with_its_scopes() {
    let scene = Scene::new().await;
    let directory = scene.made.token.directory().to_owned();
    let (all, all_key) = client_certificate(&directory, "backend", "2");
    let (reader, reader_key) = client_certificate(&directory, "reader", "2");
    let (unknown, unknown_key) = client_certificate(&directory, "unknown", "2");
    let create = |name: &str, certificate: &str, more: &[&str]| {
        let mut create = scene.made.command();
        create
            .args(["platform-key", "create", name, "--certificate", certificate])
            .args(more);
        succeed(&mut create)
    };
    create("backend", &all, &[]);
    create("reader", &reader, &["--scope", "operations:read"]);
    let target = |certificate: &str, key: &str, port: u16| {
        let read = |path: &str| std::fs::read(path).unwrap();
        let identity = Identity::from_pem(&read(certificate), &read(key)).unwrap();
        let trust = std::fs::read(scene.made.state().join("server-ca.pem")).unwrap();
        let roots = tls::roots(tls::certificates(&trust).unwrap()).unwrap();
        Target::Tls {
            host: "127.0.0.1".into(),
            port,
            config: tls::client(roots, Some(&identity)).unwrap(),
        }
    };
    let ask = async |target: &Target, method: Method, path: &str, body: Option<Value>| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", JSON);
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        send(target, request.body(Bytes::from(body)).unwrap()).await
    };
    // They are younger than the clock of the scene, which stands still.
    let made_at = jiff::Timestamp::now() + std::time::Duration::from_secs(1);
    scene.hand.set(made_at);
    let path = "/v1/operations";
    let port = scene.certificate_port;
    let backend = target(&all, &all_key, port);
    let made = ask(&backend, Method::POST, path, Some(withdrawal("alice")))
        .await
        .done(201);
    let id = made.json["operation"]["id"].as_str().unwrap();
    let own = format!("{path}/{id}");

    // One that may only read.
    let reading = target(&reader, &reader_key, port);
    ask(&reading, Method::GET, &own, None).await.done(200);
    for (method, path, body) in [
        (Method::POST, path.to_owned(), Some(withdrawal("alice"))),
        (Method::POST, format!("{own}/cancellation"), None),
        (Method::GET, "/v1/webhooks".to_owned(), None),
    ] {
        ask(&reading, method, &path, body)
            .await
            .refused(403, "forbidden");
    }

    // A certificate that nobody registered, one at the door that asks for none, one whose time is
    // over, and one that was withdrawn.
    let stranger = target(&unknown, &unknown_key, port);
    ask(&stranger, Method::GET, &own, None)
        .await
        .refused(401, "unauthenticated");
    let elsewhere = target(&all, &all_key, scene.port());
    ask(&elsewhere, Method::GET, &own, None)
        .await
        .refused(401, "unauthenticated");
    scene
        .hand
        .advance(std::time::Duration::from_secs(3 * 24 * 3600));
    ask(&backend, Method::GET, &own, None)
        .await
        .refused(401, "unauthenticated");
    scene.hand.set(made_at);
    ask(&backend, Method::GET, &own, None).await.done(200);
    succeed(
        scene
            .made
            .command()
            .args(["platform-key", "revoke", "backend"]),
    );
    ask(&backend, Method::GET, &own, None)
        .await
        .refused(401, "unauthenticated");
    scene.end().await;
}

/// The script in docs/verify-approvals.md.
fn python_of_the_page() -> String {
    let page = include_str!("../../docs/verify-approvals.md");
    let (_, rest) = page.split_once("```python\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn anybody_verifies_an_approval_by_the_documented_way() {
    use opcert::statement::{Verifier, VerifierError};

    let scene = Scene::new().await;
    let alice = scene.installed("alice", "c1").await;
    let directory = scene.made.token.directory().to_owned();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let created = scene.withdrawal("alice").await;
    let challenge = created.text("challenge");
    let approval = scene.approval(&alice, &challenge);
    scene.post_approval(&created, &approval).await.done(200);
    let other = scene.withdrawal("alice").await.text("challenge");
    let fresh = scene.get("/pki/issuing.crl").await.done(200).bytes;

    // The library of this crate.
    let service: opcert::statement::Origin = "https://127.0.0.1:18443".parse().unwrap();
    let now = scene.clock.now();
    let mut verifier = Verifier::new(service.clone(), vec![scene.made.authority()]);
    let unlisted = verifier.verify(&approval, &challenge, now).unwrap_err();
    assert!(matches!(unlisted, VerifierError::NoList), "{unlisted:?}");
    verifier.take_list(&fresh).unwrap();
    let verified = verifier.verify(&approval, &challenge, now).unwrap();
    assert_eq!(verified.statement.operator().as_str(), "alice");
    let elsewhere = verifier.verify(&approval, &other, now).unwrap_err();
    assert!(
        matches!(elsewhere, VerifierError::Challenge),
        "{elsewhere:?}"
    );
    let mut stranger = Verifier::new(
        "https://other.example".parse().unwrap(),
        vec![scene.made.authority()],
    );
    stranger.take_list(&fresh).unwrap();
    let foreign = stranger.verify(&approval, &challenge, now).unwrap_err();
    assert!(
        matches!(foreign, VerifierError::Audience { .. }),
        "{foreign:?}"
    );

    // The script of the page, with libraries that nobody here wrote; where they are not installed,
    // tests/foreign/check.py runs it, too.
    let imports = ["-c", "import cryptography, joserfc"];
    if run(Command::new("python3").args(imports), "").0 != 0 {
        println!("skipped: python3 has no joserfc");
        return;
    }
    let script = write("verify.py", python_of_the_page().as_bytes());
    let authority = scene.made.state().join("ca.pem").display().to_string();
    let challenge_file = write("challenge.jws", challenge.as_bytes());
    let other_file = write("other.jws", other.as_bytes());
    let approval_file = write("approval.jws", approval.as_bytes());
    let crl = write("crl.der", &fresh);
    let check = |service: &str, crl: &str, challenge: &str, approval: &str| {
        let mut python = Command::new("python3");
        run(
            python.args([&script, service, &authority, crl, challenge, approval]),
            "",
        )
    };
    let service = service.as_str();
    let (code, out, error) = check(service, &crl, &challenge_file, &approval_file);
    assert_eq!(code, 0, "{error}");
    let statement: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(statement, created.json["operation"]["statement"]);
    let middle = approval.rfind('.').unwrap() + 8;
    let mut tampered = approval.clone();
    let swap = if &tampered[middle..=middle] == "A" {
        "B"
    } else {
        "A"
    };
    tampered.replace_range(middle..=middle, swap);
    let tampered_file = write("tampered.jws", tampered.as_bytes());
    let serial = opcert::base::encoding::hex(alice.certificate.serial());
    succeed(
        scene
            .made
            .command()
            .args(["certificate", "revoke", &serial]),
    );
    let after = scene.get("/pki/issuing.crl").await.done(200).bytes;
    let revoked = write("revoked.der", &after);
    for (arguments, words) in [
        (
            [
                "https://other.example",
                &crl,
                &challenge_file,
                &approval_file,
            ],
            "another service",
        ),
        (
            [service, &crl, &other_file, &approval_file],
            "the challenge",
        ),
        (
            [service, &crl, &challenge_file, &tampered_file],
            "the signature",
        ),
        (
            [service, &revoked, &challenge_file, &approval_file],
            "is revoked",
        ),
    ] {
        let [service, crl, challenge, approval] = arguments;
        let (code, _, error) = check(service, crl, challenge, approval);
        assert_ne!(code, 0, "{words}");
        assert!(error.contains(words), "{words}: {error}");
    }
    verifier.take_list(&after).unwrap();
    let gone = verifier.verify(&approval, &challenge, now).unwrap_err();
    assert!(matches!(gone, VerifierError::Approval(_)), "{gone:?}");
    let old = verifier.take_list(&fresh).unwrap_err();
    assert!(matches!(old, VerifierError::OldList { .. }), "{old:?}");
    scene.end().await;
}
