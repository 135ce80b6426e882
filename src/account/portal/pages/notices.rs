//! Notices to administrators and representatives, and the audit trail of an account.

use axum::extract::{Query, State};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::account::manage::ManageError;
use crate::account::portal::i18n::Texts;
use crate::account::portal::layout::Here;
use crate::account::portal::parts::{self, Tone, badge, time};
use crate::account::portal::web::{Answer, Flash, LoggedIn, SignedIn, Submitted, redirect_with};
use crate::account::service::Service;
use crate::account::sessions::Person;
use crate::account::store::events::Event;
use crate::account::store::notices::Notice;

/// Records on one page of the trail.
const PAGE: i64 = 50;

/// How many notices this person has not read; none where there are none for him.
pub async fn unread(service: &Service, person: &Person) -> Result<usize, ManageError> {
    match service.manage().notices(person).await {
        Ok(notices) => Ok(notices.iter().filter(|notice| !notice.read).count()),
        Err(ManageError::NotAdministrator) => Ok(0),
        Err(error) => Err(error),
    }
}

/// The notices.
pub async fn list(State(service): State<Service>, visitor: LoggedIn) -> Answer {
    let t = visitor.t;
    let notices = service.manage().notices(&visitor.person).await?;
    let unread = notices.iter().any(|notice| !notice.read);
    let actions = html! {
        @if unread {
            form method="post" action="/notices" {
                (visitor.token())
                button.button.plain type="submit" { (t.mark_read()) }
            }
        }
    };
    let content = html! {
        (parts::heading(t.notices(), t.notices_lead(), &actions))
        @if notices.is_empty() {
            (parts::empty(t.no_notices()))
        } @else {
            (table(t, &notices))
        }
    };
    Ok(visitor.page(t.notices(), Here::Notices, &content))
}

/// An empty form.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

/// Marks all notices as read.
pub async fn read(
    State(service): State<Service>,
    LoggedIn { person, .. }: LoggedIn,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    for notice in service
        .manage()
        .notices(&person)
        .await?
        .iter()
        .filter(|notice| !notice.read)
    {
        service.manage().read_notice(&notice.id, &person).await?;
    }
    Ok(redirect_with("/notices", Flash::NoticesRead))
}

/// Where the trail begins.
#[derive(Debug, Default, Deserialize)]
pub struct From {
    after: Option<String>,
}

/// The audit trail, for administrators.
pub async fn audit(
    State(service): State<Service>,
    person: SignedIn,
    Query(from): Query<From>,
) -> Answer {
    person.manages()?;
    let t = person.t;
    let page = service
        .manage()
        .events(person.account(), from.after.as_deref(), PAGE)
        .await?;
    let next = page
        .next
        .map(|after| parts::query("/trail", &[("after", &after)]));
    let content = html! {
        (parts::heading(t.audit_trail(), t.trail_lead(), &html! {}))
        @if page.entries.is_empty() {
            (parts::empty(t.no_events()))
        } @else {
            (trail(t, &page.entries))
        }
        (parts::older(t, next.as_deref()))
    };
    Ok(person.page(t.audit_trail(), Here::Trail, &content))
}

/// The facts of a record in one line: `name value · name value`, without what stands beside it.
fn summary(t: Texts, body: &Value) -> Markup {
    let shown: Vec<(&String, String)> = body
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.as_str() != "account")
        .filter_map(|(name, value)| {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Bool(value) => value.to_string(),
                _ => return None,
            };
            let text = match name.as_str() {
                "reason" => t.revocation_reason(&text).to_owned(),
                _ => text,
            };
            Some((name, text))
        })
        .collect();
    html! {
        @for (index, (name, text)) in shown.iter().enumerate() {
            @if index > 0 { " · " }
            span.muted { (t.fact(name)) } " " (text)
        }
    }
}

/// A table of notices.
fn table(t: Texts, notices: &[Notice]) -> Markup {
    let rows: Vec<Vec<Markup>> = notices
        .iter()
        .map(|notice| {
            vec![
                time(notice.created_at),
                html! {
                    strong { (t.event_title(&notice.kind)) }
                    @if !notice.read { " " (badge(Tone::Warn, t.unread())) }
                },
                html! { (notice.account) },
                html! { span.small { (summary(t, &notice.body)) } },
            ]
        })
        .collect();
    parts::table(
        t.notices(),
        &[t.time(), t.event(), t.account(), t.details()],
        &rows,
    )
}

/// A table of events.
fn trail(t: Texts, records: &[Event]) -> Markup {
    let rows: Vec<Vec<Markup>> = records
        .iter()
        .map(|event| {
            vec![
                time(event.at),
                html! {
                    strong { (t.event_title(&event.kind)) }
                    span.sub.mono.kind { (event.kind) }
                },
                html! { span.small { (summary(t, &event.body)) } },
                html! { span.mono.small.request { (event.request) } },
            ]
        })
        .collect();
    parts::table(
        t.audit_trail(),
        &[t.time(), t.event(), t.details(), t.request_id()],
        &rows,
    )
}
