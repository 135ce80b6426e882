//! `opcert install`: the courier that gets an operating certificate onto a token.
//!
//! Password and SMS code become a ticket at the account service; the daemon makes the key and the
//! request, the service certifies the request, the daemon checks the certificate and writes it to
//! the token. Both sides keep what they have done: whatever interrupts the courier, `--resume`
//! goes on from there.

use std::path::PathBuf;

use super::account_service::{Address, CodeRequest, Computer, Enroll, Service};
use super::error::Error;
use super::input::{Question, Source, secret};
use super::list::describe;
use super::output::Output;
use super::sync::{self, carry_revocations, carry_secrets};
use super::{Global, daemon};
use crate::api::client::Client;
use crate::api::types::{
    BeginEnrolment, CompleteEnrolment, Enrolment, Enrolments, ServiceDescription,
};
use crate::base::encoding::base64;
use crate::base::ids::{AccountId, ComputerId, EnrolmentId, OperatorId};
use crate::base::key::KeySpec;
use crate::base::pkcs11::TokenUri;
use crate::base::secret::SecretText;
use crate::base::sysexits::EX_OK;

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Installs an operating certificate: asks the account service for an SMS code, has \
                  the token generate a key that cannot leave it, has the key certified and the \
                  certificate written to the token.",
    after_help = "Examples:\n  \
        opcert install --service https://accounts.example \\\n      \
        --account acme --operator alice\n  \
        opcert install --service https://accounts.example \\\n      \
        --account acme --operator alice --resume"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    service: Address,
    /// The merchant account.
    #[arg(long)]
    account: AccountId,
    /// The operator.
    #[arg(long)]
    operator: OperatorId,
    /// What the operator calls this computer. [default: its host name]
    #[arg(long, value_name = "NAME")]
    computer_name: Option<String>,
    /// The token, by its URI; may be left out where there is only one.
    #[arg(long, value_name = "URI")]
    token: Option<TokenUri>,
    /// Kind of key: rsa2048, rsa3072, p256, p384 or ed25519.
    #[arg(long, value_name = "TYPE", default_value = "p256")]
    key_type: KeySpec,
    /// File with the operator's login password, or - for standard input.
    #[arg(long, value_name = "FILE")]
    password_file: Option<Source>,
    /// File with the SMS code, read once the code was sent; or - for standard input.
    #[arg(long, value_name = "FILE")]
    code_file: Option<Source>,
    /// Go on with an enrolment that was interrupted; its id is needed only where there are several.
    #[arg(long, value_name = "ID", num_args = 0..=1)]
    resume: Option<Option<EnrolmentId>>,
}

pub(super) async fn run(
    arguments: &Arguments,
    global: &Global,
    output: &Output,
) -> Result<u8, Error> {
    let mut daemon = daemon::control(global).await?;
    let status = daemon.status().await?;
    let computer = &status.computer;
    let (enrolment, certificates) = match &arguments.resume {
        None => {
            let ticket = ticket(arguments, computer, output).await?;
            let mut service = Service::connect(&arguments.service).await?;
            fresh(arguments, &mut service, &mut daemon, &ticket, output).await?
        }
        Some(id) => {
            let unfinished = unfinished(arguments, &mut daemon, id.as_ref()).await?;
            resume(arguments, computer, unfinished, &mut daemon, output).await?
        }
    };
    output.done("the account service certified the key");

    let certificates = CompleteEnrolment {
        certificates: certificates.iter().map(|der| base64(der)).collect(),
    };
    let installed = {
        let _progress = output.progress("Writing the certificate to the token");
        daemon
            .complete_enrolment(&enrolment.id, &certificates)
            .await?
    };
    output.done("the daemon checked the certificate and wrote it to the token");
    let mut service = Service::connect(&arguments.service).await?;
    let taken = carry_revocations(&mut service, &mut daemon).await?;
    output.done(&sync::describe(&taken));
    let origin = arguments.service.origin();
    let secrets = carry_secrets(&mut service, &mut daemon, origin, output).await;
    match secrets {
        Ok(secrets) => {
            for set in &secrets {
                output.done(&sync::describe_secret(set));
            }
        }
        // The certificate is installed all the same.
        Err(error) => output.note(&format!(
            "Secrets could not be fetched: {error}. Run `opcert sync` later."
        )),
    }
    output.result(&installed, |output| describe(&installed, output))?;
    Ok(EX_OK)
}

