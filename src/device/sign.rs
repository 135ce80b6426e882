//! What is done with a private key: signatures and decryption, for a [`Permit`] each.
//!
//! Who may have one is never decided here: only `policy` makes a permit. What is signed is hashed
//! before and verified after.

use aws_lc_rs::digest;

use super::Devices;
use super::error::{DeviceError, unexpected};
use super::fair::Party;
use super::frames::{Answer, Input, Verb, WHOLE_MESSAGE_MAX};
use super::supervisor::handle::Need;
use crate::base::key::{Scheme, Signature};
use crate::base::secret::SecretBytes;
use crate::policy::{Caller, Permit, Purpose};
use crate::telemetry::metrics::metrics;

/// The most bytes of a message to be hashed and signed.
const MESSAGE_MAX: usize = 16 * 1024 * 1024;

/// The most bytes of a ciphertext: RSA with 8192 bits.
const CIPHERTEXT_MAX: usize = 1024;

impl Devices {
    /// Signs `message` with the key that the permit is for.
    ///
    /// Refuses unless the message lies in the domain of the permit's purpose. Hashes here, has the
    /// token sign, and verifies the signature before returning it. Messages may have 16 MiB; those
    /// that a token is given whole, for Ed25519 or because it hashes by itself only, 32 KiB.
    pub async fn sign(
        &self,
        permit: Permit,
        scheme: Scheme,
        message: &[u8],
    ) -> Result<Signature, DeviceError> {
        let purpose = permit.purpose().name();
        let result = self.sign_and_verify(permit, scheme, message).await;
        let counters = match result {
            Ok(_) => &metrics().signatures,
            Err(_) => &metrics().signature_failures,
        };
        counters.of(purpose).increment();
        result
    }

    async fn sign_and_verify(
        &self,
        permit: Permit,
        scheme: Scheme,
        message: &[u8],
    ) -> Result<Signature, DeviceError> {
        if !permit.purpose().admits(message) {
            return Err(DeviceError::WrongPurpose {
                purpose: permit.purpose(),
            });
        }
        let key = permit.key();
        let public_key = self.public_key(key).await?;
        if !public_key.family().supports(scheme) {
            return Err(DeviceError::SchemeUnsupported {
                key: key.to_string(),
                scheme,
            });
        }
        let module = self.module_of(&key.token)?;
        let need = match permit.purpose() {
            Purpose::AuditCheckpoint | Purpose::SelfTest => Need::QuietLogin,
            _ => Need::Login,
        };
        let input = module.sign_input(&key.token, scheme);
        let party = match (permit.purpose(), permit.caller()) {
            (Purpose::SelfTest, Caller::Itself) => Party::SELF_TEST,
            (_, caller) => self.0.parties.of(caller),
        };
        let sign = async |input| {
            let data = signed_data(scheme, input, message)?;
            let verb = |token| Verb::Sign {
                token,
                key: key.id.as_bytes().to_vec(),
                scheme,
                input,
                data: data.clone(),
            };
            let budget = module.config.call_timeout;
            self.call_for(party, &key.token, Some(key), need, budget, verb)
                .await
        };
        let answer = match sign(input).await {
            // Not known before the worker was up.
            Err(DeviceError::Unsupported { .. })
                if module.sign_input(&key.token, scheme) != input =>
            {
                sign(module.sign_input(&key.token, scheme)).await?
            }
            answer => answer?,
        };
        let Answer::Signature(bytes) = answer else {
            return Err(unexpected(&key.token.module));
        };
        let signature = Signature::from_jose(bytes);
        match public_key.verify(scheme, message, &signature) {
            Ok(()) => Ok(signature),
            Err(_) => {
                // The id may mean another key by now, so the next call reads it again; or the
                // worker holds a handle that does, so it is replaced.
                self.0.public_keys.forget(key);
                if let Some(link) = module.link() {
                    let why = format!("a signature with {key} does not verify");
                    module.replace(link, why).await?;
                }
                Err(DeviceError::BadSignature {
                    key: key.to_string(),
                })
            }
        }
    }

    /// Decrypts what was encrypted for the key that the permit is for, with RSAES-OAEP, SHA-1 and
    /// MGF1 with SHA-1: a field, as WeChat Pay encrypts it, or the content key of a sealed secret.
    /// The permit must be for one of these.
    ///
    /// A ciphertext that is not for this key is [`DeviceError::Undecryptable`], without a reason.
    pub async fn decrypt(
        &self,
        permit: Permit,
        ciphertext: &[u8],
    ) -> Result<SecretBytes, DeviceError> {
        if !matches!(
            permit.purpose(),
            Purpose::WechatPayDecrypt | Purpose::SecretOpening
        ) {
            return Err(DeviceError::WrongPurpose {
                purpose: permit.purpose(),
            });
        }
        if ciphertext.len() > CIPHERTEXT_MAX {
            return Err(DeviceError::TooLarge {
                what: "ciphertext",
                limit: CIPHERTEXT_MAX,
            });
        }
        let key = permit.key();
        // RFC 8017 section 7.1.2 step 1: it is as long as the modulus. What a module answers to
        // another length is its own choice, and may look like an unwell module.
        let numbers = self.public_key(key).await?.rsa_numbers();
        if numbers.is_some_and(|(modulus, _)| modulus.len() != ciphertext.len()) {
            return Err(DeviceError::Undecryptable {
                key: key.to_string(),
            });
        }
        let module = self.module_of(&key.token)?;
        let verb = |token| Verb::Decrypt {
            token,
            key: key.id.as_bytes().to_vec(),
            input: ciphertext.to_vec(),
        };
        let answer = self
            .call_for(
                self.0.parties.of(permit.caller()),
                &key.token,
                Some(key),
                Need::Login,
                module.config.call_timeout,
                verb,
            )
            .await?;
        match answer {
            Answer::Plaintext(plaintext) => Ok(plaintext.into_secret()),
            _ => Err(unexpected(&key.token.module)),
        }
    }
}

/// What the token is given for `message`: its digest, or itself.
fn signed_data(scheme: Scheme, input: Input, message: &[u8]) -> Result<Vec<u8>, DeviceError> {
    let limit = match input {
        Input::Digest => MESSAGE_MAX,
        Input::Message => WHOLE_MESSAGE_MAX,
    };
    if message.len() > limit {
        return Err(DeviceError::TooLarge {
            what: "message",
            limit,
        });
    }
    let algorithm = match (input, scheme) {
        (Input::Message, _) | (_, Scheme::EdDsa) => return Ok(message.to_vec()),
        (Input::Digest, Scheme::Rs256 | Scheme::Ps256 | Scheme::Es256) => &digest::SHA256,
        (Input::Digest, Scheme::Es384) => &digest::SHA384,
    };
    Ok(digest::digest(algorithm, message).as_ref().to_vec())
}
