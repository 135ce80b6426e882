//! The keys of the service: where they are, and how anything gets signed with them.

use crate::base::Clock;
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
    clock: Clock,
    key: KeyRef,
    public_key: PublicKey,
}

impl Signer {
    /// Signs with `key`, whose public half is `public_key`.
    pub fn new(devices: Devices, clock: Clock, key: KeyRef, public_key: PublicKey) -> Self {
        Self {
            devices,
            clock,
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
        let permit = policy::own(&self.key, purpose, self.clock.now())
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
}

impl ChallengeKey {
    /// Takes a P-256 key of the service known as `origin`.
    pub fn new(signer: Signer, origin: Origin) -> Result<Self, InvalidJwk> {
        let jwk = Jwk::from_public_key(signer.public_key())?;
        Ok(Self {
            signer,
            origin,
            jwk,
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
        JwkSet {
            keys: vec![self.jwk.clone()],
        }
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
            Err(NoKey::Issuer)
        } else if kid != self.kid() {
            Err(NoKey::Key)
        } else {
            Ok(self.signer.public_key().clone())
        }
    }
}
