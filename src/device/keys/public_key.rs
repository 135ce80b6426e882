//! From the attributes a token gives to a public key.

use der::Decode;

use crate::base::key::{Curve, KeyError, KeySpec, PublicKey};
use crate::device::frames::PublicParts;

/// `CKA_EC_PARAMS` of P-256: the DER object identifier 1.2.840.10045.3.1.7.
pub const P256_PARAMETERS: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// `CKA_EC_PARAMS` of P-384: the DER object identifier 1.3.132.0.34.
pub const P384_PARAMETERS: &[u8] = &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
/// `CKA_EC_PARAMS` of Ed25519: the DER object identifier 1.3.101.112 (RFC 8410).
pub const ED25519_PARAMETERS: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];
/// `CKA_EC_PARAMS` of Ed25519 as PKCS#11 v3.0 section 2.3.3 has it: a PrintableString.
pub const ED25519_CURVE_NAME: &[u8] = b"\x13\x0cedwards25519";

/// The curve that `CKA_EC_PARAMS` names; `None` for any other.
pub fn ec_spec(parameters: &[u8]) -> Option<KeySpec> {
    match parameters {
        P256_PARAMETERS => Some(KeySpec::P256),
        P384_PARAMETERS => Some(KeySpec::P384),
        ED25519_PARAMETERS | ED25519_CURVE_NAME => Some(KeySpec::Ed25519),
        _ => None,
    }
}

/// The kind of RSA key that a modulus belongs to; `None` for other sizes.
pub fn rsa_spec(modulus: &[u8]) -> Option<KeySpec> {
    let start = modulus.iter().position(|&byte| byte != 0)?;
    match modulus.len() - start {
        256 => Some(KeySpec::Rsa2048),
        384 => Some(KeySpec::Rsa3072),
        _ => None,
    }
}

/// Builds the key.
///
/// `CKA_EC_POINT` is a DER OCTET STRING by PKCS#11 v2.40, while tokens exist that give the bare
/// point, and v3.1 wants it bare for Edwards curves. A bare Ed25519 key may look like DER, so the
/// exact length decides.
pub fn parse(parts: &PublicParts) -> Result<PublicKey, KeyError> {
    match parts {
        PublicParts::Rsa { modulus, exponent } => PublicKey::from_rsa(modulus, exponent),
        PublicParts::Ec { parameters, point } => match ec_spec(parameters) {
            Some(KeySpec::P256) => PublicKey::from_ec_point(Curve::P256, bare_point(point, 65)?),
            Some(KeySpec::P384) => PublicKey::from_ec_point(Curve::P384, bare_point(point, 97)?),
            Some(KeySpec::Ed25519) => PublicKey::from_ed25519(bare_point(point, 32)?),
            Some(KeySpec::Rsa2048 | KeySpec::Rsa3072) | None => Err(KeyError::Unsupported),
        },
        PublicParts::Certificate(der) => PublicKey::from_spki(&certificate_spki(der)?),
    }
}

fn certificate_spki(der: &[u8]) -> Result<Vec<u8>, KeyError> {
    let certificate = x509_cert::Certificate::from_der(der).map_err(|_| KeyError::Malformed)?;
    der::Encode::to_der(certificate.tbs_certificate().subject_public_key_info())
        .map_err(|_| KeyError::Malformed)
}

/// The `length` bytes of a point, with or without the OCTET STRING around them.
fn bare_point(point: &[u8], length: usize) -> Result<&[u8], KeyError> {
    match point {
        bare if bare.len() == length => Ok(bare),
        [0x04, size, bare @ ..] if usize::from(*size) == length && bare.len() == length => Ok(bare),
        _ => Err(KeyError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_told_by_its_length() {
        let mut bare = vec![4; 65];
        assert_eq!(bare_point(&bare, 65), Ok(&bare[..]));
        let wrapped = [&[4, 65], &bare[..]].concat();
        assert_eq!(bare_point(&wrapped, 65), Ok(&bare[..]));
        bare.pop();
        assert_eq!(bare_point(&bare, 65), Err(KeyError::Malformed));
        // A bare Ed25519 key that begins like an OCTET STRING.
        let tricky = [&[4, 30][..], &[9; 30]].concat();
        assert_eq!(bare_point(&tricky, 32), Ok(&tricky[..]));
    }

    #[test]
    fn both_forms_of_ed25519_are_read() {
        // RFC 8032 section 7.1, test 1.
        let key = crate::base::encoding::from_hex(
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        )
        .unwrap();
        let wrapped = [&[4, 32][..], &key].concat();
        let both: Vec<_> = [(ED25519_PARAMETERS, key), (ED25519_CURVE_NAME, wrapped)]
            .into_iter()
            .map(|(parameters, point)| {
                parse(&PublicParts::Ec {
                    parameters: parameters.to_vec(),
                    point,
                })
                .unwrap()
            })
            .collect();
        assert_eq!(both[0], both[1]);
    }

    #[test]
    fn other_curves_are_refused() {
        let parts = PublicParts::Ec {
            parameters: vec![0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a],
            point: vec![4; 65],
        };
        assert_eq!(parse(&parts), Err(KeyError::Unsupported));
    }
}
