//! The reaper: takes back jobs whose lease is lost or whose time is over.

mod contact;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use self::contact::{Contact, Now, Step};
use super::InvalidSettings;
use super::settings::{Check, RELAXED_HEARTBEAT, RELAXED_LOST_AFTER};
use crate::model::{friendly, friendly_option};
use crate::pace::{Backoff, Horizon, Pace, Wake, within};
use crate::port::queue::{Error, Fate, MAX_BATCH, RescueRequest, Rescued};
use crate::port::{JobQueue, chain};

/// How a [`Reaper`] works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReaperSettings {
    /// Between looks; 10 s by default. It looks more often where `heartbeat` and `lost_after` lie close together.
    #[serde(with = "friendly")]
    pub period: Duration,
    /// Between looks at a queue that fails.
    pub backoff: Backoff,
    /// The workers' time between heartbeats: how long a reaper that was away waits before it rescues. 30 s by default.
    #[serde(with = "friendly")]
    pub heartbeat: Duration,
    /// A lease whose newest heartbeat is at least this old is lost; 90 s by default.
    #[serde(with = "friendly")]
    pub lost_after: Duration,
    /// The delay before a job's second rescue; it doubles with each further one. The first has none.
    pub rescue: Backoff,
    /// Finished jobs are deleted at this age; never by default. It must leave the registrar time to see them, and
    /// where that runs in the same process, [`Reaper::with_horizon`] sees to it. Written in hours: `720h`.
    #[serde(with = "friendly_option")]
    pub prune_after: Option<Duration>,
    /// How long one call to the queue may take; 30 s by default. Less where `heartbeat` and `lost_after` lie close together.
    #[serde(with = "friendly")]
    pub call_limit: Duration,
}

impl Default for ReaperSettings {
    fn default() -> Self {
        let rescue = RescueRequest::default();
        Self {
            period: Duration::from_secs(10),
            backoff: Backoff::default(),
            heartbeat: Duration::from_secs(30),
            lost_after: rescue.lost_after,
            rescue: Backoff { initial: rescue.backoff, max: rescue.backoff_max },
            prune_after: None,
            call_limit: Duration::from_secs(30),
        }
    }
}

impl ReaperSettings {
    /// For workers with [`WorkerSettings::relaxed`](super::WorkerSettings::relaxed): a heartbeat each 3 min, lost after 10 min.
    pub fn relaxed() -> Self {
        Self::default().with_heartbeat(RELAXED_HEARTBEAT, RELAXED_LOST_AFTER)
    }

    /// Sets the time between looks.
    #[must_use]
    pub fn with_period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// Sets the workers' time between heartbeats and the age at which a lease is lost.
    #[must_use]
    pub fn with_heartbeat(mut self, heartbeat: Duration, lost_after: Duration) -> Self {
        self.heartbeat = heartbeat;
        self.lost_after = lost_after;
        self
    }

    /// Sets the delays between a job's rescues.
    #[must_use]
    pub fn with_rescue(mut self, rescue: Backoff) -> Self {
        self.rescue = rescue;
        self
    }

    /// Sets the age at which finished jobs are deleted.
    #[must_use]
    pub fn with_prune_after(mut self, age: Option<Duration>) -> Self {
        self.prune_after = age;
        self
    }
}

impl ReaperSettings {
    /// Whether a reaper can work with them.
    pub(super) fn check(&self) -> Result<(), InvalidSettings> {
        let check = Check::of("reaper");
        check.not_zero([
            ("period", self.period),
            ("heartbeat", self.heartbeat),
            ("call_limit", self.call_limit),
            ("backoff.initial", self.backoff.initial),
            ("backoff.max", self.backoff.max),
        ])?;
        check.heartbeat(self.heartbeat, self.lost_after)
    }

    /// The longest time between two answers of the queue after which a rescue is still safe. When heartbeats do not arrive for a while, the
    /// newest one of a living worker is up to `heartbeat` older than that. What is left until `lost_after` is shared by the gap
    /// before a rescue and the rescue itself, which may have to wait for the same thing as the heartbeats.
    fn longest_gap(&self) -> Duration {
        self.lost_after.saturating_sub(self.heartbeat) / 2
    }

    /// Two looks within the gap, so that a healthy reaper never seems to be away.
    fn look(&self) -> Duration {
        self.period.min(self.longest_gap() / 2)
    }
}

/// Takes back lost jobs. Any number may run at once: the queue lets each lease be rescued once.
///
/// A reaper that just started, that itself stood still, or whose writes did not reach the queue for a while does not rescue for one
/// heartbeat: what held it up may have held up the workers' heartbeats too (a suspended host, a database that was away), and they
/// get the time to show that they live.
#[derive(Debug)]
pub struct Reaper {
    settings: ReaperSettings,
    queue: Arc<dyn JobQueue>,
    contact: Mutex<Contact>,
    horizon: Option<Horizon>,
    seed: Option<u64>,
}

