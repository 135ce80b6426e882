//! What `opcert` says and how it ends, without a daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use opcert::base::sysexits::{
    EX_DATAERR, EX_FAILED, EX_NOINPUT, EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE,
};
use opcert::config::daemon::Config;

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn opcert(arguments: &[&str]) -> Said {
    opcert_with(arguments, &[])
}

fn opcert_with(arguments: &[&str], environment: &[(&str, &str)]) -> Said {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_opcert"))
        .args(arguments)
        .env_remove("OPCERT_SOCKET")
        .env_remove("NO_COLOR")
        .envs(environment.iter().copied())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    Said {
        code: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn help_names_every_command_and_ends_with_zero() {
    let said = opcert(&["--help"]);
    assert_eq!(said.code, 0);
    for command in [
        "init",
        "doctor",
        "status",
        "token",
        "client",
        "install",
        "renew",
        "list",
        "sync",
        "approve",
        "verify",
        "audit",
        "completions",
    ] {
        assert!(
            said.out.contains(&format!("\n  {command} ")),
            "{}",
            said.out
        );
        assert_eq!(opcert(&[command, "--help"]).code, 0, "{command}");
    }
    assert_eq!(opcert(&["--version"]).out, "opcert 0.1.0\n");
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for arguments in [
        &["frobnicate"] as &[&str],
        &[],
        &["verify"],
        &["client", "add", "a/b"],
        &["client", "add", "erp", "--kind", "theft"],
        &[
            "init",
            "--module",
            "/x",
            "--token",
            "a",
            "--native",
            "0.0.0.0:1",
        ],
        &["approve", "--native", "127.0.0.1:1"],
        &[
            "install",
            "--service",
            "https://a",
            "--account",
            "a",
            "--operator",
            "b",
            "--key-type",
            "dsa",
        ],
    ] {
        let said = opcert(arguments);
        assert_eq!(
            said.code,
            i32::from(EX_USAGE),
            "{arguments:?}: {}",
            said.err
        );
        assert_eq!(said.out, "", "{arguments:?}");
    }
}

#[test]
fn without_a_daemon_each_command_says_how_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let config = dir.path().join("opcertd.toml");
    let missing = dir.path().join("other.toml");
    std::fs::write(&config, "").unwrap();
    let start = format!("Start it with `opcertd --config {}`", config.display());
    let make = "Make its configuration with `opcert init` and start it".to_owned();
    for command in [
        &["list"] as &[&str],
        &["status"],
        &["token", "list"],
        &["client", "list"],
    ] {
        for (config, first) in [(&config, &start), (&missing, &make)] {
            let mut arguments = vec!["--socket", path(&socket), "--config", path(config)];
            arguments.extend(command);
            let said = opcert(&arguments);
            assert_eq!(said.code, i32::from(EX_UNAVAILABLE));
            assert_eq!(
                said.err,
                format!(
                    "error: The daemon cannot be reached: cannot connect to {}: No such file or \
                     directory. [unreachable]\n       {first}, or name its socket with --socket; \
                     `opcert doctor` looks closer.\n",
                    socket.display()
                )
            );
        }
    }
    let said = opcert(&["--socket", path(&socket), "--json", "list"]);
    let error: serde_json::Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!(error["code"], "unreachable");
    assert_eq!(error["exit"], EX_UNAVAILABLE);
    let said = opcert_with(&["list"], &[("OPCERT_SOCKET", path(&socket))]);
    assert!(said.err.contains(path(&socket)), "{}", said.err);
}

#[test]
fn init_writes_what_the_daemon_reads_and_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("etc/opcertd.toml");
    let module = dir.path().join("module.so");
    fs::write(&module, "").unwrap();
    let state = dir.path().join("state");
    let arguments = [
        "--config",
        path(&config),
        "init",
        "--state-directory",
        path(&state),
        "--runtime-directory",
        path(dir.path()),
        "--module",
        path(&module),
        "--module-env",
        "SOFTHSM2_CONF=/tmp/softhsm2.conf",
        "--token",
        "my token",
        "--pin-file",
        "/etc/opcert/pin",
        "--native",
        "127.0.0.1:0",
    ];
    let said = opcert(&arguments);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("Next: start the daemon"), "{}", said.out);
    assert_eq!(
        fs::metadata(&config).unwrap().permissions().mode() & 0o037,
        0
    );
    assert_eq!(
        fs::metadata(&state).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let read = Config::load(&config).unwrap();
    assert_eq!(read.state_directory, state);
    assert_eq!(read.native.addresses.len(), 1);

    let before = fs::read(&config).unwrap();
    let said = opcert(&arguments);
    assert_eq!(said.code, i32::from(EX_TEMPFAIL));
    assert!(
        said.err.contains("is there already. [config-exists]"),
        "{}",
        said.err
    );
    assert_eq!(fs::read(&config).unwrap(), before);
}

