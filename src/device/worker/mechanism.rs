//! Which mechanism a token signs with.
//!
//! A digest is made here, far from the token, where the token can do with that: a raw mechanism is
//! one round trip whatever the message's length, and many tokens lack those that hash. Others lack
//! the raw ones, as a rule of theirs or of FIPS 140; they are given the message and hash it
//! themselves. What a token says of itself (`C_GetMechanismList`, `C_GetMechanismInfo`) decides.

use std::ops::RangeInclusive;

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::slot::Slot;

use crate::base::key::{KeySpec, Scheme};
use crate::device::frames::{Failure, Input};

/// Begins a SHA-256 DigestInfo (RFC 8017 section 9.2, note 1). Built here because a token's own
/// fallback for `CKM_RSA_PKCS` leaves it out.
const SHA256_DIGEST_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

const SCHEMES: [Scheme; 5] = [
    Scheme::Rs256,
    Scheme::Ps256,
    Scheme::Es256,
    Scheme::Es384,
    Scheme::EdDsa,
];

/// A mechanism that makes signatures of a scheme, and what it wants to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    mechanism: MechanismType,
    input: Input,
}

/// The ways to sign with a scheme, the best first.
fn ways(scheme: Scheme) -> &'static [Way] {
    const fn way(mechanism: MechanismType, input: Input) -> Way {
        Way { mechanism, input }
    }
    const RS256: [Way; 2] = [
        way(MechanismType::RSA_PKCS, Input::Digest),
        way(MechanismType::SHA256_RSA_PKCS, Input::Message),
    ];
    const PS256: [Way; 2] = [
        way(MechanismType::RSA_PKCS_PSS, Input::Digest),
        way(MechanismType::SHA256_RSA_PKCS_PSS, Input::Message),
    ];
    const ES256: [Way; 2] = [
        way(MechanismType::ECDSA, Input::Digest),
        way(MechanismType::ECDSA_SHA256, Input::Message),
    ];
    const ES384: [Way; 2] = [
        way(MechanismType::ECDSA, Input::Digest),
        way(MechanismType::ECDSA_SHA384, Input::Message),
    ];
    const EDDSA: [Way; 1] = [way(MechanismType::EDDSA, Input::Message)];
    match scheme {
        Scheme::Rs256 => &RS256,
        Scheme::Ps256 => &PS256,
        Scheme::Es256 => &ES256,
        Scheme::Es384 => &ES384,
        Scheme::EdDsa => &EDDSA,
    }
}

/// What a token says that it can do.
#[derive(Debug, Clone, Default)]
pub struct Offer(Vec<Offered>);

/// A mechanism that the token has.
#[derive(Debug, Clone)]
struct Offered {
    mechanism: MechanismType,
    /// `CKF_SIGN`.
    signs: bool,
    /// The sizes of its keys in bits; `None` where it does not say.
    sizes: Option<RangeInclusive<usize>>,
}

impl Offer {
    /// Reads the mechanism list of a slot; `None` if it cannot be read now.
    pub fn read(pkcs11: &Pkcs11, slot: Slot) -> Option<Self> {
        let listed = match pkcs11.get_mechanism_list(slot) {
            Ok(listed) => listed,
            Err(error) => {
                eprintln!("slot {}: {error:?}", slot.id());
                return None;
            }
        };
        let of_use = |mechanism: &MechanismType| {
            SCHEMES
                .iter()
                .flat_map(|scheme| ways(*scheme))
                .any(|way| way.mechanism == *mechanism)
                || KeySpec::ALL
                    .iter()
                    .any(|spec| generation(*spec).0 == *mechanism)
        };
        let offered = listed.into_iter().filter(of_use).map(|mechanism| {
            let info = pkcs11.get_mechanism_info(slot, mechanism).ok();
            let sizes = info.filter(|info| info.max_key_size() > 0);
            Offered {
                mechanism,
                signs: info.is_some_and(|info| info.sign()),
                sizes: sizes.map(|info| info.min_key_size()..=info.max_key_size()),
            }
        });
        Some(Self(offered.collect()))
    }

    /// The kinds of key that it generates.
    pub fn generates(&self) -> Vec<KeySpec> {
        let can = |spec: &KeySpec| {
            let (mechanism, bits) = generation(*spec);
            self.0
                .iter()
                .any(|offered| offered.mechanism == mechanism && offered.takes(bits))
        };
        KeySpec::ALL.into_iter().filter(can).collect()
    }

