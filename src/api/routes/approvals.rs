//! `/v1/approvals`: the main job.

use axum::extract::{Extension, State};

use super::App;
use crate::api::caller::Identified;
use crate::api::extract::{Json, Path};
use crate::api::language::Accepted;
use crate::api::problem::{Code, Problem};
use crate::api::types::{Approval, RequestApproval, Shown, ShownLine};
use crate::base::encoding::base64;
use crate::base::ids::{Jti, RequestId};
use crate::http::Peer;
use crate::signing::{ApprovalAnswer, ApprovalRequest, Cms};
use crate::statement::{Language, statement_in};

/// Approves the operation of a challenge, or says why not.
///
/// The same client, for the same page if it is a browser, may repeat it and gets the same approval.
#[utoipa::path(
    post,
    path = "/v1/approvals",
    tag = "approvals",
    request_body = RequestApproval,
    responses((status = 200, description = "It is approved.", body = Approval))
)]
pub(super) async fn request_approval(
    State(app): State<App>,
    identified: Identified,
    Extension(id): Extension<RequestId>,
    Extension(peer): Extension<Peer>,
    Accepted(language): Accepted,
    Json(body): Json<RequestApproval>,
) -> Result<Json<Approval>, Problem> {
    let request = ApprovalRequest {
        id,
        asked_by: identified.asked_by(&peer),
        caller: identified.caller,
        policy: identified.policy,
        challenge: body.challenge,
        payees: body.payees,
        origin: identified.page,
        cms: if body.cms { Cms::Include } else { Cms::Omit },
    };
    let answer = app
        .0
        .pipeline
        .approve(request)
        .await
        .map_err(|error| Problem::from(error).on_record())?;
    Ok(Json(view(answer, language)?))
}

/// An approval this caller was given, as long as its challenge could be repeated.
#[utoipa::path(
    get,
    path = "/v1/approvals/{challenge_jti}",
    tag = "approvals",
    params(("challenge_jti" = Jti, Path, description = "The `jti` of its challenge.")),
    responses((status = 200, description = "The approval.", body = Approval))
)]
pub(super) async fn get_approval(
    State(app): State<App>,
    identified: Identified,
    Accepted(language): Accepted,
    Path(challenge_jti): Path<Jti>,
) -> Result<Json<Approval>, Problem> {
    let found = app
        .0
        .pipeline
        .find(&identified.caller, identified.page.as_ref(), &challenge_jti)
        .await;
    match found {
        Some(answer) => Ok(Json(view(answer, language)?)),
        None => Err(Problem::new(
            Code::ApprovalUnknown,
            format!(
                "{} has no approval of challenge {challenge_jti}",
                match &identified.page {
                    Some(page) => format!("{}, for {page},", identified.caller),
                    None => identified.caller.to_string(),
                }
            ),
        )),
    }
}

fn view(answer: ApprovalAnswer, language: Option<Language>) -> Result<Approval, Problem> {
    let shown = language
        .map(|language| shown(&answer.approval, language))
        .transpose()?;
    Ok(Approval {
        approval: answer.approval,
        cms: answer.cms.as_deref().map(base64),
        jti: answer.jti,
        challenge_jti: answer.challenge_jti,
        shown,
    })
}

/// In words, from the very bytes that were signed.
fn shown(approval: &str, language: Language) -> Result<Shown, Problem> {
    let statement = statement_in(approval)
        .map_err(|error| Problem::new(Code::Internal, format!("our own approval: {error}")))?;
    let lines = statement.lines(language).into_iter();
    Ok(Shown {
        language,
        title: statement.kind().title(language).to_owned(),
        lines: lines
            .map(|(label, value)| ShownLine {
                label: label.to_owned(),
                value,
            })
            .collect(),
    })
}
