//! `opcert audit …`: the daemon's records, read without the daemon.

use std::path::PathBuf;

use super::error::Error;
use super::output::{Mood, Output, local_time};
use crate::audit::verify::{VerifyError, verify};
use crate::base::sysexits::EX_OK;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Check that no record was changed, cut, moved or dropped.
    #[command(
        long_about = "Checks the chain of all records from the files alone. Ends with 0 and the \
                      number of records, or with 1 and the first bad one.",
        after_help = "Example:\n  opcert audit verify /var/lib/opcert/audit"
    )]
    Verify {
        /// The directory of the records.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

pub(super) fn run(command: &Command, output: &Output) -> Result<u8, Error> {
    let Command::Verify { directory } = command;
    let summary = verify(directory).map_err(|error| match error {
        VerifyError::Broken(broken) => Error::No {
            code: "audit-broken",
            what: broken.to_string(),
            action: "Keep the directory as it is, and compare it with a backup.".into(),
        },
        VerifyError::Unreadable { path, source } => {
            Error::File(crate::base::files::FileError::Unreadable { path, source })
        }
    })?;
    output.result(&summary, |output| {
        let records = match summary.records {
            1 => "1 record".to_owned(),
            count => format!("{count} records"),
        };
        let mut facts = vec![("Segments", summary.segments.to_string())];
        for (name, mark) in [("First", &summary.first), ("Last", &summary.last)] {
            if let Some(mark) = mark {
                facts.push((name, format!("{}, {}", mark.seq, local_time(mark.time))));
            }
        }
        if let Some(bytes) = summary.torn {
            facts.push((
                "Unfinished",
                format!("{bytes} bytes of a record being written"),
            ));
        }
        format!(
            "{}\n{}",
            output.paint(&format!("{records}, all sound."), Mood::Good),
            output.facts(&facts)
        )
    })?;
    Ok(EX_OK)
}
