//! Fourteen defects found in other implementations, each by a test that we do not have it.

use std::time::Duration;

use opcert::base::encoding::base64;
use opcert::base::key::Signature;
use opcert::base::secret::SecretText;
use opcert::wechatpay::v2::{
    Embedded, Fields, FieldsError, Rules, SignError, SignType, XmlError, open_refund,
};
use opcert::wechatpay::v3::{
    Answer, Delivery, Envelope, Field, FieldError, Notification, NotificationError, OpenError,
    PlatformError, PlatformKeys, Seen, SignatureHeaders, VerifyError,
};
use opcert::wechatpay::{ApiV3Key, CertificateSerial, InvalidSecret};
use serde_json::Value;

use crate::samples::{certificate, fields};
use crate::support::{
    NOW, Platform, SAMPLES, SECRET, SoftRsa, at, parse, sample, sealed, text, v2_secret, v3_key,
};

const V2: &str = "192006250b4c09247ec02edce69f6a2d";

fn keys(platform: &Platform) -> PlatformKeys {
    let mut keys = PlatformKeys::new();
    keys.pin_certificate(&platform.certificate).unwrap();
    keys
}

fn open(value: Value) -> Result<Vec<u8>, OpenError> {
    let envelope: Envelope = serde_json::from_value(value).unwrap();
    let opened = envelope.open(&v3_key(SECRET))?;
    Ok(opened.expose().to_vec())
}

/// wechatpay-go: a key of 16 or 24 bytes silently becomes AES-128 or AES-192.
#[test]
fn defect_01_a_short_key_is_no_aes_256_key() {
    let published = text(
        &sample("v3-callback-decrypt-go-16byte-key")["inputs"],
        "apiv3_key",
    );
    for key in [published, &SECRET[..24], &SECRET[..31]] {
        let refused = ApiV3Key::new(SecretText::new(key.into()));
        assert_eq!(refused.unwrap_err(), InvalidSecret::Length);
    }
}

/// wechatpay-php: less than a tag passes as a short tag over an empty plaintext.
#[test]
fn defect_02_a_truncated_tag_is_no_tag() {
    let mut value = sealed(SECRET, "", b"");
    assert_eq!(open(value.clone()).unwrap(), b"");
    let whole = opcert::base::encoding::from_base64(text(&value, "ciphertext").as_bytes()).unwrap();
    assert_eq!(whole.len(), 16);
    for length in 0..16 {
        value["ciphertext"] = base64(&whole[..length]).into();
        assert_eq!(
            open(value.clone()).unwrap_err(),
            OpenError::Ciphertext,
            "{length}"
        );
    }
}

/// wechatpay-java: callbacks have no time window, so they can be replayed for ever.
#[test]
fn defect_03_a_callback_has_a_window_and_a_memory() {
    let platform = Platform::new();
    let keys = keys(&platform);
    let body = platform.callback(b"{}");
    let headers = platform.signed(NOW, &body);
    for (second, fits) in [
        (-300, false),
        (-299, true),
        (0, true),
        (299, true),
        (300, false),
    ] {
        let verified = keys.verify(&headers, &body, at(NOW + second));
        assert_eq!(verified.is_ok(), fits, "{second}");
    }
    let mut seen = Seen::new(100, Duration::ZERO);
    let mut observe = |second, headers: &SignatureHeaders| {
        let verified = keys.verify(headers, &body, at(second)).unwrap();
        let replay = seen.observe(verified.fingerprint(), at(second)).unwrap();
        let notification = Notification::parse(verified).unwrap();
        (
            replay,
            seen.observe(notification.id().as_bytes(), at(second))
                .unwrap(),
        )
    };
    assert_eq!(observe(NOW, &headers), (Delivery::First, Delivery::First));
    let again = Delivery::Again { first: at(NOW) };
    assert_eq!(observe(NOW + 299, &headers), (again, again));
    // Signed anew, the delivery is no replay, and yet the same event.
    let redelivered = platform.signed(NOW + 15, &body);
    assert_eq!(observe(NOW + 300, &redelivered), (Delivery::First, again));
}

