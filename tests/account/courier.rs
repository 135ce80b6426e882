//! The three programs together: the account service, the daemon, and `opcert` between them, as an
//! operator runs them. Renewal, and a change of the service's keys.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::scene::*;
use super::support::daemon::Daemon;
use super::support::softhsm::TestToken;
use super::support::wall_clock::{Timers, WallClock};

/// A program in pinentry's place whose person agrees to everything.
fn agreeing(token: &TestToken) -> String {
    use std::os::unix::fs::PermissionsExt;
    let pinentry = token.directory().join("pinentry");
    let script = "#!/bin/sh\necho 'OK ready'\nwhile read -r line; do\n  case \"$line\" in\n    \
                  BYE*) echo OK; exit 0 ;;\n    *) echo OK ;;\n  esac\ndone\n";
    std::fs::write(&pinentry, script).unwrap();
    std::fs::set_permissions(&pinentry, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("[consent]\npinentry = \"{}\"\n", pinentry.display())
}

/// A computer with a daemon, enrolled by `opcert`.
struct Computer<'a> {
    daemon: Daemon,
    token: TestToken,
    service: String,
    trust: String,
    operator: &'static str,
    environment: &'a [(&'static str, String)],
}

impl<'a> Computer<'a> {
    fn new(
        made: &Made,
        service: &str,
        operator: &'static str,
        environment: &'a [(&'static str, String)],
    ) -> Self {
        let token = TestToken::new("computer");
        let daemon = Daemon::start_in(&token, &agreeing(&token), environment);
        Self {
            daemon,
            token,
            service: service.to_owned(),
            operator,
            trust: made.state().join("server-ca.pem").display().to_string(),
            environment,
        }
    }

    /// `opcert …` with the daemon and, where `serves`, the account service.
    fn opcert(&self, arguments: &[&str], serves: bool) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_opcert"));
        command
            .args(arguments)
            .arg("--socket")
            .arg(self.daemon.socket())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        if serves {
            command.args(["--service", &self.service, "--service-ca", &self.trust]);
        }
        command
    }

    fn run(&self, arguments: &[&str], serves: bool) -> String {
        succeed(&mut self.opcert(arguments, serves))
    }

    /// Returns the code that it took.
    fn install(&self, running: &Running) -> String {
        let password = self.token.directory().join("password");
        let _ = std::fs::remove_file(&password);
        opcert::base::files::write_new(&password, PASSWORD.as_bytes(), 0o600).unwrap();
        let mut install = self.opcert(&["install"], true);
        install
            .args(["--account", "acme", "--operator", self.operator])
            .args(["--computer-name", "desk", "--code-file", "-"])
            .arg("--password-file")
            .arg(&password);
        let mut child = install
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let text = running.lines.recv_timeout(Duration::from_secs(60)).unwrap();
        let code = text.split("opcert code ").nth(1).unwrap()[..6].to_owned();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{code}").unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        code
    }

    /// What is installed: serial number and standing of each certificate.
    fn certificates(&self) -> Vec<(String, String)> {
        let list = self.run(&["list", "--json"], false);
        let list: Value = serde_json::from_str(&list).unwrap();
        let certificates = list["certificates"].as_array().unwrap();
        certificates
            .iter()
            .map(|one| {
                let text = |name: &str| one[name].as_str().unwrap().to_owned();
                (text("serial"), text("standing"))
            })
            .collect()
    }

    /// Has a withdrawal approved: by which key the challenge was signed, or why it was not.
    fn approve(&self, made: &Made) -> Result<String, String> {
        let path = |name: &str| self.token.directory().join(name).display().to_string();
        let key = self.token.directory().join("platform-key");
        std::fs::write(&key, &made.platform_key).unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let (challenge, approval) = (path("challenge.jws"), path("approval.jws"));
        let create = [
            "operation",
            "create",
            "--key-file",
            &path("platform-key"),
            "--account",
            "acme",
            "--operator",
            self.operator,
            "--kind",
            "withdrawal",
            "--amount",
            "100000",
            "--currency",
            "CNY",
            "--payee",
            "Acme Ltd",
            "--reference",
            "W-1",
            "--out",
            &challenge,
            "--json",
        ];
        let created = self.run(&create, true);
        let created: Value = serde_json::from_str(&created).unwrap();
        let approve = ["approve", "--challenge", &challenge, "--out", &approval];
        let (code, _, error) = run(&mut self.opcert(&approve, false), "");
        if code != 0 {
            return Err(error);
        }
        let id = created["operation"]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{created}"));
        self.run(&["operation", "submit", id, &approval], true);
        let text = std::fs::read_to_string(&challenge).unwrap();
        let header = text.split('.').next().unwrap();
        let header = opcert::base::encoding::from_base64url(header).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        Ok(header["kid"].as_str().unwrap().to_owned())
    }
}

