//! The operating certificate described by `payee` may be installed.

use super::{Batch, KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "certificate-installation",
    title: ("Certificate installation", "安装操作证书"),
    amount: Presence::Forbidden,
    payee: Presence::Required,
    payee_label: ("For", "安装对象"),
    count: Presence::Forbidden,
    reference: Presence::Required,
    memo: Presence::Optional,
    memo_label: ("Memo", "备注"),
    batch: Batch::Forbidden,
};
