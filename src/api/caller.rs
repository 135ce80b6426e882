//! Who a request comes from, looked up anew for each.
//!
//! TLS has proved that the peer holds the key of a certificate of the local authority; whether
//! that certificate is a registered client, and not expired since the handshake, is asked here for
//! every request, so that `client remove` bites on the next one. On the control socket the kernel
//! tells the peer's user.

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::clients::ClientKind;
use super::problem::{Code, Problem};
use super::refusals::{self, Asked};
use super::routes::App;
use super::throttle::Source;
use crate::base::encoding::hex;
use crate::consent::AskedBy;
use crate::http::Peer;
use crate::policy::{Administration, CONTROL_SOCKET_ONLY, Caller, ClientPolicy};
use crate::statement::Origin;

/// A caller that its door let in; an extractor for handlers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// Who.
    pub caller: Caller,
    /// What a registered client may do.
    pub policy: Option<ClientPolicy>,
    /// The page that a browser speaks for.
    pub page: Option<Origin>,
}

impl Identified {
    /// How a person is told who asks.
    pub fn asked_by(&self, peer: &Peer) -> AskedBy {
        match &self.caller {
            Caller::Client(name) => AskedBy::Client {
                name: name.to_string(),
                page: self.page.as_ref().map(Origin::to_string),
            },
            Caller::Unix { uid } => AskedBy::User {
                uid: *uid,
                pid: match peer {
                    Peer::Unix { pid, .. } => *pid,
                    Peer::Tls { .. } | Peer::Plain { .. } => None,
                },
            },
            Caller::Itself => AskedBy::Itself,
        }
    }
}

/// The header by which the native-messaging host names the page that its browser vouches for.
pub const PAGE_ORIGIN: HeaderName = HeaderName::from_static("opcert-page-origin");

/// A caller of the control socket whom policy lets administer what the request is about; other
/// callers are refused by the extractor. Who may use the socket may look at everything; policy is
/// asked about what changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Administrator {
    /// Effective user id of the peer.
    pub uid: u32,
}

impl<S: Sync> FromRequestParts<S> for Identified {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Problem::new(Code::Internal, "the door did not identify the caller"))
    }
}

/// Who may carry an enrolment between an account service and this computer: an administrator of
/// the control socket, or a page, which may carry for its own origin only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Courier(pub Identified);

impl Courier {
    /// Refuses a page that carries for another service than its own.
    pub fn carries_for(&self, service: &Origin) -> Result<(), Problem> {
        match &self.0.page {
            Some(page) if page != service => Err(Problem::new(
                Code::NotPermitted,
                format!("a page of {page} may not install certificates of {service}"),
            )
            .with_action("Use the pages of the account service itself.")),
            _ => Ok(()),
        }
    }
}

impl FromRequestParts<App> for Courier {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let identified = Identified::from_request_parts(parts, app).await?;
        if identified.page.is_none() {
            Administrator::from_request_parts(parts, app).await?;
        }
        Ok(Self(identified))
    }
}

impl FromRequestParts<App> for Administrator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let caller = Identified::from_request_parts(parts, app).await?.caller;
        let Caller::Unix { uid } = caller else {
            return Err(Problem::new(
                Code::NotPermitted,
                format!("{caller} may not use {} {}", parts.method, parts.uri.path()),
            )
            .with_rule(CONTROL_SOCKET_ONLY));
        };
        if let Some(what) = administration(&parts.method, parts.uri.path())? {
            app.administer(&caller, what)?;
        }
        Ok(Self { uid })
    }
}

/// Whether a request looks at something and changes nothing.
pub(super) fn only_looks(method: &Method, path: &str) -> bool {
    method == Method::GET || path == super::routes::policy::EXPLAIN
}

/// What a request of an administrator changes; `None` where it only looks. What is not listed here
/// is refused: policy cannot be asked about it.
fn administration(method: &Method, path: &str) -> Result<Option<Administration>, Problem> {
    if only_looks(method, path) {
        return Ok(None);
    }
    let mut resource = path.strip_prefix("/v1/").unwrap_or("").split('/');
    Ok(Some(match (resource.next(), resource.next()) {
        (Some("clients"), _) => Administration::Client,
        (Some("enrolments"), _) => Administration::Enrol,
        (Some("keys"), None) => Administration::Service,
        (Some("policy"), Some("reload")) => Administration::Policy,
        (Some("tokens"), Some(_)) => Administration::Token,
        (Some("wechatpay"), Some("merchants" | "secrets")) => Administration::Merchant,
        _ => {
            return Err(Problem::new(
                Code::Internal,
                format!("no kind of administration is named for {method} {path}"),
            ));
        }
    }))
}

