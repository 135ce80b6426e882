//! API security: the super administrator sets secrets and says which computers get them; the other
//! administrators see how things stand, and approve where the account wants that.
//!
//! A secret goes in and never comes out: no page shows one, not even the page that refuses it.

use axum::extract::{Query, State};
use maud::{Markup, html};
use serde::Deserialize;

use crate::account::portal::i18n::Texts;
use crate::account::portal::layout::Here;
use crate::account::portal::parts::{self, Field, Standing, Tone, badge, time};
use crate::account::portal::problems::Fault;
use crate::account::portal::web::{
    Answer, Flash, Halt, SignedIn, Submitted, redirect, redirect_with,
};
use crate::account::secrets::{Arrival, KindView, NewSecret, Overview, RecipientView, Set};
use crate::account::service::Service;
use crate::account::store::accounts::Role;
use crate::account::store::secrets::RecipientState;
use crate::api::extract::Path;
use crate::api::problem::{Code, Problem};
use crate::base::secret::SecretText;
use crate::statement::SecretKind;

/// Overlaps to choose from, in seconds.
const OVERLAPS: [&str; 5] = ["86400", "0", "3600", "259200", "604800"];

/// How things stand.
pub async fn list(State(service): State<Service>, person: SignedIn) -> Answer {
    let t = person.t;
    let overview = service.secrets().overview(&person.operator).await?;
    let content = html! {
        (parts::heading(t.api_security(), t.api_security_lead(), &html! {}))
        @for kind in &overview.kinds { (card(&person, kind)) }
        (computers(&person, &overview))
    };
    Ok(person.page(t.api_security(), Here::Security, &content))
}

fn is_super(person: &SignedIn) -> bool {
    person.operator.role == Role::SuperAdministrator
}

fn refuse_others(person: &SignedIn) -> Result<(), Problem> {
    if is_super(person) {
        Ok(())
    } else {
        Err(Problem::new(
            Code::Forbidden,
            "only the super administrator may do that",
        ))
    }
}

fn title(t: Texts, kind: SecretKind) -> &'static str {
    match kind {
        SecretKind::Api => t.api_secret(),
        SecretKind::ApiV3 => t.apiv3_secret(),
    }
}

fn lead(t: Texts, kind: SecretKind) -> &'static str {
    match kind {
        SecretKind::Api => t.api_secret_lead(),
        SecretKind::ApiV3 => t.apiv3_secret_lead(),
    }
}

fn path(kind: SecretKind) -> String {
    format!("/security/{kind}")
}

/// One kind of secret.
fn card(person: &SignedIn, view: &KindView) -> Markup {
    let t = person.t;
    let state = match &view.current {
        Some(_) => badge(Tone::Good, t.secret_is_set()),
        None => badge(Tone::Warn, t.secret_is_not_set()),
    };
    let mut lines = vec![(t.state(), state)];
    if let Some(current) = &view.current {
        lines.push((t.set_by(), html! { (current.set_by) }));
        lines.push((
            t.set_at(),
            time(current.effective_at.unwrap_or(current.set_at)),
        ));
        let version = current.version.unwrap_or_default();
        lines.push((t.secret_version(), html! { (version) }));
    }
    if let Some(end) = view.before.as_ref().and_then(|before| before.ends_at) {
        lines.push((t.old_read_until(), time(end)));
    }
    html! {
        section.card aria-labelledby=(view.kind.as_str()) {
            h2 id=(view.kind.as_str()) { (title(t, view.kind)) }
            p { (lead(t, view.kind)) }
            (parts::facts(&lines))
            @if view.waiting.is_some() { (waiting(person, view)) }
            @if is_super(person) {
                div.buttons {
                    (parts::button_link(
                        &path(view.kind),
                        match view.kind {
                            SecretKind::Api => t.set_api_secret(),
                            SecretKind::ApiV3 => t.set_apiv3_secret(),
                        },
                    ))
                }
            }
        }
    }
}

/// A secret that waits for approvals.
fn waiting(person: &SignedIn, view: &KindView) -> Markup {
    let t = person.t;
    let Some(secret) = &view.waiting else {
        return html! {};
    };
    html! {
        div.note.warn {
            p { (t.secret_waits(&secret.set_by)) }
            @if let Some(end) = secret.ends_at {
                p { (t.secret_waits_until()) " " (time(end)) }
            }
        }
        div.buttons {
            @if secret.set_by != person.operator.id {
                form method="post" action={ (path(view.kind)) "/approve" } {
                    (person.token())
                    button.button type="submit" { (t.approve()) }
                }
            }
            form method="post" action={ (path(view.kind)) "/withdraw" } {
                (person.token())
                button.button.danger type="submit" { (t.withdraw_secret()) }
            }
        }
    }
}

