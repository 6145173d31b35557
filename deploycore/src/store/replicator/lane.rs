//! One region's lane: what it claims, how much it does at once, when it looks again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::{self, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info_span, warn};

use super::copy::{Copy, Outcome};
use super::parts::MAX_PARTS_AHEAD;
use super::room::{Moving, Room};
use super::tempo::{Begun, Tempo};
use super::{ReplicatorError, ReplicatorSettings, ReplicatorTick};
use crate::model::{ClaimId, CopyPriority, CopyTask, RegionName};
use crate::pace::{Nudge, Pace, Wake, within};
use crate::port::chain;
use crate::port::ledger::{self, ClaimRequest, MAX_BATCH, ReplicationLedger};
use crate::port::store::ArtifactStore;

/// After so many copies in a row that a store failed in, one of the stores is taken to be down.
const STORE_IS_DOWN: u32 = 8;

/// A region's lane.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) region: RegionName,
    pub(super) settings: Arc<ReplicatorSettings>,
    pub(super) ledger: Arc<dyn ReplicationLedger>,
    pub(super) main: Arc<dyn ArtifactStore>,
    pub(super) store: Arc<dyn ArtifactStore>,
    nudge: Nudge,
    /// The memory of all lanes, and which of them this is.
    room: (Arc<Room>, usize),
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tempo: Tempo,
    random: fastrand::Rng,
    /// Copies in a row that a store failed in, with no byte stored in between.
    store_failures: u32,
    /// A claim whose reply was lost: repeated, it gives the copies that it took, instead of leaving them until their leases run out.
    unanswered: Option<ClaimId>,
}

impl Lane {
    pub(super) fn new(
        region: RegionName,
        settings: Arc<ReplicatorSettings>,
        room: (Arc<Room>, usize),
        ledger: Arc<dyn ReplicationLedger>,
        main: Arc<dyn ArtifactStore>,
        store: Arc<dyn ArtifactStore>,
    ) -> Self {
        let tempo = Tempo::new(settings.part_timeout, settings.stall_timeout, MAX_PARTS_AHEAD);
        let state = Mutex::new(State { tempo, random: fastrand::Rng::new(), store_failures: 0, unanswered: None });
        Self { region, settings, ledger, main, store, nudge: Nudge::default(), room, state }
    }

    pub(super) fn seed(&self, seed: u64) {
        self.lock().random = fastrand::Rng::with_seed(seed);
    }

    pub(super) fn nudge(&self) -> Nudge {
        self.nudge.clone()
    }

    /// Copies and audits until `shutdown`, side by side: a long copy does not put off an audit.
    pub(super) async fn run(self: Arc<Self>, shutdown: &CancellationToken) {
        tokio::join!(self.clone().run_copies(shutdown), self.run_audits(shutdown));
    }

