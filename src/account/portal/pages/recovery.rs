//! Ways back in after a loss: an operator asks, administrators sign or a business representative
//! decides. Forms and papers are downloaded from the interface, which never shows them inline.

use axum::extract::{FromRequest, Multipart, Request as HttpRequest, State};
use maud::{Markup, html};
use serde::Deserialize;

use crate::account::portal::i18n::Texts;
use crate::account::portal::layout::Here;
use crate::account::portal::parts::{self, Field, Standing, Tone, badge, time};
use crate::account::portal::problems::Fault;
use crate::account::portal::web::{
    Answer, Flash, Halt, LoggedIn, Representative, SignedIn, Submitted, Visitor, check_token,
    redirect, redirect_with, refuse_elsewhere,
};
use crate::account::service::Service;
use crate::account::sessions::Person;
use crate::account::store::accounts::Mobile;
use crate::account::store::recovery::{Ask, Attachment, Request, RequestState};
use crate::api::extract::Path;
use crate::api::problem::{Code, Problem};
use crate::base::secret::SecretText;
use crate::statement::text::Text;

/// The registered number, and the requests of the account.
pub async fn number(State(service): State<Service>, person: SignedIn) -> Answer {
    own(&service, &person, None).await
}

/// A form of this page that cannot be taken: which, the number in it, and what is wrong.
struct Sent<'s> {
    kind: &'s str,
    mobile: &'s str,
    fault: Fault,
}

async fn own(service: &Service, person: &SignedIn, sent: Option<Sent<'_>>) -> Answer {
    let t = person.t;
    let sent = sent.as_ref();
    let fault = |kind: &str| {
        sent.filter(|sent| sent.kind == kind)
            .map(|sent| &sent.fault)
    };
    let (change, recovery) = (fault(MOBILE_CHANGE), fault(COMPUTER_RECOVERY));
    let requests: Vec<Request> = service
        .requests()
        .list(Some(person.account()), None)
        .await?
        .into_iter()
        .filter(|request| person.operator.role.manages() || request.operator == person.operator.id)
        .collect();
    let content = html! {
        (parts::heading(t.mobile_number(), t.number_lead(), &html! {}))
        section.card {
            (parts::facts(&[(
                t.registered_number(),
                html! { span.mono { (person.operator.mobile.masked()) } },
            )]))
        }
        section.card aria-labelledby="new-number" {
            h2 #new-number { (t.request_new_number()) }
            p { (t.two_routes()) }
            form.stack method="post" action="/number" {
                (person.token())
                input type="hidden" name="kind" value=(MOBILE_CHANGE);
                (Field {
                    name: "mobile",
                    label: t.new_mobile_number(),
                    hint: Some(t.new_number_hint()),
                    kind: "tel",
                    value: sent.map_or("", |sent| sent.mobile),
                    autocomplete: "tel",
                    max: 20,
                    fault: change,
                    ..Field::default()
                }.show(t))
                (password_field(t, "password", change))
                div.buttons { button.button type="submit" { (t.begin_request()) } }
            }
        }
        @if person.operator.role.manages() {
            section.card aria-labelledby="recovery" {
                h2 #recovery { (t.computer_recovery()) }
                p { (t.recovery_lead()) }
                form.stack method="post" action="/number" {
                    (person.token())
                    input type="hidden" name="kind" value=(COMPUTER_RECOVERY);
                    (password_field(t, "recovery-password", recovery))
                    div.buttons { button.button.plain type="submit" { (t.request_recovery()) } }
                }
            }
        }
        section.stack aria-labelledby="requests" {
            h2 #requests { (t.requests()) }
            (table(t, &requests))
        }
    };
    let fault = sent.map(|sent| &sent.fault);
    Ok(person.answer(t.mobile_number(), Here::Number, fault, &content))
}

/// The password field; its id differs where a page has two.
fn password_field(t: Texts, id: &str, fault: Option<&Fault>) -> Markup {
    let standing = Standing::of("password", None, fault);
    html! {
        div.field {
            (parts::label(t, id, t.login_password(), true))
            input id=(id) name="password" type="password" required maxlength="256"
                autocomplete="current-password" aria-describedby=[&standing.described_by]
                aria-invalid=[standing.invalid] autofocus[standing.begins];
        }
    }
}

/// What is asked for on the page of the number, as forms name it.
const MOBILE_CHANGE: &str = "mobile-change";
const COMPUTER_RECOVERY: &str = "computer-recovery";

/// A new request.
#[derive(Debug, Deserialize)]
pub struct NewRequest {
    kind: String,
    #[serde(default)]
    mobile: String,
    password: SecretText,
}

