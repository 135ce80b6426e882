//! Enrolment: a right code becomes a ticket, a ticket and a request become a certificate.
//!
//! A ticket is a signed token, so the daemon can read what it was promised; that it is good for
//! one certificate is a row of the database. The row is spent in the transaction that keeps the
//! certificate: there is no certificate without its ticket and no ticket spent for nothing. The
//! same request with the same ticket is answered with the same certificate, so an answer lost on
//! the way is asked for again; another request with that ticket is refused.
//!
//! The certificate is signed before the transaction, which therefore waits for no token; if the
//! transaction then finds the quota full, the certificate is dropped and never leaves. The audit
//! record is durable before the transaction commits, so no certificate exists without its record.

use jiff::Timestamp;
use serde_json::json;

use super::codes::{CodeError, Codes};
use super::config::Quotas;
use super::issuing::{Issuer, IssuingError};
use super::records::Records;
use super::signer::{ChallengeKey, SignError};
use super::store::certificates::{self, Certificate};
use super::store::codes::{self, Ticket as TicketRow};
use super::store::{Store, StoreError, Tx};
use crate::audit::AuditError;
use crate::base::Clock;
use crate::base::encoding::{hex, sha256};
use crate::base::ids::{AccountId, RequestId};
use crate::base::key::KeyFamily;
use crate::base::secret::SecretText;
use crate::base::x509::{CertificateRequest, OperatingIdentity, X509Error};
use crate::policy::Purpose;
use crate::statement::{ServiceError, Ticket, TicketClaims, TicketPurpose};

/// How many certificates an answer at the quota names.
const NAMED: i64 = 20;

