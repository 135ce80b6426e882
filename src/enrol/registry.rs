//! What this computer is enrolled with, kept: read at the start, changed, made durable.
//!
//! PERSISTENT STATE. `registry.json` in the state directory holds the computer's id, every pinned
//! service (origin, challenge keys, authorities) and every installed certificate;
//! `crls/HASH.der` holds the newest revocation list of a service, where HASH is the SHA-256 of
//! its origin. A service that changes its authority's key has several authorities for a while;
//! each of their lists names what any of them revoked, so the newest is enough. Each file is
//! replaced whole, so a crash leaves the old or the new state.
//!
//! CHANGES. Whoever reads has one immutable [`Snapshot`]; a writer builds a new one, makes it durable,
//! then publishes it, one after the other.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::installed::{Installed, Service, Snapshot};
use crate::base::encoding::{base64, from_base64, hex, sha256};
use crate::base::files::{self, FileError, Readers};
use crate::base::ids::ComputerId;
use crate::base::jose::JwkSet;
use crate::base::pkcs11::KeyRef;
use crate::base::x509::{Certificate, Crl, X509Error};
use crate::statement::{KeySet, Origin, ServiceError};

/// Largest state file we read, in bytes: thousands of certificates.
const MAX_STATE: u64 = 64 * 1024 * 1024;

/// Why the registry cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A state file cannot be read or written.
    #[error("the registry of installed certificates cannot be kept")]
    File(#[from] FileError),
    /// A state file does not hold what we wrote.
    #[error("{} is damaged: {problem}; restore it from a backup, or move it away and install again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A service's key set is unsound or differs from the pinned one.
    #[error("the key set of {origin} is refused: {problem}")]
    Keys {
        /// The service.
        origin: String,
        /// What is wrong.
        problem: String,
    },
    /// A next key set is not vouched for by a pinned key.
    #[error("the key set is refused: {0}")]
    KeySet(ServiceError),
    /// No service of that origin is pinned, or none signed the list.
    #[error("no service this computer is enrolled with signed this revocation list")]
    CrlUnknown,
    /// The list is malformed or not signed by its authority.
    #[error("the revocation list is refused: {0}")]
    Crl(X509Error),
    /// The list is older than the one that is known.
    #[error("revocation list number {number} is older than number {known}, which is known here")]
    CrlOld {
        /// Its number.
        number: u64,
        /// The number we have.
        known: u64,
    },
}

