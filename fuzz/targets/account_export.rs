//! The export of an account, as it comes to be imported.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &str| opcert::account::admin::fuzz_export(data));
