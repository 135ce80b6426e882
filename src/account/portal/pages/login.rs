//! Logging in and out, and the choice of language.

use axum::Extension;
use axum::extract::{Query, State};
use axum::http::header::SET_COOKIE;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::account::cookies::{self, SameSite, Stay};
use crate::account::portal::i18n;
use crate::account::portal::layout::Here;
use crate::account::portal::parts::{self, Field};
use crate::account::portal::problems::Fault;
use crate::account::portal::security;
use crate::account::portal::web::{
    Answer, Anybody, Flash, Submitted, Visitor, local_path, redirect, redirect_with,
};
use crate::account::service::Service;
use crate::account::sessions::{Opened, Person};
use crate::api::problem::{Code, Problem};
use crate::base::secret::SecretText;

/// Where to go after the log-in.
#[derive(Debug, Default, Deserialize)]
pub struct Next {
    #[serde(default)]
    next: String,
}

/// Who wants in.
#[derive(Debug, Deserialize)]
pub struct Login {
    #[serde(default)]
    account: String,
    #[serde(default)]
    operator: String,
    password: SecretText,
    #[serde(default)]
    next: String,
}

/// Who is to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Merchant,
    Platform,
}

/// The log-in of operators.
pub async fn show(Extension(visitor): Anybody, Query(next): Query<Next>) -> Response {
    form(&visitor, Side::Merchant, &next.next, "", "", None)
}

/// The log-in of business representatives.
pub async fn show_representative(
    Extension(visitor): Anybody,
    Query(next): Query<Next>,
) -> Response {
    form(&visitor, Side::Platform, &next.next, "", "", None)
}

/// Logs an operator in.
pub async fn log_in(
    State(service): State<Service>,
    Extension(visitor): Anybody,
    Submitted(login): Submitted<Login>,
) -> Response {
    let result = match (login.account.trim().parse(), login.operator.trim().parse()) {
        (Ok(account), Ok(operator)) => service
            .sessions()
            .log_in(
                &account,
                &operator,
                login.password,
                visitor.source,
                &visitor.request,
            )
            .await
            .map_err(Problem::from),
        // A name that nobody can have is a wrong name.
        _ => Err(Problem::new(
            Code::LoginFailed,
            "account, operator or password is wrong",
        )),
    };
    match result {
        Ok(opened) => entered(&opened, local_path(&login.next)),
        Err(problem) => form(
            &visitor,
            Side::Merchant,
            &login.next,
            &login.account,
            &login.operator,
            Some(&problem),
        ),
    }
}

/// Logs a business representative in.
pub async fn log_in_representative(
    State(service): State<Service>,
    Extension(visitor): Anybody,
    Submitted(login): Submitted<Login>,
) -> Response {
    let result = match login.operator.trim().parse() {
        Ok(id) => service
            .sessions()
            .log_in_representative(&id, login.password, visitor.source, &visitor.request)
            .await
            .map_err(Problem::from),
        Err(_) => Err(Problem::new(
            Code::LoginFailed,
            "representative or password is wrong",
        )),
    };
    match result {
        Ok(opened) => entered(&opened, local_path(&login.next)),
        Err(problem) => form(
            &visitor,
            Side::Platform,
            &login.next,
            "",
            &login.operator,
            Some(&problem),
        ),
    }
}

fn entered(opened: &Opened, next: &str) -> Response {
    let home = match opened.session.person {
        Person::Operator(_) => "/",
        Person::Representative(_) => "/requests",
    };
    let mut response = redirect(if next == "/" { home } else { next });
    response
        .headers_mut()
        .append(SET_COOKIE, cookies::begin_session(&opened.token));
    response
}

/// An empty form.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

/// Ends the session.
pub async fn log_out(
    State(service): State<Service>,
    Extension(visitor): Anybody,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    if let Some(session) = &visitor.session {
        service.sessions().end(session, &visitor.request).await?;
    }
    let mut response = redirect_with("/login", Flash::LoggedOut);
    response
        .headers_mut()
        .append(SET_COOKIE, cookies::end_session());
    Ok(response)
}

/// The language somebody chose.
#[derive(Debug, Deserialize)]
pub struct Choice {
    to: String,
    #[serde(default)]
    back: String,
}

/// Remembers the language for a year.
pub async fn language(Submitted(choice): Submitted<Choice>) -> Response {
    let mut response = redirect(local_path(&choice.back)).into_response();
    if i18n::parse(&choice.to).is_some() {
        response.headers_mut().append(
            SET_COOKIE,
            cookies::set_cookie(
                security::LANGUAGE,
                &choice.to.to_ascii_lowercase(),
                SameSite::Lax,
                Stay::Year,
            ),
        );
    }
    response
}

fn form(
    visitor: &Visitor,
    side: Side,
    next: &str,
    account: &str,
    operator: &str,
    problem: Option<&Problem>,
) -> Response {
    let t = visitor.t;
    let fault = problem.map(|problem| match problem.code() {
        // Which of them, nobody is told.
        Code::LoginFailed => {
            Fault::in_fields(problem.clone(), &["password", "account", "operator"])
        }
        _ => problem.clone().into(),
    });
    let fault = fault.as_ref();
    let (lead, action, name, other, other_path) = match side {
        Side::Merchant => (
            t.login_lead(),
            "/login",
            t.operator(),
            t.representative_login(),
            "/login/representative",
        ),
        Side::Platform => (
            t.representative_lead(),
            "/login/representative",
            t.representative_id(),
            t.merchant_login(),
            "/login",
        ),
    };
    let title = match side {
        Side::Merchant => t.login_title(),
        Side::Platform => t.representative_login(),
    };
    let content: Markup = html! {
        div.narrow.stack {
            h1 { (title) }
            p.muted { (lead) }
            div.card {
                form.stack method="post" action=(action) {
                    (visitor.token())
                    input type="hidden" name="next" value=(next);
                    @if side == Side::Merchant {
                        (Field {
                            name: "account",
                            label: t.account(),
                            value: account,
                            autocomplete: "organization",
                            max: 64,
                            fault,
                            ..Field::default()
                        }.show(t))
                    }
                    (Field {
                        name: "operator",
                        label: name,
                        value: operator,
                        autocomplete: "username",
                        max: 64,
                        fault,
                        ..Field::default()
                    }.show(t))
                    (Field {
                        name: "password",
                        label: t.password(),
                        kind: "password",
                        autocomplete: "current-password",
                        max: 256,
                        fault,
                        ..Field::default()
                    }.show(t))
                    div.buttons { button.button type="submit" { (t.log_in()) } }
                }
            }
            @if side == Side::Merchant { p.small.muted { (t.login_help()) } }
            p.small { a href=(parts::query(other_path, &[("next", next)])) { (other) } }
        }
    };
    visitor.answer(title, Here::Nowhere, fault, &content)
}
