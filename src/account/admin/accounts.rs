//! `account`, `operator` and `platform-key`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::output::Output;
use super::{AdminError, Trail, secrets};
use crate::account::config::Config;
use crate::account::passwords::Passwords;
use crate::account::store::Store;
use crate::account::store::accounts::{self, Mobile, Operator, Role};
use crate::base::Clock;
use crate::base::encoding::{base64url, hex, sha256};
use crate::base::ids::{AccountId, ClientName, OperatorId, random};
use crate::statement::text::Text;

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
}

/// `operator …`.
#[derive(Debug, Subcommand)]
pub(super) enum OperatorCommand {
    /// Create an operator.
    Create {
        /// The operator's id: letters, digits, ".", "_", "-".
        id: OperatorId,
        /// The account.
        #[arg(long)]
        account: AccountId,
        /// The mobile number codes go to, like +8613800000001.
        #[arg(long)]
        mobile: Mobile,
        /// What the operator may do besides approving.
        #[arg(long, default_value = "operator")]
        role: Role,
        /// A file with the password, closed to others; "-" is standard input. Without it the
        /// password is asked for.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
}

/// `platform-key …`.
#[derive(Debug, Subcommand)]
pub(super) enum PlatformKeyCommand {
    /// Create a key for the platform's backend and print it, once.
    Create {
        /// A name to know it by.
        name: ClientName,
    },
}

pub(super) async fn account(
    command: AccountCommand,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let AccountCommand::Create { id, name } = command;
    let clock = Clock::system();
    let store = Store::open(&config.database()).await?;
    let trail = Trail::open(config, &clock)?;
    let (account, title, now) = (&id, name.as_str(), clock.now());
    let record = &trail;
    let created = store
        .transaction("create account", move |tx| {
            Box::pin(async move {
                let created = accounts::insert_account(tx, account, title, now).await?;
                if created {
                    let body = json!({ "account": account, "name": title });
                    record.write("account-created", body).await?;
                }
                Ok::<_, AdminError>(created)
            })
        })
        .await?;
    trail.close().await?;
    store.close().await;
    if !created {
        return Err(AdminError::Exists {
            what: format!("account {id}"),
        });
    }
    output.done(
        &format!("Account {id} created."),
        &json!({ "account": id, "name": name.as_str() }),
    )
}

pub(super) async fn operator(
    command: OperatorCommand,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let OperatorCommand::Create {
        id,
        account,
        mobile,
        role,
        password_file,
    } = command;
    let clock = Clock::system();
    let store = Store::open(&config.database()).await?;
    let trail = Trail::open(config, &clock)?;
    let password = secrets::password(password_file.as_deref())?;
    let password_hash = Passwords::new()?.hash(password).await?;
    let operator = &Operator {
        account: account.clone(),
        id: id.clone(),
        role,
        mobile: mobile.clone(),
        password_hash,
    };
    let (now, record) = (clock.now(), &trail);
    let created = store
        .transaction("create operator", move |tx| {
            Box::pin(async move {
                if !accounts::account_exists(tx, &operator.account).await? {
                    return Err(AdminError::Missing {
                        what: format!("account {}", operator.account),
                    });
                }
                let created = accounts::insert_operator(tx, operator, now).await?;
                if created {
                    let body = json!({
                        "account": operator.account,
                        "operator": operator.id,
                        "role": operator.role,
                        "mobile": operator.mobile.masked(),
                    });
                    record.write("operator-created", body).await?;
                }
                Ok(created)
            })
        })
        .await?;
    trail.close().await?;
    store.close().await;
    if !created {
        return Err(AdminError::Exists {
            what: format!("operator {id} of account {account}"),
        });
    }
    output.done(
        &format!(
            "Operator {id} ({role}) of account {account} created, codes go to {}.",
            mobile.masked()
        ),
        &json!({ "account": account, "operator": id, "role": role, "mobile": mobile.masked() }),
    )
}

pub(super) async fn platform_key(
    command: PlatformKeyCommand,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let PlatformKeyCommand::Create { name } = command;
    let clock = Clock::system();
    let store = Store::open(&config.database()).await?;
    let trail = Trail::open(config, &clock)?;
    let key = format!("opk_{}", base64url(&random::<32>()));
    let key_hash = hex(&sha256(key.as_bytes()));
    let (key_name, key_hash, now, record) = (name.as_str(), key_hash.as_str(), clock.now(), &trail);
    let created = store
        .transaction("create platform key", move |tx| {
            Box::pin(async move {
                let created = accounts::insert_platform_key(tx, key_name, key_hash, now).await?;
                if created {
                    record
                        .write("platform-key-created", json!({ "name": key_name }))
                        .await?;
                }
                Ok::<_, AdminError>(created)
            })
        })
        .await?;
    trail.close().await?;
    store.close().await;
    if !created {
        return Err(AdminError::Exists {
            what: format!("platform key {name}"),
        });
    }
    output.done(&key, &json!({ "name": name, "key": key }))
}
