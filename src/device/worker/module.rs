//! The loaded library, and the tokens it shows.

use std::error::Error as _;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::session::{Session, SessionState};
use cryptoki::slot::Slot;

use super::codes;
use super::raw::{self, RawSign};
use crate::base::key::{KeySpec, Scheme};
use crate::device::frames::{
    Failure, LABEL_MAX, LoadFailure, ModuleInfo, TOKENS_MAX, TokenFlags, TokenInfo,
};

/// The module. Never finalized and never unloaded: `C_Finalize` crashes modules that have calls in
/// flight, and unloading runs destructors that hang; the process ends instead.
pub struct Module {
    /// The safe interface.
    pub pkcs11: &'static Pkcs11,
    /// The single-part `C_Sign`.
    pub raw: RawSign,
    tokens: RwLock<Vec<Known>>,
}

/// A token that was seen. Its index is its number; it keeps the number when it leaves.
struct Known {
    label: String,
    serial: String,
    slot: Option<Slot>,
    login_required: bool,
    /// What it can generate, and how it can sign; asked for once.
    capabilities: Option<(Vec<KeySpec>, Vec<Scheme>)>,
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
        let raw = RawSign::load(path).map_err(load_failure)?;
        let info = ModuleInfo {
            manufacturer: text(info.manufacturer_id()),
            description: text(info.library_description()),
            version: info.library_version().to_string(),
            interface: info.cryptoki_version().to_string(),
        };
        let module = Self {
            pkcs11,
            raw,
            tokens: RwLock::new(Vec::new()),
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

    /// Looks at every slot again. Tokens are told apart by serial and label, as slots move.
    pub fn rescan(&self) -> Result<Vec<TokenInfo>, Failure> {
        let slots = self
            .pkcs11
            .get_slots_with_token()
            .map_err(|error| codes::failure(&error))?;
        let mut found = Vec::new();
        for slot in slots {
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
        for known in tokens.iter_mut() {
            known.slot = None;
        }
        let mut list = Vec::with_capacity(found.len());
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
                        capabilities: None,
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
            if known.capabilities.is_none() {
                known.capabilities = self.capabilities(slot);
            }
            let (generates, signs) = known.capabilities.clone().unwrap_or_default();
            list.push(TokenInfo {
                number,
                label,
                serial,
                manufacturer: text(info.manufacturer_id()),
                model: text(info.model()),
                firmware: info.firmware_version().to_string(),
                flags: flags(&info),
                logged_in: false,
                generates,
                signs,
            });
        }
        Ok(list)
    }

    /// What the mechanism list of a slot allows; `None` if it cannot be read now.
    fn capabilities(&self, slot: Slot) -> Option<(Vec<KeySpec>, Vec<Scheme>)> {
        let mechanisms = match self.pkcs11.get_mechanism_list(slot) {
            Ok(mechanisms) => mechanisms,
            Err(error) => {
                eprintln!("slot {}: {error:?}", slot.id());
                return None;
            }
        };
        let has = |mechanism| mechanisms.contains(&mechanism);
        let size_fits = |mechanism, bits: usize| {
            self.pkcs11
                .get_mechanism_info(slot, mechanism)
                .is_ok_and(|info| {
                    info.max_key_size() == 0
                        || (info.min_key_size()..=info.max_key_size()).contains(&bits)
                })
        };
        let generates = KeySpec::ALL
            .into_iter()
            .filter(|spec| {
                let (mechanism, bits) = match spec {
                    KeySpec::Rsa2048 => (MechanismType::RSA_PKCS_KEY_PAIR_GEN, Some(2048)),
                    KeySpec::Rsa3072 => (MechanismType::RSA_PKCS_KEY_PAIR_GEN, Some(3072)),
                    KeySpec::P256 => (MechanismType::ECC_KEY_PAIR_GEN, Some(256)),
                    KeySpec::P384 => (MechanismType::ECC_KEY_PAIR_GEN, Some(384)),
                    // Modules disagree whether its size is 255 or 256 bits.
                    KeySpec::Ed25519 => (MechanismType::ECC_EDWARDS_KEY_PAIR_GEN, None),
                };
                has(mechanism) && bits.is_none_or(|bits| size_fits(mechanism, bits))
            })
            .collect();
        let signs = [
            (Scheme::Rs256, MechanismType::RSA_PKCS),
            (Scheme::Ps256, MechanismType::RSA_PKCS_PSS),
            (Scheme::Es256, MechanismType::ECDSA),
            (Scheme::Es384, MechanismType::ECDSA),
            (Scheme::EdDsa, MechanismType::EDDSA),
        ]
        .into_iter()
        .filter(|(_, mechanism)| has(*mechanism))
        .map(|(scheme, _)| scheme)
        .collect();
        Some((generates, signs))
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
