//! What the account service remembers, in SQL.
//!
//! One database holds everything: SQLite in a file by default, PostgreSQL where several instances
//! share it. The queries are written for both (`$1` placeholders, BIGINT milliseconds, TEXT
//! identifiers); what differs is the migrations, which live in a folder for each database, and the
//! few lines of [`backend`] that open a connection and begin a transaction.
//!
//! **How it changes.** Every change happens inside [`Store::transaction`], all or nothing. Each
//! rule that counts (quotas, codes for a number, approvals of an operation) first changes one row
//! that stands for what is counted, and what must be single has a unique constraint or a
//! conditional UPDATE. On SQLite a write transaction begins with `BEGIN IMMEDIATE`, so what it
//! reads cannot change under it; writers of this process queue on a fair lock rather than poll the
//! file's. On PostgreSQL it is READ COMMITTED: a statement that waited for the row of its rule goes
//! on with what the winner committed, where a stricter level would throw its work away and begin
//! again. A transaction that lost a race is run again, at most [`ATTEMPTS`] times. Transactions
//! that only read see one state: REPEATABLE READ on PostgreSQL.
//!
//! **What a crash does.** `journal_mode=WAL` with `synchronous=FULL` on SQLite, and
//! `synchronous_commit` on PostgreSQL, sync the log at every commit: what was acknowledged is
//! there after a power cut, what was not is gone as a whole.
//!
//! **What never lives here.** Rules, records and texts: a function is one query, or a few that are
//! one, and gives typed rows. SQL is nowhere else.

pub mod accounts;
mod backend;
pub mod certificates;
pub mod codes;
pub mod events;
pub mod key_proofs;
pub mod keys;
pub mod messages;
pub mod notices;
pub mod operations;
pub mod outbox;
pub mod recovery;
pub mod secrets;
pub mod sessions;
pub mod transfer;

use std::future::Future;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::any::{AnyArguments, AnyPoolOptions, AnyRow};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::{Any, AnyPool, Decode, Row, SqlSafeStr, Type};

pub(super) use backend::with_password;
use backend::{Backend, Mode};

/// How often a transaction that lost a race is run.
pub const ATTEMPTS: u32 = 5;

/// Connections of one process. Writers queue for one of them, the rest read.
const CONNECTIONS: u32 = 8;

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database address is of no supported kind.
    #[error("database {url:?} is not supported: use sqlite:PATH or postgres://USER@HOST/DATABASE")]
    Unsupported {
        /// The address as configured.
        url: String,
    },
    /// The database could not be opened.
    #[error("cannot open database {url}")]
    Open {
        /// The address as configured.
        url: String,
        /// Why.
        source: sqlx::Error,
    },
    /// The schema is older or newer than this program.
    #[error("the database has schema version {found}, this program needs {needed}")]
    Schema {
        /// What the database has; 0 for an empty one.
        found: i64,
        /// What this program needs.
        needed: i64,
    },
    /// A migration failed; the database is as it was before it.
    #[error("cannot bring the database to schema version {needed}")]
    Migrate {
        /// What this program needs.
        needed: i64,
        /// Why.
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed.
    #[error("the database failed in {during:?}")]
    Query {
        /// The transaction.
        during: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// A value that this program never writes.
    #[error("the database holds a malformed value in {column}")]
    Malformed {
        /// Table and column.
        column: &'static str,
    },
}

impl StoreError {
    /// Whether it passes by itself once the database is well again.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Open { source, .. } | Self::Query { source, .. } => may_pass(source),
            Self::Unsupported { .. }
            | Self::Schema { .. }
            | Self::Migrate { .. }
            | Self::Malformed { .. } => false,
        }
    }
}

/// The database; cloning shares it.
#[derive(Clone)]
pub struct Store {
    pool: AnyPool,
    backend: Backend,
    writer: Arc<tokio::sync::Mutex<()>>,
}

/// What a transaction's body returns.
pub type TxFuture<'t, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 't>>;

impl Store {
    /// The address of an SQLite database in the file `path`.
    pub fn sqlite_url(path: &Path) -> String {
        format!("sqlite:{}", path.display())
    }

