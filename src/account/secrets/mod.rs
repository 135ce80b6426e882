//! API secrets of an account: set once, sealed, carried to the computers that need them.
//!
//! **Setting.** Only the super administrator, with the new secret, an SMS code sent for exactly
//! this, and the login password. Where the account has an approval rule for `secret-change`, the
//! secret waits: as many administrators as the rule says approve it with their certificates, not
//! the one who set it among them. Nobody can look at a secret again, and no answer, record or text
//! holds it.
//!
//! **Old and new.** The platform ends the old secret at once; what was on its way was made with
//! it. So the one before stays for the overlap that was chosen, at most a week, and is then
//! destroyed, with all that was sealed of it. There are never more than two.
//!
//! **Who gets it.** A computer asks for itself
//! ([`SecretRequest`](crate::statement::SecretRequest)), by an operating certificate of the account
//! in force, and names the key on its token. Having a certificate is not enough: the
//! super administrator lets each key have secrets once, so no operator's computer gets them by
//! asking. What a computer gets is sealed to its key and signed; versions count up, and the daemon
//! takes none that is not newer than what it has. The next request tells what has arrived.
//!
//! **At rest** a secret is sealed to the token of the service ([`super::vault`]) and to each
//! computer that has asked for it, so one that is installed later can have it too.

mod give;
mod overview;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::codes::{CodeError, Codes, Sent};
use super::issuing::Issuer;
use super::operations::{Canceller, NewOperation, OperationError, Operations};
use super::records::Records;
use super::signer::{ChallengeKey, SignError};
use super::sms::{self, News, Outgoing, Texts};
use super::store::accounts::{self, Operator, Role};
use super::store::codes::{self, CodeUse};
use super::store::notices::Audience;
use super::store::operations::{self as operation_rows, Challenge, Creator, Effect, Operation};
use super::store::secrets::{self, RecipientState, Secret};
use super::store::{Store, StoreError, Tx};
use super::vault::{Vault, VaultError};
use crate::audit::AuditError;
use crate::base::Clock;
use crate::base::ids::{AccountId, Jti, OperationId, RequestId};
use crate::base::jwe::JweError;
use crate::base::secret::SecretText;
use crate::statement::sealed_secret::LONGEST_OVERLAP;
use crate::statement::{Facts, SecretKind, SecretRequestError};

pub use give::Given;
pub use overview::{Arrival, KindView, Overview, RecipientView};

/// The overlap where none is chosen, in seconds: a day.
pub const OVERLAP: i64 = 86_400;

/// How long a secret waits for its approvals.
pub const WAITS: Duration = Duration::from_secs(24 * 60 * 60);

/// The kind of operation that an approval rule speaks of.
const OPERATION: &str = "secret-change";

/// Why a secret was not set, shown or delivered.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Only the super administrator does this.
    #[error("only the super administrator does this")]
    NotSuperAdministrator,
    /// Only administrators see this.
    #[error("only administrators see this")]
    NotAdministrator,
    /// The text cannot be a secret of the platform's.
    #[error("the new secret must have exactly 32 characters, digits and letters of ASCII")]
    Form,
    /// The overlap is longer than it may be.
    #[error("the overlap must be 0 to {LONGEST_OVERLAP} seconds")]
    Overlap,
    /// The code was not taken.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// No secret of this kind waits.
    #[error("no {kind} secret waits for approval")]
    NothingWaits {
        /// Which.
        kind: SecretKind,
    },
    /// There is no such key.
    #[error("no computer of this account has asked with such a key")]
    RecipientUnknown,
    /// It was decided so before.
    #[error("the computer's key is {} already", state.as_str())]
    RecipientState {
        /// The state it is in.
        state: RecipientState,
    },
    /// What a computer handed in is no request.
    #[error("the request for secrets is refused: {0}")]
    Request(#[from] SecretRequestError),
    /// It is meant for another service.
    #[error("the request for secrets is for another service")]
    Audience,
    /// The certificate chains to the authority but is not one the database knows.
    #[error("the certificate of the request was not issued here")]
    CertificateUnknown,
    /// The certificate is revoked.
    #[error("the certificate of the request was revoked at {at}")]
    CertificateRevoked {
        /// When.
        at: Timestamp,
    },
    /// A newer request of the same key came in before.
    #[error("a newer request of this computer is known")]
    Stale,
    /// The key belongs to another computer or merchant.
    #[error("the key is known for another computer or merchant")]
    OtherRecipient,
    /// The computer says that it has what nobody ever set.
    #[error("the computer claims to have version {version}, which there cannot be")]
    Version {
        /// What it says.
        version: u64,
    },
    /// The computer has as many keys as it may.
    #[error("this computer has {limit} {what}, as many as it may")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: i64,
    },
    /// A secret could not be sealed for a computer.
    #[error("the secret could not be sealed for the computer")]
    Seal(#[from] JweError),
    /// A secret could not be kept or opened.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// A sealed secret could not be signed.
    #[error("the sealed secret could not be signed")]
    Sign(#[from] SignError),
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

/// A secret to be set.
#[derive(Debug)]
pub struct NewSecret {
    /// Which.
    pub kind: SecretKind,
    /// What it is.
    pub secret: SecretText,
    /// For how many seconds the one before is still read.
    pub overlap_seconds: i64,
}

impl NewSecret {
    /// Whether it can be one: 32 digits and letters, as the platform's page takes them.
    fn check(&self) -> Result<(), SecretError> {
        let text = self.secret.expose();
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(SecretError::Form);
        }
        if !(0..=LONGEST_OVERLAP).contains(&self.overlap_seconds) {
            return Err(SecretError::Overlap);
        }
        Ok(())
    }
}

/// What became of setting a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// It is the current one.
    Current {
        /// Its version.
        version: u64,
    },
    /// Administrators have to approve it first.
    Waits {
        /// How many.
        approvals: i64,
    },
}

