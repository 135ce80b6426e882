//! Making tokens and setting PINs. The supervisor starts a worker for it that has no session yet.

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;

use super::codes;
use super::module::{Module, text};
use crate::base::encoding::hex;
use crate::device::frames::{
    Administer, AdministerRefusal as Refusal, Administered, Failure, HELD_MAX, HeldKeys,
    HeldObject, LastTry, PinBytes, Target, Whose, Work,
};

/// Of longer ids, which no key of ours has, the begin is told.
const KEY_ID_MAX: usize = 64;

/// Does it, or says why not. A PIN goes to the token at most once.
pub fn administer(module: &Module, asked: &Administer) -> Result<Administered, Failure> {
    let (slot, info) = match find(module, &asked.target)? {
        Ok(found) => found,
        Err(refusal) => return Ok(Administered::Refused(refusal)),
    };
    let token = Token { module, slot, info };
    if let Some(refusal) = token.refusal(asked)? {
        return Ok(Administered::Refused(refusal));
    }
    match &asked.work {
        Work::Init {
            label,
            so_pin,
            user_pin,
            ..
        } => token.init(label, so_pin.as_ref(), user_pin.as_ref()),
        Work::ChangePin { old, new } => token.change_pin(old.as_ref(), new.as_ref()),
        Work::ResetPin { so_pin, new } => token.reset_pin(so_pin.as_ref(), new.as_ref()),
    }
}

/// The token that is meant.
struct Token<'a> {
    module: &'a Module,
    slot: Slot,
    info: TokenInfo,
}

fn find(module: &Module, target: &Target) -> Result<Result<(Slot, TokenInfo), Refusal>, Failure> {
    let slots = module.pkcs11.get_slots_with_token();
    let mut found = Vec::new();
    for slot in slots.map_err(|error| codes::failure(&error))? {
        // A reader that fails must not hide the others.
        let Ok(info) = module.pkcs11.get_token_info(slot) else {
            continue;
        };
        let is = |wanted: &Option<String>, value: &str| {
            wanted.as_ref().is_none_or(|wanted| *wanted == text(value))
        };
        let fits = match target {
            Target::Blank => !info.token_initialized(),
            Target::Named { label, serial } => {
                is(label, info.label()) && is(serial, info.serial_number())
            }
        };
        if fits {
            found.push((slot, info));
        }
    }
    let count = found.len();
    Ok(match found.pop() {
        Some(one) if count == 1 => Ok(one),
        Some(_) => Err(Refusal::Several(u16::try_from(count).unwrap_or(u16::MAX))),
        None => Err(Refusal::Missing),
    })
}

/// What an object is called; nothing of what it does not tell.
fn held(session: &Session, object: ObjectHandle, kind: &str) -> HeldObject {
    let (mut label, mut id) = (String::new(), String::new());
    let wanted = [AttributeType::Label, AttributeType::Id];
    for attribute in session.get_attributes(object, &wanted).unwrap_or_default() {
        match attribute {
            Attribute::Label(bytes) => label = text(&String::from_utf8_lossy(&bytes)),
            Attribute::Id(bytes) => id = hex(&bytes[..bytes.len().min(KEY_ID_MAX)]),
            _ => {}
        }
    }
    HeldObject {
        kind: kind.to_owned(),
        label,
        id,
    }
}

