//! Adding and removing merchants; their certificates, secrets and platform keys.
//!
//! Keys are generated before the merchant is in the table and destroyed after it is out of it, so
//! a crash leaves at worst a key without a merchant; the record that comes before each step names
//! it by its `CKA_ID`.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::record::{ApiKey, Before, KeyOrigin, Link, Merchant, Record, Sealed, SealingKey};
use super::{MerchantError, Merchants, Missing};
use crate::base::encoding::base64;
use crate::base::ids::RequestId;
use crate::base::jwe::{Jwe, JweError, RsaJwk};
use crate::base::key::{KeyFamily, KeySpec, PublicKey};
use crate::base::pkcs11::{KeyId, KeyRef, TokenId, TokenUri};
use crate::base::x509::{AboutKey, Certificate, RemoteKey, common_name, request_draft_about};
use crate::device::{DeviceError, KeyUse, RsaPrivateKey, Waiver};
use crate::policy::{self, Caller, Purpose};
use crate::statement::sealed_secret::{self, LONGEST_OVERLAP};
use crate::statement::{SealedSecret, SecretKind};
use crate::wechatpay::v2::Rules;
use crate::wechatpay::v3::PlatformKeys;
use crate::wechatpay::{ApiV2Secret, ApiV3Key, CertificateSerial, MerchantId, PlatformKeyId};

/// The most merchants of one daemon.
const MOST_MERCHANTS: usize = 256;

/// The most API keys of a merchant: as many certificates as the platform lets be in force.
const MOST_KEYS: usize = 3;

/// A key for a merchant.
#[derive(Debug)]
pub struct NewKey {
    /// The token it is to be on.
    pub token: TokenUri,
    /// The key, where one is imported; otherwise the token generates it.
    pub import: Option<RsaPrivateKey>,
}

/// A merchant to be added.
#[derive(Debug)]
pub struct Adding {
    /// Its number.
    pub merchant: MerchantId,
    /// Its first key.
    pub key: NewKey,
    /// How its version 2 messages are signed.
    pub rules: Rules,
    /// The account whose secrets it takes.
    pub link: Option<Link>,
    /// Issuers to trust for platform certificates.
    pub authorities: Vec<Certificate>,
}

/// A key of the platform that a person vouches for.
#[derive(Debug)]
pub enum PlatformPin {
    /// A WeChat Pay public key, PEM.
    PublicKey {
        /// `PUB_KEY_ID_…`.
        id: PlatformKeyId,
        /// The key.
        pem: String,
    },
    /// A platform certificate.
    Certificate(Box<Certificate>),
}

/// A merchant as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MerchantView {
    /// Its number.
    pub merchant: MerchantId,
    /// Its API keys, the oldest first.
    pub keys: Vec<ApiKeyView>,
    /// Secrets are sealed to this key.
    pub sealing_key: RsaJwk,
    /// The account service whose secrets it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The account there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// How its version 2 messages are signed.
    pub rules: Rules,
    /// The secrets that are set.
    pub secrets: Vec<SecretView>,
    /// The platform's keys.
    pub platform_keys: Vec<PlatformKeyView>,
    /// How many issuers are trusted for platform certificates.
    pub authorities: usize,
}

/// An API key as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ApiKeyView {
    /// PKCS#11 URI of the key.
    pub key: String,
    /// Its `CKA_ID`, hexadecimal; names it where it is removed.
    #[schema(value_type = String)]
    pub id: KeyId,
    /// Where it came from.
    pub origin: KeyOrigin,
    /// The certification request, base64 DER.
    pub request: String,
    /// Serial of the API certificate, with its leading zeros; absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<CertificateSerial>,
    /// First instant of the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_from: Option<String>,
    /// First instant that it is no longer valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<String>,
}

/// A secret as people see it: that it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretView {
    /// Which.
    pub kind: SecretKind,
    /// When it was set here.
    pub set_at: String,
    /// Its version at the account service; absent where a person set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Until when the one before is tried too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap_until: Option<String>,
}

/// A platform key as people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlatformKeyView {
    /// Its name, `Wechatpay-Serial`.
    pub id: PlatformKeyId,
    /// First instant to encrypt for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_from: Option<String>,
    /// First instant that it is good for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<String>,
}

