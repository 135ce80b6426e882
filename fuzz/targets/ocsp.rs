//! A question about certificates (OCSP): what is read can be answered.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opcert::account::ocsp::fuzz_question(data));