/// wechatpay-java: `PUB_KEY_ID_…` is parsed as a hexadecimal number and throws.
#[test]
fn defect_04_a_public_key_id_is_a_name() {
    let inputs = &sample("v3-verify-response-doc")["inputs"];
    let id = text(inputs, "serial");
    let mut keys = PlatformKeys::new();
    keys.pin_public_key(id.parse().unwrap(), text(inputs, "public_key_pem"))
        .unwrap();
    assert_eq!(keys.get(&id.parse().unwrap()).unwrap().id().as_str(), id);
    let refused = keys.pin_public_key("0C4A".parse().unwrap(), text(inputs, "public_key_pem"));
    assert!(matches!(refused, Err(PlatformError::Name { .. })));
}

/// wechatpay-go: a field comes back in the clear, beside the error that says why.
#[test]
fn defect_05_a_field_that_is_not_encrypted_is_not_given_back() {
    let platform = Platform::new();
    let keys = keys(&platform);
    assert!(PlatformKeys::new().encrypting(at(NOW)).is_none());
    assert!(keys.encrypting(platform.certificate.not_after()).is_none());
    let secret = "个人姓名".repeat(40);
    let error: FieldError = keys
        .encrypting(at(NOW))
        .unwrap()
        .encrypt_field(&SecretText::new(secret.clone()))
        .unwrap_err();
    assert!(!format!("{error} {error:?}").contains(&secret[..12]));
}

/// wechatpay-go: a missing timestamp reads as zero and no error.
#[test]
fn defect_06_a_missing_timestamp_is_missing() {
    let platform = Platform::new();
    let mut headers = platform.headers(&platform.serial, NOW, b"");
    headers.retain(|(name, _)| *name != "Wechatpay-Timestamp");
    let refused =
        SignatureHeaders::new(headers.iter().map(|(name, value)| (*name, value.as_str())));
    assert_eq!(
        refused.unwrap_err(),
        VerifyError::HeaderMissing {
            name: "Wechatpay-Timestamp"
        }
    );
}

/// wechatpay-php: the sign type is inferred from the length of the `sign` that arrived.
#[test]
fn defect_07_the_sign_type_is_pinned() {
    let (md5, hmac) = (Rules::new(SignType::Md5), Rules::new(SignType::HmacSha256));
    let secret = v2_secret(V2);
    let message = |rules: &Rules| {
        let mut message = Fields::new([("a".into(), "1".into())]).unwrap();
        let sign = rules.sign(&message, &secret).unwrap();
        message.insert("sign".into(), sign).unwrap();
        message
    };
    for (rules, other) in [(md5, hmac), (hmac, md5)] {
        let message = message(&rules);
        assert!(rules.verify(&message, &secret).is_ok());
        assert_eq!(
            other.verify(&message, &secret).unwrap_err(),
            SignError::Signature
        );
    }
    for name in ["sign_type", "signType"] {
        let named = Fields::new([(name.into(), "MD5".into())]).unwrap();
        assert!(md5.sign(&named, &secret).is_ok());
        assert!(matches!(
            hmac.sign(&named, &secret),
            Err(SignError::SignType {
                pinned: "HMAC-SHA256",
                ..
            })
        ));
    }
}

/// WxJava: fields of some names are left out of the signature; texts compared with `equals`.
#[test]
fn defect_08_every_field_but_sign_is_signed() {
    let rules = Rules::new(SignType::Md5);
    let secret = v2_secret(V2);
    let mut message = Fields::new([("a".into(), "1".into())]).unwrap();
    let sign = rules.sign(&message, &secret).unwrap();
    message.insert("sign".into(), sign.clone()).unwrap();
    assert!(rules.verify(&message, &secret).is_ok());
    for injected in [
        "key",
        "xmlString",
        "xmlDoc",
        "couponList",
        "Sign",
        "SIGN",
        "new_field",
    ] {
        let mut message = message.clone();
        message.insert(injected.into(), "x".into()).unwrap();
        let refused = rules.verify(&message, &secret);
        assert_eq!(refused.unwrap_err(), SignError::Signature, "{injected}");
    }
    for wrong in [
        sign.to_lowercase(),
        format!("{sign} "),
        sign[..31].into(),
        "0".repeat(32),
    ] {
        let message = Fields::new([("a".into(), "1".into()), ("sign".into(), wrong)]).unwrap();
        assert!(rules.verify(&message, &secret).is_err());
    }
    let unsigned = Fields::new([("a".into(), "1".into()), ("sign".into(), String::new())]).unwrap();
    assert_eq!(
        rules.verify(&unsigned, &secret).unwrap_err(),
        SignError::Missing
    );
}

