//! A JWS by an operating certificate, which it carries: approvals, and what a computer says of
//! itself. Anybody verifies one with nothing but the issuing authority's certificate.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::encoding::{base64, base64url, from_base64};
use crate::base::jose::{JoseError, Jws};
use crate::base::key::{KeyError, Scheme};
use crate::base::x509::{Certificate, Crl, StaleCrl, X509Error, verify_operating_certificate};

/// Most certificates that a header brings.
const CHAIN_MAX: usize = 4;

/// Why a JWS by an operating certificate was refused.
#[derive(Debug, thiserror::Error)]
pub enum CertifiedError {
    /// No compact JWS of this format.
    #[error("it is malformed: {0}")]
    Jose(#[from] JoseError),
    /// The certificate is malformed or has no valid path to the given authority.
    #[error("its certificate is refused: {0}")]
    Certificate(#[from] X509Error),
    /// The header's thumbprint is of another certificate.
    #[error("the thumbprint in its header is of another certificate")]
    Thumbprint,
    /// The signature does not verify.
    #[error("it is not sound: {0}")]
    Signature(#[from] KeyError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    typ: String,
    alg: Scheme,
    x5c: Vec<String>,
    #[serde(rename = "x5t#S256")]
    thumbprint: String,
}

/// The encoded header of a JWS of type `typ`, for signatures of `scheme` by the first certificate
/// of `chain`.
pub(super) fn header(
    typ: &'static str,
    scheme: Scheme,
    chain: &[Certificate],
) -> Result<String, serde_json::Error> {
    let header = Header {
        typ: typ.to_owned(),
        alg: scheme,
        x5c: chain
            .iter()
            .map(|certificate| base64(certificate.der()))
            .collect(),
        thumbprint: chain
            .first()
            .map(|leaf| base64url(&leaf.fingerprint()))
            .unwrap_or_default(),
    };
    Ok(base64url(&serde_json::to_vec(&header)?))
}

/// Verifies `compact`, of type `typ` and at most `limit` bytes, at `now` with the authorities
/// `anchors` and perhaps a revocation list. Gives the payload and the certificate that signed.
pub(super) fn open(
    compact: &str,
    typ: &'static str,
    limit: usize,
    anchors: &[Certificate],
    crl: Option<(&Crl, StaleCrl)>,
    now: Timestamp,
) -> Result<(Vec<u8>, Certificate), CertifiedError> {
    let jws = Jws::parse(compact, limit)?;
    let header: Header = jws.header(typ)?;
    let expected = JoseError::Header { expected: typ };
    if header.x5c.is_empty() || header.x5c.len() > CHAIN_MAX {
        return Err(expected.into());
    }
    let chain = header
        .x5c
        .iter()
        .map(|text| {
            let der = from_base64(text.as_bytes()).ok_or_else(|| expected.clone())?;
            Ok(Certificate::from_der(&der)?)
        })
        .collect::<Result<Vec<_>, CertifiedError>>()?;
    let (leaf, intermediates) = chain.split_first().ok_or(expected)?;
    if header.thumbprint != base64url(&leaf.fingerprint()) {
        return Err(CertifiedError::Thumbprint);
    }
    verify_operating_certificate(leaf, intermediates, anchors, crl, now)?;
    leaf.public_key()
        .verify(header.alg, jws.signing_input.as_bytes(), &jws.signature)?;
    Ok((jws.payload, leaf.clone()))
}
