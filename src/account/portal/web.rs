//! Requests and answers: who is there, forms, redirects, errors as pages.
//!
//! [`dress`] is the middleware around every page. It finds the visitor (cookies, session,
//! language) before the handler runs and gives him to it as an extension; afterwards it turns a
//! problem into an error page, sets the cookies that are due and adds the security headers.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, HOST, LOCATION, REFERER, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::i18n::{self, Texts};
use super::layout::{Frame, Here, Identity};
use super::parts::{self, Tone};
use super::problems::{self, Fault};
use super::security;
use crate::account::cookies::{self, SameSite, Stay};
use crate::account::routes::sessions::source;
use crate::account::service::Service;
use crate::account::sessions::{Person, Session, SessionError, same_csrf};
use crate::account::store::accounts::Operator;
use crate::api::extract::read;
use crate::api::problem::{Code, Problem};
use crate::base::ids::{AccountId, OperatorId, RequestId};
use crate::base::secret::SecretText;
use crate::http::Peer;

/// Says what the next page begins with; its name travels in a cookie, its words do not.
macro_rules! flashes {
    ($($variant:ident $name:literal $text:ident;)*) => {
        /// What was just done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Flash {
            $(#[doc = $name] $variant,)*
        }

        impl Flash {
            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            fn of(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            fn text(self, t: Texts) -> &'static str {
                match self { $(Self::$variant => t.$text(),)* }
            }
        }
    };
}

impl Flash {
    /// All but one say that something was done as it was asked.
    fn tone(self) -> Tone {
        match self {
            Self::SessionOver => Tone::Warn,
            _ => Tone::Good,
        }
    }
}

flashes! {
    LoggedOut "logged-out" logged_out;
    SessionOver "session-over" session_over;
    CertificateDeleted "certificate-deleted" flash_certificate_deleted;
    OperationCreated "operation-created" flash_operation_created;
    OperationCancelled "operation-cancelled" flash_operation_cancelled;
    OperationApproved "operation-approved" flash_operation_approved;
    ApprovalTaken "approval-taken" flash_approval_taken;
    RequestBegun "request-begun" flash_request_begun;
    Uploaded "uploaded" flash_uploaded;
    RequestSubmitted "request-submitted" flash_request_submitted;
    RequestWithdrawn "request-withdrawn" flash_request_withdrawn;
    RequestDecided "request-decided" flash_request_decided;
    NoticesRead "notices-read" flash_notices_read;
    SecretSet "secret-set" flash_secret_set;
    SecretWaits "secret-waits" flash_secret_waits;
    SecretWithdrawn "secret-withdrawn" flash_secret_withdrawn;
    ComputerAdmitted "computer-admitted" flash_computer_admitted;
    ComputerDismissed "computer-dismissed" flash_computer_dismissed;
}

/// Whoever made the request.
pub struct Visitor {
    /// The language of the answer.
    pub t: Texts,
    /// The session, where there is one in force.
    pub session: Option<Session>,
    /// Names the request in records.
    pub request: RequestId,
    /// Where the request came from.
    pub source: IpAddr,
    identity: Option<Identity>,
    csrf: String,
    path: String,
    flash: Option<Flash>,
    daemon: Arc<str>,
}

