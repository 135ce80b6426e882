//! `account` and `approval-rule`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::desk::{change, look};
use super::output::{Output, table};
use super::{AdminError, transfer};
use crate::account::config::Config;
use crate::account::store::accounts;
use crate::base::ids::AccountId;
use crate::statement::kinds::Presence;
use crate::statement::text::Text;
use crate::statement::{Kind, Money};

/// `account …`.
#[derive(Debug, Subcommand)]
pub(super) enum AccountCommand {
    /// Create an account.
    Create {
        /// Its id: letters, digits, ".", "_", "-".
        id: AccountId,
        /// What people call it.
        #[arg(long)]
        name: Text,
    },
    /// List the accounts.
    List,
    /// Write an account as JSON lines, to be taken to another database.
    #[command(
        after_help = "What is under way stays here: codes, operations, requests with their \
                            papers; so do API secrets, which only this service's token opens. \
                            Password hashes are sealed with code-key."
    )]
    Export {
        /// The account.
        id: AccountId,
        /// The file to make.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Take over an account that `account export` wrote.
    Import {
        /// The file.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        how: transfer::TakeOver,
    },
    /// Change what an account has chosen.
    Set {
        /// The account.
        id: AccountId,
        /// What people call it.
        #[arg(long)]
        name: Option<Text>,
        /// Whether installations after the first wait for the approval of an administrator.
        #[arg(long)]
        later_installs: Option<LaterInstalls>,
        /// Administrators who together can decide what a business representative decides; 0 for
        /// never.
        #[arg(long, value_parser = clap::value_parser!(i64).range(0..=10))]
        quorum: Option<i64>,
    },
}

/// What happens to installations after the first of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LaterInstalls {
    /// They need no more than the first.
    Free,
    /// An administrator's certificate has to approve them.
    Approval,
}

/// `approval-rule …`.
#[derive(Debug, Subcommand)]
pub(super) enum ApprovalRuleCommand {
    /// Set how many operators must approve operations of a kind from an amount on.
    Set {
        /// The account.
        #[arg(long)]
        account: AccountId,
        /// The kind, for instance withdrawal.
        #[arg(long)]
        kind: Kind,
        /// The currency, an ISO 4217 code; for kinds with an amount, and only for those.
        #[arg(long, default_value = "")]
        currency: String,
        /// From this amount on, in minor units.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
        from: i64,
        /// How many distinct operators.
        #[arg(long, value_parser = clap::value_parser!(i64).range(1..=10))]
        approvals: i64,
    },
}

pub(super) async fn account(
    command: AccountCommand,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    match command {
        AccountCommand::Create { id, name } => create(&id, &name, config, output).await,
        AccountCommand::List => list(config, output).await,
        AccountCommand::Export { id, out } => transfer::export(&id, &out, config, output).await,
        AccountCommand::Import { file, how } => transfer::import(&file, how, config, output).await,
        AccountCommand::Set {
            id,
            name,
            later_installs,
            quorum,
        } => set(&id, name, later_installs, quorum, config, output).await,
    }
}

fn missing(id: &AccountId) -> AdminError {
    AdminError::Missing {
        what: format!("account {id}"),
    }
}

async fn create(
    id: &AccountId,
    name: &Text,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    change(config, "create account", move |tx, desk| {
        Box::pin(async move {
            if !accounts::insert_account(tx, id, name.as_str(), desk.clock.now()).await? {
                return Err(AdminError::Exists {
                    what: format!("account {id}"),
                });
            }
            desk.note(tx, id, "account-created", json!({ "name": name.as_str() }))
                .await
        })
    })
    .await?;
    output.done(
        &format!("Account {id} created."),
        &json!({ "account": id, "name": name.as_str() }),
    )
}

async fn list(config: &Config, output: &Output) -> Result<(), AdminError> {
    let found = look(config, "list accounts", |tx| {
        Box::pin(async move { Ok(accounts::accounts(tx, 100_000).await?) })
    })
    .await?;
    let held = |account: &accounts::Account| match account.later_installs_held {
        true => "approval",
        false => "free",
    };
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|(account, created_at)| {
            vec![
                account.id.to_string(),
                account.name.clone(),
                held(account).to_owned(),
                account.quorum.to_string(),
                created_at.to_string(),
            ]
        })
        .collect();
    let values = found
        .iter()
        .map(|(account, created_at)| {
            json!({
                "account": account.id,
                "name": account.name,
                "later_installs": held(account),
                "quorum": account.quorum,
                "created_at": created_at.to_string(),
            })
        })
        .collect();
    let head = ["ACCOUNT", "NAME", "LATER INSTALLS", "QUORUM", "CREATED"];
    output.done(&table(&head, &rows), &serde_json::Value::Array(values))
}

async fn set(
    id: &AccountId,
    name: Option<Text>,
    later_installs: Option<LaterInstalls>,
    quorum: Option<i64>,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let name = name.as_ref();
    change(config, "change account", move |tx, desk| {
        Box::pin(async move {
            // The row is changed before it is read, and so held until the end.
            let change = accounts::AccountChange {
                name: name.map(Text::as_str),
                later_installs_held: later_installs.map(|later| later == LaterInstalls::Approval),
                quorum,
            };
            if !accounts::update_account(tx, id, change).await? {
                return Err(missing(id));
            }
            let account = accounts::account(tx, id)
                .await?
                .ok_or_else(|| missing(id))?;
            let body = json!({
                "name": account.name,
                "later_installs_held": account.later_installs_held,
                "quorum": account.quorum,
            });
            desk.note(tx, id, "account-changed", body).await
        })
    })
    .await?;
    output.done(&format!("Account {id} changed."), &json!({ "account": id }))
}

/// Refuses a rule that no operation could ever fall under: it would look like one that protects.
fn can_match(kind: Kind, currency: &str, from: i64) -> Result<(), AdminError> {
    let wrong = |what, problem: String| Err(AdminError::Input { what, problem });
    let name = kind.name();
    if currency.is_empty() {
        return match kind.amount() {
            Presence::Required => wrong("--currency", format!("is missing: each {name} has one")),
            Presence::Optional | Presence::Forbidden if from > 0 => wrong(
                "--from",
                "needs a --currency, and a kind with an amount".to_owned(),
            ),
            Presence::Optional | Presence::Forbidden => Ok(()),
        };
    }
    if kind.amount() == Presence::Forbidden {
        return wrong(
            "--currency",
            format!("has no meaning: no {name} has an amount"),
        );
    }
    match Money::new(from.max(1), currency) {
        Ok(_) => Ok(()),
        Err(error) => wrong("the rule", format!("cannot be used: {error}")),
    }
}

pub(super) async fn approval_rule(
    command: ApprovalRuleCommand,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let ApprovalRuleCommand::Set {
        account,
        kind,
        currency,
        from,
        approvals,
    } = command;
    can_match(kind, &currency, from)?;
    let (wanted, name, code) = (&account, kind.name(), currency.as_str());
    change(config, "set approval rule", move |tx, desk| {
        Box::pin(async move {
            if !accounts::account_exists(tx, wanted).await? {
                return Err(missing(wanted));
            }
            accounts::set_approval_rule(tx, wanted, name, code, from, approvals).await?;
            let body = json!({
                "kind": name, "currency": code, "from": from, "approvals": approvals,
            });
            desk.note(tx, wanted, "approval-rule-set", body).await
        })
    })
    .await?;
    output.done(
        &format!("Operations {name} of account {account} need {approvals} approvals from {from} {currency} on."),
        &json!({
            "account": account, "kind": name, "currency": currency, "from": from,
            "approvals": approvals,
        }),
    )
}
