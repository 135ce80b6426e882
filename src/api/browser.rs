//! The gates of the browser door, in the one order in which they are safe.
//!
//! | gate | what it stops |
//! | --- | --- |
//! | host | a name that was rebound to this computer |
//! | origin | every page that is not listed, byte for byte; a request without an origin |
//! | preflight | ends here: a browser asks without its certificate (Fetch section 4.8) |
//! | certificate | browsers of other people, and programs |
//! | fetch metadata | links, forms, images and `no-cors`, whose effects need no answer |
//! | method | what no route has |
//! | media type | bodies that a form could send, which skip the preflight |
//! | size | bodies past the door's limit: whoever reads one, reads no further |
//!
//! A refusal acts before routing; it does not merely withhold headers, as a `no-cors` page does not
//! care for the answer. The certificate names the browser, not the page: it is presented for
//! whatever page asks. So the origin is what policy, the person and the approval get to see.
//!
//! Answers to a listed origin carry the CORS headers, refusals too, so that a page can tell why.
//! There are no cookies: those of other programs on `localhost` are dropped unread, and none is set.

use axum::extract::Request;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, COOKIE,
    ORIGIN, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::caller::{Identified, client, origin_served};
use super::doors::own_host;
use super::problem::{Code, Problem};
use super::refusals;
use super::routes::App;
use crate::http::{Peer, media_type};
use crate::statement::Origin;

/// What browsers say a request is for (Fetch Metadata section 2.2).
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Of Private Network Access, which Local Network Access replaced: no browser of today sends it,
/// and some of yesterday wait for the answer.
const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The methods that routes have.
const METHODS: [Method; 4] = [Method::GET, Method::POST, Method::PUT, Method::DELETE];

/// The media types that routes take. None is one that a form can send (Fetch section 2.2.2,
/// "CORS-safelisted request-header"), so each needs a preflight.
const MEDIA_TYPES: [&str; 2] = [media_type::JSON, media_type::CRL];

/// What the gates of one listener know.
pub(super) struct Gates {
    pub app: App,
    pub port: u16,
}

/// Lets a request through all gates, or answers it.
pub(super) async fn pass(door: &Gates, request: Request, next: Next) -> Response {
    let page = match named_page(door, &request) {
        Ok(page) => page,
        Err(problem) => return seal(problem.into_response(), None),
    };
    if is_preflight(&request) {
        return seal(preflight(request.headers()), Some(&page));
    }
    let response = match admit(door, request, &page) {
        Ok((identified, request)) => refusals::admitted(&door.app, identified, request, next).await,
        Err(problem) => problem.into_response(),
    };
    seal(response, Some(&page))
}

/// Host, then origin.
fn named_page(door: &Gates, request: &Request) -> Result<Origin, Problem> {
    own_host(request.headers(), request.uri().authority(), door.port)?;
    let mut named = request.headers().get_all(ORIGIN).iter();
    match (named.next(), named.next()) {
        (Some(origin), None) => origin_served(&door.app, origin.as_bytes()),
        (Some(_), Some(_)) => Err(Problem::new(
            Code::OriginRefused,
            "the request names more than one origin",
        )),
        (None, _) => Err(Problem::new(
            Code::OriginRefused,
            "the request names no origin, so it is not of a page that is served",
        )),
    }
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer does not depend on what is asked: the browser compares.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "content-type"),
        (ACCESS_CONTROL_MAX_AGE, "600"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if asked
        .get(REQUEST_PRIVATE_NETWORK)
        .is_some_and(|value| value == "true")
    {
        headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
    }
    response
}

/// Certificate, fetch metadata, method, media type.
fn admit(
    door: &Gates,
    mut request: Request,
    page: &Origin,
) -> Result<(Identified, Request), Problem> {
    let peer = request.extensions().get::<Peer>();
    // Not counted as a failed authentication: any page can have the browser come without a
    // certificate, and would use up what programs at the same address are told.
    let identified = client(&door.app, peer, Some(page.clone()))?;
    // Absence proves nothing either way: old browsers send none, and programs what they like.
    if let Some(mode) = request.headers().get(SEC_FETCH_MODE)
        && mode != "cors"
    {
        return Err(Problem::new(
            Code::FetchRefused,
            format!(
                "the request is of mode {:?}",
                String::from_utf8_lossy(mode.as_bytes())
            ),
        ));
    }
    if !METHODS.contains(request.method()) {
        return Err(Problem::new(
            Code::MethodNotAllowed,
            format!("{} is not allowed at this door", request.method()),
        ));
    }
    if [Method::POST, Method::PUT].contains(request.method()) {
        check_media_type(request.headers())?;
    }
    request.headers_mut().remove(COOKIE);
    Ok((identified, request))
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let mut given = headers.get_all(CONTENT_TYPE).iter();
    let (first, second) = (given.next(), given.next());
    let known = MEDIA_TYPES.iter().any(|known| media_type::is(first, known));
    if known && second.is_none() {
        Ok(())
    } else {
        Err(Problem::new(
            Code::UnsupportedMediaType,
            format!("the content type must be {}", MEDIA_TYPES.join(" or ")),
        ))
    }
}

/// What every answer of this door carries; `page` is a listed origin, which may read it.
fn seal(mut response: Response, page: Option<&Origin>) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
        (
            RESOURCE_POLICY,
            match page {
                Some(_) => "same-origin",
                // There is nothing in it but the refusal, which no page can read. That it came tells
                // a page that its origin, not the certificate, is what is not liked.
                None => "cross-origin",
            },
        ),
        (VARY, "origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Some(origin) = page.and_then(|page| HeaderValue::from_str(page.as_str()).ok()) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            HeaderValue::from_static("true"),
        );
        headers.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("request-id, retry-after"),
        );
    }
    response
}
