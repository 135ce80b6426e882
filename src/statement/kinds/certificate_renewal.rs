//! A successor is issued for the certificate named by `payee`.

use super::{Batch, KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "certificate-renewal",
    title: ("Certificate renewal", "更新操作证书"),
    amount: Presence::Forbidden,
    payee: Presence::Required,
    payee_label: ("Certificate", "证书"),
    count: Presence::Forbidden,
    reference: Presence::Required,
    memo: Presence::Optional,
    memo_label: ("Memo", "备注"),
    batch: Batch::Forbidden,
};
