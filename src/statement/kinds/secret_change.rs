//! The API secret named by `payee` is replaced; the secret itself is never in a statement.

use super::{Batch, KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "secret-change",
    title: ("Secret change", "修改密钥"),
    amount: Presence::Forbidden,
    payee: Presence::Required,
    payee_label: ("Secret", "密钥"),
    count: Presence::Forbidden,
    reference: Presence::Required,
    memo: Presence::Optional,
    memo_label: ("Memo", "备注"),
    batch: Batch::Forbidden,
};
