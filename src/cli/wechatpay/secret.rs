//! `opcert wechatpay secret …`: sealed here, to the merchant's key on the token.

use http::Method;

use crate::api::client::Client;
use crate::api::problem::Code;
use crate::api::wechatpay::SealedSecret;
use crate::base::jwe::RsaJwk;
use crate::base::secret::SecretText;
use crate::base::sysexits::EX_OK;
use crate::cli::error::Error;
use crate::cli::input::{Question, Source, secret};
use crate::cli::output::{Output, time};
use crate::merchants::SecretSet;
use crate::statement::SecretKind;
use crate::statement::sealed_secret;
use crate::wechatpay::{ApiV2Secret, ApiV3Key, MerchantId};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Set a secret as it was set on the merchant platform.
    #[command(
        long_about = "Takes a secret as it was set on the merchant platform, typed here or read \
                      from a file, seals it to the merchant's key on the token and hands it to the \
                      daemon. The platform ends the old secret at once; messages that were on their \
                      way are read with it for as long as --overlap says.",
        after_help = "Example:\n  opcert wechatpay secret set 1900007291 apiv3"
    )]
    Set(Set),
    /// Print the public key that secrets of a merchant are sealed to.
    Key {
        /// The merchant.
        #[arg(value_name = "MCHID")]
        merchant: MerchantId,
    },
    /// Hand in a secret that the account service sealed and signed.
    Take {
        /// The compact JWS, or - for standard input.
        file: Source,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    /// The merchant.
    #[arg(value_name = "MCHID")]
    merchant: MerchantId,
    /// Which secret: api (version 2) or apiv3.
    kind: SecretKind,
    /// File that holds the secret, or - for standard input.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<Source>,
    /// For how many hours the secret before is still tried; at most 168.
    #[arg(long, value_name = "HOURS", default_value_t = 24,
          value_parser = clap::value_parser!(u32).range(0..=168))]
    overlap: u32,
}

pub(super) async fn run(
    command: &Command,
    daemon: &mut Client,
    output: &Output,
) -> Result<u8, Error> {
    match command {
        Command::Set(arguments) => {
            let key = sealing_key(daemon, &arguments.merchant).await?;
            let kind = arguments.kind;
            let typed = SecretText::new(secret(
                Question {
                    what: "a secret",
                    option: "--secret-file",
                },
                &format!("{kind} secret of {}: ", arguments.merchant),
                arguments.secret_file.as_ref(),
            )?);
            let sealed = sealed_secret::seal(&key, kind, &typed);
            // Checked here too, so that a slip of the hand is told before anything is sent.
            let checked = match kind {
                SecretKind::Api => ApiV2Secret::new(typed).map(drop),
                SecretKind::ApiV3 => ApiV3Key::new(typed).map(drop),
            };
            checked.map_err(|error| Error::Input {
                what: error.to_string(),
                action: "Give the 32 characters that were set on the merchant platform.".into(),
            })?;
            let sealed = sealed.map_err(|error| Error::Answer {
                who: "the daemon",
                problem: error.to_string(),
            })?;
            let body = SealedSecret {
                jwe: Some(sealed),
                overlap_seconds: Some(arguments.overlap.saturating_mul(3_600)),
                signed: None,
            };
            let set: SecretSet = daemon.wechatpay(Method::POST, "secrets", &body).await?;
            show(&set, output)?;
        }
        Command::Key { merchant } => {
            let key = sealing_key(daemon, merchant).await?;
            output.result(&key, |_| serde_json::to_string(&key).unwrap_or_default())?;
        }
        Command::Take { file } => {
            let bytes = file.read(sealed_secret::MAX as u64 + 2)?;
            let signed = String::from_utf8_lossy(&bytes).trim().to_owned();
            let body = SealedSecret {
                jwe: None,
                overlap_seconds: None,
                signed: Some(signed),
            };
            let set: SecretSet = daemon.wechatpay(Method::POST, "secrets", &body).await?;
            show(&set, output)?;
        }
    }
    Ok(EX_OK)
}

async fn sealing_key(daemon: &mut Client, merchant: &MerchantId) -> Result<RsaJwk, Error> {
    let list = daemon.merchants().await?;
    let known = list
        .merchants
        .into_iter()
        .find(|known| known.merchant == *merchant);
    known
        .map(|known| known.sealing_key)
        .ok_or_else(|| Error::Refused {
            status: Code::MerchantUnknown.status(),
            code: Code::MerchantUnknown.as_str().into(),
            detail: format!("merchant {merchant} is not installed here"),
            action: Code::MerchantUnknown.action().into(),
            rule: None,
            request_id: None,
        })
}

fn show(set: &SecretSet, output: &Output) -> Result<(), Error> {
    output.result(set, |_| {
        let mut text = format!("The {} secret of {} is set.", set.secret.kind, set.merchant);
        if let Some(until) = &set.secret.overlap_until {
            text.push_str(&format!(" The one before is read until {}.", time(until)));
        }
        text
    })
}
