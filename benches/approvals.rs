//! Approvals through the daemon against the same cryptography with nothing around it.
//!
//! *Bare work* signs on the token with one session a thread, verifies the challenge and verifies
//! the signature; its best thread count is the peer. *Ours* is the real `opcertd` with policy,
//! durable audit records and verification on, over mutual TLS, driven from this process: the load
//! generator shares the two cores, so the ratio counts its cost against us. Rounds are
//! interleaved (bare, HTTP/2, HTTP/1.1, bare, …) and the median of each is taken.

#[path = "support/bare.rs"]
mod bare;
#[path = "support/load.rs"]
mod load;
#[path = "support/scene.rs"]
mod scene;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use opcert::base::key::KeySpec;

/// How often each measurement is repeated.
const ROUNDS: usize = 3;

struct Case {
    name: &'static str,
    spec: KeySpec,
    in_flight: usize,
    requests: usize,
}

const CASES: [Case; 6] = [
    Case {
        name: "rsa2048",
        spec: KeySpec::Rsa2048,
        in_flight: 1,
        requests: 600,
    },
    Case {
        name: "rsa2048",
        spec: KeySpec::Rsa2048,
        in_flight: 8,
        requests: 2_000,
    },
    Case {
        name: "rsa2048",
        spec: KeySpec::Rsa2048,
        in_flight: 64,
        requests: 3_000,
    },
    Case {
        name: "p256",
        spec: KeySpec::P256,
        in_flight: 1,
        requests: 1_500,
    },
    Case {
        name: "p256",
        spec: KeySpec::P256,
        in_flight: 8,
        requests: 4_000,
    },
    Case {
        name: "p256",
        spec: KeySpec::P256,
        in_flight: 64,
        requests: 6_000,
    },
];

fn main() {
    // `cargo bench` hands over its own flag.
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"));
    let bench = scene::Scene::start(&[KeySpec::Rsa2048, KeySpec::P256]);
    for case in &CASES {
        let label = format!("{}-{}", case.name, case.in_flight);
        if filter
            .as_ref()
            .is_some_and(|filter| !label.contains(filter.as_str()))
        {
            continue;
        }
        measure(&bench, case, &label);
    }
    // Memory after all that work; idle before it is less.
    print(
        "memory-daemon",
        "MiB",
        scene::resident_mib(bench.daemon_pid()),
        16.0,
    );
    print(
        "memory-worker",
        "MiB",
        scene::resident_mib(bench.worker_pid()),
        12.0,
    );
    bench.stop();
}

fn measure(bench: &scene::Scene, case: &Case, label: &str) {
    let mut bare_rounds = Vec::new();
    let mut rounds: [Vec<Round>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let threads: &[usize] = if case.in_flight == 1 {
            &[1]
        } else {
            &[1, 2, 4]
        };
        let best = threads
            .iter()
            .map(|&threads| bare::run(bench, case.spec, threads, case.requests))
            .max_by(|a, b| a.rate.total_cmp(&b.rate))
            .unwrap();
        bare_rounds.push(best);
        for (protocol, rounds) in [load::Protocol::Http2, load::Protocol::Http1]
            .into_iter()
            .zip(&mut rounds)
        {
            let challenges = bench.challenges(case.spec, case.requests);
            let before = bench.cpu();
            let run = load::run(bench, protocol, case.in_flight, challenges);
            let cpu = (bench.cpu() - before) / case.requests as u32;
            rounds.push(Round { run, cpu });
        }
    }
    let bare_rate = median(bare_rounds.iter().map(|run| run.rate));
    let bare_p50 = median(bare_rounds.iter().map(|run| micros(run.p50)));
    let bare_cpu = median(bare_rounds.iter().map(|run| micros(run.cpu)));
    for (protocol, rounds) in ["h2", "h1"].into_iter().zip(&rounds) {
        let rate = median(rounds.iter().map(|round| round.run.rate));
        print(
            &format!("{label}-{protocol}"),
            "approvals/s",
            rate,
            bare_rate,
        );
        if case.in_flight == 1 {
            let p50 = median(rounds.iter().map(|round| micros(round.run.p50)));
            print(&format!("{label}-{protocol}-p50"), "us", p50, bare_p50);
        }
        let cpu = median(rounds.iter().map(|round| micros(round.cpu)));
        print(
            &format!("{label}-{protocol}-cpu"),
            "us/approval",
            cpu,
            bare_cpu,
        );
    }
}

struct Round {
    run: load::Run,
    cpu: Duration,
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(name: &str, unit: &str, ours: f64, peer: f64) {
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    println!(
        "{}",
        serde_json::json!({
            "name": name,
            "unit": unit,
            "ours": round(ours),
            "peer": round(peer),
            "ratio": round(ours / peer),
        })
    );
}
