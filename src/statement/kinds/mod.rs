//! The kinds of sensitive operation: one file each, data only.
//!
//! A new kind is a file beside these and its line in `ALL`; nothing else changes.

mod balance_top_up;
mod certificate_deletion;
mod certificate_installation;
mod certificate_renewal;
mod computer_recovery;
mod mobile_number_change;
mod password_reset;
mod red_packet;
mod secret_change;
mod withdrawal;

use super::strict::FieldError;

/// Every kind, in the order a list shows them.
pub(super) const ALL: &[&KindSpec] = &[
    &balance_top_up::SPEC,
    &withdrawal::SPEC,
    &red_packet::SPEC,
    &password_reset::SPEC,
    &certificate_installation::SPEC,
    &certificate_deletion::SPEC,
    &certificate_renewal::SPEC,
    &computer_recovery::SPEC,
    &mobile_number_change::SPEC,
    &secret_change::SPEC,
];

/// What a kind is called and which facts it has.
pub struct KindSpec {
    /// The stable name in formats, policies and records.
    pub(super) name: &'static str,
    /// What a person reads, in English and Chinese.
    pub(super) title: (&'static str, &'static str),
    /// `amount` and `currency`.
    pub(super) amount: Presence,
    /// `payee`.
    pub(super) payee: Presence,
    /// What a person reads beside the payee, in English and Chinese.
    pub(super) payee_label: (&'static str, &'static str),
    /// `count`.
    pub(super) count: Presence,
    /// `reference`.
    pub(super) reference: Presence,
    /// `memo`.
    pub(super) memo: Presence,
    /// What a person reads beside the memo, in English and Chinese.
    pub(super) memo_label: (&'static str, &'static str),
    /// Whether a list of payees may take the place of one.
    pub(super) batch: Batch,
}

/// Whether statements of a kind may name a list of payees by its digest (`payees`), in place of
/// one payee. `count` is the number of payees then, and `amount` their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// They may.
    Allowed,
    /// One payee at a time.
    Forbidden,
}

/// Whether statements of a kind have a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// All have it.
    Required,
    /// Some have it.
    Optional,
    /// None has it.
    Forbidden,
}

impl Presence {
    pub(super) fn check(self, field: &'static str, there: bool) -> Result<(), FieldError> {
        match (self, there) {
            (Self::Required, false) => Err(FieldError::at(field, "is missing")),
            (Self::Forbidden, true) => Err(FieldError::at(field, "is not known for this kind")),
            _ => Ok(()),
        }
    }
}
