//! The collector: deletes the bytes of artifacts that nothing needs any more.
//!
//! A round takes each artifact one step: what [nothing needs](CollectionPlan) gets a tombstone in the ledger, from which on it cannot be
//! deployed; after a grace, if nothing has come to need it meanwhile, its bytes are deleted, in each region's store and then in the main
//! one; then the ledger forgets its copies. Each step may be repeated, so a collector can be killed anywhere, and many may run at once.
//!
//! `docs/decisions/0011-collection.md` has the argument why no goal ever names what was deleted.

mod plan;
mod settings;
mod unneeded;
mod view;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::plan::{Collectable, CollectionPlan, Kept};
use self::plan::{Uses, View, plan};
pub use self::settings::{CollectorSettings, InvalidCollectorSettings};
use crate::model::{Digest, DigestTombstone, RegionName, Timestamp, TombstoneStage, elapsed};
use crate::pace::{Pace, Wake, within};
use crate::port::ledger::{self, MAX_BATCH, ReplicationLedger, Tombstones};
use crate::port::store::{self, ArtifactStore, Deletion};
use crate::port::{GoalStateStore, MachineDirectory, chain, goals};

/// A region, as a collector needs it.
#[derive(Debug, Clone)]
pub struct CollectedRegion {
    /// Its store.
    pub store: Arc<dyn ArtifactStore>,
    /// What its machines run.
    pub machines: Arc<dyn MachineDirectory>,
}

/// Why a round ended early. What it did before stays; the next one goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectorError {
    /// The ledger keeps no tombstones, so nothing can be taken out of use.
    #[error("the ledger keeps no tombstones: nothing can be collected with it")]
    NoTombstones,
    /// The ledger could not be read or written.
    #[error("the collector cannot use the ledger")]
    Ledger(#[from] ledger::Error),
    /// The goals could not be read.
    #[error("the collector cannot read the goals")]
    Goals(#[from] goals::Error),
}

/// What one round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorTick {
    /// Digests that got a tombstone.
    pub marked: u64,
    /// Tombstones that were lifted, because something had come to need the bytes.
    pub lifted: u64,
    /// Tombstones whose grace is not over, those that wait for a store, and those of a collector for which less is old.
    pub waiting: u64,
    /// Digests whose bytes are deleted everywhere now.
    pub deleted: u64,
    /// The bytes of those, in the main store.
    pub bytes: u64,
    /// Digests that the ledger knows to be in use although the plan did not.
    pub refused: u64,
    /// Digests that a store could not delete; the next round tries again, and none begins to delete others before that succeeds.
    pub failed: u64,
    /// Deletions in one store of bytes that no artifact has: of a build that was stored and never told, for one.
    #[serde(default)]
    pub unneeded: u64,
}

/// How far one collection came.
enum Step {
    Waits,
    Lifted,
    Failed,
    Deleted(u64),
}

/// Deletes what nothing needs any more, from the main store and the stores of regions.
pub struct Collector {
    settings: CollectorSettings,
    ledger: Arc<dyn ReplicationLedger>,
    goals: Arc<dyn GoalStateStore>,
    main: Arc<dyn ArtifactStore>,
    regions: BTreeMap<RegionName, CollectedRegion>,
    clock: ClockFn,
    seed: Option<u64>,
}

type ClockFn = Arc<dyn Fn() -> Timestamp + Send + Sync>;

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let regions: Vec<_> = self.regions.keys().collect();
        f.debug_struct("Collector").field("settings", &self.settings).field("regions", &regions).finish_non_exhaustive()
    }
}

impl Collector {
    /// A collector. `goals` is the global store; `regions` are all that have copies: what has one elsewhere is kept.
    ///
    /// Errors: settings that no argument covers.
    pub fn new(
        settings: CollectorSettings,
        ledger: Arc<dyn ReplicationLedger>,
        goals: Arc<dyn GoalStateStore>,
        main: Arc<dyn ArtifactStore>,
        regions: BTreeMap<RegionName, CollectedRegion>,
    ) -> Result<Self, InvalidCollectorSettings> {
        settings.check()?;
        Ok(Self { settings, ledger, goals, main, regions, clock: Arc::new(Timestamp::now), seed: None })
    }

