//! `opcert upgrade-check`: whether this version can take over what another one left.
//!
//! It reads what the daemon reads at its start, with the code of this version, and changes nothing.
//! Run it with the new program before the old daemon is stopped.

use super::doctor::{Findings, Verdict, show};
use super::error::Error;
use super::output::Output;
use super::{Global, daemon};
use crate::api::clients::Clients;
use crate::api::problem::Problem;
use crate::audit::verify::verify;
use crate::base::sysexits::{EX_FAILED, EX_OK};
use crate::config::daemon::Config;
use crate::enrol::Registry;
use crate::merchants::Merchants;

/// The version of this program.
const OWN: &str = env!("CARGO_PKG_VERSION");

pub(super) async fn run(global: &Global, output: &Output) -> Result<u8, Error> {
    let mut findings = Findings::default();
    match Config::load(&global.config()) {
        Ok(config) => {
            findings.ok(
                "configuration",
                format!(
                    "Version {OWN} knows every key of {}.",
                    global.config().display()
                ),
            );
            match config.policy.load() {
                Ok(set) => findings.ok(
                    "policy",
                    format!("{} rules are sound.", set.rules().count()),
                ),
                Err(error) => refuse(&mut findings, "policy", error.into()),
            }
            state(&config, &mut findings);
        }
        Err(error) => refuse(&mut findings, "configuration", error.into()),
    }
    running(global, &mut findings).await;
    let failed = findings.count(Verdict::Fail);
    output.result(&findings, |output| show(&findings, output))?;
    Ok(if failed == 0 { EX_OK } else { EX_FAILED })
}

fn refuse(findings: &mut Findings, name: &str, problem: Problem) {
    let detail = format!("{}.", problem.detail().trim_end_matches('.'));
    findings.fail(name, detail, problem.action());
}

fn state(config: &Config, findings: &mut Findings) {
    let directory = &config.state_directory;
    let keep = "Keep the old version and its state, and make a backup with `opcert backup`.";
    match Clients::open(&directory.join("clients.json")) {
        Ok(clients) => findings.ok("clients", format!("{} can be read.", clients.list().len())),
        Err(error) => findings.fail("clients", format!("{error}."), keep),
    }
    // Opening a registry that is not there makes one.
    if directory.join("registry.json").exists() {
        match Registry::open(directory) {
            Ok(registry) => findings.ok(
                "certificates",
                format!("{} can be read.", registry.snapshot().certificates().len()),
            ),
            Err(error) => findings.fail("certificates", format!("{error}."), keep),
        }
    } else {
        findings.ok("certificates", "There are none yet.");
    }
    match Merchants::count(directory) {
        Ok(count) => findings.ok("merchants", format!("{count} can be read.")),
        Err(error) => findings.fail("merchants", format!("{error}."), keep),
    }
    let audit = directory.join("audit");
    if audit.exists() {
        match verify(&audit) {
            Ok(summary) => findings.ok("records", format!("{}, all sound.", summary.records)),
            Err(error) => findings.fail("records", format!("{error}."), keep),
        }
    } else {
        findings.ok("records", "There are none yet.");
    }
}

async fn running(global: &Global, findings: &mut Findings) {
    let status = match daemon::control(global).await {
        Ok(mut daemon) => daemon.status().await.ok(),
        Err(_) => None,
    };
    match status {
        None => findings.ok(
            "daemon",
            "None is running; the next start is of this version.",
        ),
        Some(status) if status.version == OWN => {
            findings.ok(
                "daemon",
                format!("It runs version {OWN}, as this program is."),
            );
        }
        Some(status) => findings.warn(
            "daemon",
            format!("It runs version {}; this program is {OWN}.", status.version),
            "Restart it once the new version is installed: `systemctl restart opcertd`.",
        ),
    }
}
