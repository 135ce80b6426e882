//! What is done for a merchant's server, one function for each kind of use.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::record::{Certified, Merchant};
use super::{Ask, Leave, MerchantError, Merchants, Missing, memory::Names};
use crate::base::encoding::{base64, hex, sha256};
use crate::base::jwe::Jwe;
use crate::base::key::{Scheme, Signature};
use crate::base::secret::{SecretBytes, SecretText};
use crate::device::DeviceError;
use crate::policy::{Caller, Permit, WechatPayUse};
use crate::statement::SecretKind;
use crate::statement::sealed_secret::{self, Plain};
use crate::wechatpay::v2::{self, Fields, RefundError, SignError};
use crate::wechatpay::v3::{
    Answer, Delivery, Field, FieldError, Method, Notification, NotificationError, OpenError,
    PayClient, PaySign, PlatformError, PlatformKeys, RequestMessage, SignatureHeaders, Target,
};
use crate::wechatpay::{
    ApiV2Secret, ApiV3Key, AppId, CertificateSerial, InvalidSecret, Nonce, PlatformKeyId, PrepayId,
};

/// The parts of a request to the platform.
#[derive(Debug)]
pub struct RequestToSign {
    /// The method.
    pub method: Method,
    /// Path and query as sent.
    pub target: Target,
    /// The body as sent.
    pub body: Vec<u8>,
    /// When; now if absent.
    pub timestamp: Option<Timestamp>,
    /// The nonce; a random one if absent.
    pub nonce: Option<Nonce>,
}

/// A signed request.
#[derive(Debug)]
pub struct Authorization {
    /// The value of the `Authorization` header.
    pub header: String,
    /// The serial of the API certificate in it.
    pub serial: CertificateSerial,
    /// The timestamp in it, Unix seconds.
    pub timestamp: i64,
    /// The nonce in it.
    pub nonce: Nonce,
    /// The signature in it, base64.
    pub signature: String,
}

/// A payment that a client is to start.
#[derive(Debug)]
pub struct PaymentToStart {
    /// Where.
    pub client: PayClient,
    /// The app.
    pub app: AppId,
    /// What the order is prepared under.
    pub prepay: PrepayId,
    /// When; now if absent.
    pub timestamp: Option<Timestamp>,
    /// The nonce; a random one if absent.
    pub nonce: Option<Nonce>,
}

