//! What differs between the databases: addresses, settings of a connection, how a transaction
//! begins, migrations.

use std::path::PathBuf;

use super::StoreError;
use crate::base::encoding::{URI_PART, percent};

/// Version, name and text of a migration.
type Migrations = &'static [(i64, &'static str, &'static str)];

const SQLITE: Migrations = &[
    (
        1,
        "accounts",
        include_str!("migrations/sqlite/0001_accounts.sql"),
    ),
    (
        2,
        "key rotation",
        include_str!("migrations/sqlite/0002_key_rotation.sql"),
    ),
    (
        3,
        "authority rotation",
        include_str!("migrations/sqlite/0003_authority_rotation.sql"),
    ),
    (
        4,
        "key proofs",
        include_str!("migrations/sqlite/0004_key_proofs.sql"),
    ),
    (
        5,
        "outbox by receiver",
        include_str!("migrations/sqlite/0005_outbox_by_receiver.sql"),
    ),
];

const POSTGRES: Migrations = &[
    (
        1,
        "accounts",
        include_str!("migrations/postgres/0001_accounts.sql"),
    ),
    (
        2,
        "key rotation",
        include_str!("migrations/postgres/0002_key_rotation.sql"),
    ),
    (
        3,
        "authority rotation",
        include_str!("migrations/postgres/0003_authority_rotation.sql"),
    ),
    (
        4,
        "key proofs",
        include_str!("migrations/postgres/0004_key_proofs.sql"),
    ),
    (
        5,
        "outbox by receiver",
        include_str!("migrations/postgres/0005_outbox_by_receiver.sql"),
    ),
];

/// Which database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// One file, one writer at a time.
    Sqlite,
    /// A server that several instances share.
    Postgres,
}

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Read,
    Write,
}

impl Backend {
    pub(super) fn of(url: &str) -> Result<Self, StoreError> {
        if url.starts_with("sqlite:") {
            Ok(Self::Sqlite)
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Ok(Self::Postgres)
        } else {
            Err(StoreError::Unsupported {
                url: without_password(url),
            })
        }
    }

    /// The file of the database, where it is one.
    pub(super) fn file(self, url: &str) -> Option<PathBuf> {
        let rest = url.strip_prefix("sqlite:")?;
        let path = rest.split_once('?').map_or(rest, |(path, _)| path);
        Some(path.strip_prefix("//").unwrap_or(path).into())
    }

    /// The address that makes the database where it is missing; a server's must be there.
    pub(super) fn creating(self, url: &str) -> String {
        match self {
            Self::Sqlite if !url.contains('?') => format!("{url}?mode=rwc"),
            Self::Sqlite | Self::Postgres => url.to_owned(),
        }
    }

    pub(super) fn migrations(self) -> Migrations {
        match self {
            Self::Sqlite => SQLITE,
            Self::Postgres => POSTGRES,
        }
    }

    /// The schema version that this program needs.
    pub(super) fn needed(self) -> i64 {
        self.migrations().last().map_or(0, |(version, ..)| *version)
    }

    /// How a transaction begins; the essay of the module above says why.
    pub(super) fn begin(self, mode: Mode) -> &'static str {
        match (self, mode) {
            (Self::Sqlite, Mode::Read) => "BEGIN",
            (Self::Sqlite, Mode::Write) => "BEGIN IMMEDIATE",
            (Self::Postgres, Mode::Read) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            (Self::Postgres, Mode::Write) => "BEGIN ISOLATION LEVEL READ COMMITTED",
        }
    }

    /// Whether writers of one process queue here rather than in the database.
    pub(super) fn one_writer(self) -> bool {
        self == Self::Sqlite
    }

    /// What every connection is told first.
    pub(super) fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Sqlite => &[
                "PRAGMA journal_mode = WAL",
                "PRAGMA synchronous = FULL",
                // Off by default for compatibility's sake only.
                "PRAGMA foreign_keys = ON",
                "PRAGMA trusted_schema = OFF",
                // How long to wait for another process's write lock.
                "PRAGMA busy_timeout = 5000",
            ],
            Self::Postgres => &[
                // Stricter settings (remote_apply) stay; weaker ones would lose what was
                // acknowledged.
                "SELECT set_config('synchronous_commit', 'on', false)
                 WHERE current_setting('synchronous_commit') IN ('off', 'local')",
                // A lock or a statement that takes so long will not come to an end by waiting,
                // and a transaction of a process that hangs must not hold up the others.
                "SET lock_timeout = '10s'",
                "SET statement_timeout = '30s'",
                "SET idle_in_transaction_session_timeout = '60s'",
            ],
        }
    }

    /// Counts the table that lists applied migrations.
    pub(super) fn migrations_exist(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "SELECT COUNT(*) FROM sqlite_master
                 WHERE type = 'table' AND name = '_sqlx_migrations'"
            }
            Self::Postgres => {
                "SELECT COUNT(*) FROM information_schema.tables
                 WHERE table_schema = current_schema() AND table_name = '_sqlx_migrations'"
            }
        }
    }
}

