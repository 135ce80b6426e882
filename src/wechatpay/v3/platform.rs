//! The platform's keys: certificates and WeChat Pay public keys, several at once.
//!
//! A key comes in by one of three ways, each with its own proof:
//! - a person hands it over ([`PlatformKeys::pin_public_key`], [`PlatformKeys::pin_certificate`]);
//! - the first `GET /v3/certificates` answer ([`PlatformKeys::bootstrap`]): nothing can verify it
//!   beforehand, so it is decrypted with the APIv3 secret, and then verified with the very
//!   certificate that it brought and that its `Wechatpay-Serial` names; serial and issuer of each
//!   certificate are checked;
//! - a later answer ([`PlatformKeys::refresh`]), verified with a key already held.
//!
//! The platform makes a new certificate ten days before the old one ends and phases it in, and
//! a merchant that moves to a public key gets callbacks under either for days: so all valid keys
//! are held, each for its own time. A name never changes its key.

use std::str;

use der::pem;
use jiff::Timestamp;
use serde::Deserialize;

use super::aead::{Envelope, OpenError};
use super::verify::{SignatureHeaders, VerifyError};
use crate::base::key::{KeyError, KeyFamily, PublicKey};
use crate::base::x509::{Certificate, X509Error, verify_chain};
use crate::wechatpay::names::{CertificateSerial, PlatformKeyId};
use crate::wechatpay::secret::ApiV3Key;

