//! The 68 functions of `CK_FUNCTION_LIST` 2.40.
//!
//! Functions that carry nothing but a session are forwarded by one macro, those with a mechanism
//! and a key by another; those that a fault changes are written out.

use std::ffi::c_void;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::slice;
use std::time::Duration;

use cryptoki_sys::*;

use crate::control::Control;
use crate::faulty::{Entered, Faulty, call};
use crate::tokens::{Consent, Open, check, is_removed, padded, slots, token_info};

/// How often a C_WaitForSlotEvent that waits looks for one.
const LOOK: Duration = Duration::from_millis(5);

/// The entry point of the module (PKCS#11 v2.40 section 5.4).
///
/// # Safety
///
/// `list` is null or a valid place for one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if Faulty::get().is_none() {
        return CKR_GENERAL_ERROR;
    }
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: by contract it is a valid place.
    unsafe { *list = (&raw const FUNCTIONS).cast_mut() };
    CKR_OK
}

/// Calls a function of the real module.
macro_rules! inner {
    ($faulty:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let function = $faulty.inner.$function.ok_or(CKR_FUNCTION_NOT_SUPPORTED)?;
        // SAFETY: the function comes from the real module's list under its own name; pointers are
        // the caller's, who answers for them by the contract of PKCS#11, or our own.
        check(unsafe { function($($argument),*) })
    }};
}

/// Functions that carry a session and nothing else that we change.
macro_rules! in_session {
    ($($function:ident($($argument:ident: $type:ty),*);)*) => {$(
        unsafe extern "C" fn $function(session: CK_SESSION_HANDLE, $($argument: $type),*) -> CK_RV {
            call(stringify!($function), "", |faulty, entered| {
                let session = open(faulty, entered, session)?;
                inner!(faulty, $function(session.inner, $($argument),*))
            })
        }
    )*};
}

/// Functions that begin an operation with a mechanism and a key.
macro_rules! with_key {
    ($($function:ident;)*) => {$(
        unsafe extern "C" fn $function(
            session: CK_SESSION_HANDLE,
            mechanism: *mut CK_MECHANISM,
            key: CK_OBJECT_HANDLE,
        ) -> CK_RV {
            call(stringify!($function), "", |faulty, entered| {
                let session = open(faulty, entered, session)?;
                mechanism_is_there(entered, mechanism)?;
                let key = key_handle(faulty, entered, session, key)?;
                inner!(faulty, $function(session.inner, mechanism, key))
            })
        }
    )*};
}