impl Token<'_> {
    /// What forbids the work, as far as can be seen before anything is done.
    fn refusal(&self, asked: &Administer) -> Result<Option<Refusal>, Failure> {
        let info = &self.info;
        if let Work::Init {
            keys: HeldKeys::Tell,
            ..
        } = asked.work
        {
            return Ok(Some(self.holds()?));
        }
        if info.write_protected() {
            return Ok(Some(Refusal::WriteProtected));
        }
        let (whose, locked, final_try, pins) = match &asked.work {
            Work::ChangePin { old, new } => (
                Whose::User,
                info.user_pin_locked(),
                info.user_pin_final_try(),
                [old, new],
            ),
            Work::Init {
                so_pin, user_pin, ..
            } => (
                Whose::SecurityOfficer,
                info.so_pin_locked(),
                info.so_pin_final_try(),
                [so_pin, user_pin],
            ),
            Work::ResetPin { so_pin, new } => (
                Whose::SecurityOfficer,
                info.so_pin_locked(),
                info.so_pin_final_try(),
                [so_pin, new],
            ),
        };
        let (min, max) = (info.min_pin_length(), info.max_pin_length());
        for pin in pins {
            match pin {
                _ if self.asks_itself() => {}
                None => return Ok(Some(Refusal::PinMissing)),
                // Some tokens say 0 for both.
                Some(pin) if pin.expose().len() < min || (max > 0 && pin.expose().len() > max) => {
                    return Ok(Some(Refusal::PinLength {
                        min: u32::try_from(min).unwrap_or(u32::MAX),
                        max: u32::try_from(max).unwrap_or(u32::MAX),
                    }));
                }
                Some(_) => {}
            }
        }
        if let Work::Init { keys, .. } = asked.work {
            // A library counts the sessions of all programs, or of ours alone, which has none.
            if info.session_count().is_some_and(|count| count > 0) {
                return Ok(Some(Refusal::InUse));
            }
            if info.token_initialized() && keys == HeldKeys::Keep {
                let holds = self.holds()?;
                let is_seen = matches!(holds, Refusal::HoldsKeys { seen: 1.., .. });
                if is_seen || info.user_pin_initialized() {
                    return Ok(Some(holds));
                }
            }
        }
        // A blank token takes any PIN for its security officer.
        let asks = info.token_initialized();
        Ok(match (locked, final_try, asked.last_try) {
            _ if !asks => None,
            (true, _, _) => Some(Refusal::Locked(whose)),
            (false, true, LastTry::Keep) => Some(Refusal::FinalTry(whose)),
            _ => None,
        })
    }

    /// Whether PINs are typed on the token; those given are not used then.
    fn asks_itself(&self) -> bool {
        self.info.protected_authentication_path()
    }

    /// A PIN for a call that takes `None` where the token asks.
    fn pin(&self, given: Option<&PinBytes>) -> Option<AuthPin> {
        let text = std::str::from_utf8(given?.expose()).ok()?;
        (!self.asks_itself()).then(|| AuthPin::from(text.to_owned()))
    }

    /// The keys and certificates that show without a login.
    fn holds(&self) -> Result<Refusal, Failure> {
        let failed = |error| codes::failure(&error);
        let session = self
            .module
            .pkcs11
            .open_ro_session(self.slot)
            .map_err(failed)?;
        let (mut count, mut shown) = (0, Vec::new());
        for (class, kind) in [
            (ObjectClass::PRIVATE_KEY, "private key"),
            (ObjectClass::PUBLIC_KEY, "public key"),
            (ObjectClass::SECRET_KEY, "secret key"),
            (ObjectClass::CERTIFICATE, "certificate"),
        ] {
            let found = session.find_objects(&[Attribute::Class(class)]);
            for object in found.map_err(failed)? {
                count += 1;
                if shown.len() < HELD_MAX {
                    shown.push(held(&session, object, kind));
                }
            }
        }
        Ok(Refusal::HoldsKeys {
            seen: u32::try_from(count).unwrap_or(u32::MAX),
            shown,
        })
    }

    fn init(
        &self,
        label: &str,
        so_pin: Option<&PinBytes>,
        user_pin: Option<&PinBytes>,
    ) -> Result<Administered, Failure> {
        let (so_pin, user_pin) = (self.pin(so_pin), self.pin(user_pin));
        let initialized = match &so_pin {
            Some(so_pin) => self.module.pkcs11.init_token(self.slot, so_pin, label),
            None => self.module.on_device.init_token(self.slot, label),
        };
        if let Err(error) = initialized {
            return Ok(failed(error, Whose::SecurityOfficer, false));
        }
        Ok(
            match self.set_user_pin(so_pin.as_ref(), user_pin.as_ref()) {
                Ok(()) => self.done()?,
                // The token has the security officer's PIN that was given, so none was refused.
                Err((error, _)) => match failed(error, Whose::SecurityOfficer, true) {
                    Administered::Wrong { code, .. } => Administered::Failed {
                        function: "C_InitPIN".into(),
                        code,
                        initialized: true,
                    },
                    other => other,
                },
            },
        )
    }

    fn change_pin(
        &self,
        old: Option<&PinBytes>,
        new: Option<&PinBytes>,
    ) -> Result<Administered, Failure> {
        let session = self.module.pkcs11.open_rw_session(self.slot);
        let session = session.map_err(|error| codes::failure(&error))?;
        // Without a login C_SetPIN is about the user's PIN (PKCS#11 v3.0 section 5.6.5), so the
        // old one goes to the token once.
        let set = match (self.pin(old), self.pin(new)) {
            (Some(old), Some(new)) => session.set_pin(&old, &new),
            _ => self.module.on_device.set_pin(&session),
        };
        Ok(match set {
            Ok(()) => self.done()?,
            Err(error) => failed(error, Whose::User, false),
        })
    }

    fn reset_pin(
        &self,
        so_pin: Option<&PinBytes>,
        new: Option<&PinBytes>,
    ) -> Result<Administered, Failure> {
        let (so_pin, new) = (self.pin(so_pin), self.pin(new));
        Ok(match self.set_user_pin(so_pin.as_ref(), new.as_ref()) {
            Ok(()) => self.done()?,
            Err((error, Step::Login)) => failed(error, Whose::SecurityOfficer, false),
            Err((error, Step::Set)) => match failed(error, Whose::User, false) {
                // It is the new PIN that the token does not like.
                Administered::Wrong { code, .. } => Administered::Failed {
                    function: "C_InitPIN".into(),
                    code,
                    initialized: false,
                },
                other => other,
            },
        })
    }

    fn set_user_pin(
        &self,
        so_pin: Option<&AuthPin>,
        user_pin: Option<&AuthPin>,
    ) -> Result<(), (Error, Step)> {
        let session: Session = self
            .module
            .pkcs11
            .open_rw_session(self.slot)
            .map_err(|error| (error, Step::Set))?;
        session
            .login(UserType::So, so_pin)
            .map_err(|error| (error, Step::Login))?;
        let set = match user_pin {
            Some(user_pin) => session.init_pin(user_pin),
            None => self.module.on_device.init_pin(&session),
        };
        set.map_err(|error| (error, Step::Set))
    }

    fn done(&self) -> Result<Administered, Failure> {
        let info = self.module.pkcs11.get_token_info(self.slot);
        let info = info.map_err(|error| codes::failure(&error))?;
        Ok(Administered::Done {
            label: text(info.label()),
            serial: text(info.serial_number()),
        })
    }
}

