//! Where the browsers of a user keep what they trust, and where we keep our own.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::nss::Database;
use crate::base::files::{self, FileError};
use crate::base::ids::ClientName;
use crate::cli::error::Error;
use crate::cli::input::read_file;

/// The preference by which Firefox presents a client certificate without a question.
const PREFERENCE: &str = "user_pref(\"security.default_personal_cert\", \"Select Automatically\");";

/// Stands around what we put into a profile's `user.js`.
const BEGIN: &str = "// opcert: begin (written by `opcert browser setup`)";
const END: &str = "// opcert: end";

const PREFERENCES_LIMIT: u64 = 16 * 1024 * 1024;

/// The places of one user.
#[derive(Debug)]
pub(super) struct Places {
    home: PathBuf,
    configuration: PathBuf,
    data: PathBuf,
    /// Our own directory.
    pub(super) directory: PathBuf,
}

impl Places {
    /// Of the user who runs this, by `HOME` and the variables of the XDG base directories.
    pub(super) fn of_user() -> Result<Self, Error> {
        let variable = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let home = variable("HOME").ok_or_else(|| Error::Usage {
            what: "HOME names no directory".into(),
            action: "Run the command as the user whose browsers they are.".into(),
        })?;
        let configuration = variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        let data = variable("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share"));
        Ok(Self {
            directory: configuration.join("opcert/browser"),
            home,
            configuration,
            data,
        })
    }

    /// A file of our own.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// What was put where.
    pub(super) fn installed(&self) -> PathBuf {
        self.file("installed.json")
    }

    /// Makes our own directory, closed to others.
    pub(super) fn make_directory(&self) -> Result<(), Error> {
        let unwritable = |source| FileError::Unwritable {
            path: self.directory.clone(),
            source,
        };
        std::fs::create_dir_all(&self.directory).map_err(unwritable)?;
        std::fs::set_permissions(&self.directory, std::fs::Permissions::from_mode(0o700))
            .map_err(unwritable)?;
        Ok(())
    }

    /// What the browsers are registered as: named after the home directory.
    pub(super) fn client_name(&self) -> Result<ClientName, Error> {
        let user = self
            .home
            .file_name()
            .map(|name| name.to_string_lossy().to_lowercase())
            .unwrap_or_default();
        let clean: String = user
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(48)
            .collect();
        let name = format!("browser-{}", clean.trim_matches('-'));
        name.trim_end_matches('-')
            .parse()
            .map_err(|_| Error::Usage {
                what: format!("{name} is no name for a client"),
                action: "Give one with --name.".into(),
            })
    }

    /// The NSS databases of this user's browsers. That of Chromium is made where there is none.
    pub(super) fn databases(&self) -> Result<Vec<Database>, Error> {
        let mut databases = vec![Database {
            what: "Chromium".into(),
            ..Database::at(&self.chromium())
        }];
        let snap = self.home.join("snap/chromium/current");
        if snap.exists() {
            databases.push(Database {
                what: "Chromium (snap)".into(),
                ..Database::at(&snap.join(".pki/nssdb"))
            });
        }
        for folder in [
            self.home.join(".mozilla/firefox"),
            self.configuration.join("mozilla/firefox"),
            self.home.join("snap/firefox/common/.mozilla/firefox"),
        ] {
            for profile in profiles(&folder)? {
                databases.push(Database {
                    what: format!("Firefox ({})", profile.display()),
                    profile: Some(profile.clone()),
                    directory: profile,
                });
            }
        }
        Ok(databases)
    }

    /// Chromium and Chrome share one. They moved it in version 146, and keep to the old place where
    /// it exists.
    fn chromium(&self) -> PathBuf {
        let old = self.home.join(".pki/nssdb");
        if old.exists() {
            old
        } else {
            self.data.join("pki/nssdb")
        }
    }

    /// Where Chromium and Chrome look for the manifest of a host.
    pub(super) fn manifests(&self) -> Vec<PathBuf> {
        let file = format!("NativeMessagingHosts/{}.json", super::native_host::HOST);
        let mut manifests = vec![self.configuration.join("chromium").join(&file)];
        for other in ["google-chrome", "microsoft-edge"] {
            let folder = self.configuration.join(other);
            if folder.exists() {
                manifests.push(folder.join(&file));
            }
        }
        manifests
    }
}

/// The profiles that `profiles.ini` of this folder lists.
fn profiles(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = folder.join("profiles.ini");
    if !list.exists() {
        return Ok(Vec::new());
    }
    let bytes = read_file(&list, PREFERENCES_LIMIT)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Path="))
        // An absolute path takes the place of the folder.
        .map(|path| folder.join(path))
        .filter(|profile| profile.is_dir())
        .collect())
}

/// Has Firefox present the certificate without a question.
pub(super) fn present_automatically(profile: &Path) -> Result<(), Error> {
    let path = profile.join("user.js");
    let mut text = without_ours(&read_text(&path)?);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("{BEGIN}\n{PREFERENCE}\n{END}\n"));
    Ok(files::write_atomic(&path, text.as_bytes(), 0o600)?)
}

