//! What a private key may be used for, and the bytes that each use admits.
//!
//! Who may use it for that is not said here: see [`decide`](super::decide).

use serde::{Deserialize, Serialize};

use crate::wechatpay::v3::{PaySign, RequestMessage};

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
    /// A sealed API secret of the account service (`typ: opcert-secret+jwt`).
    SealedSecret,
    /// A computer's request for API secrets (`typ: opcert-secret-request+jwt`).
    SecretRequest,
    /// A certificate (RFC 5280 section 4).
    Certificate,
    /// A certificate revocation list (RFC 5280 section 5).
    Crl,
    /// What an OCSP responder says of certificates (RFC 6960 section 4.2.1).
    Ocsp,
    /// A checkpoint of an audit trail (`typ: opcert-checkpoint+jwt`).
    AuditCheckpoint,
    /// The self-test of a token: a fixed text behind [`SELF_TEST_PREFIX`].
    SelfTest,
    /// The test of a key that an administrator asked for: [`TOKEN_TEST_MESSAGE`] and nothing else.
    TokenTest,
    /// A request to WeChat Pay's interface version 3 ([`RequestMessage`]).
    WechatPayRequest,
    /// The parameters that start a WeChat payment ([`PaySign`]).
    WechatPayStart,
    /// Decrypting a field that WeChat Pay encrypted for the merchant. Signs nothing.
    WechatPayDecrypt,
    /// Checking what WeChat Pay signed, encrypting fields for it. Uses no private key at all.
    WechatPayCheck,
    /// Opening a secret that was sealed to a key of this program's own. Signs nothing.
    SecretOpening,
}

/// Begins every self-test message; no other signed format can begin so.
pub const SELF_TEST_PREFIX: &[u8] = b"opcert-self-test\0";

/// All that a key signs when an administrator has it tested; no other signed format can begin so.
pub const TOKEN_TEST_MESSAGE: &[u8] =
    b"opcert-token-test\0This signature shows that a key signs. It approves nothing.";

impl Purpose {
    /// Its name in logs, metrics and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Approval => "approval",
            Self::ApprovalCms => "approval-cms",
            Self::CertificateRequest => "certificate-request",
            Self::Challenge => "challenge",
            Self::Ticket => "ticket",
            Self::KeySet => "key-set",
            Self::SealedSecret => "sealed-secret",
            Self::SecretRequest => "secret-request",
            Self::Certificate => "certificate",
            Self::Crl => "crl",
            Self::Ocsp => "ocsp",
            Self::AuditCheckpoint => "audit-checkpoint",
            Self::SelfTest => "self-test",
            Self::TokenTest => "token-test",
            Self::WechatPayRequest => "wechat-pay-request",
            Self::WechatPayStart => "wechat-pay-start",
            Self::WechatPayDecrypt => "wechat-pay-decrypt",
            Self::WechatPayCheck => "wechat-pay-check",
            Self::SecretOpening => "secret-opening",
        }
    }

    fn domain(self) -> Domain {
        match self {
            Self::Approval => Domain::Jws("opcert-approval+jwt"),
            Self::Challenge => Domain::Jws("opcert-challenge+jwt"),
            Self::Ticket => Domain::Jws("opcert-ticket+jwt"),
            Self::KeySet => Domain::Jws("opcert-keys+jwt"),
            Self::SealedSecret => Domain::Jws("opcert-secret+jwt"),
            Self::SecretRequest => Domain::Jws("opcert-secret-request+jwt"),
            Self::AuditCheckpoint => Domain::Jws("opcert-checkpoint+jwt"),
            Self::ApprovalCms => Domain::Set,
            // `version` 0, 2 in its own tag, 1; the responder named by its key.
            Self::CertificateRequest => Domain::Sequence(&[0x02, 1, 0]),
            Self::Certificate => Domain::Sequence(&[0xa0, 3, 0x02, 1, 2]),
            Self::Crl => Domain::Sequence(&[0x02, 1, 1]),
            Self::Ocsp => Domain::Sequence(&[0xa2]),
            Self::SelfTest => Domain::SelfTest,
            Self::TokenTest => Domain::TokenTest,
            Self::WechatPayRequest => Domain::Lines(RequestMessage::admits),
            Self::WechatPayStart => Domain::Lines(PaySign::admits),
            Self::WechatPayDecrypt | Self::WechatPayCheck | Self::SecretOpening => Domain::Nothing,
        }
    }

    /// Whether `message` lies in this purpose's domain, so that a permit for one purpose can
    /// never be spent on bytes that mean another.
    ///
    /// A JWS signing input begins with the base64url of `{"typ":"…"`, which our headers all
    /// start with; signed CMS attributes are a DER SET, the other X.509 structures a DER SEQUENCE
    /// told apart by its first element; the self-test has its prefix, the test of a key is one text.
    /// WeChat Pay's messages are lines: a request begins with an HTTP method, a payment with an
    /// appid (`wx`, `ww`), and a JWS has no line end.
    pub fn admits(self, message: &[u8]) -> bool {
        match self.domain() {
            Domain::Jws(typ) => {
                let header = message
                    .split(|&byte| byte == b'.')
                    .next()
                    .unwrap_or_default();
                std::str::from_utf8(header)
                    .ok()
                    .and_then(crate::base::encoding::from_base64url)
                    .is_some_and(|json| json.starts_with(format!("{{\"typ\":\"{typ}\"").as_bytes()))
            }
            Domain::Set => message.first() == Some(&DER_SET),
            Domain::Sequence(first) => {
                sequence(message).is_some_and(|content| content.starts_with(first))
            }
            Domain::SelfTest => message.starts_with(SELF_TEST_PREFIX),
            Domain::TokenTest => message == TOKEN_TEST_MESSAGE,
            Domain::Lines(admits) => admits(message),
            Domain::Nothing => false,
        }
    }
}

