//! The ledger in memory.

mod journal;
mod tombstones;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::Clock;
use crate::model::{
    ArtifactName, ArtifactStatus, ClaimId, CopyLease, CopyPriority, CopyTask, Digest, Epoch, FiguresCounter,
    FiguresRequest, NewArtifact, PinHolder, RegionName, ReplicationFigures, Timestamp, Tombstone,
};
use crate::port::ledger::transition::{self, CopyRow};
use crate::port::ledger::{
    ClaimRequest, CopyJournal, CopyRetry, Error, JournaledUpload, LedgerCursor, LedgerFilter, LedgerPage, Registered,
    Tombstones, bounds,
};
use crate::port::{BackendError, ReplicationLedger};

/// The reference [`ReplicationLedger`]: one lock, no index, every call a walk over the artifacts. It forgets everything when it is
/// dropped.
///
/// It is deterministic: what it answers depends on the calls, their order and the clock. A call never suspends.
#[derive(Debug)]
pub struct Ledger {
    clock: Clock,
    capacity: usize,
    artifacts: Mutex<Artifacts>,
}

#[derive(Debug, Default)]
struct Artifacts {
    entries: BTreeMap<ArtifactName, Entry>,
    /// Of digests that are marked, or whose bytes are being deleted.
    tombstones: BTreeMap<Digest, Tombstone>,
}

#[derive(Debug, Clone)]
struct Entry {
    registered: NewArtifact,
    registered_at: Timestamp,
    copies: BTreeMap<RegionName, CopyRow>,
    uploads: BTreeMap<RegionName, JournaledUpload>,
    pins: BTreeSet<PinHolder>,
    last_pinned_at: Option<Timestamp>,
    /// Once its bytes are deleted.
    tombstone: Option<Tombstone>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new(Clock::default())
    }
}

impl Ledger {
    /// How many artifacts a ledger holds by default.
    pub const DEFAULT_CAPACITY: usize = 1_000_000;

    /// An empty ledger.
    pub fn new(clock: Clock) -> Self {
        Self { clock, capacity: Self::DEFAULT_CAPACITY, artifacts: Mutex::default() }
    }

    /// Sets how many artifacts it holds; a further registration fails.
    #[must_use]
    pub fn with_capacity(mut self, artifacts: usize) -> Self {
        self.capacity = artifacts;
        self
    }

    /// Everything, for a simulation that checks invariants.
    pub fn snapshot(&self) -> BTreeMap<ArtifactName, ArtifactStatus> {
        let (artifacts, _) = self.locked();
        artifacts.entries.iter().map(|(name, entry)| (name.clone(), artifacts.status(entry))).collect()
    }

    /// The artifacts and the instant of the call. No call panics while it holds the lock, so a poisoned one is sound.
    fn locked(&self) -> (MutexGuard<'_, Artifacts>, Timestamp) {
        (self.artifacts.lock().unwrap_or_else(PoisonError::into_inner), self.clock.now())
    }

    /// Changes one copy at one instant.
    fn with_copy<T>(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        change: impl FnOnce(&mut CopyRow, u64, Timestamp) -> T,
    ) -> Result<T, Error> {
        let (mut artifacts, now) = self.locked();
        let not_found = || Error::NotFound { artifact: artifact.clone() };
        let entry = artifacts.entries.get_mut(artifact).ok_or_else(not_found)?;
        let copy = entry.copies.get_mut(region).ok_or_else(not_found)?;
        Ok(change(copy, entry.registered.artifact.size, now))
    }
}

