//! Approvals through the daemon against the same cryptography with nothing around it.
//!
//! *Bare work* signs on the token with one session a thread, verifies the challenge and verifies
//! the signature; its best thread count is the peer. *Ours* is the real `opcertd` with policy,
//! durable audit records and verification on, over mutual TLS, driven from this process: the load
//! generator shares the two cores, so the ratio counts its cost against us. Rounds are
//! interleaved (bare, HTTP/2, HTTP/1.1, bare, …) and the median of each is taken.

#[path = "support/bare.rs"]
mod bare;
#[path = "support/connections.rs"]
mod connections;
#[path = "support/growth.rs"]
mod growth;
#[path = "support/life.rs"]
mod life;
#[path = "support/load.rs"]
mod load;
#[path = "support/memory.rs"]
mod memory;
#[path = "support/peers/mod.rs"]
mod peers;
#[path = "support/report.rs"]
mod report;
#[path = "support/scene.rs"]
mod scene;
#[path = "../tests/support/mod.rs"]
mod support;

use opcert::base::key::KeySpec;
use report::{micros, millis, report};

/// How often each measurement is repeated.
const ROUNDS: usize = 5;

/// Kinds of keys, with approvals a round at 1, 8 and 64 in flight: about a second each. The daemon
/// remembers them all for two minutes and no more than 131,072 at a time, which bounds the numbers.
const KINDS: [(KeySpec, [usize; 3]); 3] = [
    (KeySpec::Rsa2048, [500, 1_500, 2_000]),
    (KeySpec::P256, [1_000, 3_000, 4_000]),
    (KeySpec::Ed25519, [1_000, 3_000, 4_000]),
];

const IN_FLIGHT: [usize; 3] = [1, 8, 64];

/// What the daemon may take idle, in MiB; and the worker; and a connection, in KiB.
const MEMORY: (f64, f64, f64) = (16.0, 12.0, 48.0);

/// Budgets of a start and of a worker's replacement, in milliseconds.
const LIFE: (f64, f64) = (60.0, 25.0);

fn main() {
    // `cargo bench` hands over its own flag.
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    let wanted = |name: &str| {
        filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter.as_str()))
    };
    // A scene of its own each; the environment that the module reads is set once a process.
    match filter.as_deref() {
        Some(filter) if filter.starts_with("growth-") => return growth::measure(filter),
        Some(filter) if filter.starts_with("peer") => return peers::measure(filter),
        _ => {}
    }
    let mut bench = scene::Scene::start(&KINDS.map(|(spec, _)| spec));
    if wanted("memory-idle") {
        // Each key has signed once, so that the module has loaded what it loads.
        for (spec, _) in KINDS {
            bench.approve_once(spec);
        }
        let daemon = memory::resident_mib(bench.daemon_pid());
        let worker = memory::resident_mib(bench.worker_pid());
        report("memory-idle-daemon", "MiB", &[daemon], &[MEMORY.0]);
        report("memory-idle-worker", "MiB", &[worker], &[MEMORY.1]);
    }
    if wanted("memory-connection") {
        let each = connections::idle_kib(&bench, 1_000);
        report("memory-connection", "KiB", &[each], &[MEMORY.2]);
    }
    if wanted("handshakes") {
        let mut rates = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            rates.0.push(connections::handshakes(&bench, 2_000));
            rates.1.push(connections::bare_handshakes(&bench, 2_000));
        }
        report("handshakes", "handshakes/s", &rates.0, &rates.1);
    }
    for (spec, counts) in KINDS {
        for (in_flight, count) in IN_FLIGHT.into_iter().zip(counts) {
            let label = format!("{}-{in_flight}", spec.as_str());
            if wanted(&label) {
                approvals(&bench, spec, in_flight, count, &label);
            }
        }
    }
    if wanted("memory-worked") {
        let daemon = memory::resident_mib(bench.daemon_pid());
        report("memory-worked-daemon", "MiB", &[daemon], &[MEMORY.0]);
    }
    if wanted("respawn") {
        let times: Vec<f64> = (0..15)
            .map(|_| millis(life::respawn(&bench, KeySpec::P256)))
            .collect();
        report("respawn", "ms", &times, &[LIFE.1]);
    }
    if wanted("start") {
        let times: Vec<f64> = (0..15)
            .map(|_| millis(life::start(&mut bench, KeySpec::P256)))
            .collect();
        report("start", "ms", &times, &[LIFE.0]);
    }
    bench.stop();
}

/// Interleaved rounds of bare work, HTTP/2 and HTTP/1.1.
fn approvals(bench: &scene::Scene, spec: KeySpec, in_flight: usize, count: usize, label: &str) {
    #[derive(Default)]
    struct Figures {
        rate: Vec<f64>,
        p50: Vec<f64>,
        cpu: Vec<f64>,
    }
    let mut bare = Figures::default();
    let mut ours = [Figures::default(), Figures::default()];
    let protocols = [load::Protocol::Http2, load::Protocol::Http1];
    for _ in 0..ROUNDS {
        let threads: &[usize] = if in_flight == 1 { &[1] } else { &[1, 2, 4] };
        let best = threads
            .iter()
            .map(|&threads| bare::run(bench, spec, threads, count))
            .max_by(|a, b| a.rate.total_cmp(&b.rate))
            .unwrap();
        bare.rate.push(best.rate);
        bare.p50.push(micros(best.p50));
        bare.cpu.push(micros(best.cpu));
        for (protocol, figures) in protocols.into_iter().zip(&mut ours) {
            let challenges = bench.challenges(spec, count);
            let before = bench.cpu();
            let run = load::run(bench, protocol, in_flight, challenges);
            let cpu = (bench.cpu() - before) / u32::try_from(count).unwrap();
            figures.rate.push(run.rate);
            figures.p50.push(micros(run.p50));
            figures.cpu.push(micros(cpu));
        }
    }
    for (protocol, figures) in ["h2", "h1"].into_iter().zip(&ours) {
        let name = format!("{label}-{protocol}");
        report(&name, "approvals/s", &figures.rate, &bare.rate);
        report(&format!("{name}-p50"), "us", &figures.p50, &bare.p50);
        report(
            &format!("{name}-cpu"),
            "us/approval",
            &figures.cpu,
            &bare.cpu,
        );
    }
}
