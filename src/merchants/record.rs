//! What is kept of a merchant, and the table that readers see.
//!
//! The file has certificates, public keys, key names and sealed secrets: nothing that signs or
//! opens anything without the token. Platform keys were checked when they were taken; the file is
//! the daemon's own, so they are not checked again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::MerchantError;
use crate::base::encoding::{base64, from_base64};
use crate::base::files::{FileError, Readers, read_checked};
use crate::base::ids::AccountId;
use crate::base::jwe::RsaJwk;
use crate::base::key::PublicKey;
use crate::base::pkcs11::KeyRef;
use crate::base::x509::{Certificate, CertificateRequest};
use crate::device::Waiver;
use crate::statement::{Origin, SecretKind};
use crate::wechatpay::v2::Rules;
use crate::wechatpay::v3::{PlatformKey, PlatformKeys};
use crate::wechatpay::{CertificateSerial, MerchantId, PlatformKeyId};

/// Largest state file we read, in bytes.
const MAX_STATE: u64 = 16 * 1024 * 1024;

/// Where an API key came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeyOrigin {
    /// The token made it, and proved that it cannot leave.
    Generated,
    /// It was made elsewhere. Copies of it may exist; nothing is proven.
    Imported,
}

/// The account whose secrets a merchant takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The account service.
    pub service: Origin,
    /// The account.
    pub account: AccountId,
}

/// One merchant in the state file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub merchant: MerchantId,
    pub added_at: Timestamp,
    /// Oldest first.
    pub keys: Vec<ApiKey>,
    pub sealing: SealingKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    pub rules: Rules,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Sealed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apiv3: Option<Sealed>,
    #[serde(default)]
    pub platform: Vec<KeptPlatformKey>,
    /// Issuers of platform certificates, base64 DER.
    #[serde(default)]
    pub authorities: Vec<String>,
}

/// A key that requests are signed with and fields are encrypted for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ApiKey {
    pub key: KeyRef,
    pub origin: KeyOrigin,
    pub added_at: Timestamp,
    /// The certification request, base64 DER.
    pub request: String,
    /// What the token did not prove of the key, and its configuration waives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waived: Vec<Waiver>,
    /// The API certificate, base64 DER, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

impl ApiKey {
    /// Whether `public` is this key's, as its certification request says: the token may be away.
    pub fn is_for(&self, public: &PublicKey) -> bool {
        from_base64(self.request.as_bytes())
            .and_then(|der| CertificateRequest::from_der(&der).ok())
            .is_some_and(|request| request.public_key() == public)
    }
}

/// The key that secrets are sealed to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SealingKey {
    pub key: KeyRef,
    pub jwk: RsaJwk,
    /// As of [`ApiKey`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waived: Vec<Waiver>,
}

/// A secret, and for a time the one before it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sealed {
    pub jwe: String,
    pub set_at: Timestamp,
    /// That of the account service; absent where a person set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
}

/// The secret before the current one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Before {
    pub jwe: String,
    pub until: Timestamp,
}

/// A key of the platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct KeptPlatformKey {
    pub id: PlatformKeyId,
    /// SubjectPublicKeyInfo, base64 DER.
    pub key: String,
    /// Absent: since ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Record {
    pub fn secret(&self, kind: SecretKind) -> Option<&Sealed> {
        match kind {
            SecretKind::Api => self.api.as_ref(),
            SecretKind::ApiV3 => self.apiv3.as_ref(),
        }
    }

    pub fn secret_mut(&mut self, kind: SecretKind) -> &mut Option<Sealed> {
        match kind {
            SecretKind::Api => &mut self.api,
            SecretKind::ApiV3 => &mut self.apiv3,
        }
    }

    pub fn keep_platform(&mut self, keys: &PlatformKeys) {
        self.platform = keys
            .iter()
            .map(|key| KeptPlatformKey {
                id: key.id().clone(),
                key: base64(key.public_key().spki()),
                from: (key.from() != Timestamp::MIN).then_some(key.from()),
                until: (key.until() != Timestamp::MAX).then_some(key.until()),
            })
            .collect();
    }

    /// Parses what calls need, once.
    pub fn into_merchant(self) -> Result<Merchant, MerchantError> {
        let platform = self.platform.iter().map(KeptPlatformKey::read);
        let platform = PlatformKeys::kept(platform.collect::<Option<Vec<_>>>().ok_or(UNREADABLE)?)?;
        let authorities = self.authorities.iter().map(|text| certificate(text));
        let authorities = authorities.collect::<Result<_, _>>()?;
        let mut certified = Vec::new();
        for key in &self.keys {
            if let Some(text) = &key.certificate {
                let certificate = certificate(text)?;
                certified.push(Certified {
                    key: key.key.clone(),
                    serial: CertificateSerial::of(&certificate).map_err(|_| UNREADABLE)?,
                    from: certificate.not_before(),
                    until: certificate.not_after(),
                });
            }
        }
        // The newest certificate first, and of two that begin at once that of the newer key.
        certified.reverse();
        certified.sort_by_key(|known| std::cmp::Reverse(known.from));
        Ok(Merchant {
            record: self,
            platform,
            authorities,
            certified,
        })
    }
}

