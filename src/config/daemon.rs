//! `opcertd.toml`: the `Config` of each part, put together, and what has to agree between them.
//!
//! What a key means never is said here: the part that reads it says so.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::places::Places;
use super::{ConfigError, Loaded, load};
use crate::device;
use crate::http::Limits;
use crate::statement::Origin;

/// Where the file of the computer's daemon is; see [`super::places`].
pub const DEFAULT_PATH: &str = "/etc/opcert/opcertd.toml";

/// What the file says. Every key has a default; a daemon without modules starts and says so.
#[derive(Debug, Clone, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// What must survive a restart: audit trail, registries, the local authority.
    #[serde(default = "state_directory")]
    pub state_directory: PathBuf,
    /// Where `control.sock` is.
    #[serde(default = "runtime_directory")]
    pub runtime_directory: PathBuf,
    /// The native door.
    #[serde(default)]
    pub native: Native,
    /// The browser door.
    #[serde(default)]
    pub browser: Browser,
    /// The control socket.
    #[serde(default)]
    pub control: Control,
    /// Metrics and health on a port of their own; they are on the control socket in any case.
    #[serde(default)]
    pub metrics: Metrics,
    /// The audit trail.
    #[serde(default)]
    pub audit: crate::audit::Config,
    /// How people are asked.
    #[serde(default)]
    pub consent: crate::consent::Config,
    /// Who may do what.
    #[serde(default)]
    pub policy: super::policy::Config,
    /// The log on standard error.
    #[serde(default)]
    pub log: crate::telemetry::Config,
    /// The worker executable; see [`device::Config`].
    pub worker: Option<PathBuf>,
    /// The PKCS#11 modules and their tokens.
    #[serde(default)]
    pub module: Vec<device::ModuleConfig>,
}

fn state_directory() -> PathBuf {
    Places::of_system().state
}

fn runtime_directory() -> PathBuf {
    Places::of_system().runtime
}

/// The `[native]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Native {
    /// Where to listen: loopback addresses only. Both families are bound by default, as another
    /// program on the free one would get the traffic of clients that try it first. Port 0 takes
    /// any free port. Sockets handed in by systemd take precedence.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<SocketAddr>,
    /// Limits of each listener.
    pub limits: Limits,
}

impl Default for Native {
    fn default() -> Self {
        Self {
            addresses: vec![
                SocketAddr::from(([127, 0, 0, 1], 7443)),
                SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 7443)),
            ],
            limits: Limits::default(),
        }
    }
}

/// The `[browser]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Browser {
    /// The origins whose pages are served, such as `https://accounts.example`; compared byte for
    /// byte, so there is no pattern and no `null`. With none, which is the default, no page is
    /// served and the door stays shut.
    #[schemars(with = "Vec<String>")]
    pub origins: Vec<Origin>,
    /// Where to listen, as under `[native]`. Chromium tries `[::1]` first, Firefox `127.0.0.1`.
    /// Empty where only the browser extension is used, which comes in by the native door.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<SocketAddr>,
    /// Limits of each listener.
    pub limits: Limits,
}

impl Default for Browser {
    fn default() -> Self {
        Self {
            origins: Vec::new(),
            addresses: vec![
                SocketAddr::from(([127, 0, 0, 1], 7444)),
                SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 7444)),
            ],
            limits: Limits {
                connections: 64,
                ..Limits::default()
            },
        }
    }
}

impl Browser {
    /// Where to listen; nowhere without an origin.
    pub fn open_at(&self) -> &[SocketAddr] {
        if self.origins.is_empty() {
            &[]
        } else {
            &self.addresses
        }
    }
}

/// The `[control]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Control {
    /// A group whose members may use the socket, by name or number, besides root and the service
    /// user. None by default.
    pub group: Option<String>,
    /// Limits of the socket.
    pub limits: Limits,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            group: None,
            limits: Limits {
                connections: 64,
                // A revocation list may have many entries.
                body_bytes: 16 * 1024 * 1024,
                ..Limits::default()
            },
        }
    }
}

/// The `[metrics]` table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Metrics {
    /// A loopback address for Prometheus, such as `127.0.0.1:9464`; every local program can read it.
    /// None by default. A socket named `metrics` that systemd hands in takes precedence.
    #[schemars(with = "Option<String>")]
    pub address: Option<SocketAddr>,
    /// Limits of the port.
    pub limits: Limits,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            address: None,
            limits: Limits {
                connections: 16,
                body_bytes: 1024,
                ..Limits::default()
            },
        }
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::load_layers(path)?.config)
    }

    /// The same, and where each value comes from.
    pub fn load_layers(path: &Path) -> Result<Loaded<Self>, ConfigError> {
        let loaded: Loaded<Self> = load(path)?;
        loaded.check()?;
        Ok(loaded)
    }

    /// The part of the tokens.
    pub fn devices(&self) -> device::Config {
        device::Config {
            worker: self.worker.clone(),
            module: self.module.clone(),
        }
    }

    /// The control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.runtime_directory.join("control.sock")
    }
}

impl Loaded<Config> {
    fn check(&self) -> Result<(), ConfigError> {
        let config = &self.config;
        for (key, path) in [
            ("state-directory", &config.state_directory),
            ("runtime-directory", &config.runtime_directory),
        ] {
            if !path.is_absolute() {
                return Err(self.refuse(key, "must be an absolute path"));
            }
        }
        for (key, addresses) in [
            ("native.addresses", &config.native.addresses),
            ("browser.addresses", &config.browser.addresses),
        ] {
            if let Some(address) = addresses.iter().find(|one| !one.ip().is_loopback()) {
                return Err(self.refuse(
                    key,
                    format!(
                        "{address} is not a loopback address; the daemon serves this computer only"
                    ),
                ));
            }
        }
        if let Some(address) = config.metrics.address
            && !address.ip().is_loopback()
        {
            return Err(self.refuse(
                "metrics.address",
                format!(
                    "{address} is not a loopback address; have an agent of this computer scrape"
                ),
            ));
        }
        config
            .policy
            .check()
            .map_err(|error| self.refuse(error.key, error.problem))?;
        for (table, limits) in [
            ("native.limits", &config.native.limits),
            ("browser.limits", &config.browser.limits),
            ("control.limits", &config.control.limits),
            ("metrics.limits", &config.metrics.limits),
        ] {
            limits.check().map_err(|error| {
                self.refuse(
                    &format!("{table}.{}", error.key),
                    format!("must be {}", error.allowed),
                )
            })?;
        }
        Ok(())
    }
}
