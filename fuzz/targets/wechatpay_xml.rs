//! The XML of WeChat Pay's interface version 2: what is read is written so that it reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opcert::wechatpay::v2::Fields;

fuzz_target!(|data: &[u8]| {
    if let Ok(fields) = Fields::from_xml(data) {
        let text = fields.to_xml();
        let again = Fields::from_xml(text.as_bytes()).unwrap();
        assert_eq!(text, again.to_xml());
    }
});
