//! Enrolment tickets: leave to have one certificate issued, won with an SMS code.
//!
//! The service checks that a ticket is spent once; the daemon checks that the certificate it is
//! brought is the one the ticket speaks of.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::origin::Origin;
use super::pinned::{self, NoKey, ServiceError};
use super::strict::Object;
use crate::base::ids::{AccountId, ComputerId, Jti, OperatorId};
use crate::base::jose::Jws;
use crate::base::key::PublicKey;
use crate::base::x509::OperatingIdentity;

/// `typ` of a ticket.
pub const TYPE: &str = "opcert-ticket+jwt";

/// What a ticket is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TicketPurpose {
    /// The first certificate of an operator on a computer.
    Install,
    /// A successor for a certificate that is about to expire.
    Renew,
}

impl std::str::FromStr for TicketPurpose {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "install" => Ok(Self::Install),
            "renew" => Ok(Self::Renew),
            _ => Err("must be install or renew"),
        }
    }
}

/// A ticket whose issuer, signature and times were checked.
#[derive(Debug, Clone)]
pub struct Ticket {
    issuer: Origin,
    jti: Jti,
    expires_at: Timestamp,
    identity: OperatingIdentity,
    purpose: TicketPurpose,
}

impl Ticket {
    /// Longest compact form, in bytes.
    pub const MAX: usize = 4 * 1024;
    /// Longest validity, in seconds.
    pub const LONGEST: i64 = 3_600;

    /// Checks `compact` at `now`. `key` answers with the key for an issuer and key id.
    pub fn open(
        compact: &str,
        now: Timestamp,
        key: impl FnOnce(&Origin, &str) -> Result<PublicKey, NoKey>,
    ) -> Result<Self, ServiceError> {
        let opened = pinned::open(compact, TYPE, Self::MAX, key)?;
        opened.check_times(now, Self::LONGEST)?;
        let mut claims = opened.rest;
        let mut read = || {
            let ticket = (
                claims.parsed("jti")?,
                claims.parsed("sub")?,
                claims.parsed("operator")?,
                claims.parsed("computer")?,
                claims.parsed("purpose")?,
            );
            std::mem::take(&mut claims).finish()?;
            Ok(ticket)
        };
        let (jti, account, operator, computer, purpose) = read().map_err(ServiceError::Claims)?;
        Ok(Self {
            issuer: opened.issuer,
            jti,
            expires_at: opened.expires_at,
            identity: OperatingIdentity {
                account,
                operator,
                computer,
            },
            purpose,
        })
    }

    /// Who issued it.
    pub fn issuer(&self) -> &Origin {
        &self.issuer
    }

    /// Its unique id.
    pub fn jti(&self) -> &Jti {
        &self.jti
    }

    /// When it expires.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// Whom the certificate will speak for.
    pub fn identity(&self) -> &OperatingIdentity {
        &self.identity
    }

    /// What it is good for.
    pub fn purpose(&self) -> TicketPurpose {
        self.purpose
    }

    /// What `compact` says of its purpose, unchecked: whoever spends a ticket checks it.
    pub fn purpose_said(compact: &str) -> Option<TicketPurpose> {
        let jws = Jws::parse(compact, Self::MAX).ok()?;
        Object::parse(&jws.payload).ok()?.parsed("purpose").ok()
    }
}

/// A ticket to be signed.
#[derive(Debug, Serialize)]
pub struct TicketClaims {
    /// The service's origin.
    pub iss: Origin,
    /// Always `opcert`.
    pub aud: &'static str,
    /// 128 random bits.
    pub jti: Jti,
    /// When it is issued, Unix seconds.
    pub iat: i64,
    /// When it expires, Unix seconds.
    pub exp: i64,
    /// The account.
    pub sub: AccountId,
    /// The operator.
    pub operator: OperatorId,
    /// The computer.
    pub computer: ComputerId,
    /// What it is good for.
    pub purpose: TicketPurpose,
}

