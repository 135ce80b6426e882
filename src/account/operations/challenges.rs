//! Challenges: what an operator is asked to approve, signed by the service.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::approvers::may_approve;
use super::{OperationError, Operations, find_at};
use crate::account::idempotency::{self, Idempotency, kept};
use crate::account::signer::SignError;
use crate::account::store::operations::{self, Challenge, Effect, Operation, State};
use crate::account::store::{Tx, certificates};
use crate::base::ids::{OperationId, OperatorId, RequestId};
use crate::policy::Purpose;
use crate::statement::ChallengeClaims;

/// Challenges that one operation may have.
pub(super) const CHALLENGES: i64 = 100;

impl Operations {
    /// A further challenge for an operation that still waits.
    pub async fn challenge(
        &self,
        id: &OperationId,
        operator: &OperatorId,
        request: &RequestId,
    ) -> Result<Challenge, OperationError> {
        let (operation, challenge) = &self.draft_challenge(id, operator).await?;
        self.store
            .transaction("add challenge", move |tx| {
                Box::pin(self.keep_challenge(tx, operation, challenge, request))
            })
            .await?;
        Ok(challenge.clone())
    }

    /// The challenge of an operation that still waits, for somebody who proves nothing: the one
    /// before, while half of its life is left, and only then another one. So whoever asks again and
    /// again has nothing signed and uses nothing up.
    pub async fn challenge_again(
        &self,
        id: &OperationId,
        operator: &OperatorId,
        request: &RequestId,
    ) -> Result<Challenge, OperationError> {
        let now = self.clock.now();
        let until = now + Duration::from_secs(self.rules.challenge_lifetime_seconds / 2);
        let good = self
            .store
            .read("find challenge", move |tx| {
                Box::pin(async move {
                    let good = operations::good_challenge(tx, id, operator, until).await?;
                    Ok::<_, OperationError>(good)
                })
            })
            .await?;
        if let Some(good) = good {
            return Ok(good);
        }
        let (operation, challenge) = &self.draft_challenge(id, operator).await?;
        self.store
            .transaction("add challenge", move |tx| {
                Box::pin(async move {
                    certificates::take_turn(tx, operation.statement.account()).await?;
                    // Somebody else may have been quicker.
                    let good = operations::good_challenge(tx, id, operator, until).await?;
                    if let Some(good) = good {
                        return Ok(good);
                    }
                    self.keep_challenge(tx, operation, challenge, request)
                        .await?;
                    Ok::<_, OperationError>(challenge.clone())
                })
            })
            .await
    }

    /// A further challenge of an operation of the platform, and the answer to it as `answer` writes
    /// it; with an idempotency key the answer is kept, as [`Operations::create`] does.
    pub async fn challenge_for_platform(
        &self,
        id: &OperationId,
        operator: &OperatorId,
        idempotency: Option<Idempotency>,
        request: &RequestId,
        answer: impl Fn(&Challenge) -> Result<String, serde_json::Error> + Send + Sync,
    ) -> Result<String, OperationError> {
        let idempotency = idempotency.as_ref();
        if let Some(kept) = self.kept(idempotency).await? {
            return Ok(kept);
        }
        self.find_for_platform(id).await?;
        let (operation, challenge) = &self.draft_challenge(id, operator).await?;
        let body = &answer(challenge)?;
        self.store
            .transaction("add challenge", move |tx| {
                Box::pin(async move {
                    if let Some(kept) = kept::<OperationError>(tx, idempotency).await? {
                        return Ok(kept);
                    }
                    idempotency::keep(tx, idempotency, 201, body, challenge.created_at).await?;
                    self.keep_challenge(tx, operation, challenge, request)
                        .await?;
                    Ok::<_, OperationError>(body.clone())
                })
            })
            .await
    }

    /// A challenge for an operation of the service that waits already. Anybody may ask for a renewal.
    pub(super) async fn further(
        &self,
        effect: Effect,
        id: &OperationId,
        operator: &OperatorId,
        request: &RequestId,
    ) -> Result<Challenge, OperationError> {
        match effect {
            Effect::RenewCertificate => self.challenge_again(id, operator, request).await,
            _ => self.challenge(id, operator, request).await,
        }
    }

    /// Checks that `operator` may be asked and signs a challenge; nothing is kept yet.
    async fn draft_challenge(
        &self,
        id: &OperationId,
        operator: &OperatorId,
    ) -> Result<(Operation, Challenge), OperationError> {
        let now = self.clock.now();
        let operation = self
            .store
            .read("find operation", move |tx| {
                Box::pin(async move {
                    let operation = find_at(tx, id, now).await?;
                    if operation.state != State::Created {
                        return Err(OperationError::State {
                            state: operation.state,
                        });
                    }
                    let accepted = operations::approvals(tx, id).await?;
                    may_approve(tx, &operation, &accepted, operator).await?;
                    Ok(operation)
                })
            })
            .await?;
        let challenge = self.sign_challenge(&operation, operator).await?;
        Ok((operation, challenge))
    }

    async fn keep_challenge(
        &self,
        tx: &mut Tx<'_>,
        operation: &Operation,
        challenge: &Challenge,
        request: &RequestId,
    ) -> Result<(), OperationError> {
        if operations::challenges(tx, &operation.id).await? >= CHALLENGES {
            return Err(OperationError::TooManyChallenges);
        }
        operations::insert_challenge(tx, challenge).await?;
        let facts = json!({
            "operation": operation.id,
            "operator": challenge.operator,
            "challenge_jti": challenge.jti,
        });
        let account = operation.statement.account();
        self.records
            .note(tx, account, "challenge-made", request, facts)
            .await
    }

    pub(super) async fn sign_challenge(
        &self,
        operation: &Operation,
        operator: &OperatorId,
    ) -> Result<Challenge, OperationError> {
        let now = self.clock.now();
        let lifetime = self.rules.challenge_lifetime_seconds;
        let claims = ChallengeClaims::new(
            self.challenge_key.origin().clone(),
            &operation.statement.for_operator(operator.clone()),
            operation.origin.clone(),
            now,
            i64::try_from(lifetime).unwrap_or(i64::MAX),
        );
        let input = claims
            .signing_input(self.challenge_key.kid())
            .map_err(SignError::from)?;
        let challenge = self.challenge_key.sign(Purpose::Challenge, input).await?;
        Ok(Challenge {
            jti: claims.jti,
            operation: operation.id.clone(),
            operator: operator.clone(),
            challenge,
            created_at: now,
            expires_at: Timestamp::from_second(claims.exp).unwrap_or(now),
        })
    }
}
