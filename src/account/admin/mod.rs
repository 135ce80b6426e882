//! The command line of `opcert-accountd`.
//!
//! Commands that change something work on the database directly, beside a running service, and
//! leave their records in an audit trail of their own (`admin-audit` in the state directory), as
//! the service keeps its trail locked while it runs.
//!
//! What never lives here: the rules of what is changed. They are those of the modules that the
//! service itself calls.

mod accounts;
mod backup;
mod certificates;
mod desk;
mod doctor;
mod init;
mod keys;
mod output;
mod people;
mod platform_keys;
mod secrets;
mod transfer;
mod trial;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use super::config::{self, Config};
use super::issuing::IssuingError;
use super::passwords::PasswordError;
use super::serve::{ServeError, serve};
use super::service::StartError;
use super::store::{Store, StoreError};
use super::vault::VaultError;
use crate::api::problem::Code;
use crate::audit::AuditError;
use crate::audit::verify::VerifyError;
use crate::base::files::FileError;
use crate::base::jwe::JweError;
use crate::base::memory::{lock_all, undumpable};
use crate::base::sysexits::{
    EX_CANTCREAT, EX_CONFIG, EX_DATAERR, EX_FAILED, EX_IOERR, EX_NOINPUT, EX_NOPERM, EX_OSERR,
    EX_SOFTWARE, EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE,
};
use crate::base::x509::X509Error;
use crate::config::{ConfigError, Loaded};
use crate::device::DeviceError;
use crate::telemetry;

#[cfg(fuzzing)]
pub use transfer::fuzz_export;

use desk::Desk;
use output::Output;

