//! Doors get their sockets: from the service manager where it hands them in, else by binding.
//!
//! systemd passes sockets in no fixed order, so they are told apart by `FileDescriptorName=`
//! (`LISTEN_FDNAMES`): `native` and `browser` for TCP, `control` for the Unix socket, `metrics` for
//! TCP without TLS. A kind that is handed in is not bound from the configuration as well.
//!
//! The control socket's file outlives a daemon that was killed. It is removed at the next start
//! only if nobody answers at it, and at a stop only if this process made it.

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

use super::failure::Failure;
use crate::api::caller::{ControlAccess, ControlUsers};
use crate::api::problem::{Code, Problem};
use crate::base::sysexits::{EX_CANTCREAT, EX_CONFIG, EX_OSERR, EX_UNAVAILABLE};
use crate::config::daemon::Config;

/// Sockets that the service manager handed in.
#[derive(Debug, Default)]
pub struct Inherited {
    native: Vec<std::net::TcpListener>,
    browser: Vec<std::net::TcpListener>,
    metrics: Vec<std::net::TcpListener>,
    control: Option<StdUnixListener>,
}

impl Inherited {
    /// Takes them from the environment.
    pub fn take() -> Result<Self, Failure> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut sockets = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..sockets.len() {
            let name = names.split(':').nth(index).unwrap_or("");
            let wrong = |error: io::Error| {
                Failure::system(
                    EX_OSERR,
                    "a socket that was handed in cannot be used",
                    &error,
                )
            };
            match name {
                "native" => {
                    let socket = sockets.take_tcp_listener(index).map_err(wrong)?;
                    inherited.native.extend(socket);
                }
                "browser" => {
                    let socket = sockets.take_tcp_listener(index).map_err(wrong)?;
                    inherited.browser.extend(socket);
                }
                "metrics" => {
                    let socket = sockets.take_tcp_listener(index).map_err(wrong)?;
                    inherited.metrics.extend(socket);
                }
                "control" => {
                    inherited.control = sockets.take_unix_listener(index).map_err(wrong)?;
                }
                other => {
                    return Err(Failure::new(
                        EX_CONFIG,
                        Problem::new(
                            Code::ConfigValue,
                            format!("a socket named {other:?} was handed in"),
                        )
                        .with_action(
                            "Set FileDescriptorName= of each socket unit to native, browser, metrics or control.",
                        ),
                    ));
                }
            }
        }
        Ok(inherited)
    }
}

/// All sockets of the daemon.
#[derive(Debug)]
pub struct Bound {
    /// Of the native door.
    pub native: Vec<TcpListener>,
    /// Of the browser door.
    pub browser: Vec<TcpListener>,
    /// For metrics besides the control socket.
    pub metrics: Vec<TcpListener>,
    /// The control socket.
    pub control: ControlSocket,
    /// Who may use it.
    pub users: ControlUsers,
}

/// The control socket, and its file where this process made it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
}

impl ControlSocket {
    /// The group that the file is for can be changed by this.
    pub fn door(&self, access: ControlAccess) -> ControlDoor {
        ControlDoor {
            file: self.file.0.clone(),
            access,
        }
    }

    /// The listener, and what removes the file when it is dropped.
    pub fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// Whom the control socket lets in, and how that is changed while it is open.
#[derive(Debug)]
pub struct ControlDoor {
    /// Where this process made the file; one that was handed in is its socket unit's.
    file: Option<PathBuf>,
    access: ControlAccess,
}

impl ControlDoor {
    /// Lets members of `group` connect from now on, and of no other. Where there is none, nobody
    /// but root and the service's user comes in from the next request on, whoever is connected.
    /// An error leaves things as they were.
    pub fn set_group(&self, group: Option<&str>) -> Result<(), GroupError> {
        if let Some(file) = &self.file {
            share(file, group)?;
        }
        self.access.set(users(group));
        Ok(())
    }
}

fn users(group: Option<&str>) -> ControlUsers {
    match group {
        Some(_) => ControlUsers::SocketGroup,
        None => ControlUsers::OwnerOnly,
    }
}

/// Whether there is such a group.
pub fn check_group(group: Option<&str>) -> Result<(), GroupError> {
    group.map_or(Ok(()), |group| group_id(group).map(|_| ()))
}

/// Why the control socket is not a group's.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// No such group.
    #[error(
        "control.group: there is no group {name:?} in /etc/group. Make the group, or give its number"
    )]
    Unknown {
        /// What was given.
        name: String,
    },
    /// The kernel refuses.
    #[error(
        "control.group: cannot {action} {}. The service user has to own it and be in the group",
        path.display()
    )]
    File {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Removes the socket's file when dropped.
#[derive(Debug)]
pub struct SocketFile(Option<PathBuf>);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "the control socket's file stays");
        }
    }
}

