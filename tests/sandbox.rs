//! What a vendor's library can reach from its worker, and what can be seen of the worker.
//!
//! The faulty module plays the vendor's library that was taken over: it tries to reach what is
//! outside and logs what the kernel answers.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use opcert::base::key::KeySpec;
use opcert::device::{Config, Devices, Sandbox, SandboxLevel, TokenState};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

mod support;
use support::attach;
use support::devices::{eventually, generate, select, sign, start, state, workers};
use support::faulty::Faulty;
use support::softhsm::TestToken;

const DENIED: i32 = Errno::ACCESS.raw_os_error();
const REFUSED: i32 = Errno::PERM.raw_os_error();

/// Whether the kernel restricts files; prints why a test is skipped where it does not.
fn has_landlock() -> bool {
    // SAFETY: with a null pointer, a size of 0 and this flag the call only tells its version.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0,
            1,
        )
    };
    if version < 1 {
        eprintln!(
            "skipped: this kernel does not offer Landlock: {}",
            std::io::Error::last_os_error()
        );
    }
    version >= 1
}

/// Everything outside that a library might want to reach.
struct Outside {
    secret: String,
    new: String,
    tcp: (TcpListener, String),
    unix: (UnixListener, String),
    _directory: tempfile::TempDir,
}

impl Outside {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(place("secret"), "secret").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        Self {
            secret: place("secret"),
            new: place("new"),
            tcp: (tcp, address),
            unix: (
                UnixListener::bind(place("socket")).unwrap(),
                place("socket"),
            ),
            _directory: directory,
        }
    }

    /// Has the module try all of it when its library information is asked for, at its start.
    fn tempt(&self, faulty: &Faulty) {
        for (what, at) in self.all() {
            faulty.on("C_GetInfo").reaches(what, &at);
        }
    }

    fn all(&self) -> Vec<(&'static str, String)> {
        let call = |number: libc::c_long| ("call", number.to_string());
        vec![
            ("read", self.secret.clone()),
            ("write", self.new.clone()),
            ("tcp", self.tcp.1.clone()),
            ("unix", self.unix.1.clone()),
            ("netlink", String::new()),
            ("spawn", "/bin/true".into()),
            call(libc::SYS_keyctl),
            call(libc::SYS_name_to_handle_at),
            call(libc::SYS_pidfd_getfd),
        ]
    }
}

fn config(token: &TestToken, faulty: &Faulty, name: &str, sandbox: Sandbox) -> Config {
    let mut config = token.config();
    faulty.configure(&mut config);
    config.module[0].name = name.into();
    config.module[0].sandbox = Some(sandbox);
    config
}

/// The answers to all temptations under a profile, in the order of [`Outside::all`].
async fn answers(name: &str, sandbox: Sandbox) -> Option<(Vec<i32>, SandboxLevel)> {
    let token = TestToken::softhsm(name)?;
    let faulty = Faulty::new(&token);
    let outside = Outside::new();
    outside.tempt(&faulty);
    let mut config = config(&token, &faulty, name, sandbox);
    if !matches!(sandbox, Sandbox::Softhsm | Sandbox::None) {
        // The module is in front of SoftHSM2, whose directory the other profiles do not know.
        config.module[0].writable.push(token.token_directory());
    }
    let devices = start(&token, config).await;
    let id = select(&devices, &token).await;
    // It works as ever.
    let key = generate(&devices, &id, KeySpec::P256).await;
    sign(&devices, &key).await.unwrap();
    let status = devices.modules().await.remove(0).sandbox.unwrap();
    assert_eq!(status.profile, sandbox);
    devices.shutdown().await;
    let answers = outside
        .all()
        .into_iter()
        .map(|(what, at)| {
            faulty
                .reached(what, &at)
                .unwrap_or_else(|| panic!("{what} {at} was not tried"))
        })
        .collect();
    drop((outside.tcp.0, outside.unix.0));
    Some((answers, status.level))
}

