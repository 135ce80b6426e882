//! Every published sample; one that nobody knows how to check is a failure.

use std::collections::BTreeSet;

use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    PrivateDecryptingKey,
};
use opcert::base::encoding::{base64, from_base64};
use opcert::base::key::{PublicKey, Scheme, Signature};
use opcert::base::secret::{SecretBytes, SecretText};
use opcert::base::x509::Certificate;
use opcert::wechatpay::v2::{Fields, Rules, SignType, Suffix, open_refund};
use opcert::wechatpay::v3::{
    Field, FieldError, Notification, PayClient, PaySign, PlatformKeys, RequestMessage, SCHEME,
    SignatureHeaders, VerifyError, public_key_from_pem,
};
use opcert::wechatpay::{ApiV3Key, CertificateSerial, InvalidSecret, MerchantId, PlatformKeyId};
use serde_json::Value;

use crate::support::{SAMPLES, SoftRsa, at, envelope, private_key_der, text, v2_secret, v3_key};

#[test]
fn every_sample_passes() {
    for sample in SAMPLES["vectors"].as_array().unwrap() {
        let (name, inputs, expected) =
            (text(sample, "name"), &sample["inputs"], &sample["expected"]);
        println!("{name}");
        match text(sample, "algorithm") {
            // Its mock secret is too short for the public way in: a unit test beside the code.
            "wechatpay-v2-MD5" if name == "v2-easywechat-jsapi-md5" => {}
            // A key as it is, which no caller can give: a unit test beside the code.
            "AES-256-ECB-PKCS7" => {}
            "wechatpay-v2-MD5" => v2_sign(SignType::Md5, inputs, expected),
            "wechatpay-v2-HMAC-SHA256" => v2_sign(SignType::HmacSha256, inputs, expected),
            "md5-with-key-suffix" => v2_suffix(Suffix::Key, inputs, expected),
            "md5-with-secret-suffix" => v2_suffix(Suffix::WorkWeixin, inputs, expected),
            "wechatpay-v2-canonical-string" => {
                assert_eq!(
                    *fields(&inputs["params"]).canonical(),
                    expected.as_str().unwrap()
                );
            }
            "wechatpay-v2-key-order" => v2_order(inputs, expected),
            "AES-256-ECB-PKCS7 key=lowerhex(md5(api_v2_key))" => v2_refund(inputs, expected),
            "v2 sign type by length" => v2_length(inputs),
            "wechatpay-v2 weakness" => v2_ambiguity(inputs, expected),
            "PKCS#1 RSA PUBLIC KEY to SPKI" => {
                let key = public_key_from_pem(text(inputs, "pkcs1_pem")).unwrap();
                assert_eq!(
                    key,
                    public_key_from_pem(expected.as_str().unwrap()).unwrap()
                );
            }
            "WECHATPAY2-SHA256-RSA2048 request signature (RSASSA-PKCS1-v1_5, SHA-256)"
            | "WECHATPAY2-SHA256-RSA2048 request signature" => v3_request(inputs, expected),
            "Authorization header text with a fake signer" => v3_header(inputs, expected),
            "paySign (4 lines appId/timeStamp/nonceStr/package)" => v3_pay_sign(inputs, expected),
            "WECHATPAY2-SHA256-RSA2048 response/callback verification (3 lines)" => {
                v3_verify(inputs, expected);
            }
            "SHA256withRSA PKCS1v15" => {
                let signature =
                    SoftRsa::new(text(inputs, "key_ref")).sign(text(inputs, "message").as_bytes());
                assert_eq!(base64(signature.as_bytes()), expected.as_str().unwrap());
            }
            "SHA256withRSA PKCS1v15 verify"
            | "SHA256withRSA PKCS1v15 verify, key looked up by certificate serial" => {
                raw_verify(inputs, expected);
            }
            "AES-128-GCM (!) labelled AEAD_AES_256_GCM" => {
                let key = SecretText::new(text(inputs, "apiv3_key").into());
                assert_eq!(ApiV3Key::new(key).unwrap_err(), InvalidSecret::Length);
            }
            "AEAD_AES_256_GCM" => {
                let opened = envelope(inputs).open(&v3_key(text(inputs, "apiv3_key")));
                match expected.as_str() {
                    Some(plaintext) => assert_eq!(opened.unwrap().expose(), plaintext.as_bytes()),
                    None => assert!(opened.is_err()),
                }
            }
            "AES-256-GCM with 16-byte IV (non-standard)" => {
                let opened = envelope(inputs).open(&v3_key(text(inputs, "apiv3_key")));
                assert!(opened.is_err());
            }
            "AEAD_AES_256_GCM GET /v3/certificates answer" => v3_certificates(inputs, expected),
            "RSAES-OAEP (SHA-1, MGF1-SHA-1, empty label)" => {
                let field = decrypt(inputs, &OAEP_SHA1_MGF1SHA1).unwrap();
                assert_eq!(field.expose(), expected.as_str().unwrap());
            }
            // What was encrypted with SHA-1 does not decrypt with SHA-256.
            "RSAES-OAEP (SHA-256)" => {
                assert!(decrypt(inputs, &OAEP_SHA256_MGF1SHA256).is_none());
                assert!(decrypt(inputs, &OAEP_SHA1_MGF1SHA1).is_some());
            }
            "RSAES-PKCS1-v1_5 (shipped by SDK, do not offer)" => {
                assert!(decrypt(inputs, &OAEP_SHA1_MGF1SHA1).is_none());
            }
            "RSAES-OAEP (SHA-1)" => v3_too_long(inputs),
            "sensitive field of empty string" => {
                assert!(matches!(Field::parse(""), Ok(Field::Empty)));
                let (keys, _) = doc_key();
                let key = keys.encrypting(at(0)).unwrap();
                assert_eq!(
                    key.encrypt_field(&SecretText::new(String::new())).unwrap(),
                    ""
                );
            }
            "certificate serial to serial_no" => {
                let certificate = certificate(text(inputs, "certificate_pem"));
                let serial = CertificateSerial::of(&certificate).unwrap();
                assert_eq!(serial.as_str(), expected.as_str().unwrap());
            }
            "verify (3 lines) then AEAD_AES_256_GCM" => v3_callback(inputs, expected),
            "replay window" => v3_stale(inputs),
            other => panic!("{name}: nobody checks {other}"),
        }
    }
}

