//! Gathering what a plan is made from.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;

use super::plan::{Run, View};
use super::{Collector, CollectorError};
use crate::model::{ArtifactName, ArtifactStatus, CopyState, RegionName, ServiceName, Timestamp};
use crate::pace::within;
use crate::port::goals::{HISTORY, Stored};
use crate::port::ledger::{LedgerCursor, LedgerFilter, MAX_BATCH};
use crate::port::{BackendError, MachineDirectory, chain, goals};

/// How many machines a page is asked for: each is some kilobytes.
const MACHINES: usize = 1_000;
const STATES: [CopyState; 3] = [CopyState::Complete, CopyState::Failed, CopyState::Pending];

impl Collector {
    /// The goals are read last, so that what is found in none of them was in none when the artifacts were read.
    pub(super) async fn view(&self) -> Result<View, CollectorError> {
        let artifacts = self.old_artifacts().await?;
        let services: BTreeSet<&ServiceName> = artifacts.iter().map(|status| &status.registered.service).collect();
        let mut newest = BTreeMap::new();
        for service in services {
            newest.insert(service.clone(), self.newest(service).await?);
        }
        let machines = self.machines().await;
        Ok(View { artifacts, newest, machines, goals: self.all_goals().await? })
    }

    /// What has a copy and is old. What is deleted has none any more, so a long history of that costs nothing.
    async fn old_artifacts(&self) -> Result<Vec<ArtifactStatus>, CollectorError> {
        let oldest = jiff::SignedDuration::try_from(self.settings.older_than).unwrap_or(jiff::SignedDuration::MAX);
        let registered_at = (self.clock)().checked_sub(oldest).unwrap_or(Timestamp::MIN);
        let mut found: BTreeMap<ArtifactName, ArtifactStatus> = BTreeMap::new();
        for (region, state) in self.regions.keys().flat_map(|region| STATES.map(|state| (region, state))) {
            let filter = LedgerFilter { copy: Some((region.clone(), state)), ..LedgerFilter::default() };
            let artifact = ArtifactName::new("0").expect("it is a name");
            let mut after = Some(LedgerCursor { registered_at, artifact });
            while after.is_some() {
                let page = self.ledger_call(self.ledger.list(&filter, after.as_ref(), MAX_BATCH)).await?;
                found
                    .extend(page.artifacts.into_iter().map(|status| (status.registered.artifact.name.clone(), status)));
                after = page.next;
            }
        }
        Ok(found.into_values().collect())
    }

    async fn newest(&self, service: &ServiceName) -> Result<BTreeSet<ArtifactName>, CollectorError> {
        let filter = LedgerFilter { service: Some(service.clone()), ..LedgerFilter::default() };
        if self.settings.keep == 0 {
            return Ok(BTreeSet::new());
        }
        let page = self.ledger_call(self.ledger.list(&filter, None, self.settings.keep.min(MAX_BATCH))).await?;
        Ok(page.artifacts.into_iter().map(|status| status.registered.artifact.name).collect())
    }

    async fn all_goals(&self) -> Result<BTreeMap<ServiceName, Vec<Stored>>, CollectorError> {
        let limit = self.settings.call_timeout;
        let current = within::<_, goals::Error>(limit, "goal store", self.goals.list("")).await?.goals;
        let mut all = BTreeMap::new();
        for Stored { goal, .. } in current {
            let history = within(limit, "goal store", self.goals.history(&goal.service, HISTORY)).await?;
            all.insert(goal.service, history);
        }
        Ok(all)
    }

    /// A directory that fails is no error: what its region may run is kept.
    async fn machines(&self) -> BTreeMap<RegionName, Result<Run, String>> {
        let asked = self.regions.iter().map(|(name, region)| async {
            (name.clone(), self.run_by(&*region.machines).await.map_err(|error| chain(&error)))
        });
        join_all(asked).await.into_iter().collect()
    }

    async fn run_by(&self, machines: &dyn MachineDirectory) -> Result<Run, BackendError> {
        let (mut run, mut after) = (Run::default(), None);
        loop {
            let page = machines.machines(after.as_ref(), MACHINES);
            let page = within(self.settings.call_timeout, "directory", page).await?;
            page.machines.iter().for_each(|machine| run.add(&machine.report));
            run.settling |= page.settling;
            after = page.next;
            if after.is_none() {
                return Ok(run);
            }
        }
    }
}
