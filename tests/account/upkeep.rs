//! What keeps a service going: backups, and what the doctor sees.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::scene::*;
use super::support::attach;

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

/// Runs SQL on the database at `url` by the database's own program.
pub(super) fn sql(url: &str, text: &str) {
    let mut program = match url.strip_prefix("sqlite:") {
        Some(path) => {
            let mut python = Command::new("python3");
            let script =
                "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.stdin.read())";
            python.args(["-c", script, path]);
            python
        }
        None => {
            let mut psql = Command::new("psql");
            psql.args([url, "--quiet", "--set", "ON_ERROR_STOP=1", "--file", "-"]);
            psql
        }
    };
    succeed_with(&mut program, text);
}

#[test]
fn certificates_from_before_the_authority_could_change_its_key_know_their_issuer() {
    let made = Made::bare();
    let directory = made.token.directory().to_owned();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/account/store/migrations");
    let (url, kind, quote) = match database() {
        Some(url) => (url, "postgres", ("'\\x", "'")),
        None => {
            let path = directory.join("before.db");
            (format!("sqlite:{}", path.display()), "sqlite", ("X'", "'"))
        }
    };
    let bytes = |bytes: &[u8]| {
        format!(
            "{}{}{}",
            quote.0,
            opcert::base::encoding::hex(bytes),
            quote.1
        )
    };

    // A database as the version before left it: two migrations, a certificate, a list.
    let mut text = String::from(
        "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, description TEXT NOT NULL,
         installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP, success BOOLEAN NOT NULL,
         checksum BLOB NOT NULL, execution_time BIGINT NOT NULL);\n",
    );
    if kind == "postgres" {
        text = text
            .replace("BLOB", "BYTEA")
            .replace("TIMESTAMP ", "TIMESTAMPTZ ");
    }
    for (version, name, file) in [
        (1, "accounts", "0001_accounts.sql"),
        (2, "key rotation", "0002_key_rotation.sql"),
    ] {
        let migration = std::fs::read_to_string(folder.join(kind).join(file)).unwrap();
        let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA384, migration.as_bytes());
        text.push_str(&migration);
        text.push_str(&format!(
            "\nINSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ({version}, '{name}', TRUE, {}, 0);\n",
            bytes(sum.as_ref())
        ));
    }
    let authority = made.authority();
    let key = opcert::base::encoding::hex(&authority.public_key().fingerprint());
    let (spki, der) = (bytes(authority.public_key().spki()), bytes(authority.der()));
    text.push_str(&format!(
        "INSERT INTO service_keys (fingerprint, purpose, module, label, serial, key_id, spki,
                                   certificate, created_at)
         VALUES ('{key}', 'issuing', 'token', 'label', 'serial', '01', {spki}, {der}, 1);
         INSERT INTO accounts (id, name, created_at) VALUES ('acme', 'Acme Ltd', 1);
         INSERT INTO operators (account, id, role, mobile, password_hash, created_at)
         VALUES ('acme', 'alice', 'operator', '+8613800000001', 'none', 1);
         INSERT INTO computers (account, id, name, created_at) VALUES ('acme', 'c1', 'desk', 1);
         INSERT INTO certificates (serial, account, operator, computer, request_hash,
                                   key_fingerprint, der, not_before, not_after, issued_at)
         VALUES ('41aa', 'acme', 'alice', 'c1', 'imported', 'ff', {der}, 1, 4000000000000, 1);
         INSERT INTO crls (number, der, revocations, this_update, next_update)
         VALUES (7, {der}, 0, 1, 2);\n"
    ));
    sql(&url, &text);

    let config = std::fs::read_to_string(&made.config).unwrap();
    let lines = config
        .lines()
        .filter(|line| !line.starts_with("database ="));
    let lines: Vec<&str> = lines.collect();
    std::fs::write(
        &made.config,
        format!("database = \"{url}\"\n{}\n", lines.join("\n")),
    )
    .unwrap();
    let list = ["--json", "certificate", "list"];
    let (code, _, error) = run(made.command().args(list), "");
    assert_eq!(code, 78, "{error}");
    let said = succeed(made.command().arg("migrate"));
    assert!(said.contains("from schema version 2 to "), "{said}");
    let listed: Value = serde_json::from_str(&succeed(made.command().args(list))).unwrap();
    assert_eq!(listed[0]["serial"], "41aa");
    assert_eq!(listed[0]["issuer"], key);
    // From now on none is without.
    let without = "INSERT INTO crls (number, der, revocations, this_update, next_update)
                   SELECT 8, der, 0, 1, 2 FROM crls;";
    let refused = std::panic::catch_unwind(|| sql(&url, without));
    assert!(refused.is_err());
}