#[async_trait]
impl ReplicationLedger for Ledger {
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, Error> {
        bounds::check_register(artifact)?;
        let name = &artifact.artifact.name;
        let (mut artifacts, now) = self.locked();
        if let Some(entry) = artifacts.entries.get(name) {
            let same = entry.registered == *artifact;
            return if same { Ok(Registered::Repeated) } else { Err(Error::Conflict { artifact: name.clone() }) };
        }
        if artifacts.entries.len() >= self.capacity {
            return Err(BackendError::permanent("memory", format!("no more than {} artifacts", self.capacity)).into());
        }
        artifacts.make_way(artifact)?;
        let copies =
            artifact.required.iter().map(|region| (region.clone(), transition::register(artifact.priority, now)));
        let entry = Entry {
            registered: artifact.clone(),
            registered_at: now,
            copies: copies.collect(),
            uploads: BTreeMap::new(),
            pins: BTreeSet::new(),
            last_pinned_at: None,
            tombstone: None,
        };
        artifacts.entries.insert(name.clone(), entry);
        Ok(Registered::Created)
    }

    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, Error> {
        bounds::check_names(names.len())?;
        let (artifacts, _) = self.locked();
        Ok(names.iter().filter(|name| !artifacts.entries.contains_key(*name)).cloned().collect())
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, Error> {
        bounds::check_claim(request)?;
        let (mut artifacts, now) = self.locked();
        let mut entries: Vec<_> =
            artifacts.entries.values_mut().filter(|entry| entry.copies.contains_key(&request.region)).collect();
        entries.sort_by_key(|entry| {
            let priority = entry.copies[&request.region].status.priority;
            (Reverse(priority), entry.registered_at, entry.registered.artifact.name.clone())
        });
        if entries.iter().any(|entry| entry.copies[&request.region].claim == Some(request.claim)) {
            let held = entries.iter().filter(|entry| entry.is_held(request, now));
            return Ok(held.filter_map(|entry| entry.task(&request.region, request.claim)).collect());
        }
        let tasks = entries.into_iter().filter_map(|entry| {
            let copy = entry.copies.get_mut(&request.region)?;
            if !transition::is_claimable(copy, request, now) {
                return None;
            }
            transition::claim(copy, request, now);
            entry.task(&request.region, request.claim)
        });
        Ok(tasks.take(request.limit).collect())
    }

    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<CopyPriority, Error> {
        bounds::check_lease(extend)?;
        self.with_copy(&lease.artifact, &lease.region, |copy, size, now| {
            transition::progress(copy, lease, bytes, size, extend, now)
        })?
    }

    async fn complete(&self, lease: &CopyLease) -> Result<(), Error> {
        let (mut artifacts, now) = self.locked();
        let not_found = || Error::NotFound { artifact: lease.artifact.clone() };
        let entry = artifacts.entries.get_mut(&lease.artifact).ok_or_else(not_found)?;
        let copy = entry.copies.get_mut(&lease.region).ok_or_else(not_found)?;
        transition::complete(copy, lease, entry.registered.artifact.size, now)?;
        entry.uploads.remove(&lease.region);
        Ok(())
    }

    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), Error> {
        self.with_copy(&lease.artifact, &lease.region, |copy, _, now| {
            transition::fail(copy, lease, reason, retry, now)
        })?
    }

    async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<usize, Error> {
        let (mut artifacts, _) = self.locked();
        let entry =
            artifacts.entries.get_mut(artifact).ok_or_else(|| Error::NotFound { artifact: artifact.clone() })?;
        Ok(entry.copies.values_mut().map(|copy| usize::from(transition::prioritize(copy, priority))).sum())
    }

    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: Epoch,
        reason: &str,
    ) -> Result<bool, Error> {
        let (mut artifacts, now) = self.locked();
        let not_found = || Error::NotFound { artifact: artifact.clone() };
        let is_collected = artifacts.tombstone(artifacts.entries.get(artifact).ok_or_else(not_found)?).is_some();
        let entry = artifacts.entries.get_mut(artifact).ok_or_else(not_found)?;
        let copy = entry.copies.get_mut(region).ok_or_else(not_found)?;
        Ok(!is_collected && transition::reopen(copy, seen, reason, now))
    }

    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, Error> {
        let (artifacts, _) = self.locked();
        Ok(artifacts.entries.get(artifact).map(|entry| artifacts.status(entry)))
    }

    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, Error> {
        bounds::check_page(limit)?;
        let (artifacts, _) = self.locked();
        let is_past =
            |entry: &Entry| after.is_none_or(|cursor| entry.place() < (cursor.registered_at, &cursor.artifact));
        let mut page: Vec<_> =
            artifacts.entries.values().filter(|entry| is_past(entry) && entry.passes(filter)).collect();
        page.sort_by_key(|entry| Reverse(entry.place()));
        let more = page.len() > limit;
        page.truncate(limit);
        let last = page.last().filter(|_| more);
        let next = last.map(|entry| LedgerCursor {
            registered_at: entry.registered_at,
            artifact: entry.registered.artifact.name.clone(),
        });
        Ok(LedgerPage { artifacts: page.into_iter().map(|entry| artifacts.status(entry)).collect(), next })
    }

    async fn figures(&self, request: &FiguresRequest) -> Result<BTreeMap<RegionName, ReplicationFigures>, Error> {
        let (artifacts, now) = self.locked();
        let mut regions: BTreeMap<RegionName, FiguresCounter> = BTreeMap::new();
        for entry in artifacts.entries.values() {
            for (region, copy) in &entry.copies {
                let counter = regions.entry(region.clone()).or_insert_with(|| FiguresCounter::new(*request, now));
                counter.add(&copy.status, entry.registered.artifact.size);
            }
        }
        Ok(regions.into_iter().filter_map(|(region, counter)| Some((region, counter.figures()?))).collect())
    }

    async fn pin(
        &self,
        artifact: &ArtifactName,
        holder: &PinHolder,
        waived: &BTreeSet<RegionName>,
    ) -> Result<(), Error> {
        let (mut artifacts, now) = self.locked();
        let not_found = || Error::NotFound { artifact: artifact.clone() };
        transition::gate(&artifacts.status(artifacts.entries.get(artifact).ok_or_else(not_found)?), waived)?;
        let entry = artifacts.entries.get_mut(artifact).ok_or_else(not_found)?;
        entry.last_pinned_at = Some(now);
        entry.pins.insert(holder.clone());
        Ok(())
    }

    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), Error> {
        let (mut artifacts, _) = self.locked();
        if let Some(entry) = artifacts.entries.get_mut(artifact) {
            entry.pins.remove(holder);
        }
        Ok(())
    }

    fn journal(&self) -> Option<&dyn CopyJournal> {
        Some(self)
    }

    fn tombstones(&self) -> Option<&dyn Tombstones> {
        Some(self)
    }
}

