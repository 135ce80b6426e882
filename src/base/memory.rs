//! Memory that reaches neither the swap nor a core dump.
//!
//! Secrets pass through buffers of many libraries, so a process locks all its memory where it may
//! ([`lock_all`]). A secret that is kept for long lies in pages of its own besides
//! ([`Locked`]), which a small `RLIMIT_MEMLOCK` allows as well.

use memmap2::{Advice, MmapMut};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, capabilities};
use zeroize::Zeroize;

/// Why memory is not locked.
#[derive(Debug, thiserror::Error)]
pub enum NotLocked {
    /// Below a finite limit, later allocations would fail.
    #[error("RLIMIT_MEMLOCK is finite")]
    Finite,
    /// The kernel's answer.
    #[error("mlockall: {0}")]
    Refused(#[from] rustix::io::Errno),
}

/// Keeps all memory of this process, also what it gets later, out of the swap. Pages are locked as
/// they are touched, so nothing grows.
///
/// This needs `LimitMEMLOCK=infinity`, as the systemd units have it, or CAP_IPC_LOCK.
pub fn lock_all() -> Result<(), NotLocked> {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let entitled =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if !unlimited && !entitled {
        return Err(NotLocked::Finite);
    }
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    Ok(mlockall(all)?)
}

/// Makes this process undumpable: no core file, none of its memory in one that is made all the same
/// (core(5), `coredump_filter`), and no other program of the user attaches to it or reads its
/// memory (ptrace(2)).
pub fn undumpable() -> rustix::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // First, as an undumpable process's files in /proc belong to root. Some sandboxes hide it, and
    // the other two hold without it.
    if let Err(error) = std::fs::write("/proc/self/coredump_filter", "0") {
        tracing::debug!(%error, "the core dump filter is not set");
    }
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// A few secret bytes in pages of their own: locked, left out of dumps, wiped when dropped.
pub struct Locked {
    pages: MmapMut,
    length: usize,
}

impl Locked {
    /// Copies `bytes`. An error means that there is no memory. Where the limit of locked memory is
    /// used up, the pages are left out of dumps only.
    pub fn copy(bytes: &[u8]) -> std::io::Result<Self> {
        let mut pages = MmapMut::map_anon(bytes.len().max(1))?;
        let locked = pages.lock().and_then(|()| pages.advise(Advice::DontDump));
        if let Err(error) = locked {
            tracing::debug!(%error, "a secret's pages are not locked");
        }
        pages[..bytes.len()].copy_from_slice(bytes);
        Ok(Self {
            pages,
            length: bytes.len(),
        })
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.pages[..self.length]
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.pages.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags (proc_pid_smaps(5)) of the mapping that holds `bytes`.
    fn flags_of(bytes: &[u8]) -> String {
        let address = bytes.as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut here = false;
        for line in maps.lines() {
            let range = line.split(' ').next().unwrap_or_default();
            if let Some((start, end)) = range.split_once('-')
                && let Ok(start) = usize::from_str_radix(start, 16)
                && let Ok(end) = usize::from_str_radix(end, 16)
            {
                here = (start..end).contains(&address);
            }
            if here && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.to_owned();
            }
        }
        panic!("no mapping at {address:x}");
    }

    #[test]
    fn a_secrets_pages_are_locked_and_left_out_of_dumps() {
        let secret = Locked::copy(b"123456").unwrap();
        assert_eq!(secret.expose(), b"123456");
        let flags = flags_of(secret.expose());
        let flags: Vec<&str> = flags.split_whitespace().collect();
        assert!(flags.contains(&"lo") && flags.contains(&"dd"), "{flags:?}");
        assert_eq!(Locked::copy(b"").unwrap().expose(), b"");
    }
}