in_session! {
    C_GetOperationState(state: *mut CK_BYTE, length: *mut CK_ULONG);
    C_FindObjectsInit(template: *mut CK_ATTRIBUTE, count: CK_ULONG);
    C_FindObjectsFinal();
    C_Logout();
    C_Encrypt(data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_EncryptUpdate(data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_EncryptFinal(out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_Decrypt(data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_DecryptUpdate(data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_DecryptFinal(out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_DigestInit(mechanism: *mut CK_MECHANISM);
    C_Digest(data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_DigestUpdate(data: *mut CK_BYTE, length: CK_ULONG);
    C_DigestFinal(out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_SignUpdate(data: *mut CK_BYTE, length: CK_ULONG);
    C_SignRecover(data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_Verify(data: *mut CK_BYTE, length: CK_ULONG, signature: *mut CK_BYTE, signature_length: CK_ULONG);
    C_VerifyUpdate(data: *mut CK_BYTE, length: CK_ULONG);
    C_VerifyFinal(signature: *mut CK_BYTE, signature_length: CK_ULONG);
    C_VerifyRecover(signature: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_DigestEncryptUpdate(data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_DecryptDigestUpdate(data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_SignEncryptUpdate(data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_DecryptVerifyUpdate(data: *mut CK_BYTE, length: CK_ULONG, out: *mut CK_BYTE, out_length: *mut CK_ULONG);
    C_SeedRandom(seed: *mut CK_BYTE, length: CK_ULONG);
    C_GenerateRandom(out: *mut CK_BYTE, length: CK_ULONG);
    C_GetFunctionStatus();
    C_CancelFunction();
}

with_key! {
    C_EncryptInit;
    C_DecryptInit;
    C_SignRecoverInit;
    C_VerifyInit;
    C_VerifyRecoverInit;
}

// The module as a whole.

unsafe extern "C" fn C_Initialize(arguments: *mut c_void) -> CK_RV {
    call("C_Initialize", "", |faulty, _| {
        inner!(faulty, C_Initialize(arguments))
    })
}

unsafe extern "C" fn C_Finalize(reserved: *mut c_void) -> CK_RV {
    call("C_Finalize", "", |faulty, _| {
        inner!(faulty, C_Finalize(reserved))?;
        faulty.world().clear();
        Ok(())
    })
}

unsafe extern "C" fn C_GetInfo(info: *mut CK_INFO) -> CK_RV {
    call("C_GetInfo", "", |faulty, _| inner!(faulty, C_GetInfo(info)))
}

// Slots and tokens.

unsafe extern "C" fn C_GetSlotList(
    present: CK_BBOOL,
    list: *mut CK_SLOT_ID,
    count: *mut CK_ULONG,
) -> CK_RV {
    call("C_GetSlotList", "", |faulty, entered| {
        if count.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let mut ids = Vec::new();
        for slot in slots(faulty.inner, present)? {
            if present == CK_FALSE || !is_removed(faulty.inner, &entered.control, slot) {
                ids.push(faulty.world().outer_slot(slot));
            }
        }
        // SAFETY: `count` is not null, and the caller's otherwise.
        let room = unsafe { std::mem::replace(&mut *count, ids.len() as CK_ULONG) };
        if list.is_null() {
            return Ok(());
        }
        if room < ids.len() as CK_ULONG {
            return Err(CKR_BUFFER_TOO_SMALL);
        }
        // SAFETY: the caller says that there is room for so many ids, which are enough.
        unsafe { slice::from_raw_parts_mut(list, ids.len()) }.copy_from_slice(&ids);
        Ok(())
    })
}

unsafe extern "C" fn C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) -> CK_RV {
    call("C_GetSlotInfo", "", |faulty, entered| {
        let slot = faulty.world().inner_slot(slot);
        inner!(faulty, C_GetSlotInfo(slot, info))?;
        if is_removed(faulty.inner, &entered.control, slot) {
            // SAFETY: the real module has written to it.
            unsafe { (*info).flags &= !CKF_TOKEN_PRESENT };
        }
        Ok(())
    })
}

unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    call("C_GetTokenInfo", "", |faulty, entered| {
        let slot = present_slot(faulty, entered, slot)?;
        if info.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        faulty.world().spoil(slot);
        let mut told = token_info(faulty.inner, slot)?;
        let control = &entered.control;
        if control.keypad.is_some() {
            told.flags |= CKF_PROTECTED_AUTHENTICATION_PATH;
        }
        if let Some(cap) = control.session_cap.filter(|_| !control.silent_cap) {
            let open = faulty.world().session_count() as CK_ULONG;
            (told.ulMaxSessionCount, told.ulMaxRwSessionCount) = (cap, cap);
            (told.ulSessionCount, told.ulRwSessionCount) = (open, open);
        }
        if let Some(tries) = control.pin_tries {
            let left = tries.saturating_sub(wrong_pins(faulty, entered, &told));
            told.flags &= !(CKF_USER_PIN_COUNT_LOW | CKF_USER_PIN_FINAL_TRY | CKF_USER_PIN_LOCKED);
            if left < tries {
                told.flags |= CKF_USER_PIN_COUNT_LOW;
            }
            match left {
                0 => told.flags |= CKF_USER_PIN_LOCKED,
                1 => told.flags |= CKF_USER_PIN_FINAL_TRY,
                _ => {}
            }
        }
        // SAFETY: not null, and the caller's otherwise.
        unsafe { *info = told };
        Ok(())
    })
}

unsafe extern "C" fn C_GetMechanismList(
    slot: CK_SLOT_ID,
    list: *mut CK_MECHANISM_TYPE,
    count: *mut CK_ULONG,
) -> CK_RV {
    call("C_GetMechanismList", "", |faulty, entered| {
        let slot = present_slot(faulty, entered, slot)?;
        if count.is_null() {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let mut room = 0;
        inner!(
            faulty,
            C_GetMechanismList(slot, std::ptr::null_mut(), &mut room)
        )?;
        let mut told = vec![0; room as usize];
        inner!(
            faulty,
            C_GetMechanismList(slot, told.as_mut_ptr(), &mut room)
        )?;
        told.truncate(room as usize);
        if entered.control.hashes {
            told.extend(HASHING);
        }
        told.retain(|mechanism| !entered.control.hidden.contains(mechanism));
        // SAFETY: `count` is not null, and the caller's otherwise.
        let room = unsafe { std::mem::replace(&mut *count, told.len() as CK_ULONG) };
        if list.is_null() {
            return Ok(());
        }
        if room < told.len() as CK_ULONG {
            return Err(CKR_BUFFER_TOO_SMALL);
        }
        // SAFETY: the caller says that there is room for so many mechanisms, which are enough.
        unsafe { slice::from_raw_parts_mut(list, told.len()) }.copy_from_slice(&told);
        Ok(())
    })
}

unsafe extern "C" fn C_GetMechanismInfo(
    slot: CK_SLOT_ID,
    mechanism: CK_MECHANISM_TYPE,
    info: *mut CK_MECHANISM_INFO,
) -> CK_RV {
    call("C_GetMechanismInfo", "", |faulty, entered| {
        let slot = present_slot(faulty, entered, slot)?;
        if entered.control.hidden.contains(&mechanism) {
            return Err(CKR_MECHANISM_INVALID);
        }
        let real = real_mechanism(entered, mechanism);
        inner!(faulty, C_GetMechanismInfo(slot, real, info))?;
        let mut sizes = entered.control.sizes.iter();
        if let Some((_, min, max)) = sizes.find(|(of, ..)| *of == mechanism) {
            // SAFETY: the real module has written to it.
            unsafe { ((*info).ulMinKeySize, (*info).ulMaxKeySize) = (*min, *max) };
        }
        Ok(())
    })
}

unsafe extern "C" fn C_InitToken(
    slot: CK_SLOT_ID,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
    label: *mut CK_UTF8CHAR,
) -> CK_RV {
    call("C_InitToken", "", |faulty, entered| {
        let slot = present_slot(faulty, entered, slot)?;
        inner!(faulty, C_InitToken(slot, pin, length, label))
    })
}

unsafe extern "C" fn C_WaitForSlotEvent(
    flags: CK_FLAGS,
    slot: *mut CK_SLOT_ID,
    reserved: *mut c_void,
) -> CK_RV {
    let Some(faulty) = Faulty::get() else {
        return CKR_GENERAL_ERROR;
    };
    let ours = faulty.refresh().events;
    if !ours {
        // Outside `call`: it may block for ever, and must not keep the gate for as long.
        faulty.log("call C_WaitForSlotEvent");
        let forward = || {
            inner!(faulty, C_WaitForSlotEvent(flags, slot, reserved))?;
            // SAFETY: the real module has written to it.
            unsafe { *slot = faulty.world().outer_slot(*slot) };
            Ok(())
        };
        return forward().err().unwrap_or(CKR_OK);
    }
    if flags & CKF_DONT_BLOCK == 0 {
        faulty.log("wait C_WaitForSlotEvent");
        let control = faulty.refresh();
        // What happens to tokens is not seen any more while the gate is shut.
        let _gate = control.locks_while_it_waits.then(|| faulty.shut());
        while !faulty.world().has_event() {
            std::thread::sleep(LOOK);
            if !control.locks_while_it_waits {
                faulty.refresh();
            }
        }
    }
    call("C_WaitForSlotEvent", "", |faulty, _| {
        let event = faulty.world().event().ok_or(CKR_NO_EVENT)?;
        // SAFETY: the caller's place for one slot id.
        unsafe { *slot = event };
        Ok(())
    })
}

// Sessions and logins.

unsafe extern "C" fn C_OpenSession(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    handle: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    call("C_OpenSession", "", |faulty, entered| {
        let slot = present_slot(faulty, entered, slot)?;
        // Held over the call, or two threads would both get the last session.
        let mut world = faulty.world();
        let cap = entered.control.session_cap;
        if cap.is_some_and(|cap| world.session_count() >= cap) {
            return Err(CKR_SESSION_COUNT);
        }
        let mut inner = 0;
        inner!(
            faulty,
            C_OpenSession(slot, flags, application, notify, &mut inner)
        )?;
        // SAFETY: the caller's place for one handle.
        unsafe { *handle = world.opened(inner, slot) };
        Ok(())
    })
}

unsafe extern "C" fn C_CloseSession(session: CK_SESSION_HANDLE) -> CK_RV {
    call("C_CloseSession", "", |faulty, entered| {
        let known = open(faulty, entered, session)?;
        inner!(faulty, C_CloseSession(known.inner))?;
        faulty.world().closed(session);
        Ok(())
    })
}

unsafe extern "C" fn C_CloseAllSessions(slot: CK_SLOT_ID) -> CK_RV {
    call("C_CloseAllSessions", "", |faulty, entered| {
        let slot = present_slot(faulty, entered, slot)?;
        inner!(faulty, C_CloseAllSessions(slot))?;
        faulty.world().closed_all(slot);
        Ok(())
    })
}

unsafe extern "C" fn C_GetSessionInfo(
    session: CK_SESSION_HANDLE,
    info: *mut CK_SESSION_INFO,
) -> CK_RV {
    call("C_GetSessionInfo", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        inner!(faulty, C_GetSessionInfo(session.inner, info))?;
        // SAFETY: the real module has written to it.
        unsafe { (*info).slotID = faulty.world().outer_slot(session.slot) };
        Ok(())
    })
}

unsafe extern "C" fn C_Login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
) -> CK_RV {
    let hash = if pin.is_null() {
        0
    } else {
        // SAFETY: the caller's PIN, of the length given.
        hash(unsafe { slice::from_raw_parts(pin, length as usize) })
    };
    let detail = format!(" user={user} pin={hash:016x}");
    call("C_Login", detail, |faulty, entered| {
        let known = open(faulty, entered, session)?;
        let control = &entered.control;
        let (mut typed, mut pin, mut length, mut hash) =
            (control.keypad.clone(), pin, length, hash);
        if let Some(typed) = &mut typed {
            if !pin.is_null() {
                return Err(CKR_ARGUMENTS_BAD);
            }
            hash = self::hash(typed);
            (pin, length) = (typed.as_mut_ptr(), typed.len() as CK_ULONG);
        }
        // A key that is one for the real module has its login there.
        let context = user == CKU_CONTEXT_SPECIFIC && known.consent != Consent::None;
        if user != CKU_USER && !context {
            return inner!(faulty, C_Login(known.inner, user, pin, length));
        }
        let info = token_info(faulty.inner, known.slot)?;
        let serial = padded(&info.serialNumber);
        let wrong = wrong_pins(faulty, entered, &info);
        if control.pin_tries.is_some_and(|tries| wrong >= tries) {
            return Err(CKR_PIN_LOCKED);
        }
        faulty.log("reach C_Login");
        let result = if !context {
            inner!(faulty, C_Login(known.inner, user, pin, length))
        } else if known.consent != Consent::Awaited {
            Err(CKR_OPERATION_NOT_INITIALIZED)
        } else if faulty.world().is_pin(known.slot, hash) {
            Ok(())
        } else {
            Err(CKR_PIN_INCORRECT)
        };
        let count = |wrong| {
            if control.pin_tries.is_some() {
                faulty.keep_wrong_pins(&serial, wrong);
            }
        };
        match (result, control.right_pin) {
            (Ok(()), Some(lie)) => {
                if !context {
                    inner!(faulty, C_Logout(known.inner))?;
                }
                count(wrong + 1);
                Err(lie)
            }
            (Ok(()), None) => {
                count(0);
                let mut world = faulty.world();
                world.logged_in(known.slot, hash);
                if context {
                    world.set_consent(session, Consent::Given);
                }
                Ok(())
            }
            (Err(CKR_PIN_INCORRECT), _) => {
                count(wrong + 1);
                Err(control.wrong_pin.unwrap_or(CKR_PIN_INCORRECT))
            }
            (Err(code), _) => Err(code),
        }
    })
}

unsafe extern "C" fn C_SetPIN(
    session: CK_SESSION_HANDLE,
    old: *mut CK_UTF8CHAR,
    old_length: CK_ULONG,
    new: *mut CK_UTF8CHAR,
    length: CK_ULONG,
) -> CK_RV {
    call("C_SetPIN", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let control = &entered.control;
        let (mut typed, mut typed_new) = (control.keypad.clone(), control.keypad_new.clone());
        let (old, old_length, new, length) = match &mut typed {
            Some(_) if !old.is_null() || !new.is_null() => return Err(CKR_ARGUMENTS_BAD),
            Some(typed) => (
                typed.as_mut_ptr(),
                typed.len() as CK_ULONG,
                typed_new.as_mut_ptr(),
                typed_new.len() as CK_ULONG,
            ),
            None => (old, old_length, new, length),
        };
        inner!(
            faulty,
            C_SetPIN(session.inner, old, old_length, new, length)
        )
    })
}

unsafe extern "C" fn C_InitPIN(
    session: CK_SESSION_HANDLE,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
) -> CK_RV {
    call("C_InitPIN", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        inner!(faulty, C_InitPIN(session.inner, pin, length))?;
        if entered.control.pin_tries.is_some() {
            let info = token_info(faulty.inner, session.slot)?;
            faulty.keep_wrong_pins(&padded(&info.serialNumber), 0);
        }
        Ok(())
    })
}

unsafe extern "C" fn C_SetOperationState(
    session: CK_SESSION_HANDLE,
    state: *mut CK_BYTE,
    length: CK_ULONG,
    encryption_key: CK_OBJECT_HANDLE,
    authentication_key: CK_OBJECT_HANDLE,
) -> CK_RV {
    call("C_SetOperationState", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let key = |handle| match handle {
            CK_INVALID_HANDLE => Ok(CK_INVALID_HANDLE),
            handle => key_handle(faulty, entered, session, handle),
        };
        let (encryption, authentication) = (key(encryption_key)?, key(authentication_key)?);
        inner!(
            faulty,
            C_SetOperationState(session.inner, state, length, encryption, authentication)
        )
    })
}

// Objects.

unsafe extern "C" fn C_CreateObject(
    session: CK_SESSION_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    object: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    call("C_CreateObject", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        inner!(
            faulty,
            C_CreateObject(session.inner, template, count, object)
        )?;
        show(faulty, session, object);
        Ok(())
    })
}

unsafe extern "C" fn C_CopyObject(
    session: CK_SESSION_HANDLE,
    from: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    object: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    call("C_CopyObject", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let from = object_handle(faulty, entered, session, from)?;
        inner!(
            faulty,
            C_CopyObject(session.inner, from, template, count, object)
        )?;
        show(faulty, session, object);
        Ok(())
    })
}

unsafe extern "C" fn C_DestroyObject(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
) -> CK_RV {
    call("C_DestroyObject", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let object = object_handle(faulty, entered, session, object)?;
        inner!(faulty, C_DestroyObject(session.inner, object))
    })
}

unsafe extern "C" fn C_GetObjectSize(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    size: *mut CK_ULONG,
) -> CK_RV {
    call("C_GetObjectSize", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let object = object_handle(faulty, entered, session, object)?;
        inner!(faulty, C_GetObjectSize(session.inner, object, size))
    })
}

unsafe extern "C" fn C_GetAttributeValue(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    call("C_GetAttributeValue", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let is_always = is_always(faulty, entered, object);
        let object = object_handle(faulty, entered, session, object)?;
        if template.is_null() {
            return inner!(
                faulty,
                C_GetAttributeValue(session.inner, object, template, count)
            );
        }
        // SAFETY: the caller's template has so many attributes.
        let told = unsafe { slice::from_raw_parts_mut(template, count as usize) };
        let control = &entered.control;
        // What gets another form gets another length, so it is read into buffers of our own.
        let mut own: Vec<Option<[u8; 256]>> = told
            .iter()
            .map(|attribute| is_reshaped(control, attribute.type_).then_some([0; 256]))
            .collect();
        let mut asked = told.to_vec();
        for (attribute, buffer) in asked.iter_mut().zip(&mut own) {
            if let Some(buffer) = buffer {
                attribute.pValue = buffer.as_mut_ptr().cast();
                attribute.ulValueLen = buffer.len() as CK_ULONG;
            }
        }
        let mut result = inner!(
            faulty,
            C_GetAttributeValue(session.inner, object, asked.as_mut_ptr(), count)
        );
        for ((attribute, answer), buffer) in told.iter_mut().zip(&asked).zip(&own) {
            match buffer {
                Some(buffer) if answer.ulValueLen != CK_UNAVAILABLE_INFORMATION => {
                    let value = reshaped(control, attribute.type_, buffer, answer.ulValueLen);
                    result = result.and(hand_out(attribute, value));
                }
                Some(_) | None => attribute.ulValueLen = answer.ulValueLen,
            }
            for (kind, value) in &control.attributes {
                if attribute.type_ == *kind {
                    misreport(attribute, value);
                }
            }
            if is_always && attribute.type_ == CKA_ALWAYS_AUTHENTICATE {
                misreport(attribute, &[CK_TRUE]);
            }
        }
        result
    })
}

unsafe extern "C" fn C_SetAttributeValue(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    call("C_SetAttributeValue", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let object = object_handle(faulty, entered, session, object)?;
        inner!(
            faulty,
            C_SetAttributeValue(session.inner, object, template, count)
        )
    })
}

unsafe extern "C" fn C_FindObjects(
    session: CK_SESSION_HANDLE,
    objects: *mut CK_OBJECT_HANDLE,
    room: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    call("C_FindObjects", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        inner!(faulty, C_FindObjects(session.inner, objects, room, count))?;
        // SAFETY: the real module has written so many handles there.
        let found = unsafe { slice::from_raw_parts_mut(objects, *count as usize) };
        for handle in found {
            show(faulty, session, handle);
        }
        Ok(())
    })
}

