//! What the process gives up before it holds anything secret.

use rustix::fs::Mode;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask,
};
use rustix::thread::{CapabilitySet, capabilities};

use super::failure::Failure;
use crate::api::problem::{Code, Problem};
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
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)
        .map_err(|error| Failure::system(EX_OSERR, "core dumps cannot be turned off", &error))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| Failure::system(EX_OSERR, "the process cannot be made undumpable", &error))
}

/// Keeps the process's memory out of swap: PINs and API secrets pass through it, in buffers of
/// several libraries. Pages are locked as they are touched, so nothing grows.
///
/// This needs `LimitMEMLOCK=infinity`, as the systemd unit has it, or CAP_IPC_LOCK: below a finite
/// limit, later allocations would fail. Without either, a warning is logged and the rest goes on.
pub fn memory() {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let entitled =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let wanted = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let why = if unlimited || entitled {
        match mlockall(wanted) {
            Ok(()) => return,
            Err(error) => error.to_string(),
        }
    } else {
        "RLIMIT_MEMLOCK is finite".to_owned()
    };
    tracing::warn!(
        why,
        "memory is not locked; secrets in use could reach the swap"
    );
}
