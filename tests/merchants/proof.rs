//! How keys of the platform come in: by proof only, several at once, each under its own name.

use super::*;

/// Another secret of the right length.
const OTHER_SECRET: &str = "0123456789abcdefABCDEF0123456789";

/// A certificates answer with one entry, changed.
pub(super) fn answer(platform: &Platform, change: &dyn Fn(&mut Value)) -> Vec<u8> {
    let mut body: Value = serde_json::from_slice(&platform.certificates(&platform.serial)).unwrap();
    change(&mut body["data"][0]);
    serde_json::to_vec(&body).unwrap()
}

fn held(shop: &Shop) -> Vec<String> {
    let keys = shop.view()["platform_keys"].clone();
    let keys = keys.as_array().unwrap().iter();
    keys.map(|key| text(key, "id").to_owned()).collect()
}

#[test]
fn the_first_answer_is_believed_by_what_it_proves_itself() {
    let shop = Shop::open();
    let good = &|_: &mut Value| ();
    let take = |request: &Value| post(&shop.daemon, "v3/certificates", request);
    let sealed_as = |secret: &'static str, plain: Vec<u8>| {
        move |entry: &mut Value| {
            entry["encrypt_certificate"] = sealed(secret, "certificate", &plain);
        }
    };
    let pem = || shop.platform.certificate.to_pem().unwrap().into_bytes();
    let foreign = shop.certificate.to_pem().unwrap().into_bytes();
    let cut = |entry: &mut Value| {
        let whole = text(&entry["encrypt_certificate"], "ciphertext").as_bytes();
        let whole = from_base64(whole).unwrap();
        entry["encrypt_certificate"]["ciphertext"] = json!(base64(&whole[..15]));
    };
    let mut requests: Vec<Value> = [
        // Not under the APIv3 secret; no certificate; the merchant's own.
        &sealed_as(OTHER_SECRET, pem()) as &dyn Fn(&mut Value),
        &sealed_as(SECRET, b"plaintext".to_vec()),
        &sealed_as(SECRET, foreign),
        &cut,
        &|entry| entry["encrypt_certificate"]["nonce"] = json!("short"),
        &|entry| entry["encrypt_certificate"]["algorithm"] = json!("AEAD_SM4_GCM"),
        &|entry| entry["encrypt_certificate"]["associated_data"] = json!("other"),
        // Announced as another, or over.
        &|entry| entry["serial_no"] = json!("0123ABCD"),
        &|entry| entry["expire_time"] = json!("2020-01-01T00:00:00+08:00"),
    ]
    .into_iter()
    .map(|change| shop.signed(now(), &answer(&shop.platform, change)))
    .collect();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut request = shop.signed(now(), &answer(&shop.platform, good));
        change(&mut request);
        request
    };
    // It decrypts, and is not signed with what it brings.
    let thief = Platform::with_key("go_sdk", now() - 10, now() + 864_000);
    let mut stolen = signed_by(&thief, now(), &answer(&shop.platform, good));
    requests.push(stolen.clone());
    stolen["headers"]["Wechatpay-Serial"] = json!(shop.platform.serial);
    requests.push(stolen);
    requests.push(with(&|request| {
        request["headers"]["Wechatpay-Serial"] = json!("0123ABCD");
    }));
    requests.push(with(&|request| {
        let body = [answer(&shop.platform, good), b" ".to_vec()].concat();
        request["body_base64"] = json!(base64(&body));
    }));
    requests.push(shop.signed(now() - 301, &answer(&shop.platform, good)));
    for request in &requests {
        let refused = take(request);
        assert!(!refused.body.to_string().contains("plaintext"));
        assert_eq!(refused.code(), "wechatpay-platform-key", "{request}");
        assert!(held(&shop).is_empty());
    }
    let taken = take(&with(&|_| ())).ok();
    assert_eq!(taken["new"], json!([shop.platform.serial]));
}

