//! `opcert config …`: the daemon's configuration, read without the daemon.

use std::path::PathBuf;

use serde::Serialize;

use super::Global;
use super::error::Error;
use super::output::{Mood, Output};
use crate::base::sysexits::EX_OK;
use crate::config::daemon::Config;
use crate::config::show::{Effective, Source};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Check the configuration, its drop-ins and the policy rules, as the daemon would.
    #[command(
        long_about = "Reads the configuration and its drop-ins (*.toml in the directory of the \
                      same name with .d behind it) and checks every key, value and policy rule. \
                      Ends with 0 where they are sound, and with 78 and the first fault where not.",
        after_help = "Example:\n  opcert config check --config /etc/opcert/opcertd.toml"
    )]
    Check,
    /// Show every key, its value, and where that was set.
    #[command(
        long_about = "Shows the values that the files give, defaults included, and the line that \
                      set each. A running daemon may still have older ones: `opcert status` says so.",
        after_help = "Example:\n  opcert config show --changed"
    )]
    Show {
        /// Only what a file sets.
        #[arg(long)]
        changed: bool,
    },
}

#[derive(Debug, Serialize)]
struct Checked {
    files: Vec<PathBuf>,
    rules: usize,
    warnings: Vec<String>,
}

pub(super) fn run(command: &Command, global: &Global, output: &Output) -> Result<u8, Error> {
    let loaded = Config::load_layers(&global.config())?;
    match command {
        Command::Check => {
            let policy = loaded.config.policy.load()?;
            let checked = Checked {
                files: loaded.files().map(Into::into).collect(),
                rules: policy.rules().count(),
                warnings: policy.warnings().iter().map(ToString::to_string).collect(),
            };
            output.result(&checked, |output| {
                let files = match checked.files.len() {
                    1 => "1 file".to_owned(),
                    count => format!("{count} files"),
                };
                let said = format!("{files} and {} policy rules, all sound.", checked.rules);
                std::iter::once(output.paint(&said, Mood::Good))
                    .chain(checked.warnings.iter().map(|warning| {
                        format!("{} {warning}", output.paint("warning:", Mood::Doubtful))
                    }))
                    .collect::<Vec<_>>()
                    .join("\n")
            })?;
        }
        Command::Show { changed } => {
            let all = loaded.effective().map_err(|error| Error::Input {
                what: format!("the configuration cannot be shown: {error}"),
                action: "Run `opcert config check`.".into(),
            })?;
            let shown: Vec<Effective> = all
                .into_iter()
                .filter(|key| !changed || key.source != Source::Default)
                .collect();
            output.result(&shown, |output| {
                let rows = shown
                    .iter()
                    .filter(|key| !key.value.is_null())
                    .map(|key| {
                        vec![
                            key.key.clone(),
                            key.value.to_string(),
                            key.source.to_string(),
                        ]
                    })
                    .collect();
                output.table(&["key", "value", "set by"], rows, "No file sets anything.")
            })?;
        }
    }
    Ok(EX_OK)
}
