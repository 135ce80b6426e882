//! Sensitive operations: list, create, look at, approve with the daemon, cancel.

use axum::extract::{Query, State as Shared};
use axum::http::header::SET_COOKIE;
use axum::response::Response;
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use crate::account::operations::{Canceller, NewOperation, OperationError};
use crate::account::portal::daemon;
use crate::account::portal::i18n::Texts;
use crate::account::portal::layout::Here;
use crate::account::portal::parts::{self, Field, Tone, badge, time};
use crate::account::portal::problems::Fault;
use crate::account::portal::web::{
    Answer, Flash, Halt, Scripted, SignedIn, Submitted, flash_cookie, redirect_with,
};
use crate::account::service::Service;
use crate::account::store::operations::{Approval, Creator, Operation, Search, State};
use crate::api::extract::Path;
use crate::api::problem::{Code, Problem};
use crate::base::ids::OperationId;
use crate::statement::kinds::Presence;
use crate::statement::money::Money;
use crate::statement::{Facts, Kind};

/// Operations on one page of the list.
const PAGE: usize = 50;

/// What the list shows.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Wanted {
    state: String,
    after: Option<OperationId>,
}

/// The list.
pub async fn list(
    Shared(service): Shared<Service>,
    person: SignedIn,
    Query(wanted): Query<Wanted>,
) -> Answer {
    let t = person.t;
    let chosen: Option<State> = wanted.state.parse().ok();
    let search = Search {
        account: Some(person.account().clone()),
        state: chosen,
        after: wanted.after,
        ..Search::default()
    };
    let limit = i64::try_from(PAGE + 1).unwrap_or(i64::MAX);
    let mut found = service.operations().list(&search, limit).await?;
    let more = found.len() > PAGE;
    found.truncate(PAGE);
    let next = found.last().filter(|_| more).map(|last| {
        parts::query(
            "/operations",
            &[("state", &wanted.state), ("after", last.id.as_str())],
        )
    });
    let create = service.portal().platform_key.is_some();
    let actions = html! {
        @if create { (parts::button_link("/operations/new", t.new_operation())) }
    };
    let content = html! {
        (parts::heading(t.operations(), t.operations_lead(), &actions))
        (tabs(t, chosen))
        @if found.is_empty() {
            (parts::empty(t.no_operations()))
        } @else {
            (table(t, &found))
        }
        (parts::older(t, next.as_deref()))
        @if !create { p.muted.small { (t.created_elsewhere()) } }
    };
    Ok(person.page(t.operations(), Here::Operations, &content))
}

/// The path of an operation's page.
pub fn path(id: &OperationId) -> String {
    format!("/operations/{id}")
}

/// One operation.
pub async fn show(
    Shared(service): Shared<Service>,
    person: SignedIn,
    Path(id): Path<OperationId>,
) -> Answer {
    let t = person.t;
    let (operation, approvals) = find(&service, &person, &id).await?;
    let ours = service.challenge_key().origin();
    let me = &person.operator;
    let may_approve = service
        .operations()
        .may_approve(&operation, &approvals, &me.id)
        .await?;
    let may_cancel = Canceller::Person(me).check(&operation).is_ok();
    let content = html! {
        (parts::heading(
            operation.statement.kind().title(t.0),
            "",
            &html! { a.button.plain href="/operations" { (t.back()) } },
        ))
        (facts(t, &operation, &approvals))
        @if operation.state == State::Created {
            @if !may_approve {
                div.note { p { (t.not_yours_to_approve()) } }
            } @else if operation.origin.as_ref() == Some(ours) {
                (approver(t, &operation))
            } @else {
                div.note { p { (parts::marked(t.not_relayed())) } }
            }
            @if may_cancel {
                form method="post" action={ (path(&operation.id)) "/cancel" } {
                    (person.token())
                    button.button.danger type="submit" { (t.cancel_operation()) }
                }
            }
        }
    };
    let title = operation.statement.kind().title(t.0);
    Ok(person.page(title, Here::Operations, &content))
}

async fn find(
    service: &Service,
    person: &SignedIn,
    id: &OperationId,
) -> Result<(Operation, Vec<Approval>), Halt> {
    let (operation, approvals) = service.operations().find(id).await?;
    // Those of other accounts are as unknown as those that never were.
    if operation.statement.account() != person.account() {
        return Err(Problem::new(Code::NotFound, "there is no such operation").into());
    }
    Ok((operation, approvals))
}

