//! `opcert wechatpay merchant …`.

use std::path::PathBuf;

use http::Method;
use serde_json::json;
use zeroize::Zeroizing;

use super::{PEM_LIMIT, pem, pem_bundle};
use crate::api::client::Client;
use crate::api::wechatpay::{AddMerchant, AddMerchantKey, InstallMerchantCertificate};
use crate::base::encoding::from_base64;
use crate::base::files::{Readers, read_checked, write_atomic};
use crate::base::ids::AccountId;
use crate::base::pkcs11::{KeyId, TokenUri};
use crate::base::secret::SecretText;
use crate::base::sysexits::EX_OK;
use crate::cli::error::Error;
use crate::cli::output::{Mood, Output, time};
use crate::merchants::{ApiKeyView, KeyOrigin, MerchantView};
use crate::wechatpay::MerchantId;
use crate::wechatpay::v2::{Embedded, Rules, SignType, Suffix};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Add a merchant: make its key on the token and the request for its API certificate.
    #[command(
        long_about = "Makes the merchant's key on the token and prints the request for its API \
                      certificate, to be given to the merchant platform. With --import-key a key \
                      that was made elsewhere is put on the token instead: copies of it may exist, \
                      so it is shown as imported for as long as it is used.",
        after_help = "Examples:\n  \
            opcert wechatpay merchant add 1900007291 --csr apiclient.csr\n  \
            opcert wechatpay merchant add 1900007291 \\\n      \
            --import-key apiclient_key.pem --certificate apiclient_cert.pem"
    )]
    Add(Box<Add>),
    /// List merchants.
    List,
    /// Install the API certificate that the merchant platform issued.
    Certificate {
        /// The merchant.
        #[arg(value_name = "MCHID")]
        merchant: MerchantId,
        /// The certificate, PEM.
        file: PathBuf,
    },
    /// Make a further key, for the certificate that is to replace the one in use.
    Renew {
        /// The merchant.
        #[arg(value_name = "MCHID")]
        merchant: MerchantId,
        #[command(flatten)]
        key: Box<Key>,
    },
    /// Remove a key that was replaced, on the token too.
    RemoveKey {
        /// The merchant.
        #[arg(value_name = "MCHID")]
        merchant: MerchantId,
        /// The key's id, as `merchant list` shows it.
        #[arg(value_name = "ID", value_parser = key_id)]
        key: KeyId,
    },
    /// Remove a merchant, its keys on the token and with them its secrets.
    Remove {
        /// The merchant.
        #[arg(value_name = "MCHID")]
        merchant: MerchantId,
    },
}

/// How a merchant comes to a key.
#[derive(Debug, clap::Args)]
pub(crate) struct Key {
    /// The token, by its URI; may be left out where there is only one.
    #[arg(long, value_name = "URI")]
    token: Option<TokenUri>,
    /// Import this private key (PEM) instead of making one on the token.
    #[arg(long, value_name = "FILE")]
    import_key: Option<PathBuf>,
    /// Write the certification request (PEM) to this file rather than to standard output.
    #[arg(long, value_name = "FILE")]
    csr: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    /// The merchant.
    #[arg(value_name = "MCHID")]
    merchant: MerchantId,
    #[command(flatten)]
    key: Key,
    /// Its API certificate (PEM), where there is one for an imported key.
    #[arg(long, value_name = "FILE", requires = "import_key")]
    certificate: Option<PathBuf>,
    /// Issuers of platform certificates to trust (PEM).
    #[arg(long, value_name = "FILE")]
    platform_ca: Option<PathBuf>,
    /// How version 2 messages are signed: MD5 or HMAC-SHA256.
    #[arg(long, value_name = "TYPE", default_value = "HMAC-SHA256", value_parser = sign_type)]
    v2_sign_type: SignType,
    /// Sign and accept version 2 values that could be read as further fields.
    #[arg(long)]
    v2_allow_embedded: bool,
    /// Version 2 messages are the second signature of red packets sent through WeCom.
    #[arg(long)]
    v2_wecom: bool,
    /// The account service whose secrets for this merchant are taken, by its origin.
    #[arg(long, value_name = "URL", requires = "account")]
    service: Option<String>,
    /// The account there.
    #[arg(long, requires = "service")]
    account: Option<AccountId>,
}

