//! What one approval costs as things grow: keys on the token, registered clients, audit records.
//!
//! Each kind of growth starts a scene of its own, is measured small, grows, and is measured again.
//! CPU time of daemon and worker is what is compared: it does not depend on what else the machine
//! is doing.

use std::time::Duration;

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::Attribute;
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use jiff::{SignedDuration, Timestamp};
use opcert::audit::{Audit, Config, Event};
use opcert::base::Clock;
use opcert::base::key::KeySpec;
use serde_json::json;

use crate::load;
use crate::report::{micros, report};
use crate::scene::{self, Scene};

const SPEC: KeySpec = KeySpec::P256;

/// Approvals a round, 8 in flight.
const COUNT: usize = 3_000;

const ROUNDS: usize = 5;

/// One approval's CPU time, in microseconds, round by round.
fn cost(bench: &Scene) -> Vec<f64> {
    (0..ROUNDS)
        .map(|_| {
            let challenges = bench.challenges(SPEC, COUNT);
            let before = bench.cpu();
            load::run(bench, load::Protocol::Http1, 8, challenges);
            let cpu: Duration = bench.cpu() - before;
            micros(cpu) / COUNT as f64
        })
        .collect()
}

fn compare(name: &str, bench: &Scene, small: &[f64]) {
    report(name, "us/approval", &cost(bench), small);
    let daemon = scene::resident_mib(bench.daemon_pid());
    let worker = scene::resident_mib(bench.worker_pid());
    report(&format!("{name}-daemon"), "MiB", &[daemon], &[16.0]);
    report(&format!("{name}-worker"), "MiB", &[worker], &[12.0]);
}

/// More registered clients.
pub fn clients(count: usize) {
    let bench = Scene::start(&[SPEC]);
    let small = cost(&bench);
    for number in 0..count {
        let (daemon, _) = bench.door();
        daemon.add_client(&format!("client-{number}"), &json!({ "consent": "none" }));
    }
    compare(&format!("growth-{count}-clients"), &bench, &small);
    bench.stop();
}

/// More records in the audit trail, of the day before, so that a start does not read them back.
pub fn records(count: usize) {
    let mut bench = Scene::start(&[SPEC]);
    let small = cost(&bench);
    bench.stop_daemon();
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
    drop(audit);
    bench.start_daemon();
    compare(&format!("growth-{count}-records"), &bench, &small);
    bench.stop();
}

/// More keys on the token.
pub fn keys(count: usize) {
    let mut bench = Scene::start(&[SPEC]);
    let small = cost(&bench);
    bench.stop_daemon();
    {
        let module: &Pkcs11 = crate::bare::module(&bench);
        let slot = crate::bare::slot(&bench, module);
        let session = module.open_rw_session(slot).unwrap();
        let pin = AuthPin::from(bench.pin().to_owned());
        let _ = session.login(UserType::User, Some(&pin));
        // prime256v1 (RFC 5480 section 2.1.1.1).
        let curve = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
        for number in 0..count {
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
    bench.start_daemon();
    compare(&format!("growth-{count}-keys"), &bench, &small);
    bench.stop();
}
