//! Whether a certificate is to be believed: its path to an authority, its time, its purpose, and
//! whether it was revoked (RFC 5280 section 6).

use std::time::Duration;

use const_oid::ObjectIdentifier;
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::{Certificate, Crl, X509Error};

/// The extended key usage of operating certificates: document signing (RFC 9336).
pub const DOCUMENT_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.36");

/// Why a certificate has no valid path to a trust anchor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Past its notAfter.
    #[error("it has expired")]
    Expired,
    /// Before its notBefore.
    #[error("it is not valid yet")]
    NotYetValid,
    /// On a revocation list.
    #[error("it is revoked")]
    Revoked,
    /// The revocation list is older than it may be.
    #[error("the revocation list has expired")]
    StaleCrl,
    /// The revocation list is another authority's.
    #[error("the revocation list is not of its issuer")]
    OtherList,
    /// Not issued by a trusted authority.
    #[error("its issuer is not trusted")]
    UnknownIssuer,
    /// Anything else, in the words of the checker.
    #[error("{0}")]
    Other(String),
}

/// Whether an expired revocation list is still an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StaleCrl {
    /// A list past its next update fails the check.
    Refuse,
    /// It is used all the same: what it lists stays revoked.
    Accept,
}

/// Checks an operating certificate: path to one of `anchors`, validity at `now`, document-signing
/// usage and, where a list is given, that it is not on it (RFC 5280 section 6).
///
/// The list must have the name of the certificate's issuer. It need not be signed with the same
/// key: an authority that changes its key lists with either what it issued with both.
pub fn verify_operating_certificate(
    leaf: &Certificate,
    intermediates: &[Certificate],
    anchors: &[Certificate],
    crl: Option<(&Crl, StaleCrl)>,
    now: Timestamp,
) -> Result<(), X509Error> {
    static USAGE: ObjectIdentifier = DOCUMENT_SIGNING;
    let usage = webpki::KeyUsage::required(USAGE.as_bytes());
    verify_path(leaf, intermediates, anchors, usage, now)?;
    let Some((list, stale)) = crl else {
        return Ok(());
    };
    let refused = if list.issuer() != leaf.issuer() {
        PathError::OtherList
    } else if stale == StaleCrl::Refuse && now >= list.next_update() {
        PathError::StaleCrl
    } else if list.revoked_at(leaf.serial()).is_some() {
        PathError::Revoked
    } else {
        return Ok(());
    };
    Err(X509Error::Path(refused))
}

/// Checks a certificate that is not one of ours: path to one of `anchors` and validity at `now`.
/// An anchor is trusted as it is, by name and key, whoever issued it.
pub fn verify_chain(
    leaf: &Certificate,
    intermediates: &[Certificate],
    anchors: &[Certificate],
    now: Timestamp,
) -> Result<(), X509Error> {
    verify_path(leaf, intermediates, anchors, AnyUsage, now)
}

/// Others name no extended key usage for signed messages, or one that has no bearing on them.
struct AnyUsage;

impl webpki::ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: webpki::KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

fn verify_path(
    leaf: &Certificate,
    intermediates: &[Certificate],
    anchors: &[Certificate],
    usage: impl webpki::ExtendedKeyUsageValidator,
    now: Timestamp,
) -> Result<(), X509Error> {
    let other =
        |error: &dyn std::fmt::Display| X509Error::Path(PathError::Other(error.to_string()));
    let leaf_der = CertificateDer::from(leaf.der());
    let end_entity = webpki::EndEntityCert::try_from(&leaf_der).map_err(|error| other(&error))?;
    let anchor_ders: Vec<CertificateDer<'_>> = anchors
        .iter()
        .map(|anchor| CertificateDer::from(anchor.der()))
        .collect();
    let trust: Vec<_> = anchor_ders
        .iter()
        .map(webpki::anchor_from_trusted_cert)
        .collect::<Result<_, _>>()
        .map_err(|error| other(&error))?;
    let chain: Vec<CertificateDer<'_>> = intermediates
        .iter()
        .map(|certificate| CertificateDer::from(certificate.der()))
        .collect();
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &trust,
            &chain,
            UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
            usage,
            None,
            None,
        )
        .map(|_| ())
        .map_err(|error| {
            X509Error::Path(match error {
                webpki::Error::CertExpired { .. } => PathError::Expired,
                webpki::Error::CertNotValidYet { .. } => PathError::NotYetValid,
                webpki::Error::UnknownIssuer => PathError::UnknownIssuer,
                error => PathError::Other(error.to_string()),
            })
        })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SoftKey, at, authority, identity, operating_certificate};
    use super::super::{Revocation, crl_draft};
    use super::*;
    use x509_cert::ext::pkix::CrlReason;

    fn path(result: Result<(), X509Error>) -> PathError {
        match result.unwrap_err() {
            X509Error::Path(error) => error,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_path_is_checked_for_issuer_time_and_revocation() {
        let (ca_key, key) = (SoftKey::new(), SoftKey::new());
        let ca = authority(&ca_key);
        let leaf = operating_certificate(&ca, &ca_key, &key.public);
        assert_eq!(leaf.identity(), Some(identity()));
        let check = |anchors: &[Certificate], crl, now| {
            verify_operating_certificate(&leaf, &[], anchors, crl, at(now))
        };
        check(std::slice::from_ref(&ca), None, 1_700_000_000).unwrap();
        assert_eq!(
            path(check(std::slice::from_ref(&ca), None, 1_900_000_001)),
            PathError::Expired
        );
        assert_eq!(
            path(check(std::slice::from_ref(&ca), None, 999_999)),
            PathError::NotYetValid
        );
        let stranger = authority(&SoftKey::new());
        assert!(check(std::slice::from_ref(&stranger), None, 1_700_000_000).is_err());

        let crl = |number, revoked: &[Revocation]| {
            let draft =
                crl_draft(&ca, number, at(1_699_999_000), at(1_700_001_000), revoked).unwrap();
            let signature = ca_key.sign(draft.to_sign());
            draft.assemble(&signature).unwrap()
        };
        let clean = Crl::from_der(&crl(1, &[]), &ca).unwrap();
        check(
            std::slice::from_ref(&ca),
            Some((&clean, StaleCrl::Refuse)),
            1_700_000_000,
        )
        .unwrap();
        assert_eq!(
            path(check(
                std::slice::from_ref(&ca),
                Some((&clean, StaleCrl::Refuse)),
                1_700_002_000
            )),
            PathError::StaleCrl
        );
        check(
            std::slice::from_ref(&ca),
            Some((&clean, StaleCrl::Accept)),
            1_700_002_000,
        )
        .unwrap();
        let revocation = Revocation {
            serial: leaf.serial().to_vec(),
            at: at(1_699_999_500),
            reason: Some(CrlReason::KeyCompromise),
        };
        let der = crl(300, &[revocation]);
        let revoked = Crl::from_der(&der, &ca).unwrap();
        assert_eq!((revoked.number(), revoked.len()), (300, 1));
        assert!(revoked.revoked_at(leaf.serial()).is_some());
        assert_eq!(
            path(check(
                std::slice::from_ref(&ca),
                Some((&revoked, StaleCrl::Refuse)),
                1_700_000_000
            )),
            PathError::Revoked
        );
        assert!(matches!(
            Crl::from_der(&der, &stranger),
            Err(X509Error::Signature { .. })
        ));
    }
}
