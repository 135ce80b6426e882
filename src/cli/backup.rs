//! `opcert backup` and `opcert restore`: what has to survive the loss of this computer's disk.
//!
//! A backup is a directory: `state/` with what the daemon keeps, `config/` with the configuration
//! it was read from, and `manifest.json` with the SHA-256 of each file. It is taken while the daemon
//! runs: its files are replaced whole, so they are copied until none changed meanwhile; the audit
//! trail only grows, and is copied last, so that it is at least as new as the rest.
//!
//! Keys on tokens are not in it and cannot be; nor are PIN files. The local authority's key is, so
//! a backup is as secret as the state directory.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Global;
use super::audit::refused;
use super::error::Error;
use super::output::{Mood, Output};
use crate::audit::snapshot;
use crate::audit::verify::verify;
use crate::base::Clock;
use crate::base::files::{FileError, sync_directory, write_new};
use crate::base::sysexits::EX_OK;
use crate::base::tree::{self, copy, digests, entries, make, own_as};
use crate::config::daemon::Config;

/// What is not the daemon's: tokens in software, and what a restore put aside.
const LEFT_OUT: [&str; 2] = ["tokens", "before-restore"];

/// The audit trail, which is copied by rules of its own.
const AUDIT: &str = "audit";

/// How often the small files are copied before it is given up: each change of them is rare.
const ATTEMPTS: usize = 20;

/// The name of the list of files.
const MANIFEST: &str = "manifest.json";

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Copies the daemon's state and configuration to a new directory, while the daemon \
                  runs. Keep it as secret as the state directory. Keys on tokens are not in it.",
    after_help = "Example:\n  opcert backup /root/opcert-2026-01-31"
)]
pub(super) struct Arguments {
    /// The directory to make.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Checks a backup and puts it in the place of the state that --config names, while \
                  no daemon runs. What was there is moved to before-restore in the state directory, \
                  and software tokens stay. The configuration is not touched: compare it with \
                  config/ of the backup.",
    after_help = "Example:\n  systemctl stop opcertd\n  opcert restore /root/opcert-2026-01-31\n  \
                  systemctl start opcertd"
)]
pub(super) struct RestoreArguments {
    /// The backup.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// What a backup holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// The version that wrote it.
    version: String,
    /// When.
    time: String,
    /// SHA-256 of each file, hexadecimal, by its path in the backup.
    files: BTreeMap<String, String>,
    /// How many records the audit trail has.
    records: u64,
}

#[derive(Debug, Serialize)]
struct Restored {
    files: usize,
    records: u64,
    taken: String,
    put_aside: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<u8, Error> {
    let config = global.config();
    let loaded = Config::load_layers(&config)?;
    let state = loaded.config.state_directory.clone();
    let to = &arguments.directory;
    make(to)?;
    let mut files: Vec<PathBuf> = loaded.files().map(Path::to_owned).collect();
    if let Some(directory) = &loaded.config.policy.directory {
        files.extend(
            entries(directory)?
                .into_iter()
                .filter(|path| path.is_file()),
        );
    }
    make(&to.join("config"))?;
    let base = config.parent().unwrap_or(Path::new("/"));
    for file in &files {
        // Beside the main file as they are; what is elsewhere by its whole path.
        let name = file.strip_prefix(base).or_else(|_| file.strip_prefix("/"));
        copy(file, &to.join("config").join(name.unwrap_or(file)))?;
    }
    let summary = {
        let _progress = output.progress("Copying, and checking every record");
        still_copy(&state, &to.join("state"))?;
        snapshot::copy(&state.join(AUDIT), &to.join("state").join(AUDIT)).map_err(refused)?;
        verify(&to.join("state").join(AUDIT)).map_err(refused)?
    };
    let manifest = Manifest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: format!("{:.0}", Clock::system().now()),
        files: digests(to, MANIFEST)?,
        records: summary.records,
    };
    let text =
        serde_json::to_vec_pretty(&manifest).map_err(|error| unwritable(to)(error.into()))?;
    write_new(&to.join(MANIFEST), &text, 0o600)?;
    output.result(&manifest, |output| {
        output.paint(
            &format!(
                "{} files and {} records in {}.",
                manifest.files.len(),
                manifest.records,
                to.display()
            ),
            Mood::Good,
        )
    })?;
    Ok(EX_OK)
}

