//! The XML of WeChat Pay's interface version 2: what is read is written so that it reads the same.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use opcert::base::secret::SecretText;
use opcert::wechatpay::ApiV2Secret;
use opcert::wechatpay::v2::{Fields, Rules, SignType};

static SECRET: LazyLock<ApiV2Secret> = LazyLock::new(|| {
    ApiV2Secret::new(SecretText::new(
        "0123456789abcdef0123456789ABCDEF".to_owned(),
    ))
    .unwrap()
});

fuzz_target!(|data: &[u8]| {
    if let Ok(fields) = Fields::from_xml(data) {
        let text = fields.to_xml();
        let again = Fields::from_xml(text.as_bytes()).unwrap();
        assert_eq!(text, again.to_xml());
        for sign_type in [SignType::Md5, SignType::HmacSha256] {
            let _ = Rules::new(sign_type)
                .verify(&fields, &SECRET)
                .map(|signed| signed.fields().get("sign"));
        }
    }
});
