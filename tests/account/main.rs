//! The account service, tested from outside: over TLS, by its command line, and with programs that
//! nobody here wrote.

#![cfg(feature = "account")]

#[path = "../support/mod.rs"]
mod support;

mod courier;
mod key_proofs;
mod losses;
mod main_path;
mod people;
mod pki;
mod relying;
mod scale;
mod scene;
mod secrets;
mod transfer;
mod upkeep;
