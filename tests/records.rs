//! The records of a real daemon: shown, exported, proved to strangers, copied, backed up, restored.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use http::Method;
use opcert::audit::read;
use opcert::base::encoding::{base64url, from_base64url, sha256};
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::service::{Service, withdrawal};
use support::softhsm::TestToken;

fn opcert(daemon: &Daemon, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_opcert"))
        .arg("--config")
        .arg(daemon.config())
        .args(arguments)
        .output()
        .unwrap()
}

/// Standard output of a command that succeeds.
#[track_caller]
fn said(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = opcert(daemon, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(daemon: &Daemon, arguments: &[&str], exit: i32, words: &str) {
    let output = opcert(daemon, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{error}");
    assert!(error.contains(words), "{words:?} in {error}");
}

fn approve(daemon: &Daemon, service: &Service) {
    let client = daemon.add_client("till", &json!({ "consent": "none" }));
    let challenge = service.challenge(&withdrawal("alice"), |_| ());
    let body = json!({ "challenge": challenge });
    daemon
        .native(&client, Method::POST, "/v1/approvals", &body)
        .ok();
}

/// The lines of the log in order.
fn log(directory: &Path) -> Vec<(std::path::PathBuf, String)> {
    let mut segments: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    segments.sort();
    segments
        .into_iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            text.lines()
                .map(|line| (path.clone(), line.to_owned()))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// What somebody does who owns the machine and not the token: changes a word and chains the rest
/// of the log anew.
fn forge(directory: &Path, from: &str, to: &str) {
    let (mut hash, mut seq) = ([0; 32].to_vec(), 0);
    let mut segments: std::collections::BTreeMap<_, String> = std::collections::BTreeMap::new();
    for (path, line) in log(directory) {
        let json = line.split_once(' ').unwrap().1.replace(from, to);
        hash = sha256(&[b"opcert-audit\0".as_slice(), &hash, json.as_bytes()].concat()).to_vec();
        seq += 1;
        *segments.entry(path).or_default() += &format!("{} {json}\n", base64url(&hash));
    }
    for (path, text) in segments {
        std::fs::write(path, text).unwrap();
    }
    std::fs::write(
        directory.join("head"),
        format!("{seq:020} {}\n", base64url(&hash)),
    )
    .unwrap();
}

#[test]
fn records_are_shown_proved_to_strangers_and_held_to_one_history() {
    let token = TestToken::new("opcert-test");
    let copy = token.directory().join("copy.log");
    let more = format!(
        "[audit]\ncopy = \"file:{}\"\nsegment-bytes = 4096\n[audit.checkpoint]\ntoken = \"{}\"\n",
        copy.display(),
        token.uri()
    );
    let mut daemon = Daemon::start_with(&token, &more);
    let service = Service::new("https://pay.example");
    daemon.enrol(&service, "alice", "p256");
    approve(&daemon, &service);
    let records: Vec<_> = read::all(&daemon.audit_directory())
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let approval = records
        .iter()
        .find(|record| record.kind == "approval")
        .unwrap();
    let request = approval.request.as_ref().unwrap().to_string();
    refused(
        &daemon,
        &["audit", "prove", &request],
        75,
        "[audit-uncovered]",
    );

    // Filters, for people and for programs.
    let text = said(
        &daemon,
        &["audit", "show", "--kind", "approval", "--since", "1h"],
    );
    assert!(
        text.contains("client:till") && text.lines().count() == 1,
        "{text}"
    );
    let shown: Value = serde_json::from_str(&said(
        &daemon,
        &["--json", "audit", "show", "--request", &request],
    ))
    .unwrap();
    assert_eq!(shown[0]["seq"], approval.seq);
    assert_eq!(
        shown[0]["body"]["payload"]["client"], "client:till",
        "{shown}"
    );
    let text = said(
        &daemon,
        &[
            "audit",
            "export",
            "--after",
            &(approval.seq - 1).to_string(),
        ],
    );
    let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["seq"], &first["kind"]),
        (&json!(approval.seq), &json!("approval"))
    );
    assert_eq!(
        said(&daemon, &["audit", "show", "--until", "2020-01-01"]),
        ""
    );

    // The end signs a checkpoint over all of it.
    assert_eq!(daemon.stop(), 0);
    let verified = said(&daemon, &["audit", "verify"]);
    assert!(
        verified.contains("all sound") && verified.contains("Checkpoints"),
        "{verified}"
    );
    let keys: Value = serde_json::from_str(&said(&daemon, &["--json", "audit", "key"])).unwrap();
    let key = keys[0]["thumbprint"].as_str().unwrap();
    assert_eq!(keys.as_array().unwrap().len(), 1);
    let text = said(&daemon, &["audit", "prove", &request]);
    let proofs = token.directory().join("proof.json");
    std::fs::write(&proofs, &text).unwrap();
    let proofs = proofs.to_str().unwrap();
    let check = ["audit", "verify-proof", "--key", key, proofs];
    assert!(said(&daemon, &check).contains("The record is proved."));

    // Without opcert: hash, path and signature by the words of the documentation.
    let proof: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let decode = |value: &Value| from_base64url(value.as_str().unwrap()).unwrap();
    let record = proof["record"].as_str().unwrap();
    let previous = decode(&proof["previous"]);
    let hash = sha256(&[b"opcert-audit\0".as_slice(), &previous, record.as_bytes()].concat());
    assert!(
        log(&daemon.audit_directory())
            .iter()
            .any(|(_, line)| *line == format!("{} {record}", base64url(&hash)))
    );

    // Another key, another record, a record of another place: nothing is proved.
    refused(
        &daemon,
        &["audit", "verify-proof", "--key", "other", proofs],
        1,
        "[proof-invalid]",
    );
    std::fs::write(proofs, text.replace("till", "tell")).unwrap();
    refused(&daemon, &check, 1, "not the one that was in the log");
    refused(
        &daemon,
        &["audit", "prove", "unknown"],
        1,
        "[request-unknown]",
    );

    // The copy has every record, line by line.
    let copied = std::fs::read_to_string(&copy).unwrap();
    let lines: Vec<_> = log(&daemon.audit_directory())
        .into_iter()
        .map(|(_, line)| line)
        .collect();
    assert_eq!(copied.lines().collect::<Vec<_>>(), lines);

    // The next start goes on where the last checkpoint ended.
    let mut again = daemon;
    again.restart();
    assert_eq!(again.stop(), 0);
    let verified = said(&again, &["--json", "audit", "verify"]);
    let verified: Value = serde_json::from_str(&verified).unwrap();
    assert!(verified["checkpoints"].as_u64().unwrap() >= 2, "{verified}");

    // A history whose chain is whole and which no token has signed is found.
    forge(&again.audit_directory(), "client:till", "client:tell");
    refused(&again, &["audit", "verify"], 1, "signed over other records");
    refused(
        &again,
        &["audit", "prove", "unknown"],
        1,
        "[request-unknown]",
    );
}

#[test]
fn a_backup_of_a_running_daemon_is_restored_whole_or_not_at_all() {
    let token = TestToken::new("opcert-test");
    let mut daemon = Daemon::start(&token);
    let service = Service::new("https://pay.example");
    let certificate = daemon.enrol(&service, "alice", "p256");
    daemon.add_client("before", &json!({ "consent": "none" }));
    let computer = daemon.computer();
    let directory = token.directory().join("backup");
    let backup = directory.to_str().unwrap();
    said(&daemon, &["backup", backup]);
    assert!(directory.join("config/opcertd.toml").exists());
    assert!(!directory.join("state/audit/lock").exists());
    let check = said(&daemon, &["upgrade-check"]);
    assert!(check.contains("all sound"), "{check}");

    // Life goes on, and the disk is lost.
    daemon.add_client("after", &json!({ "consent": "none" }));
    refused(&daemon, &["restore", backup], 75, "[daemon-running]");
    assert_eq!(daemon.stop(), 0);
    let state = daemon.directory.join("state");
    std::fs::remove_dir_all(&state).unwrap();
    let text = said(&daemon, &["restore", backup]);
    assert!(text.contains("is in place"), "{text}");
    daemon.restart();
    assert_eq!(daemon.computer(), computer);
    let clients = daemon
        .control(Method::GET, "/v1/clients", &Value::Null)
        .ok();
    assert_eq!(clients["clients"].as_array().unwrap().len(), 1, "{clients}");
    let list = daemon
        .control(Method::GET, "/v1/certificates", &Value::Null)
        .ok();
    assert_eq!(
        list["certificates"][0]["fingerprint"],
        certificate["fingerprint"]
    );
    approve(&daemon, &service);
    assert_eq!(daemon.stop(), 0);
    said(&daemon, &["audit", "verify"]);

    // What is there is put aside, never lost.
    let before = std::fs::read(state.join("clients.json")).unwrap();
    said(&daemon, &["restore", backup]);
    let aside = std::fs::read_dir(state.join("before-restore"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert_eq!(
        std::fs::read(aside.path().join("clients.json")).unwrap(),
        before
    );

    // A backup that was changed is refused and nothing is touched.
    let changed = directory.join("state/clients.json");
    let text = std::fs::read_to_string(&changed).unwrap();
    std::fs::write(&changed, text.replace("before", "evil")).unwrap();
    refused(&daemon, &["restore", backup], 1, "[backup-broken]");
    refused(&daemon, &["backup", backup], 73, "backup");
    said(&daemon, &["upgrade-check"]);
    std::fs::write(state.join("clients.json"), "{").unwrap();
    let output = opcert(&daemon, &["upgrade-check"]);
    assert_eq!(output.status.code(), Some(1));
}
