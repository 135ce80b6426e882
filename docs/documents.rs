//! Writes the man pages and the completion scripts that packages carry:
//! `cargo run --example documents -- DIRECTORY` makes `man/` and `completions/` there.
//!
//! They come from the same types that parse the command lines, so they cannot lag behind. An
//! example rather than a command: nothing of this is needed where the programs run.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The codes of `sysexits.h` that the programs end with, in the words of the module that names
/// them.
const EXIT_STATUS: &str = include_str!("../src/base/sysexits.rs");

/// A program and the section of the manual it belongs to.
struct Program {
    command: Command,
    section: &'static str,
    files: &'static [(&'static str, &'static str)],
    see_also: &'static str,
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .ok_or("usage: cargo run --example documents -- DIRECTORY")?;
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    for part in [&man, &completions] {
        if part.exists() {
            fs::remove_dir_all(part)?;
        }
        fs::create_dir_all(part)?;
    }
    for program in programs() {
        let name = program.command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut command = program.command.clone();
            clap_complete::generate_to(shell, &mut command, &name, &completions)?;
        }
        let mut command = program.command.clone();
        command.build();
        pages(&command, &program, &man)?;
    }
    Ok(())
}

fn programs() -> [Program; 3] {
    [
        Program {
            command: opcert::cli::command(),
            section: "1",
            files: &[
                ("/etc/opcert/opcertd.toml", "The daemon's configuration."),
                ("/run/opcert/control.sock", "The daemon's control socket."),
            ],
            see_also: "opcertd(8)",
        },
        Program {
            command: opcert::daemon::command(),
            section: "8",
            files: &[
                ("/etc/opcert/opcertd.toml", "The configuration."),
                (
                    "/var/lib/opcert",
                    "What has to survive a restart: records, certificates, clients.",
                ),
                ("/run/opcert/control.sock", "The control socket."),
                (
                    "/etc/credstore.encrypted/opcert.pin",
                    "The PIN of a token, encrypted by systemd-creds(1), for a computer that starts unattended.",
                ),
            ],
            see_also: "opcert(1), systemd-creds(1), systemd.exec(5)",
        },
        Program {
            command: opcert::account::command(),
            section: "8",
            files: &[
                ("/etc/opcert/accountd.toml", "The configuration."),
                ("/var/lib/opcert-accountd", "Database and records."),
            ],
            see_also: "opcert(1), systemd-creds(1)",
        },
    ]
}

/// A page for the command and, below it, one for each subcommand.
fn pages(command: &Command, program: &Program, directory: &Path) -> Result<(), Box<dyn Error>> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned();
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section(program.section)
        .manual("opcert");
    let mut file = File::create(directory.join(format!("{name}.{}", program.section)))?;
    man.render_title(&mut file)?;
    man.render_name_section(&mut file)?;
    man.render_synopsis_section(&mut file)?;
    man.render_description_section(&mut file)?;
    if command.get_arguments().next().is_some() {
        man.render_options_section(&mut file)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut file)?;
    }
    if command.get_after_help().is_some() || command.get_after_long_help().is_some() {
        man.render_extra_section(&mut file)?;
    }
    let status: Vec<_> = exit_status().collect();
    section(
        &mut file,
        "EXIT STATUS",
        status.iter().map(|(c, t)| (c.as_str(), t.as_str())),
    )?;
    section(&mut file, "FILES", program.files.iter().copied())?;
    writeln!(file, ".SH \"SEE ALSO\"\n{}", escape(program.see_also))?;
    for below in command.get_subcommands() {
        // clap's own, which repeats the tree.
        if below.get_name() == "help" {
            continue;
        }
        pages(below, program, directory)?;
    }
    Ok(())
}

fn section<'a>(
    file: &mut File,
    title: &str,
    entries: impl Iterator<Item = (&'a str, &'a str)>,
) -> std::io::Result<()> {
    writeln!(file, ".SH \"{title}\"")?;
    for (term, text) in entries {
        writeln!(file, ".TP\n\\fB{}\\fR\n{}", escape(term), escape(text))?;
    }
    Ok(())
}

/// Code with name, and meaning, of each exit status.
fn exit_status() -> impl Iterator<Item = (String, String)> {
    let mut meaning = String::new();
    EXIT_STATUS.lines().filter_map(move |line| {
        if let Some(text) = line.strip_prefix("/// ") {
            if !meaning.is_empty() {
                meaning.push(' ');
            }
            meaning.push_str(text);
            return None;
        }
        let (name, rest) = line.strip_prefix("pub const ")?.split_once(": u8 = ")?;
        let code = rest.trim_end_matches(';');
        Some((format!("{code} ({name})"), std::mem::take(&mut meaning)))
    })
}

/// Text for roff: no line may begin with a control character, and a hyphen stays a hyphen.
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    if escaped.starts_with(['.', '\'']) {
        format!("\\&{escaped}")
    } else {
        escaped
    }
}
