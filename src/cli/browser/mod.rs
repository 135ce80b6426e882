//! `opcert browser …`: makes the browsers of one user fit for pages that ask for approvals.
//!
//! A browser needs three things to reach the daemon: the local authority among those it trusts, a
//! client certificate of its own, and to know when to present it. Chromium keeps the first two in
//! the user's NSS database, Firefox in one for each profile. Presenting it without a question is
//! policy in Chromium and a preference in Firefox. The browser extension needs none of the three, but
//! a manifest that names its host.
//!
//! STATE. The directory `opcert/browser` of the user's configuration holds the client's key and
//! certificate, the native-messaging host's script, and `installed.json`: what was put where, written
//! before each thing is put there. `opcert browser remove` takes away exactly that. Both may be
//! repeated, and go on where they were stopped.
//!
//! The key is in a file closed to others and in the databases of the user's own browsers; it
//! identifies them to the daemon and signs nothing else.

mod doctor;
mod nss;
mod places;
mod policies;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::nss::Database;
use self::places::Places;
use self::policies::Policies;
use super::client::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, register};
use super::error::Error;
use super::input::read_file;
use super::native_host;
use super::output::Output;
use super::{Global, daemon};
use crate::api::client::Client;
use crate::api::clients::ClientKind;
use crate::api::types::Status;
use crate::base::files::{self, FileError};
use crate::base::ids::ClientName;
use crate::base::sysexits::EX_OK;
use crate::base::x509::Certificate;
use crate::policy::{ClientPolicy, ConsentRule};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make the browsers of this user fit for the daemon.
    Setup(Setup),
    /// Undo the setup.
    Remove(Remove),
    /// Look for what keeps pages from the daemon, and say how to mend it.
    Doctor,
}

/// What becomes of browser policies, which need root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PolicyMode {
    /// Print them, for whoever manages the machine.
    Print,
    /// Write them below --etc.
    Write,
    /// Neither.
    Skip,
}

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Registers this user's browsers as a client of the daemon, puts the daemon's \
                  authority and the client's certificate into the databases of Chromium and \
                  Firefox, and installs the native-messaging host of the browser extension. \
                  Needs certutil and pk12util (Debian: libnss3-tools) and openssl. Start the \
                  browsers again afterwards.",
    after_help = "Examples:\n  \
        opcert browser setup\n  \
        opcert browser setup --policies write --etc image/etc\n\n\
        Where a user may not use the control socket, an administrator makes the client:\n  \
        sudo opcert client add alices-browser --browser --out /home/alice/browser\n  \
        sudo chown -R alice: /home/alice/browser\n  \
        opcert browser setup --client ~/browser"
)]
pub(super) struct Setup {
    /// Name to register the browsers by. [default: browser- and the user's name]
    #[arg(long, conflicts_with = "client")]
    name: Option<ClientName>,
    /// Whether a person is asked before each approval: none, confirm or confirm-with-pin.
    #[arg(long, value_name = "CONSENT", default_value_t = ConsentRule::Confirm, conflicts_with = "client")]
    consent: ConsentRule,
    /// Directory that `opcert client add --browser` wrote, in place of registering.
    #[arg(long, value_name = "DIR")]
    client: Option<PathBuf>,
    /// What to do with browser policies: print, write or skip.
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        default_value = "print",
        hide_possible_values = true
    )]
    policies: PolicyMode,
    /// Where policies are written, for making images of machines.
    #[arg(long, value_name = "DIR", default_value = "/etc")]
    etc: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Takes the authority, the client certificate and the native-messaging host out of \
                  this user's browsers, deletes the client's key and its registration, and the \
                  policies that setup wrote."
)]
pub(super) struct Remove {}

/// What was put where.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Installed {
    /// The client, if setup registered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<ClientName>,
    /// NSS databases.
    #[serde(default)]
    databases: Vec<PathBuf>,
    /// Firefox profiles with a preference of ours.
    #[serde(default)]
    profiles: Vec<PathBuf>,
    /// Native-messaging manifests.
    #[serde(default)]
    manifests: Vec<PathBuf>,
    /// Policy files.
    #[serde(default)]
    policies: Vec<PathBuf>,
}

/// `installed.json` is small.
const INSTALLED_LIMIT: u64 = 256 * 1024;
const PEM_LIMIT: u64 = 256 * 1024;

impl Installed {
    fn read(places: &Places) -> Result<Self, Error> {
        let path = places.installed();
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = read_file(&path, INSTALLED_LIMIT)?;
        serde_json::from_slice(&text).map_err(|error| Error::Input {
            what: format!("{} is damaged: {error}", path.display()),
            action: "Delete it, and run `opcert browser setup` again.".into(),
        })
    }

