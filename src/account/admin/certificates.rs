//! `certificate list` and `certificate revoke`.

use clap::Subcommand;
use serde_json::json;

use super::AdminError;
use super::desk::{change, look};
use super::output::{Output, table};
use crate::account::config::Config;
use crate::account::issuing::RevocationReason;
use crate::account::revocation::{ADMINISTRATION, Revocation};
use crate::account::store::certificates;
use crate::base::Clock;
use crate::base::ids::AccountId;

/// `certificate …`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List operating certificates, newest first.
    List {
        /// Of this account only.
        #[arg(long)]
        account: Option<AccountId>,
        /// How many at most.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=100_000))]
        limit: i64,
    },
    /// Revoke an operating certificate, for good: it approves nothing from now on.
    Revoke {
        /// Its serial number, as `certificate list` shows it.
        serial: String,
        /// Why.
        #[arg(long, default_value = "unspecified")]
        reason: RevocationReason,
    },
}

pub(super) async fn run(
    command: Command,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    match command {
        Command::List { account, limit } => list(account, limit, config, output).await,
        Command::Revoke { serial, reason } => revoke(&serial, reason, config, output).await,
    }
}

async fn list(
    account: Option<AccountId>,
    limit: i64,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let now = Clock::system().now();
    let account = account.as_ref();
    let found = look(config, "list certificates", move |tx| {
        Box::pin(async move { Ok(certificates::list(tx, account, limit).await?) })
    })
    .await?;
    if found.is_empty() {
        return output.done("No operating certificates.", &json!([]));
    }
    let head = [
        "SERIAL",
        "ACCOUNT",
        "OPERATOR",
        "COMPUTER",
        "STATE",
        "EXPIRES",
        "LAST USED",
    ];
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|certificate| {
            vec![
                certificate.serial.clone(),
                certificate.account.to_string(),
                certificate.operator.to_string(),
                certificate.computer.to_string(),
                certificate.state(now).to_owned(),
                certificate.not_after.to_string(),
                certificate
                    .last_used_at
                    .map_or_else(|| "never".into(), |at| at.to_string()),
            ]
        })
        .collect();
    let values = found
        .iter()
        .map(|certificate| {
            json!({
                "serial": certificate.serial,
                "account": certificate.account,
                "operator": certificate.operator,
                "computer": certificate.computer,
                "issuer": certificate.issuer,
                "state": certificate.state(now),
                "issued_at": certificate.issued_at.to_string(),
                "not_after": certificate.not_after.to_string(),
                "last_used_at": certificate.last_used_at.map(|at| at.to_string()),
                "revoked_at": certificate.revoked.as_ref().map(|(at, _)| at.to_string()),
                "revocation_reason": certificate.revoked.as_ref().map(|(_, reason)| reason),
            })
        })
        .collect();
    output.done(&table(&head, &rows), &serde_json::Value::Array(values))
}

async fn revoke(
    serial: &str,
    reason: RevocationReason,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let serial = serial.to_ascii_lowercase().replace(':', "");
    let wanted = serial.as_str();
    change(config, "revoke certificate", move |tx, desk| {
        Box::pin(async move {
            let found =
                certificates::find(tx, wanted)
                    .await?
                    .ok_or_else(|| AdminError::Missing {
                        what: format!("certificate with serial number {wanted}"),
                    })?;
            let revoked = Revocation::new(reason, ADMINISTRATION)
                .apply::<AdminError>(tx, &desk.records, &[found], desk.clock.now(), &desk.request)
                .await?;
            if revoked.is_empty() {
                return Err(AdminError::RevokedAlready {
                    serial: wanted.to_owned(),
                });
            }
            Ok(())
        })
    })
    .await?;
    output.done(
        &format!("Certificate {serial} revoked; the next revocation list names it."),
        &json!({ "serial": serial, "reason": reason.as_str() }),
    )
}
