//! Challenges: a statement the account service wants approved, for one operator, for two minutes.

use jiff::Timestamp;
use serde::Serialize;

use super::operation::Statement;
use super::origin::Origin;
use super::pinned::{self, NoKey, ServiceError};
use super::strict::FieldError;
use crate::base::encoding::{base64url, sha256};
use crate::base::ids::{AccountId, Jti, OperatorId};
use crate::base::key::PublicKey;

/// `typ` of a challenge.
pub const TYPE: &str = "opcert-challenge+jwt";

/// A challenge whose issuer, signature and times were checked.
#[derive(Debug, Clone)]
pub struct Challenge {
    issuer: Origin,
    jti: Jti,
    expires_at: Timestamp,
    origin: Option<Origin>,
    statement: Statement,
    hash: [u8; 32],
}

impl Challenge {
    /// Longest compact form, in bytes.
    pub const MAX: usize = 8 * 1024;
    /// Longest validity, in seconds. The service issues for 120 s unless told otherwise.
    pub const LONGEST: i64 = 600;
    /// How far ahead of ours the clock of the service may be, in seconds.
    pub const SKEW: i64 = pinned::CLOCK_SKEW;

    /// Checks `compact` at `now`. `key` answers with the key pinned for an issuer and key id.
    pub fn open(
        compact: &str,
        now: Timestamp,
        key: impl FnOnce(&Origin, &str) -> Result<PublicKey, NoKey>,
    ) -> Result<Self, ServiceError> {
        let mut opened = pinned::open(compact, TYPE, Self::MAX, key)?;
        opened.check_times(now, Self::LONGEST)?;
        let claims = &mut opened.rest;
        let jti = claims.parsed("jti").map_err(ServiceError::Claims)?;
        let account: AccountId = claims.parsed("sub").map_err(ServiceError::Claims)?;
        let operator: OperatorId = claims.parsed("operator").map_err(ServiceError::Claims)?;
        let origin = claims
            .optional_text("origin")
            .and_then(|origin| {
                origin
                    .map(|origin| {
                        origin
                            .parse()
                            .map_err(|error: super::origin::InvalidOrigin| {
                                FieldError::at("origin", error.to_string())
                            })
                    })
                    .transpose()
            })
            .map_err(ServiceError::Claims)?;
        let statement = claims
            .object("statement")
            .map_err(ServiceError::Claims)
            .and_then(|object| Statement::from_object(object).map_err(ServiceError::Statement))?;
        std::mem::take(claims)
            .finish()
            .map_err(ServiceError::Claims)?;
        if *statement.account() != account || *statement.operator() != operator {
            return Err(ServiceError::Claims(FieldError::at(
                "statement",
                "must name the account and operator of the challenge",
            )));
        }
        Ok(Self {
            issuer: opened.issuer,
            jti,
            expires_at: opened.expires_at,
            origin,
            statement,
            hash: sha256(compact.as_bytes()),
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

    /// The page that may relay it; `None` for none.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// What is to be approved.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// SHA-256 of the compact form, base64url: how an approval names it.
    pub fn hash(&self) -> String {
        base64url(&self.hash)
    }
}

/// A challenge to be signed.
#[derive(Debug, Serialize)]
pub struct ChallengeClaims {
    /// The service's origin.
    pub iss: Origin,
    /// Always `opcert`.
    pub aud: &'static str,
    /// 128 random bits or more.
    pub jti: Jti,
    /// When it is issued, Unix seconds.
    pub iat: i64,
    /// When it expires, Unix seconds.
    pub exp: i64,
    /// The account.
    pub sub: AccountId,
    /// The operator who is asked.
    pub operator: OperatorId,
    /// The page that may relay it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The statement, as [`Statement::to_json`] gives it.
    pub statement: serde_json::Value,
}

impl ChallengeClaims {
    /// Claims for `statement`, valid from `now` for `lifetime` seconds.
    pub fn new(
        issuer: Origin,
        statement: &Statement,
        origin: Option<Origin>,
        now: Timestamp,
        lifetime: i64,
    ) -> Self {
        Self {
            iss: issuer,
            aud: "opcert",
            jti: Jti::random(),
            iat: now.as_second(),
            exp: now.as_second() + lifetime,
            sub: statement.account().clone(),
            operator: statement.operator().clone(),
            origin,
            statement: statement.to_json(),
        }
    }

    /// What the key `kid` has to sign.
    pub fn signing_input(&self, kid: &str) -> Result<String, serde_json::Error> {
        pinned::signing_input(TYPE, kid, self)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::jose::{Jwk, compact};
    use crate::base::x509::tests::{SoftKey, at};
    use crate::statement::Facts;
    use proptest::prelude::*;

    pub(crate) const NOW: i64 = 1_700_000_000;

    pub(crate) fn statement() -> Statement {
        Statement::new(
            "withdrawal".parse().unwrap(),
            "acme".parse().unwrap(),
            "alice".parse().unwrap(),
            Facts {
                amount: Some((100_000, "CNY".into())),
                payee: Some("ICBC 6222 **** 1234".into()),
                reference: Some("W-1".into()),
                ..Facts::default()
            },
        )
        .unwrap()
    }

    pub(crate) fn issue(key: &SoftKey, change: impl FnOnce(&mut ChallengeClaims)) -> String {
        let issuer = "https://pay.example".parse().unwrap();
        let mut claims = ChallengeClaims::new(issuer, &statement(), None, at(NOW), 120);
        change(&mut claims);
        let kid = Jwk::from_public_key(&key.public).unwrap().kid;
        let input = claims.signing_input(&kid).unwrap();
        let signature = key.sign(input.as_bytes());
        compact(input, &signature)
    }

    fn open(key: &SoftKey, compact: &str, now: i64) -> Result<Challenge, ServiceError> {
        let kid = Jwk::from_public_key(&key.public).unwrap().kid;
        Challenge::open(compact, at(now), |issuer, wanted| {
            if issuer.as_str() != "https://pay.example" {
                Err(NoKey::Issuer)
            } else if wanted == kid {
                Ok(key.public.clone())
            } else {
                Err(NoKey::Key)
            }
        })
    }

    #[test]
    fn a_good_challenge_opens_to_what_was_issued() {
        let key = SoftKey::new();
        let compact = issue(&key, |_| ());
        let challenge = open(&key, &compact, NOW).unwrap();
        assert_eq!(challenge.statement(), &statement());
        assert_eq!(challenge.expires_at(), at(NOW + 120));
        open(&key, &compact, NOW + 119).unwrap();
        assert_eq!(
            open(&key, &compact, NOW + 120).unwrap_err(),
            ServiceError::Expired { at: at(NOW + 120) }
        );
        assert!(matches!(
            open(&key, &compact, NOW - 31).unwrap_err(),
            ServiceError::NotYetValid { .. }
        ));
    }

    #[test]
    fn each_fault_has_its_own_error() {
        let key = SoftKey::new();
        let fault =
            |change: fn(&mut ChallengeClaims)| open(&key, &issue(&key, change), NOW).unwrap_err();
        assert_eq!(fault(|claims| claims.aud = "bank"), ServiceError::Audience);
        assert!(matches!(
            fault(|claims| claims.iss = "https://other.example".parse().unwrap()),
            ServiceError::IssuerUnknown { .. }
        ));
        assert!(matches!(
            fault(|claims| claims.exp = claims.iat + 601),
            ServiceError::Claims(_)
        ));
        assert!(matches!(
            fault(|claims| claims.sub = "other".parse().unwrap()),
            ServiceError::Claims(_)
        ));
        assert!(matches!(
            fault(|claims| claims.operator = "bob".parse().unwrap()),
            ServiceError::Claims(_)
        ));
        assert!(matches!(
            fault(|claims| claims.statement["amount"] = serde_json::json!(1.5)),
            ServiceError::Claims(_)
        ));
        assert_eq!(
            fault(|claims| claims.statement["extra"] = "x".into()),
            ServiceError::Statement(FieldError::at("extra", "is not known here"))
        );
        let stranger = SoftKey::new();
        assert!(matches!(
            open(&key, &issue(&stranger, |_| ()), NOW).unwrap_err(),
            ServiceError::KeyUnknown { .. }
        ));
    }

    #[test]
    fn a_challenge_says_nothing_that_is_not_known() {
        let key = SoftKey::new();
        let issuer = "https://pay.example".parse().unwrap();
        let claims = ChallengeClaims::new(issuer, &statement(), None, at(NOW), 120);
        let mut claims = serde_json::to_value(claims).unwrap();
        claims["extra"] = 1.into();
        let kid = Jwk::from_public_key(&key.public).unwrap().kid;
        let input = pinned::signing_input(TYPE, &kid, &claims).unwrap();
        let signature = key.sign(input.as_bytes());
        assert_eq!(
            open(&key, &compact(input, &signature), NOW).unwrap_err(),
            ServiceError::Claims(FieldError::at("extra", "is not known here"))
        );
    }

    #[test]
    fn times_are_kept_to_the_second() {
        let key = SoftKey::new();
        let compact = issue(&key, |_| ());
        open(&key, &compact, NOW - 30).unwrap();
        let longest = issue(&key, |claims| claims.exp = claims.iat + 600);
        open(&key, &longest, NOW + 599).unwrap();
        for exp in [NOW, NOW - 1] {
            let empty = issue(&key, |claims| claims.exp = exp);
            let error = open(&key, &empty, NOW - 10).unwrap_err();
            let ServiceError::Claims(error) = error else {
                panic!("{error}");
            };
            assert_eq!(error.field, "exp");
        }
        let at_its_beginning = issue(&key, |claims| (claims.iat, claims.exp) = (0, 5));
        open(&key, &at_its_beginning, 0).unwrap();
        let before_time = issue(&key, |claims| (claims.iat, claims.exp) = (-5, 5));
        let error = open(&key, &before_time, 0).unwrap_err();
        assert!(error.to_string().contains("iat"), "{error}");
    }

    #[test]
    fn who_issued_it_and_who_may_relay_it_are_read() {
        let key = SoftKey::new();
        let page: Origin = "https://shop.example".parse().unwrap();
        let compact = issue(&key, |claims| claims.origin = Some(page.clone()));
        let challenge = open(&key, &compact, NOW).unwrap();
        assert_eq!(challenge.origin(), Some(&page));
        assert_eq!(challenge.issuer().as_str(), "https://pay.example");
        assert_eq!(challenge.hash(), base64url(&sha256(compact.as_bytes())));
        let other = issue(&key, |claims| {
            claims.jti = "one-12345678901234567890".parse().unwrap()
        });
        let other = open(&key, &other, NOW).unwrap();
        assert_eq!(other.origin(), None);
        assert_eq!(other.jti().as_str(), "one-12345678901234567890");
        assert_ne!(other.hash(), challenge.hash());
    }

    proptest! {
        #[test]
        fn no_change_of_one_character_survives(index: proptest::sample::Index, replacement in "[A-Za-z0-9_.-]") {
            let key = SoftKey::new();
            let good = issue(&key, |_| ());
            let index = index.index(good.len());
            let mut bad = good.clone();
            bad.replace_range(index..=index, &replacement);
            prop_assume!(bad != good);
            prop_assert!(open(&key, &bad, NOW).is_err());
        }

        #[test]
        fn garbage_is_an_error(garbage in "\\PC{0,200}") {
            prop_assert!(open(&SoftKey::new(), &garbage, NOW).is_err());
        }
    }
}
