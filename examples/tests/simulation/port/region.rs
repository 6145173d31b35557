//! What machines and their region tell each other, far away.

use async_trait::async_trait;
use deploycore::model::{Digest, KnownMachine, MachineKey, MachinePage, MachineReport, Manifest};
use deploycore::port::{BackendError, MachineDirectory, ManifestSource, ReportSink};

use super::Far;

#[async_trait]
impl ManifestSource for Far<dyn ManifestSource> {
    async fn region_manifest(&self, digest: &Digest) -> Result<Option<Manifest>, BackendError> {
        let (inner, digest) = (self.inner.clone(), *digest);
        self.link.call("region.manifest", async move { inner.region_manifest(&digest).await }).await
    }
}

#[async_trait]
impl ReportSink for Far<dyn ReportSink> {
    async fn report(&self, report: &MachineReport) -> Result<(), BackendError> {
        let (inner, weather, report) = (self.inner.clone(), self.link.life.weather.clone(), report.clone());
        let effect = async move {
            weather.checker.reported(&report);
            inner.report(&report).await
        };
        self.link.call("region.report", effect).await
    }
}

#[async_trait]
impl MachineDirectory for Far<dyn MachineDirectory> {
    async fn machines(
        &self,
        after: Option<&MachineKey>,
        limit: usize,
    ) -> Result<MachinePage<KnownMachine>, BackendError> {
        let (inner, after) = (self.inner.clone(), after.cloned());
        self.link.call("region.machines", async move { inner.machines(after.as_ref(), limit).await }).await
    }
}
