//! Sensitive operations: the platform creates one, an operator's certificate approves it.
//!
//! An operation moves once, from created to approved, cancelled or expired, by an UPDATE that
//! names the state it leaves. It can have several challenges, one after the other, each a signed
//! statement with a life of two minutes; each challenge yields at most one approval, which is a
//! unique constraint. What an approval is checked for is [`Operations::approve`], read from top
//! to bottom.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::config;
use super::issuing::Issuer;
use super::records::Records;
use super::signer::{ChallengeKey, SignError};
use super::store::operations::{
    self, Approval as ApprovalRow, Challenge, KeptAnswer, Operation, State,
};
use super::store::outbox::{self, Notice};
use super::store::{Store, StoreError, Tx, certificates};
use crate::audit::AuditError;
use crate::base::Clock;
use crate::base::encoding::hex;
use crate::base::ids::{AccountId, Jti, OperationId, OperatorId, RequestId};
use crate::base::x509::{PathError, X509Error};
use crate::policy::Purpose;
use crate::statement::strict::FieldError;
use crate::statement::{Approval, ApprovalError, ChallengeClaims, Facts, Kind, Origin, Statement};

/// How long after its challenge expired an approval is still taken: time on the way.
pub const TRAVEL_TIME: Duration = Duration::from_secs(30);

/// How long the answer to a request with an idempotency key is kept for its repetition.
pub const ANSWERS_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Challenges that one operation may have.
const CHALLENGES: i64 = 100;

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
    #[error("the idempotency key was used for another request")]
    IdempotencyConflict,
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
}

/// Where a repeatable request keeps its answer.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The `Idempotency-Key`.
    pub key: String,
    /// SHA-256 of the request, hexadecimal.
    pub request_hash: String,
}

/// Whether webhook notices are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// The platform reads states itself.
    No,
    /// A notice is written with each approval.
    Outbox,
}

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
}

impl Operations {
    /// Creates an operation with its first challenge and gives the answer to the platform, as
    /// `answer` writes it. With an idempotency key the answer is kept: the same request gets it
    /// again, another one with the same key is refused.
    pub async fn create(
        &self,
        new: NewOperation,
        platform_key: &str,
        idempotency: Option<Idempotency>,
        request: &RequestId,
        answer: impl Fn(&Operation, &Challenge) -> Result<String, serde_json::Error> + Send + Sync,
    ) -> Result<String, OperationError> {
        if let Some(kept) = self.kept(platform_key, idempotency.as_ref()).await? {
            return Ok(kept);
        }
        let now = self.clock.now();
        let statement = Statement::new(new.kind, new.account, new.operator, new.facts)?;
        let operation = &Operation {
            id: OperationId::random(),
            statement,
            origin: new.origin.map(|origin| origin.to_string()),
            state: State::Created,
            platform_key: platform_key.to_owned(),
            created_at: now,
            expires_at: now + Duration::from_secs(self.rules.lifetime_seconds),
            closed_at: None,
        };
        self.check_operator(operation).await?;
        let challenge = &self.sign_challenge(operation).await?;
        let body = &answer(operation, challenge)?;
        let idempotency = idempotency.as_ref();
        self.store
            .transaction("create operation", move |tx| {
                Box::pin(async move {
                    if let Some(idempotency) = idempotency {
                        if let Some(kept) = find_kept(tx, platform_key, idempotency).await? {
                            return Ok(kept);
                        }
                        let kept = KeptAnswer {
                            request_hash: idempotency.request_hash.clone(),
                            status: 201,
                            body: body.clone(),
                        };
                        operations::keep_answer(tx, platform_key, &idempotency.key, &kept, now)
                            .await?;
                    }
                    operations::insert(tx, operation).await?;
                    operations::insert_challenge(tx, challenge).await?;
                    self.records
                        .write(
                            "operation-created",
                            request,
                            &json!({
                                "operation": operation.id,
                                "statement": operation.statement.to_json(),
                                "platform_key": platform_key,
                                "challenge_jti": challenge.jti,
                            }),
                        )
                        .await?;
                    Ok::<_, OperationError>(body.clone())
                })
            })
            .await
    }

