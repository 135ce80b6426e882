//! `operator` and `representative`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::desk::{change, look};
use super::output::{Output, table};
use super::{AdminError, secrets};
use crate::account::config::Config;
use crate::account::issuing::RevocationReason;
use crate::account::passwords::Passwords;
use crate::account::revocation::{self, ADMINISTRATION, Revocation};
use crate::account::store::accounts::{self, Language, Mobile, Operator, Role};
use crate::account::store::{certificates, codes, sessions};
use crate::base::ids::{AccountId, OperatorId};
use crate::base::secret::SecretText;
use crate::statement::text::Text;

/// `representative …`.
#[derive(Debug, Subcommand)]
pub(super) enum RepresentativeCommand {
    /// Create a business representative: works for the platform, outside every account.
    Create {
        /// The representative's id: letters, digits, ".", "_", "-".
        id: OperatorId,
        /// What people call it.
        #[arg(long)]
        name: Text,
        /// A file with the password, closed to others; "-" is standard input. Without it the
        /// password is asked for.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Close the login of a business representative.
    Disable {
        /// The representative.
        id: OperatorId,
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
        /// The language of texts to the operator.
        #[arg(long, default_value = "en")]
        language: Language,
        /// A file with the password, closed to others; "-" is standard input. Without it the
        /// password is asked for.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// List the operators of an account.
    List {
        /// The account.
        #[arg(long)]
        account: AccountId,
    },
    /// Change an operator; a new password ends sessions, codes and tickets.
    Set {
        /// The operator.
        id: OperatorId,
        /// The account.
        #[arg(long)]
        account: AccountId,
        /// What the operator may do besides approving.
        #[arg(long)]
        role: Option<Role>,
        /// The language of texts to the operator.
        #[arg(long)]
        language: Option<Language>,
        /// A file with a new password, closed to others; "-" is standard input.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Close the login of an operator: sessions, codes and tickets end, certificates are revoked.
    Disable {
        /// The operator.
        id: OperatorId,
        /// The account.
        #[arg(long)]
        account: AccountId,
    },
}

pub(super) async fn operator(
    command: OperatorCommand,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    match command {
        OperatorCommand::Create {
            id,
            account,
            mobile,
            role,
            language,
            password_file,
        } => {
            refuse_taken("operator", &id)?;
            let password = secrets::password(password_file.as_deref())?;
            let operator = Operator {
                account,
                id,
                role,
                mobile,
                language,
                password_hash: Passwords::new()?.hash(password).await?,
            };
            create(&operator, config, output).await
        }
        OperatorCommand::List { account } => list(&account, config, output).await,
        OperatorCommand::Set {
            id,
            account,
            role,
            language,
            password_file,
        } => {
            let password = match password_file {
                Some(file) => Some(secrets::password(Some(&file))?),
                None => None,
            };
            set(&id, &account, role, language, password, config, output).await
        }
        OperatorCommand::Disable { id, account } => disable(&id, &account, config, output).await,
    }
}

/// Nobody is called as records call what is no person.
fn refuse_taken(what: &'static str, id: &OperatorId) -> Result<(), AdminError> {
    if revocation::is_taken(id) {
        return Err(AdminError::Input {
            what,
            problem: format!("{id} would read in records as the command line or the service"),
        });
    }
    Ok(())
}

fn missing(id: &OperatorId, account: &AccountId) -> AdminError {
    AdminError::Missing {
        what: format!("operator {id} in account {account}"),
    }
}

async fn create(operator: &Operator, config: &Config, output: &Output) -> Result<(), AdminError> {
    let (account, id, role) = (&operator.account, &operator.id, operator.role);
    let mobile = operator.mobile.masked();
    let shown = mobile.as_str();
    change(config, "create operator", move |tx, desk| {
        Box::pin(async move {
            if !accounts::account_exists(tx, account).await? {
                return Err(AdminError::Missing {
                    what: format!("account {account}"),
                });
            }
            if !accounts::insert_operator(tx, operator, desk.clock.now()).await? {
                return Err(AdminError::Exists {
                    what: format!("operator {id} of account {account}"),
                });
            }
            let body = json!({ "operator": id, "role": role, "mobile": shown });
            desk.note(tx, account, "operator-created", body).await
        })
    })
    .await?;
    output.done(
        &format!("Operator {id} ({role}) of account {account} created, codes go to {mobile}."),
        &json!({ "account": account, "operator": id, "role": role, "mobile": mobile }),
    )
}

async fn list(account: &AccountId, config: &Config, output: &Output) -> Result<(), AdminError> {
    let found = look(config, "list operators", move |tx| {
        Box::pin(async move { Ok(accounts::operators(tx, account).await?) })
    })
    .await?;
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|operator| {
            vec![
                operator.id.to_string(),
                operator.role.to_string(),
                operator.mobile.masked(),
                operator.language.as_str().to_owned(),
            ]
        })
        .collect();
    let values = found
        .iter()
        .map(|operator| {
            json!({
                "account": account,
                "operator": operator.id,
                "role": operator.role,
                "mobile": operator.mobile.masked(),
                "language": operator.language,
            })
        })
        .collect();
    let head = ["OPERATOR", "ROLE", "MOBILE", "LANGUAGE"];
    output.done(&table(&head, &rows), &serde_json::Value::Array(values))
}

async fn set(
    id: &OperatorId,
    account: &AccountId,
    role: Option<Role>,
    language: Option<Language>,
    password: Option<SecretText>,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let hash = match password {
        Some(password) => Some(Passwords::new()?.hash(password).await?),
        None => None,
    };
    let hash = hash.as_deref();
    change(config, "change operator", move |tx, desk| {
        Box::pin(async move {
            // The row is changed before it is read, and so held until the end.
            let change = accounts::OperatorChange {
                role,
                language,
                password_hash: hash,
                mobile: None,
            };
            if !accounts::update_operator(tx, account, id, change).await? {
                return Err(missing(id, account));
            }
            let operator = accounts::operator(tx, account, id)
                .await?
                .ok_or_else(|| missing(id, account))?;
            if hash.is_some() {
                let now = desk.clock.now();
                sessions::end_all(tx, account, id, now).await?;
                codes::void(tx, account, id, now).await?;
            }
            let body = json!({
                "operator": id,
                "role": operator.role,
                "language": operator.language,
                "password_changed": hash.is_some(),
            });
            desk.note(tx, account, "operator-changed", body).await
        })
    })
    .await?;
    output.done(
        &format!("Operator {id} of account {account} changed."),
        &json!({ "account": account, "operator": id }),
    )
}

async fn disable(
    id: &OperatorId,
    account: &AccountId,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let revoked = change(config, "close login", move |tx, desk| {
        Box::pin(async move {
            let now = desk.clock.now();
            // Whatever is being issued right now is issued first, and revoked below.
            certificates::hold_issuing(tx, account).await?;
            if !accounts::disable_operator(tx, account, id, now).await? {
                return Err(missing(id, account));
            }
            sessions::end_all(tx, account, id, now).await?;
            codes::void(tx, account, id, now).await?;
            let found = certificates::active_of(tx, account, id, None, now).await?;
            let reason = RevocationReason::AffiliationChanged;
            let revoked = Revocation::new(reason, ADMINISTRATION)
                .apply::<AdminError>(tx, &desk.records, &found, now, &desk.request)
                .await?;
            let body = json!({ "operator": id, "revoked": revoked });
            desk.note(tx, account, "operator-disabled", body).await?;
            Ok(revoked)
        })
    })
    .await?;
    output.done(
        &format!(
            "The login of operator {id} of account {account} is closed; {} certificates revoked.",
            revoked.len()
        ),
        &json!({ "account": account, "operator": id, "revoked": revoked }),
    )
}

pub(super) async fn representative(
    command: RepresentativeCommand,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let (text, id) = match command {
        RepresentativeCommand::Create {
            id,
            name,
            password_file,
        } => {
            refuse_taken("representative", &id)?;
            let password = secrets::password(password_file.as_deref())?;
            let row = &accounts::Representative {
                id: id.clone(),
                name: name.to_string(),
                password_hash: Passwords::new()?.hash(password).await?,
            };
            change(config, "create representative", move |tx, desk| {
                Box::pin(async move {
                    if !accounts::insert_representative(tx, row, desk.clock.now()).await? {
                        return Err(AdminError::Exists {
                            what: format!("representative {}", row.id),
                        });
                    }
                    let body = json!({ "representative": row.id, "name": row.name });
                    desk.write("representative-created", body).await
                })
            })
            .await?;
            (format!("Business representative {id} created."), id)
        }
        RepresentativeCommand::Disable { id } => {
            let wanted = &id;
            change(config, "close login", move |tx, desk| {
                Box::pin(async move {
                    let now = desk.clock.now();
                    if !accounts::disable_representative(tx, wanted, now).await? {
                        return Err(AdminError::Missing {
                            what: format!("representative {wanted}"),
                        });
                    }
                    let body = json!({ "representative": wanted });
                    desk.write("representative-disabled", body).await
                })
            })
            .await?;
            (format!("The login of representative {id} is closed."), id)
        }
    };
    output.done(&text, &json!({ "representative": id }))
}
