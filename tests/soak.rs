//! The whole chain while everything is killed, filled, stepped, locked and unplugged at random:
//! real programs, a real database, a real token behind the faulty module.
//!
//! Three merchants' servers create operations, have the daemon approve them and hand the approvals
//! in, and try again whatever fails. At the end: what was acknowledged is there, no challenge has two
//! approvals, every approval has its record, both chains verify, and the last operation of each
//! server went through without anybody's help.
//!
//! `OPCERT_SOAK_SECONDS=n` says for how long (default 40); `OPCERT_SOAK_SEED=n` repeats an order of
//! troubles, which is printed. With `OPCERT_TEST_POSTGRES` the database is lost and locked on a
//! server, else it is locked in its file.

#![cfg(feature = "account")]

#[path = "account/scene.rs"]
#[allow(dead_code)]
mod scene;
mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cryptoki_sys::{CKR_DEVICE_ERROR, CKR_GENERAL_ERROR, CKR_SESSION_HANDLE_INVALID};
use http::{Method, Request};
use hyper::body::Bytes;
use opcert::audit::{read, verify::verify};
use opcert::base::ids::random;
use opcert::http::client::{Client, ClientLimits, Target};
use opcert::http::tls;
use scene::{Made, PASSWORD};
use serde_json::{Value, json};
use support::daemon::{ClientIdentity, Daemon};
use support::dice::Dice;
use support::disk::Disk;
use support::faulty::{Faulty, Handles, Slots};
use support::softhsm::TestToken;
use support::wall_clock::{Timers, WallClock};

/// How long there is trouble, if the environment does not say.
const SECONDS: u64 = 40;

/// Servers that create operations.
const SERVERS: usize = 3;

/// After the last trouble, so long everything may take to work again.
const RECOVERY: Duration = Duration::from_secs(90);

/// The size of each program's disk, in MiB, and what it has more for each minute: the account service
/// keeps some 8 MiB of what it did in one.
const DISK: (u64, u64) = (128, 16);

/// The account service as a process, and all that it printed.
struct Accounts {
    made: Made,
    environment: Vec<(&'static str, String)>,
    child: Child,
    printed: Arc<Mutex<String>>,
}

impl Accounts {
    fn start(made: Made, environment: Vec<(&'static str, String)>) -> Self {
        let printed = Arc::new(Mutex::new(String::new()));
        let child = Self::spawn(&made, &environment, &printed);
        let accounts = Self {
            made,
            environment,
            child,
            printed,
        };
        accounts.address();
        accounts
    }

    fn spawn(
        made: &Made,
        environment: &[(&'static str, String)],
        printed: &Arc<Mutex<String>>,
    ) -> Child {
        printed.lock().unwrap().clear();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(made.token.directory().join("accountd.log"))
            .unwrap();
        let mut child = made
            .command()
            .args(["serve", "--allow-root"])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let (out, printed) = (child.stdout.take().unwrap(), printed.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let mut printed = printed.lock().unwrap();
                printed.push_str(&line);
                printed.push('\n');
            }
        });
        child
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.made.token.directory().join("accountd.log")).unwrap()
    }

    /// Where it listens, once it does.
    fn address(&self) -> SocketAddr {
        let begun = Instant::now();
        loop {
            if let Some((_, rest)) = self
                .printed
                .lock()
                .unwrap()
                .split_once("listening on https://")
                && let Some(Ok(address)) = rest.lines().next().map(str::parse)
            {
                return address;
            }
            assert!(begun.elapsed() < RECOVERY, "no start: {}", self.log());
            // What it prints comes in on another thread.
            std::thread::sleep(AGAIN);
        }
    }

    fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(&self.made, &self.environment, &self.printed);
        self.address();
    }
}

