//! Request bodies with a size and a time limit, so that no reader behind a door needs its own.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// More bytes than the door allows; found from `Content-Length` before reading any.
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

/// A request body as it comes from the wire, limited in size and time.
#[derive(Debug)]
pub struct RequestBody {
    inner: Incoming,
    limit: u32,
    left: u64,
    timeout: Duration,
    /// Made when the reader first has to wait: a small body that came with its head needs none.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, limit: u32, timeout: Duration) -> Self {
        Self {
            inner,
            limit,
            left: u64::from(limit),
            timeout,
            alarm: None,
        }
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
        if this.inner.size_hint().lower() > this.left {
            return Poll::Ready(Some(Err(BodyError::TooLarge { limit: this.limit })));
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                match this.left.checked_sub(length) {
                    Some(left) => {
                        this.left = left;
                        Poll::Ready(Some(Ok(frame)))
                    }
                    None => Poll::Ready(Some(Err(BodyError::TooLarge { limit: this.limit }))),
                }
            }
            Poll::Ready(Some(Err(source))) => Poll::Ready(Some(Err(BodyError::Broken { source }))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let timeout = this.timeout;
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
