//! What a client's registration says about it. The shipped rules read it; site rules may too.
//!
//! How a client proves who it is never lives here: see `api`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Purpose;
use crate::statement::{ConsentMethod, Kind};
use crate::wechatpay::MerchantId;

/// What a client may do; kept with its registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ClientPolicy {
    /// Whether a person is asked before each approval.
    #[serde(default)]
    pub consent: ConsentRule,
    /// The operation kinds it may ask approvals for; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kinds: Option<Vec<Kind>>,
    /// The WeChat Pay merchants it may act for, and how; none when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wechatpay: Vec<WechatPayRule>,
}

/// What a client may do for one WeChat Pay merchant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WechatPayRule {
    /// The merchant.
    pub merchant: MerchantId,
    /// What for.
    pub uses: Vec<WechatPayUse>,
}

/// What is done for a merchant: with its key, or with the key that its secrets are sealed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WechatPayUse {
    /// Signing requests.
    Request,
    /// Signing the parameters that start a payment.
    Start,
    /// Decrypting fields.
    Decrypt,
    /// Checking answers and callbacks, encrypting fields: what needs public keys only.
    Check,
    /// Opening callbacks with the APIv3 secret.
    Notification,
    /// Handing in the platform's certificates, which the APIv3 secret opens.
    Platform,
    /// Signing messages of interface version 2.
    V2Sign,
    /// Checking messages of interface version 2, and opening its refund notifications.
    V2Check,
}

impl WechatPayUse {
    /// All of them, with the attribute of a Cedar client that holds the merchants.
    pub(super) const ALL: [(Self, &'static str); 8] = [
        (Self::Request, "request"),
        (Self::Start, "start"),
        (Self::Decrypt, "decrypt"),
        (Self::Check, "check"),
        (Self::Notification, "notification"),
        (Self::Platform, "platform"),
        (Self::V2Sign, "v2_sign"),
        (Self::V2Check, "v2_check"),
    ];

    /// The stable name in registrations, records and the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Start => "start",
            Self::Decrypt => "decrypt",
            Self::Check => "check",
            Self::Notification => "notification",
            Self::Platform => "platform",
            Self::V2Sign => "v2-sign",
            Self::V2Check => "v2-check",
        }
    }

    /// The Cedar action.
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::Request => "wechatpay-request",
            Self::Start => "wechatpay-start",
            Self::Decrypt => "wechatpay-decrypt",
            Self::Check => "wechatpay-check",
            Self::Notification => "wechatpay-notification",
            Self::Platform => "wechatpay-platform",
            Self::V2Sign => "wechatpay-v2-sign",
            Self::V2Check => "wechatpay-v2-check",
        }
    }

    pub(super) fn purpose(self) -> Purpose {
        match self {
            Self::Request => Purpose::WechatPayRequest,
            Self::Start => Purpose::WechatPayStart,
            Self::Decrypt => Purpose::WechatPayDecrypt,
            Self::Check => Purpose::WechatPayCheck,
            Self::Notification | Self::Platform | Self::V2Sign | Self::V2Check => {
                Purpose::SecretOpening
            }
        }
    }
}

impl FromStr for WechatPayUse {
    type Err = UnknownUse;
    fn from_str(text: &str) -> Result<Self, UnknownUse> {
        Self::ALL
            .into_iter()
            .map(|(r#use, _)| r#use)
            .find(|r#use| r#use.name() == text)
            .ok_or(UnknownUse)
    }
}

/// A text that names no [`WechatPayUse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be request, start, decrypt, check, notification, platform, v2-sign or v2-check")]
pub struct UnknownUse;

impl Default for ClientPolicy {
    fn default() -> Self {
        Self {
            consent: ConsentRule::Confirm,
            kinds: None,
            wechatpay: Vec::new(),
        }
    }
}

/// Whether and how a person must agree, from the least to the most.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ConsentRule {
    /// Policy alone is enough.
    None,
    /// A person confirms what is shown.
    #[default]
    Confirm,
    /// A person confirms what is shown and enters the token's PIN for it.
    ConfirmWithPin,
}

impl ConsentRule {
    /// All, from the least to the most: the order in which policy is asked.
    pub const ALL: [Self; 3] = [Self::None, Self::Confirm, Self::ConfirmWithPin];

    /// The stable name in policies, registrations and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Confirm => "confirm",
            Self::ConfirmWithPin => "confirm-with-pin",
        }
    }

    /// The most that consent by `method` is known to be worth. Only a device with a key pad of its
    /// own proves by itself that its PIN was entered.
    pub fn of_method(method: ConsentMethod) -> Self {
        match method {
            ConsentMethod::Policy => Self::None,
            ConsentMethod::Pinentry => Self::Confirm,
            ConsentMethod::ProtectedPath => Self::ConfirmWithPin,
        }
    }
}

impl fmt::Display for ConsentRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ConsentRule {
    type Err = UnknownConsent;
    fn from_str(text: &str) -> Result<Self, UnknownConsent> {
        Self::ALL
            .into_iter()
            .find(|rule| rule.name() == text)
            .ok_or(UnknownConsent)
    }
}

/// A text that names no [`ConsentRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be none, confirm or confirm-with-pin")]
pub struct UnknownConsent;