/// Makes a request, with the password once more.
pub async fn make(
    State(service): State<Service>,
    person: SignedIn,
    Submitted(new): Submitted<NewRequest>,
) -> Answer {
    let (kind, mobile) = (new.kind.as_str(), new.mobile.as_str());
    let made = async {
        let ask = match kind {
            MOBILE_CHANGE => {
                let mobile = mobile.trim().parse::<Mobile>().map_err(|error| {
                    let problem = Problem::new(Code::Malformed, error.to_string());
                    Fault::in_fields(problem, &["mobile"])
                })?;
                Ask::MobileChange(mobile)
            }
            COMPUTER_RECOVERY => Ask::ComputerRecovery,
            _ => return Err(Problem::new(Code::Malformed, "kind is not known").into()),
        };
        service
            .sessions()
            .confirm(person.session()?, new.password, person.source)
            .await
            .map_err(|error| Fault::of_password(person.t, error.into()))?;
        let made = service
            .requests()
            .make(&person.operator, ask, &person.request)
            .await;
        made.map_err(|error| Fault::from(Problem::from(error)))
    };
    match made.await {
        Ok(request) => Ok(redirect_with(&path(&request.id), Flash::RequestBegun)),
        Err(fault) => {
            let sent = Sent {
                kind,
                mobile,
                fault,
            };
            own(&service, &person, Some(sent)).await
        }
    }
}

fn path(id: &str) -> String {
    format!("/requests/{id}")
}

/// What business representatives have to decide.
pub async fn list(State(service): State<Service>, person: Representative) -> Answer {
    let t = person.t;
    let requests = service
        .requests()
        .list(None, Some(RequestState::Submitted))
        .await?;
    let content = html! {
        (parts::heading(t.requests(), t.requests_lead(), &html! {}))
        (table(t, &requests))
    };
    Ok(person.page(t.requests(), Here::Requests, &content))
}

/// One request, to whoever it concerns.
pub async fn show(
    State(service): State<Service>,
    visitor: LoggedIn,
    Path(id): Path<String>,
) -> Answer {
    one(&service, &visitor, &visitor.person, &id, None).await
}

async fn one(
    service: &Service,
    visitor: &Visitor,
    person: &Person,
    id: &str,
    fault: Option<&Fault>,
) -> Answer {
    let t = visitor.t;
    let account = person.operator().map(|operator| &operator.account);
    let (request, papers) = service.requests().find(id, account).await?;
    let (here, back) = match person {
        Person::Operator(_) => (Here::Number, "/number"),
        Person::Representative(_) => (Here::Requests, "/requests"),
    };
    let own = person
        .operator()
        .is_some_and(|operator| operator.id == request.operator);
    let manages = person
        .operator()
        .is_some_and(|operator| operator.role.manages());
    let undecided = matches!(request.state, RequestState::Open | RequestState::Submitted);
    let stoppable = undecided || request.state == RequestState::Granted;
    let content = html! {
        (parts::heading(title(t, &request), "", &html! {
            a.button.plain href=(back) { (t.back()) }
        }))
        (facts(t, &request))
        @if own && request.state == RequestState::Open { (papers_to_send(visitor, &request, &papers)) }
        @if !own && !papers.is_empty() { (papers_to_see(t, &request, &papers)) }
        @if account.is_none() && request.state == RequestState::Submitted {
            (decision(visitor, &request, fault))
        }
        @if (own || manages) && stoppable {
            section.card {
                div.buttons {
                    @if manages && !own && undecided {
                        (act(visitor, &request, "approve", "button", t.sign_request()))
                    }
                    (act(visitor, &request, "withdraw", "button danger", t.stop_request()))
                }
            }
        }
    };
    Ok(visitor.answer(title(t, &request), here, fault, &content))
}

/// A button that does one thing to a request.
fn act(visitor: &Visitor, request: &Request, what: &str, class: &str, text: &str) -> Markup {
    html! {
        form method="post" action={ (path(&request.id)) "/" (what) } {
            (visitor.token())
            button class=(class) type="submit" { (text) }
        }
    }
}

fn title(t: Texts, request: &Request) -> &'static str {
    match request.ask {
        Ask::MobileChange(_) => t.mobile_change(),
        Ask::ComputerRecovery => t.computer_recovery(),
    }
}

fn state(t: Texts, state: RequestState) -> Markup {
    match state {
        RequestState::Open => badge(Tone::Warn, t.request_open()),
        RequestState::Submitted => badge(Tone::Warn, t.request_submitted()),
        RequestState::Granted => badge(Tone::Good, t.request_granted()),
        RequestState::Refused => badge(Tone::Bad, t.request_refused()),
        RequestState::Withdrawn => badge(Tone::Plain, t.request_withdrawn()),
        RequestState::Done => badge(Tone::Good, t.request_done()),
    }
}