/// A secret that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretSet {
    /// Whose.
    pub merchant: MerchantId,
    /// What is there now.
    pub secret: SecretView,
}

impl Merchants {
    /// All merchants, by number.
    pub fn list(&self) -> Vec<MerchantView> {
        let table = self.0.table.load();
        table.merchants.values().map(|known| known.view()).collect()
    }

    /// Adds a merchant: its sealing key, its first API key, and the request for its certificate.
    pub async fn add(
        &self,
        request: &RequestId,
        by: &Caller,
        adding: Adding,
    ) -> Result<MerchantView, MerchantError> {
        let _changing = self.0.changing.lock().await;
        let table = self.0.table.load_full();
        if table.merchants.contains_key(&adding.merchant) {
            return Err(MerchantError::Exists {
                merchant: adding.merchant,
            });
        }
        if table.merchants.len() >= MOST_MERCHANTS {
            return Err(MerchantError::TooMany {
                what: "merchants",
                max: MOST_MERCHANTS,
            });
        }
        let token = self.0.devices.select(&adding.key.token).await?;
        let (sealing, api) = (KeyId::random(), KeyId::random());
        let body = json!({
            "merchant": adding.merchant,
            "caller": by.to_string(),
            "token": token.to_string(),
            "origin": origin(&adding.key),
            "sealing_key": sealing,
            "api_key": api,
        });
        self.record("merchant-adding", request, &body).await?;

        let label = format!("opcert sealing {}", adding.merchant);
        let generated = self
            .0
            .devices
            .generate_for(&token, KeySpec::Rsa2048, KeyUse::Decrypt, &sealing, &label)
            .await?;
        let work = async {
            self.record_waived(request, by, &generated.key, &generated.proof.waived)
                .await?;
            let jwk = RsaJwk::from_public_key(&generated.public_key)?;
            let key = self
                .make_key(request, by, &adding.merchant, &token, &api, adding.key)
                .await?;
            let record = Record {
                merchant: adding.merchant.clone(),
                added_at: self.0.clock.now(),
                keys: vec![key],
                sealing: SealingKey {
                    key: generated.key.clone(),
                    jwk,
                    waived: generated.proof.waived.clone(),
                },
                link: adding.link,
                rules: adding.rules,
                api: None,
                apiv3: None,
                platform: Vec::new(),
                authorities: encoded(&adding.authorities),
            };
            self.publish(&adding.merchant, Some(record)).await
        };
        if let Err(error) = work.await {
            for id in [sealing, api] {
                let key = KeyRef {
                    token: token.clone(),
                    id,
                };
                self.delete_unused(&key).await;
            }
            return Err(error);
        }
        let body = json!({ "merchant": adding.merchant, "caller": by.to_string() });
        self.record("merchant-added", request, &body).await?;
        self.view(&adding.merchant)
    }

    /// Adds a key to a merchant, for a certificate that is to replace the one in use.
    pub async fn add_key(
        &self,
        request: &RequestId,
        by: &Caller,
        merchant: &MerchantId,
        key: NewKey,
    ) -> Result<MerchantView, MerchantError> {
        let _changing = self.0.changing.lock().await;
        let known = self.known(merchant)?;
        if known.record.keys.len() >= MOST_KEYS {
            return Err(MerchantError::TooMany {
                what: "API keys of this merchant",
                max: MOST_KEYS,
            });
        }
        let token = self.0.devices.select(&key.token).await?;
        let id = KeyId::random();
        let body = json!({
            "merchant": merchant,
            "caller": by.to_string(),
            "token": token.to_string(),
            "origin": origin(&key),
            "api_key": id,
        });
        self.record("merchant-key-adding", request, &body).await?;
        let made = self
            .make_key(request, by, merchant, &token, &id, key)
            .await?;
        let key = made.key.clone();
        let mut record = known.record.clone();
        record.keys.push(made);
        if let Err(error) = self.publish(merchant, Some(record)).await {
            self.delete_unused(&key).await;
            return Err(error);
        }
        self.view(merchant)
    }

