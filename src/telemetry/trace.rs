//! The trace that a request belongs to (W3C Trace Context, level 1).
//!
//! A caller may send a `traceparent`; its trace id then stands in the log lines and the audit
//! records of the request, so that one search finds both ends. Nothing is sent onwards: the daemon
//! calls nobody. The id travels beside the request's task, so no code in between has to hand it on.

use std::fmt;
use std::future::Future;
use std::str::FromStr;

tokio::task_local! {
    static CURRENT: TraceId;
}

/// A trace id: 32 lower-case hexadecimal digits, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 32]);

/// A header that is not a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the header is not a traceparent (W3C Trace Context section 3.2)")]
pub struct InvalidTraceparent;

impl TraceId {
    /// The text.
    pub fn as_str(&self) -> &str {
        // Only digits are ever stored.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// From the value of a `traceparent` header. Versions to come may be longer (section 3.2.4).
    pub fn from_traceparent(header: &str) -> Result<Self, InvalidTraceparent> {
        let mut parts = header.split('-');
        let (Some(version), Some(trace), Some(parent), Some(flags)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidTraceparent);
        };
        let sound = is_hex(version, 2)
            && version != "ff"
            && is_hex(parent, 16)
            && parent.bytes().any(|digit| digit != b'0')
            && is_hex(flags, 2)
            && (version != "00" || parts.next().is_none());
        if sound {
            trace.parse()
        } else {
            Err(InvalidTraceparent)
        }
    }
}

impl FromStr for TraceId {
    type Err = InvalidTraceparent;

    fn from_str(text: &str) -> Result<Self, InvalidTraceparent> {
        if is_hex(text, 32) && text.bytes().any(|digit| digit != b'0') {
            text.as_bytes()
                .try_into()
                .map(Self)
                .map_err(|_| InvalidTraceparent)
        } else {
            Err(InvalidTraceparent)
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceId({self})")
    }
}

/// The trace of the request that the running task works on.
pub fn current() -> Option<TraceId> {
    CURRENT.try_with(|trace| *trace).ok()
}

/// Works on a request of this trace.
pub async fn within<F: Future>(trace: TraceId, work: F) -> F::Output {
    CURRENT.scope(trace, work).await
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn only_a_sound_header_is_taken() {
        let good = format!("00-{TRACE}-b7ad6b7169203331-01");
        assert_eq!(TraceId::from_traceparent(&good).unwrap().as_str(), TRACE);
        let later = format!("01-{TRACE}-b7ad6b7169203331-01-more");
        assert!(TraceId::from_traceparent(&later).is_ok());
        for bad in [
            String::new(),
            format!("ff-{TRACE}-b7ad6b7169203331-01"),
            format!("00-{TRACE}-b7ad6b7169203331-01-more"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-b7ad6b7169203331"),
            format!("00-{TRACE}x-b7ad6b7169203331-01"),
        ] {
            assert_eq!(
                TraceId::from_traceparent(&bad),
                Err(InvalidTraceparent),
                "{bad}"
            );
        }
    }

    #[tokio::test]
    async fn a_task_knows_its_trace() {
        assert_eq!(current(), None);
        let trace: TraceId = TRACE.parse().unwrap();
        within(trace, async {
            tokio::task::yield_now().await;
            assert_eq!(current(), Some(trace));
        })
        .await;
    }
}
