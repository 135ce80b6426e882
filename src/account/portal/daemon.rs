//! What a page says about the daemon on the visitor's computer.
//!
//! Whether the daemon is there, only the visitor's browser can tell. Each thing it can find is
//! written into the page beforehand, in the visitor's language and with its remedy, hidden; the
//! script shows the one that holds. So no text is made by a script, and without one the page
//! says that a script is needed.

use maud::{Markup, html};

use super::i18n::Texts;

/// What can stand in the way: the name scripts use, what it is, what to do.
fn problems(t: Texts) -> [(&'static str, &'static str, &'static str); 15] {
    [
        (
            "not-running",
            t.daemon_not_running(),
            t.daemon_not_running_remedy(),
        ),
        (
            "untrusted",
            t.daemon_untrusted(),
            t.daemon_untrusted_remedy(),
        ),
        ("denied", t.daemon_denied(), t.daemon_denied_remedy()),
        (
            "no-client-certificate",
            t.daemon_no_certificate(),
            t.daemon_no_certificate_remedy(),
        ),
        ("origin", t.daemon_origin(), t.daemon_origin_remedy()),
        ("busy", t.daemon_busy(), t.daemon_busy_remedy()),
        ("refused", t.daemon_refused(), t.daemon_refused_remedy()),
        (
            "cancelled",
            t.daemon_cancelled(),
            t.daemon_cancelled_remedy(),
        ),
        ("pin", t.daemon_pin(), t.daemon_pin_remedy()),
        (
            "no-operating-certificate",
            t.daemon_no_operating(),
            t.daemon_no_operating_remedy(),
        ),
        ("nobody", t.daemon_nobody(), t.daemon_nobody_remedy()),
        (
            "expired",
            t.error_challenge_expired(),
            t.error_challenge_expired_remedy(),
        ),
        ("service", t.service_problem(), ""),
        (
            "connection",
            t.connection_problem(),
            t.connection_problem_remedy(),
        ),
        ("other", t.daemon_other(), t.daemon_other_remedy()),
    ]
}

/// The state of the daemon: being looked for, found, or one of the problems.
pub fn states(t: Texts) -> Markup {
    html! {
        div data-daemon-states {
            noscript { p { (t.without_script()) } }
            p.muted data-show="looking" hidden { (t.looking_for_daemon()) }
            p data-show="found" hidden { (t.daemon_found()) }
            (entries(t))
        }
    }
}

/// What went wrong later on: one of the problems, or what the service said.
pub fn failures(t: Texts) -> Markup {
    html! { div.note.bad data-failures hidden { (entries(t)) } }
}

fn entries(t: Texts) -> Markup {
    html! {
        @for (name, what, remedy) in problems(t) {
            div.stack data-show=(name) hidden {
                p { strong { (what) } }
                @if !remedy.is_empty() { p { (marked(remedy)) } }
            }
        }
        p.small hidden data-detail {}
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
