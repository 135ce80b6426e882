//! What callers see of modules, tokens, keys and certificates.

use serde::{Deserialize, Serialize};

use super::config::{LoginPolicy, Waiver};
use super::error::DeviceError;
pub use super::frames::TokenFlags;
use super::frames::TokenInfo;
use super::sandbox::SandboxStatus;
use crate::base::key::{KeySpec, PublicKey, Scheme};
use crate::base::pkcs11::{KeyId, KeyRef, TokenId, TokenUri};

/// A configured token, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenStatus {
    /// The token. While it is absent, what the configured URI says of label and serial.
    pub id: TokenId,
    /// The configured URI.
    pub uri: String,
    /// `manufacturerID`; empty while absent, like the next two.
    pub manufacturer: String,
    /// `model`.
    pub model: String,
    /// `firmwareVersion`.
    pub firmware: String,
    /// Whether it can be used.
    pub state: TokenState,
    /// Why not, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its flags when they were last read.
    pub flags: TokenFlags,
    /// The kinds of key it can generate.
    pub generates: Vec<KeySpec>,
    /// The schemes it can sign with.
    pub signs: Vec<Scheme>,
}

/// Whether a token can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TokenState {
    /// It is not there.
    Absent,
    /// Too many wrong PINs.
    LockedOut,
    /// It waits for its PIN.
    PinNeeded,
    /// One PIN try is left, which is never used from here.
    FinalTry,
    /// It signs.
    Ready,
    /// It was left to other programs; the next request takes it up again.
    Released,
    /// It is there, but the configuration or its state prevents its use.
    Degraded,
    /// Its worker is being started.
    Respawning,
    /// Its worker cannot be started, or fails again and again.
    Down,
}

/// A configured module, as it is now.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModuleStatus {
    /// The configured name.
    pub name: String,
    /// The configured path.
    pub path: String,
    /// Whether its workers are up: one for each token, unless its tokens share one.
    pub up: bool,
    /// Why not; absent too where its tokens were released and nothing is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Workers that were killed and have not ended: the kernel waits for a device on their behalf.
    /// Above a limit no new one is started.
    #[serde(default)]
    pub stuck_workers: usize,
    /// `manufacturerID`, `libraryDescription` and `libraryVersion`, once it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// How its worker is confined, once it was up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxStatus>,
    /// Whether its library tells of tokens that come and leave; otherwise its slots are looked at
    /// every second.
    #[serde(default)]
    pub slot_events: bool,
}

impl ModuleStatus {
    /// Takes in another worker of the same module: it is up where all are.
    pub(super) fn add(&mut self, part: Self) {
        self.up &= part.up;
        self.reason = self.reason.take().or(part.reason);
        self.library = self.library.take().or(part.library);
        self.sandbox = self.sandbox.take().or(part.sandbox);
        self.slot_events &= part.slot_events;
    }
}

/// A private key on a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// `CKA_ID`; `None` where it is empty or longer than 64 bytes, so that no `KeyRef` can name it.
    pub id: Option<KeyId>,
    /// `CKA_LABEL`.
    pub label: String,
    /// What it is; `None` for what cannot be used here.
    pub spec: Option<KeySpec>,
    /// `CKA_ALWAYS_AUTHENTICATE`: each use needs a login of its own.
    pub always_authenticate: bool,
}

/// A certificate on a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCertificate {
    /// `CKA_ID`.
    pub id: KeyId,
    /// The DER certificate.
    pub der: Vec<u8>,
}

/// A key pair that was generated on a token.
#[must_use]
#[derive(Debug, Clone)]
pub struct GeneratedKey {
    /// Its name.
    pub key: KeyRef,
    /// Its public half.
    pub public_key: PublicKey,
    /// What was read back from the token.
    pub proof: Proof,
}

/// The attributes that prove that a private key was made on the token and cannot leave it, as the
/// token itself states them (PKCS#11 v3.0 section 4.9). Only complete proofs exist, but for what the
/// configuration waives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Proof {
    /// `CKA_LOCAL`.
    pub local: bool,
    /// `CKA_SENSITIVE`.
    pub sensitive: bool,
    /// `CKA_ALWAYS_SENSITIVE`.
    pub always_sensitive: bool,
    /// `CKA_NEVER_EXTRACTABLE`.
    pub never_extractable: bool,
    /// `CKA_EXTRACTABLE`.
    pub extractable: bool,
    /// What the token did not state, and the configuration says it misreports.
    pub waived: Vec<Waiver>,
}

impl Proof {
    /// What a worker that answered `Generated` has read.
    pub(super) fn without(waived: Vec<Waiver>) -> Self {
        let is_stated = |attribute| !waived.contains(&attribute);
        Self {
            local: is_stated(Waiver::Local),
            sensitive: is_stated(Waiver::Sensitive),
            always_sensitive: is_stated(Waiver::AlwaysSensitive),
            never_extractable: is_stated(Waiver::NeverExtractable),
            extractable: false,
            waived,
        }
    }
}

/// A configured token inside its supervisor's view.
#[derive(Debug, Clone)]
pub(super) struct TokenView {
    pub uri: TokenUri,
    /// `None` while absent, and where the URI selects several.
    pub found: Option<TokenInfo>,
    pub id: TokenId,
    pub state: TokenState,
    pub reason: Option<Reason>,
    /// How long it stays logged in.
    pub login: LoginPolicy,
}

/// Why a token cannot be used.
#[derive(Debug, Clone)]
pub(super) enum Reason {
    /// A PIN was refused or may have been; a person has to give one.
    PinBlocked(String),
    /// A login failed before the PIN reached the token. It is made again when somebody calls.
    LoginFailed(DeviceError),
    /// Anything else.
    Other(String),
}

