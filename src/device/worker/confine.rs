//! Gives up what the library does not need, before it is loaded.
//!
//! Two walls of the kernel, both for good and for every thread that starts later:
//!
//! - **Landlock** (landlock(7)) restricts files to the lists below and to what the configuration
//!   adds, TCP to the profile `network`, and signals and abstract sockets to this process.
//!   Executing a file is never allowed.
//! - **seccomp** (seccomp(2)) refuses the system calls of [`REFUSED`] with `EPERM`, kills the
//!   process at those of [`KILLED`], which no library has any business with, and refuses sockets
//!   of other families than the profile's.
//!
//! A kernel that lacks one of them is no reason not to sign: the worker says what is missing, the
//! daemon logs it and shows it in the module's status.
//!
//! Whether a *path* of a Unix socket may be connected to is restricted from Linux 7.1 on; before,
//! profiles with Unix sockets reach every socket that file permissions allow.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope,
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

use crate::device::sandbox::{Confinement, Sandbox, SandboxLevel, SandboxStatus};

/// The newest Landlock whose rights are asked for; older kernels enforce what they know.
const LANDLOCK: ABI = ABI::V9;

/// What every library may read: other libraries, the tables of the C library and of OpenSSL, what
/// the kernel says of the machine and of this process. No `/etc` as a whole, no home, no `/var`.
const READABLE: [&str; 26] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/ssl/openssl.cnf",
    "/etc/crypto-policies",
    "/etc/gnutls",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/localtime",
    "/etc/softhsm",
    "/etc/opensc",
    "/etc/pkcs11",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys",
    "/sys/devices/system/cpu",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
];

/// What every library may write to.
const WRITABLE: [&str; 1] = ["/dev/null"];

/// What a library that uses pcscd may read, and connect to where the kernel asks.
const PCSCD: [&str; 2] = ["/run/pcscd", "/var/run/pcscd"];

/// What a library that drives USB may read to find its device.
const USB_READABLE: [&str; 3] = ["/sys", "/run/udev", "/etc/udev"];

/// Where it finds the device itself. All of it, as a device that is plugged in again is a new
/// file; who may open which device is for udev and the unit's DevicePolicy to say.
const USB_DEVICES: &str = "/dev";

/// What a library that uses the network may read to find its HSM, and connect to for names.
const NETWORK: [&str; 8] = [
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/run/systemd/resolve",
    "/run/nscd",
];

/// Refused with EPERM: what would start another program, look into or take over another process,
/// change what the kernel or the machine is, or reach the kernel by a way that no filter sees.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
];

/// Answered with the end of the process: whoever calls one of these from here attacks.
const KILLED: &[libc::c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    #[cfg(not(target_arch = "riscv64"))]
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_pivot_root,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// Confines this process, whose only thread this must be.
pub fn confine(confinement: &Confinement, library: &Path) -> SandboxStatus {
    let mut missing = Vec::new();
    let profile = confinement.sandbox;
    if profile == Sandbox::None {
        return SandboxStatus {
            profile,
            level: SandboxLevel::Off,
            missing,
        };
    }
    let mut level = SandboxLevel::On;
    match restrict_files(confinement, library) {
        Ok(Restricted { gaps }) => missing.extend(gaps),
        Err(why) => {
            level = SandboxLevel::Degraded;
            missing.push(format!("files are not restricted: {why}"));
        }
    }
    if let Err(why) = restrict_calls(profile) {
        level = SandboxLevel::Degraded;
        missing.push(format!("system calls are not restricted: {why}"));
    }
    SandboxStatus {
        profile,
        level,
        missing,
    }
}

/// Landlock holds, but for some.
struct Restricted {
    gaps: Vec<String>,
}

/// Why Landlock does not hold.
#[derive(Debug, thiserror::Error)]
enum Unrestricted {
    #[error("this kernel has no Landlock, or the SystemCallFilter= of a unit refuses it")]
    NotBuilt,
    #[error("Landlock is not among the kernel's security modules; boot with lsm=landlock,…")]
    NotEnabled,
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
}

fn restrict_files(confinement: &Confinement, library: &Path) -> Result<Restricted, Unrestricted> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let connect = BitFlags::from(AccessFs::ResolveUnix);
    // All but to execute, to use devices, to make device files, and to connect.
    let write = AccessFs::from_all(ABI::V3)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let device = read | AccessFs::WriteFile | AccessFs::IoctlDev;

    let mut rules: Vec<(PathBuf, BitFlags<AccessFs>)> = Vec::new();
    let mut allow = |paths: &[&str], access| {
        rules.extend(paths.iter().map(|path| (PathBuf::from(path), access)));
    };
    allow(&READABLE, read);
    allow(&WRITABLE, read | AccessFs::WriteFile);
    match confinement.sandbox {
        Sandbox::Softhsm | Sandbox::None => {}
        Sandbox::Pcscd => allow(&PCSCD, read | connect),
        Sandbox::Usb => {
            allow(&USB_READABLE, read);
            allow(&[USB_DEVICES], device);
        }
        Sandbox::Network => allow(&NETWORK, read | connect),
    }
    let real = library.canonicalize();
    let beside = [Some(library), real.as_deref().ok()];
    let beside = beside.into_iter().flatten().filter_map(Path::parent);
    rules.extend(beside.map(|path| (path.to_owned(), read)));
    rules.extend(confinement.readable.iter().map(|path| (path.clone(), read)));
    rules.extend(
        confinement
            .writable
            .iter()
            .map(|path| (path.clone(), write)),
    );
    if confinement.sandbox == Sandbox::Softhsm {
        rules.extend(token_directories().into_iter().map(|path| (path, write)));
    }

    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(LANDLOCK))?;
    if confinement.sandbox != Sandbox::Network {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    let mut ruleset = ruleset.create()?;
    for (path, access) in rules {
        // What is not there needs no leave.
        let (Ok(metadata), Ok(file)) = (path.metadata(), PathFd::new(&path)) else {
            continue;
        };
        let access = match metadata.is_dir() {
            true => access,
            false => access & AccessFs::from_file(LANDLOCK),
        };
        ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
    }
    let status = ruleset.restrict_self()?;
    match (status.ruleset, status.landlock) {
        (
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced,
            LandlockStatus::Available { effective_abi, .. },
        ) => Ok(Restricted {
            gaps: gaps(confinement.sandbox, effective_abi),
        }),
        (_, LandlockStatus::NotEnabled) => Err(Unrestricted::NotEnabled),
        (_, _) => Err(Unrestricted::NotBuilt),
    }
}

