//! A typed client of `/v1`, over whichever door its target names.
//!
//! Programs in Rust use it as `opcert::client`: [`native_door`] or [`Target::Unix`] says where,
//! [`Client::connect`] connects, and each call is a method. `tests/clients.rs` is a whole example.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request};
use hyper::body::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::events::Happening;
pub use super::problem::ProblemDocument;
pub use super::types::{
    AddClient, AddedClient, Approval, AskContents, BeginEnrolment, ChangePin, ClientList,
    CompleteEnrolment, CrlTaken, Enrolment, Enrolments, ExplainPolicy, InitToken, KeysTaken,
    OperatingCertificate, OperatingCertificates, PinSet, Policy, PolicyExplained, PolicyReloaded,
    ReleaseToken, RequestApproval, Status, TestToken, TokenContents, TokenMade, TokenReleased,
    TokenTested, Tokens, UnblockPin, Unlock, Unlocked,
};
use super::wechatpay::MerchantList;
use crate::base::ids::{ClientName, EnrolmentId, Jti};
use crate::base::pkcs11::TokenUri;
use crate::base::secret::Pin;
use crate::device::{HeldKeys, LastTry, NewToken, PinOf, UnlockOutcome};
use crate::http::client;
pub use crate::http::client::{ClientError, ClientLimits, Target};
use crate::http::media_type;
use crate::http::tls::{self, Identity, TlsError};

/// Limits for calls that wait for a person at a prompt, or for a slow token that makes an RSA key:
/// 10 s to connect, 3 minutes for an answer, of at most 4 MiB.
pub const PATIENT: ClientLimits = ClientLimits {
    connect: Duration::from_secs(10),
    request: Duration::from_secs(180),
    body_bytes: 4 * 1024 * 1024,
};

/// The native door at `address`, for a program with the three files that `opcert client add` wrote,
/// each PEM: the daemon's authority, the program's certificate, its key.
pub fn native_door(
    address: SocketAddr,
    authority: &[u8],
    certificate: &[u8],
    key: &[u8],
) -> Result<Target, TlsError> {
    let identity = Identity::from_pem(certificate, key)?;
    let roots = tls::roots(tls::certificates(authority)?)?;
    Ok(Target::Tls {
        host: address.ip().to_string(),
        port: address.port(),
        config: tls::client(roots, Some(&identity))?,
    })
}

/// The most bytes of one event.
const EVENT_MAX: usize = 1024 * 1024;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The daemon cannot be reached.
    #[error(transparent)]
    Transport(#[from] ClientError),
    /// The daemon refused, and says why.
    #[error("{}. {} [{}]", .0.detail, .0.action, .0.code)]
    Refused(Box<ProblemDocument>),
    /// The answer is not one of this interface: another program listens there, or another version.
    #[error("the answer (status {status}) is not one of this interface")]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// What is wrong with the body.
        #[source]
        source: serde_json::Error,
    },
    /// The request cannot be written.
    #[error("the request cannot be written as JSON")]
    Request {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A path that is no URI; names of this interface never make one.
    #[error("{path:?} is no path")]
    Path {
        /// The path.
        path: String,
    },
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    connection: client::Client,
}

impl Client {
    /// Connects; the limits hold for each call.
    pub async fn connect(target: &Target, limits: ClientLimits) -> Result<Self, CallError> {
        Ok(Self {
            connection: client::Client::connect(target, limits).await?,
        })
    }

    /// `GET /v1/status`.
    pub async fn status(&mut self) -> Result<Status, CallError> {
        self.get("/v1/status").await
    }

    /// `GET /v1/tokens`.
    pub async fn tokens(&mut self) -> Result<Tokens, CallError> {
        self.get("/v1/tokens").await
    }

    /// `GET /v1/events`. The connection is the stream's.
    pub async fn events(mut self) -> Result<EventStream, CallError> {
        let answer = self
            .connection
            .stream(request(Method::GET, "/v1/events", None)?)
            .await?;
        let status = answer.status();
        let pieces = answer.into_body();
        if !status.is_success() {
            let answer = http::Response::new(pieces.whole().await?);
            return Err(CallError::Refused(Box::new(read(&answer)?)));
        }
        Ok(EventStream {
            _connection: self.connection,
            pieces,
            text: Vec::new(),
        })
    }

    /// `POST /v1/tokens/unlock`. Without a PIN the person at the daemon's computer is asked.
    pub async fn unlock(
        &mut self,
        token: &TokenUri,
        pin: Option<&Pin>,
        last_try: LastTry,
    ) -> Result<UnlockOutcome, CallError> {
        let body = Unlock {
            uri: token.to_string(),
            pin: pin.cloned(),
            last_try: last_try == LastTry::Use,
        };
        let unlocked: Unlocked = self.json(Method::POST, "/v1/tokens/unlock", &body).await?;
        Ok(unlocked.outcome)
    }

