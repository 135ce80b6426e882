//! The routes of `/v1`, one file for each resource, and the document that describes them. A handler
//! turns a request into one call and its outcome into an answer; what is decided, signed or kept is
//! so in the modules below.

mod administer;
pub mod approvals;
pub mod certificates;
pub mod clients;
pub mod enrolments;
pub mod events;
mod observe;
pub mod openapi;
pub mod policy;
pub mod services;
pub mod status;
pub mod tokens;
pub mod wechatpay;

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::clients::Clients;
use super::configuration::Configuration;
use super::events::Events;
use super::local_ca::LocalCa;
use super::problem::{self, Code, Problem};
use super::throttle::Failures;
use crate::audit::Audit;
use crate::base::Clock;
use crate::consent::Asker;
use crate::device::Devices;
use crate::enrol::{Enroller, Registry};
use crate::merchants::Merchants;
use crate::policy::{Administration, Caller, PolicySet};
use crate::signing::Pipeline;
use crate::statement::Origin;

/// What the routes work with. Cloning shares it.
#[derive(Clone)]
pub struct App(Arc<Parts>);

/// The parts of an [`App`].
pub struct Parts {
    /// The time.
    pub clock: Clock,
    /// The audit trail.
    pub audit: Audit,
    /// The registered clients.
    pub clients: Clients,
    /// The authority that certifies clients.
    pub local_ca: Arc<LocalCa>,
    /// The tokens.
    pub devices: Devices,
    /// What is installed, and what this computer is.
    pub registry: Registry,
    /// Those who listen to what happens.
    pub events: Events,
    /// Enrolments.
    pub enroller: Arc<Enroller>,
    /// Approvals, and the policy they are decided by.
    pub pipeline: Pipeline,
    /// WeChat Pay merchants.
    pub merchants: Merchants,
    /// Reads the policy anew from its files.
    pub load_policy: LoadPolicy,
    /// Held while the policy is read anew.
    pub reloading: tokio::sync::Mutex<()>,
    /// Addresses that the native door is bound to.
    pub native: Vec<SocketAddr>,
    /// Addresses that metrics are on besides the control socket.
    pub metrics: Vec<SocketAddr>,
    /// What is in force of the configuration.
    pub configuration: Configuration,
    /// Failed authentications.
    pub failures: Failures,
    /// Addresses that the browser door is bound to.
    pub browser: Vec<SocketAddr>,
    /// The origins whose pages are served.
    pub origins: ArcSwap<Vec<Origin>>,
    /// Asks the person.
    pub asker: Asker,
}

/// Reads and checks the policy that is configured; waits for the disk. Where its files are is not
/// for this module to know.
pub type LoadPolicy = Box<dyn Fn() -> Result<PolicySet, Problem> + Send + Sync>;

impl App {
    /// From its parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// The registered clients.
    pub fn clients(&self) -> &Clients {
        &self.0.clients
    }

    /// The time.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The audit trail.
    pub(super) fn audit(&self) -> &Audit {
        &self.0.audit
    }

    /// Failed authentications.
    pub fn failures(&self) -> &Failures {
        &self.0.failures
    }

    /// Whether pages of this origin are served; compared byte for byte.
    pub fn serves(&self, origin: &[u8]) -> Option<Origin> {
        self.0
            .origins
            .load()
            .iter()
            .find(|known| known.as_str().as_bytes() == origin)
            .cloned()
    }

    /// Serves pages of these origins from now on.
    pub fn set_origins(&self, origins: Vec<Origin>) {
        self.0.origins.store(Arc::new(origins));
    }

    /// Whether policy lets `caller` change this.
    pub(super) fn administer(&self, caller: &Caller, what: Administration) -> Result<(), Problem> {
        let parts = &self.0;
        let set = parts.pipeline.policies().current();
        let (computer, now) = (parts.registry.computer(), parts.clock.now());
        crate::policy::decide_administration(&set, caller, what, computer, now)?;
        Ok(())
    }
}

/// All routes, without gates.
pub(super) fn router(app: App) -> Router {
    finished(Router::new(), app)
}

/// All routes and what monitoring asks, without gates.
pub(super) fn router_with_monitoring(app: App) -> Router {
    finished(observe::router(), app)
}

fn finished(more: Router<App>, app: App) -> Router {
    let (router, document) = documented().split_for_parts();
    router
        .merge(openapi::route(&document))
        .merge(more)
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(app)
}

/// What monitoring asks, alone.
pub(super) fn monitoring(app: App) -> Router {
    observe::router()
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(app)
}

fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(status::get_status))
        .routes(routes!(tokens::list_tokens))
        .routes(routes!(tokens::unlock_token))
        .routes(routes!(tokens::test_token))
        .routes(routes!(tokens::release_token))
        .routes(routes!(administer::init_token))
        .routes(routes!(administer::contents))
        .routes(routes!(administer::change_pin))
        .routes(routes!(administer::unblock_pin))
        .routes(routes!(events::watch_events))
        .routes(routes!(certificates::list_certificates))
        .routes(routes!(
            enrolments::list_enrolments,
            enrolments::begin_enrolment
        ))
        .routes(routes!(enrolments::cancel_enrolment))
        .routes(routes!(enrolments::complete_enrolment))
        .routes(routes!(approvals::request_approval))
        .routes(routes!(approvals::get_approval))
        .routes(routes!(services::take_crl))
        .routes(routes!(services::take_keys))
        .routes(routes!(policy::get_policy))
        .routes(routes!(policy::reload_policy))
        .routes(routes!(policy::explain_policy))
        .routes(routes!(clients::list_clients, clients::add_client))
        .routes(routes!(clients::remove_client))
        .merge(wechatpay::documented())
}

/// Runs what waits for the disk outside the threads that serve requests.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Problem::new(Code::Internal, format!("a task failed: {error}")))
}
