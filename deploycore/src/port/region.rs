//! What a machine and its region tell each other besides goals and bytes: three small traits, so that an agent in a
//! test, in one process or across HTTP is wired alike.

use std::fmt::Debug;

use async_trait::async_trait;

use super::{ArtifactStore, BackendError};
use crate::model::{Digest, Goal, KnownMachines, LastReport, MachineReport, Manifest, Tally};

/// Where a machine gets manifests from. A manifest proves itself, so the source needs no trust.
#[async_trait]
pub trait ManifestSource: Send + Sync + Debug + 'static {
    /// The manifest of an artifact in the machine's region, or `None` while the region does not have it.
    async fn region_manifest(&self, digest: &Digest) -> Result<Option<Manifest>, BackendError>;
}

/// Where a machine sends its reports.
#[async_trait]
pub trait ReportSink: Send + Sync + Debug + 'static {
    /// Takes the newest report of a machine; it replaces the one before. Idempotent.
    async fn report(&self, report: &MachineReport) -> Result<(), BackendError>;

    /// Takes a sign of life from a machine whose last report still holds. `false` when that report is not the one that is known here: then it is
    /// wanted whole. A sink that does not keep reports wants each whole.
    async fn still_holds(&self, last: &LastReport) -> Result<bool, BackendError> {
        let _ = last;
        Ok(false)
    }
}

/// Where a deployer learns of machines.
#[async_trait]
pub trait MachineDirectory: Send + Sync + Debug + 'static {
    /// Each machine that reported since the directory started, and whether that is long enough to know all that are live.
    async fn machines(&self) -> Result<KnownMachines, BackendError>;

    /// How many machines are where with a goal, as [`machines`](Self::machines) has it. A directory that is far away, or that holds many, counts
    /// where the reports are.
    async fn tally(&self, goal: &Goal) -> Result<Tally, BackendError> {
        self.machines().await.map(|known| Tally::of(goal, &known))
    }
}

#[async_trait]
impl<T: ArtifactStore> ManifestSource for T {
    async fn region_manifest(&self, digest: &Digest) -> Result<Option<Manifest>, BackendError> {
        self.manifest(digest).await.map_err(|error| match error {
            super::store::Error::Backend(error) => error,
            other => BackendError::permanent("artifact store", other),
        })
    }
}