/// The argument lists of our programs that run while `work` does, blanks between the arguments.
fn arguments_during<T>(work: impl FnOnce() -> T) -> (BTreeSet<String>, T) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !is_over.load(Ordering::SeqCst) {
                let processes = std::fs::read_dir("/proc").unwrap();
                for process in processes.map_while(Result::ok) {
                    // Of one that is gone again there is nothing to be read.
                    let arguments = std::fs::read(process.path().join("cmdline"));
                    let arguments = arguments.unwrap_or_default();
                    let program = arguments.split(|byte| *byte == 0).next();
                    let program = Path::new(OsStr::from_bytes(program.unwrap_or_default()));
                    if program
                        .file_name()
                        .is_some_and(|name| name.as_bytes().starts_with(b"opcert"))
                    {
                        let text = String::from_utf8_lossy(&arguments).replace('\0', " ");
                        seen.insert(text);
                    }
                }
            }
            seen
        });
        let done = work();
        is_over.store(true, Ordering::SeqCst);
        (watching.join().unwrap(), done)
    })
}

#[test]
fn no_secret_is_an_argument_of_any_program() {
    let made = Made::new();
    let service = at_fixed_address(&made);
    let (seen, secrets) = arguments_during(|| {
        let running = Running::start(&made);
        let computer = Computer::new(&made, &service, "alice", &[]);
        let code = computer.install(&running);
        computer.approve(&made).unwrap();
        running.stop();
        let mut secrets = vec![PASSWORD.to_owned(), code, made.platform_key.clone()];
        secrets.extend([made.token.pin.clone(), computer.token.pin.clone()]);
        secrets
    });
    for program in [
        "opcert install",
        "opcertd ",
        "opcert-worker ",
        "opcert-accountd ",
    ] {
        assert!(
            seen.iter().any(|arguments| arguments.contains(program)),
            "{program}: {seen:#?}"
        );
    }
    for arguments in &seen {
        for secret in &secrets {
            assert!(!arguments.contains(secret), "{secret} in {arguments}");
        }
    }
}

