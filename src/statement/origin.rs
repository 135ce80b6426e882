//! Web origins (RFC 6454): who issued, and which page may relay.

use std::fmt;
use std::str::FromStr;

/// A serialised `https` origin: lower-case host, port only where it is not 443, no path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(Box<str>);

/// A text that is no [`Origin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an origin such as https://pay.example or https://localhost:8443")]
pub struct InvalidOrigin;

impl Origin {
    /// The origin as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let authority = text.strip_prefix("https://").ok_or(InvalidOrigin)?;
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or(InvalidOrigin)?;
                let address: core::net::Ipv6Addr = host.parse().map_err(|_| InvalidOrigin)?;
                if address.to_string() != host {
                    return Err(InvalidOrigin);
                }
                ("v6", rest)
            }
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let host_is_sound = !host.is_empty()
            && text.len() <= 253
            && host
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
        let port_is_sound = match port.strip_prefix(':') {
            None => port.is_empty(),
            Some(digits) => digits
                .parse::<u16>()
                .is_ok_and(|number| number != 0 && number != 443 && number.to_string() == digits),
        };
        if host_is_sound && port_is_sound {
            Ok(Self(text.into()))
        } else {
            Err(InvalidOrigin)
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for Origin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Origin {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_one_spelling() {
        for good in [
            "https://pay.example",
            "https://localhost:8443",
            "https://[::1]:8443",
            "https://[::1]",
            "https://127.0.0.1:65535",
            &format!("https://{}", "a".repeat(245)),
        ] {
            assert!(good.parse::<Origin>().is_ok(), "{good}");
        }
        for bad in [
            "http://pay.example",
            "https://pay.example/",
            "https://pay.example:443",
            "https://Pay.example",
            "https://",
            "https://a:0",
            "https://a:08",
            "https://a b",
            "https://a@b",
            "https://[::01]",
            "https://[::1",
            "https://[::1]8443",
            "https://[::1]:443",
            "https://a:",
            "https://a:65536",
            "https://:8443",
            "https://pay_example",
            &format!("https://{}", "a".repeat(246)),
            "null",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
