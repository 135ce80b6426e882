//! WeChat Pay merchants: what is installed for each, and what is done for their servers.
//!
//! KEYS. A merchant has API keys on the token (one in use; more while a certificate is being
//! replaced), generated there or imported once, and a *sealing key*, an RSA key that only
//! decrypts. They are two keys on purpose: whoever may have fields decrypted must not be able to
//! have a sealed secret opened that way.
//!
//! SECRETS. The API secret and the APIv3 secret are kept as JWE for the sealing key, as they
//! came: nothing in the state directory opens without the token. One call opens one secret, uses
//! it and wipes it. When the current one does not fit and the one before is still in its overlap,
//! that is opened too, by a permit of its own.
//!
//! FROM AN ACCOUNT SERVICE they come by a courier: [`secret_requests`] asks, [`Merchants::take_secret`]
//! takes what the service signed, if its version is higher than the one here.
//!
//! EVERY CALL goes the same way: find the merchant, ask policy (a [`Permit`]), build or parse the
//! message by `wechatpay`, write the record, use the token, wait until the record is durable,
//! answer. Nothing ready-made is signed: a caller gives the parts, the string is built here.
//! Signatures are verified by `device` before they leave.
//!
//! PERSISTENT STATE. `merchants.json`, replaced whole ([`record`]); readers see one immutable
//! table. What was delivered by callbacks is remembered in memory and found again after a restart
//! in the audit records that each opened callback leaves ([`memory`]).
//!
//! What never lives here: how a message is built or read (`wechatpay`), what is allowed (`policy`),
//! and HTTP (`api`).

mod admin;
mod error;
mod memory;
mod record;
mod secret_requests;
mod uses;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::{Map, Value, json};

use crate::audit::{Audit, Event, Pending, Recovered};
use crate::base::Clock;
use crate::base::files;
use crate::base::ids::RequestId;
use crate::base::pkcs11::{KeyRef, TokenId};
use crate::device::Devices;
use crate::enrol::Registry;
use crate::policy::{
    self, Action, Caller, ClientPolicy, ConsentRule, Decision, NOT_ALLOWED, Permit, Policies,
    Refusal, RefusalCause, WechatPayUse,
};
use crate::wechatpay::MerchantId;

pub use admin::{
    Adding, ApiKeyView, MerchantView, NewKey, PlatformKeyView, PlatformPin, SecretSet, SecretView,
};
pub use error::{MerchantError, Missing};
use memory::Memory;
pub use record::{KeyOrigin, Link};
use record::{Merchant, Table};
pub use secret_requests::{MerchantSecretRequest, SecretRequests};
pub use uses::{
    Authorization, CertificatesTaken, Checked, EncryptedFields, Opened, PaySigned, PaymentToStart,
    RequestToSign, SignedV2, V2Message,
};

/// All merchants. Cloning shares them.
#[derive(Clone)]
pub struct Merchants(Arc<Inner>);

struct Inner {
    path: PathBuf,
    devices: Devices,
    registry: Registry,
    audit: Audit,
    policies: Policies,
    clock: Clock,
    table: ArcSwap<Table>,
    memory: Memory,
    /// Held by whoever changes the table.
    changing: tokio::sync::Mutex<()>,
    stable_code: StableCode,
}

/// The stable code of an error, for the records: those above this module name them.
pub type StableCode = fn(&MerchantError) -> &'static str;

/// Who asks, about which merchant.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The request's id, from the door.
    pub request: RequestId,
    /// Who asks, as the door found out.
    pub caller: Caller,
    /// What that caller may do; `None` where it is not registered.
    pub policy: Option<ClientPolicy>,
    /// For which merchant.
    pub merchant: MerchantId,
}

/// Leave to do one thing, and the rule that gave it.
struct Leave {
    permit: Permit,
    rule: String,
}

/// The file in the state directory.
const STATE: &str = "merchants.json";

impl Merchants {
    /// Reads `merchants.json` of the state directory.
    pub fn open(
        directory: &Path,
        devices: Devices,
        registry: Registry,
        audit: Audit,
        policies: Policies,
        clock: Clock,
        stable_code: StableCode,
    ) -> Result<Self, MerchantError> {
        let path = directory.join(STATE);
        let table = record::load(&path)?;
        Ok(Self(Arc::new(Inner {
            path,
            devices,
            registry,
            audit,
            policies,
            clock,
            table: ArcSwap::from_pointee(table),
            memory: Memory::new(),
            changing: tokio::sync::Mutex::new(()),
            stable_code,
        })))
    }

    /// How many merchants the state in `directory` has; what [`Merchants::open`] would refuse is an
    /// error. Needs no token.
    pub fn count(directory: &Path) -> Result<usize, MerchantError> {
        Ok(record::load(&directory.join(STATE))?.merchants.len())
    }

    /// The token that holds the keys of a merchant; `None` where it is not installed.
    pub fn token_of(&self, merchant: &MerchantId) -> Option<TokenId> {
        let known = self.0.table.load().merchants.get(merchant).cloned();
        known.map(|known| known.record.sealing.key.token.clone())
    }

