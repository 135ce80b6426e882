//! What a person does to tokens, by `opcert token`, the real daemon and a real worker.

mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};

use http::Method;
use opcert::audit::Audit;
use opcert::base::clock::Clock;
use opcert::base::key::{KeySpec, Scheme};
use opcert::base::pkcs11::KeyId;
use opcert::base::secret::Pin as Secret;
use opcert::device::{DeviceError, KeyUse, LastTry, LoginPolicy, PinOf, TokenState, UnlockOutcome};
use opcert::policy::Caller;
use opcert::signing::token_test::{self, KeyOutcome};
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::devices::{generate, select, sign, start, state};
use support::faulty::{Faulty, pin_mark};
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

        // A program may do none of this.
        let client = daemon.add_client("till", &json!({}));
        let body = json!({ "uri": token.uri() });
        for path in ["test", "release", "init", "pin", "pin/unblock", "unlock"] {
            let path = format!("/v1/tokens/{path}");
            let answer = daemon.native(&client, Method::POST, &path, &body);
            assert_eq!(answer.code(), "not-permitted", "{path}");
        }
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

/// State and reason of each token, as `opcert token list` shows them.
fn states(daemon: &Daemon) -> Vec<String> {
    let list = token_command(daemon, &["list", "--json"], "").json();
    let tokens = list["tokens"].as_array().unwrap();
    let state = |token: &Value| token["state"].as_str().unwrap().to_owned();
    tokens.iter().map(state).collect()
}

/// Waits until the one token of a daemon that was just started is in this state.
#[track_caller]
fn becomes(daemon: &Daemon, state: &str) {
    support::wait::until(state, || (states(daemon) == [state]).then_some(()));
}

/// The process ids of a daemon's workers.
fn workers_of(daemon: &Daemon) -> Vec<String> {
    let parent = daemon.pid().to_string();
    let output = Command::new("pgrep").args(["-P", &parent]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_released_token_is_left_alone_until_a_request_names_it() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let service = support::service::Service::new("https://pay.example");
    daemon.enrol(&service, "alice", "p256");
    becomes(&daemon, "ready");
    assert_eq!(workers_of(&daemon).len(), 1);

    let said = token_command(&daemon, &["release", &token.label], "");
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("is released"), "{}", said.out);
    assert_eq!(states(&daemon), ["released"]);
    let gone = || workers_of(&daemon).is_empty();
    support::wait::until("the worker has ended", || gone().then_some(()));
    // To look at it is no reason to take it up again, and the daemon counts as ready.
    assert_eq!(daemon.control_text("/healthz/ready").0, 200);
    let list = token_command(&daemon, &["list"], "");
    assert!(list.out.contains("released"), "{}", list.out);
    assert_eq!(token_command(&daemon, &["release"], "").code, 0);
    assert!(workers_of(&daemon).is_empty());

    let said = token_command(&daemon, &["test", "--json"], "");
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    assert_eq!(states(&daemon), ["ready"]);
    assert_eq!(records(&daemon, "token-release").len(), 2);
}

#[tokio::test]
async fn a_release_keeps_the_pin_and_spends_no_try() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    let faulty = Faulty::new(&token);
    let mut config = token.config_with(None);
    faulty.configure(&mut config);
    let devices = start(&token, config).await;
    let id = select(&devices, &token).await;
    let pin = || Secret::new(token.pin.clone());
    let unlock = async || devices.unlock(&id, pin(), LastTry::Keep).await;
    unlock().await.unwrap();
    let key = generate(&devices, &id, KeySpec::P256).await;

    for _ in 0..3 {
        devices.release(&id).await.unwrap();
        assert_eq!(state(&devices).await.0, TokenState::Released);
        // Several at once take it up once.
        let (one, other) = tokio::join!(sign(&devices, &key), sign(&devices, &key));
        one.unwrap();
        other.unwrap();
        assert_eq!(state(&devices).await.0, TokenState::Ready);
    }
    assert_eq!(faulty.logins().len(), 4, "{:?}", faulty.logins());

    // A person's PIN takes it up as well.
    devices.release(&id).await.unwrap();
    assert_eq!(unlock().await.unwrap(), UnlockOutcome::Taken);
    assert_eq!(state(&devices).await.0, TokenState::Ready);
    assert!(faulty.logins().iter().all(|login| !login.may_have_spent()));
    devices.shutdown().await;
}

