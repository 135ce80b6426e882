//! The issuing authority: operating certificates and revocation lists (RFC 5280).
//!
//! **Profile of an operating certificate.** Subject: O is the account, OU the computer, CN the
//! operator; the same as a URN in the subject alternative name. Key usage: digital signature and
//! non-repudiation. Extended key usage: document signing (RFC 9336), and e-mail protection because
//! CMS software asks for it. Not a CA; both key identifiers; a CRL distribution point and the
//! address of OCSP answers at the service. Names come from the service, never from the request;
//! from the request only the key is taken.
//!
//! **Revocation.** A revoked certificate stops working here at once, since the service looks it up
//! in the database. For everybody else there is a full, numbered list. It is made again when it is
//! asked for and more certificates have been revoked since, or half its time is over; so what is
//! served is never out of date, and never close to expiry.
//!
//! **Change of keys.** The authority keeps its name and gets another key, with a self-signed
//! certificate of its own. The next key is published before it signs; the one before signs no more
//! certificates, and goes on signing its list and OCSP answers for what it did sign. The keys vouch
//! for each other by link certificates (RFC 4210 section 4.4). A certificate names the list of the
//! key that signed it, for programs that look for no other. As all keys are of one authority, each
//! list is about the certificates of all of them (RFC 5280 section 5), so one that is fresh is
//! enough whoever signed it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use const_oid::db::rfc5280::ID_KP_EMAIL_PROTECTION;
use const_oid::db::rfc5912::ID_AD_OCSP;
use der::asn1::Ia5String;
use hyper::body::Bytes;
use jiff::Timestamp;
use x509_cert::ext::pkix::crl::dp::DistributionPoint;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{
    AccessDescription, AuthorityInfoAccessSyntax, BasicConstraints, CrlDistributionPoints,
    CrlReason, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
};
use x509_cert::name::Name;

use super::signer::{SignError, Signer};
use super::store::certificates::{self, Revoked, StoredCrl};
use super::store::{Store, StoreError, keys};
use crate::base::Clock;
use crate::base::encoding::{base64url, from_hex, sha256};
use crate::base::key::PublicKey;
use crate::base::x509::{
    Certificate, CertificateFields, DOCUMENT_SIGNING, Draft, OperatingIdentity, RemoteKey,
    Revocation, X509Error, certificate_builder, crl_draft,
};
use crate::policy::Purpose;
use crate::statement::Origin;

/// How long a revocation list is valid; it is made again after half of that.
pub const CRL_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Validity of the authority's own certificate, in days: about ten years.
const AUTHORITY_DAYS: u64 = 3653;

/// Certificates and lists are dated back by this much, for computers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Where the lists are, below the origin: that of each key under the key's name, and that of the
/// key that signs now as `issuing.crl`.
pub const CRL_PATH: &str = "/pki/";

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
    /// The one that signs, then the others that are published.
    authorities: Vec<Authority>,
    anchors: Vec<Certificate>,
    links: Vec<Certificate>,
    crl_url: String,
    ocsp_url: String,
    validity_days: u16,
    refresh: tokio::sync::Mutex<()>,
    /// The newest list of each key, as it was last found in the database.
    kept: Mutex<HashMap<String, Kept>>,
}

/// A revocation list as it is given out; cloning shares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    /// The signed list.
    pub der: Bytes,
    /// Names these very bytes: their SHA-256 in base64url. The number of a list would not, as a
    /// database that was restored uses numbers again.
    pub tag: Arc<str>,
}

impl RevocationList {
    fn new(der: Vec<u8>) -> Self {
        Self {
            tag: base64url(&sha256(&der)).into(),
            der: der.into(),
        }
    }
}

/// A revocation list that was read.
struct Kept {
    number: i64,
    list: RevocationList,
}

/// A key of the authority.
#[derive(Clone)]
pub struct Authority {
    /// Signs with it.
    pub signer: Signer,
    /// Its self-signed certificate.
    pub certificate: Certificate,
}

impl Authority {
    /// The key's name, as the database has it.
    pub fn key(&self) -> String {
        keys::name(self.signer.public_key())
    }
}

impl Issuer {
    /// The authority of the service known as `origin`: the key that signs, others that are
    /// published, and the link certificates between them.
    pub fn new(
        store: Store,
        clock: Clock,
        current: Authority,
        others: Vec<Authority>,
        links: Vec<Certificate>,
        origin: &Origin,
        validity_days: u16,
    ) -> Self {
        let crl_url = format!("{origin}{CRL_PATH}{}.crl", current.key());
        let mut authorities = vec![current];
        authorities.extend(others);
        let certificates = authorities.iter();
        let anchors = certificates
            .map(|authority| authority.certificate.clone())
            .collect();
        Self(Arc::new(Inner {
            store,
            clock,
            authorities,
            anchors,
            links,
            crl_url,
            ocsp_url: format!("{origin}{OCSP_PATH}"),
            validity_days,
            refresh: tokio::sync::Mutex::default(),
            kept: Mutex::default(),
        }))
    }

    /// The name of the key that signs now.
    pub fn key(&self) -> String {
        self.0.current().key()
    }

    /// The certificates of the keys whose work is good: the one that signs first, then those before
    /// it that are still published, and the next.
    pub fn anchors(&self) -> &[Certificate] {
        &self.0.anchors
    }

