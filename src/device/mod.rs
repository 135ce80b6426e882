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
//! What callers do is in `sign` (with a permit), `keys`, `tokens`, `unlock` and `administer`; all of
//! it that needs the token goes through `call`, which says what is tried where a call fails. What a
//! module needs beside that is its supervisor's (`supervisor`); what may be done with PINs is in
//! `pins`. Who may sign what never lives here: a permit comes from `policy`, and is used up by one
//! signature.
//!
//! # What is kept
//!
//! Tokens are known by module, label and serial, keys by `CKA_ID`; slot numbers and object handles
//! never leave a worker. Public keys are cached here for the life of the process. A PIN that
//! worked is kept in memory for the next worker. Only `pin-blocks.json` outlives the process: see
//! `pins`.
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
mod call;
mod config;
mod error;
mod fair;
mod frames;
mod hygiene;
mod keys;
mod link;
mod modules;
mod pins;
mod sandbox;
mod sign;
mod supervisor;
mod tokens;
mod unlock;
pub mod worker;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};

pub use self::administer::{MadeToken, NewToken, PinOf};
pub use self::config::{
    Allowance, AttestationConfig, Config, InvalidPinSource, LoginPolicy, ModuleConfig, PinSource,
    TokenConfig, Waiver,
};
pub use self::error::DeviceError;
use self::fair::Parties;
#[cfg(fuzzing)]
pub use self::frames::fuzz_packet;
pub use self::frames::{HeldKeys, HeldObject, KeyUse, LastTry, TokenFlags, UnlockOutcome};
use self::keys::PublicKeys;
pub use self::keys::{
    GeneratedKey, InvalidPrivateKey, KeyInfo, Proof, RsaPrivateKey, TokenCertificate,
};
pub use self::modules::ModuleChanges;
use self::pins::asking::Asking;
pub use self::sandbox::{Sandbox, SandboxLevel, SandboxStatus};
use self::supervisor::handle::{Module, Start};
pub use self::tokens::{ByHand, Changes, ModuleStatus, TokenState, TokenStatus};

/// All configured tokens. Cloning shares them.
#[derive(Clone)]
pub struct Devices(Arc<Inner>);

struct Inner {
    modules: ArcSwap<Vec<Arc<Module>>>,
    start: Start,
    parties: Parties,
    public_keys: PublicKeys,
    /// Who is asked for PINs.
    asking: Asking,
    stop: watch::Sender<bool>,
    /// Counts what [`Changes`] reports.
    changed: watch::Sender<u64>,
    /// Held while the modules are exchanged, and once they are shut down.
    exchanging: Mutex<()>,
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