/// A killed process leaves on disk what it has written and no more, as a power cut does to what
/// was synchronised; what was acknowledged must be there.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_kill_at_any_instant() {
    use http::Method;
    use opcert::http::client::Target;
    use opcert::http::tls;
    use std::sync::{Arc, Mutex};

    const KILLS: u64 = 6;

    let made = Arc::new(tokio::task::spawn_blocking(Made::new).await.unwrap());
    let trust = std::fs::read(made.state().join("server-ca.pem")).unwrap();
    let roots = tls::roots(tls::certificates(&trust).unwrap()).unwrap();
    let acknowledged: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let start = || {
        let running = Running::start(&made);
        let port = running.origin.rsplit(':').next().unwrap().parse().unwrap();
        let target = Target::Tls {
            host: "127.0.0.1".into(),
            port,
            config: tls::client(roots.clone(), None).unwrap(),
        };
        (running, target)
    };
    let ask = |method: Method, path: &str, body: Option<Value>| {
        http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", JSON)
            .header("authorization", format!("Bearer {}", made.platform_key))
            .body(axum::body::Bytes::from(
                body.map(|body| body.to_string()).unwrap_or_default(),
            ))
            .unwrap()
    };
    for kill in 0..KILLS {
        let (running, target) = start();
        let mut callers = tokio::task::JoinSet::new();
        let enough = Arc::new(tokio::sync::Semaphore::new(0));
        for _ in 0..3 {
            let (target, acknowledged, enough) =
                (target.clone(), acknowledged.clone(), enough.clone());
            let create = ask(Method::POST, "/v1/operations", Some(withdrawal("alice")));
            callers.spawn(async move {
                // Until the service is gone.
                while let Ok(mut client) =
                    opcert::http::Client::connect(&target, Default::default()).await
                {
                    let Ok(answer) = client.send(create.clone()).await else {
                        break;
                    };
                    let (head, body) = answer.into_parts();
                    assert_eq!(head.status.as_u16(), 201, "{body:?}");
                    let made: Value = serde_json::from_slice(&body).unwrap();
                    let text = |at: &str| made.pointer(at).unwrap().as_str().unwrap().to_owned();
                    let pair = (text("/operation/id"), text("/challenge"));
                    acknowledged.lock().unwrap().push(pair);
                    enough.add_permits(1);
                }
            });
        }
        // Another number of acknowledgements each time, and then at once.
        let wanted = u32::try_from(3 + 5 * kill).unwrap();
        enough.acquire_many(wanted).await.unwrap().forget();
        let pid = running.child.id().to_string();
        succeed(Command::new("kill").args(["-KILL", &pid]));
        callers.join_all().await;
        drop(running);

        let (running, target) = start();
        let known = acknowledged.lock().unwrap().clone();
        for (id, _) in &known {
            let found = send(
                &target,
                ask(Method::GET, &format!("/v1/operations/{id}"), None),
            )
            .await;
            assert_eq!(
                found.done(200).json["operation"]["state"],
                "created",
                "{id}"
            );
        }
        running.stop();
    }
    let known = acknowledged.lock().unwrap().len();
    assert!(known > 50, "{known}");

    // Each is on record, too, and the trail is whole.
    let trail = made.state().join("audit");
    let opcert = || Command::new(env!("CARGO_BIN_EXE_opcert"));
    succeed(opcert().args(["audit", "verify"]).arg(&trail));
    let records = succeed(opcert().args(["audit", "show", "--json"]).arg(&trail));
    for (id, _) in acknowledged.lock().unwrap().iter() {
        assert!(records.contains(id.as_str()), "{id}");
    }
}

#[test]
fn no_other_program_of_the_user_attaches_to_the_service() {
    let made = Made::new();
    let mut service = attach::command(env!("CARGO_BIN_EXE_opcert-accountd"))
        .arg("--config")
        .arg(&made.config)
        .args(["serve", "--allow-root"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(service.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("listening on "), "{line}");
    attach::assert_closed(service.id());
    service.kill().unwrap();
    service.wait().unwrap();
}
