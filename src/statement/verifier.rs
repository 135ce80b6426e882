//! Verifying approvals, for whoever acts on them: the platform, an auditor, another bank.
//!
//! An approval proves itself to anybody who has two things of the account service: the certificates
//! of its issuing authorities, and a fresh revocation list. [`Verifier`] holds both and answers one
//! question: does this approval, by a certificate in force, answer exactly this challenge of this
//! service?
//!
//! ```no_run
//! use opcert::base::x509::Certificate;
//! use opcert::statement::Verifier;
//!
//! # fn example(challenge: &str, approval: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let authorities = Certificate::all_from_pem(&std::fs::read("published/ca.pem")?)?;
//! let mut verifier = Verifier::new("https://accounts.example".parse()?, authorities);
//! verifier.take_list(&std::fs::read("published/crl.der")?)?;
//! let approval = verifier.verify(approval, challenge, jiff::Timestamp::now())?;
//! println!("{} approved {}", approval.statement.operator(), approval.statement.kind().name());
//! # Ok(())
//! # }
//! ```
//!
//! Single use is for the caller to keep: an approval verifies as often as it is looked at.

use jiff::Timestamp;

use super::approval::{Approval, ApprovalError};
use super::origin::Origin;
use crate::base::x509::{Certificate, Crl, StaleCrl, X509Error};

/// Why an approval, or a revocation list, does not count.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// The approval is malformed, its signature or its certificate does not verify.
    #[error(transparent)]
    Approval(#[from] ApprovalError),
    /// It was made for another service.
    #[error("the approval is for {found}, not for {expected}")]
    Audience {
        /// Whose challenge it answers.
        found: Origin,
        /// Whose it should.
        expected: Origin,
    },
    /// It answers another challenge.
    #[error("the approval answers another challenge")]
    Challenge,
    /// No list is known, so nobody can say whether the certificate is in force.
    #[error("there is no revocation list to look the certificate up in")]
    NoList,
    /// No authority signed the list.
    #[error("none of the authorities signed this revocation list")]
    List(#[source] X509Error),
    /// A newer list is known.
    #[error("revocation list number {number} is older than number {known}, which is known")]
    OldList {
        /// Its number.
        number: u64,
        /// The number of the one that is known.
        known: u64,
    },
}

/// Verifies approvals of one account service.
#[derive(Debug)]
pub struct Verifier {
    service: Origin,
    authorities: Vec<Certificate>,
    list: Option<Crl>,
}

impl Verifier {
    /// For the service known as `service`, with the certificates of its issuing authority, which
    /// came by a way that is trusted: one, or several while the authority changes its key.
    pub fn new(service: Origin, authorities: Vec<Certificate>) -> Self {
        Self {
            service,
            authorities,
            list: None,
        }
    }

    /// Takes a revocation list, DER, that one of the authorities signed; it is about the certificates
    /// of all of them. Fetch it often: every certificate names an address, and the service makes a
    /// new one as soon as one is revoked.
    pub fn take_list(&mut self, der: &[u8]) -> Result<(), VerifierError> {
        let mut last = X509Error::Issuer {
            what: "revocation list",
        };
        for authority in &self.authorities {
            match Crl::from_der(der, authority) {
                Ok(list) => {
                    if let Some(known) = &self.list
                        && list.number() < known.number()
                    {
                        return Err(VerifierError::OldList {
                            number: list.number(),
                            known: known.number(),
                        });
                    }
                    self.list = Some(list);
                    return Ok(());
                }
                Err(error) => last = error,
            }
        }
        Err(VerifierError::List(last))
    }

    /// Checks that `approval` is sound at `now` and answers exactly `challenge`, both JWS compact.
    ///
    /// The certificate must be in force by the list, and the list must not be over itself: a list
    /// that nobody has renewed says nothing about now.
    pub fn verify(
        &self,
        approval: &str,
        challenge: &str,
        now: Timestamp,
    ) -> Result<Approval, VerifierError> {
        let list = self.list.as_ref().ok_or(VerifierError::NoList)?;
        let approval = Approval::verify(
            approval,
            &self.authorities,
            Some((list, StaleCrl::Refuse)),
            now,
        )?;
        if approval.audience != self.service {
            return Err(VerifierError::Audience {
                found: approval.audience,
                expected: self.service.clone(),
            });
        }
        if !approval.is_for(challenge) {
            return Err(VerifierError::Challenge);
        }
        Ok(approval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::x509::crl_draft;
    use crate::base::x509::tests::{SoftKey, at, authority};

    #[test]
    fn the_newest_list_of_an_authority_counts() {
        let (key, stranger) = (SoftKey::new(), SoftKey::new());
        let ca = authority(&key);
        let list = |number, key: &SoftKey| {
            let draft = crl_draft(&ca, number, at(1_000_000), at(2_000_000), &[]).unwrap();
            let signature = key.sign(draft.to_sign());
            draft.assemble(&signature).unwrap()
        };
        let service = "https://pay.example".parse().unwrap();
        // One of several authorities, while it changes its key.
        let mut verifier = Verifier::new(service, vec![authority(&stranger), ca.clone()]);
        let unlisted = verifier.verify("", "", at(1_500_000)).unwrap_err();
        assert!(matches!(unlisted, VerifierError::NoList), "{unlisted}");
        verifier.take_list(&list(2, &key)).unwrap();
        verifier.take_list(&list(2, &key)).unwrap();
        let old = verifier.take_list(&list(1, &key)).unwrap_err();
        assert!(
            matches!(
                old,
                VerifierError::OldList {
                    number: 1,
                    known: 2
                }
            ),
            "{old}"
        );
        verifier.take_list(&list(3, &key)).unwrap();
        let forged = verifier.take_list(&list(4, &SoftKey::new())).unwrap_err();
        assert!(matches!(forged, VerifierError::List(_)), "{forged}");
        assert_eq!(verifier.list.unwrap().number(), 3);
    }
}