impl Drop for Accounts {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the servers and the one who makes trouble know in common.
struct Shared {
    daemon: Mutex<SocketAddr>,
    accounts: Mutex<SocketAddr>,
    /// No new operations any more.
    stop: AtomicBool,
    /// Operations whose creation was answered, with their last acknowledged state.
    acknowledged: Mutex<BTreeMap<String, String>>,
    /// The payload that was signed for a challenge.
    approved: Mutex<HashMap<String, String>>,
    /// Refusals, by code.
    refused: Mutex<BTreeMap<String, usize>>,
    /// The last refusal, whole.
    last: Mutex<Value>,
    finished: AtomicUsize,
    /// Somebody was told that the PIN is for a person to give.
    pin_needed: AtomicBool,
    unlocked: AtomicUsize,
    /// A server gave up.
    panicked: AtomicBool,
}

impl Shared {
    fn refuse(&self, body: &Value) {
        let code = body["code"].as_str().expect("a problem has a code");
        if code == "pin-needed" {
            // Whoever is killed in the middle of a login leaves this behind, and nothing else does.
            let reason = body["detail"].as_str().unwrap();
            assert!(reason.contains("was interrupted"), "{body}");
            self.pin_needed.store(true, Ordering::Relaxed);
        }
        *self
            .refused
            .lock()
            .unwrap()
            .entry(code.to_owned())
            .or_default() += 1;
        *self.last.lock().unwrap() = body.clone();
    }
}

/// One server.
struct Server<'a> {
    shared: &'a Shared,
    platform_key: String,
    accounts_tls: Arc<rustls::ClientConfig>,
    daemon_tls: Arc<rustls::ClientConfig>,
}

/// Between two tries of what failed: neither program tells anybody when it is back.
const AGAIN: Duration = Duration::from_millis(20);

impl Server<'_> {
    fn last(&self) -> Value {
        self.shared.last.lock().unwrap().clone()
    }

    /// Sends once; `None` if nothing came back.
    async fn send(&self, to_daemon: bool, request: Request<Bytes>) -> Option<(u16, Value)> {
        let (host, address, config) = if to_daemon {
            ("localhost", &self.shared.daemon, &self.daemon_tls)
        } else {
            ("127.0.0.1", &self.shared.accounts, &self.accounts_tls)
        };
        let port = address.lock().unwrap().port();
        let target = Target::Tls {
            host: host.into(),
            port,
            config: config.clone(),
        };
        let limits = ClientLimits {
            request: Duration::from_secs(30),
            ..ClientLimits::default()
        };
        let mut client = Client::connect(&target, limits).await.ok()?;
        let (head, body) = client.send(request).await.ok()?.into_parts();
        Some((head.status.as_u16(), serde_json::from_slice(&body).ok()?))
    }

    fn request(&self, path: &str, kind: &str, body: &str, key: Option<&str>) -> Request<Bytes> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("content-type", kind)
            .header("authorization", format!("Bearer {}", self.platform_key));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        request.body(Bytes::from(body.to_owned())).unwrap()
    }

    /// Tries until it is done, or until no more can come of it: whether it was done.
    async fn operation(&self) -> bool {
        let key = opcert::base::encoding::hex(&random::<12>());
        let body = scene::withdrawal("alice").to_string();
        let made = self
            .insist(false, || {
                self.request("/v1/operations", "application/json", &body, Some(&key))
            })
            .await;
        let Some(made) = made else { return false };
        let id = made["operation"]["id"].as_str().unwrap().to_owned();
        let challenge = made["challenge"].as_str().unwrap().to_owned();
        let known = self
            .shared
            .acknowledged
            .lock()
            .unwrap()
            .insert(id.clone(), "pending".into());
        assert_eq!(known, None, "two creations have one operation {id}");

        let body = json!({ "challenge": challenge }).to_string();
        let approval = self
            .insist(true, || {
                self.request("/v1/approvals", "application/json", &body, None)
            })
            .await;
        let Some(approval) = approval else {
            return false;
        };
        let compact = approval["approval"].as_str().unwrap().to_owned();
        let payload = compact.split('.').nth(1).unwrap().to_owned();
        let jti = approval["challenge_jti"].as_str().unwrap().to_owned();
        self.shared.approved.lock().unwrap().insert(jti, payload);

        let path = format!("/v1/operations/{id}/approvals");
        let taken = self
            .insist(false, || {
                self.request(&path, "application/jose", &compact, None)
            })
            .await;
        let Some(taken) = taken else { return false };
        let state = taken["operation"]["state"].as_str().unwrap().to_owned();
        assert_eq!(state, "approved");
        self.shared.acknowledged.lock().unwrap().insert(id, state);
        // Whoever asks again gets the very same.
        let again = self
            .send(
                true,
                self.request("/v1/approvals", "application/json", &body, None),
            )
            .await;
        if let Some((200, again)) = again {
            assert_eq!(again["approval"], compact.as_str(), "two approvals");
        }
        true
    }

    /// The body of a good answer, however often it takes; `None` once the answer is final.
    async fn insist(&self, to_daemon: bool, request: impl Fn() -> Request<Bytes>) -> Option<Value> {
        loop {
            match self.send(to_daemon, request()).await {
                Some((200 | 201, body)) => return Some(body),
                Some((status, body)) => {
                    self.shared.refuse(&body);
                    // 404 is among the final ones: nothing acknowledged may be gone.
                    let may_pass = matches!(status, 429 | 500 | 502 | 503 | 504 | 409);
                    let code = body["code"].as_str().unwrap();
                    assert_ne!(code, "internal", "{body}");
                    if code != "pin-needed" && (!may_pass || code == "operation-state") {
                        return None;
                    }
                }
                None => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn run(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            while !self.shared.stop.load(Ordering::Relaxed) {
                self.operation().await;
            }
            // The last one, when all is well again, has to go through.
            let last = async { while !self.operation().await {} };
            let result = tokio::time::timeout(RECOVERY, last).await;
            assert!(
                result.is_ok(),
                "it does not work again without anybody's help; the last refusal: {}",
                self.last()
            );
        });
        self.shared.finished.fetch_add(1, Ordering::Relaxed);
    }
}

