//! The replicator: copies of artifacts from the main store to the regions' stores, one lane a region.
//!
//! A lane claims copies of its region from the ledger with a lease, the most urgent first, makes them, and reports. Each has its own task,
//! its own bounds and its own rhythm, so a region that is slow or down holds no other; only the memory is one for all, with a part set
//! aside for each. Several replicators may serve one region: the
//! ledger's leases part the work, and a copy made twice is the same copy.
//!
//! Where the region's store takes parts ([`Multipart`](crate::port::store::Multipart)), a copy is many parts in parallel, each verified
//! before it is sent and tried again by itself. Those that the store has are in the ledger's journal
//! ([`CopyJournal`](crate::port::ledger::CopyJournal)), so that whoever has the copy next goes on from there, and ends uploads that nobody
//! needs. Elsewhere a copy is one put.
//!
//! A lane can be killed anywhere: its leases run out, and the next claim finds what is there already.

mod audit;
mod copy;
mod lane;
mod parts;
mod room;
mod tempo;
mod verified;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::lane::Lane;
use self::room::Room;
use crate::model::{RegionName, friendly};
use crate::pace::{Backoff, Nudge};
use crate::port::ledger::{self, ReplicationLedger};
use crate::port::store::ArtifactStore;

/// The rhythm and the bounds of each lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplicatorSettings {
    /// Between looks for copies to make; 2 s by default.
    #[serde(with = "friendly")]
    pub period: Duration,
    /// Copies made at once in a region; 4 by default. While so many are made, as many that are more urgent may start beside them, and
    /// the others give way at their next part or piece.
    pub parallel: usize,
    /// Bytes read from the main store and not taken by the regions' stores yet, over all regions; 128 MiB by default. A copy by parts takes
    /// what is free, a whole put its share. Half of it is set aside for the regions in equal shares, so that one that hangs holds no other.
    /// One part or piece of each priority may be held in a region in any case. What a store keeps of a put under way comes on top.
    pub bytes_in_flight: ByteSize,
    /// How long one part of a copy may take in any case, from the first byte read until the store has it; 2 min by default. On a slow
    /// lane it may take four times as long as the bytes on their way should at the rate that the lane had lately, and fewer go at once.
    #[serde(with = "friendly")]
    pub part_timeout: Duration,
    /// Tries at one part before the attempt at the copy fails; 4 by default. What was stored until then stays.
    pub part_attempts: u32,
    /// How long a copy is held without a sign of life; 60 s by default. A copy whose replicator died starts again after this.
    #[serde(with = "friendly")]
    pub lease: Duration,
    /// Between reports of progress, each of which renews the lease; 5 s by default, a third of the lease at most.
    #[serde(with = "friendly")]
    pub progress_period: Duration,
    /// A copy of which no byte moved for this long is given up and tried again; 5 min by default. It must cover the time that a region's store
    /// takes to make the largest artifact durable after its last byte, and the time that a lone part takes on the slowest lane: with
    /// parts of 16 MiB, 56 KB/s.
    #[serde(with = "friendly")]
    pub stall_timeout: Duration,
    /// How long any other call to a store or the ledger may take; 30 s by default.
    #[serde(with = "friendly")]
    pub call_timeout: Duration,
    /// Between attempts at one copy; from 1 s to 5 min by default.
    pub retry: Backoff,
    /// Attempts after which a copy is failed until someone [reopens](crate::port::ReplicationLedgerExt::reopen_failed) it; 100 by
    /// default, about 8 hours.
    pub max_attempts: u32,
    /// Between audits: does the region still have what the ledger says it has? 10 min by default.
    #[serde(with = "friendly")]
    pub audit_period: Duration,
    /// After looks that failed.
    pub backoff: Backoff,
}

impl Default for ReplicatorSettings {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(2),
            parallel: 4,
            bytes_in_flight: ByteSize::mib(128),
            part_timeout: Duration::from_mins(2),
            part_attempts: 4,
            lease: Duration::from_mins(1),
            progress_period: Duration::from_secs(5),
            stall_timeout: Duration::from_mins(5),
            call_timeout: Duration::from_secs(30),
            retry: Backoff { initial: Duration::from_secs(1), max: Duration::from_mins(5) },
            max_attempts: 100,
            audit_period: Duration::from_mins(10),
            backoff: Backoff::default(),
        }
    }
}

impl ReplicatorSettings {
    /// Sets the time between looks.
    #[must_use]
    pub fn with_period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// Sets how many copies a lane makes at once.
    #[must_use]
    pub fn with_parallel(mut self, copies: usize) -> Self {
        self.parallel = copies;
        self
    }

