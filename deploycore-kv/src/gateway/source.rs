//! The store as the gateway sees it: one view for all, read again for each wave of requests, and one watch for all that wait.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::http::HeaderValue;
use bytes::Bytes;
use deploycore::model::{Digest, Revision, ServiceName};
use deploycore::port::goals::{Changes, Error, GoalStateStore, Index, Snapshot, Stored};
use deploycore::port::{BackendError, chain};
use futures::stream::{BoxStream, StreamExt};
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
    upstream: tokio::sync::Mutex<Option<BoxStream<'static, Result<Changes, Error>>>>,
    closed: CancellationToken,
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
    async fn watch(&self) -> std::convert::Infallible {
        let mut upstream = self.upstream.lock().await;
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

    /// One event of the watch. It is only a hint: what changed is read.
    async fn watched(&self, upstream: &mut Option<BoxStream<'static, Result<Changes, Error>>>) -> Result<(), String> {
        let stream = if let Some(stream) = upstream {
            stream
        } else {
            // A waiter that has seen an older view than this one is woken by the view itself.
            let since = self.current().await.map_err(|error| chain(&error))?.revision();
            upstream.insert(self.goals.watch(since))
        };
        match stream.next().await {
            Some(Ok(_)) => self.current().await.map(drop).map_err(|error| chain(&error)),
            Some(Err(error)) => Err(chain(&error)),
            None => Err("it has no more to say".to_owned()),
        }
    }
}
