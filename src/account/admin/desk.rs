//! What commands work with: the database beside a running service, and the trail of
//! administration.
//!
//! A change is one transaction whose record is durable before it commits, in the service's own
//! order: see [`crate::account::records`]. What concerns an account is for its administrators to
//! read, too.

use serde_json::Value;

use super::AdminError;
use crate::account::config::Config;
use crate::account::records::Records;
use crate::account::store::{Store, Tx, TxFuture};
use crate::audit::Audit;
use crate::base::Clock;
use crate::base::ids::{AccountId, RequestId};

/// Where the trail of administration is, below the state directory.
pub(super) const TRAIL: &str = "admin-audit";

/// Database, clock and trail of one command; cloning shares them.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) records: Records,
    /// Stands for the command in its records.
    pub(super) request: RequestId,
    audit: Audit,
}

impl Desk {
    pub(super) async fn open(config: &Config) -> Result<Self, AdminError> {
        Self::beside(Store::open(&config.database()?).await?, config)
    }

    /// With a database that is open already.
    pub(super) fn beside(store: Store, config: &Config) -> Result<Self, AdminError> {
        let clock = Clock::system();
        let directory = config.state_directory.join(TRAIL);
        let (audit, _) = Audit::open(&directory, config.audit.clone(), clock.clone())?;
        let uid = rustix::process::getuid().as_raw();
        Ok(Self {
            store,
            records: Records::of_user(audit.clone(), clock.clone(), uid),
            clock,
            request: RequestId::random(),
            audit,
        })
    }

    /// Puts on record what concerns an account.
    pub(super) async fn note(
        &self,
        tx: &mut Tx<'_>,
        account: &AccountId,
        kind: &'static str,
        body: Value,
    ) -> Result<(), AdminError> {
        self.records
            .note(tx, account, kind, &self.request, body)
            .await
    }

    /// Puts on record what concerns no account.
    pub(super) async fn write(&self, kind: &'static str, body: Value) -> Result<(), AdminError> {
        Ok(self.records.write(kind, &self.request, &body).await?)
    }

    /// Closes trail and database.
    pub(super) async fn close(&self) -> Result<(), AdminError> {
        self.audit.close().await?;
        self.store.close().await;
        Ok(())
    }
}

/// One change: `body` in a transaction, with what it needs; then everything is closed.
pub(super) async fn change<'a, T, F>(
    config: &Config,
    name: &'static str,
    body: F,
) -> Result<T, AdminError>
where
    F: for<'t> Fn(&'t mut Tx<'a>, Desk) -> TxFuture<'t, T, AdminError>,
{
    let desk = Desk::open(config).await?;
    let changed = desk
        .store
        .transaction(name, |tx| body(tx, desk.clone()))
        .await;
    let closed = desk.close().await;
    let changed = changed?;
    closed?;
    Ok(changed)
}

/// One look: `body` in a transaction that only reads.
pub(super) async fn look<'a, T, F>(
    config: &Config,
    name: &'static str,
    body: F,
) -> Result<T, AdminError>
where
    F: for<'t> Fn(&'t mut Tx<'a>) -> TxFuture<'t, T, AdminError>,
{
    let store = Store::open(&config.database()?).await?;
    let seen = store.read(name, body).await;
    store.close().await;
    seen
}
