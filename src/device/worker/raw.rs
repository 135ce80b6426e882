//! The calls that have no safe form: the single-part `C_Sign` and `C_Decrypt`, `C_Initialize` with
//! parameters, what sets PINs that a person types on the device, and `_exit`.
//!
//! cryptoki asks for the length first and then calls it again: a second round trip on a
//! network HSM, and some modules end the operation at the first. Signatures of the schemes in use,
//! and what RSA decrypts, fit in [`SIGNATURE_MAX`], so one call is enough. For keys that want a login
//! for each use there is no other way: it has to come between the two halves.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};
use std::path::Path;

use cryptoki::context::Function;
use cryptoki::error::{Error, Rv};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use cryptoki_sys::{
    CK_BYTE, CK_FLAGS, CK_FUNCTION_LIST, CK_RV, CK_SESSION_HANDLE, CK_SLOT_ID, CK_ULONG,
    CK_UTF8CHAR, CKF_OS_LOCKING_OK, CKR_OK,
};

/// The most bytes of a signature: RSA with 8192 bits.
pub const SIGNATURE_MAX: usize = 1024;

/// `C_Sign` and `C_Decrypt` look the same.
type OnePart = unsafe extern "C" fn(
    CK_SESSION_HANDLE,
    *mut CK_BYTE,
    CK_ULONG,
    *mut CK_BYTE,
    *mut CK_ULONG,
) -> CK_RV;

/// `C_Sign` and `C_Decrypt` of the loaded module.
#[derive(Clone, Copy)]
pub struct Raw {
    sign: OnePart,
    /// Absent where the module only signs.
    decrypt: Option<OnePart>,
}

impl Raw {
    /// Finds the functions in the module at `path`, which must be initialized through cryptoki
    /// already; the dynamic linker hands out the same instance.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let list = functions(path)?.ok_or(Error::NullFunctionPointer)?;
        Ok(Self {
            sign: list.C_Sign.ok_or(Error::NullFunctionPointer)?,
            decrypt: list.C_Decrypt,
        })
    }

    /// Ends the signature that `sign_init` began on `session`; returns how many bytes of
    /// `signature` it takes.
    pub fn sign(
        self,
        session: &Session,
        data: &[u8],
        signature: &mut [u8; SIGNATURE_MAX],
    ) -> Result<usize, Error> {
        one_part(self.sign, Function::Sign, session, data, signature)
    }

    /// Ends the decryption that `decrypt_init` began on `session`; returns how many bytes of
    /// `plaintext` it takes.
    pub fn decrypt(
        self,
        session: &Session,
        data: &[u8],
        plaintext: &mut [u8; SIGNATURE_MAX],
    ) -> Result<usize, Error> {
        let function = self.decrypt.ok_or(Error::NullFunctionPointer)?;
        one_part(function, Function::Decrypt, session, data, plaintext)
    }
}

fn one_part(
    function: OnePart,
    name: Function,
    session: &Session,
    data: &[u8],
    output: &mut [u8; SIGNATURE_MAX],
) -> Result<usize, Error> {
    let mut length = SIGNATURE_MAX as CK_ULONG;
    // SAFETY: the function was taken from the module's list under its own name, so it has this
    // signature. It only reads `data`, whose length is given, although C declares it without
    // const; it writes at most `length` bytes to `output`. `Session` is not Sync: no other thread
    // uses the handle meanwhile.
    let code = unsafe {
        function(
            session.handle(),
            data.as_ptr().cast_mut(),
            data.len() as CK_ULONG,
            output.as_mut_ptr(),
            &mut length,
        )
    };
    if code != CKR_OK {
        Rv::from(code).into_result(name)?;
    }
    Ok((length as usize).min(SIGNATURE_MAX))
}

type InitToken =
    unsafe extern "C" fn(CK_SLOT_ID, *mut CK_UTF8CHAR, CK_ULONG, *mut CK_UTF8CHAR) -> CK_RV;
type InitPin = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_UTF8CHAR, CK_ULONG) -> CK_RV;
type SetPin = unsafe extern "C" fn(
    CK_SESSION_HANDLE,
    *mut CK_UTF8CHAR,
    CK_ULONG,
    *mut CK_UTF8CHAR,
    CK_ULONG,
) -> CK_RV;

/// What sets PINs that a person types on the device: each call gets null in their place (PKCS#11
/// v3.0 sections 5.5.7, 5.6.4 and 5.6.5).
#[derive(Clone, Copy)]
pub struct OnDevice {
    init_token: Option<InitToken>,
    init_pin: Option<InitPin>,
    set_pin: Option<SetPin>,
}

