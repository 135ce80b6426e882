//! The keys of the service: where they are, and how anything gets signed with them.

use crate::base::jose::{self, InvalidJwk, Jwk, JwkSet};
use crate::base::key::{PublicKey, Scheme, Signature};
use crate::base::pkcs11::KeyRef;
use crate::device::{DeviceError, Devices};
use crate::policy::{self, Purpose, Refusal};
use crate::statement::{NoKey, Origin};

/// Why the service could not sign.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// Policy does not let the program sign this; a fault of the program.
    #[error("the service may not sign a {purpose:?}")]
    Refused {
        /// What was to be signed.
        purpose: Purpose,
        /// Which rule said no.
        source: Refusal,
    },
    /// The token did not sign.
    #[error("the token of the service did not sign")]
    Device {
        /// Why.
        #[from]
        source: DeviceError,
    },
    /// What was to be signed cannot be written down.
    #[error("cannot encode what is to be signed")]
    Encode {
        /// Why.
        #[from]
        source: serde_json::Error,
    },
}

/// One key of the service on its token.
#[derive(Clone)]
pub struct Signer {
    devices: Devices,
    key: KeyRef,
    public_key: PublicKey,
}

impl Signer {
    /// Signs with `key`, whose public half is `public_key`.
    pub fn new(devices: Devices, key: KeyRef, public_key: PublicKey) -> Self {
        Self {
            devices,
            key,
            public_key,
        }
    }

    /// The public half.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Signs `message`, which must lie in the domain of `purpose`.
    pub async fn sign(
        &self,
        purpose: Purpose,
        scheme: Scheme,
        message: &[u8],
    ) -> Result<Signature, SignError> {
        let permit = policy::own(&self.key, purpose)
            .map_err(|source| SignError::Refused { purpose, source })?;
        Ok(self.devices.sign(permit, scheme, message).await?)
    }
}

/// The key that signs challenges and tickets, as the key set names it.
#[derive(Clone)]
pub struct ChallengeKey {
    signer: Signer,
    origin: Origin,
    jwk: Jwk,
    /// Keys that sign no more, but whose signatures are still good, by key id.
    earlier: Vec<(Jwk, PublicKey)>,
}

impl ChallengeKey {
    /// Takes a P-256 key of the service known as `origin`, and those it had before that are still
    /// published.
    pub fn new(
        signer: Signer,
        origin: Origin,
        earlier: impl IntoIterator<Item = PublicKey>,
    ) -> Result<Self, InvalidJwk> {
        let jwk = Jwk::from_public_key(signer.public_key())?;
        let earlier = earlier
            .into_iter()
            .map(|key| Ok((Jwk::from_public_key(&key)?, key)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            signer,
            origin,
            jwk,
            earlier,
        })
    }

    /// The issuer of what it signs.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The key's id.
    pub fn kid(&self) -> &str {
        &self.jwk.kid
    }

    /// The key set of the service.
    pub fn set(&self) -> JwkSet {
        let mut keys = vec![self.jwk.clone()];
        keys.extend(self.earlier.iter().map(|(jwk, _)| jwk.clone()));
        JwkSet { keys }
    }

    /// Signs a JWS signing input and gives the compact form.
    pub async fn sign(&self, purpose: Purpose, signing_input: String) -> Result<String, SignError> {
        let signature = self
            .signer
            .sign(purpose, Scheme::Es256, signing_input.as_bytes())
            .await?;
        Ok(jose::compact(signing_input, &signature))
    }

    /// The key for an issuer and key id, if they are this one's.
    pub fn find(&self, issuer: &Origin, kid: &str) -> Result<PublicKey, NoKey> {
        if *issuer != self.origin {
            return Err(NoKey::Issuer);
        }
        if kid == self.kid() {
            return Ok(self.signer.public_key().clone());
        }
        self.earlier
            .iter()
            .find(|(jwk, _)| jwk.kid == kid)
            .map(|(_, key)| key.clone())
            .ok_or(NoKey::Key)
    }
}
