//! JWS in compact form and JWK sets (RFC 7515, RFC 7517), as far as our formats use them.
//!
//! A header of ours always begins with `{"typ":"…"`, which separates the formats from each other
//! before anything is parsed. Reading is strict: base64url in its one spelling, three parts,
//! nothing around them.

use serde::{Deserialize, Serialize};

use super::encoding::{base64url, from_base64url, sha256};
use super::key::{Curve, KeyFamily, PublicKey, Scheme, Signature};

/// Why a compact JWS was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoseError {
    /// Longer than the format allows.
    #[error("it is longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// Not three base64url parts separated by dots.
    #[error("it is not a JWS in compact form")]
    Malformed,
    /// The header is not one of this format.
    #[error("its header is not of type {expected}")]
    Header {
        /// The `typ` that was expected.
        expected: &'static str,
    },
}

/// A compact JWS, taken apart; nothing is verified yet.
#[derive(Debug)]
pub struct Jws<'a> {
    /// The decoded header.
    pub header: Vec<u8>,
    /// The decoded payload.
    pub payload: Vec<u8>,
    /// What the signature is over: header, dot, payload as they came.
    pub signing_input: &'a str,
    /// The signature.
    pub signature: Signature,
}

impl<'a> Jws<'a> {
    /// Takes `compact` apart.
    pub fn parse(compact: &'a str, limit: usize) -> Result<Self, JoseError> {
        if compact.len() > limit {
            return Err(JoseError::TooLong { limit });
        }
        let (signing_input, signature) = compact.rsplit_once('.').ok_or(JoseError::Malformed)?;
        let (header, payload) = signing_input.split_once('.').ok_or(JoseError::Malformed)?;
        let decode = |part| from_base64url(part).ok_or(JoseError::Malformed);
        Ok(Self {
            header: decode(header)?,
            payload: decode(payload)?,
            signing_input,
            signature: Signature::from_jose(decode(signature)?),
        })
    }

    /// Reads the header as `H`, whose `typ` must be `expected`.
    pub fn header<H: for<'de> Deserialize<'de>>(
        &self,
        expected: &'static str,
    ) -> Result<H, JoseError> {
        if !self
            .header
            .starts_with(format!("{{\"typ\":\"{expected}\"").as_bytes())
        {
            return Err(JoseError::Header { expected });
        }
        serde_json::from_slice(&self.header).map_err(|_| JoseError::Header { expected })
    }
}

/// The signing input of a JWS: base64url header, dot, base64url payload.
pub fn signing_input(header: &impl Serialize, payload: &[u8]) -> Result<String, serde_json::Error> {
    let mut text = base64url(&serde_json::to_vec(header)?);
    text.push('.');
    text.push_str(&base64url(payload));
    Ok(text)
}

/// The compact JWS of a signing input and its signature.
pub fn compact(mut signing_input: String, signature: &Signature) -> String {
    signing_input.push('.');
    signing_input.push_str(&base64url(signature.as_bytes()));
    signing_input
}

/// A header that names the key by `kid`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KidHeader {
    /// The format.
    pub typ: String,
    /// The signature scheme.
    pub alg: Scheme,
    /// RFC 7638 thumbprint of the key.
    pub kid: String,
}

/// A public key of the account service as JWK: P-256, for signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Jwk {
    /// `EC`.
    pub kty: String,
    /// `P-256`.
    pub crv: String,
    /// The x coordinate, base64url.
    pub x: String,
    /// The y coordinate, base64url.
    pub y: String,
    /// RFC 7638 thumbprint.
    pub kid: String,
    /// `ES256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// `sig`.
    #[serde(default, rename = "use", skip_serializing_if = "Option::is_none")]
    pub key_use: Option<String>,
}

/// A JWK set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JwkSet {
    /// The keys.
    pub keys: Vec<Jwk>,
}

/// A JWK that is not a P-256 signature key or whose `kid` is not its thumbprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key of the set is not a P-256 signature key named by its RFC 7638 thumbprint")]
pub struct InvalidJwk;

impl Jwk {
    /// The JWK of a P-256 key.
    pub fn from_public_key(key: &PublicKey) -> Result<Self, InvalidJwk> {
        if key.family() != KeyFamily::P256 {
            return Err(InvalidJwk);
        }
        let spki = key.spki();
        let point = spki.get(spki.len().wrapping_sub(64)..).ok_or(InvalidJwk)?;
        let (x, y) = point.split_at(32);
        let (x, y) = (base64url(x), base64url(y));
        Ok(Self {
            kid: thumbprint(&x, &y),
            kty: "EC".into(),
            crv: "P-256".into(),
            x,
            y,
            alg: Some("ES256".into()),
            key_use: Some("sig".into()),
        })
    }

    /// The key, if the JWK is sound and named by its own thumbprint.
    pub fn to_public_key(&self) -> Result<PublicKey, InvalidJwk> {
        let sound = self.kty == "EC"
            && self.crv == "P-256"
            && self.alg.as_deref().is_none_or(|alg| alg == "ES256")
            && self
                .key_use
                .as_deref()
                .is_none_or(|key_use| key_use == "sig")
            && self.kid == thumbprint(&self.x, &self.y);
        let (Some(x), Some(y), true) = (from_base64url(&self.x), from_base64url(&self.y), sound)
        else {
            return Err(InvalidJwk);
        };
        if x.len() != 32 || y.len() != 32 {
            return Err(InvalidJwk);
        }
        let point = [&[4], x.as_slice(), y.as_slice()].concat();
        PublicKey::from_ec_point(Curve::P256, &point).map_err(|_| InvalidJwk)
    }
}

/// RFC 7638 section 3: SHA-256 over the required members in lexicographic order.
fn thumbprint(x: &str, y: &str) -> String {
    let json = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    base64url(&sha256(json.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

    #[test]
    fn a_jwk_round_trips_and_is_named_by_its_thumbprint() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let key = PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref()).unwrap();
        let mut jwk = Jwk::from_public_key(&key).unwrap();
        assert_eq!(jwk.to_public_key().unwrap(), key);
        jwk.kid = "mine".into();
        assert_eq!(jwk.to_public_key(), Err(InvalidJwk));
    }

    #[test]
    fn a_compact_jws_has_three_parts_and_one_spelling() {
        let good = "eyJ0eXAiOiJ4In0.e30.AAAA";
        assert_eq!(Jws::parse(good, 100).unwrap().payload, b"{}");
        for bad in [
            "",
            "a.b",
            "e30.e30.AAAA.AAAA",
            "e30=.e30.AAAA",
            "e30.e30.AAA*",
            " e30.e30.AAAA",
        ] {
            assert_eq!(
                Jws::parse(bad, 100).unwrap_err(),
                JoseError::Malformed,
                "{bad}"
            );
        }
        assert_eq!(
            Jws::parse(good, 5).unwrap_err(),
            JoseError::TooLong { limit: 5 }
        );
    }
}
