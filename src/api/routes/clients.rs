//! `/v1/clients`: programs and browsers that may use the doors. Control socket only.

use axum::extract::{Extension, State};
use axum::http::StatusCode;
use serde_json::json;

use super::{App, blocking};
use crate::api::caller::Administrator;
use crate::api::clients::RegisteredClient;
use crate::api::extract::{Json, Path};
use crate::api::problem::{Code, Problem};
use crate::api::types::{AddClient, AddedClient, Client, ClientList};
use crate::audit::Event;
use crate::base::encoding::{from_base64, hex};
use crate::base::ids::{ClientName, RequestId};
use crate::base::x509::CertificateRequest;

/// The registered clients.
///
/// Control socket only.
#[utoipa::path(
    get,
    path = "/v1/clients",
    tag = "clients",
    responses((status = 200, description = "All registered clients.", body = ClientList))
)]
pub(super) async fn list_clients(State(app): State<App>, _: Administrator) -> Json<ClientList> {
    let clients = app.clients().list();
    Json(ClientList {
        clients: clients.iter().map(|client| view(client)).collect(),
    })
}

/// Registers a client and certifies its key.
///
/// Control socket only.
#[utoipa::path(
    post,
    path = "/v1/clients",
    tag = "clients",
    request_body = AddClient,
    responses((status = 201, description = "It is registered.", body = AddedClient))
)]
pub(super) async fn add_client(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(body): Json<AddClient>,
) -> Result<(StatusCode, Json<AddedClient>), Problem> {
    let AddClient {
        name,
        csr,
        kind,
        policy,
    } = body;
    let request = read_request(&csr)?;
    let now = app.clock().now();
    if app.clients().by_name(&name).is_some() {
        return Err(crate::api::clients::ClientsError::Exists { name }.into());
    }
    let certificate = app.0.local_ca.issue_client(&name, &request, now)?;
    // First the record, then the registration: a client that is registered is on record.
    let event = Event::new(
        "client-added",
        Some(request_id),
        &json!({
            "client": name,
            "sha256": hex(&certificate.fingerprint()),
            "kind": kind,
            "policy": policy,
            "by": { "uid": administrator.uid },
        }),
    )?;
    app.0.audit.append(event)?.durable().await?;
    let answer = AddedClient {
        name: name.clone(),
        certificate: certificate.to_pem()?,
        ca: app.0.local_ca.certificate().to_pem()?,
        fingerprint: hex(&certificate.fingerprint()),
        expires: certificate.not_after().to_string(),
    };
    let clients = app.clients().clone();
    blocking(move || clients.add(name, &certificate, kind, policy, now)).await??;
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Removes a client; its next request is refused.
///
/// Control socket only.
#[utoipa::path(
    delete,
    path = "/v1/clients/{name}",
    tag = "clients",
    params(("name" = ClientName, Path, description = "Its name.")),
    responses((status = 204, description = "It is no longer registered."))
)]
pub(super) async fn remove_client(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Path(name): Path<ClientName>,
) -> Result<StatusCode, Problem> {
    let clients = app.clients().clone();
    // First the removal, then the record: taking rights away waits for nothing.
    let removed = blocking(move || clients.remove(&name)).await??;
    let event = Event::new(
        "client-removed",
        Some(request_id),
        &json!({
            "client": removed.name,
            "sha256": hex(&removed.fingerprint),
            "by": { "uid": administrator.uid },
        }),
    )?;
    app.0.audit.append(event)?.durable().await?;
    Ok(StatusCode::NO_CONTENT)
}

fn read_request(text: &str) -> Result<CertificateRequest, Problem> {
    let request = if text.trim_start().starts_with("-----BEGIN") {
        CertificateRequest::from_pem(text.as_bytes())
    } else {
        let der = from_base64(text.as_bytes()).unwrap_or_default();
        CertificateRequest::from_der(&der)
    };
    request.map_err(|error| Problem::new(Code::CsrInvalid, error.to_string()))
}

fn view(client: &RegisteredClient) -> Client {
    Client {
        name: client.name.clone(),
        fingerprint: hex(&client.fingerprint),
        added: client.added.to_string(),
        expires: client.expires.to_string(),
        kind: client.kind,
        policy: client.policy.clone(),
    }
}
