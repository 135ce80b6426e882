//! The faulty module does what it says, seen by a plain PKCS#11 program.
//!
//! The program is this test binary once more, as faults may end it: the test [`probe`] does what
//! its standard input says and answers on its standard output.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::Error;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use cryptoki_sys::{
    CKA_LOCAL, CKM_ECDSA, CKR_DEVICE_ERROR, CKR_GENERAL_ERROR, CKR_PIN_INCORRECT, CKR_PIN_LOCKED,
};

mod support;
use support::faulty::{Fault, Faulty, Handles, Login, Slots, pin_mark};
use support::softhsm::TestToken;

/// Begins an answer; everything else on standard output is the harness's or the module's.
const ANSWER: &str = "answer: ";

/// DER of the object identifier of P-256.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// Not a test: the program that [`Probe`] runs.
#[test]
#[ignore = "started by the tests"]
fn probe() {
    let path = std::env::var_os("FAULTY_PROBE").expect("started by a test");
    let pkcs11 = Pkcs11::new(std::path::PathBuf::from(path)).unwrap();
    let initialized = pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    answer(&initialized.map(|()| "ready".to_owned()));
    let mut session = None;
    let mut keys = HashMap::new();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        answer(&obey(&pkcs11, &mut session, &mut keys, &words));
    }
}

fn answer(result: &Result<String, Error>) {
    let text = match result {
        Ok(text) => text.clone(),
        Err(Error::Pkcs11(code, _)) => format!("{code:?}"),
        Err(other) => format!("{other:?}"),
    };
    println!("\n{ANSWER}{text}");
}

fn obey(
    pkcs11: &Pkcs11,
    current: &mut Option<Session>,
    keys: &mut HashMap<String, ObjectHandle>,
    words: &[&str],
) -> Result<String, Error> {
    let slot = || {
        let slots = pkcs11.get_slots_with_token()?;
        let initialized = |slot: &cryptoki::slot::Slot| {
            pkcs11
                .get_token_info(*slot)
                .is_ok_and(|info| info.token_initialized())
        };
        Ok::<_, Error>(slots.into_iter().find(initialized))
    };
    let session = || current.as_ref().expect("open first");
    Ok(match words {
        ["slots"] => format!("{:?}", slot()?.map(|slot| slot.id())),
        ["info"] => {
            let info = pkcs11.get_token_info(slot()?.expect("a token"))?;
            format!(
                "low={} final={} locked={} sessions={:?}",
                info.user_pin_count_low(),
                info.user_pin_final_try(),
                info.user_pin_locked(),
                info.max_session_count()
            )
        }
        ["has", mechanism] => {
            let list = pkcs11.get_mechanism_list(slot()?.expect("a token"))?;
            let wanted = MechanismType::try_from(mechanism.parse::<u64>().unwrap())?;
            list.contains(&wanted).to_string()
        }
        ["open"] => {
            *current = Some(pkcs11.open_rw_session(slot()?.expect("a token"))?);
            "open".into()
        }
        ["keep"] => {
            std::mem::forget(current.take());
            "kept".into()
        }
        ["login", pin] => {
            session().login(UserType::User, Some(&AuthPin::from((*pin).to_owned())))?;
            "in".into()
        }
        ["generate", name] => {
            let public = [
                Attribute::Token(true),
                Attribute::Id(name.as_bytes().to_vec()),
                Attribute::EcParams(P256.to_vec()),
                Attribute::Verify(true),
            ];
            let private = [
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Id(name.as_bytes().to_vec()),
                Attribute::Sign(true),
            ];
            let (public, private) =
                session().generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
            keys.insert(format!("public {name}"), public);
            keys.insert((*name).to_owned(), private);
            "generated".into()
        }
        ["find", name] => {
            for (class, key) in [
                (ObjectClass::PRIVATE_KEY, (*name).to_owned()),
                (ObjectClass::PUBLIC_KEY, format!("public {name}")),
            ] {
                let found = session().find_objects(&[
                    Attribute::Class(class),
                    Attribute::Id(name.as_bytes().to_vec()),
                ])?;
                keys.insert(key, found[0]);
            }
            "found".into()
        }
        ["local", name] => {
            let local = session().get_attributes(keys[*name], &[AttributeType::Local])?;
            format!("{local:?}")
        }
        // Signs with one key and verifies with another.
        ["sign", name, by] => {
            let signature = session().sign(&Mechanism::Ecdsa, keys[*name], &[7; 32])?;
            let public = keys[&format!("public {by}")];
            session().verify(&Mechanism::Ecdsa, public, &[7; 32], &signature)?;
            "verified".into()
        }
        ["event"] => format!("{:?}", pkcs11.get_slot_event()?.is_some()),
        ["descriptors"] => std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .count()
            .to_string(),
        _ => panic!("no such command: {words:?}"),
    })
}

