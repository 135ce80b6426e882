//! The `worker` and `[[module]]` part of a configuration file: what may be said of a module and its
//! tokens.
//!
//! Nothing is opened or loaded here.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::hygiene;
use super::sandbox::Sandbox;
use crate::base::pkcs11::TokenUri;

/// Which PKCS#11 modules to use, and how.
#[derive(Debug, Clone, Default, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The worker executable. Default: `opcert-worker` beside the running executable, or in its
    /// directory of `libexec`.
    pub worker: Option<PathBuf>,
    /// The modules, each token of theirs in a worker of its own.
    #[serde(default)]
    pub module: Vec<ModuleConfig>,
}

/// One PKCS#11 library.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ModuleConfig {
    /// How logs, statuses and `TokenId` name it.
    pub name: String,
    /// The shared object.
    pub path: PathBuf,
    /// The environment of its worker; nothing else is inherited.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// What the library's `C_Initialize` is given in `LibraryParameters`, the field that NSS puts
    /// before `pReserved`: `configdir='sql:/var/lib/opcert/nss' flags=` for its softokn. Libraries
    /// of other vendors have no such field.
    #[serde(default)]
    pub init_args: Option<String>,
    /// Signing threads, each with a session of its own; 1 to 64. Default: the number of cores.
    /// A smart card does one thing at a time: give it 1.
    #[serde(default)]
    pub threads: Option<u16>,
    /// How long a signature, a login or a list may take, in seconds; past it the worker is
    /// replaced. Default: 10.
    #[serde(
        default = "default_call_timeout",
        rename = "call-timeout-seconds",
        deserialize_with = "seconds",
        serialize_with = "in_seconds"
    )]
    #[schemars(with = "f64")]
    pub call_timeout: Duration,
    /// How long generating a key may take, in seconds. Default: 120.
    #[serde(
        default = "default_generate_timeout",
        rename = "generate-timeout-seconds",
        deserialize_with = "seconds",
        serialize_with = "in_seconds"
    )]
    #[schemars(with = "f64")]
    pub generate_timeout: Duration,
    /// Whether its tokens share one worker. Otherwise each has a worker of its own, so that one
    /// that waits for a person, or hangs, holds up no other whatever locks the library holds. For
    /// libraries that are not to be loaded twice, and for many tokens that nobody waits for.
    /// Default: false.
    #[serde(default)]
    pub share_worker: bool,
    /// What the library may reach; see docs/devices.md. Default: the profile that is known to fit
    /// the library by its file's name, `none` where none is.
    #[serde(default)]
    pub sandbox: Option<Sandbox>,
    /// What it may read beyond that: absolute paths, directories with all that is below. Paths in
    /// `environment` need not be repeated.
    #[serde(default)]
    pub readable: Vec<PathBuf>,
    /// What it may read and write beyond that.
    #[serde(default)]
    pub writable: Vec<PathBuf>,
    /// Whether the library is asked to tell of tokens that come and leave (`C_WaitForSlotEvent`),
    /// where it can; otherwise its slots are looked at every second. Default: true.
    #[serde(default = "default_slot_events")]
    pub slot_events: bool,
    /// What is let pass for this module although it is refused by default.
    #[serde(default)]
    pub allow: Vec<Allowance>,
    /// The tokens to use; others are ignored.
    #[serde(default)]
    pub token: Vec<TokenConfig>,
}

/// Something that is refused by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Allowance {
    /// A module that forwards to others: p11-kit's proxy and client, OpenSC's spy.
    Forwarder,
    /// A library, or a directory on the way to it, that others can write to.
    WritablePath,
    /// Environment variables that have libraries log what they are given, PINs included.
    Debug,
}

/// One token.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TokenConfig {
    /// Which; must select exactly one.
    #[serde(deserialize_with = "token_uri")]
    #[schemars(with = "String")]
    pub uri: TokenUri,
    /// Where its PIN comes from: `credential:NAME`, `file:PATH`, or `pinentry`, which asks the person
    /// once when the PIN is needed. Before it counts the `pin-source` of the URI (RFC 7512). Absent:
    /// a person unlocks it.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub pin_source: Option<PinSource>,
    /// Whether it waits for a touch before it signs, which PKCS#11 does not tell; people are then
    /// told to touch it.
    #[serde(default)]
    pub touch: bool,
    /// How long it stays logged in: `session`, from its PIN on, or `per-operation`, for each
    /// operation of a private key and no longer, so that other programs find it logged out; the
    /// PIN that worked is kept in memory, and each login costs two writes to the disk. Default:
    /// `session`.
    #[serde(default)]
    pub login: LoginPolicy,
    /// How often a token that nobody uses is asked for something, in seconds, so that neither its
    /// sessions nor the connection to it end for want of use. Default: never.
    #[serde(
        default,
        rename = "keepalive-seconds",
        deserialize_with = "some_seconds",
        serialize_with = "in_some_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<f64>")]
    pub keepalive: Option<Duration>,
    /// After how long without a request it is released to other programs, as `opcert token release`
    /// does it, in seconds; the next request takes it up again, with the PIN that worked. Default:
    /// never.
    #[serde(
        default,
        rename = "idle-release-seconds",
        deserialize_with = "some_seconds",
        serialize_with = "in_some_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<f64>")]
    pub idle_release: Option<Duration>,
    /// What its module is known to misreport of the keys it generates, although they are as they
    /// must be: `local`, `sensitive`, `always-sensitive`, `never-extractable`. A key is then taken
    /// without this proof, and the certification request and the records of its enrolment say so.
    /// None by default.
    #[serde(default)]
    pub waive: Vec<Waiver>,
    /// Whose word is taken, and needed, that a key was made in the device. Absent: nobody's.
    #[serde(default)]
    pub attestation: Option<AttestationConfig>,
}

