//! The portal: what merchants' operators and business representatives see in a browser.
//!
//! Pages are made on the server and work without a script wherever the daemon is not needed. What
//! needs the daemon on the visitor's own computer (installing a certificate, approving an
//! operation) is done by one script, which talks to it through the published SDK.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`pages`] | the pages, one file for each part of the navigation, and what their forms do |
//! | [`web`] | who is there, forms and their tokens, redirects, errors as pages |
//! | [`security`] | headers, cookies, tokens: what keeps other sites out |
//! | [`layout`], [`parts`] | the frame of every page, and the pieces they are made of |
//! | [`daemon`] | what a page can say about the daemon, and what to do about it |
//! | [`problems`] | problems in words for people at a page |
//! | [`i18n`] | every word, in English and Chinese |
//! | [`assets`] | style sheet, scripts, icon, under names with their hash |
//! | [`config`] | `[portal]` |
//!
//! What holds:
//! 1. Handlers are thin: they read a form, call a service of the account module, and show what came
//!    of it. Rights and limits are the services'; a page that hides a button protects nothing.
//! 2. HTML is made by `maud` alone, which escapes every value; nothing in the portal opts out of
//!    that, and scripts write no HTML either (the content policy forbids it).
//! 3. A form is refused without the token of the visitor's session, and a request that a browser
//!    says comes from another site is refused before it is read.
//! 4. A page holds nothing of other sites and is in no cache but the visitor's eye: `no-store`.
//!    Assets have their hash in their name and stay for a year.
//! 5. Whatever was uploaded is only ever downloaded, never shown inside the site.

pub mod assets;
pub mod config;
pub mod daemon;
pub mod i18n;
pub mod layout;
pub mod pages;
pub mod parts;
pub mod problems;
pub mod security;
pub mod web;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn_with_state, map_response_with_state};
use axum::routing::{get, post};

use self::pages::{
    certificates, home, login, notices, operations, operators, recovery, security as secrets,
};
use super::config::host_and_port;
use super::service::Service;
use crate::api::problem::{method_not_allowed, not_found};

/// Every page and asset, over `service`.
pub fn router(service: &Service) -> Router<Service> {
    let pages = Router::new()
        .route("/", get(home::show))
        .route("/login", get(login::show).post(login::log_in))
        .route(
            "/login/representative",
            get(login::show_representative).post(login::log_in_representative),
        )
        .route("/logout", post(login::log_out))
        .route("/language", post(login::language))
        .route("/certificates", get(certificates::list))
        .route("/certificates/install", get(certificates::install))
        .route("/certificates/install/code", post(certificates::send_code))
        .route(
            "/certificates/install/ticket",
            post(certificates::give_ticket),
        )
        .route(
            "/certificates/install/certificate",
            post(certificates::certify),
        )
        .route("/certificates/{serial}", get(certificates::show))
        .route("/certificates/{serial}/delete", post(certificates::delete))
        .route(
            "/certificates/{serial}/emergency",
            post(certificates::break_glass),
        )
        .route("/operations", get(operations::list))
        .route(
            "/operations/new",
            get(operations::draft).post(operations::create),
        )
        .route("/operations/{id}", get(operations::show))
        .route("/operations/{id}/cancel", post(operations::cancel))
        .route("/operations/{id}/challenge", post(operations::challenge))
        .route("/operations/{id}/approval", post(operations::approve))
        .route("/notices", get(notices::list).post(notices::read))
        .route("/trail", get(notices::audit))
        .route("/operators", get(operators::list))
        .route("/installations", get(operators::installations))
        .route("/installations/{ticket}", post(operators::release))
        .route("/number", get(recovery::number).post(recovery::make))
        .route("/security", get(secrets::list))
        .route("/security/{kind}", get(secrets::draft).post(secrets::set))
        .route("/security/{kind}/code", post(secrets::send_code))
        .route("/security/{kind}/approve", post(secrets::approve))
        .route("/security/{kind}/withdraw", post(secrets::withdraw))
        .route("/security/computers/{key}", get(secrets::computer))
        .route("/security/computers/{key}/admit", post(secrets::admit))
        .route("/security/computers/{key}/dismiss", post(secrets::dismiss))
        .route("/requests", get(recovery::list))
        .route("/requests/{id}", get(recovery::show))
        .route("/requests/{id}/submit", post(recovery::submit))
        .route("/requests/{id}/withdraw", post(recovery::withdraw))
        .route("/requests/{id}/approve", post(recovery::approve))
        .route("/requests/{id}/decide", post(recovery::decide))
        .route(
            "/requests/{id}/papers/{kind}",
            // Past the limit of the door nothing arrives; the framework's own is lower.
            post(recovery::attach).layer(DefaultBodyLimit::disable()),
        )
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(service.clone(), web::dress));
    Router::new()
        .merge(pages)
        .route("/assets/{file}", get(assets::serve))
        .layer(map_response_with_state(
            headers(service),
            security::add_headers,
        ))
}

/// What answers at paths that nothing else has: a page to people, a problem to programs.
pub fn fallback(service: &Service) -> Router {
    Router::new()
        .fallback(not_found)
        .layer(from_fn_with_state(service.clone(), web::dress))
        .layer(map_response_with_state(
            headers(service),
            security::add_headers,
        ))
}

fn headers(service: &Service) -> security::Headers {
    let (host, _) = host_and_port(service.challenge_key().origin());
    security::Headers::new(&service.portal().daemon(), &host)
}
