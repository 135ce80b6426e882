//! Key attestation: a device's own word, in a certificate, that a key was made inside it.
//!
//! A device that attests has a key of its own, made at the factory, whose certificate the maker
//! signed. For a key that it generated it shows a further certificate: the same public key, signed
//! with the device's. YubiKeys show both as certificate objects beside the key (ykcs11: "X.509
//! Certificate for PIV Attestation 9a", and the one of slot f9); other makers have the same shape.
//! So nothing is asked of the label: what counts is that the public key is the same and that the
//! path ends at an authority that the configuration names for the token.
//!
//! Reading back `CKA_LOCAL` and its kin is the library's word; this is the device's. The chain goes
//! with the certification request, so that the account service can verify it up to the authorities
//! that it trusts itself.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::EnrolError;
use crate::base::encoding::{base64, from_base64, hex, sha256};
use crate::base::files::{Readers, read_checked};
use crate::base::key::PublicKey;
use crate::base::pkcs11::KeyRef;
use crate::base::x509::{Certificate, verify_chain};
use crate::device::Devices;

/// Most bytes of a file with authorities.
const ROOTS_MAX: u64 = 1024 * 1024;

/// Most certificates between the key and an authority, its own included.
const CHAIN_MAX: usize = 6;

/// A chain that was verified, for the record and for the account service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Attestation {
    /// The certificate of the key, then its issuers without the authority; each base64 of DER.
    pub chain: Vec<String>,
    /// The authority: SHA-256 of its certificate, hexadecimal.
    pub authority: String,
    /// What the device says of itself and of the key, where the certificate has it.
    #[serde(default, skip_serializing_if = "AttestedDevice::is_silent")]
    pub device: AttestedDevice,
}

impl Attestation {
    /// The chain, DER.
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        let ders = self.chain.iter();
        ders.map(|text| from_base64(text.as_bytes()).unwrap_or_default())
            .collect()
    }

    /// What records keep of it: hashes instead of certificates.
    pub(super) fn record(&self) -> serde_json::Value {
        let certificates = self.certificates();
        let hashes: Vec<String> = certificates.iter().map(|der| hex(&sha256(der))).collect();
        serde_json::json!({
            "chain": hashes,
            "authority": self.authority,
            "device": self.device,
        })
    }
}

/// The extensions of a YubiKey's attestation (developers.yubico.com, "PIV attestation").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AttestedDevice {
    /// The version of its firmware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// Its serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// When the key needs the PIN: `never`, `once`, `always`, `match-once` or `match-always`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_policy: Option<String>,
    /// When it needs a touch: `never`, `always` or `cached`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub touch_policy: Option<String>,
}

impl AttestedDevice {
    /// Whether it says nothing.
    pub fn is_silent(&self) -> bool {
        *self == Self::default()
    }

    /// Reads what is there; a maker that says nothing, or says it otherwise, is no error.
    fn of(certificate: &Certificate) -> Self {
        let mut device = Self::default();
        let extensions = certificate.inner().tbs_certificate().extensions();
        for extension in extensions.into_iter().flatten() {
            let value = extension.extn_value.as_bytes();
            match (extension.extn_id.to_string().as_str(), value) {
                ("1.3.6.1.4.1.41482.3.3", [major, minor, patch]) => {
                    device.firmware = Some(format!("{major}.{minor}.{patch}"));
                }
                // A DER INTEGER of a 32-bit number.
                ("1.3.6.1.4.1.41482.3.7", [2, length, number @ ..])
                    if usize::from(*length) == number.len() && number.len() <= 5 =>
                {
                    let serial = number
                        .iter()
                        .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
                    device.serial = Some(serial.to_string());
                }
                ("1.3.6.1.4.1.41482.3.8", [pin, touch]) => {
                    let name = |names: &[&str], number: u8| {
                        let name = names.get(usize::from(number).checked_sub(1)?)?;
                        Some((*name).to_owned())
                    };
                    let pins = ["never", "once", "always", "match-once", "match-always"];
                    device.pin_policy = name(&pins, *pin);
                    device.touch_policy = name(&["never", "always", "cached"], *touch);
                }
                _ => {}
            }
        }
        device
    }
}

/// The makers' authorities in PEM files.
pub fn authorities(paths: &[PathBuf]) -> Result<Vec<Certificate>, EnrolError> {
    let mut authorities = Vec::new();
    for path in paths {
        let pem = read_checked(path, Readers::Anybody, ROOTS_MAX)?;
        let found = Certificate::all_from_pem(&pem).map_err(|error| EnrolError::Damaged {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        authorities.extend(found);
    }
    Ok(authorities)
}

/// Looks for the attestation of a key that was just generated. `None` where the token's
/// configuration names no authorities, or the token has no attestation under them and need not.
pub async fn attest(
    devices: &Devices,
    key: &KeyRef,
    public_key: &PublicKey,
    now: Timestamp,
) -> Result<Option<Attestation>, EnrolError> {
    let Some(config) = devices.attestation(&key.token)? else {
        return Ok(None);
    };
    let authorities = authorities(&config.authorities)?;
    let shown: Vec<Certificate> = devices
        .certificates(&key.token)
        .await?
        .iter()
        // Whatever else is on the token may have keys that we do not know.
        .filter_map(|certificate| Certificate::from_der(&certificate.der).ok())
        .collect();
    match verify(public_key, &shown, &authorities, now) {
        Some(attestation) => Ok(Some(attestation)),
        None if config.required => Err(EnrolError::NotAttested {
            token: key.token.to_string(),
        }),
        None => Ok(None),
    }
}

/// The chain from a certificate of `key` to one of `authorities`, among those that are shown.
pub fn verify(
    key: &PublicKey,
    shown: &[Certificate],
    authorities: &[Certificate],
    now: Timestamp,
) -> Option<Attestation> {
    shown
        .iter()
        .filter(|certificate| certificate.public_key() == key)
        .find_map(|leaf| {
            let chain = issuers(leaf, shown, authorities);
            let last = chain.last()?;
            let intermediates: Vec<Certificate> = chain.iter().skip(1).copied().cloned().collect();
            // Authorities of one name may have different keys.
            let authority = authorities.iter().find(|authority| {
                let anchor = std::slice::from_ref(*authority);
                authority.subject() == last.issuer()
                    && verify_chain(leaf, &intermediates, anchor, now).is_ok()
            })?;
            Some(Attestation {
                chain: chain
                    .iter()
                    .map(|certificate| base64(certificate.der()))
                    .collect(),
                authority: hex(&authority.fingerprint()),
                device: AttestedDevice::of(leaf),
            })
        })
}

/// The leaf, then each certificate's issuer, until one of the authorities is the next.
fn issuers<'a>(
    leaf: &'a Certificate,
    shown: &'a [Certificate],
    authorities: &[Certificate],
) -> Vec<&'a Certificate> {
    let mut chain = vec![leaf];
    while chain.len() < CHAIN_MAX {
        let Some(last) = chain.last() else {
            break;
        };
        let issuer = last.issuer();
        if authorities
            .iter()
            .any(|authority| authority.subject() == issuer)
        {
            break;
        }
        let next = shown.iter().find(|certificate| {
            certificate.subject() == issuer
                && chain.iter().all(|known| known.der() != certificate.der())
        });
        match next {
            Some(next) => chain.push(next),
            None => break,
        }
    }
    chain
}
