//! How an operation ends without its approvals: taken back, or out of time.

use serde_json::json;

use super::{OperationError, Operations, find_at, of_platform, state_now};
use crate::account::store::accounts::Operator;
use crate::account::store::operations::{self, Operation, State};
use crate::base::ids::{OperationId, RequestId};

/// Who takes an operation back.
#[derive(Debug, Clone, Copy)]
pub enum Canceller<'a> {
    /// The platform, with the key of this name: what the platform created.
    Platform(&'a str),
    /// A person of the account: administrators anything, others what they entered.
    Person(&'a Operator),
}

impl Canceller<'_> {
    /// Whether this is somebody who may take the operation back.
    pub fn check(self, operation: &Operation) -> Result<(), OperationError> {
        match self {
            Self::Platform(_) => of_platform(operation),
            Self::Person(operator) => {
                if operation.statement.account() != &operator.account {
                    return Err(OperationError::Unknown {
                        id: operation.id.clone(),
                    });
                }
                if operator.role.manages() || operation.maker.as_ref() == Some(&operator.id) {
                    return Ok(());
                }
                Err(OperationError::NotYours)
            }
        }
    }

    fn name(self) -> String {
        match self {
            Self::Platform(key) => format!("platform key {key}"),
            Self::Person(operator) => operator.id.to_string(),
        }
    }
}

impl Operations {
    /// Takes an operation of the platform back, by the platform or by a person of the account;
    /// doing so again changes nothing.
    pub async fn cancel(
        &self,
        id: &OperationId,
        by: Canceller<'_>,
        request: &RequestId,
    ) -> Result<Operation, OperationError> {
        let now = self.clock.now();
        self.store
            .transaction("cancel operation", move |tx| {
                Box::pin(async move {
                    let operation = find_at(tx, id, now).await?;
                    by.check(&operation)?;
                    match operation.state {
                        State::Cancelled => return Ok(operation),
                        State::Created => (),
                        state => return Err(OperationError::State { state }),
                    }
                    if !operations::close(tx, id, State::Cancelled, now).await? {
                        return Err(state_now(tx, id, now).await?);
                    }
                    self.records
                        .note::<OperationError>(
                            tx,
                            operation.statement.account(),
                            "operation-cancelled",
                            request,
                            json!({ "operation": id, "by": by.name() }),
                        )
                        .await?;
                    let cancelled = find_at(tx, id, now).await?;
                    self.emit(tx, &cancelled, "operation.cancelled", None, now)
                        .await?;
                    Ok(cancelled)
                })
            })
            .await
    }

    /// Marks operations whose time is over and tells of them; gives their number. Readers take
    /// such operations as expired in any case.
    pub async fn expire(&self) -> Result<u64, OperationError> {
        let now = self.clock.now();
        let request = &RequestId::random();
        self.store
            .transaction("expire operations", move |tx| {
                Box::pin(async move {
                    let mut expired = 0;
                    for operation in operations::overdue(tx, now, 1000).await? {
                        let at = operation.expires_at;
                        if operations::close(tx, &operation.id, State::Expired, at).await? {
                            expired += 1;
                            let operation = find_at(tx, &operation.id, now).await?;
                            let facts = json!({
                                "operation": operation.id,
                                "expired_at": at.to_string(),
                            });
                            let account = operation.statement.account();
                            self.records
                                .note::<OperationError>(
                                    tx,
                                    account,
                                    "operation-expired",
                                    request,
                                    facts,
                                )
                                .await?;
                            self.emit(tx, &operation, "operation.expired", None, now)
                                .await?;
                        }
                    }
                    Ok(expired)
                })
            })
            .await
    }
}
