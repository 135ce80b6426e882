//! A small disk of one's own, to be filled.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory; unmounted when dropped.
pub struct Disk(PathBuf);

impl Disk {
    /// An empty one of so many MiB; `None` where this user may not mount.
    pub fn mount(at: &Path, size: u32) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}m,mode=0700")])
            .arg("tmpfs")
            .arg(at)
            .output()
            .ok()?;
        status.status.success().then(|| Self(at.to_owned()))
    }

    /// One in place of a directory, with what that holds.
    pub fn over(directory: &Path, size: u32) -> Option<Self> {
        let aside = directory.with_extension("aside");
        std::fs::create_dir_all(directory).unwrap();
        std::fs::rename(directory, &aside).unwrap();
        let disk = Self::mount(directory, size);
        let copied = Command::new("cp")
            .arg("-a")
            .arg(aside.join("."))
            .arg(directory)
            .status();
        assert!(copied.unwrap().success());
        disk
    }

    /// Takes all the space there is.
    pub fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        let block = vec![0; 64 * 1024];
        while file.write_all(&block).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    /// Gives it back.
    pub fn free(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }

    /// With another option, `ro` or `rw`.
    pub fn remount(&self, option: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{option}")])
            .arg(&self.0)
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