const UNREADABLE: MerchantError = MerchantError::Malformed {
    what: "a key or certificate of a merchant cannot be read",
};

fn certificate(text: &str) -> Result<Certificate, MerchantError> {
    let der = from_base64(text.as_bytes()).ok_or(UNREADABLE)?;
    Ok(Certificate::from_der(&der)?)
}

impl KeptPlatformKey {
    fn read(&self) -> Option<PlatformKey> {
        let spki = from_base64(self.key.as_bytes())?;
        Some(PlatformKey::kept(
            self.id.clone(),
            PublicKey::from_spki(&spki).ok()?,
            self.from.unwrap_or(Timestamp::MIN),
            self.until.unwrap_or(Timestamp::MAX),
        ))
    }
}

/// A merchant, ready for use.
#[derive(Debug)]
pub(super) struct Merchant {
    pub record: Record,
    pub platform: PlatformKeys,
    pub authorities: Vec<Certificate>,
    /// Keys with their certificates, the one to sign with first.
    pub certified: Vec<Certified>,
}

/// An API key with its certificate.
#[derive(Debug)]
pub(super) struct Certified {
    pub key: KeyRef,
    pub serial: CertificateSerial,
    pub from: Timestamp,
    pub until: Timestamp,
}

/// All merchants.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub merchants: BTreeMap<MerchantId, Arc<Merchant>>,
    /// Which merchant a sealing key belongs to, by its thumbprint.
    pub by_kid: BTreeMap<String, MerchantId>,
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    merchants: Vec<Record>,
}

impl Table {
    pub fn new(merchants: BTreeMap<MerchantId, Arc<Merchant>>) -> Self {
        let by_kid = merchants
            .iter()
            .map(|(id, merchant)| (merchant.record.sealing.jwk.kid.clone(), id.clone()))
            .collect();
        Self { merchants, by_kid }
    }

    pub fn to_json(&self) -> Result<Vec<u8>, MerchantError> {
        let file = File {
            version: 1,
            merchants: self
                .merchants
                .values()
                .map(|merchant| merchant.record.clone())
                .collect(),
        };
        serde_json::to_vec_pretty(&file).map_err(|error| MerchantError::Task {
            problem: error.to_string(),
        })
    }
}

/// Reads the state file; there need not be one.
pub(super) fn load(path: &Path) -> Result<Table, MerchantError> {
    let damaged = |problem: String| MerchantError::Damaged {
        path: path.to_owned(),
        problem,
    };
    let bytes = match read_checked(path, Readers::Owner, MAX_STATE) {
        Ok(bytes) => bytes,
        Err(FileError::Unreadable { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            return Ok(Table::default());
        }
        Err(error) => return Err(error.into()),
    };
    let file: File = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if file.version != 1 {
        return Err(damaged(format!("it has version {}", file.version)));
    }
    let mut merchants = BTreeMap::new();
    for record in file.merchants {
        let id = record.merchant.clone();
        let merchant = record
            .into_merchant()
            .map_err(|error| damaged(error.to_string()))?;
        merchants.insert(id, Arc::new(merchant));
    }
    Ok(Table::new(merchants))
}
