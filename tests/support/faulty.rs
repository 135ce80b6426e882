//! The faulty module in front of a token's real one; see `tests/faulty-module/lib.rs`.
//!
//! ```text
//! let faulty = Faulty::new(&token);
//! let hang = faulty.on("C_Sign").times(1).hangs();
//! …
//! faulty.lift(&hang);
//! faulty.remove();
//! faulty.insert(Slots::New, Handles::Swapped);
//! ```
//!
//! Everything takes effect at the module's next call, in all processes that have it loaded.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime};

use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_RV, CKR_OK, CKR_USER_ALREADY_LOGGED_IN,
};
use opcert::device::{Allowance, Config, Sandbox};

use super::softhsm::TestToken;

/// The faulty module of one test.
pub struct Faulty {
    /// What the environment of a process that loads the module must hold.
    pub environment: BTreeMap<String, String>,
    control: PathBuf,
    log: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Faults of calls, by number.
    calls: BTreeMap<u64, String>,
    /// The other lines, by their first words.
    world: BTreeMap<String, String>,
    last: u64,
    version: u64,
    inserted: u64,
    expired: u64,
    logged_out: u64,
}

/// A fault of calls that was set.
#[derive(Debug, Clone, Copy)]
pub struct Fault(u64);

/// A fault of calls to be set.
#[must_use]
pub struct Strike<'a> {
    faulty: &'a Faulty,
    on: String,
    limits: String,
}

/// Whether slot ids change at an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// They stay.
    Same,
    /// They change.
    New,
}

/// What object handles of before an insertion mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handles {
    /// Nothing.
    Invalid,
    /// Another object.
    Swapped,
}

/// A `C_Login` that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Tells PINs apart; see [`pin_mark`].
    pub pin: u64,
    /// What it returned; `None` when the process did not survive it.
    pub code: Option<CK_RV>,
    /// The PIN reached the token.
    pub reached: bool,
}

impl Login {
    /// Whether it succeeded.
    pub fn succeeded(&self) -> bool {
        self.code == Some(CKR_OK)
    }

    /// Whether it may have spent a PIN try: the token looked at the PIN and said anything but yes,
    /// whichever code it gave, or nobody knows what it did. While somebody is logged in no token
    /// looks at the PIN.
    pub fn may_have_spent(&self) -> bool {
        match self.code {
            Some(CKR_OK | CKR_USER_ALREADY_LOGGED_IN) => false,
            Some(_) => self.reached,
            None => true,
        }
    }
}

/// What the log shows in place of a PIN.
pub fn pin_mark(pin: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    pin.as_bytes().hash(&mut hasher);
    hasher.finish()
}

impl Faulty {
    /// A module without faults in front of the one of `token`, in its directory.
    pub fn new(token: &TestToken) -> Self {
        let directory = token.directory();
        let control = directory.join("faulty.control");
        let log = directory.join("faulty.log");
        let mut environment = token.environment.clone();
        for (name, path) in [
            ("FAULTY_MODULE", token.module.as_path()),
            ("FAULTY_CONTROL", &control),
            ("FAULTY_LOG", &log),
        ] {
            environment.insert(name.into(), path.to_string_lossy().into_owned());
        }
        let faulty = Self {
            environment,
            control,
            log,
            state: Mutex::default(),
        };
        faulty.change(|_| ());
        faulty
    }

