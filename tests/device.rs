//! The device layer with the real worker and a real token.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use opcert::base::clock::Clock;
use opcert::base::key::{KeySpec, Scheme};
use opcert::base::pkcs11::{KeyId, KeyRef, TokenId};
use opcert::base::secret::Pin;
use opcert::device::{
    Config, DeviceError, Devices, KeyUse, LastTry, LoginPolicy, PinSource, TokenState,
};
use opcert::policy::{Permit, Purpose, SELF_TEST_PREFIX, own};

mod support;
use support::softhsm::TestToken;
use support::wait::eventually;

async fn start(token: &TestToken) -> Devices {
    start_with(token, token.config()).await
}

async fn start_with(token: &TestToken, config: Config) -> Devices {
    Devices::start(config, token.directory(), Clock::system())
        .await
        .unwrap()
}

async fn select(devices: &Devices, token: &TestToken) -> TokenId {
    devices.select(&token.uri()).await.unwrap()
}

async fn generate(devices: &Devices, token: &TokenId, spec: KeySpec) -> KeyRef {
    devices
        .generate(token, spec, &KeyId::random(), "test")
        .await
        .unwrap()
        .key
}

fn permit(key: &KeyRef) -> Permit {
    own(key, Purpose::SelfTest).unwrap()
}

fn message(text: &str) -> Vec<u8> {
    [SELF_TEST_PREFIX, text.as_bytes()].concat()
}

async fn sign(devices: &Devices, key: &KeyRef) -> Result<(), DeviceError> {
    let scheme = devices.public_key(key).await?.default_scheme();
    devices
        .sign(permit(key), scheme, &message("hello"))
        .await
        .map(drop)
}

async fn state(devices: &Devices) -> (TokenState, String) {
    let token = devices.tokens().await.remove(0);
    (token.state, token.reason.unwrap_or_default())
}