// Keys.

unsafe extern "C" fn C_SignInit(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    call("C_SignInit", "", |faulty, entered| {
        let known = open(faulty, entered, session)?;
        mechanism_is_there(entered, mechanism)?;
        let is_always = is_always(faulty, entered, key);
        let key = key_handle(faulty, entered, known, key)?;
        // SAFETY: null or the caller's mechanism.
        let asked = unsafe { mechanism.as_ref() }.copied();
        let hash = asked.map(|asked| asked.mechanism);
        let hash = hash.filter(|asked| real_mechanism(entered, *asked) != *asked);
        let (mut real, mut mechanism) = (asked, mechanism);
        if let (Some(_), Some(real)) = (hash, &mut real) {
            real.mechanism = CKM_ECDSA;
            mechanism = real;
        }
        inner!(faulty, C_SignInit(known.inner, mechanism, key))?;
        faulty.world().set_hash(session, hash);
        let consent = if is_always {
            Consent::Awaited
        } else {
            Consent::None
        };
        faulty.world().set_consent(session, consent);
        Ok(())
    })
}

unsafe extern "C" fn C_Sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    length: CK_ULONG,
    signature: *mut CK_BYTE,
    signature_length: *mut CK_ULONG,
) -> CK_RV {
    call("C_Sign", "", |faulty, entered| {
        let known = open(faulty, entered, session)?;
        if matches!(known.consent, Consent::Awaited | Consent::Spoilt) {
            // The operation ends, as it does after every error but CKR_BUFFER_TOO_SMALL.
            let (mut scratch, mut room) = ([0u8; 1024], 1024);
            let end = inner!(
                faulty,
                C_Sign(known.inner, data, length, scratch.as_mut_ptr(), &mut room)
            );
            faulty.world().set_consent(session, Consent::None);
            return end.and(Err(CKR_USER_NOT_LOGGED_IN));
        }
        let (mut digest, mut data, mut length) = (Vec::new(), data, length);
        if let Some(hash) = known.hash {
            use aws_lc_rs::digest;
            let algorithm = match hash {
                CKM_ECDSA_SHA384 => &digest::SHA384,
                _ => &digest::SHA256,
            };
            // SAFETY: the caller's data, of the length given.
            let message = unsafe { slice::from_raw_parts(data, length as usize) };
            digest.extend_from_slice(digest::digest(algorithm, message).as_ref());
            (data, length) = (digest.as_mut_ptr(), digest.len() as CK_ULONG);
        }
        inner!(
            faulty,
            C_Sign(known.inner, data, length, signature, signature_length)
        )?;
        flip(entered, signature, signature_length);
        Ok(())
    })
}

