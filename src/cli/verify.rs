//! `opcert verify`: checks an approval with nothing but files.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::json;

use super::error::Error;
use super::input::{Source, read_file};
use super::output::{Mood, Output, local_time};
use crate::base::clock::Clock;
use crate::base::encoding::hex;
use crate::base::key::KeyError;
use crate::base::sysexits::EX_OK;
use crate::base::x509::{Certificate, Crl, PathError, StaleCrl, X509Error};
use crate::http::tls;
use crate::statement::approval::{Approval, ApprovalError};
use crate::statement::{Challenge, Language};

/// No certificate bundle or revocation list we read is larger, in bytes.
const FILE_LIMIT: u64 = 4 * 1024 * 1024;

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Checks an approval offline: signature, certificate path, revocation and, with \
                  --challenge, that it answers that challenge. Ends with 0 and the statement, or \
                  with 1 and the reason.",
    after_help = "Examples:\n  \
        opcert verify --ca ca.pem --crl crl.der approval.jws\n  \
        opcert verify --ca ca.pem --at 2026-11-24T12:00:00Z --json approval.jws"
)]
pub(super) struct Arguments {
    /// Certificates of the issuing authority (PEM).
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// Revocation list of the issuing authority (DER or PEM).
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// The challenge it has to answer.
    #[arg(long, value_name = "FILE")]
    challenge: Option<PathBuf>,
    /// Check as of this instant (RFC 3339) rather than now.
    #[arg(long, value_name = "TIME")]
    at: Option<Timestamp>,
    /// The approval, or - for standard input.
    #[arg(value_name = "APPROVAL")]
    approval: Source,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<u8, Error> {
    let anchors = authorities(&arguments.ca)?;
    let crl = arguments
        .crl
        .as_ref()
        .map(|path| revocation_list(path, &anchors))
        .transpose()?;
    let compact = compact(&arguments.approval, Approval::MAX, "approval")?;
    let at = arguments.at.unwrap_or_else(|| Clock::system().now());
    let list = crl.as_ref().map(|crl| (crl, StaleCrl::Refuse));
    let approval = Approval::verify(&compact, &anchors, list, at).map_err(refused)?;
    if let Some(path) = &arguments.challenge {
        let challenge = self::compact(&Source::File(path.clone()), Challenge::MAX, "challenge")?;
        if !approval.is_for(&challenge) {
            return Err(Error::No {
                code: "approval-invalid",
                what: format!(
                    "the approval answers another challenge than {}",
                    path.display()
                ),
                action: "Fetch the challenge that belongs to this approval.".into(),
            });
        }
    }
    show(&approval, output)?;
    Ok(EX_OK)
}

fn show(approval: &Approval, output: &Output) -> Result<(), Error> {
    let value = json!({
        "valid": true,
        "statement": approval.statement.to_json(),
        "jti": approval.jti,
        "issued_at": approval.issued_at,
        "audience": approval.audience.as_str(),
        "challenge": approval.challenge,
        "challenge_jti": approval.challenge_jti,
        "client": approval.client,
        "origin": approval.origin.as_ref().map(|origin| origin.as_str()),
        "consent": approval.consent,
        "computer": approval.certificate.identity().map(|identity| identity.computer),
        "certificate": {
            "sha256": hex(&approval.certificate.fingerprint()),
            "serial": hex(approval.certificate.serial()),
            "subject": approval.certificate.subject().to_string(),
            "issuer": approval.certificate.issuer().to_string(),
            "not_after": approval.certificate.not_after(),
        },
    });
    output.result(&value, |output| {
        let mut facts: Vec<(&str, String)> = approval.statement.lines(Language::English);
        facts.extend([
            ("Approved", local_time(approval.issued_at)),
            ("For", approval.audience.as_str().to_owned()),
            ("Client", approval.client.clone()),
            ("Certificate", approval.certificate.subject().to_string()),
            ("Issued by", approval.certificate.issuer().to_string()),
        ]);
        format!(
            "{}\n{}",
            output.paint("The approval is valid.", Mood::Good),
            output.facts(&facts)
        )
    })
}

/// The trusted certificates in a PEM file.
fn authorities(path: &Path) -> Result<Vec<Certificate>, Error> {
    let wrong = |problem: String| Error::Input {
        what: format!("{} holds no usable certificate: {problem}", path.display()),
        action: "Give the issuing authority's certificate in PEM.".into(),
    };
    tls::certificates(&read_file(path, FILE_LIMIT)?)
        .map_err(|error| wrong(error.to_string()))?
        .iter()
        .map(|der| Certificate::from_der(der).map_err(|error| wrong(error.to_string())))
        .collect()
}

fn revocation_list(path: &Path, anchors: &[Certificate]) -> Result<Crl, Error> {
    let bytes = read_file(path, FILE_LIMIT)?;
    let der = if bytes.starts_with(b"-----") {
        let (_, der) = der::pem::decode_vec(&bytes).map_err(|error| Error::Input {
            what: format!("{} is no PEM: {error}", path.display()),
            action: "Give the revocation list as the authority publishes it.".into(),
        })?;
        der
    } else {
        bytes
    };
    let mut last = X509Error::Issuer {
        what: "revocation list",
    };
    for anchor in anchors {
        match Crl::from_der(&der, anchor) {
            Ok(crl) => return Ok(crl),
            Err(error) => last = error,
        }
    }
    Err(Error::No {
        code: "crl-invalid",
        what: format!("{} is not usable: {last}", path.display()),
        action: "Fetch the list of the authority that --ca names.".into(),
    })
}

/// A compact JWS in a file; white space around it does not count.
pub(super) fn compact(source: &Source, limit: usize, what: &str) -> Result<String, Error> {
    // The line end that editors add is not part of the limit.
    let bytes = source.read(limit as u64 + 2)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(_) => Err(Error::Input {
            what: format!("the {what} is no text"),
            action: format!("Give the {what} in its compact form, three parts with dots."),
        }),
    }
}

