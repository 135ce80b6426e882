//! Input that nobody meant well, at the daemon's door: typed refusals, no part of a plaintext, and
//! one answer for all ways in which a content does not open.

use aws_lc_rs::cipher::{AES_256, PaddedBlockEncryptingKey, UnboundCipherKey};
use md5::{Digest, Md5};
use opcert::base::encoding::hex;

use super::*;

/// Spoils something that was good.
type Change = Box<dyn Fn(&mut Value)>;

#[test]
fn contents_and_fields_that_do_not_open_give_nothing_away() {
    let shop = Shop::open();
    shop.bootstrap().ok();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut resource = sealed(SECRET, "transaction", b"{\"secret\":\"plaintext\"}");
        change(&mut resource);
        let answer = shop.received("v3/decrypt", now(), &callback_with("1", &resource));
        assert!(!answer.body.to_string().contains("plaintext"));
        answer
    };
    let cut = |length: usize| {
        move |resource: &mut Value| {
            let all = from_base64(resource["ciphertext"].as_str().unwrap().as_bytes()).unwrap();
            resource["ciphertext"] = json!(base64(&all[..length]));
        }
    };
    let flipped = |byte: usize| {
        move |resource: &mut Value| {
            let mut all = from_base64(text(resource, "ciphertext").as_bytes()).unwrap();
            all[byte] ^= 1;
            resource["ciphertext"] = json!(base64(&all));
        }
    };
    // Truncated tags, short and long nonces, other algorithms, bad base64.
    let malformed: Vec<Change> = vec![
        Box::new(cut(4)),
        Box::new(cut(8)),
        Box::new(cut(12)),
        Box::new(cut(15)),
        Box::new(|resource| resource["nonce"] = json!("short")),
        Box::new(|resource| resource["nonce"] = json!("thirteen-long")),
        Box::new(|resource| resource["algorithm"] = json!("AEAD_AES_128_GCM")),
        Box::new(|resource| resource["algorithm"] = json!("AEAD_SM4_GCM")),
        Box::new(|resource| resource["ciphertext"] = json!("!")),
        Box::new(|resource| resource["ciphertext"] = json!(7)),
    ];
    for change in malformed {
        assert_eq!(with(&*change).code(), "malformed");
    }
    // Everything that passes for a ciphertext fails in one way.
    let closed: Vec<Change> = vec![
        Box::new(cut(16)),
        Box::new(cut(20)),
        Box::new(flipped(0)),
        Box::new(flipped(37)),
        Box::new(|resource| resource["associated_data"] = json!("other")),
        Box::new(|resource| resource["nonce"] = json!("twelve-bytes")),
        Box::new(|resource| *resource = sealed(&"x".repeat(32), "transaction", b"{}")),
    ];
    let answers: Vec<Value> = closed
        .into_iter()
        .map(|change| told(&with(&*change)))
        .collect();
    assert_eq!(answers[0]["code"], "wechatpay-content");
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    // None of them counts as a delivery.
    let resource = sealed(SECRET, "transaction", b"{}");
    let whole = shop.received("v3/decrypt", now(), &callback_with("1", &resource));
    let whole = whole.ok();
    assert!(whole["first_delivered_at"].is_null());

    let fields = |list: Value| {
        let body = json!({ "merchant": MCHID, "fields": list });
        post(&shop.daemon, "v3/fields/decrypt", &body)
    };
    let public = PublicEncryptingKey::from_der(shop.certificate.public_key().spki()).unwrap();
    let public = OaepPublicEncryptingKey::new(public).unwrap();
    let encrypt = |plain: &[u8]| {
        let mut buffer = vec![0; public.ciphertext_size()];
        base64(
            public
                .encrypt(&OAEP_SHA1_MGF1SHA1, plain, &mut buffer, None)
                .unwrap(),
        )
    };
    let name = "王小明".as_bytes();
    let plain = fields(json!([encrypt(name), "", encrypt(b"6222")])).ok();
    assert_eq!(plain["fields"], json!(["王小明", "", "6222"]));
    let (foreign, no_text) = (base64(&[0x42; 256]), encrypt(b"\xff\xfe"));
    let (foreign, no_text) = (fields(json!([foreign])), fields(json!([no_text])));
    assert_eq!(foreign.body["code"], "wechatpay-content");
    assert_eq!(told(&foreign), told(&no_text));
    // One that does not open takes the others of its call with it.
    let (good, bad) = (encrypt(b"6222"), base64(&[0x42; 256]));
    assert_eq!(told(&fields(json!([good, bad]))), told(&foreign));
    assert_eq!(fields(json!(["AAAA"])).code(), "malformed");
    assert_eq!(fields(json!(vec![""; 33])).code(), "too-large");

    // A sealed secret is for a key that fields are not decrypted with.
    let view = shop.view();
    let key: RsaJwk = serde_json::from_value(view["sealing_key"].clone()).unwrap();
    let jwe = seal(&key, SecretKind::ApiV3, &SecretText::new(SECRET.into())).unwrap();
    let wrapped = jwe.split('.').nth(1).unwrap();
    let wrapped = opcert::base::encoding::from_base64url(wrapped).unwrap();
    assert_eq!(
        fields(json!([base64(&wrapped)])).code(),
        "wechatpay-content"
    );

    let body = json!({ "merchant": MCHID, "fields": ["王小明", ""] });
    let encrypted = post(&shop.daemon, "v3/fields/encrypt", &body).ok();
    assert_eq!(encrypted["serial"], json!(shop.platform.serial));
    assert_eq!(encrypted["fields"][1], "");
    let long = json!({ "merchant": MCHID, "fields": ["a".repeat(215)] });
    assert_eq!(
        post(&shop.daemon, "v3/fields/encrypt", &long).code(),
        "too-large"
    );
}