/// The form of a new operation.
pub async fn draft(Shared(service): Shared<Service>, person: SignedIn) -> Answer {
    platform_key(&service)?;
    form(&service, &person, &Draft::default(), None).await
}

async fn form(
    service: &Service,
    person: &SignedIn,
    draft: &Draft,
    fault: Option<&Fault>,
) -> Answer {
    let t = person.t;
    let others: Vec<String> = super::operators::of(service, person.account())
        .await?
        .into_iter()
        .filter(|operator| operator.id != person.operator.id)
        .map(|operator| operator.id.to_string())
        .collect();
    let content = html! {
        (parts::heading(t.new_operation(), t.create_lead(), &html! {}))
        (draft_form(t, &person.token(), draft, &others, fault))
    };
    Ok(person.answer(t.new_operation(), Here::Operations, fault, &content))
}

/// The platform on whose behalf operations are created here.
fn platform_key(service: &Service) -> Result<String, Problem> {
    service
        .portal()
        .platform_key
        .clone()
        .ok_or_else(|| Problem::new(Code::NotFound, "operations are not created here"))
}

/// Creates an operation. Whoever creates it does not approve it.
pub async fn create(
    Shared(service): Shared<Service>,
    person: SignedIn,
    Submitted(draft): Submitted<Draft>,
) -> Answer {
    let platform = platform_key(&service)?;
    let new = draft.read().map(|(kind, operator, facts)| NewOperation {
        kind,
        account: person.account().clone(),
        operator,
        facts,
        origin: Some(service.challenge_key().origin().clone()),
        maker: Some(person.operator.id.clone()),
        creator: Creator::Platform(platform),
    });
    let created = match new {
        Ok(new) => service
            .operations()
            .begin(new, &person.request)
            .await
            .map_err(refused),
        Err(fault) => Err(fault),
    };
    match created {
        Ok((operation, _)) => Ok(redirect_with(&path(&operation.id), Flash::OperationCreated)),
        Err(fault) => form(&service, &person, &draft, Some(&fault)).await,
    }
}

/// Why the service takes no such operation, and the field it says so of.
fn refused(error: OperationError) -> Fault {
    let field = match &error {
        OperationError::Statement(wrong) => wrong.field.clone(),
        OperationError::OperatorUnknown { .. } => "operator".to_owned(),
        _ => return Problem::from(error).into(),
    };
    Fault::in_fields(error.into(), &[&field])
}

impl Draft {
    fn read(&self) -> Result<(Kind, crate::base::ids::OperatorId, Facts), Fault> {
        let wrong = |field: &str, text: String| {
            Fault::in_fields(Problem::new(Code::Malformed, text), &[field])
        };
        let kind = kinds()
            .find(|kind| kind.name() == self.kind)
            .ok_or_else(|| wrong("kind", "kind: not one of the list".into()))?;
        let operator = self
            .operator
            .parse()
            .map_err(|error| wrong("operator", format!("approver: {error}")))?;
        let currency = self.currency.trim().to_ascii_uppercase();
        let money = Money::from_decimal(self.amount.trim(), &currency)
            .map_err(|error| wrong(&error.field, error.to_string()))?;
        let given = |text: &str| {
            let text = text.trim();
            (!text.is_empty()).then(|| text.to_owned())
        };
        let count = given(&self.count)
            .map(|count| count.parse::<i64>())
            .transpose()
            .map_err(|_| wrong("count", "count: not a whole number".into()))?;
        let facts = Facts {
            amount: Some((money.minor_units(), currency)),
            payee: given(&self.payee),
            payees: None,
            count,
            reference: given(&self.reference),
            memo: given(&self.memo),
        };
        Ok((kind, operator, facts))
    }
}

/// An empty form.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

/// Takes an operation back.
pub async fn cancel(
    Shared(service): Shared<Service>,
    person: SignedIn,
    Path(id): Path<OperationId>,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    service
        .operations()
        .cancel(&id, Canceller::Person(&person.operator), &person.request)
        .await?;
    service.outbox_changed();
    Ok(redirect_with(&path(&id), Flash::OperationCancelled))
}

/// A challenge for the daemon.
#[derive(Debug, Serialize)]
struct ChallengeMade {
    challenge: String,
}

