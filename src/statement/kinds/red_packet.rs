//! Money is given away in `count` packets; `memo` is the greeting.

use super::{KindSpec, Presence};

pub(super) const SPEC: KindSpec = KindSpec {
    name: "red-packet",
    title: ("Red packet", "现金红包"),
    amount: Presence::Required,
    payee: Presence::Required,
    payee_label: ("To", "收款方"),
    count: Presence::Required,
    reference: Presence::Required,
    memo: Presence::Optional,
};
