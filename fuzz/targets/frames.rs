//! A packet between daemon and worker: what is read is written back to the same bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opcert::device::fuzz_packet(data));
