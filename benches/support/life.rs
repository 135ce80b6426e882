//! How long until the first signature: after a start, and after the worker was killed.

use std::time::{Duration, Instant};

use http::Method;
use opcert::base::key::KeySpec;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::scene::Scene;

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

/// From the death of the worker to the next approval in hand; refusals in between are asked again.
pub fn respawn(bench: &Scene, spec: KeySpec) -> Duration {
    let challenge = bench.challenges(spec, 1).remove(0);
    let worker = Pid::from_raw(i32::try_from(bench.worker_pid()).unwrap()).unwrap();
    let begun = Instant::now();
    kill_process(worker, Signal::KILL).unwrap();
    approve(bench, &challenge);
    begun.elapsed()
}

fn approve(bench: &Scene, challenge: &str) {
    let body = json!({ "challenge": challenge });
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (daemon, client) = bench.door();
        let answer = daemon.native(client, Method::POST, "/v1/approvals", &body);
        if answer.status.is_success() {
            return;
        }
        assert!(Instant::now() < deadline, "{}", answer.body);
    }
}
