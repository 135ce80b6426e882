//! `opcert wechatpay platform …`: the keys that the platform signs with.
//!
//! The daemon opens no connection; `fetch` does, with a request that the daemon signed, and hands
//! the answer over as it came.

use std::path::PathBuf;

use http::header::{ACCEPT, AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Method, Request};
use hyper::body::Bytes;

use super::{Received, pem, pem_bundle};
use crate::api::client::Client;
use crate::api::wechatpay::{
    self, Pairs, PinPlatformKey, PlatformKeysTaken, ReceivedCertificates, RetirePlatformKey,
    SignRequest, SignedRequest, TrustAuthorities,
};
use crate::base::encoding::base64;
use crate::base::sysexits::EX_OK;
use crate::cli::account_service::roots;
use crate::cli::error::Error;
use crate::cli::output::Output;
use crate::http::client::{self, ClientLimits, Target};
use crate::http::{media_type, tls};
use crate::merchants::MerchantView;
use crate::wechatpay::{MerchantId, PlatformKeyId};

const WHO: &str = "the platform";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Fetch the platform's certificates and hand them to the daemon.
    #[command(
        long_about = "Asks the platform for its certificates, with a request that the daemon \
                      signs, and hands the answer to the daemon, which decrypts it, verifies it \
                      and keeps the keys. Meant for a timer, twice a day.",
        after_help = "Example:\n  opcert wechatpay platform fetch 1900007291"
    )]
    Fetch(Fetch),
    /// Hand in an answer that was fetched elsewhere.
    Import {
        #[command(flatten)]
        received: Received,
        /// Verify it with what it brings although keys are held.
        #[arg(long)]
        anew: bool,
    },
    /// Take a WeChat Pay public key, or a platform certificate, from a file.
    #[command(after_help = "Example:\n  \
        opcert wechatpay platform pin 1900007291 pub_key.pem \\\n      \
        --id PUB_KEY_ID_0119000072912024101500351800000111")]
    Pin {
        /// The merchant.
        #[arg(value_name = "MCHID")]
        merchant: MerchantId,
        /// The public key or certificate, PEM.
        file: PathBuf,
        /// Id of the public key; a certificate has its serial.
        #[arg(long, value_name = "PUB_KEY_ID")]
        id: Option<PlatformKeyId>,
    },
    /// End a platform key.
    Retire {
        /// The merchant.
        #[arg(value_name = "MCHID")]
        merchant: MerchantId,
        /// The key's name.
        #[arg(value_name = "SERIAL")]
        key: PlatformKeyId,
        /// When, RFC 3339; at once if left out.
        #[arg(long, value_name = "TIME")]
        at: Option<jiff::Timestamp>,
    },
    /// Say which issuers of platform certificates to trust, in place of those before.
    Trust {
        /// The merchant.
        #[arg(value_name = "MCHID")]
        merchant: MerchantId,
        /// Their certificates, PEM.
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Fetch {
    /// The merchant.
    #[arg(value_name = "MCHID")]
    merchant: MerchantId,
    /// Address of the platform's interface.
    #[arg(
        long,
        value_name = "URL",
        default_value = "https://api.mch.weixin.qq.com"
    )]
    api: String,
    /// Authorities of its TLS certificate (PEM); otherwise those of the system.
    #[arg(long, value_name = "FILE")]
    api_ca: Option<PathBuf>,
    /// Path of the certificates; /v3/global/certificates in some regions.
    #[arg(long, value_name = "PATH", default_value = "/v3/certificates")]
    path: String,
    /// Verify the answer with what it brings although keys are held.
    #[arg(long)]
    anew: bool,
}