/// Computers that ask for secrets, and how far they have come.
fn computers(person: &SignedIn, overview: &Overview) -> Markup {
    let t = person.t;
    let rows: Vec<Vec<Markup>> = overview
        .recipients
        .iter()
        .map(|view| {
            let recipient = &view.recipient;
            vec![
                html! {
                    a href=(recipient_path(view)) { (view.computer_name) }
                    span.sub.mono { (recipient.computer) }
                },
                html! { span.mono { (recipient.merchant) } },
                standing(t, recipient.state),
                arrival(t, view.api),
                arrival(t, view.apiv3),
                time(recipient.seen_at),
            ]
        })
        .collect();
    let columns = [
        t.computer(),
        t.merchant_number(),
        t.state(),
        t.api_secret(),
        t.apiv3_secret(),
        t.last_heard_of(),
    ];
    html! {
        section.stack aria-labelledby="computers" {
            h2 #computers { (t.secret_computers()) }
            p { (parts::marked(t.secret_computers_lead())) }
            @if rows.is_empty() {
                (parts::empty(t.no_secret_computers()))
            } @else {
                (parts::table(t.secret_computers(), &columns, &rows))
            }
        }
    }
}

fn standing(t: Texts, state: RecipientState) -> Markup {
    match state {
        RecipientState::Waiting => badge(Tone::Warn, t.recipient_waiting()),
        RecipientState::Active => badge(Tone::Good, t.recipient_active()),
        RecipientState::Ended => badge(Tone::Bad, t.recipient_ended()),
    }
}

fn arrival(t: Texts, arrival: Arrival) -> Markup {
    match arrival {
        Arrival::None => html! { span.muted { (t.secret_is_not_set()) } },
        Arrival::Withheld => badge(Tone::Plain, t.arrival_withheld()),
        Arrival::Pending => badge(Tone::Warn, t.arrival_pending()),
        Arrival::Sealed { .. } => badge(Tone::Warn, t.arrival_sealed()),
        Arrival::Held => badge(Tone::Good, t.arrival_held()),
    }
}

/// Which code was sent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Sent {
    code: String,
}

/// The page on which a secret is set: first the code, then the secret.
pub async fn draft(
    person: SignedIn,
    Path(kind): Path<SecretKind>,
    Query(sent): Query<Sent>,
) -> Answer {
    refuse_others(&person)?;
    Ok(form(&person, kind, &sent.code, None))
}

fn form(
    person: &SignedIn,
    kind: SecretKind,
    code_id: &str,
    fault: Option<&Fault>,
) -> axum::response::Response {
    let t = person.t;
    let heading = match kind {
        SecretKind::Api => t.set_api_secret(),
        SecretKind::ApiV3 => t.set_apiv3_secret(),
    };
    let content = html! {
        (parts::heading(heading, lead(t, kind), &html! {
            a.button.plain href="/security" { (t.back()) }
        }))
        @if code_id.is_empty() {
            section.card aria-labelledby="step" {
                h2 #step { (t.step_code()) }
                p { (t.code_goes_to(person.operator.mobile.masked())) }
                form method="post" action={ (path(kind)) "/code" } {
                    (person.token())
                    button.button type="submit" { (t.send_code()) }
                }
            }
        } @else {
            section.card aria-labelledby="step" {
                h2 #step { (t.new_secret()) }
                p { (t.code_sent_to()) " " span.mono { (person.operator.mobile.masked()) } "." }
                (secret_form(person, kind, code_id, fault))
            }
        }
    };
    person.answer(heading, Here::Security, fault, &content)
}

fn secret_form(
    person: &SignedIn,
    kind: SecretKind,
    code_id: &str,
    fault: Option<&Fault>,
) -> Markup {
    let t = person.t;
    let names = [
        t.overlap_day(),
        t.overlap_none(),
        t.overlap_hour(),
        t.overlap_days(),
        t.overlap_week(),
    ];
    let overlaps: Vec<(&str, &str)> = OVERLAPS.into_iter().zip(names).collect();
    html! {
        p.muted { (t.required_note()) }
        form.stack method="post" action=(path(kind)) autocomplete="off" {
            (person.token())
            input type="hidden" name="code_id" value=(code_id);
            (secret_field(t, "secret", t.new_secret(), Some(t.secret_hint()), fault))
            (secret_field(t, "again", t.secret_again(), None, fault))
            (parts::select(t, "overlap", t.overlap(), true, OVERLAPS[0], &overlaps, fault))
            (parts::code_field(t, fault))
            (Field {
                name: "password",
                label: t.login_password(),
                kind: "password",
                autocomplete: "current-password",
                max: 256,
                fault,
                ..Field::default()
            }.show(t))
            div.note.warn { p { (t.secret_once()) } }
            div.buttons { button.button type="submit" { (t.save_secret()) } }
        }
    }
}

