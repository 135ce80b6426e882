//! A computer asks the account service for the API secrets of an account.
//!
//! The daemon opens no connection, so a courier carries the request; it is signed by an operating
//! certificate of the computer and needs no other credential. It names the key on the token that
//! secrets are to be sealed to, and the versions that are there already: so it proves the key,
//! asks for what is newer, and acknowledges what has arrived, all in one.
//!
//! It is good for five minutes. Whoever repeats it meanwhile gets what only that token opens.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::certified::{self, CertifiedError};
use super::origin::Origin;
use super::pinned::CLOCK_SKEW;
use super::sealed_secret::SecretKind;
use super::strict::FieldError;
use crate::base::encoding::base64url;
use crate::base::ids::{AccountId, ComputerId, OperatorId};
use crate::base::jose;
use crate::base::jwe::RsaJwk;
use crate::base::key::{Scheme, Signature};
use crate::base::x509::Certificate;
use crate::wechatpay::MerchantId;

/// `typ` of a request.
pub const TYPE: &str = "opcert-secret-request+jwt";

/// Longest compact form, in bytes.
pub const MAX: usize = 32 * 1024;

/// How long a request is good after it was signed, in seconds.
pub const LIFETIME: i64 = 300;

/// The versions of an account's secrets that a computer has; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Of the API secret.
    pub api: u64,
    /// Of the APIv3 secret.
    pub apiv3: u64,
}

impl Held {
    /// The version of one kind.
    pub fn of(self, kind: SecretKind) -> u64 {
        match kind {
            SecretKind::Api => self.api,
            SecretKind::ApiV3 => self.apiv3,
        }
    }
}

/// The claims of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRequestClaims {
    /// The account service it is meant for.
    pub aud: Origin,
    /// When it was signed, Unix seconds.
    pub iat: i64,
    /// The account whose secrets are asked for.
    pub account: AccountId,
    /// The computer.
    pub computer: ComputerId,
    /// The merchant on it that needs them.
    pub merchant: MerchantId,
    /// What they are to be sealed to.
    pub sealing_key: RsaJwk,
    /// What is there already.
    pub held: Held,
}

impl SecretRequestClaims {
    /// What the first certificate of `chain` has to sign, with `scheme`.
    pub fn signing_input(
        &self,
        scheme: Scheme,
        chain: &[Certificate],
    ) -> Result<String, serde_json::Error> {
        let mut input = certified::header(TYPE, scheme, chain)?;
        input.push('.');
        input.push_str(&base64url(&serde_json::to_vec(self)?));
        Ok(input)
    }

    /// The compact request.
    pub fn assemble(signing_input: String, signature: &Signature) -> String {
        jose::compact(signing_input, signature)
    }
}

