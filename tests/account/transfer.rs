//! An account that is taken from one database to another.

use std::path::Path;

use serde_json::Value;

use super::scene::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_taken_to_another_database() {
    use opcert::account::key_proof::KeyProof;
    use opcert::account::store::keys::{self, KeyPurpose, Turn};
    use opcert::account::store::{Store, StoreError, key_proofs, transfer};
    use opcert::base::ids::AccountId;

    let scene = Scene::new().await;
    let alice = scene.installed("alice", "c1").await;
    scene.installed("bob", "c2").await;
    let serial = opcert::base::encoding::hex(alice.certificate.serial());
    for arguments in [
        &["certificate", "revoke", &serial][..],
        &["operator", "disable", "bob", "--account", "acme"],
        &[
            "approval-rule",
            "set",
            "--account",
            "acme",
            "--kind",
            "withdrawal",
            "--currency",
            "CNY",
            "--from",
            "1000",
            "--approvals",
            "2",
        ],
    ] {
        succeed(scene.made.command().args(arguments));
    }
    let (certificate, proof) = (
        &serial,
        &KeyProof {
            waived: Some("CKA_LOCAL".into()),
            attested: None,
        },
    );
    let kept = scene.service.store().transaction("test", move |tx| {
        Box::pin(key_proofs::insert(tx, certificate, proof))
    });
    kept.await
        .unwrap_or_else(|error: StoreError| panic!("{error:?}"));
    let directory = scene.made.token.directory().to_owned();
    let file = directory.join("acme.jsonl");
    let export = |account: &str| {
        let mut export = scene.made.command();
        export
            .args(["account", "export", account, "--out"])
            .arg(&file);
        export
    };
    let (code, _, error) = run(&mut export("nobody"), "");
    assert_eq!(code, 1, "{error}");
    succeed(&mut export("acme"));
    let text = std::fs::read_to_string(&file).unwrap();
    // No line shows a hash, and everything else is there.
    assert!(!text.contains("argon2"), "{text}");
    for line in text.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    let records = |kind: &str| text.matches(&format!("\"record\":\"{kind}\"")).count();
    for (kind, count) in [
        ("account", 1),
        ("approval-rule", 1),
        ("operator", 2),
        ("computer", 2),
        ("certificate", 2),
        ("key-proof", 1),
    ] {
        assert_eq!(records(kind), count, "{kind}: {text}");
    }

    // What went out comes in as it was.
    let url = database().unwrap_or_else(|| Store::sqlite_url(&directory.join("other.db")));
    let (other, _, _) = Store::migrate(&url).await.unwrap();
    let account: &AccountId = &"acme".parse().unwrap();
    let rows = async |store: &Store| {
        store
            .read("test", move |tx| Box::pin(transfer::rows(tx, account)))
            .await
            .unwrap_or_else(|error: StoreError| panic!("{error:?}"))
    };
    let here = &rows(scene.service.store()).await;
    // The authority must be there before the certificates are.
    let key = scene.service.store().read("test", |tx| {
        Box::pin(keys::current(tx, KeyPurpose::Issuing))
    });
    let key = &key
        .await
        .unwrap_or_else(|error: StoreError| panic!("{error:?}"))
        .unwrap();
    other
        .transaction("test", move |tx| {
            Box::pin(async move {
                keys::insert(tx, KeyPurpose::Issuing, key, Turn::Now).await?;
                for row in here {
                    transfer::insert(tx, account, row).await?;
                }
                Ok(())
            })
        })
        .await
        .unwrap_or_else(|error: StoreError| panic!("{error:?}"));
    assert_eq!(rows(&other).await, *here);
    other.close().await;

    // One that is there, cut, or changed is refused; so is one of another authority or code-key,
    // unless that is meant.
    let import = |made: &Made, file: &Path, more: &[&str]| {
        let mut import = made.command();
        import.args(["account", "import"]).arg(file).args(more);
        run(&mut import, "")
    };
    let (code, _, error) = import(&scene.made, &file, &[]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("exists already"), "{error}");
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        opcert::base::files::write_new(&path, text.as_bytes(), 0o600).unwrap();
        path
    };
    let lines: Vec<&str> = text.lines().collect();
    let cut = write("cut", &(lines[..lines.len() - 1].join("\n") + "\n"));
    let moved = write("moved", &text.replace("\"acme\"", "\"acne\""));
    for (bad, words) in [(&cut, "its end is missing"), (&moved, "was changed")] {
        let (code, _, error) = import(&scene.made, bad, &[]);
        assert_eq!(code, 65, "{error}");
        assert!(error.contains(words), "{error}");
    }
    let stranger = tokio::task::spawn_blocking(Made::new).await.unwrap();
    let (code, _, error) = import(&stranger, &file, &[]);
    assert_eq!(code, 65, "{error}");
    assert!(error.contains("--without-certificates"), "{error}");
    let (code, _, error) = import(&stranger, &file, &["--without-certificates"]);
    assert_eq!(code, 65, "{error}");
    assert!(error.contains("--new-passwords"), "{error}");
    let flags = ["--without-certificates", "--new-passwords"];
    let (code, _, error) = import(&stranger, &file, &flags);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("exists already"), "{error}");

    // Under a name that the stranger does not have.
    succeed(
        scene
            .made
            .command()
            .args(["account", "create", "zeta", "--name", "Zeta Ltd"]),
    );
    let mut create = scene.made.command();
    create
        .args([
            "operator",
            "create",
            "zoe",
            "--account",
            "zeta",
            "--mobile",
            "+8613800000009",
        ])
        .args(["--role", "super-administrator", "--password-file", "-"]);
    succeed_with(&mut create, PASSWORD);
    let zeta = directory.join("zeta.jsonl");
    let mut export = scene.made.command();
    export
        .args(["account", "export", "zeta", "--out"])
        .arg(&zeta);
    succeed(&mut export);
    let (code, _, error) = import(&stranger, &zeta, &flags);
    assert_eq!(code, 0, "{error}");
    let listed =
        succeed(
            stranger
                .command()
                .args(["--json", "operator", "list", "--account", "zeta"]),
        );
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["operator"], "zoe");
    assert_eq!(listed[0]["role"], "super-administrator");
    scene.end().await;
}

