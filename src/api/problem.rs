//! Every error an HTTP answer or a start-up message can carry, by its stable code.
//!
//! [`Code`] lists each once with its HTTP status, its title and what to do about it. Domain
//! errors know nothing of HTTP: the `From` implementations at the foot of this file map each of
//! them (those of programs above this module stand beside their errors).
//!
//! An answer is an RFC 9457 document ([`ProblemDocument`], `application/problem+json`). A handler
//! returns a [`Problem`]; [`finish`], the outermost layer of each router, gives the request its
//! id and writes the document.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_LANGUAGE, CONTENT_TYPE, RETRY_AFTER, VARY};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tracing::Instrument;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};

use super::chinese;
use super::language::{content_language, preferred};
use crate::base::ids::RequestId;
use crate::statement::Language;
use crate::telemetry::metrics::metrics;
use crate::telemetry::trace::{self, TraceId};

/// The media type of [`ProblemDocument`] (RFC 9457 section 6.1).
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Names the request in every answer, in problem documents, in logs and in the audit trail.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Names the trace that a request belongs to (W3C Trace Context section 3.2).
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

macro_rules! codes {
    ($($name:ident $text:literal $status:literal $title:literal $action:literal;)*) => {
        /// A stable code. Programs compare these; the sentences beside them may change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $(
                #[doc = $title]
                #[serde(rename = $text)]
                $name,
            )*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The code itself.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status, as a number. Codes that never reach HTTP have 500.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The error in a few words.
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// What to do about it.
            pub fn action(self) -> &'static str {
                match self { $(Self::$name => $action,)* }
            }
        }
    };
}

