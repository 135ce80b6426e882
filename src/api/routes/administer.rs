//! `/v1/tokens/init` and `/v1/tokens/pin`: making tokens and setting PINs. Control socket only.

use axum::extract::{Extension, State};
use serde::Serialize;
use serde_json::json;

use super::App;
use super::tokens::parse;
use crate::api::caller::Administrator;
use crate::api::extract::Json;
use crate::api::problem::{Code, Problem};
use crate::api::types::{
    AskContents, ChangePin, InitToken, PinSet, TokenContents, TokenMade, UnblockPin,
};
use crate::audit::Event;
use crate::base::ids::RequestId;
use crate::base::pkcs11::TokenId;
use crate::base::secret::Pin;
use crate::device::{DeviceError, HeldKeys, LastTry, NewToken, PinOf};

/// Makes a token and sets its user's PIN; everything it held is destroyed.
///
/// Control socket only.
#[utoipa::path(
    post,
    path = "/v1/tokens/init",
    tag = "tokens",
    request_body = InitToken,
    responses((status = 200, description = "The token is made.", body = TokenMade))
)]
pub(super) async fn init_token(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(body): Json<InitToken>,
) -> Result<Json<TokenMade>, Problem> {
    let InitToken {
        module,
        uri,
        label,
        so_pin,
        user_pin,
        erase_keys,
        last_try,
    } = body;
    let target = uri.as_deref().map(parse).transpose()?;
    let asked = json!({
        "module": module,
        "target": target,
        "label": label,
        "erase_keys": erase_keys,
        "by": { "uid": administrator.uid },
    });
    // On record first: what it destroys does not come back.
    record(&app, "token-init-asked", &request_id, &asked).await?;
    let new = NewToken {
        module,
        target,
        label,
        so_pin,
        user_pin,
        keys: if erase_keys {
            HeldKeys::Destroy
        } else {
            HeldKeys::Keep
        },
        last_try: last(last_try),
    };
    let outcome = app.0.devices.init_token(new).await;
    let ended = json!({
        "token": outcome.as_ref().ok().map(|made| made.token.to_string()),
        "by": { "uid": administrator.uid },
        "refused": outcome.as_ref().err().map(ToString::to_string),
    });
    record(&app, "token-init", &request_id, &ended).await?;
    let made = outcome?;
    Ok(Json(TokenMade {
        uri: made.token.to_string(),
        token: made.token,
        state: made.state,
    }))
}

/// What initializing a token would destroy, as far as it shows without a login.
///
/// Control socket only. Refuses a token that the daemon uses.
#[utoipa::path(
    post,
    path = "/v1/tokens/contents",
    tag = "tokens",
    request_body = AskContents,
    responses((status = 200, description = "What it holds.", body = TokenContents))
)]
pub(super) async fn contents(
    State(app): State<App>,
    _administrator: Administrator,
    Json(body): Json<AskContents>,
) -> Result<Json<TokenContents>, Problem> {
    let target = parse(&body.uri)?;
    let devices = &app.0.devices;
    let (objects, count) = devices
        .held_objects(body.module.as_deref(), &target)
        .await?;
    Ok(Json(TokenContents { count, objects }))
}

/// Gives the user of a token a new PIN in exchange for the old one, which is tried once.
///
/// Control socket only.
#[utoipa::path(
    post,
    path = "/v1/tokens/pin",
    tag = "tokens",
    request_body = ChangePin,
    responses((status = 200, description = "The PIN is the new one.", body = PinSet))
)]
pub(super) async fn change_pin(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(body): Json<ChangePin>,
) -> Result<Json<PinSet>, Problem> {
    let token = app.0.devices.select(&parse(&body.uri)?).await?;
    let by = PinOf::User(body.pin);
    let outcome = set(&app, &token, by, body.new_pin, body.last_try).await;
    let kind = "token-pin-change";
    ended(&app, kind, &request_id, &administrator, token, outcome).await
}

/// Gives the user of a token a new PIN by the security officer's, which is tried once.
///
/// Control socket only. For a PIN that is locked or forgotten.
#[utoipa::path(
    post,
    path = "/v1/tokens/pin/unblock",
    tag = "tokens",
    request_body = UnblockPin,
    responses((status = 200, description = "The PIN is the new one.", body = PinSet))
)]
pub(super) async fn unblock_pin(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(body): Json<UnblockPin>,
) -> Result<Json<PinSet>, Problem> {
    let token = app.0.devices.select(&parse(&body.uri)?).await?;
    let by = PinOf::SecurityOfficer(body.so_pin);
    let outcome = set(&app, &token, by, body.new_pin, body.last_try).await;
    let kind = "token-pin-unblock";
    ended(&app, kind, &request_id, &administrator, token, outcome).await
}

async fn set(
    app: &App,
    token: &TokenId,
    by: PinOf,
    new: Option<Pin>,
    last_try: bool,
) -> Result<(), DeviceError> {
    let devices = &app.0.devices;
    devices.set_pin(token, by, new, last(last_try)).await
}

async fn ended(
    app: &App,
    kind: &'static str,
    request_id: &RequestId,
    administrator: &Administrator,
    token: TokenId,
    outcome: Result<(), DeviceError>,
) -> Result<Json<PinSet>, Problem> {
    let facts = json!({
        "token": token.to_string(),
        "by": { "uid": administrator.uid },
        "refused": outcome.as_ref().err().map(ToString::to_string),
    });
    record(app, kind, request_id, &facts).await?;
    outcome.map_err(|error| {
        let problem = Problem::from(error);
        // The daemon goes on with the PIN it has, if it has one: nothing is there to be unlocked.
        match problem.code() {
            Code::PinWrong => problem.with_action(
                "Nothing was changed, and a try is spent. Check the PIN, and give it again.",
            ),
            Code::PinFinalTry => problem.with_action(
                "If you are sure of the PIN, give it again with `--last-try`; a wrong one locks \
                 the token.",
            ),
            _ => problem,
        }
    })?;
    Ok(Json(PinSet { token }))
}

async fn record(
    app: &App,
    kind: &'static str,
    request_id: &RequestId,
    facts: &impl Serialize,
) -> Result<(), Problem> {
    let event = Event::new(kind, Some(request_id.clone()), facts)?;
    app.0.audit.append(event)?.durable().await?;
    Ok(())
}

fn last(may_be_used: bool) -> LastTry {
    if may_be_used {
        LastTry::Use
    } else {
        LastTry::Keep
    }
}
