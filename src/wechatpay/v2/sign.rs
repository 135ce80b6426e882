//! Signing and verifying under the merchant's rules.

use aws_lc_rs::{constant_time, hmac};
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::fields::{Fields, SIGN};
use crate::wechatpay::names::upper_hex;
use crate::wechatpay::secret::ApiV2Secret;

/// Why a message was not signed or not verified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The message names another sign type than the rules.
    #[error("field {name} does not say {pinned}, the sign type of this merchant")]
    SignType {
        /// The field.
        name: &'static str,
        /// What it must say.
        pinned: &'static str,
    },
    /// A value could be read as further fields; see [`Embedded`].
    #[error("the value of field {name} could be read as further fields")]
    Embedded {
        /// The field.
        name: String,
    },
    /// There is no `sign`: an answer that says failure, or of a path that is not signed.
    #[error("the message has no signature")]
    Missing,
    /// The `sign` is not of this merchant's secret over these fields.
    #[error("the signature does not verify")]
    Signature,
}

/// How a merchant's messages are signed, in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
pub enum SignType {
    /// MD5 over the string and the secret.
    #[serde(rename = "MD5")]
    Md5,
    /// HMAC-SHA256, the secret being key and suffix.
    #[serde(rename = "HMAC-SHA256")]
    HmacSha256,
}

impl SignType {
    /// As it stands in `sign_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Md5 => "MD5",
            Self::HmacSha256 => "HMAC-SHA256",
        }
    }
}

/// What stands between the fields and the secret.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Suffix {
    /// `&key=`: everything but the next.
    #[default]
    Key,
    /// `&secret=`: the second signature of red packets sent through WeCom.
    WorkWeixin,
}

/// What to do with a value that could be read as further fields.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Embedded {
    /// The message is refused, so that a signature stands for one message.
    #[default]
    Refuse,
    /// It is signed or verified all the same: for merchants whose `attach` is of the form
    /// `x=1&y=2`, as the interface allows.
    Allow,
}

/// A merchant's rules, set once and never taken from a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rules {
    /// The sign type.
    pub sign_type: SignType,
    /// The suffix.
    #[serde(default)]
    pub suffix: Suffix,
    /// Values that could be read as further fields.
    #[serde(default)]
    pub embedded: Embedded,
}

/// Fields whose signature verified.
#[must_use]
#[derive(Debug, Clone, Copy)]
pub struct Verified<'a>(&'a Fields);

impl<'a> Verified<'a> {
    /// The fields, `sign` included.
    pub fn fields(&self) -> &'a Fields {
        self.0
    }
}

impl Rules {
    /// These rules with nothing out of the ordinary.
    pub fn new(sign_type: SignType) -> Self {
        Self {
            sign_type,
            suffix: Suffix::default(),
            embedded: Embedded::default(),
        }
    }

    /// The `sign` of a message: upper-case hexadecimal. A `sign` that is there is not read.
    pub fn sign(&self, fields: &Fields, secret: &ApiV2Secret) -> Result<String, SignError> {
        self.check(fields)?;
        Ok(self.compute(fields, secret))
    }

    /// Checks the `sign` of a message. The comparison takes the same time wherever the texts
    /// differ.
    pub fn verify<'a>(
        &self,
        fields: &'a Fields,
        secret: &ApiV2Secret,
    ) -> Result<Verified<'a>, SignError> {
        self.check(fields)?;
        let sign = fields
            .get(SIGN)
            .filter(|sign| !sign.is_empty())
            .ok_or(SignError::Missing)?;
        let expected = Zeroizing::new(self.compute(fields, secret));
        constant_time::verify_slices_are_equal(expected.as_bytes(), sign.as_bytes())
            .map(|()| Verified(fields))
            .map_err(|_| SignError::Signature)
    }

    fn check(&self, fields: &Fields) -> Result<(), SignError> {
        let pinned = self.sign_type.as_str();
        for name in ["sign_type", "signType"] {
            if fields
                .get(name)
                .is_some_and(|value| !value.is_empty() && value != pinned)
            {
                return Err(SignError::SignType { name, pinned });
            }
        }
        match fields.embedded() {
            Some(name) if self.embedded == Embedded::Refuse => Err(SignError::Embedded {
                name: name.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn compute(&self, fields: &Fields, secret: &ApiV2Secret) -> String {
        let mut text = fields.canonical();
        text.push_str(match self.suffix {
            Suffix::Key => "&key=",
            Suffix::WorkWeixin => "&secret=",
        });
        text.push_str(secret.expose());
        match self.sign_type {
            SignType::Md5 => upper_hex(&Md5::digest(text.as_bytes())),
            SignType::HmacSha256 => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
                upper_hex(hmac::sign(&key, text.as_bytes()).as_ref())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sample `v2-easywechat-jsapi-md5`: its mock secret is too short for the public way in.
    #[test]
    fn the_jsapi_sample_of_easywechat() {
        let samples: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/wechatpay.json")).unwrap();
        let sample = samples["vectors"]
            .as_array()
            .unwrap()
            .iter()
            .find(|sample| sample["name"] == "v2-easywechat-jsapi-md5")
            .unwrap();
        let inputs = &sample["inputs"];
        let fields = Fields::new(
            inputs["params"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())),
        )
        .unwrap();
        let secret = ApiV2Secret::unchecked(inputs["key"].as_str().unwrap());
        assert_eq!(
            Rules::new(SignType::Md5).sign(&fields, &secret).unwrap(),
            sample["expected"].as_str().unwrap()
        );
    }
}
