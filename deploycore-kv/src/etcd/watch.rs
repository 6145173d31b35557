//! A watch that goes on: it reads what changed, follows etcd's events from there, and reads again whenever the events cannot be
//! relied on.
//!
//! The only thing remembered is the last revision that was told. Events up to it are dropped, and each read begins behind it, so nothing
//! is told twice and nothing is skipped, whatever was lost on the way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use deploycore::model::Revision;
use deploycore::port::chain;
use deploycore::port::goals::{Changes, Error, MAX_BATCH, Stored};
use futures::stream::{BoxStream, StreamExt};
use tokio::time::{Instant, timeout};

use super::client::Events;
use super::fault::{Fault, Remedy};
use super::proto::{WatchCreateRequest, WatchResponse};
use super::{Inner, stored};

/// Before a watch that failed is opened again: it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

pub(super) fn watch(store: Arc<Inner>, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
    let watcher = Watcher { store, since, events: None, waiting: VecDeque::new(), failing: None };
    let steps = futures::stream::unfold(Some(watcher), |watcher| async move {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(changes) => Some((Ok(changes), Some(watcher))),
            Err(error) => Some((Err(error), None)),
        }
    });
    steps.boxed()
}

struct Watcher {
    store: Arc<Inner>,
    /// All up to it was told, or waits to be.
    since: Revision,
    events: Option<Events>,
    waiting: VecDeque<Stored>,
    failing: Option<Failing>,
}

/// Since when nothing succeeds, and the next pause.
struct Failing {
    since: Instant,
    pause: Duration,
}

impl Watcher {
    async fn next(&mut self) -> Result<Changes, Error> {
        loop {
            if let Some(changes) = self.tell() {
                return Ok(changes);
            }
            let outcome = match self.events.take() {
                None => self.begin().await,
                Some(events) => self.follow(events).await,
            };
            if let Err(error) = outcome {
                self.pause(error).await?;
            }
        }
    }

    fn tell(&mut self) -> Option<Changes> {
        let goals: Vec<_> = self.waiting.drain(..self.waiting.len().min(MAX_BATCH)).collect();
        let revision = goals.last()?.revision;
        Some(Changes { revision, goals })
    }

    /// Reads what changed, and when that is all, opens a watch on what comes after.
    async fn begin(&mut self) -> Result<(), Error> {
        let page = self.store.changes(self.since).await?;
        self.take(page.changes.goals);
        if page.more {
            return Ok(());
        }
        let (key, range_end) = self.store.keys.goals("");
        let create = WatchCreateRequest { key, range_end, start_revision: page.seen + 1, fragment: true };
        self.events = Some(self.store.client.watch(create).await?);
        Ok(())
    }

    /// Takes up the next events. The watch is kept only if it may be relied on further.
    async fn follow(&mut self, mut events: Events) -> Result<(), Error> {
        let (store, server) = (Arc::clone(&self.store), events.server);
        let next = timeout(store.client.settings().watch_idle, store.client.next(&mut events)).await;
        let Ok(next) = next else {
            // Nothing happened, or nothing is told any more: only a read can say.
            let page = store.changes(self.since).await?;
            self.failing = None;
            if page.changes.goals.is_empty() {
                self.events = Some(events);
            } else {
                tracing::warn!("etcd's watch had fallen silent; goals had changed meanwhile");
                store.client.turn_from(server);
                self.take(page.changes.goals);
            }
            return Ok(());
        };
        let response = match next {
            Ok(response) => response,
            Err(fault) => {
                store.client.turn_from(server);
                return Err(match fault.remedy() {
                    // A certificate or a token that was good until now: the read that the next try begins with will tell.
                    Remedy::None | Remedy::ElsewhereOnly | Remedy::Token => {
                        store.client.forget_token(events.token);
                        store.client.ended(server, &chain(&fault)).into()
                    }
                    Remedy::Elsewhere => fault.into(),
                });
            }
        };
        if response.canceled {
            return Err(self.canceled(&response, &events).into());
        }
        if !response.created {
            self.failing = None;
        }
        self.take(events_of(response)?);
        self.events = Some(events);
        Ok(())
    }

    /// The server has ended the watch. What to do comes out when it is opened again, which begins with a read.
    fn canceled(&self, response: &WatchResponse, events: &Events) -> Fault {
        let client = &self.store.client;
        if response.compact_revision > 0 {
            return Fault::Gone;
        }
        // A token that is no longer valid is told as a lack of permission.
        client.forget_token(events.token);
        client.turn_from(events.server);
        client.ended(events.server, &response.cancel_reason)
    }