    /// A further challenge for an operation that still waits.
    pub async fn challenge(
        &self,
        id: &OperationId,
        operator: &OperatorId,
        request: &RequestId,
    ) -> Result<Challenge, OperationError> {
        let operation = self.find(id).await?.0;
        if operation.state != State::Created {
            return Err(OperationError::State {
                state: operation.state,
            });
        }
        if operation.statement.operator() != operator {
            return Err(OperationError::OtherOperator);
        }
        let challenge = &self.sign_challenge(&operation).await?;
        self.store
            .transaction("add challenge", move |tx| {
                Box::pin(async move {
                    if operations::challenges(tx, id).await? >= CHALLENGES {
                        return Err(OperationError::TooManyChallenges);
                    }
                    operations::insert_challenge(tx, challenge).await?;
                    self.records
                        .write(
                            "challenge-made",
                            request,
                            &json!({ "operation": id, "challenge_jti": challenge.jti }),
                        )
                        .await?;
                    Ok(())
                })
            })
            .await?;
        Ok(challenge.clone())
    }

    /// The operation and the approvals it has.
    pub async fn find(
        &self,
        id: &OperationId,
    ) -> Result<(Operation, Vec<ApprovalRow>), OperationError> {
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

    /// Takes an operation back; doing so again changes nothing.
    pub async fn cancel(
        &self,
        id: &OperationId,
        request: &RequestId,
    ) -> Result<Operation, OperationError> {
        let now = self.clock.now();
        self.store
            .transaction("cancel operation", move |tx| {
                Box::pin(async move {
                    let operation = find_at(tx, id, now).await?;
                    match operation.state {
                        State::Cancelled => return Ok(operation),
                        State::Created => (),
                        state => return Err(OperationError::State { state }),
                    }
                    if !operations::close(tx, id, State::Cancelled, now).await? {
                        return Err(state_now(tx, id, now).await?);
                    }
                    self.records
                        .write("operation-cancelled", request, &json!({ "operation": id }))
                        .await?;
                    find_at(tx, id, now).await
                })
            })
            .await
    }

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
        let anchors = std::slice::from_ref(self.issuer.certificate());
        let approval = &Approval::verify(compact, anchors, None, now).map_err(path_error)?;
        self.store
            .transaction("approve operation", move |tx| {
                Box::pin(self.take_approval(tx, id, compact, approval, now, request))
            })
            .await
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
    ) -> Result<Operation, OperationError> {
        let operation = find_at(tx, id, now).await?;
        let accepted = operations::approvals(tx, id).await?;
        if accepted.iter().any(|earlier| earlier.approval == compact) {
            return Ok(operation);
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

        // The certificate is one that was issued here, and is in force at this instant.
        let serial = hex(approval.certificate.serial());
        let certificate = certificates::find(tx, &serial)
            .await?
            .filter(|known| known.der == approval.certificate.der())
            .ok_or(OperationError::CertificateUnknown)?;
        if let Some((at, _)) = certificate.revoked {
            return Err(OperationError::CertificateRevoked { at });
        }

        // Single use: the state is left once, the challenge is unique among approvals.
        if !operations::close(tx, id, State::Approved, now).await? {
            return Err(state_now(tx, id, now).await?);
        }
        let row = ApprovalRow {
            operation: id.clone(),
            operator: challenge.operator.clone(),
            challenge: challenge.jti.clone(),
            certificate: serial.clone(),
            approval: compact.to_owned(),
            accepted_at: now,
        };
        operations::insert_approval(tx, &row).await?;
        certificates::used(tx, &serial, now).await?;
        let approved = find_at(tx, id, now).await?;
        if self.notify == Notify::Outbox {
            let notice = approval_notice(&approved, &row)?;
            outbox::insert(tx, &notice, now).await?;
        }
        self.records
            .write(
                "operation-approved",
                request,
                &json!({
                    "operation": id,
                    "statement": approved.statement.to_json(),
                    "challenge_jti": challenge.jti,
                    "approval_jti": approval.jti,
                    "operator": challenge.operator,
                    "certificate": serial,
                    "client": approval.client,
                    "consent": approval.consent.method,
                }),
            )
            .await?;
        Ok(approved)
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
            ("statement", approval.statement == operation.statement),
            (
                "origin",
                approval
                    .origin
                    .as_ref()
                    .is_none_or(|origin| operation.origin.as_deref() == Some(origin.as_str())),
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

    async fn sign_challenge(&self, operation: &Operation) -> Result<Challenge, OperationError> {
        let now = self.clock.now();
        let origin = operation
            .origin
            .as_deref()
            .map(str::parse::<Origin>)
            .transpose()
            .map_err(|_| StoreError::Malformed {
                column: "operations.origin",
            })?;
        let lifetime = self.rules.challenge_lifetime_seconds;
        let claims = ChallengeClaims::new(
            self.challenge_key.origin().clone(),
            &operation.statement,
            origin,
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
            operator: operation.statement.operator().clone(),
            challenge,
            created_at: now,
            expires_at: Timestamp::from_second(claims.exp).unwrap_or(now),
        })
    }

    async fn check_operator(&self, operation: &Operation) -> Result<(), OperationError> {
        let account = operation.statement.account();
        let operator = operation.statement.operator();
        let exists = self
            .store
            .read("find operator", move |tx| {
                Box::pin(operations::operator_exists(tx, account, operator))
            })
            .await
            .map_err(|error: StoreError| error)?;
        if exists {
            Ok(())
        } else {
            Err(OperationError::OperatorUnknown {
                account: account.clone(),
                operator: operator.clone(),
            })
        }
    }

    async fn kept(
        &self,
        platform_key: &str,
        idempotency: Option<&Idempotency>,
    ) -> Result<Option<String>, OperationError> {
        let Some(idempotency) = idempotency else {
            return Ok(None);
        };
        self.store
            .read("find kept answer", move |tx| {
                Box::pin(find_kept(tx, platform_key, idempotency))
            })
            .await
    }
}

async fn find_kept(
    tx: &mut Tx<'_>,
    platform_key: &str,
    idempotency: &Idempotency,
) -> Result<Option<String>, OperationError> {
    match operations::kept_answer(tx, platform_key, &idempotency.key).await? {
        None => Ok(None),
        Some(kept) if kept.request_hash == idempotency.request_hash => Ok(Some(kept.body)),
        Some(_) => Err(OperationError::IdempotencyConflict),
    }
}

/// The operation as it stands at `now`: one whose time is over is expired, noted or not.
async fn find_at(
    tx: &mut Tx<'_>,
    id: &OperationId,
    now: Timestamp,
) -> Result<Operation, OperationError> {
    let mut operation = operations::find(tx, id)
        .await?
        .ok_or_else(|| OperationError::Unknown { id: id.clone() })?;
    if operation.state == State::Created && operation.expires_at <= now {
        operation.state = State::Expired;
        operation.closed_at = Some(operation.expires_at);
    }
    Ok(operation)
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

/// What the platform is told of an approval.
fn approval_notice(
    operation: &Operation,
    approval: &ApprovalRow,
) -> Result<Notice, OperationError> {
    let id = Jti::random().to_string();
    let body = serde_json::to_string(&json!({
        "id": id,
        "event": "operation.approved",
        "operation": operation.id,
        "state": operation.state,
        "statement": operation.statement.to_json(),
        "operator": approval.operator,
        "certificate": approval.certificate,
        "approved_at": approval.accepted_at.to_string(),
        "approval": approval.approval,
    }))?;
    Ok(Notice {
        id,
        operation: operation.id.clone(),
        body,
        attempts: 0,
    })
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