/// The bytes that a purpose admits.
enum Domain {
    /// The signing input of a JWS of this `typ`.
    Jws(&'static str),
    /// A DER SET.
    Set,
    /// A DER SEQUENCE whose content begins so.
    Sequence(&'static [u8]),
    /// What begins with [`SELF_TEST_PREFIX`].
    SelfTest,
    /// [`TOKEN_TEST_MESSAGE`] and nothing else.
    TokenTest,
    /// WeChat Pay's lines, as their own type knows them.
    Lines(fn(&[u8]) -> bool),
    /// It signs nothing.
    Nothing,
}

/// X.690 section 8.11.
const DER_SET: u8 = 0x31;

/// X.690 section 8.9.
const DER_SEQUENCE: u8 = 0x30;

/// What is in a DER SEQUENCE.
fn sequence(message: &[u8]) -> Option<&[u8]> {
    let [DER_SEQUENCE, length, rest @ ..] = message else {
        return None;
    };
    // From 0x80 on the byte says how many bytes the length has (X.690 section 8.1.3.5).
    let more = length.checked_sub(0x80).unwrap_or_default();
    rest.get(usize::from(more)..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::encoding::base64url;

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
            (Purpose::SealedSecret, jws("opcert-secret+jwt").into()),
            (
                Purpose::SecretRequest,
                jws("opcert-secret-request+jwt").into(),
            ),
            (
                Purpose::AuditCheckpoint,
                jws("opcert-checkpoint+jwt").into(),
            ),
            (Purpose::ApprovalCms, vec![0x31, 0]),
            (
                Purpose::CertificateRequest,
                b"\x30\x81\xc8\x02\x01\x00\x30".into(),
            ),
            (
                Purpose::Certificate,
                b"\x30\x82\x01\x9f\xa0\x03\x02\x01\x02\x02".into(),
            ),
            (Purpose::Crl, b"\x30\x7d\x02\x01\x01\x30".into()),
            (Purpose::Ocsp, b"\x30\x82\x01\x02\xa2\x16\x04\x14".into()),
            (Purpose::SelfTest, [SELF_TEST_PREFIX, b"x"].concat()),
            (Purpose::TokenTest, TOKEN_TEST_MESSAGE.to_vec()),
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
            for cut in [
                &b""[..],
                b"\x30",
                b"\x30\x00",
                b"\x30\x82\x01",
                b"\x30\xff\x02\x01",
            ] {
                assert!(!purpose.admits(cut));
            }
        }
        assert!(!Purpose::TokenTest.admits(&[TOKEN_TEST_MESSAGE, b"x"].concat()));
        for (_, message) in &messages {
            assert!(!Purpose::WechatPayDecrypt.admits(message));
        }
    }
}
