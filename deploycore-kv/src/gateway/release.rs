//! Those who waited for one change, let go one after the other.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deploycore::model::Revision;
use tokio::time::Instant;

/// Between two of a few: a gateway answers faster than that, so that it has time for others meanwhile.
const MOST_STEP: Duration = Duration::from_micros(50);
/// What a timer can tell apart.
const TICK: Duration = Duration::from_millis(1);

/// Spreads the answers to one change over a window, so that they do not fill every queue on their way at once, and do not come back
/// together.
#[derive(Debug)]
pub(super) struct Release {
    within: Duration,
    turns: Mutex<Turns>,
}

#[derive(Debug)]
struct Turns {
    change: Revision,
    step: Duration,
    next: Instant,
}

impl Release {
    /// All have their turn `within` so long after the first.
    pub(super) fn new(within: Duration) -> Self {
        let turns = Turns { change: Revision(0), step: Duration::ZERO, next: Instant::now() };
        Self { within, turns: Mutex::new(turns) }
    }

    /// Waits for the turn of one of `waiting` who hear of `change`.
    pub(super) async fn turn(&self, change: Revision, waiting: usize) {
        let now = Instant::now();
        let at = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            if turns.change != change {
                let step = MOST_STEP.min(self.within / u32::try_from(waiting.max(1)).unwrap_or(u32::MAX));
                *turns = Turns { change, step, next: now };
            }
            let at = turns.next.max(now);
            turns.next = at + turns.step;
            at
        };
        if at > now + TICK {
            tokio::time::sleep_until(at).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::join_all;

    async fn let_go(waiting: usize, within: Duration) -> Vec<Duration> {
        let (release, start) = (Release::new(within), Instant::now());
        let one = || async {
            release.turn(Revision(7), waiting).await;
            start.elapsed()
        };
        join_all((0..waiting).map(|_| one())).await
    }

    #[tokio::test(start_paused = true)]
    async fn many_are_spread_over_the_window_and_few_do_not_wait() {
        let window = Duration::from_secs(1);
        for waiting in [5_000, 50_000] {
            let at = let_go(waiting, window).await;
            let early = at.iter().filter(|at| **at < window / 10).count();
            assert!(early < waiting / 2, "{early} of {waiting} at once");
            assert!(at.iter().all(|at| *at <= window + TICK * 2), "{:?}", at.iter().max());
        }
        assert!(let_go(20, window).await.iter().all(Duration::is_zero));
        assert!(let_go(50_000, Duration::ZERO).await.iter().all(Duration::is_zero));
    }
}
