//! `doctor`: looks for what is wrong and names the command that mends it.
//!
//! It goes from the files to the database, to the keys on the token, to what they signed, to the
//! others the service talks to, and goes on past a failure where the next check can still say
//! something new. It changes nothing, and may run beside the service.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::AdminError;
use super::output::Output;
use crate::account::config::{Config, Webhook};
use crate::account::outgoing;
use crate::account::service::{CODE_KEY_BYTES, CODE_KEY_FILE};
use crate::account::signer::Signer;
use crate::account::sms::GatewayKind;
use crate::account::store::certificates::{self, StoredCrl};
use crate::account::store::keys::{self, KeyPurpose, ServiceKey};
use crate::account::store::{Store, StoreError, messages, outbox};
use crate::base::Clock;
use crate::base::encoding::hex;
use crate::base::files::{FileError, Readers, check_directory, read_checked};
use crate::base::x509::Certificate;
use crate::device::Devices;
use crate::http::Client;
use crate::http::client::{ClientLimits, Target};
use crate::http::tls::{self, Identity};
use crate::policy::{Purpose, SELF_TEST_PREFIX};
use crate::telemetry::Chain;

/// A certificate that ends sooner than this is spoken of.
const SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How far the clock may be behind what is in the database.
const BEHIND: Duration = Duration::from_secs(5 * 60);

/// Largest PEM file that is read, in bytes.
const PEM_LIMIT: u64 = 256 * 1024;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    finding: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
}

/// All things looked at.
#[derive(Debug, Default)]
struct Findings(Vec<Check>);

impl Findings {
    fn add(
        &mut self,
        name: &'static str,
        verdict: Verdict,
        finding: impl Into<String>,
        action: Option<&str>,
    ) {
        self.0.push(Check {
            name,
            verdict,
            finding: finding.into(),
            action: action.map(ToOwned::to_owned),
        });
    }

    fn ok(&mut self, name: &'static str, finding: impl Into<String>) {
        self.add(name, Verdict::Ok, finding, None);
    }

    fn warn(&mut self, name: &'static str, finding: impl Into<String>, action: &str) {
        self.add(name, Verdict::Warn, finding, Some(action));
    }

    fn fail(&mut self, name: &'static str, finding: impl Into<String>, action: &str) {
        self.add(name, Verdict::Fail, finding, Some(action));
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for check in &self.0 {
            let sign = match check.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            text.push_str(&format!("{sign}  {}: {}\n", check.name, check.finding));
            if let Some(action) = &check.action {
                text.push_str(&format!("      {action}\n"));
            }
        }
        text
    }
}

pub(super) async fn run(config: &Config, output: &Output) -> Result<(), AdminError> {
    let clock = Clock::system();
    let mut findings = Findings::default();
    files(config, &mut findings);
    tls_identity(config, clock.now(), &mut findings);
    let seen = database(config, &mut findings).await;
    if let Some(seen) = &seen {
        time(seen, clock.now(), &mut findings);
        list(seen, clock.now(), &mut findings);
        deliveries(seen, &mut findings);
    }
    service_keys(config, seen.as_ref(), &clock, &mut findings).await;
    let sms = config.sms.webhook.as_ref();
    match (config.sms.gateway, sms) {
        (GatewayKind::Webhook, Some(webhook)) => reach("SMS gateway", webhook, &mut findings).await,
        _ => findings.warn(
            "SMS gateway",
            "codes are printed on standard output",
            "For more than a trial set sms.gateway to \"webhook\" and [sms.webhook].",
        ),
    }
    if let Some(webhook) = &config.webhook {
        reach("webhook", webhook, &mut findings).await;
    }
    let broken = findings
        .0
        .iter()
        .filter(|check| check.verdict == Verdict::Fail)
        .count();
    output.done(&findings.text(), &json!({ "checks": findings.0 }))?;
    if broken > 0 {
        return Err(AdminError::Broken { broken });
    }
    Ok(())
}

