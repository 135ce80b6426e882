//! The device layer through every mishap that the faulty module can cause.

use std::time::{Duration, Instant};

use cryptoki_sys::*;
use opcert::base::key::{KeySpec, Scheme};
use opcert::base::pkcs11::{KeyId, KeyRef, TokenId};
use opcert::base::secret::Pin;
use opcert::device::{
    Config, DeviceError, Devices, LastTry, LoginPolicy, PinSource, TokenState, Waiver,
};
use opcert::policy::{Caller, ConsentRule, Decision, Permit, Purpose, decide_own};
use opcert::telemetry::metrics::metrics;

mod support;
use support::devices::{
    eventually, generate, message, permit, select, sign, start, state, workers,
};
use support::faulty::{Faulty, Handles, Slots};
use support::softhsm::TestToken;

/// A token behind the faulty module, its devices, and a key.
struct Rig {
    token: TestToken,
    faulty: Faulty,
    config: Config,
    devices: Devices,
    id: TokenId,
    key: KeyRef,
}

impl Rig {
    /// `None` where the tests run against another module than SoftHSM2. `name` names the module.
    async fn new(name: &str) -> Option<Self> {
        Self::with(name, |_, _| ()).await
    }

    /// The same, with something said to the module, or about it, before it is loaded.
    async fn with(name: &str, prepare: impl FnOnce(&Faulty, &mut Config)) -> Option<Self> {
        let token = TestToken::softhsm(name)?;
        let faulty = Faulty::new(&token);
        let mut config = faulty_config(&token, &faulty, name);
        prepare(&faulty, &mut config);
        let devices = start(&token, config.clone()).await;
        let id = select(&devices, &token).await;
        let key = generate(&devices, &id, KeySpec::P256).await;
        sign(&devices, &key).await.expect("a first signature");
        Some(Self {
            token,
            faulty,
            config,
            devices,
            id,
            key,
        })
    }

    async fn sign(&self) -> Result<(), DeviceError> {
        sign(&self.devices, &self.key).await
    }

    async fn heals(&self) {
        heals(&self.devices, &self.key).await;
    }

    async fn restart(&mut self) {
        self.devices.shutdown().await;
        self.devices = start(&self.token, self.config.clone()).await;
    }

    /// The fault ends, a person gives the PIN, and the key signs again.
    async fn mended_by_a_person(self) {
        self.faulty.heal();
        let pin = self.token.pin.clone();
        self.unlock(&pin).await.expect("a person's PIN");
        self.sign().await.expect("a signature");
        self.devices.shutdown().await;
    }

    async fn unlock(&self, pin: &str) -> Result<(), DeviceError> {
        self.devices
            .unlock(&self.id, Pin::new(pin.into()), LastTry::Keep)
            .await
            .map(drop)
    }

    fn starts(&self) -> usize {
        self.faulty.calls("C_Initialize")
    }

    /// How many PIN tries were spent, or may have been.
    fn spent(&self) -> usize {
        spent(&self.faulty)
    }
}

/// Waits until the key signs again.
async fn heals(devices: &Devices, key: &KeyRef) {
    eventually("the key signs again", async || {
        let signed = sign(devices, key).await;
        signed
            .inspect_err(|error| println!("not yet: {error}"))
            .is_ok()
    })
    .await;
}

fn spent(faulty: &Faulty) -> usize {
    let logins = faulty.logins();
    logins.iter().filter(|login| login.may_have_spent()).count()
}

fn faulty_config(token: &TestToken, faulty: &Faulty, name: &str) -> Config {
    let mut config = token.config();
    faulty.configure(&mut config);
    config.module[0].name = name.into();
    config.module[0].threads = Some(2);
    config
}

/// Return values that an operation gets over by itself.
#[tokio::test]
async fn what_can_be_renewed_is_renewed_once_and_nobody_notices() {
    let Some(rig) = Rig::new("renewed").await else {
        return;
    };
    for (function, code) in [
        ("C_SignInit", CKR_KEY_HANDLE_INVALID),
        ("C_SignInit", CKR_OBJECT_HANDLE_INVALID),
        ("C_Sign", CKR_KEY_HANDLE_INVALID),
        ("C_SignInit", CKR_SESSION_HANDLE_INVALID),
        ("C_SignInit", CKR_SESSION_CLOSED),
        ("C_SignInit", CKR_OPERATION_ACTIVE),
        ("C_Sign", CKR_OPERATION_NOT_INITIALIZED),
        ("C_SignInit", CKR_USER_NOT_LOGGED_IN),
        ("C_Sign", CKR_USER_NOT_LOGGED_IN),
    ] {
        rig.faulty.next(function, code, 1);
        let result = rig.sign().await;
        assert!(result.is_ok(), "{function} {code:#x}: {result:?}");
        rig.faulty.heal();
    }
    assert_eq!(rig.starts(), 1);
    assert_eq!(rig.spent(), 0, "{:?}", rig.faulty.logins());
    rig.devices.shutdown().await;
}

