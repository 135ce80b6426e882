//! The test of a token that an administrator asks for: its keys sign, and the signatures verify.
//!
//! What is signed is one fixed text in a domain of its own ([`TOKEN_TEST_MESSAGE`]), so a test says
//! nothing to anybody but the one who asked. The signature is verified and thrown away; that it was
//! made is on record before the answer leaves.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use crate::audit::{Audit, AuditError, Event};
use crate::base::ids::RequestId;
use crate::base::key::{KeySpec, Scheme};
use crate::base::pkcs11::{KeyId, KeyRef, TokenId, TokenUri};
use crate::device::{DeviceError, Devices, KeyInfo};
use crate::policy::{
    Caller, ConsentRule, Decision, Permit, Purpose, Refusal, TOKEN_TEST_MESSAGE, decide_own,
};

/// The most keys that one test tries.
pub const KEYS_MAX: usize = 64;

/// Why nothing was tested.
#[derive(Debug, thiserror::Error)]
pub enum TokenTestError {
    /// The token did not show its keys.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Policy says no.
    #[error("policy refuses: {0}")]
    Policy(#[from] Refusal),
    /// The record cannot be written.
    #[error("the audit record cannot be written")]
    Audit(#[from] AuditError),
    /// More keys than one test tries.
    #[error("{uri} selects {count} keys, and one test tries at most {KEYS_MAX}")]
    TooMany {
        /// The URI.
        uri: String,
        /// How many.
        count: usize,
    },
}

/// How a key did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeyOutcome {
    /// It signed, and the signature verified.
    Verified,
    /// It is not for signing (`CKA_SIGN`), so there was nothing to test.
    NotForSigning,
    /// It is of a kind that is not used here.
    Unsupported,
    /// It did not sign, or what it signed does not verify.
    Failed,
}

/// The test of one key.
#[derive(Debug)]
pub struct KeyTest {
    /// `CKA_ID`, where it is one that names the key.
    pub id: Option<KeyId>,
    /// `CKA_LABEL`.
    pub label: String,
    /// What it is.
    pub spec: Option<KeySpec>,
    /// How it was to sign.
    pub scheme: Option<Scheme>,
    /// How it did.
    pub outcome: KeyOutcome,
    /// From the request to the verified signature.
    pub took: Option<Duration>,
    /// What went wrong.
    pub error: Option<DeviceError>,
}

/// Has the keys of `token` that `uri` selects (by `id` and `object`; all without these) sign the
/// text, one after the other.
///
/// The token's state is the caller's to mend: on one that waits for its PIN nothing is tested.
pub async fn run(
    devices: &Devices,
    audit: &Audit,
    caller: &Caller,
    request: &RequestId,
    token: &TokenId,
    uri: &TokenUri,
) -> Result<Vec<KeyTest>, TokenTestError> {
    let keys: Vec<KeyInfo> = devices
        .keys(token)
        .await?
        .into_iter()
        .filter(|key| selects(uri, key))
        .collect();
    if keys.len() > KEYS_MAX {
        return Err(TokenTestError::TooMany {
            uri: uri.to_string(),
            count: keys.len(),
        });
    }
    if let (true, Some(id)) = (keys.is_empty(), &uri.id) {
        let key = KeyRef {
            token: token.clone(),
            id: id.clone(),
        };
        return Err(DeviceError::KeyMissing {
            key: key.to_string(),
        }
        .into());
    }
    let mut tests = Vec::with_capacity(keys.len());
    let mut records = Vec::with_capacity(keys.len());
    for key in keys {
        let test = test(devices, caller, token, key).await?;
        let event = Event::new(
            "token-test",
            Some(request.clone()),
            &json!({
                "token": token.to_string(),
                "key": test.id,
                "label": test.label,
                "scheme": test.scheme,
                "by": caller,
                "outcome": test.outcome,
                "microseconds": test.took.map(|took| took.as_micros()),
                "refused": test.error.as_ref().map(ToString::to_string),
            }),
        )?;
        records.push(audit.append(event)?);
        tests.push(test);
    }
    for record in records {
        record.durable().await?;
    }
    Ok(tests)
}

fn selects(uri: &TokenUri, key: &KeyInfo) -> bool {
    uri.id.as_ref().is_none_or(|id| key.id.as_ref() == Some(id))
        && uri.object.as_ref().is_none_or(|label| *label == key.label)
}

async fn test(
    devices: &Devices,
    caller: &Caller,
    token: &TokenId,
    key: KeyInfo,
) -> Result<KeyTest, Refusal> {
    let KeyInfo {
        id, label, spec, ..
    } = key;
    let mut test = KeyTest {
        id,
        label,
        spec,
        scheme: None,
        outcome: KeyOutcome::Unsupported,
        took: None,
        error: None,
    };
    let Some(id) = test.id.clone().filter(|_| test.spec.is_some()) else {
        return Ok(test);
    };
    let key = KeyRef {
        token: token.clone(),
        id,
    };
    // Read first, so that the time is that of the signature.
    let signed = match devices.public_key(&key).await {
        Ok(public_key) => {
            let usual = public_key.default_scheme();
            let able = schemes(devices, token).await;
            let scheme = if able.contains(&usual) || !able.contains(&Scheme::Ps256) {
                usual
            } else if public_key.family().supports(Scheme::Ps256) {
                Scheme::Ps256
            } else {
                usual
            };
            test.scheme = Some(scheme);
            let permit = permit(caller, &key)?;
            let begun = Instant::now();
            let signed = devices.sign(permit, scheme, TOKEN_TEST_MESSAGE).await;
            test.took = signed.is_ok().then(|| begun.elapsed());
            signed.map(drop)
        }
        Err(error) => Err(error),
    };
    (test.outcome, test.error) = match signed {
        Ok(()) => (KeyOutcome::Verified, None),
        Err(DeviceError::Pkcs11 { code, .. }) if code == "CKR_KEY_FUNCTION_NOT_PERMITTED" => {
            (KeyOutcome::NotForSigning, None)
        }
        Err(error) => (KeyOutcome::Failed, Some(error)),
    };
    Ok(test)
}

/// How the token can sign, by what it says of itself.
async fn schemes(devices: &Devices, token: &TokenId) -> Vec<Scheme> {
    let tokens = devices.tokens().await;
    let found = tokens.into_iter().find(|status| status.id == *token);
    found.map(|status| status.signs).unwrap_or_default()
}

fn permit(caller: &Caller, key: &KeyRef) -> Result<Permit, Refusal> {
    match decide_own(caller, key, Purpose::TokenTest) {
        Decision::Granted(grant) => grant.permit(ConsentRule::None),
        Decision::Refused(refusal) => Err(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_selects_keys_by_id_and_label() {
        let key = KeyInfo {
            id: Some(KeyId::from_bytes(vec![1, 2]).unwrap()),
            label: "pay".into(),
            spec: Some(KeySpec::P256),
            always_authenticate: false,
        };
        let selects = |uri: &str| selects(&uri.parse().unwrap(), &key);
        assert!(selects("pkcs11:token=a"));
        assert!(selects("pkcs11:token=a;id=%01%02;object=pay"));
        assert!(!selects("pkcs11:token=a;id=%01"));
        assert!(!selects("pkcs11:token=a;object=ca"));
    }
}
