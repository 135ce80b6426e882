//! What the routes of `/v1` take and give, shared by server and client.
//!
//! Field names are snake_case, times RFC 3339, DER base64 (RFC 4648 section 4). Unknown fields of
//! a request are refused; a reader of answers must ignore those it does not know.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::clients::ClientKind;
use super::problem::Code;
use crate::base::ids::{AccountId, ClientName, ComputerId, EnrolmentId, Jti, OperatorId};
use crate::base::jose::JwkSet;
use crate::base::key::{KeySpec, Scheme};
use crate::base::pkcs11::TokenId;
use crate::base::secret::{Pin, exposed};
use crate::device::{HeldObject, ModuleStatus, TokenState, TokenStatus, UnlockOutcome};
use crate::enrol::Attestation;
use crate::policy::explain::Explanation;
use crate::policy::rules::Rule;
use crate::policy::{
    Administration, Changes, ClientPolicy, ConsentRule, Finding, WechatPayRule, WechatPayUse,
};
use crate::signing::token_test::KeyOutcome;
use crate::statement::{Kind, Language, Payee};
use crate::wechatpay::MerchantId;

/// The daemon in a few numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// This computer.
    pub computer: ComputerId,
    /// Where it listens.
    pub addresses: Addresses,
    /// The audit trail.
    pub audit: AuditStatus,
    /// Configured tokens that are present.
    pub tokens: usize,
    /// Installed operating certificates.
    pub certificates: usize,
    /// The configuration in force.
    pub configuration: ConfigurationStatus,
}

/// Where the daemon listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Addresses {
    /// Native doors, as `address:port`.
    pub native: Vec<String>,
    /// Browser doors; none where no origin is configured.
    #[serde(default)]
    pub browser: Vec<String>,
    /// The origins whose pages are served; a page is told its own only.
    #[serde(default)]
    pub origins: Vec<String>,
    /// Metrics besides the control socket; empty unless configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigurationStatus {
    /// The files it was read from, the main one first.
    pub files: Vec<String>,
    /// When it was read.
    pub read: String,
    /// Keys that have changed in the files since the start and need a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs_restart: Vec<String>,
    /// Set while the files were last read in vain; what was in force before still is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedConfiguration>,
}

/// A configuration that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedConfiguration {
    /// When it was read.
    pub at: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The audit trail in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditStatus {
    /// Durable records.
    pub records: u64,
    /// Whether a record could be written now; nothing is signed otherwise.
    pub writable: bool,
}

/// The configured tokens and modules.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Tokens {
    /// In the order of the configuration.
    pub tokens: Vec<TokenStatus>,
    /// In the order of the configuration.
    pub modules: Vec<ModuleStatus>,
}

/// A PIN for one token.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Unlock {
    /// Which token: a PKCS#11 URI (RFC 7512) that selects exactly one.
    pub uri: String,
    /// Its PIN; tried once. Without one the person at this computer is asked for it.
    #[schema(value_type = Option<String>, format = Password)]
    #[serde(default, serialize_with = "exposed")]
    pub pin: Option<Pin>,
    /// Whether to use the last try, after which a wrong PIN locks the token.
    #[serde(default)]
    pub last_try: bool,
}

/// What came of a PIN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unlocked {
    /// Whether the token looked at it.
    pub outcome: UnlockOutcome,
}

/// Makes a token; everything it held is destroyed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InitToken {
    /// The configured module; may be left out where there is one.
    #[serde(default)]
    pub module: Option<String>,
    /// Which token is initialized again: a PKCS#11 URI (RFC 7512). Without one it is the only token
    /// of the module that is not initialized.
    #[serde(default)]
    pub uri: Option<String>,
    /// Its label, 1 to 32 bytes.
    pub label: String,
    /// The security officer's PIN: the one it has, or of a blank token the one it gets. Left
    /// out, like all PINs here, where the token asks for it itself.
    #[schema(value_type = Option<String>, format = Password)]
    #[serde(default, serialize_with = "exposed")]
    pub so_pin: Option<Pin>,
    /// The user's PIN that it gets.
    #[schema(value_type = Option<String>, format = Password)]
    #[serde(default, serialize_with = "exposed")]
    pub user_pin: Option<Pin>,
    /// Whether a token that holds keys may lose them.
    #[serde(default)]
    pub erase_keys: bool,
    /// Whether to use the last try of the security officer's PIN.
    #[serde(default)]
    pub last_try: bool,
}

