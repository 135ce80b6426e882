//! Account Setting > Operating Certificate: list, search, quota, install, delete.

use axum::extract::{Query, State};
use axum::response::Response;
use maud::{Markup, html};
use serde::{Deserialize, Serialize};

use super::operations;
use crate::account::manage::{BreakGlass, Deletion, Entry, Usage};
use crate::account::portal::daemon;
use crate::account::portal::i18n::Texts;
use crate::account::portal::layout::Here;
use crate::account::portal::parts::{self, Field, Standing, Tone, badge, time, time_or_never};
use crate::account::portal::problems::Fault;
use crate::account::portal::web::{
    Answer, Flash, Halt, Scripted, SignedIn, Submitted, redirect, redirect_with,
};
use crate::account::service::Service;
use crate::account::store::certificates::Search;
use crate::account::store::codes::CodeUse;
use crate::api::extract::Path;
use crate::api::problem::{Code, Problem};
use crate::base::encoding::{base64, from_base64};
use crate::base::ids::ComputerId;
use crate::base::secret::SecretText;
use crate::statement::text::Text;

/// Certificates on one page of the list.
const PAGE: i64 = 50;

/// What the list shows.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Wanted {
    q: String,
    after: Option<String>,
}

/// The list, the quota, and the way to install.
pub async fn list(
    State(service): State<Service>,
    person: SignedIn,
    Query(wanted): Query<Wanted>,
) -> Answer {
    let t = person.t;
    let text = wanted.q.trim().chars().take(100).collect::<String>();
    let search = Search {
        text: (!text.is_empty()).then(|| text.clone()),
        after: wanted.after,
        ..Search::default()
    };
    let manage = service.manage();
    let page = manage.certificates(person.account(), &search, PAGE).await?;
    let usage = manage.usage(person.account()).await?;
    let own = Search {
        operator: Some(person.operator.id.clone()),
        active: true,
        ..Search::default()
    };
    let installed = !manage
        .certificates(person.account(), &own, 1)
        .await?
        .entries
        .is_empty();
    let me = person.operator.id.as_str();
    let content = html! {
        (parts::heading(t.operating_certificate(), t.certificates_lead(), &html! {}))
        (prompt(t, installed))
        (quota(t, &usage))
        section.stack aria-labelledby="installed" {
            h2 #installed { (t.installed_certificates()) }
            (search_form(t, &text))
            @if page.entries.is_empty() {
                (parts::empty(if text.is_empty() { t.nothing_here() } else { t.found_none() }))
            } @else {
                (table(t, t.installed_certificates(), &page.entries, me))
            }
            (parts::older(t, page.next.as_deref().map(|after| {
                parts::query("/certificates", &[("q", &text), ("after", after)])
            }).as_deref()))
        }
    };
    Ok(person.page(t.operating_certificate(), Here::Certificates, &content))
}

/// One certificate, and how it is deleted.
pub async fn show(
    State(service): State<Service>,
    person: SignedIn,
    Path(serial): Path<String>,
) -> Answer {
    let entry = find(&service, &person, &serial).await?;
    Ok(one(&person, &entry, None))
}

fn one(person: &SignedIn, entry: &Entry, fault: Option<&Fault>) -> Response {
    let t = person.t;
    let content = html! {
        (parts::heading(
            &format!("{} · {}", entry.certificate.operator, entry.computer_name),
            "",
            &html! { a.button.plain href="/certificates" { (t.back()) } },
        ))
        (facts(t, entry))
        @if entry.certificate.revoked.is_none() { (deletion(person, entry, fault)) }
    };
    person.answer(
        t.operating_certificate(),
        Here::Certificates,
        fault,
        &content,
    )
}

async fn find(service: &Service, person: &SignedIn, serial: &str) -> Result<Entry, Halt> {
    let search = Search {
        text: Some(serial.to_owned()),
        ..Search::default()
    };
    let found = service
        .manage()
        .certificates(person.account(), &search, PAGE)
        .await?;
    found
        .entries
        .into_iter()
        .find(|entry| entry.certificate.serial == serial)
        .ok_or_else(|| Problem::new(Code::NotFound, "there is no such certificate").into())
}

