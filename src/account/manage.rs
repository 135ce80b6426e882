//! Certificates and computers of an account, as its people see and delete them.
//!
//! Everybody of an account sees all of it. An operator deletes own certificates with no more than
//! a session, as that only reduces rights. An administrator deletes those of others with the
//! approval of a certificate: the request becomes an operation, and the certificate is revoked in
//! the transaction that takes the approval. Where no certificate is at hand and time matters there
//! is break-glass: any administrator, with the password once more, revokes at once, and the other
//! administrators and the business representatives are told. Nothing here can give a right.

use jiff::Timestamp;

use super::config::Quotas;
use super::enrolment::renewable_from;
use super::issuing::RevocationReason;
use super::key_proof::KeyProof;
use super::operations::{NewOperation, OperationError, Operations};
use super::records::Records;
use super::revocation::Revocation;
use super::sessions::Person;
use super::sms::{self, News, Texts};
use super::store::accounts::Operator;
use super::store::certificates::{self, Certificate, Computer, Search};
use super::store::codes::{self, Ticket};
use super::store::events::{self, Event};
use super::store::notices::{self, Audience, Notice};
use super::store::operations::{Challenge, Creator, Effect, Operation};
use super::store::{Store, StoreError, key_proofs};
use crate::audit::AuditError;
use crate::base::Clock;
use crate::base::ids::{AccountId, ComputerId, Jti, OperatorId, RequestId};
use crate::statement::Facts;

/// Most entries of one page of a list.
pub const PAGE: i64 = 200;

/// Certificates named as those that could go.
const COULD_GO: i64 = 20;

/// Why nothing was deleted or shown.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    /// There is no such certificate in the account.
    #[error("there is no certificate {serial} in this account")]
    CertificateUnknown {
        /// Its serial number.
        serial: String,
    },
    /// It was revoked before.
    #[error("certificate {serial} was revoked at {at}")]
    RevokedAlready {
        /// Its serial number.
        serial: String,
        /// When.
        at: Timestamp,
    },
    /// There is no such computer with certificates in force.
    #[error("there is no certificate in force on computer {computer} that you may delete")]
    NothingOnComputer {
        /// The computer.
        computer: ComputerId,
    },
    /// There is no such notice.
    #[error("there is no such notice")]
    NoticeUnknown,
    /// There is no such installation that waits.
    #[error("there is no such installation that waits for an administrator")]
    InstallationUnknown,
    /// It belongs to somebody else, and this role does not manage.
    #[error("the certificate belongs to operator {owner}")]
    NotYours {
        /// Whose it is.
        owner: OperatorId,
    },
    /// Only administrators do this.
    #[error("only administrators do this")]
    NotAdministrator,
    /// The approval could not be asked for.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// The audit record could not be written, so nothing was done.
    #[error("the audit record could not be written")]
    Audit(#[from] AuditError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A certificate as a list shows it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The certificate.
    pub certificate: Certificate,
    /// The name of its computer.
    pub computer_name: String,
    /// `active`, `expired` or `revoked`.
    pub state: &'static str,
    /// From when on it can be renewed.
    pub renewable_from: Timestamp,
    /// How its key was proven, where that is more or less than usual.
    pub key_proof: Option<KeyProof>,
}

/// One page of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// What is on it.
    pub entries: Vec<T>,
    /// What the next page begins behind, if there is one.
    pub next: Option<String>,
}

/// How much of its quota an account uses.
#[derive(Debug, Clone)]
pub struct Usage {
    /// Computers with a certificate in force.
    pub computers: i64,
    /// How many there may be.
    pub computers_limit: u32,
    /// Certificates in force.
    pub certificates: i64,
    /// How many there may be.
    pub certificates_limit: u32,
    /// Certificates that could go, least recently used first.
    pub could_go: Vec<Certificate>,
}

/// What came of asking for a deletion.
#[derive(Debug, Clone)]
pub enum Deletion {
    /// It is done.
    Done(Vec<String>),
    /// The administrator's certificate has to approve it.
    ToApprove(Box<(Operation, Challenge)>),
}

