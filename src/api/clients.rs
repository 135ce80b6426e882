//! The registered clients: programs that may use the native door and browsers that may use the
//! browser door, each by its certificate.
//!
//! `clients.json` in the state directory holds them; it is written whole before a change counts.
//! Readers take a snapshot without waiting, and every request looks its client up anew, so a
//! removal bites on the next request of an open connection. A client is found by the SHA-256 of
//! its certificate: two certificates of one name are two clients, and the old one is gone with
//! its entry.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::encoding::{from_hex, hex};
use crate::base::files::{self, FileError, Readers};
use crate::base::ids::ClientName;
use crate::base::x509::Certificate;
use crate::policy::ClientPolicy;

/// At most so many clients; the file is written whole for each change.
const MOST_CLIENTS: usize = 10_000;
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// One registered client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredClient {
    /// Its name, unique.
    pub name: ClientName,
    /// SHA-256 of its certificate.
    pub fingerprint: [u8; 32],
    /// When it was registered.
    pub added: Timestamp,
    /// When its certificate expires.
    pub expires: Timestamp,
    /// What it speaks for.
    pub kind: ClientKind,
    /// What it may do.
    pub policy: ClientPolicy,
}

/// What a client speaks for. Its certificate is good for nothing else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKind {
    /// Itself: a program at the native door.
    #[default]
    Program,
    /// The pages in a person's browser: at the browser door, and at the native door for the
    /// browser extension. Each request names the page.
    Browser,
}

/// Why the registry cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ClientsError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file's content is not what this program writes.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// The name is taken.
    #[error("a client named {name} is registered already")]
    Exists {
        /// The name.
        name: ClientName,
    },
    /// No client has the name.
    #[error("no client named {name} is registered")]
    Unknown {
        /// The name.
        name: ClientName,
    },
    /// The registry is full.
    #[error("there are {MOST_CLIENTS} clients already")]
    Full,
}

/// The registry; cloning shares it.
#[derive(Debug, Clone)]
pub struct Clients(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    current: ArcSwap<Snapshot>,
    /// Held while the file is written, so that changes happen one after the other.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Snapshot {
    by_name: std::collections::BTreeMap<ClientName, Arc<RegisteredClient>>,
    by_fingerprint: HashMap<[u8; 32], Arc<RegisteredClient>>,
}

impl Snapshot {
    fn new(clients: impl IntoIterator<Item = Arc<RegisteredClient>>) -> Self {
        let mut snapshot = Self::default();
        for client in clients {
            snapshot
                .by_fingerprint
                .insert(client.fingerprint, client.clone());
            snapshot.by_name.insert(client.name.clone(), client);
        }
        snapshot
    }
}

fn read(path: &Path) -> Result<Snapshot, ClientsError> {
    if !path.exists() {
        return Ok(Snapshot::default());
    }
    let text = files::read_checked(path, Readers::Owner, FILE_LIMIT)?;
    let file: ClientsFile =
        serde_json::from_slice(&text).map_err(|source| ClientsError::Damaged {
            path: path.to_owned(),
            source,
        })?;
    Ok(Snapshot::new(
        file.clients.into_iter().map(|entry| Arc::new(entry.0)),
    ))
}