#[test]
fn a_certificate_is_renewed_with_its_old_key() {
    if WallClock::is_missing() {
        return;
    }
    let made = Made::new();
    let service = at_fixed_address(&made);
    let mut config = std::fs::OpenOptions::new()
        .append(true)
        .open(&made.config)
        .unwrap();
    writeln!(config, "\n[certificates]\nvalidity-days = 1").unwrap();
    drop(config);
    let clock = WallClock::new(made.token.directory(), Timers::Real);
    let environment = clock.environment();
    let running = Running::start_in(&made, &environment);
    let computer = Computer::new(&made, &service, "alice", &environment);
    computer.install(&running);
    let [(first, _)] = &computer.certificates()[..] else {
        panic!("one certificate");
    };

    // Too early: a timer finds nothing to do, a person who insists is told from when on.
    let said = computer.run(&["renew"], true);
    assert!(said.contains("No certificate can be renewed yet"), "{said}");
    let (code, _, error) = run(
        &mut computer.opcert(&["renew", "--serial", first], true),
        "",
    );
    assert_ne!(code, 0);
    assert!(error.contains("renewal-too-early"), "{error}");

    // In the last third the old key approves, without password or code.
    clock.set(17 * 3600);
    let said = computer.run(&["renew"], true);
    assert!(said.contains("alice"), "{said}");
    let after = computer.certificates();
    assert_eq!(after.len(), 2, "{after:?}");
    assert_eq!(after[0], (first.clone(), "superseded".to_owned()));
    assert_eq!(after[1].1, "active");
    let listed = succeed(
        made.command()
            .args(["--json", "certificate", "list", "--account", "acme"])
            .envs(environment.iter().map(|(name, value)| (name, value))),
    );
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");

    // The new one signs when the old one is over, and is left alone until its own last third.
    clock.set(25 * 3600);
    computer.approve(&made).unwrap();
    let said = computer.run(&["renew"], true);
    assert!(said.contains("No certificate can be renewed yet"), "{said}");
    running.stop();
}

#[test]
fn the_challenge_key_changes_and_daemons_follow() {
    let made = Made::new();
    let service = at_fixed_address(&made);
    let keys = |made: &Made| made.keys("challenge");
    let running = Running::start(&made);
    let early = Computer::new(&made, &service, "alice", &[]);
    let late = Computer::new(&made, &service, "bob", &[]);
    early.install(&running);
    late.install(&running);
    let old = early.approve(&made).unwrap();

    // Nothing to activate, then one next key and no second.
    let activate = ["key", "activate", "--overlap-days", "7"];
    let (code, _, error) = run(made.command().args(activate), "");
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("key rotate"), "{error}");
    succeed(made.command().args(["key", "rotate"]));
    let (code, _, error) = run(made.command().args(["key", "rotate"]), "");
    assert_eq!(code, 1, "{error}");
    let listed = keys(&made);
    assert_eq!(listed[0].0, "signs");
    assert_eq!(listed[1].0, "next");

    // Published before it signs: whoever synchronises meets it, by the word of the old one.
    running.stop();
    let running = Running::start(&made);
    early.run(&["sync"], true);
    assert_eq!(early.approve(&made).unwrap(), old);

    // It signs. The computer that has met it does not notice; the other one has to synchronise.
    succeed(made.command().args(activate));
    running.stop();
    let running = Running::start(&made);
    let new = early.approve(&made).unwrap();
    assert_ne!(new, old);
    let refused = late.approve(&made).unwrap_err();
    assert!(refused.contains("challenge-"), "{refused}");
    late.run(&["sync"], true);
    assert_eq!(late.approve(&made).unwrap(), new);

    let states: Vec<String> = keys(&made).into_iter().map(|key| key.0).collect();
    assert_eq!(states, ["signs", "still published"]);
    running.stop();
    let trail = made.state().join("admin-audit");
    let records = succeed(
        Command::new(env!("CARGO_BIN_EXE_opcert"))
            .args(["audit", "show", "--json"])
            .arg(&trail),
    );
    for kind in ["service-key-made", "service-key-activated"] {
        assert!(records.contains(kind), "{kind}: {records}");
    }
}

