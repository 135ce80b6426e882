//! Whether one program may look into the memory of another of the same user.
//!
//! Reading `/proc/PID/mem` asks the kernel what attaching a debugger asks (ptrace(2),
//! `PTRACE_MODE_ATTACH`). Root may always, by `CAP_SYS_PTRACE`, so where the tests run as root both
//! programs run without it, and the kernel decides as it does for every other user.

use std::process::{Command, Stdio};

/// A command without the right to look into everybody.
pub fn command(program: &str) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_ptrace", "--", program]);
    command
}

/// Whether another program may attach to that process, which [`command`] started.
pub fn attachable(pid: u32) -> bool {
    command("sh")
        .args(["-c", &format!("exec 3< /proc/{pid}/mem")])
        .stderr(Stdio::null())
        .status()
        .expect("sh")
        .success()
}

/// Fails unless nobody may attach to that process, while others may be attached to, and it leaves
/// no core file.
#[track_caller]
pub fn assert_closed(pid: u32) {
    let mut open = command("cat").stdin(Stdio::piped()).spawn().expect("cat");
    super::wait::until("a program that anybody may attach to", || {
        attachable(open.id()).then_some(())
    });
    drop(open.stdin.take());
    open.wait().expect("its end");
    assert!(!attachable(pid));
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .expect("the limit of core files");
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}
