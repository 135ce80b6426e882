//! `account`, `operator`, `representative`, `approval-rule` and `platform-key`.

use std::path::PathBuf;

use clap::Subcommand;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::json;

use super::output::Output;
use super::{AdminError, Trail, secrets};
use crate::account::config::Config;
use crate::account::passwords::Passwords;
use crate::account::routes::operations::Scope;
use crate::account::store::accounts::{self, Language, Mobile, Operator, PlatformProof, Role};
use crate::account::store::{Store, StoreError, certificates, codes, sessions};
use crate::base::Clock;
use crate::base::encoding::{base64url, hex, sha256};
use crate::base::files::{Readers, read_checked};
use crate::base::ids::{AccountId, ClientName, OperatorId, random};
use crate::base::secret::SecretText;
use crate::base::x509::Certificate;
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

/// `platform-key …`.
#[derive(Debug, Subcommand)]
pub(super) enum PlatformKeyCommand {
    /// Create a key for the platform's backend and print it, once.
    Create {
        /// A name to know it by.
        name: ClientName,
        /// What it may do; may be given several times. Default: everything.
        #[arg(long)]
        scope: Vec<Scope>,
        /// The TLS client certificate (PEM) that stands for the key, instead of a secret.
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
    },
    /// List the keys.
    List,
    /// Withdraw a key: nothing is taken from it any more.
    Revoke {
        /// Its name.
        name: ClientName,
    },
}

