//! The queue, far away.

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use deploycore::model::{
    Attempt, AttemptOutcome, Completion, ConcurrencyKey, Failure, Job, JobId, JobStatus, Lease, NewJob,
};
use deploycore::port::JobQueue;
use deploycore::port::queue::{
    Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, Order, QueueStats,
    RescueRequest, Rescued, bounds,
};

use super::Far;
use crate::simulation::check::queue::Use;

#[async_trait]
impl JobQueue for Far<dyn JobQueue> {
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        let (inner, weather, jobs) = (self.inner.clone(), self.link.life.weather.clone(), jobs.to_vec());
        let effect = async move {
            let answer = inner.enqueue(&jobs).await;
            if let Ok(answers) = &answer {
                weather.checker.enqueued(&jobs, answers);
            }
            answer
        };
        self.link.call("queue.enqueue", effect).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        let (inner, weather, request) = (self.inner.clone(), self.link.life.weather.clone(), request.clone());
        let effect = async move {
            let answer = inner.claim(&request).await;
            weather.checker.claimed(&request, &answer);
            answer
        };
        self.link.call("queue.claim", effect).await
    }

    async fn heartbeat(&self, leases: &[Lease]) -> Result<Vec<Beat>, Error> {
        let (inner, weather, leases) = (self.inner.clone(), self.link.life.weather.clone(), leases.to_vec());
        let effect = async move {
            let uses: Vec<_> = leases.iter().map(|lease| weather.checker.use_of(lease, None)).collect();
            let answer = inner.heartbeat(&leases).await;
            if let Ok(beats) = &answer {
                for (usage, beat) in uses.iter().zip(beats) {
                    weather.checker.used(usage, *beat != Beat::Lost, "heartbeat");
                }
            }
            answer
        };
        self.link.call("queue.heartbeat", effect).await
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
        let (inner, weather) = (self.inner.clone(), self.link.life.weather.clone());
        let (lease, completion) = (*lease, completion.clone());
        let effect = async move {
            let outcome = AttemptOutcome::Completed { completion: bounds::cut_completion(&completion) };
            let usage = weather.checker.use_of(&lease, Some(&outcome));
            let answer = inner.complete(&lease, &completion).await;
            judge(&weather.checker, &usage, &answer, "complete");
            answer
        };
        self.link.call("queue.complete", effect).await
    }

    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
        let (inner, weather) = (self.inner.clone(), self.link.life.weather.clone());
        let (lease, reason) = (*lease, Failure::cut(reason).to_owned());
        let effect = async move {
            let outcome = AttemptOutcome::Released { reason: reason.clone() };
            let usage = weather.checker.use_of(&lease, Some(&outcome));
            let answer = inner.release(&lease, &reason, delay).await;
            judge(&weather.checker, &usage, &answer, "release");
            answer
        };
        self.link.call("queue.release", effect).await
    }

    async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        let (inner, weather) = (self.inner.clone(), self.link.life.weather.clone());
        let effect = async move {
            let answer = inner.cancel(job).await;
            weather.checker.queue_changed();
            answer
        };
        self.link.call("queue.cancel", effect).await
    }

    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error> {
        let (inner, weather, request) = (self.inner.clone(), self.link.life.weather.clone(), request.clone());
        let effect = async move {
            let answer = inner.rescue(&request).await;
            if let Ok(rescued) = &answer {
                weather.checker.rescued(&request, rescued);
            }
            answer
        };
        self.link.call("queue.rescue", effect).await
    }

    async fn get(&self, job: JobId) -> Result<Option<Job>, Error> {
        let inner = self.inner.clone();
        self.link.call("queue.get", async move { inner.get(job).await }).await
    }

    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error> {
        let (inner, filter) = (self.inner.clone(), filter.clone());
        self.link.call("queue.list", async move { inner.list(&filter, after, limit).await }).await
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        let inner = self.inner.clone();
        self.link.call("queue.stats", async move { inner.stats().await }).await
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>, Error> {
        let inner = self.inner.clone();
        self.link.call("queue.attempts", async move { inner.attempts(job).await }).await
    }

    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error> {
        let inner = self.inner.clone();
        self.link.call("queue.prune", async move { inner.prune(age, limit).await }).await
    }

    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error> {
        let inner = self.inner.clone();
        self.link.call("queue.set_claiming", async move { inner.set_claiming(claiming).await }).await
    }

    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error> {
        let (inner, key) = (self.inner.clone(), key.clone());
        self.link.call("queue.set_limit", async move { inner.set_concurrency_limit(&key, limit).await }).await
    }

    async fn set_order(&self, order: Order) -> Result<(), Error> {
        let inner = self.inner.clone();
        self.link.call("queue.set_order", async move { inner.set_order(order).await }).await
    }
}

fn judge<T>(checker: &crate::simulation::check::Checker, usage: &Use, answer: &Result<T, Error>, call: &str) {
    match answer {
        Ok(_) => checker.used(usage, true, call),
        Err(Error::LeaseLost { .. } | Error::NotFound { .. }) => checker.used(usage, false, call),
        Err(_) => {}
    }
}