#[tokio::test]
async fn a_released_token_does_not_stop_its_neighbour() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    token.add("neighbour");
    let mut config = token.config();
    let mut neighbour = config.module[0].token[0].clone();
    neighbour.uri = "pkcs11:token=neighbour".parse().unwrap();
    config.module[0].token.push(neighbour);
    let devices = start(&token, config).await;
    let ours = select(&devices, &token).await;
    let other = "pkcs11:token=neighbour".parse().unwrap();
    let other = devices.select(&other).await.unwrap();
    let (key, far) = (
        generate(&devices, &ours, KeySpec::P256).await,
        generate(&devices, &other, KeySpec::P256).await,
    );
    devices.release(&ours).await.unwrap();
    sign(&devices, &far).await.unwrap();
    let states = async || {
        let list = devices.tokens().await;
        list.iter().map(|token| token.state).collect::<Vec<_>>()
    };
    assert_eq!(states().await, [TokenState::Released, TokenState::Ready]);
    sign(&devices, &key).await.unwrap();
    assert_eq!(states().await, [TokenState::Ready, TokenState::Ready]);
    devices.shutdown().await;
}

#[test]
fn a_token_is_made_used_and_made_again_only_when_told() {
    if TestToken::softhsm("made").is_none() {
        return;
    }
    let token = TestToken::softhsm_without_token("made");
    let daemon = Daemon::start(&token);
    becomes(&daemon, "absent");
    let init_as = |label: &str, more: &[&str], so_pin: &str, pin: &str| {
        let mut arguments = vec!["init", "--label", label, "--so-pin-file", "-"];
        arguments.extend(["--pin-file", "-", "--json"]);
        arguments.extend(more);
        token_command(&daemon, &arguments, &format!("{so_pin}\n{pin}\n"))
    };
    let init = |more: &[&str], so_pin: &str, pin: &str| init_as("made", more, so_pin, pin);
    assert_eq!(init(&[], "12345678", "123").refused(), "pin-unfit");
    let long = "x".repeat(33);
    let said = init_as(&long, &[], "12345678", &token.pin);
    assert_eq!(said.refused(), "malformed");
    assert_eq!(states(&daemon), ["absent"]);

    let said = init(&[], "12345678", &token.pin);
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    let made = said.json();
    assert_eq!(made["state"], "ready", "{made}");
    assert_eq!(states(&daemon), ["ready"]);
    let service = support::service::Service::new("https://pay.example");
    daemon.enrol(&service, "alice", "p256");
    assert_eq!(token_command(&daemon, &["test"], "").code, 0);

    // In use, then full of keys, then of a security officer whose PIN is another.
    let uri = made["uri"].as_str().unwrap();
    assert_eq!(
        init(&[uri, "--erase-keys"], "12345678", &token.pin).refused(),
        "token-in-use"
    );
    assert_eq!(token_command(&daemon, &["release"], "").code, 0);
    let said = init(&[uri], "12345678", &token.pin);
    let error: Value = serde_json::from_str(&said.err).unwrap();
    let detail = error["detail"].as_str().unwrap();
    for part in [
        "public key \"opcert acme alice\" (id ",
        "certificate \"",
        "keys and certificates",
    ] {
        assert!(detail.contains(part), "{part}: {detail}");
    }
    assert_eq!(said.refused(), "token-holds-keys");
    // A person is told what goes before any PIN is asked for.
    let mut arguments = vec!["init", "--label", "made", "--erase-keys", uri];
    arguments.extend(["--so-pin-file", "/nonexistent"]);
    let said = token_command(&daemon, &arguments, "");
    assert_ne!(said.code, 0);
    let (told, refused) = said.err.split_once("/nonexistent").expect(&said.err);
    assert!(told.contains("This destroys all that"), "{told}");
    for part in ["public key \"opcert acme alice\" (id ", "certificate \""] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!refused.contains("opcert acme alice"), "{refused}");
    assert_eq!(
        init(&[uri, "--erase-keys"], "87654321", &token.pin).refused(),
        "so-pin-wrong"
    );
    assert_eq!(token_command(&daemon, &["test"], "").code, 0);
    assert_eq!(token_command(&daemon, &["release"], "").code, 0);
    let said = init(&[uri, "--erase-keys"], "12345678", "another PIN");
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    assert_eq!(said.json()["state"], "ready");
    let said = token_command(&daemon, &["test", "--json"], "");
    assert_eq!(said.json()["keys"], json!([]), "no key is left");

    // What was asked for is on record before what came of it, and no PIN is anywhere.
    let asked = records(&daemon, "token-init-asked");
    let ended = records(&daemon, "token-init");
    assert_eq!(asked.len(), ended.len());
    assert!(asked.len() >= 6, "{asked:?}");
    let text = format!("{asked:?} {ended:?} {}", daemon.log());
    for pin in ["12345678", "87654321", "another PIN", token.pin.as_str()] {
        assert!(!text.contains(pin), "{pin} in {text}");
    }
}

