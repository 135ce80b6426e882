//! `opcert wechatpay …`: for the servers of WeChat Pay merchants, by hand and from scripts.
//!
//! The commands are twins of the routes under `/v1/wechatpay`: they take the parts of a message
//! and bodies as files, and print what a script needs next, bare. Secrets come from a terminal, a
//! private file or standard input, and are sealed to the token before they leave this process.

mod merchant;
mod message;
mod platform;
mod secret;

use std::path::{Path, PathBuf};

use super::error::Error;
use super::input::{Source, read_file};
use super::output::Output;
use super::{Global, daemon};
use crate::api::wechatpay::Pairs;
use crate::base::encoding::base64;
use crate::base::x509::Certificate;
use crate::http::tls;
use crate::wechatpay::MerchantId;

/// No body we read is larger, in bytes.
const BODY_LIMIT: u64 = 1024 * 1024;

/// No PEM file we read is larger, in bytes.
const PEM_LIMIT: u64 = 64 * 1024;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// The merchants of this computer.
    #[command(subcommand)]
    Merchant(merchant::Command),
    /// The API secrets of a merchant.
    #[command(subcommand)]
    Secret(secret::Command),
    /// The platform's certificates and public keys.
    #[command(subcommand)]
    Platform(platform::Command),
    /// Sign a request; prints the value of its Authorization header.
    #[command(after_help = "Example:\n  \
        opcert wechatpay authorization 1900007291 GET '/v3/certificates'")]
    Authorization(message::Authorization),
    /// Sign the parameters that start a payment.
    #[command(after_help = "Example:\n  \
        opcert wechatpay paysign 1900007291 --client jsapi \\\n      \
        --app wx8888888888888888 --prepay wx2611…")]
    Paysign(message::PaySign),
    /// Check that an answer or callback is the platform's.
    #[command(
        long_about = "Checks that an answer or callback is the platform's and not older than five \
                      minutes. Ends with 0 and the key's name, or with 1 and why not."
    )]
    Verify(Received),
    /// Verify a callback and print its content.
    Decrypt(Received),
    /// Sensitive fields.
    #[command(subcommand)]
    Fields(message::Fields),
    /// Messages of interface version 2.
    #[command(subcommand)]
    V2(message::V2),
}

/// Something that the platform sent.
#[derive(Debug, clap::Args)]
pub(super) struct Received {
    /// The merchant.
    #[arg(value_name = "MCHID")]
    merchant: MerchantId,
    /// File with its HTTP headers, as `curl --dump-header` writes them.
    #[arg(long, value_name = "FILE")]
    headers: PathBuf,
    /// File with its body as it came, or - for standard input.
    #[arg(long, value_name = "FILE")]
    body: Source,
}

impl Received {
    fn read(&self) -> Result<crate::api::wechatpay::Received, Error> {
        Ok(crate::api::wechatpay::Received {
            merchant: self.merchant.clone(),
            headers: headers(&self.headers)?,
            body: None,
            body_base64: Some(base64(&self.body.read(BODY_LIMIT)?)),
        })
    }
}

pub(super) async fn run(command: &Command, global: &Global, output: &Output) -> Result<u8, Error> {
    let mut daemon = daemon::control(global).await?;
    let daemon = &mut daemon;
    match command {
        Command::Merchant(command) => merchant::run(command, daemon, output).await,
        Command::Secret(command) => secret::run(command, daemon, output).await,
        Command::Platform(command) => platform::run(command, daemon, output).await,
        Command::Authorization(arguments) => arguments.run(daemon, output).await,
        Command::Paysign(arguments) => arguments.run(daemon, output).await,
        Command::Verify(received) => message::verify(received, daemon, output).await,
        Command::Decrypt(received) => message::decrypt(received, daemon, output).await,
        Command::Fields(command) => command.run(daemon, output).await,
        Command::V2(command) => command.run(daemon, output).await,
    }
}

/// The headers in a file: `Name: value` lines; a status line and empty lines are passed over.
fn headers(path: &Path) -> Result<Pairs, Error> {
    let bytes = read_file(path, PEM_LIMIT)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut pairs = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with("HTTP/") {
            continue;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| Error::Input {
            what: format!("{} has a line that is no header: {line:?}", path.display()),
            action: "Give the headers as `curl --dump-header` writes them.".into(),
        })?;
        pairs.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(Pairs(pairs))
}

/// A PEM file.
fn pem(path: &Path) -> Result<String, Error> {
    String::from_utf8(read_file(path, PEM_LIMIT)?).map_err(|_| Error::Input {
        what: format!("{} is no PEM file", path.display()),
        action: "Give the file in PEM.".into(),
    })
}

/// The certificates of a PEM file, each as a text of its own.
fn pem_bundle(path: &Path) -> Result<Vec<String>, Error> {
    let wrong = |what: String| Error::Input {
        what: format!("{} cannot be used: {what}", path.display()),
        action: "Give certificates in PEM.".into(),
    };
    tls::certificates(&read_file(path, PEM_LIMIT)?)
        .map_err(|error| wrong(error.to_string()))?
        .iter()
        .map(|der| {
            let certificate =
                Certificate::from_der(der).map_err(|error| wrong(error.to_string()))?;
            certificate
                .to_pem()
                .map_err(|error| wrong(error.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_curl_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("headers");
        std::fs::write(&path, "HTTP/2 200 \r\nwechatpay-nonce: a:b\r\nX:\r\n\r\n").unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            headers(&path).unwrap(),
            Pairs(vec![pair("wechatpay-nonce", "a:b"), pair("X", "")])
        );
        std::fs::write(&path, "no header").unwrap();
        assert!(headers(&path).is_err());
    }

    #[test]
    fn a_bundle_is_taken_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let one = include_str!("../../../tests/samples/ca.pem");
        std::fs::write(&path, format!("words\n{one}\n\n{one}\n")).unwrap();
        assert_eq!(pem_bundle(&path).unwrap(), [one, one]);
        for wrong in [
            "words",
            "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----",
        ] {
            std::fs::write(&path, wrong).unwrap();
            assert!(pem_bundle(&path).is_err(), "{wrong}");
        }
    }
}