    /// Where the module is. Built here where the test run has not done so, or did for older source.
    pub fn module() -> &'static Path {
        static MODULE: OnceLock<PathBuf> = OnceLock::new();
        MODULE.get_or_init(|| {
            let programs = Path::new(env!("CARGO_BIN_EXE_opcert-worker"))
                .parent()
                .expect("a directory");
            let module = programs.join("examples/libfaulty_module.so");
            if !is_fresh(&module) {
                let mut build = Command::new(env!("CARGO"));
                build.current_dir(env!("CARGO_MANIFEST_DIR")).args([
                    "build",
                    "--quiet",
                    "--example",
                    "faulty_module",
                ]);
                if programs.ends_with("release") {
                    build.arg("--release");
                }
                assert!(build.status().expect("cargo").success());
            }
            module
        })
    }

    /// Puts the module into a configuration in place of the real one.
    pub fn configure(&self, config: &mut Config) {
        config.module[0].path = Self::module().to_owned();
        config.module[0].environment = self.environment.clone();
        // Where a build leaves it depends on somebody's umask.
        config.module[0].allow = vec![Allowance::WritablePath];
        // As SoftHSM2 itself is confined; the module keeps its log and its counts beside the token.
        config.module[0].sandbox = Some(Sandbox::Softhsm);
        let beside = self.control.parent().expect("a directory");
        config.module[0].writable = vec![beside.to_owned()];
    }

    /// Begins a fault of calls of `functions`, separated by commas; `*` for all.
    pub fn on(&self, functions: &str) -> Strike<'_> {
        Strike {
            faulty: self,
            on: functions.into(),
            limits: String::new(),
        }
    }

    /// The next `times` calls of `functions` return `code`.
    pub fn next(&self, functions: &str, code: CK_RV, times: u64) -> Fault {
        self.on(functions).times(times).returns(code)
    }

    /// Ends a fault of calls; those who hang in it go on.
    pub fn lift(&self, fault: &Fault) {
        self.change(|state| {
            state.calls.remove(&fault.0);
        });
    }

    /// Ends all faults but what has happened to tokens and sessions.
    pub fn heal(&self) {
        self.change(|state| {
            state.calls.clear();
            state
                .world
                .retain(|key, _| key == "inserted" || key == "expired" || key == "logged-out");
        });
    }

    /// Takes all tokens out.
    pub fn remove(&self) {
        self.world("removed", "removed".into());
    }

    /// Takes one token out.
    pub fn remove_token(&self, label: &str) {
        let line = format!("removed token={}", escaped(label.as_bytes()));
        self.world(&format!("removed {label}"), line);
    }

    /// Puts all tokens back; also without [`Faulty::remove`] before, as when nobody looked.
    pub fn insert(&self, slots: Slots, handles: Handles) {
        self.change(|state| {
            state.world.retain(|key, _| !key.starts_with("removed"));
            state.inserted += 1;
            let slots = match slots {
                Slots::Same => "same",
                Slots::New => "new",
            };
            let handles = match handles {
                Handles::Invalid => "invalid",
                Handles::Swapped => "swapped",
            };
            let line = format!(
                "inserted count={} slots={slots} handles={handles}",
                state.inserted
            );
            state.world.insert("inserted".into(), line);
        });
    }

    /// Puts one token back, nothing else having happened.
    pub fn insert_token(&self, label: &str) {
        self.change(|state| {
            state.world.remove(&format!("removed {label}"));
        });
    }

    /// Closes all sessions; the user is logged out with them.
    pub fn expire_sessions(&self) {
        self.change(|state| {
            state.expired += 1;
            let line = format!("expired count={}", state.expired);
            state.world.insert("expired".into(), line);
        });
    }

    /// Logs the user out, sessions stay.
    pub fn log_out(&self) {
        self.change(|state| {
            state.logged_out += 1;
            let line = format!("logged-out count={}", state.logged_out);
            state.world.insert("logged-out".into(), line);
        });
    }

    /// Closes sessions that were not used for so long.
    pub fn idle(&self, time: Duration) {
        self.world("idle", format!("idle ms={}", time.as_millis()));
    }

    /// Allows so many sessions, and says so in the token's information.
    pub fn cap_sessions(&self, max: u64) {
        self.world("sessions", format!("sessions max={max}"));
    }

    /// Allows so many sessions, and says nothing.
    pub fn cap_sessions_silently(&self, max: u64) {
        self.world("sessions", format!("sessions max={max} report=no"));
    }

    /// Locks the token after so many wrong PINs, of which some are spent.
    pub fn pin_tries(&self, tries: u64, spent: u64) {
        self.world("pin", format!("pin tries={tries} spent={spent}"));
    }

    /// Answers a wrong PIN with `code`.
    pub fn lie_of_wrong_pin(&self, code: CK_RV) {
        self.world("lie wrong", format!("lie wrong={code:#x}"));
    }

    /// Answers a right PIN with `code`.
    pub fn lie_of_right_pin(&self, code: CK_RV) {
        self.world("lie right", format!("lie right={code:#x}"));
    }

    /// Denies having a mechanism.
    pub fn hide(&self, mechanism: CK_MECHANISM_TYPE) {
        self.world(
            &format!("hide {mechanism}"),
            format!("hide mechanism={mechanism}"),
        );
    }

    /// Admits to these sizes of keys only, in bits.
    pub fn sizes(&self, mechanism: CK_MECHANISM_TYPE, min: u64, max: u64) {
        self.world(
            &format!("sizes {mechanism}"),
            format!("sizes mechanism={mechanism} min={min} max={max}"),
        );
    }

    /// Has the ECDSA mechanisms that hash.
    pub fn hashes(&self) {
        self.world("hashes", "hashes".into());
    }

    /// Refuses templates for keys that have an attribute.
    pub fn refuse(&self, attribute: CK_ATTRIBUTE_TYPE, code: CK_RV) {
        self.world(
            &format!("refuse {attribute}"),
            format!("refuse attribute={attribute} code={code:#x}"),
        );
    }

    /// Tells points of elliptic curves without their OCTET STRING.
    pub fn bare_points(&self) {
        self.world("bare-points", "bare-points".into());
    }

    /// Takes and tells Ed25519 by the name of the curve only.
    pub fn edwards_by_name(&self) {
        self.world("edwards-by-name", "edwards-by-name".into());
    }

    /// Misreports an attribute of every object that has it.
    pub fn misreport(&self, attribute: CK_ATTRIBUTE_TYPE, value: &[u8]) {
        self.world(
            &format!("attribute {attribute}"),
            format!("attribute type={attribute} value={}", escaped(value)),
        );
    }

    /// Makes private keys CKA_ALWAYS_AUTHENTICATE.
    pub fn always_authenticate(&self) {
        self.world("always-authenticate", "always-authenticate".into());
    }

    /// Makes the private key with this CKA_ID CKA_ALWAYS_AUTHENTICATE.
    pub fn always_authenticate_with(&self, id: &[u8]) {
        let line = format!("always-authenticate id={}", escaped(id));
        self.world(&line.clone(), line);
    }

    /// Has the token ask for the PIN itself, where this one is typed.
    pub fn keypad(&self, pin: &str) {
        let line = format!("keypad pin={}", escaped(pin.as_bytes()));
        self.world("keypad", line);
    }

    /// The same, and this where it asks for a new one.
    pub fn keypad_for_new(&self, pin: &str, new: &str) {
        let (pin, new) = (escaped(pin.as_bytes()), escaped(new.as_bytes()));
        self.world("keypad", format!("keypad pin={pin} new={new}"));
    }

    /// Has C_WaitForSlotEvent report insertions and removals.
    pub fn events(&self) {
        self.world("events", "events".into());
    }

    /// The same, with a lock held while it waits, so that all other calls hang.
    pub fn events_behind_a_lock(&self) {
        self.world("events", "events lock=yes".into());
    }

    /// How often a function was called, by all processes.
    pub fn calls(&self, function: &str) -> usize {
        self.events_of("call")
            .filter(|(_, name, _)| name == function)
            .count()
    }

    /// All logins of the user, oldest first.
    pub fn logins(&self) -> Vec<Login> {
        self.logins_as("user=1")
    }

    /// All logins for one use of a key, oldest first.
    pub fn logins_for_one_use(&self) -> Vec<Login> {
        self.logins_as("user=2")
    }

    fn logins_as(&self, user: &str) -> Vec<Login> {
        let mut logins: Vec<(String, Login, bool)> = Vec::new();
        for line in self.log().lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                [process, thread, "call", "C_Login", by, pin] => {
                    let pin = pin.strip_prefix("pin=").expect("a PIN's mark");
                    let pin = u64::from_str_radix(pin, 16).expect("a number");
                    let login = Login {
                        pin,
                        code: None,
                        reached: false,
                    };
                    logins.push((format!("{process} {thread}"), login, *by == user));
                }
                [process, thread, "reach", "C_Login"] => {
                    let caller = format!("{process} {thread}");
                    if let Some((_, login, _)) =
                        logins.iter_mut().rev().find(|(by, ..)| *by == caller)
                    {
                        login.reached = true;
                    }
                }
                [process, thread, "return", "C_Login", code] => {
                    let caller = format!("{process} {thread}");
                    let code = CK_RV::from_str_radix(&code[2..], 16).expect("a number");
                    let begun = logins
                        .iter_mut()
                        .rev()
                        .find(|(by, login, _)| *by == caller && login.code.is_none());
                    if let Some((_, login, _)) = begun {
                        login.code = Some(code);
                    }
                }
                _ => {}
            }
        }
        logins
            .into_iter()
            .filter_map(|(_, login, is_meant)| is_meant.then_some(login))
            .collect()
    }

    /// What came of trying to reach something: the last errno, 0 for success, `None` if nobody tried
    /// or lived to tell.
    pub fn reached(&self, what: &str, at: &str) -> Option<i32> {
        let name = format!("{what}={at}").to_lowercase();
        self.events_of("reach")
            .filter(|(_, reached, _)| *reached == name)
            .filter_map(|(_, _, errno)| errno.parse().ok())
            .last()
    }

    /// The log as it is.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn events_of(&self, kind: &str) -> impl Iterator<Item = (String, String, String)> {
        let kind = kind.to_owned();
        let lines: Vec<String> = self.log().lines().map(str::to_owned).collect();
        lines.into_iter().filter_map(move |line| {
            let mut words = line.splitn(5, ' ');
            let process = words.next()?.to_owned();
            let _thread = words.next()?;
            let is_kind = words.next()? == kind;
            let function = words.next()?.to_owned();
            let rest = words.next().unwrap_or_default().to_owned();
            is_kind.then_some((process, function, rest))
        })
    }

    fn world(&self, key: &str, line: String) {
        self.change(|state| {
            state.world.insert(key.into(), line);
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().expect("no test panics in here");
        let result = change(&mut state);
        self.write(&mut state);
        result
    }

    fn write(&self, state: &mut MutexGuard<'_, State>) {
        state.version += 1;
        let mut text = String::new();
        for line in state.calls.values().chain(state.world.values()) {
            let _infallible = writeln!(text, "{line}");
        }
        let new = self.control.with_extension("new");
        std::fs::write(&new, text).expect("the control file");
        // Versions within one tick of the file system's clock must differ as well.
        let stamp = SystemTime::now() + Duration::from_millis(state.version);
        std::fs::File::options()
            .write(true)
            .open(&new)
            .and_then(|file| file.set_modified(stamp))
            .expect("a time stamp");
        std::fs::rename(&new, &self.control).expect("the control file in its place");
    }
}

impl Strike<'_> {
    /// It ends after so many calls.
    pub fn times(mut self, times: u64) -> Self {
        let _infallible = write!(self.limits, " times={times}");
        self
    }

    /// So many calls pass first.
    pub fn skip(mut self, skip: u64) -> Self {
        let _infallible = write!(self.limits, " skip={skip}");
        self
    }

    /// They hang until the fault is lifted.
    pub fn hangs(self) -> Fault {
        self.set("hang")
    }

    /// They take so much longer.
    pub fn slow(self, time: Duration) -> Fault {
        self.set(&format!("slow ms={}", time.as_millis()))
    }

    /// They return `code` and do nothing.
    pub fn returns(self, code: CK_RV) -> Fault {
        self.set(&format!("return code={code:#x}"))
    }

    /// They do their work and return `code` all the same.
    pub fn returns_after(self, code: CK_RV) -> Fault {
        self.set(&format!("return code={code:#x} when=after"))
    }

    /// The process dies of SIGSEGV.
    pub fn segfaults(self) -> Fault {
        self.set("crash by=segv")
    }

    /// The process dies of SIGABRT.
    pub fn aborts(self) -> Fault {
        self.set("crash by=abort")
    }

    /// The process ends by `exit`.
    pub fn exits(self, status: u8) -> Fault {
        self.set(&format!("exit status={status}"))
    }

    /// They write to standard output.
    pub fn prints(self, text: &[u8]) -> Fault {
        self.set(&format!("print text={}", escaped(text)))
    }

    /// They write to standard error.
    pub fn prints_to_stderr(self, text: &[u8]) -> Fault {
        self.set(&format!("print to=stderr text={}", escaped(text)))
    }

    /// They leave so many descriptors open each.
    pub fn leaks(self, count: u64) -> Fault {
        self.set(&format!("leak count={count}"))
    }

    /// They try to reach something outside; see `lib.rs` of the module.
    pub fn reaches(self, what: &str, at: &str) -> Fault {
        self.set(&format!("reach what={what} at={}", escaped(at.as_bytes())))
    }

    /// They flip a bit of the signature.
    pub fn flips(self, bit: u64) -> Fault {
        self.set(&format!("flip bit={bit}"))
    }

    fn set(self, action: &str) -> Fault {
        self.faulty.change(|state| {
            state.last += 1;
            let id = state.last;
            let line = format!("{action} on={} id={id}{}", self.on, self.limits);
            state.calls.insert(id, line);
            Fault(id)
        })
    }
}

/// Whether the module is younger than its source.
fn is_fresh(module: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let Ok(built) = modified(module) else {
        return false;
    };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faulty-module");
    std::fs::read_dir(source)
        .expect("the module's source")
        .all(|file| {
            file.and_then(|file| modified(&file.path()))
                .expect("a file")
                <= built
        })
}

/// A value of the control file.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        if byte.is_ascii_alphanumeric() {
            text.push(char::from(*byte));
        } else {
            let _infallible = write!(text, "%{byte:02X}");
        }
    }
    text
}