/// Lists and deletes.
#[derive(Clone)]
pub struct Manage {
    /// The store.
    pub store: Store,
    /// The clock.
    pub clock: Clock,
    /// The audit trail.
    pub records: Records,
    /// Asks administrators to approve.
    pub operations: Operations,
    /// Texts to administrators.
    pub texts: Texts,
    /// How much an account may have.
    pub quotas: Quotas,
}

impl Manage {
    /// Certificates of an account, newest first; at most `limit`, which is at most [`PAGE`].
    pub async fn certificates(
        &self,
        account: &AccountId,
        search: &Search,
        limit: i64,
    ) -> Result<Page<Entry>, StoreError> {
        let now = self.clock.now();
        let limit = limit.clamp(1, PAGE);
        let (mut found, mut proofs) = self
            .store
            .read("list certificates", move |tx| {
                Box::pin(async move {
                    let found = certificates::search(tx, account, search, now, limit + 1).await?;
                    let proofs = key_proofs::of_account(tx, account).await?;
                    Ok::<_, StoreError>((found, proofs))
                })
            })
            .await?;
        let more = found.len() > usize::try_from(limit).unwrap_or(usize::MAX);
        if more {
            found.pop();
        }
        let entries: Vec<Entry> = found
            .into_iter()
            .map(|(certificate, computer_name)| Entry {
                state: certificate.state(now),
                renewable_from: renewable_from(&certificate),
                key_proof: proofs.remove(&certificate.serial),
                certificate,
                computer_name,
            })
            .collect();
        let next = entries
            .last()
            .filter(|_| more)
            .map(|entry| entry.certificate.serial.clone());
        Ok(Page { entries, next })
    }

    /// The computers of an account, by name.
    pub async fn computers(&self, account: &AccountId) -> Result<Vec<Computer>, StoreError> {
        let now = self.clock.now();
        self.store
            .read("list computers", move |tx| {
                Box::pin(certificates::computers(tx, account, now))
            })
            .await
    }

    /// How much of its quota an account uses, and what could go.
    pub async fn usage(&self, account: &AccountId) -> Result<Usage, StoreError> {
        let now = self.clock.now();
        let quotas = self.quotas;
        self.store
            .read("count certificates", move |tx| {
                Box::pin(async move {
                    let (certificates, computers) = certificates::counts(tx, account, now).await?;
                    Ok(Usage {
                        computers,
                        computers_limit: quotas.computers,
                        certificates,
                        certificates_limit: quotas.certificates,
                        could_go: certificates::candidates(tx, account, now, COULD_GO).await?,
                    })
                })
            })
            .await
    }

    /// Deletes a certificate: one's own at once, somebody else's after an approval.
    pub async fn delete_certificate(
        &self,
        by: &Operator,
        serial: &str,
        request: &RequestId,
    ) -> Result<Deletion, ManageError> {
        let found = self.find(&by.account, serial).await?;
        if found.operator == by.id {
            let reason = RevocationReason::CessationOfOperation;
            let revocation = Revocation::new(reason, by.id.as_str());
            let serials = self.revoke(vec![found], revocation, request).await?;
            return Ok(Deletion::Done(serials));
        }
        if !by.role.manages() {
            return Err(ManageError::NotYours {
                owner: found.operator,
            });
        }
        let what = format!(
            "{} of {} on {}",
            found.serial, found.operator, found.computer
        );
        let asked = self
            .ask(
                by,
                "certificate-deletion",
                what,
                Effect::DeleteCertificate,
                found.serial,
                request,
            )
            .await?;
        Ok(Deletion::ToApprove(Box::new(asked)))
    }