pub(super) async fn run(
    command: &Command,
    daemon: &mut Client,
    output: &Output,
) -> Result<u8, Error> {
    match command {
        Command::Fetch(arguments) => {
            let received = fetch(arguments, daemon).await?;
            hand_in(received, arguments.anew, daemon, output).await?;
        }
        Command::Import { received, anew } => {
            hand_in(received.read()?, *anew, daemon, output).await?;
        }
        Command::Pin { merchant, file, id } => {
            let pem = pem(file)?;
            if id.is_none() && pem.contains("PUBLIC KEY-----") {
                return Err(Error::Usage {
                    what: format!("{} is a public key, and those have an id", file.display()),
                    action: "Give --id with the PUB_KEY_ID_… that the merchant platform shows \
                             beside it."
                        .into(),
                });
            }
            let (public_key, certificate) = match id {
                Some(_) => (Some(pem), None),
                None => (None, Some(pem)),
            };
            let body = PinPlatformKey {
                id: id.clone(),
                public_key,
                certificate,
            };
            let path = format!("merchants/{merchant}/platform-keys");
            let view: MerchantView = daemon.wechatpay(Method::POST, &path, &body).await?;
            output.result(&view, |output| super::merchant::describe(&view, output))?;
        }
        Command::Retire { merchant, key, at } => {
            let path = format!("merchants/{merchant}/platform-keys/{key}/retire");
            let body = RetirePlatformKey {
                at: at.map(|at| at.to_string()),
            };
            let view: MerchantView = daemon.wechatpay(Method::POST, &path, &body).await?;
            output.result(&view, |output| super::merchant::describe(&view, output))?;
        }
        Command::Trust { merchant, file } => {
            let path = format!("merchants/{merchant}/authorities");
            let body = TrustAuthorities {
                authorities: pem_bundle(file)?,
            };
            let view: MerchantView = daemon.wechatpay(Method::PUT, &path, &body).await?;
            output.result(&view, |output| super::merchant::describe(&view, output))?;
        }
    }
    Ok(EX_OK)
}

async fn hand_in(
    received: wechatpay::Received,
    anew: bool,
    daemon: &mut Client,
    output: &Output,
) -> Result<(), Error> {
    let request = ReceivedCertificates {
        merchant: received.merchant,
        headers: received.headers,
        body: received.body,
        body_base64: received.body_base64,
        anew,
    };
    let taken: PlatformKeysTaken = daemon
        .wechatpay(Method::POST, "v3/certificates", &request)
        .await?;
    output.result(&taken, |_| {
        let names = taken.held.iter().map(|key| {
            let new = if taken.new.contains(key) {
                " (new)"
            } else {
                ""
            };
            format!("{key}{new}")
        });
        format!(
            "Platform keys held: {}",
            names.collect::<Vec<_>>().join(", ")
        )
    })
}

async fn fetch(arguments: &Fetch, daemon: &mut Client) -> Result<wechatpay::Received, Error> {
    let wrong = |what: String| Error::Usage {
        what,
        action: "Check --api, --api-ca and --path.".into(),
    };
    let roots = match &arguments.api_ca {
        Some(path) => roots(path)?,
        None => tls::system_roots()
            .map_err(|error| wrong(format!("there is no list of trusted authorities: {error}")))?,
    };
    let config = tls::client(roots, None)
        .map_err(|error| wrong(format!("TLS cannot be set up: {error}")))?;
    let target =
        Target::from_url(&arguments.api, config).map_err(|error| wrong(error.to_string()))?;
    let host = arguments
        .api
        .parse::<http::Uri>()
        .ok()
        .and_then(|uri| uri.authority().map(ToString::to_string))
        .unwrap_or_default();
    let wanted = SignRequest {
        merchant: arguments.merchant.clone(),
        method: Method::GET.to_string(),
        target: arguments.path.clone(),
        body: None,
        body_base64: None,
        timestamp: None,
        nonce: None,
    };
    let signed: SignedRequest = daemon
        .wechatpay(Method::POST, "v3/authorization", &wanted)
        .await?;
    let request = Request::get(&arguments.path)
        .header(http::header::HOST, host)
        .header(ACCEPT, HeaderValue::from_static(media_type::JSON))
        .header(
            USER_AGENT,
            HeaderValue::from_static(concat!("opcert/", env!("CARGO_PKG_VERSION"))),
        )
        .header(AUTHORIZATION, signed.authorization)
        .body(Bytes::new())
        .map_err(|error| wrong(error.to_string()))?;
    let unreachable = |source| Error::Unreachable {
        who: WHO,
        action: "Check --api, --api-ca and the network.".into(),
        source,
    };
    let mut connection = client::Client::connect(&target, ClientLimits::default())
        .await
        .map_err(unreachable)?;
    let answer = connection.send(request).await.map_err(unreachable)?;
    if !answer.status().is_success() {
        return Err(Error::Answer {
            who: WHO,
            problem: format!(
                "status {}: {}",
                answer.status().as_u16(),
                String::from_utf8_lossy(answer.body())
                    .chars()
                    .filter(|letter| !letter.is_control())
                    .take(300)
                    .collect::<String>()
            ),
        });
    }
    let headers = answer
        .headers()
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        })
        .collect();
    Ok(wechatpay::Received {
        merchant: arguments.merchant.clone(),
        headers: Pairs(headers),
        body: None,
        body_base64: Some(base64(answer.body())),
    })
}
