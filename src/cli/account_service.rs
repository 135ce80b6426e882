//! The account service as the courier sees it: codes, tickets, EST (RFC 7030), key set, CRL,
//! sealed secrets.

use std::path::Path;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use hyper::body::Bytes;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::input::read_file;
use crate::api::problem::ProblemDocument;
use crate::base::cms;
use crate::base::encoding::{base64, base64url, from_base64};
use crate::base::ids::{AccountId, ComputerId, OperationId, OperatorId, random};
use crate::base::jose::JwkSet;
use crate::base::secret::SecretText;
use crate::base::x509::Certificate;
use crate::http::client::{Client, ClientError, ClientLimits, Target};
use crate::http::{media_type, tls};

const WHO: &str = "the account service";
const ACTION: &str = "Check the address and --service-ca, and that the service is up.";

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// No answer is larger, in bytes: a revocation list may have as many entries as the daemon's control
/// socket takes by default.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

/// No bundle of authorities we read is larger, in bytes.
const BUNDLE_LIMIT: u64 = 1024 * 1024;

/// Which account service, and whom to trust for it.
#[derive(Debug, clap::Args)]
pub(super) struct Address {
    /// The account service, as https://HOST or https://HOST:PORT.
    #[arg(long = "service", value_name = "URL")]
    pub(super) url: String,
    /// Authorities of the service's TLS certificate (PEM); otherwise those of the system.
    #[arg(long = "service-ca", value_name = "FILE")]
    pub(super) ca: Option<std::path::PathBuf>,
}

impl Address {
    /// The service's origin, as tickets and secrets name it.
    pub(super) fn origin(&self) -> &str {
        self.url.trim_end_matches('/')
    }
}

/// A connection to the account service.
#[derive(Debug)]
pub(super) struct Service(Client);

/// Who wants a certificate, where.
#[derive(Debug, Serialize)]
pub(super) struct CodeRequest<'a> {
    pub(super) account: &'a AccountId,
    pub(super) operator: &'a OperatorId,
    pub(super) password: &'a str,
    pub(super) purpose: &'static str,
    pub(super) computer: Computer<'a>,
}

/// The computer a certificate is for.
#[derive(Debug, Serialize)]
pub(super) struct Computer<'a> {
    pub(super) id: &'a ComputerId,
    pub(super) name: &'a str,
}

/// A code is on its way.
#[derive(Debug, Deserialize)]
pub(super) struct CodeSent {
    pub(super) code_id: String,
    pub(super) expires_at: Timestamp,
    /// The number, all but its last digits hidden.
    pub(super) sent_to: String,
}

/// A renewal to be approved by the old key.
#[derive(Debug, Deserialize)]
pub(super) struct Renewal {
    pub(super) operation: RenewalOperation,
    /// The challenge, compact JWS.
    pub(super) challenge: String,
}

/// The operation of a renewal.
#[derive(Debug, Deserialize)]
pub(super) struct RenewalOperation {
    pub(super) id: OperationId,
}

/// Which certificate a request is for (RFC 7030 section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enroll {
    /// One beside others.
    First,
    /// The successor of one.
    Successor,
}

impl Enroll {
    fn path(self) -> &'static str {
        match self {
            Self::First => "/.well-known/est/simpleenroll",
            Self::Successor => "/.well-known/est/simplereenroll",
        }
    }
}

#[derive(Deserialize)]
struct Issued {
    ticket: SecretText,
}

impl Service {
    /// Connects.
    pub(super) async fn connect(address: &Address) -> Result<Self, Error> {
        let roots = match &address.ca {
            Some(path) => roots(path)?,
            None => tls::system_roots().map_err(|error| Error::Usage {
                what: format!("this computer has no list of trusted authorities: {error}"),
                action: "Install ca-certificates, or name the authority with --service-ca.".into(),
            })?,
        };
        let config = tls::client(roots, None).map_err(|error| Error::Usage {
            what: format!("TLS cannot be set up: {error}"),
            action: "Check --service-ca.".into(),
        })?;
        let target = Target::from_url(&address.url, config).map_err(|error| Error::Usage {
            what: error.to_string(),
            action: "Give an address such as https://accounts.example.".into(),
        })?;
        let limits = ClientLimits {
            body_bytes: ANSWER_LIMIT,
            ..ClientLimits::default()
        };
        match Client::connect(&target, limits).await {
            Ok(client) => Ok(Self(client)),
            Err(source) => Err(unreachable(source)),
        }
    }

