//! Samples, software keys and a small platform to test against.

use std::sync::LazyLock;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce as GcmNonce, UnboundKey};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use jiff::Timestamp;
use opcert::base::encoding::base64;
use opcert::base::key::{PublicKey, Signature};
use opcert::base::secret::SecretText;
use opcert::base::x509::{
    Certificate, CertificateFields, Draft, RemoteKey, certificate_builder, common_name,
};
use opcert::wechatpay::v3::{Envelope, SCHEME, SignatureHeaders};
use opcert::wechatpay::{ApiV2Secret, ApiV3Key, CertificateSerial};
use serde_json::{Value, json};

pub static SAMPLES: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../vectors/wechatpay.json")).unwrap());

pub fn sample(name: &str) -> &'static Value {
    SAMPLES["vectors"]
        .as_array()
        .unwrap()
        .iter()
        .find(|sample| sample["name"] == name)
        .unwrap()
}

pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name}"))
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub fn v3_key(text: &str) -> ApiV3Key {
    ApiV3Key::new(SecretText::new(text.into())).unwrap()
}

pub fn v2_secret(text: &str) -> ApiV2Secret {
    ApiV2Secret::new(SecretText::new(text.into())).unwrap()
}

pub fn private_key_der(name: &str) -> Vec<u8> {
    let pem = text(&SAMPLES["keys"][name], "private_key_pkcs8_pem");
    der::pem::decode_vec(pem.as_bytes()).unwrap().1
}

/// A published test key, signing in software.
pub struct SoftRsa(KeyPair);

impl SoftRsa {
    pub fn new(name: &str) -> Self {
        Self(KeyPair::from_pkcs8(&private_key_der(name)).unwrap())
    }

    pub fn public(&self) -> PublicKey {
        PublicKey::from_pkcs1(self.0.public_key().as_ref()).unwrap()
    }

    pub fn sign(&self, message: &[u8]) -> Signature {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                message,
                &mut signature,
            )
            .unwrap();
        Signature::from_jose(signature)
    }
}

/// A platform with an authority, one certificate and the merchant's APIv3 secret.
pub struct Platform {
    pub authority: Certificate,
    pub certificate: Certificate,
    pub serial: String,
    key: SoftRsa,
}

pub const SECRET: &str = "a7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb";
pub const NOW: i64 = 1_700_000_000;

impl Platform {
    pub fn new() -> Self {
        Self::with_validity(NOW - 1_000_000, NOW + 1_000_000)
    }

    pub fn with_validity(from: i64, until: i64) -> Self {
        Self::with_key("java_sdk_wechatpay", from, until)
    }

    /// One whose certificate is for another of the published keys.
    pub fn with_key(name: &str, from: i64, until: i64) -> Self {
        let (authority_key, key) = (SoftRsa::new("java_sdk_merchant"), SoftRsa::new(name));
        let issue = |subject: &str, subject_key: &PublicKey, from, until| {
            let builder = certificate_builder(CertificateFields {
                issuer: common_name("Test Root CA").unwrap(),
                issuer_key: authority_key.public(),
                subject: common_name(subject).unwrap(),
                subject_key: subject_key.clone(),
                not_before: at(from),
                not_after: at(until),
            })
            .unwrap();
            let draft = Draft::new(builder, RemoteKey::new(authority_key.public())).unwrap();
            let signature = authority_key.sign(draft.to_sign());
            Certificate::from_der(&draft.assemble(&signature).unwrap()).unwrap()
        };
        let authority = issue("Test Root CA", &authority_key.public(), 0, 4_000_000_000);
        let certificate = issue("Test sign", &key.public(), from, until);
        Self {
            serial: CertificateSerial::of(&certificate).unwrap().to_string(),
            authority,
            certificate,
            key,
        }
    }

    pub fn headers(&self, serial: &str, second: i64, body: &[u8]) -> Vec<(&'static str, String)> {
        let nonce = "EcZ9Cmy4Xyx1i6RlJQzLcCyEqDa26NBz";
        let message = [format!("{second}\n{nonce}\n").as_bytes(), body, b"\n"].concat();
        vec![
            ("Wechatpay-Timestamp", second.to_string()),
            ("Wechatpay-Nonce", nonce.into()),
            ("Wechatpay-Serial", serial.into()),
            ("Wechatpay-Signature-Type", SCHEME.into()),
            (
                "Wechatpay-Signature",
                base64(self.key.sign(&message).as_bytes()),
            ),
        ]
    }

    pub fn signed(&self, second: i64, body: &[u8]) -> SignatureHeaders {
        parse(&self.headers(&self.serial, second, body))
    }

    /// A `GET /v3/certificates` answer.
    pub fn certificates(&self, announced: &str) -> Vec<u8> {
        let pem = self.certificate.to_pem().unwrap();
        let entry = json!({
            "serial_no": announced,
            "effective_time": self.certificate.not_before().to_string(),
            "expire_time": self.certificate.not_after().to_string(),
            "encrypt_certificate": sealed(SECRET, "certificate", pem.as_bytes()),
        });
        serde_json::to_vec(&json!({ "data": [entry] })).unwrap()
    }

    pub fn callback(&self, plaintext: &[u8]) -> Vec<u8> {
        serde_json::to_vec(&json!({
            "id": "EV-2018022511223320873",
            "create_time": "2015-05-20T13:29:35+08:00",
            "resource_type": "encrypt-resource",
            "event_type": "TRANSACTION.SUCCESS",
            "summary": "支付成功",
            "resource": sealed(SECRET, "transaction", plaintext),
        }))
        .unwrap()
    }
}

pub fn parse(headers: &[(&'static str, String)]) -> SignatureHeaders {
    SignatureHeaders::new(headers.iter().map(|(name, value)| (*name, value.as_str()))).unwrap()
}

pub fn sealed(key: &str, associated_data: &str, plaintext: &[u8]) -> Value {
    let nonce = "fdasflkja484";
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_bytes()).unwrap());
    let mut buffer = plaintext.to_vec();
    key.seal_in_place_append_tag(
        GcmNonce::try_assume_unique_for_key(nonce.as_bytes()).unwrap(),
        Aad::from(associated_data.as_bytes()),
        &mut buffer,
    )
    .unwrap();
    json!({
        "algorithm": "AEAD_AES_256_GCM",
        "ciphertext": base64(&buffer),
        "nonce": nonce,
        "associated_data": associated_data,
        "original_type": "x",
    })
}

pub fn envelope(inputs: &Value) -> Envelope {
    Envelope {
        algorithm: "AEAD_AES_256_GCM".into(),
        ciphertext: text(inputs, "ciphertext_b64").into(),
        nonce: text(inputs, "nonce").into(),
        associated_data: Some(text(inputs, "associated_data").into()),
    }
}
