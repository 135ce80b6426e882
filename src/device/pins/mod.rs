//! PINs: what may be tried, who is asked, and which are known to be right.
//!
//! - `guard`: no PIN that failed is tried again by the machine; every try goes through it.
//! - `asking`: the window in which a person types a PIN that a request needs.
//! - `check`: whether a PIN typed for one approval is the token's.
//! - `per_use`: operations that need a login of their own.
//! - here: PINs that worked in this process, for the next worker and for those operations.
//!
//! The logins of a worker's life are made by `supervisor::login`. No PIN is ever written down: the
//! guard's file says only that one was refused.

pub mod asking;
pub mod check;
pub mod guard;
pub mod per_use;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::pkcs11::TokenId;
use crate::base::secret::Pin;

/// How long a person may take to type a PIN on a device.
pub const BY_HAND: Duration = Duration::from_secs(60);

/// PINs that worked, by token; a handle to be shared.
#[derive(Clone, Default)]
pub struct Pins(Arc<Mutex<HashMap<TokenId, Pin>>>);

impl Pins {
    /// The PIN of a token, if one is held.
    pub fn get(&self, token: &TokenId) -> Option<Pin> {
        self.lock().get(token).cloned()
    }

    /// Keeps a PIN that the token took.
    pub fn insert(&self, token: TokenId, pin: Pin) {
        self.lock().insert(token, pin);
    }

    /// Forgets a PIN that was refused, or may have been; or takes one away while it changes.
    pub fn remove(&self, token: &TokenId) -> Option<Pin> {
        self.lock().remove(token)
    }

    /// Takes those that are wanted from another, and leaves it none.
    pub fn take_over(&self, other: &Self, wanted: impl Fn(&TokenId) -> bool) {
        let taken = std::mem::take(&mut *other.lock());
        let taken = taken.into_iter().filter(|(token, _)| wanted(token));
        self.lock().extend(taken);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenId, Pin>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
