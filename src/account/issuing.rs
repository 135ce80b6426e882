//! The issuing authority: operating certificates and revocation lists (RFC 5280).
//!
//! **Profile of an operating certificate.** Subject: O is the account, OU the computer, CN the
//! operator; the same as a URN in the subject alternative name. Key usage: digital signature and
//! non-repudiation. Extended key usage: document signing (RFC 9336), and e-mail protection because
//! CMS software asks for it. Not a CA; both key identifiers; a CRL distribution point and the
//! address of OCSP answers at the service. Names come from the service, never from the request; from the request only the key is
//! taken.
//!
//! **Revocation.** A revoked certificate stops working here at once, since the service looks it up
//! in the database. For everybody else there is a full, numbered list. It is made again when it is
//! asked for and more certificates have been revoked since, or half its time is over; so what is
//! served is never out of date, and never close to expiry.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use const_oid::db::rfc5280::ID_KP_EMAIL_PROTECTION;
use const_oid::db::rfc5912::ID_AD_OCSP;
use der::asn1::Ia5String;
use jiff::Timestamp;
use x509_cert::ext::pkix::crl::dp::DistributionPoint;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{
    AccessDescription, AuthorityInfoAccessSyntax, BasicConstraints, CrlDistributionPoints,
    CrlReason, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
};

use super::signer::{SignError, Signer};
use super::store::certificates::{self, Revoked, StoredCrl};
use super::store::{Store, StoreError};
use crate::base::Clock;
use crate::base::encoding::from_hex;
use crate::base::key::PublicKey;
use crate::base::x509::{
    Certificate, CertificateFields, DOCUMENT_SIGNING, Draft, OperatingIdentity, RemoteKey,
    Revocation, X509Error, certificate_builder, common_name, crl_draft,
};
use crate::policy::Purpose;
use crate::statement::Origin;

/// How long a revocation list is valid; it is made again after half of that.
pub const CRL_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Validity of the authority's own certificate, in days: about ten years.
const AUTHORITY_DAYS: u64 = 3653;

/// Certificates and lists are dated back by this much, for computers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Where the list is, below the origin.
pub const CRL_PATH: &str = "/pki/issuing.crl";

/// Where OCSP answers are, below the origin.
pub const OCSP_PATH: &str = "/ocsp";

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssuingError {
    /// The structure cannot be built.
    #[error("cannot build what the authority is to sign")]
    X509(#[from] X509Error),
    /// An extension cannot be encoded.
    #[error("cannot encode an extension: {reason}")]
    Extension {
        /// Why.
        reason: String,
    },
    /// The authority did not sign.
    #[error("the authority did not sign")]
    Sign(#[from] SignError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn extension(error: impl fmt::Display) -> IssuingError {
    IssuingError::Extension {
        reason: error.to_string(),
    }
}

/// Why a certificate is revoked; the reasons of RFC 5280 section 5.3.1 that fit here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RevocationReason {
    /// No reason is given.
    Unspecified,
    /// Somebody else may have had the key or its PIN.
    KeyCompromise,
    /// The operator left or changed duties.
    AffiliationChanged,
    /// Another certificate took its place.
    Superseded,
    /// The computer is no longer used.
    CessationOfOperation,
}

impl RevocationReason {
    const ALL: [Self; 5] = [
        Self::Unspecified,
        Self::KeyCompromise,
        Self::AffiliationChanged,
        Self::Superseded,
        Self::CessationOfOperation,
    ];

    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::KeyCompromise => "key-compromise",
            Self::AffiliationChanged => "affiliation-changed",
            Self::Superseded => "superseded",
            Self::CessationOfOperation => "cessation-of-operation",
        }
    }

    /// As a list states it; RFC 5280 wants "unspecified" left out.
    pub(super) fn entry(self) -> Option<CrlReason> {
        match self {
            Self::Unspecified => None,
            Self::KeyCompromise => Some(CrlReason::KeyCompromise),
            Self::AffiliationChanged => Some(CrlReason::AffiliationChanged),
            Self::Superseded => Some(CrlReason::Superseded),
            Self::CessationOfOperation => Some(CrlReason::CessationOfOperation),
        }
    }
}

