//! WeChat Pay for a merchant's server: messages to sign, signatures to check, contents to open.
//!
//! Pure values: nothing here does input or output, holds a private key or asks the time. Bodies
//! are the raw bytes that travel; no signed byte is ever written a second time.
//!
//! ```text
//!  ours to the platform   v3: RequestMessage, PaySign ─▶ (token signs) ─▶ Authorization, paySign
//!                         v2: Fields + Rules + secret ─▶ sign
//!  the platform's to us   v3: SignatureHeaders + body ─▶ PlatformKeys::verify ─▶ Verified
//!                             Verified ─▶ Notification ─▶ Envelope::open ─▶ plaintext
//!                         v2: XML ─▶ Fields ─▶ Rules::verify ─▶ Verified
//! ```
//!
//! The order "verify, then decrypt, then read" is held by types: a [`v3::Notification`] is made
//! from a [`v3::Verified`] body only. Keys of the platform are chosen by the exact
//! `Wechatpay-Serial`; there is no second key to fall back on. Algorithms, key lengths and nonce
//! lengths are pinned, never inferred from what arrived.
//!
//! Every refusal is a typed error, the same one for all ways in which a ciphertext can be wrong,
//! and it carries no part of a plaintext.

pub mod names;
pub mod secret;
pub mod v2;
pub mod v3;

pub use names::{
    AppId, CertificateSerial, InvalidName, MerchantId, Nonce, PlatformKeyId, PrepayId,
};
pub use secret::{ApiV2Secret, ApiV3Key, InvalidSecret};

/// Decodes standard base64 with padding and nothing else: no white space, no line ends.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    if text.bytes().any(|byte| byte.is_ascii_whitespace()) {
        return None;
    }
    crate::base::encoding::from_base64(text.as_bytes())
}
