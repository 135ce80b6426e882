//! `/v1/tokens`: the configured tokens; unlocking is for the control socket.

use axum::extract::{Extension, State};
use serde_json::json;

use super::App;
use crate::api::caller::{Administrator, Identified};
use crate::api::extract::Json;
use crate::api::problem::{Code, Problem};
use crate::api::types::{Tokens, Unlock, Unlocked};
use crate::audit::Event;
use crate::base::ids::RequestId;
use crate::base::pkcs11::TokenUri;
use crate::device::LastTry;

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
    let uri: TokenUri = uri
        .parse()
        .map_err(|error| Problem::new(Code::Malformed, format!("uri: {error}")))?;
    let token = app.0.devices.select(&uri).await?;
    let last_try = if last_try {
        LastTry::Use
    } else {
        LastTry::Keep
    };
    let outcome = app.0.devices.unlock(&token, pin, last_try).await;
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
