//! `opcert token pin …`: a new PIN for a token's user.

use super::{Named, chosen, in_vain};
use crate::api::client::Client;
use crate::base::secret::Pin;
use crate::base::sysexits::EX_OK;
use crate::cli::error::Error;
use crate::cli::input::{Question, Source, new_secret, secret};
use crate::cli::output::Output;
use crate::device::{LastTry, PinOf, TokenStatus};

#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Command {
    /// Change the PIN.
    #[command(
        long_about = "Gives a token's user a new PIN in exchange for the old one, which is tried \
                      once. The daemon goes on with the new one; a file or credential that holds \
                      the old one is not tried any more until it is replaced.",
        after_help = "Example:\n  opcert token pin change my-token"
    )]
    Change(Change),
    /// Set the PIN where it is locked or forgotten.
    #[command(
        long_about = "Gives a token's user a new PIN by the security officer's PIN, which is tried \
                      once. For a PIN that is locked or forgotten.",
        after_help = "Example:\n  opcert token pin unblock my-token"
    )]
    Unblock(Unblock),
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Change {
    /// The token, by its URI or label; may be left out where there is only one.
    #[arg(value_name = "TOKEN")]
    token: Option<Named>,
    /// File that holds the PIN as it is, or - for a line of standard input.
    #[arg(long, value_name = "FILE")]
    pin_file: Option<Source>,
    /// File that holds the new PIN, or - for a line of standard input.
    #[arg(long, value_name = "FILE")]
    new_pin_file: Option<Source>,
    /// Use the last PIN try; if the PIN is wrong, the token locks.
    #[arg(long)]
    last_try: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Unblock {
    /// The token, by its URI or label; may be left out where there is only one.
    #[arg(value_name = "TOKEN")]
    token: Option<Named>,
    /// File that holds the security officer's PIN, or - for a line of standard input.
    #[arg(long, value_name = "FILE")]
    so_pin_file: Option<Source>,
    /// File that holds the user's new PIN, or - for a line of standard input.
    #[arg(long, value_name = "FILE")]
    new_pin_file: Option<Source>,
    /// Use the last try of the security officer's PIN; if it is wrong, it locks.
    #[arg(long)]
    last_try: bool,
}

const PIN: Question = Question {
    what: "the PIN",
    option: "--pin-file",
};

const SO_PIN: Question = Question {
    what: "the security officer's PIN",
    option: "--so-pin-file",
};

const NEW_PIN: Question = Question {
    what: "the new PIN",
    option: "--new-pin-file",
};

pub(super) async fn run(
    command: &Command,
    mut daemon: Client,
    tokens: &[TokenStatus],
    output: &Output,
) -> Result<u8, Error> {
    let (token, new_pin_file, last_try) = match command {
        Command::Change(change) => (&change.token, &change.new_pin_file, change.last_try),
        Command::Unblock(unblock) => (&unblock.token, &unblock.new_pin_file, unblock.last_try),
    };
    let uri = chosen(token.as_ref(), tokens)?;
    // A token with a protected authentication path asks for its PINs itself.
    let on_device = tokens
        .iter()
        .any(|token| uri.matches(&token.id) && token.flags.protected_path);
    let ask = |question, prompt: String, file: &Option<Source>| match on_device {
        true => Ok(None),
        false => secret(question, &prompt, file.as_ref()).map(|text| Some(Pin::new(text))),
    };
    let by = match command {
        Command::Change(change) => {
            if change.pin_file.is_none() {
                in_vain(&uri, tokens, change.last_try)?;
            }
            PinOf::User(ask(PIN, format!("PIN of {uri}: "), &change.pin_file)?)
        }
        Command::Unblock(unblock) => {
            let prompt = format!("Security officer's PIN of {uri}: ");
            PinOf::SecurityOfficer(ask(SO_PIN, prompt, &unblock.so_pin_file)?)
        }
    };
    let prompt = format!("New PIN of {uri}: ");
    let new = match on_device {
        true => None,
        false => Some(Pin::new(new_secret(
            NEW_PIN,
            &prompt,
            new_pin_file.as_ref(),
        )?)),
    };
    let last_try = if last_try {
        LastTry::Use
    } else {
        LastTry::Keep
    };
    let set = {
        let _progress = output.progress(match on_device {
            true => "Follow what the token asks for",
            false => "Setting the PIN",
        });
        daemon.set_pin(&uri, &by, new.as_ref(), last_try).await?
    };
    output.result(&set, |output| {
        let text = format!(
            "{} has its new PIN. Replace it in the file or credential that the daemon reads, if \
             there is one.",
            set.token
        );
        output.wrap(&text, 0)
    })?;
    Ok(EX_OK)
}