    /// Sets how many bytes all lanes hold together.
    #[must_use]
    pub fn with_bytes_in_flight(mut self, bytes: ByteSize) -> Self {
        self.bytes_in_flight = bytes;
        self
    }

    /// Sets how long a part may take and how often it is tried.
    #[must_use]
    pub fn with_parts(mut self, timeout: Duration, attempts: u32) -> Self {
        (self.part_timeout, self.part_attempts) = (timeout, attempts);
        self
    }

    /// Sets the lease.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets how long a copy may stand still.
    #[must_use]
    pub fn with_stall_timeout(mut self, timeout: Duration) -> Self {
        self.stall_timeout = timeout;
        self
    }

    /// Sets the delays between attempts and how many there are.
    #[must_use]
    pub fn with_retry(mut self, retry: Backoff, max_attempts: u32) -> Self {
        (self.retry, self.max_attempts) = (retry, max_attempts);
        self
    }

    /// Sets the time between audits.
    #[must_use]
    pub fn with_audit_period(mut self, period: Duration) -> Self {
        self.audit_period = period;
        self
    }
}

/// Why a look or an audit of a lane ended early; the next one starts over.
#[derive(Debug, thiserror::Error)]
#[error("the lane to {region} cannot use the ledger")]
#[non_exhaustive]
pub struct ReplicatorError {
    /// The lane.
    pub region: RegionName,
    /// Why.
    pub source: ledger::Error,
}

/// What one look of a lane did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplicatorTick {
    /// Copies made, and copies that were there already.
    pub completed: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Attempts whose lease was lost, or whose end could not be told to the ledger.
    pub lost: u64,
}

/// Copies artifacts from the main store to the stores of regions.
#[derive(Debug)]
pub struct Replicator {
    lanes: BTreeMap<RegionName, Arc<Lane>>,
}

impl Replicator {
    /// A replicator with a lane for each of `regions`.
    #[allow(clippy::needless_pass_by_value, reason = "a service takes its backends as others do: by Arc")]
    pub fn new(
        settings: ReplicatorSettings,
        ledger: Arc<dyn ReplicationLedger>,
        main: Arc<dyn ArtifactStore>,
        regions: BTreeMap<RegionName, Arc<dyn ArtifactStore>>,
    ) -> Self {
        let room = Arc::new(Room::new(settings.bytes_in_flight.as_u64(), regions.len()));
        let settings = Arc::new(settings);
        let lane = |(index, (region, store)): (usize, (RegionName, _))| {
            let place = (room.clone(), index);
            let lane = Lane::new(region.clone(), settings.clone(), place, ledger.clone(), main.clone(), store);
            (region, Arc::new(lane))
        };
        Self { lanes: regions.into_iter().enumerate().map(lane).collect() }
    }

    /// Seeds jitter and claim ids, so that a simulated run repeats. A claim id stands for one claim: give each replicator on a ledger, also one
    /// that is started again, a seed of its own.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        for (lane, salt) in self.lanes.values().zip(0..) {
            lane.seed(seed.wrapping_add(salt));
        }
        self
    }

    /// The handles that make each lane look at once: for a registrar in the same process.
    pub fn nudges(&self) -> Vec<Nudge> {
        self.lanes.values().map(|lane| lane.nudge()).collect()
    }

    /// Runs each lane until `shutdown`. Copies under way are dropped then; the next replicator takes them up when their leases run out.
    ///
    /// # Panics
    ///
    /// When a lane does: it would otherwise be missed by nobody.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut lanes = JoinSet::new();
        for lane in self.lanes.values().cloned() {
            let shutdown = shutdown.clone();
            lanes.spawn(async move { lane.run(&shutdown).await });
        }
        while let Some(ended) = lanes.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }

    /// One look of each lane, all at once: claims copies and makes them to their end. For tests and simulations.
    pub async fn tick(&self) -> BTreeMap<RegionName, Result<ReplicatorTick, ReplicatorError>> {
        let ticks = self.lanes.iter().map(|(region, lane)| async { (region.clone(), lane.tick().await) });
        join_all(ticks).await.into_iter().collect()
    }

    /// One audit of each lane, all at once; how many copies were found missing and reopened.
    pub async fn audit(&self) -> BTreeMap<RegionName, Result<u64, ReplicatorError>> {
        let audits = self.lanes.iter().map(|(region, lane)| async { (region.clone(), lane.audit().await) });
        join_all(audits).await.into_iter().collect()
    }
}
