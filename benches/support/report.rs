//! What a measurement prints: one JSON object a line.

use std::time::Duration;

/// Prints the medians of repeated measurements, what they range over, and their ratio. `peer` is
/// what ours is held against: the same work without a daemon, another program, or a budget.
pub fn report(name: &str, unit: &str, ours: &[f64], peer: &[f64]) {
    let (ours_median, peer_median) = (median(ours), median(peer));
    println!(
        "{}",
        serde_json::json!({
            "name": name,
            "unit": unit,
            "ours": round(ours_median),
            "peer": round(peer_median),
            "ratio": round(ours_median / peer_median),
            "ours_range": range(ours),
            "peer_range": range(peer),
        })
    );
}

/// The middle one, or the upper of two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn range(values: &[f64]) -> [f64; 2] {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    [round(least), round(most)]
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
