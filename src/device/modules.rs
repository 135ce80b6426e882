//! The modules that are in use: started, exchanged for others, shut down; and which has a token.
//!
//! What a module does, and how it stands, never lives here: see `supervisor`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};

use super::config::{Config, ModuleConfig};
use super::error::DeviceError;
use super::fair::Parties;
use super::keys::PublicKeys;
use super::pins::asking::Asking;
use super::pins::guard::PinGuard;
use super::supervisor::handle::{Module, Start};
use super::supervisor::process::find_worker;
use super::{Devices, Inner};
use crate::base::clock::Clock;
use crate::base::pkcs11::TokenId;

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
            worker: find_worker(config.worker.as_deref()),
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
            public_keys: PublicKeys::default(),
            asking: Asking::default(),
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
        self.0.public_keys.forget_modules(&ended);
        self.0
            .changed
            .send_modify(|count| *count = count.wrapping_add(1));
        Ok(changes)
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
    pub(super) fn module_of(&self, token: &TokenId) -> Result<Arc<Module>, DeviceError> {
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
    pub(super) fn parts(&self, name: &str) -> Result<Vec<Arc<Module>>, DeviceError> {
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
    pub(super) fn is_replaced(&self, module: &Arc<Module>) -> bool {
        let modules = self.0.modules.load();
        !modules.iter().any(|known| Arc::ptr_eq(known, module))
    }
}
