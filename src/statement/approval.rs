//! Approvals: a challenge and its statement, signed by an operating certificate.
//!
//! The daemon builds one from a checked [`Challenge`] and gives [`ApprovalDraft::signing_input`]
//! to the token; anybody verifies one with [`Approval::verify`], which needs nothing but the
//! issuing authority's certificate.

use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::certified::{self, CertifiedError};
use super::challenge::Challenge;
use super::operation::Statement;
use super::origin::Origin;
use super::strict::{FieldError, Object};
use crate::base::encoding::{base64url, sha256};
use crate::base::ids::{ComputerId, Jti};
use crate::base::jose::{self, JoseError, Jws};
use crate::base::key::{KeyError, Scheme, Signature};
use crate::base::x509::{Certificate, Crl, StaleCrl, X509Error};

/// `typ` of an approval.
pub const TYPE: &str = "opcert-approval+jwt";

/// How consent came about, as the approval and the audit trail state it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    /// The way.
    pub method: ConsentMethod,
    /// When, in Unix seconds.
    pub at: i64,
}

/// The ways of consent, as approvals name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsentMethod {
    /// A person pressed OK in a pinentry window.
    Pinentry,
    /// A person agreed on the device itself.
    ProtectedPath,
    /// The client's policy asks nobody.
    Policy,
}

impl FromStr for ConsentMethod {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "pinentry" => Ok(Self::Pinentry),
            "protected-path" => Ok(Self::ProtectedPath),
            "policy" => Ok(Self::Policy),
            _ => Err("must be pinentry, protected-path or policy"),
        }
    }
}

/// The encoded JWS header of a certificate's approvals, made once when it is installed.
#[derive(Debug, Clone)]
pub struct ApprovalHeader(String);

impl ApprovalHeader {
    /// The header for signatures of `scheme` by the first certificate of `chain`.
    pub fn new(scheme: Scheme, chain: &[Certificate]) -> Result<Self, serde_json::Error> {
        Ok(Self(certified::header(TYPE, scheme, chain)?))
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a Origin,
    jti: &'a Jti,
    iat: i64,
    challenge: String,
    challenge_jti: &'a Jti,
    statement: serde_json::Value,
    client: &'a str,
    origin: Option<&'a Origin>,
    computer: &'a ComputerId,
    consent: &'a Consent,
}

/// An approval that lacks only its signature.
#[derive(Debug, Clone)]
pub struct ApprovalDraft {
    jti: Jti,
    payload: Vec<u8>,
}

impl ApprovalDraft {
    /// An approval of `challenge` asked for by `client` and agreed to by `consent`.
    pub fn new(
        challenge: &Challenge,
        client: &str,
        origin: Option<&Origin>,
        computer: &ComputerId,
        consent: &Consent,
        now: Timestamp,
    ) -> Result<Self, serde_json::Error> {
        let jti = Jti::random();
        let payload = serde_json::to_vec(&Claims {
            aud: challenge.issuer(),
            jti: &jti,
            iat: now.as_second(),
            challenge: challenge.hash(),
            challenge_jti: challenge.jti(),
            statement: challenge.statement().to_json(),
            client,
            origin,
            computer,
            consent,
        })?;
        Ok(Self { jti, payload })
    }

    /// The draft whose payload was made before; `payload` is trusted, as an audit record is.
    pub fn from_payload(jti: Jti, payload: Vec<u8>) -> Self {
        Self { jti, payload }
    }

    /// The approval's id.
    pub fn jti(&self) -> &Jti {
        &self.jti
    }

    /// How consent to it came about.
    pub fn consent(&self) -> Result<Consent, serde_json::Error> {
        #[derive(Deserialize)]
        struct OnlyConsent {
            consent: Consent,
        }
        serde_json::from_slice::<OnlyConsent>(&self.payload).map(|claims| claims.consent)
    }

    /// The page it was asked for by, where a page did.
    pub fn origin(&self) -> Result<Option<Origin>, serde_json::Error> {
        #[derive(Deserialize)]
        struct OnlyOrigin {
            origin: Option<Origin>,
        }
        serde_json::from_slice::<OnlyOrigin>(&self.payload).map(|claims| claims.origin)
    }

