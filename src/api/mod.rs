//! The `/v1` interface of the daemon: doors, gates, routes, errors, and a client of it.
//!
//! A request passes, in this order, [`problem::finish`] (request id, error documents), the gates of
//! its door ([`doors`]), the look-up of its caller ([`caller`]), and then reaches a handler in
//! [`routes`] with its body parsed by [`extract`]. Handlers hold no logic of their own: they turn
//! what [`types`] describes into calls of the modules below and errors into a [`Problem`].
//!
//! The module also keeps who may come in by the native and the browser door: the registry of
//! [`clients`] and the [`local_ca`] that certifies them.
//!
//! What never lives here: what may be signed (`policy`), signing (`signing`), tokens (`device`).

mod browser;
pub mod caller;
mod chinese;
pub mod client;
pub mod clients;
pub mod configuration;
pub mod doors;
pub mod events;
pub mod extract;
pub mod language;
pub mod local_ca;
pub mod problem;
mod refusals;
pub mod routes;
pub mod software_key;
pub mod throttle;
pub mod types;
pub mod wechatpay;
pub mod what_if;

pub use problem::{Code, Problem, ProblemDocument};
