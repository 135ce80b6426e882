//! The one instance of a process: the real module, the control file, the log.

use std::fmt::Display;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::time::Duration;

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CKR_GENERAL_ERROR, CKR_OK};

use crate::control::{Action, CallFault, Control, Reach};
use crate::tokens::World;

/// How often a call that waits looks at the control file.
const LOOK: Duration = Duration::from_millis(2);

/// The module.
pub struct Faulty {
    /// The functions of the real module.
    pub inner: &'static CK_FUNCTION_LIST,
    control_path: PathBuf,
    state: PathBuf,
    log: Option<File>,
    control: RwLock<(Option<Stamp>, Arc<Control>)>,
    world: Mutex<World>,
    /// Held for reading while a call is inside the real module, for writing while its sessions are
    /// closed behind the callers' backs: real modules crash when both happen at the same time.
    gate: RwLock<()>,
}

/// Which version of the control file was read.
#[derive(Clone, Copy, PartialEq)]
struct Stamp {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
    size: u64,
}

/// What is left of the faults of a call when its turn has come.
pub struct Entered<'a> {
    /// The control file as it was read for this call.
    pub control: Arc<Control>,
    /// The code to return in spite of success.
    pub after: Option<CK_RV>,
    /// The bit of a signature to flip.
    pub flip: Option<usize>,
    _gate: RwLockReadGuard<'a, ()>,
}

impl Faulty {
    /// The instance; loads the real module when it is first asked for.
    pub fn get() -> Option<&'static Self> {
        static FAULTY: OnceLock<Option<Faulty>> = OnceLock::new();
        FAULTY
            .get_or_init(|| {
                Self::load()
                    .inspect_err(|error| eprintln!("faulty module: {error}"))
                    .ok()
            })
            .as_ref()
    }

    fn load() -> Result<Self, String> {
        let variable = |name: &str| std::env::var_os(name).ok_or(format!("{name} is not set"));
        let path = variable("FAULTY_MODULE")?;
        let control_path = PathBuf::from(variable("FAULTY_CONTROL")?);
        let mut state = control_path.clone().into_os_string();
        state.push(".state");
        let log = std::env::var_os("FAULTY_LOG")
            .map(|path| OpenOptions::new().create(true).append(true).open(path))
            .transpose()
            .map_err(|error| format!("FAULTY_LOG: {error}"))?;
        // SAFETY: loading runs the initializers of a library that the test named; its purpose here.
        let library = unsafe { cryptoki_sys::Pkcs11::new(&path) }
            .map_err(|error| format!("FAULTY_MODULE: {error}"))?;
        if let Err(error) = &library.C_GetFunctionList {
            return Err(format!("FAULTY_MODULE: {error}"));
        }
        let mut list = std::ptr::null_mut();
        // SAFETY: the symbol is there, and `list` is a valid place for one pointer.
        let code = unsafe { library.C_GetFunctionList(&mut list) };
        // SAFETY: after CKR_OK a module's list is null or points to a static function list; the
        // library is leaked below, so it stays.
        let inner = unsafe { list.as_ref() }.filter(|_| code == CKR_OK);
        std::mem::forget(library);
        Ok(Self {
            inner: inner.ok_or(format!("FAULTY_MODULE: C_GetFunctionList: {code:#x}"))?,
            control_path,
            state: PathBuf::from(state),
            log,
            control: RwLock::default(),
            world: Mutex::default(),
            gate: RwLock::default(),
        })
    }

    /// Sessions, slots and handles.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the faults of a call of `function` happen. `Err` is the code it returns at once.
    pub fn enter(&self, function: &str) -> Result<Entered<'_>, CK_RV> {
        let mut control = self.refresh();
        let mut after = None;
        let mut flip = None;
        let struck: Vec<CallFault> = control
            .calls
            .iter()
            .filter(|fault| fault.is_on(function) && self.claim(fault))
            .cloned()
            .collect();
        for fault in struck {
            match &fault.action {
                Action::Hang => {
                    while control.calls.contains(&fault) {
                        std::thread::sleep(LOOK);
                        control = self.refresh();
                    }
                }
                Action::Slow(time) => std::thread::sleep(*time),
                Action::Return(code) => return Err(*code),
                Action::ReturnAfter(code) => after = Some(*code),
                Action::Segfault => segfault(),
                Action::Abort => std::process::abort(),
                Action::Exit(status) => std::process::exit(*status),
                Action::PrintOut(text) => print(std::io::stdout(), text),
                Action::PrintError(text) => print(std::io::stderr(), text),
                Action::Leak(count) => {
                    for _ in 0..*count {
                        // A module that is out of descriptors goes on as it can.
                        let _ = File::open("/dev/null").map(IntoRawFd::into_raw_fd);
                    }
                }
                Action::Flip(bit) => flip = Some(*bit),
                Action::Reach(what, at) => {
                    let errno = reach(*what, at).err().map_or(0, |error| {
                        error.raw_os_error().expect("the kernel's answer")
                    });
                    self.log(format!("reach {} {errno}", name_of(*what, at)));
                }
            }
        }
        let gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Entered {
            control,
            after,
            flip,
            _gate: gate,
        })
    }

    /// The control file as it is now. What it says about tokens and sessions happens here.
    pub fn refresh(&self) -> Arc<Control> {
        let stamp = std::fs::metadata(&self.control_path)
            .ok()
            .map(|metadata| Stamp::of(&metadata));
        let known = self
            .control
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if stamp.is_none() || stamp == known.0 {
            return known.1;
        }
        // The gate first: a call under way may still need the world.
        let _gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut control = self.control.write().unwrap_or_else(PoisonError::into_inner);
        if control.0 != known.0 {
            return control.1.clone();
        }
        // The file may be replaced between the two looks; the next call then reads it again.
        let new = std::fs::read_to_string(&self.control_path)
            .map_err(|error| error.to_string())
            .and_then(|text| Control::parse(&text));
        let new = match new {
            Ok(new) => Arc::new(new),
            Err(error) => {
                eprintln!("faulty module: {}: {error}", self.control_path.display());
                std::process::abort();
            }
        };
        let old = known.0.map(|_| known.1.as_ref());
        self.world().change(self.inner, old, &new);
        *control = (stamp, new.clone());
        new
    }

    /// Keeps all calls out of the real module.
    pub fn shut(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the fault strikes this call, by its `skip=` and `times=`.
    fn claim(&self, fault: &CallFault) -> bool {
        if fault.skip == 0 && fault.times.is_none() {
            return true;
        }
        let end = fault.times.map_or(u64::MAX, |times| fault.skip + times);
        if let Err(error) = std::fs::create_dir_all(&self.state) {
            eprintln!("faulty module: {}: {error}", self.state.display());
            std::process::abort();
        }
        // Whoever creates the file owns the number, whichever thread or process it is.
        for number in 0..end {
            let path = self.state.join(format!("{}.{number}", fault.id));
            if OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(path)
                .is_ok()
            {
                return number >= fault.skip;
            }
        }
        false
    }

    /// How many wrong PINs a token got; `None` where nobody counted yet.
    pub fn wrong_pins(&self, serial: &str) -> Option<u64> {
        std::fs::read_to_string(self.pin_file(serial))
            .ok()?
            .parse()
            .ok()
    }

    /// Keeps how many wrong PINs a token got.
    pub fn keep_wrong_pins(&self, serial: &str, count: u64) {
        let kept = std::fs::create_dir_all(&self.state)
            .and_then(|()| std::fs::write(self.pin_file(serial), count.to_string()));
        if let Err(error) = kept {
            eprintln!("faulty module: the PIN counter: {error}");
            std::process::abort();
        }
    }

    fn pin_file(&self, serial: &str) -> PathBuf {
        let name: String = serial.chars().filter(char::is_ascii_alphanumeric).collect();
        self.state.join(format!("pin-{name}"))
    }

    /// Appends a line to the log.
    pub fn log(&self, event: impl Display) {
        if let Some(mut log) = self.log.as_ref() {
            let process = std::process::id();
            let thread = rustix::thread::gettid().as_raw_nonzero();
            // One write, so that lines of several threads and processes do not mix.
            let line = format!("{process} {thread} {event}\n");
            let _ = log.write_all(line.as_bytes());
        }
    }
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            seconds: metadata.mtime(),
            nanoseconds: metadata.mtime_nsec(),
            size: metadata.size(),
        }
    }
}

