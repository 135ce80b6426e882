//! PKCS#11 tokens, through supervised worker processes.
//!
//! # Shape
//!
//! [`Devices`] is the handle that the rest of the program holds. Per configured token there is
//! one supervisor task and one worker process (`opcert-worker`), which alone loads the vendor's
//! library; libraries hold locks while they wait for a touch or a PIN, so tokens that share a
//! process would wait for each other's people. They share one where the configuration says so
//! (`share-worker`). The daemon hashes, the worker signs, the daemon verifies: a signature leaves
//! [`Devices::sign`] only after it verified under the public key that was read before.
//!
//! ```text
//! Devices ── link ── SOCK_SEQPACKET ── opcert-worker ── vendor library ── token
//!    │         (frames)                   N signing threads + the keeper
//!    └── supervisor (start, log in, replace) ── PIN guard (pin-blocks.json)
//! ```
//!
//! # What is kept
//!
//! Tokens are known by module, label and serial, keys by `CKA_ID`; slot numbers and object handles
//! never leave a worker. Public keys are cached here for the life of the process. A PIN that
//! worked is kept in memory for the next worker. Only `pin-blocks.json` outlives the process: see
//! `pin_guard`.
//!
//! # What a fault does
//!
//! - A call past its deadline kills the worker: threads inside a library cannot be stopped. All
//!   calls under way end with [`DeviceError::Timeout`], outcome not known; none is sent again.
//! - A worker that ends fails the calls under way with [`DeviceError::WorkerDied`] and is replaced.
//! - A return value that means an unwell library fails its call and has the worker replaced after
//!   the others are done.
//! - Invalid handles and sessions are renewed inside the worker, once per call; a lost login is
//!   renewed by the supervisor, guarded, once per call; a token that left or moved is looked for,
//!   once per call. Where that does not heal it, and where a signature does not verify, the worker
//!   is replaced.
//! - Tokens do not notice each other's faults, unless they share a worker.

mod administer;
mod asking;
mod catalogue;
mod config;
mod error;
mod fair;
mod frames;
mod hygiene;
mod idle;
mod keepalive;
mod link;
mod per_use;
mod pin_check;
mod pin_guard;
mod pins;
mod private_key;
mod public_key;
mod release;
mod sandbox;
mod supervisor;
pub mod worker;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use der::{Decode, Encode};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use self::administer::{MadeToken, NewToken, PinOf};
pub use self::catalogue::{
    GeneratedKey, KeyInfo, ModuleStatus, Proof, TokenCertificate, TokenFlags, TokenState,
    TokenStatus,
};
use self::catalogue::{Reason, TokenView};
pub use self::config::{
    Allowance, AttestationConfig, Config, InvalidPinSource, LoginPolicy, ModuleConfig, PinSource,
    TokenConfig, Waiver,
};
pub use self::error::DeviceError;
use self::fair::{Gate, Parties, Party};
use self::frames::{Answer, CERTIFICATE_MAX, CertificateParts, Class, Failure, Input, Verb};
pub use self::frames::{HeldKeys, HeldObject, KeyUse, LastTry, UnlockOutcome};
use self::link::{CallError, Link};
use self::per_use::PerUse;
use self::pin_check::PinCheck;
use self::pin_guard::PinGuard;
use self::pins::Pins;
pub use self::private_key::{InvalidPrivateKey, RsaPrivateKey};
pub use self::sandbox::{Sandbox, SandboxLevel, SandboxStatus};
use self::supervisor::{Command, Phase, Supervisor, View, call_error, unexpected};
use crate::base::clock::Clock;
use crate::base::key::{KeySpec, PublicKey, Scheme, Signature};
use crate::base::pkcs11::{KeyId, KeyRef, TokenId, TokenUri};
use crate::base::secret::{Pin, SecretBytes};
use crate::policy::{Caller, Permit, Purpose};
use crate::telemetry::metrics::metrics;

/// The most bytes of a message to be hashed and signed.
const MESSAGE_MAX: usize = 16 * 1024 * 1024;

/// The most bytes of a ciphertext: RSA with 8192 bits.
const CIPHERTEXT_MAX: usize = 1024;

/// The most bytes of a key's label.
const LABEL_MAX: usize = frames::LABEL_MAX;

/// The most lists that one module reads at a time.
const LISTS_MAX: usize = 4;

/// The most public keys that are cached; past it all are read anew.
const PUBLIC_KEYS_MAX: usize = 16 * 1024;

/// The most commands that wait for one supervisor.
const COMMANDS_MAX: usize = 64;

/// How long a question about the state of things waits for a worker's first start.
const FIRST_START: Duration = Duration::from_secs(1);

/// All configured tokens. Cloning shares them.
#[derive(Clone)]
pub struct Devices(Arc<Inner>);

struct Inner {
    modules: ArcSwap<Vec<Arc<Module>>>,
    start: Start,
    parties: Parties,
    public_keys: RwLock<HashMap<KeyRef, PublicKey>>,
    /// Who is asked for PINs.
    asking: asking::Asking,
    stop: watch::Sender<bool>,
    /// Counts what [`Changes`] reports.
    changed: watch::Sender<u64>,
    /// Held while the modules are exchanged, and once they are shut down.
    exchanging: Mutex<()>,
}

/// What every supervisor is started with.
struct Start {
    worker: PathBuf,
    guard: Arc<PinGuard>,
    changed: watch::Sender<u64>,
}

/// What came of another set of modules.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ModuleChanges {
    /// Names of modules that were not there.
    pub added: Vec<String>,
    /// Names of modules that are gone.
    pub removed: Vec<String>,
    /// Names of modules that were started anew, as their entries differ.
    pub changed: Vec<String>,
}

/// For the fuzz target of the frames: each frame that is read is written back as it was.
#[cfg(fuzzing)]
pub fn fuzz_packet(packet: &[u8]) {
    use self::frames::{FromWorker, ToWorker};
    fn round_trip<T: serde::Serialize + for<'a> serde::Deserialize<'a>>(frame: &[u8]) {
        if let Ok(value) = frames::decode::<T>(frame) {
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            if frames::append(&mut once, &value).is_ok() {
                for frame in frames::split(&once).flatten() {
                    let again = frames::decode::<T>(frame);
                    let _ = again.map(|again| frames::append(&mut twice, &again));
                }
                assert!(once == twice, "a frame is not read as it was written");
            }
        }
    }
    for frame in frames::split(packet).flatten() {
        round_trip::<ToWorker>(frame);
        round_trip::<FromWorker>(frame);
    }
}

