//! Devices in tests: start them, sign, look at their state and their workers.

use std::process::Command;
use std::time::Duration;

use opcert::base::clock::Clock;
use opcert::base::key::KeySpec;
use opcert::base::pkcs11::{KeyId, KeyRef, TokenId};
use opcert::device::{Config, DeviceError, Devices, TokenState};
use opcert::policy::{Permit, Purpose, SELF_TEST_PREFIX, own};

use super::softhsm::TestToken;

/// Starts devices whose state directory is the token's.
pub async fn start(token: &TestToken, config: Config) -> Devices {
    Devices::start(config, token.directory(), Clock::system())
        .await
        .expect("devices")
}

/// The one token.
pub async fn select(devices: &Devices, token: &TestToken) -> TokenId {
    devices.select(&token.uri()).await.expect("the token")
}

/// A new key.
pub async fn generate(devices: &Devices, token: &TokenId, spec: KeySpec) -> KeyRef {
    devices
        .generate(token, spec, &KeyId::random(), "test")
        .await
        .expect("a key")
        .key
}

/// Leave to sign a test message.
pub fn permit(key: &KeyRef) -> Permit {
    own(key, Purpose::SelfTest).expect("a permit")
}

/// A message that [`permit`] allows.
pub fn message(text: &str) -> Vec<u8> {
    [SELF_TEST_PREFIX, text.as_bytes()].concat()
}

/// Signs a message, and verifies the signature once more.
pub async fn sign(devices: &Devices, key: &KeyRef) -> Result<(), DeviceError> {
    let public_key = devices.public_key(key).await?;
    let scheme = public_key.default_scheme();
    let message = message("hello");
    let signature = devices.sign(permit(key), scheme, &message).await?;
    public_key
        .verify(scheme, &message, &signature)
        .expect("only signatures that verify come out");
    Ok(())
}

/// State and reason of the first token.
pub async fn state(devices: &Devices) -> (TokenState, String) {
    let token = devices.tokens().await.remove(0);
    (token.state, token.reason.unwrap_or_default())
}

/// The process ids of this test's own workers for the module `name`.
pub fn workers(name: &str) -> Vec<i32> {
    let output = Command::new("pgrep")
        .args([
            "-P",
            &std::process::id().to_string(),
            "-f",
            &format!("opcert-worker {name}$"),
        ])
        .output()
        .expect("pgrep");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.parse().expect("a process id"))
        .collect()
}

/// Calls `check` until it says yes; fails after half a minute, as faults take their time.
pub async fn eventually(what: &str, check: impl AsyncFnMut() -> bool) {
    super::wait::within(Duration::from_secs(30), what, check).await;
}
