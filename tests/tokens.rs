//! What a person does to tokens, by `opcert token`, the real daemon and a real worker.

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};

use http::Method;
use opcert::audit::Audit;
use opcert::base::clock::Clock;
use opcert::base::key::{KeySpec, Scheme};
use opcert::base::pkcs11::KeyId;
use opcert::device::{DeviceError, KeyUse};
use opcert::policy::Caller;
use opcert::signing::token_test::{self, KeyOutcome};
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::devices::{generate, select, start};
use support::faulty::Faulty;
use support::softhsm::TestToken;

/// What a run of `opcert` said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("{} {}", self.out, self.err))
    }

    /// The code of the error it ended with.
    #[track_caller]
    fn refused(&self) -> String {
        let error: Value =
            serde_json::from_str(&self.err).unwrap_or_else(|_| panic!("{} {}", self.out, self.err));
        error["code"].as_str().unwrap().to_owned()
    }
}

/// `opcert --socket … token ARGUMENTS`, with `typed` on its standard input.
fn token_command(daemon: &Daemon, arguments: &[&str], typed: &str) -> Said {
    let mut child = Command::new(env!("CARGO_BIN_EXE_opcert"))
        .arg("--socket")
        .arg(daemon.socket())
        .arg("token")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(typed.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The bodies of all records of a kind.
fn records(daemon: &Daemon, kind: &str) -> Vec<Value> {
    let mut records = Vec::new();
    let mut files: Vec<_> = std::fs::read_dir(daemon.audit_directory())
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read(&file).unwrap();
        for line in String::from_utf8_lossy(&text).lines() {
            let Some((_, json)) = line.split_once(' ') else {
                continue;
            };
            let Ok(record) = serde_json::from_str::<Value>(json) else {
                continue;
            };
            if record["kind"] == kind {
                records.push(record["body"].clone());
            }
        }
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_tested_by_signing_one_text() {
    let token = TestToken::new("opcert-test");
    let mut expected = 0;
    let named = {
        let devices = start(&token, token.config()).await;
        let id = select(&devices, &token).await;
        let status = devices.tokens().await.remove(0);
        let mut named = None;
        for spec in status.generates {
            named = Some(generate(&devices, &id, spec).await);
            expected += 1;
        }
        let sealing = KeyId::random();
        let _key = devices
            .generate_for(&id, KeySpec::Rsa2048, KeyUse::Decrypt, &sealing, "sealing")
            .await
            .unwrap();
        devices.shutdown().await;
        named.unwrap()
    };
    tokio::task::spawn_blocking(move || {
        let daemon = Daemon::start(&token);
        let said = token_command(&daemon, &["test", "--json"], "");
        assert_eq!(said.code, 0, "{} {}", said.out, said.err);
        let tested = said.json();
        let keys = tested["keys"].as_array().unwrap();
        let outcomes = |outcome: &str| {
            let matching = keys.iter().filter(|key| key["outcome"] == outcome);
            matching.cloned().collect::<Vec<_>>()
        };
        assert!(outcomes("verified").len() >= expected, "{tested}");
        for key in outcomes("verified") {
            assert!(key["microseconds"].as_u64().unwrap() > 0, "{key}");
        }
        if token.is_softhsm() {
            assert_eq!(outcomes("verified").len(), expected, "{tested}");
            let sealing = outcomes("not-for-signing");
            assert_eq!(sealing.len(), 1, "{tested}");
            assert_eq!(sealing[0]["label"], "sealing");
        }

        // One key, by its URI; the token by its label; what is printed for a person.
        let said = token_command(&daemon, &["test", &named.to_string()], "");
        assert_eq!(said.code, 0, "{}", said.err);
        assert!(said.out.contains("signed, verified"), "{}", said.out);
        assert!(said.out.contains(" ms"), "{}", said.out);
        assert_eq!(said.out.lines().count(), 2, "{}", said.out);
        let said = token_command(&daemon, &["test", &token.label, "--json"], "");
        let again = said.json()["keys"].clone().without_times();
        assert_eq!(again, tested["keys"].clone().without_times());

        let missing = format!("{};id=%00%01", token.uri());
        let said = token_command(&daemon, &["test", &missing, "--json"], "");
        assert_eq!(said.refused(), "key-missing");
        let said = token_command(&daemon, &["test", "no such token", "--json"], "");
        assert_eq!(said.refused(), "token-absent");

        // It is on record, and what counts signatures counts it.
        let tests = records(&daemon, "token-test");
        assert!(tests.len() >= 2 * expected, "{tests:?}");
        assert!(tests[0]["by"]["unix"]["uid"].is_u64(), "{}", tests[0]);
        assert!(tests.iter().any(|test| test["outcome"] == "verified"));
        let (_, metrics) = daemon.control_text("/metrics");
        assert!(
            metrics.contains("opcert_signatures_total{purpose=\"token-test\"}"),
            "{metrics}"
        );

        // A program may not.
        let client = daemon.add_client("till", &json!({}));
        let body = json!({ "uri": token.uri() });
        let answer = daemon.native(&client, Method::POST, "/v1/tokens/test", &body);
        assert_eq!(answer.code(), "not-permitted");
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_key_that_signs_wrongly_fails_its_test() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    let faulty = Faulty::new(&token);
    let mut config = token.config();
    faulty.configure(&mut config);
    let devices = start(&token, config).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    let directory = token.directory().join("audit");
    std::fs::create_dir(&directory).unwrap();
    let (audit, _) = Audit::open(&directory, Default::default(), Clock::system()).unwrap();
    let run = async |caller: Caller| {
        let request = "r-1".parse().unwrap();
        token_test::run(&devices, &audit, &caller, &request, &id, &token.uri()).await
    };
    let root = Caller::Unix { uid: 0 };
    let good = run(root.clone()).await.unwrap();
    assert_eq!(good[0].outcome, KeyOutcome::Verified);
    assert_eq!(good[0].id.as_ref(), Some(&key.id));
    assert_eq!(good[0].scheme, Some(Scheme::Es256));

    faulty.on("C_Sign").flips(3);
    let bad = run(root).await.unwrap();
    assert_eq!(bad[0].outcome, KeyOutcome::Failed);
    assert!(matches!(
        bad[0].error,
        Some(DeviceError::BadSignature { .. })
    ));
    assert_eq!(bad[0].took, None);
    faulty.heal();

    let refused = run(Caller::Client("till".parse().unwrap())).await;
    assert!(
        matches!(refused, Err(token_test::TokenTestError::Policy(_))),
        "{refused:?}"
    );
    devices.shutdown().await;
}

/// What is the same in two tests of the same keys.
trait WithoutTimes {
    fn without_times(self) -> Self;
}

impl WithoutTimes for Value {
    fn without_times(mut self) -> Self {
        for key in self.as_array_mut().unwrap() {
            key.as_object_mut().unwrap().remove("microseconds");
        }
        self
    }
}
