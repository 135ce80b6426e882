//! Making tokens, and setting their PINs.
//!
//! Vendor code for it runs in a worker of its own, which has no session yet, as `C_InitToken` wants
//! it, and is gone afterwards. The worker that signs is replaced then, once the calls under way are
//! done: libraries see new tokens only at their start, and some go on by what they read of a PIN
//! there. SoftHSM2 would refuse the new PIN, at the cost of a try, and one that keeps PINs would try
//! the old one. A token that asks for its PINs itself stays logged in: nobody else knows the new one.
//!
//! A user's PIN that is asked for goes through the guard of `pins` like any other: flags first, never
//! the final try unless a person says so, one try, and a crash in the middle blocks. A wrong one says
//! nothing about the PIN that the machine may try on its own. While the PIN changes, the supervisor
//! does not have the old one: nothing can try it. Whether the new one is also in the configured
//! source is found out, and if not, the source is not tried any more.
//!
//! Here is what is asked; what the supervisor does is in `supervisor::administer`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Devices;
use super::error::{DeviceError, unexpected};
use super::frames::{Administer, HeldKeys, HeldObject, LastTry, PinBytes, Target, Work};
use super::pins::{BY_HAND, guard};
use super::supervisor::administer::Order;
use super::supervisor::command::Command;
use super::supervisor::handle::Module;
use super::supervisor::view::{selects, uri_of};
use super::tokens::TokenState;
use crate::base::pkcs11::{TokenId, TokenUri};
use crate::base::secret::Pin;

/// The most bytes of a token's label (`CK_TOKEN_INFO`).
const TOKEN_LABEL_MAX: usize = 32;

/// A token to be made.
#[derive(Debug)]
pub struct NewToken {
    /// The configured module; may be left out where there is one.
    pub module: Option<String>,
    /// Which token is initialized again, and loses all it holds; without one it is the only token
    /// of the module that is not initialized.
    pub target: Option<TokenUri>,
    /// Its label, 1 to 32 bytes.
    pub label: String,
    /// The security officer's PIN: the one it has, or of a blank token the one it gets. `None` where
    /// the token asks for it itself, as for the next.
    pub so_pin: Option<Pin>,
    /// The user's PIN that it gets.
    pub user_pin: Option<Pin>,
    /// Whether a token that holds keys may lose them.
    pub keys: HeldKeys,
    /// Whether the last try of the security officer's PIN may be used.
    pub last_try: LastTry,
}

/// A token that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeToken {
    /// Its name.
    pub token: TokenId,
    /// Its state; `None` if the configuration selects it nowhere.
    pub state: Option<TokenState>,
}

/// Whose PIN allows a new one for the user.
#[derive(Debug)]
pub enum PinOf {
    /// The user's own, as it is; `None` where the token asks for it itself.
    User(Option<Pin>),
    /// The security officer's, where the user's is locked or forgotten.
    SecurityOfficer(Option<Pin>),
}

impl Devices {
    /// Makes a token: `C_InitToken`, then the user's PIN. Everything it held is destroyed.
    ///
    /// Refuses a token that is in use here, or that holds keys unless told. Where the configuration
    /// selects the new token it is unlocked with its new PIN.
    pub async fn init_token(&self, new: NewToken) -> Result<MadeToken, DeviceError> {
        let NewToken {
            module,
            target,
            label,
            so_pin,
            user_pin,
            keys,
            last_try,
        } = new;
        let fits = (1..=TOKEN_LABEL_MAX).contains(&label.len())
            && !label.chars().any(char::is_control)
            && label.trim() == label;
        if !fits {
            return Err(DeviceError::LabelUnfit {
                limit: TOKEN_LABEL_MAX,
            });
        }
        let name = module.map_or_else(|| self.only_module(), Ok)?;
        let module = self.part_for(&name, target.as_ref())?;
        let (so_pin, user_pin) = (checked(so_pin)?, checked(user_pin)?);
        let asked = Administer {
            target: match target {
                None => Target::Blank,
                Some(uri) => Target::Named {
                    label: uri.token,
                    serial: uri.serial,
                },
            },
            work: Work::Init {
                label,
                so_pin: bytes(&so_pin),
                user_pin: bytes(&user_pin),
                keys,
            },
            last_try,
        };
        let budget = budget(module.config.generate_timeout, &user_pin);
        let token = administer(&module, asked, None, user_pin.clone(), budget).await?;
        for other in self.parts(&name)? {
            // The worker of the part that made it is replaced by its own supervisor.
            if !Arc::ptr_eq(&other, &module) {
                other.command(Command::Renew).await?;
            }
        }
        // It is there now, and the worker that is being started sees it.
        let state = match self.select(&uri_of(&token)).await {
            Ok(found) if found == token => {
                // Where the token asks for it itself, a person unlocks it when they need it.
                if let Some(pin) = user_pin
                    && let Err(error) = self.unlock(&token, pin, LastTry::Keep).await
                {
                    tracing::warn!(%token, %error, "made, and not unlocked");
                }
                let list = self.tokens().await;
                let known = list.into_iter().find(|known| known.id == token);
                known.map(|known| known.state)
            }
            Ok(_) | Err(_) => None,
        };
        Ok(MadeToken { token, state })
    }

