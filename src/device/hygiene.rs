//! What a module must be like before a worker loads it.
//!
//! Whoever can replace the library can use every key on its tokens, so neither the file nor a
//! directory on the way to it may be writable by anybody but root and the user we run as. And the
//! library must be the token's own: p11-kit's proxy and client load further modules, or ask a
//! server that may be this daemon's own client, so that one module's faults become another's; the
//! spy of OpenSC writes every PIN to its log. Each refusal can be waived for a module by `allow`
//! in the configuration.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use super::config::{Allowance, ModuleConfig};

/// Names of modules that stand in front of others.
const FORWARDERS: [&str; 4] = [
    "p11-kit-proxy",
    "p11-kit-client",
    "libp11-kit",
    "pkcs11-spy",
];

/// Beginnings and ends of environment variables that have libraries log what they are given.
const TELLTALE: ([&str; 2], [&str; 2]) = (["PKCS11SPY", "OPENSC_DEBUG"], ["_DBG", "_DEBUG"]);

/// Who owns a file whose owner a user namespace does not know (user_namespaces(7)).
const OVERFLOW_UID: u32 = 65534;

/// Why the module must not be loaded, for people; `Ok` also where there is no such file.
pub(super) fn check(config: &ModuleConfig) -> Result<(), String> {
    if !config.path.is_absolute() {
        return Err(format!(
            "{} is no absolute path; give the whole path of the library",
            config.path.display()
        ));
    }
    let mut reachable = config.readable.iter().chain(&config.writable);
    if let Some(path) = reachable.find(|path| !path.is_absolute()) {
        return Err(format!(
            "{} is no absolute path; name what the library may read or write by its whole path",
            path.display()
        ));
    }
    if !config.allow.contains(&Allowance::Debug)
        && let Some(name) = config.environment.keys().find(|name| is_telltale(name))
    {
        return Err(format!(
            "{name} has the library write down what it is given, PINs included; remove it from \
             the module's environment, or allow \"debug\""
        ));
    }
    let Ok(real) = config.path.canonicalize() else {
        // The worker reports what is missing.
        return Ok(());
    };
    if !config.allow.contains(&Allowance::Forwarder) {
        for path in [&config.path, &real] {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if FORWARDERS.iter().any(|known| name.starts_with(known)) {
                return Err(format!(
                    "{} only forwards to other modules; name those, or allow \"forwarder\"",
                    path.display()
                ));
            }
        }
    }
    if !config.allow.contains(&Allowance::WritablePath) {
        for path in real.ancestors() {
            let metadata = path
                .metadata()
                .map_err(|error| format!("{} cannot be checked: {error}", path.display()))?;
            if let Some(problem) = problem(&metadata) {
                return Err(format!(
                    "{} {problem}, so others could replace the library; correct that, or allow \
                     \"writable-path\"",
                    path.display()
                ));
            }
        }
    }
    Ok(())
}

fn is_telltale(variable: &str) -> bool {
    TELLTALE.0.iter().any(|begin| variable.starts_with(begin))
        || TELLTALE.1.iter().any(|end| variable.ends_with(end))
}

/// Who else could change the file, or what is in the directory.
fn problem(metadata: &Metadata) -> Option<String> {
    let owner = metadata.uid();
    let ours = owner == 0
        || owner == rustix::process::geteuid().as_raw()
        || (owner == OVERFLOW_UID && root_is_unmapped());
    if !ours {
        return Some(format!(
            "is owned by uid {owner}, neither root nor this program's user"
        ));
    }
    // In a sticky directory others can add files, but not replace those of root or of ours.
    let mode = metadata.mode() & 0o7777;
    let sticky = metadata.is_dir() && mode & 0o1000 != 0;
    (mode & 0o022 != 0 && !sticky).then(|| format!("has mode {mode:04o}"))
}

/// Whether we run in a user namespace that does not know root, as a sandboxed service of a user
/// does: root's files then show as owned by nobody.
fn root_is_unmapped() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.lines().any(|line| line.trim_start().starts_with("0 ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn config(path: &Path, more: &str) -> ModuleConfig {
        toml::from_str(&format!("name = \"m\"\npath = {path:?}\n{more}")).unwrap()
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_library_that_others_could_replace_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, link) = (
            directory.path().join("lib"),
            directory.path().join("link.so"),
        );
        std::fs::create_dir(&inside).unwrap();
        let library = inside.join("real.so");
        std::fs::write(&library, "").unwrap();
        std::os::unix::fs::symlink(&library, &link).unwrap();
        for (directory_mode, mode, good) in [
            (0o755, 0o644, true),
            (0o755, 0o664, false),
            (0o755, 0o646, false),
            (0o775, 0o644, false),
            (0o1777, 0o644, true),
        ] {
            set_mode(&inside, directory_mode);
            set_mode(&library, mode);
            for path in [&library, &link] {
                let result = check(&config(path, ""));
                assert_eq!(
                    result.is_ok(),
                    good,
                    "{directory_mode:o} {mode:o} {result:?}"
                );
                assert_eq!(check(&config(path, "allow = [\"writable-path\"]")), Ok(()));
            }
        }
        // Only root can give a file away.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&library, Some(12_345), None).unwrap();
            let problem = check(&config(&link, "")).unwrap_err();
            assert!(problem.contains("owned by uid 12345"), "{problem}");
        }
    }

    #[test]
    fn modules_in_front_of_others_are_refused_under_any_name() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("libp11-kit.so.0");
        let link = directory.path().join("harmless.so");
        std::fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        for path in [&real, &link] {
            assert!(check(&config(path, "")).unwrap_err().contains("forwards"));
            assert_eq!(check(&config(path, "allow = [\"forwarder\"]")), Ok(()));
        }
    }

    #[test]
    fn variables_that_have_pins_logged_are_refused() {
        let path = Path::new("/no/such/module.so");
        for variable in [
            "PKCS11SPY",
            "PKCS11SPY_OUTPUT",
            "YKCS11_DBG",
            "OPENSC_DEBUG",
        ] {
            let environment = format!("environment = {{ {variable} = \"1\" }}\n");
            assert!(check(&config(path, &environment)).is_err(), "{variable}");
            let allowed = format!("{environment}allow = [\"debug\"]");
            assert_eq!(check(&config(path, &allowed)), Ok(()), "{variable}");
        }
        let fine = config(
            path,
            "environment = { SOFTHSM2_CONF = \"/etc/softhsm2.conf\" }",
        );
        assert_eq!(check(&fine), Ok(()));
        assert!(check(&config(Path::new("module.so"), "")).is_err());
        for more in ["readable = [\"conf\"]", "writable = [\"../tokens\"]"] {
            assert!(check(&config(path, more)).unwrap_err().contains("absolute"));
        }
    }
}
