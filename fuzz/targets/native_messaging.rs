//! What a browser sends to the native-messaging host: lengths and JSON, which become requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    opcert::cli::fuzz_messages(data);
    // One message without its length, as lengths are seldom guessed.
    if let Ok(length) = u32::try_from(data.len()) {
        opcert::cli::fuzz_messages(&[&length.to_ne_bytes(), data].concat());
    }
});
