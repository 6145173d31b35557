//! A watch on goals, opened again whenever it ends.

use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt};
use tokio::time::Instant;

use super::Pace;
use crate::model::Revision;
use crate::port::goals::{Changes, Error};
use crate::port::{GoalStateStore, chain};

/// What tells a service that goals have changed, and how, for [`Pace::wait`].
pub(crate) struct GoalHints {
    goals: Arc<dyn GoalStateStore>,
    /// Between a watch that failed and the next.
    pace: Pace,
    watch: Option<Watch>,
    reopen_at: Option<Instant>,
}

struct Watch {
    changes: BoxStream<'static, Result<Changes, Error>>,
    /// What it tells next comes after this.
    through: Revision,
    opened_at: Instant,
}

impl GoalHints {
    /// Hints from `goals`, with the backoff of `pace`.
    pub(crate) fn new(goals: Arc<dyn GoalStateStore>, pace: Pace) -> Self {
        Self { goals, pace, watch: None, reopen_at: None }
    }

    /// What changed after `seen`, as soon as something has, with nothing left out; `None` when the store no longer keeps that: a look will tell. A
    /// watch that fails is opened again after a backoff, because the next look may be an hour away. Cancel safe.
    pub(crate) async fn given(&mut self, seen: Revision) -> Option<Changes> {
        loop {
            if self.watch.is_none()
                && let Some(at) = self.reopen_at
            {
                tokio::time::sleep_until(at).await;
            }
            // One that is ahead of what its listener has seen would leave out what lies between.
            self.watch.take_if(|watch| watch.through > seen);
            let open = || Watch { changes: self.goals.watch(seen), through: seen, opened_at: Instant::now() };
            let watch = self.watch.get_or_insert_with(open);
            match watch.changes.next().await {
                Some(Ok(changes)) => {
                    watch.through = changes.revision;
                    if changes.revision > seen {
                        return Some(changes);
                    }
                }
                Some(Err(error @ Error::Compacted { .. })) => {
                    self.ended(Some(&error));
                    return None;
                }
                Some(Err(error)) => self.ended(Some(&error)),
                None => self.ended(None),
            }
        }
    }

    fn ended(&mut self, error: Option<&Error>) {
        let reason = error.map_or_else(|| "it has no more to say".to_owned(), |error| chain(error));
        tracing::debug!(reason, "the watch on the goals ended");
        // One that held for long was sound: what ended it is no failure in a row.
        let lasted = self.watch.take().is_some_and(|watch| watch.opened_at.elapsed() > self.pace.backoff.max);
        if lasted {
            self.pace.note(true);
        }
        self.pace.note(false);
        self.reopen_at = Some(Instant::now() + self.pace.delay());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Goals;
    use crate::model::{Goal, ServiceName};
    use crate::pace::Backoff;
    use crate::port::BackendError;
    use crate::port::goals::{Expect, Snapshot, Stored};
    use async_trait::async_trait;
    use std::sync::Mutex;
    use std::time::Duration;

    /// Goals whose next watches end at once, each with an error of its own.
    #[derive(Debug, Default)]
    struct Flaky {
        goals: Goals,
        errors: Mutex<Vec<Error>>,
        opened: Mutex<Vec<Instant>>,
    }

    #[async_trait]
    impl GoalStateStore for Flaky {
        async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
            self.goals.get(service).await
        }
        async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
            self.goals.list(prefix).await
        }
        async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
            self.goals.put(goal, expect).await
        }
        async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
            self.goals.history(service, limit).await
        }
        async fn changes(&self, since: Revision) -> Result<Changes, Error> {
            self.goals.changes(since).await
        }
        fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
            self.opened.lock().unwrap().push(Instant::now());
            match self.errors.lock().unwrap().pop() {
                Some(error) => futures::stream::iter([Err(error)]).boxed(),
                None => self.goals.watch(since),
            }
        }
        async fn compact(&self, through: Revision) -> Result<(), Error> {
            self.goals.compact(through).await
        }
    }

    fn hints(goals: &Arc<Flaky>) -> GoalHints {
        let backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(4) };
        GoalHints::new(goals.clone(), Pace::new(Duration::from_hours(1), backoff).with_seed(1))
    }

    fn lost() -> Error {
        BackendError::retryable("flaky", "the line is cut").into()
    }

    fn goal() -> Goal {
        serde_json::from_value(serde_json::json!({
            "service": "web", "epoch": 0, "generation": 1,
            "artifact": {"name": "a", "digest": crate::model::Digest::of(b""), "size": 1},
            "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_is_opened_again_in_growing_steps_and_misses_nothing() {
        let goals = Arc::<Flaky>::default();
        goals.errors.lock().unwrap().extend((0..4).map(|_| lost()));
        let (mut hints, start) = (hints(&goals), Instant::now());
        let change = async {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            goals.put(&goal(), Expect::Absent).await.unwrap();
        };
        let (given, ()) = tokio::join!(hints.given(Revision(0)), change);
        assert_eq!(given.expect("it is kept").goals[0].goal, goal());
        let opened = std::mem::take(&mut *goals.opened.lock().unwrap());
        let gaps: Vec<_> = opened.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64().ceil() as u64).collect();
        assert_eq!(gaps, [1, 2, 4, 4]);
        assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_longer_kept_is_a_hint_and_no_busy_loop() {
        let goals = Arc::<Flaky>::default();
        let compacted = || Error::Compacted { since: Revision(0), oldest: Revision(9) };
        goals.errors.lock().unwrap().extend([compacted(), compacted()]);
        let (mut hints, start) = (hints(&goals), Instant::now());
        assert!(hints.given(Revision(0)).await.is_none());
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(hints.given(Revision(0)).await.is_none());
        assert!(start.elapsed() > Duration::from_millis(500), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_its_listener_has_not_seen_is_told_again() {
        let goals = Arc::<Flaky>::default();
        let (mut hints, patience) = (hints(&goals), Duration::from_secs(9));
        let revision = goals.put(&goal(), Expect::Absent).await.unwrap();
        for _ in 0..2 {
            let given = tokio::time::timeout(patience, hints.given(Revision(0))).await.expect("it is left out");
            let changes = given.expect("it is kept");
            assert_eq!((changes.revision, changes.goals.len()), (revision, 1));
        }
        assert!(tokio::time::timeout(patience, hints.given(revision)).await.is_err(), "nothing changed");
    }
}
