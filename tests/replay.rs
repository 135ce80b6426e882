//! One approval for each challenge, whatever is killed and wherever the clock goes: the real daemon,
//! its real log and a real token.

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use hyper::body::Bytes;
use opcert::base::jose::Jws;
use opcert::http::client::{Client, ClientLimits, Target};
use opcert::statement::Approval;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use support::daemon::{ClientIdentity, Daemon};
use support::service::{Service, withdrawal};
use support::softhsm::TestToken;
use support::wall_clock::{Timers, WallClock};

const ORIGIN: &str = "https://pay.example";

/// What one request brought, where anything came back at all.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Brought {
    /// The payload of the approval: what was approved, for whom, under which id.
    Approval(Vec<u8>),
    /// A problem's code.
    Problem(String),
    /// The daemon went away.
    Nothing,
}

/// Asks on a connection of its own.
async fn ask(address: SocketAddr, client: &ClientIdentity, challenges: &[String]) -> Vec<Brought> {
    let target = Target::Tls {
        host: "localhost".into(),
        port: address.port(),
        config: Arc::new(client.tls()),
    };
    let limits = ClientLimits {
        request: Duration::from_secs(120),
        ..ClientLimits::default()
    };
    let mut brought = Vec::new();
    let Ok(mut connection) = Client::connect(&target, limits).await else {
        return vec![Brought::Nothing; challenges.len()];
    };
    for challenge in challenges {
        let body = json!({ "challenge": challenge }).to_string();
        let request = Request::builder()
            .method(Method::POST)
            .uri("/v1/approvals")
            .header("content-type", "application/json")
            .body(Bytes::from(body))
            .unwrap();
        brought.push(match connection.send(request).await {
            Err(_) => Brought::Nothing,
            Ok(response) => {
                let body: Value = serde_json::from_slice(response.body()).unwrap();
                match body["approval"].as_str() {
                    Some(compact) => {
                        Brought::Approval(Jws::parse(compact, Approval::MAX).unwrap().payload)
                    }
                    None => Brought::Problem(body["code"].as_str().unwrap().to_owned()),
                }
            }
        });
    }
    brought
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// Every approval that ever came back, by challenge.
#[derive(Default)]
struct Seen(HashMap<String, Vec<u8>>);

impl Seen {
    #[track_caller]
    fn add(&mut self, challenge: &str, brought: &Brought) {
        if let Brought::Approval(payload) = brought {
            let first = self
                .0
                .entry(challenge.to_owned())
                .or_insert_with(|| payload.clone());
            assert_eq!(first, payload, "two approvals of one challenge");
        }
    }
}

#[test]
fn a_daemon_killed_at_any_instant_approves_once() {
    let token = TestToken::new("opcert-test");
    let mut daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let silent = json!({ "consent": "none" });
    let (till, other) = (
        daemon.add_client("till", &silent),
        daemon.add_client("other", &silent),
    );
    daemon.enrol(&service, "alice", "p256");
    let runtime = runtime();
    let mut seen = Seen::default();
    for round in 0..8_u64 {
        let challenges: Vec<String> = (0..4)
            .map(|_| service.challenge(&withdrawal("alice"), |_| ()))
            .collect();
        let address = daemon.address();
        let asking = {
            let challenges = challenges.clone();
            let till = till.clone();
            runtime.spawn(async move { ask(address, &till, &challenges).await })
        };
        // Another instant each time: in the handshake, in the record, in the signature, behind it.
        std::thread::sleep(Duration::from_micros(700 * round * (round + 1)));
        daemon.crash_and_restart();
        let before = runtime.block_on(asking).unwrap();
        let address = daemon.address();
        let after = runtime.block_on(ask(address, &till, &challenges));
        let others = runtime.block_on(ask(address, &other, &challenges));
        for (index, challenge) in challenges.iter().enumerate() {
            for brought in [&before[index], &after[index], &others[index]] {
                seen.add(challenge, brought);
            }
            assert!(matches!(after[index], Brought::Approval(_)), "{after:?}");
            assert_eq!(others[index], Brought::Problem("challenge-used".into()));
        }
    }
    assert_eq!(daemon.stop(), 0, "{}", daemon.log());
    let _ = opcert::audit::verify::verify(&daemon.audit_directory()).unwrap();
}

#[test]
fn an_answer_is_read_back_from_the_log_when_many_came_after_it() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let till = daemon.add_client("till", &json!({ "consent": "none" }));
    let other = daemon.add_client("other", &json!({ "consent": "none" }));
    daemon.enrol(&service, "alice", "p256");
    let challenges: Vec<String> = (0..300)
        .map(|_| service.challenge(&withdrawal("alice"), |_| ()))
        .collect();
    let (runtime, address) = (runtime(), daemon.address());
    let first = runtime.block_on(ask(address, &till, &challenges));
    let oldest = &challenges[..3];
    assert_eq!(runtime.block_on(ask(address, &till, oldest)), first[..3]);
    let used = vec![Brought::Problem("challenge-used".into()); 3];
    assert_eq!(runtime.block_on(ask(address, &other, oldest)), used);
    // To the byte, signature included.
    let body = json!({ "challenge": challenges[3] });
    let again = || {
        daemon
            .native(&till, Method::POST, "/v1/approvals", &body)
            .ok()
    };
    assert_eq!(again(), again());
}

