//! `opcert sync`: carries what the daemon cannot fetch itself, as it opens no connection.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::output::Output;
use super::service::{Address, Service};
use super::{Global, daemon};
use crate::api::client::Client;
use crate::api::types::CrlTaken;
use crate::base::files::{FileError, write_atomic};
use crate::base::sysexits::EX_OK;
use crate::base::x509::Certificate;

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Fetches the revocation list from the account service and hands it to the \
                  daemon, which checks it. Meant for a timer. With --save, what `opcert verify` \
                  needs is left in a directory too.",
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
    let taken = carry_revocations(&mut service, &mut daemon).await?;
    if let Some(folder) = &arguments.save {
        save(&mut service, folder).await?;
        output.done(&format!(
            "ca.pem, crl.der and jwks.json are in {}",
            folder.display()
        ));
    }
    output.result(&taken, |_| describe(&taken))?;
    Ok(EX_OK)
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
