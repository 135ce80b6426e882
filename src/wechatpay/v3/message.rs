//! What the merchant's key signs: requests, and the parameters that start a payment.
//!
//! A request is five lines, each ended by LF, the last one too: method, path with query,
//! timestamp, nonce, body. A body that ends with LF is followed by one more. Starting a payment
//! signs four lines: appid, timestamp, nonce, package (for apps the bare prepay id). The shapes
//! cannot be confused: the first line of one is an HTTP method, of the other an appid.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{SCHEME, WINDOW_SECONDS, within_window};
use crate::base::encoding::base64;
use crate::base::key::Signature;
use crate::wechatpay::names::{AppId, CertificateSerial, MerchantId, Nonce, PrepayId};

/// Why there is nothing to sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Not a method of the interface.
    #[error("the method must be GET, POST, PUT, PATCH or DELETE, in capitals")]
    Method,
    /// Not path and query as they travel.
    #[error(
        "the target must be path and query as sent: from '/', visible ASCII, no fragment, at most {max} bytes"
    )]
    Target {
        /// The longest allowed, in bytes.
        max: usize,
    },
    /// A GET request has no body.
    #[error("a GET request has no body to sign")]
    Body,
    /// Signing for another time would be signing for someone else's later use.
    #[error("the timestamp must be less than {WINDOW_SECONDS} seconds from now")]
    Timestamp,
}

/// The method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// GET; without a body.
    Get,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
}

impl Method {
    /// As it stands in the request line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

impl FromStr for Method {
    type Err = MessageError;
    fn from_str(text: &str) -> Result<Self, MessageError> {
        [Self::Get, Self::Post, Self::Put, Self::Patch, Self::Delete]
            .into_iter()
            .find(|method| method.as_str() == text)
            .ok_or(MessageError::Method)
    }
}

/// Path and query of a request, percent-encoded exactly as sent: no scheme, host or fragment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct Target(Box<str>);

impl Target {
    /// Longest allowed length, in bytes.
    pub const MAX: usize = 8 * 1024;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn accepts(text: &str) -> bool {
        text.starts_with('/')
            && !text.starts_with("//")
            && text.len() <= Self::MAX
            && text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    }
}

impl FromStr for Target {
    type Err = MessageError;
    fn from_str(text: &str) -> Result<Self, MessageError> {
        if Self::accepts(text) {
            Ok(Self(text.into()))
        } else {
            Err(MessageError::Target { max: Self::MAX })
        }
    }
}

impl TryFrom<String> for Target {
    type Error = MessageError;
    fn try_from(text: String) -> Result<Self, MessageError> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.0.into()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request, ready to be signed.
pub struct RequestMessage {
    to_sign: Vec<u8>,
    timestamp: i64,
    nonce: Nonce,
}

impl RequestMessage {
    /// The message of one request. `body` is the bytes that are sent; for an upload of an image
    /// or video it is the `meta` part alone. `timestamp` must be near `now`.
    pub fn new(
        method: Method,
        target: &Target,
        timestamp: Timestamp,
        nonce: Nonce,
        body: &[u8],
        now: Timestamp,
    ) -> Result<Self, MessageError> {
        let timestamp = near(timestamp, now)?;
        if method == Method::Get && !body.is_empty() {
            return Err(MessageError::Body);
        }
        let head = format!("{}\n{target}\n{timestamp}\n{nonce}\n", method.as_str());
        Ok(Self {
            to_sign: [head.as_bytes(), body, b"\n"].concat(),
            timestamp,
            nonce,
        })
    }

    /// The bytes to sign with RSASSA-PKCS1-v1_5 and SHA-256.
    pub fn to_sign(&self) -> &[u8] {
        &self.to_sign
    }