    /// Sets the clock by which it looks for what is old; the system's by default. The ledger's decides.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Seeds the jitter.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// What a round would take out of use, and what keeps the rest. It changes nothing.
    ///
    /// Errors: `Ledger`, `Goals`.
    pub async fn plan(&self) -> Result<CollectionPlan, CollectorError> {
        let view = self.view().await?;
        let mut plan = plan(&view);
        if let Some(tombstones) = self.ledger.tombstones() {
            plan.unneeded = self.unneeded(tombstones, &view).await?;
        }
        Ok(plan)
    }

    /// One round: the next step of each collection under way, then tombstones for what nothing needs, then bytes that no artifact has.
    ///
    /// Errors: `NoTombstones`, `Ledger`, `Goals`. A store that fails is counted, and its digests are left to the next round.
    pub async fn tick(&self) -> Result<CollectorTick, CollectorError> {
        let tombstones = self.ledger.tombstones().ok_or(CollectorError::NoTombstones)?;
        let mut tick = CollectorTick::default();
        // First the tombstones, then the goals: a goal that was written before its artifact got one is seen.
        let unfinished = self.ledger_call(tombstones.unfinished(MAX_BATCH)).await?;
        let view = self.view().await?;
        self.advance(tombstones, &view, unfinished, &mut tick).await?;
        self.mark(tombstones, &view, &mut tick).await?;
        self.delete_unneeded(tombstones, &view, &mut tick).await?;
        if tick != CollectorTick::default() {
            info!(?tick, "a round of collection is over");
        }
        let counts =
            [("marked", tick.marked), ("lifted", tick.lifted), ("deleted", tick.deleted), ("unneeded", tick.unneeded)];
        for (what, count) in counts {
            metrics::counter!("deploycore_collector_digests_total", "what" => what).increment(count);
        }
        metrics::counter!("deploycore_collector_bytes_total").increment(tick.bytes);
        Ok(tick)
    }