#[test]
fn what_is_too_large_or_no_message_is_refused_as_that() {
    let shop = Shop::open();
    shop.bootstrap().ok();
    let code = |path: &str, body: &[u8]| shop.received(path, now(), body).code();
    // Signed by the platform or not, these are no notifications.
    let deep = "[".repeat(100_000).into_bytes();
    let nested = callback_with("1", &sealed(SECRET, "transaction", b"{}"));
    let twice = String::from_utf8(nested).unwrap();
    let twice = twice.replacen("\"id\":\"1\"", "\"id\":\"1\",\"id\":\"2\"", 1);
    for body in [
        &b""[..],
        b"{}",
        b"[]",
        b"\xff",
        b"{\"id\":\"1\"}",
        &deep,
        twice.as_bytes(),
    ] {
        assert_eq!(code("v3/decrypt", body), "malformed");
    }
    for body in [&b""[..], b"{}", b"\xff", &deep, &vec![b' '; 300_000]] {
        assert_eq!(code("v3/certificates", body), "wechatpay-platform-key");
    }

    // The JSON around them.
    let send = |path: &str, body: Vec<u8>| {
        let path = format!("/v1/wechatpay/{path}");
        let answer = shop.daemon.control_bytes(&path, "application/json", body);
        answer.code()
    };
    for path in ["v3/verify", "v3/decrypt", "v3/certificates", "v2/verify"] {
        assert_eq!(send(path, deep.clone()), "malformed", "{path}");
        assert_eq!(send(path, b"{\"merchant\":\"1\"".to_vec()), "malformed");
        assert_eq!(send(path, vec![b' '; 17 * 1024 * 1024]), "too-large");
    }
    // A server's door takes less, and says so before it reads a content.
    let rules = json!([{ "merchant": MCHID, "uses": ["check", "notification"] }]);
    let policy = json!({ "consent": "none", "wechatpay": rules });
    let server = shop.daemon.add_client("server", &policy);
    let large = shop.signed(now(), &vec![b' '; 300_000]);
    for path in ["v3/verify", "v3/decrypt"] {
        let path = format!("/v1/wechatpay/{path}");
        let answer = shop.daemon.native(&server, Method::POST, &path, &large);
        assert_eq!(answer.code(), "too-large");
    }
    for bad in ["AA=", "A", "-_-_", "!"] {
        let mut request = shop.signed(now(), b"{}");
        request["body_base64"] = json!(bad);
        assert_eq!(
            post(&shop.daemon, "v3/verify", &request).code(),
            "malformed"
        );
    }
}

