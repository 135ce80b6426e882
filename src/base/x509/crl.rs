//! Revocation lists (RFC 5280 section 5).

use std::collections::HashMap;

use const_oid::db::rfc5912;
use der::{Decode, Encode};
use jiff::Timestamp;
use x509_cert::builder::CrlBuilder;
use x509_cert::crl::{CertificateList, RevokedCert};
use x509_cert::ext::ToExtension;
use x509_cert::ext::pkix::{CrlNumber, CrlReason};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;

use super::{Certificate, Draft, RemoteKey, X509Error, build, time, timestamp, verify};

/// One entry of a revocation list.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// The serial number, as [`Certificate::serial`] gives it.
    pub serial: Vec<u8>,
    /// When it was revoked.
    pub at: Timestamp,
    /// Why, where that is said (RFC 5280 section 5.3.1).
    pub reason: Option<CrlReason>,
}

/// A full revocation list of the authority `issuer`.
pub fn crl_draft(
    issuer: &Certificate,
    number: u64,
    this_update: Timestamp,
    next_update: Timestamp,
    revocations: &[Revocation],
) -> Result<Draft<CrlBuilder>, X509Error> {
    let number = CrlNumber::try_from(number).map_err(build)?;
    let mut builder: CrlBuilder =
        CrlBuilder::new_with_this_update(issuer.inner(), number, time(this_update)?)
            .map_err(build)?
            .with_next_update(Some(time(next_update)?));
    // RFC 5280 section 5.1.2.6: with nothing revoked the list must be absent, not empty.
    if !revocations.is_empty() {
        let entries = revocations
            .iter()
            .map(|revocation| {
                let extensions = revocation
                    .reason
                    .map(|reason| reason.to_extension(&Name::default(), &[]))
                    .transpose()
                    .map_err(build)?
                    .map(|extension| vec![extension]);
                Ok(RevokedCert {
                    serial_number: SerialNumber::new(&revocation.serial).map_err(build)?,
                    revocation_date: time(revocation.at)?,
                    crl_entry_extensions: extensions,
                })
            })
            .collect::<Result<Vec<_>, X509Error>>()?;
        builder = builder.with_certificates(entries.into_iter());
    }
    Draft::new(builder, RemoteKey::new(issuer.public_key().clone()))
}

/// A revocation list whose signature verified against its issuer.
#[derive(Clone, Debug)]
pub struct Crl {
    der: Vec<u8>,
    issuer: Name,
    number: u64,
    this_update: Timestamp,
    next_update: Timestamp,
    revoked: HashMap<Vec<u8>, Timestamp>,
}

impl Crl {
    /// Largest list we read, in bytes: about 400,000 entries.
    pub const MAX: usize = 16 * 1024 * 1024;

    /// From DER, checked against the authority that must have signed it. A list without number
    /// or next update is refused, so is one with a critical extension we do not know.
    pub fn from_der(der: &[u8], issuer: &Certificate) -> Result<Self, X509Error> {
        const WHAT: &str = "revocation list";
        let malformed = || X509Error::Malformed { what: WHAT };
        if der.len() > Self::MAX {
            return Err(malformed());
        }
        let list: CertificateList = CertificateList::from_der(der).map_err(|_| malformed())?;
        if list.tbs_cert_list.issuer != *issuer.subject() {
            return Err(X509Error::Issuer { what: WHAT });
        }
        let signed = list.tbs_cert_list.to_der().map_err(build)?;
        verify(
            issuer.public_key(),
            &list.signature_algorithm,
            &signed,
            &list.signature,
            WHAT,
        )?;
        let extensions = list.tbs_cert_list.crl_extensions.unwrap_or_default();
        let number_oid = rfc5912::ID_CE_CRL_NUMBER;
        if extensions
            .iter()
            .any(|extension| extension.critical && extension.extn_id != number_oid)
        {
            return Err(malformed());
        }
        let number = extensions
            .iter()
            .find(|extension| extension.extn_id == number_oid)
            .and_then(|extension| CrlNumber::from_der(extension.extn_value.as_bytes()).ok())
            .and_then(|number| {
                let bytes = number.0.as_bytes();
                (bytes.len() <= 8).then(|| {
                    bytes
                        .iter()
                        .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
                })
            })
            .ok_or_else(malformed)?;
        let revoked = list
            .tbs_cert_list
            .revoked_certificates
            .unwrap_or_default()
            .into_iter()
            .map(|entry| {
                (
                    entry.serial_number.as_bytes().to_vec(),
                    timestamp(entry.revocation_date),
                )
            })
            .collect();
        Ok(Self {
            der: der.to_vec(),
            issuer: list.tbs_cert_list.issuer,
            number,
            this_update: timestamp(list.tbs_cert_list.this_update),
            next_update: timestamp(list.tbs_cert_list.next_update.ok_or_else(malformed)?),
            revoked,
        })
    }

    /// As DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The name of the authority. One authority may sign with several keys, which all have this
    /// name; each of its lists is about the certificates of all of them.
    pub fn issuer(&self) -> &Name {
        &self.issuer
    }

    /// The CRL number: a later list has a higher one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When it was made.
    pub fn this_update(&self) -> Timestamp {
        self.this_update
    }

    /// When the next one is due.
    pub fn next_update(&self) -> Timestamp {
        self.next_update
    }

    /// How many certificates it lists.
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether it lists none.
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    /// When the certificate with this serial number was revoked, if it was.
    pub fn revoked_at(&self, serial: &[u8]) -> Option<Timestamp> {
        self.revoked.get(serial).copied()
    }
}