/// A step of two clients and a daemon.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// One of the clients asks for one of the challenges.
    Ask(usize, usize),
    /// Both ask at the same time.
    Both(usize),
    /// The daemon is killed and started again.
    Crash,
}

#[test]
fn any_interleaving_of_two_clients_and_a_restart_yields_one_approval() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    let silent = json!({ "consent": "none" });
    let clients = [
        daemon.add_client("till", &silent),
        daemon.add_client("other", &silent),
    ];
    daemon.enrol(&service, "alice", "p256");
    let (runtime, daemon) = (runtime(), std::cell::RefCell::new(daemon));
    let step = prop_oneof![
        4 => (0..2_usize, 0..2_usize).prop_map(|(client, which)| Step::Ask(client, which)),
        3 => (0..2_usize).prop_map(Step::Both),
        1 => Just(Step::Crash),
    ];
    let config = Config {
        cases: 12,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&proptest::collection::vec(step, 1..10), |steps| {
            let challenges: Vec<String> = (0..2)
                .map(|_| service.challenge(&withdrawal("alice"), |_| ()))
                .collect();
            let mut seen = Seen::default();
            let mut owner: HashMap<usize, usize> = HashMap::new();
            for step in steps {
                let address = daemon.borrow().address();
                let answers = match step {
                    Step::Crash => {
                        daemon.borrow_mut().crash_and_restart();
                        continue;
                    }
                    Step::Ask(client, which) => {
                        let one = std::slice::from_ref(&challenges[which]);
                        vec![(
                            client,
                            which,
                            runtime.block_on(ask(address, &clients[client], one)),
                        )]
                    }
                    Step::Both(which) => {
                        let one = std::slice::from_ref(&challenges[which]);
                        let (first, second) = runtime.block_on(async {
                            tokio::join!(
                                ask(address, &clients[0], one),
                                ask(address, &clients[1], one)
                            )
                        });
                        vec![(0, which, first), (1, which, second)]
                    }
                };
                for (client, which, brought) in answers {
                    seen.add(&challenges[which], &brought[0]);
                    let is_owner = match &brought[0] {
                        Brought::Approval(_) => true,
                        Brought::Problem(code) => {
                            prop_assert_eq!(code, "challenge-used");
                            false
                        }
                        Brought::Nothing => panic!("{}", daemon.borrow().log()),
                    };
                    let known = *owner.entry(which).or_insert(match is_owner {
                        true => client,
                        false => 1 - client,
                    });
                    prop_assert_eq!(is_owner, known == client);
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_clock_that_steps_revives_no_challenge() {
    if WallClock::is_missing() {
        return;
    }
    let token = TestToken::new("opcert-test");
    let clock = WallClock::new(token.directory(), Timers::Real);
    // The certificates of the doors are from before, so that steps back do not end them.
    clock.set(-3_600);
    let mut daemon = Daemon::start_in(&token, "", &clock.environment());
    let service = Service::new(ORIGIN);
    let silent = json!({ "consent": "none" });
    let till = daemon.add_client("till", &silent);
    let other = daemon.add_client("other", &silent);
    clock.set(0);
    daemon.enrol(&service, "alice", "p256");
    let runtime = runtime();
    let challenge = [service.challenge(&withdrawal("alice"), |_| ())];
    let mut seen = Seen::default();
    let mut ask = |daemon: &Daemon, client: &ClientIdentity| {
        let brought = runtime.block_on(ask(daemon.address(), client, &challenge));
        seen.add(&challenge[0], &brought[0]);
        brought.into_iter().next().unwrap()
    };
    let first = ask(&daemon, &till);
    assert!(matches!(first, Brought::Approval(_)), "{first:?}");
    let expired = Brought::Problem("challenge-expired".into());
    let used = Brought::Problem("challenge-used".into());
    for (step, restart) in [
        (0, false),
        (-60, false),
        (60, false),
        (600, false),
        (-25, false),
        (0, true),
        (7_200, true),
        (0, false),
        (-20, true),
        (0, true),
    ] {
        clock.set(step);
        if restart {
            daemon.crash_and_restart();
        }
        let (mine, theirs) = (ask(&daemon, &till), ask(&daemon, &other));
        assert_ne!(theirs, Brought::Nothing, "{step}: {}", daemon.log());
        assert!(!matches!(theirs, Brought::Approval(_)), "{step} {theirs:?}");
        if step.abs() < 100 && theirs == used {
            assert_eq!(mine, first, "{step}");
        }
        if step > 100 {
            assert_eq!((&mine, &theirs), (&expired, &expired), "{step}");
        }
    }
}
