//! Money is paid into the account's balance.

use super::{Batch, KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "balance-top-up",
    title: ("Balance top-up", "充值"),
    amount: Presence::Required,
    payee: Presence::Optional,
    payee_label: ("From", "付款方"),
    count: Presence::Forbidden,
    reference: Presence::Required,
    memo: Presence::Optional,
    memo_label: ("Memo", "备注"),
    batch: Batch::Forbidden,
};
