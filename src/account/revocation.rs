//! The one way an operating certificate is taken out of force: the row, the record and the notices
//! come together, whoever asked for it. Nothing undoes it.

use jiff::Timestamp;
use serde_json::json;

use super::issuing::RevocationReason;
use super::records::Records;
use super::store::certificates::{self, Certificate};
use super::store::notices::Audience;
use super::store::{StoreError, Tx};
use crate::audit::AuditError;
use crate::base::ids::{OperationId, OperatorId, RequestId};

/// Who revokes where it is no operator: the command line.
pub const ADMINISTRATION: &str = "administration";

/// Who revokes where it is no operator: the service itself, for a request that was granted.
pub const SERVICE: &str = "service";

/// Whether an id reads in records as one of those that are no operators. Nobody is given such an id.
pub fn is_taken(id: &OperatorId) -> bool {
    [ADMINISTRATION, SERVICE]
        .iter()
        .any(|taken| id.as_str().eq_ignore_ascii_case(taken))
}

/// Why, by whom, and who is told.
#[derive(Debug, Clone, Copy)]
pub struct Revocation<'a> {
    /// Why.
    pub reason: RevocationReason,
    /// By whom: an operator, [`ADMINISTRATION`] or [`SERVICE`].
    pub by: &'a str,
    /// What record and notices call it.
    pub kind: &'static str,
    /// Who is told.
    pub audiences: &'a [Audience],
    /// The operation whose approval it is, where there is one.
    pub operation: Option<&'a OperationId>,
}

impl<'a> Revocation<'a> {
    /// The usual kind, of which the administrators of the account are told.
    pub fn new(reason: RevocationReason, by: &'a str) -> Self {
        Self {
            reason,
            by,
            kind: "certificate-revoked",
            audiences: &[Audience::Administrators],
            operation: None,
        }
    }

    /// Revokes certificates, with a record and a notice each; gives the serial numbers of those
    /// that were not revoked before.
    pub async fn apply<E: From<AuditError> + From<StoreError>>(
        &self,
        tx: &mut Tx<'_>,
        records: &Records,
        found: &[Certificate],
        now: Timestamp,
        request: &RequestId,
    ) -> Result<Vec<String>, E> {
        let mut serials = Vec::with_capacity(found.len());
        for certificate in found {
            let (serial, reason) = (certificate.serial.as_str(), self.reason.as_str());
            if !certificates::revoke(tx, serial, reason, self.by, now).await? {
                continue;
            }
            let mut body = json!({
                "serial": serial,
                "operator": certificate.operator,
                "computer": certificate.computer,
                "reason": reason,
                "by": self.by,
            });
            if let Some(operation) = self.operation {
                body["operation"] = json!(operation);
            }
            let account = &certificate.account;
            records
                .tell::<E>(tx, account, self.audiences, self.kind, request, body)
                .await?;
            serials.push(certificate.serial.clone());
        }
        Ok(serials)
    }
}
