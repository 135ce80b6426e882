//! Headers and short texts: what is read prints as one that means the same.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use axum::http::header::{ACCEPT_LANGUAGE, COOKIE, ORIGIN};
use axum::http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use opcert::account::cookies;
use opcert::account::portal::{security, web};
use opcert::account::store::accounts::Mobile;
use opcert::api::language;
use opcert::base::encoding;
use opcert::base::ids::{AccountId, ComputerId, Jti, OperatorId, RequestId};
use opcert::base::key::{KeySpec, Scheme};
use opcert::statement::text::Text;
use opcert::statement::{ConsentMethod, Money, Origin, PayeesDigest};
use opcert::telemetry::trace::TraceId;
use opcert::wechatpay::v3::{Method, Target};
use opcert::wechatpay::{AppId, CertificateSerial, MerchantId, PlatformKeyId};

fn round_trip<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert!(
            value
                .to_string()
                .parse::<T>()
                .is_ok_and(|again| again == value)
        );
    }
}

fn read<T: FromStr>(text: &str) {
    let _ = text.parse::<T>();
}

fuzz_target!(|data: &str| {
    round_trip::<Origin>(data);
    round_trip::<Text>(data);
    round_trip::<AccountId>(data);
    round_trip::<OperatorId>(data);
    round_trip::<ComputerId>(data);
    round_trip::<RequestId>(data);
    round_trip::<MerchantId>(data);
    round_trip::<AppId>(data);
    round_trip::<CertificateSerial>(data);
    round_trip::<PlatformKeyId>(data);
    round_trip::<PayeesDigest>(data);
    read::<Jti>(data);
    read::<KeySpec>(data);
    read::<Scheme>(data);
    read::<ConsentMethod>(data);
    read::<Mobile>(data);
    read::<Method>(data);
    read::<Target>(data);

    for currency in ["CNY", "JPY", "KWD"] {
        if let Ok(money) = Money::from_decimal(data, currency) {
            let shown = money.to_string();
            let again = Money::from_decimal(&shown[4..], currency);
            assert_eq!(
                again.map(Money::minor_units),
                Ok(money.minor_units()),
                "{shown}"
            );
        }
    }
    if let Some(bytes) = encoding::from_base64url(data) {
        assert_eq!(encoding::base64url(&bytes), data);
    }
    if let Some(bytes) = encoding::from_hex(data) {
        assert_eq!(encoding::hex(&bytes), data.to_lowercase());
    }
    let _ = encoding::from_base64(data.as_bytes());

    if let Ok(trace) = TraceId::from_traceparent(data) {
        assert!(data.contains(trace.as_str()));
    }
    let path = web::local_path(data);
    assert!(path.starts_with('/') && !path.starts_with("//"));
    let escaped = encoding::percent_all(data.as_bytes());
    assert!(escaped.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(encoding::from_percent(&escaped).is_some_and(|again| again == data.as_bytes()));
    let _ = encoding::from_percent(data);

    let mut headers = HeaderMap::new();
    for line in data.lines() {
        if let Ok(value) = HeaderValue::from_str(line) {
            headers.append(ACCEPT_LANGUAGE, value.clone());
            headers.append(COOKIE, value.clone());
            headers.append(ORIGIN, value);
        }
    }
    let _ = language::preferred(&headers);
    let _ = cookies::cookie(&headers, "a");
    let _ = cookies::session_token(&headers);
    let elsewhere = security::from_elsewhere(&headers, Some("pay.example"));
    let first = headers.get(ORIGIN).and_then(|value| value.to_str().ok());
    assert!(elsewhere || first.is_none_or(|origin| origin == "https://pay.example"));
});
