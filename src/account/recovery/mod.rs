//! Ways back in after a loss: of the mobile number, or of an administrator's only computer.
//!
//! A request is made by whoever knows the password. It is granted by one of two routes: a business
//! representative looks at the signed and stamped form and the photocopy that were sent in; or
//! as many administrators as the account wants approve it with their certificates, none of them
//! the one it is for. Either way it takes effect only after a delay, the old number and the
//! administrators are told at once, and until then the operator or any administrator can stop it.
//! So a thief needs more than a password and a forged paper: nobody may be looking, for days.
//!
//! What takes effect: a new number replaces the old one and ends the sessions; a recovery revokes
//! the certificates of the lost computers and lets the administrator install once within
//! [`RECOVERY_LASTS`] without waiting for another administrator.
//!
//! Papers are looked at before they are kept (size, what they really are, nothing in them that
//! acts by itself), and kept sealed in the database, so no file of a stranger's is ever where
//! something could run or serve it. They are kept for a bounded time: [`Requests::purge`].

pub mod forms;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::issuing::RevocationReason;
use super::operations::{NewOperation, OperationError, Operations};
use super::records::Records;
use super::revocation::{Revocation, SERVICE};
use super::seal::{Sealer, Unsealable};
use super::sessions::Person;
use super::sms::{self, News, Outgoing, Texts};
use super::store::accounts::{self, Operator};
use super::store::notices::Audience;
use super::store::operations::{Challenge, Creator, Effect, Operation};
use super::store::recovery::{self, Ask, Attachment, Decision, Request, RequestState};
use super::store::{Store, StoreError, Tx, certificates, codes, sessions};
use crate::audit::AuditError;
use crate::base::Clock;
use crate::base::encoding::{hex, sha256};
use crate::base::ids::{AccountId, Jti, OperatorId, RequestId};
use crate::base::secret::SecretBytes;
use crate::statement::Facts;

use forms::Form;

/// Largest paper, in bytes.
pub const PAPER_MAX: usize = 5 * 1024 * 1024;

/// How long after a recovery an installation needs no other administrator.
pub const RECOVERY_LASTS: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Most requests of one list.
const PAGE: i64 = 200;

/// Begins what seals a paper.
const PAPER_DOMAIN: &str = "attachment";

