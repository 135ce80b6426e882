//! Why an operation was not created, challenged or approved.

use jiff::Timestamp;

use super::challenges::CHALLENGES;
use crate::account::idempotency::IdempotencyConflict;
use crate::account::signer::SignError;
use crate::account::store::StoreError;
use crate::account::store::operations::State;
use crate::audit::AuditError;
use crate::base::ids::{AccountId, ComputerId, OperationId, OperatorId};
use crate::statement::ApprovalError;
use crate::statement::strict::FieldError;

/// Why an operation was not created, challenged or approved.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// There is no such operator in such an account.
    #[error("there is no operator {operator} in account {account}")]
    OperatorUnknown {
        /// The account.
        account: AccountId,
        /// The operator.
        operator: OperatorId,
    },
    /// The facts break the rules of the operation's kind.
    #[error("the statement is refused: {0}")]
    Statement(#[from] FieldError),
    /// The idempotency key was used for another request.
    #[error(transparent)]
    IdempotencyConflict(#[from] IdempotencyConflict),
    /// There is no such operation.
    #[error("there is no operation {id}")]
    Unknown {
        /// The id.
        id: OperationId,
    },
    /// The operation is past the state in which this could be done.
    #[error("the operation is {state}")]
    State {
        /// The state it is in.
        state: State,
    },
    /// The operation is for another operator.
    #[error("the operation is for another operator")]
    OtherOperator,
    /// Who entered an operation does not approve it.
    #[error("operator {operator} entered the operation and may not approve it")]
    Maker {
        /// Who.
        operator: OperatorId,
    },
    /// Only administrators approve this.
    #[error("operator {operator} is no administrator")]
    NotAdministrator {
        /// Who.
        operator: OperatorId,
    },
    /// Only who entered an operation, and administrators, take it back.
    #[error("the operation is somebody else's")]
    NotYours,
    /// This operator has approved already.
    #[error("operator {operator} has approved already")]
    ApprovedAlready {
        /// Who.
        operator: OperatorId,
    },
    /// Somebody has approved on this computer already.
    #[error("computer {computer} has approved already")]
    SameComputer {
        /// Which.
        computer: ComputerId,
    },
    /// What was approved cannot be done any more.
    #[error("what was approved cannot be done: {reason}")]
    Effect {
        /// Why.
        reason: &'static str,
    },
    /// The operation has had too many challenges.
    #[error("the operation has had {CHALLENGES} challenges, as many as it may")]
    TooManyChallenges,
    /// The approval is malformed, its signature or certificate does not verify.
    #[error(transparent)]
    Approval(#[from] ApprovalError),
    /// The approval says something else than the challenge it claims to answer.
    #[error("the approval's {claim} is not that of the challenge")]
    Mismatch {
        /// The claim.
        claim: &'static str,
    },
    /// The approval answers a challenge that this operation never had.
    #[error("the approval answers no challenge of this operation")]
    ChallengeUnknown,
    /// The approval came too late, or was made after the challenge had expired.
    #[error("the challenge expired at {at}")]
    ChallengeExpired {
        /// When.
        at: Timestamp,
    },
    /// The certificate chains to the authority but is not one the database knows.
    #[error("the certificate of the approval was not issued here")]
    CertificateUnknown,
    /// The certificate is revoked.
    #[error("the certificate of the approval was revoked at {at}")]
    CertificateRevoked {
        /// When.
        at: Timestamp,
    },
    /// The certificate has expired.
    #[error("the certificate of the approval has expired")]
    CertificateExpired,
    /// The challenge could not be signed.
    #[error("the challenge could not be signed")]
    Sign(#[from] SignError),
    /// The audit record could not be written, so nothing happened.
    #[error("the audit record could not be written")]
    Audit(#[from] AuditError),
    /// An answer could not be encoded.
    #[error("cannot encode an answer")]
    Encode(#[from] serde_json::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
