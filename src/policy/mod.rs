//! May this caller do this with this key? [`decide`] answers with a value.
//!
//! A yes is a [`Grant`]; it becomes a [`Permit`] once the consent it asks for was given. Every
//! private-key operation of `device` consumes a `Permit`, and only this module can make one:
//! that is how "nothing is signed that policy did not allow" is held by the compiler.
//!
//! Nothing here does input or output; time is an argument.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::base::ids::ClientName;
use crate::base::pkcs11::KeyRef;
pub use crate::statement::{Consent, ConsentMethod};
use crate::statement::{Kind, Statement};
use crate::wechatpay::MerchantId;
use crate::wechatpay::v3::{PaySign, RequestMessage};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Caller {
    /// A registered client, by the certificate it presented.
    Client(ClientName),
    /// A local user on the control socket, by peer credentials.
    Unix {
        /// Effective user id of the peer process.
        uid: u32,
    },
    /// The program that owns the key, for what it signs on its own account.
    Itself,
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Client(name) => write!(f, "client:{name}"),
            Self::Unix { uid } => write!(f, "uid:{uid}"),
            Self::Itself => f.write_str("self"),
        }
    }
}

/// What a client may do; kept with its registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ClientPolicy {
    /// Whether a person is asked before each approval.
    #[serde(default)]
    pub consent: ConsentRule,
    /// The operation kinds it may ask approvals for; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kinds: Option<Vec<Kind>>,
    /// The WeChat Pay merchants it may act for, and how; none when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wechatpay: Vec<WechatPayRule>,
}

/// What a client may do for one WeChat Pay merchant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct WechatPayRule {
    /// The merchant.
    pub merchant: MerchantId,
    /// What for.
    pub uses: Vec<WechatPayUse>,
}

/// What a merchant's key on the token is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WechatPayUse {
    /// Signing requests.
    Request,
    /// Signing the parameters that start a payment.
    Start,
    /// Decrypting fields.
    Decrypt,
}

impl WechatPayUse {
    fn purpose(self) -> Purpose {
        match self {
            Self::Request => Purpose::WechatPayRequest,
            Self::Start => Purpose::WechatPayStart,
            Self::Decrypt => Purpose::WechatPayDecrypt,
        }
    }
}

impl Default for ClientPolicy {
    fn default() -> Self {
        Self {
            consent: ConsentRule::Confirm,
            kinds: None,
            wechatpay: Vec::new(),
        }
    }
}

/// Whether a person must agree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConsentRule {
    /// Policy alone is enough.
    None,
    /// A person confirms what is shown.
    #[default]
    Confirm,
}

/// What a private key is to be used for. Each purpose has its own domain: see [`Purpose::admits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// An approval (`typ: opcert-approval+jwt`).
    Approval,
    /// A detached CMS signature over an approval's payload (signed attributes, RFC 5652 section 5.4).
    ApprovalCms,
    /// A certification request (PKCS#10, RFC 2986).
    CertificateRequest,
    /// A challenge of the account service (`typ: opcert-challenge+jwt`).
    Challenge,
    /// An enrolment ticket of the account service (`typ: opcert-ticket+jwt`).
    Ticket,
    /// A key set of the account service vouched for by an older key (`typ: opcert-keys+jwt`).
    KeySet,
    /// A certificate (RFC 5280 section 4).
    Certificate,
    /// A certificate revocation list (RFC 5280 section 5).
    Crl,
    /// The self-test of a token: a fixed text behind [`SELF_TEST_PREFIX`].
    SelfTest,
    /// A request to WeChat Pay's interface version 3 ([`RequestMessage`]).
    WechatPayRequest,
    /// The parameters that start a WeChat payment ([`PaySign`]).
    WechatPayStart,
    /// Decrypting a field that WeChat Pay encrypted for the merchant. Signs nothing.
    WechatPayDecrypt,
}

/// Begins every self-test message; no other signed format can begin so.
pub const SELF_TEST_PREFIX: &[u8] = b"opcert-self-test\0";

