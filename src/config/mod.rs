//! Configuration files: find, check who could have changed them, parse, compose.
//!
//! Each part of a program owns its own `Config` and says there what its keys mean; this module
//! reads a whole file into such a type and says, where it cannot, which line and which key is
//! wrong. A file decides what a daemon trusts, so one that others can write is refused, and one
//! that others can read is too: it names modules, paths and PIN files.
//!
//! Keys are kebab-case. Unknown keys are refused: a misspelt limit would otherwise be no limit.

pub mod daemon;
pub mod policy;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::api::problem::{Code, Problem};
use crate::base::files::{self, FileError, Readers};
use crate::policy::PolicyErrors;

/// The largest file that is read, in bytes.
const LIMIT: u64 = 1024 * 1024;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("{source}{}", cause(source))]
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

fn cause(error: &FileError) -> String {
    std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"))
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

/// A file that was read and parsed.
#[derive(Debug)]
pub struct Loaded<T> {
    /// What it says.
    pub config: T,
    path: PathBuf,
    text: String,
}

/// Reads and parses `path`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Loaded<T>, ConfigError> {
    let bytes = files::read_checked(path, Readers::Group, LIMIT)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        ConfigError::Syntax {
            path: path.to_owned(),
            line: 1 + valid.iter().filter(|byte| **byte == b'\n').count(),
            problem: "the file is not UTF-8".into(),
        }
    })?;
    parse(path, text)
}

fn parse<T: DeserializeOwned>(path: &Path, text: String) -> Result<Loaded<T>, ConfigError> {
    if let Err(error) = text.parse::<toml::Table>() {
        return Err(ConfigError::Syntax {
            path: path.to_owned(),
            line: line(&text, &error),
            problem: one_line(error.message()),
        });
    }
    match toml::from_str(&text) {
        Ok(config) => Ok(Loaded {
            config,
            path: path.to_owned(),
            text,
        }),
        Err(error) => {
            let line = line(&text, &error);
            let problem = one_line(error.message());
            let path = path.to_owned();
            Err(if problem.starts_with("unknown field") {
                ConfigError::UnknownKey {
                    path,
                    line,
                    problem: problem.replacen("unknown field", "unknown key", 1),
                }
            } else {
                ConfigError::Value {
                    key: key_at(&text, line),
                    path,
                    line,
                    problem,
                }
            })
        }
    }
}

impl<T> Loaded<T> {
    /// An error about the value of `key`, for checks that parsing cannot do. `key` is dotted, as
    /// in `native.addresses`; the line is looked up by its last part.
    pub fn refuse(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let last = key.rsplit('.').next().unwrap_or(key);
        let position = self
            .text
            .lines()
            .position(|line| key_of(line) == Some(last));
        ConfigError::Value {
            path: self.path.clone(),
            line: position.map_or(1, |index| index + 1),
            key: key.to_owned(),
            problem: problem.into(),
        }
    }
}

fn line(text: &str, error: &toml::de::Error) -> usize {
    let start = error.span().map_or(0, |span| span.start);
    let before = text.as_bytes().get(..start).unwrap_or_default();
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join("; ")
}

fn key_of(line: &str) -> Option<&str> {
    line.split_once('=').map(|(key, _)| key.trim())
}

/// The key or table header on a line.
fn key_at(text: &str, line: usize) -> String {
    let line = text.lines().nth(line.saturating_sub(1)).unwrap_or("");
    match key_of(line) {
        Some(key) => key.to_owned(),
        None if line.trim_start().starts_with('[') => line.trim().to_owned(),
        None => "top level".to_owned(),
    }
}
