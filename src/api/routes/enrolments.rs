//! `/v1/enrolments`: from ticket to installed certificate. Changes are for the control socket.

use axum::extract::{Extension, State};
use axum::http::StatusCode;

use super::{App, certificates};
use crate::api::caller::{Courier, Identified};
use crate::api::events::Happening;
use crate::api::extract::{Json, Path};
use crate::api::problem::{Code, Problem};
use crate::api::types::{
    BeginEnrolment, CompleteEnrolment, Enrolment, Enrolments, OperatingCertificate,
};
use crate::base::encoding::from_base64;
use crate::base::ids::{EnrolmentId, RequestId};
use crate::consent::Prompt;
use crate::enrol::{self, Begin, Step};
use crate::http::Peer;
use crate::policy::{Caller, Consent, ConsentMethod};
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
            .filter(|one| {
                identified
                    .page
                    .as_ref()
                    .is_none_or(|page| one.origin == *page)
            })
            .map(|one| view(&app, one, &identified.caller))
            .collect(),
    }))
}

/// Begins an enrolment, or finds the one that this ticket began.
///
/// The token makes a key and signs a certification request. Control socket, and pages of the service
/// itself: then a person is asked first.
#[utoipa::path(
    post,
    path = "/v1/enrolments",
    tag = "certificates",
    request_body = BeginEnrolment,
    responses((status = 201, description = "The request is signed.", body = Enrolment))
)]
pub(super) async fn begin_enrolment(
    State(app): State<App>,
    courier: Courier,
    Extension(request_id): Extension<RequestId>,
    Extension(peer): Extension<Peer>,
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
    courier.carries_for(&origin)?;
    let mut begin = Begin {
        ticket: body.ticket,
        origin,
        keys: body.service.keys,
        authorities,
        token,
        key_type: body.key_type,
        consent: Consent {
            method: ConsentMethod::Policy,
            at: app.clock().now().as_second(),
        },
    };
    if courier.0.page.is_some() {
        begin.consent.method = ask(&app, &courier, &peer, &begin).await?;
        begin.consent.at = app.clock().now().as_second();
    }
    let caller = courier.0.caller;
    let enrolment = app.0.enroller.begin(request_id, &caller, begin).await?;
    app.0.events.tell(Happening::Enrolments {});
    Ok((StatusCode::CREATED, Json(view(&app, &enrolment, &caller))))
}

/// Ends an enrolment; its key is deleted.
///
/// Control socket, and pages of the service itself.
#[utoipa::path(
    delete,
    path = "/v1/enrolments/{id}",
    tag = "certificates",
    params(("id" = EnrolmentId, Path, description = "Its id.")),
    responses((status = 204, description = "It is gone, and so is its key."))
)]
pub(super) async fn cancel_enrolment(
    State(app): State<App>,
    courier: Courier,
    Extension(request_id): Extension<RequestId>,
    Path(id): Path<EnrolmentId>,
) -> Result<StatusCode, Problem> {
    own(&app, &courier, &id)?;
    let caller = courier.0.caller;
    app.0.enroller.cancel(request_id, &caller, &id).await?;
    app.0.events.tell(Happening::Enrolments {});
    Ok(StatusCode::NO_CONTENT)
}

/// Installs the certificate that the account service issued.
///
/// Control socket, and pages of the service itself.
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
    courier: Courier,
    Extension(request_id): Extension<RequestId>,
    Path(id): Path<EnrolmentId>,
    Json(body): Json<CompleteEnrolment>,
) -> Result<Json<OperatingCertificate>, Problem> {
    own(&app, &courier, &id)?;
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
    app.0.events.tell(Happening::CertificateInstalled {
        fingerprint: installed.fingerprint().to_owned(),
    });
    let snapshot = app.0.registry.snapshot();
    Ok(Json(certificates::view(
        &snapshot,
        &installed,
        app.clock().now(),
    )))
}

/// A page sees and touches the enrolments with its own service only.
fn own(app: &App, courier: &Courier, id: &EnrolmentId) -> Result<(), Problem> {
    let Some(page) = &courier.0.page else {
        return Ok(());
    };
    let enrolments = app.0.enroller.list()?;
    let known = enrolments
        .iter()
        .any(|enrolment| enrolment.id == *id && enrolment.origin == *page);
    if known {
        Ok(())
    } else {
        Err(enrol::EnrolError::Unknown { id: id.clone() }.into())
    }
}

/// Asks the person whether a page may have a key made. A ticket that began its enrolment before
/// is not asked about again.
async fn ask(
    app: &App,
    courier: &Courier,
    peer: &Peer,
    begin: &Begin,
) -> Result<ConsentMethod, Problem> {
    let Some(identity) = app.0.enroller.preview(begin)? else {
        // Should it be gone by then, this is not consent enough for a new key.
        return Ok(ConsentMethod::Policy);
    };
    let language = app.0.asker.language();
    let what = language.pick(("Install an operating certificate", "安装操作证书"));
    let token = match &begin.token {
        Some(token) => token.to_string(),
        None => language.pick(("the only one", "唯一的令牌")).to_owned(),
    };
    let lines = [
        (("Operation", "操作"), what.to_owned()),
        (("Service", "服务"), begin.origin.to_string()),
        (("Account", "商户号"), identity.account.to_string()),
        (("Operator", "操作员"), identity.operator.to_string()),
        (("Token", "令牌"), token),
    ];
    let prompt = Prompt {
        title: what.to_owned(),
        asked_by: courier.0.asked_by(peer),
        lines: lines
            .map(|(label, value)| (language.pick(label).to_owned(), value))
            .into(),
        list: Vec::new(),
        on_token: None,
        language,
    };
    Ok(app.0.asker.ask(&prompt).await?)
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
        attestation: enrolment.attestation.clone(),
        ticket: matches!(caller, Caller::Unix { .. }).then(|| enrolment.ticket().to_owned()),
    }
}