/// The daemon's module: the faulty one in front of the token's.
fn module(token: &TestToken, faulty: &Faulty) -> String {
    let environment: Vec<String> = faulty
        .environment
        .iter()
        .map(|(name, value)| format!("{name} = {value:?}"))
        .collect();
    format!(
        "worker = {:?}\n\n[[module]]\nname = \"test\"\npath = {:?}\nenvironment = {{ {} }}\n\
         allow = [\"writable-path\"]\nsandbox = \"softhsm\"\nwritable = [{:?}]\n\
         call-timeout-seconds = 2\n\n\
         [[module.token]]\nuri = \"{}\"\npin-source = \"file:{}\"\n",
        env!("CARGO_BIN_EXE_opcert-worker"),
        Faulty::module(),
        environment.join(", "),
        token.directory(),
        token.uri(),
        token.pin_file(&token.pin).display(),
    )
}

/// Installs alice's certificate as a person would: with the code that was sent.
fn install(daemon: &Daemon, accounts: &Accounts) {
    let password = accounts.made.token.directory().join("password");
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).mode(0o600).open(&password);
    file.unwrap().write_all(PASSWORD.as_bytes()).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_opcert"))
        .env("OPCERT_SOCKET", daemon.socket())
        .args(["install", "--account", "acme", "--operator", "alice"])
        .args(["--computer-name", "soak", "--code-file", "-"])
        .arg("--service")
        .arg(format!("https://{}", accounts.address()))
        .arg("--service-ca")
        .arg(accounts.made.state().join("server-ca.pem"))
        .arg("--password-file")
        .arg(&password)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let code = support::wait::until("a code", || {
        if child.try_wait().unwrap().is_some() {
            let mut said = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut said);
            panic!("{said} {}", accounts.log());
        }
        let printed = accounts.printed.lock().unwrap();
        let (_, rest) = printed.split_once("opcert code ")?;
        rest.get(..6).map(str::to_owned)
    });
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{code}").unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Gives the service an address that stays, as its origin names it. It is below those that the
/// system gives to connections, which could take it while the service is down.
fn settle_address(made: &Made) {
    let port = (20_000..32_000)
        .skip(usize::from(u16::from_le_bytes(random()) % 10_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port");
    let text = std::fs::read_to_string(&made.config).unwrap();
    let text = text
        .replace(
            "https://127.0.0.1:18443",
            &format!("https://127.0.0.1:{port}"),
        )
        .replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    std::fs::write(&made.config, text).unwrap();
}

/// Kills the daemon's worker, if it has one at this moment.
fn kill_worker(daemon: &Daemon) {
    let path = format!("/proc/{0}/task/{0}/children", daemon.pid());
    let children = std::fs::read_to_string(path).unwrap_or_default();
    for child in children.split_whitespace() {
        let pid = rustix::process::Pid::from_raw(child.parse().unwrap()).unwrap();
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Locks the database, or takes it away, for a while.
struct Database {
    url: Option<String>,
    file: PathBuf,
}

impl Database {
    fn of(made: &Made) -> Self {
        let text = std::fs::read_to_string(&made.config).unwrap();
        let url = text
            .lines()
            .find_map(|line| line.strip_prefix("database = "))
            .map(|url| url.trim_matches('"').to_owned());
        Self {
            url: url.filter(|url| url.starts_with("postgres")),
            file: made.state().join("account.db"),
        }
    }

    /// Nobody else writes for so long.
    fn lock(&self, time: Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            use sqlx::{Connection, Executor};
            match &self.url {
                Some(url) => {
                    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
                    connection
                        .execute("BEGIN; LOCK TABLE operations IN ACCESS EXCLUSIVE MODE")
                        .await
                        .unwrap();
                    tokio::time::sleep(time).await;
                    connection.execute("ROLLBACK").await.unwrap();
                }
                None => {
                    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&self.file);
                    let mut connection = sqlx::SqliteConnection::connect_with(&options)
                        .await
                        .unwrap();
                    // It may be busy for longer than a connection waits; then there was contention
                    // enough.
                    if connection.execute("BEGIN IMMEDIATE").await.is_ok() {
                        tokio::time::sleep(time).await;
                        connection.execute("ROLLBACK").await.unwrap();
                    }
                }
            }
        });
    }

    /// Ends all connections and takes none for so long; only a server can.
    fn lose(&self, time: Duration) {
        let Some(url) = &self.url else {
            return self.lock(time);
        };
        let server = std::env::var("OPCERT_TEST_POSTGRES").unwrap();
        let (_, name) = url
            .split_once('?')
            .unwrap_or((url, ""))
            .0
            .rsplit_once('/')
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            use sqlx::{AssertSqlSafe, Connection, Executor};
            let mut connection = sqlx::PgConnection::connect(&server).await.unwrap();
            let allow = |allow: bool| {
                AssertSqlSafe(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {allow}"))
            };
            connection.execute(allow(false)).await.unwrap();
            let end = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            );
            connection.execute(AssertSqlSafe(end)).await.unwrap();
            tokio::time::sleep(time).await;
            connection.execute(allow(true)).await.unwrap();
        });
    }
}