impl TicketClaims {
    /// Claims for `identity`, valid from `now` for `lifetime` seconds.
    pub fn new(
        issuer: Origin,
        identity: &OperatingIdentity,
        purpose: TicketPurpose,
        now: Timestamp,
        lifetime: i64,
    ) -> Self {
        Self {
            iss: issuer,
            aud: "opcert",
            jti: Jti::random(),
            iat: now.as_second(),
            exp: now.as_second() + lifetime,
            sub: identity.account.clone(),
            operator: identity.operator.clone(),
            computer: identity.computer.clone(),
            purpose,
        }
    }

    /// What the key `kid` has to sign.
    pub fn signing_input(&self, kid: &str) -> Result<String, serde_json::Error> {
        pinned::signing_input(TYPE, kid, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::encoding::base64url;
    use crate::base::jose::{Jwk, compact};
    use crate::base::x509::tests::{SoftKey, at, identity};

    #[test]
    fn a_ticket_opens_to_what_was_issued_and_is_no_challenge() {
        let key = SoftKey::new();
        let issuer: Origin = "https://pay.example".parse().unwrap();
        let claims = TicketClaims::new(issuer, &identity(), TicketPurpose::Install, at(1_000), 600);
        let kid = Jwk::from_public_key(&key.public).unwrap().kid;
        let input = claims.signing_input(&kid).unwrap();
        let signature = key.sign(input.as_bytes());
        let text = compact(input, &signature);
        let ticket = Ticket::open(&text, at(1_100), |_, _| Ok(key.public.clone())).unwrap();
        assert_eq!(ticket.identity(), &identity());
        assert_eq!(ticket.purpose(), TicketPurpose::Install);
        assert_eq!(Ticket::purpose_said(&text), Some(TicketPurpose::Install));
        assert_eq!(Ticket::purpose_said("nothing"), None);
        let parts: Vec<&str> = text.split('.').collect();
        let silent = format!("{}.{}.{}", parts[0], base64url(b"{}"), parts[2]);
        assert_eq!(Ticket::purpose_said(&silent), None);
        let as_challenge = super::super::challenge::Challenge::open(&text, at(1_100), |_, _| {
            Ok(key.public.clone())
        });
        assert!(matches!(as_challenge, Err(ServiceError::Jose(_))));
        let late = Ticket::open(&text, at(1_600), |_, _| Ok(key.public.clone()));
        assert!(matches!(late, Err(ServiceError::Expired { .. })));
        assert_eq!(ticket.expires_at(), at(1_600));
        assert_eq!(ticket.issuer().as_str(), "https://pay.example");
    }

    #[test]
    fn a_ticket_is_good_for_an_hour_at_most_and_says_what_for() {
        let key = SoftKey::new();
        let open = |purpose, lifetime| {
            let issuer = "https://pay.example".parse().unwrap();
            let claims = TicketClaims::new(issuer, &identity(), purpose, at(1_000), lifetime);
            let input = claims.signing_input("k").unwrap();
            let signature = key.sign(input.as_bytes());
            let text = compact(input, &signature);
            assert_eq!(Ticket::purpose_said(&text), Some(purpose));
            let ticket = Ticket::open(&text, at(1_000), |_, _| Ok(key.public.clone()))?;
            assert_eq!(*ticket.jti(), claims.jti);
            Ok::<_, ServiceError>(ticket.purpose())
        };
        for purpose in [TicketPurpose::Install, TicketPurpose::Renew] {
            assert_eq!(open(purpose, 3_600), Ok(purpose));
        }
        let issuer = "https://pay.example".parse().unwrap();
        let claims = TicketClaims::new(issuer, &identity(), TicketPurpose::Install, at(1_000), 600);
        let mut claims = serde_json::to_value(claims).unwrap();
        claims["extra"] = 1.into();
        let input = pinned::signing_input(TYPE, "k", &claims).unwrap();
        let text = compact(input.clone(), &key.sign(input.as_bytes()));
        let extra = Ticket::open(&text, at(1_000), |_, _| Ok(key.public.clone()));
        assert!(matches!(extra, Err(ServiceError::Claims(error)) if error.field == "extra"));
        let long = open(TicketPurpose::Renew, 3_601);
        assert!(matches!(long, Err(ServiceError::Claims(_))));
        assert!("revoke".parse::<TicketPurpose>().is_err());
    }
}