/// Whether the files are there, and closed to whom they do not concern.
fn files(config: &Config, findings: &mut Findings) {
    let state = &config.state_directory;
    let mend = |path: &Path, mode: &str| {
        format!(
            "Give {0} to the user of the service and close it: `chown USER {0} && chmod {mode} {0}`; \
             what is lost comes back with `opcert-accountd restore`.",
            path.display()
        )
    };
    match check_directory(state) {
        Ok(()) => findings.ok("state directory", state.display().to_string()),
        Err(error) => findings.fail("state directory", said(&error), &mend(state, "700")),
    }
    let path = state.join(CODE_KEY_FILE);
    match read_checked(&path, Readers::Owner, CODE_KEY_BYTES as u64) {
        Ok(bytes) if bytes.len() == CODE_KEY_BYTES => {
            findings.ok("code key", path.display().to_string());
        }
        Ok(_) => findings.fail(
            "code key",
            format!("{} must hold {CODE_KEY_BYTES} bytes", path.display()),
            "Put the file of a backup in its place: `opcert-accountd restore`.",
        ),
        Err(error) => findings.fail("code key", said(&error), &mend(&path, "600")),
    }
    let database = config.database().ok();
    if let Some(path) = database.and_then(|url| Store::file(&url).ok().flatten()) {
        use std::os::unix::fs::PermissionsExt as _;
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.permissions().mode() & 0o077 == 0 => {
                findings.ok("database file", path.display().to_string());
            }
            Ok(_) => findings.fail(
                "database file",
                format!("others may read {}", path.display()),
                &mend(&path, "600"),
            ),
            Err(error) => findings.fail(
                "database file",
                format!("{}: {error}", path.display()),
                "Put a backup in its place: `opcert-accountd restore`.",
            ),
        }
    }
}

fn said(error: &FileError) -> String {
    Chain(error).to_string()
}

/// Whether certificate and key make a TLS server, and for how long.
fn tls_identity(config: &Config, now: Timestamp, findings: &mut Findings) {
    const ACTION: &str = "Put a new chain and key where [tls] says, and start the service again.";
    let (certificate, key) = (
        config.path(&config.tls.certificate),
        config.path(&config.tls.key),
    );
    let chain = match read_checked(&certificate, Readers::Anybody, PEM_LIMIT) {
        Ok(chain) => chain,
        Err(error) => return findings.fail("TLS", said(&error), ACTION),
    };
    let key = match read_checked(&key, Readers::Owner, PEM_LIMIT) {
        Ok(key) => key,
        Err(error) => return findings.fail("TLS", said(&error), ACTION),
    };
    if let Err(error) = Identity::from_pem(&chain, &key).and_then(tls::public) {
        return findings.fail("TLS", Chain(&error).to_string(), ACTION);
    }
    match Certificate::from_pem(&chain) {
        Ok(leaf) => expiry("TLS", leaf.not_after(), now, ACTION, findings),
        Err(error) => findings.fail("TLS", Chain(&error).to_string(), ACTION),
    }
}

fn expiry(
    name: &'static str,
    end: Timestamp,
    now: Timestamp,
    action: &str,
    findings: &mut Findings,
) {
    if end <= now {
        findings.fail(name, format!("the certificate expired at {end}"), action);
    } else if end <= now + SOON {
        findings.warn(name, format!("the certificate expires at {end}"), action);
    } else {
        findings.ok(name, format!("good until {end}"));
    }
}

/// What the database says of the rest.
struct Seen {
    keys: Vec<(KeyPurpose, ServiceKey)>,
    crl: Option<StoredCrl>,
    revocations: i64,
    dead: i64,
    failed_texts: i64,
    newest: Option<Timestamp>,
}

