//! Signing, and decrypting: a session of one's own, key handles kept, one call each.

use std::collections::HashMap;

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use zeroize::Zeroizing;

use super::codes;
use super::module::Module;
use super::objects;
use super::raw::SIGNATURE_MAX;
use crate::base::encoding::sha256;
use crate::base::key::Scheme;
use crate::device::frames::{Class, Failure, PlainBytes, WHOLE_MESSAGE_MAX};

/// The most key handles one thread keeps per token; past it all are found anew.
const HANDLES_MAX: usize = 4096;

/// Begins a SHA-256 DigestInfo (RFC 8017 section 9.2, note 1). Built here because a token's own
/// fallback for `CKM_RSA_PKCS` leaves it out.
const SHA256_DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

/// What one thread needs to sign.
pub struct Signer {
    module: &'static Module,
    tokens: HashMap<u16, Token>,
}

struct Token {
    slot: Slot,
    session: Session,
    keys: HashMap<Vec<u8>, Key>,
}

/// What is known of a key. Its handle may have become invalid; who it is must not change.
struct Key {
    handle: Option<ObjectHandle>,
    kind: objects::Kind,
    fingerprint: Option<[u8; 32]>,
}

impl Signer {
    /// Opens nothing yet.
    pub fn new(module: &'static Module) -> Self {
        Self {
            module,
            tokens: HashMap::new(),
        }
    }

    /// Signs. An invalid handle is found again and an invalid session replaced, each once.
    pub fn sign(
        &mut self,
        token: u16,
        key: &[u8],
        scheme: Scheme,
        input: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        self.renewing(token, key, |signer| {
            signer.try_sign(token, key, scheme, input)
        })
    }

    /// Decrypts with RSAES-OAEP (SHA-1, MGF1 with SHA-1, no label). A ciphertext that is not for
    /// this key is [`Failure::Undecryptable`], whatever the module calls it.
    pub fn decrypt(&mut self, token: u16, key: &[u8], input: &[u8]) -> Result<PlainBytes, Failure> {
        self.renewing(token, key, |signer| signer.try_decrypt(token, key, input))
    }