#[tokio::test]
async fn a_library_reaches_what_its_profile_leaves_open_and_nothing_else() {
    if !has_landlock() {
        return;
    }
    for (name, sandbox, expected) in [
        (
            "box-softhsm",
            Sandbox::Softhsm,
            [DENIED, DENIED, REFUSED, REFUSED, REFUSED, REFUSED],
        ),
        (
            "box-pcscd",
            Sandbox::Pcscd,
            [DENIED, DENIED, REFUSED, 0, REFUSED, REFUSED],
        ),
        (
            "box-usb",
            Sandbox::Usb,
            [DENIED, DENIED, REFUSED, 0, 0, REFUSED],
        ),
        (
            "box-network",
            Sandbox::Network,
            [DENIED, DENIED, 0, 0, 0, REFUSED],
        ),
        ("box-none", Sandbox::None, [0; 6]),
    ] {
        let Some((answers, state)) = answers(name, sandbox).await else {
            return;
        };
        let (reached, calls) = answers.split_at(expected.len());
        // Where the kernel restricts paths of Unix sockets, this one is outside.
        let mut reached = reached.to_vec();
        if expected[3] == 0 && reached[3] == DENIED {
            reached[3] = 0;
        }
        assert_eq!(reached, expected, "{sandbox:?}");
        if sandbox == Sandbox::None {
            assert_eq!(state, SandboxLevel::Off);
            assert!(calls.iter().all(|errno| *errno != REFUSED), "{calls:?}");
        } else {
            assert_eq!(state, SandboxLevel::On);
            assert_eq!(calls, [REFUSED; 3], "{sandbox:?}");
        }
    }
}

#[tokio::test]
async fn a_library_that_attacks_another_process_or_the_kernel_is_killed() {
    for (name, call) in [
        ("box-ptrace", libc::SYS_ptrace),
        ("box-kernel-module", libc::SYS_delete_module),
    ] {
        let Some(token) = TestToken::softhsm(name) else {
            return;
        };
        let faulty = Faulty::new(&token);
        let config = config(&token, &faulty, name, Sandbox::Softhsm);
        let devices = start(&token, config).await;
        let id = select(&devices, &token).await;
        let key = generate(&devices, &id, KeySpec::P256).await;
        sign(&devices, &key).await.unwrap();
        let fault = faulty
            .on("C_SignInit")
            .times(1)
            .reaches("call", &call.to_string());
        let error = sign(&devices, &key).await.unwrap_err();
        let text = error.to_string();
        let bad_call = rustix::process::Signal::SYS.as_raw();
        assert!(
            text.contains(&format!("signal {bad_call} ended it")),
            "{text}"
        );
        assert_eq!(faulty.reached("call", &call.to_string()), None);
        faulty.lift(&fault);
        eventually("the next signature", async || {
            sign(&devices, &key).await.is_ok()
        })
        .await;
        devices.shutdown().await;
    }
}

/// No test of ours stands in the way: this is the library's own name.
#[tokio::test]
async fn softhsm_is_confined_without_being_told_and_a_strange_library_says_that_it_is_not() {
    let Some(token) = TestToken::softhsm("default") else {
        return;
    };
    let devices = start(&token, token.config()).await;
    assert_eq!(state(&devices).await.0, TokenState::Ready);
    let status = devices.modules().await.remove(0).sandbox.unwrap();
    assert_eq!(status.profile, Sandbox::Softhsm);
    let expected = match has_landlock() {
        true => SandboxLevel::On,
        false => SandboxLevel::Degraded,
    };
    assert_eq!(status.level, expected, "{:?}", status.missing);
    devices.shutdown().await;

    let faulty = Faulty::new(&token);
    let mut config = token.config();
    faulty.configure(&mut config);
    config.module[0].sandbox = None;
    let devices = start(&token, config).await;
    assert_eq!(state(&devices).await.0, TokenState::Ready);
    let status = devices.modules().await.remove(0).sandbox.unwrap();
    assert_eq!(
        (status.profile, status.level),
        (Sandbox::None, SandboxLevel::Off)
    );
    devices.shutdown().await;
}

