//! `[portal]` in the service's configuration.

use serde::{Deserialize, Serialize};

/// What the portal can be told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Portal {
    /// The port of the daemon's browser door on visitors' computers; default 7444. The content
    /// policy lets pages connect to `localhost` at this port and nowhere else.
    pub daemon_port: u16,
    /// The platform key on whose behalf operators create operations in the portal, by name; its
    /// owner acts on the approvals. Without one, operations come from the platform only.
    pub platform_key: Option<String>,
}

impl Default for Portal {
    fn default() -> Self {
        Self {
            daemon_port: 7444,
            platform_key: None,
        }
    }
}

impl Portal {
    /// The origin of the daemon's browser door.
    pub fn daemon(&self) -> String {
        format!("https://localhost:{}", self.daemon_port)
    }
}