/// A request that verified.
#[derive(Debug, Clone)]
pub struct SecretRequest {
    /// What it says.
    pub claims: SecretRequestClaims,
    /// The operator whose certificate vouches for it.
    pub operator: OperatorId,
    /// That certificate.
    pub certificate: Certificate,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub enum SecretRequestError {
    /// It is no JWS by an operating certificate.
    #[error(transparent)]
    Certified(#[from] CertifiedError),
    /// A claim that is missing, unknown or wrong.
    #[error("it is malformed: {0}")]
    Claims(#[from] FieldError),
    /// It was signed too long ago, or lies in the future.
    #[error("it was signed at {at}, and is good for {LIFETIME} s after that")]
    Time {
        /// When.
        at: Timestamp,
    },
    /// The certificate speaks for another account or computer.
    #[error("the certificate speaks for another {field}")]
    Identity {
        /// Which claim differs.
        field: &'static str,
    },
}

impl SecretRequest {
    /// Verifies `compact` at `now` with the authorities `anchors`. Revocation is for the caller to
    /// look up, and so is whether the service is the one it is meant for.
    pub fn verify(
        compact: &str,
        anchors: &[Certificate],
        now: Timestamp,
    ) -> Result<Self, SecretRequestError> {
        let (payload, certificate) = certified::open(compact, TYPE, MAX, anchors, None, now)?;
        let claims: SecretRequestClaims = serde_json::from_slice(&payload)
            .map_err(|error| FieldError::at("", error.to_string()))?;
        let age = now.as_second().saturating_sub(claims.iat);
        if !(-CLOCK_SKEW..=LIFETIME).contains(&age) {
            return Err(SecretRequestError::Time {
                at: Timestamp::from_second(claims.iat).unwrap_or_default(),
            });
        }
        claims
            .sealing_key
            .to_public_key()
            .map_err(|error| FieldError::at("sealing_key", error.to_string()))?;
        let identity = certificate
            .identity()
            .ok_or(SecretRequestError::Identity { field: "subject" })?;
        for (field, same) in [
            ("account", identity.account == claims.account),
            ("computer", identity.computer == claims.computer),
        ] {
            if !same {
                return Err(SecretRequestError::Identity { field });
            }
        }
        Ok(Self {
            claims,
            operator: identity.operator,
            certificate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::key::PublicKey;
    use crate::base::x509::tests::{SoftKey, at, authority, identity, operating_certificate};
    use crate::statement::challenge::tests::NOW;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};

    fn sealing_key() -> RsaJwk {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let spki = private.public_key().as_der().unwrap();
        RsaJwk::from_public_key(&PublicKey::from_spki(spki.as_ref()).unwrap()).unwrap()
    }

    #[test]
    fn a_request_counts_for_its_own_computer_and_for_minutes() {
        let (ca_key, key) = (SoftKey::new(), SoftKey::new());
        let ca = authority(&ca_key);
        let leaf = operating_certificate(&ca, &ca_key, &key.public);
        let claims = SecretRequestClaims {
            aud: "https://pay.example".parse().unwrap(),
            iat: NOW,
            account: identity().account,
            computer: identity().computer,
            merchant: "1900007291".parse().unwrap(),
            sealing_key: sealing_key(),
            held: Held { api: 0, apiv3: 3 },
        };
        let signed = |claims: &SecretRequestClaims, by: &SoftKey| {
            let chain = std::slice::from_ref(&leaf);
            let input = claims.signing_input(Scheme::Es256, chain).unwrap();
            let signature = by.sign(input.as_bytes());
            SecretRequestClaims::assemble(input, &signature)
        };
        let verify = |compact: &str, now: i64| {
            SecretRequest::verify(compact, std::slice::from_ref(&ca), at(now))
        };
        let good = signed(&claims, &key);
        let request = verify(&good, NOW + LIFETIME).unwrap();
        assert_eq!(request.claims, claims);
        assert_eq!(request.operator, identity().operator);
        assert_eq!(request.claims.held.of(SecretKind::ApiV3), 3);
        for now in [NOW + LIFETIME + 1, NOW - CLOCK_SKEW - 1] {
            assert!(matches!(
                verify(&good, now),
                Err(SecretRequestError::Time { .. })
            ));
        }
        assert!(matches!(
            verify(&signed(&claims, &SoftKey::new()), NOW),
            Err(SecretRequestError::Certified(CertifiedError::Signature(_)))
        ));
        let stranger = authority(&SoftKey::new());
        assert!(matches!(
            SecretRequest::verify(&good, &[stranger], at(NOW)),
            Err(SecretRequestError::Certified(CertifiedError::Certificate(
                _
            )))
        ));
        for (field, change) in [
            (
                "account",
                SecretRequestClaims {
                    account: "other".parse().unwrap(),
                    ..claims.clone()
                },
            ),
            (
                "computer",
                SecretRequestClaims {
                    computer: "other".parse().unwrap(),
                    ..claims.clone()
                },
            ),
        ] {
            let error = verify(&signed(&change, &key), NOW).unwrap_err();
            assert!(
                matches!(error, SecretRequestError::Identity { field: found } if found == field),
                "{error}"
            );
        }
        let mut unsound = claims.clone();
        unsound.sealing_key.kid = "mine".into();
        assert!(matches!(
            verify(&signed(&unsound, &key), NOW),
            Err(SecretRequestError::Claims(_))
        ));
    }
}
