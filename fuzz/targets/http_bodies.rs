//! Every body that a door takes, as JSON: what is accepted is written and read back unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opcert::api::types;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn round_trip<T: Serialize + DeserializeOwned>(data: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(data) {
        let text = serde_json::to_vec(&value).unwrap();
        let again: T = serde_json::from_slice(&text).unwrap();
        assert_eq!(text, serde_json::to_vec(&again).unwrap());
    }
}

fuzz_target!(|data: &[u8]| {
    round_trip::<types::RequestApproval>(data);
    round_trip::<types::BeginEnrolment>(data);
    round_trip::<types::CompleteEnrolment>(data);
    round_trip::<types::AddClient>(data);
    round_trip::<types::ExplainPolicy>(data);
    // It holds a PIN, which nothing writes.
    let _ = serde_json::from_slice::<types::Unlock>(data);
    let _ = serde_json::from_slice::<opcert::account::routes::operations::OperationRequest>(data);
});