/// Sets secrets and gives them to computers.
#[derive(Clone)]
pub struct Secrets {
    /// The store.
    pub store: Store,
    /// The clock.
    pub clock: Clock,
    /// The audit trail.
    pub records: Records,
    /// SMS codes.
    pub codes: Codes,
    /// Seals secrets at rest.
    pub vault: Vault,
    /// Signs what computers get.
    pub challenge_key: ChallengeKey,
    /// Whose certificates vouch for computers.
    pub issuer: Issuer,
    /// Asks administrators to approve.
    pub operations: Operations,
    /// Texts to administrators.
    pub texts: Texts,
}

impl Secrets {
    /// Sends the super administrator a code for setting a secret of this kind.
    pub async fn send_code(
        &self,
        by: &Operator,
        kind: SecretKind,
        request: &RequestId,
    ) -> Result<Sent, SecretError> {
        super_administrator(by)?;
        let purpose = CodeUse::SecretChange {
            subject: kind.to_string(),
        };
        Ok(self.codes.send_to(by, purpose, request).await?)
    }

    /// Whether the new secret may be looked at: role, form and overlap. Comes before password and
    /// code are tried, so that a slip of the hand costs neither.
    pub fn check(&self, by: &Operator, new: &NewSecret) -> Result<(), SecretError> {
        super_administrator(by)?;
        new.check()
    }

    /// Sets a secret. The caller has checked the login password again.
    pub async fn set(
        &self,
        by: &Operator,
        new: NewSecret,
        code_id: &str,
        code: &SecretText,
        request: &RequestId,
    ) -> Result<Set, SecretError> {
        self.check(by, &new)?;
        let checked = self.codes.check(code_id, code).await?;
        let purpose = CodeUse::SecretChange {
            subject: new.kind.to_string(),
        };
        let own = checked.account == by.account && checked.operator == by.id;
        if !own || checked.purpose != purpose {
            // What else the code is good for is not said.
            return Err(CodeError::Wrong { tries_left: 0 }.into());
        }
        let now = self.clock.now();
        let row = &Secret {
            id: Jti::random().to_string(),
            account: by.account.clone(),
            kind: new.kind,
            version: None,
            set_by: by.id.clone(),
            set_at: now,
            overlap_seconds: new.overlap_seconds,
            effective_at: None,
            ends_at: Some(now + WAITS),
        };
        let sealed = &self.vault.seal(row, &new.secret)?;
        drop(new);
        let (set, texts) = self
            .store
            .transaction("set secret", move |tx| {
                Box::pin(async move {
                    secrets::take_turn(tx, &row.account).await?;
                    if !codes::spend(tx, code_id, now).await? {
                        return Err(SecretError::from(CodeError::Spent));
                    }
                    self.drop_waiting(tx, row, request, now).await?;
                    secrets::insert(tx, row, sealed).await?;
                    let rule = accounts::approval_rule(tx, &row.account, OPERATION, "", 0).await?;
                    match rule {
                        Some(approvals) => {
                            let body = json!({
                                "kind": row.kind,
                                "id": row.id,
                                "operator": by.id,
                                "approvals": approvals,
                            });
                            self.tell(tx, &row.account, "secret-proposed", request, body)
                                .await?;
                            Ok::<_, SecretError>((Set::Waits { approvals }, Vec::new()))
                        }
                        None => {
                            let (version, texts) = take_effect(
                                tx,
                                &self.records,
                                &self.texts,
                                row,
                                None,
                                now,
                                request,
                            )
                            .await?
                            .ok_or(SecretError::NothingWaits { kind: row.kind })?;
                            Ok((Set::Current { version }, texts))
                        }
                    }
                })
            })
            .await?;
        self.texts.send_all(texts).await;
        Ok(set)
    }

