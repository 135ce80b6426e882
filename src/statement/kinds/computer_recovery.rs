//! The administrator named by `payee`, whose only computer is lost, may install on a new one.

use super::{Batch, KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "computer-recovery",
    title: ("Lost computer", "电脑遗失恢复"),
    amount: Presence::Forbidden,
    payee: Presence::Required,
    payee_label: ("Administrator", "管理员"),
    count: Presence::Forbidden,
    reference: Presence::Required,
    memo: Presence::Optional,
    memo_label: ("Memo", "备注"),
    batch: Batch::Forbidden,
};