    /// The schemes that it signs with.
    pub fn signs(&self) -> Vec<Scheme> {
        let can = |scheme: &Scheme| self.best(*scheme).is_some();
        SCHEMES.into_iter().filter(can).collect()
    }

    /// Those of them for which it wants to hash the message itself.
    pub fn hashes(&self) -> Vec<Scheme> {
        let wants = |scheme: &Scheme| {
            *scheme != Scheme::EdDsa
                && self
                    .best(*scheme)
                    .is_some_and(|(way, _)| way.input == Input::Message)
        };
        SCHEMES.into_iter().filter(wants).collect()
    }

    /// The best way that the token has. Some forget to say `CKF_SIGN`; where one does say it, it is
    /// preferred, as the raw RSA mechanism may be there for encryption only.
    fn best(&self, scheme: Scheme) -> Option<(Way, &Offered)> {
        let has = |way: &Way| {
            let offered = self.0.iter().find(|one| one.mechanism == way.mechanism)?;
            Some((*way, offered))
        };
        let all = || ways(scheme).iter().filter_map(has);
        all()
            .find(|(_, offered)| offered.signs)
            .or_else(|| all().next())
    }

    /// How to sign with `scheme` and a key of `bits`, given `input`. What the token cannot do is
    /// refused here, before it sees it: modules answer such mistakes as if they were unwell.
    ///
    /// Of a token whose list cannot be read the raw mechanism is asked for all the same.
    pub fn prepare(
        offer: Option<&Self>,
        scheme: Scheme,
        bits: Option<usize>,
        input: Input,
        data: &[u8],
    ) -> Result<(Mechanism<'static>, Vec<u8>), Failure> {
        let unsupported = |what: String| Err(Failure::Unsupported { what });
        let way = match offer {
            None => ways(scheme).first().copied(),
            Some(offer) => match offer.best(scheme) {
                Some((_, Offered { sizes, .. }))
                    if bits.is_some_and(|bits| {
                        sizes.as_ref().is_some_and(|sizes| !sizes.contains(&bits))
                    }) =>
                {
                    let bits = bits.unwrap_or_default();
                    return unsupported(format!("{scheme} with a key of {bits} bits"));
                }
                Some((way, _)) => Some(way),
                None => None,
            },
        };
        let Some(way) = way else {
            return unsupported(format!("signatures of scheme {scheme}"));
        };
        let data = match (way.input, input) {
            (Input::Message, Input::Message) | (Input::Digest, Input::Digest) => data.to_vec(),
            (Input::Digest, Input::Message) => digest(scheme, data),
            (Input::Message, Input::Digest) => {
                return unsupported(format!("{scheme} of a digest: it hashes by itself"));
            }
        };
        Ok(match way.mechanism {
            MechanismType::RSA_PKCS => (
                Mechanism::RsaPkcs,
                [SHA256_DIGEST_INFO.as_slice(), &data].concat(),
            ),
            MechanismType::SHA256_RSA_PKCS => (Mechanism::Sha256RsaPkcs, data),
            MechanismType::RSA_PKCS_PSS => (Mechanism::RsaPkcsPss(pss()), data),
            MechanismType::SHA256_RSA_PKCS_PSS => (Mechanism::Sha256RsaPkcsPss(pss()), data),
            MechanismType::ECDSA => (Mechanism::Ecdsa, data),
            MechanismType::ECDSA_SHA256 => (Mechanism::EcdsaSha256, data),
            MechanismType::ECDSA_SHA384 => (Mechanism::EcdsaSha384, data),
            _ => {
                let parameters = EddsaParams::new(EddsaSignatureScheme::Ed25519);
                (Mechanism::Eddsa(parameters), data)
            }
        })
    }
}

impl Offered {
    fn takes(&self, bits: Option<usize>) -> bool {
        match (&self.sizes, bits) {
            (Some(sizes), Some(bits)) => sizes.contains(&bits),
            _ => true,
        }
    }
}

/// The mechanism that generates a kind of key, and the size that it must take.
fn generation(spec: KeySpec) -> (MechanismType, Option<usize>) {
    match spec {
        KeySpec::Rsa2048 => (MechanismType::RSA_PKCS_KEY_PAIR_GEN, Some(2048)),
        KeySpec::Rsa3072 => (MechanismType::RSA_PKCS_KEY_PAIR_GEN, Some(3072)),
        KeySpec::P256 => (MechanismType::ECC_KEY_PAIR_GEN, Some(256)),
        KeySpec::P384 => (MechanismType::ECC_KEY_PAIR_GEN, Some(384)),
        // Modules disagree whether its size is 255 or 256 bits.
        KeySpec::Ed25519 => (MechanismType::ECC_EDWARDS_KEY_PAIR_GEN, None),
    }
}