    fn renewing<T>(
        &mut self,
        token: u16,
        key: &[u8],
        mut attempt: impl FnMut(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (mut refound, mut reopened) = (false, false);
        loop {
            let failure = match attempt(self) {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            match failure {
                Failure::Pkcs11 {
                    class: Class::Handle,
                    ..
                } if !refound => {
                    refound = true;
                    self.forget_handle(token, key);
                }
                Failure::Pkcs11 {
                    class: Class::Session,
                    ..
                } if !reopened => {
                    reopened = true;
                    self.reopen(token)?;
                }
                failure => return Err(failure),
            }
        }
    }

    fn try_sign(
        &mut self,
        token: u16,
        key: &[u8],
        scheme: Scheme,
        input: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let module = self.module;
        let token = self.token(token)?;
        let (handle, kind) = token.key(key)?;
        check(kind, scheme, input)?;
        let mut signature = [0; SIGNATURE_MAX];
        let length = match scheme {
            Scheme::Rs256 => {
                let mut info = [0; SHA256_DIGEST_INFO.len() + 32];
                let (prefix, digest) = info.split_at_mut(SHA256_DIGEST_INFO.len());
                prefix.copy_from_slice(&SHA256_DIGEST_INFO);
                digest.copy_from_slice(input);
                one_call(
                    module,
                    &token.session,
                    &Mechanism::RsaPkcs,
                    handle,
                    &info,
                    &mut signature,
                )
            }
            Scheme::Ps256 => {
                let parameters = PkcsPssParams {
                    hash_alg: MechanismType::SHA256,
                    mgf: PkcsMgfType::MGF1_SHA256,
                    s_len: 32.into(),
                };
                let mechanism = Mechanism::RsaPkcsPss(parameters);
                one_call(
                    module,
                    &token.session,
                    &mechanism,
                    handle,
                    input,
                    &mut signature,
                )
            }
            Scheme::Es256 | Scheme::Es384 => one_call(
                module,
                &token.session,
                &Mechanism::Ecdsa,
                handle,
                input,
                &mut signature,
            ),
            Scheme::EdDsa => {
                let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
                one_call(
                    module,
                    &token.session,
                    &mechanism,
                    handle,
                    input,
                    &mut signature,
                )
            }
        }
        .map_err(|error| codes::failure(&error))?;
        Ok(signature[..length].to_vec())
    }

    fn try_decrypt(&mut self, token: u16, key: &[u8], input: &[u8]) -> Result<PlainBytes, Failure> {
        let token = self.token(token)?;
        let (handle, kind) = token.key(key)?;
        if kind != objects::Kind::Rsa {
            return Err(Failure::KeyType);
        }
        if input.len() > SIGNATURE_MAX {
            return Err(Failure::InputLength);
        }
        let mechanism = Mechanism::RsaPkcsOaep(PkcsOaepParams::new(
            MechanismType::SHA1,
            PkcsMgfType::MGF1_SHA1,
            PkcsOaepSource::empty(),
        ));
        match token.session.decrypt(&mechanism, handle, input) {
            Ok(plaintext) => Ok(PlainBytes::new(Zeroizing::new(plaintext))),
            // Bad padding has many names, and a hostile ciphertext must not look like an unwell
            // module. One that is unwell will show it when it signs.
            Err(Error::Pkcs11(
                RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::DataInvalid
                | RvError::DataLenRange
                | RvError::GeneralError
                | RvError::FunctionFailed,
                Function::Decrypt,
            )) => Err(Failure::Undecryptable),
            Err(error) => Err(codes::failure(&error)),
        }
    }

    fn token(&mut self, number: u16) -> Result<&mut Token, Failure> {
        let slot = self.module.slot(number)?;
        match self.tokens.entry(number) {
            std::collections::hash_map::Entry::Occupied(entry) if entry.get().slot == slot => {
                Ok(entry.into_mut())
            }
            entry => {
                let session = self.module.pkcs11.open_ro_session(slot);
                let token = Token {
                    slot,
                    session: session.map_err(|error| codes::failure(&error))?,
                    keys: HashMap::new(),
                };
                Ok(entry.insert_entry(token).into_mut())
            }
        }
    }

    fn forget_handle(&mut self, token: u16, key: &[u8]) {
        let known = self
            .tokens
            .get_mut(&token)
            .and_then(|token| token.keys.get_mut(key));
        if let Some(known) = known {
            known.handle = None;
        }
    }

    /// Replaces the session of a token, keeping what is known of its keys.
    fn reopen(&mut self, number: u16) -> Result<(), Failure> {
        let slot = self.module.slot(number)?;
        if let Some(token) = self.tokens.get_mut(&number) {
            let session = self.module.pkcs11.open_ro_session(slot);
            token.session = session.map_err(|error| codes::failure(&error))?;
            token.slot = slot;
        }
        Ok(())
    }
}

impl Token {
    fn key(&mut self, id: &[u8]) -> Result<(ObjectHandle, objects::Kind), Failure> {
        if let Some(Key {
            handle: Some(handle),
            kind,
            ..
        }) = self.keys.get(id)
        {
            return Ok((*handle, *kind));
        }
        let handle = objects::find_private(&self.session, id)?.ok_or(Failure::KeyMissing)?;
        let kind = objects::kind(&self.session, handle)?;
        let fingerprint = match objects::public_parts(&self.session, id) {
            Ok(parts) => postcard::to_stdvec(&parts).ok().map(|bytes| sha256(&bytes)),
            Err(Failure::KeyMissing) => None,
            Err(failure) => return Err(failure),
        };
        if let Some(known) = self.keys.get(id)
            && (known.kind != kind || known.fingerprint != fingerprint)
        {
            self.keys.remove(id);
            return Err(Failure::KeyChanged);
        }
        if self.keys.len() >= HANDLES_MAX {
            self.keys.clear();
        }
        let key = Key {
            handle: Some(handle),
            kind,
            fingerprint,
        };
        self.keys.insert(id.to_vec(), key);
        Ok((handle, kind))
    }
}

fn one_call(
    module: &Module,
    session: &Session,
    mechanism: &Mechanism<'_>,
    key: ObjectHandle,
    data: &[u8],
    signature: &mut [u8; SIGNATURE_MAX],
) -> Result<usize, Error> {
    session.sign_init(mechanism, key)?;
    module.raw.sign(session, data, signature)
}

/// Modules answer caller's mistakes with CKR_GENERAL_ERROR, or cut an over-long digest and sign
/// the rest; so type and length are checked before the call.
fn check(kind: objects::Kind, scheme: Scheme, input: &[u8]) -> Result<(), Failure> {
    use objects::Kind;
    match (scheme, kind) {
        (Scheme::Rs256 | Scheme::Ps256, Kind::Rsa)
        | (Scheme::Es256, Kind::P256)
        | (Scheme::Es384, Kind::P384)
        | (Scheme::EdDsa, Kind::Ed25519) => {}
        _ => return Err(Failure::KeyType),
    }
    let fits = match scheme {
        Scheme::Rs256 | Scheme::Ps256 | Scheme::Es256 => input.len() == 32,
        Scheme::Es384 => input.len() == 48,
        Scheme::EdDsa => input.len() <= WHOLE_MESSAGE_MAX,
    };
    if fits {
        Ok(())
    } else {
        Err(Failure::InputLength)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use objects::Kind;

    #[test]
    fn type_and_length_are_checked_before_the_module_sees_them() {
        assert_eq!(check(Kind::P256, Scheme::Es256, &[0; 32]), Ok(()));
        assert_eq!(
            check(Kind::P256, Scheme::Es256, &[0; 64]),
            Err(Failure::InputLength)
        );
        assert_eq!(
            check(Kind::Rsa, Scheme::Es256, &[0; 32]),
            Err(Failure::KeyType)
        );
        assert_eq!(
            check(Kind::Ed25519, Scheme::EdDsa, &[0; WHOLE_MESSAGE_MAX + 1]),
            Err(Failure::InputLength)
        );
    }
}