    async fn run_copies(self: Arc<Self>, shutdown: &CancellationToken) {
        let mut pace = self.pace(self.settings.period);
        let (mut copies, mut running) = (JoinSet::new(), HashMap::new());
        loop {
            // While a store is down, one copy at a time finds out whether it still is, each after a backoff: each attempt counts against the most that
            // a copy has, and another replicator of the region may be able to make it.
            let is_down = self.is_down();
            let free = self.free(&running).filter(|_| !is_down || running.is_empty());
            if let Some((free, least)) = free {
                let free = if is_down { 1 } else { free };
                let claimed = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    claimed = self.claim(free, least) => claimed,
                };
                pace.note(claimed.is_ok() && !is_down);
                match claimed {
                    Ok(tasks) => tasks.into_iter().for_each(|task| {
                        let priority = task.priority;
                        let copy = copies.spawn(self.clone().copy(task));
                        running.insert(copy.id(), priority);
                    }),
                    Err(error) => self.warn_of(&error, "claim", pace.failures()),
                }
            }
            tokio::select! {
                biased;
                // A free slot may be filled at once, unless the ledger fails: then only the backoff leads back to it.
                Some(ended) = copies.join_next_with_id(), if pace.failures() == 0 => self.end(ended, &mut running),
                wake = pace.wait(self.nudge.given(), shutdown) => if wake == Wake::Shutdown { return },
            }
            while let Some(ended) = copies.try_join_next_with_id() {
                self.end(ended, &mut running);
            }
        }
    }

    /// How many further copies may start, and how urgent they must be: beside as many as the lane makes at once, only those that are more
    /// urgent.
    fn free(&self, running: &HashMap<task::Id, CopyPriority>) -> Option<(usize, CopyPriority)> {
        CopyPriority::ALL.into_iter().find_map(|least| {
            let taken = running.values().filter(|priority| **priority >= least).count();
            let free = self.parallel().saturating_sub(taken);
            (free > 0).then_some((free, least))
        })
    }

    fn end(&self, ended: Result<(task::Id, Outcome), JoinError>, running: &mut HashMap<task::Id, CopyPriority>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        running.remove(&id);
        self.note(ended.map(|(_, outcome)| outcome));
    }

    async fn run_audits(&self, shutdown: &CancellationToken) {
        let mut pace = self.pace(self.settings.audit_period);
        loop {
            if pace.wait(std::future::pending(), shutdown).await == Wake::Shutdown {
                return;
            }
            let audited = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                audited = self.audit() => audited,
            };
            pace.note(audited.is_ok());
            match audited {
                Ok(0) => {}
                Ok(_) => self.nudge.nudge(),
                Err(error) => self.warn_of(&error, "audit", pace.failures()),
            }
        }
    }

    /// Claims as many copies as the lane makes at once, and makes them to their end.
    pub(super) async fn tick(self: &Arc<Self>) -> Result<ReplicatorTick, ReplicatorError> {
        let (mut tick, mut copies) = (ReplicatorTick::default(), JoinSet::new());
        for task in self.claim(self.parallel(), CopyPriority::Normal).await? {
            copies.spawn(self.clone().copy(task));
        }
        while let Some(ended) = copies.join_next().await {
            match self.note(ended) {
                Some(Outcome::Completed) => tick.completed += 1,
                Some(Outcome::Failed { .. }) => tick.failed += 1,
                Some(Outcome::Lost) | None => tick.lost += 1,
            }
        }
        Ok(tick)
    }

    async fn claim(&self, limit: usize, least: CopyPriority) -> Result<Vec<CopyTask>, ReplicatorError> {
        let claim = self.next_claim();
        let request = ClaimRequest {
            claim,
            region: self.region.clone(),
            lease: self.settings.lease.min(ledger::bounds::MAX_LEASE),
            limit,
            least,
        };
        let tasks = within(self.settings.call_timeout, "ledger", self.ledger.claim(&request)).await;
        let tasks = tasks.map_err(|source| self.error(source))?;
        self.lock().unanswered = None;
        if !tasks.is_empty() {
            debug!(region = %self.region, copies = tasks.len(), "copies claimed");
        }
        Ok(tasks)
    }

    /// A claim stays unanswered until its reply is here: also when the look is dropped meanwhile.
    fn next_claim(&self) -> ClaimId {
        let mut state = self.lock();
        if let Some(claim) = state.unanswered {
            return claim;
        }
        let claim = ClaimId::from(uuid::Builder::from_random_bytes(state.random.u128(..).to_be_bytes()).into_uuid());
        state.unanswered = Some(claim);
        claim
    }

    async fn copy(self: Arc<Self>, task: CopyTask) -> Outcome {
        let span = info_span!("copy", region = %self.region, artifact = %task.artifact.name, attempt = task.attempt);
        Copy { lane: &self, task: &task }.make().instrument(span).await
    }

    /// Whether nothing but failures of a store has come of this lane's copies for some time.
    fn is_down(&self) -> bool {
        self.lock().store_failures >= STORE_IS_DOWN
    }

    fn note(&self, ended: Result<Outcome, JoinError>) -> Option<Outcome> {
        let (outcome, word) = match ended {
            Ok(outcome) => (Some(outcome), outcome.as_str()),
            Err(error) => {
                // A store that panics costs this one attempt: its lease runs out.
                error!(region = %self.region, %error, "a copy panicked");
                (None, "panicked")
            }
        };
        match outcome {
            Some(Outcome::Completed) => self.lock().store_failures = 0,
            Some(Outcome::Failed { by_store: true }) => self.note_store_failure(),
            _ => {}
        }
        let labels = [("region", self.region.to_string()), ("outcome", word.to_owned())];
        metrics::counter!("deploycore_replicator_copies_total", &labels).increment(1);
        outcome
    }

    fn note_store_failure(&self) {
        let failures = {
            let mut state = self.lock();
            state.store_failures = state.store_failures.saturating_add(1);
            state.store_failures
        };
        if failures == STORE_IS_DOWN {
            warn!(region = %self.region, failures, "a store fails in copy after copy: one is made at a time until one goes well");
        }
    }

    pub(super) fn error(&self, source: ledger::Error) -> ReplicatorError {
        ReplicatorError { region: self.region.clone(), source }
    }

    /// The delay before the next attempt, after `attempt` ones.
    pub(super) fn retry_delay(&self, attempt: u32) -> Duration {
        self.settings.retry.delay(attempt).mul_f64(1.0 - 0.1 * self.lock().random.f64())
    }

    /// A copy begins to move bytes.
    pub(super) fn begin_moving(&self, priority: CopyPriority) -> Arc<Moving> {
        Moving::begin(self.room.0.clone(), self.room.1, priority)
    }

    /// The bytes that a put may hold: small enough that each copy the lane may make has them at once.
    pub(super) fn put_share(&self) -> u64 {
        self.room.0.share_of(2 * self.parallel())
    }

    /// How many parts of a size may be on their way, over all copies.
    pub(super) fn parts_ahead(&self, part: u64) -> usize {
        self.lock().tempo.ahead(part, MAX_PARTS_AHEAD)
    }

    /// How long a part may take as things are.
    pub(super) fn part_limit(&self) -> Duration {
        let (bytes, _) = self.room.0.in_flight(self.room.1);
        self.lock().tempo.limit(bytes)
    }

    pub(super) fn begin_part(&self) -> Begun {
        self.lock().tempo.begin(Instant::now())
    }

    pub(super) fn note_part(&self, begun: Begun, bytes: u64) {
        self.lock().tempo.note_moved(begun, bytes, Instant::now());
    }

    pub(super) fn note_late_part(&self, begun: Begun) {
        let (_, parts) = self.room.0.in_flight(self.room.1);
        self.lock().tempo.note_late(begun, parts, Instant::now());
    }

    /// The region's store has taken so many bytes.
    pub(super) fn count_sent(&self, bytes: u64) {
        self.lock().store_failures = 0;
        metrics::counter!("deploycore_replicator_bytes_total", "region" => self.region.to_string()).increment(bytes);
    }

    pub(super) fn parallel(&self) -> usize {
        self.settings.parallel.clamp(1, MAX_BATCH)
    }

    fn pace(&self, period: Duration) -> Pace {
        let seed = self.lock().random.u64(..);
        Pace::new(period, self.settings.backoff).with_seed(seed)
    }

    fn warn_of(&self, error: &ReplicatorError, what: &'static str, failures: u32) {
        warn!(region = %self.region, what, failures, error = %chain(error), "a lane's look failed");
        let labels = [("region", self.region.to_string()), ("what", what.to_owned())];
        metrics::counter!("deploycore_replicator_failures_total", &labels).increment(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
