//! `opcert status`: the daemon in a few lines.

use super::error::Error;
use super::output::{Mood, Output, time};
use super::{Global, daemon};
use crate::base::sysexits::EX_OK;

pub(super) async fn run(global: &Global, output: &Output) -> Result<u8, Error> {
    let status = daemon::control(global).await?.status().await?;
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
            ("Tokens", status.tokens.to_string()),
            ("Certificates", status.certificates.to_string()),
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
