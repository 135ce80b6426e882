//! What monitoring asks: `/metrics`, `/healthz/live`, `/healthz/ready`.
//!
//! They are on the control socket, and on a loopback port of their own where one is configured; on
//! no other door. They change nothing and are not part of `/v1`: their forms are Prometheus' and
//! the habit's.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;

use super::App;
use crate::api::extract::Json;
use crate::api::problem::{Code, Problem};
use crate::device::{TokenFlags, TokenState, TokenStatus};
use crate::telemetry::exposition::{MEDIA_TYPE, Sample, render};
use crate::telemetry::metrics as names;
use crate::telemetry::metrics::metrics;

/// The routes.
pub(super) fn router() -> Router<App> {
    Router::new()
        .route("/metrics", get(get_metrics))
        .route("/healthz/live", get(live))
        .route("/healthz/ready", get(ready))
}

async fn get_metrics(State(app): State<App>) -> Result<Response, Problem> {
    let mut samples = metrics().samples();
    samples.extend(app.states().await);
    let text = render(samples).map_err(|error| {
        Problem::new(
            Code::Internal,
            format!("metrics cannot be written: {error}"),
        )
    })?;
    Ok(([(CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}

/// The event loop answers.
async fn live() -> &'static str {
    "live\n"
}

/// Whether approvals can be given, and what is in the way.
#[derive(Debug, Serialize)]
struct Readiness {
    ready: bool,
    audit: Part,
    tokens: Vec<TokenPart>,
}

/// Something that has to work.
#[derive(Debug, Serialize)]
struct Part {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// A token; one that is not ready stops nothing but itself.
#[derive(Debug, Serialize)]
struct TokenPart {
    uri: String,
    state: TokenState,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Ready means: records can be written, and a token signs or none is configured.
async fn ready(State(app): State<App>) -> Response {
    let audit = app.0.audit.ready();
    let tokens = app.0.devices.tokens().await;
    // A released one signs as soon as it is asked to.
    let can = |state| matches!(state, TokenState::Ready | TokenState::Released);
    let signs = tokens.is_empty() || tokens.iter().any(|token| can(token.state));
    let readiness = Readiness {
        ready: audit.is_ok() && signs,
        audit: Part {
            ready: audit.is_ok(),
            reason: audit.err().map(|error| error.to_string()),
        },
        tokens: tokens
            .into_iter()
            .map(|token| TokenPart {
                uri: token.uri,
                state: token.state,
                reason: token.reason,
            })
            .collect(),
    };
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness)).into_response()
}

impl App {
    /// What is a state rather than an event.
    async fn states(&self) -> Vec<Sample> {
        let parts = &self.0;
        let mut samples = vec![
            Sample::counter(&names::AUDIT_RECORDS, [], parts.audit.records()),
            Sample::gauge(&names::AUDIT_LAG, [], signed(parts.audit.waiting())),
            Sample::gauge(
                &names::AUDIT_WRITABLE,
                [],
                parts.audit.ready().is_ok().into(),
            ),
        ];
        for module in parts.devices.modules().await {
            let labels = [("module", module.name)];
            samples.push(Sample::gauge(&names::MODULE_UP, labels, module.up.into()));
        }
        for token in parts.devices.tokens().await {
            samples.extend(token_samples(&token));
        }
        for installed in parts.registry.snapshot().certificates() {
            let labels = [
                ("account", installed.identity.account.to_string()),
                ("operator", installed.identity.operator.to_string()),
                ("fingerprint", installed.fingerprint().to_owned()),
            ];
            let expiry = installed.certificate().not_after().as_second();
            samples.push(Sample::gauge(&names::CERTIFICATE_EXPIRY, labels, expiry));
        }
        for client in parts.clients.list() {
            let labels = [("client", client.name.to_string())];
            let expiry = client.expires.as_second();
            samples.push(Sample::gauge(&names::CLIENT_EXPIRY, labels, expiry));
        }
        samples
    }
}

fn token_samples(token: &TokenStatus) -> impl Iterator<Item = Sample> {
    let (module, name) = (token.id.module.clone(), token.uri.clone());
    let labels = move |state: &str| {
        [
            ("module", module.clone()),
            ("token", name.clone()),
            ("state", state.to_owned()),
        ]
    };
    let own_labels = labels.clone();
    let state = token.state;
    let states = STATES.into_iter().map(move |(one, text)| {
        Sample::gauge(&names::TOKEN_STATE, own_labels(text), (one == state).into())
    });
    let pin = pin_state(&token.flags);
    let pins = PIN_STATES
        .into_iter()
        .map(move |one| Sample::gauge(&names::TOKEN_PIN_STATE, labels(one), (one == pin).into()));
    states.chain(pins)
}

/// The states of a token as everything else spells them.
const STATES: [(TokenState, &str); 9] = [
    (TokenState::Absent, "absent"),
    (TokenState::LockedOut, "locked-out"),
    (TokenState::PinNeeded, "pin-needed"),
    (TokenState::FinalTry, "final-try"),
    (TokenState::Ready, "ready"),
    (TokenState::Released, "released"),
    (TokenState::Degraded, "degraded"),
    (TokenState::Respawning, "respawning"),
    (TokenState::Down, "down"),
];

const PIN_STATES: [&str; 5] = ["ok", "not-set", "count-low", "final-try", "locked"];

/// What the token's flags say of its PIN.
fn pin_state(flags: &TokenFlags) -> &'static str {
    if flags.pin_locked {
        "locked"
    } else if flags.pin_final_try {
        "final-try"
    } else if flags.pin_count_low {
        "count-low"
    } else if flags.pin_initialized {
        "ok"
    } else {
        "not-set"
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_spelt_as_in_the_interface() {
        for (state, text) in STATES {
            assert_eq!(serde_json::to_value(state).unwrap(), text);
        }
    }
}
