//! The ledger: each call is one transaction, and what follows from it is decided by [`deploycore::port::ledger::transition`].

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
    PinHolder, RegionName, ReplicationFigures,
};
use deploycore::port::ReplicationLedger;
use deploycore::port::ledger::transition::{self, CopyRow};
use deploycore::port::ledger::{
    ClaimRequest, CopyJournal, CopyRetry, Error, LedgerCursor, LedgerFilter, LedgerPage, Registered, Tombstones, bounds,
};

use super::database::{Database, Moment, NAME, failed};
use crate::stored;

/// The ledger in an SQLite file.
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
        change: impl FnOnce(&mut Found, &Moment) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        let mut moment = self.database.write().await?;
        let before = require(&mut moment, &lease.artifact, &lease.region).await?;
        let mut after = before.clone();
        let changed = change(&mut after, &moment).inspect_err(count_refusal)?;
        row::update(moment.connection(), &lease.artifact, &lease.region, &before.copy, &after.copy).await?;
        if is_completed(&before.copy, &after.copy) {
            journal::clear(&mut moment, lease).await?;
        }
        moment.commit().await?;
        Ok(changed)
    }
}

/// Whether a change makes the copy complete: its upload is history then.
fn is_completed(before: &CopyRow, after: &CopyRow) -> bool {
    after.status.state == CopyState::Complete && before.status.state != CopyState::Complete
}

/// A copy, and the size of its artifact.
#[derive(Debug, Clone)]
struct Found {
    copy: CopyRow,
    size: u64,
}

#[async_trait]
impl ReplicationLedger for Ledger {
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, Error> {
        bounds::check_register(artifact)?;
        if i64::try_from(artifact.artifact.size).is_err() {
            return Err(Error::Invalid(format!("an artifact of {} bytes", artifact.artifact.size)));
        }
        let mut moment = self.database.write().await?;
        let registered = row::register(&mut moment, artifact).await?;
        moment.commit().await?;
        Ok(registered)
    }

    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, Error> {
        bounds::check_names(names.len())?;
        let mut moment = self.database.read().await?;
        Ok(read::unregistered(moment.connection(), names).await?)
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, Error> {
        bounds::check_claim(request)?;
        let mut moment = self.database.write().await?;
        let tasks = claim::claim(&mut moment, request).await?;
        moment.commit().await?;
        Ok(tasks)
    }

    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<CopyPriority, Error> {
        bounds::check_lease(extend)?;
        let change = |found: &mut Found, moment: &Moment| {
            transition::progress(&mut found.copy, lease, bytes, found.size, extend, moment.now)
        };
        self.under(lease, change).await
    }

    async fn complete(&self, lease: &CopyLease) -> Result<(), Error> {
        let change =
            |found: &mut Found, moment: &Moment| transition::complete(&mut found.copy, lease, found.size, moment.now);
        self.under(lease, change).await
    }

    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), Error> {
        let change =
            |found: &mut Found, moment: &Moment| transition::fail(&mut found.copy, lease, reason, retry, moment.now);
        self.under(lease, change).await
    }

    async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<usize, Error> {
        const PRIORITIZE: &str = "UPDATE copies SET precedence = ?2 WHERE artifact = ?1 AND precedence > ?2";
        let mut moment = self.database.write().await?;
        if read::status(moment.connection(), artifact).await?.is_none() {
            return Err(Error::NotFound { artifact: artifact.clone() });
        }
        let prioritize = sqlx::query(PRIORITIZE).bind(artifact.as_str()).bind(priority.precedence());
        let raised = prioritize.execute(moment.connection()).await.map_err(failed)?.rows_affected();
        moment.commit().await?;
        Ok(raised as usize)
    }

    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: Epoch,
        reason: &str,
    ) -> Result<bool, Error> {
        let mut moment = self.database.write().await?;
        let before = require(&mut moment, artifact, region).await?.copy;
        let mut after = before.clone();
        let is_collected = tombstones::is_collected(&mut moment, artifact).await?;
        let is_reopened = !is_collected && transition::reopen(&mut after, seen, reason, moment.now);
        if is_reopened {
            row::update(moment.connection(), artifact, region, &before, &after).await?;
            moment.commit().await?;
        }
        Ok(is_reopened)
    }

    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, Error> {
        let mut moment = self.database.read().await?;
        Ok(read::status(moment.connection(), artifact).await?)
    }

    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, Error> {
        bounds::check_page(limit)?;
        let mut moment = self.database.read().await?;
        Ok(read::list(moment.connection(), filter, after, limit).await?)
    }

    async fn figures(&self, request: &FiguresRequest) -> Result<BTreeMap<RegionName, ReplicationFigures>, Error> {
        let mut moment = self.database.read().await?;
        let now = moment.now;
        Ok(figures::figures(moment.connection(), request, now).await?)
    }

    async fn pin(
        &self,
        artifact: &ArtifactName,
        holder: &PinHolder,
        waived: &BTreeSet<RegionName>,
    ) -> Result<(), Error> {
        const PIN: &str = "INSERT INTO pins (artifact, holder) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        const NEEDED: &str = "UPDATE artifacts SET last_pinned_at = ?2 WHERE name = ?1";
        let mut moment = self.database.write().await?;
        let status = read::status(moment.connection(), artifact).await?;
        let status = status.ok_or_else(|| Error::NotFound { artifact: artifact.clone() })?;
        transition::gate(&status, waived)?;
        let pin = sqlx::query(PIN).bind(artifact.as_str()).bind(holder.as_str());
        pin.execute(moment.connection()).await.map_err(failed)?;
        let needed = sqlx::query(NEEDED).bind(artifact.as_str()).bind(stored::micros(moment.now));
        needed.execute(moment.connection()).await.map_err(failed)?;
        Ok(moment.commit().await?)
    }

    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), Error> {
        const UNPIN: &str = "DELETE FROM pins WHERE artifact = ?1 AND holder = ?2";
        let mut moment = self.database.write().await?;
        let unpin = sqlx::query(UNPIN).bind(artifact.as_str()).bind(holder.as_str());
        unpin.execute(moment.connection()).await.map_err(failed)?;
        Ok(moment.commit().await?)
    }

    fn journal(&self) -> Option<&dyn CopyJournal> {
        Some(self)
    }

    fn tombstones(&self) -> Option<&dyn Tombstones> {
        Some(self)
    }
}

async fn require(moment: &mut Moment, artifact: &ArtifactName, region: &RegionName) -> Result<Found, Error> {
    let found = row::find(moment.connection(), artifact, region).await?;
    found.ok_or_else(|| Error::NotFound { artifact: artifact.clone() })
}

fn count_refusal(error: &Error) {
    if matches!(error, Error::LeaseLost { .. }) {
        metrics::counter!("deploycore_ledger_zombies_refused_total", "backend" => NAME).increment(1);
    }
}

fn count_taken(tasks: &[CopyTask]) {
    if !tasks.is_empty() {
        metrics::counter!("deploycore_ledger_claims_total", "backend" => NAME).increment(tasks.len() as u64);
    }
}

/// Copies that end an expired lease are leases lost.
fn count_expired(copies: usize) {
    if copies > 0 {
        metrics::counter!("deploycore_ledger_leases_lost_total", "backend" => NAME).increment(copies as u64);
    }
}

fn names_json<'a>(names: impl Iterator<Item = &'a ArtifactName>) -> String {
    stored::json(&names.collect::<Vec<_>>())
}