    /// The keys and certificates that a token shows without a login, at most 32, and how many there
    /// are; what [`Devices::init_token`] would destroy, beside what shows only after a login.
    /// Refuses a token that is in use here, as that does.
    pub async fn held_objects(
        &self,
        module: Option<&str>,
        target: &TokenUri,
    ) -> Result<(Vec<HeldObject>, u32), DeviceError> {
        let name = module.map_or_else(|| self.only_module(), |name| Ok(name.to_owned()))?;
        let module = self.part_for(&name, Some(target))?;
        let asked = Administer {
            target: Target::Named {
                label: target.token.clone(),
                serial: target.serial.clone(),
            },
            work: Work::Init {
                label: String::new(),
                so_pin: None,
                user_pin: None,
                keys: HeldKeys::Tell,
            },
            last_try: LastTry::Keep,
        };
        let budget = module.config.call_timeout;
        match administer(&module, asked, None, None, budget).await {
            Err(DeviceError::TokenHoldsKeys { seen, objects, .. }) => Ok((objects, seen)),
            Err(error) => Err(error),
            Ok(_) => Err(unexpected(&module.config.name)),
        }
    }

    /// Gives the user of a token a new PIN. One try of the PIN that allows it.
    pub async fn set_pin(
        &self,
        token: &TokenId,
        by: PinOf,
        new: Option<Pin>,
        last_try: LastTry,
    ) -> Result<(), DeviceError> {
        let new = checked(new)?;
        let work = match by {
            PinOf::User(old) => Work::ChangePin {
                old: bytes(&checked(old)?),
                new: bytes(&new),
            },
            PinOf::SecurityOfficer(so_pin) => Work::ResetPin {
                so_pin: bytes(&checked(so_pin)?),
                new: bytes(&new),
            },
        };
        let asked = Administer {
            target: Target::Named {
                label: Some(token.label.clone()),
                serial: Some(token.serial.clone()),
            },
            work,
            last_try,
        };
        let module = self.module_of(token)?;
        let budget = budget(module.config.call_timeout, &new);
        administer(&module, asked, Some(token.clone()), new, budget)
            .await
            .map(drop)
    }

    fn only_module(&self) -> Result<String, DeviceError> {
        let modules = self.0.modules.load();
        let mut names: Vec<&String> = modules.iter().map(|module| &module.config.name).collect();
        names.dedup();
        match names.as_slice() {
            [one] => Ok((*one).clone()),
            several => Err(DeviceError::ModuleAmbiguous {
                count: several.len(),
            }),
        }
    }

    /// The part of a module that uses a token, if one does; else any.
    fn part_for(&self, name: &str, target: Option<&TokenUri>) -> Result<Arc<Module>, DeviceError> {
        let mut parts = self.parts(name)?;
        let uses = |part: &Arc<Module>| {
            let view = part.view.borrow().clone();
            target.is_some_and(|target| {
                let mut found = view.tokens.iter().filter_map(|token| token.found.as_ref());
                found.any(|info| selects(target, name, info))
            })
        };
        let at = parts.iter().position(uses).unwrap_or(0);
        Ok(parts.swap_remove(at))
    }
}

fn checked(pin: Option<Pin>) -> Result<Option<Pin>, DeviceError> {
    pin.map(guard::checked).transpose()
}

fn bytes(pin: &Option<Pin>) -> Option<PinBytes> {
    pin.as_ref().map(|pin| PinBytes::new(pin.expose()))
}

/// How long the token may take; a person who types two PINs on it takes longer.
fn budget(limit: Duration, typed: &Option<Pin>) -> Duration {
    match typed {
        Some(_) => limit,
        None => limit.max(BY_HAND * 2),
    }
}

async fn administer(
    module: &Module,
    asked: Administer,
    token: Option<TokenId>,
    new: Option<Pin>,
    budget: Duration,
) -> Result<TokenId, DeviceError> {
    let (done, result) = oneshot::channel();
    let order = Order {
        asked,
        token,
        new,
        budget,
        back: module.commands.clone(),
        done,
    };
    module.command(Command::Administer(Box::new(order))).await?;
    // Each step of it has a deadline; who asked may leave, and it is ended all the same.
    result.await.map_err(|_| DeviceError::Stopped)?
}
