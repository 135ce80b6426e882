//! Every metric there is: its name, and the cell that is written where it happens.
//!
//! [`ALL`] lists the names; `docs/metrics.md`, the dashboard and what a daemon shows are held
//! against it by a test. Names follow Prometheus' conventions: the prefix of the program, the unit
//! last; counters get `_total` when they are shown.
//!
//! Cells are atomics in one place for the whole process ([`metrics`]), so that no code path carries
//! a handle for them and none waits. What is a state rather than an event (tokens, certificates)
//! is read when somebody asks, by `api`, which adds it as [`Sample`]s.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

pub use super::cells::Entered;
use super::cells::{Counter, Gauge, Histogram, Labelled};
use super::exposition::{Sample, Value};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A metric: its name, and what it says.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// As registered; a counter is shown with `_total`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The labels of its samples.
    pub labels: &'static [&'static str],
    /// A sentence without a full stop.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($const:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $const: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )*

        /// All of them, in the order in which they are shown.
        pub const ALL: &[&Metric] = &[$(&$const),*];
    };
}

metrics! {
    BUILD_INFO = Gauge "opcert_build_info" ["version"] "Always 1; the label tells the version";
    START_TIME = Gauge "opcert_start_time_seconds" [] "When the daemon started, seconds since 1970";
    HTTP_REQUESTS = Counter "opcert_http_requests" ["door", "status"] "Requests answered, by door and class of status";
    HTTP_REQUEST_SECONDS = Histogram "opcert_http_request_seconds" ["door"] "Time from the head of a request to its answer";
    HTTP_CONNECTIONS = Gauge "opcert_http_connections" ["door"] "Open connections";
    HTTP_CONNECTIONS_REFUSED = Counter "opcert_http_connections_refused" ["door"] "Connections closed at once, as the door had as many as it may";
    TLS_HANDSHAKE_FAILURES = Counter "opcert_tls_handshake_failures" ["door"] "TLS handshakes that failed; browsers abort some on purpose";
    REFUSALS = Counter "opcert_refusals" ["code"] "Requests refused, by the code of the problem document";
    AUTHENTICATION_THROTTLED = Counter "opcert_authentication_throttled" [] "Failed authentications answered without a look-up, as their source had too many";
    SIGNATURES = Counter "opcert_signatures" ["purpose"] "Signatures that left a token and verified";
    SIGNATURE_FAILURES = Counter "opcert_signature_failures" ["purpose"] "Signatures that were permitted and did not come";
    CALL_SECONDS = Histogram "opcert_pkcs11_call_seconds" ["module", "function"] "Time of calls of a module, waiting for their turn included";
    CALL_FAILURES = Counter "opcert_pkcs11_call_failures" ["module", "function"] "Calls of a module that failed";
    CALLS_WAITING = Gauge "opcert_pkcs11_calls_waiting" ["module"] "Calls under way or waiting";
    SESSIONS = Gauge "opcert_pkcs11_sessions" ["module"] "Sessions that the worker keeps for signing; 0 while it is down";
    TOKEN_CHANGES = Counter "opcert_token_changes" ["module", "noticed"] "Tokens that came or left, by what made it noticed: an event of the library, a poll, a request";
    WORKER_RESPAWNS = Counter "opcert_worker_respawns" ["module"] "Workers that were replaced";
    MODULE_UP = Gauge "opcert_module_up" ["module"] "1 while the worker of the module is up";
    TOKEN_STATE = Gauge "opcert_token_state" ["module", "token", "state"] "1 for the state that the token is in, 0 for the others";
    TOKEN_PIN_STATE = Gauge "opcert_token_pin_state" ["module", "token", "state"] "1 for the state that the token's PIN is in, 0 for the others";
    CERTIFICATE_EXPIRY = Gauge "opcert_certificate_expiry_time_seconds" ["account", "operator", "fingerprint"] "When an operating certificate expires, seconds since 1970";
    CLIENT_EXPIRY = Gauge "opcert_client_expiry_time_seconds" ["client"] "When the certificate of a registered client expires, seconds since 1970";
    AUDIT_RECORDS = Counter "opcert_audit_records" [] "Durable records of the audit trail";
    AUDIT_LAG = Gauge "opcert_audit_lag_records" [] "Records that wait to be durable";
    AUDIT_WRITABLE = Gauge "opcert_audit_writable" [] "1 while records can be written; 0 means that nothing is signed";
    AUDIT_COMMIT_SECONDS = Histogram "opcert_audit_commit_seconds" [] "Time to write and synchronise a group of records";
    AUDIT_CHECKPOINTS = Counter "opcert_audit_checkpoints" [] "Checkpoints that a token signed";
    AUDIT_CHECKPOINT_TIME = Gauge "opcert_audit_checkpoint_time_seconds" [] "When the last checkpoint was signed, seconds since 1970; 0 before the first";
    AUDIT_SINK_FAILURES = Counter "opcert_audit_sink_failures" [] "Records that the second sink did not take";
    PROMPTS = Counter "opcert_prompts" ["outcome"] "Questions put to a person, by outcome";
    PROMPTS_WAITING = Gauge "opcert_prompts_waiting" [] "Questions on the screen or waiting for it";
    PROMPT_SECONDS = Histogram "opcert_prompt_seconds" [] "Time until a person answered, waiting for the screen included";
    RELOADS = Counter "opcert_config_reloads" ["outcome"] "Times the configuration was read again, by outcome";
    CONFIG_TIME = Gauge "opcert_config_time_seconds" [] "When the configuration in force was read, seconds since 1970";
}

