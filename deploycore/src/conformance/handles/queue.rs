//! The queue through several handles.

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;

use super::Handles;
use crate::model::{Attempt, Completion, ConcurrencyKey, Job, JobId, JobStatus, Lease, NewJob};
use crate::port::JobQueue;
use crate::port::queue::{
    AttemptEnd, Beat, ClaimRequest, Claiming, Enqueued, Error, Fate, JobCursor, JobFilter, JobPage, Order, QueueStats,
    RescueRequest, Rescued,
};

/// It gives no hints: each handle has its own.
#[async_trait]
impl JobQueue for Handles<dyn JobQueue> {
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, Error> {
        self.next().await.enqueue(jobs).await
    }

    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>, Error> {
        self.next().await.claim(request).await
    }

    async fn heartbeat(&self, leases: &[Lease]) -> Result<Vec<Beat>, Error> {
        self.next().await.heartbeat(leases).await
    }

    async fn complete(&self, lease: &Lease, completion: &Completion) -> Result<JobStatus, Error> {
        self.next().await.complete(lease, completion).await
    }

    async fn complete_batch(&self, ends: &[AttemptEnd]) -> Result<Vec<Result<JobStatus, Error>>, Error> {
        self.next().await.complete_batch(ends).await
    }

    async fn release(&self, lease: &Lease, reason: &str, delay: Duration) -> Result<Fate, Error> {
        self.next().await.release(lease, reason, delay).await
    }

    async fn cancel(&self, job: JobId) -> Result<Job, Error> {
        self.next().await.cancel(job).await
    }

    async fn rescue(&self, request: &RescueRequest) -> Result<Vec<Rescued>, Error> {
        self.next().await.rescue(request).await
    }

    async fn get(&self, job: JobId) -> Result<Option<Job>, Error> {
        self.next().await.get(job).await
    }

    async fn list(&self, filter: &JobFilter, after: Option<JobCursor>, limit: u32) -> Result<JobPage, Error> {
        self.next().await.list(filter, after, limit).await
    }

    async fn stats(&self) -> Result<QueueStats, Error> {
        self.next().await.stats().await
    }

    async fn attempts(&self, job: JobId) -> Result<Vec<Attempt>, Error> {
        self.next().await.attempts(job).await
    }

    async fn prune(&self, age: Duration, limit: usize) -> Result<usize, Error> {
        self.next().await.prune(age, limit).await
    }

    async fn set_claiming(&self, claiming: Claiming) -> Result<(), Error> {
        self.next().await.set_claiming(claiming).await
    }

    async fn set_concurrency_limit(&self, key: &ConcurrencyKey, limit: NonZeroU32) -> Result<(), Error> {
        self.next().await.set_concurrency_limit(key, limit).await
    }

    async fn set_order(&self, order: Order) -> Result<(), Error> {
        self.next().await.set_order(order).await
    }
}
