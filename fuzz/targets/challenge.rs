//! A challenge, as it comes; and any claims, rightly signed, so that the parser behind the
//! signature is reached too.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use opcert::base::encoding::base64url;
use opcert::base::key::{Curve, PublicKey};
use opcert::statement::{Challenge, Language, ServiceError};

static KEY: LazyLock<(EcdsaKeyPair, PublicKey)> = LazyLock::new(|| {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let public = PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref()).unwrap();
    (pair, public)
});

/// Opens it; whether only its signature was wrong.
fn open(compact: &str) -> bool {
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    match Challenge::open(compact, now, |_, _| Ok(KEY.1.clone())) {
        Ok(challenge) => {
            let statement = challenge.statement();
            for (_, value) in statement.lines(Language::Chinese) {
                assert!(!value.chars().any(char::is_control), "{value:?}");
            }
            assert!(challenge.expires_at() > now);
            false
        }
        Err(error) => error == ServiceError::Signature,
    }
}

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        open(text);
    }
    let header = base64url(br#"{"typ":"opcert-challenge+jwt","alg":"ES256","kid":"k"}"#);
    let input = format!("{header}.{}", base64url(data));
    // Signed only where nothing but the signature is wrong: most inputs do not come so far.
    if open(&format!("{input}.")) {
        let signature = KEY.0.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        open(&format!("{input}.{}", base64url(signature.as_ref())));
    }
});