/// Of one door.
#[derive(Debug, Default)]
pub struct DoorCells {
    /// By class of status, 1xx to 5xx.
    pub requests: [Counter; 5],
    /// From head to answer.
    pub seconds: Histogram,
    /// Open now.
    pub connections: Gauge,
    /// Closed at once.
    pub refused: Counter,
    /// Handshakes that failed.
    pub handshake_failures: Counter,
}

/// Of one module.
#[derive(Debug, Default)]
pub struct ModuleCells {
    /// By function.
    pub calls: Labelled<CallCells, 16>,
    /// Under way or waiting.
    pub waiting: Gauge,
    /// Of the worker.
    pub sessions: Gauge,
    /// Workers replaced.
    pub respawns: Counter,
    /// Tokens that came or left, by what made it noticed.
    pub token_changes: Labelled<Counter, 4>,
}

/// Of one function of a module.
#[derive(Debug, Default)]
pub struct CallCells {
    /// How long calls took.
    pub seconds: Histogram,
    /// Those that failed.
    pub failures: Counter,
}

/// The cells of this process.
#[derive(Debug, Default)]
pub struct Metrics {
    doors: Labelled<Arc<DoorCells>, 8>,
    modules: Mutex<BTreeMap<String, Arc<ModuleCells>>>,
    /// By code.
    pub refusals: Labelled<Counter, 128>,
    /// Answered without a look-up.
    pub throttled: Counter,
    /// By purpose.
    pub signatures: Labelled<Counter, 32>,
    /// By purpose.
    pub signature_failures: Labelled<Counter, 32>,
    /// Time of each group commit.
    pub audit_commit: Histogram,
    /// Signed.
    pub checkpoints: Counter,
    /// Seconds since 1970.
    pub checkpoint_time: Gauge,
    /// Not taken by the second sink.
    pub sink_failures: Counter,
    /// By outcome.
    pub prompts: Labelled<Counter, 8>,
    /// On the screen or waiting for it.
    pub prompts_waiting: Gauge,
    /// Until the answer.
    pub prompt_seconds: Histogram,
    /// By outcome.
    pub reloads: Labelled<Counter, 4>,
    /// Seconds since 1970.
    pub config_time: Gauge,
    /// Seconds since 1970.
    pub start_time: Gauge,
}

/// The cells of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);
    &METRICS
}

impl Metrics {
    /// Those of a door.
    pub fn door(&self, name: &'static str) -> Arc<DoorCells> {
        self.doors.of(name).clone()
    }