async fn database(config: &Config, findings: &mut Findings) -> Option<Seen> {
    let url = match config.database() {
        Ok(url) => url,
        Err(error) => {
            findings.fail(
                "database",
                Chain(&error).to_string(),
                "Correct `database` and `database-password-file` in the configuration.",
            );
            return None;
        }
    };
    let store = match Store::open(&url).await {
        Ok(store) => store,
        Err(error @ StoreError::Schema { found, needed }) => {
            let action = if found < needed {
                "Make a backup, then run `opcert-accountd migrate`."
            } else {
                "Run the version of the program that made it, or a later one."
            };
            findings.fail("database", error.to_string(), action);
            return None;
        }
        Err(error) => {
            findings.fail(
                "database",
                Chain(&error).to_string(),
                "Start the database, or put a backup in its place: `opcert-accountd restore`.",
            );
            return None;
        }
    };
    let now = Clock::system().now();
    let seen = store
        .read("look at everything", move |tx| {
            Box::pin(async move {
                let mut found = Vec::new();
                for purpose in [
                    KeyPurpose::Issuing,
                    KeyPurpose::Challenge,
                    KeyPurpose::Sealing,
                ] {
                    let current = keys::current(tx, purpose).await?;
                    let next = keys::next(tx, purpose).await?;
                    // These go on signing lists and answers for what they signed.
                    if purpose == KeyPurpose::Issuing {
                        let retired = keys::retired(tx, purpose, now).await?;
                        found.extend(retired.into_iter().map(|key| (purpose, key)));
                    }
                    found.extend(current.map(|key| (purpose, key)));
                    found.extend(next.map(|key| (purpose, key)));
                }
                Ok::<_, StoreError>(Seen {
                    keys: found,
                    crl: match keys::current(tx, KeyPurpose::Issuing).await? {
                        Some(key) => {
                            certificates::newest_crl(tx, &keys::name(&key.public_key)).await?
                        }
                        None => None,
                    },
                    revocations: certificates::revocations(tx).await?,
                    dead: outbox::abandoned(tx).await?,
                    failed_texts: messages::failed(tx).await?,
                    newest: certificates::newest_issue(tx).await?,
                })
            })
        })
        .await;
    store.close().await;
    match seen {
        Ok(seen) => {
            findings.ok("database", "it answers, and its schema is this version's");
            Some(seen)
        }
        Err(error) => {
            findings.fail(
                "database",
                Chain(&error).to_string(),
                "Look at the log of the database.",
            );
            None
        }
    }
}

/// Whether this computer's clock is plausible: nothing in the database is from its future.
fn time(seen: &Seen, now: Timestamp, findings: &mut Findings) {
    let newest = seen
        .newest
        .max(seen.crl.as_ref().map(|crl| crl.this_update));
    match newest {
        Some(newest) if newest > now + BEHIND => findings.fail(
            "time",
            format!("it is {now:.0} here, and the database has a change of {newest:.0}"),
            "Set the clock right: `timedatectl set-ntp true`.",
        ),
        _ => findings.ok("time", format!("{now:.0}")),
    }
}

/// Whether the revocation list that is served is fresh. It is made when it is asked for.
fn list(seen: &Seen, now: Timestamp, findings: &mut Findings) {
    match &seen.crl {
        None => findings.ok("revocation list", "none was asked for yet"),
        Some(crl) if crl.next_update <= now || crl.revocations != seen.revocations => {
            findings.warn(
                "revocation list",
                format!(
                    "number {} is from {:.0}; nobody has asked for one since",
                    crl.number, crl.this_update
                ),
                "Have computers ask for it regularly: `systemctl enable --now opcert-sync.timer`.",
            );
        }
        Some(crl) => findings.ok(
            "revocation list",
            format!("number {}, good until {:.0}", crl.number, crl.next_update),
        ),
    }
}