/// Binds what was not handed in. Needs the runtime.
pub async fn all(config: &Config, mut inherited: Inherited) -> Result<Bound, Failure> {
    let native = listeners(
        &config.native.addresses,
        "native.addresses",
        inherited.native,
        "native",
    )
    .await?;
    if config.browser.origins.is_empty() && !inherited.browser.is_empty() {
        tracing::warn!("a browser socket was handed in, but no origin is configured; it is shut");
        inherited.browser.clear();
    }
    let browser = listeners(
        config.browser.open_at(),
        "browser.addresses",
        inherited.browser,
        "browser",
    )
    .await?;
    let metrics = match config.metrics.address {
        _ if !inherited.metrics.is_empty() => adopt(inherited.metrics, "metrics")?,
        Some(address) => bind_loopback(address, "metrics.address")
            .await?
            .into_iter()
            .collect(),
        None => Vec::new(),
    };
    let users = users(config.control.group.as_deref());
    let control = match inherited.control {
        Some(listener) => ControlSocket {
            listener: adopt_control(listener)?,
            file: SocketFile(None),
        },
        None => bind_control(config)?,
    };
    Ok(Bound {
        native,
        browser,
        metrics,
        control,
        users,
    })
}

/// The TCP listeners of one door.
async fn listeners(
    addresses: &[SocketAddr],
    key: &'static str,
    inherited: Vec<std::net::TcpListener>,
    name: &'static str,
) -> Result<Vec<TcpListener>, Failure> {
    if !inherited.is_empty() {
        return adopt(inherited, name);
    }
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.extend(bind_loopback(*address, key).await?);
    }
    Ok(listeners)
}

async fn bind_loopback(
    address: SocketAddr,
    key: &'static str,
) -> Result<Option<TcpListener>, Failure> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        // Without IPv6 nobody else can listen there either.
        Err(error)
            if address.is_ipv6()
                && matches!(
                    error.kind(),
                    io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
                ) =>
        {
            tracing::warn!(%address, %error, "this computer has no IPv6; not listening there");
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(Failure::new(
            EX_UNAVAILABLE,
            Problem::new(
                Code::PortInUse,
                format!("another program listens on {address}"),
            )
            .with_action(format!(
                "Stop it, or set another port in `{key}` of opcertd.toml."
            )),
        )),
        Err(error) => Err(Failure::system(
            EX_OSERR,
            "an address cannot be bound",
            &error,
        )),
    }
}

fn adopt(
    listeners: Vec<std::net::TcpListener>,
    name: &'static str,
) -> Result<Vec<TcpListener>, Failure> {
    listeners
        .into_iter()
        .map(|listener| adopt_one(listener, name))
        .collect()
}

fn adopt_one(listener: std::net::TcpListener, name: &'static str) -> Result<TcpListener, Failure> {
    let wrong = |error: io::Error| {
        Failure::system(
            EX_OSERR,
            "a socket that was handed in cannot be used",
            &error,
        )
    };
    let address = listener.local_addr().map_err(wrong)?;
    if !address.ip().is_loopback() {
        return Err(Failure::new(
            EX_CONFIG,
            Problem::new(
                Code::ConfigValue,
                format!("the {name} socket that was handed in listens on {address}, which is not loopback"),
            )
            .with_action("Set ListenStream= of the socket unit to 127.0.0.1 and [::1]."),
        ));
    }
    listener.set_nonblocking(true).map_err(wrong)?;
    TcpListener::from_std(listener).map_err(wrong)
}