/// Makes a challenge for whoever is logged in.
pub async fn challenge(
    Shared(service): Shared<Service>,
    person: SignedIn,
    Path(id): Path<OperationId>,
    Scripted(Nothing {}): Scripted<Nothing>,
) -> Response {
    let made = async {
        find(&service, &person, &id).await.map_err(Halt::problem)?;
        let challenge = service
            .operations()
            .challenge(&id, &person.operator.id, &person.request)
            .await?;
        Ok(ChallengeMade {
            challenge: challenge.challenge,
        })
    };
    person.to_script(made.await)
}

/// An approval of the daemon.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approved {
    approval: String,
}

/// Where an operation stands after its approval.
#[derive(Debug, Serialize)]
struct Standing {
    state: State,
}

/// Takes an approval.
pub async fn approve(
    Shared(service): Shared<Service>,
    person: SignedIn,
    Path(id): Path<OperationId>,
    Scripted(approved): Scripted<Approved>,
) -> Response {
    let taken = async {
        find(&service, &person, &id).await.map_err(Halt::problem)?;
        let operation = service
            .operations()
            .approve(&id, &approved.approval, &person.request)
            .await?;
        Ok(Standing {
            state: operation.state,
        })
    };
    let taken = taken.await;
    let flash = taken.as_ref().ok().map(|standing| match standing.state {
        State::Created => Flash::ApprovalTaken,
        _ => Flash::OperationApproved,
    });
    let mut response = person.to_script(taken);
    if let Some(flash) = flash {
        response
            .headers_mut()
            .append(SET_COOKIE, flash_cookie(flash));
    }
    response
}

/// The state of an operation, as a badge.
pub fn state(t: Texts, state: State) -> Markup {
    match state {
        State::Created => badge(Tone::Warn, t.waiting()),
        State::Approved => badge(Tone::Good, t.approved()),
        State::Cancelled => badge(Tone::Plain, t.cancelled()),
        State::Expired => badge(Tone::Plain, t.operation_expired()),
    }
}

/// The states a list can be narrowed to.
fn tabs(t: Texts, chosen: Option<State>) -> Markup {
    let tab = |state: Option<State>, text: &str| {
        let path = match state {
            Some(state) => format!("/operations?state={state}"),
            None => "/operations".to_owned(),
        };
        html! {
            li { a href=(path) aria-current=[(state == chosen).then_some("page")] { (text) } }
        }
    };
    html! {
        nav aria-label=(t.state()) {
            ul.tabs {
                (tab(None, t.all()))
                (tab(Some(State::Created), t.waiting()))
                (tab(Some(State::Approved), t.approved()))
                (tab(Some(State::Cancelled), t.cancelled()))
                (tab(Some(State::Expired), t.operation_expired()))
            }
        }
    }
}

/// A table of operations.
fn table(t: Texts, operations: &[Operation]) -> Markup {
    let rows: Vec<Vec<Markup>> = operations
        .iter()
        .map(|operation| {
            let statement = &operation.statement;
            vec![
                html! {
                    a href={ "/operations/" (operation.id) } { (statement.kind().title(t.0)) }
                    @if let Some(reference) = statement.reference() {
                        span.sub { (reference.as_str()) }
                    }
                },
                html! {
                    @if let Some(amount) = statement.amount() { (amount.to_string()) } @else { "–" }
                },
                html! {
                    @if let Some(payee) = statement.payee() { (payee.as_str()) } @else { "–" }
                },
                html! { (statement.operator()) },
                state(t, operation.state),
                time(operation.created_at),
            ]
        })
        .collect();
    let columns = [
        t.kind(),
        t.amount(),
        t.payee(),
        t.approver(),
        t.state(),
        t.created(),
    ];
    parts::table(t.history(), &columns, &rows)
}

