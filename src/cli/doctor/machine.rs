//! What stands between the daemon and a device: packages, sockets, rules, permissions.
//!
//! Everything is read from files below a root directory, so that tests can show each fault.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::Findings;
use crate::device::Sandbox;

/// The user that the packages' units run the daemon as.
const SERVICE_USER: &str = "opcertd";

/// Where pcscd waits for programs.
const PCSCD_SOCKET: &str = "/run/pcscd/pcscd.comm";

/// What pcscd asks polkit, where it was built to.
const PCSCD_ACTIONS: &str = "/usr/share/polkit-1/actions/org.debian.pcsc-lite.policy";

/// Where polkit's rules are.
const POLKIT_RULES: [&str; 4] = [
    "/etc/polkit-1/rules.d",
    "/run/polkit-1/rules.d",
    "/usr/local/share/polkit-1/rules.d",
    "/usr/share/polkit-1/rules.d",
];

/// The class of USB interfaces that are smart-card readers (CCID).
const CCID: &str = "0b";

/// Makers of tokens, by their USB number: Yubico, Nitrokey, Feitian, Gemalto, Aladdin (SafeNet).
const MAKERS: [&str; 5] = ["1050", "20a0", "096e", "08e6", "0529"];

/// Debian's packages of libraries, by the beginning of the file's name.
const PACKAGES: [(&str, &str); 8] = [
    ("libsofthsm2", "softhsm2"),
    ("opensc-pkcs11", "opensc-pkcs11"),
    ("onepin-opensc-pkcs11", "opensc-pkcs11"),
    ("libykcs11", "ykcs11"),
    ("libsoftokn3", "libnss3"),
    ("libtpm2_pkcs11", "libtpm2-pkcs11-1"),
    ("yubihsm_pkcs11", "yubihsm-pkcs11"),
    ("libopencryptoki", "opencryptoki"),
];

/// The package that brings a library.
pub(super) fn package_of(library: &Path) -> Option<&'static str> {
    let name = library.file_name()?.to_str()?;
    PACKAGES
        .iter()
        .find(|(beginning, _)| name.starts_with(beginning))
        .map(|(_, package)| *package)
}

/// The computer, and who the daemon is on it.
pub(super) struct Machine {
    root: PathBuf,
    who: Who,
}

/// Who the daemon is.
struct Who {
    name: String,
    uid: u32,
    gids: Vec<u32>,
    /// A service has no session, which polkit lets in without a rule.
    service: bool,
}

/// A USB device that may be a token.
struct UsbDevice {
    vendor: String,
    product: String,
    /// What it calls itself.
    name: String,
    /// Its file for libusb.
    node: String,
    is_reader: bool,
}

impl Machine {
    /// The computer that the program runs on.
    pub(super) fn here() -> Self {
        Self::at(Path::new("/"))
    }

    fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            who: Who::find(root),
        }
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Looks at the ways that modules with these profiles need.
    pub(super) fn look(&self, sandboxes: &[Sandbox], findings: &mut Findings) {
        let devices = self.usb_devices();
        if sandboxes.contains(&Sandbox::Pcscd) {
            self.pcscd(findings);
            self.polkit(findings);
            readers(devices.as_deref(), findings);
        }
        if sandboxes.contains(&Sandbox::Usb) {
            self.usb(devices.as_deref().unwrap_or_default(), findings);
            self.drop_in("usb-token.conf", "USB devices", findings);
        }
        if sandboxes.contains(&Sandbox::Network) {
            self.drop_in("network-hsm.conf", "the network", findings);
        }
    }

    fn pcscd(&self, findings: &mut Findings) {
        let name = "pcscd";
        if !["/usr/sbin/pcscd", "/sbin/pcscd"]
            .iter()
            .any(|program| self.path(program).exists())
        {
            return findings.fail(
                name,
                "pcscd, which drives smart-card readers, is not installed.",
                "Run `apt-get install pcscd libccid`.",
            );
        }
        let drivers = ["/usr/lib/pcsc/drivers", "/usr/lib64/pcsc/drivers"];
        let driver = drivers
            .iter()
            .any(|drivers| self.path(drivers).join("ifd-ccid.bundle").exists());
        if !driver {
            findings.fail(
                "pcscd driver",
                "pcscd has no driver for USB readers.",
                "Run `apt-get install libccid && systemctl restart pcscd`.",
            );
        }
        match UnixStream::connect(self.path(PCSCD_SOCKET)) {
            Ok(_) => findings.ok(name, format!("It answers on {PCSCD_SOCKET}.")),
            Err(error) if error.kind() == ErrorKind::NotFound => findings.fail(
                name,
                format!("It is not running: there is no {PCSCD_SOCKET}."),
                "Run `systemctl enable --now pcscd.socket`.",
            ),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => findings.fail(
                name,
                format!("{PCSCD_SOCKET} is closed to this user."),
                "Run `opcert doctor` as root, or see `systemctl cat pcscd.socket` for its \
                 SocketMode=.",
            ),
            Err(error) => findings.fail(
                name,
                format!("Nobody answers on {PCSCD_SOCKET}: {error}."),
                "Run `systemctl restart pcscd.socket`.",
            ),
        }
    }

    /// pcscd of Debian 13 and others lets a service in only by a rule.
    fn polkit(&self, findings: &mut Findings) {
        let name = "polkit rule for pcscd";
        if !self.who.service || !self.path(PCSCD_ACTIONS).exists() {
            return;
        }
        let user = &self.who.name;
        let mut hidden = false;
        for directory in POLKIT_RULES {
            match std::fs::read_dir(self.path(directory)) {
                Ok(files) => {
                    for file in files.flatten() {
                        match std::fs::read_to_string(file.path()) {
                            Ok(rule) if allows(&rule, user) => {
                                let file = file.file_name();
                                let file = file.to_string_lossy();
                                return findings
                                    .ok(name, format!("{directory}/{file} lets {user} in."));
                            }
                            Ok(_) => {}
                            Err(error) => hidden |= error.kind() == ErrorKind::PermissionDenied,
                        }
                    }
                }
                Err(error) => hidden |= error.kind() == ErrorKind::PermissionDenied,
            }
        }
        if hidden {
            return findings.warn(
                name,
                "polkit's rules are closed to this user.",
                "Run `opcert doctor` as root.",
            );
        }
        findings.fail(
            name,
            format!("pcscd asks polkit, and no rule lets {user} use cards."),
            format!(
                "Run as root: echo '{}' >/etc/polkit-1/rules.d/60-opcert.rules",
                rule_for(user)
            ),
        );
    }

    /// Devices that a library drives itself.
    fn usb(&self, devices: &[UsbDevice], findings: &mut Findings) {
        if devices.is_empty() {
            findings.warn(
                "USB token",
                "No USB token of a known maker is plugged in.",
                "Plug it in; `lsusb` shows what the computer sees.",
            );
        }
        for device in devices {
            let name = format!("USB token {}", device.name);
            let mut nodes = vec![("usb", device.node.clone())];
            nodes.extend(self.hidraw(device).into_iter().map(|node| ("hidraw", node)));
            let closed = nodes.iter().find(|(_, node)| {
                !self
                    .path(node)
                    .metadata()
                    .is_ok_and(|metadata| self.who.may_use(&metadata))
            });
            match closed {
                None => findings.ok(name, format!("{} may use it.", self.who.name)),
                Some((subsystem, node)) => findings.fail(
                    name,
                    format!("{node} is closed to {}.", self.who.name),
                    format!(
                        "Run as root: echo 'SUBSYSTEM==\"{subsystem}\", ATTRS{{idVendor}}==\"{}\", \
                         ATTRS{{idProduct}}==\"{}\", GROUP=\"{}\", MODE=\"0660\"' \
                         >>/etc/udev/rules.d/70-opcert.rules && udevadm control --reload && \
                         udevadm trigger",
                        device.vendor, device.product, self.who.name
                    ),
                ),
            }
        }
    }

    /// The unit of the package opens nothing by itself.
    fn drop_in(&self, file: &str, what: &str, findings: &mut Findings) {
        let units = ["/usr/lib/systemd/system", "/lib/systemd/system"];
        let packaged = units
            .iter()
            .any(|units| self.path(units).join("opcertd.service").exists());
        if !packaged {
            return;
        }
        let name = format!("drop-in {file}");
        let place = "/etc/systemd/system/opcertd.service.d";
        if self.path(place).join(file).exists() {
            return findings.ok(name, format!("The unit opens {what}."));
        }
        findings.fail(
            name,
            format!("The unit of the daemon keeps {what} closed."),
            format!(
                "Run as root: install -D -m 644 \
                 /usr/share/doc/opcert/examples/opcertd.service.d/{file} {place}/{file} && \
                 systemctl daemon-reload && systemctl restart opcertd"
            ),
        );
    }

    /// Readers, and devices of known makers; `None` where the computer has no USB.
    fn usb_devices(&self) -> Option<Vec<UsbDevice>> {
        let entries: Vec<PathBuf> = std::fs::read_dir(self.path("/sys/bus/usb/devices"))
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        let text = |path: &Path, name: &str| {
            let text = std::fs::read_to_string(path.join(name)).ok()?;
            Some(text.trim().to_owned())
        };
        let mut devices = Vec::new();
        for path in &entries {
            let found = text(path, "idVendor").zip(text(path, "idProduct"));
            let numbers = text(path, "busnum").zip(text(path, "devnum"));
            let (Some((vendor, product)), Some((bus, device))) = (found, numbers) else {
                continue;
            };
            let is_reader = interfaces_of(path, &entries)
                .any(|interface| text(interface, "bInterfaceClass").as_deref() == Some(CCID));
            if !is_reader && !MAKERS.contains(&vendor.as_str()) {
                continue;
            }
            devices.push(UsbDevice {
                name: text(path, "product").unwrap_or_else(|| format!("{vendor}:{product}")),
                node: format!("/dev/bus/usb/{bus:0>3}/{device:0>3}"),
                vendor,
                product,
                is_reader,
            });
        }
        Some(devices)
    }

    /// The hidraw files of a device.
    fn hidraw(&self, device: &UsbDevice) -> Vec<String> {
        let id = format!(":0000{}:0000{}", device.vendor, device.product).to_uppercase();
        std::fs::read_dir(self.path("/sys/class/hidraw"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                std::fs::read_to_string(entry.path().join("device/uevent")).is_ok_and(|text| {
                    text.lines()
                        .filter_map(|line| line.strip_prefix("HID_ID="))
                        .any(|value| value.ends_with(&id))
                })
            })
            .map(|entry| format!("/dev/{}", entry.file_name().to_string_lossy()))
            .collect()
    }
}

