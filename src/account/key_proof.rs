//! How the key of a certificate was proven, where it is more or less than usual.
//!
//! A certification request carries it: a note where the token's configuration waives a part of the
//! proof, and the device's own chain where it attests its keys. The note is the daemon's word. The
//! chain is verified here, up to the authorities of `[attestation]`; one that does not end there is
//! as good as none. Both are kept beside the certificate, in its record, and in what is told to the
//! administrators.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::base::x509::{Certificate, CertificateRequest};
use crate::device::AttestationConfig;
use crate::enrol::EnrolError;
use crate::enrol::attestation::{self, AttestedDevice};

/// The most letters that are kept of a note.
const NOTE_MAX: usize = 300;

/// The most certificates of a chain that are looked at.
const CHAIN_MAX: usize = 8;

/// How a key was proven beyond, or short of, what each key is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyProof {
    /// What the token did not prove, and its configuration waives: the words of the daemon that made
    /// the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waived: Option<String>,
    /// The device's word that the key was made in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attested: Option<AttestedKey>,
}

/// A chain that was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttestedKey {
    /// The subject of the maker's authority.
    pub maker: String,
    /// SHA-256 of the authority's certificate, hexadecimal.
    pub authority: String,
    /// What the device says of itself and of the key, where it does.
    #[serde(default, skip_serializing_if = "AttestedDevice::is_silent")]
    pub device: AttestedDevice,
}

impl KeyProof {
    /// Whether there is nothing to tell.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// Whose word counts, as the configuration says.
#[derive(Debug, Clone, Default)]
pub struct Makers {
    authorities: Vec<Certificate>,
    required: bool,
}

impl Makers {
    /// Reads the authorities; none where there is no configuration.
    pub fn read(config: Option<&AttestationConfig>) -> Result<Self, EnrolError> {
        let Some(config) = config else {
            return Ok(Self::default());
        };
        Ok(Self {
            authorities: attestation::authorities(&config.authorities)?,
            required: config.required,
        })
    }

    /// What a request says of its key. `None` where it must be attested and is not.
    pub fn judge(&self, csr: &CertificateRequest, now: Timestamp) -> Option<KeyProof> {
        let shown = csr.path().iter().take(CHAIN_MAX);
        let shown: Vec<Certificate> = shown
            .filter_map(|der| Certificate::from_der(der).ok())
            .collect();
        let found = attestation::verify(csr.public_key(), &shown, &self.authorities, now);
        if found.is_none() && self.required {
            return None;
        }
        let attested = found.map(|found| {
            let mut authorities = self.authorities.iter();
            let authority = authorities.find(|authority| {
                crate::base::encoding::hex(&authority.fingerprint()) == found.authority
            });
            AttestedKey {
                maker: authority.map_or_else(String::new, |authority| {
                    plain(&authority.subject().to_string())
                }),
                authority: found.authority,
                device: found.device,
            }
        });
        Some(KeyProof {
            waived: csr.note().map(plain),
            attested,
        })
    }
}

/// Text of others in one line, cut.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_control())
        .take(NOTE_MAX)
        .collect()
}