impl Artifacts {
    fn status(&self, entry: &Entry) -> ArtifactStatus {
        ArtifactStatus {
            registered: entry.registered.clone(),
            registered_at: entry.registered_at,
            copies: entry.copies.iter().map(|(region, copy)| (region.clone(), copy.status.clone())).collect(),
            pins: entry.pins.clone(),
            last_pinned_at: entry.last_pinned_at,
            tombstone: self.tombstone(entry).cloned(),
        }
    }

    fn tombstone<'a>(&'a self, entry: &'a Entry) -> Option<&'a Tombstone> {
        entry.tombstone.as_ref().or_else(|| self.tombstones.get(&entry.registered.artifact.digest))
    }
}

impl Entry {
    /// Its place among all.
    fn place(&self) -> (Timestamp, &ArtifactName) {
        (self.registered_at, &self.registered.artifact.name)
    }

    fn passes(&self, filter: &LedgerFilter) -> bool {
        filter.service.as_ref().is_none_or(|service| self.registered.service == *service)
            && filter
                .copy
                .as_ref()
                .is_none_or(|(region, state)| self.copies.get(region).is_some_and(|copy| copy.status.state == *state))
            && filter.pinned_by.as_ref().is_none_or(|holder| self.pins.contains(holder))
    }

    fn is_held(&self, request: &ClaimRequest, now: Timestamp) -> bool {
        let copy = self.copies.get(&request.region);
        copy.is_some_and(|copy| copy.claim == Some(request.claim) && transition::is_leased(copy, now))
    }

    fn task(&self, region: &RegionName, claim: ClaimId) -> Option<CopyTask> {
        let copy = self.copies.get(region)?;
        let artifact = self.registered.artifact.clone();
        let lease =
            CopyLease { artifact: artifact.name.clone(), region: region.clone(), claim, epoch: copy.status.epoch };
        Some(CopyTask { lease, artifact, attempt: copy.status.attempts, priority: copy.status.priority })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ArtifactRef, Digest, JobId};

    #[tokio::test(start_paused = true)]
    async fn a_full_ledger_says_so_and_still_knows_what_it_has() {
        let ledger = Ledger::default().with_capacity(1);
        let artifact = |name: &str| NewArtifact {
            artifact: ArtifactRef { name: name.parse().unwrap(), digest: Digest::of(b"x"), size: 1 },
            service: "web".parse().unwrap(),
            job: JobId::new(),
            required: ["eu".parse().unwrap()].into(),
            priority: CopyPriority::Normal,
        };
        let (a, b) = (artifact("a"), artifact("b"));
        assert_eq!(ledger.register(&a).await.unwrap(), Registered::Created);
        assert!(!ledger.register(&b).await.unwrap_err().is_retryable());
        assert_eq!(ledger.register(&a).await.unwrap(), Registered::Repeated);
        assert_eq!(ledger.snapshot().into_keys().collect::<Vec<_>>(), [a.artifact.name]);
    }
}