codes! {
    // Tokens.
    PinWrong "pin-wrong" 422 "The PIN is wrong" "Check the PIN and run `opcert token unlock`; the daemon does not try it again by itself.";
    PinLocked "pin-locked" 409 "The token is locked" "Have its security officer set another PIN with `opcert token pin unblock`.";
    PinNeeded "pin-needed" 409 "The token needs its PIN" "Run `opcert token unlock`.";
    PinFinalTry "pin-final-try" 409 "One PIN try is left" "If you are sure of the PIN, run `opcert token unlock --last-try`; a wrong PIN locks the token.";
    SoPinWrong "so-pin-wrong" 422 "The security officer's PIN is wrong" "Check it; each wrong one spends a try, and it cannot be reset once it is locked.";
    SoPinLocked "so-pin-locked" 409 "The security officer's PIN is locked" "See what the token's maker offers; most tokens can only be reset with the loss of all they hold.";
    SoPinFinalTry "so-pin-final-try" 409 "One try of the security officer's PIN is left" "If you are sure of it, say so with `--last-try`; a wrong one locks it.";
    PinUnfit "pin-unfit" 422 "The token does not take PINs of this length" "Choose a PIN of the length that is named; nothing was tried.";
    TokenHoldsKeys "token-holds-keys" 409 "The token holds keys" "Choose another token, or say with `--erase-keys` that its keys may be destroyed; certificates for them are lost.";
    TokenInUse "token-in-use" 409 "The token is in use" "Run `opcert token release`, or end the program that uses it, and try again.";
    TokenAbsent "token-absent" 404 "There is no such token" "Insert the token, or choose one that `opcert token list` shows.";
    TokenAmbiguous "token-ambiguous" 409 "More than one token fits" "Name one by its URI with a serial number; `opcert token list` shows them.";
    TokenTimeout "token-timeout" 504 "The token did not answer in time" "Try again; if it persists, check the token's connection with `opcert doctor`.";
    TokenDown "token-down" 503 "The token cannot be reached" "Try again shortly; the daemon is restarting its worker. `opcert doctor` says more if it persists.";
    TokenError "token-error" 502 "The token reported an error" "See the daemon's log for the PKCS#11 function and result; `opcert doctor` checks the token.";
    ModuleMissing "module-missing" 503 "The PKCS#11 module is not there" "Install the vendor's library, or correct `path` of its [[module]] in opcertd.toml.";
    KeyMissing "key-missing" 404 "The key is not on the token" "Choose an installed certificate with `opcert list`, or install one with `opcert install`.";
    KeyNotProven "key-not-proven" 422 "The token does not prove that the key cannot leave it" "Use a token that generates keys with CKA_SENSITIVE set and CKA_EXTRACTABLE cleared.";
    KeyNotAttested "key-not-attested" 422 "The token does not attest that the key was made in it" "Use a token that attests its keys, name its maker's authority in `attestation`, or do not require it there.";
    KeyUnsupported "key-unsupported" 501 "The token cannot make such a key" "Choose another key type with `--key-type`.";
    SignatureInvalid "signature-invalid" 502 "The token returned a wrong signature" "Nothing was released. Check the token with its maker's tool before using it again.";

    // Requests.
    Busy "busy" 503 "Too much is going on" "Try again after the time in `retry-after`.";
    TooManyFailures "too-many-failures" 429 "Too many requests of this caller were refused" "Wait for the time in `retry-after`; then use a registered certificate or an allowed user.";
    TooLarge "too-large" 413 "The request is too large" "Send less, or have the limit raised in the configuration.";
    TooSlow "too-slow" 408 "The request did not arrive in time" "Send it again over a working connection.";
    Malformed "malformed" 400 "The request is malformed" "Compare it with the OpenAPI document at /v1/openapi.json.";
    UnsupportedMediaType "unsupported-media-type" 415 "The media type is not accepted" "Set `content-type` as the OpenAPI document says, for JSON to application/json.";
    NotFound "not-found" 404 "There is nothing at this address" "Compare the path with the OpenAPI document at /v1/openapi.json.";
    MethodNotAllowed "method-not-allowed" 405 "The method is not allowed here" "Use a method that the `allow` header names.";
    Internal "internal" 500 "The program failed" "See its log for the request id; report it if it happens again.";

    // Doors and callers.
    ClientUnknown "client-unknown" 403 "The client is not registered" "Register programs with `opcert client add`; for browsers run `opcert browser remove`, then `opcert browser setup`, and start them again.";
    ClientCertificateMissing "client-certificate-missing" 401 "No client certificate was presented" "Connect with the certificate that `opcert client add` made; for a browser, run `opcert browser setup` and start it again.";
    BrowserRefused "browser-refused" 403 "Browsers are not served at this door" "Send no `origin` and no `sec-fetch-*` header; a page needs the browser door.";
    HostRefused "host-refused" 421 "The host name is not one of this door" "Connect to localhost, 127.0.0.1 or [::1] with the door's own port.";
    OriginRefused "origin-refused" 403 "Pages of this origin are not served" "Use the account service's own pages; an administrator lists the origins that are served under `[browser] origins` of opcertd.toml.";
    FetchRefused "fetch-refused" 403 "Such a request is not served" "Use `fetch` in mode `cors`; links, forms, images and `no-cors` requests are not served.";
    ClientKindRefused "client-kind" 403 "The client is registered for another use" "Register programs with `opcert client add`, browsers with `opcert browser setup`.";
    NotPermitted "not-permitted" 403 "This caller may not do that" "Use the control socket, as root, as the service user or as a member of its group.";
    ClientExists "client-exists" 409 "A client of that name exists" "Choose another name, or remove the old one with `opcert client remove`.";
    ClientNameInvalid "client-name-invalid" 422 "The client name is not allowed" "Use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end.";
    CsrInvalid "csr-invalid" 422 "The certificate request is not valid" "Make a new one: PKCS#10, signed by its own key, of a supported key type.";

    // Approvals.
    PolicyRefused "policy-refused" 403 "Policy refuses this" "Ask the administrator of this computer to change the client's policy if it should be allowed.";
    LimitReached "limit-reached" 429 "A limit is reached" "Try again after the time in `retry-after`, or have the administrator of this computer raise the limit.";
    ConsentDenied "consent-denied" 403 "The person declined" "Ask the person at this computer. This challenge stays refused; if that was a mistake, ask for a new one.";
    ConsentUnavailable "consent-unavailable" 503 "No person can be asked" "Install pinentry, set `pinentry` under `[consent]` of opcertd.toml and restart the daemon, or register the program with `--consent none`.";
    ConsentTimeout "consent-timeout" 408 "The person did not answer in time" "Try again while somebody is at this computer.";
    ChallengeMalformed "challenge-malformed" 422 "The challenge is malformed" "Ask the account service for a new challenge and pass it on unchanged.";
    ChallengeSignature "challenge-signature" 422 "The challenge's signature does not verify" "Ask the account service for a new challenge; this one was changed or is not from it.";
    ChallengeExpired "challenge-expired" 422 "The challenge has expired" "Ask the account service for a new challenge; check this computer's clock if it happens again.";
    ChallengeNotYetValid "challenge-not-yet-valid" 422 "The challenge is from the future" "Check this computer's clock and ask for a new challenge.";
    ChallengeAudience "challenge-audience" 422 "The challenge is not for this daemon" "Ask for a challenge whose audience is `opcert`.";
    ChallengeAccount "challenge-account" 422 "The challenge is for another account or operator" "Ask for a challenge of the account and operator whose certificate is installed; `opcert list` shows them.";
    ChallengeOrigin "challenge-origin" 422 "The challenge may not be relayed from here" "Use the page or program that the challenge was made for.";
    ChallengeIssuerUnknown "challenge-issuer-unknown" 422 "The challenge's issuer is not known here" "Install a certificate of that account service with `opcert install`.";
    ChallengeKeyUnknown "challenge-key-unknown" 422 "The challenge is signed by an unknown key" "Fetch the service's current keys with `opcert sync`, then ask for a new challenge.";
    ChallengeUsed "challenge-used" 409 "The challenge was already used" "Ask the account service for a new challenge.";
    PayeesInvalid "payees-invalid" 422 "The list of payees is not the one of the challenge" "Send the list that the operation was created with, unchanged, beside the challenge.";
    StatementInvalid "statement-invalid" 422 "The statement breaks the rules of its kind" "Correct the operation and ask for a new challenge.";
    CertificateMissing "certificate-missing" 422 "No operating certificate is installed for this operator" "Install one with `opcert install`.";
    CertificateExpired "certificate-expired" 422 "The operating certificate has expired" "Install a new one with `opcert install`.";
    CertificateRevoked "certificate-revoked" 422 "The operating certificate is revoked" "Install a new one with `opcert install`, if the account still allows it.";
    AuditUnavailable "audit-unavailable" 503 "The audit record cannot be written" "Nothing was signed. Check space and permissions of the audit directory.";
    DatabaseUnavailable "database-unavailable" 503 "The account service's database does not answer" "Nothing was changed, unless the request went through before: send it again with the same idempotency key after the time in `retry-after`. If it stays so, whoever runs the service looks at its log, its disk and its database.";
    ApprovalUnknown "approval-unknown" 404 "There is no such approval" "Check the `jti`; approvals are kept as long as their challenges could be repeated.";

    // Enrolment and revocation lists.
    EnrolmentUnknown "enrolment-unknown" 404 "There is no such enrolment" "List them with GET /v1/enrolments, or begin a new one with `opcert install`.";
    EnrolmentState "enrolment-state" 409 "The enrolment is not in a state for this" "See its state in GET /v1/enrolments; cancel it and begin again if need be.";
    CertificateMismatch "certificate-mismatch" 422 "The certificate does not fit the enrolment" "Fetch the certificate that was issued for this request and ticket.";
    TicketInvalid "ticket-invalid" 422 "The ticket is not valid" "Ask for a new SMS code and ticket with `opcert install`.";
    CrlInvalid "crl-invalid" 422 "The revocation list is not valid" "Fetch the current list from the account service.";
    KeysInvalid "keys-invalid" 422 "The key set is not valid" "Fetch the current key set from the account service.";

    // WeChat Pay.
    MerchantUnknown "merchant-unknown" 404 "The merchant is not installed here" "List the installed ones with `opcert wechatpay merchant list`, or add it with `opcert wechatpay merchant add`.";
    MerchantExists "merchant-exists" 409 "The merchant is installed already" "See it with `opcert wechatpay merchant list`; `merchant renew` adds a key for a next certificate.";
    MerchantNotReady "merchant-not-ready" 409 "Something has to be installed for this merchant first" "See what it has with `opcert wechatpay merchant list`; certificate, secrets and platform keys have commands of their own under `opcert wechatpay`.";
    WechatpayMessage "wechatpay-message" 422 "There is no message to sign in this" "Give the parts of the request exactly as it is sent.";
    WechatpaySignature "wechatpay-signature" 422 "The message is not proven to be the platform's" "Do not act on it. Answer a callback with a failure: the platform delivers it again, and what it sends as a probe is to fail.";
    WechatpayKeyUnknown "wechatpay-key-unknown" 422 "The platform key that the message names is not held" "Fetch the platform's certificates with `opcert wechatpay platform fetch`, or pin its public key with `opcert wechatpay platform pin`.";
    WechatpayContent "wechatpay-content" 422 "The encrypted content does not open" "Do not act on it; check that this merchant's secret and certificate here are those of the platform.";
    WechatpayReplayed "wechatpay-replayed" 409 "This very message was opened before" "Do not act on it again; a true repetition by the platform is signed anew.";
    WechatpayFields "wechatpay-fields" 422 "The version 2 message is not acceptable" "Send flat XML or fields as the interface describes them.";
    WechatpayPlatformKey "wechatpay-platform-key" 422 "The platform key is not taken" "Check that it is of this merchant's platform and unchanged.";
    MerchantCertificate "merchant-certificate" 422 "The API certificate is not taken" "Give the certificate that the merchant platform issued for the request of this merchant's key.";
    PrivateKeyInvalid "private-key-invalid" 422 "The private key cannot be imported" "Give apiclient_key.pem as it came, or better let the token generate a key.";
    SecretInvalid "secret-invalid" 422 "The secret is not taken" "Give the 32 characters that were set on the merchant platform, sealed to the merchant's current sealing key.";

    // Account service.
    SmsCodeWrong "sms-code-wrong" 422 "The SMS code is wrong" "Check the code and try again; a code allows three tries.";
    SmsCodeExpired "sms-code-expired" 422 "The SMS code has expired" "Ask for a new code.";
    SmsCodeSpent "sms-code-spent" 422 "The SMS code is used up" "Ask for a new code.";
    SmsTooSoon "sms-too-soon" 429 "A code was sent a moment ago" "Wait for the time in `retry-after`, then ask again.";
    SmsUnavailable "sms-unavailable" 503 "The SMS cannot be sent" "Try again later; the operator of the service should check the SMS gateway.";
    LoginFailed "login-failed" 401 "Account, operator or password is wrong" "Check all three and try again.";
    LoginThrottled "login-throttled" 429 "Too many log-ins failed" "Wait for the time in `retry-after`, then try again with the right password.";
    SessionEnded "session-ended" 401 "The session has ended" "Log in again.";
    CsrfRefused "csrf-refused" 403 "The request does not come from a page of this service" "Load the page again and repeat what you did.";
    InstallationHeld "installation-held" 409 "The installation waits for an administrator" "Have an administrator of the account approve it, then try again.";
    RenewalTooEarly "renewal-too-early" 409 "The certificate cannot be renewed yet" "Renew it in the last third of its validity.";
    RequestState "request-state" 409 "The request is not in a state for this" "See its state in GET /v1/requests/{id}.";
    PaperRefused "paper-refused" 422 "The paper is refused" "Send a picture (JPEG or PNG), a PDF or, for the document, a DOCX, of at most 5 MiB.";
    SecretRequestInvalid "secret-request-invalid" 422 "The request for secrets is refused" "Run `opcert sync` again on that computer; `opcert doctor` checks its clock and certificate.";
    TicketSpent "ticket-spent" 409 "The ticket was already used" "Ask for a new SMS code and ticket.";
    QuotaComputers "quota-computers" 409 "The account has as many computers as it may" "Delete the certificates of a computer that is no longer used, in the portal under Operating Certificate.";
    QuotaCertificates "quota-certificates" 409 "The account has as many certificates as it may" "Delete a certificate that is no longer used, in the portal under Operating Certificate.";
    ApprovalInvalid "approval-invalid" 422 "The approval does not verify" "Have the operation approved again with a new challenge.";
    OperationState "operation-state" 409 "The operation is not in a state for this" "See its state in GET /v1/operations/{id}.";
    Unauthenticated "unauthenticated" 401 "Credentials are missing or wrong" "Send the credentials that the OpenAPI document names.";
    Forbidden "forbidden" 403 "These credentials do not allow that" "Use credentials of the right account and role.";
    IdempotencyConflict "idempotency-conflict" 409 "The idempotency key was used for another request" "Use a new idempotency key for each new request.";

    // Start-up: printed, never served.
    ConfigUnreadable "config-unreadable" 500 "The configuration cannot be read" "Check the path, and that the service user may read the file; `opcert init` writes a first one.";
    ConfigPermissions "config-permissions" 500 "The configuration is open to others" "Make it owned by root or the service user and set its mode to 0600 or 0640.";
    ConfigSyntax "config-syntax" 500 "The configuration is not valid TOML" "Correct the line that is named.";
    ConfigUnknownKey "config-unknown-key" 500 "The configuration has an unknown key" "Correct or remove the key that is named.";
    ConfigValue "config-value" 500 "A configuration value is not allowed" "Correct the value that is named.";
    PolicyInvalid "policy-invalid" 422 "The policy rules are not sound" "Correct the lines that are named; `opcert policy check` reads the rules without a daemon.";
    PortInUse "port-in-use" 500 "The address is taken" "Stop the program that listens there, or configure another address.";
    StateUnusable "state-unusable" 500 "The state directory cannot be used" "Check that it exists, has room, and belongs to the service user.";
}

