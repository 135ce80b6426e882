//! Accounts, operators, and the platform's keys.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Record, StoreError, Tx, millis};
use crate::base::ids::{AccountId, OperatorId};

/// What an operator may do besides approving.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Also sets the account's secrets.
    SuperAdministrator,
    /// Also manages certificates of others.
    Administrator,
    /// Nothing more.
    Operator,
}

/// The language of what is sent to a person.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Language {
    /// English.
    #[default]
    En,
    /// Chinese.
    Zh,
}

impl Language {
    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Zh => "zh",
        }
    }
}

impl FromStr for Language {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "en" => Ok(Self::En),
            "zh" => Ok(Self::Zh),
            _ => Err(()),
        }
    }
}

impl Role {
    /// Whether certificates and requests of others are its business.
    pub fn manages(self) -> bool {
        self != Self::Operator
    }

    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SuperAdministrator => "super-administrator",
            Self::Administrator => "administrator",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no [`Role`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("role must be super-administrator, administrator or operator")]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        [
            Self::SuperAdministrator,
            Self::Administrator,
            Self::Operator,
        ]
        .into_iter()
        .find(|role| role.as_str() == text)
        .ok_or(UnknownRole)
    }
}

/// A mobile number in E.164 form: `+`, then 8 to 15 digits, the first not zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mobile(Box<str>);

impl Mobile {
    /// The number.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The number with its middle hidden: country code of two digits and the last four stay.
    pub fn masked(&self) -> String {
        let length = self.0.len();
        self.0
            .char_indices()
            .map(|(index, digit)| {
                if index < 3 || index + 4 >= length {
                    digit
                } else {
                    '*'
                }
            })
            .collect()
    }
}

/// Text that is no [`Mobile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a mobile number is written like +8613800000001: \"+\", then 8 to 15 digits")]
pub struct InvalidMobile;

impl FromStr for Mobile {
    type Err = InvalidMobile;
    fn from_str(text: &str) -> Result<Self, InvalidMobile> {
        let digits = text.strip_prefix('+').ok_or(InvalidMobile)?;
        let good = (8..=15).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !digits.starts_with('0');
        if good {
            Ok(Self(text.into()))
        } else {
            Err(InvalidMobile)
        }
    }
}

/// A person with a login.
#[derive(Debug, Clone)]
pub struct Operator {
    /// The account.
    pub account: AccountId,
    /// The operator.
    pub id: OperatorId,
    /// What he may do.
    pub role: Role,
    /// Where codes go.
    pub mobile: Mobile,
    /// The language of what is sent there.
    pub language: Language,
    /// Argon2id, PHC string.
    pub password_hash: String,
}

/// Adds an account; `false` where there is one with this id.
pub async fn insert_account(
    tx: &mut Tx<'_>,
    id: &AccountId,
    name: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if account_exists(tx, id).await? {
        return Ok(false);
    }
    tx.execute(
        sqlx::query("INSERT INTO accounts (id, name, created_at) VALUES ($1, $2, $3)")
            .bind(id.as_str())
            .bind(name)
            .bind(millis(now)),
    )
    .await?;
    Ok(true)
}

/// Whether there is an account with this id.
pub async fn account_exists(tx: &mut Tx<'_>, id: &AccountId) -> Result<bool, StoreError> {
    Ok(tx
        .optional(sqlx::query("SELECT id FROM accounts WHERE id = $1").bind(id.as_str()))
        .await?
        .is_some())
}

/// Adds an operator to an account that exists; `false` where there is one with this id.
pub async fn insert_operator(
    tx: &mut Tx<'_>,
    operator: &Operator,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if self::operator(tx, &operator.account, &operator.id)
        .await?
        .is_some()
    {
        return Ok(false);
    }
    tx.execute(
        sqlx::query(
            "INSERT INTO operators (account, id, role, mobile, language, password_hash, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(operator.account.as_str())
        .bind(operator.id.as_str())
        .bind(operator.role.as_str())
        .bind(operator.mobile.as_str())
        .bind(operator.language.as_str())
        .bind(operator.password_hash.as_str())
        .bind(millis(now)),
    )
    .await?;
    Ok(true)
}

/// What an account has chosen.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its id.
    pub id: AccountId,
    /// What people call it.
    pub name: String,
    /// Whether installations after the first wait for an administrator.
    pub later_installs_held: bool,
    /// Administrators who together replace the business representative; 0 where they cannot.
    pub quorum: i64,
}

