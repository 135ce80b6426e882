//! DER that others bring: certificates, requests, revocation lists, CMS bundles, public keys.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use opcert::base::cms;
use opcert::base::key::PublicKey;
use opcert::base::x509::{Certificate, CertificateRequest, Crl};

static CA: LazyLock<Certificate> =
    LazyLock::new(|| Certificate::from_pem(include_bytes!("../../tests/samples/ca.pem")).unwrap());

fuzz_target!(|data: &[u8]| {
    if let Ok(certificate) = Certificate::from_der(data) {
        let _ = (certificate.identity(), certificate.not_after());
        assert_eq!(certificate.der(), data);
    }
    if let Ok(request) = CertificateRequest::from_der(data) {
        assert_eq!(request.der(), data);
    }
    let _ = Crl::from_der(data, &CA);
    let _ = cms::certificates(data);
    let _ = PublicKey::from_spki(data);
});