fn key_id(text: &str) -> Result<KeyId, String> {
    KeyId::try_from(text.to_owned()).map_err(|_| "must be hexadecimal".to_owned())
}

fn sign_type(text: &str) -> Result<SignType, String> {
    [SignType::Md5, SignType::HmacSha256]
        .into_iter()
        .find(|known| known.as_str().eq_ignore_ascii_case(text))
        .ok_or_else(|| "must be MD5 or HMAC-SHA256".to_owned())
}

pub(super) async fn run(
    command: &Command,
    daemon: &mut Client,
    output: &Output,
) -> Result<u8, Error> {
    match command {
        Command::Add(arguments) => add(arguments, daemon, output).await?,
        Command::List => {
            let list = daemon.merchants().await?;
            output.result(&list, |output| {
                if list.merchants.is_empty() {
                    return "No merchant is installed; `opcert wechatpay merchant add` adds one."
                        .to_owned();
                }
                let all = list.merchants.iter();
                all.map(|merchant| describe(merchant, output))
                    .collect::<Vec<_>>()
                    .join("\n\n")
            })?;
        }
        Command::Certificate { merchant, file } => {
            let view = install(daemon, merchant, file).await?;
            output.result(&view, |output| describe(&view, output))?;
        }
        Command::Renew { merchant, key } => {
            let body = AddMerchantKey {
                token: key.token.as_ref().map(ToString::to_string),
                private_key: key.private_key(output)?,
            };
            let view: MerchantView = {
                let _progress = output.progress("Making a key on the token");
                let path = format!("merchants/{merchant}/keys");
                daemon.wechatpay(Method::POST, &path, &body).await?
            };
            key.hand_over(&view, output)?;
        }
        Command::RemoveKey { merchant, key } => {
            let path = format!("{merchant}/keys/{key}");
            daemon.remove_from_merchants(&path).await?;
            output.result(&json!({ "removed": key }), |_| {
                format!("Key {key} is removed.")
            })?;
        }
        Command::Remove { merchant } => {
            daemon.remove_from_merchants(merchant.as_str()).await?;
            output.result(&json!({ "removed": merchant }), |_| {
                format!("{merchant} is removed, its keys are destroyed; its secrets cannot be read any more.")
            })?;
        }
    }
    Ok(EX_OK)
}

async fn add(arguments: &Add, daemon: &mut Client, output: &Output) -> Result<(), Error> {
    let authorities = match &arguments.platform_ca {
        Some(path) => pem_bundle(path)?,
        None => Vec::new(),
    };
    let rules = Rules {
        sign_type: arguments.v2_sign_type,
        suffix: if arguments.v2_wecom {
            Suffix::WorkWeixin
        } else {
            Suffix::Key
        },
        embedded: if arguments.v2_allow_embedded {
            Embedded::Allow
        } else {
            Embedded::Refuse
        },
    };
    let body = AddMerchant {
        merchant: arguments.merchant.clone(),
        token: arguments.key.token.as_ref().map(ToString::to_string),
        private_key: arguments.key.private_key(output)?,
        rules,
        service: arguments.service.clone(),
        account: arguments.account.clone(),
        authorities,
    };
    let mut view: MerchantView = {
        let _progress = output.progress("Making keys on the token");
        daemon.wechatpay(Method::POST, "merchants", &body).await?
    };
    match &arguments.certificate {
        Some(file) => {
            view = install(daemon, &arguments.merchant, file).await?;
            output.result(&view, |output| describe(&view, output))
        }
        None => arguments.key.hand_over(&view, output),
    }
}

async fn install(
    daemon: &mut Client,
    merchant: &MerchantId,
    file: &std::path::Path,
) -> Result<MerchantView, Error> {
    let body = InstallMerchantCertificate {
        certificate: pem(file)?,
    };
    let path = format!("merchants/{merchant}/certificate");
    Ok(daemon.wechatpay(Method::PUT, &path, &body).await?)
}