    /// Collects again and again until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut pace = Pace::new(self.settings.period, self.settings.backoff);
        if let Some(seed) = self.seed {
            pace = pace.with_seed(seed);
        }
        loop {
            let ticked = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                ticked = self.tick() => ticked,
            };
            pace.note(ticked.is_ok());
            if let Err(error) = ticked {
                warn!(error = %chain(&error), failures = pace.failures(), "a round of collection failed");
                metrics::counter!("deploycore_collector_failures_total").increment(1);
            }
            if pace.wait(std::future::pending(), &shutdown).await == Wake::Shutdown {
                return;
            }
        }
    }

    /// The next step of each collection under way. First come those whose bytes are being deleted; while a store fails at that, no other
    /// deletion is begun.
    async fn advance(
        &self,
        tombstones: &dyn Tombstones,
        view: &View,
        mut unfinished: Vec<DigestTombstone>,
        tick: &mut CollectorTick,
    ) -> Result<(), CollectorError> {
        unfinished.sort_by_key(|one| Reverse(one.tombstone.stage));
        let (uses, has_failed) = (Uses::of(view), AtomicBool::new(false));
        let mut steps = stream::iter(unfinished)
            .map(|one| self.step(tombstones, &uses, one, &has_failed))
            .buffer_unordered(self.settings.parallel.max(1));
        while let Some(step) = steps.next().await {
            match step? {
                Step::Waits => tick.waiting += 1,
                Step::Lifted => tick.lifted += 1,
                Step::Failed => tick.failed += 1,
                Step::Deleted(bytes) => (tick.deleted, tick.bytes) = (tick.deleted + 1, tick.bytes + bytes),
            }
        }
        Ok(())
    }

    async fn step(
        &self,
        tombstones: &dyn Tombstones,
        uses: &Uses<'_>,
        DigestTombstone { digest, tombstone }: DigestTombstone,
        has_failed: &AtomicBool,
    ) -> Result<Step, CollectorError> {
        if tombstone.stage == TombstoneStage::Marked {
            if has_failed.load(Ordering::Relaxed) || self.is_left(uses, &digest, tombstone.since) {
                return Ok(Step::Waits);
            }
            match self.begin(tombstones, uses, &digest).await {
                Ok(true) => {}
                Ok(false) => return Ok(Step::Waits),
                Err(ledger::Error::InUse { why, .. }) => {
                    warn!(%digest, why, "a tombstone is lifted");
                    let is_lifted = self.ledger_call(tombstones.lift(&digest)).await?;
                    return Ok(if is_lifted { Step::Lifted } else { Step::Waits });
                }
                Err(error) => return Err(error.into()),
            }
        }
        match self.delete(&digest).await {
            Ok(Some(bytes)) => {
                self.ledger_call(tombstones.end_deletion(&digest)).await?;
                Ok(Step::Deleted(bytes))
            }
            Ok(None) => Ok(Step::Waits),
            Err(error) => {
                has_failed.store(true, Ordering::Relaxed);
                warn!(%digest, error = %chain(&error), "an artifact cannot be deleted yet");
                Ok(Step::Failed)
            }
        }
    }

    /// Whether a mark is left to whoever set it: a collector for which less is old. It has a day from the grace on to come back.
    fn is_left(&self, uses: &Uses<'_>, digest: &Digest, marked: Timestamp) -> bool {
        let CollectorSettings { older_than, grace, .. } = self.settings;
        let now = (self.clock)();
        let is_young = !uses.is_idle(digest, older_than, now) && uses.of_digest(digest).is_none();
        is_young && elapsed(marked, now) < grace.saturating_add(CollectorSettings::MIN_AGE)
    }

    async fn begin(
        &self,
        tombstones: &dyn Tombstones,
        uses: &Uses<'_>,
        digest: &Digest,
    ) -> Result<bool, ledger::Error> {
        if let Some(kept) = uses.of_digest(digest) {
            return Err(ledger::Error::InUse { digest: *digest, why: kept.to_string() });
        }
        let CollectorSettings { older_than, grace, .. } = self.settings;
        self.ledger_call(tombstones.begin_deletion(digest, older_than, grace)).await
    }

    /// Deletes an artifact in each region, then in the main store; how many bytes there. `None` while a region has a copy that
    /// somebody stored lately, who had lost the right to: it is gone once it is old.
    async fn delete(&self, digest: &Digest) -> Result<Option<u64>, store::Error> {
        let limit = self.settings.delete_timeout;
        for (region, place) in &self.regions {
            let deletion = place.store.delete_idle(digest, self.settings.grace);
            if within(limit, "artifact store", deletion).await? == Deletion::InUse {
                warn!(%digest, %region, "a region has a copy of a collected artifact that is young");
                return Ok(None);
            }
        }
        let size = within(limit, "artifact store", self.main.manifest(digest)).await;
        let size = size.ok().flatten().map_or(0, |manifest| manifest.size());
        match within(limit, "artifact store", self.main.delete_idle(digest, self.settings.older_than)).await? {
            Deletion::Gone => Ok(Some(size)),
            // Whoever put them since has them: the artifacts that are collected do without.
            Deletion::InUse => Ok(Some(0)),
        }
    }

    async fn mark(
        &self,
        tombstones: &dyn Tombstones,
        view: &View,
        tick: &mut CollectorTick,
    ) -> Result<(), CollectorError> {
        let reason = self.settings.reason();
        for Collectable { digest, artifacts, .. } in plan(view).collect.into_iter().take(self.settings.max_marks) {
            match self.ledger_call(tombstones.set(&digest, self.settings.older_than, &reason)).await {
                Ok(()) => {
                    info!(%digest, ?artifacts, "marked for collection");
                    tick.marked += 1;
                }
                Err(ledger::Error::InUse { .. }) => tick.refused += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn ledger_call<T>(&self, call: impl Future<Output = Result<T, ledger::Error>>) -> Result<T, ledger::Error> {
        within(self.settings.call_timeout, "ledger", call).await
    }
}