    /// Asks an administrator to approve the secret of this kind that waits, as one of as many as
    /// the account's rule wants; the operation is shared by all of them.
    pub async fn ask_administrators(
        &self,
        by: &Operator,
        kind: SecretKind,
        request: &RequestId,
    ) -> Result<(Operation, Challenge), SecretError> {
        administrator(by)?;
        let waiting = self.find_waiting(&by.account, kind).await?;
        let new = NewOperation {
            kind: OPERATION
                .parse()
                .map_err(|_| StoreError::Malformed { column: "kind" })?,
            account: by.account.clone(),
            operator: by.id.clone(),
            facts: Facts {
                payee: Some(format!("{} by {}", title(kind), waiting.set_by)),
                reference: Some(waiting.id.clone()),
                ..Facts::default()
            },
            // The portal may relay it, and so may any program that names no page.
            origin: Some(self.challenge_key.origin().clone()),
            maker: Some(waiting.set_by),
            creator: Creator::Service(Effect::SetSecret, waiting.id),
        };
        Ok(self.operations.begin_once(new, request).await?)
    }

    /// Takes back a secret that waits; any administrator may.
    pub async fn withdraw(
        &self,
        by: &Operator,
        kind: SecretKind,
        request: &RequestId,
    ) -> Result<(), SecretError> {
        administrator(by)?;
        let waiting = &self.find_waiting(&by.account, kind).await?;
        let now = self.clock.now();
        self.store
            .transaction("withdraw secret", move |tx| {
                Box::pin(async move {
                    secrets::take_turn(tx, &waiting.account).await?;
                    let there = secrets::waiting(tx, &waiting.id, now).await?.is_some();
                    if !there || !secrets::destroy(tx, &waiting.id, now).await? {
                        return Err(SecretError::NothingWaits { kind });
                    }
                    let body = json!({ "kind": kind, "id": waiting.id, "by": by.id });
                    self.tell(tx, &waiting.account, "secret-withdrawn", request, body)
                        .await
                })
            })
            .await?;
        if let Some(operation) = self.open_operation(waiting).await? {
            self.operations
                .cancel(&operation.id, Canceller::Person(by), request)
                .await?;
        }
        Ok(())
    }

    /// Destroys secrets whose time is over; gives their number. Readers pass over such secrets in
    /// any case.
    pub async fn destroy_ended(&self) -> Result<u64, SecretError> {
        let now = self.clock.now();
        let request = &RequestId::random();
        self.store
            .transaction("destroy secrets", move |tx| {
                Box::pin(async move {
                    let mut destroyed = 0;
                    for secret in secrets::ended(tx, now).await? {
                        if secrets::destroy(tx, &secret.id, now).await? {
                            destroyed += 1;
                            note_destroyed(tx, &self.records, &secret, request).await?;
                        }
                    }
                    Ok::<_, SecretError>(destroyed)
                })
            })
            .await
    }

    /// Destroys a secret of the same kind that waits, which a new one takes the place of.
    async fn drop_waiting(
        &self,
        tx: &mut Tx<'_>,
        new: &Secret,
        request: &RequestId,
        now: Timestamp,
    ) -> Result<(), SecretError> {
        let waiting = secrets::waiting_of(tx, &new.account, new.kind).await?;
        if let Some(waiting) = waiting {
            secrets::destroy(tx, &waiting.id, now).await?;
            note_destroyed(tx, &self.records, &waiting, request).await?;
        }
        Ok(())
    }

    async fn find_waiting(
        &self,
        account: &AccountId,
        kind: SecretKind,
    ) -> Result<Secret, SecretError> {
        let now = self.clock.now();
        self.store
            .read("find secret", move |tx| {
                Box::pin(secrets::waiting_of(tx, account, kind))
            })
            .await
            .map_err(|error: StoreError| error)?
            .filter(|found| found.ends_at.is_some_and(|end| end > now))
            .ok_or(SecretError::NothingWaits { kind })
    }

