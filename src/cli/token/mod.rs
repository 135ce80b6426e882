//! `opcert token …`: the tokens of this computer, by way of the daemon. Nothing here loads a
//! PKCS#11 library.

mod init;
mod pin;
mod test;

use std::str::FromStr;

use super::error::Error;
use super::input::{Question, Source, secret};
use super::output::{Format, Mood, Output, local_time};
use super::{Global, daemon};
use crate::api::client::Client;
use crate::api::events::Happening;
use crate::api::problem::Code;
use crate::base::clock::Clock;
use crate::base::pkcs11::{TokenUri, UriError};
use crate::base::secret::Pin;
use crate::base::sysexits::EX_OK;
use crate::device::{InvalidPinSource, LastTry, PinSource, TokenState, TokenStatus, UnlockOutcome};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List tokens and their state.
    #[command(
        long_about = "Lists the configured tokens, their state, and the URI that names each. With \
                      --watch it goes on to tell of every change until it is interrupted: one line \
                      each, or one JSON object a line with --json."
    )]
    List(List),
    /// Give the daemon a token's PIN.
    #[command(
        long_about = "Gives the daemon a token's PIN, typed here or read from a file. The PIN is \
                      tried once; a wrong one is not tried again. The last try before the token \
                      locks is used only with --last-try.",
        after_help = "Example:\n  opcert token unlock pkcs11:token=my-token"
    )]
    Unlock(Box<Unlock>),
    /// Have a token's keys sign a fixed text, and time it.
    #[command(
        long_about = "Has each private key of a token, or those that the URI selects by id or \
                      object, sign a fixed text in a domain of its own, which approves nothing. \
                      The daemon verifies the signatures and throws them away; each is on record. \
                      Ends with 0 if a key signed and none failed, with 1 otherwise.",
        after_help = "Examples:\n  \
            opcert token test my-token\n  \
            opcert token test 'pkcs11:token=my-token;id=%4F%1A'"
    )]
    Test(test::Arguments),
    /// Make a token: its label, its security officer's PIN, its user's PIN.
    #[command(
        long_about = "Initializes a token and sets its user's PIN. Without TOKEN it is the one of \
                      the module that is not initialized yet. A token that is named is \
                      initialized again and loses all it holds: one that holds keys, or may hold \
                      some, needs --erase-keys, and one that the daemon uses has to be released \
                      first. PINs are typed, or read from files that only their owner can read.",
        after_help = "Examples:\n  \
            opcert token init --label my-token\n  \
            opcert token init my-token --label my-token --erase-keys"
    )]
    Init(Box<init::Arguments>),
    /// Change a token's PIN, or set one in place of one that is locked.
    #[command(subcommand)]
    Pin(pin::Command),
    /// Leave a token to other programs.
    #[command(
        long_about = "Has the daemon close its sessions with a token and its library let go of \
                      it, so that another program can use it. The next request that needs the \
                      token takes it up again by itself. Other tokens of the same module are \
                      interrupted for a moment.",
        after_help = "Example:\n  opcert token release my-token"
    )]
    Release(Release),
}

#[derive(Debug, clap::Args)]
pub(super) struct Release {
    /// The token, by its URI or label; may be left out where there is only one.
    #[arg(value_name = "TOKEN")]
    token: Option<Named>,
}

/// A token as people name it: by its URI or by its label.
#[derive(Debug, Clone)]
pub(super) struct Named(TokenUri);