/// What of the profile an older Landlock leaves open and seccomp does not close.
fn gaps(sandbox: Sandbox, abi: ABI) -> Vec<String> {
    let mut gaps = Vec::new();
    let mut gap = |since: ABI, kernel: &str, what: &str| {
        if abi < since {
            gaps.push(format!("{what}, which needs Linux {kernel}"));
        }
    };
    gap(
        ABI::V3,
        "6.2",
        "files that are readable only can be emptied",
    );
    gap(
        ABI::V6,
        "6.12",
        "signals to other processes of the user are not refused",
    );
    if sandbox != Sandbox::Softhsm {
        gap(ABI::V6, "6.12", "abstract Unix sockets are not refused");
        gap(ABI::V9, "7.1", "Unix sockets are not restricted by path");
    }
    gaps
}

/// Where SoftHSM2 keeps its tokens.
fn token_directories() -> Vec<PathBuf> {
    let configuration = std::env::var_os("SOFTHSM2_CONF").map_or_else(
        || PathBuf::from("/etc/softhsm/softhsm2.conf"),
        PathBuf::from,
    );
    let text = std::fs::read_to_string(configuration).unwrap_or_default();
    softhsm_token_directory(&text).into_iter().collect()
}

/// The `directories.tokendir` of a softhsm2.conf(5).
fn softhsm_token_directory(configuration: &str) -> Option<PathBuf> {
    configuration
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| key.trim() == "directories.tokendir")
        .map(|(_, value)| PathBuf::from(value.trim()))
        .next_back()
}

