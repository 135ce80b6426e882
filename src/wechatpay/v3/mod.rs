//! Interface version 3: RSA signatures over lines of text, AES-256-GCM and RSA-OAEP contents.
//!
//! Sources: `pay.weixin.qq.com` merchant documents 4012365334 to 4012365340 (signing), 4013053249
//! and 4013053420 (verifying), the page on sensitive fields, and the official client libraries.
//!
//! What never lives here: private keys (what they sign or decrypt is given out as bytes), and what is
//! done with a message that verified.

mod aead;
mod field;
mod message;
mod notification;
mod platform;
mod seen;
mod verify;

pub use aead::{Envelope, OpenError};
pub use field::{Field, FieldCiphertext, FieldError};
pub use message::{MessageError, Method, PayClient, PaySign, RequestMessage, Target};
pub use notification::{Notification, NotificationError};
pub use platform::{Answer, PlatformError, PlatformKey, PlatformKeys, public_key_from_pem};
pub use seen::{Delivery, Seen, SeenFull};
pub use verify::{SignatureHeaders, Verified, VerifyError};

/// Authentication scheme and signature type: RSASSA-PKCS1-v1_5 with SHA-256, 2048-bit keys.
pub const SCHEME: &str = "WECHATPAY2-SHA256-RSA2048";

/// A message this many seconds away from now, or more, is refused, in either direction. The
/// platform allows five minutes; at exactly 300 seconds its Go and Java libraries refuse.
pub const WINDOW_SECONDS: i64 = 300;

fn within_window(second: i64, now: jiff::Timestamp) -> bool {
    second.abs_diff(now.as_second()) < WINDOW_SECONDS.unsigned_abs()
}