impl Code {
    /// Its title, and what to do about it.
    pub fn texts(self, language: Language) -> (&'static str, &'static str) {
        match language {
            Language::English => (self.title(), self.action()),
            Language::Chinese => chinese::texts(self),
        }
    }
}

// By hand: the derive macro does not see names that a macro made.
impl utoipa::PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some(
                "A stable code. Programs compare these; the sentences beside them may change.",
            ))
            .enum_values(Some(Self::ALL.iter().map(|code| code.as_str())))
            .into()
    }
}

impl utoipa::ToSchema for Code {}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Code {
    type Err = UnknownCode;
    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.as_str() == text)
            .ok_or(UnknownCode)
    }
}

/// A text that is no [`Code`] of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown problem code")]
pub struct UnknownCode;

/// An error on its way out: a code, what happened, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    action: Cow<'static, str>,
    rule: Option<String>,
    retry_after: Option<u32>,
    on_record: bool,
}

impl Problem {
    /// `detail` is one sentence: what happened. What to do is the code's own sentence unless
    /// [`Problem::with_action`] gives a closer one. Neither may hold a secret.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            action: Cow::Borrowed(code.action()),
            rule: None,
            retry_after: None,
            on_record: false,
        }
    }

    /// Says what to do in this very case.
    #[must_use]
    pub fn with_action(mut self, action: impl Into<Cow<'static, str>>) -> Self {
        self.action = action.into();
        self
    }

    /// Says after how many seconds trying again makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Names the policy rule that refused.
    #[must_use]
    pub fn with_rule(mut self, rule: impl Into<String>) -> Self {
        self.rule = Some(rule.into());
        self
    }

    /// Says that the refusal has its audit record already.
    #[must_use]
    pub fn on_record(mut self) -> Self {
        self.on_record = true;
        self
    }

    /// Whether the refusal has its audit record already.
    pub fn is_on_record(&self) -> bool {
        self.on_record
    }

    /// The policy rule that refused, where one did.
    pub fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What happened.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// What to do.
    pub fn action(&self) -> &str {
        &self.action
    }

    /// Seconds after which trying again makes sense, where waiting helps.
    pub fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }

    /// The document, for the request of this id, to be read in `language`.
    pub fn document(&self, request_id: &RequestId, language: Language) -> ProblemDocument {
        let (title, action) = self.code.texts(language);
        ProblemDocument {
            kind: format!("urn:opcert:problem:{}", self.code),
            title: title.to_owned(),
            status: self.code.status(),
            code: self.code.as_str().to_owned(),
            detail: self.detail.clone().into_owned(),
            // What was said for this very case is English.
            action: match language {
                Language::English => self.action.clone().into_owned(),
                Language::Chinese => action.to_owned(),
            },
            request_id: request_id.clone(),
            rule: self.rule.clone(),
            retry_after: self.retry_after,
        }
    }
}

