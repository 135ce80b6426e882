//! The account service: what it does per second, and what grows with the store.
//!
//! One run measures one database: SQLite, or PostgreSQL where `OPCERT_TEST_POSTGRES` names a
//! server; `benches/run account` does both. The service is the real one, with its token (SoftHSM2),
//! its worker, its audit trail and its database, in this process; the callers share its cores.
//!
//! - `account-operations`: operations created with their challenges, and approvals verified and
//!   taken. The peer is the token alone, signing challenges by itself.
//! - `account-ocsp`: answers over HTTPS, kept ones and such as are signed for their question. The
//!   peer is `openssl ocsp` with a key in a file, over plain HTTP.
//! - `account-issue`: certificates issued for tickets. The peer is the token alone, too.
//! - `account-growth`: listing, quota check, the revocation list as it is served and as it is made,
//!   and the memory of this process, with 1,000 to 200,000 certificates, 20 to an account. The peer is
//!   the first size.

#[path = "account/growth.rs"]
mod growth;
#[path = "support/memory.rs"]
mod memory;
#[path = "account/ocsp.rs"]
mod ocsp;
#[path = "support/report.rs"]
mod report;
#[path = "../tests/account/scene.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod scene;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use opcert::account::operations::NewOperation;
use opcert::account::service::Service;
use opcert::account::store::operations::Creator;
use opcert::base::ids::RequestId;
use opcert::base::secret::SecretText;
use opcert::policy::Purpose;
use opcert::statement::{Facts, Origin};

use report::report;
use scene::{Scene, SoftKey};

/// How often each rate is measured.
const ROUNDS: usize = 3;

/// Calls of one kind under way at once.
const IN_FLIGHT: usize = 8;

/// Operations and signatures a round.
const OPERATIONS: usize = 200;

/// Certificates a round.
const CERTIFICATES: usize = 24;

fn main() {
    // `cargo bench` hands over its own flag.
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with("--"))
        .unwrap_or_else(|| "account".into());
    let wanted = |name: &str| name.starts_with(&filter) || filter.starts_with(name);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let kind = match std::env::var_os("OPCERT_TEST_POSTGRES") {
        Some(_) => "postgres",
        None => "sqlite",
    };
    runtime.block_on(async {
        if wanted("account-operations") {
            operations(kind).await;
        }
        if wanted("account-ocsp") {
            ocsp::answers(kind).await;
        }
        if wanted("account-issue") {
            issues(kind).await;
        }
        if wanted("account-growth") {
            growth::curve(kind).await;
        }
    });
}

/// Does `work` for each item, some at once; gives items per second and the results in their order.
pub async fn rate<T, R, F>(
    items: Vec<T>,
    work: impl Fn(T) -> F + Send + Sync + 'static,
) -> (f64, Vec<R>)
where
    T: Send + Sync + Clone + 'static,
    R: Send + 'static,
    F: Future<Output = R> + Send + 'static,
{
    let count = items.len();
    let (items, work) = (Arc::new(items), Arc::new(work));
    let next = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (items, work, next) = (items.clone(), work.clone(), next.clone());
        workers.spawn(async move {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(index) else {
                    return done;
                };
                done.push((index, work(item.clone()).await));
            }
        });
    }
    let mut done: Vec<(usize, R)> = workers.join_all().await.into_iter().flatten().collect();
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    done.sort_by_key(|(index, _)| *index);
    (rate, done.into_iter().map(|(_, result)| result).collect())
}

/// Signatures per second of the service's token, with nothing around them but the worker.
async fn bare(service: &Service) -> f64 {
    let service = service.clone();
    let (rate, _) = rate(vec![(); OPERATIONS], move |()| {
        let service = service.clone();
        async move {
            let key = service.challenge_key();
            // A header of the type that the purpose allows, and any claims.
            let header = format!(
                "{{\"typ\":\"opcert-challenge+jwt\",\"alg\":\"ES256\",\"kid\":\"{}\"}}",
                key.kid()
            );
            let input = format!(
                "{}.{}",
                opcert::base::encoding::base64url(header.as_bytes()),
                opcert::base::encoding::base64url(&[b'x'; 600])
            );
            key.sign(Purpose::Challenge, input).await.unwrap()
        }
    })
    .await;
    rate
}

async fn operations(kind: &str) {
    let scene = Scene::new().await;
    let alice = scene.installed("alice", "c1").await;
    let service_key = scene.service.challenge_key().set().keys[0]
        .to_public_key()
        .unwrap();
    let (mut created_rates, mut approved_rates, mut bare_rates) =
        (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bare_rates.push(bare(&scene.service).await);
        let service = scene.service.clone();
        let (created_rate, created) = rate(vec![(); OPERATIONS], move |()| {
            let service = service.clone();
            async move {
                let new = NewOperation {
                    kind: "withdrawal".parse().unwrap(),
                    account: "acme".parse().unwrap(),
                    operator: "alice".parse().unwrap(),
                    facts: Facts {
                        amount: Some((100_000, "CNY".into())),
                        payee: Some("ICBC 6222 **** 1234".into()),
                        reference: Some("W-1".into()),
                        ..Facts::default()
                    },
                    origin: None::<Origin>,
                    maker: None,
                    creator: Creator::Platform("shop".into()),
                };
                let request = RequestId::random();
                service.operations().begin(new, &request).await.unwrap()
            }
        })
        .await;
        // What the computers do is not the service's work.
        let answers: Vec<_> = created
            .into_iter()
            .map(|(operation, challenge)| {
                let now = scene.clock.now();
                let approval = alice.approve(&challenge.challenge, now, service_key.clone());
                (operation.id, approval)
            })
            .collect();
        let service = scene.service.clone();
        let (approved_rate, _) = rate(answers, move |(id, approval)| {
            let service = service.clone();
            async move {
                let request = RequestId::random();
                service
                    .operations()
                    .approve(&id, &approval, &request)
                    .await
                    .unwrap();
            }
        })
        .await;
        created_rates.push(created_rate);
        approved_rates.push(approved_rate);
    }
    let name = |what: &str| format!("account-operations-{kind}-{what}");
    report(
        &name("created-and-challenged"),
        "operations/s",
        &created_rates,
        &bare_rates,
    );
    report(
        &name("approved-and-verified"),
        "operations/s",
        &approved_rates,
        &bare_rates,
    );
    scene.end().await;
}

async fn issues(kind: &str) {
    let scene = Scene::with(|config| {
        config.quotas.certificates = 10_000;
        config.quotas.computers = 10_000;
        config.sms.daily = 100;
        config.certificates.ticket_lifetime_seconds = 3600;
    })
    .await;
    let (mut rates, mut bare_rates) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        bare_rates.push(bare(&scene.service).await);
        let mut asked = Vec::new();
        for index in 0..CERTIFICATES {
            let ticket = scene.ticket("alice", &format!("c{round}-{index}")).await;
            asked.push((ticket, SoftKey::new().csr()));
        }
        let service = scene.service.clone();
        let (issued, _) = rate(asked, move |(ticket, csr)| {
            let service = service.clone();
            async move {
                let request = RequestId::random();
                service
                    .enrolment()
                    .enrol(&SecretText::new(ticket), &csr, &request)
                    .await
                    .unwrap();
            }
        })
        .await;
        rates.push(issued);
    }
    report(
        &format!("account-issue-{kind}"),
        "certificates/s",
        &rates,
        &bare_rates,
    );
    scene.end().await;
}