    /// Whether `message` is one, to the line.
    pub fn admits(message: &[u8]) -> bool {
        let mut lines = message.splitn(5, |&byte| byte == b'\n');
        let mut line = || lines.next().and_then(|line| std::str::from_utf8(line).ok());
        let (Some(method), Some(target), Some(timestamp), Some(nonce)) =
            (line(), line(), line(), line())
        else {
            return false;
        };
        let Ok(method) = method.parse::<Method>() else {
            return false;
        };
        // The body's own bytes, which need not be text, and the LF after them.
        let body_fits = match lines.next() {
            Some(rest) if method == Method::Get => rest == b"\n",
            Some(rest) => rest.ends_with(b"\n"),
            None => false,
        };
        Target::accepts(target) && is_timestamp(timestamp) && Nonce::accepts(nonce) && body_fits
    }

    /// The value of the `Authorization` header.
    pub fn authorization(
        &self,
        merchant: &MerchantId,
        serial: &CertificateSerial,
        signature: &Signature,
    ) -> String {
        format!(
            "{SCHEME} mchid=\"{merchant}\",nonce_str=\"{}\",signature=\"{}\",timestamp=\"{}\",serial_no=\"{serial}\"",
            self.nonce,
            base64(signature.as_bytes()),
            self.timestamp,
        )
    }
}

impl fmt::Debug for RequestMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestMessage({} bytes)", self.to_sign.len())
    }
}

/// Where a payment is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PayClient {
    /// A page inside WeChat.
    Jsapi,
    /// A mini program; signs as a page does.
    MiniProgram,
    /// A mobile app.
    App,
}

/// The parameters that start a payment, ready to be signed: `paySign`.
#[derive(Debug)]
pub struct PaySign {
    to_sign: String,
    client: PayClient,
    app: AppId,
    prepay: PrepayId,
    timestamp: i64,
    nonce: Nonce,
}

impl PaySign {
    /// The message for one prepared order. `timestamp` must be near `now`.
    pub fn new(
        client: PayClient,
        app: AppId,
        prepay: PrepayId,
        timestamp: Timestamp,
        nonce: Nonce,
        now: Timestamp,
    ) -> Result<Self, MessageError> {
        let timestamp = near(timestamp, now)?;
        let package = match client {
            PayClient::Jsapi | PayClient::MiniProgram => format!("{PREPAY}{prepay}"),
            PayClient::App => prepay.to_string(),
        };
        Ok(Self {
            to_sign: format!("{app}\n{timestamp}\n{nonce}\n{package}\n"),
            client,
            app,
            prepay,
            timestamp,
            nonce,
        })
    }

    /// The bytes to sign with RSASSA-PKCS1-v1_5 and SHA-256.
    pub fn to_sign(&self) -> &[u8] {
        self.to_sign.as_bytes()
    }

    /// Whether `message` is one, to the line.
    pub fn admits(message: &[u8]) -> bool {
        let Ok(text) = std::str::from_utf8(message) else {
            return false;
        };
        let lines: Vec<&str> = text.split('\n').collect();
        let [app, timestamp, nonce, package, ""] = lines[..] else {
            return false;
        };
        AppId::accepts(app)
            && is_timestamp(timestamp)
            && Nonce::accepts(nonce)
            && PrepayId::accepts(package.strip_prefix(PREPAY).unwrap_or(package))
    }

    /// The parameters as the client takes them, by its own names. `merchant` is named to apps.
    pub fn parameters(
        &self,
        merchant: &MerchantId,
        signature: &Signature,
    ) -> Vec<(&'static str, String)> {
        let sign = base64(signature.as_bytes());
        match self.client {
            PayClient::Jsapi | PayClient::MiniProgram => vec![
                ("appId", self.app.to_string()),
                ("timeStamp", self.timestamp.to_string()),
                ("nonceStr", self.nonce.to_string()),
                ("package", format!("{PREPAY}{}", self.prepay)),
                ("signType", "RSA".into()),
                ("paySign", sign),
            ],
            PayClient::App => vec![
                ("appid", self.app.to_string()),
                ("partnerid", merchant.to_string()),
                ("prepayid", self.prepay.to_string()),
                ("package", "Sign=WXPay".into()),
                ("noncestr", self.nonce.to_string()),
                ("timestamp", self.timestamp.to_string()),
                ("sign", sign),
            ],
        }
    }
}

const PREPAY: &str = "prepay_id=";

/// Ten decimal digits: seconds from 2001 to 2286.
fn is_timestamp(text: &str) -> bool {
    text.len() == 10 && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit())
}