    /// Those of a module. Takes a lock: keep what it returns.
    pub fn module(&self, name: &str) -> Arc<ModuleCells> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.entry(name.to_owned()).or_default().clone()
    }

    /// What the cells hold now.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = vec![
            Sample::gauge(
                &BUILD_INFO,
                [("version", env!("CARGO_PKG_VERSION").into())],
                1,
            ),
            Sample::gauge(&START_TIME, [], self.start_time.get()),
            Sample::counter(&AUTHENTICATION_THROTTLED, [], self.throttled.get()),
            Sample::histogram(&AUDIT_COMMIT_SECONDS, [], &self.audit_commit),
            Sample::counter(&AUDIT_CHECKPOINTS, [], self.checkpoints.get()),
            Sample::gauge(&AUDIT_CHECKPOINT_TIME, [], self.checkpoint_time.get()),
            Sample::counter(&AUDIT_SINK_FAILURES, [], self.sink_failures.get()),
            Sample::gauge(&PROMPTS_WAITING, [], self.prompts_waiting.get()),
            Sample::histogram(&PROMPT_SECONDS, [], &self.prompt_seconds),
            Sample::gauge(&CONFIG_TIME, [], self.config_time.get()),
        ];
        for (door, cells) in self.doors.iter() {
            let door = || ("door", door.to_owned());
            for (class, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"]
                .iter()
                .zip(&cells.requests)
            {
                let labels = [door(), ("status", (*class).to_owned())];
                samples.push(Sample::counter(&HTTP_REQUESTS, labels, count.get()));
            }
            samples.push(Sample::histogram(
                &HTTP_REQUEST_SECONDS,
                [door()],
                &cells.seconds,
            ));
            samples.push(Sample::gauge(
                &HTTP_CONNECTIONS,
                [door()],
                cells.connections.get(),
            ));
            let refused = cells.refused.get();
            samples.push(Sample::counter(
                &HTTP_CONNECTIONS_REFUSED,
                [door()],
                refused,
            ));
            let failures = cells.handshake_failures.get();
            samples.push(Sample::counter(&TLS_HANDSHAKE_FAILURES, [door()], failures));
        }
        for (metric, label, counters) in [
            (&REFUSALS, "code", all(&self.refusals)),
            (&SIGNATURES, "purpose", all(&self.signatures)),
            (
                &SIGNATURE_FAILURES,
                "purpose",
                all(&self.signature_failures),
            ),
            (&PROMPTS, "outcome", all(&self.prompts)),
            (&RELOADS, "outcome", all(&self.reloads)),
        ] {
            samples.extend(
                counters
                    .into_iter()
                    .map(|(value, count)| Sample::counter(metric, [(label, value.into())], count)),
            );
        }
        let modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, cells) in &*modules {
            let module = || ("module", name.clone());
            samples.push(Sample::gauge(
                &CALLS_WAITING,
                [module()],
                cells.waiting.get(),
            ));
            samples.push(Sample::gauge(&SESSIONS, [module()], cells.sessions.get()));
            samples.push(Sample::counter(
                &WORKER_RESPAWNS,
                [module()],
                cells.respawns.get(),
            ));
            for (noticed, count) in cells.token_changes.iter() {
                let labels = [module(), ("noticed", noticed.to_owned())];
                samples.push(Sample::counter(&TOKEN_CHANGES, labels, count.get()));
            }
            for (function, call) in cells.calls.iter() {
                let labels = || [module(), ("function", function.to_owned())];
                samples.push(Sample::histogram(&CALL_SECONDS, labels(), &call.seconds));
                samples.push(Sample::counter(
                    &CALL_FAILURES,
                    labels(),
                    call.failures.get(),
                ));
            }
        }
        samples
    }
}

fn all<const N: usize>(counters: &Labelled<Counter, N>) -> Vec<(&'static str, u64)> {
    counters
        .iter()
        .map(|(label, count)| (label, count.get()))
        .collect()
}

impl Sample {
    /// Of a counter.
    pub fn counter<const N: usize>(
        metric: &'static Metric,
        labels: [(&'static str, String); N],
        value: u64,
    ) -> Self {
        Self::new(metric, labels, Value::Counter(value))
    }

    /// Of a gauge.
    pub fn gauge<const N: usize>(
        metric: &'static Metric,
        labels: [(&'static str, String); N],
        value: i64,
    ) -> Self {
        Self::new(metric, labels, Value::Gauge(value))
    }

    fn histogram<const N: usize>(
        metric: &'static Metric,
        labels: [(&'static str, String); N],
        histogram: &Histogram,
    ) -> Self {
        let (sum, counts) = histogram.read();
        Self::new(metric, labels, Value::Histogram { sum, counts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = BTreeSet::new();
        for metric in ALL {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert!(metric.name.starts_with("opcert_"), "{}", metric.name);
            assert!(!metric.name.ends_with("_total"), "{}", metric.name);
            assert!(!metric.help.ends_with('.'), "{}", metric.help);
            if metric.kind == Kind::Histogram {
                assert!(metric.name.ends_with("_seconds"), "{}", metric.name);
            }
        }
    }

    #[test]
    fn samples_have_the_labels_that_are_listed() {
        let metrics = Metrics::default();
        metrics.door("native").requests[1].increment();
        metrics.refusals.of("busy").increment();
        let module = metrics.module("a");
        module.calls.of("C_Sign").failures.increment();
        for sample in metrics.samples() {
            let labels: Vec<_> = sample.labels.iter().map(|(name, _)| *name).collect();
            assert_eq!(labels, sample.metric.labels, "{}", sample.metric.name);
        }
    }
}
