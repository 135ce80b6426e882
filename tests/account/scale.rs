//! A database of twenty thousand accounts and two hundred thousand certificates: what each request
//! reads of it, as PostgreSQL's own `auto_explain` reports of the queries that the service sends.
//!
//! Plans are forced to be generic, as those of prepared statements may become, so nothing rests on
//! the planner's knowing a value. PostgreSQL only: with SQLite the test says so and ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use opcert::account::webhooks::Courier;

use super::people::Browser;
use super::scene::*;
use super::support::wait::within;

/// Accounts beside acme; each has two operators, two computers, ten certificates, ten operations.
const ACCOUNTS: u64 = 20_000;

/// The most rows that a query of a request may read.
const MOST: f64 = 500.0;

/// How often each request is made, as the first may be served otherwise than the next.
const TIMES: usize = 3;

/// The tables that grow with accounts, operators, certificates or operations.
const FILL: &str = r"
SET auto_explain.log_min_duration = -1;
SET session_replication_role = replica;
SET synchronous_commit = off;
CREATE TEMP TABLE scale AS
    SELECT a.created_at AS now, o.password_hash, p.statement, p.platform_key, s.id AS subscription
    FROM accounts a, operators o, operations p LEFT JOIN subscriptions s ON true
    WHERE a.id = 'acme' AND o.account = 'acme' AND o.id = 'alice' LIMIT 1;
INSERT INTO accounts (id, name, created_at, issued)
    SELECT 'm' || i, 'Merchant ' || i, now, 10 FROM scale, generate_series(1, :accounts) i;
INSERT INTO operators (account, id, role, mobile, password_hash, created_at)
    SELECT 'm' || i, 'o' || j, 'operator', '+86139' || lpad((2 * i + j)::text, 8, '0'), password_hash, now
    FROM scale, generate_series(1, :accounts) i, generate_series(1, 2) j;
INSERT INTO computers (account, id, name, created_at)
    SELECT 'm' || i, 'c' || j, 'till ' || j, now
    FROM scale, generate_series(1, :accounts) i, generate_series(1, 2) j;
INSERT INTO certificates (serial, account, operator, computer, request_hash, key_fingerprint, der,
                          not_before, not_after, issued_at, last_used_at, revoked_at,
                          revocation_reason, revoked_by, issuer)
    SELECT '4' || substr(md5(i || '.' || j), 1, 31), 'm' || i, 'o' || (1 + j % 2), 'c' || (1 + j % 2),
           md5('r' || i || '.' || j), md5('k' || i || '.' || j), decode(repeat('30', 700), 'hex'),
           now - j * 7776000000, now - j * 7776000000 + 63072000000, now - j * 7776000000, now - 86400000,
           CASE WHEN (i + j) % 10 = 0 THEN now - j * 86400000 END,
           CASE WHEN (i + j) % 10 = 0 THEN 'superseded' END,
           CASE WHEN (i + j) % 10 = 0 THEN 'service' END,
           (SELECT fingerprint FROM service_keys WHERE purpose = 'issuing' AND retired_at IS NULL)
    FROM scale, generate_series(1, :accounts) i, generate_series(1, 10) j;
INSERT INTO operations (id, account, operator, statement, state, platform_key, created_at, expires_at,
                        closed_at, events)
    SELECT 'op-' || i || '-' || j, 'm' || i, 'o1', replace(statement, 'acme', 'm' || i), 'approved',
           platform_key, now - j * 86400000 - i, now - j * 86400000, now - j * 86400000, 1
    FROM scale, generate_series(1, :accounts) i, generate_series(1, 10) j;
INSERT INTO challenges (jti, operation, operator, challenge, created_at, expires_at)
    SELECT 'challenge-' || id, id, 'o1', 'of the fill', created_at, expires_at FROM operations
    WHERE account <> 'acme';
INSERT INTO approvals (operation, operator, challenge, certificate, computer, approval, accepted_at)
    SELECT id, 'o1', 'challenge-' || id, 'of the fill', 'c1', 'of the fill', closed_at FROM operations
    WHERE account <> 'acme';