impl Reason {
    pub fn text(&self) -> String {
        match self {
            Self::PinBlocked(text) | Self::Other(text) => text.clone(),
            Self::LoginFailed(error) => error.to_string(),
        }
    }
}

impl TokenView {
    /// A token that was not found.
    pub fn absent(module: &str, uri: &TokenUri) -> Self {
        Self {
            uri: uri.clone(),
            found: None,
            id: TokenId {
                module: module.into(),
                label: uri.token.clone().unwrap_or_default(),
                serial: uri.serial.clone().unwrap_or_default(),
            },
            state: TokenState::Absent,
            reason: Some(Reason::Other("no such token is present".into())),
            login: LoginPolicy::Session,
        }
    }

    /// Finds the one token that `uri` selects.
    pub fn find(module: &str, uri: &TokenUri, present: &[TokenInfo]) -> Self {
        let mut matching = present.iter().filter(|info| selects(uri, module, info));
        let Some(info) = matching.next() else {
            return Self::absent(module, uri);
        };
        let others = matching.count();
        if others > 0 {
            return Self {
                state: TokenState::Degraded,
                reason: Some(Reason::Other(format!(
                    "the URI selects {} tokens; add serial=… to it",
                    others + 1
                ))),
                ..Self::absent(module, uri)
            };
        }
        Self {
            uri: uri.clone(),
            id: token_id(module, info),
            found: Some(info.clone()),
            state: TokenState::PinNeeded,
            reason: None,
            login: LoginPolicy::Session,
        }
    }

    /// The same with the policy of its configuration.
    pub fn with_login(self, login: LoginPolicy) -> Self {
        Self { login, ..self }
    }

    /// Whether what was made of this token still holds now that it was seen as `now`: a login that
    /// was lost, or flags that changed after a person did something, are worth another look.
    pub fn is_settled(&self, now: &Self) -> bool {
        let (Some(before), Some(now)) = (&self.found, &now.found) else {
            return false;
        };
        match self.state {
            TokenState::Ready => {
                now.logged_in
                    || !now.flags.login_required
                    || self.login == LoginPolicy::PerOperation
            }
            _ => before.flags == now.flags && !matches!(self.reason, Some(Reason::LoginFailed(_))),
        }
    }

    /// Whether callers would see the same.
    pub fn looks_like(&self, other: &Self) -> bool {
        self.state == other.state
            && self.id == other.id
            && self.found == other.found
            && self.reason.as_ref().map(Reason::text) == other.reason.as_ref().map(Reason::text)
    }

    /// What callers see; `state` is overridden while the worker is not up.
    pub fn status(&self, outage: Option<(TokenState, &str)>) -> TokenStatus {
        let found = self.found.as_ref();
        let text = |field: fn(&TokenInfo) -> &String| found.map(field).cloned().unwrap_or_default();
        TokenStatus {
            id: self.id.clone(),
            uri: self.uri.to_string(),
            manufacturer: text(|info| &info.manufacturer),
            model: text(|info| &info.model),
            firmware: text(|info| &info.firmware),
            state: outage.map_or(self.state, |(state, _)| state),
            reason: match outage {
                Some((_, reason)) => Some(reason.to_owned()),
                None => self.reason.as_ref().map(Reason::text),
            },
            flags: found.map(|info| info.flags).unwrap_or_default(),
            generates: found.map(|info| info.generates.clone()).unwrap_or_default(),
            signs: found.map(|info| info.signs.clone()).unwrap_or_default(),
        }
    }
}

/// The name of a token.
pub(super) fn token_id(module: &str, info: &TokenInfo) -> TokenId {
    TokenId {
        module: module.into(),
        label: info.label.clone(),
        serial: info.serial.clone(),
    }
}

/// Whether a URI selects a token.
pub(super) fn selects(uri: &TokenUri, module: &str, info: &TokenInfo) -> bool {
    let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|w| w == value);
    uri.matches(&token_id(module, info))
        && is(&uri.manufacturer, &info.manufacturer)
        && is(&uri.model, &info.model)
}

/// Whether two URIs may select the same token.
pub(super) fn overlap(one: &TokenUri, other: &TokenUri) -> bool {
    let agree = |a: &Option<String>, b: &Option<String>| match (a, b) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    };
    agree(&one.token, &other.token)
        && agree(&one.serial, &other.serial)
        && agree(&one.manufacturer, &other.manufacturer)
        && agree(&one.model, &other.model)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(label: &str, serial: &str) -> TokenInfo {
        TokenInfo {
            number: 0,
            label: label.into(),
            serial: serial.into(),
            manufacturer: "m".into(),
            model: "x".into(),
            firmware: "1.0".into(),
            flags: TokenFlags::default(),
            logged_in: false,
            generates: vec![],
            signs: vec![],
            hashes: vec![],
        }
    }

    #[test]
    fn a_uri_finds_one_token_or_says_why_not() {
        let present = [info("pay", "1"), info("pay", "2"), info("ca", "3")];
        let find = |uri: &str| TokenView::find("m", &uri.parse().unwrap(), &present);
        assert_eq!(find("pkcs11:token=ca").id.serial, "3");
        assert_eq!(find("pkcs11:token=pay;serial=2").id.serial, "2");
        assert_eq!(find("pkcs11:token=pay").state, TokenState::Degraded);
        assert_eq!(find("pkcs11:token=no").state, TokenState::Absent);
        assert_eq!(find("pkcs11:token=ca;model=y").state, TokenState::Absent);
    }
}
