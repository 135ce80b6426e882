//! What keeps a service going: backups, and what the doctor sees.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::scene::*;

fn copy_tree(from: &Path, to: &Path) {
    succeed(Command::new("cp").arg("-a").arg(from).arg(to));
}

fn accounts(made: &Made) -> Vec<String> {
    let list = succeed(made.command().args(["--json", "account", "list"]));
    let list: Value = serde_json::from_str(&list).unwrap();
    list.as_array()
        .unwrap()
        .iter()
        .map(|account| account["account"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_backup_is_taken_while_the_service_runs_and_put_back_while_it_does_not() {
    let made = Made::new();
    let in_file = std::env::var_os("OPCERT_TEST_POSTGRES").is_none();
    let running = Running::start(&made);
    let at = |name: &str| made.token.directory().join(name);
    let (good, changed) = (at("backup"), at("changed"));
    let command = |name: &str, directory: &Path| {
        let mut command = made.command();
        command.arg(name).arg(directory);
        command
    };
    let said = succeed(&mut command("backup", &good));
    assert_eq!(said.contains("pg_dump"), !in_file, "{said}");
    assert_eq!(good.join("database.db").exists(), in_file);
    for name in [
        "state/code-key",
        "state/audit",
        "config/accountd.toml",
        "manifest.json",
    ] {
        assert!(good.join(name).exists(), "{name}");
    }
    // Nothing of it is for others, and nothing that exists is replaced.
    for file in walk(&good) {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}", file.display());
    }
    let (code, _, error) = run(&mut command("backup", &good), "");
    assert_ne!(code, 0, "{error}");

    let later = ["account", "create", "later", "--name", "Later Ltd"];
    succeed(made.command().args(later));
    let (code, _, error) = run(&mut command("restore", &good), "");
    assert_eq!(code, 75, "{error}");
    assert!(error.contains("Stop it first"), "{error}");
    running.stop();

    // One that was tampered with, one of a later version, and then the good one.
    copy_tree(&good, &changed);
    std::fs::write(changed.join("state/code-key"), [7; 32]).unwrap();
    let (code, _, error) = run(&mut command("restore", &changed), "");
    assert_eq!(code, 65, "{error}");
    assert!(
        error.contains("code-key of the backup was changed"),
        "{error}"
    );
    let newer = at("newer");
    copy_tree(&good, &newer);
    let text = std::fs::read_to_string(newer.join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    manifest["schema"] = json!(999);
    std::fs::write(newer.join("manifest.json"), manifest.to_string()).unwrap();
    let (code, _, error) = run(&mut command("restore", &newer), "");
    assert_eq!(code, 78, "{error}");
    assert!(error.contains("schema version 999"), "{error}");
    assert!(accounts(&made).contains(&"later".to_owned()));

    let said = succeed(&mut command("restore", &good));
    assert!(said.contains("before-restore"), "{said}");
    assert_eq!(accounts(&made).contains(&"later".to_owned()), !in_file);
    let running = Running::start(&made);
    running.stop();
    succeed(made.command().arg("doctor"));
    for trail in ["audit", "admin-audit"] {
        let mut verify = Command::new(env!("CARGO_BIN_EXE_opcert"));
        succeed(
            verify
                .args(["audit", "verify"])
                .arg(made.state().join(trail)),
        );
    }
}

#[test]
fn the_doctor_names_what_is_broken_and_the_command_that_mends_it() {
    use std::os::unix::fs::PermissionsExt;
    let made = Made::new();
    let look = || {
        let (code, out, error) = run(made.command().args(["--json", "doctor"]), "");
        let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{error}"));
        let checks = report["checks"].as_array().unwrap().clone();
        (code, checks)
    };
    let verdict = |checks: &[Value], name: &str| -> (String, String) {
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("{name}: {checks:?}"));
        let text = |member: &str| check[member].as_str().unwrap_or_default().to_owned();
        (text("verdict"), text("action"))
    };
    let (code, checks) = look();
    assert_eq!(code, 0, "{checks:?}");
    for name in [
        "state directory",
        "code key",
        "TLS",
        "database",
        "time",
        "revocation list",
        "notices",
        "issuing key",
        "challenge key",
        "issuing authority",
    ] {
        assert_eq!(verdict(&checks, name).0, "ok", "{name}: {checks:?}");
    }
    assert_eq!(verdict(&checks, "SMS gateway").0, "warn");

    // A key file that others may read, a gateway that is down, and a PIN that is wrong.
    let code_key = made.state().join("code-key");
    let mode = |mode: u32| {
        std::fs::set_permissions(&code_key, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o644);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let secret = made.token.directory().join("gateway-secret");
    opcert::base::files::write_new(&secret, &[b's'; 40], 0o600).unwrap();
    let text = std::fs::read_to_string(&made.config).unwrap();
    let gateway = format!(
        "gateway = \"webhook\"\n[sms.webhook]\nurl = \"https://127.0.0.1:{port}/in\"\n\
         secret-file = \"{}\"\nca-file = \"{}\"",
        secret.display(),
        made.state().join("server-ca.pem").display()
    );
    let broken = text.replace("gateway = \"console\"", &gateway);
    std::fs::write(&made.config, broken).unwrap();
    let tokens = made.token.token_directory();
    let away = tokens.with_extension("away");
    std::fs::rename(&tokens, &away).unwrap();
    let (code, checks) = look();
    assert_eq!(code, 1, "{checks:?}");
    let (found, action) = verdict(&checks, "code key");
    assert_eq!(found, "fail");
    assert!(action.contains("chmod 600"), "{action}");
    for (name, words) in [("SMS gateway", "url"), ("issuing key", "config check")] {
        let (found, action) = verdict(&checks, name);
        assert_eq!(found, "fail", "{name}: {checks:?}");
        assert!(action.contains(words), "{name}: {action}");
    }
    std::fs::rename(&away, &tokens).unwrap();
    mode(0o600);

    // A database that was never migrated.
    let empty = made.token.directory().join("empty.db");
    std::fs::write(&empty, b"").unwrap();
    std::fs::set_permissions(&empty, std::fs::Permissions::from_mode(0o600)).unwrap();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("database ="))
        .collect();
    let other = format!(
        "database = \"sqlite:{}\"\n{}\n",
        empty.display(),
        lines.join("\n")
    );
    std::fs::write(&made.config, other).unwrap();
    let (code, checks) = look();
    assert_eq!(code, 1, "{checks:?}");
    let (found, action) = verdict(&checks, "database");
    assert_eq!(found, "fail");
    assert!(action.contains("opcert-accountd migrate"), "{action}");
}
