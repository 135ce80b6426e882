//! What listing, quota check and revocation list cost as the store grows.

use std::process::Command;
use std::time::{Duration, Instant};

use opcert::account::config::Config;
use opcert::account::issuing::CRL_LIFETIME;
use opcert::account::store::certificates::{self, Search};
use opcert::account::store::{Store, StoreError};
use opcert::base::encoding::hex;
use opcert::base::ids::AccountId;

use crate::memory::resident_mib;
use crate::report::report;
use crate::report::{micros, millis};
use crate::scene::{Scene, succeed_with};

/// Certificates in the store, one size after the other.
const SIZES: [usize; 6] = [1_000, 5_000, 20_000, 50_000, 100_000, 200_000];

/// Certificates of one account, on half as many computers.
const EACH: usize = 20;

/// Certificates that are revoked and on the list, whatever the size.
const REVOKED: usize = 500;

/// Each figure is the least of so many calls, as a busy machine only adds to it; and there are so
/// many of them at each size.
const CALLS: usize = 20;
const FIGURES: usize = 5;

fn account(index: usize) -> AccountId {
    format!("a{index}").parse().unwrap()
}

/// Runs SQL on the service's database, by the database's own program: the store writes row by row,
/// with a record each, and is not what is measured here.
fn sql(scene: &Scene, text: &str) {
    let url = Config::load(&scene.made.config)
        .unwrap()
        .database()
        .unwrap();
    let mut program = match url.strip_prefix("sqlite:") {
        Some(path) => {
            let script =
                "import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.stdin.read())";
            let mut python = Command::new("python3");
            python.args(["-c", script, path]);
            python
        }
        None => {
            let mut psql = Command::new("psql");
            psql.args([&url, "--quiet", "--set", "ON_ERROR_STOP=1", "--file", "-"]);
            psql
        }
    };
    succeed_with(&mut program, text);
}

/// Accounts `from` to `to`, each with an operator and its certificates.
fn fill(kind: &str, scene: &Scene, from: usize, to: usize) {
    let now = scene.clock.now().as_millisecond();
    let der = hex(scene.made.authority().der());
    let issuer = scene.service.issuer().key();
    let (der, serial, fingerprint, after) = match kind {
        "postgres" => (
            format!("'\\x{der}'"),
            "md5(i || '-' || j || random()::text)",
            "md5(i || '+' || j || random()::text) || md5(random()::text)",
            // As its own daemon does before long.
            "VACUUM ANALYZE;",
        ),
        _ => (
            format!("X'{der}'"),
            "lower(hex(randomblob(16)))",
            "lower(hex(randomblob(32)))",
            "",
        ),
    };
    let year = 365 * 24 * 60 * 60 * 1000_i64;
    let numbers = format!(
        "WITH RECURSIVE n(i) AS (SELECT {from} UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {to}),
         c(j) AS (SELECT 0 UNION ALL SELECT j + 1 FROM c WHERE j + 1 < {EACH})"
    );
    sql(
        scene,
        &format!(
            "BEGIN;
             {numbers} INSERT INTO accounts (id, name, created_at)
             SELECT 'a' || i, 'Bench Ltd', {now} FROM n;
             {numbers} INSERT INTO operators (account, id, role, mobile, password_hash, created_at)
             SELECT 'a' || i, 'alice', 'operator', '+8613800000009', 'none', {now} FROM n;
             {numbers} INSERT INTO computers (account, id, name, created_at)
             SELECT 'a' || i, 'c' || j, 'desk', {now} FROM n CROSS JOIN c WHERE j < {EACH} / 2;
             {numbers} INSERT INTO certificates (serial, account, operator, computer, request_hash,
                                                 key_fingerprint, der, not_before, not_after,
                                                 issued_at, issuer)
             SELECT {serial}, 'a' || i, 'alice', 'c' || (j / 2), 'bench', {fingerprint}, {der},
                    {now}, {now} + {year}, {now} - j * 1000, '{issuer}'
             FROM n CROSS JOIN c;
             COMMIT;
             {after}"
        ),
    );
}

