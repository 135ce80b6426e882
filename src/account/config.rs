//! The configuration file of the account service.
//!
//! TOML with kebab-case keys; an unknown key is an error. The file decides what the service
//! trusts, so it must belong to root or to the user the service runs as, and neither its group
//! nor others may write it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::sms::GatewayKind;
use super::store::{Store, with_password};
use crate::base::files::{FileError, Readers, read_checked};
use crate::base::pkcs11::TokenUri;
use crate::config::{ConfigError, Loaded, load};
use crate::device;
use crate::statement::Origin;

/// Where the file is unless the command line names another.
pub const DEFAULT_PATH: &str = "/etc/opcert/accountd.toml";

/// The whole file.
#[derive(Debug, Clone, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Where database, audit trail and keys in files are.
    pub state_directory: PathBuf,
    /// The address people and programs know the service by: `https://HOST[:PORT]`. It is the
    /// issuer of challenges and stands in certificates, so it must not change.
    #[schemars(with = "String")]
    pub origin: Origin,
    /// The addresses to listen on; port 0 takes a free one.
    #[schemars(with = "Vec<String>")]
    pub listen: Vec<SocketAddr>,
    /// Addresses where clients may present a TLS certificate: the platform's backend, and EST
    /// clients that renew. Apart from the others, so that no browser asks people for one.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub certificate_listen: Vec<SocketAddr>,
    /// The database: `sqlite:PATH`, or `postgres://USER@HOST/DATABASE` where several instances
    /// share it. Default: `account.db` in the state directory.
    #[serde(default)]
    pub database: Option<String>,
    /// A file with the password for PostgreSQL, closed to everybody else.
    #[serde(default)]
    pub database_password_file: Option<PathBuf>,
    /// The token that holds the keys of the service; used by `init`.
    #[schemars(with = "String")]
    pub token: TokenUri,
    /// TLS certificate and key.
    #[serde(default)]
    pub tls: Tls,
    /// SMS.
    #[serde(default)]
    pub sms: Sms,
    /// Sessions at the portal.
    #[serde(default)]
    pub sessions: Sessions,
    /// Ways back in after a loss.
    #[serde(default)]
    pub recovery: Recovery,
    /// How much an account may have.
    #[serde(default)]
    pub quotas: Quotas,
    /// Operating certificates.
    #[serde(default)]
    pub certificates: Certificates,
    /// Makers of devices whose attestation of a key counts. Absent: nobody's, and none is needed.
    #[serde(default)]
    pub attestation: Option<device::AttestationConfig>,
    /// Operations and their challenges.
    #[serde(default)]
    pub operations: Operations,
    /// Notices to the platform.
    #[serde(default)]
    pub webhook: Option<Webhook>,
    /// The portal.
    #[serde(default)]
    pub portal: super::portal::config::Portal,
    /// Limits of connections and requests.
    #[serde(default)]
    pub limits: Option<crate::http::Limits>,
    /// The audit trail.
    #[serde(default)]
    pub audit: crate::audit::Config,
    /// The log.
    #[serde(default)]
    pub log: crate::telemetry::Config,
    /// The worker executable. Default: `opcert-worker` beside this program.
    #[serde(default)]
    pub worker: Option<PathBuf>,
    /// The PKCS#11 modules.
    #[serde(default)]
    pub module: Vec<device::ModuleConfig>,
}

/// `[tls]`: PEM files; relative paths are in the state directory.
#[derive(Debug, Clone, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Tls {
    /// The chain, end entity first. Default: `server.pem`, which `init` makes for a trial.
    pub certificate: PathBuf,
    /// Its private key, closed to everybody else. Default: `server-key.pem`.
    pub key: PathBuf,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificate: "server.pem".into(),
            key: "server-key.pem".into(),
        }
    }
}

