//! Collecting what nothing needs any more, from the control plane: it reaches every store.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use deploycore::model::RegionName;
use deploycore::port::{ArtifactStore, GoalStateStore, ReplicationLedger};
use deploycore::store::{CollectedRegion, Collector, CollectorSettings};

use super::Region;
use crate::cluster::backends;
use crate::cluster::config::Config;

/// What a collector works with.
#[derive(Debug)]
pub(super) struct Collection {
    pub(super) config: Config,
    pub(super) ledger: Arc<dyn ReplicationLedger>,
    pub(super) goals: Arc<dyn GoalStateStore>,
    pub(super) main: Arc<dyn ArtifactStore>,
}

impl Collection {
    /// A collector with the stores of all regions, which are opened for it.
    pub(super) async fn collector(
        &self,
        settings: CollectorSettings,
        regions: &BTreeMap<RegionName, Region>,
    ) -> Result<Collector> {
        if let Some(problem) = self.config.out_of_reach() {
            return Err(anyhow!(problem));
        }
        let mut collected = BTreeMap::new();
        for (name, region) in regions {
            let store = backends::region_store(&self.config, name).await?;
            collected.insert(name.clone(), CollectedRegion { store, machines: region.gateway.clone() });
        }
        Ok(Collector::new(settings, self.ledger.clone(), self.goals.clone(), self.main.clone(), collected)?)
    }
}
