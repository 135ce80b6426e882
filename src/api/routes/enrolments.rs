//! `/v1/enrolments`: from ticket to installed certificate. Changes are for the control socket.

use axum::extract::{Extension, State};
use axum::http::StatusCode;

use super::{App, certificates};
use crate::api::caller::{Administrator, Identified};
use crate::api::extract::{Json, Path};
use crate::api::problem::{Code, Problem};
use crate::api::types::{
    BeginEnrolment, CompleteEnrolment, Enrolment, Enrolments, OperatingCertificate,
};
use crate::base::encoding::from_base64;
use crate::base::ids::{EnrolmentId, RequestId};
use crate::enrol::{self, Begin, Step};
use crate::policy::Caller;
use crate::statement::Origin;

/// The enrolments that have no certificate yet.
#[utoipa::path(
    get,
    path = "/v1/enrolments",
    tag = "certificates",
    responses((status = 200, description = "All enrolments under way.", body = Enrolments))
)]
pub(super) async fn list_enrolments(
    State(app): State<App>,
    identified: Identified,
) -> Result<Json<Enrolments>, Problem> {
    let enrolments = app.0.enroller.list()?;
    Ok(Json(Enrolments {
        enrolments: enrolments
            .iter()
            .map(|one| view(&app, one, &identified.caller))
            .collect(),
    }))
}

/// Begins an enrolment, or finds the one that this ticket began.
///
/// The token makes a key and signs a certification request. Control socket only.
#[utoipa::path(
    post,
    path = "/v1/enrolments",
    tag = "certificates",
    request_body = BeginEnrolment,
    responses((status = 201, description = "The request is signed.", body = Enrolment))
)]
pub(super) async fn begin_enrolment(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Json(body): Json<BeginEnrolment>,
) -> Result<(StatusCode, Json<Enrolment>), Problem> {
    let malformed = |what: &str| Problem::new(Code::Malformed, what.to_owned());
    let origin: Origin = body
        .service
        .origin
        .parse()
        .map_err(|error| Problem::new(Code::Malformed, format!("service.origin: {error}")))?;
    let token = body
        .token
        .map(|uri| uri.parse())
        .transpose()
        .map_err(|error| Problem::new(Code::Malformed, format!("token: {error}")))?;
    let authorities = body
        .service
        .ca
        .iter()
        .map(|text| from_base64(text.as_bytes()))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| malformed("service.ca: not base64"))?;
    let begin = Begin {
        ticket: body.ticket,
        origin,
        keys: body.service.keys,
        authorities,
        token,
        key_type: body.key_type,
    };
    let caller = Caller::Unix {
        uid: administrator.uid,
    };
    let enrolment = app.0.enroller.begin(request_id, &caller, begin).await?;
    Ok((StatusCode::CREATED, Json(view(&app, &enrolment, &caller))))
}

/// Ends an enrolment; its key is deleted.
///
/// Control socket only.
#[utoipa::path(
    delete,
    path = "/v1/enrolments/{id}",
    tag = "certificates",
    params(("id" = EnrolmentId, Path, description = "Its id.")),
    responses((status = 204, description = "It is gone, and so is its key."))
)]
pub(super) async fn cancel_enrolment(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
    Path(id): Path<EnrolmentId>,
) -> Result<StatusCode, Problem> {
    let caller = Caller::Unix {
        uid: administrator.uid,
    };
    app.0.enroller.cancel(request_id, &caller, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Installs the certificate that the account service issued.
///
/// Control socket only.
#[utoipa::path(
    put,
    path = "/v1/enrolments/{id}/certificate",
    tag = "certificates",
    params(("id" = EnrolmentId, Path, description = "The enrolment's id.")),
    request_body = CompleteEnrolment,
    responses((status = 200, description = "It is installed.", body = OperatingCertificate))
)]
pub(super) async fn complete_enrolment(
    State(app): State<App>,
    _: Administrator,
    Extension(request_id): Extension<RequestId>,
    Path(id): Path<EnrolmentId>,
    Json(body): Json<CompleteEnrolment>,
) -> Result<Json<OperatingCertificate>, Problem> {
    let certificates = body
        .certificates
        .iter()
        .map(|text| from_base64(text.as_bytes()))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| Problem::new(Code::Malformed, "certificates: not base64"))?;
    let installed = app
        .0
        .enroller
        .complete(request_id, &id, &certificates)
        .await?;
    let snapshot = app.0.registry.snapshot();
    Ok(Json(certificates::view(
        &snapshot,
        &installed,
        app.clock().now(),
    )))
}

fn view(app: &App, enrolment: &enrol::Enrolment, caller: &Caller) -> Enrolment {
    let state = match enrolment.step {
        Step::Generating => "generating",
        Step::Requested => "requested",
    };
    Enrolment {
        id: enrolment.id.clone(),
        state: state.to_owned(),
        account: enrolment.account.clone(),
        operator: enrolment.operator.clone(),
        computer: app.0.registry.computer().clone(),
        service: enrolment.origin.to_string(),
        token: enrolment.key.token.to_string(),
        begun: enrolment.begun_at.to_string(),
        csr: enrolment.request.clone().unwrap_or_default(),
        ticket: matches!(caller, Caller::Unix { .. }).then(|| enrolment.ticket().to_owned()),
    }
}
