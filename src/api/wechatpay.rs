//! What the routes under `/v1/wechatpay` take and give, shared by server and client.
//!
//! Bytes that are signed or verified are given as they travel: as text in `body`, or in base64 in
//! `body_base64` where they are no text or must not be touched by a JSON library. Unknown fields
//! of a request are refused.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, Type};

use super::problem::{Code, Problem};
use crate::base::encoding::from_base64;
use crate::base::ids::AccountId;
use crate::base::secret::{SecretText, exposed};
use crate::merchants::MerchantView;
use crate::wechatpay::v2::Rules;
use crate::wechatpay::v3::PayClient;
use crate::wechatpay::{AppId, CertificateSerial, MerchantId, Nonce, PlatformKeyId, PrepayId};

/// Names and values of a JSON object, in its order, repeated names included: a repetition is for
/// the parser behind to refuse, not for a map to hide.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs(pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

impl Serialize for Pairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl utoipa::PartialSchema for Pairs {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some(
                "Names and values; a name that appears twice is refused.",
            ))
            .additional_properties(Some(AdditionalProperties::RefOr(
                ObjectBuilder::new().schema_type(Type::String).into(),
            )))
            .into()
    }
}

impl ToSchema for Pairs {}

/// A request to be signed. Path and query, timestamp, nonce and body are put together here; a
/// string that is ready to be signed is not taken.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignRequest {
    /// The merchant.
    pub merchant: MerchantId,
    /// `GET`, `POST`, `PUT`, `PATCH` or `DELETE`.
    pub method: String,
    /// Path and query exactly as sent, percent-encoding included.
    pub target: String,
    /// The body as sent; empty if absent. For an upload, the `meta` part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The same in base64, in place of `body`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// Unix seconds, less than 300 from now; now if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<i64>,
    /// The nonce; a random one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Nonce>,
}

/// A signed request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedRequest {
    /// The value of the `Authorization` header.
    pub authorization: String,
    /// The serial of the API certificate in it.
    pub serial: CertificateSerial,
    /// The timestamp in it, Unix seconds.
    pub timestamp: i64,
    /// The nonce in it.
    pub nonce: Nonce,
    /// The signature in it, base64.
    pub signature: String,
}

/// A payment to be started.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignPayment {
    /// The merchant.
    pub merchant: MerchantId,
    /// Where it is started.
    pub client: PayClient,
    /// The official account, mini program or app.
    pub appid: AppId,
    /// What the order is prepared under, without `prepay_id=`.
    pub prepay_id: PrepayId,
    /// Unix seconds, less than 300 from now; now if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<i64>,
    /// The nonce; a random one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Nonce>,
}

/// The parameters that start a payment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedPayment {
    /// As the client takes them, under the client's own names.
    pub parameters: BTreeMap<String, String>,
    /// The serial of the API certificate whose key signed.
    pub serial: CertificateSerial,
}

/// An answer or callback of the platform.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Received {
    /// The merchant.
    pub merchant: MerchantId,
    /// Its HTTP headers; those other than `Wechatpay-…` are passed over.
    pub headers: Pairs,
    /// Its body as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The same in base64, in place of `body`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
}

/// A certificates answer of the platform.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReceivedCertificates {
    /// The merchant.
    pub merchant: MerchantId,
    /// The answer's HTTP headers.
    pub headers: Pairs,
    /// Its body as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The same in base64, in place of `body`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// Verify it with what it brings although keys are held: where all of them were lost or
    /// replaced. Counts on the control socket only.
    #[serde(default)]
    pub anew: bool,
}

/// A body that is the platform's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verified {
    /// The key it was signed with, `Wechatpay-Serial`.
    pub key: PlatformKeyId,
}

/// A callback, verified and opened.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct OpenedNotification {
    /// The notification's id.
    pub id: String,
    /// What happened, such as `TRANSACTION.SUCCESS`.
    pub event_type: String,
    /// The content: JSON text as the platform wrote it.
    pub resource: String,
    /// Whether the event was delivered before, and when first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_delivered_at: Option<String>,
}

