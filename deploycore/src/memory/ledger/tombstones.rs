//! Tombstones in memory.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;

use super::{Artifacts, Ledger};
use crate::model::{
    ArtifactStatus, Digest, DigestTombstone, NewArtifact, Timestamp, Tombstone, TombstoneStage, elapsed,
};
use crate::port::ledger::Error;
use crate::port::ledger::tombstones::{self, Idle, Tombstones};

impl Artifacts {
    /// Lifts the mark of a digest that a new artifact has.
    pub(super) fn make_way(&mut self, artifact: &NewArtifact) -> Result<(), Error> {
        let (artifact, digest) = (artifact.artifact.name.clone(), artifact.artifact.digest);
        match self.tombstones.get(&digest) {
            Some(Tombstone { stage: TombstoneStage::Marked, .. }) => drop(self.tombstones.remove(&digest)),
            Some(_) => return Err(Error::BeingDeleted { artifact, digest }),
            None => {}
        }
        Ok(())
    }

    fn may_collect(&self, digest: &Digest, idle: Idle, now: Timestamp) -> Result<(), Error> {
        let entries = self.entries.values().filter(|entry| entry.registered.artifact.digest == *digest);
        let statuses: Vec<ArtifactStatus> =
            entries.filter(|entry| entry.tombstone.is_none()).map(|entry| self.status(entry)).collect();
        tombstones::may_collect(digest, &statuses, idle, now)
    }
}

#[async_trait]
impl Tombstones for Ledger {
    async fn set(&self, digest: &Digest, idle: Idle, reason: &str) -> Result<(), Error> {
        let (mut artifacts, now) = self.locked();
        if artifacts.tombstones.contains_key(digest) {
            return Ok(());
        }
        artifacts.may_collect(digest, idle, now)?;
        let reason = tombstones::cut_reason(reason).to_owned();
        let tombstone = Tombstone { stage: TombstoneStage::Marked, reason, since: now };
        artifacts.tombstones.insert(*digest, tombstone);
        Ok(())
    }

    async fn lift(&self, digest: &Digest) -> Result<bool, Error> {
        let (mut artifacts, _) = self.locked();
        let stage = artifacts.tombstones.get(digest).map(|tombstone| tombstone.stage);
        let is_marked = stage == Some(TombstoneStage::Marked);
        if is_marked {
            artifacts.tombstones.remove(digest);
        }
        Ok(is_marked)
    }

    async fn begin_deletion(&self, digest: &Digest, idle: Idle, grace: Duration) -> Result<bool, Error> {
        let (mut artifacts, now) = self.locked();
        match artifacts.tombstones.get(digest) {
            Some(Tombstone { stage: TombstoneStage::Marked, since, .. }) if elapsed(*since, now) >= grace => {}
            found => return Ok(found.is_some_and(|found| found.stage == TombstoneStage::Deleting)),
        }
        artifacts.may_collect(digest, idle, now)?;
        if let Some(tombstone) = artifacts.tombstones.get_mut(digest) {
            (tombstone.stage, tombstone.since) = (TombstoneStage::Deleting, now);
        }
        Ok(true)
    }

    async fn end_deletion(&self, digest: &Digest) -> Result<(), Error> {
        let (mut artifacts, now) = self.locked();
        let Some(Tombstone { stage: TombstoneStage::Deleting, reason, .. }) = artifacts.tombstones.get(digest).cloned()
        else {
            return Ok(());
        };
        artifacts.tombstones.remove(digest);
        for entry in artifacts.entries.values_mut() {
            if entry.registered.artifact.digest == *digest && entry.tombstone.is_none() {
                let (stage, reason) = (TombstoneStage::Deleted, reason.clone());
                entry.tombstone = Some(Tombstone { stage, reason, since: now });
                entry.registered.required.clear();
                entry.copies.clear();
                entry.uploads.clear();
            }
        }
        Ok(())
    }

    async fn unfinished(&self, limit: usize) -> Result<Vec<DigestTombstone>, Error> {
        tombstones::check_unfinished(limit)?;
        let (artifacts, _) = self.locked();
        let all = artifacts.tombstones.iter();
        let mut all: Vec<_> =
            all.map(|(digest, tombstone)| DigestTombstone { digest: *digest, tombstone: tombstone.clone() }).collect();
        all.sort_by_key(|one| (one.tombstone.since, one.digest));
        all.truncate(limit);
        Ok(all)
    }

    async fn unneeded(&self, digests: &[Digest]) -> Result<BTreeSet<Digest>, Error> {
        tombstones::check_digests(digests.len())?;
        let (artifacts, _) = self.locked();
        let living = artifacts.entries.values().filter(|entry| entry.tombstone.is_none());
        let needed: BTreeSet<Digest> = living.map(|entry| entry.registered.artifact.digest).collect();
        Ok(digests.iter().copied().filter(|digest| !needed.contains(digest)).collect())
    }
}
