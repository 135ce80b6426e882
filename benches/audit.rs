//! A million records: how fast they are written and verified.
//!
//! Prints one JSON object a line, as `benches/run` does: `ours` against `peer`, which is SHA-256 over
//! the same bytes and nothing else. `cargo bench --bench audit`, or with a number of records behind
//! `--`.

use std::time::Instant;

use opcert::audit::verify::verify;
use opcert::audit::{Audit, Config, Event};
use opcert::base::Clock;

/// Records that wait at once: what 64 requests in flight make of them.
const IN_FLIGHT: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let records: usize = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(1_000_000);
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("audit");
    // About the size of the record of an approval.
    let body =
        serde_json::json!({ "payload": "x".repeat(700), "rule": "registered-without-consent" });
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let begun = Instant::now();
    runtime.block_on(async {
        let (audit, _) = Audit::open(&log, Config::default(), Clock::system())?;
        let mut left = records;
        while left > 0 {
            let group = left.min(IN_FLIGHT);
            let mut pending = Vec::with_capacity(group);
            for _ in 0..group {
                pending.push(audit.append(Event::new("approval", None, &body)?)?);
            }
            for one in pending {
                one.durable().await?;
            }
            left -= group;
        }
        audit.close().await?;
        Ok::<_, Box<dyn std::error::Error>>(())
    })?;
    let count = records as f64;
    let written = count / begun.elapsed().as_secs_f64();

    let begun = Instant::now();
    let summary = verify(&log)?;
    let verified = count / begun.elapsed().as_secs_f64();
    assert_eq!(summary.records, records as u64 + 1);

    let begun = Instant::now();
    for entry in std::fs::read_dir(&log)? {
        std::hint::black_box(opcert::base::encoding::sha256(&std::fs::read(
            entry?.path(),
        )?));
    }
    let bare = count / begun.elapsed().as_secs_f64();
    for (name, ours, peer) in [
        ("audit-verify", verified, bare),
        ("audit-append", written, bare),
    ] {
        println!(
            "{}",
            serde_json::json!({ "name": name, "unit": "records/s", "ours": ours.round(), "peer": peer.round(), "ratio": ours / peer })
        );
    }
    Ok(())
}