impl FromStr for RevocationReason {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or(())
    }
}

/// The issuing authority; cloning shares it.
#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

struct Inner {
    store: Store,
    clock: Clock,
    signer: Signer,
    certificate: Certificate,
    earlier: Vec<Certificate>,
    crl_url: String,
    ocsp_url: String,
    validity_days: u16,
    refresh: tokio::sync::Mutex<()>,
}

impl Issuer {
    /// The authority of the service known as `origin`.
    pub fn new(
        store: Store,
        clock: Clock,
        signer: Signer,
        certificate: Certificate,
        earlier: Vec<Certificate>,
        origin: &Origin,
        validity_days: u16,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            clock,
            signer,
            certificate,
            earlier,
            crl_url: format!("{origin}{CRL_PATH}"),
            ocsp_url: format!("{origin}{OCSP_PATH}"),
            validity_days,
            refresh: tokio::sync::Mutex::default(),
        }))
    }

    /// The authority's certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.0.certificate
    }

    /// The authorities whose certificates are good: this one, and those before it while their
    /// certificates last.
    pub fn anchors(&self) -> Vec<Certificate> {
        let mut anchors = vec![self.0.certificate.clone()];
        anchors.extend(self.0.earlier.iter().cloned());
        anchors
    }

    /// Signs an operating certificate for `identity` over `key`. It never outlives the authority.
    pub async fn certify(
        &self,
        identity: &OperatingIdentity,
        key: &PublicKey,
    ) -> Result<Certificate, IssuingError> {
        let inner = &*self.0;
        let now = inner.clock.now();
        let lifetime = Duration::from_secs(u64::from(inner.validity_days) * 24 * 60 * 60);
        let mut builder = certificate_builder(CertificateFields {
            issuer: inner.certificate.subject().clone(),
            issuer_key: inner.certificate.public_key().clone(),
            subject: identity.subject()?,
            subject_key: key.clone(),
            not_before: (now - BACKDATE).max(inner.certificate.not_before()),
            not_after: (now + lifetime).min(inner.certificate.not_after()),
        })?;
        builder
            .add_extension(&BasicConstraints {
                ca: false,
                path_len_constraint: None,
            })
            .map_err(extension)?;
        builder
            .add_extension(&KeyUsage(
                KeyUsages::DigitalSignature | KeyUsages::NonRepudiation,
            ))
            .map_err(extension)?;
        builder
            .add_extension(&ExtendedKeyUsage(vec![
                DOCUMENT_SIGNING,
                ID_KP_EMAIL_PROTECTION,
            ]))
            .map_err(extension)?;
        builder
            .add_extension(&SubjectAltName(vec![identity.alternative_name()?]))
            .map_err(extension)?;
        let url = Ia5String::new(&inner.crl_url).map_err(extension)?;
        builder
            .add_extension(&CrlDistributionPoints(vec![DistributionPoint {
                distribution_point: Some(DistributionPointName::FullName(vec![
                    GeneralName::UniformResourceIdentifier(url),
                ])),
                reasons: None,
                crl_issuer: None,
            }]))
            .map_err(extension)?;
        let url = Ia5String::new(&inner.ocsp_url).map_err(extension)?;
        builder
            .add_extension(&AuthorityInfoAccessSyntax(vec![AccessDescription {
                access_method: ID_AD_OCSP,
                access_location: GeneralName::UniformResourceIdentifier(url),
            }]))
            .map_err(extension)?;
        let draft = Draft::new(builder, RemoteKey::new(inner.signer.public_key().clone()))?;
        let signature = inner
            .signer
            .sign(Purpose::Certificate, draft.scheme(), draft.to_sign())
            .await?;
        Ok(Certificate::from_der(&draft.assemble(&signature)?)?)
    }

    /// The current revocation list, DER.
    pub async fn crl(&self) -> Result<Vec<u8>, IssuingError> {
        let inner = &*self.0;
        if let Look::Fresh(crl) = inner.look().await? {
            return Ok(crl);
        }
        // One request makes the next list, the others wait for it.
        let _turn = inner.refresh.lock().await;
        loop {
            match inner.look().await? {
                Look::Fresh(crl) => return Ok(crl),
                Look::Due(material) => inner.make_crl(material).await?,
            }
        }
    }
}

