//! What a person does with a token's PIN: unlock it, prove who sits there; and letting go of a token.
//!
//! How a PIN is tried, and when none is, never lives here: see `pins` and `supervisor::login`.

use std::time::Duration;

use super::Devices;
use super::error::DeviceError;
use super::frames::{LastTry, UnlockOutcome};
use super::pins::guard::checked;
use crate::base::pkcs11::TokenId;
use crate::base::secret::Pin;

impl Devices {
    /// Asks a token whether a PIN that a person typed for one operation is its own: one try, and
    /// none if it is locked or has one try left. `None` on a token whose PIN is typed on the
    /// device, for which there is `patience`. Neither the login that is there nor what the machine
    /// may try on its own changes.
    pub async fn check_pin(
        &self,
        token: &TokenId,
        pin: Option<Pin>,
        patience: Duration,
    ) -> Result<(), DeviceError> {
        let pin = pin.map(checked).transpose()?;
        self.module_of(token)?.check_pin(token, pin, patience).await
    }

    /// Logs in with a PIN that a person gave: one try, and none if the token is locked, or has one
    /// try left and the person did not say to use it. Success lifts what blocked the token's PIN;
    /// the PIN is kept for later workers.
    pub async fn unlock(
        &self,
        token: &TokenId,
        pin: Pin,
        last_try: LastTry,
    ) -> Result<UnlockOutcome, DeviceError> {
        let module = self.module_of(token)?;
        module.unlock(token, Some(pin), last_try).await
    }

    /// The same on a token whose PIN a person types on the device itself
    /// (`CKF_PROTECTED_AUTHENTICATION_PATH`), within a minute.
    pub async fn unlock_by_hand(
        &self,
        token: &TokenId,
        last_try: LastTry,
    ) -> Result<UnlockOutcome, DeviceError> {
        let module = self.module_of(token)?;
        module.unlock(token, None, last_try).await
    }

    /// Leaves a token to other programs until a request names it: its sessions end, and its
    /// library lets go of it. Calls under way are finished first. Other tokens of the module are
    /// interrupted for the moment that a new worker needs.
    pub async fn release(&self, token: &TokenId) -> Result<(), DeviceError> {
        self.module_of(token)?.release(token).await
    }
}
