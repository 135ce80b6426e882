//! Money leaves the account's balance for a bank account.

use super::{Batch, KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "withdrawal",
    title: ("Withdrawal", "提现"),
    amount: Presence::Required,
    payee: Presence::Required,
    payee_label: ("To", "收款方"),
    count: Presence::Forbidden,
    reference: Presence::Required,
    memo: Presence::Optional,
    memo_label: ("Memo", "备注"),
    batch: Batch::Forbidden,
};
