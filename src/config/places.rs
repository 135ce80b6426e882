//! Where the daemon's files are unless a command line says otherwise.
//!
//! A computer has one daemon in the system's directories, or a person has one in directories of
//! their own, by the XDG base directory specification. Root only ever means the former.

use std::ffi::OsString;
use std::path::PathBuf;

use super::daemon::DEFAULT_PATH;

/// The places of one daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Its configuration file.
    pub config: PathBuf,
    /// What has to survive a restart.
    pub state: PathBuf,
    /// Where its control socket is.
    pub runtime: PathBuf,
}

impl Places {
    /// Of the computer's daemon.
    pub fn of_system() -> Self {
        Self {
            config: DEFAULT_PATH.into(),
            state: "/var/lib/opcert".into(),
            runtime: "/run/opcert".into(),
        }
    }

    /// Where whoever runs this makes a daemon: root for the computer, anybody else for themselves.
    pub fn of_user() -> Self {
        if rustix::process::geteuid().is_root() {
            return Self::of_system();
        }
        Self::of_person(|name| std::env::var_os(name)).unwrap_or_else(Self::of_system)
    }

    /// By the variables of a person's session; `None` without a home directory.
    fn of_person(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let absolute = |name| {
            variable(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let home = absolute("HOME")?;
        let config = absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        let state = absolute("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state"));
        let state = state.join("opcert");
        Some(Self {
            config: config.join("opcert/opcertd.toml"),
            runtime: absolute("XDG_RUNTIME_DIR")
                .map_or_else(|| state.join("run"), |runtime| runtime.join("opcert")),
            state,
        })
    }
}

/// The configuration file where none is named: that of whoever runs this, where there is one, else
/// the computer's.
pub fn config_file() -> PathBuf {
    let own = Places::of_user().config;
    if own.exists() {
        own
    } else {
        DEFAULT_PATH.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_person(variables: &[(&str, &str)]) -> Option<Places> {
        Places::of_person(|wanted| {
            let (_, value) = variables.iter().find(|(name, _)| *name == wanted)?;
            Some((*value).into())
        })
    }

    #[test]
    fn a_person_has_places_of_their_own() {
        let plain = of_person(&[("HOME", "/home/alice"), ("XDG_STATE_HOME", "relative")]);
        assert_eq!(
            plain,
            Some(Places {
                config: "/home/alice/.config/opcert/opcertd.toml".into(),
                state: "/home/alice/.local/state/opcert".into(),
                runtime: "/home/alice/.local/state/opcert/run".into(),
            })
        );
        let session = of_person(&[
            ("HOME", "/home/alice"),
            ("XDG_CONFIG_HOME", "/c"),
            ("XDG_STATE_HOME", "/s"),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
        ]);
        assert_eq!(
            session,
            Some(Places {
                config: "/c/opcert/opcertd.toml".into(),
                state: "/s/opcert".into(),
                runtime: "/run/user/1000/opcert".into(),
            })
        );
        assert_eq!(of_person(&[("XDG_CONFIG_HOME", "/c")]), None);
    }
}
