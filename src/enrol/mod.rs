//! The local half of enrolment: a key that never left the token gets its certificate.
//!
//! STEPS. [`Enroller::begin`] checks the ticket, writes the enrolment down, has the token
//! generate a key, proves the key by reading it back and by its [`attestation`], where the device
//! gives one, and has it sign a certification request.
//! A courier carries the request to the service and the certificate back;
//! [`Enroller::complete`] checks it against key, authority and ticket, writes it to the token and
//! puts it into the [`registry`].
//!
//! PERSISTENT STATE. One file an enrolment, `enrolments/ID.json`, replaced whole at each step:
//! `generating` is written before the key exists, `requested` once the request is signed; the
//! file goes when the certificate is in the registry. The same ticket always leads to the same
//! enrolment.
//!
//! CRASH. What stands at `generating` may have left a key nobody asks for: [`Enroller::reclaim`]
//! deletes it from the token. What stands at `requested` goes on where it stopped. What was
//! installed but whose file is still there is finished by looking at the registry.
//!
//! What never lives here: connections. What the service said is handed in, and checked.

pub mod attestation;
mod installed;
pub mod registry;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use attestation::Attestation;
pub use installed::{Installed, Service, Snapshot, Standing};
pub use registry::{Registry, RegistryError};

use crate::audit::{Audit, AuditError, Event};
use crate::base::Clock;
use crate::base::encoding::{base64, from_base64};
use crate::base::files::{self, FileError, Readers};
use crate::base::ids::{EnrolmentId, Jti, RequestId};
use crate::base::jose::JwkSet;
use crate::base::key::{KeySpec, PublicKey};
use crate::base::pkcs11::{KeyId, KeyRef, TokenUri};
use crate::base::x509::{
    AboutKey, Certificate, OperatingIdentity, RemoteKey, X509Error, request_draft_about,
    verify_operating_certificate,
};
use crate::device::{DeviceError, Devices, Waiver};
use crate::policy::{self, Caller, Consent, ConsentRule, Decision, Purpose, Refusal};
use crate::statement::{Origin, ServiceError, Ticket};

/// At most this many enrolments may be under way; past it the oldest must be ended first.
pub const MAX_PENDING: usize = 32;

/// Largest enrolment file, in bytes.
const MAX_FILE: u64 = 256 * 1024;