/// A deletion that was confirmed.
#[derive(Debug, Deserialize)]
pub struct Confirmed {
    #[serde(default)]
    sure: String,
}

/// Deletes one's own certificate at once; for another's, goes to the approval.
pub async fn delete(
    State(service): State<Service>,
    person: SignedIn,
    Path(serial): Path<String>,
    Submitted(confirmed): Submitted<Confirmed>,
) -> Answer {
    if confirmed.sure != "yes" {
        let entry = find(&service, &person, &serial).await?;
        let t = person.t;
        let fault = Fault::of_form(t.not_sure(), t.not_sure_remedy(), &["sure"]);
        return Ok(one(&person, &entry, Some(&fault)));
    }
    let deletion = service
        .manage()
        .delete_certificate(&person.operator, &serial, &person.request)
        .await?;
    Ok(match deletion {
        Deletion::Done(_) => redirect_with("/certificates", Flash::CertificateDeleted),
        Deletion::ToApprove(asked) => redirect(&operations::path(&asked.0.id)),
    })
}

/// A deletion without an approval.
#[derive(Debug, Deserialize)]
pub struct Emergency {
    password: SecretText,
    #[serde(default)]
    reason: String,
}

/// Deletes a certificate at once, with the password once more.
pub async fn break_glass(
    State(service): State<Service>,
    person: SignedIn,
    Path(serial): Path<String>,
    Submitted(emergency): Submitted<Emergency>,
) -> Answer {
    person.manages()?;
    let reason = emergency
        .reason
        .parse()
        .map_err(|_| Problem::new(Code::Malformed, "reason is not known"))?;
    let confirmed = service
        .sessions()
        .confirm(person.session()?, emergency.password, person.source)
        .await;
    if let Err(error) = confirmed {
        let entry = find(&service, &person, &serial).await?;
        let fault = Fault::of_password(person.t, error.into());
        return Ok(one(&person, &entry, Some(&fault)));
    }
    service
        .manage()
        .break_glass(
            &person.operator,
            &BreakGlass::Certificate(serial),
            reason,
            &person.request,
        )
        .await?;
    Ok(redirect_with("/certificates", Flash::CertificateDeleted))
}

/// The page of an installation.
pub async fn install(State(service): State<Service>, person: SignedIn) -> Answer {
    let t = person.t;
    let usage = service.manage().usage(person.account()).await?;
    let content = html! {
        (parts::heading(
            t.install_certificate(),
            t.install_lead(),
            &html! { a.button.plain href="/certificates" { (t.back()) } },
        ))
        @if is_full(&usage) {
            div.note.bad { p { (t.quota_full()) } }
        }
        div.card { (installer(t, &person.token(), &person.operator.mobile.masked())) }
    };
    Ok(person.page(t.install_certificate(), Here::Certificates, &content))
}

/// The computer a code is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodeWanted {
    computer: ComputerId,
    name: String,
    token_serial: Option<String>,
}

/// A code is on its way.
#[derive(Debug, Serialize)]
struct CodeSent {
    code_id: String,
    sent_to: String,
}

/// Sends an SMS code for an installation.
pub async fn send_code(
    State(service): State<Service>,
    person: SignedIn,
    Scripted(wanted): Scripted<CodeWanted>,
) -> Response {
    let sent = async {
        let name: Text =
            wanted.name.trim().parse().map_err(|error| {
                Problem::new(Code::Malformed, format!("computer name: {error}"))
            })?;
        let token_serial = wanted
            .token_serial
            .filter(|serial| !serial.is_empty())
            .map(|serial| serial.parse::<Text>())
            .transpose()
            .map_err(|error| Problem::new(Code::Malformed, format!("token serial: {error}")))?;
        let purpose = CodeUse::Install {
            computer: wanted.computer,
            computer_name: name.to_string(),
            token_serial: token_serial.map(|serial| serial.to_string()),
        };
        let sent = service
            .codes()
            .send_to(&person.operator, purpose, &person.request)
            .await?;
        Ok(CodeSent {
            code_id: sent.id,
            sent_to: sent.sent_to,
        })
    };
    person.to_script(sent.await)
}

