//! The records of refusals.
//!
//! A refusal that a caller is told leaves a record with the same code, rule and request id. What
//! decides about signatures writes its own, with what it knows of the operation
//! ([`Problem::on_record`]); all others are written here, from the very problem that is answered.
//!
//! NOT ON RECORD: that somebody looked in vain for what is not there, and what gates turn away
//! before it is known who asks. Those are lines in the log. Strangers shall not fill the disk: a
//! door writes a record of them only as far as [`super::throttle`] lets it tell them why. Nor shall
//! those who are known: past a number of refusals of one caller the audit trail counts them, and the
//! counts are on record ([`Audit::refused`](crate::audit::Audit::refused)).

use axum::extract::Request;
use axum::http::{Method, Uri};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use super::caller::{Identified, only_looks};
use super::problem::{Code, Problem};
use super::routes::App;
use crate::audit::Event;
use crate::base::ids::RequestId;

/// Most characters of a path and of a reason in a record.
const MOST_CHARACTERS: usize = 256;

/// A request, as far as the record of its refusal tells of it.
pub(super) struct Asked {
    id: Option<RequestId>,
    method: Method,
    uri: Uri,
}

impl Asked {
    pub fn of(request: &Request) -> Self {
        Self {
            id: request.extensions().get::<RequestId>().cloned(),
            method: request.method().clone(),
            uri: request.uri().clone(),
        }
    }

    /// Writes the record. Nobody waits for it: nothing was done.
    pub fn record(&self, app: &App, caller: &str, page: Option<&str>, problem: &Problem) {
        let body = json!({
            "caller": caller,
            "origin": page,
            "method": self.method.as_str(),
            "path": beginning(self.uri.path()),
            "code": problem.code(),
            "rule": problem.rule(),
            "reason": beginning(problem.detail()),
        });
        let noted = Event::new("request-refused", self.id.clone(), &body)
            .and_then(|event| app.audit().refused(caller, problem.code().as_str(), event));
        if let Err(error) = noted {
            tracing::warn!(error = %crate::telemetry::Chain(&error), "a refusal could not be recorded");
        }
    }
}

/// Hands on the request of a caller that its door let in, and records its refusal.
pub(super) async fn admitted(
    app: &App,
    identified: Identified,
    mut request: Request,
    next: Next,
) -> Response {
    let asked = Asked::of(&request);
    let (caller, page) = (identified.caller.clone(), identified.page.clone());
    request.extensions_mut().insert(identified);
    let response = next.run(request).await;
    if let Some(problem) = response.extensions().get::<Problem>()
        && !problem.is_on_record()
        && (!only_looks(&asked.method, asked.uri.path()) || is_forbidden(problem.code()))
    {
        let page = page.as_ref().map(|page| page.as_str());
        asked.record(app, &caller.to_string(), page, problem);
    }
    response
}

/// Whether it was not allowed to look, rather than that there was nothing to see.
fn is_forbidden(code: Code) -> bool {
    matches!(code.status(), 401 | 403)
}

fn beginning(text: &str) -> String {
    text.chars().take(MOST_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_caller_makes_long_is_cut() {
        assert_eq!(beginning("/v1/clients"), "/v1/clients");
        let long = beginning(&"汉".repeat(10_000));
        assert_eq!(long.chars().count(), MOST_CHARACTERS);
    }
}
