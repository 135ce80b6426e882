//! The frame of every page: bar, navigation, what was just done, foot.

use maud::{DOCTYPE, Markup, html};

use super::assets;
use super::i18n::Texts;
use super::parts::{self, Tone};
use crate::account::store::accounts::Role;

/// Where a page stands in the navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Here {
    /// Outside it.
    Nowhere,
    /// The home page.
    Home,
    /// Sensitive operations.
    Operations,
    /// Operating certificates.
    Certificates,
    /// Mobile number and recovery.
    Number,
    /// API secrets.
    Security,
    /// Requests that wait for a representative.
    Requests,
    /// Notices.
    Notices,
    /// The audit trail.
    Trail,
    /// Operators and computers.
    Operators,
    /// Installations that wait.
    Installations,
}

/// Who a page is shown to.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The operator's or representative's id.
    pub name: String,
    /// The account; none for a representative.
    pub account: Option<String>,
    /// The role in it.
    pub role: Option<Role>,
    /// Notices this person has not read.
    pub unread: usize,
}

impl Identity {
    /// Whether this is an administrator of an account.
    pub fn manages(&self) -> bool {
        matches!(
            self.role,
            Some(Role::Administrator | Role::SuperAdministrator)
        )
    }
}

/// What surrounds a page's own content.
pub struct Frame<'f> {
    /// The language.
    pub t: Texts,
    /// The token that forms carry.
    pub csrf: &'f str,
    /// Who sees it, if anybody is logged in.
    pub identity: Option<&'f Identity>,
    /// The path to come back to after the language was switched.
    pub path: &'f str,
    /// What the page says first, about what was just done.
    pub flash: Option<(Tone, &'static str)>,
    /// The address of the daemon's browser door.
    pub daemon: &'f str,
}

impl Frame<'_> {
    /// A whole page.
    pub fn page(&self, title: &str, here: Here, content: &Markup) -> Markup {
        let t = self.t;
        html! {
            (DOCTYPE)
            html lang=(t.tag()) {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (title) " · " (t.brand()) }
                    link rel="icon" type="image/svg+xml" href=(assets::path("icon.svg"));
                    link rel="stylesheet" href=(assets::path("portal.css"));
                    script type="module" src=(assets::path("portal.js")) {}
                }
                body data-daemon=(self.daemon) data-csrf=(self.csrf) {
                    a.skip href="#content" { (t.skip_to_content()) }
                    (self.bar())
                    div.shell.alone[self.identity.is_none()] {
                        @if let Some(identity) = self.identity {
                            (navigation(t, identity, here))
                        }
                        main #content tabindex="-1" {
                            @if let Some((tone, flash)) = self.flash {
                                div class={ "note " (tone) } role="status" {
                                    p { (parts::marked(flash)) }
                                }
                            }
                            (content)
                        }
                    }
                    footer.foot { p { (t.footer()) " " (t.utc_note()) } }
                }
            }
        }
    }

    fn bar(&self) -> Markup {
        let t = self.t;
        html! {
            header.bar {
                div.bar-inner {
                    a.brand href="/" {
                        img src=(assets::path("icon.svg")) alt="" width="30" height="30";
                        (t.brand())
                    }
                    @if let Some(identity) = self.identity {
                        span.who {
                            @match &identity.account {
                                Some(account) => { (t.signed_in_as(&identity.name, account)) }
                                None => { (identity.name) " · " (t.role_representative()) }
                            }
                        }
                    }
                    form method="post" action="/language" {
                        (self.token())
                        input type="hidden" name="back" value=(self.path);
                        input type="hidden" name="to" value=(t.other_tag());
                        button type="submit" lang=(t.other_tag()) {
                            (t.other_language())
                        }
                    }
                    @if self.identity.is_some() {
                        form method="post" action="/logout" {
                            (self.token())
                            button type="submit" { (t.log_out()) }
                        }
                    }
                }
            }
        }
    }

    /// The hidden field every form begins with.
    pub fn token(&self) -> Markup {
        html! { input type="hidden" name="csrf" value=(self.csrf); }
    }
}

fn navigation(t: Texts, identity: &Identity, here: Here) -> Markup {
    let item = |to: Here, path: &str, name: &str, count: usize| {
        html! {
            li {
                a href=(path) aria-current=[(to == here).then_some("page")] {
                    (name)
                    @if count > 0 {
                        " " span.count { (count) span.hidden-text { " " (t.unread()) } }
                    }
                }
            }
        }
    };
    html! {
        nav.navigation aria-label=(t.main_navigation()) {
            details {
                summary { (t.menu()) }
                @if identity.account.is_none() {
                    ul {
                        (item(Here::Requests, "/requests", t.requests(), 0))
                        (item(Here::Notices, "/notices", t.notices(), identity.unread))
                    }
                } @else {
                    ul {
                        (item(Here::Home, "/", t.home(), 0))
                        (item(Here::Operations, "/operations", t.operations(), 0))
                        li {
                            span.heading { (t.account_setting()) }
                            ul {
                                (item(Here::Certificates, "/certificates", t.operating_certificate(), 0))
                                (item(Here::Number, "/number", t.mobile_number(), 0))
                                @if identity.manages() {
                                    (item(Here::Security, "/security", t.api_security(), 0))
                                }
                            }
                        }
                        @if identity.manages() {
                            li {
                                span.heading { (t.administration()) }
                                ul {
                                    (item(Here::Operators, "/operators", t.operators(), 0))
                                    (item(Here::Installations, "/installations", t.installations(), 0))
                                    (item(Here::Notices, "/notices", t.notices(), identity.unread))
                                    (item(Here::Trail, "/trail", t.audit_trail(), 0))
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