/// Why a request was not made, decided or shown.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There is no such request that this person may see.
    #[error("there is no such request")]
    Unknown,
    /// There is one already that is not over.
    #[error("a request of this kind is open already")]
    Open,
    /// It is past the state in which this could be done.
    #[error("the request is {}", state.as_str())]
    State {
        /// The state it is in.
        state: RequestState,
    },
    /// The number is the one that is registered.
    #[error("the new number is the registered one")]
    SameNumber,
    /// Papers are missing.
    #[error("the {missing} has not been sent in")]
    PaperMissing {
        /// Which.
        missing: &'static str,
    },
    /// The paper is too large, or not what papers may be.
    #[error("the paper is refused: {reason}")]
    Paper {
        /// Why.
        reason: &'static str,
    },
    /// This role or person does not do that.
    #[error("{reason}")]
    Forbidden {
        /// Why.
        reason: &'static str,
    },
    /// A paper could not be sealed or opened.
    #[error(transparent)]
    Seal(#[from] Unsealable),
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

/// Takes, decides and carries out requests.
#[derive(Clone)]
pub struct Requests {
    /// The store.
    pub store: Store,
    /// The clock.
    pub clock: Clock,
    /// The audit trail.
    pub records: Records,
    /// Asks administrators to approve.
    pub operations: Operations,
    /// Texts to people.
    pub texts: Texts,
    /// Seals papers.
    pub sealer: Arc<Sealer>,
    /// How long a grant waits before it takes effect.
    pub delay: Duration,
    /// How long papers are kept.
    pub papers_kept: Duration,
}

/// Papers that one sweep destroys at most.
const PURGED_AT_ONCE: i64 = 100;

impl Requests {
    /// Makes a request. The caller has checked the password again.
    pub async fn make(
        &self,
        by: &Operator,
        ask: Ask,
        request: &RequestId,
    ) -> Result<Request, RequestError> {
        match &ask {
            Ask::MobileChange(mobile) if *mobile == by.mobile => {
                return Err(RequestError::SameNumber);
            }
            Ask::ComputerRecovery if !by.role.manages() => {
                return Err(RequestError::Forbidden {
                    reason: "only administrators recover a computer; others ask an administrator",
                });
            }
            _ => (),
        }
        let row = &Request {
            id: Jti::random().to_string(),
            ask,
            account: by.account.clone(),
            operator: by.id.clone(),
            old_mobile: by.mobile.clone(),
            state: RequestState::Open,
            created_at: self.clock.now(),
            decision: None,
            effective_at: None,
            done_at: None,
        };
        self.store
            .transaction("make request", move |tx| {
                Box::pin(async move {
                    if recovery::is_open(tx, &row.account, &row.operator, row.ask.name()).await? {
                        return Err(RequestError::Open);
                    }
                    recovery::insert(tx, row).await?;
                    self.tell(tx, row, "request-made", json!({}), request).await
                })
            })
            .await?;
        Ok(row.clone())
    }

    /// A request of an account, with its papers.
    pub async fn find(
        &self,
        id: &str,
        account: Option<&AccountId>,
    ) -> Result<(Request, Vec<Attachment>), RequestError> {
        self.store
            .read("find request", move |tx| {
                Box::pin(async move {
                    let found = find(tx, id, account).await?;
                    let papers = recovery::attachments(tx, id).await?;
                    Ok((found, papers))
                })
            })
            .await
    }

    /// Requests, newest first: of one account, or in one state.
    pub async fn list(
        &self,
        account: Option<&AccountId>,
        state: Option<RequestState>,
    ) -> Result<Vec<Request>, StoreError> {
        self.store
            .read("list requests", move |tx| {
                Box::pin(recovery::list(tx, account, state, PAGE))
            })
            .await
    }

    /// The form to be printed, signed and stamped, for this person: a form names numbers in full,
    /// so who reads it is put on record.
    pub async fn form(
        &self,
        request: &Request,
        reader: &Person,
        id: &RequestId,
    ) -> Result<Form, RequestError> {
        let account = self
            .store
            .transaction("read form", move |tx| {
                Box::pin(async move {
                    let account = accounts::account(tx, &request.account).await?;
                    let body = json!({ "id": request.id, "by": reader.id() });
                    self.records
                        .note::<RequestError>(tx, &request.account, "form-read", id, body)
                        .await?;
                    Ok::<_, RequestError>(account)
                })
            })
            .await?;
        let name = account.map(|account| account.name).unwrap_or_default();
        let mut lines = vec![
            (("Request", "申请编号"), request.id.clone()),
            (("Account", "商户号"), request.account.to_string()),
            (("Company", "公司名称"), name),
            (("Operator", "操作员"), request.operator.to_string()),
            (
                ("Registered number", "原手机号"),
                request.old_mobile.masked(),
            ),
        ];
        let (title, declaration) = match &request.ask {
            Ask::MobileChange(mobile) => {
                lines.push((("New number", "新手机号"), mobile.as_str().to_owned()));
                (
                    ("Change of mobile number", "更换手机号申请"),
                    (
                        "The registered number is lost. Codes are to go to the new number.",
                        "原手机号已无法使用，申请将验证码发送至新手机号。",
                    ),
                )
            }
            Ask::ComputerRecovery => (
                ("Recovery after the loss of a computer", "电脑遗失恢复申请"),
                (
                    "The computers of the operator are lost. Their certificates are to be revoked.",
                    "该操作员的电脑已遗失，申请吊销其操作证书并重新安装。",
                ),
            ),
        };
        Ok(Form {
            title,
            lines,
            declaration,
        })
    }

    /// Keeps a paper of an open request, in place of one of its kind.
    pub async fn attach(
        &self,
        by: &Operator,
        id: &str,
        kind: &'static str,
        content: &[u8],
        request: &RequestId,
    ) -> Result<Attachment, RequestError> {
        if content.len() > PAPER_MAX {
            return Err(RequestError::Paper {
                reason: "it is larger than 5 MiB",
            });
        }
        let media_type = forms::media_type(content).ok_or(RequestError::Paper {
            reason: "it is no whole JPEG, PNG, PDF or DOCX, or holds something that acts by itself",
        })?;
        if kind == "photocopy" && media_type.ends_with("document") {
            return Err(RequestError::Paper {
                reason: "a photocopy is a picture or a PDF",
            });
        }
        let paper = &Attachment {
            id: Jti::random().to_string(),
            kind: kind.to_owned(),
            media_type: media_type.to_owned(),
            size: i64::try_from(content.len()).unwrap_or(i64::MAX),
            sha256: hex(&sha256(content)),
        };
        let sealed = &self.sealer.seal(PAPER_DOMAIN, &paper.id, content)?;
        let now = self.clock.now();
        self.store
            .transaction("keep paper", move |tx| {
                Box::pin(async move {
                    let found = own(tx, id, by).await?;
                    if found.state != RequestState::Open {
                        return Err(RequestError::State { state: found.state });
                    }
                    recovery::attach(tx, id, paper, sealed, now).await?;
                    let body = json!({
                        "id": id,
                        "paper": paper.kind,
                        "media_type": paper.media_type,
                        "size": paper.size,
                        "sha256": paper.sha256,
                    });
                    self.records
                        .note(tx, &found.account, "paper-sent-in", request, body)
                        .await
                })
            })
            .await?;
        Ok(paper.clone())
    }

    /// The content of a paper, for a business representative; who reads one is put on record.
    pub async fn paper(
        &self,
        representative: &OperatorId,
        id: &str,
        kind: &str,
        request: &RequestId,
    ) -> Result<(Attachment, SecretBytes), RequestError> {
        let (paper, sealed) = self
            .store
            .transaction("read paper", move |tx| {
                Box::pin(async move {
                    let found = find(tx, id, None).await?;
                    let paper = recovery::attachments(tx, id)
                        .await?
                        .into_iter()
                        .find(|paper| paper.kind == kind)
                        .ok_or(RequestError::Unknown)?;
                    let sealed = recovery::content(tx, &paper.id)
                        .await?
                        .ok_or(RequestError::Unknown)?;
                    let body = json!({
                        "id": id,
                        "paper": paper.kind,
                        "sha256": paper.sha256,
                        "by": representative,
                    });
                    self.records
                        .note::<RequestError>(tx, &found.account, "paper-read", request, body)
                        .await?;
                    Ok::<_, RequestError>((paper, sealed))
                })
            })
            .await?;
        let content = self.sealer.open(PAPER_DOMAIN, &paper.id, &sealed)?;
        Ok((paper, content))
    }

    /// Hands a request with its papers to the business representatives.
    pub async fn submit(
        &self,
        by: &Operator,
        id: &str,
        request: &RequestId,
    ) -> Result<Request, RequestError> {
        let now = self.clock.now();
        self.store
            .transaction("submit request", move |tx| {
                Box::pin(async move {
                    let found = own(tx, id, by).await?;
                    let papers = recovery::attachments(tx, id).await?;
                    for missing in ["photocopy", "document"] {
                        if !papers.iter().any(|paper| paper.kind == missing) {
                            return Err(RequestError::PaperMissing { missing });
                        }
                    }
                    let (from, to) = (&[RequestState::Open], RequestState::Submitted);
                    if !recovery::advance(tx, id, from, to, now).await? {
                        return Err(RequestError::State { state: found.state });
                    }
                    let body = json!({ "id": id, "kind": found.ask.name(), "operator": by.id });
                    let audiences = &[Audience::Representatives];
                    self.records
                        .tell::<RequestError>(
                            tx,
                            &found.account,
                            audiences,
                            "request-submitted",
                            request,
                            body,
                        )
                        .await?;
                    find(tx, id, None).await
                })
            })
            .await
    }

    /// A business representative decides. The caller has checked the password again.
    pub async fn decide(
        &self,
        representative: &OperatorId,
        id: &str,
        granted: bool,
        reason: &str,
        request: &RequestId,
    ) -> Result<Request, RequestError> {
        let now = self.clock.now();
        let by = &format!("representative {representative}");
        let (decided, texts) = self
            .store
            .transaction("decide request", move |tx| {
                Box::pin(async move {
                    let found = find(tx, id, None).await?;
                    if found.state != RequestState::Submitted {
                        return Err(RequestError::State { state: found.state });
                    }
                    let decision = Decision {
                        state: if granted {
                            RequestState::Granted
                        } else {
                            RequestState::Refused
                        },
                        by,
                        reason: Some(reason),
                        effective_at: granted.then(|| now + self.delay),
                    };
                    self.settle(tx, found, decision, request).await
                })
            })
            .await?;
        self.texts.send_all(texts).await;
        Ok(decided)
    }

    /// Asks an administrator to approve a request, as one of as many as the account wants; the
    /// operation is shared by all of them.
    pub async fn ask_administrators(
        &self,
        by: &Operator,
        id: &str,
        request: &RequestId,
    ) -> Result<(Operation, Challenge), RequestError> {
        if !by.role.manages() {
            return Err(RequestError::Forbidden {
                reason: "only administrators do this",
            });
        }
        let found = self.find(id, Some(&by.account)).await?.0;
        if !matches!(found.state, RequestState::Open | RequestState::Submitted) {
            return Err(RequestError::State { state: found.state });
        }
        let account = &by.account;
        let account = self
            .store
            .read("find account", move |tx| {
                Box::pin(accounts::account(tx, account))
            })
            .await
            .map_err(|error: StoreError| error)?;
        if account.is_none_or(|account| account.quorum == 0) {
            return Err(RequestError::Forbidden {
                reason: "the account leaves this to the business representative",
            });
        }
        let (kind, payee) = match &found.ask {
            Ask::MobileChange(mobile) => (
                "mobile-number-change",
                format!("{} for {}", mobile.as_str(), found.operator),
            ),
            Ask::ComputerRecovery => ("computer-recovery", found.operator.to_string()),
        };
        let new = NewOperation {
            kind: kind
                .parse()
                .map_err(|_| StoreError::Malformed { column: "kind" })?,
            account: by.account.clone(),
            operator: by.id.clone(),
            facts: Facts {
                payee: Some(payee),
                reference: Some(id.to_owned()),
                ..Facts::default()
            },
            origin: None,
            // Whom it is for does not approve it.
            maker: Some(found.operator),
            creator: Creator::Service(Effect::DecideRequest, id.to_owned()),
        };
        Ok(self.operations.begin_once(new, request).await?)
    }

    /// Takes a request back: the operator it is for, or any administrator of the account.
    pub async fn withdraw(
        &self,
        by: &Operator,
        id: &str,
        request: &RequestId,
    ) -> Result<Request, RequestError> {
        let now = self.clock.now();
        self.store
            .transaction("withdraw request", move |tx| {
                Box::pin(async move {
                    let found = find(tx, id, Some(&by.account)).await?;
                    if found.operator != by.id && !by.role.manages() {
                        return Err(RequestError::Unknown);
                    }
                    let from = &[
                        RequestState::Open,
                        RequestState::Submitted,
                        RequestState::Granted,
                    ];
                    if !recovery::advance(tx, id, from, RequestState::Withdrawn, now).await? {
                        return Err(RequestError::State { state: found.state });
                    }
                    let facts = json!({ "by": by.id });
                    self.tell(tx, &found, "request-withdrawn", facts, request)
                        .await?;
                    find(tx, id, None).await
                })
            })
            .await
    }

    /// Carries out what was granted and whose delay is over; gives the number.
    pub async fn carry_out(&self) -> Result<u64, RequestError> {
        let now = self.clock.now();
        let request = &RequestId::random();
        let due = self
            .store
            .read("find due requests", move |tx| {
                Box::pin(recovery::due(tx, now))
            })
            .await
            .map_err(|error: StoreError| error)?;
        let mut done = 0;
        for found in &due {
            done += self
                .store
                .transaction("carry out request", move |tx| {
                    Box::pin(self.do_it(tx, found, now, request))
                })
                .await?;
        }
        Ok(done)
    }

    /// Ends requests that nobody decided for as long as papers are kept, and destroys papers that
    /// old of requests that are over; gives the number of papers.
    pub async fn purge(&self) -> Result<u64, RequestError> {
        let now = self.clock.now();
        let before = now - self.papers_kept;
        let request = &RequestId::random();
        self.store
            .transaction("destroy papers", move |tx| {
                Box::pin(async move {
                    for lapsed in recovery::undecided(tx, before, PURGED_AT_ONCE).await? {
                        let from = &[RequestState::Open, RequestState::Submitted];
                        let to = RequestState::Withdrawn;
                        if recovery::advance(tx, &lapsed.id, from, to, now).await? {
                            self.tell(tx, &lapsed, "request-lapsed", json!({}), request)
                                .await?;
                        }
                    }
                    let mut purged = 0;
                    for (account, id, paper) in
                        recovery::papers_before(tx, before, PURGED_AT_ONCE).await?
                    {
                        recovery::destroy(tx, &paper.id).await?;
                        let body = json!({
                            "id": id,
                            "paper": paper.kind,
                            "sha256": paper.sha256,
                        });
                        self.records
                            .note::<RequestError>(tx, &account, "papers-purged", request, body)
                            .await?;
                        purged += 1;
                    }
                    Ok::<_, RequestError>(purged)
                })
            })
            .await
    }

    async fn do_it(
        &self,
        tx: &mut Tx<'_>,
        found: &Request,
        now: Timestamp,
        request: &RequestId,
    ) -> Result<u64, RequestError> {
        let from = &[RequestState::Granted];
        if !recovery::advance(tx, &found.id, from, RequestState::Done, now).await? {
            return Ok(0);
        }
        let (account, operator) = (&found.account, &found.operator);
        let mut facts = json!({});
        match &found.ask {
            Ask::MobileChange(mobile) => {
                let change = accounts::OperatorChange {
                    mobile: Some(mobile),
                    ..accounts::OperatorChange::default()
                };
                accounts::update_operator(tx, account, operator, change).await?;
                sessions::end_all(tx, account, operator, now).await?;
                // Codes went to the old number.
                codes::void(tx, account, operator, now).await?;
                facts["new_mobile"] = json!(mobile.masked());
            }
            Ask::ComputerRecovery => {
                let lost = certificates::active_of(tx, account, operator, None, now).await?;
                let revocation = Revocation::new(RevocationReason::KeyCompromise, SERVICE);
                let revoked = revocation
                    .apply::<RequestError>(tx, &self.records, &lost, now, request)
                    .await?;
                facts["revoked"] = json!(revoked);
            }
        }
        self.tell(tx, found, "request-done", facts, request).await?;
        Ok(1)
    }

    /// Keeps a decision and tells of it.
    async fn settle(
        &self,
        tx: &mut Tx<'_>,
        found: Request,
        decision: Decision<'_>,
        request: &RequestId,
    ) -> Result<(Request, Vec<Outgoing>), RequestError> {
        let texts = settle(
            tx,
            &self.records,
            &self.texts,
            &found,
            &decision,
            self.clock.now(),
            request,
        )
        .await?;
        Ok((find(tx, &found.id, None).await?, texts))
    }

    async fn tell(
        &self,
        tx: &mut Tx<'_>,
        found: &Request,
        kind: &'static str,
        mut facts: serde_json::Value,
        request: &RequestId,
    ) -> Result<(), RequestError> {
        facts["id"] = json!(found.id);
        facts["kind"] = json!(found.ask.name());
        facts["operator"] = json!(found.operator);
        let audiences = &[Audience::Administrators, Audience::Representatives];
        self.records
            .tell(tx, &found.account, audiences, kind, request, facts)
            .await
    }
}

/// Keeps a decision, with its record, its notices, and texts to the old number and to the
/// administrators.
pub(super) async fn settle(
    tx: &mut Tx<'_>,
    records: &Records,
    texts: &Texts,
    found: &Request,
    decision: &Decision<'_>,
    now: Timestamp,
    request: &RequestId,
) -> Result<Vec<Outgoing>, RequestError> {
    if !recovery::decide(tx, &found.id, decision, now).await? {
        return Err(RequestError::State { state: found.state });
    }
    let body = json!({
        "id": found.id,
        "kind": found.ask.name(),
        "operator": found.operator,
        "decision": decision.state.as_str(),
        "by": decision.by,
        "reason": decision.reason,
        "effective_at": decision.effective_at.map(|at| at.to_string()),
    });
    let audiences = &[Audience::Administrators, Audience::Representatives];
    records
        .tell::<RequestError>(
            tx,
            &found.account,
            audiences,
            "request-decided",
            request,
            body,
        )
        .await?;
    let Some(at) = decision.effective_at else {
        return Ok(Vec::new());
    };
    let news = News::Granted { at };
    let account = &found.account;
    let mut outgoing = sms::to_administrators(tx, texts, account, &news, now).await?;
    let language = accounts::operator(tx, account, &found.operator)
        .await?
        .map(|operator| operator.language)
        .unwrap_or_default();
    let text = sms::news_text(&news, account, language);
    let until = now + sms::NEWS_LIFETIME;
    outgoing.push(
        texts
            .prepare(tx, &found.old_mobile, "news", text, until)
            .await?,
    );
    Ok(outgoing)
}

/// Whether an operator may install without waiting for an administrator, as its computers were
/// lost and nothing was installed since.
pub(super) async fn recovering(
    tx: &mut Tx<'_>,
    account: &AccountId,
    operator: &OperatorId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let Some(at) = recovery::recovered_at(tx, account, operator).await? else {
        return Ok(false);
    };
    let held = certificates::active_of(tx, account, operator, None, now).await?;
    Ok(at + RECOVERY_LASTS > now && held.is_empty())
}

/// A request; of this account only, where one is given.
async fn find(
    tx: &mut Tx<'_>,
    id: &str,
    account: Option<&AccountId>,
) -> Result<Request, RequestError> {
    recovery::find(tx, id)
        .await?
        .filter(|found| account.is_none_or(|account| found.account == *account))
        .ok_or(RequestError::Unknown)
}

/// A request of the operator's own.
async fn own(tx: &mut Tx<'_>, id: &str, by: &Operator) -> Result<Request, RequestError> {
    let found = find(tx, id, Some(&by.account)).await?;
    if found.operator == by.id {
        Ok(found)
    } else {
        Err(RequestError::Unknown)
    }
}