/// A field for a secret. It has no longest value: a secret that is cut is another secret.
fn secret_field(
    t: Texts,
    name: &str,
    text: &str,
    hint: Option<&str>,
    fault: Option<&Fault>,
) -> Markup {
    let id = hint.map(|_| format!("{name}-hint"));
    let standing = Standing::of(name, id.as_deref(), fault);
    html! {
        div.field {
            (parts::label(t, name, text, true))
            @if let Some(hint) = hint { p.hint id=[&id] { (hint) } }
            input.mono id=(name) name=(name) type="password" required autocomplete="off"
                pattern="[0-9A-Za-z]{32}" title=(t.secret_hint())
                aria-describedby=[&standing.described_by] aria-invalid=[standing.invalid]
                autofocus[standing.begins] autocapitalize="none" spellcheck="false";
        }
    }
}

/// An empty form.
#[derive(Debug, Deserialize)]
pub struct Nothing {}

/// Sends the code.
pub async fn send_code(
    State(service): State<Service>,
    person: SignedIn,
    Path(kind): Path<SecretKind>,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    refuse_others(&person)?;
    let sent = service
        .secrets()
        .send_code(&person.operator, kind, &person.request)
        .await;
    match sent {
        Ok(sent) => Ok(redirect(&parts::query(&path(kind), &[("code", &sent.id)]))),
        Err(error) => {
            let fault = Problem::from(error).into();
            Ok(form(&person, kind, "", Some(&fault)))
        }
    }
}

/// A secret as it was typed.
#[derive(Debug, Deserialize)]
pub struct Typed {
    code_id: String,
    secret: SecretText,
    again: SecretText,
    overlap: i64,
    code: SecretText,
    password: SecretText,
}

/// Sets a secret.
pub async fn set(
    State(service): State<Service>,
    person: SignedIn,
    Path(kind): Path<SecretKind>,
    Submitted(typed): Submitted<Typed>,
) -> Answer {
    refuse_others(&person)?;
    let code_id = typed.code_id.clone();
    match set_typed(&service, &person, kind, typed).await {
        Ok(Set::Current { .. }) => Ok(redirect_with("/security", Flash::SecretSet)),
        Ok(Set::Waits { .. }) => Ok(redirect_with("/security", Flash::SecretWaits)),
        Err(fault) => {
            // A code that is of no more use is asked for anew.
            let code = fault.problem().code();
            let over = matches!(code, Code::SmsCodeExpired | Code::SmsCodeSpent);
            let code_id = if over { "" } else { code_id.as_str() };
            Ok(form(&person, kind, code_id, Some(&fault)))
        }
    }
}

async fn set_typed(
    service: &Service,
    person: &SignedIn,
    kind: SecretKind,
    typed: Typed,
) -> Result<Set, Fault> {
    let t = person.t;
    if typed.secret.expose() != typed.again.expose() {
        let remedy = t.secrets_differ_remedy();
        return Err(Fault::of_form(
            t.secrets_differ(),
            remedy,
            &["secret", "again"],
        ));
    }
    let new = NewSecret {
        kind,
        secret: typed.secret,
        overlap_seconds: typed.overlap,
    };
    let secrets = service.secrets();
    let refused = |problem: Problem| Fault::from(problem);
    secrets
        .check(&person.operator, &new)
        .map_err(|error| refused(error.into()))?;
    service
        .sessions()
        .confirm(person.session()?, typed.password, person.source)
        .await
        .map_err(|error| Fault::of_password(t, error.into()))?;
    let code = typed.code;
    let set = secrets
        .set(
            &person.operator,
            new,
            &typed.code_id,
            &code,
            &person.request,
        )
        .await;
    set.map_err(|error| refused(error.into()))
}

/// Goes to the approval of a secret that waits.
pub async fn approve(
    State(service): State<Service>,
    person: SignedIn,
    Path(kind): Path<SecretKind>,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    let (operation, _) = service
        .secrets()
        .ask_administrators(&person.operator, kind, &person.request)
        .await?;
    Ok(redirect(&super::operations::path(&operation.id)))
}

