//! A token to test with.
//!
//! By default [`TestToken::new`] makes a SoftHSM2 token in a temporary directory, with a random PIN;
//! it is gone when the value is dropped. To run the same tests against another PKCS#11 module, set
//!
//! - `OPCERT_TEST_MODULE`: path of the module,
//! - `OPCERT_TEST_TOKEN`: label of the token,
//! - `OPCERT_TEST_PIN`: its user PIN,
//! - `OPCERT_TEST_ENV`: names of the environment variables that the worker needs, separated by
//!   blanks or commas,
//! - `OPCERT_TEST_INIT_ARGS`: what the module's `C_Initialize` is given, for those of NSS,
//! - `OPCERT_TEST_WAIVE`: what it misreports of its keys, by the words of `waive` in the
//!   configuration.
//!
//! Tests that need what only SoftHSM2 in a directory of ours allows (a wrong PIN, a hung or an
//! absent token) ask for [`TestToken::softhsm`] and skip themselves when it is `None`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use opcert::base::encoding::hex;
use opcert::base::ids::random;
use opcert::base::pkcs11::TokenUri;
use opcert::device::{Config, ModuleConfig, PinSource, TokenConfig, Waiver};

/// Where Debian and Fedora put SoftHSM2.
const SOFTHSM_PATHS: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];

/// A token, and a directory for whatever a test keeps beside it.
pub struct TestToken {
    /// Path of the PKCS#11 module.
    pub module: PathBuf,
    /// Label of the token.
    pub label: String,
    /// Its user PIN.
    pub pin: String,
    /// What the worker's environment must hold.
    pub environment: BTreeMap<String, String>,
    init_args: Option<String>,
    waive: Vec<Waiver>,
    directory: tempfile::TempDir,
    softhsm: bool,
}