INSERT INTO outbox (id, event, subscription, operation, place, body, created_at, next_attempt_at, delivered_at)
    SELECT 'n-' || o.id, 'e-' || o.id, subscription, o.id, 1, '{}', o.closed_at, o.closed_at, o.closed_at
    FROM scale, operations o WHERE o.account <> 'acme';
INSERT INTO events (id, account, at, kind, request, body)
    SELECT 'v-' || i || '-' || j, 'm' || i, now - j * 86400000, 'operation-approved', 'r', '{}'
    FROM scale, generate_series(1, :accounts) i, generate_series(1, 10) j;
INSERT INTO notices (id, account, audience, kind, body, created_at)
    SELECT 't-' || i || '-' || j, 'm' || i, 'administrators', 'installed', '{}', now - j * 86400000
    FROM scale, generate_series(1, :accounts) i, generate_series(1, 3) j;
INSERT INTO mobiles (mobile, sent)
    SELECT DISTINCT mobile, 10 FROM operators WHERE account <> 'acme';
INSERT INTO sms_codes (id, account, operator, purpose, computer, computer_name, mobile, mac, created_at,
                       expires_at, tries_left, spent_at)
    SELECT 's-' || i || '-' || j, 'm' || i, 'o1', 'install', 'c1', 'till', '+86139' || lpad((2 * i + 1)::text, 8, '0'),
           decode(repeat('30', 32), 'hex'), now - j * 86400000, now - j * 86400000, 3, now - j * 86400000
    FROM scale, generate_series(1, :accounts) i, generate_series(1, 10) j;
INSERT INTO tickets (jti, short_hash, purpose, code, account, operator, computer, computer_name,
                     created_at, expires_at)
    SELECT 'ticket-' || id, md5(id), 'install', id, account, operator, computer, computer_name, created_at,
           expires_at FROM sms_codes WHERE account <> 'acme';
INSERT INTO sessions (token_hash, account, operator, created_at, last_seen_at, expires_at)
    SELECT md5('s' || i), 'm' || i, 'o1', now, now, now + 43200000
    FROM scale, generate_series(1, :accounts) i;
INSERT INTO idempotency (principal, key, request_hash, status, body, created_at)
    SELECT 'platform-key:shop', 'k-' || i, 'h', 201, '{}', now
    FROM scale, generate_series(1, :accounts) i;
VACUUM ANALYZE;
";

/// Two hundred thousand notices, all due, to a receiver that does not answer.
const BACKLOG: &str = r"
SET auto_explain.log_min_duration = -1;
INSERT INTO outbox (id, event, subscription, operation, place, body, created_at, next_attempt_at)
    SELECT 'b-' || o.id, 'e-' || o.id, s.id, o.id, 2, '{}', o.closed_at, o.closed_at
    FROM operations o, subscriptions s WHERE o.account <> 'acme' AND s.url LIKE '%/silent';
VACUUM ANALYZE outbox;
";

/// How many notices were tried, to the silent receiver and to the other.
const TRIED: &str = r"
SET auto_explain.log_min_duration = -1;
SELECT COUNT(*) FILTER (WHERE s.url LIKE '%/silent') || ' ' || COUNT(*) FILTER (WHERE s.url LIKE '%/hook')
FROM outbox o JOIN subscriptions s ON s.id = o.subscription WHERE o.error IS NOT NULL;
";

/// Where the server writes its log: `tests/postgres` says so by the directory of its socket.
fn log_of(url: &str) -> PathBuf {
    let directory = url.split("host=").nth(1).unwrap();
    Path::new(directory.split('&').next().unwrap()).join("log")
}

fn psql(url: &str, sql: &str) -> String {
    let accounts = format!("accounts={ACCOUNTS}");
    let mut command = Command::new("psql");
    command
        .args([url, "--quiet", "--no-align", "--tuples-only"])
        .args(["--set", "ON_ERROR_STOP=1", "--set", &accounts]);
    succeed_with(&mut command, sql)
}