/// Key attestation; see docs/devices.md.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AttestationConfig {
    /// The makers' authorities: PEM files with one certificate or more.
    pub authorities: Vec<PathBuf>,
    /// Whether a key without an attestation is refused an enrolment.
    #[serde(default)]
    pub required: bool,
}

/// An attribute that a key need not prove.
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
pub enum Waiver {
    /// `CKA_LOCAL`: that it was made on the token.
    Local,
    /// `CKA_SENSITIVE`: that it cannot be read.
    Sensitive,
    /// `CKA_ALWAYS_SENSITIVE`: that it never could be.
    AlwaysSensitive,
    /// `CKA_NEVER_EXTRACTABLE`: that it never could be taken off the token.
    NeverExtractable,
}

impl Waiver {
    /// The attribute.
    pub fn attribute(self) -> &'static str {
        match self {
            Self::Local => "CKA_LOCAL",
            Self::Sensitive => "CKA_SENSITIVE",
            Self::AlwaysSensitive => "CKA_ALWAYS_SENSITIVE",
            Self::NeverExtractable => "CKA_NEVER_EXTRACTABLE",
        }
    }

    /// What a certification request says of them; `None` for none.
    pub fn note(waived: &[Self]) -> Option<String> {
        let attributes: Vec<&str> = waived.iter().map(|waiver| waiver.attribute()).collect();
        (!attributes.is_empty()).then(|| {
            format!(
                "opcert: the token did not prove {}, which its configuration waives",
                attributes.join(", ")
            )
        })
    }
}

/// How long a token stays logged in.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum LoginPolicy {
    /// From its PIN on.
    #[default]
    Session,
    /// For each operation of a private key, and no longer.
    PerOperation,
}

/// Where a PIN comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinSource {
    /// `file:PATH`: a file of root or of the user we run as, closed to everybody else.
    File(PathBuf),
    /// `credential:NAME`: a systemd credential, `$CREDENTIALS_DIRECTORY/NAME`.
    Credential(String),
    /// `pinentry`: the person is asked for it when it is needed.
    Pinentry,
}

/// A PIN source of no known kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a PIN source is \"file:/absolute/path\", \"credential:NAME\" or \"pinentry\"")]
pub struct InvalidPinSource;

impl FromStr for PinSource {
    type Err = InvalidPinSource;

    fn from_str(text: &str) -> Result<Self, InvalidPinSource> {
        if text == "pinentry" {
            return Ok(Self::Pinentry);
        }
        if let Some(path) = text.strip_prefix("file:") {
            let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
            return if path.is_absolute() {
                Ok(Self::File(path))
            } else {
                Err(InvalidPinSource)
            };
        }
        match text.strip_prefix("credential:") {
            Some(name) if !name.is_empty() && !name.contains('/') && !name.starts_with('.') => {
                Ok(Self::Credential(name.into()))
            }
            _ => Err(InvalidPinSource),
        }
    }
}

impl<'de> Deserialize<'de> for PinSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A URI whose `pin-source`, if it has one, is of a kind that is known.
fn token_uri<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TokenUri, D::Error> {
    let uri = TokenUri::deserialize(deserializer)?;
    if let Some(source) = &uri.pin_source {
        source
            .parse::<PinSource>()
            .map_err(|error| serde::de::Error::custom(format!("pin-source in {uri}: {error}")))?;
    }
    Ok(uri)
}

impl TokenConfig {
    /// Where its PIN comes from: by the key, else by the URI.
    pub fn source(&self) -> Option<PinSource> {
        let of_uri = || self.uri.pin_source.as_ref()?.parse().ok();
        self.pin_source.clone().or_else(of_uri)
    }
}

fn default_call_timeout() -> Duration {
    Duration::from_secs(10)
}

fn default_slot_events() -> bool {
    true
}

fn default_generate_timeout() -> Duration {
    Duration::from_secs(120)
}

/// 0.1 to 3600 seconds.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if (0.1..=3600.0).contains(&value) {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(serde::de::Error::custom("must be 0.1 to 3600 seconds"))
    }
}

fn some_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    seconds(deserializer).map(Some)
}

fn in_some_seconds<S: Serializer>(
    value: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => in_seconds(value, serializer),
        None => serializer.serialize_none(),
    }
}

fn in_seconds<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(value.as_secs_f64())
}

impl std::fmt::Display for PinSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Credential(name) => write!(f, "credential:{name}"),
            Self::Pinentry => f.write_str("pinentry"),
        }
    }
}

