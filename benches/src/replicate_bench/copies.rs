//! The copying process.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::{CopyState, RegionName};
use deploycore::port::ArtifactStore;
use deploycore::port::ledger::{LedgerFilter, ReplicationLedger};
use deploycore::store::{Replicator, ReplicatorSettings};
use tokio_util::sync::CancellationToken;

use super::Arguments;
use super::counted::{Counted, Counter};
use super::figures::Usage;

/// A killed process's copies are taken up after this.
const LEASE: Duration = Duration::from_secs(3);
const PERIOD: Duration = Duration::from_millis(200);

pub(super) fn region(number: usize) -> Result<RegionName, deploycore::model::InvalidName> {
    RegionName::new(format!("to-{number}"))
}

/// Runs the replicator until each copy is complete, and leaves what it used in the folder.
pub(super) async fn make(arguments: &Arguments, folder: &Path) -> anyhow::Result<()> {
    let ledger = super::ledger(folder).await?;
    let from: Arc<dyn ArtifactStore> = Arc::new(super::open(arguments, &arguments.from).await?);
    let counter = Arc::new(Counter::open(folder)?);
    let mut regions = BTreeMap::new();
    for (number, url) in arguments.to.iter().enumerate() {
        let store = Counted::new(super::open(arguments, url).await?, counter.clone());
        regions.insert(region(number)?, Arc::new(store) as Arc<dyn ArtifactStore>);
    }
    let settings = ReplicatorSettings::default()
        .with_period(PERIOD)
        .with_lease(LEASE)
        .with_bytes_in_flight(arguments.bytes_in_flight);
    let replicator = Replicator::new(settings, ledger.clone(), from, regions);
    let shutdown = CancellationToken::new();
    let done = async {
        let told = all_complete(&*ledger).await;
        shutdown.cancel();
        told
    };
    let ((), told) = tokio::join!(replicator.run(shutdown.clone()), done);
    told?;
    Usage::of("self")?.write(&folder.join("usage"))
}

async fn all_complete(ledger: &dyn ReplicationLedger) -> anyhow::Result<()> {
    loop {
        let page = ledger.list(&LedgerFilter::default(), None, 10).await?;
        let mut copies = page.artifacts.iter().flat_map(|artifact| artifact.copies.values());
        if copies.all(|copy| copy.state == CopyState::Complete) {
            return Ok(());
        }
        tokio::time::sleep(PERIOD / 4).await;
    }
}