impl Purpose {
    /// The `typ` of the JWS this purpose signs, if it signs one.
    pub fn jws_type(self) -> Option<&'static str> {
        match self {
            Self::Approval => Some("opcert-approval+jwt"),
            Self::Challenge => Some("opcert-challenge+jwt"),
            Self::Ticket => Some("opcert-ticket+jwt"),
            Self::KeySet => Some("opcert-keys+jwt"),
            Self::ApprovalCms
            | Self::CertificateRequest
            | Self::Certificate
            | Self::Crl
            | Self::SelfTest
            | Self::WechatPayRequest
            | Self::WechatPayStart
            | Self::WechatPayDecrypt => None,
        }
    }

    /// Whether `message` lies in this purpose's domain, so that a permit for one purpose can
    /// never be spent on bytes that mean another.
    ///
    /// A JWS signing input begins with the base64url of `{"typ":"…"`, which our headers all
    /// start with; signed CMS attributes are a DER SET (0x31), the other X.509 structures a DER
    /// SEQUENCE (0x30), the self-test its prefix. WeChat Pay's messages are lines: a request begins
    /// with an HTTP method, a payment with an appid (`wx`, `ww`), and a JWS has no line end.
    pub fn admits(self, message: &[u8]) -> bool {
        match self {
            Self::Approval | Self::Challenge | Self::Ticket | Self::KeySet => {
                self.jws_type().is_some_and(|typ| {
                    let header = message
                        .split(|&byte| byte == b'.')
                        .next()
                        .unwrap_or_default();
                    std::str::from_utf8(header)
                        .ok()
                        .and_then(crate::base::encoding::from_base64url)
                        .is_some_and(|json| {
                            json.starts_with(format!("{{\"typ\":\"{typ}\"").as_bytes())
                        })
                })
            }
            Self::ApprovalCms => message.first() == Some(&0x31),
            Self::CertificateRequest | Self::Certificate | Self::Crl => {
                message.first() == Some(&0x30)
            }
            Self::SelfTest => message.starts_with(SELF_TEST_PREFIX),
            Self::WechatPayRequest => RequestMessage::admits(message),
            Self::WechatPayStart => PaySign::admits(message),
            Self::WechatPayDecrypt => false,
        }
    }
}

/// What is asked.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub caller: &'a Caller,
    /// What that caller may do; `None` where it is not registered.
    pub policy: Option<&'a ClientPolicy>,
    /// The key to use.
    pub key: &'a KeyRef,
    /// What for.
    pub action: Action<'a>,
    /// When.
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub enum Action<'a> {
    /// Sign an approval of this statement.
    Approve(&'a Statement),
    /// Use the key of this WeChat Pay merchant.
    WechatPay(&'a MerchantId, WechatPayUse),
    /// Anything a program signs on its own account.
    Own(Purpose),
}

/// The answer.
#[must_use]
#[derive(Debug)]
pub enum Decision {
    /// Yes, if the consent the grant asks for is given.
    Granted(Grant),
    /// No.
    Refused(Refusal),
}

/// Which rule said no, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The stable name of the rule.
    pub rule: &'static str,
    /// A sentence for people.
    pub reason: String,
}

/// A yes that may still need a person.
#[must_use]
#[derive(Debug)]
pub struct Grant {
    key: KeyRef,
    purpose: Purpose,
    consent: ConsentRule,
}

impl Grant {
    /// Whether a person must agree first.
    pub fn consent(&self) -> ConsentRule {
        self.consent
    }

    /// The permit, once consent is there. `given` must satisfy [`Grant::consent`].
    pub fn permit(self, given: &Consent) -> Result<Permit, Refusal> {
        let satisfied = match self.consent {
            ConsentRule::None => true,
            ConsentRule::Confirm => given.method != ConsentMethod::Policy,
        };
        if satisfied {
            Ok(Permit {
                key: self.key,
                purpose: self.purpose,
            })
        } else {
            Err(Refusal {
                rule: "consent",
                reason: "a person must confirm this operation".into(),
            })
        }
    }
}