/// What an operation says, and where it stands.
fn facts(t: Texts, operation: &Operation, approvals: &[Approval]) -> Markup {
    let statement: Vec<(&str, Markup)> = operation
        .statement
        .lines(t.0)
        .into_iter()
        .map(|(label, value)| (label, html! { strong { (value) } }))
        .collect();
    let mut lines = vec![
        (t.state(), state(t, operation.state)),
        (
            t.approvals(),
            html! { (t.approvals_of(approvals.len(), operation.needed)) },
        ),
        (t.created(), time(operation.created_at)),
        (t.expires(), time(operation.expires_at)),
        (t.operation_id(), html! { code { (operation.id) } }),
    ];
    if let Some(maker) = &operation.maker {
        lines.insert(3, (t.created_by(), html! { (maker) }));
    }
    html! {
        section.card aria-labelledby="statement" {
            h2 #statement { (t.statement()) }
            (parts::facts(&statement))
        }
        section.card aria-label=(t.state()) { (parts::facts(&lines)) }
        @if !approvals.is_empty() {
            h2 { (t.approvals()) }
            (parts::table(
                t.approvals(),
                &[t.operator(), t.certificate(), t.accepted_at()],
                &approvals
                    .iter()
                    .map(|approval| vec![
                        html! { (approval.operator) },
                        super::certificates::serial_link(&approval.certificate),
                        time(approval.accepted_at),
                    ])
                    .collect::<Vec<_>>(),
            ))
        }
    }
}

/// The button that has the daemon sign, and what came of it.
fn approver(t: Texts, operation: &Operation) -> Markup {
    html! {
        section.card data-approver data-operation=(operation.id) {
            h2 { (t.approve()) }
            p { (t.approve_lead()) }
            div #approve-reason role="status" { (daemon::states(t)) }
            div.buttons {
                button.button type="button" disabled aria-describedby="approve-reason" data-approve {
                    (t.approve())
                }
                button.button.plain type="button" data-look-again { (t.look_again()) }
            }
            p.note hidden data-approving role="status" { (t.approving()) }
            div role="alert" { (daemon::failures(t)) }
        }
    }
}

/// What stands in the form of a new operation.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Draft {
    /// The kind's stable name.
    pub kind: String,
    /// In units with decimals, as people write it.
    pub amount: String,
    /// ISO 4217.
    pub currency: String,
    /// Who gets it, or what it is about.
    pub payee: String,
    /// How many.
    pub count: String,
    /// The merchant's own number.
    pub reference: String,
    /// A remark.
    pub memo: String,
    /// Who is to approve.
    pub operator: String,
}

/// The kinds people create here; the others come about on pages of their own.
fn kinds() -> impl Iterator<Item = Kind> {
    Kind::all().filter(|kind| kind.amount() == Presence::Required)
}

/// The form of a new operation.
fn draft_form(
    t: Texts,
    token: &Markup,
    draft: &Draft,
    operators: &[String],
    fault: Option<&Fault>,
) -> Markup {
    let kinds: Vec<(&str, &str)> = kinds().map(|kind| (kind.name(), kind.title(t.0))).collect();
    let currency = if draft.currency.is_empty() {
        "CNY"
    } else {
        &draft.currency
    };
    let people: Vec<(&str, &str)> = operators
        .iter()
        .map(|name| (name.as_str(), name.as_str()))
        .collect();
    html! {
        div.card {
            p.muted.small { (t.required_note()) }
            form.stack method="post" action="/operations/new" {
                (token)
                (parts::select(t, "kind", t.kind(), true, &draft.kind, &kinds, fault))
                div.row {
                    (Field {
                        name: "amount",
                        label: t.amount(),
                        hint: Some(t.amount_hint()),
                        value: &draft.amount,
                        max: 24,
                        fault,
                        ..Field::default()
                    }.show(t))
                    (Field {
                        name: "currency",
                        label: t.currency(),
                        hint: Some("ISO 4217"),
                        value: currency,
                        max: 3,
                        fault,
                        ..Field::default()
                    }.show(t))
                }
                (Field {
                    name: "payee",
                    label: t.payee(),
                    value: &draft.payee,
                    max: 120,
                    fault,
                    ..Field::default()
                }.show(t))
                div.row {
                    (Field {
                        name: "reference",
                        label: t.reference(),
                        value: &draft.reference,
                        max: 120,
                        fault,
                        ..Field::default()
                    }.show(t))
                    (Field {
                        name: "count",
                        label: t.count(),
                        value: &draft.count,
                        required: false,
                        max: 9,
                        fault,
                        ..Field::default()
                    }.show(t))
                }
                (Field {
                    name: "memo",
                    label: t.memo(),
                    value: &draft.memo,
                    required: false,
                    max: 120,
                    fault,
                    ..Field::default()
                }.show(t))
                (parts::select(t, "operator", t.approver(), true, &draft.operator, &people, fault))
                div.buttons {
                    button.button type="submit" { (t.create_operation()) }
                    a.button.plain href="/operations" { (t.cancel()) }
                }
            }
        }
    }
}