/// Asks what initializing a token would destroy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AskContents {
    /// The configured module, by its name; may be left out where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// The token, as PKCS#11 URI.
    pub uri: String,
}

/// The keys and certificates that a token shows without a login; others may show only after one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenContents {
    /// How many there are.
    pub count: u32,
    /// The first 32 of them.
    pub objects: Vec<HeldObject>,
}

/// A token that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenMade {
    /// The token.
    pub token: TokenId,
    /// The URI that selects it and no other.
    pub uri: String,
    /// Its state; absent where the configuration does not select it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<TokenState>,
}

/// Gives the user of a token a new PIN.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangePin {
    /// Which token: a PKCS#11 URI (RFC 7512) that selects exactly one.
    pub uri: String,
    /// The PIN as it is; tried once. Left out, like the next, where the token asks for it itself.
    #[schema(value_type = Option<String>, format = Password)]
    #[serde(default, serialize_with = "exposed")]
    pub pin: Option<Pin>,
    /// As it shall be.
    #[schema(value_type = Option<String>, format = Password)]
    #[serde(default, serialize_with = "exposed")]
    pub new_pin: Option<Pin>,
    /// Whether to use the last try, after which a wrong PIN locks the token.
    #[serde(default)]
    pub last_try: bool,
}

/// Gives the user of a token a new PIN where the old one is locked or forgotten.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UnblockPin {
    /// Which token: a PKCS#11 URI (RFC 7512) that selects exactly one.
    pub uri: String,
    /// The security officer's PIN; tried once. Left out, like the next, where the token asks for it
    /// itself.
    #[schema(value_type = Option<String>, format = Password)]
    #[serde(default, serialize_with = "exposed")]
    pub so_pin: Option<Pin>,
    /// The user's PIN as it shall be.
    #[schema(value_type = Option<String>, format = Password)]
    #[serde(default, serialize_with = "exposed")]
    pub new_pin: Option<Pin>,
    /// Whether to use the last try of the security officer's PIN.
    #[serde(default)]
    pub last_try: bool,
}

/// A token whose PIN is a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinSet {
    /// The token.
    pub token: TokenId,
}

/// Leaves a token to other programs.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseToken {
    /// Which token: a PKCS#11 URI (RFC 7512) that selects exactly one.
    pub uri: String,
}

/// A token that was released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenReleased {
    /// The token.
    pub token: TokenId,
}

/// Has keys of a token sign a fixed text.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TestToken {
    /// Which token: a PKCS#11 URI (RFC 7512) that selects exactly one. With `id` or `object` only
    /// the keys that these select are tested, otherwise all.
    pub uri: String,
}

/// How the keys of a token did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenTested {
    /// The token.
    pub token: TokenId,
    /// Its keys, in the order of the token.
    pub keys: Vec<KeyTested>,
}

/// How a key did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyTested {
    /// Its URI; without `id` where its `CKA_ID` names no key.
    pub uri: String,
    /// `CKA_LABEL`.
    pub label: String,
    /// What it is; absent for what is not used here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_type: Option<KeySpec>,
    /// How it was to sign.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// How it did.
    pub outcome: KeyOutcome,
    /// From the request to the verified signature, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microseconds: Option<u64>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<KeyProblem>,
}

/// What went wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyProblem {
    /// The stable code.
    pub code: Code,
    /// What happened.
    pub detail: String,
    /// What to do.
    pub action: String,
}

/// An account service as the courier met it; pinned by the first enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceDescription {
    /// `https://host[:port]`.
    pub origin: String,
    /// The keys its challenges and tickets are signed with.
    pub keys: JwkSet,
    /// Its issuing authorities, each base64 of DER.
    pub ca: Vec<String>,
}

