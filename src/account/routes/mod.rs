//! The HTTP interface of the account service, over TLS.
//!
//! | path | who | what |
//! | --- | --- | --- |
//! | `/v1/enrolment/…` | an operator's courier | SMS code, ticket |
//! | `/.well-known/est/…` | an EST client with a ticket (RFC 7030) | authority, certificate |
//! | `/v1/sessions`, `/v1/session`, `/v1/certificates…`, `/v1/computers…`, `/v1/installations…`, `/v1/notices…`, `/v1/events`, `/v1/break-glass` | people, by cookie | their account |
//! | `/v1/requests…` | people, by cookie | ways back in after a loss |
//! | `/v1/secrets…` | administrators, by cookie; a computer's request vouches for itself | API secrets |
//! | `/v1/webhooks…` | the platform, with its key | who is told of operations |
//! | `/v1/operations…` | the platform, with its key; an approval vouches for itself | operations |
//! | `/.well-known/jwks.json`, `/pki/issuing.crl`, `/ocsp` | anybody | keys, revocation |
//! | `/v1/openapi.json`, `/healthz` | anybody | this interface, health |
//!
//! Handlers parse and answer; what is decided is decided in the modules beside this one. Every
//! request body is limited by the door, every list and text by its type. What never lives here: SQL,
//! pages, and rights beyond who is asking.

pub mod approval;
pub mod certificates;
pub mod enrolment;
pub mod est;
pub mod installations;
pub mod notices;
pub mod operations;
pub mod problem;
pub mod published;
pub mod recovery;
pub mod secrets;
pub mod sessions;
pub mod webhooks;

use axum::Router;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::Limited;
use utoipa::OpenApi;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::cookies;
use super::portal;
use super::service::Service;
use crate::api::problem as problems;
use crate::http::media_type;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "opcert account service",
        description = "Accounts, enrolment by SMS code and EST, sensitive operations and their \
                       approvals. Errors are RFC 9457 problem documents with a stable code."
    ),
    components(schemas(problems::ProblemDocument))
)]
struct Document;

/// The OpenAPI 3.1 document of the interface.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().split_for_parts().1
}

/// All routes, over `service`.
pub fn router(service: Service) -> Router {
    let (router, document) = routes().split_for_parts();
    // It cannot change while the program runs.
    let document = axum::body::Bytes::from(document.to_json().unwrap_or_default());
    router
        .route(
            "/v1/openapi.json",
            axum::routing::get(move || async move {
                (
                    [(axum::http::header::CONTENT_TYPE, media_type::JSON)],
                    document,
                )
            }),
        )
        .merge(portal::router(&service))
        .fallback_service(portal::fallback(&service))
        .method_not_allowed_fallback(problems::method_not_allowed)
        .layer(axum::middleware::from_fn(small_bodies))
        .layer(axum::middleware::from_fn(problems::finish_next))
        .with_state(service)
}

/// Largest body of everything but papers, in bytes; papers have the limit of the door.
const BODY_MAX: usize = 64 * 1024;

/// Limits the bodies of everything but papers.
async fn small_bodies(request: Request, next: Next) -> Response {
    let is_paper = request.uri().path().contains("/papers/");
    if is_paper {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let body = axum::body::Body::new(Limited::new(body, BODY_MAX));
    next.run(Request::from_parts(head, body)).await
}

fn routes() -> OpenApiRouter<Service> {
    let mut document = Document::openapi();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let basic = SecurityScheme::Http(Http::new(HttpAuthScheme::Basic));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("platform-key", bearer.clone());
    components.add_security_scheme("ticket", bearer);
    let cookie = ApiKey::Cookie(ApiKeyValue::new(cookies::SESSION));
    components.add_security_scheme("session", SecurityScheme::ApiKey(cookie));
    components.add_security_scheme(
        "client-certificate",
        SecurityScheme::MutualTls {
            description: Some("the operating certificate to be renewed".into()),
            deprecated: None,
            extensions: None,
        },
    );
    components.add_security_scheme("ticket-as-password", basic);
    OpenApiRouter::with_openapi(document)
        .routes(routes!(enrolment::send_code))
        .routes(routes!(enrolment::give_ticket))
        .routes(routes!(est::cacerts))
        .routes(routes!(est::csrattrs))
        .routes(routes!(enrolment::begin_renewal))
        .routes(routes!(enrolment::finish_renewal))
        .routes(routes!(est::simpleenroll))
        .routes(routes!(est::simplereenroll))
        .routes(routes!(sessions::log_in))
        .routes(routes!(sessions::session, sessions::log_out))
        .routes(routes!(certificates::certificates))
        .routes(routes!(certificates::delete_certificate))
        .routes(routes!(certificates::computers))
        .routes(routes!(certificates::delete_own_on))
        .routes(routes!(certificates::break_glass))
        .routes(routes!(installations::installations))
        .routes(routes!(installations::release_installation))
        .routes(routes!(notices::notices))
        .routes(routes!(notices::read_notice))
        .routes(routes!(notices::events))
        .routes(routes!(recovery::make, recovery::list))
        .routes(routes!(recovery::show))
        .routes(routes!(recovery::form))
        .routes(routes!(recovery::attach, recovery::paper))
        .routes(routes!(recovery::submit))
        .routes(routes!(recovery::decide))
        .routes(routes!(recovery::ask_administrators))
        .routes(routes!(recovery::withdraw))
        .routes(routes!(secrets::show))
        .routes(routes!(secrets::set))
        .routes(routes!(secrets::send_code))
        .routes(routes!(secrets::ask_administrators))
        .routes(routes!(secrets::withdraw))
        .routes(routes!(secrets::admit))
        .routes(routes!(secrets::dismiss))
        .routes(routes!(secrets::give))
        .routes(routes!(webhooks::subscribe, webhooks::subscriptions))
        .routes(routes!(webhooks::unsubscribe))
        .routes(routes!(webhooks::deliveries))
        .routes(routes!(webhooks::replay))
        .routes(routes!(operations::create, operations::list))
        .routes(routes!(operations::read))
        .routes(routes!(operations::challenge))
        .routes(routes!(operations::approve))
        .routes(routes!(operations::cancel))
        .routes(routes!(published::jwks))
        .routes(routes!(published::vouched_keys))
        .routes(routes!(published::crl))
        .routes(routes!(published::crl_of_key))
        .routes(routes!(published::ocsp))
        .routes(routes!(published::ocsp_get))
        .routes(routes!(published::health))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_openapi_3_1_and_names_every_route() {
        let document: serde_json::Value =
            serde_json::from_str(&openapi().to_json().unwrap()).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        let paths = document["paths"].as_object().unwrap();
        for path in [
            "/v1/enrolment/codes",
            "/v1/enrolment/tickets",
            "/.well-known/est/cacerts",
            "/.well-known/est/csrattrs",
            "/.well-known/est/simpleenroll",
            "/v1/sessions",
            "/v1/certificates",
            "/v1/operations",
            "/v1/secrets",
            "/v1/secrets/requests",
            "/v1/operations/{id}",
            "/v1/operations/{id}/challenges",
            "/v1/operations/{id}/approvals",
            "/v1/operations/{id}/cancellation",
            "/.well-known/jwks.json",
            "/pki/issuing.crl",
            "/pki/{list}",
            "/healthz",
        ] {
            assert!(paths.contains_key(path), "{path}");
        }
    }
}