fn near(timestamp: Timestamp, now: Timestamp) -> Result<i64, MessageError> {
    let second = timestamp.as_second();
    if within_window(second, now) && is_timestamp(&second.to_string()) {
        Ok(second)
    } else {
        Err(MessageError::Timestamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn request(method: Method, target: &str, body: &[u8]) -> Result<RequestMessage, MessageError> {
        let now = at(1_554_208_460);
        RequestMessage::new(method, &target.parse()?, now, Nonce::random(), body, now)
    }

    #[test]
    fn what_is_built_is_what_is_admitted() {
        for (method, body) in [
            (Method::Get, &b""[..]),
            (Method::Post, b"{}\n"),
            (Method::Post, b"\n\n\n"),
            (Method::Put, &[0, 255, 10, 13]),
            (Method::Delete, b""),
        ] {
            let message = request(method, "/v3/pay?a=%3D", body).unwrap();
            assert!(RequestMessage::admits(message.to_sign()));
            assert!(!PaySign::admits(message.to_sign()));
        }
        for client in [PayClient::Jsapi, PayClient::MiniProgram, PayClient::App] {
            let now = at(1_554_208_460);
            let (app, prepay) = ("wx2421b1c4370ec43b", "wx201410272009395522657a690389285100");
            let pay = PaySign::new(
                client,
                app.parse().unwrap(),
                prepay.parse().unwrap(),
                now,
                Nonce::random(),
                now,
            )
            .unwrap();
            assert!(PaySign::admits(pay.to_sign()));
            assert!(!RequestMessage::admits(pay.to_sign()));
        }
    }

    #[test]
    fn another_shape_is_not_admitted() {
        for bad in [
            &b""[..],
            b"GET",
            b"GET\n/v3/x\n1554208460\nN\n",
            b"GET\n/v3/x\n1554208460\nN\n\n\n",
            b"get\n/v3/x\n1554208460\nN\n\n",
            b"POST\nv3/x\n1554208460\nN\n{}\n",
            b"POST\n//host/x\n1554208460\nN\n{}\n",
            b"POST\n/v3/x y\n1554208460\nN\n{}\n",
            b"POST\n/v3/x#f\n1554208460\nN\n{}\n",
            b"POST\n/v3/x\n155420846\nN\n{}\n",
            b"POST\n/v3/x\n-554208460\nN\n{}\n",
            b"POST\n/v3/x\n1554208460\nN N\n{}\n",
            b"POST\n/v3/x\n1554208460\n\n{}\n",
            b"POST\n/v3/x\n1554208460\nN\n{}",
            b"1554208460\nN\n{}\n",
            &[7; 32],
        ] {
            assert!(!RequestMessage::admits(bad), "{bad:?}");
        }
        for bad in [
            &b""[..],
            b"wx1\n1554208460\nN\nprepay_id=x",
            b"wx1\n1554208460\nN\nprepay_id=x\n\n",
            b"wx1\n1554208460\nN\nprepay_id=\n",
            b"wx1\n1554208460\nN\nprepay_id=x y\n",
            b"1wx\n1554208460\nN\nprepay_id=x\n",
            b"wx1\n0554208460\nN\nprepay_id=x\n",
        ] {
            assert!(!PaySign::admits(bad), "{bad:?}");
        }
    }

    #[test]
    fn nothing_is_signed_for_another_time() {
        let now = at(1_554_208_460);
        let build = |second| {
            RequestMessage::new(
                Method::Get,
                &"/v3/certificates".parse().unwrap(),
                at(second),
                Nonce::random(),
                b"",
                now,
            )
        };
        assert!(build(1_554_208_460 + 299).is_ok());
        for second in [0, 1_554_208_460 - 300, 1_554_208_460 + 300] {
            assert_eq!(build(second).unwrap_err(), MessageError::Timestamp);
        }
        assert_eq!(
            request(Method::Get, "/v3/x", b"{}").unwrap_err(),
            MessageError::Body
        );
        assert!(request(Method::Get, "https://host/v3/x", b"").is_err());
    }
}
