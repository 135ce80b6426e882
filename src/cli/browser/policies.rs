//! Policies for managed machines: what else a browser would ask the person.
//!
//! Chromium asks which client certificate to present, and whether a page may reach programs on
//! this computer (Local Network Access); so does Firefox. Policies answer both, for the daemon's own
//! address and the configured origins only.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Doors;
use crate::base::x509::Certificate;
use crate::cli::error::Error;
use crate::cli::input::read_file;

/// The policies of one setup.
pub(super) struct Policies {
    chromium: Value,
    firefox: Value,
}

/// Of Chromium and those made from it, below `/etc`.
const CHROMIUM: [&str; 3] = ["chromium", "opt/chrome", "opt/edge"];

/// Of Firefox: one file for everybody's policies.
const FIREFOX: &str = "firefox/policies/policies.json";

const LIMIT: u64 = 1024 * 1024;

impl Policies {
    pub(super) fn new(doors: &Doors, authority: &Certificate) -> Self {
        let subject = authority.subject().to_string();
        let name = subject.strip_prefix("CN=").unwrap_or(&subject);
        let mut chromium = json!({
            "LoopbackNetworkAllowedForUrls": doors.origins,
            "NativeMessagingAllowlist": [super::native_host::HOST],
        });
        if let Some(port) = doors.browser_port {
            let select = |host: &str| {
                let filter = json!({
                    "pattern": format!("https://{host}:{port}"),
                    "filter": { "ISSUER": { "CN": name } },
                });
                // The entries of this list are JSON in strings.
                Value::String(filter.to_string())
            };
            chromium["AutoSelectCertificateForUrls"] = json!([select("localhost")]);
        }
        let firefox = json!({
            "policies": {
                "LocalNetworkAccess": { "SkipDomains": ["localhost"] },
                "Preferences": {
                    "security.default_personal_cert": {
                        "Value": "Select Automatically",
                        "Status": "default",
                    },
                },
            },
        });
        Self { chromium, firefox }
    }

    /// All of them, by browser.
    pub(super) fn all(&self) -> Value {
        json!({ "chromium": self.chromium, "firefox": self.firefox })
    }

    /// What to tell an administrator.
    pub(super) fn advice(&self) -> String {
        format!(
            "On a managed machine these policies spare people the browsers' own questions; \
             `--policies write` writes them.\n\
             /etc/chromium/policies/managed/opcert.json:\n{:#}\n\
             /etc/{FIREFOX}:\n{:#}",
            self.chromium, self.firefox
        )
    }

    /// The files to write below `etc`. Chromium's always; those of other browsers where they have a
    /// place there. Firefox has one file for all policies, so one of somebody else is not touched.
    pub(super) fn files(&self, etc: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, Error> {
        let mut files = Vec::new();
        for browser in CHROMIUM {
            let folder = etc.join(browser);
            if browser == "chromium" || folder.exists() {
                let path = folder.join("policies/managed/opcert.json");
                files.push((path, text(&self.chromium)));
            }
        }
        let path = etc.join(FIREFOX);
        let ours = text(&self.firefox);
        if path.exists() && read_file(&path, LIMIT)? != ours {
            return Err(Error::State {
                code: "policy-exists",
                what: format!("{} has policies of somebody else", path.display()),
                action: format!(
                    "Add these to it by hand, then run the command with `--policies skip`: {}",
                    self.firefox["policies"]
                ),
            });
        }
        files.push((path, ours));
        Ok(files)
    }
}

fn text(policy: &Value) -> Vec<u8> {
    format!("{policy:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_somebody_else_stays() {
        let policies = Policies {
            chromium: json!({}),
            firefox: json!({ "policies": {} }),
        };
        let etc = tempfile::tempdir().unwrap();
        let files = policies.files(etc.path()).unwrap();
        assert_eq!(files.len(), 2);
        let theirs = etc.path().join(FIREFOX);
        std::fs::create_dir_all(theirs.parent().unwrap()).unwrap();
        std::fs::write(&theirs, &files[1].1).unwrap();
        assert!(policies.files(etc.path()).is_ok(), "ours is written again");
        std::fs::write(&theirs, "{}").unwrap();
        assert!(policies.files(etc.path()).is_err());
    }
}
