//! What administrators see of others: operators, computers, installations that wait.

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use super::home::role;
use crate::account::portal::i18n::Texts;
use crate::account::portal::layout::Here;
use crate::account::portal::parts::{self, Tone, badge, time, time_or_never};
use crate::account::portal::web::{Answer, SignedIn, Submitted, redirect};
use crate::account::service::Service;
use crate::account::store::StoreError;
use crate::account::store::accounts::{self, Operator};
use crate::account::store::certificates::Computer;
use crate::account::store::codes::Ticket;
use crate::api::extract::Path;
use crate::base::ids::{AccountId, Jti};

/// The operators of an account whose log-ins are open.
pub async fn of(service: &Service, account: &AccountId) -> Result<Vec<Operator>, StoreError> {
    service
        .store()
        .read("list operators", move |tx| {
            Box::pin(accounts::operators(tx, account))
        })
        .await
}

/// Operators and computers.
pub async fn list(State(service): State<Service>, person: SignedIn) -> Answer {
    person.manages()?;
    let t = person.t;
    let operators = of(&service, person.account()).await?;
    let computers = service.manage().computers(person.account()).await?;
    let content = html! {
        (parts::heading(t.operators(), t.operators_lead(), &html! {}))
        (people(t, &operators, person.operator.id.as_str()))
        p.muted.small { (parts::marked(t.operators_note())) }
        section.stack aria-labelledby="computers" {
            h2 #computers { (t.computers()) }
            @if computers.is_empty() {
                (parts::empty(t.nothing_here()))
            } @else {
                (machines(t, &computers))
            }
        }
    };
    Ok(person.page(t.operators(), Here::Operators, &content))
}

fn people(t: Texts, operators: &[Operator], me: &str) -> Markup {
    let rows: Vec<Vec<Markup>> = operators
        .iter()
        .map(|operator| {
            vec![
                html! {
                    (operator.id)
                    @if operator.id.as_str() == me { span.sub { (t.you()) } }
                },
                html! { (role(t, operator.role)) },
                html! { span.mono { (operator.mobile.masked()) } },
                html! {
                    a href=(parts::query("/certificates", &[("q", operator.id.as_str())])) {
                        (t.installed_certificates())
                    }
                },
            ]
        })
        .collect();
    let columns = [
        t.operator(),
        t.role(),
        t.registered_number(),
        t.certificate(),
    ];
    parts::table(t.operators(), &columns, &rows)
}

fn machines(t: Texts, computers: &[Computer]) -> Markup {
    let rows: Vec<Vec<Markup>> = computers
        .iter()
        .map(|computer| {
            vec![
                html! {
                    a href=(parts::query("/certificates", &[("q", computer.id.as_str())])) {
                        (computer.name)
                    }
                    span.sub.mono { (computer.id) }
                },
                html! {
                    @if computer.active > 0 {
                        (badge(Tone::Good, &t.certificates_installed(computer.active)))
                    } @else {
                        (badge(Tone::Plain, t.none()))
                    }
                },
                time(computer.created_at),
                time_or_never(t, computer.last_used_at),
            ]
        })
        .collect();
    let columns = [t.computer(), t.certificate(), t.since(), t.last_used()];
    parts::table(t.computers(), &columns, &rows)
}

/// Installations that wait for an administrator's signature.
pub async fn installations(State(service): State<Service>, person: SignedIn) -> Answer {
    person.manages()?;
    let t = person.t;
    let held = service
        .manage()
        .held_installations(person.account())
        .await?;
    let content = html! {
        (parts::heading(t.installations(), t.installations_lead(), &html! {}))
        @if held.is_empty() {
            (parts::empty(t.no_installations()))
        } @else {
            (waiting(t, &held, &person.token()))
        }
    };
    Ok(person.page(t.installations(), Here::Installations, &content))
}

fn waiting(t: Texts, held: &[Ticket], token: &Markup) -> Markup {
    let rows: Vec<Vec<Markup>> = held
        .iter()
        .map(|ticket| {
            vec![
                html! { (ticket.binding.operator) },
                html! {
                    (ticket.binding.computer_name)
                    span.sub.mono { (ticket.binding.computer) }
                },
                html! {
                    @if let Some(serial) = &ticket.binding.token_serial { (serial) } @else { "–" }
                },
                time(ticket.created_at),
                time(ticket.expires_at),
                html! {
                    form method="post" action={ "/installations/" (ticket.jti) } {
                        (token)
                        button.button type="submit" { (t.approve_installation()) }
                    }
                },
            ]
        })
        .collect();
    let columns = [
        t.operator(),
        t.computer(),
        t.token_serial(),
        t.requested_at(),
        t.expires(),
        t.action(),
    ];
    parts::table(t.installations(), &columns, &rows)
}

/// An empty form.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

/// Goes to the approval of an installation.
pub async fn release(
    State(service): State<Service>,
    person: SignedIn,
    Path(ticket): Path<Jti>,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    person.manages()?;
    let (operation, _) = service
        .manage()
        .release_installation(&person.operator, &ticket, &person.request)
        .await?;
    let answer: Response = redirect(&super::operations::path(&operation.id));
    Ok(answer)
}
