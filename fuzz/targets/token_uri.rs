//! A token URI (RFC 7512): what is read prints as one that means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opcert::base::pkcs11::TokenUri;

fuzz_target!(|data: &str| {
    if let Ok(uri) = data.parse::<TokenUri>() {
        let text = uri.to_string();
        assert_eq!(text.parse::<TokenUri>().as_ref(), Ok(&uri), "{text}");
    }
});
