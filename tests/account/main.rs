//! The account service, tested from outside: over TLS, by its command line, and with programs that
//! nobody here wrote.

#![cfg(feature = "account")]

#[path = "../wechatpay/support.rs"]
#[allow(dead_code, reason = "shared with the tests of the messages themselves")]
mod platform;
#[path = "../support/mod.rs"]
mod support;

mod courier;
mod key_proofs;
mod losses;
mod main_path;
mod people;
mod pki;
mod portal;
mod relying;
mod scale;
mod scene;
mod secret_delivery;
mod secrets;
mod transfer;
mod upkeep;