    /// Opens the database at `url` and checks that its schema is the one this program needs.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let store = Self::connect(url).await?;
        let found = store.schema().await?;
        let needed = store.backend.needed();
        if found == needed {
            Ok(store)
        } else {
            Err(StoreError::Schema { found, needed })
        }
    }

    /// Opens the database at `url`, creating it where it is missing, and brings its schema to
    /// what this program needs. Gives the versions before and after.
    pub async fn migrate(url: &str) -> Result<(Self, i64, i64), StoreError> {
        let backend = Backend::of(url)?;
        let store = Self::connect(&backend.creating(url)).await?;
        let before = store.schema().await?;
        let needed = backend.needed();
        if before > needed {
            return Err(StoreError::Schema {
                found: before,
                needed,
            });
        }
        let migrations = backend
            .migrations()
            .iter()
            .map(|&(version, name, sql)| {
                Migration::new(
                    version,
                    name.into(),
                    MigrationType::Simple,
                    sql.into_sql_str(),
                    false,
                )
            })
            .collect();
        Migrator::with_migrations(migrations)
            .run(&store.pool)
            .await
            .map_err(|source| StoreError::Migrate { needed, source })?;
        Ok((store, before, needed))
    }

    async fn connect(url: &str) -> Result<Self, StoreError> {
        let backend = Backend::of(url)?;
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(10))
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    for statement in backend.settings() {
                        sqlx::raw_sql(*statement).execute(&mut *connection).await?;
                    }
                    Ok(())
                })
            })
            .connect(url)
            .await
            .map_err(|source| StoreError::Open {
                url: backend::without_password(url),
                source,
            })?;
        Ok(Self {
            pool,
            backend,
            writer: Arc::default(),
        })
    }

    async fn schema(&self) -> Result<i64, StoreError> {
        let sql = self.backend.migrations_exist();
        self.read("schema version", move |tx| {
            Box::pin(async move {
                let exists: i64 = tx.one(sqlx::query(sql)).await?.get(0)?;
                if exists == 0 {
                    return Ok(0);
                }
                tx.one(sqlx::query(
                    "SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations WHERE success = TRUE",
                ))
                .await?
                .get(0)
            })
        })
        .await
    }

    /// Runs `body` in a write transaction and commits what it did if it returns `Ok`.
    ///
    /// `body` may run several times: where the database reports a lost race (busy, serialization
    /// failure, or a unique constraint that another transaction filled first) everything is
    /// rolled back and `body` starts over, at most [`ATTEMPTS`] times. It must therefore do
    /// nothing outside the transaction that may not happen twice. `name` is for messages.
    pub async fn transaction<'a, T, E, F>(&self, name: &'static str, body: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t mut Tx<'a>) -> TxFuture<'t, T, E>,
        E: From<StoreError>,
    {
        self.run(name, Mode::Write, body).await
    }

    /// Runs `body` in a transaction that only reads: what it sees is one state of the database.
    pub async fn read<'a, T, E, F>(&self, name: &'static str, body: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t mut Tx<'a>) -> TxFuture<'t, T, E>,
        E: From<StoreError>,
    {
        self.run(name, Mode::Read, body).await
    }

    async fn run<'a, T, E, F>(&self, name: &'static str, mode: Mode, body: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t mut Tx<'a>) -> TxFuture<'t, T, E>,
        E: From<StoreError>,
    {
        let failed = |source| StoreError::Query {
            during: name,
            source,
        };
        let mut attempt = 1;
        loop {
            let _turn = match mode {
                Mode::Write if self.backend.one_writer() => Some(self.writer.lock().await),
                Mode::Write | Mode::Read => None,
            };
            let begun = match self.pool.acquire().await {
                Ok(connection) => Tx::begin(connection, self.backend.begin(mode), name).await,
                Err(error) => Err(error),
            };
            let mut tx = match begun {
                Ok(tx) => tx,
                Err(error) if attempt < ATTEMPTS && lost_race(&error) => {
                    attempt += 1;
                    continue;
                }
                Err(error) => return Err(failed(error).into()),
            };
            match body(&mut tx).await {
                Ok(value) => match tx.end("COMMIT").await {
                    Ok(()) => return Ok(value),
                    Err(error) if attempt < ATTEMPTS && lost_race(&error) => attempt += 1,
                    Err(error) => return Err(failed(error).into()),
                },
                Err(error) => {
                    let again = tx.lost_race && attempt < ATTEMPTS;
                    if let Err(source) = tx.end("ROLLBACK").await {
                        tracing::warn!(transaction = name, error = %source, "rollback failed");
                    }
                    if !again {
                        return Err(error);
                    }
                    attempt += 1;
                }
            }
        }
    }

    /// The schema version that this program needs, for the database at `url`.
    pub fn needed(url: &str) -> Result<i64, StoreError> {
        Ok(Backend::of(url)?.needed())
    }

    /// The file of an SQLite database; `None` where the database is a server's.
    pub fn file(url: &str) -> Result<Option<PathBuf>, StoreError> {
        Ok(Backend::of(url)?.file(url))
    }

    /// Writes the database as it is at one instant to the file `to`, which is empty or not there,
    /// while others go on with it. For SQLite only; a server has its own tools for that.
    pub async fn copy_to(&self, to: &Path) -> Result<(), StoreError> {
        sqlx::query("VACUUM INTO $1")
            .bind(to.display().to_string())
            .execute(&self.pool)
            .await
            .map_err(|source| StoreError::Query {
                during: "copy database",
                source,
            })?;
        Ok(())
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.read("ping", |tx| {
            Box::pin(async move {
                tx.one(sqlx::query("SELECT 1")).await?;
                Ok(())
            })
        })
        .await
    }

    /// Closes every connection; SQLite then folds its log into the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A running transaction. `'a` is what its body borrows from outside.
