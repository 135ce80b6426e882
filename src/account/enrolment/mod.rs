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
//!
//! **Later installations.** Where the account wants it, a ticket given while the account has a
//! certificate in force is held: an administrator's certificate must approve the installation
//! before the ticket can be spent.
//!
//! How a certificate gets its successor is in [`renewal`].

mod renewal;

use jiff::Timestamp;
use serde_json::json;

use self::renewal::renewable;
pub use self::renewal::renewable_from;
use super::codes::{CodeError, Codes};
use super::config::Quotas;
use super::issuing::{Issuer, IssuingError};
use super::key_proof::{KeyProof, Makers};
use super::operations::{OperationError, Operations};
use super::records::Records;
use super::recovery;
use super::signer::{ChallengeKey, SignError};
use super::sms::{self, News, Outgoing, Texts};
use super::store::certificates::{self, Certificate, Ground};
use super::store::codes::{self, Binding, CodeUse, Ticket as TicketRow, TicketGround};
use super::store::notices::Audience;
use super::store::operations::{self as operation_rows, Creator};
use super::store::{Store, StoreError, Tx, accounts, key_proofs};
use crate::audit::AuditError;
use crate::base::Clock;
use crate::base::encoding::{hex, sha256};
use crate::base::ids::{AccountId, Jti, RequestId};
use crate::base::key::KeyFamily;
use crate::base::secret::SecretText;
use crate::base::x509::{
    Certificate as X509Certificate, CertificateRequest, OperatingIdentity, X509Error,
};
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
    /// The ticket was ended before its time: what it was given for has changed.
    #[error("the ticket was ended")]
    TicketEnded,
    /// The login of the operator it was given for is closed.
    #[error("the login of the ticket's operator is closed")]
    LoginClosed,
    /// The ticket was spent on another request.
    #[error("the ticket was spent on another request")]
    TicketSpent,
    /// An administrator has to approve the installation first.
    #[error("the installation waits for an administrator of the account")]
    Held,
    /// The code was sent for something else.
    #[error("the code was not sent for an installation")]
    CodePurpose,
    /// There is no such certificate in force.
    #[error("there is no certificate {serial} in force")]
    NotInForce {
        /// Its serial number.
        serial: String,
    },
    /// It is too early for a successor.
    #[error("the certificate can be renewed from {from} on")]
    TooEarly {
        /// When it can.
        from: Timestamp,
    },
    /// The certificate has a successor already.
    #[error("the certificate has a successor already")]
    Renewed,
    /// The renewal could not be asked for or approved.
    #[error(transparent)]
    Operation(#[from] Box<OperationError>),
    /// The request is malformed or does not prove possession.
    #[error("the certificate request is refused: {0}")]
    Request(#[source] X509Error),
    /// The request's key is of a kind that no operating certificate has.
    #[error("the key of the certificate request is not supported")]
    RequestKey,
    /// The request shows no attestation of its key that ends at an authority of the configuration.
    #[error("the request shows no attestation of its key that this service takes")]
    NotAttested,
    /// A certificate was issued for this key before.
    #[error("the key of the certificate request had a certificate before")]
    KeyReused,
    /// The account has as many computers as it may.
    #[error("the account has {limit} computers, as many as it may")]
    Computers {
        /// The limit.
        limit: u32,
        /// Certificates that could go, least recently used first.
        candidates: Vec<Candidate>,
    },
    /// The account has as many certificates as it may.
    #[error("the account has {limit} certificates, as many as it may")]
    Certificates {
        /// The limit.
        limit: u32,
        /// Certificates that could go, least recently used first.
        candidates: Vec<Candidate>,
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
    /// Whether an administrator has to approve first.
    pub held: bool,
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
    /// Renewal challenges.
    pub operations: Operations,
    /// Texts to administrators.
    pub texts: Texts,
    /// How much an account may have.
    pub quotas: Quotas,
    /// How long a ticket is valid, in seconds.
    pub ticket_lifetime: u64,
    /// Whose attestation of a key counts.
    pub makers: Makers,
}

impl Enrolment {
    /// Exchanges a right code for a ticket.
    pub async fn ticket(
        &self,
        code_id: &str,
        code: &SecretText,
        request: &RequestId,
    ) -> Result<IssuedTicket, EnrolmentError> {
        let checked = self.codes.check(code_id, code).await?;
        let CodeUse::Install {
            computer,
            computer_name,
            token_serial,
        } = checked.purpose
        else {
            return Err(EnrolmentError::CodePurpose);
        };
        let binding = Binding {
            account: checked.account,
            operator: checked.operator,
            computer,
            computer_name,
            token_serial,
        };
        let now = self.clock.now();
        let ground = TicketGround::Code(code_id.to_owned());
        let (row, ticket) = self.sign_ticket(binding, ground, now).await?;
        let drafted = &row;
        let held = self
            .store
            .transaction("give ticket", move |tx| {
                Box::pin(async move {
                    if !codes::spend(tx, code_id, now).await? {
                        return Err(CodeError::Spent.into());
                    }
                    let mut kept = drafted.clone();
                    kept.held = must_wait(tx, &kept.binding, now).await?;
                    codes::insert_ticket(tx, &kept).await?;
                    let body = json!({
                        "operator": kept.binding.operator,
                        "computer": kept.binding.computer,
                        "computer_name": kept.binding.computer_name,
                        "code_id": code_id,
                        "jti": kept.jti,
                        "held": kept.held,
                    });
                    let account = &kept.binding.account;
                    if kept.held {
                        let audience = &[Audience::Administrators];
                        self.records
                            .tell::<EnrolmentError>(
                                tx,
                                account,
                                audience,
                                "installation-held",
                                request,
                                body,
                            )
                            .await?;
                    } else {
                        self.records
                            .note::<EnrolmentError>(tx, account, "ticket-given", request, body)
                            .await?;
                    }
                    Ok::<_, EnrolmentError>(kept.held)
                })
            })
            .await?;
        Ok(IssuedTicket {
            ticket: SecretText::new(ticket),
            expires_at: row.expires_at,
            held,
        })
    }

    /// A ticket for `binding`, to be kept, and its compact form.
    async fn sign_ticket(
        &self,
        binding: Binding,
        ground: TicketGround,
        now: Timestamp,
    ) -> Result<(TicketRow, String), EnrolmentError> {
        let purpose = match ground {
            TicketGround::Code(_) => TicketPurpose::Install,
            TicketGround::Operation(_) => TicketPurpose::Renew,
        };
        let claims = TicketClaims::new(
            self.challenge_key.origin().clone(),
            &identity_of(&binding),
            purpose,
            now,
            i64::try_from(self.ticket_lifetime).unwrap_or(i64::MAX),
        );
        let input = claims
            .signing_input(self.challenge_key.kid())
            .map_err(SignError::from)?;
        let ticket = self.challenge_key.sign(Purpose::Ticket, input).await?;
        let row = TicketRow {
            jti: claims.jti.clone(),
            short_hash: short_hash(&ticket),
            ground,
            binding,
            held: false,
            created_at: now,
            expires_at: Timestamp::from_second(claims.exp).unwrap_or(now),
            request_hash: None,
        };
        Ok((row, ticket))
    }

    /// Whose ticket this is, if it is one of ours and its time is not over.
    ///
    /// The last part of the token alone, its signature, is taken as well: EST clients have little
    /// room for a password. Nobody can know it without the ticket, as nothing else holds it.
    async fn open_ticket(
        &self,
        ticket: &SecretText,
        now: Timestamp,
    ) -> Result<(Jti, OperatingIdentity), EnrolmentError> {
        if ticket.expose().contains('.') {
            let opened = Ticket::open(ticket.expose(), now, |issuer, kid| {
                self.challenge_key.find(issuer, kid)
            })?;
            return Ok((opened.jti().clone(), opened.identity().clone()));
        }
        let hash = &short_hash(ticket.expose());
        let row = self
            .store
            .read("find ticket", move |tx| {
                Box::pin(codes::ticket_by_hash(tx, hash))
            })
            .await
            .map_err(|error: StoreError| error)?
            .filter(|row| row.expires_at > now)
            .ok_or(EnrolmentError::TicketUnknown)?;
        Ok((row.jti, identity_of(&row.binding)))
    }

    /// Issues the certificate that `ticket` allows, for the key of the request `csr` (DER).
    pub async fn enrol(
        &self,
        ticket: &SecretText,
        csr: &[u8],
        request: &RequestId,
    ) -> Result<Vec<u8>, EnrolmentError> {
        let now = self.clock.now();
        let (jti, identity) = self.open_ticket(ticket, now).await?;
        let csr = read_request(csr)?;
        let claim = &Claim {
            jti,
            identity,
            proof: self.proof(&csr, now)?,
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

        let identity = &claim.identity;
        let certificate = self.issuer.certify(identity, csr.public_key()).await?;
        let row = &self.row(identity, &certificate, &claim.key_fingerprint, now);
        let (der, texts) = self
            .store
            .transaction("issue certificate", move |tx| {
                Box::pin(self.issue(tx, claim, row, request))
            })
            .await?;
        self.texts.send_all(texts).await;
        Ok(der)
    }

    /// A new certificate as the store keeps it.
    fn row(
        &self,
        identity: &OperatingIdentity,
        certificate: &X509Certificate,
        key_fingerprint: &str,
        now: Timestamp,
    ) -> Certificate {
        Certificate {
            serial: hex(certificate.serial()),
            account: identity.account.clone(),
            operator: identity.operator.clone(),
            computer: identity.computer.clone(),
            token_serial: None,
            replaces: None,
            key_fingerprint: key_fingerprint.to_owned(),
            issuer: self.issuer.key(),
            der: certificate.der().to_vec(),
            not_before: certificate.not_before(),
            not_after: certificate.not_after(),
            issued_at: now,
            last_used_at: None,
            revoked: None,
            revoked_by: None,
        }
    }

    /// The body of the transaction that issues.
    async fn issue(
        &self,
        tx: &mut Tx<'_>,
        claim: &Claim,
        row: &Certificate,
        request: &RequestId,
    ) -> Result<(Vec<u8>, Vec<Outgoing>), EnrolmentError> {
        certificates::take_turn(tx, &row.account).await?;
        let (binding, replaces) = match self.admit(tx, claim).await? {
            Admission::Issued(certificate) => return Ok((certificate, Vec::new())),
            Admission::Open { binding, replaces } => (binding, replaces),
        };
        let row = &Certificate {
            token_serial: binding.token_serial.clone(),
            replaces,
            ..row.clone()
        };
        let jti = &claim.jti;
        if !codes::spend_ticket(tx, jti, &claim.request_hash, claim.now).await? {
            return Err(EnrolmentError::TicketSpent);
        }
        let texts = self
            .keep(
                tx,
                row,
                &claim.proof,
                Ground::Ticket(jti),
                Some(&binding.computer_name),
                request,
            )
            .await?;
        Ok((row.der.clone(), texts))
    }

    /// Keeps a certificate, with its record and the notices to the administrators.
    async fn keep(
        &self,
        tx: &mut Tx<'_>,
        row: &Certificate,
        proof: &KeyProof,
        ground: Ground<'_>,
        name: Option<&str>,
        request: &RequestId,
    ) -> Result<Vec<Outgoing>, EnrolmentError> {
        let now = row.issued_at;
        if let Some(name) = name {
            certificates::upsert_computer(tx, &row.account, &row.computer, name, now).await?;
        }
        certificates::insert(tx, row, ground).await?;
        if !proof.is_usual() {
            key_proofs::insert(tx, &row.serial, proof).await?;
        }
        let ticket = match ground {
            Ground::Ticket(jti) => Some(jti),
            Ground::Predecessor(_) => None,
        };
        let mut body = json!({
            "serial": row.serial,
            "operator": row.operator,
            "computer": row.computer,
            "key": row.key_fingerprint,
            "not_after": row.not_after.to_string(),
            "ticket": ticket,
            "replaces": row.replaces,
        });
        if !proof.is_usual() {
            body["key_proof"] = json!(proof);
        }
        let audience = &[Audience::Administrators];
        self.records
            .tell::<EnrolmentError>(
                tx,
                &row.account,
                audience,
                "certificate-issued",
                request,
                body,
            )
            .await?;
        // A renewal is no news worth a text.
        let Some(computer_name) = name.filter(|_| row.replaces.is_none()) else {
            return Ok(Vec::new());
        };
        let news = News::Installed {
            computer_name: computer_name.to_owned(),
        };
        Ok(sms::to_administrators(tx, &self.texts, &row.account, &news, now).await?)
    }

    /// What the request says of its key, and whether that is enough.
    fn proof(&self, csr: &CertificateRequest, now: Timestamp) -> Result<KeyProof, EnrolmentError> {
        self.makers
            .judge(csr, now)
            .ok_or(EnrolmentError::NotAttested)
    }

    /// Whether a certificate may be issued, or was for the very same request.
    async fn admit(&self, tx: &mut Tx<'_>, claim: &Claim) -> Result<Admission, EnrolmentError> {
        let jti = &claim.jti;
        let row = codes::find_ticket(tx, jti)
            .await?
            .ok_or(EnrolmentError::TicketUnknown)?;
        let binding = &row.binding;
        if accounts::operator(tx, &binding.account, &binding.operator)
            .await?
            .is_none()
        {
            return Err(EnrolmentError::LoginClosed);
        }
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
        if row.expires_at <= claim.now {
            return Err(EnrolmentError::TicketEnded);
        }
        if row.held {
            return Err(EnrolmentError::Held);
        }
        if certificates::key_known(tx, &claim.key_fingerprint).await? {
            return Err(EnrolmentError::KeyReused);
        }
        // A successor takes the place of its predecessor, which counts until it expires.
        if let TicketGround::Operation(operation) = &row.ground {
            let replaced = operation_rows::find(tx, operation).await?;
            let Some(Creator::Service(_, serial)) = replaced.map(|operation| operation.creator)
            else {
                return Err(EnrolmentError::TicketUnknown);
            };
            renewable(tx, &serial, claim.now).await?;
            return Ok(Admission::Open {
                binding: row.binding,
                replaces: Some(serial),
            });
        }
        let identity = &claim.identity;
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
            binding: row.binding,
            replaces: None,
        })
    }
}

/// A ticket and what is asked with it, both checked as far as they speak for themselves.
struct Claim {
    jti: Jti,
    identity: OperatingIdentity,
    /// What the request says of its key.
    proof: KeyProof,
    /// SHA-256 of the request, hexadecimal.
    request_hash: String,
    /// SHA-256 of the request's key, hexadecimal.
    key_fingerprint: String,
    now: Timestamp,
}

enum Admission {
    /// A certificate may be issued.
    Open {
        /// What the ticket was given for.
        binding: Binding,
        /// The certificate it takes the place of.
        replaces: Option<String>,
    },
    /// It was, for the same request: here it is again.
    Issued(Vec<u8>),
}

/// A certificate that could go at the quota.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The certificate.
    pub certificate: Certificate,
    /// The name of its computer, or its id where it has none.
    pub computer: String,
}