/// Who may use the control socket, besides root and the service's own user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlUsers {
    /// Nobody.
    OwnerOnly,
    /// Whoever may open the socket: it belongs to a group and has mode 0660, and connecting needs
    /// write permission on it (unix(7)). The kernel knows all groups of a process, a peer
    /// credential only its first.
    SocketGroup,
}

/// The same, as it is now.
#[derive(Debug, Clone)]
pub struct ControlAccess(Arc<ArcSwap<ControlUsers>>);

impl ControlAccess {
    /// Lets `users` in.
    pub fn new(users: ControlUsers) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(users)))
    }

    /// Lets `users` in from the next request on.
    pub fn set(&self, users: ControlUsers) {
        self.0.store(Arc::new(users));
    }

    fn owner_only(&self) -> bool {
        **self.0.load() == ControlUsers::OwnerOnly
    }
}

/// The gate of the control socket.
pub async fn identify_user(
    app: &App,
    access: &ControlAccess,
    request: Request,
    next: Next,
) -> Response {
    let Some(Peer::Unix { uid, .. }) = request.extensions().get::<Peer>() else {
        return Problem::new(Code::Internal, "the control door is no Unix socket").into_response();
    };
    let uid = *uid;
    let own = rustix::process::geteuid().as_raw();
    if uid != 0 && uid != own && access.owner_only() {
        let problem = Problem::new(
            Code::NotPermitted,
            format!("user {uid} may not use the control socket"),
        );
        return turned_away(app, Source::User(uid), &Asked::of(&request), problem);
    }
    let identified = Identified {
        caller: Caller::Unix { uid },
        policy: None,
        page: None,
    };
    refusals::admitted(app, identified, request, next).await
}

/// The answer to somebody whom a door does not let in. It is on record as far as `source` is told
/// why, so that nobody can fill the disk from outside.
fn turned_away(app: &App, source: Source, asked: &Asked, problem: Problem) -> Response {
    let caller = match source {
        Source::User(uid) => Some(Caller::Unix { uid }.to_string()),
        Source::Certificate(sha256) => Some(format!("certificate:{}", hex(&sha256))),
        Source::Address(_) => None,
    };
    let problem = app.failures().refuse(source, problem, app.clock().now());
    if let Some(caller) = caller.filter(|_| problem.code() != Code::TooManyFailures) {
        asked.record(app, &caller, None, &problem);
    }
    problem.into_response()
}

/// The last gate of the native door.
pub async fn identify_client(app: &App, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    let identified = native_page(app, request.headers()).and_then(|page| client(app, peer, page));
    match identified {
        Ok(identified) => refusals::admitted(app, identified, request, next).await,
        Err(problem) => match source(peer) {
            Some(source) => turned_away(app, source, &Asked::of(&request), problem),
            None => problem.into_response(),
        },
    }
}

/// Whom a failed authentication is counted for. All programs of this computer come from its own
/// address, so a certificate tells more where there is one.
fn source(peer: Option<&Peer>) -> Option<Source> {
    match peer? {
        Peer::Tls {
            certificate: Some(certificate),
            ..
        } => Some(Source::Certificate(certificate.sha256)),
        Peer::Tls { address, .. } | Peer::Plain { address } => Some(Source::Address(address.ip())),
        Peer::Unix { uid, .. } => Some(Source::User(*uid)),
    }
}

/// The page that the native-messaging host names, if it is one that is served.
fn native_page(app: &App, headers: &HeaderMap) -> Result<Option<Origin>, Problem> {
    let mut named = headers.get_all(PAGE_ORIGIN).iter();
    match (named.next(), named.next()) {
        (None, _) => Ok(None),
        (Some(origin), None) => origin_served(app, origin.as_bytes()).map(Some),
        (Some(_), Some(_)) => Err(Problem::new(
            Code::OriginRefused,
            "the request names more than one page",
        )),
    }
}

