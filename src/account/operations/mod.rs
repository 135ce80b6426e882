//! Sensitive operations: the platform creates one, an operator's certificate approves it.
//!
//! An operation moves once, from created to approved, cancelled or expired, by an UPDATE that
//! names the state it leaves. It can have several challenges, one after the other, each a signed
//! statement with a life of two minutes; each challenge yields at most one approval, which is a
//! unique constraint. What an approval is checked for is [`Operations::approve`], read from top
//! to bottom.
//!
//! **Four eyes.** The account's rules say how many operators must approve an operation of a kind
//! from an amount on. They are distinct people on distinct computers, so that neither a person nor
//! a computer is enough, and none of them is the one who entered it. Who approves signs the same
//! facts, as the statement names each approver in turn.
//!
//! **Effects.** Where the service itself asks for an approval (deleting a certificate of somebody
//! else, say), what it does is done in the transaction that approves: [`super::effects`].
//!
//! | module | what it does |
//! | --- | --- |
//! | [`create`] | a new operation with its first challenge |
//! | [`challenges`] | further challenges of one that waits |
//! | [`approvers`] | how many must approve, and who may |
//! | [`approve`] | takes an approval |
//! | [`close`] | ends without one: taken back, or out of time |
//! | [`notify`] | what the platform is told of it, in the same transaction |
//!
//! What never lives here: SQL ([`super::store::operations`]), HTTP ([`super::routes::operations`]),
//! and delivery of what the platform is told ([`super::webhooks`]).

mod approve;
mod approvers;
mod challenges;
mod close;
mod create;
mod error;
mod notify;

use std::time::Duration;

use jiff::Timestamp;

use super::config;
use super::idempotency::{Idempotency, kept};
use super::issuing::Issuer;
use super::records::Records;
use super::signer::ChallengeKey;
use super::sms::Texts;
use super::store::operations::{self, Approval, Creator, Operation, Search, State};
use super::store::{Store, Tx};
use crate::base::Clock;
use crate::base::ids::OperationId;

pub use approve::TRAVEL_TIME;
pub use close::Canceller;
pub use create::NewOperation;
pub use error::OperationError;
pub use notify::Notify;

/// Creates operations and takes their approvals.
#[derive(Clone)]
pub struct Operations {
    /// The store.
    pub store: Store,
    /// The clock.
    pub clock: Clock,
    /// The audit trail.
    pub records: Records,
    /// Signs challenges.
    pub challenge_key: ChallengeKey,
    /// Whose certificates approvals are made with.
    pub issuer: Issuer,
    /// Lifetimes.
    pub rules: config::Operations,
    /// Whether approvals are told to the platform.
    pub notify: Notify,
    /// Texts to people.
    pub texts: Texts,
    /// How long a granted request waits before it takes effect.
    pub delay: Duration,
}

impl Operations {
    /// The operation and the approvals it has.
    pub async fn find(
        &self,
        id: &OperationId,
    ) -> Result<(Operation, Vec<Approval>), OperationError> {
        let now = self.clock.now();
        self.store
            .read("find operation", move |tx| {
                Box::pin(async move {
                    let operation = find_at(tx, id, now).await?;
                    let approvals = operations::approvals(tx, id).await?;
                    Ok((operation, approvals))
                })
            })
            .await
    }

    /// As [`Operations::find`], for the platform: what the service itself asks for is none of its
    /// business.
    pub async fn find_for_platform(
        &self,
        id: &OperationId,
    ) -> Result<(Operation, Vec<Approval>), OperationError> {
        let (operation, approvals) = self.find(id).await?;
        of_platform(&operation)?;
        Ok((operation, approvals))
    }

    /// Operations, newest first; at most `limit`.
    pub async fn list(
        &self,
        search: &Search,
        limit: i64,
    ) -> Result<Vec<Operation>, OperationError> {
        let now = self.clock.now();
        self.store
            .read("list operations", move |tx| {
                Box::pin(async move {
                    let mut found = operations::list(tx, search, now, limit).await?;
                    for operation in &mut found {
                        settle_time(operation, now);
                    }
                    Ok(found)
                })
            })
            .await
    }

    async fn kept(
        &self,
        idempotency: Option<&Idempotency>,
    ) -> Result<Option<String>, OperationError> {
        if idempotency.is_none() {
            return Ok(None);
        }
        self.store
            .read("find kept answer", move |tx| {
                Box::pin(kept(tx, idempotency))
            })
            .await
    }
}

/// Those that the service itself created are unknown to the platform.
fn of_platform(operation: &Operation) -> Result<(), OperationError> {
    match operation.creator {
        Creator::Platform(_) => Ok(()),
        Creator::Service(..) => Err(OperationError::Unknown {
            id: operation.id.clone(),
        }),
    }
}

/// The operation as it stands at `now`.
async fn find_at(
    tx: &mut Tx<'_>,
    id: &OperationId,
    now: Timestamp,
) -> Result<Operation, OperationError> {
    let mut operation = operations::find(tx, id)
        .await?
        .ok_or_else(|| OperationError::Unknown { id: id.clone() })?;
    settle_time(&mut operation, now);
    Ok(operation)
}

/// One whose time is over is expired, noted or not.
fn settle_time(operation: &mut Operation, now: Timestamp) {
    if operation.state == State::Created && operation.expires_at <= now {
        operation.state = State::Expired;
        operation.closed_at = Some(operation.expires_at);
    }
}

/// The error for an operation that left its state while we looked.
async fn state_now(
    tx: &mut Tx<'_>,
    id: &OperationId,
    now: Timestamp,
) -> Result<OperationError, OperationError> {
    let state = find_at(tx, id, now).await?.state;
    Ok(OperationError::State { state })
}