/// A code that was read off the telephone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodeGiven {
    code_id: String,
    code: SecretText,
}

/// A ticket for the daemon.
#[derive(Debug, Serialize)]
struct TicketGiven {
    ticket: String,
    held: bool,
}

/// Exchanges a right code for a ticket.
pub async fn give_ticket(
    State(service): State<Service>,
    person: SignedIn,
    Scripted(given): Scripted<CodeGiven>,
) -> Response {
    let issued = service
        .enrolment()
        .ticket(&given.code_id, &given.code, &person.request)
        .await;
    person.to_script(issued.map_err(Problem::from).map(|issued| TicketGiven {
        ticket: issued.ticket.expose().to_owned(),
        held: issued.held,
    }))
}

/// A request for a certificate, from the daemon by way of the page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateWanted {
    ticket: SecretText,
    /// Base64 of DER.
    csr: String,
}

/// The certificate, and nothing above it: the daemon has the authority already.
#[derive(Debug, Serialize)]
struct CertificateIssued {
    /// Base64 of DER.
    certificates: Vec<String>,
}

/// Has the certificate issued.
pub async fn certify(
    State(service): State<Service>,
    person: SignedIn,
    Scripted(wanted): Scripted<CertificateWanted>,
) -> Response {
    let issued = async {
        let csr = from_base64(wanted.csr.as_bytes())
            .ok_or_else(|| Problem::new(Code::CsrInvalid, "the request is not base64"))?;
        let certificate = service
            .enrolment()
            .enrol(&wanted.ticket, &csr, &person.request)
            .await?;
        Ok(CertificateIssued {
            certificates: vec![base64(&certificate)],
        })
    };
    person.to_script(issued.await)
}

fn deletion(person: &SignedIn, entry: &Entry, fault: Option<&Fault>) -> Markup {
    let t = person.t;
    let sure = Standing::of("sure", None, fault);
    let own = entry.certificate.operator == person.operator.id;
    let path = format!("/certificates/{}/delete", entry.certificate.serial);
    if !own && !person.operator.role.manages() {
        return html! {};
    }
    html! {
        section.card {
            h2 { (t.delete_certificate()) }
            p { (if own { t.delete_own_lead() } else { t.delete_other_lead() }) }
            form.stack method="post" action=(path) {
                (person.token())
                label.choice {
                    input type="checkbox" name="sure" value="yes" required
                        aria-describedby=[&sure.described_by] aria-invalid=[sure.invalid]
                        autofocus[sure.begins];
                    span { (t.sure()) }
                }
                div.buttons { button.button.danger type="submit" { (t.delete()) } }
            }
        }
        @if person.operator.role.manages() {
            section.card {
                h2 { (t.break_glass()) }
                p { (t.delete_break_glass()) }
                form.stack method="post"
                    action={ "/certificates/" (entry.certificate.serial) "/emergency" } {
                    (person.token())
                    (parts::select(t, "reason", t.reason(), true, "key-compromise", &[
                        ("key-compromise", t.reason_lost()),
                        ("affiliation-changed", t.reason_left()),
                        ("cessation-of-operation", t.reason_unused()),
                        ("superseded", t.reason_replaced()),
                    ], None))
                    (Field {
                        name: "password",
                        label: t.login_password(),
                        kind: "password",
                        autocomplete: "current-password",
                        max: 256,
                        fault,
                        ..Field::default()
                    }.show(t))
                    div.buttons { button.button.danger type="submit" { (t.delete_now()) } }
                }
            }
        }
    }
}

/// The state of a certificate, as a badge.
fn state(t: Texts, entry: &Entry) -> Markup {
    match entry.state {
        "revoked" => badge(Tone::Bad, t.revoked()),
        "expired" => badge(Tone::Warn, t.expired()),
        _ => badge(Tone::Good, t.in_force()),
    }
}

/// A serial number, shortened to what people compare, linked to its page.
pub fn serial_link(serial: &str) -> Markup {
    let short: String = serial.chars().take(12).collect();
    html! { a.mono href={ "/certificates/" (serial) } title=(serial) { (short) "…" } }
}