/// A return value that stays gets its rungs once each and ends in an error that names it.
#[tokio::test]
async fn what_cannot_be_renewed_is_an_error_that_names_function_and_code() {
    let Some(rig) = Rig::new("not renewed").await else {
        return;
    };
    for (function, code, name) in [
        (
            "C_SignInit",
            CKR_KEY_HANDLE_INVALID,
            "CKR_KEY_HANDLE_INVALID",
        ),
        ("C_SignInit", CKR_SESSION_CLOSED, "CKR_SESSION_CLOSED"),
        (
            "C_SignInit",
            CKR_USER_NOT_LOGGED_IN,
            "CKR_USER_NOT_LOGGED_IN",
        ),
        ("C_SignInit", CKR_MECHANISM_INVALID, "CKR_MECHANISM_INVALID"),
        ("C_Sign", CKR_FUNCTION_CANCELED, "CKR_FUNCTION_CANCELED"),
        ("C_Sign", CKR_DEVICE_ERROR, "CKR_DEVICE_ERROR"),
        ("C_Sign", 0x8000_0123, "CKR_VENDOR_DEFINED+0x123"),
    ] {
        let fault = rig.faulty.on(function).returns(code);
        let calls = rig.faulty.calls(function);
        match rig.sign().await {
            Err(DeviceError::Pkcs11 {
                function: named,
                code,
                ..
            }) => assert_eq!((named.as_str(), code.as_str()), (function, name)),
            other => panic!("{function} {name}: {other:?}"),
        }
        assert!(rig.faulty.calls(function) - calls <= 2, "{name}");
        rig.faulty.lift(&fault);
        rig.heals().await;
    }
    assert_eq!(rig.spent(), 0, "{:?}", rig.faulty.logins());
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn an_unwell_library_is_replaced() {
    let Some(rig) = Rig::new("unwell").await else {
        return;
    };
    // Some need C_Initialize again before they work at all, so each stays until the next start.
    let fault = rig
        .faulty
        .on("C_SignInit,C_Sign,C_OpenSession")
        .returns(CKR_GENERAL_ERROR);
    let failed = rig.sign().await;
    assert!(
        matches!(failed, Err(DeviceError::Pkcs11 { .. })),
        "{failed:?}"
    );
    eventually("replaced", async || rig.starts() == 2).await;
    rig.faulty.lift(&fault);
    rig.heals().await;
    assert_eq!(state(&rig.devices).await.0, TokenState::Ready);
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn sessions_that_expire_and_logins_that_end_are_renewed() {
    let Some(rig) = Rig::new("expired").await else {
        return;
    };
    for round in 1..=3 {
        rig.faulty.expire_sessions();
        rig.sign().await.expect("after the sessions were closed");
        rig.faulty.log_out();
        rig.sign().await.expect("after the user was logged out");
        assert!(rig.faulty.logins().len() <= 1 + 2 * round);
    }
    // Everything else is renewed too.
    rig.faulty.expire_sessions();
    assert_eq!(rig.devices.keys(&rig.id).await.expect("keys").len(), 1);
    rig.faulty.log_out();
    generate(&rig.devices, &rig.id, KeySpec::P256).await;
    rig.faulty.idle(Duration::from_millis(50));
    for _ in 0..3 {
        // Being idle is what is tested, and longer than the 50 ms that the sessions last.
        tokio::time::sleep(Duration::from_millis(100)).await;
        rig.sign().await.expect("after the sessions died idle");
    }
    assert_eq!(rig.starts(), 1);
    assert_eq!(rig.spent(), 0);
    rig.devices.shutdown().await;
}

/// A person is not sent for where a PIN would not help.
#[tokio::test]
async fn a_token_that_does_not_stay_logged_in_is_told_of_as_that() {
    let Some(rig) = Rig::new("logged out").await else {
        return;
    };
    // It says that it is logged in, and is not.
    rig.faulty.on("C_Login").returns(CKR_OK);
    rig.faulty.log_out();
    let refused = rig.sign().await;
    assert!(
        matches!(refused, Err(DeviceError::LoggedOut { .. })),
        "{refused:?}"
    );
    rig.faulty.heal();
    rig.heals().await;
    assert_eq!(state(&rig.devices).await.0, TokenState::Ready);
    assert_eq!(rig.spent(), 0);
    rig.devices.shutdown().await;
}

/// A login that failed before the PIN reached the token spends no try, and is made again.
#[tokio::test]
async fn a_login_that_does_not_reach_the_token_is_made_again() {
    let Some(rig) = Rig::new("login fails").await else {
        return;
    };
    let logins = || rig.faulty.logins().len();
    for _ in 0..3 {
        let before = logins();
        // The session that was good a moment ago is gone when the call comes to it.
        let fault = rig.faulty.on("C_Login").hangs();
        rig.faulty.log_out();
        let (signed, ()) = tokio::join!(rig.sign(), async {
            eventually("a login", async || logins() > before).await;
            rig.faulty.expire_sessions();
            rig.faulty.lift(&fault);
        });
        // One more login within the same call, or the next call, brings it back.
        if let Err(error) = signed {
            assert!(
                matches!(
                    error,
                    DeviceError::Pkcs11 { .. } | DeviceError::LoggedOut { .. }
                ),
                "{error:?}"
            );
        }
        rig.heals().await;
        assert_eq!(state(&rig.devices).await.0, TokenState::Ready);
        assert!(logins() > before + 1);
    }
    let told: Vec<_> = rig.faulty.logins();
    let failed = told.iter().filter(|login| !login.succeeded());
    assert!(
        failed.clone().count() >= 3
            && failed
                .clone()
                .all(|login| login.code == Some(CKR_SESSION_HANDLE_INVALID)),
        "{told:?}"
    );
    assert_eq!(rig.spent(), 0);
    rig.devices.shutdown().await;
}

/// A code that says that the PIN did not reach the token is not believed where the session that
/// it calls invalid works, or the token that it calls absent answers. Whatever was returned, and
/// whether or not the token looked: it is not tried again.
#[tokio::test]
async fn a_login_is_not_made_again_on_the_word_of_a_code() {
    let Some(mut rig) = Rig::new("login lies").await else {
        return;
    };
    let pin = rig.token.pin.clone();
    for (number, code) in [
        CKR_SESSION_HANDLE_INVALID,
        CKR_TOKEN_NOT_PRESENT,
        CKR_CRYPTOKI_NOT_INITIALIZED,
        CKR_USER_ANOTHER_ALREADY_LOGGED_IN,
        CKR_USER_PIN_NOT_INITIALIZED,
        CKR_SESSION_CLOSED,
        CKR_DEVICE_REMOVED,
        CKR_FUNCTION_CANCELED,
    ]
    .into_iter()
    .enumerate()
    {
        let before = rig.faulty.logins().len();
        match number % 3 {
            0 => rig.faulty.lie_of_right_pin(code),
            1 => drop(rig.faulty.on("C_Login").returns_after(code)),
            _ => drop(rig.faulty.on("C_Login").returns(code)),
        }
        rig.faulty.log_out();
        for _ in 0..3 {
            assert!(rig.sign().await.is_err(), "{code:#x}");
        }
        assert_eq!(state(&rig.devices).await.0, TokenState::PinNeeded);
        if number == 0 {
            rig.restart().await;
        }
        assert!(
            matches!(rig.sign().await, Err(DeviceError::PinBlocked { .. })),
            "{code:#x}"
        );
        assert_eq!(rig.faulty.logins().len(), before + 1, "{code:#x}");
        rig.faulty.heal();
        // Some of the lies did log in; a PIN given then would not be looked at.
        rig.faulty.log_out();
        rig.unlock(&pin).await.expect("a person's PIN");
        rig.sign().await.expect("a signature");
    }
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn fewer_sessions_than_wanted_are_enough() {
    for (name, cap, reported) in [
        ("one session", 1, false),
        ("two sessions", 2, true),
        ("three sessions", 3, false),
    ] {
        let Some(token) = TestToken::softhsm(name) else {
            return;
        };
        let faulty = Faulty::new(&token);
        if reported {
            faulty.cap_sessions(cap);
        } else {
            faulty.cap_sessions_silently(cap);
        }
        let mut config = faulty_config(&token, &faulty, name);
        config.module[0].threads = Some(4);
        let devices = start(&token, config).await;
        let id = select(&devices, &token).await;
        let key = generate(&devices, &id, KeySpec::P256).await;
        let tasks: Vec<_> = (0..32)
            .map(|_| {
                let (devices, key) = (devices.clone(), key.clone());
                tokio::spawn(async move { sign(&devices, &key).await })
            })
            .collect();
        for task in tasks {
            task.await
                .expect("a task")
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        // Once it is known that there are no more, they are not asked for at every signature.
        let opened = faulty.calls("C_OpenSession");
        for _ in 0..20 {
            sign(&devices, &key).await.expect("a signature");
        }
        let asked = faulty.calls("C_OpenSession") - opened;
        assert!(asked <= 4, "{name}: {asked} more sessions were asked for");
        assert_eq!(faulty.calls("C_Initialize"), 1, "{name}");
        devices.shutdown().await;
    }
}

#[tokio::test]
async fn a_token_is_taken_out_and_put_back_elsewhere() {
    let Some(rig) = Rig::new("replug").await else {
        return;
    };
    for (slots, handles) in [
        (Slots::Same, Handles::Invalid),
        (Slots::New, Handles::Invalid),
        (Slots::Same, Handles::Swapped),
        (Slots::New, Handles::Swapped),
    ] {
        // Another key, which an old handle may come to mean.
        let other = generate(&rig.devices, &rig.id, KeySpec::P256).await;
        sign(&rig.devices, &other).await.expect("the other key");
        rig.faulty.remove();
        let gone = rig.sign().await;
        assert!(
            matches!(gone, Err(DeviceError::TokenAbsent { .. })),
            "{slots:?} {handles:?}: {gone:?}"
        );
        assert_eq!(state(&rig.devices).await.0, TokenState::Absent);
        rig.faulty.insert(slots, handles);
        for key in [&rig.key, &other] {
            heals(&rig.devices, key).await;
        }
        assert_eq!(state(&rig.devices).await.0, TokenState::Ready);
    }
    assert_eq!(rig.spent(), 0);
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn removal_and_insertion_show_without_a_request() {
    let Some(rig) = Rig::new("shows").await else {
        return;
    };
    let mut changes = rig.devices.changes();
    let mut becomes = async |expected: TokenState| {
        let wait = async { while changes.next().await.expect("tokens")[0].state != expected {} };
        tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .unwrap_or_else(|_| panic!("not in time: {expected:?}"));
    };
    rig.faulty.remove();
    becomes(TokenState::Absent).await;
    rig.faulty.insert(Slots::New, Handles::Swapped);
    becomes(TokenState::Ready).await;
    rig.sign().await.expect("the first request");
    // A login that is lost comes back too.
    let logins = || {
        let all = rig.faulty.logins();
        all.iter().filter(|login| login.succeeded()).count()
    };
    let before = logins();
    rig.faulty.expire_sessions();
    eventually("logged in again", async || logins() > before).await;
    assert_eq!(rig.spent(), 0);
    rig.devices.shutdown().await;
    assert!(changes.next().await.is_none());
}

/// How often a token came or left, by what made it noticed.
fn noticed(module: &str, by: &'static str) -> u64 {
    metrics().module(module).token_changes.of(by).get()
}

/// Pulls the token out and puts it back `times` over; it is absent, and then ready, each time.
async fn pull_and_put_back(rig: &Rig, times: usize) {
    let mut changes = rig.devices.changes();
    let mut becomes = async |expected: TokenState| {
        let wait = async { while changes.next().await.expect("tokens")[0].state != expected {} };
        tokio::time::timeout(Duration::from_secs(30), wait)
            .await
            .unwrap_or_else(|_| panic!("not in time: {expected:?}"));
    };
    for _ in 0..times {
        rig.faulty.remove();
        becomes(TokenState::Absent).await;
        rig.faulty.insert(Slots::New, Handles::Swapped);
        becomes(TokenState::Ready).await;
    }
    rig.sign().await.expect("the next request");
}

#[tokio::test]
async fn a_change_is_noticed_by_the_librarys_event_or_else_by_a_poll() {
    const TIMES: usize = 5;
    let told = "tells of its slots";
    let rig = Rig::with(told, |faulty, _| faulty.events()).await;
    let polled = Rig::with("does not tell of its slots", |_, _| ()).await;
    let forbidden = Rig::with("is not asked of its slots", |faulty, config| {
        faulty.events();
        config.module[0].slot_events = false;
    })
    .await;
    let (Some(rig), Some(polled), Some(forbidden)) = (rig, polled, forbidden) else {
        return;
    };
    assert!(rig.devices.modules().await[0].slot_events);
    pull_and_put_back(&rig, TIMES).await;
    let (event, poll) = (noticed(told, "event"), noticed(told, "poll"));
    // A poll, every five seconds, may come first now and then.
    assert_eq!(event + poll, 2 * TIMES as u64);
    assert!(event > poll, "{event} by events, {poll} by polls");
    assert_eq!(rig.faulty.calls("C_Initialize"), 1);
    // The wait holds up neither a release nor the next worker nor the end.
    rig.devices.release(&rig.id).await.expect("released");
    eventually("its worker has ended", async || workers(told).is_empty()).await;
    rig.sign().await.expect("taken up again");
    pull_and_put_back(&rig, 1).await;
    assert!(noticed(told, "event") > event);
    rig.devices.shutdown().await;
    eventually("its worker has ended", async || workers(told).is_empty()).await;

    for (rig, name) in [
        (polled, "does not tell of its slots"),
        (forbidden, "is not asked of its slots"),
    ] {
        assert!(!rig.devices.modules().await[0].slot_events);
        pull_and_put_back(&rig, 1).await;
        assert_eq!(noticed(name, "event"), 0);
        assert_eq!(noticed(name, "poll"), 2);
        assert_eq!(
            rig.faulty.log().matches("wait C_WaitForSlotEvent").count(),
            0
        );
        rig.devices.shutdown().await;
    }
}

#[tokio::test]
async fn a_library_that_locks_itself_up_while_it_waits_is_polled() {
    let name = "locks itself up";
    let Some(rig) = Rig::with(name, |faulty, config| {
        faulty.events_behind_a_lock();
        config.module[0].call_timeout = Duration::from_secs(2);
    })
    .await
    else {
        return;
    };
    // One worker hung and was killed, the next one is not asked to wait.
    assert_eq!(
        rig.faulty.log().matches("wait C_WaitForSlotEvent").count(),
        1
    );
    assert!(!rig.devices.modules().await[0].slot_events);
    pull_and_put_back(&rig, 1).await;
    assert_eq!(noticed(name, "poll"), 2);
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn what_a_person_mends_with_the_vendors_tool_is_noticed() {
    let Some(token) = TestToken::softhsm("mended") else {
        return;
    };
    let faulty = Faulty::new(&token);
    let devices = {
        faulty.pin_tries(3, 2);
        start(&token, faulty_config(&token, &faulty, "mended")).await
    };
    select(&devices, &token).await;
    assert_eq!(state(&devices).await.0, TokenState::FinalTry);
    faulty.pin_tries(3, 3);
    eventually("locked", async || {
        state(&devices).await.0 == TokenState::LockedOut
    })
    .await;
    faulty.pin_tries(3, 0);
    eventually("ready", async || {
        state(&devices).await.0 == TokenState::Ready
    })
    .await;
    assert_eq!(faulty.logins().len(), 1);
    devices.shutdown().await;
}

#[tokio::test]
async fn a_replug_between_two_requests_is_not_noticed() {
    let Some(rig) = Rig::new("quick replug").await else {
        return;
    };
    let other = generate(&rig.devices, &rig.id, KeySpec::P256).await;
    sign(&rig.devices, &other).await.expect("the other key");
    for (slots, handles) in [
        (Slots::Same, Handles::Invalid),
        (Slots::New, Handles::Invalid),
        (Slots::Same, Handles::Swapped),
        (Slots::New, Handles::Swapped),
    ] {
        rig.faulty.insert(slots, handles);
        for key in [&rig.key, &other, &rig.key] {
            let result = sign(&rig.devices, key).await;
            assert!(result.is_ok(), "{slots:?} {handles:?}: {result:?}");
        }
    }
    assert_eq!(rig.spent(), 0);
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_wrong_signature_is_never_handed_out() {
    let Some(rig) = Rig::new("flips").await else {
        return;
    };
    let fault = rig.faulty.on("C_Sign").flips(77);
    for _ in 0..3 {
        let wrong = rig.sign().await;
        assert!(
            matches!(wrong, Err(DeviceError::BadSignature { .. })),
            "{wrong:?}"
        );
    }
    rig.faulty.lift(&fault);
    rig.heals().await;
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_call_that_hangs_is_killed_and_other_modules_do_not_notice() {
    let Some(token) = TestToken::softhsm("hangs") else {
        return;
    };
    let faulty = Faulty::new(&token);
    let mut config = faulty_config(&token, &faulty, "hangs");
    config.module[0].call_timeout = Duration::from_secs(2);
    config.module[0].generate_timeout = Duration::from_secs(2);
    let other = TestToken::softhsm("steady").expect("SoftHSM2");
    let mut steady = other.config().module.remove(0);
    steady.name = "steady".into();
    config.module.push(steady);
    let devices = start(&token, config).await;
    let id = select(&devices, &token).await;
    let key = generate(&devices, &id, KeySpec::P256).await;
    let steady = generate(&devices, &select(&devices, &other).await, KeySpec::P256).await;
    for (function, subject) in [
        ("C_SignInit", "C_Sign"),
        ("C_Sign", "C_Sign"),
        ("C_GenerateKeyPair", "C_GenerateKeyPair"),
    ] {
        let hang = faulty.on(function).times(1).hangs();
        let hung = {
            let (devices, key, id) = (devices.clone(), key.clone(), id.clone());
            tokio::spawn(async move {
                if function == "C_GenerateKeyPair" {
                    let spec = KeySpec::P256;
                    let made = devices.generate(&id, spec, &KeyId::random(), "").await;
                    made.map(drop)
                } else {
                    sign(&devices, &key).await
                }
            })
        };
        let begin = Instant::now();
        while !hung.is_finished() {
            sign(&devices, &steady).await.expect("the other module");
            assert!(begin.elapsed() < Duration::from_secs(20));
        }
        match hung.await.expect("a task") {
            Err(DeviceError::Timeout { function, .. }) => assert_eq!(function, subject),
            other => panic!("{function}: {other:?}"),
        }
        faulty.lift(&hang);
        heals(&devices, &key).await;
    }
    assert_eq!(spent(&faulty), 0);
    devices.shutdown().await;
}

#[tokio::test]
async fn a_library_that_hangs_at_its_start_is_down_and_comes_back() {
    let Some(rig) = Rig::new("hangs at start").await else {
        return;
    };
    let mut config = rig.config.clone();
    config.module[0].call_timeout = Duration::from_secs(1);
    rig.devices.shutdown().await;
    for function in [
        "C_Initialize",
        "C_GetInfo",
        "C_GetSlotList",
        "C_GetTokenInfo",
    ] {
        let hang = rig.faulty.on(function).hangs();
        let devices = start(&rig.token, config.clone()).await;
        eventually("down", async || state(&devices).await.0 == TokenState::Down).await;
        let refused = sign(&devices, &rig.key).await;
        assert!(
            matches!(refused, Err(DeviceError::ModuleDown { .. })),
            "{function}: {refused:?}"
        );
        rig.faulty.lift(&hang);
        heals(&devices, &rig.key).await;
        devices.shutdown().await;
    }
}

#[tokio::test]
async fn a_library_that_ends_its_process_is_started_again() {
    let Some(rig) = Rig::new("ends").await else {
        return;
    };
    for (what, words) in [
        ("segfault", "signal 11"),
        ("abort", "signal 6"),
        ("exit 0", "status 0"),
        ("exit 3", "status 3"),
    ] {
        let once = || rig.faulty.on("C_Sign").times(1);
        match what {
            "segfault" => once().segfaults(),
            "abort" => once().aborts(),
            "exit 0" => once().exits(0),
            _ => once().exits(3),
        };
        match rig.sign().await {
            Err(DeviceError::WorkerDied { last_words, .. }) => {
                assert!(last_words.contains(words), "{what}: {last_words}");
            }
            other => panic!("{what}: {other:?}"),
        }
        rig.sign().await.expect("by the next worker");
    }
    assert_eq!(rig.spent(), 0);
    assert_eq!(workers("ends").len(), 1);
    rig.devices.shutdown().await;
    eventually("no worker is left", async || workers("ends").is_empty()).await;
}

/// OpenSC's spy without a module to spy on, as some vendors' libraries without their daemon.
#[tokio::test]
async fn a_library_whose_interface_cannot_be_had_is_down_and_says_so() {
    let spy = std::path::Path::new("/usr/lib/x86_64-linux-gnu/pkcs11-spy.so");
    let Some(token) = TestToken::softhsm("no interface") else {
        return;
    };
    if !spy.exists() {
        println!("skipped: {} is not installed", spy.display());
        return;
    }
    let mut config = token.config();
    config.module[0].path = spy.to_owned();
    config.module[0].environment.clear();
    config.module[0].allow = vec![opcert::device::Allowance::Forwarder];
    let devices = start(&token, config).await;
    eventually("down", async || state(&devices).await.0 == TokenState::Down).await;
    let module = devices.modules().await.remove(0);
    let reason = module.reason.expect("a reason");
    assert!(
        reason.contains("C_GetInterface failed with CKR_"),
        "{reason}"
    );
    devices.shutdown().await;
}

#[tokio::test]
async fn a_library_that_says_it_was_started_before_is_used() {
    let rig = Rig::with("started before", |faulty, _| {
        let codes = faulty.on("C_Initialize").times(1);
        codes.returns_after(CKR_CRYPTOKI_ALREADY_INITIALIZED);
    });
    let Some(rig) = rig.await else {
        return;
    };
    assert_eq!(rig.starts(), 1);
    rig.devices.shutdown().await;
}

/// Providers of OpenSSL that are PKCS#11 clients would enter the library again, and variables of
/// libraries have PINs logged: none of ours reaches them.
#[tokio::test]
async fn a_worker_has_the_environment_that_is_configured_and_no_other() {
    let Some(rig) = Rig::new("clean environment").await else {
        return;
    };
    let [worker] = workers("clean environment")[..] else {
        panic!("one worker");
    };
    let path = format!("/proc/{worker}/environ");
    let Ok(environment) = std::fs::read(&path) else {
        // An undumpable process's files are root's.
        assert!(!rustix::process::geteuid().is_root(), "{path}");
        println!("skipped: {path} is for root only");
        return;
    };
    let mut expected: Vec<String> = rig
        .faulty
        .environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    expected.push("OPENSSL_CONF=/dev/null".into());
    expected.sort();
    let environment = String::from_utf8(environment).expect("text");
    let mut found: Vec<&str> = environment.split_terminator('\0').collect();
    found.sort_unstable();
    assert_eq!(found, expected);
    rig.devices.shutdown().await;
}

/// Some libraries take seconds to find a key among many.
#[tokio::test]
async fn a_key_is_looked_up_once() {
    let Some(rig) = Rig::new("looked up").await else {
        return;
    };
    // Each signing thread has handles of its own.
    for _ in 0..20 {
        rig.sign().await.expect("a signature");
    }
    let before = rig.faulty.calls("C_FindObjectsInit");
    for _ in 0..50 {
        rig.sign().await.expect("a signature");
    }
    let more = rig.faulty.calls("C_FindObjectsInit") - before;
    // The other thread may have had nothing to do so far.
    assert!(more <= 4, "{more} more searches");
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_library_that_always_crashes_is_down_and_says_so() {
    let Some(rig) = Rig::new("crash loop").await else {
        return;
    };
    let crash = rig.faulty.on("C_GetSlotList").aborts();
    rig.faulty.on("C_Sign").times(1).aborts();
    let died = rig.sign().await;
    assert!(
        matches!(died, Err(DeviceError::WorkerDied { .. })),
        "{died:?}"
    );
    eventually("down", async || {
        state(&rig.devices).await.0 == TokenState::Down
    })
    .await;
    let (_, reason) = state(&rig.devices).await;
    assert!(reason.contains("signal 6"), "{reason}");
    let begin = Instant::now();
    match rig.sign().await {
        Err(DeviceError::ModuleDown { reason, .. }) => {
            assert!(reason.contains("signal 6"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(begin.elapsed() < Duration::from_secs(2));
    // Twenty starts would mean that nobody waits between them. What is waited for is that they do
    // not come, so there is no event.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(rig.starts() < 10, "{}", rig.starts());
    rig.faulty.lift(&crash);
    rig.heals().await;
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn what_a_library_prints_disturbs_nothing() {
    let Some(rig) = Rig::new("prints").await else {
        return;
    };
    let garbage: Vec<u8> = (0..=255u8).cycle().take(64 * 1024).collect();
    rig.faulty.on("C_SignInit").prints(&garbage);
    rig.faulty
        .on("C_Sign")
        .prints_to_stderr(b"\x1b[2Jno newline");
    for _ in 0..20 {
        rig.sign().await.expect("a signature");
    }
    // The last words of a worker are what its library printed, scrubbed.
    rig.faulty.heal();
    rig.faulty
        .on("C_Sign")
        .times(1)
        .prints_to_stderr(b"\nout of \x1b[31mcoffee\n");
    rig.faulty.on("C_Sign").times(1).exits(4);
    match rig.sign().await {
        Err(DeviceError::WorkerDied { last_words, .. }) => {
            assert!(last_words.contains("status 4"), "{last_words}");
            assert!(
                last_words.contains("out of \u{fffd}[31mcoffee"),
                "{last_words}"
            );
        }
        other => panic!("{other:?}"),
    }
    rig.heals().await;
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_library_that_leaks_descriptors_is_replaced_when_it_has_no_more() {
    let Some(rig) = Rig::new("leaks").await else {
        return;
    };
    let leak = rig.faulty.on("C_SignInit").leaks(100);
    eventually("out of descriptors and replaced", async || {
        // Errors are typed; what counts is that it gets over them.
        let _result = rig.sign().await;
        rig.starts() > 1
    })
    .await;
    rig.faulty.lift(&leak);
    rig.heals().await;
    assert_eq!(rig.spent(), 0);
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_key_that_is_not_proven_is_destroyed() {
    let Some(rig) = Rig::new("not proven").await else {
        return;
    };
    for (attribute, value, name) in [
        (CKA_LOCAL, 0, "CKA_LOCAL"),
        (CKA_SENSITIVE, 0, "CKA_SENSITIVE"),
        (CKA_ALWAYS_SENSITIVE, 0, "CKA_ALWAYS_SENSITIVE"),
        (CKA_NEVER_EXTRACTABLE, 0, "CKA_NEVER_EXTRACTABLE"),
        (CKA_EXTRACTABLE, 1, "CKA_EXTRACTABLE"),
    ] {
        rig.faulty.misreport(attribute, &[value]);
        let made = rig
            .devices
            .generate(&rig.id, KeySpec::P256, &KeyId::random(), "")
            .await;
        match made {
            Err(DeviceError::KeyNotProven { attribute, .. }) => assert_eq!(attribute, name),
            other => panic!("{name}: {other:?}"),
        }
        rig.faulty.heal();
    }
    assert_eq!(rig.devices.keys(&rig.id).await.expect("keys").len(), 1);
    rig.devices.shutdown().await;
}

// PINs.

#[tokio::test]
async fn a_wrong_pin_is_tried_once_over_all_restarts() {
    let Some(token) = TestToken::softhsm("wrong") else {
        return;
    };
    for lie in [CKR_PIN_INCORRECT, CKR_GENERAL_ERROR, CKR_FUNCTION_FAILED] {
        let directory = tempfile::tempdir().expect("a directory");
        let faulty = Faulty::new(&token);
        faulty.lie_of_wrong_pin(lie);
        let before = faulty.logins().len();
        let mut config = token.config_with(Some(PinSource::File(token.pin_file("wrong"))));
        faulty.configure(&mut config);
        for _ in 0..3 {
            let devices = Devices::start(
                config.clone(),
                directory.path(),
                opcert::base::clock::Clock::system(),
            )
            .await
            .expect("devices");
            let id = select(&devices, &token).await;
            assert_eq!(state(&devices).await.0, TokenState::PinNeeded);
            let refused = devices
                .generate(&id, KeySpec::P256, &KeyId::random(), "")
                .await;
            assert!(
                matches!(refused, Err(DeviceError::PinBlocked { .. })),
                "{refused:?}"
            );
            devices.shutdown().await;
        }
        assert_eq!(faulty.logins().len() - before, 1, "{lie:#x}");
    }
}

#[tokio::test]
async fn the_last_try_is_never_used_and_a_locked_token_never_asked() {
    for (spent, expected) in [(2, TokenState::FinalTry), (3, TokenState::LockedOut)] {
        let Some(token) = TestToken::softhsm("last try") else {
            return;
        };
        let faulty = Faulty::new(&token);
        faulty.pin_tries(3, spent);
        let config = faulty_config(&token, &faulty, "last try");
        let devices = start(&token, config).await;
        let id = select(&devices, &token).await;
        assert_eq!(state(&devices).await.0, expected);
        let refused = devices
            .generate(&id, KeySpec::P256, &KeyId::random(), "")
            .await;
        let unlocked = devices
            .unlock(&id, Pin::new(token.pin.clone()), LastTry::Keep)
            .await;
        match expected {
            TokenState::FinalTry => {
                assert!(matches!(refused, Err(DeviceError::PinFinalTry { .. })));
                assert!(matches!(unlocked, Err(DeviceError::PinFinalTry { .. })));
            }
            _ => {
                assert!(matches!(refused, Err(DeviceError::PinLocked { .. })));
                assert!(matches!(unlocked, Err(DeviceError::PinLocked { .. })));
            }
        }
        assert_eq!(faulty.logins(), []);
        devices.shutdown().await;
    }
}

#[tokio::test]
async fn a_person_can_spend_all_tries_but_the_last() {
    let Some(token) = TestToken::softhsm("person") else {
        return;
    };
    let faulty = Faulty::new(&token);
    faulty.pin_tries(3, 0);
    let mut config = faulty_config(&token, &faulty, "person");
    config.module[0].token[0].pin_source = None;
    let devices = start(&token, config).await;
    let id = select(&devices, &token).await;
    let unlock = async |pin: &str| {
        devices
            .unlock(&id, Pin::new(pin.into()), LastTry::Keep)
            .await
    };
    for _ in 0..2 {
        let wrong = unlock("wrong").await;
        assert!(
            matches!(wrong, Err(DeviceError::PinWrong { .. })),
            "{wrong:?}"
        );
    }
    for _ in 0..2 {
        let refused = unlock("wrong").await;
        assert!(
            matches!(refused, Err(DeviceError::PinFinalTry { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(faulty.logins().len(), 2);
    eventually("shows", async || {
        state(&devices).await.0 == TokenState::FinalTry
    })
    .await;
    // Who is sure says so.
    let sure = Pin::new(token.pin.clone());
    devices
        .unlock(&id, sure, LastTry::Use)
        .await
        .expect("the last try");
    assert_eq!(faulty.logins().len(), 3);
    generate(&devices, &id, KeySpec::P256).await;
    devices.shutdown().await;
}

#[tokio::test]
async fn a_wrong_last_try_is_told_as_what_it_was() {
    let Some(token) = TestToken::softhsm("person") else {
        return;
    };
    let faulty = Faulty::new(&token);
    faulty.pin_tries(3, 2);
    let mut config = faulty_config(&token, &faulty, "person");
    config.module[0].token[0].pin_source = None;
    let devices = start(&token, config).await;
    let id = select(&devices, &token).await;
    let wrong = devices.unlock(&id, Pin::new("wrong".into()), LastTry::Use);
    let wrong = wrong.await;
    assert!(
        matches!(wrong, Err(DeviceError::PinLocked { .. })),
        "{wrong:?}"
    );
    assert_eq!(state(&devices).await.0, TokenState::LockedOut);
    assert_eq!(faulty.logins().len(), 1);
    devices.shutdown().await;
}

/// Nobody knows whether a try was spent, so it counts as one.
#[tokio::test]
async fn a_login_that_is_not_answered_blocks_the_pin() {
    for (name, set) in [
        ("login hangs", "hang"),
        ("login crashes", "crash"),
        ("login exits", "exit"),
    ] {
        let Some(token) = TestToken::softhsm(name) else {
            return;
        };
        let faulty = Faulty::new(&token);
        let mut config = faulty_config(&token, &faulty, name);
        config.module[0].call_timeout = Duration::from_secs(1);
        match set {
            "hang" => faulty.on("C_Login").hangs(),
            "crash" => faulty.on("C_Login").segfaults(),
            _ => faulty.on("C_Login").exits(0),
        };
        let devices = start(&token, config.clone()).await;
        eventually("blocked", async || {
            state(&devices).await.0 == TokenState::PinNeeded
        })
        .await;
        let id = select(&devices, &token).await;
        let refused = devices
            .generate(&id, KeySpec::P256, &KeyId::random(), "")
            .await;
        assert!(
            matches!(refused, Err(DeviceError::PinBlocked { .. })),
            "{name}: {refused:?}"
        );
        devices.shutdown().await;
        let devices = start(&token, config).await;
        eventually("still blocked", async || {
            state(&devices).await.0 == TokenState::PinNeeded
        })
        .await;
        assert_eq!(faulty.logins().len(), 1, "{name}");
        faulty.heal();
        devices
            .unlock(&id, Pin::new(token.pin.clone()), LastTry::Keep)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        generate(&devices, &id, KeySpec::P256).await;
        assert_eq!(faulty.logins().len(), 2, "{name}");
        devices.shutdown().await;
    }
}

/// The same where the worker ends while a login that was lost is made again: who waited for it is told why a person has to
/// give the PIN, and not only that.
#[tokio::test]
async fn a_login_made_again_that_is_not_answered_says_why_the_pin_is_needed() {
    for set in ["crash", "exit"] {
        let name = format!("login again {set}");
        let Some(token) = TestToken::softhsm(&name) else {
            return;
        };
        let faulty = Faulty::new(&token);
        let devices = start(&token, faulty_config(&token, &faulty, &name)).await;
        let id = select(&devices, &token).await;
        let key = generate(&devices, &id, KeySpec::P256).await;
        match set {
            "crash" => faulty.on("C_Login").segfaults(),
            _ => faulty.on("C_Login").exits(0),
        };
        faulty.log_out();
        let refused = sign_as(0, &devices, &key).await;
        assert!(
            matches!(&refused, Err(DeviceError::PinBlocked { reason, .. })
                if reason.contains("was interrupted")),
            "{name}: {refused:?}"
        );
        assert_eq!(faulty.logins().len(), 2, "{name}");
        faulty.heal();
        devices
            .unlock(&id, Pin::new(token.pin.clone()), LastTry::Keep)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        sign_as(0, &devices, &key)
            .await
            .expect("after the PIN was given");
        devices.shutdown().await;
    }
}

/// As libykcs11 did after a replug: a loop of logins would lock the token.
#[tokio::test]
async fn a_right_pin_that_is_refused_after_a_replug_is_tried_once() {
    let Some(mut rig) = Rig::new("refused").await else {
        return;
    };
    rig.faulty.lie_of_right_pin(CKR_PIN_INCORRECT);
    rig.faulty.pin_tries(3, 0);
    rig.faulty.insert(Slots::New, Handles::Invalid);
    for _ in 0..5 {
        let refused = rig.sign().await;
        assert!(refused.is_err());
    }
    assert_eq!(state(&rig.devices).await.0, TokenState::PinNeeded);
    assert_eq!(rig.spent(), 1);
    rig.restart().await;
    let refused = rig.sign().await;
    assert!(
        matches!(refused, Err(DeviceError::PinBlocked { .. })),
        "{refused:?}"
    );
    assert_eq!(rig.spent(), 1);
    rig.mended_by_a_person().await;
}

#[tokio::test]
async fn a_wrong_pin_given_while_logged_in_is_not_kept_for_the_next_worker() {
    let Some(rig) = Rig::new("logged in").await else {
        return;
    };
    // The token does not look at a PIN while somebody is logged in.
    rig.unlock("wrong").await.expect("logged in before");
    rig.faulty.on("C_Sign").times(1).segfaults();
    assert!(rig.sign().await.is_err());
    rig.heals().await;
    let used: Vec<_> = rig.faulty.logins();
    assert_eq!(used.len(), 3, "{used:?}");
    assert_eq!(used[0].pin, used[2].pin);
    assert!(used[2].succeeded());
    rig.devices.shutdown().await;
}

/// Somebody types on the key pad while others ask: one login of a token at a time, waited for no
/// longer than it may take, and none for somebody who has left.
#[tokio::test]
async fn a_pin_is_checked_in_turn_and_not_for_who_has_left() {
    let Some(mut rig) = Rig::new("in turn").await else {
        return;
    };
    let limit = Duration::from_secs(3);
    rig.config.module[0].call_timeout = limit;
    rig.restart().await;
    rig.sign().await.expect("logged in");
    let (faulty, id) = (&rig.faulty, &rig.id);
    faulty.keypad(&rig.token.pin);
    let before = faulty.logins().len();
    let workers = faulty.calls("C_Initialize");
    let check = |patience: Duration| {
        let (devices, id) = (rig.devices.clone(), id.clone());
        tokio::spawn(async move { devices.check_pin(&id, None, patience).await })
    };
    faulty.on("C_Login").times(1).slow(limit * 3);
    let slow = check(limit * 6);
    eventually("the slow login", async || {
        faulty.logins().len() == before + 1
    })
    .await;

    // One that leaves while it waits, and one that may not wait so long.
    let left = check(limit * 6);
    eventually("its worker", async || {
        faulty.calls("C_Initialize") == workers + 2
    })
    .await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    let typed = Some(Pin::new(rig.token.pin.clone()));
    let refused = rig.devices.check_pin(id, typed, limit).await;
    assert!(
        matches!(refused, Err(DeviceError::PinUnderWay { .. })),
        "{refused:?}"
    );
    slow.await.expect("no panic").expect("the right PIN");
    assert_eq!(faulty.logins().len(), before + 1);

    // The turn is free again; whoever was logged in before is so still.
    check(limit)
        .await
        .expect("no panic")
        .expect("the right PIN");
    assert_eq!(faulty.logins().len(), before + 2);
    rig.sign().await.expect("a signature");
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_token_that_locks_meanwhile_is_seen_at_the_next_login() {
    let Some(rig) = Rig::new("locks meanwhile").await else {
        return;
    };
    let logins = rig.faulty.logins().len();
    rig.faulty.pin_tries(3, 3);
    rig.faulty.log_out();
    let refused = rig.sign().await;
    assert!(
        matches!(refused, Err(DeviceError::PinLocked { .. })),
        "{refused:?}"
    );
    assert_eq!(state(&rig.devices).await.0, TokenState::LockedOut);
    assert_eq!(rig.faulty.logins().len(), logins);
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn one_token_out_does_not_disturb_its_neighbour() {
    let Some(token) = TestToken::softhsm("left") else {
        return;
    };
    let so_pin = "12345678";
    let made = std::process::Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", "right"])
        .args(["--pin", &token.pin, "--so-pin", so_pin])
        .envs(&token.environment)
        .output()
        .expect("softhsm2-util");
    assert!(made.status.success());
    let faulty = Faulty::new(&token);
    let mut config = faulty_config(&token, &faulty, "neighbours");
    let mut right = config.module[0].token[0].clone();
    right.uri = "pkcs11:token=right".parse().expect("a URI");
    config.module[0].token.push(right.clone());
    let devices = start(&token, config).await;
    let left = select(&devices, &token).await;
    let right = devices.select(&right.uri).await.expect("the right token");
    let left = generate(&devices, &left, KeySpec::P256).await;
    let right = generate(&devices, &right, KeySpec::P256).await;
    sign(&devices, &left).await.expect("left");
    sign(&devices, &right).await.expect("right");
    faulty.remove_token("left");
    for _ in 0..20 {
        sign(&devices, &right).await.expect("the neighbour");
        let gone = sign(&devices, &left).await;
        assert!(
            matches!(gone, Err(DeviceError::TokenAbsent { .. })),
            "{gone:?}"
        );
    }
    faulty.insert_token("left");
    heals(&devices, &left).await;
    sign(&devices, &right).await.expect("the neighbour");
    assert_eq!(spent(&faulty), 0);
    devices.shutdown().await;
}

/// A person is awaited at one token: to touch it before it signs, or to type its PIN. Meanwhile the
/// other token of the same library signs, is logged in, and is listed.
#[tokio::test]
async fn a_person_who_is_awaited_at_one_token_holds_up_no_other() {
    let name = "waits for a person";
    let Some(token) = TestToken::softhsm("slow") else {
        return;
    };
    token.add("quick");
    let faulty = Faulty::new(&token);
    let mut config = faulty_config(&token, &faulty, name);
    // Longer than the test: nobody is killed for waiting.
    config.module[0].call_timeout = Duration::from_secs(120);
    config.module[0].threads = Some(1);
    let mut quick = config.module[0].token[0].clone();
    quick.uri = "pkcs11:token=quick".parse().expect("a URI");
    config.module[0].token.push(quick.clone());
    let devices = start(&token, config).await;
    let slow_id = select(&devices, &token).await;
    let quick_id = devices.select(&quick.uri).await.expect("the quick token");
    let slow = generate(&devices, &slow_id, KeySpec::P256).await;
    let quick = generate(&devices, &quick_id, KeySpec::P256).await;
    assert_eq!(workers(name).len(), 2, "a worker for each token");
    assert_eq!(devices.modules().await.len(), 1);

    let at_work = async |touched: &dyn Fn() -> bool| {
        for _ in 0..5 {
            sign(&devices, &quick).await.expect("the other token");
        }
        devices.keys(&quick_id).await.expect("its keys");
        devices
            .unlock(&quick_id, Pin::new(token.pin.clone()), LastTry::Keep)
            .await
            .expect("its PIN");
        let states: Vec<_> = devices
            .tokens()
            .await
            .iter()
            .map(|token| token.state)
            .collect();
        assert_eq!(states, [TokenState::Ready, TokenState::Ready]);
        assert!(!touched(), "nobody has touched the slow one yet");
    };
    // A touch.
    let before = faulty.calls("C_Sign");
    let touch = faulty.on("C_Sign").times(1).hangs();
    let waiting = {
        let (devices, slow) = (devices.clone(), slow.clone());
        tokio::spawn(async move { sign(&devices, &slow).await })
    };
    eventually("a touch is awaited", async || {
        faulty.calls("C_Sign") > before
    })
    .await;
    at_work(&|| waiting.is_finished()).await;
    faulty.lift(&touch);
    waiting.await.expect("a task").expect("touched");

    // A PIN, typed on the device.
    let before = faulty.logins().len();
    let typed = faulty.on("C_Login").times(1).hangs();
    let waiting = {
        let (devices, slow_id, pin) = (devices.clone(), slow_id.clone(), token.pin.clone());
        tokio::spawn(async move { devices.unlock(&slow_id, Pin::new(pin), LastTry::Keep).await })
    };
    eventually("a PIN is awaited", async || faulty.logins().len() > before).await;
    at_work(&|| waiting.is_finished()).await;
    faulty.lift(&typed);
    waiting.await.expect("a task").expect("typed");
    sign(&devices, &slow).await.expect("the slow token");
    devices.shutdown().await;
    eventually("no worker is left", async || workers(name).is_empty()).await;
}

/// Two tokens in one worker, where the configuration wants that.
#[tokio::test]
async fn tokens_share_a_worker_where_told_and_are_taken_apart_again() {
    let name = "share a worker";
    let Some(token) = TestToken::softhsm("one") else {
        return;
    };
    token.add("two");
    let faulty = Faulty::new(&token);
    let mut config = faulty_config(&token, &faulty, name);
    let mut two = config.module[0].token[0].clone();
    two.uri = "pkcs11:token=two".parse().expect("a URI");
    config.module[0].token.push(two.clone());
    let apart = config.module.clone();
    config.module[0].share_worker = true;
    let devices = start(&token, config.clone()).await;
    let one = select(&devices, &token).await;
    let two = devices.select(&two.uri).await.expect("the other token");
    let one = generate(&devices, &one, KeySpec::P256).await;
    let two = generate(&devices, &two, KeySpec::P256).await;
    let all_sign = async || {
        sign(&devices, &one).await.expect("one");
        sign(&devices, &two).await.expect("two");
    };
    assert_eq!(workers(name).len(), 1);
    let changes = devices.reconfigure(apart.clone()).await.expect("apart");
    assert_eq!(changes.changed, [name]);
    all_sign().await;
    eventually("a worker for each", async || workers(name).len() == 2).await;
    // One goes, the other does not notice.
    let kept = workers(name);
    let mut fewer = apart.clone();
    fewer[0].token.pop();
    let changes = devices.reconfigure(fewer).await.expect("fewer");
    assert_eq!(changes.changed, [name]);
    eventually("one worker", async || workers(name).len() == 1).await;
    assert!(kept.contains(&workers(name)[0]));
    sign(&devices, &one).await.expect("one");
    devices.reconfigure(apart).await.expect("both again");
    all_sign().await;
    assert!(workers(name).iter().any(|worker| kept.contains(worker)));
    devices.reconfigure(config.module).await.expect("together");
    all_sign().await;
    eventually("one worker", async || workers(name).len() == 1).await;
    assert_eq!(spent(&faulty), 0);
    devices.shutdown().await;
}

#[tokio::test]
async fn a_library_that_others_could_replace_is_not_loaded() {
    use std::os::unix::fs::PermissionsExt;
    let Some(token) = TestToken::softhsm("open library") else {
        return;
    };
    let library = token.directory().join("library.so");
    std::fs::copy(&token.module, &library).expect("a copy");
    std::fs::set_permissions(&library, std::fs::Permissions::from_mode(0o666)).expect("a mode");
    let mut config = token.config();
    config.module[0].path = library.clone();
    let devices = start(&token, config).await;
    eventually("down", async || state(&devices).await.0 == TokenState::Down).await;
    let (_, reason) = state(&devices).await;
    assert!(reason.contains("mode 0666"), "{reason}");
    std::fs::set_permissions(&library, std::fs::Permissions::from_mode(0o644)).expect("a mode");
    eventually("ready", async || {
        state(&devices).await.0 == TokenState::Ready
    })
    .await;
    devices.shutdown().await;
}

// Keys that want a login for each use.

/// A token behind the faulty module with two keys, of which the first wants a login for each use.
async fn rig_with_always(name: &str) -> Option<(Rig, KeyRef)> {
    let mut rig = Rig::new(name).await?;
    let other = generate(&rig.devices, &rig.id, KeySpec::P256).await;
    rig.faulty.always_authenticate_with(rig.key.id.as_bytes());
    rig.config.module[0].threads = Some(4);
    rig.config.module[0].call_timeout = Duration::from_secs(5);
    rig.restart().await;
    sign(&rig.devices, &other).await.expect("a signature");
    assert!(rig.faulty.logins_for_one_use().is_empty());
    Some((rig, other))
}

/// The faulty token forgets the login at whatever is asked of it in between, in any session.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_between_the_login_for_one_use_and_its_signature() {
    let Some((rig, other)) = rig_with_always("one use").await else {
        return;
    };
    let listed = rig.devices.keys(&rig.id).await.expect("keys");
    let always = |key: &KeyRef| {
        let entry = listed
            .iter()
            .find(|entry| entry.id.as_ref() == Some(&key.id));
        entry.expect("the key").always_authenticate
    };
    assert!(always(&rig.key) && !always(&other));
    let before = rig.faulty.logins().len();
    let mut signing = tokio::task::JoinSet::new();
    for number in 0..60 {
        let devices = rig.devices.clone();
        let key = if number % 3 == 0 { &rig.key } else { &other }.clone();
        signing.spawn(async move { sign(&devices, &key).await });
    }
    while let Some(signed) = signing.join_next().await {
        signed.expect("no panic").expect("a signature");
        let certificates = rig.devices.certificates(&rig.id).await;
        assert_eq!(certificates.expect("a list").len(), 0);
    }
    let logins = rig.faulty.logins_for_one_use();
    assert_eq!(logins.len(), 20);
    assert!(logins.iter().all(|login| login.succeeded()));
    assert_eq!(rig.faulty.logins().len(), before, "no other login");
    assert_eq!((rig.spent(), rig.starts()), (0, 2));
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_pin_refused_for_one_use_is_tried_once_until_a_person_gives_another() {
    for lie in [
        CKR_PIN_INCORRECT,
        CKR_USER_ALREADY_LOGGED_IN,
        CKR_GENERAL_ERROR,
    ] {
        let Some((mut rig, other)) = rig_with_always("refused use").await else {
            return;
        };
        rig.faulty.lie_of_right_pin(lie);
        let refused = rig.sign().await;
        assert!(
            matches!(refused, Err(DeviceError::PinWrong { .. })),
            "{refused:?}"
        );
        eventually("the state shows it", async || {
            state(&rig.devices).await.0 == TokenState::PinNeeded
        })
        .await;
        for restart in [false, true] {
            if restart {
                rig.restart().await;
            }
            for key in [&rig.key, &other] {
                let blocked = sign(&rig.devices, key).await;
                assert!(
                    matches!(blocked, Err(DeviceError::PinBlocked { .. })),
                    "{blocked:?}"
                );
            }
        }
        assert_eq!(rig.faulty.logins_for_one_use().len(), 1, "{lie:#x}");
        let logins = rig.faulty.logins().len();
        rig.faulty.heal();
        rig.faulty.always_authenticate_with(rig.key.id.as_bytes());
        let pin = rig.token.pin.clone();
        rig.unlock(&pin).await.expect("a person's PIN");
        rig.sign().await.expect("a signature");
        assert_eq!(rig.faulty.logins().len(), logins + 1);
        rig.devices.shutdown().await;
    }
}

#[tokio::test]
async fn the_flags_are_read_before_a_login_for_one_use() {
    for (spent, expected) in [(2, TokenState::FinalTry), (3, TokenState::LockedOut)] {
        let Some((rig, _)) = rig_with_always("flags of use").await else {
            return;
        };
        rig.faulty.pin_tries(3, spent);
        let refused = rig.sign().await;
        assert!(
            matches!(
                refused,
                Err(DeviceError::PinFinalTry { .. } | DeviceError::PinLocked { .. })
            ),
            "{refused:?}"
        );
        eventually("the state shows it", async || {
            state(&rig.devices).await.0 == expected
        })
        .await;
        assert!(rig.faulty.logins_for_one_use().is_empty());
        rig.devices.shutdown().await;
    }
}

#[tokio::test]
async fn a_login_for_one_use_that_is_not_answered_blocks_the_pin_and_a_caller_that_left_does_not() {
    let Some((mut rig, other)) = rig_with_always("unanswered use").await else {
        return;
    };
    let slow = rig.faulty.on("C_Login").slow(Duration::from_millis(300));
    let (devices, key) = (rig.devices.clone(), rig.key.clone());
    let leaving = tokio::spawn(async move { sign(&devices, &key).await });
    eventually("the login has begun", async || {
        rig.faulty.logins_for_one_use().len() == 1
    })
    .await;
    leaving.abort();
    rig.faulty.lift(&slow);
    rig.sign()
        .await
        .expect("what somebody left was seen to its end");

    rig.devices.shutdown().await;
    rig.config.module[0].call_timeout = Duration::from_millis(500);
    rig.devices = start(&rig.token, rig.config.clone()).await;
    sign(&rig.devices, &other).await.expect("a signature");
    let hang = rig.faulty.on("C_Login").hangs();
    let hung = rig.sign().await;
    assert!(matches!(hung, Err(DeviceError::Timeout { .. })), "{hung:?}");
    rig.faulty.lift(&hang);
    for _ in 0..2 {
        let blocked = rig.sign().await;
        assert!(
            matches!(blocked, Err(DeviceError::PinBlocked { .. })),
            "{blocked:?}"
        );
    }
    assert_eq!(rig.faulty.logins_for_one_use().len(), 3);
    let pin = rig.token.pin.clone();
    rig.unlock(&pin).await.expect("a person's PIN");
    rig.sign().await.expect("a signature");
    rig.devices.shutdown().await;
}

/// A PIN that is typed on the device is nobody's to hold, so each use has it typed.
#[tokio::test]
async fn a_token_that_asks_for_its_pin_itself_is_given_none_for_one_use() {
    let Some((mut rig, _)) = rig_with_always("keypad").await else {
        return;
    };
    rig.faulty.keypad(&rig.token.pin);
    rig.config.module[0].token[0].pin_source = None;
    rig.restart().await;
    rig.unlock("is not looked at").await.expect("a login");
    rig.faulty.keypad("mistyped");
    let refused = rig.sign().await;
    assert!(
        matches!(refused, Err(DeviceError::PinWrong { .. })),
        "{refused:?}"
    );
    rig.faulty.keypad(&rig.token.pin);
    rig.sign().await.expect("a person may type again");
    let logins = rig.faulty.logins_for_one_use();
    assert_eq!(logins.len(), 2);
    assert!(logins.iter().all(|login| login.pin == 0), "{logins:?}");
    rig.devices.shutdown().await;
}

// Logins of single operations.

#[tokio::test]
async fn a_token_is_logged_in_for_each_operation_where_its_policy_says_so() {
    let Some(mut rig) = Rig::new("per operation").await else {
        return;
    };
    rig.faulty.always_authenticate_with(rig.key.id.as_bytes());
    rig.config.module[0].token[0].login = LoginPolicy::PerOperation;
    let (logins, logouts) = (rig.faulty.logins().len(), rig.faulty.calls("C_Logout"));
    rig.restart().await;
    let since = || {
        let (login, logout) = (rig.faulty.logins().len(), rig.faulty.calls("C_Logout"));
        (login - logins, logout - logouts)
    };
    let other = generate(&rig.devices, &rig.id, KeySpec::P256).await;
    // One to see that the PIN is right, one for the key.
    assert_eq!(since(), (2, 2));
    for _ in 0..2 {
        sign(&rig.devices, &other).await.expect("a signature");
        rig.sign().await.expect("a signature");
    }
    assert_eq!(rig.devices.keys(&rig.id).await.expect("keys").len(), 2);
    assert_eq!(since(), (7, 7));
    assert_eq!(rig.faulty.logins_for_one_use().len(), 2);
    let looks = rig.faulty.calls("C_GetSlotList");
    eventually("the slots are looked at", async || {
        rig.faulty.calls("C_GetSlotList") > looks + 4
    })
    .await;
    assert_eq!(since(), (7, 7), "nobody logs in just to look");
    assert_eq!(state(&rig.devices).await.0, TokenState::Ready);
    assert_eq!(rig.spent(), 0);

    rig.faulty.lie_of_right_pin(CKR_PIN_INCORRECT);
    let refused = rig.sign().await;
    assert!(
        matches!(refused, Err(DeviceError::PinWrong { .. })),
        "{refused:?}"
    );
    for _ in 0..2 {
        let blocked = rig.sign().await;
        assert!(
            matches!(blocked, Err(DeviceError::PinBlocked { .. })),
            "{blocked:?}"
        );
    }
    assert_eq!(rig.spent(), 1);
    rig.mended_by_a_person().await;
}

// Mechanisms.

#[tokio::test]
async fn a_token_that_hashes_by_itself_only_is_given_the_message() {
    let Some(mut rig) = Rig::new("hashes").await else {
        return;
    };
    rig.faulty.hashes();
    for raw in [CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, CKM_ECDSA] {
        rig.faulty.hide(raw);
    }
    rig.restart().await;
    for (spec, schemes) in [
        (KeySpec::Rsa2048, [Scheme::Rs256, Scheme::Ps256].as_slice()),
        (KeySpec::P256, &[Scheme::Es256]),
        (KeySpec::P384, &[Scheme::Es384]),
    ] {
        let key = generate(&rig.devices, &rig.id, spec).await;
        for scheme in schemes {
            // Verified before it comes out.
            let short = message("hello");
            let signed = rig.devices.sign(permit(&key), *scheme, &short).await;
            signed.unwrap_or_else(|error| panic!("{scheme}: {error}"));
            let long = message(&"x".repeat(33 * 1024));
            let refused = rig.devices.sign(permit(&key), *scheme, &long).await;
            assert!(
                matches!(refused, Err(DeviceError::TooLarge { .. })),
                "{refused:?}"
            );
        }
    }
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn what_a_token_cannot_do_is_refused_before_it_is_asked() {
    let Some(mut rig) = Rig::new("lacks").await else {
        return;
    };
    let large = generate(&rig.devices, &rig.id, KeySpec::P384).await;
    let asked = rig.faulty.calls("C_SignInit");
    rig.faulty.sizes(CKM_ECDSA, 256, 256);
    rig.restart().await;
    let refused = sign(&rig.devices, &large).await;
    assert!(
        matches!(refused, Err(DeviceError::Unsupported { .. })),
        "{refused:?}"
    );
    assert_eq!(rig.faulty.calls("C_SignInit"), asked);
    rig.sign().await.expect("a key of another size");
    rig.faulty.hide(CKM_ECDSA);
    rig.restart().await;
    let signs = rig.devices.tokens().await.remove(0).signs;
    assert!(!signs.contains(&Scheme::Es256), "{signs:?}");
    let refused = rig.sign().await;
    assert!(
        matches!(refused, Err(DeviceError::Unsupported { .. })),
        "{refused:?}"
    );
    assert_eq!(rig.faulty.calls("C_SignInit"), asked + 1);
    rig.devices.shutdown().await;
}

// Fussy vendors.

#[tokio::test]
async fn what_is_waived_need_not_be_proven_and_is_told() {
    let Some(mut rig) = Rig::new("waived").await else {
        return;
    };
    rig.faulty.misreport(CKA_LOCAL, &[0]);
    rig.faulty.misreport(CKA_NEVER_EXTRACTABLE, &[0]);
    let id = rig.id.clone();
    let make = async |devices: &Devices| {
        let key = KeyId::random();
        let made = devices.generate(&id, KeySpec::P256, &key, "").await;
        made.map(|generated| generated.proof)
    };
    for waive in [vec![], vec![Waiver::Local], vec![Waiver::AlwaysSensitive]] {
        let waives_local = waive.contains(&Waiver::Local);
        rig.devices.shutdown().await;
        rig.config.module[0].token[0].waive = waive;
        rig.devices = start(&rig.token, rig.config.clone()).await;
        match make(&rig.devices).await {
            Err(DeviceError::KeyNotProven { attribute, .. }) => assert_eq!(
                attribute,
                if waives_local {
                    "CKA_NEVER_EXTRACTABLE"
                } else {
                    "CKA_LOCAL"
                }
            ),
            other => panic!("{other:?}"),
        }
    }
    rig.devices.shutdown().await;
    rig.config.module[0].token[0].waive =
        vec![Waiver::NeverExtractable, Waiver::Sensitive, Waiver::Local];
    rig.devices = start(&rig.token, rig.config.clone()).await;
    let proof = make(&rig.devices).await.expect("a key");
    assert_eq!(proof.waived, [Waiver::Local, Waiver::NeverExtractable]);
    assert!(!proof.local && proof.sensitive && proof.always_sensitive && !proof.never_extractable);
    // What is proven all the same is no waiver.
    rig.faulty.heal();
    let proof = make(&rig.devices).await.expect("a key");
    assert!(proof.local && proof.waived.is_empty());
    // That a key can be taken off the token nothing excuses.
    rig.faulty.misreport(CKA_EXTRACTABLE, &[1]);
    let made = make(&rig.devices).await;
    assert!(
        matches!(made, Err(DeviceError::KeyNotProven { .. })),
        "{made:?}"
    );
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_template_that_is_refused_is_tried_again_with_less_in_it() {
    let Some(rig) = Rig::new("fussy").await else {
        return;
    };
    for (refused, code, tries) in [
        (CKA_VERIFY, CKR_TEMPLATE_INCONSISTENT, 2),
        (CKA_PRIVATE, CKR_ATTRIBUTE_TYPE_INVALID, 2),
        (CKA_DECRYPT, CKR_ATTRIBUTE_VALUE_INVALID, 2),
        (CKA_LABEL, CKR_ATTRIBUTE_READ_ONLY, 3),
        (CKA_SENSITIVE, CKR_TEMPLATE_INCONSISTENT, 3),
    ] {
        rig.faulty.refuse(refused, code);
        if tries == 3 {
            // A vendor who takes the least has such keys by default, as SoftHSM2 has not.
            rig.faulty.misreport(CKA_SENSITIVE, &[1]);
            rig.faulty.misreport(CKA_ALWAYS_SENSITIVE, &[1]);
        }
        for spec in [KeySpec::P256, KeySpec::Rsa2048] {
            let before = rig.faulty.calls("C_GenerateKeyPair");
            let key = generate(&rig.devices, &rig.id, spec).await;
            let calls = rig.faulty.calls("C_GenerateKeyPair") - before;
            assert_eq!(calls, tries, "{refused:#x} {spec}");
            sign(&rig.devices, &key).await.expect("a signature");
        }
        rig.faulty.heal();
    }
    // Nothing is left out of what must be, and the first refusal is the one that is told.
    rig.faulty.refuse(CKA_ID, CKR_TEMPLATE_INCONSISTENT);
    let keys = rig.devices.keys(&rig.id).await.expect("keys").len();
    let made = rig
        .devices
        .generate(&rig.id, KeySpec::P256, &KeyId::random(), "")
        .await;
    match made {
        Err(DeviceError::Pkcs11 { code, .. }) => assert_eq!(code, "CKR_TEMPLATE_INCONSISTENT"),
        other => panic!("{other:?}"),
    }
    rig.faulty.heal();
    // What a smaller template left to the token is still to be proven.
    rig.faulty
        .refuse(CKA_EXTRACTABLE, CKR_TEMPLATE_INCONSISTENT);
    let made = rig
        .devices
        .generate(&rig.id, KeySpec::P256, &KeyId::random(), "")
        .await;
    assert!(
        matches!(made, Err(DeviceError::KeyNotProven { .. })),
        "{made:?}"
    );
    rig.faulty.heal();
    assert_eq!(rig.devices.keys(&rig.id).await.expect("keys").len(), keys);
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn points_and_curves_are_read_in_both_forms() {
    let Some(mut rig) = Rig::new("forms").await else {
        return;
    };
    for (bare, by_name) in [(true, false), (false, true), (true, true)] {
        if bare {
            rig.faulty.bare_points();
        }
        if by_name {
            rig.faulty.edwards_by_name();
        }
        let mut keys = vec![rig.key.clone()];
        for spec in [KeySpec::P256, KeySpec::P384, KeySpec::Ed25519] {
            keys.push(generate(&rig.devices, &rig.id, spec).await);
        }
        // Nothing of it is remembered.
        rig.restart().await;
        for key in &keys {
            sign(&rig.devices, key).await.expect("a signature");
        }
        let listed = rig.devices.keys(&rig.id).await.expect("keys");
        assert!(
            listed.iter().all(|entry| entry.spec.is_some()),
            "{listed:?}"
        );
        rig.faulty.heal();
    }
    rig.devices.shutdown().await;
}

// Clients and their turns.

/// Leave to sign a test message, for the local user `uid`.
fn permit_of(uid: u32, key: &KeyRef) -> Permit {
    match decide_own(&Caller::Unix { uid }, key, Purpose::SelfTest) {
        Decision::Granted(grant) => grant.permit(ConsentRule::None).expect("a permit"),
        Decision::Refused(refusal) => panic!("{refusal:?}"),
    }
}

async fn sign_as(uid: u32, devices: &Devices, key: &KeyRef) -> Result<(), DeviceError> {
    let permit = permit_of(uid, key);
    let message = message("hello");
    let signed = devices.sign(permit, Scheme::Es256, &message);
    signed.await.map(drop)
}

/// A rig whose worker signs in one thread, and which waits long.
async fn slow_rig(name: &str) -> Option<Rig> {
    let mut rig = Rig::new(name).await?;
    rig.config.module[0].threads = Some(1);
    rig.config.module[0].call_timeout = Duration::from_secs(30);
    rig.restart().await;
    rig.sign().await.expect("a signature");
    Some(rig)
}

/// Starts signatures, and returns once each waits in the daemon or in the worker.
async fn queue_up(
    uid: u32,
    count: usize,
    rig: &Rig,
) -> Vec<tokio::task::JoinHandle<Result<(), DeviceError>>> {
    let tasks = (0..count)
        .map(|_| {
            let (devices, key) = (rig.devices.clone(), rig.key.clone());
            tokio::spawn(async move { sign_as(uid, &devices, &key).await })
        })
        .collect();
    // On this one thread each of them runs until it waits.
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
    tasks
}

#[tokio::test]
async fn a_client_that_floods_delays_others_by_a_turn() {
    for always_authenticate in [false, true] {
        let Some(mut rig) = slow_rig("flood").await else {
            return;
        };
        if always_authenticate {
            rig.faulty.always_authenticate_with(rig.key.id.as_bytes());
            rig.restart().await;
            rig.sign().await.expect("a signature");
        }
        let slow = rig.faulty.on("C_Sign").slow(Duration::from_millis(30));
        let signed = rig.faulty.calls("C_Sign");
        let flood = queue_up(1, 60, &rig).await;
        eventually("the flood flows", async || {
            rig.faulty.calls("C_Sign") > signed + 3
        })
        .await;
        for _ in 0..3 {
            let before = rig.faulty.calls("C_Sign");
            let one = sign_as(2, &rig.devices, &rig.key).await;
            one.expect("a signature");
            // What was in the worker, and one turn of the other.
            let between = rig.faulty.calls("C_Sign") - before;
            assert!(between <= 6, "{between}");
        }
        rig.faulty.lift(&slow);
        for signed in flood {
            signed.await.expect("no panic").expect("a signature");
        }
        rig.devices.shutdown().await;
    }
}

#[tokio::test]
async fn nothing_is_signed_for_a_client_that_went_away_while_it_waited() {
    let Some(rig) = slow_rig("went away").await else {
        return;
    };
    let hang = rig.faulty.on("C_Sign").hangs();
    let signed = rig.faulty.calls("C_Sign");
    let mut first = queue_up(1, 1, &rig).await;
    eventually("the worker signs", async || {
        rig.faulty.calls("C_Sign") == signed + 1
    })
    .await;
    let others = queue_up(1, 20, &rig).await;
    for other in &others {
        other.abort();
    }
    for other in others {
        assert!(other.await.expect_err("it went away").is_cancelled());
    }
    rig.faulty.lift(&hang);
    let first = first.remove(0).await;
    first.expect("no panic").expect("a signature");
    rig.sign().await.expect("a signature");
    // The worker may have been given one more before they went.
    let calls = rig.faulty.calls("C_Sign") - signed;
    assert!((2..=3).contains(&calls), "{calls}");
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_client_that_takes_all_places_gives_way() {
    let Some(rig) = slow_rig("places").await else {
        return;
    };
    let hang = rig.faulty.on("C_Sign").hangs();
    let flood = queue_up(1, 1100, &rig).await;
    let mut other = queue_up(2, 2, &rig).await;
    rig.faulty.lift(&hang);
    for other in other.drain(..) {
        other.await.expect("no panic").expect("a signature");
    }
    let mut refused = 0;
    for signed in flood {
        match signed.await.expect("no panic") {
            Ok(()) => {}
            Err(DeviceError::Busy { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    // 1,024 places, of which two went to the other, and perhaps some to a look at the slots.
    assert!((78..82).contains(&refused), "{refused}");
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_token_that_is_kept_alive_keeps_its_sessions() {
    let Some(mut rig) = Rig::new("kept alive").await else {
        return;
    };
    rig.config.module[0].threads = Some(1);
    rig.config.module[0].token[0].keepalive = Some(Duration::from_millis(200));
    rig.restart().await;
    rig.sign().await.expect("a signature");
    rig.faulty.idle(Duration::from_secs(2));
    let (sessions, begun) = (rig.faulty.calls("C_OpenSession"), Instant::now());
    // Twice as long as sessions last that nobody uses; of each there are two.
    eventually("it is asked for something again and again", async || {
        begun.elapsed() > Duration::from_secs(4) && rig.faulty.calls("C_GenerateRandom") >= 20
    })
    .await;
    rig.sign().await.expect("a signature");
    assert_eq!(rig.faulty.calls("C_OpenSession"), sessions);
    assert_eq!(rig.spent(), 0);
    rig.devices.shutdown().await;
}

#[tokio::test]
async fn a_token_that_nobody_uses_is_released_and_the_next_request_takes_it_up() {
    let Some(mut rig) = Rig::new("idle").await else {
        return;
    };
    rig.config.module[0].token[0].idle_release = Some(Duration::from_secs(2));
    rig.restart().await;
    rig.sign().await.expect("a signature");
    let (starts, looks) = (rig.starts(), rig.faulty.calls("C_GetSlotList"));
    eventually("the slots are looked at", async || {
        let signed = sign_as(1, &rig.devices, &rig.key).await;
        signed.expect("a signature");
        rig.faulty.calls("C_GetSlotList") > looks + 8
    })
    .await;
    assert_eq!(rig.starts(), starts, "a token in use is not released");
    for _ in 0..2 {
        eventually("it is released", async || {
            state(&rig.devices).await.0 == TokenState::Released
        })
        .await;
        eventually("its worker ends", async || workers("idle").is_empty()).await;
        let (starts, logins) = (rig.starts(), rig.faulty.logins().len());
        let signed = sign_as(1, &rig.devices, &rig.key).await;
        signed.expect("a signature");
        assert_eq!(rig.starts(), starts + 1);
        assert_eq!(rig.faulty.logins().len(), logins + 1);
    }
    assert_eq!(rig.spent(), 0);
    rig.devices.shutdown().await;
}