/// The person: gives the PIN when the daemon says that it is for a person to give, until all servers
/// have ended.
fn person(shared: &Shared, socket: &Path, pin: &str) {
    while shared.finished.load(Ordering::Relaxed) < SERVERS
        && !shared.panicked.load(Ordering::Relaxed)
    {
        // People look now and then.
        std::thread::sleep(Duration::from_millis(100));
        if !shared.pin_needed.swap(false, Ordering::Relaxed) {
            continue;
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_opcert"))
            .env("OPCERT_SOCKET", socket)
            .args(["token", "unlock", "--pin-file", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The daemon may be down just then; a server will be told again.
        let _ = writeln!(child.stdin.take().unwrap(), "{pin}");
        if child.wait().unwrap().success() {
            shared.unlocked.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whoever kills, fills and unplugs.
struct Trouble<'a> {
    dice: Dice,
    shared: &'a Shared,
    daemon: Daemon,
    accounts: Accounts,
    faulty: Faulty,
    pin: String,
    daemon_disk: Option<Disk>,
    accounts_disk: Option<Disk>,
    database: Database,
    /// The wall clock of all programs.
    clock: Option<WallClock>,
    made: BTreeMap<&'static str, usize>,
}

impl Trouble<'_> {
    /// A random time below so many milliseconds: it must come of nothing that the programs do.
    fn moment(&mut self, milliseconds: u64) -> Duration {
        Duration::from_millis(self.dice.below(milliseconds))
    }

    fn rest(&mut self, milliseconds: u64) {
        std::thread::sleep(self.moment(milliseconds));
    }

    fn restart_daemon(&mut self) {
        self.daemon.restart();
        *self.shared.daemon.lock().unwrap() = self.daemon.address();
    }

    fn restart_accounts(&mut self) {
        self.accounts.restart();
        *self.shared.accounts.lock().unwrap() = self.accounts.address();
    }

    fn step_clocks(&mut self, seconds: i64) {
        if let Some(clock) = &self.clock {
            clock.set(seconds);
        }
    }

    /// One trouble, from its begin to its end.
    fn strike(&mut self) {
        let name = match self.dice.below(14) {
            0 => {
                self.daemon.crash();
                self.restart_daemon();
                "daemon killed"
            }
            1 | 2 => {
                kill_worker(&self.daemon);
                "worker killed"
            }
            3 => {
                self.accounts.crash();
                self.restart_accounts();
                "service killed"
            }
            4 => {
                let Some(disk) = &self.daemon_disk else {
                    return;
                };
                disk.fill();
                std::thread::sleep(Duration::from_millis(self.dice.below(400)));
                if self.dice.below(2) == 0 {
                    self.daemon.crash();
                    disk.free();
                    self.restart_daemon();
                } else {
                    disk.free();
                }
                "daemon's disk full"
            }
            5 => {
                let Some(disk) = &self.accounts_disk else {
                    return;
                };
                disk.fill();
                std::thread::sleep(Duration::from_millis(self.dice.below(400)));
                if self.dice.below(2) == 0 {
                    self.accounts.crash();
                    disk.free();
                    self.restart_accounts();
                } else {
                    disk.free();
                }
                "service's disk full"
            }
            6 => {
                if self.daemon_disk.is_none() {
                    return;
                }
                self.daemon.crash();
                self.start_on_a_disk_that_is_read_only();
                self.restart_daemon();
                "daemon's disk read-only at a start"
            }
            7 => {
                let seconds = i64::try_from(self.dice.below(7_200)).unwrap() - 3_600;
                self.step_clocks(seconds);
                self.rest(600);
                self.step_clocks(0);
                "clocks stepped"
            }
            8 => {
                let time = self.moment(1_500);
                self.database.lock(time);
                "database locked"
            }
            9 => {
                let time = self.moment(1_000);
                self.database.lose(time);
                "database lost"
            }
            10 => {
                self.faulty.remove();
                self.rest(800);
                let (slots, handles) = match self.dice.below(2) {
                    0 => (Slots::Same, Handles::Invalid),
                    _ => (Slots::New, Handles::Swapped),
                };
                self.faulty.insert(slots, handles);
                "token out and in"
            }
            11 => {
                let hang = self.faulty.on("C_Sign").times(1).hangs();
                self.rest(3_000);
                self.faulty.lift(&hang);
                "token hung"
            }
            12 => {
                let code = self.dice.pick(&[
                    CKR_DEVICE_ERROR,
                    CKR_GENERAL_ERROR,
                    CKR_SESSION_HANDLE_INVALID,
                ]);
                self.faulty.next("C_Sign,C_SignInit", code, 2);
                "token refused"
            }
            _ => {
                self.faulty.expire_sessions();
                "sessions expired"
            }
        };
        println!("{name}");
        *self.made.entry(name).or_default() += 1;
    }

    /// It says so and ends, rather than go on without records.
    fn start_on_a_disk_that_is_read_only(&self) {
        let Some(disk) = &self.daemon_disk else {
            return;
        };
        disk.remount("ro");
        let output = Command::new(env!("CARGO_BIN_EXE_opcertd"))
            .arg("--allow-root")
            .arg("--config")
            .arg(self.daemon.config())
            .output()
            .unwrap();
        disk.remount("rw");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Read-only file system"), "{said}");
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_signed_twice() {
    let seconds = number("OPCERT_SOAK_SECONDS").unwrap_or(SECONDS);
    let seed = number("OPCERT_SOAK_SEED").unwrap_or_else(|| u64::from_le_bytes(random()));
    println!("OPCERT_SOAK_SEED={seed} OPCERT_SOAK_SECONDS={seconds}");

    let made = Made::new();
    let token = TestToken::new("opcert-soak");
    let faulty = Faulty::new(&token);
    // Says so itself.
    let clock = (!WallClock::is_missing()).then(|| WallClock::new(token.directory(), Timers::Real));
    let environment = clock
        .as_ref()
        .map(WallClock::environment)
        .unwrap_or_default();
    let size = u32::try_from(DISK.0 + DISK.1 * seconds / 60).expect("MiB of a disk");
    let daemon_disk = Disk::over(&token.directory().join("state"), size);
    let accounts_disk = Disk::over(&made.state(), size);
    if daemon_disk.is_none() || accounts_disk.is_none() {
        println!("this user may not mount a small disk: disks are neither filled nor read-only");
    }
    settle_address(&made);
    let database = Database::of(&made);
    let accounts = Accounts::start(made, environment.clone());
    let daemon = Daemon::start_by(&token, &module(&token, &faulty), "", &environment);
    install(&daemon, &accounts);
    let client = daemon.add_client("till", &json!({ "consent": "none" }));

    let shared = Shared {
        daemon: Mutex::new(daemon.address()),
        accounts: Mutex::new(accounts.address()),
        stop: AtomicBool::new(false),
        acknowledged: Mutex::default(),
        approved: Mutex::default(),
        refused: Mutex::default(),
        last: Mutex::default(),
        finished: AtomicUsize::new(0),
        pin_needed: AtomicBool::new(false),
        unlocked: AtomicUsize::new(0),
        panicked: AtomicBool::new(false),
    };
    let server_ca = std::fs::read(accounts.made.state().join("server-ca.pem")).unwrap();
    let accounts_tls = || {
        let roots = tls::roots(tls::certificates(&server_ca).unwrap()).unwrap();
        tls::client(roots, None).unwrap()
    };
    let server = |client: &ClientIdentity| Server {
        shared: &shared,
        platform_key: accounts.made.platform_key.clone(),
        accounts_tls: accounts_tls(),
        daemon_tls: Arc::new(client.tls()),
    };
    let servers: Vec<Server> = (0..SERVERS).map(|_| server(&client)).collect();
    let mut trouble = Trouble {
        dice: Dice(seed),
        shared: &shared,
        daemon,
        accounts,
        faulty,
        pin: token.pin.clone(),
        daemon_disk,
        accounts_disk,
        database,
        clock,
        made: BTreeMap::new(),
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = servers
            .iter()
            .map(|server| {
                scope.spawn(|| {
                    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        server.run();
                    }));
                    if let Err(panic) = ended {
                        shared.panicked.store(true, Ordering::Relaxed);
                        std::panic::resume_unwind(panic);
                    }
                })
            })
            .collect();
        let (socket, pin) = (trouble.daemon.socket(), trouble.pin.clone());
        let shared = &shared;
        scope.spawn(move || person(shared, &socket, &pin));
        let end = Instant::now() + Duration::from_secs(seconds);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while Instant::now() < end && !shared.panicked.load(Ordering::Relaxed) {
                trouble.rest(300);
                trouble.strike();
            }
        }));
        trouble.faulty.heal();
        println!("no more trouble");
        shared.stop.store(true, Ordering::Relaxed);
        let ended: Vec<_> = running.into_iter().map(|server| server.join()).collect();
        let mut panics = ended.into_iter().chain([result]).filter_map(Result::err);
        if let Some(panic) = panics.next() {
            for log in [trouble.accounts.log(), trouble.daemon.log()] {
                let lines: Vec<&str> = log.lines().collect();
                println!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            }
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(shared.finished.load(Ordering::Relaxed), SERVERS);
    settle(trouble, &servers[0]);
}

/// What must be true when all is over.
fn settle(mut trouble: Trouble<'_>, server: &Server<'_>) {
    let shared = trouble.shared;
    let acknowledged = shared.acknowledged.lock().unwrap().clone();
    let approved = shared.approved.lock().unwrap().clone();
    let refused = shared.refused.lock().unwrap().clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for (id, known) in &acknowledged {
        let request = Request::get(format!("/v1/operations/{id}"))
            .header("authorization", format!("Bearer {}", server.platform_key))
            .body(Bytes::new())
            .unwrap();
        let (status, body) = runtime
            .block_on(server.send(false, request))
            .expect("the service answers");
        assert_eq!(status, 200, "operation {id} was acknowledged: {body}");
        if known == "approved" {
            assert_eq!(body["operation"]["state"], "approved", "{id}");
        }
    }

    assert_eq!(trouble.daemon.stop(), 0, "{}", trouble.daemon.log());
    let summary = verify(&trouble.daemon.audit_directory()).unwrap();
    assert!(summary.closed);
    let mut recorded = BTreeSet::new();
    for record in read::all(&trouble.daemon.audit_directory()).unwrap() {
        let record = record.unwrap();
        if record.kind == "approval" {
            let body: Value = serde_json::from_str(record.body.get()).unwrap();
            let jti = body["payload"]["challenge_jti"].as_str().unwrap();
            assert!(recorded.insert(jti.to_owned()), "{jti} was approved twice");
        }
    }
    for jti in approved.keys() {
        assert!(recorded.contains(jti), "approval {jti} has no record");
    }
    // No try of the PIN was spent but with the one that was supplied.
    let supplied = support::faulty::pin_mark(&trouble.pin);
    let logins = trouble.faulty.logins();
    assert!(logins.iter().all(|login| login.pin == supplied));

    let log = trouble.accounts.log();
    assert!(!log.contains("panicked"), "{log}");
    let state = trouble.accounts.made.state();
    trouble.accounts.crash();
    let service = verify(&state.join("audit")).unwrap();
    println!(
        "{} operations acknowledged, {} approvals, {} and {} records",
        acknowledged.len(),
        approved.len(),
        summary.records,
        service.records,
    );
    println!("troubles: {:?}", trouble.made);
    println!(
        "refusals: {refused:?}; the PIN given by a person {} times",
        shared.unlocked.load(Ordering::Relaxed)
    );
    assert!(approved.len() > SERVERS, "too few to mean anything");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}
