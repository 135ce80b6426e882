//! What a worker may reach while it runs a vendor's library.
//!
//! A library needs little: its own files, its configuration, the way to its token. A [`Sandbox`]
//! names that way; the worker closes all others before it loads the library (`worker::confine`).
//! This file has what both sides share: the profiles, which of them fits which library, and what
//! a worker says of how it went.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::config::ModuleConfig;

/// The way to the token that is left open to a library. All others are closed: other files, other
/// sockets, other programs.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Deserialize,
    Serialize,
    schemars::JsonSchema,
    utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Sandbox {
    /// A token in files: SoftHSM2, NSS. May write where its configuration says that tokens are; no
    /// sockets at all.
    Softhsm,
    /// A smart card behind pcscd: Unix sockets only, nothing is written.
    Pcscd,
    /// A USB device that the library drives itself: may use `/dev` and netlink (hotplug), and Unix
    /// sockets.
    Usb,
    /// An HSM in the network: may open internet connections, and ask for names.
    Network,
    /// Not confined beyond what every worker gives up: new privileges, core dumps.
    None,
}

/// Libraries by the beginning of their file's name, and the profile that fits.
const KNOWN: [(&str, Sandbox); 8] = [
    ("libsofthsm2", Sandbox::Softhsm),
    ("libsoftokn3", Sandbox::Softhsm),
    ("opensc-pkcs11", Sandbox::Pcscd),
    ("onepin-opensc-pkcs11", Sandbox::Pcscd),
    ("libykcs11", Sandbox::Pcscd),
    ("libnethsm_pkcs11", Sandbox::Network),
    ("libcloudhsm_pkcs11", Sandbox::Network),
    ("yubihsm_pkcs11", Sandbox::Network),
];

impl Sandbox {
    /// The profile of a module: as configured, else the one that is known to fit the library, else
    /// none.
    pub(super) fn of(config: &ModuleConfig) -> Self {
        config
            .sandbox
            .or_else(|| Self::fitting(&config.path))
            .unwrap_or(Self::None)
    }

    /// The profile that is known to fit a library, by the name of its file. A link is followed, as
    /// distributions name libraries after their version.
    pub fn fitting(path: &Path) -> Option<Self> {
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        [path, &real].into_iter().find_map(|path| {
            let name = path.file_name()?.to_str()?;
            KNOWN
                .iter()
                .find(|(beginning, _)| name.starts_with(beginning))
                .map(|(_, sandbox)| *sandbox)
        })
    }

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Softhsm => "softhsm",
            Self::Pcscd => "pcscd",
            Self::Usb => "usb",
            Self::Network => "network",
            Self::None => "none",
        }
    }
}

/// How a worker is to be confined; the second frame that it gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The profile.
    pub sandbox: Sandbox,
    /// What it may read besides the files of the profile: absolute paths, directories with all
    /// that is below.
    pub readable: Vec<PathBuf>,
    /// What it may read and write.
    pub writable: Vec<PathBuf>,
}

impl Confinement {
    /// What the configuration says of a module.
    pub(super) fn of(config: &ModuleConfig) -> Self {
        let mut readable = config.readable.clone();
        readable.extend(named_in(&config.environment));
        let sandbox = Sandbox::of(config);
        let mut writable = config.writable.clone();
        if sandbox == Sandbox::Softhsm {
            writable.extend(config.init_args.as_deref().and_then(nss_directory));
        }
        Self {
            sandbox,
            readable,
            writable,
        }
    }
}

/// The paths that a module's environment names: its configuration file is one of them, whatever
/// the vendor calls the variable.
fn named_in(environment: &BTreeMap<String, String>) -> impl Iterator<Item = PathBuf> {
    environment
        .values()
        .flat_map(|value| value.split(':'))
        .filter(|word| word.starts_with('/') && word.len() > 1)
        .map(PathBuf::from)
}

/// The directory of `configdir='sql:/path'` in the parameters of NSS.
fn nss_directory(parameters: &str) -> Option<PathBuf> {
    let (_, rest) = parameters.split_once("configdir=")?;
    let value = match rest.chars().next()? {
        quote @ ('\'' | '"') => rest[1..].split(quote).next()?,
        _ => rest.split_ascii_whitespace().next()?,
    };
    let path = value.strip_prefix("sql:").unwrap_or(value);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// What a worker says of its confinement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SandboxStatus {
    /// The profile.
    pub profile: Sandbox,
    /// Whether it holds.
    pub level: SandboxLevel,
    /// What of the profile the kernel does not enforce, and why.
    pub missing: Vec<String>,
}

/// Whether a sandbox holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxLevel {
    /// Files and system calls are restricted.
    On,
    /// Files or system calls are not restricted, although the profile asks for it.
    Degraded,
    /// The profile is `none`.
    Off,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &str, more: &str) -> ModuleConfig {
        toml::from_str(&format!("name = \"m\"\npath = {path:?}\n{more}")).unwrap()
    }

    #[test]
    fn a_profile_that_fits_is_on_unless_told_otherwise() {
        for (path, more, expected) in [
            ("/usr/lib/softhsm/libsofthsm2.so", "", Sandbox::Softhsm),
            ("/opt/libykcs11.so.2", "", Sandbox::Pcscd),
            ("/opt/opensc-pkcs11.so", "sandbox = \"usb\"", Sandbox::Usb),
            ("/opt/libsofthsm2.so", "sandbox = \"none\"", Sandbox::None),
            ("/opt/libvendor.so", "", Sandbox::None),
            (
                "/opt/libvendor.so",
                "sandbox = \"network\"",
                Sandbox::Network,
            ),
        ] {
            assert_eq!(Sandbox::of(&config(path, more)), expected, "{path} {more}");
        }
    }

    #[test]
    fn a_link_under_another_name_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let library = directory.path().join("libsofthsm2.so.2");
        let link = directory.path().join("token.so");
        std::fs::write(&library, "").unwrap();
        std::os::unix::fs::symlink(&library, &link).unwrap();
        assert_eq!(Sandbox::fitting(&link), Some(Sandbox::Softhsm));
    }

    #[test]
    fn files_that_the_environment_names_are_readable() {
        let config = config(
            "/opt/libvendor.so",
            "environment = { CONF = \"/etc/vendor.conf\", LEVEL = \"3\", \
             LIBS = \"/opt/a:/opt/b\" }\nreadable = [\"/srv/keys\"]",
        );
        let confinement = Confinement::of(&config);
        assert_eq!(
            confinement.readable,
            ["/srv/keys", "/etc/vendor.conf", "/opt/a", "/opt/b"].map(PathBuf::from)
        );
    }

    #[test]
    fn the_directory_of_nss_is_writable() {
        for (parameters, expected) in [
            ("configdir='sql:/var/lib/nss' flags=", Some("/var/lib/nss")),
            ("flags= configdir=\"sql:/a b\"", Some("/a b")),
            ("configdir=/c flags=", Some("/c")),
            ("configdir='sql:relative'", None),
            ("flags=readOnly", None),
        ] {
            assert_eq!(
                nss_directory(parameters),
                expected.map(PathBuf::from),
                "{parameters}"
            );
        }
    }

    #[test]
    fn the_names_are_those_of_the_configuration() {
        for sandbox in [
            Sandbox::Softhsm,
            Sandbox::Pcscd,
            Sandbox::Usb,
            Sandbox::Network,
            Sandbox::None,
        ] {
            let text = format!("sandbox = \"{}\"", sandbox.name());
            assert_eq!(config("/m", &text).sandbox, Some(sandbox));
        }
    }
}
