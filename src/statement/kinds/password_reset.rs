//! The login password of the operator named by `payee` is reset.

use super::{Batch, KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "password-reset",
    title: ("Password reset", "重置密码"),
    amount: Presence::Forbidden,
    payee: Presence::Required,
    payee_label: ("For", "对象"),
    count: Presence::Forbidden,
    reference: Presence::Required,
    memo: Presence::Optional,
    memo_label: ("Memo", "备注"),
    batch: Batch::Forbidden,
};
