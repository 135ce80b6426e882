//! `platform-key`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::AdminError;
use super::desk::{change, look};
use super::output::{Output, table};
use crate::account::config::Config;
use crate::account::routes::operations::Scope;
use crate::account::store::accounts::{self, PlatformProof};
use crate::base::encoding::{base64url, hex, sha256};
use crate::base::files::{Readers, read_checked};
use crate::base::ids::{ClientName, random};
use crate::base::x509::Certificate;

/// `platform-key …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a key for the platform's backend and print it, once.
    Create {
        /// A name to know it by.
        name: ClientName,
        /// What it may do; may be given several times. Default: everything.
        #[arg(long)]
        scope: Vec<Scope>,
        /// The TLS client certificate (PEM) that stands for the key, instead of a secret.
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
    },
    /// List the keys.
    List,
    /// Withdraw a key: nothing is taken from it any more.
    Revoke {
        /// Its name.
        name: ClientName,
    },
}

pub(super) async fn run(
    command: Command,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    match command {
        Command::Create {
            name,
            scope,
            certificate,
        } => create(&name, &scope, certificate, config, output).await,
        Command::List => list(config, output).await,
        Command::Revoke { name } => revoke(&name, config, output).await,
    }
}

async fn create(
    name: &ClientName,
    scope: &[Scope],
    certificate: Option<PathBuf>,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let certificate = certificate
        .map(|path| {
            let pem = read_checked(&path, Readers::Anybody, 64 * 1024)?;
            Ok::<_, AdminError>(hex(&Certificate::from_pem(&pem)?.fingerprint()))
        })
        .transpose()?;
    let key = format!("opk_{}", base64url(&random::<32>()));
    let key_hash = hex(&sha256(key.as_bytes()));
    let (wanted, scopes) = (name.as_str(), scopes(scope));
    let scopes = scopes.as_str();
    let proof = match &certificate {
        Some(hash) => PlatformProof::Certificate(hash),
        None => PlatformProof::Key(&key_hash),
    };
    change(config, "create platform key", move |tx, desk| {
        Box::pin(async move {
            let now = desk.clock.now();
            if !accounts::insert_platform_key(tx, wanted, proof, scopes, now).await? {
                return Err(AdminError::Exists {
                    what: format!("platform key {wanted}"),
                });
            }
            let body = json!({ "name": wanted, "scopes": scopes });
            desk.write("platform-key-created", body).await
        })
    })
    .await?;
    match &certificate {
        Some(hash) => output.done(
            &format!("Platform key {name} is the certificate with SHA-256 {hash}."),
            &json!({ "name": name, "certificate_sha256": hash }),
        ),
        None => output.done(&key, &json!({ "name": name, "key": key })),
    }
}

/// Scopes as the database keeps them; none given is all.
fn scopes(given: &[Scope]) -> String {
    let given = if given.is_empty() { &Scope::ALL } else { given };
    let names: Vec<&str> = given.iter().map(|scope| scope.as_str()).collect();
    names.join(" ")
}

async fn list(config: &Config, output: &Output) -> Result<(), AdminError> {
    let found = look(config, "list platform keys", |tx| {
        Box::pin(async move { Ok(accounts::platform_keys(tx).await?) })
    })
    .await?;
    let state = |key: &accounts::PlatformKey| match key.revoked_at {
        Some(at) => format!("withdrawn {at}"),
        None => "active".into(),
    };
    let form = |key: &accounts::PlatformKey| match key.is_certificate {
        true => "certificate",
        false => "secret",
    };
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|key| {
            vec![
                key.name.clone(),
                form(key).to_owned(),
                key.scopes.clone(),
                key.created_at.to_string(),
                state(key),
            ]
        })
        .collect();
    let values = found
        .iter()
        .map(|key| {
            json!({
                "name": key.name,
                "form": form(key),
                "scopes": key.scopes.split(' ').collect::<Vec<_>>(),
                "created_at": key.created_at.to_string(),
                "revoked_at": key.revoked_at.map(|at| at.to_string()),
            })
        })
        .collect();
    let head = ["NAME", "FORM", "SCOPES", "CREATED", "STATE"];
    output.done(&table(&head, &rows), &serde_json::Value::Array(values))
}

async fn revoke(name: &ClientName, config: &Config, output: &Output) -> Result<(), AdminError> {
    let wanted = name.as_str();
    change(config, "withdraw platform key", move |tx, desk| {
        Box::pin(async move {
            if !accounts::revoke_platform_key(tx, wanted, desk.clock.now()).await? {
                return Err(AdminError::Missing {
                    what: format!("platform key {wanted} in force"),
                });
            }
            desk.write("platform-key-withdrawn", json!({ "name": wanted }))
                .await
        })
    })
    .await?;
    output.done(
        &format!("Platform key {name} withdrawn; nothing is taken from it any more."),
        &json!({ "name": name }),
    )
}
