//! `opcert-accountd`, the account service: it knows accounts, operators and computers, issues
//! operating certificates, asks for signatures and checks them.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`admin`] | the command line: `init`, `serve`, accounts, operators, revocation |
//! | [`serve`] | the life of the running service: open, bind, tell, serve, drain |
//! | [`routes`] | the HTTP interface and what each error is to the outside |
//! | [`service`] | everything opened, as request handlers have it |
//! | [`logins`], [`sessions`], [`passwords`], [`cookies`] | who somebody is: throttled log-in, sessions, Argon2id, what browsers keep |
//! | [`codes`], [`sms`] | SMS codes: limits, keyed hashes, the gateway |
//! | [`enrolment`] | a code becomes a ticket, a ticket a certificate |
//! | [`manage`], [`revocation`] | what people see of their account, and delete |
//! | [`recovery`] | ways back in after a loss of number or computer |
//! | [`secrets`], [`vault`] | API secrets: set once, sealed, given to computers |
//! | [`issuing`], [`ocsp`] | the authority: certificate profile, revocation lists, OCSP answers |
//! | [`operations`], [`effects`] | sensitive operations, their challenges and approvals |
//! | [`idempotency`] | answers kept for requests that are repeated |
//! | [`webhooks`], [`outgoing`] | telling the platform of approvals |
//! | [`signer`], [`seal`] | the service's own keys, on a token; what is sealed |
//! | [`records`] | the audit trail |
//! | [`portal`] | pages for people |
//! | [`store`] | SQL |
//! | [`config`] | the configuration file |
//!
//! What must hold however many requests and instances there are (single use, quotas, uniqueness)
//! is held by the database, inside the transaction that depends on it. What must not happen
//! without a record (a code sent, a certificate issued, an operation approved) has its record
//! durable before the transaction commits; a record of something that then failed to commit is
//! possible, the other way round is not.
//!
//! What never lives here: the formats that the daemon shares ([`crate::statement`]), PKCS#11
//! ([`crate::device`]) and anything of the daemon's.

pub mod admin;
pub mod codes;
pub mod config;
pub mod cookies;
mod effects;
pub mod enrolment;
pub mod idempotency;
pub mod issuing;
pub mod key_proof;
pub mod logins;
pub mod manage;
pub mod ocsp;
pub mod operations;
pub mod outgoing;
pub mod passwords;
pub mod portal;
pub mod records;
pub mod recovery;
pub mod revocation;
pub mod routes;
pub mod seal;
pub mod secrets;
pub mod serve;
pub mod service;
pub mod sessions;
pub mod signer;
pub mod sms;
pub mod store;
pub mod vault;
pub mod webhooks;

pub use admin::{command, main};
