//! A callback's body, read after it was verified.

use serde::Deserialize;

use super::aead::{Envelope, OpenError};
use super::verify::Verified;
use crate::base::secret::SecretBytes;
use crate::wechatpay::secret::ApiV3Key;

/// Why a verified callback says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotificationError {
    /// Not the JSON that a notification is.
    #[error("the notification is malformed")]
    Malformed,
    /// The resource does not open.
    #[error("the resource of the notification does not open")]
    Open(#[from] OpenError),
}

/// A notification whose signature verified, its resource still closed. Fields that are not known
/// here are passed over, as the platform adds some.
#[derive(Debug, Clone, Deserialize)]
pub struct Notification {
    id: String,
    event_type: String,
    resource_type: String,
    resource: Envelope,
}

impl Notification {
    /// Largest body read, in bytes.
    pub const MAX: usize = 1024 * 1024;

    /// From a verified body.
    pub fn parse(verified: Verified<'_>) -> Result<Self, NotificationError> {
        let body = verified.body();
        if body.len() > Self::MAX {
            return Err(NotificationError::Malformed);
        }
        let notification: Self =
            serde_json::from_slice(body).map_err(|_| NotificationError::Malformed)?;
        if notification.id.is_empty() || notification.resource_type != "encrypt-resource" {
            return Err(NotificationError::Malformed);
        }
        Ok(notification)
    }

    /// Its id; the same in every delivery of the same event. Remember it: see [`super::Seen`].
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What happened, such as `TRANSACTION.SUCCESS`.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// The resource, decrypted.
    pub fn open(&self, key: &ApiV3Key) -> Result<SecretBytes, NotificationError> {
        Ok(self.resource.open(key)?)
    }
}