unsafe extern "C" fn C_SignFinal(
    session: CK_SESSION_HANDLE,
    signature: *mut CK_BYTE,
    signature_length: *mut CK_ULONG,
) -> CK_RV {
    call("C_SignFinal", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        inner!(
            faulty,
            C_SignFinal(session.inner, signature, signature_length)
        )?;
        flip(entered, signature, signature_length);
        Ok(())
    })
}

unsafe extern "C" fn C_DigestKey(session: CK_SESSION_HANDLE, key: CK_OBJECT_HANDLE) -> CK_RV {
    call("C_DigestKey", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let key = key_handle(faulty, entered, session, key)?;
        inner!(faulty, C_DigestKey(session.inner, key))
    })
}

unsafe extern "C" fn C_GenerateKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    call("C_GenerateKey", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        mechanism_is_there(entered, mechanism)?;
        inner!(
            faulty,
            C_GenerateKey(session.inner, mechanism, template, count, key)
        )?;
        show(faulty, session, key);
        Ok(())
    })
}

unsafe extern "C" fn C_GenerateKeyPair(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    public_template: *mut CK_ATTRIBUTE,
    public_count: CK_ULONG,
    private_template: *mut CK_ATTRIBUTE,
    private_count: CK_ULONG,
    public_key: *mut CK_OBJECT_HANDLE,
    private_key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    call("C_GenerateKeyPair", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        mechanism_is_there(entered, mechanism)?;
        // SAFETY: the caller's templates have so many attributes.
        let (public, private) = unsafe {
            (
                slice::from_raw_parts(public_template, public_count as usize),
                slice::from_raw_parts(private_template, private_count as usize),
            )
        };
        for attribute in public.iter().chain(private) {
            template_is_taken(&entered.control, attribute)?;
        }
        let mut public = public.to_vec();
        if entered.control.edwards_by_name {
            for attribute in public.iter_mut().filter(|a| a.type_ == CKA_EC_PARAMS) {
                if value_of(attribute) == ED25519_NAME {
                    attribute.pValue = ED25519_OID.as_ptr().cast_mut().cast();
                    attribute.ulValueLen = ED25519_OID.len() as CK_ULONG;
                }
            }
        }
        let public_template = public.as_mut_ptr();
        inner!(
            faulty,
            C_GenerateKeyPair(
                session.inner,
                mechanism,
                public_template,
                public_count,
                private_template,
                private_count,
                public_key,
                private_key
            )
        )?;
        show(faulty, session, public_key);
        show(faulty, session, private_key);
        Ok(())
    })
}

