//! DER that others bring: certificates, requests, revocation lists, CMS bundles, public keys.
#![no_main]

use std::sync::LazyLock;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use opcert::base::cms;
use opcert::base::key::PublicKey;
use opcert::base::x509::{Certificate, CertificateRequest, Crl};
use opcert::enrol::attestation;

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
    if let Ok(certificates) = Certificate::all_from_pem(data) {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        for one in &certificates {
            let made = std::slice::from_ref(&*CA);
            let _ = attestation::verify(one.public_key(), &certificates, made, now);
            let _ = attestation::verify(one.public_key(), &certificates, &certificates, now);
        }
    }
    let _ = Crl::from_der(data, &CA);
    let _ = cms::certificates(data);
    let _ = PublicKey::from_spki(data);
});
