//! `/v1/tokens`: the configured tokens; what changes or tries one is for the control socket.

use axum::extract::{Extension, State};
use serde_json::json;

use super::App;
use crate::api::caller::{Administrator, Identified};
use crate::api::extract::Json;
use crate::api::problem::{Code, Problem};
use crate::api::types::{
    KeyProblem, KeyTested, ReleaseToken, TestToken, TokenReleased, TokenTested, Tokens, Unlock,
    Unlocked,
};
use crate::audit::Event;
use crate::base::ids::RequestId;
use crate::base::pkcs11::{KeyRef, TokenId, TokenUri};
use crate::device::LastTry;
use crate::policy::Caller;
use crate::signing::token_test::{self, KeyTest};

/// The configured tokens and modules as they are now.
#[utoipa::path(
    get,
    path = "/v1/tokens",
    tag = "tokens",
    responses((status = 200, description = "All configured tokens.", body = Tokens))
)]
pub(super) async fn list_tokens(State(app): State<App>, _: Identified) -> Json<Tokens> {
    Json(Tokens {
        tokens: app.0.devices.tokens().await,
        modules: app.0.devices.modules().await,
    })
}

/// Gives a token its PIN, which is tried once.
///
/// Control socket only.
#[utoipa::path(
    post,
    path = "/v1/tokens/unlock",
    tag = "tokens",
    request_body = Unlock,
    responses((status = 200, description = "The token is unlocked.", body = Unlocked))
)]
pub(super) async fn unlock_token(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(Unlock { uri, pin, last_try }): Json<Unlock>,
) -> Result<Json<Unlocked>, Problem> {
    let uri = parse(&uri)?;
    let token = app.0.devices.select(&uri).await?;
    let last_try = if last_try {
        LastTry::Use
    } else {
        LastTry::Keep
    };
    let devices = &app.0.devices;
    let outcome = match pin {
        Some(pin) => devices.unlock(&token, pin, last_try).await,
        None => devices.unlock_by_asking(&token, last_try).await,
    };
    let event = Event::new(
        "token-unlock",
        Some(request_id),
        &json!({
            "token": token.to_string(),
            "by": { "uid": administrator.uid },
            "outcome": outcome.as_ref().ok(),
            "refused": outcome.as_ref().err().map(ToString::to_string),
        }),
    )?;
    app.0.audit.append(event)?.durable().await?;
    Ok(Json(Unlocked { outcome: outcome? }))
}

/// Has keys of a token sign a fixed text, which approves nothing, and verifies the signatures.
///
/// Control socket only.
#[utoipa::path(
    post,
    path = "/v1/tokens/test",
    tag = "tokens",
    request_body = TestToken,
    responses((status = 200, description = "How each key did.", body = TokenTested))
)]
pub(super) async fn test_token(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(TestToken { uri }): Json<TestToken>,
) -> Result<Json<TokenTested>, Problem> {
    let uri = parse(&uri)?;
    let (devices, audit) = (&app.0.devices, &app.0.audit);
    let token = devices.select(&uri).await?;
    let caller = Caller::Unix {
        uid: administrator.uid,
    };
    let tests = token_test::run(devices, audit, &caller, &request_id, &token, &uri).await?;
    let keys = tests.into_iter().map(|test| tested(&token, test)).collect();
    Ok(Json(TokenTested { token, keys }))
}

/// Leaves a token to other programs until a request names it.
///
/// Control socket only. Other tokens of the same module are interrupted for a moment.
#[utoipa::path(
    post,
    path = "/v1/tokens/release",
    tag = "tokens",
    request_body = ReleaseToken,
    responses((status = 200, description = "Other programs can use it.", body = TokenReleased))
)]
pub(super) async fn release_token(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(ReleaseToken { uri }): Json<ReleaseToken>,
) -> Result<Json<TokenReleased>, Problem> {
    let uri = parse(&uri)?;
    let token = app.0.devices.select(&uri).await?;
    let outcome = app.0.devices.release(&token).await;
    let event = Event::new(
        "token-release",
        Some(request_id),
        &json!({
            "token": token.to_string(),
            "by": { "uid": administrator.uid },
            "refused": outcome.as_ref().err().map(ToString::to_string),
        }),
    )?;
    app.0.audit.append(event)?.durable().await?;
    outcome?;
    Ok(Json(TokenReleased { token }))
}

pub(super) fn parse(uri: &str) -> Result<TokenUri, Problem> {
    uri.parse()
        .map_err(|error| Problem::new(Code::Malformed, format!("uri: {error}")))
}

fn tested(token: &TokenId, test: KeyTest) -> KeyTested {
    let uri = match test.id {
        Some(id) => KeyRef {
            token: token.clone(),
            id,
        }
        .to_string(),
        None => token.to_string(),
    };
    KeyTested {
        uri,
        label: test.label,
        key_type: test.spec,
        scheme: test.scheme,
        outcome: test.outcome,
        microseconds: test
            .took
            .map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
        problem: test.error.map(|error| {
            let problem = Problem::from(error);
            KeyProblem {
                code: problem.code(),
                detail: problem.detail().to_owned(),
                action: problem.action().to_owned(),
            }
        }),
    }
}