/// The address as it may be shown: without the password of `postgres://user:password@host`, also
/// one that has characters in it which should have been escaped, and without parameters, as one of
/// them may be the password. Where the one cannot be told from the other, the host is left out.
pub(super) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (host, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (user, host) = match host.rsplit_once('@') {
        _ if parameters.contains('@') => (Some(host), "…"),
        Some((user, host)) => (Some(user), host),
        None => (None, host),
    };
    match user.and_then(|user| user.split([':', '@', '/']).next()) {
        Some(user) => format!("{scheme}://{user}@{host}"),
        None => format!("{scheme}://{host}"),
    }
}

/// `url` with a password that was read from a file.
pub(in crate::account) fn with_password(url: &str, password: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (user, host) = rest.split_once('@')?;
    if user.is_empty() || user.contains(':') {
        return None;
    }
    let password = percent(password.as_bytes(), URI_PART);
    Some(format!("{scheme}://{user}:{password}@{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_put_in_and_never_shown() {
        let url = with_password("postgres://opcert@db/opcert", "a/b@c").unwrap();
        assert_eq!(url, "postgres://opcert:a%2Fb%40c@db/opcert");
        assert_eq!(without_password(&url), "postgres://opcert@db/opcert");
        assert!(with_password("postgres://opcert:x@db/opcert", "y").is_none());
        assert!(with_password("postgres:///opcert", "y").is_none());
        assert_eq!(without_password("sqlite:/a@b"), "sqlite:/a@b");
        for (url, shown) in [
            (
                "postgres://opcert:a@b@db/opcert",
                "postgres://opcert@db/opcert",
            ),
            (
                "postgres://opcert:a/b@db/opcert",
                "postgres://opcert@db/opcert",
            ),
            ("postgres://opcert:a?b@db/opcert", "postgres://opcert@…"),
            (
                "postgres://opcert@db/opcert?password=a@b",
                "postgres://opcert@…",
            ),
            ("postgres://db/opcert?password=a@b", "postgres://db@…"),
            (
                "postgres://opcert@db/opcert?password=a",
                "postgres://opcert@db/opcert",
            ),
            (
                "postgres://db/opcert?user=opcert&password=a",
                "postgres://db/opcert",
            ),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn both_databases_have_the_same_versions_and_tables() {
        let versions = |backend: Backend| -> Vec<i64> {
            backend
                .migrations()
                .iter()
                .map(|(version, ..)| *version)
                .collect()
        };
        assert_eq!(versions(Backend::Sqlite), versions(Backend::Postgres));
        // SQLite cannot add a column that is NOT NULL and refers to another table, so triggers
        // hold it there; but for them and for spaces the texts are the same.
        let plain = |text: &str| -> Vec<String> {
            text.replace("BLOB", "BYTEA")
                .split('\n')
                .filter(|line| {
                    let line = line.trim_start();
                    !line.starts_with("CREATE TRIGGER")
                        && !line.starts_with("BEGIN SELECT RAISE")
                        && !line.starts_with("-- SQLite cannot say")
                        && !line.ends_with("SET NOT NULL;")
                })
                .flat_map(str::split_whitespace)
                .map(str::to_owned)
                .collect()
        };
        for (one, other) in SQLITE.iter().zip(POSTGRES) {
            assert_eq!(plain(one.2), plain(other.2), "{}", one.1);
        }
        let triggers = SQLITE
            .iter()
            .map(|one| one.2.matches("CREATE TRIGGER").count());
        let columns = POSTGRES
            .iter()
            .map(|one| one.2.matches("SET NOT NULL").count());
        assert_eq!(triggers.sum::<usize>(), columns.sum::<usize>());
    }
}
