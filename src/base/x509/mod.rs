//! X.509 certificates, requests and revocation lists (RFC 5280, RFC 2986), signed by keys that
//! are elsewhere.
//!
//! A [`Draft`] gives the bytes to sign and, once the signature is there, the DER structure: the
//! private key never has to be a value of this program. Reading gives [`Certificate`],
//! [`CertificateRequest`] and [`Crl`], each existing only with its own checks passed.
//!
//! What never lives here: who is issued what, with which extensions and for how long (the authorities
//! decide that), and where a certificate or a list is kept.

mod certificate;
mod crl;
mod draft;
mod identity;
mod path;
mod request;
#[cfg(test)]
pub(crate) mod tests;

use std::time::{Duration, SystemTime};

use der::asn1::BitString;
use jiff::Timestamp;
use spki::AlgorithmIdentifierOwned;
use x509_cert::time::Time;

pub use certificate::{Certificate, CertificateFields, certificate_builder};
pub use crl::{Crl, Revocation, crl_draft};
pub use draft::{Draft, RemoteKey};
pub use identity::{OperatingIdentity, common_name, name};
pub use path::{DOCUMENT_SIGNING, PathError, StaleCrl, verify_chain, verify_operating_certificate};
pub use request::{AboutKey, CertificateRequest, request_draft, request_draft_about};

use super::key::{PublicKey, Scheme, Signature};

/// Why an X.509 structure cannot be built or was refused.
#[derive(Debug, thiserror::Error)]
pub enum X509Error {
    /// It cannot be encoded.
    #[error("cannot build the X.509 structure: {0}")]
    Build(String),
    /// It is not DER of the expected kind.
    #[error("malformed {what}")]
    Malformed {
        /// What was expected.
        what: &'static str,
    },
    /// The key in it is of a kind we do not support.
    #[error("the key in the {what} is not supported")]
    Key {
        /// Where the key is.
        what: &'static str,
    },
    /// Its signature does not verify.
    #[error("the signature of the {what} does not verify")]
    Signature {
        /// What was signed.
        what: &'static str,
    },
    /// Its issuer is not the expected one.
    #[error("the {what} is by another issuer")]
    Issuer {
        /// What was issued.
        what: &'static str,
    },
    /// No trusted path, or the certificate must not be used for this.
    #[error("the certificate is not valid: {0}")]
    Path(PathError),
}

fn build(error: impl std::fmt::Display) -> X509Error {
    X509Error::Build(error.to_string())
}

fn verify(
    key: &PublicKey,
    algorithm: &AlgorithmIdentifierOwned,
    signed: &[u8],
    signature: &BitString,
    what: &'static str,
) -> Result<(), X509Error> {
    let scheme = Scheme::from_x509(algorithm).ok_or(X509Error::Key { what })?;
    signature
        .as_bytes()
        .and_then(|bytes| Signature::from_x509(scheme, bytes))
        .and_then(|signature| key.verify(scheme, signed, &signature).ok())
        .ok_or(X509Error::Signature { what })
}

fn time(at: Timestamp) -> Result<Time, X509Error> {
    let seconds = u64::try_from(at.as_second()).map_err(build)?;
    Time::try_from(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).map_err(build)
}

fn timestamp(time: Time) -> Timestamp {
    i64::try_from(time.to_unix_duration().as_secs())
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or(Timestamp::MAX)
}