pub fn fields(params: &Value) -> Fields {
    Fields::new(
        params
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())),
    )
    .unwrap()
}

fn v2_sign(sign_type: SignType, inputs: &Value, expected: &Value) {
    let fields = fields(&inputs["params"]);
    let secret = v2_secret(text(inputs, "key"));
    let with_key = format!("{}&key={}", *fields.canonical(), text(inputs, "key"));
    assert_eq!(with_key, text(inputs, "string_to_sign"));
    let sign = Rules::new(sign_type).sign(&fields, &secret).unwrap();
    assert_eq!(sign, expected.as_str().unwrap());
}

fn v2_suffix(suffix: Suffix, inputs: &Value, expected: &Value) {
    let rules = Rules {
        suffix,
        ..Rules::new(SignType::Md5)
    };
    let sign = rules.sign(&Fields::default(), &v2_secret(text(inputs, "key")));
    assert_eq!(sign.unwrap().to_lowercase(), expected.as_str().unwrap());
}

fn v2_order(inputs: &Value, expected: &Value) {
    let names = inputs["keys"].as_array().unwrap().iter();
    let fields =
        Fields::new(names.map(|name| (name.as_str().unwrap().into(), "x".into()))).unwrap();
    let order: Vec<&str> = fields.iter().map(|(name, _)| name).collect();
    assert_eq!(serde_json::to_value(order).unwrap(), *expected);
}

fn v2_refund(inputs: &Value, expected: &Value) {
    let secret = v2_secret(text(inputs, "api_v2_key"));
    let fields = open_refund(text(inputs, "ciphertext_b64"), &secret).unwrap();
    assert_eq!(
        fields,
        Fields::from_xml(expected.as_str().unwrap().as_bytes()).unwrap()
    );
    assert_eq!(fields.get("out_refund_no"), Some("123"));
}

fn v2_length(inputs: &Value) {
    let secret = v2_secret("192006250b4c09247ec02edce69f6a2d");
    for (sign_type, length) in [
        (SignType::Md5, "md5_len"),
        (SignType::HmacSha256, "hmac_len"),
    ] {
        let sign = Rules::new(sign_type)
            .sign(&Fields::default(), &secret)
            .unwrap();
        assert_eq!(sign.len() as u64, inputs[length].as_u64().unwrap());
    }
}

fn v2_ambiguity(inputs: &Value, expected: &Value) {
    let (whole, split) = (fields(&inputs["params_1"]), fields(&inputs["params_2"]));
    let string = format!("{}&key={}", *split.canonical(), text(inputs, "key"));
    assert_eq!(string, text(expected, "same_string"));
    assert_eq!(*whole.canonical(), *split.canonical());
    let sign = Rules::new(SignType::HmacSha256).sign(&split, &v2_secret(text(inputs, "key")));
    assert_eq!(sign.unwrap(), text(expected, "same_sign"));
}

fn request(inputs: &Value) -> RequestMessage {
    let time = at(text(inputs, "timestamp").parse().unwrap());
    RequestMessage::new(
        text(inputs, "method").parse().unwrap(),
        &text(inputs, "canonical_url").parse().unwrap(),
        time,
        text(inputs, "nonce_str").parse().unwrap(),
        text(inputs, "body").as_bytes(),
        time,
    )
    .unwrap()
}