/// `[sms]`.
#[derive(Debug, Clone, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Sms {
    /// How texts are sent. Default: `console`.
    pub gateway: GatewayKind,
    /// The address of the gateway `webhook`.
    pub webhook: Option<Webhook>,
    /// How long a code works, 60 to 900. Default: 300.
    pub lifetime_seconds: u64,
    /// Wrong codes that are taken before it stops working, 1 to 5. Default: 3.
    pub tries: u8,
    /// Time between two codes for one number and purpose, 10 to 3600. Default: 60.
    pub interval_seconds: u64,
    /// Codes for one number in 24 hours, 1 to 100. Default: 10.
    pub daily: u16,
}

impl Default for Sms {
    fn default() -> Self {
        Self {
            gateway: GatewayKind::Console,
            webhook: None,
            lifetime_seconds: 300,
            tries: 3,
            interval_seconds: 60,
            daily: 10,
        }
    }
}

/// `[sessions]`.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Sessions {
    /// How long a session lasts without use, 60 to 86,400. Default: 900.
    pub idle_seconds: u64,
    /// How long a session lasts at most, 60 to 604,800. Default: 28,800.
    pub absolute_seconds: u64,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            idle_seconds: 15 * 60,
            absolute_seconds: 8 * 60 * 60,
        }
    }
}

/// `[recovery]`.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Recovery {
    /// How long a granted request waits before it takes effect, so that whoever is robbed can stop
    /// it, 3600 to 2,592,000. Default: 259,200, three days.
    pub delay_seconds: u64,
    /// How long papers that were sent in are kept, 30 to 3650. Older ones are destroyed once their
    /// request is over; a request that nobody has decided by then is over. Default: 180.
    pub papers_days: u16,
}

impl Recovery {
    /// How long papers are kept.
    pub fn papers_kept(self) -> Duration {
        Duration::from_secs(u64::from(self.papers_days) * 24 * 60 * 60)
    }
}

impl Default for Recovery {
    fn default() -> Self {
        Self {
            delay_seconds: 3 * 24 * 60 * 60,
            papers_days: 180,
        }
    }
}

/// `[quotas]`: per account, counted over certificates in force.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Quotas {
    /// Computers that hold a certificate, 1 to 10,000. Default: 10.
    pub computers: u32,
    /// Certificates, 1 to 100,000. Default: 20.
    pub certificates: u32,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            computers: 10,
            certificates: 20,
        }
    }
}

/// `[certificates]`.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Certificates {
    /// How long an operating certificate is valid, 1 to 1,827. Default: 365.
    pub validity_days: u16,
    /// How long an enrolment ticket is valid, 60 to 3600. Default: 600.
    pub ticket_lifetime_seconds: u64,
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            validity_days: 365,
            ticket_lifetime_seconds: 600,
        }
    }
}

/// `[operations]`.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Operations {
    /// How long a challenge is valid, 10 to 600. Default: 120.
    pub challenge_lifetime_seconds: u64,
    /// How long an operation waits for its approval, 60 to 2,592,000. Default: 3600.
    pub lifetime_seconds: u64,
}

impl Default for Operations {
    fn default() -> Self {
        Self {
            challenge_lifetime_seconds: 120,
            lifetime_seconds: 3600,
        }
    }
}

/// `[webhook]`, where the platform learns of approvals, and `[sms.webhook]`, the SMS gateway.
#[derive(Debug, Clone, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Webhook {
    /// An `https` URL.
    pub url: String,
    /// A file with the secret that signs the notices, 32 to 256 bytes, closed to everybody else.
    pub secret_file: PathBuf,
    /// PEM certificates to trust instead of the operating system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