/// A query and what it read.
struct Read {
    query: String,
    rows: f64,
    /// Tables that were read from one end to the other, and how many rows of them.
    whole: Vec<(String, f64)>,
}

/// Adds up what the nodes of a plan that look into tables have read.
fn add(node: &Value, read: &mut Read) {
    let number = |key: &str| node[key].as_f64().unwrap_or(0.0);
    if node["Node Type"].as_str().unwrap().contains("Scan") {
        let rows = number("Actual Loops")
            * (number("Actual Rows")
                + number("Rows Removed by Filter")
                + number("Rows Removed by Index Recheck"));
        read.rows += rows;
        if node["Node Type"] == "Seq Scan" {
            let table = node["Relation Name"].as_str().unwrap().to_owned();
            read.whole.push((table, rows));
        }
    }
    for below in node["Plans"].as_array().into_iter().flatten() {
        add(below, read);
    }
}

/// The queries in a part of the server's log.
fn reads(log: &str) -> Vec<Read> {
    log.split("  plan:\n")
        .skip(1)
        .map(|text| {
            let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
            let plan = values.next().unwrap().unwrap();
            let query = plan["Query Text"].as_str().unwrap();
            let mut read = Read {
                query: query.split_whitespace().collect::<Vec<_>>().join(" "),
                rows: 0.0,
                whole: Vec::new(),
            };
            add(&plan["Plan"], &mut read);
            read
        })
        .collect()
}

/// The log of the server, read on from where it was left.
struct Log {
    path: PathBuf,
    at: usize,
}

