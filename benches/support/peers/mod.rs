//! Other programs that sign with keys on a token for their clients, each as a client of it sees it.
//!
//! A peer signs what it is given: it asks no policy, keeps no record and verifies nothing. *Ours*
//! beside it are whole approvals. Rounds are interleaved (the token alone, ours, each peer, the token
//! alone, …), and the median of each is taken. What is not installed is left out, and standard error
//! says so.

pub mod gokeyless;
pub mod p11_kit;
pub mod parsec;
pub mod ssh_agent;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use opcert::base::key::{KeySpec, PublicKey, Signature};

use crate::report::{micros, report};
use crate::scene::{self, Scene};
use crate::{bare, load, memory};

const ROUNDS: usize = 5;

/// How long a peer is asked for signatures in a round.
const ROUND: Duration = Duration::from_millis(800);

/// Kinds of keys, with approvals a round at 1, 8 and 64 in flight.
const KINDS: [(KeySpec, [usize; 3]); 2] = [
    (KeySpec::P256, [1_000, 2_000, 2_500]),
    (KeySpec::Rsa2048, [500, 1_000, 1_000]),
];

/// How long a peer may take to start.
const START: Duration = Duration::from_secs(20);

/// Measures the peers that `filter` means: `peers` is all of them, `peer-ssh-agent` one of them,
/// `peer-ssh-agent-p256-8` one measurement.
pub fn measure(filter: &str) {
    let wanted = |name: &str| filter == "peers" || name.starts_with(filter);
    let scene = Scene::start(&KINDS.map(|(spec, _)| spec));
    let mut running: Vec<Box<dyn Peer>> = Vec::new();
    for (name, start) in ALL {
        let name = format!("peer-{name}");
        if !wanted(&name) && !filter.starts_with(&name) {
            continue;
        }
        match start(&scene) {
            Ok(peer) => running.push(peer),
            Err(missing) => eprintln!(
                "benches/run: {name} is left out: {} is not on this machine; it comes with {}",
                missing.what, missing.package
            ),
        }
    }
    for (spec, counts) in KINDS {
        for (in_flight, count) in crate::IN_FLIGHT.into_iter().zip(counts) {
            let label = format!("{}-{in_flight}", spec.as_str());
            let taking: Vec<&dyn Peer> = running
                .iter()
                .map(AsRef::as_ref)
                .filter(|peer| wanted(&format!("peer-{}-{label}", peer.name())))
                .collect();
            if !taking.is_empty() {
                compare(&scene, &taking, spec, in_flight, count, &label);
            }
        }
    }
    drop(running);
    scene.stop();
}

/// Interleaved rounds of the token alone, approvals over HTTP/2, and each peer.
fn compare(
    scene: &Scene,
    peers: &[&dyn Peer],
    spec: KeySpec,
    in_flight: usize,
    count: usize,
    label: &str,
) {
    let mut ours = Figures::default();
    let mut alone = Figures::default();
    let mut theirs: Vec<Figures> = peers.iter().map(|_| Figures::default()).collect();
    for _ in 0..ROUNDS {
        let run = bare::run(scene, spec, in_flight.min(2), count);
        alone.push(run.rate, run.p50, run.cpu);
        let challenges = scene.challenges(spec, count);
        let before = scene.cpu();
        let run = load::run(scene, load::Protocol::Http2, in_flight, challenges);
        let cpu = (scene.cpu() - before) / u32::try_from(count).unwrap();
        ours.push(run.rate, run.p50, cpu);
        for (peer, figures) in peers.iter().zip(&mut theirs) {
            self::run(*peer, spec, in_flight, figures);
        }
    }
    let names = peers.iter().map(|peer| peer.name()).chain(["bare"]);
    for (name, figures) in names.zip(theirs.iter().chain([&alone])) {
        let name = format!("peer-{name}-{label}");
        report(&name, "signatures/s", &ours.rate, &figures.rate);
        report(&format!("{name}-p50"), "us", &ours.p50, &figures.p50);
        report(
            &format!("{name}-cpu"),
            "us/signature",
            &ours.cpu,
            &figures.cpu,
        );
    }
    let resident =
        memory::resident_mib(scene.daemon_pid()) + memory::resident_mib(scene.worker_pid());
    for peer in peers {
        let name = format!("peer-{}-{label}-memory", peer.name());
        report(&name, "MiB", &[resident], &[peer.server().resident_mib()]);
    }
}

/// One of them, running on the token of a scene.
pub trait Peer {
    /// What `benches/run peer-NAME` picks it by.
    fn name(&self) -> &'static str;