#[test]
fn init_names_a_module_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("opcertd.toml");
    let said = opcert(&[
        "--config",
        path(&config),
        "init",
        "--module",
        "/nope.so",
        "--token",
        "a",
    ]);
    assert_eq!(said.code, i32::from(EX_USAGE));
    assert!(
        said.err.starts_with("error: There is no module /nope.so."),
        "{}",
        said.err
    );
    assert!(!config.exists());
}

#[test]
fn doctor_finds_what_is_wrong_with_a_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("opcertd.toml");
    let socket = dir.path().join("control.sock");
    let doctor = |config: &Path| {
        opcert(&[
            "--config",
            path(config),
            "--socket",
            path(&socket),
            "doctor",
        ])
    };

    let said = doctor(&config);
    assert_eq!(said.code, i32::from(EX_FAILED));
    assert!(
        said.out.contains("FAIL  configuration: There is no"),
        "{}",
        said.out
    );
    assert!(said.out.contains("opcert init"), "{}", said.out);

    let good = format!(
        "state-directory = \"{0}\"\nruntime-directory = \"{0}\"\n",
        dir.path().display()
    );
    for (text, mode, finding) in [
        (good.clone(), 0o600, "ok    configuration"),
        (good.clone(), 0o644, "others must have no access"),
        (format!("colour = 1\n{good}"), 0o600, "unknown key"),
        ("state-directory = ".into(), 0o600, "opcertd.toml:1:"),
    ] {
        fs::write(&config, text).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(mode)).unwrap();
        let said = doctor(&config);
        assert!(said.out.contains(finding), "{finding}: {}", said.out);
    }
}

#[test]
fn verify_says_no_with_one_and_keeps_higher_codes_for_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, "garbage\n").unwrap();
    let said = opcert(&["verify", "--ca", "/nonexistent.pem", path(&garbage)]);
    assert_eq!(said.code, i32::from(EX_NOINPUT));
    let said = opcert(&["verify", "--ca", path(&garbage), path(&garbage)]);
    assert_eq!(said.code, i32::from(EX_DATAERR), "{}", said.err);

    // Any certificate will do as authority: what is checked against it is no approval.
    let key = dir.path().join("key.pem");
    let ca = dir.path().join("ca.pem");
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args([
            "-subj",
            "/CN=test",
            "-keyout",
            path(&key),
            "-out",
            path(&ca),
        ])
        .output()
        .unwrap();
    assert!(made.status.success());
    let said = opcert(&["verify", "--ca", path(&ca), path(&garbage)]);
    assert_eq!(said.code, i32::from(EX_FAILED), "{}", said.err);
    assert!(said.err.contains("[approval-malformed]"), "{}", said.err);
}

#[test]
fn audit_verify_needs_a_directory_of_records() {
    let said = opcert(&["audit", "verify", "/nonexistent"]);
    assert_eq!(said.code, i32::from(EX_NOINPUT), "{}", said.err);
}

#[test]
fn a_secret_others_can_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pin = dir.path().join("pin");
    fs::write(&pin, "4711\n").unwrap();
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o644)).unwrap();
    let said = opcert(&[
        "doctor",
        "--config",
        path(&{
            let config = dir.path().join("opcertd.toml");
            fs::write(
                &config,
                format!(
                    "[[module]]\nname = \"m\"\npath = \"/nope.so\"\n[[module.token]]\n\
                     uri = \"pkcs11:token=a\"\npin-source = \"file:{}\"\n",
                    pin.display()
                ),
            )
            .unwrap();
            config
        }),
        "--socket",
        path(&dir.path().join("none")),
    ]);
    assert!(
        said.out.contains("only its owner may have access"),
        "{}",
        said.out
    );
    assert!(!said.out.contains("4711") && !said.err.contains("4711"));
}

#[test]
fn each_shell_gets_a_script_with_all_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let said = opcert(&["completions", shell]);
        assert_eq!(said.code, 0);
        for command in ["install", "approve", "doctor"] {
            assert!(said.out.contains(command), "{shell}");
        }
    }
    assert_eq!(opcert(&["completions", "tcsh"]).code, i32::from(EX_USAGE));
}

#[test]
fn colour_is_off_unless_somebody_sees_it() {
    let arguments = ["--socket", "/nonexistent", "list"];
    assert!(!opcert(&arguments).err.contains('\x1b'));
    let loud = opcert(&["--color", "always", "--socket", "/nonexistent", "list"]);
    assert!(loud.err.contains('\x1b'), "{:?}", loud.err);
}
