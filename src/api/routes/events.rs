//! `/v1/events`: what happens, as it happens (server-sent events, WHATWG HTML section 9.2).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use hyper::body::{Body, Bytes, Frame};
use tokio::sync::mpsc;

use super::App;
use crate::api::caller::Identified;
use crate::api::events::{Happening, LISTENERS, Listener, Told};
use crate::api::problem::{Code, Problem};

/// A comment is sent after so much silence, so that both ends notice a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How many events wait in a connection before its listener counts as slow.
const QUEUE: usize = 8;

/// What happens to tokens, certificates and prompts, as a stream of server-sent events.
///
/// The name of an event is its `event` member too; `data` is one JSON object. The first event is
/// `snapshot`, unless `Last-Event-ID` names an event of this run of the daemon and all later ones
/// are kept still: then those follow. A listener that is too slow gets `lagged`, and the stream
/// ends; it comes back for a snapshot. A comment is sent after 15 s of silence.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "tokens",
    params(("Last-Event-ID" = Option<String>, Header, description = "The last event seen.")),
    responses((
        status = 200,
        description = "Events, until one side ends the stream.",
        body = Happening,
        content_type = "text/event-stream"
    ))
)]
pub(super) async fn watch_events(
    State(app): State<App>,
    _: Identified,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last_seen = headers.get("last-event-id").map(HeaderValue::to_str);
    let Ok(last_seen) = last_seen.transpose() else {
        return Err(Problem::new(Code::Malformed, "Last-Event-ID: not text"));
    };
    let listener = app.0.events.listen(last_seen).ok_or_else(|| {
        let limit = format!("{LISTENERS} listeners are there already");
        Problem::new(Code::Busy, limit)
    })?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(serve(app, listener, sender));
    let headers = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, axum::body::Body::new(Stream(receiver))).into_response())
}

/// Writes one stream. Ends when the listener is gone, too slow, or told that it is over.
async fn serve(app: App, mut listener: Listener, sender: mpsc::Sender<Bytes>) {
    let first = match listener.missed.take() {
        Some(missed) => missed,
        None => vec![Told {
            id: listener.id.clone(),
            what: Happening::Snapshot {
                tokens: app.0.devices.tokens().await,
            },
        }],
    };
    for told in first {
        if sender.send(text(&told)).await.is_err() {
            return;
        }
    }
    loop {
        let next = tokio::select! {
            next = tokio::time::timeout(KEEP_ALIVE, listener.next()) => next,
            () = sender.closed() => return,
        };
        let (bytes, is_last) = match next {
            Ok(Some(told)) => {
                let is_last =
                    matches!(told.what, Happening::Lagged { .. } | Happening::Stopping {});
                (text(&told), is_last)
            }
            Ok(None) => return,
            Err(_) => (Bytes::from_static(b":\n\n"), false),
        };
        // A listener that does not read holds us up here, until it has missed too much.
        if sender.send(bytes).await.is_err() || is_last {
            return;
        }
    }
}

fn text(told: &Told) -> Bytes {
    let id = match told.id.as_str() {
        "" => String::new(),
        id => format!("id: {id}\n"),
    };
    // JSON has no line breaks of its own.
    let data = serde_json::to_string(&told.what).unwrap_or_default();
    Bytes::from(format!("{id}event: {}\ndata: {data}\n\n", told.what.name()))
}

/// The body of the answer.
struct Stream(mpsc::Receiver<Bytes>);

impl Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = self.0.poll_recv(context);
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