/// Revokes certificates of an account, at most `limit`.
async fn revoke(store: &Store, account: &AccountId, limit: usize, scene: &Scene) -> usize {
    let now = scene.clock.now();
    store
        .transaction("revoke", move |tx| {
            Box::pin(async move {
                let found = certificates::list(tx, Some(account), 1_000).await?;
                let mut open = found.iter().filter(|one| one.revoked.is_none());
                let mut done = 0;
                while done < limit
                    && let Some(one) = open.next()
                {
                    certificates::revoke(tx, &one.serial, "superseded", "bench", now).await?;
                    done += 1;
                }
                Ok::<_, StoreError>(done)
            })
        })
        .await
        .unwrap_or_else(|error| panic!("{error:?}"))
}

/// Figures of a size: making a list in milliseconds, the other questions in microseconds.
#[derive(Default, Clone)]
struct Times {
    listing: Vec<f64>,
    quota: Vec<f64>,
    served: Vec<f64>,
    made: Vec<f64>,
    /// Of this process, the service and its callers in one, in MiB.
    resident: Vec<f64>,
}

/// The least of the durations.
fn least(durations: Vec<Duration>) -> Duration {
    durations.into_iter().min().unwrap_or_default()
}

async fn measure(scene: &Scene, accounts: usize) -> Times {
    let mut times = Times::default();
    for figure in 0..FIGURES {
        let (mut listing, mut quota, mut served) = (Vec::new(), Vec::new(), Vec::new());
        for call in 0..CALLS {
            let account = &account((figure * CALLS + call) * 7919 % accounts);
            listing.push(timed(list(scene, account)).await);
            quota.push(timed(count(scene, account)).await);
            served.push(timed(revocations(scene)).await);
        }
        // Half the time of a list is over each time, so that the next is due.
        let mut made = Vec::new();
        for _ in 0..FIGURES {
            scene.hand.advance(CRL_LIFETIME / 2);
            made.push(timed(revocations(scene)).await);
        }
        times.listing.push(micros(least(listing)));
        times.quota.push(micros(least(quota)));
        times.served.push(micros(least(served)));
        times.made.push(millis(least(made)));
        times.resident.push(resident_mib(std::process::id()));
    }
    times
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let begun = Instant::now();
    work.await;
    begun.elapsed()
}

/// The first page of an account's certificates in force, as its people see it.
async fn list(scene: &Scene, account: &AccountId) {
    let now = scene.clock.now();
    let page = scene
        .service
        .store()
        .read("list", move |tx| {
            Box::pin(async move {
                let search = Search {
                    active: true,
                    ..Search::default()
                };
                certificates::search(tx, account, &search, now, 51).await
            })
        })
        .await
        .unwrap_or_else(|error: StoreError| panic!("{error:?}"));
    assert!(page.len() <= EACH);
}

/// What an installation counts.
async fn count(scene: &Scene, account: &AccountId) {
    let now = scene.clock.now();
    let counted = scene
        .service
        .store()
        .read("count", move |tx| {
            Box::pin(certificates::counts(tx, account, now))
        })
        .await
        .unwrap_or_else(|error: StoreError| panic!("{error:?}"));
    assert!(counted.0 <= EACH as i64);
}

/// The list, made where it is due.
async fn revocations(scene: &Scene) {
    scene.service.issuer().crl(None).await.unwrap().unwrap();
}

pub async fn curve(kind: &str) {
    let scene = Scene::new().await;
    let mut there = 0;
    let mut first: Option<Times> = None;
    for size in SIZES {
        fill(kind, &scene, there, size / EACH);
        if there == 0 {
            let mut left = REVOKED;
            for index in 0.. {
                if left == 0 {
                    break;
                }
                left -= revoke(scene.service.store(), &account(index), left, &scene).await;
            }
        }
        there = size / EACH;
        // The list and every table are read once before they are timed.
        measure(&scene, there).await;
        let times = measure(&scene, there).await;
        let base = first.get_or_insert_with(|| times.clone());
        for (what, unit, ours, peer) in [
            ("listing", "us", &times.listing, &base.listing),
            ("quota", "us", &times.quota, &base.quota),
            ("list-served", "us", &times.served, &base.served),
            ("list-made", "ms", &times.made, &base.made),
            ("service", "MiB", &times.resident, &base.resident),
        ] {
            let name = format!("account-growth-{kind}-{what}-{size}");
            report(&name, unit, ours, peer);
        }
    }
    scene.end().await;
}
