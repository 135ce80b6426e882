//! `opcert native-host`: what the browser extension talks to.
//!
//! The browser starts one for each page that asks, and speaks native messaging with it: on standard
//! input and output, each message a length of 32 bits in the byte order of the machine, then JSON.
//! Each request of the page is one request at the native door, with the certificate that
//! `opcert browser setup` made and the page's origin as the browser vouches for it; the daemon
//! decides whether pages of that origin are served. Nothing is decided here.
//!
//! | from the browser | to the browser |
//! | --- | --- |
//! | `request`: `id`, `origin`, `language`, `method`, `path`, `body`, `stream` | `answer`: `id`, `status`, `body` |
//! | `abort`: `id` | `failure`: `id`, `detail`; there is no answer |
//! | | `chunk`: `id`, `chunk`; then `end`, for a stream |
//!
//! Bodies are handed on as they are written, in either direction; they are the daemon's to read.
//!
//! An aborted request closes its connection, by which the daemon takes a question off the screen.
//! The end of input ends the program, and all its requests with it. Standard output belongs to the
//! protocol, so what goes wrong is said on standard error, which browsers put into their own log.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT_LANGUAGE, CONTENT_TYPE};
use http::{HeaderValue, Method, Request};
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::client::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};
use super::daemon::{Credentials, native_target};
use super::error::Error;
use crate::api::caller::PAGE_ORIGIN;
use crate::api::problem::{Code, Problem};
use crate::base::ids::RequestId;
use crate::base::sysexits::EX_OK;
use crate::http::client::{Client, ClientLimits, Target};
use crate::http::media_type;
use crate::statement::Language;

/// The extension in `web/extension`: the first half of the SHA-256 of the `key` in its manifest, in
/// the letters a to p.
pub(super) const EXTENSION: &str = "chrome-extension://dhcmkehifelncinbaojngcncjoenbbjp/";

/// Browsers take messages of up to 1 MiB from a host; we take no larger ones from them.
const LARGEST: u32 = 1024 * 1024;

/// Requests of one page that may be under way.
const MOST: usize = 16;

/// How long a request may take is the page's to say, which aborts it. Ours only ends what a page
/// forgot, and is longer than any wait of `web/opcert.js`.
const LIMITS: ClientLimits = ClientLimits {
    connect: Duration::from_secs(10),
    request: Duration::from_secs(15 * 60),
    body_bytes: 4 * 1024 * 1024,
};

/// Messages that wait for the browser to read them, or for us.
const WAITING: usize = 16;

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Started by the browser for the opcert extension, not by people. It speaks native \
                  messaging on standard input and output, and asks the daemon's native door as the \
                  client that `opcert browser setup` registered."
)]
pub(super) struct Arguments {
    /// Directory with client.pem, client-key.pem and server-ca.pem.
    #[arg(long, value_name = "DIR")]
    client: PathBuf,
    /// Address of the native door.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7443")]
    native: SocketAddr,
    /// Who starts it, as the browser says.
    #[arg(value_name = "EXTENSION")]
    extension: String,
    /// What browsers add on other systems.
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    more: Vec<String>,
}

