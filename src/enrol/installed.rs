//! What this computer is enrolled with, as one immutable view: pinned services, installed
//! certificates, and how a certificate stands.
//!
//! The signing path reads it without a lock, and nothing there grows with the number of services or
//! certificates: both are found by hash. How a view is kept and changed never lives here: see
//! [`registry`](super::registry).

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::registry::RegistryError;
use crate::base::encoding::hex;
use crate::base::ids::{AccountId, OperatorId};
use crate::base::jose::{InvalidJwk, JwkSet};
use crate::base::key::{PublicKey, Scheme};
use crate::base::pkcs11::KeyRef;
use crate::base::x509::{Certificate, Crl, OperatingIdentity, X509Error};
use crate::statement::{ApprovalHeader, NoKey, Origin};

/// Most issuing authorities of one service: those of an authority that changes its key again and
/// again.
const AUTHORITIES: usize = 8;

/// An account service, as pinned at enrolment.
#[derive(Debug)]
pub struct Service {
    pub(super) origin: Origin,
    pub(super) jwks: JwkSet,
    keys: HashMap<String, PublicKey>,
    /// When the key set was made, Unix seconds; 0 for the one met at enrolment.
    pub(super) keys_dated: i64,
    pub(super) authorities: Vec<Certificate>,
    pub(super) crl: Option<Crl>,
}

impl Service {
    /// Checks what a courier brought: sound keys, and authorities that may sign certificates.
    pub fn new(
        origin: Origin,
        jwks: JwkSet,
        authorities: Vec<Certificate>,
    ) -> Result<Self, RegistryError> {
        let refuse = |problem: String| RegistryError::Keys {
            origin: origin.to_string(),
            problem,
        };
        if jwks.keys.is_empty() || jwks.keys.len() > 16 {
            return Err(refuse("it must have 1 to 16 keys".into()));
        }
        if authorities.is_empty() || authorities.len() > AUTHORITIES {
            return Err(refuse(format!(
                "it must have 1 to {AUTHORITIES} authorities"
            )));
        }
        let keys = jwks
            .keys
            .iter()
            .map(|jwk| Ok((jwk.kid.clone(), jwk.to_public_key()?)))
            .collect::<Result<_, InvalidJwk>>()
            .map_err(|error| refuse(error.to_string()))?;
        Ok(Self {
            origin,
            jwks,
            keys,
            keys_dated: 0,
            authorities,
            crl: None,
        })
    }

    /// Its origin.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The pinned challenge key of that id.
    pub fn key(&self, kid: &str) -> Option<&PublicKey> {
        self.keys.get(kid)
    }

    /// The certificates of its issuing authorities.
    pub fn authorities(&self) -> &[Certificate] {
        &self.authorities
    }

    /// The newest revocation list that was handed in.
    pub fn crl(&self) -> Option<&Crl> {
        self.crl.as_ref()
    }

    /// Whether `other` has the same keys, and no authority that is not pinned.
    pub fn pins(&self, other: &Self) -> bool {
        let mut authorities = other.authorities.iter();
        self.origin == other.origin
            && self.keys == other.keys
            && authorities.all(|authority| self.has(authority))
    }

    fn has(&self, authority: &Certificate) -> bool {
        self.authorities
            .iter()
            .any(|pinned| pinned.der() == authority.der())
    }

    pub(super) fn with_crl(&self, crl: Crl) -> Self {
        Self {
            origin: self.origin.clone(),
            jwks: self.jwks.clone(),
            keys: self.keys.clone(),
            keys_dated: self.keys_dated,
            authorities: self.authorities.clone(),
            crl: Some(crl),
        }
    }
}

/// An installed operating certificate.
#[derive(Debug)]
pub struct Installed {
    /// The service that issued it.
    pub service: Origin,
    /// The key on the token.
    pub key: KeyRef,
    /// The certificate, then its issuers as they were brought.
    pub chain: Vec<Certificate>,
    /// Whom it speaks for.
    pub identity: OperatingIdentity,
    /// The scheme its approvals are signed with.
    pub scheme: Scheme,
    /// The ready-made header of its approvals.
    pub header: ApprovalHeader,
    /// When it was installed.
    pub installed_at: Timestamp,
    /// When a newer certificate took its place, if one did.
    pub superseded_at: Option<Timestamp>,
    fingerprint: String,
}

