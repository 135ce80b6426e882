//! `/v1/status`.

use axum::extract::State;

use super::App;
use crate::api::caller::Identified;
use crate::api::extract::Json;
use crate::api::types::{Addresses, AuditStatus, Status};
use crate::device::TokenState;

/// The daemon in a few numbers.
#[utoipa::path(
    get,
    path = "/v1/status",
    tag = "daemon",
    responses((status = 200, description = "The daemon is up.", body = Status))
)]
pub(super) async fn get_status(State(app): State<App>, identified: Identified) -> Json<Status> {
    let parts = &app.0;
    let tokens = parts.devices.tokens().await;
    let present = tokens
        .iter()
        .filter(|token| !matches!(token.state, TokenState::Absent | TokenState::Down))
        .count();
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        computer: parts.registry.computer().clone(),
        addresses: Addresses {
            native: parts.native.iter().map(ToString::to_string).collect(),
            metrics: parts.metrics.iter().map(ToString::to_string).collect(),
            origins: parts
                .origins
                .load()
                .iter()
                .filter(|origin| identified.page.as_ref().is_none_or(|page| page == *origin))
                .map(ToString::to_string)
                .collect(),
            browser: parts.browser.iter().map(ToString::to_string).collect(),
        },
        audit: AuditStatus {
            records: parts.audit.records(),
            writable: parts.audit.ready().is_ok(),
        },
        tokens: present,
        certificates: parts.registry.snapshot().certificates().len(),
        configuration: parts.configuration.status(),
    })
}