/// Undoes [`present_automatically`]. Firefox has copied the preference to its own file, which can be
/// changed only while it does not run: false if it does.
pub(super) fn present_as_before(profile: &Path) -> Result<bool, Error> {
    if !profile.is_dir() {
        return Ok(true);
    }
    let path = profile.join("user.js");
    let text = read_text(&path)?;
    let rest = without_ours(&text);
    if rest.is_empty() {
        delete(&path)?;
    } else if rest != text {
        files::write_atomic(&path, rest.as_bytes(), 0o600)?;
    }
    let path = profile.join("prefs.js");
    let text = read_text(&path)?;
    if !text.lines().any(|line| line.trim() == PREFERENCE) {
        return Ok(true);
    }
    if runs(profile) {
        return Ok(false);
    }
    let rest: String = text
        .split_inclusive('\n')
        .filter(|line| line.trim() != PREFERENCE)
        .collect();
    files::write_atomic(&path, rest.as_bytes(), 0o600)?;
    Ok(true)
}

/// Firefox keeps a symbolic link `lock` to its address and process id.
fn runs(profile: &Path) -> bool {
    let Ok(target) = std::fs::read_link(profile.join("lock")) else {
        return false;
    };
    let target = target.to_string_lossy().into_owned();
    target
        .rsplit_once('+')
        .is_some_and(|(_, pid)| Path::new("/proc").join(pid).exists())
}

fn without_ours(text: &str) -> String {
    let mut inside = false;
    text.split_inclusive('\n')
        .filter(|line| {
            let line = line.trim_end();
            inside |= line == BEGIN;
            let keep = !inside;
            inside &= line != END;
            keep
        })
        .collect()
}

fn read_text(path: &Path) -> Result<String, Error> {
    if !path.exists() {
        return Ok(String::new());
    }
    let bytes = read_file(path, PREFERENCES_LIMIT)?;
    String::from_utf8(bytes).map_err(|_| Error::Input {
        what: format!("{} is no text", path.display()),
        action: "Look at it: a program has damaged it.".into(),
    })
}

/// Writes a file that others may read, in a directory that is made for it.
pub(super) fn write_public(path: &Path, text: &[u8], mode: u32) -> Result<(), Error> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| FileError::Unwritable {
            path: folder.to_owned(),
            source,
        })?;
    }
    Ok(files::write_atomic(path, text, mode)?)
}

/// Deletes a file, which may be gone.
pub(super) fn delete(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::Unwritable {
            path: path.to_owned(),
            source: error,
        }
        .into()),
        _ => Ok(()),
    }
}

/// A path as one word of a shell.
pub(super) fn quoted(path: &Path) -> Result<String, Error> {
    let text = path.to_str().ok_or_else(|| Error::Input {
        what: format!("{} is not text", path.display()),
        action: "Use a path of UTF-8 characters.".into(),
    })?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_come_and_go_and_leave_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let profile = directory.path();
        let own = "user_pref(\"own\", true);";
        std::fs::write(profile.join("user.js"), own).unwrap();
        std::fs::write(profile.join("prefs.js"), format!("{own}\n{PREFERENCE}\n")).unwrap();
        present_automatically(profile).unwrap();
        present_automatically(profile).unwrap();
        let text = std::fs::read_to_string(profile.join("user.js")).unwrap();
        assert_eq!(text, format!("{own}\n{BEGIN}\n{PREFERENCE}\n{END}\n"));

        let lock = profile.join("lock");
        std::os::unix::fs::symlink(format!("127.0.1.1:+{}", std::process::id()), &lock).unwrap();
        assert!(!present_as_before(profile).unwrap(), "Firefox runs");
        std::fs::remove_file(&lock).unwrap();
        std::os::unix::fs::symlink("127.0.1.1:+4194304999", &lock).unwrap();
        assert!(present_as_before(profile).unwrap(), "Firefox crashed");
        for file in ["user.js", "prefs.js"] {
            let text = std::fs::read_to_string(profile.join(file)).unwrap();
            assert_eq!(text, format!("{own}\n"), "{file}");
        }
    }

    #[test]
    fn profiles_are_those_that_are_listed_and_exist() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("firefox");
        std::fs::create_dir_all(folder.join("abc.default")).unwrap();
        let elsewhere = directory.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::fs::write(
            folder.join("profiles.ini"),
            format!(
                "[Profile0]\nIsRelative=1\nPath=abc.default\n[Profile1]\nIsRelative=0\n\
                 Path={}\n[Profile2]\nIsRelative=1\nPath=gone\n",
                elsewhere.display()
            ),
        )
        .unwrap();
        assert_eq!(
            profiles(&folder).unwrap(),
            [folder.join("abc.default"), elsewhere]
        );
        assert!(profiles(&directory.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn a_path_is_one_word() {
        assert_eq!(quoted(Path::new("/a b/c'd")).unwrap(), r"'/a b/c'\''d'");
    }
}
