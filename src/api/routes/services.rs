//! `/v1/crls` and `/v1/keys`: what an account service signed and a courier hands in.

use axum::extract::{Extension, State};
use serde_json::json;

use super::{App, blocking};
use crate::api::caller::{Administrator, Identified};
use crate::api::events::Happening;
use crate::api::extract::{Jose, Json, MediaType, Raw};
use crate::api::problem::{Code, Problem};
use crate::api::types::{CrlTaken, KeysTaken};
use crate::audit::Event;
use crate::base::ids::RequestId;
use crate::http::media_type;

/// A revocation list.
#[derive(Debug)]
pub(super) struct PkixCrl;

impl MediaType for PkixCrl {
    const NAME: &'static str = media_type::CRL;
}

/// Bytes as they are.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "it stands for the body in the document only")]
struct Der(Vec<u8>);

/// Takes a revocation list of a service that this computer is enrolled with.
///
/// Its signature and number are checked, so any caller may bring it.
#[utoipa::path(
    post,
    path = "/v1/crls",
    tag = "services",
    request_body(
        content = Der,
        content_type = "application/pkix-crl",
        description = "The list, DER (RFC 5280)."
    ),
    responses((status = 200, description = "It is in force.", body = CrlTaken))
)]
pub(super) async fn take_crl(
    State(app): State<App>,
    identified: Identified,
    Extension(request_id): Extension<RequestId>,
    body: Raw<PkixCrl>,
) -> Result<Json<CrlTaken>, Problem> {
    let registry = app.0.registry.clone();
    let (service, number, revoked) = blocking(move || registry.apply_crl(&body.bytes)).await??;
    // First in force, then on record: taking rights away waits for nothing.
    let event = Event::new(
        "crl-taken",
        Some(request_id),
        &json!({
            "service": service,
            "number": number,
            "revoked": revoked,
            "caller": identified.caller.to_string(),
        }),
    )?;
    app.0.events.tell(Happening::CertificatesRevoked {
        service: service.to_string(),
        revoked,
    });
    app.0.audit.append(event)?.durable().await?;
    Ok(Json(CrlTaken {
        service: service.to_string(),
        number,
        revoked,
    }))
}

/// Takes a service's next key set, which one of its pinned keys must have signed.
///
/// It names the issuing authorities, too. Control socket only.
#[utoipa::path(
    post,
    path = "/v1/keys",
    tag = "services",
    request_body(
        content = String,
        content_type = "application/jose",
        description = "The key set as compact JWS of type opcert-keys+jwt."
    ),
    responses((status = 200, description = "The new keys are pinned.", body = KeysTaken))
)]
pub(super) async fn take_keys(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    body: Raw<Jose>,
) -> Result<Json<KeysTaken>, Problem> {
    let compact = String::from_utf8(body.bytes.to_vec())
        .map_err(|_| Problem::new(Code::KeysInvalid, "the key set is not ASCII"))?;
    let event = Event::new(
        "keys-offered",
        Some(request_id),
        &json!({
            "sha256": crate::base::encoding::hex(&crate::base::encoding::sha256(compact.as_bytes())),
            "by": { "uid": administrator.uid },
        }),
    )?;
    app.0.audit.append(event)?.durable().await?;
    let registry = app.0.registry.clone();
    let now = app.clock().now();
    let (service, changed) = blocking(move || registry.replace_keys(compact.trim(), now)).await??;
    Ok(Json(KeysTaken {
        service: service.to_string(),
        changed,
    }))
}
