//! Bytes that nobody meant well: errors, and the same answer each time.

use opcert::policy::Purpose;
use opcert::wechatpay::v2::{Embedded, Fields, Rules, SignType, open_refund};
use opcert::wechatpay::v3::{
    Answer, Envelope, Field, Method, PlatformKeys, RequestMessage, SignatureHeaders, Target,
    public_key_from_pem,
};
use opcert::wechatpay::{Nonce, Rotating};
use proptest::prelude::*;

use crate::support::{NOW, Platform, SECRET, at, v2_secret, v3_key};

fn message() -> impl Strategy<Value = Vec<(String, String)>> {
    let name = "[A-Za-z_][A-Za-z0-9_]{0,8}";
    let value = prop_oneof!["[a-c&=]{0,12}", "\\PC{0,16}", "[<>&'\"\\]\r\n\t ]{0,8}",];
    proptest::collection::btree_map(name, value, 0..8).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #[test]
    fn xml_of_any_kind_is_fields_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = Fields::from_xml(&bytes);
    }

    #[test]
    fn xml_of_markup_is_fields_or_an_error(text in "(<|>|/|xml|root|a|b|!\\[CDATA\\[|\\]\\]>|!DOCTYPE|!--|-->|&|;|#|x|1|\\?| |\"|=|\n){0,40}") {
        if let Ok(fields) = Fields::from_xml(text.as_bytes()) {
            prop_assert!(!text.contains("DOCTYPE"));
            prop_assert_eq!(Fields::from_xml(fields.to_xml().as_bytes()).unwrap(), fields);
        }
    }

    #[test]
    fn what_is_written_is_read_back(pairs in message()) {
        let fields = Fields::new(pairs).unwrap();
        prop_assert_eq!(Fields::from_xml(fields.to_xml().as_bytes()).unwrap(), fields);
    }

    /// Of two messages that are both free of embedded fields, no two have one string.
    #[test]
    fn strict_messages_with_one_string_are_one_message(pairs in message(), cuts in proptest::collection::vec(any::<bool>(), 16)) {
        let fields = Fields::new(pairs).unwrap();
        let canonical = fields.canonical();
        // Another reading: at each '&' either a new field begins or the value goes on.
        let mut reading: Vec<(String, String)> = Vec::new();
        for (index, part) in canonical.split('&').enumerate() {
            let cut = index == 0 || cuts.get(index).copied().unwrap_or(true);
            match (part.split_once('='), reading.last_mut()) {
                (Some((name, value)), _) if cut => reading.push((name.into(), value.into())),
                (_, Some((_, value))) => { value.push('&'); value.push_str(part); }
                _ => return Ok(()),
            }
        }
        if let Ok(other) = Fields::new(reading)
            && *other.canonical() == *canonical
            && fields.embedded().is_none()
            && other.embedded().is_none()
        {
            let kept = |fields: &Fields| -> Vec<(String, String)> {
                fields.iter().filter(|(name, value)| *name != "sign" && !value.is_empty())
                    .map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
            };
            prop_assert_eq!(kept(&other), kept(&fields));
        }
    }

    #[test]
    fn signed_fields_verify_and_changed_ones_do_not(pairs in message(), extra in "[a-z]{9,12}") {
        let rules = Rules { embedded: Embedded::Allow, ..Rules::new(SignType::HmacSha256) };
        let secrets = Rotating::new(v2_secret(SECRET));
        let pairs: Vec<_> = pairs.into_iter().filter(|(name, _)| name != "sign").collect();
        let mut fields = Fields::new(pairs).unwrap();
        let sign = rules.sign(&fields, secrets.current()).unwrap();
        fields.insert("sign".into(), sign).unwrap();
        prop_assert!(rules.verify(&fields, &secrets, at(NOW)).is_ok());
        fields.insert(extra, "1".into()).unwrap();
        prop_assert!(rules.verify(&fields, &secrets, at(NOW)).is_err());
    }

    #[test]
    fn headers_of_any_kind_are_read_or_refused(values in proptest::collection::vec("\\PC{0,40}", 5)) {
        let names = ["Wechatpay-Timestamp", "Wechatpay-Nonce", "Wechatpay-Signature", "Wechatpay-Serial", "Wechatpay-Signature-Type"];
        let _ = SignatureHeaders::new(names.into_iter().zip(values.iter().map(String::as_str)));
    }

    #[test]
    fn envelopes_of_any_kind_stay_closed(algorithm in "(AEAD_AES_256_GCM|x)", ciphertext in "[A-Za-z0-9+/=]{0,64}", nonce in "\\PC{0,13}", data in proptest::option::of("\\PC{0,8}")) {
        let envelope = Envelope { algorithm, ciphertext, nonce, associated_data: data };
        prop_assert!(envelope.open(&v3_key(SECRET), at(NOW)).is_err());
    }

    #[test]
    fn fields_keys_and_refunds_of_any_kind_are_refused(text in "[A-Za-z0-9+/=\n-]{0,400}") {
        let _ = Field::parse(&text);
        prop_assert!(public_key_from_pem(&text).is_err());
        prop_assert!(open_refund(&text, &Rotating::new(v2_secret(SECRET)), at(NOW)).is_err());
    }

    #[test]
    fn whatever_the_body_a_request_is_a_request(body in proptest::collection::vec(any::<u8>(), 0..200), target in "/[!-~]{0,60}") {
        let Ok(target) = target.parse::<Target>() else { return Ok(()); };
        let message = RequestMessage::new(Method::Post, &target, at(NOW), Nonce::random(), &body, at(NOW)).unwrap();
        for purpose in [Purpose::WechatPayStart, Purpose::Approval, Purpose::ApprovalCms, Purpose::Challenge, Purpose::Ticket, Purpose::KeySet, Purpose::Certificate, Purpose::SelfTest, Purpose::TokenTest, Purpose::WechatPayDecrypt] {
            prop_assert!(!purpose.admits(message.to_sign()), "{:?}", purpose);
        }
        prop_assert!(Purpose::WechatPayRequest.admits(message.to_sign()));
    }
}

#[test]
fn a_hostile_certificates_answer_is_an_error() {
    let platform = Platform::new();
    let anchors = std::slice::from_ref(&platform.authority);
    let many = format!("{{\"data\":[{}]}}", vec!["{}"; 1000].join(","));
    let deep = "[".repeat(100_000);
    let huge = vec![b' '; PlatformKeys::MAX_ANSWER + 1];
    for body in [
        &b""[..],
        b"{}",
        b"{\"data\":[]}",
        b"\xff",
        many.as_bytes(),
        deep.as_bytes(),
        &huge,
    ] {
        let headers = platform.signed(NOW, body);
        let answer = Answer {
            headers: &headers,
            body,
        };
        assert!(PlatformKeys::bootstrap(answer, &v3_key(SECRET), anchors, at(NOW)).is_err());
    }
}