pub(super) async fn run(arguments: &Arguments) -> Result<u8, Error> {
    if arguments.extension != EXTENSION {
        return Err(Error::Usage {
            what: format!("{:?} is not the opcert extension", arguments.extension),
            action: format!("Install the extension {EXTENSION} of this version of opcert."),
        });
    }
    let target = Arc::new(native_target(
        arguments.native,
        &Credentials {
            certificate: &arguments.client.join(CERTIFICATE_FILE),
            key: &arguments.client.join(KEY_FILE),
            ca: &arguments.client.join(CA_FILE),
        },
    )?);
    let (messages, incoming) = mpsc::channel(WAITING);
    let (outgoing, answers) = mpsc::channel(WAITING);
    // Standard input and output block, each on a thread of its own. The reader is not waited for:
    // it may sit in a read that never ends.
    std::thread::spawn(move || read_all(io::stdin().lock(), &messages));
    let writer = std::thread::spawn(move || write_all(io::stdout().lock(), answers));
    serve(target, incoming, outgoing).await?;
    // Every sender is gone, so the writer ends once all is written.
    match writer.join() {
        Ok(Ok(())) => Ok(EX_OK),
        Ok(Err(source)) => Err(Error::Stream {
            stream: "standard output",
            source,
        }),
        Err(_) => Err(Error::Stream {
            stream: "standard output",
            source: io::Error::other("its thread failed"),
        }),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Request,
    Abort,
}

/// A message of the browser.
#[derive(Debug, Deserialize)]
struct Incoming {
    opcert: Kind,
    id: String,
    #[serde(default)]
    origin: String,
    /// As in `accept-language`.
    #[serde(default)]
    language: String,
    #[serde(default)]
    method: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    body: Option<Box<RawValue>>,
    #[serde(default)]
    stream: bool,
}

/// A message to the browser.
#[derive(Debug, Serialize)]
#[serde(tag = "opcert", rename_all = "kebab-case")]
enum Outgoing {
    Answer {
        id: String,
        status: u16,
        /// JSON; null where there is none.
        body: Option<Box<RawValue>>,
    },
    Failure {
        id: String,
        detail: String,
    },
    Chunk {
        id: String,
        chunk: String,
    },
    End {
        id: String,
    },
}

/// Until the end of input, or until the browser no longer reads.
async fn serve(
    target: Arc<Target>,
    mut incoming: mpsc::Receiver<Result<Vec<u8>, FrameError>>,
    outgoing: mpsc::Sender<Outgoing>,
) -> Result<(), Error> {
    let mut under_way: HashMap<String, AbortHandle> = HashMap::new();
    let outcome = loop {
        let frame = tokio::select! {
            frame = incoming.recv() => match frame {
                None => break Ok(()),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => break Err(wrong(&error)),
            },
            () = outgoing.closed() => break Ok(()),
        };
        let message: Incoming = match serde_json::from_slice(&frame) {
            Ok(message) => message,
            Err(error) => break Err(wrong(&error)),
        };
        under_way.retain(|_, task| !task.is_finished());
        if message.opcert == Kind::Abort {
            if let Some(task) = under_way.remove(&message.id) {
                task.abort();
            }
            continue;
        }
        let refused = if under_way.contains_key(&message.id) {
            let id = message.id.clone();
            let detail = "a request of this id is under way".into();
            Some(Outgoing::Failure { id, detail })
        } else if under_way.len() >= MOST {
            Some(busy(&message.id))
        } else {
            None
        };
        if let Some(refused) = refused {
            // A browser that no longer reads is noticed above.
            let _ = outgoing.send(refused).await;
            continue;
        }
        let id = message.id.clone();
        let task = tokio::spawn(answer(target.clone(), message, outgoing.clone()));
        under_way.insert(id, task.abort_handle());
    };
    for task in under_way.into_values() {
        task.abort();
    }
    outcome
}

/// As the daemon says it where it is itself busy.
fn busy(id: &str) -> Outgoing {
    let detail = format!("{MOST} requests of this page are under way, which is the limit");
    let problem = Problem::new(Code::Busy, detail).with_retry_after(1);
    let document = problem.document(&RequestId::random(), Language::English);
    Outgoing::Answer {
        id: id.to_owned(),
        status: document.status,
        body: serde_json::value::to_raw_value(&document).ok(),
    }
}

fn wrong(problem: &dyn std::fmt::Display) -> Error {
    Error::Input {
        what: format!("the browser sent what is no message: {problem}"),
        action: "Install the extension of this version of opcert.".into(),
    }
}

async fn answer(target: Arc<Target>, message: Incoming, outgoing: mpsc::Sender<Outgoing>) {
    let id = message.id.clone();
    let said = match exchange(&target, message, &outgoing).await {
        Ok(said) => said,
        Err(detail) => Outgoing::Failure { id, detail },
    };
    // A browser that no longer reads has ended the page; nobody is there to tell.
    let _ = outgoing.send(said).await;
}

async fn exchange(
    target: &Target,
    message: Incoming,
    outgoing: &mpsc::Sender<Outgoing>,
) -> Result<Outgoing, String> {
    let Incoming { id, stream, .. } = &message;
    let request = request(&message)?;
    let mut client = Client::connect(target, LIMITS).await.map_err(chain)?;
    if !stream {
        let answer = client.send(request).await.map_err(chain)?;
        return complete(id, answer.status().as_u16(), answer.body());
    }
    let answer = client.stream(request).await.map_err(chain)?;
    let status = answer.status();
    let mut pieces = answer.into_body();
    if !status.is_success() {
        let whole = pieces.whole().await.map_err(chain)?;
        return complete(id, status.as_u16(), &whole);
    }
    // A character may be cut in two between frames.
    let mut rest = Vec::new();
    while let Some(piece) = pieces.next().await.map_err(chain)? {
        rest.extend_from_slice(&piece);
        if rest.len() > LARGEST as usize / 2 {
            return Err("an event of the daemon is too large for the browser".into());
        }
        let whole = match std::str::from_utf8(&rest) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err("an event of the daemon is no text".into()),
        };
        let chunk = String::from_utf8_lossy(&rest[..whole]).into_owned();
        rest.drain(..whole);
        let id = id.clone();
        if outgoing.send(Outgoing::Chunk { id, chunk }).await.is_err() {
            break;
        }
    }
    Ok(Outgoing::End { id: id.clone() })
}

