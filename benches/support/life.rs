//! How long until the first signature: after a start, and after the worker was killed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request};
use hyper::body::Bytes;
use opcert::base::key::KeySpec;
use opcert::http::client::{Client, ClientLimits, Target};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::scene::Scene;

/// After so long something is broken.
const LONGEST: Duration = Duration::from_secs(20);

/// From the start of the process to an approval in hand. The control socket is asked for until it
/// answers, as the daemon offers no event to a process that is not its service manager; the
/// approval goes over a connection of its own on the native door.
pub fn start(bench: &mut Scene, spec: KeySpec) -> Duration {
    let challenge = bench.challenges(spec, 1).remove(0);
    bench.stop_daemon();
    let begun = Instant::now();
    bench.start_daemon();
    approve(bench, &challenge);
    begun.elapsed()
}

/// From the death of the worker to the next approval in hand, over a connection that is there;
/// refusals in between are asked again.
pub fn respawn(bench: &Scene, spec: KeySpec) -> Duration {
    let body = json!({ "challenge": bench.challenges(spec, 1).remove(0) });
    let body = Bytes::from(serde_json::to_vec(&body).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let target = Target::Tls {
            host: "localhost".into(),
            port: bench.address().port(),
            config: Arc::new(bench.client_config()),
        };
        let mut client = Client::connect(&target, ClientLimits::default())
            .await
            .unwrap();
        let worker = Pid::from_raw(i32::try_from(bench.worker_pid()).unwrap()).unwrap();
        let begun = Instant::now();
        kill_process(worker, Signal::KILL).unwrap();
        loop {
            let request = Request::post("/v1/approvals")
                .header("content-type", "application/json")
                .body(body.clone())
                .unwrap();
            let answer = client.send(request).await.unwrap();
            if answer.status().is_success() {
                return begun.elapsed();
            }
            let text = String::from_utf8_lossy(answer.body());
            assert!(begun.elapsed() < LONGEST, "{text}");
        }
    })
}

fn approve(bench: &Scene, challenge: &str) {
    let body = json!({ "challenge": challenge });
    let begun = Instant::now();
    loop {
        let (daemon, client) = bench.door();
        let answer = daemon.native(client, Method::POST, "/v1/approvals", &body);
        if answer.status.is_success() {
            return;
        }
        assert!(begun.elapsed() < LONGEST, "{}", answer.body);
    }
}