/// Begins an enrolment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BeginEnrolment {
    /// The ticket that an SMS code bought.
    pub ticket: String,
    /// Which token the key is made on: a PKCS#11 URI; the only one where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The kind of key.
    pub key_type: KeySpec,
    /// The account service.
    pub service: ServiceDescription,
}

/// An enrolment that has begun and has no certificate yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enrolment {
    /// Its id.
    pub id: EnrolmentId,
    /// How far it is: `generating` or `requested`.
    pub state: String,
    /// The account.
    pub account: AccountId,
    /// The operator.
    pub operator: OperatorId,
    /// The computer.
    pub computer: ComputerId,
    /// The origin of the account service.
    pub service: String,
    /// The token that holds the key, as PKCS#11 URI.
    pub token: String,
    /// When it began.
    pub begun: String,
    /// The certification request to carry to the account service (PKCS#10), base64 of DER; empty
    /// while the key is being generated.
    pub csr: String,
    /// The device's word that the key was made in it, where it gives one and the configuration of
    /// the token names authorities; verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Attestation>,
    /// The ticket it began with, for a courier that resumes; on the control socket only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// All enrolments without a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Enrolments {
    /// Oldest first.
    pub enrolments: Vec<Enrolment>,
}

/// Ends an enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompleteEnrolment {
    /// The certificate issued for the request, then its issuers; each base64 of DER.
    pub certificates: Vec<String>,
}

/// An installed operating certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperatingCertificate {
    /// SHA-256 of the certificate, hexadecimal.
    pub fingerprint: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// The account.
    pub account: AccountId,
    /// The operator.
    pub operator: OperatorId,
    /// The computer.
    pub computer: ComputerId,
    /// The origin of the account service.
    pub service: String,
    /// The key, as PKCS#11 URI.
    pub key: String,
    /// The JOSE algorithm of its approvals.
    pub algorithm: String,
    /// Whether it may sign: `active`, `not-yet-valid`, `expired`, `revoked`, `superseded`.
    pub standing: String,
    /// First instant of validity.
    pub not_before: String,
    /// Last instant of validity.
    pub not_after: String,
    /// When it was installed.
    pub installed: String,
    /// The certificate, base64 of DER.
    pub certificate: String,
}

/// All installed operating certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperatingCertificates {
    /// In the order of installation.
    pub certificates: Vec<OperatingCertificate>,
}

/// Asks for an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestApproval {
    /// The challenge of the account service, compact JWS, unchanged.
    pub challenge: String,
    /// Whether a detached CMS signature is wanted besides.
    #[serde(default)]
    pub cms: bool,
    /// The list of payees, where the challenge's statement names one by its digest (`payees`): at
    /// most 1,000, in the order the operation was created with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payees: Option<Vec<Payee>>,
}

/// An approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Approval {
    /// The approval, compact JWS.
    pub approval: String,
    /// A detached CMS SignedData over the same payload, base64 of DER, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cms: Option<String>,
    /// Its `jti`.
    pub jti: Jti,
    /// The `jti` of the challenge; the approval can be had again by it.
    pub challenge_jti: Jti,
    /// What it approves, in words, where the request has `accept-language`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shown: Option<Shown>,
}

/// A statement in words, rendered from the payload that was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Shown {
    /// The language of title and labels.
    pub language: Language,
    /// What is approved, in a few words.
    pub title: String,
    /// All of its facts, top to bottom, as the person's window shows them.
    pub lines: Vec<ShownLine>,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShownLine {
    /// What it is.
    pub label: String,
    /// Its value.
    pub value: String,
}

/// A revocation list that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CrlTaken {
    /// The origin of the account service it is from.
    pub service: String,
    /// Its number.
    pub number: u64,
    /// How many certificates it revokes.
    pub revoked: usize,
}

/// A key set that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeysTaken {
    /// The origin of the account service it is from.
    pub service: String,
    /// Whether keys or authorities are pinned now that were not, or no longer.
    pub changed: bool,
}