fn adopt_control(listener: StdUnixListener) -> Result<UnixListener, Failure> {
    let wrong =
        |error: io::Error| Failure::system(EX_OSERR, "the control socket cannot be used", &error);
    listener.set_nonblocking(true).map_err(wrong)?;
    UnixListener::from_std(listener).map_err(wrong)
}

fn bind_control(config: &Config) -> Result<ControlSocket, Failure> {
    let path = config.control_socket();
    let wrong = |what: &'static str| {
        let path = path.clone();
        move |error: io::Error| {
            Failure::new(
                EX_CANTCREAT,
                Problem::new(
                    Code::StateUnusable,
                    format!("{what} {}: {error}", path.display()),
                )
                .with_action("Check that the runtime directory belongs to the service user."),
            )
        }
    };
    make_runtime_directory(&config.runtime_directory)
        .map_err(wrong("cannot make the directory of"))?;
    remove_stale(&path)?;
    let listener = UnixListener::bind(&path).map_err(wrong("cannot bind"))?;
    let file = SocketFile(Some(path.clone()));
    share(&path, config.control.group.as_deref()).map_err(|error| match error {
        GroupError::Unknown { .. } => Failure::new(
            EX_CONFIG,
            Problem::new(Code::ConfigValue, error.to_string()),
        ),
        GroupError::File { .. } => Failure::system(
            EX_CANTCREAT,
            "the control socket cannot be given to its group",
            &error,
        ),
    })?;
    Ok(ControlSocket { listener, file })
}

/// Gives the socket at `path` to a group, or to its owner alone.
fn share(path: &Path, group: Option<&str>) -> Result<(), GroupError> {
    let wrong = |action: &'static str| {
        move |source: io::Error| GroupError::File {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let mode = match group {
        None => 0o600,
        Some(group) => {
            let gid = group_id(group)?;
            std::os::unix::fs::chown(path, None, Some(gid)).map_err(wrong("give to its group"))?;
            0o660
        }
    };
    std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(wrong("set the mode of"))
}

/// Members of the socket's group have to reach it, whatever the umask.
fn make_runtime_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o755))
}

fn remove_stale(path: &Path) -> Result<(), Failure> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let in_use = |what: String| {
        Failure::new(
            EX_UNAVAILABLE,
            Problem::new(Code::PortInUse, what).with_action(
                "Stop the other daemon, or set another `runtime-directory` in opcertd.toml.",
            ),
        )
    };
    if !metadata.file_type().is_socket() {
        return Err(in_use(format!("{} is not a socket", path.display())));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
                .map_err(|error| in_use(format!("cannot remove stale {}: {error}", path.display())))
        }
        Ok(_) => Err(in_use(format!(
            "another daemon answers at {}",
            path.display()
        ))),
        Err(error) => Err(in_use(format!("{} is taken: {error}", path.display()))),
    }
}

/// A group by number, or by name in `/etc/group`. Groups of other directories are given by number.
fn group_id(group: &str) -> Result<u32, GroupError> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let text = std::fs::read_to_string("/etc/group").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(group)).then(|| fields.nth(1))?
        })
        .find_map(|gid| gid.parse().ok())
        .ok_or_else(|| GroupError::Unknown { name: group.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_goes_and_a_live_one_or_a_file_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        remove_stale(&path).unwrap();
        let live = StdUnixListener::bind(&path).unwrap();
        assert!(remove_stale(&path).is_err());
        drop(live);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(remove_stale(&path).is_err());
        assert!(path.exists());
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!(group_id("root").ok(), Some(0));
        assert_eq!(group_id("1234").ok(), Some(1234));
        assert!(group_id("no-such-group").is_err());
    }
}