    /// The JSON payload, which a detached CMS signature covers too.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// What the key has to sign.
    pub fn signing_input(&self, header: &ApprovalHeader) -> String {
        let payload = base64url(&self.payload);
        let mut input = String::with_capacity(header.0.len() + payload.len() + 400);
        input.push_str(&header.0);
        input.push('.');
        input.push_str(&payload);
        input
    }

    /// The compact approval.
    pub fn assemble(signing_input: String, signature: &Signature) -> String {
        jose::compact(signing_input, signature)
    }
}

/// What `compact` approves, without a look at who signed it: for whoever just had it signed.
pub fn statement_in(compact: &str) -> Result<Statement, ApprovalError> {
    let jws = Jws::parse(compact, Approval::MAX)?;
    let statement = Object::parse(&jws.payload)?.object("statement")?;
    Ok(Statement::from_object(statement)?)
}

/// An approval that verified.
#[derive(Debug, Clone)]
pub struct Approval {
    /// The service it is meant for.
    pub audience: Origin,
    /// Its unique id.
    pub jti: Jti,
    /// When it was made, by the daemon's clock.
    pub issued_at: Timestamp,
    /// SHA-256 of the compact challenge, base64url.
    pub challenge: String,
    /// The challenge's id.
    pub challenge_jti: Jti,
    /// What was approved.
    pub statement: Statement,
    /// The program that asked.
    pub client: String,
    /// The page that relayed, if one did.
    pub origin: Option<Origin>,
    /// How consent came about.
    pub consent: Consent,
    /// The operating certificate that signed.
    pub certificate: Certificate,
}

/// Why an approval was refused.
#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    /// No compact JWS of this format.
    #[error("the approval is malformed: {0}")]
    Jose(#[from] JoseError),
    /// A claim that is missing, unknown or wrong.
    #[error("the approval is malformed: {0}")]
    Claims(#[from] FieldError),
    /// The certificate is malformed or has no valid path to the given authority.
    #[error("the certificate of the approval is refused: {0}")]
    Certificate(#[from] X509Error),
    /// The header's thumbprint is of another certificate.
    #[error("the thumbprint in the header is of another certificate")]
    Thumbprint,
    /// The certificate speaks for another account, operator or computer than the approval.
    #[error("the certificate speaks for somebody else than the approval's {field}")]
    Identity {
        /// Which claim differs.
        field: &'static str,
    },
    /// The signature does not verify.
    #[error("the approval is not sound: {0}")]
    Signature(#[from] KeyError),
}

impl From<CertifiedError> for ApprovalError {
    fn from(error: CertifiedError) -> Self {
        match error {
            CertifiedError::Jose(error) => Self::Jose(error),
            CertifiedError::Certificate(error) => Self::Certificate(error),
            CertifiedError::Thumbprint => Self::Thumbprint,
            CertifiedError::Signature(error) => Self::Signature(error),
        }
    }
}

impl Approval {
    /// Longest compact form, in bytes.
    pub const MAX: usize = 64 * 1024;

    /// Verifies `compact` at `now` with the authorities `anchors` and perhaps a revocation list.
    /// Expiry of the challenge and single use are for the caller, who knows the challenge.
    pub fn verify(
        compact: &str,
        anchors: &[Certificate],
        crl: Option<(&Crl, StaleCrl)>,
        now: Timestamp,
    ) -> Result<Self, ApprovalError> {
        let (payload, leaf) = certified::open(compact, TYPE, Self::MAX, anchors, crl, now)?;
        Self::read(&payload, leaf)
    }

    fn read(payload: &[u8], certificate: Certificate) -> Result<Self, ApprovalError> {
        let mut claims = Object::parse(payload)?;
        let mut consent = claims.object("consent")?;
        let read_consent = Consent {
            method: consent
                .parsed("method")
                .map_err(|error| error.within("consent"))?,
            at: consent
                .integer("at")
                .map_err(|error| error.within("consent"))?,
        };
        consent.finish().map_err(|error| error.within("consent"))?;
        let statement = Statement::from_object(claims.object("statement")?)
            .map_err(|error| error.within("statement"))?;
        let computer: ComputerId = claims.parsed("computer")?;
        let issued_at = claims.integer("iat")?;
        let origin = claims
            .nullable_text("origin")?
            .map(|origin| {
                origin
                    .parse()
                    .map_err(|error: super::origin::InvalidOrigin| {
                        FieldError::at("origin", error.to_string())
                    })
            })
            .transpose()?;
        let identity = certificate
            .identity()
            .ok_or(ApprovalError::Identity { field: "subject" })?;
        for (field, same) in [
            ("account", identity.account == *statement.account()),
            ("operator", identity.operator == *statement.operator()),
            ("computer", identity.computer == computer),
        ] {
            if !same {
                return Err(ApprovalError::Identity { field });
            }
        }
        let approval = Self {
            audience: claims.parsed("aud")?,
            jti: claims.parsed("jti")?,
            issued_at: Timestamp::from_second(issued_at)
                .map_err(|_| FieldError::at("iat", "must be seconds since 1970-01-01 UTC"))?,
            challenge: claims.text("challenge")?,
            challenge_jti: claims.parsed("challenge_jti")?,
            statement,
            client: claims.text("client")?,
            origin,
            consent: read_consent,
            certificate,
        };
        claims.finish()?;
        Ok(approval)
    }

    /// Whether this approves exactly the challenge in `compact`.
    pub fn is_for(&self, compact: &str) -> bool {
        self.challenge == base64url(&sha256(compact.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::x509::tests::{SoftKey, at, authority, operating_certificate};
    use crate::statement::ChallengeClaims;
    use crate::statement::challenge::tests::{NOW, issue, statement};
    use proptest::prelude::*;

    struct Scene {
        ca: Certificate,
        challenge: String,
        approval: String,
        key: SoftKey,
    }

    impl Scene {
        fn verify(&self, approval: &str) -> Result<Approval, ApprovalError> {
            Approval::verify(approval, std::slice::from_ref(&self.ca), None, at(NOW))
        }

        /// The approval with another header (part 0) or payload (part 1), signed again.
        fn changed(&self, part: usize, change: fn(&mut serde_json::Value)) -> String {
            let mut parts: Vec<String> = self.approval.split('.').map(str::to_owned).collect();
            parts.truncate(2);
            let json = crate::base::encoding::from_base64url(&parts[part]).unwrap();
            let mut json = serde_json::from_slice(&json).unwrap();
            change(&mut json);
            parts[part] = base64url(json.to_string().as_bytes());
            let input = parts.join(".");
            let signature = self.key.sign(input.as_bytes());
            ApprovalDraft::assemble(input, &signature)
        }
    }

    fn scene() -> Scene {
        scene_of(|_| (), "desk-1", 1)
    }

    /// An approval of a changed challenge, for a computer, whose header brings so many certificates.
    fn scene_of(
        change: impl FnOnce(&mut ChallengeClaims),
        computer: &str,
        certificates: usize,
    ) -> Scene {
        let (service, ca_key, key) = (SoftKey::new(), SoftKey::new(), SoftKey::new());
        let ca = authority(&ca_key);
        let leaf = operating_certificate(&ca, &ca_key, &key.public);
        let challenge = issue(&service, change);
        let opened =
            Challenge::open(&challenge, at(NOW), |_, _| Ok(service.public.clone())).unwrap();
        let consent = Consent {
            method: ConsentMethod::Pinentry,
            at: NOW,
        };
        let draft = ApprovalDraft::new(
            &opened,
            "till",
            None,
            &computer.parse().unwrap(),
            &consent,
            at(NOW),
        )
        .unwrap();
        let chain = vec![leaf; certificates];
        let input = draft.signing_input(&ApprovalHeader::new(Scheme::Es256, &chain).unwrap());
        let signature = key.sign(input.as_bytes());
        Scene {
            ca,
            challenge,
            approval: ApprovalDraft::assemble(input, &signature),
            key,
        }
    }

    #[test]
    fn an_approval_says_nothing_that_is_not_known_and_names_its_own_certificate() {
        let scene = scene();
        assert!(scene.verify(&scene.changed(1, |_| ())).is_ok());
        let changes: [fn(&mut serde_json::Value); 3] = [
            |claims| claims["extra"] = 1.into(),
            |claims| claims["consent"]["extra"] = 1.into(),
            |claims| claims["statement"]["extra"] = 1.into(),
        ];
        for change in changes {
            let error = scene.verify(&scene.changed(1, change)).unwrap_err();
            assert!(matches!(error, ApprovalError::Claims(_)), "{error}");
        }
        let other = scene.changed(0, |header| header["x5t#S256"] = "AAAA".into());
        let error = scene.verify(&other).unwrap_err();
        assert!(matches!(error, ApprovalError::Thumbprint), "{error}");
    }

    #[test]
    fn an_approval_verifies_with_nothing_but_the_authority() {
        let scene = scene();
        let approval = Approval::verify(
            &scene.approval,
            std::slice::from_ref(&scene.ca),
            None,
            at(NOW),
        )
        .unwrap();
        assert!(approval.is_for(&scene.challenge));
        assert!(!approval.is_for("x"));
        assert_eq!(approval.client, "till");
        let stranger = authority(&SoftKey::new());
        assert!(matches!(
            Approval::verify(&scene.approval, &[stranger], None, at(NOW)),
            Err(ApprovalError::Certificate(_))
        ));
    }

    #[test]
    fn a_certificate_approves_for_its_own_account_operator_and_computer_only() {
        let field =
            |scene: Scene| match Approval::verify(&scene.approval, &[scene.ca], None, at(NOW)) {
                Err(ApprovalError::Identity { field }) => field,
                other => panic!("{other:?}"),
            };
        let rival = |claims: &mut ChallengeClaims| {
            claims.sub = "rival".parse().unwrap();
            claims.statement["account"] = "rival".into();
        };
        let bob = |claims: &mut ChallengeClaims| {
            claims.operator = "bob".parse().unwrap();
            claims.statement["operator"] = "bob".into();
        };
        assert_eq!(field(scene_of(rival, "desk-1", 1)), "account");
        assert_eq!(field(scene_of(bob, "desk-1", 1)), "operator");
        assert_eq!(field(scene_of(|_| (), "desk-2", 1)), "computer");
    }

    #[test]
    fn a_header_brings_one_to_four_certificates() {
        let verify = |certificates| {
            let scene = scene_of(|_| (), "desk-1", certificates);
            Approval::verify(&scene.approval, &[scene.ca], None, at(NOW)).map(|_| ())
        };
        for certificates in [1, 4] {
            assert!(verify(certificates).is_ok(), "{certificates}");
        }
        for certificates in [0, 5] {
            let error = verify(certificates).unwrap_err();
            assert!(matches!(error, ApprovalError::Jose(_)), "{error}");
        }
    }

    #[test]
    fn what_was_approved_is_read_back_from_an_approval_and_its_draft() {
        let scene = scene();
        let approval = Approval::verify(&scene.approval, &[scene.ca], None, at(NOW)).unwrap();
        assert_eq!(statement_in(&scene.approval).unwrap(), statement());
        assert_eq!(approval.statement, statement());
        assert_eq!(approval.audience.as_str(), "https://pay.example");
        assert_eq!((approval.issued_at, approval.origin), (at(NOW), None));
        assert_eq!(approval.consent.method, ConsentMethod::Pinentry);
        let payload = Jws::parse(&scene.approval, Approval::MAX).unwrap().payload;
        let draft = ApprovalDraft::from_payload(approval.jti.clone(), payload.clone());
        assert_eq!(
            (draft.jti(), draft.payload()),
            (&approval.jti, &payload[..])
        );
        assert_eq!(draft.consent().unwrap(), approval.consent);
        assert_eq!(draft.origin().unwrap(), None);
        let by_page = br#"{"origin":"https://shop.example","client":"browser"}"#;
        let draft = ApprovalDraft::from_payload(approval.jti, by_page.to_vec());
        let page = draft.origin().unwrap().unwrap();
        assert_eq!(page.as_str(), "https://shop.example");
    }

    #[test]
    fn a_way_of_consent_is_read_by_its_name() {
        for method in [
            ConsentMethod::Pinentry,
            ConsentMethod::ProtectedPath,
            ConsentMethod::Policy,
        ] {
            let name = serde_json::to_value(method).unwrap();
            assert_eq!(name.as_str().unwrap().parse(), Ok(method));
        }
        assert!("none".parse::<ConsentMethod>().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_change_of_one_character_survives(index: proptest::sample::Index, replacement in "[A-Za-z0-9_.-]") {
            let scene = scene();
            let index = index.index(scene.approval.len());
            let mut bad = scene.approval.clone();
            bad.replace_range(index..=index, &replacement);
            prop_assume!(bad != scene.approval);
            prop_assert!(Approval::verify(&bad, &[scene.ca], None, at(NOW)).is_err());
        }
    }
}
