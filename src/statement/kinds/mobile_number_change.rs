//! SMS codes go to the number named by `payee` from now on.

use super::{Batch, KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "mobile-number-change",
    title: ("Mobile number change", "更换手机号"),
    amount: Presence::Forbidden,
    payee: Presence::Required,
    payee_label: ("New number", "新手机号"),
    count: Presence::Forbidden,
    reference: Presence::Required,
    memo: Presence::Optional,
    memo_label: ("Memo", "备注"),
    batch: Batch::Forbidden,
};