fn table(t: Texts, requests: &[Request]) -> Markup {
    if requests.is_empty() {
        return parts::empty(t.no_requests());
    }
    let rows: Vec<Vec<Markup>> = requests
        .iter()
        .map(|request| {
            vec![
                html! { a href=(path(&request.id)) { (title(t, request)) } },
                html! { (request.operator) span.sub { (request.account) } },
                state(t, request.state),
                time(request.created_at),
            ]
        })
        .collect();
    let columns = [t.kind(), t.applicant(), t.state(), t.requested_at()];
    parts::table(t.requests(), &columns, &rows)
}

fn facts(t: Texts, request: &Request) -> Markup {
    let mut lines = vec![
        (t.state(), state(t, request.state)),
        (
            t.applicant(),
            html! { (request.operator) " · " (request.account) },
        ),
        (
            t.old_number(),
            html! { span.mono { (request.old_mobile.masked()) } },
        ),
        (t.requested_at(), time(request.created_at)),
    ];
    if let Ask::MobileChange(mobile) = &request.ask {
        let masked = html! { span.mono { (mobile.masked()) } };
        lines.insert(3, (t.new_mobile_number(), masked));
    }
    if let Some((at, by, reason)) = &request.decision {
        lines.push((
            t.decide(),
            html! {
                (time(*at)) " · " (by)
                @if let Some(reason) = reason { " · " (reason) }
            },
        ));
    }
    html! {
        section.card { (parts::facts(&lines)) }
        @if let (RequestState::Granted, Some(at)) = (request.state, request.effective_at) {
            div.note.warn {
                p { (t.effective_at(at.strftime("%Y-%m-%d %H:%M UTC"))) }
            }
        }
    }
}

/// Where a paper or form is downloaded.
fn download(request: &Request, what: &str) -> String {
    format!("/v1/requests/{}/{what}", request.id)
}

fn papers_to_send(visitor: &Visitor, request: &Request, papers: &[Attachment]) -> Markup {
    let t = visitor.t;
    let upload = |kind: &str, text: &str, hint: &str, accept: &str| {
        let there = papers.iter().any(|paper| paper.kind == kind);
        html! {
            form.stack method="post" enctype="multipart/form-data"
                action={ (path(&request.id)) "/papers/" (kind) } {
                (visitor.token())
                div.field {
                    (parts::label(t, kind, text, true))
                    p.hint id={ (kind) "-hint" } { (hint) }
                    input id=(kind) name="file" type="file" accept=(accept) required
                        aria-describedby={ (kind) "-hint" };
                }
                div.buttons {
                    button.button.plain type="submit" { (t.upload()) }
                    @if there { (badge(Tone::Good, t.uploaded())) }
                }
            }
        }
    };
    html! {
        section.card {
            h2 { (t.download_form()) }
            div.buttons {
                a.button.plain href=(download(request, "form/pdf")) download { (t.form_pdf()) }
                a.button.plain href=(download(request, "form/docx")) download { (t.form_docx()) }
            }
        }
        section.card {
            h2 { (t.upload_papers()) }
            (upload(
                "photocopy",
                t.photocopy(),
                t.photocopy_hint(),
                "application/pdf,image/jpeg,image/png",
            ))
            (upload("document", t.document(), t.document_hint(), ".docx,application/pdf"))
        }
        section.card {
            h2 { (t.submit_request()) }
            (act(visitor, request, "submit", "button", t.submit()))
        }
    }
}

fn papers_to_see(t: Texts, request: &Request, papers: &[Attachment]) -> Markup {
    html! {
        section.card {
            h2 { (t.papers()) }
            ul {
                @for paper in papers {
                    li {
                        a href=(download(request, &format!("papers/{}", paper.kind))) download {
                            (if paper.kind == "photocopy" { t.photocopy() } else { t.document() })
                        }
                        " " span.muted.small { (paper.media_type) ", " (paper.size / 1024) " KiB" }
                    }
                }
            }
        }
    }
}

fn decision(visitor: &Visitor, request: &Request, fault: Option<&Fault>) -> Markup {
    let t = visitor.t;
    html! {
        section.card {
            h2 { (t.decide()) }
            form.stack method="post" action={ (path(&request.id)) "/decide" } {
                (visitor.token())
                (Field {
                    name: "reason",
                    label: t.reason(),
                    hint: Some(t.decide_hint()),
                    max: 120,
                    fault,
                    ..Field::default()
                }.show(t))
                div.buttons {
                    button.button type="submit" name="decision" value="grant" { (t.grant()) }
                    button.button.danger type="submit" name="decision" value="refuse" {
                        (t.refuse())
                    }
                }
            }
        }
    }
}

