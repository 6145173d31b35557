//! The ledger, far away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{
    ArtifactName, ArtifactStatus, CopyLease, CopyPriority, CopyTask, Epoch, FiguresRequest, NewArtifact, PinHolder,
    RegionName, ReplicationFigures,
};
use deploycore::port::ReplicationLedger;
use deploycore::port::ledger::{ClaimRequest, CopyRetry, Error, LedgerCursor, LedgerFilter, LedgerPage, Registered};

use super::Far;

#[async_trait]
impl ReplicationLedger for Far<dyn ReplicationLedger> {
    async fn register(&self, artifact: &NewArtifact) -> Result<Registered, Error> {
        let (inner, weather, artifact) = (self.inner.clone(), self.link.life.weather.clone(), artifact.clone());
        let effect = async move {
            let answer = inner.register(&artifact).await;
            if answer.is_ok() {
                weather.checker.registered(&artifact);
            }
            answer
        };
        self.link.call("ledger.register", effect).await
    }

    async fn unregistered(&self, names: &[ArtifactName]) -> Result<BTreeSet<ArtifactName>, Error> {
        let (inner, names) = (self.inner.clone(), names.to_vec());
        self.link.call("ledger.unregistered", async move { inner.unregistered(&names).await }).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<CopyTask>, Error> {
        let (inner, request) = (self.inner.clone(), request.clone());
        self.link.call("ledger.claim", async move { inner.claim(&request).await }).await
    }

    async fn progress(&self, lease: &CopyLease, bytes: u64, extend: Duration) -> Result<CopyPriority, Error> {
        let (inner, weather, lease) = (self.inner.clone(), self.link.life.weather.clone(), lease.clone());
        let effect = async move {
            let answer = inner.progress(&lease, bytes, extend).await;
            weather.checker.copy_refused(&lease, &answer);
            answer
        };
        self.link.call("ledger.progress", effect).await
    }

    async fn complete(&self, lease: &CopyLease) -> Result<(), Error> {
        let (inner, weather, lease) = (self.inner.clone(), self.link.life.weather.clone(), lease.clone());
        let effect = async move {
            let answer = inner.complete(&lease).await;
            weather.checker.copy_refused(&lease, &answer);
            if answer.is_ok() {
                weather.checker.copied(&lease);
            }
            answer
        };
        self.link.call("ledger.complete", effect).await
    }

    async fn fail(&self, lease: &CopyLease, reason: &str, retry: CopyRetry) -> Result<(), Error> {
        let (inner, weather) = (self.inner.clone(), self.link.life.weather.clone());
        let (lease, reason) = (lease.clone(), reason.to_owned());
        let effect = async move {
            let answer = inner.fail(&lease, &reason, retry).await;
            weather.checker.copy_refused(&lease, &answer);
            answer
        };
        self.link.call("ledger.fail", effect).await
    }

    async fn prioritize(&self, artifact: &ArtifactName, priority: CopyPriority) -> Result<usize, Error> {
        let (inner, artifact) = (self.inner.clone(), artifact.clone());
        self.link.call("ledger.prioritize", async move { inner.prioritize(&artifact, priority).await }).await
    }

    async fn reopen(
        &self,
        artifact: &ArtifactName,
        region: &RegionName,
        seen: Epoch,
        reason: &str,
    ) -> Result<bool, Error> {
        let (inner, reason) = (self.inner.clone(), reason.to_owned());
        let (artifact, region) = (artifact.clone(), region.clone());
        let effect = async move { inner.reopen(&artifact, &region, seen, &reason).await };
        self.link.call("ledger.reopen", effect).await
    }

    async fn status(&self, artifact: &ArtifactName) -> Result<Option<ArtifactStatus>, Error> {
        let (inner, artifact) = (self.inner.clone(), artifact.clone());
        self.link.call("ledger.status", async move { inner.status(&artifact).await }).await
    }

    async fn list(
        &self,
        filter: &LedgerFilter,
        after: Option<&LedgerCursor>,
        limit: usize,
    ) -> Result<LedgerPage, Error> {
        let (inner, filter, after) = (self.inner.clone(), filter.clone(), after.cloned());
        self.link.call("ledger.list", async move { inner.list(&filter, after.as_ref(), limit).await }).await
    }

    async fn figures(&self, request: &FiguresRequest) -> Result<BTreeMap<RegionName, ReplicationFigures>, Error> {
        let (inner, request) = (self.inner.clone(), *request);
        self.link.call("ledger.figures", async move { inner.figures(&request).await }).await
    }

    async fn pin(
        &self,
        artifact: &ArtifactName,
        holder: &PinHolder,
        waived: &BTreeSet<RegionName>,
    ) -> Result<(), Error> {
        let (inner, artifact, holder, waived) = (self.inner.clone(), artifact.clone(), holder.clone(), waived.clone());
        self.link.call("ledger.pin", async move { inner.pin(&artifact, &holder, &waived).await }).await
    }

    async fn unpin(&self, artifact: &ArtifactName, holder: &PinHolder) -> Result<(), Error> {
        let (inner, artifact, holder) = (self.inner.clone(), artifact.clone(), holder.clone());
        self.link.call("ledger.unpin", async move { inner.unpin(&artifact, &holder).await }).await
    }
}