/// Fields to be encrypted for the platform.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EncryptFields {
    /// The merchant.
    pub merchant: MerchantId,
    /// At most 32 texts, each of at most 214 bytes; an empty one stays empty.
    #[serde(serialize_with = "exposed")]
    #[schema(value_type = Vec<String>)]
    pub fields: Vec<SecretText>,
}

/// Fields encrypted for the platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EncryptedFields {
    /// To be sent along as `Wechatpay-Serial`.
    pub serial: PlatformKeyId,
    /// Base64, in the order given.
    pub fields: Vec<String>,
}

/// Fields that the platform encrypted.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DecryptFields {
    /// The merchant.
    pub merchant: MerchantId,
    /// At most 32, base64; an empty one stays empty.
    pub fields: Vec<String>,
}

/// Fields as they were before encryption.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct DecryptedFields {
    /// In the order given.
    pub fields: Vec<String>,
}

/// A message of version 2, as its fields or as its XML.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageV2 {
    /// The merchant.
    pub merchant: MerchantId,
    /// Its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Pairs>,
    /// Its XML as it came or is to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The same in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
}

/// A signed message of version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedMessageV2 {
    /// The value of `sign`.
    pub sign: String,
    /// The whole message as XML, ready to be sent.
    pub body: String,
}

/// The fields of a message of version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldsV2 {
    /// Names and values.
    pub fields: BTreeMap<String, String>,
}

/// The encrypted content of a refund notification of version 2.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenRefund {
    /// The merchant.
    pub merchant: MerchantId,
    /// `req_info` as it came.
    pub req_info: String,
}

/// A merchant to be added.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddMerchant {
    /// Its number.
    pub merchant: MerchantId,
    /// The token for its keys: a PKCS#11 URI (RFC 7512); may be absent where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// A private key to import (PEM); the token generates one if absent, which is better.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "exposed"
    )]
    #[schema(value_type = Option<String>, format = Password)]
    pub private_key: Option<SecretText>,
    /// How its version 2 messages are signed.
    pub rules: Rules,
    /// The account service whose secrets it takes, `https://host[:port]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The account there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Issuers of platform certificates to trust, PEM.
    #[serde(default)]
    pub authorities: Vec<String>,
}

/// A further key for a merchant.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddMerchantKey {
    /// The token; may be absent where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// A private key to import (PEM).
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "exposed"
    )]
    #[schema(value_type = Option<String>, format = Password)]
    pub private_key: Option<SecretText>,
}

/// All merchants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MerchantList {
    /// By number.
    pub merchants: Vec<MerchantView>,
}

/// An API certificate.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstallMerchantCertificate {
    /// PEM.
    pub certificate: String,
}

/// A platform key that a person vouches for: a public key with its id, or a certificate.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PinPlatformKey {
    /// `PUB_KEY_ID_…`, with `public_key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<PlatformKeyId>,
    /// PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// The end of a platform key.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetirePlatformKey {
    /// When, RFC 3339; at once if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// Issuers of platform certificates.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrustAuthorities {
    /// PEM, one certificate each; at most 8.
    pub authorities: Vec<String>,
}

/// The platform keys after a certificates answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlatformKeysTaken {
    /// All that are held.
    pub held: Vec<PlatformKeyId>,
    /// Those that are new.
    pub new: Vec<PlatformKeyId>,
}

/// A sealed secret: one of the two.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SealedSecret {
    /// A JWE for a merchant's sealing key, made at this computer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwe: Option<String>,
    /// With `jwe`: for how many seconds the secret before is still tried. At most 604,800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap_seconds: Option<u32>,
    /// What an account service signed, with a JWE in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<String>,
}

/// Which account service is to be asked for secrets.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AskForSecrets {
    /// Its origin, `https://host[:port]`.
    pub service: String,
}

/// The bytes of `body` or `body_base64`; none if both are absent.
pub(super) fn body_bytes(
    body: Option<String>,
    body_base64: Option<String>,
) -> Result<Option<Vec<u8>>, Problem> {
    match (body, body_base64) {
        (Some(_), Some(_)) => Err(Problem::new(
            Code::Malformed,
            "body and body_base64 are both given",
        )),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(text)) => from_base64(text.as_bytes())
            .map(Some)
            .ok_or_else(|| Problem::new(Code::Malformed, "body_base64 is not base64")),
        (None, None) => Ok(None),
    }
}
