//! One record: its line, its hash, and what a reader gets.
//!
//! What a kind of record means never lives here: who writes it knows its body.

use std::io::Write as _;

use aws_lc_rs::digest;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{BODY_LIMIT, Event};
use crate::base::encoding::{base64url, from_base64url};
use crate::base::ids::RequestId;
use crate::telemetry::trace::TraceId;

/// Separates these hashes from all others.
const DOMAIN: &[u8] = b"opcert-audit\0";

/// Length of a base64url SHA-256.
pub(super) const HASH_TEXT: usize = 43;

/// The longest line, its line break included: hash, space, the fields around the body, the body.
pub(super) const LINE_LIMIT: usize = HASH_TEXT + 512 + BODY_LIMIT;

/// The hash of a record.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub(super) [u8; 32]);

impl Hash {
    /// What stands before the first record.
    pub(super) const ZERO: Self = Self([0; 32]);

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads base64url.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        Some(Self(from_base64url(text)?.try_into().ok()?))
    }

    /// The hash of the record with these JSON bytes behind this one.
    pub(super) fn next(&self, json: &[u8]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(DOMAIN);
        context.update(&self.0);
        context.update(json);
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Self(hash)
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&base64url(&self.0))
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hash({self})")
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(text.as_bytes()).ok_or_else(|| serde::de::Error::custom("not a hash"))
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Names a record: its number and the hash that covers it and all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RecordRef {
    /// The number, from 1.
    pub seq: u64,
    /// The hash.
    pub hash: Hash,
}

impl RecordRef {
    /// Where an empty log stands.
    pub(super) const NONE: Self = Self {
        seq: 0,
        hash: Hash::ZERO,
    };
}

/// A record as read back.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its number, from 1.
    pub seq: u64,
    /// Its hash, which covers it and all before it.
    pub hash: Hash,
    /// When it was appended, in milliseconds.
    pub time: Timestamp,
    /// What happened.
    pub kind: String,
    /// The request that caused it.
    pub request: Option<RequestId>,
    /// The trace that the request belongs to.
    pub trace: Option<TraceId>,
    /// The facts.
    pub body: Box<RawValue>,
}

impl Record {
    /// Reads the JSON of a line of this hash; `None` if it is not that of a record.
    pub(super) fn parse(json: &[u8], hash: Hash) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Fields {
            seq: u64,
            time: String,
            kind: String,
            #[serde(default)]
            request: Option<RequestId>,
            #[serde(default)]
            trace: Option<String>,
            body: Box<RawValue>,
        }
        let fields: Fields = serde_json::from_slice(json).ok()?;
        Some(Self {
            seq: fields.seq,
            hash,
            time: fields.time.parse().ok()?,
            kind: fields.kind,
            request: fields.request,
            trace: match fields.trace {
                None => None,
                Some(text) => Some(text.parse().ok()?),
            },
            body: fields.body,
        })
    }
}

