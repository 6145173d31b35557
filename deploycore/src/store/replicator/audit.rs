//! Keeping the ledger true when a copy disappears from a region.

use futures::stream::{self, StreamExt};
use tracing::{debug, warn};

use super::ReplicatorError;
use super::lane::Lane;
use crate::model::{ArtifactStatus, CopyState};
use crate::pace::within;
use crate::port::chain;
use crate::port::ledger::{self, LedgerFilter};

/// Artifacts in one page of the ledger.
const PAGE: usize = 200;
/// Copies looked at at once.
const PARALLEL: usize = 8;
const REASON: &str = "the copy has disappeared from the region's store";

impl Lane {
    /// Asks the region's store for each copy that the ledger calls complete, and reopens those that are gone; how many.
    ///
    /// A store that cannot be asked is no evidence: such a copy stays as it is until the next audit. Nor is one that finds nothing at an address that
    /// answers to something else, as a proxy's: it cannot list what it has.
    pub(super) async fn audit(&self) -> Result<u64, ReplicatorError> {
        let filter = LedgerFilter { copy: Some((self.region.clone(), CopyState::Complete)), ..LedgerFilter::default() };
        let (mut after, mut reopened, mut lists) = (None, 0, false);
        loop {
            let listed = self.ledger.list(&filter, after.as_ref(), PAGE);
            let page = within(self.settings.call_timeout, "ledger", listed).await.map_err(|error| self.error(error))?;
            let mut gone = stream::iter(page.artifacts)
                .map(|artifact| async move { self.is_gone(&artifact).await.then_some(artifact) })
                .buffer_unordered(PARALLEL)
                .filter_map(std::future::ready);
            while let Some(artifact) = gone.next().await {
                lists = lists || self.lists().await;
                if !lists {
                    return Ok(reopened);
                }
                reopened += u64::from(self.reopen(&artifact).await?);
            }
            drop(gone);
            after = page.next;
            if after.is_none() {
                return Ok(reopened);
            }
        }
    }

    /// Whether the region's store lists what it has.
    async fn lists(&self) -> bool {
        let first = async { self.store.list().next().await.transpose() };
        match within(self.settings.call_timeout, "artifact store", first).await {
            Ok(_) => true,
            Err(error) => {
                warn!(region = %self.region, error = %chain(&error), "copies are not found in a store that cannot list what it has: they stay as they are");
                false
            }
        }
    }

    async fn is_gone(&self, artifact: &ArtifactStatus) -> bool {
        let artifact = &artifact.registered.artifact;
        let exists = within(self.settings.call_timeout, "artifact store", self.store.exists(&artifact.digest)).await;
        match exists {
            Ok(exists) => !exists,
            Err(error) => {
                debug!(region = %self.region, artifact = %artifact.name, error = %chain(&error), "a copy cannot be audited");
                false
            }
        }
    }

    async fn reopen(&self, status: &ArtifactStatus) -> Result<bool, ReplicatorError> {
        let name = &status.registered.artifact.name;
        let Some(copy) = status.copies.get(&self.region) else {
            return Ok(false);
        };
        let reopened = self.ledger.reopen(name, &self.region, copy.epoch, REASON);
        let reopened = match within(self.settings.call_timeout, "ledger", reopened).await {
            // It was collected since it was listed.
            Err(ledger::Error::NotFound { .. }) => false,
            answer => answer.map_err(|error| self.error(error))?,
        };
        if reopened {
            warn!(region = %self.region, artifact = %name, "a copy has disappeared and will be made again");
            metrics::counter!("deploycore_replicator_reopened_total", "region" => self.region.to_string()).increment(1);
        }
        Ok(reopened)
    }
}
