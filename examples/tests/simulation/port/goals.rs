//! A goal-state store, far away.

use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{Goal, Revision, ServiceName};
use deploycore::port::GoalStateStore;
use deploycore::port::goals::{Changes, Error, Expect, Snapshot, Stored};
use futures::stream::{self, BoxStream, StreamExt};

use super::Far;
use crate::simulation::fault::Link;

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
                weather.written.notify_waiters();
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
        let (inner, link) = (self.inner.clone(), self.link.clone());
        let stream = stream::unfold(since, move |since| {
            let (inner, link) = (inner.clone(), link.clone());
            async move {
                let change = next_change(&*inner, &link, since).await;
                let since = change.as_ref().map_or(since, |change| change.revision);
                Some((change, since))
            }
        });
        stream.boxed()
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        let inner = self.inner.clone();
        self.link.call("goals.compact", async move { inner.compact(through).await }).await
    }
}

/// What changed after `since`, some time after it changed.
async fn next_change(inner: &dyn GoalStateStore, link: &Link, since: Revision) -> Result<Changes, Error> {
    loop {
        let written = link.life.weather.written.notified();
        futures::pin_mut!(written);
        written.as_mut().enable();
        let changes = inner.changes(since).await?;
        if changes.goals.is_empty() {
            written.await;
            continue;
        }
        let delay = Duration::from_micros(link.life.random().u64(200..50_000));
        tokio::time::sleep(delay).await;
        link.life.awake().await;
        return if link.breaks() { Err(link.broken("a watch")) } else { Ok(changes) };
    }
}