#[test]
fn a_later_answer_is_believed_by_a_key_that_is_held() {
    let shop = Shop::open();
    shop.bootstrap().ok();
    let rules = json!([{ "merchant": MCHID, "uses": ["platform"] }]);
    let policy = json!({ "consent": "none", "wechatpay": rules });
    let timer = shop.daemon.add_client("timer", &policy);
    let next = Platform::with_key("go_sdk", now() - 10, now() + 8_640_000);
    let body = next.certificates(&next.serial);

    // Signed with what it brings is enough for a first answer only, and for an administrator.
    let mut own = signed_by(&next, now(), &body);
    let take = |request: &Value| post(&shop.daemon, "v3/certificates", request);
    assert_eq!(take(&own).code(), "wechatpay-platform-key");
    own["anew"] = json!(true);
    let path = "/v1/wechatpay/v3/certificates";
    let by_client = shop.daemon.native(&timer, Method::POST, path, &own);
    assert_eq!(by_client.code(), "wechatpay-platform-key");
    assert_eq!(held(&shop), [shop.platform.serial.as_str()]);
    let by_held = shop.signed(now(), &body);
    let by_client = shop.daemon.native(&timer, Method::POST, path, &by_held);
    assert_eq!(by_client.ok()["new"], json!([next.serial]));

    // Both are good, each for what it signed itself; no other key is tried.
    let callback = shop.platform.callback(b"{}");
    let verify = |platform: &Platform, name: &str| {
        let mut request = signed_by(platform, now(), &callback);
        request["headers"]["Wechatpay-Serial"] = json!(name);
        post(&shop.daemon, "v3/verify", &request)
    };
    for platform in [&shop.platform, &next] {
        let verified = verify(platform, &platform.serial).ok();
        assert_eq!(verified["key"], json!(platform.serial));
    }
    for (platform, name) in [
        (&shop.platform, &next.serial),
        (&next, &shop.platform.serial),
    ] {
        assert_eq!(verify(platform, name).code(), "wechatpay-signature");
    }
    let id = "PUB_KEY_ID_0119000072912024101500351800000111";
    let pem = text(
        &platform::SAMPLES["keys"]["java_sdk_wechatpay"],
        "public_key_pem",
    );
    let pin = format!("merchants/{MCHID}/platform-keys");
    let pinned = json!({ "id": id, "public_key": pem });
    post(&shop.daemon, &pin, &pinned).ok();
    verify(&shop.platform, id).ok();
    assert_eq!(verify(&next, id).code(), "wechatpay-signature");
    for name in [
        format!("00{}", next.serial),
        next.serial[1..].to_owned(),
        format!("{id}0"),
        id[..id.len() - 1].to_owned(),
    ] {
        assert_eq!(verify(&next, &name).code(), "wechatpay-key-unknown");
    }
    for name in [next.serial.to_lowercase(), format!(" {}", next.serial)] {
        assert_eq!(verify(&next, &name).code(), "wechatpay-signature");
    }

    // A certificate that stands under a name already does not give it another key.
    let mut impostor = signed_by(&shop.platform, now(), &body);
    impostor["body_base64"] = json!(base64(&answer(&next, &|entry| {
        entry["serial_no"] = json!(shop.platform.serial);
    })));
    assert_eq!(take(&impostor).code(), "wechatpay-platform-key");
    // All are gone: an administrator has an answer believed anew.
    for name in [&shop.platform.serial, &next.serial, &id.to_owned()] {
        let retire = format!("merchants/{MCHID}/platform-keys/{name}/retire");
        post(&shop.daemon, &retire, &json!({})).ok();
    }
    let last = Platform::with_key("apache_httpclient", now() - 10, now() + 864_000);
    let mut anew = signed_by(&last, now(), &last.certificates(&last.serial));
    anew["anew"] = json!(true);
    assert_eq!(take(&anew).ok()["new"], json!([last.serial]));
}

