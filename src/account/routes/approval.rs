//! What an administrator has to approve before the service does what was asked of it.

use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::operations::OperationView;
use crate::account::store::operations::{Challenge, Operation};
use crate::api::extract::Json;

/// An operation of the service that an administrator has to approve.
#[derive(Debug, Serialize, ToSchema)]
pub struct ToApprove {
    /// The operation.
    pub operation: OperationView,
    /// The challenge for the daemon, JWS compact.
    pub challenge: String,
    /// When the challenge expires, RFC 3339.
    pub expires_at: String,
}

/// The answer of routes that only ask for an approval: 201 and what is to be approved.
pub(super) type Asked = (StatusCode, Json<ToApprove>);

impl ToApprove {
    pub(super) fn new((operation, challenge): (Operation, Challenge)) -> Self {
        Self {
            operation: OperationView::new(&operation),
            challenge: challenge.challenge,
            expires_at: challenge.expires_at.to_string(),
        }
    }

    pub(super) fn asked(asked: (Operation, Challenge)) -> Asked {
        (StatusCode::CREATED, Json(Self::new(asked)))
    }
}
