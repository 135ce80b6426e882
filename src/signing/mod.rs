//! From a challenge to an approval. [`Pipeline::approve`] reads as the security argument.
//!
//! Each step takes what the one before it returned: a parsed challenge, a certificate in good
//! standing, a turn at this challenge, a grant, consent, a place within every limit, a permit.
//! Only then is the record written; the token signs while the record goes to the disk, and the
//! answer leaves when both are done and the signature verified.
//!
//! A person takes time, so everything that was true before the question is asked again after it:
//! the challenge's expiry, the certificate's standing, the rules and the limits.
//!
//! What never lives here: formats (`statement`), rules (`policy`), doors and status codes
//! (`api`), PKCS#11 (`device`).

mod counted;
mod memory;
pub mod token_test;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::audit::verify::VerifyError;
use crate::audit::{self, Audit, AuditError, Event, Recovered};
use crate::base::Clock;
use crate::base::cms::{CmsError, DetachedDraft};
use crate::base::ids::{Jti, RequestId};
use crate::base::key::Signature;
use crate::base::pkcs11::TokenId;
use crate::consent::{self, AskedBy, Asker, ConsentError, OnToken, PinProblem, Prompt};
use crate::device::{DeviceError, Devices};
use crate::enrol::{Installed, Registry, Snapshot, Standing};
use crate::policy::{
    self, Action, Approving, Caller, ClientPolicy, Consent, ConsentMethod, ConsentRule, Decision,
    Grant, Kept, Permit, Policies, PolicySet, Refusal, Tally, Use,
};
use crate::statement::strict::FieldError;
use crate::statement::{ApprovalDraft, Challenge, Origin, Payee, Payees, ServiceError};

