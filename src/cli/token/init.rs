//! `opcert token init`: makes a token.

use super::Named;
use crate::api::client::Client;
use crate::api::types::TokenContents;
use crate::base::pkcs11::TokenUri;
use crate::base::secret::Pin;
use crate::base::sysexits::EX_OK;
use crate::cli::error::Error;
use crate::cli::input::{Question, Source, new_secret, secret};
use crate::cli::output::Output;
use crate::device::{HeldKeys, LastTry, NewToken, TokenState};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The token to initialize again, by its URI or label. Without it, the one that is blank.
    #[arg(value_name = "TOKEN")]
    token: Option<Named>,
    /// Its label, 1 to 32 bytes.
    #[arg(long, value_name = "LABEL")]
    label: String,
    /// The configured module, by its name; may be left out where there is one.
    #[arg(long, value_name = "NAME")]
    module: Option<String>,
    /// File that holds the security officer's PIN, or - for a line of standard input.
    #[arg(long, value_name = "FILE")]
    so_pin_file: Option<Source>,
    /// File that holds the user's new PIN, or - for a line of standard input.
    #[arg(long, value_name = "FILE")]
    pin_file: Option<Source>,
    /// The token asks for its PINs itself, on its own keys.
    #[arg(long, conflicts_with_all = ["so_pin_file", "pin_file"])]
    on_device: bool,
    /// Destroy the keys that the token holds.
    #[arg(long)]
    erase_keys: bool,
    /// Use the last try of the security officer's PIN; if it is wrong, it locks.
    #[arg(long)]
    last_try: bool,
}

/// What a person is told before anything is asked for.
fn destroyed(uri: &TokenUri, contents: &TokenContents) -> String {
    let mut lines = vec![format!("This destroys all that {uri} holds:")];
    lines.extend(contents.objects.iter().map(|object| format!("  {object}")));
    let shown = u32::try_from(contents.objects.len()).unwrap_or(u32::MAX);
    if contents.count > shown {
        lines.push(format!("  and {} more", contents.count - shown));
    }
    lines.push("  and whatever shows only after a login".to_owned());
    lines.join("\n")
}

const SO_PIN: Question = Question {
    what: "the security officer's PIN",
    option: "--so-pin-file",
};

const PIN: Question = Question {
    what: "the user's PIN",
    option: "--pin-file",
};

pub(super) async fn run(
    arguments: &Arguments,
    mut daemon: Client,
    output: &Output,
) -> Result<u8, Error> {
    let label = &arguments.label;
    if let Some(Named(uri)) = &arguments.token
        && arguments.erase_keys
    {
        let module = arguments.module.as_deref();
        let contents = daemon.token_contents(module, uri).await?;
        output.note(&destroyed(uri, &contents));
    }
    let (so_pin, user_pin) = if arguments.on_device {
        (None, None)
    } else {
        let so_file = arguments.so_pin_file.as_ref();
        let so_pin = match &arguments.token {
            // It has one.
            Some(Named(uri)) => secret(
                SO_PIN,
                &format!("Security officer's PIN of {uri}: "),
                so_file,
            ),
            None => new_secret(
                SO_PIN,
                &format!("New security officer's PIN of {label}: "),
                so_file,
            ),
        };
        let prompt = format!("New PIN of {label}: ");
        let so_pin = Pin::new(so_pin?);
        let user_pin = new_secret(PIN, &prompt, arguments.pin_file.as_ref())?;
        (Some(so_pin), Some(Pin::new(user_pin)))
    };
    let new = NewToken {
        module: arguments.module.clone(),
        target: arguments.token.as_ref().map(|Named(uri)| uri.clone()),
        label: label.clone(),
        so_pin,
        user_pin,
        keys: if arguments.erase_keys {
            HeldKeys::Destroy
        } else {
            HeldKeys::Keep
        },
        last_try: if arguments.last_try {
            LastTry::Use
        } else {
            LastTry::Keep
        },
    };
    let made = {
        let _progress = output.progress(match arguments.on_device {
            true => "Follow what the token asks for",
            false => "Initializing the token",
        });
        daemon.init_token(&new).await?
    };
    output.result(&made, |output| {
        let next = match made.state {
            None => format!(
                "The daemon does not use it yet: add a [[module.token]] with uri = \"{}\".",
                made.uri
            ),
            Some(TokenState::Ready) => "The daemon uses it.".to_owned(),
            Some(state) => format!("It is {}.", super::state(state, output)),
        };
        format!("{} is made. {next}", made.uri)
    })?;
    Ok(EX_OK)
}
