//! Asking an account service for secrets: requests that a courier carries.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::record::Record;
use super::{MerchantError, Merchants};
use crate::base::ids::RequestId;
use crate::enrol::Standing;
use crate::policy::{self, Caller, Purpose};
use crate::statement::secret_request::Held;
use crate::statement::{Origin, SecretKind, SecretRequestClaims};
use crate::wechatpay::MerchantId;

/// Requests for a courier to carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SecretRequests {
    /// One for each merchant that takes secrets of the service.
    pub requests: Vec<MerchantSecretRequest>,
    /// Merchants that take secrets of it, but whose account has no certificate in force here that
    /// could sign a request.
    pub without_certificate: Vec<MerchantId>,
}

/// A request for the secrets of one merchant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MerchantSecretRequest {
    /// The merchant.
    pub merchant: MerchantId,
    /// JWS compact of type `opcert-secret-request+jwt`, good for five minutes.
    pub request: String,
}

impl Merchants {
    /// Makes the requests for secrets that `service` has, each signed by an operating certificate
    /// of this computer for the account that the merchant is linked to. They also tell the service
    /// what is here already.
    pub async fn ask_for_secrets(
        &self,
        request: &RequestId,
        by: &Caller,
        service: &Origin,
    ) -> Result<SecretRequests, MerchantError> {
        let table = self.0.table.load_full();
        let mut made = SecretRequests {
            requests: Vec::new(),
            without_certificate: Vec::new(),
        };
        for (merchant, known) in &table.merchants {
            let linked = known.record.link.as_ref();
            if linked.is_none_or(|link| link.service != *service) {
                continue;
            }
            match self.ask_for(request, by, &known.record).await? {
                Some(compact) => made.requests.push(MerchantSecretRequest {
                    merchant: merchant.clone(),
                    request: compact,
                }),
                None => made.without_certificate.push(merchant.clone()),
            }
        }
        Ok(made)
    }

    async fn ask_for(
        &self,
        request: &RequestId,
        by: &Caller,
        record: &Record,
    ) -> Result<Option<String>, MerchantError> {
        let now = self.0.clock.now();
        let snapshot = self.0.registry.snapshot();
        let Some(link) = &record.link else {
            return Ok(None);
        };
        // The newest first: it will be in force for longest.
        let signer = snapshot.certificates().iter().rev().find(|installed| {
            installed.service == link.service
                && installed.identity.account == link.account
                && snapshot.standing(installed, now) == Standing::Active
        });
        let Some(signer) = signer else {
            return Ok(None);
        };
        let version = |kind| {
            let held = record.secret(kind).and_then(|held| held.version);
            held.unwrap_or_default()
        };
        let claims = SecretRequestClaims {
            aud: link.service.clone(),
            iat: now.as_second(),
            account: link.account.clone(),
            computer: self.0.registry.computer().clone(),
            merchant: record.merchant.clone(),
            sealing_key: record.sealing.jwk.clone(),
            held: Held {
                api: version(SecretKind::Api),
                apiv3: version(SecretKind::ApiV3),
            },
        };
        let input = claims
            .signing_input(signer.scheme, &signer.chain)
            .map_err(|error| MerchantError::Task {
                problem: error.to_string(),
            })?;
        let body = json!({
            "merchant": record.merchant,
            "caller": by.to_string(),
            "service": link.service,
            "account": link.account,
            "certificate": signer.fingerprint(),
            "held": claims.held,
        });
        self.record("secret-request", request, &body).await?;
        let permit = policy::own(&signer.key, Purpose::SecretRequest)?;
        let devices = &self.0.devices;
        let signature = devices
            .sign(permit, signer.scheme, input.as_bytes())
            .await?;
        Ok(Some(SecretRequestClaims::assemble(input, &signature)))
    }
}