/// A call, from its faults to its return value. `detail` goes into the log.
pub fn call(
    function: &'static str,
    detail: impl Display,
    work: impl FnOnce(&'static Faulty, &Entered<'_>) -> Result<(), CK_RV>,
) -> CK_RV {
    let Some(faulty) = Faulty::get() else {
        return CKR_GENERAL_ERROR;
    };
    faulty.log(format_args!("call {function}{detail}"));
    let result = faulty.enter(function).and_then(|entered| {
        work(faulty, &entered)?;
        entered.after.map_or(Ok(()), Err)
    });
    let code = result.err().unwrap_or(CKR_OK);
    if code != CKR_OK || function == "C_Login" {
        faulty.log(format_args!("return {function} {code:#x}"));
    }
    code
}

/// Dies the way a module with a stray pointer does.
fn segfault() -> ! {
    // SAFETY: none; nothing is mapped at this address, and the fault is what is wanted. The
    // pointer is aligned and not null, or debug builds would panic instead.
    unsafe { std::ptr::without_provenance_mut::<u64>(16).write_volatile(0) };
    std::process::abort()
}

fn print(mut stream: impl Write, text: &[u8]) {
    // Nobody may be reading any more.
    let _ = stream.write_all(text).and_then(|()| stream.flush());
}

/// How the log names what a call tried to reach.
fn name_of(what: Reach, at: &str) -> String {
    format!("{what:?}={at}").to_lowercase()
}

/// Tries to reach something outside of the process.
fn reach(what: Reach, at: &str) -> std::io::Result<()> {
    use rustix::net::{AddressFamily, SocketType};
    match what {
        Reach::Read => File::open(at).map(drop),
        Reach::Write => File::create(at).map(drop),
        Reach::Unix => UnixStream::connect(at).map(drop),
        Reach::Tcp => TcpStream::connect(at).map(drop),
        Reach::Netlink => {
            let opened = rustix::net::socket(AddressFamily::NETLINK, SocketType::DGRAM, None);
            Ok(opened.map(drop)?)
        }
        Reach::Exec => Err(Command::new(at).exec()),
        Reach::Spawn => Command::new(at).status().map(drop),
        Reach::Call => {
            let number = at.parse().expect("a number");
            // SAFETY: the test names calls that do nothing with zeros, or must not get through.
            match unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) } {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            }
        }
    }
}