impl TestToken {
    /// A fresh SoftHSM2 token, or the one that `OPCERT_TEST_…` names.
    pub fn new(label: &str) -> Self {
        let Ok(module) = std::env::var("OPCERT_TEST_MODULE") else {
            let token = Self::softhsm_without_token(label);
            token.create();
            return token;
        };
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| panic!("{name} goes with OPCERT_TEST_MODULE"))
        };
        let words = |name: &str| {
            let text = std::env::var(name).unwrap_or_default();
            let words = text.split([' ', ',']).filter(|word| !word.is_empty());
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        Self {
            module: module.into(),
            label: variable("OPCERT_TEST_TOKEN"),
            pin: variable("OPCERT_TEST_PIN"),
            environment: words("OPCERT_TEST_ENV")
                .into_iter()
                .map(|name| (name.clone(), variable(&name)))
                .collect(),
            init_args: std::env::var("OPCERT_TEST_INIT_ARGS").ok(),
            waive: words("OPCERT_TEST_WAIVE")
                .into_iter()
                .map(|word| toml::Value::String(word).try_into().expect("a waiver"))
                .collect(),
            directory: tempfile::tempdir().expect("a temporary directory"),
            softhsm: false,
        }
    }

    /// A fresh SoftHSM2 token whatever the environment says; `None`, with the reason printed, when
    /// the tests run against another module.
    pub fn softhsm(label: &str) -> Option<Self> {
        if std::env::var_os("OPCERT_TEST_MODULE").is_some() {
            eprintln!("skipped: needs a SoftHSM2 token of its own, and OPCERT_TEST_MODULE is set");
            return None;
        }
        Some(Self::new(label))
    }

    /// A SoftHSM2 directory in which the token does not exist until [`TestToken::create`].
    pub fn softhsm_without_token(label: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let tokens = directory.path().join("tokens");
        std::fs::create_dir(&tokens).expect("a token directory");
        let conf = directory.path().join("softhsm2.conf");
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            tokens.display()
        );
        std::fs::write(&conf, text).expect("softhsm2.conf");
        let module = SOFTHSM_PATHS
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.is_file())
            .expect("SoftHSM2 is needed: apt-get install softhsm2");
        Self {
            module,
            label: label.to_owned(),
            pin: format!("{:06}", u32::from_le_bytes(random()) % 1_000_000),
            environment: BTreeMap::from([(
                "SOFTHSM2_CONF".to_owned(),
                conf.to_string_lossy().into_owned(),
            )]),
            init_args: None,
            waive: Vec::new(),
            directory,
            softhsm: true,
        }
    }

    /// Initializes the SoftHSM2 token.
    pub fn create(&self) {
        self.add(&self.label);
    }

    /// Initializes another SoftHSM2 token with the same PIN.
    pub fn add(&self, label: &str) {
        let so_pin = hex(&random::<8>());
        let output = Command::new("softhsm2-util")
            .args(["--init-token", "--free", "--label", label])
            .args(["--pin", &self.pin, "--so-pin", &so_pin])
            .envs(&self.environment)
            .output()
            .expect("softhsm2-util is needed: apt-get install softhsm2");
        assert!(
            output.status.success(),
            "softhsm2-util: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Whether it is a SoftHSM2 token of ours.
    pub fn is_softhsm(&self) -> bool {
        self.softhsm
    }

    /// A directory that lives as long as the token.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The SoftHSM2 directory that holds the tokens, one directory each.
    pub fn token_directory(&self) -> PathBuf {
        self.directory.path().join("tokens")
    }

    /// `pkcs11:token=…`.
    pub fn uri(&self) -> TokenUri {
        TokenUri {
            token: Some(self.label.clone()),
            ..TokenUri::default()
        }
    }

    /// A file with `pin`, private to us.
    pub fn pin_file(&self, pin: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.directory.path().join("pin");
        std::fs::write(&path, format!("{pin}\n")).expect("a PIN file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
            .expect("a private PIN file");
        path
    }

    /// Somebody else's program on this token, logged in past the worker; to be told what to do.
    pub fn pkcs11_tool(&self) -> Command {
        let mut tool = Command::new("pkcs11-tool");
        tool.arg("--module")
            .arg(&self.module)
            .args(["--token-label", &self.label])
            .args(["--login", "--pin", &self.pin])
            .envs(&self.environment);
        tool
    }

    /// A device configuration with this module as `test` and this token, its PIN in a file.
    pub fn config(&self) -> Config {
        self.config_with(Some(PinSource::File(self.pin_file(&self.pin))))
    }

    /// The same with another PIN source, or none.
    pub fn config_with(&self, pin_source: Option<PinSource>) -> Config {
        let mut config: Config =
            toml::from_str("[[module]]\nname = \"test\"\npath = \"\"\ncall-timeout-seconds = 10\n")
                .expect("a configuration");
        config.worker = Some(env!("CARGO_BIN_EXE_opcert-worker").into());
        let module: &mut ModuleConfig = &mut config.module[0];
        module.path = self.module.clone();
        module.environment = self.environment.clone();
        module.init_args = self.init_args.clone();
        module.token = vec![TokenConfig {
            uri: self.uri(),
            pin_source,
            touch: false,
            login: opcert::device::LoginPolicy::default(),
            keepalive: None,
            idle_release: None,
            waive: self.waive.clone(),
            attestation: None,
        }];
        config
    }

    /// The same as the TOML that goes into the file of a daemon.
    pub fn config_toml(&self) -> String {
        self.config_toml_with(&format!("file:{}", self.pin_file(&self.pin).display()))
    }

    /// The same with another PIN source.
    pub fn config_toml_with(&self, pin_source: &str) -> String {
        let environment: Vec<String> = self
            .environment
            .iter()
            .map(|(name, value)| format!("{name} = {value:?}"))
            .collect();
        format!(
            "worker = {:?}\n\n[[module]]\nname = \"test\"\npath = {:?}\nenvironment = {{ {} }}\n\n\
             [[module.token]]\nuri = \"{}\"\npin-source = {pin_source:?}\n",
            env!("CARGO_BIN_EXE_opcert-worker"),
            self.module,
            environment.join(", "),
            self.uri(),
        )
    }
}