    /// Deletes one's own certificates on a computer.
    pub async fn delete_own_on(
        &self,
        by: &Operator,
        computer: &ComputerId,
        request: &RequestId,
    ) -> Result<Vec<String>, ManageError> {
        let now = self.clock.now();
        let own = self
            .store
            .read("find certificates", move |tx| {
                Box::pin(certificates::active_of(
                    tx,
                    &by.account,
                    &by.id,
                    Some(computer),
                    now,
                ))
            })
            .await
            .map_err(|error: StoreError| error)?;
        if own.is_empty() {
            return Err(ManageError::NothingOnComputer {
                computer: computer.clone(),
            });
        }
        let reason = RevocationReason::CessationOfOperation;
        let revocation = Revocation::new(reason, by.id.as_str());
        self.revoke(own, revocation, request).await
    }

    /// Break-glass: an administrator revokes at once, without a certificate. The caller has
    /// checked the password again.
    pub async fn break_glass(
        &self,
        by: &Operator,
        target: &BreakGlass,
        reason: RevocationReason,
        request: &RequestId,
    ) -> Result<Vec<String>, ManageError> {
        if !by.role.manages() {
            return Err(ManageError::NotAdministrator);
        }
        let now = self.clock.now();
        let account = &by.account;
        let found = match target {
            BreakGlass::Certificate(serial) => vec![self.find(account, serial).await?],
            BreakGlass::Computer(computer) => self
                .store
                .read("find certificates", move |tx| {
                    Box::pin(certificates::active_on(tx, account, computer, now))
                })
                .await
                .map_err(|error: StoreError| error)?,
            BreakGlass::Operator(operator) => self
                .store
                .read("find certificates", move |tx| {
                    Box::pin(certificates::active_of(tx, account, operator, None, now))
                })
                .await
                .map_err(|error: StoreError| error)?,
        };
        let revocation = Revocation {
            kind: "break-glass-revocation",
            audiences: &[Audience::Administrators, Audience::Representatives],
            ..Revocation::new(reason, by.id.as_str())
        };
        self.revoke(found, revocation, request).await
    }

    /// Installations that wait for an administrator.
    pub async fn held_installations(&self, account: &AccountId) -> Result<Vec<Ticket>, StoreError> {
        let now = self.clock.now();
        self.store
            .read("list held tickets", move |tx| {
                Box::pin(codes::held_tickets(tx, account, now))
            })
            .await
    }

    /// Asks an administrator to approve an installation that waits.
    pub async fn release_installation(
        &self,
        by: &Operator,
        ticket: &Jti,
        request: &RequestId,
    ) -> Result<(Operation, Challenge), ManageError> {
        if !by.role.manages() {
            return Err(ManageError::NotAdministrator);
        }
        let held = self
            .held_installations(&by.account)
            .await?
            .into_iter()
            .find(|held| held.jti == *ticket)
            .ok_or(ManageError::InstallationUnknown)?;
        let what = format!(
            "{} on {} ({})",
            held.binding.operator, held.binding.computer_name, held.binding.computer
        );
        self.ask(
            by,
            "certificate-installation",
            what,
            Effect::ReleaseTicket,
            ticket.to_string(),
            request,
        )
        .await
    }

    /// The newest notices for this person.
    pub async fn notices(&self, person: &Person) -> Result<Vec<Notice>, ManageError> {
        let (audience, account) = audience(person)?;
        let reader = person.id().as_str();
        let found = self
            .store
            .read("list notices", move |tx| {
                Box::pin(notices::list(tx, audience, account, reader, PAGE))
            })
            .await
            .map_err(|error: StoreError| error)?;
        Ok(found)
    }

    /// Notes that this person has read a notice.
    pub async fn read_notice(&self, id: &str, person: &Person) -> Result<(), ManageError> {
        let (audience, account) = audience(person)?;
        let (now, reader) = (self.clock.now(), person.id());
        let there = self
            .store
            .transaction("read notice", move |tx| {
                Box::pin(notices::read(
                    tx,
                    id,
                    audience,
                    account,
                    reader.as_str(),
                    now,
                ))
            })
            .await
            .map_err(|error: StoreError| error)?;
        if there {
            Ok(())
        } else {
            Err(ManageError::NoticeUnknown)
        }
    }

