//! The calls that have no safe form: the single-part `C_Sign` and `C_Decrypt`, `C_Initialize` with
//! parameters, and `_exit`.
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
use cryptoki_sys::{
    CK_BYTE, CK_FLAGS, CK_FUNCTION_LIST, CK_RV, CK_SESSION_HANDLE, CK_ULONG, CKF_OS_LOCKING_OK,
    CKR_OK,
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
