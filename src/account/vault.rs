//! Secrets at rest: sealed to a key on the token of the service.
//!
//! The key changes with overlap: what is sealed anew goes to the present one, and what was sealed to
//! one before it opens as long as that is published. `opcert-accountd key activate` seals all of it
//! again.
//!
//! The key is RSA and only decrypts. A secret is sealed to its public half as soon as it comes in,
//! and what comes of that is sealed once more for its row, with the key in the state directory: a
//! value that is put into another account's row opens no more. Opening takes the token; what comes
//! out is wiped when the one call that needed it is over.

use std::sync::Arc;

use super::seal::{Sealer, Unsealable};
use super::store::keys::ServiceKey;
use super::store::secrets::Secret;
use crate::base::jwe::{Jwe, JweError, RsaJwk};
use crate::base::pkcs11::KeyRef;
use crate::base::secret::SecretText;
use crate::device::{DeviceError, Devices};
use crate::policy::{self, Purpose, Refusal};
use crate::statement::SecretKind;
use crate::statement::sealed_secret::{self, Plain};

/// Begins what seals a row.
const DOMAIN: &str = "api-secret";

/// Why a secret was not sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Policy does not let the program use the key; a fault of the program.
    #[error("the service may not open secrets")]
    Refused(#[from] Refusal),
    /// The token did not decrypt.
    #[error("the token of the service did not open a secret")]
    Device(#[from] DeviceError),
    /// What is stored was not sealed for this key.
    #[error("a stored secret is not one of this service")]
    Jwe(#[from] JweError),
    /// What is stored was not sealed for this row.
    #[error(transparent)]
    Row(#[from] Unsealable),
}

/// Seals secrets at rest and opens them; cloning shares it.
#[derive(Clone)]
pub struct Vault {
    devices: Devices,
    current: Known,
    /// Keys that open and seal nothing any more, and the one that comes next.
    others: Vec<Known>,
    sealer: Arc<Sealer>,
}

/// A key on the token.
#[derive(Clone)]
struct Known {
    key: KeyRef,
    public: RsaJwk,
}

impl Known {
    fn new(key: ServiceKey) -> Result<Self, JweError> {
        Ok(Self {
            key: key.key,
            public: RsaJwk::from_public_key(&key.public_key)?,
        })
    }
}

impl Vault {
    /// Seals to the RSA key `current`, and opens with the `others`, too.
    pub fn new(
        devices: Devices,
        current: ServiceKey,
        others: Vec<ServiceKey>,
        sealer: Arc<Sealer>,
    ) -> Result<Self, JweError> {
        Ok(Self {
            devices,
            current: Known::new(current)?,
            others: others
                .into_iter()
                .map(Known::new)
                .collect::<Result<_, _>>()?,
            sealer,
        })
    }

    /// Seals a secret for its row. Needs no token.
    pub fn seal(&self, row: &Secret, secret: &SecretText) -> Result<Vec<u8>, VaultError> {
        let jwe = sealed_secret::seal(&self.current.public, row.kind, secret)?;
        Ok(self.sealer.seal(DOMAIN, &place(row), jwe.as_bytes())?)
    }

    /// Opens what [`Vault::seal`] made for the same row, on the token.
    pub async fn open(&self, row: &Secret, sealed: &[u8]) -> Result<SecretText, VaultError> {
        let compact = self.sealer.open(DOMAIN, &place(row), sealed)?;
        let compact = std::str::from_utf8(compact.expose()).map_err(|_| JweError::Malformed)?;
        let jwe = Jwe::parse(compact, sealed_secret::SEALED_TYPE, sealed_secret::MAX)?;
        let known = std::iter::once(&self.current)
            .chain(&self.others)
            .find(|known| known.public.kid == jwe.kid())
            .ok_or(JweError::Key)?;
        let permit = policy::own(&known.key, Purpose::SecretOpening)?;
        let content_key = match self.devices.decrypt(permit, jwe.encrypted_key()).await {
            Err(DeviceError::Undecryptable { .. }) => return Err(JweError::Closed.into()),
            result => result?,
        };
        let plain = Plain::parse(&jwe.open(&content_key)?)?;
        if plain.kind == row.kind {
            Ok(plain.secret)
        } else {
            Err(JweError::Closed.into())
        }
    }
}

/// What a sealed value is bound to.
fn place(row: &Secret) -> String {
    let kind: SecretKind = row.kind;
    format!("{}\0{kind}\0{}", row.account, row.id)
}
