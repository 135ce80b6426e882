//! `opcert status`: the daemon in a few lines.

use super::error::Error;
use super::output::{Mood, Output, time};
use super::token::state;
use super::{Global, daemon};
use crate::base::sysexits::EX_OK;
use crate::device::TokenState;

pub(super) async fn run(global: &Global, output: &Output) -> Result<u8, Error> {
    let mut daemon = daemon::control(global).await?;
    let status = daemon.status().await?;
    let tokens = daemon.tokens().await?.tokens;
    let certificates = daemon.certificates().await?.certificates;
    output.result(&status, |output| {
        let writable = if status.audit.writable {
            output.paint("writable", Mood::Good)
        } else {
            output.paint("cannot be written, so nothing is signed", Mood::Bad)
        };
        let mut facts = vec![
            ("Version", status.version.clone()),
            ("Computer", status.computer.to_string()),
            ("Native door", status.addresses.native.join(", ")),
            (
                "Tokens",
                counted(tokens.iter().map(|one| {
                    let text = format!("{}: {}", one.uri, state(one.state, output));
                    (one.state != TokenState::Ready).then_some(text)
                })),
            ),
            (
                "Certificates",
                counted(certificates.iter().map(|one| {
                    let text = format!("{}/{}: {}", one.account, one.operator, one.standing);
                    // That one was renewed is as it should be.
                    let is_well = ["active", "superseded"].contains(&one.standing.as_str());
                    (!is_well).then(|| output.paint(&text, Mood::Bad))
                })),
            ),
            ("Records", format!("{}, {writable}", status.audit.records)),
            (
                "Configuration",
                format!(
                    "{}, read {}",
                    status.configuration.files.join(", "),
                    time(&status.configuration.read)
                ),
            ),
        ];
        if !status.configuration.needs_restart.is_empty() {
            let keys = status.configuration.needs_restart.join(", ");
            facts.push(("Needs a restart", output.paint(&keys, Mood::Doubtful)));
        }
        if let Some(refused) = &status.configuration.refused {
            let text = format!("{}: {}", time(&refused.at), refused.reason);
            facts.push(("Not read again", output.paint(&text, Mood::Bad)));
        }
        output.facts(&facts)
    })?;
    Ok(EX_OK)
}

/// How many there are, and what is to be said of some of them.
fn counted(all: impl Iterator<Item = Option<String>>) -> String {
    let all: Vec<Option<String>> = all.collect();
    let said: Vec<String> = all.iter().flatten().cloned().collect();
    match said.is_empty() {
        true => all.len().to_string(),
        false => format!("{}, {}", all.len(), said.join(", ")),
    }
}
