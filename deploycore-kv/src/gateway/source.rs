//! The store as the gateway sees it: one view for all, read again for each wave of requests, and one watch for all that wait.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::http::HeaderValue;
use bytes::Bytes;
use deploycore::model::{Digest, Revision, ServiceName};
use deploycore::port::goals::{Changes, Error, GoalStateStore, Index, Snapshot, Stored};
use deploycore::port::{BackendError, chain};
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::MutexGuard;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::wire::BACKEND;

/// Before the store is watched again after a failure.
const REWATCH: Duration = Duration::from_secs(1);
/// Prepared pages of changes kept for one view. Those who wait all ask from the revision before.
const PAGES: usize = 64;

/// A body with its tag. The tag is a hash of the body: the same on every replica that would give the same answer, and another
/// wherever the answer differs, also after a restart or a restore.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub(super) tag: HeaderValue,
    pub(super) body: Bytes,
}

impl Prepared {
    fn list(snapshot: &Snapshot) -> Self {
        let body = Bytes::from(serde_json::to_vec(snapshot).expect("goals are plain data"));
        let tag = format!("\"{}\"", Digest::of(&body));
        Self { tag: HeaderValue::from_str(&tag).expect("a digest is plain text"), body }
    }
}

/// The goals at one revision, and what was prepared from them.
#[derive(Debug)]
pub(super) struct View {
    index: Index,
    all: OnceLock<Prepared>,
    pages: Mutex<BTreeMap<Revision, Bytes>>,
}

impl View {
    fn new(index: Index) -> Arc<Self> {
        Arc::new(Self { index, all: OnceLock::new(), pages: Mutex::default() })
    }

    pub(super) fn revision(&self) -> Revision {
        self.index.revision()
    }

    pub(super) fn get(&self, service: &ServiceName) -> Option<&Stored> {
        self.index.get(service)
    }

    /// The list as it goes over the wire. The one of everything, which machines ask for, is prepared once.
    pub(super) fn list(&self, prefix: &str) -> Prepared {
        if prefix.is_empty() {
            return self.all.get_or_init(|| Prepared::list(&self.index.list(""))).clone();
        }
        Prepared::list(&self.index.list(prefix))
    }
}

/// The gateway shuts down: nothing is waited for any more.
#[derive(Debug)]
pub(super) struct Closed;

/// The store behind a gateway.
pub(super) struct Source {
    pub(super) goals: Arc<dyn GoalStateStore>,
    /// For one read of the store, so that one that hangs does not hold up all later ones.
    patience: Duration,
    view: tokio::sync::watch::Sender<Option<Arc<View>>>,
    /// Tickets given to readers, and the greatest whose read has begun after it was given.
    asked: AtomicU64,
    answered: AtomicU64,
    reading: tokio::sync::Mutex<()>,
    upstream: tokio::sync::Mutex<Option<Upstream>>,
    closed: CancellationToken,
}

/// The watch on the store.
struct Upstream {
    events: BoxStream<'static, Result<Changes, Error>>,
    /// An event came, and the store has not been read since: whoever drives the watch may be gone before that is done.
    unread: bool,
}

impl Source {
    pub(super) fn new(goals: Arc<dyn GoalStateStore>, patience: Duration) -> Self {
        Self {
            goals,
            patience,
            view: tokio::sync::watch::Sender::new(None),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            reading: tokio::sync::Mutex::default(),
            upstream: tokio::sync::Mutex::default(),
            closed: CancellationToken::new(),
        }
    }

    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    /// The store as it is now: every write that was acknowledged before this call is in it. Calls that wait for the same turn share
    /// one read, which began after all of them.
    pub(super) async fn current(&self) -> Result<Arc<View>, Error> {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let _turn = self.reading.lock().await;
        let known = self.view.borrow().clone();
        if self.answered.load(Ordering::SeqCst) >= ticket
            && let Some(view) = known
        {
            return Ok(view);
        }
        let shared = self.asked.load(Ordering::SeqCst);
        let view = self.read(known).await?;
        self.answered.store(shared, Ordering::SeqCst);
        Ok(view)
    }

    async fn read(&self, known: Option<Arc<View>>) -> Result<Arc<View>, Error> {
        let late = |_| BackendError::retryable(BACKEND, "the store took too long");
        tokio::time::timeout(self.patience, self.read_patiently(known)).await.map_err(late)?
    }

    async fn read_patiently(&self, known: Option<Arc<View>>) -> Result<Arc<View>, Error> {
        let changed = match known {
            None => None,
            Some(known) => match self.catch_up(&known.index).await {
                Ok(None) => return Ok(known),
                Ok(changed) => changed,
                Err(Error::Compacted { .. }) => None,
                Err(error) => return Err(error),
            },
        };
        let index = match changed {
            Some(index) => index,
            None => Index::of(self.goals.list("").await?),
        };
        let view = View::new(index);
        self.view.send_replace(Some(Arc::clone(&view)));
        Ok(view)
    }

    /// The index with all that changed since; `None` when nothing did.
    async fn catch_up(&self, known: &Index) -> Result<Option<Index>, Error> {
        let mut caught_up: Option<Index> = None;
        loop {
            let since = caught_up.as_ref().unwrap_or(known).revision();
            let changes = self.goals.changes(since).await?;
            if changes.revision <= since {
                return Ok(caught_up);
            }
            caught_up.get_or_insert_with(|| known.clone()).apply_all(changes);
        }
    }