/// Takes back a secret that waits.
pub async fn withdraw(
    State(service): State<Service>,
    person: SignedIn,
    Path(kind): Path<SecretKind>,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    service
        .secrets()
        .withdraw(&person.operator, kind, &person.request)
        .await?;
    Ok(redirect_with("/security", Flash::SecretWithdrawn))
}

fn recipient_path(view: &RecipientView) -> String {
    format!("/security/computers/{}", view.recipient.kid)
}

async fn find(service: &Service, person: &SignedIn, key: &str) -> Result<RecipientView, Halt> {
    let overview = service.secrets().overview(&person.operator).await?;
    overview
        .recipients
        .into_iter()
        .find(|view| view.recipient.kid == key)
        .ok_or_else(|| Problem::new(Code::NotFound, "there is no such computer").into())
}

/// One computer that asks for secrets.
pub async fn computer(
    State(service): State<Service>,
    person: SignedIn,
    Path(key): Path<String>,
) -> Answer {
    one(&service, &person, &key, None).await
}

async fn one(service: &Service, person: &SignedIn, key: &str, fault: Option<&Fault>) -> Answer {
    let t = person.t;
    let view = find(service, person, key).await?;
    let recipient = &view.recipient;
    let mut lines = vec![
        (t.state(), standing(t, recipient.state)),
        (
            t.computer(),
            html! { (view.computer_name) span.sub.mono { (recipient.computer) } },
        ),
        (
            t.merchant_number(),
            html! { span.mono { (recipient.merchant) } },
        ),
        (t.vouched_for_by(), html! { (recipient.operator) }),
        (t.key_thumbprint(), html! { span.mono { (recipient.kid) } }),
        (t.requested_at(), time(recipient.asked_at)),
        (t.last_heard_of(), time(recipient.seen_at)),
        (t.api_secret(), arrival(t, view.api)),
        (t.apiv3_secret(), arrival(t, view.apiv3)),
    ];
    if let Some((at, Some(by))) = &recipient.decided {
        lines.push((t.decide(), html! { (time(*at)) " · " (by) }));
    }
    let here = recipient_path(&view);
    let content = html! {
        (parts::heading(&view.computer_name, t.secret_computer_lead(), &html! {
            a.button.plain href="/security" { (t.back()) }
        }))
        section.card { (parts::facts(&lines)) }
        @if is_super(person) {
            @if recipient.state != RecipientState::Active {
                section.card aria-labelledby="admit" {
                    h2 #admit { (t.admit_computer()) }
                    p { (parts::marked(t.admit_computer_lead())) }
                    form.stack method="post" action={ (here) "/admit" } {
                        (person.token())
                        (Field {
                            name: "password",
                            label: t.login_password(),
                            kind: "password",
                            autocomplete: "current-password",
                            max: 256,
                            fault,
                            ..Field::default()
                        }.show(t))
                        div.buttons { button.button type="submit" { (t.admit_computer()) } }
                    }
                }
            }
            @if recipient.state != RecipientState::Ended {
                section.card aria-labelledby="dismiss" {
                    h2 #dismiss { (t.dismiss_computer()) }
                    p { (t.dismiss_computer_lead()) }
                    form method="post" action={ (here) "/dismiss" } {
                        (person.token())
                        button.button.danger type="submit" { (t.dismiss_computer()) }
                    }
                }
            }
        }
    };
    Ok(person.answer(&view.computer_name, Here::Security, fault, &content))
}

/// The password, once more.
#[derive(Debug, Deserialize)]
pub struct Confirmed {
    password: SecretText,
}

/// Lets a computer have the secrets.
pub async fn admit(
    State(service): State<Service>,
    person: SignedIn,
    Path(key): Path<String>,
    Submitted(confirmed): Submitted<Confirmed>,
) -> Answer {
    refuse_others(&person)?;
    let session = person.session()?;
    let confirmed = service
        .sessions()
        .confirm(session, confirmed.password, person.source)
        .await;
    if let Err(error) = confirmed {
        let fault = Fault::of_password(person.t, error.into());
        return one(&service, &person, &key, Some(&fault)).await;
    }
    service
        .secrets()
        .admit(&person.operator, &key, &person.request)
        .await?;
    Ok(redirect_with("/security", Flash::ComputerAdmitted))
}

/// Ends a computer's key.
pub async fn dismiss(
    State(service): State<Service>,
    person: SignedIn,
    Path(key): Path<String>,
    Submitted(Nothing {}): Submitted<Nothing>,
) -> Answer {
    refuse_others(&person)?;
    service
        .secrets()
        .dismiss(&person.operator, &key, &person.request)
        .await?;
    Ok(redirect_with("/security", Flash::ComputerDismissed))
}
