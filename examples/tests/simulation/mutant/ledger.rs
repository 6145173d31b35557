//! Ledgers that do not mean what they say of pins.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{
    ArtifactName, ArtifactStatus, CopyLease, CopyPriority, CopyTask, Epoch, FiguresRequest, NewArtifact, PinHolder,
    RegionName, ReplicationFigures,
};
use deploycore::port::ReplicationLedger;
use deploycore::port::ledger::{ClaimRequest, CopyRetry, Error, LedgerCursor, LedgerFilter, LedgerPage, Registered};

use super::Mutant;

/// A ledger with one flaw.
#[derive(Debug)]
pub struct Ledger {
    pub inner: Arc<dyn ReplicationLedger>,
    pub flaw: Mutant,
}

#[async_trait]
impl ReplicationLedger for Ledger {
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, Error> {
        self.inner.register(artifact).await
    }

    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, Error> {
        self.inner.unregistered(names).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, Error> {
        self.inner.claim(request).await
    }

    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<CopyPriority, Error> {
        self.inner.progress(lease, bytes, extend).await
    }

    async fn complete(&self, lease: &CopyLease) -> Result<(), Error> {
        self.inner.complete(lease).await
    }

    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), Error> {
        self.inner.fail(lease, reason, retry).await
    }

    async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<usize, Error> {
        self.inner.prioritize(artifact, priority).await
    }

    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: Epoch,
        reason: &str,
    ) -> Result<bool, Error> {
        self.inner.reopen(artifact, region, seen, reason).await
    }

    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, Error> {
        self.inner.status(artifact).await
    }

    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, Error> {
        self.inner.list(filter, after, limit).await
    }

    async fn figures(&self, request: &FiguresRequest) -> Result<BTreeMap<RegionName, ReplicationFigures>, Error> {
        self.inner.figures(request).await
    }

    async fn pin(
        &self,
        artifact: &ArtifactName,
        holder: &PinHolder,
        waived: &BTreeSet<RegionName>,
    ) -> Result<(), Error> {
        match self.inner.pin(artifact, holder, waived).await {
            Err(Error::NotDeployable { .. }) if self.flaw == Mutant::PinsAnything => Ok(()),
            Ok(()) if self.flaw == Mutant::PinsNothing => self.inner.unpin(artifact, holder).await,
            answer => answer,
        }
    }

    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), Error> {
        self.inner.unpin(artifact, holder).await
    }
}