/// The account service of opcert: accounts, enrolment, issuing authority, operations.
#[derive(Debug, Parser)]
#[command(name = "opcert-accountd", version, propagate_version = true)]
pub struct Arguments {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Print one JSON value instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new service: configuration, keys on the token, authority, database.
    Init(Box<init::Arguments>),
    /// Run the service.
    Serve {
        /// Run as root, which is refused otherwise: nothing here needs it.
        #[arg(long)]
        allow_root: bool,
    },
    /// Bring the database to the schema of this version.
    Migrate,
    /// The configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Accounts.
    #[command(subcommand)]
    Account(accounts::AccountCommand),
    /// Operators.
    #[command(subcommand)]
    Operator(people::OperatorCommand),
    /// Business representatives.
    #[command(subcommand)]
    Representative(people::RepresentativeCommand),
    /// How many must approve.
    #[command(subcommand)]
    ApprovalRule(accounts::ApprovalRuleCommand),
    /// Keys of the platform's backend.
    #[command(subcommand)]
    PlatformKey(platform_keys::Command),
    /// The service's own keys.
    #[command(subcommand)]
    Key(keys::Command),
    /// Copy what has to survive to a new directory, while the service runs.
    Backup {
        /// The directory to make.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Put a backup in the place of what is there, while no service runs.
    Restore {
        /// The backup.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Look for what is wrong and name the command that mends it.
    Doctor,
    /// Operating certificates.
    #[command(subcommand)]
    Certificate(certificates::Command),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check the configuration and its drop-ins.
    Check,
    /// Show every key, its value, and where that was set.
    Show,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The database has no address.
    #[error(transparent)]
    Database(#[from] config::DatabaseError),
    /// The service did not start or run.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The token cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The authority could not be made.
    #[error("cannot make the issuing authority")]
    Issuing(#[from] IssuingError),
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    X509(#[from] X509Error),
    /// The password was refused.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The audit record could not be written, so nothing was done.
    #[error("cannot write the audit trail")]
    Audit(#[from] AuditError),
    /// The service was started as root.
    #[error("opcert-accountd serve was started as root")]
    Root,
    /// Something is there already.
    #[error("{what} exists already")]
    Exists {
        /// What.
        what: String,
    },
    /// It was revoked before.
    #[error("certificate {serial} is revoked already")]
    RevokedAlready {
        /// Its serial number.
        serial: String,
    },
    /// Something is not there.
    #[error("there is no {what}")]
    Missing {
        /// What.
        what: String,
    },
    /// What is to be taken away is in use.
    #[error("{count} certificates in force were signed with key {key}")]
    InUse {
        /// The key.
        key: String,
        /// How many.
        count: i64,
    },
    /// Secrets cannot be sealed to the next key.
    #[error("cannot seal the API secrets anew")]
    Vault(#[from] VaultError),
    /// A key is not what its purpose needs.
    #[error("the sealing key cannot be used")]
    SealingKey(#[from] JweError),
    /// An export is not whole, or cannot be taken over here.
    #[error("the export cannot be used: {problem}")]
    Export {
        /// What is wrong with it.
        problem: String,
    },
    /// The service cannot be opened.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A backup is not whole, or not of this service.
    #[error("the backup cannot be used: {problem}")]
    Backup {
        /// What is wrong with it.
        problem: String,
    },
    /// An audit trail of a backup is not sound.
    #[error("an audit trail cannot be used")]
    Trail(#[from] VerifyError),
    /// A process works on the state directory.
    #[error("a service or a command uses {}", directory.display())]
    Running {
        /// The directory.
        directory: PathBuf,
    },
    /// The doctor found something broken, and has said so.
    #[error("{broken} checks failed")]
    Broken {
        /// How many.
        broken: usize,
    },
    /// An argument or input has no meaning.
    #[error("{what} {problem}")]
    Input {
        /// Which.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Reading from or writing to the terminal failed.
    #[error("cannot use the terminal")]
    Terminal(#[from] std::io::Error),
    /// There is no log.
    #[error(transparent)]
    Logging(#[from] telemetry::LogError),
    /// The runtime cannot be started.
    #[error("cannot start the runtime")]
    Runtime {
        /// Why.
        source: std::io::Error,
    },
    /// A core dump or a debugger of the user could show secrets.
    #[error("the process cannot be made undumpable")]
    Dumpable {
        /// Why.
        source: std::io::Error,
    },
}

impl AdminError {
    /// The exit code.
    fn exit(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Database(_)
            | Self::Serve(ServeError::Tls(_) | ServeError::Webhook(_)) => EX_CONFIG,
            Self::Serve(ServeError::Bind { .. }) => EX_UNAVAILABLE,
            Self::Serve(ServeError::Start(error)) => match error {
                StartError::Store(StoreError::Schema { .. })
                | StartError::KeyMissing { .. }
                | StartError::CodeKey { .. } => EX_CONFIG,
                StartError::Devices(_) => EX_UNAVAILABLE,
                StartError::File(_) | StartError::Store(_) => EX_NOINPUT,
                StartError::Audit(_) => EX_IOERR,
                _ => EX_SOFTWARE,
            },
            Self::Serve(ServeError::File(_)) | Self::File(FileError::Unreadable { .. }) => {
                EX_NOINPUT
            }
            Self::Serve(ServeError::Signals { .. })
            | Self::Runtime { .. }
            | Self::Dumpable { .. } => EX_OSERR,
            Self::File(FileError::Unwritable { .. }) => EX_CANTCREAT,
            Self::File(_) => EX_CONFIG,
            Self::Store(StoreError::Schema { .. } | StoreError::Unsupported { .. }) => EX_CONFIG,
            Self::Store(_) => EX_IOERR,
            Self::Audit(AuditError::Locked { .. }) | Self::Running { .. } => EX_TEMPFAIL,
            Self::Audit(_) | Self::Terminal(_) => EX_IOERR,
            Self::Device(_) => EX_UNAVAILABLE,
            Self::Root => EX_NOPERM,
            Self::Exists { .. }
            | Self::RevokedAlready { .. }
            | Self::Missing { .. }
            | Self::InUse { .. }
            | Self::Broken { .. } => EX_FAILED,
            Self::Vault(VaultError::Device(_)) => EX_UNAVAILABLE,
            Self::Vault(_) | Self::SealingKey(_) => EX_DATAERR,
            Self::Password(_)
            | Self::Input { .. }
            | Self::Backup { .. }
            | Self::Export { .. }
            | Self::Trail(_) => EX_DATAERR,
            Self::Start(_) => EX_CONFIG,
            Self::Issuing(_) | Self::X509(_) | Self::Logging(_) => EX_SOFTWARE,
        }
    }

    /// The stable code, where the failure has one.
    fn code(&self) -> Option<Code> {
        match self {
            Self::Config(error) => Some(error.code()),
            Self::Serve(ServeError::Bind { source, .. })
                if source.kind() == std::io::ErrorKind::AddrInUse =>
            {
                Some(Code::PortInUse)
            }
            Self::Serve(ServeError::Start(
                StartError::Store(_) | StartError::File(_) | StartError::Audit(_),
            ))
            | Self::Store(_)
            | Self::Audit(_) => Some(Code::StateUnusable),
            Self::Root => Some(Code::NotPermitted),
            _ => None,
        }
    }

    /// What to do about it.
    fn action(&self) -> String {
        match self {
            Self::Serve(ServeError::Start(StartError::Store(StoreError::Schema {
                found,
                needed,
            })))
            | Self::Store(StoreError::Schema { found, needed }) => {
                if found < needed {
                    "Make a backup, then run `opcert-accountd migrate`.".into()
                } else {
                    "Run the version of the program that made it, or a later one.".into()
                }
            }
            Self::Serve(ServeError::Start(
                StartError::KeyMissing { .. }
                | StartError::CodeKey { .. }
                | StartError::Store(StoreError::Open { .. }),
            ))
            | Self::Store(StoreError::Open { .. }) => {
                "Check the state directory and its owner; `opcert-accountd init` makes a new \
                 service."
                    .into()
            }
            Self::Device(_) | Self::Serve(ServeError::Start(StartError::Devices(_))) => {
                "Check [[module]] in the configuration, and that the token is there.".into()
            }
            Self::Audit(AuditError::Locked { .. }) => {
                "Wait for the other command to end, then try again.".into()
            }
            Self::Exists { .. } => "Nothing was changed. Choose another name or path.".into(),
            Self::RevokedAlready { .. } => {
                "Nothing was changed; `opcert-accountd certificate list` shows its state.".into()
            }
            Self::Missing { .. } => "Check the name.".into(),
            Self::InUse { .. } => "Nothing was changed. Wait until they are renewed or over; with \
                                   --with-certificates they are revoked now."
                .into(),
            Self::Vault(_) => "Nothing was changed. See what is wrong with `opcert-accountd \
                               doctor`."
                .into(),
            Self::Backup { .. } | Self::Trail(_) => "Use another backup.".into(),
            Self::Running { .. } => {
                "Stop it first, for instance with `systemctl stop opcert-accountd`.".into()
            }
            Self::Broken { .. } => "Do what stands beside each of them.".into(),
            Self::Password(_) => "Choose another password.".into(),
            Self::Root => "Start it as a user of its own, as its systemd unit does, or pass \
                           --allow-root."
                .into(),
            Self::Config(ConfigError::Unreadable { .. }) => {
                "Check the path, and that the service's user may read the file; `opcert-accountd \
                 init` writes a first one."
                    .into()
            }
            _ => match self.code() {
                Some(code) => code.action().to_owned(),
                None => "Correct what is named and try again.".into(),
            },
        }
    }
}

/// The program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are answers; nothing can be done about a stream that is closed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    let output = Output::new(arguments.json);
    match run(arguments, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.exit())
        }
    }
}

/// The command line, for the manual.
pub fn command() -> clap::Command {
    Arguments::command()
}

fn run(arguments: Arguments, output: &Output) -> Result<(), AdminError> {
    if let Command::Serve { allow_root: false } = arguments.command
        && rustix::process::geteuid().is_root()
    {
        return Err(AdminError::Root);
    }
    // PINs and API secrets pass through.
    undumpable().map_err(|errno| AdminError::Dumpable {
        source: errno.into(),
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| AdminError::Runtime { source })?;
    runtime.block_on(async {
        if let Command::Init(init) = &arguments.command {
            telemetry::start(telemetry::Config {
                level: telemetry::Level::Warn,
                ..telemetry::Config::default()
            })?;
            return init::run(init, &arguments.config, output).await;
        }
        let loaded = Config::load_layers(&arguments.config)?;
        if let Command::Config(command) = arguments.command {
            return show_config(&command, &loaded, output);
        }
        if let Command::Backup { directory } = &arguments.command {
            telemetry::start(loaded.config.log)?;
            return backup::backup(directory, &loaded, &arguments.config, output).await;
        }
        let config = loaded.config;
        telemetry::start(config.log)?;
        match arguments.command {
            Command::Init(_) | Command::Config(_) | Command::Backup { .. } => Ok(()),
            Command::Serve { .. } => {
                if let Err(error) = lock_all() {
                    tracing::warn!(
                        why = %error,
                        "memory is not locked; secrets in use could reach the swap"
                    );
                }
                Ok(serve(&config).await?)
            }
            Command::Migrate => migrate(&config, output).await,
            Command::Account(command) => accounts::account(command, &config, output).await,
            Command::Operator(command) => people::operator(command, &config, output).await,
            Command::Representative(command) => {
                people::representative(command, &config, output).await
            }
            Command::ApprovalRule(command) => {
                accounts::approval_rule(command, &config, output).await
            }
            Command::PlatformKey(command) => platform_keys::run(command, &config, output).await,
            Command::Restore { directory } => backup::restore(&directory, &config, output).await,
            Command::Doctor => doctor::run(&config, output).await,
            Command::Key(command) => keys::run(command, &config, output).await,
            Command::Certificate(command) => certificates::run(command, &config, output).await,
        }
    })
}

fn show_config(
    command: &ConfigCommand,
    loaded: &Loaded<Config>,
    output: &Output,
) -> Result<(), AdminError> {
    let files: Vec<_> = loaded
        .files()
        .map(|file| file.display().to_string())
        .collect();
    match command {
        ConfigCommand::Check => output.done(
            &format!("{} is sound.", files.join(", ")),
            &serde_json::json!({ "files": files }),
        ),
        ConfigCommand::Show => {
            let keys = loaded.effective().map_err(std::io::Error::from)?;
            let text: String = keys
                .iter()
                .filter(|key| !key.value.is_null())
                .map(|key| format!("{} = {}  # {}\n", key.key, key.value, key.source))
                .collect();
            output.done(&text, &serde_json::json!(keys))
        }
    }
}

async fn migrate(config: &Config, output: &Output) -> Result<(), AdminError> {
    let (store, before, after) = Store::migrate(&config.database()?).await?;
    if before == after {
        store.close().await;
    } else {
        let desk = Desk::beside(store, config)?;
        let body = serde_json::json!({ "before": before, "after": after });
        desk.write("database-migrated", body).await?;
        desk.close().await?;
    }
    let text = if before == after {
        format!("The database has schema version {after} already.")
    } else {
        format!("The database was brought from schema version {before} to {after}.")
    };
    output.done(
        &text,
        &serde_json::json!({ "before": before, "after": after }),
    )
}
