//! A maker of devices that attest their keys: openssl issues what a YubiKey shows.

use std::path::{Path, PathBuf};
use std::process::Command;

use der::pem::LineEnding;
use opcert::base::key::PublicKey;
use opcert::base::x509::Certificate;

use super::softhsm::TestToken;

/// A maker's authorities and one device of its.
pub struct Maker(tempfile::TempDir);

impl Maker {
    /// A new one; its names are those of all.
    pub fn new() -> Self {
        let maker = Self(tempfile::tempdir().unwrap());
        std::fs::write(
            maker.path("device.ext"),
            "basicConstraints = critical, CA:TRUE, pathlen:0\n",
        )
        .unwrap();
        // Firmware 5.4.3, serial number 12345678, PIN once, touch never.
        std::fs::write(
            maker.path("key.ext"),
            "1.3.6.1.4.1.41482.3.3 = DER:05:04:03\n\
             1.3.6.1.4.1.41482.3.7 = DER:02:04:00:BC:61:4E\n\
             1.3.6.1.4.1.41482.3.8 = DER:02:01\n",
        )
        .unwrap();
        maker.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
             -keyout root.key -out root.pem -subj /CN=Maker_PIV_Root",
        );
        maker.openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout device.key \
             -out device.csr -subj /CN=Maker_PIV_Attestation",
        );
        maker.openssl(
            "x509 -req -in device.csr -CA root.pem -CAkey root.key -extfile device.ext \
             -days 3650 -out device.pem",
        );
        maker.openssl("x509 -in device.pem -outform DER -out device.der");
        maker
    }

    /// One of its files; `root.pem` is its authority.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_ascii_whitespace())
            .current_dir(self.0.path())
            .output()
            .expect("openssl is needed: apt-get install openssl");
        assert!(
            output.status.success(),
            "openssl {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// What the device says of a key.
    pub fn attests(&self, key: &PublicKey) -> Certificate {
        let pem = der::pem::encode_string("PUBLIC KEY", LineEnding::LF, key.spki()).unwrap();
        std::fs::write(self.path("public.pem"), pem).unwrap();
        self.openssl(
            "x509 -new -force_pubkey public.pem -subj /CN=Maker_PIV_Attestation_9a \
             -CA device.pem -CAkey device.key -extfile key.ext -days 3650 -out key.pem",
        );
        Certificate::from_pem(&std::fs::read(self.path("key.pem")).unwrap()).unwrap()
    }

    /// Puts the device's own certificate on the token, as in slot f9.
    pub fn put_device(&self, token: &TestToken) {
        self.put(token, &self.path("device.der"), "19");
    }

    /// Puts what the device says of a key on the token, beside the key.
    pub fn put_attestation(&self, token: &TestToken, key: &PublicKey) {
        let path = self.path("key.der");
        std::fs::write(&path, self.attests(key).der()).unwrap();
        self.put(token, &path, "18");
    }

    /// Past the worker, as another program would.
    fn put(&self, token: &TestToken, certificate: &Path, id: &str) {
        let output = token
            .pkcs11_tool()
            .arg("--write-object")
            .arg(certificate)
            .args(["--type", "cert", "--id", id])
            .args(["--label", "X.509 Certificate for PIV Attestation"])
            .output()
            .expect("pkcs11-tool is needed: apt-get install opensc");
        assert!(
            output.status.success(),
            "pkcs11-tool: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