/// What one look did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reaped {
    /// The jobs taken back.
    pub rescued: Vec<Rescued>,
    /// Finished jobs deleted.
    pub pruned: usize,
    /// Set when nothing was rescued because the reaper was away: how long it still waits.
    pub waits: Option<Duration>,
}

/// Full answers in a row that one look follows.
const ROUNDS: usize = 10;
/// No job finished so long ago: pruning at this age writes nothing, and waits for what a heartbeat would wait for.
const EVER: Duration = Duration::from_hours(24 * 365 * 100);

impl Reaper {
    /// A reaper of `queue`. Times of zero, and a `lost_after` shorter than two heartbeats, are refused.
    pub fn new(settings: ReaperSettings, queue: Arc<dyn JobQueue>) -> Result<Self, InvalidSettings> {
        settings.check()?;
        let contact = Mutex::new(Contact::new(settings.longest_gap(), settings.heartbeat));
        Ok(Self { settings, queue, contact, horizon: None, seed: None })
    }

    /// Seeds the jitter.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Deletes no job that finished after this horizon, whatever its age: that of a registrar, so that no artifact is forgotten before it is
    /// in the ledger.
    #[must_use]
    pub fn with_horizon(mut self, horizon: Horizon) -> Self {
        self.horizon = Some(horizon);
        self
    }

    /// Looks until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut pace = Pace::new(self.settings.look(), self.settings.backoff);
        if let Some(seed) = self.seed {
            pace = pace.with_seed(seed);
        }
        loop {
            let look = shutdown.run_until_cancelled(self.tick()).await;
            match look {
                None => return,
                Some(Ok(_)) => pace.note(true),
                Some(Err(error)) => {
                    tracing::warn!(error = chain(&error), "the reaper could not look");
                    pace.note(false);
                }
            }
            if pace.wait(std::future::pending(), &shutdown).await == Wake::Shutdown {
                return;
            }
        }
    }

    /// Looks once. Cancel safe. Who calls it by hand does so at least four times in the time between `heartbeat` and `lost_after`, or it
    /// takes every call for the first after an absence and rescues nothing.
    pub async fn tick(&self) -> Result<Reaped, Error> {
        if let Step::Wait(_) = self.step() {
            self.ask().await?;
        }
        if let Step::Wait(waits) = self.step() {
            return Ok(Reaped { waits: Some(waits), ..Reaped::default() });
        }
        let rescued = self.rescue().await?;
        let pruned = self.prune().await?;
        Ok(Reaped { rescued, pruned, waits: None })
    }

    fn step(&self) -> Step {
        self.contact().step(Now::read())
    }

    /// Asks whether heartbeats arrive.
    async fn ask(&self) -> Result<(), Error> {
        self.call(self.queue.prune(EVER, 1)).await?;
        if self.contact().answered(Now::read()) {
            let wait = self.settings.heartbeat;
            tracing::info!(?wait, "the reaper was away; it waits for heartbeats before it rescues");
        }
        Ok(())
    }

    async fn rescue(&self) -> Result<Vec<Rescued>, Error> {
        let request = RescueRequest {
            lost_after: self.settings.lost_after,
            backoff: self.settings.rescue.initial,
            backoff_max: self.settings.rescue.max,
            ..RescueRequest::default()
        };
        let mut all = Vec::new();
        for _ in 0..ROUNDS {
            let rescued = self.call(self.queue.rescue(&request)).await?;
            self.contact().answered(Now::read());
            rescued.iter().for_each(note);
            let full = rescued.len() >= request.limit;
            all.extend(rescued);
            if !full || self.step() != Step::Rescue {
                break;
            }
        }
        Ok(all)
    }

    async fn prune(&self) -> Result<usize, Error> {
        let Some(age) = self.prune_age() else {
            return Ok(0);
        };
        // What is left is for the next look.
        let pruned = self.call(self.queue.prune(age, MAX_BATCH)).await?;
        metrics::counter!("deploycore_reaper_pruned_total").increment(pruned as u64);
        Ok(pruned)
    }

    fn prune_age(&self) -> Option<Duration> {
        let age = self.settings.prune_after?;
        match &self.horizon {
            Some(horizon) => horizon.age().map(|least| age.max(least)),
            None => Some(age),
        }
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        within(self.settings.call_limit.min(self.settings.longest_gap()), "queue", call).await
    }

    fn contact(&self) -> std::sync::MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(rescued: &Rescued) {
    let lease = rescued.lease;
    let fate = match &rescued.fate {
        Fate::Requeued { .. } => "requeued",
        Fate::Failed { .. } => "failed",
        Fate::Cancelled => "cancelled",
    };
    tracing::warn!(job = %lease.job, epoch = %lease.epoch, fate, "a lost job was taken back");
    metrics::counter!("deploycore_reaper_rescued_total", "fate" => fate).increment(1);
}