/// How far the security officer got.
enum Step {
    Login,
    Set,
}

fn failed(error: Error, whose: Whose, initialized: bool) -> Administered {
    match &error {
        Error::Pkcs11(RvError::PinLocked, _) => Administered::Refused(Refusal::Locked(whose)),
        Error::Pkcs11(RvError::SessionExists, _) => Administered::Refused(Refusal::InUse),
        Error::Pkcs11(RvError::TokenWriteProtected, _) => {
            Administered::Refused(Refusal::WriteProtected)
        }
        Error::Pkcs11(code @ (RvError::PinIncorrect | RvError::PinExpired), _) => {
            Administered::Wrong {
                whose,
                code: codes::name(code),
            }
        }
        Error::Pkcs11(code, function) => Administered::Failed {
            function: name(*function),
            code: codes::name(code),
            initialized,
        },
        other => Administered::Failed {
            function: "the module".into(),
            code: other.to_string(),
            initialized,
        },
    }
}

fn name(function: Function) -> String {
    format!("C_{function:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_code_that_says_so_means_a_wrong_pin() {
        let failed = |code| failed(Error::Pkcs11(code, Function::SetPIN), Whose::User, false);
        assert!(matches!(
            failed(RvError::PinIncorrect),
            Administered::Wrong {
                whose: Whose::User,
                ..
            }
        ));
        assert_eq!(
            failed(RvError::SessionExists),
            Administered::Refused(Refusal::InUse)
        );
        assert_eq!(
            failed(RvError::GeneralError),
            Administered::Failed {
                function: "C_SetPIN".into(),
                code: "CKR_GENERAL_ERROR".into(),
                initialized: false
            }
        );
    }
}
