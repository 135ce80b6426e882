//! The home page: who is here, what waits, what can be done.

use axum::extract::State;
use axum::response::IntoResponse;
use maud::{Markup, html};

use crate::account::portal::i18n::Texts;
use crate::account::portal::layout::Here;
use crate::account::portal::parts::{self, Tone, badge};
use crate::account::portal::web::{Answer, Anybody, SignedIn, redirect};
use crate::account::service::Service;
use crate::account::sessions::Person;
use crate::account::store::accounts::Role;
use crate::account::store::certificates::Search as Certificates;
use crate::account::store::operations::{Search as Operations, State as Standing};

/// The home page: of operators here, of representatives the requests.
pub async fn show(
    State(service): State<Service>,
    axum::Extension(visitor): Anybody,
    person: Result<SignedIn, crate::account::portal::web::Halt>,
) -> Answer {
    let session = visitor.session.as_ref().map(|session| &session.person);
    if let Some(Person::Representative(_)) = session {
        return Ok(redirect("/requests"));
    }
    let person = match person {
        Ok(person) => person,
        Err(halt) => return Ok(halt.into_response()),
    };
    let own = Certificates {
        operator: Some(person.operator.id.clone()),
        active: true,
        ..Certificates::default()
    };
    let waiting = Operations {
        account: Some(person.account().clone()),
        state: Some(Standing::Created),
        ..Operations::default()
    };
    let certificates = service
        .manage()
        .certificates(person.account(), &own, 100)
        .await?;
    let operations = service.operations().list(&waiting, 100).await?;
    let overview = Overview {
        name: person.operator.id.to_string(),
        account: person.account().to_string(),
        role: person.operator.role,
        certificates: certificates.entries.len(),
        waiting: operations
            .iter()
            .filter(|operation| *operation.statement.operator() == person.operator.id)
            .count(),
        unread: person.unread(),
    };
    let t = person.t;
    Ok(person.page(t.home(), Here::Home, &content(t, &overview)))
}

/// What the home page counts.
struct Overview {
    /// The operator.
    pub name: String,
    /// The account's name.
    pub account: String,
    /// The role.
    pub role: Role,
    /// Certificates of the operator that are in force.
    pub certificates: usize,
    /// Operations that wait for this operator.
    pub waiting: usize,
    /// Unread notices.
    pub unread: usize,
}

/// What a role is called.
pub fn role(t: Texts, role: Role) -> &'static str {
    match role {
        Role::SuperAdministrator => t.role_super_administrator(),
        Role::Administrator => t.role_administrator(),
        Role::Operator => t.role_operator(),
    }
}

/// The page.
fn content(t: Texts, overview: &Overview) -> Markup {
    let figure = |title: &str, count: String, path: &str| {
        html! {
            div.card {
                h2 { a href=(path) { (title) } }
                span.figure { (count) }
            }
        }
    };
    html! {
        (parts::heading(&t.welcome(&overview.name), &overview.account, &html! {
            (badge(Tone::Plain, role(t, overview.role)))
        }))
        @if overview.certificates == 0 { (super::certificates::prompt(t, false)) }
        div.cards {
            (figure(
                t.your_certificates(),
                t.certificates_installed(overview.certificates),
                "/certificates",
            ))
            (figure(
                t.waiting_for_you(),
                t.waiting_count(overview.waiting),
                "/operations?state=created",
            ))
            @if overview.role.manages() {
                (figure(t.unread_notices(), overview.unread.to_string(), "/notices"))
            }
        }
        section.card aria-labelledby="next" {
            h2 #next { (t.next_steps()) }
            ul {
                li { a href="/operations" { (t.do_operations()) } }
                li { a href="/certificates" { (t.do_certificates()) } }
                li { a href="/number" { (t.do_number()) } }
                @if overview.role.manages() {
                    li { a href="/security" { (t.do_security()) } }
                }
            }
        }
    }
}
