//! The loaded library, and the tokens it shows.
//!
//! Sessions that sign, logins and objects never live here: see `signer`, `login` and `objects`.

use std::error::Error as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState};
use cryptoki::slot::Slot;

use super::codes;
use super::login::Turn;
use super::mechanism::Offer;
use super::raw::{self, OnDevice, Raw};
use crate::device::frames::{
    Failure, LABEL_MAX, LoadFailure, ModuleInfo, TOKENS_MAX, TokenFlags, TokenInfo,
};

/// The module. Never finalized and never unloaded: `C_Finalize` crashes modules that have calls in
/// flight, and unloading runs destructors that hang; the process ends instead.
pub struct Module {
    /// The safe interface.
    pub pkcs11: &'static Pkcs11,
    /// The single-part `C_Sign` and `C_Decrypt`.
    pub raw: Raw,
    /// What sets PINs that are typed on the device.
    pub on_device: OnDevice,
    tokens: RwLock<Vec<Known>>,
    /// How often the slots were looked at.
    looks: Mutex<u64>,
    looked: Condvar,
}

/// A token that was seen. Its index is its number; it keeps the number when it leaves.
struct Known {
    label: String,
    serial: String,
    slot: Option<Slot>,
    login_required: bool,
    /// What it can do; asked for once.
    offer: Option<Arc<Offer>>,
    /// Who may use it now.
    turn: Turn,
    /// What was seen last.
    info: Option<TokenInfo>,
}

