//! Key sets: the account service's next challenge keys and issuing authorities, vouched for by one
//! of the present challenge keys.
//!
//! A daemon pins the keys and authorities it met at enrolment. It takes others only in this form,
//! signed by a key it has pinned, so a rotation needs no trust in the courier; what the set no
//! longer names is pinned no longer.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::origin::Origin;
use super::pinned::{self, NoKey, ServiceError};
use crate::base::encoding::{base64, from_base64};
use crate::base::jose::JwkSet;
use crate::base::key::PublicKey;
use crate::base::x509::{Certificate, X509Error};

/// `typ` of a key set.
pub const TYPE: &str = "opcert-keys+jwt";

/// Longest compact form, in bytes: sixteen keys and eight authorities fit.
pub const MAX: usize = 32 * 1024;

/// The claims of a key set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySet {
    /// The service's origin.
    pub iss: Origin,
    /// Always `opcert`.
    pub aud: String,
    /// When it was made, Unix seconds. A set older than the pinned one is refused.
    pub iat: i64,
    /// All keys that are good from now on.
    pub keys: JwkSet,
    /// All authorities whose certificates are good from now on, each base64 of DER.
    pub authorities: Vec<String>,
}

impl pinned::Lasting for KeySet {
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

impl KeySet {
    /// A set made at `now`.
    pub fn new(issuer: Origin, keys: JwkSet, authorities: &[Certificate], now: Timestamp) -> Self {
        Self {
            iss: issuer,
            aud: "opcert".into(),
            iat: now.as_second(),
            keys,
            authorities: authorities
                .iter()
                .map(|authority| base64(authority.der()))
                .collect(),
        }
    }

    /// Checks `compact` at `now`. `key` answers with the key pinned for an issuer and key id.
    pub fn open(
        compact: &str,
        now: Timestamp,
        key: impl FnOnce(&Origin, &str) -> Result<PublicKey, NoKey>,
    ) -> Result<Self, ServiceError> {
        pinned::open_lasting(compact, TYPE, MAX, now, key)
    }

    /// The authorities it names.
    pub fn authorities(&self) -> Result<Vec<Certificate>, X509Error> {
        self.authorities
            .iter()
            .map(|text| Certificate::from_der(&from_base64(text.as_bytes()).unwrap_or_default()))
            .collect()
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
    use crate::base::x509::tests::{SoftKey, at, authority};

    #[test]
    fn a_set_counts_only_with_a_pinned_signature() {
        let (old, new) = (SoftKey::new(), SoftKey::new());
        let keys = JwkSet {
            keys: vec![Jwk::from_public_key(&new.public).unwrap()],
        };
        let issuer: Origin = "https://pay.example".parse().unwrap();
        let ca = authority(&SoftKey::new());
        let set = KeySet::new(issuer, keys.clone(), std::slice::from_ref(&ca), at(1_000));
        let kid = Jwk::from_public_key(&old.public).unwrap().kid;
        let input = set.signing_input(&kid).unwrap();
        let text = compact(input.clone(), &old.sign(input.as_bytes()));
        let opened = KeySet::open(&text, at(1_000), |_, _| Ok(old.public.clone())).unwrap();
        assert_eq!(opened.keys, keys);
        let authorities = opened.authorities().unwrap();
        assert_eq!(authorities.len(), 1);
        assert_eq!(authorities[0].der(), ca.der());
        let forged = compact(input.clone(), &new.sign(input.as_bytes()));
        let result = KeySet::open(&forged, at(1_000), |_, _| Ok(old.public.clone()));
        assert_eq!(result.unwrap_err(), ServiceError::Signature);
        assert!(KeySet::open(&text, at(970), |_, _| Ok(old.public.clone())).is_ok());
        let early = KeySet::open(&text, at(969), |_, _| Ok(old.public.clone()));
        assert!(matches!(early, Err(ServiceError::NotYetValid { .. })));
    }
}
