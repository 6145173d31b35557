//! When a service looks again: a period with jitter, a hint that shortens it, a backoff after failures.
//!
//! Poll is the truth, hints are hints: every wait of a service goes through [`Pace::wait`], which has a timer in any case.

mod hints;

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::model::friendly;
use crate::port::BackendError;

pub(crate) use hints::GoalHints;

/// A delay that doubles with each failure in a row, between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    /// After the first failure.
    #[serde(with = "friendly")]
    pub initial: Duration,
    /// After many.
    #[serde(with = "friendly")]
    pub max: Duration,
}

impl Default for Backoff {
    /// From 500 ms to 30 s.
    fn default() -> Self {
        Self { initial: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

impl Backoff {
    /// The delay after `failures` (1 or more) failures in a row, without jitter.
    pub fn delay(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        self.initial.saturating_mul(1 << doublings).min(self.max)
    }
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The timer.
    Due,
    /// The hint.
    Hint,
    /// The service shall end.
    Shutdown,
}

/// The rhythm of one service. It has a generator of its own, so that a seeded run repeats.
#[derive(Debug, Clone)]
pub struct Pace {
    period: Duration,
    backoff: Backoff,
    /// What the other side wishes for.
    wished: Duration,
    failures: u32,
    random: fastrand::Rng,
}

/// The longest that another side's wish makes a service wait: one that says nonsense does not make it fall asleep.
const MOST_WISHED: Duration = Duration::from_mins(5);

impl Pace {
    /// A rhythm of one look each `period`.
    pub fn new(period: Duration, backoff: Backoff) -> Self {
        Self { period, backoff, wished: Duration::ZERO, failures: 0, random: fastrand::Rng::new() }
    }

    /// Seeds the jitter.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.random = fastrand::Rng::with_seed(seed);
        self
    }

    /// Notes how the last look went; `true` for well.
    pub fn note(&mut self, well: bool) {
        self.failures = if well { 0 } else { self.failures.saturating_add(1) };
    }

    /// Takes over what the other side of the looks wishes to pass between two, at the most 5 min. The service's own period holds where it is
    /// longer, and hints shorten both.
    pub fn wish(&mut self, wished: Option<Duration>) {
        self.wished = wished.unwrap_or_default().min(MOST_WISHED);
    }

    /// Looks that failed in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How long to wait now: the period, or the backoff after failures, less up to a tenth so that many do not march in step.
    pub fn delay(&mut self) -> Duration {
        let full = if self.failures == 0 { self.period.max(self.wished) } else { self.backoff.delay(self.failures) };
        full.mul_f64(1.0 - 0.1 * self.random.f64())
    }

    /// Waits until the next look is due, the hint resolves, or the service shall end. Cancel safe. After a failure the hint is not
    /// heard: it would turn a backoff into a busy loop.
    pub async fn wait(&mut self, hint: impl Future<Output = ()>, shutdown: &CancellationToken) -> Wake {
        let (delay, deaf) = (self.delay(), self.failures > 0);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Wake::Shutdown,
            () = hint, if !deaf => Wake::Hint,
            () = tokio::time::sleep(delay) => Wake::Due,
        }
    }
}

/// A call to a backend that is given up after `limit`, so that a backend that never answers does not hold its caller for ever. As with a lost
/// reply, the call may have had its effect.
pub async fn within<T, E: From<BackendError>>(
    limit: Duration,
    backend: &'static str,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late = |_| Err(BackendError::retryable(backend, format!("no answer within {limit:?}")).into());
    tokio::time::timeout(limit, call).await.unwrap_or_else(late)
}

/// A hint from one service of a process to another that there is something to look at. Clones are one nudge; many before the
/// service listens count once, none is lost. One service listens.
#[derive(Debug, Clone, Default)]
pub struct Nudge {
    notify: Arc<Notify>,
}

impl Nudge {
    /// Gives the hint.
    pub fn nudge(&self) {
        self.notify.notify_one();
    }

    /// Resolves at the next hint, or at once when one was given since the last. Cancel safe. Made for [`Pace::wait`].
    pub async fn given(&self) {
        self.notify.notified().await;
    }
}

/// Up to when one service of a process has dealt with everything, for another that must not go past it. Clones are one horizon.
#[derive(Debug, Clone, Default)]
pub struct Horizon {
    reached: Arc<Mutex<Option<Instant>>>,
}

impl Horizon {
    /// Everything up to this instant is dealt with. It never goes back.
    pub fn reach(&self, instant: Instant) {
        let mut reached = self.lock();
        *reached = (*reached).max(Some(instant));
    }

    /// How long ago that instant was; `None` before there is one.
    pub fn age(&self) -> Option<Duration> {
        self.lock().map(|reached| reached.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backoff_doubles_up_to_its_bound() {
        let backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(5) };
        let delays: Vec<_> = (1..6).map(|n| backoff.delay(n).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 5, 5]);
        assert_eq!(backoff.delay(u32::MAX), Duration::from_secs(5));
    }

    #[test]
    fn a_wish_makes_a_rhythm_slower_within_a_bound_and_never_faster() {
        let (second, hour) = (Duration::from_secs(1), Duration::from_hours(1));
        let mut pace = Pace::new(Duration::from_secs(10), Backoff::default());
        for (wished, least, most) in
            [(None, 9, 10), (Some(second), 9, 10), (Some(second * 20), 18, 20), (Some(hour), 270, 300)]
        {
            pace.wish(wished);
            let delay = pace.delay();
            assert!(second * least <= delay && delay <= second * most, "{wished:?}: {delay:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_shortens_a_wait_but_not_a_backoff() {
        let mut pace = Pace::new(Duration::from_hours(1), Backoff::default());
        let shutdown = CancellationToken::new();
        assert_eq!(pace.wait(async {}, &shutdown).await, Wake::Hint);
        let nudge = Nudge::default();
        nudge.nudge();
        assert_eq!(pace.wait(nudge.given(), &shutdown).await, Wake::Hint);
        assert_eq!(pace.wait(nudge.given(), &shutdown).await, Wake::Due);
        pace.note(false);
        assert_eq!(pace.wait(async {}, &shutdown).await, Wake::Due);
        shutdown.cancel();
        assert_eq!(pace.wait(async {}, &shutdown).await, Wake::Shutdown);
    }
}
