//! The values in force, and where each was set.
//!
//! Nothing is read here: it is given what was read.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use super::dotted;
use super::layers::{Layers, Step};

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// Dotted, as in `native.addresses` and `module[0].path`.
    pub key: String,
    /// Its value; null where the key is not set and has no default.
    pub value: Value,
    /// Who set it.
    #[serde(flatten)]
    pub source: Source,
}

/// Who set a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum Source {
    /// Nobody: it is built in.
    Default,
    /// A line of a file.
    File {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
    },
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line } => write!(f, "{}:{line}", file.display()),
        }
    }
}

pub(super) fn effective<T: Serialize>(
    config: &T,
    layers: &Layers,
) -> Result<Vec<Effective>, serde_json::Error> {
    let mut found = Vec::new();
    collect(
        serde_json::to_value(config)?,
        &mut Vec::new(),
        layers,
        &mut found,
    );
    Ok(found)
}

fn collect(value: Value, steps: &mut Vec<Step>, layers: &Layers, found: &mut Vec<Effective>) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                steps.push(Step::Key(key));
                collect(value, steps, layers, found);
                steps.pop();
            }
        }
        Value::Array(entries) if !entries.is_empty() && entries.iter().all(Value::is_object) => {
            for (index, entry) in entries.into_iter().enumerate() {
                steps.push(Step::Index(index));
                collect(entry, steps, layers, found);
                steps.pop();
            }
        }
        value => found.push(Effective {
            key: dotted(steps),
            value,
            source: layers
                .set_at(steps)
                .map_or(Source::Default, |place| Source::File {
                    file: place.file.to_path_buf(),
                    line: place.line,
                }),
        }),
    }
}
