//! Media types, each written once, and how one is read from a header.
//!
//! The OpenAPI documents repeat them as literals, which their macro wants; a test compares those.

use http::HeaderValue;

/// RFC 8259.
pub const JSON: &str = "application/json";
/// A compact JWS (RFC 7515 section 9.2.1).
pub const JOSE: &str = "application/jose";
/// A JWK set (RFC 7517 section 8.5.2).
pub const JWK_SET: &str = "application/jwk-set+json";
/// A revocation list (RFC 2585 section 4.2).
pub const CRL: &str = "application/pkix-crl";
/// A certification request (RFC 5967).
pub const PKCS10: &str = "application/pkcs10";
/// Certificates as EST has them (RFC 7030 section 4.1.3).
pub const CERTS_ONLY: &str = "application/pkcs7-mime; smime-type=certs-only";
/// What EST asks for in a request (RFC 7030 section 4.5.2).
pub const CSR_ATTRIBUTES: &str = "application/csrattrs";
/// RFC 6960 appendix C.1.
pub const OCSP_REQUEST: &str = "application/ocsp-request";
/// RFC 6960 appendix C.2.
pub const OCSP_RESPONSE: &str = "application/ocsp-response";
/// ISO 32000.
pub const PDF: &str = "application/pdf";
/// A document of Office Open XML (ISO/IEC 29500).
pub const DOCX: &str = "application/vnd.openxmlformats-officedocument.wordprocessingml.document";
/// RFC 2046 section 4.1.3.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// Whether a `Content-Type` is `expected`: type and subtype in any case, whatever parameters follow
/// (RFC 9110 section 8.3.1).
pub fn is(given: Option<&HeaderValue>, expected: &str) -> bool {
    let given = given.and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim();
    essence.eq_ignore_ascii_case(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_and_case_do_not_count() {
        for (given, matches) in [
            ("application/json", true),
            ("Application/JSON ; charset=utf-8", true),
            ("application/json+x", false),
            ("text/plain; application/json", false),
            ("", false),
        ] {
            let value = HeaderValue::from_static(given);
            assert_eq!(is(Some(&value), JSON), matches, "{given}");
        }
        assert!(!is(None, JSON));
    }
}