use counted::CountedBefore;
use memory::{
    Answer, ApprovalRecord, DeniedRecord, Memory, NoTurn, Progress, Recorded, Seq, SignedRecord,
};
pub use memory::{GRACE, MAX_ENTRIES};

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The challenge is refused.
    #[error("the challenge is refused: {0}")]
    Challenge(ServiceError),
    /// The list of payees beside it is not the one of its statement.
    #[error("the list of payees is refused: {0}")]
    Payees(FieldError),
    /// It expires no later than challenges that were forgotten, so it may have been answered. The
    /// clock was set back.
    #[error("the challenge has expired: later ones have been forgotten here")]
    Forgotten,
    /// The page that relayed it is not the one the challenge names.
    #[error("the challenge may not be relayed by {}", origin)]
    Origin {
        /// Who relayed.
        origin: Origin,
    },
    /// No operator of the account has a certificate on this computer.
    #[error("no certificate for account {account} is installed on this computer")]
    OtherAccount {
        /// The account.
        account: String,
    },
    /// The operator has no certificate on this computer.
    #[error(
        "no certificate of operator {operator} for account {account} is installed on this computer"
    )]
    NoCertificate {
        /// The account.
        account: String,
        /// The operator.
        operator: String,
    },
    /// The certificate must not sign.
    #[error("the certificate must not sign: it is {}", standing_text(*standing))]
    Standing {
        /// How it stands.
        standing: Standing,
    },
    /// Somebody else has had the answer to this challenge, or it was another challenge of the
    /// same id.
    #[error("the challenge was used before")]
    Used,
    /// A person has refused this challenge before.
    #[error("a person refused this operation")]
    Denied,
    /// Policy says no.
    #[error("policy refuses: {0}")]
    Policy(#[from] Refusal),
    /// Nobody could be asked, or the person did not agree.
    #[error(transparent)]
    Consent(#[from] ConsentError),
    /// Too many challenges are remembered.
    #[error("{MAX_ENTRIES} challenges are under way, which is the limit")]
    Busy,
    /// The record cannot be written, so nothing is signed.
    #[error("the audit record cannot be written, so nothing was signed")]
    Audit(#[from] AuditError),
    /// What became of the challenge before cannot be read back.
    #[error("the answer that was given before cannot be read back")]
    ReadBack(#[from] RestoreError),
    /// The token did not sign.
    #[error("the token did not sign")]
    Device(#[from] DeviceError),
    /// The CMS structure cannot be built.
    #[error(transparent)]
    Cms(#[from] CmsError),
    /// The approval cannot be written as JSON.
    #[error("the approval cannot be written")]
    Encode(#[from] serde_json::Error),
}

impl SigningError {
    /// The policy rule that refused, where one did.
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::Policy(refusal) => Some(&refusal.rule),
            _ => None,
        }
    }
}

/// Why the memory of answered challenges cannot be read back. Without it nothing may be signed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The audit log cannot be read.
    #[error("the audit log cannot be read back")]
    Log(#[from] VerifyError),
    /// A record does not have the form it was written in.
    #[error("audit record {seq} does not have the form of its kind")]
    Record {
        /// Its number.
        seq: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The record is not where it was written.
    #[error("audit record {seq} is not an approval")]
    Missing {
        /// Its number.
        seq: u64,
    },
    /// The program failed.
    #[error("the audit log was not read")]
    Task(#[from] tokio::task::JoinError),
}

fn standing_text(standing: Standing) -> &'static str {
    match standing {
        Standing::Active => "active",
        Standing::NotYetValid => "not valid yet",
        Standing::Expired => "expired",
        Standing::Revoked => "revoked",
        Standing::Superseded => "superseded by a newer one",
    }
}

/// A request for an approval.
#[derive(Debug)]
pub struct ApprovalRequest {
    /// Its id, from the door.
    pub id: RequestId,
    /// Who asks, as the door found out.
    pub caller: Caller,
    /// What that caller may do; `None` where it is not registered.
    pub policy: Option<ClientPolicy>,
    /// How the caller is shown to a person.
    pub asked_by: AskedBy,
    /// The compact challenge.
    pub challenge: String,
    /// The list of payees that its statement names, for a batch.
    pub payees: Option<Vec<Payee>>,
    /// The page that relays it, where one does.
    pub origin: Option<Origin>,
    /// Whether a CMS signature is wanted too.
    pub cms: Cms,
}

/// Whether a detached CMS signature is made beside the JWS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cms {
    /// Only the JWS.
    Omit,
    /// Both.
    Include,
}

/// The approval.
#[derive(Debug, Clone)]
pub struct ApprovalAnswer {
    /// The challenge's id.
    pub challenge_jti: Jti,
    /// The approval's id.
    pub jti: Jti,
    /// The compact JWS.
    pub approval: String,
    /// The detached CMS signature over its payload, DER.
    pub cms: Option<Arc<[u8]>>,
}

/// Everything a signature needs; a handle to be shared behind an `Arc`.
pub struct Pipeline {
    devices: Devices,
    registry: Registry,
    audit: Audit,
    asker: Asker,
    policies: Policies,
    clock: Clock,
    memory: Memory,
    counted: CountedBefore,
    /// One repeat at a time is read back from the log.
    reading: tokio::sync::Mutex<()>,
    stable_code: StableCode,
}

/// The stable code of an error, for the records: those above this module name them.
pub type StableCode = fn(&SigningError) -> &'static str;

/// What a person agreed to, or policy in their place.
#[derive(Debug, Clone)]
struct Agreed {
    consent: Consent,
    /// How much it is worth.
    given: ConsentRule,
}

/// A challenge with all that its statement names.
struct Asked {
    challenge: Challenge,
    payees: Option<Payees>,
}

/// What came of a challenge before.
enum Earlier {
    /// Nothing durable.
    Nothing,
    /// It was agreed to and recorded; what is asked for is not signed yet.
    Agreed(Recorded),
    /// All that is asked for is there.
    Answered(ApprovalAnswer),
}

/// An approval that may be signed: agreed to, permitted, and on record or on its way there.
struct Ready<'a> {
    recorded: Recorded,
    permit: Permit,
    /// The record that has to be durable first, and the place within every limit that it takes.
    pending: Option<(audit::Pending, Kept<'a>)>,
}

/// How often a person may mistype a PIN in a row; each is tried once.
const PIN_TRIES: usize = 3;

impl Pipeline {
    /// A pipeline that remembers nothing yet; see [`Pipeline::restore`].
    pub fn new(
        devices: Devices,
        registry: Registry,
        audit: Audit,
        asker: Asker,
        policies: Policies,
        clock: Clock,
        stable_code: StableCode,
    ) -> Self {
        Self {
            devices,
            registry,
            audit,
            asker,
            policies,
            clock,
            memory: Memory::default(),
            counted: CountedBefore::default(),
            reading: tokio::sync::Mutex::default(),
            stable_code,
        }
    }

    /// Who asks the person at this computer.
    pub fn asker(&self) -> &Asker {
        &self.asker
    }

    /// The rules in force.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Readies what `set` asks for beyond the request itself, before it is put in force: where it
    /// looks at what was approved on the same day, the records of before the start are read back,
    /// once. Waits for the disk.
    pub fn prepare(&self, set: &PolicySet) -> Result<(), RestoreError> {
        if set.reads_today() {
            self.counted
                .read(self.policies.usage(), set.time_zone(), self.clock.now())?;
        }
        Ok(())
    }

    /// Reads back what was approved before a restart, from the audit records since
    /// `Pipeline::restore_since`; returns how many challenges are remembered.
    pub fn restore(&self, log: &Recovered) -> Result<usize, RestoreError> {
        let mut records = log.since(self.restore_since())?;
        let remembered = self.memory.restore(&mut records, self.clock.now())?;
        self.counted.hold(log.clone());
        self.prepare(&self.policies.current())?;
        Ok(remembered)
    }

    /// How far back a challenge may have been approved that is still good now: its longest life,
    /// and an hour for clocks that were set back since.
    fn restore_since(&self) -> Timestamp {
        let span = jiff::SignedDuration::from_secs(Challenge::LONGEST + 3_600);
        self.clock
            .now()
            .checked_sub(span)
            .unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// Approves a challenge, or says why not.
    pub async fn approve(&self, request: ApprovalRequest) -> Result<ApprovalAnswer, SigningError> {
        let result = self.decide_and_sign(&request).await;
        if let Err(error) = &result {
            self.note_refusal(&request, error);
        }
        result
    }

    /// The approval given to `caller` for that challenge, if there is one: to the same page, where a
    /// page asked for it, as one browser speaks for many.
    pub async fn find(
        &self,
        caller: &Caller,
        page: Option<&Origin>,
        challenge_jti: &Jti,
    ) -> Option<ApprovalAnswer> {
        let turn = self.memory.find(challenge_jti, self.clock.now())?;
        let mut progress = turn.lock().await;
        if let Progress::Logged(seq) = *progress {
            match self.read_back(seq).await {
                Ok(read) => *progress = read,
                Err(error) => {
                    tracing::error!(error = %crate::telemetry::Chain(&error), "an approval cannot be read back");
                    return None;
                }
            }
        }
        match &*progress {
            Progress::Approved(recorded, answer) if recorded.is_of(caller, page) => {
                Some(answer_of(challenge_jti, recorded, answer))
            }
            _ => None,
        }
    }

    async fn decide_and_sign(
        &self,
        request: &ApprovalRequest,
    ) -> Result<ApprovalAnswer, SigningError> {
        let snapshot = self.registry.snapshot();
        let asked = self.parse(request, &snapshot)?;
        let challenge = &asked.challenge;
        let installed = self.certificate(challenge, &snapshot)?;

        let turn = self
            .memory
            .turn(challenge.jti(), challenge.expires_at(), self.clock.now())
            .map_err(|none| match none {
                NoTurn::Full => SigningError::Busy,
                NoTurn::Forgotten => SigningError::Forgotten,
            })?;
        let mut progress = turn.lock().await;
        let earlier = match self.earlier(request, challenge, &mut progress).await? {
            Earlier::Answered(answer) => return Ok(answer),
            Earlier::Agreed(recorded) => Some(recorded),
            Earlier::Nothing => None,
        };

        let counted = match earlier {
            Some(_) => Counted::Already,
            None => Counted::NotYet,
        };
        let used = used(request, challenge, installed.fingerprint());
        let grant = self.authorise(request, &asked, &installed, &used, counted)?;
        let ready = match earlier {
            // The person agreed to this very payload before; only a signature is missing.
            Some(recorded) if recorded.installed.fingerprint() != installed.fingerprint() => {
                return Err(SigningError::Standing {
                    standing: Standing::Superseded,
                });
            }
            Some(recorded) => Ready {
                permit: grant.permit(recorded.given)?,
                recorded,
                pending: None,
            },
            None => {
                let agreed = match self.ask(request, &asked, &installed, &grant).await {
                    Err(SigningError::Denied) => {
                        *progress = Progress::Denied;
                        self.record_denial(request, challenge).await?;
                        return Err(SigningError::Denied);
                    }
                    agreed => agreed?,
                };
                let grant = match agreed.consent.method {
                    ConsentMethod::Policy => grant,
                    _ => {
                        self.check_again(request, &installed)?;
                        self.authorise(request, &asked, &installed, &used, counted)?
                    }
                };
                let rule = grant.rule().to_owned();
                let permit = grant.permit(agreed.given)?;
                let place = self.policies.usage().reserve(&used, self.clock.now())?;
                let recorded = self.draft(request, challenge, &installed, &agreed)?;
                let pending = self.record(request, challenge, &recorded, &rule)?;
                Ready {
                    recorded,
                    permit,
                    // The record is on its way: from here on the place is taken, unless the record
                    // turns out not to be durable.
                    pending: Some((pending, place.keep())),
                }
            }
        };
        self.answer(request, challenge, ready, &mut progress).await
    }

    /// What came of this challenge before, for this caller; refused where it was answered to
    /// another, or by a person's no.
    async fn earlier(
        &self,
        request: &ApprovalRequest,
        challenge: &Challenge,
        progress: &mut Progress,
    ) -> Result<Earlier, SigningError> {
        if let Progress::Logged(seq) = *progress {
            *progress = self.read_back(seq).await?;
        }
        match &*progress {
            Progress::Fresh => Ok(Earlier::Nothing),
            Progress::Denied => Err(SigningError::Denied),
            Progress::Spent(_) | Progress::Logged(_) => Err(SigningError::Used),
            Progress::Recorded(recorded) | Progress::Approved(recorded, _)
                if !recorded.is_of(&request.caller, request.origin.as_ref())
                    || recorded.challenge != challenge.hash() =>
            {
                Err(SigningError::Used)
            }
            Progress::Approved(recorded, answer)
                if request.cms == Cms::Omit || answer.cms.is_some() =>
            {
                Ok(Earlier::Answered(answer_of(
                    challenge.jti(),
                    recorded,
                    answer,
                )))
            }
            Progress::Recorded(recorded) | Progress::Approved(recorded, _) => {
                Ok(Earlier::Agreed(recorded.clone()))
            }
        }
    }

    /// Signs while the record goes to the disk; what was signed leaves when that is durable.
    async fn answer(
        &self,
        request: &ApprovalRequest,
        challenge: &Challenge,
        ready: Ready<'_>,
        progress: &mut Progress,
    ) -> Result<ApprovalAnswer, SigningError> {
        let Ready {
            recorded,
            permit,
            pending,
        } = ready;
        let known = match &*progress {
            Progress::Approved(_, answer) => Some(answer.signature.clone()),
            _ => None,
        };
        let is_new = known.is_none();
        let durable = async {
            match pending {
                None => Ok(recorded.seq),
                Some((pending, place)) => match pending.durable().await {
                    Ok(record) => {
                        // Told at once: whatever fails or goes away from here on, the person is
                        // not asked again, and nobody else gets an answer.
                        *progress = Progress::Recorded(Recorded {
                            seq: record.seq,
                            ..recorded.clone()
                        });
                        Ok(record.seq)
                    }
                    Err(error) => {
                        place.give_back();
                        Err(SigningError::from(error))
                    }
                },
            }
        };
        let signing = self.sign(request, &recorded, permit, known);
        let (durable, signed) = tokio::join!(durable, signing);
        // Whoever goes away before the record is durable leaves the turn as it was: nothing has
        // left, and only what is known to be durable counts.
        let seq = durable?;
        let recorded = Recorded { seq, ..recorded };
        let answer = signed?;
        if is_new {
            let jti = challenge.jti().clone();
            let body = SignedRecord::new(jti, &answer.signature, answer.cms.as_deref());
            let event = Event::new(SignedRecord::KIND, Some(request.id.clone()), &body)?;
            // Not waited for: the `approval` record is what must be durable. Should this one be
            // lost, the same payload is signed again for the same caller.
            self.audit.note(event)?;
        }
        let given = answer_of(challenge.jti(), &recorded, &answer);
        // From here on whoever asks again gets this; when all have left, the log has it.
        *progress = Progress::Approved(recorded, answer);
        Ok(given)
    }

    fn parse(&self, request: &ApprovalRequest, snapshot: &Snapshot) -> Result<Asked, SigningError> {
        let challenge = Challenge::open(&request.challenge, self.clock.now(), |issuer, kid| {
            snapshot.service_key(issuer, kid)
        })
        .map_err(SigningError::Challenge)?;
        match &request.origin {
            Some(origin) if challenge.origin() != Some(origin) => Err(SigningError::Origin {
                origin: origin.clone(),
            }),
            _ => {
                let payees = Payees::of(challenge.statement(), request.payees.as_deref())
                    .map_err(SigningError::Payees)?;
                Ok(Asked { challenge, payees })
            }
        }
    }

    /// What the log says of a challenge that was answered before.
    async fn read_back(&self, seq: Seq) -> Result<Progress, SigningError> {
        let _one_at_a_time = self.reading.lock().await;
        let (directory, snapshot) = (self.audit.directory().clone(), self.registry.snapshot());
        let read = tokio::task::spawn_blocking(move || {
            memory::read_back(seq, audit::read::from(&directory, seq)?, &snapshot)
        });
        Ok(read.await.map_err(RestoreError::from)??)
    }

    fn certificate(
        &self,
        challenge: &Challenge,
        snapshot: &Snapshot,
    ) -> Result<Arc<Installed>, SigningError> {
        let statement = challenge.statement();
        let (account, operator) = (statement.account(), statement.operator());
        let Some(installed) = snapshot.certificate(challenge.issuer(), account, operator) else {
            return Err(if snapshot.has_account(challenge.issuer(), account) {
                SigningError::NoCertificate {
                    account: account.to_string(),
                    operator: operator.to_string(),
                }
            } else {
                SigningError::OtherAccount {
                    account: account.to_string(),
                }
            });
        };
        match snapshot.standing(installed, self.clock.now()) {
            Standing::Active => Ok(installed.clone()),
            standing => Err(SigningError::Standing { standing }),
        }
    }

    /// What policy says; limits that are reached already refuse before anybody is asked.
    fn authorise(
        &self,
        request: &ApprovalRequest,
        asked: &Asked,
        installed: &Installed,
        used: &Use<'_>,
        counted: Counted,
    ) -> Result<Grant, SigningError> {
        let set = self.policies.current();
        let now = self.clock.now();
        let today = if set.reads_today() {
            counted.before(self.policies.usage().today(used, now), used)
        } else {
            Tally::default()
        };
        let decision = policy::decide(
            &set,
            &policy::Request {
                caller: &request.caller,
                policy: request.policy.as_ref(),
                key: &installed.key,
                action: Action::Approve(Approving {
                    statement: asked.challenge.statement(),
                    payees: asked.payees.as_ref(),
                    service: asked.challenge.issuer(),
                    origin: request.origin.as_ref(),
                    certificate: used.certificate,
                    today,
                }),
                now,
            },
        );
        match decision {
            Decision::Granted(grant) => {
                if counted == Counted::NotYet {
                    self.policies.usage().check(used, now)?;
                }
                Ok(grant)
            }
            Decision::Refused(refusal) => Err(refusal.into()),
        }
    }

    /// Has a person agree, as far as the grant wants it.
    async fn ask(
        &self,
        request: &ApprovalRequest,
        asked: &Asked,
        installed: &Installed,
        grant: &Grant,
    ) -> Result<Agreed, SigningError> {
        let given = grant.consent();
        let method = match given {
            ConsentRule::None => ConsentMethod::Policy,
            ConsentRule::Confirm | ConsentRule::ConfirmWithPin => {
                let answer = self.ask_person(request, asked, installed, given).await;
                match answer {
                    Err(SigningError::Consent(ConsentError::Denied)) => {
                        return Err(SigningError::Denied);
                    }
                    answer => answer?,
                }
            }
        };
        Ok(Agreed {
            consent: Consent {
                method,
                at: self.clock.now().as_second(),
            },
            given,
        })
    }

    async fn ask_person(
        &self,
        request: &ApprovalRequest,
        asked: &Asked,
        installed: &Installed,
        wanted: ConsentRule,
    ) -> Result<ConsentMethod, SigningError> {
        let token = &installed.key.token;
        let by_hand = self.devices.by_hand(token)?;
        let mut prompt = Prompt::of_statement(
            asked.challenge.statement(),
            asked.payees.as_ref(),
            request.asked_by.clone(),
            self.asker.language(),
        );
        if by_hand.touch {
            prompt.on_token = Some(OnToken::Touch {
                label: token.label.clone(),
            });
        }
        let turn = self.asker.turn().await?;
        if wanted == ConsentRule::Confirm {
            return Ok(turn.confirm(&prompt).await?);
        }
        if by_hand.protected_path {
            prompt.on_token = Some(OnToken::Pin {
                label: token.label.clone(),
            });
            turn.confirm(&prompt).await?;
            let patience = self.asker.patience();
            self.devices.check_pin(token, None, patience).await?;
            return Ok(ConsentMethod::ProtectedPath);
        }
        self.ask_pin(&turn, &prompt, token).await
    }

    /// Each PIN that a person types is tried once, and never the last try of the token.
    async fn ask_pin(
        &self,
        turn: &consent::Turn<'_>,
        prompt: &Prompt,
        token: &TokenId,
    ) -> Result<ConsentMethod, SigningError> {
        let mut again = None;
        let mut left = PIN_TRIES;
        loop {
            let pin = turn.pin(prompt, &token.label, again).await?;
            left -= 1;
            let patience = self.asker.patience();
            let checked = self.devices.check_pin(token, Some(pin), patience).await;
            again = match checked {
                Ok(()) => return Ok(ConsentMethod::Pinentry),
                Err(DeviceError::PinWrong { .. }) if left > 0 => Some(PinProblem::Wrong),
                Err(DeviceError::PinLength { .. }) if left > 0 => Some(PinProblem::Length),
                Err(error) => return Err(error.into()),
            };
        }
    }

    fn draft(
        &self,
        request: &ApprovalRequest,
        challenge: &Challenge,
        installed: &Arc<Installed>,
        agreed: &Agreed,
    ) -> Result<Recorded, SigningError> {
        let draft = ApprovalDraft::new(
            challenge,
            &request.caller.to_string(),
            request.origin.as_ref(),
            self.registry.computer(),
            &agreed.consent,
            self.clock.now(),
        )?;
        Ok(Recorded {
            // Until its record is durable.
            seq: 0,
            given: agreed.given,
            owner: request.caller.clone(),
            origin: request.origin.clone(),
            challenge: challenge.hash(),
            draft,
            installed: installed.clone(),
        })
    }

    fn record(
        &self,
        request: &ApprovalRequest,
        challenge: &Challenge,
        recorded: &Recorded,
        rule: &str,
    ) -> Result<audit::Pending, SigningError> {
        let payload = String::from_utf8_lossy(recorded.draft.payload()).into_owned();
        let body = ApprovalRecord {
            owner: request.caller.clone(),
            service: challenge.issuer().clone(),
            challenge_jti: challenge.jti().clone(),
            challenge: recorded.challenge.clone(),
            expires: challenge.expires_at().as_second(),
            jti: recorded.draft.jti().clone(),
            certificate: recorded.installed.fingerprint().to_owned(),
            key: recorded.installed.key.to_string(),
            given: Some(recorded.given),
            rule: Some(rule.to_owned()),
            payload: RawValue::from_string(payload)?,
        };
        let event = Event::new(ApprovalRecord::KIND, Some(request.id.clone()), &body)?;
        Ok(self.audit.append(event)?)
    }

    /// A person's no is final also after a crash, so it is durable before it is told.
    async fn record_denial(
        &self,
        request: &ApprovalRequest,
        challenge: &Challenge,
    ) -> Result<(), SigningError> {
        let body = DeniedRecord {
            owner: request.caller.clone(),
            challenge_jti: challenge.jti().clone(),
            expires: challenge.expires_at().as_second(),
        };
        let event = Event::new(DeniedRecord::KIND, Some(request.id.clone()), &body)?;
        self.audit.append(event)?.durable().await?;
        Ok(())
    }

    /// Signs what is missing: the approval unless `known` is its signature, and the CMS if wanted.
    async fn sign(
        &self,
        request: &ApprovalRequest,
        recorded: &Recorded,
        permit: Permit,
        known: Option<Signature>,
    ) -> Result<Answer, SigningError> {
        let installed = &recorded.installed;
        let (permit, cms_permit) = permit.with_cms();
        let signature = match known {
            Some(signature) => signature,
            None => {
                let input = recorded.draft.signing_input(&installed.header);
                self.devices
                    .sign(permit, installed.scheme, input.as_bytes())
                    .await?
            }
        };
        let cms = match (request.cms, cms_permit) {
            (Cms::Include, Some(permit)) => {
                let chain: Vec<Vec<u8>> = installed
                    .chain
                    .iter()
                    .map(|one| one.der().to_vec())
                    .collect();
                let draft = DetachedDraft::new(recorded.draft.payload(), installed.scheme, &chain)?;
                let signature = self
                    .devices
                    .sign(permit, installed.scheme, draft.to_sign())
                    .await?;
                Some(Arc::from(draft.assemble(&signature)?))
            }
            _ => None,
        };
        Ok(Answer { signature, cms })
    }

    /// A person takes time: what was true before the question must be true after it.
    fn check_again(
        &self,
        request: &ApprovalRequest,
        installed: &Installed,
    ) -> Result<(), SigningError> {
        let snapshot = self.registry.snapshot();
        let challenge = self.parse(request, &snapshot)?;
        let still = self.certificate(&challenge.challenge, &snapshot)?;
        if still.fingerprint() == installed.fingerprint() {
            Ok(())
        } else {
            Err(SigningError::Standing {
                standing: Standing::Superseded,
            })
        }
    }

    /// A refusal is recorded too, but nobody waits for it: nothing was signed.
    fn note_refusal(&self, request: &ApprovalRequest, error: &SigningError) {
        let (caller, code) = (request.caller.to_string(), (self.stable_code)(error));
        let body = serde_json::json!({
            "caller": caller,
            "origin": request.origin,
            "code": code,
            "rule": error.rule(),
            "reason": error.to_string(),
        });
        let noted = Event::new("approval-refused", Some(request.id.clone()), &body)
            .and_then(|event| self.audit.refused(&caller, code, event));
        if let Err(failure) = noted {
            tracing::warn!(request = %request.id, error = %failure, "a refusal could not be recorded");
        }
    }
}

/// Whether an approval is in the day's count already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    NotYet,
    /// It was recorded before, and only its signature is missing.
    Already,
}

impl Counted {
    /// What was approved before this approval.
    fn before(self, today: Tally, used: &Use<'_>) -> Tally {
        match self {
            Self::NotYet => today,
            Self::Already => Tally {
                count: today.count.saturating_sub(1),
                sum: today.sum.saturating_sub(
                    used.amount
                        .map_or(0, |amount| u64::try_from(amount.minor_units()).unwrap_or(0)),
                ),
            },
        }
    }
}

fn used<'a>(
    request: &'a ApprovalRequest,
    challenge: &'a Challenge,
    fingerprint: &'a str,
) -> Use<'a> {
    let statement = challenge.statement();
    Use {
        caller: &request.caller,
        certificate: fingerprint,
        account: statement.account(),
        kind: statement.kind(),
        amount: statement.amount(),
    }
}

fn answer_of(challenge_jti: &Jti, recorded: &Recorded, answer: &Answer) -> ApprovalAnswer {
    ApprovalAnswer {
        challenge_jti: challenge_jti.clone(),
        jti: recorded.draft.jti().clone(),
        approval: answer.approval(recorded),
        cms: answer.cms.clone(),
    }
}