impl OnDevice {
    /// Finds the functions, as [`Raw::load`] does.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let list = functions(path)?.ok_or(Error::NullFunctionPointer)?;
        Ok(Self {
            init_token: list.C_InitToken,
            init_pin: list.C_InitPIN,
            set_pin: list.C_SetPIN,
        })
    }

    /// `C_InitToken`; of `label` the first 32 bytes count.
    pub fn init_token(self, slot: Slot, label: &str) -> Result<(), Error> {
        let function = self.init_token.ok_or(Error::NullFunctionPointer)?;
        let mut padded = [b' '; 32];
        for (place, byte) in padded.iter_mut().zip(label.bytes()) {
            *place = byte;
        }
        // SAFETY: the function was taken from the module's list under its own name, so it has
        // this signature. It reads the 32 bytes of the label, and nothing at the null pointer.
        let code = unsafe { function(slot.id(), std::ptr::null_mut(), 0, padded.as_mut_ptr()) };
        Rv::from(code).into_result(Function::InitToken)
    }

    /// `C_InitPIN`.
    pub fn init_pin(self, session: &Session) -> Result<(), Error> {
        let function = self.init_pin.ok_or(Error::NullFunctionPointer)?;
        // SAFETY: as above; `Session` is not Sync, so no other thread uses the handle meanwhile.
        let code = unsafe { function(session.handle(), std::ptr::null_mut(), 0) };
        Rv::from(code).into_result(Function::InitPIN)
    }

    /// `C_SetPIN`.
    pub fn set_pin(self, session: &Session) -> Result<(), Error> {
        let function = self.set_pin.ok_or(Error::NullFunctionPointer)?;
        let null = std::ptr::null_mut;
        // SAFETY: as above.
        let code = unsafe { function(session.handle(), null(), 0, null(), 0) };
        Rv::from(code).into_result(Function::SetPIN)
    }
}

/// The function list of the module at `path`, which must be loaded through cryptoki already.
fn functions(path: &Path) -> Result<Option<&'static CK_FUNCTION_LIST>, Error> {
    // SAFETY: loading a library runs its initializers. It is loaded already, so there are none
    // left to run; that vendor code runs here at all is the purpose of this process.
    let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.map_err(Error::LibraryLoading)?;
    if library.C_GetFunctionList.is_err() {
        return Err(Error::MissingSymbol("C_GetFunctionList"));
    }
    let mut list = std::ptr::null_mut();
    // SAFETY: the symbol was found just above, and `list` is a valid place for one pointer.
    let code = unsafe { library.C_GetFunctionList(&mut list) };
    if code != CKR_OK {
        Rv::from(code).into_result(Function::GetFunctionList)?;
    }
    // The library must stay: the functions are in it.
    std::mem::forget(library);
    // SAFETY: after CKR_OK a module's `list` is null or points to its static function list
    // (PKCS#11 v3.0 section 5.4.4); null is told apart by `as_ref`.
    Ok(unsafe { list.as_ref() })
}

/// `CK_C_INITIALIZE_ARGS` as NSS has it (pkcs11t.h of NSS, `CK_C_INITIALIZE_ARGS_NSS`).
#[repr(C)]
struct InitializeArgs {
    mutexes: [*const c_void; 4],
    flags: CK_FLAGS,
    library_parameters: *const c_char,
    reserved: *const c_void,
}

/// `C_Initialize` with parameters for the library. They must hold no NUL.
pub fn initialize(path: &Path, parameters: &str) -> Result<(), Error> {
    let list = functions(path)?;
    let function = list.and_then(|list| list.C_Initialize);
    let function = function.ok_or(Error::NullFunctionPointer)?;
    let parameters = CString::new(parameters).map_err(|_| Error::InvalidValue)?;
    let mut arguments = InitializeArgs {
        mutexes: [std::ptr::null(); 4],
        flags: CKF_OS_LOCKING_OK,
        library_parameters: parameters.as_ptr(),
        reserved: std::ptr::null(),
    };
    // SAFETY: a library that knows the field reads the whole structure; one that does not reads it
    // as CK_C_INITIALIZE_ARGS, which is its beginning with `pReserved` in the field's place, and
    // must refuse what is not null there (PKCS#11 v3.0 section 5.4.1). The structure and the text
    // live until the call returns.
    let code = unsafe { function((&raw mut arguments).cast()) };
    Rv::from(code).into_result(Function::Initialize)
}

unsafe extern "C" {
    // SAFETY: POSIX `_exit` has no precondition.
    #[link_name = "_exit"]
    safe fn posix_exit(status: std::ffi::c_int) -> !;
}

/// Ends the process without the exit handlers of vendor libraries, which crash or hang while other
/// threads are inside the module.
pub fn exit_now(status: u8) -> ! {
    posix_exit(std::ffi::c_int::from(status))
}