/// The account.
pub async fn account(tx: &mut Tx<'_>, id: &AccountId) -> Result<Option<Account>, StoreError> {
    tx.optional(
        sqlx::query("SELECT name, later_installs, quorum FROM accounts WHERE id = $1")
            .bind(id.as_str()),
    )
    .await?
    .map(|row| {
        Ok(Account {
            id: id.clone(),
            name: row.get(0)?,
            later_installs_held: row.get::<String>(1)? == "approval",
            quorum: row.get(2)?,
        })
    })
    .transpose()
}

/// Every account, by id.
pub async fn accounts(
    tx: &mut Tx<'_>,
    limit: i64,
) -> Result<Vec<(Account, Timestamp)>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT id, name, later_installs, quorum, created_at FROM accounts ORDER BY id LIMIT $1",
        )
        .bind(limit),
    )
    .await?
    .iter()
    .map(|row| {
        let account = Account {
            id: row.parsed(0, "accounts.id")?,
            name: row.get(1)?,
            later_installs_held: row.get::<String>(2)? == "approval",
            quorum: row.get(3)?,
        };
        Ok((account, row.time(4)?))
    })
    .collect()
}

/// What changes of what an account has chosen; the rest stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct AccountChange<'a> {
    /// What people call it.
    pub name: Option<&'a str>,
    /// Whether installations after the first wait for an administrator.
    pub later_installs_held: Option<bool>,
    /// Administrators who together replace the business representative; 0 where they cannot.
    pub quorum: Option<i64>,
}

/// Changes what an account has chosen; `false` where there is none.
///
/// What is not named is not written, so that changes of others at the same time last.
pub async fn update_account(
    tx: &mut Tx<'_>,
    id: &AccountId,
    change: AccountChange<'_>,
) -> Result<bool, StoreError> {
    let later_installs = change
        .later_installs_held
        .map(|held| if held { "approval" } else { "free" });
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE accounts SET name = COALESCE($2, name),
                                     later_installs = COALESCE($3, later_installs),
                                     quorum = COALESCE($4, quorum)
                 WHERE id = $1",
            )
            .bind(id.as_str())
            .bind(change.name.map(ToOwned::to_owned))
            .bind(later_installs.map(ToOwned::to_owned))
            .bind(change.quorum),
        )
        .await?;
    Ok(changed == 1)
}

/// The operator, unless there is none or the login was closed.
pub async fn operator(
    tx: &mut Tx<'_>,
    account: &AccountId,
    id: &OperatorId,
) -> Result<Option<Operator>, StoreError> {
    let Some(row) = tx
        .optional(
            sqlx::query(
                "SELECT id, role, mobile, language, password_hash FROM operators
                 WHERE account = $1 AND id = $2 AND disabled_at IS NULL",
            )
            .bind(account.as_str())
            .bind(id.as_str()),
        )
        .await?
    else {
        return Ok(None);
    };
    operator_in(&row, account).map(Some)
}

fn operator_in(row: &Record, account: &AccountId) -> Result<Operator, StoreError> {
    Ok(Operator {
        account: account.clone(),
        id: row.parsed(0, "operators.id")?,
        role: row.parsed(1, "operators.role")?,
        mobile: row.parsed(2, "operators.mobile")?,
        language: row.parsed(3, "operators.language")?,
        password_hash: row.get(4)?,
    })
}

/// The operators of an account whose logins are open, by id.
pub async fn operators(tx: &mut Tx<'_>, account: &AccountId) -> Result<Vec<Operator>, StoreError> {
    tx.all(
        sqlx::query(
            "SELECT id, role, mobile, language, password_hash FROM operators
             WHERE account = $1 AND disabled_at IS NULL ORDER BY id",
        )
        .bind(account.as_str()),
    )
    .await?
    .iter()
    .map(|row| operator_in(row, account))
    .collect()
}

/// What changes of an operator; the rest stays as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct OperatorChange<'a> {
    /// What he may do.
    pub role: Option<Role>,
    /// Where codes go.
    pub mobile: Option<&'a Mobile>,
    /// The language of what is sent there.
    pub language: Option<Language>,
    /// Argon2id, PHC string.
    pub password_hash: Option<&'a str>,
}

