//! Names of tokens and keys: RFC 7512 URIs, never slot numbers.
//!
//! A [`TokenUri`] selects; a [`TokenId`] is what was found; a [`KeyRef`] is one key on one token.

use std::fmt;
use std::str::FromStr;

use percent_encoding::AsciiSet;
use serde::{Deserialize, Serialize};

use super::encoding::{URI_PATH, from_hex, from_percent, hex, percent, percent_all};

/// A token that was found: label, serial number and maker as `CK_TOKEN_INFO` gives them
/// (PKCS#11 v3.0 section 3.2), trailing blanks removed.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
pub struct TokenId {
    /// The configured name of the module that reaches it.
    pub module: String,
    /// `label`.
    pub label: String,
    /// `serialNumber`.
    pub serial: String,
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pkcs11:token={};serial={}",
            written(&self.label),
            written(&self.serial)
        )
    }
}

/// One key pair on one token, found by `CKA_ID`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRef {
    /// The token.
    pub token: TokenId,
    /// `CKA_ID` of the private and the public key.
    pub id: KeyId,
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};id={}", self.token, percent_all(&self.id.0))
    }
}

/// A `CKA_ID`, 1 to 64 bytes; written as hexadecimal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId(Vec<u8>);

impl KeyId {
    /// A new one of 16 random bytes.
    pub fn random() -> Self {
        Self(super::ids::random::<16>().to_vec())
    }

    /// Takes bytes as a token has them.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, UriError> {
        if bytes.is_empty() || bytes.len() > 64 {
            return Err(UriError::Value("id"));
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<String> for KeyId {
    type Error = UriError;
    fn try_from(text: String) -> Result<Self, UriError> {
        Self::from_bytes(from_hex(&text).ok_or(UriError::Value("id"))?)
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> String {
        hex(&id.0)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A PKCS#11 URI that selects a token, and on it perhaps an object (RFC 7512).
///
/// Known path attributes are `token`, `serial`, `manufacturer`, `model`, `object`, `id`, `type`;
/// known query attributes `module-path` and `pin-source`. `pin-value` is refused: a PIN in a
/// configuration or an argument list is no longer a secret. Slot attributes are refused, as slot
/// numbers move. Unknown attributes are refused.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenUri {
    /// `token`: the token's label.
    pub token: Option<String>,
    /// `serial`.
    pub serial: Option<String>,
    /// `manufacturer`.
    pub manufacturer: Option<String>,
    /// `model`.
    pub model: Option<String>,
    /// `object`: `CKA_LABEL`.
    pub object: Option<String>,
    /// `id`: `CKA_ID`.
    pub id: Option<KeyId>,
    /// `type`.
    pub object_type: Option<ObjectType>,
    /// `module-path`.
    pub module_path: Option<String>,
    /// `pin-source`.
    pub pin_source: Option<String>,
}

/// The `type` attribute of RFC 7512 section 2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectType {
    /// `public`.
    Public,
    /// `private`.
    Private,
    /// `cert`.
    Cert,
    /// `secret-key`.
    SecretKey,
    /// `data`.
    Data,
}

/// Why a PKCS#11 URI was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// It does not begin with `pkcs11:`.
    #[error("a token URI begins with \"pkcs11:\" (RFC 7512)")]
    Scheme,
    /// An attribute that is not known.
    #[error("unknown attribute {0:?} in token URI")]
    Unknown(String),
    /// An attribute that is refused, with the reason.
    #[error("attribute {0:?} in token URI is refused: {1}")]
    Refused(&'static str, &'static str),
    /// An attribute twice.
    #[error("attribute {0:?} appears twice in token URI")]
    Twice(String),
    /// An attribute whose value is malformed.
    #[error("malformed value of {0:?} in token URI")]
    Value(&'static str),
    /// More than 1024 bytes.
    #[error("token URI is longer than 1024 bytes")]
    TooLong,
}

impl TokenUri {
    /// Whether the URI selects this token, as far as label and serial tell.
    pub fn matches(&self, token: &TokenId) -> bool {
        self.token
            .as_ref()
            .is_none_or(|label| *label == token.label)
            && self
                .serial
                .as_ref()
                .is_none_or(|serial| *serial == token.serial)
    }
}

impl FromStr for TokenUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.len() > 1024 {
            return Err(UriError::TooLong);
        }
        let rest = text.strip_prefix("pkcs11:").ok_or(UriError::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        for part in path.split(';').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "token" => set(&mut uri.token, "token", value)?,
                "serial" => set(&mut uri.serial, "serial", value)?,
                "manufacturer" => set(&mut uri.manufacturer, "manufacturer", value)?,
                "model" => set(&mut uri.model, "model", value)?,
                "object" => set(&mut uri.object, "object", value)?,
                "id" if uri.id.is_some() => return Err(UriError::Twice("id".into())),
                "id" => {
                    let bytes = from_percent(value).ok_or(UriError::Value("id"))?;
                    uri.id = Some(KeyId::from_bytes(bytes)?);
                }
                "type" if uri.object_type.is_some() => return Err(UriError::Twice("type".into())),
                "type" => {
                    uri.object_type = Some(match value {
                        "public" => ObjectType::Public,
                        "private" => ObjectType::Private,
                        "cert" => ObjectType::Cert,
                        "secret-key" => ObjectType::SecretKey,
                        "data" => ObjectType::Data,
                        _ => return Err(UriError::Value("type")),
                    });
                }
                "slot-id" | "slot-description" | "slot-manufacturer" => {
                    return Err(UriError::Refused(
                        "slot-…",
                        "slots move; use token and serial",
                    ));
                }
                other => return Err(UriError::Unknown(other.into())),
            }
        }
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "module-path" => set(&mut uri.module_path, "module-path", value)?,
                "pin-source" => set(&mut uri.pin_source, "pin-source", value)?,
                "pin-value" => {
                    return Err(UriError::Refused(
                        "pin-value",
                        "a PIN in a URI is no secret; use pin-source",
                    ));
                }
                other => return Err(UriError::Unknown(other.into())),
            }
        }
        // What is accepted can be written down and read again; escaping makes it longer.
        if uri.to_string().len() > 1024 {
            return Err(UriError::TooLong);
        }
        Ok(uri)
    }
}

