//! `key`: the service's own keys on the token, and their change.
//!
//! A change has two steps with time between them. `key rotate` makes the next key, which is
//! published at once and vouched for by the present ones, so that daemons learn it from `opcert
//! sync`; `key activate` lets it work. The one before it stays published: a challenge key as long
//! as `--overlap-days` says, for what it signed and for daemons that were away; a key of the
//! authority, and one that secrets were sealed to, until `key retire`. A running service takes up
//! what changed when it is started again.
//!
//! The next key of the authority comes with its own self-signed certificate and with the
//! certificates by which it and the present key vouch for each other. It takes the authority's
//! name, so nothing else changes for whoever reads certificates. Secrets are sealed anew when the
//! next key is activated, and once more before the old one is retired, for what a running service
//! sealed to it in between.

use std::sync::Arc;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::AdminError;
use super::desk::{Desk, look};
use super::output::{Output, table};
use crate::account::config::Config;
use crate::account::issuing::{Authority, RevocationReason, certify_authority, certify_link};
use crate::account::revocation::{ADMINISTRATION, Revocation};
use crate::account::seal::Sealer;
use crate::account::service::read_code_key;
use crate::account::signer::Signer;
use crate::account::store::certificates;
use crate::account::store::keys::{self, KeyPurpose, Link, ServiceKey, Turn};
use crate::account::store::{Tx, secrets};
use crate::account::vault::Vault;
use crate::base::Clock;
use crate::base::encoding::hex;
use crate::base::key::KeySpec;
use crate::base::pkcs11::KeyId;
use crate::base::x509::Certificate;
use crate::device::{Devices, GeneratedKey, KeyUse};

/// How long a key that is to stay until it is retired is published: longer than anything of it
/// lasts.
const UNTIL_RETIRED: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How long a challenge key stays published where nothing else is said, in days.
const OVERLAP_DAYS: u16 = 30;

/// Keys of the authority that are published at once; daemons pin no more.
const AUTHORITIES: usize = 8;

/// Certificates that are revoked in one step.
const STEP: i64 = 1000;

/// Which key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Which {
    /// The key of challenges and tickets.
    Challenge,
    /// The key of the issuing authority.
    Issuing,
    /// The key that API secrets are sealed to.
    Sealing,
}

impl Which {
    fn purpose(self) -> KeyPurpose {
        match self {
            Self::Challenge => KeyPurpose::Challenge,
            Self::Issuing => KeyPurpose::Issuing,
            Self::Sealing => KeyPurpose::Sealing,
        }
    }

    /// Its label on the token, what it is for there, and its kind.
    fn on_token(self) -> (&'static str, KeyUse, KeySpec) {
        match self {
            Self::Challenge => ("opcert challenges", KeyUse::Sign, KeySpec::P256),
            Self::Issuing => ("opcert issuing authority", KeyUse::Sign, KeySpec::P256),
            Self::Sealing => ("opcert secrets", KeyUse::Decrypt, KeySpec::Rsa2048),
        }
    }
}

/// `key …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the keys that work, that come next, and that are still published.
    List,
    /// Make the next key on the token. It is published, and does not work yet.
    Rotate {
        /// Which.
        #[arg(value_enum, default_value_t = Which::Challenge)]
        key: Which,
    },
    /// Let the next key work in place of the present one.
    Activate {
        /// Which.
        #[arg(value_enum, default_value_t = Which::Challenge)]
        key: Which,
        /// How long the present challenge key stays published, for daemons that have not met the
        /// next one. Default: 30. The other keys stay until `key retire`.
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(1..=3650))]
        overlap_days: Option<u16>,
    },
    /// Take a key that works no more out of what is published: from the next start of the service
    /// on, nothing of it is good.
    Retire {
        /// Its fingerprint, as `key list` shows it.
        fingerprint: String,
        /// Revoke the certificates in force that it signed; without this they stand in the way.
        #[arg(long)]
        with_certificates: bool,
    },
}

pub(super) async fn run(
    command: Command,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    match command {
        Command::List => list(config, output).await,
        Command::Rotate { key } => rotate(key, config, output).await,
        Command::Activate { key, overlap_days } => {
            activate(key, overlap_days, config, output).await
        }
        Command::Retire {
            fingerprint,
            with_certificates,
        } => retire(&fingerprint, with_certificates, config, output).await,
    }
}