    /// The same and what they say of each other (RFC 7030 section 4.1.3), DER.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        let certificates = self.0.anchors.iter().chain(&self.0.links);
        certificates.map(|one| one.der().to_vec()).collect()
    }

    /// Signs an operating certificate for `identity` over `key`. It never outlives the authority.
    pub async fn certify(
        &self,
        identity: &OperatingIdentity,
        key: &PublicKey,
    ) -> Result<Certificate, IssuingError> {
        let inner = &*self.0;
        let Authority {
            signer,
            certificate: authority,
        } = inner.current();
        let now = inner.clock.now();
        let lifetime = Duration::from_secs(u64::from(inner.validity_days) * 24 * 60 * 60);
        let mut builder = certificate_builder(CertificateFields {
            issuer: authority.subject().clone(),
            issuer_key: authority.public_key().clone(),
            subject: identity.subject()?,
            subject_key: key.clone(),
            not_before: (now - BACKDATE).max(authority.not_before()),
            not_after: (now + lifetime).min(authority.not_after()),
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
        let draft = Draft::new(builder, RemoteKey::new(signer.public_key().clone()))?;
        let signature = signer
            .sign(Purpose::Certificate, draft.scheme(), draft.to_sign())
            .await?;
        Ok(Certificate::from_der(&draft.assemble(&signature)?)?)
    }

    /// The current revocation list as the key of this name signs it, or the one that signs
    /// now. None where no key of that name is published.
    pub async fn crl(&self, key: Option<&str>) -> Result<Option<RevocationList>, IssuingError> {
        let inner = &*self.0;
        let found = match key {
            Some(key) => inner.authorities.iter().find(|one| one.key() == key),
            None => Some(inner.current()),
        };
        let Some(authority) = found else {
            return Ok(None);
        };
        let key = &authority.key();
        if let Look::Fresh(list) = inner.look(key).await? {
            return Ok(Some(list));
        }
        // One request makes the next list, the others wait for it.
        let _turn = inner.refresh.lock().await;
        loop {
            match inner.look(key).await? {
                Look::Fresh(list) => return Ok(Some(list)),
                Look::Due(material) => inner.make_crl(authority, material).await?,
            }
        }
    }
}

/// The state of the revocation list, as one look at the database found it.
enum Look {
    /// It is up to date.
    Fresh(RevocationList),
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
    /// The key that signs now.
    fn current(&self) -> &Authority {
        &self.authorities[0]
    }

    /// Looks at the newest list of a key and, where the next is due, at what goes into it: in one
    /// transaction, so that two instances never make two lists of the same state.
    async fn look(&self, key: &str) -> Result<Look, StoreError> {
        let now = self.clock.now();
        self.store
            .read("find revocation list", move |tx| {
                Box::pin(async move {
                    let newest = certificates::crl_state(tx, key).await?;
                    let revocations = certificates::revocations(tx).await?;
                    let fresh = newest.filter(|crl| {
                        crl.revocations == revocations
                            && now >= crl.this_update
                            && now < crl.this_update + CRL_LIFETIME / 2
                    });
                    let Some(fresh) = fresh else {
                        return Ok(Look::Due(Material {
                            number: certificates::next_crl_number(tx).await?,
                            revocations,
                            revoked: certificates::revoked(tx, now).await?,
                        }));
                    };
                    if let Some(list) = self.kept(key, fresh.number) {
                        return Ok(Look::Fresh(list));
                    }
                    let list = RevocationList::new(certificates::crl(tx, fresh.number).await?);
                    // A poisoned lock means only that lists are read anew.
                    if let Ok(mut kept) = self.kept.lock() {
                        let (number, list) = (fresh.number, list.clone());
                        kept.insert(key.to_owned(), Kept { number, list });
                    }
                    Ok(Look::Fresh(list))
                })
            })
            .await
    }

    fn kept(&self, key: &str, number: i64) -> Option<RevocationList> {
        let kept = self.kept.lock().ok()?;
        let found = kept.get(key)?;
        (found.number == number).then(|| found.list.clone())
    }

    /// Signs and keeps the next list. Another instance may be faster: then its list is kept.
    async fn make_crl(
        &self,
        authority: &Authority,
        material: Material,
    ) -> Result<(), IssuingError> {
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
            &authority.certificate,
            u64::try_from(number).unwrap_or_default(),
            now,
            now + CRL_LIFETIME,
            &entries,
        )?;
        let signature = authority
            .signer
            .sign(Purpose::Crl, draft.scheme(), draft.to_sign())
            .await?;
        let crl = StoredCrl {
            issuer: authority.key(),
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

/// Makes the self-signed certificate of an authority called `name`, whose key is behind `signer`.
pub async fn certify_authority(
    signer: &Signer,
    name: Name,
    now: Timestamp,
) -> Result<Certificate, IssuingError> {
    let validity = (
        now - BACKDATE,
        now + Duration::from_secs(AUTHORITY_DAYS * 24 * 60 * 60),
    );
    certify_key(signer, name, signer.public_key(), validity).await
}

/// Has one key of an authority vouch for another of its keys, for as long as the certificates of
/// both last (RFC 4210 section 4.4).
pub async fn certify_link(by: &Authority, of: &Certificate) -> Result<Certificate, IssuingError> {
    let own = &by.certificate;
    let validity = (
        own.not_before().max(of.not_before()),
        own.not_after().min(of.not_after()),
    );
    certify_key(&by.signer, own.subject().clone(), of.public_key(), validity).await
}

async fn certify_key(
    signer: &Signer,
    name: Name,
    key: &PublicKey,
    (not_before, not_after): (Timestamp, Timestamp),
) -> Result<Certificate, IssuingError> {
    let mut builder = certificate_builder(CertificateFields {
        issuer: name.clone(),
        issuer_key: signer.public_key().clone(),
        subject: name,
        subject_key: key.clone(),
        not_before,
        not_after,
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
