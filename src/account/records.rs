//! What the account service writes to its audit trail, and whom it tells; the service itself, and
//! the commands beside it, each in a trail of its own.
//!
//! The trail in files is the one that counts: nobody can change it unseen, and an action whose
//! record cannot be written does not happen. What concerns one account is written to the database
//! as well, in the transaction of the action, for the administrators of the account to read.

use serde_json::Value;

use super::store::notices::Audience;
use super::store::{StoreError, Tx, events, notices};
use crate::audit::{Audit, AuditError, Event};
use crate::base::Clock;
use crate::base::ids::{AccountId, RequestId};

/// Writes records; whoever acts on an error fails closed.
#[derive(Clone)]
pub struct Records {
    audit: Audit,
    clock: Clock,
    /// The system's user on the command line.
    uid: Option<u32>,
}

impl Records {
    /// Writes to `audit`.
    pub fn new(audit: Audit, clock: Clock) -> Self {
        Self {
            audit,
            clock,
            uid: None,
        }
    }

    /// Writes to `audit` what the system's user `uid` does on the command line.
    pub fn of_user(audit: Audit, clock: Clock, uid: u32) -> Self {
        Self {
            audit,
            clock,
            uid: Some(uid),
        }
    }

    /// Writes a record that concerns no account and waits until it is durable.
    pub async fn write(
        &self,
        kind: &'static str,
        request: &RequestId,
        body: &Value,
    ) -> Result<(), AuditError> {
        let mut body = body.clone();
        if let (Some(uid), Some(facts)) = (self.uid, body.as_object_mut()) {
            facts.insert("uid".into(), uid.into());
        }
        let event = Event::new(kind, Some(request.clone()), &body)?;
        self.audit.append(event)?.durable().await?;
        Ok(())
    }

    /// Writes what happened in an account. The record is durable when this returns; the copy in
    /// the database comes with the transaction.
    pub async fn note<E: From<AuditError> + From<StoreError>>(
        &self,
        tx: &mut Tx<'_>,
        account: &AccountId,
        kind: &'static str,
        request: &RequestId,
        mut body: Value,
    ) -> Result<(), E> {
        if let Some(facts) = body.as_object_mut() {
            facts.insert("account".into(), account.as_str().into());
        }
        self.write(kind, request, &body).await?;
        let text = body.to_string();
        events::insert(tx, account, kind, request.as_str(), &text, self.clock.now()).await?;
        Ok(())
    }

    /// As [`Records::note`], and tells those who should know.
    pub async fn tell<E: From<AuditError> + From<StoreError>>(
        &self,
        tx: &mut Tx<'_>,
        account: &AccountId,
        audiences: &[Audience],
        kind: &'static str,
        request: &RequestId,
        body: Value,
    ) -> Result<(), E> {
        let text = body.to_string();
        for &audience in audiences {
            notices::insert(tx, account, audience, kind, &text, self.clock.now()).await?;
        }
        self.note(tx, account, kind, request, body).await
    }
}
