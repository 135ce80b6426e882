//! The limit: sign on the token, verify the challenge, verify the signature; no daemon.

use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use opcert::base::encoding::{base64url, sha256};
use opcert::base::key::{KeySpec, Scheme, Signature};
use opcert::statement::Challenge;

use crate::scene::Scene;

/// What goes before a SHA-256 in PKCS #1 v1.5 (RFC 8017 section 9.2, note 1).
pub const SHA256_INFO: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];

pub struct Run {
    pub rate: f64,
    pub p50: Duration,
    pub cpu: Duration,
}

/// Signs `count` approvals' worth with `threads` threads.
pub fn run(bench: &Scene, spec: KeySpec, threads: usize, count: usize) -> Run {
    let module = module(bench);
    let slot = slot(bench, module);
    let anchor = module.open_ro_session(slot).unwrap();
    let pin = AuthPin::from(bench.pin().to_owned());
    let _ = anchor.login(UserType::User, Some(&pin));
    let key_id = bench.key_id(spec);
    let sessions: Vec<(Session, ObjectHandle)> = (0..threads)
        .map(|_| {
            let session = module.open_ro_session(slot).unwrap();
            let wanted = [
                Attribute::Class(ObjectClass::PRIVATE_KEY),
                Attribute::Id(key_id.clone()),
            ];
            let key = session.find_objects(&wanted).unwrap()[0];
            (session, key)
        })
        .collect();
    let challenges = bench.challenges(spec, count);
    let share = count / threads;
    let cpu = process_cpu();
    let start = Instant::now();
    let mut latencies: Vec<Duration> = std::thread::scope(|scope| {
        let workers: Vec<_> = sessions
            .into_iter()
            .zip(challenges.chunks(share))
            .map(|((session, key), challenges)| {
                scope.spawn(move || {
                    challenges
                        .iter()
                        .map(|challenge| {
                            let start = Instant::now();
                            one(bench, spec, &session, key, challenge);
                            start.elapsed()
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect()
    });
    let elapsed = start.elapsed();
    let cpu = process_cpu() - cpu;
    latencies.sort();
    Run {
        rate: latencies.len() as f64 / elapsed.as_secs_f64(),
        p50: latencies[latencies.len() / 2],
        cpu: cpu / u32::try_from(latencies.len()).unwrap(),
    }
}

fn one(bench: &Scene, spec: KeySpec, session: &Session, key: ObjectHandle, challenge: &str) {
    let public = bench.public_key(spec);
    let service = bench.challenge_key();
    let opened = Challenge::open(
        challenge,
        jiff::Timestamp::now(),
        |_, _| Ok(service.clone()),
    )
    .unwrap();
    // As long as an approval's signing input: header with a certificate, and payload.
    let message = format!(
        "{}.{}.{}",
        bench.header(spec),
        opened.hash(),
        base64url(challenge.as_bytes())
    );
    let digest = sha256(message.as_bytes());
    let (scheme, signature) = match spec {
        KeySpec::Rsa2048 => {
            let info = [SHA256_INFO.as_slice(), &digest].concat();
            (
                Scheme::Rs256,
                session.sign(&Mechanism::RsaPkcs, key, &info).unwrap(),
            )
        }
        KeySpec::Ed25519 => {
            let pure = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
            (
                Scheme::EdDsa,
                session.sign(&pure, key, message.as_bytes()).unwrap(),
            )
        }
        _ => (
            Scheme::Es256,
            session.sign(&Mechanism::Ecdsa, key, &digest).unwrap(),
        ),
    };
    public
        .verify(scheme, message.as_bytes(), &Signature::from_jose(signature))
        .unwrap();
}

/// The slot of the scene's token.
pub fn slot(bench: &Scene, module: &Pkcs11) -> Slot {
    module
        .get_slots_with_initialized_token()
        .unwrap()
        .into_iter()
        .find(|slot| module.get_token_info(*slot).unwrap().label() == bench.token_label())
        .unwrap()
}

/// The module, loaded once.
pub fn module(bench: &Scene) -> &'static Pkcs11 {
    static MODULE: std::sync::OnceLock<Pkcs11> = std::sync::OnceLock::new();
    MODULE.get_or_init(|| {
        let module = Pkcs11::new(bench.module_path()).unwrap();
        module
            .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
            .unwrap();
        module
    })
}

/// User and system time of this process. Its threads end with each run, so they cannot be asked
/// one by one afterwards.
fn process_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}
