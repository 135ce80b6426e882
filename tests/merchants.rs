//! WeChat Pay merchants through the real daemon, a real worker and a real token, against a
//! platform with keys of its own.

#[path = "wechatpay/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the messages themselves")]
mod platform;
mod support;

#[path = "merchants/hostile.rs"]
mod hostile;
#[path = "merchants/proof.rs"]
mod proof;
#[path = "merchants/time.rs"]
mod time;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use http::Method;
use jiff::Timestamp;
use opcert::base::encoding::{base64, from_base64};
use opcert::base::jose::compact;
use opcert::base::jwe::RsaJwk;
use opcert::base::key::{Scheme, Signature};
use opcert::base::secret::SecretText;
use opcert::base::x509::{Certificate, CertificateRequest};
use opcert::statement::sealed_secret::seal;
use opcert::statement::{SealedSecret, SecretKind};
use platform::{Platform, SECRET, private_key_der, sample, sealed, text};
use serde_json::{Value, json};
use support::daemon::{Answer, ClientIdentity, Daemon};
use support::service::Service;
use support::softhsm::TestToken;

const MCHID: &str = "1900007291";
/// Begins with a zero digit, which a number would lose.
const SERIAL: &str = "0C4AEF34A5F2B6C7D8E9F0A1B2C3D4E5F6A7B8C9";
const V2_SECRET: &str = "192006250b4c09247ec02edce69f6a2d";