/// The state of the revocation list, as one look at the database found it.
enum Look {
    /// It is up to date.
    Fresh(Vec<u8>),
    /// There is none, it is out of date, or half its time is over.
    Due(Material),
}

/// What goes into the next list.
struct Material {
    number: i64,
    /// How many certificates were ever revoked.
    revocations: i64,
    revoked: Vec<Revoked>,
}

impl Inner {
    /// Looks at the newest list and, where the next is due, at what goes into it: in one
    /// transaction, so that two instances never make two lists of the same state.
    async fn look(&self) -> Result<Look, StoreError> {
        let now = self.clock.now();
        self.store
            .read("find revocation list", move |tx| {
                Box::pin(async move {
                    let newest = certificates::newest_crl(tx).await?;
                    let revocations = certificates::revocations(tx).await?;
                    let number = newest.as_ref().map_or(1, |crl| crl.number + 1);
                    let fresh = newest.filter(|crl| {
                        crl.revocations == revocations
                            && now >= crl.this_update
                            && now < crl.this_update + CRL_LIFETIME / 2
                    });
                    Ok(match fresh {
                        Some(crl) => Look::Fresh(crl.der),
                        None => Look::Due(Material {
                            number,
                            revocations,
                            revoked: certificates::revoked(tx, now).await?,
                        }),
                    })
                })
            })
            .await
    }

    /// Signs and keeps the next list. Another instance may be faster: then its list is kept.
    async fn make_crl(&self, material: Material) -> Result<(), IssuingError> {
        let now = self.clock.now();
        let Material {
            number,
            revocations,
            revoked,
        } = material;
        let entries = revoked
            .iter()
            .map(|entry| {
                Ok(Revocation {
                    serial: from_hex(&entry.serial).ok_or(StoreError::Malformed {
                        column: "certificates.serial",
                    })?,
                    at: entry.at,
                    reason: entry
                        .reason
                        .parse::<RevocationReason>()
                        .map_err(|()| StoreError::Malformed {
                            column: "certificates.revocation_reason",
                        })?
                        .entry(),
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        let draft = crl_draft(
            &self.certificate,
            u64::try_from(number).unwrap_or_default(),
            now,
            now + CRL_LIFETIME,
            &entries,
        )?;
        let signature = self
            .signer
            .sign(Purpose::Crl, draft.scheme(), draft.to_sign())
            .await?;
        let crl = StoredCrl {
            number,
            der: draft.assemble(&signature)?,
            revocations,
            this_update: now,
            next_update: now + CRL_LIFETIME,
        };
        let crl = &crl;
        self.store
            .transaction("keep revocation list", move |tx| {
                Box::pin(async move {
                    certificates::insert_crl(tx, crl).await?;
                    Ok::<_, StoreError>(())
                })
            })
            .await?;
        Ok(())
    }
}

/// Makes the self-signed certificate of a new authority, whose key is behind `signer`.
pub async fn certify_authority(
    signer: &Signer,
    name: &str,
    now: Timestamp,
) -> Result<Certificate, IssuingError> {
    let subject = common_name(name)?;
    let mut builder = certificate_builder(CertificateFields {
        issuer: subject.clone(),
        issuer_key: signer.public_key().clone(),
        subject,
        subject_key: signer.public_key().clone(),
        not_before: now - BACKDATE,
        not_after: now + Duration::from_secs(AUTHORITY_DAYS * 24 * 60 * 60),
    })?;
    builder
        .add_extension(&BasicConstraints {
            ca: true,
            path_len_constraint: Some(0),
        })
        .map_err(extension)?;
    builder
        .add_extension(&KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign))
        .map_err(extension)?;
    let draft = Draft::new(builder, RemoteKey::new(signer.public_key().clone()))?;
    let signature = signer
        .sign(Purpose::Certificate, draft.scheme(), draft.to_sign())
        .await?;
    Ok(Certificate::from_der(&draft.assemble(&signature)?)?)
}