fn request(message: &Incoming) -> Result<Request<Bytes>, String> {
    let method = [Method::GET, Method::POST, Method::PUT, Method::DELETE]
        .into_iter()
        .find(|known| known.as_str() == message.method)
        .ok_or("the method is not one of the daemon's")?;
    if !message.path.starts_with("/v1/") {
        return Err("the path is not one of the daemon's".into());
    }
    let origin = HeaderValue::from_str(&message.origin).map_err(|_| "the origin is no origin")?;
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = method;
    *request.uri_mut() = message.path.parse().map_err(|_| "the path is no path")?;
    let headers = request.headers_mut();
    headers.insert(PAGE_ORIGIN, origin);
    // One that is no header's value says nothing; the daemon has a language of its own.
    if let Ok(language) = HeaderValue::from_str(&message.language)
        && !language.is_empty()
    {
        headers.insert(ACCEPT_LANGUAGE, language);
    }
    if let Some(body) = &message.body {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type::JSON));
        *request.body_mut() = Bytes::copy_from_slice(body.get().as_bytes());
    }
    Ok(request)
}

fn complete(id: &str, status: u16, body: &[u8]) -> Result<Outgoing, String> {
    let body = if body.is_empty() {
        None
    } else {
        serde_json::from_slice(body).map_err(|_| "the daemon's answer is not JSON".to_owned())?
    };
    Ok(Outgoing::Answer {
        id: id.to_owned(),
        status,
        body,
    })
}

fn chain(error: impl std::error::Error) -> String {
    crate::telemetry::Chain(&error).to_string()
}

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
enum FrameError {
    #[error("a message of {length} bytes, the limit is {LARGEST}")]
    TooLarge { length: u32 },
    #[error("the input ended within a message")]
    CutOff,
    #[error("standard input cannot be read: {0}")]
    Input(#[from] io::Error),
}

fn read_all(mut input: impl Read, messages: &mpsc::Sender<Result<Vec<u8>, FrameError>>) {
    loop {
        let message = match read_frame(&mut input) {
            Ok(None) => return,
            Ok(Some(frame)) => Ok(frame),
            Err(error) => Err(error),
        };
        let last = message.is_err();
        if messages.blocking_send(message).is_err() || last {
            return;
        }
    }
}

/// The next message; `None` at the end of input.
fn read_frame(input: &mut impl Read) -> Result<Option<Vec<u8>>, FrameError> {
    let mut prefix = [0; 4];
    let mut filled = 0;
    while filled < prefix.len() {
        match input.read(&mut prefix[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::CutOff),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let length = u32::from_ne_bytes(prefix);
    if length > LARGEST {
        return Err(FrameError::TooLarge { length });
    }
    let mut frame = vec![0; length as usize];
    input
        .read_exact(&mut frame)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FrameError::CutOff,
            _ => error.into(),
        })?;
    Ok(Some(frame))
}

fn write_all(mut output: impl Write, mut answers: mpsc::Receiver<Outgoing>) -> io::Result<()> {
    while let Some(answer) = answers.blocking_recv() {
        write_frame(&mut output, &answer)?;
    }
    Ok(())
}

fn write_frame(output: &mut impl Write, message: &Outgoing) -> io::Result<()> {
    let mut text = serde_json::to_vec(message)?;
    let mut length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    if length > LARGEST {
        let (Outgoing::Answer { id, .. }
        | Outgoing::Failure { id, .. }
        | Outgoing::Chunk { id, .. }
        | Outgoing::End { id }) = message;
        text = serde_json::to_vec(&Outgoing::Failure {
            id: id.clone(),
            detail: "the daemon's answer is too large for the browser".into(),
        })?;
        length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    }
    output.write_all(&length.to_ne_bytes())?;
    output.write_all(&text)?;
    output.flush()
}

/// For the fuzz target of the messages of browsers: each becomes a request to the daemon or is
/// refused, and one that becomes a request is one for its interface.
#[cfg(fuzzing)]
pub fn fuzz_messages(mut input: &[u8]) {
    while let Ok(Some(frame)) = read_frame(&mut input) {
        let Ok(message) = serde_json::from_slice::<Incoming>(&frame) else {
            continue;
        };
        if let Ok(request) = request(&message) {
            assert!(request.uri().path().starts_with("/v1/"), "{message:?}");
            assert!(request.uri().host().is_none(), "{message:?}");
            assert_eq!(request.body().is_empty(), message.body.is_none());
        }
        let mut output = Vec::new();
        if let Ok(answer) = complete(&message.id, 200, &frame) {
            assert!(write_frame(&mut output, &answer).is_ok());
            let again = read_frame(&mut output.as_slice());
            assert!(matches!(again, Ok(Some(_))), "{answer:?}");
        }
    }
}

/// The native-messaging manifest of Chromium and Chrome for the host at `program`.
pub(super) fn manifest(program: &Path) -> Value {
    serde_json::json!({
        "name": HOST,
        "description": "Hands requests of pages to the opcert daemon.",
        "path": program,
        "type": "stdio",
        "allowed_origins": [EXTENSION],
    })
}

/// The host's name; its manifest's file is named after it.
pub(super) const HOST: &str = "opcert.host";

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(text: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(text.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend_from_slice(text);
        bytes
    }

    #[test]
    fn frames_are_read_one_by_one_and_broken_ones_are_told_apart() {
        let mut input = frame(b"{}");
        input.extend(frame(b""));
        let mut input = &input[..];
        assert_eq!(read_frame(&mut input).unwrap().unwrap(), b"{}");
        assert_eq!(read_frame(&mut input).unwrap().unwrap(), b"");
        assert!(read_frame(&mut input).unwrap().is_none());
        for cut in [&frame(b"{}")[..5], &[1, 0]] {
            let mut cut = cut;
            assert!(matches!(read_frame(&mut cut), Err(FrameError::CutOff)));
        }
        let mut large = &(LARGEST + 1).to_ne_bytes()[..];
        assert!(matches!(
            read_frame(&mut large),
            Err(FrameError::TooLarge { length }) if length == LARGEST + 1
        ));
    }

    #[test]
    fn what_is_too_large_for_the_browser_becomes_a_failure() {
        let mut output = Vec::new();
        let id = "1".to_owned();
        let chunk = "x".repeat(LARGEST as usize);
        write_frame(&mut output, &Outgoing::Chunk { id, chunk }).unwrap();
        let text = read_frame(&mut &output[..]).unwrap().unwrap();
        let message: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(message["opcert"], "failure");
        assert_eq!(message["id"], "1");
    }

    #[test]
    fn bodies_pass_as_they_are_written() {
        // Not one of these survives being read into a `Value` and written again.
        let body = r#"{ "n": 1.0E+2, "n": 12345678901234567890123,  "s": "\u0041\/" }"#;
        let message = format!(
            r#"{{"opcert":"request","id":"1","origin":"https://a.example","language":"zh",
                "method":"POST","path":"/v1/approvals","body":{body}}}"#
        );
        let message: Incoming = serde_json::from_str(&message).unwrap();
        let request = request(&message).unwrap();
        assert_eq!(request.body(), body.as_bytes());
        assert_eq!(request.headers()[ACCEPT_LANGUAGE], "zh");
        let mut output = Vec::new();
        let answer = complete("1", 200, body.as_bytes()).unwrap();
        write_frame(&mut output, &answer).unwrap();
        let text = String::from_utf8(read_frame(&mut &output[..]).unwrap().unwrap()).unwrap();
        assert_eq!(
            text,
            format!(r#"{{"opcert":"answer","id":"1","status":200,"body":{body}}}"#)
        );
        assert!(complete("1", 200, b"{").is_err());
        let nothing = complete("1", 204, b"").unwrap();
        let nothing = serde_json::to_value(&nothing).unwrap();
        assert_eq!(nothing["body"], Value::Null);
    }

