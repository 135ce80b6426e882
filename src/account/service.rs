//! The running service: everything opened, nothing bound yet.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::codes::Codes;
use super::config::{Config, DatabaseError};
use super::enrolment::Enrolment;
use super::issuing::{Authority, Issuer};
use super::key_proof::Makers;
use super::logins::Logins;
use super::manage::Manage;
use super::ocsp::Responder;
use super::operations::{Notify as Notices, Operations};
use super::passwords::{PasswordError, Passwords};
use super::portal::config::Portal;
use super::records::Records;
use super::recovery::Requests;
use super::seal::Sealer;
use super::secrets::Secrets;
use super::sessions::Sessions;
use super::signer::{ChallengeKey, SignError, Signer};
use super::sms::{Gateway, Texts};
use super::store::keys::{self, KeyPurpose, ServiceKey};
use super::store::{Store, StoreError, Tx};
use super::vault::Vault;
use crate::audit::{Audit, AuditError, Checkpointer};
use crate::base::Clock;
use crate::base::files::{FileError, Readers, read_checked};
use crate::base::jose::InvalidJwk;
use crate::base::jwe::JweError;
use crate::base::secret::SecretBytes;
use crate::base::x509::{Certificate, X509Error};
use crate::device::{DeviceError, Devices};
use crate::enrol::EnrolError;

/// The file of the HMAC key for codes, in the state directory.
pub const CODE_KEY_FILE: &str = "code-key";

/// Length of that key, in bytes.
pub const CODE_KEY_BYTES: usize = 32;

