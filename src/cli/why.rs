//! `opcert why REQUEST-ID`: the story of one request, from the records alone.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Global;
use super::audit::refused;
use super::error::Error;
use super::output::{Output, local_time};
use crate::audit::read;
use crate::base::ids::RequestId;
use crate::base::sysexits::EX_OK;
use crate::config::places::Places;
use crate::statement::Money;

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Tells what became of one request, from the daemon's records. The id is in every \
                  answer's request-id header, in every problem document and in the log.",
    after_help = "Example:\n  opcert why u5XQ0vQkq2Yl8m0bDdOYSw"
)]
pub(super) struct Arguments {
    /// Id of the request.
    #[arg(value_name = "REQUEST-ID", allow_hyphen_values = true)]
    request: RequestId,
    /// The directory of the records. [default: audit in the state directory of --config]
    #[arg(long, value_name = "DIR")]
    audit: Option<PathBuf>,
}

/// One record, told.
#[derive(Debug, Serialize)]
struct Told {
    seq: u64,
    time: String,
    kind: String,
    sentence: String,
    body: Value,
}

#[derive(Debug, Serialize)]
struct Story<'a> {
    request_id: &'a RequestId,
    records: Vec<Told>,
}

pub(super) fn run(arguments: &Arguments, global: &Global, output: &Output) -> Result<u8, Error> {
    let directory = match &arguments.audit {
        Some(directory) => directory.clone(),
        None => state_directory(&global.config()).join("audit"),
    };
    let mut records = Vec::new();
    for record in read::all(&directory).map_err(refused)? {
        let record = record.map_err(refused)?;
        if record.request.as_ref() != Some(&arguments.request) {
            continue;
        }
        // The log wrote the body as JSON; what is none is told as it stands.
        let body = serde_json::from_str(record.body.get())
            .unwrap_or_else(|_| Value::String(record.body.get().to_owned()));
        records.push((
            record.time,
            Told {
                seq: record.seq,
                time: record.time.to_string(),
                sentence: sentence(&record.kind, &body),
                kind: record.kind,
                body,
            },
        ));
    }
    if records.is_empty() {
        return Err(Error::No {
            code: "request-unknown",
            what: format!(
                "no record in {} is of request {}",
                directory.display(),
                arguments.request
            ),
            action: "Check the id. A request that was turned away before it was known who asks \
                     leaves a line in the daemon's log and no record."
                .into(),
        });
    }
    let lines: Vec<String> = records
        .iter()
        .map(|(time, told)| {
            format!(
                "{}  {} (record {})",
                local_time(*time),
                told.sentence,
                told.seq
            )
        })
        .collect();
    let story = Story {
        request_id: &arguments.request,
        records: records.into_iter().map(|(_, told)| told).collect(),
    };
    output.result(&story, |_| lines.join("\n"))?;
    Ok(EX_OK)
}

/// Reads one key and checks nothing: whoever may not read the file still finds the default place.
pub(super) fn state_directory(config: &Path) -> PathBuf {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Excerpt {
        state_directory: PathBuf,
    }
    std::fs::read_to_string(config)
        .ok()
        .and_then(|text| toml::from_str::<Excerpt>(&text).ok())
        .map_or_else(
            || Places::of_system().state,
            |excerpt| excerpt.state_directory,
        )
}

/// One record as a sentence.
pub(super) fn sentence(kind: &str, body: &Value) -> String {
    let text = |name: &str| body[name].as_str().unwrap_or("?").to_owned();
    let by_rule = || match body["rule"].as_str() {
        Some(rule) => format!(" by rule {rule}"),
        None => String::new(),
    };
    let refused = |what: &str| {
        let code = match body["code"].as_str() {
            Some(code) => format!(" [{code}]"),
            None => String::new(),
        };
        format!(
            "{} was refused{what}{}: {}.{code}",
            text("caller"),
            by_rule(),
            text("reason").trim_end_matches('.')
        )
    };
    match kind {
        "approval" => {
            let payload = &body["payload"];
            format!(
                "{} was allowed{} to have approved: {}. {}",
                payload["client"].as_str().unwrap_or("?"),
                by_rule(),
                operation(&payload["statement"]),
                consent(&payload["consent"]),
            )
        }
        "approval-signed" => "The token signed it, and the approval was given out.".to_owned(),
        "approval-denied" => "A person declined it; that is final for this challenge.".to_owned(),
        "approval-refused" => refused(""),
        "request-refused" => {
            let from = match body["origin"].as_str() {
                Some(page) => format!(" for {page}"),
                None => String::new(),
            };
            refused(&format!(" {} {}{from}", text("method"), text("path")))
        }
        "wechatpay" => format!(
            "{} was allowed{} to use merchant {} for {}: {}.",
            text("caller"),
            by_rule(),
            text("merchant"),
            text("use"),
            facts(body, &["caller", "rule", "merchant", "use"])
        ),
        "wechatpay-refused" => refused(&format!(
            " the use of merchant {} for {}",
            text("merchant"),
            text("use")
        )),
        "more-refusals" => {
            let codes: Vec<String> = body["codes"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(code, count)| format!("{code} {count}"))
                .collect();
            format!(
                "{} more refusals of {} were not recorded one by one: {}.",
                body["count"],
                text("caller"),
                codes.join(", ")
            )
        }
        "policy-reloaded" => format!("The policy was read anew: {}.", changes(&body["changes"])),
        "policy-reload-refused" => {
            format!(
                "A new policy was refused and the old one kept: {}. [{}]",
                text("reason").trim_end_matches('.'),
                text("code")
            )
        }
        "checkpoint" => "The token signed a checkpoint of the records.".to_owned(),
        "closed" => "The daemon ended in good order.".to_owned(),
        "client-added" => format!("Client {} was registered.", text("client")),
        "client-removed" => format!("Client {} was removed.", text("client")),
        other => format!("{}: {}.", other.replace('-', " "), facts(body, &[])),
    }
}