async fn candidates(
    tx: &mut Tx<'_>,
    account: &AccountId,
    now: Timestamp,
) -> Result<Vec<Candidate>, StoreError> {
    let mut named = Vec::new();
    for certificate in certificates::candidates(tx, account, now, NAMED).await? {
        let name = certificates::computer_name(tx, account, &certificate.computer).await?;
        named.push(Candidate {
            computer: name.unwrap_or_else(|| certificate.computer.to_string()),
            certificate,
        });
    }
    Ok(named)
}

/// Reads a certificate request: it is signed by its own key, which is of a kind tokens make.
fn read_request(csr: &[u8]) -> Result<CertificateRequest, EnrolmentError> {
    let csr = CertificateRequest::from_der(csr).map_err(EnrolmentError::Request)?;
    // RSA of other lengths verifies, but no token of ours makes such keys.
    if let KeyFamily::Rsa(bits) = csr.public_key().family()
        && ![2048, 3072].contains(&bits)
    {
        return Err(EnrolmentError::RequestKey);
    }
    Ok(csr)
}

/// SHA-256 of the last part of a ticket, hexadecimal.
fn short_hash(ticket: &str) -> String {
    let signature = ticket.rsplit('.').next().unwrap_or_default();
    hex(&sha256(signature.as_bytes()))
}

fn identity_of(binding: &Binding) -> OperatingIdentity {
    OperatingIdentity {
        account: binding.account.clone(),
        operator: binding.operator.clone(),
        computer: binding.computer.clone(),
    }
}

/// Whether an administrator has to release a ticket given now: where the account wants that for
/// all installations but the first.
async fn must_wait(tx: &mut Tx<'_>, binding: &Binding, now: Timestamp) -> Result<bool, StoreError> {
    let wanted = accounts::account(tx, &binding.account)
        .await?
        .is_some_and(|account| account.later_installs_held);
    if !wanted || recovery::recovering(tx, &binding.account, &binding.operator, now).await? {
        return Ok(false);
    }
    let (held, _) = certificates::active(tx, &binding.account, &binding.computer, now).await?;
    Ok(held > 0)
}