/// The running program.
struct Probe {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// What came before the last answer.
    noise: Vec<u8>,
}

impl Probe {
    fn start(faulty: &Faulty) -> Self {
        let mut probe = Self::start_unready(faulty);
        assert_eq!(probe.read(), "ready");
        probe
    }

    fn start_unready(faulty: &Faulty) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "probe", "--ignored", "--nocapture", "--quiet"])
            .env_clear()
            .envs(&faulty.environment)
            .env("FAULTY_PROBE", Faulty::module())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            noise: Vec::new(),
        }
    }

    /// Starts it, opens a session, logs in, and generates the keys `a` and `b`.
    fn working(faulty: &Faulty, token: &TestToken) -> Self {
        let mut probe = Self::start(faulty);
        probe.ask_all(&[
            ("open", "open"),
            (&format!("login {}", token.pin), "in"),
            ("generate a", "generated"),
            ("generate b", "generated"),
            ("sign a a", "verified"),
            ("sign b a", "SignatureInvalid"),
        ]);
        probe
    }

    fn send(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
    }

    fn read(&mut self) -> String {
        self.noise.clear();
        loop {
            let mut line = Vec::new();
            let length = self.output.read_until(b'\n', &mut line).unwrap();
            if length == 0 {
                return "gone".into();
            }
            match line.strip_prefix(ANSWER.as_bytes()) {
                Some(answer) => return String::from_utf8_lossy(answer).trim_end().to_owned(),
                None => self.noise.extend(line),
            }
        }
    }

    fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.read()
    }

    fn ask_all(&mut self, script: &[(&str, &str)]) {
        for (command, answer) in script {
            assert_eq!(self.ask(command), *answer, "{command}");
        }
    }

    fn status(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // It may be gone already; that is what some tests are about.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn setup(label: &str) -> Option<(TestToken, Faulty)> {
    let token = TestToken::softhsm(label)?;
    let faulty = Faulty::new(&token);
    Some((token, faulty))
}

#[test]
fn without_faults_it_is_the_real_module() {
    let Some((token, faulty)) = setup("faultless") else {
        return;
    };
    let _probe = Probe::working(&faulty, &token);
    let output = Command::new("pkcs11-tool")
        .args(["--module"])
        .arg(Faulty::module())
        .args(["--login", "--pin", &token.pin, "--test"])
        .envs(&faulty.environment)
        .output()
        .expect("pkcs11-tool is needed: apt-get install opensc");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("No errors"), "{text}");
}

#[test]
fn a_token_taken_out_and_put_back() {
    let Some((token, faulty)) = setup("in and out") else {
        return;
    };
    let mut probe = Probe::working(&faulty, &token);
    let before = probe.ask("slots");
    faulty.remove();
    probe.ask_all(&[("sign a a", "DeviceRemoved"), ("slots", "None")]);
    faulty.insert(Slots::New, Handles::Invalid);
    probe.ask_all(&[("sign a a", "SessionHandleInvalid")]);
    assert_ne!(probe.ask("slots"), before);
    probe.ask_all(&[
        ("open", "open"),
        // The login went with the sessions.
        ("sign a a", "KeyHandleInvalid"),
        (&format!("login {}", token.pin), "in"),
        ("sign a a", "KeyHandleInvalid"),
        ("find a", "found"),
        ("sign a a", "verified"),
    ]);
    faulty.remove_token("another");
    probe.ask_all(&[("sign a a", "verified")]);
    faulty.remove_token(&token.label);
    probe.ask_all(&[("sign a a", "DeviceRemoved")]);
}

#[test]
fn a_handle_of_before_means_another_key() {
    let Some((token, faulty)) = setup("swapped") else {
        return;
    };
    let mut probe = Probe::working(&faulty, &token);
    faulty.insert(Slots::Same, Handles::Swapped);
    probe.ask_all(&[
        ("open", "open"),
        (&format!("login {}", token.pin), "in"),
        ("sign a b", "SignatureInvalid"),
    ]);
    // Public handles are swapped too, so both halves of the pair are the other's.
    probe.ask_all(&[("sign a a", "verified"), ("find b", "found")]);
    probe.ask_all(&[("sign a b", "verified"), ("sign b b", "verified")]);
}