    /// Finds in the audit records which callbacks were delivered before a restart. Reads nothing
    /// where there is no merchant.
    pub fn restore(&self, log: &Recovered) -> Result<(), MerchantError> {
        if self.0.table.load().merchants.is_empty() {
            return Ok(());
        }
        let now = self.0.clock.now();
        let records = log
            .since(memory::restore_since(now))
            .map_err(MerchantError::Log)?;
        self.0.memory.restore(records)
    }

    fn find(&self, ask: &Ask) -> Result<Arc<Merchant>, MerchantError> {
        let found = self.0.table.load().merchants.get(&ask.merchant).cloned();
        found.ok_or_else(|| match &ask.policy {
            // A client learns nothing about merchants that it may not act for.
            Some(policy)
                if !policy
                    .wechatpay
                    .iter()
                    .any(|rule| rule.merchant == ask.merchant) =>
            {
                MerchantError::Policy(Refusal {
                    rule: NOT_ALLOWED.into(),
                    reason: "no rule allows this".into(),
                    cause: RefusalCause::Rule,
                })
            }
            _ => MerchantError::Unknown {
                merchant: ask.merchant.clone(),
            },
        })
    }

    fn authorise(
        &self,
        ask: &Ask,
        key: &KeyRef,
        r#use: WechatPayUse,
    ) -> Result<Leave, MerchantError> {
        let now = self.0.clock.now();
        let set = self.0.policies.current();
        let decision = policy::decide(
            &set,
            &policy::Request {
                caller: &ask.caller,
                policy: ask.policy.as_ref(),
                key,
                action: Action::WechatPay(&ask.merchant, r#use),
                now,
            },
        );
        match decision {
            Decision::Granted(grant) => {
                let rule = grant.rule().to_owned();
                let permit = grant.permit(ConsentRule::None)?;
                Ok(Leave { permit, rule })
            }
            Decision::Refused(refusal) => Err(refusal.into()),
        }
    }

    /// Queues the record of one use.
    fn note(
        &self,
        ask: &Ask,
        r#use: WechatPayUse,
        rule: &str,
        facts: Value,
    ) -> Result<Pending, MerchantError> {
        let mut body = Map::from_iter([
            ("use".to_owned(), json!(r#use.name())),
            ("merchant".to_owned(), json!(ask.merchant)),
            ("caller".to_owned(), json!(ask.caller.to_string())),
            ("rule".to_owned(), json!(rule)),
        ]);
        if let Value::Object(facts) = facts {
            body.extend(facts);
        }
        let event = Event::new("wechatpay", Some(ask.request.clone()), &body)?;
        Ok(self.0.audit.append(event)?)
    }

    /// What came of a use; a refusal is recorded too, without waiting for it.
    fn concluded<T>(
        &self,
        ask: &Ask,
        r#use: WechatPayUse,
        result: Result<T, MerchantError>,
    ) -> Result<T, MerchantError> {
        if let Err(error) = &result {
            let rule = match error {
                MerchantError::Policy(refusal) => Some(&refusal.rule),
                _ => None,
            };
            let (caller, code) = (ask.caller.to_string(), (self.0.stable_code)(error));
            let body = json!({
                "use": r#use.name(),
                "merchant": ask.merchant,
                "caller": caller,
                "code": code,
                "rule": rule,
                "reason": crate::telemetry::Chain(error).to_string(),
            });
            let event = Event::new("wechatpay-refused", Some(ask.request.clone()), &body);
            let refused = |event| self.0.audit.refused(&caller, code, event);
            if let Err(lost) = event.and_then(refused) {
                tracing::error!(error = %crate::telemetry::Chain(&lost), "a refusal is not on record");
            }
        }
        result
    }

    /// Writes an event of the administration and waits until it is durable.
    async fn record(
        &self,
        kind: &'static str,
        request: &RequestId,
        body: &Value,
    ) -> Result<(), MerchantError> {
        let event = Event::new(kind, Some(request.clone()), body)?;
        self.0.audit.append(event)?.durable().await?;
        Ok(())
    }

    /// Replaces one merchant's entry, or takes it out; first on disk, then for readers. The
    /// caller holds `changing`.
    async fn publish(
        &self,
        merchant: &MerchantId,
        entry: Option<record::Record>,
    ) -> Result<(), MerchantError> {
        let mut merchants: BTreeMap<_, _> = self.0.table.load().merchants.clone();
        match entry {
            Some(record) => {
                merchants.insert(merchant.clone(), Arc::new(record.into_merchant()?));
            }
            None => {
                merchants.remove(merchant);
            }
        }
        let table = Table::new(merchants);
        let (path, bytes) = (self.0.path.clone(), table.to_json()?);
        tokio::task::spawn_blocking(move || files::write_atomic(&path, &bytes, 0o600))
            .await
            .map_err(|error| MerchantError::Task {
                problem: error.to_string(),
            })??;
        self.0.table.store(Arc::new(table));
        Ok(())
    }
}

impl std::fmt::Debug for Merchants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.0.table.load().merchants.keys())
            .finish()
    }
}