fn pss() -> PkcsPssParams {
    PkcsPssParams {
        hash_alg: MechanismType::SHA256,
        mgf: PkcsMgfType::MGF1_SHA256,
        s_len: 32.into(),
    }
}

fn digest(scheme: Scheme, message: &[u8]) -> Vec<u8> {
    use aws_lc_rs::digest::{SHA256, SHA384, digest};
    let algorithm = match scheme {
        Scheme::Rs256 | Scheme::Ps256 | Scheme::Es256 => &SHA256,
        Scheme::Es384 => &SHA384,
        Scheme::EdDsa => return message.to_vec(),
    };
    digest(algorithm, message).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(mechanisms: &[(MechanismType, bool, Option<RangeInclusive<usize>>)]) -> Offer {
        let offered = mechanisms.iter().map(|(mechanism, signs, sizes)| Offered {
            mechanism: *mechanism,
            signs: *signs,
            sizes: sizes.clone(),
        });
        Offer(offered.collect())
    }

    fn prepared(
        offer: &Offer,
        scheme: Scheme,
        bits: usize,
        input: Input,
        data: &[u8],
    ) -> Result<(MechanismType, Vec<u8>), Failure> {
        Offer::prepare(Some(offer), scheme, Some(bits), input, data)
            .map(|(mechanism, data)| (mechanism.mechanism_type(), data))
    }

    #[test]
    fn the_raw_mechanism_is_used_where_it_is_there_and_the_hashing_one_where_not() {
        let both = offer(&[
            (MechanismType::SHA256_RSA_PKCS, true, None),
            (MechanismType::RSA_PKCS, true, None),
        ]);
        let (mechanism, data) =
            prepared(&both, Scheme::Rs256, 2048, Input::Digest, &[7; 32]).unwrap();
        assert_eq!(mechanism, MechanismType::RSA_PKCS);
        assert_eq!((data.len(), &data[..19]), (51, &SHA256_DIGEST_INFO[..]));
        assert_eq!(both.hashes(), []);

        // The raw one encrypts, but does not sign.
        let hashing = offer(&[
            (MechanismType::RSA_PKCS, false, None),
            (MechanismType::SHA256_RSA_PKCS, true, None),
        ]);
        assert_eq!(hashing.signs(), [Scheme::Rs256]);
        assert_eq!(hashing.hashes(), [Scheme::Rs256]);
        let whole = prepared(&hashing, Scheme::Rs256, 2048, Input::Message, b"whole");
        assert_eq!(
            whole,
            Ok((MechanismType::SHA256_RSA_PKCS, b"whole".to_vec()))
        );
        let digest = prepared(&hashing, Scheme::Rs256, 2048, Input::Digest, &[7; 32]);
        assert!(matches!(digest, Err(Failure::Unsupported { .. })));
    }

    #[test]
    fn a_message_is_hashed_here_for_a_token_that_does_not() {
        let raw = offer(&[(MechanismType::ECDSA, true, None)]);
        let (mechanism, data) =
            prepared(&raw, Scheme::Es384, 384, Input::Message, b"whole").unwrap();
        assert_eq!((mechanism, data.len()), (MechanismType::ECDSA, 48));
    }

    #[test]
    fn a_flag_that_is_forgotten_forbids_nothing() {
        let forgetful = offer(&[(MechanismType::ECDSA, false, None)]);
        assert_eq!(forgetful.signs(), [Scheme::Es256, Scheme::Es384]);
    }

    #[test]
    fn sizes_and_lacking_mechanisms_are_refused_before_the_call() {
        let small = offer(&[(MechanismType::ECDSA, true, Some(256..=256))]);
        assert!(prepared(&small, Scheme::Es256, 256, Input::Digest, &[7; 32]).is_ok());
        for (scheme, bits, length) in [(Scheme::Es384, 384, 48), (Scheme::Rs256, 2048, 32)] {
            let refused = prepared(&small, scheme, bits, Input::Digest, &vec![7; length]);
            assert!(
                matches!(refused, Err(Failure::Unsupported { .. })),
                "{refused:?}"
            );
        }
        let unread = Offer::prepare(None, Scheme::Ps256, None, Input::Digest, &[7; 32]);
        assert!(matches!(unread, Ok((Mechanism::RsaPkcsPss(_), _))));
    }
}