    /// What happened in an account, newest first, behind the event `after`.
    pub async fn events(
        &self,
        account: &AccountId,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Page<Event>, StoreError> {
        let limit = limit.clamp(1, PAGE);
        let mut entries = self
            .store
            .read("list events", move |tx| {
                Box::pin(events::list(tx, account, after, limit + 1))
            })
            .await?;
        let more = entries.len() > usize::try_from(limit).unwrap_or(usize::MAX);
        if more {
            entries.pop();
        }
        let next = entries
            .last()
            .filter(|_| more)
            .map(|event| event.id.clone());
        Ok(Page { entries, next })
    }

    /// Asks the administrator `by` to approve something the service then does.
    async fn ask(
        &self,
        by: &Operator,
        kind: &'static str,
        what: String,
        effect: Effect,
        on: String,
        request: &RequestId,
    ) -> Result<(Operation, Challenge), ManageError> {
        let new = NewOperation {
            kind: kind
                .parse()
                .map_err(|_| StoreError::Malformed { column: "kind" })?,
            account: by.account.clone(),
            operator: by.id.clone(),
            facts: Facts {
                payee: Some(
                    what.chars()
                        .take(crate::statement::text::Text::MAX)
                        .collect(),
                ),
                reference: Some(on.clone()),
                ..Facts::default()
            },
            // The portal may relay it, and so may any program that names no page.
            origin: Some(self.operations.challenge_key.origin().clone()),
            maker: None,
            creator: Creator::Service(effect, on),
        };
        Ok(self.operations.begin(new, request).await?)
    }

    async fn find(&self, account: &AccountId, serial: &str) -> Result<Certificate, ManageError> {
        let serial = serial.to_ascii_lowercase().replace(':', "");
        let wanted = serial.as_str();
        let found = self
            .store
            .read("find certificate", move |tx| {
                Box::pin(certificates::find(tx, wanted))
            })
            .await
            .map_err(|error: StoreError| error)?
            .filter(|found| found.account == *account)
            .ok_or_else(|| ManageError::CertificateUnknown {
                serial: serial.clone(),
            })?;
        match found.revoked {
            Some((at, _)) => Err(ManageError::RevokedAlready { serial, at }),
            None => Ok(found),
        }
    }

    /// Revokes certificates and sends a text to the administrators; gives the serial numbers of
    /// those that were not revoked before.
    async fn revoke(
        &self,
        found: Vec<Certificate>,
        revocation: Revocation<'_>,
        request: &RequestId,
    ) -> Result<Vec<String>, ManageError> {
        let now = self.clock.now();
        let (found, records) = (&found, &self.records);
        let (serials, texts) = self
            .store
            .transaction("revoke certificates", move |tx| {
                Box::pin(async move {
                    let serials = revocation
                        .apply::<ManageError>(tx, records, found, now, request)
                        .await?;
                    let mut texts = Vec::new();
                    if let (Some(first), false) = (found.first(), serials.is_empty()) {
                        let name = certificates::computer_name(tx, &first.account, &first.computer)
                            .await?;
                        let news = News::Deleted {
                            computer_name: name.unwrap_or_else(|| first.computer.to_string()),
                        };
                        texts = sms::to_administrators(tx, &self.texts, &first.account, &news, now)
                            .await?;
                    }
                    Ok::<_, ManageError>((serials, texts))
                })
            })
            .await?;
        self.texts.send_all(texts).await;
        Ok(serials)
    }
}

/// Whose notices a person reads: administrators those of their account, representatives theirs,
/// nobody else any.
fn audience(person: &Person) -> Result<(Audience, Option<&AccountId>), ManageError> {
    match person {
        Person::Operator(operator) if operator.role.manages() => {
            Ok((Audience::Administrators, Some(&operator.account)))
        }
        Person::Operator(_) => Err(ManageError::NotAdministrator),
        Person::Representative(_) => Ok((Audience::Representatives, None)),
    }
}

/// What break-glass is for.
#[derive(Debug, Clone)]
pub enum BreakGlass {
    /// One certificate, by its serial number.
    Certificate(String),
    /// All on one computer.
    Computer(ComputerId),
    /// All of one operator.
    Operator(OperatorId),
}
