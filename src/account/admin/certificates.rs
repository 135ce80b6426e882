//! `certificate list` and `certificate revoke`.

use clap::Subcommand;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde_json::json;

use super::output::Output;
use super::{AdminError, Trail};
use crate::account::config::Config;
use crate::account::issuing::RevocationReason;
use crate::account::store::{Store, certificates};
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
    let store = Store::open(&config.database()?).await?;
    let account = account.as_ref();
    let found = store
        .read("list certificates", move |tx| {
            Box::pin(certificates::list(tx, account, limit))
        })
        .await?;
    store.close().await;
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "SERIAL",
        "ACCOUNT",
        "OPERATOR",
        "COMPUTER",
        "STATE",
        "EXPIRES",
        "LAST USED",
    ]);
    let mut values = Vec::with_capacity(found.len());
    for certificate in &found {
        let state = certificate.state(now);
        let last_used = certificate.last_used_at.map(|at| at.to_string());
        table.add_row([
            certificate.serial.as_str(),
            certificate.account.as_str(),
            certificate.operator.as_str(),
            certificate.computer.as_str(),
            state,
            &certificate.not_after.to_string(),
            last_used.as_deref().unwrap_or("never"),
        ]);
        values.push(json!({
            "serial": certificate.serial,
            "account": certificate.account,
            "operator": certificate.operator,
            "computer": certificate.computer,
            "state": state,
            "issued_at": certificate.issued_at.to_string(),
            "not_after": certificate.not_after.to_string(),
            "last_used_at": last_used,
            "revoked_at": certificate.revoked.as_ref().map(|(at, _)| at.to_string()),
            "revocation_reason": certificate.revoked.as_ref().map(|(_, reason)| reason),
        }));
    }
    let text = if found.is_empty() {
        "No operating certificates.".into()
    } else {
        table.trim_fmt()
    };
    output.done(&text, &values.into())
}

async fn revoke(
    serial: &str,
    reason: RevocationReason,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let clock = Clock::system();
    let store = Store::open(&config.database()?).await?;
    let trail = Trail::open(config, &clock)?;
    let serial = serial.to_ascii_lowercase().replace(':', "");
    let (wanted, now, record) = (serial.as_str(), clock.now(), &trail);
    store
        .transaction("revoke certificate", move |tx| {
            Box::pin(async move {
                let missing = || AdminError::Missing {
                    what: format!("certificate with serial number {wanted}"),
                };
                let known = certificates::find(tx, wanted).await?.ok_or_else(missing)?;
                if !certificates::revoke(tx, wanted, reason.as_str(), "administration", now).await?
                {
                    return Err(AdminError::Exists {
                        what: format!("a revocation of certificate {wanted}"),
                    });
                }
                let body = json!({
                    "serial": wanted,
                    "account": known.account,
                    "operator": known.operator,
                    "computer": known.computer,
                    "reason": reason.as_str(),
                });
                record.write("certificate-revoked", body).await?;
                Ok(())
            })
        })
        .await?;
    trail.close().await?;
    store.close().await;
    output.done(
        &format!("Certificate {serial} revoked; the next revocation list names it."),
        &json!({ "serial": serial, "reason": reason.as_str() }),
    )
}