impl Log {
    fn rest(&mut self) -> String {
        let bytes = std::fs::read(&self.path).unwrap();
        let text = String::from_utf8_lossy(&bytes[self.at..]).into_owned();
        self.at = bytes.len();
        text
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_read_as_much_of_a_large_database_as_of_a_small_one() {
    let Some(server) = std::env::var_os("OPCERT_TEST_POSTGRES") else {
        println!("needs PostgreSQL: tests/postgres cargo test --test account");
        return;
    };
    let mut address = String::new();
    let scene = Scene::with(|config| {
        address = config.database().unwrap();
        let (path, _) = address.split_once('?').unwrap();
        let name = path.rsplit('/').next().unwrap();
        let settings = [
            "session_preload_libraries = 'auto_explain'",
            "auto_explain.log_min_duration = 0",
            "auto_explain.log_analyze = on",
            "auto_explain.log_timing = off",
            "auto_explain.log_format = json",
            "plan_cache_mode = force_generic_plan",
        ];
        for setting in settings {
            psql(&address, &format!("ALTER DATABASE {name} SET {setting};"));
        }
    })
    .await;
    let alice = scene.installed("alice", "c1").await;
    let hook = json!({"url": "https://127.0.0.1:9/hook"});
    scene
        .platform(Method::POST, "/v1/webhooks", Some(hook))
        .await
        .done(201);
    scene.withdrawal("alice").await;
    let begun = Instant::now();
    psql(&address, FILL);
    println!("filled in {} s", begun.elapsed().as_secs());
    let browser = Browser::log_in(&scene, "alice").await;

    let mut log = Log {
        path: log_of(&server.to_string_lossy()),
        at: 0,
    };
    log.rest();
    let mut seen: BTreeMap<&str, Vec<Read>> = BTreeMap::new();
    let mut measured = Vec::new();
    macro_rules! hot {
        ($name:literal, $request:expr) => {
            for _ in 0..TIMES {
                let begun = Instant::now();
                $request;
                let took = begun.elapsed();
                let queries = reads(&log.rest());
                measured.push(($name, queries.len(), took));
                seen.entry($name).or_default().extend(queries);
            }
        };
    }
    hot!("an operation is created", {
        scene.withdrawal("alice").await;
    });
    hot!("an operation is approved", {
        let operation = scene.withdrawal("alice").await;
        let approval = scene.approval(&alice, &operation.text("challenge"));
        scene.post_approval(&operation, &approval).await.done(200);
    });
    let operation = scene.withdrawal("alice").await;
    let id = operation.json["operation"]["id"].as_str().unwrap();
    let path = format!("/v1/operations/{id}");
    hot!("the platform asks for an operation", {
        scene.platform(Method::GET, &path, None).await.done(200);
    });
    hot!("the platform lists an account's operations", {
        scene
            .platform(Method::GET, "/v1/operations?account=acme", None)
            .await
            .done(200);
    });
    hot!("the platform lists an account's operations in a state", {
        let path = "/v1/operations?account=acme&state=approved";
        scene.platform(Method::GET, path, None).await.done(200);
    });
    hot!("the platform lists operations", {
        let path = "/v1/operations?limit=50";
        scene.platform(Method::GET, path, None).await.done(200);
    });
    hot!("a certificate is installed", {
        scene.installed("bob", "c2").await;
    });
    let browser_gets = [
        "/v1/certificates",
        "/v1/computers",
        "/v1/notices",
        "/v1/events",
        "/v1/session",
    ];
    for path in browser_gets {
        hot!("a person reads the portal's lists", {
            let answer = browser.get(path).await;
            // Some are for administrators, which is asked of the database too.
            assert!(matches!(answer.status.as_u16(), 200 | 403), "{answer:?}");
        });
    }
    // The first makes the list.
    let begun = Instant::now();
    let crl = scene.get("/pki/issuing.crl").await.done(200).bytes;
    let made = begun.elapsed();
    log.rest();
    let begun = Instant::now();
    scene.get("/pki/issuing.crl").await.done(200);
    let again = begun.elapsed();
    let counted = reads(&log.rest());
    let entries: u64 = psql(
        &address,
        "SELECT COUNT(*) FROM certificates c, accounts a WHERE a.id = 'acme' AND c.revoked_at IS NOT NULL
         AND c.not_after >= a.created_at;",
    )
    .trim()
    .parse()
    .unwrap();
    log.rest();

    let silent = json!({"url": "https://127.0.0.1:9/silent"});
    scene
        .platform(Method::POST, "/v1/webhooks", Some(silent))
        .await
        .done(201);
    psql(&address, BACKLOG);
    log.rest();
    let courier = Courier::new(None, scene.service.clone()).unwrap();
    let begun = Instant::now();
    let task = tokio::spawn(courier.run());
    within(
        Duration::from_secs(60),
        "both receivers are tried",
        async || {
            let tried = psql(&address, TRIED);
            let (silent, other) = tried.trim().split_once(' ').unwrap();
            silent.parse::<u64>().unwrap() > 20 && other.parse::<u64>().unwrap() > 0
        },
    )
    .await;
    task.abort();
    let looks = "notices are looked for and tried, 200,000 due";
    let queries = reads(&log.rest());
    measured.push((looks, queries.len(), begun.elapsed()));
    seen.insert(looks, queries);

    let mut wrong = Vec::new();
    for (name, queries) in &seen {
        assert!(!queries.is_empty(), "{name}");
        for read in queries {
            let whole = read.whole.iter().any(|(_, rows)| *rows > MOST);
            if read.rows > MOST || whole {
                wrong.push(format!("{name}: {} rows: {}", read.rows, read.query));
            }
        }
        let most = queries.iter().map(|read| read.rows).fold(0.0, f64::max);
        let took: Duration = measured
            .iter()
            .filter(|(one, ..)| one == name)
            .map(|(.., took)| *took)
            .min()
            .unwrap();
        println!(
            "{name}: {} queries, {most} rows at most, {} ms",
            queries.len() / TIMES,
            took.as_millis()
        );
    }
    println!(
        "revocation list: {entries} entries, {} bytes, made in {} ms, given again in {} ms ({} rows counted)",
        crl.len(),
        made.as_millis(),
        again.as_millis(),
        counted.iter().map(|read| read.rows).fold(0.0, f64::max)
    );
    println!(
        "{}",
        psql(
            &address,
            "SELECT relname || ': ' || n_live_tup || ' rows, ' || pg_total_relation_size(relid) / n_live_tup
             || ' bytes each' FROM pg_stat_user_tables WHERE n_live_tup > 1000 ORDER BY relname;"
        )
    );
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
