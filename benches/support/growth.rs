//! What an approval, a start and the processes cost as things grow: keys on the token, registered
//! clients, audit records.
//!
//! Each size is measured by a process with a scene of its own, so that a start has no approvals of
//! the size before to read back. `ours` is what is measured there, `peer` the same with the smallest
//! size.

use std::collections::HashMap;
use std::process::Command;
use std::time::Instant;

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::Attribute;
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use jiff::{SignedDuration, Timestamp};
use opcert::audit::{Audit, Config, Event};
use opcert::base::Clock;
use opcert::base::key::KeySpec;
use serde_json::{Value, json};

use crate::report::{micros, millis, report};
use crate::scene::Scene;
use crate::{bare, load, memory};

const SPEC: KeySpec = KeySpec::P256;

/// Approvals a round with 8 in flight, for CPU time; and with one, for the median time.
const COUNT: usize = 2_000;
const ONE_BY_ONE: usize = 600;

const ROUNDS: usize = 5;
const STARTS: usize = 5;

/// What grows, by name, with the sizes.
const KINDS: [(&str, Grow, &[usize]); 3] = [
    ("clients", clients, &[1, 10, 100, 1_000]),
    ("keys", keys, &[1, 10, 100, 1_000, 10_000]),
    (
        "records",
        records,
        &[1, 100, 10_000, 100_000, 300_000, 1_000_000],
    ),
];

/// Makes a scene hold so many.
type Grow = fn(&mut Scene, usize);

/// `growth-keys` is the whole curve, `growth-keys-1000` one size.
pub fn measure(filter: &str) {
    let named = KINDS.into_iter().find_map(|(kind, grow, sizes)| {
        let rest = filter.strip_prefix("growth-")?.strip_prefix(kind)?;
        Some((kind, grow, sizes, rest))
    });
    let (kind, grow, sizes, rest) = named.expect("clients, keys or records");
    match rest.strip_prefix('-') {
        Some(size) => one(kind, size.parse().expect("a number"), grow),
        None => curve(kind, sizes),
    }
}

fn curve(kind: &str, sizes: &[usize]) {
    let mut first: HashMap<String, Value> = HashMap::new();
    for size in sizes {
        let program = std::env::current_exe().unwrap();
        let output = Command::new(program)
            .arg(format!("growth-{kind}-{size}"))
            .output()
            .unwrap();
        let failure = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{failure}");
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            let mut line: Value = serde_json::from_str(line).unwrap();
            let name = line["name"].as_str().unwrap();
            let measure = name.replace(&format!("growth-{kind}-{size}-"), "");
            let first = first.entry(measure).or_insert_with(|| line.clone());
            let ratio = line["ours"].as_f64().unwrap() / first["ours"].as_f64().unwrap();
            line["ratio"] = json!((ratio * 1e3).round() / 1e3);
            line["peer"] = first["ours"].clone();
            line["peer_range"] = first["ours_range"].clone();
            println!("{line}");
        }
    }
}

/// Starts the daemon on what has grown and measures it; bare work too where the token grew.
fn one(kind: &str, size: usize, grow: Grow) {
    let mut bench = Scene::start(&[SPEC]);
    grow(&mut bench, size);
    let say = |measure: &str, unit: &str, figures: Vec<f64>| {
        let name = format!("growth-{kind}-{size}-{measure}");
        report(&name, unit, &figures, &figures);
    };
    let starts = (0..STARTS).map(|_| {
        bench.stop_daemon();
        let begun = Instant::now();
        bench.start_daemon();
        bench.approve_once(SPEC);
        millis(begun.elapsed())
    });
    say("start", "ms", starts.collect());
    if kind == "keys" {
        // What loading the module alone takes, and a look at its tokens.
        let loads = (0..STARTS).map(|_| {
            let begun = Instant::now();
            let output = Command::new("softhsm2-util").arg("--show-slots").output();
            assert!(output.unwrap().status.success());
            millis(begun.elapsed())
        });
        say("module-alone", "ms", loads.collect());
    }
    let (mut cpu, mut p50) = (Vec::new(), Vec::new());
    let (mut bare_cpu, mut bare_p50) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let challenges = bench.challenges(SPEC, COUNT);
        let before = bench.cpu();
        load::run(&bench, load::Protocol::Http1, 8, challenges);
        cpu.push(micros(bench.cpu() - before) / COUNT as f64);
        let challenges = bench.challenges(SPEC, ONE_BY_ONE);
        let alone = load::run(&bench, load::Protocol::Http1, 1, challenges);
        p50.push(micros(alone.p50));
        if kind == "keys" {
            bare_cpu.push(micros(bare::run(&bench, SPEC, 2, COUNT).cpu));
            bare_p50.push(micros(bare::run(&bench, SPEC, 1, ONE_BY_ONE).p50));
        }
    }
    say("cpu", "us", cpu);
    say("p50", "us", p50);
    if kind == "keys" {
        say("bare-cpu", "us", bare_cpu);
        say("bare-p50", "us", bare_p50);
    }
    let daemon = memory::resident_mib(bench.daemon_pid());
    let worker = memory::resident_mib(bench.worker_pid());
    say("daemon", "MiB", vec![daemon]);
    say("worker", "MiB", vec![worker]);
    bench.stop();
}

/// Registered clients; the scene's own is one of them.
fn clients(bench: &mut Scene, size: usize) {
    for number in 1..size {
        let (daemon, _) = bench.door();
        daemon.add_client(&format!("client-{number}"), &json!({ "consent": "none" }));
    }
}

/// Records in the audit trail, of the day before: a start reads back only what can still be asked
/// for again.
fn records(bench: &mut Scene, size: usize) {
    bench.stop_daemon();
    append(bench, size - 1);
    bench.start_daemon();
}

fn append(bench: &Scene, count: usize) {
    let yesterday = Timestamp::now() - SignedDuration::from_hours(24);
    let (clock, _hand) = Clock::manual(yesterday);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let directory = bench.state_directory().join("audit");
    let (audit, _) = Audit::open(&directory, Config::default(), clock).unwrap();
    let body = json!({ "filler": "x".repeat(200) });
    for number in 0..count {
        let event = || Event::new("growth", None, &body).unwrap();
        // Now and then one is waited for, so that the queue never fills.
        if number.is_multiple_of(2_000) {
            runtime
                .block_on(audit.append(event()).unwrap().durable())
                .unwrap();
        } else {
            audit.note(event()).unwrap();
        }
    }
    runtime.block_on(audit.close()).unwrap();
}

/// Key pairs on the token; the enrolled one is one of them.
fn keys(bench: &mut Scene, size: usize) {
    let module: &Pkcs11 = bare::module(bench);
    let slot = bare::slot(bench, module);
    let session = module.open_rw_session(slot).unwrap();
    let pin = AuthPin::from(bench.pin().to_owned());
    let _ = session.login(UserType::User, Some(&pin));
    // prime256v1 (RFC 5480 section 2.1.1.1).
    let curve = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    for number in 1..size {
        let id = number.to_be_bytes().to_vec();
        let public = [
            Attribute::Token(true),
            Attribute::Verify(true),
            Attribute::EcParams(curve.to_vec()),
            Attribute::Id(id.clone()),
        ];
        let private = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Sign(true),
            Attribute::Id(id),
        ];
        session
            .generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)
            .unwrap();
    }
}
