//! What a page says about the daemon on the visitor's computer.
//!
//! Whether the daemon is there, only the visitor's browser can tell. Each thing it can find is
//! written into the page beforehand, in the visitor's language and with its remedy, hidden; the
//! script shows the one that holds. So no text is made by a script, and without one the page
//! says that a script is needed.

use maud::{Markup, html};

use super::i18n::Texts;
use super::parts::marked;

/// What can stand in the way: the name scripts use, what it is, what to do.
fn problems(t: Texts) -> [(&'static str, &'static str, &'static str); 20] {
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
        (
            "unanswered",
            t.daemon_unanswered(),
            t.daemon_unanswered_remedy(),
        ),
        ("stranger", t.daemon_stranger(), t.daemon_stranger_remedy()),
        ("absent", t.daemon_absent(), t.daemon_absent_remedy()),
        ("pin", t.daemon_pin(), t.daemon_pin_remedy()),
        ("locked", t.daemon_locked(), t.daemon_locked_remedy()),
        ("last-try", t.daemon_last_try(), t.daemon_last_try_remedy()),
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
            noscript { p { (marked(t.without_script())) } }
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
        p.small hidden lang="en" data-english {}
    }
}

/// What stands beside a token that is not ready; the script shows the one that holds.
pub fn token_states(t: Texts) -> Markup {
    html! {
        @for (name, text) in [
            ("absent", t.token_absent()),
            ("locked-out", t.token_locked_out()),
            ("pin-needed", t.token_pin_needed()),
            ("final-try", t.token_final_try()),
            ("released", t.token_released()),
            ("degraded", t.token_unusable()),
            ("respawning", t.token_respawning()),
            ("down", t.token_unusable()),
        ] {
            span.sub.small hidden data-token-state=(name) { (marked(text)) }
        }
    }
}