/// Two sentences and the code: what a person reads on a terminal.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stop = if self.detail.ends_with(['.', '!', '?']) {
            ""
        } else {
            "."
        };
        write!(f, "{}{stop} {} [{}]", self.detail, self.action, self.code)
    }
}

impl std::error::Error for Problem {}

/// The error document of every door (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProblemDocument {
    /// `urn:opcert:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The error in a few words, in the language of `content-language`.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable code; the schema lists those of this version.
    #[schema(value_type = Code)]
    pub code: String,
    /// What happened, with the names and values it is about; always in English.
    pub detail: String,
    /// What to do, in the language of `content-language`.
    pub action: String,
    /// The request, as in the `request-id` header.
    pub request_id: RequestId,
    /// The policy rule that refused, where one did; `opcert policy explain` says more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Seconds after which trying again makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

impl IntoResponse for Problem {
    /// Only status and problem; [`finish`] writes the document, as it knows the request's id.
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// What is outermost at each door: gives the request a [`RequestId`] (an extension for
/// handlers, never taken from the client), names it in the answer, and writes problem documents.
///
/// Problem documents are in the language that the request prefers ([`super::language`]).
///
/// A caller's `traceparent` is taken over into log and records; one that is malformed is left out,
/// as the standard asks.
pub async fn finish<F>(mut request: Request, answer: impl FnOnce(Request) -> F) -> Response
where
    F: Future<Output = Response>,
{
    let id = RequestId::random();
    request.extensions_mut().insert(id.clone());
    let language = preferred(request.headers());
    let trace = request
        .headers()
        .get(TRACEPARENT)
        .and_then(|header| TraceId::from_traceparent(header.to_str().ok()?).ok());
    let span = match trace {
        None => tracing::error_span!("request", request = %id),
        Some(trace) => tracing::error_span!("request", request = %id, %trace),
    };
    let answer = async {
        let mut response = answer(request).await;
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            metrics().refusals.of(problem.code.as_str()).increment();
            tracing::info!(code = %problem.code, detail = %problem.detail, "refused");
            write(&mut response, &problem, &id, language);
        }
        response
    }
    .instrument(span);
    let mut response = match trace {
        None => answer.await,
        Some(trace) => trace::within(trace, answer).await,
    };
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// [`finish`] as a layer of its own.
pub async fn finish_next(request: Request, next: Next) -> Response {
    finish(request, |request| next.run(request)).await
}

fn write(response: &mut Response, problem: &Problem, id: &RequestId, language: Language) {
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(CONTENT_LANGUAGE, content_language(language));
    headers.append(VARY, HeaderValue::from_static("accept-language"));
    if let Some(seconds) = problem.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    headers.remove(axum::http::header::CONTENT_LENGTH);
    // A struct of strings and numbers cannot fail to serialise.
    let text = serde_json::to_vec(&problem.document(id, language)).unwrap_or_default();
    *response.body_mut() = Body::from(text);
}

/// The answer for a path that no route has; a fallback handler.
pub async fn not_found(request: Request) -> Problem {
    Problem::new(
        Code::NotFound,
        format!("there is nothing at {}", request.uri().path()),
    )
}

/// The answer for a method that the path does not have; a fallback handler.
pub async fn method_not_allowed(request: Request) -> Problem {
    Problem::new(
        Code::MethodNotAllowed,
        format!(
            "{} is not allowed at {}",
            request.method(),
            request.uri().path()
        ),
    )
}

impl From<crate::http::BodyError> for Problem {
    fn from(error: crate::http::BodyError) -> Self {
        use crate::http::BodyError;
        let code = match error {
            BodyError::TooLarge { .. } => Code::TooLarge,
            BodyError::TooSlow { .. } => Code::TooSlow,
            BodyError::Broken { .. } => Code::Malformed,
        };
        Self::new(code, error.to_string())
    }
}

impl From<crate::base::x509::X509Error> for Problem {
    fn from(error: crate::base::x509::X509Error) -> Self {
        // Callers that parsed something of a client's map it to the code of that thing; what is
        // left is our own work.
        tracing::error!(error = %crate::telemetry::Chain(&error), "X.509 structure cannot be built");
        Self::new(Code::Internal, "a certificate cannot be made or read")
    }
}

impl From<crate::audit::AuditError> for Problem {
    fn from(error: crate::audit::AuditError) -> Self {
        match audit_code(&error) {
            Code::Busy => Self::new(Code::Busy, "too many audit records wait to be written")
                .with_retry_after(1),
            Code::TooLarge => Self::new(Code::TooLarge, error.to_string()),
            code => {
                tracing::error!(error = %crate::telemetry::Chain(&error), "audit");
                Self::new(code, "the audit record cannot be written")
            }
        }
    }
}

fn audit_code(error: &crate::audit::AuditError) -> Code {
    use crate::audit::AuditError;
    match error {
        AuditError::Full { .. } => Code::Busy,
        AuditError::TooLarge { .. } => Code::TooLarge,
        _ => Code::AuditUnavailable,
    }
}

impl From<super::local_ca::LocalCaError> for Problem {
    fn from(error: super::local_ca::LocalCaError) -> Self {
        use super::local_ca::LocalCaError;
        match error {
            LocalCaError::ClientName { .. } => {
                Self::new(Code::ClientNameInvalid, error.to_string())
            }
            error => {
                tracing::error!(error = %crate::telemetry::Chain(&error), "local authority");
                Self::new(Code::Internal, "the local authority cannot be used")
            }
        }
    }
}

impl From<super::clients::ClientsError> for Problem {
    fn from(error: super::clients::ClientsError) -> Self {
        use super::clients::ClientsError;
        match error {
            ClientsError::Exists { .. } => Self::new(Code::ClientExists, error.to_string()),
            ClientsError::Unknown { .. } => Self::new(Code::NotFound, error.to_string())
                .with_action("List the registered ones with `opcert client list`."),
            ClientsError::Full => Self::new(Code::TooLarge, error.to_string())
                .with_action("Remove clients that are no longer used."),
            ClientsError::File(_) | ClientsError::Damaged { .. } => {
                tracing::error!(error = %crate::telemetry::Chain(&error), "client registry");
                Self::new(Code::StateUnusable, "the client registry cannot be written")
            }
        }
    }
}

impl From<crate::device::DeviceError> for Problem {
    fn from(error: crate::device::DeviceError) -> Self {
        use crate::device::DeviceError as E;
        let code = device_code(&error);
        log_ours(code, &error);
        let problem = Self::new(code, error.to_string());
        match error {
            E::ModuleDown { retry_after, .. } => {
                let seconds = u32::try_from(retry_after.as_secs()).unwrap_or(u32::MAX);
                problem.with_retry_after(seconds.max(1))
            }
            E::Busy { .. } | E::PinUnderWay { .. } => problem.with_retry_after(1),
            _ => problem,
        }
    }
}

fn device_code(error: &crate::device::DeviceError) -> Code {
    use crate::device::DeviceError as E;
    match error {
        E::Pkcs11 { .. } | E::Unusable { .. } | E::HalfMade { .. } => Code::TokenError,
        E::TokenAbsent { .. } | E::TokenUnknown { .. } | E::ModuleUnknown { .. } => {
            Code::TokenAbsent
        }
        E::TokenAmbiguous { .. } | E::ModuleAmbiguous { .. } => Code::TokenAmbiguous,
        E::SoPinWrong { .. } => Code::SoPinWrong,
        E::SoPinLocked { .. } => Code::SoPinLocked,
        E::SoPinFinalTry { .. } => Code::SoPinFinalTry,
        E::PinUnfit { .. } => Code::PinUnfit,
        E::TokenHoldsKeys { .. } => Code::TokenHoldsKeys,
        E::TokenInUse { .. } => Code::TokenInUse,
        E::LabelUnfit { .. } => Code::Malformed,
        E::ModuleMissing { .. } => Code::ModuleMissing,
        E::ModuleDown { .. }
        | E::ModuleUnusable { .. }
        | E::WorkerDied { .. }
        | E::WorkerStart { .. }
        | E::Protocol { .. }
        | E::Released { .. }
        | E::LoggedOut { .. }
        | E::Stopped => Code::TokenDown,
        E::Timeout { .. } => Code::TokenTimeout,
        E::Busy { .. } | E::PinUnderWay { .. } => Code::Busy,
        E::PinNeeded { .. } | E::PinBlocked { .. } | E::PinDeclined { .. } => Code::PinNeeded,
        E::PinWrong { .. } | E::PinLength { .. } => Code::PinWrong,
        E::PinLocked { .. } => Code::PinLocked,
        E::PinFinalTry { .. } => Code::PinFinalTry,
        E::KeyMissing { .. } | E::KeyAmbiguous { .. } | E::KeyChanged { .. } => Code::KeyMissing,
        E::KeyNotProven { .. } => Code::KeyNotProven,
        E::Unsupported { .. } | E::SchemeUnsupported { .. } | E::KeyUnusable { .. } => {
            Code::KeyUnsupported
        }
        E::BadSignature { .. } => Code::SignatureInvalid,
        E::TooLarge { .. } => Code::TooLarge,
        E::Undecryptable { .. } => Code::Malformed,
        E::PinFileNotPrivate { .. } | E::PinFileUnreadable { .. } | E::PinRecord { .. } => {
            Code::StateUnusable
        }
        E::KeyExists { .. }
        | E::ModuleTwice { .. }
        | E::WrongPurpose { .. }
        | E::MalformedCertificate => Code::Internal,
    }
}

impl From<crate::enrol::RegistryError> for Problem {
    fn from(error: crate::enrol::RegistryError) -> Self {
        use crate::enrol::RegistryError as E;
        let code = match &error {
            E::File(_) | E::Damaged { .. } => Code::StateUnusable,
            E::Keys { .. } | E::KeySet(_) => Code::KeysInvalid,
            E::CrlUnknown | E::Crl(_) | E::CrlOld { .. } => Code::CrlInvalid,
        };
        log_ours(code, &error);
        Self::new(code, error.to_string())
    }
}

impl From<crate::enrol::EnrolError> for Problem {
    fn from(error: crate::enrol::EnrolError) -> Self {
        use crate::enrol::EnrolError as E;
        let code = match error {
            E::Service(error) => return error.into(),
            E::Device(error) => return error.into(),
            E::Audit(error) => return error.into(),
            E::Ticket(_) | E::OtherComputer { .. } => Code::TicketInvalid,
            E::TooMany | E::NotReady { .. } => Code::EnrolmentState,
            E::Unknown { .. } => Code::EnrolmentUnknown,
            E::OtherKey | E::OtherIdentity { .. } | E::Certificate(_) => Code::CertificateMismatch,
            E::NotAttested { .. } => Code::KeyNotAttested,
            E::Policy(refusal) => return refusal.into(),
            E::File(_) | E::Damaged { .. } => Code::StateUnusable,
        };
        log_ours(code, &error);
        Self::new(code, error.to_string())
    }
}

impl From<crate::merchants::MerchantError> for Problem {
    fn from(error: crate::merchants::MerchantError) -> Self {
        use crate::merchants::MerchantError as E;
        let code = merchant_code(&error);
        let error = match error {
            E::Policy(refusal) => return refusal.into(),
            E::Device(error) => return error.into(),
            E::Audit(error) => return error.into(),
            error => error,
        };
        log_ours(code, &error);
        // The cause of what was refused is for the caller to mend; what is ours is in the log.
        let detail = if code.status() < 500 {
            crate::telemetry::Chain(&error).to_string()
        } else {
            error.to_string()
        };
        let problem = Self::new(code, detail);
        match error {
            E::MemoryFull => problem.with_retry_after(60),
            E::NotReady { missing, .. } => problem.with_action(missing.action()),
            E::NoSecret { .. } => problem.with_action("Set it with `opcert wechatpay secret set`."),
            E::Malformed { .. } => problem.with_action("Hand it in exactly as it came."),
            _ => problem,
        }
    }
}

fn merchant_code(error: &crate::merchants::MerchantError) -> Code {
    use crate::merchants::MerchantError as E;
    use crate::wechatpay::v2::{SignError, XmlError};
    use crate::wechatpay::v3::VerifyError;
    match error {
        E::Policy(refusal) => refusal_code(refusal),
        E::Device(error) => device_code(error),
        E::Audit(error) => audit_code(error),
        E::Unknown { .. } => Code::MerchantUnknown,
        E::Exists { .. } => Code::MerchantExists,
        E::TooMany { .. } | E::FieldTooLong { .. } | E::Xml(XmlError::TooLarge { .. }) => {
            Code::TooLarge
        }
        E::NotReady { .. } | E::NoSecret { .. } => Code::MerchantNotReady,
        E::Message(_) => Code::WechatpayMessage,
        E::Verify(VerifyError::KeyUnknown { .. } | VerifyError::KeyEnded { .. }) => {
            Code::WechatpayKeyUnknown
        }
        E::Verify(_) | E::Sign(SignError::Signature | SignError::Missing) => {
            Code::WechatpaySignature
        }
        E::Malformed { .. } => Code::Malformed,
        E::Closed => Code::WechatpayContent,
        E::Replayed { .. } => Code::WechatpayReplayed,
        E::MemoryFull => Code::Busy,
        E::Xml(_) | E::Fields(_) | E::Sign(_) => Code::WechatpayFields,
        E::Platform(_) => Code::WechatpayPlatformKey,
        E::Certificate { .. } | E::X509(_) => Code::MerchantCertificate,
        E::PrivateKey(_) => Code::PrivateKeyInvalid,
        E::Secret(_)
        | E::Sealed(_)
        | E::OtherKind
        | E::Service(_)
        | E::NotLinked { .. }
        | E::Old { .. } => Code::SecretInvalid,
        E::File(_) | E::Damaged { .. } | E::Log(_) => Code::StateUnusable,
        E::Task { .. } => Code::Internal,
    }
}

/// The stable code of a refused WeChat Pay message, for the audit trail.
pub fn code_of_merchant(error: &crate::merchants::MerchantError) -> &'static str {
    merchant_code(error).as_str()
}