impl fmt::Display for TokenUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut path = Vec::new();
        for (name, value) in [
            ("token", &self.token),
            ("serial", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
            ("object", &self.object),
        ] {
            if let Some(value) = value {
                path.push(format!("{name}={}", written(value)));
            }
        }
        if let Some(id) = &self.id {
            path.push(format!("id={}", percent_all(&id.0)));
        }
        if let Some(object_type) = self.object_type {
            let name = match object_type {
                ObjectType::Public => "public",
                ObjectType::Private => "private",
                ObjectType::Cert => "cert",
                ObjectType::SecretKey => "secret-key",
                ObjectType::Data => "data",
            };
            path.push(format!("type={name}"));
        }
        write!(f, "pkcs11:{}", path.join(";"))?;
        let mut mark = '?';
        for (name, value) in [
            ("module-path", &self.module_path),
            ("pin-source", &self.pin_source),
        ] {
            if let Some(value) = value {
                write!(f, "{mark}{name}={}", written(value))?;
                mark = '&';
            }
        }
        Ok(())
    }
}

impl Serialize for TokenUri {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenUri {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

fn set(slot: &mut Option<String>, name: &'static str, value: &str) -> Result<(), UriError> {
    if slot.is_some() {
        return Err(UriError::Twice(name.into()));
    }
    let bytes = from_percent(value).ok_or(UriError::Value(name))?;
    *slot = Some(String::from_utf8(bytes).map_err(|_| UriError::Value(name))?);
    Ok(())
}

/// A value of an attribute; of what RFC 7512 section 2.3 allows there besides unreserved characters,
/// only what is common is written as it stands.
fn written(value: &str) -> String {
    const VALUE: &AsciiSet = &URI_PATH.remove(b':');
    percent(value.as_bytes(), VALUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_round_trips() {
        for text in [
            "pkcs11:token=My%20Token;serial=0f3a;id=%01%FF;type=private",
            "pkcs11:token=a;object=pay?module-path=/usr/lib/x.so&pin-source=file:/run/pin",
            "pkcs11:",
        ] {
            let uri: TokenUri = text.parse().unwrap();
            assert_eq!(uri.to_string(), text);
        }
    }

    #[test]
    fn a_uri_refuses_what_is_unsafe_or_unknown() {
        for (text, expected) in [
            ("token=a", UriError::Scheme),
            ("pkcs11:token=a;token=b", UriError::Twice("token".into())),
            ("pkcs11:colour=red", UriError::Unknown("colour".into())),
            ("pkcs11:token=%4", UriError::Value("token")),
            ("pkcs11:id=", UriError::Value("id")),
        ] {
            assert_eq!(text.parse::<TokenUri>(), Err(expected), "{text}");
        }
        assert!(matches!(
            "pkcs11:token=a?pin-value=1234".parse::<TokenUri>(),
            Err(UriError::Refused("pin-value", _))
        ));
        assert!("pkcs11:slot-id=3".parse::<TokenUri>().is_err());
    }

    #[test]
    fn a_uri_that_would_be_too_long_once_escaped_is_refused() {
        let fits = format!("pkcs11:token={}", "\r".repeat(337));
        assert_eq!(fits.parse::<TokenUri>().unwrap().to_string().len(), 1024);
        let grows = format!("pkcs11:token={}", "\r".repeat(338));
        assert!(grows.len() < 1024);
        assert_eq!(grows.parse::<TokenUri>(), Err(UriError::TooLong));
    }
}