/// A copy of the service's database as it is now: what another instance was given.
fn copy_of_database(made: &Made) -> String {
    let text = std::fs::read_to_string(&made.config).unwrap();
    let named = text
        .lines()
        .find_map(|line| line.strip_prefix("database = "))
        .map(|url| url.trim_matches('"').to_owned());
    let Some(url) = named else {
        let copy = made.state().join("copy.db");
        std::fs::copy(made.state().join("account.db"), &copy).unwrap();
        return format!("sqlite:{}", copy.display());
    };
    let (address, options) = url.split_once('?').unwrap_or((&url, ""));
    let (host, name) = address.rsplit_once('/').unwrap();
    let copy = format!("{name}copy");
    let create = format!("CREATE DATABASE {copy} TEMPLATE {name}");
    let server = std::env::var("OPCERT_TEST_POSTGRES").unwrap();
    succeed(std::process::Command::new("psql").args([&server, "--quiet", "--command", &create]));
    format!("{host}/{copy}?{options}")
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_came_with_an_account_are_good_where_their_authority_is() {
    let made = tokio::task::spawn_blocking(Made::bare).await.unwrap();
    let copy = copy_of_database(&made);
    let made = tokio::task::spawn_blocking(|| made.with_people())
        .await
        .unwrap();
    let scene = Scene::of(made, |_| (), jiff::Timestamp::now()).await;
    let alice = scene.installed("alice", "c1").await;
    let bob = scene.installed("bob", "c2").await;
    let serial = |of: &Installed| opcert::base::encoding::hex(of.certificate.serial());
    succeed(
        scene
            .made
            .command()
            .args(["certificate", "revoke", &serial(&bob)]),
    );
    let created = scene.withdrawal("alice").await;
    let approval = scene.approval(&alice, &created.text("challenge"));
    scene.post_approval(&created, &approval).await.done(200);
    let now = scene.clock.now();
    let mut made = scene.end().await;
    let file = made.token.directory().join("acme.jsonl");
    let certificates = |made: &Made| -> Value {
        let list = succeed(made.command().args(["--json", "certificate", "list"]));
        serde_json::from_str(&list).unwrap()
    };
    let before = certificates(&made);
    assert_eq!(before.as_array().unwrap().len(), 2);
    succeed(
        made.command()
            .args(["account", "export", "acme", "--out"])
            .arg(&file),
    );

    // The other database knows the authority and nothing of the account.
    let text = std::fs::read_to_string(&made.config).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("database = "));
    let lines: Vec<&str> = lines.collect();
    let other = made.token.directory().join("other.toml");
    let config = format!("database = \"{copy}\"\n{}\n", lines.join("\n"));
    opcert::base::files::write_new(&other, config.as_bytes(), 0o600).unwrap();
    made.config = other;
    assert_eq!(certificates(&made).as_array().unwrap().len(), 0);
    let import = ["account", "import"];
    let said = succeed(made.command().args(import).arg(&file));
    assert!(said.contains("Account acme is here"), "{said}");
    assert_eq!(certificates(&made), before);
    let (code, _, error) = run(made.command().args(import).arg(&file), "");
    assert_eq!(code, 1, "{error}");
    made.platform_key = succeed(made.command().args(["platform-key", "create", "shop"]))
        .trim()
        .to_owned();

    // There, the one approves and the other does not; the list names it.
    let scene = Scene::of(made, |_| (), now).await;
    let approve = async |by: &Installed, operator: &str| {
        let created = scene.withdrawal(operator).await;
        let approval = scene.approval(by, &created.text("challenge"));
        scene.post_approval(&created, &approval).await
    };
    approve(&alice, "alice").await.done(200);
    approve(&bob, "bob")
        .await
        .refused(422, "certificate-revoked");
    let list = scene.get("/pki/issuing.crl").await.done(200).bytes;
    let list = opcert::base::x509::Crl::from_der(&list, &scene.made.authority()).unwrap();
    assert!(list.revoked_at(bob.certificate.serial()).is_some());
    assert!(list.revoked_at(alice.certificate.serial()).is_none());
    // Neither key is certified again.
    let ticket = scene.ticket("alice", "c1").await;
    scene
        .enrol(&ticket, &alice.key.csr())
        .await
        .refused(422, "csr-invalid");
    scene.end().await;
}
