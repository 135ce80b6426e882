//! Sessions, slots and object handles as callers see them, and what they are in the real module.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_FUNCTION_LIST, CK_MECHANISM_TYPE, CK_OBJECT_CLASS, CK_OBJECT_HANDLE, CK_RV,
    CK_SESSION_HANDLE, CK_SLOT_ID, CK_TOKEN_INFO, CK_TRUE, CK_ULONG, CKA_CLASS, CKA_ID,
    CKO_PRIVATE_KEY, CKR_DEVICE_REMOVED, CKR_FUNCTION_NOT_SUPPORTED, CKR_OBJECT_HANDLE_INVALID,
    CKR_OK, CKR_SESSION_HANDLE_INVALID,
};

use crate::control::Control;

/// By how much slot ids grow with each insertion, where they change at all.
const SLOT_STEP: CK_SLOT_ID = 1000;

/// How many bytes of CKA_ID tell objects apart.
const ID_MAX: usize = 64;

/// The state of one process.
#[derive(Default)]
pub struct World {
    sessions: HashMap<CK_SESSION_HANDLE, Open>,
    /// Sessions closed behind the caller's back, with the slot they were on.
    dead: HashMap<CK_SESSION_HANDLE, CK_SLOT_ID>,
    last_session: CK_SESSION_HANDLE,
    objects: HashMap<CK_OBJECT_HANDLE, Object>,
    handles: HashMap<(CK_SLOT_ID, CK_OBJECT_HANDLE), CK_OBJECT_HANDLE>,
    last_object: CK_OBJECT_HANDLE,
    slot_shift: CK_SLOT_ID,
    events: VecDeque<CK_SLOT_ID>,
    /// The hash of the PIN that last logged in, by slot.
    pins: HashMap<CK_SLOT_ID, u64>,
}

/// An open session.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    /// Its handle in the real module.
    pub inner: CK_SESSION_HANDLE,
    /// Its slot in the real module.
    pub slot: CK_SLOT_ID,
    /// Where an operation of an always-authenticate key stands.
    pub consent: Consent,
    /// The mechanism that hashes what the signature under way is over.
    pub hash: Option<CK_MECHANISM_TYPE>,
    used: Instant,
}

/// Where the signature of an always-authenticate key stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Consent {
    /// No such signature is under way.
    None,
    /// C_SignInit was the last call.
    Awaited,
    /// The login followed it.
    Given,
    /// Something else came between.
    Spoilt,
}

/// An object that was shown to the caller.
struct Object {
    slot: CK_SLOT_ID,
    inner: CK_OBJECT_HANDLE,
    class: CK_OBJECT_CLASS,
    id: Vec<u8>,
    /// It was shown before the token was put back.
    stale: bool,
}

impl World {
    /// Does what a new control file says has happened. `old` is `None` in a fresh process, for
    /// which everything counted so far is the past.
    pub fn change(&mut self, inner: &CK_FUNCTION_LIST, old: Option<&Control>, new: &Control) {
        if new.new_slots {
            self.slot_shift = new.inserted.wrapping_mul(SLOT_STEP);
        }
        let Some(old) = old else {
            return;
        };
        let back = new.inserted > old.inserted;
        for slot in slots(inner, CK_TRUE).unwrap_or_default() {
            let left = is_removed(inner, new, slot) && !is_removed(inner, old, slot);
            let came = is_removed(inner, old, slot) && !is_removed(inner, new, slot);
            if back || left {
                self.close_all(inner, slot);
                for object in self.objects.values_mut().filter(|o| o.slot == slot) {
                    object.stale = true;
                }
                self.handles.retain(|(on, _), _| *on != slot);
            }
            if back || left || came {
                self.events.push_back(self.outer_slot(slot));
            }
            if new.expired > old.expired {
                self.close_all(inner, slot);
            }
            if new.logged_out > old.logged_out
                && let Some(session) = self.sessions.values().find(|s| s.slot == slot)
                && let Some(logout) = inner.C_Logout
            {
                // SAFETY: the session is open in the real module, and no call is inside it.
                unsafe { logout(session.inner) };
            }
        }
    }

    /// Closes all sessions of a slot behind the callers' backs.
    fn close_all(&mut self, inner: &CK_FUNCTION_LIST, slot: CK_SLOT_ID) {
        if let Some(close) = inner.C_CloseAllSessions {
            // SAFETY: takes a number; no call is inside the real module (the gate is held).
            unsafe { close(slot) };
        }
        let dead = &mut self.dead;
        self.sessions.retain(|handle, open| {
            let stays = open.slot != slot;
            if !stays {
                dead.insert(*handle, slot);
            }
            stays
        });
    }

    /// Forgets everything, as C_Finalize does.
    pub fn clear(&mut self) {
        *self = Self {
            last_session: self.last_session,
            last_object: self.last_object,
            slot_shift: self.slot_shift,
            ..Self::default()
        };
    }