/// Why seccomp does not hold.
#[derive(Debug, thiserror::Error)]
enum Unfiltered {
    #[error("there is no filter for this processor")]
    Processor(#[source] BackendError),
    #[error("the filter cannot be made: {0}")]
    Filter(#[from] BackendError),
    #[error("the kernel refuses the filter: {0}")]
    Refused(#[from] seccompiler::Error),
}

fn restrict_calls(sandbox: Sandbox) -> Result<(), Unfiltered> {
    // First the filter without a choice of its own: each later one adds to it, and the strictest
    // answer counts.
    for program in programs(sandbox)? {
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

fn programs(sandbox: Sandbox) -> Result<Vec<BpfProgram>, Unfiltered> {
    let processor = TargetArch::try_from(std::env::consts::ARCH).map_err(Unfiltered::Processor)?;
    let program = |rules, action| -> Result<BpfProgram, BackendError> {
        SeccompFilter::new(rules, SeccompAction::Allow, action, processor)?.try_into()
    };
    let always = |calls: &[libc::c_long]| -> BTreeMap<i64, Vec<SeccompRule>> {
        calls.iter().map(|call| (*call, Vec::new())).collect()
    };
    let mut refused = always(REFUSED);
    refused.insert(libc::SYS_socket, other_families(sandbox)?);
    // A pair of sockets reaches nobody.
    refused.insert(
        libc::SYS_socketpair,
        vec![SeccompRule::new(vec![family_is_not(libc::AF_UNIX)?])?],
    );
    // A thread is made with CLONE_THREAD, a process without.
    let no_thread = SeccompCmpOp::MaskedEq(libc::CLONE_THREAD.unsigned_abs().into());
    refused.insert(
        libc::SYS_clone,
        vec![argument(0, SeccompCmpArgLen::Qword, no_thread, 0)?],
    );
    // Nobody makes the process dumpable or traceable again.
    let option = |value: libc::c_int| {
        let value = value.unsigned_abs().into();
        argument(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    };
    refused.insert(
        libc::SYS_prctl,
        vec![
            option(libc::PR_SET_DUMPABLE)?,
            option(libc::PR_SET_PTRACER)?,
        ],
    );
    // Nobody types into the terminal that a worker may have been started from.
    let request =
        |value: libc::c_ulong| argument(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value);
    refused.insert(
        libc::SYS_ioctl,
        vec![request(libc::TIOCSTI)?, request(libc::TIOCLINUX)?],
    );
    let errno = |errno: libc::c_int| SeccompAction::Errno(errno.unsigned_abs());
    Ok(vec![
        program(always(KILLED), SeccompAction::KillProcess)?,
        // Its flags are in memory, where a filter cannot look; the C library then uses clone.
        program(always(&[libc::SYS_clone3]), errno(libc::ENOSYS))?,
        program(refused, errno(libc::EPERM))?,
        no_second_table(),
    ])
}

fn argument(
    index: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, length, operator, value)?])
}

/// Sockets of families that the profile has no use for.
fn other_families(sandbox: Sandbox) -> Result<Vec<SeccompRule>, BackendError> {
    let families: &[libc::c_int] = match sandbox {
        Sandbox::Softhsm | Sandbox::None => &[],
        Sandbox::Pcscd => &[libc::AF_UNIX],
        Sandbox::Usb => &[libc::AF_UNIX, libc::AF_NETLINK],
        Sandbox::Network => &[
            libc::AF_UNIX,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_NETLINK,
        ],
    };
    if families.is_empty() {
        return Ok(Vec::new());
    }
    let none_of_them = families
        .iter()
        .map(|family| family_is_not(*family))
        .collect::<Result<_, _>>()?;
    Ok(vec![SeccompRule::new(none_of_them)?])
}

fn family_is_not(family: libc::c_int) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Ne,
        family.unsigned_abs().into(),
    )
}

/// The x32 interface of x86-64 has the same calls under other numbers, from `0x4000_0000`
/// (`__X32_SYSCALL_BIT`): all of them answer ENOSYS, as on a kernel without it. On other
/// processors there are no such numbers.
fn no_second_table() -> BpfProgram {
    const X32: u32 = 0x4000_0000;
    let instruction = |code: u32, jt, k| sock_filter {
        code: code as u16,
        jt,
        jf: 0,
        k,
    };
    vec![
        // The number of the call is the first word of `struct seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, X32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_directory_is_read_from_the_configuration() {
        let text = "# directories.tokendir = /wrong\nlog.level = INFO\n\
                    directories.tokendir =  /var/lib/softhsm/tokens/ # here\n";
        assert_eq!(
            softhsm_token_directory(text),
            Some(PathBuf::from("/var/lib/softhsm/tokens/"))
        );
        assert_eq!(softhsm_token_directory("log.level = INFO"), None);
    }

    #[test]
    fn a_filter_is_made_for_every_profile() {
        for sandbox in [
            Sandbox::Softhsm,
            Sandbox::Pcscd,
            Sandbox::Usb,
            Sandbox::Network,
        ] {
            let programs = programs(sandbox).unwrap();
            assert_eq!(programs.len(), 4);
            assert!(programs.iter().all(|program| !program.is_empty()));
        }
    }

    #[test]
    fn an_older_landlock_is_told_from_a_newer_one() {
        assert_eq!(gaps(Sandbox::Pcscd, ABI::V9), Vec::<String>::new());
        assert_eq!(gaps(Sandbox::Softhsm, ABI::V7), Vec::<String>::new());
        assert_eq!(gaps(Sandbox::Pcscd, ABI::V7).len(), 1);
        assert_eq!(gaps(Sandbox::Softhsm, ABI::V2).len(), 2);
    }
}
