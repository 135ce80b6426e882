//! What the platform is told of its operations: rows written with what they tell of.

use jiff::Timestamp;
use serde_json::json;

use super::{OperationError, Operations};
use crate::account::store::Tx;
use crate::account::store::operations::{self, Approval, Creator, Operation};
use crate::account::store::outbox::{self, Notice};
use crate::base::ids::Jti;

/// Whether webhook notices are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// The platform reads states itself.
    No,
    /// A notice is written with each approval.
    Outbox,
}

impl Operations {
    /// Writes what the platform is told, for each receiver, in the order of the operation.
    pub(super) async fn emit(
        &self,
        tx: &mut Tx<'_>,
        operation: &Operation,
        event: &'static str,
        approval: Option<&Approval>,
        now: Timestamp,
    ) -> Result<(), OperationError> {
        let Creator::Platform(_) = operation.creator else {
            return Ok(());
        };
        let mut receivers: Vec<Option<String>> = outbox::subscriptions(tx)
            .await?
            .into_iter()
            .map(|subscription| Some(subscription.id))
            .collect();
        if self.notify == Notify::Outbox {
            receivers.push(None);
        }
        if receivers.is_empty() {
            return Ok(());
        }
        let place = operations::next_place(tx, &operation.id).await?;
        let id = Jti::random().to_string();
        let mut body = json!({
            "id": id,
            "event": event,
            "place": place,
            "operation": operation.id,
            "state": operation.state,
            "statement": operation.statement.to_json(),
        });
        if let Some(approval) = approval {
            body["operator"] = json!(approval.operator);
            body["certificate"] = json!(approval.certificate);
            body["approved_at"] = json!(approval.accepted_at.to_string());
            body["approval"] = json!(approval.approval);
        }
        let body = serde_json::to_string(&body)?;
        for subscription in receivers {
            let notice = Notice {
                id: Jti::random().to_string(),
                event: id.clone(),
                subscription,
                operation: operation.id.clone(),
                place,
                body: body.clone(),
                attempts: 0,
            };
            outbox::insert(tx, &notice, now).await?;
        }
        Ok(())
    }
}