#[test]
fn sessions_expire_and_logins_end() {
    let Some((token, faulty)) = setup("expires") else {
        return;
    };
    let mut probe = Probe::working(&faulty, &token);
    faulty.expire_sessions();
    probe.ask_all(&[
        ("sign a a", "SessionHandleInvalid"),
        ("open", "open"),
        (&format!("login {}", token.pin), "in"),
        ("find a", "found"),
        ("sign a a", "verified"),
    ]);
    faulty.log_out();
    assert_ne!(probe.ask("sign a a"), "verified");
    probe.ask_all(&[(&format!("login {}", token.pin), "in"), ("find a", "found")]);
    faulty.idle(Duration::from_millis(100));
    probe.ask_all(&[("sign a a", "verified")]);
    std::thread::sleep(Duration::from_millis(150));
    probe.ask_all(&[("sign a a", "SessionHandleInvalid")]);
}

#[test]
fn sessions_are_capped() {
    let Some((_token, faulty)) = setup("capped") else {
        return;
    };
    let mut probe = Probe::start(&faulty);
    faulty.cap_sessions(2);
    assert!(probe.ask("info").ends_with("sessions=Max(2)"));
    probe.ask_all(&[
        ("open", "open"),
        ("keep", "kept"),
        ("open", "open"),
        ("keep", "kept"),
        ("open", "SessionCount"),
    ]);
    faulty.cap_sessions_silently(3);
    assert!(!probe.ask("info").ends_with("sessions=Max(3)"));
    probe.ask_all(&[("open", "open"), ("keep", "kept"), ("open", "SessionCount")]);
}

#[test]
fn the_pin_locks_over_processes() {
    let Some((token, faulty)) = setup("locks") else {
        return;
    };
    faulty.pin_tries(3, 0);
    let mut probe = Probe::start(&faulty);
    let flags = |text: String| text.split(" sessions").next().unwrap().to_owned();
    probe.ask_all(&[("open", "open"), ("login 000000x", "PinIncorrect")]);
    assert_eq!(
        flags(probe.ask("info")),
        "low=true final=false locked=false"
    );
    drop(probe);
    let mut probe = Probe::start(&faulty);
    probe.ask_all(&[("open", "open"), ("login 000000x", "PinIncorrect")]);
    assert_eq!(flags(probe.ask("info")), "low=true final=true locked=false");
    let right = format!("login {}", token.pin);
    probe.ask_all(&[(&right, "in")]);
    assert_eq!(
        flags(probe.ask("info")),
        "low=false final=false locked=false"
    );
    drop(probe);
    let mut probe = Probe::start(&faulty);
    probe.ask_all(&[("open", "open")]);
    for _ in 0..3 {
        probe.ask_all(&[("login 000000x", "PinIncorrect")]);
    }
    probe.ask_all(&[(&right, "PinLocked")]);
    assert_eq!(flags(probe.ask("info")), "low=true final=false locked=true");
    let failed = |code| Login {
        pin: pin_mark("000000x"),
        code: Some(code),
        reached: true,
    };
    assert_eq!(faulty.logins()[0], failed(CKR_PIN_INCORRECT));
    // A locked token does not look at the PIN.
    assert_eq!(faulty.logins()[6].code, Some(CKR_PIN_LOCKED));
    assert!(!faulty.logins()[6].reached);
    assert_eq!(faulty.logins().len(), 7);
    assert!(faulty.logins()[2].succeeded());
}

#[test]
fn it_lies_about_pins() {
    let Some((token, faulty)) = setup("lies") else {
        return;
    };
    let mut probe = Probe::start(&faulty);
    let right = format!("login {}", token.pin);
    faulty.lie_of_wrong_pin(CKR_GENERAL_ERROR);
    probe.ask_all(&[("open", "open"), ("login 000000x", "GeneralError")]);
    faulty.lie_of_right_pin(CKR_PIN_INCORRECT);
    probe.ask_all(&[(&right, "PinIncorrect"), (&right, "PinIncorrect")]);
    faulty.heal();
    probe.ask_all(&[(&right, "in")]);
}

