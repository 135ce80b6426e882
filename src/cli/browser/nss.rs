//! NSS databases, by the tools of NSS: `certutil` and `pk12util`.
//!
//! Each call names its database, and no call has a secret among its arguments. A database with a
//! password of its own (a primary password in Firefox) has the tool ask for it on the terminal.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::places::Places;
use crate::base::files::FileError;
use crate::cli::client::{CERTIFICATE_FILE, KEY_FILE};
use crate::cli::error::Error;

/// What our certificates are called in a database.
pub(super) const AUTHORITY: &str = "opcert local authority";
pub(super) const CLIENT: &str = "opcert client";

/// One database.
#[derive(Debug)]
pub(super) struct Database {
    /// Its directory, which holds `cert9.db`.
    pub(super) directory: PathBuf,
    /// Whose it is, for people.
    pub(super) what: String,
    /// The Firefox profile it belongs to.
    pub(super) profile: Option<PathBuf>,
}

/// Key and certificate as PKCS#12 (RFC 7292), which is what `pk12util` imports; gone when dropped.
pub(super) struct Bundle {
    directory: tempfile::TempDir,
}

impl Bundle {
    /// Made by `openssl` in a directory that is closed to others.
    pub(super) fn make(places: &Places) -> Result<Self, Error> {
        let directory = tempfile::Builder::new()
            .prefix("bundle")
            .tempdir_in(&places.directory)
            .map_err(|source| FileError::Unwritable {
                path: places.directory.clone(),
                source,
            })?;
        let bundle = Self { directory };
        let password = crate::base::encoding::hex(&crate::base::ids::random::<16>());
        std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(bundle.password())
            .and_then(|mut file| writeln!(file, "{password}"))
            .map_err(|source| FileError::Unwritable {
                path: bundle.password(),
                source,
            })?;
        let mut pass = std::ffi::OsString::from("file:");
        pass.push(bundle.password());
        run(
            "openssl",
            [
                "pkcs12".as_ref(),
                "-export".as_ref(),
                "-in".as_ref(),
                places.file(CERTIFICATE_FILE).as_os_str(),
                "-inkey".as_ref(),
                places.file(KEY_FILE).as_os_str(),
                "-name".as_ref(),
                CLIENT.as_ref(),
                "-passout".as_ref(),
                &pass,
                "-out".as_ref(),
                bundle.file().as_os_str(),
            ],
        )?;
        Ok(bundle)
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("client.p12")
    }

    fn password(&self) -> PathBuf {
        self.directory.path().join("password")
    }
}

impl Database {
    /// The database in `directory`.
    pub(super) fn at(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            what: directory.display().to_string(),
            profile: None,
        }
    }

    /// Puts authority and client in, in the place of those of an earlier setup.
    pub(super) fn install(&self, bundle: &Bundle, authority: &Path) -> Result<(), Error> {
        if self.directory.join("cert9.db").exists() {
            self.remove()?;
        } else {
            std::fs::create_dir_all(&self.directory).map_err(|source| FileError::Unwritable {
                path: self.directory.clone(),
                source,
            })?;
            self.certutil(&["-N", "--empty-password"].map(OsStr::new))?;
        }
        self.certutil(&[
            "-A".as_ref(),
            "-n".as_ref(),
            AUTHORITY.as_ref(),
            // Trusted for servers, and for nothing else.
            "-t".as_ref(),
            "C,,".as_ref(),
            "-i".as_ref(),
            authority.as_os_str(),
        ])?;
        run(
            "pk12util",
            [
                "-d".as_ref(),
                self.argument().as_os_str(),
                "-i".as_ref(),
                bundle.file().as_os_str(),
                "-w".as_ref(),
                bundle.password().as_os_str(),
            ],
        )?;
        Ok(())
    }

    /// Takes both out, where they are in.
    pub(super) fn remove(&self) -> Result<(), Error> {
        // -F takes the key with the certificate.
        for (flag, name) in [("-F", CLIENT), ("-D", AUTHORITY)] {
            // One name may stand for several certificates.
            while self.certificate(name)?.is_some() {
                self.certutil(&[flag, "-n", name].map(OsStr::new))?;
            }
        }
        Ok(())
    }

    /// The certificate of this name, PEM.
    pub(super) fn certificate(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let database = self.argument();
        let arguments = ["-d".as_ref(), database.as_os_str()]
            .into_iter()
            .chain(["-L", "-a", "-n", name].map(OsStr::new));
        let output = start("certutil", arguments)?;
        Ok(output.status.success().then_some(output.stdout))
    }

    fn certutil(&self, arguments: &[&OsStr]) -> Result<(), Error> {
        let database = self.argument();
        let mut all: Vec<&OsStr> = vec!["-d".as_ref(), &database];
        all.extend(arguments);
        run("certutil", all).map(drop)
    }

    fn argument(&self) -> std::ffi::OsString {
        let mut argument = std::ffi::OsString::from("sql:");
        argument.push(&self.directory);
        argument
    }
}

/// Whether the tools are there.
pub(super) fn need_tools() -> Result<(), Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<&str> = ["certutil", "pk12util", "openssl"]
        .into_iter()
        .filter(|tool| !std::env::split_paths(&path).any(|folder| folder.join(tool).is_file()))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::State {
            code: "tool-missing",
            what: format!("{} is not installed", missing.join(", ")),
            action: "Install libnss3-tools and openssl (Fedora: nss-tools and openssl).".into(),
        })
    }
}

fn start<'a>(
    tool: &'static str,
    arguments: impl IntoIterator<Item = &'a OsStr>,
) -> Result<Output, Error> {
    Command::new(tool)
        .args(arguments)
        .stdin(Stdio::inherit())
        .output()
        .map_err(|error| Error::State {
            code: "tool-failed",
            what: format!("{tool} cannot be started: {error}"),
            action: "Install libnss3-tools and openssl (Fedora: nss-tools and openssl).".into(),
        })
}

fn run<'a>(
    tool: &'static str,
    arguments: impl IntoIterator<Item = &'a OsStr>,
) -> Result<Output, Error> {
    let output = start(tool, arguments)?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::State {
        code: "tool-failed",
        what: format!("{tool} failed: {}", said.trim()),
        action: "End the browsers, and run the command again on a terminal: a database may ask \
                 for its password."
            .into(),
    })
}