fn deliveries(seen: &Seen, findings: &mut Findings) {
    match seen.dead {
        0 => findings.ok("notices", "none was given up"),
        dead => findings.warn(
            "notices",
            format!("{dead} were given up after many tries"),
            "See why with GET /v1/webhooks/{id}/deliveries?dead=true, and send them again with \
             POST …/replay.",
        ),
    }
    if seen.failed_texts > 0 {
        findings.warn(
            "texts",
            format!("{} texts were not taken by the gateway", seen.failed_texts),
            "Look at the log of the service and of the gateway.",
        );
    }
}

/// Whether each key is on its token and signs, and how long the authority lasts.
async fn service_keys(
    config: &Config,
    seen: Option<&Seen>,
    clock: &Clock,
    findings: &mut Findings,
) {
    const ACTION: &str = "Check [[module]] in the configuration, that the token is there and that \
                          its PIN source is right: `opcert-accountd config check`.";
    // Beside a running service, what is remembered of wrong PINs is its own.
    let devices =
        match Devices::start(config.devices(), &config.state_directory, clock.clone()).await {
            Ok(devices) => devices,
            Err(error) => return findings.fail("token", Chain(&error).to_string(), ACTION),
        };
    for (purpose, key) in seen.map(|seen| &seen.keys[..]).unwrap_or_default() {
        let name = match purpose {
            KeyPurpose::Issuing => "issuing key",
            KeyPurpose::Challenge => "challenge key",
            KeyPurpose::Sealing => "sealing key",
        };
        let fingerprint = hex(&key.public_key.fingerprint());
        if *purpose == KeyPurpose::Sealing {
            // It signs nothing, and opens what the service sealed only.
            match devices.public_key(&key.key).await {
                Ok(found) if found == key.public_key => {
                    findings.ok(name, format!("{fingerprint} is there"));
                }
                Ok(_) => findings.fail(name, "the token has another key".to_owned(), ACTION),
                Err(error) => findings.fail(name, Chain(&error).to_string(), ACTION),
            }
            continue;
        }
        let signer = Signer::new(devices.clone(), key.key.clone(), key.public_key.clone());
        let scheme = key.public_key.default_scheme();
        let message = [SELF_TEST_PREFIX, b"opcert-accountd doctor"].concat();
        match signer.sign(Purpose::SelfTest, scheme, &message).await {
            Ok(_) => findings.ok(name, format!("{fingerprint} signs")),
            Err(error) => findings.fail(name, Chain(&error).to_string(), ACTION),
        }
        match key.certificate.as_deref().map(Certificate::from_der) {
            Some(Ok(certificate)) => expiry(
                "issuing authority",
                certificate.not_after(),
                clock.now(),
                "Plan its successor: operating certificates do not outlive it.",
                findings,
            ),
            Some(Err(error)) => {
                findings.fail("issuing authority", Chain(&error).to_string(), ACTION);
            }
            None => (),
        }
    }
    devices.shutdown().await;
}

/// Whether somebody answers at an address of others, with a certificate that is trusted.
async fn reach(name: &'static str, webhook: &Webhook, findings: &mut Findings) {
    const ACTION: &str = "Check url, ca-file and secret-file in the configuration, and that the \
                          receiver is up.";
    if let Err(error) = outgoing::secret(&webhook.secret_file) {
        return findings.fail(name, Chain(&error).to_string(), ACTION);
    }
    let trust = match outgoing::trust(webhook.ca_file.as_deref()) {
        Ok(trust) => trust,
        Err(error) => return findings.fail(name, Chain(&error).to_string(), ACTION),
    };
    let limits = ClientLimits {
        connect: Duration::from_secs(10),
        ..ClientLimits::default()
    };
    let reached = match Target::from_url(&webhook.url, trust) {
        Ok(target) => Client::connect(&target, limits).await.map(|_| ()),
        Err(error) => Err(error),
    };
    match reached {
        Ok(()) => findings.ok(name, format!("{} answers", webhook.url)),
        Err(error) => findings.fail(name, format!("{}: {}", webhook.url, Chain(&error)), ACTION),
    }
}
