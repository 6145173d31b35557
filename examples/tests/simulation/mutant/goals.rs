//! Goal stores and a mirror that break the order of goals.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{Goal, Revision, ServiceName};
use deploycore::port::GoalStateStore;
use deploycore::port::goals::{Changes, Error, Expect, Snapshot, Stored};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::time::sleep;

/// A mirror that copies the history of each service, oldest last.
pub async fn mirror_backwards(source: Arc<dyn GoalStateStore>, target: Arc<dyn GoalStateStore>) {
    loop {
        sleep(Duration::from_secs(10)).await;
        let Ok(snapshot) = source.list("").await else { continue };
        for stored in snapshot.goals {
            let history = source.history(&stored.goal.service, 10).await.unwrap_or_default();
            for older in history {
                let found = target.get(&older.goal.service).await.ok().flatten();
                let expect = found.map_or(Expect::Absent, |found| Expect::At(found.revision));
                let _ = target.put(&older.goal, expect).await;
            }
        }
    }
}

/// What a goal store does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// It says yes to everything.
    Agrees,
    /// It says yes to the second goal of a service, and forgets it.
    Forgets,
    /// It shows what it showed first.
    Freezes,
}

/// A goal store with one flaw.
#[derive(Debug)]
pub struct Goals {
    inner: Arc<dyn GoalStateStore>,
    flaw: Flaw,
    first: Mutex<Option<Snapshot>>,
}

impl Goals {
    /// `inner`, with a flaw.
    pub fn new(inner: Arc<dyn GoalStateStore>, flaw: Flaw) -> Arc<Self> {
        Arc::new(Self { inner, flaw, first: Mutex::default() })
    }
}

#[async_trait]
impl GoalStateStore for Goals {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        self.inner.get(service).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        let snapshot = self.inner.list(prefix).await?;
        if self.flaw != Flaw::Freezes || snapshot.goals.is_empty() {
            return Ok(snapshot);
        }
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(first.get_or_insert(snapshot).clone())
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        if self.flaw == Flaw::Forgets && goal.position.generation.0 == 2 {
            return Ok(Revision(2));
        }
        match self.inner.put(goal, expect).await {
            Err(_) if self.flaw == Flaw::Agrees => Ok(Revision(1)),
            answer => answer,
        }
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        self.inner.history(service, limit).await
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        self.inner.changes(since).await
    }

    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        if self.flaw == Flaw::Freezes { stream::pending().boxed() } else { self.inner.watch(since) }
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        self.inner.compact(through).await
    }
}
