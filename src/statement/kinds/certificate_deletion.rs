//! The operating certificate named by `payee` is revoked.

use super::{Batch, KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "certificate-deletion",
    title: ("Certificate deletion", "删除操作证书"),
    amount: Presence::Forbidden,
    payee: Presence::Required,
    payee_label: ("Certificate", "证书"),
    count: Presence::Forbidden,
    reference: Presence::Required,
    memo: Presence::Optional,
    memo_label: ("Memo", "备注"),
    batch: Batch::Forbidden,
};