    #[test]
    fn requests_stay_within_the_daemons_interface() {
        let message = |method: &str, path: &str, origin: &str| Incoming {
            opcert: Kind::Request,
            id: "1".into(),
            origin: origin.into(),
            language: "zh-CN,en".into(),
            method: method.into(),
            path: path.into(),
            body: None,
            stream: false,
        };
        let page = "https://accounts.example";
        assert!(request(&message("GET", "/v1/status", page)).is_ok());
        for (method, path, origin) in [
            ("CONNECT", "/v1/status", page),
            ("get", "/v1/status", page),
            ("GET", "/", page),
            ("GET", "https://elsewhere.example/v1/", page),
            ("GET", "/v1/ HTTP/1.1\r\nx: y", page),
            ("GET", "/v1/status", "https://a\r\nx: y"),
        ] {
            let refused = request(&message(method, path, origin));
            assert!(refused.is_err(), "{method} {path} {origin}");
        }
    }

    #[test]
    fn the_extension_has_the_id_that_its_key_gives() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("web/extension/manifest.json");
        let text = std::fs::read_to_string(path).unwrap();
        let manifest: Value = serde_json::from_str(&text).unwrap();
        let key = manifest["key"].as_str().unwrap();
        let key = crate::base::encoding::from_base64(key.as_bytes()).unwrap();
        let id: String = crate::base::encoding::sha256(&key)[..16]
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|digit| char::from(b'a' + digit))
            .collect();
        assert_eq!(EXTENSION, format!("chrome-extension://{id}/"));
        assert_eq!(manifest["version"], env!("CARGO_PKG_VERSION"));
    }
}
