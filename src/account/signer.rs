//! The keys of the service: where they are, and how anything gets signed with them.

use jiff::Timestamp;

use crate::base::jose::{self, InvalidJwk, Jwk, JwkSet};
use crate::base::key::{PublicKey, Scheme, Signature};
use crate::base::pkcs11::KeyRef;
use crate::base::x509::Certificate;
use crate::device::{DeviceError, Devices};
use crate::policy::{self, Purpose, Refusal};
use crate::statement::{KeySet, NoKey, Origin};

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
///
/// **Change of keys.** The next key is in the set before it signs, and the one before stays in it
/// as long as daemons may have pinned nothing else. Each key of the service vouches for the whole
/// set ([`ChallengeKey::vouched_sets`]), so a daemon that knows any of them learns the others.
#[derive(Clone)]
pub struct ChallengeKey {
    origin: Origin,
    current: Known,
    /// Keys that sign no more, but whose signatures are still good.
    earlier: Vec<Known>,
    /// The key that takes over next.
    next: Option<Known>,
}

/// A key and how the set names it.
#[derive(Clone)]
struct Known {
    signer: Signer,
    jwk: Jwk,
}

impl Known {
    fn new(signer: Signer) -> Result<Self, InvalidJwk> {
        let jwk = Jwk::from_public_key(signer.public_key())?;
        Ok(Self { signer, jwk })
    }
}

impl ChallengeKey {
    /// Takes a P-256 key of the service known as `origin`, those it had before that are still
    /// published, and the one that comes next.
    pub fn new(
        current: Signer,
        origin: Origin,
        earlier: impl IntoIterator<Item = Signer>,
        next: Option<Signer>,
    ) -> Result<Self, InvalidJwk> {
        Ok(Self {
            origin,
            current: Known::new(current)?,
            earlier: earlier
                .into_iter()
                .map(Known::new)
                .collect::<Result<_, _>>()?,
            next: next.map(Known::new).transpose()?,
        })
    }

    /// The issuer of what it signs.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The key's id.
    pub fn kid(&self) -> &str {
        &self.current.jwk.kid
    }

    fn all(&self) -> impl Iterator<Item = &Known> {
        std::iter::once(&self.current)
            .chain(&self.earlier)
            .chain(&self.next)
    }

    /// The key set of the service.
    pub fn set(&self) -> JwkSet {
        JwkSet {
            keys: self.all().map(|known| known.jwk.clone()).collect(),
        }
    }

    /// The key set and the authorities, vouched for by each key that signs or did, for daemons
    /// that have pinned older ones.
    pub async fn vouched_sets(
        &self,
        authorities: &[Certificate],
        now: Timestamp,
    ) -> Result<Vec<String>, SignError> {
        let set = KeySet::new(self.origin.clone(), self.set(), authorities, now);
        let mut sets = Vec::new();
        for known in std::iter::once(&self.current).chain(&self.earlier) {
            let input = set.signing_input(&known.jwk.kid)?;
            sets.push(sign_with(&known.signer, Purpose::KeySet, input).await?);
        }
        Ok(sets)
    }

    /// Signs a JWS signing input and gives the compact form.
    pub async fn sign(&self, purpose: Purpose, signing_input: String) -> Result<String, SignError> {
        sign_with(&self.current.signer, purpose, signing_input).await
    }

    /// The key for an issuer and key id, if they are this one's.
    pub fn find(&self, issuer: &Origin, kid: &str) -> Result<PublicKey, NoKey> {
        if *issuer != self.origin {
            return Err(NoKey::Issuer);
        }
        self.all()
            .find(|known| known.jwk.kid == kid)
            .map(|known| known.signer.public_key().clone())
            .ok_or(NoKey::Key)
    }
}

async fn sign_with(
    signer: &Signer,
    purpose: Purpose,
    signing_input: String,
) -> Result<String, SignError> {
    let signature = signer
        .sign(purpose, Scheme::Es256, signing_input.as_bytes())
        .await?;
    Ok(jose::compact(signing_input, &signature))
}
