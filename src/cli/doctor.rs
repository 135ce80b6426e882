//! `opcert doctor`: looks for what is wrong and says how to mend it.
//!
//! It goes from the file on disk to the certificate on the token, and goes on past a failure
//! where the next check can still say something new.

mod machine;

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use self::machine::{Machine, package_of};
use super::Global;
use super::daemon::{self, socket, start_command};
use super::error::Error;
use super::output::{Mood, Output, local_time};
use crate::api::client::Client;
use crate::api::problem::Problem;
use crate::api::types::OperatingCertificate;
use crate::base::clock::Clock;
use crate::base::files::{Readers, read_checked};
use crate::base::pkcs11::TokenUri;
use crate::base::sysexits::{EX_FAILED, EX_OK};
use crate::config::daemon::Config;
use crate::consent;
use crate::device::{
    InvalidPinSource, ModuleStatus, PinSource, Sandbox, SandboxLevel, TokenState, TokenStatus,
};
use crate::policy::ConsentRule;

/// Certificates are to be renewed from so long before their end.
const RENEWAL: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    verdict: Verdict,
    finding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
}

/// All things looked at.
#[derive(Debug, Default, Serialize)]
pub(super) struct Findings {
    checks: Vec<Check>,
}

impl Findings {
    pub(super) fn ok(&mut self, name: impl Into<String>, finding: impl Into<String>) {
        self.add(name, Verdict::Ok, finding, None);
    }

    pub(super) fn warn(
        &mut self,
        name: impl Into<String>,
        finding: impl Into<String>,
        action: impl Into<String>,
    ) {
        self.add(name, Verdict::Warn, finding, Some(action.into()));
    }

    pub(super) fn fail(
        &mut self,
        name: impl Into<String>,
        finding: impl Into<String>,
        action: impl Into<String>,
    ) {
        self.add(name, Verdict::Fail, finding, Some(action.into()));
    }

    fn add(
        &mut self,
        name: impl Into<String>,
        verdict: Verdict,
        finding: impl Into<String>,
        action: Option<String>,
    ) {
        self.checks.push(Check {
            name: name.into(),
            verdict,
            finding: finding.into(),
            action,
        });
    }

    pub(super) fn error(&mut self, name: impl Into<String>, error: &Error) {
        self.fail(name, error.detail(), error.action());
    }

    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .count()
    }
}

/// What the doctor reads of the configuration; the daemon itself reads it strictly.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Excerpt {
    #[serde(default)]
    module: Vec<Module>,
}

#[derive(Debug, Deserialize)]
struct Module {
    name: String,
    path: PathBuf,
    sandbox: Option<String>,
    #[serde(default)]
    token: Vec<Token>,
}