#[test]
fn a_refund_that_does_not_open_is_told_in_one_way() {
    let shop = Shop::open();
    let secret = hex(&Md5::digest(V2_SECRET.as_bytes()));
    let encrypt = |plain: &[u8]| {
        let key = UnboundCipherKey::new(&AES_256, secret.as_bytes()).unwrap();
        let key = PaddedBlockEncryptingKey::ecb_pkcs7(key).unwrap();
        let mut buffer = plain.to_vec();
        key.encrypt(&mut buffer).unwrap();
        buffer
    };
    let open = |content: &[u8]| {
        let body = json!({ "merchant": MCHID, "req_info": base64(content) });
        post(&shop.daemon, "v2/refund/decrypt", &body)
    };
    let good = encrypt(b"<root><refund_id>plaintext</refund_id></root>");
    assert_eq!(open(&good).ok()["fields"]["refund_id"], "plaintext");
    let mut padding = good.clone();
    *padding.last_mut().unwrap() ^= 1;
    let mut changed = good.clone();
    changed[0] ^= 1;
    let entity = b"<!DOCTYPE root [<!ENTITY e 'plaintext'>]><root><a>&e;</a></root>";
    let answers = [
        &padding,
        &changed,
        &good[..good.len() - 16],
        &encrypt(b"plaintext and no XML"),
        &encrypt(entity),
        &encrypt(b"<root><a>plaintext</a><a>2</a></root>"),
        &encrypt(b"\xff\xfe"),
        &[0; 64],
    ]
    .map(|content: &[u8]| told(&open(content)));
    assert_eq!(answers[0]["code"], "wechatpay-content");
    assert!(!answers[0].to_string().contains("plaintext"));
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    for cut in [1, 15, 17] {
        assert_eq!(open(&good[..cut]).code(), "malformed");
    }
    assert_eq!(open(&vec![0; 200_000]).code(), "malformed");
}

#[test]
fn a_signature_that_is_wrong_on_purpose_is_wrong_as_any() {
    let shop = Shop::open();
    shop.bootstrap().ok();
    let callback = shop.platform.callback(b"{}");
    let second = now();
    let refused = |change: &dyn Fn(&mut String)| {
        let mut request = shop.signed(second, &callback);
        let mut signature = text(&request["headers"], "Wechatpay-Signature").to_owned();
        change(&mut signature);
        request["headers"]["Wechatpay-Signature"] = json!(signature);
        let verified = told(&post(&shop.daemon, "v3/verify", &request));
        assert_eq!(told(&post(&shop.daemon, "v3/decrypt", &request)), verified);
        verified
    };
    let probe = refused(&|signature| signature.replace_range(..19, "WECHATPAY/SIGNTEST/"));
    assert_eq!(probe["code"], "wechatpay-signature");
    for other in [
        base64(&[0; 256]),
        base64(&[0xff; 256]),
        base64(&[1; 255]),
        base64(&[1; 257]),
        base64(&[1]),
    ] {
        assert_eq!(refused(&|signature| *signature = other.clone()), probe);
    }
    // Nothing of it is remembered: the platform's own delivery is the first one.
    let good = post(&shop.daemon, "v3/decrypt", &shop.signed(second, &callback)).ok();
    assert!(good["first_delivered_at"].is_null());
}

#[test]
fn each_header_is_needed_once() {
    let shop = Shop::open();
    shop.bootstrap().ok();
    let callback = shop.platform.callback(b"{}");
    let verify = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut request = shop.signed(now(), &callback);
        change(request["headers"].as_object_mut().unwrap());
        post(&shop.daemon, "v3/verify", &request)
    };
    for name in [
        "Wechatpay-Timestamp",
        "Wechatpay-Nonce",
        "Wechatpay-Signature",
        "Wechatpay-Serial",
    ] {
        let refused = told(&verify(&|headers| {
            headers.remove(name);
        }));
        assert_eq!(refused["code"], "wechatpay-signature");
        assert_eq!(refused["detail"], format!("header {name} is missing"));
        let refused = verify(&|headers| {
            let value = headers[name].clone();
            headers.insert(name.to_lowercase(), value);
        });
        assert_eq!(refused.code(), "wechatpay-signature", "{name}");
    }
    for (name, value) in [
        ("Wechatpay-Timestamp", ""),
        ("Wechatpay-Timestamp", "0"),
        ("Wechatpay-Timestamp", "99999999999999999999"),
        ("Wechatpay-Nonce", ""),
        ("Wechatpay-Nonce", "a\nb"),
        ("Wechatpay-Serial", "0123456789ABCDEF\n"),
        ("Wechatpay-Signature", "!"),
        ("Wechatpay-Signature-Type", "WECHATPAY2-SM2-WITH-SM3"),
        ("Wechatpay-Signature-Type", ""),
    ] {
        let refused = verify(&|headers| {
            headers.insert(name.to_owned(), json!(value));
        });
        assert_eq!(refused.code(), "wechatpay-signature", "{name}: {value}");
    }
    // The platform leaves the type out sometimes.
    verify(&|headers| {
        headers.remove("Wechatpay-Signature-Type");
    })
    .ok();
}