unsafe extern "C" fn C_WrapKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    wrapping_key: CK_OBJECT_HANDLE,
    key: CK_OBJECT_HANDLE,
    wrapped: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    call("C_WrapKey", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let wrapping_key = key_handle(faulty, entered, session, wrapping_key)?;
        let key = key_handle(faulty, entered, session, key)?;
        inner!(
            faulty,
            C_WrapKey(session.inner, mechanism, wrapping_key, key, wrapped, length)
        )
    })
}

unsafe extern "C" fn C_UnwrapKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    unwrapping_key: CK_OBJECT_HANDLE,
    wrapped: *mut CK_BYTE,
    length: CK_ULONG,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    call("C_UnwrapKey", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let unwrapping_key = key_handle(faulty, entered, session, unwrapping_key)?;
        inner!(
            faulty,
            C_UnwrapKey(
                session.inner,
                mechanism,
                unwrapping_key,
                wrapped,
                length,
                template,
                count,
                key
            )
        )?;
        show(faulty, session, key);
        Ok(())
    })
}

unsafe extern "C" fn C_DeriveKey(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    base_key: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
    key: *mut CK_OBJECT_HANDLE,
) -> CK_RV {
    call("C_DeriveKey", "", |faulty, entered| {
        let session = open(faulty, entered, session)?;
        let base_key = key_handle(faulty, entered, session, base_key)?;
        inner!(
            faulty,
            C_DeriveKey(session.inner, mechanism, base_key, template, count, key)
        )?;
        show(faulty, session, key);
        Ok(())
    })
}