    /// Has a code sent to the operator's mobile number.
    pub(super) async fn request_code(
        &mut self,
        request: &CodeRequest<'_>,
    ) -> Result<CodeSent, Error> {
        self.post("/v1/enrolment/codes", request).await
    }

    /// Exchanges a code for a ticket.
    pub(super) async fn ticket(
        &mut self,
        code_id: &str,
        code: &SecretText,
    ) -> Result<SecretText, Error> {
        #[derive(Serialize)]
        struct Exchange<'a> {
            code_id: &'a str,
            code: &'a str,
        }
        let issued: Issued = self
            .post(
                "/v1/enrolment/tickets",
                &Exchange {
                    code_id,
                    code: code.expose(),
                },
            )
            .await?;
        Ok(issued.ticket)
    }

    /// The challenge keys.
    pub(super) async fn keys(&mut self) -> Result<JwkSet, Error> {
        self.get("/.well-known/jwks.json").await
    }

    /// The issuing authority's certificates of its own keys, DER. What its keys say of each other
    /// is left out: here each is trusted, or not, for itself.
    pub(super) async fn authorities(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        let body = self
            .send(Method::GET, "/.well-known/est/cacerts", Body::empty())
            .await?;
        let mut found = certificates(&body)?;
        found.retain(|der| Certificate::from_der(der).is_ok_and(|found| found.is_self_signed()));
        Ok(found)
    }

    /// Posts JSON with the platform's key; a repetition of the very call gets the same answer.
    pub(super) async fn post_as_platform<T: DeserializeOwned>(
        &mut self,
        path: &str,
        key: &SecretText,
        value: &impl Serialize,
    ) -> Result<T, Error> {
        let body = Body::json(value)?
            .with_secret(AUTHORIZATION, &format!("Bearer {}", key.expose()))?
            .with_secret(IDEMPOTENCY_KEY, &base64url(&random::<16>()))?;
        self.ask(Method::POST, path, body).await
    }

    /// Gets JSON with the platform's key.
    pub(super) async fn get_as_platform<T: DeserializeOwned>(
        &mut self,
        path: &str,
        key: &SecretText,
    ) -> Result<T, Error> {
        let bearer = format!("Bearer {}", key.expose());
        let body = Body::empty().with_secret(AUTHORIZATION, &bearer)?;
        self.ask(Method::GET, path, body).await
    }

    /// Hands in a compact JWS (RFC 7515 section 9.2.1).
    pub(super) async fn submit<T: DeserializeOwned>(
        &mut self,
        path: &str,
        compact: String,
    ) -> Result<T, Error> {
        let body = Body::typed(media_type::JOSE, compact);
        self.ask(Method::POST, path, body).await
    }

    /// Asks for the renewal of a certificate.
    pub(super) async fn begin_renewal(&mut self, serial: &str) -> Result<Renewal, Error> {
        #[derive(Serialize)]
        struct Request<'a> {
            certificate: &'a str,
        }
        let request = Request {
            certificate: serial,
        };
        self.post("/v1/enrolment/renewals", &request).await
    }

    /// Exchanges the approval of a renewal for a ticket.
    pub(super) async fn finish_renewal(
        &mut self,
        operation: &OperationId,
        approval: String,
    ) -> Result<SecretText, Error> {
        let path = format!("/v1/enrolment/renewals/{operation}/ticket");
        let issued: Issued = self.submit(&path, approval).await?;
        Ok(issued.ticket)
    }

    /// The key sets that the service's keys vouch for; none where there is nothing new.
    pub(super) async fn vouched_keys(&mut self) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Vouched {
            sets: Vec<String>,
        }
        let vouched: Vouched = self.get("/.well-known/opcert-keys").await?;
        Ok(vouched.sets)
    }

    /// Has a request certified; the ticket is the password (RFC 7030 section 4.2). `csr` is base64
    /// of DER, as the daemon gives it and EST takes it.
    pub(super) async fn enroll(
        &mut self,
        what: Enroll,
        operator: &OperatorId,
        ticket: &SecretText,
        csr: &str,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let credential = base64(format!("{operator}:{}", ticket.expose()).as_bytes());
        let body = Body::typed(media_type::PKCS10, csr.to_owned())
            .with_secret(AUTHORIZATION, &format!("Basic {credential}"))?;
        let answer = self.send(Method::POST, what.path(), body).await?;
        certificates(&answer)
    }

    /// The revocation list, DER.
    pub(super) async fn revocation_list(&mut self) -> Result<Vec<u8>, Error> {
        let body = self
            .send(Method::GET, "/pki/issuing.crl", Body::empty())
            .await?;
        Ok(body.to_vec())
    }

    async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Error> {
        self.ask(Method::GET, path, Body::empty()).await
    }

    async fn post<T: DeserializeOwned>(
        &mut self,
        path: &str,
        value: &impl Serialize,
    ) -> Result<T, Error> {
        self.ask(Method::POST, path, Body::json(value)?).await
    }

    /// Sends a request whose answer is JSON.
    async fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<T, Error> {
        let answer = self.send(method, path, body).await?;
        serde_json::from_slice(&answer).map_err(|error| Error::Answer {
            who: WHO,
            problem: error.to_string(),
        })
    }

    /// Sends a request and gives the body of a good answer; a problem document becomes an error.
    async fn send(&mut self, method: Method, path: &str, body: Body) -> Result<Bytes, Error> {
        let mut request = Request::new(body.bytes);
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| Error::Answer {
            who: WHO,
            problem: format!("{path} is no path"),
        })?;
        *request.headers_mut() = body.headers;
        let response = self.0.send(request).await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        match serde_json::from_slice::<ProblemDocument>(response.body()) {
            Ok(problem) => Err(problem.into()),
            Err(_) => Err(Error::Answer {
                who: WHO,
                problem: format!("status {status} without a reason"),
            }),
        }
    }
}

