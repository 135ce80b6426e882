//! `backup` and `restore`: what has to survive the loss of this computer's disk.
//!
//! A backup is a directory: `database.db` with the database as it was at one instant, `state/`
//! with what else is in the state directory, `config/` with the configuration, and `manifest.json`
//! with the SHA-256 of each file. It is taken while the service runs: the database first, then the
//! audit trails, so that no change is in it whose record is not.
//!
//! A PostgreSQL server backs itself up; then only the rest is here, and both say so. Keys on
//! tokens are not in it and cannot be. `code-key` is, which opens what the database has sealed, so
//! a backup is as secret as the state directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::AdminError;
use super::desk::{Desk, TRAIL};
use super::output::Output;
use crate::account::config::Config;
use crate::account::service::CODE_KEY_FILE;
use crate::account::store::{Store, StoreError};
use crate::audit::snapshot;
use crate::audit::verify::verify;
use crate::base::Clock;
use crate::base::files::{FileError, sync_directory, write_new};
use crate::base::tree::{copy, difference, digests, entries, make, own_as, unreadable, unwritable};
use crate::config::Loaded;

/// The name of the list of files.
const MANIFEST: &str = "manifest.json";

/// The copy of an SQLite database.
const DATABASE: &str = "database.db";

/// The audit trails, by their names in the state directory.
const TRAILS: [&str; 2] = ["audit", TRAIL];

/// What else is in the state directory; what is not there is left out.
const FILES: [&str; 5] = [
    CODE_KEY_FILE,
    "ca.pem",
    "server-ca.pem",
    "server.pem",
    "server-key.pem",
];

/// Where `restore` moves what it finds.
const ASIDE: &str = "before-restore";

/// What a backup holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// The version that wrote it.
    version: String,
    /// When.
    time: String,
    /// The schema of the database.
    schema: i64,
    /// Whether the database is in it; otherwise a server has it.
    database: bool,
    /// SHA-256 of each file, hexadecimal, by its path in the backup.
    files: BTreeMap<String, String>,
}

/// `backup DIR`.
pub(super) async fn backup(
    to: &Path,
    loaded: &Loaded<Config>,
    config_path: &Path,
    output: &Output,
) -> Result<(), AdminError> {
    let config = &loaded.config;
    let url = config.database()?;
    let desk = Desk::open(config).await?;
    make(to)?;
    make(&to.join("config"))?;
    make(&to.join("state"))?;
    let in_file = Store::file(&url)?.is_some();
    if in_file {
        let database = to.join(DATABASE);
        // Made closed to others; SQLite fills it.
        write_new(&database, b"", 0o600)?;
        desk.store.copy_to(&database).await?;
        fs::File::open(&database)
            .and_then(|file| file.sync_all())
            .map_err(unwritable(&database))?;
    }
    desk.write("backup-made", json!({ "directory": to }))
        .await?;
    desk.close().await?;
    let base = config_path.parent().unwrap_or(Path::new("/"));
    for file in loaded.files() {
        // Beside the main file as they are; what is elsewhere by its whole path.
        let name = file.strip_prefix(base).or_else(|_| file.strip_prefix("/"));
        copy(file, &to.join("config").join(name.unwrap_or(file)))?;
    }
    let state = &config.state_directory;
    for name in FILES {
        let file = state.join(name);
        if file.exists() {
            copy(&file, &to.join("state").join(name))?;
        }
    }
    for name in TRAILS {
        // A service that never ran has none.
        if state.join(name).exists() {
            let trail = to.join("state").join(name);
            snapshot::copy(&state.join(name), &trail)?;
            let _sound = verify(&trail)?;
        }
    }
    let manifest = Manifest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: format!("{:.0}", Clock::system().now()),
        schema: Store::needed(&url)?,
        database: in_file,
        files: digests(to, MANIFEST)?,
    };
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| unwritable(to)(std::io::Error::from(error)))?;
    write_new(&to.join(MANIFEST), &text, 0o600)?;
    sync_directory(to).map_err(unwritable(to))?;
    let mut said = format!("{} files in {}.", manifest.files.len(), to.display());
    if !in_file {
        said.push_str(
            "\nThe database is on a server: back it up there, and after this, for instance with \
             `pg_dump --format=custom`.",
        );
    }
    output.done(
        &said,
        &json!({ "directory": to, "files": manifest.files.len(), "database": in_file }),
    )
}

