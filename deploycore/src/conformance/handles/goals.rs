//! Goals through several handles.

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};

use super::{Handles, opened};
use crate::model::{Goal, Revision, ServiceName};
use crate::port::GoalStateStore;
use crate::port::goals::{Changes, Error, Expect, Snapshot, Stored};

/// It has no wish of when to be polled: each handle has its own.
#[async_trait]
impl GoalStateStore for Handles<dyn GoalStateStore> {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        self.next().await.get(service).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        self.next().await.list(prefix).await
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        self.next().await.put(goal, expect).await
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        self.next().await.history(service, limit).await
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        self.next().await.changes(since).await
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        self.next().await.compact(through).await
    }

    /// The handle stays open while anybody watches.
    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        let (place, open) = (self.turn().1.clone(), self.open.clone());
        let watch = async move {
            let store = opened(&place, &open).await;
            store.watch(since).map(move |event| (event, &store).0)
        };
        stream::once(watch).flatten().boxed()
    }
}