fn unreachable(source: ClientError) -> Error {
    Error::Unreachable {
        who: WHO,
        action: ACTION.to_owned(),
        source,
    }
}

/// What a request carries.
#[derive(Debug)]
struct Body {
    headers: HeaderMap,
    bytes: Bytes,
}

impl Body {
    /// Nothing.
    fn empty() -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        Self {
            headers,
            bytes: Bytes::new(),
        }
    }

    /// A JSON value.
    fn json(value: &impl Serialize) -> Result<Self, Error> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::Input {
            what: format!("the request cannot be written as JSON: {error}"),
            action: "Check the arguments.".into(),
        })?;
        Ok(Self::typed(media_type::JSON, bytes))
    }

    /// Bytes of a media type.
    fn typed(media_type: &'static str, bytes: impl Into<Bytes>) -> Self {
        let mut body = Self::empty();
        body.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        body.bytes = bytes.into();
        body
    }

    /// With one more header, whose value is kept out of logs.
    fn with_secret(mut self, name: HeaderName, value: &str) -> Result<Self, Error> {
        let mut value = HeaderValue::from_str(value).map_err(|_| Error::Input {
            what: format!("the value for {name} has characters a header cannot carry"),
            action: "Check the credential.".into(),
        })?;
        value.set_sensitive(true);
        self.headers.insert(name, value);
        Ok(self)
    }
}

/// The certificates of an EST answer: a certs-only CMS message in base64.
fn certificates(body: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let wrong = |problem: &str| Error::Answer {
        who: WHO,
        problem: problem.to_owned(),
    };
    let message = from_base64(body).ok_or_else(|| wrong("an EST answer that is not base64"))?;
    let certificates = cms::certificates(&message).map_err(|error| wrong(&error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("an EST answer without a certificate"));
    }
    Ok(certificates)
}

/// The trusted authorities in a PEM file.
pub(super) fn roots(path: &Path) -> Result<rustls::RootCertStore, Error> {
    tls::certificates(&read_file(path, BUNDLE_LIMIT)?)
        .and_then(tls::roots)
        .map_err(|error| Error::Input {
            what: format!("{} cannot be used: {error}", path.display()),
            action: "Give the authority's certificate in PEM.".into(),
        })
}
