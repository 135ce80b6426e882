//! API secrets on their way from the account service to a merchant's token.
//!
//! Two layers. Inside, the secret is a JWE for a key on the token ([`seal`], [`SecretText`] in
//! [`Plain`]): whoever carries or stores it reads nothing. Around it, the service signs for whom
//! and in which order it is ([`SealedSecret`]): whoever carries it can neither replace it nor
//! bring an old one back. A person at the computer hands in the inner layer alone.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::origin::Origin;
use super::pinned::{self, NoKey, ServiceError};
use super::strict::FieldError;
use crate::base::ids::AccountId;
use crate::base::jwe::{self, JweError, RsaJwk};
use crate::base::key::PublicKey;
use crate::base::secret::{SecretBytes, SecretText};

/// `typ` of the signed outer layer.
pub const TYPE: &str = "opcert-secret+jwt";

/// `typ` of the encrypted inner layer.
pub const SEALED_TYPE: &str = "opcert-secret+jwe";

/// Longest compact form of either, in bytes.
pub const MAX: usize = 8 * 1024;

/// Longest time that a secret before the current one is still tried, in seconds: 7 days.
pub const LONGEST_OVERLAP: i64 = 7 * 86_400;

/// Which secret of a merchant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SecretKind {
    /// The API secret, of interface version 2.
    Api,
    /// The APIv3 secret.
    ApiV3,
}

impl SecretKind {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::ApiV3 => "apiv3",
        }
    }
}

impl std::fmt::Display for SecretKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for SecretKind {
    type Err = UnknownSecretKind;
    fn from_str(text: &str) -> Result<Self, UnknownSecretKind> {
        [Self::Api, Self::ApiV3]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(UnknownSecretKind)
    }
}

/// A text that names no [`SecretKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be api or apiv3")]
pub struct UnknownSecretKind;

/// What the inner layer holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plain {
    /// Which secret.
    pub kind: SecretKind,
    /// The secret.
    pub secret: SecretText,
}

impl Plain {
    /// Reads what a JWE held.
    pub fn parse(bytes: &SecretBytes) -> Result<Self, JweError> {
        serde_json::from_slice(bytes.expose()).map_err(|_| JweError::Malformed)
    }
}

/// Seals a secret for a key on a token.
pub fn seal(key: &RsaJwk, kind: SecretKind, secret: &SecretText) -> Result<String, JweError> {
    #[derive(Serialize)]
    struct Borrowed<'a> {
        kind: SecretKind,
        secret: &'a str,
    }
    let plain = Borrowed {
        kind,
        secret: secret.expose(),
    };
    // Room from the start: a buffer that grows leaves pieces behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(1024));
    serde_json::to_writer(&mut *bytes, &plain).map_err(|_| JweError::Malformed)?;
    jwe::seal(key, SEALED_TYPE, &bytes)
}

/// The claims of the outer layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedSecret {
    /// The service's origin.
    pub iss: Origin,
    /// Always `opcert`.
    pub aud: String,
    /// When it was sealed, Unix seconds.
    pub iat: i64,
    /// The account whose secret it is.
    pub sub: AccountId,
    /// Which secret.
    pub kind: SecretKind,
    /// 1, 2, 3, … of each kind; one that is not higher than the last one taken is refused.
    pub version: u64,
    /// Until when the one before is still tried, Unix seconds; at most [`LONGEST_OVERLAP`] after
    /// `iat`.
    pub overlap_until: i64,
    /// The inner layer.
    pub jwe: String,
}

impl pinned::Lasting for SealedSecret {
    fn issuer(&self) -> &Origin {
        &self.iss
    }

    fn audience(&self) -> &str {
        &self.aud
    }

    fn issued_at(&self) -> i64 {
        self.iat
    }
}

impl SealedSecret {
    /// Checks `compact` at `now`. `key` answers with the key pinned for an issuer and key id.
    ///
    /// It has no expiry: a computer may be off for weeks, and `version` keeps old ones out.
    pub fn open(
        compact: &str,
        now: Timestamp,
        key: impl FnOnce(&Origin, &str) -> Result<PublicKey, NoKey>,
    ) -> Result<Self, ServiceError> {
        let claims: Self = pinned::open_lasting(compact, TYPE, MAX, now, key)?;
        if claims.overlap_until.saturating_sub(claims.iat) > LONGEST_OVERLAP {
            return Err(ServiceError::Claims(FieldError::at(
                "overlap_until",
                format!("must be at most {LONGEST_OVERLAP} seconds after iat"),
            )));
        }
        Ok(claims)
    }

    /// What the key `kid` has to sign.
    pub fn signing_input(&self, kid: &str) -> Result<String, serde_json::Error> {
        pinned::signing_input(TYPE, kid, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::jose::{Jwk, compact};
    use crate::base::x509::tests::{SoftKey, at};

    #[test]
    fn a_secret_counts_only_with_a_pinned_signature_and_a_bounded_overlap() {
        let (service, other) = (SoftKey::new(), SoftKey::new());
        let mut claims = SealedSecret {
            iss: "https://pay.example".parse().unwrap(),
            aud: "opcert".into(),
            iat: 1_000,
            sub: "acme".parse().unwrap(),
            kind: SecretKind::ApiV3,
            version: 1,
            overlap_until: 1_000 + LONGEST_OVERLAP,
            jwe: "a.b.c.d.e".into(),
        };
        let kid = Jwk::from_public_key(&service.public).unwrap().kid;
        let signed = |claims: &SealedSecret, key: &SoftKey| {
            let input = claims.signing_input(&kid).unwrap();
            let signature = key.sign(input.as_bytes());
            compact(input, &signature)
        };
        let open =
            |text: &str, now| SealedSecret::open(text, at(now), |_, _| Ok(service.public.clone()));
        assert_eq!(open(&signed(&claims, &service), 2_000).unwrap(), claims);
        assert_eq!(
            open(&signed(&claims, &other), 2_000).unwrap_err(),
            ServiceError::Signature
        );
        assert!(matches!(
            open(&signed(&claims, &service), 900),
            Err(ServiceError::NotYetValid { .. })
        ));
        claims.overlap_until += 1;
        assert!(matches!(
            open(&signed(&claims, &service), 2_000),
            Err(ServiceError::Claims(_))
        ));
    }

    #[test]
    fn kinds_have_one_spelling() {
        for kind in [SecretKind::Api, SecretKind::ApiV3] {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
        }
    }
}
