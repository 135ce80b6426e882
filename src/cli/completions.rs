//! `opcert completions SHELL`.

use clap::ValueEnum;
use clap_complete::Shell;

use super::error::Error;
use super::output::Output;
use crate::base::sysexits::EX_OK;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    opcert completions bash > /usr/share/bash-completion/completions/opcert\n  \
    opcert completions zsh > \"${fpath[1]}/_opcert\"\n  \
    opcert completions fish > ~/.config/fish/completions/opcert.fish")]
pub(super) struct Arguments {
    /// The shell.
    shell: ShellName,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ShellName {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(arguments: &Arguments, output: &Output) -> Result<u8, Error> {
    let shell = match arguments.shell {
        ShellName::Bash => Shell::Bash,
        ShellName::Zsh => Shell::Zsh,
        ShellName::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "opcert", &mut script);
    output.print(&String::from_utf8_lossy(&script))?;
    Ok(EX_OK)
}
