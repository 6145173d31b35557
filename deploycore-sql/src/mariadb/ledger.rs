//! The ledger: each call is one short transaction, and what follows from it is decided by [`deploycore::port::ledger::transition`].

mod claim;
mod figures;
mod journal;
mod read;
mod row;
mod tombstones;

#[cfg(test)]
pub(super) use self::{
    claim::CLAIMABLE,
    figures::{COMPLETED, UNFINISHED},
    read::{ALL, BY_COPY, BY_SERVICE},
};

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{
    ArtifactName, ArtifactStatus, CopyLease, CopyPriority, CopyState, CopyTask, Epoch, FiguresRequest, NewArtifact,
    PinHolder, RegionName, ReplicationFigures, Timestamp,
};
use deploycore::port::ReplicationLedger;
use deploycore::port::ledger::transition::{self, CopyRow};
use deploycore::port::ledger::{
    ClaimRequest, CopyJournal, CopyRetry, Error, LedgerCursor, LedgerFilter, LedgerPage, Registered, Tombstones, bounds,
};
use sqlx::mysql::MySqlConnection;

use super::database::{self, Database, NAME, failed};

/// The ledger in a MariaDB or MySQL database.
#[derive(Debug, Clone)]
pub struct Ledger {
    database: Database,
}

impl Ledger {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Changes the copy that a lease is for.
    async fn under<T: Send>(
        &self,
        lease: &CopyLease,
        change: impl Fn(&mut Found, Timestamp) -> Result<T, Error> + Send + Sync,
    ) -> Result<T, Error> {
        let call = || async {
            let mut moment = self.database.begin().await?;
            let changed = change_one(moment.connection(), &lease.artifact, &lease.region, &change).await;
            moment.end(changed).await
        };
        self.database.call(call).await.inspect_err(count_refusal)
    }

