//! An approval, as it comes to a verifier.
#![no_main]

use std::sync::LazyLock;

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use opcert::base::x509::Certificate;
use opcert::statement::Approval;

static CA: LazyLock<Certificate> =
    LazyLock::new(|| Certificate::from_pem(include_bytes!("../../tests/samples/ca.pem")).unwrap());

/// Those that were made and are sound as far as an authority can tell; some of them answer another
/// challenge than they should, which is for others to see.
static MADE: LazyLock<Vec<String>> = LazyLock::new(|| {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/samples/approvals");
    let mut made = Vec::new();
    for kind in ["good", "bad"] {
        for file in std::fs::read_dir(format!("{folder}/{kind}")).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            made.push(text.trim_end().to_owned());
        }
    }
    made
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let text = text.trim_end();
    if Approval::verify(text, std::slice::from_ref(&*CA), None, now).is_ok() {
        assert!(
            MADE.iter().any(|made| made == text),
            "a forged approval: {text}"
        );
    }
});
