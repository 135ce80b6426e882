//! Certificates on tokens, each under the `CKA_ID` of its key.

use der::{Decode, Encode};

use crate::base::pkcs11::{KeyId, KeyRef, TokenId};
use crate::device::Devices;
use crate::device::error::{DeviceError, unexpected};
use crate::device::frames::{Answer, CERTIFICATE_MAX, CertificateParts, Verb};
use crate::device::supervisor::handle::{Need, turn};

/// A certificate on a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCertificate {
    /// `CKA_ID`.
    pub id: KeyId,
    /// The DER certificate.
    pub der: Vec<u8>,
}
impl Devices {
    /// Stores a certificate under the key's `CKA_ID`, in place of any that is there. At most
    /// 16 KiB. A crash in between leaves both.
    pub async fn write_certificate(
        &self,
        key: &KeyRef,
        certificate_der: &[u8],
    ) -> Result<(), DeviceError> {
        let certificate = certificate_parts(&key.id, certificate_der)?;
        let module = self.module_of(&key.token)?;
        let _turn = turn(&module.writes).await?;
        let verb = |token| Verb::WriteCertificate {
            token,
            certificate: certificate.clone(),
        };
        let answer = self
            .call(
                &key.token,
                Some(key),
                Need::Login,
                module.config.call_timeout,
                verb,
            )
            .await?;
        match answer {
            Answer::Done => Ok(()),
            _ => Err(unexpected(&key.token.module)),
        }
    }

    /// The X.509 certificates on a token, but for those over 16 KiB or without a usable id.
    pub async fn certificates(
        &self,
        token: &TokenId,
    ) -> Result<Vec<TokenCertificate>, DeviceError> {
        let verb = |token, cursor| Verb::Certificates { token, cursor };
        let page = |answer| match answer {
            Answer::Certificates(page, next) => Some((page, next)),
            _ => None,
        };
        let entries = self.list(token, Need::Presence, verb, page).await?;
        Ok(entries
            .into_iter()
            .filter_map(|entry| {
                let id = KeyId::from_bytes(entry.id).ok()?;
                Some(TokenCertificate { id, der: entry.der })
            })
            .collect())
    }
}

/// Takes a certificate apart for `C_CreateObject` (PKCS#11 v3.0 section 4.6.3).
fn certificate_parts(id: &KeyId, der: &[u8]) -> Result<CertificateParts, DeviceError> {
    if der.len() > CERTIFICATE_MAX {
        return Err(DeviceError::TooLarge {
            what: "certificate",
            limit: CERTIFICATE_MAX,
        });
    }
    let malformed = |_| DeviceError::MalformedCertificate;
    let certificate = x509_cert::Certificate::from_der(der).map_err(malformed)?;
    let body = certificate.tbs_certificate();
    Ok(CertificateParts {
        id: id.as_bytes().to_vec(),
        label: "opcert".into(),
        der: der.to_vec(),
        subject: body.subject().to_der().map_err(malformed)?,
        issuer: body.issuer().to_der().map_err(malformed)?,
        serial: body.serial_number().to_der().map_err(malformed)?,
    })
}