/// As daemon and workers are.
#[test]
fn a_command_that_is_given_a_pin_is_in_no_swap_and_no_dump() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    let module = token.config_toml();
    let without_pin = module
        .lines()
        .filter(|line| !line.starts_with("pin-source"));
    let module: Vec<&str> = without_pin.collect();
    let daemon = Daemon::start_on(&token, &module.join("\n"), "");
    becomes(&daemon, "pin-needed");
    let mut child = Command::new(env!("CARGO_BIN_EXE_opcert"))
        .arg("--socket")
        .arg(daemon.socket())
        .args(["token", "unlock", "--pin-file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let process = format!("/proc/{}", child.id());
    let read = |name: &str| std::fs::read_to_string(format!("{process}/{name}"));
    // It waits for its PIN. An undumpable process's files are root's.
    let kept_out = support::wait::until("it is undumpable", || match read("coredump_filter") {
        Ok(filter) => (u32::from_str_radix(filter.trim(), 16) == Ok(0)).then_some(true),
        Err(_) => Some(false),
    });
    if kept_out {
        let locked = support::wait::until("its memory is locked", || {
            let status = read("status").unwrap();
            let line = status.lines().find(|line| line.starts_with("VmLck:"))?;
            let size: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            (size > 0).then_some(size)
        });
        assert!(locked > 1000, "{locked} KiB");
    } else {
        assert!(!rustix::process::geteuid().is_root());
        println!("skipped: only root may look");
    }
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{}", token.pin).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_pin_changes_and_the_daemon_goes_on() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    let mut daemon = Daemon::start(&token);
    let service = support::service::Service::new("https://pay.example");
    daemon.enrol(&service, "alice", "p256");
    let change = |daemon: &Daemon, old: &str, new: &str| {
        let arguments = [
            "pin",
            "change",
            "--pin-file",
            "-",
            "--new-pin-file",
            "-",
            "--json",
        ];
        token_command(daemon, &arguments, &format!("{old}\n{new}\n"))
    };
    assert_eq!(change(&daemon, "wrong", "654321").refused(), "pin-wrong");
    assert_eq!(change(&daemon, &token.pin, "1").refused(), "pin-unfit");
    assert_eq!(states(&daemon), ["ready"]);
    let said = change(&daemon, &token.pin, "654321");
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);

    // The next worker logs in with the new PIN, though the file holds the old one.
    let worker = workers_of(&daemon).remove(0);
    assert!(
        Command::new("kill")
            .args(["-9", &worker])
            .status()
            .unwrap()
            .success()
    );
    support::wait::until("another worker", || {
        let workers = workers_of(&daemon);
        let replaced = !workers.is_empty() && !workers.contains(&worker);
        (replaced && states(&daemon) == ["ready"]).then_some(())
    });
    assert_eq!(token_command(&daemon, &["test"], "").code, 0);

    // The next daemon does not try the file, until a person gives the new one.
    daemon.stop();
    daemon.restart();
    becomes(&daemon, "pin-needed");
    let said = token_command(&daemon, &["unlock", "--pin-file", "-"], "654321\n");
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(states(&daemon), ["ready"]);
    assert_eq!(records(&daemon, "token-pin-change").len(), 3);

    // A file that holds the new one is used.
    let pin_file = token.pin_file("654321");
    let uri = format!("{}?pin-source=file:{}", token.uri(), pin_file.display());
    daemon.stop();
    std::fs::remove_file(token.directory().join("state/pin-blocks.json")).unwrap();
    daemon.restart();
    becomes(&daemon, "ready");

    // The URI of RFC 7512 says where the PIN is, also on a command line, if nobody else reads it.
    assert_eq!(token_command(&daemon, &["unlock", &uri], "").code, 0);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&pin_file, mode).unwrap();
    let said = token_command(&daemon, &["unlock", &uri], "");
    assert!(said.err.contains("has mode 0644"), "{}", said.err);
}