#[test]
fn the_authority_changes_its_key_and_daemons_follow() {
    let made = Made::new();
    let service = at_fixed_address(&made);
    for (operator, mobile) in [("carol", "+8613800000003"), ("dave", "+8613800000004")] {
        let mut create = made.command();
        create
            .args(["operator", "create", operator, "--account", "acme"])
            .args(["--mobile", mobile, "--password-file", "-"]);
        succeed_with(&mut create, PASSWORD);
    }
    let key = |arguments: &[&str]| run(made.command().arg("key").args(arguments), "");
    let issuing = || made.keys("issuing");
    let running = Running::start(&made);
    let early = Computer::new(&made, &service, "alice", &[]);
    let late = Computer::new(&made, &service, "bob", &[]);
    early.install(&running);
    late.install(&running);
    let first = issuing()[0].1.clone();

    let (code, _, error) = key(&["activate", "issuing"]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("key rotate issuing"), "{error}");
    let (code, _, error) = key(&["activate", "issuing", "--overlap-days", "7"]);
    assert_eq!(code, 65, "{error}");
    assert_eq!(key(&["rotate", "issuing"]).0, 0);
    let (code, _, error) = key(&["rotate", "issuing"]);
    assert_eq!(code, 1, "{error}");
    running.stop();
    let running = Running::start(&made);
    let said = succeed(&mut early.opcert(&["sync"], true));
    assert!(said.contains("revocation list"), "{said}");
    assert_eq!(key(&["activate", "issuing"]).0, 0);
    running.stop();
    let running = Running::start(&made);
    let states: Vec<String> = issuing().into_iter().map(|key| key.0).collect();
    assert_eq!(states, ["signs", "still published"]);

    // Certificates of both keys sign and are accepted, on a computer that has not synchronised
    // since, too.
    early.approve(&made).unwrap();
    late.approve(&made).unwrap();
    let fresh = Computer::new(&made, &service, "carol", &[]);
    fresh.install(&running);
    fresh.approve(&made).unwrap();
    let approval = |computer: &Computer<'_>| computer.token.directory().join("approval.jws");

    // Offline, with both certificates of the authority and one list.
    let published = made.token.directory().join("published");
    let folder = published.display().to_string();
    fresh.run(&["sync", "--save", &folder], true);
    let verify = |approval: &Path| {
        let mut verify = Command::new(env!("CARGO_BIN_EXE_opcert"));
        verify
            .arg("verify")
            .arg("--ca")
            .arg(published.join("ca.pem"))
            .arg("--crl")
            .arg(published.join("crl.der"))
            .arg(approval);
        run(&mut verify, "")
    };
    for computer in [&early, &late, &fresh] {
        let (code, _, error) = verify(&approval(computer));
        assert_eq!(code, 0, "{error}");
    }

    // A list by the new key tells of a certificate by the old one.
    let serial = early.certificates()[0].0.clone();
    succeed(made.command().args(["certificate", "revoke", &serial]));
    for computer in [&early, &late] {
        computer.run(&["sync"], true);
    }
    assert_eq!(early.certificates()[0].1, "revoked");
    assert!(early.approve(&made).is_err());
    late.approve(&made).unwrap();
    fresh.run(&["sync", "--save", &folder], true);
    let (code, _, error) = verify(&approval(&early));
    assert_eq!(code, 1);
    assert!(error.contains("certificate-revoked"), "{error}");
    let (code, _, error) = verify(&approval(&late));
    assert_eq!(code, 0, "{error}");

    // The old key stays as long as a certificate hangs on it, unless that is meant.
    let (code, _, error) = key(&["retire", &first]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("1 certificates in force"), "{error}");
    assert_eq!(key(&["retire", &first, "--with-certificates"]).0, 0);
    running.stop();
    let running = Running::start(&made);
    late.run(&["sync"], true);
    assert_eq!(late.certificates()[0].1, "revoked");
    fresh.run(&["sync"], true);
    fresh.approve(&made).unwrap();
    succeed(made.command().arg("doctor"));

    // What the daemons pin has followed: the one that was there from the beginning enrols anew.
    let again = Computer {
        operator: "dave",
        ..late
    };
    again.install(&running);
    again.approve(&made).unwrap();
    running.stop();
    let trail = made.state().join("admin-audit");
    let records = succeed(
        Command::new(env!("CARGO_BIN_EXE_opcert"))
            .args(["audit", "show", "--json"])
            .arg(&trail),
    );
    for kind in [
        "service-key-made",
        "service-key-activated",
        "service-key-retired",
        "certificate-revoked",
    ] {
        assert!(records.contains(kind), "{kind}: {records}");
    }
}