/// A daemon with one merchant on it, certified; and the merchant's platform.
struct Shop {
    daemon: Daemon,
    platform: Platform,
    certificate: Certificate,
    _token: TestToken,
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

fn pem(label: &str, der: &[u8]) -> String {
    der::pem::encode_string(label, der::pem::LineEnding::LF, der).unwrap()
}

fn post(daemon: &Daemon, path: &str, body: &Value) -> Answer {
    daemon.control(Method::POST, &format!("/v1/wechatpay/{path}"), body)
}

fn add(daemon: &Daemon, merchant: &str, more: Value) -> Value {
    let mut body = json!({ "merchant": merchant, "rules": { "sign-type": "MD5" } });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    post(daemon, "merchants", &body).ok()
}

/// The platform's authority certifies a request under [`SERIAL`]; by OpenSSL, which keeps it.
fn certify(request: &CertificateRequest) -> Certificate {
    certify_as(SERIAL, request)
}

fn certify_as(serial: &str, request: &CertificateRequest) -> Certificate {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let platform = Platform::new();
    std::fs::write(path("csr.pem"), pem("CERTIFICATE REQUEST", request.der())).unwrap();
    std::fs::write(path("ca.pem"), platform.authority.to_pem().unwrap()).unwrap();
    let key = pem("PRIVATE KEY", &private_key_der("java_sdk_merchant"));
    std::fs::write(path("ca-key.pem"), key).unwrap();
    let output = Command::new("openssl")
        .args(["x509", "-req", "-sha256", "-days", "365"])
        .args(["-set_serial", &format!("0x{serial}")])
        .arg("-in")
        .arg(path("csr.pem"))
        .arg("-CA")
        .arg(path("ca.pem"))
        .arg("-CAkey")
        .arg(path("ca-key.pem"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Certificate::from_pem(&output.stdout).unwrap()
}

fn install(daemon: &Daemon, merchant: &str, certificate: &Certificate) -> Answer {
    daemon.control(
        Method::PUT,
        &format!("/v1/wechatpay/merchants/{merchant}/certificate"),
        &json!({ "certificate": certificate.to_pem().unwrap() }),
    )
}

fn request_of(view: &Value) -> CertificateRequest {
    request_of_key(view, 0)
}

fn request_of_key(view: &Value, key: usize) -> CertificateRequest {
    let text = view["keys"][key]["request"].as_str().unwrap();
    CertificateRequest::from_der(&from_base64(text.as_bytes()).unwrap()).unwrap()
}

fn set_secret(daemon: &Daemon, view: &Value, kind: SecretKind, secret: &str, overlap: u32) {
    let key: RsaJwk = serde_json::from_value(view["sealing_key"].clone()).unwrap();
    let jwe = seal(&key, kind, &SecretText::new(secret.into())).unwrap();
    let body = json!({ "jwe": jwe, "overlap_seconds": overlap });
    let set = post(daemon, "secrets", &body).ok();
    assert_eq!(set["secret"]["kind"], kind.as_str());
}

impl Shop {
    fn open() -> Self {
        let token = TestToken::new("opcert-test");
        let daemon = Daemon::start(&token);
        Self::on(token, daemon, now())
    }

    /// On a daemon whose clock says `now`.
    fn on(token: TestToken, daemon: Daemon, now: i64) -> Self {
        let platform = Platform::with_validity(now - 86_400, now + 864_000);
        let authority = platform.authority.to_pem().unwrap();
        let view = add(&daemon, MCHID, json!({ "authorities": [authority] }));
        let certificate = certify(&request_of(&view));
        let view = install(&daemon, MCHID, &certificate).ok();
        assert_eq!(view["keys"][0]["serial"], SERIAL);
        assert_eq!(view["keys"][0]["origin"], "generated");
        set_secret(&daemon, &view, SecretKind::ApiV3, SECRET, 0);
        set_secret(&daemon, &view, SecretKind::Api, V2_SECRET, 0);
        Self {
            daemon,
            platform,
            certificate,
            _token: token,
        }
    }

    fn bootstrap(&self) -> Answer {
        let body = self.platform.certificates(&self.platform.serial);
        self.received("v3/certificates", now(), &body)
    }

    /// Something that the platform signs at `second`.
    fn received(&self, path: &str, second: i64, body: &[u8]) -> Answer {
        post(&self.daemon, path, &self.signed(second, body))
    }

    fn signed(&self, second: i64, body: &[u8]) -> Value {
        signed_by(&self.platform, second, body)
    }

    fn view(&self) -> Value {
        let list = self
            .daemon
            .control(Method::GET, "/v1/wechatpay/merchants", &Value::Null)
            .ok();
        list["merchants"][0].clone()
    }

    fn audit(&self) -> String {
        let mut text = String::new();
        let mut files: Vec<_> = std::fs::read_dir(self.daemon.audit_directory())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        for path in files {
            text.push_str(&String::from_utf8_lossy(&std::fs::read(path).unwrap()));
        }
        text
    }
}

/// Something that `platform` signs at `second`, as it is handed to the daemon.
fn signed_by(platform: &Platform, second: i64, body: &[u8]) -> Value {
    let headers = platform
        .headers(&platform.serial, second, body)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect::<BTreeMap<_, _>>();
    json!({ "merchant": MCHID, "headers": headers, "body_base64": base64(body) })
}

/// A refusal without the request's id: what a caller can tell two refusals apart by.
fn told(answer: &Answer) -> Value {
    assert!(!answer.status.is_success(), "{}", answer.body);
    let mut told = answer.body.clone();
    told.as_object_mut().unwrap().remove("request_id");
    told
}

/// The body of a callback with the event `id` and that `resource`.
fn callback_with(id: &str, resource: &Value) -> Vec<u8> {
    let body = json!({
        "id": id,
        "resource_type": "encrypt-resource",
        "event_type": "TRANSACTION.SUCCESS",
        "resource": resource,
    });
    serde_json::to_vec(&body).unwrap()
}

/// The five members of an `Authorization` header.
fn members(header: &str) -> BTreeMap<String, String> {
    let rest = header.strip_prefix("WECHATPAY2-SHA256-RSA2048 ").unwrap();
    rest.split(',')
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap();
            let value = value.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

fn verifies(certificate: &Certificate, message: &[u8], signature: &str) -> bool {
    let signature = Signature::from_jose(from_base64(signature.as_bytes()).unwrap());
    certificate
        .public_key()
        .verify(Scheme::Rs256, message, &signature)
        .is_ok()
}

#[test]
fn requests_and_payments_are_signed_for_those_who_may_and_put_on_record() {
    let shop = Shop::open();
    let daemon = &shop.daemon;
    let client = |name: &str, uses: &[&str]| {
        let rules = json!([{ "merchant": MCHID, "uses": uses }]);
        daemon.add_client(name, &json!({ "consent": "none", "wechatpay": rules }))
    };
    let server = client("server", &["request"]);
    let till = client("till", &["start"]);
    let stranger = daemon.add_client("stranger", &json!({ "consent": "none" }));
    let ask = |client: &ClientIdentity, path: &str, body: &Value| {
        daemon.native(client, Method::POST, &format!("/v1/wechatpay/{path}"), body)
    };

    // Bytes that are no text, and a body that ends with a line end, stay as they are.
    let body = b"{\"a\":\"\xe4\xb8\xad\"}\xff\n".to_vec();
    let request = json!({
        "merchant": MCHID,
        "method": "POST",
        "target": "/v3/pay/transactions/jsapi?x=%E4%B8%AD",
        "body_base64": base64(&body),
    });
    let signed = ask(&server, "v3/authorization", &request).ok();
    let header = members(signed["authorization"].as_str().unwrap());
    assert_eq!(header["mchid"], MCHID);
    assert_eq!(header["serial_no"], SERIAL);
    let head = format!(
        "POST\n/v3/pay/transactions/jsapi?x=%E4%B8%AD\n{}\n{}\n",
        header["timestamp"], header["nonce_str"]
    );
    let message = [head.as_bytes(), &body, b"\n"].concat();
    assert!(verifies(&shop.certificate, &message, &header["signature"]));
    assert!(header["timestamp"].parse::<i64>().unwrap().abs_diff(now()) < 100);

    let payment = json!({
        "merchant": MCHID,
        "client": "jsapi",
        "appid": "wx8888888888888888",
        "prepay_id": "wx201410272009395522657a690389285100",
    });
    let started = ask(&till, "v3/paysign", &payment).ok();
    let parameter = |name: &str| started["parameters"][name].as_str().unwrap().to_owned();
    let message = format!(
        "wx8888888888888888\n{}\n{}\n{}\n",
        parameter("timeStamp"),
        parameter("nonceStr"),
        parameter("package")
    );
    assert!(verifies(
        &shop.certificate,
        message.as_bytes(),
        &parameter("paySign")
    ));

    for (client, path, body) in [
        (&till, "v3/authorization", &request),
        (&server, "v3/paysign", &payment),
        (&stranger, "v3/authorization", &request),
    ] {
        assert_eq!(ask(client, path, body).code(), "policy-refused");
    }
    // A client learns nothing about merchants that it may not act for.
    let mut elsewhere = request.clone();
    elsewhere["merchant"] = json!("1900009191");
    assert_eq!(
        ask(&server, "v3/authorization", &elsewhere).code(),
        "policy-refused"
    );
    assert_eq!(
        post(daemon, "v3/authorization", &elsewhere).code(),
        "merchant-unknown"
    );

    for (change, code) in [
        (json!({ "method": "GET" }), "wechatpay-message"),
        (json!({ "method": "post" }), "wechatpay-message"),
        (json!({ "target": "https://api/v3" }), "wechatpay-message"),
        (json!({ "timestamp": now() - 300 }), "wechatpay-message"),
        (json!({ "nonce": "a\nb" }), "malformed"),
        (json!({ "body_base64": "AA=" }), "malformed"),
        (json!({ "body": "twice" }), "malformed"),
        (json!({ "message": "ready-made" }), "malformed"),
    ] {
        let mut wrong = request.clone();
        wrong
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        assert_eq!(
            ask(&server, "v3/authorization", &wrong).code(),
            code,
            "{change}"
        );
    }

    let audit = shop.audit();
    for fact in [
        r#""use":"request""#,
        r#""use":"start""#,
        r#""caller":"client:server""#,
        r#""rule":"registered-merchants-request""#,
        r#""kind":"wechatpay-refused""#,
        r#""path":"/v3/pay/transactions/jsapi""#,
    ] {
        assert!(audit.contains(fact), "{fact} is not on record");
    }
    for secret in [SECRET, V2_SECRET, "x=%E4"] {
        assert!(!audit.contains(secret));
        assert!(!daemon.log().contains(secret));
        let state = std::fs::read_to_string(daemon.directory.join("state/merchants.json")).unwrap();
        assert!(!state.contains(secret));
    }
}

#[test]
fn secrets_are_opened_in_memory_that_is_not_swapped() {
    let shop = Shop::open();
    let fields = json!({ "merchant": MCHID, "fields": { "a": "1" } });
    post(&shop.daemon, "v2/sign", &fields).ok();
    if shop.daemon.log().contains("memory is not locked") {
        println!("skipped: neither RLIMIT_MEMLOCK nor CAP_IPC_LOCK lets memory be locked");
        return;
    }
    let path = format!("/proc/{}/status", shop.daemon.pid());
    let status = std::fs::read_to_string(path).unwrap();
    let kilobytes = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    assert!(kilobytes("VmLck:") >= kilobytes("RssAnon:"), "{status}");
}

#[test]
fn callbacks_are_verified_opened_once_and_remembered() {
    let mut shop = Shop::open();
    // Nothing is trusted before the platform's certificates came in.
    let callback = shop.platform.callback(b"{\"amount\":1}");
    assert_eq!(
        shop.received("v3/verify", now(), &callback).code(),
        "wechatpay-key-unknown"
    );
    let serial = shop.platform.serial.clone();
    assert_eq!(shop.bootstrap().ok()["new"], json!([serial]));
    assert_eq!(shop.bootstrap().ok()["new"], json!([]));
    let verified = shop.received("v3/verify", now(), &callback).ok();
    assert_eq!(verified["key"], json!(serial));

    let first = now();
    let opened = shop.received("v3/decrypt", first, &callback).ok();
    assert_eq!(opened["resource"], "{\"amount\":1}");
    assert_eq!(opened["event_type"], "TRANSACTION.SUCCESS");
    assert!(opened["first_delivered_at"].is_null());
    // The message again is a replay; the event again, signed anew, is told.
    assert_eq!(
        shop.received("v3/decrypt", first, &callback).code(),
        "wechatpay-replayed"
    );
    let again = shop.received("v3/decrypt", first - 1, &callback).ok();
    assert!(again["first_delivered_at"].is_string());
    shop.daemon.crash_and_restart();
    assert_eq!(
        shop.received("v3/decrypt", first, &callback).code(),
        "wechatpay-replayed"
    );
    let again = shop.received("v3/decrypt", first - 2, &callback).ok();
    assert!(again["first_delivered_at"].is_string());

    // Five minutes, either side; the exact key; probes; changed bodies.
    for second in [now() - 301, now() + 330] {
        assert_eq!(
            shop.received("v3/verify", second, &callback).code(),
            "wechatpay-signature"
        );
    }
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut request = shop.signed(now() - 3, &callback);
        change(&mut request);
        let verify = post(&shop.daemon, "v3/verify", &request).code();
        assert_eq!(post(&shop.daemon, "v3/decrypt", &request).code(), verify);
        verify
    };
    let header = |name: &'static str, value: &'static str| {
        move |request: &mut Value| request["headers"][name] = json!(value)
    };
    assert_eq!(
        refused(&header("Wechatpay-Serial", "0123ABCD")),
        "wechatpay-key-unknown"
    );
    for change in [
        header(
            "Wechatpay-Signature",
            "WECHATPAY/SIGNTEST/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ),
        header("Wechatpay-Signature-Type", "WECHATPAY2-SM2-WITH-SM3"),
        header("wechatpay-nonce", "second"),
        header("Wechatpay-Timestamp", "+1"),
        header("Wechatpay-Serial", "not hex"),
    ] {
        assert_eq!(refused(&change), "wechatpay-signature");
    }
    assert_eq!(
        refused(&|request| request["body_base64"] = json!(base64(b"{}"))),
        "wechatpay-signature"
    );
    assert_eq!(
        refused(&|request| {
            request["headers"].as_object_mut().unwrap().clear();
        }),
        "wechatpay-signature"
    );
    // A header that is there twice is not hidden by the JSON around it.
    let request = shop.signed(now() - 4, &callback).to_string();
    let twice = request.replacen(
        "\"headers\":{",
        "\"headers\":{\"Wechatpay-Nonce\":\"EcZ9Cmy4Xyx1i6RlJQzLcCyEqDa26NBz\",",
        1,
    );
    assert_ne!(request, twice);
    let send = |text: String| {
        let path = "/v1/wechatpay/v3/verify";
        shop.daemon
            .control_bytes(path, "application/json", text.into_bytes())
    };
    send(request).ok();
    assert_eq!(send(twice).code(), "wechatpay-signature");
}

#[test]
fn an_old_secret_is_read_for_as_long_as_its_overlap() {
    let shop = Shop::open();
    shop.bootstrap().ok();
    let callback =
        |id: &str, secret: &str| callback_with(id, &sealed(secret, "transaction", b"{}"));
    let next = "0123456789abcdefABCDEF0123456789";
    set_secret(&shop.daemon, &shop.view(), SecretKind::ApiV3, next, 3_600);
    assert!(shop.view()["secrets"][1]["overlap_until"].is_string());
    for (id, secret) in [("1", next), ("2", SECRET)] {
        shop.received("v3/decrypt", now(), &callback(id, secret))
            .ok();
    }
    let last = "zyxwvutsrqponmlkjihgfedcba012345";
    set_secret(&shop.daemon, &shop.view(), SecretKind::ApiV3, last, 0);
    for (id, secret) in [("3", next), ("4", SECRET)] {
        let refused = shop.received("v3/decrypt", now(), &callback(id, secret));
        assert_eq!(refused.code(), "wechatpay-content");
    }
    shop.received("v3/decrypt", now(), &callback("5", last))
        .ok();
}

#[test]
fn a_renewed_key_takes_over_and_the_old_one_still_decrypts() {
    let shop = Shop::open();
    let request = json!({ "merchant": MCHID, "method": "GET", "target": "/v3/certificates" });
    let sign = || {
        let signed = post(&shop.daemon, "v3/authorization", &request).ok();
        signed["serial"].as_str().unwrap().to_owned()
    };
    let keys = format!("merchants/{MCHID}/keys");
    let view = post(&shop.daemon, &keys, &json!({})).ok();
    // A key without a certificate signs nothing, and a certificate for no key is not installed.
    assert_eq!(sign(), SERIAL);
    let foreign = Platform::new().certificate;
    assert_eq!(
        install(&shop.daemon, MCHID, &foreign).code(),
        "merchant-certificate"
    );
    let next = "0D00000000000000000000000000000000000001";
    let certificate = certify_as(next, &request_of_key(&view, 1));
    install(&shop.daemon, MCHID, &certificate).ok();
    assert_eq!(sign(), next);

    let decrypt = |certificate: &Certificate| {
        let public = PublicEncryptingKey::from_der(certificate.public_key().spki()).unwrap();
        let public = OaepPublicEncryptingKey::new(public).unwrap();
        let mut buffer = vec![0; public.ciphertext_size()];
        let sealed = public
            .encrypt(&OAEP_SHA1_MGF1SHA1, b"6222", &mut buffer, None)
            .unwrap();
        let body = json!({ "merchant": MCHID, "fields": [base64(sealed)] });
        post(&shop.daemon, "v3/fields/decrypt", &body)
    };
    for certificate in [&shop.certificate, &certificate] {
        assert_eq!(decrypt(certificate).ok()["fields"][0], "6222");
    }
    let id = text(&shop.view()["keys"][0], "id").to_owned();
    let path = format!("/v1/wechatpay/merchants/{MCHID}/keys/{id}");
    let left = shop.daemon.control(Method::DELETE, &path, &Value::Null);
    assert_eq!(left.ok()["keys"].as_array().unwrap().len(), 1);
    assert_eq!(decrypt(&shop.certificate).code(), "wechatpay-content");
    assert_eq!(sign(), next);
    post(&shop.daemon, &keys, &json!({})).ok();
    post(&shop.daemon, &keys, &json!({})).ok();
    assert_eq!(post(&shop.daemon, &keys, &json!({})).code(), "too-large");
}

#[test]
fn platform_keys_come_in_by_proof_and_leave_in_time() {
    let shop = Shop::open();
    // The right certificate under another name, or by another authority, is not taken.
    let body = shop.platform.certificates("0123ABCD");
    assert_eq!(
        shop.received("v3/certificates", now(), &body).code(),
        "wechatpay-platform-key"
    );
    let path = format!("/v1/wechatpay/merchants/{MCHID}/authorities");
    let trust = |certificate: &Certificate| {
        let body = json!({ "authorities": [certificate.to_pem().unwrap()] });
        shop.daemon.control(Method::PUT, &path, &body).ok();
    };
    trust(&shop.certificate);
    assert_eq!(shop.bootstrap().code(), "wechatpay-platform-key");
    trust(&shop.platform.authority);
    shop.bootstrap().ok();

    let id = "PUB_KEY_ID_0119000072912024101500351800000111";
    let public = text(
        &platform::SAMPLES["keys"]["java_sdk_wechatpay"],
        "public_key_pem",
    );
    let pin = |body: &Value| {
        post(
            &shop.daemon,
            &format!("merchants/{MCHID}/platform-keys"),
            body,
        )
    };
    pin(&json!({ "id": id, "public_key": public })).ok();
    assert_eq!(
        pin(&json!({ "id": "0123ABCD", "public_key": public })).code(),
        "wechatpay-platform-key"
    );
    let other = pem("PUBLIC KEY", shop.certificate.public_key().spki());
    assert_eq!(
        pin(&json!({ "id": id, "public_key": other })).code(),
        "wechatpay-platform-key"
    );
    // Both are good at once, each under its own name only; fields go to the public key.
    let callback = shop.platform.callback(b"{}");
    for key in [shop.platform.serial.as_str(), id] {
        let mut request = shop.signed(now(), &callback);
        request["headers"]["Wechatpay-Serial"] = json!(key);
        assert_eq!(
            post(&shop.daemon, "v3/verify", &request).ok()["key"],
            json!(key)
        );
    }
    let body = json!({ "merchant": MCHID, "fields": ["x"] });
    let encrypted = post(&shop.daemon, "v3/fields/encrypt", &body).ok();
    assert_eq!(encrypted["serial"], id);
    let retire = format!("merchants/{MCHID}/platform-keys/{id}/retire");
    post(&shop.daemon, &retire, &json!({})).ok();
    let mut request = shop.signed(now(), &callback);
    request["headers"]["Wechatpay-Serial"] = json!(id);
    assert_eq!(
        post(&shop.daemon, "v3/verify", &request).code(),
        "wechatpay-key-unknown"
    );
}

#[test]
fn version_2_messages_are_signed_checked_and_opened() {
    let shop = Shop::open();
    let post = |path: &str, body: Value| post(&shop.daemon, path, &body);
    let vector = sample("v2-doc-md5");
    assert_eq!(vector["inputs"]["key"], V2_SECRET);
    let body = json!({ "merchant": MCHID, "fields": vector["inputs"]["params"] });
    let signed = post("v2/sign", body).ok();
    assert_eq!(signed["sign"], vector["expected"]);
    let xml = signed["body"].as_str().unwrap();
    let checked = post("v2/verify", json!({ "merchant": MCHID, "body": xml })).ok();
    assert_eq!(checked["fields"]["sign"], vector["expected"]);
    assert_eq!(checked["fields"]["body"], "test");

    let changed = xml.replace("test", "text");
    let longer = vector["expected"].as_str().unwrap().repeat(2);
    let downgrade = xml.replace(vector["expected"].as_str().unwrap(), &longer);
    let [with_key, with_sign] = ["<key>x</key>", "<Sign>x</Sign>"]
        .map(|injected| xml.replace("</xml>", &format!("{injected}</xml>")));
    for (body, code) in [
        (changed.as_str(), "wechatpay-signature"),
        (&downgrade, "wechatpay-signature"),
        (&with_key, "wechatpay-signature"),
        (&with_sign, "wechatpay-signature"),
        ("<xml><a>1</a></xml>", "wechatpay-signature"),
        ("<xml><a>1</a><a>1</a></xml>", "wechatpay-fields"),
        (
            "<!DOCTYPE xml [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><xml><a>&x;</a></xml>",
            "wechatpay-fields",
        ),
        ("<xml><a b='1'>1</a></xml>", "wechatpay-fields"),
        ("<xml><a><b>1</b></a></xml>", "wechatpay-fields"),
        ("", "wechatpay-fields"),
    ] {
        let answer = post("v2/verify", json!({ "merchant": MCHID, "body": body }));
        assert_eq!(answer.code(), code, "{body}");
    }
    // What is signed by MD5 is nothing to a merchant whose messages are signed by HMAC.
    let rules = json!({ "rules": { "sign-type": "HMAC-SHA256" } });
    let by_hmac = add(&shop.daemon, "1900009191", rules);
    set_secret(&shop.daemon, &by_hmac, SecretKind::Api, V2_SECRET, 0);
    let by_md5 = post(
        "v2/verify",
        json!({ "merchant": "1900009191", "body": xml }),
    );
    assert_eq!(by_md5.code(), "wechatpay-signature");
    let huge = format!("<xml><a>{}</a></xml>", "x".repeat(200_000));
    let huge = json!({ "merchant": MCHID, "body": huge });
    assert_eq!(post("v2/verify", huge).code(), "too-large");
    let ambiguous = json!({ "merchant": MCHID, "fields": { "a": "1&b=2" } });
    assert_eq!(post("v2/sign", ambiguous).code(), "wechatpay-fields");

    let refund = sample("v2-refund-req_info-easywechat");
    let content = text(&refund["inputs"], "ciphertext_b64");
    let open = |req_info: &str| {
        post(
            "v2/refund/decrypt",
            json!({ "merchant": MCHID, "req_info": req_info }),
        )
    };
    // Under another secret, and cut.
    assert_eq!(open(content).code(), "wechatpay-content");
    let secret = text(&refund["inputs"], "api_v2_key");
    set_secret(&shop.daemon, &shop.view(), SecretKind::Api, secret, 60);
    let fields = open(content).ok();
    assert_eq!(
        fields["fields"]["transaction_id"],
        "4005302001201707272838220000"
    );
    assert_eq!(open("AAAA").code(), "malformed");
    assert_eq!(open(&base64(&[0; 32])).code(), "wechatpay-content");
    // The secret before is read for its overlap, and not signed with.
    let checked = post("v2/verify", json!({ "merchant": MCHID, "body": xml }));
    checked.ok();
    let body = json!({ "merchant": MCHID, "fields": vector["inputs"]["params"] });
    assert_ne!(post("v2/sign", body).ok()["sign"], vector["expected"]);
}

#[test]
fn an_account_service_sets_secrets_in_order_and_for_its_own_account() {
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let service = Service::new("https://pay.example");
    daemon.enrol(&service, "alice", "p256");
    let linked = json!({ "service": "https://pay.example", "account": "acme" });
    let view = add(&daemon, MCHID, linked);
    let unlinked = add(&daemon, "1900009191", json!({}));
    let signed = |view: &Value, change: &dyn Fn(&mut SealedSecret)| {
        let key: RsaJwk = serde_json::from_value(view["sealing_key"].clone()).unwrap();
        let mut claims = SealedSecret {
            iss: "https://pay.example".parse().unwrap(),
            aud: "opcert".into(),
            iat: now(),
            sub: "acme".parse().unwrap(),
            kind: SecretKind::ApiV3,
            version: 3,
            overlap_until: now() + 3_600,
            jwe: seal(&key, SecretKind::ApiV3, &SecretText::new(SECRET.into())).unwrap(),
        };
        change(&mut claims);
        let input = claims.signing_input(&service.challenge_key.kid()).unwrap();
        let signature = service.challenge_key.sign(input.as_bytes());
        post(
            &daemon,
            "secrets",
            &json!({ "signed": compact(input, &signature) }),
        )
    };
    let set = signed(&view, &|_| ()).ok();
    assert_eq!(set["secret"]["version"], 3);
    for change in [
        &(|claims: &mut SealedSecret| claims.version = 3) as &dyn Fn(&mut SealedSecret),
        &|claims| claims.version = 2,
        &|claims| claims.sub = "other".parse().unwrap(),
        &|claims| claims.kind = SecretKind::Api,
        &|claims| claims.iss = "https://other.example".parse().unwrap(),
        &|claims| claims.overlap_until = now() + 700_000,
        &|claims| claims.jwe.push('A'),
        &|claims| claims.jwe = "a.b.c.d.e".into(),
    ] {
        let change = |claims: &mut SealedSecret| {
            claims.version = 4;
            change(claims);
        };
        assert_eq!(signed(&view, &change).code(), "secret-invalid");
    }
    assert_eq!(signed(&unlinked, &|_| ()).code(), "secret-invalid");
    let next = signed(&view, &|claims| claims.version = 5).ok();
    assert!(next["secret"]["overlap_until"].is_string());

    // Nobody hands in what is no secret, or for a key that is not here.
    let key: RsaJwk = serde_json::from_value(view["sealing_key"].clone()).unwrap();
    for secret in [
        "a".repeat(16),
        "a".repeat(31),
        format!("{}\n", "a".repeat(31)),
    ] {
        let jwe = seal(&key, SecretKind::ApiV3, &SecretText::new(secret)).unwrap();
        let answer = post(&daemon, "secrets", &json!({ "jwe": jwe }));
        assert_eq!(answer.code(), "secret-invalid");
    }
    // With the merchant its keys go, and so what was sealed to them.
    let jwe = seal(&key, SecretKind::ApiV3, &SecretText::new(SECRET.into())).unwrap();
    let path = format!("/v1/wechatpay/merchants/{MCHID}");
    let gone = daemon.control(Method::DELETE, &path, &Value::Null);
    assert_eq!(gone.status, 204);
    let answer = post(&daemon, "secrets", &json!({ "jwe": jwe }));
    assert_eq!(answer.code(), "secret-invalid");
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn opcert(daemon: &Daemon, arguments: &[&str], input: &str) -> Said {
    let mut child = Command::new(env!("CARGO_BIN_EXE_opcert"))
        .arg("wechatpay")
        .args(arguments)
        .arg("--socket")
        .arg(daemon.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn the_command_line_does_all_of_it_with_an_imported_key() {
    use std::os::unix::fs::PermissionsExt;
    let token = TestToken::new("opcert-test");
    let daemon = Daemon::start(&token);
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).display().to_string();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(path(name), bytes).unwrap();
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let ok = |arguments: &[&str], input: &str| {
        let said = opcert(&daemon, arguments, input);
        assert_eq!(said.code, 0, "{arguments:?}: {}{}", said.out, said.err);
        said
    };
    let platform = Platform::with_validity(now() - 86_400, now() + 864_000);
    write("ca.pem", platform.authority.to_pem().unwrap().as_bytes());
    write(
        "key.pem",
        pem("PRIVATE KEY", &private_key_der("doc_merchant")).as_bytes(),
    );

    let key = path("key.pem");
    let ca = path("ca.pem");
    let add = [
        "merchant",
        "add",
        MCHID,
        "--import-key",
        &key,
        "--platform-ca",
        &ca,
        "--v2-sign-type",
        "MD5",
    ];
    let said = ok(&add, "");
    assert!(said.err.contains("copies of it may exist"), "{}", said.err);
    let (_, request) = der::pem::decode_vec(said.out.as_bytes()).unwrap();
    let certificate = certify(&CertificateRequest::from_der(&request).unwrap());
    write("cert.pem", certificate.to_pem().unwrap().as_bytes());
    let said = ok(&["merchant", "certificate", MCHID, &path("cert.pem")], "");
    assert!(said.out.contains("imported, not proven"), "{}", said.out);
    assert!(said.out.contains(SERIAL));
    // The token itself tells an imported key from one that it made.
    let objects = token
        .pkcs11_tool()
        .args(["--list-objects", "--type", "privkey"])
        .output()
        .expect("pkcs11-tool is needed: apt-get install opensc");
    let objects = String::from_utf8(objects.stdout).unwrap();
    for object in objects.split("Private Key Object").skip(1) {
        let imported = object.contains("opcert WeChat Pay");
        assert_eq!(!object.contains("never extractable"), imported, "{object}");
        assert_eq!(!object.contains("local"), imported, "{object}");
        assert!(object.contains("sensitive"), "{object}");
        // A key that opens sealed secrets signs nothing.
        assert_eq!(object.contains("sign"), imported, "{object}");
    }
    let listed = ok(&["merchant", "list"], "");
    assert!(listed.out.contains("none yet"));
    assert_ne!(opcert(&daemon, &add, "").code, 0);

    let secret = ["secret", "set", MCHID, "apiv3", "--secret-file", "-"];
    assert_eq!(opcert(&daemon, &secret, "too-short\n").code, 65);
    ok(&secret, &format!("{SECRET}\n"));
    ok(
        &["secret", "set", MCHID, "api", "--secret-file", "-"],
        &format!("{V2_SECRET}\n"),
    );

    let headers = |second: i64, body: &[u8]| {
        let lines = platform.headers(&platform.serial, second, body);
        let lines = lines
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"));
        format!("HTTP/1.1 200 OK\r\n{}\r\n", lines.collect::<String>())
    };
    let answer = platform.certificates(&platform.serial);
    write("answer", &answer);
    write("headers", headers(now(), &answer).as_bytes());
    let (head, body) = (path("headers"), path("answer"));
    let import = [
        "platform",
        "import",
        MCHID,
        "--headers",
        &head,
        "--body",
        &body,
    ];
    assert!(ok(&import, "").out.contains(&platform.serial));

    let body = b"{\"a\":1}";
    write("body", body);
    let body_path = path("body");
    let target = "/v3/refund/domestic/refunds";
    let sign = ["authorization", MCHID, "POST", target, "--body", &body_path];
    let header = members(ok(&sign, "").out.trim());
    let message = format!(
        "POST\n{target}\n{}\n{}\n{{\"a\":1}}\n",
        header["timestamp"], header["nonce_str"]
    );
    assert!(verifies(
        &certificate,
        message.as_bytes(),
        &header["signature"]
    ));
    let paysign = [
        "paysign",
        MCHID,
        "--client",
        "app",
        "--app",
        "wx8888888888888888",
        "--prepay",
        "wx2611",
    ];
    assert!(ok(&paysign, "").out.contains("Sign=WXPay"));

    let callback = platform.callback(b"{\"amount\":1}");
    write("callback", &callback);
    write("headers", headers(now(), &callback).as_bytes());
    let callback = path("callback");
    let received = [MCHID, "--headers", &head, "--body", &callback];
    let with = |verb: &'static str| [&[verb], &received[..]].concat();
    assert!(ok(&with("verify"), "").out.contains(&platform.serial));
    assert_eq!(ok(&with("decrypt"), "").out.trim(), "{\"amount\":1}");
    let replayed = opcert(&daemon, &with("decrypt"), "");
    assert_eq!(replayed.code, 1, "{}", replayed.err);
    assert!(replayed.err.contains("[wechatpay-replayed]"));

    let encrypted = ok(&["fields", "encrypt", MCHID], "one\ntwo\n").out;
    assert_eq!(encrypted.lines().count(), 3);
    let foreign = opcert(
        &daemon,
        &["fields", "decrypt", MCHID],
        encrypted.lines().nth(1).unwrap(),
    );
    assert!(
        foreign.err.contains("[wechatpay-content]"),
        "{}",
        foreign.err
    );

    let signed = ok(&["v2", "sign", MCHID], "<xml><a>1</a></xml>").out;
    assert!(
        ok(&["v2", "verify", MCHID], signed.trim())
            .out
            .contains("sign")
    );
    let refused = opcert(
        &daemon,
        &["v2", "verify", MCHID],
        "<xml><sign>00</sign></xml>",
    );
    assert_eq!(refused.code, 1, "{}", refused.err);
    ok(&["merchant", "remove", MCHID], "");
}
