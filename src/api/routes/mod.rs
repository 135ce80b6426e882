//! The routes of `/v1`, one file for each resource, and the document that describes them.

pub mod clients;
pub mod openapi;
pub mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::clients::Clients;
use super::local_ca::LocalCa;
use super::problem;
use crate::audit::Audit;
use crate::base::Clock;

/// What the routes work with. Cloning shares it.
#[derive(Debug, Clone)]
pub struct App(Arc<Parts>);

/// The parts of an [`App`].
#[derive(Debug)]
pub struct Parts {
    /// The time.
    pub clock: Clock,
    /// The audit trail.
    pub audit: Audit,
    /// The registered clients.
    pub clients: Clients,
    /// The authority that certifies clients.
    pub local_ca: LocalCa,
    /// This computer.
    pub computer: crate::base::ids::ComputerId,
    /// Addresses that the native door is bound to.
    pub native: Vec<SocketAddr>,
}

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
}

/// All routes, without gates.
pub(super) fn router(app: App) -> Router {
    let (router, document) = documented().split_for_parts();
    router
        .merge(openapi::route(&document))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(app)
}

fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(status::get_status))
        .routes(routes!(clients::list_clients, clients::add_client))
        .routes(routes!(clients::remove_client))
}