/// The origin of this text, if its pages are served.
pub fn origin_served(app: &App, text: &[u8]) -> Result<Origin, Problem> {
    app.serves(text).ok_or_else(|| {
        Problem::new(
            Code::OriginRefused,
            format!(
                "pages of {:?} are not served",
                String::from_utf8_lossy(text)
            ),
        )
    })
}

/// The registered client behind a TLS connection, speaking for `page` where it names one.
pub fn client(app: &App, peer: Option<&Peer>, page: Option<Origin>) -> Result<Identified, Problem> {
    let Some(Peer::Tls {
        certificate: Some(certificate),
        ..
    }) = peer
    else {
        return Err(Problem::new(
            Code::ClientCertificateMissing,
            "no client certificate was presented",
        ));
    };
    let client = app
        .clients()
        .by_fingerprint(&certificate.sha256)
        .ok_or_else(|| {
            Problem::new(
                Code::ClientUnknown,
                format!(
                    "no client is registered with certificate {}",
                    hex(&certificate.sha256)
                ),
            )
        })?;
    if client.expires < app.clock().now() {
        return Err(Problem::new(
            Code::ClientUnknown,
            format!("the certificate of client {} has expired", client.name),
        ));
    }
    match (client.kind, &page) {
        (ClientKind::Program, None) | (ClientKind::Browser, Some(_)) => {}
        (ClientKind::Program, Some(page)) => {
            return Err(Problem::new(
                Code::ClientKindRefused,
                format!(
                    "client {} is a program, and speaks for no page of {page}",
                    client.name
                ),
            ));
        }
        (ClientKind::Browser, None) => {
            return Err(Problem::new(
                Code::ClientKindRefused,
                format!("client {} is a browser, and names no page", client.name),
            ));
        }
    }
    Ok(Identified {
        caller: Caller::Client(client.name.clone()),
        policy: Some(client.policy.clone()),
        page,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What changes something and is no administration: policy is asked about it in another way.
    const OTHERWISE: [(&str, &str); 12] = [
        ("POST", "/v1/approvals"),
        ("POST", "/v1/crls"),
        ("POST", "/v1/wechatpay/v2/refund/decrypt"),
        ("POST", "/v1/wechatpay/v2/sign"),
        ("POST", "/v1/wechatpay/v2/verify"),
        ("POST", "/v1/wechatpay/v3/authorization"),
        ("POST", "/v1/wechatpay/v3/certificates"),
        ("POST", "/v1/wechatpay/v3/decrypt"),
        ("POST", "/v1/wechatpay/v3/fields/decrypt"),
        ("POST", "/v1/wechatpay/v3/fields/encrypt"),
        ("POST", "/v1/wechatpay/v3/paysign"),
        ("POST", "/v1/wechatpay/v3/verify"),
    ];

    #[test]
    fn whatever_changes_something_is_named_administration_or_decided_otherwise() {
        let document = super::super::routes::openapi::document();
        let document: serde_json::Value =
            serde_json::from_str(&document.to_json().unwrap()).unwrap();
        let mut otherwise = Vec::new();
        let mut named = std::collections::BTreeMap::<_, Vec<String>>::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                let method: Method = method.to_uppercase().parse().unwrap();
                match administration(&method, path) {
                    Ok(None) => assert!(only_looks(&method, path), "{method} {path}"),
                    Ok(Some(what)) => named.entry(what.name()).or_default().push(path.clone()),
                    Err(_) => otherwise.push((method.to_string(), path.clone())),
                }
            }
        }
        otherwise.sort();
        let expected = OTHERWISE.map(|(method, path)| (method.to_owned(), path.to_owned()));
        assert_eq!(otherwise, expected);
        for what in Administration::ALL {
            assert!(named.contains_key(what.name()), "{}", what.name());
        }
        for unknown in [
            "/v1/",
            "/v1/keys/x",
            "/v1/policy",
            "/v1/policy/other",
            "/",
            "/v2/clients",
        ] {
            assert!(administration(&Method::POST, unknown).is_err(), "{unknown}");
        }
    }
}
