//! PINs that worked in this process: for the next worker, and for logins of single operations.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::pkcs11::TokenId;
use crate::base::secret::Pin;

/// By token; a handle to be shared.
#[derive(Clone, Default)]
pub(super) struct Pins(Arc<Mutex<HashMap<TokenId, Pin>>>);

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