    /// What the caller calls a slot.
    pub fn outer_slot(&self, slot: CK_SLOT_ID) -> CK_SLOT_ID {
        slot.wrapping_add(self.slot_shift)
    }

    /// What the real module calls a slot; some slot that it does not have for a number of old.
    pub fn inner_slot(&self, slot: CK_SLOT_ID) -> CK_SLOT_ID {
        slot.wrapping_sub(self.slot_shift)
    }

    /// How many sessions are open.
    pub fn session_count(&self) -> u64 {
        self.sessions.len() as u64
    }

    /// A session was opened; returns its handle for the caller.
    pub fn opened(&mut self, inner: CK_SESSION_HANDLE, slot: CK_SLOT_ID) -> CK_SESSION_HANDLE {
        self.last_session += 1;
        let open = Open {
            inner,
            slot,
            consent: Consent::None,
            hash: None,
            used: Instant::now(),
        };
        self.sessions.insert(self.last_session, open);
        self.last_session
    }

    /// The caller closed a session.
    pub fn closed(&mut self, session: CK_SESSION_HANDLE) {
        self.sessions.remove(&session);
    }

    /// The caller closed all sessions of a slot.
    pub fn closed_all(&mut self, slot: CK_SLOT_ID) {
        self.sessions.retain(|_, open| open.slot != slot);
    }

    /// A session that the caller uses now, or the code for one that is not there any more.
    pub fn session(
        &mut self,
        inner: &CK_FUNCTION_LIST,
        control: &Control,
        session: CK_SESSION_HANDLE,
    ) -> Result<Open, CK_RV> {
        if let Some(slot) = self.dead.get(&session) {
            return Err(if is_removed(inner, control, *slot) {
                CKR_DEVICE_REMOVED
            } else {
                CKR_SESSION_HANDLE_INVALID
            });
        }
        let open = self
            .sessions
            .get_mut(&session)
            .ok_or(CKR_SESSION_HANDLE_INVALID)?;
        if control.idle.is_some_and(|idle| open.used.elapsed() > idle) {
            if let Some(close) = inner.C_CloseSession {
                // SAFETY: the session is open in the real module.
                unsafe { close(open.inner) };
            }
            self.dead.insert(session, open.slot);
            self.sessions.remove(&session);
            return Err(CKR_SESSION_HANDLE_INVALID);
        }
        open.used = Instant::now();
        let seen = *open;
        self.spoil(seen.slot);
        Ok(seen)
    }

    /// Something is asked of a token: it comes between, in whichever session an operation waits,
    /// unless its function says otherwise.
    pub fn spoil(&mut self, slot: CK_SLOT_ID) {
        for open in self.sessions.values_mut().filter(|open| open.slot == slot) {
            if matches!(open.consent, Consent::Awaited | Consent::Given) {
                open.consent = Consent::Spoilt;
            }
        }
    }

    /// The CKA_ID of an object that was shown to the caller.
    pub fn id_of(&self, object: CK_OBJECT_HANDLE) -> Vec<u8> {
        let known = self.objects.get(&object);
        known.map(|object| object.id.clone()).unwrap_or_default()
    }

    /// Notes where the signature of an always-authenticate key stands.
    pub fn set_consent(&mut self, session: CK_SESSION_HANDLE, consent: Consent) {
        if let Some(open) = self.sessions.get_mut(&session) {
            open.consent = consent;
        }
    }

    /// Notes which mechanism hashes what a signature is over.
    pub fn set_hash(&mut self, session: CK_SESSION_HANDLE, hash: Option<CK_MECHANISM_TYPE>) {
        if let Some(open) = self.sessions.get_mut(&session) {
            open.hash = hash;
        }
    }

    /// Notes the PIN that logged in.
    pub fn logged_in(&mut self, slot: CK_SLOT_ID, pin: u64) {
        self.pins.insert(slot, pin);
    }

    /// Whether this PIN is the one that logged in.
    pub fn is_pin(&self, slot: CK_SLOT_ID, pin: u64) -> bool {
        self.pins.get(&slot) == Some(&pin)
    }

    /// Whether there is a removal or insertion that was not reported yet.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next removal or insertion that was not reported yet.
    pub fn event(&mut self) -> Option<CK_SLOT_ID> {
        self.events.pop_front()
    }

    /// Shows an object to the caller; returns its handle for the caller.
    pub fn show(
        &mut self,
        inner: &CK_FUNCTION_LIST,
        session: Open,
        object: CK_OBJECT_HANDLE,
    ) -> CK_OBJECT_HANDLE {
        if let Some(known) = self.handles.get(&(session.slot, object)) {
            return *known;
        }
        let (class, id) = identity(inner, session.inner, object);
        self.last_object += 1;
        let shown = Object {
            slot: session.slot,
            inner: object,
            class,
            id,
            stale: false,
        };
        self.objects.insert(self.last_object, shown);
        self.handles
            .insert((session.slot, object), self.last_object);
        self.last_object
    }