    /// Removes one of several API keys, on the token too.
    pub async fn remove_key(
        &self,
        request: &RequestId,
        by: &Caller,
        merchant: &MerchantId,
        key: &KeyId,
    ) -> Result<MerchantView, MerchantError> {
        let _changing = self.0.changing.lock().await;
        let known = self.known(merchant)?;
        let mut record = known.record.clone();
        let place = record.keys.iter().position(|held| held.key.id == *key);
        let Some(place) = place.filter(|_| record.keys.len() > 1) else {
            return Err(MerchantError::NotReady {
                merchant: merchant.clone(),
                missing: Missing::RemovableKey,
            });
        };
        let removed = record.keys.remove(place).key;
        let body = json!({
            "merchant": merchant,
            "caller": by.to_string(),
            "key": removed.to_string(),
        });
        self.record("merchant-key-removed", request, &body).await?;
        self.publish(merchant, Some(record)).await?;
        self.delete(&removed).await?;
        self.view(merchant)
    }

    /// Removes a merchant, its keys on the token and so its secrets.
    pub async fn remove(
        &self,
        request: &RequestId,
        by: &Caller,
        merchant: &MerchantId,
    ) -> Result<(), MerchantError> {
        let _changing = self.0.changing.lock().await;
        let known = self.known(merchant)?;
        let keys: Vec<KeyRef> = known
            .record
            .keys
            .iter()
            .map(|held| held.key.clone())
            .chain([known.record.sealing.key.clone()])
            .collect();
        let names: Vec<String> = keys.iter().map(ToString::to_string).collect();
        let body = json!({
            "merchant": merchant,
            "caller": by.to_string(),
            "keys": names,
        });
        self.record("merchant-removed", request, &body).await?;
        self.publish(merchant, None).await?;
        // All of them, whatever becomes of one: the merchant is gone, so nobody could ask again.
        let mut failed = None;
        for key in keys {
            if let Err(error) = self.delete(&key).await {
                tracing::warn!(%key, %error, "a key of a removed merchant is still on its token");
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Installs an API certificate for the key it was issued for.
    pub async fn install_certificate(
        &self,
        request: &RequestId,
        by: &Caller,
        merchant: &MerchantId,
        certificate: &Certificate,
    ) -> Result<MerchantView, MerchantError> {
        let _changing = self.0.changing.lock().await;
        let known = self.known(merchant)?;
        let mut record = known.record.clone();
        let serial =
            CertificateSerial::of(certificate).map_err(|_| MerchantError::Certificate {
                problem: "has no usable serial",
            })?;
        if certificate.not_after() <= self.0.clock.now() {
            return Err(MerchantError::Certificate {
                problem: "has ended",
            });
        }
        let fitting = record
            .keys
            .iter_mut()
            .find(|held| held.is_for(certificate.public_key()));
        let Some(held) = fitting else {
            return Err(MerchantError::Certificate {
                problem: "is for none of this merchant's keys",
            });
        };
        held.certificate = Some(base64(certificate.der()));
        let body = json!({
            "merchant": merchant,
            "caller": by.to_string(),
            "key": held.key.to_string(),
            "serial": serial,
        });
        self.record("merchant-certificate", request, &body).await?;
        self.0
            .devices
            .write_certificate(&held.key, certificate.der())
            .await?;
        self.publish(merchant, Some(record)).await?;
        self.view(merchant)
    }

    /// Takes a platform key that a person vouches for.
    pub async fn pin(
        &self,
        request: &RequestId,
        by: &Caller,
        merchant: &MerchantId,
        pin: PlatformPin,
    ) -> Result<MerchantView, MerchantError> {
        let id = match &pin {
            PlatformPin::PublicKey { id, .. } => id.clone(),
            PlatformPin::Certificate(certificate) => CertificateSerial::of(certificate)
                .map_err(|_| MerchantError::Certificate {
                    problem: "has no usable serial",
                })?
                .into(),
        };
        let change = |keys: &mut PlatformKeys| match pin {
            PlatformPin::PublicKey { id, pem } => Ok(keys.pin_public_key(id, &pem)?),
            PlatformPin::Certificate(certificate) => Ok(keys.pin_certificate(&certificate)?),
        };
        self.change_platform(request, by, merchant, "platform-key-pinned", &id, change)
            .await
    }

    /// Ends a platform key at `at`; it never lives longer by this.
    pub async fn retire(
        &self,
        request: &RequestId,
        by: &Caller,
        merchant: &MerchantId,
        id: &PlatformKeyId,
        at: Timestamp,
    ) -> Result<MerchantView, MerchantError> {
        let change = |keys: &mut PlatformKeys| {
            if keys.retire(id, at) {
                Ok(())
            } else {
                Err(MerchantError::NotReady {
                    merchant: merchant.clone(),
                    missing: Missing::PlatformKey,
                })
            }
        };
        self.change_platform(request, by, merchant, "platform-key-retired", id, change)
            .await
    }

    async fn change_platform(
        &self,
        request: &RequestId,
        by: &Caller,
        merchant: &MerchantId,
        kind: &'static str,
        id: &PlatformKeyId,
        change: impl FnOnce(&mut PlatformKeys) -> Result<(), MerchantError>,
    ) -> Result<MerchantView, MerchantError> {
        let _changing = self.0.changing.lock().await;
        let known = self.known(merchant)?;
        let now = self.0.clock.now();
        let alive = known.platform.iter().filter(|key| now < key.until());
        let mut keys = PlatformKeys::kept(alive.cloned())?;
        change(&mut keys)?;
        let body = json!({ "merchant": merchant, "caller": by.to_string(), "key": id });
        self.record(kind, request, &body).await?;
        let mut record = known.record.clone();
        record.keep_platform(&keys);
        self.publish(merchant, Some(record)).await?;
        self.view(merchant)
    }

    /// Replaces the issuers that are trusted for platform certificates.
    pub async fn trust(
        &self,
        request: &RequestId,
        by: &Caller,
        merchant: &MerchantId,
        authorities: &[Certificate],
    ) -> Result<MerchantView, MerchantError> {
        let _changing = self.0.changing.lock().await;
        let known = self.known(merchant)?;
        let fingerprints: Vec<String> = authorities
            .iter()
            .map(|authority| crate::base::encoding::hex(&authority.fingerprint()))
            .collect();
        let body = json!({
            "merchant": merchant,
            "caller": by.to_string(),
            "authorities": fingerprints,
        });
        self.record("platform-authorities", request, &body).await?;
        let mut record = known.record.clone();
        record.authorities = encoded(authorities);
        self.publish(merchant, Some(record)).await?;
        self.view(merchant)
    }

    /// Takes a secret that somebody at this computer sealed. The one before stays readable for
    /// `overlap` seconds, at most a week.
    pub async fn set_secret(
        &self,
        request: &RequestId,
        by: &Caller,
        jwe: String,
        overlap: u32,
    ) -> Result<SecretSet, MerchantError> {
        let merchant = self.recipient(&jwe)?;
        let seconds = i64::from(overlap).min(LONGEST_OVERLAP);
        let now = self.0.clock.now();
        let until = now
            .checked_add(SignedDuration::from_secs(seconds))
            .unwrap_or(now);
        let taking = Taking {
            jwe,
            until,
            kind: None,
            version: None,
        };
        self.take(request, by, &merchant, taking).await
    }

    /// Takes a secret that an account service sealed and signed.
    pub async fn take_secret(
        &self,
        request: &RequestId,
        by: &Caller,
        signed: &str,
    ) -> Result<SecretSet, MerchantError> {
        let snapshot = self.0.registry.snapshot();
        let claims = SealedSecret::open(signed, self.0.clock.now(), |issuer, kid| {
            snapshot.service_key(issuer, kid)
        })?;
        let merchant = self.recipient(&claims.jwe)?;
        let known = self.known(&merchant)?;
        let linked = known
            .record
            .link
            .as_ref()
            .is_some_and(|link| link.service == claims.iss && link.account == claims.sub);
        if !linked {
            return Err(MerchantError::NotLinked {
                merchant,
                account: claims.sub.to_string(),
                service: claims.iss.to_string(),
            });
        }
        let taking = Taking {
            until: Timestamp::from_second(claims.overlap_until)
                .unwrap_or_else(|_| self.0.clock.now()),
            jwe: claims.jwe,
            kind: Some(claims.kind),
            version: Some(claims.version),
        };
        self.take(request, by, &merchant, taking).await
    }

    async fn take(
        &self,
        request: &RequestId,
        by: &Caller,
        merchant: &MerchantId,
        taking: Taking,
    ) -> Result<SecretSet, MerchantError> {
        let _changing = self.0.changing.lock().await;
        let known = self.known(merchant)?;
        let now = self.0.clock.now();
        let sealing = &known.record.sealing;
        // It is opened once now: one that cannot be used must not replace one that can.
        let permit = policy::own(&sealing.key, Purpose::SecretOpening)?;
        let plain = self
            .unseal_any(permit, &sealing.jwk.kid, &taking.jwe)
            .await?;
        let kind = plain.kind;
        if taking.kind.is_some_and(|said| said != kind) {
            return Err(MerchantError::OtherKind);
        }
        match kind {
            SecretKind::Api => drop(ApiV2Secret::new(plain.secret)?),
            SecretKind::ApiV3 => drop(ApiV3Key::new(plain.secret)?),
        }
        let mut record = known.record.clone();
        let place = record.secret_mut(kind);
        let last = place.as_ref().and_then(|held| held.version);
        if let (Some(version), Some(known)) = (taking.version, last)
            && version <= known
        {
            return Err(MerchantError::Old { version, known });
        }
        let before = place
            .take()
            .filter(|_| now < taking.until)
            .map(|held| Before {
                jwe: held.jwe,
                until: taking.until,
            });
        *place = Some(Sealed {
            jwe: taking.jwe,
            set_at: now,
            // What a person sets does not let an older one of the service back in.
            version: taking.version.or(last),
            before,
        });
        let secret = place.as_ref().map(|held| held.view(kind));
        let body = json!({
            "merchant": merchant,
            "caller": by.to_string(),
            "secret": secret,
        });
        self.record("merchant-secret", request, &body).await?;
        self.publish(merchant, Some(record)).await?;
        Ok(SecretSet {
            merchant: merchant.clone(),
            secret: secret.ok_or(JweError::Malformed)?,
        })
    }

    /// The merchant whose sealing key a JWE is for.
    fn recipient(&self, jwe: &str) -> Result<MerchantId, MerchantError> {
        let parsed = Jwe::parse(jwe, sealed_secret::SEALED_TYPE, sealed_secret::MAX)?;
        let table = self.0.table.load();
        let merchant = table.by_kid.get(parsed.kid()).cloned();
        merchant.ok_or_else(|| JweError::Key.into())
    }

    fn known(&self, merchant: &MerchantId) -> Result<std::sync::Arc<Merchant>, MerchantError> {
        let found = self.0.table.load().merchants.get(merchant).cloned();
        found.ok_or_else(|| MerchantError::Unknown {
            merchant: merchant.clone(),
        })
    }

    fn view(&self, merchant: &MerchantId) -> Result<MerchantView, MerchantError> {
        Ok(self.known(merchant)?.view())
    }

    /// Puts on record what a token did not prove of a new key.
    async fn record_waived(
        &self,
        request: &RequestId,
        by: &Caller,
        key: &KeyRef,
        waived: &[Waiver],
    ) -> Result<(), MerchantError> {
        if waived.is_empty() {
            return Ok(());
        }
        let body = json!({
            "caller": by.to_string(),
            "key": key.to_string(),
            "waived": waived,
        });
        self.record("key-proof-waived", request, &body).await
    }

    async fn make_key(
        &self,
        request: &RequestId,
        by: &Caller,
        merchant: &MerchantId,
        token: &TokenId,
        id: &KeyId,
        wanted: NewKey,
    ) -> Result<ApiKey, MerchantError> {
        let label = format!("opcert WeChat Pay {merchant}");
        let devices = &self.0.devices;
        let r#use = KeyUse::SignAndDecrypt;
        let origin = origin(&wanted);
        let (public, waived) = match wanted.import {
            Some(private) => {
                let public = devices.import(token, &private, r#use, id, &label).await?;
                (public, Vec::new())
            }
            None => {
                let spec = KeySpec::Rsa2048;
                let generated = devices.generate_for(token, spec, r#use, id, &label).await?;
                (generated.public_key, generated.proof.waived)
            }
        };
        let key = KeyRef {
            token: token.clone(),
            id: id.clone(),
        };
        let signed = async {
            self.record_waived(request, by, &key, &waived).await?;
            self.request(by, merchant, &key, &public, &waived).await
        };
        let request = match signed.await {
            Ok(request) => request,
            Err(error) => {
                self.delete(&key).await?;
                return Err(error);
            }
        };
        Ok(ApiKey {
            key,
            origin,
            added_at: self.0.clock.now(),
            request: base64(&request),
            waived,
            certificate: None,
        })
    }

    /// The certification request for a key. Signing it also shows that the key works.
    async fn request(
        &self,
        by: &Caller,
        merchant: &MerchantId,
        key: &KeyRef,
        public: &PublicKey,
        waived: &[Waiver],
    ) -> Result<Vec<u8>, MerchantError> {
        debug_assert_eq!(public.family(), KeyFamily::Rsa(2048));
        let subject = common_name(merchant.as_str())?;
        let note = Waiver::note(waived);
        let about = AboutKey {
            note: note.as_deref(),
            path: &[],
        };
        let draft =
            request_draft_about(subject, Vec::new(), about, RemoteKey::new(public.clone()))?;
        let permit = match policy::decide_own(by, key, Purpose::CertificateRequest) {
            policy::Decision::Granted(grant) => grant.permit(policy::ConsentRule::None)?,
            policy::Decision::Refused(refusal) => return Err(refusal.into()),
        };
        let signature = self
            .0
            .devices
            .sign(permit, draft.scheme(), draft.to_sign())
            .await?;
        Ok(draft.assemble(&signature)?)
    }

    /// Deletes a key that came of something that failed, which is the error to tell.
    async fn delete_unused(&self, key: &KeyRef) {
        if let Err(error) = self.delete(key).await {
            tracing::warn!(%key, %error, "a key that nothing uses is left on its token");
        }
    }

    /// Deletes a key; one that is not there is as good as deleted.
    async fn delete(&self, key: &KeyRef) -> Result<(), MerchantError> {
        match self.0.devices.delete_key(key).await {
            Ok(()) | Err(DeviceError::KeyMissing { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

struct Taking {
    jwe: String,
    until: Timestamp,
    kind: Option<SecretKind>,
    version: Option<u64>,
}

fn origin(key: &NewKey) -> KeyOrigin {
    match key.import {
        Some(_) => KeyOrigin::Imported,
        None => KeyOrigin::Generated,
    }
}

fn encoded(certificates: &[Certificate]) -> Vec<String> {
    certificates
        .iter()
        .map(|certificate| base64(certificate.der()))
        .collect()
}

impl Merchant {
    fn view(&self) -> MerchantView {
        let record = &self.record;
        let keys = record.keys.iter().map(|held| {
            let certified = self.certified.iter().find(|known| known.key == held.key);
            ApiKeyView {
                key: held.key.to_string(),
                id: held.key.id.clone(),
                origin: held.origin,
                request: held.request.clone(),
                serial: certified.map(|known| known.serial.clone()),
                valid_from: certified.map(|known| known.from.to_string()),
                valid_until: certified.map(|known| known.until.to_string()),
            }
        });
        MerchantView {
            merchant: record.merchant.clone(),
            keys: keys.collect(),
            sealing_key: record.sealing.jwk.clone(),
            service: record.link.as_ref().map(|link| link.service.to_string()),
            account: record.link.as_ref().map(|link| link.account.to_string()),
            rules: record.rules,
            secrets: [SecretKind::Api, SecretKind::ApiV3]
                .into_iter()
                .filter_map(|kind| record.secret(kind).map(|held| held.view(kind)))
                .collect(),
            platform_keys: record
                .platform
                .iter()
                .map(|key| PlatformKeyView {
                    id: key.id.clone(),
                    valid_from: key.from.map(|at| at.to_string()),
                    valid_until: key.until.map(|at| at.to_string()),
                })
                .collect(),
            authorities: record.authorities.len(),
        }
    }
}

impl Sealed {
    fn view(&self, kind: SecretKind) -> SecretView {
        SecretView {
            kind,
            set_at: self.set_at.to_string(),
            version: self.version,
            overlap_until: self.before.as_ref().map(|before| before.until.to_string()),
        }
    }
}