    fn take(&mut self, goals: Vec<Stored>) {
        for stored in goals {
            if stored.revision > self.since {
                self.since = stored.revision;
                self.waiting.push_back(stored);
            }
        }
    }

    /// Waits before the next try, or gives up.
    async fn pause(&mut self, error: Error) -> Result<(), Error> {
        let now = Instant::now();
        let failing = self.failing.get_or_insert(Failing { since: now, pause: FIRST_PAUSE });
        if !error.is_retryable() || now >= failing.since + self.store.client.settings().watch_limit {
            return Err(error);
        }
        tracing::debug!(error = chain(&error), "a watch cannot go on yet");
        let pause = failing.pause;
        failing.pause = (pause * 2).min(LAST_PAUSE);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// The goals that events tell of, in the order of their revisions: one revision writes one goal.
fn events_of(response: WatchResponse) -> Result<Vec<Stored>, Fault> {
    let puts = response.events.into_iter().filter(|event| event.kind == 0);
    puts.filter_map(|event| event.kv).map(|kv| stored(&kv)).collect()
}

#[cfg(test)]
mod tests {
    use deploycore::model::Goal;
    use deploycore::port::GoalStateStore;
    use deploycore::port::goals::Expect;
    use servers::etcd::{Etcd, Options};

    use super::super::{Goals, Settings};
    use super::*;

    fn goal(generation: u64) -> Goal {
        serde_json::from_value(serde_json::json!({
            "service": "web", "epoch": 0, "generation": generation,
            "artifact": {"name": "a", "digest": deploycore::model::Digest::of(b""), "size": 1},
            "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    async fn write(goals: &Goals, generation: u64) -> Revision {
        let stored = goals.get(&goal(generation).service).await.unwrap();
        let expect = stored.map_or(Expect::Absent, |stored| Expect::At(stored.revision));
        goals.put(&goal(generation), expect).await.unwrap()
    }

    async fn next(watcher: &mut Watcher) -> Changes {
        tokio::time::timeout(Duration::from_secs(20), watcher.next()).await.expect("it tells of a change").unwrap()
    }

    /// etcd is compacted between the read and the watch that follows it: etcd ends such a watch at once.
    #[tokio::test]
    async fn a_watch_that_etcd_ends_for_a_compaction_reads_again() {
        let etcd = Etcd::start(&Options::default()).unwrap();
        let goals = Goals::open(Settings::new(etcd.endpoints())).await.unwrap();
        let since = write(&goals, 1).await;
        for generation in 2..10 {
            write(&goals, generation).await;
        }
        etcd.compact().unwrap();
        let store = Arc::clone(&goals.inner);
        let (key, range_end) = store.keys.goals("");
        let create =
            WatchCreateRequest { key, range_end, start_revision: since.0 as i64 + 1, ..WatchCreateRequest::default() };
        let mut events = store.client.watch(create.clone()).await.unwrap();
        let mut ended = store.client.next(&mut events).await.unwrap();
        if !ended.canceled {
            ended = store.client.next(&mut events).await.unwrap();
        }
        assert!(ended.canceled && ended.compact_revision > 0, "{ended:?}");

        let events = store.client.watch(create).await.unwrap();
        let mut watcher = Watcher { store, since, events: Some(events), waiting: VecDeque::new(), failing: None };
        let told = next(&mut watcher).await;
        assert_eq!(told.goals.iter().map(|stored| &stored.goal).collect::<Vec<_>>(), [&goal(9)]);
        let revision = write(&goals, 10).await;
        let told = next(&mut watcher).await;
        assert_eq!(told, Changes { revision, goals: vec![Stored { revision, goal: goal(10) }] });
    }

    /// A watch on keys that nobody writes: it lives, and never tells. Only the read after the idle time finds the change.
    #[tokio::test]
    async fn a_watch_that_fell_silent_is_found_out() {
        let etcd = Etcd::start(&Options::default()).unwrap();
        let settings = Settings::new(etcd.endpoints()).with_watch_idle(Duration::from_millis(300));
        let goals = Goals::open(settings).await.unwrap();
        let since = write(&goals, 1).await;
        let store = Arc::clone(&goals.inner);
        let silent = WatchCreateRequest { key: b"/nothing".to_vec(), ..WatchCreateRequest::default() };
        let events = store.client.watch(silent).await.unwrap();
        let mut watcher = Watcher { store, since, events: Some(events), waiting: VecDeque::new(), failing: None };
        let revision = write(&goals, 2).await;
        assert_eq!(next(&mut watcher).await.revision, revision);
        let revision = write(&goals, 3).await;
        assert_eq!(next(&mut watcher).await.revision, revision);
        assert!(watcher.events.is_some(), "it is followed by events again");
    }
}