///
/// A connection whose transaction did not end as it should, or was left in the middle, is closed,
/// which ends it for sure. SQLite ends a transaction by itself where the disk is full, for one; a
/// connection that is thought to be in it still would be good for nothing, for as long as it lives.
pub struct Tx<'a> {
    connection: PoolConnection<Any>,
    has_ended: bool,
    name: &'static str,
    lost_race: bool,
    captures: PhantomData<&'a ()>,
}

impl Drop for Tx<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.connection.close_on_drop();
        }
    }
}

impl Tx<'_> {
    async fn begin(
        connection: PoolConnection<Any>,
        how: &'static str,
        name: &'static str,
    ) -> Result<Self, sqlx::Error> {
        let mut tx = Self {
            connection,
            has_ended: false,
            name,
            lost_race: false,
            captures: PhantomData,
        };
        match sqlx::raw_sql(how).execute(&mut *tx.connection).await {
            Ok(_) => Ok(tx),
            Err(error) => {
                // Whoever has to wait for a lock has begun nothing.
                tx.has_ended = lost_race(&error);
                Err(error)
            }
        }
    }

    async fn end(mut self, how: &'static str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(how).execute(&mut *self.connection).await?;
        self.has_ended = true;
        Ok(())
    }

    /// Runs a statement and gives the number of rows it changed.
    pub(super) async fn execute(
        &mut self,
        query: Query<'_, Any, AnyArguments>,
    ) -> Result<u64, StoreError> {
        match query.execute(&mut *self.connection).await {
            Ok(done) => Ok(done.rows_affected()),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The first row, if there is one.
    pub(super) async fn optional(
        &mut self,
        query: Query<'_, Any, AnyArguments>,
    ) -> Result<Option<Record>, StoreError> {
        match query.fetch_optional(&mut *self.connection).await {
            Ok(row) => Ok(row.map(|row| Record {
                row,
                during: self.name,
            })),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The one row that such a query always has.
    pub(super) async fn one(
        &mut self,
        query: Query<'_, Any, AnyArguments>,
    ) -> Result<Record, StoreError> {
        let during = self.name;
        self.optional(query).await?.ok_or(StoreError::Query {
            during,
            source: sqlx::Error::RowNotFound,
        })
    }

    /// All rows.
    pub(super) async fn all(
        &mut self,
        query: Query<'_, Any, AnyArguments>,
    ) -> Result<Vec<Record>, StoreError> {
        match query.fetch_all(&mut *self.connection).await {
            Ok(rows) => Ok(rows
                .into_iter()
                .map(|row| Record {
                    row,
                    during: self.name,
                })
                .collect()),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&mut self, source: sqlx::Error) -> StoreError {
        self.lost_race |= lost_race(&source);
        StoreError::Query {
            during: self.name,
            source,
        }
    }
}

/// A row, read by position.
pub(super) struct Record {
    row: AnyRow,
    during: &'static str,
}

impl Record {
    /// The value in column `index`.
    pub(super) fn get<'r, T>(&'r self, index: usize) -> Result<T, StoreError>
    where
        T: Decode<'r, Any> + Type<Any>,
    {
        self.row.try_get(index).map_err(|source| StoreError::Query {
            during: self.during,
            source,
        })
    }

    /// The text in column `index`, parsed; `column` names it in the error.
    pub(super) fn parsed<T: std::str::FromStr>(
        &self,
        index: usize,
        column: &'static str,
    ) -> Result<T, StoreError> {
        let text: String = self.get(index)?;
        text.parse().map_err(|_| StoreError::Malformed { column })
    }

    /// The text in column `index`, parsed, where there is one.
    pub(super) fn optional_parsed<T: std::str::FromStr>(
        &self,
        index: usize,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        self.get::<Option<String>>(index)?
            .map(|text| text.parse().map_err(|_| StoreError::Malformed { column }))
            .transpose()
    }

    /// The time in column `index`.
    pub(super) fn time(&self, index: usize) -> Result<Timestamp, StoreError> {
        Timestamp::from_millisecond(self.get(index)?)
            .map_err(|_| StoreError::Malformed { column: "a time" })
    }

    /// The time in column `index`, where there is one.
    pub(super) fn optional_time(&self, index: usize) -> Result<Option<Timestamp>, StoreError> {
        self.get::<Option<i64>>(index)?
            .map(Timestamp::from_millisecond)
            .transpose()
            .map_err(|_| StoreError::Malformed { column: "a time" })
    }
}

/// A time as the database keeps it.
pub(super) fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

/// Whether another transaction got in the way, so that the same work may succeed when run again.
///
/// A filled unique constraint counts: each transaction looks before it inserts, so the second
/// run finds the other's row and answers with the error that belongs to it.
fn lost_race(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else {
        return false;
    };
    if error.is_unique_violation() {
        return true;
    }
    match error.code().as_deref() {
        // PostgreSQL: serialization_failure, deadlock_detected.
        Some("40001" | "40P01") => true,
        // SQLite: the low byte of an extended code is SQLITE_BUSY or SQLITE_LOCKED.
        Some(code) => code
            .parse::<i32>()
            .is_ok_and(|code| matches!(code & 0xff, 5 | 6)),
        None => false,
    }
}

/// Whether the same work may succeed later without anybody's doing anything to this program: the
/// database cannot be reached, is busy, or has no room.
fn may_pass(error: &sqlx::Error) -> bool {
    use sqlx::Error;
    let code = match error {
        Error::Io(_) | Error::PoolTimedOut | Error::WorkerCrashed => return true,
        Error::Database(error) => error.code(),
        _ => return false,
    };
    let Some(code) = code.as_deref() else {
        return false;
    };
    match code.parse::<i32>() {
        // SQLite: BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN.
        Ok(number) if code.len() < 5 => matches!(number & 0xff, 5 | 6 | 8 | 10 | 13 | 14),
        // PostgreSQL: connections (08), lost races (40), resources (53), object_not_in_use and
        // lock_not_available (55), operators' interventions (57), the system (58); and a server
        // that takes no connections to this database at the moment.
        _ => ["08", "40", "53", "55", "57", "58"]
            .iter()
            .any(|class| code.starts_with(class)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::account) struct Scratch {
        pub(in crate::account) store: Store,
        pub(in crate::account) url: String,
        _directory: tempfile::TempDir,
    }

    /// A migrated SQLite database in a directory of its own; the tests in `tests/account` run on
    /// PostgreSQL too.
    pub(in crate::account) async fn scratch() -> Scratch {
        let directory = tempfile::tempdir().unwrap();
        let url = Store::sqlite_url(&directory.path().join("account.db"));
        let (store, before, after) = Store::migrate(&url).await.unwrap();
        assert_eq!((before, after), (0, Backend::Sqlite.needed()));
        Scratch {
            store,
            url,
            _directory: directory,
        }
    }

    #[tokio::test]
    async fn opening_checks_the_schema_version() {
        let directory = tempfile::tempdir().unwrap();
        let url = Store::sqlite_url(&directory.path().join("a.db"));
        assert!(matches!(
            Store::open(&url).await,
            Err(StoreError::Open { .. })
        ));
        std::fs::write(directory.path().join("a.db"), b"").unwrap();
        assert!(matches!(
            Store::open(&url).await,
            Err(StoreError::Schema { found: 0, .. })
        ));
        Store::migrate(&url).await.unwrap();
        let (again, before, after) = Store::migrate(&url).await.unwrap();
        assert_eq!(before, after);
        again
            .transaction("test", |tx| {
                Box::pin(async move {
                    tx.execute(sqlx::query(
                        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                         VALUES (9999, 'later', TRUE, x'00', 0)",
                    ))
                    .await?;
                    Ok::<_, StoreError>(())
                })
            })
            .await
            .unwrap();
        assert!(matches!(
            Store::open(&url).await,
            Err(StoreError::Schema { found: 9999, .. })
        ));
        assert!(matches!(
            Store::open("mysql://x").await,
            Err(StoreError::Unsupported { .. })
        ));
    }

    #[tokio::test]
    async fn every_connection_is_durable_and_checks_references() {
        let scratch = scratch().await;
        for (pragma, expected) in [
            ("SELECT journal_mode FROM pragma_journal_mode", "wal"),
            (
                "SELECT CAST(synchronous AS TEXT) FROM pragma_synchronous",
                "2",
            ),
            (
                "SELECT CAST(foreign_keys AS TEXT) FROM pragma_foreign_keys",
                "1",
            ),
            (
                "SELECT CAST(timeout AS TEXT) FROM pragma_busy_timeout",
                "5000",
            ),
        ] {
            let found: String = scratch
                .store
                .read("test", move |tx| {
                    Box::pin(async move { tx.one(sqlx::query(pragma)).await?.get(0) })
                })
                .await
                .unwrap_or_else(|error: StoreError| panic!("{pragma}: {error:?}"));
            assert_eq!(found, expected, "{pragma}");
        }
    }

    #[tokio::test]
    async fn an_error_rolls_everything_back() {
        let scratch = scratch().await;
        let result: Result<(), StoreError> = scratch
            .store
            .transaction("test", |tx| {
                Box::pin(async move {
                    tx.execute(sqlx::query(
                        "INSERT INTO accounts (id, name, created_at) VALUES ('a', 'A', 1)",
                    ))
                    .await?;
                    Err(StoreError::Malformed { column: "test" })
                })
            })
            .await;
        assert!(result.is_err());
        let left: i64 = scratch
            .store
            .read("test", |tx| {
                Box::pin(async move {
                    tx.one(sqlx::query("SELECT COUNT(*) FROM accounts"))
                        .await?
                        .get::<i64>(0)
                })
            })
            .await
            .unwrap_or_else(|error: StoreError| panic!("{error:?}"));
        assert_eq!(left, 0);
    }

    #[tokio::test]
    async fn a_full_disk_leaves_no_connection_that_is_good_for_nothing() {
        let scratch = scratch().await;
        let add = |id: &'static str, is_full: bool| {
            scratch.store.transaction("test", move |tx| {
                Box::pin(async move {
                    if is_full {
                        // As a full disk does: SQLite answers SQLITE_FULL and ends the transaction.
                        tx.one(sqlx::query("PRAGMA max_page_count = 1")).await?;
                    }
                    let long = "x".repeat(1 << 20);
                    let insert = "INSERT INTO accounts (id, name, created_at) VALUES ($1, $2, 1)";
                    tx.execute(sqlx::query(insert).bind(id).bind(long)).await?;
                    Ok::<_, StoreError>(())
                })
            })
        };
        for _ in 0..2 * CONNECTIONS {
            let refused = add("a", true).await.unwrap_err();
            assert!(refused.may_pass(), "{refused:?}");
        }
        for id in ["b", "c", "d"] {
            add(id, false).await.unwrap();
        }
    }

    #[tokio::test]
    async fn two_processes_never_lose_an_update() {
        let scratch = scratch().await;
        let other = Store::open(&scratch.url).await.unwrap();
        scratch
            .store
            .transaction("test", |tx| {
                Box::pin(async move {
                    tx.execute(sqlx::query(
                        "INSERT INTO accounts (id, name, created_at) VALUES ('a', 'A', 1)",
                    ))
                    .await
                })
            })
            .await
            .unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for index in 0..20 {
            let store = if index % 2 == 0 {
                scratch.store.clone()
            } else {
                other.clone()
            };
            tasks.spawn(async move {
                store
                    .transaction("test", |tx| {
                        Box::pin(async move {
                            let issued: i64 = tx
                                .one(sqlx::query("SELECT issued FROM accounts WHERE id = 'a'"))
                                .await?
                                .get(0)?;
                            tx.execute(
                                sqlx::query("UPDATE accounts SET issued = $1 WHERE id = 'a'")
                                    .bind(issued + 1),
                            )
                            .await
                        })
                    })
                    .await
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap().unwrap();
        }
        let issued: i64 = scratch
            .store
            .read("test", |tx| {
                Box::pin(async move {
                    tx.one(sqlx::query("SELECT issued FROM accounts"))
                        .await?
                        .get::<i64>(0)
                })
            })
            .await
            .unwrap_or_else(|error: StoreError| panic!("{error:?}"));
        assert_eq!(issued, 20);
    }
}