impl From<crate::policy::Refusal> for Problem {
    fn from(refusal: crate::policy::Refusal) -> Self {
        use crate::policy::RefusalCause;
        let code = refusal_code(&refusal);
        let retry_after = match refusal.cause {
            RefusalCause::Rule => None,
            RefusalCause::Limit { retry_after } => Some(retry_after),
        };
        let problem = Self::new(code, format!("policy refuses: {}", refusal.reason));
        Self {
            retry_after,
            ..problem.with_rule(refusal.rule)
        }
    }
}

fn refusal_code(refusal: &crate::policy::Refusal) -> Code {
    use crate::policy::RefusalCause;
    match refusal.cause {
        RefusalCause::Rule => Code::PolicyRefused,
        RefusalCause::Limit { .. } => Code::LimitReached,
    }
}

impl From<crate::policy::PolicyErrors> for Problem {
    fn from(errors: crate::policy::PolicyErrors) -> Self {
        Self::new(
            Code::PolicyInvalid,
            format!("the policy rules are not sound: {errors}"),
        )
    }
}

impl From<crate::signing::RestoreError> for Problem {
    fn from(error: crate::signing::RestoreError) -> Self {
        log_ours(Code::AuditUnavailable, &error);
        Self::new(Code::AuditUnavailable, error.to_string())
    }
}

