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
//! a computer is enough, and none of them is the one who entered it. Who approves signs the same facts, as the statement names each approver in turn.
//!
//! **Effects.** Where the service itself asks for an approval (deleting a certificate of somebody
//! else, say), what it does is done in the transaction that approves: [`super::effects`].

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::config;
use super::effects;
use super::idempotency::{self, Idempotency, IdempotencyConflict, kept};
use super::issuing::Issuer;
use super::records::Records;
use super::signer::{ChallengeKey, SignError};
use super::sms::{Outgoing, Texts};
use super::store::accounts::{self, Operator};
use super::store::operations::{
    self, Approval as ApprovalRow, Challenge, Creator, Effect, Operation, Search, State,
};
use super::store::outbox::{self, Notice};
use super::store::{Store, StoreError, Tx, certificates};
use crate::audit::AuditError;
use crate::base::Clock;
use crate::base::encoding::hex;
use crate::base::ids::{AccountId, ComputerId, Jti, OperationId, OperatorId, RequestId};
use crate::base::x509::{PathError, X509Error};
use crate::policy::Purpose;
use crate::statement::strict::FieldError;
use crate::statement::{Approval, ApprovalError, ChallengeClaims, Facts, Kind, Origin, Statement};

/// How long after its challenge expired an approval is still taken: time on the way.
pub const TRAVEL_TIME: Duration = Duration::from_secs(30);

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
    /// Texts to people.
    pub texts: Texts,
    /// How long a granted request waits before it takes effect.
    pub delay: Duration,
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

    /// Checks what is asked and signs the first challenge; nothing is kept yet.
    async fn draft(&self, new: NewOperation) -> Result<(Operation, Challenge), OperationError> {
        let now = self.clock.now();
        let statement = Statement::new(new.kind, new.account, new.operator, new.facts)?;
        let mut operation = Operation {
            id: OperationId::random(),
            statement,
            origin: new.origin.map(|origin| origin.to_string()),
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

    /// A challenge for an operation of the service that waits already. Anybody may ask for a renewal.
    async fn further(
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

    /// As [`Operations::find`], for the platform: what the service itself asks for is none of its
    /// business.
    pub async fn find_for_platform(
        &self,
        id: &OperationId,
    ) -> Result<(Operation, Vec<ApprovalRow>), OperationError> {
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

    /// Whether an approval of this operator would be taken: what [`Operations::challenge`] checks.
    pub async fn may_approve(
        &self,
        operation: &Operation,
        approvals: &[ApprovalRow],
        operator: &OperatorId,
    ) -> Result<bool, OperationError> {
        let allowed = self
            .store
            .read("look at approver", move |tx| {
                Box::pin(async move {
                    Ok::<_, OperationError>(may_approve(tx, operation, approvals, operator).await)
                })
            })
            .await?;
        match allowed {
            Ok(()) => Ok(true),
            Err(OperationError::Store(error)) => Err(error.into()),
            Err(_) => Ok(false),
        }
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

    /// Writes what the platform is told, for each receiver, in the order of the operation.
    async fn emit(
        &self,
        tx: &mut Tx<'_>,
        operation: &Operation,
        event: &'static str,
        approval: Option<&ApprovalRow>,
        now: Timestamp,
    ) -> Result<(), OperationError> {
        let Creator::Platform(_) = operation.creator else {
            return Ok(());
        };
        let mut receivers: Vec<Option<String>> = outbox::subscriptions(tx)
            .await?
            .into_iter()
            .map(|subscription| Some(subscription.id))
            .collect();
        if self.notify == Notify::Outbox {
            receivers.push(None);
        }
        if receivers.is_empty() {
            return Ok(());
        }
        let place = operations::next_place(tx, &operation.id).await?;
        let id = Jti::random().to_string();
        let mut body = json!({
            "id": id,
            "event": event,
            "place": place,
            "operation": operation.id,
            "state": operation.state,
            "statement": operation.statement.to_json(),
        });
        if let Some(approval) = approval {
            body["operator"] = json!(approval.operator);
            body["certificate"] = json!(approval.certificate);
            body["approved_at"] = json!(approval.accepted_at.to_string());
            body["approval"] = json!(approval.approval);
        }
        let body = serde_json::to_string(&body)?;
        for subscription in receivers {
            let notice = Notice {
                id: Jti::random().to_string(),
                event: id.clone(),
                subscription,
                operation: operation.id.clone(),
                place,
                body: body.clone(),
                attempts: 0,
            };
            outbox::insert(tx, &notice, now).await?;
        }
        Ok(())
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

    async fn sign_challenge(
        &self,
        operation: &Operation,
        operator: &OperatorId,
    ) -> Result<Challenge, OperationError> {
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
            &operation.statement.for_operator(operator.clone()),
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
            operator: operator.clone(),
            challenge,
            created_at: now,
            expires_at: Timestamp::from_second(claims.exp).unwrap_or(now),
        })
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

/// How many operators must approve: by the account's rules for what the platform asks, by its
/// quorum for what replaces a business representative's decision, by the rule for its kind for a
/// secret.
async fn needed(tx: &mut Tx<'_>, operation: &Operation) -> Result<i64, StoreError> {
    let statement = &operation.statement;
    match operation.creator {
        Creator::Platform(_) => {
            let (currency, amount) = match statement.amount() {
                Some(money) => (money.currency(), money.minor_units()),
                None => ("", 0),
            };
            let kind = statement.kind().name();
            accounts::approvals_needed(tx, statement.account(), kind, currency, amount).await
        }
        Creator::Service(Effect::SetSecret, _) => {
            let kind = statement.kind().name();
            accounts::approvals_needed(tx, statement.account(), kind, "", 0).await
        }
        Creator::Service(Effect::DecideRequest, _) => {
            Ok(accounts::account(tx, statement.account())
                .await?
                .map_or(1, |account| account.quorum.max(1)))
        }
        Creator::Service(..) => Ok(1),
    }
}

/// Whether `operator` may approve: the one the operation names, or with four eyes another one;
/// never the one who entered it, nobody twice, and administrators only where that is asked.
async fn may_approve(
    tx: &mut Tx<'_>,
    operation: &Operation,
    accepted: &[ApprovalRow],
    operator: &OperatorId,
) -> Result<(), OperationError> {
    if operation.maker.as_ref() == Some(operator) {
        return Err(OperationError::Maker {
            operator: operator.clone(),
        });
    }
    if accepted.iter().any(|earlier| earlier.operator == *operator) {
        return Err(OperationError::ApprovedAlready {
            operator: operator.clone(),
        });
    }
    // Some things are for any administrator, however many it takes.
    let shared = matches!(operation.creator, Creator::Service(effect, _) if effect.is_shared());
    if operation.needed == 1 && !shared && operation.statement.operator() != operator {
        return Err(OperationError::OtherOperator);
    }
    let account = operation.statement.account();
    let known = accounts::operator(tx, account, operator)
        .await?
        .ok_or_else(|| OperationError::OperatorUnknown {
            account: account.clone(),
            operator: operator.clone(),
        })?;
    match operation.creator {
        Creator::Service(effect, _) if effect.is_for_administrators() && !known.role.manages() => {
            Err(OperationError::NotAdministrator {
                operator: operator.clone(),
            })
        }
        _ => Ok(()),
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

/// Expiry of the certificate has an error of its own.
fn path_error(error: ApprovalError) -> OperationError {
    match error {
        ApprovalError::Certificate(X509Error::Path(PathError::Expired)) => {
            OperationError::CertificateExpired
        }
        error => OperationError::Approval(error),
    }
}