impl Key {
    /// The key to import, with a warning.
    fn private_key(&self, output: &Output) -> Result<Option<SecretText>, Error> {
        let Some(path) = &self.import_key else {
            return Ok(None);
        };
        let bytes = Zeroizing::new(read_checked(path, Readers::Owner, PEM_LIMIT)?);
        let text = std::str::from_utf8(&bytes).map_err(|_| Error::Input {
            what: format!("{} is no PEM file", path.display()),
            action: "Give the private key in PEM.".into(),
        })?;
        output.note(&format!(
            "warning: the key in {} was made off the token, and copies of it may exist. The token \
             keeps this one, and proves nothing about the others. Destroy the file, and have a key \
             made on the token at the next renewal.",
            path.display()
        ));
        Ok(Some(SecretText::new(text.to_owned())))
    }

    /// Gives the request for the newest key to whoever is to bring it to the platform.
    fn hand_over(&self, view: &MerchantView, output: &Output) -> Result<(), Error> {
        let request = view.keys.last().map(|key| key.request.as_str());
        let pem = request
            .and_then(|text| from_base64(text.as_bytes()))
            .and_then(|der| {
                der::pem::encode_string("CERTIFICATE REQUEST", der::pem::LineEnding::LF, &der).ok()
            })
            .ok_or_else(|| Error::Answer {
                who: "the daemon",
                problem: "a merchant without a certification request".into(),
            })?;
        match &self.csr {
            Some(path) => {
                write_atomic(path, pem.as_bytes(), 0o644)?;
                output.result(view, |output| {
                    format!(
                        "{}\n\nGive {} to the merchant platform, then run `opcert wechatpay merchant certificate {} FILE`.",
                        describe(view, output),
                        path.display(),
                        view.merchant
                    )
                })
            }
            None => {
                output.note(&format!(
                    "Give this request to the merchant platform, then run `opcert wechatpay merchant certificate {} FILE`.",
                    view.merchant
                ));
                output.result(view, |_| pem)
            }
        }
    }
}

/// One merchant in full.
pub(super) fn describe(merchant: &MerchantView, output: &Output) -> String {
    let mut facts = vec![("Merchant", merchant.merchant.to_string())];
    for key in &merchant.keys {
        let mut text = describe_key(key, output);
        // What `remove-key` takes; the only key of a merchant is not removed by itself.
        if merchant.keys.len() > 1 {
            text.push_str(&format!("; id {}", key.id));
        }
        facts.push(("API key", text));
    }
    let secrets = merchant.secrets.iter().map(|secret| {
        let mut text = format!("{} set {}", secret.kind, time(&secret.set_at));
        if let Some(until) = &secret.overlap_until {
            text.push_str(&format!(", the one before read until {}", time(until)));
        }
        text
    });
    let secrets: Vec<String> = secrets.collect();
    facts.push((
        "Secrets",
        if secrets.is_empty() {
            output.paint("none yet", Mood::Doubtful)
        } else {
            secrets.join("; ")
        },
    ));
    if merchant.platform_keys.is_empty() {
        facts.push(("Platform", output.paint("no key yet", Mood::Doubtful)));
    }
    for key in &merchant.platform_keys {
        let until = match &key.valid_until {
            Some(until) => format!("until {}", time(until)),
            None => "without end".to_owned(),
        };
        facts.push(("Platform", format!("{} {until}", key.id)));
    }
    let issuers = match merchant.authorities {
        0 => output.paint("none trusted", Mood::Doubtful),
        number => format!("{number} trusted for platform certificates"),
    };
    facts.push(("Issuers", issuers));
    facts.push(("Version 2", merchant.rules.sign_type.as_str().to_owned()));
    if let (Some(service), Some(account)) = (&merchant.service, &merchant.account) {
        facts.push(("Secrets from", format!("account {account} of {service}")));
    }
    output.facts(&facts)
}

fn describe_key(key: &ApiKeyView, output: &Output) -> String {
    let origin = match key.origin {
        KeyOrigin::Generated => output.paint("made on the token", Mood::Good),
        KeyOrigin::Imported => output.paint("imported, not proven", Mood::Doubtful),
    };
    match (&key.serial, &key.valid_until) {
        (Some(serial), Some(until)) => {
            format!("{origin}; certificate {serial} until {}", time(until))
        }
        _ => format!(
            "{origin}; {}",
            output.paint("no certificate yet", Mood::Doubtful)
        ),
    }
}
