//! Pieces that pages are made of: headings, fields, badges, tables, times.

use jiff::Timestamp;
use maud::{Markup, Render, html};

use super::i18n::Texts;
use super::problems::{Begins, Fault, NOTE};
use crate::base::encoding::{URI_PATH, percent};

/// The colour of a badge or note; the words beside it say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    Plain,
    /// As it should be.
    Good,
    /// Somebody should look.
    Warn,
    /// Something is wrong.
    Bad,
}

impl Render for Tone {
    fn render_to(&self, out: &mut String) {
        out.push_str(match self {
            Self::Plain => "plain",
            Self::Good => "good",
            Self::Warn => "warn",
            Self::Bad => "bad",
        });
    }
}

/// Text whose parts between backquotes are commands and keys.
pub fn marked(text: &str) -> Markup {
    html! {
        @for (index, part) in text.split('`').enumerate() {
            @if index % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

/// The heading of a page, a sentence about it, and what can be begun from it.
pub fn heading(title: &str, lead: &str, actions: &Markup) -> Markup {
    html! {
        div.heading-row {
            div {
                h1 { (title) }
                @if !lead.is_empty() { p.lead { (marked(lead)) } }
            }
            @if !actions.0.is_empty() { div.buttons { (actions) } }
        }
    }
}

/// A link that looks like a button.
pub fn button_link(path: &str, text: &str) -> Markup {
    html! { a.button href=(path) { (text) } }
}

/// A state.
pub fn badge(tone: Tone, text: &str) -> Markup {
    html! { span class={ "badge " (tone) } { (text) } }
}

/// A time, to the minute, UTC; the tooltip has the seconds.
pub fn time(at: Timestamp) -> Markup {
    html! {
        time datetime=(at.to_string()) title=(at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()) {
            (at.strftime("%Y-%m-%d %H:%M").to_string())
        }
    }
}

/// A time that may not have come.
pub fn time_or_never(t: Texts, at: Option<Timestamp>) -> Markup {
    match at {
        Some(at) => time(at),
        None => html! { span.muted { (t.never()) } },
    }
}

/// A text field and all around it.
pub struct Field<'f> {
    /// The name it is sent under; its id as well.
    pub name: &'f str,
    /// What it is called.
    pub label: &'f str,
    /// What is to be written there.
    pub hint: Option<&'f str>,
    /// The HTML type.
    pub kind: &'f str,
    /// What stands in it.
    pub value: &'f str,
    /// Whether it must be filled in.
    pub required: bool,
    /// The `autocomplete` token (WCAG 2.2 criterion 1.3.5).
    pub autocomplete: &'f str,
    /// The longest value, in characters.
    pub max: u32,
    /// What is wrong with the form, if it was sent before.
    pub fault: Option<&'f Fault>,
}

impl Default for Field<'_> {
    fn default() -> Self {
        Self {
            name: "",
            label: "",
            hint: None,
            kind: "text",
            value: "",
            required: true,
            autocomplete: "off",
            max: 200,
            fault: None,
        }
    }
}

impl Field<'_> {
    /// The field in the language of `t`.
    pub fn show(&self, t: Texts) -> Markup {
        let hint = self.hint.map(|_| format!("{}-hint", self.name));
        let standing = Standing::of(self.name, hint.as_deref(), self.fault);
        html! {
            div.field {
                (label(t, self.name, self.label, self.required))
                @if let Some(text) = self.hint { p.hint id=[&hint] { (text) } }
                input id=(self.name) name=(self.name) type=(self.kind) value=(self.value)
                    required[self.required] autocomplete=(self.autocomplete) maxlength=(self.max)
                    aria-describedby=[&standing.described_by] aria-invalid=[standing.invalid]
                    autofocus[standing.begins] autocapitalize="none" spellcheck="false";
            }
        }
    }
}

/// Whether a field is wrong, and what describes it (WCAG 2.2 criterion 3.3.1).
pub struct Standing {
    /// The ids of its hint and of the problem it has.
    pub described_by: Option<String>,
    /// Whether it has one.
    pub invalid: Option<&'static str>,
    /// Whether to begin there.
    pub begins: bool,
}

impl Standing {
    /// Of the field `name`, whose hint has the id `hint`.
    pub fn of(name: &str, hint: Option<&str>, fault: Option<&Fault>) -> Self {
        let wrong = fault.and_then(|fault| fault.concerns(name));
        let ids: Vec<&str> = wrong.map(|_| NOTE).into_iter().chain(hint).collect();
        Self {
            described_by: (!ids.is_empty()).then(|| ids.join(" ")),
            invalid: wrong.map(|_| "true"),
            begins: wrong == Some(Begins::Here),
        }
    }
}

