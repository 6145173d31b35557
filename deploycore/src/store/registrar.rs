//! The registrar: each job that succeeded gets its rows in the ledger.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::model::{ArtifactName, CopyPriority, Job, JobStatus, NewArtifact, RegionName, Timestamp, friendly};
use crate::pace::{Backoff, Horizon, Nudge, Pace, Wake, within};
use crate::port::chain;
use crate::port::ledger::{self, Registered, ReplicationLedger};
use crate::port::queue::{self, JobFilter, JobQueue};

/// Jobs looked at in one call.
const PAGE: u32 = 500;

/// What a [`Registrar`] does and how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrarSettings {
    /// The regions that must have an artifact before it may be deployed; at least one.
    pub required: BTreeSet<RegionName>,
    /// Between looks at the jobs that finished lately; 5 s by default.
    #[serde(with = "friendly")]
    pub period: Duration,
    /// How far a look reaches back behind the newest finish that an earlier one saw; 5 min by default. A job's finish is stamped
    /// before its transaction is visible, so it must be longer than a completion can take.
    #[serde(with = "friendly")]
    pub overlap: Duration,
    /// Between looks at all jobs, for what slipped through or was held back by an error; 1 h by default. The first look is one.
    #[serde(with = "friendly")]
    pub full_sweep_period: Duration,
    /// How long the queue or the ledger may take to answer; 30 s by default.
    #[serde(with = "friendly")]
    pub call_timeout: Duration,
    /// Artifacts of jobs with this priority or a higher one are copied as emergencies, before those of other builds; 100 by default.
    pub emergency_from: i16,
    /// After looks that failed.
    pub backoff: Backoff,
}

impl Default for RegistrarSettings {
    fn default() -> Self {
        Self {
            required: BTreeSet::new(),
            period: Duration::from_secs(5),
            overlap: Duration::from_mins(5),
            full_sweep_period: Duration::from_hours(1),
            call_timeout: Duration::from_secs(30),
            emergency_from: 100,
            backoff: Backoff::default(),
        }
    }
}

impl RegistrarSettings {
    /// Sets the required regions.
    #[must_use]
    pub fn with_required(mut self, regions: impl IntoIterator<Item = RegionName>) -> Self {
        self.required = regions.into_iter().collect();
        self
    }

    /// Sets from which priority on a job is an emergency.
    #[must_use]
    pub fn with_emergency_from(mut self, priority: i16) -> Self {
        self.emergency_from = priority;
        self
    }

    fn priority_of(&self, job: &Job) -> CopyPriority {
        if job.spec.priority >= self.emergency_from { CopyPriority::Emergency } else { CopyPriority::Normal }
    }

    /// Sets the time between looks.
    #[must_use]
    pub fn with_period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// Sets how far a look reaches back.
    #[must_use]
    pub fn with_overlap(mut self, overlap: Duration) -> Self {
        self.overlap = overlap;
        self
    }

    /// Sets the time between looks at all jobs.
    #[must_use]
    pub fn with_full_sweep_period(mut self, period: Duration) -> Self {
        self.full_sweep_period = period;
        self
    }
}

/// Why a look ended early. What it registered before stays; the next look starts over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistrarError {
    /// The settings name no region: an artifact that nobody must have would never be deployable.
    #[error("the registrar requires no region: name at least one in its settings")]
    NoRegions,
    /// The jobs could not be read.
    #[error("the registrar cannot read the queue")]
    Queue(#[source] queue::Error),
    /// The ledger could not be read or written.
    #[error("the registrar cannot use the ledger")]
    Ledger(#[source] ledger::Error),
}

/// What one look did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RegistrarTick {
    /// Succeeded jobs looked at.
    pub looked_at: u64,
    /// Artifacts registered.
    pub registered: u64,
    /// Artifacts that the ledger refuses; each is logged.
    pub refused: u64,
    /// Artifacts that the ledger does not take yet, because the same bytes, of older artifacts, are being deleted; the next look tries again.
    pub held_back: u64,
}

/// Finds succeeded jobs that the ledger does not know and registers what they made.
///
/// It goes by what is missing, not by an event: a crash between the end of a job in one database and the registration in the other loses
/// nothing. Many may run at once, also with the same jobs in hand.
#[derive(Debug)]
pub struct Registrar {
    settings: RegistrarSettings,
    jobs: Arc<dyn JobQueue>,
    ledger: Arc<dyn ReplicationLedger>,
    nudge: Nudge,
    hints: Vec<Nudge>,
    horizon: Horizon,
    seed: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// The newest finish that a whole look saw.
    watermark: Option<Timestamp>,
    full_sweep_at: Option<Instant>,
}

impl Registrar {
    /// A registrar between a queue and a ledger.
    pub fn new(settings: RegistrarSettings, jobs: Arc<dyn JobQueue>, ledger: Arc<dyn ReplicationLedger>) -> Self {
        let (nudge, horizon, state) = (Nudge::default(), Horizon::default(), Mutex::default());
        Self { settings, jobs, ledger, nudge, hints: Vec::new(), horizon, seed: None, state }
    }

    /// Seeds the jitter.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Whom else to hint to after registrations: a replicator's lane in the same process.
    #[must_use]
    pub fn with_hint_to(mut self, nudge: Nudge) -> Self {
        self.hints.push(nudge);
        self
    }

