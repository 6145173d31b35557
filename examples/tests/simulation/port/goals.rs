//! A goal-state store, far away.

use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{Goal, Revision, ServiceName};
use deploycore::port::GoalStateStore;
use deploycore::port::goals::{Changes, Error, Expect, Snapshot, Stored};
use futures::stream::{self, BoxStream, StreamExt};

use super::Far;

#[async_trait]
impl GoalStateStore for Far<dyn GoalStateStore> {
    async fn get(&self, service: &ServiceName) -> Result<Option<Stored>, Error> {
        let (inner, service) = (self.inner.clone(), service.clone());
        self.link.call("goals.get", async move { inner.get(&service).await }).await
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, Error> {
        let (inner, prefix) = (self.inner.clone(), prefix.to_owned());
        self.link.call("goals.list", async move { inner.list(&prefix).await }).await
    }

    async fn put(&self, goal: &Goal, expect: Expect) -> Result<Revision, Error> {
        let (inner, weather, goal) = (self.inner.clone(), self.link.life.weather.clone(), goal.clone());
        let place = self.link.to.clone();
        let effect = async move {
            let answer = inner.put(&goal, expect).await;
            if answer.is_ok() {
                weather.checker.goal_written(&place, &goal);
            }
            answer
        };
        self.link.call("goals.put", effect).await
    }

    async fn history(&self, service: &ServiceName, limit: usize) -> Result<Vec<Stored>, Error> {
        let (inner, service) = (self.inner.clone(), service.clone());
        self.link.call("goals.history", async move { inner.history(&service, limit).await }).await
    }

    async fn changes(&self, since: Revision) -> Result<Changes, Error> {
        let inner = self.inner.clone();
        self.link.call("goals.changes", async move { inner.changes(since).await }).await
    }

    fn watch(&self, since: Revision) -> BoxStream<'static, Result<Changes, Error>> {
        if !self.link.life.weather.watches() {
            return stream::pending().boxed();
        }
        let link = self.link.clone();
        let faulty = self.inner.watch(since).then(move |change| {
            let link = link.clone();
            async move {
                let delay = Duration::from_micros(link.life.random().u64(200..50_000));
                tokio::time::sleep(delay).await;
                link.life.awake().await;
                if link.breaks() { Err(link.broken("a watch")) } else { change }
            }
        });
        faulty.boxed()
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        let inner = self.inner.clone();
        self.link.call("goals.compact", async move { inner.compact(through).await }).await
    }
}
