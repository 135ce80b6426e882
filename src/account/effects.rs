//! What the service itself does once an operation of its own is approved, in the transaction that
//! approves: either both happen or neither.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::issuing::RevocationReason;
use super::operations::OperationError;
use super::records::Records;
use super::recovery::{self, RequestError};
use super::revocation::Revocation;
use super::secrets::{self, TakeEffectError};
use super::sms::{Outgoing, Texts};
use super::store::operations::{Approval, Effect, Operation};
use super::store::recovery::{Decision, RequestState};
use super::store::{Tx, certificates, codes, recovery as store_recovery, secrets as store_secrets};
use crate::base::ids::{Jti, RequestId};

/// What effects need of the service.
pub(super) struct Context<'a> {
    /// The audit trail.
    pub(super) records: &'a Records,
    /// Texts to people.
    pub(super) texts: &'a Texts,
    /// How long a granted request waits before it takes effect.
    pub(super) delay: Duration,
}

/// Does `effect` to `on`; gives the texts to be sent once the transaction is committed.
#[allow(clippy::too_many_arguments)] // The transaction, what is done, and who approved it.
pub(super) async fn apply(
    tx: &mut Tx<'_>,
    context: &Context<'_>,
    operation: &Operation,
    effect: Effect,
    on: &str,
    approval: &Approval,
    request: &RequestId,
    now: Timestamp,
) -> Result<Vec<Outgoing>, OperationError> {
    let records = context.records;
    let account = operation.statement.account();
    match effect {
        Effect::DeleteCertificate => {
            let found: Vec<_> = certificates::find(tx, on).await?.into_iter().collect();
            let reason = RevocationReason::CessationOfOperation;
            let revocation = Revocation {
                operation: Some(&operation.id),
                ..Revocation::new(reason, approval.operator.as_str())
            };
            // One that was revoked meanwhile is as gone as was asked.
            revocation
                .apply::<OperationError>(tx, records, &found, now, request)
                .await?;
            Ok(Vec::new())
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
                .note::<OperationError>(tx, account, "installation-released", request, body)
                .await?;
            Ok(Vec::new())
        }
        // The ticket is signed and given to whoever hands in the approval.
        Effect::RenewCertificate => Ok(Vec::new()),
        Effect::DecideRequest => {
            let found = store_recovery::find(tx, on)
                .await?
                .ok_or(OperationError::Effect {
                    reason: "the request is not known",
                })?;
            let decision = Decision {
                state: RequestState::Granted,
                by: "administrators",
                reason: None,
                effective_at: Some(now + context.delay),
            };
            let settled = recovery::settle(
                tx,
                context.records,
                context.texts,
                &found,
                &decision,
                now,
                request,
            )
            .await;
            match settled {
                Ok(texts) => Ok(texts),
                Err(RequestError::Audit(error)) => Err(error.into()),
                Err(RequestError::Store(error)) => Err(error.into()),
                Err(_) => Err(OperationError::Effect {
                    reason: "the request was decided meanwhile",
                }),
            }
        }
        Effect::SetSecret => {
            let gone = OperationError::Effect {
                reason: "the secret was withdrawn or replaced meanwhile",
            };
            store_secrets::take_turn(tx, account).await?;
            let Some(secret) = store_secrets::waiting(tx, on, now).await? else {
                return Err(gone);
            };
            let taken = secrets::take_effect(
                tx,
                context.records,
                context.texts,
                &secret,
                Some(&operation.id),
                now,
                request,
            )
            .await;
            match taken {
                Ok(Some((_, texts))) => Ok(texts),
                Ok(None) => Err(gone),
                Err(TakeEffectError::Audit(error)) => Err(error.into()),
                Err(TakeEffectError::Store(error)) => Err(error.into()),
            }
        }
    }
}