#[tokio::test]
async fn a_new_pin_is_the_only_one_tried_from_then_on() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    let faulty = Faulty::new(&token);
    let mut config = token.config();
    faulty.configure(&mut config);
    let devices = start(&token, config.clone()).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    let pin = |text: &str| Secret::new(text.to_owned());
    let change = async |old: &str, new: &str, last_try| {
        let by = PinOf::User(Some(pin(old)));
        devices.set_pin(&id, by, Some(pin(new)), last_try).await
    };
    let before = faulty.logins().len();
    change(&token.pin, "new one", LastTry::Keep).await.unwrap();
    // The worker that is there now, and two more.
    for _ in 0..2 {
        faulty.on("C_SignInit").times(1).segfaults();
        sign(&devices, &key).await.unwrap_err();
        sign(&devices, &key).await.unwrap();
    }
    let logins = faulty.logins().split_off(before);
    assert_eq!(logins.len(), 3, "{logins:?}");
    assert!(logins.iter().all(|login| login.pin == pin_mark("new one")));

    // On the last try it is for a person to say so.
    faulty.pin_tries(3, 2);
    let refused = change("new one", "newer", LastTry::Keep).await;
    assert!(
        matches!(refused, Err(DeviceError::PinFinalTry { .. })),
        "{refused:?}"
    );
    change("new one", "newer", LastTry::Use).await.unwrap();
    faulty.pin_tries(3, 0);

    // A crash in the middle leaves a block that the next process finds.
    faulty.on("C_SetPIN").times(1).segfaults();
    let crashed = change("newer", "newest", LastTry::Keep).await;
    assert!(
        matches!(crashed, Err(DeviceError::WorkerDied { .. })),
        "{crashed:?}"
    );
    devices.shutdown().await;
    let logins = faulty.logins().len();
    let devices = start(&token, config).await;
    let (state, reason) = state(&devices).await;
    assert_eq!(state, TokenState::PinNeeded, "{reason}");
    assert_eq!(faulty.logins().len(), logins);
    devices.shutdown().await;
}

#[test]
fn a_forgotten_pin_is_set_by_the_security_officer() {
    if TestToken::softhsm("made").is_none() {
        return;
    }
    let token = TestToken::softhsm_without_token("made");
    let mut daemon = Daemon::start(&token);
    let arguments = [
        "init",
        "--label",
        "made",
        "--so-pin-file",
        "-",
        "--pin-file",
        "-",
    ];
    let said = token_command(&daemon, &arguments, "12345678\nforgotten\n");
    assert_eq!(said.code, 0, "{}", said.err);
    let unblock = |daemon: &Daemon, so_pin: &str, new: &str| {
        let arguments = [
            "pin",
            "unblock",
            "--so-pin-file",
            "-",
            "--new-pin-file",
            "-",
            "--json",
        ];
        token_command(daemon, &arguments, &format!("{so_pin}\n{new}\n"))
    };
    let refused = unblock(&daemon, "87654321", "found").refused();
    assert_eq!(refused, "so-pin-wrong");
    let said = unblock(&daemon, "12345678", "found");
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(states(&daemon), ["ready"]);
    let change = ["pin", "change", "--pin-file", "-", "--new-pin-file", "-"];
    let said = token_command(&daemon, &change, "found\nchanged\n");
    assert_eq!(said.code, 0, "{}", said.err);

    // Nobody is logged in, and the worker knows the PIN of its start only.
    daemon.stop();
    daemon.restart();
    becomes(&daemon, "pin-needed");
    let said = unblock(&daemon, "12345678", "again");
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(states(&daemon), ["ready"]);
}