    async fn claim_some(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, Error> {
        let mut moment = self.database.begin().await?;
        let taken = claim::claim(moment.connection(), request).await;
        let taken = moment.end(taken).await?;
        if taken.is_new {
            count("deploycore_ledger_claims_total", taken.tasks.len());
            // Copies that end an expired lease are leases lost.
            count("deploycore_ledger_leases_lost_total", taken.expired);
        }
        Ok(taken.tasks)
    }

    async fn list_some(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, Error> {
        let mut moment = self.database.begin_reading().await?;
        let page = read::list(moment.connection(), filter, after, limit).await;
        Ok(moment.end(page).await?)
    }
}

/// A copy, and the size of its artifact.
#[derive(Debug, Clone)]
struct Found {
    copy: CopyRow,
    size: u64,
}

async fn change_one<T>(
    connection: &mut MySqlConnection,
    artifact: &ArtifactName,
    region: &RegionName,
    change: impl Fn(&mut Found, Timestamp) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let before = row::lock(connection, artifact, region).await?;
    let before = before.ok_or_else(|| Error::NotFound { artifact: artifact.clone() })?;
    let now = database::now(connection).await?;
    let mut after = before.clone();
    let changed = change(&mut after, now)?;
    if after.copy != before.copy {
        row::update(connection, region, &[(artifact, &before.copy, &after.copy)]).await?;
        // The upload of a copy that became complete is history.
        if after.copy.status.state == CopyState::Complete {
            journal::clear(connection, artifact, region).await?;
        }
    }
    Ok(changed)
}

/// Leaves a copy of an artifact with a tombstone as it is. Whoever sets one waits for the lock of the copy.
async fn reopen_one(
    connection: &mut MySqlConnection,
    artifact: &ArtifactName,
    region: &RegionName,
    change: impl Fn(&mut Found, Timestamp) -> Result<bool, Error> + Send,
) -> Result<bool, Error> {
    row::lock(connection, artifact, region).await?.ok_or_else(|| Error::NotFound { artifact: artifact.clone() })?;
    if tombstones::is_collected(connection, artifact).await? {
        return Ok(false);
    }
    change_one(connection, artifact, region, change).await
}

#[async_trait]
impl ReplicationLedger for Ledger {
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, Error> {
        bounds::check_register(artifact)?;
        if i64::try_from(artifact.artifact.size).is_err() {
            return Err(Error::Invalid(format!("an artifact of {} bytes", artifact.artifact.size)));
        }
        let register = || async {
            let mut moment = self.database.begin().await?;
            let registered = row::register(moment.connection(), artifact).await;
            moment.end(registered).await
        };
        self.database.call(register).await
    }

    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, Error> {
        bounds::check_names(names.len())?;
        let unregistered = || async {
            let mut borrowed = self.database.borrow().await?;
            let unknown = read::unregistered(borrowed.connection(), names).await?;
            borrowed.give_back();
            Ok(unknown)
        };
        self.database.call(unregistered).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, Error> {
        bounds::check_claim(request)?;
        self.database.call(|| self.claim_some(request)).await
    }

    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<CopyPriority, Error> {
        bounds::check_lease(extend)?;
        let change =
            |found: &mut Found, now| transition::progress(&mut found.copy, lease, bytes, found.size, extend, now);
        self.under(lease, change).await
    }

    async fn complete(&self, lease: &CopyLease) -> Result<(), Error> {
        let change = |found: &mut Found, now| transition::complete(&mut found.copy, lease, found.size, now);
        self.under(lease, change).await
    }

    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), Error> {
        let change = |found: &mut Found, now| transition::fail(&mut found.copy, lease, reason, retry, now);
        self.under(lease, change).await
    }

    async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<usize, Error> {
        let prioritize = || async {
            let mut moment = self.database.begin().await?;
            let raised = row::prioritize(moment.connection(), artifact, priority).await;
            moment.end(raised).await
        };
        self.database.call(prioritize).await
    }

    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: Epoch,
        reason: &str,
    ) -> Result<bool, Error> {
        let change = |found: &mut Found, now| Ok(transition::reopen(&mut found.copy, seen, reason, now));
        let reopen = || async {
            let mut moment = self.database.begin().await?;
            let reopened = reopen_one(moment.connection(), artifact, region, &change).await;
            moment.end(reopened).await
        };
        self.database.call(reopen).await
    }

    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, Error> {
        let status = || async {
            let mut moment = self.database.begin_reading().await?;
            let status = read::status(moment.connection(), artifact).await;
            Ok(moment.end(status).await?)
        };
        self.database.call(status).await
    }

    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, Error> {
        bounds::check_page(limit)?;
        self.database.call(|| self.list_some(filter, after, limit)).await
    }

    async fn figures(&self, request: &FiguresRequest) -> Result<BTreeMap<RegionName, ReplicationFigures>, Error> {
        let figures = || async {
            let mut moment = self.database.begin_reading().await?;
            let figures = figures::figures(moment.connection(), request).await;
            Ok(moment.end(figures).await?)
        };
        self.database.call(figures).await
    }

    async fn pin(
        &self,
        artifact: &ArtifactName,
        holder: &PinHolder,
        waived: &BTreeSet<RegionName>,
    ) -> Result<(), Error> {
        let pin = || async {
            let mut moment = self.database.begin().await?;
            let pinned = row::pin(moment.connection(), artifact, holder, waived).await;
            moment.end(pinned).await
        };
        self.database.call(pin).await
    }

    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), Error> {
        const UNPIN: &str = "DELETE FROM deploycore_pins WHERE artifact = ? AND holder = ?";
        let unpin = || async {
            let mut borrowed = self.database.borrow().await?;
            let unpin = sqlx::query(UNPIN).bind(artifact.as_str()).bind(holder.as_str());
            unpin.execute(borrowed.connection()).await.map_err(failed)?;
            borrowed.give_back();
            Ok(())
        };
        self.database.call(unpin).await
    }

    fn journal(&self) -> Option<&dyn CopyJournal> {
        Some(self)
    }

    fn tombstones(&self) -> Option<&dyn Tombstones> {
        Some(self)
    }
}

fn count_refusal(error: &Error) {
    if matches!(error, Error::LeaseLost { .. }) {
        count("deploycore_ledger_zombies_refused_total", 1);
    }
}

fn count(name: &'static str, n: usize) {
    if n > 0 {
        metrics::counter!(name, "backend" => NAME).increment(n as u64);
    }
}