/// What a person has to do on a token itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByHand {
    /// Its PIN is typed on the device (`CKF_PROTECTED_AUTHENTICATION_PATH`).
    pub protected_path: bool,
    /// It waits for a touch before it signs, as the configuration says.
    pub touch: bool,
}

/// Waits for tokens to come, leave, or change their state.
pub struct Changes {
    devices: Devices,
    seen: watch::Receiver<u64>,
    stop: watch::Receiver<bool>,
}

struct Module {
    config: ModuleConfig,
    view: Arc<watch::Sender<Arc<View>>>,
    commands: mpsc::Sender<Command>,
    /// Ends its supervisor.
    stop: watch::Sender<bool>,
    supervisor: Mutex<Option<JoinHandle<()>>>,
    /// Shared with the supervisor.
    pins: Pins,
    /// For operations that need a login of their own: one at a time for each token.
    gates: std::sync::Mutex<HashMap<TokenId, Arc<Gate>>>,
    /// Workers that were killed and have not ended.
    stuck: Arc<AtomicUsize>,
    /// A turn for each list, as the worker keeps only so many half read.
    lists: Semaphore,
    /// A turn for each write, so that its deadline begins when the worker can begin.
    writes: Semaphore,
}

/// What a call needs of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    /// It is there; public objects are all that is asked for.
    Presence,
    /// It is logged in; a person may be asked for its PIN.
    Login,
    /// It is logged in, and nobody is asked: the daemon does it on its own, or only looks.
    QuietLogin,
}

impl Devices {
    /// Starts one supervised worker per module, and returns without waiting for them.
    ///
    /// An absent module file or token is no error here: it shows in [`Devices::modules`] and
    /// [`Devices::tokens`]. Errors: two modules of the same name, or a record of refused PINs in
    /// `state_directory` that cannot be read.
    pub async fn start(
        config: Config,
        state_directory: &Path,
        clock: Clock,
    ) -> Result<Self, DeviceError> {
        Self::check(&config.module)?;
        let changed = watch::Sender::new(0);
        let start = Start {
            worker: supervisor::find_worker(config.worker.as_deref()),
            guard: Arc::new(PinGuard::open(state_directory, clock)?),
            changed: changed.clone(),
        };
        let mut modules = Vec::new();
        for config in config.module {
            let stuck = Arc::default();
            let parts = config.parts();
            modules.extend(parts.map(|part| start.module(part, None, &stuck)));
        }
        Ok(Self(Arc::new(Inner {
            modules: ArcSwap::from_pointee(modules),
            start,
            parties: Parties::default(),
            public_keys: RwLock::default(),
            asking: asking::Asking::default(),
            stop: watch::Sender::new(false),
            changed,
            exchanging: Mutex::default(),
        })))
    }

