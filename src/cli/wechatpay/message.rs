//! `opcert wechatpay authorization`, `paysign`, `verify`, `decrypt`, `fields …` and `v2 …`.

use http::Method;
use zeroize::Zeroizing;

use super::{BODY_LIMIT, Received};
use crate::api::client::{CallError, Client};
use crate::api::problem::Code;
use crate::api::wechatpay::{
    DecryptFields, DecryptedFields, EncryptFields, EncryptedFields, FieldsV2, MessageV2,
    OpenRefund, OpenedNotification, SignPayment, SignRequest, SignedMessageV2, SignedPayment,
    SignedRequest, Verified,
};
use crate::base::encoding::base64;
use crate::base::secret::SecretText;
use crate::base::sysexits::EX_OK;
use crate::cli::error::Error;
use crate::cli::input::Source;
use crate::cli::output::{Output, time};
use crate::wechatpay::v3::PayClient;
use crate::wechatpay::{AppId, MerchantId, Nonce, PrepayId};

/// No list of fields we read is larger, in bytes.
const FIELDS_LIMIT: u64 = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Authorization {
    /// The merchant.
    #[arg(value_name = "MCHID")]
    merchant: MerchantId,
    /// GET, POST, PUT, PATCH or DELETE.
    method: String,
    /// Path and query exactly as sent.
    target: String,
    /// File with the body exactly as sent, or - for standard input.
    #[arg(long, value_name = "FILE")]
    body: Option<Source>,
    /// Unix seconds; now if left out.
    #[arg(long, value_name = "SECONDS")]
    timestamp: Option<i64>,
    /// The nonce; a random one if left out.
    #[arg(long)]
    nonce: Option<Nonce>,
}