/// Why there is no database address.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The file with the password cannot be used.
    #[error("cannot read the database's password")]
    File(#[from] FileError),
    /// The password is no text, or the address names no user or has a password already.
    #[error("database-password-file needs a database address postgres://USER@HOST/DATABASE")]
    Password,
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::load_layers(path)?.config)
    }

    /// The same, and where each value comes from.
    pub fn load_layers(path: &Path) -> Result<Loaded<Self>, ConfigError> {
        let loaded: Loaded<Self> = load(path)?;
        loaded.check()?;
        Ok(loaded)
    }

    /// The device part.
    pub fn devices(&self) -> device::Config {
        device::Config {
            worker: self.worker.clone(),
            module: self.module.clone(),
        }
    }

    /// The database address, with the password where a file holds one.
    pub fn database(&self) -> Result<String, DatabaseError> {
        let url = match &self.database {
            Some(url) => url.clone(),
            None => return Ok(Store::sqlite_url(&self.state_directory.join("account.db"))),
        };
        let Some(path) = &self.database_password_file else {
            return Ok(url);
        };
        let bytes = read_checked(path, Readers::Owner, 1024)?;
        std::str::from_utf8(bytes.trim_ascii_end())
            .ok()
            .and_then(|password| with_password(&url, password))
            .ok_or(DatabaseError::Password)
    }

    /// A path of the file: relative ones are in the state directory.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.state_directory.join(path)
    }

    /// The limits of connections and requests; the largest bodies are papers of 5 MiB.
    pub fn limits(&self) -> crate::http::Limits {
        self.limits.clone().unwrap_or(crate::http::Limits {
            body_bytes: 5 * 1024 * 1024,
            ..crate::http::Limits::default()
        })
    }
}

impl Loaded<Config> {
    fn check(&self) -> Result<(), ConfigError> {
        let config = &self.config;
        if !config.state_directory.is_absolute() {
            return Err(self.refuse("state-directory", "must be an absolute path"));
        }
        let mut tokens = config.module.iter().flat_map(|module| &module.token);
        if tokens.any(|token| token.source() == Some(device::PinSource::Pinentry)) {
            let problem = "must be a credential or a file: nobody is before a service to be asked";
            return Err(self.refuse("module.token.pin-source", problem));
        }
        if !(1..=16).contains(&config.listen.len()) {
            return Err(self.refuse("listen", "must name 1 to 16 addresses"));
        }
        if config.certificate_listen.len() > 16 {
            return Err(self.refuse("certificate-listen", "must name at most 16 addresses"));
        }
        let (sms, quotas) = (&config.sms, &config.quotas);
        let (certificates, operations) = (&config.certificates, &config.operations);
        for (key, value, low, high) in [
            ("sms.lifetime-seconds", sms.lifetime_seconds, 60, 900),
            ("sms.tries", sms.tries.into(), 1, 5),
            ("sms.interval-seconds", sms.interval_seconds, 10, 3600),
            ("sms.daily", sms.daily.into(), 1, 100),
            (
                "recovery.delay-seconds",
                config.recovery.delay_seconds,
                3600,
                2_592_000,
            ),
            (
                "recovery.papers-days",
                config.recovery.papers_days.into(),
                30,
                3650,
            ),
            (
                "sessions.idle-seconds",
                config.sessions.idle_seconds,
                60,
                86_400,
            ),
            (
                "sessions.absolute-seconds",
                config.sessions.absolute_seconds,
                60,
                604_800,
            ),
            ("quotas.computers", quotas.computers.into(), 1, 10_000),
            (
                "quotas.certificates",
                quotas.certificates.into(),
                1,
                100_000,
            ),
            (
                "certificates.validity-days",
                certificates.validity_days.into(),
                1,
                1827,
            ),
            (
                "certificates.ticket-lifetime-seconds",
                certificates.ticket_lifetime_seconds,
                60,
                3600,
            ),
            (
                "operations.challenge-lifetime-seconds",
                operations.challenge_lifetime_seconds,
                10,
                600,
            ),
            (
                "operations.lifetime-seconds",
                operations.lifetime_seconds,
                60,
                2_592_000,
            ),
        ] {
            if !(low..=high).contains(&value) {
                return Err(self.refuse(key, format!("must be {low} to {high}, not {value}")));
            }
        }
        if sms.gateway == GatewayKind::Webhook && sms.webhook.is_none() {
            return Err(self.refuse("sms.webhook", "is needed where sms.gateway is webhook"));
        }
        if let Some(limits) = &config.limits {
            limits.check().map_err(|error| {
                self.refuse(
                    &format!("limits.{}", error.key),
                    format!("must be {}", error.allowed),
                )
            })?;
        }
        Ok(())
    }
}

