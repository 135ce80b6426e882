//! Tokens that come and leave, as the library tells it (`C_WaitForSlotEvent`, PKCS#11 v3.0 section
//! 5.5.4).
//!
//! The wait blocks a thread of its own and is no call: it has no deadline, and ends with the process.
//! A library that waits with a lock held, which hangs everything else, is found out by the deadline
//! of whatever else is called; the supervisor then does without.

use cryptoki::error::Error;

use super::codes;
use super::module::Module;
use crate::device::frames::SlotNews;

/// Tells of events until the library has none, or until `tell` fails.
pub fn watch<E>(module: &Module, mut tell: impl FnMut(SlotNews) -> Result<(), E>) -> Result<(), E> {
    let unwatched = |error: Error| {
        SlotNews::Unwatched(match error {
            Error::Pkcs11(code, _) => codes::name(&code),
            other => other.to_string(),
        })
    };
    // Without waiting first: a library that lacks the function is not waited for.
    let mut event = match module.pkcs11.get_slot_event() {
        Ok(event) => event.is_some(),
        Err(error) => return tell(unwatched(error)),
    };
    tell(SlotNews::Watched)?;
    loop {
        if event {
            let looks = module.looks();
            tell(SlotNews::Changed)?;
            // A library that tells of the same event for ever is not asked more often than the
            // slots are looked at.
            module.looked_after(looks);
        }
        match module.pkcs11.wait_for_slot_event() {
            Ok(_) => event = true,
            Err(error) => return tell(unwatched(error)),
        }
    }
}
