//! `opcert client …`: the programs that may ask for approvals.

use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use zeroize::Zeroizing;

use super::error::Error;
use super::output::{Output, time};
use super::{Global, daemon};
use crate::api;
use crate::api::clients::ClientKind;
use crate::api::types::{AddClient, AddedClient, Client};
use crate::base::encoding::base64;
use crate::base::files::{FileError, write_new};
use crate::base::ids::ClientName;
use crate::base::key::{Curve, PublicKey, Signature};
use crate::base::sysexits::EX_OK;
use crate::base::x509::{RemoteKey, common_name, request_draft};
use crate::policy::{ClientPolicy, ConsentRule, WechatPayRule};
use crate::statement::Kind;

/// What a client connects with, in a directory of its own.
pub(super) const CERTIFICATE_FILE: &str = "client.pem";
pub(super) const KEY_FILE: &str = "client-key.pem";
pub(super) const CA_FILE: &str = "server-ca.pem";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Register a program and make its certificate.
    #[command(
        long_about = "Makes a key and has the daemon's local authority certify it. The key never \
                      leaves this command's output directory; the daemon sees the request only.",
        after_help = "Examples:\n  \
            opcert client add erp\n  \
            opcert client add payroll --consent none --kind red-packet --out /etc/payroll\n  \
            opcert client add shop --wechatpay 1900007291=request,start,check,notification"
    )]
    Add {
        /// Name of the program.
        name: ClientName,
        /// Directory for client.pem, client-key.pem and server-ca.pem. [default: NAME]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Whether a person is asked before each approval: none, confirm or confirm-with-pin.
        #[arg(long, value_name = "CONSENT", default_value_t = ConsentRule::Confirm)]
        consent: ConsentRule,
        #[arg(
            long = "kind",
            value_name = "KIND",
            value_parser = kind,
            help = format!(
                "A kind of operation it may ask for, may be repeated: {} [default: all kinds]",
                self::kinds()
            )
        )]
        kinds: Vec<Kind>,
        /// It is a browser: it speaks for the pages it shows. `opcert browser setup` takes its
        /// directory.
        #[arg(long)]
        browser: bool,
        /// A WeChat Pay merchant it may act for, and how: request, start, decrypt, check,
        /// notification, platform, v2-sign, v2-check; may be repeated.
        #[arg(
            long = "wechatpay",
            value_name = "MCHID=USE,…",
            value_parser = merchant_rule,
            conflicts_with = "browser"
        )]
        merchants: Vec<WechatPayRule>,
    },
    /// List the registered programs.
    List,
    /// Remove a program; its next request is refused.
    Remove {
        /// Name of the program.
        name: ClientName,
    },
}

pub(super) async fn run(command: &Command, global: &Global, output: &Output) -> Result<u8, Error> {
    let mut daemon = daemon::control(global).await?;
    match command {
        Command::Add {
            name,
            out,
            consent,
            kinds,
            browser,
            merchants,
        } => {
            let policy = ClientPolicy {
                consent: *consent,
                kinds: (!kinds.is_empty()).then(|| kinds.clone()),
                wechatpay: merchants.clone(),
            };
            let folder = out.clone().unwrap_or_else(|| name.as_str().into());
            let kind = if *browser {
                ClientKind::Browser
            } else {
                ClientKind::Program
            };
            let registered = register(&mut daemon, name, kind, policy, &folder).await?;
            output.result(&registered, |output| {
                let path = |file: &str| folder.join(file).display().to_string();
                output.facts(&[
                    ("Client", registered.name.to_string()),
                    ("Certificate", path(CERTIFICATE_FILE)),
                    ("Key", path(KEY_FILE)),
                    ("Server CA", path(CA_FILE)),
                    ("Valid until", time(&registered.expires)),
                ])
            })?;
        }
        Command::List => {
            let list = daemon.clients().await?;
            output.result(&list, |output| {
                let rows = list.clients.iter().map(row).collect();
                output.table(
                    &["client", "consent", "kinds", "valid until", "certificate"],
                    rows,
                    "No client is registered; `opcert client add NAME` registers one.",
                )
            })?;
        }
        Command::Remove { name } => {
            daemon.remove_client(name).await?;
            output.result(&serde_json::json!({ "removed": name }), |_| {
                format!("{name} is removed; its next request is refused.")
            })?;
        }
    }
    Ok(EX_OK)
}

