//! The current goals of a store, and which of them changed since when.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt};
use tokio::sync::watch;

use super::{Admission, BackendError, Changes, Error, Expect, MAX_BATCH, Snapshot, Stored, admit};
use crate::model::{Goal, Revision, ServiceName};

/// The current goals at one instant, by name and by revision: what a backend answers from that keeps its goals at hand.
///
/// A service is kept once, with its newest goal, so the index needs no compaction to stay small. Goals are shared: a clone
/// costs a pointer a service.
#[derive(Debug, Clone, Default)]
pub struct Index {
    revision: Revision,
    compacted: Revision,
    goals: BTreeMap<ServiceName, Arc<Stored>>,
    by_revision: BTreeMap<Revision, ServiceName>,
}

impl Index {
    /// The goals of a list; nothing before its revision may be asked for.
    pub fn of(snapshot: Snapshot) -> Self {
        let mut index = Self::restore(snapshot.revision, snapshot.revision);
        snapshot.goals.into_iter().for_each(|stored| index.apply(stored));
        index
    }

    /// An index without goals that stands at `revision`, its changes forgotten up to `compacted`: the start of reading a durable
    /// copy, which [`apply`](Self::apply) goes on with.
    pub fn restore(revision: Revision, compacted: Revision) -> Self {
        Self { revision, compacted, ..Self::default() }
    }

    /// The revision of the newest write.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The smallest revision whose changes may be asked for.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The goal of a service.
    pub fn get(&self, service: &ServiceName) -> Option<&Stored> {
        self.goals.get(service).map(AsRef::as_ref)
    }

    /// The goals whose service's name starts with `prefix`.
    pub fn list(&self, prefix: &str) -> Snapshot {
        let named = self.goals.iter().filter(|(name, _)| name.as_str().starts_with(prefix));
        Snapshot { revision: self.revision, goals: named.map(|(_, stored)| Stored::clone(stored)).collect() }
    }

    /// See [`GoalStateStore::changes`](super::GoalStateStore::changes).
    pub fn changes(&self, since: Revision) -> Result<Changes, Error> {
        if since < self.compacted || since > self.revision {
            return Err(Error::Compacted { since, oldest: self.compacted });
        }
        let after = (std::ops::Bound::Excluded(since), std::ops::Bound::Unbounded);
        let mut changed = self.by_revision.range(after).map(|(_, service)| Stored::clone(&self.goals[service]));
        let goals: Vec<_> = changed.by_ref().take(MAX_BATCH).collect();
        // A full page ends where its last goal stands; anything else is all there is.
        let last = goals.last().filter(|_| changed.next().is_some()).map(|stored| stored.revision);
        Ok(Changes { revision: last.unwrap_or(self.revision), goals })
    }

    /// Writes a goal at the next revision, if [`admit`] says so.
    pub fn put(&mut self, goal: Goal, expect: Expect) -> Result<Revision, Error> {
        match admit(self.get(&goal.service), &goal, expect)? {
            Admission::Repeat(revision) => Ok(revision),
            Admission::Write => {
                let revision = Revision(self.revision.0 + 1);
                self.apply(Stored { revision, goal });
                Ok(revision)
            }
        }
    }

    /// Takes up a goal that was written elsewhere. One that is older than the service's is ignored.
    pub fn apply(&mut self, stored: Stored) {
        let service = stored.goal.service.clone();
        if let Some(earlier) = self.goals.get(&service) {
            if earlier.revision >= stored.revision {
                return;
            }
            self.by_revision.remove(&earlier.revision);
        }
        self.revision = self.revision.max(stored.revision);
        self.by_revision.insert(stored.revision, service.clone());
        self.goals.insert(service, Arc::new(stored));
    }

    /// Takes up a page of changes.
    pub fn apply_all(&mut self, changes: Changes) {
        changes.goals.into_iter().for_each(|stored| self.apply(stored));
        self.revision = self.revision.max(changes.revision);
    }

    /// See [`GoalStateStore::compact`](super::GoalStateStore::compact).
    pub fn compact(&mut self, through: Revision) {
        self.compacted = self.compacted.max(through.min(self.revision));
    }

    /// See [`GoalStateStore::watch`](super::GoalStateStore::watch). The stream ends with a retryable error named `backend` once
    /// the sender is gone.
    ///
    /// Each look marks the index as seen before it is read, so a write between the look and the wait wakes the wait.
    pub fn watch(
        index: watch::Receiver<Self>,
        since: Revision,
        backend: &'static str,
    ) -> BoxStream<'static, Result<Changes, Error>> {
        let steps = futures::stream::unfold(Some((index, since)), move |state| async move {
            let (mut index, mut since) = state?;
            loop {
                let changes = index.borrow_and_update().changes(since);
                match changes {
                    Err(error) => return Some((Err(error), None)),
                    Ok(changes) if !changes.goals.is_empty() => {
                        let next = (index, changes.revision);
                        return Some((Ok(changes), Some(next)));
                    }
                    Ok(changes) => since = changes.revision,
                }
                if index.changed().await.is_err() {
                    let error = BackendError::retryable(backend, "the store was closed");
                    return Some((Err(error.into()), None));
                }
            }
        });
        steps.boxed()
    }
}
