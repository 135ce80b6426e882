//! What the process gives up before it holds anything secret.

use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask,
};

use super::failure::Failure;
use crate::base::sysexits::EX_OSERR;

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