pub(super) fn restore(
    arguments: &RestoreArguments,
    global: &Global,
    output: &Output,
) -> Result<u8, Error> {
    let from = &arguments.directory;
    let manifest = {
        let _progress = output.progress("Checking the backup");
        check(from)?
    };
    let config = Config::load(&global.config())?;
    let state = &config.state_directory;
    if snapshot::in_use(&state.join(AUDIT)).map_err(unreadable(state))? {
        return Err(Error::State {
            code: "daemon-running",
            what: format!("a daemon uses {}", state.display()),
            action: "Stop it first: `systemctl stop opcertd-control.socket opcertd-native.socket \
                     opcertd`, with `--user` where it is your own."
                .into(),
        });
    }
    if !state.exists() {
        make(state)?;
    }
    let put_aside = put_aside(state)?;
    still_copy(&from.join("state"), state)?;
    snapshot::copy(&from.join("state").join(AUDIT), &state.join(AUDIT)).map_err(refused)?;
    own_as(state, state)?;
    sync_directory(state).map_err(unwritable(state))?;
    let restored = Restored {
        files: manifest.files.len(),
        records: manifest.records,
        taken: manifest.time,
        put_aside,
    };
    output.result(&restored, |output| {
        let mut text = output.paint(
            &format!(
                "The state of {} is in place, with {} records.",
                super::output::time(&restored.taken),
                restored.records
            ),
            Mood::Good,
        );
        if let Some(path) = &restored.put_aside {
            text.push_str(&format!("\nWhat was there is in {}.", path.display()));
        }
        text.push_str(
            "\nWhat was approved since the backup is not remembered: start the daemon no sooner \
             than challenges of that time have expired (ten minutes are always enough).",
        );
        text
    })?;
    Ok(EX_OK)
}

/// Checks every file of a backup and its audit trail.
fn check(from: &Path) -> Result<Manifest, Error> {
    let path = from.join(MANIFEST);
    let bytes = fs::read(&path).map_err(unreadable(&path))?;
    let broken = |what: String| Error::No {
        code: "backup-broken",
        what,
        action: "Use another backup.".into(),
    };
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| broken(format!("{} is no manifest: {error}", path.display())))?;
    if let Some(what) = tree::difference(&manifest.files, &digests(from, MANIFEST)?) {
        return Err(broken(what));
    }
    let _sound = verify(&from.join("state").join(AUDIT)).map_err(refused)?;
    Ok(manifest)
}

/// Moves what is in the state directory aside; `None` where there was nothing.
fn put_aside(state: &Path) -> Result<Option<PathBuf>, Error> {
    let old: Vec<PathBuf> = entries(state)?
        .into_iter()
        .filter(|path| !is_left_out(path))
        .collect();
    if old.is_empty() {
        return Ok(None);
    }
    let aside = state.join("before-restore").join(format!(
        "{}",
        Clock::system().now().strftime("%Y%m%dT%H%M%S%.3fZ")
    ));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&aside)
        .map_err(unwritable(&aside))?;
    for path in old {
        if let Some(name) = path.file_name() {
            fs::rename(&path, aside.join(name)).map_err(unwritable(&path))?;
        }
    }
    Ok(Some(aside))
}

/// What tells whether a file was replaced.
type Seen = BTreeMap<PathBuf, (u64, i64, i64, u64)>;

/// Copies the files below `from`, but for the audit trail, as they are at one instant.
fn still_copy(from: &Path, to: &Path) -> Result<(), Error> {
    for _ in 0..ATTEMPTS {
        let before = look(from)?;
        if !to.exists() {
            make(to)?;
        }
        let mut made = Vec::new();
        let mut gone = false;
        for path in before.keys() {
            let target = to.join(path.strip_prefix(from).unwrap_or(path));
            match copy(path, &target) {
                Ok(()) => made.push(target),
                // Replaced or removed meanwhile.
                Err(FileError::Unreadable { .. }) if !path.exists() => gone = true,
                Err(error) => return Err(error.into()),
            }
        }
        if !gone && look(from)? == before {
            return Ok(());
        }
        for path in made {
            fs::remove_file(&path).map_err(unwritable(&path))?;
        }
    }
    Err(Error::State {
        code: "state-changing",
        what: format!("the files in {} change all the time", from.display()),
        action: "Try again when nobody enrols or registers clients.".into(),
    })
}

fn look(directory: &Path) -> Result<Seen, Error> {
    let mut seen = Seen::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for path in entries(&directory)? {
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unreadable(&path)(error)),
            };
            if metadata.is_dir() {
                if !is_left_out(&path) && path.file_name().is_none_or(|name| name != AUDIT) {
                    open.push(path);
                }
            } else if metadata.is_file() && !is_temporary(&path) {
                let stamp = (
                    metadata.ino(),
                    metadata.mtime(),
                    metadata.mtime_nsec(),
                    metadata.len(),
                );
                seen.insert(path, stamp);
            }
        }
    }
    Ok(seen)
}

fn is_left_out(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| LEFT_OUT.iter().any(|left| name == *left))
}

/// A file that will be renamed to its place or thrown away.
fn is_temporary(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b".new-"))
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File(tree::unreadable(&path)(source))
}

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File(tree::unwritable(&path)(source))
}
