//! What a supervisor publishes of its module: whether the worker is up, the tokens it sees, and
//! why one cannot be used. And which of them a URI selects.
//!
//! Values only; nothing here asks a token.

use std::sync::Arc;

use tokio::time::Instant;

use super::Supervisor;
use crate::base::pkcs11::{TokenId, TokenUri};
use crate::device::config::LoginPolicy;
use crate::device::error::DeviceError;
use crate::device::frames::{ModuleInfo, TokenInfo};
use crate::device::link::Link;
use crate::device::sandbox::SandboxStatus;
use crate::device::tokens::{TokenState, TokenStatus};

/// What there is of a module now.
#[derive(Clone)]
pub struct View {
    pub phase: Phase,
    /// What the library said of itself, when it was last loaded.
    pub library: Option<ModuleInfo>,
    /// How its worker is confined.
    pub sandbox: Option<SandboxStatus>,
    /// In the order of the configuration.
    pub tokens: Vec<TokenView>,
}

/// How it stands with its worker.
#[derive(Clone)]
pub enum Phase {
    /// A worker is being started.
    Starting,
    /// It is up.
    Up(Arc<Link>),
    /// All its tokens are released, and nobody needs it.
    AtRest,
    /// It could not be started, or was of no use.
    Down { reason: DeviceError, until: Instant },
    /// Nothing is started any more.
    Stopped,
}

/// A configured token inside its supervisor's view.
#[derive(Debug, Clone)]
pub struct TokenView {
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
pub enum Reason {
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

impl View {
    /// A token, found or absent.
    pub fn token(&self, id: &TokenId) -> Option<&TokenView> {
        self.tokens.iter().find(|known| known.id == *id)
    }
}

impl Supervisor {
    pub fn publish_phase(&self, phase: Phase) {
        self.view.send_modify(|view| {
            let mut next = View::clone(view);
            next.phase = phase;
            *view = Arc::new(next);
        });
        self.count_change();
    }

    pub fn publish_tokens(&self, tokens: Vec<TokenView>) {
        let changed = self.view.send_if_modified(|view| {
            let same = view.tokens.len() == tokens.len()
                && tokens
                    .iter()
                    .zip(&view.tokens)
                    .all(|(new, old)| new.looks_like(old));
            if !same {
                let mut next = View::clone(view);
                next.tokens = tokens;
                *view = Arc::new(next);
            }
            !same
        });
        if changed {
            self.count_change();
        }
    }

    pub fn count_change(&self) {
        self.changed
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The name of a token.
pub fn token_id(module: &str, info: &TokenInfo) -> TokenId {
    TokenId {
        module: module.into(),
        label: info.label.clone(),
        serial: info.serial.clone(),
    }
}

/// The URI that selects a token that was found before.
pub fn uri_of(token: &TokenId) -> TokenUri {
    TokenUri {
        token: Some(token.label.clone()),
        serial: Some(token.serial.clone()),
        ..TokenUri::default()
    }
}

/// Whether a URI selects a token.
pub fn selects(uri: &TokenUri, module: &str, info: &TokenInfo) -> bool {
    let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|w| w == value);
    uri.matches(&token_id(module, info))
        && is(&uri.manufacturer, &info.manufacturer)
        && is(&uri.model, &info.model)
}

/// Whether two URIs may select the same token.
pub fn overlap(one: &TokenUri, other: &TokenUri) -> bool {
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
    use crate::device::TokenFlags;

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

    #[test]
    fn what_was_made_of_a_token_holds_until_its_login_or_its_flags_change() {
        let seen = |change: fn(&mut TokenInfo)| {
            let mut info = info("pay", "1");
            info.flags.login_required = true;
            change(&mut info);
            TokenView::find("m", &"pkcs11:token=pay".parse().unwrap(), &[info])
        };
        let plain = seen(|_| ());
        let absent = TokenView::absent("m", &plain.uri);
        assert!(plain.is_settled(&plain));
        assert!(!plain.is_settled(&absent) && !absent.is_settled(&plain));
        assert!(!plain.is_settled(&seen(|info| info.flags.pin_locked = true)));
        let failed = TokenView {
            reason: Some(Reason::LoginFailed(DeviceError::Stopped)),
            ..plain.clone()
        };
        assert!(!failed.is_settled(&plain), "it is made again");
        let ready = TokenView {
            state: TokenState::Ready,
            ..plain.clone()
        };
        assert!(!ready.is_settled(&plain), "its login was lost");
        assert!(ready.is_settled(&seen(|info| info.logged_in = true)));
        assert!(ready.is_settled(&seen(|info| info.flags.login_required = false)));
        let each_time = ready.with_login(LoginPolicy::PerOperation);
        assert!(each_time.is_settled(&plain));
    }

    #[test]
    fn uris_overlap_unless_they_differ_in_something_both_name() {
        let overlap = |one: &str, other: &str| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlap(&one, &other), overlap(&other, &one));
            overlap(&one, &other)
        };
        assert!(overlap("pkcs11:token=a", "pkcs11:serial=1"));
        assert!(overlap("pkcs11:token=a;serial=1", "pkcs11:token=a"));
        for attribute in ["token", "serial", "manufacturer", "model"] {
            let of = |value| format!("pkcs11:{attribute}={value}");
            assert!(overlap(&of("a"), &of("a")));
            assert!(!overlap(&of("a"), &of("b")), "{attribute}");
        }
    }

    #[test]
    fn callers_are_told_of_what_looks_different() {
        let present = [info("pay", "1")];
        let view = TokenView::find("m", &"pkcs11:token=pay".parse().unwrap(), &present);
        assert!(view.looks_like(&view));
        let mut others = [view.clone(), view.clone(), view.clone(), view.clone()];
        others[0].state = TokenState::Ready;
        others[1].id.serial = "2".into();
        others[2].found = None;
        others[3].reason = Some(Reason::Other("unplugged".into()));
        for other in &others {
            assert!(
                !view.looks_like(other) && !other.looks_like(&view),
                "{other:?}"
            );
        }
        let reasons = [
            Reason::PinBlocked("unplugged".into()),
            Reason::LoginFailed(DeviceError::Stopped),
        ];
        let [same, different] = reasons.map(|reason| TokenView {
            reason: Some(reason),
            ..view.clone()
        });
        assert!(others[3].looks_like(&same) && !others[3].looks_like(&different));
    }
}