    fn write(&self, places: &Places) -> Result<(), Error> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| Error::Stream {
            stream: "the record of the setup",
            source: error.into(),
        })?;
        text.push(b'\n');
        Ok(files::write_atomic(&places.installed(), &text, 0o600)?)
    }

    /// Notes that something is about to be put at `path`.
    fn note(
        &mut self,
        places: &Places,
        list: fn(&mut Self) -> &mut Vec<PathBuf>,
        path: &Path,
    ) -> Result<(), Error> {
        if !list(self).iter().any(|known| known == path) {
            list(self).push(path.to_owned());
            self.write(places)?;
        }
        Ok(())
    }
}

pub(super) async fn run(command: &Command, global: &Global, output: &Output) -> Result<u8, Error> {
    let places = Places::of_user()?;
    match command {
        Command::Setup(arguments) => setup(arguments, &places, global, output).await,
        Command::Remove(Remove {}) => remove(&places, global, output).await,
        Command::Doctor => doctor::run(&places, global, output).await,
    }
}

/// Where the daemon's doors are, as far as this user may know.
struct Doors {
    native: String,
    browser_port: Option<u16>,
    origins: Vec<String>,
}

impl Doors {
    fn of(status: &Status) -> Self {
        let port = |address: &String| address.rsplit_once(':')?.1.parse().ok();
        Self {
            native: status
                .addresses
                .native
                .first()
                .cloned()
                .unwrap_or_else(|| "127.0.0.1:7443".into()),
            browser_port: status.addresses.browser.first().and_then(port),
            origins: status.addresses.origins.clone(),
        }
    }

    /// For a user who may not use the control socket: where the doors are by default.
    fn usual() -> Self {
        Self {
            native: "127.0.0.1:7443".into(),
            browser_port: Some(7444),
            origins: Vec::new(),
        }
    }
}

async fn setup(
    arguments: &Setup,
    places: &Places,
    global: &Global,
    output: &Output,
) -> Result<u8, Error> {
    nss::need_tools()?;
    let mut installed = Installed::read(places)?;
    let doors = match daemon::control(global).await {
        Ok(mut daemon) => {
            let doors = Doors::of(&daemon.status().await?);
            if doors.origins.is_empty() {
                return Err(Error::State {
                    code: "no-origin",
                    what: "the daemon serves no pages: no origin is configured".into(),
                    action: format!(
                        "List the account service's origin, `origins = [\"https://…\"]` under \
                         [browser], in {}, and restart the daemon.",
                        global.config().display()
                    ),
                });
            }
            if arguments.client.is_none() {
                registered(&mut daemon, arguments, places, &mut installed, output).await?;
            }
            doors
        }
        Err(_) if arguments.client.is_some() => Doors::usual(),
        Err(error) => return Err(error),
    };
    if let Some(folder) = &arguments.client {
        adopt(folder, places)?;
    }
    let authority =
        Certificate::from_pem(&read_file(&places.file(CA_FILE), PEM_LIMIT)?).map_err(|error| {
            Error::Input {
                what: format!("the daemon's authority cannot be read: {error}"),
                action: "Run `opcert browser remove`, then set up again.".into(),
            }
        })?;

    if doors.browser_port.is_some() {
        let bundle = nss::Bundle::make(places)?;
        for database in places.databases()? {
            installed.note(places, |all| &mut all.databases, &database.directory)?;
            database.install(&bundle, &places.file(CA_FILE))?;
            output.done(&format!(
                "{} trusts the daemon and has the client certificate",
                database.what
            ));
            if let Some(profile) = &database.profile {
                installed.note(places, |all| &mut all.profiles, profile)?;
                places::present_automatically(profile)?;
            }
        }
    }
    host(&doors, places, &mut installed, output)?;

    let policies = Policies::new(&doors, &authority);
    match arguments.policies {
        PolicyMode::Skip => {}
        PolicyMode::Print => output.note(&policies.advice()),
        PolicyMode::Write => {
            for (path, text) in policies.files(&arguments.etc)? {
                installed.note(places, |all| &mut all.policies, &path)?;
                places::write_public(&path, &text, 0o644)?;
                output.done(&format!("policy {}", path.display()));
            }
        }
    }
    output.note("Start the browsers again: they look for certificates once.");
    let report = serde_json::json!({
        "installed": installed,
        "extension": native_host::EXTENSION,
        "policies": policies.all(),
    });
    if output.format() == super::output::Format::Json {
        output.result(&report, |_| String::new())?;
    }
    Ok(EX_OK)
}

