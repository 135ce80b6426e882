//! `/v1/certificates`: the installed operating certificates.

use axum::extract::State;
use jiff::Timestamp;

use super::App;
use crate::api::caller::Identified;
use crate::api::extract::Json;
use crate::api::types::{OperatingCertificate, OperatingCertificates};
use crate::base::encoding::{base64, hex};
use crate::enrol::{Installed, Snapshot, Standing};

/// The installed operating certificates.
#[utoipa::path(
    get,
    path = "/v1/certificates",
    tag = "certificates",
    responses((
        status = 200,
        description = "All installed operating certificates.",
        body = OperatingCertificates
    ))
)]
pub(super) async fn list_certificates(
    State(app): State<App>,
    _: Identified,
) -> Json<OperatingCertificates> {
    let snapshot = app.0.registry.snapshot();
    let now = app.clock().now();
    Json(OperatingCertificates {
        certificates: snapshot
            .certificates()
            .iter()
            .map(|installed| view(&snapshot, installed, now))
            .collect(),
    })
}

/// One certificate as the interface shows it.
pub(super) fn view(
    snapshot: &Snapshot,
    installed: &Installed,
    now: Timestamp,
) -> OperatingCertificate {
    let certificate = installed.certificate();
    let standing = match snapshot.standing(installed, now) {
        Standing::Active => "active",
        Standing::NotYetValid => "not-yet-valid",
        Standing::Expired => "expired",
        Standing::Revoked => "revoked",
        Standing::Superseded => "superseded",
    };
    OperatingCertificate {
        fingerprint: installed.fingerprint().to_owned(),
        serial: hex(certificate.serial()),
        account: installed.identity.account.clone(),
        operator: installed.identity.operator.clone(),
        computer: installed.identity.computer.clone(),
        service: installed.service.to_string(),
        key: installed.key.to_string(),
        algorithm: installed.scheme.as_str().to_owned(),
        standing: standing.to_owned(),
        not_before: certificate.not_before().to_string(),
        not_after: certificate.not_after().to_string(),
        installed: installed.installed_at.to_string(),
        certificate: base64(certificate.der()),
    }
}