/// Appends the line of `event` to `buffer` and returns its name.
pub(super) fn write_line(
    buffer: &mut Vec<u8>,
    previous: &RecordRef,
    time: Timestamp,
    event: &Event,
) -> std::io::Result<RecordRef> {
    let seq = previous.seq + 1;
    let start = buffer.len();
    buffer.resize(start + HASH_TEXT, b' ');
    buffer.push(b' ');
    let json = buffer.len();
    write!(
        buffer,
        r#"{{"seq":{seq},"time":"{time:.3}","kind":"{}","#,
        event.kind
    )?;
    if let Some(request) = &event.request {
        write!(buffer, r#""request":"{request}","#)?;
    }
    if let Some(trace) = &event.trace {
        write!(buffer, r#""trace":"{trace}","#)?;
    }
    buffer.extend_from_slice(br#""body":"#);
    let body = buffer.len();
    buffer.extend_from_slice(event.body.get().as_bytes());
    // A line break in JSON can only be white space between tokens (RFC 8259 section 7).
    for byte in &mut buffer[body..] {
        if matches!(*byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    buffer.push(b'}');
    let hash = previous.hash.next(&buffer[json..]);
    buffer[start..start + HASH_TEXT].copy_from_slice(hash.to_string().as_bytes());
    buffer.push(b'\n');
    Ok(RecordRef { seq, hash })
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LineFault {
    /// It has not the form of a record.
    Malformed,
    /// It is another record than the one due.
    Seq {
        /// The number it carries.
        found: u64,
    },
    /// Its hash is not that of its contents behind the previous record.
    Hash,
}

/// Checks a line, without its line break, behind `previous`; returns its name and its JSON.
pub(super) fn check_line<'a>(
    line: &'a [u8],
    previous: &RecordRef,
) -> Result<(RecordRef, &'a [u8]), LineFault> {
    let (claimed, rest) = line
        .split_at_checked(HASH_TEXT)
        .ok_or(LineFault::Malformed)?;
    let json = rest.strip_prefix(b" ").ok_or(LineFault::Malformed)?;
    let claimed = Hash::parse(claimed).ok_or(LineFault::Malformed)?;
    let found = seq_of(json).ok_or(LineFault::Malformed)?;
    let seq = previous.seq + 1;
    if found != seq {
        return Err(LineFault::Seq { found });
    }
    let hash = previous.hash.next(json);
    if hash != claimed {
        return Err(LineFault::Hash);
    }
    Ok((RecordRef { seq, hash }, json))
}

/// The number that the JSON of a record carries, spelt as we spell it.
pub(super) fn seq_of(json: &[u8]) -> Option<u64> {
    let rest = json.strip_prefix(br#"{"seq":"#)?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let text = std::str::from_utf8(&rest[..digits]).ok()?;
    let canonical = !text.starts_with('0') && rest[digits..].starts_with(br#","time":""#);
    text.parse().ok().filter(|seq| canonical && has_next(*seq))
}

/// Whether a record can come behind this one. The last number that fits is never given, so one that
/// is read is no record's, and whoever counts on from what is read does not run over.
pub(super) fn has_next(seq: u64) -> bool {
    seq < u64::MAX
}

/// Whether `tail` can be the beginning of the line of record `seq`, cut short: what a crash in
/// the middle of a write leaves. A file system may have filled the unwritten part with zeros.
pub(super) fn is_torn(tail: &[u8], seq: u64) -> bool {
    let written = tail.len() - tail.iter().rev().take_while(|b| **b == 0).count();
    let tail = &tail[..written];
    let (hash, rest) = tail.split_at(tail.len().min(HASH_TEXT));
    let hash_ok = hash
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let due = format!(r#" {{"seq":{seq},"time":""#);
    let common = rest.len().min(due.len());
    hash_ok && rest[..common] == due.as_bytes()[..common]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(body: &str) -> Event {
        Event {
            kind: "test",
            request: Some("r-1".parse().unwrap()),
            trace: Some("0af7651916cd43dd8448eb211c80319c".parse().unwrap()),
            body: RawValue::from_string(body.into()).unwrap(),
        }
    }

    #[test]
    fn a_line_is_as_documented() {
        let mut line = Vec::new();
        let time = Timestamp::from_millisecond(1_767_323_045_600).unwrap();
        let first = write_line(&mut line, &RecordRef::NONE, time, &event("{\"a\":\n1}")).unwrap();
        let json = br#"{"seq":1,"time":"2026-01-02T03:04:05.600Z","kind":"test","request":"r-1","trace":"0af7651916cd43dd8448eb211c80319c","body":{"a": 1}}"#;
        let mut input = b"opcert-audit\0".to_vec();
        input.extend([0; 32]);
        input.extend(json);
        let hash = base64url(&crate::base::encoding::sha256(&input));
        let expected = [hash.as_bytes(), b" ", json, b"\n"].concat();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            String::from_utf8(expected.clone()).unwrap()
        );
        assert_eq!(first.hash.to_string(), hash);

        let bare = &expected[..expected.len() - 1];
        let (checked, json) = check_line(bare, &RecordRef::NONE).unwrap();
        assert_eq!(checked, first);
        let record = Record::parse(json, first.hash).unwrap();
        assert_eq!(record.time, time);
        assert_eq!(record.body.get(), "{\"a\": 1}");
        assert_eq!(check_line(bare, &first), Err(LineFault::Seq { found: 1 }));
    }

    #[test]
    fn every_beginning_of_a_line_is_torn_and_garbage_is_not() {
        let mut line = Vec::new();
        write_line(
            &mut line,
            &RecordRef::NONE,
            Timestamp::UNIX_EPOCH,
            &event("{}"),
        )
        .unwrap();
        for cut in 1..line.len() {
            assert!(is_torn(&line[..cut], 1), "{cut}");
            assert_eq!(is_torn(&line[..cut], 2), cut <= HASH_TEXT + 8, "{cut}");
        }
        assert!(is_torn(b"abc\0\0\0", 1));
        assert!(!is_torn(b"some garbage", 1));
    }

    #[test]
    fn the_longest_record_fits_the_line_limit() {
        let previous = RecordRef {
            seq: u64::MAX - 1,
            hash: Hash::ZERO,
        };
        let body = format!("\"{}\"", "x".repeat(BODY_LIMIT - 2));
        let event = Event {
            kind: "0123456789012345678901234567890123456789012345678901234567890123",
            request: Some("x".repeat(64).parse().unwrap()),
            trace: Some("a".repeat(32).parse().unwrap()),
            body: RawValue::from_string(body).unwrap(),
        };
        let mut line = Vec::new();
        write_line(&mut line, &previous, Timestamp::MIN, &event).unwrap();
        assert!(line.len() <= LINE_LIMIT, "{}", line.len());
    }
}