/// The interfaces of a device: directories named after it, a colon and numbers.
fn interfaces_of<'a>(device: &Path, entries: &'a [PathBuf]) -> impl Iterator<Item = &'a Path> {
    let beginning = device
        .file_name()
        .map(|name| format!("{}:", name.to_string_lossy()))
        .unwrap_or_default();
    entries.iter().map(PathBuf::as_path).filter(move |entry| {
        entry
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&beginning))
    })
}

fn readers(devices: Option<&[UsbDevice]>, findings: &mut Findings) {
    let name = "reader";
    let Some(devices) = devices else {
        return;
    };
    let names: Vec<&str> = devices
        .iter()
        .filter(|device| device.is_reader)
        .map(|device| device.name.as_str())
        .collect();
    if names.is_empty() {
        findings.warn(
            name,
            "No USB smart-card reader or token is plugged in.",
            "Plug it in; `lsusb` shows what the computer sees, `pcsc_scan` what pcscd sees.",
        );
    } else {
        findings.ok(name, format!("Plugged in: {}.", names.join(", ")));
    }
}

/// Whether a rule speaks of pcscd and of the user. What it says of them is not interpreted.
fn allows(rule: &str, user: &str) -> bool {
    rule.contains("org.debian.pcsc-lite.access_pcsc")
        && rule.contains("org.debian.pcsc-lite.access_card")
        && rule.contains(&format!("\"{user}\""))
}

/// The rule that lets a user in, in one line.
fn rule_for(user: &str) -> String {
    format!(
        "polkit.addRule(function(a, s) {{ if ((a.id == \"org.debian.pcsc-lite.access_pcsc\" || \
         a.id == \"org.debian.pcsc-lite.access_card\") && s.user == \"{user}\") return \
         polkit.Result.YES; }});"
    )
}

