//! The mirror: copies goals from the global store to a region's.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::planner::{Copy, copy_of};
use crate::model::{Goal, Revision, friendly};
use crate::pace::{Backoff, GoalHints, Pace, Wake};
use crate::port::goals::{Changes, Error, MAX_BATCH, Snapshot};
use crate::port::{BackendError, GoalStateStore, chain};

/// How a [`Mirror`] works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MirrorSettings {
    /// Between looks, unless the global store wishes for longer pauses because it has much to do; 10 s by default.
    #[serde(with = "friendly")]
    pub period: Duration,
    /// Between looks at stores that fail.
    pub backoff: Backoff,
    /// Between comparisons of everything, which notice a store that was lost or restored; 1 min by default.
    #[serde(with = "friendly")]
    pub compare_all: Duration,
    /// Whether changes are watched too, so that most goals arrive within a second; yes by default.
    pub watch: bool,
    /// How long one call to a store may take; 10 s by default.
    #[serde(with = "friendly")]
    pub call_limit: Duration,
}

impl Default for MirrorSettings {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(10),
            backoff: Backoff { initial: Duration::from_millis(500), max: Duration::from_secs(10) },
            compare_all: Duration::from_mins(1),
            watch: true,
            call_limit: Duration::from_secs(10),
        }
    }
}

impl MirrorSettings {
    /// Sets the time between looks.
    #[must_use]
    pub fn with_period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// Sets the time between comparisons of everything.
    #[must_use]
    pub fn with_compare_all(mut self, period: Duration) -> Self {
        self.compare_all = period;
        self
    }

    /// Sets whether changes are watched too.
    #[must_use]
    pub fn with_watch(mut self, watch: bool) -> Self {
        self.watch = watch;
        self
    }
}

/// Copies goals one way, and never backwards: the target's goals only grow. Any number may run at once.
///
/// A crash loses nothing: a new mirror starts with a comparison of everything. A goal that was replaced before the mirror saw it is
/// never copied; so a region's history may have gaps.
#[derive(Debug)]
pub struct Mirror {
    settings: MirrorSettings,
    source: Arc<dyn GoalStateStore>,
    target: Arc<dyn GoalStateStore>,
    seen: Mutex<Seen>,
    seed: Option<u64>,
}

/// How far the source was read, with everything copied that it said.
#[derive(Debug, Default)]
struct Seen {
    through: Revision,
    compared_all: Option<Instant>,
}

/// What one look did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mirrored {
    /// Goals written to the target.
    pub copied: usize,
    /// Goals for which the target is ahead of the source.
    pub stale: usize,
    /// Goals whose position has another content in the target.
    pub equivocations: usize,
}

/// Pages of changes that one look follows; the rest is for the next.
const PAGES: usize = 100;
/// Tries to copy one goal while another mirror writes too.
const TRIES: usize = 5;

impl Mirror {
    /// A mirror from `source`, the global store, to `target`, a region's.
    pub fn new(settings: MirrorSettings, source: Arc<dyn GoalStateStore>, target: Arc<dyn GoalStateStore>) -> Self {
        Self { settings, source, target, seen: Mutex::default(), seed: None }
    }

