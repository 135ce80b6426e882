//! `init`: a new service, from nothing to ready.
//!
//! Everything that can be refused is checked before anything is made; a later failure takes back
//! what this run made, keys on the token included. The configuration is written last but one and
//! nothing that exists is ever replaced.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::desk::Desk;
use super::output::Output;
use super::{AdminError, trial};
use crate::account::config::{Config, host_and_port};
use crate::account::issuing::certify_authority;
use crate::account::service::{CODE_KEY_BYTES, CODE_KEY_FILE};
use crate::account::signer::Signer;
use crate::account::store::keys::{self, KeyPurpose, ServiceKey, Turn};
use crate::account::store::{Store, StoreError};
use crate::base::Clock;
use crate::base::files::{private_directory, write_new};
use crate::base::ids::random;
use crate::base::key::KeySpec;
use crate::base::pkcs11::{KeyId, KeyRef, TokenId, TokenUri};
use crate::base::x509::{Certificate, common_name};
use crate::device::{DeviceError, Devices, KeyUse, Waiver};
use crate::statement::Origin;
use crate::statement::text::Text;

/// What `init` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where database, audit trail and key files go; made if it is missing.
    #[arg(long, value_name = "DIR")]
    state_directory: PathBuf,
    /// The address the service is known by: https://HOST or https://HOST:PORT. It cannot be changed later.
    #[arg(long, value_name = "URL")]
    origin: Origin,
    /// An address to listen on; may be given several times. Default: 127.0.0.1 and the origin's
    /// port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// The PKCS#11 module.
    #[arg(long, value_name = "FILE")]
    module: PathBuf,
    /// A variable for the module's worker; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    module_environment: Vec<(String, String)>,
    /// The token that will hold the keys of the service, as a PKCS#11 URI (RFC 7512).
    #[arg(long, value_name = "URI")]
    token: TokenUri,
    /// Where the token's PIN comes from: file:PATH or credential:NAME.
    #[arg(long, value_name = "SOURCE")]
    pin_source: String,
    /// The worker executable. Default: `opcert-worker` beside this program.
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// The database: sqlite:PATH or postgres://USER@HOST/DATABASE, which must be there and empty.
    /// Default: account.db in the state directory.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// A file with the password for PostgreSQL, closed to everybody else.
    #[arg(long, value_name = "FILE")]
    database_password_file: Option<PathBuf>,
    /// The name of the issuing authority.
    #[arg(long, value_name = "NAME", default_value = "opcert issuing authority")]
    authority: Text,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("must be NAME=VALUE".into()),
    }
}

/// Makes the service.
pub(super) async fn run(
    arguments: &Arguments,
    config_path: &Path,
    output: &Output,
) -> Result<(), AdminError> {
    let state = std::path::absolute(&arguments.state_directory)?;
    let mut made = Made::default();
    let result = make(arguments, &state, config_path, &mut made).await;
    if let Some(devices) = &made.devices {
        if result.is_err() {
            made.take_back_keys(devices).await;
        }
        devices.shutdown().await;
    }
    let authority = match result {
        Ok(authority) => authority,
        Err(error) => {
            made.take_back_files();
            return Err(error);
        }
    };
    let state = state.display();
    let fingerprint = crate::base::encoding::hex(&authority.fingerprint());
    output.done(
        &format!(
            "A new account service is ready.\n\
             \x20 configuration     {}\n\
             \x20 state             {state}\n\
             \x20 origin            {}\n\
             \x20 authority         {state}/ca.pem (SHA-256 {fingerprint})\n\
             \x20 TLS for a trial   trust {state}/server-ca.pem; for more than a trial set [tls]\n\
             Next: opcert-accountd account create, operator create, platform-key create, then serve.",
            config_path.display(),
            arguments.origin,
        ),
        &json!({
            "config": config_path,
            "state_directory": arguments.state_directory,
            "origin": arguments.origin,
            "authority_sha256": fingerprint,
        }),
    )
}

/// What this run has made, to be taken back if it fails.
#[derive(Default)]
struct Made {
    files: Vec<PathBuf>,
    keys: Vec<KeyRef>,
    /// What the token did not prove of some of them, and its configuration waives.
    waived: Vec<(KeyRef, Vec<Waiver>)>,
    devices: Option<Devices>,
}

impl Made {
    fn file(&mut self, path: PathBuf, bytes: &[u8], mode: u32) -> Result<(), AdminError> {
        write_new(&path, bytes, mode)?;
        self.files.push(path);
        Ok(())
    }

    async fn take_back_keys(&self, devices: &Devices) {
        for key in &self.keys {
            if let Err(error) = devices.delete_key(key).await {
                tracing::warn!(%key, %error, "a key of the failed run is left on the token");
            }
        }
    }

