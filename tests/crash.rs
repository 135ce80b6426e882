//! Kill -9 and a full disk at random instants, again and again, while clients ask for approvals:
//! no signature leaves without its record, the chain holds, and the daemon starts again by itself.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{Method, Request};
use hyper::body::Bytes;
use opcert::audit::{read, verify::verify};
use opcert::base::ids::random;
use opcert::http::client::{Client, ClientLimits, Target};
use serde_json::{Value, json};
use support::daemon::{ClientIdentity, Daemon};
use support::disk::Disk;
use support::service::{Service, withdrawal};
use support::softhsm::TestToken;

/// How often the daemon is killed or its disk filled.
const RUNS: usize = 200;

/// What the clients and the one who makes trouble know in common.
struct Shared {
    address: Mutex<SocketAddr>,
    stop: AtomicBool,
    /// The ids of approvals that were given out.
    approved: Mutex<Vec<String>>,
    /// Refusals since somebody looked.
    refused: AtomicUsize,
}

/// Asks for approvals until told to stop, whatever happens to the daemon.
fn ask(shared: &Shared, client: &ClientIdentity, service: &Service) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let config = Arc::new(client.tls());
    runtime.block_on(async {
        while !shared.stop.load(Ordering::Relaxed) {
            let port = shared.address.lock().unwrap().port();
            let target = Target::Tls {
                host: "localhost".into(),
                port,
                config: config.clone(),
            };
            let Ok(mut connection) = Client::connect(&target, ClientLimits::default()).await else {
                // The daemon tells nobody when it is back.
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            while !shared.stop.load(Ordering::Relaxed) {
                let challenge = service.challenge(&withdrawal("alice"), |_| ());
                let request = Request::builder()
                    .method(Method::POST)
                    .uri("/v1/approvals")
                    .header("content-type", "application/json")
                    .body(Bytes::from(json!({ "challenge": challenge }).to_string()))
                    .unwrap();
                let Ok(response) = connection.send(request).await else {
                    break;
                };
                let good = response.status().is_success();
                let body: Value = serde_json::from_slice(response.body()).unwrap();
                if good {
                    let jti = body["challenge_jti"].as_str().unwrap().to_owned();
                    shared.approved.lock().unwrap().push(jti);
                } else {
                    assert!(
                        ["audit-unavailable", "busy", "token-down", "token-timeout"]
                            .contains(&body["code"].as_str().unwrap()),
                        "{body}"
                    );
                    shared.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
}

#[test]
fn no_signature_without_its_record_whatever_happens_to_process_and_disk() {
    let token = TestToken::new("opcert-test");
    let disk = Disk::mount(&token.directory().join("state"), 32);
    if disk.is_none() {
        println!(
            "this user may not mount a small disk: the process is killed, the disk not filled"
        );
    }
    let mut daemon = Daemon::start_with(
        &token,
        "[audit]\nsegment-bytes = 262144\n[log]\nlevel = \"error\"\n",
    );
    let service = Service::new("https://pay.example");
    daemon.enrol(&service, "alice", "p256");
    let client = daemon.add_client("till", &json!({ "consent": "none" }));
    let shared = Shared {
        address: Mutex::new(daemon.address()),
        stop: AtomicBool::new(false),
        approved: Mutex::default(),
        refused: AtomicUsize::new(0),
    };
    let begun = Instant::now();
    let (mut killed, mut filled) = (0, 0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| ask(&shared, &client, &service));
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for run in 0..RUNS {
                let dice = random::<2>();
                // The random instant: it must come of nothing that the daemon does.
                std::thread::sleep(Duration::from_millis(u64::from(dice[0]) / 4));
                match &disk {
                    // Filled while it works, killed while it is full; sometimes it lives to see
                    // room again.
                    Some(disk) if dice[1] < 80 => {
                        filled += 1;
                        shared.refused.store(0, Ordering::Relaxed);
                        disk.fill();
                        if dice[1] < 8 {
                            let deadline = Instant::now() + Duration::from_secs(60);
                            while shared.refused.load(Ordering::Relaxed) == 0 {
                                assert!(
                                    Instant::now() < deadline,
                                    "run {run}: a full disk refuses nothing"
                                );
                                // Counted by the clients' threads; looked at between.
                                std::thread::sleep(Duration::from_millis(1));
                            }
                            disk.free();
                            let before = shared.approved.lock().unwrap().len();
                            while shared.approved.lock().unwrap().len() == before {
                                assert!(
                                    Instant::now() < deadline,
                                    "run {run}: it does not recover: {}",
                                    daemon.log()
                                );
                                // The same.
                                std::thread::sleep(Duration::from_millis(5));
                            }
                            continue;
                        }
                        // Another random instant, while the disk is full.
                        std::thread::sleep(Duration::from_millis(u64::from(dice[0]) / 16));
                        daemon.crash();
                        disk.free();
                    }
                    _ => {
                        killed += 1;
                        daemon.crash();
                    }
                }
                daemon.restart();
                *shared.address.lock().unwrap() = daemon.address();
            }
        }));
        shared.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(daemon.stop(), 0);
    let summary = verify(&daemon.audit_directory()).unwrap();
    assert!(summary.closed);
    let recorded: BTreeSet<String> = read::all(&daemon.audit_directory())
        .unwrap()
        .map(Result::unwrap)
        .filter(|record| record.kind == "approval")
        .map(|record| {
            let body: Value = serde_json::from_str(record.body.get()).unwrap();
            body["payload"]["challenge_jti"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let approved = shared.approved.into_inner().unwrap();
    assert!(
        approved.len() > RUNS / 2,
        "{} approvals are too few to mean anything",
        approved.len()
    );
    for jti in &approved {
        assert!(
            recorded.contains(jti),
            "approval {jti} was given out and is not on record"
        );
    }
    println!(
        "{killed} times killed, {filled} times filled; {} approvals, {} records, {} s",
        approved.len(),
        summary.records,
        begun.elapsed().as_secs()
    );
}
