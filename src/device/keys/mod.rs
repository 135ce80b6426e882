//! Keys on tokens: made, imported, listed, destroyed; and their public halves.
//!
//! What a private key is used for never lives here: see `sign`.

mod certificates;
mod private_key;
pub mod public_key;

use std::collections::{HashMap, HashSet};
use std::sync::{PoisonError, RwLock};

use serde::Serialize;

pub use self::certificates::TokenCertificate;
pub use self::private_key::{InvalidPrivateKey, RsaPrivateKey};
use super::Devices;
use super::config::Waiver;
use super::error::{DeviceError, unexpected};
use super::frames::{Answer, KeyUse, LABEL_MAX, PublicParts, Verb};
use super::supervisor::handle::{Need, turn};
use crate::base::key::{KeySpec, PublicKey};
use crate::base::pkcs11::{KeyId, KeyRef, TokenId};

/// The most public keys that are cached; past it all are read anew.
const PUBLIC_KEYS_MAX: usize = 16 * 1024;

/// A private key on a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// `CKA_ID`; `None` where it is empty or longer than 64 bytes, so that no `KeyRef` can name it.
    pub id: Option<KeyId>,
    /// `CKA_LABEL`.
    pub label: String,
    /// What it is; `None` for what cannot be used here.
    pub spec: Option<KeySpec>,
    /// `CKA_ALWAYS_AUTHENTICATE`: each use needs a login of its own.
    pub always_authenticate: bool,
}

/// A key pair that was generated on a token.
#[must_use]
#[derive(Debug, Clone)]
pub struct GeneratedKey {
    /// Its name.
    pub key: KeyRef,
    /// Its public half.
    pub public_key: PublicKey,
    /// What was read back from the token.
    pub proof: Proof,
}

/// The attributes that prove that a private key was made on the token and cannot leave it, as the
/// token itself states them (PKCS#11 v3.0 section 4.9). Only complete proofs exist, but for what the
/// configuration waives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Proof {
    /// `CKA_LOCAL`.
    pub local: bool,
    /// `CKA_SENSITIVE`.
    pub sensitive: bool,
    /// `CKA_ALWAYS_SENSITIVE`.
    pub always_sensitive: bool,
    /// `CKA_NEVER_EXTRACTABLE`.
    pub never_extractable: bool,
    /// `CKA_EXTRACTABLE`.
    pub extractable: bool,
    /// What the token did not state, and the configuration says it misreports.
    pub waived: Vec<Waiver>,
}

impl Proof {
    /// What a worker that answered `Generated` has read.
    fn without(waived: Vec<Waiver>) -> Self {
        let is_stated = |attribute| !waived.contains(&attribute);
        Self {
            local: is_stated(Waiver::Local),
            sensitive: is_stated(Waiver::Sensitive),
            always_sensitive: is_stated(Waiver::AlwaysSensitive),
            never_extractable: is_stated(Waiver::NeverExtractable),
            extractable: false,
            waived,
        }
    }
}

/// The public keys that were read from tokens, for the life of the process.
#[derive(Default)]
pub struct PublicKeys(RwLock<HashMap<KeyRef, PublicKey>>);

impl PublicKeys {
    fn get(&self, key: &KeyRef) -> Option<PublicKey> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(key).cloned()
    }

    fn insert(&self, key: KeyRef, public_key: PublicKey) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= PUBLIC_KEYS_MAX {
            known.clear();
        }
        known.insert(key, public_key);
    }

    /// The id may mean another key from now on.
    pub fn forget(&self, key: &KeyRef) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.remove(key);
    }

    /// Other libraries, or other tokens, may answer to the names of these modules from now on.
    pub fn forget_modules(&self, modules: &HashSet<String>) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|key, _| !modules.contains(&key.token.module));
    }
}

impl Devices {
    /// The public half of a key; read from the token once, then cached.
    pub async fn public_key(&self, key: &KeyRef) -> Result<PublicKey, DeviceError> {
        if let Some(cached) = self.0.public_keys.get(key) {
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
        check_label(label)?;
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
            waived: module
                .configured(token)
                .map(|config| config.waive.clone())
                .unwrap_or_default(),
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
        check_label(label)?;
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
        let verb = |token, cursor| Verb::Keys { token, cursor };
        let page = |answer| match answer {
            Answer::Keys(page, next) => Some((page, next)),
            _ => None,
        };
        let entries = self.list(token, Need::QuietLogin, verb, page).await?;
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
        self.0.public_keys.forget(key);
        match result? {
            Answer::Done => Ok(()),
            _ => Err(unexpected(&key.token.module)),
        }
    }

    /// Reads a list to its end, page by page.
    async fn list<T>(
        &self,
        token: &TokenId,
        need: Need,
        verb: impl Fn(u16, Option<u32>) -> Verb,
        page_of: impl Fn(Answer) -> Option<(Vec<T>, Option<u32>)>,
    ) -> Result<Vec<T>, DeviceError> {
        let module = self.module_of(token)?;
        let _turn = turn(&module.lists).await?;
        let (mut entries, mut cursor) = (Vec::new(), None);
        loop {
            // Another module of the same name may have taken its place.
            let budget = self.module_of(token)?.config.call_timeout;
            let verb = |number| verb(number, cursor);
            let answer = self.call(token, None, need, budget, verb).await?;
            let (page, next) = page_of(answer).ok_or_else(|| unexpected(&token.module))?;
            entries.extend(page);
            cursor = next;
            if cursor.is_none() {
                return Ok(entries);
            }
        }
    }

    fn remember(&self, key: &KeyRef, parts: &PublicParts) -> Result<PublicKey, DeviceError> {
        let public_key = public_key::parse(parts).map_err(|source| DeviceError::KeyUnusable {
            key: key.to_string(),
            source,
        })?;
        let known = public_key.clone();
        self.0.public_keys.insert(key.clone(), known);
        Ok(public_key)
    }
}

fn check_label(label: &str) -> Result<(), DeviceError> {
    match label.len() {
        0..=LABEL_MAX => Ok(()),
        _ => Err(DeviceError::TooLarge {
            what: "label",
            limit: LABEL_MAX,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_states_all_but_what_is_waived() {
        let whole = Proof::without(Vec::new());
        assert!(whole.local && whole.sensitive && whole.always_sensitive);
        assert!(whole.never_extractable && !whole.extractable);
        let waived = Proof::without(vec![Waiver::Local, Waiver::NeverExtractable]);
        assert!(!waived.local && !waived.never_extractable);
        assert!(waived.sensitive && waived.always_sensitive && !waived.extractable);
    }
}