/// A worker that may open files everywhere is not given them by accident.
#[tokio::test]
async fn a_file_is_readable_where_the_configuration_says_so_and_not_writable() {
    if !has_landlock() {
        return;
    }
    let Some(token) = TestToken::softhsm("box-readable") else {
        return;
    };
    let faulty = Faulty::new(&token);
    let outside = Outside::new();
    faulty.on("C_GetInfo").reaches("read", &outside.secret);
    faulty.on("C_GetInfo").reaches("write", &outside.secret);
    faulty.on("C_GetInfo").reaches("exec", "/bin/true");
    let mut config = config(&token, &faulty, "box-readable", Sandbox::Softhsm);
    config.module[0].readable = vec![outside.secret.clone().into()];
    let devices = start(&token, config).await;
    select(&devices, &token).await;
    devices.shutdown().await;
    assert_eq!(faulty.reached("read", &outside.secret), Some(0));
    assert_eq!(faulty.reached("write", &outside.secret), Some(DENIED));
    assert_eq!(faulty.reached("exec", "/bin/true"), Some(REFUSED));
}

/// The value of a line of `/proc/PID/status`.
fn status_of(process: i32, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|rest| rest.strip_prefix(':'));
    value
        .unwrap_or_else(|| panic!("no {key} in {text}"))
        .trim()
        .to_owned()
}

/// Devices with a worker that is up.
async fn up(name: &str) -> Option<(TestToken, Devices, i32)> {
    let token = TestToken::new(name);
    let mut config = token.config();
    config.module[0].name = name.into();
    let devices = start(&token, config).await;
    select(&devices, &token).await;
    let worker = workers(name).pop()?;
    Some((token, devices, worker))
}

#[tokio::test]
async fn a_workers_memory_is_locked_and_in_no_dump() {
    let (_token, devices, worker) = up("memory").await.expect("a worker");
    let filter = std::fs::read_to_string(format!("/proc/{worker}/coredump_filter")).unwrap();
    assert_eq!(u32::from_str_radix(filter.trim(), 16), Ok(0));
    let limits = std::fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    assert_eq!(status_of(worker, "NoNewPrivs"), "1");
    if may_lock() {
        let locked = status_of(worker, "VmLck");
        assert_ne!(locked, "0 kB");
    } else {
        eprintln!("skipped: RLIMIT_MEMLOCK is finite here, and CAP_IPC_LOCK is missing");
    }
    devices.shutdown().await;
}

/// As `base::memory::lock_all` judges it.
fn may_lock() -> bool {
    use rustix::process::{Resource, getrlimit};
    use rustix::thread::{CapabilitySet, capabilities};
    getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}

#[test]
fn no_other_program_of_the_user_attaches_to_a_worker() {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let mut worker = attach::command(env!("CARGO_BIN_EXE_opcert-worker"))
        .arg("test")
        .stdin(Stdio::from(theirs))
        .spawn()
        .unwrap();
    support::wait::until("the worker waits for its greeting", || {
        (status_of(worker.id().cast_signed(), "NoNewPrivs") == "1").then_some(())
    });
    attach::assert_closed(worker.id());
    drop::<OwnedFd>(ours);
    assert!(worker.wait().unwrap().success());
}

#[test]
fn no_other_program_of_the_user_attaches_to_the_daemon() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("opcertd.toml");
    let text = format!(
        "state-directory = \"{0}/state\"\nruntime-directory = \"{0}/run\"\n\
         [native]\naddresses = [\"127.0.0.1:0\"]\n",
        directory.path().display()
    );
    std::fs::write(&config, text).unwrap();
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut daemon = attach::command(env!("CARGO_BIN_EXE_opcertd"))
        .args(["--allow-root", "--config"])
        .arg(&config)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let socket = directory.path().join("run/control.sock");
    support::wait::until("the daemon's socket", || socket.exists().then_some(()));
    attach::assert_closed(daemon.id());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