impl FromStr for Named {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text.starts_with("pkcs11:") {
            return text.parse().map(Self);
        }
        let uri = TokenUri {
            token: Some(text.to_owned()),
            ..TokenUri::default()
        };
        // It has to be one that the daemon can read.
        uri.to_string().parse().map(Self)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Go on and tell of every change.
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Unlock {
    /// The token, by its URI or label; may be left out where there is only one.
    #[arg(value_name = "TOKEN")]
    token: Option<Named>,
    /// File that holds the PIN, or - for standard input. [default: the pin-source of the URI, else
    /// the terminal]
    #[arg(long, value_name = "FILE")]
    pin_file: Option<Source>,
    /// Have the daemon ask for the PIN in a window of its own (pinentry).
    #[arg(long, conflicts_with = "pin_file")]
    ask: bool,
    /// Use the last PIN try; if the PIN is wrong, the token locks.
    #[arg(long)]
    last_try: bool,
}

pub(super) async fn run(command: &Command, global: &Global, output: &Output) -> Result<u8, Error> {
    let mut daemon = daemon::control(global).await?;
    if matches!(command, Command::List(List { watch: true })) {
        return watch(daemon, output).await;
    }
    let list = daemon.tokens().await?;
    let tokens = &list.tokens;
    match command {
        Command::List(_) => {
            output.result(&list, |output| {
                let rows = tokens.iter().map(|token| row(token, output)).collect();
                output.table(
                    &["token", "state", "model", "uri"],
                    rows,
                    "No token is configured.",
                )
            })?;
        }
        Command::Unlock(arguments) => {
            let uri = chosen(arguments.token.as_ref(), tokens)?;
            let known = tokens.iter().find(|token| token.uri == uri.to_string());
            if known.is_some_and(|token| token.state == TokenState::Ready) {
                return output
                    .result(&serde_json::json!({ "unlocked": uri }), |_| {
                        format!("{uri} is ready already; no PIN was asked for.")
                    })
                    .map(|()| EX_OK);
            }
            let question = Question {
                what: "a PIN",
                option: "--pin-file",
            };
            let by_hand = tokens
                .iter()
                .any(|token| uri.matches(&token.id) && token.flags.protected_path);
            let pin = match pin_from(arguments)? {
                Given::Source(None) if by_hand => None,
                Given::Window => None,
                Given::Source(source) => {
                    if source.is_none() {
                        in_vain(&uri, tokens, arguments.last_try)?;
                    }
                    let prompt = format!("PIN for {uri}: ");
                    Some(Pin::new(secret(question, &prompt, source.as_ref())?))
                }
            };
            let outcome = {
                let _progress = match (by_hand, &pin) {
                    (true, None) => output.progress("Enter the PIN on the token itself"),
                    (false, None) => {
                        output.awaiting("Enter the PIN in the window that the daemon opens")
                    }
                    (_, Some(_)) => output.progress("Logging in to the token"),
                };
                let last_try = if arguments.last_try {
                    LastTry::Use
                } else {
                    LastTry::Keep
                };
                match daemon.unlock(&uri, pin.as_ref(), last_try).await {
                    Ok(outcome) => outcome,
                    Err(error) => return Err(told_how_many(error.into(), &uri, daemon).await),
                }
            };
            let result = serde_json::json!({ "unlocked": uri, "outcome": outcome });
            output.result(&result, |output| match outcome {
                UnlockOutcome::Taken => {
                    format!("{uri} is {}.", output.paint("unlocked", Mood::Good))
                }
                UnlockOutcome::AlreadyUnlocked => output.wrap(
                    &format!(
                        "{uri} was unlocked already; it did not look at this PIN, which may be \
                         wrong."
                    ),
                    0,
                ),
            })?;
        }
        Command::Init(arguments) => return init::run(arguments, daemon, output).await,
        Command::Pin(command) => return pin::run(command, daemon, tokens, output).await,
        Command::Release(arguments) => {
            let uri = chosen(arguments.token.as_ref(), tokens)?;
            let released = {
                let _progress = output.progress("Letting go of the token");
                daemon.release_token(&uri).await?
            };
            output.result(&released, |output| {
                let text = format!(
                    "{} is released; the next request takes it up again.",
                    released.token
                );
                output.wrap(&text, 0)
            })?;
        }
        Command::Test(arguments) => return test::run(arguments, daemon, tokens, output).await,
    }
    Ok(EX_OK)
}

/// Where a PIN is to come from.
enum Given {
    /// The daemon asks in a window of its own.
    Window,
    /// A file or standard input, else the terminal.
    Source(Option<Source>),
}

/// An option counts before the `pin-source` of a URI that was typed (RFC 7512 section 2.4).
fn pin_from(arguments: &Unlock) -> Result<Given, Error> {
    if arguments.ask {
        return Ok(Given::Window);
    }
    let typed = arguments.token.as_ref().map(|Named(uri)| uri);
    let of_uri = typed.and_then(|uri| uri.pin_source.as_deref());
    match (&arguments.pin_file, of_uri) {
        (Some(file), _) => Ok(Given::Source(Some(file.clone()))),
        (None, None) => Ok(Given::Source(None)),
        (None, Some(text)) => match text.parse() {
            Ok(PinSource::Pinentry) => Ok(Given::Window),
            Ok(PinSource::File(path)) => Ok(Given::Source(Some(Source::File(path)))),
            Ok(PinSource::Credential(_)) | Err(InvalidPinSource) => Err(Error::Usage {
                what: format!("the URI's pin-source {text:?} is none for a command line"),
                action: "Give file:/absolute/path or pinentry, or name a file with --pin-file."
                    .into(),
            }),
        },
    }
}

/// The token that is named, or the only one.
fn chosen(named: Option<&Named>, tokens: &[TokenStatus]) -> Result<TokenUri, Error> {
    match named {
        Some(Named(uri)) => Ok(uri.clone()),
        None => only(tokens),
    }
}

/// Refuses before a PIN is typed that the token would not be asked about.
pub(super) fn in_vain(
    uri: &TokenUri,
    tokens: &[TokenStatus],
    may_use_last_try: bool,
) -> Result<(), Error> {
    let mut meant = tokens
        .iter()
        .filter(|token| uri.matches(&token.id) || token.uri == uri.to_string());
    let (code, what, action) = match meant.next().map(|token| token.state) {
        Some(TokenState::LockedOut) => (
            Code::PinLocked,
            "is locked after too many wrong PINs",
            Code::PinLocked.action(),
        ),
        Some(TokenState::FinalTry) if !may_use_last_try => (
            Code::PinFinalTry,
            "has one PIN try left, which is kept for a person who is sure of the PIN",
            "If you are sure of the PIN, run the command with `--last-try`; a wrong PIN locks the \
             token.",
        ),
        _ => return Ok(()),
    };
    Err(Error::Refused {
        status: code.status(),
        code: code.as_str().to_owned(),
        detail: format!("{uri} {what}"),
        action: action.to_owned(),
        rule: None,
        request_id: None,
    })
}

/// A refused PIN's error, which says so where only one try is left.
async fn told_how_many(mut error: Error, uri: &TokenUri, mut daemon: Client) -> Error {
    if let Error::Refused { code, action, .. } = &mut error
        && code == Code::PinWrong.as_str()
        && let Ok(list) = daemon.tokens().await
        && let Err(Error::Refused { action: last, .. }) = in_vain(uri, &list.tokens, false)
    {
        *action = format!("One try is left. {last}");
    }
    error
}

/// Tells of changes until the daemon ends the stream.
async fn watch(daemon: Client, output: &Output) -> Result<u8, Error> {
    let mut events = daemon.events().await?;
    loop {
        let Some(what) = events.next().await? else {
            return Err(Error::State {
                code: "unreachable",
                what: "the daemon ended the stream".into(),
                action: "Start it again, or see its log.".into(),
            });
        };
        if output.format() == Format::Json {
            let line = serde_json::to_string(&what).map_err(|error| Error::Stream {
                stream: "standard output",
                source: error.into(),
            })?;
            output.print(&line)?;
        } else {
            for line in lines(&what, output) {
                output.print(&line)?;
            }
        }
        match what {
            Happening::Stopping {} => return Ok(EX_OK),
            Happening::Lagged { .. } => {
                return Err(Error::State {
                    code: "busy",
                    what: "events came faster than they could be shown".into(),
                    action: "Run it again.".into(),
                });
            }
            _ => {}
        }
    }
}

/// An event as a person reads it.
fn lines(what: &Happening, output: &Output) -> Vec<String> {
    let now = local_time(Clock::system().now());
    let token = |token: &TokenStatus| {
        let reason = token.reason.as_deref().map(|reason| format!(": {reason}"));
        format!(
            "{now}  {} is {}{}",
            token.uri,
            state(token.state, output),
            reason.unwrap_or_default()
        )
    };
    match what {
        Happening::Snapshot { tokens } => tokens.iter().map(token).collect(),
        Happening::Token { token: one } => vec![token(one)],
        Happening::CertificateInstalled { fingerprint } => {
            vec![format!("{now}  certificate {fingerprint} was installed")]
        }
        Happening::CertificatesRevoked { service, revoked } => {
            vec![format!("{now}  {service} revokes {revoked} certificates")]
        }
        Happening::Enrolments {} => vec![format!("{now}  enrolments changed")],
        Happening::Prompts { waiting: 0 } => vec![format!("{now}  no question waits")],
        Happening::Prompts { waiting } => {
            vec![format!("{now}  {waiting} waiting for the person here")]
        }
        Happening::Lagged { missed } => vec![format!("{now}  {missed} events were missed")],
        Happening::Stopping {} => vec![format!("{now}  the daemon stops")],
    }
}

fn row(token: &TokenStatus, output: &Output) -> Vec<String> {
    vec![
        token.id.label.clone(),
        state(token.state, output),
        token.model.clone(),
        token.uri.clone(),
    ]
}

/// The state in a word, coloured by how bad it is.
pub(super) fn state(state: TokenState, output: &Output) -> String {
    let (text, mood) = match state {
        TokenState::Ready => ("ready", Mood::Good),
        TokenState::PinNeeded => ("PIN needed", Mood::Doubtful),
        TokenState::FinalTry => ("one PIN try left", Mood::Bad),
        TokenState::LockedOut => ("locked", Mood::Bad),
        TokenState::Released => ("released", Mood::Doubtful),
        TokenState::Degraded => ("unusable", Mood::Bad),
        TokenState::Respawning => ("restarting", Mood::Doubtful),
        TokenState::Absent => ("absent", Mood::Bad),
        TokenState::Down => ("down", Mood::Bad),
    };
    output.paint(text, mood)
}

/// The one token there is.
fn only(tokens: &[TokenStatus]) -> Result<TokenUri, Error> {
    match tokens {
        [token] => token.uri.parse().map_err(|_| Error::Answer {
            who: "the daemon",
            problem: format!("{:?} as a token's URI", token.uri),
        }),
        [] => Err(Error::State {
            code: "token-absent",
            what: "no token is configured".into(),
            action: "Add one to the daemon's configuration.".into(),
        }),
        several => {
            let uris: Vec<&str> = several.iter().map(|token| token.uri.as_str()).collect();
            Err(Error::Usage {
                what: format!("there is more than one token: {}", uris.join(", ")),
                action: "Name one.".into(),
            })
        }
    }
}