/// The registry; a cheap handle.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    computer: ComputerId,
    current: ArcSwap<Snapshot>,
    /// Held while a new snapshot is built and made durable.
    writing: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    computer: ComputerId,
    services: Vec<ServiceState>,
    certificates: Vec<CertificateState>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceState {
    origin: Origin,
    keys: JwkSet,
    #[serde(default)]
    keys_dated: i64,
    authorities: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateState {
    service: Origin,
    key: KeyRef,
    chain: Vec<String>,
    installed_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    superseded_at: Option<Timestamp>,
}

impl Registry {
    /// Opens the registry in `directory`; the first time, the computer gets its id.
    pub fn open(directory: &Path) -> Result<Self, RegistryError> {
        let path = directory.join("registry.json");
        let (computer, snapshot) = if path.exists() {
            let bytes = files::read_checked(&path, Readers::Owner, MAX_STATE)?;
            let state: State =
                serde_json::from_slice(&bytes).map_err(|error| RegistryError::Damaged {
                    path: path.clone(),
                    problem: error.to_string(),
                })?;
            load(directory, &path, state)?
        } else {
            let computer = ComputerId::random();
            save(directory, &computer, &Snapshot::default())?;
            (computer, Snapshot::default())
        };
        Ok(Self(Arc::new(Inner {
            directory: directory.to_owned(),
            computer,
            current: ArcSwap::from_pointee(snapshot),
            writing: Mutex::new(()),
        })))
    }

    /// The id of this computer, made once.
    pub fn computer(&self) -> &ComputerId {
        &self.0.computer
    }

    /// The current state; later changes do not show in it.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.current.load_full()
    }

    /// Pins `service` if its origin is new, and installs a certificate it issued. An older
    /// certificate for the same operator at the same service is superseded. Does file work.
    pub fn install(
        &self,
        service: Service,
        installed: Installed,
    ) -> Result<Arc<Installed>, RegistryError> {
        let installed = Arc::new(installed);
        self.change(|snapshot| {
            match snapshot.services.get(&service.origin) {
                Some(pinned) if !pinned.pins(&service) => {
                    return Err(RegistryError::Keys {
                        origin: service.origin.to_string(),
                        problem: "it differs from the set that is pinned here".into(),
                    });
                }
                Some(_) => {}
                None => {
                    snapshot
                        .services
                        .insert(service.origin.clone(), Arc::new(service));
                }
            }
            let older = snapshot.certificate(
                &installed.service,
                &installed.identity.account,
                &installed.identity.operator,
            );
            if let Some(older) = older.cloned() {
                let superseded = Arc::new(older.superseded(installed.installed_at));
                for slot in &mut snapshot.all {
                    if Arc::ptr_eq(slot, &older) {
                        *slot = superseded.clone();
                    }
                }
            }
            snapshot.add(installed.clone());
            Ok(())
        })?;
        Ok(installed)
    }

    /// Takes a revocation list over, if one of the pinned authorities signed it and it is not
    /// older than the known one. Does file work.
    pub fn apply_crl(&self, der: &[u8]) -> Result<(Origin, u64, usize), RegistryError> {
        let _writing = self.lock();
        let current = self.0.current.load_full();
        let mut refusal = RegistryError::CrlUnknown;
        for service in current.services.values() {
            for authority in &service.authorities {
                let crl = match Crl::from_der(der, authority) {
                    Ok(crl) => crl,
                    Err(X509Error::Issuer { .. }) => continue,
                    Err(error) => {
                        refusal = RegistryError::Crl(error);
                        continue;
                    }
                };
                let known = service.crl.as_ref().map_or(0, Crl::number);
                if crl.number() < known {
                    return Err(RegistryError::CrlOld {
                        number: crl.number(),
                        known,
                    });
                }
                let directory = self.0.directory.join("crls");
                files::private_directory(&directory)?;
                files::write_atomic(&crl_path(&self.0.directory, &service.origin), der, 0o600)?;
                let answer = (service.origin.clone(), crl.number(), crl.len());
                let mut next = current.copy();
                next.services
                    .insert(service.origin.clone(), Arc::new(service.with_crl(crl)));
                self.0.current.store(Arc::new(next));
                return Ok(answer);
            }
        }
        Err(refusal)
    }

    /// Takes over a service's next key set with its authorities, which a pinned key must have
    /// signed. Does file work.
    /// Gives the service, and whether anything is pinned now that was not, or no longer.
    pub fn replace_keys(
        &self,
        compact: &str,
        now: Timestamp,
    ) -> Result<(Origin, bool), RegistryError> {
        self.change(|snapshot| {
            let set = KeySet::open(compact, now, |issuer, kid| {
                snapshot.service_key(issuer, kid)
            })
            .map_err(RegistryError::KeySet)?;
            let pinned = snapshot
                .services
                .get(&set.iss)
                .ok_or(RegistryError::KeySet(ServiceError::IssuerUnknown {
                    issuer: set.iss.to_string(),
                }))?;
            if set.iat < pinned.keys_dated {
                return Err(RegistryError::Keys {
                    origin: set.iss.to_string(),
                    problem: "it is older than the pinned set".into(),
                });
            }
            let authorities = set.authorities().map_err(|error| RegistryError::Keys {
                origin: set.iss.to_string(),
                problem: error.to_string(),
            })?;
            let mut next = Service::new(set.iss.clone(), set.keys, authorities)?;
            next.keys_dated = set.iat;
            // The list in force keeps its authority until a list of another takes its place.
            if let Some(list) = &pinned.crl {
                let signed =
                    |authority: &&Certificate| Crl::from_der(list.der(), authority).is_ok();
                if !next.authorities.iter().any(|authority| signed(&authority)) {
                    let signers = pinned.authorities.iter().filter(signed).cloned();
                    next.authorities.extend(signers);
                }
                next.crl = Some(list.clone());
            }
            let changed = !next.pins(pinned) || !pinned.pins(&next);
            snapshot.services.insert(set.iss.clone(), Arc::new(next));
            Ok((set.iss, changed))
        })
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Snapshot) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let _writing = self.lock();
        let mut next = self.0.current.load().copy();
        let answer = change(&mut next)?;
        save(&self.0.directory, &self.0.computer, &next)?;
        self.0.current.store(Arc::new(next));
        Ok(answer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        // The guarded value is `()`: a writer that panicked has published nothing.
        self.0
            .writing
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn crl_path(directory: &Path, origin: &Origin) -> PathBuf {
    let name = hex(&sha256(origin.as_str().as_bytes()));
    directory.join("crls").join(format!("{name}.der"))
}

fn save(directory: &Path, computer: &ComputerId, snapshot: &Snapshot) -> Result<(), RegistryError> {
    let encode = |chain: &[Certificate]| chain.iter().map(|one| base64(one.der())).collect();
    let path = directory.join("registry.json");
    let mut services: Vec<ServiceState> = snapshot
        .services
        .values()
        .map(|service| ServiceState {
            origin: service.origin.clone(),
            keys: service.jwks.clone(),
            keys_dated: service.keys_dated,
            authorities: encode(&service.authorities),
        })
        .collect();
    services.sort_by(|a, b| a.origin.cmp(&b.origin));
    let state = State {
        computer: computer.clone(),
        services,
        certificates: snapshot
            .all
            .iter()
            .map(|installed| CertificateState {
                service: installed.service.clone(),
                key: installed.key.clone(),
                chain: encode(&installed.chain),
                installed_at: installed.installed_at,
                superseded_at: installed.superseded_at,
            })
            .collect(),
    };
    let bytes = serde_json::to_vec_pretty(&state).map_err(|error| RegistryError::Damaged {
        path: path.clone(),
        problem: error.to_string(),
    })?;
    Ok(files::write_atomic(&path, &bytes, 0o600)?)
}

fn load(
    directory: &Path,
    path: &Path,
    state: State,
) -> Result<(ComputerId, Snapshot), RegistryError> {
    let damaged = |problem: String| RegistryError::Damaged {
        path: path.to_owned(),
        problem,
    };
    let decode = |chain: &[String]| {
        chain
            .iter()
            .map(|text| {
                let der = from_base64(text.as_bytes())
                    .ok_or_else(|| damaged("a certificate is not base64".into()))?;
                Certificate::from_der(&der).map_err(|error| damaged(error.to_string()))
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let mut snapshot = Snapshot::default();
    for kept in state.services {
        let authorities = decode(&kept.authorities)?;
        let mut service = Service::new(kept.origin, kept.keys, authorities)?;
        service.keys_dated = kept.keys_dated;
        let list = crl_path(directory, &service.origin);
        if list.exists() {
            let der = files::read_checked(&list, Readers::Owner, Crl::MAX as u64)?;
            let crl = service
                .authorities
                .iter()
                .find_map(|authority| Crl::from_der(&der, authority).ok())
                .ok_or_else(|| RegistryError::Damaged {
                    path: list,
                    problem: "it is not a revocation list of its service".into(),
                })?;
            service = service.with_crl(crl);
        }
        snapshot
            .services
            .insert(service.origin.clone(), Arc::new(service));
    }
    for kept in state.certificates {
        let chain = decode(&kept.chain)?;
        let mut installed = Installed::new(kept.service, kept.key, chain, kept.installed_at)
            .map_err(|error| damaged(error.to_string()))?;
        installed.superseded_at = kept.superseded_at;
        snapshot.add(Arc::new(installed));
    }
    Ok((state.computer, snapshot))
}

#[cfg(test)]
mod tests {
    use super::super::Standing;
    use super::*;
    use crate::base::jose::Jwk;
    use crate::base::pkcs11::{KeyId, TokenId};
    use crate::base::x509::tests::{SoftKey, at, authority, operating_certificate};
    use crate::base::x509::{Revocation, crl_draft};

    const ORIGIN: &str = "https://pay.example";

    /// An authority that issues from 1,000,000 to 1,900,000,000 s, and a registry.
    struct Scene {
        _directory: tempfile::TempDir,
        registry: Registry,
        ca_key: SoftKey,
        ca: Certificate,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let registry = Registry::open(directory.path()).unwrap();
            let ca_key = SoftKey::new();
            let ca = authority(&ca_key);
            Self {
                _directory: directory,
                registry,
                ca_key,
                ca,
            }
        }

        fn install(&self) -> Arc<Installed> {
            let key = SoftKey::new();
            let leaf = operating_certificate(&self.ca, &self.ca_key, &key.public);
            let on_token = KeyRef {
                token: TokenId {
                    module: "m".into(),
                    label: "demo".into(),
                    serial: "s".into(),
                },
                id: KeyId::random(),
            };
            let origin: Origin = ORIGIN.parse().unwrap();
            let jwks = JwkSet {
                keys: vec![Jwk::from_public_key(&self.ca_key.public).unwrap()],
            };
            let service = Service::new(origin.clone(), jwks, vec![self.ca.clone()]).unwrap();
            let installed = Installed::new(origin, on_token, vec![leaf], at(1_000_000)).unwrap();
            self.registry.install(service, installed).unwrap()
        }

        /// How the certificate of this fingerprint stands.
        fn standing(&self, installed: &Installed, now: Timestamp) -> Standing {
            let snapshot = self.registry.snapshot();
            let known = snapshot.by_fingerprint(installed.fingerprint()).unwrap();
            snapshot.standing(known, now)
        }
    }

    #[test]
    fn a_certificate_is_active_from_its_first_second_to_its_last() {
        let scene = Scene::new();
        let installed = scene.install();
        for (second, standing) in [
            (0, Standing::NotYetValid),
            (999_999, Standing::NotYetValid),
            (1_000_000, Standing::Active),
            (1_700_000_000, Standing::Active),
            (1_900_000_000, Standing::Active),
            (1_900_000_001, Standing::Expired),
            (4_000_000_000, Standing::Expired),
        ] {
            assert_eq!(scene.standing(&installed, at(second)), standing, "{second}");
        }
    }

    #[test]
    fn a_newer_certificate_supersedes_and_a_list_revokes_whatever_the_time() {
        let scene = Scene::new();
        let (first, second) = (scene.install(), scene.install());
        for now in [at(0), at(1_700_000_000), at(4_000_000_000)] {
            assert_eq!(scene.standing(&first, now), Standing::Superseded);
        }
        let now = at(1_700_000_000);
        assert_eq!(scene.standing(&second, now), Standing::Active);

        let revocations = [&first, &second].map(|installed| Revocation {
            serial: installed.certificate().serial().to_vec(),
            at: at(1_699_000_000),
            reason: None,
        });
        for (number, revoked, expected) in [
            (1, &[][..], [Standing::Superseded, Standing::Active]),
            (2, &revocations[..1], [Standing::Revoked, Standing::Active]),
            (3, &revocations[..], [Standing::Revoked, Standing::Revoked]),
        ] {
            let (this, next) = (at(1_699_000_000), at(1_699_100_000));
            let draft = crl_draft(&scene.ca, number, this, next, revoked).unwrap();
            let signature = scene.ca_key.sign(draft.to_sign());
            let der = draft.assemble(&signature).unwrap();
            scene.registry.apply_crl(&der).unwrap();
            let found = [&first, &second].map(|one| scene.standing(one, now));
            assert_eq!(found, expected, "list {number}");
        }
        // An older list takes nothing back.
        let draft = crl_draft(&scene.ca, 2, now, at(1_900_000_000), &[]).unwrap();
        let signature = scene.ca_key.sign(draft.to_sign());
        let older = draft.assemble(&signature).unwrap();
        assert!(matches!(
            scene.registry.apply_crl(&older),
            Err(RegistryError::CrlOld {
                number: 2,
                known: 3
            })
        ));
        assert_eq!(scene.standing(&second, now), Standing::Revoked);
    }
}
