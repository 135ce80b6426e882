//! `opcert operation …`: what the platform's backend does at the account service, by hand.
//!
//! For trials and tests, and for a look at one operation: a backend calls the interface itself.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::account_service::{Address, Service};
use super::error::Error;
use super::input::{Question, Source, secret};
use super::output::{Format, Mood, Output, time};
use super::verify::compact;
use crate::base::files::write_atomic;
use crate::base::ids::{AccountId, OperationId, OperatorId};
use crate::base::secret::SecretText;
use crate::base::sysexits::EX_OK;
use crate::statement::approval::Approval;
use crate::statement::strict::Object;
use crate::statement::{Kind, Language, Payee, Statement};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create an operation and fetch its challenge.
    #[command(
        long_about = "Creates a sensitive operation, as the platform's backend does, and fetches \
                      the challenge that an operator is to approve.",
        after_help = "Example:\n  \
            opcert operation create --service https://accounts.example \\\n      \
            --key-file platform-key --account acme --operator alice \\\n      \
            --kind withdrawal --amount 100000 --currency CNY --payee 'Acme Ltd' \\\n      \
            --reference W-1 --out challenge.jws"
    )]
    Create(Box<Create>),
    /// Hand in an approval.
    #[command(
        after_help = "Example:\n  opcert operation submit --service https://accounts.example ID approval.jws"
    )]
    Submit {
        #[command(flatten)]
        service: Address,
        /// The operation.
        #[arg(value_name = "ID")]
        id: OperationId,
        /// File with the approval, or - for standard input.
        #[arg(value_name = "APPROVAL")]
        approval: Source,
    },
    /// Show an operation.
    Show {
        #[command(flatten)]
        service: Address,
        #[command(flatten)]
        key: PlatformKey,
        /// The operation.
        #[arg(value_name = "ID")]
        id: OperationId,
    },
}

/// The platform's credential.
#[derive(Debug, clap::Args)]
pub(super) struct PlatformKey {
    /// File with the platform key, or - for standard input.
    #[arg(long, value_name = "FILE")]
    key_file: Option<Source>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    #[command(flatten)]
    service: Address,
    #[command(flatten)]
    key: PlatformKey,
    #[command(flatten)]
    facts: Facts,
    /// Write the challenge to this file rather than to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, clap::Args)]
struct Facts {
    /// The merchant account.
    #[arg(long)]
    account: AccountId,
    /// The operator who is to approve.
    #[arg(long)]
    operator: OperatorId,
    #[arg(
        long,
        value_parser = super::client::kind,
        help = format!("Kind of operation: {}", super::client::kinds())
    )]
    kind: Kind,
    /// Amount in minor units: 100000 is CNY 1,000.00. [default: the sum of --payees]
    #[arg(long, requires = "currency")]
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<i64>,
    /// Currency, by its ISO 4217 code.
    #[arg(long, value_name = "CODE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    currency: Option<String>,
    /// Who receives.
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    payee: Option<String>,
    /// File with the list of payees of a batch: a JSON array of objects with "payee" and "amount".
    #[arg(long, value_name = "FILE", conflicts_with = "payee", value_parser = payees)]
    #[serde(skip_serializing_if = "Option::is_none")]
    payees: Option<PayeesFile>,
    /// How many pieces. [default: the number of --payees]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<i64>,
    /// The platform's own number.
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    /// A remark.
    #[arg(long, value_name = "TEXT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    memo: Option<String>,
    /// Origin of the page that may relay the challenge.
    #[arg(long, value_name = "ORIGIN")]
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
}

impl Facts {
    /// With the sum and the number of a list of payees, where they are left out.
    fn completed(&self) -> Self {
        let mut facts = self.clone();
        if let Some(PayeesFile(list)) = &self.payees {
            let sum = || {
                list.iter()
                    .try_fold(0, |sum: i64, payee| sum.checked_add(payee.amount))
            };
            facts.amount = facts.amount.or_else(sum);
            facts.count = facts.count.or_else(|| i64::try_from(list.len()).ok());
        }
        facts
    }
}

/// A list of payees that was read from a file.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
struct PayeesFile(Vec<Payee>);

fn payees(path: &str) -> Result<PayeesFile, Error> {
    super::approve::payees(Path::new(path)).map(PayeesFile)
}

#[derive(Debug, Serialize, Deserialize)]
struct Created {
    operation: Operation,
    challenge: String,
    expires_at: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    operation: Operation,
}

#[derive(Debug, Serialize, Deserialize)]
struct Operation {
    id: OperationId,
    state: String,
    statement: Value,
    expires_at: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    approvals: Vec<Accepted>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Accepted {
    operator: OperatorId,
    certificate: String,
    accepted_at: String,
    approval: String,
}

pub(super) async fn run(command: &Command, output: &Output) -> Result<u8, Error> {
    match command {
        Command::Create(create) => {
            let key = create.key.read()?;
            let mut service = Service::connect(&create.service).await?;
            let created: Created = service
                .post_as_platform("/v1/operations", &key, &create.facts.completed())
                .await?;
            if let Some(path) = &create.out {
                write_atomic(path, format!("{}\n", created.challenge).as_bytes(), 0o644)?;
            }
            output.note(&describe(&created.operation, output));
            match (&create.out, output.format()) {
                (Some(path), Format::Human) => output.done(&format!(
                    "challenge in {}, good until {}",
                    path.display(),
                    time(&created.expires_at)
                )),
                _ => output.result(&created, |_| created.challenge.clone())?,
            }
        }
        Command::Submit {
            service,
            id,
            approval,
        } => {
            let approval = compact(approval, Approval::MAX, "approval")?;
            let mut service = Service::connect(service).await?;
            let answer: Answer = service
                .submit(&format!("/v1/operations/{id}/approvals"), approval)
                .await?;
            output.result(&answer, |output| describe(&answer.operation, output))?;
        }
        Command::Show { service, key, id } => {
            let key = key.read()?;
            let mut service = Service::connect(service).await?;
            let answer: Answer = service
                .get_as_platform(&format!("/v1/operations/{id}"), &key)
                .await?;
            output.result(&answer, |output| describe(&answer.operation, output))?;
        }
    }
    Ok(EX_OK)
}

impl PlatformKey {
    fn read(&self) -> Result<SecretText, Error> {
        let question = Question {
            what: "the platform key",
            option: "--key-file",
        };
        secret(question, "Platform key: ", self.key_file.as_ref()).map(SecretText::new)
    }
}

fn describe(operation: &Operation, output: &Output) -> String {
    let mood = match operation.state.as_str() {
        "approved" => Mood::Good,
        "created" => Mood::Doubtful,
        _ => Mood::Bad,
    };
    let mut facts: Vec<(&str, String)> = vec![
        ("Id", operation.id.to_string()),
        ("State", output.paint(&operation.state, mood)),
    ];
    let statement = Object::parse(operation.statement.to_string().as_bytes())
        .and_then(Statement::from_object)
        .ok();
    if let Some(statement) = &statement {
        facts.extend(statement.lines(Language::English));
    }
    for accepted in &operation.approvals {
        facts.push((
            "Approved by",
            format!("{}, {}", accepted.operator, time(&accepted.accepted_at)),
        ));
    }
    output.facts(&facts)
}