/// Changes an operator; `false` where there is none or the login was closed.
///
/// What is not named is not written, so that changes of others at the same time last.
pub async fn update_operator(
    tx: &mut Tx<'_>,
    account: &AccountId,
    id: &OperatorId,
    change: OperatorChange<'_>,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE operators SET role = COALESCE($3, role), mobile = COALESCE($4, mobile),
                                      language = COALESCE($5, language),
                                      password_hash = COALESCE($6, password_hash)
                 WHERE account = $1 AND id = $2 AND disabled_at IS NULL",
            )
            .bind(account.as_str())
            .bind(id.as_str())
            .bind(change.role.map(|role| role.as_str().to_owned()))
            .bind(change.mobile.map(|mobile| mobile.as_str().to_owned()))
            .bind(change.language.map(|language| language.as_str().to_owned()))
            .bind(change.password_hash.map(ToOwned::to_owned)),
        )
        .await?;
    Ok(changed == 1)
}

/// Closes the login of an operator; `false` where there is none.
pub async fn disable_operator(
    tx: &mut Tx<'_>,
    account: &AccountId,
    id: &OperatorId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE operators SET disabled_at = $3
                 WHERE account = $1 AND id = $2 AND disabled_at IS NULL",
            )
            .bind(account.as_str())
            .bind(id.as_str())
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

/// A business representative: outside every account.
#[derive(Debug, Clone)]
pub struct Representative {
    /// Its id.
    pub id: OperatorId,
    /// What people call it.
    pub name: String,
    /// Argon2id, PHC string.
    pub password_hash: String,
}

/// The representative, unless there is none or the login was closed.
pub async fn representative(
    tx: &mut Tx<'_>,
    id: &OperatorId,
) -> Result<Option<Representative>, StoreError> {
    tx.optional(
        sqlx::query(
            "SELECT name, password_hash FROM representatives
             WHERE id = $1 AND disabled_at IS NULL",
        )
        .bind(id.as_str()),
    )
    .await?
    .map(|row| {
        Ok(Representative {
            id: id.clone(),
            name: row.get(0)?,
            password_hash: row.get(1)?,
        })
    })
    .transpose()
}

/// Adds a representative; `false` where there is one with this id.
pub async fn insert_representative(
    tx: &mut Tx<'_>,
    representative: &Representative,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "INSERT INTO representatives (id, name, password_hash, created_at)
                 VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
            )
            .bind(representative.id.as_str())
            .bind(representative.name.as_str())
            .bind(representative.password_hash.as_str())
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

/// Closes the login of a representative; `false` where there is none.
pub async fn disable_representative(
    tx: &mut Tx<'_>,
    id: &OperatorId,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE representatives SET disabled_at = $2
                 WHERE id = $1 AND disabled_at IS NULL",
            )
            .bind(id.as_str())
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

/// How many operators must approve an operation of this kind and amount.
pub async fn approvals_needed(
    tx: &mut Tx<'_>,
    account: &AccountId,
    kind: &str,
    currency: &str,
    amount: i64,
) -> Result<i64, StoreError> {
    let rule = approval_rule(tx, account, kind, currency, amount).await?;
    Ok(rule.unwrap_or(1))
}

/// How many operators must approve by the account's rules; none where no rule speaks of it.
pub async fn approval_rule(
    tx: &mut Tx<'_>,
    account: &AccountId,
    kind: &str,
    currency: &str,
    amount: i64,
) -> Result<Option<i64>, StoreError> {
    tx.optional(
        sqlx::query(
            "SELECT approvals FROM approval_rules
                 WHERE account = $1 AND kind = $2 AND currency = $3 AND amount <= $4
                 ORDER BY amount DESC LIMIT 1",
        )
        .bind(account.as_str())
        .bind(kind)
        .bind(currency)
        .bind(amount),
    )
    .await?
    .map(|row| row.get(0))
    .transpose()
}