impl Serialize for PinSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl ModuleConfig {
    /// One for each worker: for each token, or all in one where tokens share it.
    pub(super) fn parts(self) -> impl Iterator<Item = Self> {
        let tokens = match self.share_worker || self.token.len() < 2 {
            true => vec![self.token.clone()],
            false => self
                .token
                .iter()
                .cloned()
                .map(|token| vec![token])
                .collect(),
        };
        tokens.into_iter().map(move |token| Self {
            token,
            ..self.clone()
        })
    }

    /// Whether it has a token with the URI of one of `tokens`.
    pub(super) fn shares(&self, tokens: &[TokenConfig]) -> bool {
        let mut own = self.token.iter();
        own.any(|own| tokens.iter().any(|token| token.uri == own.uri))
    }

    /// Whether the module may be loaded: who else could replace its file, what it is, what its
    /// environment has it write down. The reason is for people. A file that is missing is no error.
    pub fn check(&self) -> Result<(), String> {
        hygiene::check(self)
    }

    /// What is said of the token with this URI.
    pub(super) fn token_of(&self, uri: &TokenUri) -> Option<&TokenConfig> {
        self.token.iter().find(|config| config.uri == *uri)
    }

    /// How many signing threads to run.
    pub(super) fn thread_count(&self) -> u16 {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let wanted = self.threads.map_or(cores, usize::from);
        u16::try_from(wanted.clamp(1, 64)).unwrap_or(64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_read_with_its_defaults() {
        let config: Config = toml::from_str(
            r#"
            [[module]]
            name = "softhsm"
            path = "/usr/lib/softhsm/libsofthsm2.so"
            environment = { SOFTHSM2_CONF = "/etc/opcert/softhsm2.conf" }
            [[module.token]]
            uri = "pkcs11:token=opcert-demo"
            pin-source = "file:/etc/opcert/pin"
            [[module.token]]
            uri = "pkcs11:token=shared"
            login = "per-operation"
            keepalive-seconds = 20
            "#,
        )
        .unwrap();
        let module = &config.module[0];
        assert_eq!(module.call_timeout, Duration::from_secs(10));
        assert_eq!(module.generate_timeout, Duration::from_secs(120));
        assert!(module.thread_count() >= 1);
        assert_eq!(
            module.token[0].pin_source,
            Some(PinSource::File("/etc/opcert/pin".into()))
        );
        assert_eq!(module.token[0].login, LoginPolicy::Session);
        assert_eq!(module.token[1].login, LoginPolicy::PerOperation);
        assert_eq!(module.token[0].keepalive, None);
        assert_eq!(module.token[1].keepalive, Some(Duration::from_secs(20)));
    }

    #[test]
    fn the_uri_may_say_where_the_pin_is() {
        let token = |text: &str| toml::from_str::<TokenConfig>(text);
        let source = |text: &str| token(text).unwrap().source();
        let file = || Some(PinSource::File("/etc/a pin".into()));
        let uri = "uri = \"pkcs11:token=a?pin-source=file:/etc/a%20pin\"";
        assert_eq!(source(uri), file());
        let uri_of_three = "uri = \"pkcs11:token=a?pin-source=file:///etc/a%20pin\"";
        assert_eq!(source(uri_of_three), file());
        let both = format!("{uri}\npin-source = \"pinentry\"");
        assert_eq!(source(&both), Some(PinSource::Pinentry));
        assert_eq!(source("uri = \"pkcs11:token=a\""), None);
        for bad in ["|/bin/cat", "file:pin", "file://host/pin", "1234"] {
            let text = format!("uri = \"pkcs11:token=a?pin-source={bad}\"");
            assert!(token(&text).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_keys_and_odd_values_are_refused() {
        for bad in [
            "colour = 1",
            "[[module]]\nname = \"a\"\npath = \"b\"\ncall-timeout-seconds = 0",
            "[[module]]\nname = \"a\"\npath = \"b\"\npin = \"1234\"",
            "[[module]]\nname = \"a\"\npath = \"b\"\n[[module.token]]\nuri = \"pkcs11:\"\nwaive = [\"extractable\"]",
        ] {
            assert!(toml::from_str::<Config>(bad).is_err(), "{bad}");
        }
        for bad in [
            "1234",
            "file:pin",
            "credential:../x",
            "credential:",
            "env:PIN",
        ] {
            assert_eq!(bad.parse::<PinSource>(), Err(InvalidPinSource), "{bad}");
        }
    }

    #[test]
    fn a_credential_goes_by_a_name_and_never_by_a_path() {
        let source = |text: &str| text.parse::<PinSource>();
        for text in [
            "credential:pin",
            "credential:token.pin-1",
            "file:/run/pin",
            "pinentry",
        ] {
            assert_eq!(source(text).unwrap().to_string(), text);
        }
        for bad in [
            "credential:",
            "credential:.",
            "credential:..",
            "credential:.pin",
            "credential:a/b",
            "credential:../pin",
            "file:pin",
            "file:",
            "pin",
        ] {
            assert!(source(bad).is_err(), "{bad}");
        }
    }
}