/// Password and code for a ticket.
async fn ticket(
    arguments: &Arguments,
    computer: &ComputerId,
    output: &Output,
) -> Result<SecretText, Error> {
    let password = SecretText::new(secret(
        Question {
            what: "the login password",
            option: "--password-file",
        },
        &format!(
            "Password of {} in account {}: ",
            arguments.operator, arguments.account
        ),
        arguments.password_file.as_ref(),
    )?);
    let name = match &arguments.computer_name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    // A person may take minutes to read a text message; the connection is not kept for that long.
    let sent = {
        let _progress = output.progress("Asking for a code");
        Service::connect(&arguments.service)
            .await?
            .request_code(&CodeRequest {
                account: &arguments.account,
                operator: &arguments.operator,
                password: password.expose(),
                purpose: "install",
                computer: Computer {
                    id: computer,
                    name: &name,
                },
            })
            .await?
    };
    drop(password);
    output.done(&format!(
        "a code was sent to {}, good until {}",
        sent.sent_to,
        super::output::local_time(sent.expires_at)
    ));
    loop {
        let typed = secret(
            Question {
                what: "the SMS code",
                option: "--code-file",
            },
            "SMS code: ",
            arguments.code_file.as_ref(),
        );
        let code = match typed {
            // Nothing but the Enter key; another code could not be had for a while.
            Err(Error::Usage { .. }) if arguments.code_file.is_none() => continue,
            typed => SecretText::new(typed?),
        };
        let ticket = Service::connect(&arguments.service)
            .await?
            .ticket(&sent.code_id, &code)
            .await;
        match ticket {
            Ok(ticket) => {
                output.done("the code is right");
                return Ok(ticket);
            }
            // A slip of whoever types; the service counts the tries, and then says something else.
            Err(error) if error.code() == "sms-code-wrong" && arguments.code_file.is_none() => {
                output.note(&format!("{} Type it again.", error.detail()));
            }
            Err(error) => return Err(error),
        }
    }
}

type Certificates = Vec<Vec<u8>>;

/// A new key, certified.
async fn fresh(
    arguments: &Arguments,
    service: &mut Service,
    daemon: &mut Client,
    ticket: &SecretText,
    output: &Output,
) -> Result<(Enrolment, Certificates), Error> {
    let wanted = Wanted {
        ticket,
        token: arguments.token.as_ref(),
        key_type: arguments.key_type,
        origin: arguments.service.url.trim_end_matches('/'),
    };
    let enrolment = begin(service, daemon, &wanted, output).await?;
    let certificates = certify(arguments, service, ticket, &enrolment, output)
        .await
        .inspect_err(|error| {
            if error.code().starts_with("quota-") {
                output.note("The new key is kept: with --resume the command goes on from here.");
            }
        })?;
    Ok((enrolment, certificates))
}

/// The key of an unfinished enrolment, certified: with the ticket it began with while that is
/// good (the service then gives the same certificate again), else with a new one. A key that the
/// service certified for a ticket that is over cannot be certified again; a new key takes its
/// place.
async fn resume(
    arguments: &Arguments,
    computer: &ComputerId,
    unfinished: Enrolment,
    daemon: &mut Client,
    output: &Output,
) -> Result<(Enrolment, Certificates), Error> {
    let mut service = Service::connect(&arguments.service).await?;
    if let Some(ticket) = unfinished.ticket.clone().map(SecretText::new) {
        match certify(arguments, &mut service, &ticket, &unfinished, output).await {
            Err(Error::Refused { code, .. }) if code.starts_with("ticket-") => {
                output.note("Its ticket is no longer good, so a new code is needed.");
            }
            result => return Ok((unfinished, result?)),
        }
    }
    let ticket = ticket(arguments, computer, output).await?;
    let mut service = Service::connect(&arguments.service).await?;
    match certify(arguments, &mut service, &ticket, &unfinished, output).await {
        Err(Error::Refused { code, .. }) if code == "csr-invalid" => {
            output.note("Its key was certified before, so a new one is needed.");
            daemon.cancel_enrolment(&unfinished.id).await?;
            fresh(arguments, &mut service, daemon, &ticket, output).await
        }
        result => Ok((unfinished, result?)),
    }
}