/// Why a platform key was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// The text is not one PEM public key or certificate.
    #[error("the platform key is not one PEM block of its kind")]
    Pem,
    /// The PEM block holds no key we can use.
    #[error("the platform key cannot be read")]
    Key(#[source] KeyError),
    /// The key is not RSA with 2048 bits.
    #[error("the platform key is not RSA with 2048 bits")]
    KeyType,
    /// A public key needs a name that begins `PUB_KEY_ID_`, a certificate is named by its serial.
    #[error("{id} cannot name this kind of platform key")]
    Name {
        /// The name given.
        id: PlatformKeyId,
    },
    /// The name is taken by another key.
    #[error("another key is held under the name {id}")]
    Conflict {
        /// The name.
        id: PlatformKeyId,
    },
    /// Too many keys.
    #[error("more than {max} platform keys")]
    TooMany {
        /// The most that are held.
        max: usize,
    },
    /// The answer is not the JSON it should be.
    #[error("the certificates answer is malformed")]
    Malformed,
    /// A certificate in the answer does not open with the APIv3 secret.
    #[error("a certificate in the answer does not open")]
    Open(#[source] OpenError),
    /// A certificate in the answer cannot be read, or its issuer is not trusted.
    #[error("a certificate in the answer is not acceptable")]
    Certificate(#[source] X509Error),
    /// A certificate is not the one that it was announced as.
    #[error("a certificate in the answer has another serial than announced")]
    Serial,
    /// The answer's own signature.
    #[error("the certificates answer does not verify")]
    Signature(#[source] VerifyError),
}

/// One key of the platform, with the time it is good for.
#[derive(Debug, Clone)]
pub struct PlatformKey {
    id: PlatformKeyId,
    key: PublicKey,
    from: Timestamp,
    until: Timestamp,
}

impl PlatformKey {
    /// One that was taken before and kept since, with what it was kept with.
    pub fn kept(id: PlatformKeyId, key: PublicKey, from: Timestamp, until: Timestamp) -> Self {
        Self {
            id,
            key,
            from,
            until,
        }
    }

    /// Its name, `Wechatpay-Serial`; to be sent along with fields encrypted for it.
    pub fn id(&self) -> &PlatformKeyId {
        &self.id
    }

    /// The key.
    pub fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// First instant to encrypt for it.
    pub fn from(&self) -> Timestamp {
        self.from
    }

    /// First instant it is no longer good for anything.
    pub fn until(&self) -> Timestamp {
        self.until
    }
}

/// An answer of the platform, with its signature still to be checked.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Its signature.
    pub headers: &'a SignatureHeaders,
    /// Its body, as it came.
    pub body: &'a [u8],
}

/// The keys held for one merchant.
#[derive(Debug, Clone, Default)]
pub struct PlatformKeys(Vec<PlatformKey>);

impl PlatformKeys {
    /// The most keys held at once; there are two or three in practice.
    pub const MAX: usize = 16;
    /// Largest certificates answer read, in bytes.
    pub const MAX_ANSWER: usize = 256 * 1024;

    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those that were taken before and kept since.
    pub fn kept(keys: impl IntoIterator<Item = PlatformKey>) -> Result<Self, PlatformError> {
        let mut all = Self::new();
        for key in keys {
            all.add(key)?;
        }
        Ok(all)
    }

    /// Whether there is none that is good at `now`.
    pub fn is_empty(&self, now: Timestamp) -> bool {
        self.0.iter().all(|key| key.until <= now)
    }

    /// The key of exactly this name.
    pub fn get(&self, id: &PlatformKeyId) -> Option<&PlatformKey> {
        self.0.iter().find(|key| key.id == *id)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &PlatformKey> {
        self.0.iter()
    }

    /// The key to encrypt fields for: a public key if there is one, else the valid certificate
    /// that took effect last.
    pub fn encrypting(&self, now: Timestamp) -> Option<&PlatformKey> {
        self.0
            .iter()
            .filter(|key| key.from <= now && now < key.until)
            .max_by_key(|key| (key.id.is_public_key(), key.from))
    }

    /// Takes a WeChat Pay public key that a person downloaded, with its id. It has no expiry.
    pub fn pin_public_key(&mut self, id: PlatformKeyId, pem: &str) -> Result<(), PlatformError> {
        if !id.is_public_key() {
            return Err(PlatformError::Name { id });
        }
        self.add(PlatformKey {
            id,
            key: public_key_from_pem(pem)?,
            from: Timestamp::MIN,
            until: Timestamp::MAX,
        })
    }

    /// Takes a platform certificate that a person vouches for.
    pub fn pin_certificate(&mut self, certificate: &Certificate) -> Result<(), PlatformError> {
        let serial = CertificateSerial::of(certificate).map_err(|_| PlatformError::Serial)?;
        self.add(PlatformKey {
            id: serial.into(),
            key: certificate.public_key().clone(),
            from: certificate.not_before(),
            until: certificate.not_after(),
        })
    }

    /// Ends a key at `at`, where the platform said it would sign no more with it; a key never
    /// lives longer by this. Answers whether the key is held.
    pub fn retire(&mut self, id: &PlatformKeyId, at: Timestamp) -> bool {
        match self.0.iter_mut().find(|key| key.id == *id) {
            Some(key) => {
                key.until = key.until.min(at);
                true
            }
            None => false,
        }
    }

    /// The keys of the first `GET /v3/certificates` answer, verified with what it decrypts to.
    /// `anchors` are the issuers to trust ("Tenpay.com Root CA").
    pub fn bootstrap(
        answer: Answer<'_>,
        key: &ApiV3Key,
        anchors: &[Certificate],
        now: Timestamp,
    ) -> Result<Self, PlatformError> {
        let keys = Self::new().with(&open(answer.body, key, anchors, now)?, now)?;
        keys.check(answer, now)?;
        Ok(keys)
    }

    /// These keys and those of a later `GET /v3/certificates` answer, verified with these; keys
    /// that are past their time are left out. On an error nothing has changed.
    pub fn refresh(
        &self,
        answer: Answer<'_>,
        key: &ApiV3Key,
        anchors: &[Certificate],
        now: Timestamp,
    ) -> Result<Self, PlatformError> {
        self.check(answer, now)?;
        self.clone()
            .with(&open(answer.body, key, anchors, now)?, now)
    }

    fn check(&self, answer: Answer<'_>, now: Timestamp) -> Result<(), PlatformError> {
        self.verify(answer.headers, answer.body, now)
            .map(|_| ())
            .map_err(PlatformError::Signature)
    }

    fn with(mut self, keys: &[PlatformKey], now: Timestamp) -> Result<Self, PlatformError> {
        self.0.retain(|key| now < key.until);
        for key in keys {
            self.add(key.clone())?;
        }
        Ok(self)
    }

    fn add(&mut self, key: PlatformKey) -> Result<(), PlatformError> {
        if key.key.family() != KeyFamily::Rsa(2048) {
            return Err(PlatformError::KeyType);
        }
        match self.get(&key.id) {
            Some(held) if held.key == key.key => return Ok(()),
            Some(_) => return Err(PlatformError::Conflict { id: key.id }),
            None => {}
        }
        if self.0.len() == Self::MAX {
            return Err(PlatformError::TooMany { max: Self::MAX });
        }
        self.0.push(key);
        Ok(())
    }
}

/// Reads a public key from PEM: `PUBLIC KEY` (RFC 7468 section 13), or the `RSA PUBLIC KEY` that
/// interface version 2 answers with.
pub fn public_key_from_pem(pem: &str) -> Result<PublicKey, PlatformError> {
    if pem.len() > Certificate::MAX {
        return Err(PlatformError::Pem);
    }
    let (label, der) = pem::decode_vec(pem.as_bytes()).map_err(|_| PlatformError::Pem)?;
    match label {
        "PUBLIC KEY" => PublicKey::from_spki(&der),
        "RSA PUBLIC KEY" => PublicKey::from_pkcs1(&der),
        _ => return Err(PlatformError::Pem),
    }
    .map_err(PlatformError::Key)
}

#[derive(Deserialize)]
struct Certificates {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    serial_no: CertificateSerial,
    effective_time: Timestamp,
    expire_time: Timestamp,
    encrypt_certificate: Envelope,
}

/// Decrypts the certificates of an answer and checks serial, validity and issuer of each.
fn open(
    body: &[u8],
    key: &ApiV3Key,
    anchors: &[Certificate],
    now: Timestamp,
) -> Result<Vec<PlatformKey>, PlatformError> {
    if body.len() > PlatformKeys::MAX_ANSWER {
        return Err(PlatformError::Malformed);
    }
    let answer: Certificates =
        serde_json::from_slice(body).map_err(|_| PlatformError::Malformed)?;
    if answer.data.len() > PlatformKeys::MAX {
        return Err(PlatformError::TooMany {
            max: PlatformKeys::MAX,
        });
    }
    let mut keys = Vec::new();
    for entry in answer.data {
        let pem = entry
            .encrypt_certificate
            .open(key)
            .map_err(PlatformError::Open)?;
        let certificate =
            Certificate::from_pem(pem.expose()).map_err(PlatformError::Certificate)?;
        let serial = CertificateSerial::of(&certificate).map_err(|_| PlatformError::Serial)?;
        if serial != entry.serial_no {
            return Err(PlatformError::Serial);
        }
        let from = certificate.not_before().max(entry.effective_time);
        let until = certificate.not_after().min(entry.expire_time);
        // One that is announced is checked as of its first day; one that has ended is of no use.
        if until <= now {
            continue;
        }
        verify_chain(&certificate, &[], anchors, now.max(from))
            .map_err(PlatformError::Certificate)?;
        keys.push(PlatformKey {
            id: serial.into(),
            key: certificate.public_key().clone(),
            from,
            until,
        });
    }
    Ok(keys)
}