/// The process ids of this test's own workers for the module `name`.
fn workers(name: &str) -> Vec<i32> {
    let output = Command::new("pgrep")
        .args([
            "-P",
            &std::process::id().to_string(),
            "-f",
            &format!("opcert-worker {name}$"),
        ])
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect()
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// What a merchant's server asks for: sign a request, decrypt a field.
#[tokio::test(flavor = "multi_thread")]
async fn a_merchants_key_signs_requests_and_decrypts_fields() {
    use opcert::policy::{
        Action, Caller, ConsentRule, Decision, PolicySet, Request, WechatPayUse, decide,
    };
    use opcert::wechatpay::v3::{Field, Method, PlatformKeys, RequestMessage};

    let token = TestToken::new("merchant");
    let mut config = token.config();
    config.module[0].name = "test-merchant".into();
    let devices = start_with(&token, config).await;
    let id = select(&devices, &token).await;
    let refused = devices
        .generate_for(
            &id,
            KeySpec::P256,
            KeyUse::SignAndDecrypt,
            &KeyId::random(),
            "m",
        )
        .await;
    assert!(matches!(refused, Err(DeviceError::Unsupported { .. })));
    let key = devices
        .generate_for(
            &id,
            KeySpec::Rsa2048,
            KeyUse::SignAndDecrypt,
            &KeyId::random(),
            "m",
        )
        .await
        .unwrap();
    let now = Clock::system().now();
    let rules = PolicySet::shipped().unwrap();
    let permit = |key: &KeyRef, r#use| {
        let merchant = "1900007291".parse().unwrap();
        let request = Request {
            caller: &Caller::Unix { uid: 0 },
            policy: None,
            key,
            action: Action::WechatPay(&merchant, r#use),
            now,
        };
        let decision = decide(&rules, &request);
        let Decision::Granted(grant) = decision else {
            panic!("granted");
        };
        grant.permit(ConsentRule::None).unwrap()
    };

    let target = "/v3/certificates".parse().unwrap();
    let nonce = opcert::wechatpay::Nonce::random();
    let message = RequestMessage::new(Method::Get, &target, now, nonce, b"", now).unwrap();
    let request = permit(&key.key, WechatPayUse::Request);
    devices
        .sign(request, Scheme::Rs256, message.to_sign())
        .await
        .unwrap();
    let other = permit(&key.key, WechatPayUse::Start);
    let refused = devices.sign(other, Scheme::Rs256, message.to_sign()).await;
    assert!(matches!(refused, Err(DeviceError::WrongPurpose { .. })));

    // The platform encrypts for the merchant's key as we do for the platform's.
    let spki = der::pem::encode_string(
        "PUBLIC KEY",
        der::pem::LineEnding::LF,
        key.public_key.spki(),
    );
    let mut keys = PlatformKeys::new();
    keys.pin_public_key("PUB_KEY_ID_1".parse().unwrap(), &spki.unwrap())
        .unwrap();
    let secret = opcert::base::secret::SecretText::new("张三".into());
    let sealed = keys
        .encrypting(now)
        .unwrap()
        .encrypt_field(&secret)
        .unwrap();
    let Field::Sealed(field) = Field::parse(&sealed).unwrap() else {
        panic!("a ciphertext");
    };
    let decrypt = permit(&key.key, WechatPayUse::Decrypt);
    let plaintext = devices.decrypt(decrypt, field.as_bytes()).await.unwrap();
    assert_eq!(field.finish(&plaintext).unwrap().expose(), "张三");

    let before = workers("test-merchant");
    for hostile in [
        vec![0; 256],
        vec![1; 256],
        vec![0xff; 256],
        vec![1; 10],
        vec![],
    ] {
        let decrypt = permit(&key.key, WechatPayUse::Decrypt);
        let refused = devices.decrypt(decrypt, &hostile).await;
        assert!(
            matches!(refused, Err(DeviceError::Undecryptable { .. })),
            "{refused:?}"
        );
    }
    let request = permit(&key.key, WechatPayUse::Request);
    let refused = devices.decrypt(request, &[1; 256]).await;
    assert!(matches!(refused, Err(DeviceError::WrongPurpose { .. })));
    assert_eq!(workers("test-merchant"), before, "no worker was replaced");

    // A key that was made to sign only does not decrypt.
    let signing = generate(&devices, &id, KeySpec::Rsa2048).await;
    let decrypt = permit(&signing, WechatPayUse::Decrypt);
    assert!(devices.decrypt(decrypt, &[1; 256]).await.is_err());
    devices.shutdown().await;
}

#[tokio::test]
async fn every_kind_of_key_is_generated_proven_and_signs() {
    let token = TestToken::new("kinds");
    let devices = start(&token).await;
    let id = select(&devices, &token).await;
    let status = devices.tokens().await.remove(0);
    assert_eq!(status.state, TokenState::Ready);
    for spec in KeySpec::ALL {
        if !status.generates.contains(&spec) {
            eprintln!("skipped: the token does not generate {spec}");
            continue;
        }
        let label = format!("key {spec}");
        let generated = devices
            .generate(&id, spec, &KeyId::random(), &label)
            .await
            .unwrap();
        assert!(!generated.proof.extractable);
        if generated.proof.waived.is_empty() {
            assert!(generated.proof.local);
        } else {
            eprintln!(
                "skipped: the token does not prove {:?}",
                generated.proof.waived
            );
        }
        let schemes = [
            Scheme::Rs256,
            Scheme::Ps256,
            Scheme::Es256,
            Scheme::Es384,
            Scheme::EdDsa,
        ];
        for scheme in schemes {
            let result = devices
                .sign(permit(&generated.key), scheme, &message("hello"))
                .await;
            if !generated.public_key.family().supports(scheme) {
                assert!(
                    matches!(result, Err(DeviceError::SchemeUnsupported { .. })),
                    "{spec} {scheme}"
                );
            } else if !status.signs.contains(&scheme) {
                eprintln!("skipped: the token does not sign {scheme}");
            } else {
                let signature = result.unwrap();
                let verified = generated
                    .public_key
                    .verify(scheme, &message("hello"), &signature);
                assert_eq!(verified, Ok(()), "{spec} {scheme}");
            }
        }
        let listed = devices.keys(&id).await.unwrap();
        let entry = listed
            .iter()
            .find(|entry| entry.id.as_ref() == Some(&generated.key.id))
            .unwrap();
        assert_eq!(
            (entry.label.as_str(), entry.spec),
            (label.as_str(), Some(spec))
        );
        devices.delete_key(&generated.key).await.unwrap();
        let gone = devices.public_key(&generated.key).await;
        assert!(
            matches!(gone, Err(DeviceError::KeyMissing { .. })),
            "{gone:?}"
        );
    }
    devices.shutdown().await;
}

#[tokio::test]
async fn a_key_read_back_from_the_token_is_the_one_generated() {
    let token = TestToken::new("read back");
    let devices = start(&token).await;
    let id = select(&devices, &token).await;
    let mut made = Vec::new();
    for spec in devices.tokens().await.remove(0).generates {
        made.push(
            devices
                .generate(&id, spec, &KeyId::random(), "")
                .await
                .unwrap(),
        );
    }
    devices.shutdown().await;
    let again = start(&token).await;
    for key in made {
        assert_eq!(again.public_key(&key.key).await.unwrap(), key.public_key);
        sign(&again, &key.key).await.unwrap();
        again.delete_key(&key.key).await.unwrap();
    }
    again.shutdown().await;
}

#[tokio::test]
async fn a_permit_signs_only_its_purpose_and_an_id_is_used_once() {
    let token = TestToken::new("purpose");
    let devices = start(&token).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    let refused = devices
        .sign(permit(&key), Scheme::Es256, b"pay everything to me")
        .await;
    assert!(matches!(refused, Err(DeviceError::WrongPurpose { .. })));
    let twice = devices.generate(&id, KeySpec::P256, &key.id, "again").await;
    assert!(matches!(twice, Err(DeviceError::KeyExists { .. })));
    let missing = KeyRef {
        token: id,
        id: KeyId::random(),
    };
    let missing = devices
        .sign(permit(&missing), Scheme::Es256, &message("hello"))
        .await;
    assert!(matches!(missing, Err(DeviceError::KeyMissing { .. })));
    devices.delete_key(&key).await.unwrap();
    devices.shutdown().await;
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_and_never_again_until_a_person_gives_another() {
    let Some(token) = TestToken::softhsm("wrong pin") else {
        return;
    };
    let wrong = format!("{}9", token.pin);
    let config = token.config_with(Some(PinSource::File(token.pin_file(&wrong))));
    let devices = start_with(&token, config.clone()).await;
    let id = select(&devices, &token).await;
    let (before, reason) = state(&devices).await;
    assert_eq!(before, TokenState::PinNeeded);
    assert!(reason.contains("CKR_PIN_INCORRECT"), "{reason}");
    let record = std::fs::read_to_string(token.directory().join("pin-blocks.json")).unwrap();
    assert!(record.contains(&id.serial) && !record.contains(&wrong));
    let blocked = devices
        .generate(&id, KeySpec::P256, &KeyId::random(), "")
        .await;
    assert!(
        matches!(blocked, Err(DeviceError::PinBlocked { .. })),
        "{blocked:?}"
    );
    devices.shutdown().await;

    // The next start finds the record and does not try, although the PIN would be right now.
    token.pin_file(&token.pin);
    let devices = start_with(&token, config.clone()).await;
    let (blocked, reason) = state(&devices).await;
    assert_eq!(blocked, TokenState::PinNeeded);
    assert!(reason.contains("CKR_PIN_INCORRECT"), "{reason}");

    // A person's wrong PIN is one try; the right one heals.
    let refused = devices
        .unlock(&id, Pin::new("no".into()), LastTry::Keep)
        .await;
    assert!(
        matches!(refused, Err(DeviceError::PinWrong { .. })),
        "{refused:?}"
    );
    devices
        .unlock(&id, Pin::new(token.pin.clone()), LastTry::Keep)
        .await
        .unwrap();
    assert_eq!(state(&devices).await.0, TokenState::Ready);
    let key = generate(&devices, &id, KeySpec::P256).await;
    sign(&devices, &key).await.unwrap();

    // A token that is logged in does not look at PINs, so none is learned from it.
    devices
        .unlock(&id, Pin::new("whatever".into()), LastTry::Keep)
        .await
        .unwrap();
    devices.shutdown().await;

    let devices = start_with(&token, config).await;
    assert_eq!(state(&devices).await.0, TokenState::Ready);
    devices.shutdown().await;
}

#[tokio::test]
async fn a_source_that_proved_wrong_is_not_tried_after_an_unlock() {
    let Some(token) = TestToken::softhsm("stale source") else {
        return;
    };
    let config = token.config_with(Some(PinSource::File(token.pin_file("wrong"))));
    let devices = start_with(&token, config.clone()).await;
    let id = select(&devices, &token).await;
    devices
        .unlock(&id, Pin::new(token.pin.clone()), LastTry::Keep)
        .await
        .unwrap();
    devices.shutdown().await;
    let devices = start_with(&token, config).await;
    let (state, reason) = state(&devices).await;
    assert_eq!(state, TokenState::PinNeeded);
    assert!(reason.contains("another PIN"), "{reason}");
    devices.shutdown().await;
}

#[tokio::test]
async fn a_pin_file_that_others_can_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let token = TestToken::new("open pin");
    let config = token.config();
    let path = token.pin_file(&token.pin);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let devices = start_with(&token, config).await;
    let (state, reason) = state(&devices).await;
    assert_eq!(state, TokenState::PinNeeded);
    assert!(reason.contains("0644"), "{reason}");
    devices.shutdown().await;
}

#[tokio::test]
async fn without_a_pin_source_the_token_waits_for_a_person() {
    let token = TestToken::new("no source");
    let mut config = token.config_with(None);
    config.module[0].name = "test-no-source".into();
    let devices = start_with(&token, config).await;
    let id = select(&devices, &token).await;
    assert_eq!(state(&devices).await.0, TokenState::PinNeeded);
    let refused = devices
        .generate(&id, KeySpec::P256, &KeyId::random(), "")
        .await;
    assert!(matches!(refused, Err(DeviceError::PinNeeded { .. })));
    devices
        .unlock(&id, Pin::new(token.pin.clone()), LastTry::Keep)
        .await
        .unwrap();
    let key = generate(&devices, &id, KeySpec::P256).await;
    // The next worker gets the PIN that worked.
    let [pid] = workers("test-no-source")[..] else {
        panic!("one worker expected");
    };
    kill(pid);
    sign_through_a_restart(&devices, &key).await;
    devices.delete_key(&key).await.unwrap();
    devices.shutdown().await;
}

#[tokio::test]
async fn a_module_that_is_missing_or_no_library_shows_as_down() {
    let token = TestToken::new("missing module");
    for (path, words) in [
        (Path::new("/no/such/module.so"), "there is no file"),
        (Path::new("/etc/hostname"), "cannot be used"),
    ] {
        let mut config = token.config();
        config.module[0].path = path.into();
        let devices = start_with(&token, config).await;
        eventually("down", async || state(&devices).await.0 == TokenState::Down).await;
        let module = devices.modules().await.remove(0);
        assert!(!module.up && module.reason.unwrap().contains(words));
        assert!(devices.select(&token.uri()).await.is_err());
        devices.shutdown().await;
    }
}

#[tokio::test]
async fn an_absent_token_is_found_when_it_comes() {
    let Some(_) = TestToken::softhsm("unused") else {
        return;
    };
    let token = TestToken::softhsm_without_token("late");
    let devices = start(&token).await;
    assert_eq!(state(&devices).await.0, TokenState::Absent);
    token.create();
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    sign(&devices, &key).await.unwrap();
    assert_eq!(state(&devices).await.0, TokenState::Ready);
    devices.shutdown().await;
}

#[tokio::test]
async fn selecting_says_what_is_wrong_with_a_uri() {
    let token = TestToken::new("select");
    let devices = start(&token).await;
    select(&devices, &token).await;
    let unknown = devices.select(&"pkcs11:token=other".parse().unwrap()).await;
    assert!(matches!(unknown, Err(DeviceError::TokenUnknown { .. })));
    devices.shutdown().await;
}

#[tokio::test]
async fn a_killed_worker_is_replaced_and_the_next_signature_works() {
    let token = TestToken::new("killed");
    let mut config = token.config();
    config.module[0].name = "test-killed".into();
    let devices = start_with(&token, config).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    for _ in 0..3 {
        let before = workers("test-killed");
        assert_eq!(before.len(), 1);
        kill(before[0]);
        sign_through_a_restart(&devices, &key).await;
        let after = workers("test-killed");
        assert!(after.len() == 1 && after != before);
    }
    devices.delete_key(&key).await.unwrap();
    devices.shutdown().await;
    eventually("no worker is left", async || {
        workers("test-killed").is_empty()
    })
    .await;
}

/// A call that was under way when the worker died says so; the next one works.
async fn sign_through_a_restart(devices: &Devices, key: &KeyRef) {
    match sign(devices, key).await {
        Ok(()) => {}
        Err(DeviceError::WorkerDied { .. }) => sign(devices, key).await.unwrap(),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_worker_killed_under_load_fails_its_calls_and_no_others() {
    let token = TestToken::new("killed busy");
    let mut config = token.config();
    config.module[0].name = "test-busy".into();
    let devices = start_with(&token, config).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::Rsa2048).await;
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (devices, key) = (devices.clone(), key.clone());
            tokio::spawn(async move { sign(&devices, &key).await })
        })
        .collect();
    tokio::task::yield_now().await;
    kill(workers("test-busy")[0]);
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => {}
            Err(DeviceError::WorkerDied { last_words, .. }) => {
                assert!(last_words.contains("signal 9"), "{last_words}");
            }
            Err(other) => panic!("{other}"),
        }
    }
    sign(&devices, &key).await.unwrap();
    devices.delete_key(&key).await.unwrap();
    devices.shutdown().await;
}

