//! Reaching the daemon: by its control socket, or through the native door as a client.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Global;
use super::error::Error;
use super::input::read_file;
use crate::api::client::{CallError, Client, PATIENT, native_door};
use crate::base::files::{Readers, read_checked};
use crate::config::daemon::DEFAULT_PATH;
use crate::config::places::Places;
use crate::http::client::Target;
use crate::http::tls;

/// No key or certificate file we read is larger, in bytes.
const PEM_LIMIT: u64 = 256 * 1024;

/// The control socket.
pub(super) async fn control(global: &Global) -> Result<Client, Error> {
    let config = global.config();
    let first = if config.exists() {
        format!("Start it with `{}`", start_command(&config))
    } else {
        "Make its configuration with `opcert init` and start it".to_owned()
    };
    let action =
        format!("{first}, or name its socket with --socket; `opcert doctor` looks closer.");
    connect("the daemon", action, &Target::Unix(socket(global))).await
}

/// What a registered client presents at the native door.
#[derive(Debug)]
pub(super) struct Credentials<'a> {
    pub(super) certificate: &'a Path,
    pub(super) key: &'a Path,
    /// The daemon's local authority.
    pub(super) ca: &'a Path,
}

/// The native door.
pub(super) async fn native(
    address: SocketAddr,
    credentials: &Credentials<'_>,
) -> Result<Client, Error> {
    let target = native_target(address, credentials)?;
    let action = "Check the address with `opcert status`, and that the client is still registered \
                  with `opcert client list`."
        .to_owned();
    connect("the daemon's native door", action, &target).await
}

/// How the native door is reached.
pub(super) fn native_target(
    address: SocketAddr,
    credentials: &Credentials<'_>,
) -> Result<Target, Error> {
    let wrong = |error: tls::TlsError| Error::Input {
        what: format!(
            "{} or its key cannot be used: {error}",
            credentials.certificate.display()
        ),
        action: "Give the files that `opcert client add` wrote.".into(),
    };
    let chain = read_file(credentials.certificate, PEM_LIMIT)?;
    let key = zeroize::Zeroizing::new(read_checked(credentials.key, Readers::Owner, PEM_LIMIT)?);
    let authority = read_file(credentials.ca, PEM_LIMIT)?;
    native_door(address, &authority, &chain, &key).map_err(wrong)
}

async fn connect(who: &'static str, action: String, target: &Target) -> Result<Client, Error> {
    match Client::connect(target, PATIENT).await {
        Ok(client) => Ok(client),
        Err(CallError::Transport(source)) => Err(Error::Unreachable {
            who,
            action,
            source,
        }),
        Err(error) => Err(error.into()),
    }
}

/// What starts the daemon of a configuration file on this computer: its unit, where there is one.
pub(super) fn start_command(config: &Path) -> String {
    let by_systemd = |folder: &str| {
        Path::new("/run/systemd/system").is_dir()
            && ["/etc/systemd", "/usr/lib/systemd"].iter().any(|base| {
                Path::new(base)
                    .join(folder)
                    .join("opcertd.service")
                    .is_file()
            })
    };
    if config == Path::new(DEFAULT_PATH) && by_systemd("system") {
        "systemctl start opcertd".into()
    } else if config == Places::of_user().config && by_systemd("user") {
        "systemctl --user start opcertd".into()
    } else {
        format!("opcertd --config {}", config.display())
    }
}

/// Where the daemon's control socket is: `--socket`, `$OPCERT_SOCKET`, the runtime directory that
/// the configuration names, the default.
pub(super) fn socket(global: &Global) -> PathBuf {
    if let Some(path) = &global.socket {
        return path.clone();
    }
    if let Some(path) = std::env::var_os("OPCERT_SOCKET") {
        return path.into();
    }
    runtime_directory(&global.config())
        .unwrap_or_else(|| Places::of_system().runtime)
        .join("control.sock")
}

/// Reads one key and checks nothing: whoever may not read the file still finds the default socket.
fn runtime_directory(config: &Path) -> Option<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Excerpt {
        runtime_directory: PathBuf,
    }
    let text = std::fs::read_to_string(config).ok()?;
    let excerpt: Excerpt = toml::from_str(&text).ok()?;
    Some(excerpt.runtime_directory)
}