#[test]
fn merchants_side_by_side_share_nothing() {
    const OTHER: &str = "1900009191";
    let shop = Shop::open();
    shop.bootstrap().ok();
    let authority = shop.platform.authority.to_pem().unwrap();
    let view = add(&shop.daemon, OTHER, json!({ "authorities": [authority] }));
    let certificate = certify_as(
        "0E00000000000000000000000000000000000002",
        &request_of(&view),
    );
    assert_eq!(
        install(&shop.daemon, OTHER, &shop.certificate).code(),
        "merchant-certificate"
    );
    install(&shop.daemon, OTHER, &certificate).ok();
    let for_other = |request: Value| {
        let mut request = request;
        request["merchant"] = json!(OTHER);
        request
    };
    let signed = for_other(json!({ "method": "GET", "target": "/v3/x" }));
    let signed = post(&shop.daemon, "v3/authorization", &signed).ok();
    let header = members(text(&signed, "authorization"));
    let message = format!(
        "GET\n/v3/x\n{}\n{}\n\n",
        header["timestamp"], header["nonce_str"]
    );
    for (certificate, fits) in [(&certificate, true), (&shop.certificate, false)] {
        let verified = verifies(certificate, message.as_bytes(), &header["signature"]);
        assert_eq!(verified, fits);
    }

    // Neither platform keys nor secrets nor deliveries of the one are the other's.
    let callback = shop.platform.callback(b"{}");
    let second = now();
    let decrypt = |request: &Value| post(&shop.daemon, "v3/decrypt", request);
    let request = shop.signed(second, &callback);
    let theirs = for_other(request.clone());
    assert_eq!(decrypt(&theirs).code(), "wechatpay-key-unknown");
    let pem = shop.platform.certificate.to_pem().unwrap();
    let pin = format!("merchants/{OTHER}/platform-keys");
    post(&shop.daemon, &pin, &json!({ "certificate": pem })).ok();
    assert_eq!(decrypt(&theirs).code(), "merchant-not-ready");
    set_secret(&shop.daemon, &view, SecretKind::ApiV3, OTHER_SECRET, 0);
    assert_eq!(decrypt(&theirs).code(), "wechatpay-content");
    set_secret(&shop.daemon, &view, SecretKind::ApiV3, SECRET, 0);
    decrypt(&request).ok();
    assert!(decrypt(&theirs).ok()["first_delivered_at"].is_null());
    for request in [&request, &theirs] {
        assert_eq!(decrypt(request).code(), "wechatpay-replayed");
    }
    let gone = format!("/v1/wechatpay/merchants/{OTHER}");
    let gone = shop.daemon.control(Method::DELETE, &gone, &Value::Null);
    assert_eq!(gone.status, 204);
    assert_eq!(decrypt(&theirs).code(), "merchant-unknown");
    shop.received("v3/verify", now(), &callback).ok();
}

#[test]
fn a_callback_that_several_workers_bring_at_once_is_opened_once() {
    let shop = Shop::open();
    shop.bootstrap().ok();
    let callback = shop.platform.callback(b"{\"amount\":1}");
    let request = serde_json::to_vec(&shop.signed(now(), &callback)).unwrap();
    let socket = shop.daemon.socket();
    let bring = || {
        let target = opcert::http::client::Target::Unix(socket.clone());
        let request = http::Request::post("/v1/wechatpay/v3/decrypt")
            .header("content-type", "application/json")
            .body(request.clone().into())
            .unwrap();
        async move {
            let limits = opcert::http::client::ClientLimits::default();
            let mut door = opcert::http::client::Client::connect(&target, limits)
                .await
                .unwrap();
            let answer = door.send(request).await.unwrap();
            let body: Value = serde_json::from_slice(answer.body()).unwrap();
            (answer.status().as_u16(), body["code"].clone())
        }
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut answers = runtime.block_on(async {
        let workers: Vec<_> = (0..8).map(|_| tokio::spawn(bring())).collect();
        let mut answers = Vec::new();
        for worker in workers {
            answers.push(worker.await.unwrap());
        }
        answers
    });
    answers.sort_by_key(|(status, _)| *status);
    assert_eq!(answers[0], (200, Value::Null));
    for answer in &answers[1..] {
        assert_eq!(*answer, (409, json!("wechatpay-replayed")));
    }
}
