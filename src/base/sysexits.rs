//! Exit codes of all programs, by the names of `sysexits.h` (FreeBSD `sysexits(3)`).

/// Success.
pub const EX_OK: u8 = 0;
/// The question was answered with "no": a verification failed.
pub const EX_FAILED: u8 = 1;
/// The command line was wrong.
pub const EX_USAGE: u8 = 64;
/// Input was malformed.
pub const EX_DATAERR: u8 = 65;
/// An input file is missing or unreadable.
pub const EX_NOINPUT: u8 = 66;
/// A needed service or device is not there.
pub const EX_UNAVAILABLE: u8 = 69;
/// A fault of the program itself.
pub const EX_SOFTWARE: u8 = 70;
/// The operating system refused something basic.
pub const EX_OSERR: u8 = 71;
/// An output file cannot be created.
pub const EX_CANTCREAT: u8 = 73;
/// Reading or writing failed.
pub const EX_IOERR: u8 = 74;
/// It may work later.
pub const EX_TEMPFAIL: u8 = 75;
/// Permission denied, a refused PIN included: systemd must not restart on it.
pub const EX_NOPERM: u8 = 77;
/// The configuration is wrong.
pub const EX_CONFIG: u8 = 78;