/// The prompt, with Install greyed until the daemon on this computer is found.
pub fn prompt(t: Texts, installed: bool) -> Markup {
    html! {
        section.note.prompt.warn[!installed] data-install-gate {
            div.stack {
                @if installed {
                    h2 { (t.install_certificate()) }
                } @else {
                    h2 { (t.not_installed()) }
                    p { (t.not_installed_lead()) }
                }
                div #install-reason role="status" { (daemon::states(t)) }
            }
            form.buttons method="get" action="/certificates/install" {
                button.button.plain type="button" hidden data-look-again { (t.look_again()) }
                button.button type="submit" disabled aria-describedby="install-reason" data-install {
                    (t.install())
                }
            }
        }
    }
}

fn is_full(usage: &Usage) -> bool {
    usage.computers >= i64::from(usage.computers_limit)
        || usage.certificates >= i64::from(usage.certificates_limit)
}

/// How much of the quota is used, before it is hit; at the limit, what could go.
fn quota(t: Texts, usage: &Usage) -> Markup {
    let count = |used: i64| u64::try_from(used).unwrap_or(0);
    let computers = (count(usage.computers), u64::from(usage.computers_limit));
    let certificates = (
        count(usage.certificates),
        u64::from(usage.certificates_limit),
    );
    let near = |(used, limit): (u64, u64)| used * 10 >= limit * 8;
    html! {
        section.card aria-labelledby="quota" {
            h2 #quota { (t.quota()) }
            div.row {
                (parts::meter(&t.computers_of(computers.0, computers.1), computers.0, computers.1))
                (parts::meter(
                    &t.certificates_of(certificates.0, certificates.1),
                    certificates.0,
                    certificates.1,
                ))
            }
            @if is_full(usage) {
                div.note.bad { p { (t.quota_full()) } }
                h3 { (t.could_go()) }
                ul {
                    @for certificate in &usage.could_go {
                        li {
                            (serial_link(&certificate.serial)) " "
                            (certificate.operator) " · " (certificate.computer) " · "
                            (t.last_used()) " " (time_or_never(t, certificate.last_used_at))
                        }
                    }
                }
            } @else if near(computers) || near(certificates) {
                div.note.warn { p { (t.quota_near()) } }
            }
        }
    }
}

/// A table of certificates.
fn table(t: Texts, caption: &str, listed: &[Entry], me: &str) -> Markup {
    let rows: Vec<Vec<Markup>> = listed
        .iter()
        .map(|entry| {
            let certificate = &entry.certificate;
            vec![
                html! {
                    (certificate.operator)
                    @if certificate.operator.as_str() == me { span.sub { (t.yours()) } }
                },
                html! {
                    (entry.computer_name)
                    @if let Some(token) = &certificate.token_serial {
                        span.sub { (t.token()) " " (token) }
                    }
                },
                serial_link(&certificate.serial),
                state(t, entry),
                time(certificate.issued_at),
                time(certificate.not_after),
                time_or_never(t, certificate.last_used_at),
            ]
        })
        .collect();
    let columns = [
        t.operator(),
        t.computer(),
        t.serial(),
        t.state(),
        t.issued(),
        t.expires(),
        t.last_used(),
    ];
    parts::table(caption, &columns, &rows)
}

/// The search field over the list.
fn search_form(t: Texts, text: &str) -> Markup {
    html! {
        form.toolbar method="get" action="/certificates" role="search" {
            (Field {
                name: "q",
                label: t.search_certificates(),
                kind: "search",
                value: text,
                required: false,
                max: 100,
                ..Field::default()
            }.show(t))
            button.button.plain type="submit" { (t.search()) }
        }
    }
}