    /// A page of changes as it goes over the wire.
    pub(super) async fn changes(&self, view: &View, since: Revision) -> Result<Bytes, Error> {
        let kept = |view: &View| view.pages.lock().unwrap_or_else(PoisonError::into_inner).get(&since).cloned();
        if let Some(page) = kept(view) {
            return Ok(page);
        }
        let changes = self.goals.changes(since).await?;
        let page = Bytes::from(serde_json::to_vec(&changes).expect("goals are plain data"));
        let mut pages = view.pages.lock().unwrap_or_else(PoisonError::into_inner);
        if pages.len() < PAGES {
            pages.insert(since, page.clone());
        }
        Ok(page)
    }

    /// Drops what was prepared, so that a compaction shows at once to whoever made it.
    pub(super) fn forget_pages(&self) {
        if let Some(view) = &*self.view.borrow() {
            view.pages.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// What was read last, by anyone.
    pub(super) fn newest(&self) -> Option<Arc<View>> {
        self.view.borrow().clone()
    }

    /// Waits until the store has left revision `seen`, and gives what it then is; `None` at the deadline.
    pub(super) async fn beyond(&self, seen: Revision, deadline: Instant) -> Result<Option<Arc<View>>, Closed> {
        let mut view = self.view.subscribe();
        let watching = self.watch();
        futures::pin_mut!(watching);
        loop {
            let now = view.borrow_and_update().clone();
            if let Some(now) = now.filter(|now| now.revision() != seen) {
                return Ok(Some(now));
            }
            tokio::select! {
                biased;
                () = self.closed.cancelled() => return Err(Closed),
                changed = view.changed() => changed.map_err(|_| Closed)?,
                () = tokio::time::sleep_until(deadline) => return Ok(None),
                never = &mut watching => match never {},
            }
        }
    }

    /// Watches the store on behalf of all who wait: one of them at a time does it, and passes it on when its own wait is over.
    async fn watch(&self) -> Infallible {
        let upstream = self.upstream.lock().await;
        // Its state is large, and each who waits would carry it.
        Box::pin(self.drive(upstream)).await
    }

    async fn drive(&self, mut upstream: MutexGuard<'_, Option<Upstream>>) -> Infallible {
        loop {
            let failure = match self.watched(&mut upstream).await {
                Ok(()) => continue,
                Err(failure) => failure,
            };
            *upstream = None;
            tracing::debug!(failure, "the watch on the goals ended");
            tokio::time::sleep(REWATCH).await;
        }
    }

    /// One event of the watch. It is only a hint: what changed is read. Cancel safe: the next call reads what this one did not come to.
    async fn watched(&self, upstream: &mut Option<Upstream>) -> Result<(), String> {
        let upstream = if let Some(upstream) = upstream {
            upstream
        } else {
            // A waiter that has seen an older view than this one is woken by the view itself.
            let since = self.current().await.map_err(|error| chain(&error))?.revision();
            upstream.insert(Upstream { events: self.goals.watch(since), unread: false })
        };
        if !upstream.unread {
            match upstream.events.next().await {
                Some(Ok(_)) => upstream.unread = true,
                Some(Err(error)) => return Err(chain(&error)),
                None => return Err("it has no more to say".to_owned()),
            }
        }
        self.current().await.map_err(|error| chain(&error))?;
        upstream.unread = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use deploycore::memory::Goals;
    use deploycore::model::Goal;
    use deploycore::port::goals::Expect;
    use tokio::sync::watch;

    /// Goals whose changes cannot be read while the gate is shut.
    #[derive(Debug)]
    struct Gated {
        goals: Goals,
        open: watch::Sender<bool>,
    }

    #[async_trait]
    impl GoalStateStore for Gated {
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
            self.open.subscribe().wait_for(|open| *open).await.unwrap();
            self.goals.changes(since).await
        }
        fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
            self.goals.watch(since)
        }
        async fn compact(&self, through: Revision) -> Result<(), Error> {
            self.goals.compact(through).await
        }
    }

    fn goal() -> Goal {
        serde_json::from_value(serde_json::json!({
            "service": "web", "epoch": 0, "generation": 1,
            "artifact": {"name": "a", "digest": Digest::of(b""), "size": 1},
            "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_whose_reader_is_gone_is_read_by_the_next() {
        let gated = Arc::new(Gated { goals: Goals::new(), open: watch::Sender::new(true) });
        let source = Source::new(gated.clone(), Duration::from_secs(10));
        let (seen, start) = (source.current().await.unwrap().revision(), Instant::now());
        let first = source.beyond(seen, start + Duration::from_secs(5));
        let second = source.beyond(seen, start + Duration::from_hours(1));
        let world = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            gated.open.send_replace(false);
            gated.put(&goal(), Expect::Absent).await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            gated.open.send_replace(true);
        };
        // The first drives the watch, hears of the change, and its time is over before it can read it.
        let (first, second, ()) = tokio::join!(first, second, world);
        assert!(matches!(first, Ok(None)));
        let Ok(Some(view)) = second else { panic!("the second was not woken") };
        assert!(view.revision() > seen);
        assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
    }
}