fn v3_request(inputs: &Value, expected: &Value) {
    let message = request(inputs);
    assert_eq!(message.to_sign(), text(inputs, "message").as_bytes());
    let signature = SoftRsa::new(text(inputs, "key_ref")).sign(message.to_sign());
    assert_eq!(
        base64(signature.as_bytes()),
        text(expected, "signature_b64")
    );
    if let Some(authorization) = expected["authorization"].as_str() {
        let header = message.authorization(
            &text(inputs, "mchid").parse().unwrap(),
            &text(inputs, "serial_no").parse().unwrap(),
            &signature,
        );
        assert_eq!(header, authorization);
    }
}

/// The mock's scheme and signature are no real ones, and order is free: the pairs are compared.
fn v3_header(inputs: &Value, expected: &Value) {
    let message = request(inputs);
    assert_eq!(message.to_sign(), text(expected, "message").as_bytes());
    let header = message.authorization(
        &text(inputs, "mchid").parse().unwrap(),
        &text(inputs, "serial_no").parse().unwrap(),
        &Signature::from_jose(vec![1]),
    );
    let pairs = |header: &str, scheme: &str| -> BTreeSet<String> {
        header.strip_prefix(scheme).unwrap()[1..]
            .split(',')
            .filter(|pair| !pair.starts_with("signature="))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(
        pairs(&header, SCHEME),
        pairs(text(expected, "authorization"), "WECHATPAY2-Mock")
    );
}

fn v3_pay_sign(inputs: &Value, expected: &Value) {
    let time = at(text(inputs, "timestamp").parse().unwrap());
    let package = text(inputs, "package");
    for client in [PayClient::Jsapi, PayClient::MiniProgram, PayClient::App] {
        let pay = PaySign::new(
            client,
            text(inputs, "appid").parse().unwrap(),
            package.strip_prefix("prepay_id=").unwrap().parse().unwrap(),
            time,
            text(inputs, "nonce_str").parse().unwrap(),
            time,
        )
        .unwrap();
        let signature = SoftRsa::new(text(inputs, "key_ref")).sign(pay.to_sign());
        let merchant: MerchantId = "1900007291".parse().unwrap();
        let parameters = pay.parameters(&merchant, &signature);
        let get = |wanted: &str| {
            let found = parameters.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        if client == PayClient::App {
            let lines = text(inputs, "message").replace("prepay_id=", "");
            assert_eq!(pay.to_sign(), lines.as_bytes());
            assert_eq!(get("package"), Some("Sign=WXPay"));
            assert_eq!(get("partnerid"), Some("1900007291"));
        } else {
            assert_eq!(pay.to_sign(), text(inputs, "message").as_bytes());
            assert_eq!(get("package"), Some(package));
            assert_eq!(get("paySign"), expected.as_str());
        }
    }
}

pub fn certificate(pem: &str) -> Certificate {
    Certificate::from_pem(pem.as_bytes()).unwrap()
}

fn v3_verify(inputs: &Value, expected: &Value) {
    let mut keys = PlatformKeys::new();
    let serial = match inputs["public_key_pem"].as_str() {
        Some(pem) => {
            let id: PlatformKeyId = text(inputs, "serial").parse().unwrap();
            keys.pin_public_key(id.clone(), pem).unwrap();
            id
        }
        None => {
            keys.pin_certificate(&certificate(text(inputs, "certificate_pem")))
                .unwrap();
            text(inputs, "certificate_serial").parse().unwrap()
        }
    };
    let headers = SignatureHeaders::new([
        ("Wechatpay-Timestamp", text(inputs, "timestamp")),
        ("Wechatpay-Nonce", text(inputs, "nonce")),
        ("Wechatpay-Signature", text(inputs, "signature_b64")),
        ("Wechatpay-Serial", serial.as_str()),
    ])
    .unwrap();
    let now = at(text(inputs, "timestamp").parse().unwrap());
    let verified = keys.verify(&headers, text(inputs, "body").as_bytes(), now);
    match expected.as_bool().unwrap() {
        true => assert_eq!(verified.unwrap().body(), text(inputs, "body").as_bytes()),
        false => assert_eq!(verified.unwrap_err(), VerifyError::Signature),
    }
}

fn raw_verify(inputs: &Value, expected: &Value) {
    let certificate = certificate(text(inputs, "certificate_pem"));
    let mut keys = PlatformKeys::new();
    keys.pin_certificate(&certificate).unwrap();
    let key = keys.get(&text(inputs, "serial").parse().unwrap()).unwrap();
    let signature = from_base64(text(inputs, "signature_b64").as_bytes()).unwrap();
    let verified = key.public_key().verify(
        Scheme::Rs256,
        text(inputs, "message").as_bytes(),
        &Signature::from_jose(signature),
    );
    assert_eq!(verified.is_ok(), expected.as_bool().unwrap());
}

fn v3_certificates(inputs: &Value, expected: &Value) {
    let answer: Value = serde_json::from_str(text(inputs, "response")).unwrap();
    let entry = &answer["data"][0];
    let envelope: opcert::wechatpay::v3::Envelope =
        serde_json::from_value(entry["encrypt_certificate"].clone()).unwrap();
    let pem = envelope.open(&v3_key(text(inputs, "apiv3_key"))).unwrap();
    let opened = Certificate::from_pem(pem.expose()).unwrap();
    assert_eq!(
        opened.der(),
        certificate(text(expected, "certificate_pem")).der()
    );
    let serial = CertificateSerial::of(&opened).unwrap();
    assert_eq!(serial.as_str(), text(expected, "serial_no"));
    assert_eq!(serial.as_str(), text(entry, "serial_no"));
}

/// With SHA-1, what a token does with `CKM_RSA_PKCS_OAEP`, `CKM_SHA_1` and `CKG_MGF1_SHA1`.
fn decrypt(inputs: &Value, algorithm: &'static OaepAlgorithm) -> Option<SecretText> {
    let Field::Sealed(field) = Field::parse(text(inputs, "ciphertext_b64")).unwrap() else {
        panic!("a ciphertext");
    };
    let key = PrivateDecryptingKey::from_pkcs8(&private_key_der(text(inputs, "key_ref"))).unwrap();
    let key = OaepPrivateDecryptingKey::new(key).unwrap();
    let mut buffer = vec![0; key.min_output_size()];
    let plaintext = key
        .decrypt(algorithm, field.as_bytes(), &mut buffer, None)
        .ok()?
        .to_vec();
    Some(field.finish(&SecretBytes::new(plaintext)).unwrap())
}

fn doc_key() -> (PlatformKeys, PublicKey) {
    let key = SoftRsa::new("java_sdk_wechatpay").public();
    let pem = text(&SAMPLES["keys"]["java_sdk_wechatpay"], "public_key_pem");
    let mut keys = PlatformKeys::new();
    keys.pin_public_key("PUB_KEY_ID_1".parse().unwrap(), pem)
        .unwrap();
    (keys, key)
}

fn v3_too_long(inputs: &Value) {
    let (keys, _) = doc_key();
    let key = keys.encrypting(at(0)).unwrap();
    let length = usize::try_from(inputs["plaintext_len"].as_u64().unwrap()).unwrap();
    let encrypt = |length| key.encrypt_field(&SecretText::new("x".repeat(length)));
    assert_eq!(
        encrypt(length).unwrap_err(),
        FieldError::TooLong { max: 214 }
    );
    let inputs = serde_json::json!({
        "key_ref": "java_sdk_wechatpay",
        "ciphertext_b64": encrypt(length - 1).unwrap(),
    });
    assert_eq!(
        decrypt(&inputs, &OAEP_SHA1_MGF1SHA1).unwrap().expose(),
        "x".repeat(214)
    );
}

fn callback(inputs: &Value) -> (PlatformKeys, SignatureHeaders) {
    let headers = inputs["headers"].as_object().unwrap();
    let headers = SignatureHeaders::new(
        headers
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str().unwrap())),
    )
    .unwrap();
    let mut keys = PlatformKeys::new();
    let pem = text(&SAMPLES["keys"]["java_sdk_wechatpay"], "public_key_pem");
    keys.pin_public_key("PUB_KEY_ID_1".parse().unwrap(), pem)
        .unwrap();
    (keys, headers)
}

fn v3_callback(inputs: &Value, expected: &Value) {
    let (mut keys, headers) = callback(inputs);
    let body = text(inputs, "body").as_bytes();
    let now = at(inputs["now"].as_i64().unwrap());
    assert!(matches!(
        keys.verify(&headers, body, now),
        Err(VerifyError::KeyUnknown { .. })
    ));
    let platform = certificate(text(inputs, "platform_certificate_pem"));
    keys.pin_certificate(&platform).unwrap();
    let verified = keys.verify(&headers, body, now);
    assert_eq!(
        verified.is_ok(),
        expected["signature_ok"].as_bool().unwrap()
    );
    let notification = Notification::parse(verified.unwrap()).unwrap();
    let key = v3_key(text(inputs, "apiv3_key"));
    let plaintext = notification.open(&key).unwrap();
    assert_eq!(plaintext.expose(), text(expected, "plaintext").as_bytes());
}

fn v3_stale(inputs: &Value) {
    let (keys, headers) = callback(inputs);
    let now = at(inputs["now"].as_i64().unwrap());
    assert_eq!(
        keys.verify(&headers, b"{}", now).unwrap_err(),
        VerifyError::Window
    );
}