impl Installed {
    /// Reads the identity out of the certificate and prepares the header.
    pub fn new(
        service: Origin,
        key: KeyRef,
        chain: Vec<Certificate>,
        installed_at: Timestamp,
    ) -> Result<Self, X509Error> {
        let malformed = || X509Error::Malformed {
            what: "operating certificate",
        };
        let leaf = chain.first().ok_or_else(malformed)?;
        let identity = leaf.identity().ok_or_else(malformed)?;
        let scheme = leaf.public_key().default_scheme();
        let fingerprint = hex(&leaf.fingerprint());
        let header = ApprovalHeader::new(scheme, &chain).map_err(|_| malformed())?;
        Ok(Self {
            service,
            key,
            identity,
            scheme,
            header,
            chain,
            installed_at,
            superseded_at: None,
            fingerprint,
        })
    }

    /// The certificate itself.
    pub fn certificate(&self) -> &Certificate {
        &self.chain[0]
    }

    /// SHA-256 over the certificate, hexadecimal: its name in records.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(super) fn superseded(&self, at: Timestamp) -> Self {
        Self {
            service: self.service.clone(),
            key: self.key.clone(),
            chain: self.chain.clone(),
            identity: self.identity.clone(),
            scheme: self.scheme,
            header: self.header.clone(),
            installed_at: self.installed_at,
            superseded_at: Some(self.superseded_at.unwrap_or(at)),
            fingerprint: self.fingerprint.clone(),
        }
    }
}

/// Whether an installed certificate may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It may.
    Active,
    /// Its validity has not begun.
    NotYetValid,
    /// Its validity has ended.
    Expired,
    /// It is on the newest revocation list of its service.
    Revoked,
    /// A newer certificate took its place.
    Superseded,
}

/// One consistent view of the registry.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub(super) services: HashMap<Origin, Arc<Service>>,
    active: HashMap<(Origin, AccountId, OperatorId), Arc<Installed>>,
    pub(super) all: Vec<Arc<Installed>>,
}

impl Snapshot {
    /// The service of that origin.
    pub fn service(&self, origin: &Origin) -> Option<&Arc<Service>> {
        self.services.get(origin)
    }

    /// The pinned key for an issuer and key id, as [`crate::statement::Challenge::open`] asks.
    pub fn service_key(&self, origin: &Origin, kid: &str) -> Result<PublicKey, NoKey> {
        let service = self.services.get(origin).ok_or(NoKey::Issuer)?;
        service.key(kid).cloned().ok_or(NoKey::Key)
    }

    /// The certificate that signs for an operator of an account at a service.
    pub fn certificate(
        &self,
        service: &Origin,
        account: &AccountId,
        operator: &OperatorId,
    ) -> Option<&Arc<Installed>> {
        let key = (service.clone(), account.clone(), operator.clone());
        self.active.get(&key)
    }

    /// Whether any operator of the account has a certificate here.
    pub fn has_account(&self, service: &Origin, account: &AccountId) -> bool {
        self.all.iter().any(|installed| {
            installed.service == *service && installed.identity.account == *account
        })
    }

    /// Every installed certificate, oldest first.
    pub fn certificates(&self) -> &[Arc<Installed>] {
        &self.all
    }

    /// The installed certificate of that fingerprint, in good standing or not.
    pub fn by_fingerprint(&self, fingerprint: &str) -> Option<&Arc<Installed>> {
        self.all
            .iter()
            .find(|installed| installed.fingerprint() == fingerprint)
    }

    /// Every pinned service.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Whether `installed` may sign at `now`.
    pub fn standing(&self, installed: &Installed, now: Timestamp) -> Standing {
        let certificate = installed.certificate();
        let revoked = self
            .services
            .get(&installed.service)
            .and_then(|service| service.crl())
            .is_some_and(|crl| crl.revoked_at(certificate.serial()).is_some());
        if revoked {
            Standing::Revoked
        } else if installed.superseded_at.is_some() {
            Standing::Superseded
        } else if now < certificate.not_before() {
            Standing::NotYetValid
        } else if now > certificate.not_after() {
            Standing::Expired
        } else {
            Standing::Active
        }
    }

    pub(super) fn add(&mut self, installed: Arc<Installed>) {
        if installed.superseded_at.is_none() {
            let identity = &installed.identity;
            let key = (
                installed.service.clone(),
                identity.account.clone(),
                identity.operator.clone(),
            );
            self.active.insert(key, installed.clone());
        }
        self.all.push(installed);
    }

    pub(super) fn copy(&self) -> Self {
        Self {
            services: self.services.clone(),
            active: self.active.clone(),
            all: self.all.clone(),
        }
    }
}