impl From<crate::consent::ConsentError> for Problem {
    fn from(error: crate::consent::ConsentError) -> Self {
        use crate::consent::ConsentError as E;
        let code = consent_code(&error);
        log_ours(code, &error);
        let problem = Self::new(code, error.to_string());
        match error {
            E::Busy => problem.with_retry_after(1),
            E::Unavailable {
                action: Some(action),
                ..
            } => problem.with_action(action),
            _ => problem,
        }
    }
}

fn consent_code(error: &crate::consent::ConsentError) -> Code {
    use crate::consent::ConsentError as E;
    match error {
        E::Denied => Code::ConsentDenied,
        E::TimedOut { .. } => Code::ConsentTimeout,
        E::Busy => Code::Busy,
        E::Unavailable { .. } => Code::ConsentUnavailable,
    }
}

impl From<crate::signing::SigningError> for Problem {
    fn from(error: crate::signing::SigningError) -> Self {
        use crate::signing::SigningError as E;
        let code = signing_code(&error);
        let error = match error {
            E::Device(error) => return error.into(),
            E::Audit(error) => return error.into(),
            E::ReadBack(error) => return error.into(),
            E::Policy(refusal) => return refusal.into(),
            E::Consent(error) => return error.into(),
            error => error,
        };
        log_ours(code, &error);
        let problem = Self::new(code, error.to_string());
        match error {
            E::Busy => problem.with_retry_after(1),
            _ => problem,
        }
    }
}