async fn list(config: &Config, output: &Output) -> Result<(), AdminError> {
    let now = Clock::system().now();
    let found = look(config, "list keys", move |tx| {
        Box::pin(async move {
            let mut found: Vec<(KeyPurpose, &'static str, ServiceKey)> = Vec::new();
            for purpose in [
                KeyPurpose::Issuing,
                KeyPurpose::Challenge,
                KeyPurpose::Sealing,
            ] {
                let current = keys::current(tx, purpose).await?;
                let next = keys::next(tx, purpose).await?;
                let retired = keys::retired(tx, purpose, now).await?;
                let works = match purpose {
                    KeyPurpose::Sealing => "seals",
                    _ => "signs",
                };
                found.extend(current.map(|key| (purpose, works, key)));
                found.extend(next.map(|key| (purpose, "next", key)));
                found.extend(
                    retired
                        .into_iter()
                        .map(|key| (purpose, "still published", key)),
                );
            }
            Ok(found)
        })
    })
    .await?;
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|(purpose, state, key)| {
            vec![
                purpose.as_str().to_owned(),
                (*state).to_owned(),
                key.created_at.to_string(),
                hex(&key.public_key.fingerprint()),
                key.key.to_string(),
            ]
        })
        .collect();
    let values = found
        .iter()
        .map(|(purpose, state, key)| {
            json!({
                "purpose": purpose.as_str(),
                "state": state,
                "created_at": key.created_at.to_string(),
                "fingerprint": hex(&key.public_key.fingerprint()),
                "key": key.key.to_string(),
            })
        })
        .collect();
    let head = ["PURPOSE", "STATE", "CREATED", "FINGERPRINT", "KEY"];
    output.done(&table(&head, &rows), &serde_json::Value::Array(values))
}

/// Works with database, trail and tokens, and closes them whatever comes of it.
async fn with_devices<T>(
    config: &Config,
    work: impl AsyncFnOnce(&Desk, &Devices) -> Result<T, AdminError>,
) -> Result<T, AdminError> {
    let desk = Desk::open(config).await?;
    let directory = &config.state_directory;
    let devices = Devices::start(config.devices(), directory, desk.clock.clone()).await?;
    let done = work(&desk, &devices).await;
    devices.shutdown().await;
    let closed = desk.close().await;
    let done = done?;
    closed?;
    Ok(done)
}