/// Holds the lock that SoftHSM2 takes for every operation, as long as it lives.
struct Hang(Child);

impl Hang {
    fn new(token: &TestToken) -> Self {
        let directory = std::fs::read_dir(token.token_directory())
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        let script = "import fcntl, sys\n\
                      f = open(sys.argv[1], 'r+')\n\
                      fcntl.lockf(f, fcntl.LOCK_EX)\n\
                      print('locked', flush=True)\n\
                      sys.stdin.read()\n";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .arg(directory.path().join("generation"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "locked\n");
        Self(child)
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_hung_token_times_out_and_heals() {
    let Some(token) = TestToken::softhsm("hung") else {
        return;
    };
    let mut config = token.config();
    config.module[0].call_timeout = Duration::from_millis(500);
    let devices = start_with(&token, config).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    sign(&devices, &key).await.unwrap();

    let hang = Hang::new(&token);
    let begin = Instant::now();
    let hung = sign(&devices, &key).await;
    assert!(
        matches!(
            hung,
            Err(DeviceError::Timeout {
                function: "C_Sign",
                ..
            })
        ),
        "{hung:?}"
    );
    assert!(begin.elapsed() < Duration::from_secs(5));
    drop(hang);
    eventually("signs again", async || sign(&devices, &key).await.is_ok()).await;
    assert_eq!(state(&devices).await.0, TokenState::Ready);
    devices.shutdown().await;
}

#[tokio::test]
async fn a_token_that_leaves_is_absent_and_comes_back() {
    let Some(token) = TestToken::softhsm("leaves") else {
        return;
    };
    let devices = start(&token).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    sign(&devices, &key).await.unwrap();
    let (there, away) = (token.token_directory(), token.directory().join("away"));
    std::fs::rename(&there, &away).unwrap();
    std::fs::create_dir(&there).unwrap();
    let gone = sign(&devices, &key).await;
    assert!(
        matches!(gone, Err(DeviceError::TokenAbsent { .. })),
        "{gone:?}"
    );
    std::fs::remove_dir(&there).unwrap();
    std::fs::rename(&away, &there).unwrap();
    eventually("signs again", async || sign(&devices, &key).await.is_ok()).await;
    devices.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_signatures_at_once_all_verify() {
    let token = TestToken::new("many");
    let devices = start(&token).await;
    let id = select(&devices, &token).await;
    let mut keys = Vec::new();
    for spec in devices.tokens().await.remove(0).generates {
        keys.push(generate(&devices, &id, spec).await);
    }
    let tasks: Vec<_> = (0..64)
        .map(|n| {
            let (devices, key) = (devices.clone(), keys[n % keys.len()].clone());
            tokio::spawn(async move {
                for _ in 0..8 {
                    sign(&devices, &key).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    for key in keys {
        devices.delete_key(&key).await.unwrap();
    }
    devices.shutdown().await;
}

#[tokio::test]
async fn generating_and_signing_at_once_disturb_each_other_not() {
    let token = TestToken::new("both");
    let mut config = token.config();
    // One thread, and signatures would expire long before four RSA keys are there.
    config.module[0].threads = Some(1);
    config.module[0].call_timeout = Duration::from_secs(1);
    let devices = start_with(&token, config).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    let generating: Vec<_> = (0..4)
        .map(|_| {
            let (devices, id) = (devices.clone(), id.clone());
            tokio::spawn(async move { generate(&devices, &id, KeySpec::Rsa2048).await })
        })
        .collect();
    while generating.iter().any(|task| !task.is_finished()) {
        sign(&devices, &key).await.unwrap();
    }
    for task in generating {
        devices.delete_key(&task.await.unwrap()).await.unwrap();
    }
    devices.delete_key(&key).await.unwrap();
    devices.shutdown().await;
}

#[tokio::test]
async fn a_certificate_is_written_replaced_read_and_removed() {
    let token = TestToken::new("certificate");
    let devices = start(&token).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    for name in ["first", "second"] {
        let der = certificate(name);
        devices.write_certificate(&key, &der).await.unwrap();
        let found: Vec<_> = devices
            .certificates(&id)
            .await
            .unwrap()
            .into_iter()
            .filter(|certificate| certificate.id == key.id)
            .collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].der, der);
    }
    let large = devices
        .write_certificate(&key, &vec![0x30; 16 * 1024 + 1])
        .await;
    assert!(matches!(large, Err(DeviceError::TooLarge { .. })));
    let malformed = devices.write_certificate(&key, b"no certificate").await;
    assert!(matches!(malformed, Err(DeviceError::MalformedCertificate)));
    devices.delete_key(&key).await.unwrap();
    let left = devices.certificates(&id).await.unwrap();
    assert!(left.iter().all(|certificate| certificate.id != key.id));
    devices.shutdown().await;
}

/// A self-signed certificate of a key that lives nowhere.
fn certificate(name: &str) -> Vec<u8> {
    let output = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args([
            "-nodes",
            "-keyout",
            "/dev/null",
            "-outform",
            "DER",
            "-days",
            "1",
        ])
        .args(["-subj", &format!("/CN={name}")])
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

#[tokio::test]
async fn a_list_of_several_pages_is_complete() {
    let token = TestToken::new("pages");
    let devices = start(&token).await;
    let id = select(&devices, &token).await;
    let mut made = Vec::new();
    // A page has 32.
    for _ in 0..70 {
        made.push(generate(&devices, &id, KeySpec::P256).await);
    }
    devices.shutdown().await;
    // A list whose login ends with each page is complete, too.
    for login in [LoginPolicy::PerOperation, LoginPolicy::Session] {
        let mut config = token.config();
        config.module[0].token[0].login = login;
        let devices = start_with(&token, config).await;
        let listed = devices.keys(&id).await.unwrap();
        for key in &made {
            let times = listed
                .iter()
                .filter(|entry| entry.id.as_ref() == Some(&key.id))
                .count();
            assert_eq!(times, 1);
        }
        sign(&devices, &made[0]).await.unwrap();
        devices.delete_key(&made.remove(0)).await.unwrap();
        devices.shutdown().await;
    }
    let devices = start(&token).await;
    for key in made {
        devices.delete_key(&key).await.unwrap();
    }
    devices.shutdown().await;
}

#[test]
fn the_worker_started_by_hand_says_what_it_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_opcert-worker"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("opcertd")
    );
}

/// SoftHSM2 enforces the attribute itself.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_want_a_login_for_each_use_sign_and_decrypt() {
    let Some(token) = TestToken::softhsm("each use") else {
        return;
    };
    for (kind, id) in [("EC:prime256v1", "0a"), ("rsa:2048", "0b")] {
        let made = Command::new("pkcs11-tool")
            .args(["--module", &token.module.to_string_lossy()])
            .args([
                "--token-label",
                &token.label,
                "--login",
                "--pin",
                &token.pin,
            ])
            .args([
                "--keypairgen",
                "--key-type",
                kind,
                "--id",
                id,
                "--label",
                "made elsewhere",
            ])
            .args(["--usage-sign", "--usage-decrypt", "--always-auth"])
            .envs(&token.environment)
            .output()
            .expect("pkcs11-tool is needed: apt-get install opensc");
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
    }
    let devices = start(&token).await;
    let token_id = select(&devices, &token).await;
    let usual = generate(&devices, &token_id, KeySpec::P256).await;
    let [ec, rsa] = [0x0a, 0x0b].map(|id| KeyRef {
        token: token_id.clone(),
        id: KeyId::from_bytes(vec![id]).unwrap(),
    });
    let listed = devices.keys(&token_id).await.unwrap();
    assert_eq!(listed.len(), 3);
    for entry in listed {
        assert_eq!(
            entry.always_authenticate,
            entry.id.as_ref() != Some(&usual.id)
        );
    }
    let mut signing = tokio::task::JoinSet::new();
    for key in [&ec, &rsa, &usual, &ec, &rsa, &usual, &ec, &rsa] {
        let (devices, key) = (devices.clone(), key.clone());
        signing.spawn(async move { sign(&devices, &key).await });
    }
    while let Some(signed) = signing.join_next().await {
        signed.unwrap().unwrap();
    }
    let opening = || own(&rsa, Purpose::SecretOpening).unwrap();
    let refused = devices.decrypt(opening(), &[1; 256]).await;
    assert!(
        matches!(refused, Err(DeviceError::Undecryptable { .. })),
        "{refused:?}"
    );
    sign(&devices, &rsa).await.unwrap();
    let blocks = std::fs::read_to_string(token.directory().join("pin-blocks.json")).unwrap();
    assert_eq!(blocks.trim(), "[]");
    devices.shutdown().await;
}