/// What a record holds, but for what was said already.
fn facts(body: &Value, but: &[&str]) -> String {
    let facts: Vec<String> = body
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, value)| !value.is_null() && !but.contains(&name.as_str()))
        .map(|(name, value)| format!("{} {}", name.replace('_', " "), fact(value)))
        .collect();
    facts.join(", ")
}

/// A value without the marks of JSON: a caller is `uid:1000`, as elsewhere.
fn fact(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("{name}:{}", fact(value)))
                .collect();
            members.join(" ")
        }
        value => value.to_string(),
    }
}

fn operation(statement: &Value) -> String {
    let text = |name: &str| statement[name].as_str();
    let mut said = format!(
        "{} for account {} by operator {}",
        text("kind").unwrap_or("?"),
        text("account").unwrap_or("?"),
        text("operator").unwrap_or("?")
    );
    if let (Some(minor), Some(currency)) = (statement["amount"].as_i64(), text("currency"))
        && let Ok(money) = Money::new(minor, currency)
    {
        said.push_str(&format!(", {money}"));
    }
    if let Some(payee) = text("payee") {
        said.push_str(&format!(", to {payee}"));
    }
    said
}

fn consent(consent: &Value) -> String {
    match consent["method"].as_str() {
        Some("pinentry") => "A person confirmed it in a window.".to_owned(),
        Some("protected-path") => "A person confirmed it on the device.".to_owned(),
        Some("policy") => "Policy asked for nobody's consent.".to_owned(),
        other => format!("Consent: {}.", other.unwrap_or("?")),
    }
}

fn changes(changes: &Value) -> String {
    let mut said = Vec::new();
    for what in ["added", "removed", "changed"] {
        let rules: Vec<&str> = changes[what]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !rules.is_empty() {
            said.push(format!("{what} {}", rules.join(", ")));
        }
    }
    if changes["limits_changed"] == true {
        said.push("other limits".to_owned());
    }
    if said.is_empty() {
        "nothing differs".to_owned()
    } else {
        said.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_record_is_a_sentence() {
        let approval = json!({
            "rule": "small",
            "payload": {
                "client": "client:till",
                "statement": { "kind": "withdrawal", "account": "acme", "operator": "alice",
                               "amount": 100_000, "currency": "CNY", "payee": "Bank" },
                "consent": { "method": "policy", "at": 1 },
            },
        });
        assert_eq!(
            sentence("approval", &approval),
            "client:till was allowed by rule small to have approved: withdrawal for account acme \
             by operator alice, CNY 1,000.00, to Bank. Policy asked for nobody's consent."
        );
        let refused = json!({
            "caller": "uid:0", "code": "challenge-expired", "rule": null,
            "reason": "the challenge is old",
        });
        assert_eq!(
            sentence("approval-refused", &refused),
            "uid:0 was refused: the challenge is old. [challenge-expired]"
        );
        let refused = json!({
            "caller": "uid:7", "origin": null, "method": "POST", "path": "/v1/clients",
            "code": "policy-refused", "rule": "frozen", "reason": "policy refuses: not here",
        });
        assert_eq!(
            sentence("request-refused", &refused),
            "uid:7 was refused POST /v1/clients by rule frozen: policy refuses: not here. \
             [policy-refused]"
        );
        let refused = json!({
            "use": "request", "merchant": "1900000001", "caller": "client:shop",
            "code": "policy-refused", "rule": "not-allowed", "reason": "no rule allows this",
        });
        assert_eq!(
            sentence("wechatpay-refused", &refused),
            "client:shop was refused the use of merchant 1900000001 for request by rule \
             not-allowed: no rule allows this. [policy-refused]"
        );
        let unlocked = json!({ "by": { "uid": 1000 }, "token": "demo", "refused": null });
        assert_eq!(
            sentence("token-unlock", &unlocked),
            "token unlock: by uid:1000, token demo."
        );
        let more = json!({
            "caller": "client:shop", "count": 3, "codes": { "busy": 1, "policy-refused": 2 },
        });
        assert_eq!(
            sentence("more-refusals", &more),
            "3 more refusals of client:shop were not recorded one by one: busy 1, policy-refused 2."
        );
        let used = json!({
            "use": "request", "merchant": "1900000001", "caller": "client:shop",
            "rule": "registered-merchants-request", "path": "/v3/certificates",
        });
        assert_eq!(
            sentence("wechatpay", &used),
            "client:shop was allowed by rule registered-merchants-request to use merchant \
             1900000001 for request: path /v3/certificates."
        );
        assert_eq!(
            sentence(
                "enrolment-begun",
                &json!({ "operator": "alice", "caller": null })
            ),
            "enrolment begun: operator alice."
        );
    }
}
