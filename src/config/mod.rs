//! Configuration files: find, check who could have changed them, parse, compose.
//!
//! Each part of a program owns its own `Config` and says there what its keys mean; this module
//! reads a whole file into such a type and says, where it cannot, which line and which key is
//! wrong. A file decides what a daemon trusts, so one that others can write is refused, and one
//! that others can read is too: it names modules, paths and PIN files.
//!
//! Keys are kebab-case. Unknown keys are refused: a misspelt limit would otherwise be no limit.
//!
//! A configuration may be several files, laid over each other ([`layers`]); `opcert config show`
//! says which one a value comes from ([`show`]), and the reference page is written from the types
//! ([`mod@reference`]).
//!
//! What never lives here: what a key means, and anything that writes a file.

pub mod daemon;
pub mod layers;
pub mod places;
pub mod policy;
pub mod reference;
pub mod show;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::Value;

use self::layers::{Layers, Step};
use self::show::Effective;
use crate::api::problem::{Code, Problem};
use crate::base::files::FileError;
use crate::policy::PolicyErrors;

/// The largest file that is read, in bytes.
const LIMIT: u64 = 1024 * 1024;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{}", with_cause(source))]
    Unreadable {
        /// Why.
        source: FileError,
    },
    /// Others could read or change it.
    #[error("{source}")]
    Permissions {
        /// What is wrong.
        source: FileError,
    },
    /// It is not TOML.
    #[error("{}:{line}: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A key that no part knows.
    #[error("{}:{line}: {problem}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Which key, and which are known.
        problem: String,
    },
    /// A value that is missing, of a wrong type, or not allowed.
    #[error("{}:{line}: {key}: {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// From 1; where the table begins if a key is missing.
        line: usize,
        /// The key, as far as it is known.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// Policy rules that are not sound.
    #[error("the policy rules are not sound: {source}")]
    Policy {
        /// Each fault, with its file and line.
        source: PolicyErrors,
    },
}

/// With the operating system's words, and without the number that the standard library adds.
fn with_cause(error: &FileError) -> String {
    let Some(cause) = std::error::Error::source(error).map(ToString::to_string) else {
        return error.to_string();
    };
    let words = cause.split(" (os error ").next().unwrap_or_default();
    format!("{error}: {words}")
}

impl ConfigError {
    /// The stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::Unreadable { .. } => Code::ConfigUnreadable,
            Self::Permissions { .. } => Code::ConfigPermissions,
            Self::Syntax { .. } => Code::ConfigSyntax,
            Self::UnknownKey { .. } => Code::ConfigUnknownKey,
            Self::Value { .. } => Code::ConfigValue,
            Self::Policy { .. } => Code::PolicyInvalid,
        }
    }
}

impl From<FileError> for ConfigError {
    fn from(source: FileError) -> Self {
        match source {
            FileError::Permissions { .. } => Self::Permissions { source },
            FileError::Unreadable { .. }
            | FileError::TooLarge { .. }
            | FileError::Unwritable { .. } => Self::Unreadable { source },
        }
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Files that were read and parsed.
#[derive(Debug)]
pub struct Loaded<T> {
    /// What they say.
    pub config: T,
    layers: Layers,
}

/// Reads and parses `path`, and what is laid over it: see [`layers`].
pub fn load<T: DeserializeOwned + Serialize>(path: &Path) -> Result<Loaded<T>, ConfigError> {
    let layers = Layers::read(path)?;
    match serde_path_to_error::deserialize(over_defaults::<T>(layers.value())) {
        Ok(config) => Ok(Loaded { config, layers }),
        Err(error) => Err(refusal(&layers, &error)),
    }
}

/// The values laid over those of an empty file, so that a table that is set in part keeps its own
/// defaults in the rest. Where the file must set something there is no empty one.
fn over_defaults<T: DeserializeOwned + Serialize>(values: Value) -> Value {
    let empty = T::deserialize(Value::Table(toml::Table::new())).ok();
    match empty.and_then(|defaults| Value::try_from(defaults).ok()) {
        Some(mut below) => {
            lay(&mut below, values);
            below
        }
        None => values,
    }
}

fn lay(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Table(below), Value::Table(above)) => {
            for (key, value) in above {
                match below.get_mut(&key) {
                    Some(known) => lay(known, value),
                    None => {
                        below.insert(key, value);
                    }
                }
            }
        }
        (below, above) => *below = above,
    }
}

/// The error of a value that does not fit its type.
fn refusal(layers: &Layers, error: &serde_path_to_error::Error<toml::de::Error>) -> ConfigError {
    let mut steps: Vec<Step> = error
        .path()
        .iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect();
    let problem = one_line(error.inner().message());
    if let Some(rest) = problem.strip_prefix("unknown field ") {
        let unknown = rest.split('`').nth(1).unwrap_or_default();
        if !matches!(steps.last(), Some(Step::Key(key)) if key == unknown) {
            steps.push(Step::Key(unknown.to_owned()));
        }
        let place = layers.nearest(&steps);
        return ConfigError::UnknownKey {
            path: place.file.to_path_buf(),
            line: place.line,
            problem: format!("unknown key {rest}"),
        };
    }
    let place = layers.nearest(&steps);
    ConfigError::Value {
        path: place.file.to_path_buf(),
        line: place.line,
        key: if steps.is_empty() {
            "top level".into()
        } else {
            dotted(&steps)
        },
        problem,
    }
}

impl<T> Loaded<T> {
    /// An error about the value of `key`, for checks that parsing cannot do. `key` is dotted, as
    /// in `native.addresses`.
    pub fn refuse(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let steps: Vec<_> = key.split('.').map(|key| Step::Key(key.into())).collect();
        let place = self.layers.nearest(&steps);
        ConfigError::Value {
            path: place.file.to_path_buf(),
            line: place.line,
            key: key.to_owned(),
            problem: problem.into(),
        }
    }

    /// The files that were read, the main one first.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.layers.files.iter().map(AsRef::as_ref)
    }
}

impl<T: Serialize> Loaded<T> {
    /// Every key with the value in force and where that comes from.
    pub fn effective(&self) -> Result<Vec<Effective>, serde_json::Error> {
        show::effective(&self.config, &self.layers)
    }
}

fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join("; ")
}

/// `native.addresses`, `module[0].path`.
fn dotted(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}