fn refused(error: ApprovalError) -> Error {
    let (code, action) = match &error {
        ApprovalError::Jose(_) | ApprovalError::Claims(_) => {
            ("approval-malformed", "Fetch the approval again.")
        }
        ApprovalError::Certificate(X509Error::Path(PathError::Expired)) => (
            "certificate-expired",
            "If it was made before, check as of that time with --at.",
        ),
        ApprovalError::Certificate(X509Error::Path(PathError::NotYetValid)) => (
            "certificate-not-yet-valid",
            "Check the clock of this computer, and the time given with --at.",
        ),
        ApprovalError::Certificate(X509Error::Path(PathError::Revoked)) => (
            "certificate-revoked",
            "Do not act on it, and ask the operator.",
        ),
        ApprovalError::Certificate(X509Error::Path(PathError::StaleCrl)) => (
            "crl-invalid",
            "Fetch a fresh revocation list, or check as of an earlier time with --at.",
        ),
        ApprovalError::Certificate(X509Error::Path(PathError::OtherList)) => (
            "crl-invalid",
            "Fetch the list of the authority that issued the certificate.",
        ),
        ApprovalError::Certificate(X509Error::Path(PathError::UnknownIssuer)) => (
            "certificate-issuer-unknown",
            "Check that --ca names the authority of this account service.",
        ),
        ApprovalError::Certificate(_) | ApprovalError::Identity { .. } => (
            "certificate-mismatch",
            "Do not act on it, and ask where it comes from.",
        ),
        ApprovalError::Thumbprint | ApprovalError::Signature(KeyError::BadSignature) => (
            "signature-invalid",
            "Do not act on it: it was changed, or never signed.",
        ),
        ApprovalError::Signature(_) => (
            "signature-invalid",
            "Do not act on it, and ask where it comes from.",
        ),
    };
    Error::No {
        code,
        what: error.to_string(),
        action: action.into(),
    }
}