/// Has the service certify the request of an enrolment.
async fn certify(
    arguments: &Arguments,
    service: &mut Service,
    ticket: &SecretText,
    enrolment: &Enrolment,
    output: &Output,
) -> Result<Certificates, Error> {
    let _progress = output.progress("Having the key certified");
    service
        .enroll(Enroll::First, &arguments.operator, ticket, &enrolment.csr)
        .await
}

/// What the daemon is to make a key for.
pub(super) struct Wanted<'a> {
    /// The ticket that allows it.
    pub(super) ticket: &'a SecretText,
    /// The token; the only one where it is left out.
    pub(super) token: Option<&'a TokenUri>,
    /// The kind of key.
    pub(super) key_type: KeySpec,
    /// The account service.
    pub(super) origin: &'a str,
}

/// Has the daemon make a key and a request for it.
pub(super) async fn begin(
    service: &mut Service,
    daemon: &mut Client,
    wanted: &Wanted<'_>,
    output: &Output,
) -> Result<Enrolment, Error> {
    let enrolled = daemon.certificates().await?.certificates;
    if enrolled
        .iter()
        .any(|certificate| certificate.service == wanted.origin)
    {
        // The service is pinned: a change of its keys has to come by a key that is.
        sync::carry_keys(service, daemon).await?;
    }
    let keys = service.keys().await?;
    let authorities = service.authorities().await?;
    let enrolment = {
        let _progress = output.progress(&format!(
            "Generating a {} key on the token",
            wanted.key_type
        ));
        daemon
            .begin_enrolment(&BeginEnrolment {
                ticket: wanted.ticket.expose().to_owned(),
                token: wanted.token.map(TokenUri::to_string),
                key_type: wanted.key_type,
                service: ServiceDescription {
                    origin: wanted.origin.to_owned(),
                    keys,
                    ca: authorities.iter().map(|der| base64(der)).collect(),
                },
            })
            .await?
    };
    output.done("the token generated a key that cannot leave it");
    Ok(enrolment)
}

/// The enrolment to go on with.
async fn unfinished(
    arguments: &Arguments,
    daemon: &mut Client,
    id: Option<&EnrolmentId>,
) -> Result<Enrolment, Error> {
    let Enrolments {
        enrolments: mut all,
    } = daemon.enrolments().await?;
    all.retain(|enrolment| {
        enrolment.account == arguments.account
            && enrolment.operator == arguments.operator
            && !enrolment.csr.is_empty()
            && id.is_none_or(|id| enrolment.id == *id)
    });
    let several = all.len() > 1;
    match all.pop() {
        Some(enrolment) if !several => Ok(enrolment),
        Some(enrolment) => {
            let ids: Vec<String> = all
                .iter()
                .chain([&enrolment])
                .map(|enrolment| enrolment.id.to_string())
                .collect();
            Err(Error::Usage {
                what: format!("more than one enrolment is unfinished: {}", ids.join(", ")),
                action: "Name one with --resume ID.".into(),
            })
        }
        None => Err(Error::State {
            code: "enrolment-unknown",
            what: "there is no such unfinished enrolment".into(),
            action: "Begin one: run the command without --resume.".into(),
        }),
    }
}

/// The kernel's host name.
fn host_name() -> Result<String, Error> {
    let path = PathBuf::from("/proc/sys/kernel/hostname");
    let text = std::fs::read_to_string(&path)
        .map_err(|source| crate::base::files::FileError::Unreadable { path, source })?;
    Ok(text.trim().to_owned())
}