// What they share.

fn open(faulty: &Faulty, entered: &Entered<'_>, session: CK_SESSION_HANDLE) -> Result<Open, CK_RV> {
    faulty
        .world()
        .session(faulty.inner, &entered.control, session)
}

/// The real id of a slot whose token is not taken out.
fn present_slot(
    faulty: &Faulty,
    entered: &Entered<'_>,
    slot: CK_SLOT_ID,
) -> Result<CK_SLOT_ID, CK_RV> {
    let slot = faulty.world().inner_slot(slot);
    if is_removed(faulty.inner, &entered.control, slot) {
        return Err(CKR_TOKEN_NOT_PRESENT);
    }
    Ok(slot)
}

/// Whether each use of this key needs a login of its own.
fn is_always(faulty: &Faulty, entered: &Entered<'_>, key: CK_OBJECT_HANDLE) -> bool {
    let id = faulty.world().id_of(key);
    entered.control.always_authenticate.covers(&id)
}

fn object_handle(
    faulty: &Faulty,
    entered: &Entered<'_>,
    session: Open,
    object: CK_OBJECT_HANDLE,
) -> Result<CK_OBJECT_HANDLE, CK_RV> {
    faulty
        .world()
        .object(faulty.inner, &entered.control, session, object)
}

/// The same for a key that an operation shall use, for which the code of a bad handle is another.
fn key_handle(
    faulty: &Faulty,
    entered: &Entered<'_>,
    session: Open,
    key: CK_OBJECT_HANDLE,
) -> Result<CK_OBJECT_HANDLE, CK_RV> {
    object_handle(faulty, entered, session, key).map_err(|code| match code {
        CKR_OBJECT_HANDLE_INVALID => CKR_KEY_HANDLE_INVALID,
        code => code,
    })
}

