//! Bytes that no artifact of the ledger has.
//!
//! A worker that stored them did not come to complete its job, and the next attempt made other bytes; a replicator stored them after it had lost
//! the right to. Nothing else finds them: they have a manifest, so a sweep keeps them, and no artifact, so no tombstone is set.
//!
//! They need none: nobody can deploy what the ledger does not know. Who registers them yet has put them lately, so they are young in the main store. In a
//! region's store they are not: what is deleted there between the look at the ledger and the copy's completion, which takes moments, is found missing
//! by the next audit, as any lost copy is.

use std::collections::BTreeSet;

use futures::stream::StreamExt;
use tracing::{info, warn};

use super::plan::{Uses, View};
use super::{Collector, CollectorError, CollectorTick};
use crate::model::Digest;
use crate::pace::within;
use crate::port::chain;
use crate::port::ledger::{MAX_BATCH, Tombstones};
use crate::port::store::{self, ArtifactStore, Deletion};

/// What one store has.
#[derive(Debug, Default)]
struct Found {
    digests: usize,
    unneeded: BTreeSet<Digest>,
}

impl Found {
    /// A ledger that knows less than half of what a store has is not believed: it may be another's, or have lost what it knew.
    fn is_credible(&self) -> bool {
        self.unneeded.len() <= self.digests / 2
    }
}

impl Collector {
    /// What would be deleted of all stores, were it old. A store that cannot be asked is left out.
    pub(super) async fn unneeded(
        &self,
        tombstones: &dyn Tombstones,
        view: &View,
    ) -> Result<BTreeSet<Digest>, CollectorError> {
        let (uses, mut all) = (Uses::of(view), BTreeSet::new());
        for (_, store) in self.stores_to_look_through(view) {
            let found = self.look_through(store, tombstones, &uses).await?;
            all.extend(found.into_iter().flat_map(|found| found.unneeded));
        }
        Ok(all)
    }

    /// Deletes what is old of it.
    pub(super) async fn delete_unneeded(
        &self,
        tombstones: &dyn Tombstones,
        view: &View,
        tick: &mut CollectorTick,
    ) -> Result<(), CollectorError> {
        let uses = Uses::of(view);
        for (place, store) in self.stores_to_look_through(view) {
            let found = self.look_through(store, tombstones, &uses).await?;
            for digest in found.into_iter().flat_map(|found| found.unneeded) {
                if tick.unneeded >= self.settings.max_marks as u64 {
                    return Ok(());
                }
                // A build may have made them anew since, and its copy to a region that has them does not make them young.
                if self.ledger_call(tombstones.unneeded(&[digest])).await?.is_empty() {
                    continue;
                }
                let deletion = store.delete_idle(&digest, self.settings.older_than);
                match within::<_, store::Error>(self.settings.delete_timeout, "artifact store", deletion).await {
                    Ok(Deletion::Gone) => {
                        info!(%digest, place, "bytes that no artifact has are deleted");
                        tick.unneeded += 1;
                    }
                    Ok(Deletion::InUse) => {}
                    Err(error) => {
                        warn!(%digest, place, error = %chain(&error), "bytes that no artifact has cannot be deleted yet");
                        tick.failed += 1;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// None while it is not known of all regions what their machines run.
    fn stores_to_look_through(&self, view: &View) -> Vec<(&str, &dyn ArtifactStore)> {
        if !view.machines.values().all(|run| run.as_ref().is_ok_and(|run| !run.settling)) {
            return Vec::new();
        }
        let regions = self.regions.iter().map(|(name, region)| (name.as_str(), &*region.store));
        std::iter::once(("main", &*self.main)).chain(regions).collect()
    }

    /// `None` where the store cannot be asked, or has too much that the ledger does not know.
    async fn look_through(
        &self,
        store: &dyn ArtifactStore,
        tombstones: &dyn Tombstones,
        uses: &Uses<'_>,
    ) -> Result<Option<Found>, CollectorError> {
        let (mut pages, mut found) = (store.list().chunks(MAX_BATCH), Found::default());
        while let Some(page) = pages.next().await {
            let page: Result<Vec<Digest>, _> = page.into_iter().collect();
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    warn!(error = %chain(&error), "a store cannot list what it has");
                    return Ok(None);
                }
            };
            found.digests += page.len();
            let unneeded = self.ledger_call(tombstones.unneeded(&page)).await?;
            found.unneeded.extend(unneeded.into_iter().filter(|digest| uses.of_digest(digest).is_none()));
        }
        if !found.is_credible() {
            let (unneeded, digests) = (found.unneeded.len(), found.digests);
            warn!(unneeded, digests, "the ledger does not know most of what a store has: nothing of that is deleted");
            return Ok(None);
        }
        Ok(Some(found))
    }
}