    /// The open operation that approves a secret, if there is one.
    async fn open_operation(&self, waiting: &Secret) -> Result<Option<Operation>, SecretError> {
        let now = self.clock.now();
        self.store
            .read("find operation", move |tx| {
                Box::pin(operation_rows::open_effect(
                    tx,
                    Effect::SetSecret,
                    &waiting.id,
                    now,
                ))
            })
            .await
            .map_err(|error: StoreError| error.into())
    }

    async fn tell(
        &self,
        tx: &mut Tx<'_>,
        account: &AccountId,
        kind: &'static str,
        request: &RequestId,
        body: serde_json::Value,
    ) -> Result<(), SecretError> {
        let audience = &[Audience::Administrators];
        self.records
            .tell(tx, account, audience, kind, request, body)
            .await
    }
}

/// Makes a waiting secret the current one, with its record, notices and texts: its version, and
/// the texts to be sent once the transaction is committed. `None` where it does not wait.
pub(super) async fn take_effect(
    tx: &mut Tx<'_>,
    records: &Records,
    texts: &Texts,
    secret: &Secret,
    operation: Option<&OperationId>,
    now: Timestamp,
    request: &RequestId,
) -> Result<Option<(u64, Vec<Outgoing>)>, TakeEffectError> {
    let account = &secret.account;
    // There are never more than two: what is older than the one replaced goes now.
    for older in secrets::alive(tx, account, now).await? {
        let replaced = older.version.is_some() && older.ends_at.is_some();
        if older.kind == secret.kind && replaced && secrets::destroy(tx, &older.id, now).await? {
            note_destroyed(tx, records, &older, request).await?;
        }
    }
    let version = secrets::last_version(tx, account, secret.kind).await? + 1;
    let until = now + SignedDuration::from_secs(secret.overlap_seconds);
    if !secrets::activate(tx, secret, version, until, now).await? {
        return Ok(None);
    }
    let body = json!({
        "kind": secret.kind,
        "version": version,
        "id": secret.id,
        "operator": secret.set_by,
        "operation": operation,
        "overlap_until": until.to_string(),
    });
    records
        .tell::<TakeEffectError>(
            tx,
            account,
            &[Audience::Administrators],
            "secret-set",
            request,
            body,
        )
        .await?;
    let news = News::SecretSet { kind: secret.kind };
    let outgoing = sms::to_administrators(tx, texts, account, &news, now).await?;
    Ok(Some((version, outgoing)))
}

/// Why a secret did not take effect.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeEffectError {
    /// The audit record could not be written.
    #[error("the audit record could not be written")]
    Audit(#[from] AuditError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<TakeEffectError> for SecretError {
    fn from(error: TakeEffectError) -> Self {
        match error {
            TakeEffectError::Audit(error) => error.into(),
            TakeEffectError::Store(error) => error.into(),
        }
    }
}

async fn note_destroyed(
    tx: &mut Tx<'_>,
    records: &Records,
    secret: &Secret,
    request: &RequestId,
) -> Result<(), TakeEffectError> {
    let body = json!({ "kind": secret.kind, "version": secret.version, "id": secret.id });
    records
        .note(tx, &secret.account, "secret-destroyed", request, body)
        .await
}

/// The name of a kind in statements.
fn title(kind: SecretKind) -> &'static str {
    match kind {
        SecretKind::Api => "API secret",
        SecretKind::ApiV3 => "APIv3 secret",
    }
}

fn super_administrator(by: &Operator) -> Result<(), SecretError> {
    if by.role == Role::SuperAdministrator {
        Ok(())
    } else {
        Err(SecretError::NotSuperAdministrator)
    }
}

fn administrator(by: &Operator) -> Result<(), SecretError> {
    if by.role.manages() {
        Ok(())
    } else {
        Err(SecretError::NotAdministrator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_32_digits_and_letters() {
        let new = |secret: &str, overlap_seconds| NewSecret {
            kind: SecretKind::Api,
            secret: SecretText::new(secret.into()),
            overlap_seconds,
        };
        let good = "a7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb";
        assert!(new(good, 0).check().is_ok());
        assert!(new(good, LONGEST_OVERLAP).check().is_ok());
        for bad in [
            "",
            &good[1..],
            "a7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb\n",
            "a7cde1ZJB1kG2e7VfTs3jQzaWizur8G!",
            "a7cde1ZJB1kG2e7VfTs3jQzaWizur8G ",
            "密密密密密密密密密密aa",
        ] {
            assert!(matches!(new(bad, 0).check(), Err(SecretError::Form)));
        }
        for overlap in [-1, LONGEST_OVERLAP + 1] {
            assert!(matches!(
                new(good, overlap).check(),
                Err(SecretError::Overlap)
            ));
        }
    }
}