impl Authorization {
    pub(super) async fn run(&self, daemon: &mut Client, output: &Output) -> Result<u8, Error> {
        let body = match &self.body {
            Some(source) => source.read(BODY_LIMIT)?,
            None => Vec::new(),
        };
        let request = SignRequest {
            merchant: self.merchant.clone(),
            method: self.method.clone(),
            target: self.target.clone(),
            body: None,
            body_base64: Some(base64(&body)),
            timestamp: self.timestamp,
            nonce: self.nonce.clone(),
        };
        let signed: SignedRequest = daemon
            .wechatpay(Method::POST, "v3/authorization", &request)
            .await?;
        output.result(&signed, |_| signed.authorization.clone())?;
        Ok(EX_OK)
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct PaySign {
    /// The merchant.
    #[arg(value_name = "MCHID")]
    merchant: MerchantId,
    /// Where the payment is started: jsapi, mini-program or app.
    #[arg(long, value_parser = pay_client)]
    client: PayClient,
    /// The official account, mini program or app.
    #[arg(long, value_name = "APPID")]
    app: AppId,
    /// What the order is prepared under, without `prepay_id=`.
    #[arg(long, value_name = "PREPAY_ID")]
    prepay: PrepayId,
}

impl PaySign {
    pub(super) async fn run(&self, daemon: &mut Client, output: &Output) -> Result<u8, Error> {
        let request = SignPayment {
            merchant: self.merchant.clone(),
            client: self.client,
            appid: self.app.clone(),
            prepay_id: self.prepay.clone(),
            timestamp: None,
            nonce: None,
        };
        let signed: SignedPayment = daemon
            .wechatpay(Method::POST, "v3/paysign", &request)
            .await?;
        output.result(&signed, |output| {
            let parameters: Vec<(&String, String)> = signed
                .parameters
                .iter()
                .map(|(name, value)| (name, value.clone()))
                .collect();
            output.facts(&parameters)
        })?;
        Ok(EX_OK)
    }
}

fn pay_client(text: &str) -> Result<PayClient, &'static str> {
    match text {
        "jsapi" => Ok(PayClient::Jsapi),
        "mini-program" => Ok(PayClient::MiniProgram),
        "app" => Ok(PayClient::App),
        _ => Err("must be jsapi, mini-program or app"),
    }
}

/// A signature that does not hold is the answer "no", not a failure.
fn answered<T>(result: Result<T, CallError>) -> Result<T, Error> {
    const NO: [Code; 3] = [
        Code::WechatpaySignature,
        Code::WechatpayKeyUnknown,
        Code::WechatpayReplayed,
    ];
    match result {
        Err(CallError::Refused(problem)) => {
            match NO.into_iter().find(|code| code.as_str() == problem.code) {
                Some(code) => Err(Error::No {
                    code: code.as_str(),
                    what: problem.detail,
                    action: problem.action,
                }),
                None => Err((*problem).into()),
            }
        }
        result => Ok(result?),
    }
}

pub(super) async fn verify(
    received: &Received,
    daemon: &mut Client,
    output: &Output,
) -> Result<u8, Error> {
    let request = received.read()?;
    let verified: Verified = answered(daemon.wechatpay(Method::POST, "v3/verify", &request).await)?;
    output.result(&verified, |_| format!("Signed with {}.", verified.key))?;
    Ok(EX_OK)
}

pub(super) async fn decrypt(
    received: &Received,
    daemon: &mut Client,
    output: &Output,
) -> Result<u8, Error> {
    let request = received.read()?;
    let opened: OpenedNotification =
        answered(daemon.wechatpay(Method::POST, "v3/decrypt", &request).await)?;
    output.note(&format!("{}, {}", opened.event_type, opened.id));
    if let Some(first) = &opened.first_delivered_at {
        output.note(&format!(
            "This event was delivered before, first at {}.",
            time(first)
        ));
    }
    output.result(&opened, |_| opened.resource.clone())?;
    Ok(EX_OK)
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Fields {
    /// Encrypt fields for the platform; prints the key's name, then one field a line.
    Encrypt(FieldLines),
    /// Decrypt fields that the platform encrypted, on the token; prints one a line.
    Decrypt(FieldLines),
}

#[derive(Debug, clap::Args)]
pub(crate) struct FieldLines {
    /// The merchant.
    #[arg(value_name = "MCHID")]
    merchant: MerchantId,
    /// File with one field a line, or - for standard input; names and card numbers do not belong
    /// in an argument list.
    #[arg(value_name = "FILE", default_value = "-")]
    file: Source,
}

impl FieldLines {
    fn read(&self) -> Result<Vec<SecretText>, Error> {
        let bytes = Zeroizing::new(self.file.read(FIELDS_LIMIT)?);
        let text = std::str::from_utf8(&bytes).map_err(|_| Error::Input {
            what: "the fields are not UTF-8".into(),
            action: "Give one field a line.".into(),
        })?;
        let lines = text.lines().map(|line| SecretText::new(line.to_owned()));
        Ok(lines.collect())
    }
}

impl Fields {
    pub(super) async fn run(&self, daemon: &mut Client, output: &Output) -> Result<u8, Error> {
        match self {
            Self::Encrypt(lines) => {
                let request = EncryptFields {
                    merchant: lines.merchant.clone(),
                    fields: lines.read()?,
                };
                let answer: EncryptedFields = daemon
                    .wechatpay(Method::POST, "v3/fields/encrypt", &request)
                    .await?;
                output.result(&answer, |_| {
                    format!("{}\n{}", answer.serial, answer.fields.join("\n"))
                })?;
            }
            Self::Decrypt(lines) => {
                let fields = lines.read()?;
                let fields = fields.iter().map(|field| field.expose().to_owned());
                let request = DecryptFields {
                    merchant: lines.merchant.clone(),
                    fields: fields.collect(),
                };
                let answer: DecryptedFields = daemon
                    .wechatpay(Method::POST, "v3/fields/decrypt", &request)
                    .await?;
                output.result(&answer, |_| answer.fields.join("\n"))?;
            }
        }
        Ok(EX_OK)
    }
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum V2 {
    /// Sign a message; prints it as XML with its `sign`.
    Sign(Xml),
    /// Check a message; prints its fields.
    Verify(Xml),
    /// Open the content of a refund notification; prints its fields.
    Refund {
        /// The merchant.
        #[arg(value_name = "MCHID")]
        merchant: MerchantId,
        /// File with `req_info`, or - for standard input.
        #[arg(value_name = "FILE", default_value = "-")]
        file: Source,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Xml {
    /// The merchant.
    #[arg(value_name = "MCHID")]
    merchant: MerchantId,
    /// File with the message as XML, or - for standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    file: Source,
}

impl Xml {
    fn request(&self) -> Result<MessageV2, Error> {
        Ok(MessageV2 {
            merchant: self.merchant.clone(),
            fields: None,
            body: None,
            body_base64: Some(base64(&self.file.read(BODY_LIMIT)?)),
        })
    }
}

impl V2 {
    pub(super) async fn run(&self, daemon: &mut Client, output: &Output) -> Result<u8, Error> {
        let fields = |fields: &FieldsV2, output: &Output| {
            let pairs: Vec<(&String, String)> = fields
                .fields
                .iter()
                .map(|(name, value)| (name, value.clone()))
                .collect();
            output.facts(&pairs)
        };
        match self {
            Self::Sign(xml) => {
                let signed: SignedMessageV2 = daemon
                    .wechatpay(Method::POST, "v2/sign", &xml.request()?)
                    .await?;
                output.result(&signed, |_| signed.body.clone())?;
            }
            Self::Verify(xml) => {
                let request = xml.request()?;
                let answer: FieldsV2 =
                    answered(daemon.wechatpay(Method::POST, "v2/verify", &request).await)?;
                output.result(&answer, |output| fields(&answer, output))?;
            }
            Self::Refund { merchant, file } => {
                let bytes = file.read(BODY_LIMIT)?;
                let text = String::from_utf8_lossy(&bytes).trim().to_owned();
                let request = OpenRefund {
                    merchant: merchant.clone(),
                    req_info: text,
                };
                let answer: FieldsV2 = daemon
                    .wechatpay(Method::POST, "v2/refund/decrypt", &request)
                    .await?;
                output.result(&answer, |output| fields(&answer, output))?;
            }
        }
        Ok(EX_OK)
    }
}