    /// The handle that makes it look at once: for a worker in the same process.
    pub fn nudge(&self) -> Nudge {
        self.nudge.clone()
    }

    /// Each job that had finished by then was seen: its artifact is in the ledger, or was refused by it. For a reaper that prunes.
    pub fn horizon(&self) -> Horizon {
        self.horizon.clone()
    }

    /// Looks again and again until `shutdown`.
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
                warn!(error = %chain(&error), failures = pace.failures(), "the registrar's look failed");
                metrics::counter!("deploycore_registrar_failures_total").increment(1);
            }
            if pace.wait(self.nudge.given(), &shutdown).await == Wake::Shutdown {
                return;
            }
        }
    }

    /// One look: at the jobs that finished lately, or at all of them when that is due.
    ///
    /// Errors: `NoRegions` before anything is read; `Queue`, `Ledger`.
    pub async fn tick(&self) -> Result<RegistrarTick, RegistrarError> {
        if self.settings.required.is_empty() {
            return Err(RegistrarError::NoRegions);
        }
        let (state, now) = (*self.lock(), Instant::now());
        let full = state.full_sweep_at.is_none_or(|at| now.duration_since(at) >= self.settings.full_sweep_period);
        let since = state.watermark.filter(|_| !full).map(|watermark| self.reach_back(watermark));
        let (tick, newest) = self.look(since).await?;

        // Only a whole look moves the watermark: what an error held back is looked at again.
        let mut state = self.lock();
        if tick.held_back == 0 {
            state.watermark = state.watermark.max(newest);
            // Not up to now: a finish that was stamped before may not be visible yet.
            if let Some(seen) = now.checked_sub(self.settings.overlap) {
                self.horizon.reach(seen);
            }
        }
        if full {
            state.full_sweep_at = Some(now);
        }
        drop(state);
        if tick.registered > 0 {
            info!(registered = tick.registered, full, "artifacts registered");
            metrics::counter!("deploycore_registrar_registered_total").increment(tick.registered);
            self.hints.iter().for_each(Nudge::nudge);
        }
        Ok(tick)
    }

    fn reach_back(&self, watermark: Timestamp) -> Timestamp {
        let overlap = jiff::SignedDuration::try_from(self.settings.overlap).unwrap_or(jiff::SignedDuration::MAX);
        watermark.checked_sub(overlap).unwrap_or(Timestamp::MIN)
    }

    /// Walks the succeeded jobs; also says the newest finish among them.
    async fn look(&self, since: Option<Timestamp>) -> Result<(RegistrarTick, Option<Timestamp>), RegistrarError> {
        let filter = JobFilter { statuses: vec![JobStatus::Succeeded], finished_since: since, ..JobFilter::default() };
        let (mut tick, mut newest, mut after) = (RegistrarTick::default(), None, None);
        loop {
            let listed = within(self.settings.call_timeout, "job queue", self.jobs.list(&filter, after, PAGE)).await;
            let page = listed.map_err(RegistrarError::Queue)?;
            newest = newest.max(page.jobs.iter().filter_map(|job| job.finished_at).max());
            tick.looked_at += page.jobs.len() as u64;
            self.register_missing(&page.jobs, &mut tick).await.map_err(RegistrarError::Ledger)?;
            after = page.next;
            if after.is_none() {
                return Ok((tick, newest));
            }
        }
    }

    async fn register_missing(&self, jobs: &[Job], tick: &mut RegistrarTick) -> Result<(), ledger::Error> {
        let names: Vec<ArtifactName> =
            jobs.iter().filter_map(|job| Some(job.artifact.as_ref()?.name.clone())).collect();
        if names.is_empty() {
            return Ok(());
        }
        let limit = self.settings.call_timeout;
        let missing = within(limit, "ledger", self.ledger.unregistered(&names)).await?;
        // Oldest first, so that copies start in the order of the builds.
        for job in jobs.iter().rev() {
            let Some(artifact) = job.artifact.as_ref().filter(|artifact| missing.contains(&artifact.name)) else {
                continue;
            };
            let new = NewArtifact {
                artifact: artifact.clone(),
                service: job.spec.service.clone(),
                job: job.spec.id,
                required: self.settings.required.clone(),
                priority: self.settings.priority_of(job),
            };
            match within(limit, "ledger", self.ledger.register(&new)).await {
                Ok(Registered::Created) => {
                    debug!(artifact = %artifact.name, job = %job.spec.id, "registered");
                    tick.registered += 1;
                }
                Ok(Registered::Repeated) => {}
                Err(error @ ledger::Error::Backend(_)) => return Err(error),
                Err(error @ ledger::Error::BeingDeleted { .. }) => {
                    info!(artifact = %artifact.name, reason = %chain(&error), "an artifact is registered later");
                    tick.held_back += 1;
                }
                // One artifact that the ledger refuses must not keep the others waiting.
                Err(error) => {
                    warn!(artifact = %artifact.name, job = %job.spec.id, error = %chain(&error), "the ledger refuses an artifact");
                    metrics::counter!("deploycore_registrar_refused_total").increment(1);
                    tick.refused += 1;
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