impl Visitor {
    /// A page with status 200.
    pub fn page(&self, title: &str, here: Here, content: &Markup) -> Response {
        let frame = Frame {
            t: self.t,
            csrf: &self.csrf,
            identity: self.identity.as_ref(),
            path: &self.path,
            flash: self.flash.map(|flash| (flash.tone(), flash.text(self.t))),
            daemon: &self.daemon,
        };
        let page = frame.page(title, here, content).into_string();
        let mut response = Response::new(Body::from(page));
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        );
        response
    }

    /// A page with a form. Where one was sent that cannot be taken, it begins with what is wrong with
    /// it, and has the problem's status.
    pub fn answer(
        &self,
        title: &str,
        here: Here,
        fault: Option<&Fault>,
        content: &Markup,
    ) -> Response {
        let Some(fault) = fault else {
            return self.page(title, here, content);
        };
        let content = html! { (problems::note(self.t, fault, &self.request)) (content) };
        let mut response = self.page(title, here, &content);
        *response.status_mut() = status(fault.problem());
        response
    }

    /// The hidden field every form begins with.
    pub fn token(&self) -> Markup {
        html! { input type="hidden" name="csrf" value=(self.csrf); }
    }

    /// An answer to a script of ours: JSON, or a problem in the visitor's language.
    pub fn to_script<T: Serialize>(&self, result: Result<T, Problem>) -> Response {
        match result {
            Ok(value) => axum::Json(value).into_response(),
            Err(problem) => script_problem(problem),
        }
    }

    /// Notices this person has not read.
    pub fn unread(&self) -> usize {
        self.identity.as_ref().map_or(0, |identity| identity.unread)
    }

    fn script_answer(&self, problem: &Problem) -> Response {
        let (title, action) = problems::explain(self.t, problem.code());
        let body = ScriptProblem {
            code: problem.code(),
            title,
            action,
            wait: problem
                .retry_after()
                .map(|seconds| self.t.error_wait(seconds)),
            detail: problems::detail_helps(problem.code()).then(|| problem.detail()),
            retry_after: problem.retry_after(),
            request_id: self.request.as_str(),
        };
        let mut response = axum::Json(body).into_response();
        *response.status_mut() = status(problem);
        response
    }

    fn error_page(&self, problem: &Problem) -> Response {
        let t = self.t;
        let (what, remedy) = problems::explain(t, problem.code());
        let content = html! {
            (parts::heading(what, remedy, &html! {}))
            div.card {
                @if let Some(seconds) = problem.retry_after() { p { (t.error_wait(seconds)) } }
                (parts::facts(&[
                    (t.error_code(), html! { code { (problem.code()) } }),
                    (t.request_id(), html! { code { (self.request) } }),
                ]))
                p { a href="/" { (t.to_home()) } }
            }
        };
        let mut response = self.page(t.something_wrong(), Here::Nowhere, &content);
        *response.status_mut() = status(problem);
        response
    }
}

/// A problem as scripts of ours get it.
#[derive(Serialize)]
struct ScriptProblem<'p> {
    code: Code,
    title: &'static str,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<String>,
    /// In English.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'p str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
    request_id: &'p str,
}

fn status(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.code().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The middleware around every page.
pub async fn dress(State(service): State<Service>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let headers = &parts.headers;
    let visit = cookies::cookie(headers, security::VISIT).map(str::to_owned);
    let fresh = visit.is_none().then(security::new_visit);
    let wants_page = header(headers, ACCEPT.as_str()).is_some_and(|it| it.contains("text/html"));
    let had_flash = cookies::cookie(headers, security::FLASH).is_some();
    let (visitor, known) = Visitor::of(&service, &parts, visit.or(fresh.clone())).await;
    let visitor = Arc::new(visitor);
    parts.extensions.insert(visitor.clone());

    let mut response = match known {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        // Who is there cannot be said now, so nothing else is.
        Err(problem) if for_scripts(&parts.headers) => script_problem(problem),
        Err(problem) => problem.into_response(),
    };
    let for_script = response.extensions().get::<ForScripts>().is_some();
    // Programs that came to a path of the portal get the problem document of the interface.
    if (for_script || wants_page)
        && let Some(problem) = response.extensions_mut().remove::<Problem>()
    {
        tracing::info!(
            request = %visitor.request,
            code = %problem.code(),
            detail = problem.detail(),
            "refused"
        );
        response = if for_script {
            visitor.script_answer(&problem)
        } else {
            visitor.error_page(&problem)
        };
    }
    let is_page = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    let headers = response.headers_mut();
    if let Some(visit) = fresh {
        headers.append(
            SET_COOKIE,
            cookies::set_cookie(security::VISIT, &visit, SameSite::Lax, Stay::Visit),
        );
    }
    if had_flash && is_page {
        headers.append(
            SET_COOKIE,
            cookies::set_cookie(security::FLASH, "", SameSite::Lax, Stay::Gone),
        );
    }
    response
}

impl Visitor {
    /// The visitor, as far as he can be known, and what stood in the way of knowing who he is.
    async fn of(
        service: &Service,
        parts: &Parts,
        visit: Option<String>,
    ) -> (Self, Result<(), Problem>) {
        let headers = &parts.headers;
        let language = cookies::cookie(headers, security::LANGUAGE)
            .and_then(i18n::parse)
            .unwrap_or_else(|| i18n::preferred(headers));
        let token = cookies::session_token(headers);
        let found = async {
            let session = match &token {
                Some(token) => find_session(service, token).await?,
                None => None,
            };
            let identity = match &session {
                Some(session) => Some(identity(service, session).await?),
                None => None,
            };
            Ok((session, identity))
        };
        let ((session, identity), known) = match found.await {
            Ok(found) => (found, Ok(())),
            Err(problem) => ((None, None), Err(problem)),
        };
        let csrf = match (&session, &token) {
            (Some(_), Some(token)) => service.sessions().csrf(token),
            _ => service
                .sessions()
                .csrf(&SecretText::new(visit.unwrap_or_default())),
        };
        let source = parts
            .extensions
            .get::<Peer>()
            .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), source);
        let request_id = parts
            .extensions
            .get::<RequestId>()
            .cloned()
            .unwrap_or_else(RequestId::random);
        let visitor = Self {
            t: Texts(language),
            session,
            request: request_id,
            source,
            identity,
            csrf,
            path: page_of(parts),
            flash: cookies::cookie(headers, security::FLASH).and_then(Flash::of),
            daemon: service.portal().daemon().into(),
        };
        (visitor, known)
    }
}