    /// The real handle behind one of the caller's.
    pub fn object(
        &self,
        inner: &CK_FUNCTION_LIST,
        control: &Control,
        session: Open,
        handle: CK_OBJECT_HANDLE,
    ) -> Result<CK_OBJECT_HANDLE, CK_RV> {
        let object = self.objects.get(&handle).ok_or(CKR_OBJECT_HANDLE_INVALID)?;
        if !object.stale {
            return Ok(object.inner);
        }
        if control.swapped {
            return another(inner, session.inner, object).ok_or(CKR_OBJECT_HANDLE_INVALID);
        }
        Err(CKR_OBJECT_HANDLE_INVALID)
    }
}

/// The slots of the real module.
pub fn slots(inner: &CK_FUNCTION_LIST, present: u8) -> Result<Vec<CK_SLOT_ID>, CK_RV> {
    let list = inner.C_GetSlotList.ok_or(CKR_FUNCTION_NOT_SUPPORTED)?;
    let mut count: CK_ULONG = 0;
    // SAFETY: a null list asks for the count only.
    check(unsafe { list(present, std::ptr::null_mut(), &mut count) })?;
    let mut slots = vec![0; count as usize];
    // SAFETY: `slots` has room for `count` ids.
    check(unsafe { list(present, slots.as_mut_ptr(), &mut count) })?;
    slots.truncate(count as usize);
    Ok(slots)
}

/// The token information of the real module.
pub fn token_info(inner: &CK_FUNCTION_LIST, slot: CK_SLOT_ID) -> Result<CK_TOKEN_INFO, CK_RV> {
    let get = inner.C_GetTokenInfo.ok_or(CKR_FUNCTION_NOT_SUPPORTED)?;
    let mut info = CK_TOKEN_INFO::default();
    // SAFETY: `info` is a valid place for the answer.
    check(unsafe { get(slot, &mut info) })?;
    Ok(info)
}

/// Whether the control file has taken the token out of this slot of the real module.
pub fn is_removed(inner: &CK_FUNCTION_LIST, control: &Control, slot: CK_SLOT_ID) -> bool {
    control.all_removed
        || (!control.removed.is_empty()
            && token_info(inner, slot)
                .is_ok_and(|info| control.removed.contains(&padded(&info.label))))
}

/// A blank-padded text of a token.
pub fn padded(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// A return value as a result.
pub fn check(code: CK_RV) -> Result<(), CK_RV> {
    if code == CKR_OK { Ok(()) } else { Err(code) }
}

/// CKA_CLASS and CKA_ID of an object; nothing of what it does not tell.
fn identity(
    inner: &CK_FUNCTION_LIST,
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
) -> (CK_OBJECT_CLASS, Vec<u8>) {
    let mut class: CK_OBJECT_CLASS = CK_OBJECT_CLASS::MAX;
    let mut id = [0u8; ID_MAX];
    let mut length = 0;
    if let Some(get) = inner.C_GetAttributeValue {
        let ask = |kind, place: *mut std::ffi::c_void, room: usize| {
            let mut attribute = CK_ATTRIBUTE {
                type_: kind,
                pValue: place,
                ulValueLen: room as CK_ULONG,
            };
            // SAFETY: the attribute points to `room` writable bytes.
            let code = unsafe { get(session, object, &mut attribute, 1) };
            if code == CKR_OK {
                attribute.ulValueLen as usize
            } else {
                0
            }
        };
        ask(CKA_CLASS, (&raw mut class).cast(), size_of_val(&class));
        length = ask(CKA_ID, id.as_mut_ptr().cast(), ID_MAX);
    }
    (class, id[..length.min(ID_MAX)].to_vec())
}

/// Another object of the same class.
fn another(
    inner: &CK_FUNCTION_LIST,
    session: CK_SESSION_HANDLE,
    than: &Object,
) -> Option<CK_OBJECT_HANDLE> {
    let mut class = if than.class == CK_OBJECT_CLASS::MAX {
        CKO_PRIVATE_KEY
    } else {
        than.class
    };
    let mut template = CK_ATTRIBUTE {
        type_: CKA_CLASS,
        pValue: (&raw mut class).cast(),
        ulValueLen: size_of_val(&class) as CK_ULONG,
    };
    let mut found = [0; 64];
    let mut count: CK_ULONG = 0;
    // SAFETY: the template points to `class`, and `found` has room for as many handles as are
    // asked for.
    unsafe {
        check(inner.C_FindObjectsInit?(session, &mut template, 1)).ok()?;
        let result = inner.C_FindObjects?(session, found.as_mut_ptr(), 64, &mut count);
        inner.C_FindObjectsFinal?(session);
        check(result).ok()?;
    }
    found[..count as usize]
        .iter()
        .copied()
        .find(|object| identity(inner, session, *object).1 != than.id)
}