/// Every fact of one certificate.
fn facts(t: Texts, entry: &Entry) -> Markup {
    let certificate = &entry.certificate;
    let mut lines = vec![
        (t.state(), state(t, entry)),
        (t.operator(), html! { (certificate.operator) }),
        (
            t.computer(),
            html! { (entry.computer_name) " " span.muted.mono { (certificate.computer) } },
        ),
        (t.serial(), html! { span.mono { (certificate.serial) } }),
        (t.issued(), time(certificate.issued_at)),
        (t.expires(), time(certificate.not_after)),
        (t.last_used(), time_or_never(t, certificate.last_used_at)),
    ];
    if let Some(token) = &certificate.token_serial {
        lines.insert(3, (t.token_serial(), html! { span.mono { (token) } }));
    }
    let proof = entry.key_proof.as_ref();
    if let Some(key) = proof.and_then(|proof| proof.attested.as_ref()) {
        let device = &key.device;
        lines.push((
            t.key_attested(),
            html! {
                (key.maker)
                @if let Some(serial) = &device.serial { " · " (t.device_serial(serial)) }
                @if let Some(firmware) = &device.firmware { " · " (t.firmware(firmware)) }
            },
        ));
    }
    if let Some(waived) = proof.and_then(|proof| proof.waived.as_ref()) {
        lines.push((t.key_not_proven(), html! { (waived) }));
    }
    if let Some((at, reason)) = &certificate.revoked {
        lines.push((
            t.revoked(),
            html! { (time(*at)) " · " (t.revoked_because(t.revocation_reason(reason))) },
        ));
    }
    html! { section.card { (parts::facts(&lines)) } }
}

/// The installation, step by step. Everything in it that people read is here, in their language;
/// the script only says which part is shown.
fn installer(t: Texts, csrf: &Markup, mobile: &str) -> Markup {
    html! {
        ol.steps data-installer {
            li data-step="daemon" data-state="now" {
                h2 { (t.step_daemon()) }
                div role="status" { (daemon::states(t)) }
                div.buttons { button.button.plain type="button" data-look-again { (t.look_again()) } }
            }
            li data-step="token" {
                h2 { (t.step_token()) }
                form.stack data-token-form hidden {
                    (csrf)
                    fieldset {
                        legend { (t.choose_token()) }
                        p.hint.muted.small { (t.choose_token_hint()) }
                        div data-tokens {}
                        p.note.warn hidden data-no-tokens { (parts::marked(t.no_tokens())) }
                        p.note.warn hidden data-none-usable { (t.no_usable_token()) }
                    }
                    (Field {
                        name: "computer-name",
                        label: t.computer_name(),
                        hint: Some(t.computer_name_hint()),
                        max: 120,
                        ..Field::default()
                    }.show(t))
                    (parts::select(t, "key-type", t.key_type(), true, "p256", &[
                        ("p256", "ECDSA P-256"),
                        ("p384", "ECDSA P-384"),
                        ("rsa2048", "RSA 2048"),
                        ("rsa3072", "RSA 3072"),
                    ], None))
                    p.muted.small { (t.code_goes_to(mobile)) }
                    div.buttons { button.button type="submit" { (t.send_code()) } }
                }
                template data-token-choice {
                    label.choice {
                        input type="radio" name="token" required;
                        span {
                            strong data-token-label {}
                            span.sub.muted.small data-token-facts {}
                            (daemon::token_states(t))
                        }
                    }
                }
            }
            li data-step="code" {
                h2 { (t.step_code()) }
                form.stack data-code-form hidden {
                    (csrf)
                    p { (t.code_sent_to()) " " strong data-sent-to {} }
                    (parts::code_field(t, None))
                    div.buttons { button.button type="submit" { (t.confirm_install()) } }
                }
            }
            li data-step="install" {
                h2 { (t.step_install()) }
                p.hidden-text role="status" data-progress-said {}
                div data-progress hidden {
                    ol.progress {
                        li data-part="ticket" { (t.progress_ticket()) }
                        li data-part="key" { (t.progress_key()) }
                        li data-part="certificate" { (t.progress_certificate()) }
                        li data-part="write" { (t.progress_write()) }
                    }
                }
                div.note hidden data-held role="status" {
                    p { strong { (t.held_title()) } }
                    p { (t.held_lead()) }
                }
                div.note.good hidden data-installed role="status" tabindex="-1" {
                    p { strong { (t.installed_title()) } }
                    p { (t.installed_lead()) }
                    p { a.button href="/certificates" { (t.to_certificates()) } }
                }
            }
        }
        div data-failure role="alert" { (daemon::failures(t)) }
    }
}