/// WxJava: `toString(16)` drops the leading zero of a serial.
#[test]
fn defect_09_a_serial_keeps_its_leading_zero() {
    let sample = sample("cert-serial-leading-zero");
    let certificate = certificate(text(&sample["inputs"], "certificate_pem"));
    let serial = CertificateSerial::of(&certificate).unwrap();
    assert_eq!(serial.as_str(), "0C4AEF34B89340881BB2B25226393DC2E47F094B");
    let high_bit = text(
        &SAMPLES["keys"]["go_sdk"]["certificates"],
        "F5765756002FDD77",
    );
    let serial = CertificateSerial::of(&crate::samples::certificate(high_bit)).unwrap();
    assert_eq!(serial.as_str(), "F5765756002FDD77");
}

/// WxJava: when the certificate does not verify, the public key is tried.
#[test]
fn defect_10_no_other_key_is_tried() {
    let platform = Platform::new();
    let mut keys = keys(&platform);
    let pem = text(&SAMPLES["keys"]["java_sdk_wechatpay"], "public_key_pem");
    let id = "PUB_KEY_ID_0114232134912410000000000000";
    let other = text(
        &sample("v3-verify-response-doc")["inputs"],
        "public_key_pem",
    );
    keys.pin_public_key(id.parse().unwrap(), other).unwrap();
    // The platform's own key signed, and is held, but under another name than the message says.
    let headers = parse(&platform.headers(id, NOW, b"{}"));
    assert_eq!(
        keys.verify(&headers, b"{}", at(NOW)).unwrap_err(),
        VerifyError::Signature
    );
    let absent = parse(&platform.headers("PUB_KEY_ID_0", NOW, b"{}"));
    assert!(matches!(
        keys.verify(&absent, b"{}", at(NOW)),
        Err(VerifyError::KeyUnknown { .. })
    ));
    let zeros = parse(&platform.headers(&format!("00{}", platform.serial), NOW, b"{}"));
    assert!(matches!(
        keys.verify(&zeros, b"{}", at(NOW)),
        Err(VerifyError::KeyUnknown { .. })
    ));
    let refused = keys.pin_public_key(id.parse().unwrap(), pem);
    assert!(matches!(refused, Err(PlatformError::Conflict { .. })));
}

/// wxpay-rs: OAEP with SHA-256, which the platform cannot decrypt. Which parameters we encrypt
/// with shows in `oaep-too-long-java`: a decryption with SHA-1 opens what we encrypted.
#[test]
fn defect_11_oaep_is_with_sha_1() {
    use aws_lc_rs::rsa::{
        OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
    };
    let keys = keys(&Platform::new());
    let sealed = keys
        .encrypting(at(NOW))
        .unwrap()
        .encrypt_field(&SecretText::new("张三".into()))
        .unwrap();
    let Field::Sealed(field) = Field::parse(&sealed).unwrap() else {
        panic!("a ciphertext");
    };
    let key = crate::support::private_key_der("java_sdk_wechatpay");
    let key = PrivateDecryptingKey::from_pkcs8(&key).unwrap();
    let key = OaepPrivateDecryptingKey::new(key).unwrap();
    let mut buffer = vec![0; key.min_output_size()];
    let sha1 = key.decrypt(&OAEP_SHA1_MGF1SHA1, field.as_bytes(), &mut buffer, None);
    assert_eq!(sha1.unwrap(), "张三".as_bytes());
    assert!(
        key.decrypt(&OAEP_SHA256_MGF1SHA256, field.as_bytes(), &mut buffer, None)
            .is_err()
    );
}

/// wechatpay-node-v3: the tag is never checked, so changed contents are accepted.
#[test]
fn defect_12_a_changed_content_does_not_open() {
    let value = sealed(SECRET, "transaction", b"{\"amount\":1}");
    assert!(open(value.clone()).is_ok());
    let whole = opcert::base::encoding::from_base64(text(&value, "ciphertext").as_bytes()).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let mut value = value.clone();
        value["ciphertext"] = base64(&changed).into();
        assert_eq!(open(value).unwrap_err(), OpenError::Unauthentic);
    }
    for (field, other) in [
        ("associated_data", "transactioN"),
        ("nonce", "fdasflkja485"),
    ] {
        let mut value = value.clone();
        value[field] = other.into();
        assert_eq!(open(value).unwrap_err(), OpenError::Unauthentic);
    }
    let mut sm4 = value;
    sm4["algorithm"] = "AEAD_SM4_GCM".into();
    assert_eq!(open(sm4).unwrap_err(), OpenError::Algorithm);
}