/// The path of the page that the browser shows: of what a form is answered with, the page that the
/// form stood on, as nothing else can be had again.
fn page_of(parts: &Parts) -> String {
    if [Method::GET, Method::HEAD].contains(&parts.method) {
        let path = parts.uri.path_and_query();
        return path.map_or("/", |path| path.as_str()).to_owned();
    }
    let host = parts.uri.authority().map(|authority| authority.as_str());
    let host = host.or_else(|| header(&parts.headers, HOST.as_str()));
    let before = header(&parts.headers, REFERER.as_str())
        .and_then(|url| url.strip_prefix("https://")?.strip_prefix(host?))
        .filter(|path| path.starts_with('/'));
    local_path(before.unwrap_or("/")).to_owned()
}

async fn find_session(service: &Service, token: &SecretText) -> Result<Option<Session>, Problem> {
    match service.sessions().find(token).await {
        Ok(session) => Ok(Some(session)),
        Err(SessionError::Ended) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn identity(service: &Service, session: &Session) -> Result<Identity, Problem> {
    Ok(Identity {
        name: session.person.id().to_string(),
        account: session
            .person
            .operator()
            .map(|operator| operator.account.to_string()),
        role: session.person.role(),
        unread: super::pages::notices::unread(service, &session.person).await?,
    })
}

/// A request without a session: the visitor's page for anybody.
pub type Anybody = Extension<Arc<Visitor>>;

/// An operator who is logged in; everybody else is sent to the log-in.
pub struct SignedIn {
    /// The visitor.
    pub visitor: Arc<Visitor>,
    /// The operator.
    pub operator: Operator,
}

impl SignedIn {
    /// The operator's account.
    pub fn account(&self) -> &AccountId {
        &self.operator.account
    }

    /// The session, which is there.
    pub fn session(&self) -> Result<&Session, Problem> {
        self.visitor.session.as_ref().ok_or_else(unauthenticated)
    }

    /// Refuses whoever is no administrator.
    pub fn manages(&self) -> Result<(), Problem> {
        if self.operator.role.manages() {
            Ok(())
        } else {
            Err(Problem::new(
                Code::Forbidden,
                "only administrators may do that",
            ))
        }
    }
}

impl std::ops::Deref for SignedIn {
    type Target = Visitor;
    fn deref(&self) -> &Visitor {
        &self.visitor
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SignedIn {
    type Rejection = Halt;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Halt> {
        let visitor = visitor(&parts.extensions)?;
        match visitor.session.as_ref().map(|session| &session.person) {
            Some(Person::Operator(operator)) => Ok(Self {
                operator: operator.clone(),
                visitor,
            }),
            Some(Person::Representative(_)) => Err(Problem::new(
                Code::Forbidden,
                "this page is for operators of an account",
            )
            .into()),
            None => Err(Halt::Answer(to_login(parts, "/login"))),
        }
    }
}

/// Whoever is logged in, operator or business representative.
pub struct LoggedIn {
    /// The visitor.
    pub visitor: Arc<Visitor>,
    /// Who it is.
    pub person: Person,
}

impl std::ops::Deref for LoggedIn {
    type Target = Visitor;
    fn deref(&self) -> &Visitor {
        &self.visitor
    }
}

impl<S: Send + Sync> FromRequestParts<S> for LoggedIn {
    type Rejection = Halt;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Halt> {
        let visitor = visitor(&parts.extensions)?;
        match visitor.session.as_ref().map(|session| &session.person) {
            Some(person) => Ok(Self {
                person: person.clone(),
                visitor,
            }),
            None => Err(Halt::Answer(to_login(parts, "/login"))),
        }
    }
}

/// A business representative who is logged in.
pub struct Representative {
    /// The visitor.
    pub visitor: Arc<Visitor>,
    /// The representative's id.
    pub id: OperatorId,
}

impl std::ops::Deref for Representative {
    type Target = Visitor;
    fn deref(&self) -> &Visitor {
        &self.visitor
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Representative {
    type Rejection = Halt;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Halt> {
        let visitor = visitor(&parts.extensions)?;
        match visitor.session.as_ref().map(|session| &session.person) {
            Some(Person::Representative(known)) => Ok(Self {
                id: known.id.clone(),
                visitor,
            }),
            Some(Person::Operator(_)) => Err(Problem::new(
                Code::Forbidden,
                "this page is for business representatives",
            )
            .into()),
            None => Err(Halt::Answer(to_login(parts, "/login/representative"))),
        }
    }
}

fn visitor(extensions: &axum::http::Extensions) -> Result<Arc<Visitor>, Problem> {
    extensions
        .get::<Arc<Visitor>>()
        .cloned()
        .ok_or_else(|| Problem::new(Code::Internal, "the request has no visitor"))
}

fn unauthenticated() -> Problem {
    Problem::new(Code::SessionEnded, "nobody is logged in")
}

/// Scripts get a problem; people are sent to the log-in, and from there to where they wanted. Who
/// was logged in before is told that this is over: the form he sent is lost.
fn to_login(parts: &Parts, login: &str) -> Response {
    if for_scripts(&parts.headers) {
        return script_problem(unauthenticated());
    }
    let target = parts::query(login, &[("next", &page_of(parts))]);
    let asked = [Method::GET, Method::HEAD].contains(&parts.method);
    if !asked || cookies::session_token(&parts.headers).is_some() {
        return redirect_with(&target, Flash::SessionOver);
    }
    redirect(&target)
}

/// A path of this site to go to after a log-in; anything else is the home page.
pub fn local_path(path: &str) -> &str {
    let safe = path.starts_with('/')
        && !path.starts_with("//")
        && path.len() <= 512
        && path
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if safe { path } else { "/" }
}

/// Sends the browser on with GET (RFC 9110 section 15.4.4).
pub fn redirect(path: &str) -> Response {
    let mut response = StatusCode::SEE_OTHER.into_response();
    let target = HeaderValue::from_str(path).unwrap_or(HeaderValue::from_static("/"));
    response.headers_mut().insert(LOCATION, target);
    response
}

/// As [`redirect`]; the page there begins with `flash`.
pub fn redirect_with(path: &str, flash: Flash) -> Response {
    let mut response = redirect(path);
    response
        .headers_mut()
        .append(SET_COOKIE, flash_cookie(flash));
    response
}

/// The cookie with which the next page says what was done.
pub fn flash_cookie(flash: Flash) -> HeaderValue {
    cookies::set_cookie(security::FLASH, flash.name(), SameSite::Lax, Stay::Visit)
}

/// Why a handler stops early.
pub enum Halt {
    /// A problem, which becomes an error page.
    Problem(Problem),
    /// An answer of its own.
    Answer(Response),
}

impl<E: Into<Problem>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Problem(error.into())
    }
}

impl Halt {
    /// The problem; that nobody is logged in where the answer was to send him to the log-in.
    pub fn problem(self) -> Problem {
        match self {
            Self::Problem(problem) => problem,
            Self::Answer(_) => unauthenticated(),
        }
    }
}

impl IntoResponse for Halt {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(problem) => problem.into_response(),
            Self::Answer(response) => response,
        }
    }
}

/// What a handler of a page returns.
pub type Answer = Result<Response, Halt>;

/// A form that was sent from a page of this site: its token and origin are checked before a
/// handler sees it.
pub struct Submitted<T>(pub T);

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    csrf: String,
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Submitted<T> {
    type Rejection = Halt;

    async fn from_request(request: Request, _: &S) -> Result<Self, Halt> {
        let visitor = visitor(request.extensions())?;
        refuse_elsewhere(&request)?;
        let (parts, body) = request.into_parts();
        let kind = parts.headers.get(CONTENT_TYPE).cloned();
        let bytes = read(Request::from_parts(parts, body)).await?;
        let Token { csrf } = decode(kind.as_ref(), bytes.clone()).await?;
        check_token(&visitor, &csrf)?;
        Ok(Self(decode(kind.as_ref(), bytes).await?))
    }
}

async fn decode<T: DeserializeOwned>(
    kind: Option<&HeaderValue>,
    bytes: Bytes,
) -> Result<T, Problem> {
    let mut request = Request::new(Body::from(bytes));
    *request.method_mut() = Method::POST;
    if let Some(kind) = kind {
        request.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    match axum::extract::Form::<T>::from_request(request, &()).await {
        Ok(axum::extract::Form(value)) => Ok(value),
        // What the form held is not repeated: it may be a secret.
        Err(_) => Err(Problem::new(
            Code::Malformed,
            "a field of the form is missing or not of its kind",
        )),
    }
}

/// A request of the portal's own script: its token is in a header.
pub struct Scripted<T>(pub T);

/// The header that carries the token.
pub const CSRF_HEADER: &str = "x-csrf-token";

/// Marks answers to scripts: their problems are JSON.
#[derive(Debug, Clone, Copy)]
struct ForScripts;

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Scripted<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let checked = async {
            let visitor = visitor(request.extensions())?;
            refuse_elsewhere(&request)?;
            let token = header(request.headers(), CSRF_HEADER).unwrap_or("");
            check_token(&visitor, token)?;
            let crate::api::extract::Json(value) =
                crate::api::extract::Json::from_request(request, state).await?;
            Ok(Self(value))
        };
        checked.await.map_err(script_problem)
    }
}

fn script_problem(problem: Problem) -> Response {
    let mut response = problem.into_response();
    response.extensions_mut().insert(ForScripts);
    response
}

fn for_scripts(headers: &HeaderMap) -> bool {
    headers.contains_key(CSRF_HEADER)
}

/// Refuses a request that a browser says comes from another site.
pub fn refuse_elsewhere(request: &Request) -> Result<(), Problem> {
    let host = request
        .uri()
        .authority()
        .map(|authority| authority.as_str())
        .or_else(|| header(request.headers(), HOST.as_str()));
    if security::from_elsewhere(request.headers(), host) {
        return Err(csrf_problem());
    }
    Ok(())
}

/// Refuses a form without the token of this visitor.
pub fn check_token(visitor: &Visitor, given: &str) -> Result<(), Problem> {
    same_csrf(&visitor.csrf, given).map_err(|_| csrf_problem())
}

fn csrf_problem() -> Problem {
    Problem::new(
        Code::CsrfRefused,
        "the request does not prove that it comes from a page of this site",
    )
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_this_site_are_gone_to() {
        for (path, expected) in [
            ("/operations?state=created", "/operations?state=created"),
            ("//evil.example/", "/"),
            ("/\\evil.example/", "/"),
            ("https://evil.example/", "/"),
            ("", "/"),
            ("/a\r\nset-cookie: x=y", "/"),
        ] {
            assert_eq!(local_path(path), expected, "{path}");
        }
    }
}