/// Why an enrolment did not go on.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The ticket is malformed, expired or not of the service that was named.
    #[error("the enrolment ticket is refused: {0}")]
    Ticket(ServiceError),
    /// The ticket names another computer.
    #[error("the enrolment ticket is for computer {ticket}, this is {computer}")]
    OtherComputer {
        /// In the ticket.
        ticket: String,
        /// This one.
        computer: String,
    },
    /// What was said about the service is refused.
    #[error(transparent)]
    Service(RegistryError),
    /// Too many enrolments are under way.
    #[error("{MAX_PENDING} enrolments are under way, which is the limit")]
    TooMany,
    /// There is no such enrolment.
    #[error("there is no enrolment {id}")]
    Unknown {
        /// The id.
        id: EnrolmentId,
    },
    /// The enrolment is not at a step where this can be done.
    #[error("the key of enrolment {id} is still being generated")]
    NotReady {
        /// The id.
        id: EnrolmentId,
    },
    /// None of the certificates is for the key of this enrolment.
    #[error("none of the certificates is for the key of this enrolment")]
    OtherKey,
    /// The certificate speaks for somebody else than the ticket.
    #[error("the certificate speaks for {certificate}, the ticket for {ticket}")]
    OtherIdentity {
        /// In the certificate.
        certificate: String,
        /// In the ticket.
        ticket: String,
    },
    /// The certificate is malformed or not of the pinned authority.
    #[error("the certificate is refused: {0}")]
    Certificate(#[from] X509Error),
    /// The token does not attest the key, and must.
    #[error("token {token} shows no attestation of the key that ends at a configured authority")]
    NotAttested {
        /// The token.
        token: String,
    },
    /// Policy says no.
    #[error("policy refuses: {0}")]
    Policy(#[from] Refusal),
    /// The token did not do its part.
    #[error("the token did not do its part")]
    Device(#[from] DeviceError),
    /// The audit record cannot be written.
    #[error("the audit record cannot be written")]
    Audit(#[from] AuditError),
    /// The state of the enrolment cannot be kept.
    #[error("the state of the enrolment cannot be kept")]
    File(#[from] FileError),
    /// A state file does not hold what we wrote.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// What the courier brings to begin with.
#[derive(Debug)]
pub struct Begin {
    /// The ticket, compact.
    pub ticket: String,
    /// The service's origin, as the courier reached it.
    pub origin: Origin,
    /// Its challenge keys.
    pub keys: JwkSet,
    /// Its issuing authorities, DER.
    pub authorities: Vec<Vec<u8>>,
    /// The token to use; the only configured one where absent.
    pub token: Option<TokenUri>,
    /// The kind of key.
    pub key_type: KeySpec,
    /// How consent to it came about: a local user's own command, or a person's answer.
    pub consent: Consent,
}

/// How far an enrolment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The key is being generated.
    Generating,
    /// The request is signed and waits for its certificate.
    Requested,
}

/// An enrolment under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// Its id.
    pub id: EnrolmentId,
    /// How far it is.
    pub step: Step,
    /// The service.
    pub origin: Origin,
    /// The account.
    pub account: crate::base::ids::AccountId,
    /// The operator.
    pub operator: crate::base::ids::OperatorId,
    /// The kind of key.
    pub key_type: KeySpec,
    /// The key on the token.
    pub key: KeyRef,
    /// When it began.
    pub begun_at: Timestamp,
    /// When its ticket expires.
    pub expires_at: Timestamp,
    /// The certification request, base64 DER, once it is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// What the token did not prove of the key, and the configuration waives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waived: Vec<Waiver>,
    /// The device's word that the key was made in it, where it gives one and authorities are
    /// configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Attestation>,
    ticket: String,
    ticket_jti: Jti,
    keys: JwkSet,
    authorities: Vec<String>,
}

impl Enrolment {
    /// The ticket, for a courier that resumes.
    pub fn ticket(&self) -> &str {
        &self.ticket
    }

    fn service(&self) -> Result<Service, EnrolError> {
        let authorities = self
            .authorities
            .iter()
            .map(|text| {
                let der = from_base64(text.as_bytes()).unwrap_or_default();
                Certificate::from_der(&der)
            })
            .collect::<Result<_, _>>()?;
        Service::new(self.origin.clone(), self.keys.clone(), authorities)
            .map_err(EnrolError::Service)
    }
}

/// Runs enrolments; a handle to be shared behind an `Arc`.
pub struct Enroller {
    directory: PathBuf,
    devices: Devices,
    registry: Registry,
    audit: Audit,
    clock: Clock,
    /// Held through each step, so that steps of one enrolment never overlap.
    stepping: tokio::sync::Mutex<()>,
}

impl Enroller {
    /// Enrolments in the state directory `directory`.
    pub fn new(
        directory: &Path,
        devices: Devices,
        registry: Registry,
        audit: Audit,
        clock: Clock,
    ) -> Result<Self, EnrolError> {
        let directory = directory.join("enrolments");
        files::private_directory(&directory)?;
        Ok(Self {
            directory,
            devices,
            registry,
            audit,
            clock,
            stepping: tokio::sync::Mutex::new(()),
        })
    }

    /// Whom the ticket of `begin` would make a key speak for, to be shown to a person; `None`
    /// where the ticket began its enrolment before. [`Enroller::begin`] checks it all again.
    pub fn preview(&self, begin: &Begin) -> Result<Option<OperatingIdentity>, EnrolError> {
        let (ticket, _) = self.admit(begin, self.clock.now())?;
        let known = self
            .list()?
            .iter()
            .any(|known| known.ticket_jti == *ticket.jti() && known.step == Step::Requested);
        Ok((!known).then(|| ticket.identity().clone()))
    }

    /// Begins an enrolment, or finds the one this ticket began, and brings it to the point where
    /// the certification request is signed.
    pub async fn begin(
        &self,
        request: RequestId,
        caller: &Caller,
        begin: Begin,
    ) -> Result<Enrolment, EnrolError> {
        let _stepping = self.stepping.lock().await;
        let now = self.clock.now();
        let (ticket, service) = self.admit(&begin, now)?;
        let pending = self.list()?;
        if let Some(known) = pending
            .iter()
            .find(|known| known.ticket_jti == *ticket.jti())
        {
            if known.step == Step::Requested {
                return Ok(known.clone());
            }
            self.discard(known).await?;
        } else if pending.len() >= MAX_PENDING {
            return Err(EnrolError::TooMany);
        }
        let token = self
            .devices
            .select(&begin.token.unwrap_or_default())
            .await?;
        let mut enrolment = Enrolment {
            id: EnrolmentId::random(),
            step: Step::Generating,
            origin: begin.origin,
            account: ticket.identity().account.clone(),
            operator: ticket.identity().operator.clone(),
            key_type: begin.key_type,
            key: KeyRef {
                token,
                id: KeyId::random(),
            },
            begun_at: now,
            expires_at: ticket.expires_at(),
            request: None,
            waived: Vec::new(),
            attestation: None,
            ticket: begin.ticket,
            ticket_jti: ticket.jti().clone(),
            keys: begin.keys,
            authorities: service
                .authorities()
                .iter()
                .map(|authority| base64(authority.der()))
                .collect(),
        };
        self.record("enrolment-begun", &request, &enrolment, Some(caller))
            .await?;
        self.save(&enrolment)?;
        let made = self
            .make_request(
                &request,
                caller,
                &begin.consent,
                &mut enrolment,
                ticket.identity(),
            )
            .await;
        match made {
            Ok(signed) => {
                enrolment.request = Some(base64(&signed));
                enrolment.step = Step::Requested;
                self.save(&enrolment)?;
                Ok(enrolment)
            }
            Err(error) => {
                // The key may be there or not; what cannot be taken back now is reclaimed later.
                if let Err(left) = self.discard(&enrolment).await {
                    tracing::warn!(enrolment = %enrolment.id, error = %left, "the key of a failed enrolment is left on the token for now");
                }
                Err(error)
            }
        }
    }

    /// Installs the certificate that the service issued for enrolment `id`; `certificates` holds
    /// it and perhaps its issuers, DER, in any order.
    pub async fn complete(
        &self,
        request: RequestId,
        id: &EnrolmentId,
        certificates: &[Vec<u8>],
    ) -> Result<std::sync::Arc<Installed>, EnrolError> {
        let _stepping = self.stepping.lock().await;
        let now = self.clock.now();
        let enrolment = self.load(id)?;
        if enrolment.step == Step::Generating {
            return Err(EnrolError::NotReady { id: id.clone() });
        }
        let service = enrolment.service()?;
        let key = self.devices.public_key(&enrolment.key).await?;
        let chain = arrange(certificates, &key, service.authorities())?;
        let leaf = chain.first().ok_or(EnrolError::OtherKey)?;
        let intermediates = chain.get(1..).unwrap_or_default();
        verify_operating_certificate(leaf, intermediates, service.authorities(), None, now)?;
        let expected = OperatingIdentity {
            account: enrolment.account.clone(),
            operator: enrolment.operator.clone(),
            computer: self.registry.computer().clone(),
        };
        if leaf.identity().as_ref() != Some(&expected) {
            return Err(EnrolError::OtherIdentity {
                certificate: leaf
                    .identity()
                    .map_or_else(|| "nobody".into(), |id| id.uri()),
                ticket: expected.uri(),
            });
        }
        self.devices
            .write_certificate(&enrolment.key, leaf.der())
            .await?;
        let installed = Installed::new(
            enrolment.origin.clone(),
            enrolment.key.clone(),
            chain.clone(),
            now,
        )?;
        let mut body = serde_json::json!({
            "enrolment": id,
            "service": enrolment.origin,
            "account": enrolment.account,
            "operator": enrolment.operator,
            "certificate": installed.fingerprint(),
            "key": enrolment.key.to_string(),
        });
        proof(&enrolment, &mut body);
        let event = Event::new("certificate-installed", Some(request), &body)?;
        self.audit.append(event)?.durable().await?;
        let installed = self
            .registry
            .install(service, installed)
            .map_err(EnrolError::Service)?;
        self.remove(id)?;
        Ok(installed)
    }

    /// Enrolments under way, oldest first.
    pub fn list(&self) -> Result<Vec<Enrolment>, EnrolError> {
        let unreadable = |source| FileError::Unreadable {
            path: self.directory.clone(),
            source,
        };
        let mut pending = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                pending.push(read(&path)?);
            }
        }
        pending.sort_by_key(|enrolment| enrolment.begun_at);
        Ok(pending)
    }

    /// Ends an enrolment: its key goes from the token.
    pub async fn cancel(
        &self,
        request: RequestId,
        caller: &Caller,
        id: &EnrolmentId,
    ) -> Result<(), EnrolError> {
        let _stepping = self.stepping.lock().await;
        let enrolment = self.load(id)?;
        self.record("enrolment-cancelled", &request, &enrolment, Some(caller))
            .await?;
        self.discard(&enrolment).await
    }

    /// Finishes what a crash left half done. A token that is not there now keeps its orphan until
    /// the next call; the error says so.
    pub async fn reclaim(&self) -> Result<(), EnrolError> {
        let _stepping = self.stepping.lock().await;
        let snapshot = self.registry.snapshot();
        for enrolment in self.list()? {
            let installed = snapshot
                .certificates()
                .iter()
                .any(|installed| installed.key == enrolment.key);
            if installed {
                self.remove(&enrolment.id)?;
            } else if enrolment.step == Step::Generating {
                self.discard(&enrolment).await?;
            }
        }
        Ok(())
    }

    /// Checks the ticket with the service's own keys, and the service with what is pinned.
    fn admit(&self, begin: &Begin, now: Timestamp) -> Result<(Ticket, Service), EnrolError> {
        let authorities = begin
            .authorities
            .iter()
            .map(|der| Certificate::from_der(der))
            .collect::<Result<_, _>>()?;
        let service = Service::new(begin.origin.clone(), begin.keys.clone(), authorities)
            .map_err(EnrolError::Service)?;
        let snapshot = self.registry.snapshot();
        if let Some(pinned) = snapshot.service(&begin.origin)
            && !pinned.pins(&service)
        {
            return Err(EnrolError::Service(RegistryError::Keys {
                origin: begin.origin.to_string(),
                problem: "it differs from the set that is pinned here".into(),
            }));
        }
        let ticket = Ticket::open(&begin.ticket, now, |issuer, kid| {
            if *issuer != begin.origin {
                return Err(crate::statement::NoKey::Issuer);
            }
            service
                .key(kid)
                .cloned()
                .ok_or(crate::statement::NoKey::Key)
        })
        .map_err(EnrolError::Ticket)?;
        if ticket.identity().computer != *self.registry.computer() {
            return Err(EnrolError::OtherComputer {
                ticket: ticket.identity().computer.to_string(),
                computer: self.registry.computer().to_string(),
            });
        }
        Ok((ticket, service))
    }

    async fn make_request(
        &self,
        request: &RequestId,
        caller: &Caller,
        consent: &Consent,
        enrolment: &mut Enrolment,
        identity: &OperatingIdentity,
    ) -> Result<Vec<u8>, EnrolError> {
        let label = format!("opcert {} {}", enrolment.account, enrolment.operator);
        let generated = self
            .devices
            .generate(
                &enrolment.key.token,
                enrolment.key_type,
                &enrolment.key.id,
                &label,
            )
            .await?;
        let (key, now) = (&enrolment.key, self.clock.now());
        let found = attestation::attest(&self.devices, key, &generated.public_key, now).await?;
        if found.is_some() {
            enrolment.attestation = found;
            self.record("key-attested", request, enrolment, Some(caller))
                .await?;
        }
        enrolment.waived = generated.proof.waived;
        let note = Waiver::note(&enrolment.waived);
        if note.is_some() {
            self.record("key-proof-waived", request, enrolment, Some(caller))
                .await?;
        }
        let path = match &enrolment.attestation {
            Some(attestation) => attestation.certificates(),
            None => Vec::new(),
        };
        let draft = request_draft_about(
            identity.subject()?,
            vec![identity.alternative_name()?],
            AboutKey {
                note: note.as_deref(),
                path: &path,
            },
            RemoteKey::new(generated.public_key),
        )?;
        let decision = policy::decide_own(caller, &enrolment.key, Purpose::CertificateRequest);
        let permit = match decision {
            Decision::Refused(refusal) => return Err(refusal.into()),
            Decision::Granted(grant) => grant.permit(ConsentRule::of_method(consent.method))?,
        };
        let signature = self
            .devices
            .sign(permit, draft.scheme(), draft.to_sign())
            .await?;
        Ok(draft.assemble(&signature)?)
    }

    async fn discard(&self, enrolment: &Enrolment) -> Result<(), EnrolError> {
        match self.devices.delete_key(&enrolment.key).await {
            Ok(()) | Err(DeviceError::KeyMissing { .. }) => self.remove(&enrolment.id),
            Err(error) => Err(error.into()),
        }
    }

    async fn record(
        &self,
        kind: &'static str,
        request: &RequestId,
        enrolment: &Enrolment,
        caller: Option<&Caller>,
    ) -> Result<(), EnrolError> {
        let mut body = serde_json::json!({
            "enrolment": enrolment.id,
            "caller": caller.map(ToString::to_string),
            "service": enrolment.origin,
            "account": enrolment.account,
            "operator": enrolment.operator,
            "key": enrolment.key.to_string(),
            "key_type": enrolment.key_type,
        });
        proof(enrolment, &mut body);
        let event = Event::new(kind, Some(request.clone()), &body)?;
        self.audit.append(event)?.durable().await?;
        Ok(())
    }

    fn path(&self, id: &EnrolmentId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    fn load(&self, id: &EnrolmentId) -> Result<Enrolment, EnrolError> {
        let path = self.path(id);
        if path.exists() {
            read(&path)
        } else {
            Err(EnrolError::Unknown { id: id.clone() })
        }
    }

    fn save(&self, enrolment: &Enrolment) -> Result<(), EnrolError> {
        let path = self.path(&enrolment.id);
        let bytes = serde_json::to_vec_pretty(enrolment).map_err(|error| EnrolError::Damaged {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        Ok(files::write_atomic(&path, &bytes, 0o600)?)
    }

    fn remove(&self, id: &EnrolmentId) -> Result<(), EnrolError> {
        let path = self.path(id);
        std::fs::remove_file(&path)
            .and_then(|()| files::sync_directory(&self.directory))
            .map_err(|source| FileError::Unwritable { path, source }.into())
    }
}

/// What records say of how the key was proven, where it is more or less than usual.
fn proof(enrolment: &Enrolment, body: &mut serde_json::Value) {
    if !enrolment.waived.is_empty() {
        body["waived"] = serde_json::json!(enrolment.waived);
    }
    if let Some(attestation) = &enrolment.attestation {
        body["attestation"] = serde_json::json!(attestation.record());
    }
}

fn read(path: &Path) -> Result<Enrolment, EnrolError> {
    let bytes = files::read_checked(path, Readers::Owner, MAX_FILE)?;
    serde_json::from_slice(&bytes).map_err(|error| EnrolError::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

/// Puts the certificate for `key` first and its issuers after it; authorities that are pinned
/// anyway, and certificates that lead nowhere, are left out.
fn arrange(
    certificates: &[Vec<u8>],
    key: &PublicKey,
    authorities: &[Certificate],
) -> Result<Vec<Certificate>, EnrolError> {
    let mut rest = certificates
        .iter()
        .map(|der| Certificate::from_der(der))
        .collect::<Result<Vec<_>, _>>()?;
    let leaf = rest
        .iter()
        .position(|certificate| certificate.public_key() == key)
        .ok_or(EnrolError::OtherKey)?;
    let mut chain = vec![rest.swap_remove(leaf)];
    rest.retain(|certificate| {
        authorities
            .iter()
            .all(|authority| authority.der() != certificate.der())
    });
    while let Some(next) = chain.last().and_then(|last| {
        rest.iter()
            .position(|certificate| certificate.subject() == last.issuer())
    }) {
        chain.push(rest.swap_remove(next));
    }
    Ok(chain)
}