/// Sets how many must approve from an amount on.
pub async fn set_approval_rule(
    tx: &mut Tx<'_>,
    account: &AccountId,
    kind: &str,
    currency: &str,
    amount: i64,
    approvals: i64,
) -> Result<(), StoreError> {
    tx.execute(
        sqlx::query(
            "INSERT INTO approval_rules (account, kind, currency, amount, approvals)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (account, kind, currency, amount) DO UPDATE SET approvals = excluded.approvals",
        )
        .bind(account.as_str())
        .bind(kind)
        .bind(currency)
        .bind(amount)
        .bind(approvals),
    )
    .await?;
    Ok(())
}

/// What proves that a request is the platform's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlatformProof<'a> {
    /// SHA-256 of the key it presents, hexadecimal.
    Key(&'a str),
    /// SHA-256 of its TLS client certificate, hexadecimal.
    Certificate(&'a str),
}

/// A key of the platform's backend.
#[derive(Debug, Clone)]
pub struct PlatformKey {
    /// Its name.
    pub name: String,
    /// What it may do, words apart by blanks.
    pub scopes: String,
    /// Whether it is a TLS client certificate.
    pub is_certificate: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was withdrawn.
    pub revoked_at: Option<Timestamp>,
}

/// Adds a platform key; `false` where the name is taken.
pub async fn insert_platform_key(
    tx: &mut Tx<'_>,
    name: &str,
    proof: PlatformProof<'_>,
    scopes: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let taken = tx
        .optional(sqlx::query("SELECT name FROM platform_keys WHERE name = $1").bind(name))
        .await?;
    if taken.is_some() {
        return Ok(false);
    }
    let (key, certificate) = match proof {
        PlatformProof::Key(hash) => (Some(hash.to_owned()), None),
        PlatformProof::Certificate(hash) => (None, Some(hash.to_owned())),
    };
    tx.execute(
        sqlx::query(
            "INSERT INTO platform_keys (name, key_hash, certificate_hash, scopes, created_at)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(name)
        .bind(key)
        .bind(certificate)
        .bind(scopes)
        .bind(millis(now)),
    )
    .await?;
    Ok(true)
}

const PLATFORM_KEY: &str = "SELECT name, scopes, certificate_hash, created_at, revoked_at
                            FROM platform_keys ";

fn platform_key_in(row: &Record) -> Result<PlatformKey, StoreError> {
    Ok(PlatformKey {
        name: row.get(0)?,
        scopes: row.get(1)?,
        is_certificate: row.get::<Option<String>>(2)?.is_some(),
        created_at: row.time(3)?,
        revoked_at: row.optional_time(4)?,
    })
}

/// The platform key with this proof, unless it was withdrawn.
pub async fn platform_key(
    tx: &mut Tx<'_>,
    proof: PlatformProof<'_>,
) -> Result<Option<PlatformKey>, StoreError> {
    let (column, hash) = match proof {
        PlatformProof::Key(hash) => ("key_hash", hash),
        PlatformProof::Certificate(hash) => ("certificate_hash", hash),
    };
    let sql = format!("{PLATFORM_KEY} WHERE {column} = $1 AND revoked_at IS NULL");
    tx.optional(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(hash))
        .await?
        .map(|row| platform_key_in(&row))
        .transpose()
}

/// Every platform key, by name.
pub async fn platform_keys(tx: &mut Tx<'_>) -> Result<Vec<PlatformKey>, StoreError> {
    let sql = format!("{PLATFORM_KEY} ORDER BY name");
    tx.all(sqlx::query(sqlx::AssertSqlSafe(sql)))
        .await?
        .iter()
        .map(platform_key_in)
        .collect()
}

/// Withdraws a platform key; `false` where there is none or it was withdrawn before.
pub async fn revoke_platform_key(
    tx: &mut Tx<'_>,
    name: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx
        .execute(
            sqlx::query(
                "UPDATE platform_keys SET revoked_at = $2 WHERE name = $1 AND revoked_at IS NULL",
            )
            .bind(name)
            .bind(millis(now)),
        )
        .await?;
    Ok(changed == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mobile_number_is_checked_and_masked() {
        let mobile: Mobile = "+8613800000001".parse().unwrap();
        assert_eq!(mobile.masked(), "+86*******0001");
        for bad in [
            "",
            "13800000001",
            "+0123456789",
            "+86 138",
            "+1234567",
            "+1234567890123456",
        ] {
            assert_eq!(bad.parse::<Mobile>(), Err(InvalidMobile), "{bad}");
        }
    }
}
