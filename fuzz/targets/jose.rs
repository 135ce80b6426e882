//! What the account service signs for daemons and what computers send it, as compact JWS and JWE;
//! and any claims, rightly signed, so that the parsers behind the signature are reached too.
//!
//! The first byte says as what the rest is signed.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use opcert::base::encoding::base64url;
use opcert::base::jose::{Jwk, JwkSet, Jws};
use opcert::base::jwe::{Jwe, RsaJwk};
use opcert::base::key::{Curve, PublicKey};
use opcert::base::secret::SecretBytes;
use opcert::base::x509::Certificate;
use opcert::statement::sealed_secret::{self, Plain};
use opcert::statement::{
    KeySet, NoKey, Origin, SealedSecret, SecretRequest, ServiceError, Ticket, approval, key_set,
};

static KEY: LazyLock<(EcdsaKeyPair, PublicKey)> = LazyLock::new(|| {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let public = PublicKey::from_ec_point(Curve::P256, pair.public_key().as_ref()).unwrap();
    (pair, public)
});
static CA: LazyLock<Certificate> =
    LazyLock::new(|| Certificate::from_pem(include_bytes!("../../tests/samples/ca.pem")).unwrap());

fn key(_: &Origin, _: &str) -> Result<PublicKey, NoKey> {
    Ok(KEY.1.clone())
}

/// Opens a JWS of one type; whether only its signature was wrong.
fn open(kind: u8, text: &str, now: Timestamp) -> bool {
    let refused = match kind {
        0 => KeySet::open(text, now, key)
            .map(|set| {
                let _ = set.authorities();
                for key in &set.keys.keys {
                    let _ = key.to_public_key();
                }
            })
            .err(),
        1 => Ticket::open(text, now, key)
            .map(|ticket| assert!(ticket.expires_at() > now))
            .err(),
        _ => SealedSecret::open(text, now, key)
            .map(|sealed| {
                let _ = Jwe::parse(&sealed.jwe, sealed_secret::SEALED_TYPE, sealed_secret::MAX);
            })
            .err(),
    };
    refused == Some(ServiceError::Signature)
}

fuzz_target!(|data: &[u8]| {
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Jws::parse(text, 32 * 1024);
        for kind in 0..3 {
            open(kind, text, now);
        }
        assert!(SecretRequest::verify(text, std::slice::from_ref(&*CA), now).is_err());
        let _ = approval::statement_in(text);
        if let Ok(jwe) = Jwe::parse(text, sealed_secret::SEALED_TYPE, sealed_secret::MAX) {
            assert!(jwe.open(&SecretBytes::new(vec![0; 32])).is_err());
        }
    }
    let Some((&first, claims)) = data.split_first() else {
        return;
    };
    let _ = Plain::parse(&SecretBytes::new(claims.to_vec()));
    if let Ok(set) = serde_json::from_slice::<JwkSet>(claims) {
        for key in &set.keys {
            let sound = key.to_public_key().ok();
            let again = sound.and_then(|key| Jwk::from_public_key(&key).ok());
            assert!(again.is_none_or(|again| again.kid == key.kid));
        }
    }
    if let Ok(key) = serde_json::from_slice::<RsaJwk>(claims) {
        let _ = key.to_public_key();
    }
    let (kind, typ) = match first % 3 {
        0 => (0, key_set::TYPE),
        1 => (1, "opcert-ticket+jwt"),
        _ => (2, sealed_secret::TYPE),
    };
    let header = base64url(format!(r#"{{"typ":"{typ}","alg":"ES256","kid":"k"}}"#).as_bytes());
    let input = format!("{header}.{}", base64url(claims));
    // Signed only where nothing but the signature is wrong: most inputs do not come so far.
    if open(kind, &format!("{input}."), now) {
        let signature = KEY.0.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        open(
            kind,
            &format!("{input}.{}", base64url(signature.as_ref())),
            now,
        );
    }
});
