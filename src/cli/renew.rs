//! `opcert renew`: the courier that gets the successor of an operating certificate.
//!
//! In place of password and SMS code the old key answers: the daemon approves the renewal that the
//! service asks for, and the service gives a ticket for that approval. From there it is the way of
//! `opcert install`, by `simplereenroll`. Whatever interrupts it, the same command goes on: an
//! enrolment that was begun has its ticket in the daemon, and a ticket that never arrived is given
//! again for a new approval.

use super::account_service::{Address, Enroll, Service};
use super::error::Error;
use super::install;
use super::list::describe;
use super::output::Output;
use super::sync::carry_revocations;
use super::{Global, daemon};
use crate::api::client::Client;
use crate::api::problem::Code;
use crate::api::types::{CompleteEnrolment, Enrolment, OperatingCertificate, RequestApproval};
use crate::base::encoding::{base64, from_base64};
use crate::base::key::{KeyFamily, KeySpec};
use crate::base::pkcs11::TokenUri;
use crate::base::secret::SecretText;
use crate::base::sysexits::EX_OK;
use crate::base::x509::Certificate;
use crate::statement::{Ticket, TicketPurpose};

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Renews operating certificates in the last third of their validity: the token \
                  generates a key, and the old key approves that it is certified. Old and new are \
                  both good until the old one expires. Certificates that cannot be renewed yet are \
                  left alone.",
    after_help = "Examples:\n  \
        opcert renew --service https://accounts.example\n  \
        opcert renew --service https://accounts.example --serial 41d2… --key-type p384"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    service: Address,
    /// Only the certificate with this serial number, as `opcert list --json` shows it.
    #[arg(long, value_name = "SERIAL")]
    serial: Option<String>,
    /// The token for the new key, by its URI. [default: the token of the old one]
    #[arg(long, value_name = "URI")]
    token: Option<TokenUri>,
    /// Kind of key: rsa2048, rsa3072, p256, p384 or ed25519. [default: that of the old one]
    #[arg(long, value_name = "TYPE")]
    key_type: Option<KeySpec>,
}

pub(super) async fn run(
    arguments: &Arguments,
    global: &Global,
    output: &Output,
) -> Result<u8, Error> {
    let mut daemon = daemon::control(global).await?;
    let origin = arguments.service.url.trim_end_matches('/');
    let mut found = daemon.certificates().await?.certificates;
    found.retain(|certificate| {
        certificate.service == origin
            && certificate.standing == "active"
            && arguments
                .serial
                .as_ref()
                .is_none_or(|serial| certificate.serial.eq_ignore_ascii_case(serial))
    });
    if found.is_empty() {
        return Err(Error::State {
            code: "certificate-missing",
            what: format!("there is no such certificate of {origin} that may sign"),
            action: "See what there is with `opcert list`; `opcert install` gets a new one.".into(),
        });
    }
    let mut renewed = Vec::new();
    for old in &found {
        match renew(arguments, old, &mut daemon, output).await {
            Ok(new) => {
                output.done(&format!(
                    "{} of account {} is renewed",
                    old.operator, old.account
                ));
                renewed.push(new);
            }
            // Asked for by name it is an error, by a timer it is the usual case.
            Err(Error::Refused { code, detail, .. })
                if code == "renewal-too-early" && arguments.serial.is_none() =>
            {
                output.note(&format!(
                    "{} of account {}: {detail}",
                    old.operator, old.account
                ));
            }
            Err(error) => return Err(error),
        }
    }
    if !renewed.is_empty() {
        let mut service = Service::connect(&arguments.service).await?;
        carry_revocations(&mut service, &mut daemon).await?;
    }
    output.result(&renewed, |output| {
        if renewed.is_empty() {
            return "No certificate can be renewed yet.".to_owned();
        }
        let lines: Vec<String> = renewed.iter().map(|new| describe(new, output)).collect();
        lines.join("\n")
    })?;
    Ok(EX_OK)
}

/// One successor.
async fn renew(
    arguments: &Arguments,
    old: &OperatingCertificate,
    daemon: &mut Client,
    output: &Output,
) -> Result<OperatingCertificate, Error> {
    let mut service = Service::connect(&arguments.service).await?;
    let (enrolment, certificates) = match unfinished(old, daemon).await? {
        Some((enrolment, ticket)) => {
            match certify(&mut service, old, &ticket, &enrolment, output).await {
                Err(Error::Refused { code, .. })
                    if code.starts_with("ticket-") || code == "csr-invalid" =>
                {
                    output.note("An earlier attempt is of no use any more; it begins anew.");
                    daemon.cancel_enrolment(&enrolment.id).await?;
                    fresh(arguments, &mut service, old, daemon, output).await?
                }
                result => (enrolment, result?),
            }
        }
        None => fresh(arguments, &mut service, old, daemon, output).await?,
    };
    let certificates = CompleteEnrolment {
        certificates: certificates.iter().map(|der| base64(der)).collect(),
    };
    let _progress = output.progress("Writing the certificate to the token");
    Ok(daemon
        .complete_enrolment(&enrolment.id, &certificates)
        .await?)
}