/// An empty form.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

/// Hands a request to the business representatives.
pub async fn submit(
    State(service): State<Service>,
    person: SignedIn,
    Path(id): Path<String>,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    let submitted = service
        .requests()
        .submit(&person.operator, &id, &person.request)
        .await;
    done(&service, &person, &id, submitted, Flash::RequestSubmitted).await
}

/// Takes a request back, or stops it before it takes effect.
pub async fn withdraw(
    State(service): State<Service>,
    person: SignedIn,
    Path(id): Path<String>,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    let withdrawn = service
        .requests()
        .withdraw(&person.operator, &id, &person.request)
        .await;
    done(&service, &person, &id, withdrawn, Flash::RequestWithdrawn).await
}

/// Goes on, or shows the request again with what stood in the way.
async fn done<T, E: Into<Problem>>(
    service: &Service,
    person: &SignedIn,
    id: &str,
    result: Result<T, E>,
    flash: Flash,
) -> Answer {
    match result {
        Ok(_) => Ok(redirect_with(&path(id), flash)),
        Err(error) => {
            let fault = error.into().into();
            let session = person.session()?;
            one(service, person, &session.person, id, Some(&fault)).await
        }
    }
}

/// Goes to the signature of an administrator.
pub async fn approve(
    State(service): State<Service>,
    person: SignedIn,
    Path(id): Path<String>,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    person.manages()?;
    let (operation, _) = service
        .requests()
        .ask_administrators(&person.operator, &id, &person.request)
        .await?;
    Ok(redirect(&super::operations::path(&operation.id)))
}

/// A decision of a business representative.
#[derive(Debug, Deserialize)]
pub struct Decided {
    decision: String,
    reason: String,
}

/// Grants or refuses a request.
pub async fn decide(
    State(service): State<Service>,
    person: Representative,
    Path(id): Path<String>,
    Submitted(decided): Submitted<Decided>,
) -> Answer {
    let granted = match decided.decision.as_str() {
        "grant" => true,
        "refuse" => false,
        _ => return Err(Problem::new(Code::Malformed, "decision is not known").into()),
    };
    let decided = async {
        let reason: Text = decided.reason.trim().parse().map_err(|error| {
            let problem = Problem::new(Code::Malformed, format!("reason {error}"));
            Fault::in_fields(problem, &["reason"])
        })?;
        let decided = service
            .requests()
            .decide(&person.id, &id, granted, reason.as_str(), &person.request)
            .await;
        decided.map_err(|error| Fault::from(Problem::from(error)))
    };
    match decided.await {
        Ok(_) => Ok(redirect_with("/requests", Flash::RequestDecided)),
        Err(fault) => {
            let known = person.visitor.session.as_ref();
            let known =
                known.ok_or_else(|| Problem::new(Code::SessionEnded, "nobody is logged in"))?;
            one(&service, &person, &known.person, &id, Some(&fault)).await
        }
    }
}

/// Takes a paper. The token is the first field, so nothing else is read without it.
pub async fn attach(
    State(service): State<Service>,
    person: SignedIn,
    Path((id, kind)): Path<(String, String)>,
    request: HttpRequest,
) -> Answer {
    let kind = match kind.as_str() {
        "photocopy" => "photocopy",
        "document" => "document",
        _ => return Err(Problem::new(Code::NotFound, "there is no such paper").into()),
    };
    let content = file(&person, request).await?;
    let kept = service
        .requests()
        .attach(&person.operator, &id, kind, &content, &person.request)
        .await;
    done(&service, &person, &id, kept, Flash::Uploaded).await
}

async fn file(person: &SignedIn, request: HttpRequest) -> Result<Vec<u8>, Halt> {
    let malformed = || Problem::new(Code::Malformed, "the upload is not a form with a file");
    refuse_elsewhere(&request)?;
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|_| malformed())?;
    let token = form.next_field().await.map_err(|_| malformed())?;
    let token = token.filter(|field| field.name() == Some("csrf"));
    let given = match token {
        Some(field) => field.text().await.map_err(|_| malformed())?,
        None => String::new(),
    };
    check_token(person, &given)?;
    let field = form.next_field().await.map_err(|_| malformed())?;
    let field = field
        .filter(|field| field.name() == Some("file"))
        .ok_or_else(malformed)?;
    let content = field
        .bytes()
        .await
        .map_err(|_| Problem::new(Code::TooLarge, "the file did not arrive whole"))?;
    Ok(content.to_vec())
}