impl Clients {
    /// Reads `path`, which need not exist yet.
    pub fn open(path: &Path) -> Result<Self, ClientsError> {
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            current: ArcSwap::from_pointee(read(path)?),
            writing: Mutex::new(()),
        })))
    }

    /// Reads the file anew, which somebody may have put in the place of the old one; returns how
    /// many clients there are. One that cannot be used changes nothing. Waits for the disk.
    pub fn reload(&self) -> Result<usize, ClientsError> {
        let _turn = self
            .0
            .writing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let snapshot = read(&self.0.path)?;
        let count = snapshot.by_name.len();
        self.0.current.store(Arc::new(snapshot));
        Ok(count)
    }

    /// The client that holds the certificate of this SHA-256.
    pub fn by_fingerprint(&self, fingerprint: &[u8; 32]) -> Option<Arc<RegisteredClient>> {
        self.0
            .current
            .load()
            .by_fingerprint
            .get(fingerprint)
            .cloned()
    }

    /// The client of this name.
    pub fn by_name(&self, name: &ClientName) -> Option<Arc<RegisteredClient>> {
        self.0.current.load().by_name.get(name).cloned()
    }

    /// All, by name.
    pub fn list(&self) -> Vec<Arc<RegisteredClient>> {
        self.0.current.load().by_name.values().cloned().collect()
    }

    /// Registers the holder of `certificate`; durable when it returns. It waits for the disk:
    /// call it where blocking is allowed.
    pub fn add(
        &self,
        name: ClientName,
        certificate: &Certificate,
        kind: ClientKind,
        policy: ClientPolicy,
        now: Timestamp,
    ) -> Result<Arc<RegisteredClient>, ClientsError> {
        let client = Arc::new(RegisteredClient {
            name: name.clone(),
            fingerprint: certificate.fingerprint(),
            added: now,
            expires: certificate.not_after(),
            kind,
            policy,
        });
        let added = client.clone();
        self.change(move |clients| {
            if clients.iter().any(|other| other.name == name) {
                return Err(ClientsError::Exists { name });
            }
            if clients.len() >= MOST_CLIENTS {
                return Err(ClientsError::Full);
            }
            clients.push(added);
            Ok(())
        })?;
        Ok(client)
    }

    /// Removes a client; durable, and in force for the next request, when it returns. It waits
    /// for the disk as [`Clients::add`] does.
    pub fn remove(&self, name: &ClientName) -> Result<Arc<RegisteredClient>, ClientsError> {
        self.change(
            |clients| match clients.iter().position(|client| client.name == *name) {
                Some(index) => Ok(clients.remove(index)),
                None => Err(ClientsError::Unknown { name: name.clone() }),
            },
        )
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Vec<Arc<RegisteredClient>>) -> Result<T, ClientsError>,
    ) -> Result<T, ClientsError> {
        // A panic cannot leave the guarded nothing half-changed.
        let _guard = self
            .0
            .writing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut clients = self.list();
        let outcome = change(&mut clients)?;
        let file = ClientsFile {
            version: Version,
            clients: clients
                .iter()
                .map(|client| Entry(RegisteredClient::clone(client)))
                .collect(),
        };
        let damaged = |source| ClientsError::Damaged {
            path: self.0.path.clone(),
            source,
        };
        let mut text = serde_json::to_vec_pretty(&file).map_err(damaged)?;
        text.push(b'\n');
        files::write_atomic(&self.0.path, &text, 0o600)?;
        self.0.current.store(Arc::new(Snapshot::new(clients)));
        Ok(outcome)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientsFile {
    version: Version,
    clients: Vec<Entry>,
}

/// The version of the file's format; only 1 is read.
struct Version;

impl Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(1)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            1 => Ok(Self),
            other => Err(serde::de::Error::custom(format!(
                "version {other} is not known"
            ))),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(try_from = "EntryText", into = "EntryText")]
struct Entry(RegisteredClient);

impl Clone for Entry {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryText {
    name: ClientName,
    sha256: String,
    added: String,
    expires: String,
    #[serde(default)]
    kind: ClientKind,
    policy: ClientPolicy,
}

impl From<Entry> for EntryText {
    fn from(Entry(client): Entry) -> Self {
        Self {
            name: client.name,
            sha256: hex(&client.fingerprint),
            added: client.added.to_string(),
            expires: client.expires.to_string(),
            kind: client.kind,
            policy: client.policy,
        }
    }
}

impl TryFrom<EntryText> for Entry {
    type Error = String;

    fn try_from(text: EntryText) -> Result<Self, String> {
        Ok(Self(RegisteredClient {
            name: text.name,
            fingerprint: from_hex(&text.sha256)
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or("sha256 is not 64 hexadecimal digits")?,
            added: text.added.parse().map_err(|_| "added is no time")?,
            expires: text.expires.parse().map_err(|_| "expires is no time")?,
            kind: text.kind,
            policy: text.policy,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::local_ca::LocalCa;
    use crate::api::software_key::SoftwareKey;
    use crate::base::x509::CertificateRequest;

    #[test]
    fn a_client_outlives_a_restart_and_is_gone_when_removed() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
        let ca = LocalCa::open(&directory.path().join("ca"), now).unwrap();
        let path = directory.path().join("clients.json");
        let clients = Clients::open(&path).unwrap();
        let name: ClientName = "erp".parse().unwrap();
        let key = SoftwareKey::generate().unwrap();
        let request = CertificateRequest::from_der(&key.request("erp").unwrap()).unwrap();
        let certificate = ca.issue_client(&name, &request, now).unwrap();
        let policy = ClientPolicy::default();
        clients
            .add(
                name.clone(),
                &certificate,
                ClientKind::Browser,
                policy.clone(),
                now,
            )
            .unwrap();
        assert!(matches!(
            clients.add(name.clone(), &certificate, ClientKind::Program, policy, now),
            Err(ClientsError::Exists { .. })
        ));

        let again = Clients::open(&path).unwrap();
        let found = again.by_fingerprint(&certificate.fingerprint()).unwrap();
        assert_eq!(*found, *clients.by_name(&name).unwrap());

        again.remove(&name).unwrap();
        assert!(again.by_fingerprint(&certificate.fingerprint()).is_none());
        assert!(matches!(
            again.remove(&name),
            Err(ClientsError::Unknown { .. })
        ));
        assert!(Clients::open(&path).unwrap().list().is_empty());
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clients.json");
        for text in ["{", r#"{"version":2,"clients":[]}"#, r#"{"clients":[]}"#] {
            files::write_atomic(&path, text.as_bytes(), 0o600).unwrap();
            assert!(matches!(
                Clients::open(&path),
                Err(ClientsError::Damaged { .. })
            ));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