/// An enrolment of the same operator that was begun and has a ticket.
async fn unfinished(
    old: &OperatingCertificate,
    daemon: &mut Client,
) -> Result<Option<(Enrolment, SecretText)>, Error> {
    let found = daemon.enrolments().await?.enrolments;
    Ok(found.into_iter().find_map(|enrolment| {
        let ours = enrolment.account == old.account
            && enrolment.operator == old.operator
            && enrolment.service == old.service
            && !enrolment.csr.is_empty();
        // What `opcert install` began is for that to go on with.
        let ticket = enrolment
            .ticket
            .clone()
            .filter(|ticket| ours && Ticket::purpose_said(ticket) == Some(TicketPurpose::Renew))?;
        Some((enrolment, SecretText::new(ticket)))
    }))
}

/// Has the old key approve the renewal, and a new key certified for it.
async fn fresh(
    arguments: &Arguments,
    service: &mut Service,
    old: &OperatingCertificate,
    daemon: &mut Client,
    output: &Output,
) -> Result<(Enrolment, Vec<Vec<u8>>), Error> {
    let renewal = service.begin_renewal(&old.serial).await?;
    let approval = {
        let _progress = output.awaiting("Waiting for the daemon, and for a person if it asks one");
        let request = RequestApproval {
            challenge: renewal.challenge,
            cms: false,
            payees: None,
        };
        daemon.approve(&request).await.map_err(|error| {
            let mut error = Error::from(error);
            if let Error::Refused { code, action, .. } = &mut error
                && code == Code::ConsentDenied.as_str()
            {
                *action =
                    "Ask the person at this computer. If that was a mistake, run the command \
                           again in a minute: until then the account service gives the same \
                           challenge, which stays refused."
                        .into();
            }
            error
        })?
    };
    let ticket = service
        .finish_renewal(&renewal.operation.id, approval.approval)
        .await?;
    output.done("the old key approved the renewal");
    let token = match &arguments.token {
        Some(token) => token.clone(),
        None => token_of(&old.key)?,
    };
    let key_type = match arguments.key_type {
        Some(key_type) => key_type,
        None => key_type_of(old)?,
    };
    let enrolment = install::begin(
        service,
        daemon,
        &install::Wanted {
            ticket: &ticket,
            token: Some(&token),
            key_type,
            origin: &old.service,
        },
        output,
    )
    .await?;
    let certificates = certify(service, old, &ticket, &enrolment, output).await?;
    Ok((enrolment, certificates))
}

async fn certify(
    service: &mut Service,
    old: &OperatingCertificate,
    ticket: &SecretText,
    enrolment: &Enrolment,
    output: &Output,
) -> Result<Vec<Vec<u8>>, Error> {
    let _progress = output.progress("Having the key certified");
    service
        .enroll(Enroll::Successor, &old.operator, ticket, &enrolment.csr)
        .await
}

fn wrong(problem: &str) -> Error {
    Error::Answer {
        who: "the daemon",
        problem: problem.to_owned(),
    }
}

/// The token that a key is on.
fn token_of(key: &str) -> Result<TokenUri, Error> {
    let key: TokenUri = key
        .parse()
        .map_err(|_| wrong("a key that is no PKCS#11 URI"))?;
    Ok(TokenUri {
        id: None,
        object: None,
        object_type: None,
        ..key
    })
}

/// The kind of key a certificate has.
fn key_type_of(certificate: &OperatingCertificate) -> Result<KeySpec, Error> {
    let der = from_base64(certificate.certificate.as_bytes())
        .ok_or_else(|| wrong("a certificate that is not base64"))?;
    let family = Certificate::from_der(&der)
        .map_err(|error| wrong(&error.to_string()))?
        .public_key()
        .family();
    match family {
        KeyFamily::P256 => Ok(KeySpec::P256),
        KeyFamily::P384 => Ok(KeySpec::P384),
        KeyFamily::Ed25519 => Ok(KeySpec::Ed25519),
        KeyFamily::Rsa(2048) => Ok(KeySpec::Rsa2048),
        KeyFamily::Rsa(3072) => Ok(KeySpec::Rsa3072),
        KeyFamily::Rsa(_) => Err(Error::Usage {
            what: "the old key is of a kind that no new one has".into(),
            action: "Name the kind with --key-type.".into(),
        }),
    }
}
