//! A ledger that lets everything be deployed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{ArtifactName, ArtifactStatus, CopyLease, CopyTask, Epoch, NewArtifact, PinHolder, RegionName};
use deploycore::port::ReplicationLedger;
use deploycore::port::ledger::{ClaimRequest, CopyRetry, Error, LedgerCursor, LedgerFilter, LedgerPage, Registered};

/// A ledger that says yes to a pin although copies are missing.
#[derive(Debug)]
pub struct PinsAnything(pub Arc<dyn ReplicationLedger>);

#[async_trait]
impl ReplicationLedger for PinsAnything {
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, Error> {
        self.0.register(artifact).await
    }

    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, Error> {
        self.0.unregistered(names).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, Error> {
        self.0.claim(request).await
    }

    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<(), Error> {
        self.0.progress(lease, bytes, extend).await
    }

    async fn complete(&self, lease: &CopyLease) -> Result<(), Error> {
        self.0.complete(lease).await
    }

    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), Error> {
        self.0.fail(lease, reason, retry).await
    }

    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: Epoch,
        reason: &str,
    ) -> Result<bool, Error> {
        self.0.reopen(artifact, region, seen, reason).await
    }

    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, Error> {
        self.0.status(artifact).await
    }

    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, Error> {
        self.0.list(filter, after, limit).await
    }

    async fn pin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), Error> {
        match self.0.pin(artifact, holder).await {
            Err(Error::NotDeployable { .. }) => Ok(()),
            answer => answer,
        }
    }

    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), Error> {
        self.0.unpin(artifact, holder).await
    }
}