#[test]
fn a_new_pin_is_used_at_once_where_nobody_was_logged_in() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    let mut daemon = Daemon::start(&token);
    let service = support::service::Service::new("https://pay.example");
    daemon.enrol(&service, "alice", "p256");
    let change = |daemon: &Daemon, old: &str, new: &str| {
        let arguments = ["pin", "change", "--pin-file", "-", "--new-pin-file", "-"];
        token_command(daemon, &arguments, &format!("{old}\n{new}\n"))
    };
    let said = change(&daemon, &token.pin, "654321");
    assert_eq!(said.code, 0, "{}", said.err);
    daemon.stop();
    daemon.restart();
    becomes(&daemon, "pin-needed");
    let status = Command::new(env!("CARGO_BIN_EXE_opcert"))
        .arg("--socket")
        .arg(daemon.socket())
        .arg("status")
        .output()
        .unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains(": PIN needed"), "{status}");
    // A wrong one leaves nothing to unlock, and the answer does not send anybody there.
    let said = change(&daemon, "wrong", "765432");
    assert!(said.err.contains("Nothing was changed"), "{}", said.err);
    assert!(!said.err.contains("token unlock"), "{}", said.err);
    let said = change(&daemon, "654321", "765432");
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(states(&daemon), ["ready"]);
    assert_eq!(token_command(&daemon, &["test"], "").code, 0);
}

#[tokio::test]
async fn a_new_pin_is_taken_where_each_operation_logs_in() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    let mut config = token.config();
    config.module[0].token[0].login = LoginPolicy::PerOperation;
    let devices = start(&token, config).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    let pin = |text: &str| Some(Secret::new(text.to_owned()));
    let by = PinOf::User(pin(&token.pin));
    let set = devices.set_pin(&id, by, pin("new one"), LastTry::Keep);
    set.await.unwrap();
    sign(&devices, &key).await.unwrap();
    devices.shutdown().await;
}

/// A pinentry that notes what it is told in `log` and answers GETPIN with the shell command
/// `answer`.
fn pinentry(directory: &std::path::Path, answer: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let program = directory.join("pinentry");
    let script = format!(
        r##"#!/bin/sh
cd '{}' || exit 1
echo "OK Pleased to meet you"
while IFS= read -r line; do
    printf '%s\n' "$line" >>log
    case $line in
        GETPIN | CONFIRM) {answer} ;;
        BYE) echo "OK closing connection"; exit 0 ;;
        *) echo OK ;;
    esac
