//! Request bodies with a size and a time limit, so that no reader behind a door needs its own.
//!
//! A sender that is answered in the middle of its body sees a broken connection, not the answer.
//! So what a body has past its limit is read and dropped for a moment, within bounds, before the
//! reader gets its error and the connection is closed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// More bytes than the door allows.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u32,
    },
    /// It did not arrive in time.
    #[error("the body did not arrive within {} s", limit.as_secs())]
    TooSlow {
        /// The limit.
        limit: Duration,
    },
    /// The connection broke or its framing is wrong.
    #[error("the body could not be read")]
    Broken {
        /// What hyper saw.
        #[source]
        source: hyper::Error,
    },
}

/// So many bytes past the limit are read to let their sender hear the answer.
const DISCARD: u64 = 1024 * 1024;

/// For so long at most: a sender that waits for leave to go on (RFC 9110 section 10.1.1) sends
/// nothing, and is not to wait much longer.
const DISCARD_TIME: Duration = Duration::from_millis(250);

/// A request body as it comes from the wire, limited in size and time.
#[derive(Debug)]
pub struct RequestBody {
    inner: Incoming,
    limit: u32,
    left: u64,
    timeout: Duration,
    /// Made when the reader first has to wait: a small body that came with its head needs none.
    alarm: Option<Pin<Box<Sleep>>>,
    /// Once the body is too large: how many more bytes are dropped, and until when.
    discard: Option<(u64, Pin<Box<Sleep>>)>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, limit: u32, timeout: Duration) -> Self {
        Self {
            inner,
            limit,
            left: u64::from(limit),
            timeout,
            alarm: None,
            discard: None,
        }
    }

    /// Reads and drops until the end of the body or of what is bearable, then is ready.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.left;
        let (bytes, alarm) = self.discard.get_or_insert_with(|| {
            (
                left.saturating_add(DISCARD),
                // The limit of time: a peer may send slowly, or nothing, for ever.
                Box::pin(tokio::time::sleep(DISCARD_TIME)),
            )
        });
        if alarm.as_mut().poll(cx).is_ready() || self.inner.size_hint().lower() > *bytes {
            return Poll::Ready(());
        }
        loop {
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                    match bytes.checked_sub(length) {
                        Some(rest) => *bytes = rest,
                        None => return Poll::Ready(()),
                    }
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn poll_too_large(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let limit = self.limit;
        self.poll_discard(cx)
            .map(|()| Some(Err(BodyError::TooLarge { limit })))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.discard.is_some() || this.inner.size_hint().lower() > this.left {
            return this.poll_too_large(cx);
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                match this.left.checked_sub(length) {
                    Some(left) => {
                        this.left = left;
                        Poll::Ready(Some(Ok(frame)))
                    }
                    None => this.poll_too_large(cx),
                }
            }
            Poll::Ready(Some(Err(source))) => Poll::Ready(Some(Err(BodyError::Broken { source }))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let timeout = this.timeout;
                // The limit of time between two pieces; made only when one is waited for.
                let alarm = this
                    .alarm
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                match alarm.as_mut().poll(cx) {
                    Poll::Ready(()) => {
                        Poll::Ready(Some(Err(BodyError::TooSlow { limit: timeout })))
                    }
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