    /// Seeds the jitter.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Mirrors until `shutdown`.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut pace = Pace::new(self.settings.period, self.settings.backoff);
        if let Some(seed) = self.seed {
            pace = pace.with_seed(seed);
        }
        let mut hints = self.settings.watch.then(|| GoalHints::new(Arc::clone(&self.source), pace.clone()));
        loop {
            match shutdown.run_until_cancelled(self.tick()).await {
                None => return,
                Some(Ok(_)) => {
                    pace.note(true);
                    pace.wish(self.source.next_poll());
                }
                Some(Err(error)) => {
                    tracing::warn!(error = chain(&error), "mirroring failed");
                    metrics::counter!("deploycore_mirror_failures_total").increment(1);
                    pace.note(false);
                }
            }
            if pace.wait(self.hint(hints.as_mut()), &shutdown).await == Wake::Shutdown {
                return;
            }
        }
    }

    /// Copies what is missing once. A goal that cannot be copied holds no other back; the first failure is the answer then, and the
    /// next look begins at the same place.
    pub async fn tick(&self) -> Result<Mirrored, Error> {
        let mut seen = self.seen.lock().await;
        let mut done = Mirrored::default();
        let compare_all = seen.compared_all.is_none_or(|at| at.elapsed() >= self.settings.compare_all);
        if compare_all {
            return self.compare_all(&mut seen, &mut done).await.map(|()| done);
        }
        for _ in 0..PAGES {
            match self.call(self.source.changes(seen.through)).await {
                Ok(Changes { revision, goals }) => {
                    self.copy_goals(goals.iter().map(|stored| &stored.goal), &mut done).await?;
                    seen.through = revision;
                    if goals.len() < MAX_BATCH {
                        return Ok(done);
                    }
                }
                Err(Error::Compacted { since, oldest }) => {
                    tracing::info!(%since, %oldest, "the changes are not kept: everything is compared");
                    return self.compare_all(&mut seen, &mut done).await.map(|()| done);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    async fn compare_all(&self, seen: &mut Seen, done: &mut Mirrored) -> Result<(), Error> {
        let started = Instant::now();
        let Snapshot { revision, goals } = self.call(self.source.list("")).await?;
        let have = self.call(self.target.list("")).await?.goals;
        let is_missing = |goal: &Goal| {
            // Both lists stand by service name; a backend that does not keep this costs a search, no goal.
            let at = have.binary_search_by(|stored| stored.goal.service.cmp(&goal.service));
            at.map_or(true, |at| have[at].goal != *goal)
        };
        let missing = goals.iter().map(|stored| &stored.goal).filter(|goal| is_missing(goal));
        self.copy_goals(missing, done).await?;
        *seen = Seen { through: revision, compared_all: Some(started) };
        Ok(())
    }

    async fn copy_goals(&self, goals: impl Iterator<Item = &Goal>, done: &mut Mirrored) -> Result<(), Error> {
        let mut failure = None;
        for goal in goals {
            if let Err(error) = self.copy(goal, done).await {
                tracing::warn!(service = %goal.service, position = %goal.position, error = chain(&error), "a goal could not be copied");
                failure = failure.or(Some(error));
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn copy(&self, goal: &Goal, done: &mut Mirrored) -> Result<(), Error> {
        let (service, position) = (&goal.service, &goal.position);
        for _ in 0..TRIES {
            let target = self.call(self.target.get(service)).await?;
            let expect = match copy_of(goal, target.as_ref()) {
                Copy::Same => return Ok(()),
                Copy::Stale(stored) => {
                    tracing::warn!(%service, %position, %stored, "the source is behind the region, which stays where it is");
                    metrics::counter!("deploycore_mirror_stale_total").increment(1);
                    done.stale += 1;
                    return Ok(());
                }
                Copy::Equivocation => {
                    tracing::error!(%service, %position, "ALARM: the same generation has two contents; the region keeps its own");
                    metrics::counter!("deploycore_mirror_equivocations_total").increment(1);
                    done.equivocations += 1;
                    return Ok(());
                }
                Copy::Write(expect) => expect,
            };
            match self.call(self.target.put(goal, expect)).await {
                Ok(_) => {
                    tracing::info!(%service, %position, "goal mirrored");
                    metrics::counter!("deploycore_mirror_copied_total").increment(1);
                    done.copied += 1;
                    return Ok(());
                }
                // Another mirror wrote: look again.
                Err(Error::Conflict { .. } | Error::Stale { .. } | Error::Equivocation { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let text = format!("the region's goal of {service} changed {TRIES} times during the copy");
        Err(BackendError::retryable("mirror", text).into())
    }

    /// Resolves when the source has something new.
    async fn hint(&self, hints: Option<&mut GoalHints>) {
        let Some(hints) = hints else { return std::future::pending().await };
        let through = self.seen.lock().await.through;
        // What changed is read by the next look, page by page.
        hints.given(through).await;
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let limit = self.settings.call_limit;
        let late = |_| BackendError::retryable("mirror", format!("no answer within {limit:?}"));
        timeout(limit, call).await.map_err(late)?
    }
}