/// The parameters that start a payment.
#[derive(Debug)]
pub struct PaySigned {
    /// Names and values as the client takes them.
    pub parameters: Vec<(&'static str, String)>,
    /// The serial of the certificate whose key signed.
    pub serial: CertificateSerial,
}

/// An answer or callback that the platform signed.
#[derive(Debug)]
pub struct Checked {
    /// The key it was signed with.
    pub key: PlatformKeyId,
}

/// A callback, verified and opened.
#[derive(Debug)]
pub struct Opened {
    /// The notification's id.
    pub id: String,
    /// What happened.
    pub event_type: String,
    /// The content, JSON as the platform wrote it.
    pub resource: SecretText,
    /// Whether it was there before.
    pub delivery: Delivery,
}

/// Fields encrypted for the platform.
#[derive(Debug)]
pub struct EncryptedFields {
    /// To be sent as `Wechatpay-Serial`.
    pub key: PlatformKeyId,
    /// Base64, in the order given.
    pub fields: Vec<String>,
}

/// The platform keys after a certificates answer.
#[derive(Debug)]
pub struct CertificatesTaken {
    /// All that are held.
    pub held: Vec<PlatformKeyId>,
    /// Those that are new.
    pub new: Vec<PlatformKeyId>,
}

/// A message of version 2.
#[derive(Debug)]
pub enum V2Message {
    /// Its fields.
    Fields(Fields),
    /// Its XML.
    Xml(Vec<u8>),
}

impl V2Message {
    fn fields(self) -> Result<Fields, MerchantError> {
        match self {
            Self::Fields(fields) => Ok(fields),
            Self::Xml(xml) => Ok(Fields::from_xml(&xml)?),
        }
    }
}

/// A signed message of version 2.
#[derive(Debug)]
pub struct SignedV2 {
    /// The signature.
    pub sign: String,
    /// The message with it, as the XML that the interface takes.
    pub xml: String,
}

/// The most fields in one call; each that is decrypted is a turn of the token.
pub(super) const MOST_FIELDS: usize = 32;

impl Merchants {
    /// Signs a request: the value of its `Authorization` header.
    pub async fn authorization(
        &self,
        ask: &Ask,
        request: RequestToSign,
    ) -> Result<Authorization, MerchantError> {
        let r#use = WechatPayUse::Request;
        let result = self.sign_request(ask, r#use, request).await;
        self.concluded(ask, r#use, result)
    }

    async fn sign_request(
        &self,
        ask: &Ask,
        r#use: WechatPayUse,
        request: RequestToSign,
    ) -> Result<Authorization, MerchantError> {
        let merchant = self.find(ask)?;
        let now = self.0.clock.now();
        let (certified, leave) = self.leave_to_sign(ask, &merchant, r#use, now)?;
        let at = request.timestamp.unwrap_or(now);
        let nonce = request.nonce.unwrap_or_else(Nonce::random);
        let message = RequestMessage::new(
            request.method,
            &request.target,
            at,
            nonce.clone(),
            &request.body,
            now,
        )?;
        // The query may name people; the path says what was asked for.
        let path = request.target.as_str().split('?').next();
        let facts = json!({
            "serial": certified.serial,
            "method": request.method.as_str(),
            "path": path,
            "body_sha256": hex(&sha256(&request.body)),
            "timestamp": at.as_second(),
            "nonce": nonce,
        });
        let signature = self
            .sign_on_record(ask, r#use, leave, facts, message.to_sign())
            .await?;
        Ok(Authorization {
            header: message.authorization(&ask.merchant, &certified.serial, &signature),
            serial: certified.serial.clone(),
            timestamp: at.as_second(),
            nonce,
            signature: base64(signature.as_bytes()),
        })
    }

    /// Signs the parameters that start a payment.
    pub async fn pay_sign(
        &self,
        ask: &Ask,
        payment: PaymentToStart,
    ) -> Result<PaySigned, MerchantError> {
        let r#use = WechatPayUse::Start;
        let result = self.sign_payment(ask, r#use, payment).await;
        self.concluded(ask, r#use, result)
    }

    async fn sign_payment(
        &self,
        ask: &Ask,
        r#use: WechatPayUse,
        payment: PaymentToStart,
    ) -> Result<PaySigned, MerchantError> {
        let merchant = self.find(ask)?;
        let now = self.0.clock.now();
        let (certified, leave) = self.leave_to_sign(ask, &merchant, r#use, now)?;
        let at = payment.timestamp.unwrap_or(now);
        let nonce = payment.nonce.unwrap_or_else(Nonce::random);
        let facts = json!({
            "serial": certified.serial,
            "client": payment.client,
            "appid": payment.app,
            "prepay_id": payment.prepay,
            "timestamp": at.as_second(),
            "nonce": nonce,
        });
        let message = PaySign::new(payment.client, payment.app, payment.prepay, at, nonce, now)?;
        let signature = self
            .sign_on_record(ask, r#use, leave, facts, message.to_sign())
            .await?;
        Ok(PaySigned {
            parameters: message.parameters(&ask.merchant, &signature),
            serial: certified.serial.clone(),
        })
    }

    /// The certified key that signs now, and leave to use it.
    fn leave_to_sign<'m>(
        &self,
        ask: &Ask,
        merchant: &'m Merchant,
        r#use: WechatPayUse,
        now: Timestamp,
    ) -> Result<(&'m Certified, Leave), MerchantError> {
        let certified = merchant.signing(now);
        // Policy first: whoever may not sign does not learn that nothing could be signed either.
        let key = certified
            .as_ref()
            .map_or(merchant.any_key(), |known| &known.key);
        let leave = self.authorise(ask, key, r#use)?;
        Ok((certified?, leave))
    }

    /// Signs on the token while the record becomes durable; without the record nobody gets the
    /// signature.
    async fn sign_on_record(
        &self,
        ask: &Ask,
        r#use: WechatPayUse,
        leave: Leave,
        facts: Value,
        to_sign: &[u8],
    ) -> Result<Signature, MerchantError> {
        let pending = self.note(ask, r#use, &leave.rule, facts)?;
        let signing = self.0.devices.sign(leave.permit, Scheme::Rs256, to_sign);
        let (durable, signature) = tokio::join!(pending.durable(), signing);
        durable?;
        Ok(signature?)
    }

    /// Checks that an answer or callback is the platform's, and from now.
    pub async fn check(
        &self,
        ask: &Ask,
        headers: &SignatureHeaders,
        body: &[u8],
    ) -> Result<Checked, MerchantError> {
        let r#use = WechatPayUse::Check;
        let work = async {
            let merchant = self.find(ask)?;
            let leave = self.authorise(ask, merchant.any_key(), r#use)?;
            let _ = merchant
                .platform
                .verify(headers, body, self.0.clock.now())?;
            let facts = json!({
                "key": headers.key(),
                "body_sha256": hex(&sha256(body)),
            });
            self.note(ask, r#use, &leave.rule, facts)?.durable().await?;
            Ok(Checked {
                key: headers.key().clone(),
            })
        };
        self.concluded(ask, r#use, work.await)
    }

    /// Verifies a callback, opens it, and tells whether it was there before.
    pub async fn open_notification(
        &self,
        ask: &Ask,
        headers: &SignatureHeaders,
        body: &[u8],
    ) -> Result<Opened, MerchantError> {
        let r#use = WechatPayUse::Notification;
        let work = async {
            let merchant = self.find(ask)?;
            let Leave { permit, rule } =
                self.authorise(ask, &merchant.record.sealing.key, r#use)?;
            let now = self.0.clock.now();
            let verified = merchant.platform.verify(headers, body, now)?;
            let notification =
                Notification::parse(verified).map_err(|_| MerchantError::Malformed {
                    what: "the notification is malformed",
                })?;
            let resource = self
                .with_secret(ask, &merchant, r#use, permit, |key| {
                    notification.open(key).map_err(|error| match error {
                        NotificationError::Open(error) => opening(error),
                        NotificationError::Malformed => MerchantError::Closed,
                    })
                })
                .await?;
            let resource = text(&resource)?;
            let names = Names::new(&ask.merchant, verified.fingerprint(), notification.id());
            let delivery = self.0.memory.deliver(names, now)?;
            let facts = json!({
                "key": headers.key(),
                "event_type": notification.event_type(),
                "message": hex(&names.message),
                "event": hex(&names.event),
            });
            let recorded = async {
                self.note(ask, r#use, &rule, facts)?.durable().await?;
                Ok::<_, MerchantError>(())
            };
            if let Err(error) = recorded.await {
                self.0.memory.take_back(names, delivery);
                return Err(error);
            }
            Ok(Opened {
                id: notification.id().to_owned(),
                event_type: notification.event_type().to_owned(),
                resource,
                delivery,
            })
        };
        self.concluded(ask, r#use, work.await)
    }

    /// Encrypts fields for the platform.
    pub async fn encrypt_fields(
        &self,
        ask: &Ask,
        fields: &[SecretText],
    ) -> Result<EncryptedFields, MerchantError> {
        let r#use = WechatPayUse::Check;
        let work = async {
            let merchant = self.find(ask)?;
            let leave = self.authorise(ask, merchant.any_key(), r#use)?;
            at_most(fields.len())?;
            let key = merchant.platform.encrypting(self.0.clock.now()).ok_or(
                MerchantError::NotReady {
                    merchant: ask.merchant.clone(),
                    missing: Missing::EncryptionKey,
                },
            )?;
            let encrypted = fields
                .iter()
                .map(|field| key.encrypt_field(field))
                .collect::<Result<_, _>>()
                .map_err(|error| match error {
                    FieldError::TooLong { max } => MerchantError::FieldTooLong { max },
                    _ => MerchantError::Closed,
                })?;
            let facts = json!({ "key": key.id(), "encrypted": fields.len() });
            self.note(ask, r#use, &leave.rule, facts)?.durable().await?;
            Ok(EncryptedFields {
                key: key.id().clone(),
                fields: encrypted,
            })
        };
        self.concluded(ask, r#use, work.await)
    }

    /// Decrypts fields that the platform encrypted for the merchant's certificate, on the token.
    pub async fn decrypt_fields(
        &self,
        ask: &Ask,
        fields: &[String],
    ) -> Result<Vec<SecretText>, MerchantError> {
        let r#use = WechatPayUse::Decrypt;
        let work = async {
            let merchant = self.find(ask)?;
            let leave = self.authorise(ask, merchant.any_key(), r#use)?;
            at_most(fields.len())?;
            let parsed = fields
                .iter()
                .map(|field| Field::parse(field))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| MerchantError::Malformed {
                    what: "an encrypted field is malformed",
                })?;
            merchant.signing(self.0.clock.now())?;
            let facts = json!({ "decrypted": fields.len() });
            self.note(ask, r#use, &leave.rule, facts)?.durable().await?;
            let mut plain = Vec::with_capacity(parsed.len());
            for field in parsed {
                plain.push(match field {
                    Field::Empty => SecretText::new(String::new()),
                    Field::Sealed(ciphertext) => {
                        let bytes = self
                            .decrypt_field(ask, &merchant, ciphertext.as_bytes())
                            .await?;
                        // What a wrong key makes of it and what is no text are not told apart.
                        ciphertext
                            .finish(&bytes)
                            .map_err(|_| MerchantError::Closed)?
                    }
                });
            }
            Ok(plain)
        };
        self.concluded(ask, r#use, work.await)
    }

    /// With the key of the newest certificate; while one is being replaced the platform may still
    /// encrypt for the one before.
    async fn decrypt_field(
        &self,
        ask: &Ask,
        merchant: &Merchant,
        ciphertext: &[u8],
    ) -> Result<SecretBytes, MerchantError> {
        for certified in &merchant.certified {
            let permit = self
                .authorise(ask, &certified.key, WechatPayUse::Decrypt)?
                .permit;
            match self.0.devices.decrypt(permit, ciphertext).await {
                Err(DeviceError::Undecryptable { .. }) => {}
                result => return Ok(result?),
            }
        }
        Err(MerchantError::Closed)
    }

    /// Takes a `GET /v3/certificates` answer. The first one, and one that a local administrator
    /// says to be (`anew`), is verified with what it brings; any other with a key held.
    pub async fn take_certificates(
        &self,
        ask: &Ask,
        headers: &SignatureHeaders,
        body: &[u8],
        anew: bool,
    ) -> Result<CertificatesTaken, MerchantError> {
        let r#use = WechatPayUse::Platform;
        let work = async {
            let _changing = self.0.changing.lock().await;
            let merchant = self.find(ask)?;
            let Leave { permit, rule } =
                self.authorise(ask, &merchant.record.sealing.key, r#use)?;
            let now = self.0.clock.now();
            if merchant.authorities.is_empty() {
                return Err(MerchantError::NotReady {
                    merchant: ask.merchant.clone(),
                    missing: Missing::Authority,
                });
            }
            let anew = anew && matches!(ask.caller, Caller::Unix { .. });
            let answer = Answer { headers, body };
            let held = &merchant.platform;
            let keys = self
                .with_secret(ask, &merchant, r#use, permit, |key| {
                    let anchors = &merchant.authorities;
                    Ok(if anew || held.is_empty(now) {
                        let brought = PlatformKeys::bootstrap(answer, key, anchors, now)?;
                        let kept = held.iter().filter(|known| now < known.until());
                        PlatformKeys::kept(kept.chain(brought.iter()).cloned())?
                    } else {
                        held.refresh(answer, key, anchors, now)?
                    })
                })
                .await?;
            let ids = |keys: &PlatformKeys| keys.iter().map(|key| key.id().clone()).collect();
            let all: Vec<PlatformKeyId> = ids(&keys);
            let new = all
                .iter()
                .filter(|id| held.get(id).is_none())
                .cloned()
                .collect();
            let facts = json!({ "key": headers.key(), "held": all, "new": new });
            self.note(ask, r#use, &rule, facts)?.durable().await?;
            let mut record = merchant.record.clone();
            record.keep_platform(&keys);
            self.publish(&ask.merchant, Some(record)).await?;
            Ok(CertificatesTaken { held: all, new })
        };
        self.concluded(ask, r#use, work.await)
    }

    /// Signs a message of version 2.
    pub async fn sign_v2(&self, ask: &Ask, message: V2Message) -> Result<SignedV2, MerchantError> {
        let r#use = WechatPayUse::V2Sign;
        let work = async {
            let merchant = self.find(ask)?;
            let Leave { permit, rule } =
                self.authorise(ask, &merchant.record.sealing.key, r#use)?;
            let fields = message.fields()?;
            let facts = json!({ "fields_sha256": hex(&sha256(fields.canonical().as_bytes())) });
            let pending = self.note(ask, r#use, &rule, facts)?;
            let rules = merchant.record.rules;
            // The platform knows the current secret only.
            let signing =
                self.with_secret(ask, &merchant, r#use, permit, |secret: &ApiV2Secret| {
                    Ok(rules.sign(&fields, secret)?)
                });
            let (durable, sign) = tokio::join!(pending.durable(), signing);
            durable?;
            let sign = sign?;
            let mut signed = Fields::default();
            for (name, value) in fields.iter().filter(|(name, _)| *name != "sign") {
                signed.insert(name.to_owned(), value.to_owned())?;
            }
            signed.insert("sign".to_owned(), sign.clone())?;
            Ok(SignedV2 {
                sign,
                xml: signed.to_xml(),
            })
        };
        self.concluded(ask, r#use, work.await)
    }

    /// Checks a message of version 2; answers its fields.
    pub async fn check_v2(&self, ask: &Ask, message: V2Message) -> Result<Fields, MerchantError> {
        let r#use = WechatPayUse::V2Check;
        let work = async {
            let merchant = self.find(ask)?;
            let Leave { permit, rule } =
                self.authorise(ask, &merchant.record.sealing.key, r#use)?;
            let fields = message.fields()?;
            let rules = merchant.record.rules;
            self.with_secret(ask, &merchant, r#use, permit, |secret: &ApiV2Secret| {
                let _ = rules.verify(&fields, secret)?;
                Ok(())
            })
            .await?;
            let facts = json!({ "fields_sha256": hex(&sha256(fields.canonical().as_bytes())) });
            self.note(ask, r#use, &rule, facts)?.durable().await?;
            Ok(fields)
        };
        self.concluded(ask, r#use, work.await)
    }

    /// Opens the content of a refund notification of version 2, which nothing authenticates.
    pub async fn open_refund(&self, ask: &Ask, req_info: &str) -> Result<Fields, MerchantError> {
        let r#use = WechatPayUse::V2Check;
        let work = async {
            let merchant = self.find(ask)?;
            let Leave { permit, rule } =
                self.authorise(ask, &merchant.record.sealing.key, r#use)?;
            let fields = self
                .with_secret(ask, &merchant, r#use, permit, |secret| {
                    v2::open_refund(req_info, secret).map_err(|error| match error {
                        RefundError::Ciphertext => MerchantError::Malformed {
                            what: "the encrypted refund content is malformed",
                        },
                        RefundError::Closed => MerchantError::Closed,
                    })
                })
                .await?;
            let facts = json!({ "refund_sha256": hex(&sha256(req_info.as_bytes())) });
            self.note(ask, r#use, &rule, facts)?.durable().await?;
            Ok(fields)
        };
        self.concluded(ask, r#use, work.await)
    }

    /// Opens the current secret and tries; where it does not fit and the one before is in its
    /// overlap, opens that by a second permit and tries again.
    async fn with_secret<S: ApiSecret, T>(
        &self,
        ask: &Ask,
        merchant: &Merchant,
        r#use: WechatPayUse,
        permit: Permit,
        attempt: impl Fn(&S) -> Result<T, MerchantError>,
    ) -> Result<T, MerchantError> {
        let sealed = merchant
            .record
            .secret(S::KIND)
            .ok_or(MerchantError::NoSecret {
                merchant: ask.merchant.clone(),
                kind: S::KIND,
            })?;
        let kid = &merchant.record.sealing.jwk.kid;
        let current = self.unseal(permit, kid, &sealed.jwe).await?;
        let first = attempt(&current);
        let before = sealed
            .before
            .as_ref()
            .filter(|before| self.0.clock.now() < before.until);
        match (first, before) {
            (Err(error), Some(before)) if is_other_secret(&error) => {
                let key = &merchant.record.sealing.key;
                let permit = self.authorise(ask, key, r#use)?.permit;
                attempt(&self.unseal(permit, kid, &before.jwe).await?)
            }
            (first, _) => first,
        }
    }

    /// Opens one sealed secret.
    async fn unseal<S: ApiSecret>(
        &self,
        permit: Permit,
        kid: &str,
        jwe: &str,
    ) -> Result<S, MerchantError> {
        let plain = self.unseal_any(permit, kid, jwe).await?;
        if plain.kind == S::KIND {
            Ok(S::read(plain.secret)?)
        } else {
            Err(MerchantError::OtherKind)
        }
    }

    /// Opens one sealed secret and tells which it is.
    pub(super) async fn unseal_any(
        &self,
        permit: Permit,
        kid: &str,
        jwe: &str,
    ) -> Result<Plain, MerchantError> {
        use crate::base::jwe::JweError;
        let jwe = Jwe::parse(jwe, sealed_secret::SEALED_TYPE, sealed_secret::MAX)?;
        if jwe.kid() != kid {
            return Err(JweError::Key.into());
        }
        let opened = self.0.devices.decrypt(permit, jwe.encrypted_key()).await;
        let content_key = match opened {
            Err(DeviceError::Undecryptable { .. }) => return Err(JweError::Closed.into()),
            result => result?,
        };
        Ok(Plain::parse(&jwe.open(&content_key)?)?)
    }
}

/// An API secret as a call uses it.
trait ApiSecret: Sized {
    const KIND: SecretKind;
    fn read(text: SecretText) -> Result<Self, InvalidSecret>;
}

impl ApiSecret for ApiV2Secret {
    const KIND: SecretKind = SecretKind::Api;
    fn read(text: SecretText) -> Result<Self, InvalidSecret> {
        Self::new(text)
    }
}

impl ApiSecret for ApiV3Key {
    const KIND: SecretKind = SecretKind::ApiV3;
    fn read(text: SecretText) -> Result<Self, InvalidSecret> {
        Self::new(text)
    }
}

impl Merchant {
    /// A key that stands for the merchant where policy is asked before it is known which is used.
    fn any_key(&self) -> &crate::base::pkcs11::KeyRef {
        match self.certified.first() {
            Some(certified) => &certified.key,
            None => &self.record.sealing.key,
        }
    }

    /// The key to sign with at `now`.
    fn signing(&self, now: Timestamp) -> Result<&Certified, MerchantError> {
        let not_ready = |missing| MerchantError::NotReady {
            merchant: self.record.merchant.clone(),
            missing,
        };
        if self.certified.is_empty() {
            return Err(not_ready(Missing::Certificate));
        }
        self.certified
            .iter()
            .find(|known| known.from <= now && now < known.until)
            .ok_or_else(|| not_ready(Missing::ValidCertificate))
    }
}

/// Whether the secret before the current one may fit.
fn is_other_secret(error: &MerchantError) -> bool {
    matches!(
        error,
        MerchantError::Closed
            | MerchantError::Sign(SignError::Signature)
            | MerchantError::Platform(PlatformError::Open(OpenError::Unauthentic))
    )
}

fn opening(error: OpenError) -> MerchantError {
    let what = match error {
        OpenError::Unauthentic => return MerchantError::Closed,
        OpenError::Algorithm => "the content is not encrypted with AEAD_AES_256_GCM",
        OpenError::Nonce => "the nonce of the content is not 12 bytes",
        OpenError::Ciphertext => "the encrypted content is malformed",
    };
    MerchantError::Malformed { what }
}

fn text(bytes: &SecretBytes) -> Result<SecretText, MerchantError> {
    std::str::from_utf8(bytes.expose())
        .map(|text| SecretText::new(text.to_owned()))
        .map_err(|_| MerchantError::Closed)
}

fn at_most(fields: usize) -> Result<(), MerchantError> {
    if fields > MOST_FIELDS {
        return Err(MerchantError::TooMany {
            what: "fields in one call",
            max: MOST_FIELDS,
        });
    }
    Ok(())
}