/// The label of the field `name`.
pub fn label(t: Texts, name: &str, text: &str, required: bool) -> Markup {
    html! {
        label for=(name) {
            (text)
            @if required {
                " " span.mark aria-hidden="true" { "*" }
                span.hidden-text { " (" (t.required()) ")" }
            }
        }
    }
}

/// A choice among few.
pub fn select(
    t: Texts,
    name: &str,
    text: &str,
    required: bool,
    chosen: &str,
    options: &[(&str, &str)],
    fault: Option<&Fault>,
) -> Markup {
    let standing = Standing::of(name, None, fault);
    html! {
        div.field {
            (label(t, name, text, required))
            select id=(name) name=(name) aria-describedby=[&standing.described_by]
                aria-invalid=[standing.invalid] autofocus[standing.begins] {
                @for (value, shown) in options {
                    option value=(value) selected[*value == chosen] { (shown) }
                }
            }
        }
    }
}

/// The six digits of an SMS code.
pub fn code_field(t: Texts, fault: Option<&Fault>) -> Markup {
    let standing = Standing::of("code", Some("code-hint"), fault);
    html! {
        div.field {
            (label(t, "code", t.code_label(), true))
            p.hint #code-hint { (t.code_hint()) }
            input.code #code name="code" type="text" inputmode="numeric" pattern="[0-9]{6}"
                maxlength="6" required autocomplete="one-time-code"
                aria-describedby=[&standing.described_by] aria-invalid=[standing.invalid]
                autofocus[standing.begins];
        }
    }
}

/// Label and value, one under the other.
pub fn facts(lines: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts {
            @for (label, value) in lines {
                dt { (label) }
                dd { (value) }
            }
        }
    }
}

/// A table: labelled columns, and rows of as many cells. On a narrow screen each row becomes a
/// card whose lines carry the labels, so the roles are said again: CSS takes them away.
pub fn table(caption: &str, columns: &[&str], rows: &[Vec<Markup>]) -> Markup {
    html! {
        div.card.flush {
            table.table role="table" {
                caption.hidden-text { (caption) }
                thead role="rowgroup" {
                    tr role="row" {
                        @for column in columns {
                            th scope="col" role="columnheader" { (column) }
                        }
                    }
                }
                tbody role="rowgroup" {
                    @for row in rows {
                        tr role="row" {
                            @for (column, cell) in columns.iter().zip(row) {
                                td role="cell" data-label=(column) { div.cell { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A path with query parameters, percent-encoded; empty values are left out.
pub fn query(path: &str, parameters: &[(&str, &str)]) -> String {
    let mut out = path.to_owned();
    let mut separator = '?';
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        out.push(separator);
        out.push_str(name);
        out.push('=');
        out.push_str(&percent(value.as_bytes(), URI_PATH));
        separator = '&';
    }
    out
}

/// The way to the next page of a list, if there is one.
pub fn older(t: Texts, path: Option<&str>) -> Markup {
    html! {
        @if let Some(path) = path {
            p.pages { a.button.plain href=(path) rel="next" { (t.older()) } }
        }
    }
}

/// Nothing to list.
pub fn empty(text: &str) -> Markup {
    html! { div.card { p.muted { (text) } } }
}

/// How much of a limit is used.
pub fn meter(text: &str, used: u64, limit: u64) -> Markup {
    let tone = if used >= limit {
        Tone::Bad
    } else if used * 10 >= limit * 8 {
        Tone::Warn
    } else {
        Tone::Plain
    };
    html! {
        div {
            span { (text) }
            progress class={ "meter " (tone) } max=(limit) value=(used.min(limit)) aria-label=(text) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::portal::i18n::Language;

    #[test]
    fn values_are_escaped_wherever_they_stand() {
        let hostile = "\"><script>alert(1)</script>";
        let field = Field {
            name: "x",
            label: hostile,
            hint: Some(hostile),
            value: hostile,
            ..Field::default()
        };
        let shown = field.show(Texts(Language::English)).0;
        let listed = table(hostile, &[hostile], &[vec![html! { (hostile) }]]).0;
        for text in [shown, listed] {
            assert!(!text.contains("<script"), "{text}");
            assert!(text.contains("&lt;script&gt;"), "{text}");
        }
    }
}