    /// `POST /v1/tokens/init`.
    pub async fn init_token(&mut self, new: &NewToken) -> Result<TokenMade, CallError> {
        let body = InitToken {
            module: new.module.clone(),
            uri: new.target.as_ref().map(ToString::to_string),
            label: new.label.clone(),
            so_pin: new.so_pin.clone(),
            user_pin: new.user_pin.clone(),
            erase_keys: new.keys == HeldKeys::Destroy,
            last_try: new.last_try == LastTry::Use,
        };
        self.json(Method::POST, "/v1/tokens/init", &body).await
    }

    /// `POST /v1/tokens/contents`.
    pub async fn token_contents(
        &mut self,
        module: Option<&str>,
        uri: &TokenUri,
    ) -> Result<TokenContents, CallError> {
        let body = AskContents {
            module: module.map(str::to_owned),
            uri: uri.to_string(),
        };
        self.json(Method::POST, "/v1/tokens/contents", &body).await
    }

    /// `POST /v1/tokens/pin`, or `POST /v1/tokens/pin/unblock`.
    pub async fn set_pin(
        &mut self,
        uri: &TokenUri,
        by: &PinOf,
        new: Option<&Pin>,
        last_try: LastTry,
    ) -> Result<PinSet, CallError> {
        let (uri, new_pin) = (uri.to_string(), new.cloned());
        let last_try = last_try == LastTry::Use;
        match by {
            PinOf::User(pin) => {
                let body = ChangePin {
                    uri,
                    pin: pin.clone(),
                    new_pin,
                    last_try,
                };
                self.json(Method::POST, "/v1/tokens/pin", &body).await
            }
            PinOf::SecurityOfficer(so_pin) => {
                let body = UnblockPin {
                    uri,
                    so_pin: so_pin.clone(),
                    new_pin,
                    last_try,
                };
                self.json(Method::POST, "/v1/tokens/pin/unblock", &body)
                    .await
            }
        }
    }

    /// `POST /v1/tokens/release`.
    pub async fn release_token(&mut self, uri: &TokenUri) -> Result<TokenReleased, CallError> {
        let body = ReleaseToken {
            uri: uri.to_string(),
        };
        self.json(Method::POST, "/v1/tokens/release", &body).await
    }

    /// `POST /v1/tokens/test`.
    pub async fn test_token(&mut self, uri: &TokenUri) -> Result<TokenTested, CallError> {
        let body = TestToken {
            uri: uri.to_string(),
        };
        self.json(Method::POST, "/v1/tokens/test", &body).await
    }

    /// `GET /v1/certificates`.
    pub async fn certificates(&mut self) -> Result<OperatingCertificates, CallError> {
        self.get("/v1/certificates").await
    }

    /// `POST /v1/enrolments`.
    pub async fn begin_enrolment(&mut self, body: &BeginEnrolment) -> Result<Enrolment, CallError> {
        self.json(Method::POST, "/v1/enrolments", body).await
    }

    /// `GET /v1/enrolments`.
    pub async fn enrolments(&mut self) -> Result<Enrolments, CallError> {
        self.get("/v1/enrolments").await
    }

    /// `DELETE /v1/enrolments/{id}`.
    pub async fn cancel_enrolment(&mut self, id: &EnrolmentId) -> Result<(), CallError> {
        self.empty(Method::DELETE, &format!("/v1/enrolments/{id}"), None::<&()>)
            .await
    }

    /// `PUT /v1/enrolments/{id}/certificate`.
    pub async fn complete_enrolment(
        &mut self,
        id: &EnrolmentId,
        body: &CompleteEnrolment,
    ) -> Result<OperatingCertificate, CallError> {
        let path = format!("/v1/enrolments/{id}/certificate");
        self.json(Method::PUT, &path, body).await
    }

    /// `POST /v1/approvals`.
    pub async fn approve(&mut self, body: &RequestApproval) -> Result<Approval, CallError> {
        self.json(Method::POST, "/v1/approvals", body).await
    }

    /// `GET /v1/approvals/{challenge_jti}`.
    pub async fn approval(&mut self, challenge_jti: &Jti) -> Result<Approval, CallError> {
        self.get(&format!("/v1/approvals/{challenge_jti}")).await
    }

    /// `POST /v1/crls`.
    pub async fn apply_crl(&mut self, der: Vec<u8>) -> Result<CrlTaken, CallError> {
        let body = Some((media_type::CRL, der.into()));
        let answer = self.send(Method::POST, "/v1/crls", body).await?;
        read(&answer)
    }

    /// `POST /v1/keys`.
    pub async fn replace_keys(&mut self, compact: String) -> Result<KeysTaken, CallError> {
        let body = Some((media_type::JOSE, compact.into()));
        let answer = self.send(Method::POST, "/v1/keys", body).await?;
        read(&answer)
    }

    /// `GET /v1/clients`.
    pub async fn clients(&mut self) -> Result<ClientList, CallError> {
        self.get("/v1/clients").await
    }