impl Module {
    /// Loads and initializes the library at `path`, with `parameters` of its own if it wants some.
    pub fn load(path: &Path, parameters: Option<&str>) -> Result<(Self, ModuleInfo), LoadFailure> {
        if !path.is_file() {
            return Err(LoadFailure::Missing);
        }
        let pkcs11: &'static Pkcs11 = Box::leak(Box::new(Pkcs11::new(path).map_err(load_failure)?));
        if let Some(parameters) = parameters {
            raw::initialize(path, parameters).map_err(load_failure)?;
        }
        // Initialized already, if there were parameters.
        match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(load_failure(error)),
        }
        let info = pkcs11.get_library_info().map_err(load_failure)?;
        let raw = Raw::load(path).map_err(load_failure)?;
        let on_device = OnDevice::load(path).map_err(load_failure)?;
        let info = ModuleInfo {
            manufacturer: text(info.manufacturer_id()),
            description: text(info.library_description()),
            version: info.library_version().to_string(),
            interface: info.cryptoki_version().to_string(),
        };
        let module = Self {
            pkcs11,
            raw,
            on_device,
            tokens: RwLock::new(Vec::new()),
            looks: Mutex::new(0),
            looked: Condvar::new(),
        };
        Ok((module, info))
    }

    /// The slot that holds the token with this number now.
    pub fn slot(&self, token: u16) -> Result<Slot, Failure> {
        self.tokens
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(usize::from(token))
            .and_then(|known| known.slot)
            .ok_or(Failure::TokenGone)
    }

    /// Who may use the token with this number now; a turn of nobody's for a token never seen.
    pub fn turn(&self, token: u16) -> Turn {
        self.tokens
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(usize::from(token))
            .map(|known| known.turn.clone())
            .unwrap_or_default()
    }

    /// What the token with this number can do; `None` while that could not be read.
    pub fn offer(&self, token: u16) -> Option<Arc<Offer>> {
        self.tokens
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(usize::from(token))
            .and_then(|known| known.offer.clone())
    }

    /// The token that was last seen in `slot`, and what was seen of it.
    fn last_in(&self, slot: Slot) -> Option<(Turn, TokenInfo)> {
        self.tokens
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .find(|known| known.slot == Some(slot))
            .and_then(|known| Some((known.turn.clone(), known.info.clone()?)))
    }

    /// Makes sure that private keys show in a session of this token. A token that lost its login
    /// answers a search for them with nothing, as if there were none.
    pub fn check_login(&self, token: u16, session: &Session) -> Result<(), Failure> {
        let required = self
            .tokens
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(usize::from(token))
            .is_some_and(|known| known.login_required);
        if !required {
            return Ok(());
        }
        let info = session
            .get_session_info()
            .map_err(|error| codes::failure(&error))?;
        match info.session_state() {
            SessionState::RoPublic | SessionState::RwPublic => Err(Failure::LoggedOut),
            SessionState::RoUser | SessionState::RwUser | SessionState::RwSecurityOfficer => Ok(()),
        }
    }

    /// How often the slots were looked at.
    pub fn looks(&self) -> u64 {
        *self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the slots were looked at more often than `before`.
    pub fn looked_after(&self, before: u64) {
        let looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.looked.wait_while(looks, |looks| *looks <= before);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Looks at every slot again. Tokens are told apart by serial and label, as slots move.
    pub fn rescan(&self) -> Result<Vec<TokenInfo>, Failure> {
        let list = self.look();
        *self.looks.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.looked.notify_all();
        list
    }

    fn look(&self) -> Result<Vec<TokenInfo>, Failure> {
        let slots = self
            .pkcs11
            .get_slots_with_token()
            .map_err(|error| codes::failure(&error))?;
        let mut found = Vec::new();
        let mut list = Vec::new();
        for slot in slots {
            let last = self.last_in(slot);
            let turn = last.as_ref().map(|(turn, info)| (turn.share(), info));
            if let Some((None, info)) = &turn {
                // Somebody has it alone: to ask it now would come in between.
                list.push(TokenInfo::clone(info));
                continue;
            }
            // A reader that fails must not hide the others.
            let info = match self.pkcs11.get_token_info(slot) {
                Ok(info) => info,
                Err(error) => {
                    eprintln!("slot {}: {error:?}", slot.id());
                    continue;
                }
            };
            if !info.token_initialized() {
                continue;
            }
            if found.len() == TOKENS_MAX {
                eprintln!("more than {TOKENS_MAX} tokens; the rest are ignored");
                break;
            }
            found.push((slot, info));
        }
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        for (number, known) in tokens.iter_mut().enumerate() {
            if !list.iter().any(|taken| usize::from(taken.number) == number) {
                known.slot = None;
            }
        }
        for (slot, info) in found {
            let (label, serial) = (text(info.label()), text(info.serial_number()));
            let index = tokens
                .iter()
                .position(|known| known.label == label && known.serial == serial)
                .unwrap_or_else(|| {
                    tokens.push(Known {
                        label: label.clone(),
                        serial: serial.clone(),
                        slot: None,
                        login_required: false,
                        offer: None,
                        turn: Turn::default(),
                        info: None,
                    });
                    tokens.len() - 1
                });
            let Some(known) = tokens.get_mut(index).filter(|known| known.slot.is_none()) else {
                eprintln!("two tokens have label {label:?} and serial {serial:?}; one is ignored");
                continue;
            };
            known.slot = Some(slot);
            known.login_required = info.login_required();
            let Ok(number) = u16::try_from(index) else {
                break;
            };
            if known.offer.is_none() {
                known.offer = Offer::read(self.pkcs11, slot).map(Arc::new);
            }
            let offer = known.offer.clone().unwrap_or_default();
            let info = TokenInfo {
                number,
                label,
                serial,
                manufacturer: text(info.manufacturer_id()),
                model: text(info.model()),
                firmware: info.firmware_version().to_string(),
                flags: flags(&info),
                logged_in: false,
                generates: offer.generates(),
                signs: offer.signs(),
                hashes: offer.hashes(),
            };
            known.info = Some(info.clone());
            list.push(info);
        }
        Ok(list)
    }
}

/// The flags of a token.
pub fn flags(info: &cryptoki::slot::TokenInfo) -> TokenFlags {
    TokenFlags {
        login_required: info.login_required(),
        pin_initialized: info.user_pin_initialized(),
        protected_path: info.protected_authentication_path(),
        pin_count_low: info.user_pin_count_low(),
        pin_final_try: info.user_pin_final_try(),
        pin_locked: info.user_pin_locked(),
        write_protected: info.write_protected(),
    }
}

/// A text of the module: trailing blanks removed, bounded, no control characters.
pub fn text(text: &str) -> String {
    text.trim_end_matches([' ', '\0'])
        .chars()
        .map(|letter| {
            if letter.is_control() {
                '\u{fffd}'
            } else {
                letter
            }
        })
        .take(LABEL_MAX)
        .collect()
}

fn load_failure(error: Error) -> LoadFailure {
    match &error {
        Error::Pkcs11(code, function) => LoadFailure::Refused {
            function: format!("C_{function:?}"),
            code: codes::name(code),
        },
        Error::LibraryLoading(reason) => {
            let linker = reason.source().map(ToString::to_string);
            LoadFailure::Unloadable(text(&linker.unwrap_or_else(|| reason.to_string())))
        }
        other => LoadFailure::Unloadable(text(&other.to_string())),
    }
}
