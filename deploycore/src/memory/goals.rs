//! Goals in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::watch;

use crate::model::{Goal, GoalPosition, Revision, ServiceName};
use crate::port::goals::{Changes, Error, Expect, GoalStateStore, HISTORY, Index, Snapshot, Stored};

type History = BTreeMap<ServiceName, BTreeMap<GoalPosition, Stored>>;

/// A [`GoalStateStore`] in memory. Clones share one store. It needs no clock and no task, so it runs under virtual time.
///
/// ```
/// use deploycore::memory::Goals;
/// use deploycore::model::{Goal, Revision, ServiceName};
/// use deploycore::port::goals::{Expect, GoalStateStore};
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// # let goal: Goal = serde_json::from_str(r#"{"service": "web", "epoch": 0, "generation": 1,
/// #     "artifact": {"name": "web-1", "size": 0,
/// #     "digest": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"},
/// #     "run": {}, "selector": {}, "origin": {"kind": "deploy"}, "created_at": "2026-01-01T00:00:00Z"}"#)?;
/// let goals = Goals::new();
/// let revision = goals.put(&goal, Expect::Absent).await?;
/// // The reply was lost: the same call gives the same answer.
/// assert_eq!(goals.put(&goal, Expect::Absent).await?, revision);
/// assert_eq!(goals.changes(Revision(0)).await?.goals[0].goal, goal);
/// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Goals {
    index: watch::Sender<Index>,
    /// Locked while the index is written, and never the other way round.
    history: Arc<Mutex<History>>,
}

impl Goals {
    /// An empty store at revision 0.
    pub fn new() -> Self {
        Self { index: watch::Sender::new(Index::default()), history: Arc::default() }
    }
}

impl Default for Goals {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl GoalStateStore for Goals {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        Ok(self.index.borrow().get(service).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        Ok(self.index.borrow().list(prefix))
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcome = Ok(Revision(0));
        self.index.send_if_modified(|index| {
            let before = index.revision();
            outcome = index.put(goal.clone(), expect);
            index.revision() > before
        });
        let revision = outcome?;
        let kept = history.entry(goal.service.clone()).or_default();
        kept.insert(goal.position, Stored { revision, goal: goal.clone() });
        while kept.len() > HISTORY {
            kept.pop_first();
        }
        Ok(revision)
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(history.get(service).into_iter().flat_map(|kept| kept.values().rev()).take(limit).cloned().collect())
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        self.index.borrow().changes(since)
    }

    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        Index::watch(self.index.subscribe(), since, "memory")
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        // Watchers learn of it too: one that lags behind must not wait for a change to be told.
        self.index.send_modify(|index| index.compact(through));
        Ok(())
    }
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;

    #[expect(clippy::unused_async, reason = "the kit awaits its backends")]
    async fn fresh() -> (Arc<Goals>, ()) {
        (Arc::new(Goals::new()), ())
    }

    crate::goals_conformance!(fresh);
}
