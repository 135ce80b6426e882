//! `account export` and `account import`: one account as JSON lines, from one database to another
//! of the same service.
//!
//! The first line says what it is, the last one how many lines there are and the SHA-256 of all
//! before it, so one that is cut or changed is refused. Password hashes are sealed with `code-key`;
//! nothing else in it is a secret. Certificates are good only where their authority is: an account
//! that comes to another service comes without them. What is under way (codes, tickets, operations,
//! requests with their papers) stays where it is.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::AdminError;
use super::desk::{change, look};
use super::output::Output;
use crate::account::config::Config;
use crate::account::passwords::Passwords;
use crate::account::seal::Sealer;
use crate::account::service::read_code_key;
use crate::account::store::Store;
use crate::account::store::accounts;
use crate::account::store::keys::{self, KeyPurpose};
use crate::account::store::transfer::{self, Row};
use crate::base::Clock;
use crate::base::encoding::{base64, base64url, from_base64, from_hex, hex, sha256};
use crate::base::files::{Readers, read_checked, write_new};
use crate::base::ids::{AccountId, random};
use crate::base::secret::SecretText;
use crate::base::x509::{Certificate, verify_chain};

/// What the first line says it is.
const FORMAT: &str = "opcert-account-1";

/// Begins what seals a password hash.
const PASSWORD_DOMAIN: &str = "export-password";

/// Largest export that is read, in bytes.
const EXPORT_LIMIT: u64 = 1024 * 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    schema: i64,
    service: String,
    account: AccountId,
    time: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Foot {
    lines: usize,
    sha256: String,
}

fn refused(problem: impl Into<String>) -> AdminError {
    AdminError::Export {
        problem: problem.into(),
    }
}

fn line(value: &impl Serialize) -> Result<String, AdminError> {
    serde_json::to_string(value)
        .map_err(|error| refused(format!("a line cannot be written: {error}")))
}

/// `account export`.
pub(super) async fn export(
    account: &AccountId,
    to: &Path,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let sealer = Sealer::new(&read_code_key(&config.state_directory)?);
    let url = config.database()?;
    let rows = change(config, "export account", move |tx, desk| {
        Box::pin(async move {
            let rows = transfer::rows(tx, account).await?;
            if rows.is_empty() {
                return Err(AdminError::Missing {
                    what: format!("account {account}"),
                });
            }
            let body = json!({ "rows": rows.len() });
            desk.note(tx, account, "account-exported", body).await?;
            Ok(rows)
        })
    })
    .await?;
    let head = Head {
        format: FORMAT.into(),
        schema: Store::needed(&url)?,
        service: config.origin.to_string(),
        account: account.clone(),
        time: Clock::system().now().to_string(),
    };
    let mut text = line(&head)? + "\n";
    let count = rows.len();
    for mut row in rows {
        if let Row::Operator { id, password, .. } = &mut row {
            let place = format!("{account}\0{id}");
            let sealed = sealer
                .seal(PASSWORD_DOMAIN, &place, password.as_bytes())
                .map_err(|error| refused(error.to_string()))?;
            *password = base64(&sealed);
        }
        text.push_str(&line(&row)?);
        text.push('\n');
    }
    let foot = Foot {
        lines: count,
        sha256: hex(&sha256(text.as_bytes())),
    };
    text.push_str(&line(&foot)?);
    text.push('\n');
    write_new(to, text.as_bytes(), 0o600)?;
    output.done(
        &format!("{count} rows of account {account} are in {}.", to.display()),
        &json!({ "account": account, "rows": count, "file": to }),
    )
}

/// How an account is taken over.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct TakeOver {
    /// Leave certificates and computers behind: they are of another authority. Operators install
    /// again.
    #[arg(long)]
    without_certificates: bool,
    /// Give every operator a password that nobody knows, where the old ones were sealed by a service
    /// with another code-key. Set new ones with `operator set --password-file`.
    #[arg(long)]
    new_passwords: bool,
}

/// `account import`.
pub(super) async fn import(
    from: &Path,
    how: TakeOver,
    config: &Config,
    output: &Output,
) -> Result<(), AdminError> {
    let bytes = read_checked(from, Readers::Owner, EXPORT_LIMIT)?;
    let text = String::from_utf8(bytes).map_err(|_| refused("it is no text"))?;
    let (head, mut rows) = read(&text)?;
    let needed = Store::needed(&config.database()?)?;
    if head.schema != needed {
        return Err(refused(format!(
            "it is of schema version {}, and this program has {needed}",
            head.schema
        )));
    }
    if how.without_certificates {
        rows.retain(|row| {
            let is_left = matches!(
                row,
                Row::Certificate { .. } | Row::Computer { .. } | Row::KeyProof { .. }
            );
            !is_left
        });
    } else {
        check_authority(&rows, config).await?;
    }
    passwords(&mut rows, &head.account, how, config).await?;
    let (account, rows) = (&head.account, &rows);
    let service = head.service.as_str();
    change(config, "import account", move |tx, desk| {
        Box::pin(async move {
            if accounts::account_exists(tx, account).await? {
                return Err(AdminError::Exists {
                    what: format!("account {account}"),
                });
            }
            for row in rows {
                transfer::insert(tx, account, row).await?;
            }
            let body = json!({ "rows": rows.len(), "from": service });
            desk.note(tx, account, "account-imported", body).await
        })
    })
    .await?;
    output.done(
        &format!("Account {account} is here, with {} rows.", rows.len()),
        &json!({ "account": account, "rows": rows.len() }),
    )
}

