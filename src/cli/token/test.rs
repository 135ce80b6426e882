//! `opcert token test`: do the keys sign?

use super::{Named, chosen};
use crate::api::client::Client;
use crate::api::types::{KeyTested, TokenTested};
use crate::base::sysexits::{EX_FAILED, EX_OK};
use crate::cli::error::Error;
use crate::cli::output::{Mood, Output};
use crate::device::TokenStatus;
use crate::signing::token_test::KeyOutcome;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The token, by its URI or label; a URI may name one key by id or object. May be left out
    /// where there is only one token.
    #[arg(value_name = "TOKEN")]
    token: Option<Named>,
}

pub(super) async fn run(
    arguments: &Arguments,
    mut daemon: Client,
    tokens: &[TokenStatus],
    output: &Output,
) -> Result<u8, Error> {
    let uri = chosen(arguments.token.as_ref(), tokens)?;
    let tested = {
        let _progress = output.progress("The token signs; touch it if it asks for that");
        daemon.test_token(&uri).await?
    };
    output.result(&tested, |output| show(&tested, output))?;
    Ok(if passed(&tested) { EX_OK } else { EX_FAILED })
}

/// Whether a key signed and none failed.
fn passed(tested: &TokenTested) -> bool {
    let any = |outcome| tested.keys.iter().any(|key| key.outcome == outcome);
    any(KeyOutcome::Verified) && !any(KeyOutcome::Failed)
}

fn show(tested: &TokenTested, output: &Output) -> String {
    let rows = tested.keys.iter().map(|key| row(key, output)).collect();
    let empty = format!("{} holds no key that this selects.", tested.token);
    let mut text = output.table(&["key", "type", "scheme", "outcome", "time"], rows, &empty);
    for key in &tested.keys {
        if let Some(problem) = &key.problem {
            let detail = problem.detail.trim_end_matches('.');
            text.push_str(&format!(
                "\n{}: {detail}. {} [{}]",
                key.uri, problem.action, problem.code
            ));
        }
    }
    text
}

fn row(key: &KeyTested, output: &Output) -> Vec<String> {
    let (text, mood) = match key.outcome {
        KeyOutcome::Verified => ("signed, verified", Mood::Good),
        KeyOutcome::NotForSigning => ("not for signing", Mood::Dim),
        KeyOutcome::Unsupported => ("not used here", Mood::Dim),
        KeyOutcome::Failed => ("FAILED", Mood::Bad),
    };
    let name = match key.label.is_empty() {
        true => key.uri.clone(),
        false => key.label.clone(),
    };
    let text_of = |value: Option<String>| value.unwrap_or_default();
    vec![
        name,
        text_of(key.key_type.map(|spec| spec.to_string())),
        text_of(key.scheme.map(|scheme| scheme.to_string())),
        output.paint(text, mood),
        text_of(key.microseconds.map(milliseconds)),
    ]
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03} ms", microseconds / 1000, microseconds % 1000)
}
