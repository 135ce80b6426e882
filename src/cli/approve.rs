//! `opcert approve`: hands a challenge to the daemon and brings the approval back.
//!
//! On the control socket it is the local user who asks; through the native door, with `--native`
//! and a client certificate, it is the registered program.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::error::Error;
use super::input::{Source, read_file};
use super::output::{Format, Output};
use super::verify::compact;
use super::{Global, daemon};
use crate::api::problem::Code;
use crate::api::types::RequestApproval;
use crate::base::encoding::from_base64;
use crate::base::files::write_atomic;
use crate::base::jose::Jws;
use crate::base::sysexits::EX_OK;
use crate::statement::strict::Object;
use crate::statement::{Challenge, Language, Payee, Statement};

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Hands a challenge to the daemon, shows what it asks for, and prints the approval. \
                  The daemon checks the challenge and asks a person where its policy says so.",
    after_help = "Examples:\n  \
        opcert approve --challenge challenge.jws > approval.jws\n  \
        opcert approve --native 127.0.0.1:7443 --client-cert erp/client.pem \\\n      \
        --client-key erp/client-key.pem --server-ca erp/server-ca.pem \\\n      \
        --challenge challenge.jws"
)]
pub(super) struct Arguments {
    /// File with the challenge, or - for standard input.
    #[arg(long, value_name = "FILE", default_value = "-")]
    challenge: Source,
    /// File with the list of payees, for a batch: the JSON array that the operation was created
    /// with.
    #[arg(long, value_name = "FILE")]
    payees: Option<PathBuf>,
    /// Write the approval to this file rather than to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also have a detached CMS signature made, and write it (DER) to this file.
    #[arg(long, value_name = "FILE")]
    cms: Option<PathBuf>,
    /// Ask through the native door at this address, as a registered client.
    #[arg(
        long,
        value_name = "ADDRESS",
        requires_all = ["client_cert", "client_key", "server_ca"]
    )]
    native: Option<SocketAddr>,
    /// Certificate of the client (PEM).
    #[arg(long, value_name = "FILE", requires = "native")]
    client_cert: Option<PathBuf>,
    /// Private key of the client (PEM).
    #[arg(long, value_name = "FILE", requires = "native")]
    client_key: Option<PathBuf>,
    /// Certificate of the daemon's local authority (PEM).
    #[arg(long, value_name = "FILE", requires = "native")]
    server_ca: Option<PathBuf>,
}

pub(super) async fn run(
    arguments: &Arguments,
    global: &Global,
    output: &Output,
) -> Result<u8, Error> {
    let challenge = compact(&arguments.challenge, Challenge::MAX, "challenge")?;
    output.note(&describe(&challenge, output));
    let mut daemon = match (
        arguments.native,
        &arguments.client_cert,
        &arguments.client_key,
        &arguments.server_ca,
    ) {
        (Some(address), Some(certificate), Some(key), Some(ca)) => {
            daemon::native(
                address,
                &daemon::Credentials {
                    certificate,
                    key,
                    ca,
                },
            )
            .await?
        }
        _ => daemon::control(global).await?,
    };
    let answer = {
        let request = RequestApproval {
            challenge,
            cms: arguments.cms.is_some(),
            payees: arguments.payees.as_deref().map(payees).transpose()?,
        };
        let _progress = output.awaiting("Waiting for the daemon, and for a person if it asks one");
        daemon.approve(&request).await.map_err(|error| {
            let mut error = Error::from(error);
            if let Error::Refused { code, action, .. } = &mut error
                && code == Code::PayeesInvalid.as_str()
            {
                *action = "Name the list that the operation was created with by --payees.".into();
            }
            error
        })?
    };
    if let Some(path) = &arguments.cms {
        let der = answer
            .cms
            .as_ref()
            .and_then(|text| from_base64(text.as_bytes()))
            .ok_or(Error::Answer {
                who: "the daemon",
                problem: "an approval without the CMS signature that was asked for".into(),
            })?;
        write_atomic(path, &der, 0o644)?;
    }
    if let Some(path) = &arguments.out {
        write_atomic(path, format!("{}\n", answer.approval).as_bytes(), 0o644)?;
    }
    match (&arguments.out, output.format()) {
        (Some(path), Format::Human) => {
            output.done(&format!("approval {} in {}", answer.jti, path.display()));
        }
        _ => output.result(&answer, |_| answer.approval.clone())?,
    }
    Ok(EX_OK)
}

/// The list of payees in a file.
pub(super) fn payees(path: &Path) -> Result<Vec<Payee>, Error> {
    /// A thousand payees of the longest names.
    const LIMIT: u64 = 1024 * 1024;
    serde_json::from_slice(&read_file(path, LIMIT)?).map_err(|error| Error::Input {
        what: format!("{} is no list of payees: {error}", path.display()),
        action: "Give a JSON array of objects with \"payee\" and \"amount\" (minor units).".into(),
    })
}

/// What the challenge asks for, before anybody checked it: the daemon does that.
fn describe(challenge: &str, output: &Output) -> String {
    match statement(challenge) {
        Some(statement) => {
            let lines = statement.lines(Language::English);
            format!("The challenge asks to approve:\n{}", output.facts(&lines))
        }
        None => "The challenge cannot be shown here; the daemon will say what is wrong.".into(),
    }
}

fn statement(challenge: &str) -> Option<Statement> {
    let jws = Jws::parse(challenge, Challenge::MAX).ok()?;
    let statement = Object::parse(&jws.payload).ok()?.object("statement").ok()?;
    Statement::from_object(statement).ok()
}
