//! A PKCS#11 module that fails on command.
//!
//! It stands in front of a real module and forwards every function of `CK_FUNCTION_LIST` 2.40 to
//! it. On the way it does what real hardware and its drivers do now and then: tokens are pulled
//! out, calls hang, libraries crash, PINs lock. SoftHSM2 shows none of that, and those are the
//! bugs that matter.
//!
//! # Environment
//!
//! | variable | meaning |
//! | --- | --- |
//! | `FAULTY_MODULE` | path of the real module |
//! | `FAULTY_CONTROL` | path of the control file; it may be missing, and is read again whenever it changed. State that outlives a process lies beside it, in `FAULTY_CONTROL` + `.state/` |
//! | `FAULTY_LOG` | file to which one line is appended per event; optional |
//!
//! # Control file
//!
//! Tests replace it by rename while the module runs. Text, one fault a line: a word, then
//! `key=value` pairs. `%XX` in a value stands for one byte; numbers are decimal or `0x…`; a line
//! that begins with `#` is a comment. A line that cannot be read aborts the process: it is an
//! error of the test.
//!
//! Faults of single calls. `on=` names functions, separated by commas, or is `*`. `times=N` ends
//! the fault after N calls, `skip=N` lets N calls pass first; both count over all processes that
//! use the control file, under the name `id=`, which no other fault may have had before.
//!
//! | line | what happens to the call |
//! | --- | --- |
//! | `hang` | it waits until the line is gone from the control file, then goes on |
//! | `slow ms=N` | it takes so much longer |
//! | `return code=N [when=before\|after]` | it returns this code, without or in spite of having done its work; without `code=`, CKR_GENERAL_ERROR |
//! | `crash [by=segv\|abort]` | the process dies |
//! | `exit [status=N]` | the process ends by `exit`, exit handlers included |
//! | `print text=… [to=stdout\|stderr]` | it writes to a standard stream |
//! | `leak [count=N]` | it leaves descriptors open |
//! | `reach what=read\|write\|unix\|tcp\|netlink\|exec\|spawn\|call at=…` | it tries to reach a file, a socket, an address, a program, or makes the system call with this number, and logs what came of it |
//! | `flip [bit=N]` | one bit of the signature made by C_Sign or C_SignFinal is flipped |
//!
//! The state of the world. A count means "has happened so often"; a larger count than the one
//! seen before makes it happen once more.
//!
//! | line | what it means |
//! | --- | --- |
//! | `removed [token=LABEL]` | this token is out, or all are: its sessions are closed, calls in them return CKR_DEVICE_REMOVED |
//! | `inserted count=N [slots=same\|new] [handles=invalid\|swapped]` | all tokens were out and are back: sessions of before are closed; slot ids are the same or new; object handles of before mean nothing, or another object of the same class |
//! | `expired count=N` | all sessions were closed from outside; the user is logged out with them |
//! | `logged-out count=N` | another program logged the user out; sessions stay |
//! | `idle ms=N` | a session not used for so long is closed |
//! | `sessions max=N [report=yes\|no]` | so many sessions may be open; told in CK_TOKEN_INFO or not |
//! | `pin tries=N [spent=M]` | so many wrong PINs lock the token; M were given before the first one counted here. The count is kept per serial over processes and shows in the PIN flags |
//! | `lie [wrong=CODE] [right=CODE]` | what C_Login returns for a wrong and for a right PIN; a right PIN answered with an error does not log in, and counts as a wrong one |
//! | `hide mechanism=N` | the token denies having it |
//! | `sizes mechanism=N min=BITS max=BITS` | the sizes of keys that it admits to for it |
//! | `hashes` | it has CKM_ECDSA_SHA256 and CKM_ECDSA_SHA384, made of the real module's CKM_ECDSA |
//! | `refuse attribute=N [value=…] code=N` | C_GenerateKeyPair returns this code for templates that have the attribute, or this value of it |
//! | `bare-points` | CKA_EC_POINT comes without its OCTET STRING |
//! | `edwards-by-name` | CKA_EC_PARAMS of Ed25519 is taken, and given, as the name of the curve only |
//! | `attribute type=N value=…` | every object reports this value for the attribute |
//! | `always-authenticate [id=…]` | private keys, or the one with this CKA_ID, are CKA_ALWAYS_AUTHENTICATE: C_Sign needs a context-specific login right after C_SignInit, and nothing between, in no session of the token |
//! | `keypad pin=… [new=…]` | CKF_PROTECTED_AUTHENTICATION_PATH: C_Login takes no PIN but asks for it on the device, where this one is typed; C_SetPIN takes none either, and the new one is typed there |
//! | `events [lock=no\|yes]` | C_WaitForSlotEvent reports removals and insertions; with a lock held, a wait hangs all other calls. Without the line, what the real module does |
//!
//! # Log
//!
//! `PID TID call FUNCTION …` when a call begins; `PID TID return FUNCTION 0xCODE` when it ends in
//! an error, and for C_Login always. `PID TID wait C_WaitForSlotEvent` comes first where that waits. The begin of a C_Login carries `user=N pin=HASH`, so that an
//! attempt is on record also when the process does not survive it; `PID TID reach C_Login` follows
//! when the token looks at the PIN. `PID TID reach WHAT=AT ERRNO` says what came of `reach`, 0 for
//! success.

#![allow(non_snake_case)]

mod control;
mod faulty;
mod functions;
mod tokens;

pub use functions::C_GetFunctionList;