    /// Whether these modules can be used side by side: each is known by its name, so there is one
    /// of each.
    pub fn check(modules: &[ModuleConfig]) -> Result<(), DeviceError> {
        let mut names = HashSet::new();
        match modules.iter().find(|module| !names.insert(&module.name)) {
            Some(twice) => Err(DeviceError::ModuleTwice {
                module: twice.name.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Takes over another set of modules, and returns without waiting for their workers.
    ///
    /// Modules whose entry is the same go on undisturbed. One that is gone or differs takes no
    /// more calls and ends after those under way; one that differs is started once the old worker
    /// has ended, as many libraries cannot be loaded twice, and calls wait for it meanwhile. PINs
    /// that worked are handed on where name and library stay. Errors, which change nothing: two
    /// modules of the same name.
    pub async fn reconfigure(
        &self,
        modules: Vec<ModuleConfig>,
    ) -> Result<ModuleChanges, DeviceError> {
        Self::check(&modules)?;
        let _exchanging = self.0.exchanging.lock().await;
        if *self.0.stop.borrow() {
            return Err(DeviceError::Stopped);
        }
        let old = self.0.modules.load_full();
        let mut changes = ModuleChanges::default();
        let mut next: Vec<Arc<Module>> = Vec::new();
        for config in modules {
            let name = config.name.clone();
            let known: Vec<&Arc<Module>> = old
                .iter()
                .filter(|known| known.config.name == name)
                .collect();
            let stuck = match known.first() {
                Some(known) if known.config.path == config.path => known.stuck.clone(),
                _ => Arc::default(),
            };
            let parts: Vec<ModuleConfig> = config.parts().collect();
            let (stay, leave): (Vec<_>, Vec<_>) = known
                .into_iter()
                .partition(|known| parts.contains(&known.config));
            if stay.is_empty() && leave.is_empty() {
                changes.added.push(name);
            } else if !leave.is_empty() || stay.len() < parts.len() {
                changes.changed.push(name);
            }
            for part in parts {
                if let Some(same) = stay.iter().find(|known| known.config == part) {
                    next.push((*same).clone());
                    continue;
                }
                let before = leave.iter().find(|known| known.config.shares(&part.token));
                let before = before.or(leave.first()).map(|known| (*known).clone());
                next.push(self.0.start.module(part, before, &stuck));
            }
        }
        let gone = |known: &&Arc<Module>| !next.iter().any(|part| Arc::ptr_eq(part, known));
        let gone: Vec<Arc<Module>> = old.iter().filter(gone).cloned().collect();
        let ended: HashSet<String> = gone.iter().map(|gone| gone.config.name.clone()).collect();
        let stays = |name: &String| next.iter().any(|part| part.config.name == *name);
        let mut removed: Vec<String> = ended.iter().filter(|name| !stays(name)).cloned().collect();
        removed.sort();
        changes.removed = removed;
        self.0.modules.store(Arc::new(next));
        for gone in gone {
            gone.stop.send_replace(true);
        }
        // Another library, or another token, may answer to the same name.
        self.0
            .public_keys
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|key, _| !ended.contains(&key.token.module));
        self.0
            .changed
            .send_modify(|count| *count = count.wrapping_add(1));
        Ok(changes)
    }

    /// The configured tokens as they are now, in the order of the configuration.
    pub async fn tokens(&self) -> Vec<TokenStatus> {
        let mut list = Vec::new();
        let patience = Instant::now() + FIRST_START;
        for module in self.0.modules.load_full().iter() {
            let view = module.settled(patience).await;
            let reason = match &view.phase {
                Phase::Up(_) | Phase::AtRest => None,
                Phase::Starting => Some((
                    TokenState::Respawning,
                    "the module's worker is being started".to_owned(),
                )),
                Phase::Down { reason, .. } => Some((TokenState::Down, reason.to_string())),
                Phase::Stopped => Some((TokenState::Down, DeviceError::Stopped.to_string())),
            };
            let outage = reason.as_ref().map(|(state, text)| (*state, text.as_str()));
            list.extend(view.tokens.iter().map(|token| token.status(outage)));
        }
        list
    }

    /// Tells of every change of [`Devices::tokens`] from now on.
    pub fn changes(&self) -> Changes {
        Changes {
            seen: self.0.changed.subscribe(),
            stop: self.0.stop.subscribe(),
            devices: self.clone(),
        }
    }

    /// The configured modules as they are now.
    pub async fn modules(&self) -> Vec<ModuleStatus> {
        let mut list: Vec<ModuleStatus> = Vec::new();
        let patience = Instant::now() + FIRST_START;
        for module in self.0.modules.load_full().iter() {
            let view = module.settled(patience).await;
            let reason = match &view.phase {
                Phase::Up(_) | Phase::AtRest => None,
                Phase::Starting => Some("its worker is being started".to_owned()),
                Phase::Down { reason, .. } => Some(reason.to_string()),
                Phase::Stopped => Some(DeviceError::Stopped.to_string()),
            };
            let part = ModuleStatus {
                name: module.config.name.clone(),
                path: module.config.path.display().to_string(),
                up: matches!(view.phase, Phase::Up(_)),
                reason,
                stuck_workers: module.stuck.load(Ordering::Relaxed),
                library: view.library.as_ref().map(|library| {
                    format!(
                        "{} ({}) {}",
                        library.description, library.manufacturer, library.version
                    )
                }),
                sandbox: view.sandbox.clone(),
                slot_events: match &view.phase {
                    Phase::Up(link) => link.watches_slots(),
                    Phase::Starting | Phase::AtRest | Phase::Down { .. } | Phase::Stopped => false,
                },
            };
            match list.last_mut().filter(|module| module.name == part.name) {
                Some(module) => module.add(part),
                None => list.push(part),
            }
        }
        list
    }

    /// The one configured token that `uri` selects. An absent one is looked for first.
    pub async fn select(&self, uri: &TokenUri) -> Result<TokenId, DeviceError> {
        let (mut found, mut missing) = self.matching(uri).await;
        if found.is_empty() && !missing.is_empty() {
            for module in &missing {
                self.look_again(module, uri.clone()).await?;
            }
            (found, missing) = self.matching(uri).await;
        }
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => match missing.first() {
                Some(module) => Err(module.outage().unwrap_or(DeviceError::TokenAbsent {
                    token: uri.to_string(),
                })),
                None => Err(DeviceError::TokenUnknown {
                    uri: uri.to_string(),
                }),
            },
            several => Err(DeviceError::TokenAmbiguous {
                uri: uri.to_string(),
                count: several.len(),
            }),
        }
    }

    /// Signs `message` with the key that the permit is for.
    ///
    /// Refuses unless the message lies in the domain of the permit's purpose. Hashes here, has the
    /// token sign, and verifies the signature before returning it. Messages may have 16 MiB; those
    /// that a token is given whole, for Ed25519 or because it hashes by itself only, 32 KiB.
    pub async fn sign(
        &self,
        permit: Permit,
        scheme: Scheme,
        message: &[u8],
    ) -> Result<Signature, DeviceError> {
        let purpose = permit.purpose().name();
        let result = self.sign_and_verify(permit, scheme, message).await;
        let counters = match result {
            Ok(_) => &metrics().signatures,
            Err(_) => &metrics().signature_failures,
        };
        counters.of(purpose).increment();
        result
    }

    async fn sign_and_verify(
        &self,
        permit: Permit,
        scheme: Scheme,
        message: &[u8],
    ) -> Result<Signature, DeviceError> {
        if !permit.purpose().admits(message) {
            return Err(DeviceError::WrongPurpose {
                purpose: permit.purpose(),
            });
        }
        let key = permit.key();
        let public_key = self.public_key(key).await?;
        if !public_key.family().supports(scheme) {
            return Err(DeviceError::SchemeUnsupported {
                key: key.to_string(),
                scheme,
            });
        }
        let module = self.module_of(&key.token)?;
        let need = match permit.purpose() {
            Purpose::AuditCheckpoint | Purpose::SelfTest => Need::QuietLogin,
            _ => Need::Login,
        };
        let input = module.sign_input(&key.token, scheme);
        let party = match (permit.purpose(), permit.caller()) {
            (Purpose::SelfTest, Caller::Itself) => Party::SELF_TEST,
            (_, caller) => self.0.parties.of(caller),
        };
        let sign = async |input| {
            let data = signed_data(scheme, input, message)?;
            let verb = |token| Verb::Sign {
                token,
                key: key.id.as_bytes().to_vec(),
                scheme,
                input,
                data: data.clone(),
            };
            let budget = module.config.call_timeout;
            self.call_for(party, &key.token, Some(key), need, budget, verb)
                .await
        };
        let answer = match sign(input).await {
            // Not known before the worker was up.
            Err(DeviceError::Unsupported { .. })
                if module.sign_input(&key.token, scheme) != input =>
            {
                sign(module.sign_input(&key.token, scheme)).await?
            }
            answer => answer?,
        };
        let Answer::Signature(bytes) = answer else {
            return Err(unexpected(&key.token.module));
        };
        let signature = Signature::from_jose(bytes);
        match public_key.verify(scheme, message, &signature) {
            Ok(()) => Ok(signature),
            Err(_) => {
                // The id may mean another key by now, so the next call reads it again; or the
                // worker holds a handle that does, so it is replaced.
                self.forget(key);
                if let Some(link) = module.link() {
                    let why = format!("a signature with {key} does not verify");
                    module.command(Command::Replace { link, why }).await?;
                }
                Err(DeviceError::BadSignature {
                    key: key.to_string(),
                })
            }
        }
    }

    /// Decrypts what was encrypted for the key that the permit is for, with RSAES-OAEP, SHA-1 and
    /// MGF1 with SHA-1: a field, as WeChat Pay encrypts it, or the content key of a sealed secret.
    /// The permit must be for one of these.
    ///
    /// A ciphertext that is not for this key is [`DeviceError::Undecryptable`], without a reason.
    pub async fn decrypt(
        &self,
        permit: Permit,
        ciphertext: &[u8],
    ) -> Result<SecretBytes, DeviceError> {
        if !matches!(
            permit.purpose(),
            Purpose::WechatPayDecrypt | Purpose::SecretOpening
        ) {
            return Err(DeviceError::WrongPurpose {
                purpose: permit.purpose(),
            });
        }
        if ciphertext.len() > CIPHERTEXT_MAX {
            return Err(DeviceError::TooLarge {
                what: "ciphertext",
                limit: CIPHERTEXT_MAX,
            });
        }
        let key = permit.key();
        // RFC 8017 section 7.1.2 step 1: it is as long as the modulus. What a module answers to
        // another length is its own choice, and may look like an unwell module.
        let numbers = self.public_key(key).await?.rsa_numbers();
        if numbers.is_some_and(|(modulus, _)| modulus.len() != ciphertext.len()) {
            return Err(DeviceError::Undecryptable {
                key: key.to_string(),
            });
        }
        let module = self.module_of(&key.token)?;
        let verb = |token| Verb::Decrypt {
            token,
            key: key.id.as_bytes().to_vec(),
            input: ciphertext.to_vec(),
        };
        let answer = self
            .call_for(
                self.0.parties.of(permit.caller()),
                &key.token,
                Some(key),
                Need::Login,
                module.config.call_timeout,
                verb,
            )
            .await?;
        match answer {
            Answer::Plaintext(plaintext) => Ok(SecretBytes::new(plaintext.expose().to_vec())),
            _ => Err(unexpected(&key.token.module)),
        }
    }

    /// The public half of a key; read from the token once, then cached.
    pub async fn public_key(&self, key: &KeyRef) -> Result<PublicKey, DeviceError> {
        let cached = self
            .0
            .public_keys
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned();
        if let Some(cached) = cached {
            return Ok(cached);
        }
        let module = self.module_of(&key.token)?;
        let verb = |token| Verb::PublicKey {
            token,
            key: key.id.as_bytes().to_vec(),
        };
        let answer = self
            .call(
                &key.token,
                Some(key),
                Need::Presence,
                module.config.call_timeout,
                verb,
            )
            .await?;
        let Answer::PublicKey(parts) = answer else {
            return Err(unexpected(&key.token.module));
        };
        self.remember(key, &parts)
    }

    /// Generates a key pair on a token. The private key is proven to have been made there and to
    /// be unable to leave; one that does not prove it is destroyed. What the configuration waives
    /// for the token need not be proven; [`GeneratedKey::proof`] says what was not. `label` has at
    /// most 255 bytes.
    ///
    /// Writes to one module happen one after the other.
    pub async fn generate(
        &self,
        token: &TokenId,
        spec: KeySpec,
        id: &KeyId,
        label: &str,
    ) -> Result<GeneratedKey, DeviceError> {
        self.generate_for(token, spec, KeyUse::Sign, id, label)
            .await
    }

    /// As [`Devices::generate`], for a key that may do more than sign.
    pub async fn generate_for(
        &self,
        token: &TokenId,
        spec: KeySpec,
        r#use: KeyUse,
        id: &KeyId,
        label: &str,
    ) -> Result<GeneratedKey, DeviceError> {
        let can_decrypt = matches!(spec, KeySpec::Rsa2048 | KeySpec::Rsa3072);
        if r#use != KeyUse::Sign && !can_decrypt {
            return Err(DeviceError::Unsupported {
                token: token.to_string(),
                what: format!("decryption with a key of type {spec}"),
            });
        }
        if label.len() > LABEL_MAX {
            return Err(DeviceError::TooLarge {
                what: "label",
                limit: LABEL_MAX,
            });
        }
        let key = KeyRef {
            token: token.clone(),
            id: id.clone(),
        };
        let module = self.module_of(token)?;
        let _turn = turn(&module.writes).await?;
        let verb = |number| Verb::Generate {
            token: number,
            key: id.as_bytes().to_vec(),
            label: label.to_owned(),
            spec,
            r#use,
            waived: module.waivers(token),
        };
        let answer = self
            .call(
                token,
                Some(&key),
                Need::Login,
                module.config.generate_timeout,
                verb,
            )
            .await?;
        let Answer::Generated(parts, waived) = answer else {
            return Err(unexpected(&token.module));
        };
        let public_key = self.remember(&key, &parts)?;
        if !waived.is_empty() {
            tracing::warn!(%key, ?waived, "the token did not prove all of a new key, as is waived");
        }
        Ok(GeneratedKey {
            key,
            public_key,
            proof: Proof::without(waived),
        })
    }

    /// Puts an RSA key that was made elsewhere on a token, from which it cannot be taken again.
    /// There is no proof for such a key: copies of it may be anywhere.
    pub async fn import(
        &self,
        token: &TokenId,
        private: &RsaPrivateKey,
        r#use: KeyUse,
        id: &KeyId,
        label: &str,
    ) -> Result<PublicKey, DeviceError> {
        if label.len() > LABEL_MAX {
            return Err(DeviceError::TooLarge {
                what: "label",
                limit: LABEL_MAX,
            });
        }
        let key = KeyRef {
            token: token.clone(),
            id: id.clone(),
        };
        let module = self.module_of(token)?;
        let _turn = turn(&module.writes).await?;
        let verb = |number| Verb::Import {
            token: number,
            key: id.as_bytes().to_vec(),
            label: label.to_owned(),
            private: Box::new(private.parts()),
            r#use,
        };
        let budget = module.config.call_timeout;
        let answer = self
            .call(token, Some(&key), Need::Login, budget, verb)
            .await?;
        match answer {
            Answer::Imported(parts) => self.remember(&key, &parts),
            _ => Err(unexpected(&token.module)),
        }
    }

    /// The private keys on a token.
    pub async fn keys(&self, token: &TokenId) -> Result<Vec<KeyInfo>, DeviceError> {
        let module = self.module_of(token)?;
        let _turn = turn(&module.lists).await?;
        let (mut entries, mut cursor) = (Vec::new(), None);
        loop {
            let verb = |token| Verb::Keys { token, cursor };
            let Answer::Keys(page, next) = self.list_call(token, Need::QuietLogin, verb).await?
            else {
                return Err(unexpected(&token.module));
            };
            entries.extend(page);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        Ok(entries
            .into_iter()
            .map(|entry| KeyInfo {
                id: KeyId::from_bytes(entry.id).ok(),
                label: entry.label,
                spec: entry.spec,
                always_authenticate: entry.always_authenticate,
            })
            .collect())
    }

    /// Removes private key, public key and certificates with this `CKA_ID`.
    pub async fn delete_key(&self, key: &KeyRef) -> Result<(), DeviceError> {
        let module = self.module_of(&key.token)?;
        let _turn = turn(&module.writes).await?;
        let verb = |token| Verb::Delete {
            token,
            key: key.id.as_bytes().to_vec(),
        };
        let result = self
            .call(
                &key.token,
                Some(key),
                Need::Login,
                module.config.call_timeout,
                verb,
            )
            .await;
        self.forget(key);
        match result? {
            Answer::Done => Ok(()),
            _ => Err(unexpected(&key.token.module)),
        }
    }

    /// Stores a certificate under the key's `CKA_ID`, in place of any that is there. At most
    /// 16 KiB. A crash in between leaves both.
    pub async fn write_certificate(
        &self,
        key: &KeyRef,
        certificate_der: &[u8],
    ) -> Result<(), DeviceError> {
        let certificate = certificate_parts(&key.id, certificate_der)?;
        let module = self.module_of(&key.token)?;
        let _turn = turn(&module.writes).await?;
        let verb = |token| Verb::WriteCertificate {
            token,
            certificate: certificate.clone(),
        };
        let answer = self
            .call(
                &key.token,
                Some(key),
                Need::Login,
                module.config.call_timeout,
                verb,
            )
            .await?;
        match answer {
            Answer::Done => Ok(()),
            _ => Err(unexpected(&key.token.module)),
        }
    }

    /// The X.509 certificates on a token, but for those over 16 KiB or without a usable id.
    pub async fn certificates(
        &self,
        token: &TokenId,
    ) -> Result<Vec<TokenCertificate>, DeviceError> {
        let module = self.module_of(token)?;
        let _turn = turn(&module.lists).await?;
        let (mut entries, mut cursor) = (Vec::new(), None);
        loop {
            let verb = |token| Verb::Certificates { token, cursor };
            let answer = self.list_call(token, Need::Presence, verb).await?;
            let Answer::Certificates(page, next) = answer else {
                return Err(unexpected(&token.module));
            };
            entries.extend(page);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        Ok(entries
            .into_iter()
            .filter_map(|entry| {
                let id = KeyId::from_bytes(entry.id).ok()?;
                Some(TokenCertificate { id, der: entry.der })
            })
            .collect())
    }

    /// What a person has to do on the token itself, as far as it is known now.
    pub fn by_hand(&self, token: &TokenId) -> Result<ByHand, DeviceError> {
        let module = self.module_of(token)?;
        let view = module.view.borrow().clone();
        let known = view.tokens.iter().find(|known| known.id == *token);
        let touch = known.is_some_and(|known| {
            let mut configured = module.config.token.iter();
            configured.any(|config| config.uri == known.uri && config.touch)
        });
        let protected_path = known
            .and_then(|known| known.found.as_ref())
            .is_some_and(|info| info.flags.protected_path);
        Ok(ByHand {
            protected_path,
            touch,
        })
    }

    /// Whose attestation of its keys counts for a token, as the configuration says.
    pub fn attestation(&self, token: &TokenId) -> Result<Option<AttestationConfig>, DeviceError> {
        let module = self.module_of(token)?;
        let view = module.view.borrow().clone();
        let known = view.tokens.iter().find(|known| known.id == *token);
        Ok(known.and_then(|known| {
            let mut configured = module.config.token.iter();
            let config = configured.find(|config| config.uri == known.uri)?;
            config.attestation.clone()
        }))
    }

    /// Asks a token whether a PIN that a person typed for one operation is its own: one try, and
    /// none if it is locked or has one try left. `None` on a token whose PIN is typed on the
    /// device, for which there is `patience`. Neither the login that is there nor what the machine
    /// may try on its own changes.
    pub async fn check_pin(
        &self,
        token: &TokenId,
        pin: Option<Pin>,
        patience: Duration,
    ) -> Result<(), DeviceError> {
        let pin = pin.map(pin_guard::checked).transpose()?;
        let module = self.module_of(token)?;
        let limit = module.config.call_timeout;
        let (done, result) = oneshot::channel();
        let check = PinCheck {
            token: token.clone(),
            patience: match pin {
                Some(_) => limit,
                None => patience.max(limit),
            },
            pin,
        };
        // Loading the library and looking at the slots have a deadline each, as has another login
        // that is under way.
        let in_all = limit * 3 + check.patience * 2;
        module.command(Command::CheckPin { check, done }).await?;
        match tokio::time::timeout(in_all, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(module.outage().unwrap_or(DeviceError::Stopped)),
            Err(_) => Err(DeviceError::Timeout {
                token: token.to_string(),
                function: "C_Login",
                after: in_all,
            }),
        }
    }

    /// Logs in with a PIN that a person gave: one try, and none if the token is locked, or has one
    /// try left and the person did not say to use it. Success lifts what blocked the token's PIN;
    /// the PIN is kept for later workers.
    pub async fn unlock(
        &self,
        token: &TokenId,
        pin: Pin,
        last_try: LastTry,
    ) -> Result<UnlockOutcome, DeviceError> {
        self.unlock_with(token, Some(pin), last_try).await
    }

    /// The same on a token whose PIN a person types on the device itself
    /// (`CKF_PROTECTED_AUTHENTICATION_PATH`), within a minute.
    pub async fn unlock_by_hand(
        &self,
        token: &TokenId,
        last_try: LastTry,
    ) -> Result<UnlockOutcome, DeviceError> {
        self.unlock_with(token, None, last_try).await
    }

    async fn unlock_with(
        &self,
        token: &TokenId,
        pin: Option<Pin>,
        last_try: LastTry,
    ) -> Result<UnlockOutcome, DeviceError> {
        let module = self.module_of(token)?;
        let (done, result) = oneshot::channel();
        module
            .command(Command::Unlock {
                token: token.clone(),
                pin,
                last_try,
                done,
            })
            .await?;
        // Looking at the slots and logging in each have a deadline; a start may come before.
        let in_all = module.config.call_timeout * 3 + supervisor::BY_HAND;
        match tokio::time::timeout(in_all, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(module.outage().unwrap_or(DeviceError::Stopped)),
            Err(_) => Err(DeviceError::Timeout {
                token: token.to_string(),
                function: "C_Login",
                after: in_all,
            }),
        }
    }

    /// Takes no more calls, waits for those under way, and ends the workers.
    pub async fn shutdown(&self) {
        let _exchanging = self.0.exchanging.lock().await;
        self.0.stop.send_replace(true);
        let modules = self.0.modules.load_full();
        for module in modules.iter() {
            module.stop.send_replace(true);
        }
        for module in modules.iter() {
            module.ended().await;
        }
    }

    /// The part of a module that has a token.
    fn module_of(&self, token: &TokenId) -> Result<Arc<Module>, DeviceError> {
        let modules = self.0.modules.load();
        let mut parts = modules
            .iter()
            .filter(|module| module.config.name == token.module);
        let unknown = || DeviceError::ModuleUnknown {
            module: token.module.clone(),
        };
        let first = parts.next().ok_or_else(unknown)?;
        let Some(second) = parts.next() else {
            return Ok(first.clone());
        };
        let all: Vec<_> = [first, second].into_iter().chain(parts).collect();
        let found = all.iter().find(|part| part.shows(token));
        let found = found.or_else(|| all.iter().find(|part| part.may_show(token)));
        Ok(found.map_or(first, |found| *found).clone())
    }

    /// The parts of a module.
    fn parts(&self, name: &str) -> Result<Vec<Arc<Module>>, DeviceError> {
        let modules = self.0.modules.load();
        let parts = modules.iter().filter(|module| module.config.name == name);
        let parts: Vec<_> = parts.cloned().collect();
        match parts.is_empty() {
            false => Ok(parts),
            true => Err(DeviceError::ModuleUnknown {
                module: name.to_owned(),
            }),
        }
    }

    /// Whether another has taken this module's place.
    fn is_replaced(&self, module: &Arc<Module>) -> bool {
        let modules = self.0.modules.load();
        !modules.iter().any(|known| Arc::ptr_eq(known, module))
    }

    /// Tokens present that `uri` selects, and modules with an absent one that it may select.
    async fn matching(&self, uri: &TokenUri) -> (Vec<TokenId>, Vec<Arc<Module>>) {
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for module in self.0.modules.load_full().iter() {
            let path = module.config.path.to_string_lossy();
            if uri
                .module_path
                .as_ref()
                .is_some_and(|wanted| *wanted != path)
            {
                continue;
            }
            let view = module
                .settled(Instant::now() + module.config.call_timeout)
                .await;
            let mut may_come = false;
            for token in &view.tokens {
                match &token.found {
                    Some(info) if catalogue::selects(uri, &module.config.name, info) => {
                        found.push(token.id.clone());
                    }
                    Some(_) => {}
                    None => may_come |= catalogue::overlap(uri, &token.uri),
                }
            }
            if may_come {
                missing.push(module.clone());
            }
        }
        (found, missing)
    }

    async fn look_again(&self, module: &Module, wanted: TokenUri) -> Result<(), DeviceError> {
        let (done, result) = oneshot::channel();
        module.command(Command::LookAgain { wanted, done }).await?;
        // Whatever comes of it shows in the view.
        let _ended = tokio::time::timeout(module.config.call_timeout, result).await;
        Ok(())
    }

    async fn log_in_again(
        &self,
        module: &Module,
        token: &TokenId,
        seen: Instant,
    ) -> Result<(), DeviceError> {
        let (done, result) = oneshot::channel();
        let token = token.clone();
        module
            .command(Command::LogInAgain { token, seen, done })
            .await?;
        // Whatever comes of it shows in the view.
        let _ended = tokio::time::timeout(module.config.call_timeout, result).await;
        Ok(())
    }

    /// The same as [`Devices::call_for`], on our own account.
    async fn call(
        &self,
        token: &TokenId,
        key: Option<&KeyRef>,
        need: Need,
        budget: Duration,
        verb: impl Fn(u16) -> Verb,
    ) -> Result<Answer, DeviceError> {
        self.call_for(Party::default(), token, key, need, budget, verb)
            .await
    }

    /// Has the worker of a token do something for `party`. What was surely not done is done once more after
    /// its hindrance was removed: a lost login, a token that had left, a worker being replaced.
    async fn call_for(
        &self,
        party: Party,
        token: &TokenId,
        key: Option<&KeyRef>,
        need: Need,
        budget: Duration,
        verb: impl Fn(u16) -> Verb,
    ) -> Result<Answer, DeviceError> {
        let mut module = self.module_of(token)?;
        let mut deadline = Instant::now() + module.config.call_timeout;
        let (mut logged_in_again, mut looked_again, mut taken_up) = (false, false, false);
        let mut asked = need != Need::Login;
        let mut wants_login = false;
        loop {
            if self.is_replaced(&module) {
                module = self.module_of(token)?;
            }
            let (link, number, login) = match module.ready(token, need, deadline).await {
                Err(DeviceError::Stopped) if self.is_replaced(&module) => continue,
                Err(DeviceError::Released { .. }) if !taken_up => {
                    taken_up = true;
                    self.take_up(token).await?;
                    continue;
                }
                Err(DeviceError::TokenAbsent { .. }) if !looked_again => {
                    looked_again = true;
                    self.look_again(&module, uri_of(token)).await?;
                    continue;
                }
                Err(DeviceError::PinNeeded { .. })
                    if !asked && self.0.asking.is_for(&module, token) =>
                {
                    asked = true;
                    self.ask_if_configured(token).await?;
                    // A person's time is not the token's.
                    deadline = Instant::now() + module.config.call_timeout;
                    continue;
                }
                Err(_) if !logged_in_again && module.login_failed(token) => {
                    logged_in_again = true;
                    self.log_in_again(&module, token, Instant::now()).await?;
                    continue;
                }
                ready => ready?,
            };
            let verb = verb(number);
            let function = verb.function();
            if party != Party::SELF_TEST {
                link.note_use(number);
            }
            wants_login |= login == LoginPolicy::PerOperation && need != Need::Presence;
            let result = if wants_login {
                let per_use = self.per_use(&module, token, link.clone(), login);
                per_use.run(party, verb, budget).await?
            } else {
                link.call_for(party, verb, budget).await
            };
            let error = match result {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match &error {
                CallError::NotSent => continue,
                CallError::Failed(Failure::PinWanted) if !wants_login => {
                    wants_login = true;
                    continue;
                }
                CallError::Failed(
                    Failure::LoggedOut
                    | Failure::Pkcs11 {
                        class: Class::Login,
                        ..
                    },
                ) if !logged_in_again => {
                    logged_in_again = true;
                    self.log_in_again(&module, token, Instant::now()).await?;
                    continue;
                }
                CallError::Failed(
                    Failure::KeyMissing
                    | Failure::TokenGone
                    | Failure::Pkcs11 {
                        class: Class::Gone, ..
                    },
                ) if !looked_again => {
                    looked_again = true;
                    self.look_again(&module, uri_of(token)).await?;
                    continue;
                }
                // What should have healed it did not.
                CallError::Failed(Failure::Pkcs11 {
                    class:
                        Class::Respawn | Class::Session | Class::Handle | Class::Login | Class::Gone,
                    function,
                    code,
                }) => {
                    let why = format!("{function} failed with {code}");
                    module.command(Command::Replace { link, why }).await?;
                }
                CallError::Failed(Failure::KeyChanged) => {
                    if let Some(key) = key {
                        self.forget(key);
                    }
                }
                _ => {}
            }
            let name = token.to_string();
            let subject = key.map_or_else(|| name.clone(), ToString::to_string);
            return Err(call_error(
                &module.config.name,
                error,
                &name,
                &subject,
                function,
                budget,
            ));
        }
    }

    fn per_use(
        &self,
        module: &Module,
        token: &TokenId,
        link: Arc<Link>,
        login: LoginPolicy,
    ) -> PerUse {
        let view = module.view.borrow().clone();
        let protected_path = view
            .tokens
            .iter()
            .find(|known| known.id == *token)
            .and_then(|known| known.found.as_ref())
            .is_some_and(|info| info.flags.protected_path);
        PerUse {
            token: token.clone(),
            link,
            guard: self.0.start.guard.clone(),
            pins: module.pins.clone(),
            supervisor: module.commands.clone(),
            gate: module.gate(token),
            login,
            protected_path,
        }
    }

    async fn list_call(
        &self,
        token: &TokenId,
        need: Need,
        verb: impl Fn(u16) -> Verb,
    ) -> Result<Answer, DeviceError> {
        let budget = self.module_of(token)?.config.call_timeout;
        self.call(token, None, need, budget, verb).await
    }

    fn remember(
        &self,
        key: &KeyRef,
        parts: &frames::PublicParts,
    ) -> Result<PublicKey, DeviceError> {
        let public_key = public_key::parse(parts).map_err(|source| DeviceError::KeyUnusable {
            key: key.to_string(),
            source,
        })?;
        let mut cache = self
            .0
            .public_keys
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= PUBLIC_KEYS_MAX {
            cache.clear();
        }
        cache.insert(key.clone(), public_key.clone());
        Ok(public_key)
    }

    fn forget(&self, key: &KeyRef) {
        self.0
            .public_keys
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }
}

impl Changes {
    /// Returns the tokens after the next change; several quick ones count as one. `None` once the
    /// devices are shut down.
    pub async fn next(&mut self) -> Option<Vec<TokenStatus>> {
        let stop = &mut self.stop;
        let stopped = async {
            // An error means that the devices are gone.
            let _gone = stop.wait_for(|stop| *stop).await.is_err();
        };
        let is_changed = tokio::select! {
            // The last changes are those of the shutdown.
            biased;
            () = stopped => false,
            changed = self.seen.changed() => changed.is_ok(),
        };
        match is_changed {
            true => Some(self.devices.tokens().await),
            false => None,
        }
    }
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(
                self.0
                    .modules
                    .load()
                    .iter()
                    .map(|module| &module.config.name),
            )
            .finish()
    }
}

impl Start {
    /// Starts a module's supervisor. In place of another, it waits for that one's end.
    fn module(
        &self,
        config: ModuleConfig,
        instead_of: Option<Arc<Module>>,
        stuck: &Arc<AtomicUsize>,
    ) -> Arc<Module> {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let tokens = config
            .token
            .iter()
            .map(|token| TokenView::absent(&config.name, &token.uri))
            .collect();
        let view = Arc::new(watch::Sender::new(Arc::new(View {
            phase: Phase::Starting,
            library: None,
            sandbox: None,
            tokens,
        })));
        let stop = watch::Sender::new(false);
        let pins = Pins::default();
        let supervisor = Supervisor {
            config: config.clone(),
            worker: self.worker.clone(),
            guard: self.guard.clone(),
            view: view.clone(),
            commands: inbox,
            stop: stop.subscribe(),
            changed: self.changed.clone(),
            pins: pins.clone(),
            logged_in: HashMap::new(),
            login_failed: HashMap::new(),
            looked_again: None,
            search: supervisor::RENEW_EVERY,
            renewed: None,
            slot_events: config.slot_events,
            released: HashSet::new(),
            postponed: None,
            looking: Vec::new(),
            stuck: stuck.clone(),
        };
        let running = tokio::spawn(async move {
            if let Some(old) = instead_of {
                old.stop.send_replace(true);
                old.ended().await;
                if old.config.path == supervisor.config.path {
                    supervisor.inherit(&old.pins);
                }
            }
            supervisor.run().await;
        });
        Arc::new(Module {
            config,
            view,
            commands,
            stop,
            supervisor: Mutex::new(Some(running)),
            pins,
            gates: std::sync::Mutex::default(),
            stuck: stuck.clone(),
            lists: Semaphore::new(LISTS_MAX),
            writes: Semaphore::new(1),
        })
    }
}

impl Module {
    /// Waits for the supervisor's end.
    async fn ended(&self) {
        if let Some(running) = self.supervisor.lock().await.take()
            && let Err(error) = running.await
        {
            tracing::error!(module = self.config.name, %error, "a supervisor failed");
        }
    }

    /// The view, once the worker is not being started any more, or at `patience`.
    async fn settled(&self, patience: Instant) -> Arc<View> {
        let mut view = self.view.subscribe();
        let settled = view.wait_for(|view| !matches!(view.phase, Phase::Starting));
        match tokio::time::timeout_at(patience, settled).await {
            Ok(Ok(view)) => view.clone(),
            Ok(Err(_)) | Err(_) => self.view.borrow().clone(),
        }
    }

    /// Whether it has a token.
    fn shows(&self, token: &TokenId) -> bool {
        let view = self.view.borrow().clone();
        let mut found = view.tokens.iter().filter(|known| known.found.is_some());
        found.any(|known| known.id == *token)
    }

    /// Whether it has it once it comes.
    fn may_show(&self, token: &TokenId) -> bool {
        let mut configured = self.config.token.iter();
        configured.any(|config| config.uri.matches(token))
    }

    /// Why the module takes no calls now, if so.
    fn outage(&self) -> Option<DeviceError> {
        let view = self.view.borrow().clone();
        match &view.phase {
            Phase::Up(_) | Phase::AtRest => None,
            Phase::Starting => Some(self.down("its worker is being started", Instant::now())),
            Phase::Down { reason, until } => Some(match reason {
                missing @ DeviceError::ModuleMissing { .. } => missing.clone(),
                reason => self.down(&reason.to_string(), *until),
            }),
            Phase::Stopped => Some(DeviceError::Stopped),
        }
    }

    /// The link to the worker, if it is up.
    fn link(&self) -> Option<Arc<Link>> {
        match &self.view.borrow().phase {
            Phase::Up(link) => Some(link.clone()),
            Phase::Starting | Phase::AtRest | Phase::Down { .. } | Phase::Stopped => None,
        }
    }

    /// Whether the last login failed in a way that is worth another.
    fn login_failed(&self, token: &TokenId) -> bool {
        self.view
            .borrow()
            .tokens
            .iter()
            .any(|known| known.id == *token && matches!(known.reason, Some(Reason::LoginFailed(_))))
    }

    /// Where operations of a token wait that need a login of their own.
    fn gate(&self, token: &TokenId) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        match gates.get(token) {
            Some(gate) => gate.clone(),
            None => gates.entry(token.clone()).or_default().clone(),
        }
    }

    /// What the configuration says that a token misreports of new keys.
    fn waivers(&self, token: &TokenId) -> Vec<Waiver> {
        let view = self.view.borrow().clone();
        let known = view.tokens.iter().find(|known| known.id == *token);
        known
            .and_then(|known| {
                let mut configured = self.config.token.iter();
                configured.find(|config| config.uri == known.uri)
            })
            .map(|config| config.waive.clone())
            .unwrap_or_default()
    }

    /// What a token is to be given for a signature, as far as it is known now.
    fn sign_input(&self, token: &TokenId, scheme: Scheme) -> Input {
        let hashes_itself = scheme == Scheme::EdDsa
            || self
                .view
                .borrow()
                .tokens
                .iter()
                .find(|known| known.id == *token)
                .and_then(|known| known.found.as_ref())
                .is_some_and(|info| info.hashes.contains(&scheme));
        if hashes_itself {
            Input::Message
        } else {
            Input::Digest
        }
    }

    fn down(&self, reason: &str, until: Instant) -> DeviceError {
        DeviceError::ModuleDown {
            module: self.config.name.clone(),
            reason: reason.to_owned(),
            retry_after: until.saturating_duration_since(Instant::now()),
        }
    }

    /// The link to the worker, the number of the token and its login policy, waiting for a worker
    /// that is being started, up to `deadline`.
    async fn ready(
        &self,
        token: &TokenId,
        need: Need,
        deadline: Instant,
    ) -> Result<(Arc<Link>, u16, LoginPolicy), DeviceError> {
        let usable = |view: &Arc<View>| match &view.phase {
            Phase::Starting => false,
            Phase::Up(link) => link.is_open(),
            Phase::AtRest | Phase::Down { .. } | Phase::Stopped => true,
        };
        let now = self.view.borrow().clone();
        let view = if usable(&now) {
            now
        } else {
            let mut changes = self.view.subscribe();
            match tokio::time::timeout_at(deadline, changes.wait_for(usable)).await {
                Ok(Ok(view)) => view.clone(),
                Ok(Err(_)) => return Err(DeviceError::Stopped),
                Err(_) => return Err(self.down("its worker is being started", Instant::now())),
            }
        };
        let name = || token.to_string();
        let absent = || DeviceError::TokenAbsent { token: name() };
        if let Phase::AtRest = view.phase {
            let found = |known: &&TokenView| known.id == *token && known.found.is_some();
            return Err(match view.tokens.iter().find(found) {
                Some(_) => DeviceError::Released { token: name() },
                None => absent(),
            });
        }
        let Phase::Up(link) = &view.phase else {
            return Err(self.outage().unwrap_or(DeviceError::Stopped));
        };
        let known = view
            .tokens
            .iter()
            .find(|known| known.id == *token)
            .ok_or_else(absent)?;
        let number = known.found.as_ref().ok_or_else(absent)?.number;
        match (known.state, need) {
            (TokenState::Released, _) => Err(DeviceError::Released { token: name() }),
            (TokenState::Ready, _) | (_, Need::Presence) => Ok((link.clone(), number, known.login)),
            (TokenState::LockedOut, _) => Err(DeviceError::PinLocked { token: name() }),
            (TokenState::FinalTry, _) => Err(DeviceError::PinFinalTry { token: name() }),
            _ => Err(match &known.reason {
                Some(Reason::PinBlocked(reason)) => DeviceError::PinBlocked {
                    token: name(),
                    reason: reason.clone(),
                },
                Some(Reason::LoginFailed(error)) => error.clone(),
                Some(Reason::Other(reason)) if known.state == TokenState::Degraded => {
                    DeviceError::Unusable {
                        token: name(),
                        reason: reason.clone(),
                    }
                }
                Some(Reason::Other(_)) | None => DeviceError::PinNeeded { token: name() },
            }),
        }
    }

    async fn command(&self, command: Command) -> Result<(), DeviceError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| DeviceError::Stopped)
    }
}

async fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>, DeviceError> {
    // Nobody closes them.
    turns.acquire().await.map_err(|_| DeviceError::Stopped)
}

/// The URI that selects a token that was found before.
fn uri_of(token: &TokenId) -> TokenUri {
    TokenUri {
        token: Some(token.label.clone()),
        serial: Some(token.serial.clone()),
        ..TokenUri::default()
    }
}

/// What the token is given for `message`: its digest, or itself.
fn signed_data(scheme: Scheme, input: Input, message: &[u8]) -> Result<Vec<u8>, DeviceError> {
    let limit = match input {
        Input::Digest => MESSAGE_MAX,
        Input::Message => frames::WHOLE_MESSAGE_MAX,
    };
    if message.len() > limit {
        return Err(DeviceError::TooLarge {
            what: "message",
            limit,
        });
    }
    let algorithm = match (input, scheme) {
        (Input::Message, _) | (_, Scheme::EdDsa) => return Ok(message.to_vec()),
        (Input::Digest, Scheme::Rs256 | Scheme::Ps256 | Scheme::Es256) => &digest::SHA256,
        (Input::Digest, Scheme::Es384) => &digest::SHA384,
    };
    Ok(digest::digest(algorithm, message).as_ref().to_vec())
}

/// Takes a certificate apart for `C_CreateObject` (PKCS#11 v3.0 section 4.6.3).
fn certificate_parts(id: &KeyId, der: &[u8]) -> Result<CertificateParts, DeviceError> {
    if der.len() > CERTIFICATE_MAX {
        return Err(DeviceError::TooLarge {
            what: "certificate",
            limit: CERTIFICATE_MAX,
        });
    }
    let malformed = |_| DeviceError::MalformedCertificate;
    let certificate = x509_cert::Certificate::from_der(der).map_err(malformed)?;
    let body = certificate.tbs_certificate();
    Ok(CertificateParts {
        id: id.as_bytes().to_vec(),
        label: "opcert".into(),
        der: der.to_vec(),
        subject: body.subject().to_der().map_err(malformed)?,
        issuer: body.issuer().to_der().map_err(malformed)?,
        serial: body.serial_number().to_der().map_err(malformed)?,
    })
}
