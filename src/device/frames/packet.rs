//! Frames in packets: each behind its length, as many as fit.
//!
//! What a frame says never matters here.

use serde::{Deserialize, Serialize};

/// The most bytes of one packet.
pub const PACKET_MAX: usize = 64 * 1024;

/// Why bytes are no frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed.
    #[error("frame too large: {length} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A length points past the end of the packet.
    #[error("packet ends inside a frame")]
    Truncated,
    /// The bytes of a frame are no value of its type.
    #[error("malformed frame")]
    Malformed,
}

/// Bytes of the length before each frame.
const LENGTH: usize = size_of::<u32>();

/// Appends `frame` behind its length. On error `packet` is as before.
pub fn append<T: Serialize>(packet: &mut Vec<u8>, frame: &T) -> Result<(), FrameError> {
    let start = packet.len();
    let result = encode_at(packet, frame, start);
    if result.is_err() {
        packet.truncate(start);
    }
    result
}

fn encode_at<T: Serialize>(
    packet: &mut Vec<u8>,
    frame: &T,
    start: usize,
) -> Result<(), FrameError> {
    packet.extend_from_slice(&[0; LENGTH]);
    postcard::to_extend(frame, Tail(packet)).map_err(|_| FrameError::Malformed)?;
    let length = packet.len() - start - LENGTH;
    let too_large = FrameError::TooLarge {
        length,
        limit: PACKET_MAX - LENGTH,
    };
    if length > PACKET_MAX - LENGTH {
        return Err(too_large);
    }
    let prefix = u32::try_from(length).map_err(|_| too_large)?;
    packet[start..start + LENGTH].copy_from_slice(&prefix.to_le_bytes());
    Ok(())
}

/// Lets postcard write behind what a packet holds already.
struct Tail<'a>(&'a mut Vec<u8>);

impl Extend<u8> for Tail<'_> {
    fn extend<T: IntoIterator<Item = u8>>(&mut self, bytes: T) {
        self.0.extend(bytes);
    }
}

/// The frames of one packet.
pub fn split(packet: &[u8]) -> Split<'_> {
    Split(packet)
}

/// Iterates over the bytes of the frames of a packet; ends at the first error.
pub struct Split<'a>(&'a [u8]);

impl<'a> Iterator for Split<'a> {
    type Item = Result<&'a [u8], FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let packet = std::mem::take(&mut self.0);
        let Some((length, rest)) = packet.split_first_chunk::<LENGTH>() else {
            return Some(Err(FrameError::Truncated));
        };
        let length = u32::from_le_bytes(*length) as usize;
        match rest.split_at_checked(length) {
            Some((frame, rest)) => {
                self.0 = rest;
                Some(Ok(frame))
            }
            None => Some(Err(FrameError::Truncated)),
        }
    }
}

/// Reads one frame; every byte must belong to it.
pub fn decode<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(frame) {
        Ok((value, [])) => Ok(value),
        Ok(_) | Err(_) => Err(FrameError::Malformed),
    }
}
