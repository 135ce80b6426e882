//! How many operators must approve an operation, and who may be one of them.

use super::{OperationError, Operations};
use crate::account::store::accounts;
use crate::account::store::operations::{Approval, Creator, Effect, Operation};
use crate::account::store::{StoreError, Tx};
use crate::base::ids::OperatorId;

impl Operations {
    /// Whether an approval of this operator would be taken: what [`Operations::challenge`] checks.
    pub async fn may_approve(
        &self,
        operation: &Operation,
        approvals: &[Approval],
        operator: &OperatorId,
    ) -> Result<bool, OperationError> {
        let allowed = self
            .store
            .read("look at approver", move |tx| {
                Box::pin(async move {
                    Ok::<_, OperationError>(may_approve(tx, operation, approvals, operator).await)
                })
            })
            .await?;
        match allowed {
            Ok(()) => Ok(true),
            Err(OperationError::Store(error)) => Err(error.into()),
            Err(_) => Ok(false),
        }
    }
}

/// How many operators must approve: by the account's rules for what the platform asks, by its
/// quorum for what replaces a business representative's decision, by the rule for its kind for a
/// secret.
pub(super) async fn needed(tx: &mut Tx<'_>, operation: &Operation) -> Result<i64, StoreError> {
    let statement = &operation.statement;
    match operation.creator {
        Creator::Platform(_) => {
            let (currency, amount) = match statement.amount() {
                Some(money) => (money.currency(), money.minor_units()),
                None => ("", 0),
            };
            let kind = statement.kind().name();
            accounts::approvals_needed(tx, statement.account(), kind, currency, amount).await
        }
        Creator::Service(Effect::SetSecret, _) => {
            let kind = statement.kind().name();
            accounts::approvals_needed(tx, statement.account(), kind, "", 0).await
        }
        Creator::Service(Effect::DecideRequest, _) => {
            Ok(accounts::account(tx, statement.account())
                .await?
                .map_or(1, |account| account.quorum.max(1)))
        }
        Creator::Service(..) => Ok(1),
    }
}

/// Whether `operator` may approve: the one the operation names, or with four eyes another one;
/// never the one who entered it, nobody twice, and administrators only where that is asked.
pub(super) async fn may_approve(
    tx: &mut Tx<'_>,
    operation: &Operation,
    accepted: &[Approval],
    operator: &OperatorId,
) -> Result<(), OperationError> {
    if operation.maker.as_ref() == Some(operator) {
        return Err(OperationError::Maker {
            operator: operator.clone(),
        });
    }
    if accepted.iter().any(|earlier| earlier.operator == *operator) {
        return Err(OperationError::ApprovedAlready {
            operator: operator.clone(),
        });
    }
    // Some things are for any administrator, however many it takes.
    let shared = matches!(operation.creator, Creator::Service(effect, _) if effect.is_shared());
    if operation.needed == 1 && !shared && operation.statement.operator() != operator {
        return Err(OperationError::OtherOperator);
    }
    let account = operation.statement.account();
    let known = accounts::operator(tx, account, operator)
        .await?
        .ok_or_else(|| OperationError::OperatorUnknown {
            account: account.clone(),
            operator: operator.clone(),
        })?;
    match operation.creator {
        Creator::Service(effect, _) if effect.is_for_administrators() && !known.role.manages() => {
            Err(OperationError::NotAdministrator {
                operator: operator.clone(),
            })
        }
        _ => Ok(()),
    }
}