impl Who {
    /// The service's user where there is one, else whoever runs this program.
    fn find(root: &Path) -> Self {
        let text = |name: &str| std::fs::read_to_string(root.join(name)).unwrap_or_default();
        let passwd = text("etc/passwd");
        let entry = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            match fields.as_slice() {
                [name, _, uid, gid, ..] if *name == SERVICE_USER => {
                    Some((uid.parse().ok()?, gid.parse().ok()?))
                }
                _ => None,
            }
        });
        let Some((uid, gid)) = entry else {
            return Self::caller();
        };
        let group = text("etc/group");
        let more = group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            match fields.as_slice() {
                [_, _, gid, members] if members.split(',').any(|name| name == SERVICE_USER) => {
                    gid.parse().ok()
                }
                _ => None,
            }
        });
        Self {
            name: SERVICE_USER.into(),
            uid,
            gids: std::iter::once(gid).chain(more).collect(),
            service: true,
        }
    }

    fn caller() -> Self {
        let groups = rustix::process::getgroups().unwrap_or_default();
        Self {
            name: "this user".into(),
            uid: rustix::process::geteuid().as_raw(),
            gids: groups
                .into_iter()
                .chain([rustix::process::getegid()])
                .map(rustix::process::Gid::as_raw)
                .collect(),
            service: false,
        }
    }

    /// Whether it may read and write a device.
    fn may_use(&self, node: &Metadata) -> bool {
        let bits = if self.uid == 0 {
            0o6
        } else if node.uid() == self.uid {
            node.mode() >> 6
        } else if self.gids.contains(&node.gid()) {
            node.mode() >> 3
        } else {
            node.mode()
        };
        bits & 0o6 == 0o6
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    /// A computer in a directory.
    struct Tree(tempfile::TempDir);

    impl Tree {
        /// With a service user that is neither us nor root.
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            tree.file(
                "etc/passwd",
                "root:x:0:0::/:/bin/sh\nopcertd:x:4711:4711::/:/x\n",
            );
            tree.file("etc/group", "opcertd:x:4711:\nplugdev:x:46:opcertd\n");
            tree
        }

        fn file(&self, path: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        }

        fn usb_device(&self, name: &str, vendor: &str, product: &str, class: &str) -> PathBuf {
            let device = format!("sys/bus/usb/devices/{name}");
            for (file, text) in [
                ("idVendor", vendor),
                ("idProduct", product),
                ("product", "Token"),
                ("busnum", "1"),
                ("devnum", "7"),
            ] {
                self.file(&format!("{device}/{file}"), &format!("{text}\n"));
            }
            self.file(&format!("{device}:1.0/bInterfaceClass"), class);
            let node = self.file("dev/bus/usb/001/007", "");
            std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o660)).unwrap();
            node
        }

        fn look(&self, sandbox: Sandbox) -> Findings {
            let mut findings = Findings::default();
            Machine::at(self.0.path()).look(&[sandbox], &mut findings);
            findings
        }

        /// The remedy of the one check of this name that did not end well.
        fn remedy(&self, sandbox: Sandbox, name: &str) -> String {
            let findings = self.look(sandbox);
            let mut found = findings.checks.iter().filter(|check| check.name == name);
            let check = found.next().unwrap_or_else(|| panic!("no {name}"));
            assert_ne!(check.verdict, Verdict::Ok, "{}", check.finding);
            check.action.clone().unwrap()
        }

        fn is_ok(&self, sandbox: Sandbox, name: &str) -> bool {
            self.look(sandbox)
                .checks
                .iter()
                .any(|check| check.name == name && check.verdict == Verdict::Ok)
        }
    }

    #[test]
    fn what_pcscd_lacks_is_named_one_after_the_other() {
        let tree = Tree::new();
        assert!(
            tree.remedy(Sandbox::Pcscd, "pcscd")
                .contains("apt-get install pcscd")
        );
        tree.file("usr/sbin/pcscd", "");
        assert!(
            tree.remedy(Sandbox::Pcscd, "pcscd driver")
                .contains("libccid")
        );
        tree.file("usr/lib/pcsc/drivers/ifd-ccid.bundle/Contents", "");
        assert!(
            tree.remedy(Sandbox::Pcscd, "pcscd")
                .contains("systemctl enable --now pcscd.socket")
        );
        let socket = tree.file("run/pcscd/pcscd.comm", "");
        std::fs::remove_file(&socket).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        assert!(tree.is_ok(Sandbox::Pcscd, "pcscd"));
        drop(listener);
        assert!(
            tree.remedy(Sandbox::Pcscd, "pcscd")
                .contains("systemctl restart pcscd.socket")
        );
    }

    #[test]
    fn a_missing_polkit_rule_is_written_out_and_one_that_is_there_is_found() {
        let name = "polkit rule for pcscd";
        let tree = Tree::new();
        assert!(!tree.is_ok(Sandbox::Pcscd, name), "pcscd asks nobody");
        tree.file(PCSCD_ACTIONS.trim_start_matches('/'), "<policyconfig/>");
        tree.file("etc/polkit-1/rules.d/50-other.rules", "polkit.addRule()");
        let remedy = tree.remedy(Sandbox::Pcscd, name);
        assert!(remedy.contains("s.user == \"opcertd\""), "{remedy}");
        // What it says to write mends it, and so does the rule that the package brings.
        let rule = remedy.split('\'').nth(1).unwrap();
        for rule in [
            rule,
            include_str!("../../../systemd/polkit/60-opcert.rules"),
        ] {
            let file = tree.file("etc/polkit-1/rules.d/60-opcert.rules", rule);
            assert!(tree.is_ok(Sandbox::Pcscd, name));
            std::fs::remove_file(file).unwrap();
        }
    }

    #[test]
    fn readers_are_found_by_their_class() {
        let tree = Tree::new();
        assert!(
            tree.look(Sandbox::Pcscd)
                .checks
                .iter()
                .all(|check| check.name != "reader")
        );
        tree.usb_device("1-1", "ffff", "0001", "03");
        assert!(tree.remedy(Sandbox::Pcscd, "reader").contains("lsusb"));
        tree.usb_device("1-2", "ffff", "0002", "0b\n");
        assert!(tree.is_ok(Sandbox::Pcscd, "reader"));
    }

    #[test]
    fn a_device_that_is_closed_to_the_daemon_gets_its_udev_rule() {
        let tree = Tree::new();
        assert!(tree.remedy(Sandbox::Usb, "USB token").contains("lsusb"));
        let node = tree.usb_device("1-1", "1050", "0407", "ff");
        let name = "USB token Token";
        let rule = "SUBSYSTEM==\"usb\", ATTRS{idVendor}==\"1050\", ATTRS{idProduct}==\"0407\", \
                    GROUP=\"opcertd\", MODE=\"0660\"";
        assert!(tree.remedy(Sandbox::Usb, name).contains(rule));
        std::fs::set_permissions(&node, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(tree.is_ok(Sandbox::Usb, name));
        tree.file(
            "sys/class/hidraw/hidraw3/device/uevent",
            "DRIVER=hid-generic\nHID_ID=0003:00001050:00000407\n",
        );
        let hidraw = tree.file("dev/hidraw3", "");
        std::fs::set_permissions(&hidraw, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(
            tree.remedy(Sandbox::Usb, name)
                .contains("SUBSYSTEM==\"hidraw\"")
        );
    }

    #[test]
    fn groups_of_the_service_count() {
        let tree = Tree::new();
        let who = Who::find(tree.0.path());
        assert_eq!((who.uid, who.gids), (4711, vec![4711, 46]));
    }

    #[test]
    fn the_units_drop_ins_are_asked_for_where_the_unit_is() {
        let tree = Tree::new();
        let name = "drop-in network-hsm.conf";
        assert!(tree.look(Sandbox::Network).checks.is_empty());
        tree.file("usr/lib/systemd/system/opcertd.service", "[Service]\n");
        let remedy = tree.remedy(Sandbox::Network, name);
        assert!(remedy.contains("systemctl daemon-reload"), "{remedy}");
        tree.file(
            "etc/systemd/system/opcertd.service.d/network-hsm.conf",
            "[Service]\n",
        );
        assert!(tree.is_ok(Sandbox::Network, name));
    }

    #[test]
    fn libraries_are_known_by_their_packages() {
        for (library, package) in [
            ("/usr/lib/softhsm/libsofthsm2.so", Some("softhsm2")),
            ("/usr/lib/libykcs11.so.2", Some("ykcs11")),
            ("/opt/vendor.so", None),
        ] {
            assert_eq!(package_of(Path::new(library)), package);
        }
    }
}
