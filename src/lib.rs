//! opcert binds the power to move a merchant's money to a key that cannot leave a hardware token.
//!
//! A browser, desktop program or the command line hands a *challenge* of the account service to
//! the daemon; the daemon checks it, asks policy and, where policy says so, a person, makes the
//! record durable, has the token sign, verifies the signature and answers with an *approval*.
//! Vendor code runs only in a worker process of its own; the daemon opens no connection.
//!
//! The modules, top to bottom; each calls only those below it:
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`daemon`] | the life of `opcertd`: assemble, bind, notify, drain |
//! | [`cli`] | the `opcert` command line, which is also the courier to the account service |
//! | `account` | `opcert-accountd`: accounts, SMS codes, issuing CA, operations |
//! | [`config`] | configuration files: find, check permissions, parse |
//! | [`api`] | the `/v1` interface: doors, routes, problem documents |
//! | [`signing`] | the pipeline from challenge to approval |
//! | [`merchants`] | WeChat Pay merchants: their keys, sealed secrets and platform keys, and what is done with them |
//! | [`enrol`] | the local half of enrolment, and what is installed |
//! | [`device`] | PKCS#11 tokens through supervised worker processes |
//! | [`consent`] | asking the person |
//! | [`audit`] | the durable, hash-chained record |
//! | [`policy`] | may this caller do this: a value, not a side effect |
//! | [`statement`] | operations, challenges, approvals: hostile bytes in, typed values out |
//! | [`wechatpay`] | WeChat Pay: messages to sign, signatures to check, contents to open |
//! | [`http`] | accept loops, TLS, limits, drain; a small client |
//! | [`telemetry`] | logs, metrics, traces |
//! | [`base`] | clock, identifiers, secrets, keys, encodings, X.509 and JOSE helpers |

#![forbid(unused_must_use)]
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod daemon;

pub mod cli;

#[cfg(feature = "account")]
pub mod account;

pub mod config;

pub mod api;

pub mod signing;

pub mod merchants;

pub mod enrol;

pub mod device;

pub mod consent;

pub mod audit;

pub mod policy;

pub mod statement;

pub mod wechatpay;

pub mod http;

pub mod telemetry;

pub mod base;

#[cfg(feature = "account")]
pub use account::main as accountd_main;
pub use api::client;
pub use cli::main as opcert_main;
pub use daemon::main as opcertd_main;
pub use device::worker::main as worker_main;