/// Leave for one private-key operation. Spending it consumes it.
#[must_use]
#[derive(Debug)]
pub struct Permit {
    key: KeyRef,
    purpose: Purpose,
}

impl Permit {
    /// The one key it is good for.
    pub fn key(&self) -> &KeyRef {
        &self.key
    }

    /// Splits an approval's permit into one for the JWS and one for the CMS signature over the
    /// same payload; any other permit has no second half.
    pub fn with_cms(self) -> (Self, Option<Self>) {
        let cms = (self.purpose == Purpose::Approval).then(|| Self {
            key: self.key.clone(),
            purpose: Purpose::ApprovalCms,
        });
        (self, cms)
    }

    /// The one purpose it is good for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }
}

/// Decides one request.
pub fn decide(request: &Request<'_>) -> Decision {
    match (request.action, request.caller) {
        (Action::Own(Purpose::Approval | Purpose::ApprovalCms), _) => refuse(
            "approval-needs-statement",
            "an approval is signed only for a statement",
        ),
        (
            Action::Own(
                Purpose::WechatPayRequest | Purpose::WechatPayStart | Purpose::WechatPayDecrypt,
            ),
            _,
        ) => refuse(
            "wechatpay-needs-merchant",
            "a WeChat Pay key is used only for a client that may use it",
        ),
        (Action::Own(purpose), Caller::Itself) => grant(request, purpose, ConsentRule::None),
        (
            Action::Own(purpose @ (Purpose::CertificateRequest | Purpose::SelfTest)),
            Caller::Unix { .. },
        ) => grant(request, purpose, ConsentRule::None),
        (Action::Own(_), _) => refuse("not-yours", "only the program itself signs this"),
        (Action::Approve(_), Caller::Itself) => refuse(
            "no-self-approval",
            "the daemon approves nothing on its own account",
        ),
        (Action::Approve(statement), Caller::Client(name)) => {
            let Some(policy) = request.policy else {
                return refuse("client-unknown", format!("client {name} is not registered"));
            };
            approve(request, policy, statement)
        }
        (Action::Approve(statement), Caller::Unix { .. }) => {
            approve(request, &ClientPolicy::default(), statement)
        }
        (Action::WechatPay(merchant, r#use), Caller::Client(name)) => {
            let rules = request.policy.map(|policy| policy.wechatpay.as_slice());
            let allowed = rules
                .unwrap_or_default()
                .iter()
                .any(|rule| rule.merchant == *merchant && rule.uses.contains(&r#use));
            if allowed {
                grant(request, r#use.purpose(), ConsentRule::None)
            } else {
                refuse(
                    "client-wechatpay",
                    format!("client {name} may not do this for WeChat Pay merchant {merchant}"),
                )
            }
        }
        (Action::WechatPay(_, r#use), Caller::Unix { .. }) => {
            grant(request, r#use.purpose(), ConsentRule::None)
        }
        (Action::WechatPay(..), Caller::Itself) => refuse(
            "wechatpay-needs-merchant",
            "a WeChat Pay key is used only for a client that may use it",
        ),
    }
}

fn approve(request: &Request<'_>, policy: &ClientPolicy, statement: &Statement) -> Decision {
    let kind = statement.kind();
    if policy
        .kinds
        .as_ref()
        .is_some_and(|kinds| !kinds.contains(&kind))
    {
        return refuse(
            "client-kinds",
            format!("{} may not ask for {kind} approvals", request.caller),
        );
    }
    grant(request, Purpose::Approval, policy.consent)
}

fn grant(request: &Request<'_>, purpose: Purpose, consent: ConsentRule) -> Decision {
    Decision::Granted(Grant {
        key: request.key.clone(),
        purpose,
        consent,
    })
}

fn refuse(rule: &'static str, reason: impl Into<String>) -> Decision {
    Decision::Refused(Refusal {
        rule,
        reason: reason.into(),
    })
}

/// Leave for the program to sign on its own account with its own key; refused for anything that
/// needs a statement.
pub fn own(key: &KeyRef, purpose: Purpose, now: Timestamp) -> Result<Permit, Refusal> {
    let request = Request {
        caller: &Caller::Itself,
        policy: None,
        key,
        action: Action::Own(purpose),
        now,
    };
    match decide(&request) {
        Decision::Granted(grant) => grant.permit(&Consent {
            method: ConsentMethod::Policy,
            at: now.as_second(),
        }),
        Decision::Refused(refusal) => Err(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::encoding::base64url;
    use crate::base::pkcs11::{KeyId, TokenId};
    use crate::statement::Facts;

    fn key() -> KeyRef {
        KeyRef {
            token: TokenId {
                module: "m".into(),
                label: "t".into(),
                serial: "s".into(),
            },
            id: KeyId::from_bytes(vec![1]).unwrap(),
        }
    }

    fn withdrawal() -> Statement {
        Statement::new(
            "withdrawal".parse().unwrap(),
            "acme".parse().unwrap(),
            "alice".parse().unwrap(),
            Facts {
                amount: Some((100, "CNY".into())),
                payee: Some("Bank".into()),
                reference: Some("W-1".into()),
                ..Facts::default()
            },
        )
        .unwrap()
    }

    fn ask(
        caller: &Caller,
        policy: Option<&ClientPolicy>,
        action: Action<'_>,
    ) -> Result<ConsentRule, &'static str> {
        let key = key();
        let request = Request {
            caller,
            policy,
            key: &key,
            action,
            now: Timestamp::UNIX_EPOCH,
        };
        match decide(&request) {
            Decision::Granted(grant) => Ok(grant.consent()),
            Decision::Refused(refusal) => Err(refusal.rule),
        }
    }

    #[test]
    fn a_client_gets_what_its_registration_says() {
        let statement = withdrawal();
        let client = Caller::Client("till".parse().unwrap());
        let approve = Action::Approve(&statement);
        assert_eq!(ask(&client, None, approve), Err("client-unknown"));
        assert_eq!(
            ask(&client, Some(&ClientPolicy::default()), approve),
            Ok(ConsentRule::Confirm)
        );
        let silent = ClientPolicy {
            consent: ConsentRule::None,
            kinds: Some(vec!["withdrawal".parse().unwrap()]),
            ..ClientPolicy::default()
        };
        assert_eq!(ask(&client, Some(&silent), approve), Ok(ConsentRule::None));
        let other = ClientPolicy {
            kinds: Some(vec!["red-packet".parse().unwrap()]),
            ..silent
        };
        assert_eq!(ask(&client, Some(&other), approve), Err("client-kinds"));
        assert_eq!(
            ask(&Caller::Unix { uid: 7 }, None, approve),
            Ok(ConsentRule::Confirm)
        );
        assert_eq!(ask(&Caller::Itself, None, approve), Err("no-self-approval"));
    }

    #[test]
    fn a_merchants_key_is_used_by_rule_only() {
        let client = Caller::Client("till".parse().unwrap());
        let (ours, theirs) = ("1900007291".parse().unwrap(), "1900009191".parse().unwrap());
        let policy = ClientPolicy {
            wechatpay: vec![WechatPayRule {
                merchant: "1900007291".parse().unwrap(),
                uses: vec![WechatPayUse::Request, WechatPayUse::Start],
            }],
            ..ClientPolicy::default()
        };
        let ask = |caller, policy, merchant, r#use| {
            ask(caller, policy, Action::WechatPay(merchant, r#use))
        };
        let (refused, none) = (Err("client-wechatpay"), ClientPolicy::default());
        for (policy, merchant, r#use, expected) in [
            (
                Some(&policy),
                &ours,
                WechatPayUse::Request,
                Ok(ConsentRule::None),
            ),
            (
                Some(&policy),
                &ours,
                WechatPayUse::Start,
                Ok(ConsentRule::None),
            ),
            (Some(&policy), &ours, WechatPayUse::Decrypt, refused),
            (Some(&policy), &theirs, WechatPayUse::Request, refused),
            (Some(&none), &ours, WechatPayUse::Request, refused),
            (None, &ours, WechatPayUse::Request, refused),
        ] {
            assert_eq!(ask(&client, policy, merchant, r#use), expected);
        }
        let unix = Caller::Unix { uid: 0 };
        assert!(ask(&unix, None, &ours, WechatPayUse::Decrypt).is_ok());
        assert!(ask(&Caller::Itself, None, &ours, WechatPayUse::Request).is_err());
    }

    #[test]
    fn nobody_signs_an_approval_without_a_statement() {
        for caller in [Caller::Itself, Caller::Unix { uid: 0 }] {
            for purpose in [Purpose::Approval, Purpose::ApprovalCms] {
                assert_eq!(
                    ask(&caller, None, Action::Own(purpose)),
                    Err("approval-needs-statement")
                );
            }
        }
        assert_eq!(
            ask(
                &Caller::Unix { uid: 0 },
                None,
                Action::Own(Purpose::Certificate)
            ),
            Err("not-yours")
        );
        for purpose in [
            Purpose::WechatPayRequest,
            Purpose::WechatPayStart,
            Purpose::WechatPayDecrypt,
        ] {
            assert_eq!(
                ask(&Caller::Itself, None, Action::Own(purpose)),
                Err("wechatpay-needs-merchant")
            );
        }
    }

    #[test]
    fn consent_of_the_wrong_kind_makes_no_permit() {
        let grant = Grant {
            key: key(),
            purpose: Purpose::Approval,
            consent: ConsentRule::Confirm,
        };
        let consent = |method| Consent { method, at: 0 };
        assert_eq!(
            grant
                .permit(&consent(ConsentMethod::Policy))
                .unwrap_err()
                .rule,
            "consent"
        );
        let grant = Grant {
            key: key(),
            purpose: Purpose::Approval,
            consent: ConsentRule::Confirm,
        };
        let (permit, cms) = grant
            .permit(&consent(ConsentMethod::Pinentry))
            .unwrap()
            .with_cms();
        assert_eq!(permit.purpose(), Purpose::Approval);
        assert_eq!(cms.unwrap().purpose(), Purpose::ApprovalCms);
    }

    #[test]
    fn a_permit_admits_only_its_own_domain() {
        let jws = |typ: &str| {
            format!(
                "{}.e30",
                base64url(format!("{{\"typ\":\"{typ}\",\"alg\":\"ES256\"}}").as_bytes())
            )
        };
        let messages: Vec<(Purpose, Vec<u8>)> = vec![
            (Purpose::Approval, jws("opcert-approval+jwt").into()),
            (Purpose::Challenge, jws("opcert-challenge+jwt").into()),
            (Purpose::Ticket, jws("opcert-ticket+jwt").into()),
            (Purpose::KeySet, jws("opcert-keys+jwt").into()),
            (Purpose::ApprovalCms, vec![0x31, 0]),
            (Purpose::Certificate, vec![0x30, 0]),
            (Purpose::SelfTest, [SELF_TEST_PREFIX, b"x"].concat()),
            (
                Purpose::WechatPayRequest,
                b"POST\n/v3/pay/transactions/jsapi\n1554208460\nN\n{\"a\":\"wx1\\n\"}\n".into(),
            ),
            (
                Purpose::WechatPayRequest,
                b"GET\n/v3/certificates\n1554208460\nN\n\n".into(),
            ),
            (
                Purpose::WechatPayStart,
                b"wx2421b1c4370ec43b\n1554208460\nN\nprepay_id=wx2014\n".into(),
            ),
            (
                Purpose::WechatPayStart,
                b"wx2421b1c4370ec43b\n1554208460\nN\nwx2014\n".into(),
            ),
        ];
        for (purpose, _) in &messages {
            for (other, message) in &messages {
                assert_eq!(
                    purpose.admits(message),
                    purpose == other,
                    "{purpose:?} {other:?}"
                );
            }
            assert!(!purpose.admits(&[7; 32]), "a caller's hash");
            assert!(!purpose.admits(b""));
        }
        for (_, message) in &messages {
            assert!(!Purpose::WechatPayDecrypt.admits(message));
        }
    }
}
