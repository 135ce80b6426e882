//! `key`: the service's own keys on the token, and their change.
//!
//! A change has two steps with time between them. `key rotate` makes the next key, which is
//! published at once and vouched for by the present one, so that daemons learn it from `opcert
//! sync`; `key activate` lets it sign. The old one stays published as long as `--overlap-days`
//! says, for what it signed and for daemons that were away. A running service takes up what
//! changed when it is started again.

use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use super::AdminError;
use super::desk::{Desk, change, look};
use super::output::{Output, table};
use crate::account::config::Config;
use crate::account::store::keys::{self, KeyPurpose, ServiceKey, Turn};
use crate::base::Clock;
use crate::base::encoding::hex;
use crate::base::key::KeySpec;
use crate::base::pkcs11::KeyId;
use crate::device::Devices;

/// `key …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the keys that sign, that come next, and that are still published.
    List,
    /// Make the next challenge key on the token. It is published, and does not sign yet.
    Rotate,
    /// Let the next challenge key sign in place of the present one.
    Activate {
        /// How long the present key stays published, for daemons that have not met the next one.
        #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3650))]
        overlap_days: u16,
    },
}

pub(super) async fn run(
    command: Command,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    match command {
        Command::List => list(config, output).await,
        Command::Rotate => rotate(config, output).await,
        Command::Activate { overlap_days } => activate(overlap_days, config, output).await,
    }
}

async fn list(config: &Config, output: &Output) -> Result<(), AdminError> {
    let now = Clock::system().now();
    let found = look(config, "list keys", move |tx| {
        Box::pin(async move {
            let mut found: Vec<(KeyPurpose, &'static str, ServiceKey)> = Vec::new();
            for purpose in [KeyPurpose::Issuing, KeyPurpose::Challenge] {
                let current = keys::current(tx, purpose).await?;
                let next = keys::next(tx, purpose).await?;
                let retired = keys::retired(tx, purpose, now).await?;
                found.extend(current.map(|key| (purpose, "signs", key)));
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

async fn rotate(config: &Config, output: &Output) -> Result<(), AdminError> {
    let desk = Desk::open(config).await?;
    let devices = Devices::start(
        config.devices(),
        &config.state_directory,
        desk.clock.clone(),
    )
    .await?;
    let made = generate(config, &desk, &devices).await;
    devices.shutdown().await;
    let closed = desk.close().await;
    let fingerprint = made?;
    closed?;
    output.done(
        &format!(
            "The next challenge key is {fingerprint}. It does not sign yet.\n\
             Next: start the service again, so that it publishes the key; give every computer the \
             time for an `opcert sync`; then `opcert-accountd key activate`."
        ),
        &json!({ "fingerprint": fingerprint }),
    )
}

/// Makes the key and puts it down; a key that cannot be put down does not stay on the token.
async fn generate(config: &Config, desk: &Desk, devices: &Devices) -> Result<String, AdminError> {
    let waiting = || AdminError::Exists {
        what: "a next challenge key".into(),
    };
    let there = desk
        .store
        .read("find next key", |tx| {
            Box::pin(
                async move { Ok::<_, AdminError>(keys::next(tx, KeyPurpose::Challenge).await?) },
            )
        })
        .await?;
    if there.is_some() {
        return Err(waiting());
    }
    let token = devices.select(&config.token).await?;
    let generated = devices
        .generate(&token, KeySpec::P256, &KeyId::random(), "opcert challenges")
        .await?;
    let fingerprint = hex(&generated.public_key.fingerprint());
    let waived = generated.proof.waived.as_slice();
    let key = &ServiceKey {
        key: generated.key.clone(),
        public_key: generated.public_key,
        certificate: None,
        created_at: desk.clock.now(),
    };
    let named = fingerprint.as_str();
    let kept = desk
        .store
        .transaction("name the next key", move |tx| {
            Box::pin(async move {
                if keys::next(tx, KeyPurpose::Challenge).await?.is_some() {
                    return Err(waiting());
                }
                keys::insert(tx, KeyPurpose::Challenge, key, Turn::Next).await?;
                let body = json!({
                    "purpose": KeyPurpose::Challenge.as_str(),
                    "fingerprint": named,
                    "key": key.key.to_string(),
                    "waived": waived,
                });
                desk.write("service-key-made", body).await
            })
        })
        .await;
    if let Err(error) = kept {
        if let Err(error) = devices.delete_key(&generated.key).await {
            tracing::warn!(key = %generated.key, %error, "a key of the failed run is left on the token");
        }
        return Err(error);
    }
    Ok(fingerprint)
}

async fn activate(overlap_days: u16, config: &Config, output: &Output) -> Result<(), AdminError> {
    let overlap = Duration::from_secs(u64::from(overlap_days) * 24 * 60 * 60);
    let until = change(config, "activate the next key", move |tx, desk| {
        Box::pin(async move {
            let now = desk.clock.now();
            let until = now + overlap;
            if !keys::activate(tx, KeyPurpose::Challenge, until, now).await? {
                return Err(AdminError::Missing {
                    what: "next challenge key: make one with `opcert-accountd key rotate`".into(),
                });
            }
            let body = json!({
                "purpose": KeyPurpose::Challenge.as_str(),
                "earlier_published_until": until.to_string(),
            });
            desk.write("service-key-activated", body).await?;
            Ok(until)
        })
    })
    .await?;
    output.done(
        &format!(
            "The next challenge key signs from the next start of the service on; the one before \
             stays published until {until}."
        ),
        &json!({ "earlier_published_until": until.to_string() }),
    )
}
