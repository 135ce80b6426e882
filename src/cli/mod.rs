//! The `opcert` command line: for operators, for those who run the computer, for testers, and the
//! courier between daemon and account service.
//!
//! One file per command family, named as the command is. A command parses its arguments into
//! typed values, does its work, and hands a result to `Output`, which shows it to a person or,
//! with `--json`, to a script. It talks to the daemon's control socket, to the native door with a
//! client certificate, and to the account service; it sees no private key of an operating
//! certificate and no PIN it was not given.
//!
//! What never lives here: what decides. Whether something may be signed is asked of the daemon, and
//! how a thing is parsed or checked of the modules below.
//!
//! Exit codes are those of [`crate::base::sysexits`]: 0 for yes, 1 for a question answered with
//! no, 64 and above for what went wrong.

mod account_service;
mod approve;
mod audit;
mod backup;
mod browser;
mod client;
mod completions;
mod config;
mod daemon;
mod doctor;
mod error;
mod init;
mod input;
mod install;
mod list;
mod native_host;
mod operation;
mod output;
mod policy;
mod renew;
mod status;
mod sync;
mod token;
mod upgrade_check;
mod verify;
mod wechatpay;
mod why;

#[cfg(fuzzing)]
pub use native_host::fuzz_messages;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::error::Error;
use self::output::{Color, Format, Output};
use crate::base::sysexits::{EX_OK, EX_USAGE};
use crate::config::places;

/// Operating certificates on hardware tokens.
#[derive(Debug, Parser)]
#[command(
    name = "opcert",
    version,
    about = "Operating certificates on hardware tokens",
    long_about = "Operating certificates on hardware tokens: set up the daemon, install a \
                  certificate, approve sensitive operations, check approvals and records.",
    after_help = "Examples:\n  \
        opcert init --module /usr/lib/softhsm/libsofthsm2.so --token my-token\n  \
        opcert install --service https://accounts.example \\\n      \
        --account acme --operator alice\n  \
        opcert approve --challenge challenge.jws\n  \
        opcert verify --ca ca.pem --crl crl.der approval.jws\n\n\
        Where something is wrong, `opcert doctor` says what and how to mend it.",
    disable_help_subcommand = true,
    max_term_width = 100
)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Print results as JSON, and errors as JSON on standard error.
    #[arg(long, global = true)]
    json: bool,
    /// When to colour: auto, always or never.
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value_t,
        hide_possible_values = true
    )]
    color: Color,
    /// Control socket of the daemon. [default: $OPCERT_SOCKET, or control.sock in the runtime
    /// directory of --config]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Configuration file of the daemon. [default: ~/.config/opcert/opcertd.toml if there is one,
    /// else /etc/opcert/opcertd.toml]
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,
}

impl Global {
    /// The daemon's configuration file.
    fn config(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(places::config_file)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the daemon's configuration and make its directories.
    Init(init::Arguments),
    /// Look for what is wrong and say how to mend it.
    #[command(
        long_about = "Checks configuration, module, PIN source, daemon, tokens and certificates. \
                      Ends with 0 where nothing is broken, with 1 otherwise."
    )]
    Doctor,
    /// Show the daemon's state.
    Status,
    /// The tokens of this computer.
    #[command(subcommand)]
    Token(token::Command),
    /// The programs that may ask for approvals.
    #[command(subcommand)]
    Client(client::Command),
    /// The browsers of this user, whose pages may ask for approvals.
    #[command(subcommand)]
    Browser(browser::Command),
    /// Speak with the browser extension, which starts this itself.
    #[command(hide = true)]
    NativeHost(native_host::Arguments),
    /// Install an operating certificate.
    Install(install::Arguments),
    /// Get the successors of operating certificates that end soon.
    Renew(renew::Arguments),
    /// List the installed operating certificates.
    List,
    /// Carry revocation list and next keys from the account service to the daemon.
    Sync(sync::Arguments),
    /// Have a challenge approved.
    Approve(approve::Arguments),
    /// What the platform's backend does at the account service, by hand.
    #[command(subcommand)]
    Operation(operation::Command),
    /// Check an approval offline.
    Verify(verify::Arguments),
    /// The daemon's configuration.
    #[command(subcommand)]
    Config(config::Command),
    /// The daemon's records.
    #[command(subcommand)]
    Audit(audit::Command),
    /// The rules that decide.
    #[command(subcommand)]
    Policy(policy::Command),
    /// Sign, check and open messages of WeChat Pay merchants.
    #[command(subcommand)]
    Wechatpay(Box<wechatpay::Command>),
    /// Tell what became of one request, and why.
    Why(why::Arguments),
    /// Copy what has to survive, while the daemon runs.
    Backup(backup::Arguments),
    /// Put a backup in the place of the daemon's state.
    Restore(backup::RestoreArguments),
    /// Check that this version can take over what another one left.
    UpgradeCheck,
    /// Print a completion script for a shell.
    Completions(completions::Arguments),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = match command()
        .try_get_matches()
        .and_then(|matches| Arguments::from_arg_matches(&matches))
    {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are answers, not errors; clap prints each where it belongs.
            let code = if error.use_stderr() { EX_USAGE } else { EX_OK };
            let _ = error.print();
            return code.into();
        }
    };
    let format = if arguments.global.json {
        Format::Json
    } else {
        Format::Human
    };
    let output = Output::new(format, arguments.global.color);
    match run(&arguments, &output) {
        Ok(code) => code.into(),
        Err(error) if error.is_closed_pipe() => EX_OK.into(),
        Err(error) => {
            output.error(&error);
            error.exit().into()
        }
    }
}

