//! Renewal: in the last third of its validity a certificate gets one successor.
//!
//! Who has the old key proves it: by an approval of a renewal challenge, which yields a ticket, or
//! by TLS as an EST client. Old and new are both good until the old one expires, and the pair counts
//! once against the quota of certificates.

use jiff::Timestamp;
use serde_json::json;

use super::{Enrolment, EnrolmentError, IssuedTicket, read_request};
use crate::account::operations::{NewOperation, OperationError};
use crate::account::store::certificates::{self, Certificate, Ground};
use crate::account::store::codes::{self, Binding, TicketGround};
use crate::account::store::operations::{Challenge, Creator, Effect, Operation, State};
use crate::account::store::{StoreError, Tx};
use crate::base::encoding::{hex, sha256};
use crate::base::ids::{OperationId, RequestId};
use crate::base::secret::SecretText;
use crate::base::x509::{Certificate as X509Certificate, OperatingIdentity};
use crate::statement::Facts;

impl Enrolment {
    /// Asks the holder of a certificate to approve its renewal: an operation of the service and
    /// its challenge. While one is open it is gone on with, and its challenge given again while that
    /// is good: whoever knows the serial number may ask.
    pub async fn begin_renewal(
        &self,
        serial: &str,
        request: &RequestId,
    ) -> Result<(Operation, Challenge), EnrolmentError> {
        let now = self.clock.now();
        let certificate = self
            .store
            .read("find certificate", move |tx| {
                Box::pin(renewable(tx, serial, now))
            })
            .await?;
        let new = NewOperation {
            kind: service_kind("certificate-renewal")?,
            account: certificate.account.clone(),
            operator: certificate.operator.clone(),
            facts: Facts {
                payee: Some(certificate.serial.clone()),
                reference: Some(certificate.computer.to_string()),
                ..Facts::default()
            },
            origin: None,
            maker: None,
            creator: Creator::Service(Effect::RenewCertificate, certificate.serial.clone()),
        };
        Ok(self
            .operations
            .begin_once(new, request)
            .await
            .map_err(Box::new)?)
    }

    /// Takes the approval of a renewal and gives the ticket for the successor, once.
    pub async fn finish_renewal(
        &self,
        operation: &OperationId,
        approval: &str,
        request: &RequestId,
    ) -> Result<IssuedTicket, EnrolmentError> {
        let approved = self
            .operations
            .approve(operation, approval, request)
            .await
            .map_err(Box::new)?;
        let Creator::Service(Effect::RenewCertificate, serial) = &approved.creator else {
            return Err(Box::new(OperationError::State {
                state: State::Approved,
            })
            .into());
        };
        let now = self.clock.now();
        let (certificate, name) = self
            .store
            .read("find certificate", move |tx| {
                Box::pin(async move {
                    let certificate = renewable(tx, serial, now).await?;
                    let name = certificates::computer_name(
                        tx,
                        &certificate.account,
                        &certificate.computer,
                    )
                    .await?;
                    Ok::<_, EnrolmentError>((certificate, name))
                })
            })
            .await?;
        let binding = Binding {
            computer_name: name.unwrap_or_else(|| certificate.computer.to_string()),
            account: certificate.account,
            operator: certificate.operator,
            computer: certificate.computer,
            token_serial: certificate.token_serial,
        };
        let ground = TicketGround::Operation(operation.clone());
        let (row, ticket) = self.sign_ticket(binding, ground, now).await?;
        let kept = &row;
        self.store
            .transaction("give ticket", move |tx| {
                Box::pin(async move {
                    if codes::ticket_of_operation(tx, operation).await?.is_some() {
                        return Err(EnrolmentError::TicketSpent);
                    }
                    codes::insert_ticket(tx, kept).await?;
                    let body = json!({
                        "operator": kept.binding.operator,
                        "computer": kept.binding.computer,
                        "operation": operation,
                        "jti": kept.jti,
                    });
                    self.records
                        .note::<EnrolmentError>(
                            tx,
                            &kept.binding.account,
                            "ticket-given",
                            request,
                            body,
                        )
                        .await
                })
            })
            .await?;
        Ok(IssuedTicket {
            ticket: SecretText::new(ticket),
            expires_at: row.expires_at,
            held: false,
        })
    }