/// Registers a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddClient {
    /// Its name: 1 to 63 lower-case letters, digits and inner hyphens.
    pub name: ClientName,
    /// A certification request (PKCS#10) by its own key: PEM, or base64 of DER. The names in it
    /// are not used.
    pub csr: String,
    /// What it speaks for: itself, or the pages in a browser.
    #[serde(default)]
    pub kind: ClientKind,
    /// What it may do; a person confirms every approval where it is left out.
    #[serde(default)]
    pub policy: ClientPolicy,
}

/// What a new client needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddedClient {
    /// Its name.
    pub name: ClientName,
    /// Its certificate, PEM.
    pub certificate: String,
    /// The authority to trust the daemon's doors by, PEM.
    pub ca: String,
    /// SHA-256 of its certificate, hexadecimal.
    pub fingerprint: String,
    /// When its certificate expires.
    pub expires: String,
}

/// A registered client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Client {
    /// Its name.
    pub name: ClientName,
    /// SHA-256 of its certificate, hexadecimal.
    pub fingerprint: String,
    /// When it was registered.
    pub added: String,
    /// When its certificate expires.
    pub expires: String,
    /// What it speaks for.
    #[serde(default)]
    pub kind: ClientKind,
    /// What it may do.
    pub policy: ClientPolicy,
}

/// All registered clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClientList {
    /// By name.
    pub clients: Vec<Client>,
}

/// The policy in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// SHA-256 over rules and limits, hexadecimal.
    pub digest: String,
    /// Its rules, by name.
    pub rules: Vec<Rule>,
    /// The names of its limits.
    pub limits: Vec<String>,
    /// What is doubtful about its rules.
    pub warnings: Vec<Finding>,
}

/// The policy that was read anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyReloaded {
    /// What is in force now.
    pub policy: Policy,
    /// How it differs from what was.
    pub changes: Changes,
}

/// A request that somebody wonders about: one of `kind` (an approval), `use` with `merchant` (a
/// WeChat Pay message) and `administration`. What else is left out is taken from what is installed
/// where something fits, or is an example.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainPolicy {
    /// The client that would ask; a local user where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientName>,
    /// The local user that would ask; the one who explains where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// As if the client were registered with this consent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consent: Option<ConsentRule>,
    /// As if it were registered for these kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kinds: Option<Vec<Kind>>,
    /// As if it were registered for these merchants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wechatpay: Option<Vec<WechatPayRule>>,
    /// The kind of operation that would be approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Minor units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<i64>,
    /// ISO 4217.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<String>,
    /// Who receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payee: Option<String>,
    /// Those who receive, of a batch; `count` and `amount` are theirs where they are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payees: Option<Vec<Payee>>,
    /// How many pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// The merchant's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The operator who would approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<OperatorId>,
    /// The origin of the account service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// As if so many had been approved today.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count_today: Option<u64>,
    /// As if so many minor units had been approved today.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sum_today: Option<u64>,
    /// What would be done for a WeChat Pay merchant.
    #[serde(default, rename = "use", skip_serializing_if = "Option::is_none")]
    pub r#use: Option<WechatPayUse>,
    /// For which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merchant: Option<MerchantId>,
    /// What would be changed of the daemon; `enrol` with `client` and `origin` is an installation
    /// by a page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub administration: Option<Administration>,
    /// The page that would ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// When; now where it is left out. RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// Why a request would be allowed or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyExplained {
    /// Who would ask.
    pub caller: String,
    /// What would be asked, as rules call it.
    pub action: String,
    /// The account that was taken, for an approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The operator that was taken, for an approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<OperatorId>,
    /// The certificate that was taken, for an approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// The merchant, for a WeChat Pay message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merchant: Option<MerchantId>,
    /// The token that was taken, where a key is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// This computer, for a change of its daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub computer: Option<ComputerId>,
    /// Why.
    #[serde(flatten)]
    pub explanation: Explanation,
}
