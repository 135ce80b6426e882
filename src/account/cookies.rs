//! Cookies of the service, the same for pages and for the interface that programs use.
//!
//! Each has the prefix `__Host-`: browsers insist on `Secure` and `Path=/` for it and take it from
//! this very host alone (RFC 6265bis section 4.1.3.2). No script reads one. A name that a request
//! has twice is as good as absent: one of the two was planted.

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};

use crate::base::secret::SecretText;

/// Holds the session's token.
pub const SESSION: &str = "__Host-opcert-session";

/// The value of the cookie `name`, if it is there exactly once.
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut found = None;
    for line in headers.get_all(COOKIE) {
        for pair in line.to_str().ok()?.split(';') {
            if let Some((key, value)) = pair.trim().split_once('=')
                && key == name
                && found.replace(value).is_some()
            {
                return None;
            }
        }
    }
    found
}

/// The session's token among the cookies of a request.
pub fn session_token(headers: &HeaderMap) -> Option<SecretText> {
    cookie(headers, SESSION)
        .filter(|token| !token.is_empty())
        .map(|token| SecretText::new(token.to_owned()))
}

/// How long a cookie stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// Until the browser ends.
    Visit,
    /// A year.
    Year,
    /// It goes now.
    Gone,
}

/// Which requests from other sites carry a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    /// None.
    Strict,
    /// Links that a person follows.
    Lax,
}

/// A `Set-Cookie` value. `value` is one of ours: letters, digits, `-` and `_`.
pub fn set_cookie(name: &str, value: &str, same_site: SameSite, stay: Stay) -> HeaderValue {
    let same_site = match same_site {
        SameSite::Strict => "Strict",
        SameSite::Lax => "Lax",
    };
    let age = match stay {
        Stay::Visit => "",
        Stay::Year => "; Max-Age=31536000",
        Stay::Gone => "; Max-Age=0",
    };
    let text = format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite={same_site}{age}");
    let mut value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// The `Set-Cookie` value that begins a session; it lasts until the browser is closed.
pub fn begin_session(token: &SecretText) -> HeaderValue {
    set_cookie(SESSION, token.expose(), SameSite::Strict, Stay::Visit)
}

/// The `Set-Cookie` value that ends a session.
pub fn end_session() -> HeaderValue {
    set_cookie(SESSION, "", SameSite::Strict, Stay::Gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, HeaderValue::from_static(line));
        }
        headers
    }

    #[test]
    fn a_cookie_given_twice_is_none() {
        let one = headers(&["a=1; b=2"]);
        assert_eq!(cookie(&one, "b"), Some("2"));
        assert_eq!(cookie(&one, "c"), None);
        let two = headers(&["a=1; b=2", "b=3"]);
        assert_eq!(cookie(&two, "b"), None);
        assert_eq!(cookie(&two, "a"), Some("1"));
    }

    #[test]
    fn the_token_is_found_among_cookies() {
        let found = |lines: &[&'static str]| {
            session_token(&headers(lines)).map(|token| token.expose().to_owned())
        };
        assert_eq!(
            found(&["a=b; __Host-opcert-session=tok; c=d"]).as_deref(),
            Some("tok")
        );
        assert_eq!(found(&["__Host-opcert-session="]), None);
        assert_eq!(found(&["opcert-session=tok"]), None);
        assert_eq!(
            found(&[
                "__Host-opcert-session=mine",
                "__Host-opcert-session=planted"
            ]),
            None
        );
    }

    #[test]
    fn a_session_is_for_this_host_and_no_script() {
        let value = begin_session(&SecretText::new("tok".into()));
        assert_eq!(
            value.to_str().unwrap(),
            "__Host-opcert-session=tok; Path=/; Secure; HttpOnly; SameSite=Strict"
        );
        assert_eq!(
            end_session().to_str().unwrap(),
            "__Host-opcert-session=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0"
        );
    }
}
