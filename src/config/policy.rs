//! The `[policy]` table and the directory of site rules it names.
//!
//! What a rule means is for [`policy`](crate::policy) to say.

use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::base::files::{self, FileError, Readers};
use crate::policy::{Defaults, Limit, PolicySet, Settings, Source};

/// The largest file of rules, in bytes.
const FILE_LIMIT: u64 = 256 * 1024;

/// Most files in the directory.
const MOST_FILES: usize = 256;

/// The `[policy]` table.
#[derive(Debug, Clone, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Directory of site rules, `*.cedar`. None by default.
    pub directory: Option<PathBuf>,
    /// Whether the shipped rules are in force beside them. Default true.
    pub defaults: bool,
    /// Where days begin and whose hours rules see, an IANA name such as `Asia/Shanghai`. Default:
    /// the computer's.
    pub time_zone: Option<String>,
    /// Limits of how often and how much.
    pub limit: Vec<Limit>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            directory: None,
            defaults: true,
            time_zone: None,
            limit: Vec::new(),
        }
    }
}

/// A key of the table with a value that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadValue {
    pub key: &'static str,
    pub problem: String,
}

impl Config {
    /// Checks what needs no file.
    pub(super) fn check(&self) -> Result<(), BadValue> {
        Limit::check(&self.limit).map_err(|(name, error)| BadValue {
            key: "policy.limit.name",
            problem: format!("limit {name:?}: {error}"),
        })?;
        self.zone().map(|_| ()).map_err(|problem| BadValue {
            key: "policy.time-zone",
            problem,
        })?;
        match &self.directory {
            Some(path) if !path.is_absolute() => Err(BadValue {
                key: "policy.directory",
                problem: "must be an absolute path".into(),
            }),
            _ => Ok(()),
        }
    }

    fn zone(&self) -> Result<TimeZone, String> {
        match &self.time_zone {
            None => Ok(TimeZone::system()),
            Some(name) => TimeZone::get(name).map_err(|error| error.to_string()),
        }
    }

    /// Reads the rules and checks the whole set.
    pub fn load(&self) -> Result<PolicySet, ConfigError> {
        let site = match &self.directory {
            Some(directory) => read(directory)?,
            None => Vec::new(),
        };
        let settings = Settings {
            defaults: if self.defaults {
                Defaults::Include
            } else {
                Defaults::Omit
            },
            limits: self.limit.clone(),
            time_zone: self.zone().unwrap_or(TimeZone::UTC),
        };
        PolicySet::load(&site, settings).map_err(|source| ConfigError::Policy { source })
    }
}

/// The rules of a directory: its `*.cedar` files, by name. Only the owner may be able to change
/// them, or the directory; anybody may read them.
pub fn read(directory: &Path) -> Result<Vec<Source>, ConfigError> {
    files::check_directory(directory)?;
    let unreadable = |source| FileError::Unreadable {
        path: directory.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden
            && path
                .extension()
                .is_some_and(|extension| extension == "cedar")
        {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.len() > MOST_FILES {
        return Err(unreadable(std::io::Error::other(format!(
            "it has more than {MOST_FILES} files of rules"
        )))
        .into());
    }
    paths.iter().map(|path| read_file(path)).collect()
}

/// One file of rules, under the name of its file.
pub fn read_file(path: &Path) -> Result<Source, ConfigError> {
    let bytes = files::read_checked(path, Readers::Anybody, FILE_LIMIT)?;
    let text = String::from_utf8(bytes).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count(),
        problem: "the file is not UTF-8".into(),
    })?;
    Ok(Source {
        name: path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            files::write_atomic(&directory.path().join(name), text.as_bytes(), 0o644).unwrap();
        }
        directory
    }

    #[test]
    fn rules_are_read_by_name_and_other_files_are_not() {
        let directory = directory(&[
            ("b.cedar", "//b"),
            ("a.cedar", "//a"),
            ("x.txt", "no"),
            (".c.cedar", "no"),
        ]);
        let names: Vec<String> = read(directory.path())
            .unwrap()
            .into_iter()
            .map(|source| source.name)
            .collect();
        assert_eq!(names, ["a.cedar", "b.cedar"]);
    }

    #[test]
    fn rules_that_others_can_change_are_refused() {
        let directory = directory(&[("a.cedar", "//a")]);
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&directory.path().join("a.cedar"), 0o666);
        assert!(matches!(
            read(directory.path()),
            Err(ConfigError::Permissions { .. })
        ));
        mode(&directory.path().join("a.cedar"), 0o644);
        mode(directory.path(), 0o777);
        assert!(matches!(
            read(directory.path()),
            Err(ConfigError::Permissions { .. })
        ));
    }

    #[test]
    fn the_table_is_checked() {
        let config = |text: &str| toml::from_str::<Config>(text).unwrap();
        assert!(config("").load().unwrap().rule("ask-a-person").is_some());
        assert!(
            config("defaults = false")
                .load()
                .unwrap()
                .rule("ask-a-person")
                .is_none()
        );
        for (text, key) in [
            ("time-zone = \"Mars/Olympus\"", "policy.time-zone"),
            ("directory = \"policy\"", "policy.directory"),
            ("[[limit]]\nname = \"x\"", "policy.limit.name"),
        ] {
            assert_eq!(config(text).check().unwrap_err().key, key);
        }
        assert!(toml::from_str::<Config>("defualts = true").is_err());
    }
}