impl From<crate::signing::token_test::TokenTestError> for Problem {
    fn from(error: crate::signing::token_test::TokenTestError) -> Self {
        use crate::signing::token_test::TokenTestError as E;
        match error {
            E::Device(error) => error.into(),
            E::Policy(refusal) => refusal.into(),
            E::Audit(error) => error.into(),
            E::TooMany { .. } => Self::new(Code::TooLarge, error.to_string())
                .with_action("Name one key by `id` or `object` in the URI."),
        }
    }
}

fn signing_code(error: &crate::signing::SigningError) -> Code {
    use crate::enrol::Standing;
    use crate::signing::SigningError as E;
    use crate::statement::ServiceError;
    match error {
        E::Device(error) => device_code(error),
        E::Audit(error) => audit_code(error),
        E::Challenge(error) => match error {
            ServiceError::Jose(_) | ServiceError::Claims(_) => Code::ChallengeMalformed,
            ServiceError::Statement(_) => Code::StatementInvalid,
            ServiceError::Audience => Code::ChallengeAudience,
            ServiceError::IssuerUnknown { .. } => Code::ChallengeIssuerUnknown,
            ServiceError::KeyUnknown { .. } => Code::ChallengeKeyUnknown,
            ServiceError::Signature => Code::ChallengeSignature,
            ServiceError::Expired { .. } => Code::ChallengeExpired,
            ServiceError::NotYetValid { .. } => Code::ChallengeNotYetValid,
        },
        E::Payees(_) => Code::PayeesInvalid,
        E::Forgotten => Code::ChallengeExpired,
        E::ReadBack(_) => Code::AuditUnavailable,
        E::Origin { .. } => Code::ChallengeOrigin,
        E::OtherAccount { .. } => Code::ChallengeAccount,
        E::NoCertificate { .. } => Code::CertificateMissing,
        E::Standing { standing } => match standing {
            Standing::Revoked => Code::CertificateRevoked,
            Standing::Active | Standing::NotYetValid | Standing::Expired | Standing::Superseded => {
                Code::CertificateExpired
            }
        },
        E::Used => Code::ChallengeUsed,
        E::Denied => Code::ConsentDenied,
        E::Policy(refusal) => refusal_code(refusal),
        E::Consent(error) => consent_code(error),
        E::Busy => Code::Busy,
        E::Cms(_) | E::Encode(_) => Code::Internal,
    }
}

/// The stable code of a refused approval, for the audit trail.
pub fn code_of(error: &crate::signing::SigningError) -> &'static str {
    signing_code(error).as_str()
}

/// The caller gets one sentence; what is for us to mend goes to the log with all its causes.
fn log_ours(code: Code, error: &dyn std::error::Error) {
    if code.status() >= 500 {
        tracing::error!(%code, error = %crate::telemetry::Chain(error), "failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_unique_and_have_sentences() {
        let mut seen = HashSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code} twice");
            assert!(StatusCode::from_u16(code.status()).is_ok(), "{code}");
            assert!(code.action().ends_with('.'), "{code}");
            assert!(!code.title().ends_with('.'), "{code}");
            assert_eq!(code.as_str().parse(), Ok(*code));
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
        }
    }

    #[test]
    fn a_terminal_gets_two_sentences_and_the_code() {
        let problem = Problem::new(Code::PinNeeded, "the token \"demo\" waits for its PIN");
        assert_eq!(
            problem.to_string(),
            "the token \"demo\" waits for its PIN. Run `opcert token unlock`. [pin-needed]"
        );
    }
}
