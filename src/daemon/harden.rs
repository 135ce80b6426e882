//! What the process gives up before it holds anything secret.

use rustix::fs::Mode;
use rustix::process::umask;

use super::failure::Failure;
use crate::api::problem::{Code, Problem};
use crate::base::memory::{lock_all, undumpable};
use crate::base::sysexits::{EX_NOPERM, EX_OSERR};

/// Refuses to run as root unless `allowed`: what an attacker makes of the daemon would be root too,
/// and what root leaves in the state directory the service user could not open later.
pub fn privileges(allowed: bool) -> Result<(), Failure> {
    if allowed || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new(
        EX_NOPERM,
        Problem::new(Code::NotPermitted, "opcertd was started as root").with_action(
            "Start it as a user of its own, as its systemd unit does, or pass --allow-root.",
        ),
    ))
}

/// No core dump, no attaching by other processes of the same user, private files.
///
/// A PIN passes through this process on its way to a worker; a core dump or a debugger of another
/// program of the user would show it.
pub fn process() -> Result<(), Failure> {
    umask(Mode::from_raw_mode(0o077));
    undumpable()
        .map_err(|error| Failure::system(EX_OSERR, "the process cannot be made undumpable", &error))
}

/// Keeps the process's memory out of swap: PINs and API secrets pass through it, in buffers of
/// several libraries. Where that is not allowed, a warning is logged and the rest goes on: PINs
/// that are kept lie in locked pages of their own.
pub fn memory() {
    if let Err(error) = lock_all() {
        tracing::warn!(
            why = %error,
            "memory is not locked; secrets in use could reach the swap"
        );
    }
}