/// The host of an origin, without brackets, and its port.
pub fn host_and_port(origin: &Origin) -> (String, u16) {
    let authority = origin.as_str().trim_start_matches("https://");
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().unwrap_or(443)),
        _ => (authority, 443),
    };
    (host.trim_matches(['[', ']']).to_owned(), port)
}

impl Sms {
    /// How long a code works.
    pub fn lifetime(&self) -> Duration {
        Duration::from_secs(self.lifetime_seconds)
    }

    /// Time between two codes.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.interval_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        state-directory = "/var/lib/opcert-account"
        origin = "https://pay.example:8443"
        listen = ["127.0.0.1:8443"]
        token = "pkcs11:token=service"
        "#;

    fn load_text(text: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("accountd.toml");
        crate::base::files::write_new(&path, text.as_bytes(), 0o600).unwrap();
        Config::load(&path)
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = load_text(GOOD).unwrap();
        assert_eq!(
            (config.quotas.computers, config.quotas.certificates),
            (10, 20)
        );
        assert_eq!((config.sms.tries, config.sms.daily), (3, 10));
        assert_eq!(config.limits().body_bytes, 5_242_880);
        assert_eq!(
            config.database().unwrap(),
            "sqlite:/var/lib/opcert-account/account.db"
        );
    }

    #[test]
    fn what_cannot_work_is_named() {
        for (text, code) in [
            (GOOD.replace("https:", "http:"), "config-value"),
            (GOOD.replace("/var/lib", "var/lib"), "config-value"),
            (format!("{GOOD}\n[sms]\ntries = 6"), "config-value"),
            (format!("{GOOD}\n[sms]\ncolour = 6"), "config-unknown-key"),
            (format!("colour = 1\n{GOOD}"), "config-unknown-key"),
            (format!("{GOOD}\n[sms"), "config-syntax"),
            (
                format!(
                    "{GOOD}\n[[module]]\nname = \"m\"\npath = \"/m\"\n\
                     [[module.token]]\nuri = \"pkcs11:token=a?pin-source=pinentry\""
                ),
                "config-value",
            ),
            (
                GOOD.replace("listen = [\"127.0.0.1:8443\"]", "listen = []"),
                "config-value",
            ),
        ] {
            assert_eq!(
                load_text(&text).unwrap_err().code().as_str(),
                code,
                "{text}"
            );
        }
        assert_eq!(
            Config::load(Path::new("/nonexistent/x"))
                .unwrap_err()
                .code()
                .as_str(),
            "config-unreadable"
        );
    }

    #[test]
    fn a_file_that_others_may_change_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("accountd.toml");
        crate::base::files::write_new(&path, GOOD.as_bytes(), 0o666).unwrap();
        let mut mode = std::fs::metadata(&path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o666);
        std::fs::set_permissions(&path, mode).unwrap();
        assert_eq!(
            Config::load(&path).unwrap_err().code().as_str(),
            "config-permissions"
        );
    }

    #[test]
    fn the_host_of_an_origin_has_no_brackets() {
        for (origin, host, port) in [
            ("https://[::1]:8443", "::1", 8443),
            ("https://[::1]", "::1", 443),
            ("https://pay.example", "pay.example", 443),
            ("https://127.0.0.1:8443", "127.0.0.1", 8443),
        ] {
            let found = host_and_port(&origin.parse().unwrap());
            assert_eq!(found, (host.to_owned(), port), "{origin}");
        }
    }
}
