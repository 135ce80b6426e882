//! A line from pinentry.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opcert::consent::fuzz_line(data));