/// Version 2 itself: values are not escaped, XML parsers read entities and duplicates.
#[test]
fn defect_13_one_signature_stands_for_one_message() {
    let inputs = &sample("v2-canon-ambiguity")["inputs"];
    let strict = Rules::new(SignType::Md5);
    let secret = v2_secret(V2);
    let (whole, mut split) = (fields(&inputs["params_1"]), fields(&inputs["params_2"]));
    assert_eq!(
        strict.sign(&whole, &secret).unwrap_err(),
        SignError::Embedded { name: "a".into() }
    );
    let sign = strict.sign(&split, &secret).unwrap();
    split.insert("sign".into(), sign.clone()).unwrap();
    assert!(strict.verify(&split, &secret).is_ok());
    let mut moved = whole.clone();
    moved.insert("sign".into(), sign).unwrap();
    assert_eq!(
        strict.verify(&moved, &secret).unwrap_err(),
        SignError::Embedded { name: "a".into() }
    );
    let lenient = Rules {
        embedded: Embedded::Allow,
        ..strict
    };
    assert!(lenient.verify(&moved, &secret).is_ok());

    let xxe = b"<?xml version=\"1.0\"?><!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><xml><a>&e;</a></xml>";
    assert_eq!(Fields::from_xml(xxe).unwrap_err(), XmlError::Dtd);
    assert_eq!(
        Fields::from_xml(b"<xml><a>1</a><a>2</a></xml>").unwrap_err(),
        XmlError::Fields(FieldsError::Twice { name: "a".into() })
    );
}

/// gopay: a forged callback with a malformed nonce or ciphertext ends the process.
#[test]
fn defect_14_a_malformed_callback_is_an_error() {
    let platform = Platform::new();
    let keys = keys(&platform);
    for (field, bad) in [
        ("nonce", ""),
        ("nonce", "1"),
        ("nonce", "12345678901"),
        ("nonce", "1234567890123"),
        ("nonce", "中文中文"),
        ("ciphertext", ""),
        ("ciphertext", "!!!not-base64!!!"),
        ("ciphertext", "AAAA"),
        ("algorithm", ""),
    ] {
        let mut body: Value = serde_json::from_slice(&platform.callback(b"{}")).unwrap();
        body["resource"][field] = bad.into();
        let body = serde_json::to_vec(&body).unwrap();
        let verified = keys
            .verify(&platform.signed(NOW, &body), &body, at(NOW))
            .unwrap();
        let opened = Notification::parse(verified).unwrap().open(&v3_key(SECRET));
        assert!(
            matches!(opened, Err(NotificationError::Open(_))),
            "{field} {bad}"
        );
    }
    for body in [&b""[..], b"{}", b"[]", b"{\"id\":1}", b"\xff"] {
        let verified = keys
            .verify(&platform.signed(NOW, body), body, at(NOW))
            .unwrap();
        assert_eq!(
            Notification::parse(verified).unwrap_err(),
            NotificationError::Malformed
        );
    }
    let secret = v2_secret(V2);
    for bad in ["", "AAAA", "!", &base64(&[0; 16]), &base64(&[0; 32])] {
        assert!(open_refund(bad, &secret).is_err());
    }
}