#[test]
fn calls_fail_as_often_as_told() {
    let Some((token, faulty)) = setup("fails") else {
        return;
    };
    let mut probe = Probe::working(&faulty, &token);
    faulty.next("C_SignInit", CKR_DEVICE_ERROR, 2);
    probe.ask_all(&[
        ("sign a a", "DeviceError"),
        ("sign a a", "DeviceError"),
        ("sign a a", "verified"),
    ]);
    faulty
        .on("C_Verify,C_Decrypt")
        .skip(1)
        .times(1)
        .returns_after(CKR_DEVICE_ERROR);
    probe.ask_all(&[
        ("sign a a", "verified"),
        ("sign a a", "DeviceError"),
        ("sign a a", "verified"),
    ]);
    faulty.on("C_Sign").flips(3);
    probe.ask_all(&[("sign a a", "SignatureInvalid")]);
    faulty.heal();
    probe.ask_all(&[("sign a a", "verified")]);
    let slow = faulty.on("C_SignInit").slow(Duration::from_millis(200));
    let begin = Instant::now();
    probe.ask_all(&[("sign a a", "verified")]);
    assert!(begin.elapsed() >= Duration::from_millis(200));
    faulty.lift(&slow);
    assert_eq!(faulty.calls("C_Initialize"), 1);
}

#[test]
fn a_call_hangs_until_the_fault_is_lifted() {
    let Some((token, faulty)) = setup("hangs") else {
        return;
    };
    let mut probe = Probe::working(&faulty, &token);
    let hang = faulty.on("C_SignInit").hangs();
    let before = faulty.calls("C_SignInit");
    probe.send("sign a a");
    while faulty.calls("C_SignInit") == before {
        std::thread::yield_now();
    }
    assert_eq!(probe.child.try_wait().unwrap(), None);
    faulty.lift(&hang);
    assert_eq!(probe.read(), "verified");
}

#[test]
fn the_process_ends_as_told() {
    use std::os::unix::process::ExitStatusExt;
    let Some((token, faulty)) = setup("dies") else {
        return;
    };
    let ends = |set: &dyn Fn() -> Fault| {
        let mut probe = Probe::start(&faulty);
        let login = format!("login {}", token.pin);
        probe.ask_all(&[("open", "open"), (&login, "in")]);
        set();
        assert_eq!(probe.ask("generate x"), "gone");
        faulty.heal();
        let status = probe.status();
        (status.code(), status.signal())
    };
    let on = || faulty.on("C_GenerateKeyPair");
    assert_eq!(ends(&|| on().segfaults()), (None, Some(11)));
    assert_eq!(ends(&|| on().aborts()), (None, Some(6)));
    assert_eq!(ends(&|| on().exits(7)), (Some(7), None));
    // A login that the process does not survive is on record all the same.
    faulty.on("C_Login").times(1).aborts();
    let mut probe = Probe::start(&faulty);
    probe.ask_all(&[("open", "open"), ("login 000000x", "gone")]);
    assert_eq!(faulty.logins().last().unwrap().code, None);
    // Once means once, in whichever process.
    let mut probe = Probe::start(&faulty);
    probe.ask_all(&[("open", "open"), ("login 000000x", "PinIncorrect")]);
}

#[test]
fn it_prints_and_leaks() {
    let Some((token, faulty)) = setup("prints") else {
        return;
    };
    let mut probe = Probe::working(&faulty, &token);
    faulty.on("C_SignInit").prints(b"\x1b[2J hello \xff\n");
    probe.ask_all(&[("sign a a", "verified")]);
    let noise = std::mem::take(&mut probe.noise);
    assert!(noise.windows(12).any(|part| part == b"\x1b[2J hello \xff"));
    faulty.heal();
    let before: u32 = probe.ask("descriptors").parse().unwrap();
    faulty.on("C_SignInit").leaks(5);
    probe.ask_all(&[("sign a a", "verified")]);
    let after: u32 = probe.ask("descriptors").parse().unwrap();
    assert_eq!(after - before, 5);
}

#[test]
fn it_misreports_and_reports_events() {
    let Some((token, faulty)) = setup("misreports") else {
        return;
    };
    let mut probe = Probe::working(&faulty, &token);
    probe.ask_all(&[("local a", "[Local(true)]")]);
    faulty.misreport(CKA_LOCAL, &[0]);
    probe.ask_all(&[("local a", "[Local(false)]")]);
    let has = format!("has {CKM_ECDSA}");
    probe.ask_all(&[(&has, "true")]);
    faulty.hide(CKM_ECDSA);
    probe.ask_all(&[(&has, "false"), ("sign a a", "MechanismInvalid")]);
    faulty.heal();
    faulty.events();
    probe.ask_all(&[("event", "false")]);
    faulty.remove();
    probe.ask_all(&[("event", "true")]);
    faulty.insert(Slots::Same, Handles::Invalid);
    probe.ask_all(&[("event", "true")]);
    faulty.always_authenticate();
    probe.ask_all(&[
        ("open", "open"),
        (&format!("login {}", token.pin), "in"),
        ("find a", "found"),
        ("sign a a", "UserNotLoggedIn"),
    ]);
}
