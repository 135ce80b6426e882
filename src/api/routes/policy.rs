//! `/v1/policy`: the rules in force, reading them anew, and why they decide as they do. Control
//! socket only.

use axum::extract::{Extension, State};
use serde_json::json;

use super::{App, blocking};
use crate::api::caller::Administrator;
use crate::api::extract::Json;
use crate::api::problem::Problem;
use crate::api::types::{ExplainPolicy, Policy, PolicyExplained, PolicyReloaded};
use crate::api::what_if::{Known, explained};
use crate::audit::Event;
use crate::base::ids::RequestId;
use crate::enrol::Standing;
use crate::policy::PolicySet;

/// Where requests are explained.
pub const EXPLAIN: &str = "/v1/policy/explain";

/// The policy in force.
#[utoipa::path(
    get,
    path = "/v1/policy",
    tag = "policy",
    responses((status = 200, description = "Rules and limits.", body = Policy))
)]
pub(super) async fn get_policy(State(app): State<App>, _: Administrator) -> Json<Policy> {
    Json(view(&app.0.pipeline.policies().current()))
}

/// Reads the policy anew. One that is not sound changes nothing.
#[utoipa::path(
    post,
    path = "/v1/policy/reload",
    tag = "policy",
    responses((status = 200, description = "What differs.", body = PolicyReloaded))
)]
pub(super) async fn reload_policy(
    State(app): State<App>,
    administrator: Administrator,
    Extension(request_id): Extension<RequestId>,
) -> Result<Json<PolicyReloaded>, Problem> {
    let by = json!({ "uid": administrator.uid });
    app.reload(request_id, by).await.map(Json)
}

/// Explains what would be decided, and by which rule.
#[utoipa::path(
    post,
    path = "/v1/policy/explain",
    tag = "policy",
    request_body = ExplainPolicy,
    responses((status = 200, description = "Why.", body = PolicyExplained))
)]
pub(super) async fn explain_policy(
    State(app): State<App>,
    administrator: Administrator,
    Json(asked): Json<ExplainPolicy>,
) -> Result<Json<PolicyExplained>, Problem> {
    let parts = &app.0;
    let now = parts.clock.now();
    let snapshot = parts.registry.snapshot();
    let fits = |installed: &crate::enrol::Installed| {
        asked
            .account
            .as_ref()
            .is_none_or(|account| *account == installed.identity.account)
            && asked
                .operator
                .as_ref()
                .is_none_or(|operator| *operator == installed.identity.operator)
            && asked
                .service
                .as_ref()
                .is_none_or(|service| service == installed.service.as_str())
    };
    let installed = snapshot
        .certificates()
        .iter()
        .filter(|installed| fits(installed))
        .max_by_key(|installed| snapshot.standing(installed, now) == Standing::Active);
    let client = asked
        .client
        .as_ref()
        .and_then(|name| parts.clients.by_name(name));
    let merchant_token = asked
        .merchant
        .as_ref()
        .and_then(|merchant| parts.merchants.token_of(merchant));
    let known = Known {
        policy: client.as_ref().map(|client| &client.policy),
        installed: installed.map(AsRef::as_ref),
        merchant_token: merchant_token.as_ref(),
        computer: Some(parts.registry.computer()),
    };
    let policies = parts.pipeline.policies();
    let set = policies.current();
    let explanation = explained(
        &set,
        policies.usage(),
        &asked,
        known,
        administrator.uid,
        now,
    )?;
    Ok(Json(explanation))
}

impl App {
    /// The policy in force.
    pub fn policy(&self) -> std::sync::Arc<PolicySet> {
        self.0.pipeline.policies().current()
    }

    /// Reads the policy anew and puts it in force; `by` says in the record who wanted it. One
    /// that is not sound, or cannot be recorded, changes nothing.
    pub async fn reload(
        &self,
        request_id: RequestId,
        by: serde_json::Value,
    ) -> Result<PolicyReloaded, Problem> {
        // One after the other: what a record says is what was in force before it.
        let _turn = self.0.reloading.lock().await;
        let app = self.clone();
        let loaded = blocking(move || {
            let set = (app.0.load_policy)()?;
            app.0.pipeline.prepare(&set)?;
            Ok::<_, Problem>(set)
        })
        .await?;
        let policies = self.0.pipeline.policies();
        let set = match loaded {
            Ok(set) => set,
            Err(problem) => {
                let body = json!({ "by": by, "code": problem.code(), "reason": problem.detail() });
                let event = Event::new("policy-reload-refused", Some(request_id), &body)?;
                self.0.audit.note(event)?;
                return Err(problem.on_record());
            }
        };
        let changes = set.changes_since(&policies.current());
        let answer = PolicyReloaded {
            policy: view(&set),
            changes,
        };
        // First the record, then the rules: what decides is on record.
        let body = json!({ "by": by, "digest": set.digest(), "changes": answer.changes });
        let event = Event::new("policy-reloaded", Some(request_id), &body)?;
        self.0.audit.append(event)?.durable().await?;
        policies.replace(set);
        Ok(answer)
    }
}

fn view(set: &PolicySet) -> Policy {
    Policy {
        digest: set.digest().to_owned(),
        rules: set.rules().cloned().collect(),
        limits: set
            .limits()
            .iter()
            .map(|limit| limit.name.clone())
            .collect(),
        warnings: set.warnings().to_vec(),
    }
}