pub(super) async fn account(
    command: AccountCommand,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let (id, name) = match command {
        AccountCommand::Create { id, name } => (id, name),
        AccountCommand::List => return list_accounts(config, output).await,
        AccountCommand::Set {
            id,
            name,
            later_installs,
            quorum,
        } => return set_account(id, name, later_installs, quorum, config, output).await,
    };
    let clock = Clock::system();
    let store = Store::open(&config.database()?).await?;
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
    let (id, account, mobile, role, language, password_file) = match command {
        OperatorCommand::Create {
            id,
            account,
            mobile,
            role,
            language,
            password_file,
        } => (id, account, mobile, role, language, password_file),
        OperatorCommand::List { account } => return list_operators(&account, config, output).await,
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
            let change = Change {
                role,
                language,
                password,
            };
            return set_operator(&id, &account, change, config, output).await;
        }
        OperatorCommand::Disable { id, account } => {
            return disable_operator(&id, &account, config, output).await;
        }
    };
    let clock = Clock::system();
    let store = Store::open(&config.database()?).await?;
    let trail = Trail::open(config, &clock)?;
    let password = secrets::password(password_file.as_deref())?;
    let password_hash = Passwords::new()?.hash(password).await?;
    let operator = &Operator {
        account: account.clone(),
        id: id.clone(),
        role,
        mobile: mobile.clone(),
        language,
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
    let (name, scope, certificate) = match command {
        PlatformKeyCommand::Create {
            name,
            scope,
            certificate,
        } => (name, scope, certificate),
        PlatformKeyCommand::List => return list_platform_keys(config, output).await,
        PlatformKeyCommand::Revoke { name } => {
            return revoke_platform_key(&name, config, output).await;
        }
    };
    let scopes = scopes(&scope);
    let certificate = certificate
        .map(|path| {
            let pem = read_checked(&path, Readers::Anybody, 64 * 1024)?;
            Ok::<_, AdminError>(hex(&Certificate::from_pem(&pem)?.fingerprint()))
        })
        .transpose()?;
    let clock = Clock::system();
    let store = Store::open(&config.database()?).await?;
    let trail = Trail::open(config, &clock)?;
    let key = format!("opk_{}", base64url(&random::<32>()));
    let key_hash = hex(&sha256(key.as_bytes()));
    let (key_name, now, record) = (name.as_str(), clock.now(), &trail);
    let scopes = scopes.as_str();
    let proof = match &certificate {
        Some(hash) => PlatformProof::Certificate(hash),
        None => PlatformProof::Key(&key_hash),
    };
    let created = store
        .transaction("create platform key", move |tx| {
            Box::pin(async move {
                let created =
                    accounts::insert_platform_key(tx, key_name, proof, scopes, now).await?;
                if created {
                    record
                        .write(
                            "platform-key-created",
                            json!({ "name": key_name, "scopes": scopes }),
                        )
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
    match certificate {
        Some(hash) => output.done(
            &format!("Platform key {name} is the certificate with SHA-256 {hash}."),
            &json!({ "name": name, "certificate_sha256": hash }),
        ),
        None => output.done(&key, &json!({ "name": name, "key": key })),
    }
}

/// Scopes as the database keeps them; none given is all.
fn scopes(given: &[Scope]) -> String {
    let given = if given.is_empty() { &Scope::ALL } else { given };
    let names: Vec<&str> = given.iter().map(|scope| scope.as_str()).collect();
    names.join(" ")
}

/// A table without lines, and what it says as JSON.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

async fn list_accounts(config: &Config, output: &Output) -> Result<(), AdminError> {
    let store = Store::open(&config.database()?).await?;
    let found = store
        .read("list accounts", |tx| {
            Box::pin(accounts::accounts(tx, 100_000))
        })
        .await
        .map_err(|error: StoreError| error)?;
    store.close().await;
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

async fn set_account(
    id: AccountId,
    name: Option<Text>,
    later_installs: Option<LaterInstalls>,
    quorum: Option<i64>,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let clock = Clock::system();
    let store = Store::open(&config.database()?).await?;
    let trail = Trail::open(config, &clock)?;
    let (wanted, name, record) = (&id, name.as_ref(), &trail);
    store
        .transaction("change account", move |tx| {
            Box::pin(async move {
                let missing = || AdminError::Missing {
                    what: format!("account {wanted}"),
                };
                // The row is changed before it is read, and so held until the end.
                let change = accounts::AccountChange {
                    name: name.map(Text::as_str),
                    later_installs_held: later_installs
                        .map(|later| later == LaterInstalls::Approval),
                    quorum,
                };
                if !accounts::update_account(tx, wanted, change).await? {
                    return Err(missing());
                }
                let account = accounts::account(tx, wanted).await?.ok_or_else(missing)?;
                let body = json!({
                    "account": wanted,
                    "name": account.name,
                    "later_installs_held": account.later_installs_held,
                    "quorum": account.quorum,
                });
                Ok::<_, AdminError>(record.write("account-changed", body).await?)
            })
        })
        .await?;
    trail.close().await?;
    store.close().await;
    output.done(&format!("Account {id} changed."), &json!({ "account": id }))
}

async fn list_operators(
    account: &AccountId,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let store = Store::open(&config.database()?).await?;
    let found = store
        .read("list operators", move |tx| {
            Box::pin(accounts::operators(tx, account))
        })
        .await
        .map_err(|error: StoreError| error)?;
    store.close().await;
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

struct Change {
    role: Option<Role>,
    language: Option<Language>,
    password: Option<SecretText>,
}

async fn set_operator(
    id: &OperatorId,
    account: &AccountId,
    change: Change,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let clock = Clock::system();
    let store = Store::open(&config.database()?).await?;
    let trail = Trail::open(config, &clock)?;
    let hash = &match change.password {
        Some(password) => Some(Passwords::new()?.hash(password).await?),
        None => None,
    };
    let (now, record) = (clock.now(), &trail);
    let (role, language) = (change.role, change.language);
    store
        .transaction("change operator", move |tx| {
            Box::pin(async move {
                // The row is changed before it is read, and so held until the end.
                let change = accounts::OperatorChange {
                    role,
                    language,
                    password_hash: hash.as_deref(),
                    mobile: None,
                };
                if !accounts::update_operator(tx, account, id, change).await? {
                    return Err(missing_operator(id, account));
                }
                let operator = accounts::operator(tx, account, id)
                    .await?
                    .ok_or_else(|| missing_operator(id, account))?;
                if hash.is_some() {
                    sessions::end_all(tx, account, id, now).await?;
                    codes::void(tx, account, id, now).await?;
                }
                let body = json!({
                    "account": account,
                    "operator": id,
                    "role": operator.role,
                    "language": operator.language,
                    "password_changed": hash.is_some(),
                });
                Ok::<_, AdminError>(record.write("operator-changed", body).await?)
            })
        })
        .await?;
    trail.close().await?;
    store.close().await;
    output.done(
        &format!("Operator {id} of account {account} changed."),
        &json!({ "account": account, "operator": id }),
    )
}

async fn disable_operator(
    id: &OperatorId,
    account: &AccountId,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let clock = Clock::system();
    let store = Store::open(&config.database()?).await?;
    let trail = Trail::open(config, &clock)?;
    let (now, record) = (clock.now(), &trail);
    let revoked = store
        .transaction("close login", move |tx| {
            Box::pin(async move {
                // Whatever is being issued right now is issued first, and revoked below.
                certificates::hold_issuing(tx, account).await?;
                if !accounts::disable_operator(tx, account, id, now).await? {
                    return Err(missing_operator(id, account));
                }
                sessions::end_all(tx, account, id, now).await?;
                codes::void(tx, account, id, now).await?;
                let mut revoked = Vec::new();
                for certificate in certificates::active_of(tx, account, id, None, now).await? {
                    let (serial, reason) = (&certificate.serial, "affiliation-changed");
                    if certificates::revoke(tx, serial, reason, "administration", now).await? {
                        revoked.push(certificate.serial);
                    }
                }
                let body = json!({ "account": account, "operator": id, "revoked": revoked });
                record.write("operator-disabled", body).await?;
                Ok(revoked)
            })
        })
        .await?;
    trail.close().await?;
    store.close().await;
    output.done(
        &format!(
            "The login of operator {id} of account {account} is closed; {} certificates revoked.",
            revoked.len()
        ),
        &json!({ "account": account, "operator": id, "revoked": revoked }),
    )
}

fn missing_operator(id: &OperatorId, account: &AccountId) -> AdminError {
    AdminError::Missing {
        what: format!("operator {id} in account {account}"),
    }
}

pub(super) async fn representative(
    command: RepresentativeCommand,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let clock = Clock::system();
    let store = Store::open(&config.database()?).await?;
    let trail = Trail::open(config, &clock)?;
    let (now, record) = (clock.now(), &trail);
    let (text, id) = match command {
        RepresentativeCommand::Create {
            id,
            name,
            password_file,
        } => {
            let password = secrets::password(password_file.as_deref())?;
            let row = &accounts::Representative {
                id: id.clone(),
                name: name.to_string(),
                password_hash: Passwords::new()?.hash(password).await?,
            };
            store
                .transaction("create representative", move |tx| {
                    Box::pin(async move {
                        if !accounts::insert_representative(tx, row, now).await? {
                            return Err(AdminError::Exists {
                                what: format!("representative {}", row.id),
                            });
                        }
                        let body = json!({ "representative": row.id, "name": row.name });
                        Ok(record.write("representative-created", body).await?)
                    })
                })
                .await?;
            (format!("Business representative {id} created."), id)
        }
        RepresentativeCommand::Disable { id } => {
            let wanted = &id;
            store
                .transaction("close login", move |tx| {
                    Box::pin(async move {
                        if !accounts::disable_representative(tx, wanted, now).await? {
                            return Err(AdminError::Missing {
                                what: format!("representative {wanted}"),
                            });
                        }
                        let body = json!({ "representative": wanted });
                        Ok(record.write("representative-disabled", body).await?)
                    })
                })
                .await?;
            (format!("The login of representative {id} is closed."), id)
        }
    };
    trail.close().await?;
    store.close().await;
    output.done(&text, &json!({ "representative": id }))
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
    let clock = Clock::system();
    let store = Store::open(&config.database()?).await?;
    let trail = Trail::open(config, &clock)?;
    let (wanted, name, code, record) = (&account, kind.name(), currency.as_str(), &trail);
    store
        .transaction("set approval rule", move |tx| {
            Box::pin(async move {
                if !accounts::account_exists(tx, wanted).await? {
                    return Err(AdminError::Missing {
                        what: format!("account {wanted}"),
                    });
                }
                accounts::set_approval_rule(tx, wanted, name, code, from, approvals).await?;
                let body = json!({
                    "account": wanted, "kind": name, "currency": code, "from": from,
                    "approvals": approvals,
                });
                Ok(record.write("approval-rule-set", body).await?)
            })
        })
        .await?;
    trail.close().await?;
    store.close().await;
    output.done(
        &format!("Operations {name} of account {account} need {approvals} approvals from {from} {currency} on."),
        &json!({
            "account": account, "kind": name, "currency": currency, "from": from,
            "approvals": approvals,
        }),
    )
}

async fn list_platform_keys(config: &Config, output: &Output) -> Result<(), AdminError> {
    let store = Store::open(&config.database()?).await?;
    let found = store
        .read("list platform keys", |tx| {
            Box::pin(accounts::platform_keys(tx))
        })
        .await
        .map_err(|error: StoreError| error)?;
    store.close().await;
    let state = |key: &accounts::PlatformKey| match key.revoked_at {
        Some(at) => format!("withdrawn {at}"),
        None => "active".into(),
    };
    let form = |key: &accounts::PlatformKey| match key.is_certificate {
        true => "certificate",
        false => "secret",
    };
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|key| {
            vec![
                key.name.clone(),
                form(key).to_owned(),
                key.scopes.clone(),
                key.created_at.to_string(),
                state(key),
            ]
        })
        .collect();
    let values = found
        .iter()
        .map(|key| {
            json!({
                "name": key.name,
                "form": form(key),
                "scopes": key.scopes.split(' ').collect::<Vec<_>>(),
                "created_at": key.created_at.to_string(),
                "revoked_at": key.revoked_at.map(|at| at.to_string()),
            })
        })
        .collect();
    let head = ["NAME", "FORM", "SCOPES", "CREATED", "STATE"];
    output.done(&table(&head, &rows), &serde_json::Value::Array(values))
}

async fn revoke_platform_key(
    name: &ClientName,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let clock = Clock::system();
    let store = Store::open(&config.database()?).await?;
    let trail = Trail::open(config, &clock)?;
    let (wanted, now, record) = (name.as_str(), clock.now(), &trail);
    store
        .transaction("withdraw platform key", move |tx| {
            Box::pin(async move {
                if !accounts::revoke_platform_key(tx, wanted, now).await? {
                    return Err(AdminError::Missing {
                        what: format!("platform key {wanted} in force"),
                    });
                }
                let body = json!({ "name": wanted });
                Ok(record.write("platform-key-withdrawn", body).await?)
            })
        })
        .await?;
    trail.close().await?;
    store.close().await;
    output.done(
        &format!("Platform key {name} withdrawn; nothing is taken from it any more."),
        &json!({ "name": name }),
    )
}