    fn take_back_files(&self) {
        for path in &self.files {
            // What cannot be removed is found, and named, by the next run.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn make(
    arguments: &Arguments,
    state: &Path,
    config_path: &Path,
    made: &mut Made,
) -> Result<Certificate, AdminError> {
    let clock = Clock::system();
    let database = state.join("account.db");
    for path in [config_path, &database, &state.join(CODE_KEY_FILE)] {
        if path.exists() {
            return Err(AdminError::Exists {
                what: path.display().to_string(),
            });
        }
    }
    private_directory(state)?;
    let text = config_text(arguments, state);
    made.file(config_path.to_owned(), text.as_bytes(), 0o600)?;
    let config = Config::load(config_path)?;

    let devices = Devices::start(config.devices(), state, clock.clone()).await?;
    made.devices = Some(devices.clone());
    let (sign, decrypt) = (
        (KeySpec::P256, KeyUse::Sign),
        (KeySpec::Rsa2048, KeyUse::Decrypt),
    );
    let token = devices.select(&config.token).await?;
    let issuing = generate(&devices, &token, sign, "opcert issuing authority", made).await?;
    let challenge = generate(&devices, &token, sign, "opcert challenges", made).await?;
    let sealing = generate(&devices, &token, decrypt, "opcert secrets", made).await?;
    let signer = Signer::new(
        devices.clone(),
        issuing.key.clone(),
        issuing.public_key.clone(),
    );
    let name = common_name(arguments.authority.as_str())?;
    let authority = certify_authority(&signer, name, clock.now()).await?;

    made.file(
        state.join(CODE_KEY_FILE),
        &random::<CODE_KEY_BYTES>(),
        0o600,
    )?;
    let (host, _) = host_and_port(&config.origin);
    let trial = trial::make(&host, clock.now())?;
    made.file(
        state.join("server-ca.pem"),
        trial.authority.as_bytes(),
        0o644,
    )?;
    made.file(
        state.join("server.pem"),
        trial.certificate.as_bytes(),
        0o644,
    )?;
    made.file(state.join("server-key.pem"), trial.key.as_bytes(), 0o600)?;
    made.file(state.join("ca.pem"), authority.to_pem()?.as_bytes(), 0o644)?;

    if config.database.is_none() {
        // SQLite gives its other files the mode of this one.
        made.file(database, b"", 0o600)?;
        for suffix in ["-wal", "-shm"] {
            made.files.push(state.join(format!("account.db{suffix}")));
        }
    }
    let (store, _, _) = Store::migrate(&config.database()?).await?;
    let row = |key: Generated, certificate| ServiceKey {
        key: key.key,
        public_key: key.public_key,
        certificate,
        created_at: clock.now(),
    };
    let issuing = &row(issuing, Some(authority.der().to_vec()));
    let challenge = &row(challenge, None);
    let sealing = &row(sealing, None);
    store
        .transaction("name the keys", move |tx| {
            Box::pin(async move {
                keys::insert(tx, KeyPurpose::Issuing, issuing, Turn::Now).await?;
                keys::insert(tx, KeyPurpose::Challenge, challenge, Turn::Now).await?;
                keys::insert(tx, KeyPurpose::Sealing, sealing, Turn::Now).await?;
                Ok::<_, StoreError>(())
            })
        })
        .await?;
    if made.waived.is_empty() {
        store.close().await;
        return Ok(authority);
    }
    let desk = Desk::beside(store, &config)?;
    for (key, waived) in &made.waived {
        let body = json!({ "key": key.to_string(), "waived": waived });
        desk.write("key-proof-waived", body).await?;
    }
    desk.close().await?;
    Ok(authority)
}

struct Generated {
    key: KeyRef,
    public_key: crate::base::key::PublicKey,
}

async fn generate(
    devices: &Devices,
    token: &TokenId,
    (spec, r#use): (KeySpec, KeyUse),
    label: &str,
    made: &mut Made,
) -> Result<Generated, DeviceError> {
    let generated = devices
        .generate_for(token, spec, r#use, &KeyId::random(), label)
        .await?;
    made.keys.push(generated.key.clone());
    if !generated.proof.waived.is_empty() {
        let waived = (generated.key.clone(), generated.proof.waived);
        made.waived.push(waived);
    }
    Ok(Generated {
        key: generated.key,
        public_key: generated.public_key,
    })
}

fn config_text(arguments: &Arguments, state: &Path) -> String {
    let quote = |text: &str| toml::Value::from(text).to_string();
    let path = |path: &Path| quote(&path.display().to_string());
    let listen: Vec<String> = if arguments.listen.is_empty() {
        let (_, port) = host_and_port(&arguments.origin);
        vec![quote(&format!("127.0.0.1:{port}"))]
    } else {
        arguments
            .listen
            .iter()
            .map(|address| quote(&address.to_string()))
            .collect()
    };
    let environment: Vec<String> = arguments
        .module_environment
        .iter()
        .map(|(name, value)| format!("{} = {}", quote(name), quote(value)))
        .collect();
    let worker = match &arguments.worker {
        Some(worker) => format!("worker = {}\n", path(worker)),
        None => String::new(),
    };
    let mut database = String::new();
    if let Some(url) = &arguments.database {
        database.push_str(&format!("database = {}\n", quote(url)));
    }
    if let Some(file) = &arguments.database_password_file {
        database.push_str(&format!("database-password-file = {}\n", path(file)));
    }
    format!(
        "# The account service of opcert, made by `opcert-accountd init`.\n\
         state-directory = {state}\n\
         # How the service is known; it is in every challenge and certificate, so keep it.\n\
         origin = {origin}\n\
         listen = [{listen}]\n\
         {database}\
         # The token with the keys of the authority, of challenges and of secrets.\n\
         token = {token}\n\
         {worker}\
         \n\
         # The certificate in server.pem is for a trial. For more, name your own:\n\
         # [tls]\n\
         # certificate = \"/etc/opcert/tls.pem\"\n\
         # key = \"/etc/opcert/tls-key.pem\"\n\
         \n\
         [sms]\n\
         # Prints codes on standard output: for a trial.\n\
         gateway = \"console\"\n\
         \n\
         [[module]]\n\
         name = \"token\"\n\
         path = {module}\n\
         environment = {{ {environment} }}\n\
         [[module.token]]\n\
         uri = {token}\n\
         pin-source = {pin_source}\n",
        state = path(state),
        origin = quote(arguments.origin.as_str()),
        listen = listen.join(", "),
        token = quote(&arguments.token.to_string()),
        module = path(&arguments.module),
        environment = environment.join(", "),
        pin_source = quote(&arguments.pin_source),
    )
}
