//! Every body that a door or the account service takes, as JSON: what is accepted is written and read
//! back unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use opcert::account::routes::{
    certificates, enrolment, operations, recovery, secrets, sessions, webhooks,
};
use opcert::api::{types, wechatpay};
use opcert::statement::{Payee, PayeeList};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

fn round_trip<T: Serialize + DeserializeOwned>(data: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(data) {
        let text = serde_json::to_vec(&value).unwrap();
        let again: T = serde_json::from_slice(&text).unwrap();
        assert_eq!(text, serde_json::to_vec(&again).unwrap());
    }
}

/// What holds a secret, which nothing writes.
fn read<T: DeserializeOwned>(data: &[u8]) {
    let _ = serde_json::from_slice::<T>(data);
}

fuzz_target!(|data: &[u8]| {
    // Each type below sees nothing more of what is no JSON.
    if serde_json::from_slice::<IgnoredAny>(data).is_err() {
        return;
    }
    round_trip::<types::RequestApproval>(data);
    round_trip::<types::BeginEnrolment>(data);
    round_trip::<types::CompleteEnrolment>(data);
    round_trip::<types::AddClient>(data);
    round_trip::<types::ExplainPolicy>(data);
    round_trip::<types::AskContents>(data);
    round_trip::<types::ReleaseToken>(data);
    round_trip::<types::TestToken>(data);
    read::<types::Unlock>(data);
    read::<types::InitToken>(data);
    read::<types::ChangePin>(data);
    read::<types::UnblockPin>(data);

    round_trip::<wechatpay::SignRequest>(data);
    round_trip::<wechatpay::SignPayment>(data);
    round_trip::<wechatpay::Received>(data);
    round_trip::<wechatpay::ReceivedCertificates>(data);
    round_trip::<wechatpay::EncryptFields>(data);
    round_trip::<wechatpay::DecryptFields>(data);
    round_trip::<wechatpay::MessageV2>(data);
    round_trip::<wechatpay::OpenRefund>(data);
    round_trip::<wechatpay::AddMerchant>(data);
    round_trip::<wechatpay::AddMerchantKey>(data);
    round_trip::<wechatpay::InstallMerchantCertificate>(data);
    round_trip::<wechatpay::PinPlatformKey>(data);
    round_trip::<wechatpay::RetirePlatformKey>(data);
    round_trip::<wechatpay::TrustAuthorities>(data);
    round_trip::<wechatpay::SealedSecret>(data);
    round_trip::<wechatpay::AskForSecrets>(data);

    round_trip::<operations::OperationRequest>(data);
    round_trip::<operations::ChallengeRequest>(data);
    round_trip::<webhooks::SubscriptionRequest>(data);
    read::<enrolment::CodeRequest>(data);
    read::<enrolment::TicketRequest>(data);
    read::<enrolment::RenewalRequest>(data);
    read::<recovery::NewRequest>(data);
    read::<recovery::DecisionRequest>(data);
    read::<secrets::SetSecret>(data);
    read::<secrets::PasswordAgain>(data);
    read::<sessions::LoginRequest>(data);
    read::<certificates::BreakGlassRequest>(data);

    if let Ok(list) = serde_json::from_slice::<Vec<Payee>>(data)
        && let Ok(checked) = PayeeList::new(&list, "CNY")
    {
        assert!(checked.count() == list.len() && checked.sum() > 0);
    }
});
