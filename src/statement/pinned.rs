//! A JWS by a pinned key of an account service, read strictly: what challenges, tickets, key sets
//! and sealed secrets share. Challenges and tickets expire; key sets and secrets last until the next
//! one. Which keys are pinned is the caller's to know.

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::origin::Origin;
use super::strict::{FieldError, Object};
use crate::base::jose::{self, JoseError, Jws, KidHeader};
use crate::base::key::{PublicKey, Scheme};

/// Allowed difference between the service's clock and ours, in seconds, for the start of validity.
pub const CLOCK_SKEW: i64 = 30;

/// Why something the account service signed was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// No compact JWS of this format.
    #[error("it is malformed: {0}")]
    Jose(#[from] JoseError),
    /// A claim that is missing, unknown or wrong.
    #[error("it is malformed: {0}")]
    Claims(FieldError),
    /// A statement that breaks the rules of its kind.
    #[error("its statement is refused: {0}")]
    Statement(FieldError),
    /// `aud` names somebody else.
    #[error("it is meant for another audience")]
    Audience,
    /// `iss` is no service this computer is enrolled with.
    #[error("its issuer {issuer} is not known here")]
    IssuerUnknown {
        /// The `iss` claim.
        issuer: String,
    },
    /// `kid` is none of the service's pinned keys.
    #[error("it is signed by a key of {issuer} that is not known here")]
    KeyUnknown {
        /// The `iss` claim.
        issuer: String,
    },
    /// The signature does not verify.
    #[error("its signature does not verify")]
    Signature,
    /// Past `exp`.
    #[error("it expired at {at}")]
    Expired {
        /// The `exp` claim.
        at: Timestamp,
    },
    /// `iat` lies in the future.
    #[error("it is dated {at}, in the future")]
    NotYetValid {
        /// The `iat` claim.
        at: Timestamp,
    },
}

/// Why there is no key to check with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoKey {
    /// The issuer is not known.
    Issuer,
    /// The issuer is known, but has no such key.
    Key,
}

impl NoKey {
    fn error(self, issuer: &Origin) -> ServiceError {
        let issuer = issuer.to_string();
        match self {
            Self::Issuer => ServiceError::IssuerUnknown { issuer },
            Self::Key => ServiceError::KeyUnknown { issuer },
        }
    }
}

/// Claims whose signature verified, validity not yet checked.
pub(super) struct Opened {
    pub issuer: Origin,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    pub rest: Object,
}

/// Parses `compact` as a JWS of type `typ` and checks audience and signature; `key` answers with
/// the pinned key for an issuer and `kid`.
pub(super) fn open(
    compact: &str,
    typ: &'static str,
    limit: usize,
    key: impl FnOnce(&Origin, &str) -> Result<PublicKey, NoKey>,
) -> Result<Opened, ServiceError> {
    let jws = Jws::parse(compact, limit)?;
    let header: KidHeader = jws.header(typ)?;
    let mut claims = Object::parse(&jws.payload).map_err(ServiceError::Claims)?;
    let issuer: Origin = claims.parsed("iss").map_err(ServiceError::Claims)?;
    let audience = claims.text("aud").map_err(ServiceError::Claims)?;
    let issued_at = seconds(&mut claims, "iat")?;
    let expires_at = seconds(&mut claims, "exp")?;
    check(&jws, &header, &issuer, &audience, key)?;
    Ok(Opened {
        issuer,
        issued_at,
        expires_at,
        rest: claims,
    })
}

/// Claims that last: they have no `exp`.
pub(super) trait Lasting: DeserializeOwned {
    /// `iss`.
    fn issuer(&self) -> &Origin;
    /// `aud`.
    fn audience(&self) -> &str;
    /// `iat`, Unix seconds.
    fn issued_at(&self) -> i64;
}

/// As [`open`], for claims that last; they must not be dated past `now`.
pub(super) fn open_lasting<C: Lasting>(
    compact: &str,
    typ: &'static str,
    limit: usize,
    now: Timestamp,
    key: impl FnOnce(&Origin, &str) -> Result<PublicKey, NoKey>,
) -> Result<C, ServiceError> {
    let jws = Jws::parse(compact, limit)?;
    let header: KidHeader = jws.header(typ)?;
    let claims: C = serde_json::from_slice(&jws.payload)
        .map_err(|error| ServiceError::Claims(FieldError::at("", error.to_string())))?;
    check(&jws, &header, claims.issuer(), claims.audience(), key)?;
    if claims.issued_at() > now.as_second() + CLOCK_SKEW {
        return Err(ServiceError::NotYetValid {
            at: Timestamp::from_second(claims.issued_at()).unwrap_or(Timestamp::MAX),
        });
    }
    Ok(claims)
}

/// Checks that it is for us, and signed by a pinned key of `issuer`.
fn check(
    jws: &Jws<'_>,
    header: &KidHeader,
    issuer: &Origin,
    audience: &str,
    key: impl FnOnce(&Origin, &str) -> Result<PublicKey, NoKey>,
) -> Result<(), ServiceError> {
    if audience != "opcert" {
        return Err(ServiceError::Audience);
    }
    let key = key(issuer, &header.kid).map_err(|missing| missing.error(issuer))?;
    if header.alg != Scheme::Es256
        || key
            .verify(Scheme::Es256, jws.signing_input.as_bytes(), &jws.signature)
            .is_err()
    {
        return Err(ServiceError::Signature);
    }
    Ok(())
}

impl Opened {
    /// Refuses what is not valid at `now` or claims to be valid for longer than `longest` seconds.
    pub(super) fn check_times(&self, now: Timestamp, longest: i64) -> Result<(), ServiceError> {
        let lifetime = self.expires_at.as_second() - self.issued_at.as_second();
        if lifetime <= 0 || lifetime > longest {
            return Err(ServiceError::Claims(FieldError::at(
                "exp",
                format!("must be 1 to {longest} seconds after iat"),
            )));
        }
        if now >= self.expires_at {
            return Err(ServiceError::Expired {
                at: self.expires_at,
            });
        }
        if self.issued_at.as_second() > now.as_second() + CLOCK_SKEW {
            return Err(ServiceError::NotYetValid { at: self.issued_at });
        }
        Ok(())
    }
}

/// The signing input of a JWS of type `typ` by the ES256 key `kid`.
pub(super) fn signing_input(
    typ: &'static str,
    kid: &str,
    claims: &impl Serialize,
) -> Result<String, serde_json::Error> {
    let header = KidHeader {
        typ: typ.to_owned(),
        alg: Scheme::Es256,
        kid: kid.to_owned(),
    };
    jose::signing_input(&header, &serde_json::to_vec(claims)?)
}

fn seconds(claims: &mut Object, name: &'static str) -> Result<Timestamp, ServiceError> {
    let second = claims.integer(name).map_err(ServiceError::Claims)?;
    Timestamp::from_second(second)
        .ok()
        .filter(|_| second >= 0)
        .ok_or_else(|| {
            ServiceError::Claims(FieldError::at(name, "must be seconds since 1970-01-01 UTC"))
        })
}
