//! Money is given away in `count` packets, `amount` in all; `memo` is the greeting. A batch names
//! its payees by the digest of their list, a packet for each.

use super::{Batch, KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "red-packet",
    title: ("Red packet", "现金红包"),
    amount: Presence::Required,
    payee: Presence::Required,
    payee_label: ("To", "收款方"),
    count: Presence::Required,
    reference: Presence::Required,
    memo: Presence::Optional,
    memo_label: ("Greeting", "祝福语"),
    batch: Batch::Allowed,
};
