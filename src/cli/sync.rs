//! `opcert sync`: carries what the daemon cannot fetch itself, as it opens no connection: the
//! revocation list, the next keys and issuing authorities of a service that changes them, and API
//! secrets.
//!
//! Secrets take two rounds: the daemon's requests bring what is newer than what it has, and once
//! it has taken that, its next requests say so.

use std::path::{Path, PathBuf};

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::account_service::{Address, Service};
use super::error::Error;
use super::output::Output;
use super::{Global, daemon};
use crate::api::client::Client;
use crate::api::types::CrlTaken;
use crate::base::files::{FileError, write_atomic};
use crate::base::sysexits::EX_OK;
use crate::base::x509::Certificate;
use crate::merchants::{SecretRequests, SecretSet};
use crate::wechatpay::MerchantId;

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Fetches the revocation list from the account service, its next keys and issuing \
                  authorities where it changes them, and the API secrets of merchants that take theirs from it, and \
                  hands them to the daemon, which checks them. Meant for a timer. With --save, what \
                  `opcert verify` needs is left in a directory too.",
    after_help = "Examples:\n  \
        opcert sync --service https://accounts.example\n  \
        opcert sync --service https://accounts.example --save published"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    service: Address,
    /// Also write ca.pem, crl.der and jwks.json of the service to this directory.
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
}

/// The list that was taken, in a few words.
pub(super) fn describe(taken: &CrlTaken) -> String {
    let count = match taken.revoked {
        0 => "no certificate revoked".to_owned(),
        1 => "1 certificate revoked".to_owned(),
        count => format!("{count} certificates revoked"),
    };
    format!(
        "revocation list {} handed to the daemon: {count}",
        taken.number
    )
}

pub(super) async fn run(
    arguments: &Arguments,
    global: &Global,
    output: &Output,
) -> Result<u8, Error> {
    let mut daemon = daemon::control(global).await?;
    let mut service = Service::connect(&arguments.service).await?;
    // Keys first: the list may be signed by a key of the authority that is met only now.
    if carry_keys(&mut service, &mut daemon).await? {
        output.done("the daemon took the next keys of the account service");
    }
    let revocations = carry_revocations(&mut service, &mut daemon).await?;
    let origin = arguments.service.origin();
    let secrets = carry_secrets(&mut service, &mut daemon, origin, output).await?;
    if let Some(folder) = &arguments.save {
        save(&mut service, folder).await?;
        output.done(&format!(
            "ca.pem, crl.der and jwks.json are in {}",
            folder.display()
        ));
    }
    let carried = Carried {
        revocations,
        secrets,
    };
    output.result(&carried, |_| {
        let mut lines = vec![describe(&carried.revocations)];
        lines.extend(carried.secrets.iter().map(describe_secret));
        lines.join("\n")
    })?;
    Ok(EX_OK)
}

/// What was handed to the daemon.
#[derive(Debug, Serialize)]
struct Carried {
    #[serde(flatten)]
    revocations: CrlTaken,
    secrets: Vec<SecretSet>,
}

/// A secret that was taken, in a few words.
pub(super) fn describe_secret(set: &SecretSet) -> String {
    let version = set.secret.version.unwrap_or_default();
    format!(
        "{} secret of merchant {} handed to the daemon: version {version}",
        set.secret.kind, set.merchant
    )
}

/// What the service gives for a request.
#[derive(Debug, Deserialize)]
struct Given {
    state: String,
    secrets: Vec<String>,
}

/// Carries the daemon's requests for secrets to the service and what comes of them back, until
/// nothing is new. Gives what the daemon took.
pub(super) async fn carry_secrets(
    service: &mut Service,
    daemon: &mut Client,
    origin: &str,
    output: &Output,
) -> Result<Vec<SecretSet>, Error> {
    let mut taken = Vec::new();
    let first = ask_round(service, daemon, origin, &mut taken).await?;
    for merchant in &first.without_certificate {
        output.note(&format!(
            "Merchant {merchant} takes its secrets from an account that has no operating \
             certificate here; install one with `opcert install`."
        ));
    }
    for (merchant, state) in &first.without_secrets {
        output.note(&match state.as_str() {
            "waiting" => format!(
                "Merchant {merchant} waits for its secrets: the super administrator has to let \
                 this computer have them, in the portal under API Security."
            ),
            _ => format!("Merchant {merchant} gets no secrets: its key here is {state}."),
        });
    }
    if !taken.is_empty() {
        ask_round(service, daemon, origin, &mut taken).await?;
    }
    Ok(taken)
}

/// What came of one round of requests.
struct Round {
    without_certificate: Vec<MerchantId>,
    /// Merchants that the service gives nothing, and why.
    without_secrets: Vec<(MerchantId, String)>,
}

async fn ask_round(
    service: &mut Service,
    daemon: &mut Client,
    origin: &str,
    taken: &mut Vec<SecretSet>,
) -> Result<Round, Error> {
    let asked: SecretRequests = daemon
        .wechatpay(
            Method::POST,
            "secrets/requests",
            &json!({ "service": origin }),
        )
        .await?;
    let mut round = Round {
        without_certificate: asked.without_certificate,
        without_secrets: Vec::new(),
    };
    for asked in asked.requests {
        let given: Given = service
            .submit("/v1/secrets/requests", asked.request)
            .await?;
        for signed in given.secrets {
            let body = json!({ "signed": signed });
            taken.push(daemon.wechatpay(Method::POST, "secrets", &body).await?);
        }
        if given.state != "active" {
            round.without_secrets.push((asked.merchant, given.state));
        }
    }
    Ok(round)
}

/// Leaves what the service publishes in a directory.
async fn save(service: &mut Service, folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(|source| FileError::Unwritable {
        path: folder.to_owned(),
        source,
    })?;
    let wrong = |problem: &dyn std::fmt::Display| Error::Answer {
        who: "the account service",
        problem: problem.to_string(),
    };
    let mut bundle = String::new();
    for der in service.authorities().await? {
        let pem = Certificate::from_der(&der)
            .and_then(|certificate| certificate.to_pem())
            .map_err(|error| wrong(&error))?;
        bundle.push_str(&pem);
    }
    let keys =
        serde_json::to_string_pretty(&service.keys().await?).map_err(|error| wrong(&error))?;
    let list = service.revocation_list().await?;
    for (name, content) in [
        ("ca.pem", bundle.as_bytes()),
        ("jwks.json", keys.as_bytes()),
        ("crl.der", &list),
    ] {
        write_atomic(&folder.join(name), content, 0o644)?;
    }
    Ok(())
}

/// Fetches the list and hands it in.
pub(super) async fn carry_revocations(
    service: &mut Service,
    daemon: &mut Client,
) -> Result<CrlTaken, Error> {
    let list = service.revocation_list().await?;
    Ok(daemon.apply_crl(list).await?)
}

/// Hands in the keys and issuing authorities of a service; `false` where all of them are pinned.
///
/// The service gives the set once for each of its keys, as it cannot know which are pinned here.
pub(super) async fn carry_keys(service: &mut Service, daemon: &mut Client) -> Result<bool, Error> {
    let mut refused = None;
    for set in service.vouched_keys().await? {
        match daemon.replace_keys(set).await.map_err(Error::from) {
            Ok(taken) => return Ok(taken.changed),
            Err(error @ Error::Refused { .. }) if error.code() == "keys-invalid" => {
                refused = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    refused.map_or(Ok(false), Err)
}
