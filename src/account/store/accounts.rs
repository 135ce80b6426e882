//! Accounts, operators, and the platform's keys.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{StoreError, Tx, millis};
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

impl Role {
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
            "INSERT INTO operators (account, id, role, mobile, password_hash, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(operator.account.as_str())
        .bind(operator.id.as_str())
        .bind(operator.role.as_str())
        .bind(operator.mobile.as_str())
        .bind(operator.password_hash.as_str())
        .bind(millis(now)),
    )
    .await?;
    Ok(true)
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
                "SELECT role, mobile, password_hash FROM operators
                 WHERE account = $1 AND id = $2 AND disabled_at IS NULL",
            )
            .bind(account.as_str())
            .bind(id.as_str()),
        )
        .await?
    else {
        return Ok(None);
    };
    Ok(Some(Operator {
        account: account.clone(),
        id: id.clone(),
        role: row.parsed(0, "operators.role")?,
        mobile: row.parsed(1, "operators.mobile")?,
        password_hash: row.get(2)?,
    }))
}

/// Adds a platform key by its hash; `false` where the name is taken.
pub async fn insert_platform_key(
    tx: &mut Tx<'_>,
    name: &str,
    key_hash: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let taken = tx
        .optional(sqlx::query("SELECT name FROM platform_keys WHERE name = $1").bind(name))
        .await?;
    if taken.is_some() {
        return Ok(false);
    }
    tx.execute(
        sqlx::query("INSERT INTO platform_keys (name, key_hash, created_at) VALUES ($1, $2, $3)")
            .bind(name)
            .bind(key_hash)
            .bind(millis(now)),
    )
    .await?;
    Ok(true)
}

/// The name of the platform key with this hash, unless it was withdrawn.
pub async fn platform_key(tx: &mut Tx<'_>, key_hash: &str) -> Result<Option<String>, StoreError> {
    tx.optional(
        sqlx::query("SELECT name FROM platform_keys WHERE key_hash = $1 AND revoked_at IS NULL")
            .bind(key_hash),
    )
    .await?
    .map(|row| row.get(0))
    .transpose()
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
