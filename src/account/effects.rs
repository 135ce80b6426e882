//! What the service itself does once an operation of its own is approved, in the transaction that
//! approves: either both happen or neither.

use jiff::Timestamp;
use serde_json::json;

use super::issuing::RevocationReason;
use super::operations::OperationError;
use super::records::Records;
use super::store::notices::Audience;
use super::store::operations::{Approval, Effect, Operation};
use super::store::{Tx, certificates, codes};
use crate::base::ids::{Jti, RequestId};

/// Does `effect` to `on`.
#[allow(clippy::too_many_arguments)] // The transaction, what is done, and who approved it.
pub(super) async fn apply(
    tx: &mut Tx<'_>,
    records: &Records,
    operation: &Operation,
    effect: Effect,
    on: &str,
    approval: &Approval,
    request: &RequestId,
    now: Timestamp,
) -> Result<(), OperationError> {
    let account = operation.statement.account();
    match effect {
        Effect::DeleteCertificate => {
            let reason = RevocationReason::CessationOfOperation.as_str();
            let by = approval.operator.as_str();
            // One that was revoked meanwhile is as gone as was asked.
            if certificates::revoke(tx, on, reason, by, now).await? {
                let body = json!({
                    "serial": on,
                    "by": by,
                    "reason": reason,
                    "operation": operation.id,
                });
                let audience = &[Audience::Administrators];
                records
                    .tell::<OperationError>(
                        tx,
                        account,
                        audience,
                        "certificate-revoked",
                        request,
                        body,
                    )
                    .await?;
            }
            Ok(())
        }
        Effect::ReleaseTicket => {
            let jti: Jti = on.parse().map_err(|_| OperationError::Effect {
                reason: "the installation is not known",
            })?;
            if !codes::release_ticket(tx, &jti, &approval.operator, now).await? {
                return Err(OperationError::Effect {
                    reason: "the installation is over",
                });
            }
            let body = json!({ "ticket": on, "by": approval.operator, "operation": operation.id });
            records
                .note(tx, account, "installation-released", request, body)
                .await
        }
        // The ticket is signed and given to whoever hands in the approval.
        Effect::RenewCertificate => Ok(()),
        Effect::DecideRequest | Effect::AddRecipient => Err(OperationError::Effect {
            reason: "it is not known here",
        }),
    }
}