async fn rotate(which: Which, config: &Config, output: &Output) -> Result<(), AdminError> {
    let fingerprint = with_devices(config, async |desk, devices| {
        let purpose = which.purpose();
        let there = desk.store.read("find next key", move |tx| {
            Box::pin(may_rotate(tx, purpose, desk.clock.now()))
        });
        there.await?;
        let (label, r#use, spec) = which.on_token();
        let token = devices.select(&config.token).await?;
        let generated = devices
            .generate_for(&token, spec, r#use, &KeyId::random(), label)
            .await?;
        let kept = keep(which, &generated, desk, devices).await;
        if kept.is_err()
            && let Err(error) = devices.delete_key(&generated.key).await
        {
            tracing::warn!(key = %generated.key, %error, "a key of the failed run is left on the token");
        }
        kept
    })
    .await?;
    let (kind, then) = match which {
        Which::Challenge => (
            "challenge key",
            "give every computer the time for an `opcert sync`",
        ),
        Which::Issuing => (
            "key of the issuing authority",
            "give every computer the time for an `opcert sync`, and whoever verifies approvals the \
             new ca.pem",
        ),
        Which::Sealing => ("sealing key", "see that every instance runs"),
    };
    let purpose = which.purpose().as_str();
    output.done(
        &format!(
            "The next {kind} is {fingerprint}. It does not work yet.\n\
             Next: start the service again, so that it publishes the key; {then}; then \
             `opcert-accountd key activate {purpose}`."
        ),
        &json!({ "purpose": purpose, "fingerprint": fingerprint }),
    )
}

/// Whether a next key may be made.
async fn may_rotate(
    tx: &mut Tx<'_>,
    purpose: KeyPurpose,
    now: jiff::Timestamp,
) -> Result<(), AdminError> {
    let what = purpose.as_str();
    if keys::next(tx, purpose).await?.is_some() {
        return Err(AdminError::Exists {
            what: format!("a next {what} key"),
        });
    }
    let published = keys::retired(tx, purpose, now).await?.len() + 2;
    if purpose == KeyPurpose::Issuing && published > AUTHORITIES {
        return Err(AdminError::Exists {
            what: format!(
                "{AUTHORITIES} published keys of the authority; retire one first, and more"
            ),
        });
    }
    Ok(())
}

/// Puts a new key down, with what it needs to work.
async fn keep(
    which: Which,
    generated: &GeneratedKey,
    desk: &Desk,
    devices: &Devices,
) -> Result<String, AdminError> {
    let purpose = which.purpose();
    let now = desk.clock.now();
    let waived = generated.proof.waived.as_slice();
    let mut key = ServiceKey {
        key: generated.key.clone(),
        public_key: generated.public_key.clone(),
        certificate: None,
        created_at: now,
    };
    let mut links = Vec::new();
    if which == Which::Issuing {
        let present = desk.store.read("find present key", |tx| {
            Box::pin(async move {
                keys::current(tx, KeyPurpose::Issuing)
                    .await?
                    .ok_or_else(|| AdminError::Missing {
                        what: "key of the issuing authority".into(),
                    })
            })
        });
        let present = authority(present.await?, devices)?;
        let signer = Signer::new(devices.clone(), key.key.clone(), key.public_key.clone());
        let name = present.certificate.subject().clone();
        let certificate = certify_authority(&signer, name, now).await?;
        key.certificate = Some(certificate.der().to_vec());
        let next = Authority {
            signer,
            certificate,
        };
        for (by, of) in [(&present, &next), (&next, &present)] {
            links.push(Link {
                subject: of.key(),
                issuer: by.key(),
                certificate: certify_link(by, &of.certificate).await?.der().to_vec(),
            });
        }
    }
    let fingerprint = keys::name(&key.public_key);
    let (key, links, named) = (&key, &links, fingerprint.as_str());
    desk.store
        .transaction("name the next key", move |tx| {
            Box::pin(async move {
                may_rotate(tx, purpose, now).await?;
                keys::insert(tx, purpose, key, Turn::Next).await?;
                for link in links {
                    keys::insert_link(tx, link).await?;
                }
                let body = json!({
                    "purpose": purpose.as_str(),
                    "fingerprint": named,
                    "key": key.key.to_string(),
                    "waived": waived,
                });
                desk.write("service-key-made", body).await
            })
        })
        .await?;
    Ok(fingerprint)
}

/// A key of the authority, ready to sign.
fn authority(key: ServiceKey, devices: &Devices) -> Result<Authority, AdminError> {
    let certificate = Certificate::from_der(key.certificate.as_deref().unwrap_or_default())?;
    Ok(Authority {
        certificate,
        signer: Signer::new(devices.clone(), key.key, key.public_key),
    })
}

async fn activate(
    which: Which,
    overlap_days: Option<u16>,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    if which != Which::Challenge && overlap_days.is_some() {
        return Err(AdminError::Input {
            what: "--overlap-days",
            problem: "is for the challenge key; the others stay until `key retire`".into(),
        });
    }
    let days = overlap_days.unwrap_or(OVERLAP_DAYS);
    let overlap = match which {
        Which::Challenge => Duration::from_secs(u64::from(days) * 24 * 60 * 60),
        Which::Issuing | Which::Sealing => UNTIL_RETIRED,
    };
    let purpose = which.purpose();
    let until = with_devices(config, async |desk, devices| {
        let sealer = &sealer(config)?;
        desk.store
            .transaction("activate the next key", move |tx| {
                Box::pin(async move {
                    let now = desk.clock.now();
                    let until = now + overlap;
                    if !keys::activate(tx, purpose, until, now).await? {
                        let purpose = purpose.as_str();
                        return Err(AdminError::Missing {
                            what: format!(
                                "next {purpose} key: make one with `opcert-accountd key rotate \
                                 {purpose}`"
                            ),
                        });
                    }
                    if which == Which::Sealing {
                        reseal(tx, devices, sealer, now).await?;
                    }
                    let body = json!({
                        "purpose": purpose.as_str(),
                        "earlier_published_until": until.to_string(),
                    });
                    desk.write("service-key-activated", body).await?;
                    Ok::<_, AdminError>(until)
                })
            })
            .await
    })
    .await?;
    let (text, until) = match which {
        Which::Challenge => (
            format!("stays published until {until}"),
            Some(until.to_string()),
        ),
        Which::Issuing | Which::Sealing => (
            "stays published until `opcert-accountd key retire`".to_owned(),
            None,
        ),
    };
    let purpose = purpose.as_str();
    output.done(
        &format!(
            "The next {purpose} key works from the next start of the service on; the one before \
             {text}."
        ),
        &json!({ "purpose": purpose, "earlier_published_until": until }),
    )
}

fn sealer(config: &Config) -> Result<Arc<Sealer>, AdminError> {
    let key = read_code_key(&config.state_directory)?;
    Ok(Arc::new(Sealer::new(&key)))
}

/// Seals every secret to the present key; needs the token for those that are sealed to another.
async fn reseal(
    tx: &mut Tx<'_>,
    devices: &Devices,
    sealer: &Arc<Sealer>,
    now: jiff::Timestamp,
) -> Result<(), AdminError> {
    let purpose = KeyPurpose::Sealing;
    let present = keys::current(tx, purpose).await?;
    let present = present.ok_or_else(|| AdminError::Missing {
        what: "sealing key".into(),
    })?;
    let others = keys::retired(tx, purpose, now).await?;
    let vault = Vault::new(devices.clone(), present, others, sealer.clone())?;
    for row in secrets::hold_all(tx).await? {
        let Some(sealed) = secrets::sealed(tx, &row.id).await? else {
            continue;
        };
        let secret = vault.open(&row, &sealed).await?;
        secrets::reseal(tx, &row.id, &vault.seal(&row, &secret)?).await?;
    }
    Ok(())
}

async fn retire(
    fingerprint: &str,
    with_certificates: bool,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let revoked = with_devices(config, async |desk, devices| {
        let sealer = &sealer(config)?;
        desk.store
            .transaction("retire a key", move |tx| {
                Box::pin(async move {
                    let now = desk.clock.now();
                    let purpose = earlier(tx, fingerprint, now).await?;
                    let mut revoked = 0;
                    match purpose {
                        KeyPurpose::Issuing if with_certificates => {
                            revoked = revoke_all(tx, desk, fingerprint, now).await?;
                        }
                        KeyPurpose::Issuing => {
                            let count = certificates::in_force_by(tx, fingerprint, now).await?;
                            if count > 0 {
                                return Err(AdminError::InUse {
                                    key: fingerprint.to_owned(),
                                    count,
                                });
                            }
                        }
                        KeyPurpose::Sealing => reseal(tx, devices, sealer, now).await?,
                        KeyPurpose::Challenge => (),
                    }
                    keys::withdraw(tx, purpose, fingerprint, now).await?;
                    let body = json!({
                        "purpose": purpose.as_str(),
                        "fingerprint": fingerprint,
                        "revoked": revoked,
                    });
                    desk.write("service-key-retired", body).await?;
                    Ok::<_, AdminError>(revoked)
                })
            })
            .await
    })
    .await?;
    output.done(
        &format!(
            "Key {fingerprint} is retired from the next start of the service on; {revoked} \
             certificates were revoked."
        ),
        &json!({ "fingerprint": fingerprint, "revoked": revoked }),
    )
}

/// What a key that works no more was for.
async fn earlier(
    tx: &mut Tx<'_>,
    fingerprint: &str,
    now: jiff::Timestamp,
) -> Result<KeyPurpose, AdminError> {
    for purpose in [
        KeyPurpose::Issuing,
        KeyPurpose::Challenge,
        KeyPurpose::Sealing,
    ] {
        let found = keys::retired(tx, purpose, now).await?;
        if found
            .iter()
            .any(|key| hex(&key.public_key.fingerprint()) == fingerprint)
        {
            return Ok(purpose);
        }
    }
    Err(AdminError::Missing {
        what: format!(
            "published key {fingerprint} that works no more: see `opcert-accountd key list`"
        ),
    })
}

/// Revokes what a key of the authority signed and is in force; gives how many.
async fn revoke_all(
    tx: &mut Tx<'_>,
    desk: &Desk,
    fingerprint: &str,
    now: jiff::Timestamp,
) -> Result<usize, AdminError> {
    let revocation = Revocation::new(RevocationReason::Superseded, ADMINISTRATION);
    let mut revoked = 0;
    loop {
        let found = certificates::active_by(tx, fingerprint, now, STEP).await?;
        if found.is_empty() {
            return Ok(revoked);
        }
        let serials = revocation
            .apply::<AdminError>(tx, &desk.records, &found, now, &desk.request)
            .await?;
        revoked += serials.len();
    }
}
