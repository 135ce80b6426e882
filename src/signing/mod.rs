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

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::audit::verify::VerifyError;
use crate::audit::{Audit, AuditError, Event, Recovered};
use crate::base::Clock;
use crate::base::cms::{CmsError, DetachedDraft};
use crate::base::ids::{Jti, RequestId};
use crate::base::key::Signature;
use crate::consent::{Asker, ConsentError, Prompt};
use crate::device::{DeviceError, Devices};
use crate::enrol::{Installed, Registry, Snapshot, Standing};
use crate::policy::{
    self, Action, Approving, Caller, ClientPolicy, Consent, ConsentMethod, ConsentRule, Decision,
    Grant, Permit, Policies, PolicySet, Refusal, Tally, Use,
};
use crate::statement::{ApprovalDraft, Challenge, Language, Origin, ServiceError};

use counted::CountedBefore;
use memory::{
    Answer, ApprovalRecord, DeniedRecord, Memory, NoRoom, Progress, Recorded, SignedRecord,
};
pub use memory::{GRACE, MAX_ENTRIES};

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The challenge is refused.
    #[error("the challenge is refused: {0}")]
    Challenge(ServiceError),
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
    pub shown_as: String,
    /// The compact challenge.
    pub challenge: String,
    /// The page that relays it, where one does.
    pub origin: Option<Origin>,
    /// Whether a CMS signature is wanted too.
    pub cms: Cms,
    /// The language a person is asked in.
    pub language: Language,
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
        let records = log.since(self.restore_since())?;
        let snapshot = self.registry.snapshot();
        let remembered = self.memory.restore(records, &snapshot, self.clock.now())?;
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

    /// The approval given to `caller` for that challenge, if there is one.
    pub async fn find(&self, caller: &Caller, challenge_jti: &Jti) -> Option<ApprovalAnswer> {
        let entry = self.memory.find(challenge_jti)?;
        match &*entry.lock().await {
            Progress::Approved(recorded, answer) if recorded.owner == *caller => {
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
        let challenge = self.parse(request, &snapshot)?;
        let installed = self.certificate(&challenge, &snapshot)?;

        let entry = self
            .memory
            .entry(challenge.jti(), challenge.expires_at(), self.clock.now())
            .map_err(|NoRoom| SigningError::Busy)?;
        let mut progress = entry.lock().await;
        let earlier = match &*progress {
            Progress::Fresh => None,
            Progress::Denied => return Err(SigningError::Denied),
            Progress::Spent => return Err(SigningError::Used),
            Progress::Recorded(recorded) | Progress::Approved(recorded, _)
                if recorded.owner != request.caller || recorded.challenge != challenge.hash() =>
            {
                return Err(SigningError::Used);
            }
            Progress::Approved(recorded, answer)
                if request.cms == Cms::Omit || answer.cms.is_some() =>
            {
                return Ok(answer_of(challenge.jti(), recorded, answer));
            }
            Progress::Recorded(recorded) | Progress::Approved(recorded, _) => {
                Some(recorded.clone())
            }
        };

        let counted = match earlier {
            Some(_) => Counted::Already,
            None => Counted::NotYet,
        };
        let used = used(request, &challenge, installed.fingerprint());
        let grant = self.authorise(request, &challenge, &installed, &used, counted)?;
        let (recorded, permit, pending) = match earlier {
            // The person agreed to this very payload before; only a signature is missing.
            Some(recorded) if recorded.installed.fingerprint() != installed.fingerprint() => {
                return Err(SigningError::Standing {
                    standing: Standing::Superseded,
                });
            }
            Some(recorded) => {
                let permit = grant.permit(&recorded.draft.consent()?)?;
                (recorded, permit, None)
            }
            None => {
                let consent = match self.ask(request, &challenge, &grant).await {
                    Ok(consent) => consent,
                    Err(error) => {
                        if matches!(error, SigningError::Denied) {
                            self.record_denial(request, &challenge)?;
                            *progress = Progress::Denied;
                        }
                        return Err(error);
                    }
                };
                if consent.method != ConsentMethod::Policy {
                    self.check_again(request, &installed)?;
                }
                let grant = match consent.method {
                    ConsentMethod::Policy => grant,
                    _ => self.authorise(request, &challenge, &installed, &used, counted)?,
                };
                let rule = grant.rule().to_owned();
                let permit = grant.permit(&consent)?;
                let place = self.policies.usage().reserve(&used, self.clock.now())?;
                let recorded = self.draft(request, &challenge, &installed, &consent)?;
                let pending = self.record(request, &challenge, &recorded, &rule)?;
                // The record is on its way: from here on the place is taken, unless the record
                // turns out not to be durable.
                (recorded, permit, Some((pending, place.keep())))
            }
        };

        let durable = async {
            match pending {
                None => Ok(()),
                Some((pending, place)) => match pending.durable().await {
                    Ok(_) => Ok(()),
                    Err(error) => {
                        place.give_back();
                        Err(SigningError::from(error))
                    }
                },
            }
        };
        let known = match &*progress {
            Progress::Approved(_, answer) => Some(answer.signature.clone()),
            _ => None,
        };
        let is_new = known.is_none();
        let signing = self.sign(request, &recorded, permit, known);
        let (durable, signed) = tokio::join!(durable, signing);
        // Whoever goes away before this point leaves the turn as it was: nothing has left, and
        // only what is known to be durable counts.
        durable?;
        let answer = match signed {
            Ok(answer) => answer,
            Err(error) => {
                if is_new {
                    *progress = Progress::Recorded(recorded);
                }
                return Err(error);
            }
        };
        if is_new {
            let jti = challenge.jti().clone();
            let body = SignedRecord::new(jti, &answer.signature, answer.cms.as_deref());
            let event = Event::new(SignedRecord::KIND, Some(request.id.clone()), &body)?;
            // Not waited for: the `approval` record is what must be durable. Should this one be
            // lost, the same payload is signed again for the same caller.
            self.audit.note(event)?;
        }
        let given = answer_of(challenge.jti(), &recorded, &answer);
        *progress = Progress::Approved(recorded, answer);
        Ok(given)
    }

    fn parse(
        &self,
        request: &ApprovalRequest,
        snapshot: &Snapshot,
    ) -> Result<Challenge, SigningError> {
        let challenge = Challenge::open(&request.challenge, self.clock.now(), |issuer, kid| {
            snapshot.service_key(issuer, kid)
        })
        .map_err(SigningError::Challenge)?;
        match &request.origin {
            Some(origin) if challenge.origin() != Some(origin) => Err(SigningError::Origin {
                origin: origin.clone(),
            }),
            _ => Ok(challenge),
        }
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
        challenge: &Challenge,
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
                    statement: challenge.statement(),
                    service: challenge.issuer(),
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

    async fn ask(
        &self,
        request: &ApprovalRequest,
        challenge: &Challenge,
        grant: &Grant,
    ) -> Result<Consent, SigningError> {
        let method = match grant.consent() {
            ConsentRule::None => ConsentMethod::Policy,
            ConsentRule::ConfirmWithPin => {
                return Err(SigningError::Consent(ConsentError::Unavailable {
                    reason: "policy wants the token's PIN entered on the device for this \
                             operation, and no configured token can be asked for it"
                        .into(),
                }));
            }
            ConsentRule::Confirm => {
                let lines = challenge
                    .statement()
                    .lines(request.language)
                    .into_iter()
                    .map(|(label, value)| (label.to_owned(), value))
                    .collect();
                let prompt = Prompt {
                    title: challenge
                        .statement()
                        .kind()
                        .title(request.language)
                        .to_owned(),
                    client: request.shown_as.clone(),
                    lines,
                    language: request.language,
                };
                match self.asker.ask(prompt).await {
                    Ok(method) => method,
                    Err(ConsentError::Denied) => return Err(SigningError::Denied),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        Ok(Consent {
            method,
            at: self.clock.now().as_second(),
        })
    }

    fn draft(
        &self,
        request: &ApprovalRequest,
        challenge: &Challenge,
        installed: &Arc<Installed>,
        consent: &Consent,
    ) -> Result<Recorded, SigningError> {
        let draft = ApprovalDraft::new(
            challenge,
            &request.caller.to_string(),
            request.origin.as_ref(),
            self.registry.computer(),
            consent,
            self.clock.now(),
        )?;
        Ok(Recorded {
            owner: request.caller.clone(),
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
    ) -> Result<crate::audit::Pending, SigningError> {
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
            rule: Some(rule.to_owned()),
            payload: RawValue::from_string(payload)?,
        };
        let event = Event::new(ApprovalRecord::KIND, Some(request.id.clone()), &body)?;
        Ok(self.audit.append(event)?)
    }

    fn record_denial(
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
        let _ = self.audit.append(event)?;
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
        let still = self.certificate(&challenge, &snapshot)?;
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
        let body = serde_json::json!({
            "caller": request.caller.to_string(),
            "origin": request.origin,
            "rule": error.rule(),
            "reason": error.to_string(),
        });
        let noted = Event::new("approval-refused", Some(request.id.clone()), &body)
            .and_then(|event| self.audit.note(event));
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