impl Module {
    /// The profile, as the daemon finds it; `None` where nothing is said and nothing fits.
    fn sandbox(&self) -> Option<Sandbox> {
        match &self.sandbox {
            Some(name) => toml::Value::String(name.clone()).try_into().ok(),
            None => Sandbox::fitting(&self.path),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Token {
    uri: String,
    pin_source: Option<String>,
}

pub(super) async fn run(global: &Global, output: &Output) -> Result<u8, Error> {
    let mut findings = Findings::default();
    let (excerpt, config) = configuration(global, &mut findings);
    if let Some(excerpt) = excerpt {
        modules(&excerpt, &mut findings);
        let sandboxes: Vec<_> = excerpt.module.iter().filter_map(Module::sandbox).collect();
        Machine::here().look(&sandboxes, &mut findings);
    }
    match daemon::control(global).await {
        Ok(mut daemon) => {
            status(&mut daemon, &mut findings).await;
            tokens(&mut daemon, &mut findings).await;
            certificates(&mut daemon, &mut findings).await;
            if let Some(config) = &config {
                consent(&config.consent, &mut daemon, &mut findings).await;
            }
        }
        Err(_) => findings.fail(
            "daemon",
            format!("Nobody answers on {}.", socket(global).display()),
            format!(
                "Start it with `{}` and read what it says.",
                start_command(&global.config())
            ),
        ),
    }
    let failed = findings.count(Verdict::Fail);
    output.result(&findings, |output| show(&findings, output))?;
    Ok(if failed == 0 { EX_OK } else { EX_FAILED })
}

/// What can be read of the configuration, and all of it where it is sound.
fn configuration(global: &Global, findings: &mut Findings) -> (Option<Excerpt>, Option<Config>) {
    let name = "configuration";
    let path = &global.config();
    if !path.exists() {
        findings.fail(
            name,
            format!("There is no {}.", path.display()),
            "Write it with `opcert init`, or name another with --config.",
        );
        return (None, None);
    }
    let config = match Config::load(path) {
        Ok(config) => {
            findings.ok(name, format!("{} is sound.", path.display()));
            for module in &config.module {
                if let Err(reason) = module.check() {
                    findings.fail(
                        format!("module {}", module.name),
                        format!("It is not loaded: {reason}."),
                        "See docs/devices.md for what `allow` lets pass.",
                    );
                }
            }
            Some(config)
        }
        Err(error) => {
            let problem = Problem::from(error);
            findings.fail(
                name,
                format!("{}.", problem.detail().trim_end_matches('.')),
                problem.action(),
            );
            None
        }
    };
    // A file with one wrong key may still name modules to look at.
    let text = std::fs::read_to_string(path).ok();
    let excerpt = text.and_then(|text| toml::from_str(&text).ok());
    (excerpt, config)
}

fn modules(excerpt: &Excerpt, findings: &mut Findings) {
    if excerpt.module.is_empty() {
        findings.fail(
            "module",
            "No PKCS#11 module is configured.",
            "Add a [[module]] with the path of your token's library.",
        );
    }
    for module in &excerpt.module {
        let name = format!("module {}", module.name);
        if module.path.is_file() {
            findings.ok(name, format!("{} is there.", module.path.display()));
        } else {
            let install = match package_of(&module.path) {
                Some(package) => format!("Run `apt-get install {package}`"),
                None => "Install the token's library".into(),
            };
            findings.fail(
                name,
                format!("{} is not there.", module.path.display()),
                format!("{install}, or correct the path in the configuration."),
            );
            continue;
        }
        if module.sandbox().is_none() {
            findings.warn(
                format!("sandbox of module {}", module.name),
                "No profile is known to fit the library, so it is not confined.",
                "Set `sandbox` in its [[module]]: softhsm, pcscd, usb or network; none to leave \
                 it so.",
            );
        }
    }
    for token in excerpt.module.iter().flat_map(|module| &module.token) {
        pin_source(token, findings);
    }
}

fn pin_source(token: &Token, findings: &mut Findings) {
    let name = format!("PIN of {}", token.uri);
    // As the daemon reads it: the key counts before the URI.
    let of_uri = || token.uri.parse::<TokenUri>().ok()?.pin_source;
    let Some(source) = token.pin_source.clone().or_else(of_uri) else {
        return findings.ok(name, "A person gives it, with `opcert token unlock`.");
    };
    match source.parse() {
        Ok(PinSource::File(path)) => {
            // The content is not looked at, and not kept.
            match read_checked(&path, Readers::Owner, 4096) {
                Ok(bytes) => {
                    drop(zeroize::Zeroizing::new(bytes));
                    findings.ok(name, format!("{} is closed to others.", path.display()));
                }
                Err(error) => findings.error(name, &error.into()),
            }
        }
        Ok(PinSource::Credential(credential)) => findings.ok(
            name,
            format!("systemd hands it to the daemon as credential {credential}."),
        ),
        Ok(PinSource::Pinentry) => {
            findings.ok(name, "The person is asked for it when it is needed.");
        }
        Err(InvalidPinSource) => findings.fail(
            name,
            "Its pin-source is none of file:PATH, credential:NAME and pinentry.",
            "Correct it in the configuration.",
        ),
    }
}

async fn status(daemon: &mut Client, findings: &mut Findings) {
    match daemon.status().await {
        Ok(status) => {
            let own = env!("CARGO_PKG_VERSION");
            if status.version == own {
                let doors = status.addresses.native.join(", ");
                findings.ok(
                    "daemon",
                    format!("Version {own} answers; native door on {doors}."),
                );
            } else {
                findings.warn(
                    "daemon",
                    format!("It is version {}, this program {own}.", status.version),
                    "Restart the daemon after an upgrade.",
                );
            }
            if status.audit.writable {
                let records = status.audit.records;
                findings.ok(
                    "records",
                    format!("{records} are durable, and more can be written."),
                );
            } else {
                findings.fail(
                    "records",
                    "No record can be written, so nothing is signed.",
                    "Free space in the state directory, and see the daemon's log.",
                );
            }
        }
        Err(error) => findings.error("daemon", &error.into()),
    }
}

async fn tokens(daemon: &mut Client, findings: &mut Findings) {
    let (tokens, modules) = match daemon.tokens().await {
        Ok(list) => (list.tokens, list.modules),
        Err(error) => return findings.error("token", &error.into()),
    };
    for module in &modules {
        if let (false, Some(reason)) = (module.up, &module.reason) {
            findings.fail(
                format!("worker of module {}", module.name),
                format!("{}.", reason.trim_end_matches('.')),
                "Check what the module needs (its configuration, its directory of tokens, the \
                 reader's service), and see the daemon's log for its last words.",
            );
        }
        confinement(module, findings);
    }
    if tokens.is_empty() {
        findings.fail(
            "token",
            "No token is configured.",
            "Add a [[module.token]] to the configuration.",
        );
    }
    for token in &tokens {
        let name = format!("token {}", token.uri);
        let finding = finding(token);
        match action(token) {
            None => findings.ok(name, finding),
            Some((Verdict::Warn, action)) => findings.warn(name, finding, action),
            Some((_, action)) => findings.fail(name, finding, action),
        }
    }
}

/// Whether the module's worker is confined as it should be.
fn confinement(module: &ModuleStatus, findings: &mut Findings) {
    let Some(sandbox) = &module.sandbox else {
        return;
    };
    let name = format!("sandbox of module {}", module.name);
    let profile = sandbox.profile.name();
    let mut missing = sandbox.missing.join("; ");
    match sandbox.level {
        // What is off without being asked for is said where the configuration is looked at.
        SandboxLevel::Off => {}
        SandboxLevel::On => {
            if !missing.is_empty() {
                missing = format!(", but {missing}");
            }
            findings.ok(name, format!("Profile {profile} holds{missing}."));
        }
        SandboxLevel::Degraded => findings.warn(
            name,
            format!("Profile {profile} does not hold: {missing}."),
            "Use a kernel with CONFIG_SECURITY_LANDLOCK and CONFIG_SECCOMP_FILTER, and name \
             landlock in the lsm= of its command line if that is set.",
        ),
    }
}

fn finding(token: &TokenStatus) -> String {
    let text = match token.state {
        TokenState::Ready => "It is logged in and ready to sign",
        TokenState::PinNeeded => "It waits for its PIN",
        TokenState::FinalTry => "One PIN try is left, and the daemon does not spend it on its own",
        TokenState::LockedOut => "Its PIN is locked",
        TokenState::Released => "Other programs can use it",
        TokenState::Degraded => "It cannot be used as it is",
        TokenState::Respawning => "Its worker is being restarted",
        TokenState::Absent => "It is not there",
        TokenState::Down => "Its worker does not stay up",
    };
    match &token.reason {
        Some(reason) => format!("{text}: {}.", reason.trim_end_matches('.')),
        None => format!("{text}."),
    }
}

/// What to do about a token's state, and how much it matters.
fn action(token: &TokenStatus) -> Option<(Verdict, String)> {
    let unlock = format!("Run `opcert token unlock {}`.", token.uri);
    Some(match token.state {
        TokenState::Ready | TokenState::Released => return None,
        TokenState::PinNeeded => (Verdict::Fail, unlock),
        TokenState::FinalTry => (
            Verdict::Fail,
            format!(
                "If you are sure of the PIN, run `opcert token unlock --last-try {}`.",
                token.uri
            ),
        ),
        TokenState::LockedOut => (
            Verdict::Fail,
            format!(
                "Have its security officer run `opcert token pin unblock {}`.",
                token.uri
            ),
        ),
        TokenState::Degraded => (
            Verdict::Fail,
            "Correct what is named; `opcert token list` shows the token again.".into(),
        ),
        TokenState::Respawning => (Verdict::Warn, "Look again in a moment.".into()),
        TokenState::Absent => (
            Verdict::Fail,
            "Insert it, or correct its URI in the configuration.".into(),
        ),
        TokenState::Down => (
            Verdict::Fail,
            "Check what the module needs (its configuration, its directory of tokens, the reader's \
             service), and see the daemon's log for its last words."
                .into(),
        ),
    })
}

/// Whether a person can be asked, where a program was registered for which one is.
async fn consent(asking: &consent::Config, daemon: &mut Client, findings: &mut Findings) {
    let name = "consent";
    let clients = match daemon.clients().await {
        Ok(list) => list.clients,
        Err(error) => return findings.error(name, &error.into()),
    };
    let asks: Vec<&str> = clients
        .iter()
        .filter(|client| client.policy.consent != ConsentRule::None)
        .map(|client| client.name.as_str())
        .collect();
    match &asking.pinentry {
        Some(program) if program.is_file() => {
            findings.ok(name, format!("{} asks the person here.", program.display()));
        }
        Some(program) => findings.fail(
            name,
            format!(
                "{} is not there, so no person can be asked.",
                program.display()
            ),
            "Run `apt-get install pinentry-curses`, or correct `pinentry` under [consent].",
        ),
        None if !asks.is_empty() => findings.warn(
            name,
            format!(
                "No pinentry is configured, and a person is to be asked for {}.",
                asks.join(", ")
            ),
            "Install pinentry, set `pinentry` under [consent] in the configuration and restart \
             the daemon.",
        ),
        None => {}
    }
}

async fn certificates(daemon: &mut Client, findings: &mut Findings) {
    let list = match daemon.certificates().await {
        Ok(list) => list,
        Err(error) => return findings.error("certificate", &error.into()),
    };
    if list.certificates.is_empty() {
        findings.warn(
            "certificate",
            "No operating certificate is installed.",
            "Get one with `opcert install`.",
        );
    }
    standings(&list.certificates, Clock::system().now(), findings);
}

/// What is to be said of each certificate, in the order of their installation.
fn standings(all: &[OperatingCertificate], now: Timestamp, findings: &mut Findings) {
    for (at, certificate) in all.iter().enumerate() {
        let name = format!(
            "certificate {}/{}",
            certificate.account, certificate.operator
        );
        let end: Option<Timestamp> = certificate.not_after.parse().ok();
        // Before its last third it cannot be renewed.
        let begin: Option<Timestamp> = certificate.not_before.parse().ok();
        let due = match (begin, end) {
            (Some(begin), Some(end)) => RENEWAL.min(end.duration_since(begin) / 3),
            _ => RENEWAL,
        };
        // Those of the same operator, of whom one is enough.
        let same = |other: &&OperatingCertificate| {
            other.service == certificate.service
                && other.account == certificate.account
                && other.operator == certificate.operator
        };
        let mut others = all.iter().filter(same);
        let is_replaced = others.any(|other| other.standing == "active");
        let is_last = !all[at + 1..].iter().any(|other| same(&other));
        let again = format!(
            "Run `opcert install --service {} --account {} --operator {}`.",
            certificate.service, certificate.account, certificate.operator
        );
        match (certificate.standing.as_str(), end) {
            ("active", Some(end)) if end.duration_since(now) < due => findings.warn(
                name,
                format!("It is valid until {} only.", local_time(end)),
                format!("Run `opcert renew --service {}`.", certificate.service),
            ),
            ("active", Some(end)) => {
                findings.ok(name, format!("It is valid until {}.", local_time(end)));
            }
            ("superseded", _) if is_replaced => {
                findings.ok(name, "A newer one has taken its place.");
            }
            (standing, _) if is_replaced => findings.ok(
                name,
                format!("It is {standing}; another of the same operator is in use."),
            ),
            ("not-yet-valid", _) => findings.fail(
                name,
                "It is not valid yet.",
                "Check this computer's clock and its time zone.",
            ),
            // Said once, of the one that was installed last.
            _ if !is_last => {}
            (standing, _) => findings.fail(name, format!("It is {standing}."), again),
        }
    }
}

pub(super) fn show(findings: &Findings, output: &Output) -> String {
    let mut lines = Vec::new();
    for check in &findings.checks {
        let (mark, mood) = match check.verdict {
            Verdict::Ok => ("ok  ", Mood::Good),
            Verdict::Warn => ("warn", Mood::Doubtful),
            Verdict::Fail => ("FAIL", Mood::Bad),
        };
        let mark = output.paint(mark, mood);
        lines.push(output.wrap(&format!("{mark}  {}: {}", check.name, check.finding), 6));
        if let Some(action) = &check.action {
            lines.push(output.wrap(&format!("      {action}"), 6));
        }
    }
    let summary = match (findings.count(Verdict::Fail), findings.count(Verdict::Warn)) {
        (0, 0) => output.paint("Everything is as it should be.", Mood::Good),
        (0, warned) => format!("{warned} to look at, nothing broken."),
        (failed, 0) => format!("{failed} to mend."),
        (failed, warned) => format!("{failed} to mend, {warned} to look at."),
    };
    lines.push(summary);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::{Color, Format};

    fn certificate(standing: &str, begin: &str, end: &str) -> OperatingCertificate {
        serde_json::from_value(serde_json::json!({
            "fingerprint": "00", "serial": "01", "account": "acme", "operator": "alice",
            "computer": "c", "service": "https://pay.example", "key": "pkcs11:token=t",
            "algorithm": "ES256", "standing": standing, "not_before": begin, "not_after": end,
            "installed": begin, "certificate": "",
        }))
        .unwrap()
    }

    fn said(all: &[OperatingCertificate], now: &str) -> String {
        let mut findings = Findings::default();
        standings(all, now.parse().unwrap(), &mut findings);
        show(&findings, &Output::new(Format::Human, Color::Never))
    }

    #[test]
    fn one_certificate_of_an_operator_is_enough() {
        let (begin, end) = ("2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z");
        let now = "2026-06-01T00:00:00Z";
        let old = certificate("revoked", begin, end);
        let text = said(&[old.clone(), certificate("active", begin, end)], now);
        assert!(text.ends_with("Everything is as it should be."), "{text}");
        // Without one that may sign it is said once what to do.
        let text = said(&[old, certificate("expired", begin, end)], now);
        assert!(text.contains("It is expired."), "{text}");
        assert!(text.ends_with("\n1 to mend."), "{text}");
        let text = said(&[certificate("not-yet-valid", begin, end)], now);
        assert!(text.contains("Check this computer's clock"), "{text}");
    }

    #[test]
    fn nobody_is_sent_to_a_renewal_that_is_too_early() {
        let (begin, end) = ("2026-01-01T00:00:00Z", "2026-01-10T00:00:00Z");
        let short = [certificate("active", begin, end)];
        assert!(said(&short, "2026-01-02T00:00:00Z").contains("ok"));
        assert!(said(&short, "2026-01-08T00:00:00Z").contains("opcert renew"));
    }

    #[test]
    fn each_failure_comes_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let mut findings = Findings::default();
        let excerpt: Excerpt = toml::from_str(&format!(
            "[[module]]\nname = 'm'\npath = '/nonexistent.so'\n\
             [[module.token]]\nuri = 'pkcs11:token=a'\npin-source = 'file:{0}/pin'\n\
             [[module.token]]\nuri = 'pkcs11:token=b?pin-source=file:{0}/other'\n\
             [[module.token]]\nuri = 'pkcs11:token=c?pin-source=file:{0}/pin'\npin-source = 'pinentry'\n",
            dir.path().display()
        ))
        .unwrap();
        modules(&excerpt, &mut findings);
        assert_eq!(findings.count(Verdict::Fail), 3);
        let output = Output::new(Format::Human, Color::Never);
        let text = show(&findings, &output);
        assert!(
            text.contains("FAIL  module m: /nonexistent.so is not there."),
            "{text}"
        );
        assert!(text.contains("Install the token's library"), "{text}");
        assert!(text.contains("Cannot read"), "{text}");
        assert!(text.ends_with("3 to mend."), "{text}");
    }
}
