//! New operations, each with its first challenge.

use std::time::Duration;

use serde_json::json;

use super::approvers::{may_approve, needed};
use super::{OperationError, Operations};
use crate::account::idempotency::{self, Idempotency, kept};
use crate::account::store::operations::{self, Challenge, Creator, Effect, Operation, State};
use crate::account::store::{StoreError, Tx, certificates};
use crate::base::ids::{AccountId, OperationId, OperatorId, RequestId};
use crate::statement::{Facts, Kind, Origin, Statement};

/// A new operation as the platform asks for it.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// Its kind.
    pub kind: Kind,
    /// Whose money or rights.
    pub account: AccountId,
    /// Who is to approve.
    pub operator: OperatorId,
    /// What.
    pub facts: Facts,
    /// The page that may relay the challenge.
    pub origin: Option<Origin>,
    /// Who entered it, where that is known.
    pub maker: Option<OperatorId>,
    /// Who asks for it, and what for.
    pub creator: Creator,
}

impl Operations {
    /// Creates an operation with its first challenge and gives the answer to the platform, as
    /// `answer` writes it. With an idempotency key the answer is kept: the same request gets it
    /// again, another one with the same key is refused.
    pub async fn create(
        &self,
        new: NewOperation,
        idempotency: Option<Idempotency>,
        request: &RequestId,
        answer: impl Fn(&Operation, &Challenge) -> Result<String, serde_json::Error> + Send + Sync,
    ) -> Result<String, OperationError> {
        if let Some(kept) = self.kept(idempotency.as_ref()).await? {
            return Ok(kept);
        }
        let (operation, challenge) = &self.draft(new).await?;
        let body = &answer(operation, challenge)?;
        let idempotency = idempotency.as_ref();
        self.store
            .transaction("create operation", move |tx| {
                Box::pin(async move {
                    if let Some(kept) = kept::<OperationError>(tx, idempotency).await? {
                        return Ok(kept);
                    }
                    idempotency::keep(tx, idempotency, 201, body, operation.created_at).await?;
                    self.keep(tx, operation, challenge, request).await?;
                    Ok::<_, OperationError>(body.clone())
                })
            })
            .await
    }

    /// Creates an operation of the service itself, with its first challenge.
    pub async fn begin(
        &self,
        new: NewOperation,
        request: &RequestId,
    ) -> Result<(Operation, Challenge), OperationError> {
        let (operation, challenge) = &self.draft(new).await?;
        self.store
            .transaction("create operation", move |tx| {
                Box::pin(self.keep(tx, operation, challenge, request))
            })
            .await?;
        Ok((operation.clone(), challenge.clone()))
    }

    /// As [`Operations::begin`]; but where an operation to the same end waits already, that one
    /// with a further challenge. There is never a second, however many ask at once.
    pub async fn begin_once(
        &self,
        new: NewOperation,
        request: &RequestId,
    ) -> Result<(Operation, Challenge), OperationError> {
        let Creator::Service(effect, on) = new.creator.clone() else {
            return self.begin(new, request).await;
        };
        let (on, now) = (&on, self.clock.now());
        let operator = new.operator.clone();
        let waiting = self
            .store
            .read("find operation", move |tx| {
                Box::pin(operations::open_effect(tx, effect, on, now))
            })
            .await
            .map_err(|error: StoreError| error)?;
        let mut used_up = None;
        if let Some(waiting) = waiting {
            match self.further(effect, &waiting.id, &operator, request).await {
                Ok(challenge) => return Ok((waiting, challenge)),
                // It has had all that it may have; another one has not.
                Err(OperationError::TooManyChallenges) if effect == Effect::RenewCertificate => {
                    used_up = Some(waiting.id);
                }
                Err(error) => return Err(error),
            }
        }
        let used_up = used_up.as_ref();
        let (operation, challenge) = &self.draft(new).await?;
        let faster = self
            .store
            .transaction("create operation", move |tx| {
                Box::pin(async move {
                    certificates::hold_issuing(tx, operation.statement.account()).await?;
                    let faster = operations::open_effect(tx, effect, on, now).await?;
                    let faster = faster.filter(|open| Some(&open.id) != used_up);
                    if faster.is_none() {
                        self.keep(tx, operation, challenge, request).await?;
                    }
                    Ok::<_, OperationError>(faster)
                })
            })
            .await?;
        let Some(faster) = faster else {
            return Ok((operation.clone(), challenge.clone()));
        };
        let challenge = self.further(effect, &faster.id, &operator, request).await?;
        Ok((faster, challenge))
    }

    /// Checks what is asked and signs the first challenge; nothing is kept yet.
    async fn draft(&self, new: NewOperation) -> Result<(Operation, Challenge), OperationError> {
        let now = self.clock.now();
        let statement = Statement::new(new.kind, new.account, new.operator, new.facts)?;
        let mut operation = Operation {
            id: OperationId::random(),
            statement,
            origin: new.origin,
            state: State::Created,
            creator: new.creator,
            maker: new.maker,
            needed: 1,
            created_at: now,
            expires_at: now + Duration::from_secs(self.rules.lifetime_seconds),
            closed_at: None,
        };
        operation.needed = self.check_operator(&operation).await?;
        let operator = operation.statement.operator();
        let challenge = self.sign_challenge(&operation, operator).await?;
        Ok((operation, challenge))
    }

    async fn keep(
        &self,
        tx: &mut Tx<'_>,
        operation: &Operation,
        challenge: &Challenge,
        request: &RequestId,
    ) -> Result<(), OperationError> {
        operations::insert(tx, operation).await?;
        operations::insert_challenge(tx, challenge).await?;
        let mut facts = json!({
            "operation": operation.id,
            "statement": operation.statement.to_json(),
            "maker": operation.maker,
            "needed": operation.needed,
            "challenge_jti": challenge.jti,
        });
        match &operation.creator {
            Creator::Platform(key) => facts["platform_key"] = json!(key),
            Creator::Service(effect, on) => {
                facts["effect"] = json!(effect.as_str());
                facts["effect_on"] = json!(on);
            }
        }
        let account = operation.statement.account();
        self.records
            .note(tx, account, "operation-created", request, facts)
            .await
    }

    /// Whether there is such an operator, and how many must approve.
    async fn check_operator(&self, operation: &Operation) -> Result<i64, OperationError> {
        self.store
            .read("find operator", move |tx| {
                Box::pin(async move {
                    let statement = &operation.statement;
                    let account = statement.account();
                    if !operations::operator_exists(tx, account, statement.operator()).await? {
                        return Err(OperationError::OperatorUnknown {
                            account: account.clone(),
                            operator: statement.operator().clone(),
                        });
                    }
                    let needed = needed(tx, operation).await?;
                    may_approve(tx, operation, &[], statement.operator()).await?;
                    Ok(needed)
                })
            })
            .await
    }
}