/// Reads the lines, whole and unchanged.
fn read(text: &str) -> Result<(Head, Vec<Row>), AdminError> {
    let cut = || refused("its end is missing");
    let trimmed = text.strip_suffix('\n').ok_or_else(cut)?;
    let at = trimmed.rfind('\n').ok_or_else(cut)? + 1;
    let (before, last) = trimmed.split_at(at);
    let foot: Foot = serde_json::from_str(last).map_err(|_| cut())?;
    if foot.sha256 != hex(&sha256(before.as_bytes())) {
        return Err(refused("it was changed after it was made"));
    }
    let mut lines = before.lines();
    let head: Head = lines
        .next()
        .and_then(|line| serde_json::from_str(line).ok())
        .filter(|head: &Head| head.format == FORMAT)
        .ok_or_else(|| refused("it is no export of an account"))?;
    let rows = lines
        .map(serde_json::from_str)
        .collect::<Result<Vec<Row>, _>>()
        .map_err(|error| refused(format!("a line makes no sense: {error}")))?;
    if rows.len() != foot.lines || !matches!(rows.first(), Some(Row::Account { .. })) {
        return Err(cut());
    }
    Ok((head, rows))
}

/// For the fuzz target of exports: as they come, and with the right last line.
#[cfg(fuzzing)]
pub fn fuzz_export(text: &str) {
    let _ = read(text);
    let Some(text) = text.strip_suffix('\n') else {
        return;
    };
    let before = format!("{text}\n");
    let foot = Foot {
        lines: text.lines().count().saturating_sub(1),
        sha256: hex(&sha256(before.as_bytes())),
    };
    let Ok(foot) = line(&foot) else {
        return;
    };
    if let Ok((head, rows)) = read(&format!("{before}{foot}\n")) {
        assert!(head.format == FORMAT && !rows.is_empty());
    }
}

/// Refuses certificates that no authority of this service signed.
async fn check_authority(rows: &[Row], config: &Config) -> Result<(), AdminError> {
    let now = Clock::system().now();
    let authorities = look(config, "find authorities", move |tx| {
        Box::pin(async move {
            let mut found = keys::retired(tx, KeyPurpose::Issuing, now).await?;
            found.extend(keys::current(tx, KeyPurpose::Issuing).await?);
            Ok(found)
        })
    })
    .await?;
    let authorities = authorities
        .iter()
        .map(|key| {
            let certificate = key.certificate.as_deref().unwrap_or_default();
            Ok((
                keys::name(&key.public_key),
                Certificate::from_der(certificate)?,
            ))
        })
        .collect::<Result<HashMap<_, _>, AdminError>>()?;
    for row in rows {
        let Row::Certificate {
            serial,
            der,
            issuer,
            ..
        } = row
        else {
            continue;
        };
        let der = from_hex(der).ok_or_else(|| refused("a certificate makes no sense"))?;
        let certificate = Certificate::from_der(&der)?;
        // As of its first instant, as it may be over by now.
        let at = certificate.not_before();
        let signed = authorities.get(issuer).is_some_and(|authority| {
            verify_chain(&certificate, &[], std::slice::from_ref(authority), at).is_ok()
        });
        if !signed {
            return Err(refused(format!(
                "certificate {serial} is of another authority: use --without-certificates"
            )));
        }
    }
    Ok(())
}

/// Opens the hashes of the passwords, or makes ones that nobody can log in with.
async fn passwords(
    rows: &mut [Row],
    account: &AccountId,
    how: TakeOver,
    config: &Config,
) -> Result<(), AdminError> {
    let sealer = Sealer::new(&read_code_key(&config.state_directory)?);
    let hasher = Passwords::new()?;
    for row in rows {
        let Row::Operator { id, password, .. } = row else {
            continue;
        };
        if how.new_passwords {
            let unknown = SecretText::new(base64url(&random::<32>()));
            *password = hasher.hash(unknown).await?;
            continue;
        }
        let place = format!("{account}\0{id}");
        *password = from_base64(password.as_bytes())
            .and_then(|sealed| sealer.open(PASSWORD_DOMAIN, &place, &sealed).ok())
            .and_then(|hash| String::from_utf8(hash.expose().to_vec()).ok())
            .ok_or_else(|| {
                refused("its passwords were sealed with another code-key: use --new-passwords")
            })?;
    }
    Ok(())
}