    /// `POST /v1/clients`.
    pub async fn add_client(&mut self, body: &AddClient) -> Result<AddedClient, CallError> {
        self.json(Method::POST, "/v1/clients", body).await
    }

    /// `DELETE /v1/clients/{name}`.
    pub async fn remove_client(&mut self, name: &ClientName) -> Result<(), CallError> {
        self.empty(Method::DELETE, &format!("/v1/clients/{name}"), None::<&()>)
            .await
    }

    /// `GET /v1/policy`.
    pub async fn policy(&mut self) -> Result<Policy, CallError> {
        self.get("/v1/policy").await
    }

    /// `POST /v1/policy/reload`.
    pub async fn reload_policy(&mut self) -> Result<PolicyReloaded, CallError> {
        read(&self.send(Method::POST, "/v1/policy/reload", None).await?)
    }

    /// `POST /v1/policy/explain`.
    pub async fn explain_policy(
        &mut self,
        body: &ExplainPolicy,
    ) -> Result<PolicyExplained, CallError> {
        self.json(Method::POST, "/v1/policy/explain", body).await
    }

    /// `GET /v1/wechatpay/merchants`.
    pub async fn merchants(&mut self) -> Result<MerchantList, CallError> {
        self.get("/v1/wechatpay/merchants").await
    }

    /// `DELETE` of something under `/v1/wechatpay/merchants`.
    pub async fn remove_from_merchants(&mut self, path: &str) -> Result<(), CallError> {
        let path = format!("/v1/wechatpay/merchants/{path}");
        self.empty(Method::DELETE, &path, None::<&()>).await
    }

    /// A call under `/v1/wechatpay`; what each path takes and gives is in [`super::wechatpay`].
    pub async fn wechatpay<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CallError> {
        self.json(method, &format!("/v1/wechatpay/{path}"), body)
            .await
    }

    async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, CallError> {
        read(&self.send(Method::GET, path, None).await?)
    }

    async fn json<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, CallError> {
        let body = write(body)?;
        read(&self.send(method, path, Some(body)).await?)
    }

    async fn empty(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(), CallError> {
        let body = body.map(write).transpose()?;
        self.send(method, path, body).await?;
        Ok(())
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<http::Response<Bytes>, CallError> {
        let answer = self.connection.send(request(method, path, body)?).await?;
        if answer.status().is_success() {
            Ok(answer)
        } else {
            Err(CallError::Refused(Box::new(read(&answer)?)))
        }
    }
}

/// What happens at the daemon, as it tells it.
#[derive(Debug)]
pub struct EventStream {
    _connection: client::Client,
    pieces: client::Pieces,
    /// What came and is no whole event yet.
    text: Vec<u8>,
}

impl EventStream {
    /// The next event; `None` when the daemon ended the stream. Events that this version does not
    /// know are passed over.
    pub async fn next(&mut self) -> Result<Option<Happening>, CallError> {
        loop {
            while let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.text.drain(..end + 2).collect();
                let data = event
                    .split(|byte| *byte == b'\n')
                    .find_map(|line| line.strip_prefix(b"data: "));
                if let Some(Ok(what)) = data.map(serde_json::from_slice) {
                    return Ok(Some(what));
                }
            }
            match self.pieces.next().await? {
                Some(piece) if self.text.len() + piece.len() <= EVENT_MAX => {
                    self.text.extend_from_slice(&piece);
                }
                Some(_) => {
                    return Err(CallError::Transport(ClientError::TooLarge {
                        target: "the stream of events".into(),
                        limit: EVENT_MAX,
                    }));
                }
                None => return Ok(None),
            }
        }
    }
}

fn request(
    method: Method,
    path: &str,
    body: Option<(&'static str, Bytes)>,
) -> Result<Request<Bytes>, CallError> {
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|_| CallError::Path {
        path: path.to_owned(),
    })?;
    if let Some((media_type, bytes)) = body {
        request
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        *request.body_mut() = bytes;
    }
    Ok(request)
}

/// A JSON body. It may carry a PIN or a private key, so it is written into a buffer of its size
/// (one that grows leaves pieces behind), which is wiped when it was sent.
fn write(value: &impl Serialize) -> Result<(&'static str, Bytes), CallError> {
    struct Size(usize);
    impl io::Write for Size {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let request = |source| CallError::Request { source };
    let mut size = Size(0);
    serde_json::to_writer(&mut size, value).map_err(request)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(size.0));
    serde_json::to_writer(&mut *bytes, value).map_err(request)?;
    Ok((media_type::JSON, Bytes::from_owner(bytes)))
}

fn read<T: DeserializeOwned>(answer: &http::Response<Bytes>) -> Result<T, CallError> {
    serde_json::from_slice(answer.body()).map_err(|source| CallError::Unexpected {
        status: answer.status().as_u16(),
        source,
    })
}
