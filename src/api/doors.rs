//! One router for each door: the same `/v1` behind different gates.
//!
//! | door | gates, in order |
//! | --- | --- |
//! | native | TLS with a certificate of the local authority; no browser; own host name; registered client |
//! | browser | own host name; origin; preflight; registered browser; fetch; method; media type; size |
//! | control | peer credentials |
//! | monitoring | none; off unless configured, metrics and health only |
//!
//! A gate answers before routing, so that nothing is learned about paths from outside it.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;

use super::caller::{self, ControlAccess};
use super::problem::{self, Code, Problem};
use super::routes::{self, App};

/// The native door that listens on `port`.
pub fn native(app: App, port: u16) -> Router {
    // One layer: each costs an allocation or two for every request.
    routes::router(app.clone()).layer(from_fn(move |request: Request, next: Next| {
        let app = app.clone();
        problem::finish(request, async move |request: Request| {
            match gate(request.headers(), request.uri().authority(), port) {
                Ok(()) => caller::identify_client(&app, request, next).await,
                Err(problem) => problem.into_response(),
            }
        })
    }))
}

/// The browser door that listens on `port`.
pub fn browser(app: App, port: u16) -> Router {
    let gates = Arc::new(super::browser::Gates {
        app: app.clone(),
        port,
    });
    routes::router(app).layer(from_fn(move |request: Request, next: Next| {
        let gates = gates.clone();
        problem::finish(request, async move |request| {
            super::browser::pass(&gates, request, next).await
        })
    }))
}

/// The control socket.
pub fn control(app: App, access: ControlAccess) -> Router {
    routes::router_with_monitoring(app.clone()).layer(from_fn(
        move |request: Request, next: Next| {
            let (app, access) = (app.clone(), access.clone());
            problem::finish(request, async move |request| {
                caller::identify_user(&app, &access, request, next).await
            })
        },
    ))
}

/// The port for monitoring, where one is configured: it shows numbers to every local program.
pub fn monitoring(app: App) -> Router {
    routes::monitoring(app).layer(from_fn(problem::finish_next))
}

/// A page in a browser on this computer can reach the door, and the browser may even hold a
/// client certificate; what it cannot do is leave out the headers by which browsers mark what
/// pages send. The host check ends DNS rebinding.
fn gate(headers: &HeaderMap, authority: Option<&Authority>, port: u16) -> Result<(), Problem> {
    let browser = headers
        .keys()
        .find(|name| **name == ORIGIN || name.as_str().starts_with("sec-fetch-"));
    if let Some(name) = browser {
        return Err(Problem::new(
            Code::BrowserRefused,
            format!("the request has the header {name}, which browsers send"),
        ));
    }
    own_host(headers, authority, port)
}

/// Refuses a request that names no host, or another than this door: the name of a page that was
/// rebound to this computer.
pub(super) fn own_host(
    headers: &HeaderMap,
    authority: Option<&Authority>,
    port: u16,
) -> Result<(), Problem> {
    // HTTP/2 has the authority in its URI, HTTP/1.1 in the Host header; a request may have both.
    let mut named = false;
    let hosts = headers.get_all(HOST).iter().map(|host| host.as_bytes());
    for host in hosts.chain(authority.map(|authority| authority.as_str().as_bytes())) {
        if !is_own(host, port) {
            return Err(Problem::new(
                Code::HostRefused,
                format!(
                    "{:?} is not a host of this door",
                    String::from_utf8_lossy(host)
                ),
            ));
        }
        named = true;
    }
    if named {
        Ok(())
    } else {
        Err(Problem::new(Code::HostRefused, "the request names no host"))
    }
}

fn is_own(host: &[u8], port: u16) -> bool {
    let Ok(text) = std::str::from_utf8(host) else {
        return false;
    };
    let Some((name, given)) = text.rsplit_once(':') else {
        return false;
    };
    let name_fits =
        name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]";
    name_fits && given == port.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn code(headers: &[(&str, &str)], authority: Option<&str>) -> Option<Code> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let authority = authority.map(|text| text.parse().unwrap());
        gate(&map, authority.as_ref(), 7443)
            .err()
            .map(|problem| problem.code())
    }

    #[test]
    fn own_hosts_pass_and_others_do_not() {
        for host in [
            "localhost:7443",
            "LOCALHOST:7443",
            "127.0.0.1:7443",
            "[::1]:7443",
        ] {
            assert_eq!(code(&[("host", host)], None), None, "{host}");
            assert_eq!(code(&[], Some(host)), None, "{host}");
        }
        for host in [
            "localhost",
            "localhost:7444",
            "localhost:07443",
            "localhost.:7443",
            "127.0.0.2:7443",
            "::1:7443",
            "evil.example:7443",
            "user@localhost:7443",
            "",
        ] {
            assert_eq!(
                code(&[("host", host)], None),
                Some(Code::HostRefused),
                "{host}"
            );
        }
        assert_eq!(code(&[], None), Some(Code::HostRefused));
        assert_eq!(
            code(
                &[("host", "localhost:7443"), ("host", "evil.example")],
                None
            ),
            Some(Code::HostRefused)
        );
        assert_eq!(
            code(&[("host", "evil.example")], Some("localhost:7443")),
            Some(Code::HostRefused)
        );
    }

    #[test]
    fn whatever_browsers_send_is_refused() {
        for header in [
            ("origin", "null"),
            ("origin", "https://localhost:7443"),
            ("sec-fetch-site", "none"),
            ("sec-fetch-mode", "cors"),
            ("sec-fetch-anything", ""),
        ] {
            assert_eq!(
                code(&[("host", "localhost:7443"), header], None),
                Some(Code::BrowserRefused),
                "{header:?}"
            );
        }
    }
}