/// The command tree, also for completions.
pub fn command() -> clap::Command {
    Arguments::command().styles(
        clap::builder::Styles::styled()
            .header(anstyle::Style::new().bold())
            .usage(anstyle::Style::new().bold())
            .literal(anstyle::AnsiColor::Cyan.on_default()),
    )
}

fn run(arguments: &Arguments, output: &Output) -> Result<u8, Error> {
    let global = &arguments.global;
    match &arguments.command {
        Command::Init(arguments) => init::run(arguments, global, output),
        Command::Verify(arguments) => verify::run(arguments, output),
        Command::Config(command) => config::run(command, global, output),
        Command::Audit(command) => audit::run(command, global, output),
        Command::Backup(arguments) => backup::run(arguments, global, output),
        Command::Restore(arguments) => backup::restore(arguments, global, output),
        Command::Why(arguments) => why::run(arguments, global, output),
        Command::Completions(arguments) => completions::run(arguments, output),
        remote => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| Error::Stream {
                    stream: "the operating system's event queue",
                    source,
                })?;
            runtime.block_on(run_remote(remote, global, output))
        }
    }
}

/// The commands that talk to the daemon or the account service.
async fn run_remote(command: &Command, global: &Global, output: &Output) -> Result<u8, Error> {
    match command {
        Command::Doctor => doctor::run(global, output).await,
        Command::Status => status::run(global, output).await,
        Command::UpgradeCheck => upgrade_check::run(global, output).await,
        Command::Token(command) => token::run(command, global, output).await,
        Command::Client(command) => client::run(command, global, output).await,
        Command::Browser(command) => browser::run(command, global, output).await,
        Command::NativeHost(arguments) => native_host::run(arguments).await,
        Command::Install(arguments) => install::run(arguments, global, output).await,
        Command::List => list::run(global, output).await,
        Command::Renew(arguments) => renew::run(arguments, global, output).await,
        Command::Sync(arguments) => sync::run(arguments, global, output).await,
        Command::Approve(arguments) => approve::run(arguments, global, output).await,
        Command::Policy(command) => policy::run(command, global, output).await,
        Command::Operation(command) => operation::run(command, output).await,
        Command::Wechatpay(command) => wechatpay::run(command, global, output).await,
        Command::Init(_)
        | Command::Verify(_)
        | Command::Config(_)
        | Command::Audit(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Why(_)
        | Command::Completions(_) => Ok(EX_OK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        command().debug_assert();
    }

    /// What a terminal breaks is no command any more.
    #[test]
    fn examples_fit_a_terminal() {
        fn look(command: &clap::Command) {
            let examples = command.get_after_help().map(ToString::to_string);
            for line in examples.iter().flat_map(|text| text.lines()) {
                assert!(line.chars().count() <= 80, "{line}");
            }
            command.get_subcommands().for_each(look);
        }
        look(&command());
    }
}
