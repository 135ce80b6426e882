//! The Cedar schema: a fixed part, and one action for each operation kind.
//!
//! A kind's action has the context its statements have. A rule for `Action::"withdrawal"` may read
//! `context.amount` as it is; one for the whole group `approve` has to ask `context has amount`
//! first, as a password reset has none. The validator holds rules to that.

use std::fmt::Write as _;

use crate::statement::kinds::{Batch, Presence};
use crate::statement::{Kind, Language};

const FIXED: &str = include_str!("opcert.cedarschema");

/// The whole schema in Cedar's syntax, as rules are checked against.
pub fn text() -> String {
    let mut text = FIXED.to_owned();
    let names: Vec<String> = Kind::all()
        .map(|kind| format!("{:?}", kind.name()))
        .collect();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n// The operation kinds: `context.kind`, and the members of `principal.kinds`.\n\
         entity Kind enum [{}];\n",
        names.join(", ")
    );
    for kind in Kind::all() {
        let _ = write!(
            text,
            "\n// {}.\naction {:?} in [approve] appliesTo {{\n  principal: [Client, User],\n  \
             resource: [Certificate],\n  context: {{\n",
            kind.title(Language::English),
            kind.name()
        );
        for (name, of, presence) in members(kind) {
            let mark = match presence {
                Presence::Required => "",
                Presence::Optional => "?",
                Presence::Forbidden => continue,
            };
            let _ = writeln!(text, "    {name}{mark}: {of},");
        }
        text.push_str("  },\n};\n");
    }
    text
}

fn members(kind: Kind) -> [(&'static str, &'static str, Presence); 16] {
    let always = Presence::Required;
    // A batch has a list in place of the payee.
    let (payee, payees) = match kind.batch() {
        Batch::Forbidden => (kind.payee(), Presence::Forbidden),
        Batch::Allowed => (Presence::Optional, Presence::Optional),
    };
    [
        ("kind", "Kind", always),
        ("consent", "Consent", always),
        ("service", "String", always),
        ("origin", "String", Presence::Optional),
        ("time", "Long", always),
        ("date", "Long", always),
        ("hour", "Long", always),
        ("minute", "Long", always),
        ("weekday", "Long", always),
        ("today", "Today", always),
        ("amount", "Long", kind.amount()),
        ("currency", "String", kind.amount()),
        ("payee", "String", payee),
        ("payees", "Set<String>", payees),
        ("count", "Long", kind.count()),
        ("reference", "String", kind.reference()),
    ]
}