/// Why there is no ticket or no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// The code was not taken.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The ticket was not issued here, was changed, or its time is over.
    #[error("the ticket is refused: {0}")]
    Ticket(#[from] ServiceError),
    /// The ticket is signed but not known: it was issued by another database.
    #[error("the ticket is not known here")]
    TicketUnknown,
    /// The ticket was spent on another request.
    #[error("the ticket was spent on another request")]
    TicketSpent,
    /// The request is malformed or does not prove possession.
    #[error("the certificate request is refused: {0}")]
    Request(#[source] X509Error),
    /// The request's key is of a kind that no operating certificate has.
    #[error("the key of the certificate request is not supported")]
    RequestKey,
    /// A certificate was issued for this key before.
    #[error("the key of the certificate request had a certificate before")]
    KeyReused,
    /// The account has as many computers as it may.
    #[error("the account has {limit} computers, as many as it may")]
    Computers {
        /// The limit.
        limit: u32,
        /// Certificates that could go, least recently used first.
        candidates: Vec<Certificate>,
    },
    /// The account has as many certificates as it may.
    #[error("the account has {limit} certificates, as many as it may")]
    Certificates {
        /// The limit.
        limit: u32,
        /// Certificates that could go, least recently used first.
        candidates: Vec<Certificate>,
    },
    /// The ticket could not be signed.
    #[error("the ticket could not be signed")]
    Sign(#[from] SignError),
    /// The certificate could not be issued.
    #[error("the certificate could not be issued")]
    Issuing(#[from] IssuingError),
    /// The audit record could not be written, so nothing was issued.
    #[error("the audit record could not be written")]
    Audit(#[from] AuditError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A ticket on its way to the daemon.
#[derive(Debug)]
pub struct IssuedTicket {
    /// The ticket, JWS compact.
    pub ticket: SecretText,
    /// When it stops working.
    pub expires_at: Timestamp,
}

/// Gives tickets and certificates.
#[derive(Clone)]
pub struct Enrolment {
    /// The store.
    pub store: Store,
    /// The clock.
    pub clock: Clock,
    /// The audit trail.
    pub records: Records,
    /// SMS codes.
    pub codes: Codes,
    /// Signs tickets.
    pub challenge_key: ChallengeKey,
    /// Signs certificates.
    pub issuer: Issuer,
    /// How much an account may have.
    pub quotas: Quotas,
    /// How long a ticket is valid, in seconds.
    pub ticket_lifetime: u64,
}

impl Enrolment {
    /// Exchanges a right code for a ticket.
    pub async fn ticket(
        &self,
        code_id: &str,
        code: &SecretText,
        request: &RequestId,
    ) -> Result<IssuedTicket, EnrolmentError> {
        let binding = self.codes.check(code_id, code).await?;
        let now = self.clock.now();
        let identity = OperatingIdentity {
            account: binding.account.clone(),
            operator: binding.operator.clone(),
            computer: binding.computer.clone(),
        };
        let claims = TicketClaims::new(
            self.challenge_key.origin().clone(),
            &identity,
            TicketPurpose::Install,
            now,
            i64::try_from(self.ticket_lifetime).unwrap_or(i64::MAX),
        );
        let row = TicketRow {
            jti: claims.jti.clone(),
            binding,
            created_at: now,
            expires_at: Timestamp::from_second(claims.exp).unwrap_or(now),
            request_hash: None,
        };
        let input = claims
            .signing_input(self.challenge_key.kid())
            .map_err(SignError::from)?;
        let ticket = self.challenge_key.sign(Purpose::Ticket, input).await?;
        let kept = &row;
        self.store
            .transaction("give ticket", move |tx| {
                Box::pin(async move {
                    if !codes::spend(tx, code_id, now).await? {
                        return Err(CodeError::Spent.into());
                    }
                    codes::insert_ticket(tx, kept, code_id).await?;
                    self.records
                        .write(
                            "ticket-given",
                            request,
                            &json!({
                                "account": kept.binding.account,
                                "operator": kept.binding.operator,
                                "computer": kept.binding.computer,
                                "code_id": code_id,
                                "jti": kept.jti,
                            }),
                        )
                        .await?;
                    Ok::<_, EnrolmentError>(())
                })
            })
            .await?;
        Ok(IssuedTicket {
            ticket: SecretText::new(ticket),
            expires_at: row.expires_at,
        })
    }

    /// Issues the certificate that `ticket` allows, for the key of the request `csr` (DER).
    pub async fn enrol(
        &self,
        ticket: &SecretText,
        csr: &[u8],
        request: &RequestId,
    ) -> Result<Vec<u8>, EnrolmentError> {
        let now = self.clock.now();
        let ticket = Ticket::open(ticket.expose(), now, |issuer, kid| {
            self.challenge_key.find(issuer, kid)
        })?;
        let csr = CertificateRequest::from_der(csr).map_err(EnrolmentError::Request)?;
        // RSA of other lengths verifies, but no token of ours makes such keys.
        if let KeyFamily::Rsa(bits) = csr.public_key().family()
            && ![2048, 3072].contains(&bits)
        {
            return Err(EnrolmentError::RequestKey);
        }
        let claim = &Claim {
            ticket,
            request_hash: hex(&sha256(csr.der())),
            key_fingerprint: hex(&csr.public_key().fingerprint()),
            now,
        };

        // What can be refused without the token is refused first. The transaction below checks
        // it all again, as others may be enrolling at the same time.
        let earlier = self
            .store
            .read("look at ticket", move |tx| Box::pin(self.admit(tx, claim)))
            .await?;
        if let Admission::Issued(certificate) = earlier {
            return Ok(certificate);
        }

        let identity = claim.ticket.identity();
        let certificate = self.issuer.certify(identity, csr.public_key()).await?;
        let row = &Certificate {
            serial: hex(certificate.serial()),
            account: identity.account.clone(),
            operator: identity.operator.clone(),
            computer: identity.computer.clone(),
            key_fingerprint: claim.key_fingerprint.clone(),
            der: certificate.der().to_vec(),
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
            issued_at: now,
            last_used_at: None,
            revoked: None,
        };
        self.store
            .transaction("issue certificate", move |tx| {
                Box::pin(self.issue(tx, claim, row, request))
            })
            .await
    }

    /// The body of the transaction that issues.
    async fn issue(
        &self,
        tx: &mut Tx<'_>,
        claim: &Claim,
        row: &Certificate,
        request: &RequestId,
    ) -> Result<Vec<u8>, EnrolmentError> {
        certificates::take_turn(tx, &row.account).await?;
        let name = match self.admit(tx, claim).await? {
            Admission::Issued(certificate) => return Ok(certificate),
            Admission::Open { computer_name } => computer_name,
        };
        let jti = claim.ticket.jti();
        if !codes::spend_ticket(tx, jti, &claim.request_hash, claim.now).await? {
            return Err(EnrolmentError::TicketSpent);
        }
        certificates::upsert_computer(tx, &row.account, &row.computer, &name, claim.now).await?;
        certificates::insert(tx, row, jti).await?;
        self.records
            .write(
                "certificate-issued",
                request,
                &json!({
                    "serial": row.serial,
                    "account": row.account,
                    "operator": row.operator,
                    "computer": row.computer,
                    "key": row.key_fingerprint,
                    "not_after": row.not_after.to_string(),
                    "ticket": jti,
                }),
            )
            .await?;
        Ok(row.der.clone())
    }

    /// Whether a certificate may be issued, or was for the very same request.
    async fn admit(&self, tx: &mut Tx<'_>, claim: &Claim) -> Result<Admission, EnrolmentError> {
        let jti = claim.ticket.jti();
        let row = codes::find_ticket(tx, jti)
            .await?
            .ok_or(EnrolmentError::TicketUnknown)?;
        if let Some(spent_on) = row.request_hash {
            if spent_on != claim.request_hash {
                return Err(EnrolmentError::TicketSpent);
            }
            let issued = certificates::for_ticket(tx, jti)
                .await?
                .ok_or(StoreError::Malformed {
                    column: "tickets.request_hash",
                })?;
            return Ok(Admission::Issued(issued.der));
        }
        if certificates::key_known(tx, &claim.key_fingerprint).await? {
            return Err(EnrolmentError::KeyReused);
        }
        let identity = claim.ticket.identity();
        let (held, others) =
            certificates::active(tx, &identity.account, &identity.computer, claim.now).await?;
        if others >= i64::from(self.quotas.computers) {
            return Err(EnrolmentError::Computers {
                limit: self.quotas.computers,
                candidates: candidates(tx, &identity.account, claim.now).await?,
            });
        }
        if held >= i64::from(self.quotas.certificates) {
            return Err(EnrolmentError::Certificates {
                limit: self.quotas.certificates,
                candidates: candidates(tx, &identity.account, claim.now).await?,
            });
        }
        Ok(Admission::Open {
            computer_name: row.binding.computer_name,
        })
    }
}

/// A ticket and what is asked with it, both checked as far as they speak for themselves.
struct Claim {
    ticket: Ticket,
    /// SHA-256 of the request, hexadecimal.
    request_hash: String,
    /// SHA-256 of the request's key, hexadecimal.
    key_fingerprint: String,
    now: Timestamp,
}

enum Admission {
    /// A certificate may be issued.
    Open { computer_name: String },
    /// It was, for the same request: here it is again.
    Issued(Vec<u8>),
}

async fn candidates(
    tx: &mut Tx<'_>,
    account: &AccountId,
    now: Timestamp,
) -> Result<Vec<Certificate>, StoreError> {
    certificates::candidates(tx, account, now, NAMED).await
}