/// Replaces a handle of the real module by the one that the caller knows.
fn show(faulty: &Faulty, session: Open, handle: *mut CK_OBJECT_HANDLE) {
    // SAFETY: the real module has just written a handle there.
    let place = unsafe { &mut *handle };
    *place = faulty.world().show(faulty.inner, session, *place);
}

/// The mechanisms that `hashes` adds.
const HASHING: [CK_MECHANISM_TYPE; 2] = [CKM_ECDSA_SHA256, CKM_ECDSA_SHA384];

/// What the real module knows a mechanism as.
fn real_mechanism(entered: &Entered<'_>, mechanism: CK_MECHANISM_TYPE) -> CK_MECHANISM_TYPE {
    if entered.control.hashes && HASHING.contains(&mechanism) {
        CKM_ECDSA
    } else {
        mechanism
    }
}

fn mechanism_is_there(entered: &Entered<'_>, mechanism: *const CK_MECHANISM) -> Result<(), CK_RV> {
    // SAFETY: null or the caller's mechanism.
    match unsafe { mechanism.as_ref() } {
        Some(asked) if entered.control.hidden.contains(&asked.mechanism) => {
            Err(CKR_MECHANISM_INVALID)
        }
        _ => Ok(()),
    }
}

/// How many wrong PINs a token got.
fn wrong_pins(faulty: &Faulty, entered: &Entered<'_>, info: &CK_TOKEN_INFO) -> u64 {
    faulty
        .wrong_pins(&padded(&info.serialNumber))
        .unwrap_or(entered.control.pin_spent)
}

/// CKA_EC_PARAMS of Ed25519: the object identifier of RFC 8410.
const ED25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

/// The same as PKCS#11 v3.0 section 2.3.3 has it: a PrintableString.
const ED25519_NAME: &[u8] = b"\x13\x0cedwards25519";

fn value_of(attribute: &CK_ATTRIBUTE) -> &[u8] {
    if attribute.pValue.is_null() {
        return &[];
    }
    // SAFETY: the caller's value, of the length given.
    unsafe { slice::from_raw_parts(attribute.pValue.cast(), attribute.ulValueLen as usize) }
}

/// Whether a template for a key may have this attribute.
fn template_is_taken(control: &Control, attribute: &CK_ATTRIBUTE) -> Result<(), CK_RV> {
    let value = value_of(attribute);
    if control.edwards_by_name && attribute.type_ == CKA_EC_PARAMS && value == ED25519_OID {
        return Err(CKR_CURVE_NOT_SUPPORTED);
    }
    let refused = control.refused.iter().find(|refused| {
        refused.kind == attribute.type_ && refused.value.as_ref().is_none_or(|other| other == value)
    });
    refused.map_or(Ok(()), |refused| Err(refused.code))
}

/// Whether an attribute is told in another form than the real module's.
fn is_reshaped(control: &Control, kind: CK_ATTRIBUTE_TYPE) -> bool {
    (control.bare_points && kind == CKA_EC_POINT)
        || (control.edwards_by_name && kind == CKA_EC_PARAMS)
}

fn reshaped<'a>(
    control: &Control,
    kind: CK_ATTRIBUTE_TYPE,
    buffer: &'a [u8],
    length: CK_ULONG,
) -> &'a [u8] {
    let value = buffer.get(..length as usize).unwrap_or_default();
    match value {
        [4, size, bare @ ..] if kind == CKA_EC_POINT && usize::from(*size) == bare.len() => bare,
        ED25519_OID if control.edwards_by_name => ED25519_NAME,
        value => value,
    }
}

/// Tells an attribute as PKCS#11 v2.40 section 5.7.5 has it.
fn hand_out(attribute: &mut CK_ATTRIBUTE, value: &[u8]) -> Result<(), CK_RV> {
    let room = attribute.ulValueLen as usize;
    attribute.ulValueLen = value.len() as CK_ULONG;
    if attribute.pValue.is_null() {
        return Ok(());
    }
    if room < value.len() {
        attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION;
        return Err(CKR_BUFFER_TOO_SMALL);
    }
    // SAFETY: the caller's buffer has room for so many bytes.
    unsafe { slice::from_raw_parts_mut(attribute.pValue.cast::<u8>(), value.len()) }
        .copy_from_slice(value);
    Ok(())
}

/// Overwrites what the real module said of an attribute that the object has.
fn misreport(attribute: &mut CK_ATTRIBUTE, value: &[u8]) {
    if attribute.ulValueLen == CK_UNAVAILABLE_INFORMATION {
        return;
    }
    let room = attribute.ulValueLen as usize;
    if !attribute.pValue.is_null() {
        if room < value.len() {
            return;
        }
        // SAFETY: the caller's buffer has at least as many bytes as the real module wrote.
        unsafe { slice::from_raw_parts_mut(attribute.pValue.cast::<u8>(), value.len()) }
            .copy_from_slice(value);
    }
    attribute.ulValueLen = value.len() as CK_ULONG;
}