/// `1900007291=request,start`.
fn merchant_rule(text: &str) -> Result<WechatPayRule, String> {
    let (merchant, uses) = text
        .split_once('=')
        .ok_or_else(|| "must be MCHID=USE,…".to_owned())?;
    let uses = uses
        .split(',')
        .map(|name| name.parse().map_err(|error| format!("{name:?} {error}")))
        .collect::<Result<_, _>>()?;
    Ok(WechatPayRule {
        merchant: merchant.parse().map_err(|error| format!("{error}"))?,
        uses,
    })
}

fn row(client: &Client) -> Vec<String> {
    let kinds = match &client.policy.kinds {
        None => "all".to_owned(),
        Some(kinds) => kinds
            .iter()
            .map(|kind| kind.name())
            .collect::<Vec<_>>()
            .join(", "),
    };
    vec![
        client.name.to_string(),
        client.policy.consent.to_string(),
        kinds,
        time(&client.expires),
        client.fingerprint.chars().take(16).collect(),
    ]
}

/// Registers a program or a browser, and writes what it connects with to `folder`.
pub(super) async fn register(
    daemon: &mut api::client::Client,
    name: &ClientName,
    kind: ClientKind,
    policy: ClientPolicy,
    folder: &Path,
) -> Result<AddedClient, Error> {
    std::fs::create_dir_all(folder).map_err(|source| FileError::Unwritable {
        path: folder.to_owned(),
        source,
    })?;
    let [certificate_path, key_path, ca_path] =
        [CERTIFICATE_FILE, KEY_FILE, CA_FILE].map(|file| folder.join(file));
    for path in [&certificate_path, &key_path, &ca_path] {
        if path.exists() {
            return Err(Error::State {
                code: "file-exists",
                what: format!("{} is there already", path.display()),
                action: "Name another directory with --out.".into(),
            });
        }
    }
    let (key, request) = key_and_request(name)?;
    write_new(&key_path, key.as_bytes(), 0o600)?;
    let wanted = AddClient {
        name: name.clone(),
        csr: base64(&request),
        kind,
        policy,
    };
    let registered = match daemon.add_client(&wanted).await {
        Ok(registered) => registered,
        Err(error) => {
            // A key without a certificate is of no use, and in the way of the next try.
            let _ = std::fs::remove_file(&key_path);
            let _ = std::fs::remove_dir(folder);
            return Err(error.into());
        }
    };
    write_new(&certificate_path, registered.certificate.as_bytes(), 0o644)?;
    write_new(&ca_path, registered.ca.as_bytes(), 0o644)?;
    Ok(registered)
}

/// A P-256 key as PKCS#8 in PEM, and a certification request for it in DER.
fn key_and_request(name: &ClientName) -> Result<(Zeroizing<String>, Vec<u8>), Error> {
    let failed = |problem: &dyn std::fmt::Display| Error::Input {
        what: format!("no key and request could be made for {name}: {problem}"),
        action: "Choose another name, or run the command again.".into(),
    };
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
        .map_err(|error| failed(&error))?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref())
        .map_err(|error| failed(&error))?;
    let public = PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref())
        .map_err(|error| failed(&error))?;
    let subject = common_name(name.as_str()).map_err(|error| failed(&error))?;
    let draft = request_draft(subject, Vec::new(), RemoteKey::new(public))
        .map_err(|error| failed(&error))?;
    let signature = pair
        .sign(&random, draft.to_sign())
        .map_err(|error| failed(&error))?;
    let request = draft
        .assemble(&Signature::from_jose(signature.as_ref().to_vec()))
        .map_err(|error| failed(&error))?;
    let pem = der::pem::encode_string("PRIVATE KEY", der::pem::LineEnding::LF, document.as_ref())
        .map_err(|error| failed(&error))?;
    Ok((Zeroizing::new(pem), request))
}

/// A kind by its name.
pub(super) fn kind(text: &str) -> Result<Kind, String> {
    text.parse()
        .map_err(|error| format!("{error}; known are {}", kinds()))
}

/// The names of all kinds.
pub(super) fn kinds() -> String {
    let known: Vec<&str> = Kind::all().map(Kind::name).collect();
    known.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::x509::CertificateRequest;

    #[test]
    fn a_request_proves_possession_of_its_key() {
        let (key, request) = key_and_request(&"erp".parse().unwrap()).unwrap();
        assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        let request = CertificateRequest::from_der(&request).unwrap();
        assert_eq!(request.subject().to_string(), "CN=erp");
    }
}