    /// Issues the successor of the certificate that a TLS client proved to hold (RFC 7030
    /// section 4.2.2).
    pub async fn reenrol(
        &self,
        presented: &[u8],
        csr: &[u8],
        request: &RequestId,
    ) -> Result<Vec<u8>, EnrolmentError> {
        let now = self.clock.now();
        let unknown = || EnrolmentError::NotInForce {
            serial: "of the TLS client".into(),
        };
        let presented = &X509Certificate::from_der(presented).map_err(|_| unknown())?;
        let serial = &hex(presented.serial());
        let csr = read_request(csr)?;
        let proof = &self.proof(&csr, now)?;
        let (request_hash, key_fingerprint) = (
            &hex(&sha256(csr.der())),
            &hex(&csr.public_key().fingerprint()),
        );
        let earlier = self
            .store
            .read("find certificate", move |tx| {
                Box::pin(async move {
                    let known = certificates::find(tx, serial).await?.ok_or_else(unknown)?;
                    if known.der != presented.der() {
                        return Err(unknown());
                    }
                    succeed(tx, &known, request_hash, key_fingerprint, now).await
                })
            })
            .await?;
        let old = match earlier {
            Succession::Issued(der) => return Ok(der),
            Succession::Open(old) => *old,
        };
        let identity = OperatingIdentity {
            account: old.account.clone(),
            operator: old.operator.clone(),
            computer: old.computer.clone(),
        };
        let certificate = self.issuer.certify(&identity, csr.public_key()).await?;
        let row = &Certificate {
            token_serial: old.token_serial.clone(),
            replaces: Some(old.serial.clone()),
            ..self.row(&identity, &certificate, key_fingerprint, now)
        };
        let (der, texts) = self
            .store
            .transaction("renew certificate", move |tx| {
                Box::pin(async move {
                    certificates::take_turn(tx, &row.account).await?;
                    let known = certificates::find(tx, serial).await?.ok_or_else(unknown)?;
                    match succeed(tx, &known, request_hash, key_fingerprint, now).await? {
                        Succession::Issued(der) => return Ok((der, Vec::new())),
                        Succession::Open(_) => (),
                    }
                    let ground = Ground::Predecessor(request_hash);
                    let texts = self.keep(tx, row, proof, ground, None, request).await?;
                    Ok::<_, EnrolmentError>((row.der.clone(), texts))
                })
            })
            .await?;
        self.texts.send_all(texts).await;
        Ok(der)
    }
}

/// When a certificate can be renewed: in the last third of its validity.
pub fn renewable_from(certificate: &Certificate) -> Timestamp {
    let validity = certificate
        .not_after
        .duration_since(certificate.not_before)
        .unsigned_abs();
    certificate.not_after - validity / 3
}

/// The certificate, if it is in force, near its end, and without a successor.
pub(super) async fn renewable(
    tx: &mut Tx<'_>,
    serial: &str,
    now: Timestamp,
) -> Result<Certificate, EnrolmentError> {
    let certificate = certificates::find(tx, serial)
        .await?
        .filter(|known| known.state(now) == "active")
        .ok_or_else(|| EnrolmentError::NotInForce {
            serial: serial.to_owned(),
        })?;
    if certificates::successor(tx, serial).await?.is_some() {
        return Err(EnrolmentError::Renewed);
    }
    let from = renewable_from(&certificate);
    if now < from {
        return Err(EnrolmentError::TooEarly { from });
    }
    Ok(certificate)
}

enum Succession {
    /// A successor may be issued for this certificate.
    Open(Box<Certificate>),
    /// It was, for the same request.
    Issued(Vec<u8>),
}

/// Whether a successor without a ticket may be issued, or was for the very same request.
async fn succeed(
    tx: &mut Tx<'_>,
    known: &Certificate,
    request_hash: &str,
    key_fingerprint: &str,
    now: Timestamp,
) -> Result<Succession, EnrolmentError> {
    if let Some((successor, hash)) = certificates::successor(tx, &known.serial).await?
        && hash.as_deref() == Some(request_hash)
    {
        return Ok(Succession::Issued(successor.der));
    }
    let certificate = renewable(tx, &known.serial, now).await?;
    if certificates::key_known(tx, key_fingerprint).await? {
        return Err(EnrolmentError::KeyReused);
    }
    Ok(Succession::Open(Box::new(certificate)))
}

fn service_kind(name: &'static str) -> Result<crate::statement::Kind, StoreError> {
    name.parse().map_err(|_| StoreError::Malformed {
        column: "the kinds of operations",
    })
}
