//! Tells the person's desktop that a question waits, for those who look elsewhere.
//!
//! The program is `notify-send` or one that takes its arguments. It says what kind of operation is
//! asked about and by whom, and none of its values: notices show on locked screens. A notice that
//! fails is a line in the log; the question is asked all the same.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::pinentry::environment;
use super::text::{Words, clean};
use super::{Config, Prompt};

/// How long the program may take to hand the notice to the desktop.
const LIMIT: Duration = Duration::from_secs(10);

/// Starts `program` for a question that is about to be shown.
pub(super) fn show(program: &Path, config: &Config, prompt: &Prompt) {
    let words = Words::of(prompt.language);
    let milliseconds = u64::from(config.timeout_seconds.get()) * 1_000;
    let asks = words.asker(&prompt.asked_by);
    let started = Command::new(program)
        .args(["--app-name", "opcert", "--urgency", "critical"])
        .args(["--expire-time", &milliseconds.to_string()])
        .args(["--hint", "boolean:transient:true", "--", words.waits])
        .arg(format!("{}: {}", clean(&asks), clean(&prompt.title)))
        .env_clear()
        .envs(environment(config))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let program = program.to_owned();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            tracing::warn!(program = %program.display(), %error, "no notice can be shown");
            return;
        }
    };
    tokio::spawn(async move {
        match timeout(LIMIT, child.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => {
                tracing::warn!(program = %program.display(), %status, "the notice was not shown");
            }
            Ok(Err(error)) => {
                tracing::warn!(program = %program.display(), %error, "the notice was lost");
            }
            Err(_) => {
                tracing::warn!(program = %program.display(), "the notice took too long");
            }
        }
    });
}
