//! What ends with time, to the second, on a clock that stands still until it is set.

use std::path::{Path, PathBuf};

use super::*;

/// Where Debian's libfaketime is.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// The wall clock of a daemon.
struct WallClock(PathBuf);

impl WallClock {
    fn set(&self, second: i64) {
        let time = platform::at(second)
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string();
        let next = self.0.with_extension("next");
        std::fs::write(&next, time).unwrap();
        std::fs::rename(&next, &self.0).unwrap();
    }
}

#[test]
fn windows_overlaps_and_keys_end_to_the_second() {
    if !Path::new(FAKETIME).exists() {
        println!("skipped: {FAKETIME} is not installed");
        return;
    }
    let token = TestToken::new("opcert-test");
    let clock = WallClock(token.directory().join("time"));
    let environment = [
        ("LD_PRELOAD", FAKETIME.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", clock.0.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("TZ", "UTC".to_owned()),
    ];
    // OpenSSL dates the merchant's certificate by the real clock.
    let start = now() + 60;
    clock.set(start);
    let daemon = Daemon::start_in(&token, "", &environment);
    let mut shop = Shop::on(token, daemon, start);
    let body = shop.platform.certificates(&shop.platform.serial);
    shop.received("v3/certificates", start, &body).ok();
    let callback =
        |id: &str, secret: &str| callback_with(id, &sealed(secret, "transaction", b"{}"));
    let decrypt = |shop: &Shop, second: i64, body: &[u8]| shop.received("v3/decrypt", second, body);

    for (offset, fits) in [(-300, false), (-299, true), (299, true), (300, false)] {
        let body = callback(&format!("window{offset}"), SECRET);
        for path in ["v3/verify", "v3/decrypt"] {
            let answer = shop.received(path, start + offset, &body);
            if fits {
                answer.ok();
            } else {
                assert_eq!(answer.code(), "wechatpay-signature", "{offset}");
            }
        }
        let request = json!({
            "merchant": MCHID, "method": "GET", "target": "/v3/x", "timestamp": start + offset,
        });
        let answer = post(&shop.daemon, "v3/authorization", &request);
        assert_eq!(answer.status.is_success(), fits, "{offset}");
    }

    // The secret before the current one, for an hour.
    let next = "0123456789abcdefABCDEF0123456789";
    set_secret(&shop.daemon, &shop.view(), SecretKind::ApiV3, next, 3_600);
    clock.set(start + 3_599);
    decrypt(&shop, start + 3_599, &callback("old", SECRET)).ok();
    clock.set(start + 3_600);
    let refused = decrypt(&shop, start + 3_600, &callback("older", SECRET));
    assert_eq!(refused.code(), "wechatpay-content");
    decrypt(&shop, start + 3_600, &callback("new", next)).ok();

    // A certificate that is announced is held at once, and encrypted for from its first day.
    let next_key = Platform::with_key("go_sdk", start - 10, start + 8_640_000);
    let first_day = start + 3_800;
    let body = proof::answer(&next_key, &|entry| {
        entry["effective_time"] = json!(platform::at(first_day).to_string());
        let pem = next_key.certificate.to_pem().unwrap();
        entry["encrypt_certificate"] = sealed(next, "certificate", pem.as_bytes());
    });
    shop.received("v3/certificates", start + 3_600, &body).ok();
    let early = signed_by(&next_key, start + 3_600, b"{}");
    post(&shop.daemon, "v3/verify", &early).ok();
    for (second, serial) in [
        (first_day - 1, &shop.platform.serial),
        (first_day, &next_key.serial),
    ] {
        clock.set(second);
        let fields = json!({ "merchant": MCHID, "fields": ["x"] });
        let encrypted = post(&shop.daemon, "v3/fields/encrypt", &fields).ok();
        assert_eq!(encrypted["serial"], json!(serial));
    }
    let keys = format!("merchants/{MCHID}/platform-keys");
    let retire = format!("{keys}/{}/retire", next_key.serial);
    post(&shop.daemon, &retire, &json!({})).ok();

    // An event is told again for 25 hours, whatever else comes and whoever restarts.
    let event = callback("event", next);
    let first = start + 4_000;
    clock.set(first);
    assert!(decrypt(&shop, first, &event).ok()["first_delivered_at"].is_null());
    clock.set(first + 89_999);
    shop.daemon.crash_and_restart();
    let again = decrypt(&shop, first + 89_999, &event).ok();
    let told: Timestamp = text(&again, "first_delivered_at").parse().unwrap();
    assert_eq!(told.as_second(), first);
    clock.set(first + 90_000);
    assert!(decrypt(&shop, first + 90_000, &event).ok()["first_delivered_at"].is_null());

    // A key ends when it was told to, a certificate when it says so.
    let verify = |shop: &Shop, second: i64| {
        clock.set(second);
        shop.received("v3/verify", second, b"{}")
    };
    let id = "PUB_KEY_ID_0119000072912024101500351800000111";
    let pem = text(
        &platform::SAMPLES["keys"]["java_sdk_wechatpay"],
        "public_key_pem",
    );
    let pinned = json!({ "id": id, "public_key": pem });
    post(&shop.daemon, &keys, &pinned).ok();
    let end = first + 100_000;
    let at = json!({ "at": platform::at(end).to_string() });
    post(&shop.daemon, &format!("{keys}/{id}/retire"), &at).ok();
    let by_public_key = |second: i64| {
        clock.set(second);
        let mut request = shop.signed(second, b"{}");
        request["headers"]["Wechatpay-Serial"] = json!(id);
        post(&shop.daemon, "v3/verify", &request)
    };
    by_public_key(end - 1).ok();
    assert_eq!(by_public_key(end).code(), "wechatpay-key-unknown");
    let end = shop.platform.certificate.not_after().as_second();
    verify(&shop, end - 1).ok();
    assert_eq!(verify(&shop, end).code(), "wechatpay-key-unknown");
    let fields = json!({ "merchant": MCHID, "fields": ["6222020200000000000"] });
    let encrypted = post(&shop.daemon, "v3/fields/encrypt", &fields);
    assert!(!encrypted.body.to_string().contains("6222"));
    assert_eq!(encrypted.code(), "merchant-not-ready");
}