/// `restore DIR`.
pub(super) async fn restore(
    from: &Path,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let manifest = read_manifest(from)?;
    let url = config.database()?;
    let needed = Store::needed(&url)?;
    if manifest.schema > needed {
        return Err(StoreError::Schema {
            found: manifest.schema,
            needed,
        }
        .into());
    }
    let file = Store::file(&url)?;
    if manifest.database != file.is_some() {
        return Err(AdminError::Backup {
            problem: "it is of a service with another kind of database".into(),
        });
    }
    let state = &config.state_directory;
    for name in TRAILS {
        if snapshot::in_use(&state.join(name)).map_err(unreadable(state))? {
            return Err(AdminError::Running {
                directory: state.clone(),
            });
        }
    }
    if !state.exists() {
        make(state)?;
    }
    let aside = put_aside(state, file.as_deref())?;
    if let Some(file) = &file {
        copy(&from.join(DATABASE), file)?;
    }
    for path in entries(&from.join("state"))? {
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            snapshot::copy(&path, &state.join(name))?;
        } else {
            copy(&path, &state.join(name))?;
        }
    }
    own_as(state, state)?;
    sync_directory(state).map_err(unwritable(state))?;
    let mut said = format!("The state of {} is in place.", manifest.time);
    if let Some(aside) = &aside {
        said.push_str(&format!("\nWhat was there is in {}.", aside.display()));
    }
    if file.is_none() {
        said.push_str("\nThe database is on a server: restore it there to the same time.");
    }
    if manifest.schema < needed {
        said.push_str("\nIts schema is older: run `opcert-accountd migrate`.");
    }
    said.push_str("\nThen look at it with `opcert-accountd doctor`.");
    output.done(
        &said,
        &json!({
            "time": manifest.time,
            "schema": manifest.schema,
            "needed": needed,
            "put_aside": aside,
        }),
    )
}

/// Reads the list and checks every file of a backup, and its audit trails.
fn read_manifest(from: &Path) -> Result<Manifest, AdminError> {
    let path = from.join(MANIFEST);
    let bytes = fs::read(&path).map_err(unreadable(&path))?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| AdminError::Backup {
            problem: format!("{} is no manifest: {error}", path.display()),
        })?;
    if let Some(problem) = difference(&manifest.files, &digests(from, MANIFEST)?) {
        return Err(AdminError::Backup { problem });
    }
    for name in TRAILS {
        let trail = from.join("state").join(name);
        if trail.exists() {
            let _sound = verify(&trail)?;
        }
    }
    Ok(manifest)
}

/// Moves aside what a restore puts something in the place of; `None` where there is nothing.
fn put_aside(state: &Path, database: Option<&Path>) -> Result<Option<PathBuf>, FileError> {
    let mut old: Vec<PathBuf> = TRAILS
        .iter()
        .chain(&FILES)
        .map(|name| state.join(name))
        .collect();
    if let Some(database) = database {
        for suffix in ["", "-wal", "-shm"] {
            let mut name = database.as_os_str().to_owned();
            name.push(suffix);
            old.push(name.into());
        }
    }
    old.retain(|path| path.exists());
    if old.is_empty() {
        return Ok(None);
    }
    let aside = state.join(ASIDE);
    if !aside.exists() {
        make(&aside)?;
    }
    let aside = aside.join(
        Clock::system()
            .now()
            .strftime("%Y%m%dT%H%M%S%.3fZ")
            .to_string(),
    );
    make(&aside)?;
    for path in old {
        if let Some(name) = path.file_name() {
            fs::rename(&path, aside.join(name)).map_err(unwritable(&path))?;
        }
    }
    Ok(Some(aside))
}
