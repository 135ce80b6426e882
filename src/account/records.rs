//! What the account service writes to its audit trail.

use serde::Serialize;

use crate::audit::{Audit, AuditError, Event};
use crate::base::ids::RequestId;

/// Records of one request; whoever acts on an error of [`Records::write`] fails closed.
#[derive(Clone)]
pub struct Records {
    audit: Audit,
}

impl Records {
    /// Writes to `audit`.
    pub fn new(audit: Audit) -> Self {
        Self { audit }
    }

    /// Writes a record and waits until it is durable.
    pub async fn write(
        &self,
        kind: &'static str,
        request: &RequestId,
        body: &impl Serialize,
    ) -> Result<(), AuditError> {
        let event = Event::new(kind, Some(request.clone()), body)?;
        self.audit.append(event)?.durable().await?;
        Ok(())
    }
}
