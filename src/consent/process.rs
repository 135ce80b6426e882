//! Which program is behind a process id, and which started it: what a person can recognise.
//!
//! Read from `/proc` (proc(5)). Where the kernel lets us see it, a process is named by its
//! executable, which it cannot choose; otherwise by the name it gives itself, and that is said.
//! Under a sandbox that hides other users' processes only the number is left.

use std::path::Path;

use crate::statement::Language;

/// How many processes of a chain are named.
const DEPTH: usize = 5;

/// The longest name of one process, in characters.
const NAME: usize = 60;

/// `/usr/bin/opcert (4711), started by bash (4700), sshd (4699)`.
pub(super) fn chain(pid: i32, language: Language) -> String {
    chain_in(Path::new("/proc"), pid, language)
}

fn chain_in(proc: &Path, pid: i32, language: Language) -> String {
    let (started_by, comma) = match language {
        Language::English => (", started by ", ", "),
        Language::Chinese => ("，启动者：", "，"),
    };
    let mut text = String::new();
    let mut pid = pid;
    for depth in 0..DEPTH {
        let directory = proc.join(pid.to_string());
        let name = name(&directory, language);
        match depth {
            0 => {}
            1 => text.push_str(started_by),
            _ => text.push_str(comma),
        }
        text.push_str(&format!("{name} ({pid})"));
        match parent(&directory) {
            // Everything descends from process 1, which says nothing.
            Some(parent) if parent > 1 => pid = parent,
            _ => break,
        }
    }
    text
}

fn name(directory: &Path, language: Language) -> String {
    if let Ok(path) = std::fs::read_link(directory.join("exe")) {
        return shortened(&path.to_string_lossy());
    }
    match std::fs::read(directory.join("comm")) {
        Ok(name) => {
            let name = String::from_utf8_lossy(&name);
            let name = shortened(name.trim_end());
            match language {
                Language::English => format!("one that calls itself {name:?}"),
                Language::Chinese => format!("自称 {name:?} 的程序"),
            }
        }
        Err(_) => match language {
            Language::English => "a process that cannot be seen".to_owned(),
            Language::Chinese => "无法查看的程序".to_owned(),
        },
    }
}

/// The end of a path says more than its beginning.
fn shortened(name: &str) -> String {
    let count = name.chars().count();
    if count <= NAME {
        return name.to_owned();
    }
    std::iter::once('…')
        .chain(name.chars().skip(count - NAME + 1))
        .collect()
}

/// The second field behind the name, which is in parentheses and may hold any.
fn parent(directory: &Path) -> Option<i32> {
    let stat = std::fs::read(directory.join("stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_chain_begins_with_our_executable() {
        let own = i32::try_from(std::process::id()).unwrap();
        let text = chain(own, Language::English);
        let exe = std::env::current_exe().unwrap();
        let end = exe.file_name().unwrap().to_str().unwrap();
        let first = text.split(" (").next().unwrap();
        assert!(first.ends_with(&end[end.len().min(20)..]), "{text}");
        assert!(text.contains(&format!("({own})")), "{text}");
    }

    #[test]
    fn a_process_cannot_choose_what_it_is_called() {
        let proc = tempfile::tempdir().unwrap();
        let add = |pid: &str, comm: &str, exe: Option<&str>, parent: i32| {
            let directory = proc.path().join(pid);
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("comm"), comm).unwrap();
            let stat = format!("{pid} ({}) S {parent} 1 1 0", comm.trim_end());
            std::fs::write(directory.join("stat"), stat).unwrap();
            if let Some(exe) = exe {
                std::os::unix::fs::symlink(exe, directory.join("exe")).unwrap();
            }
        };
        add("30", "x) S 7 (y\n", Some("/usr/bin/opcert"), 20);
        add("20", "bash\n", None, 10);
        add("10", "sshd\n", Some("/usr/sbin/sshd"), 1);
        assert_eq!(
            chain_in(proc.path(), 30, Language::English),
            "/usr/bin/opcert (30), started by one that calls itself \"bash\" (20), \
             /usr/sbin/sshd (10)"
        );
        assert_eq!(
            chain_in(proc.path(), 30, Language::Chinese),
            "/usr/bin/opcert (30)，启动者：自称 \"bash\" 的程序 (20)，/usr/sbin/sshd (10)"
        );
        assert_eq!(
            chain_in(proc.path(), 40, Language::English),
            "a process that cannot be seen (40)"
        );
    }
}
