//! One region's lane: what it claims, how much it does at once, when it looks again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info_span, warn};

use super::copy::{Copy, Outcome};
use super::{ReplicatorError, ReplicatorSettings, ReplicatorTick};
use crate::model::{ClaimId, CopyTask, RegionName};
use crate::pace::{Nudge, Pace, Wake, within};
use crate::port::chain;
use crate::port::ledger::{self, ClaimRequest, MAX_BATCH, ReplicationLedger};
use crate::port::store::ArtifactStore;

/// A region's lane.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) region: RegionName,
    pub(super) settings: Arc<ReplicatorSettings>,
    pub(super) ledger: Arc<dyn ReplicationLedger>,
    pub(super) main: Arc<dyn ArtifactStore>,
    pub(super) store: Arc<dyn ArtifactStore>,
    nudge: Nudge,
    /// The bytes in flight, in units of [`UNIT`].
    room: Semaphore,
    state: Mutex<State>,
}

/// Bytes are counted in KiB: a semaphore counts to 2^61, one call takes at most 2^32.
const UNIT: u64 = 1024;

#[derive(Debug)]
struct State {
    random: fastrand::Rng,
    /// A claim whose reply was lost: repeated, it gives the copies that it took, instead of leaving them until their leases run out.
    unanswered: Option<ClaimId>,
}

impl Lane {
    pub(super) fn new(
        region: RegionName,
        settings: Arc<ReplicatorSettings>,
        ledger: Arc<dyn ReplicationLedger>,
        main: Arc<dyn ArtifactStore>,
        store: Arc<dyn ArtifactStore>,
    ) -> Self {
        let state = Mutex::new(State { random: fastrand::Rng::new(), unanswered: None });
        let room = Semaphore::new(units(settings.bytes_in_flight.as_u64()) as usize);
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
        let mut copies = JoinSet::new();
        loop {
            let free = self.parallel().saturating_sub(copies.len());
            if free > 0 {
                let claimed = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    claimed = self.claim(free) => claimed,
                };
                pace.note(claimed.is_ok());
                match claimed {
                    Ok(tasks) => tasks.into_iter().for_each(|task| {
                        copies.spawn(self.clone().copy(task));
                    }),
                    Err(error) => self.warn_of(&error, "claim", pace.failures()),
                }
            }
            tokio::select! {
                biased;
                // A free slot may be filled at once, unless the ledger fails: then only the backoff leads back to it.
                Some(ended) = copies.join_next(), if pace.failures() == 0 => { self.note(ended); }
                wake = pace.wait(self.nudge.given(), shutdown) => if wake == Wake::Shutdown { return },
            }
            while let Some(ended) = copies.try_join_next() {
                self.note(ended);
            }
        }
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
        for task in self.claim(self.parallel()).await? {
            copies.spawn(self.clone().copy(task));
        }
        while let Some(ended) = copies.join_next().await {
            match self.note(ended) {
                Some(Outcome::Completed) => tick.completed += 1,
                Some(Outcome::Failed) => tick.failed += 1,
                Some(Outcome::Lost) | None => tick.lost += 1,
            }
        }
        Ok(tick)
    }

    async fn claim(&self, limit: usize) -> Result<Vec<CopyTask>, ReplicatorError> {
        let claim = self.next_claim();
        let request = ClaimRequest {
            claim,
            region: self.region.clone(),
            lease: self.settings.lease.min(ledger::bounds::MAX_LEASE),
            limit,
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

    fn note(&self, ended: Result<Outcome, tokio::task::JoinError>) -> Option<Outcome> {
        let (outcome, word) = match ended {
            Ok(outcome) => (Some(outcome), outcome.as_str()),
            Err(error) => {
                // A store that panics costs this one attempt: its lease runs out.
                error!(region = %self.region, %error, "a copy panicked");
                (None, "panicked")
            }
        };
        let labels = [("region", self.region.to_string()), ("outcome", word.to_owned())];
        metrics::counter!("deploycore_replicator_copies_total", &labels).increment(1);
        outcome
    }

    pub(super) fn error(&self, source: ledger::Error) -> ReplicatorError {
        ReplicatorError { region: self.region.clone(), source }
    }

    /// The delay before the next attempt, after `attempt` ones.
    pub(super) fn retry_delay(&self, attempt: u32) -> Duration {
        self.settings.retry.delay(attempt).mul_f64(1.0 - 0.1 * self.lock().random.f64())
    }

    /// Waits until the lane has room for so many bytes; what is larger than the lane waits for all of it.
    pub(super) async fn hold(&self, bytes: u64) -> SemaphorePermit<'_> {
        let units = units(bytes).min(units(self.settings.bytes_in_flight.as_u64()));
        self.room.acquire_many(units).await.expect("nobody closes it")
    }

    pub(super) fn count_sent(&self, bytes: u64) {
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

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1)
}