/// The client of this user's browsers: the one of the last setup, or a new one.
async fn registered(
    daemon: &mut Client,
    arguments: &Setup,
    places: &Places,
    installed: &mut Installed,
    output: &Output,
) -> Result<(), Error> {
    if [CERTIFICATE_FILE, KEY_FILE, CA_FILE]
        .iter()
        .all(|file| places.file(file).exists())
    {
        output.done("the client of the last setup is used again");
        return Ok(());
    }
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => places.client_name()?,
    };
    let policy = ClientPolicy {
        consent: arguments.consent,
        ..ClientPolicy::default()
    };
    places.make_directory()?;
    installed.client = Some(name.clone());
    installed.write(places)?;
    let directory = &places.directory;
    if let Err(error) = register(daemon, &name, ClientKind::Browser, policy, directory).await {
        // Somebody else's client of that name is not for us to remove.
        places.make_directory()?;
        installed.client = None;
        installed.write(places)?;
        return Err(error);
    }
    output.done(&format!("these browsers are client {name} of the daemon"));
    Ok(())
}

/// Takes over what an administrator made.
fn adopt(folder: &Path, places: &Places) -> Result<(), Error> {
    places.make_directory()?;
    for (file, mode) in [
        (CERTIFICATE_FILE, 0o644),
        (KEY_FILE, 0o600),
        (CA_FILE, 0o644),
    ] {
        let bytes = zeroize::Zeroizing::new(read_file(&folder.join(file), PEM_LIMIT)?);
        files::write_atomic(&places.file(file), &bytes, mode)?;
    }
    Ok(())
}

/// The extension's host: a script that names the client, and manifests that name the script.
fn host(
    doors: &Doors,
    places: &Places,
    installed: &mut Installed,
    output: &Output,
) -> Result<(), Error> {
    let program = std::env::current_exe().map_err(|source| Error::Stream {
        stream: "the path of this program",
        source,
    })?;
    let script = places.file("native-host");
    let text = format!(
        "#!/bin/sh\n# Written by `opcert browser setup`; browsers can give a host no arguments.\n\
         exec {} native-host --client {} --native {} -- \"$@\"\n",
        places::quoted(&program)?,
        places::quoted(&places.directory)?,
        doors.native,
    );
    places::write_public(&script, text.as_bytes(), 0o755)?;
    let mut manifest =
        serde_json::to_vec_pretty(&native_host::manifest(&script)).map_err(|error| {
            Error::Stream {
                stream: "the host's manifest",
                source: error.into(),
            }
        })?;
    manifest.push(b'\n');
    for path in places.manifests() {
        installed.note(places, |all| &mut all.manifests, &path)?;
        places::write_public(&path, &manifest, 0o644)?;
    }
    output.done("the browser extension finds its host");
    Ok(())
}

async fn remove(places: &Places, global: &Global, output: &Output) -> Result<u8, Error> {
    let mut installed = Installed::read(places)?;
    if !places.directory.exists() {
        output.note("Nothing is set up for this user.");
        return Ok(EX_OK);
    }
    while let Some(directory) = installed.databases.last() {
        if directory.exists() {
            nss::need_tools()?;
            Database::at(directory).remove()?;
            output.done(&format!("{} is as it was", directory.display()));
        }
        installed.databases.pop();
        installed.write(places)?;
    }
    while let Some(profile) = installed.profiles.last() {
        if !places::present_as_before(profile)? {
            output.note(&format!(
                "Firefox runs with {}: end it and run this again, or it keeps choosing \
                 certificates by itself.",
                profile.display()
            ));
            return Err(Error::State {
                code: "browser-running",
                what: "a browser is running".into(),
                action: "End Firefox, then run `opcert browser remove` again.".into(),
            });
        }
        installed.profiles.pop();
        installed.write(places)?;
    }
    for list in [
        (|all| &mut all.manifests) as fn(&mut Installed) -> &mut Vec<PathBuf>,
        |all| &mut all.policies,
    ] {
        while let Some(path) = list(&mut installed).last().cloned() {
            places::delete(&path)?;
            output.done(&format!("{} is gone", path.display()));
            list(&mut installed).pop();
            installed.write(places)?;
        }
    }
    if let Some(name) = &installed.client {
        let mut daemon = daemon::control(global).await?;
        match daemon.remove_client(name).await.map_err(Error::from) {
            Ok(()) => output.done(&format!("client {name} is no longer registered")),
            Err(Error::Refused { code, .. }) if code == "not-found" => {}
            Err(error) => return Err(error),
        }
    }
    std::fs::remove_dir_all(&places.directory).map_err(|source| FileError::Unwritable {
        path: places.directory.clone(),
        source,
    })?;
    output.result(&serde_json::json!({ "removed": true }), |_| {
        "Start the browsers again: they remember certificates while they run.".into()
    })?;
    Ok(EX_OK)
}
