//! What the platform of WeChat Pay sends by interface version 3: headers, callbacks, certificates.
//!
//! A line that ends the headers, then the body; what stands behind a signature or an encryption is
//! reached too, as if those had been right.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use opcert::base::encoding::base64;
use opcert::base::secret::SecretText;
use opcert::base::x509::Certificate;
use opcert::wechatpay::ApiV3Key;
use opcert::wechatpay::v3::{
    Answer, Field, Notification, PlatformKeys, SignatureHeaders, Verified, public_key_from_pem,
};
use serde_json::json;

const SECRET: &str = "0123456789abcdef0123456789ABCDEF";
const NONCE: &str = "0123456789ab";

static KEY: LazyLock<ApiV3Key> =
    LazyLock::new(|| ApiV3Key::new(SecretText::new(SECRET.to_owned())).unwrap());
static SEALING: LazyLock<LessSafeKey> =
    LazyLock::new(|| LessSafeKey::new(UnboundKey::new(&AES_256_GCM, SECRET.as_bytes()).unwrap()));
static CA: LazyLock<Certificate> =
    LazyLock::new(|| Certificate::from_pem(include_bytes!("../../tests/samples/ca.pem")).unwrap());

/// Headers that are sound, for the bodies.
static SOUND: LazyLock<SignatureHeaders> = LazyLock::new(|| {
    SignatureHeaders::new([
        ("Wechatpay-Timestamp", "1800000000"),
        ("Wechatpay-Nonce", "n"),
        ("Wechatpay-Signature", "AAAA"),
        (
            "Wechatpay-Serial",
            "5157F09EFDC096DE15EBE81A47057A7232F1B8E1",
        ),
    ])
    .unwrap()
});

fn certificates(body: &[u8], now: Timestamp) {
    let answer = Answer {
        headers: &SOUND,
        body,
    };
    // No key of the answer made the signature.
    assert!(PlatformKeys::bootstrap(answer, &KEY, std::slice::from_ref(&*CA), now).is_err());
}

fuzz_target!(|data: &[u8]| {
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let cut = data
        .windows(2)
        .position(|pair| pair == b"\n\n")
        .unwrap_or(data.len());
    let (head, body) = (&data[..cut], data.get(cut + 2..).unwrap_or_default());
    if let Ok(head) = std::str::from_utf8(head) {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        if let Ok(headers) = SignatureHeaders::new(lines) {
            assert!(PlatformKeys::new().verify(&headers, body, now).is_err());
        }
        let _ = Field::parse(head);
        let _ = public_key_from_pem(head);
    }
    if let Ok(notification) = Notification::parse(Verified::assumed(body)) {
        assert!(!notification.id().is_empty());
        let _ = notification.open(&KEY);
    }
    certificates(body, now);

    // The head as a certificate that was sealed rightly.
    let mut sealed = head.to_vec();
    let nonce = Nonce::try_assume_unique_for_key(NONCE.as_bytes()).unwrap();
    SEALING
        .seal_in_place_append_tag(nonce, Aad::empty(), &mut sealed)
        .unwrap();
    let answer = json!({"data": [{
        "serial_no": "01",
        "effective_time": "2020-01-01T00:00:00+08:00",
        "expire_time": "2040-01-01T00:00:00+08:00",
        "encrypt_certificate": {
            "algorithm": "AEAD_AES_256_GCM",
            "nonce": NONCE,
            "ciphertext": base64(&sealed),
        },
    }]});
    certificates(answer.to_string().as_bytes(), now);
});