/// Flips the bit of a signature that a fault asks for.
fn flip(entered: &Entered<'_>, signature: *mut CK_BYTE, length: *mut CK_ULONG) {
    let Some(bit) = entered.flip else {
        return;
    };
    if signature.is_null() {
        return;
    }
    // SAFETY: the real module has written so many bytes there.
    let signature = unsafe { slice::from_raw_parts_mut(signature, *length as usize) };
    let place = bit / 8 % signature.len().max(1);
    if let Some(byte) = signature.get_mut(place) {
        *byte ^= 1 << (bit % 8);
    }
}

/// Tells PINs apart in the log without showing them. The same number in every process.
fn hash(pin: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    pin.hash(&mut hasher);
    hasher.finish()
}

static FUNCTIONS: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
    version: CK_VERSION {
        major: 2,
        minor: 40,
    },
    C_Initialize: Some(C_Initialize),
    C_Finalize: Some(C_Finalize),
    C_GetInfo: Some(C_GetInfo),
    C_GetFunctionList: Some(C_GetFunctionList),
    C_GetSlotList: Some(C_GetSlotList),
    C_GetSlotInfo: Some(C_GetSlotInfo),
    C_GetTokenInfo: Some(C_GetTokenInfo),
    C_GetMechanismList: Some(C_GetMechanismList),
    C_GetMechanismInfo: Some(C_GetMechanismInfo),
    C_InitToken: Some(C_InitToken),
    C_InitPIN: Some(C_InitPIN),
    C_SetPIN: Some(C_SetPIN),
    C_OpenSession: Some(C_OpenSession),
    C_CloseSession: Some(C_CloseSession),
    C_CloseAllSessions: Some(C_CloseAllSessions),
    C_GetSessionInfo: Some(C_GetSessionInfo),
    C_GetOperationState: Some(C_GetOperationState),
    C_SetOperationState: Some(C_SetOperationState),
    C_Login: Some(C_Login),
    C_Logout: Some(C_Logout),
    C_CreateObject: Some(C_CreateObject),
    C_CopyObject: Some(C_CopyObject),
    C_DestroyObject: Some(C_DestroyObject),
    C_GetObjectSize: Some(C_GetObjectSize),
    C_GetAttributeValue: Some(C_GetAttributeValue),
    C_SetAttributeValue: Some(C_SetAttributeValue),
    C_FindObjectsInit: Some(C_FindObjectsInit),
    C_FindObjects: Some(C_FindObjects),
    C_FindObjectsFinal: Some(C_FindObjectsFinal),
    C_EncryptInit: Some(C_EncryptInit),
    C_Encrypt: Some(C_Encrypt),
    C_EncryptUpdate: Some(C_EncryptUpdate),
    C_EncryptFinal: Some(C_EncryptFinal),
    C_DecryptInit: Some(C_DecryptInit),
    C_Decrypt: Some(C_Decrypt),
    C_DecryptUpdate: Some(C_DecryptUpdate),
    C_DecryptFinal: Some(C_DecryptFinal),
    C_DigestInit: Some(C_DigestInit),
    C_Digest: Some(C_Digest),
    C_DigestUpdate: Some(C_DigestUpdate),
    C_DigestKey: Some(C_DigestKey),
    C_DigestFinal: Some(C_DigestFinal),
    C_SignInit: Some(C_SignInit),
    C_Sign: Some(C_Sign),
    C_SignUpdate: Some(C_SignUpdate),
    C_SignFinal: Some(C_SignFinal),
    C_SignRecoverInit: Some(C_SignRecoverInit),
    C_SignRecover: Some(C_SignRecover),
    C_VerifyInit: Some(C_VerifyInit),
    C_Verify: Some(C_Verify),
    C_VerifyUpdate: Some(C_VerifyUpdate),
    C_VerifyFinal: Some(C_VerifyFinal),
    C_VerifyRecoverInit: Some(C_VerifyRecoverInit),
    C_VerifyRecover: Some(C_VerifyRecover),
    C_DigestEncryptUpdate: Some(C_DigestEncryptUpdate),
    C_DecryptDigestUpdate: Some(C_DecryptDigestUpdate),
    C_SignEncryptUpdate: Some(C_SignEncryptUpdate),
    C_DecryptVerifyUpdate: Some(C_DecryptVerifyUpdate),
    C_GenerateKey: Some(C_GenerateKey),
    C_GenerateKeyPair: Some(C_GenerateKeyPair),
    C_WrapKey: Some(C_WrapKey),
    C_UnwrapKey: Some(C_UnwrapKey),
    C_DeriveKey: Some(C_DeriveKey),
    C_SeedRandom: Some(C_SeedRandom),
    C_GenerateRandom: Some(C_GenerateRandom),
    C_GetFunctionStatus: Some(C_GetFunctionStatus),
    C_CancelFunction: Some(C_CancelFunction),
    C_WaitForSlotEvent: Some(C_WaitForSlotEvent),
};
