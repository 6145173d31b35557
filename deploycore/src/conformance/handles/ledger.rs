//! The ledger through several handles.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;

use super::Handles;
use crate::model::{
    ArtifactName, ArtifactStatus, CopyLease, CopyPriority, CopyTask, Digest, DigestTombstone, Epoch, FiguresRequest,
    NewArtifact, PinHolder, RegionName, ReplicationFigures,
};
use crate::port::ReplicationLedger;
use crate::port::ledger::{
    ClaimRequest, CopyJournal, CopyRetry, Error, Idle, JournaledUpload, LedgerCursor, LedgerFilter, LedgerPage,
    Registered, Tombstones,
};
use crate::port::store::{PartTag, UploadId};

#[async_trait]
impl ReplicationLedger for Handles<dyn ReplicationLedger> {
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, Error> {
        self.next().await.register(artifact).await
    }

    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, Error> {
        self.next().await.unregistered(names).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, Error> {
        self.next().await.claim(request).await
    }

    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<CopyPriority, Error> {
        self.next().await.progress(lease, bytes, extend).await
    }

    async fn complete(&self, lease: &CopyLease) -> Result<(), Error> {
        self.next().await.complete(lease).await
    }

    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), Error> {
        self.next().await.fail(lease, reason, retry).await
    }

    async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<usize, Error> {
        self.next().await.prioritize(artifact, priority).await
    }

    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: Epoch,
        reason: &str,
    ) -> Result<bool, Error> {
        self.next().await.reopen(artifact, region, seen, reason).await
    }

    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, Error> {
        self.next().await.status(artifact).await
    }

    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, Error> {
        self.next().await.list(filter, after, limit).await
    }

    async fn figures(&self, request: &FiguresRequest) -> Result<BTreeMap<RegionName, ReplicationFigures>, Error> {
        self.next().await.figures(request).await
    }

    async fn pin(
        &self,
        artifact: &ArtifactName,
        holder: &PinHolder,
        waived: &BTreeSet<RegionName>,
    ) -> Result<(), Error> {
        self.next().await.pin(artifact, holder, waived).await
    }

    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), Error> {
        self.next().await.unpin(artifact, holder).await
    }

    fn journal(&self) -> Option<&dyn CopyJournal> {
        self.each_is(|ledger| ledger.journal().is_some()).then_some(self)
    }

    fn tombstones(&self) -> Option<&dyn Tombstones> {
        self.each_is(|ledger| ledger.tombstones().is_some()).then_some(self)
    }
}

fn journal_of(ledger: &dyn ReplicationLedger) -> &dyn CopyJournal {
    ledger.journal().expect("each handle has a journal, or none has")
}

fn tombstones_of(ledger: &dyn ReplicationLedger) -> &dyn Tombstones {
    ledger.tombstones().expect("each handle has tombstones, or none has")
}

#[async_trait]
impl CopyJournal for Handles<dyn ReplicationLedger> {
    async fn upload(&self, lease: &CopyLease) -> Result<Option<JournaledUpload>, Error> {
        journal_of(&*self.next().await).upload(lease).await
    }

    async fn begin(&self, lease: &CopyLease, upload: &UploadId, part_size: u64) -> Result<(), Error> {
        journal_of(&*self.next().await).begin(lease, upload, part_size).await
    }

    async fn add(&self, lease: &CopyLease, parts: &[(u32, PartTag)]) -> Result<(), Error> {
        journal_of(&*self.next().await).add(lease, parts).await
    }

    async fn clear(&self, lease: &CopyLease) -> Result<(), Error> {
        journal_of(&*self.next().await).clear(lease).await
    }
}

#[async_trait]
impl Tombstones for Handles<dyn ReplicationLedger> {
    async fn set(&self, digest: &Digest, idle: Idle, reason: &str) -> Result<(), Error> {
        tombstones_of(&*self.next().await).set(digest, idle, reason).await
    }

    async fn lift(&self, digest: &Digest) -> Result<bool, Error> {
        tombstones_of(&*self.next().await).lift(digest).await
    }

    async fn begin_deletion(&self, digest: &Digest, idle: Idle, grace: Duration) -> Result<bool, Error> {
        tombstones_of(&*self.next().await).begin_deletion(digest, idle, grace).await
    }

    async fn end_deletion(&self, digest: &Digest) -> Result<(), Error> {
        tombstones_of(&*self.next().await).end_deletion(digest).await
    }

    async fn unfinished(&self, limit: usize) -> Result<Vec<DigestTombstone>, Error> {
        tombstones_of(&*self.next().await).unfinished(limit).await
    }

    async fn unneeded(&self, digests: &[Digest]) -> Result<BTreeSet<Digest>, Error> {
        tombstones_of(&*self.next().await).unneeded(digests).await
    }
}