    /// The processes that sign.
    fn server(&self) -> &Server;

    /// `count` places to ask for signatures at once with the key of `spec`.
    fn signers(&self, spec: KeySpec, count: usize) -> Vec<Box<dyn Signer>>;

    /// What the signatures verify with.
    fn public_key(&self, spec: KeySpec) -> PublicKey;
}

/// One request at a time.
pub trait Signer: Send {
    /// RS256 or ES256 over `message`.
    fn sign(&mut self, message: &[u8]) -> Signature;
}

/// Starts a peer on the token of a scene, or says what is missing.
type Start = fn(&Scene) -> Result<Box<dyn Peer>, Missing>;

/// All of them, by their names.
pub const ALL: [(&str, Start); 4] = [
    ("p11-kit", p11_kit::start),
    ("ssh-agent", ssh_agent::start),
    ("parsec", parsec::start),
    ("gokeyless", gokeyless::start),
];

/// A program or module that is not on this machine.
pub struct Missing {
    pub what: &'static str,
    pub package: &'static str,
}

/// A peer's processes; ended when dropped.
pub struct Server {
    child: Child,
    directory: tempfile::TempDir,
}

impl Server {
    /// Runs what `command` makes of a directory for the peer's files.
    pub fn start(command: impl FnOnce(&Path) -> Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = command(directory.path())
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, directory }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Tries until there is a result; a peer that ends or takes too long is an error of the bench.
    pub fn wait<T, E: std::fmt::Debug>(&mut self, attempt: impl Fn() -> Result<T, E>) -> T {
        let deadline = Instant::now() + START;
        loop {
            let result = attempt();
            if let Ok(result) = result {
                return result;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?} {:?} {}",
                result.err(),
                std::fs::read_to_string(self.directory().join("log")).unwrap()
            );
            // It offers no event to a process that is not its service manager.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// User and system time of all its processes.
    pub fn cpu(&self) -> Duration {
        self.processes().into_iter().map(scene::cpu_of).sum()
    }

    /// Resident memory of all its processes, in MiB.
    pub fn resident_mib(&self) -> f64 {
        let processes = self.processes().into_iter();
        processes.map(memory::resident_mib).sum()
    }

    fn processes(&self) -> Vec<u32> {
        let mut all = vec![self.child.id()];
        let mut next = 0;
        while next < all.len() {
            all.extend(scene::children_of(all[next]));
            next += 1;
        }
        all
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for pid in self.processes().into_iter().rev() {
            let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// A program by its name, where `PATH` and cargo put programs.
pub fn program(name: &'static str, package: &'static str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::home_dir().map(|home| home.join(".cargo/bin"));
    std::env::split_paths(&path)
        .chain(home)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .ok_or(Missing {
            what: name,
            package,
        })
}

#[derive(Default)]
struct Figures {
    rate: Vec<f64>,
    p50: Vec<f64>,
    cpu: Vec<f64>,
}

impl Figures {
    fn push(&mut self, rate: f64, p50: Duration, cpu: Duration) {
        self.rate.push(rate);
        self.p50.push(micros(p50));
        self.cpu.push(micros(cpu));
    }
}

/// Asks for signatures at `in_flight` places for a round.
fn run(peer: &dyn Peer, spec: KeySpec, in_flight: usize, figures: &mut Figures) {
    let message = b"peers sign what they are given".as_slice();
    let public = peer.public_key(spec);
    let mut signers = peer.signers(spec, in_flight);
    for signer in &mut signers {
        let signature = signer.sign(message);
        public
            .verify(public.default_scheme(), message, &signature)
            .unwrap();
    }
    let cpu = peer.server().cpu();
    let begun = Instant::now();
    let mut latencies: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = signers
            .iter_mut()
            .map(|signer| {
                scope.spawn(move || {
                    let mut latencies = Vec::new();
                    while begun.elapsed() < ROUND {
                        let asked = Instant::now();
                        signer.sign(message);
                        latencies.push(asked.elapsed());
                    }
                    latencies
                })
            })
            .collect();
        let threads = threads.into_iter();
        threads.flat_map(|thread| thread.join().unwrap()).collect()
    });
    let elapsed = begun.elapsed();
    let cpu = peer.server().cpu() - cpu;
    latencies.sort();
    figures.push(
        latencies.len() as f64 / elapsed.as_secs_f64(),
        latencies[latencies.len() / 2],
        cpu / u32::try_from(latencies.len()).unwrap(),
    );
}