done
"##,
        directory.display()
    );
    // Another process writes it: a program that is open for writing in some child cannot be run.
    let mut tee = Command::new("tee")
        .arg(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = tee.stdin.take().unwrap();
    input.write_all(script.as_bytes()).unwrap();
    drop(input);
    assert!(tee.wait().unwrap().success());
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn the_person_is_asked_once_when_the_pin_is_needed() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    let windows = tempfile::tempdir().unwrap();
    let typed = windows.path().join("typed");
    let program = pinentry(windows.path(), "echo \"D $(cat typed)\"; echo OK");
    let told = |what: &str| {
        let log = std::fs::read_to_string(windows.path().join("log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(what)).count()
    };
    let consent = format!("[consent]\npinentry = {program:?}\n");
    let module = token.config_toml_with("pinentry");
    let daemon = Daemon::start_on(&token, &module, &consent);
    let service = support::service::Service::new("https://pay.example");
    becomes(&daemon, "pin-needed");
    assert_eq!(told("GETPIN"), 0, "nobody needs it yet");

    // Wrong: one try, and no window for the requests that follow.
    std::fs::write(&typed, "wrong").unwrap();
    let refused = daemon.begin(&service, "alice", "p256");
    assert_eq!(refused.code(), "pin-wrong");
    assert_eq!(told("GETPIN"), 1);
    assert_eq!(told("SETERROR"), 0);
    for _ in 0..2 {
        assert_eq!(daemon.begin(&service, "alice", "p256").code(), "pin-needed");
    }
    assert_eq!(told("GETPIN"), 1);

    // A person asks again, and is told what the token said.
    std::fs::write(&typed, &token.pin).unwrap();
    let said = token_command(&daemon, &["unlock", "--ask"], "");
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(told("GETPIN"), 2);
    assert_eq!(told("SETERROR"), 1);
    assert_eq!(told("SETTITLE opcert: PIN of opcert-test"), 2);
    assert_eq!(states(&daemon), ["ready"]);
    daemon.enrol(&service, "alice", "p256");
    assert_eq!(told("GETPIN"), 2, "it is kept while the daemon runs");

    let log = daemon.log();
    assert!(
        !log.contains(&token.pin) && !log.contains("wrong\""),
        "{log}"
    );
}

#[test]
fn a_window_that_is_closed_leaves_the_person_in_peace() {
    let token = TestToken::new("opcert-test");
    let windows = tempfile::tempdir().unwrap();
    let program = pinentry(windows.path(), "echo 'ERR 83886179 Operation cancelled'");
    let consent = format!("[consent]\npinentry = {program:?}\n");
    let module = token.config_toml_with("pinentry");
    let daemon = Daemon::start_on(&token, &module, &consent);
    let service = support::service::Service::new("https://pay.example");
    for _ in 0..3 {
        assert_eq!(daemon.begin(&service, "alice", "p256").code(), "pin-needed");
    }
    let log = std::fs::read_to_string(windows.path().join("log")).unwrap();
    assert_eq!(log.matches("GETPIN").count(), 1, "{log}");
}

#[tokio::test]
async fn a_pin_that_is_typed_on_the_token_goes_through_no_program() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    let faulty = Faulty::new(&token);
    faulty.keypad_for_new(&token.pin, "typed anew");
    let mut config = token.config_with(Some("pinentry".parse().unwrap()));
    faulty.configure(&mut config);
    let devices = start(&token, config).await;
    let id = select(&devices, &token).await;
    let (before, reason) = state(&devices).await;
    assert_eq!(before, TokenState::PinNeeded, "{reason}");
    assert!(reason.contains("on the device"), "{reason}");
    assert!(devices.by_hand(&id).unwrap().protected_path);
    assert_eq!(faulty.logins().len(), 0, "nobody is before the device");

    // A request that needs it has a window say what to do, and the device ask.
    let windows = tempfile::tempdir().unwrap();
    let asker = opcert::consent::Asker::start(opcert::consent::Config {
        pinentry: Some(pinentry(windows.path(), "echo OK")),
        ..Default::default()
    });
    devices.ask_with(asker);
    let key = generate(&devices, &id, KeySpec::P256).await;
    let log = std::fs::read_to_string(windows.path().join("log")).unwrap();
    assert!(log.contains("enter it on the token"), "{log}");
    assert!(!log.contains("GETPIN"), "{log}");
    // What the log shows where no PIN was given.
    assert!(faulty.logins().iter().all(|login| login.pin == 0));

    // A person before the device needs no window, and changes the PIN there as well.
    devices.release(&id).await.unwrap();
    let outcome = devices.unlock_by_hand(&id, LastTry::Keep).await.unwrap();
    assert_eq!(outcome, UnlockOutcome::Taken);
    let by = PinOf::User(None);
    devices.set_pin(&id, by, None, LastTry::Keep).await.unwrap();
    sign(&devices, &key).await.unwrap();
    faulty.keypad("typed anew");
    devices.release(&id).await.unwrap();
    devices.unlock_by_hand(&id, LastTry::Keep).await.unwrap();
    sign(&devices, &key).await.unwrap();
    devices.shutdown().await;
}

#[test]
fn a_new_pin_is_typed_twice_at_a_terminal() {
    let Some(token) = TestToken::softhsm("opcert-test") else {
        return;
    };
    let daemon = Daemon::start(&token);
    becomes(&daemon, "ready");
    // script(1) gives the command a terminal and types what comes on its own standard input.
    let typing = |lines: &[&str]| {
        let command = format!(
            "{} --socket {} token pin change",
            env!("CARGO_BIN_EXE_opcert"),
            daemon.socket().display()
        );
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("script is needed: apt-get install bsdutils");
        let typed = lines.join("\n") + "\n";
        let mut input = child.stdin.take().unwrap();
        input.write_all(typed.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        drop(input);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().unwrap(), said)
    };
    let (code, said) = typing(&[&token.pin, "new one", "knew one"]);
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("was typed differently"), "{said}");
    let (code, said) = typing(&[&token.pin, "new one", "new one"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("has its new PIN"), "{said}");
    assert_eq!(records(&daemon, "token-pin-change").len(), 1);
}
