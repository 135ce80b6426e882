//! What keeps other sites out of the portal: headers, the names of its cookies, CSRF tokens.
//!
//! | against | what |
//! | --- | --- |
//! | injected script or style | a content policy without `unsafe-*`; everything from this origin; `require-trusted-types-for` |
//! | framing | `frame-ancestors 'none'` |
//! | forged requests | `SameSite` cookies, a token in each form, `Sec-Fetch-Site` and `Origin` |
//! | planted cookies | the `__Host-` prefix: only this very host can set them, over TLS |
//! | leaks | `no-store`, no referrer to other sites, no access from other origins' pages |
//!
//! The CSRF token is that of the session, or before log-in of the visit: [`super::super::sessions`]
//! makes it of the secret cookie. Whoever cannot read the cookie cannot know the token, and nobody
//! else can set the cookie.

use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, ORIGIN, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;

use crate::base::encoding::base64url;
use crate::base::ids::random;

/// Holds a random value of this visit, for forms before log-in.
pub const VISIT: &str = "__Host-opcert-visit";
/// Holds the chosen language.
pub const LANGUAGE: &str = "__Host-opcert-language";
/// Holds the name of what the next page says first.
pub const FLASH: &str = "__Host-opcert-flash";

/// The headers that are the same on every answer of the portal. What is not named in a policy is
/// not allowed: `default-src 'none'`.
const HEADERS: [(HeaderName, &str); 6] = [
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    // `no-referrer` would make browsers send `Origin: null` with forms.
    (REFERRER_POLICY, "same-origin"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    // Chromium asks before a public page may reach this computer; the portal itself may ask, no
    // frame may. `local-network-access` is the older name of the same.
    (
        HeaderName::from_static("permissions-policy"),
        "loopback-network=(self), local-network-access=(self), local-network=(), camera=(), \
         display-capture=(), geolocation=(), hid=(), microphone=(), midi=(), payment=(), \
         publickey-credentials-get=(), serial=(), usb=()",
    ),
];

/// The content policy; `daemon`, an HTTPS origin, is the one foreign place scripts may connect to:
/// the browser door of the daemon on the visitor's own computer. Without TLS too: that it answers so
/// and not by TLS is how the script tells a certificate that is not trusted from a daemon that does
/// not run.
fn content_policy(daemon: &str) -> String {
    let plain = daemon.replacen("https:", "http:", 1);
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self' {daemon} {plain}; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
}

/// The headers of every answer, made once.
#[derive(Debug, Clone)]
pub struct Headers(HeaderMap);

impl Headers {
    /// `host` is the portal's own name: browsers are told to remember HTTPS for it, except for
    /// the names of this computer, which other programs use as well.
    pub fn new(daemon: &str, host: &str) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Ok(value) = HeaderValue::from_str(&content_policy(daemon)) {
            headers.insert(CONTENT_SECURITY_POLICY, value);
        }
        let is_address = host.parse::<std::net::IpAddr>().is_ok();
        if host != "localhost" && !is_address {
            headers.insert(
                STRICT_TRANSPORT_SECURITY,
                HeaderValue::from_static("max-age=63072000"),
            );
        }
        Self(headers)
    }

    /// Adds them to an answer; what the answer says itself about caching stays.
    pub fn add_to(&self, response: &mut Response) {
        let headers = response.headers_mut();
        for (name, value) in &self.0 {
            headers.insert(name, value.clone());
        }
        headers
            .entry(CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
    }
}

/// The layer that adds them.
pub async fn add_headers(State(headers): State<Headers>, mut response: Response) -> Response {
    headers.add_to(&mut response);
    response
}

/// A new secret for [`VISIT`].
pub fn new_visit() -> String {
    base64url(&random::<32>())
}

/// Whether a browser says that another site's page made this request. A request without these
/// headers is judged by its token alone.
pub fn from_elsewhere(headers: &HeaderMap, host: Option<&str>) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let site = text("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    let origin = text(ORIGIN.as_str()).is_some_and(|origin| {
        host.is_none_or(|host| origin.strip_prefix("https://") != Some(host))
    });
    site || origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        headers
    }

    #[test]
    fn requests_of_other_sites_are_told() {
        let host = Some("pay.example");
        for (pairs, elsewhere) in [
            (&[][..], false),
            (&[("sec-fetch-site", "same-origin")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("sec-fetch-site", "same-site")], true),
            (&[("sec-fetch-site", "cross-site")], true),
            (&[("origin", "https://pay.example")], false),
            (&[("origin", "https://pay.example:444")], true),
            (&[("origin", "http://pay.example")], true),
            (&[("origin", "null")], true),
        ] {
            assert_eq!(
                from_elsewhere(&headers(pairs), host),
                elsewhere,
                "{pairs:?}"
            );
        }
    }

    #[test]
    fn the_content_policy_has_no_unsafe_word_and_one_foreign_origin() {
        let policy = content_policy("https://localhost:7444");
        assert!(!policy.contains("unsafe") && !policy.contains('*'));
        assert_eq!(policy.matches("https://").count(), 1);
        let headers = Headers::new("https://localhost:7444", "127.0.0.1").0;
        assert!(headers.get(STRICT_TRANSPORT_SECURITY).is_none());
        let headers = Headers::new("https://localhost:7444", "pay.example").0;
        assert!(headers.get(STRICT_TRANSPORT_SECURITY).is_some());
    }
}