/// How long the vouched key sets are given again as they are.
pub const VOUCHED_KEPT: Duration = Duration::from_secs(5 * 60);

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database cannot be used.
    #[error("cannot use the database")]
    Store(#[from] StoreError),
    /// The address of the database cannot be made.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A key file cannot be used.
    #[error("cannot use a key file")]
    File(#[from] FileError),
    /// The key for codes is not what `init` wrote.
    #[error("{} must hold {CODE_KEY_BYTES} bytes", path.display())]
    CodeKey {
        /// The file.
        path: PathBuf,
    },
    /// `init` has not made this key.
    #[error("the database names no {what} key")]
    KeyMissing {
        /// Which.
        what: &'static str,
    },
    /// The challenge key is not P-256.
    #[error("the challenge key cannot be published")]
    ChallengeKey(#[from] InvalidJwk),
    /// The sealing key is not RSA.
    #[error("the sealing key cannot be used")]
    SealingKey(#[from] JweError),
    /// The authority's certificate is malformed.
    #[error("the certificate of the issuing authority cannot be read")]
    Authority(#[from] X509Error),
    /// The modules cannot be started.
    #[error("cannot start the PKCS#11 modules")]
    Devices(#[from] DeviceError),
    /// The audit trail cannot be opened.
    #[error("cannot open the audit trail")]
    Audit(#[from] AuditError),
    /// An authority for the attestation of keys cannot be read.
    #[error("the authorities of [attestation] cannot be read")]
    Makers(#[from] EnrolError),
    /// Argon2 does not work.
    #[error("cannot hash passwords")]
    Passwords(#[from] PasswordError),
}

/// What every request handler has; cloning shares it.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    audit: Audit,
    devices: Devices,
    codes: Codes,
    enrolment: Enrolment,
    operations: Operations,
    issuer: Issuer,
    responder: Responder,
    sessions: Sessions,
    manage: Manage,
    requests: Requests,
    secrets: Secrets,
    records: Records,
    sealer: Arc<Sealer>,
    portal: Portal,
    challenge_key: ChallengeKey,
    /// When the vouched key sets were made, and the sets.
    vouched: tokio::sync::Mutex<Option<(jiff::Timestamp, Vec<String>)>>,
    outbox: Notify,
}

impl Service {
    /// Opens database, keys, devices and audit trail. A token that is not there is no reason to
    /// stay down: what needs it is refused until it is.
    pub async fn open(config: &Config, clock: Clock, gateway: Gateway) -> Result<Self, StartError> {
        let store = Store::open(&config.database()?).await?;
        let code_key = read_code_key(&config.state_directory)?;
        let keys = find_keys(&store, clock.now()).await?;
        let directory = config.state_directory.join("audit");
        let (audit, _) = Audit::open(&directory, config.audit.clone(), clock.clone())?;
        let records = Records::new(audit.clone(), clock.clone());
        let devices =
            Devices::start(config.devices(), &config.state_directory, clock.clone()).await?;

        let signer = |key: ServiceKey| Signer::new(devices.clone(), key.key, key.public_key);
        let challenge_key = ChallengeKey::new(
            signer(keys.challenge),
            config.origin.clone(),
            keys.earlier_challenge.into_iter().map(signer),
            keys.next_challenge.map(signer),
        )?;
        let authority = |key: ServiceKey| {
            let certificate = key.certificate.as_deref();
            let certificate = certificate.ok_or(StartError::KeyMissing { what: "issuing" })?;
            Ok::<_, StartError>(Authority {
                certificate: Certificate::from_der(certificate)?,
                signer: signer(key),
            })
        };
        let current = authority(keys.issuing)?;
        let others = keys
            .other_issuing
            .into_iter()
            .map(authority)
            .collect::<Result<Vec<_>, _>>()?;
        let published = std::iter::once(&current).chain(&others);
        let responder = Responder::new(store.clone(), clock.clone(), published.cloned().collect());
        let issuer = Issuer::new(
            store.clone(),
            clock.clone(),
            current,
            others,
            keys.links,
            &config.origin,
            config.certificates.validity_days,
        );
        let texts = Texts::new(store.clone(), clock.clone(), gateway);
        let logins = Logins::new(store.clone(), clock.clone(), Passwords::new()?);
        let codes = Codes::new(
            store.clone(),
            clock.clone(),
            logins.clone(),
            records.clone(),
            &code_key,
            texts.clone(),
            config.sms.clone(),
        );
        let sessions = Sessions::new(
            store.clone(),
            clock.clone(),
            logins.clone(),
            records.clone(),
            &code_key,
            config.sessions,
        );
        let operations = Operations {
            store: store.clone(),
            clock: clock.clone(),
            records: records.clone(),
            challenge_key: challenge_key.clone(),
            issuer: issuer.clone(),
            rules: config.operations,
            notify: match config.webhook {
                Some(_) => Notices::Outbox,
                None => Notices::No,
            },
            texts: texts.clone(),
            delay: Duration::from_secs(config.recovery.delay_seconds),
        };
        let sealer = Arc::new(Sealer::new(&code_key));
        let requests = Requests {
            store: store.clone(),
            clock: clock.clone(),
            records: records.clone(),
            operations: operations.clone(),
            texts: texts.clone(),
            sealer: sealer.clone(),
            delay: Duration::from_secs(config.recovery.delay_seconds),
            papers_kept: config.recovery.papers_kept(),
        };
        let vault = Vault::new(
            devices.clone(),
            keys.sealing,
            keys.other_sealing,
            sealer.clone(),
        )?;
        let secrets = Secrets {
            store: store.clone(),
            clock: clock.clone(),
            records: records.clone(),
            codes: codes.clone(),
            vault,
            challenge_key: challenge_key.clone(),
            issuer: issuer.clone(),
            operations: operations.clone(),
            texts: texts.clone(),
        };
        let manage = Manage {
            store: store.clone(),
            clock: clock.clone(),
            records: records.clone(),
            operations: operations.clone(),
            texts: texts.clone(),
            quotas: config.quotas,
        };
        let enrolment = Enrolment {
            store: store.clone(),
            clock: clock.clone(),
            records: records.clone(),
            codes: codes.clone(),
            challenge_key: challenge_key.clone(),
            issuer: issuer.clone(),
            operations: operations.clone(),
            texts: texts.clone(),
            quotas: config.quotas,
            ticket_lifetime: config.certificates.ticket_lifetime_seconds,
            makers: Makers::read(config.attestation.as_ref())?,
        };
        Ok(Self(Arc::new(Inner {
            store,
            clock,
            audit,
            devices,
            codes,
            enrolment,
            operations,
            issuer,
            responder,
            sessions,
            manage,
            requests,
            secrets,
            records,
            sealer,
            portal: config.portal.clone(),
            challenge_key,
            vouched: tokio::sync::Mutex::default(),
            outbox: Notify::new(),
        })))
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The audit trail.
    pub fn audit(&self) -> &Audit {
        &self.0.audit
    }

    /// What signs checkpoints of the audit trail, where that is configured.
    pub fn checkpointer(&self, config: &Config) -> Option<Checkpointer> {
        let inner = &self.0;
        let wanted = config.audit.checkpoint.clone()?;
        let issuer = config.origin.to_string();
        let (audit, devices) = (inner.audit.clone(), inner.devices.clone());
        Some(Checkpointer::new(
            audit,
            devices,
            inner.clock.clone(),
            issuer,
            wanted,
        ))
    }

    /// SMS codes.
    pub fn codes(&self) -> &Codes {
        &self.0.codes
    }

    /// Tickets and certificates.
    pub fn enrolment(&self) -> &Enrolment {
        &self.0.enrolment
    }

    /// Operations.
    pub fn operations(&self) -> &Operations {
        &self.0.operations
    }

    /// The issuing authority.
    pub fn issuer(&self) -> &Issuer {
        &self.0.issuer
    }

    /// Whether certificates are good.
    pub fn responder(&self) -> &Responder {
        &self.0.responder
    }

    /// Sessions of people.
    pub fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// What people see of their account, and delete.
    pub fn manage(&self) -> &Manage {
        &self.0.manage
    }

    /// Ways back in after a loss.
    pub fn requests(&self) -> &Requests {
        &self.0.requests
    }

    /// The accounts' API secrets.
    pub fn secrets(&self) -> &Secrets {
        &self.0.secrets
    }

    /// The audit trail, for what is done beside the services here.
    pub fn records(&self) -> &Records {
        &self.0.records
    }

    /// What the portal was told.
    pub fn portal(&self) -> &Portal {
        &self.0.portal
    }

    /// What seals with the key of the state directory.
    pub fn sealer(&self) -> &Sealer {
        &self.0.sealer
    }

    /// The key of challenges and tickets.
    pub fn challenge_key(&self) -> &ChallengeKey {
        &self.0.challenge_key
    }

    /// The key set as the service's keys vouch for it; made anew after [`VOUCHED_KEPT`], so that
    /// strangers who ask keep no token busy.
    pub async fn vouched_keys(&self) -> Result<Vec<String>, SignError> {
        let mut kept = self.0.vouched.lock().await;
        let now = self.0.clock.now();
        if let Some((made_at, sets)) = &*kept
            && *made_at <= now
            && now < *made_at + VOUCHED_KEPT
        {
            return Ok(sets.clone());
        }
        let authorities = self.0.issuer.anchors();
        let sets = self.0.challenge_key.vouched_sets(authorities, now).await?;
        *kept = Some((now, sets.clone()));
        Ok(sets)
    }

    /// Tells the delivery of notices that there may be one.
    pub fn outbox_changed(&self) {
        self.0.outbox.notify_one();
    }

    /// Waits until [`Service::outbox_changed`] is called, or was since the last time.
    pub async fn wait_for_outbox(&self) {
        self.0.outbox.notified().await;
    }

    /// Closes audit trail, devices and database, in this order.
    pub async fn close(&self) {
        if let Err(error) = self.0.audit.close().await {
            tracing::error!(%error, "the audit trail could not be closed");
        }
        self.0.devices.shutdown().await;
        self.0.store.close().await;
    }
}

/// Reads the key in the state directory.
pub(super) fn read_code_key(state_directory: &Path) -> Result<SecretBytes, StartError> {
    let path = state_directory.join(CODE_KEY_FILE);
    let bytes = read_checked(&path, Readers::Owner, CODE_KEY_BYTES as u64)?;
    if bytes.len() == CODE_KEY_BYTES {
        Ok(SecretBytes::new(bytes))
    } else {
        Err(StartError::CodeKey { path })
    }
}

struct Keys {
    issuing: ServiceKey,
    challenge: ServiceKey,
    sealing: ServiceKey,
    /// Keys that opened or will open secrets.
    other_sealing: Vec<ServiceKey>,
    earlier_challenge: Vec<ServiceKey>,
    next_challenge: Option<ServiceKey>,
    /// Keys of the authority that are published and do not sign certificates.
    other_issuing: Vec<ServiceKey>,
    /// What the published keys of the authority say of each other.
    links: Vec<Certificate>,
}

async fn find_keys(store: &Store, now: jiff::Timestamp) -> Result<Keys, StartError> {
    store
        .read("find keys", move |tx| {
            Box::pin(async move {
                let current = async |tx: &mut Tx<'_>, purpose: KeyPurpose| {
                    let what = purpose.as_str();
                    let found = keys::current(tx, purpose).await?;
                    found.ok_or(StartError::KeyMissing { what })
                };
                let issuing = current(tx, KeyPurpose::Issuing).await?;
                let mut other_issuing = keys::retired(tx, KeyPurpose::Issuing, now).await?;
                other_issuing.extend(keys::next(tx, KeyPurpose::Issuing).await?);
                let published: Vec<String> = std::iter::once(&issuing)
                    .chain(&other_issuing)
                    .map(|key| keys::name(&key.public_key))
                    .collect();
                let links = keys::links(tx).await?.into_iter();
                let links = links
                    .filter(|link| {
                        published.contains(&link.subject) && published.contains(&link.issuer)
                    })
                    .map(|link| Certificate::from_der(&link.certificate))
                    .collect::<Result<Vec<_>, _>>()?;
                let mut other_sealing = keys::retired(tx, KeyPurpose::Sealing, now).await?;
                other_sealing.extend(keys::next(tx, KeyPurpose::Sealing).await?);
                Ok(Keys {
                    issuing,
                    other_sealing,
                    challenge: current(tx, KeyPurpose::Challenge).await?,
                    sealing: current(tx, KeyPurpose::Sealing).await?,
                    earlier_challenge: keys::retired(tx, KeyPurpose::Challenge, now).await?,
                    next_challenge: keys::next(tx, KeyPurpose::Challenge).await?,
                    other_issuing,
                    links,
                })
            })
        })
        .await
}
