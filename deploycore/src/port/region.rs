//! What a machine and its region tell each other besides goals and bytes: three small traits, so that an agent in a
//! test, in one process or across HTTP is wired alike.

use std::fmt::Debug;

use async_trait::async_trait;

use super::{ArtifactStore, BackendError};
use crate::model::{
    Digest, Goal, KnownMachine, LastReport, MachineKey, MachinePage, MachineReport, MachineStanding, Manifest, Tally,
};

/// How many machines a page of standings is asked for: some megabytes.
const STANDINGS: usize = 10_000;

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

/// Where a deployer learns of machines. A region may have tens of thousands, so they are read by pages.
#[async_trait]
pub trait MachineDirectory: Send + Sync + Debug + 'static {
    /// The machines that reported since the directory started, by region and name: at most `limit` (0 is taken as 1) of those after `after`.
    /// A machine that reports for the first time meanwhile may be on none of the pages. Each page leads on: its `next` is greater than `after`.
    async fn machines(
        &self,
        after: Option<&MachineKey>,
        limit: usize,
    ) -> Result<MachinePage<KnownMachine>, BackendError>;

    /// As [`machines`](Self::machines), of those that a goal selects, where each is with it: a hundred bytes of a machine instead of all that it
    /// reports.
    async fn standings(
        &self,
        goal: &Goal,
        after: Option<&MachineKey>,
        limit: usize,
    ) -> Result<MachinePage<MachineStanding>, BackendError> {
        let page = self.machines(after, limit).await?;
        Ok(page.filter_map(|machine| MachineStanding::of(goal, &machine)))
    }

    /// How many machines are where with a goal. A directory that is far away, or that holds many, counts where the reports are.
    async fn tally(&self, goal: &Goal) -> Result<Tally, BackendError> {
        tally(self, goal).await
    }
}

/// Counts by pages of [`standings`](MachineDirectory::standings): for directories that have no shorter way.
pub async fn tally(directory: &(impl MachineDirectory + ?Sized), goal: &Goal) -> Result<Tally, BackendError> {
    let (mut tally, mut after) = (Tally::default(), None);
    loop {
        let page = directory.standings(goal, after.as_ref(), STANDINGS).await?;
        tally.settling |= page.settling;
        page.machines.into_iter().for_each(|machine| tally.add(machine));
        after = page.next;
        if after.is_none() {
            return Ok(tally);
        }
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
