//! Taking an approval.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::approvers::may_approve;
use super::{OperationError, Operations, find_at, state_now};
use crate::account::effects;
use crate::account::sms::Outgoing;
use crate::account::store::operations::{
    self, Approval as ApprovalRow, Challenge, Creator, Operation, State,
};
use crate::account::store::{Tx, certificates};
use crate::base::encoding::hex;
use crate::base::ids::{OperationId, RequestId};
use crate::base::x509::{PathError, X509Error};
use crate::statement::{Approval, ApprovalError};

/// How long after its challenge expired an approval is still taken: time on the way.
pub const TRAVEL_TIME: Duration = Duration::from_secs(30);

impl Operations {
    /// Takes an approval, JWS compact, of the operation `id`.
    ///
    /// The very same approval again is answered as the first time.
    pub async fn approve(
        &self,
        id: &OperationId,
        compact: &str,
        request: &RequestId,
    ) -> Result<Operation, OperationError> {
        let now = self.clock.now();
        // Signature, certificate path, validity and usage. Revocation is looked up below, in the
        // database, where it is newer than in any list.
        let anchors = self.issuer.anchors();
        let approval = &Approval::verify(compact, anchors, None, now).map_err(path_error)?;
        let (operation, texts) = self
            .store
            .transaction("approve operation", move |tx| {
                Box::pin(self.take_approval(tx, id, compact, approval, now, request))
            })
            .await?;
        self.texts.send_all(texts).await;
        Ok(operation)
    }

    /// The body of the transaction that approves.
    async fn take_approval(
        &self,
        tx: &mut Tx<'_>,
        id: &OperationId,
        compact: &str,
        approval: &Approval,
        now: Timestamp,
        request: &RequestId,
    ) -> Result<(Operation, Vec<Outgoing>), OperationError> {
        operations::take_turn(tx, id).await?;
        let operation = find_at(tx, id, now).await?;
        let accepted = operations::approvals(tx, id).await?;
        if accepted.iter().any(|earlier| earlier.approval == compact) {
            return Ok((operation, Vec::new()));
        }
        if operation.state != State::Created {
            return Err(OperationError::State {
                state: operation.state,
            });
        }

        // The challenge is one of this operation and the approval answers exactly it.
        let challenge = operations::challenge(tx, id, &approval.challenge_jti)
            .await?
            .ok_or(OperationError::ChallengeUnknown)?;
        self.check_answers(&operation, &challenge, approval)?;
        if now > challenge.expires_at + TRAVEL_TIME || approval.issued_at > challenge.expires_at {
            return Err(OperationError::ChallengeExpired {
                at: challenge.expires_at,
            });
        }

        // Whoever approved may do so, and is not one who has.
        may_approve(tx, &operation, &accepted, &challenge.operator).await?;

        // The certificate is one that was issued here, and is in force at this instant.
        let serial = hex(approval.certificate.serial());
        let certificate = certificates::find(tx, &serial)
            .await?
            .filter(|known| known.der == approval.certificate.der())
            .ok_or(OperationError::CertificateUnknown)?;
        if let Some((at, _)) = certificate.revoked {
            return Err(OperationError::CertificateRevoked { at });
        }
        let computer = certificate.computer;
        if accepted.iter().any(|earlier| earlier.computer == computer) {
            return Err(OperationError::SameComputer { computer });
        }

        // Single use: the challenge is unique among approvals, and so are operator and computer;
        // with the last approval that is needed the state is left, once.
        let row = ApprovalRow {
            operation: id.clone(),
            operator: challenge.operator.clone(),
            challenge: challenge.jti.clone(),
            certificate: serial.clone(),
            computer,
            approval: compact.to_owned(),
            accepted_at: now,
        };
        operations::insert_approval(tx, &row).await?;
        if !certificates::used(tx, &serial, now).await? {
            return Err(OperationError::CertificateRevoked { at: now });
        }
        let count = i64::try_from(accepted.len() + 1).unwrap_or(i64::MAX);
        let last = count >= operation.needed;
        if last && !operations::close(tx, id, State::Approved, now).await? {
            return Err(state_now(tx, id, now).await?);
        }
        let approved = find_at(tx, id, now).await?;
        let kind = if last {
            "operation-approved"
        } else {
            "operation-approved-in-part"
        };
        let facts = json!({
            "operation": id,
            "statement": approved.statement.to_json(),
            "challenge_jti": challenge.jti,
            "approval_jti": approval.jti,
            "operator": challenge.operator,
            "certificate": serial,
            "client": approval.client,
            "consent": approval.consent.method,
            "approvals": count,
            "needed": operation.needed,
        });
        let account = approved.statement.account();
        self.records
            .note::<OperationError>(tx, account, kind, request, facts)
            .await?;
        let event = if last {
            "operation.approved"
        } else {
            "operation.approval"
        };
        self.emit(tx, &approved, event, Some(&row), now).await?;
        let (true, Creator::Service(effect, on)) = (last, &approved.creator) else {
            return Ok((approved, Vec::new()));
        };
        let context = effects::Context {
            records: &self.records,
            texts: &self.texts,
            delay: self.delay,
        };
        let texts =
            effects::apply(tx, &context, &approved, *effect, on, &row, request, now).await?;
        Ok((approved, texts))
    }

    /// Whether the approval says what the challenge asked, of whom it asked.
    fn check_answers(
        &self,
        operation: &Operation,
        challenge: &Challenge,
        approval: &Approval,
    ) -> Result<(), OperationError> {
        let identity = approval.certificate.identity();
        let checks = [
            ("aud", approval.audience == *self.challenge_key.origin()),
            ("challenge", approval.is_for(&challenge.challenge)),
            (
                "statement",
                approval.statement == operation.statement.for_operator(challenge.operator.clone()),
            ),
            (
                "origin",
                approval
                    .origin
                    .as_ref()
                    .is_none_or(|origin| operation.origin.as_ref() == Some(origin)),
            ),
            (
                "operator",
                identity.is_some_and(|identity| {
                    identity.account == *operation.statement.account()
                        && identity.operator == challenge.operator
                }),
            ),
        ];
        match checks.into_iter().find(|(_, holds)| !holds) {
            Some((claim, _)) => Err(OperationError::Mismatch { claim }),
            None => Ok(()),
        }
    }
}

/// Expiry of the certificate has an error of its own.
fn path_error(error: ApprovalError) -> OperationError {
    match error {
        ApprovalError::Certificate(X509Error::Path(PathError::Expired)) => {
            OperationError::CertificateExpired
        }
        error => OperationError::Approval(error),
    }
}
