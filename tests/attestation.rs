//! Key attestation, with a maker of our own: openssl issues what a YubiKey shows, and a SoftHSM2
//! token holds it.

use std::path::Path;

use http::Method;
use opcert::api::problem::{Code, Problem};
use opcert::base::clock::Clock;
use opcert::base::encoding::from_base64;
use opcert::base::key::KeySpec;
use opcert::base::x509::Certificate;
use opcert::device::{AttestationConfig, Devices};
use opcert::enrol::attestation::{Attestation, attest};
use serde_json::{Value, json};

mod support;
use support::daemon::{Daemon, drop_in};
use support::devices::{generate, select, start};
use support::maker::Maker;
use support::service::Service;
use support::softhsm::TestToken;

const ORIGIN: &str = "https://pay.example";

/// Devices whose token is to attest to `authorities`.
async fn devices(token: &TestToken, authorities: &[&Path], required: bool) -> Devices {
    let mut config = token.config();
    config.module[0].token[0].attestation = Some(AttestationConfig {
        authorities: authorities.iter().map(|path| (*path).to_owned()).collect(),
        required,
    });
    start(token, config).await
}

#[tokio::test]
async fn a_chain_that_ends_at_a_configured_authority_is_found_and_read() {
    let Some(token) = TestToken::softhsm("attested") else {
        return;
    };
    let (maker, other) = (Maker::new(), Maker::new());
    let devices = devices(
        &token,
        &[&other.path("root.pem"), &maker.path("root.pem")],
        true,
    )
    .await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    let public_key = devices.public_key(&key).await.unwrap();
    let attested = async || attest(&devices, &key, &public_key, Clock::system().now()).await;

    // Nothing yet, then the key's certificate without the device's.
    let refused = attested().await.unwrap_err();
    assert_eq!(Problem::from(refused).code(), Code::KeyNotAttested);
    let leaf = maker.attests(&public_key);
    devices.write_certificate(&key, leaf.der()).await.unwrap();
    assert!(attested().await.is_err());

    maker.put_device(&token);
    let found = attested().await.unwrap().unwrap();
    let chain: Vec<_> = found
        .chain
        .iter()
        .map(|text| Certificate::from_der(&from_base64(text.as_bytes()).unwrap()).unwrap())
        .collect();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[0].der(), leaf.der());
    assert_eq!(chain[0].issuer(), chain[1].subject());
    let device = &found.device;
    assert_eq!(device.firmware.as_deref(), Some("5.4.3"));
    assert_eq!(device.serial.as_deref(), Some("12345678"));
    assert_eq!(device.pin_policy.as_deref(), Some("once"));
    assert_eq!(device.touch_policy.as_deref(), Some("never"));

    // It survives its way through an enrolment's file.
    let text = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Attestation>(&text).unwrap(), found);

    // Another key is not attested by it.
    let second = generate(&devices, &id, KeySpec::P256).await;
    let its_public_key = devices.public_key(&second).await.unwrap();
    let now = Clock::system().now();
    assert!(
        attest(&devices, &second, &its_public_key, now)
            .await
            .is_err()
    );

    // Nor is this one after the chain has ended.
    let later = now + jiff::SignedDuration::from_hours(24 * 3651);
    assert!(attest(&devices, &key, &public_key, later).await.is_err());
    devices.shutdown().await;
}

#[tokio::test]
async fn a_chain_of_another_maker_counts_for_nothing() {
    let Some(token) = TestToken::softhsm("other maker") else {
        return;
    };
    let (maker, other) = (Maker::new(), Maker::new());
    maker.put_device(&token);
    let optional = devices(&token, &[&other.path("root.pem")], false).await;
    let id = select(&optional, &token).await;
    let key = generate(&optional, &id, KeySpec::P256).await;
    let public_key = optional.public_key(&key).await.unwrap();
    let leaf = maker.attests(&public_key);
    optional.write_certificate(&key, leaf.der()).await.unwrap();
    // The same names, another key: the signature decides.
    let now = Clock::system().now();
    let found = attest(&optional, &key, &public_key, now).await.unwrap();
    assert_eq!(found, None);
    optional.shutdown().await;

    // A file that is no list of certificates is an error, not a token without attestation.
    let damaged = maker.path("damaged.pem");
    std::fs::write(&damaged, "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    let devices = devices(&token, &[&damaged], false).await;
    select(&devices, &token).await;
    assert!(attest(&devices, &key, &public_key, now).await.is_err());
    devices.shutdown().await;
}

#[tokio::test]
async fn nobody_is_asked_where_no_authority_is_configured() {
    let token = TestToken::new("no maker");
    let devices = start(&token, token.config()).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    let public_key = devices.public_key(&key).await.unwrap();
    let found = attest(&devices, &key, &public_key, Clock::system().now()).await;
    assert_eq!(found.unwrap(), None);
    devices.delete_key(&key).await.unwrap();
    devices.shutdown().await;
}

/// The whole way: no certification request leaves, and the key is gone.
#[test]
fn an_enrolment_that_needs_an_attestation_is_refused_without_one() {
    let Some(token) = TestToken::softhsm("unattested") else {
        return;
    };
    let maker = Maker::new();
    let text = format!(
        "[[module]]\nname = \"test\"\n[[module.token]]\nuri = \"{}\"\n\
         attestation = {{ authorities = [{:?}], required = true }}\n",
        token.uri(),
        maker.path("root.pem"),
    );
    drop_in(token.directory(), "attestation.toml", &text);
    let daemon = Daemon::start(&token);
    let service = Service::new(ORIGIN);
    assert_eq!(
        daemon.begin(&service, "alice", "p256").code(),
        "key-not-attested"
    );
    let pending = daemon
        .control(Method::GET, "/v1/enrolments", &Value::Null)
        .ok();
    assert_eq!(pending["enrolments"], json!([]));
    let listed = token.pkcs11_tool().arg("--list-objects").output().unwrap();
    assert!(listed.status.success());
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "");
}