/// Not a defect of one library but of most: the first certificates answer is taken unverified.
#[test]
fn a_bootstrap_verifies_the_answer_with_what_it_brought() {
    let platform = Platform::new();
    let key = v3_key(SECRET);
    let anchors = std::slice::from_ref(&platform.authority);
    let body = platform.certificates(&platform.serial);
    let headers = platform.signed(NOW, &body);
    let answer = Answer {
        headers: &headers,
        body: &body,
    };
    let keys = PlatformKeys::bootstrap(answer, &key, anchors, at(NOW)).unwrap();
    let encrypting = keys.encrypting(at(NOW)).unwrap();
    assert_eq!(encrypting.id().as_str(), platform.serial);
    assert!(keys.refresh(answer, &key, anchors, at(NOW)).is_ok());

    let refused = |answer: Answer<'_>, key: &ApiV3Key, anchors: &[_], now| {
        PlatformKeys::bootstrap(answer, key, anchors, at(now)).unwrap_err()
    };
    assert!(matches!(
        refused(answer, &v3_key(&SECRET.replace('a', "b")), anchors, NOW),
        PlatformError::Open(OpenError::Unauthentic)
    ));
    assert!(matches!(
        refused(answer, &key, &[], NOW),
        PlatformError::Certificate(_)
    ));
    let stranger = std::slice::from_ref(&platform.certificate);
    assert!(matches!(
        refused(answer, &key, stranger, NOW),
        PlatformError::Certificate(_)
    ));
    assert!(matches!(
        refused(answer, &key, anchors, NOW + 300),
        PlatformError::Signature(VerifyError::Window)
    ));
    let forged = SoftRsa::new("go_sdk").sign(b"x");
    let mut pairs = platform.headers(&platform.serial, NOW, &body);
    pairs.last_mut().unwrap().1 = base64(forged.as_bytes());
    let headers = parse(&pairs);
    assert!(matches!(
        refused(
            Answer {
                headers: &headers,
                body: &body
            },
            &key,
            anchors,
            NOW
        ),
        PlatformError::Signature(VerifyError::Signature)
    ));
    let mislabelled = platform.certificates("5DEA10EF55877E3CF6C33255C2E7DEFFF7E427EC");
    let headers = platform.signed(NOW, &mislabelled);
    let answer = Answer {
        headers: &headers,
        body: &mislabelled,
    };
    assert!(matches!(
        refused(answer, &key, anchors, NOW),
        PlatformError::Serial
    ));
}

/// Old and new keys are held side by side, each to its own end.
#[test]
fn a_rollover_overlaps() {
    let (old, new) = (
        Platform::new(),
        Platform::with_validity(NOW - 10, NOW + 5_000_000),
    );
    let key = v3_key(SECRET);
    let mut keys = keys(&old);
    let body = new.certificates(&new.serial);
    let headers = old.signed(NOW, &body);
    let answer = Answer {
        headers: &headers,
        body: &body,
    };
    let anchors = std::slice::from_ref(&new.authority);
    keys = keys.refresh(answer, &key, anchors, at(NOW)).unwrap();
    assert_eq!(keys.iter().count(), 2);
    assert_eq!(keys.encrypting(at(NOW)).unwrap().id().as_str(), new.serial);
    for platform in [&old, &new] {
        assert!(
            keys.verify(&platform.signed(NOW, b"x"), b"x", at(NOW))
                .is_ok()
        );
    }
    let later = NOW + 2_000_000;
    assert!(matches!(
        keys.verify(&old.signed(later, b"x"), b"x", at(later)),
        Err(VerifyError::KeyEnded { .. })
    ));
    assert!(keys.retire(&new.serial.parse().unwrap(), at(NOW + 60)));
    assert!(
        keys.verify(&new.signed(NOW + 60, b"x"), b"x", at(NOW + 60))
            .is_err()
    );
    let pem = text(&SAMPLES["keys"]["java_sdk_wechatpay"], "public_key_pem");
    keys.pin_public_key("PUB_KEY_ID_1".parse().unwrap(), pem)
        .unwrap();
    assert!(keys.encrypting(at(NOW)).unwrap().id().is_public_key());
}

/// The platform tries whether wrong signatures are refused.
#[test]
fn a_probe_fails_as_any_wrong_signature() {
    let platform = Platform::new();
    let keys = keys(&platform);
    let mut headers = platform.headers(&platform.serial, NOW, b"{}");
    let signature = &mut headers.last_mut().unwrap().1;
    signature.replace_range(..19, "WECHATPAY/SIGNTEST/");
    let refused = keys.verify(&parse(&headers), b"{}", at(NOW)).unwrap_err();
    assert_eq!(refused, VerifyError::Signature);
    let wrong = Signature::from_jose(vec![0; 256]);
    headers.last_mut().unwrap().1 = base64(wrong.as_bytes());
    assert_eq!(
        keys.verify(&parse(&headers), b"{}", at(NOW)).unwrap_err(),
        refused
    );
}
