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

mod agreement;
mod counted;
mod error;
mod memory;
pub mod token_test;
mod trail;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::value::RawValue;

use self::agreement::Agreed;
use self::counted::CountedBefore;
pub use self::error::{RestoreError, SigningError};
use self::memory::{Answer, Memory, NoTurn, Progress, Recorded, Seq};
pub use self::memory::{GRACE, MAX_ENTRIES};
use self::trail::{ApprovalRecord, DeniedRecord, SignedRecord};
use crate::audit::{self, Audit, Event, Recovered};
use crate::base::Clock;
use crate::base::cms::DetachedDraft;
use crate::base::ids::{Jti, RequestId};
use crate::base::key::Signature;
use crate::consent::{AskedBy, Asker};
use crate::device::Devices;
use crate::enrol::{Installed, Registry, Snapshot, Standing};
use crate::policy::{
    self, Action, Approving, Caller, ClientPolicy, ConsentMethod, Decision, Grant, Kept, Permit,
    Policies, PolicySet, Tally, Use,
};
use crate::statement::{ApprovalDraft, Challenge, Origin, Payee, Payees};

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
            trail::read_back(seq, audit::read::from(&directory, seq)?, &snapshot)
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
