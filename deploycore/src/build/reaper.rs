//! The reaper: takes back jobs whose lease is lost or whose time is over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::model::{friendly, friendly_option};
use crate::pace::{Backoff, Pace, Wake};
use crate::port::queue::{Error, Fate, RescueRequest, Rescued};
use crate::port::{BackendError, JobQueue, chain};

/// How a [`Reaper`] works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReaperSettings {
    /// Between looks; 10 s by default.
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
    /// Finished jobs are deleted at this age; never by default. It must leave the registrar time to see them. Written in hours:
    /// `720h`.
    #[serde(with = "friendly_option")]
    pub prune_after: Option<Duration>,
    /// How long one call to the queue may take; 30 s by default.
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

/// Takes back lost jobs. Any number may run at once: the queue lets each lease be rescued once.
///
/// A reaper that just started, that itself stood still, or that did not reach the queue for a while does not rescue for one
/// heartbeat: what held it up may have held up the workers' heartbeats too (a suspended host, a database that was away), and they
/// get the time to show that they live.
#[derive(Debug)]
pub struct Reaper {
    settings: ReaperSettings,
    queue: Arc<dyn JobQueue>,
    contact: Mutex<Contact>,
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

/// When the reaper was last in touch with the queue.
#[derive(Debug, Default)]
struct Contact {
    last: Option<Instant>,
    rescues_from: Option<Instant>,
}

impl Contact {
    /// Whether so much time passed that heartbeats may be missing through no fault of the workers.
    fn was_away(&self, now: Instant, longest_gap: Duration) -> bool {
        self.last.is_none_or(|last| now.duration_since(last) >= longest_gap)
    }
}

/// Full answers in a row that one look follows.
const ROUNDS: usize = 10;

impl Reaper {
    /// A reaper of `queue`.
    pub fn new(settings: ReaperSettings, queue: Arc<dyn JobQueue>) -> Self {
        Self { settings, queue, contact: Mutex::default(), seed: None }
    }

    /// Seeds the jitter.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Looks until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut pace = Pace::new(self.settings.period, self.settings.backoff);
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

    /// Looks once. Cancel safe.
    pub async fn tick(&self) -> Result<Reaped, Error> {
        if let Some(waits) = self.keep_contact().await? {
            return Ok(Reaped { waits: Some(waits), ..Reaped::default() });
        }
        let rescued = self.rescue().await?;
        let pruned = self.prune().await?;
        Ok(Reaped { rescued, pruned, waits: None })
    }

    /// How long not to rescue yet; `None` when it may.
    async fn keep_contact(&self) -> Result<Option<Duration>, Error> {
        let settings = &self.settings;
        let longest_gap = settings.period.max(settings.backoff.max) + settings.heartbeat;
        if self.contact().was_away(Instant::now(), longest_gap) {
            // Any answer shows that heartbeats can arrive from now on; no job has this id.
            self.call(self.queue.get(Uuid::nil().into())).await?;
            let now = Instant::now();
            *self.contact() = Contact { last: Some(now), rescues_from: Some(now + settings.heartbeat) };
            tracing::info!(wait = ?settings.heartbeat, "the reaper was away; it waits for heartbeats before it rescues");
        }
        let now = Instant::now();
        let mut contact = self.contact();
        let waits = contact.rescues_from.map(|from| from.saturating_duration_since(now)).filter(|wait| !wait.is_zero());
        if waits.is_some() {
            // Waiting is no absence: the period is shorter than the gap.
            contact.last = Some(now);
        }
        Ok(waits)
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
            self.contact().last = Some(Instant::now());
            rescued.iter().for_each(note);
            let full = rescued.len() >= request.limit;
            all.extend(rescued);
            if !full {
                break;
            }
        }
        Ok(all)
    }

    async fn prune(&self) -> Result<usize, Error> {
        let Some(age) = self.settings.prune_after else {
            return Ok(0);
        };
        // What is left is for the next look.
        let pruned = self.call(self.queue.prune(age, crate::port::queue::MAX_BATCH)).await?;
        metrics::counter!("deploycore_reaper_pruned_total").increment(pruned as u64);
        Ok(pruned)
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.settings.call_limit;
        let late = |_| BackendError::retryable("queue", format!("no answer within {limit:?}"));
        timeout(limit, call).await.map_err(late)?
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
